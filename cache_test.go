package locker_test

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/jagregory/locker/v2"
	"github.com/jagregory/locker/v2/internal/locktest"
)

func TestCache_IsFilledWhenNewCacheReturns(t *testing.T) {
	t.Parallel()
	b := locktest.Setup(t)
	c := b.Client(t)
	a, ab := locktest.Lock(t, c, "a", "1"), locktest.Lock(t, c, "a/b", "2")
	locktest.Lock(t, c, "c", "3")
	k := locktest.NewCache(t, c, "a")
	for _, l := range []*locker.Lock{a, ab} {
		if holder, ok := k.Get(l.Name()); !ok || holder != locktest.HolderBy(l) {
			t.Errorf("Get(%q) = %+v, %v, want %+v", l.Name(), holder, ok, locktest.HolderBy(l))
		}
	}
	if got, want := k.List(), []locker.Holder{locktest.HolderBy(a), locktest.HolderBy(ab)}; !slices.Equal(got, want) {
		t.Errorf("List = %+v, want %+v", got, want)
	}
	for _, name := range []string{"c", "", "a/", "nobody's"} {
		if holder, ok := k.Get(name); ok || holder != (locker.Holder{}) {
			t.Errorf("Get(%q) = %+v, %v", name, holder, ok)
		}
	}
	if k.Revision() < ab.Token() {
		t.Errorf("Revision = %d, but it has seen %d", k.Revision(), ab.Token())
	}
}

func TestCache_FollowsEachChange(t *testing.T) {
	t.Parallel()
	b := locktest.Setup(t)
	c := b.Client(t)
	k := locktest.NewCache(t, b.Client(t), "")
	if got := k.List(); len(got) != 0 {
		t.Fatalf("List = %+v", got)
	}
	agrees := func(what string) {
		t.Helper()
		locktest.Eventually(t, what, func() bool { return slices.Equal(k.List(), locktest.List(t, c, "")) })
	}
	revision := k.Revision()
	var locks []*locker.Lock
	for _, name := range []string{"b", "a/b", "a", "%"} {
		locks = append(locks, locktest.Lock(t, c, name, "1"))
		agrees("locked " + name)
	}
	for _, l := range locks {
		locktest.SetValue(t, l, "2")
		agrees("changed " + l.Name())
	}
	for _, l := range locks {
		locktest.Unlock(t, l)
		agrees("unlocked " + l.Name())
		if now := k.Revision(); now <= revision {
			t.Errorf("the revision was %d and is %d after a change", revision, now)
		} else {
			revision = now
		}
	}
}

// etcd sends a watch that has fallen behind no more than 1,000 revisions at once.
func TestCache_ClaimsNoRevisionBeforeItHasReachedIt(t *testing.T) {
	b := locktest.Setup(t)
	proxy := b.Server.Proxy(t)
	l := locktest.Lock(t, b.Client(t), "a", "start")
	k := locktest.NewCache(t, locktest.NewClient(t, proxy.Client(t)), "")
	proxy.Cut()
	var wg sync.WaitGroup
	for range 16 {
		wg.Go(func() {
			for range 200 {
				if _, err := b.Etcd.Put(locktest.Within(t), "locker/b/1", "passing"); err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	wg.Wait()
	locktest.SetValue(t, l, "newest")
	want := locktest.HolderBy(l)
	now, err := b.Etcd.Get(locktest.Within(t), l.Key())
	if err != nil {
		t.Fatal(err)
	}
	reached := now.Kvs[0].ModRevision
	proxy.Heal()
	for ctx := locktest.Within(t); k.Revision() < reached; {
		if ctx.Err() != nil {
			t.Fatal("it never caught up")
		}
	}
	if holder, _ := k.Get("a"); holder != want {
		t.Errorf("the copy claims revision %d, but has %+v where %+v was since %d", k.Revision(), holder, want, reached)
	}
	locktest.Eventually(t, "it has caught up", func() bool { holder, _ := k.Get("a"); return holder == want })
}

func TestCacheAge_ShowsWhetherTheCacheIsCurrent(t *testing.T) {
	t.Parallel()
	b := locktest.Setup(t)
	proxy := b.Server.Proxy(t)
	const ttl = 2 * time.Second
	k := locktest.NewCache(t, locktest.NewClient(t, proxy.Client(t), locker.WithTTL(ttl)), "")
	for range 3 {
		// Even while nothing happens, etcd confirms that the copy is current.
		now := time.Now()
		locktest.Eventually(t, "the copy is known to be current", func() bool { return k.Age() < time.Since(now) })
	}
	for what, fault := range map[string]func(...int){"frozen": proxy.Freeze, "cut": proxy.Cut} {
		fault()
		began := time.Now()
		locktest.Eventually(t, what+": the age grows", func() bool { return k.Age() > 2*ttl })
		if age, most := k.Age(), time.Since(began)+5*ttl; age > most {
			t.Errorf("the age is %v, after %v without etcd", age, time.Since(began))
		}
		l := locktest.Lock(t, b.Client(t), what, "1")
		proxy.Heal()
		locktest.Eventually(t, what+": the copy is current again", func() bool {
			holder, _ := k.Get(what)
			return holder == locktest.HolderBy(l) && k.Age() < ttl
		})
	}
}

func TestCache_CanStillBeReadAfterClose(t *testing.T) {
	t.Parallel()
	b := locktest.Setup(t)
	other := b.Client(t)
	l := locktest.Lock(t, other, "a", "1")
	want := []locker.Holder{locktest.HolderBy(l)}
	for what, end := range map[string]func(*locker.Client, *locker.Cache){
		"the cache":  func(_ *locker.Client, k *locker.Cache) { k.Close(); k.Close() },
		"the client": func(c *locker.Client, _ *locker.Cache) { _ = c.Close() },
	} {
		c := b.Client(t)
		k := locktest.NewCache(t, c, "")
		end(c, k)
		revision, age := k.Revision(), k.Age()
		locktest.Unlock(t, locktest.Lock(t, other, "b", "2"))
		if got := k.List(); !slices.Equal(got, want) {
			t.Errorf("closed %s: List = %+v, want %+v", what, got, want)
		}
		if holder, ok := k.Get("a"); !ok || holder != want[0] {
			t.Errorf("closed %s: Get = %+v, %v", what, holder, ok)
		}
		if k.Revision() != revision || k.Age() <= age {
			t.Errorf("closed %s: revision %d then %d, age %v then %v", what, revision, k.Revision(), age, k.Age())
		}
	}
}

func TestNewCache_ReturnsWhenItCannotBeFilled(t *testing.T) {
	t.Parallel()
	b := locktest.Setup(t)
	proxy := b.Server.Proxy(t)
	c := locktest.NewClient(t, proxy.Client(t))
	proxy.Cut()
	reason := errors.New("enough")
	ctx, cancel := context.WithCancelCause(locktest.Within(t))
	result := make(chan error, 2)
	open := func(ctx context.Context) {
		k, err := c.NewCache(ctx, "")
		if k != nil {
			err = errors.New("NewCache returned a cache")
		}
		result <- err
	}
	go open(ctx)
	cancel(reason)
	if err := locktest.Receive(t, result); !errors.Is(err, reason) {
		t.Errorf("error = %v, want the cause of the context", err)
	}
	go open(locktest.Within(t))
	_ = c.Close()
	if err := locktest.Receive(t, result); !errors.Is(err, locker.ErrClosed) {
		t.Errorf("error = %v, want ErrClosed", err)
	}
	go open(locktest.Within(t))
	if err := locktest.Receive(t, result); !errors.Is(err, locker.ErrClosed) {
		t.Errorf("error = %v, want ErrClosed", err)
	}
}

func TestCacheChanged_IsSilentWhenNothingChangesThatGetOrListReturn(t *testing.T) {
	t.Parallel()
	b := locktest.Setup(t)
	l := locktest.Lock(t, b.Client(t), "a", "1")
	k := locktest.NewCache(t, b.Client(t), "")
	changed := k.Changed()
	for range 3 {
		resp, err := b.Etcd.Put(locktest.Within(t), l.Key(), l.Value(), clientv3.WithLease(locktest.LeaseOf(l)))
		if err != nil {
			t.Fatal(err)
		}
		locktest.Eventually(t, "the cache has seen it", func() bool { return k.Revision() >= resp.Header.Revision })
		select {
		case <-changed:
			t.Fatal("writing the same value was reported as a change")
		default:
		}
	}
	locktest.SetValue(t, l, "2")
	locktest.Receive(t, changed)
}

// Not parallel: what other tests allocate would be counted as well.
func TestCacheGet_AllocatesNothing(t *testing.T) {
	b := locktest.Setup(t)
	c := b.Client(t)
	locktest.Lock(t, c, "a", "1")
	k := locktest.NewCache(t, c, "")
	if n := testing.AllocsPerRun(100_000, func() {
		if _, ok := k.Get("a"); !ok {
			t.Error("not found")
		}
		if _, ok := k.Get("b"); ok {
			t.Error("found")
		}
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

func TestCacheChanged_ReportsEachChangeBelowThePrefixAndNothingElse(t *testing.T) {
	t.Parallel()
	b := locktest.Setup(t)
	c := b.Client(t)
	k := locktest.NewCache(t, c, "a")
	changed := func(ch <-chan struct{}) bool {
		select {
		case <-ch:
			return true
		default:
			return false
		}
	}
	var a *locker.Lock
	for _, change := range []struct {
		what string
		do   func()
		seen func() bool
	}{
		{"a lock", func() { a = locktest.Lock(t, c, "a", "1") }, func() bool { _, ok := k.Get("a"); return ok }},
		{"another value", func() { locktest.Want(t, a.SetValue(locktest.Within(t), "2"), nil) }, func() bool { holder, _ := k.Get("a"); return holder.Value == "2" }},
		{"a release", func() { locktest.Unlock(t, a) }, func() bool { _, ok := k.Get("a"); return !ok }},
	} {
		before := k.Changed()
		if changed(before) {
			t.Errorf("there was a change before %s", change.what)
		}
		change.do()
		locktest.Eventually(t, change.what, change.seen)
		if !changed(before) {
			t.Errorf("%s was not reported as a change", change.what)
		}
	}
	// Another name does not concern the cache, but moves the revision of the cluster.
	before := k.Changed()
	other := locktest.Lock(t, c, "other", "")
	locktest.Eventually(t, "the cache keeps up", func() bool { return k.Revision() >= other.Token() })
	if changed(before) {
		t.Error("a lock that is not below the prefix was reported as a change")
	}
}

func TestCache_LogsEachRefusalOnce(t *testing.T) {
	t.Parallel()
	var out bytes.Buffer
	c := locktest.Setup(t).Client(t, locker.WithLogger(slog.New(slog.NewTextHandler(&out, nil)))) // from Info on
	denied, full := rpctypes.ErrPermissionDenied, rpctypes.ErrNoSpace
	locker.LogRestarts(c, denied, denied, full, nil, full, full)
	if n := strings.Count(out.String(), "level=WARN"); n != 3 {
		t.Errorf("%d warnings:\n%s", n, out.String())
	}
}
