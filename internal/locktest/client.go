package locktest

import (
	"context"
	"errors"
	"testing"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/client/v3/concurrency"

	"github.com/jagregory/locker/v2"
)

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

// NewClient returns a Client over etcd, closed with the test. Unless its options say otherwise its leases are
// long, so that only the tests of leases depend on renewals.
func NewClient(t testing.TB, etcd *clientv3.Client, opts ...locker.Option) *locker.Client {
	c, err := locker.New(etcd, append([]locker.Option{locker.WithTTL(Unhurried)}, opts...)...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	return c
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

// ConcurrencySession returns a session of etcd's concurrency package, with a TTL in seconds, closed with the test.
func ConcurrencySession(t testing.TB, etcd *clientv3.Client, ttl int) *concurrency.Session {
	t.Helper()
	s, err := concurrency.NewSession(etcd, concurrency.WithTTL(ttl))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close() })
	return s
}

// NewCache returns a Cache, closed with the test.
func NewCache(t testing.TB, c *locker.Client, prefix string) *locker.Cache {
	t.Helper()
	k, err := c.NewCache(Within(t), prefix)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(k.Close)
	return k
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

// TryLockAsync tries to lock name in another goroutine.
func TryLockAsync(ctx context.Context, c *locker.Client, name, value string, opts ...locker.LockOption) <-chan Outcome {
	result := make(chan Outcome, 1)
	go func() {
		l, err := c.TryLock(ctx, name, value, opts...)
		result <- Outcome{l, err}
	}()
	return result
}

// LockOf returns the lock that a call has taken, or fails the test.
func LockOf(t testing.TB, result <-chan Outcome) *locker.Lock {
	t.Helper()
	got := Receive(t, result)
	if got.Err != nil {
		t.Fatal(got.Err)
	}
	return got.Lock
}

// Get returns the holder of name or fails the test.
func Get(t testing.TB, c *locker.Client, name string) locker.Holder {
	t.Helper()
	holder, err := c.Get(Within(t), name)
	if err != nil {
		t.Fatal(err)
	}
	return holder
}

// List returns the holders below prefix, from etcd, or fails the test.
func List(t testing.TB, c *locker.Client, prefix string) []locker.Holder {
	t.Helper()
	holders, err := c.List(Within(t), prefix)
	if err != nil {
		t.Fatal(err)
	}
	return holders
}

// SetValue changes the value of l or fails the test.
func SetValue(t testing.TB, l *locker.Lock, value string) {
	t.Helper()
	if err := l.SetValue(Within(t), value); err != nil {
		t.Fatal(err)
	}
}

// PutKey puts until etcd, which may be busy, has confirmed it.
func PutKey(t testing.TB, etcd *clientv3.Client, key, value string) {
	t.Helper()
	Eventually(t, "the key is put", func() bool {
		_, err := etcd.Put(Within(t), key, value)
		if err != nil && !errors.Is(err, rpctypes.ErrTimeout) {
			t.Fatal(err)
		}
		return err == nil
	})
}
