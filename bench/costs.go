package main

import (
	"context"
	"math"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/jagregory/locker/v2"
)

// The columns of -scale. CPU is a percentage of one core, and etcd's memory what is
// resident. A figure that cannot be told from noise is NaN.
const (
	etcdBusy     figure = "etcd CPU while idle, %"
	idleSent     figure = "messages/s while idle"
	idleBytes    figure = "bytes/s while idle"
	bytesPerItem figure = "bytes/s each"

	heapPerLock      figure = "client heap per lock, bytes"
	etcdPerLock      figure = "etcd RSS per lock, bytes"
	databasePerLock  figure = "etcd database per lock, bytes"
	messagesPerLocks figure = "messages/s per 1,000 locks"

	memoryPerSession   figure = "client memory per session, KiB"
	etcdPerSession     figure = "etcd RSS per session, KiB"
	databasePerSession figure = "etcd database per session, bytes"
	messagesPerSession figure = "messages/s per session"

	handOverTime        figure = "Unlock starts → next holds, p50, ms"
	messagesPerHandOver figure = "messages per hand-over"
	cpuPerHandOver      figure = "etcd CPU per hand-over, ms"
	sortedRead          figure = "a waiter's read of the queue, ms"
	messagesPerWaiter   figure = "messages/s per client while idle"

	messagesPerClient figure = "messages/s per client"
	memoryPerClient   figure = "client memory per client, KiB"
	etcdPerClient     figure = "etcd RSS per client, KiB"

	changeTime        figure = "SetValue starts → last has seen it, p50, ms"
	cpuPerChange      figure = "etcd CPU per change, ms"
	receivedPerChange figure = "messages received per change"
	bytesPerChange    figure = "bytes per change"
	memoryPerWatcher  figure = "client memory per watcher, KiB"
	etcdPerWatcher    figure = "etcd RSS per watcher, KiB"
)

const (
	kib = 1024

	locksTogether   = 1000 // goroutines that lock
	watchingClients = 20   // at most, each with a connection
)

// Smaller differences are taken for noise.
const (
	clientNoise   = 64 * kib   // bytes
	residentNoise = 4096 * kib // bytes
	databaseNoise = 64 * kib   // bytes
	cpuNoise      = 0.05       // seconds; the system counts hundredths
)

// grown returns by how much a quantity has grown for each of n things.
func grown(now, before, noise float64, n int) float64 {
	if now-before < noise {
		return math.NaN()
	}
	return (now - before) / float64(n)
}

// caused returns what each of n events has caused, given all that was counted and what is
// left of it without idle traffic.
func caused(all, left, noise float64, n int) float64 {
	if left < all/5 || left < noise {
		return math.NaN()
	}
	return left / float64(n)
}

// measureLocks measures n locks held by one client with the default TTL.
func (a amounts) measureLocks(ctx context.Context, s *site, n int) (figures, error) {
	c, err := s.locker(ctx)
	if err != nil {
		return nil, err
	}
	if err := lockUnlock(ctx, &lockerMutex{client: c, name: s.name("w", 0)}); err != nil {
		return nil, err
	}
	before, err := s.footprint(ctx)
	if err != nil {
		return nil, err
	}
	locks, err := lockNames(ctx, s, []*locker.Client{c}, n, locksTogether)
	if err != nil {
		return nil, err
	}
	after, idle, err := a.observe(ctx, s)
	if err != nil {
		return nil, err
	}
	return figures{
		heapPerLock:      grown(after.client.heap, before.client.heap, clientNoise, n),
		etcdPerLock:      grown(after.resident, before.resident, residentNoise, n),
		databasePerLock:  grown(after.database, before.database, databaseNoise, n),
		messagesPerLocks: idle.sent / idle.seconds / float64(n) * 1000,
		bytesPerItem:     idle.bytes / idle.seconds / float64(n),
		etcdBusy:         idle.busy(),
	}, stillHeld(locks)
}

// lockNames has clients take turns in locking n names, so many together.
func lockNames(ctx context.Context, s *site, clients []*locker.Client, n, together int) ([]*locker.Lock, error) {
	locks := make([]*locker.Lock, n)
	return locks, each(ctx, n, together, func(ctx context.Context, i int) (err error) {
		locks[i], err = clients[i%len(clients)].Lock(ctx, s.name("n", i), "")
		return err
	})
}

// stillHeld returns an error if a lock was lost. It also keeps all of them in memory until
// it is called.
func stillHeld(locks []*locker.Lock) error {
	for _, l := range locks {
		if err := l.Err(); err != nil {
			return err
		}
	}
	return nil
}

// observe returns the footprint of a setup, and how far the counters move in a time in which
// each session with the default TTL is renewed equally often.
func (a amounts) observe(ctx context.Context, s *site) (footprint, counters, error) {
	f, err := s.settled(ctx)
	if err != nil {
		return f, counters{}, err
	}
	idle, err := s.resting(ctx, a.renewed)
	return f, idle, err
}

// measureSessions measures n sessions of one client, with the default TTL and without locks.
func (a amounts) measureSessions(ctx context.Context, s *site, n int) (figures, error) {
	c, err := s.locker(ctx)
	if err != nil {
		return nil, err
	}
	before, err := s.footprint(ctx)
	if err != nil {
		return nil, err
	}
	sessions := make([]*locker.Session, n)
	err = each(ctx, n, joiningTogether, func(ctx context.Context, i int) (err error) {
		sessions[i], err = c.NewSession(ctx)
		return err
	})
	if err != nil {
		return nil, err
	}
	after, idle, err := a.observe(ctx, s)
	if err != nil {
		return nil, err
	}
	for _, session := range sessions { // which also keeps them in memory until here
		if ended := session.Context(); ended.Err() != nil {
			return nil, context.Cause(ended)
		}
	}
	return figures{
		memoryPerSession:   grown(after.client.bytes(), before.client.bytes(), clientNoise, n) / kib,
		etcdPerSession:     grown(after.resident, before.resident, residentNoise, n) / kib,
		databasePerSession: grown(after.database, before.database, databaseNoise, n),
		messagesPerSession: idle.sent / idle.seconds / float64(n),
		bytesPerItem:       idle.bytes / idle.seconds / float64(n),
		etcdBusy:           idle.busy(),
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
	clients, err := newLockers(s.arena, connections, n)
	if err != nil {
		return nil, err
	}
	locks, err := lockNames(ctx, s, clients, n, joiningTogether)
	if err != nil {
		return nil, err
	}
	after, idle, err := a.observe(ctx, s)
	if err != nil {
		return nil, err
	}
	f := figures{etcdBusy: idle.busy()}
	if n > 0 {
		f[messagesPerClient] = idle.sent / idle.seconds / float64(n)
		f[bytesPerItem] = idle.bytes / idle.seconds / float64(n)
		f[memoryPerClient] = grown(after.client.bytes(), before.client.bytes(), clientNoise, n) / kib
		f[etcdPerClient] = grown(after.resident, before.resident, residentNoise, n) / kib
	}
	return f, stillHeld(locks)
}

// measureWaiters measures a queue of n entries behind a holder. If that is more than the
// processors can serve clients, the last of them are bare entries.
func (a amounts) measureWaiters(ctx context.Context, s *site, n int) (figures, error) {
	waiting := min(n, a.crowd)
	connections, err := s.connections(ctx, (waiting+clientsPerConnection)/clientsPerConnection)
	if err != nil {
		return nil, err
	}
	before, err := s.footprint(ctx)
	if err != nil {
		return nil, err
	}
	clients, err := newLockers(s.arena, connections, waiting+1, locker.WithTTL(longTTL))
	if err != nil {
		return nil, err
	}
	r := newRelay(ctx, s.name("n", 0), a.handOvers, a.busy)
	defer r.end()
	if err := r.gather(s.observer, clients); err != nil {
		return nil, err
	}
	after, err := s.settled(ctx)
	if err != nil {
		return nil, err
	}
	if waiting < n {
		r.most = waiting // nobody removes the bare entries behind them
		if _, err := putMany(ctx, s.observer, queueOf(r.name), n-waiting); err != nil {
			return nil, err
		}
	}
	idle, err := s.resting(ctx, a.idle)
	if err != nil {
		return nil, err
	}
	all, err := s.during(ctx, r.handOvers)
	if err != nil {
		return nil, err
	}
	r.end()
	read, err := a.timeRead(ctx, s.observer, queueOf(s.name("q", 0)), n)
	if err != nil {
		return nil, err
	}
	left, handOvers := all.beyond(idle), len(r.times)
	return figures{
		handOverTime:        median(r.times),
		messagesPerHandOver: caused(all.sent, left.sent, 0, handOvers),
		cpuPerHandOver:      1000 * caused(all.etcd, left.etcd, cpuNoise, handOvers),
		sortedRead:          read,
		memoryPerClient:     grown(after.client.bytes(), before.client.bytes(), clientNoise, waiting) / kib,
		etcdPerClient:       grown(after.resident, before.resident, residentNoise, waiting) / kib,
		messagesPerWaiter:   idle.sent / idle.seconds / float64(waiting),
		etcdBusy:            idle.busy(),
	}, nil
}

// timeRead returns the median time in milliseconds of a waiter's read of a queue of n bare
// entries.
func (a amounts) timeRead(ctx context.Context, etcd *clientv3.Client, queue string, n int) (float64, error) {
	read, err := fillQueue(ctx, etcd, queue, n)
	if err != nil {
		return 0, err
	}
	if err := pause(ctx, settling); err != nil { // whoever waited before has left by then
		return 0, err
	}
	f, err := sample(ctx, a.busy, read)
	return f[p50] / 1000, err
}

func milliseconds(d time.Duration) float64 { return float64(d) / float64(time.Millisecond) }

// measureWatchers measures n loops of WatchPrefix, spread over a few clients, while another
// client changes the value of the one name that they see.
func (a amounts) measureWatchers(ctx context.Context, s *site, n int) (figures, error) {
	connections, err := s.connections(ctx, 1+min(n, watchingClients))
	if err != nil {
		return nil, err
	}
	clients, err := newLockers(s.arena, connections, len(connections), locker.WithTTL(longTTL))
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
	w := newAudience(ctx, n)
	defer w.end()
	if err := w.gather(watching, s.name("n", 0)); err != nil {
		return nil, err
	}
	after, err := s.settled(ctx)
	if err != nil {
		return nil, err
	}
	idle, err := s.resting(ctx, a.idle)
	if err != nil {
		return nil, err
	}
	var times []float64
	all, err := s.during(ctx, func() (err error) {
		times, err = w.changes(lock, a.changes, a.busy)
		return err
	})
	if err != nil {
		return nil, err
	}
	left := all.beyond(idle)
	return figures{
		changeTime:        median(times),
		cpuPerChange:      1000 * caused(all.etcd, left.etcd, cpuNoise, len(times)),
		receivedPerChange: caused(all.received, left.received, 0, len(times)),
		bytesPerChange:    caused(all.bytes, left.bytes, 0, len(times)),
		memoryPerWatcher:  grown(after.client.bytes(), before.client.bytes(), clientNoise, n) / kib,
		etcdPerWatcher:    grown(after.resident, before.resident, residentNoise, n) / kib,
		idleSent:          idle.sent / idle.seconds,
		idleBytes:         idle.bytes / idle.seconds,
		etcdBusy:          idle.busy(),
	}, lock.Err()
}
