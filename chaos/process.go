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

// target says where a client process finds things, and what it should do there.
type target struct {
	Process   string        `json:"process"`
	Slot      int           `json:"slot"`
	Endpoints []string      `json:"endpoints"`
	Resource  string        `json:"resource"`
	Over      string        `json:"over"`
	Load      string        `json:"load,omitempty"`
	TTL       time.Duration `json:"ttl"`   // of the round, to which all that is done is paced
	Lease     time.Duration `json:"lease"` // the TTL of its own locks
	Seed      uint64        `json:"seed"`
	Names     int           `json:"names"`
	Workers   int           `json:"workers"`
	Hold      time.Duration `json:"hold"` // of a post, about that long at most
}

// shares reports whether the goroutines of the process may pass a hold on among themselves. It is so in
// one process, for the others to meet.
func (t target) shares() bool { return t.Over == overLocker && t.Load == "" && t.Slot == 1 }

// name returns a name that all processes want.
func (t target) name(i int) string { return "n/" + strconv.Itoa(i) }

// post returns a name that only two processes want, this one and the one before: one of them holds it
// at nearly all times, so that a fault finds something to lose.
func (t target) post(i int) string { return "post/" + strconv.Itoa((t.Slot+i)%processes) }

// slot is a place for a client process. When the process was killed, the next takes the place, with
// another name and a history of its own.
type slot struct {
	number int
	dir    string
	target target
	faults sync.Mutex // held by the one that is going on

	mu       sync.Mutex // guards what follows
	runs     []*process
	suspends int // how many faults have stopped it
}

// process is one client process.
type process struct {
	name    string
	history string // a file
	log     string // a file: the standard error
	stdin   io.WriteCloser
	cmd     *exec.Cmd
	ended   chan struct{} // closed when it has ended
	err     error         // set before that
	began   instant

	// Guarded by the mutex of the slot.
	died    instant // when it was killed
	stopped []span
}

// start puts a process into an empty slot.
func (s *slot) start() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	t := s.target
	t.Process = fmt.Sprintf("%d.%d", s.number, len(s.runs))
	p := &process{
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

// launch starts the program itself as a client. Its output goes into files without a detour, so that
// nothing that was written is lost when it is killed.
func (p *process) launch(t target) error {
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
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true} // Ctrl-C is for the harness
	stdin, err := p.cmd.StdinPipe()
	if err != nil {
		return err
	}
	if err := p.cmd.Start(); err != nil {
		return err
	}
	p.stdin = stdin
	go func() { // ends with the process, which close and kill wait for
		p.err = p.cmd.Wait()
		close(p.ended)
	}()
	if _, err := stdin.Write(append(first, '\n')); err != nil {
		return errors.Join(err, p.cmd.Process.Kill())
	}
	return nil
}

// current returns the process in the slot.
func (s *slot) current() *process { return s.runs[len(s.runs)-1] }

// kill ends the process as the system does that has run out of memory.
func (s *slot) kill() {
	s.mu.Lock()
	p := s.current()
	select {
	case <-p.ended: // by itself
	default:
		p.died = now()
	}
	s.mu.Unlock()
	_ = p.cmd.Process.Kill()
	<-p.ended
}

// failure returns an error if the process has ended in another way than it was meant to.
func (p *process) failure() error {
	if p.err == nil || p.died != 0 {
		return nil
	}
	return fmt.Errorf("client %s: %w, having said: %s", p.name, p.err, p.lastWords())
}

// lastWords returns the end of what the process has written to its log, which may hold a report of the
// race detector.
func (p *process) lastWords() string {
	const most = 16 << 10
	text, err := os.ReadFile(p.log)
	if err != nil {
		return err.Error()
	}
	return string(text[max(0, len(text)-most):])
}

// suspend stops the process where it is; resume lets it go on. They may be nested.
func (s *slot) suspend() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	p := s.current()
	if s.suspends++; s.suspends > 1 || p.died != 0 {
		return nil
	}
	p.stopped = append(p.stopped, span{From: now()})
	return p.cmd.Process.Signal(syscall.SIGSTOP)
}

func (s *slot) resume() error {
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

// tell gives the process an order, unless it has ended.
func (s *slot) tell(order string) error {
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

// finish lets the process end in good order. If it has not by the end of ctx, its stacks go to its log,
// and it is killed.
func (s *slot) finish(ctx context.Context) error {
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
	return fmt.Errorf("client %s did not end in time; its stacks are in %s", p.name, p.log)
}
