package ui

import (
	"context"
	"sync"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/jagregory/locker/v2/internal/livepage"
)

const (
	// askInterval is how long an answer about a lease is good enough.
	askInterval = 1500 * time.Millisecond
	// askTimeout bounds a round of questions.
	askTimeout = time.Second
	// asksAtOnce is how many leases are asked about at a time, by all requests together.
	asksAtOnce = 8
	// maxAsked is how many leases a request asks about.
	maxAsked = 1000
)

// lifetime is what etcd says about a lease.
type lifetime struct {
	asked    time.Time
	answered time.Time
	left     time.Duration // negative if the lease is gone
	granted  time.Duration
}

// lifetimes has what etcd has said about leases.
type lifetimes struct {
	ask    func(context.Context, clientv3.LeaseID) (left, granted time.Duration, err error)
	asking chan struct{} // has an element for each question that is being asked

	mu    sync.Mutex // guards known
	known map[clientv3.LeaseID]lifetime
}

func newLifetimes(etcd clientv3.Lease) *lifetimes {
	ask := func(ctx context.Context, id clientv3.LeaseID) (left, granted time.Duration, err error) {
		resp, err := etcd.TimeToLive(ctx, id)
		if err != nil {
			return 0, 0, err
		}
		return time.Duration(resp.TTL) * time.Second, time.Duration(resp.GrantedTTL) * time.Second, nil
	}
	return &lifetimes{ask: ask, asking: make(chan struct{}, asksAtOnce), known: make(map[clientv3.LeaseID]lifetime)}
}

// refresh asks about leases whose answers have become old. Those that etcd does not answer
// about in time stay as they are. However many requests call it, etcd is asked about few leases
// at a time.
func (l *lifetimes) refresh(ctx context.Context, leases []clientv3.LeaseID) {
	ctx, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	due := l.due(leases)
	var round sync.WaitGroup
	defer round.Wait()
	for i, id := range due {
		select {
		case l.asking <- struct{}{}:
		case <-ctx.Done():
			l.leave(due[i:])
			return
		}
		round.Go(func() {
			defer func() { <-l.asking }()
			if left, granted, err := l.ask(ctx, id); err == nil {
				l.learn(id, left, granted)
			}
		})
	}
}

// leave notes that leases were not asked about after all, so that the next request does.
func (l *lifetimes) leave(leases []clientv3.LeaseID) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, id := range leases {
		life := l.known[id]
		life.asked = life.answered
		l.known[id] = life
	}
}

// due returns the leases to ask about, each once, and notes that they are asked about.
func (l *lifetimes) due(leases []clientv3.LeaseID) (due []clientv3.LeaseID) {
	l.mu.Lock()
	defer l.mu.Unlock()
	now := time.Now()
	if len(l.known) > 10*maxAsked {
		for id, life := range l.known {
			if now.Sub(life.asked) > time.Minute {
				delete(l.known, id)
			}
		}
	}
	for _, id := range leases {
		life := l.known[id]
		if id == 0 || now.Sub(life.asked) < askInterval || len(due) == maxAsked {
			continue
		}
		life.asked = now
		l.known[id] = life
		due = append(due, id)
	}
	return due
}

func (l *lifetimes) learn(id clientv3.LeaseID, left, granted time.Duration) {
	l.mu.Lock()
	defer l.mu.Unlock()
	life := l.known[id]
	life.answered, life.left, life.granted = time.Now(), left, granted
	l.known[id] = life
}

// of returns what is left of a lease and what was granted, and false if there is no answer
// that is recent enough.
func (l *lifetimes) of(id clientv3.LeaseID) (left, granted time.Duration, ok bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	life := l.known[id]
	return life.left, life.granted, time.Since(life.answered) < livepage.StaleAfter
}
