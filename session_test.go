package locker_test

import (
	"context"
	"errors"
	"strconv"
	"sync"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/client/v3/concurrency"

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

func TestAHoldThatAnOperatorEndsIsLostWithinARenewalIntervalAndTheNextHolds(t *testing.T) {
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
			holder := b.client(t, locker.WithTTL(ttl))
			l := lock(t, holder, "a", "")
			other := lock(t, holder, "other", "") // on the same lease
			waiting := lockAsync(within(t), b.client(t), "a", "")
			b.queued(t, "a", 2)
			if err := test.end(within(t), b.etcd, l.Key(), leaseOf(t, holder, l)); err != nil {
				t.Fatal(err)
			}
			ended := time.Now()
			next := receive(t, waiting)
			if next.err != nil {
				t.Fatal(next.err)
			}
			lost(t, l, test.reason)
			if took := time.Since(ended); took > ttl*2/3 {
				t.Errorf("it took %v to notice", took)
			}
			if err := l.Unlock(within(t)); !errors.Is(err, locker.ErrLost) {
				t.Errorf("Unlock returned %v", err)
			}
			if holder := leaseOf(t, holder, next.lock); holder == 0 {
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

func TestAWaiterWhoseSessionIsLostReturnsAtOnce(t *testing.T) {
	t.Parallel()
	revoke := func(t *testing.T, b bundle, _ *embedtest.Proxy, lease clientv3.LeaseID) {
		b.server.ExpireLease(t, lease)
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
			holder := lock(t, b.client(t), "a", "")
			proxy := b.server.Proxy(t)
			c := newClient(t, proxy.Client(t), locker.WithTTL(brief))
			var opts []locker.LockOption
			if test.own {
				opts = append(opts, locker.WithSession(newSession(t, c)))
			}
			waiting := lockAsync(within(t), c, "a", "", opts...)
			b.queued(t, "a", 2)
			var lease clientv3.LeaseID
			for id := range leases(t, b) {
				if id != leaseOf(t, b.client(t), holder) {
					lease = id
				}
			}
			test.fault(t, b, proxy, lease)
			// The cut is not healed: what it waits for is its deadline.
			if result := receive(t, waiting); result.lock != nil || !errors.Is(result.err, locker.ErrLost) {
				t.Errorf("Lock returned a lock: %v, and %v", result.lock != nil, result.err)
			}
			if err := holder.Err(); err != nil {
				t.Errorf("the holder: %v", err)
			}
			b.queued(t, "a", 1)
		})
	}
}

func TestALostSessionIsNeverRevivedAndTheNextLockGetsAnother(t *testing.T) {
	t.Parallel()
	b := setup(t)
	proxy := b.server.Proxy(t)
	c := newClient(t, proxy.Client(t), locker.WithTTL(brief))
	own := newSession(t, c)
	held, shared := lock(t, c, "own", "", locker.WithSession(own)), lock(t, c, "shared", "")
	before := leases(t, b)
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
		for lease := range leases(t, b) {
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

func TestALockWhoseNewSharedSessionIsLostGetsAnother(t *testing.T) {
	t.Parallel()
	b := setup(t)
	var first sync.Once
	c := newClient(t, b.server.ClientWith(t, func(_ context.Context, method string, _ any, call func() error) error {
		if method == "/etcdserverpb.KV/Txn" { // the first is the session's record
			first.Do(func() {
				for lease := range leases(t, b) {
					b.server.ExpireLease(t, lease)
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

func TestAfterALossTheNextGoroutineOfTheSameClientHasItsTurn(t *testing.T) {
	t.Parallel()
	b := setup(t)
	c := b.client(t, locker.WithTTL(brief))
	first := lock(t, c, "a", "")
	second, third := lockAsync(within(t), c, "a", ""), lockAsync(within(t), c, "a", "")
	for before := first; ; {
		b.server.ExpireLease(t, leaseOf(t, c, before))
		lost(t, before, locker.Revoked)
		var next outcome
		select {
		case next = <-second:
		case next = <-third:
		case <-time.After(patience):
			t.Fatal("nobody had a turn")
		}
		if next.err != nil {
			t.Fatal(next.err)
		}
		if next.lock.Token() <= before.Token() {
			t.Errorf("token %d after %d", next.lock.Token(), before.Token())
		}
		if before != first {
			break
		}
		before = next.lock
	}
}

func TestCloseIsBoundedByTheTTLWhileEtcdCannotBeReached(t *testing.T) {
	t.Parallel()
	const ttl = brief
	for name, fault := range map[string]func(*embedtest.Proxy){
		"cut":    func(p *embedtest.Proxy) { p.Cut() },
		"frozen": func(p *embedtest.Proxy) { p.Freeze() },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := setup(t)
			proxy := b.server.Proxy(t)
			c := newClient(t, proxy.Client(t), locker.WithTTL(ttl))
			own := newSession(t, c)
			held, shared := lock(t, c, "own", "", locker.WithSession(own)), lock(t, c, "shared", "")
			blocked := lock(t, b.client(t), "blocked", "")
			waiting := lockAsync(within(t), c, "blocked", "")
			b.queued(t, "blocked", 2)
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
				if result := receive(t, call); result.lock != nil || !errors.Is(result.err, locker.ErrClosed) && !errors.Is(result.err, locker.ErrLost) {
					t.Errorf("Lock returned a lock: %v, and %v", result.lock != nil, result.err)
				}
			}
			b.queued(t, "own", 0)
			b.queued(t, "shared", 0)
			b.queued(t, "late", 0)
			b.queued(t, "blocked", 1)
			if err := blocked.Err(); err != nil {
				t.Error(err)
			}
		})
	}
}

func TestASessionThatEndsWhileItsLocksAreTakenHangsNobody(t *testing.T) {
	t.Parallel()
	const held, taken, rounds = 50, 100, 10
	b := setup(t)
	c := b.client(t)
	for round := range rounds {
		s := newSession(t, c)
		lockAll := func(what string, n int) <-chan outcome {
			results := make(chan outcome, n)
			for i := range n {
				go func() {
					l, err := c.Lock(within(t), what+strconv.Itoa(i), "", locker.WithSession(s))
					results <- outcome{l, err}
				}()
			}
			return results
		}
		before := lockAll("held", held)
		for range held {
			if err := receive(t, before).err; err != nil {
				t.Fatal(err)
			}
		}
		during, closed := lockAll("taken", taken), make(chan error, 1)
		for i := range taken {
			if i == round*taken/rounds {
				go func() { closed <- s.Close() }()
			}
			// It may have been in time, but is over soon.
			if r := receive(t, during); r.err == nil {
				defer func() { receive(t, r.lock.Context().Done()) }()
			} else if !errors.Is(r.err, locker.ErrClosed) {
				t.Errorf("Lock returned %v", r.err)
			}
		}
		if err := receive(t, closed); err != nil {
			t.Errorf("Close returned %v", err)
		}
	}
	eventually(t, "nothing is left", func() bool { return len(b.keys(t, locker.DefaultPrefix)) == 0 })
}

func TestAllHoldsOfASessionEndBeforeEtcdDeletesAnyOfTheirEntries(t *testing.T) {
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
			proxy := b.server.Proxy(t)
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
				if r.err != nil {
					t.Fatal(r.err)
				}
				locks[r.lock.Key()] = r.lock
				newest = max(newest, r.lock.Token())
				for range 200 { // what a program derives from a hold ends with it, which takes time
					_, cancel := context.WithCancel(r.lock.Context())
					defer cancel()
				}
			}
			deletions := b.etcd.Watch(within(t), locker.DefaultPrefix, clientv3.WithPrefix(), clientv3.WithRev(newest+1), clientv3.WithFilterPut())
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

func TestAnAdoptedSessionThatIsLetGoKeepsNothing(t *testing.T) {
	t.Parallel()
	b := setup(t)
	program := b.server.Client(t)
	original, err := concurrency.NewSession(program, concurrency.WithTTL(60))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = original.Close() })
	c := b.client(t)
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
		if left := b.keys(t, locker.DefaultPrefix); len(left) != 0 {
			t.Fatalf("it left %v", left)
		}
	}
	if !leases(t, b)[original.Lease()] {
		t.Error("the lease is gone")
	}
}
