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
)

// wantOneRefused has a write that etcd refuses leave together with ten that it
// does not, and returns what became of it.
func wantOneRefused(t *testing.T, b bundle, c *locker.Client, w *wire, refuse func() <-chan outcome) error {
	t.Helper()
	d := newDam(t, c, w)
	before := len(w.transactions(0))
	results := gathered(within(t), t, c, 10)
	refused := refuse()
	eventually(t, "it waits as well", func() bool { return locker.Gathering(c) == 11 })
	d.burst(t)
	locks := b.wantEach(t, results)
	got := receive(t, refused)
	if got.Lock != nil {
		t.Error("it is held")
	}
	if sent := w.transactions(before); len(sent[0]) != 11 {
		t.Errorf("they left as %v", sent)
	}
	unlockAll(t, locks)
	b.nothingQueued(t)
	return got.Err
}

func TestGroupCommit_AValueThatIsTooLargeFailsAlone(t *testing.T) {
	t.Parallel()
	b := setup(t, embedtest.WithConfig(func(c *embed.Config) { c.MaxRequestBytes = 64 << 10 }))
	c, w := b.wired(t, locker.WithTTL(unhurried))
	err := wantOneRefused(t, b, c, w, func() <-chan outcome {
		return lockAsync(within(t), c, "refused", strings.Repeat("x", 65<<10))
	})
	want(t, err, rpctypes.ErrRequestTooLarge)
}

func TestGroupCommit_ValuesThatAreTooLargeTogetherAllSucceed(t *testing.T) {
	t.Parallel()
	b := setup(t, embedtest.WithConfig(func(c *embed.Config) { c.MaxRequestBytes = 64 << 10 }))
	c, w := b.wired(t, locker.WithTTL(unhurried))
	d := newDam(t, c, w)
	results := make([]<-chan outcome, 10)
	for i := range results {
		results[i] = lockAsync(within(t), c, fmt.Sprint("name", i), strings.Repeat("x", 20<<10))
	}
	eventually(t, "they wait", func() bool { return locker.Gathering(c) == len(results) })
	d.burst(t)
	for _, result := range results {
		b.holds(t, lockOf(t, result))
	}
}

func TestGroupCommit_ALeaseThatIsGoneFailsAlone(t *testing.T) {
	t.Parallel()
	b := setup(t)
	c, w := b.wired(t, locker.WithTTL(unhurried))
	s := newSession(t, c)
	err := wantOneRefused(t, b, c, w, func() <-chan outcome {
		b.Server.ExpireLease(t, s.Lease())
		return lockAsync(within(t), c, "refused", "", locker.WithSession(s))
	})
	want(t, err, locker.ErrLost)
	var lost *locker.LostError
	if !errors.As(err, &lost) || lost.Reason != locker.Revoked {
		t.Errorf("%v", err)
	}
}

func TestGroupCommit_ANameWithoutPermissionFailsAlone(t *testing.T) {
	t.Parallel()
	b := setup(t, embedtest.WithAuth())
	user, ctx := addUser(t, b, "guest", locker.DefaultPrefix+"name"), within(t)
	for _, prefix := range []string{"/", "warm/", "dam/"} {
		prefix = locker.DefaultPrefix + prefix
		if _, err := b.Etcd.RoleGrantPermission(ctx, user, prefix, clientv3.GetPrefixRangeEnd(prefix), clientv3.PermissionType(clientv3.PermReadWrite)); err != nil {
			t.Fatal(err)
		}
	}
	w := new(wire)
	config := b.Server.ClientConfig()
	config.Username, config.Password = user, user
	config.DialOptions = append(config.DialOptions, embedtest.Intercept(w.intercept).DialOption())
	c := newClient(t, connect(t, config), locker.WithTTL(unhurried))
	unlock(t, lock(t, c, "warm", ""))
	err := wantOneRefused(t, b, c, w, func() <-chan outcome { return lockAsync(ctx, c, "secret", "") })
	want(t, err, rpctypes.ErrPermissionDenied)
}

func TestGroupCommit_ReleasesSucceedBesideLocksThatAreRefusedForSpace(t *testing.T) {
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
	eventually(t, "the releases wait", func() bool { return locker.Gathering(c) == len(locks) })
	results := gathered(ctx, t, c, 5)
	before := len(w.transactions(0))
	g.open()
	releases.Wait()
	for _, result := range results {
		want(t, receive(t, result).Err, rpctypes.ErrNoSpace)
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
		_, err := b.Etcd.Put(within(t), "ballast", chunk)
		return errors.Is(err, rpctypes.ErrNoSpace)
	})
}

func TestGroupCommit_ALockCanceledBehindAStuckTransactionLeavesNothing(t *testing.T) {
	t.Parallel()
	b := setup(t)
	c, w := b.wired(t, locker.WithTTL(unhurried))
	d := newDam(t, c, w)
	ctx, cancel := context.WithCancel(within(t))
	results := gathered(ctx, t, c, 10)
	cancel()
	began := time.Now()
	for _, result := range results {
		want(t, receive(t, result).Err, context.Canceled)
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

func TestGroupCommit_AStuckTransactionHoldsUpOthersForAMomentOnly(t *testing.T) {
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

func TestGroupCommit_ALostTransactionLosesNoLock(t *testing.T) {
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
			eventually(t, "they wait", func() bool { return locker.Gathering(c) == len(locks) })
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

func TestGroupCommit_LocksCanceledInFlightLeaveNothing(t *testing.T) {
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
				want(t, receive(t, result).Err, context.Canceled)
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

func TestGroupCommit_ATransactionThatComesAfterItWasCanceledHasNoEffect(t *testing.T) {
	t.Parallel()
	b := setup(t)
	var late lateRequests
	var lose atomic.Bool
	lose.Store(true)
	c := newClient(t, b.Server.ClientWith(t, func(_ context.Context, _ string, req any, call func() error) error {
		if lose.Load() && strings.Contains(fmt.Sprint(writesOf(req)), "name") {
			return late.Hold(req)
		}
		return call()
	}))
	unlock(t, lock(t, c, "warm", ""))
	before := b.Records(t)
	ctx, cancel := context.WithCancel(within(t))
	defer cancel()
	var results []<-chan outcome
	for i := range 20 {
		results = append(results, lockAsync(ctx, c, fmt.Sprint("name", i), ""))
	}
	eventually(t, "several left together", func() bool {
		return slices.ContainsFunc(late.Requests(), func(txn *pb.TxnRequest) bool { return batched(txn) })
	})
	cancel()
	for _, result := range results {
		want(t, receive(t, result).Err, context.Canceled)
	}
	eventually(t, "what each may have left is settled", func() bool { return b.Records(t) > before })
	lose.Store(false)
	for i := range results { // whose turn comes when nothing can come of the first any more
		unlock(t, lock(t, c, fmt.Sprint("name", i), ""))
	}
	late.Arrive(t, b.Etcd)
	b.nothingQueued(t)
}

func TestClose_WhileManyWritesAreInFlightTogetherLeavesNothing(t *testing.T) {
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
			eventually(t, "one waits behind them", func() bool { return locker.Gathering(c) > 0 })
			closed := make(chan error, 1)
			go func() { closed <- c.Close() }()
			want(t, receive(t, behind).Err, locker.ErrClosed)
			for _, result := range results {
				want(t, receive(t, result).Err, locker.ErrClosed)
			}
			g.open()
			if err := receive(t, closed); err != nil {
				t.Error(err)
			}
			if left := b.Keys(t, ""); len(left) > 0 || b.leases(t) > 0 {
				t.Errorf("left: %v and %d leases", left, b.leases(t))
			}
		})
	}
}

func TestGroupCommit_ManyLocksSurviveResetsAndAChangeOfLeader(t *testing.T) {
	b := setup(t, embedtest.WithMembers(3))
	proxy := b.Server.Proxy(t)
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
		b.Server.MoveLeader(t)
	}
	cancel()
	workers.Wait()
	b.nothingQueued(t)
}

func handsOverA(req any) bool { return handsOver(req, "a") }

// unlockAsync unlocks l in another goroutine.
func unlockAsync(ctx context.Context, l *locker.Lock) <-chan error {
	result := make(chan error, 1)
	go func() { result <- l.Unlock(ctx) }()
	return result
}

func TestHandOver_ThatIsLostReleasesAndIsHeldOnce(t *testing.T) {
	t.Parallel()
	faults := map[string]func(context.Context, func() error) error{
		"it is never answered": neverAnswered,
		"it is answered never": func(ctx context.Context, call func() error) error {
			if err := call(); err != nil {
				return err
			}
			return neverAnswered(ctx, call)
		},
	}
	for what, fault := range faultsOfARequest {
		faults[what] = fault
	}
	for what, fault := range faults {
		t.Run(what, func(t *testing.T) {
			t.Parallel()
			b, ctx := setup(t), within(t)
			c, w := b.wired(t, locker.WithTTL(unhurried))
			holder := lock(t, c, "a", "")
			nextInLine, behind := inLine(ctx, t, c, 0, "a", ""), inLine(ctx, t, c, 1, "a", "")
			w.fail(1, handsOverA, fault)
			began := time.Now()
			if err := holder.Unlock(ctx); err != nil {
				t.Errorf("Unlock returned %v", err)
			}
			if took := time.Since(began); took > prompt {
				t.Errorf("Unlock took %v", took)
			}
			next := lockOf(t, nextInLine)
			if took := time.Since(began); took > prompt {
				t.Errorf("the next held after %v", took)
			}
			if w.pending() {
				t.Error("nothing was lost")
			}
			b.holds(t, next)
			if next.Token() <= holder.Token() {
				t.Errorf("token %d after %d", next.Token(), holder.Token())
			}
			unlock(t, next)
			last := lockOf(t, behind)
			b.holds(t, last)
			unlock(t, last)
			b.nothingQueued(t)
		})
	}
}

func TestUnlock_MayBeCanceledAtAnyMomentOfTheHandOver(t *testing.T) {
	t.Parallel()
	b := setup(t)
	c, w := b.wired(t, locker.WithTTL(unhurried))
	for _, committed := range []bool{false, true} {
		holder := lock(t, c, "a", "")
		nextInLine := inLine(within(t), t, c, 0, "a", "")
		g := w.stop(t, committed, handsOverA)
		ctx, cancel := context.WithCancel(within(t))
		result := unlockAsync(ctx, holder)
		receive(t, g.arrived)
		cancel()
		want(t, receive(t, result), context.Canceled)
		want(t, holder.Err(), locker.ErrReleased)
		g.open()
		next := lockOf(t, nextInLine)
		b.holds(t, next)
		unlock(t, next)
		b.nothingQueued(t)
	}
	for d := 20 * time.Microsecond; d < 20*time.Millisecond; d += d / 5 {
		holder := lock(t, c, "a", "")
		nextInLine := inLine(within(t), t, c, 0, "a", "")
		ctx, cancel := context.WithTimeout(within(t), d)
		if err := holder.Unlock(ctx); err != nil && !errors.Is(err, context.DeadlineExceeded) {
			t.Error(err)
		}
		cancel()
		next := lockOf(t, nextInLine)
		b.holds(t, next)
		unlock(t, next)
	}
	b.nothingQueued(t)
}

func TestHandOver_TheNextStaysOnTheSessionThatItWasFirstPutOn(t *testing.T) {
	t.Parallel()
	b := setup(t)
	c, w := b.wired(t, locker.WithTTL(unhurried))
	former := fill(t, c, "former", 1000)
	fill(t, c, "latter", 998) // on a second session, which has room for two more
	holder := lock(t, c, "a", "")
	unlock(t, former[0]) // now the first session has room for one
	nextInLine := inLine(within(t), t, c, 0, "a", "")
	g := w.stop(t, false, handsOverA)
	ctx, cancel := context.WithCancel(within(t))
	result := unlockAsync(ctx, holder)
	receive(t, g.arrived) // with the next, the second session is full
	cancel()
	want(t, receive(t, result), context.Canceled)
	g.open() // while the withdrawal goes on
	next := lockOf(t, nextInLine)
	b.holds(t, next)
	unlock(t, next)
	b.Queued(t, "a", 0)
}

func TestHandOver_ADeletedEntryIsALossForItsHolderAndNoneForTheNext(t *testing.T) {
	t.Parallel()
	b, ctx := setup(t), within(t)
	c, _ := b.wired(t, locker.WithTTL(unhurried))
	for range 5 {
		holder := lock(t, c, "a", "")
		nextInLine := inLine(ctx, t, c, 0, "a", "")
		b.delete(t, holder)
		wantLost(t, holder.Unlock(ctx), holder, locker.Deleted)
		next := lockOf(t, nextInLine)
		b.holds(t, next)
		if next.Token() <= holder.Token() {
			t.Errorf("token %d after %d", next.Token(), holder.Token())
		}
		unlock(t, next)
	}
	b.nothingQueued(t)
}

func TestHandOver_AnEntryDeletedDuringItIsALossForItsHolderAndNoneForTheNext(t *testing.T) {
	t.Parallel()
	b, ctx := setup(t), within(t)
	c, w := b.wired(t, locker.WithTTL(unhurried))
	holder := lock(t, c, "a", "")
	nextInLine := inLine(ctx, t, c, 0, "a", "")
	g := w.stop(t, false, handsOverA)
	result := unlockAsync(ctx, holder)
	receive(t, g.arrived)
	b.delete(t, holder)
	other := lock(t, b.Client(t), "a", "") // who thus comes before the next
	g.open()
	wantLost(t, receive(t, result), holder, locker.Deleted)
	b.Queued(t, "a", 2)
	unlock(t, other)
	b.holds(t, lockOf(t, nextInLine))
}

func TestHandOver_TheNextWhoseEntryIsDeletedIsLostAndTheOneBehindItHolds(t *testing.T) {
	t.Parallel()
	b, ctx := setup(t), within(t)
	c, _ := b.wired(t, locker.WithTTL(unhurried))
	holder := lock(t, c, "a", "")
	other := lockAsync(ctx, b.Client(t), "a", "")
	b.Queued(t, "a", 2)
	nextInLine, behind := inLine(ctx, t, c, 0, "a", "next"), inLine(ctx, t, c, 1, "a", "")
	unlock(t, holder)
	present := lockOf(t, other)
	resp, err := b.Etcd.Get(ctx, locker.DefaultPrefix+"a/", clientv3.WithLastCreate()...)
	if err != nil || len(resp.Kvs) != 1 || string(resp.Kvs[0].Value) != "next" {
		t.Fatalf("%v, %v", resp, err)
	}
	if _, err := b.Etcd.Delete(ctx, string(resp.Kvs[0].Key)); err != nil {
		t.Fatal(err)
	}
	err = receive(t, nextInLine).Err
	var lost *locker.LostError
	if !errors.As(err, &lost) || lost.Reason != locker.Deleted || lost.Token != resp.Kvs[0].CreateRevision {
		t.Errorf("the next: %v", err)
	}
	b.Queued(t, "a", 2)
	unlock(t, present)
	b.holds(t, lockOf(t, behind))
}

func TestHandOver_ALeaseRevokedDuringItStillLetsTheNextHold(t *testing.T) {
	t.Parallel()
	for _, committed := range []bool{false, true} {
		t.Run(fmt.Sprint("committed=", committed), func(t *testing.T) {
			t.Parallel()
			b, ctx := setup(t), within(t)
			c, w := b.wired(t, locker.WithTTL(unhurried))
			holder := lock(t, c, "a", "")
			lease := leaseOf(t, c, holder)
			nextInLine, behind := inLine(ctx, t, c, 0, "a", ""), inLine(ctx, t, c, 1, "a", "")
			g := w.stop(t, committed, handsOverA)
			result := unlockAsync(ctx, holder)
			receive(t, g.arrived)
			b.Server.ExpireLease(t, lease)
			g.open()
			err := receive(t, result)
			if committed && err != nil || !committed && !errors.Is(err, locker.ErrLost) {
				t.Errorf("Unlock returned %v", err)
			}
			got := receive(t, nextInLine)
			if committed { // it may have learned of the loss, or hold until then
				if got.Err == nil {
					want(t, got.Lock.Unlock(ctx), locker.ErrLost)
				} else {
					want(t, got.Err, locker.ErrLost)
				}
				got = receive(t, behind)
			}
			if got.Err != nil {
				t.Fatal(got.Err)
			}
			b.holds(t, got.Lock)
		})
	}
}

func TestHandOver_SurvivesTheLossOfItsSessionsRecord(t *testing.T) {
	t.Parallel()
	b, ctx := setup(t), within(t)
	c, w := b.wired(t, locker.WithTTL(unhurried))
	spoil := map[string]func(l *locker.Lock){
		"deleted": func(l *locker.Lock) {
			member := strings.TrimSuffix(l.Key()[strings.LastIndexByte(l.Key(), '/'):], ".2")
			resp, err := b.Etcd.Delete(ctx, locker.DefaultPrefix+member)
			if err != nil || resp.Deleted != 1 {
				t.Fatalf("delete the record: %v, %v", resp, err)
			}
		},
		"written again": func(*locker.Lock) { // after a put whose outcome nobody knew
			before := b.Records(t)
			short, cancel := context.WithCancel(ctx)
			w.fail(1, func(req any) bool { return writes(req, "fenced") }, func(context.Context, func() error) error {
				cancel()
				return errReplyLost
			})
			_, err := c.Lock(short, "fenced", "")
			want(t, err, context.Canceled)
			eventually(t, "the record is written", func() bool { return b.Records(t) > before })
		},
	}
	for what, spoil := range spoil {
		holder := lock(t, c, "a", "")
		line := []<-chan outcome{inLine(ctx, t, c, 0, "a", ""), inLine(ctx, t, c, 1, "a", "")}
		spoil(holder)
		unlock(t, holder)
		next := lockOf(t, line[0])
		b.holds(t, next)
		if next.Token() <= holder.Token() {
			t.Errorf("%s: token %d after %d", what, next.Token(), holder.Token())
		}
		before := len(w.transactions(0))
		unlock(t, next)
		last := lockOf(t, line[1])
		if sent := w.transactions(before); len(sent) != 1 {
			t.Errorf("%s: after that handed over by %v", what, sent)
		}
		unlock(t, last)
		b.nothingQueued(t)
	}
}

// applied passes requests on. Of the first that is chosen it gives the answer that etcd
// gives when a transaction has filled its space: an error, though it was applied.
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
	b := setup(t)
	c := newClient(t, b.Server.ClientWith(t, applied(func(req any) bool { return enqueues(req, "a") })))
	_, err := c.Lock(within(t), "a", "")
	want(t, err, rpctypes.ErrNoSpace)
	b.Queued(t, "a", 0)
	unlock(t, lock(t, c, "a", ""))
}

func TestUnlock_SucceedsTogetherWithWhatFilledTheSpace(t *testing.T) {
	t.Parallel()
	b := setup(t)
	held := make(chan struct{})
	var holding atomic.Bool
	full := applied(func(req any) bool {
		txn, ok := req.(*pb.TxnRequest)
		return ok && len(txn.Success) > 1 && txn.Success[0].GetRequestTxn() != nil
	})
	c := newClient(t, b.Server.ClientWith(t, func(ctx context.Context, method string, req any, call func() error) error {
		if enqueues(req, "first") && holding.CompareAndSwap(true, false) {
			<-held // so that what follows gathers
		}
		return full(ctx, method, req, call)
	}))
	a := lock(t, c, "a", "")
	holding.Store(true)
	first := lockAsync(within(t), c, "first", "")
	eventually(t, "it is under way", func() bool { return !holding.Load() })
	released := make(chan error, 1)
	go func() { released <- a.Unlock(within(t)) }()
	second := lockAsync(within(t), c, "second", "")
	eventually(t, "they wait", func() bool { return locker.Gathering(c) == 2 })
	close(held)
	if err := receive(t, released); err != nil {
		t.Error(err)
	}
	b.Queued(t, "a", 0)
	for _, result := range []<-chan outcome{first, second} {
		if o := receive(t, result); o.Err == nil {
			unlock(t, o.Lock)
		}
	}
	b.Queued(t, "second", 0)
}

// renumbered is a Watch stream to a server that chooses the IDs of watches by itself.
type renumbered struct{ grpc.ClientStream }

func (s renumbered) SendMsg(m any) error {
	if request := m.(*pb.WatchRequest).GetCreateRequest(); request != nil {
		request.WatchId = 0
	}
	return s.ClientStream.SendMsg(m)
}

func TestWatch_GoesByTheIDThatTheServerChooses(t *testing.T) {
	t.Parallel()
	b, ctx := setup(t), within(t)
	config := b.Server.ClientConfig()
	config.DialOptions = append(config.DialOptions, grpc.WithChainStreamInterceptor(
		func(ctx context.Context, desc *grpc.StreamDesc, conn *grpc.ClientConn, method string, open grpc.Streamer, opts ...grpc.CallOption) (grpc.ClientStream, error) {
			stream, err := open(ctx, desc, conn, method, opts...)
			if err == nil && method == "/etcdserverpb.Watch/Watch" {
				stream = renumbered{stream}
			}
			return stream, err
		}))
	c, other := newClient(t, connect(t, config)), b.Client(t)
	for _, name := range []string{"a", "b", "c"} {
		holder := lock(t, other, name, "")
		waiter := lockAsync(ctx, c, name, "")
		b.Queued(t, name, 2)
		unlock(t, holder)
		o := receive(t, waiter)
		if o.Err != nil {
			t.Fatal(o.Err)
		}
		unlock(t, o.Lock)
	}
}

func TestCommit_AndSetValueThatFilledTheSpaceAreAppliedAndCostNothing(t *testing.T) {
	t.Parallel()
	b := setup(t)
	puts := func(value string) func(req any) bool {
		return func(req any) bool {
			txn, ok := req.(*pb.TxnRequest)
			return ok && len(txn.Success) == 1 && string(txn.Success[0].GetRequestPut().GetValue()) == value
		}
	}
	t.Run("Commit", func(t *testing.T) {
		l := lock(t, newClient(t, b.Server.ClientWith(t, applied(puts("full")))), "a", "")
		_, err := l.Commit(within(t), clientv3.OpPut("committed", "full"))
		want(t, err, rpctypes.ErrNoSpace)
		if resp, err := b.Etcd.Get(within(t), "committed"); err != nil || resp.Count != 1 {
			t.Errorf("it was not applied: %v, %v", resp, err)
		}
		unlock(t, l)
	})
	t.Run("SetValue", func(t *testing.T) {
		l := lock(t, newClient(t, b.Server.ClientWith(t, applied(puts("full")))), "b", "")
		want(t, l.SetValue(within(t), "full"), rpctypes.ErrNoSpace)
		if err := l.SetValue(within(t), "next"); err != nil {
			t.Error(err)
		}
		if holder := get(t, newClient(t, b.Etcd), "b"); holder.Value != "next" || l.Value() != "next" {
			t.Errorf("the value is %q, for its holder %q", holder.Value, l.Value())
		}
		unlock(t, l)
	})
}
