package main

import (
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"time"
)

// report writes what happened in a round.
func report(w io.Writer, h *history) {
	s := h.summary()
	s.write(w)
	if h.compacted {
		fmt.Fprintln(w, "  etcd was compacted every 200ms from the first fault to the last")
	}
	if h.hasLong() {
		fmt.Fprintf(w, "  the locks of client %d had a TTL of %v\n", longSlot, longTTL)
	}
	for _, problem := range s.problems {
		fmt.Fprintf(w, "  a fault did not go as planned: %s\n", problem)
	}
}

func (s summary) write(w io.Writer) {
	fmt.Fprintf(w, "  %d holds, %d of them passed on within a process; %d calls gave up, %d calls of TryLock were refused; %d clients killed\n",
		s.holds, s.shared, s.gaveUp, s.denied, s.killed)
	if s.mixed != (mixture{}) {
		fmt.Fprintf(w, "  on mixed names: %v\n", s.mixed)
	}
	fmt.Fprintf(w, "  %d holds lost: %s; %d more holds of clients that were killed\n", total(s.lost), tally(s.lost), s.ofKilled)
	fmt.Fprintf(w, "  guarded writes: %d applied, %d refused, %d in doubt; %d attempted after the hold\n", s.writes[ok], s.writes[lost]+s.writes[failed], s.writes[unknown]+s.writes[unsure], s.stale)
	fmt.Fprintf(w, "  fenced increments: %d applied, %d refused, %d in doubt\n", s.adds[ok], s.adds[lost], s.adds[unknown]+s.adds[unsure])
	if s.former > 0 {
		fmt.Fprintf(w, "  %d entries of holds expired when a stopped member resumed; their times are not checked\n", s.former)
	}
	if n := len(s.margins); n > 0 {
		fmt.Fprintf(w, "  losses were reported %v to %v before the lease expired in etcd (%d losses of clients cut off until then)\n",
			slices.Min(s.margins).Round(time.Millisecond), slices.Max(s.margins).Round(time.Millisecond), n)
	}
	for _, times := range []struct {
		what  string
		after []time.Duration
	}{{"take-over from a killed holder without other faults", s.alone}, {"take-over from a killed holder during other faults", s.among}} {
		if len(times.after) > 0 {
			fmt.Fprintf(w, "  %s: %s\n", times.what, percentiles(times.after))
		}
	}
	fmt.Fprintf(w, "  %d states reported by watches; at most %.1f MiB of memory and %d goroutines in a client\n", s.states, float64(s.memory)/(1<<20), s.goroutines)
	fmt.Fprintf(w, "  %d changes in etcd; lock model: %v; counter model: %v\n", s.changes, s.byLock, s.byCounter)
	fmt.Fprintf(w, "  faults: %s\n", tally(s.faults))
}

// summary holds the figures of one or more rounds.
type summary struct {
	holds, gaveUp, denied, killed, stale, states, ofKilled int
	changes                                                int
	byLock, byCounter                                      verdicts
	shared                                                 int // holds passed on by another goroutine
	former                                                 int // entries that a former leader may have revoked
	lost, faults                                           map[string]int
	writes, adds                                           map[outcome]int
	margins                                                []time.Duration // between the report of a loss and the expiry of the lease
	alone, among                                           []time.Duration // take-overs
	memory, goroutines                                     int64
	problems                                               []string // faults that failed
	mixed                                                  mixture
}

// mixture counts the holds of names that are locked in all modes.
type mixture struct {
	exclusive, shared, limited, several int // holds; those of two names count only as several
	together                            int // the most entries that held a name at one time
}

func (m mixture) String() string {
	return fmt.Sprintf("%d holds exclusive, %d shared, %d limited, %d of two names; at most %d held a name together", m.exclusive, m.shared, m.limited, m.several, m.together)
}

// count counts a hold.
func (m *mixture) count(c call) {
	switch {
	case !isMixed(c.Name):
	case len(c.And) > 0:
		m.several++
	case c.Mode == exclusive:
		m.exclusive++
	case c.Mode == shared:
		m.shared++
	default:
		m.limited++
	}
}

// add adds the figures of another round.
func (m *mixture) add(other mixture) {
	m.exclusive += other.exclusive
	m.shared += other.shared
	m.limited += other.limited
	m.several += other.several
	m.together = max(m.together, other.together)
}

func newSummary() summary {
	return summary{lost: make(map[string]int), faults: make(map[string]int), writes: make(map[outcome]int), adds: make(map[outcome]int)}
}

// add adds the figures of another round.
func (s *summary) add(other summary) {
	for _, n := range []struct {
		to   *int
		more int
	}{
		{&s.holds, other.holds}, {&s.gaveUp, other.gaveUp}, {&s.denied, other.denied}, {&s.killed, other.killed},
		{&s.stale, other.stale}, {&s.states, other.states}, {&s.ofKilled, other.ofKilled}, {&s.changes, other.changes},
		{&s.shared, other.shared}, {&s.former, other.former},
	} {
		*n.to += n.more
	}
	s.mixed.add(other.mixed)
	s.byLock.add(other.byLock)
	s.byCounter.add(other.byCounter)
	addCounts(s.lost, other.lost)
	addCounts(s.faults, other.faults)
	addCounts(s.writes, other.writes)
	addCounts(s.adds, other.adds)
	s.margins = append(s.margins, other.margins...)
	s.alone = append(s.alone, other.alone...)
	s.among = append(s.among, other.among...)
	s.memory, s.goroutines = max(s.memory, other.memory), max(s.goroutines, other.goroutines)
}

func addCounts[K comparable](to, more map[K]int) {
	for k, n := range more {
		to[k] += n
	}
}

func total(counts map[string]int) (n int) {
	for _, count := range counts {
		n += count
	}
	return n
}

func (h *history) summary() summary {
	s := newSummary()
	s.changes, s.byLock, s.byCounter = len(h.truth.changes), h.byLock, h.byCounter
	for _, c := range h.calls {
		s.count(c)
	}
	for _, f := range h.firings {
		if f.Err == "" {
			s.faults[string(f.Kind)]++
		} else {
			s.problems = append(s.problems, fmt.Sprintf("%v: %s", f.fault, f.Err))
		}
	}
	for _, l := range h.lifetimes {
		if l.To != 0 {
			s.killed++
		}
		for _, c := range l.sizes {
			s.memory, s.goroutines = max(s.memory, c.Value), max(s.goroutines, c.Count)
		}
	}
	for _, o := range h.takeOvers() {
		if o.from.first() {
			s.ofKilled++
		}
		switch {
		case o.by == nil:
		case o.alone:
			s.alone = append(s.alone, o.after)
		default:
			s.among = append(s.among, o.after)
		}
	}
	for _, holds := range h.tenures() {
		for i := 1; i < len(holds); i++ {
			if holds[i-1].sharedWith(holds[i]) {
				s.shared++
			}
		}
	}
	s.addMargins(h)
	s.mixed.together = h.truth.together()
	for _, entries := range h.truth.entries {
		for _, e := range entries {
			if c, known := h.lockCalls[e.Owner]; known && c.holds() && e.Deleted != 0 && h.formerLeader(e) && !h.interfered(e) {
				s.former++
			}
		}
	}
	return s
}

func (s *summary) count(c call) {
	switch c.Op {
	case opLock, opTry:
		switch {
		case c.Outcome == ok:
			s.holds++
			s.mixed.count(c)
		case c.Op == opTry && strings.Contains(c.Reason, "locked by "):
			s.denied++
		default:
			s.gaveUp++
		}
	case opEnded:
		s.lost[c.Reason]++
	case opCommit:
		s.writes[c.Outcome]++
	case opStale:
		s.stale++
	case opAdd:
		s.adds[c.Outcome]++
	case opSaw:
		s.states++
	}
}

// addMargins adds how long before etcd revoked the expired lease each loss was reported.
// Only processes that ran and were cut off until then count: a client that reaches etcd
// revokes the lease of a lost session at once, so that its entry goes early.
func (s *summary) addMargins(h *history) {
	for _, holds := range h.tenures() {
		for _, t := range holds {
			if t.ended == nil || t.ended.Reason != "expired" || t.entry == nil || !t.entry.Revoked || h.excused(t.entry) {
				continue
			}
			end, certain := h.reportedEnd(t)
			gone := h.truth.by(t.entry.Deleted)
			if certain < end || !h.cutOff(t.Process, end, gone) {
				continue
			}
			s.margins = append(s.margins, gone.since(end))
		}
	}
}

func tally(counts map[string]int) string {
	var parts []string
	for _, what := range slices.Sorted(maps.Keys(counts)) {
		parts = append(parts, fmt.Sprintf("%s %d", what, counts[what]))
	}
	if len(parts) == 0 {
		return "none"
	}
	return strings.Join(parts, ", ")
}

func percentiles(all []time.Duration) string {
	slices.Sort(all)
	at := func(p int) time.Duration { return all[(len(all)-1)*p/100].Round(time.Millisecond) }
	return fmt.Sprintf("p50 %v, p90 %v, p99 %v, max %v (%d)", at(50), at(90), at(99), at(100), len(all))
}

// writeViolations writes the first violations of each invariant, with the faults at the time.
func writeViolations(w io.Writer, h *history, all []violation) {
	const enough = 3
	byInvariant := make(map[string][]violation)
	for _, v := range all {
		byInvariant[v.Invariant] = append(byInvariant[v.Invariant], v)
	}
	for _, name := range slices.Sorted(maps.Keys(byInvariant)) {
		found := byInvariant[name]
		slices.SortFunc(found, func(a, b violation) int { return int(a.At - b.At) })
		fmt.Fprintf(w, "  VIOLATED: %s (%d times)\n", name, len(found))
		for _, v := range found[:min(enough, len(found))] {
			fmt.Fprintf(w, "    %s\n", v.Text)
			for _, f := range h.firings {
				if (span{f.From, f.To.add(h.ttl)}).overlaps(v.At.add(-h.ttl), v.At) {
					fmt.Fprintf(w, "      meanwhile %s on %d from %s to %s\n", f.Kind, f.Target, h.at(f.From), h.at(f.To))
				}
			}
		}
	}
}

// missing returns what a checked round lacks to prove anything.
func (h *history) missing() (missing []string) {
	s := h.summary()
	need := func(what string, have, least int) {
		if have < least {
			missing = append(missing, fmt.Sprintf("%s: %d, want at least %d", what, have, least))
		}
	}
	seconds := int(h.duration / time.Second)
	need("faults", total(s.faults), 1)
	need("names decided by the lock model", s.byLock.decided, 1)
	if h.load == loadNames { // there are no increments
		need("holds", s.holds, h.names*h.processes)
		need("guarded writes", s.writes[ok], seconds)
		return missing
	}
	need("holds", s.holds, 2*seconds)
	need("fenced increments", s.adds[ok], seconds)
	need("names decided by the counter model", s.byCounter.decided, 1)
	if h.over != overLocker {
		return missing
	}
	need("guarded writes", s.writes[ok], seconds)
	need("states reported by watches", s.states, seconds)
	if h.load == "" && h.duration >= 10*time.Second {
		need("holds passed on within a process", s.shared, 1)
	}
	if h.mixed > 0 && h.duration >= 10*time.Second {
		need("shared holds", s.mixed.shared, 1)
		need("holds of two names", s.mixed.several, min(h.mixed-1, 1))
		need("limited holds", s.mixed.limited, min(h.mixed-1, 1))
		need("holders of one name at one time", s.mixed.together, 3)
	}
	if len(h.only) == 0 && h.duration >= 20*time.Second {
		need("losses", total(s.lost), 1)
	}
	return missing
}

// unfired returns the kinds of fault that should have happened but did not.
func (h *history) unfired() (kinds []string) {
	if h.over != overLocker {
		return nil
	}
	fired := h.summary().faults
	for _, l := range []lane{toClients, toCluster} {
		for _, k := range h.kinds(l) {
			// Faults of the second half may be crowded out by others that took longer.
			planned := slices.ContainsFunc(h.schedule, func(f fault) bool { return f.Kind == k && f.At < h.duration/2 })
			if (planned || h.duration >= everyKind) && fired[string(k)] == 0 {
				kinds = append(kinds, string(k))
			}
		}
	}
	return kinds
}

// everyKind is a duration in which every kind of fault happens.
const everyKind = 60 * time.Second
