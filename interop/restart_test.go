package interop

import (
	"context"
	"sync"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/jagregory/locker/v2"
	"github.com/jagregory/locker/v2/internal/etcdproc"
)

// ample is a TTL that outlasts a restart of all members on a busy machine.
const ample = 20 * time.Second

// scene is a holder, a waiter, and somebody who watches them.
type scene struct {
	bundle
	holder  *locker.Lock
	waiter  <-chan outcome
	watched *states
}

func newScene(t *testing.T, b bundle) scene {
	t.Helper()
	s := scene{bundle: b, holder: lock(t, b.client(t, locker.WithTTL(ample)), "a", "first")}
	s.waiter = lockAsync(within(t), b.client(t, locker.WithTTL(ample)), "a", "second")
	b.queued(t, "a", 2)
	s.watched = follow(t, b.client(t), "a", false)
	s.watched.sees(t, "a", s.holder)
	return s
}

// goesOn checks that the holder holds, in etcd as well, and that whoever waits and watches sees it go.
func (s scene) goesOn(t *testing.T) {
	t.Helper()
	ctx := within(t)
	// A commit may be lost with the leader, which etcd does not tell for 7 s.
	eventually(t, "it can commit", func() bool {
		ctx, cancel := context.WithTimeout(ctx, time.Second)
		defer cancel()
		_, err := s.holder.Commit(ctx, clientv3.OpPut("data/"+s.prefix, ""))
		return err == nil
	})
	if holder, err := s.client(t).Get(ctx, "a"); err != nil || holder.Token != s.holder.Token() {
		t.Errorf("%+v, %v, want token %d", holder, err, s.holder.Token())
	}
	if len(s.waiter) > 0 {
		t.Fatal("two hold the name")
	}
	unlock(t, s.holder)
	next := served(t, s.waiter)
	if next.Token() <= s.holder.Token() {
		t.Errorf("token %d after %d", next.Token(), s.holder.Token())
	}
	s.watched.sees(t, "a", next)
	unlock(t, next)
	s.watched.sees(t, "a", nil)
}

func TestHold_SurvivesARestartOfEtcd(t *testing.T) {
	withTokens := authentication
	withTokens.on = from35
	alone(t, func(t *testing.T, b bundle) {
		s := newScene(t, b)
		for i := range b.members {
			b.Member(i).Kill()
		}
		var restarts sync.WaitGroup // at once: none serves without another
		for i := range b.members {
			restarts.Go(func() {
				if err := b.Member(i).Restart(within(t)); err != nil {
					t.Error(err)
				}
			})
		}
		restarts.Wait()
		s.goesOn(t)
	}, oneMember, threeMembers, withTLS, withTokens)
}

func TestHold_SurvivesTheDeathOfTheLeader(t *testing.T) {
	alone(t, func(t *testing.T, b bundle) {
		s := newScene(t, b)
		leader := b.leader(t)
		leader.Kill()
		s.goesOn(t)
		if err := leader.Restart(within(t)); err != nil {
			t.Error(err)
		}
	}, threeMembers)
}

// leader returns the member that leads.
func (b bundle) leader(t *testing.T) *etcdproc.Member {
	t.Helper()
	for i, endpoint := range b.Endpoints() {
		status, err := b.etcd.Status(within(t), endpoint)
		if err != nil {
			t.Fatal(err)
		}
		if status.Leader == status.Header.MemberId {
			return b.Member(i)
		}
	}
	t.Fatal("no member leads")
	return nil
}
