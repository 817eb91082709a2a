package systest

import (
	"errors"
	"testing"
	"time"

	"github.com/jagregory/locker/v2"
	"github.com/jagregory/locker/v2/internal/fakeetcd"
	"github.com/jagregory/locker/v2/internal/locktest"
)

func TestRenewal_IsReportedWithWhatWasLeftOfTheDeadline(t *testing.T) {
	t.Parallel()
	locktest.Simulate(t, func(sim locktest.Simulation) {
		const ttl = 9 * time.Second
		// The first is answered at once, the second only when it is asked for again.
		sim.Fates(fakeetcd.Fate{}, fakeetcd.Fate{Lost: true})
		events := new(locktest.Events)
		c := sim.Client(locker.WithTTL(ttl), locker.WithHooks(events.Hooks()))
		l := locktest.Lock(sim, c, "a", "")
		left := func(at time.Duration) time.Duration { return ttl - ttl/10 - at } // of a deadline that counts from 0
		sim.At(ttl / 3)
		first := locktest.EventsOf[locker.Renewal](events)
		if len(first) != 1 || first[0] != (locker.Renewal{Lease: locktest.LeaseOf(l), Left: left(ttl / 3), Attempts: 1}) {
			sim.Errorf("the first is reported as %+v", first)
		}
		sim.At(2*ttl/3 + askedAgain)
		second := locktest.EventsOf[locker.Renewal](events)[1:]
		if len(second) != 1 || second[0] != (locker.Renewal{Lease: locktest.LeaseOf(l), Took: askedAgain, Left: left(ttl/3 + askedAgain), Attempts: 2}) {
			sim.Errorf("the second is reported as %+v", second)
		}
	})
}

func TestRenewal_ThatFailsIsReportedWithTheLoss(t *testing.T) {
	t.Parallel()
	locktest.Simulate(t, func(sim locktest.Simulation) {
		const ttl = 9 * time.Second
		events := new(locktest.Events)
		c := sim.Client(locker.WithTTL(ttl), locker.WithHooks(events.Hooks()))
		l := locktest.Lock(sim, c, "a", "")
		sim.Always(fakeetcd.KeepAlive, fakeetcd.Fate{Lost: true})
		sim.At(ttl - ttl/10)
		lost := locktest.Lost(sim, l, locker.Expired)
		renewals := locktest.EventsOf[locker.Renewal](events)
		if len(renewals) != 1 || !errors.Is(renewals[0].Err, locker.ErrLost) || renewals[0].Left != 0 || renewals[0].Attempts < 3 {
			sim.Errorf("renewals: %+v", renewals)
		}
		ends := locktest.EventsOf[locker.HoldEnd](events)
		if len(ends) != 1 || ends[0].Held != ttl-ttl/10 || ends[0].Cause != error(lost) {
			sim.Errorf("ends of holds: %+v", ends)
		}
		if sessions := locktest.EventsOf[locker.SessionEnd](events); len(sessions) != 1 || !errors.Is(sessions[0].Cause, locker.ErrLost) {
			sim.Errorf("ends of sessions: %+v", sessions)
		}
	})
}

func TestRenewal_IsReportedOnlyOfASessionThatHasBegun(t *testing.T) {
	t.Parallel()
	locktest.Simulate(t, func(sim locktest.Simulation) {
		const ttl = 9 * time.Second
		events := new(locktest.Events)
		c := sim.Client(locker.WithTTL(ttl), locker.WithHooks(events.Hooks()))
		sim.Always(fakeetcd.Txn, fakeetcd.Fate{Lost: true}) // so the record cannot be written
		locking := locktest.LockAsync(locktest.Within(sim), c, "a", "")
		sim.At(2 * ttl)
		if renewals := locktest.EventsOf[locker.Renewal](events); len(renewals) != 0 || len(sim.Sent(fakeetcd.KeepAlive)) == 0 {
			sim.Errorf("%d were sent, and reported: %+v", len(sim.Sent(fakeetcd.KeepAlive)), renewals)
		}
		sim.Always(fakeetcd.Txn, fakeetcd.Fate{})
		locktest.LockOf(sim, locking)
		sim.At(4 * ttl)
		if renewals := locktest.EventsOf[locker.Renewal](events); len(renewals) == 0 {
			sim.Error("none was reported")
		}
		if err := c.Close(); err != nil {
			sim.Error(err)
		}
		events.Complete(sim)
	})
}

func TestRenewal_ThatCloseInterruptsIsNotReported(t *testing.T) {
	t.Parallel()
	locktest.Simulate(t, func(sim locktest.Simulation) {
		const ttl = 9 * time.Second
		events := new(locktest.Events)
		c := sim.Client(locker.WithTTL(ttl), locker.WithHooks(events.Hooks()))
		locktest.Lock(sim, c, "a", "")
		sim.Always(fakeetcd.KeepAlive, fakeetcd.Fate{Lost: true})
		sim.At(ttl/3 + time.Millisecond)
		if err := c.Close(); err != nil || len(sim.Sent(fakeetcd.KeepAlive)) != 1 {
			sim.Errorf("%v, after %d requests", err, len(sim.Sent(fakeetcd.KeepAlive)))
		}
		if renewals := locktest.EventsOf[locker.Renewal](events); len(renewals) != 0 {
			sim.Errorf("reported: %+v", renewals)
		}
		events.Complete(sim)
	})
}
