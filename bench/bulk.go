package main

import (
	"context"
	"fmt"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/jagregory/locker/v2"
)

const (
	acquireTime figure = "acquire time" // seconds
	renewals    figure = "renewals"     // requests per lease in a third of the TTL
	closeTime   figure = "close time"   // seconds
)

const (
	putsPerTxn   = 124  // etcd allows 128 operations
	keysPerLease = 1000 // as in Locker
)

// bulkLocks measures very many locks held by one client.
var bulkLocks = side{name: ours, open: func(ctx context.Context, a *arena) (round, error) {
	return func(ctx context.Context) (figures, error) {
		counter := newMessageCounter()
		etcd, err := a.connect(counter.options()...)
		if err != nil {
			return nil, err
		}
		if _, err := etcd.Get(ctx, "connected"); err != nil {
			return nil, err
		}
		c, err := newLocker(a, etcd, locker.WithTTL(a.workload.bulkTTL))
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
		if f[renewals], err = renewalsOf(ctx, counter, a.workload.bulkTTL/3); err != nil {
			return nil, err
		}
		began = time.Now()
		err = c.Close()
		f[closeTime] = time.Since(began).Seconds()
		return f, err
	}, nil
}}

// renewalsOf counts renewals for two intervals and returns the mean number per lease and
// interval.
func renewalsOf(ctx context.Context, c *messageCounter, interval time.Duration) (float64, error) {
	const intervals = 2
	leases := c.messages("/LeaseGrant")
	before := c.messages("/LeaseKeepAlive")
	if err := pause(ctx, intervals*interval); err != nil {
		return 0, err
	}
	return float64(c.messages("/LeaseKeepAlive")-before) / float64(leases) / intervals, nil
}

// bulkPuts is the floor of bulkLocks: as many puts with leases, in transactions that are
// as large as etcd allows, one after the other.
var bulkPuts = side{name: floor, open: func(ctx context.Context, a *arena) (round, error) {
	etcd, err := a.connect()
	if err != nil {
		return nil, err
	}
	if _, err := etcd.Get(ctx, "connected"); err != nil {
		return nil, err
	}
	return func(ctx context.Context) (figures, error) {
		names := a.names("n", a.workload.bulk)
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
			if len(puts) == putsPerTxn || i == len(names)-1 {
				if _, err := etcd.Txn(ctx).Then(puts...).Commit(); err != nil {
					return nil, err
				}
				puts = puts[:0]
			}
		}
		f := figures{acquireTime: time.Since(began).Seconds()}
		return f, each(ctx, len(leases), 4, func(ctx context.Context, i int) error {
			_, err := etcd.Revoke(ctx, leases[i])
			return err
		})
	}, nil
}}
