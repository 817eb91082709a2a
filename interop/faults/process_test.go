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

// process is a client process, seen from the test.
type process struct {
	t     *testing.T
	name  string
	cmd   *exec.Cmd
	stdin io.WriteCloser
	ended chan struct{} // closed when it has ended
	words bytes.Buffer  // on its standard error; to be read when it has ended

	lastID int // of a command

	mu      sync.Mutex // guards what follows
	reports []report
	news    chan struct{} // closed at the next report
	killed  instant
}

// newProcess starts a client process; kill must follow at the end.
func newProcess(t *testing.T, begin command) *process {
	t.Helper()
	program, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	p := &process{t: t, name: begin.Process, cmd: exec.Command(program), ended: make(chan struct{}), news: make(chan struct{})}
	p.cmd.Env = append(os.Environ(), asClient+"=1")
	p.cmd.Stderr = &p.words
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
	p.command(begin)
	return p
}

// run starts the process, reads what it prints and waits for its end: it is the thread that started it
// with which the process would end.
func (p *process) run(out io.Reader, started chan<- error) {
	defer close(p.ended)
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
		close(p.news)
		p.news = make(chan struct{})
		p.mu.Unlock()
	}
	_ = p.cmd.Wait() // one that fails says no goodbye, which is noticed
}

// command writes one line.
func (p *process) command(c command) {
	p.t.Helper()
	if err := json.NewEncoder(p.stdin).Encode(c); err != nil {
		p.t.Fatalf("%s cannot be told %q: %v", p.name, c.Verb, err)
	}
}

// send tells the process to do something, and does not wait until it has.
func (p *process) send(c command) (id int) {
	p.t.Helper()
	p.lastID++
	c.ID = p.lastID
	p.command(c)
	return c.ID
}

// do tells the process to do something and returns how it went; without success the test is over.
func (p *process) do(verb, name string) report {
	p.t.Helper()
	r := p.try(command{Verb: verb, Name: name, Within: patience})
	p.want(r, "")
	return r
}

// try tells the process to do something and returns how it went.
func (p *process) try(c command) report {
	p.t.Helper()
	return p.answer(p.send(c))
}

// want ends the test if the outcome is of another kind.
func (p *process) want(r report, kind string) {
	p.t.Helper()
	if r.Kind != kind {
		p.t.Fatalf("%s: %s %s ended with %q (%s), want %q", p.name, r.Verb, r.Name, r.Kind, r.Error, kind)
	}
}

// answer waits for what became of a command.
func (p *process) answer(id int) report {
	p.t.Helper()
	return p.await("an answer", func(r report) bool {
		return r.ID == id && r.Verb != "ended" && r.Verb != "spinning" && r.Verb != "turn"
	})
}

// end waits for the end of a hold.
func (p *process) end(lock report) report {
	p.t.Helper()
	return p.await("the end of the hold", func(r report) bool { return r.ID == lock.ID && r.Verb == "ended" })
}

// await returns the first report that matches.
func (p *process) await(what string, match func(report) bool) report {
	p.t.Helper()
	late := time.After(patience)
	for ended := false; ; {
		p.mu.Lock()
		i, news := slices.IndexFunc(p.reports, match), p.news
		if i >= 0 {
			defer p.mu.Unlock()
			return p.reports[i]
		}
		p.mu.Unlock()
		if ended {
			p.t.Fatalf("%s has ended; awaited was %s; the last that it said:\n%s", p.name, what, p.words.String())
		}
		select {
		case <-news:
		case <-p.ended:
			ended = true // what it said before is still to be looked at
		case <-late:
			p.t.Fatalf("%s never reported %s", p.name, what)
		}
	}
}

// said returns what the process has reported so far.
func (p *process) said() []report {
	p.mu.Lock()
	defer p.mu.Unlock()
	return slices.Clone(p.reports)
}

// has tells whether there is such a report by now.
func (p *process) has(match func(report) bool) bool { return slices.ContainsFunc(p.said(), match) }

// kill ends the process as a crash would.
func (p *process) kill() {
	p.mu.Lock()
	p.killed = now()
	p.mu.Unlock()
	_ = p.cmd.Process.Kill()
	<-p.ended
}

// stop stops the process where it is, and returns when that is so: the system takes its time to stop all
// threads.
func (p *process) stop() {
	p.t.Helper()
	p.signal(syscall.SIGSTOP)
	for {
		var status syscall.WaitStatus
		switch _, err := syscall.Wait4(p.cmd.Process.Pid, &status, syscall.WUNTRACED, nil); {
		case errors.Is(err, syscall.EINTR):
		case err != nil || !status.Stopped():
			p.t.Fatalf("%s has not stopped but ended: %v", p.name, err)
		default:
			return
		}
	}
}

// resume lets it go on.
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

// finish lets the process end in good order, and fails the test if anything was left in it.
func (p *process) finish() {
	p.t.Helper()
	if err := p.stdin.Close(); err != nil {
		p.t.Fatal(err)
	}
	if bye := p.await("its end", func(r report) bool { return r.Verb == "bye" }); bye.Error != "" {
		p.t.Errorf("%s has left something behind: %s", p.name, bye.Error)
	}
	<-p.ended
}
