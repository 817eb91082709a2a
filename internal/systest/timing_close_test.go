package systest

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/client/v3/concurrency"

	"github.com/jagregory/locker/v2"
	"github.com/jagregory/locker/v2/internal/fakeetcd"
	"github.com/jagregory/locker/v2/internal/locktest"
)

// unreachable is a client with everything that Close has to end, over a connection of its own.
type unreachable struct {
	client       *locker.Client
	own, adopted *locker.Session
	foreign      *concurrency.Session // of the same connection, not yet adopted
	holds        []*locker.Lock
	waiting      <-chan locktest.Outcome
}

func startUnreachable(sim locktest.Simulation) unreachable {
	etcd := sim.Connect()
	u := unreachable{client: locktest.NewClient(sim, etcd, locker.WithTTL(simulatedTTL))}
	u.own, u.foreign = locktest.NewSession(sim, u.client), foreignSession(sim, etcd)
	var err error
	if u.adopted, err = u.client.AdoptSession(foreignSession(sim, etcd)); err != nil {
		sim.Fatal(err)
	}
	for name, opts := range map[string][]locker.LockOption{
		"shared": nil, "own": {locker.WithSession(u.own)}, "adopted": {locker.WithSession(u.adopted)},
	} {
		u.holds = append(u.holds, locktest.Lock(sim, u.client, name, "", opts...))
	}
	sim.Server.Write(locker.DefaultPrefix+"foreign/1", "", clientv3.NoLease) // which nobody deletes
	u.waiting = locktest.LockAsync(sim.Context(), u.client, "foreign", "", locker.WithSession(u.own))
	sim.At(time.Second) // so that it waits
	return u
}

// foreignSession returns a session of etcd's concurrency package, orphaned with the test.
func foreignSession(sim locktest.Simulation, etcd *clientv3.Client) *concurrency.Session {
	s, err := concurrency.NewSession(etcd, concurrency.WithTTL(int(simulatedTTL/time.Second)))
	if err != nil {
		sim.Fatal(err)
	}
	sim.Cleanup(s.Orphan)
	return s
}

// longestClose is how long Close and AdoptSession may take, if the TTL is no shorter.
const longestClose = 10 * time.Second

func TestClose_AndAdoptSessionAreBoundedWhileEtcdDoesNotAnswer(t *testing.T) {
	t.Parallel()
	calls := map[string]func(unreachable) error{
		"Session.Close":               func(u unreachable) error { return u.own.Close() },
		"Session.Close of an adopted": func(u unreachable) error { return u.adopted.Close() },
		"Client.Close":                func(u unreachable) error { return u.client.Close() },
		"AdoptSession":                func(u unreachable) error { _, err := u.client.AdoptSession(u.foreign); return err },
	}
	for what, fate := range map[string]fakeetcd.Fate{"the request is lost": {Lost: true}, "the answer is lost": {Unanswered: true}} {
		for name, call := range calls {
			// Before the attempts at a renewal, and in the middle of them.
			for _, delay := range []time.Duration{0, interval + askedAgain/2, certain - 1, certain} {
				t.Run(name+", "+what+", "+delay.String(), func(t *testing.T) {
					t.Parallel()
					locktest.Simulate(t, func(sim locktest.Simulation) {
						u := startUnreachable(sim)
						sim.Server.Decide(func(fakeetcd.Call) fakeetcd.Fate { return fate })
						time.Sleep(delay)
						began := time.Now()
						err := call(u)
						took := time.Since(began)
						if took > longestClose {
							t.Errorf("it took %v", took)
						}
						if !errors.Is(err, context.DeadlineExceeded) {
							t.Errorf("it returned %v after %v", err, took)
						}
						sim.Server.Decide(func(fakeetcd.Call) fakeetcd.Fate { return fakeetcd.Fate{} })
						_ = u.client.Close() // again, or to end what the call has left
						if got := locktest.Receive(sim, u.waiting); got.Err == nil {
							t.Error("Lock returned a lock")
						}
						for _, l := range u.holds {
							locktest.Receive(sim, l.Context().Done())
						}
					})
				})
			}
		}
	}
}

func TestClose_IsBoundedThoughTheTTLIsAYear(t *testing.T) {
	t.Parallel()
	const ttl = 365 * 24 * time.Hour
	calls := map[string]func(*testing.T, *locker.Client, *locker.Session) error{
		"Client.Close":  func(_ *testing.T, c *locker.Client, _ *locker.Session) error { return c.Close() },
		"Session.Close": func(_ *testing.T, _ *locker.Client, s *locker.Session) error { return s.Close() },
	}
	for name, call := range calls {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			locktest.Simulate(t, func(sim locktest.Simulation) {
				c := sim.Client(locker.WithTTL(ttl))
				s := locktest.NewSession(sim, c)
				locktest.Lock(sim, c, "a", "", locker.WithSession(s))
				locktest.Lock(sim, c, "b", "")
				sim.Server.Decide(func(fakeetcd.Call) fakeetcd.Fate { return fakeetcd.Fate{Lost: true} })
				began := time.Now()
				err := call(t, c, s)
				if took := time.Since(began); took > longestClose {
					t.Errorf("it took %v", took)
				}
				if lease := fmt.Sprintf("%x", s.Lease()); !errors.Is(err, context.DeadlineExceeded) || !strings.Contains(err.Error(), lease) || !strings.Contains(err.Error(), "runs out by itself") {
					t.Errorf("it returned %v", err)
				}
			})
		})
	}
}

func TestDo_ReturnsWithinABoundThoughTheTTLIsAYear(t *testing.T) {
	t.Parallel()
	for name, call := range map[string]func(*locker.Client, context.Context, string, string, func(context.Context, *locker.Lock) error, ...locker.LockOption) error{
		"Do": (*locker.Client).Do, "Campaign": (*locker.Client).Campaign,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			locktest.Simulate(t, func(sim locktest.Simulation) {
				c := sim.Client(locker.WithTTL(365 * 24 * time.Hour))
				var began time.Time
				err := call(c, sim.Context(), "a", "", func(context.Context, *locker.Lock) error {
					sim.Server.Decide(func(fakeetcd.Call) fakeetcd.Fate { return fakeetcd.Fate{Lost: true} })
					began = time.Now()
					return nil
				})
				if took := time.Since(began); took > longestClose || !errors.Is(err, context.DeadlineExceeded) {
					t.Errorf("it returned %v after %v", err, took)
				}
				if !strings.Contains(err.Error(), "goes on in the background for at most the TTL") {
					t.Errorf("it returned %v, which does not say what becomes of the lock", err)
				}
			})
		})
	}
}

// What Close could not confirm within its bound goes on: the lease might last for a year.
func TestSession_ThatWasNotConfirmedGoneIsRevokedWhenEtcdAnswersAgain(t *testing.T) {
	t.Parallel()
	locktest.Simulate(t, func(sim locktest.Simulation) {
		c := sim.Client(locker.WithTTL(365 * 24 * time.Hour))
		s := locktest.NewSession(sim, c)
		locktest.Lock(sim, c, "a", "", locker.WithSession(s))
		sim.Server.Decide(func(fakeetcd.Call) fakeetcd.Fate { return fakeetcd.Fate{Lost: true} })
		if err := s.Close(); err == nil {
			t.Error("Close returned nil")
		}
		sim.At(5 * time.Minute)
		sim.Server.Decide(func(fakeetcd.Call) fakeetcd.Fate { return fakeetcd.Fate{} })
		sim.At(6 * time.Minute)
		if leases := sim.Server.Leases(); len(leases) > 0 {
			t.Errorf("left: %v", leases)
		}
		if err := s.Close(); err != nil {
			t.Errorf("a second Close: %v", err)
		}
		if err := c.Close(); err != nil {
			t.Error(err)
		}
	})
}

// logGate is a log handler that blocks the goroutine that logs a certain message.
type logGate struct {
	slog.Handler
	message string
	entered chan struct{}
	open    chan struct{}
}

func (g logGate) Enabled(context.Context, slog.Level) bool { return true }

func (g logGate) Handle(_ context.Context, record slog.Record) error {
	if record.Message == g.message {
		close(g.entered)
		<-g.open
	}
	return nil
}

func TestClose_WaitsForWhatTheDeadlineHasStarted(t *testing.T) {
	t.Parallel()
	locktest.Simulate(t, func(sim locktest.Simulation) {
		g := logGate{Handler: slog.DiscardHandler, message: "session lost", entered: make(chan struct{}), open: make(chan struct{})}
		c := sim.Client(locker.WithTTL(simulatedTTL), locker.WithLogger(slog.New(g)))
		locktest.Lock(sim, c, "a", "")
		sim.Always(fakeetcd.KeepAlive, fakeetcd.Fate{Lost: true})
		sim.At(certain)
		locktest.Receive(sim, g.entered)
		closed := make(chan error, 1)
		go func() { closed <- c.Close() }()
		sim.At(5 * simulatedTTL)
		select {
		case err := <-closed:
			t.Errorf("Close returned %v", err)
			closed <- nil
		default:
		}
		close(g.open)
		locktest.Receive(sim, closed)
	})
}

func TestTryLock_WaitsUntilNothingIsLeftOfAHoldThatWasLost(t *testing.T) {
	t.Parallel()
	locktest.Simulate(t, func(sim locktest.Simulation) {
		c := sim.Client()
		s := locktest.NewSession(sim, c)
		l := locktest.Lock(sim, c, "a", "", locker.WithSession(s))
		locktest.Lock(sim, c, "other", "") // so that a shared session is open
		revoking := make(chan error, 1)
		sim.Always(fakeetcd.Revoke, fakeetcd.Fate{Before: time.Second})
		go func() { revoking <- s.Close() }()
		locktest.Receive(sim, l.Context().Done())
		began := time.Now()
		ctx, cancel := context.WithTimeout(sim.Context(), time.Second/2)
		defer cancel()
		if _, err := c.TryLock(ctx, "a", ""); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("it returned %v", err)
		}
		if took := time.Since(began); took < time.Second/2 || took > time.Second*3/4 {
			t.Errorf("it returned after %v", took)
		}
		if _, err := c.TryLock(sim.Context(), "a", ""); err != nil {
			t.Errorf("nobody holds the name: %v", err)
		}
		locktest.Want(t, locktest.Receive(sim, revoking), nil)
		if _, err := sim.Client().TryLock(sim.Context(), "a", ""); !errors.Is(err, locker.ErrLocked) {
			t.Errorf("another client: %v", err)
		}
	})
}

// The keys of a lease are asked for again like anything else of their size.
func TestAdoptSession_CloseIsHedgedWhateverItAsks(t *testing.T) {
	t.Parallel()
	for _, kind := range []fakeetcd.Kind{fakeetcd.TimeToLive, fakeetcd.Txn} {
		t.Run(string(kind), func(t *testing.T) {
			t.Parallel()
			locktest.Simulate(t, func(sim locktest.Simulation) {
				etcd := sim.Connect()
				c := locktest.NewClient(sim, etcd)
				s, err := c.AdoptSession(foreignSession(sim, etcd))
				if err != nil {
					t.Fatal(err)
				}
				locktest.Lock(sim, c, "a", "", locker.WithSession(s))
				lost := 0
				sim.Server.Decide(func(call fakeetcd.Call) fakeetcd.Fate {
					if call.Kind == kind && lost == 0 {
						lost++
						return fakeetcd.Fate{Lost: true}
					}
					return fakeetcd.Fate{}
				})
				began := time.Now()
				if err := s.Close(); err != nil {
					t.Errorf("after %v: %v", time.Since(began), err)
				}
				if took := time.Since(began); lost == 0 || took > 3*time.Second {
					t.Errorf("it took %v (%d lost)", took, lost)
				}
			})
		})
	}
}

func TestTryLock_ThatWaitsForADeadHoldEndsWithItsOwnSession(t *testing.T) {
	t.Parallel()
	locktest.Simulate(t, func(sim locktest.Simulation) {
		c := sim.Client()
		dead, own := locktest.NewSession(sim, c), locktest.NewSession(sim, c)
		l := locktest.Lock(sim, c, "a", "", locker.WithSession(dead))
		sim.Always(fakeetcd.Revoke, fakeetcd.Fate{Before: 2 * time.Second})
		closing := locktest.Async(dead.Close)
		locktest.Receive(sim, l.Context().Done())
		began := time.Now()
		time.AfterFunc(time.Second, func() { _ = own.Close() })
		if _, err := c.TryLock(sim.Context(), "a", "", locker.WithSession(own)); !errors.Is(err, locker.ErrClosed) {
			t.Errorf("it returned %v", err)
		}
		if took := time.Since(began); took > time.Second+time.Second/10 {
			t.Errorf("it returned after %v", took)
		}
		locktest.Want(t, locktest.Receive(sim, closing), nil)
	})
}

func TestTryLock_DoesNotWaitForAFunctionOfDo(t *testing.T) {
	t.Parallel()
	locktest.Simulate(t, func(sim locktest.Simulation) {
		c := sim.Client()
		s := locktest.NewSession(sim, c)
		closing := make(chan error, 1)
		_ = c.Do(sim.Context(), "a", "", func(ctx context.Context, _ *locker.Lock) error {
			go func() { closing <- s.Close() }()
			locktest.Receive(sim, ctx.Done())
			began := time.Now()
			if _, err := c.TryLock(sim.Context(), "a", ""); !errors.Is(err, locker.ErrLocked) || time.Since(began) > 0 {
				t.Errorf("under the function it returned %v after %v", err, time.Since(began))
			}
			return nil
		}, locker.WithSession(s))
		locktest.Want(t, locktest.Receive(sim, closing), nil)
	})
}
