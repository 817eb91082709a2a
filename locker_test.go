package locker_test

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/jagregory/locker/v2"
)

// want fails the test unless err is the target.
func want(t testing.TB, err, target error) {
	t.Helper()
	if !errors.Is(err, target) {
		t.Errorf("%v, want %v", err, target)
	}
}

// get returns the holder of name or fails the test.
func get(t testing.TB, c *locker.Client, name string) locker.Holder {
	t.Helper()
	holder, err := c.Get(within(t), name)
	if err != nil {
		t.Fatal(err)
	}
	return holder
}

// holderOf returns what others should see of l.
func holderOf(t testing.TB, b bundle, l *locker.Lock) locker.Holder {
	t.Helper()
	resp, err := b.etcd.Get(within(t), l.Key())
	if err != nil || len(resp.Kvs) != 1 {
		t.Fatalf("entry of %q: %v, %v", l.Name(), resp, err)
	}
	return locker.Holder{Name: l.Name(), Value: l.Value(), Token: l.Token(), Lease: clientv3.LeaseID(resp.Kvs[0].Lease)}
}

func TestOneHolderAtATimeWithGrowingTokens(t *testing.T) {
	t.Parallel()
	b, ctx := setup(t), within(t)
	var inside, last, holds atomic.Int64
	var wg sync.WaitGroup
	for range 3 {
		c := b.client(t)
		for range 4 {
			wg.Go(func() {
				for range 8 {
					l, err := c.Lock(ctx, "a", "v")
					if err != nil {
						t.Error(err)
						return
					}
					if n := inside.Add(1); n != 1 {
						t.Errorf("%d holders", n)
					}
					if before := last.Swap(l.Token()); before >= l.Token() {
						t.Errorf("token %d after %d", l.Token(), before)
					}
					holds.Add(1)
					inside.Add(-1)
					if err := l.Unlock(ctx); err != nil {
						t.Error(err)
					}
				}
			})
		}
	}
	wg.Wait()
	if holds.Load() != 3*4*8 {
		t.Errorf("%d holds", holds.Load())
	}
	b.queued(t, "a", 0)
}

func TestTheSameNameTwiceInOneClientWaits(t *testing.T) {
	t.Parallel()
	b, ctx := setup(t), within(t)
	c := b.client(t)
	own, err := c.NewSession(ctx)
	if err != nil {
		t.Fatal(err)
	}
	first := lock(t, c, "a", "first")
	second := lockAsync(ctx, c, "a", "second", locker.WithSession(own))
	eventually(t, "the second is in line", func() bool { return c.Waiting("a") == 1 })
	if holder := get(t, c, "a"); holder != holderOf(t, b, first) {
		t.Errorf("holder %+v", holder)
	}
	unlock(t, first)
	got := receive(t, second)
	if got.err != nil || got.lock.Token() <= first.Token() || get(t, c, "a").Value != "second" {
		t.Errorf("%v, token %d after %d", got.err, got.lock.Token(), first.Token())
	}
}

func TestGoroutinesOfOneClientAreServedInOrder(t *testing.T) {
	t.Parallel()
	b, ctx := setup(t), within(t)
	c := b.client(t)
	present := lock(t, c, "a", "v")
	var waiters []<-chan outcome
	for i := range 6 {
		waiters = append(waiters, lockAsync(ctx, c, "a", fmt.Sprint(i)))
		eventually(t, "one more is in line", func() bool { return c.Waiting("a") == i+1 })
	}
	serveInOrder(t, present, waiters)
}

func TestClientsAreServedInOrder(t *testing.T) {
	t.Parallel()
	b, ctx := setup(t), within(t)
	present := lock(t, b.client(t), "a", "v")
	var waiters []<-chan outcome
	for i := range 9 { // more than a waiter follows one by one
		waiters = append(waiters, lockAsync(ctx, b.client(t), "a", fmt.Sprint(i)))
		b.queued(t, "a", i+2)
	}
	serveInOrder(t, present, waiters)
}

// serveInOrder unlocks one after the other, and fails the test if the waiters do not hold in turn.
func serveInOrder(t *testing.T, present *locker.Lock, waiters []<-chan outcome) {
	t.Helper()
	for i, waiter := range waiters {
		for j, later := range waiters[i:] {
			select {
			case got := <-later:
				t.Fatalf("waiter %d was served while another held: %v", i+j, got.err)
			default:
			}
		}
		unlock(t, present)
		got := receive(t, waiter)
		if got.err != nil || got.lock.Token() <= present.Token() {
			t.Fatalf("waiter %d: %v", i, got.err)
		}
		present = got.lock
	}
}

func TestNamesAreIndependentOfEachOther(t *testing.T) {
	t.Parallel()
	b, ctx := setup(t), within(t)
	c, other := b.client(t), b.client(t)
	names := []string{"a", "a/b", "a//", "a%2Fb", "a/", "a%", "a%2F", "/", "/a", "%", " ", "a b", "ä", "..", "locker/a"}
	var holders []locker.Holder
	for _, name := range names {
		l, err := c.TryLock(ctx, name, "value of "+name)
		if err != nil {
			t.Fatal(err)
		}
		if l.Name() != name {
			t.Errorf("name %q, want %q", l.Name(), name)
		}
		holders = append(holders, holderOf(t, b, l))
	}
	for _, holder := range holders {
		_, err := other.TryLock(ctx, holder.Name, "v")
		var locked *locker.LockedError
		if !errors.As(err, &locked) || locked.Holder != holder || get(t, other, holder.Name) != holder {
			t.Errorf("%v, want %+v", err, holder)
		}
	}
	slices.SortFunc(holders, func(a, b locker.Holder) int { return strings.Compare(a.Name, b.Name) })
	if list, err := other.List(ctx, ""); err != nil || !slices.Equal(list, holders) {
		t.Errorf("%v, %+v\nwant %+v", err, list, holders)
	}
}

func TestNamesMayBeAsLongAsTheyMay(t *testing.T) {
	t.Parallel()
	b := setup(t)
	for _, char := range []string{"a", "/", "%"} {
		name := strings.Repeat(char, 1024)
		l := lock(t, b.client(t), name, "v")
		if holder := get(t, b.client(t), name); holder.Name != name || holder.Token != l.Token() {
			t.Errorf("holder %+v", holder)
		}
		unlock(t, l)
	}
}

func TestTryLockTellsWhoHoldsAndDoesNotQueue(t *testing.T) {
	t.Parallel()
	b, ctx := setup(t), within(t)
	c := b.client(t)
	l := lock(t, c, "a", "v")
	remote := b.client(t)
	for what, client := range map[string]*locker.Client{"remote": remote, "local": c} {
		_, err := client.TryLock(ctx, "a", "other")
		var locked *locker.LockedError
		if !errors.Is(err, locker.ErrLocked) || !errors.As(err, &locked) || locked.Holder != holderOf(t, b, l) {
			t.Errorf("%s: %v", what, err)
		}
	}
	b.queued(t, "a", 1)
	unlock(t, l)
	for _, client := range []*locker.Client{remote, c} {
		again, err := client.TryLock(ctx, "a", "again")
		if err != nil {
			t.Fatalf("after the release: %v", err)
		}
		unlock(t, again)
	}
}

func TestAValueTooLargeIsEtcdsErrorAndLeavesNothing(t *testing.T) {
	t.Parallel()
	b, ctx := setup(t), within(t)
	c := b.client(t)
	for _, size := range []int{1600 << 10, 4 << 20} { // too large for the server, and for its client
		_, err := c.Lock(ctx, "a", strings.Repeat("v", size))
		if err == nil || size < 2<<20 && !errors.Is(err, rpctypes.ErrRequestTooLarge) || len(err.Error()) > 500 {
			t.Errorf("%d bytes: %v", size, err)
		}
		_, err = c.TryLock(ctx, "a", strings.Repeat("v", size))
		if err == nil || errors.Is(err, locker.ErrLocked) {
			t.Errorf("%d bytes: %v", size, err)
		}
	}
	b.queued(t, "a", 0) // what is left is removed in the background
	l := lock(t, c, "a", "small")
	if err := l.SetValue(ctx, strings.Repeat("v", 1600<<10)); !errors.Is(err, rpctypes.ErrRequestTooLarge) {
		t.Error(err)
	}
	if l.Err() != nil || l.Value() != "small" || get(t, c, "a").Value != "small" {
		t.Errorf("%v, %d bytes", l.Err(), len(l.Value()))
	}
}

func TestGetTellsWhoHolds(t *testing.T) {
	t.Parallel()
	b, ctx := setup(t), within(t)
	c, other := b.client(t), b.client(t)
	_, err := c.Get(ctx, "a")
	var missing *locker.NotFoundError
	if !errors.Is(err, locker.ErrNotFound) || !errors.As(err, &missing) || missing.Name != "a" {
		t.Error(err)
	}
	l := lock(t, c, "a", "v")
	waiter := lockAsync(ctx, other, "a", "waiting")
	b.queued(t, "a", 2)
	if holder := get(t, other, "a"); holder != holderOf(t, b, l) {
		t.Errorf("holder %+v", holder)
	}
	unlock(t, l)
	unlock(t, receive(t, waiter).lock)
	_, err = c.Get(ctx, "a")
	want(t, err, locker.ErrNotFound)
}

func TestListHasTheHoldersBelowAPrefixByName(t *testing.T) {
	t.Parallel()
	b, ctx := setup(t), within(t)
	c, other := b.client(t), b.client(t)
	for _, name := range []string{"a/z", "b", "a/%", "a", "a%2Fz", "a/b/c", "ab"} {
		lock(t, c, name, "v")
	}
	lockAsync(ctx, other, "a/z", "waiting")
	b.queued(t, "a%2Fz", 2)
	for prefix, names := range map[string][]string{
		"":       {"a", "a%2Fz", "a/%", "a/b/c", "a/z", "ab", "b"},
		"a":      {"a", "a%2Fz", "a/%", "a/b/c", "a/z", "ab"},
		"a/":     {"a/%", "a/b/c", "a/z"},
		"a/b":    {"a/b/c"},
		"a%":     {"a%2Fz"},
		"a/z":    {"a/z"},
		"a/zz":   {},
		"nobody": {},
	} {
		list, err := other.List(ctx, prefix)
		found := make([]string, len(list))
		for i, holder := range list {
			found[i] = holder.Name
			if holder.Value != "v" || holder.Token == 0 || holder.Lease == 0 {
				t.Errorf("holder %+v", holder)
			}
		}
		if err != nil || !slices.Equal(found, names) {
			t.Errorf("below %q: %v, %q, want %q", prefix, err, found, names)
		}
	}
}

func TestListIsTrueAtOneRevision(t *testing.T) {
	t.Parallel()
	b, ctx := setup(t), within(t)
	c := b.client(t)
	const left, right = locker.DefaultPrefix + "a/1", locker.DefaultPrefix + "z/1"
	if _, err := b.etcd.Put(ctx, left, ""); err != nil {
		t.Fatal(err)
	}
	stop, stopped := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(stopped)
		for from, to := left, right; ; from, to = to, from {
			select {
			case <-stop:
				return
			default:
			}
			if _, err := b.etcd.Txn(ctx).Then(clientv3.OpDelete(from), clientv3.OpPut(to, "")).Commit(); err != nil {
				t.Error(err)
				return
			}
		}
	}()
	seen := make(map[string]bool)
	for n := 0; n < 100 || len(seen) < 2; n++ {
		list, err := c.List(ctx, "")
		if err != nil || len(list) != 1 {
			t.Errorf("%v, %+v", err, list)
			break
		}
		seen[list[0].Name] = true
	}
	close(stop)
	receive(t, stopped)
}

func TestOwnersTellsWhichProcessHolds(t *testing.T) {
	t.Parallel()
	b, ctx := setup(t), within(t)
	c := b.client(t)
	lock(t, c, "a", "v")
	own, err := c.NewSession(ctx)
	if err != nil {
		t.Fatal(err)
	}
	lock(t, c, "b", "v", locker.WithSession(own))
	if _, err := b.etcd.Put(ctx, locker.DefaultPrefix+"/foreign", "no record"); err != nil {
		t.Fatal(err)
	}
	list, err := c.List(ctx, "")
	if err != nil || len(list) != 2 {
		t.Fatalf("%v, %+v", err, list)
	}
	owners, err := b.client(t).Owners(ctx)
	if err != nil || len(owners) != 2 {
		t.Fatalf("%v, %+v", err, owners)
	}
	host, _ := os.Hostname()
	for _, holder := range list {
		owner := owners[holder.Lease]
		if owner.PID != os.Getpid() || owner.Host != host || owner.Program == "" || owner.Start.IsZero() || owner.Version != locker.Version {
			t.Errorf("the owner of %q: %+v", holder.Name, owner)
		}
	}
	if err := own.Close(); err != nil {
		t.Fatal(err)
	}
	if owners, err := c.Owners(ctx); err != nil || len(owners) != 1 {
		t.Errorf("after the end of a session: %v, %+v", err, owners)
	}
}
