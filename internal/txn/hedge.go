package txn

import (
	"context"
	"sync/atomic"
	"time"

	"github.com/jagregory/locker/v2/internal/backoff"
	"github.com/jagregory/locker/v2/internal/tasks"
)

// There is one scale of waiting for an answer, for requests, renewals and watches alike: an
// eighth of the TTL, within these bounds. A hand-over past a frozen member takes three of
// the longest, so less than 3 s however long the TTL is.
const (
	shortestHedgeDelay = 200 * time.Millisecond
	longestHedgeDelay  = 800 * time.Millisecond

	quickHedges          = 3                // before the intervals grow: each of these may have met the same member
	longestHedgeInterval = 30 * time.Second // up to which they grow
)

// DelayFor returns the hedge delay of a client whose leases live for ttl.
func DelayFor(ttl time.Duration) time.Duration {
	return min(max(ttl/8, shortestHedgeDelay), longestHedgeDelay)
}

// slowestLink is a bandwidth in bytes per second. On a link that is at least as fast,
// nothing large is hedged while it is on its way.
const slowestLink = 128 << 10

// Allowance returns how long size bytes take on the slowest link.
func Allowance(size int64) time.Duration { return time.Duration(size) * time.Second / slowestLink }

// carry notes that size bytes are on their way until done is called. All requests are given
// the time that these take.
func (s *Store) carry(size int64) (done func()) {
	s.carried.Add(size)
	return func() { s.carried.Add(-size) }
}

// LateAnswerWait is how long an attempt goes on that nobody waits for any more: usually it
// is answered by then, and leaves no doubt.
func (s *Store) LateAnswerWait() time.Duration { return 4 * s.HedgeDelay }

// hedge makes a request in this goroutine. While the request has no answer after the hedge
// delay, and the allowance for its size, hedge makes it a second time beside the first. The
// balancer sends that to the next member, so a member that is frozen or cut off costs one
// delay. The first certain answer counts.
//
// The first attempt lives as long as ctx, which is what a slow link needs. The second is
// replaced at growing intervals, so there are never more than two. When the answer has
// come, the other attempt has late to be answered too, and is then cut off.
func hedge[T any](ctx context.Context, s *Store, allowed, late time.Duration, attempt func(context.Context) (T, error)) (answer T, err error) {
	h := newHedged(ctx, s, allowed, late, late, attempt)
	h.first()
	return h.rest()
}

// hedged is a request that is hedged, in two steps: first and rest.
type hedged[T any] struct {
	store      *Store
	allowed    time.Duration // for the size of the request
	firstLate  time.Duration // how long the first attempt goes on after a second was answered
	secondLate time.Duration // and the other way round
	attempt    func(context.Context) (T, error)

	ctx    context.Context // of all attempts
	cancel context.CancelFunc
	wanted context.Context // ends with the first attempt: no other is begun after that
	done   context.CancelFunc
	timer  *tasks.Alarm // of the second attempt
	hedged bool         // another attempt may have been made beside the first
	second chan answered[T]

	own     answered[T] // of the first attempt
	certain atomic.Bool // that was answered for certain
}

type answered[T any] struct {
	answer T
	err    error
}

func (a answered[T]) certain() bool { return a.err == nil || !Transient(a.err) }

func newHedged[T any](ctx context.Context, s *Store, allowed, firstLate, secondLate time.Duration, attempt func(context.Context) (T, error)) *hedged[T] {
	h := &hedged[T]{store: s, allowed: allowed, firstLate: firstLate, secondLate: secondLate, attempt: attempt, second: make(chan answered[T], 1)}
	h.ctx, h.cancel = context.WithCancel(ctx)
	h.wanted, h.done = context.WithCancel(h.ctx)
	return h
}

// first makes the first attempt. rest must follow.
func (h *hedged[T]) first() {
	ctx, drop := context.WithCancel(h.ctx)
	defer drop()
	interval, start := h.store.HedgeDelay+h.allowed, time.Now()
	h.timer = h.store.Tasks.After(interval, func() { h.others(start, interval, drop) })
	answer, err := h.attempt(ctx)
	h.own = answered[T]{answer, err}
	h.certain.Store(h.own.certain())
	h.done()
	h.hedged = !h.timer.Stop()
}

// rest waits for the other attempts, if there are any: for an answer if the first has none,
// otherwise only to leave no doubt.
func (h *hedged[T]) rest() (T, error) {
	defer h.cancel()
	if !h.hedged {
		return h.own.answer, h.own.err
	}
	wait := h.secondLate
	if !h.own.certain() {
		wait = h.store.HedgeDelay + h.allowed // for the second attempt, if it has begun
	}
	bounded, stop := context.WithTimeout(h.ctx, wait)
	defer stop()
	select {
	case second, ok := <-h.second:
		if ok && !h.own.certain() {
			return second.answer, second.err
		}
	case <-bounded.Done():
	}
	return h.own.answer, h.own.err
}

// others makes one attempt after the other beside the first, which began at start, until
// one is certain; then it drops the first.
func (h *hedged[T]) others(start time.Time, interval time.Duration, drop context.CancelFunc) {
	s := h.store
	defer close(h.second)
	// What others send at the same time takes its time as well.
	for interval < s.HedgeDelay+Allowance(s.carried.Load()) {
		interval = s.HedgeDelay + Allowance(s.carried.Load())
		_ = backoff.Sleep(h.wanted, time.Until(start.Add(interval)))
	}
	for n := 1; s.budget.wait(h.wanted, s.HedgeDelay/2) && h.again(interval); n++ {
		if n >= quickHedges {
			interval = min(2*interval, longestHedgeInterval+h.allowed)
		}
	}
	if len(h.second) > 0 {
		_ = backoff.Sleep(h.ctx, h.firstLate)
		drop()
	}
}

// again makes one attempt beside the first, and reports whether another is of use.
func (h *hedged[T]) again(interval time.Duration) bool {
	s := h.store
	ctx, stop := context.WithTimeout(h.ctx, interval)
	defer stop()
	old := s.Tasks.After(s.HedgeDelay, s.budget.leave)
	answer, err := h.attempt(ctx)
	if old.Stop() {
		s.budget.leave()
	}
	second := answered[T]{answer, err}
	s.budget.judge(second.certain(), h.certain.Load())
	if second.certain() {
		h.second <- second
		return false
	}
	select { // it may have failed at once
	case <-ctx.Done():
	case <-h.wanted.Done():
	}
	return true
}
