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

// order checks what holds for every sequence of states: revisions grow, and what
// is told of a name differs from what was told before.
type order struct {
	revision int64
	last     map[string]locker.State
}

func (o *order) check(state locker.State) error {
	if o.last == nil {
		o.last = make(map[string]locker.State)
	}
	last, told := o.last[state.Name]
	switch {
	case state.Name == "":
		return fmt.Errorf("a state without a name: %+v", state)
	case state.Revision < o.revision || told && state.Revision == last.Revision:
		return fmt.Errorf("out of order: %+v after revision %d, last %+v", state, o.revision, last)
	case told && state.Held == last.Held && state.Holder == last.Holder:
		return fmt.Errorf("told twice: %+v after %+v", state, last)
	case !state.Held && state.Holder != locker.Holder{Name: state.Name}:
		return fmt.Errorf("nobody holds it, but there is a holder: %+v", state)
	}
	o.revision, o.last[state.Name] = state.Revision, state
	return nil
}

// reader reads a watch step by step. The watch begins with the first step.
type reader struct {
	t testing.TB
	order
	next func() (locker.State, error, bool)
}

func read(t testing.TB, states iter.Seq2[locker.State, error]) *reader {
	next, stop := iter.Pull2(states)
	t.Cleanup(stop)
	return &reader{t: t, next: next}
}

// state returns the next state.
func (r *reader) state() locker.State {
	r.t.Helper()
	state, err, ok := r.next()
	if err != nil || !ok {
		r.t.Fatalf("no state, but %v (%v)", err, ok)
	}
	if err := r.check(state); err != nil {
		r.t.Fatal(err)
	}
	return state
}

// held returns the next state, which must be that l holds its name.
func (r *reader) held(l *locker.Lock) locker.State {
	r.t.Helper()
	state := r.state()
	if !state.Held || state.Holder != holderBy(l) {
		r.t.Fatalf("state = %+v, want it held by %+v", state, holderBy(l))
	}
	return state
}

// free returns the next state, which must be that nobody holds name.
func (r *reader) free(name string) locker.State {
	r.t.Helper()
	state := r.state()
	if state.Held || state.Name != name {
		r.t.Fatalf("state = %+v, want %q to be free", state, name)
	}
	return state
}

// until reads on to the state of that value.
func (r *reader) until(value string) locker.State {
	r.t.Helper()
	for {
		if state := r.state(); state.Value == value {
			return state
		}
	}
}

// end reads on to the end and returns its error.
func (r *reader) end() error {
	r.t.Helper()
	for {
		state, err, ok := r.next()
		if !ok {
			r.t.Fatal("it ended without an error")
		}
		if err == nil {
			continue
		}
		if state.Held {
			r.t.Errorf("a state came with the error: %+v", state)
		}
		if _, _, more := r.next(); more {
			r.t.Error("the error was not the last thing")
		}
		return err
	}
}

// holderBy returns what others see of l.
func holderBy(l *locker.Lock) locker.Holder {
	return locker.Holder{Name: l.Name(), Value: l.Value(), Token: l.Token(), Lease: lease(l)}
}

// lease returns the lease that l's entry is attached to.
func lease(l *locker.Lock) (id clientv3.LeaseID) {
	key := l.Key()
	_, _ = fmt.Sscanf(key[strings.LastIndex(key, "/")+1:], "%x", &id)
	return id
}

func setValue(t testing.TB, l *locker.Lock, value string) {
	t.Helper()
	if err := l.SetValue(within(t), value); err != nil {
		t.Fatal(err)
	}
}

// putKey puts until etcd, which may be busy, has confirmed it.
func putKey(t testing.TB, etcd *clientv3.Client, key, value string) {
	t.Helper()
	eventually(t, "the key is put", func() bool {
		_, err := etcd.Put(within(t), key, value)
		if err != nil && !errors.Is(err, rpctypes.ErrTimeout) {
			t.Fatal(err)
		}
		return err == nil
	})
}

func TestWatchYieldsTheStateNowAndThenEachChange(t *testing.T) {
	t.Parallel()
	b := setup(t)
	alpha, beta := b.client(t), b.client(t)
	r := read(t, b.client(t).Watch(within(t), "a"))
	r.free("a")

	first := lock(t, alpha, "a", "1")
	if state := r.held(first); state.Revision != first.Token() {
		t.Errorf("held from revision %d on, but the token is %d", state.Revision, first.Token())
	}
	setValue(t, first, "2")
	r.held(first)
	setValue(t, first, "")
	r.held(first)

	second := lockAsync(within(t), beta, "a", "3")
	b.queued(t, "a", 2)
	unlock(t, first)
	next := receive(t, second)
	if next.err != nil {
		t.Fatal(next.err)
	}
	r.held(next.lock) // without a moment at which nobody held it, and nothing of the queueing

	unlock(t, next.lock)
	r.free("a")
	third := lock(t, alpha, "a", "3")
	r.held(third)
}

func TestWatchBeginsWithTheHolderThereIs(t *testing.T) {
	t.Parallel()
	b := setup(t)
	c := b.client(t)
	l := lock(t, c, "a", "1")
	lock(t, c, "b", "other")
	states := c.Watch(within(t), "a")
	r := read(t, states)
	if state := r.held(l); state.Revision <= l.Token() {
		t.Errorf("revision = %d, which is not that of now", state.Revision)
	}
	setValue(t, l, "2")
	r.held(l)
	read(t, states).held(l) // iterated again, it begins with the state of then
}

func TestAStateOfOneNameIsNoneOfAnother(t *testing.T) {
	t.Parallel()
	b := setup(t)
	c := b.client(t)
	r := read(t, c.Watch(within(t), "a"))
	r.free("a")
	for _, name := range []string{"a/b", "a/", "ab", "a%2Fb", "A", "a//"} {
		lock(t, c, name, "1")
	}
	r.held(lock(t, c, "a", "2"))
}

func TestASlowLoopGetsTheNewestState(t *testing.T) {
	b := setup(t)
	c, holder := b.client(t), b.client(t)
	l := lock(t, holder, "a", "first")
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	slow, brisk, slowPrefix := read(t, c.Watch(ctx, "a")), read(t, c.Watch(ctx, "a")), read(t, c.WatchPrefix(ctx, ""))
	for _, r := range []*reader{slow, brisk, slowPrefix} {
		r.held(l)
	}
	// The loops are in their bodies now: nobody asks for the next state.

	const changes, writers, size = 4_000, 50, 2 << 10
	value := strings.Repeat("x", size)
	var wg sync.WaitGroup
	for range writers {
		wg.Go(func() {
			for range changes / writers {
				if _, err := b.etcd.Put(t.Context(), l.Key(), value, clientv3.WithLease(lease(l))); err != nil {
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
	if _, err := b.etcd.Put(within(t), l.Key(), "last", clientv3.WithLease(lease(l))); err != nil {
		t.Fatal(err)
	}
	time.AfterFunc(patience, cancel) // not counting the time that the changes took
	brisk.until("last")
	if kept := retained(t, "clientv3.(*watchGrpcStream)", "locker/v2.(*queueView)", "locker/v2.(*untold)", "locker/v2.follower"); kept > changes*size/4 {
		t.Errorf("%d bytes are kept for loops that are busy, of %d that passed", kept, changes*size)
	}
	// At most one state was on its way before the newest one.
	if state := slow.state(); state.Value != "last" {
		t.Errorf("the next state is not the newest, but one of revision %d", state.Revision)
	}
	if state := slowPrefix.state(); state.Name == "a" && state.Value != "last" {
		t.Errorf("the next state below the prefix is not the newest, but one of revision %d", state.Revision)
	}
	unlock(t, l)
	slow.free("a")
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

func TestAWatchEndsWithTheCauseOfItsContext(t *testing.T) {
	t.Parallel()
	b := setup(t)
	c := b.client(t)
	reason := errors.New("enough")
	for what, watch := range map[string]func(context.Context) iter.Seq2[locker.State, error]{
		"Watch":       func(ctx context.Context) iter.Seq2[locker.State, error] { return c.Watch(ctx, "a") },
		"WatchPrefix": func(ctx context.Context) iter.Seq2[locker.State, error] { return c.WatchPrefix(ctx, "a") },
	} {
		ctx, cancel := context.WithCancelCause(within(t))
		r := read(t, watch(ctx))
		l := lock(t, c, "a", "1")
		for !r.state().Held { // the state before may come first
		}
		cancel(reason)
		if err := r.end(); !errors.Is(err, reason) {
			t.Errorf("%s ended with %v, want the cause", what, err)
		}
		if err := read(t, watch(ctx)).end(); !errors.Is(err, reason) {
			t.Errorf("%s of a context that has ended ended with %v, want the cause", what, err)
		}
		unlock(t, l)
	}
}

func TestALoopThatIsLeftLeavesNoGoroutine(t *testing.T) {
	t.Parallel()
	b := setup(t)
	c := b.client(t)
	lock(t, c, "a", "1")
	read(t, c.Watch(within(t), "a")).state() // starts what the client keeps running for all watches
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

func TestCloseEndsWatches(t *testing.T) {
	t.Parallel()
	b := setup(t)
	c := b.client(t)
	watches := []iter.Seq2[locker.State, error]{
		c.Watch(within(t), "a"), c.Watch(within(t), "b"), c.WatchPrefix(within(t), ""),
	}
	lock(t, c, "a", "1")
	lock(t, c, "b", "2")
	readers := make([]*reader, len(watches))
	for i, watch := range watches {
		readers[i] = read(t, watch)
		readers[i].state()
	}
	if err := c.Close(); err != nil {
		t.Fatal(err)
	}
	for i, r := range readers {
		if err := r.end(); !errors.Is(err, locker.ErrClosed) {
			t.Errorf("watch %d ended with %v, want ErrClosed", i, err)
		}
		if err := read(t, watches[i]).end(); !errors.Is(err, locker.ErrClosed) {
			t.Errorf("watch %d of a closed client ended with %v, want ErrClosed", i, err)
		}
	}
}

func TestALoopMayCloseItsClient(t *testing.T) {
	t.Parallel()
	b := setup(t)
	c := b.client(t)
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

func TestAWatchOfABadNameIsRefused(t *testing.T) {
	t.Parallel()
	b := setup(t)
	c := b.client(t)
	for _, name := range []string{"", "a\x00b", "\xff", strings.Repeat("a", locker.MaxNameLength+1)} {
		err := read(t, c.Watch(within(t), name)).end()
		var invalid *locker.InvalidError
		if !errors.As(err, &invalid) || !errors.Is(err, locker.ErrInvalid) || invalid.Argument != "name" {
			t.Errorf("watch of %.20q ended with %v, want ErrInvalid", name, err)
		}
	}
}

func TestAWatchGoesOnAfterItsConnectionsBreak(t *testing.T) {
	t.Parallel()
	b := setup(t)
	proxy := b.server.Proxy(t)
	c := newClient(t, proxy.Client(t))
	l := lock(t, b.client(t), "a", "start")
	one, all := read(t, c.Watch(within(t), "a")), read(t, c.WatchPrefix(within(t), ""))
	one.held(l)
	all.held(l)
	for i := range 10 {
		proxy.Reset()
		if i%3 == 0 {
			proxy.Cut()
		}
		setValue(t, l, fmt.Sprint(i))
		setValue(t, l, fmt.Sprint(i, " newest"))
		proxy.Heal()
		one.until(fmt.Sprint(i, " newest"))
		all.until(fmt.Sprint(i, " newest"))
	}
	proxy.Cut()
	unlock(t, l)
	proxy.Heal()
	one.free("a")
	all.free("a")
}

func TestAWatchGoesOnAfterCompactionWhileItWasCutOff(t *testing.T) {
	t.Parallel()
	b := setup(t)
	proxy := b.server.Proxy(t)
	c := newClient(t, proxy.Client(t))
	holder := b.client(t)
	one, all := read(t, c.Watch(within(t), "a")), read(t, c.WatchPrefix(within(t), ""))
	one.free("a")
	gone := lock(t, holder, "gone", "1")
	all.held(gone)
	for i := range 3 {
		proxy.Cut()
		l := lock(t, holder, "a", "1")
		for j := range 20 {
			setValue(t, l, fmt.Sprint(i, ".", j))
		}
		if i == 0 {
			unlock(t, gone) // all that tells of it is compacted
		}
		b.server.Compact(t)
		proxy.Heal()
		one.held(l)
		if state := all.state(); state.Holder != holderBy(l) {
			t.Errorf("state = %+v, want %+v", state, holderBy(l))
		}
		if i == 0 {
			all.free("gone")
		}
		b.server.Compact(t)
		unlock(t, l)
		b.server.Compact(t)
		one.free("a")
		all.free("a")
	}
}

func TestAWatchGoesOnWhenTheLeaderMovesOrDies(t *testing.T) {
	t.Parallel()
	b := setup(t, embedtest.WithMembers(3))
	c := b.client(t, locker.WithTTL(unhurried))
	l := lock(t, b.client(t, locker.WithTTL(unhurried)), "a", "start")
	r := read(t, c.Watch(within(t), "a"))
	r.held(l)
	for i := range 3 {
		b.server.MoveLeader(t)
		setValue(t, l, fmt.Sprint("moved ", i))
		r.held(l)
	}
	for i := range 2 {
		leader := b.server.Leader(t)
		b.server.Stop(t, leader)
		setValue(t, l, fmt.Sprint("died ", i))
		r.held(l)
		b.server.Restart(t, leader)
	}
	unlock(t, l)
	r.free("a")
}

func TestAWatchGoesOnAfterARestart(t *testing.T) {
	t.Parallel()
	b := setup(t)
	c := b.client(t)
	l := lock(t, b.client(t), "a", "start")
	one, all := read(t, c.Watch(within(t), "a")), read(t, c.WatchPrefix(within(t), ""))
	one.held(l)
	all.held(l)
	for i := range 3 {
		b.server.Restart(t, 0)
		setValue(t, l, fmt.Sprint(i))
		one.held(l)
		all.held(l)
	}
}

func TestAWatchLeavesAMemberThatDoesNotAnswer(t *testing.T) {
	t.Parallel()
	b := setup(t, embedtest.WithMembers(3))
	proxy := b.server.Proxy(t)
	c := newClient(t, proxy.Client(t), locker.WithTTL(unhurried))
	l := lock(t, b.client(t), "a", "start")
	r := read(t, c.Watch(within(t), "a"))
	r.held(l)
	// Whichever member the watch is on, its turn comes while it is there.
	for member := range 3 {
		proxy.Freeze(member)
		began := time.Now()
		setValue(t, l, fmt.Sprint(member))
		r.held(l)
		t.Logf("with member %d frozen the change came after %v", member, time.Since(began).Round(time.Millisecond))
		proxy.Thaw(member)
	}
}

func TestWatchPrefixFollowsAllNamesBelowIt(t *testing.T) {
	t.Parallel()
	b := setup(t)
	c := b.client(t)
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
				r.held(held[name]) // by name
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
				r.held(held[name])
			} else {
				r.held(late[name])
			}
		}
		for _, name := range names {
			if late[name] == nil {
				continue
			}
			unlock(t, late[name])
			if strings.HasPrefix(name, prefix) {
				r.free(name)
			}
		}
	}
}

func TestWatchPrefixPassesOverWhatIsNoLock(t *testing.T) {
	t.Parallel()
	b := setup(t)
	c := b.client(t)
	junk := []string{
		"locker", "locker/", "locker/a", "locker//", "locker//x", "locker//x/y", "locker/%/1",
		"locker/%61/1", "locker/%2f/1", "locker/%2/1", "lockers/a/1", "locker/\x00/1", "other/a/1",
	}
	for _, key := range junk[:len(junk)/2] {
		putKey(t, b.etcd, key, "junk")
	}
	first := lock(t, c, "first", "1")
	r := read(t, c.WatchPrefix(within(t), ""))
	r.held(first)
	for _, key := range junk {
		putKey(t, b.etcd, key, "more junk")
	}
	l := lock(t, b.client(t), "a", "1") // with the record of its session
	r.held(l)
	for _, key := range junk {
		if _, err := b.etcd.Delete(within(t), key); err != nil {
			t.Fatal(err)
		}
	}
	unlock(t, l)
	r.free("a")

	// What stands in a queue counts, whoever put it there.
	putKey(t, b.etcd, "locker/b/operator", "by hand")
	if state := r.state(); !state.Held || state.Name != "b" || state.Value != "by hand" || state.Lease != 0 {
		t.Errorf("state = %+v, want b held by hand", state)
	}
}

func TestChangesOfOneTransactionAreOneChange(t *testing.T) {
	t.Parallel()
	b := setup(t)
	c := b.client(t)
	l := lock(t, c, "running", "1")
	r := read(t, c.WatchPrefix(within(t), ""))
	r.held(l)
	names := []string{"h", "c", "a", "g", "b", "e", "d", "f"}
	var puts []clientv3.Op
	for _, name := range names {
		puts = append(puts, clientv3.OpPut("locker/"+name+"/1", "1"))
	}
	resp, err := b.etcd.Txn(within(t)).Then(puts...).Commit()
	if err != nil {
		t.Fatal(err)
	}
	slices.Sort(names)
	for _, name := range names {
		if state := r.state(); state.Name != name || state.Revision != resp.Header.Revision {
			t.Errorf("state = %+v, want that of %q", state, name)
		}
	}
	if _, err := b.etcd.Put(within(t), "locker/a/2", "2"); err != nil {
		t.Fatal(err)
	}
	_, err = b.etcd.Txn(within(t)).Then(
		clientv3.OpDelete("locker/a/1"), clientv3.OpDelete("locker/a/2"), clientv3.OpPut("locker/a/3", "3"),
	).Commit()
	if err != nil {
		t.Fatal(err)
	}
	if state := r.state(); state.Value != "3" {
		t.Errorf("state = %+v, which never was", state)
	}
}

func TestManyWatchesAtOnce(t *testing.T) {
	t.Parallel()
	const names, watches = 10, 20
	b := setup(t)
	c, holder := b.client(t), b.client(t)
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
						err = o.check(state)
					}
					if err != nil {
						ended <- err
						return
					}
					if len(o.last) == 1 && values == "" && !state.Held {
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

func TestWatchEndsWhenEtcdDeniesPermission(t *testing.T) {
	t.Parallel()
	b := setup(t, embedtest.WithAuth())
	guest := addUser(t, b, "guest", "locker/ok/")
	proxy := b.server.Proxy(t)
	config := proxy.ClientConfig()
	config.Username, config.Password = guest, guest
	c := newClient(t, connect(t, config))

	if err := read(t, c.Watch(within(t), "no")).end(); !errors.Is(err, rpctypes.ErrPermissionDenied) {
		t.Errorf("Watch ended with %v, want permission denied", err)
	}
	if err := read(t, c.WatchPrefix(within(t), "")).end(); !errors.Is(err, rpctypes.ErrPermissionDenied) {
		t.Errorf("WatchPrefix ended with %v, want permission denied", err)
	}
	if _, err := c.NewCache(within(t), ""); !errors.Is(err, rpctypes.ErrPermissionDenied) {
		t.Errorf("NewCache = %v, want permission denied", err)
	}

	r := read(t, c.Watch(within(t), "ok"))
	r.free("ok")
	if _, err := b.etcd.RoleRevokePermission(within(t), guest, "locker/ok/", clientv3.GetPrefixRangeEnd("locker/ok/")); err != nil {
		t.Fatal(err)
	}
	proxy.Reset()
	if err := r.end(); !errors.Is(err, rpctypes.ErrPermissionDenied) {
		t.Errorf("after the permission was revoked Watch ended with %v", err)
	}
}

// addUser adds a user, and a role, of that name and password, who may read and
// write below prefix.
func addUser(t testing.TB, b bundle, name, prefix string) string {
	t.Helper()
	ctx := within(t)
	_, err := b.etcd.RoleAdd(ctx, name)
	if err == nil {
		_, err = b.etcd.RoleGrantPermission(ctx, name, prefix, clientv3.GetPrefixRangeEnd(prefix), clientv3.PermissionType(clientv3.PermReadWrite))
	}
	if err == nil {
		_, err = b.etcd.UserAdd(ctx, name, name)
	}
	if err == nil {
		_, err = b.etcd.UserGrantRole(ctx, name, name)
	}
	if err != nil {
		t.Fatal(err)
	}
	return name
}
