package locker_test

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

func TestMain(m *testing.M) {
	flag.Parse()
	// More tests at once than there are processors: they wait far more than they compute. Those
	// that compute are not parallel. They run before the others, one after the other, so that
	// nobody's lease runs out for them.
	preset("test.parallel", fmt.Sprint(8*runtime.GOMAXPROCS(0)))
	preset("rapid.checks", "15") // make hammer has more
	goleak.VerifyTestMain(m)
}

// preset sets a flag that was not given on the command line.
func preset(name, value string) {
	given := false
	flag.Visit(func(f *flag.Flag) { given = given || f.Name == name })
	if given {
		return
	}
	if err := flag.Set(name, value); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

// patience is how long a test waits for anything before it fails: long, because the machine may be busy
// with other things. Only a test that fails waits that long.
const patience = 2 * time.Minute

// brief is the TTL of tests that wait for a lease to run out: as short as it can be if no lease is to be
// lost for no reason other than that the machine is busy.
const brief = 5 * time.Second

// steady is the TTL of tests that wait for renewals, of a lease that must not be lost.
const steady = 20 * time.Second

// prompt bounds what takes milliseconds, or a repeated request or two, where the fault that a test looks for
// takes half a minute or more.
const prompt = 15 * time.Second

// within returns the context of a test: it ends when the test does, or has taken too long.
func within(t testing.TB) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	t.Cleanup(cancel)
	return ctx
}

// bundle is what most tests need: an etcd of their own and a raw connection to it.
type bundle struct {
	server *embedtest.Server
	etcd   *clientv3.Client
}

// setup starts an etcd. It costs 20 ms of a processor, so that to share one would gain nothing. Several members
// wait longer for each other than those of embedtest do, so that a busy machine alone makes no election.
func setup(t testing.TB, opts ...embedtest.Option) bundle {
	calm := embedtest.WithConfig(func(c *embed.Config) {
		if strings.Contains(c.InitialCluster, ",") {
			c.ElectionMs = 600
		}
	})
	server := embedtest.Start(t, append([]embedtest.Option{calm}, opts...)...)
	return bundle{server, server.Client(t)}
}

// connect returns a raw connection, closed with the test.
func connect(t testing.TB, config clientv3.Config) *clientv3.Client {
	t.Helper()
	etcd, err := clientv3.New(config)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = etcd.Close() })
	return etcd
}

// client returns a Client over a connection of its own, closed with the test.
func (b bundle) client(t testing.TB, opts ...locker.Option) *locker.Client {
	return newClient(t, b.server.Client(t), opts...)
}

// newClient returns a Client over etcd, closed with the test. Unless its options say otherwise its leases are
// long: what is not about them is not to fail for them.
func newClient(t testing.TB, etcd *clientv3.Client, opts ...locker.Option) *locker.Client {
	c, err := locker.New(etcd, append([]locker.Option{locker.WithTTL(unhurried)}, opts...)...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	return c
}

// lock locks name or fails the test.
func lock(t testing.TB, c *locker.Client, name, value string, opts ...locker.LockOption) *locker.Lock {
	t.Helper()
	l, err := c.Lock(within(t), name, value, opts...)
	if err != nil {
		t.Fatal(err)
	}
	return l
}

// unlock unlocks l or fails the test.
func unlock(t testing.TB, l *locker.Lock) {
	t.Helper()
	if err := l.Unlock(within(t)); err != nil {
		t.Fatal(err)
	}
}

// newSession opens a session or fails the test.
func newSession(t testing.TB, c *locker.Client, opts ...locker.SessionOption) *locker.Session {
	t.Helper()
	s, err := c.NewSession(within(t), opts...)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// outcome is what a call in another goroutine returned.
type outcome struct {
	lock *locker.Lock
	err  error
}

// lockAsync locks name in another goroutine.
func lockAsync(ctx context.Context, c *locker.Client, name, value string, opts ...locker.LockOption) <-chan outcome {
	result := make(chan outcome, 1)
	go func() {
		l, err := c.Lock(ctx, name, value, opts...)
		result <- outcome{l, err}
	}()
	return result
}

// receive returns what comes from ch, or fails the test.
func receive[T any](t testing.TB, ch <-chan T) T {
	t.Helper()
	select {
	case v := <-ch:
		return v
	case <-time.After(patience):
		t.Fatal("nothing came")
		panic("unreachable")
	}
}

// eventually calls condition until it is true, or fails the test.
func eventually(t testing.TB, what string, condition func() bool) {
	t.Helper()
	tick := time.NewTicker(2 * time.Millisecond)
	defer tick.Stop()
	for deadline := time.Now().Add(patience); !condition(); <-tick.C {
		if time.Now().After(deadline) {
			t.Fatalf("it never came true: %s", what)
		}
	}
}

// keys returns the keys in etcd below prefix.
func (b bundle) keys(t testing.TB, prefix string) []string {
	t.Helper()
	resp, err := b.etcd.Get(within(t), prefix, clientv3.WithPrefix(), clientv3.WithKeysOnly())
	if err != nil {
		t.Fatal(err)
	}
	keys := make([]string, len(resp.Kvs))
	for i, kv := range resp.Kvs {
		keys[i] = string(kv.Key)
	}
	return keys
}

// queued waits until n entries are in the queue of name below the default prefix.
func (b bundle) queued(t testing.TB, name string, n int) {
	t.Helper()
	eventually(t, "the queue has the right length", func() bool {
		return len(b.keys(t, locker.DefaultPrefix+name+"/")) == n
	})
}
