package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"golang.org/x/sync/errgroup"

	"github.com/jagregory/locker/v2"
)

const requestsToWake figure = "requests to wake" // per reader, after the writer began to unlock

// deleteEvents is the floor of readers behind a writer: one client deletes a key, and n
// others receive the event, each with a connection of its own.
func deleteEvents(n int) side {
	return side{name: floor, open: func(ctx context.Context, a *arena) (round, error) {
		connections, err := a.connections(ctx, n+1)
		if err != nil {
			return nil, err
		}
		deleter, key := connections[n], floorKey(a)
		events := make([]<-chan arrival, n)
		err = each(ctx, n, joiningTogether, func(ctx context.Context, i int) (err error) {
			events[i], err = watch(ctx, a, connections[i], key, clientv3.WithFilterPut())
			return err
		})
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
				return receiveLast(ctx, events, "", began)
			})
		}, err
	}}
}

// receiveLast waits until a value is seen on all channels, and returns the time from began
// until it was on the last.
func receiveLast(ctx context.Context, all []<-chan arrival, value string, began time.Time) (last time.Duration, err error) {
	for _, arrivals := range all {
		took, err := receive(ctx, arrivals, value, began)
		if err != nil {
			return 0, err
		}
		last = max(last, took)
	}
	return last, nil
}

// readersBehindWriter measures n readers that wait for a name which a writer has locked, and
// all hold it once that has left. Each is a client with a connection of its own.
func readersBehindWriter(n int) side {
	return side{name: ours, open: func(ctx context.Context, a *arena) (round, error) {
		etcd, err := a.connect()
		if err != nil {
			return nil, err
		}
		writer, err := newLocker(a, etcd, locker.WithTTL(longTTL))
		if err != nil {
			return nil, err
		}
		connections, err := a.connections(ctx, n)
		if err != nil {
			return nil, err
		}
		readers, err := newLockers(a, connections, n, locker.WithTTL(longTTL))
		if err != nil {
			return nil, err
		}
		err = each(ctx, n, joiningTogether, func(ctx context.Context, i int) error { // opens the sessions
			return lockUnlock(ctx, &lockerMutex{client: readers[i], name: a.name("w", i)})
		})
		return (&readership{arena: a, etcd: etcd, writer: writer, readers: readers}).measure, err
	}}
}

// readership is readers behind a writer.
type readership struct {
	*arena
	etcd    *clientv3.Client // the writer's; its messages are not counted
	writer  *locker.Client
	readers []*locker.Client
}

// measure is a round: the readers wait for the writer as often as there is time for.
func (r *readership) measure(ctx context.Context) (figures, error) {
	var waiting, waking counters
	waits := 0
	f, err := sample(ctx, r.workload.period, func(ctx context.Context) (time.Duration, error) {
		w, err := r.wait(ctx)
		waiting, waking = waiting.plus(w.waiting), waking.plus(w.waking)
		waits += len(r.readers)
		return w.took, err
	})
	if err != nil {
		return nil, err
	}
	f[requests] = waiting.sentBesideChecks() / float64(waits)
	f[requestsToWake] = waking.sentBesideChecks() / float64(waits)
	return f, nil
}

// waited is what was measured while the readers waited once.
type waited struct {
	took    time.Duration // from when the writer began to unlock until the last reader held
	waiting counters      // from the first call to the last hold
	waking  counters      // since the writer began to unlock
}

// wait has the writer lock the name, the readers wait for it, and the writer unlock it. Once
// all of them hold the name, they unlock it.
func (r *readership) wait(ctx context.Context) (w waited, err error) {
	held, err := r.writer.Lock(ctx, r.name("n", 0), "")
	if err != nil {
		return w, err
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	locks, arrived := make([]*locker.Lock, len(r.readers)), make([]time.Time, len(r.readers))
	g, waiting := errgroup.WithContext(ctx)
	called := r.traffic.now()
	err = r.gather(waiting, func(i int) {
		g.Go(func() (err error) {
			locks[i], err = r.readers[i].Lock(waiting, r.name("n", 0), "", locker.WithShared())
			arrived[i] = time.Now()
			return err
		})
	})
	left, began := r.traffic.now(), time.Now()
	if err == nil {
		err = held.Unlock(waiting)
	}
	if err != nil {
		cancel()
	}
	if err = errors.Join(err, g.Wait()); err != nil {
		return w, err
	}
	if err := pause(ctx, watchDelay); err != nil { // the end of a watch is sent in the background
		return w, err
	}
	now := r.traffic.now()
	w = waited{slices.MaxFunc(arrived, time.Time.Compare).Sub(began), now.since(called), now.since(left)}
	return w, each(ctx, len(locks), joiningTogether, func(ctx context.Context, i int) error { return locks[i].Unlock(ctx) })
}

// gather starts the readers, a few at a time. It returns when all of them are in the queue,
// behind the writer, and have watches.
func (r *readership) gather(ctx context.Context, start func(i int)) error {
	for i := range r.readers {
		start(i)
		if queued := i + 1; queued%joiningTogether == 0 || queued == len(r.readers) {
			if err := awaitEntries(ctx, r.etcd, queueOf(r.name("n", 0)), int64(1+queued)); err != nil {
				return fmt.Errorf("not all of %d readers are in the queue: %w", queued, withCause(ctx, err))
			}
		}
	}
	return pause(ctx, settling)
}
