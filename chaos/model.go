package main

import (
	"cmp"
	"fmt"
	"math"
	"slices"
	"sort"
	"time"

	"github.com/anishathalye/porcupine"
)

// The models are a second opinion. They use the calls of the clients alone, not what
// happened in etcd, and ask whether the history is linearizable as a lock and as a counter.

// modelTimeout bounds the search for each name; a search that takes longer gives no verdict.
const modelTimeout = 20 * time.Second

// step is one operation on the lock or on the counter of a name.
type step struct {
	what     op
	hold     string // the call that began it
	sharedIn string // the process whose goroutines may pass the hold on; empty if none
	token    int64
	value    int64   // read by an increment
	outcome  outcome // ok, or one that leaves the effect in doubt
}

// lockState is the state of the lock of a name.
type lockState struct {
	hold string // empty if there is none
	last int64  // the largest token so far
	by   string // sharedIn of the hold with that token
}

// lockModel is a lock whose tokens grow, except when a hold is passed on within a process. A
// hold without a confirmed release ends some time after the holder was last certain of it.
var lockModel = porcupine.Model{
	Init: func() any { return lockState{} },
	Step: func(s, input, _ any) (bool, any) {
		state, in := s.(lockState), input.(step)
		if in.what == opLock {
			same := in.token == state.last && in.sharedIn != "" && in.sharedIn == state.by
			return state.hold == "" && (in.token > state.last || same), lockState{in.hold, in.token, in.sharedIn}
		}
		return state.hold == in.hold, lockState{"", state.last, state.by}
	},
	DescribeOperation: describe,
}

// counterModel is a counter that is read and written in one step. A write without an answer
// may take effect at any time, or never.
var counterModel = porcupine.Model{
	Init: func() any { return int64(0) },
	Step: func(s, input, _ any) (bool, any) {
		value, in := s.(int64), input.(step)
		if in.value == value {
			return true, value + 1
		}
		return in.outcome != ok, value
	},
	DescribeOperation: describe,
}

func describe(input, _ any) string {
	in := input.(step)
	return fmt.Sprintf("%s with token %d (%d, %s)", in.what, in.token, in.value, cmp.Or(in.outcome, "unknown"))
}

// endless is the return time of an operation that may take effect at any time.
const endless = math.MaxInt64

// lockSteps returns the operations on the lock of each name. Calls that returned no hold
// are left out: they rule nothing out. So are names that several may hold at one time.
func lockSteps(h *history) map[string][]porcupine.Operation {
	all := make(map[string][]porcupine.Operation)
	for name, holds := range h.tenures() {
		if isMixed(name) {
			continue
		}
		for _, t := range holds {
			if t.entry != nil && h.excused(t.entry) {
				continue // lost before the holder could know
			}
			_, certain := h.reportedEnd(t)
			over := porcupine.Operation{Input: step{what: opUnlock, hold: t.ref(), token: t.Token}, Call: int64(max(certain, t.Start)), Return: endless}
			if t.unlock != nil && t.unlock.Outcome == ok {
				over.Return = int64(t.unlock.End)
			}
			sharedIn := ""
			if t.entry != nil && t.entry.passedOn() {
				sharedIn = t.Process
			}
			all[name] = append(all[name], porcupine.Operation{Input: step{what: opLock, hold: t.ref(), sharedIn: sharedIn, token: t.Token}, Call: int64(t.Start), Return: int64(t.End)}, over)
		}
	}
	return all
}

func counterSteps(h *history) map[string][]porcupine.Operation {
	all := make(map[string][]porcupine.Operation)
	for _, c := range h.calls {
		if c.Op != opAdd || c.Count == 0 || c.Outcome == failed || c.Outcome == lost {
			continue // refused, or never written
		}
		o := porcupine.Operation{Input: step{what: opAdd, token: c.Token, value: c.Value, outcome: c.Outcome}, Call: int64(c.Start), Return: int64(c.End)}
		if c.Outcome != ok {
			o.Return = endless
		}
		all[c.Name] = append(all[c.Name], o)
	}
	return all
}

// verdicts counts the operations that a model checked, and the names decided or not.
type verdicts struct{ operations, decided, undecided int }

func (v *verdicts) add(other verdicts) {
	v.operations += other.operations
	v.decided += other.decided
	v.undecided += other.undecided
}

func (v verdicts) String() string {
	return fmt.Sprintf("%d names decided, %d undecided, %d operations", v.decided, v.undecided, v.operations)
}

func checkLockModel(h *history) []violation { return h.explain(lockModel, lockSteps(h), &h.byLock) }
func checkCounterModel(h *history) []violation {
	return h.explain(counterModel, counterSteps(h), &h.byCounter)
}

// explain checks the operations on each name against the model, and counts the verdicts.
func (h *history) explain(model porcupine.Model, names map[string][]porcupine.Operation, counts *verdicts) (found []violation) {
	for name, steps := range names {
		counts.operations += len(steps)
		verdict := porcupine.CheckOperationsTimeout(model, steps, modelTimeout)
		if verdict == porcupine.Unknown {
			counts.undecided++
			continue
		}
		counts.decided++
		if verdict == porcupine.Illegal {
			found = append(found, violation{At: h.ended, Text: fmt.Sprintf("no order explains the %d operations on %s%s", len(steps), name, h.shortest(model, steps))})
		}
	}
	return found
}

// shortest finds the shortest prefix of the history that the model does not allow, and
// describes its last operations.
func (h *history) shortest(model porcupine.Model, steps []porcupine.Operation) string {
	ends := slices.DeleteFunc(slices.Clone(steps), func(o porcupine.Operation) bool { return o.Return == endless })
	slices.SortFunc(ends, func(a, b porcupine.Operation) int { return cmp.Compare(a.Return, b.Return) })
	k := sort.Search(len(ends), func(i int) bool {
		return porcupine.CheckOperationsTimeout(model, knownAt(steps, ends[i].Return), modelTimeout) == porcupine.Illegal
	})
	text := ""
	for _, o := range ends[max(0, k-2):min(k+1, len(ends))] {
		text += fmt.Sprintf("; %s from %s to %s", model.DescribeOperation(o.Input, o.Output), h.at(instant(o.Call)), h.at(instant(o.Return)))
	}
	return text
}

// knownAt returns the operations known at a time. Locks and increments that had not returned
// are left out. The end of a hold is kept, as one that may take effect at any time.
func knownAt(steps []porcupine.Operation, at int64) (known []porcupine.Operation) {
	reported := make(map[string]bool) // holds
	for _, o := range steps {
		if in := o.Input.(step); in.what == opLock && o.Return <= at {
			reported[in.hold] = true
		}
	}
	for _, o := range steps {
		switch in := o.Input.(step); {
		case o.Call > at, in.what == opUnlock && !reported[in.hold], in.what != opUnlock && o.Return > at && o.Return != endless:
			continue
		case o.Return > at:
			o.Return = endless
		}
		known = append(known, o)
	}
	return known
}
