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
)

// Faults of the network between a client and etcd.

// observer is what a Watch of one name has told.
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

// sees waits until the observer is told of the holder with that token, 0 for
// nobody. What it is told must be in order and news.
func (o *observer) sees(t testing.TB, token int64) {
	t.Helper()
	for {
		state := receive(t, o.states)
		if state.Revision <= o.last.Revision {
			t.Errorf("told of revision %d after %d", state.Revision, o.last.Revision)
		}
		if o.last.Revision != 0 && state.Held == o.last.Held && state.Holder == o.last.Holder {
			t.Errorf("told twice: %+v", state)
		}
		o.last = state
		if state.Token == token {
			return
		}
	}
}

// company is one name with all who may take an interest in it, each with a Client
// of its own.
type company struct {
	name     string
	holder   *locker.Lock
	waiting  <-chan outcome
	observer *observer
	cache    *locker.Cache
}

// gather returns once the name is held, waited for and observed.
func gather(t testing.TB, b bundle, connect func(testing.TB) *clientv3.Client, opts ...locker.Option) *company {
	t.Helper()
	c := &company{name: "shared"}
	c.holder = lock(t, newClient(t, connect(t), opts...), c.name, "holder")
	c.waiting = lockAsync(within(t), newClient(t, connect(t), opts...), c.name, "waiter")
	b.Queued(t, c.name, 2)
	c.observer = observe(t, newClient(t, connect(t), opts...), c.name)
	c.observer.sees(t, c.holder.Token())
	cache, err := newClient(t, connect(t), opts...).NewCache(within(t), "")
	if err != nil {
		t.Fatal(err)
	}
	c.cache = cache
	return c
}

// passOn has the holder release what it must still hold, and wants everybody to
// learn of it.
func (c *company) passOn(t testing.TB, b bundle) {
	t.Helper()
	renewed(t, c.holder)
	if holder, ok := c.cache.Get(c.name); !ok || holder.Token != c.holder.Token() {
		t.Errorf("the cache has %+v, %v", holder, ok)
	}
	if err := c.holder.Unlock(within(t)); err != nil {
		t.Error(err)
	}
	c.takeOver(t, b)
}

// takeOver wants the waiter to hold, and everybody to learn of that and of its end.
func (c *company) takeOver(t testing.TB, b bundle) {
	t.Helper()
	next := receive(t, c.waiting)
	if next.Err != nil {
		t.Fatal(next.Err)
	}
	if next.Lock.Token() <= c.holder.Token() {
		t.Errorf("token %d after %d", next.Lock.Token(), c.holder.Token())
	}
	c.observer.sees(t, next.Lock.Token())
	eventually(t, "the cache has the next holder", func() bool {
		holder, _ := c.cache.Get(c.name)
		return holder.Token == next.Lock.Token()
	})
	if err := next.Lock.Unlock(within(t)); err != nil {
		t.Error(err)
	}
	c.observer.sees(t, 0)
	eventually(t, "the cache has no holder", func() bool {
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
		lapses bool // the lease is left to run out
	}{
		"cut":    {func(p *embedtest.Proxy) { p.Cut() }, 30, true},
		"frozen": {func(p *embedtest.Proxy) { p.Freeze() }, 8, true},
		// The client, having lost the lease, gets a revocation through at once.
		"replies dropped": {func(p *embedtest.Proxy) { p.DropReplies() }, 8, false},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := setup(t)
			slacks := make([]time.Duration, test.trials)
			var trials sync.WaitGroup
			for i := range slacks {
				ttl := brief + time.Duration(i%2)*time.Second
				trials.Go(func() { slacks[i] = cutOff(t, b, "trial"+strconv.Itoa(i), ttl, test.fault) })
			}
			trials.Wait()
			smallest := slacks[0]
			for i, slack := range slacks {
				smallest = min(smallest, slack)
				if slack <= 0 && test.lapses {
					t.Errorf("trial %d was told %v after the deletion", i, -slack)
				}
			}
			t.Logf("the smallest slack of %d trials was %v", test.trials, smallest)
		})
	}
}

// cutOff lets a fault happen to a holder and returns by how much the end of its
// hold came before the deletion of its entry. It is called in any goroutine.
func cutOff(t *testing.T, b bundle, name string, ttl time.Duration, fault func(*embedtest.Proxy)) time.Duration {
	ctx := within(t)
	proxy := b.Server.Proxy(t)
	c := newClient(t, proxy.Client(t), locker.WithTTL(ttl))
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
	certain := l.Deadline()
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
		if at.Before(certain) {
			t.Errorf("%s: lost %v before the deadline", name, certain.Sub(at))
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
	b := setup(t)
	proxy := b.Server.Proxy(t)
	c := newClient(t, proxy.Client(t), locker.WithTTL(brief))
	before := lock(t, c, "a", "")
	proxy.DropReplies()
	lost(t, before, locker.Expired)
	waiting := lockAsync(within(t), c, "a", "")
	proxy.Heal()
	after := receive(t, waiting)
	if after.Err != nil {
		t.Fatal(after.Err)
	}
	if after.Lock.Token() <= before.Token() {
		t.Errorf("token %d after %d", after.Lock.Token(), before.Token())
	}
}

func TestHold_AndWaitersSurviveResetsOfTheirConnections(t *testing.T) {
	t.Parallel()
	b := setup(t)
	proxy := b.Server.Proxy(t)
	c := gather(t, b, proxy.Client, locker.WithTTL(steady))
	proxy.Reset()
	renewed(t, c.holder)
	proxy.Reset()
	c.passOn(t, b)
}

func TestHandOver_IsNotMissedWhileConnectionsAreReset(t *testing.T) {
	t.Parallel()
	b := setup(t)
	proxy := b.Server.Proxy(t)
	var clients [3]*locker.Client
	for i := range clients {
		clients[i] = newClient(t, proxy.Client(t), locker.WithTTL(unhurried))
	}
	seen := observe(t, newClient(t, proxy.Client(t)), "a")
	holder := lock(t, clients[0], "a", "")
	owners := b.Leases(t)
	for i := range 20 {
		waiting := lockAsync(within(t), clients[(i+1)%len(clients)], "a", "")
		if i%2 == 0 {
			b.Queued(t, "a", 2) // else the reset comes while it is queuing
		}
		proxy.Reset()
		if err := holder.Unlock(within(t)); err != nil {
			t.Fatal(err)
		}
		proxy.Reset()
		next := receive(t, waiting)
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
	b := setup(t)
	releasing := b.Client(t)
	for i := range 5 {
		name := "a" + strconv.Itoa(i)
		proxy := b.Server.Proxy(t)
		holder := lock(t, releasing, name, "")
		waiting := lockAsync(within(t), newClient(t, proxy.Client(t)), name, "")
		b.Queued(t, name, 2)
		seen := observe(t, newClient(t, proxy.Client(t)), name)
		seen.sees(t, holder.Token())
		proxy.Cut()
		if err := holder.Unlock(within(t)); err != nil {
			t.Fatal(err)
		}
		if i%2 == 1 {
			b.Server.Compact(t) // so that no watch can go on where it was
		}
		proxy.Heal()
		next := receive(t, waiting)
		if next.Err != nil {
			t.Fatal(next.Err)
		}
		seen.sees(t, next.Lock.Token())
	}
}

func TestSession_SurvivesAFrozenMember(t *testing.T) {
	t.Parallel()
	const ttl = brief
	b := setup(t, embedtest.WithMembers(3))
	for member := range 3 {
		t.Run(strconv.Itoa(member), func(t *testing.T) {
			t.Parallel()
			name := "held" + strconv.Itoa(member)
			proxy := b.Server.Proxy(t)
			holder := newClient(t, proxy.Client(t), locker.WithTTL(ttl))
			l := lock(t, holder, name, "")
			waiting := lockAsync(within(t), newClient(t, proxy.Client(t), locker.WithTTL(ttl)), name, "")
			b.Queued(t, name, 2)
			seen := observe(t, newClient(t, proxy.Client(t), locker.WithTTL(ttl)), name)
			seen.sees(t, l.Token())

			proxy.Freeze(member)
			frozen := time.Now()
			eventually(t, "renewed for longer than the TTL", func() bool {
				return l.Err() != nil || l.Deadline().After(frozen.Add(2*ttl))
			})
			if err := l.Err(); err != nil {
				t.Fatal(err)
			}
			if err := l.Unlock(within(t)); err != nil {
				t.Error(err)
			}
			next := receive(t, waiting)
			if next.Err != nil {
				t.Fatal(next.Err)
			}
			seen.sees(t, next.Lock.Token())
		})
	}
}

func TestHold_AndWaitersSurviveASlowNetwork(t *testing.T) {
	t.Parallel()
	b := setup(t)
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
	gather(t, b, proxy.Client, locker.WithTTL(steady)).passOn(t, b)
}
