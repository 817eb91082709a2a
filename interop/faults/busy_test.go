//go:build unix

package faults

import (
	"context"
	"fmt"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/jagregory/locker/v2"
	"github.com/jagregory/locker/v2/internal/key"
)

// Faults while many locks are taken and given up.

// docs/faults.md, row 27.
func TestLoad_ARollingRestartBreaksNoGuarantee(t *testing.T) {
	t.Parallel()
	s := start(t, 3, 3*time.Second)
	s.underLoad(func(clients []*process) {
		for member := range 2 * s.members {
			s.cluster.Member(member % s.members).Kill()
			s.restart(member % s.members)
			s.allHold(clients, now())
		}
		s.left = now()
	})
}

// docs/faults.md, row 29.
func TestLoad_CommitsOfAFrozenLeaderThatComeLateAreCleanedUp(t *testing.T) {
	t.Parallel()
	s := start(t, 3, 2*time.Second)
	var late []report
	s.underLoad(func(clients []*process) {
		// The first is over before anybody has given a request up, the last after a new leader was
		// elected; those between last longer than a request, and are over before, or about when, a
		// new leader is elected.
		for i, length := range []time.Duration{400 * time.Millisecond, 1150 * time.Millisecond, 1150 * time.Millisecond, 3 * time.Second} {
			leader := s.leader()
			s.stopMembers(leader)
			late = append(late, s.locksInVain(clients, i, length)...)
			s.resumeMembers(leader)
			s.allHold(clients, now())
		}
		s.left = now()
	})
	ctx, cancel := s.within()
	defer cancel()
	truth, err := readTruth(ctx, s.etcd, s.names)
	s.check(err)
	came := 0
	for _, r := range late {
		if truth[r.Name] != nil {
			came++
		}
	}
	t.Logf("%d calls were given up, and the entries of %d of them came nevertheless", len(late), came)
	if came == 0 {
		t.Error("no commit came late")
	}
}

// locksInVain has clients lock names that nobody wants later, so that nobody happens to clear up what
// is left of them, with less time than passes until it returns. It returns the calls that failed.
func (s *scene) locksInVain(clients []*process, round int, length time.Duration) (late []report) {
	s.t.Helper()
	const each = 8
	passed := time.After(length)
	ids := make(map[*process][]int)
	for _, p := range clients {
		for i := range time.Duration(each) {
			name := fmt.Sprintf("late-%s-%d-%d", p.name, round, i)
			ids[p] = append(ids[p], p.send(command{Verb: "lock", Name: name, Within: (i + 1) * length / (each + 1)}))
		}
	}
	<-passed
	for p, ids := range ids {
		for _, id := range ids {
			r := p.answer(id)
			if r.Kind != "" {
				late = append(late, r)
				continue
			}
			// What cannot be cleaned up within the TTL costs the session, and with it this hold.
			if r = p.try(command{Verb: "unlock", Name: r.Name, Within: patience}); r.Kind != lost {
				p.want(r, "")
			}
		}
	}
	return late
}

// docs/faults.md, row 30.
func TestLoad_ALeaderThatRunsHalfTheTimeOnlyMakesThingsSlower(t *testing.T) {
	t.Parallel()
	s := start(t, 3, 3*time.Second)
	s.underLoad(func([]*process) {
		leader := s.leader()
		s.half(func() { s.stopMembers(leader) }, func() { s.resumeMembers(leader) })
		s.left = now()
	})
}

// docs/faults.md, row 30.
func TestLoad_AClientThatRunsHalfTheTimeHarmsNobody(t *testing.T) {
	t.Parallel()
	s := start(t, 1, 3*time.Second)
	s.underLoad(func(clients []*process) { s.half(clients[0].stop, clients[0].resume) })
}

// half lets something run half the time, for a few seconds.
func (s *scene) half(stop, resume func()) {
	s.t.Helper()
	const turn = 100 * time.Millisecond
	for end := now().add(5 * time.Second); now() < end; {
		stop()
		pause(s.t.Context(), turn)
		resume()
		pause(s.t.Context(), turn)
	}
}

// underLoad lets something happen while three clients take locks. All of them have to hold before, at
// some time during, and after it; then the queues have to be empty soon, while the sessions live.
func (s *scene) underLoad(fault func(clients []*process)) {
	s.t.Helper()
	s.observe([]string{"a", "b"})
	s.crowded = true
	loads := make(map[*process]int)
	var clients []*process
	for _, name := range []string{"x", "y", "z"} {
		p := s.client(name)
		clients = append(clients, p)
		loads[p] = p.send(command{Verb: "load", Names: s.names})
	}
	s.allHold(clients, 0)
	began := now()
	fault(clients)
	ended := now()
	s.allHold(clients, ended)
	for p, load := range loads {
		p.do("rest", "")
		p.want(p.answer(load), "")
	}
	s.tell(clients, began, ended)
	emptied := s.timer()
	s.await("the queues are empty", func(ctx context.Context) bool { return s.resting(ctx, len(clients)) })
	emptied("the queues are empty", s.ttl+time.Second)
}

// allHold waits until each client has had a hold that began after a moment.
func (s *scene) allHold(clients []*process, after instant) {
	s.t.Helper()
	for _, p := range clients {
		p.await("a hold", func(r report) bool { return r.Verb == "turn" && r.Token != 0 && r.Began > after })
	}
}

// tell logs what clients did meanwhile, and fails the test if that was next to nothing.
func (s *scene) tell(clients []*process, from, to instant) {
	s.t.Helper()
	for _, p := range clients {
		turns, holds, losses, unknown := 0, 0, 0, 0
		for _, r := range p.said() {
			if r.Verb != "turn" || r.At < from || r.Began > to {
				continue
			}
			turns++
			if r.Token != 0 {
				holds++
			}
			if r.Kind == lost {
				losses++
			}
			if r.Wrote == "unknown" {
				unknown++
			}
		}
		s.t.Logf("%s within %v: %d turns, %d holds, %d lost, %d writes unknown", p.name, round(to.since(from)), turns, holds, losses, unknown)
		if holds < 3 {
			s.t.Errorf("%s has hardly held anything", p.name)
		}
	}
}

// resting tells whether all queues are empty and no client has more leases than it needs.
func (s *scene) resting(ctx context.Context, clients int) bool {
	ctx, cancel := context.WithTimeout(ctx, 500*time.Millisecond)
	defer cancel()
	keys, err := s.etcd.Get(ctx, locker.DefaultPrefix, clientv3.WithPrefix(), clientv3.WithKeysOnly())
	if err != nil {
		return false
	}
	space := key.NewSpace(locker.DefaultPrefix)
	for _, kv := range keys.Kvs {
		if _, isEntry := space.Name(string(kv.Key)); isEntry {
			return false
		}
	}
	leases, err := s.etcd.Leases(ctx)
	return err == nil && len(leases.Leases) <= clients
}
