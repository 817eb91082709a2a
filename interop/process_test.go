package interop

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/goleak"
	"go.uber.org/zap"
)

const patience = 60 * time.Second

// programs is where TestMain has put etcd and etcdctl.
var programs string

func TestMain(m *testing.M) {
	dir, err := os.MkdirTemp("", "locker-interop-")
	if err == nil {
		err = build(dir)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	programs = dir
	code := m.Run()
	if err := goleak.Find(); err != nil && code == 0 {
		fmt.Fprintln(os.Stderr, err)
		code = 1
	}
	os.RemoveAll(dir)
	os.Exit(code)
}

// build makes the programs from the versions pinned in go.mod.
func build(dir string) error {
	for program, path := range map[string]string{"etcd": "go.etcd.io/etcd/server/v3", "etcdctl": "go.etcd.io/etcd/etcdctl/v3"} {
		cmd := exec.Command("go", "build", "-o", filepath.Join(dir, program), path)
		if out, err := cmd.CombinedOutput(); err != nil {
			return fmt.Errorf("go build %s: %w\n%s", path, err, out)
		}
	}
	return nil
}

// release is a pair of programs of one version.
type release struct{ name, etcd, etcdctl string }

// releases returns the pinned version, and the one that the system has installed, if any.
func releases() []release {
	all := []release{{"pinned", filepath.Join(programs, "etcd"), filepath.Join(programs, "etcdctl")}}
	etcd, err := exec.LookPath("etcd")
	etcdctl, err2 := exec.LookPath("etcdctl")
	if err == nil && err2 == nil {
		all = append(all, release{"installed", etcd, etcdctl})
	}
	return all
}

func within(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	t.Cleanup(cancel)
	return ctx
}

// cluster is one etcd process.
type cluster struct {
	release
	endpoint string
}

// start runs an etcd that takes its ports from the system, and ends it with the test.
func start(t *testing.T, r release) cluster {
	t.Helper()
	const any = "http://127.0.0.1:0"
	etcd := run(t, r.etcd, "--logger=zap", "--log-outputs=stdout", "--data-dir="+t.TempDir(),
		"--listen-client-urls="+any, "--advertise-client-urls="+any,
		"--listen-peer-urls="+any, "--initial-advertise-peer-urls="+any, "--initial-cluster=default="+any)
	for {
		var entry struct{ Msg, Address string }
		line := etcd.line(t)
		if json.Unmarshal([]byte(line), &entry) == nil && strings.HasPrefix(entry.Msg, "serving client") {
			etcd.ignore()
			return cluster{r, entry.Address}
		}
	}
}

// program runs a program until the test ends or stop is called; lines yields what it prints.
type program struct {
	cmd   *exec.Cmd
	lines chan string
	wait  func() error
}

// ignore drops what the program prints from now on.
func (p *program) ignore() {
	go func() {
		for range p.lines {
		}
	}()
}

func run(t *testing.T, name string, args ...string) *program {
	t.Helper()
	cmd := exec.Command(name, args...)
	cmd.Env = append(os.Environ(), "ETCDCTL_API=3")
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	p := &program{cmd: cmd, lines: make(chan string, 100)}
	p.wait = sync.OnceValue(func() error {
		defer close(p.lines)
		for scanner := bufio.NewScanner(out); scanner.Scan(); {
			p.lines <- scanner.Text()
		}
		_, _ = io.Copy(io.Discard, out)
		return cmd.Wait()
	})
	done := make(chan struct{})
	go func() { defer close(done); _ = p.wait() }()
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		<-done
		if t.Failed() && stderr.Len() > 0 {
			t.Logf("%s said:\n%s", filepath.Base(name), tail(stderr.String()))
		}
	})
	return p
}

// interrupt ends the program as Ctrl-C does.
func (p *program) interrupt(t *testing.T) {
	t.Helper()
	if err := p.cmd.Process.Signal(syscall.SIGINT); err != nil {
		t.Fatal(err)
	}
}

// line returns the next line that the program prints.
func (p *program) line(t *testing.T) string {
	t.Helper()
	select {
	case line, ok := <-p.lines:
		if !ok {
			t.Fatal("the program has ended")
		}
		return line
	case <-time.After(patience):
		t.Fatal("the program printed nothing")
	}
	return ""
}

func tail(text string) string {
	lines := strings.Split(strings.TrimSpace(text), "\n")
	return strings.Join(lines[max(0, len(lines)-20):], "\n")
}

func (c cluster) connect(t *testing.T) *clientv3.Client {
	t.Helper()
	etcd, err := clientv3.New(clientv3.Config{Endpoints: []string{c.endpoint}, Logger: zap.NewNop()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = etcd.Close() })
	return etcd
}
