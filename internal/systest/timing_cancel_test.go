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
)

// errGaveUp is why the calls of a sweep end.
var errGaveUp = errors.New("gave up")

const (
	// bound is how long after its context a call may return.
	bound = 100 * time.Millisecond
	// released is when, after a call of a sweep has begun, what is ahead of it goes.
	released = 40 * time.Millisecond
	// outage is how long etcd does not answer, if it does not.
	outage = time.Second
)

// stage is where a call is made again and again and given up later each time, until
// it is over before.
type stage struct {
	simulation
	client, other *locker.Client
}

// attempt is one call, once what it needs is there, and what follows it in any case.
type attempt struct {
	call  func(context.Context) error
	tidy  func()
	bound time.Duration // if it may take longer than others
}

// acquiring is an attempt at a lock, which is given back if it was taken.
func (s stage) acquiring(acquire func(ctx context.Context, name, value string, opts ...locker.LockOption) (*locker.Lock, error), tidy func()) attempt {
	var l *locker.Lock
	return attempt{
		call: func(ctx context.Context) (err error) { l, err = acquire(ctx, "a", ""); return err },
		tidy: func() {
			if l != nil {
				unlock(s, l)
			}
			tidy()
		},
	}
}

// using is an attempt to use a lock that is held.
func (s stage) using(use func(context.Context, *locker.Lock) error) attempt {
	l := lock(s, s.client, "a", "")
	return attempt{call: func(ctx context.Context) error { return use(ctx, l) }, tidy: func() { unlock(s, l) }}
}

// alone is an attempt that nothing follows.
func alone(call func(context.Context) error) attempt { return attempt{call: call, tidy: nothing} }

func nothing() {}

// occupied has a client hold the name for some time, and returns what waits for its end.
func (s stage) occupied(c *locker.Client) (wait func()) {
	l := lock(s, c, "a", "")
	done := make(chan error, 1)
	time.AfterFunc(released, func() { done <- l.Unlock(s.Context()) })
	return func() {
		if err := <-done; err != nil {
			s.Errorf("the one ahead: %v", err)
		}
	}
}

// first returns the error of what a watch yields first.
func first(states iter.Seq2[locker.State, error]) (err error) {
	for _, err = range states {
		break
	}
	return err
}

var attempts = map[string]func(s stage) attempt{
	"Lock of a free name": func(s stage) attempt { return s.acquiring(s.client.Lock, nothing) },
	"Lock of a client without a session": func(s stage) attempt {
		c := s.simulation.Client()
		return s.acquiring(c.Lock, func() { _ = c.Close() }) // it is no news that it was given up
	},
	"Lock behind another client": func(s stage) attempt { return s.acquiring(s.client.Lock, s.occupied(s.other)) },
	"Lock behind many others": func(s stage) attempt {
		for i := range time.Duration(12) {
			key := fmt.Sprintf("locker/a/%d", i)
			s.Server.Write(key, "", 0)
			time.AfterFunc(released+i*time.Millisecond, func() { s.Server.Delete(key) })
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
		time.Sleep(released / 2)
		return s.acquiring(s.client.Lock, func() {
			wait()
			if err := <-ahead; err != nil {
				s.Errorf("the goroutine ahead: %v", err)
			}
		})
	},
	"TryLock of a free name": func(s stage) attempt { return s.acquiring(s.client.TryLock, nothing) },
	"TryLock of a locked name": func(s stage) attempt {
		l := lock(s, s.other, "a", "")
		call := func(ctx context.Context) error {
			if _, err := s.client.TryLock(ctx, "a", ""); !errors.Is(err, locker.ErrLocked) {
				return err
			}
			return nil
		}
		return attempt{call: call, tidy: func() { unlock(s, l) }}
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
		a.bound = locker.DefaultTTL // the release has that time
		return a
	},
	"Unlock": func(s stage) attempt {
		return alone(lock(s, s.client, "a", "").Unlock)
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
					s.Error("the session was not confirmed gone")
				}
			},
		}
	},
	"Watch": func(s stage) attempt {
		return alone(func(ctx context.Context) error { return first(s.client.Watch(ctx, "a")) })
	},
	"WatchPrefix": func(s stage) attempt {
		return alone(func(ctx context.Context) error { return first(s.client.WatchPrefix(ctx, "")) })
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
	for name, prepare := range attempts {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			simulate(t, func(sim simulation) { newStage(sim).sweep(prepare, time.Millisecond, func() {}) })
		})
	}
}

func TestContext_MayEndWhenEtcdStopsAnsweringAndTheCallLeavesNothing(t *testing.T) {
	t.Parallel()
	for name, prepare := range attempts {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			simulate(t, func(sim simulation) {
				s := newStage(sim)
				s.sweep(prepare, 3*time.Millisecond, func() {
					s.Server.Decide(func(fakeetcd.Call) fakeetcd.Fate { return fakeetcd.Fate{Lost: true} })
					time.AfterFunc(outage, s.slow)
				})
			})
		})
	}
}

// newStage returns one where two clients have a session, and one a hold that has
// nothing to do with the calls.
func newStage(sim simulation) stage {
	s := stage{simulation: sim, client: sim.Client(), other: sim.Client()}
	unlock(s, lock(s, s.client, "a", ""))
	lock(s, s.other, "held", "")
	s.slow()
	return s
}

// slow has each request take 10 ms.
func (s stage) slow() {
	s.Server.Decide(func(fakeetcd.Call) fakeetcd.Fate {
		return fakeetcd.Fate{Before: 5 * time.Millisecond, After: 5 * time.Millisecond}
	})
}

// sweep makes the attempts, each given up a step later than the one before. When it is,
// something happens.
func (s stage) sweep(prepare func(stage) attempt, step time.Duration, happens func()) {
	keys, leases := s.entries(), s.Server.Leases()
	cut, whole := 0, 0
	for at := time.Duration(0); whole < 3; at += step {
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
			whole++
		case errors.Is(err, errGaveUp):
			cut++
			whole = 0
		default:
			s.Fatalf("given up after %v: %v", at, err)
		}
		if took > at+max(bound, a.bound) {
			s.Fatalf("given up after %v, it returned after %v", at, took)
		}
		time.Sleep(outage)
		a.tidy()
		time.Sleep(5 * time.Second) // for what goes on in the background
		if left := s.entries(); !slices.Equal(left, keys) {
			s.Fatalf("given up after %v, it left %v beside %v", at, left, keys)
		}
		if left := s.Server.Leases(); !slices.Equal(left, leases) {
			s.Fatalf("given up after %v, it left %v beside %v", at, left, leases)
		}
	}
	if cut < 3 {
		s.Errorf("it was given up %d times only", cut)
	}
}

// entries returns the keys in all queues.
func (s stage) entries() []string {
	return slices.DeleteFunc(s.Server.Keys(), func(key string) bool {
		return !strings.HasPrefix(key, locker.DefaultPrefix) || strings.HasPrefix(key, locker.DefaultPrefix+"/")
	})
}
