package gocronlocker_test

import (
	"errors"
	"slices"
	"testing"
	"time"

	"github.com/jagregory/locker/contrib/gocron"
	"github.com/jagregory/locker/v2"
)

const jobLock = "gocron/" + job // the name that a Locker locks

func TestLocker_RunsEveryTickOnceThoughAnInstanceFailsBetweenTicks(t *testing.T) {
	t.Parallel()
	for name, fault := range faults {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c := newCluster(t, false, brief)
			tick, victim := 1, c.instances[0]
			for ; tick <= 3; tick++ {
				c.tickLast(t, tick, victim)
			}
			fault.begin(victim)
			for ; tick <= 6; tick++ {
				victim.advance(tick)
				c.wantOnce(t, tick, c.tick(t, tick, c.others(victim)...))
			}
			fault.end(victim)
			victim.settle(t)
			for len(victim.decisions) > 0 {
				if receive(t, victim.decisions) == nil {
					t.Error("the failed instance has run a tick late")
				}
			}
			for ; tick <= 9; tick++ {
				c.tickLast(t, tick, victim)
			}
			c.wantNoneTwice(t)
		})
	}
}

func TestLocker_MissesTicksOnlyUntilTheLeaseOfAFailedInstanceExpires(t *testing.T) {
	t.Parallel()
	for name, fault := range faults {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c := newCluster(t, false, brief)
			victim, others := c.instances[0], c.instances[1:]
			tick := 0
			c.holdRuns()
			eventually(t, "the first runs the job", func() bool {
				tick++
				c.tick(t, tick, victim)
				return len(c.ranBy(tick)) > 0
			})
			c.releaseRuns()
			c.tick(t, tick, others...)
			c.wantOnce(t, tick, nil)
			fault.begin(victim)
			eventually(t, "another runs the job", func() bool {
				tick++
				victim.advance(tick)
				before := c.holder(t, jobLock)
				decided := c.tick(t, tick, others...)
				switch after := c.holder(t, jobLock); {
				case before == "": // whoever comes first
					c.wantOnce(t, tick, decided)
				case before == after: // the victim, which has not returned
					for i, err := range decided {
						if !errors.Is(err, locker.ErrLocked) {
							t.Errorf("%s decides %v about a tick that comes while the job runs", i.name, err)
						}
					}
				}
				return len(c.ranBy(tick)) > 0
			})
			if victim.lock.Err() == nil {
				t.Error("another has run the job, and it still runs under the lock")
			}
			want(t, receive(t, victim.finished), locker.ErrLost)
			want(t, victim.lost, locker.ErrLost)
			for range 3 {
				tick++
				victim.advance(tick)
				c.wantOnce(t, tick, c.tick(t, tick, others...))
			}
			fault.end(victim)
			victim.settle(t)
			for len(victim.decisions) > 0 {
				<-victim.decisions
			}
			for range 3 {
				tick++
				c.tickLast(t, tick, victim)
			}
			c.wantNoneTwice(t)
		})
	}
}

// tickLast goes to a tick, and lets one instance come to it last, when another has run it.
func (c *cluster) tickLast(t *testing.T, tick int, last *instance) {
	t.Helper()
	c.wantOnce(t, tick, c.tick(t, tick, c.others(last)...))
	c.wantOnce(t, tick, c.tick(t, tick, last))
}

func TestElector_RunsNoTickTwiceAndAnotherTakesOverWhenTheLeaderFails(t *testing.T) {
	t.Parallel()
	for name, fault := range faults {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c := newCluster(t, true, brief)
			tick, leader := 0, c.instances[0]
			eventually(t, "an instance leads", func() bool {
				tick++
				c.tick(t, tick, c.instances...)
				return len(c.ranBy(tick)) > 0
			})
			fault.begin(leader)
			next := c.elected(t, &tick, leader)
			for range 3 {
				tick++
				if c.wantOnce(t, tick, c.tick(t, tick, c.instances...)) != next {
					t.Error("another instance leads")
				}
			}
			fault.end(leader)
			for range 3 {
				tick++
				c.wantOnce(t, tick, c.tick(t, tick, c.instances...))
			}
			c.wantNoneTwice(t)
		})
	}
}

// elected goes from tick to tick until another instance than the former leader holds the name. As soon as that
// knows it, no tick is missed any more.
func (c *cluster) elected(t *testing.T, tick *int, former *instance) *instance {
	t.Helper()
	var holder string
	eventually(t, "another instance holds the name", func() bool {
		*tick++
		c.tick(t, *tick, c.instances...)
		holder = c.holder(t, job)
		return holder != "" && (former == nil || holder != former.name)
	})
	leader := c.instances[slices.IndexFunc(c.instances, func(i *instance) bool { return i.name == holder })]
	eventually(t, "the holder knows it", func() bool {
		err := leader.elector.IsLeader(t.Context())
		return err == nil || errors.Is(err, gocronlocker.ErrTooSoon)
	})
	*tick++
	if c.wantOnce(t, *tick, c.tick(t, *tick, c.instances...)) != leader {
		t.Errorf("%s holds the name, and does not lead", leader.name)
	}
	return leader
}

func TestLocker_RunsNoTickTwiceThoughClocksDiffer(t *testing.T) {
	t.Parallel()
	c := newCluster(t, false, unhurried)
	fast := c.instances[0]
	for tick := 1; tick <= 40; tick++ {
		c.wantOnce(t, tick, c.tick(t, tick, fast))
	}
	for tick := 1; tick <= 40; tick++ {
		for i, err := range c.tick(t, tick, c.others(fast)...) {
			if !errors.Is(err, gocronlocker.ErrAlreadyRun) && !errors.Is(err, locker.ErrLocked) {
				t.Errorf("%s decides %v about a tick that was run", i.name, err)
			}
		}
	}
	// The slowest comes to a tick when the job has returned elsewhere.
	for tick := 41; tick <= 45; tick++ {
		for n := range 3 {
			c.tick(t, tick, c.instances[(tick+n)%3])
		}
		c.wantOnce(t, tick, nil)
	}
	c.wantNoneTwice(t)
}

func TestLocker_ACallThatWaitedForEtcdRunsNoTickThatOthersHaveRun(t *testing.T) {
	t.Parallel()
	c := newCluster(t, false, unhurried)
	slow := c.instances[0]
	c.wantOnce(t, 1, c.tick(t, 1, c.instances...))
	// A call that was refused may have left something in the queue, which it could not remove any more.
	eventually(t, "the queue is empty", func() bool {
		queue, err := c.observer.Queue(within(t), jobLock)
		return err == nil && len(queue) == 0
	})
	slow.proxy.Freeze()
	slow.advance(2)
	for tick := 2; tick <= 4; tick++ {
		c.wantOnce(t, tick, c.tick(t, tick, c.others(slow)...))
	}
	slow.proxy.Thaw()
	want(t, receive(t, slow.decisions), gocronlocker.ErrAlreadyRun)
	c.wantNoneTwice(t)
}

func TestLocker_AClockThatWasWrongStopsNoJob(t *testing.T) {
	t.Parallel()
	c := newCluster(t, false, unhurried)
	wrong := c.instances[0]
	wrong.advance(int(time.Hour / interval)) // and comes to one of the ticks before that
	if err := receive(t, wrong.decisions); err != nil {
		t.Fatal(err)
	}
	receive(t, wrong.finished)
	for tick := 1; tick <= 3; tick++ {
		c.wantOnce(t, tick, c.tick(t, tick, c.others(wrong)...))
	}
}

func TestElector_ASlowClockRunsNoTickThatThePredecessorHasRun(t *testing.T) {
	t.Parallel()
	c := newCluster(t, true, unhurried, gocronlocker.WithSplay(interval*7/10))
	tick := 0
	leader := c.elected(t, &tick, nil)
	tick++
	leader.advance(tick)
	if err := receive(t, leader.decisions); err != nil {
		t.Fatal(err)
	}
	receive(t, leader.finished)
	for _, i := range c.others(leader) { // half an interval behind
		i.clock.Advance(interval / 2)
	}
	if err := leader.elector.Stop(within(t)); err != nil {
		t.Fatal(err)
	}
	var next *instance
	eventually(t, "another holds the name", func() bool {
		for _, i := range c.others(leader) {
			if err := i.elector.IsLeader(t.Context()); err == nil || errors.Is(err, gocronlocker.ErrTooSoon) {
				next = i
			}
		}
		return next != nil
	})
	want(t, c.tick(t, tick, next)[next], gocronlocker.ErrNotLeader)
	c.wantNoneTwice(t)
	tick++
	c.tick(t, tick, next)
	if c.wantOnce(t, tick, nil) != next {
		t.Error("another instance leads")
	}
}
