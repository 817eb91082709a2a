package main

import (
	"fmt"
	"time"

	"golang.org/x/sys/unix"
)

// instant is a reading of the machine's monotonic clock, in nanoseconds. Unlike the one
// inside a time.Time, it can be compared between processes. 0 means never.
type instant int64

// checkClock returns an error if the monotonic clock is unavailable. Call it before now.
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

// span is an interval of time. If it has no end yet, To is 0.
type span struct{ From, To instant }

func (s span) overlaps(from, to instant) bool { return s.From < to && (s.To == 0 || s.To > from) }

func (s span) String() string {
	return fmt.Sprintf("[%v, %v]", time.Duration(s.From), time.Duration(s.To))
}

// spans are intervals in any order.
type spans []span

// overlaps reports whether any span overlaps the interval.
func (all spans) overlaps(from, to instant) bool {
	for _, s := range all {
		if s.overlaps(from, to) {
			return true
		}
	}
	return false
}

// covered returns how much of the interval the spans cover. Overlaps count more than once.
func (all spans) covered(from, to instant) (sum time.Duration) {
	if to <= from {
		return 0
	}
	for _, s := range all {
		if s.overlaps(from, to) {
			end := to
			if s.To != 0 {
				end = min(end, s.To)
			}
			sum += end.since(max(s.From, from))
		}
	}
	return sum
}

// first returns the start of the earliest span that overlaps the interval.
func (all spans) first(from, to instant) (start instant, found bool) {
	for _, s := range all {
		if s.overlaps(from, to) && (!found || s.From < start) {
			start, found = s.From, true
		}
	}
	return start, found
}
