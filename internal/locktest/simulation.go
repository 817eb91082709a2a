package locktest

import (
	"testing"
	"testing/synctest"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/jagregory/locker/v2"
	"github.com/jagregory/locker/v2/internal/fakeetcd"
)

// Write puts entries that belong to no lock, on the lease of l.
func (sim Simulation) Write(l *locker.Lock, lease clientv3.LeaseID, names ...string) {
	for _, name := range names {
		sim.Server.Write(locker.DefaultPrefix+name+"/"+MemberOf(l), "stray", lease)
	}
}

// LeaseOfKey returns the lease that the head of a queue is attached to.
func (sim Simulation) LeaseOfKey(name string) clientv3.LeaseID {
	return clientv3.LeaseID(sim.Server.Queue(locker.DefaultPrefix + name + "/")[0].Lease)
}

// Simulation is an etcd in a bubble, where time is simulated.
type Simulation struct {
	*testing.T
	Server *fakeetcd.Server
	Start  time.Time
}

// Simulate runs f in a bubble. All that f starts has ended when it returns.
func Simulate(t *testing.T, f func(sim Simulation)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		server := fakeetcd.New()
		t.Cleanup(server.Close)
		f(Simulation{t, server, time.Now()})
	})
}

// Client returns a Client over a connection of its own.
func (sim Simulation) Client(opts ...locker.Option) *locker.Client {
	sim.Helper()
	etcd, err := sim.Server.Connect()
	if err != nil {
		sim.Fatal(err)
	}
	sim.Cleanup(func() { _ = etcd.Close() })
	return NewClient(sim, etcd, opts...)
}

// At lets time pass until so long after the start, and then everything happen that
// happens at that time.
func (sim Simulation) At(d time.Duration) {
	time.Sleep(time.Until(sim.Start.Add(d)))
	synctest.Wait()
}

// Sent returns when the requests of a kind were sent, counted from the start.
func (sim Simulation) Sent(kind fakeetcd.Kind) (times []time.Duration) {
	for _, call := range sim.Server.Calls(kind) {
		times = append(times, call.At.Sub(sim.Start))
	}
	return times
}

// Deadline returns that of a lock, counted from the start.
func (sim Simulation) Deadline(l *locker.Lock) time.Duration { return l.Deadline().Sub(sim.Start) }

// Ending notes when the hold ends, counted from the start.
func (sim Simulation) Ending(l *locker.Lock) <-chan time.Duration {
	ended := make(chan time.Duration, 1)
	go func() {
		<-l.Context().Done()
		ended <- time.Since(sim.Start)
	}()
	return ended
}

// Fates has the n-th renewal meet the n-th fate, and those that follow none.
func (sim Simulation) Fates(fates ...fakeetcd.Fate) {
	sim.Server.Decide(func(call fakeetcd.Call) fakeetcd.Fate {
		if call.Kind == fakeetcd.KeepAlive && call.N < len(fates) {
			return fates[call.N]
		}
		return fakeetcd.Fate{}
	})
}

// Always has every request of a kind meet a fate.
func (sim Simulation) Always(kind fakeetcd.Kind, fate fakeetcd.Fate) {
	sim.Server.Decide(func(call fakeetcd.Call) fakeetcd.Fate {
		if call.Kind == kind {
			return fate
		}
		return fakeetcd.Fate{}
	})
}
