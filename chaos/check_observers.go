package main

import (
	"fmt"
	"math"
	"slices"
	"time"
)

// checkObservers requires that each state of a watch was true at its revision, that states
// come in order and never twice in a row, and that every state that lasts is reported; and
// that what Cache.Holders and Client.Holders returned was true.
func checkObservers(h *history) (found []violation) {
	type key struct{ process, name string }
	seen := make(map[key][]call)
	began := make(map[string]instant)
	for _, c := range h.calls {
		switch {
		case c.Op == opWatched && c.Outcome == failed && c.Start < h.stopping:
			found = append(found, violation{At: c.Start, Text: fmt.Sprintf("the watch of client %s ended: %s", c.Process, c.Reason)})
		case c.Op == opWatched:
			began[c.Process] = c.Start
		case c.Op == opSaw:
			k := key{c.Process, c.Name}
			seen[k] = append(seen[k], c)
		case (c.Op == opHolders || c.Op == opCached) && !h.wereHolders(c):
			found = append(found, violation{At: c.Start, Text: fmt.Sprintf("%s: client %s saw tokens %v on %s, which was not true (revisions %d to %d, age %v)", c.Op, c.Process, c.Tokens, c.Name, c.Value, c.Until, time.Duration(c.Age))})
		}
	}
	for _, states := range seen {
		found = append(found, h.contradictions(states)...)
	}
	for process := range began {
		for name := range h.truth.entries {
			found = append(found, h.missed(process, name, began[process], seen[key{process, name}])...)
		}
	}
	return found
}

// wereHolders reports whether those that a call saw were all holders of the name, at one
// revision: of Client.Holders at one that was the newest during the call; of a Cache at one
// of those that it had reached, and the newest once within its age.
func (h *history) wereHolders(c call) bool {
	since := c.Start.add(-time.Duration(c.Age))
	if c.Op == opHolders {
		c.Until = math.MaxInt64
	}
	states := append([]state{{}}, h.truth.states[c.Name]...) // at first there are none
	for i, s := range states {
		over := int64(math.MaxInt64)
		if i+1 < len(states) {
			over = states[i+1].from
		}
		meanwhile := h.truth.notBefore(s.from) <= c.End && (over == math.MaxInt64 || h.truth.by(over) >= since)
		if meanwhile && s.from <= c.Until && over > c.Value && slices.Equal(s.tokens(), c.Tokens) {
			return true
		}
	}
	return false
}

// tokens returns the tokens of the holders.
func (s state) tokens() (tokens []int64) {
	for _, e := range s.holders {
		tokens = append(tokens, e.Created)
	}
	return tokens
}

// shown is what a watch shows of who holds a name; all zero if nobody does.
type shown struct {
	token   int64 // of the oldest holder
	mode    mode  // in which it holds
	holders int64
}

func shownOf(holders []*entry) shown {
	if len(holders) == 0 {
		return shown{}
	}
	return shown{holders[0].Created, holders[0].Mode, int64(len(holders))}
}

func (s shown) String() string {
	return fmt.Sprintf("token %d (%v), %d holders", s.token, s.mode, s.holders)
}

func (c call) shown() shown { return shown{c.Token, c.Mode, c.Count} }

// contradictions compares the states of one name that one watch reported with the ground truth.
func (h *history) contradictions(states []call) (found []violation) {
	for i, c := range states {
		if want := shownOf(h.truth.holdersAt(c.Name, c.Value)); want != c.shown() {
			found = append(found, violation{At: c.Start, Text: fmt.Sprintf("client %s saw %v on %s at revision %d; it was %v", c.Process, c.shown(), c.Name, c.Value, want)})
		}
		if i == 0 {
			continue
		}
		before := states[i-1]
		if c.Value < before.Value {
			found = append(found, violation{At: c.Start, Text: fmt.Sprintf("client %s saw %s at revision %d and then at %d", c.Process, c.Name, before.Value, c.Value)})
		}
		if c.shown() == before.shown() && c.Reason == before.Reason {
			found = append(found, violation{At: c.Start, Text: fmt.Sprintf("client %s saw the same state of %s twice, at revisions %d and %d", c.Process, c.Name, before.Value, c.Value)})
		}
	}
	return found
}

// missed finds states that lasted but were not reported.
func (h *history) missed(process, name string, began instant, seen []call) (found []violation) {
	l := h.lifetimes[process]
	behind := observerLag(h.lease(process))
	next, last := 0, shown{}
	for _, period := range h.truth.periods(name) {
		from := h.truth.by(period.from)
		by := from.add(behind)
		if period.to != 0 && h.truth.notBefore(period.to) < by || by > h.stopping.add(behind) {
			continue
		}
		for ; next < len(seen) && seen[next].End <= by; next++ {
			last = seen[next].shown()
		}
		if from > began && last != period.shown && h.awake(process, from, by) && h.undisturbed(l.slot, from, by, h.aftermath(), func(f firing) bool { return oneMember(traitsOf(f.Kind)) }) {
			found = append(found, violation{At: by, Text: fmt.Sprintf("client %s had not seen by %s what was true of %s from %s on: %v; the last it saw was %v", process, h.at(by), name, h.at(from), period.shown, last)})
		}
	}
	return found
}

// period is the time between two revisions in which a watch shows the same. If it lasts to
// the end, to is 0.
type period struct {
	shown
	from, to int64
}

// periods returns the successive periods of a name.
func (t *truth) periods(name string) (all []period) {
	for _, s := range t.states[name] {
		next := period{shown: shownOf(s.holders), from: s.from}
		if n := len(all); n > 0 && all[n-1].shown == next.shown {
			continue
		} else if n > 0 {
			all[n-1].to = s.from
		}
		all = append(all, next)
	}
	return all
}
