//go:build unix

package faults

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"sync"
	"syscall"
	"testing"
	"time"
)

// process is a client process as seen by the test.
type process struct {
	t      *testing.T
	name   string
	cmd    *exec.Cmd
	stdin  io.WriteCloser
	exited chan struct{} // closed when the process has exited
	stderr bytes.Buffer  // its standard error; read only after exited is closed

	lastID int // of the last command

	mu      sync.Mutex // guards the fields below
	reports []report
	updated chan struct{} // closed at the next report
	killed  instant
}

// newProcess starts a client process. The caller must call kill.
func newProcess(t *testing.T, begin command) *process {
	t.Helper()
	program, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	p := &process{t: t, name: begin.Process, cmd: exec.Command(program), exited: make(chan struct{}), updated: make(chan struct{})}
	p.cmd.Env = append(os.Environ(), clientEnv+"=1")
	p.cmd.Stderr = &p.stderr
	p.cmd.SysProcAttr = attributes()
	out, err := p.cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if p.stdin, err = p.cmd.StdinPipe(); err != nil {
		t.Fatal(err)
	}
	started := make(chan error)
	go p.run(out, started)
	if err := <-started; err != nil {
		t.Fatal(err)
	}
	begin.Verb = "begin"
	p.writeCommand(begin)
	return p
}

// run starts the process, reads its reports and waits for its end. It stays on one
// thread, because the process is killed when the thread that started it exits.
func (p *process) run(out io.Reader, started chan<- error) {
	defer close(p.exited)
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	err := p.cmd.Start()
	started <- err
	if err != nil {
		return
	}
	lines := json.NewDecoder(out)
	for {
		var r report
		if lines.Decode(&r) != nil {
			break
		}
		p.mu.Lock()
		p.reports = append(p.reports, r)
		close(p.updated)
		p.updated = make(chan struct{})
		p.mu.Unlock()
	}
	_ = p.cmd.Wait() // if the process failed, its last report is missing, and finish fails
}

// writeCommand writes a command to the process.
func (p *process) writeCommand(c command) {
	p.t.Helper()
	if err := json.NewEncoder(p.stdin).Encode(c); err != nil {
		p.t.Fatalf("%s: write the command %q: %v", p.name, c.Verb, err)
	}
}

// send sends a command to the process and returns its ID without waiting for the answer.
func (p *process) send(c command) (id int) {
	p.t.Helper()
	p.lastID++
	c.ID = p.lastID
	p.writeCommand(c)
	return c.ID
}

// do sends a command and returns the answer. It ends the test if the command failed.
func (p *process) do(verb, name string) report {
	p.t.Helper()
	r := p.try(command{Verb: verb, Name: name, Timeout: testTimeout})
	p.want(r, "")
	return r
}

// try sends a command and returns the answer.
func (p *process) try(c command) report {
	p.t.Helper()
	return p.answer(p.send(c))
}

// want ends the test unless the error in the report is of the given kind; "" is no error.
func (p *process) want(r report, kind string) {
	p.t.Helper()
	if r.Kind != kind {
		p.t.Fatalf("%s: %s %s ended with %q (%s), want %q", p.name, r.Verb, r.Name, r.Kind, r.Error, kind)
	}
}

// answer waits for the answer to a command.
func (p *process) answer(id int) report {
	p.t.Helper()
	return p.awaitReport("an answer", func(r report) bool {
		return r.ID == id && r.Verb != "ended" && r.Verb != "spinning" && r.Verb != "cycle"
	})
}

// awaitEnd waits for the end of a hold.
func (p *process) awaitEnd(hold report) report {
	p.t.Helper()
	return p.awaitReport("the end of the hold", func(r report) bool { return r.ID == hold.ID && r.Verb == "ended" })
}

// awaitReport waits for a report that matches and returns the first one.
func (p *process) awaitReport(what string, match func(report) bool) report {
	p.t.Helper()
	late := time.After(testTimeout)
	for ended := false; ; {
		p.mu.Lock()
		i, updated := slices.IndexFunc(p.reports, match), p.updated
		if i >= 0 {
			defer p.mu.Unlock()
			return p.reports[i]
		}
		p.mu.Unlock()
		if ended {
			p.t.Fatalf("%s exited before it reported %s; its standard error:\n%s", p.name, what, p.stderr.String())
		}
		select {
		case <-updated:
		case <-p.exited:
			ended = true // look once more at the reports before that
		case <-late:
			p.t.Fatalf("%s: timed out waiting for %s", p.name, what)
		}
	}
}

// reported returns the reports of the process so far.
func (p *process) reported() []report {
	p.mu.Lock()
	defer p.mu.Unlock()
	return slices.Clone(p.reports)
}

// hasReported reports whether the process has made a report that matches.
func (p *process) hasReported(match func(report) bool) bool {
	return slices.ContainsFunc(p.reported(), match)
}

// kill ends the process as a crash would.
func (p *process) kill() {
	p.mu.Lock()
	p.killed = now()
	p.mu.Unlock()
	_ = p.cmd.Process.Kill()
	<-p.exited
}

// stop stops the process with SIGSTOP and waits until all of its threads have stopped.
func (p *process) stop() {
	p.t.Helper()
	p.signal(syscall.SIGSTOP)
	for {
		var status syscall.WaitStatus
		switch _, err := syscall.Wait4(p.cmd.Process.Pid, &status, syscall.WUNTRACED, nil); {
		case errors.Is(err, syscall.EINTR):
		case err != nil || !status.Stopped():
			p.t.Fatalf("%s exited instead of stopping: %v", p.name, err)
		default:
			return
		}
	}
}

// resume continues a stopped process.
func (p *process) resume() {
	p.t.Helper()
	p.signal(syscall.SIGCONT)
}

func (p *process) signal(s os.Signal) {
	p.t.Helper()
	if err := p.cmd.Process.Signal(s); err != nil {
		p.t.Fatalf("%s: %v", p.name, err)
	}
}

// finish ends the process in an orderly way and fails the test if anything is left in it.
func (p *process) finish() {
	p.t.Helper()
	if err := p.stdin.Close(); err != nil {
		p.t.Fatal(err)
	}
	if bye := p.awaitReport("its last report", func(r report) bool { return r.Verb == "bye" }); bye.Error != "" {
		p.t.Errorf("%s left something behind: %s", p.name, bye.Error)
	}
	<-p.exited
}
