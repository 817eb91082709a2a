package main

import (
	"bytes"
	"context"
	"errors"
	"net"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"
)

// testTimeout bounds every wait of a test.
const testTimeout = 2 * time.Minute

// asProgram in the environment makes the test binary run the program, so that tests can
// start it as separate processes.
const asProgram = "MESH_AS_PROGRAM"

func TestMain(m *testing.M) {
	if os.Getenv(asProgram) != "" {
		main()
		return
	}
	goleak.VerifyTestMain(m)
}

// recorder records what a program prints.
type recorder struct {
	mu    sync.Mutex // guards the fields below
	text  bytes.Buffer
	grown chan struct{} // closed at the next write
}

func newRecorder() *recorder { return &recorder{grown: make(chan struct{})} }

func (r *recorder) Write(text []byte) (int, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	close(r.grown)
	r.grown = make(chan struct{})
	return r.text.Write(text)
}

func (r *recorder) now() (string, <-chan struct{}) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.text.String(), r.grown
}

func (r *recorder) String() string {
	text, _ := r.now()
	return text
}

func (r *recorder) len() int { return len(r.String()) }

// await waits until words are printed after the first n bytes, and returns the rest of
// their line.
func (r *recorder) await(tb testing.TB, n int, words string) string {
	tb.Helper()
	limit := time.After(testTimeout)
	for {
		text, grown := r.now()
		if _, rest, ok := strings.Cut(text[n:], words); ok && strings.Contains(rest, "\n") {
			rest, _, _ := strings.Cut(rest, "\n")
			return rest
		}
		select {
		case <-grown:
		case <-limit:
			tb.Fatalf("the output does not contain %q:\n%s", words, text)
		}
	}
}

// startInProcess runs the program in this process until the test ends or stop is called.
// It must end without an error.
func startInProcess(tb testing.TB, args ...string) (out *recorder, stop func()) {
	tb.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	out = newRecorder()
	done := make(chan error, 1)
	go func() { done <- run(ctx, args, out) }()
	stop = sync.OnceFunc(func() {
		cancel()
		select {
		case err := <-done:
			if err != nil {
				tb.Errorf("mesh %s ended with %v", strings.Join(args, " "), err)
			}
		case <-time.After(testTimeout):
			tb.Errorf("mesh %s does not end", strings.Join(args, " "))
		}
	})
	tb.Cleanup(stop)
	return out, stop
}

// pageURL waits until a program has printed the address of its page.
func pageURL(tb testing.TB, out *recorder) string {
	tb.Helper()
	return strings.TrimSuffix(out.await(tb, 0, "The page is at "), "/")
}

func TestReachable_UsesTheHostNameForAllAddresses(t *testing.T) {
	t.Parallel()
	for _, test := range []struct{ ip, want string }{
		{"127.0.0.1", "127.0.0.1:80"},
		{"::1", "[::1]:80"},
		{"0.0.0.0", "host:80"},
		{"::", "host:80"},
	} {
		if got := reachable(&net.TCPAddr{IP: net.ParseIP(test.ip), Port: 80}, "host"); got != test.want {
			t.Errorf("%s is reachable at %s, want %s", test.ip, got, test.want)
		}
	}
}

func TestRun_CanBeInterruptedDuringStartup(t *testing.T) {
	t.Parallel()
	for _, args := range [][]string{
		{"-listen", "127.0.0.1:0"},
		{"dashboard", "-listen", "127.0.0.1:0"},
		{"node", "-name", "service-a", "-listen", "127.0.0.1:0"},
		{"node", "-name", "service-a", "-endpoints", "127.0.0.1:1"},
	} {
		ctx, cancel := context.WithCancelCause(t.Context())
		cancel(errors.New("interrupted by the test"))
		if err := run(ctx, args, newRecorder()); err != nil {
			t.Errorf("mesh %s ended with %v", strings.Join(args, " "), err)
		}
	}
}
