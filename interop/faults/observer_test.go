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

// observer observes names with Watch and with a Cache, in the process of the test.
type observer struct {
	etcd   *clientv3.Client
	client *locker.Client
	cache  *locker.Cache
	stop   context.CancelFunc
	work   sync.WaitGroup

	mu      sync.Mutex                // guards the fields below
	watched map[string][]locker.State // what Watch yielded
	cached  map[string][]locker.State // what the Cache showed: each change, with the last revision at which it was seen
	failed  error                     // the error of Watch, unless it was stopped
}

// newObserver starts an observer over a connection to the given endpoints. The caller
// must call end.
func newObserver(t *testing.T, ttl time.Duration, names, endpoints []string) *observer {
	t.Helper()
	etcd, err := connect(endpoints...)
	if err != nil {
		t.Fatal(err)
	}
	o := &observer{etcd: etcd, watched: make(map[string][]locker.State), cached: make(map[string][]locker.State)}
	var ctx context.Context
	ctx, o.stop = context.WithCancel(context.Background())
	filling, cancel := context.WithTimeout(ctx, testTimeout)
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
	o.work.Go(func() { o.pollCache(ctx, names) })
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

// pollCache polls the Cache, which does not notify of changes.
func (o *observer) pollCache(ctx context.Context, names []string) {
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
			holder, ok := o.cache.Get(name)
			if o.cache.Revision() != revision {
				continue // the holder may be of either revision
			}
			if holder.Name = name; !ok {
				holder = locker.Holder{Name: name}
			}
			o.mu.Lock()
			if seen := o.cached[name]; len(seen) > 0 && seen[len(seen)-1].Holder == holder {
				seen[len(seen)-1].Revision = revision // unchanged, or the same again
			} else {
				o.cached[name] = append(seen, locker.State{Holder: holder, Held: ok, Revision: revision})
			}
			o.mu.Unlock()
		}
	}
}

// newest returns the last state of a name that Watch yielded and the last that the Cache
// showed.
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

// check compares the observed states of each name with its history. If all is set, Watch
// must have yielded every state.
func (o *observer) check(t *testing.T, history map[string][]locker.State, all bool) {
	t.Helper()
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.failed != nil {
		t.Errorf("Watch ended: %v", o.failed)
	}
	for name := range o.watched {
		states := history[name]
		compare(t, "Watch of "+name, o.watched[name], states, all)
		compare(t, "Cache of "+name, o.cached[name], states, false)
		t.Logf("of %d states of %s, Watch yielded %d and the Cache showed %d", len(states), name, len(o.watched[name]), len(o.cached[name]))
	}
}

// compare fails the test unless each state that was seen is the one in the history at its
// revision, the states were seen in order, and the newest was seen. source names the
// observer.
func compare(t *testing.T, source string, seen, history []locker.State, all bool) {
	t.Helper()
	before := -1
	for _, state := range seen {
		i, exact := slices.BinarySearchFunc(history, state.Revision, func(s locker.State, revision int64) int { return int(s.Revision - revision) })
		if !exact {
			i--
		}
		switch {
		case i < 0 || history[i].Held != state.Held || history[i].Holder != state.Holder:
			t.Errorf("%s: %+v was not the state at its revision", source, state)
			return
		case i <= before:
			t.Errorf("%s: %+v was seen twice or out of order", source, state)
			return
		case all && before >= 0 && i != before+1:
			t.Errorf("%s: %+v was not seen", source, history[before+1])
			return
		}
		before = i
	}
	// If changes were undone before they were seen, the last state seen has the newest
	// holder.
	newest := len(history) - 1
	if before < 0 || history[before].Holder != history[newest].Holder || all && before != newest {
		t.Errorf("%s: the newest state, %+v, was not seen", source, history[newest])
	}
}

// end ends everything that newObserver has started.
func (o *observer) end(t *testing.T) {
	o.stop()
	o.work.Wait()
	o.cache.Close()
	if err := o.client.Close(); err != nil {
		t.Errorf("close the observer: %v", err)
	}
	_ = o.etcd.Close()
}
