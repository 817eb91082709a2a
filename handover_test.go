package locker_test

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"time"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	"go.etcd.io/etcd/server/v3/embed"

	"github.com/jagregory/locker/v2"
	"github.com/jagregory/locker/v2/embedtest"
)

func TestAHandOverInsideAClientIsOneTransaction(t *testing.T) {
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

func TestAHandOverInsideAClientPassesNobodyInEtcdsQueue(t *testing.T) {
	t.Parallel()
	b, ctx := setup(t), within(t)
	c := b.client(t)
	present := lock(t, c, "a", "")
	first := lockAsync(ctx, b.client(t), "a", "remote 1")
	b.queued(t, "a", 2)
	local := []<-chan outcome{inLine(ctx, t, c, 0, "a", "local 1"), inLine(ctx, t, c, 1, "a", "local 2"), inLine(ctx, t, c, 2, "a", "local 3")}
	unlock(t, present)
	present = lockOf(t, first) // with the first of the line behind it
	b.queued(t, "a", 2)
	second := lockAsync(ctx, b.client(t), "a", "remote 2")
	b.queued(t, "a", 3)
	serveInOrder(t, present, []<-chan outcome{local[0], second, local[1], local[2]})
}

func TestAnHeirMayGiveUpAtAnyMomentOfTheHandOver(t *testing.T) {
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
				heir := inLine(ctx, t, c, 0, "a", "heir")
				behind := inLine(within(t), t, c, 1, "a", "behind")
				ended := make(chan time.Time, 1)
				handOver(t, w, holder, func() { ended <- time.Now(); cancel(tired) })
				got := receive(t, heir)
				if took := time.Since(receive(t, ended)); took > prompt {
					t.Errorf("the heir returned after %v", took)
				}
				if got.err == nil {
					b.holds(t, got.lock) // it was too late to give up
					unlock(t, got.lock)
				} else {
					want(t, got.err, tired)
				}
				next := lockOf(t, behind)
				b.holds(t, next)
				unlock(t, next)
				b.nothingQueued(t)
			}
		})
	}
}

func TestAnHeirWithASessionOfItsOwnGetsAHoldOfThatSession(t *testing.T) {
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

func TestAnHeirWhoseSessionIsOfNoUseLetsTheNextHaveItsTurn(t *testing.T) {
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
		"gone":   {gone, func() { b.server.ExpireLease(t, gone.Lease()) }, locker.ErrLost},
	} {
		holder := lock(t, c, "a", "")
		heir := inLine(ctx, t, c, 0, "a", "", locker.WithSession(test.session))
		behind := lockAsync(ctx, c, "a", "behind")
		eventually(t, what+": it stands in line", func() bool { return c.Waiting("a") == 2 })
		test.spoil()
		unlock(t, holder)
		want(t, receive(t, heir).err, test.want)
		next := lockOf(t, behind)
		b.holds(t, next)
		unlock(t, next)
		b.queued(t, "a", 0)
	}
}

func TestAFullSessionHandsOverToItsOwn(t *testing.T) {
	t.Parallel()
	b, ctx := setup(t), within(t)
	c, _ := b.wired(t)
	s := newSession(t, c)
	fill(t, c, "full", 999, locker.WithSession(s))
	holder := lock(t, c, "a", "", locker.WithSession(s))
	heir := inLine(ctx, t, c, 0, "a", "", locker.WithSession(s))
	unlock(t, holder)
	b.holds(t, lockOf(t, heir))
	_, err := c.TryLock(ctx, "one more", "", locker.WithSession(s))
	want(t, err, locker.ErrSessionFull)
}

func TestOneHolderFollowsAnotherWithoutAGapInWatchAndCache(t *testing.T) {
	t.Parallel()
	b, ctx := setup(t), within(t)
	c, w := b.wired(t)
	k := newCache(t, b.client(t), "")
	holder := lock(t, c, "a", "first")
	r := read(t, b.client(t).Watch(ctx, "a"))
	r.held(holder)
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
		heir := inLine(ctx, t, c, 0, "a", "")
		unlock(t, holder)
		holder = lockOf(t, heir)
		r.held(holder) // the very next state
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

func TestWithoutSpaceAHandOverIsAReleaseAndARefusal(t *testing.T) {
	t.Parallel()
	b, ctx := setup(t, embedtest.WithConfig(func(c *embed.Config) { c.QuotaBackendBytes = 2 << 20 })), within(t)
	c, _ := b.wired(t)
	holder := lock(t, c, "a", "")
	line := []<-chan outcome{inLine(ctx, t, c, 0, "a", ""), inLine(ctx, t, c, 1, "a", "")}
	b.fillUp(t)
	unlock(t, holder)
	for _, waiter := range line {
		want(t, receive(t, waiter).err, rpctypes.ErrNoSpace)
	}
	b.nothingQueued(t)
}
