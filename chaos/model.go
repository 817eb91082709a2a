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

// The models are a second opinion on what the other checks say. They know nothing of etcd: they see
// the calls of the clients as a history and ask whether a sequential lock, or a sequential counter,
// could have answered so.

// modelPatience bounds the search for an explanation; a search that takes longer gives no verdict.
const modelPatience = 20 * time.Second

// step is one operation on the lock or on the counter of a name.
type step struct {
	what       op
	hold       string // who began it
	nextInLine string // the process that may have got the hold from another of its goroutines
	token      int64
	value      int64   // what an increment has read
	sure       outcome // ok, or that it may have had an effect
}

// lockState is which hold there is, if any, and the largest token so far and the process that has it.
type lockState struct {
	hold string
	last int64
	by   string
}

// lockModel is a lock whose tokens grow; only within a process that shares holds the next may have the
// same. A hold that was not given up for certain ends at some time after the holder last knew of it.
var lockModel = porcupine.Model{
	Init: func() any { return lockState{} },
	Step: func(s, input, _ any) (bool, any) {
		state, in := s.(lockState), input.(step)
		if in.what == opLock {
			passedOn := in.token == state.last && in.nextInLine != "" && in.nextInLine == state.by
			return state.hold == "" && (in.token > state.last || passedOn), lockState{in.hold, in.token, in.nextInLine}
		}
		return state.hold == in.hold, lockState{"", state.last, state.by}
	},
	DescribeOperation: describe,
}

// counterModel is a counter that is read and written in one step. Of a write whose answer nobody has
// seen, it is left open whether and when it takes effect.
var counterModel = porcupine.Model{
	Init: func() any { return int64(0) },
	Step: func(s, input, _ any) (bool, any) {
		value, in := s.(int64), input.(step)
		if in.value == value {
			return true, value + 1
		}
		return in.sure != ok, value
	},
	DescribeOperation: describe,
}

func describe(input, _ any) string {
	in := input.(step)
	return fmt.Sprintf("%s with token %d (%d, %s)", in.what, in.token, in.value, cmp.Or(in.sure, "unknown"))
}

// endless is the return of what may take effect at any time.
const endless = math.MaxInt64

// lockSteps returns what the clients know of the lock of each name. A lock that nobody got explains
// itself, whatever it did: what is possible with it is possible without.
func lockSteps(h *history) map[string][]porcupine.Operation {
	all := make(map[string][]porcupine.Operation)
	for name, holds := range h.tenures() {
		for _, t := range holds {
			if t.entry != nil && h.excused(t.entry) {
				continue // it has lost the lock before it knew
			}
			_, certain := h.told(t)
			over := porcupine.Operation{Input: step{what: opUnlock, hold: t.who(), token: t.Token}, Call: int64(max(certain, t.Start)), Return: endless}
			if t.unlock != nil && t.unlock.Outcome == ok {
				over.Return = int64(t.unlock.End)
			}
			nextInLine := ""
			if t.entry != nil && t.entry.shared() {
				nextInLine = t.Process
			}
			all[name] = append(all[name], porcupine.Operation{Input: step{what: opLock, hold: t.who(), nextInLine: nextInLine, token: t.Token}, Call: int64(t.Start), Return: int64(t.End)}, over)
		}
	}
	return all
}

func counterSteps(h *history) map[string][]porcupine.Operation {
	all := make(map[string][]porcupine.Operation)
	for _, c := range h.calls {
		if c.Op != opAdd || c.Count == 0 || c.Outcome == failed || c.Outcome == lost {
			continue // it was refused, or never written
		}
		o := porcupine.Operation{Input: step{what: opAdd, token: c.Token, value: c.Value, sure: c.Outcome}, Call: int64(c.Start), Return: int64(c.End)}
		if c.Outcome != ok {
			o.Return = endless
		}
		all[c.Name] = append(all[c.Name], o)
	}
	return all
}

// verdicts counts what a model was asked about, and the names on which it gave a verdict or gave up.
type verdicts struct{ operations, decided, undecided int }

func (v *verdicts) add(other verdicts) {
	v.operations += other.operations
	v.decided += other.decided
	v.undecided += other.undecided
}

func (v verdicts) String() string {
	return fmt.Sprintf("%d names decided and %d not, of %d operations", v.decided, v.undecided, v.operations)
}

func checkLockModel(h *history) []violation { return h.explain(lockModel, lockSteps(h), &h.byLock) }
func checkCounterModel(h *history) []violation {
	return h.explain(counterModel, counterSteps(h), &h.byCounter)
}

// explain asks for each name whether the model allows what was seen, and counts how often it could tell.
func (h *history) explain(model porcupine.Model, names map[string][]porcupine.Operation, told *verdicts) (found []violation) {
	for name, steps := range names {
		told.operations += len(steps)
		verdict := porcupine.CheckOperationsTimeout(model, steps, modelPatience)
		if verdict == porcupine.Unknown {
			told.undecided++
			continue
		}
		told.decided++
		if verdict == porcupine.Illegal {
			found = append(found, violation{At: h.ended, Text: fmt.Sprintf("no order explains the %d operations on %s%s", len(steps), name, h.shortest(model, steps))})
		}
	}
	return found
}

// shortest finds the first operation with which what came before it cannot be explained any more, and
// names it and the last that returned before it.
func (h *history) shortest(model porcupine.Model, steps []porcupine.Operation) string {
	ends := slices.DeleteFunc(slices.Clone(steps), func(o porcupine.Operation) bool { return o.Return == endless })
	slices.SortFunc(ends, func(a, b porcupine.Operation) int { return cmp.Compare(a.Return, b.Return) })
	k := sort.Search(len(ends), func(i int) bool {
		return porcupine.CheckOperationsTimeout(model, until(steps, ends[i].Return), modelPatience) == porcupine.Illegal
	})
	text := ""
	for _, o := range ends[max(0, k-2):min(k+1, len(ends))] {
		text += fmt.Sprintf("; %s from %s to %s", model.DescribeOperation(o.Input, o.Output), h.at(instant(o.Call)), h.at(instant(o.Return)))
	}
	return text
}

// until returns what was known at a time. A lock or an increment that had not returned then may be
// left out; the end of a hold may have come already.
func until(steps []porcupine.Operation, at int64) (known []porcupine.Operation) {
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
