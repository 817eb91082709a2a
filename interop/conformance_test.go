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

// What any user of locks relies on.

func TestLock_HoldsExcludeEachOtherAndTokensGrow(t *testing.T) {
	everywhere(t, func(t *testing.T, b bundle) {
		ctx := within(t)
		var holders atomic.Int64
		var tokens []int64 // written by the holder
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
							t.Errorf("%d holders", n)
						}
						tokens = append(tokens, l.Token())
						holders.Add(-1)
						if err := l.Unlock(ctx); err != nil {
							t.Error(err)
						}
					}
				})
			}
		}
		callers.Wait()
		distinct := len(slices.Compact(slices.Clone(tokens)))
		if len(tokens) != 24 || distinct != 24 || !slices.IsSorted(tokens) {
			t.Errorf("tokens %v", tokens)
		}
	})
}

func TestTryLock_ReportsTheHolder(t *testing.T) {
	everywhere(t, func(t *testing.T, b bundle) {
		ctx, other := within(t), b.client(t)
		l := lock(t, b.client(t), "a", "mine")
		_, err := other.TryLock(ctx, "a", "yours")
		var locked *locker.LockedError
		if !errors.As(err, &locked) || locked.Holder.Value != "mine" || locked.Holder.Token != l.Token() {
			t.Errorf("%v, want the holder", err)
		}
		b.queued(t, "a", 1)
		unlock(t, l)
		next, err := other.TryLock(ctx, "a", "yours")
		if err != nil || next.Token() <= l.Token() {
			t.Fatalf("of a free name: %v, %v", next, err)
		}
		want(t, l.Unlock(ctx), locker.ErrReleased)
		if err := next.Err(); err != nil {
			t.Error(err)
		}
	})
}

func TestQueue_WaitersAreServedInTheOrderTheyCame(t *testing.T) {
	everywhere(t, func(t *testing.T, b bundle) {
		// More than a waiter follows one by one.
		const waiters = 12
		holder := lock(t, b.client(t), "a", "")
		etcd := connect(t, b.config(service))
		var queue []<-chan outcome
		for i := range int64(waiters) {
			queue = append(queue, lockAsync(within(t), b.over(t, etcd), "a", ""))
			b.queued(t, "a", i+2)
		}
		for i, next := range queue {
			for _, later := range queue[i:] {
				if len(later) > 0 {
					t.Fatalf("one of those from %d on holds with the one before", i)
				}
			}
			token := holder.Token()
			unlock(t, holder)
			if holder = served(t, next); holder.Token() <= token {
				t.Errorf("token %d after %d", holder.Token(), token)
			}
		}
	})
}

func TestQueue_AWaiterThatIsCanceledLeavesIt(t *testing.T) {
	everywhere(t, func(t *testing.T, b bundle) {
		holder := lock(t, b.client(t), "a", "")
		ctx, cancel := context.WithCancelCause(t.Context())
		waiter := lockAsync(ctx, b.client(t), "a", "")
		b.queued(t, "a", 2)
		behind := lockAsync(within(t), b.client(t), "a", "")
		b.queued(t, "a", 3)
		enough := errors.New("waited long enough")
		cancel(enough)
		want(t, receive(t, waiter).err, enough)
		b.queued(t, "a", 2)
		unlock(t, holder)
		served(t, behind)
	})
}

func TestDo_ReleasesAndCampaignHoldsAgainAfterALoss(t *testing.T) {
	everywhere(t, func(t *testing.T, b bundle) {
		ctx, c := within(t), b.client(t)
		result := errors.New("done")
		want(t, c.Do(ctx, "a", "", func(context.Context, *locker.Lock) error { return result }), result)
		b.queued(t, "a", 0)
		var tokens []int64
		err := c.Campaign(ctx, "a", "", func(ctx context.Context, l *locker.Lock) error {
			tokens = append(tokens, l.Token())
			if len(tokens) == 2 {
				return result
			}
			b.remove(t, l)
			want(t, l.SetValue(ctx, "too late"), locker.ErrLost)
			<-ctx.Done()
			return context.Cause(ctx)
		})
		want(t, err, result)
		if len(tokens) != 2 || tokens[1] <= tokens[0] {
			t.Errorf("tokens %v", tokens)
		}
	})
}

func TestCommit_AndSetValueAreGuarded(t *testing.T) {
	everywhere(t, func(t *testing.T, b bundle) {
		ctx, data := within(t), "data/"+b.prefix
		user := connect(t, b.config(service))
		l := lock(t, b.over(t, user), "a", "first")
		if _, err := l.Commit(ctx, clientv3.OpPut(data, "by the holder")); err != nil {
			t.Error(err)
		}
		if err := l.SetValue(ctx, "second"); err != nil {
			t.Error(err)
		}
		if holder, err := b.client(t).Get(ctx, "a"); err != nil || holder.Value != "second" || holder.Token != l.Token() {
			t.Errorf("%+v, %v", holder, err)
		}
		b.remove(t, l)
		resp, err := user.Txn(ctx).If(l.Guard()...).Then(clientv3.OpPut(data, "too late")).Commit()
		if err != nil || resp.Succeeded {
			t.Errorf("a guarded transaction of a lock that is gone: %+v, %v", resp, err)
		}
		_, err = l.Commit(ctx, clientv3.OpPut(data, "too late"))
		want(t, err, locker.ErrLost)
		var lost *locker.LostError
		if !errors.As(l.Err(), &lost) || lost.Reason != locker.Deleted {
			t.Errorf("lost by %v", lost)
		}
		if got, err := b.etcd.Get(ctx, data); err != nil || string(got.Kvs[0].Value) != "by the holder" {
			t.Errorf("%v, %v", got, err)
		}
	})
}

func TestSession_TheLossOfOneCostsOthersNothing(t *testing.T) {
	everywhere(t, func(t *testing.T, b bundle) {
		ctx, c := within(t), b.client(t)
		s, err := c.NewSession(ctx)
		if err != nil {
			t.Fatal(err)
		}
		own, other := lock(t, c, "own", "", locker.WithSession(s)), lock(t, c, "other", "")
		if _, err := b.etcd.Revoke(ctx, s.Lease()); err != nil {
			t.Fatal(err)
		}
		_, err = own.Commit(ctx, clientv3.OpPut("data/"+b.prefix, ""))
		want(t, err, locker.ErrLost)
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
		ctx, c := within(t), b.client(t)
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
			t.Fatalf("%d holders, %v", len(holders), err)
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
		ctx, c := within(t), b.client(t)
		first := lock(t, c, "a", "")
		mine := lockAsync(ctx, c, "a", "")
		other := lockAsync(ctx, b.client(t), "a", "")
		b.queued(t, "a", 2)
		unlock(t, first)
		second := served(t, other) // it was queued, the goroutine in line was not
		b.queued(t, "a", 2)
		if len(mine) != 0 {
			t.Fatal("two hold the name")
		}
		unlock(t, second)
		third := served(t, mine)
		if first.Token() >= second.Token() || second.Token() >= third.Token() {
			t.Errorf("tokens %d, %d, %d", first.Token(), second.Token(), third.Token())
		}
	})
}

func TestLocalHandover_GoroutinesOfAClientMayShareAHold(t *testing.T) {
	everywhere(t, func(t *testing.T, b bundle) {
		ctx, c := within(t), b.client(t, locker.WithLocalHandover(2))
		turns := make(map[int64]int) // by token; written by the holder
		var callers sync.WaitGroup
		for range 4 {
			callers.Go(func() {
				for range 5 {
					if err := c.Do(ctx, "a", "", func(_ context.Context, l *locker.Lock) error {
						turns[l.Token()]++
						return nil
					}); err != nil {
						t.Error(err)
					}
				}
			})
		}
		callers.Wait()
		shared := 0
		for token, n := range turns {
			if n == 2 {
				shared++
			} else if n != 1 {
				t.Errorf("%d turns with the token %d", n, token)
			}
		}
		if shared == 0 {
			t.Errorf("of %d holds none was shared", len(turns))
		}
	})
}

func TestClose_LeavesNothing(t *testing.T) {
	everywhere(t, func(t *testing.T, b bundle) {
		ctx := within(t)
		c := b.client(t)
		s, err := c.NewSession(ctx)
		if err != nil {
			t.Fatal(err)
		}
		held, own := lock(t, c, "held", ""), lock(t, c, "own", "", locker.WithSession(s))
		foreign := lock(t, b.client(t), "foreign", "")
		waiter := lockAsync(ctx, c, "foreign", "")
		b.queued(t, "foreign", 2)
		owners, err := c.Owners(ctx)
		if err != nil || len(owners) != 3 { // two of this client, one of the other
			t.Fatalf("%v, %v", owners, err)
		}
		if err := c.Close(); err != nil {
			t.Error(err)
		}
		for _, err := range []error{held.Err(), own.Err(), receive(t, waiter).err} {
			want(t, err, locker.ErrClosed)
		}
		b.queued(t, "foreign", 1)
		unlock(t, foreign)
		if owners, err = b.client(t).Owners(ctx); err != nil || len(owners) != 1 {
			t.Errorf("after Close: %v, %v", owners, err)
		}
		if lease, err := b.etcd.TimeToLive(ctx, s.Lease()); err != nil || lease.TTL != -1 {
			t.Errorf("the lease after Close: %+v, %v", lease, err)
		}
	})
}
