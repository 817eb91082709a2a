//go:build unix

package faults

import (
	"context"
	"testing"
	"time"
)

// Faults of client processes.

// docs/faults.md, row 7.
func TestHold_OfAKilledProcessIsFollowedWithinItsTTLAndASecond(t *testing.T) {
	t.Parallel()
	s := start(t, 1, 2*time.Second)
	s.observe([]string{"a"})
	h, w := s.client("h"), s.client("w")
	before := s.locks(h, "a")
	waiting := s.queues(w, "a", 2)
	passed := s.timer()
	s.kill(h)
	after := w.answer(waiting)
	w.want(after, "")
	passed("the next holds", s.ttl+time.Second)
	s.sees(after)
	if after.Token <= before.Token {
		t.Errorf("token %d after %d", after.Token, before.Token)
	}
	w.do("commit", "a")
	w.do("unlock", "a")
}

// docs/faults.md, row 8.
func TestQueue_AWaiterKilledInTheMiddleIsSkippedAndTheOrderIsKept(t *testing.T) {
	t.Parallel()
	s := start(t, 1, 2*time.Second)
	s.observe([]string{"a"})
	h, w1, w2, w3 := s.client("h"), s.client("w1"), s.client("w2"), s.client("w3")
	held := s.locks(h, "a")
	first := s.queues(w1, "a", 2)
	s.queues(w2, "a", 3)
	third := s.queues(w3, "a", 4)
	passed := s.timer()
	s.kill(w2)
	s.await("the entry of the killed waiter is gone", func(ctx context.Context) bool { return s.count(ctx, queue("a")) == 3 })
	passed("its entry is gone", s.ttl+time.Second)
	s.keeps(h, held) // a renewal later nobody has taken the end of a waiter for his turn
	for _, w := range []*process{w1, w3} {
		if w.has(func(r report) bool { return r.Verb == "lock" }) {
			t.Fatalf("%s does not wait any more", w.name)
		}
	}
	h.do("unlock", "a")
	one := s.holds(w1, first)
	if w3.has(func(r report) bool { return r.ID == third }) {
		t.Error("the third waiter had its turn with the first")
	}
	w1.do("unlock", "a")
	three := s.holds(w3, third)
	if held.Token >= one.Token || one.Token >= three.Token {
		t.Errorf("the tokens are %d, %d, %d", held.Token, one.Token, three.Token)
	}
	w3.do("unlock", "a")
}

// docs/faults.md, row 10.
func TestHold_OfAProcessStoppedForLessThanTheMarginIsKept(t *testing.T) {
	t.Parallel()
	s := start(t, 1, 5*time.Second)
	s.observe([]string{"a"})
	h, w := s.client("h"), s.client("w")
	held := s.locks(h, "a")
	waiting := s.queues(w, "a", 2)
	for range 3 {
		s.renewed(h, "a")
		pause(t.Context(), s.ttl/3-200*time.Millisecond)
		h.stop() // over the time at which the next renewal is due
		pause(t.Context(), s.ttl/10*9/10)
		h.resume()
		h.do("err", "a")
	}
	s.keeps(h, held)
	h.do("commit", "a")
	if w.has(func(r report) bool { return r.ID == waiting }) {
		t.Fatal("the waiter does not wait any more")
	}
	h.do("unlock", "a")
	s.holds(w, waiting)
	w.do("unlock", "a")
}

// docs/faults.md, row 11.
func TestHold_OfAProcessStoppedBeyondItsTTLEndsOnResumeAndHarmsNobody(t *testing.T) {
	t.Parallel()
	s := start(t, 1, 2*time.Second)
	s.observe([]string{"a"})
	h, w := s.client("h"), s.client("w")
	before := s.locks(h, "a")
	waiting := s.queues(w, "a", 2)
	if r := h.do("write", "a"); !s.resource.write(r.Name, r.Token) {
		t.Fatal("the resource has refused the holder")
	}
	spinning := h.send(command{Verb: "spin", Name: "a"})
	h.await("that it spins", func(r report) bool { return r.Verb == "spinning" })

	passed := s.timer()
	h.stop()
	after := w.answer(waiting)
	w.want(after, "")
	passed("the next holds", s.ttl+time.Second)
	s.sees(after)
	w.do("commit", "a")
	if r := w.do("write", "a"); !s.resource.write(r.Name, r.Token) {
		t.Error("the resource has refused the next holder")
	}

	late := map[string]int{}
	for _, verb := range []string{"guarded", "commit", "write"} {
		late[verb] = h.send(command{Verb: verb, Name: "a", Within: patience})
	}
	h.resume()
	spun := h.answer(spinning)
	h.want(spun, lost)
	if spun.Until >= after.At {
		t.Errorf("Err was nil %v after the next holder held", spun.Until.since(after.At))
	}
	h.want(h.answer(late["guarded"]), refused)
	h.want(h.answer(late["commit"]), lost)
	if r := h.answer(late["write"]); s.resource.write(r.Name, r.Token) {
		t.Errorf("the resource has accepted token %d after %d", r.Token, after.Token)
	}
	h.want(h.end(before), lost)
	if got := s.written("a"); got != "w" {
		t.Errorf("the last that was written is by %q", got)
	}
	w.do("unlock", "a")
}

// written returns who was the last to write under a name.
func (s *scene) written(name string) string {
	s.t.Helper()
	ctx, cancel := s.within()
	defer cancel()
	resp, err := s.etcd.Get(ctx, writtenKey(name))
	s.check(err)
	if len(resp.Kvs) == 0 {
		return ""
	}
	return string(resp.Kvs[0].Value)
}

// docs/faults.md, row 12.
func TestQueue_AWaiterStoppedWhileItIsNextGetsNoHoldThatIsOver(t *testing.T) {
	t.Parallel()
	s := start(t, 1, 2*time.Second)
	s.observe([]string{"a"})
	h, w1, w2 := s.client("h"), s.client("w1"), s.client("w2")
	s.locks(h, "a")
	first := s.queues(w1, "a", 2)
	second := s.queues(w2, "a", 3)
	passed := s.timer()
	w1.stop()
	h.do("unlock", "a")
	two := w2.answer(second)
	w2.want(two, "")
	passed("the waiter behind it holds", s.ttl+time.Second)
	s.sees(two)
	w1.resume()
	w1.want(w1.answer(first), lost)
	again := s.queues(w1, "a", 2)
	w2.do("unlock", "a")
	s.holds(w1, again)
	w1.do("unlock", "a")
}

// docs/faults.md, rows 11 and 30.
func TestDeadline_IsNotLaterWhenAnAnswerIsReadLate(t *testing.T) {
	t.Parallel()
	s := start(t, 1, 5*time.Second)
	s.observe([]string{"a"})
	h, etcd := s.client("h"), s.cluster.Member(0)
	held := s.locks(h, "a")
	s.renewed(h, "a")
	s.check(etcd.Pause())
	before := h.do("deadline", "a").Until
	pause(t.Context(), s.ttl/3+200*time.Millisecond) // now there is a renewal that waits for its answer
	h.stop()
	stopped := now()
	s.check(etcd.Resume())
	watched, _ := s.observer.newest("a")
	s.await("etcd has renewed the lease", func(ctx context.Context) bool {
		resp, err := s.etcd.TimeToLive(ctx, watched.Lease)
		return err == nil && time.Duration(resp.TTL+1)*time.Second >= s.ttl
	})
	pause(t.Context(), s.ttl/5) // twice the margin
	s.check(etcd.Pause())
	h.resume()
	after := before
	s.await("the answer is read", func(context.Context) bool {
		after = h.do("deadline", "a").Until
		return after > before.add(tick)
	})
	late := after.since(stopped.add(s.ttl * 9 / 10))
	t.Logf("the deadline is %v after that of a renewal at the time of the stop", round(late))
	if late > promptly {
		t.Error("the deadline was not counted from the request")
	}
	s.check(etcd.Resume())
	s.keeps(h, held)
	h.do("unlock", "a")
}
