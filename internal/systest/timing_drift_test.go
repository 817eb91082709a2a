package systest

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"testing"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/jagregory/locker/v2"
	"github.com/jagregory/locker/v2/internal/fakeetcd"
	"github.com/jagregory/locker/v2/internal/locktest"
)

// leaseIn returns the lease that a request is about, or 0.
func leaseIn(call fakeetcd.Call) clientv3.LeaseID {
	switch r := call.Request.(type) {
	case *pb.LeaseKeepAliveRequest:
		return clientv3.LeaseID(r.ID)
	case *pb.LeaseRevokeRequest:
		return clientv3.LeaseID(r.ID)
	}
	return 0
}

// drift is a holder that is cut off from etcd, and a waiter, while the clock of etcd
// runs at another speed than theirs.
type drift struct {
	locktest.Simulation
	holder *locker.Lock
	waiter <-chan locktest.Outcome
	lease  clientv3.LeaseID // of the holder
}

// startDrift delays the requests about the holder's lease, and loses all of them after
// the cut.
func startDrift(sim locktest.Simulation, clock float64, latency func() time.Duration, cut time.Duration) drift {
	sim.Server.SetClock(clock)
	d := drift{Simulation: sim}
	d.holder = locktest.Lock(sim, sim.Client(locker.WithTTL(simulatedTTL)), "a", "holder")
	d.lease = sim.Server.Leases()[0]
	sim.Server.Decide(func(call fakeetcd.Call) fakeetcd.Fate {
		switch {
		case leaseIn(call) != d.lease:
			return fakeetcd.Fate{}
		case call.At.Before(sim.Start.Add(cut)):
			return fakeetcd.Fate{Before: latency(), After: latency()}
		}
		return fakeetcd.Fate{Lost: true}
	})
	d.waiter = locktest.LockAsync(sim.Context(), sim.Client(locker.WithTTL(simulatedTTL)), "a", "waiter")
	return d
}

func TestHold_EndsBeforeItsLeaseWhileTheMarginCoversTheDrift(t *testing.T) {
	t.Parallel()
	for _, clock := range []float64{0.9, 0.95, 1, 1.05, 1.1} {
		t.Run(fmt.Sprint(clock), func(t *testing.T) {
			t.Parallel()
			for seed := range uint64(5) {
				locktest.Simulate(t, func(sim locktest.Simulation) {
					random := rand.New(rand.NewPCG(seed, 0))
					latency := func() time.Duration { return time.Duration(1 + random.Int64N(int64(time.Second))) }
					cut := time.Duration(random.Int64N(int64(time.Minute)))
					d := startDrift(sim, clock, latency, cut)
					ended := sim.Ending(d.holder)
					var expired time.Time
					held := true
					sim.Server.OnExpiry(func(lease clientv3.LeaseID) {
						if lease == d.lease {
							expired, held = time.Now(), d.holder.Context().Err() == nil
						}
					})
					next := locktest.Receive(sim, untilHeld(sim, d.waiter))
					if next.Err != nil {
						t.Fatal(next.Err)
					}
					switch {
					case expired.IsZero():
						t.Errorf("seed %d: the waiter holds though the lease has not expired", seed)
					case held || !errors.Is(d.holder.Err(), locker.ErrLost):
						t.Errorf("seed %d: etcd expired the lease at %v, while it was held", seed, expired.Sub(sim.Start))
					case expired.Before(sim.Start.Add(cut)):
						t.Errorf("seed %d: etcd expired the lease at %v, before the cut at %v", seed, expired.Sub(sim.Start), cut)
					case next.Lock.Token() <= d.holder.Token():
						t.Errorf("seed %d: token %d after %d", seed, next.Lock.Token(), d.holder.Token())
					}
					if at := locktest.Receive(sim, ended); at < cut {
						t.Errorf("seed %d: the hold ended at %v, before the cut at %v", seed, at, cut)
					}
				})
			}
		})
	}
}

// untilHeld returns the waiter once the cut and the TTL have passed.
func untilHeld(sim locktest.Simulation, waiter <-chan locktest.Outcome) <-chan locktest.Outcome {
	sim.At(time.Minute + 2*simulatedTTL)
	return waiter
}

func TestGuard_AndTokenStillFenceBeyondTheMargin(t *testing.T) {
	t.Parallel()
	for name, write := range map[string]func(*testing.T, *locker.Lock) error{
		"Commit": func(t *testing.T, l *locker.Lock) error {
			_, err := l.Commit(t.Context(), clientv3.OpPut("fenced", "by the holder"))
			return err
		},
		"SetValue": func(t *testing.T, l *locker.Lock) error { return l.SetValue(t.Context(), "by the holder") },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			locktest.Simulate(t, func(sim locktest.Simulation) {
				d := startDrift(sim, 0.8, func() time.Duration { return 0 }, interval+1)
				// Renewed at 4 s: etcd's deadline is at 13.6 s, the holder's at 14.8 s.
				sim.At(14 * time.Second)
				next := locktest.Receive(sim, d.waiter)
				if next.Err != nil {
					t.Fatal(next.Err)
				}
				if d.holder.Err() != nil || next.Lock.Err() != nil {
					t.Fatalf("%v, %v: the test needs both to believe that they hold", d.holder.Err(), next.Lock.Err())
				}
				if next.Lock.Token() <= d.holder.Token() {
					t.Errorf("token %d after %d", next.Lock.Token(), d.holder.Token())
				}
				if err := write(sim.T, d.holder); !errors.Is(err, locker.ErrLost) {
					t.Errorf("the write of the former holder: %v", err)
				}
				holder, err := sim.Client().Get(sim.Context(), "a")
				if err != nil || holder.Value != "waiter" || holder.Token != next.Lock.Token() {
					t.Errorf("%+v, %v", holder, err)
				}
				for _, key := range sim.Server.Keys() {
					if key == "fenced" {
						t.Error("the former holder has written")
					}
				}
				if !errors.Is(d.holder.Err(), locker.ErrLost) {
					t.Errorf("after the refusal: %v", d.holder.Err())
				}
			})
		})
	}
}
