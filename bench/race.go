package main

import (
	"context"
	"sync/atomic"
	"time"

	"go.etcd.io/etcd/client/v3/concurrency"
	"golang.org/x/sync/errgroup"
)

// apart is n goroutines of one client, each on a name of its own.
func apart(s service, n int) side {
	return raceOf(s, 1, func(ctx context.Context, a *arena) ([]mutex, error) {
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

// among is n clients on one name, each with a connection of its own.
func among(s service, n int) side {
	return raceOf(s, n, func(ctx context.Context, a *arena) ([]mutex, error) {
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

// inside is n goroutines of one client on one name.
func inside(s service, n int) side {
	return raceOf(s, n, func(ctx context.Context, a *arena) ([]mutex, error) {
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

// insideMutexes is inside for Mutexes. Those of one session do not exclude each other, so each of the
// goroutines has a session. All are over one connection, as a program has one.
func insideMutexes(n int) side {
	return raceOf(mutexes, n, func(ctx context.Context, a *arena) ([]mutex, error) {
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

// raceOf is a race in which the given number begin on the same name.
func raceOf(s service, together int, enter func(ctx context.Context, a *arena) ([]mutex, error)) side {
	return side{name: s.name, peer: s.peer, open: func(ctx context.Context, a *arena) (round, error) {
		mutexes, err := enter(ctx, a)
		if err != nil {
			return nil, err
		}
		runUp := a.scale.runUp + time.Duration(together)*toQueue
		return func(ctx context.Context) (figures, error) { return race(ctx, mutexes, runUp, a.scale.period) }, nil
	}}
}

const (
	rate figure = "rate" // a second
	p50  figure = "p50"  // in microseconds

	toQueue = 4 * time.Millisecond // for each client, at the start, on a slow machine
)

// race has each mutex locked and unlocked in a loop, with no work inside. After the run-up it counts, for
// the period, how often one was locked, and measures from the moment before an Unlock until the next
// Lock has returned: if all are on one name, that is the hand-over.
func race(ctx context.Context, mutexes []mutex, runUp, period time.Duration) (figures, error) {
	started := time.Now()
	begin := started.Add(runUp)
	until, cancel := context.WithDeadline(ctx, begin.Add(period))
	defer cancel()
	g, running := errgroup.WithContext(until)
	var left atomic.Int64 // when the last Unlock began, since started
	times := make([][]time.Duration, len(mutexes))
	for i, m := range mutexes {
		g.Go(func() error {
			for {
				err := m.Lock(running)
				if locked := time.Now(); err == nil && locked.After(begin) && running.Err() == nil {
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
	for _, each := range times {
		holds += len(each)
		for _, t := range each {
			record(h, t)
		}
	}
	return figures{rate: float64(holds) / period.Seconds(), p50: microseconds(h)}, nil
}
