package locker_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"testing"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/client/v3/concurrency"

	"github.com/jagregory/locker/v2"
	"github.com/jagregory/locker/v2/internal/fakeetcd"
	"github.com/jagregory/locker/v2/internal/locktest"
)

// The lease lives for 19 s, is renewed every 4 s, and a hold is certain for 10.8 s after that. The tests act after
// 10 s, so the last renewal before is the second.
const (
	delayedTTL  = 12 * time.Second
	lockDelay   = 7 * time.Second
	actAt       = 10 * time.Second
	lastRenewal = 2 * delayedTTL / 3
	certainFor  = delayedTTL - delayedTTL/10
)

// delayed is a name whose holder has a lock-delay, and for which another Client waits.
type delayed struct {
	locktest.Simulation
	etcd    *clientv3.Client
	client  *locker.Client
	session *locker.Session
	holder  *locker.Lock
	ended   <-chan time.Duration // gets the time at which the hold ends
	freed   <-chan time.Duration // gets the time at which the waiter holds
}

// newDelayed returns one when it is time to act. adopt is a session to be adopted, or nil.
func newDelayed(sim locktest.Simulation, adopt func(*clientv3.Client) *concurrency.Session) delayed {
	sim.Helper()
	d := delayed{Simulation: sim, etcd: sim.Connect()}
	d.client = locktest.NewClient(sim, d.etcd, locker.WithTTL(delayedTTL), locker.WithLockDelay(lockDelay))
	if adopt == nil {
		d.session = locktest.NewSession(sim, d.client)
	} else {
		var err error
		if d.session, err = d.client.AdoptSession(adopt(d.etcd)); err != nil {
			sim.Fatal(err)
		}
	}
	d.holder = locktest.Lock(sim, d.client, "a", "", locker.WithSession(d.session))
	d.ended = sim.Ending(d.holder)
	waiter, freed := sim.Client(), make(chan time.Duration, 1)
	d.freed = freed
	go func() {
		if _, err := waiter.Lock(sim.Context(), "a", ""); err == nil {
			freed <- time.Since(sim.Start)
		}
	}()
	sim.At(actAt)
	return d
}

// lose makes requests of the given kinds about the holder's lease have no effect and no answer.
func (d delayed) lose(kinds ...fakeetcd.Kind) {
	lease := int64(d.session.Lease())
	d.Server.Decide(func(call fakeetcd.Call) fakeetcd.Fate {
		about := int64(0)
		switch r := call.Request.(type) {
		case *pb.LeaseKeepAliveRequest:
			about = r.ID
		case *pb.LeaseRevokeRequest:
			about = r.ID
		}
		return fakeetcd.Fate{Lost: about == lease && slices.Contains(kinds, call.Kind)}
	})
}

// want fails the test unless the hold ends and the name becomes free at these times.
func (d delayed) want(ended, freed time.Duration) {
	d.Helper()
	if got := locktest.Receive(d, d.ended); got != ended {
		d.Errorf("the hold ended after %v, want %v", got, ended)
	}
	if got := locktest.Receive(d, d.freed); got != freed {
		d.Errorf("the name was free after %v, want %v", got, freed)
	}
}

func TestLockDelay_KeepsTheNameOfALostHolder(t *testing.T) {
	t.Parallel()
	deadline := lastRenewal + certainFor
	for what, test := range map[string]struct {
		ended time.Duration
		lose  func(delayed)
	}{
		"that is cut off":                        {deadline, func(d delayed) { d.lose(fakeetcd.KeepAlive, fakeetcd.Revoke) }},
		"that can be reached after its deadline": {deadline, func(d delayed) { d.lose(fakeetcd.KeepAlive) }},
		"that is killed":                         {actAt, func(d delayed) { _ = d.etcd.Close() }},
		"that is closed after its deadline": {deadline, func(d delayed) {
			d.lose(fakeetcd.KeepAlive)
			d.At(deadline + time.Second)
			if err := d.session.Close(); err != nil {
				d.Error(err)
			}
			if err := d.client.Close(); err != nil {
				d.Error(err)
			}
		}},
	} {
		t.Run(what, func(t *testing.T) {
			t.Parallel()
			locktest.Simulate(t, func(sim locktest.Simulation) {
				d := newDelayed(sim, nil)
				test.lose(d)
				d.want(test.ended, lastRenewal+delayedTTL+lockDelay)
				if n := len(sim.Server.Calls(fakeetcd.Revoke)); n != 0 {
					t.Errorf("%d requests to revoke the lease", n)
				}
			})
		})
	}
}

func TestLockDelay_ANameThatIsGivenUpIsFreeAtOnce(t *testing.T) {
	t.Parallel()
	for what, test := range map[string]struct {
		ended   time.Duration
		release func(delayed) error
	}{
		"Unlock":             {actAt, func(d delayed) error { return d.holder.Unlock(d.Context()) }},
		"Session.Close":      {actAt, func(d delayed) error { return d.session.Close() }},
		"Client.Close":       {actAt, func(d delayed) error { return d.client.Close() }},
		"revoked by hand":    {delayedTTL, func(d delayed) error { d.Server.Expire(d.session.Lease()); return nil }},
		"its entry, by hand": {delayedTTL, func(d delayed) error { d.Server.Delete(d.holder.Key()); return nil }},
		"revoked, then found": {actAt, func(d delayed) error {
			d.Server.Expire(d.session.Lease())
			_, err := d.holder.Commit(d.Context())
			return unlessLost(err)
		}},
	} {
		t.Run(what, func(t *testing.T) {
			t.Parallel()
			locktest.Simulate(t, func(sim locktest.Simulation) {
				d := newDelayed(sim, nil)
				if err := test.release(d); err != nil {
					t.Error(err)
				}
				d.want(test.ended, actAt)
			})
		})
	}
}

func TestLockDelay_WhatWasGivenUpOrOnlyWaitedIsRemovedWhenEtcdAnswersAgain(t *testing.T) {
	t.Parallel()
	locktest.Simulate(t, func(sim locktest.Simulation) {
		c, other := sim.Client(locker.WithTTL(delayedTTL), locker.WithLockDelay(time.Hour)), sim.Client()
		own, given := locktest.Lock(sim, c, "own", ""), locktest.Lock(sim, c, "given", "")
		holder := locktest.Lock(sim, other, "awaited", "")
		awaited := locktest.LockAsync(sim.Context(), c, "awaited", "")
		sim.At(actAt)
		// The put of this one has its effect; nothing else has, from now on.
		sim.Always(fakeetcd.Txn, fakeetcd.Fate{Unanswered: true})
		inDoubt := locktest.LockAsync(sim.Context(), c, "doubtful", "")
		sim.At(actAt)
		sim.Server.Decide(func(fakeetcd.Call) fakeetcd.Fate { return fakeetcd.Fate{Lost: true} })
		deadline := lastRenewal + certainFor
		sim.At(deadline - time.Second/2)
		ctx, cancel := context.WithCancel(sim.Context())
		cancel()
		locktest.Want(t, given.Unlock(ctx), context.Canceled)
		locktest.Want(t, locktest.Receive(sim, awaited).Err, locker.ErrLost)
		locktest.WantLost(t, own.Err(), own, locker.Expired)
		sim.At(deadline + time.Second)
		for _, name := range []string{"given", "awaited", "doubtful"} {
			if !queuedOn(sim, name, locktest.LeaseOf(own)) {
				t.Errorf("%s has left its queue too early", name)
			}
		}
		sim.Always(fakeetcd.Txn, fakeetcd.Fate{})
		locktest.Unlock(sim, holder)
		locktest.LockOf(sim, inDoubt)
		for _, name := range []string{"given", "awaited"} {
			locktest.Lock(sim, c, name, "")
		}
		if !queuedOn(sim, "own", locktest.LeaseOf(own)) {
			t.Error("the entry of the hold that was lost is gone")
		}
		if n := len(sim.Server.Calls(fakeetcd.Revoke)); n != 0 {
			t.Errorf("%d requests to revoke the lease", n)
		}
	})
}

// A removal that is refused costs the session its holds.
func TestLockDelay_ARefusedRemovalLeavesTimeForThatOfOthers(t *testing.T) {
	t.Parallel()
	locktest.Simulate(t, func(sim locktest.Simulation) {
		c := sim.Client(locker.WithTTL(delayedTTL), locker.WithLockDelay(time.Hour))
		own, slow, refused := locktest.Lock(sim, c, "own", ""), locktest.Lock(sim, c, "slow", ""), locktest.Lock(sim, c, "refused", "")
		sim.Server.Decide(func(call fakeetcd.Call) (fate fakeetcd.Fate) {
			switch {
			case releases(call.Request, "slow"):
				fate.Lost = call.At.Sub(sim.Start) < delayedTTL/4
			case releases(call.Request, "refused"):
				fate.Err = rpctypes.ErrGRPCPermissionDenied
			}
			return fate
		})
		ctx, cancel := context.WithCancel(sim.Context())
		cancel()
		locktest.Want(t, slow.Unlock(ctx), context.Canceled) // the removal goes on
		locktest.Want(t, refused.Unlock(sim.Context()), rpctypes.ErrPermissionDenied)
		locktest.WantLost(t, own.Err(), own, locker.Revoked)
		locktest.Lock(sim, c, "slow", "")
		if !queuedOn(sim, "own", locktest.LeaseOf(own)) {
			t.Error("the entry of the hold that was lost is gone")
		}
	})
}

// queuedOn reports whether an entry in the queue of a name is on a lease.
func queuedOn(sim locktest.Simulation, name string, lease clientv3.LeaseID) bool {
	return slices.ContainsFunc(sim.Server.Queue(locker.DefaultPrefix+name+"/"), func(kv *mvccpb.KeyValue) bool { return kv.Lease == int64(lease) })
}

func TestLockDelay_RenewalsAndDeadlinesAreAsWithoutIt(t *testing.T) {
	t.Parallel()
	locktest.Simulate(t, func(sim locktest.Simulation) {
		c := sim.Client(locker.WithTTL(delayedTTL), locker.WithLockDelay(lockDelay))
		l := locktest.Lock(sim, c, "a", "")
		if granted := sim.Server.Calls(fakeetcd.Grant)[0].Request.(*pb.LeaseGrantRequest).TTL; granted != int64((delayedTTL+lockDelay)/time.Second) {
			t.Errorf("the lease lives for %d s", granted)
		}
		for i := range time.Duration(4) {
			sim.At(i * delayedTTL / 3)
			if got := sim.Deadline(l); got != i*delayedTTL/3+certainFor {
				t.Errorf("after %d renewals the deadline is %v", i, got)
			}
		}
		if sent := sim.Sent(fakeetcd.KeepAlive); !slices.Equal(sent, []time.Duration{delayedTTL / 3, 2 * delayedTTL / 3, delayedTTL}) {
			t.Errorf("renewed at %v", sent)
		}
	})
}

func TestLockDelay_ComesOnTopOfTheTTLOfASession(t *testing.T) {
	t.Parallel()
	locktest.Simulate(t, func(sim locktest.Simulation) {
		c := sim.Client(locker.WithTTL(delayedTTL), locker.WithLockDelay(lockDelay))
		s := locktest.NewSession(sim, c, locker.WithSessionTTL(30*time.Second))
		l := locktest.Lock(sim, c, "a", "", locker.WithSession(s))
		if got, want := sim.Server.Until(s.Lease()).Sub(sim.Start), 30*time.Second+lockDelay; got != want {
			t.Errorf("the lease lives until %v, want %v", got, want)
		}
		if got := sim.Deadline(l); got != 27*time.Second {
			t.Errorf("the deadline is %v", got)
		}
	})
}

func TestLockDelay_AnAdoptedSessionHasNone(t *testing.T) {
	t.Parallel()
	locktest.Simulate(t, func(sim locktest.Simulation) {
		var origin *concurrency.Session
		d := newDelayed(sim, func(etcd *clientv3.Client) *concurrency.Session {
			var err error
			if origin, err = concurrency.NewSession(etcd, concurrency.WithTTL(int(delayedTTL/time.Second))); err != nil {
				t.Fatal(err)
			}
			return origin
		})
		if got := sim.Deadline(d.holder); got != lastRenewal+certainFor {
			t.Errorf("the deadline is %v", got)
		}
		origin.Orphan() // its lease lives on, its locks do not
		d.want(actAt, actAt)
	})
}

func TestLockDelay_IsRefusedIfNegativeOrLongerThanAYear(t *testing.T) {
	t.Parallel()
	const year = 365 * 24 * time.Hour
	etcd := locktest.Setup(t).Etcd
	for _, d := range []time.Duration{-1, year + 1} {
		_, err := locker.New(etcd, locker.WithLockDelay(d))
		wantInvalid(t, err, "lock delay")
	}
	for _, d := range []time.Duration{0, 1, year} {
		t.Run(fmt.Sprint(d), func(t *testing.T) {
			c := locktest.NewClient(t, etcd, locker.WithLockDelay(d))
			locktest.Unlock(t, locktest.Lock(t, c, "a", ""))
		})
	}
}

// unlessLost returns an error unless err is that of a lost lock.
func unlessLost(err error) error {
	if errors.Is(err, locker.ErrLost) {
		return nil
	}
	return fmt.Errorf("not lost: %w", err)
}
