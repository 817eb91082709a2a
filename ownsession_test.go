package locker_test

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/grpc/status"

	"github.com/jagregory/locker/v2"
)

func TestAnOwnSessionHasAFateOfItsOwn(t *testing.T) {
	t.Parallel()
	b, ctx := setup(t), within(t)
	c := b.client(t, locker.WithTTL(brief))
	first, second := newSession(t, c), newSession(t, c)
	doomed := lock(t, c, "first", "v", locker.WithSession(first))
	also := lock(t, c, "also first", "v", locker.WithSession(first))
	others := []*locker.Lock{lock(t, c, "second", "v", locker.WithSession(second)), lock(t, c, "shared", "v")}
	if holderOf(t, b, doomed).Lease != first.Lease() || holderOf(t, b, others[0]).Lease != second.Lease() || first.Lease() == second.Lease() {
		t.Error("the entries are not on the leases of their sessions")
	}
	b.server.ExpireLease(t, first.Lease())
	receive(t, first.Context().Done())
	var lost *locker.LostError
	if !errors.As(context.Cause(first.Context()), &lost) || lost.Name != "" || lost.Reason != locker.Revoked {
		t.Errorf("the cause of the session: %v", context.Cause(first.Context()))
	}
	wantLost(t, doomed.Err(), doomed, locker.Revoked)
	wantLost(t, also.Err(), also, locker.Revoked)
	for _, l := range others {
		if err := l.SetValue(ctx, "still held"); err != nil || l.Err() != nil {
			t.Errorf("%s: %v, %v", l.Name(), err, l.Err())
		}
	}
	_, err := c.Lock(ctx, "first", "v", locker.WithSession(first))
	want(t, err, locker.ErrLost)
	lock(t, c, "first", "v", locker.WithSession(second))
	if err := first.Close(); err != nil {
		t.Errorf("Close of a lost session: %v", err)
	}
}

func TestALostSharedSessionIsReplaced(t *testing.T) {
	t.Parallel()
	b := setup(t)
	c := b.client(t)
	first := lock(t, c, "a", "v")
	b.server.ExpireLease(t, holderOf(t, b, first).Lease)
	second := lock(t, c, "b", "v") // the first to learn of it
	wantLost(t, first.Err(), first, locker.Revoked)
	unlock(t, lock(t, c, "a", "v"))
	unlock(t, second)
}

func TestASessionHasATTLOfItsOwn(t *testing.T) {
	t.Parallel()
	b := setup(t)
	c := b.client(t, locker.WithTTL(time.Minute), locker.WithSafetyMargin(20*time.Second))
	for want, opts := range map[int64][]locker.SessionOption{60: nil, 7: {locker.WithSessionTTL(6100 * time.Millisecond)}} {
		s := newSession(t, c, opts...)
		lease, err := b.etcd.TimeToLive(within(t), s.Lease())
		if err != nil || lease.GrantedTTL != want {
			t.Errorf("%v, granted %d s, want %d", err, lease.GrantedTTL, want)
		}
		before := time.Now()
		l := lock(t, c, fmt.Sprint(want), "v", locker.WithSession(s))
		if longest := before.Add(time.Duration(want) * time.Second / 2); want == 7 && l.Deadline().After(longest) {
			t.Errorf("the margin of a short session is less than half its TTL: until %v, want %v", l.Deadline(), longest)
		}
	}
}

func TestClosingASessionEndsItsHoldsAndNoOthers(t *testing.T) {
	t.Parallel()
	b, ctx := setup(t), within(t)
	var revoked atomic.Int64
	c := newClient(t, b.server.ClientWith(t, func(_ context.Context, method string, _ any, call func() error) error {
		err := call()
		if method == "/etcdserverpb.Lease/LeaseRevoke" {
			revoked.Add(1)
		}
		return err
	}))
	s := newSession(t, c)
	l, kept := lock(t, c, "a", "v", locker.WithSession(s)), lock(t, c, "kept", "v")
	foreign := lock(t, b.client(t), "foreign", "v")
	local := lockAsync(ctx, c, "kept", "v", locker.WithSession(s))
	eventually(t, "it is in line", func() bool { return c.Waiting("kept") == 1 })
	remote := lockAsync(ctx, c, "foreign", "v", locker.WithSession(s))
	b.queued(t, "foreign", 2)
	for range 2 {
		if err := s.Close(); err != nil || revoked.Load() != 1 {
			t.Errorf("%v, %d revocations", err, revoked.Load())
		}
	}
	for what, waiter := range map[string]<-chan outcome{"local": local, "remote": remote} {
		if got := receive(t, waiter); !errors.Is(got.err, locker.ErrClosed) {
			t.Errorf("the %s waiter: %v", what, got.err)
		}
	}
	want(t, context.Cause(s.Context()), locker.ErrClosed)
	want(t, context.Cause(l.Context()), locker.ErrClosed)
	want(t, l.Unlock(ctx), locker.ErrClosed)
	if kept.Err() != nil || foreign.Err() != nil {
		t.Errorf("others were disturbed: %v, %v", kept.Err(), foreign.Err())
	}
	if lease, err := b.etcd.TimeToLive(ctx, s.Lease()); err != nil || lease.TTL != -1 {
		t.Errorf("the lease is left: %v, TTL %d", err, lease.TTL)
	}
	b.queued(t, "a", 0)
	b.queued(t, "foreign", 1)
	_, err := c.TryLock(ctx, "b", "v", locker.WithSession(s))
	want(t, err, locker.ErrClosed)
	lock(t, c, "a", "next")
}

func TestASessionThatCannotBeOpenedIsNone(t *testing.T) {
	t.Parallel()
	b, enough := setup(t), errors.New("enough")
	c := b.client(t)
	if err := c.Close(); err != nil {
		t.Fatal(err)
	}
	s, err := c.NewSession(within(t))
	want(t, err, locker.ErrClosed)
	if s != nil {
		t.Error("a session with an error")
	}

	ctx, cancel := context.WithCancelCause(within(t))
	etcd := b.server.ClientWith(t, func(_ context.Context, method string, _ any, call func() error) error {
		err := call()
		if method == "/etcdserverpb.Lease/LeaseGrant" {
			cancel(enough)
		}
		return err
	})
	s, err = newClient(t, etcd).NewSession(ctx)
	want(t, err, enough)
	if s != nil {
		t.Error("a session with an error")
	}
	eventually(t, "its lease is gone", func() bool { return b.leases(t) == 0 })
}

func TestAGrantThatIsCommittedAfterItsCallHasEndedLeavesNoLease(t *testing.T) {
	t.Parallel()
	b, enough := setup(t), errors.New("enough")
	ctx, cancel := context.WithCancelCause(within(t))
	leases := pb.NewLeaseClient(b.etcd.ActiveConnection())
	var late atomic.Pointer[pb.LeaseGrantRequest]
	etcd := b.server.ClientWith(t, func(ctx context.Context, _ string, req any, call func() error) error {
		switch req := req.(type) {
		case *pb.LeaseGrantRequest:
			cancel(enough)
			select {
			case <-ctx.Done(): // the client has hung up, but the request is with the server
				late.Store(req)
				return status.FromContextError(ctx.Err()).Err()
			case <-time.After(100 * time.Millisecond):
				return call()
			}
		case *pb.LeaseRevokeRequest:
			err := call()
			if grant := late.Swap(nil); grant != nil {
				if _, err := leases.LeaseGrant(within(t), grant); err != nil {
					t.Error(err)
				}
			}
			return err
		}
		return call()
	})
	c := newClient(t, etcd)
	_, err := c.Lock(ctx, "a", "v")
	want(t, err, enough)
	if err := c.Close(); err != nil {
		t.Error(err)
	}
	if n := b.leases(t); n != 0 {
		t.Errorf("%d leases are left", n)
	}
}

// fill locks n names with the prefix, several at a time.
func fill(t *testing.T, c *locker.Client, prefix string, n int, opts ...locker.LockOption) []*locker.Lock {
	t.Helper()
	ctx := within(t)
	locks := make([]*locker.Lock, n)
	var wg sync.WaitGroup
	for worker := range 16 {
		wg.Go(func() {
			for i := worker; i < n; i += 16 {
				l, err := c.Lock(ctx, fmt.Sprint(prefix, i), "v", opts...)
				if err != nil {
					t.Errorf("lock %d: %v", i, err)
					return
				}
				locks[i] = l
			}
		})
	}
	wg.Wait()
	if t.Failed() {
		t.FailNow()
	}
	return locks
}

func TestAnOwnSessionIsFullAtAThousandEntries(t *testing.T) {
	t.Parallel()
	b, ctx := setup(t), within(t)
	c := b.client(t)
	s := newSession(t, c)
	locks := fill(t, c, "", 1000, locker.WithSession(s))
	_, err := c.Lock(ctx, "one more", "v", locker.WithSession(s))
	want(t, err, locker.ErrSessionFull)
	wantWrappedOnce(t, err)
	_, err = c.TryLock(ctx, "one more", "v", locker.WithSession(s))
	want(t, err, locker.ErrSessionFull)
	unlock(t, locks[500])
	unlock(t, lock(t, c, "one more", "v", locker.WithSession(s)))
	unlock(t, lock(t, c, "elsewhere", "v"))
}

func TestSharedSessionsOpenAsManyLeasesAsTheyNeedAndGiveThemBack(t *testing.T) {
	t.Parallel()
	b, ctx := setup(t), within(t)
	c := b.client(t)
	locks := fill(t, c, "", 1000)
	if n := b.leases(t); n != 1 {
		t.Errorf("%d leases for 1000 locks", n)
	}
	locks = append(locks, fill(t, c, "more ", 5)...)
	if n := b.leases(t); n != 2 {
		t.Errorf("%d leases for 1005 locks", n)
	}
	entries := make(map[clientv3.LeaseID]int)
	list, err := c.List(ctx, "")
	for _, holder := range list {
		entries[holder.Lease]++
	}
	if err != nil || len(list) != 1005 || len(entries) != 2 {
		t.Errorf("%v, %d holders on %d leases", err, len(list), len(entries))
	}
	var wg sync.WaitGroup
	for worker := range 16 {
		wg.Go(func() {
			for i := worker; i < len(locks); i += 16 {
				if err := locks[i].Unlock(ctx); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	eventually(t, "one lease is left", func() bool { return b.leases(t) == 1 })
	unlock(t, lock(t, c, "a", "v"))
	if n := b.leases(t); n != 1 {
		t.Errorf("%d leases", n)
	}
}
