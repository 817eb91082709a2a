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

// patience is how long a test waits for anything before it fails.
const patience = 2 * time.Minute

// brief is the TTL of holders that are to expire, and not before that because the machine is busy.
const brief = 5 * time.Second

// modest is the TTL of holders that are not to expire, and whose renewals a test waits for.
const modest = 10 * time.Second

// within returns the context of a test: it ends when the test does, or has taken too long.
func within(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	t.Cleanup(cancel)
	return ctx
}

// bundle is what a test needs: a cluster, and on it a prefix of its own.
type bundle struct {
	*cluster
	prefix string
	etcd   *clientv3.Client // root's
}

var prefixes atomic.Int64

// newBundle returns a bundle. When the test has ended, nothing may be left below its prefix.
func newBundle(t *testing.T, c *cluster) bundle {
	t.Helper()
	b := bundle{cluster: c, prefix: fmt.Sprintf("locker/%d/", prefixes.Add(1))}
	b.etcd = connect(t, c.config(root))
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), patience)
		defer cancel()
		etcd, err := clientv3.New(c.config(root)) // whatever became of the other
		if err != nil {
			t.Error(err)
			return
		}
		defer etcd.Close()
		if err := awaitCount(ctx, etcd, b.prefix, 0); err != nil {
			t.Errorf("the test has left something below %s: %v", b.prefix, err)
		}
	})
	return b
}

// awaitCount waits until n keys begin with prefix.
func awaitCount(ctx context.Context, etcd *clientv3.Client, prefix string, n int64) error {
	for {
		resp, err := etcd.Get(ctx, prefix, clientv3.WithPrefix(), clientv3.WithCountOnly())
		if err != nil {
			return err
		}
		if resp.Count == n {
			return nil
		}
		select {
		case <-time.After(5 * time.Millisecond):
		case <-ctx.Done():
			return fmt.Errorf("%d keys, want %d", resp.Count, n)
		}
	}
}

// queued waits until n entries are in the queue of name.
func (b bundle) queued(t *testing.T, name string, n int64) {
	t.Helper()
	if err := awaitCount(within(t), b.etcd, b.prefix+name+"/", n); err != nil {
		t.Fatalf("the queue of %s: %v", name, err)
	}
}

// remove deletes a lock's entry, as an operator might.
func (b bundle) remove(t *testing.T, l *locker.Lock) {
	t.Helper()
	if resp, err := b.etcd.Delete(within(t), l.Key()); err != nil || resp.Deleted != 1 {
		t.Fatalf("delete the entry: %v, %v", resp, err)
	}
}

// connect returns a connection, closed with the test.
func connect(t *testing.T, config clientv3.Config) *clientv3.Client {
	t.Helper()
	config.DialTimeout = patience
	etcd, err := clientv3.New(config)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = etcd.Close() })
	return etcd
}

// client returns a Client of service over a connection of its own. It is closed with the test, and then
// etcd has to confirm that nothing is left.
func (b bundle) client(t *testing.T, opts ...locker.Option) *locker.Client {
	t.Helper()
	c := b.over(t, connect(t, b.config(service)), opts...)
	t.Cleanup(func() {
		if err := c.Close(); err != nil {
			t.Error(err)
		}
	})
	return c
}

// over returns a Client over etcd, closed with the test.
func (b bundle) over(t *testing.T, etcd *clientv3.Client, opts ...locker.Option) *locker.Client {
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

// outcome is what Lock returned, and when.
type outcome struct {
	lock *locker.Lock
	err  error
	at   time.Time
}

// lockAsync locks in a goroutine, which ends with ctx at the latest.
func lockAsync(ctx context.Context, c *locker.Client, name, value string, opts ...locker.LockOption) <-chan outcome {
	result := make(chan outcome, 1)
	go func() {
		l, err := c.Lock(ctx, name, value, opts...)
		result <- outcome{l, err, time.Now()}
	}()
	return result
}

// served waits for a lock that lockAsync takes.
func served(t *testing.T, result <-chan outcome) *locker.Lock {
	t.Helper()
	o := receive(t, result)
	if o.err != nil {
		t.Fatal(o.err)
	}
	return o.lock
}

// receive waits for something from a channel; nothing comes from one that is closed.
func receive[T any](t *testing.T, from <-chan T) (value T) {
	t.Helper()
	select {
	case value = <-from:
	case <-within(t).Done():
		t.Fatal("nothing came")
	}
	return value
}

// eventually waits until a condition is true.
func eventually(t *testing.T, what string, condition func() bool) {
	t.Helper()
	ctx, tick := within(t), time.NewTicker(5*time.Millisecond)
	defer tick.Stop()
	for !condition() {
		select {
		case <-tick.C:
		case <-ctx.Done():
			t.Fatalf("it never came true: %s", what)
		}
	}
}

// want fails the test if err does not match.
func want(t *testing.T, err, target error) {
	t.Helper()
	if !errors.Is(err, target) {
		t.Errorf("%v, want %v", err, target)
	}
}
