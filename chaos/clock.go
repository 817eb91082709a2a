package main

import (
	"fmt"
	"time"

	"golang.org/x/sys/unix"
)

// instant is a moment on the monotonic clock of the machine, in nanoseconds. Unlike that inside a
// time.Time it means the same in all processes. 0 is never.
type instant int64

// checkClock returns an error if the machine has no such clock. What calls now calls it first.
func checkClock() error {
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &ts); err != nil {
		return fmt.Errorf("read the monotonic clock: %w", err)
	}
	return nil
}

func now() instant {
	var ts unix.Timespec
	_ = unix.ClockGettime(unix.CLOCK_MONOTONIC, &ts) // fails only where checkClock did
	return instant(ts.Nano())
}

func (t instant) add(d time.Duration) instant      { return t + instant(d) }
func (t instant) since(from instant) time.Duration { return time.Duration(t - from) }

// span is a stretch of time. An open one has no end yet: To is 0.
type span struct{ From, To instant }

func (s span) meets(from, to instant) bool { return s.From < to && (s.To == 0 || s.To > from) }

func (s span) String() string {
	return fmt.Sprintf("[%v, %v]", time.Duration(s.From), time.Duration(s.To))
}

// spans are stretches of time in any order.
type spans []span

// meets reports whether any of them has something in common with that time.
func (all spans) meets(from, to instant) bool {
	for _, s := range all {
		if s.meets(from, to) {
			return true
		}
	}
	return false
}

// within returns how much of that time they fill, counting what overlaps more than once.
func (all spans) within(from, to instant) (sum time.Duration) {
	if to <= from {
		return 0
	}
	for _, s := range all {
		if s.meets(from, to) {
			end := to
			if s.To != 0 {
				end = min(end, s.To)
			}
			sum += end.since(max(s.From, from))
		}
	}
	return sum
}

// first returns the start of the earliest that has something in common with that time.
func (all spans) first(from, to instant) (instant, bool) {
	found, ok := instant(0), false
	for _, s := range all {
		if s.meets(from, to) && (!ok || s.From < found) {
			found, ok = s.From, true
		}
	}
	return found, ok
}
