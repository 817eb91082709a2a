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
)

// How the calls of Compat end when etcd is gone, and with Close.

// cut returns a Compat that reaches etcd through a proxy.
func (b bundle) cut(t testing.TB, ttl time.Duration) (*locker.Compat, *embedtest.Proxy) {
	proxy := b.Server.Proxy(t)
	return newCompat(t, newClient(t, proxy.Client(t), locker.WithTTL(ttl))), proxy
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
			b := setup(t)
			c, proxy := b.cut(t, brief)
			k := contend(c, "a", "v", 0)
			k.tells(t, true)
			silent := calling(func() error { return c.Lock("b", "v", nil, nil) })
			eventually(t, "both are locked", func() bool { return len(b.Keys(t, "locker/b/")) == 1 })
			fault(proxy)
			k.tells(t, false)
			err := receive(t, k.result)
			want(t, err, locker.ErrLost)
			wantWrappedOnce(t, err)
			// It may not have been told of its hold before the fault: then it is the attempt that fails.
			if err := receive(t, silent); !errors.Is(err, locker.ErrLost) && !errors.Is(err, context.DeadlineExceeded) {
				t.Errorf("with nil for owned, Lock returned %v", err)
			}
			k.silent(t)
		})
	}
}

func TestCompatLock_ReturnsAnErrorWhenEtcdIsUnreachableWhileItWaits(t *testing.T) {
	t.Parallel()
	b := setup(t)
	present := lock(t, b.Client(t), "a", "present")
	c, proxy := b.cut(t, brief)
	k := contend(c, "a", "v", 9)
	k.tells(t, false)
	b.Queued(t, "a", 2)
	silent := calling(func() error { return c.Lock("a", "v", nil, nil) })
	behind := contend(c, "a", "v", 9)
	behind.tells(t, false)
	proxy.Cut()
	for _, result := range []<-chan error{k.result, behind.result, silent} {
		err := receive(t, result)
		if err == nil || errors.Is(err, locker.ErrClosed) {
			t.Errorf("%v, want an error of etcd", err)
		}
		wantWrappedOnce(t, err)
	}
	k.silent(t)
	behind.silent(t)
	unlock(t, present)
}

func TestCompatLock_ReturnsAnErrorWhenEtcdIsUnreachableWhileItIsInLine(t *testing.T) {
	t.Parallel()
	b := setup(t)
	c, proxy := b.cut(t, brief)
	present := contend(c, "a", "present", 9)
	present.tells(t, true)
	behind := contend(c, "a", "v", 9)
	behind.tells(t, false)
	proxy.Cut()
	for _, k := range []call[bool]{present, behind} {
		if err := receive(t, k.result); err == nil {
			t.Error("no error")
		}
	}
	present.tells(t, false)
	behind.silent(t)
}

func TestCompatLock_ReturnsAnErrorWhenEtcdWasNeverReachable(t *testing.T) {
	t.Parallel()
	server := embedtest.Start(t)
	server.Stop(t, 0)
	c := newCompat(t, newClient(t, server.Client(t), locker.WithTTL(brief)))
	k := contend(c, "a", "v", 9)
	err := c.Lock("b", "v", nil, nil)
	for _, err := range []error{err, receive(t, k.result)} {
		want(t, err, context.DeadlineExceeded)
		wantWrappedOnce(t, err)
	}
	k.silent(t)
}

func TestCompatLock_ReturnsItsErrorThoughNobodyReadsOwned(t *testing.T) {
	t.Parallel()
	b := setup(t)
	c, proxy := b.cut(t, brief)
	read, unread := contend(c, "a", "v", 0), contend(c, "b", "v", 0)
	read.tells(t, true)
	eventually(t, "both are locked", func() bool { return len(b.Keys(t, "locker/b/")) == 1 })
	proxy.Cut()
	want(t, receive(t, read.result), locker.ErrLost)
	if err := receive(t, unread.result); err == nil { // which error depends on what it had been told by then
		t.Error("Lock returned nil")
	}
	read.silent(t)
	unread.silent(t)
}

func TestCompatLock_ContendsAgainAfterAnExpiryIfEtcdAnswers(t *testing.T) {
	t.Parallel()
	b := setup(t)
	var stopped atomic.Bool
	config := b.Server.ClientConfig()
	config.DialOptions = append(config.DialOptions, grpc.WithChainStreamInterceptor(func(ctx context.Context, desc *grpc.StreamDesc, conn *grpc.ClientConn, method string, open grpc.Streamer, opts ...grpc.CallOption) (grpc.ClientStream, error) {
		if stopped.Load() && strings.HasSuffix(method, "/LeaseKeepAlive") {
			return nil, status.Error(codes.Unavailable, "as if the process were stopped")
		}
		return open(ctx, desc, conn, method, opts...)
	}))
	k := contend(newCompat(t, newClient(t, connect(t, config), locker.WithTTL(brief))), "a", "v", 9)
	stopped.Store(true)
	k.tells(t, true, false)
	stopped.Store(false)
	k.tells(t, true)
	k.ends(t)
}

func TestCompatLock_WaitsForTheReaderOfFalseBeforeItReturnsItsError(t *testing.T) {
	t.Parallel()
	b := setup(t)
	c, proxy := b.cut(t, brief)
	k, other := contend(c, "a", "v", 0), contend(c, "b", "v", 9)
	k.tells(t, true)
	other.tells(t, true)
	proxy.Cut()
	want(t, receive(t, other.result), locker.ErrLost) // k's hold has ended too
	select {
	case err := <-k.result:
		t.Errorf("returned %v before it told", err)
	default:
	}
	k.tells(t, false)
	want(t, receive(t, k.result), locker.ErrLost)
}

func TestCompatLock_SurvivesAnOutageShorterThanTheTTL(t *testing.T) {
	t.Parallel()
	b := setup(t)
	c, proxy := b.cut(t, unhurried)
	k := contend(c, "a", "v", 9)
	k.tells(t, true)
	proxy.Cut()
	outlast(t, b, brief)
	k.silent(t)
	proxy.Heal()
	eventually(t, "etcd answers", func() bool { v, err := c.Get("a"); return v == "v" && err == nil })
	k.ends(t)
}

func TestCompatLock_QuitsWhileEtcdIsUnreachable(t *testing.T) {
	t.Parallel()
	b := setup(t)
	c, proxy := b.cut(t, brief)
	held, waiting := contend(c, "a", "v", 9), contend(c, "a", "v", 9)
	if !receive(t, held.told) {
		held, waiting = waiting, held
	}
	proxy.Cut()
	began := contend(c, "b", "v", 9)
	began.ends(t)
	bySend(t, held.quit)
	bySend(t, waiting.quit)
	for _, k := range []call[bool]{held, waiting} {
		if err := receive(t, k.result); err != nil {
			t.Error(err)
		}
	}
}

// every returns a call in each state that a call can be in.
func every(t testing.TB, b bundle, c *locker.Compat) map[string]<-chan error {
	held, waiting, behind := contend(c, "a", "v", 0), contend(c, "b", "v", 0), contend(c, "b", "w", 0)
	unread, watching, unwatched := contend(c, "c", "v", 0), follow(c, "a", 0), follow(c, "a", 0)
	held.tells(t, true)
	waiting.tells(t, false)
	behind.tells(t, false)
	b.Queued(t, "b", 2)
	b.Queued(t, "c", 1)
	receive(t, watching.told)
	return map[string]<-chan error{
		"held": held.result, "waiting": waiting.result, "behind it": behind.result,
		"unread": unread.result, "watching": watching.result, "unwatched": unwatched.result,
	}
}

func TestCompatClose_EndsEveryCall(t *testing.T) {
	t.Parallel()
	for _, owner := range []bool{true, false} {
		b := setup(t)
		client, present := b.Client(t), lock(t, b.Client(t), "b", "present")
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
		results["Get"] = calling(func() error { return err })
		results["Lock"] = calling(func() error { return c.Lock("a", "v", nil, nil) })
		results["Watch"] = calling(func() error { return c.Watch("a", nil, nil) })
		for name, result := range results {
			err := receive(t, result)
			if !errors.Is(err, locker.ErrClosed) {
				t.Errorf("%s: %v, want ErrClosed", name, err)
			}
			wantWrappedOnce(t, err)
		}
		for name, n := range map[string]int{"a": 0, "b": 1, "c": 0} {
			b.Queued(t, name, n)
		}
		if n := b.leases(t); owner && n != 1 {
			t.Errorf("%d leases, want only the present holder's", n)
		}
		unlock(t, present)
		unlock(t, lock(t, client, "a", "v")) // the Client is its owner's to close
	}
}

func TestCompatClose_EndsACallThatIsAboutToContendAgain(t *testing.T) {
	t.Parallel()
	b := setup(t)
	for i := range 10 { // to meet it in its pause
		name := fmt.Sprint("a", i)
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c := b.compat(t, locker.WithTTL(brief))
			k := contend(c, name, "v", 0)
			k.tells(t, true)
			expire(t, b, get(t, b.Client(t), name))
			k.tells(t, false)
			_ = c.Close()
			err := receive(t, k.result)
			want(t, err, locker.ErrClosed)
			wantWrappedOnce(t, err)
		})
	}
}

func TestCompat_CallsEndWithTheirClient(t *testing.T) {
	t.Parallel()
	b := setup(t)
	lock(t, b.Client(t), "b", "present")
	client := b.Client(t, locker.WithTTL(brief))
	results := every(t, b, newCompat(t, client))
	if err := client.Close(); err != nil {
		t.Error(err)
	}
	for name, result := range results {
		if err := receive(t, result); !errors.Is(err, locker.ErrClosed) {
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

// What Compat does better than the original.

// outlast returns when a lease that nobody renews has run out, by etcd's clock.
func outlast(t testing.TB, b bundle, ttl time.Duration) {
	t.Helper()
	lease, err := b.Etcd.Grant(within(t), int64(ttl/time.Second))
	if err != nil {
		t.Fatal(err)
	}
	eventually(t, "the lease runs out", func() bool { return !b.Leases(t)[lease.ID] })
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

func TestCompat_ActsAtOnceWhereTheOriginalWaitedForItsTick(t *testing.T) {
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
		b.Queued(t, "a", 2)
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

func TestCompatLock_KeepsTheLockThoughNobodyReadsOwned(t *testing.T) {
	t.Parallel()
	for _, events := range []int{0, 1} {
		t.Run(fmt.Sprint("room for ", events), func(t *testing.T) {
			t.Parallel()
			b := setup(t)
			observer := b.Client(t)
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

func TestCompatLock_SendsALateReaderTheNewest(t *testing.T) {
	t.Parallel()
	b := setup(t)
	observer := b.Client(t)
	unbuffered := contend(b.compat(t, locker.WithTTL(brief)), "a", "v", 0)
	eventually(t, "it is locked", func() bool { _, err := observer.Get(within(t), "a"); return err == nil })
	present := contend(b.compat(t), "a", "present", 0)
	present.tells(t, false)
	b.Queued(t, "a", 2)
	expire(t, b, get(t, observer, "a"))
	present.tells(t, true)
	b.Queued(t, "a", 2) // it has noticed, and waits
	unbuffered.tells(t, false)
	present.ends(t)
	unbuffered.tells(t, true)
	unbuffered.ends(t)
}

func TestCompatLock_FillsAnUnreadBufferInOrder(t *testing.T) {
	t.Parallel()
	for _, events := range []int{1, 2, 9} {
		t.Run(fmt.Sprint("room for ", events), func(t *testing.T) {
			t.Parallel()
			b := setup(t)
			observer := b.Client(t)
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

func TestCompatLock_IsReleasedAtOnceOnQuit(t *testing.T) {
	t.Parallel()
	b := setup(t)
	c := b.compat(t, locker.WithTTL(5*time.Minute))
	k := contend(c, "a", "v", 0)
	k.tells(t, true)
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
	b := setup(t)
	first, second := contend(b.compat(t), "a", "v", 9), contend(b.compat(t), "a", "v", 9)
	if receive(t, first.told) {
		second.tells(t, false)
	} else {
		second.tells(t, true)
		first, second = second, first
	}
	b.Queued(t, "a", 2)
	second.silent(t)
	first.ends(t)
	second.tells(t, true)
	second.ends(t)
}

func TestCompatLock_HasOneOwnerAtATime(t *testing.T) {
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
	b.Queued(t, "a", 0)
}

func TestCompatLock_SeesAnExpiryHoweverShort(t *testing.T) {
	t.Parallel()
	b := setup(t)
	k := contend(b.compat(t, locker.WithTTL(brief)), "a", "v", 0)
	k.tells(t, true)
	// Free and taken again before anybody could have looked.
	h := get(t, b.Client(t), "a")
	key := b.Keys(t, "locker/a/")[0]
	expire(t, b, h)
	putKey(t, b.Etcd, key, "v")
	k.tells(t, false)
	remove(t, b, h)
	k.tells(t, true)
	k.ends(t)
}

func TestCompatLock_DoesNotFlapWithAShortTTL(t *testing.T) {
	t.Parallel()
	simulate(t, func(sim simulation) {
		k := contend(newCompat(sim, sim.Client(locker.WithTTL(time.Second))), "a", "v", 9)
		k.tells(sim, true)
		sim.At(time.Minute)
		k.ends(sim)
	})
}

func TestCompat_AcceptsEmptyValues(t *testing.T) {
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

func TestCompat_AcceptsNamesWithSlashesBesideTheirParents(t *testing.T) {
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

func TestCompat_AndClientCallersExcludeEachOther(t *testing.T) {
	t.Parallel()
	b := setup(t)
	client := b.Client(t)
	for _, c := range []*locker.Compat{newCompat(t, client), b.compat(t)} {
		first := contend(c, "a", "compat", 9)
		first.tells(t, true)
		_, err := client.TryLock(within(t), "a", "client")
		want(t, err, locker.ErrLocked)
		waiting := lockAsync(within(t), client, "a", "client")
		first.ends(t)
		l := receive(t, waiting)
		if l.Err != nil {
			t.Fatal(l.Err)
		}
		second := contend(c, "a", "compat", 9)
		second.tells(t, false)
		second.silent(t)
		unlock(t, l.Lock)
		second.tells(t, true)
		second.ends(t)
	}
}

func TestCompat_LocksOfAClientShareALease(t *testing.T) {
	t.Parallel()
	b := setup(t)
	client := b.Client(t)
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

func TestCompatLock_AlternatesUnderRandomChurn(t *testing.T) {
	t.Parallel()
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	random := rand.New(rand.NewPCG(seed, 0))
	b := setup(t)
	observer := b.Client(t)
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
	b.Queued(t, "a", 0)
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

func TestCompat_LeavesNoGoroutineOfACallThatHasReturned(t *testing.T) {
	t.Parallel()
	b := setup(t)
	pprof.Do(t.Context(), pprof.Labels("test", t.Name()), func(context.Context) {
		c := b.compat(t)
		present := lock(t, b.Client(t), "b", "present")
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
