// Package locktest has what the tests of the library share.
package locktest

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"runtime"
	"testing"
	"time"

	"go.uber.org/goleak"
)

// Main runs the tests of a package, and fails if they leave goroutines behind.
func Main(m *testing.M) {
	flag.Parse()
	// More tests at once than there are processors: they wait far more than they compute. Those
	// that compute are not parallel: they run before the others of their package, one after the
	// other, so that no lease runs out because of them.
	preset("test.parallel", fmt.Sprint(6*runtime.GOMAXPROCS(0)))
	preset("rapid.checks", "15") // make hammer has more
	goleak.VerifyTestMain(m)
}

// preset sets a flag that exists and was not given on the command line.
func preset(name, value string) {
	given := flag.Lookup(name) == nil
	flag.Visit(func(f *flag.Flag) { given = given || f.Name == name })
	if given {
		return
	}
	if err := flag.Set(name, value); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

// Timeout is how long a test waits for anything before it fails: long, because the machine may be busy
// with other things. Only a test that fails waits that long.
const Timeout = 2 * time.Minute

// Brief is the TTL of tests that wait for a lease to run out: as short as it can be without leases that are
// lost only because the machine is busy.
const Brief = 5 * time.Second

// Steady is the TTL of tests that wait for renewals of a lease that must not be lost.
const Steady = 20 * time.Second

// Unhurried is a TTL with which no lease is lost by itself.
const Unhurried = time.Minute

// Prompt bounds what takes milliseconds, or a hedge or two, where the fault that a test looks for takes half
// a minute or more.
const Prompt = 15 * time.Second

// Within returns the context of a test: it ends when the test does, or has taken too long.
func Within(t testing.TB) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), Timeout)
	t.Cleanup(cancel)
	return ctx
}

// Async makes a call in another goroutine, and returns where its error arrives.
func Async(call func() error) <-chan error {
	result := make(chan error, 1)
	go func() { result <- call() }()
	return result
}

// Receive returns what comes from ch, or fails the test.
func Receive[T any](t testing.TB, ch <-chan T) T {
	t.Helper()
	select {
	case v := <-ch:
		return v
	case <-time.After(Timeout):
		t.Fatal("nothing came")
		panic("unreachable")
	}
}

// Eventually calls condition until it is true, or fails the test.
func Eventually(t testing.TB, what string, condition func() bool) {
	t.Helper()
	wait := 2 * time.Millisecond // longer each time, so that what takes long costs little
	for deadline := time.Now().Add(Timeout); !condition(); {
		if time.Now().After(deadline) {
			t.Fatalf("it never came true: %s", what)
		}
		time.Sleep(wait)
		wait = min(wait*5/4, 25*time.Millisecond)
	}
}

// Want fails the test unless err is the target.
func Want(t testing.TB, err, target error) {
	t.Helper()
	if !errors.Is(err, target) {
		t.Errorf("%v, want %v", err, target)
	}
}
