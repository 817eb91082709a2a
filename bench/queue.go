package main

import (
	"context"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
)

// queueOf returns the prefix of the entries for a name.
func queueOf(name string) string { return lockerPrefix + name + "/" }

// awaitEntries waits until there are at least n keys with the prefix.
func awaitEntries(ctx context.Context, etcd *clientv3.Client, prefix string, n int64) error {
	for {
		resp, err := etcd.Get(ctx, prefix, clientv3.WithPrefix(), clientv3.WithCountOnly())
		if err != nil {
			return err
		}
		if resp.Count >= n {
			return nil
		}
		if err := pause(ctx, time.Millisecond); err != nil {
			return err
		}
	}
}

// look measures what it costs a waiter to read what is ahead of it, in a queue of n entries
// to which no clients belong.
func look(name string, n int) side {
	return side{name: name, open: func(ctx context.Context, a *arena) (round, error) {
		etcd, err := a.connect()
		if err != nil {
			return nil, err
		}
		queue := queueOf(a.name("n", 0))
		a.onClose(func() error {
			_, err := etcd.Delete(context.Background(), queue, clientv3.WithPrefix())
			return err
		})
		read, err := fillQueue(ctx, etcd, queue, n)
		return func(ctx context.Context) (figures, error) { return sample(ctx, a.workload.period, read) }, err
	}}
}

// fillQueue puts n entries into a queue, and returns a function that times the read with
// which the last of them, if it were a waiter's, would learn what is ahead of it: etcd reads
// and sorts the whole queue, and returns its end.
func fillQueue(ctx context.Context, etcd *clientv3.Client, queue string, n int) (read func(ctx context.Context) (time.Duration, error), err error) {
	const newest = 10 // as many as a waiter reads
	last, err := putMany(ctx, etcd, queue, n)
	return func(ctx context.Context) (time.Duration, error) {
		began := time.Now()
		_, err := etcd.Get(ctx, queue, clientv3.WithPrefix(), clientv3.WithKeysOnly(), clientv3.WithLimit(newest),
			clientv3.WithMaxCreateRev(last), clientv3.WithSort(clientv3.SortByCreateRevision, clientv3.SortDescend))
		return time.Since(began), err
	}, err
}
