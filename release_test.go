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
	bundle
	silent atomic.Bool
}

// newMute returns a Client over one. Its TTL is longer than a test waits.
func newMute(t *testing.T) (*mute, *locker.Client) {
	m := &mute{bundle: setup(t)}
	etcd := m.Server.ClientWith(t, func(ctx context.Context, method string, _ any, call func() error) error {
		if method == "/etcdserverpb.KV/Txn" && m.silent.Load() {
			<-ctx.Done()
			return ctx.Err()
		}
		return call()
	})
	c := newClient(t, etcd, locker.WithTTL(2*time.Minute))
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
			other := lock(t, c, "other", "v")
			time.AfterFunc(200*time.Millisecond, func() { _ = other.Unlock(t.Context()) })
			return other.Context(), func() {}
		},
	}
	for what, derive := range contexts {
		l := lock(t, c, what, "v")
		ctx, cancel := derive(l)
		m.silent.Store(true)
		result := make(chan error, 1)
		go func() { result <- l.Unlock(ctx) }()
		err := receive(t, result)
		cancel()
		m.silent.Store(false)
		if !errors.Is(err, context.DeadlineExceeded) && (what == "of the hold" || !errors.Is(err, locker.ErrReleased)) {
			t.Errorf("%s: %v", what, err)
		}
		want(t, l.Err(), locker.ErrReleased)
		m.Queued(t, what, 0) // the removal goes on
	}
}

func TestUnlock_EndsByTheDeadlineOfTheContextOfDo(t *testing.T) {
	t.Parallel()
	m, c := newMute(t)
	result := make(chan error, 1)
	go func() {
		_ = c.Do(within(t), "a", "v", func(ctx context.Context, l *locker.Lock) error {
			m.silent.Store(true)
			ctx, cancel := context.WithTimeout(ctx, 200*time.Millisecond)
			defer cancel()
			result <- l.Unlock(ctx)
			m.silent.Store(false)
			return nil
		})
	}()
	want(t, receive(t, result), context.DeadlineExceeded)
	m.Queued(t, "a", 0)
}

func TestUnlock_DoesNotWaitWithAContextThatHadEnded(t *testing.T) {
	t.Parallel()
	m, c := newMute(t)
	other := lock(t, c, "other", "v")
	unlock(t, other)
	l := lock(t, c, "a", "v")
	m.silent.Store(true)
	result := make(chan error, 1)
	go func() { result <- l.Unlock(other.Context()) }()
	want(t, receive(t, result), locker.ErrReleased) // the cause of the context
	want(t, l.Err(), locker.ErrReleased)
	m.silent.Store(false)
	m.Queued(t, "a", 0)
}

func TestUnlock_WaitsWithAContextThatEndsByIt(t *testing.T) {
	t.Parallel()
	b := setup(t)
	c, other := b.Client(t), b.Client(t)
	for i := range 20 {
		outer := lock(t, c, "outer", "v")
		err := c.Do(outer.Context(), "inner", "v", func(ctx context.Context, l *locker.Lock) error {
			ctx, cancel := context.WithTimeout(ctx, patience)
			defer cancel()
			if i%2 == 0 {
				l = outer
			}
			if err := l.Unlock(ctx); err != nil {
				return err
			}
			next, err := other.TryLock(within(t), l.Name(), "next")
			if err != nil {
				return err
			}
			return next.Unlock(within(t))
		})
		if err != nil {
			t.Fatal(err)
		}
		_ = outer.Unlock(within(t))
	}
}

func TestHandOver_InsideAClientIsOneTransaction(t *testing.T) {
	t.Parallel()
	b, ctx := setup(t), within(t)
	c, w := b.wired(t)
	holder := lock(t, c, "a", "")
	var line []<-chan outcome
	for i := range 6 {
		line = append(line, inLine(ctx, t, c, i, "a", fmt.Sprint(i)))
	}
	requests := w.count()
	var former string // the key of the holder before
	for i, waiter := range line {
		before := len(w.transactions(0))
		unlock(t, holder)
		next := lockOf(t, waiter)
		if sent := w.transactions(before); len(sent) != 1 || len(sent[0]) != 1 || (sent[0][0] != write{"a", next.Key(), holder.Key()}) {
			t.Errorf("handed over by %v", sent)
		}
		if next.Value() != fmt.Sprint(i) || next.Token() <= holder.Token() {
			t.Errorf("%q with token %d after token %d", next.Value(), next.Token(), holder.Token())
		}
		if next.Key() == holder.Key() || i > 0 && next.Key() != former {
			t.Errorf("the key %s after %s and %s", next.Key(), former, holder.Key())
		}
		b.holds(t, next)
		holder, former = next, holder.Key()
	}
	if n := w.count() - requests; n != len(line) {
		t.Errorf("%d requests for %d hand-overs", n, len(line))
	}
	unlock(t, holder)
	b.nothingQueued(t)
}

func TestHandOver_InsideAClientOvertakesNobodyInEtcdsQueue(t *testing.T) {
	t.Parallel()
	b, ctx := setup(t), within(t)
	c := b.Client(t)
	present := lock(t, c, "a", "")
	first := lockAsync(ctx, b.Client(t), "a", "remote 1")
	b.Queued(t, "a", 2)
	local := []<-chan outcome{inLine(ctx, t, c, 0, "a", "local 1"), inLine(ctx, t, c, 1, "a", "local 2"), inLine(ctx, t, c, 2, "a", "local 3")}
	unlock(t, present)
	present = lockOf(t, first) // with the first of the line behind it
	b.Queued(t, "a", 2)
	second := lockAsync(ctx, b.Client(t), "a", "remote 2")
	b.Queued(t, "a", 3)
	serveInOrder(t, present, []<-chan outcome{local[0], second, local[1], local[2]})
}

func TestHandOver_TheNextMayBeCanceledAtAnyMoment(t *testing.T) {
	t.Parallel()
	tired := errors.New("tired")
	moments := map[string]func(t *testing.T, w *wire, holder *locker.Lock, giveUp func()){
		"before": func(t *testing.T, _ *wire, holder *locker.Lock, giveUp func()) {
			giveUp()
			unlock(t, holder)
		},
		"as it begins": func(t *testing.T, _ *wire, holder *locker.Lock, giveUp func()) {
			go giveUp()
			unlock(t, holder)
		},
		"as it ends": func(t *testing.T, _ *wire, holder *locker.Lock, giveUp func()) {
			unlock(t, holder)
			giveUp()
		},
	}
	for when, committed := range map[string]bool{"before it is sent": false, "before it is answered": true} {
		moments[when] = func(t *testing.T, w *wire, holder *locker.Lock, giveUp func()) {
			g := w.stop(t, committed, func(req any) bool { return handsOver(req, "a") })
			go func() {
				<-g.arrived
				giveUp()
				g.open()
			}()
			unlock(t, holder)
		}
	}
	for when, handOver := range moments {
		t.Run(when, func(t *testing.T) {
			t.Parallel()
			b := setup(t)
			c, w := b.wired(t, locker.WithTTL(unhurried))
			for range 20 {
				holder := lock(t, c, "a", "")
				ctx, cancel := context.WithCancelCause(within(t))
				nextInLine := inLine(ctx, t, c, 0, "a", "next")
				behind := inLine(within(t), t, c, 1, "a", "behind")
				ended := make(chan time.Time, 1)
				handOver(t, w, holder, func() { ended <- time.Now(); cancel(tired) })
				got := receive(t, nextInLine)
				if took := time.Since(receive(t, ended)); took > prompt {
					t.Errorf("the next returned after %v", took)
				}
				if got.Err == nil {
					b.holds(t, got.Lock) // it was too late to give up
					unlock(t, got.Lock)
				} else {
					want(t, got.Err, tired)
				}
				next := lockOf(t, behind)
				b.holds(t, next)
				unlock(t, next)
				b.nothingQueued(t)
			}
		})
	}
}

func TestHandOver_TheNextWithItsOwnSessionHoldsOnThatSession(t *testing.T) {
	t.Parallel()
	b, ctx := setup(t), within(t)
	c, w := b.wired(t)
	s := newSession(t, c)
	holder := lock(t, c, "a", "")
	line := []<-chan outcome{inLine(ctx, t, c, 0, "a", "", locker.WithSession(s)), inLine(ctx, t, c, 1, "a", "")}
	before := len(w.transactions(0))
	unlock(t, holder)
	own := lockOf(t, line[0])
	if got := get(t, c, "a"); got.Lease != s.Lease() || got.Token != own.Token() {
		t.Errorf("%+v holds, want lease %d", got, s.Lease())
	}
	unlock(t, own)
	shared := lockOf(t, line[1])
	if got := get(t, c, "a"); got.Lease == s.Lease() || got.Token != shared.Token() {
		t.Errorf("%+v holds, want another lease than %d", got, s.Lease())
	}
	if sent := w.transactions(before); len(sent) != 2 {
		t.Errorf("handed over by %v", sent)
	}
	if err := s.Close(); err != nil { // nothing of it is left there
		t.Error(err)
	}
	b.holds(t, shared)
}

func TestHandOver_TheNextWhoseSessionIsUnusableIsPassedOver(t *testing.T) {
	t.Parallel()
	b, ctx := setup(t), within(t)
	c, _ := b.wired(t)
	full, closed, gone := newSession(t, c), newSession(t, c), newSession(t, c)
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
		holder := lock(t, c, "a", "")
		nextInLine := inLine(ctx, t, c, 0, "a", "", locker.WithSession(test.session))
		behind := lockAsync(ctx, c, "a", "behind")
		eventually(t, what+": it stands in line", func() bool { return locker.Waiting(c, "a") == 2 })
		test.spoil()
		unlock(t, holder)
		want(t, receive(t, nextInLine).Err, test.want)
		next := lockOf(t, behind)
		b.holds(t, next)
		unlock(t, next)
		b.Queued(t, "a", 0)
	}
}

func TestHandOver_WithinAFullSessionSucceeds(t *testing.T) {
	t.Parallel()
	b, ctx := setup(t), within(t)
	c, _ := b.wired(t)
	s := newSession(t, c)
	fill(t, c, "full", 999, locker.WithSession(s))
	holder := lock(t, c, "a", "", locker.WithSession(s))
	nextInLine := inLine(ctx, t, c, 0, "a", "", locker.WithSession(s))
	unlock(t, holder)
	b.holds(t, lockOf(t, nextInLine))
	_, err := c.TryLock(ctx, "one more", "", locker.WithSession(s))
	want(t, err, locker.ErrSessionFull)
}

func TestHandOver_LeavesNoGapInWatchAndCache(t *testing.T) {
	t.Parallel()
	b, ctx := setup(t), within(t)
	c, w := b.wired(t)
	k := newCache(t, b.Client(t), "")
	holder := lock(t, c, "a", "first")
	r := read(t, b.Client(t).Watch(ctx, "a"))
	r.Held(holder)
	done := make(chan struct{})
	missing := make(chan bool, 1)
	eventually(t, "the cache has it", func() bool { _, ok := k.Get("a"); return ok })
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
		unlock(t, holder)
		holder = lockOf(t, nextInLine)
		r.Held(holder) // the very next state
		eventually(t, "the cache has it", func() bool { got, _ := k.Get("a"); return got.Token == holder.Token() })
	}
	close(done)
	if receive(t, missing) {
		t.Error("for the cache nobody held it for a while")
	}
	if sent := w.transactions(before); len(sent) != n {
		t.Errorf("%d hand-overs by %v", n, sent)
	}
}

func TestHandOver_WithoutSpaceIsAReleaseAndARefusal(t *testing.T) {
	t.Parallel()
	b, ctx := setup(t, embedtest.WithConfig(func(c *embed.Config) { c.QuotaBackendBytes = 2 << 20 })), within(t)
	c, _ := b.wired(t)
	holder := lock(t, c, "a", "")
	line := []<-chan outcome{inLine(ctx, t, c, 0, "a", ""), inLine(ctx, t, c, 1, "a", "")}
	b.fillUp(t)
	unlock(t, holder)
	for _, waiter := range line {
		want(t, receive(t, waiter).Err, rpctypes.ErrNoSpace)
	}
	b.nothingQueued(t)
}

// shared returns a hold of "a" that another had before, and that one.
func (b bundle) shared(t *testing.T, opts ...locker.Option) (c *locker.Client, w *wire, former, present *locker.Lock) {
	t.Helper()
	c, w = b.wired(t, append([]locker.Option{locker.WithLocalHandover(10)}, opts...)...)
	former = lock(t, c, "a", "")
	nextInLine := inLine(within(t), t, c, 0, "a", "")
	unlock(t, former)
	present = lockOf(t, nextInLine)
	if present.Token() != former.Token() {
		t.Fatalf("token %d after %d: it was not shared", present.Token(), former.Token())
	}
	return c, w, former, present
}

func TestLocalHandover_UpToTheLimitShareAHoldWithoutARequest(t *testing.T) {
	t.Parallel()
	b, ctx := setup(t), within(t)
	const n = 4
	c, w := b.wired(t, locker.WithLocalHandover(n))
	present := lock(t, c, "a", "")
	var line []<-chan outcome
	for i := range 3*n - 1 {
		line = append(line, inLine(ctx, t, c, i, "a", ""))
	}
	for i, waiter := range line {
		before := w.count()
		unlock(t, present)
		next := lockOf(t, waiter)
		want(t, context.Cause(present.Context()), locker.ErrReleased)
		requests := w.count() - before
		if (i+1)%n > 0 && (next.Token() != present.Token() || next.Key() != present.Key() || requests != 0) {
			t.Errorf("turn %d has token %d after %d, by %d requests", i+1, next.Token(), present.Token(), requests)
		}
		if (i+1)%n == 0 && (next.Token() <= present.Token() || requests != 1) {
			t.Errorf("turn %d has token %d after %d, by %d requests", i+1, next.Token(), present.Token(), requests)
		}
		b.holds(t, next)
		present = next
	}
	unlock(t, present)
	b.nothingQueued(t)
}

func TestLocalHandover_ByDefaultEachHoldHasATokenOfItsOwn(t *testing.T) {
	t.Parallel()
	b, ctx := setup(t), within(t)
	for name, opts := range map[string][]locker.Option{"by default": nil, "with 1": {locker.WithLocalHandover(1)}} {
		c := b.Client(t, opts...)
		present := lock(t, c, "a", "")
		for range 3 {
			nextInLine := inLine(ctx, t, c, 0, "a", "")
			unlock(t, present)
			next := lockOf(t, nextInLine)
			if next.Token() <= present.Token() {
				t.Errorf("%s: token %d after %d", name, next.Token(), present.Token())
			}
			present = next
		}
		unlock(t, present)
	}
}

func TestLocalHandover_AnotherClientHoldsOnceTheLimitIsReached(t *testing.T) {
	t.Parallel()
	b, ctx := setup(t), within(t)
	const n = 3
	c := b.Client(t, locker.WithLocalHandover(n))
	present := lock(t, c, "a", "")
	var line []<-chan outcome
	for i := range 2*n + 1 {
		line = append(line, inLine(ctx, t, c, i, "a", ""))
	}
	other := lockAsync(ctx, b.Client(t), "a", "")
	b.Queued(t, "a", 2)
	order := append(append(append([]<-chan outcome{}, line[:n-1]...), other), line[n-1:]...)
	for i, waiter := range order {
		for _, later := range order[i:] {
			select {
			case got := <-later:
				t.Fatalf("before turn %d somebody was served: %v", i, got.Err)
			default:
			}
		}
		unlock(t, present)
		present = lockOf(t, waiter)
	}
	unlock(t, present)
}

func TestLocalHandover_SharesAHoldForTheSameValueAndSessionOnly(t *testing.T) {
	t.Parallel()
	b, ctx := setup(t), within(t)
	c, _ := b.wired(t, locker.WithLocalHandover(100))
	s, other := newSession(t, c), newSession(t, c)
	on := func(s *locker.Session) []locker.LockOption { return []locker.LockOption{locker.WithSession(s)} }
	for what, test := range map[string]struct {
		value    string // of the second; the first has "v"
		options  [2][]locker.LockOption
		set      string // by the first
		together bool
	}{
		"the same":                 {value: "v", together: true},
		"other values":             {value: "w"},
		"the same session":         {value: "v", options: [2][]locker.LockOption{on(s), on(s)}, together: true},
		"other sessions":           {value: "v", options: [2][]locker.LockOption{on(s), on(other)}},
		"a session and a shared":   {value: "v", options: [2][]locker.LockOption{on(s), nil}},
		"a shared and a session":   {value: "v", options: [2][]locker.LockOption{nil, on(s)}},
		"after SetValue":           {value: "v", set: "w"},
		"after SetValue of hers":   {value: "w", set: "w"},
		"after SetValue of theirs": {value: "v", set: "v"},
	} {
		holder := lock(t, c, "a", "v", test.options[0]...)
		if test.set != "" {
			if err := holder.SetValue(ctx, test.set); err != nil {
				t.Fatal(err)
			}
		}
		nextInLine := inLine(ctx, t, c, 0, "a", test.value, test.options[1]...)
		unlock(t, holder)
		next := lockOf(t, nextInLine)
		if together := next.Token() == holder.Token(); together != test.together || next.Token() < holder.Token() {
			t.Errorf("%s: token %d after %d", what, next.Token(), holder.Token())
		}
		b.holds(t, next)
		if got := get(t, c, "a"); got.Value != test.value || got.Value != next.Value() {
			t.Errorf("%s: %+v holds", what, got)
		}
		unlock(t, next)
	}
}

func TestLocalHandover_AStaleHandleLeavesTheNextAlone(t *testing.T) {
	t.Parallel()
	b, ctx := setup(t), within(t)
	_, w, former, present := b.shared(t)
	before := w.count()
	want(t, former.Unlock(ctx), locker.ErrReleased)
	want(t, former.Err(), locker.ErrReleased)
	want(t, former.SetValue(ctx, "stale"), locker.ErrReleased)
	_, err := former.Commit(ctx, clientv3.OpPut("written", "stale"))
	want(t, err, locker.ErrReleased)
	if n := w.count() - before; n != 0 {
		t.Errorf("the stale handle made %d requests", n)
	}
	b.holds(t, present)
	if err := present.SetValue(ctx, "new"); err != nil || get(t, b.Client(t), "a").Value != "new" {
		t.Error(err)
	}
	if _, err := present.Commit(ctx, clientv3.OpPut("written", "fresh")); err != nil || b.value(t, "written") != "fresh" {
		t.Error(err)
	}
	unlock(t, present)
	b.nothingQueued(t)
}

func TestLocalHandover_TheLossOfItsSessionEndsASharedHold(t *testing.T) {
	t.Parallel()
	b, ctx := setup(t), within(t)
	c, _, former, present := b.shared(t, locker.WithTTL(brief))
	behind := lockAsync(ctx, c, "a", "") // on a session that is yet to come
	b.Server.ExpireLease(t, leaseOf(t, c, present))
	receive(t, present.Context().Done())
	wantLost(t, context.Cause(present.Context()), present, locker.Revoked)
	wantLost(t, present.Unlock(ctx), present, locker.Revoked)
	want(t, former.Err(), locker.ErrReleased)
	if next := lockOf(t, behind); next.Token() <= present.Token() {
		t.Errorf("token %d after %d", next.Token(), present.Token())
	}
}

func TestLocalHandover_ADeletedEntryEndsASharedHold(t *testing.T) {
	t.Parallel()
	b := setup(t)
	c, _, former, present := b.shared(t, locker.WithTTL(brief))
	b.delete(t, present)
	receive(t, present.Context().Done()) // by the audit
	wantLost(t, context.Cause(present.Context()), present, locker.Deleted)
	want(t, former.Err(), locker.ErrReleased)
	unlock(t, lock(t, c, "a", ""))
}

func TestLocalHandover_ADeletionThatNobodyNoticedIsAnErrorOfTheLast(t *testing.T) {
	t.Parallel()
	b, ctx := setup(t), within(t)
	c, _, _, present := b.shared(t, locker.WithTTL(unhurried))
	b.delete(t, present)
	nextInLine := inLine(ctx, t, c, 0, "a", "")
	unlock(t, present)
	last := lockOf(t, nextInLine)
	wantLost(t, last.Unlock(ctx), last, locker.Deleted)
	unlock(t, lock(t, c, "a", ""))
	b.nothingQueued(t)
}

func TestLocalHandover_TheNextMayBeCanceledAtAnyMoment(t *testing.T) {
	t.Parallel()
	b, tired := setup(t), errors.New("tired")
	c, _ := b.wired(t, locker.WithLocalHandover(1000))
	held, ended := 0, 0
	for i := range 100 {
		holder := lock(t, c, "a", "")
		ctx, cancel := context.WithCancelCause(within(t))
		nextInLine := inLine(ctx, t, c, 0, "a", "")
		behind := inLine(within(t), t, c, 1, "a", "")
		if i%4 == 0 {
			cancel(tired)
		}
		end := time.AfterFunc(time.Duration(i%20*5)*time.Microsecond, func() { cancel(tired) })
		unlock(t, holder)
		if got := receive(t, nextInLine); got.Err == nil {
			held++
			b.holds(t, got.Lock)
			unlock(t, got.Lock)
		} else {
			ended++
			want(t, got.Err, tired)
		}
		next := lockOf(t, behind)
		b.holds(t, next)
		unlock(t, next)
		end.Stop()
		cancel(nil)
	}
	b.nothingQueued(t)
	if held == 0 || ended == 0 {
		t.Errorf("%d held, %d gave up: it proves nothing", held, ended)
	}
}

func TestClose_EndsASharedHoldAndThoseInLine(t *testing.T) {
	t.Parallel()
	b, ctx := setup(t), within(t)
	c, _, former, present := b.shared(t)
	var line []<-chan outcome
	for i := range 5 {
		line = append(line, inLine(ctx, t, c, i, "a", ""))
	}
	if err := c.Close(); err != nil {
		t.Error(err)
	}
	want(t, present.Err(), locker.ErrClosed)
	want(t, present.Unlock(ctx), locker.ErrClosed)
	want(t, former.Err(), locker.ErrReleased)
	for _, waiter := range line {
		want(t, receive(t, waiter).Err, locker.ErrClosed)
	}
	if left := b.Keys(t, ""); len(left) > 0 || b.leases(t) > 0 {
		t.Errorf("left: %v and %d leases", left, b.leases(t))
	}
}

func TestClose_WhileAHoldIsHandedOverLeavesNothing(t *testing.T) {
	t.Parallel()
	b, ctx := setup(t), within(t)
	for i := range 10 {
		c, err := locker.New(b.Server.Client(t), locker.WithLocalHandover(1+i*5))
		if err != nil {
			t.Fatal(err)
		}
		turns := make(chan struct{})
		var workers sync.WaitGroup
		for range 8 {
			workers.Go(func() {
				for {
					l, err := c.Lock(ctx, "a", "")
					if err != nil {
						want(t, err, locker.ErrClosed)
						return
					}
					select {
					case turns <- struct{}{}:
					default:
					}
					if err := l.Unlock(ctx); err != nil {
						want(t, err, locker.ErrClosed)
					}
				}
			})
		}
		for range 5 {
			receive(t, turns)
		}
		if err := c.Close(); err != nil {
			t.Error(err)
		}
		workers.Wait()
		if left := b.Keys(t, ""); len(left) > 0 || b.leases(t) > 0 {
			t.Errorf("left: %v and %d leases", left, b.leases(t))
		}
	}
}

func TestLocalHandover_ThoseThatShareAHoldExcludeEachOther(t *testing.T) {
	t.Parallel()
	b, ctx := setup(t), within(t)
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
	b.nothingQueued(t)
}

// howMany is how many calls are given up at once. With LOCKER_MANY=100000 the time it takes is
// judged too. The race detector bears no more than 8128 goroutines.
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

// giveUp makes n calls with one context, which ends once ready has returned, and returns
// how much later the last of them returned.
func giveUp(t *testing.T, n int, call func(ctx context.Context, i int) error, ready func()) time.Duration {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	late := make([]time.Duration, n)
	var ended time.Time // set before ctx ends
	var calls sync.WaitGroup
	for i := range n {
		calls.Go(func() {
			if err := call(ctx, i); err == nil {
				t.Error("a call had success")
			}
			late[i] = time.Since(ended)
		})
	}
	ready()
	runtime.GC() // of what was before
	ended = time.Now()
	cancel()
	calls.Wait()
	slices.Sort(late)
	t.Logf("%d calls returned after %v (median), %v (last)", n, late[n/2], late[n-1])
	return late[n-1]
}

// wantSoon fails the test if the calls returned so late that each had to wait for all others:
// with 100,000 of them, a quarter of a minute.
func wantSoon(t *testing.T, late time.Duration) {
	t.Helper()
	if os.Getenv("LOCKER_MANY") != "" && late > 5*time.Second {
		t.Errorf("the last returned after %v", late)
	}
}

func TestLock_ManyThatWaitMayBeCanceledAtOnce(t *testing.T) {
	t.Parallel()
	b, n := setup(t), howMany()
	c := b.Client(t, locker.WithTTL(time.Minute))
	l := lock(t, c, "a", "v")
	wantSoon(t, giveUp(t, n, func(ctx context.Context, _ int) error {
		_, err := c.Lock(ctx, "a", "v")
		return err
	}, func() {
		eventually(t, "all are in line", func() bool { return locker.Waiting(c, "a") == n })
	}))
	if got := locker.Waiting(c, "a"); got != 0 || l.Err() != nil {
		t.Errorf("%d are in line, %v", got, l.Err())
	}
	unlock(t, l)
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
	wantSoon(t, giveUp(t, len(holds), func(ctx context.Context, i int) error {
		return holds[i].Unlock(ctx)
	}, func() {
		for _, l := range holds {
			receive(t, l.Context().Done()) // all have begun
		}
	}))
}
