//go:build unix

package etcdproc_test

import (
	"context"
	"crypto/tls"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/goleak"
	"go.uber.org/zap"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/jagregory/locker/v2/internal/etcdproc"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const (
	version  = "v3.7.3"
	patience = 2 * time.Minute // a first test compiles etcd
)

func within(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	t.Cleanup(cancel)
	return ctx
}

func start(t *testing.T, o etcdproc.Options) (*etcdproc.Cluster, *clientv3.Client) {
	t.Helper()
	ctx := within(t)
	program, err := etcdproc.Build(ctx, version, t.Output())
	if err != nil {
		t.Fatal(err)
	}
	o.Program = program
	cluster, err := etcdproc.Start(ctx, o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(cluster.Close)
	etcd, err := clientv3.New(clientv3.Config{Endpoints: cluster.Endpoints(), Logger: zap.NewNop()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = etcd.Close() })
	return cluster, etcd
}

// put puts until it succeeds: a request under way is lost with a leader that is killed.
func put(t *testing.T, etcd *clientv3.Client, value string) {
	t.Helper()
	for ctx := within(t); ; {
		_, err := etcd.Put(ctx, "key", value)
		if err == nil {
			return
		}
		if ctx.Err() != nil {
			t.Fatal(err)
		}
	}
}

func wantValue(t *testing.T, etcd *clientv3.Client, want string) {
	t.Helper()
	resp, err := etcd.Get(within(t), "key")
	if err != nil {
		t.Fatal(err)
	}
	if len(resp.Kvs) != 1 || string(resp.Kvs[0].Value) != want {
		t.Fatalf("read %v, want %q", resp.Kvs, want)
	}
}

func TestMember_ThatIsKilledComesBackWithItsDataAtItsAddress(t *testing.T) {
	t.Parallel()
	cluster, etcd := start(t, etcdproc.Options{})
	put(t, etcd, "kept")
	member := cluster.Member(0)
	first := member.Pid()
	member.Kill()
	if running(first) {
		t.Fatal("the process is still there after Kill")
	}
	if err := member.Restart(within(t)); err != nil {
		t.Fatal(err)
	}
	if member.Pid() == first {
		t.Error("the process is the same after a restart")
	}
	wantValue(t, etcd, "kept")
	if err := member.Restart(within(t)); err == nil {
		t.Error("a running member was started again")
	}
}

func TestCluster_OfThreeGoesOnWithoutOneMember(t *testing.T) {
	t.Parallel()
	cluster, etcd := start(t, etcdproc.Options{Members: 3})
	members, err := etcd.MemberList(within(t))
	if err != nil || len(members.Members) != 3 {
		t.Fatalf("members: %v, %v", members, err)
	}
	cluster.Member(1).Kill() // it may be the leader
	put(t, etcd, "by two")
	if err := cluster.Member(1).Restart(within(t)); err != nil {
		t.Fatal(err)
	}
	etcd.SetEndpoints(cluster.Member(1).Endpoint())
	wantValue(t, etcd, "by two")
}

func TestMember_ThatIsPausedAnswersWhenItIsResumed(t *testing.T) {
	t.Parallel()
	cluster, etcd := start(t, etcdproc.Options{})
	put(t, etcd, "before")
	if err := cluster.Member(0).Pause(); err != nil {
		t.Fatal(err)
	}
	short, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	if _, err := etcd.Get(short, "key"); err == nil {
		t.Error("a paused member answered")
	}
	if err := cluster.Member(0).Resume(); err != nil {
		t.Fatal(err)
	}
	wantValue(t, etcd, "before")
}

func TestCluster_CloseEndsTheProcessesAndRemovesTheData(t *testing.T) {
	parent := t.TempDir()
	t.Setenv("TMPDIR", parent)
	cluster, _ := start(t, etcdproc.Options{})
	if entries, err := os.ReadDir(parent); err != nil || len(entries) != 1 {
		t.Fatalf("the data is in %v, %v", entries, err)
	}
	_ = cluster.Member(0).Pause() // which must not hold up Close
	cluster.Close()
	if running(cluster.Member(0).Pid()) {
		t.Error("the process is still there after Close")
	}
	if entries, _ := os.ReadDir(parent); len(entries) != 0 {
		t.Errorf("left behind: %v", entries)
	}
}

func TestCluster_KeepsItsDataInADirectoryThatWasGiven(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	cluster, _ := start(t, etcdproc.Options{Dir: dir})
	cluster.Close()
	if _, err := os.Stat(filepath.Join(dir, "m0", "member", "wal")); err != nil {
		t.Error(err)
	}
}

func TestStart_ReportsAProgramThatEndsWithItsLastWords(t *testing.T) {
	t.Parallel()
	program := filepath.Join(t.TempDir(), "etcd")
	if err := os.WriteFile(program, []byte("#!/bin/sh\necho no disk left\nexit 1\n"), 0o700); err != nil {
		t.Fatal(err)
	}
	for _, members := range []int{1, 3} {
		_, err := etcdproc.Start(within(t), etcdproc.Options{Program: program, Members: members})
		if err == nil || !strings.Contains(err.Error(), "no disk left") {
			t.Errorf("%d members: %v", members, err)
		}
	}
	if _, err := etcdproc.Start(within(t), etcdproc.Options{Program: program, Members: 2}); err == nil {
		t.Error("two members were accepted")
	}
}

func TestStart_ReplacesAPortThatIsTakenMeanwhile(t *testing.T) {
	t.Parallel()
	ctx := within(t)
	program, err := etcdproc.Build(ctx, version, t.Output())
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	// It fails once, as etcd does if a port is taken, and is etcd from then on.
	script := fmt.Sprintf("#!/bin/sh\nif mkdir %s/once; then echo bind: address already in use; exit 1; fi\nexec %s \"$@\"\n", dir, program)
	refusing := filepath.Join(dir, "etcd")
	if err := os.WriteFile(refusing, []byte(script), 0o700); err != nil {
		t.Fatal(err)
	}
	cluster, err := etcdproc.Start(ctx, etcdproc.Options{Program: refusing, Dir: dir})
	if err != nil {
		t.Fatal(err)
	}
	defer cluster.Close()
	if _, err := os.Stat(filepath.Join(dir, "once")); err != nil {
		t.Error("the program was not started before")
	}
}

func TestAuthority_ClientsNeedACertificateOfIt(t *testing.T) {
	t.Parallel()
	authority := newAuthority(t)
	cluster, _ := start(t, etcdproc.Options{Members: 3, TLS: issue(t, authority, "member")})
	dial := func(c *tls.Config) error {
		etcd, err := clientv3.New(clientv3.Config{Endpoints: cluster.Endpoints(), TLS: c, Logger: zap.NewNop()})
		if err != nil {
			t.Fatal(err)
		}
		defer etcd.Close()
		// Unlike etcd's client, this one does not wait for a connection.
		_, err = pb.NewKVClient(etcd.ActiveConnection()).Range(within(t), &pb.RangeRequest{Key: []byte("key")})
		return err
	}
	good := clientConfig(t, issue(t, authority, "client"))
	if err := dial(good); err != nil {
		t.Error(err)
	}
	stranger := clientConfig(t, issue(t, newAuthority(t), "client"))
	unasked, distrusting := good.Clone(), good.Clone()
	unasked.Certificates = nil
	distrusting.RootCAs = stranger.RootCAs
	stranger.RootCAs = good.RootCAs
	if err := dial(distrusting); err == nil || !strings.Contains(err.Error(), "certificate signed by unknown authority") {
		t.Errorf("a client that trusts another authority: %v", err)
	}
	// The member refuses these two, often by closing the connection before they have read why.
	for what, c := range map[string]*tls.Config{"without a certificate": unasked, "of another authority": stranger} {
		if err := dial(c); status.Code(err) != codes.Unavailable {
			t.Errorf("a client %s: %v", what, err)
		}
	}
}

func newAuthority(t *testing.T) *etcdproc.Authority {
	t.Helper()
	authority, err := etcdproc.NewAuthority(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	return authority
}

func issue(t *testing.T, authority *etcdproc.Authority, name string) *etcdproc.TLS {
	t.Helper()
	files, err := authority.Issue(name, time.Now().Add(time.Hour))
	if err != nil {
		t.Fatal(err)
	}
	return files
}

func clientConfig(t *testing.T, files *etcdproc.TLS) *tls.Config {
	t.Helper()
	config, err := files.Config()
	if err != nil {
		t.Fatal(err)
	}
	return config
}

// running reports whether there is a process with that ID, a zombie included.
func running(pid int) bool {
	process, err := os.FindProcess(pid)
	return err == nil && process.Signal(syscall.Signal(0)) == nil
}
