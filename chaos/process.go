package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"sync"
	"syscall"
	"time"
)

// target is the configuration of a client process.
type target struct {
	Process   string        `json:"process"`
	Slot      int           `json:"slot"`
	Endpoints []string      `json:"endpoints"`
	Resource  string        `json:"resource"`
	Over      string        `json:"over"`
	Load      string        `json:"load,omitempty"`
	TTL       time.Duration `json:"ttl"`   // of the round, which sets the pace of the workers
	Lease     time.Duration `json:"lease"` // TTL of its own locks
	Seed      uint64        `json:"seed"`
	Names     int           `json:"names"`
	Mixed     int           `json:"mixed"` // names that are locked in all modes
	Workers   int           `json:"workers"`
	Hold      time.Duration `json:"hold"` // approximate maximum duration of long holds
}

// shares reports whether the goroutines of the process may pass a hold on among themselves.
// One process does, so that the others compete with it.
func (t target) shares() bool { return t.Over == overLocker && t.Load == "" && t.Slot == 1 }

// name returns a name that all processes compete for.
func (t target) name(i int) string { return "n/" + strconv.Itoa(i) }

// mixedName returns a name that all processes compete for in all modes.
func mixedName(i int) string { return mixedPrefix + strconv.Itoa(i) }

// anyName returns one of all names that all processes compete for.
func (t target) anyName(i int) string {
	if i < t.Names {
		return t.name(i)
	}
	return mixedName(i - t.Names)
}

// post returns a name that only two processes compete for: this one and the one before it.
// One of them holds it nearly all the time, so that most faults hit a holder.
func (t target) post(i int) string { return "post/" + strconv.Itoa((t.Slot+i)%processes) }

// clientSlot runs one client process at a time, each with its own name and history.
type clientSlot struct {
	number int
	dir    string
	target target
	faults sync.Mutex // held during a fault of the process

	mu       sync.Mutex // guards what follows
	runs     []*child
	suspends int // number of faults that keep it stopped
}

// child is one client process.
type child struct {
	name    string
	history string // file of its standard output
	log     string // file of its standard error
	stdin   io.WriteCloser
	cmd     *exec.Cmd
	ended   chan struct{} // closed when it has exited
	err     error         // of Wait; set before ended is closed
	began   instant

	// Guarded by mu of the slot.
	died    instant // when it was killed
	stopped []span
}

// start starts a process in an empty slot.
func (s *clientSlot) start() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	t := s.target
	t.Process = fmt.Sprintf("%d.%d", s.number, len(s.runs))
	p := &child{
		name:    t.Process,
		history: filepath.Join(s.dir, "client-"+t.Process+".jsonl"),
		log:     filepath.Join(s.dir, "client-"+t.Process+".log"),
		ended:   make(chan struct{}),
		began:   now(),
	}
	if err := p.launch(t); err != nil {
		return fmt.Errorf("start client %s: %w", p.name, err)
	}
	s.runs, s.suspends = append(s.runs, p), 0
	return nil
}

// launch starts this program as a client process. It writes its output to files directly,
// so that a kill loses nothing that was written.
func (p *child) launch(t target) error {
	program, err := os.Executable()
	if err != nil {
		return err
	}
	first, err := json.Marshal(t)
	if err != nil {
		return err
	}
	out, err := os.Create(p.history)
	if err != nil {
		return err
	}
	defer out.Close()
	log, err := os.Create(p.log)
	if err != nil {
		return err
	}
	defer log.Close()
	p.cmd = exec.Command(program, clientCommand)
	p.cmd.Env = append(os.Environ(), clientCommand+"=1")
	p.cmd.Stdout, p.cmd.Stderr = out, log
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true} // Ctrl-C reaches the harness only
	stdin, err := p.cmd.StdinPipe()
	if err != nil {
		return err
	}
	if err := p.cmd.Start(); err != nil {
		return err
	}
	p.stdin = stdin
	go func() { // ends with the process, which kill and finish wait for
		p.err = p.cmd.Wait()
		close(p.ended)
	}()
	if _, err := stdin.Write(append(first, '\n')); err != nil {
		return errors.Join(err, p.cmd.Process.Kill())
	}
	return nil
}

// current returns the process in the slot.
func (s *clientSlot) current() *child { return s.runs[len(s.runs)-1] }

// kill ends the process as the kernel does when it is out of memory.
func (s *clientSlot) kill() {
	s.mu.Lock()
	p := s.current()
	select {
	case <-p.ended:
	default:
		p.died = now()
	}
	s.mu.Unlock()
	_ = p.cmd.Process.Kill()
	<-p.ended
}

// failure returns an error if the process exited with one and was not killed.
func (p *child) failure() error {
	if p.err == nil || p.died != 0 {
		return nil
	}
	return fmt.Errorf("client %s: %w; its log ends: %s", p.name, p.err, p.logTail())
}

// logTail returns the end of the log, which may contain a report of the race detector.
func (p *child) logTail() string {
	const limit = 16 << 10
	text, err := os.ReadFile(p.log)
	if err != nil {
		return err.Error()
	}
	return string(text[max(0, len(text)-limit):])
}

// suspend stops the process until resume. They may be nested.
func (s *clientSlot) suspend() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	p := s.current()
	if s.suspends++; s.suspends > 1 || p.died != 0 {
		return nil
	}
	p.stopped = append(p.stopped, span{From: now()})
	return p.cmd.Process.Signal(syscall.SIGSTOP)
}

func (s *clientSlot) resume() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	p := s.current()
	if s.suspends--; s.suspends > 0 || p.died != 0 {
		return nil
	}
	err := p.cmd.Process.Signal(syscall.SIGCONT)
	p.stopped[len(p.stopped)-1].To = now()
	return err
}

// send sends the process an order, unless it has exited.
func (s *clientSlot) send(order string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	p := s.current()
	select {
	case <-p.ended:
		return nil
	default:
	}
	_, err := io.WriteString(p.stdin, order+"\n")
	return err
}

// finish stops the process. If it is not done when ctx ends, it logs its stacks and is killed.
func (s *clientSlot) finish(ctx context.Context) error {
	p := s.current()
	if err := p.stdin.Close(); err != nil {
		return err
	}
	select {
	case <-p.ended:
		return nil
	case <-ctx.Done():
	}
	_ = p.cmd.Process.Signal(syscall.SIGQUIT)
	select {
	case <-p.ended:
	case <-time.After(2 * time.Second):
	}
	s.kill()
	return fmt.Errorf("client %s did not stop in time; its stacks are in %s", p.name, p.log)
}
