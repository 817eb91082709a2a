package main

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"golang.org/x/sync/errgroup"
)

// The floors are the best that bare etcd does: the same writes, without a lock service.

const (
	putsPerTxn = 120          // as many as Locker puts into one; etcd allows 128 operations
	floorTTL   = 24 * 60 * 60 // seconds, longer than any run
)

var errRefused = errors.New("etcd has refused a transaction: somebody else uses the keys")

// leased returns a connection, and a lease that outlives all rounds and is revoked with the
// arena.
func leased(ctx context.Context, a *arena) (*clientv3.Client, clientv3.LeaseID, error) {
	etcd, err := a.connect()
	if err != nil {
		return nil, 0, err
	}
	lease, err := etcd.Grant(ctx, floorTTL)
	if err != nil {
		return nil, 0, err
	}
	a.onClose(func() error {
		_, err := etcd.Revoke(context.Background(), lease.ID)
		return err
	})
	return etcd, lease.ID, nil
}

// apply commits a transaction that must not be refused, and returns its revision.
func apply(ctx context.Context, etcd *clientv3.Client, when []clientv3.Cmp, then []clientv3.Op) (int64, error) {
	resp, err := etcd.Txn(ctx).If(when...).Then(then...).Commit()
	if err != nil {
		return 0, err
	}
	if !resp.Succeeded {
		return 0, errRefused
	}
	return resp.Header.Revision, nil
}

// flatTransactions is the floor of locks on names of their own: two goroutines, each of
// which puts the given number of keys with a lease in one transaction, if they are not
// there, and deletes them in another, if they are as they were put. A pair of these counts
// as so many locks.
func flatTransactions(writes int) side {
	return side{name: floor, open: func(ctx context.Context, a *arena) (round, error) {
		etcd, lease, err := leased(ctx, a)
		if err != nil {
			return nil, err
		}
		return func(ctx context.Context) (figures, error) {
			began := time.Now()
			until, cancel := context.WithTimeout(ctx, a.workload.period)
			defer cancel()
			var locks atomic.Int64
			g, running := errgroup.WithContext(ctx)
			for i := range 2 {
				keys := make([]string, writes)
				for j := range keys {
					keys[j] = fmt.Sprintf("%s%s/%016x", floorPrefix, a.name("n", i*writes+j), lease)
				}
				g.Go(func() error {
					for until.Err() == nil {
						if err := putAndDelete(running, etcd, keys, lease); err != nil {
							return err
						}
						locks.Add(int64(writes))
					}
					return nil
				})
			}
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
	revision, err := apply(ctx, etcd, absent, puts)
	if err != nil {
		return err
	}
	own, deletes := make([]clientv3.Cmp, len(keys)), make([]clientv3.Op, len(keys))
	for i, key := range keys {
		own[i] = clientv3.Compare(clientv3.CreateRevision(key), "=", revision)
		deletes[i] = clientv3.OpDelete(key)
	}
	_, err = apply(ctx, etcd, own, deletes)
	return err
}

// deletesInTurn is the floor of hand-overs: two clients, each of which deletes the next of
// its keys as soon as it has seen that the other has deleted one.
var deletesInTurn = inTurn(floor, false)

// writesInTurn is deletesInTurn with the other write of a client that always wants the lock:
// after each delete it puts a key, as one that queues again does.
var writesInTurn = inTurn("floor and a put", true)

func inTurn(name string, puts bool) side {
	return side{name: name, open: func(ctx context.Context, a *arena) (round, error) { return openTurns(a, puts) }}
}

func openTurns(a *arena, puts bool) (round, error) {
	one, other, err := pair(a)
	if err != nil {
		return nil, err
	}
	a.onClose(func() error {
		_, err := one.Delete(context.Background(), floorKey(a), clientv3.WithPrefix())
		return err
	})
	rounds := 0
	return func(ctx context.Context) (figures, error) {
		rounds++
		var turns []mutex
		prefixes := [2]string{fmt.Sprintf("%s/%d/0/", floorKey(a), rounds), fmt.Sprintf("%s/%d/1/", floorKey(a), rounds)}
		for i, etcd := range []*clientv3.Client{one, other} {
			t, err := newTurn(ctx, a, etcd, prefixes[i], prefixes[1-i])
			if err != nil {
				return nil, err
			}
			t.first, t.puts = i == 0, puts
			turns = append(turns, t)
		}
		return race(ctx, turns, a.workload.runUp, a.workload.period)
	}, nil
}

// turn is one of two clients that take turns, in the shape of a mutex, so that the code that
// measures hand-overs drives it too: to lock it is to see that the other client has deleted
// a key, and to unlock it is to delete one.
type turn struct {
	etcd   *clientv3.Client
	prefix string // of its keys
	next   int    // which of them
	events clientv3.WatchChan
	first  bool // it does not wait for the other
	puts   bool // a key after each delete
}

// newTurn puts more keys than can be deleted in a round, and watches those of the other.
func newTurn(ctx context.Context, a *arena, etcd *clientv3.Client, own, other string) (*turn, error) {
	const most = 2000 // a second
	keys := int(most * (a.workload.runUp + a.workload.period).Seconds())
	if _, err := putMany(ctx, etcd, own, keys); err != nil {
		return nil, err
	}
	watching, cancel := context.WithCancel(context.Background())
	a.onClose(func() error { cancel(); return nil })
	events := etcd.Watch(watching, other, clientv3.WithPrefix(), clientv3.WithFilterPut(), clientv3.WithCreatedNotify())
	return &turn{etcd: etcd, prefix: own, events: events}, created(ctx, events)
}

func (t *turn) Lock(ctx context.Context) error {
	if t.first {
		t.first = false
		return nil
	}
	select {
	case seen, ok := <-t.events:
		if !ok || seen.Err() != nil {
			return errors.Join(errWatchEnded, seen.Err())
		}
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

func (t *turn) Unlock(ctx context.Context) error {
	resp, err := t.etcd.Delete(ctx, fmt.Sprintf("%s%06d", t.prefix, t.next))
	t.next++
	if err == nil && resp.Deleted == 0 {
		err = fmt.Errorf("there are only %d keys to delete", t.next-1)
	}
	if err == nil && t.puts {
		_, err = t.etcd.Put(ctx, t.prefix+"next", "")
	}
	return err
}

// putMany puts n keys that begin with prefix, and returns the revision of the last.
func putMany(ctx context.Context, etcd *clientv3.Client, prefix string, n int) (revision int64, err error) {
	for next := 0; next < n; {
		var puts []clientv3.Op
		for ; next < n && len(puts) < putsPerTxn; next++ {
			puts = append(puts, clientv3.OpPut(fmt.Sprintf("%s%06d", prefix, next), ""))
		}
		if revision, err = apply(ctx, etcd, nil, puts); err != nil {
			return 0, err
		}
	}
	return revision, nil
}

// replacements is the floor of hand-overs within a client: transactions that delete a key
// and put another, one after the other.
var replacements = side{name: floor, open: func(ctx context.Context, a *arena) (round, error) {
	etcd, lease, err := leased(ctx, a)
	if err != nil {
		return nil, err
	}
	old, next := floorKey(a), floorKey(a)+".2"
	revision, err := apply(ctx, etcd, nil, []clientv3.Op{clientv3.OpPut(old, "", clientv3.WithLease(lease))})
	if err != nil {
		return nil, err
	}
	return func(ctx context.Context) (figures, error) {
		began, done := time.Now(), 0
		for ; time.Since(began) < a.workload.period; done++ {
			revision, err = apply(ctx, etcd,
				[]clientv3.Cmp{clientv3.Compare(clientv3.CreateRevision(old), "=", revision)},
				[]clientv3.Op{clientv3.OpDelete(old), clientv3.OpPut(next, "", clientv3.WithLease(lease))})
			if err != nil {
				return nil, err
			}
			old, next = next, old
		}
		return figures{rate: float64(done) / time.Since(began).Seconds()}, nil
	}, nil
}}
