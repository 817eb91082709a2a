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

// The tests of this file check which permissions suffice for part of the API. That the
// role of SECURITY.md suffices for all of it follows from the other tests, which run with
// authentication as well.

// clientOf returns a Client of a new user that has only the given permissions.
func (b bundle) clientOf(t *testing.T, name string, permissions ...permission) *locker.Client {
	t.Helper()
	if err := addUser(testContext(t), b.etcd, name, permissions...); err != nil {
		t.Fatal(err)
	}
	return b.clientOver(t, connect(t, b.config(name)))
}

func TestRole_ToReadOneQueueAllowsGetAndWatch(t *testing.T) {
	onOwnCluster(t, func(t *testing.T, b bundle) {
		ctx := testContext(t)
		reader := b.clientOf(t, "reader", readOnly(b.prefix+"a/"), readOnly(b.prefix+"/"))
		watched := startWatch(t, reader, "a", false)
		watched.expect(t, "a", nil)
		l := lock(t, b.client(t), "a", "")
		watched.expect(t, "a", l)
		if holder, err := reader.Get(ctx, "a"); err != nil || holder.Token != l.Token() {
			t.Errorf("Get returned %+v, %v", holder, err)
		}
		_, err := reader.Get(ctx, "b")
		wantDenied(t, "Get of another name", err)
	}, authentication)
}

// wantDenied fails the test unless err is etcd's ErrPermissionDenied and its text says so.
func wantDenied(t *testing.T, what string, err error) {
	t.Helper()
	wantError(t, err, rpctypes.ErrPermissionDenied)
	if err != nil && !strings.Contains(err.Error(), "permission denied") {
		t.Errorf("%s: the error %q does not contain \"permission denied\"", what, err)
	}
}

func TestRole_ForOneNameNeedsItsQueueAndTheRecords(t *testing.T) {
	onOwnCluster(t, func(t *testing.T, b bundle) {
		ctx, queue, records := testContext(t), b.prefix+"a/", b.prefix+"/"
		c := b.clientOf(t, "one-name", readWrite(queue), readWrite(records))
		watched := startWatch(t, c, "a", false)
		watched.expect(t, "a", nil)
		holder := lock(t, b.client(t), "a", "theirs")
		watched.expect(t, "a", holder)
		waiter := lockAsync(ctx, c, "a", "ours")
		b.awaitEntries(t, "a", 2)
		unlock(t, holder)
		l := awaitLock(t, waiter)
		watched.expect(t, "a", l)
		if err := l.SetValue(ctx, "changed"); err != nil {
			t.Error(err)
		}
		watched.expect(t, "a", l)
		if owners, err := c.Owners(ctx); err != nil || len(owners) != 2 {
			t.Errorf("Owners returned %v, %v", owners, err)
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
		watched.expect(t, "a", nil)
	}, authentication)
}

func TestRole_EveryPartOfTheSmallestIsNeeded(t *testing.T) {
	onOwnCluster(t, func(t *testing.T, b bundle) {
		ctx, queue, records := testContext(t), b.prefix+"a/", b.prefix+"/"
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
			c := b.clientOf(t, name, permissions...)
			_, err := c.Lock(ctx, "a", "")
			wantDenied(t, name+": Lock", err)
			_, err = c.TryLock(ctx, "a", "")
			wantDenied(t, name+": TryLock", err)
			if err := c.Close(); err != nil {
				t.Errorf("%s: %v", name, err)
			}
			b.awaitEntries(t, "a", 0)
		}
	}, authentication)
}

func TestRole_ToReadAllowsReadsAndWatchesAndNothingElse(t *testing.T) {
	onOwnCluster(t, func(t *testing.T, b bundle) {
		ctx, c := testContext(t), b.client(t)
		reader := b.clientOf(t, "reader", readOnly("locker/"))
		l := lock(t, c, "a", "v")
		if holder, err := reader.Get(ctx, "a"); err != nil || holder.Token != l.Token() {
			t.Errorf("Get returned %+v, %v", holder, err)
		}
		if owners, err := reader.Owners(ctx); err != nil || len(owners) != 1 {
			t.Errorf("Owners returned %v, %v", owners, err)
		}
		cache, err := reader.NewCache(ctx, "")
		if err != nil {
			t.Fatal(err)
		}
		if holders, err := reader.List(ctx, ""); err != nil || len(holders) != 1 || !slices.Equal(cache.List(), holders) {
			t.Errorf("List returned %+v, %v; the cache has %+v", holders, err, cache.List())
		}
		one, all := startWatch(t, reader, "a", false), startWatch(t, reader, "", true)
		one.expect(t, "a", l)
		all.expect(t, "a", l)
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
		one.expect(t, "a", nil)
		all.expect(t, "a", nil)
		eventually(t, "the cache shows the release", func() bool { return len(cache.List()) == 0 })
		for range 3 {
			now := time.Now()
			eventually(t, "the cache is known to be current", func() bool { return cache.Age() < time.Since(now) })
		}
	}, authentication)
}

func TestRole_ToReadSomeNamesAllowsReadsAndWatchesOfThose(t *testing.T) {
	onOwnCluster(t, func(t *testing.T, b bundle) {
		ctx, c := testContext(t), b.client(t)
		reader := b.clientOf(t, "reader", readOnly(b.prefix+"app-"))
		l := lock(t, c, "app-1", "v")
		lock(t, c, "other", "hidden")
		cache, err := reader.NewCache(ctx, "app-")
		if err != nil {
			t.Fatal(err)
		}
		if holders, err := reader.List(ctx, "app-"); err != nil || len(holders) != 1 || !slices.Equal(cache.List(), holders) {
			t.Errorf("List returned %+v, %v; the cache has %+v", holders, err, cache.List())
		}
		if holder, err := reader.Get(ctx, "app-1"); err != nil || holder.Token != l.Token() {
			t.Errorf("Get returned %+v, %v", holder, err)
		}
		one, some := startWatch(t, reader, "app-1", false), startWatch(t, reader, "app-", true)
		one.expect(t, "app-1", l)
		some.expect(t, "app-1", l)
		unlock(t, l)
		one.expect(t, "app-1", nil)
		some.expect(t, "app-1", nil)
		eventually(t, "the cache shows the release", func() bool { return len(cache.List()) == 0 })
		for range 2 { // even when nothing changes
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
