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

// patience bounds every wait. It is only ever spent by what does not come.
const patience = 2 * time.Minute

// asProgram in the environment lets the test's binary be the program, so that tests can
// run it as processes.
const asProgram = "MESH_AS_PROGRAM"

func TestMain(m *testing.M) {
	if os.Getenv(asProgram) != "" {
		main()
		return
	}
	goleak.VerifyTestMain(m)
}

// transcript is what a program prints.
type transcript struct {
	mu    sync.Mutex // guards what follows
	text  bytes.Buffer
	grown chan struct{} // closed when there is more
}

func newTranscript() *transcript { return &transcript{grown: make(chan struct{})} }

func (s *transcript) Write(text []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	close(s.grown)
	s.grown = make(chan struct{})
	return s.text.Write(text)
}

func (s *transcript) now() (string, <-chan struct{}) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.text.String(), s.grown
}

func (s *transcript) String() string {
	text, _ := s.now()
	return text
}

func (s *transcript) len() int { return len(s.String()) }

// await waits until words are printed after the first n bytes, and returns the rest of
// their line.
func (s *transcript) await(tb testing.TB, n int, words string) string {
	tb.Helper()
	limit := time.After(patience)
	for {
		text, grown := s.now()
		if _, rest, ok := strings.Cut(text[n:], words); ok && strings.Contains(rest, "\n") {
			rest, _, _ := strings.Cut(rest, "\n")
			return rest
		}
		select {
		case <-grown:
		case <-limit:
			tb.Fatalf("it did not say %q, but\n%s", words, text)
		}
	}
}

// start runs the program in this process until the test ends, or stop is called. It must
// end without an error.
func start(tb testing.TB, args ...string) (out *transcript, stop func()) {
	tb.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	out = newTranscript()
	done := make(chan error, 1)
	go func() { done <- run(ctx, args, out) }()
	stop = sync.OnceFunc(func() {
		cancel()
		select {
		case err := <-done:
			if err != nil {
				tb.Errorf("mesh %s ended with %v", strings.Join(args, " "), err)
			}
		case <-time.After(patience):
			tb.Errorf("mesh %s does not end", strings.Join(args, " "))
		}
	})
	tb.Cleanup(stop)
	return out, stop
}

// address waits for a program to say where its page is.
func address(tb testing.TB, out *transcript) string {
	tb.Helper()
	return strings.TrimSuffix(out.await(tb, 0, "The page is at "), "/")
}

func TestAPortAtAllAddressesIsReachedByAName(t *testing.T) {
	t.Parallel()
	for _, test := range []struct{ ip, want string }{
		{"127.0.0.1", "127.0.0.1:80"},
		{"::1", "[::1]:80"},
		{"0.0.0.0", "host:80"},
		{"::", "host:80"},
	} {
		if got := reachable(&net.TCPAddr{IP: net.ParseIP(test.ip), Port: 80}, "host"); got != test.want {
			t.Errorf("%s is reached at %s, want %s", test.ip, got, test.want)
		}
	}
}

func TestItCanBeInterruptedBeforeItHasBegun(t *testing.T) {
	t.Parallel()
	for _, args := range [][]string{
		{"-listen", "127.0.0.1:0"},
		{"dashboard", "-listen", "127.0.0.1:0"},
		{"node", "-name", "service-a", "-listen", "127.0.0.1:0"},
		{"node", "-name", "service-a", "-endpoints", "127.0.0.1:1"},
	} {
		ctx, cancel := context.WithCancelCause(t.Context())
		cancel(errors.New("enough"))
		if err := run(ctx, args, newTranscript()); err != nil {
			t.Errorf("mesh %s ended with %v", strings.Join(args, " "), err)
		}
	}
}
