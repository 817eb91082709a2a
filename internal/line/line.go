// Package line decides who is next inside a program. For each name there is a line: callers
// that want the name stand in it, first come, first served, and the one in front has the
// name until it leaves.
//
//	front   behind
//	  a  ←  b  c  d
//
//	Join     puts e behind d, and waits until its place is granted
//	Leave    removes a, puts b in front, and so grants b's place
//
// Where what comes with the name takes time, it is passed on in two steps: Call takes b out
// of the line, so that it is not called twice, and Leave puts it in front.
package line

import (
	"container/list"
	"context"
	"sync"
)

// Lines are the lines of all names. They are safe for concurrent use. The zero T stands for
// nobody.
type Lines[T comparable] struct {
	place func(T) *Place
	over  func(T) bool

	mu     sync.Mutex // guards what follows, and the places
	byName map[string]line[T]
}

// line is the line of one name.
type line[T comparable] struct {
	front  T
	behind *list.List    // of T; nil while there are none
	moved  chan struct{} // closed when front changes; nil if nobody waits for that
}

// Place is the place of one T in a line. Each T has a Place of its own, and stands in one
// line once.
type Place struct {
	ready   chan struct{} // closed when the place is granted; nil if it did not have to wait
	granted bool          // Leave has put it in front
}

// Ready returns a channel that is closed when the place is granted. The place must have
// been behind another.
func (p *Place) Ready() <-chan struct{} { return p.ready }

// New returns empty lines. place returns the Place of a T that joins. over reports whether
// a T in front has only to be cleaned up after. Both are called with a mutex held, and must
// not block.
func New[T comparable](place func(T) *Place, over func(T) bool) *Lines[T] {
	return &Lines[T]{place: place, over: over, byName: make(map[string]line[T])}
}

// Join waits until t is in front, and then returns nil, or which of the contexts has ended.
// In that case t is not in the line any more; mine reports that its place was granted
// nevertheless, or is about to be. Join waits on the three contexts as they are, without
// deriving one: many may end at once, and each derived context would take the locks of its
// parents.
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
	l.behind.Remove(item) // without effect if it was called
	return l.behind.Len() == before, ended
}

// TryJoin puts t in front if nobody is. Otherwise, if the one in front is over and nobody
// is behind it, moved is closed when it has left; else moved is nil.
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

// Call takes the next out of the line and returns it, or nobody. Its place has yet to be
// granted, by Leave.
func (q *Lines[T]) Call(name string) T {
	q.mu.Lock()
	defer q.mu.Unlock()
	return q.byName[name].next()
}

// next is Call for a caller that holds the mutex.
func (l line[T]) next() (t T) {
	if l.behind == nil || l.behind.Len() == 0 {
		return t
	}
	return l.behind.Remove(l.behind.Front()).(T)
}

// Leave removes the one in front, and puts in its place the one that was called, or, if
// nobody was, the next in the line. If the place of the one that was called is granted
// already, it does nothing.
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

// Replace puts t in the place of the one in front, which has not succeeded.
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

// move puts t, or nobody, in front. The caller holds the mutex.
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
