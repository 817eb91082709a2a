package systest

import (
	"context"
	"errors"
	"fmt"
	"testing"

	"go.etcd.io/etcd/client/v3/concurrency"

	"github.com/jagregory/locker/v2"
	"github.com/jagregory/locker/v2/internal/locktest"
)

// participant is one who wants a name: a lock of some kind, or a Mutex or an Election of etcd.
type participant struct {
	limit   int          // so many may hold while it does, 0 if it is shared
	held    <-chan error // gets the outcome of its wait
	release func() error // once it holds
	lock    *locker.Lock // nil if it is one of etcd's; set before held has its outcome
}

// joins starts the participant that a letter stands for, with a lease of its own.
func joins(ctx context.Context, t *testing.T, b locktest.Bundle, letter rune, name string) *participant {
	t.Helper()
	p, held := &participant{limit: 1}, make(chan error, 1)
	p.held = held
	var wait func() error
	locked := func(opts ...locker.LockOption) {
		c := locktest.NewClient(t, b.Etcd)
		wait = func() (err error) { p.lock, err = c.Lock(ctx, name, "", opts...); return err }
		p.release = func() error { return p.lock.Unlock(ctx) }
	}
	switch letter {
	case 'm':
		mutex := concurrency.NewMutex(locktest.ConcurrencySession(t, b.Etcd, 60), locker.DefaultPrefix+name)
		wait, p.release = func() error { return mutex.Lock(ctx) }, func() error { return mutex.Unlock(ctx) }
	case 'e':
		election := concurrency.NewElection(locktest.ConcurrencySession(t, b.Etcd, 60), locker.DefaultPrefix+name)
		wait, p.release = func() error { return election.Campaign(ctx, "elected") }, func() error { return election.Resign(ctx) }
	case 'h': // by hand, with a key that sorts behind those of shared locks; only at the head of a queue
		key := locker.DefaultPrefix + name + "/~~by hand"
		wait = func() error { _, err := b.Etcd.Put(ctx, key, ""); return err }
		p.release = func() error { _, err := b.Etcd.Delete(ctx, key); return err }
	case 'x':
		locked()
	case 's':
		p.limit = 0
		locked(locker.WithShared())
	case 'l':
		p.limit = 2
		locked(locker.WithLimit(2))
	case 'p':
		locked(locker.And(name+" too", ""))
	}
	go func() { held <- wait() }()
	return p
}

// together returns how many of those in a queue hold, by the rule.
func together(queue []*participant) (n int) {
	for ; n < len(queue); n++ {
		for _, ahead := range queue[:n] {
			if (ahead.limit == 0) != (queue[n].limit == 0) || ahead.limit != 0 && n >= min(ahead.limit, queue[n].limit) {
				return n
			}
		}
	}
	return n
}

// Each letter is one who joins the queue behind those before: a Mutex, an Election, an entry made by hand, or a lock
// that is exclusive, shared, limited to two, or a pair of names.
func TestInterop_MutexAndElectionExcludeLocksOfEveryKindInEveryOrder(t *testing.T) {
	t.Parallel()
	b := locktest.Setup(t)
	for _, order := range []string{
		"mss", "ssm", "sms", "mll", "llm", "lml", "mpm", "pmp",
		"ess", "sse", "ses", "ell", "lle", "lel", "epe", "pep",
		"hsl", "hls", "hxs", "xmsel", "slmep", "pemls", "lssmlle", "smmspl",
	} {
		t.Run(order, func(t *testing.T) {
			t.Parallel()
			ctx, name := locktest.Within(t), "of "+order
			var queue []*participant
			for i, letter := range order {
				queue = append(queue, joins(ctx, t, b, letter, name))
				b.Queued(t, name, i+1)
			}
			for granted := 0; len(queue) > 0; {
				n := together(queue)
				for ; granted < n; granted++ {
					if err := locktest.Receive(t, queue[granted].held); err != nil {
						t.Fatal(err)
					}
				}
				for i, behind := range queue[n:] {
					if len(behind.held) > 0 {
						t.Fatalf("%d hold, and so does the one %d behind them", n, i+1)
					}
				}
				leaves := n - 1 - len(queue)%n // not always the oldest
				if err := queue[leaves].release(); err != nil {
					t.Fatal(err)
				}
				queue = append(queue[:leaves:leaves], queue[leaves+1:]...)
				granted--
			}
			b.Queued(t, name, 0)
		})
	}
}

func TestInterop_ALockOfTwoNamesExcludesAMutexOfEither(t *testing.T) {
	t.Parallel()
	b, ctx := locktest.Setup(t), locktest.Within(t)
	first := concurrency.NewMutex(locktest.ConcurrencySession(t, b.Etcd, 60), locker.DefaultPrefix+"a")
	second := concurrency.NewMutex(locktest.ConcurrencySession(t, b.Etcd, 60), locker.DefaultPrefix+"b")
	c, pair := b.Client(t), locker.And("b", "")
	l := locktest.Lock(t, c, "a", "", pair)
	for _, mutex := range []*concurrency.Mutex{first, second} {
		if err := mutex.TryLock(ctx); !errors.Is(err, concurrency.ErrLocked) {
			t.Errorf("TryLock of a mutex: %v", err)
		}
	}
	waiting := []<-chan error{locktest.Async(func() error { return first.Lock(ctx) }), locktest.Async(func() error { return second.Lock(ctx) })}
	b.Queued(t, "a", 2)
	b.Queued(t, "b", 2)
	locktest.Unlock(t, l)
	for _, held := range waiting {
		if err := locktest.Receive(t, held); err != nil {
			t.Fatal(err)
		}
	}
	for _, mutex := range []*concurrency.Mutex{first, second} { // whichever is left, both names are needed
		_, err := c.TryLock(ctx, "a", "", pair)
		locktest.Want(t, err, locker.ErrLocked)
		if mutex == second {
			break
		}
		if err := mutex.Unlock(ctx); err != nil {
			t.Fatal(err)
		}
	}
	waiter := locktest.LockAsync(ctx, c, "a", "", pair)
	b.Queued(t, "a", 1)
	b.Queued(t, "b", 2)
	if len(waiter) > 0 {
		t.Fatal("it did not wait for the second mutex")
	}
	if err := second.Unlock(ctx); err != nil {
		t.Fatal(err)
	}
	locktest.Unlock(t, locktest.LockOf(t, waiter))
	b.WantNoEntries(t)
}

func TestInterop_TryLockIsRefusedBesideOtherKinds(t *testing.T) {
	t.Parallel()
	b, ctx := locktest.Setup(t), locktest.Within(t)
	exclusive, shared, limited := locker.WithLimit(1), locker.WithShared(), locker.WithLimit(2)
	for i, test := range []struct {
		holder  rune
		refused []locker.LockOption
	}{
		{'s', []locker.LockOption{exclusive, limited}},
		{'l', []locker.LockOption{exclusive, shared}},
		{'p', []locker.LockOption{exclusive, shared, limited}},
		{'m', []locker.LockOption{exclusive, shared, limited}},
		{'e', []locker.LockOption{exclusive, shared, limited}},
	} {
		name := fmt.Sprint(i)
		holder := joins(ctx, t, b, test.holder, name)
		if err := locktest.Receive(t, holder.held); err != nil {
			t.Fatal(err)
		}
		c := b.Client(t)
		present := locktest.Get(t, c, name)
		for _, opt := range append(test.refused, locker.And("free", "")) {
			_, err := c.TryLock(ctx, name, "", opt)
			var locked *locker.LockedError
			if !errors.As(err, &locked) || locked.Holder != present {
				t.Errorf("beside %c: %v, want it locked by %+v", test.holder, err, present)
			}
		}
		mutex := concurrency.NewMutex(locktest.ConcurrencySession(t, b.Etcd, 60), locker.DefaultPrefix+name)
		if err := mutex.TryLock(ctx); !errors.Is(err, concurrency.ErrLocked) {
			t.Errorf("beside %c, TryLock of a mutex: %v", test.holder, err)
		}
		b.Queued(t, name, 1)
		if err := holder.release(); err != nil {
			t.Error(err)
		}
	}
}
