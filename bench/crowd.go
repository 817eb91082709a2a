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
	requests figure = "requests" // a hand-over

	clientsPerConnection = 10
	handOversCounted     = 300
)

// crowd is n clients that wait on one name. Whoever holds it leaves at once and queues again, so that the
// number of those waiting stays; the requests of all clients are counted.
func crowd(name string, n int) side {
	return side{name: name, open: func(ctx context.Context, a *arena) (round, error) {
		wire := newWire()
		mutexes, err := gather(ctx, a, wire, n+1)
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
			return countRequests(ctx, first, rest, wire, func(ctx context.Context) error {
				if err := awaitEntries(ctx, observer, queue, int64(n+1)); err != nil {
					return err
				}
				return awaitSilence(ctx, wire)
			})
		}, nil
	}}
}

// gather returns mutexes of n clients on one name. The TTL is long, so that what happens in the background
// does not count.
func gather(ctx context.Context, a *arena, w *wire, n int) ([]mutex, error) {
	connections := make([]*clientv3.Client, (n+clientsPerConnection-1)/clientsPerConnection)
	for i := range connections {
		var err error
		if connections[i], err = a.connect(w.options()...); err != nil {
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
		return lockOnce(ctx, &lockerMutex{client: clients[i], name: a.name("w", i)})
	})
}

// countRequests lets first go once all others wait, and counts until the name has changed hands often enough.
func countRequests(ctx context.Context, first mutex, rest []mutex, w *wire, queued func(ctx context.Context) error) (figures, error) {
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
						after = w.messages("")
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
		before = w.messages("")
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

// awaitSilence waits until no request has been sent for some time: all watches are established.
func awaitSilence(ctx context.Context, w *wire) error {
	const enough = 4
	for last, silent := -1, 0; silent < enough; silent++ {
		if now := w.messages(""); now != last {
			last, silent = now, 0
		}
		if err := pause(ctx, 50*time.Millisecond); err != nil {
			return err
		}
	}
	return nil
}
