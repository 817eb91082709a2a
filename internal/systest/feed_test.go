package systest

import (
	"context"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/jagregory/locker/v2"
	"github.com/jagregory/locker/v2/embedtest"
	"github.com/jagregory/locker/v2/internal/locktest"
)

// replacements counts how often a client has replaced a watch stream that did not answer.
type replacements struct {
	slog.Handler
	mu    sync.Mutex // guards what follows
	moves []move
}

// move is from one member to another.
type move struct{ from, to string }

func (r *replacements) Enabled(context.Context, slog.Level) bool { return true }

func (r *replacements) Handle(_ context.Context, record slog.Record) error {
	if record.Message != "watch stream does not answer, using another" {
		return nil
	}
	var m move
	record.Attrs(func(attr slog.Attr) bool {
		switch attr.Key {
		case "member":
			m.from = attr.Value.String()
		case "other":
			m.to = attr.Value.String()
		}
		return true
	})
	r.mu.Lock()
	defer r.mu.Unlock()
	r.moves = append(r.moves, m)
	return nil
}

// all returns those so far.
func (r *replacements) all() []move {
	r.mu.Lock()
	defer r.mu.Unlock()
	return append([]move(nil), r.moves...)
}

// refreshed waits until the copy is known to have been current at some time from now on.
func refreshed(t testing.TB, what string, k *locker.Cache) {
	t.Helper()
	now := time.Now()
	eventually(t, what, func() bool { return k.Age() < time.Since(now) })
}

func TestWatch_LeavesAFrozenMemberSoonHoweverLongTheTTL(t *testing.T) {
	t.Parallel()
	b := setup(t, embedtest.WithMembers(3))
	proxy := b.Server.Proxy(t)
	moved := new(replacements)
	c := newClient(t, proxy.Client(t), locker.WithTTL(time.Hour), locker.WithLogger(slog.New(moved)))
	observed := lock(t, b.Client(t), "observed", "start")
	r, k := read(t, c.Watch(within(t), "observed")), newCache(t, c, "")
	r.Held(observed)
	other := b.Client(t)
	// Whichever member the stream is on, its turn comes while it is there.
	for member := range 3 {
		holder := lock(t, other, "passed on", "")
		waiter := lockAsync(within(t), c, "passed on", "")
		b.Queued(t, "passed on", 2)
		refreshed(t, "the stream is at work", k)
		before := len(moved.all())
		proxy.Freeze(member)
		began := time.Now()
		locktest.SetValue(t, observed, string(rune('0'+member)))
		unlock(t, holder)
		r.Held(observed)
		next := locktest.LockOf(t, waiter)
		eventually(t, "the cache has it", func() bool { got, _ := k.Get("observed"); return got == holderBy(observed) })
		took := time.Since(began) // each step has patience, which is far less than a quarter of the TTL
		refreshed(t, "the copy is known to be current", k)
		if moves := moved.all()[before:]; len(moves) > 1 || len(moves) == 1 && moves[0].from == moves[0].to {
			t.Errorf("with one member frozen the stream moved %+v", moves)
		} else {
			t.Logf("with member %d frozen it took %v, and the stream moved %+v", member, took, moves)
		}
		proxy.Thaw(member)
		unlock(t, next)
	}
	if len(moved.all()) == 0 {
		t.Error("the stream was on none of the members")
	}
}

func TestCacheAge_OfACurrentCopyStaysSmallHoweverLongTheTTL(t *testing.T) {
	t.Parallel()
	b := setup(t)
	k := newCache(t, b.Client(t, locker.WithTTL(time.Hour)), "")
	for range 3 {
		refreshed(t, "the copy is known to be current", k)
	}
	if age := k.Age(); age > 10*time.Second {
		t.Errorf("the age is %v", age)
	}
}

func TestWatch_StaysOnAStreamThatIsSlowAsEverythingIs(t *testing.T) {
	t.Parallel()
	b := setup(t, embedtest.WithMembers(3))
	proxy := b.Server.Proxy(t)
	moved := new(replacements)
	c := newClient(t, proxy.Client(t), locker.WithLogger(slog.New(moved)))
	k := newCache(t, c, "")
	proxy.Delay(700 * time.Millisecond) // and as much back: longer than an answer is waited for
	for range 4 {
		refreshed(t, "the copy is known to be current", k)
	}
	if moves := moved.all(); len(moves) > 0 {
		t.Errorf("the stream was taken for one to a frozen member: %+v", moves)
	}
}

func TestWatch_StaysOnAStreamBehindALargeAnswer(t *testing.T) {
	t.Parallel()
	b := setup(t, embedtest.WithMembers(3))
	proxy := b.Server.Proxy(t)
	for i := range 20 {
		putKey(t, b.Etcd, fmt.Sprint("large/", i), strings.Repeat("x", 50_000))
	}
	moved := new(replacements)
	etcd := proxy.Client(t)
	k := newCache(t, newClient(t, etcd, locker.WithLogger(slog.New(moved))), "")
	proxy.Throttle(300 << 10)
	const times = 3
	for range times { // on one member after the other
		if _, err := etcd.Get(within(t), "large/", clientv3.WithPrefix()); err != nil {
			t.Fatal(err)
		}
	}
	refreshed(t, "the copy is known to be current", k)
	if moves := moved.all(); len(moves) > times {
		t.Errorf("during %d large answers the stream moved %+v", times, moves)
	}
	l := lock(t, b.Client(t), "a", "")
	eventually(t, "the cache has it", func() bool { got, _ := k.Get("a"); return got == holderBy(l) })
}

func TestCache_OfAReaderOfSomeNamesIsCurrentAndKnowsIt(t *testing.T) {
	t.Parallel()
	b := setup(t, embedtest.WithAuth())
	ctx := within(t)
	const reader = "reader"
	_, err := b.Etcd.RoleAdd(ctx, reader)
	if err == nil {
		_, err = b.Etcd.RoleGrantPermission(ctx, reader, "locker/app-", clientv3.GetPrefixRangeEnd("locker/app-"), clientv3.PermissionType(clientv3.PermRead))
	}
	if err == nil {
		_, err = b.Etcd.UserAdd(ctx, reader, reader)
	}
	if err == nil {
		_, err = b.Etcd.UserGrantRole(ctx, reader, reader)
	}
	if err != nil {
		t.Fatal(err)
	}
	config := b.Server.ClientConfig()
	config.Username, config.Password = reader, reader
	c := newClient(t, connect(t, config))
	k := newCache(t, c, "app-")
	one, all := read(t, c.Watch(ctx, "app-1")), read(t, c.WatchPrefix(ctx, "app-"))
	one.Free("app-1")
	l := lock(t, b.Client(t), "app-1", "1")
	one.Held(l)
	all.Held(l)
	eventually(t, "the cache has it", func() bool { got, _ := k.Get("app-1"); return got == holderBy(l) })
	for range 3 {
		refreshed(t, "the copy is known to be current", k)
		// What it may not read harms nothing that it may.
		if err := read(t, c.Watch(ctx, "other")).End(); err == nil {
			t.Error("it watches what it may not read")
		}
	}
	unlock(t, l)
	one.Free("app-1")
	all.Free("app-1")
}
