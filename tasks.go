package locker

import (
	"context"
	"sync"
	"time"
)

// tasks counts the calls and the goroutines of a client, so that Close can wait
// for the last of them.
type tasks struct {
	mu     sync.Mutex // guards closed, so that none begins after Close has begun to wait
	closed bool
	wg     sync.WaitGroup
}

// begin counts a call in, and reports false once the client is closed.
func (t *tasks) begin() bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	if !t.closed {
		t.wg.Add(1)
	}
	return !t.closed
}

// add counts in what is to end later. Only what is itself counted may call it.
func (t *tasks) add() { t.wg.Add(1) }

// end counts out what begin or add counted in.
func (t *tasks) end() { t.wg.Done() }

// run starts a goroutine. Only what is itself counted may call it.
func (t *tasks) run(f func()) { t.wg.Go(f) }

// alarm is a function that is called later. It counts as a task until it was stopped
// or has returned.
type alarm struct {
	tasks *tasks
	timer *time.Timer
}

// after has f called after d. Only what is itself counted may call it.
func (t *tasks) after(d time.Duration, f func()) *alarm {
	t.add()
	return &alarm{t, time.AfterFunc(d, func() {
		defer t.end()
		f()
	})}
}

// stop keeps the function from being called, and reports false if that has begun, or
// the alarm was stopped before.
func (a *alarm) stop() bool {
	stopped := a.timer.Stop()
	if stopped {
		a.tasks.end()
	}
	return stopped
}

// close lets none begin any more, and reports false if it was closed before.
func (t *tasks) close() bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	was := t.closed
	t.closed = true
	return !was
}

// join waits until all have ended.
func (t *tasks) join() { t.wg.Wait() }

// either returns a copy of ctx that ends with other as well, with the cause of
// whichever ended first.
func either(ctx, other context.Context) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithCancelCause(ctx)
	if other.Err() != nil {
		cancel(context.Cause(other))
		return ctx, func() {}
	}
	stop := context.AfterFunc(other, func() { cancel(context.Cause(other)) })
	return ctx, func() { stop(); cancel(nil) }
}
