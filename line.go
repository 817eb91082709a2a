package locker

import (
	"container/list"
	"context"
	"sync"
)

// lines are the queues inside the client: for each name, the goroutines that want
// it take turns, first come first served, and only the one in front deals with
// etcd. So they exclude each other, whatever sessions they use, and a client has
// at most one entry in the queue of a name.
type lines struct {
	mu     sync.Mutex // guards what follows
	byName map[string]line
}

// line is that of one name.
type line struct {
	front  *Lock         // whose turn it is, until nothing is left of it in etcd's queue
	behind *list.List    // of *Lock; nil while there are none
	moved  chan struct{} // closed when front changes; nil if nobody waits for that
}

func (q *lines) init() { q.byName = make(map[string]line) }

// join waits for l's turn, and returns nil then, or which of the contexts has ended. In
// that case l is not in line any more; mine tells that it was given the turn
// nevertheless, or is about to be. It waits on the contexts as they are, without
// deriving one: many may end at once, and each derived one would cost its parents'
// locks.
func (q *lines) join(l *Lock, ctx, client, session context.Context) (mine bool, ended context.Context) {
	q.mu.Lock()
	w, taken := q.byName[l.name]
	if !taken {
		q.byName[l.name] = line{front: l}
		q.mu.Unlock()
		return true, nil
	}
	if w.behind == nil {
		w.behind = list.New()
		q.byName[l.name] = w
	}
	l.ready = make(chan struct{})
	place := w.behind.PushBack(l)
	q.mu.Unlock()

	select {
	case <-l.ready:
		return true, nil
	case <-ctx.Done():
		ended = ctx
	case <-client.Done():
		ended = client
	case <-session.Done():
		ended = session
	}
	q.mu.Lock()
	defer q.mu.Unlock()
	before := w.behind.Len()
	w.behind.Remove(place) // unless it was called
	return w.behind.Len() == before, ended
}

// waitInLine waits until l is the one in front of the client's line.
func (l *Lock) waitInLine(ctx context.Context) error {
	c := l.client
	mine, ended := c.lines.join(l, ctx, c.ctx, l.ofSession())
	if ended == nil {
		return nil
	}
	if mine {
		l.passOn(context.Cause(ended))
	}
	return c.interrupted(ended)
}

// tryInLine is waitInLine for TryLock. It does not wait for a holder, nor with others
// who wait, but for the removal of what is over: of a call that failed, or a release.
func (l *Lock) tryInLine(ctx context.Context) error {
	c := l.client
	for {
		ok, moved := c.lines.tryJoin(l)
		switch {
		case ok:
			return nil
		case moved == nil:
			return c.lockedHere(ctx, l.name)
		}
		session := l.ofSession()
		select {
		case <-moved:
		case <-ctx.Done():
			return c.interrupted(ctx)
		case <-c.ctx.Done():
			return c.interrupted(c.ctx)
		case <-session.Done():
			return c.interrupted(session)
		}
	}
}

// ofSession is the context of the session of WithSession, or one without an end.
func (l *Lock) ofSession() context.Context {
	if l.wants == nil {
		return context.Background()
	}
	return l.wants.ctx
}

// tryJoin takes the turn if nobody has it. Else, if the one in front holds the name no
// more, or never did, and nobody is behind it, moved is closed when it has cleaned up.
func (q *lines) tryJoin(l *Lock) (ok bool, moved <-chan struct{}) {
	q.mu.Lock()
	defer q.mu.Unlock()
	w, taken := q.byName[l.name]
	switch {
	case !taken:
		q.byName[l.name] = line{front: l}
		return true, nil
	case w.front.ctx.Err() == nil || w.behind != nil && w.behind.Len() > 0:
		return false, nil
	case w.moved == nil:
		w.moved = make(chan struct{})
		q.byName[l.name] = w
	}
	return false, w.moved
}

// call takes the next out of the line, nil if there is none. It has yet to be
// given the turn.
func (q *lines) call(name string) *Lock {
	q.mu.Lock()
	defer q.mu.Unlock()
	return q.byName[name].next()
}

// next is call under the mutex.
func (w line) next() *Lock {
	if w.behind == nil || w.behind.Len() == 0 {
		return nil
	}
	return w.behind.Remove(w.behind.Front()).(*Lock)
}

// leave gives the turn to the one that was called, unless it has it already, or else
// to the next in line.
func (q *lines) leave(name string, called *Lock) {
	q.mu.Lock()
	defer q.mu.Unlock()
	w := q.byName[name]
	if called == nil {
		called = w.next()
	}
	switch {
	case called == nil:
		q.move(name, w, nil)
	case !called.granted:
		called.granted = true
		q.move(name, w, called)
		close(called.ready)
	}
}

// replace puts l in the place of the one in front, which has had no success.
func (q *lines) replace(l *Lock) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.move(l.name, q.byName[l.name], l)
}

// move puts a lock, or nobody, in front. The caller has the mutex.
func (q *lines) move(name string, w line, front *Lock) {
	if w.moved != nil {
		close(w.moved)
	}
	if front == nil {
		delete(q.byName, name)
		return
	}
	q.byName[name] = line{front: front, behind: w.behind}
}
