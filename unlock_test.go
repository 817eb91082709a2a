package locker_test

import (
	"context"
	"errors"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jagregory/locker/v2"
)

// mute is an etcd whose transactions are not answered while it is silent.
type mute struct {
	bundle
	silent atomic.Bool
}

// newMute returns a Client over one. Its TTL is longer than a test waits.
func newMute(t *testing.T) (*mute, *locker.Client) {
	m := &mute{bundle: setup(t)}
	etcd := m.server.ClientWith(t, func(ctx context.Context, method string, _ any, call func() error) error {
		if method == "/etcdserverpb.KV/Txn" && m.silent.Load() {
			<-ctx.Done()
			return ctx.Err()
		}
		return call()
	})
	c := newClient(t, etcd, locker.WithTTL(2*time.Minute))
	t.Cleanup(func() { m.silent.Store(false) })
	return m, c
}

func TestUnlock_EndsByTheDeadlineOfAContextOfTheHold(t *testing.T) {
	t.Parallel()
	m, c := newMute(t)
	contexts := map[string]func(*locker.Lock) (context.Context, context.CancelFunc){
		"of the hold": func(l *locker.Lock) (context.Context, context.CancelFunc) {
			return context.WithTimeout(l.Context(), 200*time.Millisecond)
		},
		"with values": func(l *locker.Lock) (context.Context, context.CancelFunc) {
			return context.WithTimeout(context.WithValue(l.Context(), contextKey{}, "v"), 200*time.Millisecond)
		},
		"of another hold, released meanwhile": func(*locker.Lock) (context.Context, context.CancelFunc) {
			other := lock(t, c, "other", "v")
			time.AfterFunc(200*time.Millisecond, func() { _ = other.Unlock(t.Context()) })
			return other.Context(), func() {}
		},
	}
	for what, derive := range contexts {
		l := lock(t, c, what, "v")
		ctx, cancel := derive(l)
		m.silent.Store(true)
		result := make(chan error, 1)
		go func() { result <- l.Unlock(ctx) }()
		err := receive(t, result)
		cancel()
		m.silent.Store(false)
		if !errors.Is(err, context.DeadlineExceeded) && (what == "of the hold" || !errors.Is(err, locker.ErrReleased)) {
			t.Errorf("%s: %v", what, err)
		}
		want(t, l.Err(), locker.ErrReleased)
		m.queued(t, what, 0) // the removal goes on
	}
}

func TestUnlock_EndsByTheDeadlineOfTheContextOfDo(t *testing.T) {
	t.Parallel()
	m, c := newMute(t)
	result := make(chan error, 1)
	go func() {
		_ = c.Do(within(t), "a", "v", func(ctx context.Context, l *locker.Lock) error {
			m.silent.Store(true)
			ctx, cancel := context.WithTimeout(ctx, 200*time.Millisecond)
			defer cancel()
			result <- l.Unlock(ctx)
			m.silent.Store(false)
			return nil
		})
	}()
	want(t, receive(t, result), context.DeadlineExceeded)
	m.queued(t, "a", 0)
}

func TestUnlock_DoesNotWaitWithAContextThatHadEnded(t *testing.T) {
	t.Parallel()
	m, c := newMute(t)
	other := lock(t, c, "other", "v")
	unlock(t, other)
	l := lock(t, c, "a", "v")
	m.silent.Store(true)
	result := make(chan error, 1)
	go func() { result <- l.Unlock(other.Context()) }()
	want(t, receive(t, result), locker.ErrReleased) // the cause of the context
	want(t, l.Err(), locker.ErrReleased)
	m.silent.Store(false)
	m.queued(t, "a", 0)
}

func TestUnlock_WaitsWithAContextThatEndsByIt(t *testing.T) {
	t.Parallel()
	b := setup(t)
	c, other := b.client(t), b.client(t)
	for i := range 20 {
		outer := lock(t, c, "outer", "v")
		err := c.Do(outer.Context(), "inner", "v", func(ctx context.Context, l *locker.Lock) error {
			ctx, cancel := context.WithTimeout(ctx, patience)
			defer cancel()
			if i%2 == 0 {
				l = outer
			}
			if err := l.Unlock(ctx); err != nil {
				return err
			}
			next, err := other.TryLock(within(t), l.Name(), "next")
			if err != nil {
				return err
			}
			return next.Unlock(within(t))
		})
		if err != nil {
			t.Fatal(err)
		}
		_ = outer.Unlock(within(t))
	}
}
