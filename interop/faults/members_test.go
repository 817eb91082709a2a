//go:build unix

package faults

import (
	"testing"
	"time"
)

// Faults of the members of etcd, while few locks are taken.

// docs/faults.md, row 16.
func TestHold_AndWaitersSurviveAFrozenMemberTheyWereConnectedTo(t *testing.T) {
	t.Parallel()
	for name, behindLeader := range map[string]int{"leader": 0, "follower": 1} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := start(t, 3, 5*time.Second)
			frozen := (s.leader() + behindLeader) % 3
			// All streams go to that member, and only later requests may go to others.
			s.observe([]string{"a", "b"}, frozen)
			// The holder is renewed just before. The waiter is not, and must outlast an election.
			h, w := s.client("h", frozen), s.clientWith(2*s.ttl, "w", frozen)
			c := s.client("c", (frozen+1)%s.members, (frozen+2)%s.members)
			held := s.locks(h, "a")
			waiting := s.queues(w, "a", 2)
			s.renewed(h, "a")
			s.observer.etcd.SetEndpoints(s.endpoints()...)
			for _, p := range []*process{h, w} {
				p.want(p.try(command{Verb: "spread", Endpoints: s.endpoints()}), "")
			}

			const length = 8 * time.Second
			began := now()
			s.check(s.cluster.Member(frozen).Pause())
			s.locks(c, "b") // which nobody can tell the observer from there
			pause(t.Context(), began.add(s.ttl+500*time.Millisecond).since(now()))
			if r := h.do("deadline", "a"); r.Token != held.Token || r.Until < began.add(s.ttl) {
				t.Errorf("the hold was not renewed: %+v", r)
			}
			// A stream that is opened anew may happen to go to the frozen member once more, so there is no
			// bound but that the member does not return before.
			passed := s.timer()
			h.do("unlock", "a")
			s.holds(w, waiting)
			passed("the next holds, and is seen", patience)
			pause(t.Context(), began.add(length).since(now()))
			s.check(s.cluster.Member(frozen).Resume())
			w.do("unlock", "a")
			c.do("unlock", "b")
		})
	}
}

// docs/faults.md, row 24.
func TestHold_SurvivesARestartOfEtcdBeforeTheDeadline(t *testing.T) {
	t.Parallel()
	s := start(t, 1, 5*time.Second)
	s.observe([]string{"a"})
	// The holder is renewed just before. The waiter is not, and must outlast the restart.
	h, w := s.client("h"), s.clientWith(2*s.ttl, "w")
	held := s.locks(h, "a")
	waiting := s.queues(w, "a", 2)
	s.renewed(h, "a")
	s.cluster.Member(0).Kill()
	deadline := h.do("deadline", "a").Until
	s.restart(0)
	t.Logf("etcd was back %v before the deadline", round(deadline.since(now())))
	s.keeps(h, held)
	pause(t.Context(), deadline.since(now()))
	s.keeps(h, held)
	s.sees(held)
	if r := w.do("get", "a"); r.Token != held.Token {
		t.Errorf("token %d holds after token %d", r.Token, held.Token)
	}
	h.do("unlock", "a")
	s.holds(w, waiting)
	w.do("unlock", "a")
}

// docs/faults.md, row 25.
func TestHold_IsLostAtItsDeadlineWhenEtcdStaysAway(t *testing.T) {
	t.Parallel()
	s := start(t, 1, 2*time.Second)
	s.observe([]string{"a"})
	s.crowded = true // both leases run out at once
	h, w := s.client("h"), s.client("w")
	held := s.locks(h, "a")
	waiting := s.queues(w, "a", 2)
	s.cluster.Member(0).Kill()
	s.losesAtDeadline(h, held)
	w.want(w.answer(waiting), lost)
	s.restart(0)
	s.left = now() // etcd lets all leases begin once more

	again := w.send(command{Verb: "lock", Name: "a", Within: patience})
	after := s.holds(w, again)
	if after.Token <= held.Token {
		t.Errorf("token %d after %d", after.Token, held.Token)
	}
	waiting = s.queues(h, "a", 2)
	w.do("unlock", "a")
	s.holds(h, waiting)
	h.do("unlock", "a")
}

// losesAtDeadline waits for the end of a hold that cannot be renewed, which has to come at its deadline.
func (s *scene) losesAtDeadline(h *process, hold report) {
	s.t.Helper()
	certain := h.do("deadline", hold.Name)
	end := h.end(hold)
	h.want(end, lost)
	off := end.At.since(certain.Until)
	allowed := promptly + hops*end.Starved
	s.t.Logf("lost %v after the deadline, allowed are %v (that process was not run for %v of it)", off, allowed, end.Starved)
	if off < 0 || off > allowed {
		s.t.Errorf("the hold did not end at its deadline")
	}
	h.want(h.try(command{Verb: "err", Name: hold.Name}), lost)
	h.want(h.try(command{Verb: "commit", Name: hold.Name, Within: patience}), lost)
	h.want(h.try(command{Verb: "unlock", Name: hold.Name, Within: patience}), lost)
}

// promptly is how long what happens by a timer and a few goroutines may take.
const promptly = 50 * time.Millisecond

// docs/faults.md, row 26.
func TestHold_SurvivesAKillOfTheLeader(t *testing.T) {
	t.Parallel()
	s := start(t, 3, 5*time.Second)
	s.observe([]string{"a"})
	// The holder is renewed just before. The waiter is not, and must outlast an election.
	h, w := s.client("h"), s.clientWith(2*s.ttl, "w")
	held := s.locks(h, "a")
	waiting := s.queues(w, "a", 2)
	s.renewed(h, "a")
	leader := s.leader()
	s.cluster.Member(leader).Kill()
	deadline := h.do("deadline", "a").Until
	s.keeps(h, held) // by the next leader
	pause(t.Context(), deadline.since(now()))
	s.keeps(h, held)
	if next := s.leader(); next == leader {
		t.Errorf("member %d leads, which was killed", next)
	}
	passed := s.timer()
	h.do("unlock", "a")
	s.holds(w, waiting)
	passed("the next holds, and is seen", s.ttl/2+time.Second)
	w.do("unlock", "a")
	s.restart(leader)
}

// docs/faults.md, row 28.
func TestHold_AndCallsEndInTimeWithoutAQuorumAndAllRecover(t *testing.T) {
	t.Parallel()
	for name, fault := range map[string]struct{ begin, end func(*scene, ...int) }{
		"killed": {(*scene).killMembers, (*scene).restart},
		"frozen": {(*scene).stopMembers, (*scene).resumeMembers},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := start(t, 3, 3*time.Second)
			s.observe([]string{"a", "b", "free"})
			s.crowded = true // all leases run out at once
			h, w, c := s.client("h"), s.client("w"), s.client("c")
			held := s.locks(h, "a")
			s.locks(c, "b")
			waiting := s.queues(w, "a", 2)
			leader := s.leader()
			began := now()
			fault.begin(s, leader, (leader+1)%s.members)
			during := s.callsWithoutQuorum(c)
			s.losesAtDeadline(h, held)
			w.want(w.answer(waiting), lost)
			during = append(during, s.callsWithoutQuorum(c)...) // now without a session
			for _, id := range during {
				if r := c.answer(id); r.Kind == "" {
					t.Errorf("%s %s: no error without a quorum", r.Verb, r.Name)
				}
			}
			pause(t.Context(), began.add(10*time.Second).since(now()))
			fault.end(s, leader, (leader+1)%s.members)
			s.left = now() // the leases that are left have a new leader, or an old one that has slept

			recovered := s.timer()
			again := s.holds(w, w.send(command{Verb: "lock", Name: "a", Within: patience}))
			if again.Token <= held.Token {
				t.Errorf("token %d after %d", again.Token, held.Token)
			}
			waiting = s.queues(h, "a", 2)
			w.do("unlock", "a")
			s.holds(h, waiting)
			s.locks(c, "b")
			recovered("all hold again", patience)
			h.do("unlock", "a")
			c.do("unlock", "b")
		})
	}
}

// callsWithoutQuorum makes calls of each kind, none of which can succeed.
func (s *scene) callsWithoutQuorum(c *process) (ids []int) {
	s.t.Helper()
	for _, cmd := range []command{{Verb: "get", Name: "a"}, {Verb: "try", Name: "free"}, {Verb: "lock", Name: "a"}, {Verb: "commit", Name: "b"}} {
		cmd.Within = 700 * time.Millisecond
		ids = append(ids, c.send(cmd))
	}
	return ids
}

func (s *scene) killMembers(members ...int) {
	for _, member := range members {
		s.cluster.Member(member).Kill()
	}
}

func (s *scene) stopMembers(members ...int) {
	s.t.Helper()
	for _, member := range members {
		s.check(s.cluster.Member(member).Pause())
	}
}

func (s *scene) resumeMembers(members ...int) {
	s.t.Helper()
	for _, member := range members {
		s.check(s.cluster.Member(member).Resume())
	}
}
