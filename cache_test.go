package locker_test

import (
	"context"
	"errors"
	"slices"
	"sync"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/jagregory/locker/v2"
)

func TestCache_IsFilledWhenNewCacheReturns(t *testing.T) {
	t.Parallel()
	b := setup(t)
	c := b.Client(t)
	a, ab := lock(t, c, "a", "1"), lock(t, c, "a/b", "2")
	lock(t, c, "c", "3")
	k := newCache(t, c, "a")
	for _, l := range []*locker.Lock{a, ab} {
		if holder, ok := k.Get(l.Name()); !ok || holder != holderBy(l) {
			t.Errorf("Get(%q) = %+v, %v, want %+v", l.Name(), holder, ok, holderBy(l))
		}
	}
	if got, want := k.List(), []locker.Holder{holderBy(a), holderBy(ab)}; !slices.Equal(got, want) {
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
	b := setup(t)
	c := b.Client(t)
	k := newCache(t, b.Client(t), "")
	if got := k.List(); len(got) != 0 {
		t.Fatalf("List = %+v", got)
	}
	agrees := func(what string) {
		t.Helper()
		eventually(t, what, func() bool { return slices.Equal(k.List(), list(t, c, "")) })
	}
	revision := k.Revision()
	var locks []*locker.Lock
	for _, name := range []string{"b", "a/b", "a", "%"} {
		locks = append(locks, lock(t, c, name, "1"))
		agrees("locked " + name)
	}
	for _, l := range locks {
		setValue(t, l, "2")
		agrees("changed " + l.Name())
	}
	for _, l := range locks {
		unlock(t, l)
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
	b := setup(t)
	proxy := b.Server.Proxy(t)
	l := lock(t, b.Client(t), "a", "start")
	k := newCache(t, newClient(t, proxy.Client(t)), "")
	proxy.Cut()
	var wg sync.WaitGroup
	for range 16 {
		wg.Go(func() {
			for range 200 {
				if _, err := b.Etcd.Put(within(t), "locker/b/1", "passing"); err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	wg.Wait()
	setValue(t, l, "newest")
	want := holderBy(l)
	now, err := b.Etcd.Get(within(t), l.Key())
	if err != nil {
		t.Fatal(err)
	}
	reached := now.Kvs[0].ModRevision
	proxy.Heal()
	for ctx := within(t); k.Revision() < reached; {
		if ctx.Err() != nil {
			t.Fatal("it never caught up")
		}
	}
	if holder, _ := k.Get("a"); holder != want {
		t.Errorf("the copy claims revision %d, but has %+v where %+v was since %d", k.Revision(), holder, want, reached)
	}
	eventually(t, "it has caught up", func() bool { holder, _ := k.Get("a"); return holder == want })
}

func TestCacheAge_ShowsWhetherTheCacheIsCurrent(t *testing.T) {
	t.Parallel()
	b := setup(t)
	proxy := b.Server.Proxy(t)
	const ttl = 2 * time.Second
	k := newCache(t, newClient(t, proxy.Client(t), locker.WithTTL(ttl)), "")
	for range 3 {
		// With nothing going on at all, etcd confirms that the copy is current.
		now := time.Now()
		eventually(t, "the copy is known to be current", func() bool { return k.Age() < time.Since(now) })
	}
	for what, fault := range map[string]func(...int){"frozen": proxy.Freeze, "cut": proxy.Cut} {
		fault()
		began := time.Now()
		eventually(t, what+": the age grows", func() bool { return k.Age() > 2*ttl })
		if age, most := k.Age(), time.Since(began)+5*ttl; age > most {
			t.Errorf("the age is %v, after %v without etcd", age, time.Since(began))
		}
		l := lock(t, b.Client(t), what, "1")
		proxy.Heal()
		eventually(t, what+": the copy is current again", func() bool {
			holder, _ := k.Get(what)
			return holder == holderBy(l) && k.Age() < ttl
		})
	}
}

func TestCache_CanStillBeReadAfterClose(t *testing.T) {
	t.Parallel()
	b := setup(t)
	other := b.Client(t)
	l := lock(t, other, "a", "1")
	want := []locker.Holder{holderBy(l)}
	for what, end := range map[string]func(*locker.Client, *locker.Cache){
		"the cache":  func(_ *locker.Client, k *locker.Cache) { k.Close(); k.Close() },
		"the client": func(c *locker.Client, _ *locker.Cache) { _ = c.Close() },
	} {
		c := b.Client(t)
		k := newCache(t, c, "")
		end(c, k)
		revision, age := k.Revision(), k.Age()
		unlock(t, lock(t, other, "b", "2"))
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
	b := setup(t)
	proxy := b.Server.Proxy(t)
	c := newClient(t, proxy.Client(t))
	proxy.Cut()
	reason := errors.New("enough")
	ctx, cancel := context.WithCancelCause(within(t))
	result := make(chan error, 2)
	make := func(ctx context.Context) {
		k, err := c.NewCache(ctx, "")
		if k != nil {
			err = errors.New("there is a cache")
		}
		result <- err
	}
	go make(ctx)
	cancel(reason)
	if err := receive(t, result); !errors.Is(err, reason) {
		t.Errorf("error = %v, want the cause of the context", err)
	}
	go make(within(t))
	_ = c.Close()
	if err := receive(t, result); !errors.Is(err, locker.ErrClosed) {
		t.Errorf("error = %v, want ErrClosed", err)
	}
	go make(within(t))
	if err := receive(t, result); !errors.Is(err, locker.ErrClosed) {
		t.Errorf("error = %v, want ErrClosed", err)
	}
}

func TestCacheChanged_IsSilentWhenNothingChangesThatGetOrListReturn(t *testing.T) {
	t.Parallel()
	b := setup(t)
	l := lock(t, b.Client(t), "a", "1")
	k := newCache(t, b.Client(t), "")
	changed := k.Changed()
	for range 3 {
		resp, err := b.Etcd.Put(within(t), l.Key(), l.Value(), clientv3.WithLease(lease(l)))
		if err != nil {
			t.Fatal(err)
		}
		eventually(t, "the cache has seen it", func() bool { return k.Revision() >= resp.Header.Revision })
		select {
		case <-changed:
			t.Fatal("the same value again was a change")
		default:
		}
	}
	setValue(t, l, "2")
	receive(t, changed)
}

// Not parallel: what other tests allocate would be counted as well.
func TestCacheGet_AllocatesNothing(t *testing.T) {
	b := setup(t)
	c := b.Client(t)
	lock(t, c, "a", "1")
	k := newCache(t, c, "")
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
	b := setup(t)
	c := b.Client(t)
	k := newCache(t, c, "a")
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
		make func()
		seen func() bool
	}{
		{"a lock", func() { a = lock(t, c, "a", "1") }, func() bool { _, ok := k.Get("a"); return ok }},
		{"another value", func() { want(t, a.SetValue(within(t), "2"), nil) }, func() bool { holder, _ := k.Get("a"); return holder.Value == "2" }},
		{"a release", func() { unlock(t, a) }, func() bool { _, ok := k.Get("a"); return !ok }},
	} {
		before := k.Changed()
		if changed(before) {
			t.Errorf("before %s there was a change already", change.what)
		}
		change.make()
		eventually(t, change.what, change.seen)
		if !changed(before) {
			t.Errorf("%s was no change", change.what)
		}
	}
	// Another name is none of its business, and moves the revision of the cluster.
	before := k.Changed()
	other := lock(t, c, "other", "")
	eventually(t, "the cache keeps up", func() bool { return k.Revision() >= other.Token() })
	if changed(before) {
		t.Error("a lock that is not below the prefix was a change")
	}
}
