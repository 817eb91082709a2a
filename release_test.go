package locker_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"runtime"
	"slices"
	"strconv"
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

// mute is an etcd whose transactions are not answered while it is silent.
type mute struct {
	locktest.Bundle
	silent atomic.Bool
}

// newMute returns one, and a Client over it whose TTL is longer than a test waits.
func newMute(t *testing.T) (*mute, *locker.Client) {
	m := &mute{Bundle: locktest.Setup(t)}
	etcd := m.Server.ClientWith(t, func(ctx context.Context, method string, _ any, call func() error) error {
		if method == "/etcdserverpb.KV/Txn" && m.silent.Load() {
			<-ctx.Done()
			return ctx.Err()
		}
		return call()
	})
	c := locktest.NewClient(t, etcd, locker.WithTTL(3*locktest.Timeout)) // a call that waits for the TTL fails its test
	t.Cleanup(func() { m.silent.Store(false) })
	return m, c
}

func TestUnlock_EndsByTheDeadlineOfAContextOfTheHold(t *testing.T) {
	t.Parallel()
	m, c := newMute(t)
	contexts := map[string]func(*locker.Lock) (context.Context, context.CancelFunc){
		"of the hold": func(l *locker.Lock) (context.Context, context.CancelFunc) {
			return context.WithTimeout(l.Context(), 200*time.Millisecond)
		},
		"with values": func(l *locker.Lock) (context.Context, context.CancelFunc) {
			return context.WithTimeout(context.WithValue(l.Context(), contextKey{}, "v"), 200*time.Millisecond)
		},
		"of another hold, released meanwhile": func(*locker.Lock) (context.Context, context.CancelFunc) {
			other := locktest.Lock(t, c, "other", "v")
			time.AfterFunc(200*time.Millisecond, func() { _ = other.Unlock(t.Context()) })
			return other.Context(), func() {}
		},
	}
	for what, derive := range contexts {
		l := locktest.Lock(t, c, what, "v")
		ctx, cancel := derive(l)
		m.silent.Store(true)
		err := locktest.Receive(t, locktest.Async(func() error { return l.Unlock(ctx) }))
		cancel()
		m.silent.Store(false)
		if !errors.Is(err, context.DeadlineExceeded) && (what == "of the hold" || !errors.Is(err, locker.ErrReleased)) {
			t.Errorf("%s: %v", what, err)
		}
		locktest.Want(t, l.Err(), locker.ErrReleased)
		m.Queued(t, what, 0) // the removal goes on in the background
	}
}

func TestUnlock_EndsByTheDeadlineOfTheContextOfDo(t *testing.T) {
	t.Parallel()
	m, c := newMute(t)
	result := make(chan error, 1)
	go func() {
		_ = c.Do(locktest.Within(t), "a", "v", func(ctx context.Context, l *locker.Lock) error {
			m.silent.Store(true)
			ctx, cancel := context.WithTimeout(ctx, 200*time.Millisecond)
			defer cancel()
			result <- l.Unlock(ctx)
			m.silent.Store(false)
			return nil
		})
	}()
	locktest.Want(t, locktest.Receive(t, result), context.DeadlineExceeded)
	m.Queued(t, "a", 0)
}

func TestUnlock_DoesNotWaitWithAContextThatHadEnded(t *testing.T) {
	t.Parallel()
	m, c := newMute(t)
	other := locktest.Lock(t, c, "other", "v")
	locktest.Unlock(t, other)
	l := locktest.Lock(t, c, "a", "v")
	m.silent.Store(true)
	result := locktest.Async(func() error { return l.Unlock(other.Context()) })
	locktest.Want(t, locktest.Receive(t, result), locker.ErrReleased) // the cause of the context
	locktest.Want(t, l.Err(), locker.ErrReleased)
	m.silent.Store(false)
	m.Queued(t, "a", 0)
}

func TestUnlock_WaitsWithAContextThatEndsByIt(t *testing.T) {
	t.Parallel()
	b := locktest.Setup(t)
	c, other := b.Client(t), b.Client(t)
	for i := range 20 {
		outer := locktest.Lock(t, c, "outer", "v")
		err := c.Do(outer.Context(), "inner", "v", func(ctx context.Context, l *locker.Lock) error {
			ctx, cancel := context.WithTimeout(ctx, locktest.Timeout)
			defer cancel()
			if i%2 == 0 {
				l = outer
			}
			if err := l.Unlock(ctx); err != nil {
				return err
			}
			next, err := other.TryLock(locktest.Within(t), l.Name(), "next")
			if err != nil {
				return err
			}
			return next.Unlock(locktest.Within(t))
		})
		if err != nil {
			t.Fatal(err)
		}
		_ = outer.Unlock(locktest.Within(t))
	}
}

func TestHandOver_InsideAClientIsOneTransaction(t *testing.T) {
	t.Parallel()
	b, ctx := locktest.Setup(t), locktest.Within(t)
	c, w := wired(t, b)
	holder := locktest.Lock(t, c, "a", "")
	var line []<-chan locktest.Outcome
	for i := range 6 {
		line = append(line, inLine(ctx, t, c, i, "a", fmt.Sprint(i)))
	}
	requests := w.count()
	var former string // the key of the holder before
	for i, waiter := range line {
		before := len(w.transactions(0))
		locktest.Unlock(t, holder)
		next := locktest.LockOf(t, waiter)
		if sent := w.transactions(before); len(sent) != 1 || len(sent[0]) != 1 || (sent[0][0] != write{"a", next.Key(), holder.Key()}) {
			t.Errorf("handed over by %v", sent)
		}
		if next.Value() != fmt.Sprint(i) || next.Token() <= holder.Token() {
			t.Errorf("%q with token %d after token %d", next.Value(), next.Token(), holder.Token())
		}
		if next.Key() == holder.Key() || i > 0 && next.Key() != former {
			t.Errorf("the key %s after %s and %s", next.Key(), former, holder.Key())
		}
		b.WantHeldAlone(t, next)
		holder, former = next, holder.Key()
	}
	if n := w.count() - requests; n != len(line) {
		t.Errorf("%d requests for %d hand-overs", n, len(line))
	}
	locktest.Unlock(t, holder)
	b.WantNoEntries(t)
}

func TestHandOver_InsideAClientOvertakesNobodyInEtcdsQueue(t *testing.T) {
	t.Parallel()
	b, ctx := locktest.Setup(t), locktest.Within(t)
	c := b.Client(t)
	present := locktest.Lock(t, c, "a", "")
	first := locktest.LockAsync(ctx, b.Client(t), "a", "remote 1")
	b.Queued(t, "a", 2)
	local := []<-chan locktest.Outcome{inLine(ctx, t, c, 0, "a", "local 1"), inLine(ctx, t, c, 1, "a", "local 2"), inLine(ctx, t, c, 2, "a", "local 3")}
	locktest.Unlock(t, present)
	present = locktest.LockOf(t, first) // with the first of the line behind it
	b.Queued(t, "a", 2)
	second := locktest.LockAsync(ctx, b.Client(t), "a", "remote 2")
	b.Queued(t, "a", 3)
	wantServedInOrder(t, present, []<-chan locktest.Outcome{local[0], second, local[1], local[2]})
}

func TestHandOver_TheNextMayBeCanceledAtAnyMoment(t *testing.T) {
	t.Parallel()
	tired := errors.New("tired")
	moments := map[string]func(t *testing.T, w *wire, holder *locker.Lock, cancelNext func()){
		"before": func(t *testing.T, _ *wire, holder *locker.Lock, cancelNext func()) {
			cancelNext()
			locktest.Unlock(t, holder)
		},
		"as it begins": func(t *testing.T, _ *wire, holder *locker.Lock, cancelNext func()) {
			go cancelNext()
			locktest.Unlock(t, holder)
		},
		"as it ends": func(t *testing.T, _ *wire, holder *locker.Lock, cancelNext func()) {
			locktest.Unlock(t, holder)
			cancelNext()
		},
	}
	for when, committed := range map[string]bool{"before it is sent": false, "before it is answered": true} {
		moments[when] = func(t *testing.T, w *wire, holder *locker.Lock, cancelNext func()) {
			g := w.stop(t, committed, func(req any) bool { return handsOver(req, "a") })
			go func() {
				<-g.arrived
				cancelNext()
				g.open()
			}()
			locktest.Unlock(t, holder)
		}
	}
	for when, release := range moments {
		t.Run(when, func(t *testing.T) {
			t.Parallel()
			b := locktest.Setup(t)
			c, w := wired(t, b, locker.WithTTL(locktest.Unhurried))
			for range 20 {
				holder := locktest.Lock(t, c, "a", "")
				ctx, cancel := context.WithCancelCause(locktest.Within(t))
				nextInLine := inLine(ctx, t, c, 0, "a", "next")
				behind := inLine(locktest.Within(t), t, c, 1, "a", "behind")
				ended := make(chan time.Time, 1)
				release(t, w, holder, func() { ended <- time.Now(); cancel(tired) })
				got := locktest.Receive(t, nextInLine)
				if took := time.Since(locktest.Receive(t, ended)); took > locktest.Prompt {
					t.Errorf("the next returned after %v", took)
				}
				if got.Err == nil {
					b.WantHeldAlone(t, got.Lock) // it was too late to cancel
					locktest.Unlock(t, got.Lock)
				} else {
					locktest.Want(t, got.Err, tired)
				}
				next := locktest.LockOf(t, behind)
				b.WantHeldAlone(t, next)
				locktest.Unlock(t, next)
				b.WantNoEntries(t)
			}
		})
	}
}

func TestHandOver_TheNextWithItsOwnSessionHoldsOnThatSession(t *testing.T) {
	t.Parallel()
	b, ctx := locktest.Setup(t), locktest.Within(t)
	c, w := wired(t, b)
	s := locktest.NewSession(t, c)
	holder := locktest.Lock(t, c, "a", "")
	line := []<-chan locktest.Outcome{inLine(ctx, t, c, 0, "a", "", locker.WithSession(s)), inLine(ctx, t, c, 1, "a", "")}
	before := len(w.transactions(0))
	locktest.Unlock(t, holder)
	own := locktest.LockOf(t, line[0])
	if got := locktest.Get(t, c, "a"); got.Lease != s.Lease() || got.Token != own.Token() {
		t.Errorf("%+v holds, want lease %d", got, s.Lease())
	}
	locktest.Unlock(t, own)
	shared := locktest.LockOf(t, line[1])
	if got := locktest.Get(t, c, "a"); got.Lease == s.Lease() || got.Token != shared.Token() {
		t.Errorf("%+v holds, want another lease than %d", got, s.Lease())
	}
	if sent := w.transactions(before); len(sent) != 2 {
		t.Errorf("handed over by %v", sent)
	}
	if err := s.Close(); err != nil { // none of its entries is left
		t.Error(err)
	}
	b.WantHeldAlone(t, shared)
}

func TestHandOver_TheNextWhoseSessionIsUnusableIsPassedOver(t *testing.T) {
	t.Parallel()
	b, ctx := locktest.Setup(t), locktest.Within(t)
	c, _ := wired(t, b)
	full, closed, gone := locktest.NewSession(t, c), locktest.NewSession(t, c), locktest.NewSession(t, c)
	fill(t, c, "full", 1000, locker.WithSession(full))
	for what, test := range map[string]struct {
		session *locker.Session
		spoil   func()
		want    error
	}{
		"full":   {full, func() {}, locker.ErrSessionFull},
		"closed": {closed, func() { _ = closed.Close() }, locker.ErrClosed},
		"gone":   {gone, func() { b.Server.ExpireLease(t, gone.Lease()) }, locker.ErrLost},
	} {
		holder := locktest.Lock(t, c, "a", "")
		nextInLine := inLine(ctx, t, c, 0, "a", "", locker.WithSession(test.session))
		behind := locktest.LockAsync(ctx, c, "a", "behind")
		locktest.Eventually(t, what+": it stands in line", func() bool { return locker.Waiting(c, "a") == 2 })
		test.spoil()
		locktest.Unlock(t, holder)
		locktest.Want(t, locktest.Receive(t, nextInLine).Err, test.want)
		next := locktest.LockOf(t, behind)
		b.WantHeldAlone(t, next)
		locktest.Unlock(t, next)
		b.Queued(t, "a", 0)
	}
}

func TestHandOver_WithinAFullSessionSucceeds(t *testing.T) {
	t.Parallel()
	b, ctx := locktest.Setup(t), locktest.Within(t)
	c, _ := wired(t, b)
	s := locktest.NewSession(t, c)
	fill(t, c, "full", 999, locker.WithSession(s))
	holder := locktest.Lock(t, c, "a", "", locker.WithSession(s))
	nextInLine := inLine(ctx, t, c, 0, "a", "", locker.WithSession(s))
	locktest.Unlock(t, holder)
	b.WantHeldAlone(t, locktest.LockOf(t, nextInLine))
	_, err := c.TryLock(ctx, "one more", "", locker.WithSession(s))
	locktest.Want(t, err, locker.ErrSessionFull)
}

func TestHandOver_LeavesNoGapInWatchAndCache(t *testing.T) {
	t.Parallel()
	b, ctx := locktest.Setup(t), locktest.Within(t)
	c, w := wired(t, b)
	k := locktest.NewCache(t, b.Client(t), "")
	holder := locktest.Lock(t, c, "a", "first")
	r := locktest.Read(t, b.Client(t).Watch(ctx, "a"))
	r.Held(holder)
	done := make(chan struct{})
	missing := make(chan bool, 1)
	locktest.Eventually(t, "the cache has it", func() bool { _, ok := k.Get("a"); return ok })
	go func() {
		gap := false
		for {
			select {
			case <-done:
				missing <- gap
				return
			default:
				_, ok := k.Get("a")
				gap = gap || !ok
			}
		}
	}()
	const n = 20
	before := len(w.transactions(0))
	for range n {
		nextInLine := inLine(ctx, t, c, 0, "a", "")
		locktest.Unlock(t, holder)
		holder = locktest.LockOf(t, nextInLine)
		r.Held(holder) // the very next state
		locktest.Eventually(t, "the cache has it", func() bool { got, _ := k.Get("a"); return got.Token == holder.Token() })
	}
	close(done)
	if locktest.Receive(t, missing) {
		t.Error("the cache had no holder for a while")
	}
	if sent := w.transactions(before); len(sent) != n {
		t.Errorf("%d hand-overs by %v", n, sent)
	}
}

func TestHandOver_WithoutSpaceIsAReleaseAndARefusal(t *testing.T) {
	t.Parallel()
	b, ctx := locktest.Setup(t, embedtest.WithConfig(func(c *embed.Config) { c.QuotaBackendBytes = 2 << 20 })), locktest.Within(t)
	c, _ := wired(t, b)
	holder := locktest.Lock(t, c, "a", "")
	line := []<-chan locktest.Outcome{inLine(ctx, t, c, 0, "a", ""), inLine(ctx, t, c, 1, "a", "")}
	b.FillUp(t)
	locktest.Unlock(t, holder)
	for _, waiter := range line {
		locktest.Want(t, locktest.Receive(t, waiter).Err, rpctypes.ErrNoSpace)
	}
	b.WantNoEntries(t)
}

// sharedHold returns two locks that share a hold of "a", one after the other: the former is released.
func sharedHold(t *testing.T, b locktest.Bundle, opts ...locker.Option) (c *locker.Client, w *wire, former, present *locker.Lock) {
	t.Helper()
	c, w = wired(t, b, append([]locker.Option{locker.WithLocalHandover(10)}, opts...)...)
	former = locktest.Lock(t, c, "a", "")
	nextInLine := inLine(locktest.Within(t), t, c, 0, "a", "")
	locktest.Unlock(t, former)
	present = locktest.LockOf(t, nextInLine)
	if present.Token() != former.Token() {
		t.Fatalf("token %d after %d: the hold is not shared", present.Token(), former.Token())
	}
	return c, w, former, present
}

func TestLocalHandover_UpToTheLimitShareAHoldWithoutARequest(t *testing.T) {
	t.Parallel()
	b, ctx := locktest.Setup(t), locktest.Within(t)
	const n = 4
	c, w := wired(t, b, locker.WithLocalHandover(n))
	present := locktest.Lock(t, c, "a", "")
	var line []<-chan locktest.Outcome
	for i := range 3*n - 1 {
		line = append(line, inLine(ctx, t, c, i, "a", ""))
	}
	for i, waiter := range line {
		before := w.count()
		locktest.Unlock(t, present)
		next := locktest.LockOf(t, waiter)
		locktest.Want(t, context.Cause(present.Context()), locker.ErrReleased)
		requests := w.count() - before
		if (i+1)%n > 0 && (next.Token() != present.Token() || next.Key() != present.Key() || requests != 0) {
			t.Errorf("lock %d has token %d after %d, by %d requests", i+1, next.Token(), present.Token(), requests)
		}
		if (i+1)%n == 0 && (next.Token() <= present.Token() || requests != 1) {
			t.Errorf("lock %d has token %d after %d, by %d requests", i+1, next.Token(), present.Token(), requests)
		}
		b.WantHeldAlone(t, next)
		present = next
	}
	locktest.Unlock(t, present)
	b.WantNoEntries(t)
}

func TestLocalHandover_ByDefaultEachHoldHasATokenOfItsOwn(t *testing.T) {
	t.Parallel()
	b, ctx := locktest.Setup(t), locktest.Within(t)
	for name, opts := range map[string][]locker.Option{"by default": nil, "with 1": {locker.WithLocalHandover(1)}} {
		c := b.Client(t, opts...)
		present := locktest.Lock(t, c, "a", "")
		for range 3 {
			nextInLine := inLine(ctx, t, c, 0, "a", "")
			locktest.Unlock(t, present)
			next := locktest.LockOf(t, nextInLine)
			if next.Token() <= present.Token() {
				t.Errorf("%s: token %d after %d", name, next.Token(), present.Token())
			}
			present = next
		}
		locktest.Unlock(t, present)
	}
}

func TestLocalHandover_AnotherClientHoldsOnceTheLimitIsReached(t *testing.T) {
	t.Parallel()
	b, ctx := locktest.Setup(t), locktest.Within(t)
	const n = 3
	c := b.Client(t, locker.WithLocalHandover(n))
	present := locktest.Lock(t, c, "a", "")
	var line []<-chan locktest.Outcome
	for i := range 2*n + 1 {
		line = append(line, inLine(ctx, t, c, i, "a", ""))
	}
	other := locktest.LockAsync(ctx, b.Client(t), "a", "")
	b.Queued(t, "a", 2)
	order := append(append(append([]<-chan locktest.Outcome{}, line[:n-1]...), other), line[n-1:]...)
	for i, waiter := range order {
		for _, later := range order[i:] {
			select {
			case got := <-later:
				t.Fatalf("a waiter was served before waiter %d: %v", i, got.Err)
			default:
			}
		}
		locktest.Unlock(t, present)
		present = locktest.LockOf(t, waiter)
	}
	locktest.Unlock(t, present)
}

func TestLocalHandover_SharesAHoldForTheSameValueAndSessionOnly(t *testing.T) {
	t.Parallel()
	b, ctx := locktest.Setup(t), locktest.Within(t)
	c, _ := wired(t, b, locker.WithLocalHandover(100))
	s, other := locktest.NewSession(t, c), locktest.NewSession(t, c)
	on := func(s *locker.Session) []locker.LockOption { return []locker.LockOption{locker.WithSession(s)} }
	for what, test := range map[string]struct {
		value    string // of the second; the first has "v"
		options  [2][]locker.LockOption
		set      string // by the first
		together bool
	}{
		"the same":                           {value: "v", together: true},
		"other values":                       {value: "w"},
		"the same session":                   {value: "v", options: [2][]locker.LockOption{on(s), on(s)}, together: true},
		"other sessions":                     {value: "v", options: [2][]locker.LockOption{on(s), on(other)}},
		"a session and a shared":             {value: "v", options: [2][]locker.LockOption{on(s), nil}},
		"a shared and a session":             {value: "v", options: [2][]locker.LockOption{nil, on(s)}},
		"after SetValue":                     {value: "v", set: "w"},
		"after SetValue to the second value": {value: "w", set: "w"},
		"after SetValue to its own value":    {value: "v", set: "v"},
	} {
		holder := locktest.Lock(t, c, "a", "v", test.options[0]...)
		if test.set != "" {
			if err := holder.SetValue(ctx, test.set); err != nil {
				t.Fatal(err)
			}
		}
		nextInLine := inLine(ctx, t, c, 0, "a", test.value, test.options[1]...)
		locktest.Unlock(t, holder)
		next := locktest.LockOf(t, nextInLine)
		if together := next.Token() == holder.Token(); together != test.together || next.Token() < holder.Token() {
			t.Errorf("%s: token %d after %d", what, next.Token(), holder.Token())
		}
		b.WantHeldAlone(t, next)
		if got := locktest.Get(t, c, "a"); got.Value != test.value || got.Value != next.Value() {
			t.Errorf("%s: %+v holds", what, got)
		}
		locktest.Unlock(t, next)
	}
}

func TestLocalHandover_AStaleHandleLeavesTheNextAlone(t *testing.T) {
	t.Parallel()
	b, ctx := locktest.Setup(t), locktest.Within(t)
	_, w, former, present := sharedHold(t, b)
	before := w.count()
	locktest.Want(t, former.Unlock(ctx), locker.ErrReleased)
	locktest.Want(t, former.Err(), locker.ErrReleased)
	locktest.Want(t, former.SetValue(ctx, "stale"), locker.ErrReleased)
	_, err := former.Commit(ctx, clientv3.OpPut("written", "stale"))
	locktest.Want(t, err, locker.ErrReleased)
	if n := w.count() - before; n != 0 {
		t.Errorf("the stale handle made %d requests", n)
	}
	b.WantHeldAlone(t, present)
	if err := present.SetValue(ctx, "new"); err != nil || locktest.Get(t, b.Client(t), "a").Value != "new" {
		t.Error(err)
	}
	if _, err := present.Commit(ctx, clientv3.OpPut("written", "fresh")); err != nil || b.Value(t, "written") != "fresh" {
		t.Error(err)
	}
	locktest.Unlock(t, present)
	b.WantNoEntries(t)
}

func TestLocalHandover_TheLossOfItsSessionEndsASharedHold(t *testing.T) {
	t.Parallel()
	b, ctx := locktest.Setup(t), locktest.Within(t)
	c, _, former, present := sharedHold(t, b, locker.WithTTL(locktest.Brief))
	behind := locktest.LockAsync(ctx, c, "a", "") // on a session that is yet to come
	b.Server.ExpireLease(t, holderLease(t, c, present))
	locktest.Receive(t, present.Context().Done())
	locktest.WantLost(t, context.Cause(present.Context()), present, locker.Revoked)
	locktest.WantLost(t, present.Unlock(ctx), present, locker.Revoked)
	locktest.Want(t, former.Err(), locker.ErrReleased)
	if next := locktest.LockOf(t, behind); next.Token() <= present.Token() {
		t.Errorf("token %d after %d", next.Token(), present.Token())
	}
}

func TestLocalHandover_ADeletedEntryEndsASharedHold(t *testing.T) {
	t.Parallel()
	b := locktest.Setup(t)
	c, _, former, present := sharedHold(t, b, locker.WithTTL(locktest.Brief))
	b.Delete(t, present)
	locktest.Receive(t, present.Context().Done()) // by the audit
	locktest.WantLost(t, context.Cause(present.Context()), present, locker.Deleted)
	locktest.Want(t, former.Err(), locker.ErrReleased)
	locktest.Unlock(t, locktest.Lock(t, c, "a", ""))
}

func TestLocalHandover_ADeletionThatNobodyNoticedIsAnErrorOfTheLast(t *testing.T) {
	t.Parallel()
	b, ctx := locktest.Setup(t), locktest.Within(t)
	c, _, _, present := sharedHold(t, b, locker.WithTTL(locktest.Unhurried))
	b.Delete(t, present)
	nextInLine := inLine(ctx, t, c, 0, "a", "")
	locktest.Unlock(t, present)
	last := locktest.LockOf(t, nextInLine)
	locktest.WantLost(t, last.Unlock(ctx), last, locker.Deleted)
	locktest.Unlock(t, locktest.Lock(t, c, "a", ""))
	b.WantNoEntries(t)
}

func TestLocalHandover_TheNextMayBeCanceledAtAnyMoment(t *testing.T) {
	t.Parallel()
	b, tired := locktest.Setup(t), errors.New("tired")
	c, _ := wired(t, b, locker.WithLocalHandover(1000))
	held, ended := 0, 0
	for i := range 100 {
		holder := locktest.Lock(t, c, "a", "")
		ctx, cancel := context.WithCancelCause(locktest.Within(t))
		nextInLine := inLine(ctx, t, c, 0, "a", "")
		behind := inLine(locktest.Within(t), t, c, 1, "a", "")
		if i%4 == 0 {
			cancel(tired)
		}
		end := time.AfterFunc(time.Duration(i%20*5)*time.Microsecond, func() { cancel(tired) })
		locktest.Unlock(t, holder)
		if got := locktest.Receive(t, nextInLine); got.Err == nil {
			held++
			b.WantHeldAlone(t, got.Lock)
			locktest.Unlock(t, got.Lock)
		} else {
			ended++
			locktest.Want(t, got.Err, tired)
		}
		next := locktest.LockOf(t, behind)
		b.WantHeldAlone(t, next)
		locktest.Unlock(t, next)
		end.Stop()
		cancel(nil)
	}
	b.WantNoEntries(t)
	if held == 0 || ended == 0 {
		t.Errorf("%d held, %d were canceled: the test proves nothing", held, ended)
	}
}

func TestClose_EndsASharedHoldAndThoseInLine(t *testing.T) {
	t.Parallel()
	b, ctx := locktest.Setup(t), locktest.Within(t)
	c, _, former, present := sharedHold(t, b)
	var line []<-chan locktest.Outcome
	for i := range 5 {
		line = append(line, inLine(ctx, t, c, i, "a", ""))
	}
	if err := c.Close(); err != nil {
		t.Error(err)
	}
	locktest.Want(t, present.Err(), locker.ErrClosed)
	locktest.Want(t, present.Unlock(ctx), locker.ErrClosed)
	locktest.Want(t, former.Err(), locker.ErrReleased)
	for _, waiter := range line {
		locktest.Want(t, locktest.Receive(t, waiter).Err, locker.ErrClosed)
	}
	if left := b.Keys(t, ""); len(left) > 0 || len(b.Leases(t)) > 0 {
		t.Errorf("left: %v and %d leases", left, len(b.Leases(t)))
	}
}

func TestClose_WhileAHoldIsHandedOverLeavesNothing(t *testing.T) {
	t.Parallel()
	b, ctx := locktest.Setup(t), locktest.Within(t)
	for i := range 10 {
		c, err := locker.New(b.Server.Client(t), locker.WithLocalHandover(1+i*5))
		if err != nil {
			t.Fatal(err)
		}
		holds := make(chan struct{})
		var workers sync.WaitGroup
		for range 8 {
			workers.Go(func() {
				for {
					l, err := c.Lock(ctx, "a", "")
					if err != nil {
						locktest.Want(t, err, locker.ErrClosed)
						return
					}
					select {
					case holds <- struct{}{}:
					default:
					}
					if err := l.Unlock(ctx); err != nil {
						locktest.Want(t, err, locker.ErrClosed)
					}
				}
			})
		}
		for range 5 {
			locktest.Receive(t, holds)
		}
		if err := c.Close(); err != nil {
			t.Error(err)
		}
		workers.Wait()
		if left := b.Keys(t, ""); len(left) > 0 || len(b.Leases(t)) > 0 {
			t.Errorf("left: %v and %d leases", left, len(b.Leases(t)))
		}
	}
}

func TestLocalHandover_ThoseThatShareAHoldExcludeEachOther(t *testing.T) {
	t.Parallel()
	b, ctx := locktest.Setup(t), locktest.Within(t)
	clients := []*locker.Client{b.Client(t, locker.WithLocalHandover(7)), b.Client(t, locker.WithLocalHandover(100)), b.Client(t)}
	inside, token := make(chan struct{}, 1), int64(0)
	inside <- struct{}{}
	var workers sync.WaitGroup
	for i := range 12 {
		workers.Go(func() {
			for j := range 20 {
				l, err := clients[i%len(clients)].Lock(ctx, "a", fmt.Sprint(j%5/4))
				if err != nil {
					t.Error(err)
					return
				}
				select {
				case <-inside:
				default:
					t.Error("two are inside")
					return
				}
				if l.Token() < token {
					t.Errorf("token %d after %d", l.Token(), token)
				}
				token = l.Token()
				inside <- struct{}{}
				if err := l.Unlock(ctx); err != nil {
					t.Error(err)
				}
			}
		})
	}
	workers.Wait()
	b.WantNoEntries(t)
}

// howMany returns how many calls are canceled at once. With LOCKER_MANY=100000 the time that takes is
// checked too. The race detector supports no more than 8128 goroutines.
func howMany() int {
	n, err := strconv.Atoi(os.Getenv("LOCKER_MANY"))
	switch {
	case err == nil:
		return n
	case locktest.RaceDetector:
		return 2_000
	}
	return 30_000
}

// cancelAtOnce makes n calls with one context, which ends once ready has returned, and returns
// how much later the last of them returned.
func cancelAtOnce(t *testing.T, n int, call func(ctx context.Context, i int) error, ready func()) time.Duration {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	late := make([]time.Duration, n)
	var ended time.Time // set before ctx ends
	var calls sync.WaitGroup
	for i := range n {
		calls.Go(func() {
			if err := call(ctx, i); err == nil {
				t.Error("a call succeeded")
			}
			late[i] = time.Since(ended)
		})
	}
	ready()
	runtime.GC() // of what the preparations left
	ended = time.Now()
	cancel()
	calls.Wait()
	slices.Sort(late)
	t.Logf("%d calls returned after %v (median), %v (last)", n, late[n/2], late[n-1])
	return late[n-1]
}

// wantSoon fails the test if the calls returned so late that each must have waited for all others:
// with 100,000 of them, that takes a quarter of a minute.
func wantSoon(t *testing.T, late time.Duration) {
	t.Helper()
	if os.Getenv("LOCKER_MANY") != "" && late > 5*time.Second {
		t.Errorf("the last returned after %v", late)
	}
}

func TestLock_ManyThatWaitMayBeCanceledAtOnce(t *testing.T) {
	t.Parallel()
	b, n := locktest.Setup(t), howMany()
	c := b.Client(t, locker.WithTTL(time.Minute))
	l := locktest.Lock(t, c, "a", "v")
	wantSoon(t, cancelAtOnce(t, n, func(ctx context.Context, _ int) error {
		_, err := c.Lock(ctx, "a", "v")
		return err
	}, func() {
		locktest.Eventually(t, "all are in line", func() bool { return locker.Waiting(c, "a") == n })
	}))
	if got := locker.Waiting(c, "a"); got != 0 || l.Err() != nil {
		t.Errorf("%d are in line, %v", got, l.Err())
	}
	locktest.Unlock(t, l)
}

func TestUnlock_ManyMayBeCanceledAtOnce(t *testing.T) {
	t.Parallel()
	m, c := newMute(t) // answers again when the test is over
	locks := make(chan *locker.Lock, howMany())
	var calls sync.WaitGroup
	for i := range cap(locks) {
		calls.Go(func() {
			if l, err := c.Lock(t.Context(), strconv.Itoa(i), "v"); err != nil {
				t.Error(err)
			} else {
				locks <- l
			}
		})
	}
	calls.Wait()
	close(locks)
	var holds []*locker.Lock
	for l := range locks {
		holds = append(holds, l)
	}
	m.silent.Store(true)
	wantSoon(t, cancelAtOnce(t, len(holds), func(ctx context.Context, i int) error {
		return holds[i].Unlock(ctx)
	}, func() {
		for _, l := range holds {
			locktest.Receive(t, l.Context().Done()) // all have begun
		}
	}))
}
