package main

import (
	"context"
	"sync/atomic"
	"time"

	"go.etcd.io/etcd/client/v3/concurrency"
	"golang.org/x/sync/errgroup"
)

// goroutinesOnOwnNames is a race of n goroutines of one client, each on its own name.
func goroutinesOnOwnNames(s service, n int) side {
	return raceSide(s, 1, func(ctx context.Context, a *arena) ([]mutex, error) {
		clients, err := s.joinAll(ctx, a, 1)
		if err != nil {
			return nil, err
		}
		all := make([]mutex, n)
		for i := range all {
			all[i] = clients[0](a.name("n", i))
		}
		return all, nil
	})
}

// clientsOnOneName is a race of n clients on one name, each with its own connection.
func clientsOnOneName(s service, n int) side {
	return raceSide(s, n, func(ctx context.Context, a *arena) ([]mutex, error) {
		clients, err := s.joinAll(ctx, a, n)
		if err != nil {
			return nil, err
		}
		all := make([]mutex, n)
		for i := range all {
			all[i] = clients[i](a.name("n", 0))
		}
		return all, nil
	})
}

// goroutinesOnOneName is a race of n goroutines of one client on one name.
func goroutinesOnOneName(s service, n int) side {
	return raceSide(s, n, func(ctx context.Context, a *arena) ([]mutex, error) {
		clients, err := s.joinAll(ctx, a, 1)
		if err != nil {
			return nil, err
		}
		all := make([]mutex, n)
		for i := range all {
			all[i] = clients[0](a.name("n", 0))
		}
		return all, nil
	})
}

// mutexGoroutinesOnOneName is goroutinesOnOneName for Mutex. Two of one session do not
// exclude each other, so each goroutine has its own session. All sessions share one
// connection, as in a program.
func mutexGoroutinesOnOneName(n int) side {
	return raceSide(mutexService, n, func(ctx context.Context, a *arena) ([]mutex, error) {
		etcd, err := a.connect()
		if err != nil {
			return nil, err
		}
		all := make([]mutex, n)
		for i := range all {
			session, err := newSession(a, etcd)
			if err != nil {
				return nil, err
			}
			all[i] = concurrency.NewMutex(session, mutexPrefix+a.name("n", 0))
		}
		return all, nil
	})
}

// raceSide returns the side of a service in a race. The number of clients that start on
// the same name determines the run-up.
func raceSide(s service, clients int, enter func(ctx context.Context, a *arena) ([]mutex, error)) side {
	return side{name: s.name, peer: s.peer, open: func(ctx context.Context, a *arena) (round, error) {
		mutexes, err := enter(ctx, a)
		if err != nil {
			return nil, err
		}
		runUp := a.workload.runUp + time.Duration(clients)*timeToQueue
		return func(ctx context.Context) (figures, error) { return race(ctx, mutexes, runUp, a.workload.period) }, nil
	}}
}

const (
	rate figure = "rate" // per second
	p50  figure = "p50"  // microseconds

	timeToQueue = 4 * time.Millisecond // per client, on a slow machine
)

// race locks and unlocks each mutex in a loop, with no work in between. After the run-up,
// it counts holds for the period and measures the time from just before an Unlock until
// the next Lock returns. If all mutexes are on one name, that is the hand-over.
func race(ctx context.Context, mutexes []mutex, runUp, period time.Duration) (figures, error) {
	started := time.Now()
	begin, end := started.Add(runUp), started.Add(runUp+period)
	// The end is not a deadline, which etcd would be told, and might report before it is one here.
	until, cancel := context.WithCancel(ctx)
	defer cancel()
	defer time.AfterFunc(runUp+period, cancel).Stop()
	g, running := errgroup.WithContext(until)
	var left atomic.Int64 // when the last Unlock began, as time since started
	times := make([][]time.Duration, len(mutexes))
	for i, m := range mutexes {
		g.Go(func() error {
			for {
				err := m.Lock(running)
				if locked := time.Now(); err == nil && locked.After(begin) && locked.Before(end) {
					times[i] = append(times[i], locked.Sub(started)-time.Duration(left.Load()))
				}
				if err == nil {
					left.Store(int64(time.Since(started)))
					err = m.Unlock(ctx)
				} else if running.Err() != nil {
					err = nil // it was still waiting when the round ended
				}
				if err != nil || running.Err() != nil {
					return err
				}
			}
		})
	}
	if err := g.Wait(); err != nil {
		return nil, err
	}
	if ctx.Err() != nil {
		return nil, context.Cause(ctx)
	}
	h, holds := newHistogram(), 0
	for _, own := range times {
		holds += len(own)
		for _, t := range own {
			record(h, t)
		}
	}
	return figures{rate: float64(holds) / period.Seconds(), p50: microseconds(h)}, nil
}
