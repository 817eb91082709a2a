package systest

import (
	"fmt"
	"slices"

	"github.com/jagregory/locker/v2"
)

// claim is a call of Lock or TryLock, as the model sees it.
type claim struct {
	client int
	name   string
	own    bool   // on its client's own session rather than the shared one
	value  string // which no other claim has
	why    error  // why it has ended, nil until then
}

func (c *claim) String() string {
	return fmt.Sprintf("%s of client %d on %s", c.value, c.client, c.name)
}

// model is what the library promises, without etcd, time or goroutines: for each name a
// queue, and in each client a line of claims on the name. A client has at most one claim in
// each queue, the one in front of its line.
type model struct {
	queues map[string][]*claim
	lines  map[place][]*claim // the claims behind the one in the queue
}

type place struct {
	client int
	name   string
}

func newModel() model {
	return model{queues: make(map[string][]*claim), lines: make(map[place][]*claim)}
}

func (c *claim) place() place { return place{c.client, c.name} }

// busy reports whether a claim of the client is in the queue of the name.
func (m model) busy(at place) bool {
	return slices.ContainsFunc(m.queues[at.name], func(c *claim) bool { return c.client == at.client })
}

// holder returns the claim that holds a name, or nil.
func (m model) holder(name string) *claim {
	if len(m.queues[name]) == 0 {
		return nil
	}
	return m.queues[name][0]
}

// holds reports whether a claim is a hold.
func (m model) holds(c *claim) bool { return m.holder(c.name) == c }

// lock puts a claim into the queue or, behind another of its client, into the line.
func (m model) lock(c *claim) {
	if at := c.place(); m.busy(at) {
		m.lines[at] = append(m.lines[at], c)
	} else {
		m.queues[c.name] = append(m.queues[c.name], c)
	}
}

// end ends a claim, for a reason. If it was in the queue, the next in line follows it,
// at the end.
func (m model) end(c *claim, why error) {
	if c.why != nil {
		return
	}
	c.why = why
	at := c.place()
	is := func(other *claim) bool { return other == c }
	if !slices.ContainsFunc(m.queues[c.name], is) {
		m.lines[at] = slices.DeleteFunc(m.lines[at], is)
		return
	}
	m.queues[c.name] = slices.DeleteFunc(m.queues[c.name], is)
	if line := m.lines[at]; len(line) > 0 {
		m.lines[at] = slices.Clone(line[1:])
		m.queues[c.name] = append(m.queues[c.name], line[0])
	}
}

// endAll ends all claims for which is returns true, those in line first, so that none of
// them moves up.
func (m model) endAll(why error, is func(*claim) bool) {
	var all []*claim
	for _, line := range m.lines {
		all = append(all, line...)
	}
	for _, queue := range m.queues {
		all = append(all, queue...)
	}
	for _, c := range all {
		if is(c) {
			m.end(c, why)
		}
	}
}

// expire ends the claims on a session that is lost. A claim in line has no session yet,
// unless it was made with one.
func (m model) expire(client int, own bool) {
	m.endAll(locker.ErrLost, func(c *claim) bool {
		return c.client == client && c.own == own && (own || slices.Contains(m.queues[c.name], c))
	})
}

// closeSession ends the claims on a client's own session.
func (m model) closeSession(client int) {
	m.endAll(locker.ErrClosed, func(c *claim) bool { return c.client == client && c.own })
}

// closeClient ends the claims of a client.
func (m model) closeClient(client int) {
	m.endAll(locker.ErrClosed, func(c *claim) bool { return c.client == client })
}
