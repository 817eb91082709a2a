package main

import (
	"context"
	"sync"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/jagregory/locker/v2"
)

// leasesAtOnce bounds how many leases are asked about at a time.
const leasesAtOnce = 32

// lifetimes has the leases that etcd has answered about.
type lifetimes struct {
	mu    sync.Mutex // guards known
	known map[clientv3.LeaseID]*clientv3.LeaseTimeToLiveResponse
}

// askLeases asks how long the leases of entries live, about each once. Those that etcd does
// not answer about are left out, and once an answer takes too long no more are asked for.
func askLeases(ctx context.Context, etcd *clientv3.Client, entries []locker.Entry, patience time.Duration) *lifetimes {
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	found := &lifetimes{known: make(map[clientv3.LeaseID]*clientv3.LeaseTimeToLiveResponse)}
	ids := make(chan clientv3.LeaseID)
	var asking sync.WaitGroup
	for range leasesAtOnce {
		asking.Go(func() {
			for id := range ids {
				if !found.ask(ctx, etcd, id, patience) {
					stop()
				}
			}
		})
	}
	asked := map[clientv3.LeaseID]bool{0: true}
	for _, e := range entries {
		if !asked[e.Lease] {
			asked[e.Lease] = true
			ids <- e.Lease
		}
	}
	close(ids)
	asking.Wait()
	return found
}

// ask asks about one lease, and reports whether there was an answer in time.
func (l *lifetimes) ask(ctx context.Context, etcd *clientv3.Client, id clientv3.LeaseID, patience time.Duration) bool {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	resp, err := etcd.TimeToLive(ctx, id)
	if err != nil {
		return ctx.Err() == nil
	}
	if resp.TTL >= 0 { // otherwise it is gone
		l.mu.Lock()
		defer l.mu.Unlock()
		l.known[id] = resp
	}
	return true
}

// row returns an entry as it is shown, with the time to live of its lease.
func (l *lifetimes) row(e locker.Entry) row {
	r := rowOf(e)
	l.mu.Lock()
	defer l.mu.Unlock()
	if resp := l.known[e.Lease]; resp != nil {
		r.TTL, r.Granted = &resp.TTL, &resp.GrantedTTL
	}
	return r
}
