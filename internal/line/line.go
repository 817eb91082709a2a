// Package line says who is next inside a program. For each name there is a line: those who
// want it stand in it, first come first served, and the one in front has the turn until it
// leaves.
//
//	front   behind
//	  a  ←  b  c  d     Join puts e behind d; Leave gives b the turn
//
// A turn is given in two steps where that which comes with it takes time: Call takes b out
// of the line, so that nobody else is called, and Leave gives it the turn.
package line

import (
	"container/list"
	"context"
	"sync"
)

// Lines are the lines of all names. They are safe for concurrent use. The zero T is
// nobody.
type Lines[T comparable] struct {
	place func(T) *Place
	over  func(T) bool

	mu     sync.Mutex // guards what follows, and the places
	byName map[string]line[T]
}

// line is that of one name.
type line[T comparable] struct {
	front  T
	behind *list.List    // of T; nil while there are none
	moved  chan struct{} // closed when front changes; nil if nobody waits for that
}

// Place is where one stands. Each has one, for one line.
type Place struct {
	ready   chan struct{} // closed when it has the turn; nil if it did not have to wait
	granted bool          // it has the turn, or had it
}

// Ready is closed when the place has the turn. It must have been in line.
func (p *Place) Ready() <-chan struct{} { return p.ready }

// New returns empty lines. place returns that of each who joins, and over reports whether
// the one in front only has to clean up. Both are called with a mutex held.
func New[T comparable](place func(T) *Place, over func(T) bool) *Lines[T] {
	return &Lines[T]{place: place, over: over, byName: make(map[string]line[T])}
}

// Join waits for the turn, and returns nil then, or which of the contexts has ended. In
// that case t is not in line any more; mine reports that it was given the turn
// nevertheless, or is about to be. It waits on the contexts as they are, without deriving
// one: many may end at once, and each derived one would cost its parents' locks.
func (q *Lines[T]) Join(name string, t T, ctx, second, third context.Context) (mine bool, ended context.Context) {
	q.mu.Lock()
	l, taken := q.byName[name]
	if !taken {
		q.byName[name] = line[T]{front: t}
		q.mu.Unlock()
		return true, nil
	}
	if l.behind == nil {
		l.behind = list.New()
		q.byName[name] = l
	}
	ready := make(chan struct{})
	q.place(t).ready = ready
	item := l.behind.PushBack(t)
	q.mu.Unlock()

	select {
	case <-ready:
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
	before := l.behind.Len()
	l.behind.Remove(item) // unless it was called
	return l.behind.Len() == before, ended
}

// TryJoin takes the turn if nobody has it. Else, if the one in front is over, and nobody is
// behind it, moved is closed when it has left.
func (q *Lines[T]) TryJoin(name string, t T) (ok bool, moved <-chan struct{}) {
	q.mu.Lock()
	defer q.mu.Unlock()
	l, taken := q.byName[name]
	switch {
	case !taken:
		q.byName[name] = line[T]{front: t}
		return true, nil
	case !q.over(l.front) || l.behind != nil && l.behind.Len() > 0:
		return false, nil
	case l.moved == nil:
		l.moved = make(chan struct{})
		q.byName[name] = l
	}
	return false, l.moved
}

// Call takes the next out of the line, nobody if there is none. It has yet to be given the
// turn.
func (q *Lines[T]) Call(name string) T {
	q.mu.Lock()
	defer q.mu.Unlock()
	return q.byName[name].next()
}

// next is Call under the mutex.
func (l line[T]) next() (t T) {
	if l.behind == nil || l.behind.Len() == 0 {
		return t
	}
	return l.behind.Remove(l.behind.Front()).(T)
}

// Leave gives the turn to the one that was called, unless it has it already, or else, if
// nobody was, to the next in line.
func (q *Lines[T]) Leave(name string, called T) {
	q.mu.Lock()
	defer q.mu.Unlock()
	l := q.byName[name]
	var nobody T
	if called == nobody {
		called = l.next()
	}
	if called == nobody {
		q.move(name, l, nobody)
		return
	}
	if p := q.place(called); !p.granted {
		p.granted = true
		q.move(name, l, called)
		close(p.ready)
	}
}

// Replace puts t in the place of the one in front, which has had no success.
func (q *Lines[T]) Replace(name string, t T) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.move(name, q.byName[name], t)
}

// Waiting returns how many are behind the one in front.
func (q *Lines[T]) Waiting(name string) int {
	q.mu.Lock()
	defer q.mu.Unlock()
	if l := q.byName[name]; l.behind != nil {
		return l.behind.Len()
	}
	return 0
}

// move puts t, or nobody, in front. The caller has the mutex.
func (q *Lines[T]) move(name string, l line[T], t T) {
	if l.moved != nil {
		close(l.moved)
	}
	var nobody T
	if t == nobody {
		delete(q.byName, name)
		return
	}
	q.byName[name] = line[T]{front: t, behind: l.behind}
}
