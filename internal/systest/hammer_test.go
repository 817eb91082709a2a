package systest

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"maps"
	"math"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/jagregory/locker/v2"
	"github.com/jagregory/locker/v2/internal/locktest"
)

var hammerFor = flag.Duration("hammer", 3*time.Second, "how long the hammer test runs, at least")

// taking is a call that returned a hold.
type taking struct {
	token        int64
	began, ended time.Time
}

// hammer is many goroutines that lock a few names through a few clients, with
// everything that may go wrong without a fault of the network.
type hammer struct {
	locktest.Bundle
	names [20]struct {
		mu      sync.Mutex
		holder  *locker.Lock
		token   int64
		takings []taking // that returned a hold
	}
	clients                                        [5]atomic.Pointer[locker.Client]
	holds, denied, canceled, lost, closed, expired atomic.Int64
}

func TestLock_ManyGoroutinesNeverHoldANameAtOnce(t *testing.T) {
	b := locktest.Setup(t)
	h := &hammer{Bundle: b}
	for i := range h.clients {
		h.open(t, i)
	}
	ctx, cancel := context.WithTimeout(t.Context(), *hammerFor+locktest.Timeout)
	defer cancel()
	var wg sync.WaitGroup
	wg.Go(func() {
		for <-time.After(*hammerFor); ctx.Err() == nil && slices.Contains(slices.Collect(maps.Values(h.counts())), 0); {
			<-time.After(100 * time.Millisecond) // the machine is busy
		}
		cancel()
	})
	for range 200 {
		wg.Go(func() {
			for ctx.Err() == nil {
				h.turn(ctx, t)
			}
		})
	}
	wg.Go(func() {
		for ctx.Err() == nil {
			h.disturb(ctx, t)
		}
	})
	wg.Wait()
	for i := range h.clients {
		if err := h.clients[i].Load().Close(); err != nil {
			t.Errorf("close: %v", err)
		}
	}
	t.Logf("%d holds, %d denied, %d canceled, %d lost, %d clients closed, %d leases expired",
		h.holds.Load(), h.denied.Load(), h.canceled.Load(), h.lost.Load(), h.closed.Load(), h.expired.Load())
	for what, n := range h.counts() {
		if n == 0 {
			t.Errorf("the run had no %s: it proves nothing", what)
		}
	}
	if left := b.Keys(t, ""); len(left) > 0 {
		t.Errorf("left in etcd: %v", left)
	}
	leases, err := b.Etcd.Leases(locktest.Within(t))
	if err != nil || len(leases.Leases) > 0 {
		t.Errorf("leases left: %v, %v", leases.Leases, err)
	}
	h.compareWithHistory(t, b)
}

// counts returns how often everything happened that must happen for a run to prove something.
func (h *hammer) counts() map[string]int64 {
	return map[string]int64{"holds": h.holds.Load(), "denials": h.denied.Load(), "cancellations": h.canceled.Load(), "losses": h.lost.Load(), "clients closed": h.closed.Load()}
}

func (h *hammer) open(t *testing.T, i int) {
	c, err := locker.New(h.Server.Client(t))
	if err != nil {
		t.Error(err)
		return
	}
	h.clients[i].Store(c)
}

// disturb expires the lease of a holder or closes a client, now and then.
func (h *hammer) disturb(ctx context.Context, t *testing.T) {
	select {
	case <-ctx.Done():
		return
	case <-time.After(rand.N(200 * time.Millisecond)):
	}
	i := rand.IntN(len(h.clients))
	c := h.clients[i].Load()
	if rand.IntN(4) == 0 {
		h.open(t, i)
		if err := c.Close(); err != nil {
			t.Errorf("close: %v", err)
		}
		h.closed.Add(1)
		return
	}
	if holders, err := c.List(ctx, ""); err == nil && len(holders) > 0 {
		switch _, err := h.Etcd.Revoke(ctx, holders[0].Lease); {
		case err == nil:
			h.expired.Add(1)
		case ctx.Err() == nil && !errors.Is(err, rpctypes.ErrLeaseNotFound): // its session may have ended since
			t.Errorf("revoke: %v", err)
		}
	}
}

// turn locks a name in one of the possible ways, holds it for a moment and unlocks it.
func (h *hammer) turn(ctx context.Context, t *testing.T) {
	c := h.clients[rand.IntN(len(h.clients))].Load()
	n := rand.IntN(len(h.names))
	name, value := fmt.Sprintf("name-%d/x", n), fmt.Sprint(rand.Uint32())
	var (
		l   *locker.Lock
		err error
	)
	began := time.Now()
	switch rand.IntN(4) {
	case 0:
		l, err = c.TryLock(ctx, name, value)
	case 1:
		short, cancel := context.WithTimeout(ctx, rand.N(20*time.Millisecond))
		defer cancel()
		l, err = c.Lock(short, name, value)
	default:
		l, err = c.Lock(ctx, name, value)
	}
	if err != nil {
		h.failed(t, err)
		return
	}
	h.took(t, n, l, taking{l.Token(), began, time.Now()})
	if rand.IntN(3) == 0 {
		if err := l.SetValue(ctx, value+"+"); err != nil {
			h.failed(t, err)
		}
	}
	// Up to this moment the holder may believe that it holds the name.
	h.names[n].mu.Lock()
	if h.names[n].holder == l {
		h.names[n].holder = nil
	}
	h.names[n].mu.Unlock()
	if err := l.Unlock(context.WithoutCancel(ctx)); err != nil {
		h.failed(t, err)
	}
}

// took checks a new hold against those before it. If a lease was revoked from outside,
// its holder learns of it only within a renewal interval. So two may believe that they
// hold, and etcd decides which of them does: it must never be both.
func (h *hammer) took(t *testing.T, n int, l *locker.Lock, by taking) {
	holds := func(l *locker.Lock) bool {
		_, err := l.Commit(context.WithoutCancel(t.Context()))
		return err == nil
	}
	h.holds.Add(1)
	name := &h.names[n]
	name.mu.Lock()
	defer name.mu.Unlock()
	if l.Token() <= name.token && holds(l) {
		t.Errorf("%s: token %d after %d", l.Name(), l.Token(), name.token)
	}
	if former := name.holder; former != nil && former.Err() == nil && l.Err() == nil && holds(l) && holds(former) {
		t.Errorf("%s: %d and %d hold", l.Name(), former.Token(), l.Token())
	}
	name.holder = l
	name.token = max(name.token, l.Token())
	name.takings = append(name.takings, by)
}

func (h *hammer) failed(t *testing.T, err error) {
	switch {
	case errors.Is(err, locker.ErrLocked):
		h.denied.Add(1)
	case errors.Is(err, context.DeadlineExceeded), errors.Is(err, context.Canceled): // the latter at the end
		h.canceled.Add(1)
	case errors.Is(err, locker.ErrLost):
		h.lost.Add(1)
	case errors.Is(err, locker.ErrClosed):
	default:
		t.Errorf("unexpected: %v", err)
	}
}

// reign is a range of revisions at which an entry was the head of its queue: from the
// first until, exclusively, the last.
type reign struct{ from, until int64 }

// compareWithHistory replays all that ever happened in etcd: every hold that was
// reported must have been the head of its queue at some revision during the call.
func (h *hammer) compareWithHistory(t *testing.T, b locktest.Bundle) {
	reigns := history(t, b)
	var all []taking
	for i := range h.names {
		all = append(all, h.names[i].takings...)
	}
	during := revisionsOf(all)
	for i := range h.names {
		for _, c := range h.names[i].takings {
			queue := fmt.Sprintf("locker/name-%d%%2Fx", i)
			r, ok := reigns[front{queue, c.token}]
			switch window := during[c]; {
			case !ok:
				t.Errorf("the hold with token %d was never the head of %s", c.token, queue)
			case r.until <= window.from || r.from >= window.until:
				t.Errorf("the hold with token %d was the head of %s in %+v, but the call was in %+v", c.token, queue, r, window)
			}
		}
	}
	if len(all) == 0 || len(reigns) < len(all) {
		t.Errorf("%d holds were reported, %d heads seen", len(all), len(reigns))
	}
}

// revisionsOf returns between which revisions of the cluster each call took place, as far
// as the other calls show it: a call began at or after the tokens of those that had ended
// before it, and ended before the tokens of those that began after it, because their
// entries were put later.
func revisionsOf(calls []taking) map[taking]reign {
	during := make(map[taking]reign)
	byEnd := slices.SortedFunc(slices.Values(calls), func(a, b taking) int { return a.ended.Compare(b.ended) })
	byBeginning := slices.SortedFunc(slices.Values(calls), func(a, b taking) int { return a.began.Compare(b.began) })
	from, next := int64(0), 0
	for _, c := range byBeginning {
		for ; byEnd[next].ended.Before(c.began); next++ {
			from = max(from, byEnd[next].token)
		}
		during[c] = reign{from: from}
	}
	until, next := int64(math.MaxInt64), len(byBeginning)-1
	for _, c := range slices.Backward(byEnd) {
		for ; byBeginning[next].began.After(c.ended); next-- {
			until = min(until, byBeginning[next].token)
		}
		during[c] = reign{during[c].from, until}
	}
	return during
}

// front is an entry that was the head of its queue.
type front struct {
	queue string
	token int64
}

// history returns all heads that queues have had, and when.
func history(t *testing.T, b locktest.Bundle) map[front]reign {
	ctx, cancel := context.WithCancel(locktest.Within(t))
	defer cancel()
	now, err := b.Etcd.Get(ctx, "none")
	if err != nil {
		t.Fatal(err)
	}
	entries := make(map[string][]int64) // create revisions, by queue
	created := make(map[string]int64)   // by key
	reigns := make(map[front]reign)
	for answer := range b.Etcd.Watch(ctx, "locker/", clientv3.WithPrefix(), clientv3.WithRev(1), clientv3.WithProgressNotify()) {
		if answer.Err() != nil {
			t.Fatal(answer.Err())
		}
		for _, ev := range answer.Events {
			key, at := string(ev.Kv.Key), ev.Kv.ModRevision
			queue := key[:strings.LastIndexByte(key, '/')]
			before := entries[queue]
			if ev.Type == clientv3.EventTypeDelete {
				entries[queue] = slices.DeleteFunc(slices.Clone(before), func(rev int64) bool { return rev == created[key] })
			} else if ev.IsCreate() {
				created[key] = ev.Kv.CreateRevision
				entries[queue] = append(before, ev.Kv.CreateRevision)
			}
			after := entries[queue]
			if len(before) > 0 && (len(after) == 0 || after[0] != before[0]) {
				former := front{queue, before[0]}
				reigns[former] = reign{reigns[former].from, at}
			}
			if len(after) > 0 && (len(before) == 0 || after[0] != before[0]) {
				reigns[front{queue, after[0]}] = reign{at, math.MaxInt64}
			}
		}
		if last := len(answer.Events); last > 0 && answer.Events[last-1].Kv.ModRevision >= now.Header.Revision {
			break
		}
	}
	return reigns
}
