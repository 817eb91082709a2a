package locktest

import (
	"context"
	"errors"
	"slices"
	"sync"
	"testing"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/jagregory/locker/v2"
)

// Events records what hooks are told, in the order in which they are called.
type Events struct {
	mu      sync.Mutex // guards what follows
	all     []any
	pending map[*call]bool // of LockStart, without a LockEnd
	extra   int            // calls of LockEnd without a LockStart of their own
}

// call is in the context that LockStart returns.
type call struct{ name string }

type callKey struct{ of *Events }

// Hooks returns the hooks that record.
func (e *Events) Hooks() locker.Hooks {
	return locker.Hooks{
		LockStart: func(ctx context.Context, start locker.LockStart) context.Context {
			this := &call{start.Name}
			e.mu.Lock()
			defer e.mu.Unlock()
			if e.pending == nil {
				e.pending = make(map[*call]bool)
			}
			e.pending[this] = true
			e.all = append(e.all, start)
			return context.WithValue(ctx, callKey{e}, this)
		},
		LockEnd: func(ctx context.Context, end locker.LockEnd) {
			e.mu.Lock()
			defer e.mu.Unlock()
			this, _ := ctx.Value(callKey{e}).(*call)
			if !e.pending[this] || this.name != end.Name {
				e.extra++
			}
			delete(e.pending, this)
			e.all = append(e.all, end)
		},
		HoldEnd:      func(end locker.HoldEnd) { e.add(end) },
		SessionStart: func(start locker.SessionStart) { e.add(start) },
		Renewal:      func(renewal locker.Renewal) { e.add(renewal) },
		SessionEnd:   func(end locker.SessionEnd) { e.add(end) },
		WatchReset:   func(reset locker.WatchReset) { e.add(reset) },
	}
}

func (e *Events) add(event any) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.all = append(e.all, event)
}

// EventsOf returns the events of one type so far.
func EventsOf[E any](e *Events) (some []E) {
	e.mu.Lock()
	defer e.mu.Unlock()
	for _, event := range e.all {
		if one, ok := event.(E); ok {
			some = append(some, one)
		}
	}
	return some
}

// Await waits for the n-th event of a type, counted from 1, and returns it.
func Await[E any](t testing.TB, e *Events, n int) E {
	t.Helper()
	Eventually(t, "an event is reported", func() bool { return len(EventsOf[E](e)) >= n })
	return EventsOf[E](e)[n-1]
}

// Complete fails the test unless each start has had its end, once and after it. The clients must be closed.
func (e *Events) Complete(t testing.TB) {
	t.Helper()
	e.mu.Lock()
	defer e.mu.Unlock()
	if len(e.pending) != 0 || e.extra != 0 {
		t.Errorf("%d calls of LockStart have no LockEnd, and %d of LockEnd no LockStart", len(e.pending), e.extra)
	}
	holds, sessions := make(map[*locker.Lock]int64), make(map[clientv3.LeaseID]bool)
	for i, event := range e.all {
		switch event := event.(type) {
		case locker.LockEnd:
			if (event.Lock == nil) != (event.Err != nil) || (event.Lock == nil) != (event.Token == 0) {
				t.Errorf("event %d contradicts itself: %+v", i, event)
			}
			if event.Lock != nil {
				holds[event.Lock] = event.Token
			}
		case locker.HoldEnd:
			if token, ok := holds[event.Lock]; !ok || token != event.Token || event.Name != event.Lock.Name() {
				t.Errorf("event %d is the end of no hold: %+v", i, event)
			}
			if !slices.ContainsFunc([]error{locker.ErrReleased, locker.ErrClosed, locker.ErrLost}, func(cause error) bool { return errors.Is(event.Cause, cause) }) {
				t.Errorf("event %d has the cause %v", i, event.Cause)
			}
			delete(holds, event.Lock)
		case locker.SessionStart:
			if _, ok := sessions[event.Lease]; ok {
				t.Errorf("event %d is a second start of the session: %+v", i, event)
			}
			sessions[event.Lease] = true
		case locker.Renewal:
			if open, ok := sessions[event.Lease]; !ok || open != (event.Err == nil) {
				t.Errorf("event %d is a renewal in a session that is open: %v, ended: %v: %+v", i, open, ok && !open, event)
			}
		case locker.SessionEnd:
			if !sessions[event.Lease] {
				t.Errorf("event %d is the end of no open session: %+v", i, event)
			}
			sessions[event.Lease] = false
		}
	}
	for lease, open := range sessions {
		if open {
			t.Errorf("the session %x has not been reported to end", lease)
		}
	}
	if len(holds) != 0 {
		t.Errorf("%d holds have not been reported to end", len(holds))
	}
}
