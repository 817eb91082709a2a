package systest

import (
	"context"
	"errors"
	"math/rand/v2"
	"strconv"
	"sync"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/jagregory/locker/v2"
	"github.com/jagregory/locker/v2/embedtest"
	"github.com/jagregory/locker/v2/internal/locktest"
)

// Tests of faults of the network between a client and etcd.

// observer is what a Watch of one name has reported.
type observer struct {
	states <-chan locker.State
	last   locker.State
}

// observe watches name until the test ends.
func observe(t testing.TB, c *locker.Client, name string) *observer {
	states := make(chan locker.State, 1000)
	go func() {
		for state, err := range c.Watch(t.Context(), name) {
			if err != nil {
				return
			}
			states <- state
		}
	}()
	return &observer{states: states}
}

// sees waits until the Watch reports the holder with that token, or nobody if it is 0.
// States must come in order, and each must differ from the one before.
func (o *observer) sees(t testing.TB, token int64) {
	t.Helper()
	for {
		state := locktest.Receive(t, o.states)
		if state.Revision <= o.last.Revision {
			t.Errorf("reported revision %d after %d", state.Revision, o.last.Revision)
		}
		if o.last.Revision != 0 && state.Held == o.last.Held && state.Holder == o.last.Holder {
			t.Errorf("reported twice: %+v", state)
		}
		o.last = state
		if state.Token == token {
			return
		}
	}
}

// company is a name with a holder, a waiter, an observer and a cache, each with a Client
// of its own.
type company struct {
	name     string
	holder   *locker.Lock
	waiting  <-chan locktest.Outcome
	observer *observer
	cache    *locker.Cache
}

// gather returns a company once its name is held, waited for and observed.
func gather(t testing.TB, b locktest.Bundle, connect func(testing.TB) *clientv3.Client, opts ...locker.Option) *company {
	t.Helper()
	c := &company{name: "shared"}
	c.holder = locktest.Lock(t, locktest.NewClient(t, connect(t), opts...), c.name, "holder")
	c.waiting = locktest.LockAsync(locktest.Within(t), locktest.NewClient(t, connect(t), opts...), c.name, "waiter")
	b.Queued(t, c.name, 2)
	c.observer = observe(t, locktest.NewClient(t, connect(t), opts...), c.name)
	c.observer.sees(t, c.holder.Token())
	cache, err := locktest.NewClient(t, connect(t), opts...).NewCache(locktest.Within(t), "")
	if err != nil {
		t.Fatal(err)
	}
	c.cache = cache
	return c
}

// passOn releases the lock, which must still be held, and fails the test unless everybody
// learns of it.
func (c *company) passOn(t testing.TB, b locktest.Bundle) {
	t.Helper()
	locktest.Renewed(t, c.holder)
	if holder, ok := c.cache.Get(c.name); !ok || holder.Token != c.holder.Token() {
		t.Errorf("the cache has %+v, %v", holder, ok)
	}
	if err := c.holder.Unlock(locktest.Within(t)); err != nil {
		t.Error(err)
	}
	c.takeOver(t, b)
}

// takeOver fails the test unless the waiter holds, and everybody learns of that and of its release.
func (c *company) takeOver(t testing.TB, b locktest.Bundle) {
	t.Helper()
	next := locktest.Receive(t, c.waiting)
	if next.Err != nil {
		t.Fatal(next.Err)
	}
	if next.Lock.Token() <= c.holder.Token() {
		t.Errorf("token %d after %d", next.Lock.Token(), c.holder.Token())
	}
	c.observer.sees(t, next.Lock.Token())
	locktest.Eventually(t, "the cache has the next holder", func() bool {
		holder, _ := c.cache.Get(c.name)
		return holder.Token == next.Lock.Token()
	})
	if err := next.Lock.Unlock(locktest.Within(t)); err != nil {
		t.Error(err)
	}
	c.observer.sees(t, 0)
	locktest.Eventually(t, "the cache has no holder", func() bool {
		_, ok := c.cache.Get(c.name)
		return !ok
	})
	b.Queued(t, c.name, 0)
}

func TestHold_ThatIsCutOffEndsBeforeEtcdDeletesItsEntry(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		fault  func(*embedtest.Proxy)
		trials int
		lapses bool // the lease runs out
	}{
		"cut":    {func(p *embedtest.Proxy) { p.Cut() }, 30, true},
		"frozen": {func(p *embedtest.Proxy) { p.Freeze() }, 8, true},
		// Once the client has lost the lease, its revocation reaches etcd at once.
		"replies dropped": {func(p *embedtest.Proxy) { p.DropReplies() }, 8, false},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := locktest.Setup(t)
			slacks := make([]time.Duration, test.trials)
			var trials sync.WaitGroup
			for i := range slacks {
				ttl := locktest.Brief + time.Duration(i%2)*time.Second
				trials.Go(func() { slacks[i] = cutOff(t, b, "trial"+strconv.Itoa(i), ttl, test.fault) })
			}
			trials.Wait()
			smallest := slacks[0]
			for i, slack := range slacks {
				smallest = min(smallest, slack)
				if slack <= 0 && test.lapses {
					t.Errorf("trial %d was lost %v after the deletion", i, -slack)
				}
			}
			t.Logf("the smallest slack of %d trials was %v", test.trials, smallest)
		})
	}
}

// cutOff lets a fault happen to a holder and returns by how much the end of its
// hold came before the deletion of its entry. It may be called in any goroutine.
func cutOff(t *testing.T, b locktest.Bundle, name string, ttl time.Duration, fault func(*embedtest.Proxy)) time.Duration {
	ctx := locktest.Within(t)
	proxy := b.Server.Proxy(t)
	c := locktest.NewClient(t, proxy.Client(t), locker.WithTTL(ttl))
	l, err := c.Lock(ctx, name, "")
	if err != nil {
		t.Error(err)
		return 0
	}
	entry := b.Etcd.Watch(ctx, l.Key(), clientv3.WithRev(l.Token()+1), clientv3.WithFilterPut())
	ended := make(chan time.Time, 1)
	go func() {
		<-l.Context().Done()
		ended <- time.Now()
	}()

	<-time.After(rand.N(ttl)) // the fault comes at any point of the renewal interval
	fault(proxy)
	deadline := l.Deadline()
	answer, ok := <-entry
	deleted, over := time.Now(), l.Context().Err() != nil
	if !ok || len(answer.Events) == 0 {
		t.Errorf("%s: no deletion: %v", name, answer.Err())
		return 0
	}
	if !over {
		t.Errorf("%s: not lost when the entry was deleted", name)
	}
	select {
	case at := <-ended:
		if at.Before(deadline) {
			t.Errorf("%s: lost %v before the deadline", name, deadline.Sub(at))
		}
		var loss *locker.LostError
		if err := l.Err(); !errors.As(err, &loss) || loss.Reason != locker.Expired {
			t.Errorf("%s: the hold ended with %v", name, err)
		}
		return deleted.Sub(at)
	case <-ctx.Done():
		t.Errorf("%s: the hold did not end", name)
		return 0
	}
}

func TestLock_SucceedsAgainAfterRepliesWereDropped(t *testing.T) {
	t.Parallel()
	b := locktest.Setup(t)
	proxy := b.Server.Proxy(t)
	c := locktest.NewClient(t, proxy.Client(t), locker.WithTTL(locktest.Brief))
	before := locktest.Lock(t, c, "a", "")
	proxy.DropReplies()
	locktest.Lost(t, before, locker.Expired)
	waiting := locktest.LockAsync(locktest.Within(t), c, "a", "")
	proxy.Heal()
	after := locktest.Receive(t, waiting)
	if after.Err != nil {
		t.Fatal(after.Err)
	}
	if after.Lock.Token() <= before.Token() {
		t.Errorf("token %d after %d", after.Lock.Token(), before.Token())
	}
}

func TestHold_AndWaitersSurviveResetsOfTheirConnections(t *testing.T) {
	t.Parallel()
	b := locktest.Setup(t)
	proxy := b.Server.Proxy(t)
	c := gather(t, b, proxy.Client, locker.WithTTL(locktest.Steady))
	proxy.Reset()
	locktest.Renewed(t, c.holder)
	proxy.Reset()
	c.passOn(t, b)
}

func TestHandOver_IsNotMissedWhileConnectionsAreReset(t *testing.T) {
	t.Parallel()
	b := locktest.Setup(t)
	proxy := b.Server.Proxy(t)
	var clients [3]*locker.Client
	for i := range clients {
		clients[i] = locktest.NewClient(t, proxy.Client(t), locker.WithTTL(locktest.Unhurried))
	}
	seen := observe(t, locktest.NewClient(t, proxy.Client(t)), "a")
	holder := locktest.Lock(t, clients[0], "a", "")
	owners := b.Leases(t)
	for i := range 20 {
		waiting := locktest.LockAsync(locktest.Within(t), clients[(i+1)%len(clients)], "a", "")
		if i%2 == 0 {
			b.Queued(t, "a", 2) // otherwise the reset comes while it enters the queue
		}
		proxy.Reset()
		if err := holder.Unlock(locktest.Within(t)); err != nil {
			t.Fatal(err)
		}
		proxy.Reset()
		next := locktest.Receive(t, waiting)
		if next.Err != nil {
			t.Fatal(next.Err)
		}
		if next.Lock.Token() <= holder.Token() {
			t.Fatalf("token %d after %d", next.Lock.Token(), holder.Token())
		}
		holder = next.Lock
		seen.sees(t, holder.Token())
	}
	for lease := range owners {
		if !b.Leases(t)[lease] {
			t.Errorf("session %x was lost", lease)
		}
	}
}

func TestHandOver_DuringADisconnectIsNotMissed(t *testing.T) {
	t.Parallel()
	b := locktest.Setup(t)
	releasing := b.Client(t)
	for i := range 5 {
		name := "a" + strconv.Itoa(i)
		proxy := b.Server.Proxy(t)
		holder := locktest.Lock(t, releasing, name, "")
		waiting := locktest.LockAsync(locktest.Within(t), locktest.NewClient(t, proxy.Client(t)), name, "")
		b.Queued(t, name, 2)
		seen := observe(t, locktest.NewClient(t, proxy.Client(t)), name)
		seen.sees(t, holder.Token())
		proxy.Cut()
		if err := holder.Unlock(locktest.Within(t)); err != nil {
			t.Fatal(err)
		}
		if i%2 == 1 {
			b.Server.Compact(t) // so that no watch can be resumed
		}
		proxy.Heal()
		next := locktest.Receive(t, waiting)
		if next.Err != nil {
			t.Fatal(next.Err)
		}
		seen.sees(t, next.Lock.Token())
	}
}

func TestSession_SurvivesAFrozenMember(t *testing.T) {
	t.Parallel()
	const ttl = locktest.Brief
	b := locktest.Setup(t, embedtest.WithMembers(3))
	for member := range 3 {
		t.Run(strconv.Itoa(member), func(t *testing.T) {
			t.Parallel()
			name := "held" + strconv.Itoa(member)
			proxy := b.Server.Proxy(t)
			holder := locktest.NewClient(t, proxy.Client(t), locker.WithTTL(ttl))
			l := locktest.Lock(t, holder, name, "")
			waiting := locktest.LockAsync(locktest.Within(t), locktest.NewClient(t, proxy.Client(t), locker.WithTTL(ttl)), name, "")
			b.Queued(t, name, 2)
			seen := observe(t, locktest.NewClient(t, proxy.Client(t), locker.WithTTL(ttl)), name)
			seen.sees(t, l.Token())

			proxy.Freeze(member)
			frozen := time.Now()
			locktest.Eventually(t, "renewed for longer than the TTL", func() bool {
				return l.Err() != nil || l.Deadline().After(frozen.Add(2*ttl))
			})
			if err := l.Err(); err != nil {
				t.Fatal(err)
			}
			if err := l.Unlock(locktest.Within(t)); err != nil {
				t.Error(err)
			}
			next := locktest.Receive(t, waiting)
			if next.Err != nil {
				t.Fatal(next.Err)
			}
			seen.sees(t, next.Lock.Token())
		})
	}
}

func TestHold_AndWaitersSurviveASlowNetwork(t *testing.T) {
	t.Parallel()
	b := locktest.Setup(t)
	proxy := b.Server.Proxy(t)
	done := make(chan struct{})
	defer func() { <-done }()
	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	go func() {
		defer close(done)
		tick := time.NewTicker(50 * time.Millisecond)
		defer tick.Stop()
		for ctx.Err() == nil {
			proxy.Delay(200*time.Millisecond + rand.N(40*time.Millisecond) - 20*time.Millisecond)
			select {
			case <-tick.C:
			case <-ctx.Done():
			}
		}
	}()
	gather(t, b, proxy.Client, locker.WithTTL(locktest.Steady)).passOn(t, b)
}
