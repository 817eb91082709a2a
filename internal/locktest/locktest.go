// Package locktest has what the tests of the library share.
package locktest

import (
	"context"
	"flag"
	"fmt"
	"os"
	"runtime"
	"strings"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/server/v3/embed"
	"go.uber.org/goleak"

	"github.com/jagregory/locker/v2"
	"github.com/jagregory/locker/v2/embedtest"
)

// Main runs the tests of a package, and fails if they leave goroutines behind.
func Main(m *testing.M) {
	flag.Parse()
	// More tests at once than there are processors: they wait far more than they compute. Those
	// that compute are not parallel: they run before the others of their package, one after the
	// other, so that no lease runs out there for their sake.
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

// Patience is how long a test waits for anything before it fails: long, because the machine may be busy
// with other things. Only a test that fails waits that long.
const Patience = 2 * time.Minute

// Brief is the TTL of tests that wait for a lease to run out: as short as it can be if no lease is to be
// lost for no reason other than that the machine is busy.
const Brief = 5 * time.Second

// Steady is the TTL of tests that wait for renewals, of a lease that must not be lost.
const Steady = 20 * time.Second

// Unhurried is a TTL with which no lease is lost by itself.
const Unhurried = time.Minute

// Prompt bounds what takes milliseconds, or a repeated request or two, where the fault that a test looks for
// takes half a minute or more.
const Prompt = 15 * time.Second

// Within returns the context of a test: it ends when the test does, or has taken too long.
func Within(t testing.TB) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), Patience)
	t.Cleanup(cancel)
	return ctx
}

// Bundle is what most tests need: an etcd of their own and a raw connection to it.
type Bundle struct {
	Server *embedtest.Server
	Etcd   *clientv3.Client
}

// Setup starts an etcd. It costs 20 ms of a processor, so that to share one would gain nothing. Several members
// wait longer for each other than those of embedtest do, so that a busy machine alone makes no election.
func Setup(t testing.TB, opts ...embedtest.Option) Bundle {
	calm := embedtest.WithConfig(func(c *embed.Config) {
		if strings.Contains(c.InitialCluster, ",") {
			c.ElectionMs = 600
		}
	})
	server := embedtest.Start(t, append([]embedtest.Option{calm}, opts...)...)
	return Bundle{server, server.Client(t)}
}

// Connect returns a raw connection, closed with the test.
func Connect(t testing.TB, config clientv3.Config) *clientv3.Client {
	t.Helper()
	etcd, err := clientv3.New(config)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = etcd.Close() })
	return etcd
}

// Client returns a Client over a connection of its own, closed with the test.
func (b Bundle) Client(t testing.TB, opts ...locker.Option) *locker.Client {
	return NewClient(t, b.Server.Client(t), opts...)
}

// NewClient returns a Client over etcd, closed with the test. Unless its options say otherwise its leases are
// long: what is not about them is not to fail for them.
func NewClient(t testing.TB, etcd *clientv3.Client, opts ...locker.Option) *locker.Client {
	c, err := locker.New(etcd, append([]locker.Option{locker.WithTTL(Unhurried)}, opts...)...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	return c
}

// Lock locks name or fails the test.
func Lock(t testing.TB, c *locker.Client, name, value string, opts ...locker.LockOption) *locker.Lock {
	t.Helper()
	l, err := c.Lock(Within(t), name, value, opts...)
	if err != nil {
		t.Fatal(err)
	}
	return l
}

// Unlock unlocks l or fails the test.
func Unlock(t testing.TB, l *locker.Lock) {
	t.Helper()
	if err := l.Unlock(Within(t)); err != nil {
		t.Fatal(err)
	}
}

// NewSession opens a session or fails the test.
func NewSession(t testing.TB, c *locker.Client, opts ...locker.SessionOption) *locker.Session {
	t.Helper()
	s, err := c.NewSession(Within(t), opts...)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// Outcome is what a call in another goroutine returned.
type Outcome struct {
	Lock *locker.Lock
	Err  error
}

// LockAsync locks name in another goroutine.
func LockAsync(ctx context.Context, c *locker.Client, name, value string, opts ...locker.LockOption) <-chan Outcome {
	result := make(chan Outcome, 1)
	go func() {
		l, err := c.Lock(ctx, name, value, opts...)
		result <- Outcome{l, err}
	}()
	return result
}

// Receive returns what comes from ch, or fails the test.
func Receive[T any](t testing.TB, ch <-chan T) T {
	t.Helper()
	select {
	case v := <-ch:
		return v
	case <-time.After(Patience):
		t.Fatal("nothing came")
		panic("unreachable")
	}
}

// Eventually calls condition until it is true, or fails the test.
func Eventually(t testing.TB, what string, condition func() bool) {
	t.Helper()
	tick := time.NewTicker(2 * time.Millisecond)
	defer tick.Stop()
	for deadline := time.Now().Add(Patience); !condition(); <-tick.C {
		if time.Now().After(deadline) {
			t.Fatalf("it never came true: %s", what)
		}
	}
}

// Keys returns the keys in etcd below prefix.
func (b Bundle) Keys(t testing.TB, prefix string) []string {
	t.Helper()
	resp, err := b.Etcd.Get(Within(t), prefix, clientv3.WithPrefix(), clientv3.WithKeysOnly())
	if err != nil {
		t.Fatal(err)
	}
	keys := make([]string, len(resp.Kvs))
	for i, kv := range resp.Kvs {
		keys[i] = string(kv.Key)
	}
	return keys
}

// Queued waits until n entries are in the queue of name below the default prefix.
func (b Bundle) Queued(t testing.TB, name string, n int) {
	t.Helper()
	Eventually(t, "the queue has the right length", func() bool {
		return len(b.Keys(t, locker.DefaultPrefix+name+"/")) == n
	})
}
