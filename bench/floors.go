package main

import (
	"context"
	"fmt"
	"sync/atomic"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"golang.org/x/sync/errgroup"
)

// The floors are the best that bare etcd does: the same writes, without a lock service.

// flatTransactions is the floor of locks on names of their own: two goroutines, each of
// which puts the given number of keys with a lease in one transaction, if they are not
// there, and deletes them in another, if they are as they were put. A pair of these counts
// as so many locks.
func flatTransactions(writes int) side {
	return side{name: floor, open: func(ctx context.Context, a *arena) (round, error) {
		etcd, err := a.connect()
		if err != nil {
			return nil, err
		}
		lease, err := etcd.Grant(ctx, 600)
		if err != nil {
			return nil, err
		}
		return func(ctx context.Context) (figures, error) {
			var locks atomic.Int64
			until, cancel := context.WithTimeout(ctx, a.workload.period)
			defer cancel()
			g, running := errgroup.WithContext(ctx)
			for i := range 2 {
				keys := make([]string, writes)
				for j := range keys {
					keys[j] = fmt.Sprintf("%s%s/%016x", floorPrefix, a.name("n", i*writes+j), lease.ID)
				}
				g.Go(func() error {
					for until.Err() == nil {
						if err := putAndDelete(running, etcd, keys, lease.ID); err != nil {
							return err
						}
						locks.Add(int64(writes))
					}
					return nil
				})
			}
			began := time.Now()
			err := g.Wait()
			return figures{rate: float64(locks.Load()) / time.Since(began).Seconds()}, err
		}, nil
	}}
}

// putAndDelete puts the keys in one transaction, and deletes them in another.
func putAndDelete(ctx context.Context, etcd *clientv3.Client, keys []string, lease clientv3.LeaseID) error {
	absent, puts := make([]clientv3.Cmp, len(keys)), make([]clientv3.Op, len(keys))
	for i, key := range keys {
		absent[i] = clientv3.Compare(clientv3.CreateRevision(key), "=", 0)
		puts[i] = clientv3.OpPut(key, "", clientv3.WithLease(lease))
	}
	resp, err := etcd.Txn(ctx).If(absent...).Then(puts...).Commit()
	if err != nil {
		return err
	}
	own, deletes := make([]clientv3.Cmp, len(keys)), make([]clientv3.Op, len(keys))
	for i, key := range keys {
		own[i] = clientv3.Compare(clientv3.CreateRevision(key), "=", resp.Header.Revision)
		deletes[i] = clientv3.OpDelete(key)
	}
	_, err = etcd.Txn(ctx).If(own...).Then(deletes...).Commit()
	return err
}

// deletesInTurn is the floor of hand-overs: two clients, each of which deletes the next of
// its keys as soon as it has seen that the other has deleted one.
var deletesInTurn = side{name: floor, open: func(ctx context.Context, a *arena) (round, error) {
	var clients [2]*clientv3.Client
	var events [2]<-chan arrival // of the keys that the other client deletes
	prefixes := [2]string{floorKey(a) + "/0/", floorKey(a) + "/1/"}
	for i := range clients {
		var err error
		if clients[i], err = a.connect(); err != nil {
			return nil, err
		}
		if events[i], err = watch(ctx, a, clients[i], prefixes[1-i], clientv3.WithPrefix(), clientv3.WithFilterPut()); err != nil {
			return nil, err
		}
	}
	return func(ctx context.Context) (figures, error) {
		turns := int(a.workload.period.Seconds() * 2000) // of each client: more than etcd can do
		for i, etcd := range clients {
			if err := putMany(ctx, etcd, prefixes[i], turns); err != nil {
				return nil, err
			}
		}
		began, done := time.Now(), 0
		for ; done < 2*turns && time.Since(began) < a.workload.period; done++ {
			own := done % 2
			if _, err := clients[own].Delete(ctx, fmt.Sprintf("%s%06d", prefixes[own], done/2)); err != nil {
				return nil, err
			}
			if _, err := receive(ctx, events[1-own], "", began); err != nil {
				return nil, err
			}
		}
		took := time.Since(began)
		for own, etcd := range clients {
			resp, err := etcd.Delete(ctx, prefixes[own], clientv3.WithPrefix())
			if err != nil {
				return nil, err
			}
			for range resp.Deleted {
				if _, err := receive(ctx, events[1-own], "", began); err != nil {
					return nil, err
				}
			}
		}
		return pace(done, took), nil
	}, nil
}}

// pace returns how many there were a second, and how long each took.
func pace(n int, took time.Duration) figures {
	return figures{rate: float64(n) / took.Seconds(), interval: float64(took.Microseconds()) / float64(max(n, 1))}
}

// putMany puts n keys that begin with prefix.
func putMany(ctx context.Context, etcd *clientv3.Client, prefix string, n int) error {
	for next := 0; next < n; {
		var puts []clientv3.Op
		for ; next < n && len(puts) < putsPerTxn; next++ {
			puts = append(puts, clientv3.OpPut(fmt.Sprintf("%s%06d", prefix, next), ""))
		}
		if _, err := etcd.Txn(ctx).Then(puts...).Commit(); err != nil {
			return err
		}
	}
	return nil
}

// replacements is the floor of hand-overs within a client: transactions that delete a key
// and put another, one after the other.
var replacements = side{name: floor, open: func(ctx context.Context, a *arena) (round, error) {
	etcd, err := a.connect()
	if err != nil {
		return nil, err
	}
	lease, err := etcd.Grant(ctx, 600)
	if err != nil {
		return nil, err
	}
	keys := [2]string{floorKey(a), floorKey(a) + ".2"}
	put, err := etcd.Put(ctx, keys[0], "", clientv3.WithLease(lease.ID))
	if err != nil {
		return nil, err
	}
	revision := put.Header.Revision
	turn := 0
	return func(ctx context.Context) (figures, error) {
		began, first := time.Now(), turn
		for ; time.Since(began) < a.workload.period; turn++ {
			old, next := keys[turn%2], keys[(turn+1)%2]
			resp, err := etcd.Txn(ctx).
				If(clientv3.Compare(clientv3.CreateRevision(old), "=", revision)).
				Then(clientv3.OpDelete(old), clientv3.OpPut(next, "", clientv3.WithLease(lease.ID))).
				Commit()
			if err != nil {
				return nil, err
			}
			revision = resp.Header.Revision
		}
		return pace(turn-first, time.Since(began)), nil
	}, nil
}}
