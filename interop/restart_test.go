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

// longTTL outlasts a restart of all members on a busy machine.
const longTTL = 20 * time.Second

// scenario is a holder, a waiter and a watch of their name.
type scenario struct {
	bundle
	holder  *locker.Lock
	waiter  <-chan outcome
	watched *states
}

func newScenario(t *testing.T, b bundle) scenario {
	t.Helper()
	s := scenario{bundle: b, holder: lock(t, b.client(t, locker.WithTTL(longTTL)), "a", "first")}
	s.waiter = lockAsync(testContext(t), b.client(t, locker.WithTTL(longTTL)), "a", "second")
	b.awaitEntries(t, "a", 2)
	s.watched = startWatch(t, b.client(t), "a", false)
	s.watched.expect(t, "a", s.holder)
	return s
}

// checkContinues checks that the holder still holds, in etcd as well, that the waiter
// holds after it, and that the watch reports both.
func (s scenario) checkContinues(t *testing.T) {
	t.Helper()
	ctx := testContext(t)
	// A commit may be lost with the leader, and etcd reports that only after 7 s.
	eventually(t, "the holder can commit", func() bool {
		ctx, cancel := context.WithTimeout(ctx, time.Second)
		defer cancel()
		_, err := s.holder.Commit(ctx, clientv3.OpPut("data/"+s.prefix, ""))
		return err == nil
	})
	if holder, err := s.client(t).Get(ctx, "a"); err != nil || holder.Token != s.holder.Token() {
		t.Errorf("Get returned %+v, %v, want token %d", holder, err, s.holder.Token())
	}
	if len(s.waiter) > 0 {
		t.Fatal("two clients hold the name")
	}
	unlock(t, s.holder)
	next := awaitLock(t, s.waiter)
	if next.Token() <= s.holder.Token() {
		t.Errorf("got token %d after %d", next.Token(), s.holder.Token())
	}
	s.watched.expect(t, "a", next)
	unlock(t, next)
	s.watched.expect(t, "a", nil)
}

func TestHold_SurvivesARestartOfEtcd(t *testing.T) {
	withTokens := authentication
	withTokens.on = from35
	onOwnCluster(t, func(t *testing.T, b bundle) {
		s := newScenario(t, b)
		for i := range b.members {
			b.Member(i).Kill()
		}
		var restarts sync.WaitGroup // concurrent, because no member serves without another
		for i := range b.members {
			restarts.Go(func() {
				if err := b.Member(i).Restart(testContext(t)); err != nil {
					t.Error(err)
				}
			})
		}
		restarts.Wait()
		s.checkContinues(t)
	}, oneMember, threeMembers, withTLS, withTokens)
}

func TestHold_SurvivesTheDeathOfTheLeader(t *testing.T) {
	onOwnCluster(t, func(t *testing.T, b bundle) {
		s := newScenario(t, b)
		leader := b.leader(t)
		leader.Kill()
		s.checkContinues(t)
		if err := leader.Restart(testContext(t)); err != nil {
			t.Error(err)
		}
	}, threeMembers)
}

// leader returns the leader of the cluster.
func (b bundle) leader(t *testing.T) *etcdproc.Member {
	t.Helper()
	for i, endpoint := range b.Endpoints() {
		status, err := b.etcd.Status(testContext(t), endpoint)
		if err != nil {
			t.Fatal(err)
		}
		if status.Leader == status.Header.MemberId {
			return b.Member(i)
		}
	}
	t.Fatal("the cluster has no leader")
	return nil
}
