package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/jagregory/locker/v2"
)

// The columns of -scale. etcd's CPU is a percentage of one core, its memory what is
// resident.
const (
	etcdBusy figure = "etcd CPU while idle, %"

	heapPerLock      figure = "client heap per lock, bytes"
	etcdPerLock      figure = "etcd memory per lock, bytes"
	databasePerLock  figure = "etcd database per lock, bytes"
	messagesPerLocks figure = "messages/s per 1,000 locks"
	bytesPerLock     figure = "bytes/s per lock"

	handOverTime        figure = "Unlock starts → next holds, p50, ms"
	messagesPerHandOver figure = "messages per hand-over"
	cpuPerHandOver      figure = "etcd CPU per hand-over, ms"
	sortedRead          figure = "etcd's sorted read of the queue, ms"
	memoryPerWaiter     figure = "client memory per waiter, KiB"
	etcdPerWaiter       figure = "etcd memory per waiter, KiB"
	messagesPerWaiter   figure = "messages/s per waiter while idle"

	messagesPerClient figure = "messages/s per client"
	bytesPerClient    figure = "bytes/s per client"
	memoryPerClient   figure = "client memory per client, KiB"
	etcdPerClient     figure = "etcd memory per client, KiB"

	changeTime       figure = "SetValue starts → last has seen it, p50, ms"
	cpuPerChange     figure = "etcd CPU per change, ms"
	memoryPerWatcher figure = "client memory per watcher, KiB"
	etcdPerWatcher   figure = "etcd memory per watcher, KiB"
)

const (
	kib = 1024

	locksTogether   = 1000 // goroutines that lock
	joiningTogether = 64   // clients that join a queue, and watchers that start: few enough to need no hedge
	waitersTogether = 100  // on one connection
	watchingClients = 20   // at most, each with a connection

	longTTL = time.Hour // no renewals
)

// measureLocks measures n locks held by one client with the default TTL.
func (a amounts) measureLocks(ctx context.Context, s *site, n int) (figures, error) {
	connections, err := s.connections(ctx, 1)
	if err != nil {
		return nil, err
	}
	clients, err := s.newClients(connections, 1)
	if err != nil {
		return nil, err
	}
	if err := lockUnlock(ctx, &lockerMutex{client: clients[0], name: s.name("w", 0)}); err != nil {
		return nil, err
	}
	before, err := s.footprint(ctx)
	if err != nil {
		return nil, err
	}
	after, idle, err := a.holding(ctx, s, clients, n, locksTogether)
	if err != nil {
		return nil, err
	}
	return figures{
		heapPerLock:      after.client.since(before.client, n)[heap],
		etcdPerLock:      perItem(after.resident, before.resident, n),
		databasePerLock:  perItem(after.database, before.database, n),
		messagesPerLocks: idle.messages / idle.seconds / float64(n) * 1000,
		bytesPerLock:     idle.bytes / idle.seconds / float64(n),
		etcdBusy:         idle.busy(),
	}, nil
}

// measureClients measures n clients with the default TTL that do nothing but hold a lock.
func (a amounts) measureClients(ctx context.Context, s *site, n int) (figures, error) {
	before, err := s.footprint(ctx)
	if err != nil {
		return nil, err
	}
	connections, err := s.connections(ctx, n)
	if err != nil {
		return nil, err
	}
	clients, err := s.newClients(connections, n)
	if err != nil {
		return nil, err
	}
	after, idle, err := a.holding(ctx, s, clients, n, joiningTogether)
	if err != nil {
		return nil, err
	}
	f := figures{etcdBusy: idle.busy()}
	if n > 0 {
		f[messagesPerClient] = idle.messages / idle.seconds / float64(n)
		f[bytesPerClient] = idle.bytes / idle.seconds / float64(n)
		f[memoryPerClient] = after.client.since(before.client, n)[memory] / kib
		f[etcdPerClient] = perItem(after.resident, before.resident, n) / kib
	}
	return f, nil
}

// holding has clients take turns in locking n names, so many together. It returns the
// footprint with all locks held, and how far the counters move while they are.
func (a amounts) holding(ctx context.Context, s *site, clients []*locker.Client, n, together int) (footprint, counters, error) {
	locks := make([]*locker.Lock, n)
	err := each(ctx, n, together, func(ctx context.Context, i int) (err error) {
		locks[i], err = clients[i%len(clients)].Lock(ctx, s.name("n", i), "")
		return err
	})
	if err != nil {
		return footprint{}, counters{}, err
	}
	after, idle, err := s.rest(ctx, a.settle, a.renewalTime())
	for _, l := range locks { // which also keeps them in memory until here
		err = errors.Join(err, l.Err())
	}
	return after, idle, err
}

// renewalTime returns a time in which each session with the default TTL is renewed equally
// often.
func (a amounts) renewalTime() time.Duration {
	return time.Duration(a.renewals) * locker.DefaultTTL / 3
}

// measureWaiters measures n clients that wait for a name that another one holds.
func (a amounts) measureWaiters(ctx context.Context, s *site, n int) (figures, error) {
	connections, err := s.connections(ctx, (n+waitersTogether)/waitersTogether)
	if err != nil {
		return nil, err
	}
	before, err := s.footprint(ctx)
	if err != nil {
		return nil, err
	}
	clients, err := s.newClients(connections, n+1, locker.WithTTL(longTTL))
	if err != nil {
		return nil, err
	}
	r := newRelay(s.name("n", 0), a.handOvers, a.busy)
	holder, waiters := clients[0], clients[1:]
	held, err := holder.Lock(ctx, r.name, "")
	if err != nil {
		return nil, err
	}
	if err := s.enqueue(ctx, r, waiters); err != nil {
		return nil, err
	}
	after, idle, err := s.rest(ctx, a.settle, a.idle)
	if err != nil {
		return nil, err
	}
	read, err := timeSortedRead(ctx, s.observer, lockerPrefix+r.name+"/", a.reads)
	if err != nil {
		return nil, err
	}
	all, err := s.during(ctx, func() error {
		r.start(time.Now())
		if err := held.Unlock(ctx); err != nil {
			return err
		}
		s.group.Go(func() error { return r.run(ctx, holder) })
		return r.wait(ctx)
	})
	if err != nil {
		return nil, err
	}
	cost, handOvers := all.beyond(idle), float64(len(r.times))
	return figures{
		handOverTime:        median(r.times),
		messagesPerHandOver: cost.messages / handOvers,
		cpuPerHandOver:      1000 * cost.cpu / handOvers,
		sortedRead:          read,
		memoryPerWaiter:     after.client.since(before.client, n)[memory] / kib,
		etcdPerWaiter:       perItem(after.resident, before.resident, n) / kib,
		messagesPerWaiter:   idle.messages / idle.seconds / float64(n),
		etcdBusy:            idle.busy(),
	}, nil
}

// enqueue has clients join the queue, a few at a time, and waits until all are in it.
func (s *site) enqueue(ctx context.Context, r *relay, clients []*locker.Client) error {
	for joined := 0; joined < len(clients); {
		next := min(joined+joiningTogether, len(clients))
		for _, c := range clients[joined:next] {
			s.group.Go(func() error { return r.run(ctx, c) })
		}
		for queued := 0; queued < next; {
			resp, err := s.observer.Get(ctx, lockerPrefix+r.name+"/", clientv3.WithPrefix(), clientv3.WithCountOnly())
			if err == nil {
				queued = int(resp.Count) - 1 // without the holder
				err = pause(ctx, 5*time.Millisecond)
			}
			if err != nil {
				return fmt.Errorf("%d of %d clients were in the queue: %w", max(queued, joined), len(clients), withCause(ctx, err))
			}
		}
		joined = next
	}
	return nil
}

// timeSortedRead returns the median time in milliseconds of reading the newest entries of a
// queue, for which etcd reads and sorts all of them.
func timeSortedRead(ctx context.Context, etcd *clientv3.Client, queue string, reads int) (float64, error) {
	const newest = 10 // as many as a waiter reads
	times := make([]float64, reads)
	for i := range times {
		began := time.Now()
		_, err := etcd.Get(ctx, queue, clientv3.WithPrefix(), clientv3.WithKeysOnly(), clientv3.WithLimit(newest),
			clientv3.WithSort(clientv3.SortByCreateRevision, clientv3.SortDescend))
		if err != nil {
			return 0, err
		}
		times[i] = milliseconds(time.Since(began))
	}
	return median(times), nil
}

func milliseconds(d time.Duration) float64 { return float64(d) / float64(time.Millisecond) }

// measureWatchers measures n loops of WatchPrefix, spread over a few clients, while another
// client changes the value of the one name that they see.
func (a amounts) measureWatchers(ctx context.Context, s *site, n int) (figures, error) {
	connections, err := s.connections(ctx, 1+min(n, watchingClients))
	if err != nil {
		return nil, err
	}
	clients, err := s.newClients(connections, len(connections), locker.WithTTL(longTTL))
	if err != nil {
		return nil, err
	}
	writer, watching := clients[0], clients[1:]
	lock, err := writer.Lock(ctx, s.name("n", 0), "0")
	if err != nil {
		return nil, err
	}
	before, err := s.footprint(ctx)
	if err != nil {
		return nil, err
	}
	w := newAudience(n)
	if err := w.gather(ctx, s, watching, s.name("n", 0)); err != nil {
		return nil, err
	}
	after, idle, err := s.rest(ctx, a.settle, a.idle)
	if err != nil {
		return nil, err
	}
	var times []float64
	all, err := s.during(ctx, func() (err error) {
		times, err = w.changes(ctx, lock, a.changes, a.busy)
		return err
	})
	if err != nil {
		return nil, err
	}
	return figures{
		changeTime:       median(times),
		cpuPerChange:     1000 * all.beyond(idle).cpu / float64(len(times)),
		memoryPerWatcher: after.client.since(before.client, n)[memory] / kib,
		etcdPerWatcher:   perItem(after.resident, before.resident, n) / kib,
	}, nil
}
