package locktest

import (
	"testing"
	"testing/synctest"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/jagregory/locker/v2"
	"github.com/jagregory/locker/v2/internal/fakeetcd"
)

// Simulation is an etcd in a bubble, where time is simulated.
type Simulation struct {
	*testing.T
	Server *fakeetcd.Server
	Start  time.Time
}

// Simulate runs f in a bubble. Everything that f starts has ended when it returns.
func Simulate(t *testing.T, f func(sim Simulation)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		server := fakeetcd.New()
		t.Cleanup(server.Close)
		f(Simulation{t, server, time.Now()})
	})
}

// Connect returns a raw connection, closed with the test.
func (sim Simulation) Connect() *clientv3.Client {
	sim.Helper()
	etcd, err := sim.Server.Connect()
	if err != nil {
		sim.Fatal(err)
	}
	sim.Cleanup(func() { _ = etcd.Close() })
	return etcd
}

// Client returns a Client over a connection of its own.
func (sim Simulation) Client(opts ...locker.Option) *locker.Client {
	sim.Helper()
	return NewClient(sim, sim.Connect(), opts...)
}

// At returns when d has passed since the start, and everything that happens at that time has happened.
func (sim Simulation) At(d time.Duration) {
	time.Sleep(time.Until(sim.Start.Add(d)))
	synctest.Wait()
}

// Sent returns when the requests of a kind were sent, relative to the start.
func (sim Simulation) Sent(kind fakeetcd.Kind) (times []time.Duration) {
	for _, call := range sim.Server.Calls(kind) {
		times = append(times, call.At.Sub(sim.Start))
	}
	return times
}

// Deadline returns the deadline of a lock, relative to the start.
func (sim Simulation) Deadline(l *locker.Lock) time.Duration { return l.Deadline().Sub(sim.Start) }

// Ending returns where the time at which the hold ends arrives, relative to the start.
func (sim Simulation) Ending(l *locker.Lock) <-chan time.Duration {
	ended := make(chan time.Duration, 1)
	go func() {
		<-l.Context().Done()
		ended <- time.Since(sim.Start)
	}()
	return ended
}

// Fates gives the n-th renewal the n-th fate, and those after the last fate none.
func (sim Simulation) Fates(fates ...fakeetcd.Fate) {
	sim.Server.Decide(func(call fakeetcd.Call) fakeetcd.Fate {
		if call.Kind == fakeetcd.KeepAlive && call.N < len(fates) {
			return fates[call.N]
		}
		return fakeetcd.Fate{}
	})
}

// Always gives every request of a kind the same fate.
func (sim Simulation) Always(kind fakeetcd.Kind, fate fakeetcd.Fate) {
	sim.Server.Decide(func(call fakeetcd.Call) fakeetcd.Fate {
		if call.Kind == kind {
			return fate
		}
		return fakeetcd.Fate{}
	})
}

// Write puts entries that belong to no lock under the names, attached to a lease, with the keys that the session
// of l would use.
func (sim Simulation) Write(l *locker.Lock, lease clientv3.LeaseID, names ...string) {
	for _, name := range names {
		sim.Server.Write(locker.DefaultPrefix+name+"/"+MemberOf(l), "stray", lease)
	}
}

// LeaseOfKey returns the lease that the head of a queue is attached to.
func (sim Simulation) LeaseOfKey(name string) clientv3.LeaseID {
	return clientv3.LeaseID(sim.Server.Queue(locker.DefaultPrefix + name + "/")[0].Lease)
}
