package locker_test

import (
	"context"
	"errors"
	"testing"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/jagregory/locker/v2"
)

var errOwn = errors.New("of fn")

func TestDoHoldsWhileItsFunctionRuns(t *testing.T) {
	t.Parallel()
	b, ctx := setup(t), context.WithValue(within(t), contextKey{}, "kept")
	c, other := b.client(t), b.client(t)
	var inner context.Context
	err := c.Do(ctx, "a", "v", func(ctx context.Context, l *locker.Lock) error {
		inner = ctx
		if ctx.Err() != nil || l.Err() != nil || ctx.Value(contextKey{}) != "kept" {
			t.Errorf("%v, %v, %v", ctx.Err(), l.Err(), ctx.Value(contextKey{}))
		}
		if holder := get(t, other, "a"); holder != holderOf(t, b, l) || holder.Value != "v" {
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
	b.queued(t, "a", 0)
}

func TestDoUnlocksHoweverItsFunctionEnds(t *testing.T) {
	t.Parallel()
	b, ctx := setup(t), within(t)
	c, other := b.client(t), b.client(t)
	ends := map[string]struct {
		fn     func(context.Context, *locker.Lock) error
		err    error
		panics any
	}{
		"returns":      {fn: func(context.Context, *locker.Lock) error { return nil }},
		"fails":        {fn: func(context.Context, *locker.Lock) error { return errOwn }, err: errOwn},
		"panics":       {fn: func(context.Context, *locker.Lock) error { panic("of fn") }, panics: "of fn"},
		"unlocks":      {fn: func(_ context.Context, l *locker.Lock) error { return l.Unlock(within(t)) }},
		"fails unlock": {fn: func(ctx context.Context, l *locker.Lock) error { unlock(t, l); return l.Unlock(ctx) }, err: locker.ErrReleased},
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
		unlock(t, l)
	}
}

func TestFnMayUnlockWithItsOwnContext(t *testing.T) {
	t.Parallel()
	b, ctx := setup(t), within(t)
	c, other := b.client(t), b.client(t)
	for range 20 {
		err := c.Do(ctx, "a", "v", func(ctx context.Context, l *locker.Lock) error {
			if err := l.Unlock(ctx); err != nil { // ctx ends by that, which is no reason not to wait
				return err
			}
			next, err := other.TryLock(within(t), "a", "next")
			if err != nil {
				return err
			}
			return next.Unlock(within(t))
		})
		if err != nil {
			t.Fatal(err)
		}
		l := lock(t, c, "b", "v")
		if err := l.Unlock(l.Context()); err != nil {
			t.Fatalf("with the context of the hold: %v", err)
		}
	}
}

func TestTheContextOfFnEndsWithThatOfDo(t *testing.T) {
	t.Parallel()
	b, enough := setup(t), errors.New("enough")
	c := b.client(t)
	ctx, cancel := context.WithCancelCause(within(t))
	err := c.Do(ctx, "a", "v", func(ctx context.Context, l *locker.Lock) error {
		cancel(enough)
		receive(t, ctx.Done())
		want(t, context.Cause(ctx), enough)
		if l.Err() != nil {
			t.Errorf("the hold ended with the context: %v", l.Err())
		}
		return errOwn
	})
	want(t, err, errOwn)
	if errors.Is(err, locker.ErrLost) {
		t.Errorf("not lost: %v", err)
	}
	b.queued(t, "a", 0)
}

func TestTheContextOfFnEndsWithTheHold(t *testing.T) {
	t.Parallel()
	b := setup(t)
	losses := map[locker.Reason]func(*testing.T, *locker.Client, *locker.Lock){
		locker.Deleted: func(t *testing.T, _ *locker.Client, l *locker.Lock) { b.delete(t, l) },
		locker.Revoked: func(t *testing.T, c *locker.Client, l *locker.Lock) {
			b.server.ExpireLease(t, get(t, c, l.Name()).Lease)
		},
	}
	for reason, lose := range losses {
		t.Run(reason.String(), func(t *testing.T) {
			t.Parallel()
			c, name := b.client(t, locker.WithTTL(brief)), reason.String()
			for _, own := range []error{nil, errOwn} {
				var lost *locker.Lock
				err := c.Do(within(t), name, "v", func(ctx context.Context, l *locker.Lock) error {
					lose(t, c, l)
					receive(t, ctx.Done())
					wantLost(t, context.Cause(ctx), l, reason)
					lost = l
					return own
				})
				wantLost(t, err, lost, reason)
				if own != nil {
					want(t, err, own)
				}
			}
			err := c.Do(within(t), name, "v", func(ctx context.Context, l *locker.Lock) error {
				lose(t, c, l)
				receive(t, ctx.Done())
				return context.Cause(ctx)
			})
			want(t, err, locker.ErrLost)
		})
	}
}

func TestDoDoesNotCallFnWithoutTheLock(t *testing.T) {
	t.Parallel()
	b, enough := setup(t), errors.New("enough")
	lock(t, b.client(t), "a", "v")
	never := func(context.Context, *locker.Lock) error { t.Error("called"); return nil }
	type verb func(context.Context, string, string, func(context.Context, *locker.Lock) error, ...locker.LockOption) error
	c := b.client(t)
	for _, call := range []verb{c.Do, c.Campaign} {
		ctx, cancel := context.WithCancelCause(within(t))
		result := make(chan error, 1)
		go func() { result <- call(ctx, "a", "v", never) }()
		b.queued(t, "a", 2)
		cancel(enough)
		want(t, receive(t, result), enough)
		b.queued(t, "a", 1)
	}
}

func TestCloseWithinDoEndsIt(t *testing.T) {
	t.Parallel()
	simulate(t, func(sim simulation) {
		c := sim.client()
		err := c.Do(sim.Context(), "a", "v", func(ctx context.Context, l *locker.Lock) error {
			if err := c.Close(); err != nil { // after it has waited for fn within its bound
				sim.Error(err)
			}
			want(sim, context.Cause(ctx), locker.ErrClosed)
			return nil
		})
		want(sim, err, locker.ErrClosed)
	})
}

func TestCampaignHoldsAgainAfterALoss(t *testing.T) {
	t.Parallel()
	b := setup(t)
	c := b.client(t, locker.WithTTL(brief))
	var holds []*locker.Lock
	err := c.Campaign(within(t), "a", "v", func(ctx context.Context, l *locker.Lock) error {
		if len(holds) > 0 {
			before := holds[len(holds)-1]
			want(t, before.Err(), locker.ErrLost)
			if before.Token() >= l.Token() {
				t.Errorf("token %d after %d", l.Token(), before.Token())
			}
		}
		holds = append(holds, l)
		switch len(holds) {
		case 1:
			b.delete(t, l)
		case 2:
			b.server.ExpireLease(t, get(t, c, "a").Lease)
		default:
			if get(t, c, "a") != holderOf(t, b, l) {
				t.Error("somebody else holds")
			}
			return nil
		}
		receive(t, ctx.Done())
		return errOwn // discarded, as the hold was lost
	})
	if err != nil || len(holds) != 3 {
		t.Errorf("%v after %d holds", err, len(holds))
	}
	b.queued(t, "a", 0)
}

func TestCampaignEndsWithWhatFnReturnsWhileHolding(t *testing.T) {
	t.Parallel()
	b, ctx := setup(t), within(t)
	c := b.client(t)
	for _, result := range []error{nil, errOwn} {
		calls := 0
		err := c.Campaign(ctx, "a", "v", func(context.Context, *locker.Lock) error { calls++; return result })
		if calls != 1 || err != nil && result == nil || !errors.Is(err, result) {
			t.Errorf("%v after %d calls, want %v", err, calls, result)
		}
	}
}

func TestCampaignEndsWithItsContext(t *testing.T) {
	t.Parallel()
	b, enough := setup(t), errors.New("enough")
	c := b.client(t, locker.WithTTL(brief))
	for what, lose := range map[string]bool{"while holding": false, "after a loss": true} {
		ctx, cancel := context.WithCancelCause(within(t))
		calls := 0
		err := c.Campaign(ctx, "a", "v", func(ctx context.Context, l *locker.Lock) error {
			calls++
			if lose {
				b.delete(t, l)
				receive(t, l.Context().Done())
			}
			cancel(enough)
			receive(t, ctx.Done())
			return enough
		})
		if !errors.Is(err, enough) || calls != 1 {
			t.Errorf("%s: %v after %d calls", what, err, calls)
		}
		b.queued(t, "a", 0)
	}
}

func TestCampaignEndsWithAnOwnSession(t *testing.T) {
	t.Parallel()
	b, ctx := setup(t), within(t)
	c := b.client(t, locker.WithTTL(brief))
	s, err := c.NewSession(ctx)
	if err != nil {
		t.Fatal(err)
	}
	calls := 0
	err = c.Campaign(ctx, "a", "v", func(ctx context.Context, l *locker.Lock) error {
		if calls++; calls == 1 {
			b.delete(t, l) // this one is worth another try
		} else {
			b.server.ExpireLease(t, s.Lease())
		}
		receive(t, ctx.Done())
		return nil
	}, locker.WithSession(s))
	if !errors.Is(err, locker.ErrLost) || calls != 2 {
		t.Errorf("%v after %d calls", err, calls)
	}
	never := func(context.Context, *locker.Lock) error { t.Error("called"); return nil }
	want(t, c.Campaign(ctx, "a", "v", never, locker.WithSession(s)), locker.ErrLost)
}

func TestCampaignEndsWithARefusal(t *testing.T) {
	t.Parallel()
	b := setup(t)
	c := b.client(t)
	never := func(context.Context, *locker.Lock) error { t.Error("called"); return nil }
	err := c.Campaign(within(t), "a", string(make([]byte, 1600<<10)), never)
	want(t, err, rpctypes.ErrRequestTooLarge)
}

func TestCampaignsTakeTurns(t *testing.T) {
	t.Parallel()
	b, ctx := setup(t), within(t)
	order, results := make(chan int, 3), make(chan error, 3)
	for i := range 3 {
		c := b.client(t)
		go func() {
			results <- c.Campaign(ctx, "a", "v", func(ctx context.Context, l *locker.Lock) error {
				if i == 0 {
					b.queued(t, "a", 3)
				}
				_, err := l.Commit(ctx, clientv3.OpPut("leader", "v"))
				order <- i
				return err
			})
		}()
		if i < 2 { // the first waits for the last
			b.queued(t, "a", i+1)
		}
	}
	for i := range 3 {
		if got := receive(t, order); got != i {
			t.Errorf("campaign %d in place of %d", got, i)
		}
	}
	for range 3 {
		if err := receive(t, results); err != nil {
			t.Error(err)
		}
	}
}
