//go:build unix

package faults

import (
	"cmp"
	"slices"
	"time"

	"github.com/jagregory/locker/v2"
)

// holdInterval is a hold that a client reported.
type holdInterval struct {
	by          string
	name        string
	token       int64
	from, until instant // the client was certain of the hold in between
}

// checkReports checks the reports of all clients: no two clients were certain of a hold
// of the same name at once, tokens increase from hold to hold, each holder was the head
// of the queue in etcd's history, the counters contain every confirmed write, and calls
// returned when their contexts ended.
func (s *scenario) checkReports(history map[string][]locker.State) {
	s.t.Helper()
	holds := make(map[string][]holdInterval)
	for _, p := range s.clients {
		for _, h := range p.holds() {
			holds[h.name] = append(holds[h.name], h)
		}
		for _, r := range p.reported() {
			if r.Late > lateSlack {
				s.t.Errorf("%s: %s %s returned %v after the end of its context", p.name, r.Verb, r.Name, r.Late)
			}
		}
	}
	if len(holds) == 0 {
		s.t.Error("no client ever held a lock")
	}
	for name, all := range holds {
		slices.SortFunc(all, func(a, b holdInterval) int { return cmp.Compare(a.from, b.from) })
		for i, h := range all {
			if !slices.ContainsFunc(history[name], func(state locker.State) bool { return state.Token == h.token }) {
				s.t.Errorf("%+v is not in etcd's history", h)
			}
			if i == 0 {
				continue
			}
			if before := all[i-1]; before.until > h.from {
				s.t.Errorf("%+v and %+v overlap", before, h)
			} else if before.token >= h.token {
				s.t.Errorf("the token of %+v is not larger than that of %+v", h, before)
			}
		}
		s.checkCounter(name)
	}
}

// lateSlack is how long after the end of its context a call may return. A failed call
// waits up to a tenth of a second for the removal of its entry. The rest is for threads
// that wait for a processor while the thread of the meter has one.
const lateSlack = 250 * time.Millisecond

// holds returns the holds that a client reported.
func (p *process) holds() (holds []holdInterval) {
	reports := p.reported()
	for _, r := range reports {
		h := holdInterval{by: p.name, name: r.Name, token: r.Token}
		switch {
		case r.Verb == "cycle" && r.Token != 0:
			h.from, h.until = r.Began, r.Until
		case (r.Verb == "lock" || r.Verb == "try") && r.Kind == "":
			h.from, h.until = r.At, p.killed
			if i := slices.IndexFunc(reports, func(end report) bool { return end.ID == r.ID && end.Verb == "ended" }); i >= 0 {
				h.until = max(h.from, reports[i].Until)
			}
		default:
			continue
		}
		holds = append(holds, h)
	}
	return holds
}

// checkCounter checks the counter of a name that the cycles under load increment.
func (s *scenario) checkCounter(name string) {
	s.t.Helper()
	confirmed, unknown := int64(0), int64(0)
	for _, p := range s.clients {
		for _, r := range p.reported() {
			if r.Name == name && r.Wrote == "yes" {
				confirmed++
			} else if r.Name == name && r.Wrote == "unknown" {
				unknown++
			}
		}
	}
	ctx, cancel := s.testContext()
	defer cancel()
	n, err := counter(ctx, s.etcd, name)
	s.check(err)
	if n < confirmed || n > confirmed+unknown {
		s.t.Errorf("the counter of %s is %d after %d confirmed writes and %d unknown ones", name, n, confirmed, unknown)
	}
}
