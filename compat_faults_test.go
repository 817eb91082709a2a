package locker_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"runtime/pprof"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/jagregory/locker/v2"
	"github.com/jagregory/locker/v2/embedtest"
	"github.com/jagregory/locker/v2/internal/locktest"
)

// Tests of how the calls of Compat end: without etcd, and with Close.

// proxiedCompat returns a Compat that reaches etcd through a proxy.
func proxiedCompat(t testing.TB, b locktest.Bundle, ttl time.Duration) (*locker.Compat, *embedtest.Proxy) {
	proxy := b.Server.Proxy(t)
	return newCompat(t, locktest.NewClient(t, proxy.Client(t), locker.WithTTL(ttl))), proxy
}

func TestCompatLock_SendsFalseAndReturnsAnErrorWhenEtcdIsUnreachableForTheTTL(t *testing.T) {
	t.Parallel()
	for name, fault := range map[string]func(*embedtest.Proxy){
		"cut":     func(p *embedtest.Proxy) { p.Cut() },
		"frozen":  func(p *embedtest.Proxy) { p.Freeze() },
		"replies": func(p *embedtest.Proxy) { p.DropReplies() },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := locktest.Setup(t)
			c, proxy := proxiedCompat(t, b, locktest.Brief)
			k := contend(c, "a", "v", 0)
			k.reports(t, true)
			silent := locktest.Async(func() error { return c.Lock("b", "v", nil, nil) })
			locktest.Eventually(t, "both are locked", func() bool { return len(b.Keys(t, "locker/b/")) == 1 })
			fault(proxy)
			k.reports(t, false)
			err := locktest.Receive(t, k.result)
			locktest.Want(t, err, locker.ErrLost)
			wantWrappedOnce(t, err)
			// It may not have learned of its hold before the fault: then the attempt fails.
			if err := locktest.Receive(t, silent); !errors.Is(err, locker.ErrLost) && !errors.Is(err, context.DeadlineExceeded) {
				t.Errorf("with nil for owned, Lock returned %v", err)
			}
			k.silent(t)
		})
	}
}

func TestCompatLock_ReturnsAnErrorWhenEtcdIsUnreachableWhileItWaits(t *testing.T) {
	t.Parallel()
	b := locktest.Setup(t)
	present := locktest.Lock(t, b.Client(t), "a", "present")
	c, proxy := proxiedCompat(t, b, locktest.Brief)
	k := contend(c, "a", "v", 9)
	k.reports(t, false)
	b.Queued(t, "a", 2)
	silent := locktest.Async(func() error { return c.Lock("a", "v", nil, nil) })
	behind := contend(c, "a", "v", 9)
	behind.reports(t, false)
	proxy.Cut()
	for _, result := range []<-chan error{k.result, behind.result, silent} {
		err := locktest.Receive(t, result)
		if err == nil || errors.Is(err, locker.ErrClosed) {
			t.Errorf("%v, want an error of etcd", err)
		}
		wantWrappedOnce(t, err)
	}
	k.silent(t)
	behind.silent(t)
	locktest.Unlock(t, present)
}

func TestCompatLock_ReturnsAnErrorWhenEtcdIsUnreachableWhileItIsInLine(t *testing.T) {
	t.Parallel()
	b := locktest.Setup(t)
	c, proxy := proxiedCompat(t, b, locktest.Brief)
	present := contend(c, "a", "present", 9)
	present.reports(t, true)
	behind := contend(c, "a", "v", 9)
	behind.reports(t, false)
	proxy.Cut()
	for _, k := range []compatCall[bool]{present, behind} {
		if err := locktest.Receive(t, k.result); err == nil {
			t.Error("no error")
		}
	}
	present.reports(t, false)
	behind.silent(t)
}

func TestCompatLock_ReturnsAnErrorWhenEtcdWasNeverReachable(t *testing.T) {
	t.Parallel()
	server := embedtest.Start(t)
	server.Stop(t, 0)
	c := newCompat(t, locktest.NewClient(t, server.Client(t), locker.WithTTL(locktest.Brief)))
	k := contend(c, "a", "v", 9)
	err := c.Lock("b", "v", nil, nil)
	for _, err := range []error{err, locktest.Receive(t, k.result)} {
		locktest.Want(t, err, context.DeadlineExceeded)
		wantWrappedOnce(t, err)
	}
	k.silent(t)
}

func TestCompatLock_ReturnsItsErrorThoughNobodyReadsOwned(t *testing.T) {
	t.Parallel()
	b := locktest.Setup(t)
	c, proxy := proxiedCompat(t, b, locktest.Brief)
	read, unread := contend(c, "a", "v", 0), contend(c, "b", "v", 0)
	read.reports(t, true)
	locktest.Eventually(t, "both are locked", func() bool { return len(b.Keys(t, "locker/b/")) == 1 })
	proxy.Cut()
	locktest.Want(t, locktest.Receive(t, read.result), locker.ErrLost)
	if err := locktest.Receive(t, unread.result); err == nil { // which error depends on what it had learned by then
		t.Error("Lock returned nil")
	}
	read.silent(t)
	unread.silent(t)
}

func TestCompatLock_ContendsAgainAfterAnExpiryIfEtcdAnswers(t *testing.T) {
	t.Parallel()
	b := locktest.Setup(t)
	var stopped atomic.Bool
	config := b.Server.ClientConfig()
	config.DialOptions = append(config.DialOptions, grpc.WithChainStreamInterceptor(func(ctx context.Context, desc *grpc.StreamDesc, conn *grpc.ClientConn, method string, open grpc.Streamer, opts ...grpc.CallOption) (grpc.ClientStream, error) {
		if stopped.Load() && strings.HasSuffix(method, "/LeaseKeepAlive") {
			return nil, status.Error(codes.Unavailable, "as if the process were stopped")
		}
		return open(ctx, desc, conn, method, opts...)
	}))
	k := contend(newCompat(t, locktest.NewClient(t, locktest.Connect(t, config), locker.WithTTL(locktest.Brief))), "a", "v", 9)
	stopped.Store(true)
	k.reports(t, true, false)
	stopped.Store(false)
	k.reports(t, true)
	k.ends(t)
}

func TestCompatLock_WaitsForTheReaderOfFalseBeforeItReturnsItsError(t *testing.T) {
	t.Parallel()
	b := locktest.Setup(t)
	c, proxy := proxiedCompat(t, b, locktest.Brief)
	k, other := contend(c, "a", "v", 0), contend(c, "b", "v", 9)
	k.reports(t, true)
	other.reports(t, true)
	proxy.Cut()
	locktest.Want(t, locktest.Receive(t, other.result), locker.ErrLost) // k's hold has ended too
	select {
	case err := <-k.result:
		t.Errorf("returned %v before it reported the loss", err)
	default:
	}
	k.reports(t, false)
	locktest.Want(t, locktest.Receive(t, k.result), locker.ErrLost)
}

func TestCompatLock_SurvivesAnOutageShorterThanTheTTL(t *testing.T) {
	t.Parallel()
	b := locktest.Setup(t)
	c, proxy := proxiedCompat(t, b, locktest.Unhurried)
	k := contend(c, "a", "v", 9)
	k.reports(t, true)
	proxy.Cut()
	outlast(t, b, locktest.Brief)
	k.silent(t)
	proxy.Heal()
	locktest.Eventually(t, "etcd answers", func() bool { v, err := c.Get("a"); return v == "v" && err == nil })
	k.ends(t)
}

func TestCompatLock_QuitsWhileEtcdIsUnreachable(t *testing.T) {
	t.Parallel()
	b := locktest.Setup(t)
	c, proxy := proxiedCompat(t, b, locktest.Brief)
	held, waiting := contend(c, "a", "v", 9), contend(c, "a", "v", 9)
	if !locktest.Receive(t, held.reported) {
		held, waiting = waiting, held
	}
	proxy.Cut()
	began := contend(c, "b", "v", 9)
	began.ends(t)
	bySend(t, held.quit)
	bySend(t, waiting.quit)
	for _, k := range []compatCall[bool]{held, waiting} {
		if err := locktest.Receive(t, k.result); err != nil {
			t.Error(err)
		}
	}
}

// every returns a call in every state that a call can be in.
func every(t testing.TB, b locktest.Bundle, c *locker.Compat) map[string]<-chan error {
	held, waiting, behind := contend(c, "a", "v", 0), contend(c, "b", "v", 0), contend(c, "b", "w", 0)
	unread, watching, unwatched := contend(c, "c", "v", 0), follow(c, "a", 0), follow(c, "a", 0)
	held.reports(t, true)
	waiting.reports(t, false)
	behind.reports(t, false)
	b.Queued(t, "b", 2)
	b.Queued(t, "c", 1)
	locktest.Receive(t, watching.reported)
	return map[string]<-chan error{
		"held": held.result, "waiting": waiting.result, "behind it": behind.result,
		"unread": unread.result, "watching": watching.result, "unwatched": unwatched.result,
	}
}

func TestCompatClose_EndsEveryCall(t *testing.T) {
	t.Parallel()
	for _, owner := range []bool{true, false} {
		b := locktest.Setup(t)
		client, present := b.Client(t), locktest.Lock(t, b.Client(t), "b", "present")
		c := client.Compat()
		if owner {
			c = locker.NewCompat(b.Server.Client(t))
		}
		results := every(t, b, c)
		for range 2 {
			if err := c.Close(); err != nil {
				t.Error(err)
			}
		}
		_, err := c.Get("a")
		results["Get"] = locktest.Async(func() error { return err })
		results["Lock"] = locktest.Async(func() error { return c.Lock("a", "v", nil, nil) })
		results["Watch"] = locktest.Async(func() error { return c.Watch("a", nil, nil) })
		for name, result := range results {
			err := locktest.Receive(t, result)
			if !errors.Is(err, locker.ErrClosed) {
				t.Errorf("%s: %v, want ErrClosed", name, err)
			}
			wantWrappedOnce(t, err)
		}
		for name, n := range map[string]int{"a": 0, "b": 1, "c": 0} {
			b.Queued(t, name, n)
		}
		if n := len(b.Leases(t)); owner && n != 1 {
			t.Errorf("%d leases, want only the present holder's", n)
		}
		locktest.Unlock(t, present)
		locktest.Unlock(t, locktest.Lock(t, client, "a", "v")) // closing the Client is up to its owner
	}
}

func TestCompatClose_EndsACallThatIsAboutToContendAgain(t *testing.T) {
	t.Parallel()
	b := locktest.Setup(t)
	for i := range 10 { // so that one is met in its pause
		name := fmt.Sprint("a", i)
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c := newCompat(t, b.Client(t, locker.WithTTL(locktest.Brief)))
			k := contend(c, name, "v", 0)
			k.reports(t, true)
			expire(t, b, locktest.Get(t, b.Client(t), name))
			k.reports(t, false)
			_ = c.Close()
			err := locktest.Receive(t, k.result)
			locktest.Want(t, err, locker.ErrClosed)
			wantWrappedOnce(t, err)
		})
	}
}

func TestCompat_CallsEndWithTheirClient(t *testing.T) {
	t.Parallel()
	b := locktest.Setup(t)
	locktest.Lock(t, b.Client(t), "b", "present")
	client := b.Client(t, locker.WithTTL(locktest.Brief))
	results := every(t, b, newCompat(t, client))
	if err := client.Close(); err != nil {
		t.Error(err)
	}
	for name, result := range results {
		if err := locktest.Receive(t, result); !errors.Is(err, locker.ErrClosed) {
			t.Errorf("%s: %v, want ErrClosed", name, err)
		}
	}
}

func TestNewCompat_WithoutAnEtcdClientReturnsErrInvalidFromEveryCall(t *testing.T) {
	t.Parallel()
	c := locker.NewCompat(nil)
	for name, call := range map[string]func() error{
		"Lock":  func() error { return c.Lock("a", "v", make(chan bool), nil) },
		"Watch": func() error { return c.Watch("a", make(chan string), nil) },
		"Get":   func() error { _, err := c.Get("a"); return err },
	} {
		err := recovered(call)
		if !errors.Is(err, locker.ErrInvalid) {
			t.Errorf("%s: %v, want ErrInvalid", name, err)
		}
		wantWrappedOnce(t, err)
	}
	if err := recovered(c.Close); err != nil {
		t.Error(err)
	}
}

// Tests of what Compat does better than the original.

// outlast returns when a lease with that TTL, which nobody renews, has run out by etcd's clock.
func outlast(t testing.TB, b locktest.Bundle, ttl time.Duration) {
	t.Helper()
	lease, err := b.Etcd.Grant(locktest.Within(t), int64(ttl/time.Second))
	if err != nil {
		t.Fatal(err)
	}
	locktest.Eventually(t, "the lease runs out", func() bool { return !b.Leases(t)[lease.ID] })
}

func TestCompat_ActsAtOnceWhereTheOriginalWaitedForItsTick(t *testing.T) {
	t.Parallel()
	const tick, tries = 3 * time.Second, 5 // a busy machine is slow now and then, the original always was
	b := locktest.Setup(t)
	slowest := time.Duration(1<<63 - 1)
	for range tries {
		var slow time.Duration
		measure := func(step func()) {
			began := time.Now()
			step()
			slow = max(slow, time.Since(began))
		}
		c := newCompat(t, b.Client(t))
		var first, second compatCall[bool]
		var w compatCall[string]
		measure(func() { first = contend(c, "a", "1", 0); first.reports(t, true) })                            // a lock
		measure(func() { second = contend(newCompat(t, b.Client(t)), "a", "2", 0); second.reports(t, false) }) // a refusal
		measure(func() { w = follow(c, "a", 9); w.reports(t, "1") })                                           // a watch
		b.Queued(t, "a", 2)
		measure(func() { first.ends(t); second.reports(t, true) }) // a hand-over
		for value := ""; value != "2"; value = locktest.Receive(t, w.reported) {
		}
		measure(func() { second.ends(t); w.reports(t, "") }) // a release
		if slowest = min(slowest, slow); slowest < tick {
			return
		}
	}
	t.Errorf("in each of %d tries something took %v or longer", tries, slowest)
}

func TestCompatLock_KeepsTheLockThoughNobodyReadsOwned(t *testing.T) {
	t.Parallel()
	for _, events := range []int{0, 1} {
		t.Run(fmt.Sprint("room for ", events), func(t *testing.T) {
			t.Parallel()
			b := locktest.Setup(t)
			observer := b.Client(t)
			k := contend(newCompat(t, b.Client(t, locker.WithTTL(locktest.Brief))), "a", "v", events)
			locktest.Eventually(t, "it is locked", func() bool { _, err := observer.Get(locktest.Within(t), "a"); return err == nil })
			holder := locktest.Get(t, observer, "a")
			outlast(t, b, locktest.Brief)
			if now := locktest.Get(t, observer, "a"); now != holder {
				t.Errorf("the hold is %+v, it was %+v", now, holder)
			}
			k.reports(t, true)
			k.ends(t)
		})
	}
}

func TestCompatLock_SendsALateReaderTheNewest(t *testing.T) {
	t.Parallel()
	b := locktest.Setup(t)
	observer := b.Client(t)
	unbuffered := contend(newCompat(t, b.Client(t, locker.WithTTL(locktest.Brief))), "a", "v", 0)
	locktest.Eventually(t, "it is locked", func() bool { _, err := observer.Get(locktest.Within(t), "a"); return err == nil })
	present := contend(newCompat(t, b.Client(t)), "a", "present", 0)
	present.reports(t, false)
	b.Queued(t, "a", 2)
	expire(t, b, locktest.Get(t, observer, "a"))
	present.reports(t, true)
	b.Queued(t, "a", 2) // it has noticed the loss, and waits
	unbuffered.reports(t, false)
	present.ends(t)
	unbuffered.reports(t, true)
	unbuffered.ends(t)
}

func TestCompatLock_FillsAnUnreadBufferInOrder(t *testing.T) {
	t.Parallel()
	for _, events := range []int{1, 2, 9} {
		t.Run(fmt.Sprint("room for ", events), func(t *testing.T) {
			t.Parallel()
			b := locktest.Setup(t)
			observer := b.Client(t)
			k := contend(newCompat(t, b.Client(t, locker.WithTTL(locktest.Brief))), "a", "v", events)
			locktest.Eventually(t, "it is locked", func() bool { return len(k.reported) == 1 })
			first := locktest.Get(t, observer, "a")
			expire(t, b, first)
			locktest.Eventually(t, "it is locked again", func() bool {
				now, err := observer.Get(locktest.Within(t), "a")
				return err == nil && now.Token > first.Token
			})
			k.reports(t, true)
			if events > 1 { // otherwise the loss is replaced by what followed it
				k.reports(t, false, true)
			}
			remove(t, b, first)
			k.reports(t, false, true)
			k.ends(t)
		})
	}
}

func TestCompatLock_IsReleasedAtOnceOnQuit(t *testing.T) {
	t.Parallel()
	b := locktest.Setup(t)
	c := newCompat(t, b.Client(t, locker.WithTTL(5*time.Minute)))
	k := contend(c, "a", "v", 0)
	k.reports(t, true)
	k.ends(t)
	if keys := b.Keys(t, "locker/a/"); len(keys) != 0 {
		t.Errorf("%v are left", keys)
	}
	if _, err := c.Get("a"); err == nil {
		t.Error("it is held")
	}
}

func TestCompatLock_ExcludesCallersWithTheSameValue(t *testing.T) {
	t.Parallel()
	b := locktest.Setup(t)
	first, second := contend(newCompat(t, b.Client(t)), "a", "v", 9), contend(newCompat(t, b.Client(t)), "a", "v", 9)
	if locktest.Receive(t, first.reported) {
		second.reports(t, false)
	} else {
		second.reports(t, true)
		first, second = second, first
	}
	b.Queued(t, "a", 2)
	second.silent(t)
	first.ends(t)
	second.reports(t, true)
	second.ends(t)
}

func TestCompatLock_HasOneOwnerAtATime(t *testing.T) {
	t.Parallel()
	b := locktest.Setup(t)
	var owners atomic.Int64
	var callers sync.WaitGroup
	for range 3 {
		c := newCompat(t, b.Client(t))
		for range 4 {
			callers.Go(func() {
				for range 3 {
					k := contend(c, "a", "v", 0)
					for !locktest.Receive(t, k.reported) {
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
	b.Queued(t, "a", 0)
}

func TestCompatLock_SeesAnExpiryHoweverShort(t *testing.T) {
	t.Parallel()
	b := locktest.Setup(t)
	k := contend(newCompat(t, b.Client(t, locker.WithTTL(locktest.Brief))), "a", "v", 0)
	k.reports(t, true)
	// Free and locked again before a poll would have noticed.
	h := locktest.Get(t, b.Client(t), "a")
	key := b.Keys(t, "locker/a/")[0]
	expire(t, b, h)
	locktest.PutKey(t, b.Etcd, key, "v")
	k.reports(t, false)
	remove(t, b, h)
	k.reports(t, true)
	k.ends(t)
}

func TestCompatLock_DoesNotFlapWithAShortTTL(t *testing.T) {
	t.Parallel()
	locktest.Simulate(t, func(sim locktest.Simulation) {
		k := contend(newCompat(sim, sim.Client(locker.WithTTL(time.Second))), "a", "v", 9)
		k.reports(sim, true)
		sim.At(time.Minute)
		k.ends(sim)
	})
}

func TestCompat_AcceptsEmptyValues(t *testing.T) {
	t.Parallel()
	b := locktest.Setup(t)
	c := newCompat(t, b.Client(t))
	k := contend(c, "a", "", 0)
	k.reports(t, true)
	if value, err := c.Get("a"); value != "" || err != nil {
		t.Errorf("%q, %v", value, err)
	}
	follow(c, "a", 0).reports(t, "")
	contend(newCompat(t, b.Client(t)), "a", "", 0).reports(t, false)
	k.ends(t)
}

func TestCompat_AcceptsNamesWithSlashesBesideTheirParents(t *testing.T) {
	t.Parallel()
	b := locktest.Setup(t)
	c := newCompat(t, b.Client(t))
	names := []string{"a", "a/b", "a/b/c", "/a", "a/", "//", "www.example.com:80"}
	calls := make(map[string]compatCall[bool])
	for _, name := range names {
		calls[name] = contend(c, name, "value of "+name, 9)
		calls[name].reports(t, true)
	}
	for _, name := range names {
		if value, err := c.Get(name); value != "value of "+name || err != nil {
			t.Errorf("%q: %q, %v", name, value, err)
		}
		follow(c, name, 0).reports(t, "value of "+name)
		calls[name].ends(t)
		_, err := c.Get(name)
		locktest.Want(t, err, locker.ErrNotFound)
	}
}

func TestCompat_AndClientCallersExcludeEachOther(t *testing.T) {
	t.Parallel()
	b := locktest.Setup(t)
	client := b.Client(t)
	for _, c := range []*locker.Compat{newCompat(t, client), newCompat(t, b.Client(t))} {
		first := contend(c, "a", "compat", 9)
		first.reports(t, true)
		_, err := client.TryLock(locktest.Within(t), "a", "client")
		locktest.Want(t, err, locker.ErrLocked)
		waiting := locktest.LockAsync(locktest.Within(t), client, "a", "client")
		first.ends(t)
		l := locktest.Receive(t, waiting)
		if l.Err != nil {
			t.Fatal(l.Err)
		}
		second := contend(c, "a", "compat", 9)
		second.reports(t, false)
		second.silent(t)
		locktest.Unlock(t, l.Lock)
		second.reports(t, true)
		second.ends(t)
	}
}

func TestCompat_LocksOfAClientShareALease(t *testing.T) {
	t.Parallel()
	b := locktest.Setup(t)
	client := b.Client(t)
	c := newCompat(t, client)
	for i := range 50 {
		contend(c, fmt.Sprint(i), "v", 0).reports(t, true)
	}
	locktest.Lock(t, client, "a", "v")
	if n := len(b.Leases(t)); n != 1 {
		t.Errorf("%d leases", n)
	}
}

// alternating reads the events of k, each only after a step if there are steps, and
// fails the test unless each differs from the one before. It returns what Lock returns.
func alternating(t testing.TB, k compatCall[bool], steps <-chan struct{}) error {
	var events []bool
	for {
		if steps != nil {
			select {
			case <-steps:
			case err := <-k.result:
				return err
			}
		}
		select {
		case v := <-k.reported:
			if events = append(events, v); len(events) > 1 && events[len(events)-2] == v {
				t.Errorf("reported %v", events)
			}
		case err := <-k.result:
			return err
		}
	}
}

func TestCompatLock_AlternatesUnderRandomChurn(t *testing.T) {
	t.Parallel()
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	random := rand.New(rand.NewPCG(seed, 0))
	b := locktest.Setup(t)
	observer := b.Client(t)
	compats := []*locker.Compat{newCompat(t, b.Client(t, locker.WithTTL(locktest.Brief))), newCompat(t, b.Client(t, locker.WithTTL(locktest.Brief)))}
	steps := make(chan struct{})
	begin := func(i int) compatCall[bool] {
		k := contend(compats[i/3], "a", "v", []int{0, 0, 2}[i%3])
		pace := []<-chan struct{}{nil, steps, steps}[i%3]
		return compatCall[bool]{k.reported, k.quit, locktest.Async(func() error { return alternating(t, k, pace) })}
	}
	var calls []compatCall[bool]
	for i := range 6 {
		calls = append(calls, begin(i))
	}
	for range 20 {
		var h locker.Holder
		locktest.Eventually(t, "it is locked", func() (ok bool) {
			var err error
			h, err = observer.Get(locktest.Within(t), "a")
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
			if err := locktest.Receive(t, calls[i].result); err != nil {
				t.Error(err)
			}
			calls[i] = begin(i)
		}
	}
	for _, k := range calls {
		bySend(t, k.quit)
		if err := locktest.Receive(t, k.result); err != nil {
			t.Error(err)
		}
	}
	b.Queued(t, "a", 0)
}

// goroutinesOf returns how many goroutines with the label of the test run code of Compat.
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

func TestCompat_LeavesNoGoroutineOfACallThatHasReturned(t *testing.T) {
	t.Parallel()
	b := locktest.Setup(t)
	pprof.Do(t.Context(), pprof.Labels("test", t.Name()), func(context.Context) {
		c := newCompat(t, b.Client(t))
		present := locktest.Lock(t, b.Client(t), "b", "present")
		held, waiting, unread := contend(c, "a", "v", 9), contend(c, "b", "v", 9), contend(c, "c", "v", 0)
		watching := follow(c, "a", 0)
		held.reports(t, true)
		waiting.reports(t, false)
		if goroutinesOf(t) == 0 {
			t.Fatal("the goroutines of Compat are not found")
		}
		for _, k := range []compatCall[bool]{held, waiting, unread} {
			bySend(t, k.quit)
			if err := locktest.Receive(t, k.result); err != nil {
				t.Error(err)
			}
		}
		bySend(t, watching.quit)
		if err := locktest.Receive(t, watching.result); err != nil {
			t.Error(err)
		}
		locktest.Eventually(t, "all goroutines have ended", func() bool { return goroutinesOf(t) == 0 })
		locktest.Unlock(t, present)
	})
}
