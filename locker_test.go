package locker_test

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"os"
	"reflect"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
	"unicode/utf8"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/client/v3/concurrency"

	"github.com/jagregory/locker/v2"
	"github.com/jagregory/locker/v2/internal/locktest"
)

func TestLock_HasOneHolderAtATimeWithGrowingTokens(t *testing.T) {
	t.Parallel()
	b, ctx := locktest.Setup(t), locktest.Within(t)
	var inside, last, holds atomic.Int64
	var wg sync.WaitGroup
	for range 3 {
		c := b.Client(t)
		for range 4 {
			wg.Go(func() {
				for range 8 {
					l, err := c.Lock(ctx, "a", "v")
					if err != nil {
						t.Error(err)
						return
					}
					if n := inside.Add(1); n != 1 {
						t.Errorf("%d holders", n)
					}
					if before := last.Swap(l.Token()); before >= l.Token() {
						t.Errorf("token %d after %d", l.Token(), before)
					}
					holds.Add(1)
					inside.Add(-1)
					if err := l.Unlock(ctx); err != nil {
						t.Error(err)
					}
				}
			})
		}
	}
	wg.Wait()
	if holds.Load() != 3*4*8 {
		t.Errorf("%d holds", holds.Load())
	}
	b.Queued(t, "a", 0)
}

func TestLock_OfTheSameNameTwiceInOneClientWaits(t *testing.T) {
	t.Parallel()
	b, ctx := locktest.Setup(t), locktest.Within(t)
	c := b.Client(t)
	own := locktest.NewSession(t, c)
	first := locktest.Lock(t, c, "a", "first")
	second := locktest.LockAsync(ctx, c, "a", "second", locker.WithSession(own))
	locktest.Eventually(t, "the second is in line", func() bool { return locker.Waiting(c, "a") == 1 })
	if holder := locktest.Get(t, c, "a"); holder != b.HolderOf(t, first) {
		t.Errorf("holder %+v", holder)
	}
	locktest.Unlock(t, first)
	got := locktest.Receive(t, second)
	if got.Err != nil || got.Lock.Token() <= first.Token() || locktest.Get(t, c, "a").Value != "second" {
		t.Errorf("%v, token %d after %d", got.Err, got.Lock.Token(), first.Token())
	}
}

func TestLine_GoroutinesOfOneClientAreServedInOrder(t *testing.T) {
	t.Parallel()
	b, ctx := locktest.Setup(t), locktest.Within(t)
	c := b.Client(t)
	present := locktest.Lock(t, c, "a", "v")
	var waiters []<-chan locktest.Outcome
	for i := range 6 {
		waiters = append(waiters, locktest.LockAsync(ctx, c, "a", fmt.Sprint(i)))
		locktest.Eventually(t, "one more is in line", func() bool { return locker.Waiting(c, "a") == i+1 })
	}
	wantServedInOrder(t, present, waiters)
}

func TestQueue_ClientsAreServedInOrder(t *testing.T) {
	t.Parallel()
	b, ctx := locktest.Setup(t), locktest.Within(t)
	present := locktest.Lock(t, b.Client(t), "a", "v")
	var waiters []<-chan locktest.Outcome
	for i := range 9 { // more than the predecessors that a waiter follows one by one
		waiters = append(waiters, locktest.LockAsync(ctx, b.Client(t), "a", fmt.Sprint(i)))
		b.Queued(t, "a", i+2)
	}
	wantServedInOrder(t, present, waiters)
}

func TestNames_AreIndependentOfEachOther(t *testing.T) {
	t.Parallel()
	b, ctx := locktest.Setup(t), locktest.Within(t)
	c, other := b.Client(t), b.Client(t)
	names := []string{"a", "a/b", "a//", "a%2Fb", "a/", "a%", "a%2F", "/", "/a", "%", " ", "a b", "ä", "..", "locker/a"}
	var holders []locker.Holder
	for _, name := range names {
		l, err := c.TryLock(ctx, name, "value of "+name)
		if err != nil {
			t.Fatal(err)
		}
		if l.Name() != name {
			t.Errorf("name %q, want %q", l.Name(), name)
		}
		holders = append(holders, b.HolderOf(t, l))
	}
	for _, holder := range holders {
		_, err := other.TryLock(ctx, holder.Name, "v")
		var locked *locker.LockedError
		if !errors.As(err, &locked) || locked.Holder != holder || locktest.Get(t, other, holder.Name) != holder {
			t.Errorf("%v, want %+v", err, holder)
		}
	}
	slices.SortFunc(holders, func(a, b locker.Holder) int { return strings.Compare(a.Name, b.Name) })
	if list, err := other.List(ctx, ""); err != nil || !slices.Equal(list, holders) {
		t.Errorf("%v, %+v\nwant %+v", err, list, holders)
	}
}

func TestNames_MayHaveMaxNameLengthBytes(t *testing.T) {
	t.Parallel()
	b := locktest.Setup(t)
	for _, char := range []string{"a", "/", "%"} {
		name := strings.Repeat(char, 1024)
		l := locktest.Lock(t, b.Client(t), name, "v")
		if holder := locktest.Get(t, b.Client(t), name); holder.Name != name || holder.Token != l.Token() {
			t.Errorf("holder %+v", holder)
		}
		locktest.Unlock(t, l)
	}
}

func TestTryLock_ReportsTheHolderAndDoesNotQueue(t *testing.T) {
	t.Parallel()
	b, ctx := locktest.Setup(t), locktest.Within(t)
	c := b.Client(t)
	l := locktest.Lock(t, c, "a", "v")
	remote := b.Client(t)
	for what, client := range map[string]*locker.Client{"remote": remote, "local": c} {
		_, err := client.TryLock(ctx, "a", "other")
		var locked *locker.LockedError
		if !errors.Is(err, locker.ErrLocked) || !errors.As(err, &locked) || locked.Holder != b.HolderOf(t, l) {
			t.Errorf("%s: %v", what, err)
		}
	}
	b.Queued(t, "a", 1)
	locktest.Unlock(t, l)
	for _, client := range []*locker.Client{remote, c} {
		again, err := client.TryLock(ctx, "a", "again")
		if err != nil {
			t.Fatalf("after the release: %v", err)
		}
		locktest.Unlock(t, again)
	}
}

func TestLock_OfAValueTooLargeReturnsEtcdsErrorAndLeavesNothing(t *testing.T) {
	t.Parallel()
	b, ctx := locktest.Setup(t), locktest.Within(t)
	c := b.Client(t)
	for _, size := range []int{1600 << 10, 4 << 20} { // too large for the server, and for its client
		_, err := c.Lock(ctx, "a", strings.Repeat("v", size))
		if err == nil || size < 2<<20 && !errors.Is(err, rpctypes.ErrRequestTooLarge) || len(err.Error()) > 500 {
			t.Errorf("%d bytes: %v", size, err)
		}
		_, err = c.TryLock(ctx, "a", strings.Repeat("v", size))
		if err == nil || errors.Is(err, locker.ErrLocked) {
			t.Errorf("%d bytes: %v", size, err)
		}
	}
	b.Queued(t, "a", 0) // what is left is removed in the background
	l := locktest.Lock(t, c, "a", "small")
	if err := l.SetValue(ctx, strings.Repeat("v", 1600<<10)); !errors.Is(err, rpctypes.ErrRequestTooLarge) {
		t.Error(err)
	}
	if l.Err() != nil || l.Value() != "small" || locktest.Get(t, c, "a").Value != "small" {
		t.Errorf("%v, %d bytes", l.Err(), len(l.Value()))
	}
}

func TestGet_ReportsTheHolder(t *testing.T) {
	t.Parallel()
	b, ctx := locktest.Setup(t), locktest.Within(t)
	c, other := b.Client(t), b.Client(t)
	_, err := c.Get(ctx, "a")
	var missing *locker.NotFoundError
	if !errors.Is(err, locker.ErrNotFound) || !errors.As(err, &missing) || missing.Name != "a" {
		t.Error(err)
	}
	l := locktest.Lock(t, c, "a", "v")
	waiter := locktest.LockAsync(ctx, other, "a", "waiting")
	b.Queued(t, "a", 2)
	if holder := locktest.Get(t, other, "a"); holder != b.HolderOf(t, l) {
		t.Errorf("holder %+v", holder)
	}
	locktest.Unlock(t, l)
	locktest.Unlock(t, locktest.Receive(t, waiter).Lock)
	_, err = c.Get(ctx, "a")
	locktest.Want(t, err, locker.ErrNotFound)
}

func TestList_ReturnsTheHoldersBelowAPrefixByName(t *testing.T) {
	t.Parallel()
	b, ctx := locktest.Setup(t), locktest.Within(t)
	c, other := b.Client(t), b.Client(t)
	for _, name := range []string{"a/z", "b", "a/%", "a", "a%2Fz", "a/b/c", "ab"} {
		locktest.Lock(t, c, name, "v")
	}
	locktest.LockAsync(ctx, other, "a/z", "waiting")
	b.Queued(t, "a%2Fz", 2)
	for prefix, names := range map[string][]string{
		"":       {"a", "a%2Fz", "a/%", "a/b/c", "a/z", "ab", "b"},
		"a":      {"a", "a%2Fz", "a/%", "a/b/c", "a/z", "ab"},
		"a/":     {"a/%", "a/b/c", "a/z"},
		"a/b":    {"a/b/c"},
		"a%":     {"a%2Fz"},
		"a/z":    {"a/z"},
		"a/zz":   {},
		"nobody": {},
	} {
		list, err := other.List(ctx, prefix)
		found := make([]string, len(list))
		for i, holder := range list {
			found[i] = holder.Name
			if holder.Value != "v" || holder.Token == 0 || holder.Lease == 0 {
				t.Errorf("holder %+v", holder)
			}
		}
		if err != nil || !slices.Equal(found, names) {
			t.Errorf("below %q: %v, %q, want %q", prefix, err, found, names)
		}
	}
}

func TestList_IsTrueAtOneRevision(t *testing.T) {
	t.Parallel()
	b, ctx := locktest.Setup(t), locktest.Within(t)
	c := b.Client(t)
	const left, right = locker.DefaultPrefix + "a/1", locker.DefaultPrefix + "z/1"
	if _, err := b.Etcd.Put(ctx, left, ""); err != nil {
		t.Fatal(err)
	}
	stop, stopped := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(stopped)
		for from, to := left, right; ; from, to = to, from {
			select {
			case <-stop:
				return
			default:
			}
			if _, err := b.Etcd.Txn(ctx).Then(clientv3.OpDelete(from), clientv3.OpPut(to, "")).Commit(); err != nil {
				t.Error(err)
				return
			}
		}
	}()
	seen := make(map[string]bool)
	for n := 0; n < 100 || len(seen) < 2; n++ {
		list, err := c.List(ctx, "")
		if err != nil || len(list) != 1 {
			t.Errorf("%v, %+v", err, list)
			break
		}
		seen[list[0].Name] = true
	}
	close(stop)
	locktest.Receive(t, stopped)
}

func TestOwners_ReportsWhichProcessHolds(t *testing.T) {
	t.Parallel()
	b, ctx := locktest.Setup(t), locktest.Within(t)
	c := b.Client(t)
	locktest.Lock(t, c, "a", "v")
	own := locktest.NewSession(t, c)
	locktest.Lock(t, c, "b", "v", locker.WithSession(own))
	if _, err := b.Etcd.Put(ctx, locker.DefaultPrefix+"/foreign", "no record"); err != nil {
		t.Fatal(err)
	}
	list, err := c.List(ctx, "")
	if err != nil || len(list) != 2 {
		t.Fatalf("%v, %+v", err, list)
	}
	owners, err := b.Client(t).Owners(ctx)
	if err != nil || len(owners) != 2 {
		t.Fatalf("%v, %+v", err, owners)
	}
	host, _ := os.Hostname()
	for _, holder := range list {
		owner := owners[holder.Lease]
		if owner.PID != os.Getpid() || owner.Host != host || owner.Program == "" || owner.Start.IsZero() || owner.Version != locker.Version {
			t.Errorf("the owner of %q: %+v", holder.Name, owner)
		}
	}
	if err := own.Close(); err != nil {
		t.Fatal(err)
	}
	if owners, err := c.Owners(ctx); err != nil || len(owners) != 1 {
		t.Errorf("after the end of a session: %v, %+v", err, owners)
	}
}

var (
	contextType = reflect.TypeFor[context.Context]()
	errorType   = reflect.TypeFor[error]()
	statesType  = reflect.TypeFor[iter.Seq2[locker.State, error]]()
)

// invoke calls a method of a value with valid arguments, and with ctx where it takes a context. It
// returns the errors that the method returned or yielded, and its other results.
func invoke(t *testing.T, on any, method string, ctx context.Context, given map[reflect.Type]any) (errs []error, others []reflect.Value) {
	t.Helper()
	m := reflect.ValueOf(on).MethodByName(method)
	in := make([]reflect.Value, 0, m.Type().NumIn())
	for i := range m.Type().NumIn() {
		switch of := m.Type().In(i); {
		case m.Type().IsVariadic() && i == m.Type().NumIn()-1:
		case of == contextType && ctx == nil:
			in = append(in, reflect.Zero(contextType))
		case of == contextType:
			in = append(in, reflect.ValueOf(ctx))
		case of.Kind() == reflect.String:
			in = append(in, reflect.ValueOf("b"))
		case of.Kind() == reflect.Int64:
			in = append(in, reflect.ValueOf(int64(1)))
		case given[of] != nil:
			in = append(in, reflect.ValueOf(given[of]))
		case of.Kind() == reflect.Chan:
			in = append(in, reflect.Zero(of))
		default:
			t.Fatalf("%s takes a %v, which this test does not know", method, of)
		}
	}
	for _, out := range m.Call(in) {
		switch {
		case out.Type() == errorType:
			err, _ := out.Interface().(error)
			errs = append(errs, err)
		case out.Type() == statesType:
			errs = append(errs, lastError(out.Interface().(iter.Seq2[locker.State, error])))
		default:
			others = append(others, out)
		}
	}
	return errs, others
}

// arguments returns valid arguments by type, except contexts, strings and channels.
func arguments(t *testing.T) map[reflect.Type]any {
	never := neverCalled(t)
	return map[reflect.Type]any{reflect.TypeOf(never): never, reflect.TypeFor[*concurrency.Session](): new(concurrency.Session)}
}

func TestZeroValues_SayThatNewIsNeeded(t *testing.T) {
	t.Parallel()
	var noClient *locker.Client
	var noLock *locker.Lock
	var noSession *locker.Session
	var noCache *locker.Cache
	values := []any{
		new(locker.Client), new(locker.Lock), new(locker.Session), new(locker.Cache), new(locker.Compat), new(locker.Client).Compat(),
		noClient, noLock, noSession, noCache, noClient.Compat(),
	}
	for _, value := range values {
		of := reflect.TypeOf(value)
		for i := range of.NumMethod() {
			method := of.Method(i).Name
			t.Run(fmt.Sprintf("%v.%s", of.Elem(), method), func(t *testing.T) {
				if of == reflect.TypeFor[*locker.Compat]() && method == "Close" {
					return // its result depends on where the Compat came from
				}
				errs, others := invoke(t, value, method, locktest.Within(t), arguments(t))
				for _, err := range errs {
					locktest.Want(t, err, locker.ErrInvalid)
					wantWrappedOnce(t, err)
					if !strings.Contains(err.Error(), "use New") {
						t.Errorf("%v", err)
					}
				}
				for _, other := range others {
					switch v := other.Interface().(type) {
					case context.Context:
						locktest.Want(t, context.Cause(v), locker.ErrInvalid)
					case time.Duration:
						if v < time.Hour {
							t.Errorf("an age of %v", v)
						}
					case []clientv3.Cmp, *locker.Compat: // etcd refuses these compares, and such a Compat every call
					case []locker.Holder:
						if len(v) > 0 {
							t.Errorf("holders %v", v)
						}
					default:
						if !other.IsZero() {
							t.Errorf("%v", v)
						}
					}
				}
			})
		}
	}
	locktest.Want(t, new(locker.Compat).Close(), locker.ErrInvalid)
}

func TestZeroValues_AreRefusedAsArguments(t *testing.T) {
	t.Parallel()
	b, ctx := locktest.Setup(t), locktest.Within(t)
	c := b.Client(t)
	_, err := c.Lock(ctx, "a", "v", locker.WithSession(new(locker.Session)))
	locktest.Want(t, err, locker.ErrInvalid)
	_, err = c.AdoptSession(new(concurrency.Session))
	locktest.Want(t, err, locker.ErrInvalid)
	_, err = b.Etcd.Txn(ctx).If(new(locker.Lock).Guard()...).Then(clientv3.OpPut("written", "yes")).Commit()
	if err == nil || b.Value(t, "written") != "" {
		t.Errorf("written under the guard of no lock: %v", err)
	}
}

func TestNilContext_IsRefusedBeforeAnythingChanges(t *testing.T) {
	t.Parallel()
	b := locktest.Setup(t)
	etcd, requests := countedEtcd(t, b.Server)
	c := locktest.NewClient(t, etcd, locker.WithTTL(5*time.Minute)) // so that nothing is renewed meanwhile
	l := locktest.Lock(t, c, "a", "v")
	tried := make(map[string]bool)
	for _, value := range []any{c, l} {
		of := reflect.TypeOf(value)
		for i := range of.NumMethod() {
			method := of.Method(i)
			if method.Type.NumIn() < 2 || method.Type.In(1) != contextType {
				continue
			}
			tried[method.Name] = true
			before := requests.Load()
			errs, _ := invoke(t, value, method.Name, nil, arguments(t))
			for _, err := range errs {
				wantInvalid(t, err, "context")
				wantWrappedOnce(t, err)
			}
			if n := requests.Load() - before; n != 0 || len(errs) != 1 {
				t.Errorf("%s: %d requests, %d errors", method.Name, n, len(errs))
			}
		}
	}
	for verb := range verbs(c) {
		if !tried[verb] {
			t.Errorf("%s was not tried", verb)
		}
	}
	if l.Err() != nil || l.Value() != "v" || !tried["Unlock"] {
		t.Errorf("the hold has changed: %v, %q", l.Err(), l.Value())
	}
	locktest.Unlock(t, l)
	locktest.Unlock(t, locktest.Lock(t, c, "a", "next")) // the name can still be locked
	locktest.Unlock(t, locktest.Lock(t, c, "b", "next"))
	if err := c.Close(); err != nil {
		t.Error(err)
	}
}

// Tests of a program that closes the etcd client it has passed to New.

// longTTL is a TTL that no test waits for.
const longTTL = 10 * time.Minute

// wantEtcdClosed fails the test unless err says that the etcd client was closed, and does
// not look like a timeout of the caller's own.
func wantEtcdClosed(t testing.TB, what string, err error) {
	t.Helper()
	if !errors.Is(err, locker.ErrEtcdClosed) || errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("%s: %v", what, err)
	}
}

// wantEtcdClosedSoon wants that error from a call, which must not wait for the TTL or the end
// of its context.
func wantEtcdClosedSoon(t testing.TB, what string, call func() error) {
	t.Helper()
	select {
	case err := <-locktest.Async(call):
		wantEtcdClosed(t, what, err)
	case <-time.After(locktest.Timeout / 2):
		t.Errorf("%s does not return", what)
	}
}

func TestEtcdClosed_IsReportedByEveryCallAtOnce(t *testing.T) {
	t.Parallel()
	b, ctx := locktest.Setup(t), t.Context()
	etcd, err := clientv3.New(b.Server.ClientConfig())
	if err != nil {
		t.Fatal(err)
	}
	c := locktest.NewClient(t, etcd, locker.WithTTL(longTTL))
	foreign := locktest.ConcurrencySession(t, b.Etcd, 60)
	s := locktest.NewSession(t, c)
	held, own := locktest.Lock(t, c, "held", "v"), locktest.Lock(t, c, "own", "v", locker.WithSession(s))
	compat := c.Compat()
	if err := etcd.Close(); err != nil {
		t.Fatal(err)
	}
	calls := verbs(c)
	calls["Err"] = func(context.Context) error { return held.Err() }
	calls["Commit"] = func(ctx context.Context) error { _, err := held.Commit(ctx, clientv3.OpPut("x", "")); return err }
	calls["SetValue"] = func(ctx context.Context) error { return held.SetValue(ctx, "w") }
	calls["Unlock"] = held.Unlock
	calls["Lock on a session"] = func(ctx context.Context) error { _, err := c.Lock(ctx, "b", "", locker.WithSession(s)); return err }
	calls["AdoptSession"] = func(context.Context) error { _, err := c.AdoptSession(foreign); return err }
	calls["Session.Close"] = func(context.Context) error { return s.Close() }
	calls["Compat.Lock"] = func(context.Context) error { return compat.Lock("b", "v", nil, nil) }
	calls["Compat.Watch"] = func(context.Context) error { return compat.Watch("b", nil, nil) }
	calls["Compat.Get"] = func(context.Context) error { _, err := compat.Get("b"); return err }
	for verb, call := range calls {
		wantEtcdClosedSoon(t, verb, func() error { return call(ctx) })
	}
	for _, l := range []*locker.Lock{held, own} {
		var lost *locker.LostError
		locktest.Receive(t, l.Context().Done())
		if err := context.Cause(l.Context()); !errors.As(err, &lost) || lost.Cause != locker.ErrEtcdClosed {
			t.Errorf("the hold of %s ended with %v", l.Name(), err)
		}
	}
	wantEtcdClosedSoon(t, "Close", c.Close)
	wantEtcdClosedSoon(t, "New", func() error { _, err := locker.New(etcd); return err })
	if err := c.Close(); err != nil {
		t.Errorf("a second Close: %v", err)
	}
	_, err = c.Get(ctx, "a")
	locktest.Want(t, err, locker.ErrClosed)
}

func TestEtcdClosed_EndsAllThatIsUnderWay(t *testing.T) {
	t.Parallel()
	b, ctx := locktest.Setup(t), t.Context()
	etcd, err := clientv3.New(b.Server.ClientConfig())
	if err != nil {
		t.Fatal(err)
	}
	c := locktest.NewClient(t, etcd, locker.WithTTL(longTTL))
	locktest.Lock(t, b.Client(t), "foreign", "v")
	cache, err := c.NewCache(ctx, "")
	if err != nil {
		t.Fatal(err)
	}
	s := locktest.NewSession(t, c)
	results := make(map[string]<-chan error)
	run := func(what string, call func() error) { results[what] = locktest.Async(call) }
	locktest.Lock(t, c, "held", "v")
	run("a waiter in the client's line", func() error { _, err := c.Lock(ctx, "held", "w"); return err })
	locktest.Eventually(t, "it is in line", func() bool { return locker.Waiting(c, "held") == 1 })
	run("a waiter in etcd's queue", func() error { _, err := c.Lock(ctx, "foreign", "w", locker.WithSession(s)); return err })
	b.Queued(t, "foreign", 2)
	started := make(chan struct{}, 4)
	holding := func(ctx context.Context, _ *locker.Lock) error {
		started <- struct{}{}
		<-ctx.Done()
		return context.Cause(ctx)
	}
	run("Do", func() error { return c.Do(ctx, "do", "v", holding) })
	run("Campaign", func() error { return c.Campaign(ctx, "campaign", "v", holding) })
	for what, states := range map[string]func(func(locker.State, error) bool){"Watch": c.Watch(ctx, "w"), "WatchPrefix": c.WatchPrefix(ctx, "held")} {
		run(what, func() error {
			for _, err := range states {
				if err != nil {
					return err
				}
				started <- struct{}{}
			}
			return nil
		})
	}
	for range 4 {
		locktest.Receive(t, started)
	}
	if err := etcd.Close(); err != nil {
		t.Fatal(err)
	}
	for what, result := range results {
		wantEtcdClosed(t, what, locktest.Receive(t, result))
	}
	cache.Close()
	wantEtcdClosedSoon(t, "Close", c.Close)
}

func TestEtcdClosed_AfterTheClientIsNoError(t *testing.T) {
	t.Parallel()
	b := locktest.Setup(t)
	etcd, err := clientv3.New(b.Server.ClientConfig())
	if err != nil {
		t.Fatal(err)
	}
	c := locktest.NewClient(t, etcd)
	locktest.Unlock(t, locktest.Lock(t, c, "a", "v"))
	if err := c.Close(); err != nil {
		t.Error(err)
	}
	if err := etcd.Close(); err != nil {
		t.Error(err)
	}
	_, err = c.Get(t.Context(), "a")
	locktest.Want(t, err, locker.ErrClosed)
	if errors.Is(err, locker.ErrEtcdClosed) {
		t.Errorf("the Client was closed before: %v", err)
	}
}

func TestErrors_CutTextsAtACharacter(t *testing.T) {
	t.Parallel()
	b, ctx := locktest.Setup(t), locktest.Within(t)
	c, other := b.Client(t), b.Client(t)
	for _, character := range []string{"é", "€", "😀", "\u0301"} {
		for shift := range 4 {
			long := strings.Repeat("x", shift) + strings.Repeat(character, 600)
			name := long[:strings.LastIndex(long[:1001], character)]
			_, tooLong := c.Lock(ctx, long, "v")
			l := locktest.Lock(t, c, name, long)
			_, locked := other.TryLock(ctx, name, "w")
			locktest.Unlock(t, l)
			_, notFound := c.Get(ctx, name)
			for _, err := range []error{tooLong, locked, notFound} {
				if text := err.Error(); !utf8.ValidString(text) || strings.Contains(text, `\x`) || len(text) > 700 {
					t.Errorf("not printable: %s", text)
				}
			}
		}
	}
	_, err := c.Lock(ctx, strings.Repeat("\x80", 2000), "v")
	locktest.Want(t, err, locker.ErrInvalid)
}
