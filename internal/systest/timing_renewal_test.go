package systest

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"

	"github.com/jagregory/locker/v2"
	"github.com/jagregory/locker/v2/internal/fakeetcd"
	"github.com/jagregory/locker/v2/internal/locktest"
)

// What follows from a TTL of 12 s: a renewal every 4 s, asked for again at growing
// intervals, and a hold that is certain for 10.8 s after a renewal was sent.
const (
	simulatedTTL = 12 * time.Second
	interval     = simulatedTTL / 3
	askedAgain   = 800 * time.Millisecond
	certain      = simulatedTTL - simulatedTTL/10
)

// asked are the times at which an unanswered renewal is asked for until the deadline, relative to its beginning.
var asked = []time.Duration{0, askedAgain, 3 * askedAgain, 3*askedAgain + simulatedTTL/6, 3*askedAgain + simulatedTTL/3}

// shifted returns the times, each later by d.
func shifted(d time.Duration, times []time.Duration) (moved []time.Duration) {
	for _, at := range times {
		moved = append(moved, d+at)
	}
	return moved
}

func TestDeadline_CountsFromWhenTheRenewalWasSent(t *testing.T) {
	t.Parallel()
	for _, late := range []time.Duration{0, time.Nanosecond, askedAgain - 1, 2500 * time.Millisecond, certain - interval - 1} {
		for way, fate := range map[string]fakeetcd.Fate{"on its way": {Before: late}, "on its way back": {After: late}} {
			t.Run(fmt.Sprint(late, " ", way), func(t *testing.T) {
				t.Parallel()
				locktest.Simulate(t, func(sim locktest.Simulation) {
					sim.Always(fakeetcd.KeepAlive, fate)
					l := locktest.Lock(sim, sim.Client(locker.WithTTL(simulatedTTL)), "a", "")
					sim.At(interval + late - 1)
					if got := sim.Deadline(l); got != certain {
						t.Errorf("before the answer, the deadline is %v", got)
					}
					sim.At(interval + late)
					if got := sim.Deadline(l); got != interval+certain {
						t.Errorf("the deadline is %v", got)
					}
				})
			})
		}
	}
}

func TestDeadline_TheFirstCountsFromWhenTheGrantWasSent(t *testing.T) {
	t.Parallel()
	locktest.Simulate(t, func(sim locktest.Simulation) {
		sim.Always(fakeetcd.Grant, fakeetcd.Fate{Before: time.Second / 2, After: time.Second / 2})
		l := locktest.Lock(sim, sim.Client(locker.WithTTL(simulatedTTL)), "a", "")
		if now := time.Since(sim.Start); now != time.Second || sim.Deadline(l) != certain {
			t.Errorf("granted after %v until %v", now, sim.Deadline(l))
		}
		sim.At(interval)
		if sent := sim.Sent(fakeetcd.KeepAlive); !slices.Equal(sent, []time.Duration{interval}) {
			t.Errorf("renewed at %v", sent)
		}
	})
}

func TestRenewal_WhoseAnswerIsLostIsAskedForAgain(t *testing.T) {
	t.Parallel()
	for name, fate := range map[string]fakeetcd.Fate{"the request": {Lost: true}, "the answer": {Unanswered: true}} {
		for n := range 4 {
			t.Run(fmt.Sprintf("%d times %s", n, name), func(t *testing.T) {
				t.Parallel()
				locktest.Simulate(t, func(sim locktest.Simulation) {
					sim.Fates(slices.Repeat([]fakeetcd.Fate{fate}, n)...)
					l := locktest.Lock(sim, sim.Client(locker.WithTTL(simulatedTTL)), "a", "")
					answered := interval + asked[n]
					sim.At(answered)
					if got := sim.Deadline(l); got != answered+certain {
						t.Errorf("the deadline is %v", got)
					}
					sim.At(answered + interval)
					if sent := sim.Sent(fakeetcd.KeepAlive); !slices.Equal(sent, append(shifted(interval, asked[:n+1]), answered+interval)) {
						t.Errorf("asked at %v", sent)
					}
				})
			})
		}
	}
}

func TestRenewal_TheFirstAnswerCountsThoughItWasAskedForAgain(t *testing.T) {
	t.Parallel()
	locktest.Simulate(t, func(sim locktest.Simulation) {
		sim.Fates(fakeetcd.Fate{After: 1500 * time.Millisecond}, fakeetcd.Fate{After: time.Second})
		l := locktest.Lock(sim, sim.Client(locker.WithTTL(simulatedTTL)), "a", "")
		sim.At(interval + 1500*time.Millisecond)
		if got := sim.Deadline(l); got != interval+certain {
			t.Errorf("the deadline is %v", got)
		}
		sim.At(2 * interval)
		if sent := sim.Sent(fakeetcd.KeepAlive); !slices.Equal(sent, []time.Duration{interval, interval + askedAgain, 2 * interval}) {
			t.Errorf("asked at %v", sent)
		}
	})
}

func TestDeadline_IsNotMovedBackByAnOlderAnswerAfterANewer(t *testing.T) {
	t.Parallel()
	locktest.Simulate(t, func(sim locktest.Simulation) {
		sim.Fates(fakeetcd.Fate{After: 3 * time.Second})
		l := locktest.Lock(sim, sim.Client(locker.WithTTL(simulatedTTL)), "a", "")
		newer := interval + askedAgain
		for at := newer; at < newer+interval; at += time.Second / 2 {
			sim.At(at) // the older answer comes at 7 s
			if got := sim.Deadline(l); got != newer+certain {
				t.Errorf("after %v the deadline is %v", at, got)
			}
		}
		sim.At(newer + interval)
		if got := sim.Deadline(l); got != newer+interval+certain {
			t.Errorf("after the next renewal the deadline is %v", got)
		}
	})
}

func TestDeadline_IsAlwaysThatOfARenewalThatWasAnswered(t *testing.T) {
	t.Parallel()
	for seed := range uint64(10) {
		locktest.Simulate(t, func(sim locktest.Simulation) {
			random := rand.New(rand.NewPCG(seed, 0))
			sim.Server.Decide(func(call fakeetcd.Call) fakeetcd.Fate {
				if call.Kind != fakeetcd.KeepAlive {
					return fakeetcd.Fate{}
				}
				return fakeetcd.Fate{
					Before:     time.Duration(random.Int64N(int64(time.Second))),
					After:      time.Duration(random.ExpFloat64() * float64(time.Second/2)),
					Unanswered: random.IntN(5) == 0,
				}
			})
			l := locktest.Lock(sim, sim.Client(locker.WithTTL(simulatedTTL)), "a", "")
			lease := sim.Server.Leases()[0]
			last := sim.Deadline(l)
			moved := 0
			for at := time.Duration(0); at < 3*time.Minute && l.Err() == nil; at += 100 * time.Millisecond {
				sim.At(at)
				deadline := sim.Deadline(l)
				if deadline < last {
					t.Fatalf("seed %d: after %v the deadline went back from %v to %v", seed, at, last, deadline)
				}
				if deadline != last {
					moved++
					if !slices.Contains(sim.Sent(fakeetcd.KeepAlive), deadline-certain) {
						t.Fatalf("seed %d: after %v the deadline is %v, but nothing was sent at %v", seed, at, deadline, deadline-certain)
					}
				}
				if until := sim.Server.Until(lease).Sub(sim.Start); deadline > until-simulatedTTL/10 {
					t.Fatalf("seed %d: after %v the deadline is %v, but etcd's %v", seed, at, deadline, until)
				}
				last = deadline
			}
			if moved < 3 {
				t.Errorf("seed %d: the deadline moved only %d times", seed, moved)
			}
		})
	}
}

func TestRenewal_TakesPlaceOnceInEachThirdOfTheTTL(t *testing.T) {
	t.Parallel()
	for _, ttl := range []time.Duration{time.Second, 10 * time.Second, 17 * time.Minute, 365 * 24 * time.Hour} {
		t.Run(ttl.String(), func(t *testing.T) {
			t.Parallel()
			locktest.Simulate(t, func(sim locktest.Simulation) {
				l := locktest.Lock(sim, sim.Client(locker.WithTTL(ttl)), "a", "")
				var want []time.Duration
				for i := range time.Duration(100) {
					want = append(want, (i+1)*(ttl/3))
				}
				sim.At(100 * (ttl / 3))
				if sent := sim.Sent(fakeetcd.KeepAlive); !slices.Equal(sent, want) {
					t.Errorf("renewed at %v", sent)
				}
				if l.Err() != nil || sim.Deadline(l) != 100*(ttl/3)+ttl-ttl/10 {
					t.Errorf("%v, the deadline is %v", l.Err(), sim.Deadline(l))
				}
			})
		})
	}
}

func TestRenewal_GoesOnWhileTheFunctionOfDoBlocks(t *testing.T) {
	t.Parallel()
	const blocked = 10 * time.Minute
	locktest.Simulate(t, func(sim locktest.Simulation) {
		c, other := sim.Client(locker.WithTTL(simulatedTTL)), sim.Client()
		err := c.Do(sim.Context(), "a", "v", func(ctx context.Context, l *locker.Lock) error {
			sim.At(blocked) // the function does nothing meanwhile
			if holder, err := other.Get(sim.Context(), "a"); err != nil || holder.Token != l.Token() {
				t.Errorf("the holder is %+v, %v", holder, err)
			}
			if sent := sim.Sent(fakeetcd.KeepAlive); len(sent) < int(blocked/interval)-1 {
				t.Errorf("renewed only %d times", len(sent))
			}
			return errors.Join(ctx.Err(), l.Err())
		})
		if err != nil {
			t.Error(err)
		}
		if queue := sim.Server.Queue(locker.DefaultPrefix + "a/"); len(queue) > 0 {
			t.Errorf("left in the queue: %v", queue)
		}
	})
}

func TestGrant_ItsTTLIsTheOneThatCounts(t *testing.T) {
	t.Parallel()
	const granted = 30 * time.Second
	locktest.Simulate(t, func(sim locktest.Simulation) {
		sim.Always(fakeetcd.Grant, fakeetcd.Fate{TTL: int64(granted / time.Second)})
		l := locktest.Lock(sim, sim.Client(locker.WithTTL(simulatedTTL)), "a", "")
		if got := sim.Deadline(l); got != granted-granted/10 {
			t.Errorf("the deadline is %v", got)
		}
		sim.At(granted)
		if sent := sim.Sent(fakeetcd.KeepAlive); !slices.Equal(sent, []time.Duration{granted / 3, 2 * (granted / 3), granted}) {
			t.Errorf("renewed at %v", sent)
		}
		if got := sim.Deadline(l); got != 2*granted-granted/10 {
			t.Errorf("the last deadline is %v", got)
		}
	})
}

func TestRenewal_OfALeaseThatIsGoneEndsTheHold(t *testing.T) {
	t.Parallel()
	locktest.Simulate(t, func(sim locktest.Simulation) {
		l := locktest.Lock(sim, sim.Client(locker.WithTTL(simulatedTTL)), "a", "")
		ended := sim.Ending(l)
		sim.At(interval - 1)
		sim.Server.Expire(sim.Server.Leases()[0])
		if err := l.Err(); err != nil {
			t.Errorf("before the renewal: %v", err)
		}
		sim.At(interval)
		var lost *locker.LostError
		if err := l.Err(); !errors.As(err, &lost) || lost.Reason != locker.Revoked || !errors.Is(err, rpctypes.ErrLeaseNotFound) {
			t.Errorf("after it: %v", err)
		}
		if at := locktest.Receive(sim, ended); at != interval {
			t.Errorf("the hold ended after %v", at)
		}
	})
}

func TestDeadline_EndsTheHoldWithoutAnAnswer(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		fate fakeetcd.Fate
		why  error
	}{
		"lost":       {fakeetcd.Fate{Lost: true}, nil},
		"unanswered": {fakeetcd.Fate{Unanswered: true}, nil},
		"refused":    {fakeetcd.Fate{Err: rpctypes.ErrGRPCNoLeader}, rpctypes.ErrNoLeader},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			locktest.Simulate(t, func(sim locktest.Simulation) {
				sim.Always(fakeetcd.KeepAlive, c.fate)
				l := locktest.Lock(sim, sim.Client(locker.WithTTL(simulatedTTL)), "a", "")
				ended := sim.Ending(l)
				sim.At(certain - 1)
				if err := l.Err(); err != nil {
					t.Errorf("before the deadline: %v", err)
				}
				time.Sleep(time.Nanosecond) // without anything else: the first call that looks at the clock must notice
				var lost *locker.LostError
				if err := l.Err(); !errors.As(err, &lost) || lost.Reason != locker.Expired || !errors.Is(lost.Cause, c.why) {
					t.Errorf("at the deadline: %v", err)
				}
				if at := locktest.Receive(sim, ended); at != certain {
					t.Errorf("the hold ended after %v", at)
				}
				if sent := sim.Sent(fakeetcd.KeepAlive); !slices.Equal(sent, shifted(interval, asked)) {
					t.Errorf("asked at %v", sent)
				}
			})
		})
	}
}

func TestDeadline_AnAnswerAfterItRevivesNothing(t *testing.T) {
	t.Parallel()
	for name, late := range map[string]time.Duration{"at the deadline": 0, "just after it": 1, "after it": time.Second} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			locktest.Simulate(t, func(sim locktest.Simulation) {
				// All answers arrive at the same moment, so that none of them counts earlier.
				sim.Server.Decide(func(call fakeetcd.Call) fakeetcd.Fate {
					if answer := sim.Start.Add(certain + late); call.Kind == fakeetcd.KeepAlive && call.At.Before(answer) {
						return fakeetcd.Fate{After: answer.Sub(call.At)}
					}
					return fakeetcd.Fate{}
				})
				c := sim.Client(locker.WithTTL(simulatedTTL))
				l := locktest.Lock(sim, c, "a", "")
				lease := sim.Server.Leases()[0]
				ended := sim.Ending(l)
				sim.At(certain + late)
				if err := l.Err(); !errors.Is(err, locker.ErrLost) {
					t.Errorf("at the answer: %v", err)
				}
				sim.At(3 * simulatedTTL)
				if at := locktest.Receive(sim, ended); at != certain || !errors.Is(l.Err(), locker.ErrLost) {
					t.Errorf("the hold ended after %v: %v", at, l.Err())
				}
				if keys := sim.Server.Keys(); len(keys) > 0 {
					t.Errorf("left in etcd: %v", keys)
				}
				if again := locktest.Lock(sim, c, "a", ""); again.Token() <= l.Token() || slices.Contains(sim.Server.Leases(), lease) {
					t.Errorf("token %d after %d, leases %v after %v", again.Token(), l.Token(), sim.Server.Leases(), lease)
				}
			})
		})
	}
}

func TestGrant_ThatIsRepeatedLeavesOneLease(t *testing.T) {
	t.Parallel()
	const again = askedAgain // after that a request is hedged
	for name, c := range map[string]struct {
		fate fakeetcd.Fate
		from time.Duration // when the request was sent that the deadline counts from
	}{
		"lost":                      {fakeetcd.Fate{Lost: true}, again},
		"unanswered":                {fakeetcd.Fate{Unanswered: true}, again},
		"answered late":             {fakeetcd.Fate{After: again + time.Second}, again},
		"late on its way":           {fakeetcd.Fate{Before: again + time.Second}, again},
		"answered at the same time": {fakeetcd.Fate{After: again - 1}, 0},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			locktest.Simulate(t, func(sim locktest.Simulation) {
				sim.Server.Decide(func(call fakeetcd.Call) fakeetcd.Fate {
					if call.Kind == fakeetcd.Grant && call.N == 0 {
						return c.fate
					}
					return fakeetcd.Fate{}
				})
				l := locktest.Lock(sim, sim.Client(locker.WithTTL(simulatedTTL)), "a", "")
				if got := sim.Deadline(l); got != c.from+certain {
					t.Errorf("the deadline is %v", got)
				}
				sim.At(certain)
				ids := make(map[int64]bool)
				for _, call := range sim.Server.Calls(fakeetcd.Grant) {
					ids[call.Request.(*pb.LeaseGrantRequest).ID] = true
				}
				if leases := sim.Server.Leases(); len(leases) != 1 || len(ids) != 1 || l.Err() != nil {
					t.Errorf("leases %v, asked for %v, %v", leases, ids, l.Err())
				}
			})
		})
	}
}

func TestRenewal_IsAskedForAgainSoonHoweverLongTheTTL(t *testing.T) {
	t.Parallel()
	for _, ttl := range []time.Duration{time.Minute, time.Hour, 365 * 24 * time.Hour} {
		t.Run(ttl.String(), func(t *testing.T) {
			t.Parallel()
			locktest.Simulate(t, func(sim locktest.Simulation) {
				sim.Fates(fakeetcd.Fate{Unanswered: true})
				l := locktest.Lock(sim, sim.Client(locker.WithTTL(ttl)), "a", "")
				sim.At(ttl/3 + 3*time.Second)
				if got := sim.Deadline(l); got < ttl/3+ttl-ttl/10 {
					t.Errorf("the deadline is %v", got)
				}
			})
		})
	}
}

func TestRenewal_IsAskedForSeldomWhileEtcdIsAway(t *testing.T) {
	t.Parallel()
	const away = 2 * time.Hour
	for name, fate := range map[string]fakeetcd.Fate{"lost": {Lost: true}, "refused": {Err: rpctypes.ErrGRPCNoLeader}} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			locktest.Simulate(t, func(sim locktest.Simulation) {
				const ttl = 365 * 24 * time.Hour
				sim.Always(fakeetcd.KeepAlive, fate)
				l := locktest.Lock(sim, sim.Client(locker.WithTTL(ttl)), "a", "")
				sim.At(ttl/3 + away)
				if n := len(sim.Sent(fakeetcd.KeepAlive)); n > int(away/(30*time.Second))+10 {
					t.Errorf("asked %d times in %v", n, away)
				}
				sim.Server.Decide(func(fakeetcd.Call) fakeetcd.Fate { return fakeetcd.Fate{} })
				sim.At(ttl/3 + away + time.Minute)
				if got := sim.Deadline(l); got < ttl/3+away+ttl-ttl/10 {
					t.Errorf("a minute after the outage the deadline is %v", got)
				}
			})
		})
	}
}

func TestRenewal_HasNoMoreThanTwoAttemptsOnTheWayAndTheFirstCounts(t *testing.T) {
	t.Parallel()
	const slow = certain - interval - time.Second/2
	locktest.Simulate(t, func(sim locktest.Simulation) {
		sim.Always(fakeetcd.KeepAlive, fakeetcd.Fate{After: slow})
		l := locktest.Lock(sim, sim.Client(locker.WithTTL(simulatedTTL)), "a", "")
		for at := interval; at < interval+slow; at += 100 * time.Millisecond {
			sim.At(at)
			if n := sim.Server.Open(fakeetcd.KeepAlive); n < 1 || n > 2 {
				t.Errorf("after %v, %d are on the way", at, n)
			}
		}
		sim.At(interval + slow)
		if got := sim.Deadline(l); got != interval+certain {
			t.Errorf("the deadline is %v", got)
		}
	})
}
