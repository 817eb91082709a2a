package main

import (
	"context"
	"sync"
	"time"

	"github.com/jagregory/locker/v2"
)

// relay is clients that pass a name on to each other. Each holder unlocks at once and
// queues again, until there were enough hand-overs. The last one keeps the name.
type relay struct {
	name   string
	least  int           // hand-overs
	period time.Duration // at least
	enough chan struct{} // closed when there were enough; times does not change after that

	mu    sync.Mutex // guards what follows
	began time.Time
	left  time.Time // when the last Unlock began
	times []float64 // of hand-overs, in milliseconds
	over  bool
}

func newRelay(name string, least int, period time.Duration) *relay {
	return &relay{name: name, least: least, period: period, enough: make(chan struct{})}
}

// start starts the clock. The caller unlocks after that.
func (r *relay) start(now time.Time) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.began, r.left = now, now
}

// run is one client.
func (r *relay) run(ctx context.Context, c *locker.Client) error {
	for {
		l, err := c.Lock(ctx, r.name, "")
		if err != nil {
			return err
		}
		if !r.pass(time.Now()) {
			return nil
		}
		if err := l.Unlock(ctx); err != nil {
			return err
		}
	}
}

// pass notes that a Lock has returned, and reports whether its holder is to unlock.
func (r *relay) pass(now time.Time) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.over {
		return false
	}
	r.times = append(r.times, milliseconds(now.Sub(r.left)))
	r.left = now
	if len(r.times) >= r.least && now.Sub(r.began) >= r.period {
		r.over = true
		close(r.enough)
	}
	return !r.over
}

func (r *relay) wait(ctx context.Context) error {
	select {
	case <-r.enough:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}
