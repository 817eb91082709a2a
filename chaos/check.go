package main

import (
	"fmt"
	"slices"
	"time"
)

// violation is a broken promise, and the shortest account of it.
type violation struct {
	Invariant string
	At        instant
	Text      string
}

// invariant is a promise, and the check that finds where it was broken.
type invariant struct {
	name  string
	check func(*history) []violation
	// everywhere is for what must be so over any library: the others rest on what only Locker tells.
	everywhere bool
}

var invariants = []invariant{
	{"tokens of a name are unique and grow", checkTokens, true},
	{"the resource never accepts a smaller token after a larger one", checkAccesses, true},
	{"fenced increments are not lost", checkIncrements, true},
	{"no two holds are certain at once", checkOverlaps, true},
	{"a lock model explains the history (porcupine)", checkLockModel, true},
	{"a counter model explains the history (porcupine)", checkCounterModel, true},
	{"the guarded set has what was acknowledged, and nothing that was refused", checkSet, false},
	{"a guarded write happens under its hold", checkGuards, false},
	{"a guarded write that is acknowledged was made once", checkOnce, false},
	{"a hold that is reported was the head of its queue during the call", checkHeads, false},
	{"live waiters are served in order", checkOrder, false},
	{"an entry is removed by its owner only", checkRemovals, false},
	{"what is given up goes", checkLeavings, false},
	{"lost is forever", checkLost, false},
	{"a loss is told before etcd deletes", checkTold, false},
	{"nothing harmless costs a hold", checkHarmless, false},
	{"every call returns by its context", checkReturns, false},
	{"a name is taken over in time", checkTakeOvers, false},
	{"whose turn it is gets the lock", checkTurns, false},
	{"everybody gets locks once faults are over", checkLiveness, false},
	{"observers see what was so, in order, and the newest", checkObservers, false},
	{"after Close nothing is left", checkLeft, false},
	{"nothing is lost under load", checkNothingLost, false},
	{"memory and goroutines stay flat under load", checkFlat, false},
}

// judge makes all checks that apply.
func judge(h *history) (all []violation) {
	for _, i := range invariants {
		if !i.everywhere && h.over != overLocker {
			continue
		}
		for _, v := range i.check(h) {
			v.Invariant = i.name
			all = append(all, v)
		}
	}
	return all
}

// at is a moment in the terms of the report: seconds since the round began.
func (h *history) at(t instant) string { return fmt.Sprintf("%.3fs", t.since(h.began).Seconds()) }

func (h *history) describe(t *tenure) string {
	told, _ := h.told(t)
	return fmt.Sprintf("%s holds %s with token %d from %s to %s", t.who(), t.Name, t.Token, h.at(t.End), h.at(told))
}

// checkTokens: of two holds of a name, one of which was reported before the other was asked for, the
// later has the larger token; and no two have the same, unless one passed the hold on to the other. A hold
// that was passed on is the same hold: if an operator had deleted its entry, others may have come in between.
func checkTokens(h *history) (found []violation) {
	for name, holds := range h.tenures() {
		seen := make(map[int64]*tenure)
		for _, t := range holds {
			if other := seen[t.Token]; other != nil && !other.sharedWith(t) {
				found = append(found, violation{At: t.End, Text: fmt.Sprintf("token %d of %s was given to %s and to %s", t.Token, name, other.who(), t.who())})
			}
			seen[t.Token] = t
		}
		// holds are in the order of their ends; go through them in that of their starts as well.
		byStart := slices.Clone(holds)
		slices.SortFunc(byStart, func(a, b *tenure) int { return int(a.Start - b.Start) })
		next, largest := 0, (*tenure)(nil)
		for _, t := range byStart {
			for ; next < len(holds) && holds[next].End < t.Start; next++ {
				if largest == nil || holds[next].Token > largest.Token {
					largest = holds[next]
				}
			}
			if largest != nil && t.Token < largest.Token && !h.passedOnUnaware(t) {
				found = append(found, violation{At: t.End, Text: h.describe(largest) + "; later " + h.describe(t)})
			}
		}
	}
	return found
}

func checkAccesses(h *history) (found []violation) {
	largest := make(map[string]int64)
	for _, a := range h.accesses {
		if a.Token < largest[a.Name] {
			found = append(found, violation{At: h.ended, Text: fmt.Sprintf("%s was accessed with token %d after %d (write: %v)", a.Name, a.Token, largest[a.Name], a.Wrote)})
		}
		largest[a.Name] = max(largest[a.Name], a.Token)
	}
	return found
}

func checkIncrements(h *history) (found []violation) {
	sure, perhaps := make(map[string]int64), make(map[string]int64)
	for _, c := range h.calls {
		switch {
		case c.Op != opAdd:
		case c.Outcome == ok:
			sure[c.Name]++
		case c.Count > 0 && (c.Outcome == unknown || c.Outcome == unsure):
			perhaps[c.Name]++
		}
	}
	for name, n := range sure {
		if end := h.counters[name]; end < n || end > n+perhaps[name] {
			found = append(found, violation{At: h.ended, Text: fmt.Sprintf("%d increments of %s were acknowledged and %d more may have been made, but it ended at %d", n, name, perhaps[name], end)})
		}
	}
	return found
}

// checkOverlaps goes by what the holders knew, on the one clock of the machine.
func checkOverlaps(h *history) (found []violation) {
	type certainty struct {
		*tenure
		span
	}
	for _, holds := range h.tenures() {
		var all []certainty
		for _, t := range holds {
			// Who does not know yet what an operator did is not wrong, only late.
			if t.entry != nil && h.excused(t.entry) {
				continue
			}
			if _, certain := h.told(t); certain > h.since(t) {
				all = append(all, certainty{t, span{h.since(t), certain}})
			}
		}
		slices.SortFunc(all, func(a, b certainty) int { return int(a.span.From - b.span.From) })
		for i := 1; i < len(all); i++ {
			a, b := all[i-1], all[i]
			if b.span.From < a.span.To {
				found = append(found, violation{At: b.span.From, Text: fmt.Sprintf("%s, certain until %s; %s", h.describe(a.tenure), h.at(a.span.To), h.describe(b.tenure))})
			}
			if a.span.To > b.span.To { // what follows is to be compared with the one that lasts longest
				all[i] = a
			}
		}
	}
	return found
}

// checkLost: after Err or the context has told the end, no look sees a hold again.
func checkLost(h *history) (found []violation) {
	for _, holds := range h.tenures() {
		for _, t := range holds {
			over := instant(0)
			if t.ended != nil {
				over = t.ended.End
			}
			if t.unlock != nil && t.unlock.End != 0 && (over == 0 || t.unlock.End < over) {
				over = t.unlock.End
			}
			for _, look := range t.looks {
				if look.Outcome == ok && over != 0 && look.Start > over {
					found = append(found, violation{At: look.Start, Text: fmt.Sprintf("%s; at %s Err was nil again", h.describe(t), h.at(look.Start))})
				}
				if look.Outcome == lost && (over == 0 || look.End < over) {
					over = look.End
				}
			}
		}
	}
	return found
}

// returnBound is how long after the end of its context a call may return.
const returnBound = 500 * time.Millisecond

func checkReturns(h *history) (found []violation) {
	for _, c := range h.calls {
		l := h.lives[c.Process]
		if c.By == 0 {
			continue
		}
		end := c.End
		if end == 0 {
			end = min(l.end(), h.ended)
		}
		by := max(c.By, c.Start)
		late := end.since(by) - 2*l.gaps.within(by, end)
		if late > returnBound {
			found = append(found, violation{At: end, Text: fmt.Sprintf("%s (%s of %q): its context ended at %s, it returned at %s", c.who(), c.Op, c.Name, h.at(by), h.at(end))})
		}
	}
	for _, failure := range h.failures {
		found = append(found, violation{At: h.ended, Text: failure})
	}
	return found
}

func checkLeft(h *history) (found []violation) {
	for _, what := range h.left {
		found = append(found, violation{At: h.ended, Text: what + " was left two TTLs after the end"})
	}
	return found
}
