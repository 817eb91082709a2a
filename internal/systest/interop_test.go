package systest

import (
	"context"
	"errors"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/client/v3/concurrency"

	"github.com/jagregory/locker/v2"
	"github.com/jagregory/locker/v2/internal/locktest"
)

func TestInterop_AForeignEntryWithoutALeaseHolds(t *testing.T) {
	t.Parallel()
	b, ctx := locktest.Setup(t), locktest.Within(t)
	c := b.Client(t)
	const key = locker.DefaultPrefix + "a/by hand"
	resp, err := b.Etcd.Put(ctx, key, "foreign")
	if err != nil {
		t.Fatal(err)
	}
	foreign := locker.Holder{Name: "a", Value: "foreign", Token: resp.Header.Revision, Limit: 1}
	if holder := locktest.Get(t, c, "a"); holder != foreign {
		t.Errorf("%+v, want %+v", holder, foreign)
	}
	_, err = c.TryLock(ctx, "a", "v")
	var locked *locker.LockedError
	if !errors.As(err, &locked) || locked.Holder != foreign {
		t.Errorf("%v, want %+v", err, foreign)
	}
	waiter := locktest.LockAsync(ctx, c, "a", "v")
	b.Queued(t, "a", 2)
	if _, err := b.Etcd.Put(ctx, key, "changed"); err != nil { // it is the same entry
		t.Fatal(err)
	}
	if holder := locktest.Get(t, c, "a"); holder.Value != "changed" || holder.Token != foreign.Token || len(waiter) != 0 {
		t.Errorf("%+v, %d served", holder, len(waiter))
	}
	if _, err := b.Etcd.Delete(ctx, key); err != nil {
		t.Fatal(err)
	}
	if got := locktest.Receive(t, waiter); got.Err != nil {
		t.Error(got.Err)
	}
}

func TestInterop_AMutexOfEtcdAndALockExcludeEachOther(t *testing.T) {
	t.Parallel()
	b, ctx := locktest.Setup(t), locktest.Within(t)
	c, session := b.Client(t), locktest.ConcurrencySession(t, b.Etcd, 10)
	mutex := concurrency.NewMutex(session, locker.DefaultPrefix+"a")

	l := locktest.Lock(t, c, "a", "v")
	if err := mutex.TryLock(ctx); !errors.Is(err, concurrency.ErrLocked) {
		t.Fatalf("TryLock of the mutex beside a lock: %v", err)
	}
	locked := make(chan error, 1)
	go func() { locked <- mutex.Lock(ctx) }()
	b.Queued(t, "a", 2)
	waiter := locktest.LockAsync(ctx, c, "a", "after the mutex")
	other := locktest.LockAsync(ctx, b.Client(t), "a", "last")
	b.Queued(t, "a", 3)
	if len(locked) != 0 {
		t.Fatal("the mutex did not wait for the lock")
	}
	locktest.Unlock(t, l)
	if err := locktest.Receive(t, locked); err != nil {
		t.Fatal(err)
	}
	if holder := locktest.Get(t, c, "a"); holder.Lease != session.Lease() || holder.Value != "" {
		t.Errorf("holder %+v", holder)
	}
	var refused *locker.LockedError
	if _, err := b.Client(t).TryLock(ctx, "a", "v"); !errors.As(err, &refused) || refused.Holder.Lease != session.Lease() {
		t.Errorf("TryLock beside the mutex: %v", err)
	}
	b.Queued(t, "a", 3)
	if len(waiter)+len(other) != 0 {
		t.Fatal("a lock did not wait for the mutex")
	}
	if err := mutex.Unlock(ctx); err != nil {
		t.Fatal(err)
	}
	var first locktest.Outcome
	select { // either of the two may have entered the queue first
	case first = <-waiter:
		waiter = other
	case first = <-other:
	}
	if first.Err != nil || len(waiter) != 0 {
		t.Fatalf("want one lock after the mutex: %v, %d more", first.Err, len(waiter))
	}
	locktest.Unlock(t, first.Lock)
	if got := locktest.Receive(t, waiter); got.Err != nil {
		t.Error(got.Err)
	}
}

func TestInterop_AnElectionOfEtcdAndALockExcludeEachOther(t *testing.T) {
	t.Parallel()
	b, ctx := locktest.Setup(t), locktest.Within(t)
	c, session := b.Client(t), locktest.ConcurrencySession(t, b.Etcd, 10)
	election := concurrency.NewElection(session, locker.DefaultPrefix+"a")
	if _, err := election.Leader(ctx); !errors.Is(err, concurrency.ErrElectionNoLeader) {
		t.Fatal(err)
	}
	l := locktest.Lock(t, c, "a", "locker")
	leader, err := election.Leader(ctx)
	if err != nil || string(leader.Kvs[0].Value) != "locker" {
		t.Errorf("leader %v, %v", leader, err)
	}
	elected := make(chan error, 1)
	go func() { elected <- election.Campaign(ctx, "election") }()
	b.Queued(t, "a", 2)
	if len(elected) != 0 {
		t.Fatal("the election did not wait for the lock")
	}
	locktest.Unlock(t, l)
	if err := locktest.Receive(t, elected); err != nil {
		t.Fatal(err)
	}
	waiter := locktest.LockAsync(ctx, c, "a", "locker again")
	b.Queued(t, "a", 2)
	for _, value := range []string{"election", "proclaimed"} {
		if err := election.Proclaim(ctx, value); err != nil {
			t.Fatal(err)
		}
		if holder := locktest.Get(t, c, "a"); holder.Value != value || holder.Lease != session.Lease() || holder.Token != election.Rev() {
			t.Errorf("holder %+v", holder)
		}
	}
	if len(waiter) != 0 {
		t.Fatal("the lock did not wait for the election")
	}
	if err := election.Resign(ctx); err != nil {
		t.Fatal(err)
	}
	if got := locktest.Receive(t, waiter); got.Err != nil || locktest.Get(t, c, "a").Value != "locker again" {
		t.Error(got.Err)
	}
}

func TestInterop_AnObserverOfEtcdFollowsLocks(t *testing.T) {
	t.Parallel()
	b, ctx := locktest.Setup(t), locktest.Within(t)
	election := concurrency.NewElection(locktest.ConcurrencySession(t, b.Etcd, 10), locker.DefaultPrefix+"a")
	seen := election.Observe(ctx)
	wantSeen := func(value string) {
		t.Helper()
		resp := locktest.Receive(t, seen)
		if got := string(resp.Kvs[0].Value); got != value {
			t.Fatalf("observed %q, want %q", got, value)
		}
	}
	c := b.Client(t)
	l := locktest.Lock(t, c, "a", "first")
	wantSeen("first")
	if err := l.SetValue(ctx, "second"); err != nil {
		t.Fatal(err)
	}
	wantSeen("second")
	next := locktest.LockAsync(ctx, b.Client(t), "a", "third")
	b.Queued(t, "a", 2)
	locktest.Unlock(t, l)
	wantSeen("third")
	locktest.Unlock(t, locktest.Receive(t, next).Lock)
	locktest.Lock(t, c, "a", "fourth")
	wantSeen("fourth")
}

func TestAdoptSession_AMutexOfTheSameSessionIsExcludedToo(t *testing.T) {
	t.Parallel()
	b, ctx := locktest.Setup(t), locktest.Within(t)
	c, session := b.Client(t), locktest.ConcurrencySession(t, b.Etcd, 10)
	s, err := c.AdoptSession(session)
	if err != nil {
		t.Fatal(err)
	}
	mutex := concurrency.NewMutex(session, locker.DefaultPrefix+"a")
	l := locktest.Lock(t, c, "a", "v", locker.WithSession(s))
	if s.Lease() != session.Lease() || b.HolderOf(t, l).Lease != session.Lease() {
		t.Errorf("lease %x, want %x", s.Lease(), session.Lease())
	}
	if err := mutex.TryLock(ctx); !errors.Is(err, concurrency.ErrLocked) {
		t.Fatalf("TryLock of the mutex: %v", err)
	}
	locked := make(chan error, 1)
	go func() { locked <- mutex.Lock(ctx) }()
	b.Queued(t, "a", 2)
	if len(locked) != 0 {
		t.Fatal("the mutex did not wait")
	}
	locktest.Unlock(t, l)
	if err := locktest.Receive(t, locked); err != nil {
		t.Fatal(err)
	}
	_, err = c.TryLock(ctx, "a", "v", locker.WithSession(s))
	locktest.Want(t, err, locker.ErrLocked)
	waiter := locktest.LockAsync(ctx, c, "a", "v", locker.WithSession(s))
	b.Queued(t, "a", 2)
	if len(waiter) != 0 {
		t.Fatal("the lock did not wait")
	}
	if err := mutex.Unlock(ctx); err != nil {
		t.Fatal(err)
	}
	if got := locktest.Receive(t, waiter); got.Err != nil {
		t.Error(got.Err)
	}
}

func TestAdoptSession_CloseLeavesTheLease(t *testing.T) {
	t.Parallel()
	b, ctx := locktest.Setup(t), locktest.Within(t)
	for what, end := range map[string]func(*locker.Client, *locker.Session) error{
		"Session.Close": func(_ *locker.Client, s *locker.Session) error { return s.Close() },
		"Client.Close":  func(c *locker.Client, _ *locker.Session) error { return c.Close() },
	} {
		c, session := b.Client(t), locktest.ConcurrencySession(t, b.Etcd, 10)
		if _, err := b.Etcd.Put(ctx, "other", "v", clientv3.WithLease(session.Lease())); err != nil {
			t.Fatal(err)
		}
		s, err := c.AdoptSession(session)
		if err != nil {
			t.Fatal(err)
		}
		l := locktest.Lock(t, c, "a", "v", locker.WithSession(s))
		foreign := locktest.Lock(t, b.Client(t), "b", "v")
		waiter := locktest.LockAsync(ctx, c, "b", "v", locker.WithSession(s))
		b.Queued(t, "b", 2)
		if err := end(c, s); err != nil {
			t.Errorf("%s: %v", what, err)
		}
		locktest.Want(t, locktest.Receive(t, waiter).Err, locker.ErrClosed)
		locktest.Want(t, l.Err(), locker.ErrClosed)
		locktest.Want(t, context.Cause(s.Context()), locker.ErrClosed)
		lease, err := b.Etcd.TimeToLive(ctx, session.Lease(), clientv3.WithAttachedKeys())
		if err != nil || lease.TTL <= 0 || len(lease.Keys) != 1 || string(lease.Keys[0]) != "other" {
			t.Errorf("%s: %v, TTL %d, keys %q", what, err, lease.TTL, lease.Keys)
		}
		select {
		case <-session.Done():
			t.Errorf("%s: the adopted session has ended", what)
		default:
		}
		locktest.Unlock(t, foreign)
	}
}

func TestAdoptSession_EndsWithItsOrigin(t *testing.T) {
	t.Parallel()
	for what, end := range map[string]func(*concurrency.Session){
		"Close":  func(s *concurrency.Session) { _ = s.Close() },
		"Orphan": (*concurrency.Session).Orphan, // its lease lives on, its locks must not
	} {
		t.Run(what, func(t *testing.T) {
			t.Parallel()
			b, ctx := locktest.Setup(t), locktest.Within(t)
			c, session := b.Client(t), locktest.ConcurrencySession(t, b.Etcd, 60)
			s, err := c.AdoptSession(session)
			if err != nil {
				t.Fatal(err)
			}
			l := locktest.Lock(t, c, "a", "v", locker.WithSession(s))
			next := locktest.LockAsync(ctx, b.Client(t), "a", "next")
			b.Queued(t, "a", 2)
			end(session)
			locktest.Receive(t, l.Context().Done())
			locktest.WantLost(t, l.Err(), l, locker.Revoked)
			locktest.Want(t, context.Cause(s.Context()), locker.ErrLost)
			if got := locktest.Receive(t, next); got.Err != nil {
				t.Error(got.Err)
			}
			_, err = c.Lock(ctx, "b", "v", locker.WithSession(s))
			locktest.Want(t, err, locker.ErrLost)
			if err := s.Close(); err != nil {
				t.Error(err)
			}
		})
	}
}

func TestAdoptSession_RefusesASessionWhoseLeaseIsGone(t *testing.T) {
	t.Parallel()
	b := locktest.Setup(t)
	session := locktest.ConcurrencySession(t, b.Etcd, 60)
	session.Orphan() // otherwise it would notice
	b.Server.ExpireLease(t, session.Lease())
	s, err := b.Client(t, locker.WithTTL(5*time.Second)).AdoptSession(session)
	locktest.Want(t, err, locker.ErrLost)
	if s != nil {
		t.Error("AdoptSession returned a session and an error")
	}
}
