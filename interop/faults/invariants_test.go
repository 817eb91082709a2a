//go:build unix

package faults

import (
	"cmp"
	"slices"
	"time"

	"github.com/jagregory/locker/v2"
)

// hold is what the clients have reported of one.
type hold struct {
	by          string
	name        string
	token       int64
	from, until instant // for certain
}

// judge checks what all clients have reported: no two were certain of a name at once, tokens grow from
// hold to hold, each was the head of the queue by etcd's own account, counters have counted all that was
// confirmed, and calls have ended with their contexts.
func (s *scene) judge(truth map[string][]locker.State) {
	s.t.Helper()
	holds := make(map[string][]hold)
	for _, p := range s.clients {
		for _, h := range p.holds() {
			holds[h.name] = append(holds[h.name], h)
		}
		for _, r := range p.said() {
			if r.Late > grace {
				s.t.Errorf("%s: %s %s returned %v after the end of its context", p.name, r.Verb, r.Name, r.Late)
			}
		}
	}
	if len(holds) == 0 {
		s.t.Error("nobody has ever held anything")
	}
	for name, all := range holds {
		slices.SortFunc(all, func(a, b hold) int { return cmp.Compare(a.from, b.from) })
		for i, h := range all {
			if !slices.ContainsFunc(truth[name], func(state locker.State) bool { return state.Token == h.token }) {
				s.t.Errorf("%+v was never the holder in etcd", h)
			}
			if i == 0 {
				continue
			}
			if before := all[i-1]; before.until > h.from {
				s.t.Errorf("%+v and %+v held at once", before, h)
			} else if before.token >= h.token {
				s.t.Errorf("the token of %+v is not larger than that of %+v", h, before)
			}
		}
		s.counted(name)
	}
}

// grace is how much later than its context a call may end: a failed call uses a tenth of a second to see
// its place in the queue gone. The rest is for threads that wait for a processor while that of the meter
// has one.
const grace = 250 * time.Millisecond

// holds returns the holds that a client has reported.
func (p *process) holds() (holds []hold) {
	reports := p.said()
	for _, r := range reports {
		h := hold{by: p.name, name: r.Name, token: r.Token}
		switch {
		case r.Verb == "turn" && r.Token != 0:
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

// counted checks the counter that turns under load add to.
func (s *scene) counted(name string) {
	s.t.Helper()
	confirmed, unknown := int64(0), int64(0)
	for _, p := range s.clients {
		for _, r := range p.said() {
			if r.Name == name && r.Wrote == "yes" {
				confirmed++
			} else if r.Name == name && r.Wrote == "unknown" {
				unknown++
			}
		}
	}
	ctx, cancel := s.within()
	defer cancel()
	n, err := counter(ctx, s.etcd, name)
	s.check(err)
	if n < confirmed || n > confirmed+unknown {
		s.t.Errorf("counted under %s: %d, confirmed were %d and unknown %d", name, n, confirmed, unknown)
	}
}
