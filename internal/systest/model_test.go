package systest

import (
	"cmp"
	"fmt"
	"slices"

	"github.com/jagregory/locker/v2"
)

// want is what a claim wants of one name.
type want struct {
	name  string
	limit int    // so many may hold the name together, itself included; 0 if it is shared
	value string // which no other has
}

// claim is a call of Lock, TryLock or Do, as the model sees it.
type claim struct {
	client int
	wants  []*want // one for each name
	own    bool    // on its client's own session rather than the shared one
	why    error   // why it has ended, nil until then
}

func (c *claim) String() string {
	text := fmt.Sprintf("client %d", c.client)
	for _, w := range c.wants {
		text += fmt.Sprintf(", %s on %s (%d)", w.value, w.name, w.limit)
	}
	return text
}

// of returns what a claim wants of a name, nil if nothing.
func (c *claim) of(name string) *want {
	i := slices.IndexFunc(c.wants, func(w *want) bool { return w.name == name })
	if i < 0 {
		return nil
	}
	return c.wants[i]
}

// due is the rule of who holds a name, given its own limit and those of the others ahead: none of them is of the other
// kind, shared or not, and unless it is shared, they are fewer than the smallest limit.
func due(own int, ahead []int) bool {
	for _, other := range ahead {
		if (other == 0) != (own == 0) {
			return false
		}
	}
	return own == 0 || len(ahead) < slices.Min(append(slices.Clone(ahead), own))
}

// due reports whether a claim is due for a name where these want it, the first first. If it is not among them, it
// comes after them.
func (c *claim) due(name string, all []*claim) bool {
	var ahead []int
	for _, other := range all {
		if other == c {
			break
		}
		ahead = append(ahead, other.of(name).limit)
	}
	return due(c.of(name).limit, ahead)
}

// model is what the library promises, without etcd, time or goroutines. In each client the claims on a name stand in a
// line, in the order of the calls. A claim that is due in each of its lines is in the queues of its names, where the
// claims of all clients are, and holds its names while it is due in each of the queues.
type model struct {
	claims []*claim            // that have not ended, in the order of the calls
	queues map[string][]*claim // of each name, the oldest first
	latest map[*claim]bool     // that came into the queues together: in what order, etcd decides
}

func newModel() model {
	return model{queues: make(map[string][]*claim), latest: make(map[*claim]bool)}
}

// line returns the claims of a client on a name.
func (m *model) line(client int, name string) (line []*claim) {
	for _, c := range m.claims {
		if c.client == client && c.of(name) != nil {
			line = append(line, c)
		}
	}
	return line
}

// queued reports whether a claim is in the queues.
func (m *model) queued(c *claim) bool { return slices.Contains(m.queues[c.wants[0].name], c) }

// holds reports whether a claim is a hold.
func (m *model) holds(c *claim) bool {
	return m.queued(c) && !slices.ContainsFunc(c.wants, func(w *want) bool { return !c.due(w.name, m.queues[w.name]) })
}

// holders returns those that hold a name by the rule, the oldest first. One that wants other names as well may still
// wait for those.
func (m *model) holders(name string) []*claim {
	queue := m.queues[name]
	n := slices.IndexFunc(queue, func(c *claim) bool { return !c.due(name, queue) })
	if n < 0 {
		return queue
	}
	return queue[:n]
}

// refuses reports whether a claim that is yet to be made would have to wait for a name.
func (m *model) refuses(c *claim, name string) bool {
	return !c.due(name, m.line(c.client, name)) || !c.due(name, m.queues[name])
}

// lock puts a claim at the end of its lines.
func (m *model) lock(c *claim) {
	m.claims = append(m.claims, c)
	m.advance()
}

// advance puts the claims that are due in each of their lines at the end of the queues.
func (m *model) advance() {
	for _, c := range m.claims {
		waits := slices.ContainsFunc(c.wants, func(w *want) bool { return !c.due(w.name, m.line(c.client, w.name)) })
		if waits || m.queued(c) {
			continue
		}
		for _, w := range c.wants {
			m.queues[w.name] = append(m.queues[w.name], c)
		}
		m.latest[c] = true
	}
}

// arrange takes in the order in which the values are in the queue of a name. It changes only that of the latest.
func (m *model) arrange(name string, values []string) {
	queue := m.queues[name]
	n := slices.IndexFunc(queue, func(c *claim) bool { return m.latest[c] })
	if n < 0 {
		return
	}
	at := func(c *claim) int { return slices.Index(values, c.of(name).value) }
	slices.SortStableFunc(queue[n:], func(a, b *claim) int { return cmp.Compare(at(a), at(b)) })
}

// end ends the claims for which is returns true, for a reason.
func (m *model) end(why error, is func(*claim) bool) {
	ended := make(map[*claim]bool)
	for _, c := range m.claims {
		if is(c) {
			c.why, ended[c] = why, true
		}
	}
	gone := func(c *claim) bool { return ended[c] }
	m.claims = slices.DeleteFunc(m.claims, gone)
	for name := range m.queues {
		m.queues[name] = slices.DeleteFunc(m.queues[name], gone)
	}
	m.advance()
}

// endOne ends a claim, unless it has ended before.
func (m *model) endOne(c *claim, why error) {
	m.end(why, func(other *claim) bool { return other == c })
}

// expire ends the claims on a session that is lost. A claim in line has no session yet,
// unless it was made with one.
func (m *model) expire(client int, own bool) {
	m.end(locker.ErrLost, func(c *claim) bool { return c.client == client && c.own == own && (own || m.queued(c)) })
}

// closeSession ends the claims on a client's own session.
func (m *model) closeSession(client int) {
	m.end(locker.ErrClosed, func(c *claim) bool { return c.client == client && c.own })
}

// closeClient ends the claims of a client.
func (m *model) closeClient(client int) {
	m.end(locker.ErrClosed, func(c *claim) bool { return c.client == client })
}
