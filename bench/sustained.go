package main

import (
	"context"
	"fmt"
	"strconv"
	"time"

	"github.com/jagregory/locker/v2"
)

// The columns of a sustained load.
const (
	changeRate  figure = "changes/s"
	lag50       figure = "SetValue starts → in the Cache, p50, ms"
	lag99       figure = "p99, ms"
	etcdCPU     figure = "etcd CPU, %"
	clientCPU   figure = "CPU of both clients, %"
	messageRate figure = "messages/s in both directions"
	byteRate    figure = "KiB/s in both directions"
)

const changesPlanned = 100 // a second

// measureSustained measures a registry of n names: one client holds them, and changes one
// value after the other at a steady rate, and the Cache of another client follows.
func (a amounts) measureSustained(ctx context.Context, s *site, n int) (figures, error) {
	connections, err := s.connections(ctx, 2)
	if err != nil {
		return nil, err
	}
	clients, err := newLockers(s.arena, connections, 2)
	if err != nil {
		return nil, err
	}
	locks, err := lockNames(ctx, s, clients[:1], n, locksTogether)
	if err != nil {
		return nil, err
	}
	cache, err := clients[1].NewCache(ctx, s.id)
	if err != nil {
		return nil, err
	}
	defer cache.Close()
	if err := pause(ctx, settling); err != nil {
		return nil, err
	}
	lags := newHistogram()
	all, err := s.during(ctx, func() error {
		ticker := time.NewTicker(time.Second / changesPlanned)
		defer ticker.Stop()
		for began, i := time.Now(), 1; time.Since(began) < a.sustained; i++ {
			lag, err := changeAndSee(ctx, locks[i%n], cache, strconv.Itoa(i))
			if err != nil {
				return err
			}
			record(lags, lag)
			select {
			case <-ticker.C:
			case <-ctx.Done():
				return context.Cause(ctx)
			}
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	return figures{
		changeRate:  float64(lags.TotalCount()) / all.seconds,
		lag50:       float64(lags.ValueAtQuantile(50)) / float64(time.Millisecond),
		lag99:       float64(lags.ValueAtQuantile(99)) / float64(time.Millisecond),
		etcdCPU:     all.busy(),
		clientCPU:   100 * all.client / all.seconds,
		messageRate: (all.sent + all.received) / all.seconds,
		byteRate:    all.bytes / all.seconds / kib,
	}, stillHeld(locks)
}

// changeAndSee sets the value of a lock, and returns the time until it is in the cache.
func changeAndSee(ctx context.Context, lock *locker.Lock, cache *locker.Cache, value string) (time.Duration, error) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	var arrived time.Time
	seen := make(chan error, 1)
	go func() {
		err := awaitValue(ctx, cache, lock.Name(), value)
		arrived = time.Now()
		seen <- err
	}()
	began := time.Now()
	if err := lock.SetValue(ctx, value); err != nil {
		cancel(err)
	}
	if err := <-seen; err != nil {
		return 0, fmt.Errorf("change of %s: %w", lock.Name(), err)
	}
	return arrived.Sub(began), nil
}

// awaitValue waits until the cache has a value.
func awaitValue(ctx context.Context, cache *locker.Cache, name, value string) error {
	for {
		changed := cache.Changed()
		if holder, ok := cache.Get(name); ok && holder.Value == value {
			return nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}
