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

// process is the program as a process of its own.
type process struct {
	*transcript
	t    *testing.T
	cmd  *exec.Cmd
	done chan struct{} // closed when it has ended
	err  error         // how; set before that
}

// launch starts the program. It is killed at the end of the test, if it still runs.
func launch(t *testing.T, args ...string) *process {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	p := &process{transcript: newTranscript(), t: t, cmd: exec.Command(self, args...), done: make(chan struct{})}
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
		_ = p.cmd.Process.Kill() // it may have ended
		<-p.done
	})
	return p
}

// launchNode starts a node and waits until it serves.
func launchNode(t *testing.T, endpoints []string, args ...string) *process {
	t.Helper()
	p := launch(t, append([]string{"node", "-endpoints", strings.Join(endpoints, ","), "-settle", "100ms"}, args...)...)
	p.await(t, 0, "serves, token")
	return p
}

func (p *process) signal(s os.Signal) {
	p.t.Helper()
	if err := p.cmd.Process.Signal(s); err != nil {
		p.t.Fatal(err)
	}
}

// end waits for the end of the process and returns its exit code.
func (p *process) end() int {
	p.t.Helper()
	select {
	case <-p.done:
	case <-time.After(patience):
		p.t.Fatalf("it does not end, after\n%s", p)
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

// lateness measures how much later than asked for this machine wakes up who waits. It
// returns the worst of it so far.
func lateness(t *testing.T) func() time.Duration {
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

func TestOthersReactToAProcessThatWasKilled(t *testing.T) {
	t.Parallel()
	server := embedtest.Start(t)
	late := lateness(t)
	const ttl = 2 * time.Second
	b := launchNode(t, server.Endpoints(), "-name", "service-b", "-ttl", ttl.String(), "-address", "10.1.1.2:80")
	a := launchNode(t, server.Endpoints(), "-name", "service-a", "-needs", "service-b", "-cascade")
	c := launchNode(t, server.Endpoints(), "-name", "service-c", "-needs", "service-b")
	a.await(t, 0, "service-b, which it needs, is up at 10.1.1.2:80")

	killed := time.Now()
	b.signal(os.Kill)
	a.await(t, 0, "stops serving: service-b is down")
	c.await(t, 0, "service-b, which it needs, is down; goes on without it")
	// A machine that is busy wakes each of a handful of processes late.
	if took, most := time.Since(killed), ttl+time.Second+10*late(); took > most {
		t.Errorf("they reacted after %v, want at most %v", took, most)
	}
	at := a.len()
	launchNode(t, server.Endpoints(), "-name", "service-b")
	a.await(t, at, "serves, token")
	if strings.Contains(c.String(), "stops serving") {
		t.Errorf("service-c does not cascade, and yet stopped:\n%s", c)
	}
}

func TestOthersReactAtOnceToACleanStop(t *testing.T) {
	t.Parallel()
	server := embedtest.Start(t)
	// The lease would last for longer than the test waits.
	b := launchNode(t, server.Endpoints(), "-name", "service-b", "-ttl", longTTL.String())
	a := launchNode(t, server.Endpoints(), "-name", "service-a", "-needs", "service-b", "-cascade", "-ttl", longTTL.String())
	b.signal(os.Interrupt)
	a.await(t, 0, "stops serving: service-b is down")
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

func TestANodeThatIsCutOffSaysSoAndOthersReact(t *testing.T) {
	t.Parallel()
	server := embedtest.Start(t)
	network := server.Proxy(t)
	b := launchNode(t, network.Endpoints(), "-name", "service-b", "-ttl", "2s")
	a := launchNode(t, server.Endpoints(), "-name", "service-a", "-needs", "service-b", "-cascade")
	network.Cut()
	b.await(t, 0, "has lost its record: locker: hold \"service/service-b\": lock lost: expired")
	a.await(t, 0, "stops serving: service-b is down")
	atA, atB := a.len(), b.len()
	network.Heal()
	b.await(t, atB, "serves, token")
	a.await(t, atA, "serves, token")
}

func TestSignalsSwitchTheHealth(t *testing.T) {
	t.Parallel()
	server := embedtest.Start(t)
	p := launchNode(t, server.Endpoints(), "-name", "service-a", "-ttl", longTTL.String())
	at := p.len()
	p.signal(syscall.SIGUSR1)
	p.await(t, at, "stops serving: it was told that it is unhealthy")
	at = p.len()
	p.signal(syscall.SIGUSR2)
	p.await(t, at, "serves, token")
}

func TestACheckSwitchesTheHealth(t *testing.T) {
	t.Parallel()
	server := embedtest.Start(t)
	flagFile := t.TempDir() + "/well"
	if err := os.WriteFile(flagFile, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	p := launchNode(t, server.Endpoints(), "-name", "service-a", "-ttl", longTTL.String(), "-listen", "127.0.0.1:0",
		"-check-command", "cat "+flagFile, "-check-interval", "50ms", "-check-timeout", patience.String())
	url := p.await(t, 0, "listens at ")
	if status := statusOf(t, url+"health"); status != http.StatusOK {
		t.Errorf("while it serves: %d\n%s", status, p)
	}
	if err := os.Remove(flagFile); err != nil {
		t.Fatal(err)
	}
	p.await(t, 0, "stops serving: its check failed: exit status 1: cat: ")
	if status := statusOf(t, url+"health"); status != http.StatusServiceUnavailable {
		t.Errorf("while it does not: %d", status)
	}
	at := p.len()
	if err := os.WriteFile(flagFile, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	p.await(t, at, "serves, token")
}

func TestACheckThatFailsFromTheBeginningIsTold(t *testing.T) {
	t.Parallel()
	server := embedtest.Start(t)
	flagFile := t.TempDir() + "/well"
	p := launch(t, "node", "-endpoints", server.Endpoints()[0], "-name", "service-a", "-settle", "100ms", "-ttl", longTTL.String(),
		"-check-command", "test -e "+flagFile+" || { date +%N; exit 3; }", "-check-interval", "20ms", "-check-timeout", patience.String())
	p.await(t, 0, "cannot serve: its check failed: exit status 3: ")
	if err := os.WriteFile(flagFile, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	p.await(t, 0, "serves, token")
	if told := strings.Count(p.String(), "its check failed"); told != 1 {
		t.Errorf("it told so %d times:\n%s", told, p)
	}
}

func TestANodeThatWaitsForAnotherTellsThatItsOwnCheckFails(t *testing.T) {
	t.Parallel()
	server := embedtest.Start(t)
	p := launch(t, "node", "-endpoints", server.Endpoints()[0], "-name", "service-a", "-needs", "service-b", "-cascade",
		"-settle", "100ms", "-ttl", longTTL.String())
	p.await(t, 0, "cannot serve: service-b is down")
	p.signal(syscall.SIGUSR1)
	p.await(t, 0, "cannot serve: "+errSwitchedOff.Error())
	p.signal(syscall.SIGUSR2)
	launchNode(t, server.Endpoints(), "-name", "service-b", "-ttl", longTTL.String())
	p.await(t, 0, "serves, token")
}

func statusOf(t *testing.T, url string) int {
	t.Helper()
	client := &http.Client{Timeout: patience, Transport: &http.Transport{DisableKeepAlives: true}}
	resp, err := client.Get(url)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	return resp.StatusCode
}

func TestTheCommandLineExplainsItself(t *testing.T) {
	t.Parallel()
	tests := []struct {
		args string
		code int
		says string
	}{
		{"-h", 0, "mesh dashboard   the page"},
		{"node -h", 0, "-check-command COMMAND"},
		{"dashboard --help", 0, "/state.json"},
		{"nodes", 2, `mesh: what is "nodes"?`},
		{"-listn x", 2, "mesh: flag provided but not defined: -listn"},
		{"node", 2, "mesh: -name is missing"},
		{"node -name a/b", 2, `mesh: -name "a/b" cannot be used`},
		{"node -name a -needs b,c/d", 2, `mesh: -needs "c/d" cannot be used`},
		{"node -name a -needs a", 2, "mesh: -needs names the service itself"},
		{"node -name a -check-url nonsense", 2, `mesh: -check-url "nonsense" is not an address`},
		{"node -name a -check-url http://x/ -check-command true", 2, "mesh: -check-command and -check-url"},
		{"node -name a -check-interval 0", 2, "mesh: -check-interval and -check-timeout"},
		{"node -name a -settle -1s", 2, "mesh: -settle must not"},
		{"node -name a -ttl 0 -endpoints 127.0.0.1:1", 2, "mesh: locker: new client: invalid TTL 0s"},
		{"-ttl 500ms -listen 127.0.0.1:0", 2, "mesh: locker: new client: invalid TTL 500ms"},
		{"node -name a -endpoints 127.0.0.1:1", 1, "mesh: cannot reach the etcd at 127.0.0.1:1: connection refused; is it running?\n"},
		{"node -name a -endpoints 127.0.0.1", 2, `mesh: -endpoints "127.0.0.1" is not an address such as 127.0.0.1:2379`},
		{"dashboard -listen 127.0.0.1:0 -endpoints x:y", 2, `mesh: -endpoints "x:y" is not an address`},
		{"-listen 127.0.0.1:0 -endpoints http://:2379,//x", 2, `mesh: -endpoints "http://:2379" is not an address`},
		{"dashboard -listen nonsense", 1, "mesh: cannot listen at nonsense"},
	}
	var processes []*process
	for _, test := range tests {
		processes = append(processes, launch(t, strings.Fields(test.args)...))
	}
	for i, test := range tests {
		p := processes[i]
		if code := p.end(); code != test.code || !strings.Contains(p.String(), test.says) {
			t.Errorf("mesh %s ended with %d, want %d and %q:\n%s", test.args, code, test.code, test.says, p)
		}
	}
}

func TestANodeStartsAnEtcdForOthers(t *testing.T) {
	t.Parallel()
	a := launch(t, "node", "-name", "service-a", "-needs", "service-b", "-cascade")
	endpoint := a.await(t, 0, "Others join with -endpoints ")
	launchNode(t, []string{endpoint}, "-name", "service-b")
	a.await(t, 0, "serves, token")
	a.signal(os.Interrupt)
	if code := a.end(); code != 0 {
		t.Errorf("it ended with %d:\n%s", code, a)
	}
}
