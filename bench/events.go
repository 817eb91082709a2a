package main

import (
	"context"
	"errors"
	"strconv"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/jagregory/locker/v2"
)

// putEvent is the floor of changes: one client puts a value, and another receives the
// event.
var putEvent = side{name: floor, open: func(ctx context.Context, a *arena) (round, error) {
	writer, watcher, err := pair(a)
	if err != nil {
		return nil, err
	}
	key, i := floorKey(a), 0
	a.onClose(func() error {
		_, err := writer.Delete(context.Background(), key)
		return err
	})
	events, err := watch(ctx, a, watcher, key)
	if err != nil {
		return nil, err
	}
	return func(ctx context.Context) (figures, error) {
		return sample(ctx, a.workload.period, func(ctx context.Context) (time.Duration, error) {
			if err := pause(ctx, watchDelay); err != nil {
				return 0, err
			}
			i++
			value := strconv.Itoa(i)
			began := time.Now()
			if _, err := writer.Put(ctx, key, value); err != nil {
				return 0, err
			}
			return receive(ctx, events, value, began)
		})
	}, nil
}}

// changes measures the time until a value that one client sets is seen by another that
// watches.
var changes = side{name: ours, open: func(ctx context.Context, a *arena) (round, error) {
	writer, watcher, err := lockerPair(a)
	if err != nil {
		return nil, err
	}
	lock, err := writer.Lock(ctx, a.name("n", 0), "0")
	if err != nil {
		return nil, err
	}
	arrivals := make(chan arrival, 1)
	wctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	a.onClose(func() error { cancel(); <-done; return nil })
	go func() {
		defer close(done)
		defer close(arrivals)
		for state, err := range watcher.Watch(wctx, a.name("n", 0)) {
			if err != nil {
				return
			}
			select {
			case arrivals <- arrival{time.Now(), state.Value}:
			case <-wctx.Done():
			}
		}
	}()
	if _, err := receive(ctx, arrivals, "0", time.Now()); err != nil { // the initial state
		return nil, err
	}
	i := 0
	return func(ctx context.Context) (figures, error) {
		return sample(ctx, a.workload.period, func(ctx context.Context) (time.Duration, error) {
			if err := pause(ctx, watchDelay); err != nil {
				return 0, err
			}
			i++
			value := strconv.Itoa(i)
			began := time.Now()
			if err := lock.SetValue(ctx, value); err != nil {
				return 0, err
			}
			return receive(ctx, arrivals, value, began)
		})
	}, nil
}}

func lockerPair(a *arena) (one, other *locker.Client, err error) {
	etcd, etcd2, err := pair(a)
	if err != nil {
		return nil, nil, err
	}
	clients, err := newLockers(a, []*clientv3.Client{etcd, etcd2}, 2)
	if err != nil {
		return nil, nil, err
	}
	return clients[0], clients[1], nil
}

// arrival is a value and the time at which it was seen. The value of a deleted key is
// empty.
type arrival struct {
	at    time.Time
	value string
}

var errWatchEnded = errors.New("the watch ended")

// watch returns the changes of key from an established watch. The watch is opened without
// a revision, because the server uses a slower loop for watches that start in the past.
func watch(ctx context.Context, a *arena, etcd *clientv3.Client, key string, opts ...clientv3.OpOption) (<-chan arrival, error) {
	watching, cancel := context.WithCancel(context.Background())
	responses := etcd.Watch(watching, key, append(opts, clientv3.WithCreatedNotify())...)
	if err := created(ctx, responses); err != nil {
		cancel()
		return nil, err
	}
	arrivals, done := make(chan arrival, 1), make(chan struct{})
	a.onClose(func() error { cancel(); <-done; return nil })
	go func() {
		defer close(done)
		defer close(arrivals)
		for response := range responses {
			now := time.Now()
			for _, event := range response.Events {
				select {
				case arrivals <- arrival{now, string(event.Kv.Value)}:
				case <-watching.Done():
				}
			}
		}
	}()
	return arrivals, nil
}

// created waits until etcd has created a watch that was requested with WithCreatedNotify.
func created(ctx context.Context, responses clientv3.WatchChan) error {
	select {
	case response, ok := <-responses:
		if !ok || response.Err() != nil {
			return errors.Join(errWatchEnded, response.Err())
		}
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// receive waits until a value is seen and returns the time from began until then.
func receive(ctx context.Context, arrivals <-chan arrival, value string, began time.Time) (time.Duration, error) {
	for {
		select {
		case seen, ok := <-arrivals:
			if !ok {
				return 0, errWatchEnded
			}
			if seen.value == value {
				return seen.at.Sub(began), nil
			}
		case <-ctx.Done():
			return 0, context.Cause(ctx)
		}
	}
}
