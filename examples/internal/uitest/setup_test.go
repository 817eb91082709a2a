package uitest

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/goleak"

	"github.com/jagregory/locker/v2"
	"github.com/jagregory/locker/v2/embedtest"
)

// timeout bounds every wait.
const timeout = 2 * time.Minute

// program is the path of the command, which is built once.
var program = sync.OnceValues(func() (string, error) {
	path := filepath.Join(buildDir, "locker")
	build := exec.Command("go", "build", "-o", path, "./cmd/locker")
	build.Dir = filepath.Join("..", "..", "..")
	if out, err := build.CombinedOutput(); err != nil {
		return "", fmt.Errorf("%w: %s", err, out)
	}
	return path, nil
})

var buildDir string

func TestMain(m *testing.M) {
	os.Exit(func() int {
		var err error
		if buildDir, err = os.MkdirTemp("", "uitest-"); err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
		defer os.RemoveAll(buildDir)
		code := m.Run()
		if err := goleak.Find(); err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
		return code
	}())
}

// server is a running "locker ui".
type server struct {
	url  string
	pid  int
	stop func() // interrupts it; it has to end without an error
}

var address = regexp.MustCompile(`^The page is at (http://\S+)/\n$`)

// serve runs "locker ui" until the test ends.
func serve(t *testing.T, endpoints []string, args ...string) server {
	t.Helper()
	path, err := program()
	if err != nil {
		t.Fatal(err)
	}
	args = append([]string{"ui", "--endpoints", strings.Join(endpoints, ","), "--dial-timeout", "1m", "--listen", "127.0.0.1:0"}, args...)
	cmd := exec.Command(path, args...)
	cmd.Stderr = t.Output()
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	watchdog := time.AfterFunc(timeout*5, func() { _ = cmd.Process.Kill() })
	s := server{pid: cmd.Process.Pid}
	s.stop = sync.OnceFunc(func() {
		defer watchdog.Stop()
		_ = cmd.Process.Signal(syscall.SIGTERM)
		rest, _ := io.ReadAll(stdout)
		if err := cmd.Wait(); err != nil || len(rest) > 0 {
			t.Errorf("locker %s: %v, and said %q", strings.Join(args, " "), err, rest)
		}
	})
	t.Cleanup(s.stop)
	line, err := bufio.NewReader(stdout).ReadString('\n')
	match := address.FindStringSubmatch(line)
	if err != nil || match == nil {
		t.Fatalf("locker ui said %q, %v", line, err)
	}
	s.url = match[1]
	return s
}

// client returns a client that locks what the page shows.
func client(t *testing.T, etcd *embedtest.Server, program string) *locker.Client {
	t.Helper()
	c, err := locker.New(etcd.Client(t), locker.WithProgram(program))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	return c
}

func within(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), timeout)
	t.Cleanup(cancel)
	return ctx
}

func lock(t *testing.T, c *locker.Client, name, value string, opts ...locker.LockOption) *locker.Lock {
	t.Helper()
	l, err := c.Lock(within(t), name, value, opts...)
	if err != nil {
		t.Fatal(err)
	}
	return l
}

func unlock(t *testing.T, l *locker.Lock) {
	t.Helper()
	if err := l.Unlock(within(t)); err != nil {
		t.Fatal(err)
	}
}

// wait waits for a name until the test ends.
func wait(t *testing.T, c *locker.Client, name, value string) {
	t.Helper()
	ctx, cancel := context.WithCancel(within(t))
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		_, _ = c.Lock(ctx, name, value) // the test has ended
	}()
	t.Cleanup(func() {
		cancel()
		<-ended
	})
}

// put puts keys as other programs do.
func put(t *testing.T, etcd *clientv3.Client, key, value string, opts ...clientv3.OpOption) {
	t.Helper()
	if _, err := etcd.Put(within(t), key, value, opts...); err != nil {
		t.Fatal(err)
	}
}
