//go:build unix

package faults

import (
	"context"
	"testing"
	"time"
)

// docs/faults.md, row 7.
func TestHold_OfAKilledProcessIsFollowedWithinItsTTLAndASecond(t *testing.T) {
	t.Parallel()
	s := start(t, 1, 2*time.Second)
	s.observe([]string{"a"})
	h, w := s.client("h"), s.client("w")
	before := s.lock(h, "a")
	waiting := s.enqueue(w, "a", 2)
	checkTime := s.timer()
	s.kill(h)
	after := w.answer(waiting)
	w.want(after, "")
	checkTime("the next holds", s.ttl+time.Second)
	s.awaitObserved(after)
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
	held := s.lock(h, "a")
	first := s.enqueue(w1, "a", 2)
	s.enqueue(w2, "a", 3)
	third := s.enqueue(w3, "a", 4)
	checkTime := s.timer()
	s.kill(w2)
	s.eventually("the entry of the killed waiter is gone", func(ctx context.Context) bool { return s.count(ctx, queuePrefix("a")) == 3 })
	checkTime("its entry is gone", s.ttl+time.Second)
	s.checkHeld(h, held) // a renewal later, no waiter has mistaken the deleted entry for the head's
	for _, w := range []*process{w1, w3} {
		if w.hasReported(func(r report) bool { return r.Verb == "lock" }) {
			t.Fatalf("%s is no longer waiting", w.name)
		}
	}
	h.do("unlock", "a")
	one := s.awaitHold(w1, first)
	if w3.hasReported(func(r report) bool { return r.ID == third }) {
		t.Error("the third waiter returned together with the first")
	}
	w1.do("unlock", "a")
	three := s.awaitHold(w3, third)
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
	held := s.lock(h, "a")
	waiting := s.enqueue(w, "a", 2)
	for range 3 {
		s.awaitRenewal(h, "a")
		pause(t.Context(), s.ttl/3-200*time.Millisecond)
		h.stop() // over the time at which the next renewal is due
		pause(t.Context(), s.ttl/10*9/10)
		h.resume()
		h.do("err", "a")
	}
	s.checkHeld(h, held)
	h.do("commit", "a")
	if w.hasReported(func(r report) bool { return r.ID == waiting }) {
		t.Fatal("the waiter is no longer waiting")
	}
	h.do("unlock", "a")
	s.awaitHold(w, waiting)
	w.do("unlock", "a")
}

// docs/faults.md, row 11.
func TestHold_OfAProcessStoppedBeyondItsTTLEndsOnResumeAndHarmsNobody(t *testing.T) {
	t.Parallel()
	s := start(t, 1, 2*time.Second)
	s.observe([]string{"a"})
	h, w := s.client("h"), s.client("w")
	before := s.lock(h, "a")
	waiting := s.enqueue(w, "a", 2)
	if r := h.do("write", "a"); !s.resource.write(r.Name, r.Token) {
		t.Fatal("the resource refused the holder's write")
	}
	spinning := h.send(command{Verb: "spin", Name: "a"})
	h.awaitReport("the start of spinning", func(r report) bool { return r.Verb == "spinning" })

	checkTime := s.timer()
	h.stop()
	after := w.answer(waiting)
	w.want(after, "")
	checkTime("the next holds", s.ttl+time.Second)
	s.awaitObserved(after)
	w.do("commit", "a")
	if r := w.do("write", "a"); !s.resource.write(r.Name, r.Token) {
		t.Error("the resource refused the next holder's write")
	}

	late := map[string]int{}
	for _, verb := range []string{"guarded", "commit", "write"} {
		late[verb] = h.send(command{Verb: verb, Name: "a", Timeout: testTimeout})
	}
	h.resume()
	spun := h.answer(spinning)
	h.want(spun, kindLost)
	if spun.Until >= after.At {
		t.Errorf("Err was nil %v after the next holder held", spun.Until.since(after.At))
	}
	h.want(h.answer(late["guarded"]), kindRefused)
	h.want(h.answer(late["commit"]), kindLost)
	if r := h.answer(late["write"]); s.resource.write(r.Name, r.Token) {
		t.Errorf("the resource accepted token %d after %d", r.Token, after.Token)
	}
	h.want(h.awaitEnd(before), kindLost)
	if got := s.written("a"); got != "w" {
		t.Errorf("the last write is by %q, want w", got)
	}
	w.do("unlock", "a")
}

// written returns the name of the process that wrote last under a lock's name.
func (s *scenario) written(name string) string {
	s.t.Helper()
	ctx, cancel := s.testContext()
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
	s.lock(h, "a")
	first := s.enqueue(w1, "a", 2)
	second := s.enqueue(w2, "a", 3)
	checkTime := s.timer()
	w1.stop()
	h.do("unlock", "a")
	two := w2.answer(second)
	w2.want(two, "")
	checkTime("the waiter behind it holds", s.ttl+time.Second)
	s.awaitObserved(two)
	w1.resume()
	w1.want(w1.answer(first), kindLost)
	again := s.enqueue(w1, "a", 2)
	w2.do("unlock", "a")
	s.awaitHold(w1, again)
	w1.do("unlock", "a")
}

// docs/faults.md, rows 11 and 30.
func TestDeadline_IsNotLaterWhenAnAnswerIsReadLate(t *testing.T) {
	t.Parallel()
	s := start(t, 1, 5*time.Second)
	s.observe([]string{"a"})
	h, etcd := s.client("h"), s.cluster.Member(0)
	held := s.lock(h, "a")
	s.awaitRenewal(h, "a")
	s.check(etcd.Pause())
	before := h.do("deadline", "a").Until
	pause(t.Context(), s.ttl/3+200*time.Millisecond) // now a renewal is waiting for its answer
	h.stop()
	stopped := now()
	s.check(etcd.Resume())
	watched, _ := s.observer.newest("a")
	s.eventually("etcd has renewed the lease", func(ctx context.Context) bool {
		resp, err := s.etcd.TimeToLive(ctx, watched.Lease)
		return err == nil && time.Duration(resp.TTL+1)*time.Second >= s.ttl
	})
	pause(t.Context(), s.ttl/5) // twice the margin
	s.check(etcd.Pause())
	h.resume()
	after := before
	s.eventually("the answer is read", func(context.Context) bool {
		after = h.do("deadline", "a").Until
		return after > before.add(tick)
	})
	late := after.since(stopped.add(s.ttl * 9 / 10))
	t.Logf("the deadline is %v later than that of a renewal at the time of the stop", roundMillis(late))
	if late > timerSlack {
		t.Error("the deadline was not computed from the time of the request")
	}
	s.check(etcd.Resume())
	s.checkHeld(h, held)
	h.do("unlock", "a")
}
