package systest

import (
	"context"
	"errors"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/server/v3/embed"

	"github.com/jagregory/locker/v2"
	"github.com/jagregory/locker/v2/embedtest"
)

// Faults of the members of etcd and of what they store.

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
			b := setup(t, embedtest.WithMembers(3))
			c := gather(t, b, b.Server.Client, locker.WithTTL(steady))
			fault(t, b.Server)
			c.passOn(t, b)
		})
	}
}

func TestHold_AndWaitersSurviveARestartBeforeTheDeadline(t *testing.T) {
	t.Parallel()
	b := setup(t)
	c := gather(t, b, b.Server.Client, locker.WithTTL(steady))
	token := c.holder.Token()
	b.Server.Stop(t, 0)
	b.Server.Restart(t, 0)
	holder, err := b.Client(t).Get(within(t), c.name)
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
			b := setup(t, embedtest.WithMembers(3))
			// All their clients are connected to all members.
			c := gather(t, b, b.Server.Client, locker.WithTTL(steady))
			member := (b.Server.Leader(t) + which) % 3
			b.Server.Isolate(t, member)
			b.Server.Leader(t)

			majority := connectTo(t, b, (member+1)%3, (member+2)%3)
			for range 2 { // two deadlines
				before := c.holder.Deadline()
				eventually(t, "the hold is renewed or lost", func() bool {
					return c.holder.Err() != nil || c.holder.Deadline().After(before)
				})
			}
			switch err := c.holder.Err(); {
			case err == nil:
				holder, err := newClient(t, majority).Get(within(t), c.name)
				if c.holder.Err() == nil && (err != nil || holder.Token != c.holder.Token()) {
					t.Errorf("held by %+v, %v", holder, err)
				}
				if err := c.holder.Unlock(within(t)); err != nil && !errors.Is(err, locker.ErrLost) {
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
func connectTo(t testing.TB, b bundle, members ...int) *clientv3.Client {
	t.Helper()
	config := b.Server.ClientConfig()
	config.Endpoints = nil
	for _, member := range members {
		config.Endpoints = append(config.Endpoints, b.Server.Endpoints()[member])
	}
	etcd := connect(t, config)
	return etcd
}

func TestHold_IsLostWithoutAQuorumAndCallsEndAndAllRecover(t *testing.T) {
	t.Parallel()
	b := setup(t, embedtest.WithMembers(3))
	c := gather(t, b, b.Server.Client, locker.WithTTL(steady))
	caller := b.Client(t, locker.WithTTL(steady))
	leader := b.Server.Leader(t)
	down := []int{leader, (leader + 1) % 3}
	for _, member := range down {
		b.Server.Stop(t, member)
	}

	certain := c.holder.Deadline()
	lost(t, c.holder, locker.Expired)
	if now := time.Now(); now.Before(certain) {
		t.Errorf("lost %v before the deadline", certain.Sub(now))
	}
	if err := c.holder.Unlock(within(t)); !errors.Is(err, locker.ErrLost) {
		t.Errorf("Unlock returned %v", err)
	}
	if waiter := receive(t, c.waiting); !errors.Is(waiter.Err, locker.ErrLost) {
		t.Errorf("Lock of the waiter returned %v", waiter.Err)
	}
	endsWithItsContext(t, caller, func(error) {})

	for _, member := range down {
		b.Server.Restart(t, member)
	}
	c.waiting = lockAsync(within(t), caller, c.name, "again")
	c.takeOver(t, b)
	eventually(t, "no entry is left", func() bool {
		for _, key := range b.Keys(t, locker.DefaultPrefix) {
			if !strings.HasPrefix(key, locker.DefaultPrefix+"/") { // a session's record
				return false
			}
		}
		return true
	})
}

func TestHold_AndWaitersSurviveConstantCompaction(t *testing.T) {
	t.Parallel()
	b := setup(t)
	var compacted atomic.Int64
	ctx, stop := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() {
		defer close(done)
		compact(ctx, b.Etcd, &compacted)
	}()
	gather(t, b, b.Server.Client, locker.WithTTL(steady)).passOn(t, b)
	clients := []*locker.Client{b.Client(t), b.Client(t)}
	seen := observe(t, b.Client(t), "turns")
	end := time.Now().Add(patience)
	for i := 0; i < 50 || compacted.Load() < 50 && time.Now().Before(end); i++ {
		l := lock(t, clients[i%2], "turns", strconv.Itoa(i))
		waiting := lockAsync(within(t), clients[(i+1)%2], "turns", "")
		if err := l.SetValue(within(t), "changed"); err != nil {
			t.Error(err)
		}
		if err := l.Unlock(within(t)); err != nil {
			t.Error(err)
		}
		next := receive(t, waiting)
		if next.Err != nil {
			t.Fatal(next.Err)
		}
		seen.sees(t, next.Lock.Token())
		if err := next.Lock.Unlock(within(t)); err != nil {
			t.Error(err)
		}
	}
	seen.sees(t, 0)
	stop()
	<-done
	if n := compacted.Load(); n < 50 {
		t.Errorf("etcd compacted %d times only", n)
	}
}

// compact has etcd forget all but the present every few milliseconds, until ctx
// ends, and counts how often there was something to forget.
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
	b := setup(t, embedtest.WithConfig(func(c *embed.Config) { c.QuotaBackendBytes = 2 << 20 }))
	c := gather(t, b, b.Server.Client, locker.WithTTL(steady))
	seasoned, fresh := b.Client(t), b.Client(t) // with a session, and without
	other := lock(t, seasoned, "other", "")

	chunk := strings.Repeat("x", 100<<10)
	eventually(t, "etcd is full", func() bool {
		_, err := b.Etcd.Put(within(t), "ballast", chunk)
		return errors.Is(err, rpctypes.ErrNoSpace)
	})
	for name, client := range map[string]*locker.Client{"seasoned": seasoned, "fresh": fresh} {
		if _, err := client.Lock(within(t), "new", ""); !errors.Is(err, rpctypes.ErrNoSpace) {
			t.Errorf("%s: Lock returned %v", name, err)
		}
		if _, err := client.TryLock(within(t), "new", ""); !errors.Is(err, rpctypes.ErrNoSpace) {
			t.Errorf("%s: TryLock returned %v", name, err)
		}
	}
	b.Queued(t, "new", 0)
	if err := other.SetValue(within(t), "changed"); !errors.Is(err, rpctypes.ErrNoSpace) {
		t.Errorf("SetValue returned %v", err)
	}
	full := time.Now()
	eventually(t, "renewed for longer than the TTL", func() bool {
		return c.holder.Err() != nil || c.holder.Deadline().After(full.Add(2*steady))
	})
	c.passOn(t, b)
	if err := other.Unlock(within(t)); err != nil {
		t.Errorf("Unlock returned %v", err)
	}
	if err := seasoned.Close(); err != nil {
		t.Errorf("Close returned %v", err)
	}
}

func TestHold_EndsWithARevokedPermissionAsItsCause(t *testing.T) {
	t.Parallel()
	const user, role = "someone", "locking"
	b := setup(t, embedtest.WithAuth())
	ctx := within(t)
	all := clientv3.GetPrefixRangeEnd(locker.DefaultPrefix)
	steps := []func() error{
		func() error { _, err := b.Etcd.UserAdd(ctx, user, "secret"); return err },
		func() error { _, err := b.Etcd.RoleAdd(ctx, role); return err },
		func() error {
			_, err := b.Etcd.RoleGrantPermission(ctx, role, locker.DefaultPrefix, all, clientv3.PermissionType(clientv3.PermReadWrite))
			return err
		},
		func() error { _, err := b.Etcd.UserGrantRole(ctx, user, role); return err },
	}
	for _, step := range steps {
		if err := step(); err != nil {
			t.Fatal(err)
		}
	}
	config := b.Server.ClientConfig()
	config.Username, config.Password = user, "secret"
	etcd := connect(t, config)

	c := newClient(t, etcd, locker.WithTTL(locker.DefaultTTL))
	l := lock(t, c, "a", "")
	renewed(t, l)
	if _, err := b.Etcd.RoleRevokePermission(ctx, role, locker.DefaultPrefix, all); err != nil {
		t.Fatal(err)
	}
	certain := l.Deadline()
	loss := lost(t, l, locker.Expired)
	if now := time.Now(); now.Before(certain) {
		t.Errorf("lost %v before the deadline", certain.Sub(now))
	}
	if !errors.Is(loss, rpctypes.ErrPermissionDenied) {
		t.Errorf("lost because of %v", loss.Cause)
	}
	if _, err := c.Lock(ctx, "b", ""); !errors.Is(err, rpctypes.ErrPermissionDenied) {
		t.Errorf("Lock returned %v", err)
	}
	next := lock(t, b.Client(t), "a", "") // root's
	if next.Token() <= l.Token() {
		t.Errorf("token %d after %d", next.Token(), l.Token())
	}
}
