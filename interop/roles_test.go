package interop

import (
	"context"
	"slices"
	"strings"
	"testing"
	"time"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/jagregory/locker/v2"
)

// Which permissions suffice. That those of SECURITY.md do for everything is shown by all the tests that
// run with authentication.

// guest returns a Client of a new user with these permissions and no other.
func (b bundle) guest(t *testing.T, name string, permissions ...permission) *locker.Client {
	t.Helper()
	if err := addUser(within(t), b.etcd, name, permissions...); err != nil {
		t.Fatal(err)
	}
	return b.over(t, connect(t, b.config(name)))
}

func TestRole_ToReadOneQueueAllowsGetAndWatch(t *testing.T) {
	alone(t, func(t *testing.T, b bundle) {
		ctx := within(t)
		reader := b.guest(t, "reader", readOnly(b.prefix+"a/"), readOnly(b.prefix+"/"))
		watched := follow(t, reader, "a", false)
		watched.sees(t, "a", nil)
		l := lock(t, b.client(t), "a", "")
		watched.sees(t, "a", l)
		if holder, err := reader.Get(ctx, "a"); err != nil || holder.Token != l.Token() {
			t.Errorf("%+v, %v", holder, err)
		}
		_, err := reader.Get(ctx, "b")
		wantDenied(t, "Get of another name", err)
	}, authentication)
}

// wantDenied fails the test unless err is etcd's refusal and says so.
func wantDenied(t *testing.T, what string, err error) {
	t.Helper()
	want(t, err, rpctypes.ErrPermissionDenied)
	if err != nil && !strings.Contains(err.Error(), "permission denied") {
		t.Errorf("%s: %q does not say what was denied", what, err)
	}
}

func TestRole_ForOneNameNeedsItsQueueAndTheRecords(t *testing.T) {
	alone(t, func(t *testing.T, b bundle) {
		ctx, queue, records := within(t), b.prefix+"a/", b.prefix+"/"
		c := b.guest(t, "one-name", readWrite(queue), readWrite(records))
		watched := follow(t, c, "a", false)
		watched.sees(t, "a", nil)
		holder := lock(t, b.client(t), "a", "theirs")
		watched.sees(t, "a", holder)
		waiter := lockAsync(ctx, c, "a", "ours")
		b.queued(t, "a", 2)
		unlock(t, holder)
		l := served(t, waiter)
		watched.sees(t, "a", l)
		if err := l.SetValue(ctx, "changed"); err != nil {
			t.Error(err)
		}
		watched.sees(t, "a", l)
		if owners, err := c.Owners(ctx); err != nil || len(owners) != 2 {
			t.Errorf("%v, %v", owners, err)
		}
		_, err := c.Lock(ctx, "b", "")
		wantDenied(t, "Lock of another name", err)
		_, err = c.List(ctx, "")
		wantDenied(t, "List", err)
		_, err = c.NewCache(ctx, "a")
		wantDenied(t, "NewCache", err)
		if err := l.Err(); err != nil {
			t.Error(err)
		}
		unlock(t, l)
		watched.sees(t, "a", nil)
	}, authentication)
}

func TestRole_EveryPartOfTheSmallestIsNeeded(t *testing.T) {
	alone(t, func(t *testing.T, b bundle) {
		ctx, queue, records := within(t), b.prefix+"a/", b.prefix+"/"
		writeOnly := func(prefix string) permission {
			return permission{prefix, clientv3.PermissionType(clientv3.PermWrite)}
		}
		for name, permissions := range map[string][]permission{
			"no-queue":         {readWrite(records)},
			"queue-unwritable": {readOnly(queue), readWrite(records)},
			"queue-unreadable": {writeOnly(queue), readWrite(records)},
			"no-records":       {readWrite(queue)},
			"rec-unwritable":   {readWrite(queue), readOnly(records)},
			"rec-unreadable":   {readWrite(queue), writeOnly(records)},
		} {
			c := b.guest(t, name, permissions...)
			_, err := c.Lock(ctx, "a", "")
			wantDenied(t, name+": Lock", err)
			_, err = c.TryLock(ctx, "a", "")
			wantDenied(t, name+": TryLock", err)
			if err := c.Close(); err != nil {
				t.Errorf("%s: %v", name, err)
			}
			b.queued(t, "a", 0)
		}
	}, authentication)
}

func TestRole_ToReadAllowsReadsAndWatchesAndNothingElse(t *testing.T) {
	alone(t, func(t *testing.T, b bundle) {
		ctx, c := within(t), b.client(t)
		reader := b.guest(t, "reader", readOnly("locker/"))
		l := lock(t, c, "a", "v")
		if holder, err := reader.Get(ctx, "a"); err != nil || holder.Token != l.Token() {
			t.Errorf("%+v, %v", holder, err)
		}
		if owners, err := reader.Owners(ctx); err != nil || len(owners) != 1 {
			t.Errorf("%v, %v", owners, err)
		}
		cache, err := reader.NewCache(ctx, "")
		if err != nil {
			t.Fatal(err)
		}
		if holders, err := reader.List(ctx, ""); err != nil || len(holders) != 1 || !slices.Equal(cache.List(), holders) {
			t.Errorf("%+v, cached %+v, %v", holders, cache.List(), err)
		}
		one, all := follow(t, reader, "a", false), follow(t, reader, "", true)
		one.sees(t, "a", l)
		all.sees(t, "a", l)
		for what, attempt := range map[string]func() error{
			"Lock":       func() error { _, err := reader.Lock(ctx, "b", ""); return err },
			"TryLock":    func() error { _, err := reader.TryLock(ctx, "b", ""); return err },
			"NewSession": func() error { _, err := reader.NewSession(ctx); return err },
			"Do": func() error {
				return reader.Do(ctx, "b", "", func(context.Context, *locker.Lock) error { return nil })
			},
		} {
			wantDenied(t, what, attempt())
		}
		unlock(t, l)
		one.sees(t, "a", nil)
		all.sees(t, "a", nil)
		eventually(t, "the cache sees the release", func() bool { return len(cache.List()) == 0 })
		for range 3 {
			now := time.Now()
			eventually(t, "the cache is known to be current", func() bool { return cache.Age() < time.Since(now) })
		}
	}, authentication)
}

func TestRole_ToReadSomeNamesAllowsReadsAndWatchesOfThose(t *testing.T) {
	alone(t, func(t *testing.T, b bundle) {
		ctx, c := within(t), b.client(t)
		reader := b.guest(t, "reader", readOnly(b.prefix+"app-"))
		l := lock(t, c, "app-1", "v")
		lock(t, c, "other", "hidden")
		cache, err := reader.NewCache(ctx, "app-")
		if err != nil {
			t.Fatal(err)
		}
		if holders, err := reader.List(ctx, "app-"); err != nil || len(holders) != 1 || !slices.Equal(cache.List(), holders) {
			t.Errorf("%+v, cached %+v, %v", holders, cache.List(), err)
		}
		if holder, err := reader.Get(ctx, "app-1"); err != nil || holder.Token != l.Token() {
			t.Errorf("%+v, %v", holder, err)
		}
		one, some := follow(t, reader, "app-1", false), follow(t, reader, "app-", true)
		one.sees(t, "app-1", l)
		some.sees(t, "app-1", l)
		unlock(t, l)
		one.sees(t, "app-1", nil)
		some.sees(t, "app-1", nil)
		eventually(t, "the cache sees the release", func() bool { return len(cache.List()) == 0 })
		for range 2 { // also with nothing new to see
			eventually(t, "the cache is stale", func() bool { return cache.Age() > locker.DefaultTTL/100 })
			eventually(t, "the cache is current", func() bool { return cache.Age() < locker.DefaultTTL/100 })
		}
		for what, attempt := range map[string]func() error{
			"Get of another name": func() error { _, err := reader.Get(ctx, "other"); return err },
			"List of all":         func() error { _, err := reader.List(ctx, ""); return err },
			"NewCache of all":     func() error { _, err := reader.NewCache(ctx, ""); return err },
			"Owners":              func() error { _, err := reader.Owners(ctx); return err },
			"Lock":                func() error { _, err := reader.Lock(ctx, "app-1", ""); return err },
		} {
			wantDenied(t, what, attempt())
		}
	}, authentication)
}
