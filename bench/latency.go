package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/HdrHistogram/hdrhistogram-go"
	clientv3 "go.etcd.io/etcd/client/v3"
)

// newHistogram returns a histogram from a nanosecond to a minute with three significant
// digits.
func newHistogram() *hdrhistogram.Histogram { return hdrhistogram.New(1, int64(time.Minute), 3) }

func record(h *hdrhistogram.Histogram, d time.Duration) {
	_ = h.RecordValue(min(max(int64(d), 1), int64(time.Minute))) // no error within the bounds
}

func microseconds(h *hdrhistogram.Histogram) float64 {
	return float64(h.ValueAtQuantile(50)) / float64(time.Microsecond)
}

// sample calls once repeatedly for the period of a round and returns the median of the
// times that it reports.
func sample(ctx context.Context, period time.Duration, once func(ctx context.Context) (time.Duration, error)) (figures, error) {
	h := newHistogram()
	for end := time.Now().Add(period); time.Now().Before(end); {
		took, err := once(ctx)
		if err != nil {
			return nil, err
		}
		record(h, took)
	}
	return figures{p50: microseconds(h)}, nil
}

// uncontended repeatedly locks and unlocks one free name.
func uncontended(s service) side {
	return side{name: s.name, peer: s.peer, open: func(ctx context.Context, a *arena) (round, error) {
		clients, err := s.joinAll(ctx, a, 1)
		if err != nil {
			return nil, err
		}
		m := clients[0](a.name("n", 0))
		return func(ctx context.Context) (figures, error) { return sample(ctx, a.workload.period, timeLockUnlock(m)) }, nil
	}}
}

func timeLockUnlock(m mutex) func(ctx context.Context) (time.Duration, error) {
	return func(ctx context.Context) (time.Duration, error) {
		began := time.Now()
		err := lockUnlock(ctx, m)
		return time.Since(began), err
	}
}

// floorKey returns a key of the same length as that of an entry.
func floorKey(a *arena) string { return fmt.Sprintf("%s%s/%016x", floorPrefix, a.name("n", 0), 1) }

// putDelete is the floor of uncontended: a put and a delete.
var putDelete = side{name: floor, open: func(ctx context.Context, a *arena) (round, error) {
	etcd, err := a.connect()
	if err != nil {
		return nil, err
	}
	key := floorKey(a)
	once := func(ctx context.Context) (time.Duration, error) {
		began := time.Now()
		_, err := etcd.Put(ctx, key, "")
		if err == nil {
			_, err = etcd.Delete(ctx, key)
		}
		return time.Since(began), err
	}
	if _, err := once(ctx); err != nil { // connects
		return nil, err
	}
	return func(ctx context.Context) (figures, error) { return sample(ctx, a.workload.period, once) }, nil
}}

// watchDelay is the time that a watch has before the change that it is to observe.
const watchDelay = 5 * time.Millisecond

// deleteEvent is the floor of a hand-over: one client deletes a key, and another receives
// the event.
var deleteEvent = side{name: floor, open: func(ctx context.Context, a *arena) (round, error) {
	deleter, watcher, err := pair(a)
	if err != nil {
		return nil, err
	}
	key := floorKey(a)
	events, err := watch(ctx, a, watcher, key, clientv3.WithFilterPut())
	if err != nil {
		return nil, err
	}
	return func(ctx context.Context) (figures, error) {
		return sample(ctx, a.workload.period, func(ctx context.Context) (time.Duration, error) {
			if _, err := deleter.Put(ctx, key, ""); err != nil {
				return 0, err
			}
			if err := pause(ctx, watchDelay); err != nil {
				return 0, err
			}
			began := time.Now()
			if _, err := deleter.Delete(ctx, key); err != nil {
				return 0, err
			}
			return receive(ctx, events, "", began)
		})
	}, nil
}}

func pair(a *arena) (one, other *clientv3.Client, err error) {
	if one, err = a.connect(); err == nil {
		other, err = a.connect()
	}
	return one, other, err
}

// pause waits for a time that is part of the method of measurement.
func pause(ctx context.Context, d time.Duration) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// handOver measures the hand-over between two clients: one holds the name, and the other
// is known to be waiting.
var handOver = side{name: ours, open: func(ctx context.Context, a *arena) (round, error) {
	clients, err := lockerService.joinAll(ctx, a, 2)
	if err != nil {
		return nil, err
	}
	observer, err := a.connect()
	if err != nil {
		return nil, err
	}
	name := a.name("n", 0)
	holder, waiter := clients[0](name), clients[1](name)
	return func(ctx context.Context) (figures, error) {
		if err := holder.Lock(ctx); err != nil {
			return nil, err
		}
		f, err := sample(ctx, a.workload.period, func(ctx context.Context) (time.Duration, error) {
			took, err := timeHandOver(ctx, holder, waiter, func(ctx context.Context) error {
				return awaitEntries(ctx, observer, queueOf(name), 2)
			})
			holder, waiter = waiter, holder
			return took, err
		})
		if err != nil {
			return nil, err
		}
		return f, holder.Unlock(ctx)
	}, nil
}}

// timeHandOver measures the time from just before holder unlocks until waiter's Lock
// returns.
func timeHandOver(ctx context.Context, holder, waiter mutex, queued func(ctx context.Context) error) (time.Duration, error) {
	ctx, cancel := context.WithCancel(ctx)
	var arrived time.Time
	done := make(chan error, 1)
	go func() {
		err := waiter.Lock(ctx)
		arrived = time.Now()
		done <- err
	}()
	err := queued(ctx)
	if err == nil {
		err = pause(ctx, watchDelay)
	}
	began := time.Now()
	if err == nil {
		err = holder.Unlock(ctx)
	}
	if err != nil {
		cancel()
	}
	err = errors.Join(err, <-done)
	cancel()
	return arrived.Sub(began), err
}
