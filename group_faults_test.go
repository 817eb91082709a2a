package locker_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/server/v3/embed"

	"github.com/jagregory/locker/v2"
	"github.com/jagregory/locker/v2/embedtest"
)

// wantOneRefused has a write that etcd refuses leave together with ten that it
// does not, and returns what became of it.
func wantOneRefused(t *testing.T, b bundle, c *locker.Client, w *wire, refuse func() <-chan outcome) error {
	t.Helper()
	d := newDam(t, c, w)
	before := len(w.transactions(0))
	results := gathered(within(t), t, c, 10)
	refused := refuse()
	eventually(t, "it waits as well", func() bool { return c.Gathering() == 11 })
	d.burst(t)
	locks := b.wantEach(t, results)
	got := receive(t, refused)
	if got.lock != nil {
		t.Error("it is held")
	}
	if sent := w.transactions(before); len(sent[0]) != 11 {
		t.Errorf("they left as %v", sent)
	}
	unlockAll(t, locks)
	b.nothingQueued(t)
	return got.err
}

func TestAValueThatIsTooLargeFailsAloneOfAllThatLeftTogether(t *testing.T) {
	t.Parallel()
	b := setup(t, embedtest.WithConfig(func(c *embed.Config) { c.MaxRequestBytes = 64 << 10 }))
	c, w := b.wired(t, locker.WithTTL(unhurried))
	err := wantOneRefused(t, b, c, w, func() <-chan outcome {
		return lockAsync(within(t), c, "refused", strings.Repeat("x", 65<<10))
	})
	want(t, err, rpctypes.ErrRequestTooLarge)
}

func TestValuesThatAreTooLargeTogetherAreNot(t *testing.T) {
	t.Parallel()
	b := setup(t, embedtest.WithConfig(func(c *embed.Config) { c.MaxRequestBytes = 64 << 10 }))
	c, w := b.wired(t, locker.WithTTL(unhurried))
	d := newDam(t, c, w)
	results := make([]<-chan outcome, 10)
	for i := range results {
		results[i] = lockAsync(within(t), c, fmt.Sprint("name", i), strings.Repeat("x", 20<<10))
	}
	eventually(t, "they wait", func() bool { return c.Gathering() == len(results) })
	d.burst(t)
	for _, result := range results {
		b.holds(t, lockOf(t, result))
	}
}

func TestALeaseThatIsGoneFailsAloneOfAllThatLeftTogether(t *testing.T) {
	t.Parallel()
	b := setup(t)
	c, w := b.wired(t, locker.WithTTL(unhurried))
	s := newSession(t, c)
	err := wantOneRefused(t, b, c, w, func() <-chan outcome {
		b.server.ExpireLease(t, s.Lease())
		return lockAsync(within(t), c, "refused", "", locker.WithSession(s))
	})
	want(t, err, locker.ErrLost)
	var lost *locker.LostError
	if !errors.As(err, &lost) || lost.Reason != locker.Revoked {
		t.Errorf("%v", err)
	}
}

func TestANameWithoutPermissionFailsAloneOfAllThatLeftTogether(t *testing.T) {
	t.Parallel()
	b := setup(t, embedtest.WithAuth())
	user, ctx := addUser(t, b, "guest", locker.DefaultPrefix+"name"), within(t)
	for _, prefix := range []string{"/", "warm/", "dam/"} {
		prefix = locker.DefaultPrefix + prefix
		if _, err := b.etcd.RoleGrantPermission(ctx, user, prefix, clientv3.GetPrefixRangeEnd(prefix), clientv3.PermissionType(clientv3.PermReadWrite)); err != nil {
			t.Fatal(err)
		}
	}
	w := new(wire)
	config := b.server.ClientConfig()
	config.Username, config.Password = user, user
	config.DialOptions = append(config.DialOptions, embedtest.Intercept(w.intercept).DialOption())
	c := newClient(t, connect(t, config), locker.WithTTL(unhurried))
	unlock(t, lock(t, c, "warm", ""))
	err := wantOneRefused(t, b, c, w, func() <-chan outcome { return lockAsync(ctx, c, "secret", "") })
	want(t, err, rpctypes.ErrPermissionDenied)
}

func TestReleasesGoThroughTogetherWithLocksThatAreRefusedForSpace(t *testing.T) {
	t.Parallel()
	b := setup(t, embedtest.WithConfig(func(c *embed.Config) { c.QuotaBackendBytes = 2 << 20 }))
	c, w := b.wired(t, locker.WithTTL(unhurried))
	locks := fill(t, c, "held", 10)
	blocker := lock(t, c, "dam", "")
	b.fillUp(t)
	g := w.stop(t, false, func(req any) bool { return releases(req, "dam") })
	ctx := within(t)
	var releases sync.WaitGroup
	releases.Go(func() {
		if err := blocker.Unlock(ctx); err != nil {
			t.Error(err)
		}
	})
	receive(t, g.arrived)
	for _, l := range locks {
		releases.Go(func() {
			if err := l.Unlock(ctx); err != nil {
				t.Error(err)
			}
		})
	}
	eventually(t, "the releases wait", func() bool { return c.Gathering() == len(locks) })
	results := gathered(ctx, t, c, 5)
	before := len(w.transactions(0))
	g.open()
	releases.Wait()
	for _, result := range results {
		want(t, receive(t, result).err, rpctypes.ErrNoSpace)
	}
	if sent := w.transactions(before); len(sent[0]) != len(locks)+len(results) {
		t.Errorf("they left as %v", sent)
	}
	b.nothingQueued(t)
}

// fillUp writes until etcd has no more space.
func (b bundle) fillUp(t testing.TB) {
	t.Helper()
	chunk := strings.Repeat("x", 100<<10)
	eventually(t, "etcd is full", func() bool {
		_, err := b.etcd.Put(within(t), "ballast", chunk)
		return errors.Is(err, rpctypes.ErrNoSpace)
	})
}

func TestWhoGivesUpBehindAStuckTransactionReturnsAndLeavesNothing(t *testing.T) {
	t.Parallel()
	b := setup(t)
	c, w := b.wired(t, locker.WithTTL(unhurried))
	d := newDam(t, c, w)
	ctx, cancel := context.WithCancel(within(t))
	results := gathered(ctx, t, c, 10)
	cancel()
	began := time.Now()
	for _, result := range results {
		want(t, receive(t, result).err, context.Canceled)
	}
	if took := time.Since(began); took > prompt {
		t.Errorf("they returned after %v", took)
	}
	d.burst(t)
	for name := range results { // whose turn comes when nothing can come of the first any more
		l := lock(t, c, name, "")
		b.holds(t, l)
		unlock(t, l)
	}
	b.nothingQueued(t)
}

func TestAStuckTransactionHoldsUpOthersForAMomentOnly(t *testing.T) {
	t.Parallel()
	b := setup(t)
	c, w := b.wired(t, locker.WithTTL(unhurried))
	stuck := make(chan struct{})
	w.fail(1, func(req any) bool { return writes(req, "stuck") }, func(ctx context.Context, _ func() error) error {
		close(stuck)
		return neverAnswered(ctx, nil)
	})
	result := lockAsync(within(t), c, "stuck", "")
	receive(t, stuck)
	began := time.Now()
	var locks []*locker.Lock
	for _, result := range gathered(within(t), t, c, 10) {
		locks = append(locks, lockOf(t, result))
	}
	if took := time.Since(began); took > prompt {
		t.Errorf("the others took %v, and it is repeated within a second", took)
	}
	unlockAll(t, append(locks, lockOf(t, result)))
	b.nothingQueued(t)
}

func TestALossOfWhatLeftTogetherLosesNoLock(t *testing.T) {
	t.Parallel()
	for what, fault := range faultsOfARequest {
		t.Run(what, func(t *testing.T) {
			t.Parallel()
			b := setup(t)
			c, w := b.wired(t, locker.WithTTL(unhurried))
			d := newDam(t, c, w)
			results := gathered(within(t), t, c, 20)
			w.fail(1, batched, fault)
			d.burst(t)
			locks := b.wantEach(t, results)
			if w.pending() {
				t.Error("nothing was lost")
			}

			// And the other way round.
			d = newDam(t, c, w)
			done := make(chan struct{})
			go func() { unlockAll(t, locks); close(done) }()
			eventually(t, "they wait", func() bool { return c.Gathering() == len(locks) })
			w.fail(1, batched, fault)
			d.burst(t)
			receive(t, done)
			b.nothingQueued(t)
			if w.pending() {
				t.Error("nothing was lost")
			}
		})
	}
}

func TestThoseWhoGiveUpOnWhatLeftTogetherLeaveNothing(t *testing.T) {
	t.Parallel()
	for _, committed := range []bool{false, true} {
		t.Run(fmt.Sprint("committed=", committed), func(t *testing.T) {
			t.Parallel()
			b := setup(t)
			c, w := b.wired(t, locker.WithTTL(unhurried))
			d := newDam(t, c, w)
			ctx, cancel := context.WithCancel(within(t))
			results := gathered(ctx, t, c, 20)
			g := w.stop(t, committed, batched)
			d.open()
			receive(t, g.arrived)
			cancel()
			began := time.Now()
			for _, result := range results {
				want(t, receive(t, result).err, context.Canceled)
			}
			if took := time.Since(began); took > prompt {
				t.Errorf("they returned after %v", took)
			}
			g.open()
			unlock(t, lockOf(t, d.lock))
			for name := range results {
				l := lock(t, c, name, "")
				b.holds(t, l)
				unlock(t, l)
			}
			b.nothingQueued(t)
		})
	}
}

func TestWhatLeftTogetherAndComesAfterItWasGivenUpHasNoEffect(t *testing.T) {
	t.Parallel()
	b := setup(t)
	var late lateRequests
	var lose atomic.Bool
	lose.Store(true)
	c := newClient(t, b.server.ClientWith(t, func(_ context.Context, _ string, req any, call func() error) error {
		if lose.Load() && strings.Contains(fmt.Sprint(writesOf(req)), "name") {
			return late.hold(req)
		}
		return call()
	}))
	unlock(t, lock(t, c, "warm", ""))
	before := b.records(t)
	ctx, cancel := context.WithCancel(within(t))
	defer cancel()
	var results []<-chan outcome
	for i := range 20 {
		results = append(results, lockAsync(ctx, c, fmt.Sprint("name", i), ""))
	}
	eventually(t, "several left together", func() bool {
		late.mu.Lock()
		defer late.mu.Unlock()
		return slices.ContainsFunc(late.txns, func(txn *pb.TxnRequest) bool { return batched(txn) })
	})
	cancel()
	for _, result := range results {
		want(t, receive(t, result).err, context.Canceled)
	}
	eventually(t, "what each may have left is settled", func() bool { return b.records(t) > before })
	lose.Store(false)
	for i := range results { // whose turn comes when nothing can come of the first any more
		unlock(t, lock(t, c, fmt.Sprint("name", i), ""))
	}
	late.arrive(t, b.etcd)
	b.nothingQueued(t)
}

func TestCloseWhileManyAreUnderWayTogetherLeavesNothing(t *testing.T) {
	t.Parallel()
	for _, committed := range []bool{false, true} {
		t.Run(fmt.Sprint("committed=", committed), func(t *testing.T) {
			t.Parallel()
			b := setup(t)
			c, w := b.wired(t, locker.WithTTL(unhurried))
			d := newDam(t, c, w)
			results := gathered(within(t), t, c, 20)
			g := w.stop(t, committed, batched)
			d.open()
			receive(t, g.arrived)
			behind := lockAsync(within(t), c, "behind", "")
			eventually(t, "one waits behind them", func() bool { return c.Gathering() > 0 })
			closed := make(chan error, 1)
			go func() { closed <- c.Close() }()
			want(t, receive(t, behind).err, locker.ErrClosed)
			for _, result := range results {
				want(t, receive(t, result).err, locker.ErrClosed)
			}
			g.open()
			if err := receive(t, closed); err != nil {
				t.Error(err)
			}
			if left := b.keys(t, ""); len(left) > 0 || b.leases(t) > 0 {
				t.Errorf("left: %v and %d leases", left, b.leases(t))
			}
		})
	}
}

func TestManyLocksAtOnceSurviveResetsAndAChangeOfLeader(t *testing.T) {
	b := setup(t, embedtest.WithMembers(3))
	proxy := b.server.Proxy(t)
	c := newClient(t, proxy.Client(t))
	ctx, cancel := context.WithCancel(within(t))
	var workers sync.WaitGroup
	var holds atomic.Int64
	for i := range 30 {
		workers.Go(func() {
			for token := int64(0); ctx.Err() == nil; {
				l, err := c.Lock(context.WithoutCancel(ctx), fmt.Sprint("name", i), "")
				if err != nil {
					t.Error(err)
					return
				}
				if l.Token() <= token {
					t.Errorf("token %d after %d", l.Token(), token)
				}
				token = l.Token()
				holds.Add(1)
				if err := l.Unlock(context.WithoutCancel(ctx)); err != nil {
					t.Error(err)
				}
			}
		})
	}
	for range 5 {
		before := holds.Load()
		eventually(t, "they go on", func() bool { return holds.Load() > before+60 })
		proxy.Reset()
		b.server.MoveLeader(t)
	}
	cancel()
	workers.Wait()
	b.nothingQueued(t)
}
