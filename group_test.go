package locker_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"go.etcd.io/etcd/server/v3/embed"

	"github.com/jagregory/locker/v2"
	"github.com/jagregory/locker/v2/embedtest"
)

// dam is a transaction that is held back, so that others gather behind it.
type dam struct {
	barrier
	lock <-chan outcome
}

func newDam(t testing.TB, c *locker.Client, w *wire) dam {
	t.Helper()
	g := w.stop(t, false, func(req any) bool { return writes(req, "dam") })
	d := dam{g, lockAsync(within(t), c, "dam", "")}
	receive(t, g.arrived)
	return d
}

// burst lets everything flow.
func (d dam) burst(t testing.TB) {
	t.Helper()
	d.open()
	unlock(t, lockOf(t, d.lock))
}

// gathered locks n names, and returns when their writes wait.
func gathered(ctx context.Context, t testing.TB, c *locker.Client, n int) map[string]<-chan outcome {
	t.Helper()
	before, results := c.Gathering(), make(map[string]<-chan outcome)
	for i := range n {
		name := fmt.Sprint("name", i)
		results[name] = lockAsync(ctx, c, name, "of "+name)
	}
	eventually(t, "they wait", func() bool { return c.Gathering() == before+n })
	return results
}

// wantEach wants each name to be held by the one who asked for it, and nobody else.
func (b bundle) wantEach(t testing.TB, results map[string]<-chan outcome) (locks []*locker.Lock) {
	t.Helper()
	observer := b.client(t)
	for name, result := range results {
		l := lockOf(t, result)
		locks = append(locks, l)
		b.holds(t, l)
		if holder := get(t, observer, name); l.Name() != name || holder.Value != "of "+name || holder.Token != l.Token() {
			t.Errorf("%+v holds %s, want token %d", holder, name, l.Token())
		}
	}
	return locks
}

// unlockAll unlocks all at once.
func unlockAll(t testing.TB, locks []*locker.Lock) {
	t.Helper()
	ctx := within(t)
	var wg sync.WaitGroup
	for _, l := range locks {
		wg.Go(func() {
			if err := l.Unlock(ctx); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
}

// nothingQueued wants all queues to be empty.
func (b bundle) nothingQueued(t testing.TB) {
	t.Helper()
	for _, key := range b.keys(t, locker.DefaultPrefix) {
		if !strings.HasPrefix(key, locker.DefaultPrefix+"/") { // which are records
			t.Errorf("left in a queue: %s", key)
		}
	}
}

func TestALoneWriteLeavesAtOnceAndByItself(t *testing.T) {
	t.Parallel()
	b := setup(t)
	c, w := b.wired(t)
	before := w.count()
	quickest := time.Duration(1<<63 - 1)
	const n = 10
	for range n {
		began := time.Now()
		unlock(t, lock(t, c, "a", ""))
		quickest = min(quickest, time.Since(began))
	}
	if requests := w.count() - before; requests != 2*n {
		t.Errorf("%d requests for %d holds", requests, n)
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, req := range w.requests[before:] {
		if !putOf(req, "a") && !releases(req, "a") {
			t.Errorf("not a plain transaction: %v", req)
		}
	}
	if quickest > 200*time.Millisecond {
		t.Errorf("a lone hold took %v at least", quickest)
	}
}

func TestWritesGatherWhileOneIsInFlightAndLeaveTogether(t *testing.T) {
	t.Parallel()
	b := setup(t)
	c, w := b.wired(t, locker.WithTTL(unhurried))
	d := newDam(t, c, w)
	const n = 50
	before := len(w.transactions(0))
	results := gathered(within(t), t, c, n)
	if sent := w.transactions(before); len(sent) > 0 {
		t.Errorf("sent while one was in flight: %v", sent)
	}
	d.open()
	locks := b.wantEach(t, results)
	if sent := w.transactions(before); len(sent) != 1 || len(sent[0]) != n {
		t.Errorf("%d writes left as %v", n, sent)
	}
	for _, l := range locks {
		if l.Token() != locks[0].Token() {
			t.Errorf("tokens %d and %d by one transaction", l.Token(), locks[0].Token())
		}
	}
	unlockAll(t, append(locks, lockOf(t, d.lock)))
	b.nothingQueued(t)
}

func TestATransactionHasOneWriteOfEachNameAtMost(t *testing.T) {
	t.Parallel()
	b, ctx := setup(t), within(t)
	c, w := b.wired(t, locker.WithTTL(unhurried))
	locks := []*locker.Lock{lock(t, c, "x", ""), lock(t, c, "y", "")}
	d := newDam(t, c, w)
	before := len(w.transactions(0))
	var writers sync.WaitGroup
	const n = 5
	for _, l := range locks {
		for i := range n {
			writers.Go(func() {
				if err := l.SetValue(ctx, fmt.Sprint(i)); err != nil {
					t.Error(err)
				}
			})
		}
	}
	eventually(t, "they wait", func() bool { return c.Gathering() == 2*n })
	d.burst(t)
	writers.Wait()
	together := false
	for _, txn := range w.transactions(before) {
		names := make(map[string]bool)
		for _, write := range txn {
			if names[write.name] {
				t.Errorf("a transaction of %v", txn)
			}
			names[write.name] = true
		}
		together = together || len(txn) > 1
	}
	if !together {
		t.Error("none left together")
	}
	if refused := w.refusals(); len(refused) > 0 {
		t.Errorf("etcd refused: %v", refused)
	}
	for _, l := range locks {
		if holder := get(t, c, l.Name()); holder.Value != l.Value() || holder.Token != l.Token() {
			t.Errorf("%+v there, %q here", holder, l.Value())
		}
	}
}

func TestAServerThatTakesFewOperationsServesManyAtOnce(t *testing.T) {
	t.Parallel()
	for _, limit := range []uint{4, 8, 16} {
		t.Run(fmt.Sprint(limit), func(t *testing.T) {
			t.Parallel()
			b := setup(t, embedtest.WithConfig(func(c *embed.Config) { c.MaxTxnOps = limit }))
			c, w := b.wired(t, locker.WithTTL(unhurried))
			for range 4 {
				d := newDam(t, c, w)
				results := gathered(within(t), t, c, 40)
				d.burst(t)
				unlockAll(t, b.wantEach(t, results))
				b.nothingQueued(t)
			}
			// Each refusal halves what leaves together, from 40 down to 1.
			if refused := w.refusals(); len(refused) == 0 || len(refused) > 7 {
				t.Errorf("%d refusals", len(refused))
			}
		})
	}
}

func TestManyWritersWithRandomCancellationsLeaveNothing(t *testing.T) {
	b := setup(t)
	ctx, cancel := context.WithTimeout(within(t), 2*time.Second)
	defer cancel()
	var names [16]struct {
		held  atomic.Bool
		token atomic.Int64
	}
	var holds, cancelled atomic.Int64
	take := func(c *locker.Client) {
		patience := rand.N(30 * time.Millisecond)
		if rand.IntN(10) == 0 {
			patience = time.Minute // however slow the machine is, some have their turn
		}
		short, cancel := context.WithTimeout(ctx, patience)
		defer cancel()
		i := rand.IntN(len(names))
		l, err := c.Lock(short, fmt.Sprint("name", i), "")
		if err != nil {
			if !errors.Is(err, context.DeadlineExceeded) {
				t.Error(err)
			}
			cancelled.Add(1)
			return
		}
		holds.Add(1)
		if names[i].held.Swap(true) {
			t.Error("two hold a name")
		}
		if before := names[i].token.Swap(l.Token()); before >= l.Token() {
			t.Errorf("token %d after %d", l.Token(), before)
		}
		names[i].held.Store(false)
		if err := l.Unlock(context.WithoutCancel(ctx)); err != nil {
			t.Error(err)
		}
	}
	clients := []*locker.Client{b.client(t), b.client(t)}
	for _, c := range clients {
		unlock(t, lock(t, c, "warm", ""))
	}
	var wg sync.WaitGroup
	for i := range 60 {
		wg.Go(func() {
			for ctx.Err() == nil {
				take(clients[i%len(clients)])
			}
		})
	}
	wg.Wait()
	if holds.Load() == 0 || cancelled.Load() == 0 {
		t.Errorf("%d holds, %d cancelled: it proves nothing", holds.Load(), cancelled.Load())
	}
	eventually(t, "nothing is queued", func() bool {
		for i := range names {
			if len(b.keys(t, locker.DefaultPrefix+fmt.Sprint("name", i)+"/")) > 0 {
				return false
			}
		}
		return true
	})
	for _, c := range clients {
		if err := c.Close(); err != nil {
			t.Error(err)
		}
	}
	if left := b.keys(t, ""); len(left) > 0 {
		t.Errorf("left in etcd: %v", left)
	}
}
