package locker

import (
	"context"
	"errors"
	"time"

	"github.com/jagregory/locker/v2/internal/backoff"
	"github.com/jagregory/locker/v2/internal/tasks"
)

// holdKey is the key of the *Lock with whose hold a context ends: that of the hold
// itself, or that of a function that Do or Campaign calls under it.
type holdKey struct{}

// holdOf returns the innermost such lock, nil if there is none.
func holdOf(ctx context.Context) *Lock {
	l, _ := ctx.Value(holdKey{}).(*Lock)
	return l
}

// do calls fn under the lock and releases it; it returns the errors of both.
func (l *Lock) do(ctx context.Context, fn func(context.Context, *Lock) error) (result, released error) {
	fctx, stop := tasks.Either(ctx, l.ctx)
	defer stop()
	defer func() { // also when fn panics
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), min(l.session.ttl, cleanupWait))
		defer cancel()
		released = l.Unlock(ctx)
		if errors.Is(released, ErrReleased) {
			released = nil // by fn
		}
	}()
	returned := make(chan struct{})
	defer close(returned)
	if !l.run(ctx, returned) {
		return nil, nil // it is over already; Unlock says why
	}
	return fn(context.WithValue(fctx, holdKey{}, l), l), nil
}

// run notes that a callback begins, which will close returned, if the lock is held; ctx
// is that of Do.
func (l *Lock) run(ctx context.Context, returned chan struct{}) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.phase == held {
		l.callback, l.caller = returned, ctx
	}
	return l.phase == held
}

// running returns what the callback will close, nil if there is none.
func (l *Lock) running() <-chan struct{} {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.callback
}

// isHeld reports whether the lock has not ended. Unlike Err, it does not ask the clock.
func (l *Lock) isHeld() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.phase == held
}

// checkNesting refuses to lock a name with a context that ends with a hold of the same
// name and client, or was given to a callback under one: it would wait for itself.
func (c *Client) checkNesting(ctx context.Context, name string) error {
	innermost := holdOf(ctx)
	for l := innermost; l != nil; l = l.outer {
		if l.client == c && l.name == name && (l == innermost || l.running() != nil) && l.isHeld() {
			return &InvalidError{"name", quote(name), "the hold that the context comes from has locked it, and locks are not reentrant"}
		}
	}
	return nil
}

// outlasting returns the context that bounds Unlock: if ctx ends with the hold, and so by
// Unlock itself, its deadline counts, and the context that Do was called with, unless it
// has ended before.
func (l *Lock) outlasting(ctx context.Context) (context.Context, context.CancelFunc) {
	if ctx.Err() != nil || !l.endsWith(ctx) {
		return ctx, func() {}
	}
	deadline, bounded := ctx.Deadline()
	ctx, stop := tasks.Either(context.WithoutCancel(ctx), l.callerOfDo())
	if !bounded {
		return ctx, stop
	}
	ctx, cancel := context.WithDeadline(ctx, deadline)
	return ctx, func() { cancel(); stop() }
}

// callerOfDo returns the context that Do was called with, or one without an end.
func (l *Lock) callerOfDo() context.Context {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.caller == nil {
		return context.Background()
	}
	return l.caller
}

// endsWith reports whether ctx ends with the hold of l, as far as its values tell.
func (l *Lock) endsWith(ctx context.Context) bool {
	outer := holdOf(ctx)
	for outer != nil && outer != l && outer.running() != nil { // the context of a callback within
		outer = outer.outer
	}
	return outer == l
}

// awaitCallbacks waits, after a Close, for the callbacks under the holds that it has
// ended: until they return, nobody else should have their names. It renews the lease
// meanwhile. It leaves a quarter of its bound to what follows.
func (s *Session) awaitCallbacks(ctx context.Context) {
	if len(s.callbacks) == 0 {
		return
	}
	c := s.client
	deadline, _ := ctx.Deadline()
	ctx, cancel := context.WithTimeout(ctx, min(time.Until(deadline), cleanupWait)*3/4)
	defer cancel()
	interval := s.renewed.life() / 3
	again := time.NewTimer(time.Until(s.renewed.sent.Add(interval)))
	defer again.Stop()
	pause := backoff.Pause{}
	for waiting := s.callbacks; len(waiting) > 0; {
		select {
		case <-waiting[0]:
			waiting = waiting[1:]
		case <-again.C:
			attempt, cancel := context.WithTimeout(ctx, c.store.LateAnswerWait())
			_, err := c.etcd.KeepAliveOnce(attempt, s.lease)
			cancel()
			if err == nil {
				again.Reset(interval)
			} else {
				again.Reset(pause.Next())
			}
		case <-ctx.Done():
			c.log.Warn("closed while functions of Do were still at work", "lease", s.member, "functions", len(waiting))
			return
		}
	}
}
