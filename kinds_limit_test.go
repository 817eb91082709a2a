package locker_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"sync/atomic"
	"testing"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"

	"github.com/jagregory/locker/v2"
	"github.com/jagregory/locker/v2/internal/locktest"
)

// crowd is who is inside, between Lock and Unlock.
type crowd struct {
	mu     sync.Mutex // guards what follows
	inside []int      // their limits, 0 for a shared one
	most   int        // at one time
}

// enter adds one to the crowd, and returns an error if those inside may not be together.
func (c *crowd) enter(limit int) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.inside = append(c.inside, limit)
	c.most = max(c.most, len(c.inside))
	if !compatible(c.inside...) {
		return fmt.Errorf("inside at one time are %v", c.inside)
	}
	return nil
}

func (c *crowd) leave(limit int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	i := slices.Index(c.inside, limit)
	c.inside = slices.Delete(c.inside, i, i+1)
}

// churn has six goroutines of each of three clients lock name over and over, every third time with TryLock, and
// calls inside under each lock. It fails the test if there are any at one time that may not be together. It
// returns how many were at most.
func churn(t *testing.T, b locktest.Bundle, name string, rounds int, limit func() int, inside func()) int {
	t.Helper()
	ctx, clients, in := locktest.Within(t), sharers(t, b, 3), new(crowd)
	var workers sync.WaitGroup
	for i := range 18 {
		workers.Go(func() {
			for j := range rounds {
				limit := limit()
				lock := clients[i%3].Lock
				if j%3 == 2 {
					lock = clients[i%3].TryLock
				}
				l, err := lock(ctx, name, "", limited(limit))
				switch {
				case j%3 == 2 && errors.Is(err, locker.ErrLocked):
					continue
				case err != nil:
					t.Error(err)
					return
				}
				if err := in.enter(limit); err != nil {
					t.Error(err)
				}
				inside()
				in.leave(limit)
				if err := l.Unlock(ctx); err != nil {
					t.Error(err)
				}
			}
		})
	}
	workers.Wait()
	b.WantNoEntries(t)
	return in.most
}

func TestLimit_IsReachedAndNeverExceeded(t *testing.T) {
	t.Parallel()
	for _, n := range []int{2, 3, 16, 17} {
		t.Run(fmt.Sprint(n), func(t *testing.T) {
			t.Parallel()
			b := locktest.Setup(t)
			full := make(chan struct{})
			var arrive sync.Mutex // guards arrived
			arrived := 0
			most := churn(t, b, "a", 4, func() int { return n }, func() {
				arrive.Lock()
				if arrived++; arrived == n { // the first ones wait until n are inside
					close(full)
				}
				arrive.Unlock()
				locktest.Receive(t, full)
				b.Value(t, "read")
			})
			if most != n {
				t.Errorf("%d were inside at most, want %d", most, n)
			}
		})
	}
}

func TestKinds_NeverMix(t *testing.T) {
	t.Parallel()
	b := locktest.Setup(t)
	for what, limits := range map[string][]int{"shared and exclusive": {0, 1, 0}, "all": {0, 1, 2, 5, 0, 17}, "limits": {4, 2, 5, 1, 4}} {
		most := churn(t, b, what, 5, func() int { return limits[rand.IntN(len(limits))] }, func() { b.Value(t, "read") })
		if most < 2 {
			t.Errorf("%s: there was nobody at the same time", what)
		}
	}
}

func TestLimit_EveryWaiterIsServedBesideOneThatStays(t *testing.T) {
	t.Parallel()
	for what, test := range map[string]struct{ n, stays int }{ // which of the 30 and the n ahead of them
		"3, the first": {3, 0}, "2, a waiter": {2, 15}, "16, a waiter": {16, 30}, "17, a waiter": {17, 30},
	} {
		t.Run(what, func(t *testing.T) {
			t.Parallel()
			n, stays := test.n, test.stays
			b, ctx := locktest.Setup(t), locktest.Within(t)
			clients, in := sharers(t, b, 31), new(crowd)
			results := make([]<-chan locktest.Outcome, n+30)
			for i := range results {
				results[i] = locktest.LockAsync(ctx, clients[max(0, i-n+1)], "a", "", locker.WithLimit(n))
				if i < n || i >= stays-1 && i <= stays+1 { // others may change places
					b.Queued(t, "a", i+1)
				}
			}
			b.Queued(t, "a", len(results))
			var workers sync.WaitGroup
			for i, result := range results {
				workers.Go(func() {
					got := locktest.Receive(t, result)
					if got.Err != nil {
						t.Error(got.Err)
						return
					}
					if err := in.enter(n); err != nil {
						t.Error(err)
					}
					if i == stays {
						return
					}
					in.leave(n)
					if err := got.Lock.Unlock(ctx); err != nil {
						t.Error(err)
					}
				})
			}
			workers.Wait()
			b.Queued(t, "a", 1)
		})
	}
}

// queuer is one in a queue.
type queuer struct {
	limit  int
	client *locker.Client
	result <-chan locktest.Outcome
	cancel context.CancelFunc
	lock   *locker.Lock // nil while it waits
}

// playQueue has clients join the queue of name one after the other, and leave it in the order that next says: it
// is given how many there are, and how many of them hold. The test fails unless those hold at any time that do by
// the rule.
func playQueue(t *testing.T, b locktest.Bundle, clients []*locker.Client, name string, limits []int, next func(n, holding int) int) {
	t.Helper()
	queue := make([]*queuer, len(limits))
	for i, limit := range limits {
		ctx, cancel := context.WithCancel(locktest.Within(t))
		queue[i] = &queuer{limit: limit, client: clients[i], cancel: cancel}
		queue[i].result = inQueue(ctx, t, b, clients[i], i+1, name, limited(limit))
	}
	for len(queue) > 0 {
		var present []int
		for _, q := range queue {
			present = append(present, q.limit)
		}
		n := holding(present)
		var holders []*locker.Lock
		for i, q := range queue {
			if i >= n {
				select {
				case got := <-q.result:
					t.Fatalf("of %v, number %d did not wait, and returned %v", present, i+1, got.Err)
				default:
				}
				continue
			}
			if q.lock == nil {
				q.lock = locktest.LockOf(t, q.result)
			}
			holders = append(holders, q.lock)
		}
		wantHolders(t, queue[0].client, name, holders...)
		i := next(len(queue), n)
		if q := queue[i]; q.lock != nil {
			locktest.Unlock(t, q.lock)
			q.cancel()
		} else {
			q.cancel()
			locktest.Want(t, locktest.Receive(t, q.result).Err, context.Canceled)
		}
		queue = slices.Delete(queue, i, i+1)
		b.Queued(t, name, len(queue))
	}
}

func TestLimit_TheSmallestCounts(t *testing.T) {
	t.Parallel()
	b := locktest.Setup(t)
	clients := sharers(t, b, 8)
	for i, limits := range [][]int{
		{2, 5, 5, 5}, {5, 5, 2, 5}, {5, 5, 5, 2, 2}, {4, 4, 1, 4},
	} {
		if got := holding(limits); got > slices.Min(limits[:got]) {
			t.Fatalf("by the rule of the test, %d of %v hold", got, limits)
		}
		playQueue(t, b, clients, fmt.Sprint("oldest", i), limits, func(int, int) int { return 0 })
		playQueue(t, b, clients, fmt.Sprint("newest", i), limits, func(_, holding int) int { return holding - 1 })
	}
}

func TestKinds_TheQueueFollowsTheRule(t *testing.T) {
	t.Parallel()
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	random := rand.New(rand.NewPCG(seed, 0))
	b := locktest.Setup(t)
	clients := sharers(t, b, 16)
	kinds := []int{0, 0, 0, 1, 2, 2, 3, 5, 17}
	for i := range 3 {
		limits := make([]int, 4+random.IntN(len(clients)-4))
		for j := range limits {
			limits[j] = kinds[random.IntN(len(kinds))]
		}
		playQueue(t, b, clients, fmt.Sprint(i), limits, func(n, _ int) int { return random.IntN(n) })
	}
}

// etcd comes back from a backup, so that the watch would report what was before that.
func TestLimit_AWaiterFarBehindWatchesAnewIfALookIsBehindItsWatch(t *testing.T) {
	t.Parallel()
	b := locktest.Setup(t)
	var back atomic.Int64 // how many looks are still to be answered as of a backup
	config := b.Server.ClientConfig()
	config.DialOptions = append(config.DialOptions, onTxn(func(t *pb.TxnRequest, invoke func() (*pb.TxnResponse, error)) {
		resp, err := invoke()
		looks := len(t.Success) == 1 && t.Success[0].GetRequestRange().GetSortOrder() == pb.RangeRequest_DESCEND
		if looks && err == nil && back.Add(-1) >= 0 {
			resp.Header.Revision = 1
		}
	}))
	c, _, ws := watched(t, config)
	locktest.Unlock(t, locktest.Lock(t, c, "warm", ""))
	const limit = 17
	keys := make([]string, 2*(limit+locker.Lookahead))
	for i := range keys {
		keys[i] = fmt.Sprintf("%sa/%016x", locker.DefaultPrefix, i+1)
		locktest.PutKey(t, b.Etcd, keys[i], "")
	}
	waiter := locktest.LockAsync(locktest.Within(t), c, "a", "", locker.WithLimit(limit))
	ws.awaitOne(t)
	back.Store(2) // of one member, and of the leader
	for _, key := range slices.Backward(keys) {
		wantWaiting(t, waiter)
		deleteKey(t, b, key)
	}
	b.WantHeldAlone(t, locktest.LockOf(t, waiter))
	if opened, _ := ws.count(); back.Load() > 0 || opened < 2 {
		t.Errorf("%d watches were opened, and %d looks have yet to be misled", opened, back.Load())
	}
}

func TestLimit_TryLockIsRefusedBesideANewcomer(t *testing.T) {
	t.Parallel()
	for what, test := range map[string]struct {
		between func(t *testing.T, holder *locker.Lock, newcomer *locker.Lock)
		err     error
	}{
		"that stays":              {func(*testing.T, *locker.Lock, *locker.Lock) {}, locker.ErrLocked},
		"that has left":           {func(t *testing.T, _, newcomer *locker.Lock) { locktest.Unlock(t, newcomer) }, nil},
		"in place of the present": {func(t *testing.T, holder, _ *locker.Lock) { locktest.Unlock(t, holder) }, nil},
	} {
		t.Run(what, func(t *testing.T) {
			t.Parallel()
			b, ctx := locktest.Setup(t), locktest.Within(t)
			clients := sharers(t, b, 2)
			holder := locktest.Lock(t, clients[0], "a", "", locker.WithLimit(2))
			c, w := wired(t, b)
			tries := 0
			second := w.stop(t, false, func(req any) bool {
				if writes(req, "a") {
					tries++
				}
				return tries == 2 // the first was refused, and has read the queue
			})
			result := locktest.TryLockAsync(ctx, c, "a", "", locker.WithLimit(2))
			locktest.Receive(t, second.arrived)
			newcomer := locktest.Lock(t, clients[1], "a", "", locker.WithLimit(2))
			test.between(t, holder, newcomer)
			second.open()
			got := locktest.Receive(t, result)
			if !errors.Is(got.Err, test.err) {
				t.Fatalf("TryLock returned %v, want %v", got.Err, test.err)
			}
			holders, err := c.Holders(ctx, "a")
			if err != nil || len(holders) != 2 || len(b.Entries(t)) != 2 {
				t.Errorf("%d of %d hold, %v", len(holders), len(b.Entries(t)), err)
			}
		})
	}
}

func TestKinds_ACancelledFrontWaiterMakesWayForTheNext(t *testing.T) {
	t.Parallel()
	for what, test := range map[string]struct {
		holders       []int
		front, behind int
		unlock        bool // a holder, after which the one behind is due
	}{
		"shared behind an exclusive":   {holders: []int{0, 0}, front: 1},
		"shared behind a limited":      {holders: []int{0}, front: 3},
		"limited behind a shared":      {holders: []int{3}, front: 0, behind: 3},
		"limited behind an exclusive":  {holders: []int{4, 4}, front: 1, behind: 4},
		"limited behind a smaller one": {holders: []int{4, 4}, front: 2, behind: 4},
		"limited behind a limited":     {holders: []int{2, 2}, front: 2, behind: 2, unlock: true},
		"exclusive behind a shared":    {holders: []int{1}, front: 0, behind: 1, unlock: true},
	} {
		for where, clients := range map[string]int{"in the client's line": 1, "in etcd's queue": 3} {
			t.Run(what+" "+where, func(t *testing.T) {
				t.Parallel()
				b, ctx := locktest.Setup(t), locktest.Within(t)
				all := sharers(t, b, clients)
				var holders []*locker.Lock
				for _, limit := range test.holders {
					holders = append(holders, locktest.Lock(t, all[0], "a", "", limited(limit)))
				}
				tired := errors.New("tired")
				waiting, cancel := context.WithCancelCause(ctx)
				wait := func(ctx context.Context, i, limit int) <-chan locktest.Outcome {
					if clients == 1 {
						return inLine(ctx, t, all[0], i-1, "a", "", limited(limit))
					}
					return inQueue(ctx, t, b, all[i], len(holders)+i, "a", limited(limit))
				}
				front, behind := wait(waiting, 1, test.front), wait(ctx, 2, test.behind)
				cancel(tired)
				locktest.Want(t, locktest.Receive(t, front).Err, tired)
				if test.unlock {
					wantWaiting(t, behind)
					locktest.Unlock(t, holders[0])
					holders = holders[1:]
				}
				next := locktest.LockOf(t, behind)
				wantHolders(t, all[0], "a", append(holders, next)...)
				locktest.Unlock(t, next)
				for _, l := range holders {
					locktest.Unlock(t, l)
				}
				b.WantNoEntries(t)
			})
		}
	}
}

func TestLimit_OptionsThatMakeNoSenseAreRefused(t *testing.T) {
	t.Parallel()
	b, ctx := locktest.Setup(t), locktest.Within(t)
	c, w := wired(t, b)
	before := w.count()
	for what, opts := range map[string][]locker.LockOption{
		"0":                  {locker.WithLimit(0)},
		"-1":                 {locker.WithLimit(-1)},
		"1001":               {locker.WithLimit(1001)},
		"shared and limited": {locker.WithShared(), locker.WithLimit(2)},
		"limited and shared": {locker.WithLimit(2), locker.WithShared()},
		"shared and 1":       {locker.WithShared(), locker.WithLimit(1)},
		"of another name":    {locker.And("b", "", locker.WithLimit(0))},
	} {
		for verb, call := range map[string]func() error{
			"Lock":     func() error { _, err := c.Lock(ctx, "a", "", opts...); return err },
			"TryLock":  func() error { _, err := c.TryLock(ctx, "a", "", opts...); return err },
			"Do":       func() error { return c.Do(ctx, "a", "", neverCalled(t), opts...) },
			"Campaign": func() error { return c.Campaign(ctx, "a", "", neverCalled(t), opts...) },
		} {
			err := call()
			if !errors.Is(err, locker.ErrInvalid) {
				t.Fatalf("%s with %s returned %v", verb, what, err)
			}
			wantInvalid(t, err, "limit")
			wantWrappedOnce(t, err)
		}
	}
	if n := w.count() - before; n != 0 {
		t.Errorf("%d requests were sent", n)
	}
	for limit, suffix := range map[int]string{1: "", 1000: "~1000"} {
		l := locktest.Lock(t, c, "a", "", locker.WithLimit(limit))
		if want := fmt.Sprintf("%sa/%x%s", locker.DefaultPrefix, locktest.LeaseOf(l), suffix); l.Key() != want {
			t.Errorf("the key is %s, want %s", l.Key(), want)
		}
		locktest.Unlock(t, l)
	}
}
