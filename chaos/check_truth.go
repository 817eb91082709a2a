package main

import (
	"cmp"
	"fmt"
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
		known[c.who()] = true
		switch present := h.set[c.who()]; {
		case c.Outcome == ok && !present:
			found = append(found, violation{At: c.End, Text: fmt.Sprintf("%s put an element of %s at revision %d, but it is not there", c.who(), c.Name, c.Value)})
		case (c.Outcome == failed || c.Outcome == lost) && present:
			found = append(found, violation{At: c.End, Text: fmt.Sprintf("%s was refused an element of %s (%s), but it is there", c.who(), c.Name, c.Reason)})
		}
	}
	for who := range h.set {
		if !known[who] {
			found = append(found, violation{At: h.ended, Text: "nobody knows of the element " + who})
		}
	}
	return found
}

func checkGuards(h *history) (found []violation) {
	for who, all := range h.truth.set {
		for _, put := range all {
			if e := h.truth.entry(put.Name, put.Token); e == nil || e.Head == 0 || put.Revision < e.Head || put.Revision >= e.over() {
				found = append(found, violation{At: h.truth.by(put.Revision), Text: fmt.Sprintf("%s wrote at revision %d with token %d of %s, which %s", who, put.Revision, put.Token, put.Name, reign(e))})
			}
		}
	}
	return found
}

// checkOnce: etcd's client may repeat a write by itself, and Commit has to say so.
func checkOnce(h *history) (found []violation) {
	for _, c := range h.calls {
		if all := h.truth.set[c.who()]; c.Op == opCommit && c.Outcome == ok && len(all) > 1 {
			found = append(found, violation{At: h.truth.by(all[1].Revision), Text: fmt.Sprintf("%s was told that it wrote at revision %d; it wrote %d times, from revision %d to %d", c.who(), c.Value, len(all), all[0].Revision, all[len(all)-1].Revision)})
		}
	}
	return found
}

// reign is when an entry was the head of its queue.
func reign(e *entry) string {
	switch {
	case e == nil:
		return "was never in the queue"
	case e.Head == 0 && e.Deleted == 0:
		return fmt.Sprintf("was in the queue from revision %d and never its head", e.Created)
	case e.Head == 0:
		return fmt.Sprintf("was in the queue from revision %d to %d and never its head", e.Created, e.Deleted)
	case e.Deleted == 0:
		return fmt.Sprintf("was the head from revision %d on", e.Head)
	}
	return fmt.Sprintf("was the head from revision %d to %d", e.Head, e.Deleted)
}

// checkHeads: a hold that was passed on within a process was the head before the call, which is as much as
// WithLocalHandover promises.
func checkHeads(h *history) (found []violation) {
	for _, holds := range h.tenures() {
		for _, t := range holds {
			switch {
			case t.entry == nil, t.entry.Head == 0:
				found = append(found, violation{At: t.End, Text: fmt.Sprintf("%s; its entry %s", h.describe(t), reign(t.entry))})
			case !t.entry.of(t.call):
				found = append(found, violation{At: t.End, Text: fmt.Sprintf("%s; the entry with that token is of %s", h.describe(t), t.entry.Who)})
			case h.truth.notBefore(t.entry.Head) > t.End:
				found = append(found, violation{At: t.End, Text: fmt.Sprintf("%s; it became the head later, not before %s (revision %d)", h.describe(t), h.at(h.truth.notBefore(t.entry.Head)), t.entry.Head)})
			case t.entry.Deleted != 0 && h.truth.by(t.entry.Deleted) < t.Start && !h.passedOnUnaware(t):
				found = append(found, violation{At: t.End, Text: fmt.Sprintf("%s; its entry had gone before the call", h.describe(t))})
			}
		}
	}
	return found
}

// localOrderBound is how much earlier a goroutine of a client must have called to be served before
// another of the same client: only then is it certain who stood in line first.
const localOrderBound = time.Second

// checkOrder: a waiter that stays alive keeps its place. In etcd's queue the order is that of the
// revisions, so a waiter loses its place if its entry is made a second time. Among the goroutines of a
// client, who called first is served first.
func checkOrder(h *history) (found []violation) {
	for name, entries := range h.truth.entries {
		last := make(map[string]*entry)
		for _, e := range entries {
			if e.Lease == 0 || e.shared() {
				continue // put by hand, or by several calls
			}
			if before := last[e.Who]; before != nil && before.Lease == e.Lease && !h.excused(before) {
				found = append(found, violation{At: h.truth.by(e.Created), Text: fmt.Sprintf("%s was in the queue of %s from revision %d to %d, and again from %d", e.Who, name, before.Created, before.Deleted, e.Created)})
			}
			last[e.Who] = e
		}
	}
	if h.load == loadCrowd {
		return found // each goroutine has a client of its own
	}
	for _, holds := range h.tenures() {
		byProcess := make(map[string][]*tenure)
		for _, t := range holds {
			if t.Op == opLock {
				byProcess[t.Process] = append(byProcess[t.Process], t)
			}
		}
		for process, own := range byProcess {
			slices.SortFunc(own, func(a, b *tenure) int { return cmp.Or(cmp.Compare(a.Token, b.Token), cmp.Compare(a.End, b.End)) })
			for i := 1; i < len(own); i++ {
				a, b := own[i-1], own[i] // a was served before b
				if a.Start.since(b.Start) > localOrderBound && !h.lives[process].gaps.meets(b.Start, b.Start.add(localOrderBound)) {
					found = append(found, violation{At: a.End, Text: fmt.Sprintf("%s asked for %s at %s and was served with token %d, before %s, who asked at %s, with %d", a.who(), a.Name, h.at(a.Start), a.Token, b.who(), h.at(b.Start), b.Token)})
				}
			}
		}
	}
	return found
}

// checkRemovals: the reason "deleted" means that somebody else removed the entry. Where neither an
// operator nor etcd did, it was another lock.
func checkRemovals(h *history) (found []violation) {
	for _, holds := range h.tenures() {
		for _, t := range holds {
			if t.entry == nil || h.excused(t.entry) {
				continue
			}
			const deleted = "deleted"
			if t.ended != nil && t.ended.Reason == deleted || t.unlock != nil && t.unlock.Reason == deleted {
				found = append(found, violation{At: h.truth.by(t.entry.Deleted), Text: fmt.Sprintf("%s; nobody but its owner had a right to delete its entry at revision %d", h.describe(t), t.entry.Deleted)})
			}
		}
	}
	for _, c := range h.calls {
		if c.Op == opLock && c.Outcome == failed && strings.Contains(c.Reason, "lost: deleted") && !h.excusedFor(c) {
			found = append(found, violation{At: c.End, Text: fmt.Sprintf("%s lost its place in the queue of %s, and no operator was there", c.who(), c.Name)})
		}
	}
	return found
}

// excusedFor is excused for a call that has got no hold.
func (h *history) excusedFor(c call) bool {
	return slices.ContainsFunc(h.truth.entries[c.Name], func(e *entry) bool {
		return e.of(c) && h.excused(e) && h.truth.notBefore(e.Created) <= c.End && c.Start <= h.truth.by(e.Deleted)
	})
}

// checkLeavings: an Unlock that was confirmed has removed the entry of the hold; and what a call has left that
// failed, or was not confirmed, goes within the TTL, or with the lease a TTL later; if its client can reach etcd,
// a longer TTL is no reason to take longer.
func checkLeavings(h *history) (found []violation) {
	released := make(map[string]call) // who began it -> what ended it
	for _, c := range h.calls {
		switch {
		case (c.Op == opLock || c.Op == opTry) && c.Outcome == failed:
			released[c.who()] = c
		case c.Op == opUnlock && c.End != 0:
			released[call{Process: c.Process, ID: c.Hold}.who()] = c
		}
	}
	for name, entries := range h.truth.entries {
		for _, e := range entries {
			c, is := released[e.Who]
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
			// A call whose session was lost while it waited has begun again with another. What it had put
			// before goes with the lost one's lease.
			if c.Op == opUnlock && c.Outcome == ok && e.Created == c.Token {
				bound = 0
			}
			if gone.since(c.End) > bound {
				found = append(found, violation{At: gone, Text: fmt.Sprintf("%s (%s of %s) ended at %s with %q; its entry of revision %d was there until %s at least", c.who(), c.Op, name, h.at(c.End), cmp.Or(c.Reason, "success"), e.Created, h.at(gone))})
			}
		}
	}
	return found
}

// byHand is what is done to a queue and to no process.
func byHand(c character) bool { return c.operator || c.kind == "foreign-entry" }

// troubled returns for how much of that time faults were felt by a process, but for those of some kinds, or it
// did not run.
func (h *history) troubled(process string, from, to instant, aftermath time.Duration, but func(character) bool) time.Duration {
	if to <= from {
		return 0
	}
	var felt spans
	slot := h.lives[process].slot
	for _, f := range h.firings {
		if c := characterOf(f.Kind); !but(c) && (c.lane == toCluster || f.Target == slot) {
			felt = append(felt, span{f.From, f.To.add(aftermath)})
		}
	}
	return min(append(felt, h.lives[process].gaps...).within(from, to), to.since(from))
}
