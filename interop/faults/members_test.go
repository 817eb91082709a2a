//go:build unix

package faults

import (
	"testing"
	"time"
)

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
			// The holder is renewed just before. The waiter is not, and must outlast an
			// election.
			h, w := s.client("h", frozen), s.clientWith(2*s.ttl, "w", frozen)
			c := s.client("c", (frozen+1)%s.members, (frozen+2)%s.members)
			held := s.lock(h, "a")
			waiting := s.enqueue(w, "a", 2)
			s.awaitRenewal(h, "a")
			s.observer.etcd.SetEndpoints(s.endpoints()...)
			for _, p := range []*process{h, w} {
				p.want(p.try(command{Verb: "spread", Endpoints: s.endpoints()}), "")
			}

			const length = 8 * time.Second
			began := now()
			s.check(s.cluster.Member(frozen).Pause())
			s.lock(c, "b") // the frozen member cannot report this to the observer
			pause(t.Context(), began.add(s.ttl+500*time.Millisecond).since(now()))
			if r := h.do("deadline", "a"); r.Token != held.Token || r.Until < began.add(s.ttl) {
				t.Errorf("the hold was not renewed: %+v", r)
			}
			// A stream that is reopened may go to the frozen member again, so the only
			// limit is that the member has not been resumed yet.
			checkTime := s.timer()
			h.do("unlock", "a")
			s.awaitHold(w, waiting)
			checkTime("the next holds, and is seen", testTimeout)
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
	held := s.lock(h, "a")
	waiting := s.enqueue(w, "a", 2)
	s.awaitRenewal(h, "a")
	s.cluster.Member(0).Kill()
	deadline := h.do("deadline", "a").Until
	s.restart(0)
	t.Logf("etcd was back %v before the deadline", roundMillis(deadline.since(now())))
	s.checkHeld(h, held)
	pause(t.Context(), deadline.since(now()))
	s.checkHeld(h, held)
	s.awaitObserved(held)
	if r := w.do("get", "a"); r.Token != held.Token {
		t.Errorf("token %d holds after token %d", r.Token, held.Token)
	}
	h.do("unlock", "a")
	s.awaitHold(w, waiting)
	w.do("unlock", "a")
}

// docs/faults.md, row 25.
func TestHold_IsLostAtItsDeadlineWhenEtcdStaysAway(t *testing.T) {
	t.Parallel()
	s := start(t, 1, 2*time.Second)
	s.observe([]string{"a"})
	s.watchMaySkip = true // both leases run out at once
	h, w := s.client("h"), s.client("w")
	held := s.lock(h, "a")
	waiting := s.enqueue(w, "a", 2)
	s.cluster.Member(0).Kill()
	s.checkLostAtDeadline(h, held)
	w.want(w.answer(waiting), kindLost)
	s.restart(0)
	s.leftAt = now() // etcd restarts the TTL of all leases

	again := w.send(command{Verb: "lock", Name: "a", Timeout: testTimeout})
	after := s.awaitHold(w, again)
	if after.Token <= held.Token {
		t.Errorf("token %d after %d", after.Token, held.Token)
	}
	waiting = s.enqueue(h, "a", 2)
	w.do("unlock", "a")
	s.awaitHold(h, waiting)
	h.do("unlock", "a")
}

// checkLostAtDeadline waits for the end of a hold that cannot be renewed, and checks that
// it ends at its deadline.
func (s *scenario) checkLostAtDeadline(h *process, hold report) {
	s.t.Helper()
	certain := h.do("deadline", hold.Name)
	end := h.awaitEnd(hold)
	h.want(end, kindLost)
	off := end.At.since(certain.Until)
	allowed := timerSlack + hops*end.Starved
	s.t.Logf("lost %v after the deadline; the limit is %v (the process did not run for %v of it)", off, allowed, end.Starved)
	if off < 0 || off > allowed {
		s.t.Errorf("the hold ended %v after its deadline", off)
	}
	h.want(h.try(command{Verb: "err", Name: hold.Name}), kindLost)
	h.want(h.try(command{Verb: "commit", Name: hold.Name, Timeout: testTimeout}), kindLost)
	h.want(h.try(command{Verb: "unlock", Name: hold.Name, Timeout: testTimeout}), kindLost)
}

// timerSlack is how late something that a timer and a few goroutines do may happen.
const timerSlack = 50 * time.Millisecond

// docs/faults.md, row 26.
func TestHold_SurvivesAKillOfTheLeader(t *testing.T) {
	t.Parallel()
	s := start(t, 3, 5*time.Second)
	s.observe([]string{"a"})
	// The holder is renewed just before. The waiter is not, and must outlast an election.
	h, w := s.client("h"), s.clientWith(2*s.ttl, "w")
	held := s.lock(h, "a")
	waiting := s.enqueue(w, "a", 2)
	s.awaitRenewal(h, "a")
	leader := s.leader()
	s.cluster.Member(leader).Kill()
	deadline := h.do("deadline", "a").Until
	s.checkHeld(h, held) // by the next leader
	pause(t.Context(), deadline.since(now()))
	s.checkHeld(h, held)
	if next := s.leader(); next == leader {
		t.Errorf("the leader is member %d, which was killed", next)
	}
	checkTime := s.timer()
	h.do("unlock", "a")
	s.awaitHold(w, waiting)
	checkTime("the next holds, and is seen", s.ttl/2+time.Second)
	w.do("unlock", "a")
	s.restart(leader)
}

// docs/faults.md, row 28.
func TestHold_AndCallsEndInTimeWithoutAQuorumAndAllRecover(t *testing.T) {
	t.Parallel()
	for name, fault := range map[string]struct{ begin, end func(*scenario, ...int) }{
		"killed": {(*scenario).killMembers, (*scenario).restart},
		"frozen": {(*scenario).stopMembers, (*scenario).resumeMembers},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := start(t, 3, 3*time.Second)
			s.observe([]string{"a", "b", "free"})
			s.watchMaySkip = true // all leases run out at once
			h, w, c := s.client("h"), s.client("w"), s.client("c")
			held := s.lock(h, "a")
			s.lock(c, "b")
			waiting := s.enqueue(w, "a", 2)
			leader := s.leader()
			began := now()
			fault.begin(s, leader, (leader+1)%s.members)
			during := s.sendCallsWithoutQuorum(c)
			s.checkLostAtDeadline(h, held)
			w.want(w.answer(waiting), kindLost)
			during = append(during, s.sendCallsWithoutQuorum(c)...) // now the client has no session
			for _, id := range during {
				if r := c.answer(id); r.Kind == "" {
					t.Errorf("%s %s: no error without a quorum", r.Verb, r.Name)
				}
			}
			pause(t.Context(), began.add(10*time.Second).since(now()))
			fault.end(s, leader, (leader+1)%s.members)
			s.leftAt = now() // the remaining leases are kept by a new leader, or by one that was frozen

			checkTime := s.timer()
			again := s.awaitHold(w, w.send(command{Verb: "lock", Name: "a", Timeout: testTimeout}))
			if again.Token <= held.Token {
				t.Errorf("token %d after %d", again.Token, held.Token)
			}
			waiting = s.enqueue(h, "a", 2)
			w.do("unlock", "a")
			s.awaitHold(h, waiting)
			s.lock(c, "b")
			checkTime("all hold again", testTimeout)
			h.do("unlock", "a")
			c.do("unlock", "b")
		})
	}
}

// sendCallsWithoutQuorum sends calls of each kind. None of them can succeed.
func (s *scenario) sendCallsWithoutQuorum(c *process) (ids []int) {
	s.t.Helper()
	for _, cmd := range []command{{Verb: "get", Name: "a"}, {Verb: "try", Name: "free"}, {Verb: "lock", Name: "a"}, {Verb: "commit", Name: "b"}} {
		cmd.Timeout = 700 * time.Millisecond
		ids = append(ids, c.send(cmd))
	}
	return ids
}

func (s *scenario) killMembers(members ...int) {
	for _, member := range members {
		s.cluster.Member(member).Kill()
	}
}

func (s *scenario) stopMembers(members ...int) {
	s.t.Helper()
	for _, member := range members {
		s.check(s.cluster.Member(member).Pause())
	}
}

func (s *scenario) resumeMembers(members ...int) {
	s.t.Helper()
	for _, member := range members {
		s.check(s.cluster.Member(member).Resume())
	}
}
