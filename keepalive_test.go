package locker

import (
	"errors"
	"testing"
	"testing/synctest"
	"time"
	"unsafe"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/jagregory/locker/v2/internal/fakeetcd"
)

// lockOnFake returns a lock on an etcd in memory. Both end with the test.
func lockOnFake(t *testing.T, opts ...Option) (*Lock, *fakeetcd.Server) {
	t.Helper()
	server := fakeetcd.New()
	t.Cleanup(server.Close)
	etcd, err := server.Connect()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = etcd.Close() })
	c, err := New(etcd, opts...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	l, err := c.Lock(t.Context(), "a", "")
	if err != nil {
		t.Fatal(err)
	}
	return l, server
}

// pause keeps the session from being renewed and its alarm from going off, as if the
// process had been stopped.
func pause(t *testing.T, s *Session, server *fakeetcd.Server) {
	t.Helper()
	server.Decide(func(call fakeetcd.Call) fakeetcd.Fate { return fakeetcd.Fate{Lost: call.Kind == fakeetcd.KeepAlive} })
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.alarm.Stop() {
		t.Fatal("the alarm has gone off")
	}
}

// uses are what a holder may do first after a pause.
var uses = map[string]func(*testing.T, *Lock) error{
	"Err": func(_ *testing.T, l *Lock) error { return l.Err() },
	"Commit": func(t *testing.T, l *Lock) error {
		_, err := l.Commit(t.Context(), clientv3.OpPut("x", ""))
		return err
	},
	"SetValue": func(t *testing.T, l *Lock) error { return l.SetValue(t.Context(), "x") },
	"Unlock":   func(t *testing.T, l *Lock) error { return l.Unlock(t.Context()) },
}

// wantExpired fails the test unless the first use of l after its deadline reports that it
// is lost, without a request.
func wantExpired(t *testing.T, l *Lock, server *fakeetcd.Server, use func(*testing.T, *Lock) error) {
	t.Helper()
	before := len(server.Calls(fakeetcd.Txn))
	var lost *LostError
	if err := use(t, l); !errors.As(err, &lost) || lost.Reason != Expired {
		t.Errorf("the first use: %v", err)
	}
	if l.ctx.Err() == nil || l.session.ctx.Err() == nil {
		t.Error("the hold has not ended")
	}
	if after := len(server.Calls(fakeetcd.Txn)); after != before {
		t.Errorf("it made %d requests", after-before)
	}
}

func TestDeadline_IsNoticedAtTheFirstUseAfterAPauseOfTheProcess(t *testing.T) {
	t.Parallel()
	for name, use := range uses {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				l, server := lockOnFake(t)
				pause(t, l.session, server)
				time.Sleep(time.Until(l.Deadline()) - 1)
				if err := l.Err(); err != nil {
					t.Fatalf("before the deadline: %v", err)
				}
				time.Sleep(time.Nanosecond)
				wantExpired(t, l, server, use)
			})
		})
	}
}

func TestLockDelay_AfterTheDeadlineCloseRevokesNothingThoughItIsTheFirstToNotice(t *testing.T) {
	t.Parallel()
	for what, shut := range map[string]func(*Lock) error{
		"Client.Close":  func(l *Lock) error { return l.client.Close() },
		"Session.Close": func(l *Lock) error { return l.session.Close() },
	} {
		t.Run(what, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				l, server := lockOnFake(t, WithLockDelay(time.Hour))
				pause(t, l.session, server)
				time.Sleep(time.Until(l.Deadline()))
				synctest.Wait()
				if l.ctx.Err() != nil {
					t.Fatal("the end of the hold was noticed before")
				}
				if err := shut(l); err != nil {
					t.Error(err)
				}
				var lost *LostError
				if err := l.Err(); !errors.As(err, &lost) || lost.Reason != Expired {
					t.Errorf("the hold has ended with %v", err)
				}
				if n := len(server.Calls(fakeetcd.Revoke)); n != 0 || len(server.Queue(l.Key())) != 1 {
					t.Errorf("%d requests to revoke the lease, left are %v", n, server.Keys())
				}
			})
		})
	}
}

// jumped returns moment as it would read if the wall clock alone had been moved forward by
// d since. A test cannot move the clock, so it moves what is compared with it.
func jumped(t *testing.T, moment time.Time, d time.Duration) time.Time {
	t.Helper()
	// The seconds of the wall clock are above 30 bits of nanoseconds (time.Time).
	moved := moment
	*(*uint64)(unsafe.Pointer(&moved)) -= uint64(d/time.Second) << 30
	if moved.Sub(moment) != 0 || moment.Round(0).Sub(moved.Round(0)) != d {
		t.Fatalf("%v became %v: the layout of time.Time has changed", moment, moved)
	}
	return moved
}

func TestDeadline_HasPassedIfItHasOnEitherClock(t *testing.T) {
	t.Parallel()
	const hour = time.Hour
	now := time.Now()
	for name, c := range map[string]struct {
		deadline time.Time
		want     bool
	}{
		"on neither":                           {now.Add(hour), false},
		"on both":                              {now.Add(-1), true},
		"just now":                             {now, true},
		"on the wall clock, it was set":        {jumped(t, now.Add(hour), 2*hour), true},
		"on the monotonic clock, wall is back": {jumped(t, now.Add(-1), -hour), true},
		"on neither, wall was set a little":    {jumped(t, now.Add(2*hour), hour), false},
		"on the only one there is":             {now.Add(-1).Round(0), true},
		"not on the only one there is":         {now.Add(hour).Round(0), false},
	} {
		if got := passed(c.deadline); got != c.want {
			t.Errorf("%s: %v", name, got)
		}
	}
}

func TestDeadline_AnAnswerAfterAPauseOverItRevivesNothing(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		l, server := lockOnFake(t)
		pause(t, l.session, server)
		answer := l.Deadline().Add(1)
		server.Decide(func(call fakeetcd.Call) fakeetcd.Fate { return fakeetcd.Fate{After: max(0, answer.Sub(call.At))} })
		time.Sleep(time.Until(answer))
		synctest.Wait()
		if err := l.Err(); !errors.Is(err, ErrLost) {
			t.Errorf("after the answer: %v", err)
		}
	})
}

func TestLock_OnASessionPausedOverItsDeadlineReturnsErrLost(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		l, server := lockOnFake(t)
		pause(t, l.session, server)
		time.Sleep(time.Until(l.Deadline()))
		var lost *LostError
		if _, err := l.client.Lock(t.Context(), "b", "", WithSession(l.session)); !errors.As(err, &lost) || lost.Reason != Expired {
			t.Errorf("Lock: %v", err)
		}
		if err := l.Err(); !errors.Is(err, ErrLost) {
			t.Errorf("the lock that was held: %v", err)
		}
	})
}

// A machine that sleeps may stop its monotonic clock, which timers go by.
func TestDeadline_IsNoticedAtTheFirstUseAfterTheMachineSlept(t *testing.T) {
	t.Parallel()
	for name, use := range uses {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			l, server := lockOnFake(t)
			if err := l.Err(); err != nil {
				t.Fatal(err)
			}
			s := l.session
			pause(t, s, server)
			s.mu.Lock()
			s.deadline = jumped(t, s.deadline, time.Hour)
			s.mu.Unlock()
			wantExpired(t, l, server, use)
		})
	}
}

func TestCacheAge_GoesByTheClockThatHasGoneFurther(t *testing.T) {
	t.Parallel()
	const hour = time.Hour
	now := time.Now()
	for name, current := range map[string]time.Time{
		"it slept, and so did its monotonic clock": jumped(t, now, hour),
		"its wall clock was set back":              jumped(t, now.Add(-hour), -hour),
	} {
		if age := (&Cache{current: current}).Age(); age < hour {
			t.Errorf("%s: after an hour the age is %v", name, age)
		}
	}
}

func TestLock_OfAFreeNameAfterTheWallClockWasSetForwardIsOnANewSession(t *testing.T) {
	t.Parallel()
	for name, call := range map[string]func(*Client, *testing.T) (*Lock, error){
		"Lock":    func(c *Client, t *testing.T) (*Lock, error) { return c.Lock(t.Context(), "b", "") },
		"TryLock": func(c *Client, t *testing.T) (*Lock, error) { return c.TryLock(t.Context(), "b", "") },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			former, server := lockOnFake(t)
			s := former.session
			pause(t, s, server)
			s.mu.Lock()
			s.deadline = jumped(t, s.deadline, time.Hour)
			s.mu.Unlock()
			l, err := call(former.client, t)
			if err != nil {
				t.Fatal(err)
			}
			if l.session == s || l.Err() != nil {
				t.Errorf("%v, on the session that is over: %v", l.Err(), l.session == s)
			}
			if err := former.Err(); !errors.Is(err, ErrLost) {
				t.Errorf("the lock that was held: %v", err)
			}
		})
	}
}
