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

// docs/faults.md, row 27.
func TestLoad_ARollingRestartBreaksNoGuarantee(t *testing.T) {
	t.Parallel()
	s := start(t, 3, 3*time.Second)
	s.underLoad(func(clients []*process) {
		for member := range 2 * s.members {
			s.cluster.Member(member % s.members).Kill()
			s.restart(member % s.members)
			s.awaitAllHold(clients, now())
		}
		s.leftAt = now()
	})
}

// docs/faults.md, row 29.
func TestLoad_CommitsOfAFrozenLeaderThatComeLateAreCleanedUp(t *testing.T) {
	t.Parallel()
	s := start(t, 3, 2*time.Second)
	var late []report
	s.underLoad(func(clients []*process) {
		// The first freeze ends before any request times out, and the last ends after a
		// new leader is elected. The others last longer than a request and end before or
		// about when a new leader is elected.
		for i, length := range []time.Duration{400 * time.Millisecond, 1150 * time.Millisecond, 1150 * time.Millisecond, 3 * time.Second} {
			leader := s.leader()
			s.stopMembers(leader)
			late = append(late, s.lockWithShortTimeouts(clients, i, length)...)
			s.resumeMembers(leader)
			s.awaitAllHold(clients, now())
		}
		s.leftAt = now()
	})
	ctx, cancel := s.testContext()
	defer cancel()
	history, err := readHistory(ctx, s.etcd, s.names)
	s.check(err)
	applied := 0
	for _, r := range late {
		if history[r.Name] != nil {
			applied++
		}
	}
	t.Logf("%d calls failed, and the entries of %d of them were put nevertheless", len(late), applied)
	if applied == 0 {
		t.Error("no entry was put by a call that failed")
	}
}

// lockWithShortTimeouts has clients lock names with timeouts shorter than length and
// returns the calls that failed. No name is used again, so that no later call happens to
// remove its entry.
func (s *scenario) lockWithShortTimeouts(clients []*process, round int, length time.Duration) (late []report) {
	s.t.Helper()
	const each = 8
	over := time.After(length)
	ids := make(map[*process][]int)
	for _, p := range clients {
		for i := range time.Duration(each) {
			name := fmt.Sprintf("late-%s-%d-%d", p.name, round, i)
			ids[p] = append(ids[p], p.send(command{Verb: "lock", Name: name, Timeout: (i + 1) * length / (each + 1)}))
		}
	}
	<-over
	for p, ids := range ids {
		for _, id := range ids {
			r := p.answer(id)
			if r.Kind != "" {
				late = append(late, r)
				continue
			}
			// If another entry cannot be removed within the TTL, its session ends, and
			// this hold with it.
			if r = p.try(command{Verb: "unlock", Name: r.Name, Timeout: testTimeout}); r.Kind != kindLost {
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
		s.alternate(func() { s.stopMembers(leader) }, func() { s.resumeMembers(leader) })
		s.leftAt = now()
	})
}

// docs/faults.md, row 30.
func TestLoad_AClientThatRunsHalfTheTimeHarmsNobody(t *testing.T) {
	t.Parallel()
	s := start(t, 1, 3*time.Second)
	s.underLoad(func(clients []*process) { s.alternate(clients[0].stop, clients[0].resume) })
}

// alternate stops and resumes something for a few seconds, so that it runs half of the
// time.
func (s *scenario) alternate(stop, resume func()) {
	s.t.Helper()
	const interval = 100 * time.Millisecond
	for end := now().add(5 * time.Second); now() < end; {
		stop()
		pause(s.t.Context(), interval)
		resume()
		pause(s.t.Context(), interval)
	}
}

// underLoad calls fault while three clients lock and unlock names. Each client must hold
// before and after it, and several times during it. Then the queues must be empty soon,
// while the sessions live.
func (s *scenario) underLoad(fault func(clients []*process)) {
	s.t.Helper()
	s.observe([]string{"a", "b"})
	s.watchMaySkip = true
	loads := make(map[*process]int)
	var clients []*process
	for _, name := range []string{"x", "y", "z"} {
		p := s.client(name)
		clients = append(clients, p)
		loads[p] = p.send(command{Verb: "load", Names: s.names})
	}
	s.awaitAllHold(clients, 0)
	began := now()
	fault(clients)
	ended := now()
	s.awaitAllHold(clients, ended)
	for p, load := range loads {
		p.do("endload", "")
		p.want(p.answer(load), "")
	}
	s.logLoad(clients, began, ended)
	checkTime := s.timer()
	s.eventually("the queues are empty", func(ctx context.Context) bool { return s.isIdle(ctx, len(clients)) })
	checkTime("the queues are empty", s.ttl+time.Second)
}

// awaitAllHold waits until each client has had a hold that began after the given instant.
func (s *scenario) awaitAllHold(clients []*process, after instant) {
	s.t.Helper()
	for _, p := range clients {
		p.awaitReport("a hold", func(r report) bool { return r.Verb == "cycle" && r.Token != 0 && r.Began > after })
	}
}

// logLoad logs what the clients did in the given time, and fails the test if a client had
// fewer than three holds.
func (s *scenario) logLoad(clients []*process, from, to instant) {
	s.t.Helper()
	for _, p := range clients {
		cycles, holds, losses, unknown := 0, 0, 0, 0
		for _, r := range p.reported() {
			if r.Verb != "cycle" || r.At < from || r.Began > to {
				continue
			}
			cycles++
			if r.Token != 0 {
				holds++
			}
			if r.Kind == kindLost {
				losses++
			}
			if r.Wrote == "unknown" {
				unknown++
			}
		}
		s.t.Logf("%s within %v: %d cycles, %d holds, %d lost, %d writes unknown", p.name, roundMillis(to.since(from)), cycles, holds, losses, unknown)
		if holds < 3 {
			s.t.Errorf("%s had only %d holds", p.name, holds)
		}
	}
}

// isIdle reports whether all queues are empty and no client has more leases than it needs.
func (s *scenario) isIdle(ctx context.Context, clients int) bool {
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
