package main

import (
	"cmp"
	"math"
	"slices"
	"time"
)

// history is all that a round has left behind to be judged. The checks are functions of it and of
// nothing else.
type history struct {
	plan
	over     string
	load     string
	names    int
	schedule []fault

	compacted bool // all the time

	began    instant
	healed   instant // all faults are over
	stopping instant // the clients were told to end
	ended    instant // and have ended

	calls    []call // by the time they began
	lives    map[string]*life
	firings  []firing
	truth    *truth
	accesses []access         // of the resource, in order
	counters map[string]int64 // of the resource, at the end
	set      map[string]bool  // the guarded set at the end, by who put the element
	left     []string         // what was left in etcd two TTLs after the end
	failures []string         // of processes

	byLock, byCounter verdicts // of the models

	taken    map[string][]*tenure // holds by name, in the order in which they were reported
	acquired map[string]call      // the calls that began them, or failed to, by who
}

// life is that of one client process.
type life struct {
	name    string
	slot    int
	span            // To is when it was killed, 0 if it was not
	stopped spans   // by the harness
	gaps    spans   // when it did not run, as it noticed, and as the harness knows
	closing instant // when it began to close everything, 0 if it did not
	sizes   []call  // of its memory
}

// end returns when the process ended, at the latest.
func (l *life) end() instant {
	if l.To != 0 {
		return l.To
	}
	return math.MaxInt64
}

// tenure is a hold as its holder saw it.
type tenure struct {
	call          // that began it
	looks  []call // at Err
	ended  *call  // the end of its context, unless it was given up
	unlock *call
	entry  *entry // in the truth; nil if there is none
}

// sharedWith reports whether both had one hold, which the one who had it first passed on to the other:
// within a process, and one after the other.
func (t *tenure) sharedWith(next *tenure) bool {
	return t.entry != nil && t.entry == next.entry && t.entry.shared() && t.Process == next.Process &&
		t.unlock != nil && t.unlock.Start <= next.End
}

// add takes in what one process has written.
func (h *history) add(l *life, calls []call) {
	l.gaps = append(l.gaps, l.stopped...)
	heard := l.From
	for _, c := range calls {
		heard = max(heard, c.Start, c.End)
		switch c.Op {
		case opGap:
			l.gaps = append(l.gaps, span{c.Start, c.End})
		case opSize:
			l.sizes = append(l.sizes, c)
		case opClose:
			l.closing = c.Start
		}
	}
	// Who is killed before he has noticed that he did not run cannot tell: but he was silent.
	if l.To.since(heard) > sizeEvery+gapNoticed {
		l.gaps = append(l.gaps, span{heard, l.To})
	}
	if h.lives == nil {
		h.lives = make(map[string]*life)
	}
	h.lives[l.name] = l
	h.calls = append(h.calls, calls...)
}

// tenures works out the holds, once.
func (h *history) tenures() map[string][]*tenure {
	if h.taken != nil {
		return h.taken
	}
	h.taken, h.acquired = make(map[string][]*tenure), make(map[string]call)
	type id struct {
		process string
		hold    int64
	}
	known := make(map[id]*tenure)
	for _, c := range h.calls {
		if c.Op == opLock || c.Op == opTry {
			h.acquired[c.who()] = c
		}
		if c.holds() {
			t := &tenure{call: c, entry: h.truth.entry(c.Name, c.Token)}
			known[id{c.Process, c.ID}] = t
			h.taken[c.Name] = append(h.taken[c.Name], t)
		}
	}
	for _, c := range h.calls {
		t := known[id{c.Process, c.Hold}]
		switch {
		case t == nil:
		case c.Op == opErr:
			t.looks = append(t.looks, c)
		case c.Op == opEnded:
			t.ended = &c
		case c.Op == opUnlock:
			t.unlock = &c
		}
	}
	for _, all := range h.taken {
		slices.SortFunc(all, func(a, b *tenure) int { return cmp.Compare(a.End, b.End) })
	}
	return h.taken
}

// told returns when the holder was told that it holds no more, or gave it up itself, and the last
// moment before that at which it was certain and ran.
func (h *history) told(t *tenure) (told, certain instant) {
	l := h.lives[t.Process]
	told = min(l.end(), h.ended)
	if l.closing != 0 {
		told = min(told, l.closing)
	}
	if t.ended != nil {
		told = min(told, t.ended.Start)
	}
	if t.unlock != nil {
		told = min(told, t.unlock.Start)
	}
	// Whoever looked and saw no error was certain up to then, whatever happened to the process.
	from := instant(0)
	for _, look := range t.looks {
		if look.Outcome == ok {
			from = max(from, look.Start)
		}
	}
	if from == 0 {
		from = t.End
	}
	certain = told
	if gap, found := l.gaps.first(from, told); found {
		certain = max(from, gap)
	}
	return told, min(certain, told)
}

// since returns from when on the holder was certain for sure. A process that was stopped as Lock
// returned is judged by the first look after.
func (h *history) since(t *tenure) instant {
	for _, look := range t.looks {
		if look.Outcome == ok {
			return look.End
		}
	}
	return t.End
}

// lease returns the TTL of the locks of a process.
func (h *history) lease(process string) time.Duration { return h.leaseOf(h.lives[process].slot) }

// aftermath is how long a fault is felt after it is over: connections have to be made again, and
// leases that a new leader has prolonged to run out.
func (h *history) aftermath() time.Duration { return h.ttl + 3*time.Second }

// calmFor reports whether nothing was done in that time, nor shortly before, that a process of that
// slot could have felt. A slot below 0 stands for any.
func (h *history) calmFor(slot int, from, to instant, aftermath time.Duration, except func(firing) bool) bool {
	return !slices.ContainsFunc(h.firings, func(f firing) bool {
		c := characterOf(f.Kind)
		felt := c.lane == toCluster || c.operator || slot < 0 || f.Target == slot
		return felt && span{f.From, f.To.add(aftermath)}.meets(from, to) && (except == nil || !except(f))
	})
}

// awake reports whether a process ran all the time.
func (h *history) awake(process string, from, to instant) bool {
	l := h.lives[process]
	return l != nil && l.end() > to && !l.gaps.meets(from, to)
}

// cutOff reports whether nothing that a process sent in that time can have reached etcd.
func (h *history) cutOff(process string, from, to instant) bool {
	slot := h.lives[process].slot
	return slices.ContainsFunc(h.firings, func(f firing) bool {
		began := f.From
		switch f.Kind {
		case "cut", "freeze":
		case "late-answer":
			began = began.add(h.ttl / 2) // it starts with a delay
		default:
			return false
		}
		return f.Target == slot && began <= from && f.To >= to
	})
}

// excused reports whether an entry went in a way that its holder could not foresee.
func (h *history) excused(e *entry) bool { return h.interfered(e) || h.formerLeader(e) }

// interfered reports whether an operator has taken away that entry, or the lease it was attached to.
func (h *history) interfered(e *entry) bool {
	return slices.ContainsFunc(h.firings, func(f firing) bool {
		switch f.Kind {
		case "delete-entry":
			return f.Name == e.Name && f.Token == e.Created
		case "revoke-lease":
			return f.Lease == e.Lease && e.Lease != 0
		}
		return false
	})
}

// passedOnUnaware reports whether t was passed on within its process although its entry had gone already,
// in a way that nobody could foresee, and before the process had to know. To pass a hold on takes no
// request, so that who does it knows what the last audit of the lease has told.
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

// auditBound is how long after its entry was deleted a holder learns it: there is an audit each third of
// the TTL, which takes two or three requests.
func auditBound(ttl time.Duration) time.Duration { return ttl/3 + 500*time.Millisecond }

// formerLeader reports whether the lease of an entry may have been revoked by a leader that was stopped
// and has woken up: it knows nothing of the renewals that its successor has answered, and may act
// before it learns that it has one (etcd issue 15247). That is a promise of etcd broken, which no
// client can see coming.
func (h *history) formerLeader(e *entry) bool {
	if h.members < 3 || !e.Revoked {
		return false
	}
	from, to := h.truth.notBefore(e.Deleted), h.truth.by(e.Deleted)
	return slices.ContainsFunc(h.firings, func(f firing) bool {
		woke := f.To // a member that is stopped half of the time wakes up all the time
		if f.Kind == "stop-member-half" {
			woke = f.From
		}
		return f.Led && span{woke, f.To.add(time.Second)}.meets(from, to)
	})
}
