//go:build unix

package main

import (
	"context"
	"errors"
	"net/http"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/jagregory/locker/v2/embedtest"
)

// process is the program, running as a separate process.
type process struct {
	*recorder
	t    *testing.T
	cmd  *exec.Cmd
	done chan struct{} // closed when the process has ended
	err  error         // of Wait; set before done is closed
}

// startProcess starts the program. The process is killed at the end of the test if it is
// still running.
func startProcess(t *testing.T, args ...string) *process {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	p := &process{recorder: newRecorder(), t: t, cmd: exec.Command(self, args...), done: make(chan struct{})}
	p.cmd.Env = append(os.Environ(), asProgram+"=1")
	p.cmd.Stdout, p.cmd.Stderr = p, p
	if err := p.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go func() {
		defer close(p.done)
		p.err = p.cmd.Wait()
	}()
	t.Cleanup(func() {
		_ = p.cmd.Process.Kill() // may have ended already
		<-p.done
	})
	return p
}

// startNode starts a node and waits until it is serving.
func startNode(t *testing.T, endpoints []string, args ...string) *process {
	t.Helper()
	p := startProcess(t, append([]string{"node", "-endpoints", strings.Join(endpoints, ","), "-settle", "100ms"}, args...)...)
	p.await(t, 0, "serving, token")
	return p
}

func (p *process) signal(s os.Signal) {
	p.t.Helper()
	if err := p.cmd.Process.Signal(s); err != nil {
		p.t.Fatal(err)
	}
}

// end waits for the process to end and returns its exit code.
func (p *process) end() int {
	p.t.Helper()
	select {
	case <-p.done:
	case <-time.After(testTimeout):
		p.t.Fatalf("the process does not end; output:\n%s", p)
	}
	var exit *exec.ExitError
	switch {
	case p.err == nil:
		return 0
	case errors.As(p.err, &exit):
		return exit.ExitCode()
	}
	p.t.Fatal(p.err)
	return 0
}

// schedulingDelay measures how late this machine wakes goroutines. The function it
// returns reports the longest delay so far.
func schedulingDelay(t *testing.T) func() time.Duration {
	ctx, cancel := context.WithCancel(t.Context())
	worst, ask := time.Duration(0), make(chan chan time.Duration)
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			began := time.Now()
			select {
			case <-time.After(10 * time.Millisecond):
				worst = max(worst, time.Since(began)-10*time.Millisecond)
			case reply := <-ask:
				reply <- worst
			case <-ctx.Done():
				return
			}
		}
	}()
	t.Cleanup(func() {
		cancel()
		<-done
	})
	return func() time.Duration {
		reply := make(chan time.Duration)
		ask <- reply
		return <-reply
	}
}

func TestProcess_OthersReactWhenItIsKilled(t *testing.T) {
	t.Parallel()
	server := embedtest.Start(t)
	delay := schedulingDelay(t)
	const ttl = 2 * time.Second
	b := startNode(t, server.Endpoints(), "-name", "service-b", "-ttl", ttl.String(), "-address", "10.1.1.2:80")
	a := startNode(t, server.Endpoints(), "-name", "service-a", "-needs", "service-b", "-cascade")
	c := startNode(t, server.Endpoints(), "-name", "service-c", "-needs", "service-b")
	a.await(t, 0, "dependency service-b is up at 10.1.1.2:80")

	killed := time.Now()
	b.signal(os.Kill)
	a.await(t, 0, "stopped serving: service-b is down")
	c.await(t, 0, "dependency service-b is down; continuing without it")
	// A busy machine wakes each of several processes late.
	if took, limit := time.Since(killed), ttl+time.Second+10*delay(); took > limit {
		t.Errorf("the others reacted after %v, want at most %v", took, limit)
	}
	at := a.len()
	startNode(t, server.Endpoints(), "-name", "service-b")
	a.await(t, at, "serving, token")
	if strings.Contains(c.String(), "stopped serving") {
		t.Errorf("service-c does not cascade, but it stopped:\n%s", c)
	}
}

func TestProcess_OthersReactAtOnceWhenItEndsCleanly(t *testing.T) {
	t.Parallel()
	server := embedtest.Start(t)
	// The leases do not expire while the test waits.
	b := startNode(t, server.Endpoints(), "-name", "service-b", "-ttl", longTTL.String())
	a := startNode(t, server.Endpoints(), "-name", "service-a", "-needs", "service-b", "-cascade", "-ttl", longTTL.String())
	b.signal(os.Interrupt)
	a.await(t, 0, "stopped serving: service-b is down")
	if code := b.end(); code != 0 {
		t.Errorf("service-b ended with %d:\n%s", code, b)
	}
	a.signal(syscall.SIGTERM)
	if code := a.end(); code != 0 {
		t.Errorf("service-a ended with %d:\n%s", code, a)
	}
	keys, err := server.Client(t).Get(t.Context(), "\x00", clientv3.WithFromKey(), clientv3.WithKeysOnly())
	if err != nil {
		t.Fatal(err)
	}
	for _, kv := range keys.Kvs {
		t.Errorf("left in etcd: %s", kv.Key)
	}
}

func TestProcess_OthersReactWhenItIsDisconnected(t *testing.T) {
	t.Parallel()
	server := embedtest.Start(t)
	network := server.Proxy(t)
	b := startNode(t, network.Endpoints(), "-name", "service-b", "-ttl", "2s")
	a := startNode(t, server.Endpoints(), "-name", "service-a", "-needs", "service-b", "-cascade")
	network.Cut()
	b.await(t, 0, "lost its record: locker: hold \"service/service-b\": lock lost: expired")
	a.await(t, 0, "stopped serving: service-b is down")
	atA, atB := a.len(), b.len()
	network.Heal()
	b.await(t, atB, "serving, token")
	a.await(t, atA, "serving, token")
}

func TestSignals_SetTheHealth(t *testing.T) {
	t.Parallel()
	server := embedtest.Start(t)
	p := startNode(t, server.Endpoints(), "-name", "service-a", "-ttl", longTTL.String())
	at := p.len()
	p.signal(syscall.SIGUSR1)
	p.await(t, at, "stopped serving: marked unhealthy")
	at = p.len()
	p.signal(syscall.SIGUSR2)
	p.await(t, at, "serving, token")
}

func TestCheck_SetsTheHealth(t *testing.T) {
	t.Parallel()
	server := embedtest.Start(t)
	flagFile := t.TempDir() + "/healthy"
	if err := os.WriteFile(flagFile, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	p := startNode(t, server.Endpoints(), "-name", "service-a", "-ttl", longTTL.String(), "-listen", "127.0.0.1:0",
		"-check-command", "cat "+flagFile, "-check-interval", "50ms", "-check-timeout", testTimeout.String())
	url := p.await(t, 0, "listening on ")
	if status := statusCode(t, url+"health"); status != http.StatusOK {
		t.Errorf("while serving: %d\n%s", status, p)
	}
	if err := os.Remove(flagFile); err != nil {
		t.Fatal(err)
	}
	p.await(t, 0, "stopped serving: health check failed: exit status 1: cat: ")
	if status := statusCode(t, url+"health"); status != http.StatusServiceUnavailable {
		t.Errorf("while not serving: %d", status)
	}
	at := p.len()
	if err := os.WriteFile(flagFile, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	p.await(t, at, "serving, token")
}

func TestCheck_FailingFromTheBeginningIsReportedOnce(t *testing.T) {
	t.Parallel()
	server := embedtest.Start(t)
	flagFile := t.TempDir() + "/healthy"
	p := startProcess(t, "node", "-endpoints", server.Endpoints()[0], "-name", "service-a", "-settle", "100ms", "-ttl", longTTL.String(),
		"-check-command", "test -e "+flagFile+" || { date +%N; exit 3; }", "-check-interval", "20ms", "-check-timeout", testTimeout.String())
	p.await(t, 0, "cannot serve: health check failed: exit status 3: ")
	if err := os.WriteFile(flagFile, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	p.await(t, 0, "serving, token")
	if n := strings.Count(p.String(), "health check failed"); n != 1 {
		t.Errorf("the failure was logged %d times:\n%s", n, p)
	}
}

func TestNode_WaitingForAnotherReportsThatItIsUnhealthyItself(t *testing.T) {
	t.Parallel()
	server := embedtest.Start(t)
	p := startProcess(t, "node", "-endpoints", server.Endpoints()[0], "-name", "service-a", "-needs", "service-b", "-cascade",
		"-settle", "100ms", "-ttl", longTTL.String())
	p.await(t, 0, "cannot serve: service-b is down")
	p.signal(syscall.SIGUSR1)
	p.await(t, 0, "cannot serve: "+errMarkedUnhealthy.Error())
	p.signal(syscall.SIGUSR2)
	startNode(t, server.Endpoints(), "-name", "service-b", "-ttl", longTTL.String())
	p.await(t, 0, "serving, token")
}

func statusCode(t *testing.T, url string) int {
	t.Helper()
	client := &http.Client{Timeout: testTimeout, Transport: &http.Transport{DisableKeepAlives: true}}
	resp, err := client.Get(url)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	return resp.StatusCode
}

func TestCommandLine_ExplainsMistakes(t *testing.T) {
	t.Parallel()
	tests := []struct {
		args string
		code int
		want string
	}{
		{"-h", 0, "mesh dashboard   the page for services"},
		{"node -h", 0, "-check-command COMMAND"},
		{"dashboard --help", 0, "/state.json"},
		{"nodes", 2, `mesh: unknown argument "nodes"`},
		{"-listn x", 2, "mesh: flag provided but not defined: -listn"},
		{"node", 2, "mesh: -name is required"},
		{"node -name a/b", 2, `mesh: invalid -name "a/b"`},
		{"node -name a -needs b,c/d", 2, `mesh: invalid -needs "c/d"`},
		{"node -name a -needs a", 2, "mesh: -needs must not name the service itself"},
		{"node -name a -check-url nonsense", 2, `mesh: invalid -check-url "nonsense"`},
		{"node -name a -check-url http://x/ -check-command true", 2, "mesh: -check-command and -check-url"},
		{"node -name a -check-interval 0", 2, "mesh: -check-interval and -check-timeout"},
		{"node -name a -settle -1s", 2, "mesh: -settle must not"},
		{"node -name a -ttl 0 -endpoints 127.0.0.1:1", 2, "mesh: locker: new client: invalid TTL 0s"},
		{"-ttl 500ms -listen 127.0.0.1:0", 2, "mesh: locker: new client: invalid TTL 500ms"},
		{"node -name a -endpoints 127.0.0.1:1", 1, "mesh: cannot reach etcd at 127.0.0.1:1: connection refused; is it running?\n"},
		{"node -name a -endpoints 127.0.0.1", 2, `mesh: invalid endpoint "127.0.0.1": want an address such as 127.0.0.1:2379`},
		{"dashboard -listen 127.0.0.1:0 -endpoints x:y", 2, `mesh: invalid endpoint "x:y"`},
		{"-listen 127.0.0.1:0 -endpoints http://:2379,//x", 2, `mesh: invalid endpoint "http://:2379"`},
		{"dashboard -listen nonsense", 1, "mesh: cannot listen on nonsense"},
	}
	var processes []*process
	for _, test := range tests {
		processes = append(processes, startProcess(t, strings.Fields(test.args)...))
	}
	for i, test := range tests {
		p := processes[i]
		if code := p.end(); code != test.code || !strings.Contains(p.String(), test.want) {
			t.Errorf("mesh %s ended with %d, want %d and %q:\n%s", test.args, code, test.code, test.want, p)
		}
	}
}

func TestNode_StartsEtcdForOthers(t *testing.T) {
	t.Parallel()
	a := startProcess(t, "node", "-name", "service-a", "-needs", "service-b", "-cascade")
	endpoint := a.await(t, 0, "others join with -endpoints ")
	startNode(t, []string{endpoint}, "-name", "service-b")
	a.await(t, 0, "serving, token")
	a.signal(os.Interrupt)
	if code := a.end(); code != 0 {
		t.Errorf("service-a ended with %d:\n%s", code, a)
	}
}
