package main

import (
	"context"
	"fmt"
	"sync"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"golang.org/x/sync/errgroup"

	"github.com/jagregory/locker/v2"
)

const (
	joiningTogether = 64 // clients that join a queue at a time: few enough to need no hedge

	longTTL = time.Hour // no renewals
)

// relay is clients that wait for a name, and then pass it on to each other: each holder
// unlocks at once and queues again, until there were enough hand-overs. The last one keeps
// the name.
type relay struct {
	name   string
	least  int           // hand-overs
	most   int           // of them, which may cut the period short; 0 for any number
	period time.Duration // at least

	group  *errgroup.Group
	ctx    context.Context // ends when one client fails, and with end
	cancel context.CancelFunc
	first  *locker.Client
	held   *locker.Lock  // by the first client, until the first hand-over
	enough chan struct{} // closed when there were enough; times does not change after that

	mu    sync.Mutex // guards what follows
	began time.Time
	left  time.Time // when the last Unlock began
	times []float64 // of hand-overs, in milliseconds
	over  bool
}

func newRelay(ctx context.Context, name string, least int, period time.Duration) *relay {
	r := &relay{name: name, least: least, period: period, enough: make(chan struct{})}
	ctx, r.cancel = context.WithCancel(ctx)
	r.group, r.ctx = errgroup.WithContext(ctx)
	return r
}

// gather has the first client hold the name and the others join the queue, a few at a time.
// It returns when all of them are in it.
func (r *relay) gather(observer *clientv3.Client, clients []*locker.Client) (err error) {
	r.first = clients[0]
	if r.held, err = r.first.Lock(r.ctx, r.name, ""); err != nil {
		return err
	}
	for queued := 1; queued < len(clients); {
		next := min(queued+joiningTogether, len(clients))
		for _, c := range clients[queued:next] {
			r.group.Go(func() error { return r.run(c) })
		}
		if err := awaitEntries(r.ctx, observer, queueOf(r.name), int64(next)); err != nil {
			return fmt.Errorf("only about %d of %d clients are in the queue: %w", queued, len(clients), withCause(r.ctx, err))
		}
		queued = next
	}
	return nil
}

// handOvers has the first client unlock, and returns when there were enough hand-overs.
func (r *relay) handOvers() error {
	r.start(time.Now())
	if err := r.held.Unlock(r.ctx); err != nil {
		return err
	}
	r.group.Go(func() error { return r.run(r.first) })
	select {
	case <-r.enough:
		return nil
	case <-r.ctx.Done():
		return context.Cause(r.ctx)
	}
}

// end makes all clients leave, and waits for that. Errors do not matter any more.
func (r *relay) end() {
	r.cancel()
	_ = r.group.Wait()
}

// start starts the clock.
func (r *relay) start(now time.Time) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.began, r.left = now, now
}

// run is one client.
func (r *relay) run(c *locker.Client) error {
	for {
		l, err := c.Lock(r.ctx, r.name, "")
		if err != nil {
			return err
		}
		if !r.pass(time.Now()) {
			<-r.ctx.Done()
		}
		if err := l.Unlock(r.ctx); err != nil {
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
	n := len(r.times)
	if n == r.most || n >= r.least && now.Sub(r.began) >= r.period {
		r.over = true
		close(r.enough)
	}
	return !r.over
}
