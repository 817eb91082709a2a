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
)

func TestWatch_YieldsTheStateNowAndThenEachChange(t *testing.T) {
	t.Parallel()
	b := setup(t)
	alpha, beta := b.Client(t), b.Client(t)
	r := read(t, b.Client(t).Watch(within(t), "a"))
	r.Free("a")

	first := lock(t, alpha, "a", "1")
	if state := r.Held(first); state.Revision != first.Token() {
		t.Errorf("held from revision %d on, but the token is %d", state.Revision, first.Token())
	}
	setValue(t, first, "2")
	r.Held(first)
	setValue(t, first, "")
	r.Held(first)

	second := lockAsync(within(t), beta, "a", "3")
	b.Queued(t, "a", 2)
	unlock(t, first)
	next := receive(t, second)
	if next.Err != nil {
		t.Fatal(next.Err)
	}
	r.Held(next.Lock) // without a moment at which nobody held it, and nothing of the queueing

	unlock(t, next.Lock)
	r.Free("a")
	third := lock(t, alpha, "a", "3")
	r.Held(third)
}

func TestWatch_BeginsWithTheHolderThereIs(t *testing.T) {
	t.Parallel()
	b := setup(t)
	c := b.Client(t)
	l := lock(t, c, "a", "1")
	lock(t, c, "b", "other")
	states := c.Watch(within(t), "a")
	r := read(t, states)
	if state := r.Held(l); state.Revision <= l.Token() {
		t.Errorf("revision = %d, which is not that of now", state.Revision)
	}
	setValue(t, l, "2")
	r.Held(l)
	read(t, states).Held(l) // iterated again, it begins with the state of then
}

func TestWatch_YieldsNoStateOfAnotherName(t *testing.T) {
	t.Parallel()
	b := setup(t)
	c := b.Client(t)
	r := read(t, c.Watch(within(t), "a"))
	r.Free("a")
	for _, name := range []string{"a/b", "a/", "ab", "a%2Fb", "A", "a//"} {
		lock(t, c, name, "1")
	}
	r.Held(lock(t, c, "a", "2"))
}

func TestWatch_ASlowLoopGetsTheNewestState(t *testing.T) {
	b := setup(t)
	c, holder := b.Client(t), b.Client(t)
	l := lock(t, holder, "a", "first")
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	slow, brisk, slowPrefix := read(t, c.Watch(ctx, "a")), read(t, c.Watch(ctx, "a")), read(t, c.WatchPrefix(ctx, ""))
	for _, r := range []*reader{slow, brisk, slowPrefix} {
		r.Held(l)
	}
	// The loops are in their bodies now: nobody asks for the next state.

	const changes, writers, size = 4_000, 50, 2 << 10
	value := strings.Repeat("x", size)
	var wg sync.WaitGroup
	for range writers {
		wg.Go(func() {
			for range changes / writers {
				if _, err := b.Etcd.Put(t.Context(), l.Key(), value, clientv3.WithLease(lease(l))); err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	wg.Wait()
	for range 20 {
		unlock(t, lock(t, holder, "b", "2"))
	}
	if _, err := b.Etcd.Put(within(t), l.Key(), "last", clientv3.WithLease(lease(l))); err != nil {
		t.Fatal(err)
	}
	time.AfterFunc(patience, cancel) // not counting the time that the changes took
	brisk.Until("last")
	if kept := retained(t, "clientv3.(*watchGrpcStream)", "locker/v2.(*queueView)", "locker/v2.(*pending)", "locker/v2.follower"); kept > changes*size/4 {
		t.Errorf("%d bytes are kept for loops that are busy, of %d that passed", kept, changes*size)
	}
	// At most one state was on its way before the newest one.
	if state := slow.State(); state.Value != "last" {
		t.Errorf("the next state is not the newest, but one of revision %d", state.Revision)
	}
	if state := slowPrefix.State(); state.Name == "a" && state.Value != "last" {
		t.Errorf("the next state below the prefix is not the newest, but one of revision %d", state.Revision)
	}
	unlock(t, l)
	slow.Free("a")
}

// retained returns how many bytes are in use that were allocated below one of the
// functions.
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
		// What was sampled stands for more, the more the smaller it is.
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
	b := setup(t)
	c := b.Client(t)
	reason := errors.New("enough")
	for what, watch := range map[string]func(context.Context) iter.Seq2[locker.State, error]{
		"Watch":       func(ctx context.Context) iter.Seq2[locker.State, error] { return c.Watch(ctx, "a") },
		"WatchPrefix": func(ctx context.Context) iter.Seq2[locker.State, error] { return c.WatchPrefix(ctx, "a") },
	} {
		ctx, cancel := context.WithCancelCause(within(t))
		r := read(t, watch(ctx))
		l := lock(t, c, "a", "1")
		for !r.State().Held { // the state before may come first
		}
		cancel(reason)
		if err := r.End(); !errors.Is(err, reason) {
			t.Errorf("%s ended with %v, want the cause", what, err)
		}
		if err := read(t, watch(ctx)).End(); !errors.Is(err, reason) {
			t.Errorf("%s of a context that has ended ended with %v, want the cause", what, err)
		}
		unlock(t, l)
	}
}

func TestWatch_ALoopThatIsLeftLeavesNoGoroutine(t *testing.T) {
	t.Parallel()
	b := setup(t)
	c := b.Client(t)
	lock(t, c, "a", "1")
	read(t, c.Watch(within(t), "a")).State() // starts what the client keeps running for all watches
	const label = "a loop that is left"      // of all goroutines that it starts
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
		eventually(t, what+" has ended its goroutine", func() bool { return !running() })
	}
}

func TestClose_EndsWatches(t *testing.T) {
	t.Parallel()
	b := setup(t)
	c := b.Client(t)
	watches := []iter.Seq2[locker.State, error]{
		c.Watch(within(t), "a"), c.Watch(within(t), "b"), c.WatchPrefix(within(t), ""),
	}
	lock(t, c, "a", "1")
	lock(t, c, "b", "2")
	readers := make([]*reader, len(watches))
	for i, watch := range watches {
		readers[i] = read(t, watch)
		readers[i].State()
	}
	if err := c.Close(); err != nil {
		t.Fatal(err)
	}
	for i, r := range readers {
		if err := r.End(); !errors.Is(err, locker.ErrClosed) {
			t.Errorf("watch %d ended with %v, want ErrClosed", i, err)
		}
		if err := read(t, watches[i]).End(); !errors.Is(err, locker.ErrClosed) {
			t.Errorf("watch %d of a closed client ended with %v, want ErrClosed", i, err)
		}
	}
}

func TestWatch_ALoopMayCloseItsClient(t *testing.T) {
	t.Parallel()
	b := setup(t)
	c := b.Client(t)
	var last error
	for _, err := range c.Watch(within(t), "a") {
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
	b := setup(t)
	c := b.Client(t)
	for _, name := range []string{"", "a\x00b", "\xff", strings.Repeat("a", locker.MaxNameLength+1)} {
		err := read(t, c.Watch(within(t), name)).End()
		var invalid *locker.InvalidError
		if !errors.As(err, &invalid) || !errors.Is(err, locker.ErrInvalid) || invalid.Argument != "name" {
			t.Errorf("watch of %.20q ended with %v, want ErrInvalid", name, err)
		}
	}
}

func TestWatch_GoesOnAfterItsConnectionsBreak(t *testing.T) {
	t.Parallel()
	b := setup(t)
	proxy := b.Server.Proxy(t)
	c := newClient(t, proxy.Client(t))
	l := lock(t, b.Client(t), "a", "start")
	one, all := read(t, c.Watch(within(t), "a")), read(t, c.WatchPrefix(within(t), ""))
	one.Held(l)
	all.Held(l)
	for i := range 10 {
		proxy.Reset()
		if i%3 == 0 {
			proxy.Cut()
		}
		setValue(t, l, fmt.Sprint(i))
		setValue(t, l, fmt.Sprint(i, " newest"))
		proxy.Heal()
		one.Until(fmt.Sprint(i, " newest"))
		all.Until(fmt.Sprint(i, " newest"))
	}
	proxy.Cut()
	unlock(t, l)
	proxy.Heal()
	one.Free("a")
	all.Free("a")
}

func TestWatch_GoesOnAfterCompactionWhileItWasCutOff(t *testing.T) {
	t.Parallel()
	b := setup(t)
	proxy := b.Server.Proxy(t)
	c := newClient(t, proxy.Client(t))
	holder := b.Client(t)
	one, all := read(t, c.Watch(within(t), "a")), read(t, c.WatchPrefix(within(t), ""))
	one.Free("a")
	gone := lock(t, holder, "gone", "1")
	all.Held(gone)
	for i := range 3 {
		proxy.Cut()
		l := lock(t, holder, "a", "1")
		for j := range 20 {
			setValue(t, l, fmt.Sprint(i, ".", j))
		}
		if i == 0 {
			unlock(t, gone) // all that tells of it is compacted
		}
		b.Server.Compact(t)
		proxy.Heal()
		one.Held(l)
		if state := all.State(); state.Holder != holderBy(l) {
			t.Errorf("state = %+v, want %+v", state, holderBy(l))
		}
		if i == 0 {
			all.Free("gone")
		}
		b.Server.Compact(t)
		unlock(t, l)
		b.Server.Compact(t)
		one.Free("a")
		all.Free("a")
	}
}

func TestWatch_GoesOnWhenTheLeaderMovesOrDies(t *testing.T) {
	t.Parallel()
	b := setup(t, embedtest.WithMembers(3))
	c := b.Client(t, locker.WithTTL(unhurried))
	l := lock(t, b.Client(t, locker.WithTTL(unhurried)), "a", "start")
	r := read(t, c.Watch(within(t), "a"))
	r.Held(l)
	for i := range 3 {
		b.Server.MoveLeader(t)
		setValue(t, l, fmt.Sprint("moved ", i))
		r.Held(l)
	}
	for i := range 2 {
		leader := b.Server.Leader(t)
		b.Server.Stop(t, leader)
		setValue(t, l, fmt.Sprint("died ", i))
		r.Held(l)
		b.Server.Restart(t, leader)
	}
	unlock(t, l)
	r.Free("a")
}

func TestWatch_GoesOnAfterARestart(t *testing.T) {
	t.Parallel()
	b := setup(t)
	c := b.Client(t)
	l := lock(t, b.Client(t), "a", "start")
	one, all := read(t, c.Watch(within(t), "a")), read(t, c.WatchPrefix(within(t), ""))
	one.Held(l)
	all.Held(l)
	for i := range 3 {
		b.Server.Restart(t, 0)
		setValue(t, l, fmt.Sprint(i))
		one.Held(l)
		all.Held(l)
	}
}

func TestWatch_LeavesAMemberThatDoesNotAnswer(t *testing.T) {
	t.Parallel()
	b := setup(t, embedtest.WithMembers(3))
	proxy := b.Server.Proxy(t)
	c := newClient(t, proxy.Client(t), locker.WithTTL(unhurried))
	l := lock(t, b.Client(t), "a", "start")
	r := read(t, c.Watch(within(t), "a"))
	r.Held(l)
	// Whichever member the watch is on, its turn comes while it is there.
	for member := range 3 {
		proxy.Freeze(member)
		began := time.Now()
		setValue(t, l, fmt.Sprint(member))
		r.Held(l)
		t.Logf("with member %d frozen the change came after %v", member, time.Since(began).Round(time.Millisecond))
		proxy.Thaw(member)
	}
}

func TestWatchPrefix_FollowsAllNamesBelowIt(t *testing.T) {
	t.Parallel()
	b := setup(t)
	c := b.Client(t)
	names := []string{"a", "a%2Fb", "a/", "a/b", "a/b/c", "ab", "b", "größe", "%", " "}
	slices.Sort(names)
	held := make(map[string]*locker.Lock)
	for i, name := range names {
		if i%2 == 0 {
			held[name] = lock(t, c, name, "early")
		}
	}
	for _, prefix := range []string{"", "a", "a/", "a/b", "a%", "%", "gr", "none"} {
		r := read(t, c.WatchPrefix(within(t), prefix))
		for _, name := range names {
			if held[name] != nil && strings.HasPrefix(name, prefix) {
				r.Held(held[name]) // by name
			}
		}
		late := make(map[string]*locker.Lock)
		for _, name := range names {
			if held[name] != nil {
				setValue(t, held[name], "changed for "+prefix)
			} else {
				late[name] = lock(t, c, name, "late")
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
			unlock(t, late[name])
			if strings.HasPrefix(name, prefix) {
				r.Free(name)
			}
		}
	}
}

func TestWatchPrefix_SkipsWhatIsNoLock(t *testing.T) {
	t.Parallel()
	b := setup(t)
	c := b.Client(t)
	junk := []string{
		"locker", "locker/", "locker/a", "locker//", "locker//x", "locker//x/y", "locker/%/1",
		"locker/%61/1", "locker/%2f/1", "locker/%2/1", "lockers/a/1", "locker/\x00/1", "other/a/1",
	}
	for _, key := range junk[:len(junk)/2] {
		putKey(t, b.Etcd, key, "junk")
	}
	first := lock(t, c, "first", "1")
	r := read(t, c.WatchPrefix(within(t), ""))
	r.Held(first)
	for _, key := range junk {
		putKey(t, b.Etcd, key, "more junk")
	}
	l := lock(t, b.Client(t), "a", "1") // with the record of its session
	r.Held(l)
	for _, key := range junk {
		if _, err := b.Etcd.Delete(within(t), key); err != nil {
			t.Fatal(err)
		}
	}
	unlock(t, l)
	r.Free("a")

	// What stands in a queue counts, whoever put it there.
	putKey(t, b.Etcd, "locker/b/operator", "by hand")
	if state := r.State(); !state.Held || state.Name != "b" || state.Value != "by hand" || state.Lease != 0 {
		t.Errorf("state = %+v, want b held by hand", state)
	}
}

func TestWatchPrefix_ChangesOfOneTransactionAreOneChange(t *testing.T) {
	t.Parallel()
	b := setup(t)
	c := b.Client(t)
	l := lock(t, c, "running", "1")
	r := read(t, c.WatchPrefix(within(t), ""))
	r.Held(l)
	names := []string{"h", "c", "a", "g", "b", "e", "d", "f"}
	var puts []clientv3.Op
	for _, name := range names {
		puts = append(puts, clientv3.OpPut("locker/"+name+"/1", "1"))
	}
	resp, err := b.Etcd.Txn(within(t)).Then(puts...).Commit()
	if err != nil {
		t.Fatal(err)
	}
	slices.Sort(names)
	for _, name := range names {
		if state := r.State(); state.Name != name || state.Revision != resp.Header.Revision {
			t.Errorf("state = %+v, want that of %q", state, name)
		}
	}
	if _, err := b.Etcd.Put(within(t), "locker/a/2", "2"); err != nil {
		t.Fatal(err)
	}
	_, err = b.Etcd.Txn(within(t)).Then(
		clientv3.OpDelete("locker/a/1"), clientv3.OpDelete("locker/a/2"), clientv3.OpPut("locker/a/3", "3"),
	).Commit()
	if err != nil {
		t.Fatal(err)
	}
	if state := r.State(); state.Value != "3" {
		t.Errorf("state = %+v, which never was", state)
	}
}

func TestWatch_ManyAtOnceSeeTheLastChange(t *testing.T) {
	t.Parallel()
	const names, watches = 10, 20
	b := setup(t)
	c, holder := b.Client(t), b.Client(t)
	began, ended := make(chan struct{}, names*watches), make(chan error, names*watches)
	for i := range names {
		name := fmt.Sprint("name ", i)
		states := c.Watch(within(t), name)
		for range watches {
			go func() {
				var o order
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
		receive(t, began)
	}
	for i := range names {
		l := lock(t, holder, fmt.Sprint("name ", i), "first")
		for j := range 5 {
			setValue(t, l, fmt.Sprint(j))
		}
		setValue(t, l, "last")
	}
	for range names * watches {
		if err := receive(t, ended); err != nil {
			t.Error(err)
		}
	}
}

func TestWatch_EndsWhenEtcdDeniesPermission(t *testing.T) {
	t.Parallel()
	b := setup(t, embedtest.WithAuth())
	guest := addUser(t, b, "guest", "locker/ok/")
	proxy := b.Server.Proxy(t)
	config := proxy.ClientConfig()
	config.Username, config.Password = guest, guest
	c := newClient(t, connect(t, config))

	if err := read(t, c.Watch(within(t), "no")).End(); !errors.Is(err, rpctypes.ErrPermissionDenied) {
		t.Errorf("Watch ended with %v, want permission denied", err)
	}
	if err := read(t, c.WatchPrefix(within(t), "")).End(); !errors.Is(err, rpctypes.ErrPermissionDenied) {
		t.Errorf("WatchPrefix ended with %v, want permission denied", err)
	}
	if _, err := c.NewCache(within(t), ""); !errors.Is(err, rpctypes.ErrPermissionDenied) {
		t.Errorf("NewCache = %v, want permission denied", err)
	}

	r := read(t, c.Watch(within(t), "ok"))
	r.Free("ok")
	if _, err := b.Etcd.RoleRevokePermission(within(t), guest, "locker/ok/", clientv3.GetPrefixRangeEnd("locker/ok/")); err != nil {
		t.Fatal(err)
	}
	proxy.Reset()
	if err := r.End(); !errors.Is(err, rpctypes.ErrPermissionDenied) {
		t.Errorf("after the permission was revoked Watch ended with %v", err)
	}
}

// addUser adds a user, and a role, of that name and password, who may read and
// write below prefix.
func addUser(t testing.TB, b bundle, name, prefix string) string {
	t.Helper()
	ctx := within(t)
	_, err := b.Etcd.RoleAdd(ctx, name)
	if err == nil {
		_, err = b.Etcd.RoleGrantPermission(ctx, name, prefix, clientv3.GetPrefixRangeEnd(prefix), clientv3.PermissionType(clientv3.PermReadWrite))
	}
	if err == nil {
		_, err = b.Etcd.UserAdd(ctx, name, name)
	}
	if err == nil {
		_, err = b.Etcd.UserGrantRole(ctx, name, name)
	}
	if err != nil {
		t.Fatal(err)
	}
	return name
}
