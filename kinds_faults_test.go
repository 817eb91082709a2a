package locker_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/server/v3/embed"

	"github.com/jagregory/locker/v2"
	"github.com/jagregory/locker/v2/embedtest"
	"github.com/jagregory/locker/v2/internal/locktest"
)

// way is a way to lock a name: of some kind, or together with others.
type way struct {
	what   string
	opts   []locker.LockOption
	others int // so many names more
}

var ways = []way{
	{what: "exclusive"},
	{what: "shared", opts: []locker.LockOption{locker.WithShared()}},
	{what: "limited", opts: []locker.LockOption{locker.WithLimit(2)}},
	{what: "several names", others: 2},
}

// names returns the names that are locked besides name, with it as the last one.
func (y way) names(name string) (names []string) {
	for i := range y.others {
		names = append(names, fmt.Sprint(name, "-", i))
	}
	return append(names, name)
}

// with returns the options, and more.
func (y way) with(name string, more ...locker.LockOption) []locker.LockOption {
	return append(together(y.names(name)[1:], y.opts...), more...)
}

func (y way) lock(t testing.TB, c *locker.Client, name string, more ...locker.LockOption) *locker.Lock {
	t.Helper()
	return locktest.Lock(t, c, y.names(name)[0], "", y.with(name, more...)...)
}

func (y way) async(ctx context.Context, c *locker.Client, name string, more ...locker.LockOption) <-chan locktest.Outcome {
	return locktest.LockAsync(ctx, c, y.names(name)[0], "", y.with(name, more...)...)
}

// asyncCalls are the calls that lock.
var asyncCalls = map[string]func(context.Context, *locker.Client, string, string, ...locker.LockOption) <-chan locktest.Outcome{
	"Lock": locktest.LockAsync, "TryLock": locktest.TryLockAsync,
}

// hedging returns a client whose requests pass through a wire, and are hedged soon.
func hedging(t testing.TB, b locktest.Bundle) (*locker.Client, *wire) {
	t.Helper()
	w := new(wire)
	c := locktest.NewClient(t, b.Server.ClientWith(t, w.intercept))
	locker.HedgeAfter(c, 200*time.Millisecond)
	locktest.Unlock(t, locktest.Lock(t, c, "warm", ""))
	return c, w
}

// releases reports whether a request deletes an entry from the queue of name.
func releases(req any, name string) bool {
	return slices.ContainsFunc(writesOf(req), func(w write) bool { return w.name == name && w.deleted != "" })
}

// wantOwnEntry fails the test unless the queue of the last name of l has so many entries, and the one of l was put
// with its token.
func wantOwnEntry(t testing.TB, b locktest.Bundle, l *locker.Lock, entries int) {
	t.Helper()
	resp, err := b.Etcd.Get(locktest.Within(t), l.Key())
	if err != nil || len(resp.Kvs) != 1 || resp.Kvs[0].CreateRevision != l.Token() || resp.Kvs[0].Version != 1 {
		t.Errorf("the token is %d, in etcd there is %v, %v", l.Token(), resp, err)
	}
	if keys := b.Keys(t, locker.DefaultPrefix+l.Name()+"/"); len(keys) != entries || l.Err() != nil {
		t.Errorf("%v in the queue, want %d entries, %v", keys, entries, l.Err())
	}
}

func TestKinds_APutRepeatedAfterALostAnswerIsOneEntry(t *testing.T) {
	t.Parallel()
	for _, y := range ways {
		for verb, call := range asyncCalls {
			t.Run(verb+" "+y.what, func(t *testing.T) {
				t.Parallel()
				b, ctx := locktest.Setup(t), locktest.Within(t)
				c, w := wired(t, b)
				for what, fault := range requestFaults {
					w.fail(1, func(req any) bool { return writes(req, "a") }, fault)
					l := locktest.LockOf(t, call(ctx, c, y.names("a")[0], "", y.with("a")...))
					if w.pending() {
						t.Fatal("the fault did not happen")
					}
					wantEntries(t, b, l)
					wantOwnEntry(t, b, l, 1)
					if _, err := l.Commit(ctx, clientv3.OpPut("committed", what)); err != nil {
						t.Error(err)
					}
					locktest.Unlock(t, l)
					b.WantNoEntries(t)
				}
			})
		}
	}
}

func TestShared_APutRepeatedAfterALostAnswerBesideAReaderOrBehindAWriterIsOneEntry(t *testing.T) {
	t.Parallel()
	for what, fault := range requestFaults {
		t.Run(what, func(t *testing.T) {
			t.Parallel()
			b, ctx := locktest.Setup(t), locktest.Within(t)
			c, w := wired(t, b)
			writesA := func(req any) bool { return writes(req, "a") }
			reader := locktest.Lock(t, b.Client(t), "a", "", locker.WithShared())
			for _, call := range asyncCalls {
				w.fail(1, writesA, fault)
				l := locktest.LockOf(t, call(ctx, c, "a", "", locker.WithShared()))
				wantOwnEntry(t, b, l, 2)
				locktest.Unlock(t, l)
			}
			locktest.Unlock(t, reader)
			writer := locktest.Lock(t, b.Client(t), "a", "")
			w.fail(1, writesA, fault)
			waiter := locktest.LockAsync(ctx, c, "a", "", locker.WithShared())
			b.Queued(t, "a", 2)
			locktest.Unlock(t, writer)
			l := locktest.LockOf(t, waiter)
			wantOwnEntry(t, b, l, 1)
			locktest.Unlock(t, l)
			b.WantNoEntries(t)
		})
	}
}

func TestShared_PutsSentTogetherWhoseAnswerIsLostAreOneEntryEach(t *testing.T) {
	t.Parallel()
	for what, fault := range requestFaults {
		t.Run(what, func(t *testing.T) {
			t.Parallel()
			b, ctx := locktest.Setup(t), locktest.Within(t)
			c, w := wired(t, b)
			for range 3 { // the first of these transactions may be flat
				d := newDam(t, c, w)
				var results []<-chan locktest.Outcome
				for _, name := range []string{"a", "b", "a", "a"} {
					results = append(results, locktest.LockAsync(ctx, c, name, "", locker.WithShared()))
				}
				locktest.Eventually(t, "the writes wait", func() bool { return locker.Gathering(c) == len(results) })
				w.fail(1, func(req any) bool { return writes(req, "a") && writes(req, "b") }, fault)
				d.burst(t)
				var locks []*locker.Lock
				for _, result := range results {
					l := locktest.LockOf(t, result)
					wantOwnEntry(t, b, l, map[string]int{"a": 3, "b": 1}[l.Name()])
					locks = append(locks, l)
				}
				if w.pending() {
					t.Error("the fault did not happen")
				}
				unlockAll(t, locks)
				b.WantNoEntries(t)
			}
		})
	}
}

func TestKinds_APutThatArrivesAfterItsCallWasCanceledLeavesNothing(t *testing.T) {
	t.Parallel()
	for _, y := range ways {
		for verb, call := range asyncCalls {
			t.Run(verb+" "+y.what, func(t *testing.T) {
				t.Parallel()
				b := locktest.Setup(t)
				var late locktest.LateRequests
				var lose atomic.Bool
				c := locktest.NewClient(t, b.Server.ClientWith(t, func(_ context.Context, _ string, req any, call func() error) error {
					if lose.Load() && writes(req, "a") {
						return late.Hold(req)
					}
					return call()
				}))
				locktest.Unlock(t, locktest.Lock(t, c, "warm", ""))
				lose.Store(true)
				before := b.Records(t)
				ctx, cancel := context.WithCancel(locktest.Within(t))
				result := call(ctx, c, y.names("a")[0], "", y.with("a")...)
				locktest.Receive(t, late.First())
				cancel()
				locktest.Want(t, locktest.Receive(t, result).Err, context.Canceled)
				locktest.Eventually(t, "its put is invalidated", func() bool { return b.Records(t) > before })
				if n := late.Arrive(t, b.Etcd); n != 0 {
					t.Errorf("%d puts took effect", n)
				}
				b.WantNoEntries(t)
				lose.Store(false)
				l := y.lock(t, c, "a")
				wantEntries(t, b, l)
				locktest.Unlock(t, l)
				b.WantNoEntries(t)
			})
		}
	}
}

func TestKinds_APutAnsweredAfterItsCallWasCanceledLeavesNothing(t *testing.T) {
	t.Parallel()
	for _, y := range ways {
		t.Run(y.what, func(t *testing.T) {
			t.Parallel()
			b := locktest.Setup(t)
			c, w := wired(t, b)
			for _, call := range asyncCalls {
				for _, committed := range []bool{false, true} {
					g := w.stop(t, committed, func(req any) bool { return writes(req, "a") })
					ctx, cancel := context.WithCancel(locktest.Within(t))
					result := call(ctx, c, y.names("a")[0], "", y.with("a")...)
					locktest.Receive(t, g.arrived)
					cancel()
					locktest.Want(t, locktest.Receive(t, result).Err, context.Canceled)
					g.open()
					l := locktest.Lock(t, c, "a", "") // for which the client has cleaned up
					wantEntries(t, b, l)
					locktest.Unlock(t, l)
					b.WantNoEntries(t)
				}
			}
		})
	}
}

func TestHandOver_BetweenKindsAndWithItsAnswerLostLetsTheNextHold(t *testing.T) {
	t.Parallel()
	faults := map[string]func(context.Context, func() error) error{
		"it is answered": func(_ context.Context, call func() error) error { return call() },
		"it is applied and never answered": func(ctx context.Context, call func() error) error {
			if err := call(); err != nil {
				return err
			}
			return neverAnswered(ctx, call)
		},
	}
	for what, fault := range requestFaults {
		faults[what] = fault
	}
	for _, from := range ways {
		for _, to := range ways {
			if from.what == to.what && from.what != "several names" {
				continue // they hold together, or it is tested elsewhere
			}
			t.Run(from.what+" to "+to.what, func(t *testing.T) {
				t.Parallel()
				b, ctx := locktest.Setup(t), locktest.Within(t)
				c, w := hedging(t, b)
				for what, fault := range faults {
					holder := from.lock(t, c, "a")
					next := to.async(ctx, c, "a")
					locktest.Eventually(t, "it is in line", func() bool { return locker.Waiting(c, "a") == 1 })
					w.fail(1, func(req any) bool { return releases(req, "a") }, fault)
					if err := holder.Unlock(ctx); err != nil {
						t.Errorf("%s: Unlock returned %v", what, err)
					}
					l := locktest.LockOf(t, next)
					if l.Token() <= holder.Token() || w.pending() {
						t.Errorf("%s: token %d after %d, the fault is pending: %v", what, l.Token(), holder.Token(), w.pending())
					}
					wantEntries(t, b, l)
					locktest.Unlock(t, l)
					b.WantNoEntries(t)
				}
			})
		}
	}
}

// The second waiter has been told of its place only after the first has read from the watch of the queue what has
// changed since. It must not take over that watch.
func TestLimited_AKeptWatchThatWasReadFurtherIsOfNoUse(t *testing.T) {
	t.Parallel()
	b, ctx := locktest.Setup(t), locktest.Within(t)
	c, w := wired(t, b)
	locker.KeepWatchesFor(c, locktest.Timeout)
	other := b.Client(t)
	limit := locker.WithLimit(2)
	for range 5 {
		leaving, staying := locktest.Lock(t, other, "a", "", limit), locktest.Lock(t, other, "a", "", limit)
		first := locktest.LockAsync(ctx, c, "a", "", limit)
		b.Queued(t, "a", 3)
		g := w.stop(t, true, func(req any) bool { return writes(req, "a") })
		second := locktest.LockAsync(ctx, c, "a", "", limit)
		locktest.Receive(t, g.arrived)
		locktest.Unlock(t, leaving)
		l := locktest.LockOf(t, first)
		g.open()
		locktest.Unlock(t, staying)
		next := locktest.LockOf(t, second)
		if next.Token() <= l.Token() {
			t.Errorf("token %d after %d", next.Token(), l.Token())
		}
		unlockAll(t, []*locker.Lock{l, next})
		b.WantNoEntries(t)
	}
}

func TestLimited_TwoWaitersOfAClientBehindTheHoldersOfAnotherMissNoWakeUp(t *testing.T) {
	t.Parallel()
	b, ctx := locktest.Setup(t), locktest.Within(t)
	clients := [2]*locker.Client{b.Client(t), b.Client(t)}
	limit := locker.WithLimit(2)
	present := []*locker.Lock{locktest.Lock(t, clients[0], "a", "", limit), locktest.Lock(t, clients[0], "a", "", limit)}
	for i := range 20 {
		c := clients[1-i%2]
		waiters := []<-chan locktest.Outcome{locktest.LockAsync(ctx, c, "a", "", limit), locktest.LockAsync(ctx, c, "a", "", limit)}
		if i%3 > 0 { // otherwise a slot becomes free while they are about to wait
			b.Queued(t, "a", 4)
		}
		unlockAll(t, present)
		present = []*locker.Lock{locktest.LockOf(t, waiters[0]), locktest.LockOf(t, waiters[1])}
	}
	unlockAll(t, present)
	b.WantNoEntries(t)
}

func TestKinds_PutsInFlightWhileTheRecordIsWrittenAgainAreResolved(t *testing.T) {
	t.Parallel()
	for _, committed := range []bool{false, true} {
		t.Run(fmt.Sprint("committed=", committed), func(t *testing.T) {
			t.Parallel()
			b := locktest.Setup(t)
			ctx, cancel := context.WithCancel(locktest.Within(t))
			var doubt sync.Once
			var arrived atomic.Int64
			gate := make(chan struct{})
			open := sync.OnceFunc(func() { close(gate) })
			t.Cleanup(open)
			c := locktest.NewClient(t, b.Server.ClientWith(t, func(_ context.Context, _ string, req any, call func() error) (err error) {
				lost := false
				if writes(req, "doubtful") {
					doubt.Do(func() { lost = true })
				}
				switch {
				case lost:
					cancel()
					return locktest.ErrReplyLost
				case !slices.ContainsFunc(writesOf(req), func(w write) bool { return strings.HasPrefix(w.name, "way") }):
					return call()
				case committed:
					err = call()
				}
				arrived.Add(1)
				<-gate
				if committed {
					return err
				}
				return call()
			}))
			locker.HedgeAfter(c, unhedged)
			locktest.Unlock(t, locktest.Lock(t, c, "warm", ""))
			before := b.Records(t)
			var results []<-chan locktest.Outcome
			for i, y := range ways {
				results = append(results, y.async(locktest.Within(t), c, fmt.Sprint("way", i)))
			}
			locktest.Eventually(t, "they are under way", func() bool { return int(arrived.Load())+locker.Gathering(c) >= len(ways) })
			_, err := c.Lock(ctx, "doubtful", "", locker.And("other", "")) // which is sent alone
			locktest.Want(t, err, context.Canceled)
			locktest.Eventually(t, "the record is written", func() bool { return b.Records(t) > before })
			open()
			for _, result := range results {
				l := locktest.LockOf(t, result)
				wantOwnEntry(t, b, l, 1)
				locktest.Unlock(t, l)
			}
			b.WantNoEntries(t)
		})
	}
}

// waitersOf has a client for each of the ways, which waits behind an exclusive holder.
type waitersOf struct {
	clients []*locker.Client
	holder  *locker.Client
}

func newWaiters(t testing.TB, b locktest.Bundle, proxy *embedtest.Proxy, prepare func(*locker.Client)) *waitersOf {
	w := &waitersOf{holder: b.Client(t)}
	for range ways {
		c := locktest.NewClient(t, proxy.Client(t))
		prepare(c)
		locktest.Unlock(t, locktest.Lock(t, c, "warm", ""))
		w.clients = append(w.clients, c)
	}
	return w
}

// want fails the test unless each waiter gets its turn, although one thing happens before and another after the
// names are released.
func (w *waitersOf) want(t *testing.T, b locktest.Bundle, before, after func()) {
	t.Helper()
	var held []*locker.Lock
	var waiting []<-chan locktest.Outcome
	for i, y := range ways {
		name := fmt.Sprint("way", i)
		held = append(held, locktest.Lock(t, w.holder, name, ""))
		waiting = append(waiting, y.async(locktest.Within(t), w.clients[i], name))
		b.Queued(t, name, 2)
	}
	before()
	for i, waiter := range waiting {
		if len(waiter) > 0 {
			t.Errorf("%s: it did not wait", ways[i].what)
		}
		locktest.Unlock(t, held[i])
	}
	after()
	for i, waiter := range waiting {
		l := locktest.LockOf(t, waiter)
		wantOwnEntry(t, b, l, 1)
		if l.Token() <= held[i].Token() {
			t.Errorf("%s: token %d after %d", ways[i].what, l.Token(), held[i].Token())
		}
		locktest.Unlock(t, l)
	}
	b.WantNoEntries(t)
}

func TestKinds_AWaiterGetsItsTurnWhateverBecomesOfItsWatch(t *testing.T) {
	t.Parallel()
	b := locktest.Setup(t)
	proxy := b.Server.Proxy(t)
	nothing, compact := func() {}, func() { b.Server.Compact(t) }
	w := newWaiters(t, b, proxy, func(*locker.Client) {})
	for what, fault := range map[string]struct{ before, after func() }{
		"compaction":                       {compact, compact},
		"reset before":                     {func() { proxy.Reset() }, nothing},
		"reset after":                      {nothing, func() { proxy.Reset() }},
		"reset and compaction":             {func() { proxy.Reset(); compact() }, compact},
		"released and compacted meanwhile": {func() { proxy.Cut() }, func() { compact(); proxy.Heal() }},
		"frozen for a while":               {func() { proxy.Freeze() }, func() { compact(); proxy.Thaw() }},
	} {
		w.want(t, b, fault.before, fault.after)
		if t.Failed() {
			t.Fatal(what)
		}
	}
}

func TestKinds_AWaiterGetsItsTurnThoughAMemberIsFrozen(t *testing.T) {
	t.Parallel()
	b := locktest.Setup(t, embedtest.WithMembers(3))
	proxy := b.Server.Proxy(t)
	w := newWaiters(t, b, proxy, func(c *locker.Client) { locker.HedgeAfter(c, 100*time.Millisecond) })
	for member := range 3 { // one of them serves the watch
		w.want(t, b, func() { proxy.Freeze(member) }, func() {})
		proxy.Heal()
	}
}

func TestUnlock_OfEveryKindSucceedsThoughEtcdIsFull(t *testing.T) {
	t.Parallel()
	b := locktest.Setup(t, embedtest.WithConfig(func(c *embed.Config) { c.QuotaBackendBytes = 2 << 20 }))
	ctx, cancel := context.WithCancel(locktest.Within(t))
	c, other := b.Client(t), b.Client(t)
	var held []*locker.Lock
	var waiting []<-chan locktest.Outcome
	for i, y := range ways {
		name := fmt.Sprint("way", i)
		held = append(held, y.lock(t, c, name))
		if y.what != "exclusive" {
			waiting = append(waiting, locktest.LockAsync(ctx, other, name, "")) // in etcd's queue
			b.Queued(t, name, 2)
		}
	}
	held = append(held, lockNames(t, c, numbered(100)))
	next := inLine(ctx, t, c, 0, held[0].Name(), "", locker.WithShared())
	b.FillUp(t)
	cancel()
	for _, waiter := range waiting {
		locktest.Want(t, locktest.Receive(t, waiter).Err, context.Canceled)
	}
	locktest.Want(t, locktest.Receive(t, next).Err, context.Canceled)
	next = inLine(locktest.Within(t), t, c, 0, held[0].Name(), "", locker.WithShared())
	unlockAll(t, held)
	locktest.Want(t, locktest.Receive(t, next).Err, rpctypes.ErrNoSpace)
	locktest.Eventually(t, "nothing is queued", func() bool { return len(b.Entries(t)) == 0 })
}

// twoMarks is a resource outside of etcd that keeps the largest token of those who wrote and of those who read.
type twoMarks struct{ writer, reader int64 }

func (m *twoMarks) write(l *locker.Lock) (accepted bool) {
	if accepted = l.Token() >= max(m.writer, m.reader); accepted {
		m.writer = l.Token()
	}
	return accepted
}

func (m *twoMarks) read(l *locker.Lock) (accepted bool) {
	if accepted = l.Token() > m.writer; accepted {
		m.reader = max(m.reader, l.Token())
	}
	return accepted
}

func TestToken_TwoMarksKeepThoseWhoWerePausedFromReadingAndWritingLate(t *testing.T) {
	t.Parallel()
	b := locktest.Setup(t)
	shared := locker.WithShared()
	m := new(twoMarks)
	accept := func(accepted bool) {
		t.Helper()
		if !accepted {
			t.Errorf("a holder was refused, marks %+v", m)
		}
	}
	// A paused reader, whose lock a writer gets.
	paused, reader := locktest.Lock(t, b.Client(t), "a", "", shared), locktest.Lock(t, b.Client(t), "a", "", shared)
	accept(m.read(reader))
	accept(m.read(paused)) // the older of two that hold together
	b.Delete(t, paused)
	locktest.Unlock(t, reader)
	writer := locktest.Lock(t, b.Client(t), "a", "")
	accept(m.write(writer))
	accept(m.write(writer))
	if m.read(paused) {
		t.Error("a late read was accepted")
	}
	// A paused writer, whose lock a reader gets.
	b.Delete(t, writer)
	reader = locktest.Lock(t, b.Client(t), "a", "", shared)
	accept(m.read(reader))
	if m.write(writer) || writer.Token() < m.writer { // which the mark of the writers alone would not prevent
		t.Errorf("a late write was accepted, or only by the token %d", writer.Token())
	}
	locktest.Unlock(t, reader)
	accept(m.write(locktest.Lock(t, b.Client(t), "a", "")))
}

func TestClose_WithEveryKindHeldAndWaitingLeavesNothing(t *testing.T) {
	t.Parallel()
	sessions := map[string]func(t *testing.T, b locktest.Bundle, c *locker.Client) *locker.Session{
		"Client.Close": func(*testing.T, locktest.Bundle, *locker.Client) *locker.Session { return nil },
		"Session.Close": func(t *testing.T, _ locktest.Bundle, c *locker.Client) *locker.Session {
			return locktest.NewSession(t, c)
		},
		"Session.Close of an adopted": func(t *testing.T, b locktest.Bundle, c *locker.Client) *locker.Session {
			s, err := c.AdoptSession(locktest.ConcurrencySession(t, b.Etcd, 60))
			if err != nil {
				t.Fatal(err)
			}
			return s
		},
	}
	for what, open := range sessions {
		t.Run(what, func(t *testing.T) {
			t.Parallel()
			b, ctx := locktest.Setup(t), locktest.Within(t)
			c, other := b.Client(t), b.Client(t)
			closing, opts := c.Close, []locker.LockOption(nil)
			if s := open(t, b, c); s != nil {
				closing, opts = s.Close, []locker.LockOption{locker.WithSession(s)}
			}
			var held []*locker.Lock
			var waiting []<-chan locktest.Outcome
			foreign := 0
			for i, y := range ways {
				name, taken := fmt.Sprint("way", i), fmt.Sprint("taken", i)
				held = append(held, y.lock(t, c, name, opts...))
				for j, behind := range ways {
					if j != i { // otherwise it may hold as well
						waiting = append(waiting, behind.async(ctx, c, name, opts...)) // in the client's line
					}
				}
				locktest.Lock(t, other, taken, "")
				foreign++
				waiting = append(waiting, y.async(ctx, c, taken, opts...)) // in etcd's queue
				b.Queued(t, taken, 2)
				locktest.Eventually(t, "they are in line", func() bool { return locker.Waiting(c, name) == len(ways)-1 })
			}
			began := time.Now()
			if err := closing(); err != nil {
				t.Error(err)
			}
			if took := time.Since(began); took > locktest.Prompt {
				t.Errorf("it took %v", took)
			}
			for _, waiter := range waiting {
				if got := locktest.Receive(t, waiter); got.Lock != nil || !errors.Is(got.Err, locker.ErrClosed) {
					t.Errorf("a waiter returned %v", got.Err)
				}
			}
			if left := b.Entries(t); len(left) != foreign {
				t.Errorf("left in the queues: %v", left)
			}
			for _, l := range held {
				locktest.Want(t, context.Cause(l.Context()), locker.ErrClosed)
				locktest.Want(t, l.Unlock(ctx), locker.ErrClosed)
				if _, err := l.Commit(ctx, clientv3.OpPut("committed", "")); !errors.Is(err, locker.ErrClosed) {
					t.Errorf("Commit returned %v", err)
				}
			}
		})
	}
}
