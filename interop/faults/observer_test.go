//go:build unix

package faults

import (
	"context"
	"slices"
	"sync"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/jagregory/locker/v2"
)

// observer follows names by Watch and by Cache, in the process of the test.
type observer struct {
	etcd   *clientv3.Client
	client *locker.Client
	cache  *locker.Cache
	stop   context.CancelFunc
	work   sync.WaitGroup

	mu      sync.Mutex                // guards what follows
	watched map[string][]locker.State // what Watch yielded
	cached  map[string][]locker.State // what the Cache showed, each time it was something else, at its latest
	failed  error                     // of Watch, but for its end
}

// newObserver observes over a connection to some members; end must follow.
func newObserver(t *testing.T, ttl time.Duration, names, endpoints []string) *observer {
	t.Helper()
	etcd, err := connect(endpoints...)
	if err != nil {
		t.Fatal(err)
	}
	o := &observer{etcd: etcd, watched: make(map[string][]locker.State), cached: make(map[string][]locker.State)}
	var ctx context.Context
	ctx, o.stop = context.WithCancel(context.Background())
	filling, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	if o.client, err = locker.New(etcd, locker.WithTTL(ttl)); err == nil {
		o.cache, err = o.client.NewCache(filling, "")
	}
	if err != nil {
		o.stop()
		_ = etcd.Close()
		t.Fatal(err)
	}
	for _, name := range names {
		o.work.Go(func() { o.watch(ctx, name) })
	}
	o.work.Go(func() { o.look(ctx, names) })
	return o
}

func (o *observer) watch(ctx context.Context, name string) {
	for state, err := range o.client.Watch(ctx, name) {
		o.mu.Lock()
		switch {
		case err == nil:
			o.watched[name] = append(o.watched[name], state)
		case ctx.Err() == nil:
			o.failed = err
		}
		o.mu.Unlock()
	}
}

// look polls the cache, as it has no other way to tell.
func (o *observer) look(ctx context.Context, names []string) {
	ticker := time.NewTicker(tick)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		}
		for _, name := range names {
			revision := o.cache.Revision()
			holder, held := o.cache.Get(name)
			if o.cache.Revision() != revision {
				continue // it is not known which of them it is from
			}
			if holder.Name = name; !held {
				holder = locker.Holder{Name: name}
			}
			o.mu.Lock()
			if seen := o.cached[name]; len(seen) > 0 && seen[len(seen)-1].Holder == holder {
				seen[len(seen)-1].Revision = revision // still so, or again
			} else {
				o.cached[name] = append(seen, locker.State{Holder: holder, Held: held, Revision: revision})
			}
			o.mu.Unlock()
		}
	}
}

// newest returns the last state of a name that Watch yielded, and the last that the Cache showed.
func (o *observer) newest(name string) (watched, cached locker.State) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if n := len(o.watched[name]); n > 0 {
		watched = o.watched[name][n-1]
	}
	if n := len(o.cached[name]); n > 0 {
		cached = o.cached[name][n-1]
	}
	return watched, cached
}

// check compares what was observed of each name with the truth, which is all its states by revision. If
// Watch had the time to see all of them, none may be missing.
func (o *observer) check(t *testing.T, truth map[string][]locker.State, all bool) {
	t.Helper()
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.failed != nil {
		t.Errorf("Watch ended: %v", o.failed)
	}
	for name := range o.watched {
		states := truth[name]
		compare(t, "Watch of "+name, o.watched[name], states, all)
		compare(t, "Cache of "+name, o.cached[name], states, false)
		t.Logf("of the %d states of %s, Watch yielded %d, and the Cache showed %d", len(states), name, len(o.watched[name]), len(o.cached[name]))
	}
}

// compare fails the test unless each state that was seen is one of the truth at its revision, later in
// it than the one before, and the newest was seen.
func compare(t *testing.T, who string, seen, truth []locker.State, all bool) {
	t.Helper()
	before := -1
	for _, state := range seen {
		i, exact := slices.BinarySearchFunc(truth, state.Revision, func(s locker.State, revision int64) int { return int(s.Revision - revision) })
		if !exact {
			i--
		}
		switch {
		case i < 0 || truth[i].Held != state.Held || truth[i].Holder != state.Holder:
			t.Errorf("%s: %+v was not so at its revision", who, state)
			return
		case i <= before:
			t.Errorf("%s: %+v came twice, or out of order", who, state)
			return
		case all && before >= 0 && i != before+1:
			t.Errorf("%s: %+v was not seen", who, truth[before+1])
			return
		}
		before = i
	}
	// What came and went unseen leaves nothing to tell.
	newest := len(truth) - 1
	if before < 0 || truth[before].Holder != truth[newest].Holder || all && before != newest {
		t.Errorf("%s: the newest state, %+v, was not seen", who, truth[newest])
	}
}

// end ends everything that it has started.
func (o *observer) end(t *testing.T) {
	o.stop()
	o.work.Wait()
	o.cache.Close()
	if err := o.client.Close(); err != nil {
		t.Errorf("close the observer: %v", err)
	}
	_ = o.etcd.Close()
}
