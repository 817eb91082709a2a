package main

import (
	"fmt"
	"math"
	"slices"
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
			if t.ended == nil || t.ended.Reason == "closed" || h.excusedHold(t) {
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
	for _, holds := range h.tenures() {
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
				if over.by = h.successor(t.entry, byEntry); over.by != nil {
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

// successor returns the hold that became due when an entry was deleted, nil if there is none
// that had waited in the queue, or it waited for other names as well.
func (h *history) successor(e *entry, byEntry map[*entry]*tenure) *tenure {
	for _, next := range h.truth.holdersAt(e.Name, e.Deleted) {
		t := byEntry[next]
		if t == nil || next.Head < e.Deleted || next.Created >= e.Deleted {
			continue
		}
		if !slices.ContainsFunc(t.parts, func(part *tenure) bool { return !part.dueAt(e.Deleted) }) {
			return t
		}
	}
	return nil
}

// dueAt reports whether the entry of a hold was at the head of its queue by a revision.
func (t *tenure) dueAt(revision int64) bool {
	return t.entry != nil && t.entry.Head != 0 && t.entry.Head <= revision
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
			if !known || c.Op != opLock || c.Name != name {
				continue
			}
			head, over := h.due(c, e)
			if head == 0 {
				continue // in the queue of another name it never was
			}
			headSince, end := max(h.began, h.truth.by(head)), c.End
			if end == 0 {
				end = min(h.ended, h.lifetimes[c.Process].end())
			}
			if over != 0 {
				end = min(end, h.truth.notBefore(over))
			}
			if end.since(headSince)-h.troubled(c.Process, headSince, end, h.ttl, oneMember) > headBound(h.lease(c.Process)) {
				found = append(found, violation{At: end, Text: fmt.Sprintf("%s was the head of the queue of %s from %s on (revision %d) but had no lock until %s", e.Owner, name, h.at(headSince), head, h.at(end))})
			}
		}
	}
	return found
}

// due returns the revisions from which on and until which all the entries of a call were at
// the heads of their queues, given the entry of its first name. They are 0 for what has not
// happened.
func (h *history) due(c call, first *entry) (head, over int64) {
	head, over = first.Head, first.over()
	for _, other := range c.And {
		other := h.truth.entryOf(call{Process: c.Process, ID: c.ID, Name: other.Name, Token: first.Created})
		if other == nil || !other.of(c) || other.Head == 0 {
			return 0, 0
		}
		head, over = max(head, other.Head), min(over, other.over())
	}
	if over == math.MaxInt64 {
		over = 0
	}
	return head, over
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
	all := target{Names: h.names, Mixed: h.mixed}
	for i := range h.names + h.mixed {
		if name := all.anyName(i); !locked[name] {
			found = append(found, violation{At: h.stopping, Text: fmt.Sprintf("%s was not acquired from %s to %s", name, h.at(h.healed), h.at(h.stopping))})
		}
	}
	return found
}
