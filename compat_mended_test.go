package locker_test

import (
	"context"
	"fmt"
	"math/rand/v2"
	"runtime/pprof"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jagregory/locker/v2"
	"github.com/jagregory/locker/v2/embedtest"
)

// What Compat does better than the original.

// outlast returns when a lease that nobody renews has run out, by etcd's clock.
func outlast(t testing.TB, b bundle, ttl time.Duration) {
	t.Helper()
	lease, err := b.etcd.Grant(within(t), int64(ttl/time.Second))
	if err != nil {
		t.Fatal(err)
	}
	eventually(t, "the lease runs out", func() bool { return !leases(t, b)[lease.ID] })
}

// gate lets pass each request to write once wait has returned.
func gate(wait func(method string)) embedtest.Intercept {
	return func(ctx context.Context, method string, _ any, call func() error) error {
		if strings.HasSuffix(method, "/Txn") {
			wait(method)
			if ctx.Err() != nil {
				return ctx.Err()
			}
		}
		return call()
	}
}

func TestCompatActsAtOnceWhereTheOriginalWaitedForItsTick(t *testing.T) {
	t.Parallel()
	const tick, tries = 3 * time.Second, 5 // a busy machine is slow now and then, the original was always
	b := setup(t)
	slowest := time.Duration(1<<63 - 1)
	for range tries {
		var slow time.Duration
		measure := func(step func()) {
			began := time.Now()
			step()
			slow = max(slow, time.Since(began))
		}
		c := b.compat(t)
		var first, second call[bool]
		var w call[string]
		measure(func() { first = contend(c, "a", "1", 0); first.tells(t, true) })              // a lock
		measure(func() { second = contend(b.compat(t), "a", "2", 0); second.tells(t, false) }) // a refusal
		measure(func() { w = follow(c, "a", 9); w.tells(t, "1") })                             // a watch
		b.queued(t, "a", 2)
		measure(func() { first.ends(t); second.tells(t, true) }) // a hand-over
		for value := ""; value != "2"; value = receive(t, w.told) {
		}
		measure(func() { second.ends(t); w.tells(t, "") }) // a release
		if slowest = min(slowest, slow); slowest < tick {
			return
		}
	}
	t.Errorf("in each of %d tries something took %v or longer", tries, slowest)
}

func TestCompatLockKeepsTheLockThoughNobodyReadsOwned(t *testing.T) {
	t.Parallel()
	for _, events := range []int{0, 1} {
		t.Run(fmt.Sprint("room for ", events), func(t *testing.T) {
			t.Parallel()
			b := setup(t)
			observer := b.client(t)
			k := contend(b.compat(t, locker.WithTTL(brief)), "a", "v", events)
			eventually(t, "it is locked", func() bool { _, err := observer.Get(within(t), "a"); return err == nil })
			holder := get(t, observer, "a")
			outlast(t, b, brief)
			if now := get(t, observer, "a"); now != holder {
				t.Errorf("the hold is %+v, it was %+v", now, holder)
			}
			k.tells(t, true)
			k.ends(t)
		})
	}
}

func TestCompatLockTellsALateReaderTheNewest(t *testing.T) {
	t.Parallel()
	b := setup(t)
	observer := b.client(t)
	unbuffered := contend(b.compat(t, locker.WithTTL(brief)), "a", "v", 0)
	eventually(t, "it is locked", func() bool { _, err := observer.Get(within(t), "a"); return err == nil })
	present := contend(b.compat(t), "a", "present", 0)
	present.tells(t, false)
	b.queued(t, "a", 2)
	expire(t, b, get(t, observer, "a"))
	present.tells(t, true)
	b.queued(t, "a", 2) // it has noticed, and waits
	unbuffered.tells(t, false)
	present.ends(t)
	unbuffered.tells(t, true)
	unbuffered.ends(t)
}

func TestCompatLockFillsABufferThatNobodyReadsInTurn(t *testing.T) {
	t.Parallel()
	for _, events := range []int{1, 2, 9} {
		t.Run(fmt.Sprint("room for ", events), func(t *testing.T) {
			t.Parallel()
			b := setup(t)
			observer := b.client(t)
			k := contend(b.compat(t, locker.WithTTL(brief)), "a", "v", events)
			eventually(t, "it is locked", func() bool { return len(k.told) == 1 })
			first := get(t, observer, "a")
			expire(t, b, first)
			eventually(t, "it is locked again", func() bool {
				now, err := observer.Get(within(t), "a")
				return err == nil && now.Token > first.Token
			})
			k.tells(t, true)
			if events > 1 { // else that it was lost meanwhile is no news any more
				k.tells(t, false, true)
			}
			remove(t, b, first)
			k.tells(t, false, true)
			k.ends(t)
		})
	}
}

func TestCompatLockIsReleasedAtOnceOnQuit(t *testing.T) {
	t.Parallel()
	b := setup(t)
	c := b.compat(t, locker.WithTTL(5*time.Minute))
	k := contend(c, "a", "v", 0)
	k.tells(t, true)
	k.ends(t)
	if keys := b.keys(t, "locker/a/"); len(keys) != 0 {
		t.Errorf("%v are left", keys)
	}
	if _, err := c.Get("a"); err == nil {
		t.Error("it is held")
	}
}

func TestCompatLockExcludesCallersWithTheSameValue(t *testing.T) {
	t.Parallel()
	b := setup(t)
	first, second := contend(b.compat(t), "a", "v", 9), contend(b.compat(t), "a", "v", 9)
	if receive(t, first.told) {
		second.tells(t, false)
	} else {
		second.tells(t, true)
		first, second = second, first
	}
	b.queued(t, "a", 2)
	second.silent(t)
	first.ends(t)
	second.tells(t, true)
	second.ends(t)
}

func TestCompatLockHasOneOwnerAtATime(t *testing.T) {
	t.Parallel()
	b := setup(t)
	var owners atomic.Int64
	var callers sync.WaitGroup
	for range 3 {
		c := b.compat(t)
		for range 4 {
			callers.Go(func() {
				for range 3 {
					k := contend(c, "a", "v", 0)
					for !receive(t, k.told) {
					}
					if n := owners.Add(1); n != 1 {
						t.Errorf("%d owners", n)
					}
					owners.Add(-1)
					k.ends(t)
				}
			})
		}
	}
	callers.Wait()
	b.queued(t, "a", 0)
}

func TestCompatLockSeesAnExpiryHoweverShort(t *testing.T) {
	t.Parallel()
	b := setup(t)
	k := contend(b.compat(t, locker.WithTTL(brief)), "a", "v", 0)
	k.tells(t, true)
	// Free and taken again before anybody could have looked.
	h := get(t, b.client(t), "a")
	key := b.keys(t, "locker/a/")[0]
	expire(t, b, h)
	putKey(t, b.etcd, key, "v")
	k.tells(t, false)
	remove(t, b, h)
	k.tells(t, true)
	k.ends(t)
}

func TestCompatLockDoesNotFlapWithAShortTTL(t *testing.T) {
	t.Parallel()
	simulate(t, func(sim simulation) {
		k := contend(newCompat(sim, sim.client(locker.WithTTL(time.Second))), "a", "v", 9)
		k.tells(sim, true)
		sim.at(time.Minute)
		k.ends(sim)
	})
}

func TestCompatTakesEmptyValues(t *testing.T) {
	t.Parallel()
	b := setup(t)
	c := b.compat(t)
	k := contend(c, "a", "", 0)
	k.tells(t, true)
	if value, err := c.Get("a"); value != "" || err != nil {
		t.Errorf("%q, %v", value, err)
	}
	follow(c, "a", 0).tells(t, "")
	contend(b.compat(t), "a", "", 0).tells(t, false)
	k.ends(t)
}

func TestCompatTakesNamesWithSlashesBesideTheirParents(t *testing.T) {
	t.Parallel()
	b := setup(t)
	c := b.compat(t)
	names := []string{"a", "a/b", "a/b/c", "/a", "a/", "//", "www.example.com:80"}
	calls := make(map[string]call[bool])
	for _, name := range names {
		calls[name] = contend(c, name, "value of "+name, 9)
		calls[name].tells(t, true)
	}
	for _, name := range names {
		if value, err := c.Get(name); value != "value of "+name || err != nil {
			t.Errorf("%q: %q, %v", name, value, err)
		}
		follow(c, name, 0).tells(t, "value of "+name)
		calls[name].ends(t)
		_, err := c.Get(name)
		want(t, err, locker.ErrNotFound)
	}
}

func TestCompatAndClientCallersExcludeEachOther(t *testing.T) {
	t.Parallel()
	b := setup(t)
	client := b.client(t)
	for _, c := range []*locker.Compat{newCompat(t, client), b.compat(t)} {
		first := contend(c, "a", "compat", 9)
		first.tells(t, true)
		_, err := client.TryLock(within(t), "a", "client")
		want(t, err, locker.ErrLocked)
		waiting := lockAsync(within(t), client, "a", "client")
		first.ends(t)
		l := receive(t, waiting)
		if l.err != nil {
			t.Fatal(l.err)
		}
		second := contend(c, "a", "compat", 9)
		second.tells(t, false)
		second.silent(t)
		unlock(t, l.lock)
		second.tells(t, true)
		second.ends(t)
	}
}

func TestCompatLocksOfAClientShareALease(t *testing.T) {
	t.Parallel()
	b := setup(t)
	client := b.client(t)
	c := newCompat(t, client)
	for i := range 50 {
		contend(c, fmt.Sprint(i), "v", 0).tells(t, true)
	}
	lock(t, client, "a", "v")
	if n := b.leases(t); n != 1 {
		t.Errorf("%d leases", n)
	}
}

// alternating reads the events of k, each time only after a step if there are
// steps, and wants each to differ from the one before. It returns what Lock returns.
func alternating(t testing.TB, k call[bool], steps <-chan struct{}) error {
	var told []bool
	for {
		if steps != nil {
			select {
			case <-steps:
			case err := <-k.result:
				return err
			}
		}
		select {
		case v := <-k.told:
			if told = append(told, v); len(told) > 1 && told[len(told)-2] == v {
				t.Errorf("told %v", told)
			}
		case err := <-k.result:
			return err
		}
	}
}

func TestCompatLockAlternatesUnderRandomChurn(t *testing.T) {
	t.Parallel()
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	random := rand.New(rand.NewPCG(seed, 0))
	b := setup(t)
	observer := b.client(t)
	compats := []*locker.Compat{b.compat(t, locker.WithTTL(brief)), b.compat(t, locker.WithTTL(brief))}
	steps := make(chan struct{})
	begin := func(i int) call[bool] {
		k := contend(compats[i/3], "a", "v", []int{0, 0, 2}[i%3])
		pace := []<-chan struct{}{nil, steps, steps}[i%3]
		return call[bool]{k.told, k.quit, calling(func() error { return alternating(t, k, pace) })}
	}
	var calls []call[bool]
	for i := range 6 {
		calls = append(calls, begin(i))
	}
	for range 20 {
		var h locker.Holder
		eventually(t, "it is locked", func() (ok bool) {
			var err error
			h, err = observer.Get(within(t), "a")
			return err == nil
		})
		select {
		case steps <- struct{}{}:
		default:
		}
		switch random.IntN(3) {
		case 0:
			expire(t, b, h)
		case 1:
			remove(t, b, h)
		default:
			i := random.IntN(len(calls))
			bySend(t, calls[i].quit)
			if err := receive(t, calls[i].result); err != nil {
				t.Error(err)
			}
			calls[i] = begin(i)
		}
	}
	for _, k := range calls {
		bySend(t, k.quit)
		if err := receive(t, k.result); err != nil {
			t.Error(err)
		}
	}
	b.queued(t, "a", 0)
}

// goroutinesOf returns how many goroutines run code of Compat and were started
// under the label of the test.
func goroutinesOf(t testing.TB) (n int) {
	t.Helper()
	var profile strings.Builder
	if err := pprof.Lookup("goroutine").WriteTo(&profile, 1); err != nil {
		t.Fatal(err)
	}
	for _, stack := range strings.Split(profile.String(), "\n\n") {
		if strings.Contains(stack, `"`+t.Name()+`"`) && strings.Contains(stack, "compat.go") {
			n++
		}
	}
	return n
}

func TestCompatLeavesNoGoroutineOfACallThatHasReturned(t *testing.T) {
	t.Parallel()
	b := setup(t)
	pprof.Do(t.Context(), pprof.Labels("test", t.Name()), func(context.Context) {
		c := b.compat(t)
		present := lock(t, b.client(t), "b", "present")
		held, waiting, unread := contend(c, "a", "v", 9), contend(c, "b", "v", 9), contend(c, "c", "v", 0)
		watching := follow(c, "a", 0)
		held.tells(t, true)
		waiting.tells(t, false)
		if goroutinesOf(t) == 0 {
			t.Fatal("the goroutines of Compat are not found")
		}
		for _, k := range []call[bool]{held, waiting, unread} {
			bySend(t, k.quit)
			if err := receive(t, k.result); err != nil {
				t.Error(err)
			}
		}
		bySend(t, watching.quit)
		if err := receive(t, watching.result); err != nil {
			t.Error(err)
		}
		eventually(t, "all goroutines have ended", func() bool { return goroutinesOf(t) == 0 })
		unlock(t, present)
	})
}
