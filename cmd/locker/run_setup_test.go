//go:build unix

package main

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/jagregory/locker/v2/internal/locktest"
)

// asLocker makes the test's program be locker, so that there are real processes of it.
const asLocker = "TEST_AS_LOCKER"

func init() {
	if os.Getenv(asLocker) != "" {
		os.Exit(execute(os.Args[1:], os.Stdin, os.Stdout, os.Stderr))
	}
}

// process is a locker that runs as a process of its own.
type process struct {
	*exec.Cmd
	stdin  io.WriteCloser // nil if there is another
	lines  chan string    // of stdout
	stderr *tape
	ended  chan struct{}
	code   int // once it has ended
}

// tape keeps what is written to it.
type tape struct {
	mu   sync.Mutex // guards what follows
	text bytes.Buffer
}

func (b *tape) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.text.Write(p)
}

func (b *tape) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.text.String()
}

// command prepares a locker, whose flags follow those of the connection.
func command(endpoints []string, args ...string) *exec.Cmd {
	self, _ := os.Executable()
	cmd := exec.Command(self, args...)
	cmd.Env = append(os.Environ(), asLocker+"=1", "LOCKER_ENDPOINTS="+strings.Join(endpoints, ","), "LOCKER_DIAL_TIMEOUT=20s")
	return cmd
}

// launch starts a locker. It is killed at the end of the test, if it is still there.
func launch(t *testing.T, cmd *exec.Cmd) *process {
	t.Helper()
	p := &process{Cmd: cmd, lines: make(chan string, 1000), stderr: new(tape), ended: make(chan struct{})}
	r, w := io.Pipe()
	cmd.Stdout, cmd.Stderr = w, p.stderr
	cmd.WaitDelay = locktest.Prompt
	var err error
	if cmd.Stdin == nil {
		p.stdin, err = cmd.StdinPipe()
	}
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		t.Fatal(err)
	}
	read := make(chan struct{})
	go func() {
		defer close(read)
		for scanner := bufio.NewScanner(r); scanner.Scan(); {
			p.lines <- scanner.Text()
		}
		close(p.lines)
	}()
	go func() {
		defer close(p.ended)
		_ = cmd.Wait()
		if p.code = cmd.ProcessState.ExitCode(); p.code < 0 {
			p.code = exitSignal + int(cmd.ProcessState.Sys().(syscall.WaitStatus).Signal())
		}
		_ = w.Close()
		<-read
	}()
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Process.Signal(syscall.SIGCONT)
		<-p.ended
		if t.Failed() {
			t.Logf("stderr of %q:\n%s", cmd.Args, p.stderr)
		}
	})
	return p
}

// runUnder starts locker run with a short TTL, which reports what happens as JSON.
func runUnder(t *testing.T, endpoints []string, args ...string) *process {
	t.Helper()
	return launch(t, command(endpoints, append([]string{"--ttl", locktest.Brief.String(), "run", "--json"}, args...)...))
}

// line returns the next line that the command writes.
func (p *process) line(t *testing.T) string {
	t.Helper()
	select {
	case line, ok := <-p.lines:
		if !ok {
			t.Fatalf("stdout has ended, and stderr is %q", p.stderr)
		}
		return line
	case <-time.After(locktest.Timeout):
		t.Fatal("no line came")
		return ""
	}
}

// pids returns the next line, which consists of process IDs. They are killed at the end of
// the test, if they are still there.
func (p *process) pids(t *testing.T) (pids []int) {
	t.Helper()
	for field := range strings.FieldsSeq(p.line(t)) {
		pid, err := strconv.Atoi(field)
		if err != nil || pid < 2 {
			t.Fatalf("%q is no process ID", field)
		}
		pids = append(pids, pid)
		t.Cleanup(func() {
			if alive(pid) {
				_ = syscall.Kill(pid, syscall.SIGKILL)
			}
		})
	}
	return pids
}

// wantLine fails the test unless the next line is this one.
func (p *process) wantLine(t *testing.T, want string) {
	t.Helper()
	if got := p.line(t); got != want {
		t.Fatalf("the command writes %q, want %q", got, want)
	}
}

// end waits for the end of locker, and returns its exit code.
func (p *process) end(t *testing.T) int {
	t.Helper()
	select {
	case <-p.ended:
	case <-time.After(locktest.Timeout):
		t.Fatalf("it does not end; stderr is %q", p.stderr)
	}
	return p.code
}

// wantEnd fails the test unless locker ends with that exit code.
func (p *process) wantEnd(t *testing.T, code int) {
	t.Helper()
	if got := p.end(t); got != code {
		t.Errorf("exit code %d, want %d", got, code)
	}
}

// signal sends locker a signal.
func (p *process) signal(t *testing.T, s syscall.Signal) {
	t.Helper()
	if err := p.Process.Signal(s); err != nil {
		t.Fatal(err)
	}
}

// events returns those that were reported, by name, in order.
func (p *process) events() (events []string) {
	for line := range strings.Lines(p.stderr.String()) {
		var e struct{ Event string }
		if json.Unmarshal([]byte(line), &e) == nil {
			events = append(events, e.Event)
		}
	}
	return events
}

// timeOf returns when an event was reported.
func (p *process) timeOf(t *testing.T, event string) time.Time {
	t.Helper()
	for line := range strings.Lines(p.stderr.String()) {
		var e struct {
			Event string
			Time  time.Time
		}
		if json.Unmarshal([]byte(line), &e) == nil && e.Event == event {
			return e.Time
		}
	}
	t.Fatalf("no event %q", event)
	return time.Time{}
}

// reported waits for an event.
func (p *process) reported(t *testing.T, event string) {
	t.Helper()
	locktest.Eventually(t, event, func() bool { return slices.Contains(p.events(), event) })
}

// alive reports whether there is such a process. One that has ended and that its parent has
// yet to notice is not alive.
func alive(pid int) bool {
	if errors.Is(syscall.Kill(pid, 0), syscall.ESRCH) {
		return false
	}
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return !errors.Is(err, os.ErrNotExist) && !errors.Is(err, syscall.ESRCH)
	}
	_, state, _ := strings.Cut(string(status), ") ")
	return !strings.HasPrefix(state, "Z") && !strings.HasPrefix(state, "X")
}

// gone waits until none of the processes is alive, and returns when that was.
func gone(t *testing.T, pids []int) time.Time {
	t.Helper()
	_, gone := lastSeen(t, pids)
	return gone
}

// lastSeen waits until none of the processes is alive, and returns the last time when it has
// seen one, and the first when it has seen none.
func lastSeen(t *testing.T, pids []int) (seen, gone time.Time) {
	t.Helper()
	for deadline := time.Now().Add(locktest.Timeout); ; time.Sleep(time.Millisecond) {
		switch now := time.Now(); {
		case !slices.ContainsFunc(pids, alive):
			return seen, time.Now()
		case now.After(deadline):
			t.Fatalf("of the processes %v some do not end", pids)
		default:
			seen = now
		}
	}
}

// goneFirst fails the test unless the processes have ended before another has the lock, and
// prints by how much.
func goneFirst(t *testing.T, pids []int, next <-chan locktest.Outcome) {
	t.Helper()
	last := make(chan time.Time, 1)
	go func() {
		seen, _ := lastSeen(t, pids)
		last <- seen
	}()
	o := locktest.Receive(t, next)
	held := time.Now()
	if o.Err != nil {
		t.Fatal(o.Err)
	}
	if left := slices.DeleteFunc(slices.Clone(pids), func(pid int) bool { return !alive(pid) }); len(left) > 0 {
		t.Errorf("another holds the lock, and there are still %v", left)
	}
	seen := locktest.Receive(t, last)
	if slack := held.Sub(seen); slack < 0 {
		t.Errorf("the command was seen %v after another held the lock", -slack)
	} else if !seen.IsZero() {
		t.Logf("the command was last seen %v before another held the lock", slack.Round(time.Millisecond))
	}
}

// stubborn is a command that ends neither by TERM nor does its child, nor a child that has
// left its process group. It prints the three process IDs.
const stubborn = `trap "" TERM HUP INT
sleep 1000 & child=$!
setsid sleep 1000 & left=$!
echo $$ $child $left
while :; do wait; done`
