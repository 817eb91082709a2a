package interop

import (
	"context"
	"errors"
	"strings"
	"testing"

	"go.etcd.io/etcd/client/v3/concurrency"

	"github.com/jagregory/locker/v2"
)

func TestAdoptSession_ExcludesItsMutexAndKeepsItsLease(t *testing.T) {
	everywhere(t, func(t *testing.T, b bundle) {
		ctx, c := testContext(t), b.client(t)
		session, err := concurrency.NewSession(connect(t, b.config(service)), concurrency.WithContext(context.WithoutCancel(ctx)), concurrency.WithTTL(10))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = session.Close() })
		s, err := c.AdoptSession(session)
		if err != nil {
			t.Fatal(err)
		}
		l := lock(t, c, "a", "", locker.WithSession(s))
		mutex := concurrency.NewMutex(session, b.prefix+"a")
		wantError(t, mutex.TryLock(ctx), concurrency.ErrLocked)
		unlock(t, l)
		if err := mutex.Lock(ctx); err != nil {
			t.Fatal(err)
		}
		_, err = c.TryLock(ctx, "a", "")
		wantError(t, err, locker.ErrLocked)
		if err := mutex.Unlock(ctx); err != nil {
			t.Error(err)
		}
		l = lock(t, c, "a", "", locker.WithSession(s))
		if err := s.Close(); err != nil {
			t.Error(err)
		}
		wantError(t, l.Err(), locker.ErrClosed)
		b.awaitEntries(t, "a", 0)
		if lease, err := b.etcd.TimeToLive(ctx, session.Lease()); err != nil || lease.TTL <= 0 {
			t.Errorf("lease of the adopted session: %+v, %v", lease, err)
		}
	})
}

func TestInterop_AnElectionOfEtcdAlternatesWithLocks(t *testing.T) {
	everywhere(t, func(t *testing.T, b bundle) {
		ctx, c := testContext(t), b.client(t)
		session, err := concurrency.NewSession(connect(t, b.config(service)), concurrency.WithContext(context.WithoutCancel(ctx)), concurrency.WithTTL(10))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = session.Close() })
		election := concurrency.NewElection(session, b.prefix+"a")
		if err := election.Campaign(ctx, "theirs"); err != nil {
			t.Fatal(err)
		}
		waiter := lockAsync(ctx, c, "a", "ours")
		b.awaitEntries(t, "a", 2)
		if holder, err := c.Get(ctx, "a"); err != nil || holder.Value != "theirs" || holder.Token != election.Rev() {
			t.Errorf("Get returned %+v, %v", holder, err)
		}
		if err := election.Resign(ctx); err != nil {
			t.Fatal(err)
		}
		l := awaitLock(t, waiter)
		leader, err := election.Leader(ctx)
		if err != nil || string(leader.Kvs[0].Value) != "ours" || !strings.HasPrefix(l.Key(), b.prefix) {
			t.Errorf("Leader returned %v, %v", leader, err)
		}
		unlock(t, l)
		if _, err := election.Leader(ctx); !errors.Is(err, concurrency.ErrElectionNoLeader) {
			t.Errorf("Leader after the release: %v", err)
		}
	})
}
