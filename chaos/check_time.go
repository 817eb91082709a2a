package main

import (
	"fmt"
	"time"
)

func checkLossReported(h *history) (found []violation) {
	for _, holds := range h.tenures() {
		for _, t := range holds {
			if t.entry == nil || t.entry.Deleted == 0 || h.excused(t.entry) {
				continue
			}
			if _, certain := h.reportedEnd(t); certain > h.truth.by(t.entry.Deleted) {
				found = append(found, violation{At: certain, Text: fmt.Sprintf("%s; etcd had deleted its entry at revision %d, which was there at %s", h.describe(t), t.entry.Deleted, h.at(h.truth.by(t.entry.Deleted)))})
			}
		}
	}
	return found
}

// checkHarmless requires that no hold is lost to a reset connection, a short stop, one
// silent member of three or a compaction. With a long TTL, no fault may cost a hold: each
// ends before the lease could expire.
func checkHarmless(h *history) (found []violation) {
	for _, holds := range h.tenures() {
		for _, t := range holds {
			l := h.lifetimes[t.Process]
			if t.ended == nil || t.ended.Reason == "closed" || t.entry != nil && h.excused(t.entry) {
				continue
			}
			from, to, long := t.ended.Start.add(-2*h.ttl), t.ended.Start, h.lease(t.Process) > h.ttl
			harmless := func(f firing) bool { return long || traitsOf(f.Kind).harmless }
			if h.undisturbed(l.slot, from, to, h.aftermath(), harmless) && (long || l.gaps.covered(from, to) < h.ttl/10) {
				found = append(found, violation{At: to, Text: fmt.Sprintf("%s; it was lost (%s) although no fault could cost a hold", h.describe(t), t.ended.Reason)})
			}
		}
	}
	return found
}

// takeOver is what happened to a name after its holder was killed.
type takeOver struct {
	from, by *tenure // by is nil if no waiter took over
	died     instant
	after    time.Duration // until the next hold was reported, or else until etcd deleted the entry
	slept    time.Duration // the part of after during which the next holder did not run
	alone    bool          // there was no other fault
}

// takeOvers returns the take-overs from killed holders.
func (h *history) takeOvers() (all []takeOver) {
	for name, holds := range h.tenures() {
		byEntry := make(map[*entry]*tenure)
		for _, t := range holds {
			if byEntry[t.entry] == nil { // keep the first of those that share it
				byEntry[t.entry] = t
			}
		}
		for _, t := range holds {
			died := h.lifetimes[t.Process].To
			end, _ := h.reportedEnd(t)
			if died == 0 || end != died || t.entry == nil || h.excused(t.entry) {
				continue
			}
			over := takeOver{from: t, died: died}
			end = h.ended
			if t.entry.Deleted != 0 {
				end = h.truth.by(t.entry.Deleted)
				if next := h.truth.headAt(name, t.entry.Deleted); next != nil && byEntry[next] != nil && next.Created < t.entry.Deleted {
					over.by = byEntry[next]
					end = over.by.End
				}
			}
			over.after = end.since(died)
			over.alone = h.undisturbed(-1, died.add(-h.ttl), end, 0, func(f firing) bool { return f.Kind == "kill" && f.Alone })
			if over.by != nil {
				over.slept = h.lifetimes[over.by.Process].gaps.covered(died, end)
			}
			all = append(all, over)
		}
	}
	return all
}

func checkTakeOvers(h *history) (found []violation) {
	for _, o := range h.takeOvers() {
		if o.alone && o.after-o.slept > h.ttl+takeOverBound {
			text := fmt.Sprintf("%s, when it was killed; the name was free %v later", h.describe(o.from), o.after)
			if o.by != nil {
				text = fmt.Sprintf("%s, when it was killed; %v later %s", h.describe(o.from), o.after, h.describe(o.by))
			}
			found = append(found, violation{At: o.died.add(o.after), Text: text})
		}
	}
	return found
}

// headBound is how long a waiter whose watch silently failed may take to see that it is next.
func headBound(ttl time.Duration) time.Duration { return silenceBound(ttl) + time.Second }

// oneMember excludes faults that bounds such as headBound already allow for.
func oneMember(c traits) bool { return c.oneMember }

func checkHeadServed(h *history) (found []violation) {
	h.tenures()
	for name, heads := range h.truth.heads {
		for _, e := range heads {
			c, known := h.lockCalls[e.Owner]
			if !known || c.Op != opLock {
				continue
			}
			headSince, end := max(h.began, h.truth.by(e.Head)), c.End
			if end == 0 {
				end = min(h.ended, h.lifetimes[c.Process].end())
			}
			if e.Deleted != 0 {
				end = min(end, h.truth.notBefore(e.Deleted))
			}
			if end.since(headSince)-h.troubled(c.Process, headSince, end, h.ttl, oneMember) > headBound(h.lease(c.Process)) {
				found = append(found, violation{At: end, Text: fmt.Sprintf("%s was the head of the queue of %s from %s on (revision %d) but had no lock until %s", e.Owner, name, h.at(headSince), e.Head, h.at(end))})
			}
		}
	}
	return found
}

func checkLiveness(h *history) (found []violation) {
	if h.load == loadNames {
		return nil // each client keeps what it holds
	}
	served, locked := make(map[string]bool), make(map[string]bool)
	for name, holds := range h.tenures() {
		for _, t := range holds {
			if t.End > h.healed && t.End < h.stopping {
				served[t.Process], locked[name] = true, true
			}
		}
	}
	for name, l := range h.lifetimes {
		if l.From < h.healed && l.end() > h.stopping && !served[name] {
			found = append(found, violation{At: h.stopping, Text: fmt.Sprintf("client %s acquired no lock from %s to %s", name, h.at(h.healed), h.at(h.stopping))})
		}
	}
	for i := range h.names {
		if name := (target{}).name(i); !locked[name] {
			found = append(found, violation{At: h.stopping, Text: fmt.Sprintf("%s was not acquired from %s to %s", name, h.at(h.healed), h.at(h.stopping))})
		}
	}
	return found
}

// checkObservers requires that each state of a watch was true at its revision, that states
// come in order and never twice in a row, and that every state that lasts is reported.
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

// contradictions compares the states of one name that one watch reported with the ground truth.
func (h *history) contradictions(states []call) (found []violation) {
	for i, c := range states {
		want := int64(0)
		if e := h.truth.headAt(c.Name, c.Value); e != nil {
			want = e.Created
		}
		if want != c.Token {
			found = append(found, violation{At: c.Start, Text: fmt.Sprintf("client %s saw token %d on %s at revision %d; it was %d", c.Process, c.Token, c.Name, c.Value, want)})
		}
		if i == 0 {
			continue
		}
		before := states[i-1]
		if c.Value < before.Value {
			found = append(found, violation{At: c.Start, Text: fmt.Sprintf("client %s saw %s at revision %d and then at %d", c.Process, c.Name, before.Value, c.Value)})
		}
		if c.Token == before.Token && c.Reason == before.Reason {
			found = append(found, violation{At: c.Start, Text: fmt.Sprintf("client %s saw the same state of %s twice, at revisions %d and %d", c.Process, c.Name, before.Value, c.Value)})
		}
	}
	return found
}

// missed finds states that lasted but were not reported.
func (h *history) missed(process, name string, began instant, seen []call) (found []violation) {
	l := h.lifetimes[process]
	behind := observerLag(h.lease(process))
	next, last := 0, int64(0)
	for _, state := range h.truth.states(name) {
		from := h.truth.by(state.from)
		by := from.add(behind)
		if state.to != 0 && h.truth.notBefore(state.to) < by || by > h.stopping.add(behind) {
			continue
		}
		for ; next < len(seen) && seen[next].End <= by; next++ {
			last = seen[next].Token
		}
		if from > began && last != state.token && h.awake(process, from, by) && h.undisturbed(l.slot, from, by, h.aftermath(), func(f firing) bool { return oneMember(traitsOf(f.Kind)) }) {
			found = append(found, violation{At: by, Text: fmt.Sprintf("client %s had not seen by %s that token %d held %s from %s on; the last it saw was %d", process, h.at(by), state.token, name, h.at(from), last)})
		}
	}
	return found
}

// headState is the token at the head of a queue (0 if it was empty) between two revisions.
// If it lasts to the end, to is 0.
type headState struct{ token, from, to int64 }

// states returns the successive states of a name.
func (t *truth) states(name string) (all []headState) {
	for _, e := range t.heads[name] {
		if n := len(all); n > 0 {
			all[n-1].to = e.Head
		}
		all = append(all, headState{token: e.Created, from: e.Head})
		if e.Deleted != 0 {
			all[len(all)-1].to = e.Deleted
			all = append(all, headState{from: e.Deleted})
		}
	}
	return all
}
