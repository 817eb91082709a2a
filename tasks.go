package locker

import (
	"container/list"
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

// backlog has work done in goroutines of a client, so much of it at a time: what many
// calls leave behind that were given up at once does not keep them from returning, and
// etcd would not take it any faster.
type backlog struct {
	tasks *tasks
	limit int

	mu      sync.Mutex // guards what follows
	atWork  int
	waiting list.List // of func(), the oldest first
}

// run starts work, or has it wait, in which case it reports false. Only what is itself
// counted in the tasks may call it.
func (b *backlog) run(work func()) (started bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.atWork == b.limit {
		b.waiting.PushBack(work)
		return false
	}
	b.atWork++
	b.tasks.run(func() {
		for work != nil {
			work()
			work = b.next()
		}
	})
	return true
}

// next returns the work that has waited for the longest, nil if there is none.
func (b *backlog) next() func() {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.waiting.Len() == 0 {
		b.atWork--
		return nil
	}
	return b.waiting.Remove(b.waiting.Front()).(func())
}

// shared is work whose result those share who ask for it at the same time.
type shared struct {
	mu      sync.Mutex // guards what follows; the work is not done under it
	present *sharing   // nil while nobody is at it
}

type sharing struct {
	done chan struct{} // closed when err is known
	err  error
}

// share does the work, or waits for the result of who is at it.
func (s *shared) share(work func() error) error {
	s.mu.Lock()
	present := s.present
	mine := present == nil
	if mine {
		present = &sharing{done: make(chan struct{})}
		s.present = present
	}
	s.mu.Unlock()
	if !mine {
		<-present.done
		return present.err
	}
	present.err = work()
	s.mu.Lock()
	s.present = nil
	s.mu.Unlock()
	close(present.done)
	return present.err
}

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
