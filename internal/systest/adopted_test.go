package systest

import (
	"fmt"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/client/v3/concurrency"

	"github.com/jagregory/locker/v2"
	"github.com/jagregory/locker/v2/internal/fakeetcd"
	"github.com/jagregory/locker/v2/internal/locktest"
)

// adopt returns a session over one of the program's own, with a TTL of a minute.
func adopt(t *testing.T, b locktest.Bundle, c *locker.Client) (*locker.Session, *concurrency.Session) {
	t.Helper()
	theirs := locktest.ConcurrencySession(t, b.Etcd, 60)
	s, err := c.AdoptSession(theirs)
	if err != nil {
		t.Fatal(err)
	}
	return s, theirs
}

func TestAdoptSession_CloseOfManyHoldsIsPromptOverASlowLink(t *testing.T) {
	t.Parallel()
	const holds, latency, longest = 900, 20 * time.Millisecond, 2 * time.Second
	locktest.Simulate(t, func(sim locktest.Simulation) {
		etcd := sim.Connect()
		c := locktest.NewClient(sim, etcd)
		s, err := c.AdoptSession(foreignSession(sim, etcd))
		if err != nil {
			sim.Fatal(err)
		}
		for _, result := range fillAsync(sim, c, holds, locker.WithSession(s)) {
			if got := locktest.Receive(sim, result); got.Err != nil {
				sim.Fatal(got.Err)
			}
		}
		sim.Server.Decide(func(fakeetcd.Call) fakeetcd.Fate { return fakeetcd.Fate{Before: latency, After: latency} })
		began := time.Now()
		if err := s.Close(); err != nil {
			t.Errorf("Close returned %v", err)
		}
		if took := time.Since(began); took > longest {
			t.Errorf("Close took %v", took)
		}
		if left := sim.Server.Keys(); len(left) > 0 {
			t.Errorf("%d keys are left, the first is %s", len(left), left[0])
		}
	})
}

// fillAsync locks n names at once.
func fillAsync(sim locktest.Simulation, c *locker.Client, n int, opts ...locker.LockOption) (results []<-chan locktest.Outcome) {
	for i := range n {
		results = append(results, locktest.LockAsync(sim.Context(), c, fmt.Sprint(i), "", opts...))
	}
	return results
}

func TestAdoptSession_CloseLeavesNothingOfItsOwnAndAllThatIsNot(t *testing.T) {
	t.Parallel()
	b, ctx := locktest.Setup(t), locktest.Within(t)
	c := b.Client(t)
	s, theirs := adopt(t, b, c)
	l := locktest.Lock(t, c, "a", "", locker.WithSession(s))
	member := locktest.MemberOf(l)
	foreign := fmt.Sprintf("%sm/%x", locker.DefaultPrefix, theirs.Lease()) // a Mutex over the same session
	for _, key := range []string{locker.DefaultPrefix + "b/" + member, locker.DefaultPrefix + "a/" + member + ".2", foreign} {
		if _, err := b.Etcd.Put(ctx, key, "", clientv3.WithLease(theirs.Lease())); err != nil {
			t.Fatal(err)
		}
	}
	if err := s.Close(); err != nil {
		t.Errorf("Close returned %v", err)
	}
	if left := b.Keys(t, locker.DefaultPrefix); len(left) != 1 || left[0] != foreign {
		t.Errorf("left: %q", left)
	}
}
