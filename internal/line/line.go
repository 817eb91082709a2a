// Package line decides who is next inside a program. For each name there is a line: callers
// that want the name stand in it, first come, first served, and those in front have the name
// until they leave. A rule that is given to the package says how many are in front; of those
// that exclude each other, it is one.
//
//	front   behind
//	  a  ←  b  c  d
//
//	Join     puts e behind d, and waits until it is in front
//	Leave    removes a, which puts b in front
//
// A caller may want several names at once. It joins all their lines in one step, so no two
// callers wait for each other.
//
// Where what comes with the name takes time, it is passed on in two steps: Call chooses b,
// which from then on cannot just give up, and Leave puts it in front.
package line

import (
	"container/heap"
	"context"
	"iter"
	"sync"
)

// Config is what Lines need to know of those that stand in them. The functions are called
// with a mutex held, and must not block.
type Config[T comparable] struct {
	Places func(T) iter.Seq[*Place[T]] // of a T: one for each name that it wants
	Wait   func(T) *Wait               // of a T
	Over   func(T) bool                // whether a T in front has only to be cleaned up after

	// Admits reports whether one of a kind may stand in front beside so many others, of which
	// the least has another kind. Who is in front must be allowed to stay when others leave.
	Admits func(size int, least, kind int16) bool
}

// Lines are the lines of all names. They are safe for concurrent use. The zero T stands for
// nobody.
type Lines[T comparable] struct {
	Config[T]

	mu     sync.Mutex // guards what follows, the places and the waits
	byName map[string]line[T]
}

// line is the line of one name.
type line[T comparable] struct {
	first, last *Place[T]
	crowd       *crowd[T] // nil while nobody has come beside the first
}

// crowd is what is known of a line in which several stand, or have stood.
type crowd[T comparable] struct {
	blocked  *Place[T]     // the first that is not in front; nil if there is none
	size     int           // how many are in front
	least    int16         // the least of their kinds
	ofLeast  int           // how many of them have that
	assigned int32         // the largest number that was given to one of them
	free     heap32        // smaller numbers that nobody has
	moved    chan struct{} // closed when one in front leaves; nil if nobody waits for that
}

// Place is where a T stands in the line of one name.
type Place[T comparable] struct {
	Name string
	Kind int16

	// Number tells those in front and the one that is called apart. It is the smallest that
	// was free, from 1 on, and is free again when its T has left.
	Number int32

	front         bool
	passed        bool // its number was passed on
	of            T
	ahead, behind *Place[T]
}

// Wait is what a T waits with until it is in front in each of its lines.
type Wait struct {
	ready  chan struct{} // closed when it is; nil if it did not have to wait
	behind int32         // in so many lines it is not
	called bool
}

// Ready returns a channel that is closed when the T is in front in each of its lines. It must
// have had to wait for that.
func (w *Wait) Ready() <-chan struct{} { return w.ready }

// New returns empty lines.
func New[T comparable](config Config[T]) *Lines[T] {
	return &Lines[T]{Config: config, byName: make(map[string]line[T])}
}

// Join waits until t is in front in each of its lines, and then returns nil, or which of the
// contexts has ended. In that case t is not in the lines any more, unless mine reports that
// it is in front nevertheless, or is about to be. Join waits on the three contexts as they
// are, without deriving one: many may end at once, and each derived context would take the
// locks of its parents.
func (q *Lines[T]) Join(t T, ctx, second, third context.Context) (mine bool, ended context.Context) {
	q.mu.Lock()
	q.stand(t)
	w := q.Wait(t)
	if w.behind == 0 {
		q.mu.Unlock()
		return true, nil
	}
	w.ready = make(chan struct{})
	q.mu.Unlock()

	select {
	case <-w.ready:
		return true, nil
	case <-ctx.Done():
		ended = ctx
	case <-second.Done():
		ended = second
	case <-third.Done():
		ended = third
	}
	q.mu.Lock()
	defer q.mu.Unlock()
	if w.behind == 0 || w.called {
		return true, ended
	}
	q.leave(t, true)
	return false, ended
}

// TryJoin puts t in front in each of its lines, or, if it would have to wait, in none.
// Otherwise name is that of one where it would. If everybody in the line of that name is
// over, moved is closed when one of them has left; else moved is nil.
func (q *Lines[T]) TryJoin(t T) (ok bool, name string, moved <-chan struct{}) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.stand(t)
	if q.Wait(t).behind == 0 {
		return true, "", nil
	}
	var blocked *Place[T] // preferably where nobody is over
	for p := range q.Places(t) {
		if !p.front && (blocked == nil || q.allOver(blocked)) {
			blocked = p
		}
	}
	name, waits, c := blocked.Name, q.allOver(blocked), q.byName[blocked.Name].crowd
	q.leave(t, false) // those who wait for others to leave need not know
	if waits {
		if c.moved == nil {
			c.moved = make(chan struct{})
		}
		moved = c.moved
	}
	return false, name, moved
}

// allOver reports whether everybody ahead is over.
func (q *Lines[T]) allOver(p *Place[T]) bool {
	for p = p.ahead; p != nil; p = p.ahead {
		if !q.Over(p.of) {
			return false
		}
	}
	return true
}

// Call returns the next in line, to which t is to pass on what it has, or nobody. It is
// somebody only if both want just that one name, nobody else is in front, and the next has
// not been called yet.
func (q *Lines[T]) Call(t T) (next T) {
	q.mu.Lock()
	defer q.mu.Unlock()
	mine := q.only(t)
	if mine == nil || mine.ahead != nil || mine.behind == nil {
		return next
	}
	p := mine.behind
	w := q.Wait(p.of)
	if p.front || w.called || q.only(p.of) == nil {
		return next
	}
	w.called = true
	p.Number = q.byName[p.Name].crowd.number()
	return p.of
}

// only returns the place of a T that stands in one line, nil if it stands in several.
func (q *Lines[T]) only(t T) (only *Place[T]) {
	for p := range q.Places(t) {
		if only != nil {
			return nil
		}
		only = p
	}
	return only
}

// Leave removes t from its lines. If it has left them already, Leave does nothing.
func (q *Lines[T]) Leave(t T) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.leave(t, true)
}

// Replace puts with in the places of t, which wants the same names and has not succeeded.
func (q *Lines[T]) Replace(t, with T) {
	q.mu.Lock()
	defer q.mu.Unlock()
	next, stop := iter.Pull(q.Places(with))
	defer stop()
	for p := range q.Places(t) {
		own, _ := next()
		*own = *p
		own.of = with
		l := q.byName[p.Name]
		l.link(own.ahead, own)
		l.link(own, own.behind)
		q.byName[p.Name] = l
		l.crowd.move()
		p.reset()
	}
}

// Inherit gives next, which was called by t, the number of t, which is about to leave.
func (q *Lines[T]) Inherit(t, next T) {
	q.mu.Lock()
	defer q.mu.Unlock()
	from, to := q.only(t), q.only(next)
	heap.Push(&q.byName[to.Name].crowd.free, to.Number)
	to.Number, from.passed = from.Number, true
}

// Waiting returns how many are behind those in front, for tests.
func (q *Lines[T]) Waiting(name string) (n int) {
	q.mu.Lock()
	defer q.mu.Unlock()
	for p := q.byName[name].last; p != nil && !p.front; p = p.ahead {
		n++
	}
	return n
}

// stand puts t at the end of its lines. The caller holds the mutex.
func (q *Lines[T]) stand(t T) {
	w := q.Wait(t)
	for p := range q.Places(t) {
		l := q.byName[p.Name]
		p.of, p.Number = t, 0
		l.link(l.last, p)
		l.link(p, nil)
		if p.ahead == nil {
			p.front, p.Number = true, 1
			q.byName[p.Name] = l
			continue
		}
		if l.crowd == nil {
			l.crowd = &crowd[T]{size: 1, least: l.first.Kind, ofLeast: 1, assigned: 1}
		}
		q.byName[p.Name] = l
		w.behind++
		if l.crowd.blocked == nil {
			l.crowd.blocked = p
			q.advance(l.crowd)
		}
	}
}

// leave removes t from its lines; if it was in front, that is announced to those who wait for
// somebody to leave. The caller holds the mutex.
func (q *Lines[T]) leave(t T, announced bool) {
	var nobody T
	for p := range q.Places(t) {
		if p.of == nobody {
			continue // it is not in the line
		}
		l := q.byName[p.Name]
		l.link(p.ahead, p.behind)
		if c := l.crowd; c != nil {
			if p.front && announced {
				c.move()
			}
			c.remove(p, l.first)
		}
		p.reset()
		if l.first == nil {
			delete(q.byName, p.Name)
			continue
		}
		q.byName[p.Name] = l
		q.advance(l.crowd)
	}
	q.Wait(t).behind = 0
}

// advance puts those in front that may be. The caller holds the mutex.
func (q *Lines[T]) advance(c *crowd[T]) {
	for p := c.blocked; p != nil && q.Admits(c.size, c.least, p.Kind); p = p.behind {
		c.blocked = p.behind
		c.add(p.Kind)
		p.front = true
		if p.Number == 0 {
			p.Number = c.number()
		}
		w := q.Wait(p.of)
		if w.behind--; w.behind == 0 && w.ready != nil {
			close(w.ready)
		}
	}
}

// add counts in one of a kind that comes in front.
func (c *crowd[T]) add(kind int16) {
	if c.size == 0 || kind < c.least {
		c.least, c.ofLeast = kind, 0
	}
	if kind == c.least {
		c.ofLeast++
	}
	c.size++
}

// remove counts out a place that was taken out of the line, which now begins with first.
func (c *crowd[T]) remove(p, first *Place[T]) {
	if p.Number > 0 && !p.passed {
		heap.Push(&c.free, p.Number)
	}
	if p == c.blocked {
		c.blocked = p.behind
	}
	if !p.front {
		return
	}
	c.size--
	if p.Kind != c.least {
		return
	}
	if c.ofLeast--; c.ofLeast > 0 || c.size == 0 {
		return
	}
	c.size = 0
	for p := first; p != nil && p.front; p = p.behind {
		c.add(p.Kind)
	}
}

// number returns the smallest number that nobody has.
func (c *crowd[T]) number() int32 {
	if len(c.free) > 0 {
		return heap.Pop(&c.free).(int32)
	}
	c.assigned++
	return c.assigned
}

// move tells those who wait for somebody in front to leave.
func (c *crowd[T]) move() {
	if c != nil && c.moved != nil {
		close(c.moved)
		c.moved = nil
	}
}

// reset takes a place out of its line. What is exported stays untouched: others read it.
func (p *Place[T]) reset() {
	var nobody T
	p.front, p.passed, p.of, p.ahead, p.behind = false, false, nobody, nil, nil
}

// link makes two places neighbours; nil stands for the end of the line.
func (l *line[T]) link(ahead, behind *Place[T]) {
	if ahead == nil {
		l.first = behind
	} else {
		ahead.behind = behind
	}
	if behind == nil {
		l.last = ahead
	} else {
		behind.ahead = ahead
	}
}

// heap32 is a heap of numbers, see container/heap.
type heap32 []int32

func (h heap32) Len() int           { return len(h) }
func (h heap32) Less(i, j int) bool { return h[i] < h[j] }
func (h heap32) Swap(i, j int)      { h[i], h[j] = h[j], h[i] }
func (h *heap32) Push(n any)        { *h = append(*h, n.(int32)) }
func (h *heap32) Pop() any {
	last := len(*h) - 1
	n := (*h)[last]
	*h = (*h)[:last]
	return n
}
