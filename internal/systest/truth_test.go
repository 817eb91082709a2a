package systest

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"iter"
	"maps"
	"math"
	"math/rand/v2"
	"slices"
	"strconv"
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
type truth map[string][]moment

// moment is a state of a name, with all its holders, the oldest first.
type moment struct {
	locker.State
	holders []locker.Holder
}

// at returns the state of name at a revision.
func (t truth) at(name string, revision int64) moment {
	i, _ := slices.BinarySearchFunc(t[name], revision, func(m moment, revision int64) int {
		if m.Revision <= revision {
			return -1
		}
		return 1
	})
	if i == 0 {
		return moment{State: locker.State{Holder: locker.Holder{Name: name}}}
	}
	return t[name][i-1]
}

// end returns the state of name at the end of the history.
func (t truth) end(name string) locker.State { return t.at(name, math.MaxInt64).State }

// held returns the holders at a revision, sorted by name, then by token.
func (t truth) held(revision int64) (holders []locker.Holder) {
	for _, name := range slices.Sorted(maps.Keys(t)) {
		holders = append(holders, t.at(name, revision).holders...)
	}
	return holders
}

// agrees returns an error unless state was true at its revision.
func (t truth) agrees(state locker.State) error {
	actual := t.at(state.Name, state.Revision).State
	if actual.Revision = state.Revision; actual != state {
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
				past[name] = append(past[name], stateOf(name, queue, entries, ev.Kv.ModRevision))
			}
			if ev.Kv.ModRevision >= revision {
				return past
			}
		}
	}
	t.Fatal("the watch ended")
	return nil
}

// stateOf returns the state of name that follows from the entries, by the rule.
func stateOf(name, queue string, entries map[string]*mvccpb.KeyValue, revision int64) moment {
	m := moment{State: locker.State{Holder: locker.Holder{Name: name}, Revision: revision}}
	var all []*mvccpb.KeyValue
	for key, kv := range entries {
		if strings.HasPrefix(key, queue) {
			all = append(all, kv)
		}
	}
	slices.SortFunc(all, func(a, b *mvccpb.KeyValue) int {
		return cmp.Or(cmp.Compare(a.CreateRevision, b.CreateRevision), bytes.Compare(a.Key, b.Key))
	})
	var ahead []int
	for _, kv := range all {
		limit := limitOf(strings.TrimPrefix(string(kv.Key), queue))
		if !due(limit, ahead) {
			break
		}
		ahead = append(ahead, limit)
		m.holders = append(m.holders, holderBy(&want{name, limit, string(kv.Value)}, kv))
	}
	if len(m.holders) > 0 {
		m.Holder, m.Held, m.Holders = m.holders[0], true, len(m.holders)
	}
	return m
}

// limitOf returns the limit of an entry, 0 if it is shared, given what follows the queue in its key.
func limitOf(entry string) int {
	if strings.HasPrefix(entry, "~/") {
		return 0
	}
	if _, limit, ok := strings.Cut(entry, "~"); ok {
		n, _ := strconv.Atoi(limit)
		return n
	}
	return 1
}

// makeHistory has three clients use locks of all kinds at random, ends with "a" held by one
// and "ab" by two, and returns the truth about it.
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
						first, opts := names[rnd.IntN(len(names))], someKind(rnd)
						if second := names[rnd.IntN(len(names))]; second != first && rnd.IntN(2) == 0 {
							opts = append(opts, locker.And(second, fmt.Sprint(i, j, n, "and"), someKind(rnd)...))
						}
						l, err := call(ctx, first, fmt.Sprint(i, j, n), opts...)
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
	for range 2 {
		locktest.Lock(t, c, "ab", "the end", locker.WithShared())
	}
	end, err := b.Etcd.Put(locktest.Within(t), "locker/the end", "") // no entry
	if err != nil {
		t.Fatal(err)
	}
	return replay(t, b.Etcd, end.Header.Revision)
}

// someKind returns the options of some kind of lock.
func someKind(rnd *rand.Rand) []locker.LockOption {
	return kindOf([]int{1, 1, 0, 0, 2, 3}[rnd.IntN(6)])
}

// witness is a loop over states that remembers them.
type witness struct {
	names []string // whose last states it must see
	mu    sync.Mutex
	seen  []locker.State
	wrong []error
	order locktest.Order
}

// run iterates until ctx ends, with a pause of up to that long after each state.
func (w *witness) run(ctx context.Context, t testing.TB, states iter.Seq2[locker.State, error], pause time.Duration) {
	if err := w.read(states, pause); ctx.Err() == nil {
		t.Error(err)
	}
	if err := w.err(); err != nil {
		t.Error(err)
	}
}

// read iterates until the states end, and returns the error with which they do.
func (w *witness) read(states iter.Seq2[locker.State, error], pause time.Duration) error {
	for state, err := range states {
		if err != nil {
			return err
		}
		w.mu.Lock()
		if last, ok := w.order.Last[state.Name]; ok && last.Holders != state.Holders && last.Revision < state.Revision {
			delete(w.order.Last, state.Name) // another number of holders is news, too
		}
		err := w.order.Check(state)
		w.seen = append(w.seen, state)
		w.mu.Unlock()
		w.note(err)
		if pause > 0 {
			<-time.After(rand.N(pause))
		}
	}
	return nil
}

// note notes that something was wrong, unless err is nil.
func (w *witness) note(err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if err != nil {
		w.wrong = append(w.wrong, err)
	}
}

// err returns what was wrong.
func (w *witness) err() error {
	w.mu.Lock()
	defer w.mu.Unlock()
	return errors.Join(w.wrong...)
}

// last returns the last state of a name that the witness has seen, if any.
func (w *witness) last(name string) (state locker.State, ok bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if state, ok = w.order.Last[name]; !ok {
		state.Name = name
	}
	return state, ok
}

// reached reports whether the witness has seen how the history ended.
func (w *witness) reached(past truth) bool {
	return !slices.ContainsFunc(w.names, func(name string) bool {
		last, _ := w.last(name)
		end := past.end(name)
		last.Revision = end.Revision
		return last != end
	})
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
	yielded, several := 0, 0
	for _, w := range witnesses {
		yielded += len(w.seen)
		for _, state := range w.seen {
			if state.Holders > 1 {
				several++
			}
			if err := past.agrees(state); err != nil {
				t.Error(err)
			}
		}
	}
	t.Logf("%d states were yielded of %d revisions, %d of them with several holders", yielded, len(past["a"]), several)
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
				var each []locker.Holder
				for _, name := range slices.Sorted(maps.Keys(queues)) {
					each = append(each, k.Holders(name)...)
				}
				if now.revision == k.Revision() && now.revision != last.revision {
					if !slices.Equal(each, now.holders) {
						t.Errorf("at revision %d List says %+v, and Holders %+v", now.revision, now.holders, each)
					}
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
