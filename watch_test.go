package locker_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"iter"
	"math"
	"runtime"
	"runtime/pprof"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/jagregory/locker/v2"
	"github.com/jagregory/locker/v2/embedtest"
	"github.com/jagregory/locker/v2/internal/locktest"
)

func TestWatch_YieldsTheStateNowAndThenEachChange(t *testing.T) {
	t.Parallel()
	b := locktest.Setup(t)
	alpha, beta := b.Client(t), b.Client(t)
	r := locktest.Read(t, b.Client(t).Watch(locktest.Within(t), "a"))
	r.Free("a")

	first := locktest.Lock(t, alpha, "a", "1")
	if state := r.Held(first); state.Revision != first.Token() {
		t.Errorf("held from revision %d on, but the token is %d", state.Revision, first.Token())
	}
	locktest.SetValue(t, first, "2")
	r.Held(first)
	locktest.SetValue(t, first, "")
	r.Held(first)

	second := locktest.LockAsync(locktest.Within(t), beta, "a", "3")
	b.Queued(t, "a", 2)
	locktest.Unlock(t, first)
	next := locktest.Receive(t, second)
	if next.Err != nil {
		t.Fatal(next.Err)
	}
	r.Held(next.Lock) // the next state: the name was not free in between, and queueing changes no state

	locktest.Unlock(t, next.Lock)
	r.Free("a")
	third := locktest.Lock(t, alpha, "a", "3")
	r.Held(third)
}

func TestWatch_BeginsWithTheHolderThereIs(t *testing.T) {
	t.Parallel()
	b := locktest.Setup(t)
	c := b.Client(t)
	l := locktest.Lock(t, c, "a", "1")
	locktest.Lock(t, c, "b", "other")
	states := c.Watch(locktest.Within(t), "a")
	r := locktest.Read(t, states)
	if state := r.Held(l); state.Revision <= l.Token() {
		t.Errorf("revision = %d, which is not that of now", state.Revision)
	}
	locktest.SetValue(t, l, "2")
	r.Held(l)
	locktest.Read(t, states).Held(l) // a second iteration begins with the present state
}

func TestWatch_YieldsNoStateOfAnotherName(t *testing.T) {
	t.Parallel()
	b := locktest.Setup(t)
	c := b.Client(t)
	r := locktest.Read(t, c.Watch(locktest.Within(t), "a"))
	r.Free("a")
	for _, name := range []string{"a/b", "a/", "ab", "a%2Fb", "A", "a//"} {
		locktest.Lock(t, c, name, "1")
	}
	r.Held(locktest.Lock(t, c, "a", "2"))
}

func TestWatch_ASlowLoopGetsTheNewestState(t *testing.T) {
	b := locktest.Setup(t)
	c, holder := b.Client(t), b.Client(t)
	l := locktest.Lock(t, holder, "a", "first")
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	slow, brisk, slowPrefix := locktest.Read(t, c.Watch(ctx, "a")), locktest.Read(t, c.Watch(ctx, "a")), locktest.Read(t, c.WatchPrefix(ctx, ""))
	for _, r := range []*locktest.Reader{slow, brisk, slowPrefix} {
		r.Held(l)
	}
	// The loops are in their bodies now and do not ask for the next state.

	const changes, writers, size = 4_000, 50, 2 << 10
	value := strings.Repeat("x", size)
	var wg sync.WaitGroup
	for range writers {
		wg.Go(func() {
			for range changes / writers {
				if _, err := b.Etcd.Put(t.Context(), l.Key(), value, clientv3.WithLease(locktest.LeaseOf(l))); err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	wg.Wait()
	for range 20 {
		locktest.Unlock(t, locktest.Lock(t, holder, "b", "2"))
	}
	if _, err := b.Etcd.Put(locktest.Within(t), l.Key(), "last", clientv3.WithLease(locktest.LeaseOf(l))); err != nil {
		t.Fatal(err)
	}
	time.AfterFunc(locktest.Timeout, cancel) // not counting the time that the changes took
	brisk.Until("last")
	if kept := retained(t, "clientv3.(*watchGrpcStream)", "locker/v2.(*queueView)", "locker/v2.(*pending)", "locker/v2.follower"); kept > changes*size/4 {
		t.Errorf("%d bytes are kept for loops that are busy, of %d that were written", kept, changes*size)
	}
	// At most one older state was under way.
	if state := slow.State(); state.Value != "last" {
		t.Errorf("the next state is an older one, of revision %d", state.Revision)
	}
	if state := slowPrefix.State(); state.Name == "a" && state.Value != "last" {
		t.Errorf("the next state below the prefix is an older one, of revision %d", state.Revision)
	}
	locktest.Unlock(t, l)
	slow.Free("a")
}

// retained returns how many of the bytes in use were allocated by the functions, or by what
// they call.
func retained(t testing.TB, functions ...string) int64 {
	t.Helper()
	for range 3 {
		runtime.GC() // the profile is that of the cycle before the last
	}
	records := make([]runtime.MemProfileRecord, 1000)
	for {
		n, ok := runtime.MemProfile(records, false)
		if ok {
			records = records[:n]
			break
		}
		records = make([]runtime.MemProfileRecord, n+1000)
	}
	var sum float64
	for _, record := range records {
		if record.InUseObjects() == 0 || !calledBy(record.Stack(), functions) {
			continue
		}
		// The smaller the objects, the more of them a sampled one stands for.
		size := float64(record.InUseBytes()) / float64(record.InUseObjects())
		sum += float64(record.InUseBytes()) / (1 - math.Exp(-size/float64(runtime.MemProfileRate)))
	}
	return int64(sum)
}

func calledBy(stack []uintptr, functions []string) bool {
	for frames := runtime.CallersFrames(stack); ; {
		frame, more := frames.Next()
		if slices.ContainsFunc(functions, func(f string) bool { return strings.Contains(frame.Function, f) }) {
			return true
		}
		if !more {
			return false
		}
	}
}

func TestWatch_EndsWithTheCauseOfItsContext(t *testing.T) {
	t.Parallel()
	b := locktest.Setup(t)
	c := b.Client(t)
	reason := errors.New("enough")
	for what, watch := range map[string]func(context.Context) iter.Seq2[locker.State, error]{
		"Watch":       func(ctx context.Context) iter.Seq2[locker.State, error] { return c.Watch(ctx, "a") },
		"WatchPrefix": func(ctx context.Context) iter.Seq2[locker.State, error] { return c.WatchPrefix(ctx, "a") },
	} {
		ctx, cancel := context.WithCancelCause(locktest.Within(t))
		r := locktest.Read(t, watch(ctx))
		l := locktest.Lock(t, c, "a", "1")
		for !r.State().Held { // the state before it may come first
		}
		cancel(reason)
		if err := r.End(); !errors.Is(err, reason) {
			t.Errorf("%s ended with %v, want the cause", what, err)
		}
		if err := locktest.Read(t, watch(ctx)).End(); !errors.Is(err, reason) {
			t.Errorf("%s with an ended context ended with %v, want the cause", what, err)
		}
		locktest.Unlock(t, l)
	}
}

func TestWatch_ALoopThatIsLeftLeavesNoGoroutine(t *testing.T) {
	t.Parallel()
	b := locktest.Setup(t)
	c := b.Client(t)
	locktest.Lock(t, c, "a", "1")
	locktest.Read(t, c.Watch(locktest.Within(t), "a")).State() // starts the goroutines that serve all watches of the client
	const label = "a loop that is left"                        // of all goroutines that the loop starts
	running := func() bool {
		var profile bytes.Buffer
		if err := pprof.Lookup("goroutine").WriteTo(&profile, 1); err != nil {
			t.Fatal(err)
		}
		return strings.Contains(profile.String(), label)
	}
	for what, watch := range map[string]func(context.Context) iter.Seq2[locker.State, error]{
		"Watch":       func(ctx context.Context) iter.Seq2[locker.State, error] { return c.Watch(ctx, "a") },
		"WatchPrefix": func(ctx context.Context) iter.Seq2[locker.State, error] { return c.WatchPrefix(ctx, "a") },
	} {
		pprof.Do(t.Context(), pprof.Labels("test", label), func(ctx context.Context) {
			for state, err := range watch(ctx) {
				if err != nil || !state.Held {
					t.Errorf("%s yielded %+v, %v", what, state, err)
				}
				if !running() {
					t.Error("the profile does not show the goroutine")
				}
				break
			}
		})
		locktest.Eventually(t, what+" has ended its goroutine", func() bool { return !running() })
	}
}

func TestClose_EndsWatches(t *testing.T) {
	t.Parallel()
	b := locktest.Setup(t)
	c := b.Client(t)
	watches := []iter.Seq2[locker.State, error]{
		c.Watch(locktest.Within(t), "a"), c.Watch(locktest.Within(t), "b"), c.WatchPrefix(locktest.Within(t), ""),
	}
	locktest.Lock(t, c, "a", "1")
	locktest.Lock(t, c, "b", "2")
	readers := make([]*locktest.Reader, len(watches))
	for i, watch := range watches {
		readers[i] = locktest.Read(t, watch)
		readers[i].State()
	}
	if err := c.Close(); err != nil {
		t.Fatal(err)
	}
	for i, r := range readers {
		if err := r.End(); !errors.Is(err, locker.ErrClosed) {
			t.Errorf("watch %d ended with %v, want ErrClosed", i, err)
		}
		if err := locktest.Read(t, watches[i]).End(); !errors.Is(err, locker.ErrClosed) {
			t.Errorf("watch %d of a closed client ended with %v, want ErrClosed", i, err)
		}
	}
}

func TestWatch_ALoopMayCloseItsClient(t *testing.T) {
	t.Parallel()
	b := locktest.Setup(t)
	c := b.Client(t)
	var last error
	for _, err := range c.Watch(locktest.Within(t), "a") {
		if last = err; err != nil {
			continue
		}
		if err := c.Close(); err != nil {
			t.Fatal(err)
		}
	}
	if !errors.Is(last, locker.ErrClosed) {
		t.Errorf("it ended with %v, want ErrClosed", last)
	}
}

func TestWatch_OfABadNameIsRefused(t *testing.T) {
	t.Parallel()
	b := locktest.Setup(t)
	c := b.Client(t)
	for _, name := range []string{"", "a\x00b", "\xff", strings.Repeat("a", locker.MaxNameLength+1)} {
		err := locktest.Read(t, c.Watch(locktest.Within(t), name)).End()
		var invalid *locker.InvalidError
		if !errors.As(err, &invalid) || !errors.Is(err, locker.ErrInvalid) || invalid.Argument != "name" {
			t.Errorf("watch of %.20q ended with %v, want ErrInvalid", name, err)
		}
	}
}

func TestWatch_GoesOnAfterItsConnectionsBreak(t *testing.T) {
	t.Parallel()
	b := locktest.Setup(t)
	proxy := b.Server.Proxy(t)
	c := locktest.NewClient(t, proxy.Client(t))
	l := locktest.Lock(t, b.Client(t), "a", "start")
	one, all := locktest.Read(t, c.Watch(locktest.Within(t), "a")), locktest.Read(t, c.WatchPrefix(locktest.Within(t), ""))
	one.Held(l)
	all.Held(l)
	for i := range 10 {
		proxy.Reset()
		if i%3 == 0 {
			proxy.Cut()
		}
		locktest.SetValue(t, l, fmt.Sprint(i))
		locktest.SetValue(t, l, fmt.Sprint(i, " newest"))
		proxy.Heal()
		one.Until(fmt.Sprint(i, " newest"))
		all.Until(fmt.Sprint(i, " newest"))
	}
	proxy.Cut()
	locktest.Unlock(t, l)
	proxy.Heal()
	one.Free("a")
	all.Free("a")
}

func TestWatch_GoesOnAfterCompactionWhileItWasCutOff(t *testing.T) {
	t.Parallel()
	b := locktest.Setup(t)
	proxy := b.Server.Proxy(t)
	c := locktest.NewClient(t, proxy.Client(t))
	holder := b.Client(t)
	one, all := locktest.Read(t, c.Watch(locktest.Within(t), "a")), locktest.Read(t, c.WatchPrefix(locktest.Within(t), ""))
	one.Free("a")
	gone := locktest.Lock(t, holder, "gone", "1")
	all.Held(gone)
	for i := range 3 {
		proxy.Cut()
		l := locktest.Lock(t, holder, "a", "1")
		for j := range 20 {
			locktest.SetValue(t, l, fmt.Sprint(i, ".", j))
		}
		if i == 0 {
			locktest.Unlock(t, gone) // its release is compacted
		}
		b.Server.Compact(t)
		proxy.Heal()
		one.Held(l)
		if state := all.State(); state.Holder != locktest.HolderBy(l) {
			t.Errorf("state = %+v, want %+v", state, locktest.HolderBy(l))
		}
		if i == 0 {
			all.Free("gone")
		}
		b.Server.Compact(t)
		locktest.Unlock(t, l)
		b.Server.Compact(t)
		one.Free("a")
		all.Free("a")
	}
}

func TestWatch_GoesOnWhenTheLeaderMovesOrDies(t *testing.T) {
	t.Parallel()
	b := locktest.Setup(t, embedtest.WithMembers(3))
	c := b.Client(t, locker.WithTTL(locktest.Unhurried))
	l := locktest.Lock(t, b.Client(t, locker.WithTTL(locktest.Unhurried)), "a", "start")
	r := locktest.Read(t, c.Watch(locktest.Within(t), "a"))
	r.Held(l)
	for i := range 3 {
		b.Server.MoveLeader(t)
		locktest.SetValue(t, l, fmt.Sprint("moved ", i))
		r.Held(l)
	}
	for i := range 2 {
		leader := b.Server.Leader(t)
		b.Server.Stop(t, leader)
		locktest.SetValue(t, l, fmt.Sprint("died ", i))
		r.Held(l)
		b.Server.Restart(t, leader)
	}
	locktest.Unlock(t, l)
	r.Free("a")
}

func TestWatch_GoesOnAfterARestart(t *testing.T) {
	t.Parallel()
	b := locktest.Setup(t)
	c := b.Client(t)
	l := locktest.Lock(t, b.Client(t), "a", "start")
	one, all := locktest.Read(t, c.Watch(locktest.Within(t), "a")), locktest.Read(t, c.WatchPrefix(locktest.Within(t), ""))
	one.Held(l)
	all.Held(l)
	for i := range 3 {
		b.Server.Restart(t, 0)
		locktest.SetValue(t, l, fmt.Sprint(i))
		one.Held(l)
		all.Held(l)
	}
}

func TestWatch_LeavesAMemberThatDoesNotAnswer(t *testing.T) {
	t.Parallel()
	b := locktest.Setup(t, embedtest.WithMembers(3))
	proxy := b.Server.Proxy(t)
	c := locktest.NewClient(t, proxy.Client(t), locker.WithTTL(locktest.Unhurried))
	l := locktest.Lock(t, b.Client(t), "a", "start")
	r := locktest.Read(t, c.Watch(locktest.Within(t), "a"))
	r.Held(l)
	// Each member is frozen once, so one of them is frozen while the watch is served by it.
	for member := range 3 {
		proxy.Freeze(member)
		began := time.Now()
		locktest.SetValue(t, l, fmt.Sprint(member))
		r.Held(l)
		t.Logf("with member %d frozen the change came after %v", member, time.Since(began).Round(time.Millisecond))
		proxy.Thaw(member)
	}
}

func TestWatchPrefix_FollowsAllNamesBelowIt(t *testing.T) {
	t.Parallel()
	b := locktest.Setup(t)
	c := b.Client(t)
	names := []string{"a", "a%2Fb", "a/", "a/b", "a/b/c", "ab", "b", "größe", "%", " "}
	slices.Sort(names)
	held := make(map[string]*locker.Lock)
	for i, name := range names {
		if i%2 == 0 {
			held[name] = locktest.Lock(t, c, name, "early")
		}
	}
	for _, prefix := range []string{"", "a", "a/", "a/b", "a%", "%", "gr", "none"} {
		r := locktest.Read(t, c.WatchPrefix(locktest.Within(t), prefix))
		for _, name := range names {
			if held[name] != nil && strings.HasPrefix(name, prefix) {
				r.Held(held[name]) // in the order of the names
			}
		}
		late := make(map[string]*locker.Lock)
		for _, name := range names {
			if held[name] != nil {
				locktest.SetValue(t, held[name], "changed for "+prefix)
			} else {
				late[name] = locktest.Lock(t, c, name, "late")
			}
			if !strings.HasPrefix(name, prefix) {
				continue
			}
			if held[name] != nil {
				r.Held(held[name])
			} else {
				r.Held(late[name])
			}
		}
		for _, name := range names {
			if late[name] == nil {
				continue
			}
			locktest.Unlock(t, late[name])
			if strings.HasPrefix(name, prefix) {
				r.Free(name)
			}
		}
	}
}

func TestWatchPrefix_SkipsWhatIsNoLock(t *testing.T) {
	t.Parallel()
	b := locktest.Setup(t)
	c := b.Client(t)
	junk := []string{
		"locker", "locker/", "locker/a", "locker//", "locker//x", "locker//x/y", "locker/%/1",
		"locker/%61/1", "locker/%2f/1", "locker/%2/1", "lockers/a/1", "locker/\x00/1", "other/a/1",
	}
	for _, key := range junk[:len(junk)/2] {
		locktest.PutKey(t, b.Etcd, key, "junk")
	}
	first := locktest.Lock(t, c, "first", "1")
	r := locktest.Read(t, c.WatchPrefix(locktest.Within(t), ""))
	r.Held(first)
	for _, key := range junk {
		locktest.PutKey(t, b.Etcd, key, "more junk")
	}
	l := locktest.Lock(t, b.Client(t), "a", "1") // with the record of its session
	r.Held(l)
	for _, key := range junk {
		if _, err := b.Etcd.Delete(locktest.Within(t), key); err != nil {
			t.Fatal(err)
		}
	}
	locktest.Unlock(t, l)
	r.Free("a")

	// An entry in a queue counts, no matter who put it there.
	locktest.PutKey(t, b.Etcd, "locker/b/operator", "by hand")
	if state := r.State(); !state.Held || state.Name != "b" || state.Value != "by hand" || state.Lease != 0 {
		t.Errorf("state = %+v, want b held by hand", state)
	}
}

func TestWatchPrefix_ChangesOfOneTransactionAreOneChange(t *testing.T) {
	t.Parallel()
	b := locktest.Setup(t)
	c := b.Client(t)
	l := locktest.Lock(t, c, "running", "1")
	r := locktest.Read(t, c.WatchPrefix(locktest.Within(t), ""))
	r.Held(l)
	names := []string{"h", "c", "a", "g", "b", "e", "d", "f"}
	var puts []clientv3.Op
	for _, name := range names {
		puts = append(puts, clientv3.OpPut("locker/"+name+"/1", "1"))
	}
	resp, err := b.Etcd.Txn(locktest.Within(t)).Then(puts...).Commit()
	if err != nil {
		t.Fatal(err)
	}
	slices.Sort(names)
	for _, name := range names {
		if state := r.State(); state.Name != name || state.Revision != resp.Header.Revision {
			t.Errorf("state = %+v, want that of %q", state, name)
		}
	}
	if _, err := b.Etcd.Put(locktest.Within(t), "locker/a/2", "2"); err != nil {
		t.Fatal(err)
	}
	_, err = b.Etcd.Txn(locktest.Within(t)).Then(
		clientv3.OpDelete("locker/a/1"), clientv3.OpDelete("locker/a/2"), clientv3.OpPut("locker/a/3", "3"),
	).Commit()
	if err != nil {
		t.Fatal(err)
	}
	if state := r.State(); state.Value != "3" {
		t.Errorf("state = %+v, which the name was never in", state)
	}
}

func TestWatch_ManyAtOnceSeeTheLastChange(t *testing.T) {
	t.Parallel()
	const names, watches = 10, 20
	b := locktest.Setup(t)
	c, holder := b.Client(t), b.Client(t)
	began, ended := make(chan struct{}, names*watches), make(chan error, names*watches)
	for i := range names {
		name := fmt.Sprint("name ", i)
		states := c.Watch(locktest.Within(t), name)
		for range watches {
			go func() {
				var o locktest.Order
				values := ""
				for state, err := range states {
					if err == nil {
						err = o.Check(state)
					}
					if err != nil {
						ended <- err
						return
					}
					if len(o.Last) == 1 && values == "" && !state.Held {
						began <- struct{}{}
					}
					if values = state.Value; values == "last" {
						break
					}
				}
				ended <- nil
			}()
		}
	}
	for range names * watches {
		locktest.Receive(t, began)
	}
	for i := range names {
		l := locktest.Lock(t, holder, fmt.Sprint("name ", i), "first")
		for j := range 5 {
			locktest.SetValue(t, l, fmt.Sprint(j))
		}
		locktest.SetValue(t, l, "last")
	}
	for range names * watches {
		if err := locktest.Receive(t, ended); err != nil {
			t.Error(err)
		}
	}
}

func TestWatch_EndsWhenEtcdDeniesPermission(t *testing.T) {
	t.Parallel()
	b := locktest.Setup(t, embedtest.WithAuth())
	const guest = "guest"
	b.AddUser(t, guest)
	b.Permit(t, guest, clientv3.PermissionType(clientv3.PermReadWrite), "locker/ok/")
	proxy := b.Server.Proxy(t)
	config := proxy.ClientConfig()
	config.Username, config.Password = guest, guest
	c := locktest.NewClient(t, locktest.Connect(t, config))

	if err := locktest.Read(t, c.Watch(locktest.Within(t), "no")).End(); !errors.Is(err, rpctypes.ErrPermissionDenied) {
		t.Errorf("Watch ended with %v, want permission denied", err)
	}
	if err := locktest.Read(t, c.WatchPrefix(locktest.Within(t), "")).End(); !errors.Is(err, rpctypes.ErrPermissionDenied) {
		t.Errorf("WatchPrefix ended with %v, want permission denied", err)
	}
	if _, err := c.NewCache(locktest.Within(t), ""); !errors.Is(err, rpctypes.ErrPermissionDenied) {
		t.Errorf("NewCache = %v, want permission denied", err)
	}

	r := locktest.Read(t, c.Watch(locktest.Within(t), "ok"))
	r.Free("ok")
	b.Forbid(t, guest, "locker/ok/")
	proxy.Reset()
	if err := r.End(); !errors.Is(err, rpctypes.ErrPermissionDenied) {
		t.Errorf("after the permission was revoked Watch ended with %v", err)
	}
}
