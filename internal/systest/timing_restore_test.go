package systest

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/jagregory/locker/v2"
	"github.com/jagregory/locker/v2/internal/fakeetcd"
	"github.com/jagregory/locker/v2/internal/locktest"
)

// Tests of backups that are restored while programs run, and of entries that belong to no lock.

func TestSession_EndsWhenABackupIsRestored(t *testing.T) {
	t.Parallel()
	for name, change := range map[string]func(*fakeetcd.Backup){
		"the revision is an earlier one":       func(*fakeetcd.Backup) {},
		"the cluster has another ID":           func(b *fakeetcd.Backup) { b.Cluster, b.Revision = 2, b.Revision+1000 },
		"as well as a revision that is behind": func(b *fakeetcd.Backup) { b.Cluster = 2 },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			locktest.Simulate(t, func(sim locktest.Simulation) {
				c := sim.Client(locker.WithTTL(simulatedTTL))
				held, released := locktest.Lock(sim, c, "held", ""), locktest.Lock(sim, c, "released", "")
				backup := sim.Server.Backup()
				locktest.Unlock(sim, released)
				later := locktest.Lock(sim, c, "later", "")
				sim.At(interval + time.Second)
				change(&backup)
				sim.Server.Restore(backup)
				sim.At(2*interval + askedAgain)
				for _, l := range []*locker.Lock{held, later} {
					var lost *locker.LostError
					if err := l.Err(); !errors.As(err, &lost) || lost.Reason != locker.Revoked {
						t.Errorf("%s: %v", l.Name(), err)
					}
				}
				sim.At(2*interval + 2*time.Second)
				for _, name := range []string{"held", "released", "later"} {
					if left := sim.Server.Queue(locker.DefaultPrefix + name + "/"); len(left) > 0 {
						t.Errorf("%s is blocked by %v", name, left)
					}
				}
				locktest.Unlock(sim, locktest.Lock(sim, c, "released", ""))
			})
		})
	}
}

func TestLock_AfterABackupWasRestoredIsOnANewSession(t *testing.T) {
	t.Parallel()
	locktest.Simulate(t, func(sim locktest.Simulation) {
		c := sim.Client(locker.WithTTL(simulatedTTL))
		held := locktest.Lock(sim, c, "held", "")
		backup := sim.Server.Backup()
		locktest.Unlock(sim, locktest.Lock(sim, c, "other", ""))
		sim.Server.Restore(backup)
		l := locktest.Lock(sim, c, "other", "") // the first to notice
		if err := held.Err(); !errors.Is(err, locker.ErrLost) {
			t.Errorf("the hold of the session before: %v", err)
		}
		sim.At(simulatedTTL)
		if l.Err() != nil || locktest.MemberOf(l) == locktest.MemberOf(held) {
			t.Errorf("%v, on %s after %s", l.Err(), locktest.MemberOf(l), locktest.MemberOf(held))
		}
		locktest.Unlock(sim, l)
	})
}

func TestSession_OutlivesAnswersOfAMemberThatLags(t *testing.T) {
	t.Parallel()
	locktest.Simulate(t, func(sim locktest.Simulation) {
		c := sim.Client(locker.WithTTL(simulatedTTL))
		l := locktest.Lock(sim, c, "a", "")
		for range 10 {
			locktest.Unlock(sim, locktest.Lock(sim, c, "b", ""))
		}
		sim.Server.Decide(func(fakeetcd.Call) fakeetcd.Fate { return fakeetcd.Fate{Behind: 5} })
		sim.At(5 * interval)
		if err := l.Err(); err != nil {
			t.Errorf("the hold: %v", err)
		}
	})
}

func TestSession_RemovesEntriesOfItsLeaseThatBelongToNoLock(t *testing.T) {
	t.Parallel()
	locktest.Simulate(t, func(sim locktest.Simulation) {
		c, other := sim.Client(locker.WithTTL(simulatedTTL)), sim.Client(locker.WithTTL(10*simulatedTTL))
		held := locktest.Lock(sim, c, "held", "v")
		lease := sim.LeaseOfKey("held")
		foreign := locker.DefaultPrefix + "foreign/other" // also on the lease, but not the session's
		sim.Server.Write(foreign, "", lease)
		sim.Write(held, lease, "a", "b", "c%2Fd")
		sim.Server.Write(held.Key()+".2", "stray", lease) // the key of the next hand-over
		sim.Server.Write(locker.DefaultPrefix+"a/"+locktest.MemberOf(held)+".2", "stray", lease)
		waiting := locktest.LockAsync(sim.Context(), other, "a", "")
		sim.At(interval - 1)
		select {
		case got := <-waiting:
			t.Errorf("Lock returned %v, though there was an entry", got.Err)
		default:
		}
		sim.At(interval + time.Second)
		if got := locktest.Receive(sim, waiting); got.Err != nil {
			t.Errorf("Lock returned %v", got.Err)
		}
		if err := held.Err(); err != nil {
			t.Errorf("the hold: %v", err)
		}
		keys := slices.DeleteFunc(sim.Server.Keys(), func(key string) bool { return strings.HasPrefix(key, locker.DefaultPrefix+"/") })
		if want := 3; len(keys) != want || !slices.Contains(keys, foreign) || !slices.Contains(keys, held.Key()) {
			t.Errorf("the keys are %v", keys)
		}
	})
}

func TestSession_ThatIsIdleRemovesEntriesOfItsLease(t *testing.T) {
	t.Parallel()
	locktest.Simulate(t, func(sim locktest.Simulation) {
		c := sim.Client(locker.WithTTL(simulatedTTL))
		l := locktest.Lock(sim, c, "a", "")
		lease := sim.LeaseOfKey("a")
		locktest.Unlock(sim, l)
		sim.Write(l, lease, "a", "b")
		sim.At(interval)
		if left := len(sim.Server.Keys()); left != 1 { // the session's record
			t.Errorf("left: %v", sim.Server.Keys())
		}
	})
}

func TestSession_ThatIsAdoptedRemovesNoEntryButItsOwn(t *testing.T) {
	t.Parallel()
	locktest.Simulate(t, func(sim locktest.Simulation) {
		etcd := sim.Connect()
		c := locktest.NewClient(sim, etcd, locker.WithTTL(simulatedTTL))
		theirs := foreignSession(sim, etcd)
		s, err := c.AdoptSession(theirs)
		if err != nil {
			sim.Fatal(err)
		}
		l := locktest.Lock(sim, c, "held", "", locker.WithSession(s))
		mutex := fmt.Sprintf("%sm/%x", locker.DefaultPrefix, theirs.Lease())
		sim.Server.Write(mutex, "", theirs.Lease())
		sim.Server.Write(locker.DefaultPrefix+"m/"+locktest.MemberOf(l)+"0", "of another adoption", theirs.Lease())
		sim.Write(l, theirs.Lease(), "a", "b")
		sim.At(simulatedTTL) // the program renews its session itself
		if l.Err() != nil {
			t.Errorf("the hold: %v", l.Err())
		}
		for name, want := range map[string]int{"a": 0, "b": 0, "m": 2, "held": 1} {
			if queue := sim.Server.Queue(locker.DefaultPrefix + name + "/"); len(queue) != want {
				t.Errorf("%s: %v", name, queue)
			}
		}
	})
}

func TestHold_IsLostWhenItsEntryIsAnotherOfTheSameKey(t *testing.T) {
	t.Parallel()
	locktest.Simulate(t, func(sim locktest.Simulation) {
		c := sim.Client(locker.WithTTL(simulatedTTL))
		l, other := locktest.Lock(sim, c, "a", ""), locktest.Lock(sim, c, "b", "")
		lease := sim.LeaseOfKey("a")
		sim.Server.Delete(l.Key())
		sim.Write(l, lease, "a")
		sim.At(interval)
		var lost *locker.LostError
		if err := l.Err(); !errors.As(err, &lost) || lost.Reason != locker.Deleted {
			t.Errorf("the hold: %v", err)
		}
		sim.At(2 * interval)
		if left := sim.Server.Queue(locker.DefaultPrefix + "a/"); len(left) > 0 {
			t.Errorf("left: %v", left)
		}
		if err := other.Err(); err != nil {
			t.Errorf("another hold: %v", err)
		}
	})
}

func TestLock_TakesNoEntryForItsOwnThatWasThereBefore(t *testing.T) {
	t.Parallel()
	for name, call := range lockCalls {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			locktest.Simulate(t, func(sim locktest.Simulation) {
				c := sim.Client(locker.WithTTL(simulatedTTL))
				held := locktest.Lock(sim, c, "held", "")
				sim.Write(held, sim.LeaseOfKey("held"), "a")
				newer := locktest.Lock(sim, c, "newer", "")
				l, err := call(c, sim.Context(), "a", "v")
				if err != nil {
					sim.Fatal(err)
				}
				queue := sim.Server.Queue(locker.DefaultPrefix + "a/")
				if len(queue) != 1 || string(queue[0].Value) != "v" || l.Token() <= newer.Token() || queue[0].CreateRevision != l.Token() {
					t.Errorf("token %d after %d, queue %v", l.Token(), newer.Token(), queue)
				}
				sim.At(3 * interval)
				if err := l.Err(); err != nil {
					t.Errorf("the hold: %v", err)
				}
			})
		})
	}
}
