package interop

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/jagregory/locker/v2"
)

// each runs a test on every release of etcd there is.
func each(t *testing.T, test func(t *testing.T, c cluster, l *locker.Client)) {
	t.Parallel()
	for _, r := range releases() {
		t.Run(r.name, func(t *testing.T) {
			t.Parallel()
			c := start(t, r)
			client, err := locker.New(c.connect(t))
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() {
				if err := client.Close(); err != nil {
					t.Error(err)
				}
			})
			test(t, c, client)
		})
	}
}

func (c cluster) ctl(t *testing.T, args ...string) *program {
	return run(t, c.etcdctl, append([]string{"--endpoints=" + c.endpoint}, args...)...)
}

// entries waits until the queue of a name has n entries.
func entries(t *testing.T, c cluster, name string, n int64) {
	t.Helper()
	etcd, ctx := c.connect(t), within(t)
	for {
		resp, err := etcd.Get(ctx, "locker/"+name+"/", clientv3.WithPrefix(), clientv3.WithCountOnly())
		if err != nil {
			t.Fatalf("waiting for %d entries of %s: %v", n, name, err)
		}
		if resp.Count == n {
			return
		}
	}
}

func TestEtcdctlLockWaitsForLocker(t *testing.T) {
	each(t, func(t *testing.T, c cluster, client *locker.Client) {
		ctx := within(t)
		l, err := client.Lock(ctx, "a", "ours")
		if err != nil {
			t.Fatal(err)
		}
		theirs := c.ctl(t, "lock", "locker/a")
		entries(t, c, "a", 2)
		if holder, err := client.Get(ctx, "a"); err != nil || holder.Token != l.Token() {
			t.Fatalf("etcdctl did not wait: %+v, %v", holder, err)
		}
		if err := l.Unlock(ctx); err != nil {
			t.Fatal(err)
		}
		key := theirs.line(t) // it prints its key once it holds
		if !strings.HasPrefix(key, "locker/a/") || key == l.Key() {
			t.Fatalf("etcdctl printed %q", key)
		}
		if _, err := client.TryLock(ctx, "a", "ours again"); !errors.Is(err, locker.ErrLocked) {
			t.Fatalf("while etcdctl holds, TryLock returned %v", err)
		}
		theirs.interrupt(t)
	})
}

func TestLockerWaitsForEtcdctlLock(t *testing.T) {
	each(t, func(t *testing.T, c cluster, client *locker.Client) {
		ctx := within(t)
		theirs := c.ctl(t, "lock", "locker/a")
		key := theirs.line(t)
		type result struct {
			lock *locker.Lock
			err  error
		}
		locked := make(chan result, 1)
		go func() {
			l, err := client.Lock(ctx, "a", "ours")
			locked <- result{l, err}
		}()
		entries(t, c, "a", 2)
		select {
		case r := <-locked:
			t.Fatalf("Locker did not wait: %v", r.err)
		default:
		}
		holder, err := client.Get(ctx, "a")
		if err != nil || fmt.Sprintf("locker/a/%x", holder.Lease) != key {
			t.Fatalf("Get found %+v, %v; etcdctl holds %s", holder, err, key)
		}
		theirs.interrupt(t)
		r := <-locked
		if r.err != nil {
			t.Fatal(r.err)
		}
		if r.lock.Token() <= holder.Token {
			t.Errorf("token %d after %d", r.lock.Token(), holder.Token)
		}
	})
}

func TestEtcdctlElectFollowsALockerHolder(t *testing.T) {
	each(t, func(t *testing.T, c cluster, client *locker.Client) {
		ctx := within(t)
		first, err := client.Lock(ctx, "www.example.com", "10.1.1.1")
		if err != nil {
			t.Fatal(err)
		}
		observer := c.ctl(t, "elect", "-l", "locker/www.example.com")
		expect := func(l *locker.Lock, value string) {
			t.Helper()
			if key := observer.line(t); key != l.Key() {
				t.Errorf("etcdctl shows the key %q, want %q", key, l.Key())
			}
			if got := observer.line(t); got != value {
				t.Errorf("etcdctl shows the value %q, want %q", got, value)
			}
		}
		expect(first, "10.1.1.1")
		if err := first.SetValue(ctx, "10.1.1.2"); err != nil {
			t.Fatal(err)
		}
		expect(first, "10.1.1.2")
		if err := first.Unlock(ctx); err != nil {
			t.Fatal(err)
		}
		second, err := client.Lock(ctx, "www.example.com", "10.1.1.3")
		if err != nil {
			t.Fatal(err)
		}
		expect(second, "10.1.1.3")
		observer.interrupt(t)
	})
}

func TestLockerAndEtcdctlElectExcludeEachOther(t *testing.T) {
	each(t, func(t *testing.T, c cluster, client *locker.Client) {
		ctx := within(t)
		candidate := c.ctl(t, "elect", "locker/leader", "theirs")
		candidate.line(t)
		if got := candidate.line(t); got != "theirs" {
			t.Fatalf("etcdctl shows the value %q", got)
		}
		_, err := client.TryLock(ctx, "leader", "ours")
		if !errors.Is(err, locker.ErrLocked) {
			t.Fatalf("while etcdctl leads, TryLock returned %v", err)
		}
		var locked *locker.LockedError
		if !errors.As(err, &locked) || locked.Holder.Value != "theirs" {
			t.Errorf("the error has the holder %+v", locked)
		}
		candidate.interrupt(t)
		if err := client.Do(ctx, "leader", "ours", func(context.Context, *locker.Lock) error { return nil }); err != nil {
			t.Error(err)
		}
	})
}
