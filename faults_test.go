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
	"google.golang.org/grpc"

	"github.com/jagregory/locker/v2"
	"github.com/jagregory/locker/v2/embedtest"
	"github.com/jagregory/locker/v2/internal/locktest"
)

// wantOneRefused has a write that etcd refuses sent together with ten that it
// accepts, which must succeed, and returns the error of the one refused.
func wantOneRefused(t *testing.T, b locktest.Bundle, c *locker.Client, w *wire, refuse func() <-chan locktest.Outcome) error {
	t.Helper()
	d := newDam(t, c, w)
	before := len(w.transactions(0))
	results := gathered(locktest.Within(t), t, c, 10)
	refused := refuse()
	locktest.Eventually(t, "the eleventh write waits", func() bool { return locker.Gathering(c) == 11 })
	d.burst(t)
	locks := wantEach(t, b, results)
	got := locktest.Receive(t, refused)
	if got.Lock != nil {
		t.Error("the refused call returned a lock")
	}
	if sent := w.transactions(before); len(sent[0]) != 11 {
		t.Errorf("they were sent as %v", sent)
	}
	unlockAll(t, locks)
	b.WantNoEntries(t)
	return got.Err
}

func TestGroupCommit_AValueThatIsTooLargeFailsAlone(t *testing.T) {
	t.Parallel()
	b := locktest.Setup(t, embedtest.WithConfig(func(c *embed.Config) { c.MaxRequestBytes = 64 << 10 }))
	c, w := wired(t, b, locker.WithTTL(locktest.Unhurried))
	err := wantOneRefused(t, b, c, w, func() <-chan locktest.Outcome {
		return locktest.LockAsync(locktest.Within(t), c, "refused", strings.Repeat("x", 65<<10))
	})
	locktest.Want(t, err, rpctypes.ErrRequestTooLarge)
}

func TestGroupCommit_ValuesThatAreTooLargeTogetherAllSucceed(t *testing.T) {
	t.Parallel()
	b := locktest.Setup(t, embedtest.WithConfig(func(c *embed.Config) { c.MaxRequestBytes = 64 << 10 }))
	c, w := wired(t, b, locker.WithTTL(locktest.Unhurried))
	d := newDam(t, c, w)
	results := make([]<-chan locktest.Outcome, 10)
	for i := range results {
		results[i] = locktest.LockAsync(locktest.Within(t), c, fmt.Sprint("name", i), strings.Repeat("x", 20<<10))
	}
	locktest.Eventually(t, "the writes wait", func() bool { return locker.Gathering(c) == len(results) })
	d.burst(t)
	for _, result := range results {
		b.WantHeldAlone(t, locktest.LockOf(t, result))
	}
}

func TestGroupCommit_ALeaseThatIsGoneFailsAlone(t *testing.T) {
	t.Parallel()
	b := locktest.Setup(t)
	c, w := wired(t, b, locker.WithTTL(locktest.Unhurried))
	s := locktest.NewSession(t, c)
	err := wantOneRefused(t, b, c, w, func() <-chan locktest.Outcome {
		b.Server.ExpireLease(t, s.Lease())
		return locktest.LockAsync(locktest.Within(t), c, "refused", "", locker.WithSession(s))
	})
	locktest.Want(t, err, locker.ErrLost)
	var lost *locker.LostError
	if !errors.As(err, &lost) || lost.Reason != locker.Revoked {
		t.Errorf("%v", err)
	}
}

func TestGroupCommit_ANameWithoutPermissionFailsAlone(t *testing.T) {
	t.Parallel()
	b := locktest.Setup(t, embedtest.WithAuth())
	const user = "guest"
	b.AddUser(t, user)
	for _, below := range []string{"name", "/", "warm/", "dam/"} {
		b.Permit(t, user, clientv3.PermissionType(clientv3.PermReadWrite), locker.DefaultPrefix+below)
	}
	w := new(wire)
	config := b.Server.ClientConfig()
	config.Username, config.Password = user, user
	config.DialOptions = append(config.DialOptions, embedtest.Intercept(w.intercept).DialOption())
	c := locktest.NewClient(t, locktest.Connect(t, config), locker.WithTTL(locktest.Unhurried))
	locktest.Unlock(t, locktest.Lock(t, c, "warm", ""))
	err := wantOneRefused(t, b, c, w, func() <-chan locktest.Outcome { return locktest.LockAsync(locktest.Within(t), c, "secret", "") })
	locktest.Want(t, err, rpctypes.ErrPermissionDenied)
}

func TestGroupCommit_ReleasesSucceedBesideLocksThatAreRefusedForSpace(t *testing.T) {
	t.Parallel()
	b := locktest.Setup(t, embedtest.WithConfig(func(c *embed.Config) { c.QuotaBackendBytes = 2 << 20 }))
	c, w := wired(t, b, locker.WithTTL(locktest.Unhurried))
	locker.SendOneAtATime(c)
	locks := fill(t, c, "held", 10)
	blocker := locktest.Lock(t, c, "dam", "")
	b.FillUp(t)
	g := w.stop(t, false, func(req any) bool { return locktest.Releases(req, "dam") })
	ctx := locktest.Within(t)
	var releases sync.WaitGroup
	releases.Go(func() {
		if err := blocker.Unlock(ctx); err != nil {
			t.Error(err)
		}
	})
	locktest.Receive(t, g.arrived)
	for _, l := range locks {
		releases.Go(func() {
			if err := l.Unlock(ctx); err != nil {
				t.Error(err)
			}
		})
	}
	locktest.Eventually(t, "the releases wait", func() bool { return locker.Gathering(c) == len(locks) })
	results := gathered(ctx, t, c, 5)
	before := len(w.transactions(0))
	g.open()
	releases.Wait()
	for _, result := range results {
		locktest.Want(t, locktest.Receive(t, result).Err, rpctypes.ErrNoSpace)
	}
	if sent := w.transactions(before); len(sent[0]) != len(locks)+len(results) {
		t.Errorf("they were sent as %v", sent)
	}
	b.WantNoEntries(t)
}

func TestGroupCommit_ALockCanceledBehindAStuckTransactionLeavesNothing(t *testing.T) {
	t.Parallel()
	b := locktest.Setup(t)
	c, w := wired(t, b, locker.WithTTL(locktest.Unhurried))
	d := newDam(t, c, w)
	ctx, cancel := context.WithCancel(locktest.Within(t))
	results := gathered(ctx, t, c, 10)
	cancel()
	began := time.Now()
	for _, result := range results {
		locktest.Want(t, locktest.Receive(t, result).Err, context.Canceled)
	}
	if took := time.Since(began); took > locktest.Prompt {
		t.Errorf("they returned after %v", took)
	}
	d.burst(t)
	for name := range results { // which is locked once the first attempt can no longer take effect
		l := locktest.Lock(t, c, name, "")
		b.WantHeldAlone(t, l)
		locktest.Unlock(t, l)
	}
	b.WantNoEntries(t)
}

func TestGroupCommit_AStuckTransactionHoldsUpOthersForAMomentOnly(t *testing.T) {
	t.Parallel()
	b := locktest.Setup(t)
	c, w := wired(t, b, locker.WithTTL(locktest.Unhurried))
	locker.SendOneAtATime(c)
	stuck := make(chan struct{})
	w.fail(1, func(req any) bool { return writes(req, "stuck") }, func(ctx context.Context, _ func() error) error {
		close(stuck)
		return neverAnswered(ctx, nil)
	})
	result := locktest.LockAsync(locktest.Within(t), c, "stuck", "")
	locktest.Receive(t, stuck)
	began := time.Now()
	var locks []*locker.Lock
	for _, result := range gathered(locktest.Within(t), t, c, 10) {
		locks = append(locks, locktest.LockOf(t, result))
	}
	if took := time.Since(began); took > locktest.Prompt {
		t.Errorf("the others took %v, though the stuck one is hedged within a second", took)
	}
	unlockAll(t, append(locks, locktest.LockOf(t, result)))
	b.WantNoEntries(t)
}

func TestGroupCommit_ALostTransactionLosesNoLock(t *testing.T) {
	t.Parallel()
	for what, fault := range requestFaults {
		t.Run(what, func(t *testing.T) {
			t.Parallel()
			b := locktest.Setup(t)
			c, w := wired(t, b, locker.WithTTL(locktest.Unhurried))
			d := newDam(t, c, w)
			results := gathered(locktest.Within(t), t, c, 20)
			w.fail(1, batched, fault)
			d.burst(t)
			locks := wantEach(t, b, results)
			if w.pending() {
				t.Error("the fault did not happen")
			}

			// The same for the releases.
			d = newDam(t, c, w)
			done := make(chan struct{})
			go func() { unlockAll(t, locks); close(done) }()
			locktest.Eventually(t, "the writes wait", func() bool { return locker.Gathering(c) == len(locks) })
			w.fail(1, batched, fault)
			d.burst(t)
			locktest.Receive(t, done)
			b.WantNoEntries(t)
			if w.pending() {
				t.Error("the fault did not happen")
			}
		})
	}
}

func TestGroupCommit_LocksCanceledInFlightLeaveNothing(t *testing.T) {
	t.Parallel()
	for _, committed := range []bool{false, true} {
		t.Run(fmt.Sprint("committed=", committed), func(t *testing.T) {
			t.Parallel()
			b := locktest.Setup(t)
			c, w := wired(t, b, locker.WithTTL(locktest.Unhurried))
			d := newDam(t, c, w)
			ctx, cancel := context.WithCancel(locktest.Within(t))
			results := gathered(ctx, t, c, 20)
			g := w.stop(t, committed, batched)
			d.open()
			locktest.Receive(t, g.arrived)
			cancel()
			began := time.Now()
			for _, result := range results {
				locktest.Want(t, locktest.Receive(t, result).Err, context.Canceled)
			}
			if took := time.Since(began); took > locktest.Prompt {
				t.Errorf("they returned after %v", took)
			}
			g.open()
			locktest.Unlock(t, locktest.LockOf(t, d.lock))
			for name := range results {
				l := locktest.Lock(t, c, name, "")
				b.WantHeldAlone(t, l)
				locktest.Unlock(t, l)
			}
			b.WantNoEntries(t)
		})
	}
}

func TestGroupCommit_ATransactionThatComesAfterItWasCanceledHasNoEffect(t *testing.T) {
	t.Parallel()
	b := locktest.Setup(t)
	var late locktest.LateRequests
	var lose atomic.Bool
	lose.Store(true)
	others := make(chan struct{}) // closed when they have gathered
	c := locktest.NewClient(t, b.Server.ClientWith(t, func(ctx context.Context, _ string, req any, call func() error) error {
		if lose.Load() && strings.Contains(fmt.Sprint(writesOf(req)), "name") {
			select {
			case <-others:
			case <-ctx.Done():
			}
			return late.Hold(req)
		}
		return call()
	}), locker.WithTTL(locktest.Unhurried))
	locker.SendOneAtATime(c)
	locktest.Unlock(t, locktest.Lock(t, c, "warm", ""))
	before := b.Records(t)
	ctx, cancel := context.WithCancel(locktest.Within(t))
	defer cancel()
	var results []<-chan locktest.Outcome
	for i := range 20 {
		results = append(results, locktest.LockAsync(ctx, c, fmt.Sprint("name", i), ""))
	}
	locktest.Eventually(t, "others gather", func() bool { return locker.Gathering(c) >= 10 })
	close(others)
	locktest.Eventually(t, "several were sent together", func() bool {
		return slices.ContainsFunc(late.Requests(), func(txn *pb.TxnRequest) bool { return batched(txn) })
	})
	cancel()
	for _, result := range results {
		locktest.Want(t, locktest.Receive(t, result).Err, context.Canceled)
	}
	locktest.Eventually(t, "what each may have left is invalidated", func() bool { return b.Records(t) > before })
	lose.Store(false)
	for i := range results { // which is locked once the first attempt can no longer take effect
		locktest.Unlock(t, locktest.Lock(t, c, fmt.Sprint("name", i), ""))
	}
	late.Arrive(t, b.Etcd)
	b.WantNoEntries(t)
}

func TestClose_WhileManyWritesAreInFlightTogetherLeavesNothing(t *testing.T) {
	t.Parallel()
	for _, committed := range []bool{false, true} {
		t.Run(fmt.Sprint("committed=", committed), func(t *testing.T) {
			t.Parallel()
			b := locktest.Setup(t)
			c, w := wired(t, b, locker.WithTTL(locktest.Unhurried))
			d := newDam(t, c, w)
			results := gathered(locktest.Within(t), t, c, 20)
			g := w.stop(t, committed, batched)
			d.open()
			locktest.Receive(t, g.arrived)
			behind := locktest.LockAsync(locktest.Within(t), c, "behind", "")
			locktest.Eventually(t, "one waits behind them", func() bool { return locker.Gathering(c) > 0 })
			closed := locktest.Async(c.Close)
			locktest.Want(t, locktest.Receive(t, behind).Err, locker.ErrClosed)
			for _, result := range results {
				locktest.Want(t, locktest.Receive(t, result).Err, locker.ErrClosed)
			}
			g.open()
			if err := locktest.Receive(t, closed); err != nil {
				t.Error(err)
			}
			if left := b.Keys(t, ""); len(left) > 0 || len(b.Leases(t)) > 0 {
				t.Errorf("left: %v and %d leases", left, len(b.Leases(t)))
			}
		})
	}
}

func TestGroupCommit_ManyLocksSurviveResetsAndAChangeOfLeader(t *testing.T) {
	b := locktest.Setup(t, embedtest.WithMembers(3))
	proxy := b.Server.Proxy(t)
	c := locktest.NewClient(t, proxy.Client(t))
	ctx, cancel := context.WithCancel(locktest.Within(t))
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
		locktest.Eventually(t, "locks go on being taken", func() bool { return holds.Load() > before+60 })
		proxy.Reset()
		b.Server.MoveLeader(t)
	}
	cancel()
	workers.Wait()
	b.WantNoEntries(t)
}

func handsOverA(req any) bool { return handsOver(req, "a") }

func TestHandOver_ThatIsLostReleasesAndIsHeldOnce(t *testing.T) {
	t.Parallel()
	faults := map[string]func(context.Context, func() error) error{
		"it is lost and never answered": neverAnswered,
		"it is applied and never answered": func(ctx context.Context, call func() error) error {
			if err := call(); err != nil {
				return err
			}
			return neverAnswered(ctx, call)
		},
	}
	for what, fault := range requestFaults {
		faults[what] = fault
	}
	for what, fault := range faults {
		t.Run(what, func(t *testing.T) {
			t.Parallel()
			b, ctx := locktest.Setup(t), locktest.Within(t)
			c, w := wired(t, b, locker.WithTTL(locktest.Unhurried))
			holder := locktest.Lock(t, c, "a", "")
			nextInLine, behind := inLine(ctx, t, c, 0, "a", ""), inLine(ctx, t, c, 1, "a", "")
			w.fail(1, handsOverA, fault)
			began := time.Now()
			if err := holder.Unlock(ctx); err != nil {
				t.Errorf("Unlock returned %v", err)
			}
			if took := time.Since(began); took > locktest.Prompt {
				t.Errorf("Unlock took %v", took)
			}
			next := locktest.LockOf(t, nextInLine)
			if took := time.Since(began); took > locktest.Prompt {
				t.Errorf("the next held after %v", took)
			}
			if w.pending() {
				t.Error("the fault did not happen")
			}
			b.WantHeldAlone(t, next)
			if next.Token() <= holder.Token() {
				t.Errorf("token %d after %d", next.Token(), holder.Token())
			}
			locktest.Unlock(t, next)
			last := locktest.LockOf(t, behind)
			b.WantHeldAlone(t, last)
			locktest.Unlock(t, last)
			b.WantNoEntries(t)
		})
	}
}

func TestUnlock_MayBeCanceledAtAnyMomentOfTheHandOver(t *testing.T) {
	t.Parallel()
	b := locktest.Setup(t)
	c, w := wired(t, b, locker.WithTTL(locktest.Unhurried))
	for _, committed := range []bool{false, true} {
		holder := locktest.Lock(t, c, "a", "")
		nextInLine := inLine(locktest.Within(t), t, c, 0, "a", "")
		g := w.stop(t, committed, handsOverA)
		ctx, cancel := context.WithCancel(locktest.Within(t))
		result := locktest.Async(func() error { return holder.Unlock(ctx) })
		locktest.Receive(t, g.arrived)
		cancel()
		locktest.Want(t, locktest.Receive(t, result), context.Canceled)
		locktest.Want(t, holder.Err(), locker.ErrReleased)
		g.open()
		next := locktest.LockOf(t, nextInLine)
		b.WantHeldAlone(t, next)
		locktest.Unlock(t, next)
		b.WantNoEntries(t)
	}
	for d := 20 * time.Microsecond; d < 20*time.Millisecond; d += d / 5 {
		holder := locktest.Lock(t, c, "a", "")
		nextInLine := inLine(locktest.Within(t), t, c, 0, "a", "")
		ctx, cancel := context.WithTimeout(locktest.Within(t), d)
		if err := holder.Unlock(ctx); err != nil && !errors.Is(err, context.DeadlineExceeded) {
			t.Error(err)
		}
		cancel()
		next := locktest.LockOf(t, nextInLine)
		b.WantHeldAlone(t, next)
		locktest.Unlock(t, next)
	}
	b.WantNoEntries(t)
}

func TestHandOver_TheNextStaysOnTheSessionThatItWasFirstPutOn(t *testing.T) {
	t.Parallel()
	b := locktest.Setup(t)
	c, w := wired(t, b, locker.WithTTL(locktest.Unhurried))
	former := fill(t, c, "former", 1000)
	fill(t, c, "latter", 998) // on a second session, which has room for two more
	holder := locktest.Lock(t, c, "a", "")
	locktest.Unlock(t, former[0]) // now the first session has room for one
	nextInLine := inLine(locktest.Within(t), t, c, 0, "a", "")
	g := w.stop(t, false, handsOverA)
	ctx, cancel := context.WithCancel(locktest.Within(t))
	result := locktest.Async(func() error { return holder.Unlock(ctx) })
	locktest.Receive(t, g.arrived) // with the next holder, the second session is full
	cancel()
	locktest.Want(t, locktest.Receive(t, result), context.Canceled)
	g.open() // while the removal goes on
	next := locktest.LockOf(t, nextInLine)
	b.WantHeldAlone(t, next)
	locktest.Unlock(t, next)
	b.Queued(t, "a", 0)
}

func TestHandOver_ADeletedEntryIsALossForItsHolderAndNoneForTheNext(t *testing.T) {
	t.Parallel()
	b, ctx := locktest.Setup(t), locktest.Within(t)
	c, _ := wired(t, b, locker.WithTTL(locktest.Unhurried))
	for range 5 {
		holder := locktest.Lock(t, c, "a", "")
		nextInLine := inLine(ctx, t, c, 0, "a", "")
		b.Delete(t, holder)
		locktest.WantLost(t, holder.Unlock(ctx), holder, locker.Deleted)
		next := locktest.LockOf(t, nextInLine)
		b.WantHeldAlone(t, next)
		if next.Token() <= holder.Token() {
			t.Errorf("token %d after %d", next.Token(), holder.Token())
		}
		locktest.Unlock(t, next)
	}
	b.WantNoEntries(t)
}

func TestHandOver_AnEntryDeletedDuringItIsALossForItsHolderAndNoneForTheNext(t *testing.T) {
	t.Parallel()
	b, ctx := locktest.Setup(t), locktest.Within(t)
	c, w := wired(t, b, locker.WithTTL(locktest.Unhurried))
	holder := locktest.Lock(t, c, "a", "")
	nextInLine := inLine(ctx, t, c, 0, "a", "")
	g := w.stop(t, false, handsOverA)
	result := locktest.Async(func() error { return holder.Unlock(ctx) })
	locktest.Receive(t, g.arrived)
	b.Delete(t, holder)
	other := locktest.Lock(t, b.Client(t), "a", "") // which thus comes before the next
	g.open()
	locktest.WantLost(t, locktest.Receive(t, result), holder, locker.Deleted)
	b.Queued(t, "a", 2)
	locktest.Unlock(t, other)
	b.WantHeldAlone(t, locktest.LockOf(t, nextInLine))
}

func TestHandOver_TheNextWhoseEntryIsDeletedIsLostAndTheOneBehindItHolds(t *testing.T) {
	t.Parallel()
	b, ctx := locktest.Setup(t), locktest.Within(t)
	c, _ := wired(t, b, locker.WithTTL(locktest.Unhurried))
	holder := locktest.Lock(t, c, "a", "")
	other := locktest.LockAsync(ctx, b.Client(t), "a", "")
	b.Queued(t, "a", 2)
	nextInLine, behind := inLine(ctx, t, c, 0, "a", "next"), inLine(ctx, t, c, 1, "a", "")
	locktest.Unlock(t, holder)
	present := locktest.LockOf(t, other)
	resp, err := b.Etcd.Get(ctx, locker.DefaultPrefix+"a/", clientv3.WithLastCreate()...)
	if err != nil || len(resp.Kvs) != 1 || string(resp.Kvs[0].Value) != "next" {
		t.Fatalf("%v, %v", resp, err)
	}
	if _, err := b.Etcd.Delete(ctx, string(resp.Kvs[0].Key)); err != nil {
		t.Fatal(err)
	}
	err = locktest.Receive(t, nextInLine).Err
	var lost *locker.LostError
	if !errors.As(err, &lost) || lost.Reason != locker.Deleted || lost.Token != resp.Kvs[0].CreateRevision {
		t.Errorf("the next: %v", err)
	}
	b.Queued(t, "a", 2)
	locktest.Unlock(t, present)
	b.WantHeldAlone(t, locktest.LockOf(t, behind))
}

func TestHandOver_ALeaseRevokedDuringItStillLetsTheNextHold(t *testing.T) {
	t.Parallel()
	for _, committed := range []bool{false, true} {
		t.Run(fmt.Sprint("committed=", committed), func(t *testing.T) {
			t.Parallel()
			b, ctx := locktest.Setup(t), locktest.Within(t)
			c, w := wired(t, b, locker.WithTTL(locktest.Unhurried))
			holder := locktest.Lock(t, c, "a", "")
			lease := holderLease(t, c, holder)
			nextInLine, behind := inLine(ctx, t, c, 0, "a", ""), inLine(ctx, t, c, 1, "a", "")
			g := w.stop(t, committed, handsOverA)
			result := locktest.Async(func() error { return holder.Unlock(ctx) })
			locktest.Receive(t, g.arrived)
			b.Server.ExpireLease(t, lease)
			g.open()
			err := locktest.Receive(t, result)
			if committed && err != nil || !committed && !errors.Is(err, locker.ErrLost) {
				t.Errorf("Unlock returned %v", err)
			}
			got := locktest.Receive(t, nextInLine)
			if committed { // it may have learned of the loss, or hold until it does
				if got.Err == nil {
					locktest.Want(t, got.Lock.Unlock(ctx), locker.ErrLost)
				} else {
					locktest.Want(t, got.Err, locker.ErrLost)
				}
				got = locktest.Receive(t, behind)
			}
			if got.Err != nil {
				t.Fatal(got.Err)
			}
			b.WantHeldAlone(t, got.Lock)
		})
	}
}

func TestHandOver_SurvivesTheLossOfItsSessionsRecord(t *testing.T) {
	t.Parallel()
	b, ctx := locktest.Setup(t), locktest.Within(t)
	c, w := wired(t, b, locker.WithTTL(locktest.Unhurried))
	faults := map[string]func(l *locker.Lock){
		"deleted": func(l *locker.Lock) {
			member := strings.TrimSuffix(locktest.MemberOf(l), ".2")
			resp, err := b.Etcd.Delete(ctx, locker.DefaultPrefix+"/"+member)
			if err != nil || resp.Deleted != 1 {
				t.Fatalf("delete the record: %v, %v", resp, err)
			}
		},
		"written again": func(*locker.Lock) { // after a put in doubt
			before := b.Records(t)
			short, cancel := context.WithCancel(ctx)
			w.fail(1, func(req any) bool { return writes(req, "doubtful") }, func(context.Context, func() error) error {
				cancel()
				return locktest.ErrReplyLost
			})
			_, err := c.Lock(short, "doubtful", "")
			locktest.Want(t, err, context.Canceled)
			locktest.Eventually(t, "the record is written", func() bool { return b.Records(t) > before })
		},
	}
	for what, fault := range faults {
		holder := locktest.Lock(t, c, "a", "")
		line := []<-chan locktest.Outcome{inLine(ctx, t, c, 0, "a", ""), inLine(ctx, t, c, 1, "a", "")}
		fault(holder)
		locktest.Unlock(t, holder)
		next := locktest.LockOf(t, line[0])
		b.WantHeldAlone(t, next)
		if next.Token() <= holder.Token() {
			t.Errorf("%s: token %d after %d", what, next.Token(), holder.Token())
		}
		before := len(w.transactions(0))
		locktest.Unlock(t, next)
		last := locktest.LockOf(t, line[1])
		if sent := w.transactions(before); len(sent) != 1 {
			t.Errorf("%s: the next hand-over was sent as %v", what, sent)
		}
		locktest.Unlock(t, last)
		b.WantNoEntries(t)
	}
}

// applied passes requests on. It answers the first that is chosen as etcd answers a
// transaction that fills its space: with an error, though it was applied.
func applied(chosen func(req any) bool) embedtest.Intercept {
	var done atomic.Bool
	return func(_ context.Context, _ string, req any, call func() error) error {
		err := call()
		if err == nil && chosen(req) && done.CompareAndSwap(false, true) {
			return rpctypes.ErrGRPCNoSpace
		}
		return err
	}
}

func TestLock_AppliedButRefusedForSpaceLeavesNothing(t *testing.T) {
	t.Parallel()
	b := locktest.Setup(t)
	c := locktest.NewClient(t, b.Server.ClientWith(t, applied(func(req any) bool { return locktest.Enqueues(req, "a") })))
	_, err := c.Lock(locktest.Within(t), "a", "")
	locktest.Want(t, err, rpctypes.ErrNoSpace)
	b.Queued(t, "a", 0)
	locktest.Unlock(t, locktest.Lock(t, c, "a", ""))
}

func TestUnlock_SucceedsTogetherWithWhatFilledTheSpace(t *testing.T) {
	t.Parallel()
	b := locktest.Setup(t)
	held := make(chan struct{})
	var holding atomic.Bool
	full := applied(batched)
	c := locktest.NewClient(t, b.Server.ClientWith(t, func(ctx context.Context, method string, req any, call func() error) error {
		if locktest.Enqueues(req, "first") && holding.CompareAndSwap(true, false) {
			<-held // so that the writes that follow gather
		}
		return full(ctx, method, req, call)
	}))
	locker.SendOneAtATime(c)
	a := locktest.Lock(t, c, "a", "")
	holding.Store(true)
	first := locktest.LockAsync(locktest.Within(t), c, "first", "")
	locktest.Eventually(t, "it is under way", func() bool { return !holding.Load() })
	released := locktest.Async(func() error { return a.Unlock(locktest.Within(t)) })
	second := locktest.LockAsync(locktest.Within(t), c, "second", "")
	locktest.Eventually(t, "the writes wait", func() bool { return locker.Gathering(c) == 2 })
	close(held)
	if err := locktest.Receive(t, released); err != nil {
		t.Error(err)
	}
	b.Queued(t, "a", 0)
	for _, result := range []<-chan locktest.Outcome{first, second} {
		if o := locktest.Receive(t, result); o.Err == nil {
			locktest.Unlock(t, o.Lock)
		}
	}
	b.Queued(t, "second", 0)
}

// renumbered is a Watch stream that leaves the IDs of watches to the server.
type renumbered struct{ grpc.ClientStream }

func (s renumbered) SendMsg(m any) error {
	if request := m.(*pb.WatchRequest).GetCreateRequest(); request != nil {
		request.WatchId = 0
	}
	return s.ClientStream.SendMsg(m)
}

func TestWatch_GoesByTheIDThatTheServerChooses(t *testing.T) {
	t.Parallel()
	b, ctx := locktest.Setup(t), locktest.Within(t)
	config := b.Server.ClientConfig()
	config.DialOptions = append(config.DialOptions, grpc.WithChainStreamInterceptor(
		func(ctx context.Context, desc *grpc.StreamDesc, conn *grpc.ClientConn, method string, open grpc.Streamer, opts ...grpc.CallOption) (grpc.ClientStream, error) {
			stream, err := open(ctx, desc, conn, method, opts...)
			if err == nil && method == "/etcdserverpb.Watch/Watch" {
				stream = renumbered{stream}
			}
			return stream, err
		}))
	c, other := locktest.NewClient(t, locktest.Connect(t, config)), b.Client(t)
	for _, name := range []string{"a", "b", "c"} {
		holder := locktest.Lock(t, other, name, "")
		waiter := locktest.LockAsync(ctx, c, name, "")
		b.Queued(t, name, 2)
		locktest.Unlock(t, holder)
		o := locktest.Receive(t, waiter)
		if o.Err != nil {
			t.Fatal(o.Err)
		}
		locktest.Unlock(t, o.Lock)
	}
}

func TestCommit_AndSetValueThatFilledTheSpaceAreAppliedAndCostNothing(t *testing.T) {
	t.Parallel()
	b := locktest.Setup(t)
	puts := func(value string) func(req any) bool {
		return func(req any) bool {
			txn, ok := req.(*pb.TxnRequest)
			return ok && len(txn.Success) == 1 && string(txn.Success[0].GetRequestPut().GetValue()) == value
		}
	}
	t.Run("Commit", func(t *testing.T) {
		l := locktest.Lock(t, locktest.NewClient(t, b.Server.ClientWith(t, applied(puts("full")))), "a", "")
		_, err := l.Commit(locktest.Within(t), clientv3.OpPut("committed", "full"))
		locktest.Want(t, err, rpctypes.ErrNoSpace)
		if resp, err := b.Etcd.Get(locktest.Within(t), "committed"); err != nil || resp.Count != 1 {
			t.Errorf("it was not applied: %v, %v", resp, err)
		}
		locktest.Unlock(t, l)
	})
	t.Run("SetValue", func(t *testing.T) {
		l := locktest.Lock(t, locktest.NewClient(t, b.Server.ClientWith(t, applied(puts("full")))), "b", "")
		locktest.Want(t, l.SetValue(locktest.Within(t), "full"), rpctypes.ErrNoSpace)
		if err := l.SetValue(locktest.Within(t), "next"); err != nil {
			t.Error(err)
		}
		if holder := locktest.Get(t, locktest.NewClient(t, b.Etcd), "b"); holder.Value != "next" || l.Value() != "next" {
			t.Errorf("the value is %q in etcd, %q for its holder", holder.Value, l.Value())
		}
		locktest.Unlock(t, l)
	})
}
