package locker

import (
	"context"
	"errors"
	"runtime/debug"
	"slices"
	"sync/atomic"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
)

// Hooks are functions that a Client calls when something happens, for metrics, traces and logs of
// the program's own. Any may be nil. They must be safe for concurrent use, and should return soon.
// None is called under a mutex, and all may call methods of the Client.
//
// LockStart and LockEnd, and the HoldEnd of an Unlock, are called in the goroutine of the call
// that they are about. If one of them blocks, that call takes longer, and if it panics, so does
// the call: then nothing is held, and nobody else is affected. (If a hold ends before LockEnd has
// returned, its HoldEnd is called there, after LockEnd.)
//
// The others, and the HoldEnd of a hold that ends in any other way, are called one after the
// other, in the order in which things happened, in a goroutine of the Client that does nothing
// else. If one of them blocks, those after it wait, and so does Client.Close, within its bound,
// but nothing else; if it panics, that is logged at level Error, see WithLogger. If one of them
// calls Close, that waits for itself for as long: let it start a goroutine.
//
// Of several Hooks, those after one that panics are called as well, except for LockStart.
type Hooks struct {
	// LockStart is called when a call of Lock, TryLock or Do begins, and for each lock that
	// Campaign waits for; not if the arguments are refused. It returns the context for
	// LockEnd, which may carry values from the one to the other. It has no effect on the call.
	// If it is nil, that of the call is used.
	LockStart func(ctx context.Context, e LockStart) context.Context
	// LockEnd is called once for each LockStart, when the lock is held or could not be had; in
	// the case of Do and Campaign before their function is called.
	LockEnd func(ctx context.Context, e LockEnd)
	// HoldEnd is called once for each LockEnd without an error, after it. The HoldEnd of an
	// Unlock is called when Unlock is about to return.
	HoldEnd func(e HoldEnd)

	// SessionStart is called when a session has been opened: by NewSession or AdoptSession,
	// or by the Client for its locks.
	SessionStart func(e SessionStart)
	// Renewal is called when the lease of a session was renewed, which happens every third of the
	// TTL; and after SessionEnd, if it was lost while etcd was asked to renew it.
	Renewal func(e Renewal)
	// SessionEnd is called once for each SessionStart, when the session is over. The HoldEnd of
	// each of its holds comes before, unless it is called in the goroutine of an Unlock or a Lock.
	SessionEnd func(e SessionEnd)

	// WatchReset is called when watches have ended by themselves, and are opened again: all
	// those of the Client, or a single one. They miss nothing by that, but may be late.
	WatchReset func(e WatchReset)
}

// LockStart describes the start of a call that locks.
type LockStart struct {
	Name string // the first one, if there are several
	Verb string // "Lock", "TryLock", "Do" or "Campaign"
}

// LockEnd describes the outcome of a call that locks.
type LockEnd struct {
	Name   string
	Verb   string
	Token  int64         // 0 with an error
	Waited time.Duration // since LockStart
	Err    error         // why nothing is held, without the name of the call; nil if the lock is held
	Lock   *Lock         // nil with an error; also identifies the hold in HoldEnd

	// Ahead is how many entries were ahead of its own in the queue when that was put: for a shared
	// lock, of those that are not shared; of several names, in the longest queue. It is 0 if that
	// is not known. Goroutines of the same Client that have yet to put an entry do not count.
	Ahead int
}

// HoldEnd describes the end of a hold.
type HoldEnd struct {
	Name  string
	Token int64
	Held  time.Duration // from when it was held until its context ended
	Cause error         // that of its context: *LostError, ErrReleased or ErrClosed
	Lock  *Lock
}

// SessionStart describes a session that was opened.
type SessionStart struct {
	Lease clientv3.LeaseID
	TTL   time.Duration // as granted by etcd, without a lock-delay
}

// Renewal describes a renewal of a lease, successful or not.
type Renewal struct {
	Lease    clientv3.LeaseID
	Took     time.Duration // from the first request until the answer
	Left     time.Duration // from the answer until the deadline as it was before; 0 if it had passed
	Attempts int           // requests that were made for it
	Err      error         // why the session is lost; nil if the lease was renewed
}

// SessionEnd describes the end of a session.
type SessionEnd struct {
	Lease clientv3.LeaseID
	Cause error // *LostError or ErrClosed
}

// WatchReset describes why watches were opened again.
type WatchReset struct {
	// Cause is "disconnect" (the connection broke), "no answer" (a member was silent, and
	// another was not), "compaction" (etcd no longer had what a watch asked for), "refused" (by
	// etcd, for example for want of permission) or "restore" (etcd was at an earlier revision
	// than before).
	Cause string
}

// WithHooks adds hooks, which are called in the order in which they were added. The default is
// none. Functions that are nil cost nothing. (A hook that locks the name that its event is about
// may wait for itself, as any caller may.)
func WithHooks(h ...Hooks) Option {
	return func(c *Client) error {
		c.hooks = append(c.hooks, h...)
		return nil
	}
}

// hooks calls the functions of several Hooks.
type hooks []Hooks

// ofLocks reports whether one of the functions is about locks.
func (h Hooks) ofLocks() bool { return h.LockStart != nil || h.LockEnd != nil || h.HoldEnd != nil }

// each calls f for each of the Hooks, even if it panics for one of them.
func (h hooks) each(f func(*Hooks)) {
	if len(h) > 0 {
		defer h[1:].each(f)
		f(&h[0])
	}
}

func (h hooks) holdEnd(e HoldEnd) {
	h.each(func(h *Hooks) {
		if h.HoldEnd != nil {
			h.HoldEnd(e)
		}
	})
}

// report has one of the functions of each of the Hooks called, after those of earlier reports,
// in a goroutine of its own. It does not block, and may be called under a mutex.
func report[E any](c *Client, e E, function func(*Hooks) func(E)) {
	for i := range c.hooks {
		f := function(&c.hooks[i])
		if f == nil {
			continue
		}
		c.reports.Run(func() {
			defer func() {
				if problem := recover(); problem != nil {
					c.log.Error("hook panicked", "panic", problem, "stack", string(debug.Stack()))
				}
			}()
			f(e)
		})
	}
}

// awaitReports waits until all reports have been made, or ctx ends. None may follow.
func (c *Client) awaitReports(ctx context.Context) {
	if c.hooks == nil {
		return
	}
	done := make(chan struct{})
	c.reports.Run(func() { close(done) })
	late := time.NewTimer(reportsWait) // ctx may have ended for another reason
	defer late.Stop()
	select {
	case <-done:
		c.reporting.Join()
		return
	case <-late.C:
	}
	select {
	case <-done:
		c.reporting.Join()
	case <-ctx.Done():
		c.log.Warn("closed while a hook was still at work")
	}
}

// reportsWait is how long Close waits for hooks in any case.
const reportsWait = 100 * time.Millisecond

// trace is what the hooks have yet to be told of a call that locks, and of its hold.
type trace struct {
	hooks hooks           // those whose LockStart has returned
	ctx   context.Context // that LockStart has returned, for LockEnd
	began time.Time
	call  LockEnd // as far as it is known
	ahead atomic.Int64

	since time.Time // of the hold; the mutex of the Lock guards it
	end   HoldEnd   // set when the hold has ended

	// Of LockEnd and the end of the hold, the one that comes second calls HoldEnd.
	steps atomic.Int32
}

// begin calls LockStart, and returns a trace; nil if no hook is about locks. If one
// panics, LockEnd is called for those before it.
func (h hooks) begin(ctx context.Context, name, verb string) *trace {
	if !slices.ContainsFunc(h, Hooks.ofLocks) {
		return nil
	}
	t := &trace{ctx: ctx, began: time.Now(), call: LockEnd{Name: name, Verb: verb}}
	defer func() {
		if len(t.hooks) < len(h) {
			t.lockEnd(nil, errHookPanicked)
		}
	}()
	for i := range h {
		if f := h[i].LockStart; f != nil {
			if next := f(t.ctx, LockStart{Name: name, Verb: verb}); next != nil {
				t.ctx = next
			}
		}
		t.hooks = h[:i+1]
	}
	t.began = time.Now()
	return t
}

var errHookPanicked = errors.New("a hook panicked")

// lockEnd calls LockEnd. The call returns l or err.
func (t *trace) lockEnd(l *Lock, err error) {
	e := t.call
	e.Lock, e.Token, e.Ahead, e.Waited, e.Err = l, l.Token(), int(t.ahead.Load()), time.Since(t.began), err
	panicked := true
	defer func() {
		if l == nil {
			return
		}
		l.reportEnd()
		if panicked { // the caller gets no Lock to unlock
			_ = l.Unlock(endedContext(ErrReleased)) // which goes on in the background
		}
	}()
	t.hooks.each(func(h *Hooks) {
		if h.LockEnd != nil {
			h.LockEnd(t.ctx, e)
		}
	})
	panicked = false
}

// traceAhead notes where in their queues the entries were put.
func (l *Lock) traceAhead(positions []*position) {
	if l.trace == nil {
		return
	}
	ahead := int64(0)
	for _, p := range positions {
		if p != nil {
			ahead = max(ahead, p.total)
		}
	}
	l.trace.ahead.Store(ahead)
}

// traceHold notes that the hold begins. The caller holds the mutex.
func (l *Lock) traceHold() {
	if l.trace != nil {
		l.trace.since = time.Now()
	}
}

// traceEnd notes that the hold has ended.
func (l *Lock) traceEnd(cause error) {
	if t := l.trace; t != nil {
		t.end = HoldEnd{Name: l.name(), Token: l.token.Load(), Held: time.Since(t.since), Cause: cause, Lock: l}
	}
}

// reportEnd calls HoldEnd, unless LockEnd has yet to return, or the hold has yet to end.
func (l *Lock) reportEnd() {
	if l.trace != nil && l.trace.steps.Add(1) == 2 {
		l.client.hooks.holdEnd(l.trace.end)
	}
}

// reportEndLater is reportEnd for a hold that was not ended by its holder.
func (l *Lock) reportEndLater() {
	if l.trace != nil && l.trace.steps.Add(1) == 2 {
		report(l.client, l.trace.end, func(h *Hooks) func(HoldEnd) { return h.HoldEnd })
	}
}

// reportStart reports that the session has begun, if it is not over already. The end of a
// session is reported if its start was.
func (s *Session) reportStart() {
	e := SessionStart{Lease: s.lease, TTL: s.ttl}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.reported = !s.over; s.reported {
		report(s.client, e, func(h *Hooks) func(SessionStart) { return h.SessionStart })
	}
}

// reportRenewal reports how a renewal that began then has ended, unless the session was closed
// meanwhile, or its start was not reported.
func (s *Session) reportRenewal(e Renewal, began time.Time) {
	e.Took = time.Since(began)
	s.mu.Lock()
	reported := s.reported
	s.mu.Unlock()
	if reported && (e.Err == nil || errors.Is(e.Err, ErrLost)) {
		report(s.client, e, func(h *Hooks) func(Renewal) { return h.Renewal })
	}
}

// reportEnd reports that the session is over.
func (s *Session) reportEnd(cause error) {
	e := SessionEnd{Lease: s.lease, Cause: cause}
	report(s.client, e, func(h *Hooks) func(SessionEnd) { return h.SessionEnd })
}

// reportReset reports that watches are opened again.
func (c *Client) reportReset(cause string) {
	report(c, WatchReset{cause}, func(h *Hooks) func(WatchReset) { return h.WatchReset })
}
