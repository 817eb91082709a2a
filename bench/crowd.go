package main

import (
	"context"
	"sync/atomic"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"golang.org/x/sync/errgroup"

	"github.com/jagregory/locker/v2"
)

const (
	requests figure = "requests" // per hand-over

	clientsPerConnection = 10
	handOversCounted     = 300
)

// crowd counts the requests of n clients that wait on one name. Each holder unlocks at
// once and queues again, so the number of waiters stays constant.
func crowd(name string, n int) side {
	return side{name: name, open: func(ctx context.Context, a *arena) (round, error) {
		counter := newMessageCounter()
		mutexes, err := newCrowd(ctx, a, counter, n+1)
		if err != nil {
			return nil, err
		}
		observer, err := a.connect()
		if err != nil {
			return nil, err
		}
		queue := lockerPrefix + a.name("n", 0) + "/"
		return func(ctx context.Context) (figures, error) {
			first, rest := mutexes[0], mutexes[1:]
			if err := first.Lock(ctx); err != nil {
				return nil, err
			}
			return countRequests(ctx, first, rest, counter, func(ctx context.Context) error {
				if err := awaitEntries(ctx, observer, queue, int64(n+1)); err != nil {
					return err
				}
				return awaitIdle(ctx, counter)
			})
		}, nil
	}}
}

// newCrowd returns mutexes of n clients on one name. The TTL is long, so that background
// requests are not counted.
func newCrowd(ctx context.Context, a *arena, c *messageCounter, n int) ([]mutex, error) {
	connections := make([]*clientv3.Client, (n+clientsPerConnection-1)/clientsPerConnection)
	for i := range connections {
		var err error
		if connections[i], err = a.connect(c.options()...); err != nil {
			return nil, err
		}
	}
	clients, mutexes := make([]*locker.Client, n), make([]mutex, n)
	a.onClose(func() error {
		return each(context.Background(), n, 16, func(_ context.Context, i int) error {
			if clients[i] == nil {
				return nil
			}
			return clients[i].Close()
		})
	})
	return mutexes, each(ctx, n, 16, func(ctx context.Context, i int) (err error) {
		clients[i], err = locker.New(connections[i%len(connections)], locker.WithPrefix(lockerPrefix), locker.WithTTL(10*time.Minute))
		if err != nil {
			return err
		}
		mutexes[i] = &lockerMutex{client: clients[i], name: a.name("n", 0)}
		return lockUnlock(ctx, &lockerMutex{client: clients[i], name: a.name("w", i)})
	})
}

// countRequests unlocks first once all others wait, and counts the requests of the next
// handOversCounted hand-overs.
func countRequests(ctx context.Context, first mutex, rest []mutex, c *messageCounter, queued func(ctx context.Context) error) (figures, error) {
	enough, cancel := context.WithCancel(ctx)
	defer cancel()
	g, running := errgroup.WithContext(enough)
	var handOvers atomic.Int64
	var before, after int
	for _, m := range rest {
		g.Go(func() error {
			for {
				err := m.Lock(running)
				if err != nil && running.Err() != nil {
					return nil
				}
				if err == nil {
					if handOvers.Add(1) == handOversCounted {
						after = c.messages("")
						cancel()
					}
					err = m.Unlock(ctx)
				}
				if err != nil || running.Err() != nil {
					return err
				}
			}
		})
	}
	err := queued(running)
	if err == nil {
		before = c.messages("")
		err = first.Unlock(ctx)
	}
	if err != nil {
		cancel()
		_ = g.Wait()
		return nil, err
	}
	if err := g.Wait(); err != nil {
		return nil, err
	}
	if ctx.Err() != nil {
		return nil, context.Cause(ctx)
	}
	return figures{requests: float64(after-before) / handOversCounted}, nil
}

// awaitIdle waits until no request has been sent for some time, which means that all
// watches are established.
func awaitIdle(ctx context.Context, c *messageCounter) error {
	const enough = 4
	for last, idle := -1, 0; idle < enough; idle++ {
		if now := c.messages(""); now != last {
			last, idle = now, 0
		}
		if err := pause(ctx, 50*time.Millisecond); err != nil {
			return err
		}
	}
	return nil
}
