package locker_test

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/jagregory/locker/v2"
)

// shared returns a hold of "a" that another had before, and that one.
func (b bundle) shared(t *testing.T, opts ...locker.Option) (c *locker.Client, w *wire, former, present *locker.Lock) {
	t.Helper()
	c, w = b.wired(t, append([]locker.Option{locker.WithLocalHandover(10)}, opts...)...)
	former = lock(t, c, "a", "")
	heir := inLine(within(t), t, c, 0, "a", "")
	unlock(t, former)
	present = lockOf(t, heir)
	if present.Token() != former.Token() {
		t.Fatalf("token %d after %d: it was not shared", present.Token(), former.Token())
	}
	return c, w, former, present
}

func TestSoManyInARowShareAHoldWithoutARequest(t *testing.T) {
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

func TestByDefaultEachHoldHasATokenOfItsOwn(t *testing.T) {
	t.Parallel()
	b, ctx := setup(t), within(t)
	for name, opts := range map[string][]locker.Option{"by default": nil, "with 1": {locker.WithLocalHandover(1)}} {
		c := b.client(t, opts...)
		present := lock(t, c, "a", "")
		for range 3 {
			heir := inLine(ctx, t, c, 0, "a", "")
			unlock(t, present)
			next := lockOf(t, heir)
			if next.Token() <= present.Token() {
				t.Errorf("%s: token %d after %d", name, next.Token(), present.Token())
			}
			present = next
		}
		unlock(t, present)
	}
}

func TestAnotherClientHasItsTurnAfterSoManyInARow(t *testing.T) {
	t.Parallel()
	b, ctx := setup(t), within(t)
	const n = 3
	c := b.client(t, locker.WithLocalHandover(n))
	present := lock(t, c, "a", "")
	var line []<-chan outcome
	for i := range 2*n + 1 {
		line = append(line, inLine(ctx, t, c, i, "a", ""))
	}
	other := lockAsync(ctx, b.client(t), "a", "")
	b.queued(t, "a", 2)
	order := append(append(append([]<-chan outcome{}, line[:n-1]...), other), line[n-1:]...)
	for i, waiter := range order {
		for _, later := range order[i:] {
			select {
			case got := <-later:
				t.Fatalf("before turn %d somebody was served: %v", i, got.err)
			default:
			}
		}
		unlock(t, present)
		present = lockOf(t, waiter)
	}
	unlock(t, present)
}

func TestOnlyLikeAndLikeShareAHold(t *testing.T) {
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
		heir := inLine(ctx, t, c, 0, "a", test.value, test.options[1]...)
		unlock(t, holder)
		next := lockOf(t, heir)
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

func TestAStaleHandleLeavesTheNextOfASharedHoldAlone(t *testing.T) {
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
	if err := present.SetValue(ctx, "new"); err != nil || get(t, b.client(t), "a").Value != "new" {
		t.Error(err)
	}
	if _, err := present.Commit(ctx, clientv3.OpPut("written", "fresh")); err != nil || b.value(t, "written") != "fresh" {
		t.Error(err)
	}
	unlock(t, present)
	b.nothingQueued(t)
}

func TestTheLossOfItsSessionEndsASharedHold(t *testing.T) {
	t.Parallel()
	b, ctx := setup(t), within(t)
	c, _, former, present := b.shared(t, locker.WithTTL(brief))
	behind := lockAsync(ctx, c, "a", "") // on a session that is yet to come
	b.server.ExpireLease(t, leaseOf(t, c, present))
	receive(t, present.Context().Done())
	wantLost(t, context.Cause(present.Context()), present, locker.Revoked)
	wantLost(t, present.Unlock(ctx), present, locker.Revoked)
	want(t, former.Err(), locker.ErrReleased)
	if next := lockOf(t, behind); next.Token() <= present.Token() {
		t.Errorf("token %d after %d", next.Token(), present.Token())
	}
}

func TestADeletedEntryEndsASharedHold(t *testing.T) {
	t.Parallel()
	b := setup(t)
	c, _, former, present := b.shared(t, locker.WithTTL(brief))
	b.delete(t, present)
	receive(t, present.Context().Done()) // by the audit
	wantLost(t, context.Cause(present.Context()), present, locker.Deleted)
	want(t, former.Err(), locker.ErrReleased)
	unlock(t, lock(t, c, "a", ""))
}

func TestADeletionThatNobodyNoticedIsAnErrorOfTheLastOfASharedHold(t *testing.T) {
	t.Parallel()
	b, ctx := setup(t), within(t)
	c, _, _, present := b.shared(t, locker.WithTTL(unhurried))
	b.delete(t, present)
	heir := inLine(ctx, t, c, 0, "a", "")
	unlock(t, present)
	last := lockOf(t, heir)
	wantLost(t, last.Unlock(ctx), last, locker.Deleted)
	unlock(t, lock(t, c, "a", ""))
	b.nothingQueued(t)
}

func TestAnHeirOfASharedHoldMayGiveUpAtAnyMoment(t *testing.T) {
	t.Parallel()
	b, tired := setup(t), errors.New("tired")
	c, _ := b.wired(t, locker.WithLocalHandover(1000))
	held, ended := 0, 0
	for i := range 100 {
		holder := lock(t, c, "a", "")
		ctx, cancel := context.WithCancelCause(within(t))
		heir := inLine(ctx, t, c, 0, "a", "")
		behind := inLine(within(t), t, c, 1, "a", "")
		if i%4 == 0 {
			cancel(tired)
		}
		end := time.AfterFunc(time.Duration(i%20*5)*time.Microsecond, func() { cancel(tired) })
		unlock(t, holder)
		if got := receive(t, heir); got.err == nil {
			held++
			b.holds(t, got.lock)
			unlock(t, got.lock)
		} else {
			ended++
			want(t, got.err, tired)
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

func TestCloseEndsASharedHoldAndThoseInLine(t *testing.T) {
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
		want(t, receive(t, waiter).err, locker.ErrClosed)
	}
	if left := b.keys(t, ""); len(left) > 0 || b.leases(t) > 0 {
		t.Errorf("left: %v and %d leases", left, b.leases(t))
	}
}

func TestCloseWhileAHoldIsPassedOnLeavesNothing(t *testing.T) {
	t.Parallel()
	b, ctx := setup(t), within(t)
	for i := range 10 {
		c, err := locker.New(b.server.Client(t), locker.WithLocalHandover(1+i*5))
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
		if left := b.keys(t, ""); len(left) > 0 || b.leases(t) > 0 {
			t.Errorf("left: %v and %d leases", left, b.leases(t))
		}
	}
}

func TestThoseWhoShareAHoldExcludeEachOther(t *testing.T) {
	t.Parallel()
	b, ctx := setup(t), within(t)
	clients := []*locker.Client{b.client(t, locker.WithLocalHandover(7)), b.client(t, locker.WithLocalHandover(100)), b.client(t)}
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
