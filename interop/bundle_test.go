package interop

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/jagregory/locker/v2"
)

// testTimeout bounds every wait of a test.
const testTimeout = 2 * time.Minute

// shortTTL is the TTL of holds that are to expire, but not early because the machine is
// busy.
const shortTTL = 5 * time.Second

// mediumTTL is the TTL of holds that must not expire and whose renewals a test waits for.
const mediumTTL = 10 * time.Second

// testContext returns a context that ends with the test, or after testTimeout.
func testContext(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), testTimeout)
	t.Cleanup(cancel)
	return ctx
}

// bundle is what a test needs: a cluster and its own prefix on it.
type bundle struct {
	*cluster
	prefix string
	etcd   *clientv3.Client // root's
}

var prefixes atomic.Int64

// newBundle returns a bundle. It fails the test if keys with the prefix are left at its
// end.
func newBundle(t *testing.T, c *cluster) bundle {
	t.Helper()
	b := bundle{cluster: c, prefix: fmt.Sprintf("locker/%d/", prefixes.Add(1))}
	b.etcd = connect(t, c.config(root))
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), testTimeout)
		defer cancel()
		etcd, err := clientv3.New(c.config(root)) // b.etcd may no longer work
		if err != nil {
			t.Error(err)
			return
		}
		defer etcd.Close()
		if err := awaitCount(ctx, etcd, b.prefix, 0); err != nil {
			t.Errorf("the test left keys with the prefix %s: %v", b.prefix, err)
		}
	})
	return b
}

// How often a test looks whether something has come true: less often the longer it takes.
const (
	shortestPoll = 5 * time.Millisecond
	longestPoll  = 40 * time.Millisecond
)

// awaitCount waits until exactly n keys begin with prefix.
func awaitCount(ctx context.Context, etcd *clientv3.Client, prefix string, n int64) error {
	for wait := shortestPoll; ; wait = min(wait*5/4, longestPoll) {
		resp, err := etcd.Get(ctx, prefix, clientv3.WithPrefix(), clientv3.WithCountOnly())
		if err != nil {
			return err
		}
		if resp.Count == n {
			return nil
		}
		select {
		case <-time.After(wait):
		case <-ctx.Done():
			return fmt.Errorf("found %d keys, want %d", resp.Count, n)
		}
	}
}

// awaitEntries waits until the queue of name has n entries.
func (b bundle) awaitEntries(t *testing.T, name string, n int64) {
	t.Helper()
	if err := awaitCount(testContext(t), b.etcd, b.prefix+name+"/", n); err != nil {
		t.Fatalf("queue of %s: %v", name, err)
	}
}

// deleteEntry deletes the entry of a lock, as an operator might.
func (b bundle) deleteEntry(t *testing.T, l *locker.Lock) {
	t.Helper()
	if resp, err := b.etcd.Delete(testContext(t), l.Key()); err != nil || resp.Deleted != 1 {
		t.Fatalf("delete the entry: %v, %v", resp, err)
	}
}

// connect returns a connection that is closed at the end of the test.
func connect(t *testing.T, config clientv3.Config) *clientv3.Client {
	t.Helper()
	config.DialTimeout = testTimeout
	etcd, err := clientv3.New(config)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = etcd.Close() })
	return etcd
}

// client returns a Client of the user service over its own connection. At the end of the
// test, its Close must succeed.
func (b bundle) client(t *testing.T, opts ...locker.Option) *locker.Client {
	t.Helper()
	c := b.clientOver(t, connect(t, b.config(service)), opts...)
	t.Cleanup(func() {
		if err := c.Close(); err != nil {
			t.Error(err)
		}
	})
	return c
}

// clientOver returns a Client over etcd. It is closed at the end of the test.
func (b bundle) clientOver(t *testing.T, etcd *clientv3.Client, opts ...locker.Option) *locker.Client {
	t.Helper()
	c, err := locker.New(etcd, append([]locker.Option{locker.WithPrefix(b.prefix)}, opts...)...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	return c
}

func lock(t *testing.T, c *locker.Client, name, value string, opts ...locker.LockOption) *locker.Lock {
	t.Helper()
	l, err := c.Lock(testContext(t), name, value, opts...)
	if err != nil {
		t.Fatal(err)
	}
	return l
}

func unlock(t *testing.T, l *locker.Lock) {
	t.Helper()
	if err := l.Unlock(testContext(t)); err != nil {
		t.Fatal(err)
	}
}

// outcome is what Lock returned and when.
type outcome struct {
	lock *locker.Lock
	err  error
	at   time.Time
}

// lockAsync calls Lock in a goroutine.
func lockAsync(ctx context.Context, c *locker.Client, name, value string, opts ...locker.LockOption) <-chan outcome {
	result := make(chan outcome, 1)
	go func() {
		l, err := c.Lock(ctx, name, value, opts...)
		result <- outcome{l, err, time.Now()}
	}()
	return result
}

// awaitLock waits until the call of lockAsync returns and fails the test if it failed.
func awaitLock(t *testing.T, result <-chan outcome) *locker.Lock {
	t.Helper()
	o := receive(t, result)
	if o.err != nil {
		t.Fatal(o.err)
	}
	return o.lock
}

// receive waits for a value from a channel. It returns the zero value if the channel is
// closed.
func receive[T any](t *testing.T, from <-chan T) (value T) {
	t.Helper()
	select {
	case value = <-from:
	case <-testContext(t).Done():
		t.Fatal("timed out waiting for a value from a channel")
	}
	return value
}

// eventually waits until a condition is true. what completes the sentence "timed out
// waiting until".
func eventually(t *testing.T, what string, condition func() bool) {
	t.Helper()
	ctx := testContext(t)
	for wait := shortestPoll; !condition(); wait = min(wait*5/4, longestPoll) {
		select {
		case <-time.After(wait):
		case <-ctx.Done():
			t.Fatalf("timed out waiting until %s", what)
		}
	}
}

// wantError fails the test unless err matches target.
func wantError(t *testing.T, err, target error) {
	t.Helper()
	if !errors.Is(err, target) {
		t.Errorf("got error %v, want %v", err, target)
	}
}
