package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/miekg/dns"
	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/jagregory/locker/v2"
	"github.com/jagregory/locker/v2/embedtest"
)

// process is a run of the program.
type process struct {
	cmd      *exec.Cmd
	out, err output
}

// start runs the program in a process of its own, until the test ends at most.
func start(t *testing.T, args ...string) *process {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 2*patience)
	p := &process{cmd: exec.CommandContext(ctx, os.Args[0], args...)}
	p.cmd.Env = append(os.Environ(), asProgram+"=yes")
	p.cmd.Stdout, p.cmd.Stderr = &p.out, &p.err
	if _, err := p.cmd.StdinPipe(); err != nil { // which closes with this process
		t.Fatal(err)
	}
	if err := p.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		cancel()
		_ = p.cmd.Wait() // an error if it has ended before
		if t.Failed() {
			t.Logf("%s\n%s%s", strings.Join(args, " "), &p.out, &p.err)
		}
	})
	return p
}

// signal sends a signal and returns the exit code, -1 if that was its end.
func (p *process) signal(t *testing.T, signal os.Signal) int {
	t.Helper()
	if err := p.cmd.Process.Signal(signal); err != nil {
		t.Fatal(err)
	}
	return p.wait(t)
}

func (p *process) wait(t *testing.T) int {
	t.Helper()
	var ended *exec.ExitError
	if err := p.cmd.Wait(); err != nil && !errors.As(err, &ended) {
		t.Fatal(err)
	}
	return p.cmd.ProcessState.ExitCode()
}

const ttl = 5 * time.Second

// busy is what a machine that is busy with other things may add.
const busy = 10 * time.Second

// startServer runs a server and returns where it listens.
func startServer(t *testing.T, args ...string) (p *process, address string) {
	t.Helper()
	p = start(t, append([]string{"serve", "-listen", "127.0.0.1:0", "-ttl", ttl.String()}, args...)...)
	return p, p.out.between(t, "is served on ", ",")
}

func TestWhenTheHolderIsKilledTheNextInLineIsServed(t *testing.T) {
	t.Parallel()
	etcd := embedtest.Start(t)
	client := clientOf(t, etcd.Client(t), ttl)
	endpoints := strings.Join(etcd.Endpoints(), ",")
	server, address := startServer(t, "-endpoints", endpoints)
	register := func(ip string) *process {
		return start(t, "register", "www.example.com", ip, "-endpoints", endpoints, "-ttl", ttl.String())
	}
	www := func() string {
		reply := ask(t, "udp", address, question("www.example.com.", dns.TypeA))
		return dns.RcodeToString[reply.Rcode] + " " + strings.Join(data(reply.Answer), ", ")
	}
	first := register("192.0.2.1")
	first.out.await(t, "holding www.example.com as 192.0.2.1")
	eventually(t, "the first is served", func() bool { return www() == "NOERROR A 192.0.2.1" })
	second := register("192.0.2.2")
	second.out.await(t, "www.example.com is 192.0.2.1")
	eventually(t, "the second is in the queue", func() bool { return len(keys(t, etcd, "locker/www.example.com/")) == 2 })

	for _, step := range []struct {
		holder *process
		then   string
	}{{first, "NOERROR A 192.0.2.2"}, {second, "NXDOMAIN "}} {
		killed := time.Now()
		if code := step.holder.signal(t, syscall.SIGKILL); code != -1 {
			t.Errorf("killed, it ended with %d", code)
		}
		before := www()
		var after string
		eventually(t, "the record changes", func() bool { after = www(); return after != before })
		took := time.Since(killed)
		if after != step.then || took > ttl+busy {
			t.Errorf("it was %q, and after %v %q, want %q within %v", before, took, after, step.then, ttl+busy)
		}
		t.Logf("killed: %q after %v", after, took.Round(time.Millisecond))
	}
	if _, err := client.Get(within(t), "www.example.com"); !errors.Is(err, locker.ErrNotFound) {
		t.Errorf("in the end it is held, or %v", err)
	}
	if code := server.signal(t, os.Interrupt); code != 0 {
		t.Errorf("interrupted, the server ended with %d", code)
	}
}

func TestThreeTerminalsAndNoEtcd(t *testing.T) {
	t.Parallel()
	server, address := startServer(t)
	endpoints := server.out.between(t, "-endpoints ", "\n")
	watcher := start(t, "watch", "-endpoints", endpoints, "WWW.example.com")
	watcher.out.await(t, "nobody is www.example.com")
	host := start(t, "register", "-endpoints", endpoints, "www.example.com", "192.0.2.1,2001:db8::1")
	watcher.out.await(t, "www.example.com is 192.0.2.1,2001:db8::1 (token")
	eventually(t, "it is served", func() bool {
		return len(ask(t, "tcp", address, question("www.example.com.", dns.TypeAAAA)).Answer) == 1
	})

	etcd, err := clientv3.New(clientv3.Config{Endpoints: []string{endpoints}})
	if err != nil {
		t.Fatal(err)
	}
	defer etcd.Close()
	about := ask(t, "udp", address, question("_locker.www.example.com.", dns.TypeTXT)).Answer[0].(*dns.TXT).Txt
	record, err := etcd.Get(within(t), "locker//"+strings.TrimPrefix(about[2], "lease="))
	if err != nil || len(record.Kvs) != 1 || !strings.Contains(string(record.Kvs[0].Value), fmt.Sprintf(`"pid":%d,`, host.cmd.Process.Pid)) {
		t.Errorf("with %q it cannot be found out which process it is: %v, %v", about, record, err)
	}
	if code := host.signal(t, syscall.SIGTERM); code != 0 {
		t.Errorf("terminated, register ended with %d", code)
	}
	if resp, err := etcd.Get(within(t), "locker/", clientv3.WithPrefix()); err != nil || resp.Count > 0 {
		t.Errorf("it left %v, %v", resp, err)
	}
	watcher.out.await(t, "nobody is www.example.com (revision")
	for _, p := range []*process{watcher, server} {
		if code := p.signal(t, os.Interrupt); code != 0 || p.err.String() != "" {
			t.Errorf("interrupted, it ended with %d and %q", code, &p.err)
		}
	}
}

func TestAMistakeEndsWithItsExitCode(t *testing.T) {
	t.Parallel()
	for args, want := range map[string]int{"-h": 0, "register -h": 0, "nonsense": 2, "serve -ttl 1ms": 2, "watch www.example.com -endpoints 127.0.0.1:1": 1} {
		p := start(t, strings.Fields(args)...)
		if code := p.wait(t); code != want || (code == 0) != (p.err.String() == "") || (code == 0) != (p.out.String() == usage) {
			t.Errorf("%s: it ended with %d, want %d", args, code, want)
		}
	}
}

// keys returns those in etcd below prefix.
func keys(t *testing.T, server *embedtest.Server, prefix string) []string {
	t.Helper()
	resp, err := server.Client(t).Get(within(t), prefix, clientv3.WithPrefix(), clientv3.WithKeysOnly())
	if err != nil {
		t.Fatal(err)
	}
	names := make([]string, len(resp.Kvs))
	for i, kv := range resp.Kvs {
		names[i] = string(kv.Key)
	}
	return names
}
