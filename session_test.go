package locker_test

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/grpc/status"

	"github.com/jagregory/locker/v2"
	"github.com/jagregory/locker/v2/embedtest"
	"github.com/jagregory/locker/v2/internal/locktest"
)

func TestHold_ThatAnOperatorEndsIsLostWithinARenewalIntervalAndTheNextHolds(t *testing.T) {
	t.Parallel()
	const ttl = 24 * time.Second // renewed every eight seconds
	for name, test := range map[string]struct {
		reason locker.Reason
		end    func(ctx context.Context, etcd *clientv3.Client, key string, lease clientv3.LeaseID) error
	}{
		"entry deleted": {locker.Deleted, func(ctx context.Context, etcd *clientv3.Client, key string, _ clientv3.LeaseID) error {
			_, err := etcd.Delete(ctx, key)
			return err
		}},
		"lease revoked": {locker.Revoked, func(ctx context.Context, etcd *clientv3.Client, _ string, lease clientv3.LeaseID) error {
			_, err := etcd.Revoke(ctx, lease)
			return err
		}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := locktest.Setup(t)
			holder := b.Client(t, locker.WithTTL(ttl))
			l := locktest.Lock(t, holder, "a", "")
			other := locktest.Lock(t, holder, "other", "") // on the same lease
			waiting := locktest.LockAsync(locktest.Within(t), b.Client(t), "a", "")
			b.Queued(t, "a", 2)
			if err := test.end(locktest.Within(t), b.Etcd, l.Key(), holderLease(t, holder, l)); err != nil {
				t.Fatal(err)
			}
			ended := time.Now()
			next := locktest.Receive(t, waiting)
			if next.Err != nil {
				t.Fatal(next.Err)
			}
			locktest.Lost(t, l, test.reason)
			if took := time.Since(ended); took > ttl*2/3 {
				t.Errorf("it took %v to notice", took)
			}
			if err := l.Unlock(locktest.Within(t)); !errors.Is(err, locker.ErrLost) {
				t.Errorf("Unlock returned %v", err)
			}
			if holder := holderLease(t, holder, next.Lock); holder == 0 {
				t.Error("the next hold has no lease")
			}
			if test.reason == locker.Revoked {
				locktest.Lost(t, other, test.reason)
			} else if locktest.Renewed(t, other); other.Err() != nil {
				t.Errorf("another lock: %v", other.Err())
			}
		})
	}
}

func TestSession_ThatIsLostEndsItsWaitersAtOnce(t *testing.T) {
	t.Parallel()
	revoke := func(t *testing.T, b locktest.Bundle, _ *embedtest.Proxy, lease clientv3.LeaseID) {
		b.Server.ExpireLease(t, lease)
	}
	cut := func(_ *testing.T, _ locktest.Bundle, proxy *embedtest.Proxy, _ clientv3.LeaseID) { proxy.Cut() }
	for name, test := range map[string]struct {
		own   bool // a session of its own, and not a shared one
		fault func(*testing.T, locktest.Bundle, *embedtest.Proxy, clientv3.LeaseID)
	}{
		"own session revoked":    {true, revoke},
		"own session cut off":    {true, cut},
		"shared session revoked": {false, revoke},
		"shared session cut off": {false, cut},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := locktest.Setup(t)
			holder := locktest.Lock(t, b.Client(t), "a", "")
			proxy := b.Server.Proxy(t)
			c := locktest.NewClient(t, proxy.Client(t), locker.WithTTL(locktest.Brief))
			var opts []locker.LockOption
			if test.own {
				opts = append(opts, locker.WithSession(locktest.NewSession(t, c)))
			}
			waiting := locktest.LockAsync(locktest.Within(t), c, "a", "", opts...)
			b.Queued(t, "a", 2)
			var lease clientv3.LeaseID
			for id := range b.Leases(t) {
				if id != holderLease(t, b.Client(t), holder) {
					lease = id
				}
			}
			test.fault(t, b, proxy, lease)
			// The cut is not healed, so the session is lost at its deadline.
			if result := locktest.Receive(t, waiting); result.Lock != nil || !errors.Is(result.Err, locker.ErrLost) {
				t.Errorf("Lock returned a lock: %v, and %v", result.Lock != nil, result.Err)
			}
			if err := holder.Err(); err != nil {
				t.Errorf("the holder: %v", err)
			}
			b.Queued(t, "a", 1)
		})
	}
}

func TestSession_ThatIsLostIsNeverRevivedAndTheNextLockGetsAnother(t *testing.T) {
	t.Parallel()
	b := locktest.Setup(t)
	proxy := b.Server.Proxy(t)
	c := locktest.NewClient(t, proxy.Client(t), locker.WithTTL(locktest.Brief))
	own := locktest.NewSession(t, c)
	held, shared := locktest.Lock(t, c, "own", "", locker.WithSession(own)), locktest.Lock(t, c, "shared", "")
	before := b.Leases(t)
	if !before[own.Lease()] || len(before) != 2 {
		t.Errorf("session %x has none of the leases %v", own.Lease(), before)
	}
	proxy.Cut()
	locktest.Lost(t, held, locker.Expired)
	locktest.Lost(t, shared, locker.Expired)
	proxy.Heal() // perhaps before etcd has deleted anything

	var loss *locker.LostError
	locktest.Receive(t, own.Context().Done())
	if cause := context.Cause(own.Context()); !errors.As(cause, &loss) || loss.Reason != locker.Expired || loss.Name != "" {
		t.Errorf("the session ended with %v", cause)
	}
	if l, err := c.Lock(locktest.Within(t), "new", "", locker.WithSession(own)); l != nil || !errors.Is(err, locker.ErrLost) {
		t.Errorf("Lock on it returned a lock: %v, and %v", l != nil, err)
	}
	after := locktest.Lock(t, c, "shared", "")
	if lease := holderLease(t, c, after); before[lease] {
		t.Errorf("lease %x is back", lease)
	}
	locktest.Renewed(t, after)
	locktest.Eventually(t, "the leases that were lost are gone", func() bool {
		for lease := range b.Leases(t) {
			if before[lease] {
				return false
			}
		}
		return true
	})
	for _, l := range []*locker.Lock{held, shared} {
		if err := l.Err(); !errors.Is(err, locker.ErrLost) {
			t.Errorf("a lock that was lost reports %v", err)
		}
	}
	if err := own.Close(); err != nil {
		t.Errorf("Close of a lost session returned %v", err)
	}
}

func TestLock_WhoseNewSharedSessionIsLostGetsAnother(t *testing.T) {
	t.Parallel()
	b := locktest.Setup(t)
	var first sync.Once
	c := locktest.NewClient(t, b.Server.ClientWith(t, func(_ context.Context, method string, _ any, call func() error) error {
		if method == "/etcdserverpb.KV/Txn" { // the first is the session's record
			first.Do(func() {
				for lease := range b.Leases(t) {
					b.Server.ExpireLease(t, lease)
				}
			})
		}
		return call()
	}))
	l := locktest.Lock(t, c, "a", "")
	if err := l.Unlock(locktest.Within(t)); err != nil {
		t.Error(err)
	}
}

func TestLine_TheNextGoroutineHoldsAfterALoss(t *testing.T) {
	t.Parallel()
	b := locktest.Setup(t)
	c := b.Client(t, locker.WithTTL(locktest.Brief))
	first := locktest.Lock(t, c, "a", "")
	second, third := locktest.LockAsync(locktest.Within(t), c, "a", ""), locktest.LockAsync(locktest.Within(t), c, "a", "")
	for before := first; ; {
		b.Server.ExpireLease(t, holderLease(t, c, before))
		locktest.Lost(t, before, locker.Revoked)
		var next locktest.Outcome
		select {
		case next = <-second:
		case next = <-third:
		case <-time.After(locktest.Timeout):
			t.Fatal("no waiter was served")
		}
		if next.Err != nil {
			t.Fatal(next.Err)
		}
		if next.Lock.Token() <= before.Token() {
			t.Errorf("token %d after %d", next.Lock.Token(), before.Token())
		}
		if before != first {
			break
		}
		before = next.Lock
	}
}

func TestClose_IsBoundedByTheTTLWhileEtcdIsUnreachable(t *testing.T) {
	t.Parallel()
	const ttl = locktest.Brief
	for name, fault := range map[string]func(*embedtest.Proxy){
		"cut":    func(p *embedtest.Proxy) { p.Cut() },
		"frozen": func(p *embedtest.Proxy) { p.Freeze() },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := locktest.Setup(t)
			proxy := b.Server.Proxy(t)
			c := locktest.NewClient(t, proxy.Client(t), locker.WithTTL(ttl))
			own := locktest.NewSession(t, c)
			held, shared := locktest.Lock(t, c, "own", "", locker.WithSession(own)), locktest.Lock(t, c, "shared", "")
			blocked := locktest.Lock(t, b.Client(t), "blocked", "")
			waiting := locktest.LockAsync(locktest.Within(t), c, "blocked", "")
			b.Queued(t, "blocked", 2)
			fault(proxy)
			opening := locktest.LockAsync(locktest.Within(t), c, "late", "")

			inTime := func(what string, end func() error) {
				began := time.Now()
				err := end()
				took := time.Since(began)
				if took > ttl+locktest.Prompt { // the second is for a busy machine: the bound itself is tested in simulated time
					t.Errorf("%s took %v", what, took)
				}
				if !errors.Is(err, context.DeadlineExceeded) {
					t.Errorf("%s returned %v after %v", what, err, took)
				}
			}
			inTime("Close of the session", own.Close)
			inTime("Close", c.Close)
			for _, l := range []*locker.Lock{held, shared} {
				locktest.Receive(t, l.Context().Done())
			}
			if err := held.Err(); !errors.Is(err, locker.ErrClosed) {
				t.Errorf("the hold of the session ended with %v", err)
			}
			for _, call := range []<-chan locktest.Outcome{waiting, opening} {
				if result := locktest.Receive(t, call); result.Lock != nil || !errors.Is(result.Err, locker.ErrClosed) && !errors.Is(result.Err, locker.ErrLost) {
					t.Errorf("Lock returned a lock: %v, and %v", result.Lock != nil, result.Err)
				}
			}
			b.Queued(t, "own", 0)
			b.Queued(t, "shared", 0)
			b.Queued(t, "late", 0)
			b.Queued(t, "blocked", 1)
			if err := blocked.Err(); err != nil {
				t.Error(err)
			}
		})
	}
}

func TestSession_ThatEndsWhileItsLocksAreTakenHangsNobody(t *testing.T) {
	t.Parallel()
	const held, taken, rounds = 50, 100, 10
	b := locktest.Setup(t)
	c := b.Client(t)
	for round := range rounds {
		s := locktest.NewSession(t, c)
		lockAll := func(what string, n int) <-chan locktest.Outcome {
			results := make(chan locktest.Outcome, n)
			for i := range n {
				go func() {
					l, err := c.Lock(locktest.Within(t), what+strconv.Itoa(i), "", locker.WithSession(s))
					results <- locktest.Outcome{Lock: l, Err: err}
				}()
			}
			return results
		}
		before := lockAll("held", held)
		for range held {
			if err := locktest.Receive(t, before).Err; err != nil {
				t.Fatal(err)
			}
		}
		during, closed := lockAll("taken", taken), make(chan error, 1)
		for i := range taken {
			if i == round*taken/rounds {
				go func() { closed <- s.Close() }()
			}
			// It may have been in time, but then its hold ends soon.
			if r := locktest.Receive(t, during); r.Err == nil {
				defer func() { locktest.Receive(t, r.Lock.Context().Done()) }()
			} else if !errors.Is(r.Err, locker.ErrClosed) {
				t.Errorf("Lock returned %v", r.Err)
			}
		}
		if err := locktest.Receive(t, closed); err != nil {
			t.Errorf("Close returned %v", err)
		}
	}
	locktest.Eventually(t, "nothing is left", func() bool { return len(b.Keys(t, locker.DefaultPrefix)) == 0 })
}

func TestSession_AllItsHoldsEndBeforeEtcdDeletesAnyOfTheirEntries(t *testing.T) {
	t.Parallel()
	const n = 100
	for name, end := range map[string]func(*testing.T, *embedtest.Proxy, *locker.Session){
		"closed": func(t *testing.T, _ *embedtest.Proxy, s *locker.Session) {
			if err := s.Close(); err != nil {
				t.Error(err)
			}
		},
		// Once the session is lost, its revocation still reaches etcd.
		"lost": func(t *testing.T, proxy *embedtest.Proxy, s *locker.Session) {
			proxy.DropReplies()
			locktest.Receive(t, s.Context().Done())
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := locktest.Setup(t)
			proxy := b.Server.Proxy(t)
			c := locktest.NewClient(t, proxy.Client(t), locker.WithTTL(locktest.Brief))
			s := locktest.NewSession(t, c)
			var results []<-chan locktest.Outcome
			for i := range n {
				results = append(results, locktest.LockAsync(locktest.Within(t), c, "a"+strconv.Itoa(i), "", locker.WithSession(s)))
			}
			locks := make(map[string]*locker.Lock)
			var newest int64
			for _, result := range results {
				r := locktest.Receive(t, result)
				if r.Err != nil {
					t.Fatal(r.Err)
				}
				locks[r.Lock.Key()] = r.Lock
				newest = max(newest, r.Lock.Token())
				for range 200 { // contexts derived from that of a hold end with it, which takes time
					_, cancel := context.WithCancel(r.Lock.Context())
					defer cancel()
				}
			}
			deletions := b.Etcd.Watch(locktest.Within(t), locker.DefaultPrefix, clientv3.WithPrefix(), clientv3.WithRev(newest+1), clientv3.WithFilterPut())
			end(t, proxy, s)
			held := 0
			for deleted := 0; deleted < n; {
				for _, ev := range locktest.Receive(t, deletions).Events {
					if l := locks[string(ev.Kv.Key)]; l != nil {
						deleted++
						if l.Context().Err() == nil {
							held++
						}
					}
				}
			}
			proxy.Heal()
			if held > 0 {
				t.Errorf("%d of %d were held when their entries were deleted", held, n)
			}
		})
	}
}

func TestAdoptSession_CloseLeavesNoEntryAndKeepsTheLease(t *testing.T) {
	t.Parallel()
	b := locktest.Setup(t)
	original := locktest.ConcurrencySession(t, b.Server.Client(t), 60)
	c := b.Client(t)
	for range 20 {
		s, err := c.AdoptSession(original)
		if err != nil {
			t.Fatal(err)
		}
		var locks sync.WaitGroup
		for i := range 20 {
			locks.Go(func() {
				if _, err := c.Lock(locktest.Within(t), "a"+strconv.Itoa(i), "", locker.WithSession(s)); err != nil {
					t.Error(err)
				}
			})
		}
		locks.Wait()
		if err := s.Close(); err != nil {
			t.Error(err)
		}
		if left := b.Keys(t, locker.DefaultPrefix); len(left) != 0 {
			t.Fatalf("it left %v", left)
		}
	}
	if !b.Leases(t)[original.Lease()] {
		t.Error("the lease is gone")
	}
}

func TestSession_TheLossOfAnOwnOneCostsOthersNothing(t *testing.T) {
	t.Parallel()
	b, ctx := locktest.Setup(t), locktest.Within(t)
	c := b.Client(t, locker.WithTTL(locktest.Brief))
	first, second := locktest.NewSession(t, c), locktest.NewSession(t, c)
	doomed := locktest.Lock(t, c, "first", "v", locker.WithSession(first))
	also := locktest.Lock(t, c, "also first", "v", locker.WithSession(first))
	others := []*locker.Lock{locktest.Lock(t, c, "second", "v", locker.WithSession(second)), locktest.Lock(t, c, "shared", "v")}
	if b.HolderOf(t, doomed).Lease != first.Lease() || b.HolderOf(t, others[0]).Lease != second.Lease() || first.Lease() == second.Lease() {
		t.Error("the entries are not on the leases of their sessions")
	}
	b.Server.ExpireLease(t, first.Lease())
	locktest.Receive(t, first.Context().Done())
	var lost *locker.LostError
	if !errors.As(context.Cause(first.Context()), &lost) || lost.Name != "" || lost.Reason != locker.Revoked {
		t.Errorf("the cause of the session: %v", context.Cause(first.Context()))
	}
	locktest.WantLost(t, doomed.Err(), doomed, locker.Revoked)
	locktest.WantLost(t, also.Err(), also, locker.Revoked)
	for _, l := range others {
		if err := l.SetValue(ctx, "still held"); err != nil || l.Err() != nil {
			t.Errorf("%s: %v, %v", l.Name(), err, l.Err())
		}
	}
	_, err := c.Lock(ctx, "first", "v", locker.WithSession(first))
	locktest.Want(t, err, locker.ErrLost)
	locktest.Lock(t, c, "first", "v", locker.WithSession(second))
	if err := first.Close(); err != nil {
		t.Errorf("Close of a lost session: %v", err)
	}
}

func TestSession_ASharedOneThatIsLostIsReplaced(t *testing.T) {
	t.Parallel()
	b := locktest.Setup(t)
	c := b.Client(t)
	first := locktest.Lock(t, c, "a", "v")
	b.Server.ExpireLease(t, b.HolderOf(t, first).Lease)
	second := locktest.Lock(t, c, "b", "v") // the first to learn of it
	locktest.WantLost(t, first.Err(), first, locker.Revoked)
	locktest.Unlock(t, locktest.Lock(t, c, "a", "v"))
	locktest.Unlock(t, second)
}

func TestSession_HasATTLOfItsOwn(t *testing.T) {
	t.Parallel()
	b := locktest.Setup(t)
	c := b.Client(t, locker.WithTTL(time.Minute), locker.WithSafetyMargin(20*time.Second))
	for want, opts := range map[int64][]locker.SessionOption{60: nil, 7: {locker.WithSessionTTL(6100 * time.Millisecond)}} {
		s := locktest.NewSession(t, c, opts...)
		lease, err := b.Etcd.TimeToLive(locktest.Within(t), s.Lease())
		if err != nil || lease.GrantedTTL != want {
			t.Errorf("%v, granted %d s, want %d", err, lease.GrantedTTL, want)
		}
		before := time.Now()
		l := locktest.Lock(t, c, fmt.Sprint(want), "v", locker.WithSession(s))
		if longest := before.Add(time.Duration(want) * time.Second / 2); want == 7 && l.Deadline().After(longest) {
			t.Errorf("the margin of a short session is less than half its TTL: until %v, want %v", l.Deadline(), longest)
		}
	}
}

func TestSession_CloseEndsItsHoldsAndNoOthers(t *testing.T) {
	t.Parallel()
	b, ctx := locktest.Setup(t), locktest.Within(t)
	var revoked atomic.Int64
	c := locktest.NewClient(t, b.Server.ClientWith(t, func(_ context.Context, method string, _ any, call func() error) error {
		err := call()
		if method == "/etcdserverpb.Lease/LeaseRevoke" {
			revoked.Add(1)
		}
		return err
	}))
	s := locktest.NewSession(t, c)
	l, kept := locktest.Lock(t, c, "a", "v", locker.WithSession(s)), locktest.Lock(t, c, "kept", "v")
	foreign := locktest.Lock(t, b.Client(t), "foreign", "v")
	local := locktest.LockAsync(ctx, c, "kept", "v", locker.WithSession(s))
	locktest.Eventually(t, "it is in line", func() bool { return locker.Waiting(c, "kept") == 1 })
	remote := locktest.LockAsync(ctx, c, "foreign", "v", locker.WithSession(s))
	b.Queued(t, "foreign", 2)
	for range 2 {
		if err := s.Close(); err != nil || revoked.Load() != 1 {
			t.Errorf("%v, %d revocations", err, revoked.Load())
		}
	}
	for what, waiter := range map[string]<-chan locktest.Outcome{"local": local, "remote": remote} {
		if got := locktest.Receive(t, waiter); !errors.Is(got.Err, locker.ErrClosed) {
			t.Errorf("the %s waiter: %v", what, got.Err)
		}
	}
	locktest.Want(t, context.Cause(s.Context()), locker.ErrClosed)
	locktest.Want(t, context.Cause(l.Context()), locker.ErrClosed)
	locktest.Want(t, l.Unlock(ctx), locker.ErrClosed)
	if kept.Err() != nil || foreign.Err() != nil {
		t.Errorf("others were disturbed: %v, %v", kept.Err(), foreign.Err())
	}
	if lease, err := b.Etcd.TimeToLive(ctx, s.Lease()); err != nil || lease.TTL != -1 {
		t.Errorf("the lease is left: %v, TTL %d", err, lease.TTL)
	}
	b.Queued(t, "a", 0)
	b.Queued(t, "foreign", 1)
	_, err := c.TryLock(ctx, "b", "v", locker.WithSession(s))
	locktest.Want(t, err, locker.ErrClosed)
	locktest.Lock(t, c, "a", "next")
}

func TestNewSession_ReturnsNoSessionWithAnError(t *testing.T) {
	t.Parallel()
	b, enough := locktest.Setup(t), errors.New("enough")
	c := b.Client(t)
	if err := c.Close(); err != nil {
		t.Fatal(err)
	}
	s, err := c.NewSession(locktest.Within(t))
	locktest.Want(t, err, locker.ErrClosed)
	if s != nil {
		t.Error("NewSession returned a session and an error")
	}

	ctx, cancel := context.WithCancelCause(locktest.Within(t))
	etcd := b.Server.ClientWith(t, func(_ context.Context, method string, _ any, call func() error) error {
		err := call()
		if method == "/etcdserverpb.Lease/LeaseGrant" {
			cancel(enough)
		}
		return err
	})
	s, err = locktest.NewClient(t, etcd).NewSession(ctx)
	locktest.Want(t, err, enough)
	if s != nil {
		t.Error("NewSession returned a session and an error")
	}
	locktest.Eventually(t, "its lease is gone", func() bool { return len(b.Leases(t)) == 0 })
}

func TestGrant_CommittedAfterItsCallHasEndedLeavesNoLease(t *testing.T) {
	t.Parallel()
	b, enough := locktest.Setup(t), errors.New("enough")
	ctx, cancel := context.WithCancelCause(locktest.Within(t))
	leases := pb.NewLeaseClient(b.Etcd.ActiveConnection())
	var late atomic.Pointer[pb.LeaseGrantRequest]
	etcd := b.Server.ClientWith(t, func(ctx context.Context, _ string, req any, call func() error) error {
		switch req := req.(type) {
		case *pb.LeaseGrantRequest:
			cancel(enough)
			select {
			case <-ctx.Done(): // the client has given up, but the server has the request
				late.Store(req)
				return status.FromContextError(ctx.Err()).Err()
			case <-time.After(100 * time.Millisecond):
				return call()
			}
		case *pb.LeaseRevokeRequest:
			err := call()
			if grant := late.Swap(nil); grant != nil {
				if _, err := leases.LeaseGrant(locktest.Within(t), grant); err != nil {
					t.Error(err)
				}
			}
			return err
		}
		return call()
	})
	c := locktest.NewClient(t, etcd)
	_, err := c.Lock(ctx, "a", "v")
	locktest.Want(t, err, enough)
	if err := c.Close(); err != nil {
		t.Error(err)
	}
	if n := len(b.Leases(t)); n != 0 {
		t.Errorf("%d leases are left", n)
	}
}

func TestSession_AnOwnOneIsFullAtAThousandEntries(t *testing.T) {
	t.Parallel()
	b, ctx := locktest.Setup(t), locktest.Within(t)
	c := b.Client(t)
	s := locktest.NewSession(t, c)
	locks := fill(t, c, "", 1000, locker.WithSession(s))
	_, err := c.Lock(ctx, "one more", "v", locker.WithSession(s))
	locktest.Want(t, err, locker.ErrSessionFull)
	wantWrappedOnce(t, err)
	_, err = c.TryLock(ctx, "one more", "v", locker.WithSession(s))
	locktest.Want(t, err, locker.ErrSessionFull)
	locktest.Unlock(t, locks[500])
	locktest.Unlock(t, locktest.Lock(t, c, "one more", "v", locker.WithSession(s)))
	locktest.Unlock(t, locktest.Lock(t, c, "elsewhere", "v"))
}

func TestSession_SharedOnesOpenAsManyLeasesAsTheyNeedAndGiveThemBack(t *testing.T) {
	t.Parallel()
	b, ctx := locktest.Setup(t), locktest.Within(t)
	c := b.Client(t)
	locks := fill(t, c, "", 1000)
	if n := len(b.Leases(t)); n != 1 {
		t.Errorf("%d leases for 1000 locks", n)
	}
	locks = append(locks, fill(t, c, "more ", 5)...)
	if n := len(b.Leases(t)); n != 2 {
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
	locktest.Eventually(t, "one lease is left", func() bool { return len(b.Leases(t)) == 1 })
	locktest.Unlock(t, locktest.Lock(t, c, "a", "v"))
	if n := len(b.Leases(t)); n != 1 {
		t.Errorf("%d leases", n)
	}
}
