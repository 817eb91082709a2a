package main

import (
	"context"
	"fmt"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"golang.org/x/sync/errgroup"

	"github.com/jagregory/locker/v2"
)

const (
	acquireTime figure = "acquire time" // seconds
	renewals    figure = "renewals"     // requests per lease in a third of the TTL
	closeTime   figure = "close time"   // seconds
)

const keysPerLease = 1000 // as in Locker

// bulkLocks measures very many locks held by one client.
var bulkLocks = side{name: ours, open: func(ctx context.Context, a *arena) (round, error) {
	connections, err := a.connections(ctx, 1)
	if err != nil {
		return nil, err
	}
	return func(ctx context.Context) (figures, error) {
		c, err := newLocker(a, connections[0], locker.WithTTL(a.workload.bulkTTL))
		if err != nil {
			return nil, err
		}
		names := a.names("n", a.workload.bulk)
		began := time.Now()
		err = each(ctx, len(names), 1000, func(ctx context.Context, i int) error {
			_, err := c.Lock(ctx, names[i], "") // released by Close
			return err
		})
		if err != nil {
			return nil, err
		}
		f := figures{acquireTime: time.Since(began).Seconds()}
		if f[renewals], err = renewalsOf(ctx, c, &a.traffic, a.workload.bulkTTL/3); err != nil {
			return nil, err
		}
		began = time.Now()
		err = c.Close()
		f[closeTime] = time.Since(began).Seconds()
		return f, err
	}, nil
}}

// renewalsOf counts the renewals of a client for two intervals and returns the mean number
// per lease and interval.
func renewalsOf(ctx context.Context, c *locker.Client, t *traffic, interval time.Duration) (float64, error) {
	const intervals = 2
	leases, err := c.Owners(ctx)
	if err != nil {
		return 0, err
	}
	before := t.renewals.Load()
	if err := pause(ctx, intervals*interval); err != nil {
		return 0, err
	}
	return float64(t.renewals.Load()-before) / float64(len(leases)) / intervals, nil
}

// bulkPuts is the floor of bulkLocks: as many puts with leases, in transactions that are
// as large as those of Locker.
var bulkPuts = side{name: floor, open: func(ctx context.Context, a *arena) (round, error) {
	connections, err := a.connections(ctx, 1)
	if err != nil {
		return nil, err
	}
	etcd, names := connections[0], a.names("n", a.workload.bulk)
	return func(ctx context.Context) (figures, error) {
		began := time.Now()
		leases, err := putWithLeases(ctx, etcd, names)
		if err != nil {
			return nil, err
		}
		f := figures{acquireTime: time.Since(began).Seconds()}
		return f, each(ctx, len(leases), 4, func(ctx context.Context, i int) error {
			_, err := etcd.Revoke(ctx, leases[i])
			return err
		})
	}, nil
}}

// putWithLeases puts a key for each name. As with Locker, two transactions are in flight,
// also while the next lease is granted.
func putWithLeases(ctx context.Context, etcd *clientv3.Client, names []string) (leases []clientv3.LeaseID, err error) {
	batches := make(chan []clientv3.Op)
	g, ctx := errgroup.WithContext(ctx)
	for range 2 {
		g.Go(func() error {
			for puts := range batches {
				if _, err := apply(ctx, etcd, nil, puts); err != nil {
					return err
				}
			}
			return nil
		})
	}
	g.Go(func() error {
		defer close(batches)
		var puts []clientv3.Op
		for i, name := range names {
			if i%keysPerLease == 0 {
				lease, err := etcd.Grant(ctx, floorTTL)
				if err != nil {
					return err
				}
				leases = append(leases, lease.ID)
			}
			lease := leases[len(leases)-1]
			puts = append(puts, clientv3.OpPut(fmt.Sprintf("%s%s/%016x", floorPrefix, name, lease), "", clientv3.WithLease(lease)))
			if len(puts) < putsPerTxn && i < len(names)-1 {
				continue
			}
			select {
			case batches <- puts:
				puts = nil
			case <-ctx.Done():
				return context.Cause(ctx)
			}
		}
		return nil
	})
	err = g.Wait()
	return leases, err
}
