package main

import (
	"cmp"
	"fmt"
	"slices"
	"time"
)

// violation is one breach of an invariant.
type violation struct {
	Invariant string
	At        instant
	Text      string
}

// invariant is a property of every history, and the check that finds its violations.
type invariant struct {
	name  string
	check func(*history) []violation
	// anyLibrary marks checks of any library; the others need what only Locker reports.
	anyLibrary bool
}

var invariants = []invariant{
	{"tokens of a name are unique and grow", checkTokens, true},
	{"the resource never accepts a smaller token after a larger one", checkAccesses, true},
	{"fenced increments are not lost", checkIncrements, true},
	{"no two holds are certain at once", checkOverlaps, true},
	{"a lock model explains the history (porcupine)", checkLockModel, true},
	{"a counter model explains the history (porcupine)", checkCounterModel, true},
	{"the guarded set contains every acknowledged write and no refused one", checkSet, false},
	{"a guarded write is applied during its hold", checkGuards, false},
	{"an acknowledged guarded write was applied once", checkOnce, false},
	{"every reported hold was the head of its queue during the call", checkHeads, false},
	{"live waiters are served in order", checkOrder, false},
	{"an entry is removed only by its owner", checkRemovals, false},
	{"failed calls and releases leave no entry behind", checkCleanUp, false},
	{"a loss is final", checkLossFinal, false},
	{"a loss is reported before etcd deletes the entry", checkLossReported, false},
	{"harmless faults cost no hold", checkHarmless, false},
	{"every call returns when its context ends", checkReturns, false},
	{"a name is taken over in time", checkTakeOvers, false},
	{"the head of the queue gets the lock in time", checkHeadServed, false},
	{"every client and every name makes progress after the faults", checkLiveness, false},
	{"observers see only true states, in order, and the newest in time", checkObservers, false},
	{"nothing is left after Close", checkLeft, false},
	{"no hold is lost under load", checkNothingLost, false},
	{"memory and goroutines stay flat under load", checkFlat, false},
}

// judge runs all checks that apply.
func judge(h *history) (all []violation) {
	for _, i := range invariants {
		if !i.anyLibrary && h.over != overLocker {
			continue
		}
		for _, v := range i.check(h) {
			v.Invariant = i.name
			all = append(all, v)
		}
	}
	return all
}

// at formats a time as reports show it: seconds since the start of the round.
func (h *history) at(t instant) string { return fmt.Sprintf("%.3fs", t.since(h.began).Seconds()) }

func (h *history) describe(t *tenure) string {
	end, _ := h.reportedEnd(t)
	return fmt.Sprintf("%s held %s with token %d from %s to %s", t.ref(), t.Name, t.Token, h.at(t.End), h.at(end))
}

// checkTokens requires that a hold requested after another was reported has a larger token, and
// that no two have the same, unless one was passed on to the other, or both are shared. A hold
// that is passed on stays the same: if an operator has deleted its entry, others may have held
// in between.
func checkTokens(h *history) (found []violation) {
	for name, holds := range h.tenures() {
		seen := make(map[int64]*tenure)
		for _, t := range holds {
			if other := seen[t.Token]; other != nil && !other.sharedWith(t) && !(other.Mode == shared && t.Mode == shared) {
				found = append(found, violation{At: t.End, Text: fmt.Sprintf("token %d of %s was assigned to both %s and %s", t.Token, name, other.ref(), t.ref())})
			}
			seen[t.Token] = t
		}
		// holds are sorted by End; merge them with the same holds sorted by Start.
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
	acknowledged, inDoubt := make(map[string]int64), make(map[string]int64)
	for _, c := range h.calls {
		switch {
		case c.Op != opAdd:
		case c.Outcome == ok:
			acknowledged[c.Name]++
		case c.Count > 0 && (c.Outcome == unknown || c.Outcome == unsure):
			inDoubt[c.Name]++
		}
	}
	for name, n := range acknowledged {
		if end := h.counters[name]; end < n || end > n+inDoubt[name] {
			found = append(found, violation{At: h.ended, Text: fmt.Sprintf("%d increments of %s were acknowledged and %d are in doubt, but its final value is %d", n, name, inDoubt[name], end)})
		}
	}
	return found
}

// certainty is the time during which a holder was certain of its hold.
type certainty struct {
	*tenure
	span
}

// certainties returns when holders of a name were certain of it, ordered by when that began.
func (h *history) certainties(holds []*tenure) (all []certainty) {
	for _, t := range holds {
		// The holder learns of this only at the next audit.
		if t.entry != nil && h.excused(t.entry) {
			continue
		}
		if _, certain := h.reportedEnd(t); certain > h.since(t) {
			all = append(all, certainty{t, span{h.since(t), certain}})
		}
	}
	slices.SortFunc(all, func(a, b certainty) int { return cmp.Compare(a.span.From, b.span.From) })
	return all
}

// checkOverlaps requires that all who are certain of a name at one time may hold it together.
func checkOverlaps(h *history) (found []violation) {
	for _, holds := range h.tenures() {
		var beside []certainty // those that had begun before
		for _, c := range h.certainties(holds) {
			beside = slices.DeleteFunc(beside, func(b certainty) bool { return b.span.To <= c.span.From })
			modes, text := []mode{c.Mode}, ""
			for _, b := range beside {
				modes = append(modes, b.Mode)
				text += fmt.Sprintf("%s (%v), certain until %s; ", h.describe(b.tenure), b.Mode, h.at(b.span.To))
			}
			if !together(modes...) {
				found = append(found, violation{At: c.span.From, Text: fmt.Sprintf("%s%s (%v)", text, h.describe(c.tenure), c.Mode)})
			}
			beside = append(beside, c)
		}
	}
	return found
}

// checkLossFinal requires that Err is not nil once anything has reported the end of a hold.
func checkLossFinal(h *history) (found []violation) {
	for _, holds := range h.tenures() {
		for _, t := range holds {
			over := instant(0)
			if t.ended != nil {
				over = t.ended.End
			}
			if t.unlock != nil && t.unlock.End != 0 && (over == 0 || t.unlock.End < over) {
				over = t.unlock.End
			}
			for _, c := range t.errCalls {
				if c.Outcome == ok && over != 0 && c.Start > over {
					found = append(found, violation{At: c.Start, Text: fmt.Sprintf("%s; at %s Err was nil again", h.describe(t), h.at(c.Start))})
				}
				if c.Outcome == lost && (over == 0 || c.End < over) {
					over = c.End
				}
			}
		}
	}
	return found
}

// returnBound is how long after its context has ended a call may still return.
const returnBound = 500 * time.Millisecond

func checkReturns(h *history) (found []violation) {
	for _, c := range h.calls {
		l := h.lifetimes[c.Process]
		if c.By == 0 {
			continue
		}
		end := c.End
		if end == 0 {
			end = min(l.end(), h.ended)
		}
		by := max(c.By, c.Start)
		late := end.since(by) - 2*l.gaps.covered(by, end)
		if late > returnBound {
			found = append(found, violation{At: end, Text: fmt.Sprintf("%s (%s of %q): its context ended at %s, but it returned at %s", c.ref(), c.Op, c.Name, h.at(by), h.at(end))})
		}
	}
	for _, failure := range h.failures {
		found = append(found, violation{At: h.ended, Text: failure})
	}
	return found
}

func checkLeft(h *history) (found []violation) {
	for _, what := range h.left {
		found = append(found, violation{At: h.ended, Text: what + " was left two TTLs after the clients ended"})
	}
	return found
}
