package line

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
)

// model is what the lines should be: for each name those that stand in its line, in order, and their numbers.
type model struct {
	*testing.T
	*rand.Rand
	lines
	standing []*call // in all lines, in the order of their arrival
	left     []*call
	called   map[*waiter]bool
	number   map[*Place[*waiter]]int32
	tries    []*failedTry // that wait for somebody to leave
	done     []string     // the last steps
}

// failedTry is a TryJoin that has something to wait for.
type failedTry struct {
	name  string
	moved <-chan struct{}
	due   bool // somebody has left
}

// Each step is checked against the rule and the order of arrival, without anything that makes the lines fast.
func TestModel_RandomStepsAgree(t *testing.T) {
	t.Parallel()
	seed := rand.Uint64()
	t.Logf("the seed is %#x", seed) // put it here to repeat a failure
	synctest.Test(t, func(t *testing.T) {
		m := &model{T: t, Rand: rand.New(rand.NewPCG(seed, 0)), lines: newLines(), called: make(map[*waiter]bool), number: make(map[*Place[*waiter]]int32)}
		for range 2000 {
			m.step()
			synctest.Wait()
			if m.check(); t.Failed() {
				t.Fatalf("after these steps:\n%s", strings.Join(m.done[max(0, len(m.done)-30):], "\n"))
			}
		}
		for len(m.standing) > 0 {
			c := m.standing[0] // it is in front of all its lines
			m.Leave(c.waiter)
			m.gone(c)
			synctest.Wait()
			m.check()
		}
		if len(m.byName) > 0 {
			t.Errorf("%d lines are left in the end", len(m.byName))
		}
	})
}

// some returns a waiter that wants some of the names, each as one of some kind.
func (m *model) some() *waiter {
	w := new(waiter)
	for _, i := range m.Perm(3)[:1+m.IntN(3)*m.IntN(2)] {
		w.places = append(w.places, Place[*waiter]{Name: string(rune('a' + i)), Kind: []int16{0, 0, only, only, 2, 3}[m.IntN(6)]})
	}
	return w
}

// pick returns one of those that are as they should be, nil if there is none.
func (m *model) pick(calls []*call, as func(*call) bool) *call {
	calls = slices.DeleteFunc(slices.Clone(calls), func(c *call) bool { return !as(c) })
	if len(calls) == 0 {
		return nil
	}
	return calls[m.IntN(len(calls))]
}

func (m *model) step() {
	what := m.IntN(12)
	switch {
	case what < 2 && len(m.standing) < 10:
		c := m.joins(m.T, m.some())
		m.did("joins", c)
		m.standing = append(m.standing, c)
	case what == 3 || what == 2:
		m.try()
	case what == 4:
		if c := m.pick(m.standing, func(c *call) bool { return !m.served(c) && c.ended == nil }); c != nil {
			m.did("gives up", c)
			if !m.called[c.waiter] {
				m.gone(c)
			}
			c.cancel()
		}
	case what == 5:
		if c := m.pick(m.standing, m.served); c != nil {
			m.call(c)
		}
	case what == 6:
		if c := m.pick(m.left, func(*call) bool { return true }); c != nil {
			m.did("leaves again", c)
			m.Leave(c.waiter)
		}
	case what == 7 || what == 8:
		if c := m.pick(m.standing, func(c *call) bool { return m.served(c) && !c.over }); c != nil {
			c.over = true
			m.did("is over", c)
		}
	case what == 9:
		if c := m.pick(m.standing, func(c *call) bool { return m.served(c) && c.over }); c != nil {
			m.replace(c)
		}
	default:
		if c := m.pick(m.standing, m.served); c != nil {
			m.did("leaves", c)
			m.Leave(c.waiter)
			m.gone(c)
		}
	}
}

func (m *model) try() {
	c := &call{waiter: m.some(), returned: true, mine: true}
	m.did("tries", c)
	m.standing = append(m.standing, c)
	want := m.served(c)
	waits := make(map[string]bool) // where it would have to wait, and whether all those ahead are over
	for i := range c.places {
		if p := &c.places[i]; !m.front(p) {
			waits[p.Name] = !slices.ContainsFunc(m.line(p.Name), func(other *call) bool { return other != c && !other.over })
		}
	}
	ok, name, moved := m.TryJoin(c.waiter)
	if ok != want {
		m.Errorf("the try returns %v", ok)
	}
	if ok {
		return
	}
	m.standing = m.standing[:len(m.standing)-1]
	over, wait := waits[name]
	if !wait || over != (moved != nil) {
		m.Errorf("of %v it is to wait for %q, and told of moves: %v", waits, name, moved != nil)
	}
	for _, over := range waits {
		if !over && moved != nil {
			m.Errorf("of %v it is to wait for %q", waits, name)
		}
	}
	if moved != nil {
		m.tries = append(m.tries, &failedTry{name: name, moved: moved})
	}
}

func (m *model) call(c *call) {
	var want *waiter
	if line := m.line(c.places[0].Name); len(c.places) == 1 && len(line) > 1 && line[0] == c {
		if next := line[1]; len(next.places) == 1 && !m.served(next) && !m.called[next.waiter] {
			want = next.waiter
		}
	}
	if want != nil {
		m.called[want] = true
		m.give(&want.places[0])
	}
	m.did("calls", c)
	if got := m.Call(c.waiter); got != want {
		m.Errorf("%p was called, want %p", got, want)
	}
}

func (m *model) replace(c *call) {
	next := &call{waiter: new(waiter), returned: true, mine: true}
	for i := range c.places {
		p := &c.places[i]
		next.places = append(next.places, Place[*waiter]{Name: p.Name, Kind: p.Kind})
	}
	for i := range c.places {
		m.number[&next.places[i]] = m.number[&c.places[i]]
	}
	m.did("is replaced", c)
	m.Replace(c.waiter, next.waiter)
	i := slices.Index(m.standing, c)
	m.gone(c)
	m.standing = slices.Insert(m.standing, i, next)
}

// gone notes that a call has left its lines.
func (m *model) gone(c *call) {
	for i := range c.places {
		for _, try := range m.tries {
			try.due = try.due || try.name == c.places[i].Name && m.front(&c.places[i])
		}
	}
	m.standing = slices.DeleteFunc(m.standing, func(other *call) bool { return other == c })
	m.left = append(m.left, c)
}

// line returns those that stand in the line of a name.
func (m *model) line(name string) (line []*call) {
	for _, c := range m.standing {
		if m.place(c, name) != nil {
			line = append(line, c)
		}
	}
	return line
}

func (m *model) place(c *call, name string) *Place[*waiter] {
	i := slices.IndexFunc(c.places, func(p Place[*waiter]) bool { return p.Name == name })
	if i < 0 {
		return nil
	}
	return &c.places[i]
}

// front reports whether the one at a place is in front by the rule.
func (m *model) front(p *Place[*waiter]) bool {
	var ahead []int16
	for _, c := range m.line(p.Name) {
		other := m.place(c, p.Name)
		if other == p {
			break
		}
		ahead = append(ahead, other.Kind)
	}
	return holds(p.Kind, ahead)
}

// served reports whether a call is in front in each of its lines.
func (m *model) served(c *call) bool {
	for i := range c.places {
		if !m.front(&c.places[i]) {
			return false
		}
	}
	return true
}

// give gives a place the smallest number that nobody in its line has, unless it has one.
func (m *model) give(p *Place[*waiter]) {
	var taken []int32
	for _, c := range m.line(p.Name) {
		taken = append(taken, m.number[m.place(c, p.Name)])
	}
	for n := int32(1); m.number[p] == 0; n++ {
		if !slices.Contains(taken, n) {
			m.number[p] = n
		}
	}
}

func (m *model) check() {
	for _, name := range []string{"a", "b", "c"} {
		waiting := 0
		for _, c := range m.line(name) {
			p := m.place(c, name)
			if !m.front(p) {
				waiting++
			} else if m.give(p); !p.front {
				m.Errorf("%s is not in front for %s", m.show(c), name)
			}
			if p.front && !m.front(p) {
				m.Errorf("%s is in front for %s", m.show(c), name)
			}
			if p.Number != m.number[p] {
				m.Errorf("%s has the number %d for %s, want %d", m.show(c), p.Number, name, m.number[p])
			}
		}
		if got := m.Waiting(name); got != waiting {
			m.Errorf("%d are waiting for %s, want %d", got, name, waiting)
		}
	}
	for _, c := range m.standing {
		if served := m.served(c); c.returned != (served || c.ended != nil) || c.returned && !c.mine {
			m.Errorf("the Join of %s has returned: %v, mine: %v; it is in front: %v", m.show(c), c.returned, c.mine, served)
		}
	}
	for _, c := range m.left {
		if !c.returned || c.places[0].of != nil {
			m.Errorf("%s has not left", m.show(c))
		}
	}
	m.tries = slices.DeleteFunc(m.tries, func(try *failedTry) bool {
		if closed(try.moved) != try.due {
			m.Errorf("one that tries is told that somebody has left the line of %s: %v, want %v", try.name, !try.due, try.due)
		}
		return try.due
	})
}

func (m *model) did(what string, c *call) { m.done = append(m.done, m.show(c)+" "+what) }

func (m *model) show(c *call) string {
	text := fmt.Sprintf("%p", c.waiter)
	for i := range c.places {
		text += fmt.Sprintf(" %s:%d", c.places[i].Name, c.places[i].Kind)
	}
	return text
}
