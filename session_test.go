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
	"go.etcd.io/etcd/client/v3/concurrency"
	"google.golang.org/grpc/status"

	"github.com/jagregory/locker/v2"
	"github.com/jagregory/locker/v2/embedtest"
)

// leaseOf returns the lease of a hold.
func leaseOf(t testing.TB, c *locker.Client, l *locker.Lock) clientv3.LeaseID {
	t.Helper()
	holder, err := c.Get(within(t), l.Name())
	if err != nil || holder.Token != l.Token() {
		t.Fatalf("held by %+v, %v, and not by token %d", holder, err, l.Token())
	}
	return holder.Lease
}

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
			b := setup(t)
			holder := b.Client(t, locker.WithTTL(ttl))
			l := lock(t, holder, "a", "")
			other := lock(t, holder, "other", "") // on the same lease
			waiting := lockAsync(within(t), b.Client(t), "a", "")
			b.Queued(t, "a", 2)
			if err := test.end(within(t), b.Etcd, l.Key(), leaseOf(t, holder, l)); err != nil {
				t.Fatal(err)
			}
			ended := time.Now()
			next := receive(t, waiting)
			if next.Err != nil {
				t.Fatal(next.Err)
			}
			lost(t, l, test.reason)
			if took := time.Since(ended); took > ttl*2/3 {
				t.Errorf("it took %v to notice", took)
			}
			if err := l.Unlock(within(t)); !errors.Is(err, locker.ErrLost) {
				t.Errorf("Unlock returned %v", err)
			}
			if holder := leaseOf(t, holder, next.Lock); holder == 0 {
				t.Error("the next hold has no lease")
			}
			if test.reason == locker.Revoked {
				lost(t, other, test.reason)
			} else if renewed(t, other); other.Err() != nil {
				t.Errorf("another lock: %v", other.Err())
			}
		})
	}
}

func TestSession_ThatIsLostEndsItsWaitersAtOnce(t *testing.T) {
	t.Parallel()
	revoke := func(t *testing.T, b bundle, _ *embedtest.Proxy, lease clientv3.LeaseID) {
		b.Server.ExpireLease(t, lease)
	}
	cut := func(_ *testing.T, _ bundle, proxy *embedtest.Proxy, _ clientv3.LeaseID) { proxy.Cut() }
	for name, test := range map[string]struct {
		own   bool // a session of its own, and not a shared one
		fault func(*testing.T, bundle, *embedtest.Proxy, clientv3.LeaseID)
	}{
		"own session revoked":    {true, revoke},
		"own session cut off":    {true, cut},
		"shared session revoked": {false, revoke},
		"shared session cut off": {false, cut},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := setup(t)
			holder := lock(t, b.Client(t), "a", "")
			proxy := b.Server.Proxy(t)
			c := newClient(t, proxy.Client(t), locker.WithTTL(brief))
			var opts []locker.LockOption
			if test.own {
				opts = append(opts, locker.WithSession(newSession(t, c)))
			}
			waiting := lockAsync(within(t), c, "a", "", opts...)
			b.Queued(t, "a", 2)
			var lease clientv3.LeaseID
			for id := range b.Leases(t) {
				if id != leaseOf(t, b.Client(t), holder) {
					lease = id
				}
			}
			test.fault(t, b, proxy, lease)
			// The cut is not healed: what it waits for is its deadline.
			if result := receive(t, waiting); result.Lock != nil || !errors.Is(result.Err, locker.ErrLost) {
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
	b := setup(t)
	proxy := b.Server.Proxy(t)
	c := newClient(t, proxy.Client(t), locker.WithTTL(brief))
	own := newSession(t, c)
	held, shared := lock(t, c, "own", "", locker.WithSession(own)), lock(t, c, "shared", "")
	before := b.Leases(t)
	if !before[own.Lease()] || len(before) != 2 {
		t.Errorf("session %x has none of the leases %v", own.Lease(), before)
	}
	proxy.Cut()
	lost(t, held, locker.Expired)
	lost(t, shared, locker.Expired)
	proxy.Heal() // perhaps before etcd has deleted anything

	var loss *locker.LostError
	receive(t, own.Context().Done())
	if cause := context.Cause(own.Context()); !errors.As(cause, &loss) || loss.Reason != locker.Expired || loss.Name != "" {
		t.Errorf("the session ended with %v", cause)
	}
	if l, err := c.Lock(within(t), "new", "", locker.WithSession(own)); l != nil || !errors.Is(err, locker.ErrLost) {
		t.Errorf("Lock on it returned a lock: %v, and %v", l != nil, err)
	}
	after := lock(t, c, "shared", "")
	if lease := leaseOf(t, c, after); before[lease] {
		t.Errorf("lease %x is back", lease)
	}
	renewed(t, after)
	eventually(t, "the leases that were lost are gone", func() bool {
		for lease := range b.Leases(t) {
			if before[lease] {
				return false
			}
		}
		return true
	})
	for _, l := range []*locker.Lock{held, shared} {
		if err := l.Err(); !errors.Is(err, locker.ErrLost) {
			t.Errorf("what was lost is %v", err)
		}
	}
	if err := own.Close(); err != nil {
		t.Errorf("Close of a lost session returned %v", err)
	}
}

func TestLock_WhoseNewSharedSessionIsLostGetsAnother(t *testing.T) {
	t.Parallel()
	b := setup(t)
	var first sync.Once
	c := newClient(t, b.Server.ClientWith(t, func(_ context.Context, method string, _ any, call func() error) error {
		if method == "/etcdserverpb.KV/Txn" { // the first is the session's record
			first.Do(func() {
				for lease := range b.Leases(t) {
					b.Server.ExpireLease(t, lease)
				}
			})
		}
		return call()
	}))
	l := lock(t, c, "a", "")
	if err := l.Unlock(within(t)); err != nil {
		t.Error(err)
	}
}

func TestLine_TheNextGoroutineHoldsAfterALoss(t *testing.T) {
	t.Parallel()
	b := setup(t)
	c := b.Client(t, locker.WithTTL(brief))
	first := lock(t, c, "a", "")
	second, third := lockAsync(within(t), c, "a", ""), lockAsync(within(t), c, "a", "")
	for before := first; ; {
		b.Server.ExpireLease(t, leaseOf(t, c, before))
		lost(t, before, locker.Revoked)
		var next outcome
		select {
		case next = <-second:
		case next = <-third:
		case <-time.After(patience):
			t.Fatal("nobody had a turn")
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
	const ttl = brief
	for name, fault := range map[string]func(*embedtest.Proxy){
		"cut":    func(p *embedtest.Proxy) { p.Cut() },
		"frozen": func(p *embedtest.Proxy) { p.Freeze() },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := setup(t)
			proxy := b.Server.Proxy(t)
			c := newClient(t, proxy.Client(t), locker.WithTTL(ttl))
			own := newSession(t, c)
			held, shared := lock(t, c, "own", "", locker.WithSession(own)), lock(t, c, "shared", "")
			blocked := lock(t, b.Client(t), "blocked", "")
			waiting := lockAsync(within(t), c, "blocked", "")
			b.Queued(t, "blocked", 2)
			fault(proxy)
			opening := lockAsync(within(t), c, "late", "")

			inTime := func(what string, end func() error) {
				began := time.Now()
				err := end()
				took := time.Since(began)
				if took > ttl+prompt { // the second is for the machine: the bound itself is shown in simulated time
					t.Errorf("%s took %v", what, took)
				}
				if !errors.Is(err, context.DeadlineExceeded) {
					t.Errorf("%s returned %v after %v", what, err, took)
				}
			}
			inTime("Close of the session", own.Close)
			inTime("Close", c.Close)
			for _, l := range []*locker.Lock{held, shared} {
				receive(t, l.Context().Done())
			}
			if err := held.Err(); !errors.Is(err, locker.ErrClosed) {
				t.Errorf("the hold of the session ended with %v", err)
			}
			for _, call := range []<-chan outcome{waiting, opening} {
				if result := receive(t, call); result.Lock != nil || !errors.Is(result.Err, locker.ErrClosed) && !errors.Is(result.Err, locker.ErrLost) {
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
	b := setup(t)
	c := b.Client(t)
	for round := range rounds {
		s := newSession(t, c)
		lockAll := func(what string, n int) <-chan outcome {
			results := make(chan outcome, n)
			for i := range n {
				go func() {
					l, err := c.Lock(within(t), what+strconv.Itoa(i), "", locker.WithSession(s))
					results <- outcome{Lock: l, Err: err}
				}()
			}
			return results
		}
		before := lockAll("held", held)
		for range held {
			if err := receive(t, before).Err; err != nil {
				t.Fatal(err)
			}
		}
		during, closed := lockAll("taken", taken), make(chan error, 1)
		for i := range taken {
			if i == round*taken/rounds {
				go func() { closed <- s.Close() }()
			}
			// It may have been in time, but is over soon.
			if r := receive(t, during); r.Err == nil {
				defer func() { receive(t, r.Lock.Context().Done()) }()
			} else if !errors.Is(r.Err, locker.ErrClosed) {
				t.Errorf("Lock returned %v", r.Err)
			}
		}
		if err := receive(t, closed); err != nil {
			t.Errorf("Close returned %v", err)
		}
	}
	eventually(t, "nothing is left", func() bool { return len(b.Keys(t, locker.DefaultPrefix)) == 0 })
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
		// Having lost the lease, the session gets its revocation through.
		"lost": func(t *testing.T, proxy *embedtest.Proxy, s *locker.Session) {
			proxy.DropReplies()
			receive(t, s.Context().Done())
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := setup(t)
			proxy := b.Server.Proxy(t)
			c := newClient(t, proxy.Client(t), locker.WithTTL(brief))
			s := newSession(t, c)
			var results []<-chan outcome
			for i := range n {
				results = append(results, lockAsync(within(t), c, "a"+strconv.Itoa(i), "", locker.WithSession(s)))
			}
			locks := make(map[string]*locker.Lock)
			var newest int64
			for _, result := range results {
				r := receive(t, result)
				if r.Err != nil {
					t.Fatal(r.Err)
				}
				locks[r.Lock.Key()] = r.Lock
				newest = max(newest, r.Lock.Token())
				for range 200 { // what a program derives from a hold ends with it, which takes time
					_, cancel := context.WithCancel(r.Lock.Context())
					defer cancel()
				}
			}
			deletions := b.Etcd.Watch(within(t), locker.DefaultPrefix, clientv3.WithPrefix(), clientv3.WithRev(newest+1), clientv3.WithFilterPut())
			end(t, proxy, s)
			held := 0
			for deleted := 0; deleted < n; {
				for _, ev := range receive(t, deletions).Events {
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
	b := setup(t)
	program := b.Server.Client(t)
	original, err := concurrency.NewSession(program, concurrency.WithTTL(60))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = original.Close() })
	c := b.Client(t)
	for range 20 {
		s, err := c.AdoptSession(original)
		if err != nil {
			t.Fatal(err)
		}
		var locks sync.WaitGroup
		for i := range 20 {
			locks.Go(func() {
				if _, err := c.Lock(within(t), "a"+strconv.Itoa(i), "", locker.WithSession(s)); err != nil {
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
	b, ctx := setup(t), within(t)
	c := b.Client(t, locker.WithTTL(brief))
	first, second := newSession(t, c), newSession(t, c)
	doomed := lock(t, c, "first", "v", locker.WithSession(first))
	also := lock(t, c, "also first", "v", locker.WithSession(first))
	others := []*locker.Lock{lock(t, c, "second", "v", locker.WithSession(second)), lock(t, c, "shared", "v")}
	if b.HolderOf(t, doomed).Lease != first.Lease() || b.HolderOf(t, others[0]).Lease != second.Lease() || first.Lease() == second.Lease() {
		t.Error("the entries are not on the leases of their sessions")
	}
	b.Server.ExpireLease(t, first.Lease())
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

func TestSession_ASharedOneThatIsLostIsReplaced(t *testing.T) {
	t.Parallel()
	b := setup(t)
	c := b.Client(t)
	first := lock(t, c, "a", "v")
	b.Server.ExpireLease(t, b.HolderOf(t, first).Lease)
	second := lock(t, c, "b", "v") // the first to learn of it
	wantLost(t, first.Err(), first, locker.Revoked)
	unlock(t, lock(t, c, "a", "v"))
	unlock(t, second)
}

func TestSession_HasATTLOfItsOwn(t *testing.T) {
	t.Parallel()
	b := setup(t)
	c := b.Client(t, locker.WithTTL(time.Minute), locker.WithSafetyMargin(20*time.Second))
	for want, opts := range map[int64][]locker.SessionOption{60: nil, 7: {locker.WithSessionTTL(6100 * time.Millisecond)}} {
		s := newSession(t, c, opts...)
		lease, err := b.Etcd.TimeToLive(within(t), s.Lease())
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

func TestSession_CloseEndsItsHoldsAndNoOthers(t *testing.T) {
	t.Parallel()
	b, ctx := setup(t), within(t)
	var revoked atomic.Int64
	c := newClient(t, b.Server.ClientWith(t, func(_ context.Context, method string, _ any, call func() error) error {
		err := call()
		if method == "/etcdserverpb.Lease/LeaseRevoke" {
			revoked.Add(1)
		}
		return err
	}))
	s := newSession(t, c)
	l, kept := lock(t, c, "a", "v", locker.WithSession(s)), lock(t, c, "kept", "v")
	foreign := lock(t, b.Client(t), "foreign", "v")
	local := lockAsync(ctx, c, "kept", "v", locker.WithSession(s))
	eventually(t, "it is in line", func() bool { return locker.Waiting(c, "kept") == 1 })
	remote := lockAsync(ctx, c, "foreign", "v", locker.WithSession(s))
	b.Queued(t, "foreign", 2)
	for range 2 {
		if err := s.Close(); err != nil || revoked.Load() != 1 {
			t.Errorf("%v, %d revocations", err, revoked.Load())
		}
	}
	for what, waiter := range map[string]<-chan outcome{"local": local, "remote": remote} {
		if got := receive(t, waiter); !errors.Is(got.Err, locker.ErrClosed) {
			t.Errorf("the %s waiter: %v", what, got.Err)
		}
	}
	want(t, context.Cause(s.Context()), locker.ErrClosed)
	want(t, context.Cause(l.Context()), locker.ErrClosed)
	want(t, l.Unlock(ctx), locker.ErrClosed)
	if kept.Err() != nil || foreign.Err() != nil {
		t.Errorf("others were disturbed: %v, %v", kept.Err(), foreign.Err())
	}
	if lease, err := b.Etcd.TimeToLive(ctx, s.Lease()); err != nil || lease.TTL != -1 {
		t.Errorf("the lease is left: %v, TTL %d", err, lease.TTL)
	}
	b.Queued(t, "a", 0)
	b.Queued(t, "foreign", 1)
	_, err := c.TryLock(ctx, "b", "v", locker.WithSession(s))
	want(t, err, locker.ErrClosed)
	lock(t, c, "a", "next")
}

func TestNewSession_ReturnsNoSessionWithAnError(t *testing.T) {
	t.Parallel()
	b, enough := setup(t), errors.New("enough")
	c := b.Client(t)
	if err := c.Close(); err != nil {
		t.Fatal(err)
	}
	s, err := c.NewSession(within(t))
	want(t, err, locker.ErrClosed)
	if s != nil {
		t.Error("a session with an error")
	}

	ctx, cancel := context.WithCancelCause(within(t))
	etcd := b.Server.ClientWith(t, func(_ context.Context, method string, _ any, call func() error) error {
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

func TestGrant_CommittedAfterItsCallHasEndedLeavesNoLease(t *testing.T) {
	t.Parallel()
	b, enough := setup(t), errors.New("enough")
	ctx, cancel := context.WithCancelCause(within(t))
	leases := pb.NewLeaseClient(b.Etcd.ActiveConnection())
	var late atomic.Pointer[pb.LeaseGrantRequest]
	etcd := b.Server.ClientWith(t, func(ctx context.Context, _ string, req any, call func() error) error {
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

func TestSession_AnOwnOneIsFullAtAThousandEntries(t *testing.T) {
	t.Parallel()
	b, ctx := setup(t), within(t)
	c := b.Client(t)
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

func TestSession_SharedOnesOpenAsManyLeasesAsTheyNeedAndGiveThemBack(t *testing.T) {
	t.Parallel()
	b, ctx := setup(t), within(t)
	c := b.Client(t)
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
