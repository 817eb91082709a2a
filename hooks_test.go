package locker_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/jagregory/locker/v2"
	"github.com/jagregory/locker/v2/internal/fakeetcd"
	"github.com/jagregory/locker/v2/internal/locktest"
)

// observed returns a Client whose events are recorded.
func observed(t *testing.T, etcd *clientv3.Client, opts ...locker.Option) (*locker.Client, *locktest.Events) {
	t.Helper()
	events := new(locktest.Events)
	return locktest.NewClient(t, etcd, append(opts, locker.WithHooks(events.Hooks()))...), events
}

// closed closes a Client and checks that every start has had its end.
func closed(t *testing.T, c *locker.Client, events *locktest.Events) {
	t.Helper()
	if err := c.Close(); err != nil {
		t.Error(err)
	}
	events.Complete(t)
}

func TestHooks_ReportEachVerb(t *testing.T) {
	t.Parallel()
	b := locktest.Setup(t)
	for verb, call := range map[string]func(context.Context, *locker.Client) error{
		"Lock": func(ctx context.Context, c *locker.Client) error {
			l, err := c.Lock(ctx, "Lock", "")
			return errors.Join(err, l.Unlock(ctx))
		},
		"TryLock": func(ctx context.Context, c *locker.Client) error {
			l, err := c.TryLock(ctx, "TryLock", "", locker.And("another", ""))
			return errors.Join(err, l.Unlock(ctx))
		},
		"Do": func(ctx context.Context, c *locker.Client) error {
			return c.Do(ctx, "Do", "", func(context.Context, *locker.Lock) error { return nil })
		},
		"Campaign": func(ctx context.Context, c *locker.Client) error {
			return c.Campaign(ctx, "Campaign", "", func(context.Context, *locker.Lock) error { return nil })
		},
	} {
		t.Run(verb, func(t *testing.T) {
			t.Parallel()
			c, events := observed(t, b.Server.Client(t))
			if err := call(locktest.Within(t), c); err != nil {
				t.Fatal(err)
			}
			start, end, hold := locktest.Await[locker.LockStart](t, events, 1), locktest.Await[locker.LockEnd](t, events, 1), locktest.Await[locker.HoldEnd](t, events, 1)
			if start != (locker.LockStart{Name: verb, Verb: verb}) {
				t.Errorf("it began with %+v", start)
			}
			if end.Name != verb || end.Verb != verb || end.Err != nil || end.Token == 0 || end.Token != end.Lock.Token() || end.Waited <= 0 || end.Ahead != 0 {
				t.Errorf("it was held with %+v", end)
			}
			if hold.Name != verb || hold.Token != end.Token || hold.Lock != end.Lock || hold.Held <= 0 || !errors.Is(hold.Cause, locker.ErrReleased) {
				t.Errorf("the hold ended with %+v", hold)
			}
			closed(t, c, events)
		})
	}
}

func TestHooks_ReportWhyALockCouldNotBeHad(t *testing.T) {
	t.Parallel()
	b := locktest.Setup(t)
	locktest.Lock(t, b.Client(t), "a", "")
	c, events := observed(t, b.Etcd)
	if _, err := c.TryLock(locktest.Within(t), "a", ""); !errors.Is(err, locker.ErrLocked) {
		t.Fatal(err)
	}
	locktest.Want(t, locktest.EventsOf[locker.LockEnd](events)[0].Err, locker.ErrLocked)
	ctx, cancel := context.WithCancelCause(locktest.Within(t))
	waiting := locktest.LockAsync(ctx, c, "a", "")
	b.Queued(t, "a", 2)
	enough := errors.New("enough")
	cancel(enough)
	locktest.Receive(t, waiting)
	end := locktest.EventsOf[locker.LockEnd](events)[1]
	locktest.Want(t, end.Err, enough)
	if end.Ahead != 1 {
		t.Errorf("%d entries were ahead", end.Ahead)
	}
	if _, err := c.Lock(locktest.Within(t), "", ""); !errors.Is(err, locker.ErrInvalid) {
		t.Fatal(err)
	}
	closed(t, c, events)
	if _, err := c.Lock(locktest.Within(t), "a", ""); !errors.Is(err, locker.ErrClosed) {
		t.Fatal(err)
	}
	if starts, ends := locktest.EventsOf[locker.LockStart](events), locktest.EventsOf[locker.LockEnd](events); len(starts) != 3 || !errors.Is(ends[2].Err, locker.ErrClosed) {
		t.Errorf("an invalid call is reported, or one after Close is not: %+v", starts)
	}
}

func TestHooks_ReportHowManyWereAhead(t *testing.T) {
	t.Parallel()
	b := locktest.Setup(t)
	first := locktest.Lock(t, b.Client(t), "a", "")
	second := locktest.LockAsync(locktest.Within(t), b.Client(t), "a", "")
	b.Queued(t, "a", 2)
	c, events := observed(t, b.Etcd)
	third := locktest.LockAsync(locktest.Within(t), c, "a", "")
	b.Queued(t, "a", 3)
	locktest.Unlock(t, first)
	locktest.Unlock(t, locktest.LockOf(t, second))
	locktest.Unlock(t, locktest.LockOf(t, third))
	if end := locktest.Await[locker.LockEnd](t, events, 1); end.Ahead != 2 {
		t.Errorf("%d entries were ahead", end.Ahead)
	}
	for i, kind := range []locker.LockOption{locker.WithShared(), locker.WithLimit(3)} {
		name := fmt.Sprint("beside", i)
		locktest.Lock(t, c, name, "", kind)
		locktest.Lock(t, c, "free", "", locker.And(name, "", kind), locker.WithShared())
		ends := locktest.EventsOf[locker.LockEnd](events)
		if got := ends[len(ends)-1].Ahead; got != i { // those that are shared do not count for each other
			t.Errorf("%d entries were ahead in %s", got, name)
		}
	}
	closed(t, c, events)
}

func TestHooks_ReportLosses(t *testing.T) {
	t.Parallel()
	b := locktest.Setup(t)
	for reason, lose := range map[locker.Reason]func(*testing.T, *locker.Lock){
		locker.Revoked: func(t *testing.T, l *locker.Lock) { b.Server.ExpireLease(t, locktest.LeaseOf(l)) },
		locker.Deleted: func(t *testing.T, l *locker.Lock) { b.Delete(t, l) },
	} {
		t.Run(reason.String(), func(t *testing.T) {
			t.Parallel()
			c, events := observed(t, b.Server.Client(t))
			l := locktest.Lock(t, c, reason.String(), "")
			lose(t, l)
			if _, err := l.Commit(locktest.Within(t), clientv3.OpPut("x", "")); !errors.Is(err, locker.ErrLost) {
				t.Fatal(err)
			}
			locktest.WantLost(t, locktest.Await[locker.HoldEnd](t, events, 1).Cause, l, reason)
			if reason == locker.Revoked {
				var lost *locker.LostError
				if end := locktest.Await[locker.SessionEnd](t, events, 1); !errors.As(end.Cause, &lost) || lost.Reason != reason || end.Lease != locktest.LeaseOf(l) {
					t.Errorf("the session ended with %+v", end)
				}
			}
			closed(t, c, events)
		})
	}
}

func TestHooks_ReportSessions(t *testing.T) {
	t.Parallel()
	b := locktest.Setup(t)
	c, events := observed(t, b.Etcd)
	s := locktest.NewSession(t, c, locker.WithSessionTTL(locktest.Steady))
	l := locktest.Lock(t, c, "a", "", locker.WithSession(s))
	if start := locktest.Await[locker.SessionStart](t, events, 1); start != (locker.SessionStart{Lease: s.Lease(), TTL: locktest.Steady}) {
		t.Errorf("it began with %+v", start)
	}
	if err := s.Close(); err != nil {
		t.Error(err)
	}
	if end := locktest.Await[locker.SessionEnd](t, events, 1); end.Lease != s.Lease() || !errors.Is(end.Cause, locker.ErrClosed) {
		t.Errorf("it ended with %+v", end)
	}
	if end := locktest.EventsOf[locker.HoldEnd](events); len(end) != 1 || end[0].Lock != l || !errors.Is(end[0].Cause, locker.ErrClosed) {
		t.Errorf("its holds ended with %+v", end)
	}
	closed(t, c, events)
	if starts := locktest.EventsOf[locker.SessionStart](events); len(starts) != 1 {
		t.Errorf("sessions that began: %+v", starts)
	}
}

func TestHooks_ReportALockWhoseFirstSessionWasLost(t *testing.T) {
	t.Parallel()
	b := locktest.Setup(t)
	c, events := observed(t, b.Etcd, locker.WithTTL(time.Hour)) // so that only Lock notices the loss
	first := locktest.Lock(t, c, "a", "")
	locktest.Unlock(t, first)
	b.Server.ExpireLease(t, locktest.LeaseOf(first))
	locktest.Unlock(t, locktest.Lock(t, c, "a", ""))
	if holds, sessions := locktest.EventsOf[locker.HoldEnd](events), locktest.EventsOf[locker.SessionStart](events); len(holds) != 2 || len(sessions) != 2 {
		t.Errorf("%d holds have ended, and %d sessions begun", len(holds), len(sessions))
	}
	closed(t, c, events)
}

func TestHooks_ReportThatWatchesAreOpenedAgain(t *testing.T) {
	t.Parallel()
	b := locktest.Setup(t)
	proxy := b.Server.Proxy(t)
	c, events := observed(t, proxy.Client(t))
	watched := locktest.Read(t, c.Watch(locktest.Within(t), "a"))
	watched.Free("a")
	proxy.Reset()
	if reset := locktest.Await[locker.WatchReset](t, events, 1); reset.Cause != "disconnect" {
		t.Errorf("reported: %+v", reset)
	}
	watched.Held(locktest.Lock(t, b.Client(t), "a", ""))
	closed(t, c, events)
	if resets := locktest.EventsOf[locker.WatchReset](events); len(resets) != 1 {
		t.Errorf("reported: %+v", resets)
	}
}

func TestHooks_AreCalledInTheOrderInWhichTheyWereAdded(t *testing.T) {
	t.Parallel()
	type key struct{}
	var mu sync.Mutex
	var order []string
	hooks := func(name string) locker.Hooks {
		return locker.Hooks{
			LockStart: func(ctx context.Context, _ locker.LockStart) context.Context {
				mu.Lock()
				defer mu.Unlock()
				order = append(order, fmt.Sprint(name, " after ", ctx.Value(key{})))
				return context.WithValue(ctx, key{}, name)
			},
			LockEnd: func(ctx context.Context, _ locker.LockEnd) {
				mu.Lock()
				defer mu.Unlock()
				order = append(order, fmt.Sprint(name, " of ", ctx.Value(key{})))
			},
		}
	}
	none := locker.Hooks{LockStart: func(context.Context, locker.LockStart) context.Context { return nil }}
	c := locktest.NewClient(t, locktest.Setup(t).Etcd, locker.WithHooks(hooks("first"), locker.Hooks{}), locker.WithHooks(none, hooks("second")))
	l := locktest.Lock(t, c, "a", "")
	if got, want := strings.Join(order, ", "), "first after <nil>, second after first, first of second, second of second"; got != want {
		t.Error(got)
	}
	if l.Context().Value(key{}) != nil {
		t.Error("what LockStart returns has an effect on the hold")
	}
}

func TestHoldEnd_IsReportedAfterLockEndThoughTheHoldIsLostBefore(t *testing.T) {
	t.Parallel()
	b := locktest.Setup(t)
	events, blocked, proceed := new(locktest.Events), make(chan *locker.Lock, 1), make(chan struct{})
	c := locktest.NewClient(t, b.Etcd, locker.WithHooks(locker.Hooks{LockEnd: func(_ context.Context, e locker.LockEnd) {
		blocked <- e.Lock
		<-proceed
	}}, events.Hooks()))
	locking := locktest.LockAsync(locktest.Within(t), c, "a", "")
	l := locktest.Receive(t, blocked)
	b.Server.ExpireLease(t, locktest.LeaseOf(l))
	if _, err := l.Commit(locktest.Within(t), clientv3.OpPut("x", "")); !errors.Is(err, locker.ErrLost) {
		t.Fatal(err)
	}
	locktest.Await[locker.SessionEnd](t, events, 1)
	if ends := locktest.EventsOf[locker.HoldEnd](events); len(ends) != 0 {
		t.Errorf("the end of the hold was reported before its begin: %+v", ends)
	}
	close(proceed)
	locktest.LockOf(t, locking)
	if ends := locktest.EventsOf[locker.HoldEnd](events); len(ends) != 1 {
		t.Errorf("it was reported %d times", len(ends))
	}
	closed(t, c, events)
}

func TestHooks_ThatBlockACallBlockNothingElse(t *testing.T) {
	t.Parallel()
	b := locktest.Setup(t)
	reached, proceed := make(chan struct{}, 1), make(chan struct{})
	block := func(name string) {
		if name == "blocked" {
			reached <- struct{}{}
			<-proceed
		}
	}
	for when, hooks := range map[string]locker.Hooks{
		"LockStart": {LockStart: func(ctx context.Context, e locker.LockStart) context.Context { block(e.Name); return ctx }},
		"LockEnd":   {LockEnd: func(_ context.Context, e locker.LockEnd) { block(e.Name) }},
		"HoldEnd":   {HoldEnd: func(e locker.HoldEnd) { block(e.Name) }},
	} {
		t.Run(when, func(t *testing.T) {
			c := locktest.NewClient(t, b.Etcd, locker.WithHooks(hooks))
			call := locktest.Async(func() error {
				return c.Do(locktest.Within(t), "blocked", "", func(context.Context, *locker.Lock) error { return nil })
			})
			locktest.Receive(t, reached)
			locktest.Unlock(t, locktest.Lock(t, c, "a", ""))
			if when != "LockEnd" { // where the name is held
				locktest.Unlock(t, locktest.Lock(t, b.Client(t), "blocked", ""))
			}
			proceed <- struct{}{}
			if err := locktest.Receive(t, call); err != nil {
				t.Error(err)
			}
		})
	}
}

func TestHooks_ThatBlockInTheBackgroundHoldUpNothing(t *testing.T) {
	t.Parallel()
	locktest.Simulate(t, func(sim locktest.Simulation) {
		forever := make(chan struct{})
		var log bytes.Buffer
		c := sim.Client(locker.WithHooks(locker.Hooks{SessionStart: func(locker.SessionStart) { <-forever }}),
			locker.WithLogger(slog.New(slog.NewTextHandler(&log, nil))))
		l := locktest.Lock(sim, c, "a", "")
		sim.At(5 * locker.DefaultTTL)
		if err := l.Err(); err != nil {
			sim.Error(err)
		}
		locktest.Unlock(sim, l)
		began := time.Now()
		if err := c.Close(); err != nil {
			sim.Error(err)
		}
		if took := time.Since(began); took != 10*time.Second {
			sim.Errorf("Close took %v", took)
		}
		if !strings.Contains(log.String(), "hook was still at work") {
			sim.Errorf("it logged %s", log.String())
		}
		close(forever)
	})
}

func TestHooks_ThatPanicHarmOnlyTheirCall(t *testing.T) {
	t.Parallel()
	b := locktest.Setup(t)
	crash := func(name string) {
		if name == "fatal" {
			panic("out of order")
		}
	}
	for when, hooks := range map[string]locker.Hooks{
		"LockStart": {LockStart: func(ctx context.Context, e locker.LockStart) context.Context { crash(e.Name); return ctx }},
		"LockEnd":   {LockEnd: func(_ context.Context, e locker.LockEnd) { crash(e.Name) }},
		"HoldEnd":   {HoldEnd: func(e locker.HoldEnd) { crash(e.Name) }},
	} {
		t.Run(when, func(t *testing.T) {
			t.Parallel()
			before, after := new(locktest.Events), new(locktest.Events)
			c := locktest.NewClient(t, b.Server.Client(t), locker.WithHooks(before.Hooks(), hooks, after.Hooks()))
			neighbour := locktest.Lock(t, c, "neighbour of "+when, "")
			func() {
				defer func() {
					if problem := recover(); problem != "out of order" {
						t.Errorf("Do panicked with %v", problem)
					}
				}()
				_ = c.Do(locktest.Within(t), "fatal", "", func(context.Context, *locker.Lock) error {
					if when != "HoldEnd" {
						t.Error("the function was called")
					}
					return nil
				})
			}()
			locktest.Unlock(t, locktest.Lock(t, c, "a", ""))
			locktest.Unlock(t, locktest.Lock(t, b.Client(t), "fatal", ""))
			if err := neighbour.Err(); err != nil {
				t.Error(err)
			}
			closed(t, c, before)
			after.Complete(t)
		})
	}
}

func TestHooks_ThatEndTheirGoroutineInTheBackgroundStopNothing(t *testing.T) {
	t.Parallel()
	for how, end := range map[string]func(){"panic": func() { panic("out of order") }, "Goexit": runtime.Goexit} {
		t.Run(how, func(t *testing.T) {
			t.Parallel()
			var log bytes.Buffer
			before, after := new(locktest.Events), new(locktest.Events)
			ends := locker.Hooks{
				SessionStart: func(locker.SessionStart) { end() },
				HoldEnd:      func(locker.HoldEnd) { end() },
				SessionEnd:   func(locker.SessionEnd) { end() },
			}
			c := locktest.NewClient(t, locktest.Setup(t).Etcd, locker.WithHooks(before.Hooks(), ends, after.Hooks()),
				locker.WithLogger(slog.New(slog.NewTextHandler(&log, nil))))
			locktest.Lock(t, c, "a", "")
			closed(t, c, before) // which ends the hold
			after.Complete(t)
			if n := strings.Count(log.String(), "hook panicked"); how == "panic" && n != 3 {
				t.Errorf("logged %d times: %s", n, log.String())
			}
		})
	}
}

func TestClose_ReportsNoHookThatIsStillAtWorkWhereThereIsNone(t *testing.T) {
	t.Parallel()
	locktest.Simulate(t, func(sim locktest.Simulation) {
		var log bytes.Buffer
		events := new(locktest.Events)
		c := sim.Client(locker.WithHooks(events.Hooks()), locker.WithTTL(time.Minute), locker.WithLogger(slog.New(slog.NewTextHandler(&log, nil))))
		locktest.Lock(sim, c, "a", "")
		sim.Always(fakeetcd.Revoke, fakeetcd.Fate{Lost: true})
		if err := c.Close(); err == nil { // it has taken as long as it may
			sim.Error("the revocation was confirmed")
		}
		if strings.Contains(log.String(), "hook") {
			sim.Errorf("logged: %s", log.String())
		}
		events.Complete(sim)
	})
}

func TestHooks_EachStartHasItsEndUnderFaults(t *testing.T) {
	t.Parallel()
	b := locktest.Setup(t)
	proxy := b.Server.Proxy(t)
	c, events := observed(t, proxy.Client(t), locker.WithLocalHandover(3))
	ctx, stop := context.WithCancel(t.Context())
	var busy sync.WaitGroup
	for i := range 12 {
		busy.Go(func() {
			for n := 0; ctx.Err() == nil; n++ {
				hasty, cancel := context.WithTimeout(ctx, time.Duration(rand.Int64N(int64(20*time.Millisecond))))
				name := fmt.Sprint("contended", rand.IntN(3))
				switch (i + n) % 4 {
				case 0:
					if l, err := c.TryLock(hasty, name, ""); err == nil {
						_ = l.Unlock(hasty)
					}
				case 1:
					_ = c.Do(hasty, name, "", func(ctx context.Context, l *locker.Lock) error { <-ctx.Done(); return l.Unlock(ctx) })
				case 2:
					_ = c.Campaign(hasty, name, "", func(context.Context, *locker.Lock) error { return nil }, locker.And("further", ""))
				default:
					if l, err := c.Lock(hasty, name, "", locker.WithShared()); err == nil {
						_ = l.Unlock(hasty)
					}
				}
				cancel()
			}
		})
	}
	for round := range 10 {
		ends := len(locktest.EventsOf[locker.LockEnd](events))
		locktest.Await[locker.LockEnd](t, events, ends+100)
		if round%2 == 0 {
			proxy.Reset()
			continue
		}
		if starts := locktest.EventsOf[locker.SessionStart](events); len(starts) > 0 {
			_, _ = b.Etcd.Revoke(locktest.Within(t), starts[len(starts)-1].Lease) // it may be gone already
		}
	}
	if err := c.Close(); err != nil { // in the midst of it
		t.Log(err)
	}
	stop()
	busy.Wait()
	events.Complete(t)
}
