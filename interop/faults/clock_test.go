//go:build unix

package faults

import (
	"slices"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// instant is a time on the monotonic clock of the machine, in nanoseconds, which all
// processes share. 0 means never.
type instant int64

func now() instant {
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &ts); err != nil {
		return 0 // every system has this clock; without it, every test would fail
	}
	return instant(ts.Nano())
}

func (t instant) add(d time.Duration) instant      { return t + instant(d) }
func (t instant) since(from instant) time.Duration { return time.Duration(t - from) }

// meter measures how long its process did not run. Time limits are extended by that on a
// machine with other work.
type meter struct {
	stop chan struct{}
	done chan struct{}

	mu     sync.Mutex // guards the fields below
	last   instant    // when it ran last
	stalls []stall    // oldest first
}

// stall is a time in which the process did not run.
type stall struct{ from, to instant }

const tick = 10 * time.Millisecond

// newMeter starts a meter. The caller must call end.
func newMeter() *meter {
	m := &meter{stop: make(chan struct{}), done: make(chan struct{}), last: now()}
	go m.run()
	return m
}

func (m *meter) run() {
	defer close(m.done)
	ticker := time.NewTicker(tick)
	defer ticker.Stop()
	for {
		select {
		case <-m.stop:
			return
		case <-ticker.C:
		}
		m.mu.Lock()
		at := now()
		if due := m.last.add(tick); due < at {
			m.stalls = append(m.stalls, stall{due, at})
		}
		m.last = at
		m.mu.Unlock()
	}
}

// since returns how long the process did not run since from.
func (m *meter) since(from instant) (sum time.Duration) {
	m.mu.Lock()
	defer m.mu.Unlock()
	sum = max(0, now().since(max(from, m.last.add(tick)))) // the next tick may be overdue
	for _, w := range slices.Backward(m.stalls) {
		if w.to <= from {
			break
		}
		sum += w.to.since(max(w.from, from))
	}
	return sum
}

func (m *meter) end() {
	close(m.stop)
	<-m.done
}
