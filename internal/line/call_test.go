package line

import (
	"testing"
	"testing/synctest"
)

// numbers checks the numbers of waiters in the line of their first name, 0 for those that have none, or have left it.
func numbers(t *testing.T, all []*call, want ...int32) {
	t.Helper()
	synctest.Wait()
	for i, c := range all {
		if got := c.places[0].Number; c.places[0].of != nil && got != want[i] {
			t.Errorf("the %d. has the number %d, want %d", i+1, got, want[i])
		}
	}
}

func TestNumber_IsTheSmallestThatWasFree(t *testing.T) {
	stands(t, func(t *testing.T, q lines, all []*call) {
		numbers(t, all, 1, 2, 3, 0)
		q.Leave(all[1].waiter)
		all = append(all, q.joins(t, want(0, "b"))) // it has a line of its own
		numbers(t, all, 1, 0, 3, 0, 1)
		all[3].cancel()
		show(t, all, "F-F-F")
		all = append(all, q.joins(t, want(0, "a")), q.joins(t, want(0, "a")))
		numbers(t, all, 1, 0, 3, 0, 1, 2, 4)
		q.Leave(all[0].waiter)
		all = append(all, q.joins(t, want(0, "a", "b")))
		numbers(t, all, 0, 0, 3, 0, 1, 2, 4, 1)
		if second := all[7].places[1].Number; second != 2 {
			t.Errorf("in the line of b its number is %d", second)
		}
	}, want(0, "a"), want(0, "a"), want(0, "a"), want(only, "a"))
}

func TestNumber_IsUsedAgainOnlyAfterLeave(t *testing.T) {
	stands(t, func(t *testing.T, q lines, all []*call) {
		numbers(t, all, 1, 0, 0)
		if q.Call(all[0].waiter) != all[1].waiter {
			t.Fatal("the next was not called")
		}
		numbers(t, all, 1, 2, 0) // both may have a key for a while
		q.Leave(all[0].waiter)
		numbers(t, all, 0, 2, 0)
		if q.Call(all[1].waiter) != all[2].waiter {
			t.Fatal("the next was not called")
		}
		numbers(t, all, 0, 2, 1)
		q.Inherit(all[1].waiter, all[2].waiter)
		q.Leave(all[1].waiter)
		numbers(t, all, 0, 0, 2)
	}, want(only, "a"), want(only, "a"), want(only, "a"))
}

func TestNumber_OfTheOneCalledIsNotGivenToThoseInFrontBesideIt(t *testing.T) {
	stands(t, func(t *testing.T, q lines, all []*call) {
		if q.Call(all[0].waiter) != all[1].waiter {
			t.Fatal("the next was not called")
		}
		q.Leave(all[0].waiter)
		show(t, all, "-FF")
		numbers(t, all, 0, 2, 1)
	}, want(only, "a"), want(0, "a"), want(0, "a"))
}

func TestNumber_IsChosenAnewByEachTry(t *testing.T) {
	t.Parallel()
	q, both := newLines(), want(0, "a", "b")
	writer := q.end(t, want(only, "b"))
	q.TryJoin(both)         // it is in front in a for a moment, and then in neither
	q.TryJoin(want(0, "a")) // another takes the number that it had
	q.Leave(writer)
	if ok, _, _ := q.TryJoin(both); !ok || both.places[0].Number != 2 || both.places[1].Number != 1 {
		t.Errorf("it got %v, and the numbers %d and %d, want 2 and 1", ok, both.places[0].Number, both.places[1].Number)
	}
}

func TestCall_ReturnsNobodyIfAnotherIsInFrontToo(t *testing.T) {
	stands(t, func(t *testing.T, q lines, all []*call) {
		for _, c := range all {
			if next := q.Call(c.waiter); next != nil {
				t.Error("somebody was called, though two are in front")
			}
		}
		q.Leave(all[0].waiter)
		if q.Call(all[2].waiter) != nil || q.Call(all[0].waiter) != nil {
			t.Error("somebody was called by one that is not in front")
		}
		if q.Call(all[1].waiter) != all[2].waiter {
			t.Error("the next was not called, though only one is in front")
		}
		if q.Call(all[1].waiter) != nil {
			t.Error("somebody was called twice")
		}
	}, want(0, "a"), want(0, "a"), want(only, "a"), want(only, "a"))
}

func TestCall_ReturnsNobodyIfEitherWantsAnotherNameToo(t *testing.T) {
	stands(t, func(t *testing.T, q lines, all []*call) {
		show(t, all, "Fww")
		if q.Call(all[0].waiter) != nil {
			t.Error("the next was called, though it wants two names")
		}
		q.Leave(all[0].waiter)
		show(t, all, "-Fw")
		if q.Call(all[1].waiter) != nil {
			t.Error("the next was called by one that has two names")
		}
		q.Leave(all[1].waiter)
		if q.Call(all[2].waiter) != nil {
			t.Error("somebody was called, though nobody is behind")
		}
	}, want(only, "a"), want(only, "a", "b"), want(only, "a"))
}

func TestCall_TheOneCalledCannotJustGiveUp(t *testing.T) {
	stands(t, func(t *testing.T, q lines, all []*call) {
		q.Call(all[0].waiter)
		all[1].cancel()
		synctest.Wait()
		if c := all[1]; !c.returned || !c.mine || c.ended == nil {
			t.Errorf("its Join returned: %v, mine %v", c.returned, c.mine)
		}
		q.Leave(all[0].waiter)
		<-all[1].wait.Ready()
		show(t, all, "-Fw") // although nobody waits for it
		q.Leave(all[1].waiter)
		show(t, all, "--F")
	}, want(only, "a"), want(only, "a"), want(only, "a"))
}

// closed reports whether a channel is.
func closed(moved <-chan struct{}) bool {
	select {
	case <-moved:
		return true
	default:
		return false
	}
}

// end returns a waiter that is in front, and over.
func (q lines) end(t *testing.T, w *waiter) *waiter {
	t.Helper()
	if ok, _, _ := q.TryJoin(w); !ok {
		t.Fatal("it is not in front")
	}
	w.over = true
	return w
}

// Each is in front in the line in which the other is not, until it is refused.
func TestTryJoin_DoesNotWakeAnother(t *testing.T) {
	t.Parallel()
	q := newLines()
	last := q.end(t, want(0, "a"))
	q.end(t, want(0, "b"))
	_, _, first := q.TryJoin(&waiter{places: []Place[*waiter]{{Name: "a", Kind: only}, {Name: "b"}}})
	_, _, second := q.TryJoin(&waiter{places: []Place[*waiter]{{Name: "a"}, {Name: "b", Kind: only}}})
	if first == nil || second == nil {
		t.Fatal("there is nothing to wait for, though those in front are over")
	}
	if closed(first) {
		t.Error("one that has tried and failed wakes another, which then wakes it")
	}
	if q.Leave(last); !closed(first) || closed(second) {
		t.Error("not exactly those are woken that wait for the one that has left")
	}
}

func TestTryJoin_IsToldOfEachThatLeaves(t *testing.T) {
	t.Parallel()
	q := newLines()
	first, second := q.end(t, want(2, "a")), q.end(t, want(2, "a"))
	for _, w := range []*waiter{second, first} {
		_, _, one := q.TryJoin(want(only, "a"))
		_, _, other := q.TryJoin(want(only, "a", "b"))
		if one == nil || other == nil || closed(one) {
			t.Fatal("there is nothing to wait for")
		}
		if q.Leave(w); !closed(one) || !closed(other) {
			t.Error("somebody has left, but not all are told")
		}
	}
	if !q.tryOf("a") || !q.tryOf("b") {
		t.Error("the lines are not free in the end")
	}
}

// Otherwise it would wait for the replacement, which is not over.
func TestTryJoin_IsToldOfAReplacement(t *testing.T) {
	t.Parallel()
	q := newLines()
	first := q.end(t, want(only, "a"))
	_, _, moved := q.TryJoin(want(only, "a"))
	if q.Replace(first, want(only, "a")); !closed(moved) {
		t.Error("it still waits for one that is over, though that was replaced")
	}
	if ok, _, moved := q.TryJoin(want(only, "a")); ok || moved != nil {
		t.Error("there is something to wait for, though the replacement is not over")
	}
}
