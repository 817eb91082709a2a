package locker_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/jagregory/locker/v2"
	"github.com/jagregory/locker/v2/internal/locktest"
)

// queue returns the queue of name.
func queue(t testing.TB, c *locker.Client, name string) []locker.Entry {
	t.Helper()
	entries, err := c.Queue(locktest.Within(t), name)
	if err != nil {
		t.Fatal(err)
	}
	return entries
}

// isThisProcess reports whether an owner is this process, under the name of a program.
func isThisProcess(owner locker.Owner, program string) bool {
	host, _ := os.Hostname()
	return owner.PID == os.Getpid() && owner.Host == host && owner.Program == program && owner.Version == locker.Version
}

func TestQueue_HasHoldersAndWaitersInOrderWithTheirOwners(t *testing.T) {
	t.Parallel()
	b, ctx := locktest.Setup(t), locktest.Within(t)
	a, w := b.Client(t, locker.WithProgram("readers")), b.Client(t, locker.WithProgram("writer"))
	if entries := queue(t, a, "a"); entries == nil || len(entries) > 0 {
		t.Errorf("the queue of a free name is %+v", entries)
	}
	first := locktest.Lock(t, a, "a", "1", locker.WithShared())
	second := locktest.Lock(t, a, "a", "2", locker.WithShared())
	waiter := locktest.LockAsync(ctx, w, "a", "3")
	b.Queued(t, "a", 3)
	foreign, err := b.Etcd.Put(ctx, locker.DefaultPrefix+"a/by hand", "4")
	if err != nil {
		t.Fatal(err)
	}
	entries := queue(t, w, "a")
	if len(entries) != 4 {
		t.Fatalf("%+v", entries)
	}
	for i, l := range []*locker.Lock{first, second} {
		if e := entries[i]; e.Holder != locktest.HolderBy(l) || e.Key != l.Key() || !e.Held || !isThisProcess(e.Owner, "readers") {
			t.Errorf("holder %d is %+v", i, e)
		}
	}
	if e := entries[2]; e.Held || e.Limit != 1 || e.Value != "3" || !isThisProcess(e.Owner, "writer") {
		t.Errorf("the waiter is %+v", e)
	}
	if e := entries[3]; e.Held || e.Lease != 0 || e.Token != foreign.Header.Revision || e.Owner != (locker.Owner{}) {
		t.Errorf("the entry made by hand is %+v", e)
	}
	locktest.Unlock(t, first)
	locktest.Unlock(t, second)
	if e := queue(t, a, "a")[0]; !e.Held || e.Token != locktest.LockOf(t, waiter).Token() {
		t.Errorf("afterwards, the first is %+v", e)
	}
}

func TestQueues_ListsAllNamesBelowAPrefixByNameAndAge(t *testing.T) {
	t.Parallel()
	b, ctx := locktest.Setup(t), locktest.Within(t)
	c := b.Client(t)
	for _, name := range []string{"b2", "a", "b1"} {
		locktest.Lock(t, c, name, "")
	}
	locktest.LockAsync(ctx, b.Client(t), "b1", "")
	b.Queued(t, "b1", 2)
	for prefix, want := range map[string]string{"": "[a true][b1 true][b1 false][b2 true]", "b": "[b1 true][b1 false][b2 true]", "c": ""} {
		entries, err := c.Queues(ctx, prefix)
		got := ""
		for _, e := range entries {
			got += fmt.Sprintf("[%s %t]", e.Name, e.Held)
			if !isThisProcess(e.Owner, "locker.test") && !strings.HasSuffix(e.Owner.Program, ".test") {
				t.Errorf("%s is said to be of %+v", e.Name, e.Owner)
			}
		}
		if got != want || err != nil {
			t.Errorf("below %q: %s, %v", prefix, got, err)
		}
	}
}

func TestQueues_OfManyNamesAreReadInPages(t *testing.T) {
	t.Parallel()
	b, ctx := locktest.Setup(t), locktest.Within(t)
	c := b.Client(t)
	const names = 1200 // two sessions, several pages
	fill(t, c, "many/", names)
	entries, err := c.Queues(ctx, "many/")
	leases := make(map[clientv3.LeaseID]bool)
	for _, e := range entries {
		if leases[e.Lease] = true; !e.Held || e.Owner.PID != os.Getpid() {
			t.Fatalf("%+v", e)
		}
	}
	if err != nil || len(entries) != names || len(leases) < 2 {
		t.Errorf("%d entries of %d sessions, %v", len(entries), len(leases), err)
	}
	if !slices.IsSortedFunc(entries, func(a, b locker.Entry) int { return strings.Compare(a.Name, b.Name) }) {
		t.Error("they are not sorted by name")
	}
}

func TestForceUnlock_RemovesTheEntryWithTheTokenAndNoOther(t *testing.T) {
	t.Parallel()
	b, ctx := locktest.Setup(t), locktest.Within(t)
	holder, next := b.Client(t), b.Client(t)
	held := locktest.Lock(t, holder, "a", "held")
	waiter := locktest.LockAsync(ctx, next, "a", "next")
	b.Queued(t, "a", 2)
	operator := b.Client(t)
	var missing *locker.NotFoundError
	for _, token := range []int64{0, -1} {
		_, err := operator.ForceUnlock(ctx, "a", token)
		wantInvalid(t, err, "token")
	}
	for _, token := range []int64{held.Token() - 1, held.Token() + 100} {
		removed, err := operator.ForceUnlock(ctx, "a", token)
		if len(removed) > 0 || !errors.Is(err, locker.ErrNotFound) || !errors.As(err, &missing) || missing.Name != "a" || missing.Token != token {
			t.Errorf("token %d: %+v, %v", token, removed, err)
		}
	}
	if _, err := operator.ForceUnlock(ctx, "b", held.Token()); !errors.Is(err, locker.ErrNotFound) {
		t.Errorf("another name: %v", err)
	}
	b.Queued(t, "a", 2)
	removed, err := operator.ForceUnlock(ctx, "a", held.Token())
	if err != nil || len(removed) != 1 || removed[0].Holder != locktest.HolderBy(held) || !removed[0].Held {
		t.Fatalf("removed %+v, %v", removed, err)
	}
	locktest.LockOf(t, waiter)
	if _, err := held.Commit(ctx, clientv3.OpPut("written", "late")); !errors.Is(err, locker.ErrLost) {
		t.Errorf("a guarded write of the former holder: %v", err)
	}
	locktest.Lost(t, held, locker.Deleted)
	if _, err := operator.ForceUnlock(ctx, "a", held.Token()); !errors.Is(err, locker.ErrNotFound) {
		t.Errorf("again: %v", err)
	}
}

func TestForceUnlock_OfAnEntryWithoutALeaseAndOfAWaiter(t *testing.T) {
	t.Parallel()
	b, ctx := locktest.Setup(t), locktest.Within(t)
	foreign, err := b.Etcd.Put(ctx, locker.DefaultPrefix+"a/by hand", "")
	if err != nil {
		t.Fatal(err)
	}
	c := b.Client(t)
	stuck := locktest.LockAsync(ctx, c, "a", "stuck")
	b.Queued(t, "a", 2)
	next := locktest.LockAsync(ctx, b.Client(t), "a", "next")
	b.Queued(t, "a", 3)
	operator := b.Client(t)
	token := queue(t, operator, "a")[1].Token
	if removed, err := operator.ForceUnlock(ctx, "a", token); err != nil || len(removed) != 1 || removed[0].Held {
		t.Fatalf("%+v, %v", removed, err)
	}
	if outcome := locktest.Receive(t, stuck); !errors.Is(outcome.Err, locker.ErrLost) {
		t.Errorf("the waiter got %v", outcome.Err)
	}
	if removed, err := operator.ForceUnlock(ctx, "a", foreign.Header.Revision); err != nil || len(removed) != 1 {
		t.Fatalf("%+v, %v", removed, err)
	}
	locktest.LockOf(t, next)
}

func TestLocked_NamesWhoIsInTheWay(t *testing.T) {
	t.Parallel()
	b, ctx := locktest.Setup(t), locktest.Within(t)
	holder := b.Client(t, locker.WithProgram("backup"))
	held := locktest.Lock(t, holder, "a", "nightly")
	other := b.Client(t)
	parts := []string{"nightly", "backup", fmt.Sprint(held.Token()), fmt.Sprintf("%x", int64(locktest.LeaseOf(held))), fmt.Sprint(os.Getpid())}
	// names tries again until etcd has answered in the short time that such a call has for it.
	names := func(what string, call func() error) {
		t.Helper()
		locktest.Eventually(t, what+": the error names the holder", func() bool {
			err := call()
			var locked *locker.LockedError
			return errors.As(err, &locked) && locked.Holder == locktest.HolderBy(held) && isThisProcess(locked.Owner, "backup") &&
				!slices.ContainsFunc(parts, func(part string) bool { return !strings.Contains(err.Error(), part) })
		})
	}
	for what, c := range map[string]*locker.Client{"another client": other, "the same client": holder} {
		names("TryLock of "+what, func() error {
			_, err := c.TryLock(ctx, "a", "")
			return err
		})
		impatient := errors.New("impatient")
		names("a wait of "+what, func() error {
			waiting, giveUp := context.WithCancelCause(ctx)
			outcome := locktest.LockAsync(waiting, c, "a", "")
			if c == other {
				b.Queued(t, "a", 2)
			} else {
				locktest.Eventually(t, "it is in line", func() bool { return locker.Waiting(holder, "a") == 1 })
			}
			giveUp(impatient)
			err := locktest.Receive(t, outcome).Err
			if !errors.Is(err, impatient) {
				t.Errorf("the cause is lost: %v", err)
			}
			b.Queued(t, "a", 1)
			return err
		})
	}
	b.WantHeldAlone(t, held)
}

func TestWithProgram_IsCheckedAndRecorded(t *testing.T) {
	t.Parallel()
	b := locktest.Setup(t)
	for _, bad := range []string{"", "a\nb", "\xff"} {
		_, err := locker.New(b.Etcd, locker.WithProgram(bad))
		wantInvalid(t, err, "program")
	}
}
