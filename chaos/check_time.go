package main

import (
	"fmt"
	"time"
)

func checkTold(h *history) (found []violation) {
	for _, holds := range h.tenures() {
		for _, t := range holds {
			if t.entry == nil || t.entry.Deleted == 0 || h.excused(t.entry) {
				continue
			}
			if _, certain := h.told(t); certain > h.truth.by(t.entry.Deleted) {
				found = append(found, violation{At: certain, Text: fmt.Sprintf("%s; etcd had deleted its entry at revision %d, which was there at %s", h.describe(t), t.entry.Deleted, h.at(h.truth.by(t.entry.Deleted)))})
			}
		}
	}
	return found
}

// checkHarmless: a connection that is reset, a short stop, one member of three that does not answer, a
// compaction are nothing to lose a lock for. With a long TTL nothing is that ends before the lease could.
func checkHarmless(h *history) (found []violation) {
	for _, holds := range h.tenures() {
		for _, t := range holds {
			l := h.lives[t.Process]
			if t.ended == nil || t.ended.Reason == "closed" || t.entry != nil && h.excused(t.entry) {
				continue
			}
			from, to, long := t.ended.Start.add(-2*h.ttl), t.ended.Start, h.lease(t.Process) > h.ttl
			harmless := func(f firing) bool { return long || characterOf(f.Kind).harmless }
			if h.calmFor(l.slot, from, to, h.aftermath(), harmless) && (long || l.gaps.within(from, to) < h.ttl/10) {
				found = append(found, violation{At: to, Text: fmt.Sprintf("%s; it was lost (%s) while nothing happened that costs a hold", h.describe(t), t.ended.Reason)})
			}
		}
	}
	return found
}

// takeOver is what followed the death of a holder.
type takeOver struct {
	from, by *tenure // by is nil if nobody was waiting, or has been told
	died     instant
	slept    time.Duration // of that, the next holder did not run
	after    time.Duration // until the next holder was told, or else until etcd deleted the entry
	alone    bool          // nothing else was going on
}

// takeOvers returns what followed when holders were killed.
func (h *history) takeOvers() (all []takeOver) {
	for name, holds := range h.tenures() {
		byEntry := make(map[*entry]*tenure)
		for _, t := range holds {
			if byEntry[t.entry] == nil { // of those who share it, the first
				byEntry[t.entry] = t
			}
		}
		for _, t := range holds {
			died := h.lives[t.Process].To
			told, _ := h.told(t)
			if died == 0 || told != died || t.entry == nil || h.excused(t.entry) {
				continue
			}
			over := takeOver{from: t, died: died}
			until := h.ended
			if t.entry.Deleted != 0 {
				until = h.truth.by(t.entry.Deleted)
				if next := h.truth.headAt(name, t.entry.Deleted); next != nil && byEntry[next] != nil && next.Created < t.entry.Deleted {
					over.by = byEntry[next]
					until = over.by.End
				}
			}
			over.after = until.since(died)
			over.alone = h.calmFor(-1, died.add(-h.ttl), until, 0, func(f firing) bool { return f.Kind == "kill" && f.Alone })
			if over.by != nil {
				over.slept = h.lives[over.by.Process].gaps.within(died, until)
			}
			all = append(all, over)
		}
	}
	return all
}

func checkTakeOvers(h *history) (found []violation) {
	for _, o := range h.takeOvers() {
		if o.alone && o.after-o.slept > h.ttl+takeOverBound {
			text := fmt.Sprintf("%s, when it was killed; its name was free %v later", h.describe(o.from), o.after)
			if o.by != nil {
				text = fmt.Sprintf("%s, when it was killed; %v later %s", h.describe(o.from), o.after, h.describe(o.by))
			}
			found = append(found, violation{At: o.died.add(o.after), Text: text})
		}
	}
	return found
}

// turnBound is how long it may take to notice that the turn has come, if the watch that should tell it
// has broken silently.
func turnBound(ttl time.Duration) time.Duration { return silenceBound(ttl) + time.Second }

// detour is what those need not be excused for that have a time for it already.
func detour(c character) bool { return c.detour }

func checkTurns(h *history) (found []violation) {
	h.tenures()
	for name, heads := range h.truth.heads {
		for _, e := range heads {
			c, known := h.acquired[e.Who]
			if !known || c.Op != opLock {
				continue
			}
			turn, until := max(h.began, h.truth.by(e.Head)), c.End
			if until == 0 {
				until = min(h.ended, h.lives[c.Process].end())
			}
			if e.Deleted != 0 {
				until = min(until, h.truth.notBefore(e.Deleted))
			}
			if until.since(turn)-h.troubled(c.Process, turn, until, h.ttl, detour) > turnBound(h.lease(c.Process)) {
				found = append(found, violation{At: until, Text: fmt.Sprintf("%s was the head of the queue of %s from %s on (revision %d) and was not told until %s", e.Who, name, h.at(turn), e.Head, h.at(until))})
			}
		}
	}
	return found
}

func checkLiveness(h *history) (found []violation) {
	if h.load == loadNames {
		return nil // everybody has what they want
	}
	processes, names := make(map[string]bool), make(map[string]bool)
	for name, holds := range h.tenures() {
		for _, t := range holds {
			if t.End > h.healed && t.End < h.stopping {
				processes[t.Process], names[name] = true, true
			}
		}
	}
	for name, l := range h.lives {
		if l.From < h.healed && l.end() > h.stopping && !processes[name] {
			found = append(found, violation{At: h.stopping, Text: fmt.Sprintf("client %s got no lock from %s to %s", name, h.at(h.healed), h.at(h.stopping))})
		}
	}
	for i := range h.names {
		if name := (target{}).name(i); !names[name] {
			found = append(found, violation{At: h.stopping, Text: fmt.Sprintf("nobody got %s from %s to %s", name, h.at(h.healed), h.at(h.stopping))})
		}
	}
	return found
}

// checkObservers: what a watch tells was so at its revision, is in order, is not told twice, and a
// state that lasts gets told.
func checkObservers(h *history) (found []violation) {
	type observer struct{ process, name string }
	told := make(map[observer][]call)
	began := make(map[string]instant)
	for _, c := range h.calls {
		switch {
		case c.Op == opWatched && c.Outcome == failed && c.Start < h.stopping:
			found = append(found, violation{At: c.Start, Text: fmt.Sprintf("the watch of client %s ended with %s", c.Process, c.Reason)})
		case c.Op == opWatched:
			began[c.Process] = c.Start
		case c.Op == opSaw:
			o := observer{c.Process, c.Name}
			told[o] = append(told[o], c)
		}
	}
	for _, states := range told {
		found = append(found, h.contradictions(states)...)
	}
	for process := range began {
		for name := range h.truth.entries {
			found = append(found, h.missed(process, name, began[process], told[observer{process, name}])...)
		}
	}
	return found
}

// contradictions compares the states of one name that one watch has told with the truth.
func (h *history) contradictions(states []call) (found []violation) {
	for i, c := range states {
		so := int64(0)
		if e := h.truth.headAt(c.Name, c.Value); e != nil {
			so = e.Created
		}
		if so != c.Token {
			found = append(found, violation{At: c.Start, Text: fmt.Sprintf("client %s saw token %d on %s at revision %d; it was %d", c.Process, c.Token, c.Name, c.Value, so)})
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

// missed finds the states that lasted and were not told.
func (h *history) missed(process, name string, began instant, told []call) (found []violation) {
	l := h.lives[process]
	behind := observersBehind(h.lease(process))
	next, last := 0, int64(0)
	for _, state := range h.truth.states(name) {
		from := h.truth.by(state.from)
		by := from.add(behind)
		if state.to != 0 && h.truth.notBefore(state.to) < by || by > h.stopping.add(behind) {
			continue
		}
		for ; next < len(told) && told[next].End <= by; next++ {
			last = told[next].Token
		}
		if from > began && last != state.token && h.awake(process, from, by) && h.calmFor(l.slot, from, by, h.aftermath(), func(f firing) bool { return detour(characterOf(f.Kind)) }) {
			found = append(found, violation{At: by, Text: fmt.Sprintf("client %s had not seen by %s that token %d had %s from %s on; the last it saw was %d", process, h.at(by), state.token, name, h.at(from), last)})
		}
	}
	return found
}

// state is who was the head of a queue, 0 for nobody, from one revision to another, 0 for the end.
type state struct{ token, from, to int64 }

// states returns the states of a name one after the other.
func (t *truth) states(name string) (all []state) {
	for _, e := range t.heads[name] {
		if n := len(all); n > 0 {
			all[n-1].to = e.Head
		}
		all = append(all, state{token: e.Created, from: e.Head})
		if e.Deleted != 0 {
			all[len(all)-1].to = e.Deleted
			all = append(all, state{from: e.Deleted})
		}
	}
	return all
}
