//go:build unix

package etcdproc

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"
)

// Member is one etcd process. Its methods may be called from several goroutines.
type Member struct {
	endpoint      string // for clients
	peer          string // for the other members
	metrics       string // for questions about the member itself; like peer always without TLS
	program, data string
	args          []string
	log           *tail

	mu      sync.Mutex // guards what follows
	process *os.Process
	ended   chan struct{} // closed when the process has ended; nil before the first start
}

var (
	errPortTaken = errors.New("a port was taken by somebody else meanwhile")
	errRunning   = errors.New("it is still running")
)

// Endpoint returns the client address.
func (m *Member) Endpoint() string { return m.endpoint }

// Pid returns the ID of the process, or of the last one if none is running.
func (m *Member) Pid() int {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.process.Pid
}

// Kill ends the process as a crash would, and waits until it is gone. It is no error if it is already.
func (m *Member) Kill() {
	m.mu.Lock()
	process, ended := m.process, m.ended
	m.mu.Unlock()
	if process != nil {
		_ = process.Kill()
		<-ended
	}
}

// Restart starts a member that has ended, on the same data and the same ports, and returns when it
// serves. In a cluster of three, that needs another one.
func (m *Member) Restart(ctx context.Context) error {
	for attempt := 1; ; attempt++ {
		err := m.launch()
		if err == nil {
			err = m.ready(ctx)
		}
		if !errors.Is(err, errPortTaken) || attempt == attempts {
			return wrap("restart etcd", err)
		}
		// Whatever has taken the port is likely to be a passing connection.
		if err := pause(ctx, time.Duration(attempt)*100*time.Millisecond); err != nil {
			return wrap("restart etcd", err)
		}
	}
}

// Pause stops the process where it is: its connections stay open, and nothing answers. It returns when
// that is so: the system takes its time to stop all threads.
func (m *Member) Pause() error {
	if err := m.signal(syscall.SIGSTOP); err != nil {
		return wrap("pause etcd", err)
	}
	for {
		if _, err := ask(context.Background(), m.metrics+"/metrics", 100*time.Millisecond); err != nil {
			return nil
		}
	}
}

// Resume lets a paused process go on.
func (m *Member) Resume() error { return wrap("resume etcd", m.signal(syscall.SIGCONT)) }

func (m *Member) signal(s os.Signal) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.process.Signal(s)
}

// launch starts the process. One goroutine starts it and waits for its end.
func (m *Member) launch() error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.ended != nil {
		select {
		case <-m.ended:
		default:
			return errRunning
		}
	}
	m.log.reset()
	cmd := exec.Command(m.program, m.args...)
	cmd.Env = withoutEtcd(os.Environ())
	cmd.Stdout, cmd.Stderr = m.log, m.log
	cmd.SysProcAttr = attributes()
	started, ended := make(chan error), make(chan struct{})
	go func() {
		defer close(ended)
		// Where the process ends with its parent, it does so with the thread that started it.
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		err := cmd.Start()
		started <- err
		if err == nil {
			_ = cmd.Wait()
		}
	}()
	if err := <-started; err != nil {
		<-ended
		return err
	}
	m.process, m.ended = cmd.Process, ended
	return nil
}

// withoutEtcd returns the environment without the variables that etcd takes for flags.
func withoutEtcd(environment []string) []string {
	var kept []string
	for _, variable := range environment {
		if !strings.HasPrefix(variable, "ETCD_") {
			kept = append(kept, variable)
		}
	}
	return kept
}

// ready waits until the member reports that it can serve, which takes a quorum.
func (m *Member) ready(ctx context.Context) error {
	m.mu.Lock()
	ended := m.ended
	m.mu.Unlock()
	for !m.healthy(ctx) {
		select {
		case <-ended:
			if m.log.contains("address already in use") {
				return errPortTaken
			}
			return fmt.Errorf("it has ended; the last that it said:\n%s", m.log)
		default:
		}
		if err := pause(ctx, 30*time.Millisecond); err != nil {
			return fmt.Errorf("it is not ready: %w; the last that it said:\n%s", err, m.log)
		}
	}
	return nil
}

func (m *Member) healthy(ctx context.Context) bool {
	body, err := ask(ctx, m.metrics+"/health", 5*time.Second)
	var answer struct{ Health string }
	return err == nil && json.Unmarshal(body, &answer) == nil && answer.Health == "true" && m.itself(ctx)
}

// itself reports whether it is this member that answers. Before it has taken its ports, the system may
// have given one to a member of another cluster.
func (m *Member) itself(ctx context.Context) bool {
	metrics, err := ask(ctx, m.metrics+"/metrics", 5*time.Second)
	if err != nil {
		return false
	}
	body, err := ask(ctx, m.peer+"/members", 5*time.Second)
	var members []struct {
		ID       uint64
		PeerURLs []string
	}
	if err != nil || json.Unmarshal(body, &members) != nil {
		return false
	}
	for _, member := range members {
		if slices.Contains(member.PeerURLs, m.peer) {
			return bytes.Contains(metrics, fmt.Appendf(nil, "etcd_server_id{server_id=%q}", strconv.FormatUint(member.ID, 16)))
		}
	}
	return false
}

// ask makes a request of which nothing is left when it returns.
func ask(ctx context.Context, url string, limit time.Duration) ([]byte, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return nil, err
	}
	client := http.Client{Timeout: limit, Transport: &http.Transport{DisableKeepAlives: true}}
	resp, err := client.Do(req)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	return io.ReadAll(resp.Body)
}

func pause(ctx context.Context, d time.Duration) error {
	select {
	case <-time.After(d):
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

func wrap(what string, err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("%s: %w", what, err)
}

// sharedWriter is what all members print to.
type sharedWriter struct {
	mu sync.Mutex // guards w
	w  io.Writer
}

func (s *sharedWriter) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.w.Write(p)
}

// tail passes on what a member prints and keeps the end of it.
type tail struct {
	all io.Writer

	mu   sync.Mutex // guards last
	last []byte
}

const tailSize = 4096

func (t *tail) Write(p []byte) (int, error) {
	t.mu.Lock()
	t.last = append(t.last, p...)
	t.last = bytes.Clone(t.last[max(0, len(t.last)-tailSize):])
	t.mu.Unlock()
	return t.all.Write(p)
}

func (t *tail) reset() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.last = nil
}

func (t *tail) contains(text string) bool { return strings.Contains(t.String(), text) }

func (t *tail) String() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	return string(t.last)
}
