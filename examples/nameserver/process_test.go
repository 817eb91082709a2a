package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/miekg/dns"
	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/jagregory/locker/v2"
	"github.com/jagregory/locker/v2/embedtest"
)

// process is the program, running as a separate process.
type process struct {
	cmd      *exec.Cmd
	out, err output
}

// startProgram runs the program as a separate process, which ends with the test at the
// latest.
func startProgram(t *testing.T, args ...string) *process {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 2*testTimeout)
	p := &process{cmd: exec.CommandContext(ctx, os.Args[0], args...)}
	p.cmd.Env = append(os.Environ(), asProgram+"=yes")
	p.cmd.Stdout, p.cmd.Stderr = &p.out, &p.err
	if _, err := p.cmd.StdinPipe(); err != nil { // closed when this process ends
		t.Fatal(err)
	}
	if err := p.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		cancel()
		_ = p.cmd.Wait() // fails if it has been called before
		if t.Failed() {
			t.Logf("%s\n%s%s", strings.Join(args, " "), &p.out, &p.err)
		}
	})
	return p
}

// signal sends a signal, waits for the process to end and returns its exit code, or -1 if
// the signal killed it.
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

const leaseTTL = 5 * time.Second

// slack is what a busy machine may add to a duration.
const slack = 10 * time.Second

// startServer runs a server and returns its address.
func startServer(t *testing.T, args ...string) (p *process, address string) {
	t.Helper()
	p = startProgram(t, append([]string{"serve", "-listen", "127.0.0.1:0", "-ttl", leaseTTL.String()}, args...)...)
	return p, p.out.between(t, "serving example.com on ", " ")
}

func TestRegister_NextWaiterIsServedWhenTheHolderIsKilled(t *testing.T) {
	t.Parallel()
	etcd := embedtest.Start(t)
	client := clientOf(t, etcd.Client(t), leaseTTL)
	endpoints := strings.Join(etcd.Endpoints(), ",")
	server, address := startServer(t, "-endpoints", endpoints)
	startRegister := func(ip string) *process {
		return startProgram(t, "register", "www.example.com", ip, "-endpoints", endpoints, "-ttl", leaseTTL.String())
	}
	www := func() string {
		reply := ask(t, "udp", address, newQuery("www.example.com.", dns.TypeA))
		return dns.RcodeToString[reply.Rcode] + " " + strings.Join(recordTexts(reply.Answer), ", ")
	}
	first := startRegister("192.0.2.1")
	first.out.await(t, "holding www.example.com as 192.0.2.1")
	eventually(t, "the first host is served", func() bool { return www() == "NOERROR A 192.0.2.1" })
	second := startRegister("192.0.2.2")
	second.out.await(t, "www.example.com is 192.0.2.1")
	eventually(t, "the second host is in the queue", func() bool { return len(keysBelow(t, etcd, "locker/www.example.com/")) == 2 })

	for _, step := range []struct {
		holder *process
		want   string
	}{{first, "NOERROR A 192.0.2.2"}, {second, "NXDOMAIN "}} {
		killed := time.Now()
		if code := step.holder.signal(t, syscall.SIGKILL); code != -1 {
			t.Errorf("the killed process ended with %d", code)
		}
		before := www()
		var after string
		eventually(t, "the record changes", func() bool { after = www(); return after != before })
		took := time.Since(killed)
		if after != step.want || took > leaseTTL+slack {
			t.Errorf("the answer was %q, and %q after %v; want %q within %v", before, after, took, step.want, leaseTTL+slack)
		}
		t.Logf("after the kill: %q after %v", after, took.Round(time.Millisecond))
	}
	if _, err := client.Get(testContext(t), "www.example.com"); !errors.Is(err, locker.ErrNotFound) {
		t.Errorf("Get returned %v, want %v", err, locker.ErrNotFound)
	}
	if code := server.signal(t, os.Interrupt); code != 0 {
		t.Errorf("the interrupted server ended with %d", code)
	}
}

// startCommand runs a command that uses an etcd of the test.
func startCommand(t *testing.T, etcd *embedtest.Server, args ...string) *process {
	t.Helper()
	return startProgram(t, append(args, "-endpoints", strings.Join(etcd.Endpoints(), ","), "-ttl", leaseTTL.String())...)
}

// awaitAnswer waits until www.example.com has the given A records.
func awaitAnswer(t *testing.T, address string, want ...string) {
	t.Helper()
	eventually(t, fmt.Sprintf("the answer is %q", want), func() bool {
		reply := ask(t, "udp", address, newQuery("www.example.com.", dns.TypeA))
		return slices.Equal(recordTexts(reply.Answer), want)
	})
}

func TestRegister_SharedHostsAreServedTogetherWhileTheyLive(t *testing.T) {
	t.Parallel()
	etcd := embedtest.Start(t)
	_, address := startServer(t, "-endpoints", strings.Join(etcd.Endpoints(), ","))
	watcher := startCommand(t, etcd, "watch", "www.example.com")
	first := startCommand(t, etcd, "register", "-shared", "www.example.com", "192.0.2.1")
	token := first.out.between(t, "holding www.example.com as 192.0.2.1 ", ", shared\n")
	watcher.out.await(t, "www.example.com is 192.0.2.1 "+token+"\n")

	second := startCommand(t, etcd, "register", "www.example.com", "192.0.2.2", "-shared")
	second.out.await(t, "www.example.com is 192.0.2.1 "+token+"; joining\n")
	second.out.await(t, "holding www.example.com as 192.0.2.2 (token")
	watcher.out.await(t, "www.example.com is 192.0.2.1 "+token+", the oldest of 2 holders\n")
	awaitAnswer(t, address, "A 192.0.2.1", "A 192.0.2.2")

	killed := time.Now()
	first.signal(t, syscall.SIGKILL)
	awaitAnswer(t, address, "A 192.0.2.2")
	if took := time.Since(killed); took > leaseTTL+slack {
		t.Errorf("the killed host was served for %v", took)
	}
	token = second.out.between(t, "holding www.example.com as 192.0.2.2 ", ", shared\n")
	watcher.out.await(t, "www.example.com is 192.0.2.2 "+token+"\n")
}

func TestRegister_ExclusiveHostWaitsForSharedOnesAndIsServedAlone(t *testing.T) {
	t.Parallel()
	etcd := embedtest.Start(t)
	_, address := startServer(t, "-endpoints", strings.Join(etcd.Endpoints(), ","))
	register := func(ip string, flags ...string) *process {
		return startCommand(t, etcd, append([]string{"register", "www.example.com", ip}, flags...)...)
	}
	queued := func(hosts int) {
		t.Helper()
		eventually(t, "the hosts are in the queue", func() bool { return len(keysBelow(t, etcd, "locker/www.example.com/")) == hosts })
	}
	var shared []*process
	for i, ip := range []string{"192.0.2.1", "192.0.2.2"} {
		shared = append(shared, register(ip, "-shared"))
		shared[i].out.await(t, "holding www.example.com as "+ip)
	}
	exclusive := register("192.0.2.3")
	exclusive.out.await(t, ", the oldest of 2 holders; waiting for it\n")
	queued(3)
	late := register("192.0.2.4", "-shared")
	queued(4)
	awaitAnswer(t, address, "A 192.0.2.1", "A 192.0.2.2")

	shared[0].signal(t, os.Interrupt)
	awaitAnswer(t, address, "A 192.0.2.2")
	shared[1].signal(t, os.Interrupt)
	awaitAnswer(t, address, "A 192.0.2.3")
	exclusive.out.await(t, "holding www.example.com as 192.0.2.3")
	exclusive.signal(t, os.Interrupt)
	awaitAnswer(t, address, "A 192.0.2.4")
	late.out.await(t, "holding www.example.com as 192.0.2.4")
}

func TestCommands_UseTheEtcdThatServeStarts(t *testing.T) {
	t.Parallel()
	server, address := startServer(t)
	endpoints := server.out.between(t, "-endpoints ", "\n")
	watcher := startProgram(t, "watch", "-endpoints", endpoints, "WWW.example.com")
	watcher.out.await(t, "www.example.com is not held")
	host := startProgram(t, "register", "-endpoints", endpoints, "www.example.com", "192.0.2.1,2001:db8::1")
	watcher.out.await(t, "www.example.com is 192.0.2.1,2001:db8::1 (token")
	eventually(t, "the host is served", func() bool {
		return len(ask(t, "tcp", address, newQuery("www.example.com.", dns.TypeAAAA)).Answer) == 1
	})

	etcd, err := clientv3.New(clientv3.Config{Endpoints: []string{endpoints}})
	if err != nil {
		t.Fatal(err)
	}
	defer etcd.Close()
	about := ask(t, "udp", address, newQuery("_locker.www.example.com.", dns.TypeTXT)).Answer[0].(*dns.TXT).Txt
	record, err := etcd.Get(testContext(t), "locker//"+strings.TrimPrefix(about[2], "lease="))
	if err != nil || len(record.Kvs) != 1 || !strings.Contains(string(record.Kvs[0].Value), fmt.Sprintf(`"pid":%d,`, host.cmd.Process.Pid)) {
		t.Errorf("the lease in %q does not lead to the process: %v, %v", about, record, err)
	}
	if code := host.signal(t, syscall.SIGTERM); code != 0 {
		t.Errorf("the terminated register ended with %d", code)
	}
	if resp, err := etcd.Get(testContext(t), "locker/", clientv3.WithPrefix()); err != nil || resp.Count > 0 {
		t.Errorf("left in etcd: %v, %v", resp, err)
	}
	watcher.out.await(t, "www.example.com is not held (revision")
	for _, p := range []*process{watcher, server} {
		if code := p.signal(t, os.Interrupt); code != 0 || p.err.String() != "" {
			t.Errorf("an interrupted process ended with %d and %q", code, &p.err)
		}
	}
}

func TestExitCode_DistinguishesFailureFromWrongUsage(t *testing.T) {
	t.Parallel()
	for args, want := range map[string]int{"-h": 0, "register -h": 0, "nonsense": 2, "serve -ttl 1ms": 2, "watch www.example.com -endpoints 127.0.0.1:1": 1} {
		p := startProgram(t, strings.Fields(args)...)
		if code := p.wait(t); code != want || (code == 0) != (p.err.String() == "") || (code == 0) != (p.out.String() == usage) {
			t.Errorf("%s: exit code %d, want %d", args, code, want)
		}
	}
}

// keysBelow returns the keys in etcd that have the given prefix.
func keysBelow(t *testing.T, server *embedtest.Server, prefix string) []string {
	t.Helper()
	resp, err := server.Client(t).Get(testContext(t), prefix, clientv3.WithPrefix(), clientv3.WithKeysOnly())
	if err != nil {
		t.Fatal(err)
	}
	names := make([]string, len(resp.Kvs))
	for i, kv := range resp.Kvs {
		names[i] = string(kv.Key)
	}
	return names
}
