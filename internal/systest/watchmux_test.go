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

// replacements records when a client replaces a watch stream that does not answer.
type replacements struct {
	slog.Handler
	mu    sync.Mutex // guards what follows
	moves []move
}

// move is a replacement of a stream to one member by a stream to another.
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

// all returns the moves so far.
func (r *replacements) all() []move {
	r.mu.Lock()
	defer r.mu.Unlock()
	return append([]move(nil), r.moves...)
}

// refreshed waits until the copy is known to have been current at some time from now on.
func refreshed(t testing.TB, what string, k *locker.Cache) {
	t.Helper()
	now := time.Now()
	locktest.Eventually(t, what, func() bool { return k.Age() < time.Since(now) })
}

func TestWatch_LeavesAFrozenMemberSoonHoweverLongTheTTL(t *testing.T) {
	t.Parallel()
	b := locktest.Setup(t, embedtest.WithMembers(3))
	proxy := b.Server.Proxy(t)
	moved := new(replacements)
	c := locktest.NewClient(t, proxy.Client(t), locker.WithTTL(time.Hour), locker.WithLogger(slog.New(moved)))
	observed := locktest.Lock(t, b.Client(t), "observed", "start")
	r, k := locktest.Read(t, c.Watch(locktest.Within(t), "observed")), locktest.NewCache(t, c, "")
	r.Held(observed)
	other := b.Client(t)
	// Each member is frozen once, so one of them is frozen while the stream is to it.
	for member := range 3 {
		holder := locktest.Lock(t, other, "passed on", "")
		waiter := locktest.LockAsync(locktest.Within(t), c, "passed on", "")
		b.Queued(t, "passed on", 2)
		refreshed(t, "the stream is at work", k)
		before := len(moved.all())
		proxy.Freeze(member)
		began := time.Now()
		locktest.SetValue(t, observed, string(rune('0'+member)))
		locktest.Unlock(t, holder)
		r.Held(observed)
		next := locktest.LockOf(t, waiter)
		locktest.Eventually(t, "the cache has it", func() bool { got, _ := k.Get("observed"); return got == locktest.HolderBy(observed) })
		took := time.Since(began) // each step may take locktest.Timeout, which is far less than a quarter of the TTL
		refreshed(t, "the copy is known to be current", k)
		if moves := moved.all()[before:]; len(moves) > 1 || len(moves) == 1 && moves[0].from == moves[0].to {
			t.Errorf("with one member frozen the stream moved %+v", moves)
		} else {
			t.Logf("with member %d frozen it took %v, and the stream moved %+v", member, took, moves)
		}
		proxy.Thaw(member)
		locktest.Unlock(t, next)
	}
	if len(moved.all()) == 0 {
		t.Error("the stream was to none of the members")
	}
}

func TestCacheAge_OfACurrentCopyStaysSmallHoweverLongTheTTL(t *testing.T) {
	t.Parallel()
	b := locktest.Setup(t)
	k := locktest.NewCache(t, b.Client(t, locker.WithTTL(time.Hour)), "")
	for range 3 {
		refreshed(t, "the copy is known to be current", k)
	}
	if age := k.Age(); age > 10*time.Second {
		t.Errorf("the age is %v", age)
	}
}

func TestWatch_StaysOnAStreamThatIsSlowAsEverythingIs(t *testing.T) {
	t.Parallel()
	b := locktest.Setup(t, embedtest.WithMembers(3))
	proxy := b.Server.Proxy(t)
	moved := new(replacements)
	c := locktest.NewClient(t, proxy.Client(t), locker.WithLogger(slog.New(moved)))
	k := locktest.NewCache(t, c, "")
	proxy.Delay(700 * time.Millisecond) // and as much back: longer than the client waits for an answer
	for range 4 {
		refreshed(t, "the copy is known to be current", k)
	}
	if moves := moved.all(); len(moves) > 0 {
		t.Errorf("the member was taken for a frozen one: %+v", moves)
	}
}

func TestWatch_StaysOnAStreamBehindALargeAnswer(t *testing.T) {
	t.Parallel()
	b := locktest.Setup(t, embedtest.WithMembers(3))
	proxy := b.Server.Proxy(t)
	for i := range 20 {
		locktest.PutKey(t, b.Etcd, fmt.Sprint("large/", i), strings.Repeat("x", 50_000))
	}
	moved := new(replacements)
	etcd := proxy.Client(t)
	k := locktest.NewCache(t, locktest.NewClient(t, etcd, locker.WithLogger(slog.New(moved))), "")
	proxy.Throttle(300 << 10)
	const times = 3
	for range times { // on one member after the other
		if _, err := etcd.Get(locktest.Within(t), "large/", clientv3.WithPrefix()); err != nil {
			t.Fatal(err)
		}
	}
	refreshed(t, "the copy is known to be current", k)
	if moves := moved.all(); len(moves) > times {
		t.Errorf("during %d large answers the stream moved %+v", times, moves)
	}
	l := locktest.Lock(t, b.Client(t), "a", "")
	locktest.Eventually(t, "the cache has it", func() bool { got, _ := k.Get("a"); return got == locktest.HolderBy(l) })
}

func TestCache_OfAReaderOfSomeNamesIsCurrentAndKnowsIt(t *testing.T) {
	t.Parallel()
	b := locktest.Setup(t, embedtest.WithAuth())
	ctx := locktest.Within(t)
	const reader = "reader"
	b.AddUser(t, reader)
	b.Permit(t, reader, clientv3.PermissionType(clientv3.PermRead), "locker/app-")
	config := b.Server.ClientConfig()
	config.Username, config.Password = reader, reader
	c := locktest.NewClient(t, locktest.Connect(t, config))
	k := locktest.NewCache(t, c, "app-")
	one, all := locktest.Read(t, c.Watch(ctx, "app-1")), locktest.Read(t, c.WatchPrefix(ctx, "app-"))
	one.Free("app-1")
	l := locktest.Lock(t, b.Client(t), "app-1", "1")
	one.Held(l)
	all.Held(l)
	locktest.Eventually(t, "the cache has it", func() bool { got, _ := k.Get("app-1"); return got == locktest.HolderBy(l) })
	for range 3 {
		refreshed(t, "the copy is known to be current", k)
		// A watch without permission does not harm those with it.
		if err := locktest.Read(t, c.Watch(ctx, "other")).End(); err == nil {
			t.Error("it watches a name without permission")
		}
	}
	locktest.Unlock(t, l)
	one.Free("app-1")
	all.Free("app-1")
}
