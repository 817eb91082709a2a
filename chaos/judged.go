package main

import (
	"cmp"
	"math"
	"slices"
	"time"
)

// history is everything that a round recorded, and all that the checks depend on.
type history struct {
	plan
	over     string
	load     string
	names    int
	mixed    int // names that are locked in all modes
	schedule []fault

	compacted bool // throughout the faults

	began    instant
	healed   instant // when all faults were over
	stopping instant // when the clients were asked to stop
	ended    instant // when they had stopped

	calls     []call // ordered by start
	lifetimes map[string]*lifetime
	firings   []firing
	truth     *truth
	accesses  []access         // of the resource, in order
	counters  map[string]int64 // of the resource, at the end
	set       map[string]bool  // the guarded set at the end, by the call that put the element
	left      []string         // keys and leases in etcd two TTLs after the end
	failures  []string         // of processes

	byLock, byCounter verdicts // counts of the two models

	holdsByName map[string][]*tenure // ordered by when they were reported; see tenures
	lockCalls   map[string]call      // calls of Lock and TryLock, by ref
	holdOf      map[string]*tenure   // by ref of a call that belongs to a hold
}

// lifetime is that of one client process.
type lifetime struct {
	name    string
	slot    int
	span            // To is when it was killed, 0 if it was not killed
	stopped spans   // by the harness
	gaps    spans   // when it did not run, by its own records and the harness's
	closing instant // when it began to close its clients, 0 if it did not
	sizes   []call  // its opSize records
}

// end returns the latest time at which the process may have run.
func (l *lifetime) end() instant {
	if l.To != 0 {
		return l.To
	}
	return math.MaxInt64
}

// tenure is a hold of one name as its holder recorded it.
type tenure struct {
	call     // Lock or TryLock, of that name
	errCalls []call
	ended    *call // the end of its context, unless by Unlock
	unlock   *call
	entry    *entry    // in etcd; nil if there was none
	parts    []*tenure // the holds of all names that were locked by the same call, this one included
}

// first reports whether it is about the first name that its call has locked.
func (t *tenure) first() bool { return t == t.parts[0] }

// sharedWith reports whether t passed its hold on to next, in the same process.
func (t *tenure) sharedWith(next *tenure) bool {
	return t.entry != nil && t.entry == next.entry && t.entry.passedOn() && t.Process == next.Process &&
		t.unlock != nil && t.unlock.Start <= next.End
}

// add adds the records of one process.
func (h *history) add(l *lifetime, calls []call) {
	l.gaps = append(l.gaps, l.stopped...)
	last := l.From
	for _, c := range calls {
		last = max(last, c.Start, c.End)
		switch c.Op {
		case opGap:
			l.gaps = append(l.gaps, span{c.Start, c.End})
		case opSize:
			l.sizes = append(l.sizes, c)
		case opClose:
			l.closing = c.Start
		}
	}
	// A process killed before it could record a gap has no other records of that time either.
	if l.To.since(last) > sizeEvery+minGap {
		l.gaps = append(l.gaps, span{last, l.To})
	}
	if h.lifetimes == nil {
		h.lifetimes = make(map[string]*lifetime)
	}
	h.lifetimes[l.name] = l
	h.calls = append(h.calls, calls...)
}

// tenures computes holdsByName, lockCalls and holdOf once, and returns the holds by name.
func (h *history) tenures() map[string][]*tenure {
	if h.holdsByName != nil {
		return h.holdsByName
	}
	h.holdsByName, h.lockCalls, h.holdOf = make(map[string][]*tenure), make(map[string]call), make(map[string]*tenure)
	known := make(map[string][]*tenure) // by ref of the call that began them
	for _, c := range h.calls {
		if c.Op == opLock || c.Op == opTry {
			h.lockCalls[c.ref()] = c
		}
		if c.holds() {
			known[c.ref()] = h.partsOf(c)
		}
	}
	for _, c := range h.calls {
		for _, t := range known[call{Process: c.Process, ID: c.Hold}.ref()] {
			t.add(c)
			h.holdOf[c.ref()] = t.parts[0]
		}
	}
	for _, parts := range known {
		for _, t := range parts {
			h.holdsByName[t.Name] = append(h.holdsByName[t.Name], t)
		}
	}
	for _, all := range h.holdsByName {
		slices.SortFunc(all, func(a, b *tenure) int { return cmp.Or(cmp.Compare(a.End, b.End), cmp.Compare(a.Start, b.Start)) })
	}
	return h.holdsByName
}

// partsOf returns the holds that a call began, one of each name.
func (h *history) partsOf(c call) []*tenure {
	parts := make([]*tenure, 0, 1+len(c.And))
	for _, i := range c.items() {
		t := &tenure{call: c}
		t.Name, t.Mode = i.Name, i.Mode
		t.entry = h.truth.entryOf(t.call)
		parts = append(parts, t)
	}
	for _, t := range parts {
		t.parts = parts
	}
	return parts
}

// add adds a call that belongs to the hold.
func (t *tenure) add(c call) {
	switch c.Op {
	case opErr:
		t.errCalls = append(t.errCalls, c)
	case opEnded:
		t.ended = &c
	case opUnlock:
		t.unlock = &c
	}
}

// reportedEnd returns when the hold was reported to be over or its holder released it, and
// the last time before that at which the holder ran and was certain of its hold.
func (h *history) reportedEnd(t *tenure) (end, certain instant) {
	l := h.lifetimes[t.Process]
	end = min(l.end(), h.ended)
	if l.closing != 0 {
		end = min(end, l.closing)
	}
	if t.ended != nil {
		end = min(end, t.ended.Start)
	}
	if t.unlock != nil {
		end = min(end, t.unlock.Start)
	}
	// Err returned nil, so the holder was certain then, whatever gaps there were before.
	from := instant(0)
	for _, c := range t.errCalls {
		if c.Outcome == ok {
			from = max(from, c.Start)
		}
	}
	if from == 0 {
		from = t.End
	}
	certain = end
	if gap, found := l.gaps.first(from, end); found {
		certain = max(from, gap)
	}
	return end, min(certain, end)
}

// since returns when the holder was first certain of its hold: when Err first returned nil,
// because the process may have been stopped as Lock returned, or else when Lock returned.
func (h *history) since(t *tenure) instant {
	for _, c := range t.errCalls {
		if c.Outcome == ok {
			return c.End
		}
	}
	return t.End
}

// lease returns the TTL of the locks of a process.
func (h *history) lease(process string) time.Duration { return h.leaseOf(h.lifetimes[process].slot) }

// aftermath is how long a fault has effects after it is over: connections are reopened, and
// leases that a new leader has extended expire.
func (h *history) aftermath() time.Duration { return h.ttl + 3*time.Second }

// undisturbed reports whether no fault affected the process in a slot (any process if slot
// is negative) during the interval or within aftermath before it. Faults for which except
// returns true do not count.
func (h *history) undisturbed(slot int, from, to instant, aftermath time.Duration, except func(firing) bool) bool {
	return !slices.ContainsFunc(h.firings, func(f firing) bool {
		c := traitsOf(f.Kind)
		felt := c.lane == toCluster || c.operator || slot < 0 || f.Target == slot
		return felt && span{f.From, f.To.add(aftermath)}.overlaps(from, to) && (except == nil || !except(f))
	})
}

// awake reports whether a process ran throughout the interval.
func (h *history) awake(process string, from, to instant) bool {
	l := h.lifetimes[process]
	return l != nil && l.end() > to && !l.gaps.overlaps(from, to)
}

// cutOff reports whether nothing that a process sent during the interval can have reached etcd.
func (h *history) cutOff(process string, from, to instant) bool {
	slot := h.lifetimes[process].slot
	return slices.ContainsFunc(h.firings, func(f firing) bool {
		began := f.From
		switch f.Kind {
		case "cut", "freeze":
		case "late-answer":
			began = began.add(h.ttl / 2) // it only delays at first
		default:
			return false
		}
		return f.Target == slot && began <= from && f.To >= to
	})
}

// excused reports whether an entry was deleted in a way that its holder could not foresee.
func (h *history) excused(e *entry) bool { return h.interfered(e) || h.formerLeader(e) }

// excusedHold reports whether one of the entries of a hold is excused. A hold of several
// names is lost as a whole.
func (h *history) excusedHold(t *tenure) bool {
	return slices.ContainsFunc(t.parts, func(part *tenure) bool { return part.entry != nil && h.excused(part.entry) })
}

// interfered reports whether an operator deleted the entry or revoked its lease.
func (h *history) interfered(e *entry) bool {
	return slices.ContainsFunc(h.firings, func(f firing) bool {
		switch f.Kind {
		case "delete-entry":
			return f.Name == e.Name && f.Token == e.Created && (f.Key == "" || f.Key == e.Key)
		case "revoke-lease":
			return f.Lease == e.Lease && e.Lease != 0
		}
		return false
	})
}

// passedOnUnaware reports whether t was passed on within its process after its entry was
// deleted in an excused way, and before the process had to know. Passing a hold on takes no
// request, so that the process knows only what the last audit of the lease reported.
func (h *history) passedOnUnaware(t *tenure) bool {
	e := t.entry
	if e == nil || e.Head == 0 || e.Deleted == 0 || !h.excused(e) {
		return false
	}
	gone := h.truth.by(e.Deleted)
	return slices.ContainsFunc(h.tenures()[t.Name], func(from *tenure) bool {
		if from == t || from.End > t.End || !from.sharedWith(t) {
			return false
		}
		passed := from.unlock.Start
		late := h.troubled(t.Process, gone, passed, h.aftermath(), byHand)
		return passed.since(gone)-late <= auditBound(h.lease(t.Process))
	})
}

// auditBound is how soon a holder learns that its entry was deleted: an audit runs every
// third of the TTL and takes two or three requests.
func auditBound(ttl time.Duration) time.Duration { return ttl/3 + 500*time.Millisecond }

// formerLeader reports whether the lease of an entry may have been revoked by a former
// leader that was stopped and has resumed: until it learns of its successor, it may revoke
// leases that the successor has renewed (etcd issue 15247). No client can foresee that.
func (h *history) formerLeader(e *entry) bool {
	if h.members < 3 || !e.Revoked {
		return false
	}
	from, to := h.truth.notBefore(e.Deleted), h.truth.by(e.Deleted)
	return slices.ContainsFunc(h.firings, func(f firing) bool {
		resumed := f.To
		if f.Kind == "stop-member-half" { // resumes again and again
			resumed = f.From
		}
		return f.Led && span{resumed, f.To.add(time.Second)}.overlaps(from, to)
	})
}
