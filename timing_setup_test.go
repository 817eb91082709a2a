package locker_test

import (
	"testing"
	"testing/synctest"
	"time"

	"github.com/jagregory/locker/v2"
	"github.com/jagregory/locker/v2/internal/fakeetcd"
)

// simulation is an etcd in a bubble, where time is simulated.
type simulation struct {
	*testing.T
	server *fakeetcd.Server
	start  time.Time
}

// simulate runs f in a bubble. All that f starts has ended when it returns.
func simulate(t *testing.T, f func(sim simulation)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		server := fakeetcd.New()
		t.Cleanup(server.Close)
		f(simulation{t, server, time.Now()})
	})
}

// client returns a Client over a connection of its own.
func (sim simulation) client(opts ...locker.Option) *locker.Client {
	sim.Helper()
	etcd, err := sim.server.Connect()
	if err != nil {
		sim.Fatal(err)
	}
	sim.Cleanup(func() { _ = etcd.Close() })
	return newClient(sim, etcd, opts...)
}

// at lets time pass until so long after the start, and then everything happen that
// happens at that time.
func (sim simulation) at(d time.Duration) {
	time.Sleep(time.Until(sim.start.Add(d)))
	synctest.Wait()
}

// sent returns when the requests of a kind were sent, counted from the start.
func (sim simulation) sent(kind fakeetcd.Kind) (times []time.Duration) {
	for _, call := range sim.server.Calls(kind) {
		times = append(times, call.At.Sub(sim.start))
	}
	return times
}

// deadline returns that of a lock, counted from the start.
func (sim simulation) deadline(l *locker.Lock) time.Duration { return l.Deadline().Sub(sim.start) }

// ending notes when the hold ends, counted from the start.
func (sim simulation) ending(l *locker.Lock) <-chan time.Duration {
	ended := make(chan time.Duration, 1)
	go func() {
		<-l.Context().Done()
		ended <- time.Since(sim.start)
	}()
	return ended
}

// fates has the n-th renewal meet the n-th fate, and those that follow none.
func (sim simulation) fates(fates ...fakeetcd.Fate) {
	sim.server.Decide(func(call fakeetcd.Call) fakeetcd.Fate {
		if call.Kind == fakeetcd.KeepAlive && call.N < len(fates) {
			return fates[call.N]
		}
		return fakeetcd.Fate{}
	})
}

// always has every request of a kind meet a fate.
func (sim simulation) always(kind fakeetcd.Kind, fate fakeetcd.Fate) {
	sim.server.Decide(func(call fakeetcd.Call) fakeetcd.Fate {
		if call.Kind == kind {
			return fate
		}
		return fakeetcd.Fate{}
	})
}
