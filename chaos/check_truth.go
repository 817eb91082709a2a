package main

import (
	"cmp"
	"fmt"
	"math"
	"slices"
	"strings"
	"time"
)

func checkSet(h *history) (found []violation) {
	known := make(map[string]bool)
	for _, c := range h.calls {
		if c.Op != opCommit && c.Op != opStale {
			continue
		}
		known[c.ref()] = true
		switch present := h.set[c.ref()]; {
		case c.Outcome == ok && !present:
			found = append(found, violation{At: c.End, Text: fmt.Sprintf("%s put an element of %s at revision %d, but it is missing", c.ref(), c.Name, c.Value)})
		case (c.Outcome == failed || c.Outcome == lost) && present:
			found = append(found, violation{At: c.End, Text: fmt.Sprintf("%s was refused an element of %s (%s), but it is present", c.ref(), c.Name, c.Reason)})
		}
	}
	for ref := range h.set {
		if !known[ref] {
			found = append(found, violation{At: h.ended, Text: "no call put the element " + ref})
		}
	}
	return found
}

// checkGuards requires that a guarded write is applied while all names of its hold are held.
func checkGuards(h *history) (found []violation) {
	h.tenures()
	for ref, all := range h.truth.set {
		for _, put := range all {
			for _, e := range h.guarding(ref, put) {
				if e == nil || e.Head == 0 || put.Revision < e.Head || put.Revision >= e.over() {
					found = append(found, violation{At: h.truth.by(put.Revision), Text: fmt.Sprintf("%s wrote at revision %d with token %d of %s, which %s", ref, put.Revision, put.Token, put.Name, headPeriod(e))})
				}
			}
		}
	}
	return found
}

// guarding returns the entries of the hold that guards the put of an element by a call.
func (h *history) guarding(ref string, put element) (entries []*entry) {
	t := h.holdOf[ref]
	if t == nil || t.Token != put.Token {
		return []*entry{h.truth.entry(put.Name, put.Token)}
	}
	for _, part := range t.parts {
		entries = append(entries, part.entry)
	}
	return entries
}

// checkOnce requires an error of Commit if etcd's client has repeated the write by itself.
func checkOnce(h *history) (found []violation) {
	for _, c := range h.calls {
		if all := h.truth.set[c.ref()]; c.Op == opCommit && c.Outcome == ok && len(all) > 1 {
			found = append(found, violation{At: h.truth.by(all[1].Revision), Text: fmt.Sprintf("%s reported one write at revision %d; it was applied %d times, from revision %d to %d", c.ref(), c.Value, len(all), all[0].Revision, all[len(all)-1].Revision)})
		}
	}
	return found
}

// headPeriod describes when an entry was the head of its queue.
func headPeriod(e *entry) string {
	switch {
	case e == nil:
		return "was never in the queue"
	case e.Head == 0 && e.Deleted == 0:
		return fmt.Sprintf("was in the queue of %s from revision %d and never its head", e.Name, e.Created)
	case e.Head == 0:
		return fmt.Sprintf("was in the queue of %s from revision %d to %d and never its head", e.Name, e.Created, e.Deleted)
	case e.Deleted == 0:
		return fmt.Sprintf("was the head of %s from revision %d on", e.Name, e.Head)
	}
	return fmt.Sprintf("was the head of %s from revision %d to %d", e.Name, e.Head, e.Deleted)
}

// checkHeads requires that a hold was at the head of its queue during the call, alone or among
// others that may hold the name together; with several names, at the head of all queues at
// one revision. If it was passed on within a process, it may have been the head before:
// WithLocalHandover promises no more.
func checkHeads(h *history) (found []violation) {
	for _, holds := range h.tenures() {
		for _, t := range holds {
			switch {
			case t.entry == nil, t.entry.Head == 0:
				found = append(found, violation{At: t.End, Text: fmt.Sprintf("%s; its entry %s", h.describe(t), headPeriod(t.entry))})
			case t.entry.Mode != t.Mode:
				found = append(found, violation{At: t.End, Text: fmt.Sprintf("%s (%v); the entry with that token is %v", h.describe(t), t.Mode, t.entry.Mode)})
			case t.first() && !t.atOnce():
				found = append(found, violation{At: t.End, Text: fmt.Sprintf("%s together with %v; its entries were never all heads at one revision", h.describe(t), t.And)})
			case !t.entry.of(t.call):
				found = append(found, violation{At: t.End, Text: fmt.Sprintf("%s; the entry with that token belongs to %s", h.describe(t), t.entry.Owner)})
			case h.truth.notBefore(t.entry.Head) > t.End:
				found = append(found, violation{At: t.End, Text: fmt.Sprintf("%s; it became the head only after the call, not before %s (revision %d)", h.describe(t), h.at(h.truth.notBefore(t.entry.Head)), t.entry.Head)})
			case t.entry.Deleted != 0 && h.truth.by(t.entry.Deleted) < t.Start && !h.passedOnUnaware(t):
				found = append(found, violation{At: t.End, Text: fmt.Sprintf("%s; its entry was deleted before the call", h.describe(t))})
			}
		}
	}
	return found
}

// atOnce reports whether there was a revision at which all names of a hold were held. If one
// of them never was, that is another matter.
func (t *tenure) atOnce() bool {
	from, over := int64(0), int64(math.MaxInt64)
	for _, part := range t.parts {
		if part.entry == nil || part.entry.Head == 0 {
			return true
		}
		from, over = max(from, part.entry.Head), min(over, part.entry.over())
	}
	return from < over
}

// localOrderBound is how much earlier a goroutine must have called than another of the same
// client for the order in which they queued to be certain.
const localOrderBound = time.Second

// checkOrder requires that a live waiter keeps its place. etcd's queue is ordered by create
// revision, so a waiter whose entry is put a second time has lost its place. Goroutines of
// one client that exclude each other are served in the order in which they called.
func checkOrder(h *history) (found []violation) {
	for name, entries := range h.truth.entries {
		last := make(map[string]*entry)
		for _, e := range entries {
			if e.Lease == 0 || e.passedOn() {
				continue // put by hand, or passed on among several calls
			}
			if before := last[e.Owner]; before != nil && before.Lease == e.Lease && !h.excused(before) {
				found = append(found, violation{At: h.truth.by(e.Created), Text: fmt.Sprintf("%s was in the queue of %s from revision %d to %d, and again from %d", e.Owner, name, before.Created, before.Deleted, e.Created)})
			}
			last[e.Owner] = e
		}
	}
	if h.load == loadCrowd {
		return found // each goroutine has its own client
	}
	for _, holds := range h.tenures() {
		byProcess := make(map[string][]*tenure)
		for _, t := range holds {
			if t.Op == opLock {
				byProcess[t.Process] = append(byProcess[t.Process], t)
			}
		}
		for process, own := range byProcess {
			found = append(found, h.outOfOrder(own, h.lifetimes[process])...)
		}
	}
	return found
}

// outOfOrder returns where calls of one client for one name, which exclude each other, were
// not served in their order. Others may pass: those in front of a line queue independently.
func (h *history) outOfOrder(own []*tenure, l *lifetime) (found []violation) {
	slices.SortFunc(own, func(a, b *tenure) int { return cmp.Or(cmp.Compare(a.Token, b.Token), cmp.Compare(a.End, b.End)) })
	for i, b := range own {
		if l.gaps.overlaps(b.Start, b.Start.add(localOrderBound)) {
			continue
		}
		for _, a := range own[:i] { // a was served before b
			if a.Start.since(b.Start) > localOrderBound && !together(a.Mode, b.Mode) {
				found = append(found, violation{At: a.End, Text: fmt.Sprintf("%s requested %s at %s and got token %d, before %s, which requested it at %s and got %d", a.ref(), a.Name, h.at(a.Start), a.Token, b.ref(), h.at(b.Start), b.Token)})
			}
		}
	}
	return found
}

// checkRemovals looks for losses with reason "deleted" that neither an operator nor etcd
// explains: another lock has removed the entry.
func checkRemovals(h *history) (found []violation) {
	for _, holds := range h.tenures() {
		for _, t := range holds {
			if t.entry == nil || h.excusedHold(t) {
				continue
			}
			const deleted = "deleted"
			if t.ended != nil && t.ended.Reason == deleted || t.unlock != nil && t.unlock.Reason == deleted {
				found = append(found, violation{At: h.truth.by(t.entry.Deleted), Text: fmt.Sprintf("%s; its entry was deleted at revision %d, but not by its owner", h.describe(t), t.entry.Deleted)})
			}
		}
	}
	for _, c := range h.calls {
		if c.Op == opLock && c.Outcome == failed && strings.Contains(c.Reason, "lost: deleted") && !h.excusedFor(c) {
			found = append(found, violation{At: c.End, Text: fmt.Sprintf("%s lost its place in the queue of %s although no operator interfered", c.ref(), c.Name)})
		}
	}
	return found
}

// excusedFor is like excused for a call that returned no hold.
func (h *history) excusedFor(c call) bool {
	return slices.ContainsFunc(c.items(), func(i item) bool {
		return slices.ContainsFunc(h.truth.entries[i.Name], func(e *entry) bool {
			return e.of(c) && h.excused(e) && h.truth.notBefore(e.Created) <= c.End && c.Start <= h.truth.by(e.Deleted)
		})
	})
}

// checkCleanUp requires that a confirmed Unlock has removed its entry, and that what a failed
// or unconfirmed call left is removed within the TTL, or with its lease a TTL later. A client
// that can reach etcd has no more time if its own TTL is longer than that of the round.
func checkCleanUp(h *history) (found []violation) {
	released := make(map[string]call) // by the call that began the hold: the one that ended it
	for _, c := range h.calls {
		switch {
		case (c.Op == opLock || c.Op == opTry) && c.Outcome == failed:
			released[c.ref()] = c
		case c.Op == opUnlock && c.End != 0:
			released[call{Process: c.Process, ID: c.Hold}.ref()] = c
		}
	}
	for name, entries := range h.truth.entries {
		for _, e := range entries {
			c, is := released[e.Owner]
			if !is {
				continue
			}
			gone := h.ended
			if e.Deleted != 0 {
				gone = h.truth.notBefore(e.Deleted)
			}
			if gone <= c.End {
				continue
			}
			bound := 2*h.ttl + time.Second + h.troubled(c.Process, c.End, gone, h.aftermath(), byHand)
			// Only the entry of the hold must be gone by now. Another is from a session
			// that was lost while the call waited, and goes with that session's lease.
			if c.Op == opUnlock && c.Outcome == ok && e.Created == c.Token {
				bound = 0
			}
			if gone.since(c.End) > bound {
				found = append(found, violation{At: gone, Text: fmt.Sprintf("%s (%s of %s) ended at %s with %q, but its entry of revision %d remained at least until %s", c.ref(), c.Op, name, h.at(c.End), cmp.Or(c.Reason, "success"), e.Created, h.at(gone))})
			}
		}
	}
	return found
}

// byHand selects faults that affect a queue but no process.
func byHand(c traits) bool { return c.operator || c.kind == "foreign-entry" }

// troubled returns how much of the interval a process was affected by a fault, or did not
// run. Faults for which except returns true do not count.
func (h *history) troubled(process string, from, to instant, aftermath time.Duration, except func(traits) bool) time.Duration {
	if to <= from {
		return 0
	}
	var felt spans
	slot := h.lifetimes[process].slot
	for _, f := range h.firings {
		if c := traitsOf(f.Kind); !except(c) && (c.lane == toCluster || f.Target == slot) {
			felt = append(felt, span{f.From, f.To.add(aftermath)})
		}
	}
	return min(append(felt, h.lifetimes[process].gaps...).covered(from, to), to.since(from))
}
