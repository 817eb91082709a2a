//go:build unix

package faults

import (
	"slices"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// instant is a moment on the monotonic clock of the machine, in nanoseconds: it means the same in all
// processes. 0 is never.
type instant int64

func now() instant {
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &ts); err != nil {
		return 0 // there is no system without that clock; without it every test would fail
	}
	return instant(ts.Nano())
}

func (t instant) add(d time.Duration) instant      { return t + instant(d) }
func (t instant) since(from instant) time.Duration { return time.Duration(t - from) }

// meter measures for how long its process was kept from running: the allowance that bounds in time need
// on a machine with other work.
type meter struct {
	stop chan struct{}
	done chan struct{}

	mu   sync.Mutex // guards what follows
	last instant    // when it ran last
	kept []wait     // the oldest first
}

// wait is a time during which a process was not run.
type wait struct{ from, to instant }

const tick = 10 * time.Millisecond

// newMeter starts a meter, which must be ended.
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
			m.kept = append(m.kept, wait{due, at})
		}
		m.last = at
		m.mu.Unlock()
	}
}

// since returns for how long the process was kept waiting since then.
func (m *meter) since(from instant) (sum time.Duration) {
	m.mu.Lock()
	defer m.mu.Unlock()
	sum = max(0, now().since(max(from, m.last.add(tick)))) // the next tick may be due
	for _, w := range slices.Backward(m.kept) {
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
