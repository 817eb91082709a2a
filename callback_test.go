package locker_test

import (
	"context"
	"errors"
	"testing"
	"time"

	"go.etcd.io/etcd/client/v3/concurrency"

	"github.com/jagregory/locker/v2"
)

// callback is a function of Do that tells how far it is.
type callback struct {
	started, ended, proceed chan struct{}
}

func newCallback() *callback {
	return &callback{make(chan struct{}), make(chan struct{}), make(chan struct{})}
}

// run waits for its context to end, and then for the test.
func (f *callback) run(ctx context.Context, _ *locker.Lock) error {
	close(f.started)
	<-ctx.Done()
	close(f.ended)
	<-f.proceed
	return context.Cause(ctx)
}

func TestClose_WaitsForTheFunctionsOfDoBeforeItGivesTheirLocksAway(t *testing.T) {
	t.Parallel()
	type verb func(context.Context, string, string, func(context.Context, *locker.Lock) error, ...locker.LockOption) error
	closings := map[string]func(t *testing.T, b bundle, c *locker.Client) (run verb, closing func() error, opts []locker.LockOption){
		"Do": func(_ *testing.T, _ bundle, c *locker.Client) (verb, func() error, []locker.LockOption) {
			return c.Do, c.Close, nil
		},
		"Campaign": func(_ *testing.T, _ bundle, c *locker.Client) (verb, func() error, []locker.LockOption) {
			return c.Campaign, c.Close, nil
		},
		"own session": func(t *testing.T, _ bundle, c *locker.Client) (verb, func() error, []locker.LockOption) {
			s := newSession(t, c)
			return c.Do, s.Close, []locker.LockOption{locker.WithSession(s)}
		},
		"adopted session": func(t *testing.T, b bundle, c *locker.Client) (verb, func() error, []locker.LockOption) {
			foreign, err := concurrency.NewSession(b.etcd)
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { _ = foreign.Close() })
			s, err := c.AdoptSession(foreign)
			if err != nil {
				t.Fatal(err)
			}
			return c.Do, s.Close, []locker.LockOption{locker.WithSession(s)}
		},
	}
	for what, prepare := range closings {
		t.Run(what, func(t *testing.T) {
			t.Parallel()
			b, f := setup(t), newCallback()
			c, other := b.client(t), b.client(t)
			run, closing, opts := prepare(t, b, c)
			result, closed := make(chan error, 1), make(chan error, 1)
			go func() { result <- run(within(t), "a", "v", f.run, opts...) }()
			receive(t, f.started)
			go func() { closed <- closing() }()
			receive(t, f.ended) // its context ends at once
			next := lockAsync(within(t), other, "a", "next")
			b.queued(t, "a", 2)
			_, err := other.TryLock(within(t), "a", "try")
			want(t, err, locker.ErrLocked)
			select {
			case err := <-closed:
				t.Errorf("Close returned %v before the function did", err)
			case <-next:
				t.Error("the lock was given away under the function")
			case <-time.After(200 * time.Millisecond):
			}
			close(f.proceed)
			want(t, receive(t, result), locker.ErrClosed)
			if err := receive(t, closed); err != nil {
				t.Error(err)
			}
			if got := receive(t, next); got.err != nil {
				t.Error(got.err)
			}
		})
	}
}

func TestClose_DoesNotWaitForAFunctionLongerThanItsBound(t *testing.T) {
	t.Parallel()
	simulate(t, func(sim simulation) {
		c, f := sim.client(locker.WithTTL(8*time.Second)), newCallback()
		result := make(chan error, 1)
		go func() { result <- c.Do(sim.Context(), "a", "v", f.run) }()
		<-f.started
		began := time.Now()
		if err := c.Close(); err != nil {
			sim.Error(err)
		}
		if took := time.Since(began); took < 4*time.Second || took > 8*time.Second {
			sim.Errorf("Close took %v", took)
		}
		next, err := sim.client().TryLock(sim.Context(), "a", "next")
		if err != nil {
			sim.Errorf("it was not given up: %v", err)
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
	simulate(t, func(sim simulation) {
		c, other, f := sim.client(locker.WithTTL(9*time.Second)), sim.client(), newCallback()
		go func() { _ = c.Do(sim.Context(), "a", "v", f.run) }()
		<-f.started
		sim.at(2900 * time.Millisecond) // just before a renewal: the lease would run out at 9 s
		closed := make(chan error, 1)
		go func() { closed <- c.Close() }()
		<-f.ended
		sim.at(9500 * time.Millisecond)
		if _, err := other.TryLock(sim.Context(), "a", "next"); !errors.Is(err, locker.ErrLocked) {
			sim.Errorf("the lock was lost under the function: %v", err)
		}
		close(f.proceed)
		if err := <-closed; err != nil {
			sim.Error(err)
		}
	})
}

func TestClose_DoesNotWaitForAFunctionThatHasUnlocked(t *testing.T) {
	t.Parallel()
	b := setup(t)
	c := b.client(t, locker.WithTTL(2*time.Minute))
	s := newSession(t, c)
	err := c.Do(within(t), "a", "v", func(_ context.Context, l *locker.Lock) error {
		unlock(t, l)
		closed := make(chan error, 1)
		go func() { closed <- s.Close() }()
		return receive(t, closed)
	}, locker.WithSession(s))
	if err != nil {
		t.Error(err)
	}
}
