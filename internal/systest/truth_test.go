package systest

import (
	"context"
	"fmt"
	"iter"
	"math"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"go.etcd.io/etcd/api/v3/mvccpb"
	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/jagregory/locker/v2"
	"github.com/jagregory/locker/v2/embedtest"
	"github.com/jagregory/locker/v2/internal/locktest"
)

// queues are those of the names that a random history uses.
var queues = map[string]string{"a": "locker/a/", "a/b": "locker/a%2Fb/", "ab": "locker/ab/"}

// truth is what really happened: for each name, its states by revision.
type truth map[string][]locker.State

// at returns the state of name at a revision.
func (t truth) at(name string, revision int64) locker.State {
	i, _ := slices.BinarySearchFunc(t[name], revision, func(s locker.State, revision int64) int {
		if s.Revision <= revision {
			return -1
		}
		return 1
	})
	if i == 0 {
		return locker.State{Holder: locker.Holder{Name: name}}
	}
	return t[name][i-1]
}

// end returns the state of name at the end of the history.
func (t truth) end(name string) locker.State { return t.at(name, math.MaxInt64) }

// held returns the holders at a revision, sorted by name.
func (t truth) held(revision int64) (holders []locker.Holder) {
	for name := range t {
		if state := t.at(name, revision); state.Held {
			holders = append(holders, state.Holder)
		}
	}
	slices.SortFunc(holders, func(a, b locker.Holder) int { return strings.Compare(a.Name, b.Name) })
	return holders
}

// agrees returns an error unless state was true at its revision.
func (t truth) agrees(state locker.State) error {
	if actual := t.at(state.Name, state.Revision); actual.Holder != state.Holder || actual.Held != state.Held {
		return fmt.Errorf("yielded %+v, but the state was %+v", state, actual)
	}
	return nil
}

// replay reconstructs the truth, up to a revision, from etcd's own watch.
func replay(t testing.TB, etcd *clientv3.Client, revision int64) truth {
	t.Helper()
	ctx, cancel := context.WithCancel(locktest.Within(t))
	defer cancel()
	past, entries := make(truth), make(map[string]*mvccpb.KeyValue)
	for answer := range etcd.Watch(ctx, "locker/", clientv3.WithPrefix(), clientv3.WithRev(1)) {
		if answer.Err() != nil {
			t.Fatal(answer.Err())
		}
		for i, ev := range answer.Events {
			if ev.Type == clientv3.EventTypeDelete {
				delete(entries, string(ev.Kv.Key))
			} else {
				entries[string(ev.Kv.Key)] = ev.Kv
			}
			if i+1 < len(answer.Events) && answer.Events[i+1].Kv.ModRevision == ev.Kv.ModRevision {
				continue // of the same transaction
			}
			for name, queue := range queues {
				past[name] = append(past[name], head(name, queue, entries, ev.Kv.ModRevision))
			}
			if ev.Kv.ModRevision >= revision {
				return past
			}
		}
	}
	t.Fatal("the watch ended")
	return nil
}

// head returns the state of name that follows from the entries.
func head(name, queue string, entries map[string]*mvccpb.KeyValue, revision int64) locker.State {
	state := locker.State{Holder: locker.Holder{Name: name}, Revision: revision}
	for key, kv := range entries {
		if strings.HasPrefix(key, queue) && (!state.Held || kv.CreateRevision < state.Token) {
			state.Held, state.Holders, state.Limit = true, 1, 1
			state.Value, state.Token, state.Lease = string(kv.Value), kv.CreateRevision, clientv3.LeaseID(kv.Lease)
		}
	}
	return state
}

// makeHistory has three clients use locks at random, ends with "a" held, and returns
// the truth about it.
func makeHistory(t testing.TB, b locktest.Bundle) truth {
	t.Helper()
	const clients, goroutines, calls = 3, 3, 40
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	names := []string{"a", "a/b", "ab"}
	var holds atomic.Int64
	var crowd sync.WaitGroup
	for i := range clients {
		crowd.Go(func() {
			c := b.Client(t)
			var wg sync.WaitGroup
			for j := range goroutines {
				rnd := rand.New(rand.NewPCG(seed, uint64(i*goroutines+j)))
				wg.Go(func() {
					for n := range calls {
						ctx, cancel := context.WithTimeout(t.Context(), locktest.Timeout)
						call := c.Lock
						switch rnd.IntN(6) {
						case 0:
							call = c.TryLock
						case 1: // may be canceled
							cancel()
							ctx, cancel = context.WithTimeout(t.Context(), time.Duration(rnd.IntN(30))*time.Millisecond)
						}
						l, err := call(ctx, names[rnd.IntN(len(names))], fmt.Sprint(i, j, n))
						cancel()
						if err != nil {
							continue
						}
						holds.Add(1)
						for k := range rnd.IntN(4) {
							_ = l.SetValue(t.Context(), fmt.Sprint(i, j, n, k)) // it may be deleted
						}
						if rnd.IntN(10) == 0 {
							_, _ = b.Etcd.Delete(t.Context(), l.Key())
						}
						_ = l.Unlock(t.Context())
					}
				})
			}
			wg.Wait()
			if err := c.Close(); err != nil { // which ends what it does in the background
				t.Error(err)
			}
		})
	}
	crowd.Wait()
	if holds.Load() < calls {
		t.Errorf("there were only %d holds", holds.Load())
	}
	c := b.Client(t)
	locktest.Unlock(t, locktest.Lock(t, c, "a/b", "the end"))
	locktest.Lock(t, c, "a", "the end")
	end, err := b.Etcd.Put(locktest.Within(t), "locker/the end", "") // no entry
	if err != nil {
		t.Fatal(err)
	}
	return replay(t, b.Etcd, end.Header.Revision)
}

// witness is a loop over states that remembers them.
type witness struct {
	names []string // whose last states it must see
	mu    sync.Mutex
	seen  []locker.State
	order locktest.Order
}

// run iterates until ctx ends, with a pause of up to that long after each state.
func (w *witness) run(ctx context.Context, t testing.TB, states iter.Seq2[locker.State, error], pause time.Duration) {
	for state, err := range states {
		if err != nil {
			if ctx.Err() == nil {
				t.Error(err)
			}
			return
		}
		w.mu.Lock()
		if err := w.order.Check(state); err != nil {
			t.Error(err)
		}
		w.seen = append(w.seen, state)
		w.mu.Unlock()
		if pause > 0 {
			<-time.After(rand.N(pause))
		}
	}
}

// reached reports whether the witness has seen how the history ended.
func (w *witness) reached(past truth) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, name := range w.names {
		last, end := w.order.Last[name], past.end(name)
		if last.Held != end.Held || end.Held && last.Holder != end.Holder {
			return false
		}
	}
	return true
}

// resetOften breaks the connections of a proxy every 200 ms, until ctx ends.
func resetOften(ctx context.Context, proxy *embedtest.Proxy) {
	tick := time.NewTicker(200 * time.Millisecond)
	defer tick.Stop()
	for ctx.Err() == nil {
		<-tick.C
		proxy.Reset()
	}
}

func TestWatch_EachStateThatItYieldsWasTrueAtItsRevision(t *testing.T) {
	b := locktest.Setup(t)
	proxy := b.Server.Proxy(t)
	calm, shaken := b.Client(t), locktest.NewClient(t, proxy.Client(t))
	ctx, cancel := context.WithCancel(t.Context())
	var witnesses []*witness
	var wg sync.WaitGroup
	attend := func(states iter.Seq2[locker.State, error], pause time.Duration, names ...string) {
		w := &witness{names: names}
		witnesses = append(witnesses, w)
		wg.Go(func() { w.run(ctx, t, states, pause) })
	}
	for _, c := range []*locker.Client{calm, shaken} {
		for _, pause := range []time.Duration{0, 50 * time.Millisecond} {
			for name := range queues {
				attend(c.Watch(ctx, name), pause, name)
			}
			attend(c.WatchPrefix(ctx, ""), pause, "a", "a/b", "ab")
			attend(c.WatchPrefix(ctx, "a/"), pause, "a/b")
		}
	}
	hasty := &witness{}
	witnesses = append(witnesses, hasty)
	wg.Go(func() { // begins again and again while things change
		for ctx.Err() == nil {
			for _, watch := range []func(context.Context, string) iter.Seq2[locker.State, error]{calm.Watch, calm.WatchPrefix} {
				hasty.order = locktest.Order{}
				few, enough := context.WithTimeout(ctx, 5*time.Millisecond)
				hasty.run(few, t, watch(few, "a"), 0)
				enough()
			}
		}
	})
	wg.Go(func() { resetOften(ctx, proxy) })
	defer wg.Wait()
	defer cancel()

	past := makeHistory(t, b)
	if end := past.end("a"); end.Value != "the end" {
		t.Fatalf("the history ended with %+v", end)
	}
	locktest.Eventually(t, "all witnesses know the end", func() bool {
		return !slices.ContainsFunc(witnesses, func(w *witness) bool { return !w.reached(past) })
	})
	cancel()
	wg.Wait()
	yielded := 0
	for _, w := range witnesses {
		yielded += len(w.seen)
		for _, state := range w.seen {
			if err := past.agrees(state); err != nil {
				t.Error(err)
			}
		}
	}
	t.Logf("%d states were yielded of %d revisions", yielded, len(past["a"]))
}

func TestCache_IsAtEachRevisionWhatWasHeld(t *testing.T) {
	b := locktest.Setup(t)
	proxy := b.Server.Proxy(t)
	type sample struct {
		revision int64
		holders  []locker.Holder
	}
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	caches := []*locker.Cache{locktest.NewCache(t, b.Client(t), ""), locktest.NewCache(t, locktest.NewClient(t, proxy.Client(t)), "")}
	samples := make([][]sample, len(caches))
	for i, k := range caches {
		wg.Go(func() {
			last := sample{revision: -1}
			for ctx.Err() == nil {
				now := sample{k.Revision(), k.List()}
				if now.revision < last.revision {
					t.Errorf("the revision went from %d to %d", last.revision, now.revision)
				}
				if now.revision == k.Revision() && now.revision != last.revision {
					samples[i], last = append(samples[i], now), now
				}
				<-time.After(50 * time.Microsecond)
			}
		})
	}
	wg.Go(func() { resetOften(ctx, proxy) })
	defer wg.Wait()
	defer cancel()
	past := makeHistory(t, b)
	for i, k := range caches {
		locktest.Eventually(t, fmt.Sprintf("cache %d knows the end", i), func() bool {
			return slices.Equal(k.List(), locktest.List(t, b.Client(t), ""))
		})
	}
	cancel()
	wg.Wait()
	for i := range samples {
		t.Logf("%d samples of cache %d", len(samples[i]), i)
		for _, s := range samples[i] {
			if want := past.held(s.revision); !slices.Equal(s.holders, want) {
				t.Errorf("cache %d at revision %d has %+v, but held were %+v", i, s.revision, s.holders, want)
			}
		}
	}
}
