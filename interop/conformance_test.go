package interop

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"testing"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/jagregory/locker/v2"
)

func TestLock_HoldsExcludeEachOtherAndTokensGrow(t *testing.T) {
	everywhere(t, func(t *testing.T, b bundle) {
		ctx := testContext(t)
		var holders atomic.Int64
		var issued []int64 // tokens, written by the holder
		var callers sync.WaitGroup
		for range 3 {
			c := b.client(t)
			for range 2 {
				callers.Go(func() {
					for range 4 {
						l, err := c.Lock(ctx, "a", "")
						if err != nil {
							t.Error(err)
							return
						}
						if n := holders.Add(1); n != 1 {
							t.Errorf("%d holders at once", n)
						}
						issued = append(issued, l.Token())
						holders.Add(-1)
						if err := l.Unlock(ctx); err != nil {
							t.Error(err)
						}
					}
				})
			}
		}
		callers.Wait()
		distinct := len(slices.Compact(slices.Clone(issued)))
		if len(issued) != 24 || distinct != 24 || !slices.IsSorted(issued) {
			t.Errorf("got tokens %v", issued)
		}
	})
}

func TestTryLock_ReportsTheHolder(t *testing.T) {
	everywhere(t, func(t *testing.T, b bundle) {
		ctx, other := testContext(t), b.client(t)
		l := lock(t, b.client(t), "a", "mine")
		_, err := other.TryLock(ctx, "a", "yours")
		var locked *locker.LockedError
		if !errors.As(err, &locked) || locked.Holder.Value != "mine" || locked.Holder.Token != l.Token() {
			t.Errorf("TryLock returned %v, want a LockedError with the holder", err)
		}
		b.awaitEntries(t, "a", 1)
		unlock(t, l)
		next, err := other.TryLock(ctx, "a", "yours")
		if err != nil || next.Token() <= l.Token() {
			t.Fatalf("TryLock of a free name returned %v, %v", next, err)
		}
		wantError(t, l.Unlock(ctx), locker.ErrReleased)
		if err := next.Err(); err != nil {
			t.Error(err)
		}
	})
}

func TestQueue_WaitersAreServedInTheOrderTheyCame(t *testing.T) {
	everywhere(t, func(t *testing.T, b bundle) {
		const waiters = 12 // more than the lookahead of a waiter
		holder := lock(t, b.client(t), "a", "")
		etcd := connect(t, b.config(service))
		var queue []<-chan outcome
		for i := range int64(waiters) {
			queue = append(queue, lockAsync(testContext(t), b.clientOver(t, etcd), "a", ""))
			b.awaitEntries(t, "a", i+2)
		}
		for i, next := range queue {
			for _, later := range queue[i:] {
				if len(later) > 0 {
					t.Fatalf("waiter %d or a later one returned too early", i)
				}
			}
			token := holder.Token()
			unlock(t, holder)
			if holder = awaitLock(t, next); holder.Token() <= token {
				t.Errorf("got token %d after %d", holder.Token(), token)
			}
		}
	})
}

func TestQueue_AWaiterThatIsCanceledLeavesIt(t *testing.T) {
	everywhere(t, func(t *testing.T, b bundle) {
		holder := lock(t, b.client(t), "a", "")
		ctx, cancel := context.WithCancelCause(t.Context())
		waiter := lockAsync(ctx, b.client(t), "a", "")
		b.awaitEntries(t, "a", 2)
		behind := lockAsync(testContext(t), b.client(t), "a", "")
		b.awaitEntries(t, "a", 3)
		enough := errors.New("waited long enough")
		cancel(enough)
		wantError(t, receive(t, waiter).err, enough)
		b.awaitEntries(t, "a", 2)
		unlock(t, holder)
		awaitLock(t, behind)
	})
}

func TestDo_ReleasesAndCampaignHoldsAgainAfterALoss(t *testing.T) {
	everywhere(t, func(t *testing.T, b bundle) {
		ctx, c := testContext(t), b.client(t)
		result := errors.New("done")
		wantError(t, c.Do(ctx, "a", "", func(context.Context, *locker.Lock) error { return result }), result)
		b.awaitEntries(t, "a", 0)
		var issued []int64 // tokens
		err := c.Campaign(ctx, "a", "", func(ctx context.Context, l *locker.Lock) error {
			issued = append(issued, l.Token())
			if len(issued) == 2 {
				return result
			}
			b.deleteEntry(t, l)
			wantError(t, l.SetValue(ctx, "too late"), locker.ErrLost)
			<-ctx.Done()
			return context.Cause(ctx)
		})
		wantError(t, err, result)
		if len(issued) != 2 || issued[1] <= issued[0] {
			t.Errorf("got tokens %v", issued)
		}
	})
}

func TestCommit_AndSetValueAreGuarded(t *testing.T) {
	everywhere(t, func(t *testing.T, b bundle) {
		ctx, data := testContext(t), "data/"+b.prefix
		user := connect(t, b.config(service))
		l := lock(t, b.clientOver(t, user), "a", "first")
		if _, err := l.Commit(ctx, clientv3.OpPut(data, "by the holder")); err != nil {
			t.Error(err)
		}
		if err := l.SetValue(ctx, "second"); err != nil {
			t.Error(err)
		}
		if holder, err := b.client(t).Get(ctx, "a"); err != nil || holder.Value != "second" || holder.Token != l.Token() {
			t.Errorf("Get returned %+v, %v", holder, err)
		}
		b.deleteEntry(t, l)
		resp, err := user.Txn(ctx).If(l.Guard()...).Then(clientv3.OpPut(data, "too late")).Commit()
		if err != nil || resp.Succeeded {
			t.Errorf("a guarded transaction of a lost lock: %+v, %v", resp, err)
		}
		_, err = l.Commit(ctx, clientv3.OpPut(data, "too late"))
		wantError(t, err, locker.ErrLost)
		var lost *locker.LostError
		if !errors.As(l.Err(), &lost) || lost.Reason != locker.Deleted {
			t.Errorf("the hold ended with %v, want a LostError with Deleted", l.Err())
		}
		if got, err := b.etcd.Get(ctx, data); err != nil || string(got.Kvs[0].Value) != "by the holder" {
			t.Errorf("read %v, %v", got, err)
		}
	})
}

func TestSession_TheLossOfOneCostsOthersNothing(t *testing.T) {
	everywhere(t, func(t *testing.T, b bundle) {
		ctx, c := testContext(t), b.client(t)
		s, err := c.NewSession(ctx)
		if err != nil {
			t.Fatal(err)
		}
		own, other := lock(t, c, "own", "", locker.WithSession(s)), lock(t, c, "other", "")
		if _, err := b.etcd.Revoke(ctx, s.Lease()); err != nil {
			t.Fatal(err)
		}
		_, err = own.Commit(ctx, clientv3.OpPut("data/"+b.prefix, ""))
		wantError(t, err, locker.ErrLost)
		receive(t, s.Context().Done())
		if err := other.SetValue(ctx, "alive"); err != nil {
			t.Error(err)
		}
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
}

func TestGroupCommit_ManyLocksShareTransactions(t *testing.T) {
	everywhere(t, func(t *testing.T, b bundle) {
		const names = 200
		ctx, c := testContext(t), b.client(t)
		locks := make([]*locker.Lock, names)
		var callers sync.WaitGroup
		for i := range names {
			callers.Go(func() {
				var err error
				if locks[i], err = c.Lock(ctx, fmt.Sprint("name ", i), ""); err != nil {
					t.Error(err)
				}
			})
		}
		callers.Wait()
		holders, err := c.List(ctx, "name ")
		if err != nil || len(holders) != names || t.Failed() {
			t.Fatalf("List returned %d holders, %v", len(holders), err)
		}
		revisions := make(map[int64]bool)
		for _, holder := range holders {
			revisions[holder.Token] = true
		}
		if len(revisions) > names/2 {
			t.Errorf("%d locks took %d transactions", names, len(revisions))
		}
		for _, l := range locks {
			callers.Go(func() {
				if err := l.Unlock(ctx); err != nil {
					t.Error(err)
				}
			})
		}
		callers.Wait()
		if err := awaitCount(ctx, b.etcd, b.prefix+"name ", 0); err != nil {
			t.Error(err)
		}
	})
}

func TestQueue_GoroutinesOfAClientAlternateWithAnotherClient(t *testing.T) {
	everywhere(t, func(t *testing.T, b bundle) {
		ctx, c := testContext(t), b.client(t)
		first := lock(t, c, "a", "")
		mine := lockAsync(ctx, c, "a", "")
		other := lockAsync(ctx, b.client(t), "a", "")
		b.awaitEntries(t, "a", 2)
		unlock(t, first)
		second := awaitLock(t, other) // it had an entry, unlike the goroutine in the client's line
		b.awaitEntries(t, "a", 2)
		if len(mine) != 0 {
			t.Fatal("two clients hold the name")
		}
		unlock(t, second)
		third := awaitLock(t, mine)
		if first.Token() >= second.Token() || second.Token() >= third.Token() {
			t.Errorf("got tokens %d, %d, %d", first.Token(), second.Token(), third.Token())
		}
	})
}

func TestLocalHandover_GoroutinesOfAClientMayShareAHold(t *testing.T) {
	everywhere(t, func(t *testing.T, b bundle) {
		ctx, c := testContext(t), b.client(t, locker.WithLocalHandover(2))
		calls := make(map[int64]int) // by token; written by the holder
		var callers sync.WaitGroup
		for range 4 {
			callers.Go(func() {
				for range 5 {
					if err := c.Do(ctx, "a", "", func(_ context.Context, l *locker.Lock) error {
						calls[l.Token()]++
						return nil
					}); err != nil {
						t.Error(err)
					}
				}
			})
		}
		callers.Wait()
		sharedHolds := 0
		for token, n := range calls {
			if n == 2 {
				sharedHolds++
			} else if n != 1 {
				t.Errorf("%d calls shared the token %d, want at most 2", n, token)
			}
		}
		if sharedHolds == 0 {
			t.Errorf("none of %d holds was shared", len(calls))
		}
	})
}

func TestClose_LeavesNothing(t *testing.T) {
	everywhere(t, func(t *testing.T, b bundle) {
		ctx := testContext(t)
		c := b.client(t)
		s, err := c.NewSession(ctx)
		if err != nil {
			t.Fatal(err)
		}
		held, own := lock(t, c, "held", ""), lock(t, c, "own", "", locker.WithSession(s))
		foreign := lock(t, b.client(t), "foreign", "")
		waiter := lockAsync(ctx, c, "foreign", "")
		b.awaitEntries(t, "foreign", 2)
		owners, err := c.Owners(ctx)
		if err != nil || len(owners) != 3 { // two of this client, one of the other
			t.Fatalf("Owners returned %v, %v", owners, err)
		}
		if err := c.Close(); err != nil {
			t.Error(err)
		}
		for _, err := range []error{held.Err(), own.Err(), receive(t, waiter).err} {
			wantError(t, err, locker.ErrClosed)
		}
		b.awaitEntries(t, "foreign", 1)
		unlock(t, foreign)
		if owners, err = b.client(t).Owners(ctx); err != nil || len(owners) != 1 {
			t.Errorf("Owners after Close returned %v, %v", owners, err)
		}
		if lease, err := b.etcd.TimeToLive(ctx, s.Lease()); err != nil || lease.TTL != -1 {
			t.Errorf("lease after Close: %+v, %v", lease, err)
		}
	})
}
