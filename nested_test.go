package locker_test

import (
	"context"
	"strings"
	"testing"

	"github.com/jagregory/locker/v2"
)

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

// unlocked unlocks what was locked.
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
	b := setup(t)
	c, other := b.client(t), b.client(t)
	type verb func(context.Context, string, string, func(context.Context, *locker.Lock) error, ...locker.LockOption) error
	for what, run := range map[string]verb{"Do": c.Do, "Campaign": c.Campaign} {
		err := run(within(t), "a", "v", func(ctx context.Context, l *locker.Lock) error {
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
			want(t, err, locker.ErrLocked)
			_, err = c.TryLock(within(t), "a", "w") // another context
			want(t, err, locker.ErrLocked)
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
	l := lock(t, c, "a", "v")
	wantNested(t, l.Context(), c, "a")
	unlock(t, l)
	b.queued(t, "a", 0)
}

func TestLock_WithTheContextOfAHoldThatIsOverIsNotRefused(t *testing.T) {
	t.Parallel()
	b := setup(t)
	c := b.client(t)
	var outlives context.Context
	var inner *locker.Lock
	err := c.Do(within(t), "a", "v", func(ctx context.Context, l *locker.Lock) error {
		outlives = context.WithoutCancel(ctx)
		inner = lock(t, c, "b", "v")
		var err error
		if inner, err = c.Lock(ctx, "c", "v"); err != nil {
			return err
		}
		if err := l.Unlock(within(t)); err != nil {
			return err
		}
		want(t, unlocked(c.Lock(ctx, "a", "w")), locker.ErrReleased) // ctx has ended
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
	b := setup(t)
	c := b.client(t)
	first := lock(t, c, "a", "v")
	second, err := c.Lock(first.Context(), "b", "v") // does not end with the first
	if err != nil {
		t.Fatal(err)
	}
	third := lockAsync(second.Context(), c, "a", "w")
	eventually(t, "it is in line", func() bool { return c.Waiting("a") == 1 })
	unlock(t, first)
	if got := receive(t, third); got.err != nil {
		t.Error(got.err)
	}
}
