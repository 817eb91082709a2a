package locker_test

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/jagregory/locker/v2"
	"github.com/jagregory/locker/v2/internal/locktest"
)

// errOwn is what the function of a Do returns.
var errOwn = errors.New("of fn")

// doFunc is Do or Campaign.
type doFunc func(context.Context, string, string, func(context.Context, *locker.Lock) error, ...locker.LockOption) error

func TestDo_HoldsWhileItsFunctionRuns(t *testing.T) {
	t.Parallel()
	b, ctx := locktest.Setup(t), context.WithValue(locktest.Within(t), contextKey{}, "kept")
	c, other := b.Client(t), b.Client(t)
	var inner context.Context
	err := c.Do(ctx, "a", "v", func(ctx context.Context, l *locker.Lock) error {
		inner = ctx
		if ctx.Err() != nil || l.Err() != nil || ctx.Value(contextKey{}) != "kept" {
			t.Errorf("%v, %v, %v", ctx.Err(), l.Err(), ctx.Value(contextKey{}))
		}
		if holder := locktest.Get(t, other, "a"); holder != b.HolderOf(t, l) || holder.Value != "v" {
			t.Errorf("holder %+v", holder)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if inner == nil || inner.Err() == nil {
		t.Error("the context of fn outlives it")
	}
	b.Queued(t, "a", 0)
}

func TestDo_UnlocksHoweverItsFunctionEnds(t *testing.T) {
	t.Parallel()
	b, ctx := locktest.Setup(t), locktest.Within(t)
	c, other := b.Client(t), b.Client(t)
	ends := map[string]struct {
		fn     func(context.Context, *locker.Lock) error
		err    error
		panics any
	}{
		"returns":      {fn: func(context.Context, *locker.Lock) error { return nil }},
		"fails":        {fn: func(context.Context, *locker.Lock) error { return errOwn }, err: errOwn},
		"panics":       {fn: func(context.Context, *locker.Lock) error { panic("of fn") }, panics: "of fn"},
		"unlocks":      {fn: func(_ context.Context, l *locker.Lock) error { return l.Unlock(locktest.Within(t)) }},
		"fails unlock": {fn: func(ctx context.Context, l *locker.Lock) error { locktest.Unlock(t, l); return l.Unlock(ctx) }, err: locker.ErrReleased},
	}
	for what, end := range ends {
		func() {
			defer func() {
				if r := recover(); r != end.panics {
					t.Errorf("%s: recovered %v", what, r)
				}
			}()
			err := c.Do(ctx, "a", "v", end.fn)
			if end.err == nil && err != nil || !errors.Is(err, end.err) {
				t.Errorf("%s: %v", what, err)
			}
		}()
		l, err := other.TryLock(ctx, "a", "next")
		if err != nil {
			t.Fatalf("%s: not unlocked when Do returned: %v", what, err)
		}
		locktest.Unlock(t, l)
	}
}

func TestDo_ItsFunctionMayUnlockWithItsOwnContext(t *testing.T) {
	t.Parallel()
	b, ctx := locktest.Setup(t), locktest.Within(t)
	c, other := b.Client(t), b.Client(t)
	for range 20 {
		err := c.Do(ctx, "a", "v", func(ctx context.Context, l *locker.Lock) error {
			if err := l.Unlock(ctx); err != nil { // which ends ctx, but waits all the same
				return err
			}
			next, err := other.TryLock(locktest.Within(t), "a", "next")
			if err != nil {
				return err
			}
			return next.Unlock(locktest.Within(t))
		})
		if err != nil {
			t.Fatal(err)
		}
		l := locktest.Lock(t, c, "b", "v")
		if err := l.Unlock(l.Context()); err != nil {
			t.Fatalf("with the context of the hold: %v", err)
		}
	}
}

func TestDo_TheContextOfItsFunctionEndsWithThatOfDo(t *testing.T) {
	t.Parallel()
	b, enough := locktest.Setup(t), errors.New("enough")
	c := b.Client(t)
	ctx, cancel := context.WithCancelCause(locktest.Within(t))
	err := c.Do(ctx, "a", "v", func(ctx context.Context, l *locker.Lock) error {
		cancel(enough)
		locktest.Receive(t, ctx.Done())
		locktest.Want(t, context.Cause(ctx), enough)
		if l.Err() != nil {
			t.Errorf("the hold ended with the context: %v", l.Err())
		}
		return errOwn
	})
	locktest.Want(t, err, errOwn)
	if errors.Is(err, locker.ErrLost) {
		t.Errorf("not lost: %v", err)
	}
	b.Queued(t, "a", 0)
}

func TestDo_TheContextOfItsFunctionEndsWithTheHold(t *testing.T) {
	t.Parallel()
	b := locktest.Setup(t)
	losses := map[locker.Reason]func(*testing.T, *locker.Client, *locker.Lock){
		locker.Deleted: func(t *testing.T, _ *locker.Client, l *locker.Lock) { b.Delete(t, l) },
		locker.Revoked: func(t *testing.T, c *locker.Client, l *locker.Lock) {
			b.Server.ExpireLease(t, locktest.Get(t, c, l.Name()).Lease)
		},
	}
	for reason, lose := range losses {
		t.Run(reason.String(), func(t *testing.T) {
			t.Parallel()
			c, name := b.Client(t, locker.WithTTL(locktest.Brief)), reason.String()
			for _, own := range []error{nil, errOwn} {
				var lost *locker.Lock
				err := c.Do(locktest.Within(t), name, "v", func(ctx context.Context, l *locker.Lock) error {
					lose(t, c, l)
					locktest.Receive(t, ctx.Done())
					locktest.WantLost(t, context.Cause(ctx), l, reason)
					lost = l
					return own
				})
				locktest.WantLost(t, err, lost, reason)
				if own != nil {
					locktest.Want(t, err, own)
				}
			}
			err := c.Do(locktest.Within(t), name, "v", func(ctx context.Context, l *locker.Lock) error {
				lose(t, c, l)
				locktest.Receive(t, ctx.Done())
				return context.Cause(ctx)
			})
			locktest.Want(t, err, locker.ErrLost)
		})
	}
}

func TestDo_DoesNotCallItsFunctionWithoutTheLock(t *testing.T) {
	t.Parallel()
	b, enough := locktest.Setup(t), errors.New("enough")
	locktest.Lock(t, b.Client(t), "a", "v")
	c := b.Client(t)
	for _, call := range []doFunc{c.Do, c.Campaign} {
		ctx, cancel := context.WithCancelCause(locktest.Within(t))
		result := locktest.Async(func() error { return call(ctx, "a", "v", neverCalled(t)) })
		b.Queued(t, "a", 2)
		cancel(enough)
		locktest.Want(t, locktest.Receive(t, result), enough)
		b.Queued(t, "a", 1)
	}
}

func TestClose_WithinDoEndsIt(t *testing.T) {
	t.Parallel()
	locktest.Simulate(t, func(sim locktest.Simulation) {
		c := sim.Client()
		err := c.Do(sim.Context(), "a", "v", func(ctx context.Context, l *locker.Lock) error {
			if err := c.Close(); err != nil { // which waits for fn as long as its bound allows
				sim.Error(err)
			}
			locktest.Want(sim, context.Cause(ctx), locker.ErrClosed)
			return nil
		})
		locktest.Want(sim, err, locker.ErrClosed)
	})
}

func TestCampaign_HoldsAgainAfterALoss(t *testing.T) {
	t.Parallel()
	b := locktest.Setup(t)
	c := b.Client(t, locker.WithTTL(locktest.Brief))
	var holds []*locker.Lock
	err := c.Campaign(locktest.Within(t), "a", "v", func(ctx context.Context, l *locker.Lock) error {
		if len(holds) > 0 {
			before := holds[len(holds)-1]
			locktest.Want(t, before.Err(), locker.ErrLost)
			if before.Token() >= l.Token() {
				t.Errorf("token %d after %d", l.Token(), before.Token())
			}
		}
		holds = append(holds, l)
		switch len(holds) {
		case 1:
			b.Delete(t, l)
		case 2:
			b.Server.ExpireLease(t, locktest.Get(t, c, "a").Lease)
		default:
			if locktest.Get(t, c, "a") != b.HolderOf(t, l) {
				t.Error("another client holds")
			}
			return nil
		}
		locktest.Receive(t, ctx.Done())
		return errOwn // discarded, as the hold was lost
	})
	if err != nil || len(holds) != 3 {
		t.Errorf("%v after %d holds", err, len(holds))
	}
	b.Queued(t, "a", 0)
}

func TestCampaign_EndsWithWhatItsFunctionReturnsWhileHolding(t *testing.T) {
	t.Parallel()
	b, ctx := locktest.Setup(t), locktest.Within(t)
	c := b.Client(t)
	for _, result := range []error{nil, errOwn} {
		calls := 0
		err := c.Campaign(ctx, "a", "v", func(context.Context, *locker.Lock) error { calls++; return result })
		if calls != 1 || err != nil && result == nil || !errors.Is(err, result) {
			t.Errorf("%v after %d calls, want %v", err, calls, result)
		}
	}
}

func TestCampaign_EndsWithItsContext(t *testing.T) {
	t.Parallel()
	b, enough := locktest.Setup(t), errors.New("enough")
	c := b.Client(t, locker.WithTTL(locktest.Brief))
	for what, lose := range map[string]bool{"while holding": false, "after a loss": true} {
		ctx, cancel := context.WithCancelCause(locktest.Within(t))
		calls := 0
		err := c.Campaign(ctx, "a", "v", func(ctx context.Context, l *locker.Lock) error {
			calls++
			if lose {
				b.Delete(t, l)
				locktest.Receive(t, l.Context().Done())
			}
			cancel(enough)
			locktest.Receive(t, ctx.Done())
			return enough
		})
		if !errors.Is(err, enough) || calls != 1 {
			t.Errorf("%s: %v after %d calls", what, err, calls)
		}
		b.Queued(t, "a", 0)
	}
}

func TestCampaign_EndsWithItsOwnSession(t *testing.T) {
	t.Parallel()
	b, ctx := locktest.Setup(t), locktest.Within(t)
	c := b.Client(t, locker.WithTTL(locktest.Brief))
	s := locktest.NewSession(t, c)
	calls := 0
	err := c.Campaign(ctx, "a", "v", func(ctx context.Context, l *locker.Lock) error {
		if calls++; calls == 1 {
			b.Delete(t, l) // after this loss Campaign tries again
		} else {
			b.Server.ExpireLease(t, s.Lease())
		}
		locktest.Receive(t, ctx.Done())
		return nil
	}, locker.WithSession(s))
	if !errors.Is(err, locker.ErrLost) || calls != 2 {
		t.Errorf("%v after %d calls", err, calls)
	}
	locktest.Want(t, c.Campaign(ctx, "a", "v", neverCalled(t), locker.WithSession(s)), locker.ErrLost)
}

func TestCampaign_EndsWithARefusal(t *testing.T) {
	t.Parallel()
	b := locktest.Setup(t)
	c := b.Client(t)
	err := c.Campaign(locktest.Within(t), "a", string(make([]byte, 1600<<10)), neverCalled(t))
	locktest.Want(t, err, rpctypes.ErrRequestTooLarge)
}

func TestCampaign_CandidatesHoldInOrderOfArrival(t *testing.T) {
	t.Parallel()
	b, ctx := locktest.Setup(t), locktest.Within(t)
	order, results := make(chan int, 3), make(chan error, 3)
	for i := range 3 {
		c := b.Client(t)
		go func() {
			results <- c.Campaign(ctx, "a", "v", func(ctx context.Context, l *locker.Lock) error {
				if i == 0 {
					b.Queued(t, "a", 3)
				}
				_, err := l.Commit(ctx, clientv3.OpPut("leader", "v"))
				order <- i
				return err
			})
		}()
		if i < 2 { // the first waits for the last
			b.Queued(t, "a", i+1)
		}
	}
	for i := range 3 {
		if got := locktest.Receive(t, order); got != i {
			t.Errorf("campaign %d held, want %d", got, i)
		}
	}
	for range 3 {
		if err := locktest.Receive(t, results); err != nil {
			t.Error(err)
		}
	}
}

// callback is a function for Do that signals how far it has come.
type callback struct {
	started, ended, proceed chan struct{}
}

func newCallback() *callback {
	return &callback{make(chan struct{}), make(chan struct{}), make(chan struct{})}
}

// run waits until its context ends, and then until the test lets it proceed.
func (f *callback) run(ctx context.Context, _ *locker.Lock) error {
	close(f.started)
	<-ctx.Done()
	close(f.ended)
	<-f.proceed
	return context.Cause(ctx)
}

func TestClose_WaitsForTheFunctionsOfDoBeforeItReleasesTheirLocks(t *testing.T) {
	t.Parallel()
	closings := map[string]func(t *testing.T, b locktest.Bundle, c *locker.Client) (run doFunc, closing func() error, opts []locker.LockOption){
		"Do": func(_ *testing.T, _ locktest.Bundle, c *locker.Client) (doFunc, func() error, []locker.LockOption) {
			return c.Do, c.Close, nil
		},
		"Campaign": func(_ *testing.T, _ locktest.Bundle, c *locker.Client) (doFunc, func() error, []locker.LockOption) {
			return c.Campaign, c.Close, nil
		},
		"own session": func(t *testing.T, _ locktest.Bundle, c *locker.Client) (doFunc, func() error, []locker.LockOption) {
			s := locktest.NewSession(t, c)
			return c.Do, s.Close, []locker.LockOption{locker.WithSession(s)}
		},
		"adopted session": func(t *testing.T, b locktest.Bundle, c *locker.Client) (doFunc, func() error, []locker.LockOption) {
			s, err := c.AdoptSession(locktest.ConcurrencySession(t, b.Etcd, 60))
			if err != nil {
				t.Fatal(err)
			}
			return c.Do, s.Close, []locker.LockOption{locker.WithSession(s)}
		},
	}
	for what, prepare := range closings {
		t.Run(what, func(t *testing.T) {
			t.Parallel()
			b, f := locktest.Setup(t), newCallback()
			c, other := b.Client(t), b.Client(t)
			run, closing, opts := prepare(t, b, c)
			result := locktest.Async(func() error { return run(locktest.Within(t), "a", "v", f.run, opts...) })
			locktest.Receive(t, f.started)
			closed := locktest.Async(closing)
			locktest.Receive(t, f.ended) // its context ends at once
			next := locktest.LockAsync(locktest.Within(t), other, "a", "next")
			b.Queued(t, "a", 2)
			_, err := other.TryLock(locktest.Within(t), "a", "try")
			locktest.Want(t, err, locker.ErrLocked)
			select {
			case err := <-closed:
				t.Errorf("Close returned %v before the function did", err)
			case <-next:
				t.Error("the next held while the function ran")
			case <-time.After(200 * time.Millisecond):
			}
			close(f.proceed)
			locktest.Want(t, locktest.Receive(t, result), locker.ErrClosed)
			if err := locktest.Receive(t, closed); err != nil {
				t.Error(err)
			}
			if got := locktest.Receive(t, next); got.Err != nil {
				t.Error(got.Err)
			}
		})
	}
}

func TestClose_DoesNotWaitForAFunctionLongerThanItsBound(t *testing.T) {
	t.Parallel()
	locktest.Simulate(t, func(sim locktest.Simulation) {
		c, f := sim.Client(locker.WithTTL(8*time.Second)), newCallback()
		result := locktest.Async(func() error { return c.Do(sim.Context(), "a", "v", f.run) })
		<-f.started
		began := time.Now()
		if err := c.Close(); err != nil {
			sim.Error(err)
		}
		if took := time.Since(began); took < 4*time.Second || took > 8*time.Second {
			sim.Errorf("Close took %v", took)
		}
		next, err := sim.Client().TryLock(sim.Context(), "a", "next")
		if err != nil {
			sim.Errorf("the lock was not released: %v", err)
		} else if err := next.Unlock(sim.Context()); err != nil {
			sim.Error(err)
		}
		close(f.proceed)
		if err := <-result; !errors.Is(err, locker.ErrClosed) {
			sim.Error(err)
		}
	})
}

func TestClose_KeepsTheLeaseWhileItWaitsForAFunction(t *testing.T) {
	t.Parallel()
	locktest.Simulate(t, func(sim locktest.Simulation) {
		c, other, f := sim.Client(locker.WithTTL(9*time.Second)), sim.Client(), newCallback()
		go func() { _ = c.Do(sim.Context(), "a", "v", f.run) }()
		<-f.started
		sim.At(2900 * time.Millisecond) // just before a renewal: the lease would run out at 9 s
		closed := locktest.Async(c.Close)
		<-f.ended
		sim.At(9500 * time.Millisecond)
		if _, err := other.TryLock(sim.Context(), "a", "next"); !errors.Is(err, locker.ErrLocked) {
			sim.Errorf("the lock was lost while the function ran: %v", err)
		}
		close(f.proceed)
		if err := <-closed; err != nil {
			sim.Error(err)
		}
	})
}

func TestClose_DoesNotWaitForAFunctionThatHasUnlocked(t *testing.T) {
	t.Parallel()
	b := locktest.Setup(t)
	c := b.Client(t, locker.WithTTL(2*time.Minute))
	s := locktest.NewSession(t, c)
	err := c.Do(locktest.Within(t), "a", "v", func(_ context.Context, l *locker.Lock) error {
		locktest.Unlock(t, l)
		return locktest.Receive(t, locktest.Async(s.Close))
	}, locker.WithSession(s))
	if err != nil {
		t.Error(err)
	}
}

// lockingVerbs are the calls that lock name with ctx.
func lockingVerbs(c *locker.Client, name string) map[string]func(context.Context) error {
	nothing := func(context.Context, *locker.Lock) error { return nil }
	return map[string]func(context.Context) error{
		"Lock":     func(ctx context.Context) error { return unlocked(c.Lock(ctx, name, "w")) },
		"TryLock":  func(ctx context.Context) error { return unlocked(c.TryLock(ctx, name, "w")) },
		"Do":       func(ctx context.Context) error { return c.Do(ctx, name, "w", nothing) },
		"Campaign": func(ctx context.Context) error { return c.Campaign(ctx, name, "w", nothing) },
	}
}

// unlocked unlocks l, if it was locked.
func unlocked(l *locker.Lock, err error) error {
	if err != nil {
		return err
	}
	return l.Unlock(context.Background())
}

// wantNested fails the test unless every call that locks name is refused as one that waits for itself.
func wantNested(t *testing.T, ctx context.Context, c *locker.Client, name string) {
	t.Helper()
	for verb, call := range lockingVerbs(c, name) {
		err := call(ctx)
		wantInvalid(t, err, "name")
		wantWrappedOnce(t, err)
		if !strings.Contains(err.Error(), "not reentrant") {
			t.Errorf("%s: %v", verb, err)
		}
	}
}

func TestLock_WithinDoOfTheSameNameIsRefused(t *testing.T) {
	t.Parallel()
	b := locktest.Setup(t)
	c, other := b.Client(t), b.Client(t)
	for what, run := range map[string]doFunc{"Do": c.Do, "Campaign": c.Campaign} {
		err := run(locktest.Within(t), "a", "v", func(ctx context.Context, l *locker.Lock) error {
			derived, cancel := context.WithCancel(context.WithValue(ctx, contextKey{}, "v"))
			defer cancel()
			wantNested(t, derived, c, "a")
			if l.Err() != nil {
				t.Errorf("%s: the hold was disturbed: %v", what, l.Err())
			}
			for verb, call := range lockingVerbs(c, "b") { // another name
				if err := call(ctx); err != nil {
					t.Errorf("%s in %s: %v", verb, what, err)
				}
			}
			_, err := other.TryLock(ctx, "a", "w") // another client
			locktest.Want(t, err, locker.ErrLocked)
			_, err = c.TryLock(locktest.Within(t), "a", "w") // another context
			locktest.Want(t, err, locker.ErrLocked)
			return c.Do(ctx, "b", "v", func(ctx context.Context, inner *locker.Lock) error {
				wantNested(t, ctx, c, "a")
				wantNested(t, ctx, c, "b")
				wantNested(t, inner.Context(), c, "a")
				return nil
			})
		})
		if err != nil {
			t.Errorf("%s: %v", what, err)
		}
	}
	l := locktest.Lock(t, c, "a", "v")
	wantNested(t, l.Context(), c, "a")
	locktest.Unlock(t, l)
	b.Queued(t, "a", 0)
}

func TestLock_WithTheContextOfAHoldThatIsOverIsNotRefused(t *testing.T) {
	t.Parallel()
	b := locktest.Setup(t)
	c := b.Client(t)
	var outlives context.Context
	var inner *locker.Lock
	err := c.Do(locktest.Within(t), "a", "v", func(ctx context.Context, l *locker.Lock) error {
		outlives = context.WithoutCancel(ctx)
		inner = locktest.Lock(t, c, "b", "v")
		var err error
		if inner, err = c.Lock(ctx, "c", "v"); err != nil {
			return err
		}
		if err := l.Unlock(locktest.Within(t)); err != nil {
			return err
		}
		locktest.Want(t, unlocked(c.Lock(ctx, "a", "w")), locker.ErrReleased) // ctx has ended
		return unlocked(c.Lock(context.WithoutCancel(ctx), "a", "w"))
	})
	if err != nil {
		t.Fatal(err)
	}
	for _, ctx := range []context.Context{outlives, inner.Context()} {
		for verb, call := range lockingVerbs(c, "a") {
			if err := call(ctx); err != nil {
				t.Errorf("%s: %v", verb, err)
			}
		}
	}
}

func TestLock_OfANameThatOnlyAnOuterContextHasIsNotRefused(t *testing.T) {
	t.Parallel()
	b := locktest.Setup(t)
	c := b.Client(t)
	first := locktest.Lock(t, c, "a", "v")
	second, err := c.Lock(first.Context(), "b", "v") // does not end with the first
	if err != nil {
		t.Fatal(err)
	}
	third := locktest.LockAsync(second.Context(), c, "a", "w")
	locktest.Eventually(t, "it is in line", func() bool { return locker.Waiting(c, "a") == 1 })
	locktest.Unlock(t, first)
	if got := locktest.Receive(t, third); got.Err != nil {
		t.Error(got.Err)
	}
}
