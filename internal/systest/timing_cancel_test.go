package systest

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"slices"
	"strings"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/jagregory/locker/v2"
	"github.com/jagregory/locker/v2/internal/fakeetcd"
	"github.com/jagregory/locker/v2/internal/locktest"
)

// errGaveUp is the cause with which the contexts of a sweep end.
var errGaveUp = errors.New("gave up")

const (
	// bound is how long a call may take once its context has ended.
	bound = 100 * time.Millisecond
	// releasedAfter is how long after the beginning of a call the holder ahead of it unlocks.
	releasedAfter = 40 * time.Millisecond
	// outage is how long etcd does not answer in the test in which it stops answering.
	outage = time.Second
)

// stage is where a call is made again and again, and canceled a little later each time,
// until it completes before that.
type stage struct {
	locktest.Simulation
	client, other *locker.Client
}

// attempt is one call, and what follows it however it ends.
type attempt struct {
	call  func(context.Context) error
	tidy  func()
	bound time.Duration // if it may take longer than others
}

// acquiring is an attempt at a lock, which is released if it was acquired.
func (s stage) acquiring(acquire func(ctx context.Context, name, value string, opts ...locker.LockOption) (*locker.Lock, error), tidy func()) attempt {
	var l *locker.Lock
	return attempt{
		call: func(ctx context.Context) (err error) { l, err = acquire(ctx, "a", ""); return err },
		tidy: func() {
			if l != nil {
				locktest.Unlock(s, l)
			}
			tidy()
		},
	}
}

// using is an attempt to use a lock that is held.
func (s stage) using(use func(context.Context, *locker.Lock) error) attempt {
	l := locktest.Lock(s, s.client, "a", "")
	return attempt{call: func(ctx context.Context) error { return use(ctx, l) }, tidy: func() { locktest.Unlock(s, l) }}
}

// alone is an attempt that nothing follows.
func alone(call func(context.Context) error) attempt { return attempt{call: call, tidy: nothing} }

func nothing() {}

// occupied has a client hold the name for a while, and returns a function that waits for its release.
func (s stage) occupied(c *locker.Client) (wait func()) {
	l := locktest.Lock(s, c, "a", "")
	done := make(chan error, 1)
	time.AfterFunc(releasedAfter, func() { done <- l.Unlock(s.Context()) })
	return func() {
		if err := <-done; err != nil {
			s.Errorf("the holder ahead: %v", err)
		}
	}
}

// firstError returns the error that a watch yields first, if any.
func firstError(states iter.Seq2[locker.State, error]) (err error) {
	for _, err = range states {
		break
	}
	return err
}

// everyCall returns the attempt at each call, by name.
var everyCall = map[string]func(s stage) attempt{
	"Lock of a free name": func(s stage) attempt { return s.acquiring(s.client.Lock, nothing) },
	"Lock of a client without a session": func(s stage) attempt {
		c := s.Simulation.Client()
		return s.acquiring(c.Lock, func() { _ = c.Close() }) // its error, if any, is that the call was canceled
	},
	"Lock behind another client": func(s stage) attempt { return s.acquiring(s.client.Lock, s.occupied(s.other)) },
	"Lock behind many others": func(s stage) attempt {
		for i := range time.Duration(12) {
			key := fmt.Sprintf("locker/a/%d", i)
			s.Server.Write(key, "", 0)
			time.AfterFunc(releasedAfter+i*time.Millisecond, func() { s.Server.Delete(key) })
		}
		return s.acquiring(s.client.Lock, nothing)
	},
	"Lock behind another goroutine": func(s stage) attempt { return s.acquiring(s.client.Lock, s.occupied(s.client)) },
	"Lock behind another goroutine that waits": func(s stage) attempt {
		wait := s.occupied(s.other)
		ahead := make(chan error, 1)
		go func() {
			l, err := s.client.Lock(s.Context(), "a", "")
			if err == nil {
				err = l.Unlock(s.Context())
			}
			ahead <- err
		}()
		time.Sleep(releasedAfter / 2)
		return s.acquiring(s.client.Lock, func() {
			wait()
			if err := <-ahead; err != nil {
				s.Errorf("the goroutine ahead: %v", err)
			}
		})
	},
	"TryLock of a free name": func(s stage) attempt { return s.acquiring(s.client.TryLock, nothing) },
	"TryLock of a locked name": func(s stage) attempt {
		l := locktest.Lock(s, s.other, "a", "")
		call := func(ctx context.Context) error {
			if _, err := s.client.TryLock(ctx, "a", ""); !errors.Is(err, locker.ErrLocked) {
				return err
			}
			return nil
		}
		return attempt{call: call, tidy: func() { locktest.Unlock(s, l) }}
	},
	"Do": func(s stage) attempt {
		fn := func(ctx context.Context, _ *locker.Lock) error {
			select {
			case <-time.After(10 * time.Millisecond):
			case <-ctx.Done():
			}
			return context.Cause(ctx)
		}
		a := alone(func(ctx context.Context) error { return s.client.Do(ctx, "a", "", fn) })
		a.bound = locker.DefaultTTL // the release may take that long
		return a
	},
	"Unlock": func(s stage) attempt {
		return alone(locktest.Lock(s, s.client, "a", "").Unlock)
	},
	"Commit": func(s stage) attempt {
		return s.using(func(ctx context.Context, l *locker.Lock) error {
			_, err := l.Commit(ctx, clientv3.OpPut("x", ""))
			return err
		})
	},
	"SetValue": func(s stage) attempt {
		return s.using(func(ctx context.Context, l *locker.Lock) error { return l.SetValue(ctx, "x") })
	},
	"Get": func(s stage) attempt {
		return alone(func(ctx context.Context) error { _, err := s.client.Get(ctx, "held"); return err })
	},
	"List": func(s stage) attempt {
		return alone(func(ctx context.Context) error { _, err := s.client.List(ctx, ""); return err })
	},
	"Owners": func(s stage) attempt {
		return alone(func(ctx context.Context) error { _, err := s.client.Owners(ctx); return err })
	},
	"NewSession": func(s stage) attempt {
		session := (*locker.Session)(nil)
		return attempt{
			call: func(ctx context.Context) (err error) { session, err = s.client.NewSession(ctx); return err },
			tidy: func() {
				if session != nil && session.Close() != nil {
					s.Error("the end of the session was not confirmed")
				}
			},
		}
	},
	"Watch": func(s stage) attempt {
		return alone(func(ctx context.Context) error { return firstError(s.client.Watch(ctx, "a")) })
	},
	"WatchPrefix": func(s stage) attempt {
		return alone(func(ctx context.Context) error { return firstError(s.client.WatchPrefix(ctx, "")) })
	},
	"NewCache": func(s stage) attempt {
		return alone(func(ctx context.Context) error {
			k, err := s.client.NewCache(ctx, "")
			if err == nil {
				k.Close()
			}
			return err
		})
	},
}

func TestContext_MayEndAtAnyMomentAndTheCallLeavesNothing(t *testing.T) {
	t.Parallel()
	for name, prepare := range everyCall {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			locktest.Simulate(t, func(sim locktest.Simulation) { newStage(sim).sweep(prepare, 4*time.Millisecond, func() {}) })
		})
	}
}

func TestContext_MayEndWhenEtcdStopsAnsweringAndTheCallLeavesNothing(t *testing.T) {
	t.Parallel()
	for name, prepare := range everyCall {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			locktest.Simulate(t, func(sim locktest.Simulation) {
				s := newStage(sim)
				s.sweep(prepare, 8*time.Millisecond, func() {
					s.Server.Decide(func(fakeetcd.Call) fakeetcd.Fate { return fakeetcd.Fate{Lost: true} })
					time.AfterFunc(outage, s.slow)
				})
			})
		})
	}
}

// newStage returns a stage with two clients that have a session each. One of them also
// holds a name that the calls do not use.
func newStage(sim locktest.Simulation) stage {
	s := stage{Simulation: sim, client: sim.Client(), other: sim.Client()}
	locktest.Unlock(s, locktest.Lock(s, s.client, "a", ""))
	locktest.Lock(s, s.other, "held", "")
	s.slow()
	return s
}

// slow makes each request take 50 ms, which is longer than a call waits for an answer after
// its context has ended.
func (s stage) slow() {
	s.Server.Decide(func(fakeetcd.Call) fakeetcd.Fate {
		return fakeetcd.Fate{Before: 25 * time.Millisecond, After: 25 * time.Millisecond}
	})
}

// sweep makes the attempts, each canceled later than the one before. happens is called just
// before each cancellation.
func (s stage) sweep(prepare func(stage) attempt, later time.Duration, happens func()) {
	keys, leases := s.entries(), s.Server.Leases()
	canceled, completed := 0, 0
	for at := time.Duration(0); completed < 3; at += later {
		a := prepare(s)
		ctx, cancel := context.WithCancelCause(s.Context())
		began := time.Now()
		end := time.AfterFunc(at, func() { happens(); cancel(errGaveUp) })
		err := a.call(ctx)
		took := time.Since(began)
		end.Stop()
		cancel(nil)
		switch {
		case err == nil:
			completed++
		case errors.Is(err, errGaveUp):
			canceled++
			completed = 0
		default:
			s.Fatalf("canceled after %v: %v", at, err)
		}
		if took > at+max(bound, a.bound) {
			s.Fatalf("canceled after %v, it returned after %v", at, took)
		}
		time.Sleep(outage)
		a.tidy()
		time.Sleep(5 * time.Second) // for what goes on in the background
		if left := s.entries(); !slices.Equal(left, keys) {
			s.Fatalf("canceled after %v, it left %v, want %v", at, left, keys)
		}
		if left := s.Server.Leases(); !slices.Equal(left, leases) {
			s.Fatalf("canceled after %v, it left %v, want %v", at, left, leases)
		}
	}
	if canceled < 3 {
		s.Errorf("it was canceled only %d times", canceled)
	}
}

// entries returns the keys in all queues.
func (s stage) entries() []string {
	return slices.DeleteFunc(s.Server.Keys(), func(key string) bool {
		return !strings.HasPrefix(key, locker.DefaultPrefix) || strings.HasPrefix(key, locker.DefaultPrefix+"/")
	})
}
