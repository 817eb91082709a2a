package systest

import (
	"context"
	"errors"
	"strconv"
	"sync/atomic"
	"testing"
	"time"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/server/v3/embed"

	"github.com/jagregory/locker/v2"
	"github.com/jagregory/locker/v2/embedtest"
	"github.com/jagregory/locker/v2/internal/locktest"
)

// Tests of faults of the members of etcd and of their storage.

func TestHold_AndWaitersSurviveAChangeOfLeader(t *testing.T) {
	t.Parallel()
	for name, fault := range map[string]func(*testing.T, *embedtest.Server){
		"moved": func(t *testing.T, s *embedtest.Server) { s.MoveLeader(t) },
		"stopped": func(t *testing.T, s *embedtest.Server) {
			s.Stop(t, s.Leader(t))
			s.Leader(t)
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := locktest.Setup(t, embedtest.WithMembers(3))
			c := gather(t, b, b.Server.Client, locker.WithTTL(locktest.Steady))
			fault(t, b.Server)
			c.passOn(t, b)
		})
	}
}

func TestHold_AndWaitersSurviveARestartBeforeTheDeadline(t *testing.T) {
	t.Parallel()
	b := locktest.Setup(t)
	c := gather(t, b, b.Server.Client, locker.WithTTL(locktest.Steady))
	token := c.holder.Token()
	b.Server.Stop(t, 0)
	b.Server.Restart(t, 0)
	holder, err := b.Client(t).Get(locktest.Within(t), c.name)
	if err != nil || holder.Token != token || c.holder.Token() != token {
		t.Errorf("held by %+v, %v; the token was %d and is %d", holder, err, token, c.holder.Token())
	}
	c.passOn(t, b)
}

func TestHold_IsKeptOrLostButPassedOnWhenAMemberIsIsolated(t *testing.T) {
	t.Parallel()
	for name, which := range map[string]int{"leader": 0, "follower": 1} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := locktest.Setup(t, embedtest.WithMembers(3))
			// All their clients are connected to all members.
			c := gather(t, b, b.Server.Client, locker.WithTTL(locktest.Steady))
			member := (b.Server.Leader(t) + which) % 3
			b.Server.Isolate(t, member)
			b.Server.Leader(t)

			majority := connectTo(t, b, (member+1)%3, (member+2)%3)
			for range 2 { // two deadlines
				before := c.holder.Deadline()
				locktest.Eventually(t, "the hold is renewed or lost", func() bool {
					return c.holder.Err() != nil || c.holder.Deadline().After(before)
				})
			}
			switch err := c.holder.Err(); {
			case err == nil:
				holder, err := locktest.NewClient(t, majority).Get(locktest.Within(t), c.name)
				if c.holder.Err() == nil && (err != nil || holder.Token != c.holder.Token()) {
					t.Errorf("held by %+v, %v", holder, err)
				}
				if err := c.holder.Unlock(locktest.Within(t)); err != nil && !errors.Is(err, locker.ErrLost) {
					t.Error(err)
				}
			case errors.Is(err, locker.ErrLost):
				t.Logf("it was lost: %v", err)
			default:
				t.Error(err)
			}
			b.Etcd = majority
			c.takeOver(t, b)
		})
	}
}

// connectTo returns a connection to some members only.
func connectTo(t testing.TB, b locktest.Bundle, members ...int) *clientv3.Client {
	t.Helper()
	config := b.Server.ClientConfig()
	config.Endpoints = nil
	for _, member := range members {
		config.Endpoints = append(config.Endpoints, b.Server.Endpoints()[member])
	}
	return locktest.Connect(t, config)
}

func TestHold_IsLostWithoutAQuorumAndCallsEndAndAllRecover(t *testing.T) {
	t.Parallel()
	b := locktest.Setup(t, embedtest.WithMembers(3))
	c := gather(t, b, b.Server.Client, locker.WithTTL(locktest.Steady))
	other := b.Client(t, locker.WithTTL(locktest.Steady))
	leader := b.Server.Leader(t)
	down := []int{leader, (leader + 1) % 3}
	for _, member := range down {
		b.Server.Stop(t, member)
	}

	deadline := c.holder.Deadline()
	locktest.Lost(t, c.holder, locker.Expired)
	if now := time.Now(); now.Before(deadline) {
		t.Errorf("lost %v before the deadline", deadline.Sub(now))
	}
	if err := c.holder.Unlock(locktest.Within(t)); !errors.Is(err, locker.ErrLost) {
		t.Errorf("Unlock returned %v", err)
	}
	if waiter := locktest.Receive(t, c.waiting); !errors.Is(waiter.Err, locker.ErrLost) {
		t.Errorf("Lock of the waiter returned %v", waiter.Err)
	}
	endsWithItsContext(t, other, func(error) {})

	for _, member := range down {
		b.Server.Restart(t, member)
	}
	c.waiting = locktest.LockAsync(locktest.Within(t), other, c.name, "again")
	c.takeOver(t, b)
	locktest.Eventually(t, "no entry is left", func() bool { return len(b.Entries(t)) == 0 })
}

func TestHold_AndWaitersSurviveConstantCompaction(t *testing.T) {
	t.Parallel()
	b := locktest.Setup(t)
	var compacted atomic.Int64
	ctx, stop := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() {
		defer close(done)
		compact(ctx, b.Etcd, &compacted)
	}()
	gather(t, b, b.Server.Client, locker.WithTTL(locktest.Steady)).passOn(t, b)
	clients := []*locker.Client{b.Client(t), b.Client(t)}
	seen := observe(t, b.Client(t), "turns")
	end := time.Now().Add(locktest.Timeout)
	for i := 0; i < 50 || compacted.Load() < 50 && time.Now().Before(end); i++ {
		l := locktest.Lock(t, clients[i%2], "turns", strconv.Itoa(i))
		waiting := locktest.LockAsync(locktest.Within(t), clients[(i+1)%2], "turns", "")
		if err := l.SetValue(locktest.Within(t), "changed"); err != nil {
			t.Error(err)
		}
		if err := l.Unlock(locktest.Within(t)); err != nil {
			t.Error(err)
		}
		next := locktest.Receive(t, waiting)
		if next.Err != nil {
			t.Fatal(next.Err)
		}
		seen.sees(t, next.Lock.Token())
		if err := next.Lock.Unlock(locktest.Within(t)); err != nil {
			t.Error(err)
		}
	}
	seen.sees(t, 0)
	stop()
	<-done
	if n := compacted.Load(); n < 50 {
		t.Errorf("etcd compacted only %d times", n)
	}
}

// compact compacts etcd up to the present every few milliseconds, until ctx ends, and
// counts how often there was something to compact.
func compact(ctx context.Context, etcd *clientv3.Client, times *atomic.Int64) {
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for ctx.Err() == nil {
		if now, err := etcd.Get(ctx, "x", clientv3.WithCountOnly()); err == nil {
			if _, err := etcd.Compact(ctx, now.Header.Revision, clientv3.WithCompactPhysical()); err == nil {
				times.Add(1)
			}
		}
		<-tick.C
	}
}

func TestHold_IsKeptAndUnlockedWithoutSpaceAndANewLockIsRefused(t *testing.T) {
	t.Parallel()
	b := locktest.Setup(t, embedtest.WithConfig(func(c *embed.Config) { c.QuotaBackendBytes = 2 << 20 }))
	c := gather(t, b, b.Server.Client, locker.WithTTL(locktest.Steady))
	seasoned, fresh := b.Client(t), b.Client(t) // with a session, and without
	other := locktest.Lock(t, seasoned, "other", "")

	b.FillUp(t)
	for name, client := range map[string]*locker.Client{"seasoned": seasoned, "fresh": fresh} {
		if _, err := client.Lock(locktest.Within(t), "new", ""); !errors.Is(err, rpctypes.ErrNoSpace) {
			t.Errorf("%s: Lock returned %v", name, err)
		}
		if _, err := client.TryLock(locktest.Within(t), "new", ""); !errors.Is(err, rpctypes.ErrNoSpace) {
			t.Errorf("%s: TryLock returned %v", name, err)
		}
	}
	b.Queued(t, "new", 0)
	if err := other.SetValue(locktest.Within(t), "changed"); !errors.Is(err, rpctypes.ErrNoSpace) {
		t.Errorf("SetValue returned %v", err)
	}
	full := time.Now()
	locktest.Eventually(t, "renewed for longer than the TTL", func() bool {
		return c.holder.Err() != nil || c.holder.Deadline().After(full.Add(2*locktest.Steady))
	})
	c.passOn(t, b)
	if err := other.Unlock(locktest.Within(t)); err != nil {
		t.Errorf("Unlock returned %v", err)
	}
	if err := seasoned.Close(); err != nil {
		t.Errorf("Close returned %v", err)
	}
}

func TestHold_EndsWithARevokedPermissionAsItsCause(t *testing.T) {
	t.Parallel()
	const user = "someone"
	b := locktest.Setup(t, embedtest.WithAuth())
	ctx := locktest.Within(t)
	b.AddUser(t, user)
	b.Permit(t, user, clientv3.PermissionType(clientv3.PermReadWrite), locker.DefaultPrefix)
	config := b.Server.ClientConfig()
	config.Username, config.Password = user, user
	c := locktest.NewClient(t, locktest.Connect(t, config), locker.WithTTL(locker.DefaultTTL))
	l := locktest.Lock(t, c, "a", "")
	locktest.Renewed(t, l)
	b.Forbid(t, user, locker.DefaultPrefix)
	deadline := l.Deadline()
	loss := locktest.Lost(t, l, locker.Expired)
	if now := time.Now(); now.Before(deadline) {
		t.Errorf("lost %v before the deadline", deadline.Sub(now))
	}
	if !errors.Is(loss, rpctypes.ErrPermissionDenied) {
		t.Errorf("lost because of %v", loss.Cause)
	}
	if _, err := c.Lock(ctx, "b", ""); !errors.Is(err, rpctypes.ErrPermissionDenied) {
		t.Errorf("Lock returned %v", err)
	}
	next := locktest.Lock(t, b.Client(t), "a", "") // as root
	if next.Token() <= l.Token() {
		t.Errorf("token %d after %d", next.Token(), l.Token())
	}
}
