package main

import (
	"context"
	"fmt"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/jagregory/locker/v2"
)

const (
	taken    figure = "taken"    // seconds
	renewals figure = "renewals" // requests a lease in a third of the TTL
	closed   figure = "closed"   // seconds
)

const (
	putsTogether = 124  // in a transaction; etcd allows 128 operations
	keysPerLease = 1000 // as Locker has it
)

// bulkLocks is very many locks held by one client.
var bulkLocks = side{name: ours, open: func(ctx context.Context, a *arena) (round, error) {
	return func(ctx context.Context) (figures, error) {
		wire := newWire()
		etcd, err := a.connect(wire.options()...)
		if err != nil {
			return nil, err
		}
		if _, err := etcd.Get(ctx, "connected"); err != nil {
			return nil, err
		}
		c, err := newLocker(a, etcd, locker.WithTTL(a.scale.bulkTTL))
		if err != nil {
			return nil, err
		}
		names := a.names("n", a.scale.bulk)
		began := time.Now()
		err = each(ctx, len(names), 1000, func(ctx context.Context, i int) error {
			_, err := c.Lock(ctx, names[i], "") // Close ends it
			return err
		})
		if err != nil {
			return nil, err
		}
		f := figures{taken: time.Since(began).Seconds()}
		if f[renewals], err = renewalsOf(ctx, wire, a.scale.bulkTTL/3); err != nil {
			return nil, err
		}
		began = time.Now()
		err = c.Close()
		f[closed] = time.Since(began).Seconds()
		return f, err
	}, nil
}}

// renewalsOf counts, for two intervals, and returns how many requests each lease took in each of them.
func renewalsOf(ctx context.Context, w *wire, interval time.Duration) (float64, error) {
	const intervals = 2
	leases := w.messages("/LeaseGrant")
	before := w.messages("/LeaseKeepAlive")
	if err := pause(ctx, intervals*interval); err != nil {
		return 0, err
	}
	return float64(w.messages("/LeaseKeepAlive")-before) / float64(leases) / intervals, nil
}

// bulkPuts is as many puts with leases, as many together as etcd allows, one transaction after the other.
var bulkPuts = side{name: floor, open: func(ctx context.Context, a *arena) (round, error) {
	etcd, err := a.connect()
	if err != nil {
		return nil, err
	}
	if _, err := etcd.Get(ctx, "connected"); err != nil {
		return nil, err
	}
	return func(ctx context.Context) (figures, error) {
		names := a.names("n", a.scale.bulk)
		var leases []clientv3.LeaseID
		began := time.Now()
		var puts []clientv3.Op
		for i, name := range names {
			if i%keysPerLease == 0 {
				lease, err := etcd.Grant(ctx, 600)
				if err != nil {
					return nil, err
				}
				leases = append(leases, lease.ID)
			}
			lease := leases[len(leases)-1]
			puts = append(puts, clientv3.OpPut(fmt.Sprintf("%s%s/%016x", floorPrefix, name, lease), "", clientv3.WithLease(lease)))
			if len(puts) == putsTogether || i == len(names)-1 {
				if _, err := etcd.Txn(ctx).Then(puts...).Commit(); err != nil {
					return nil, err
				}
				puts = puts[:0]
			}
		}
		f := figures{taken: time.Since(began).Seconds()}
		return f, each(ctx, len(leases), 4, func(ctx context.Context, i int) error {
			_, err := etcd.Revoke(ctx, leases[i])
			return err
		})
	}, nil
}}
