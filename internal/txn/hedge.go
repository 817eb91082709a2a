package txn

import (
	"context"
	"sync/atomic"
	"time"

	"github.com/jagregory/locker/v2/internal/backoff"
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
	type outcome struct {
		answer T
		err    error
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	first, drop := context.WithCancel(ctx)
	defer drop()
	wanted, done := context.WithCancel(ctx) // ends with the first attempt: no other is begun after that
	defer done()
	var (
		answered atomic.Bool // the first attempt was answered for certain
		second   = make(chan outcome, 1)
		began    = time.Now()
		interval = s.HedgeDelay + allowed
	)
	// again makes one attempt beside the first, and reports whether another is of use.
	again := func() bool {
		ctx, stop := context.WithTimeout(ctx, interval)
		defer stop()
		old := s.Tasks.After(s.HedgeDelay, s.budget.leave)
		answer, err := attempt(ctx)
		if old.Stop() {
			s.budget.leave()
		}
		certain := err == nil || !Transient(err)
		s.budget.judge(certain, answered.Load())
		if certain {
			second <- outcome{answer, err}
			return false
		}
		select { // it may have failed at once
		case <-ctx.Done():
		case <-wanted.Done():
		}
		return true
	}
	timer := s.Tasks.After(interval, func() {
		defer close(second)
		// What others send at the same time takes its time as well.
		for interval < s.HedgeDelay+Allowance(s.carried.Load()) {
			interval = s.HedgeDelay + Allowance(s.carried.Load())
			_ = backoff.Sleep(wanted, time.Until(began.Add(interval)))
		}
		for n := 1; s.budget.wait(wanted, s.HedgeDelay/2) && again(); n++ {
			if n >= quickHedges {
				interval = min(2*interval, longestHedgeInterval+allowed)
			}
		}
		if len(second) > 0 {
			_ = backoff.Sleep(ctx, late)
			drop()
		}
	})
	answer, err = attempt(first)
	if timer.Stop() {
		return answer, err
	}
	certain := err == nil || !Transient(err)
	answered.Store(certain)
	done()
	rest := late
	if !certain {
		rest = s.HedgeDelay + allowed // for the second attempt, if it has begun
	}
	bounded, stop := context.WithTimeout(ctx, rest)
	defer stop()
	select {
	case o, ok := <-second: // if the first is certain, only to leave no doubt about the second
		if ok && !certain {
			return o.answer, o.err
		}
	case <-bounded.Done():
	}
	return answer, err
}
