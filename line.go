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
	mu     sync.Mutex            // guards the map and the lists
	byName map[string]*list.List // of *Lock, those behind the front; the list is nil while there are none
}

func (q *lines) init() { q.byName = make(map[string]*list.List) }

// join waits for l's turn. On error l is not in line any more; mine tells that it
// was given the turn nevertheless, or is about to be.
func (q *lines) join(ctx context.Context, l *Lock) (mine bool, err error) {
	q.mu.Lock()
	behind, taken := q.byName[l.name]
	if !taken {
		q.byName[l.name] = nil
		q.mu.Unlock()
		return true, nil
	}
	if behind == nil {
		behind = list.New()
		q.byName[l.name] = behind
	}
	l.turn = make(chan struct{})
	place := behind.PushBack(l)
	q.mu.Unlock()

	select {
	case <-l.turn:
		return true, nil
	case <-ctx.Done():
	}
	q.mu.Lock()
	defer q.mu.Unlock()
	before := behind.Len()
	behind.Remove(place) // unless it was called
	return behind.Len() == before, context.Cause(ctx)
}

// waitInLine waits until l is the one in front of the client's line.
func (l *Lock) waitInLine(ctx context.Context) error {
	c := l.client
	ctx, stop := either(ctx, c.ctx)
	defer stop()
	if l.wants != nil {
		ctx, stop = either(ctx, l.wants.ctx)
		defer stop()
	}
	mine, err := c.lines.join(ctx, l)
	if err == nil {
		return nil
	}
	if mine {
		l.decline(err)
	}
	return c.interrupted(ctx)
}

// tryJoin takes the turn if nobody has it.
func (q *lines) tryJoin(name string) bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	if _, taken := q.byName[name]; taken {
		return false
	}
	q.byName[name] = nil
	return true
}

// call takes the next out of the line, nil if there is none. It has yet to be
// given the turn.
func (q *lines) call(name string) *Lock {
	q.mu.Lock()
	defer q.mu.Unlock()
	if behind := q.byName[name]; behind != nil && behind.Len() > 0 {
		return behind.Remove(behind.Front()).(*Lock)
	}
	return nil
}

// leave gives the turn to the one that was called, unless it has it already, or else
// to the next in line.
func (q *lines) leave(name string, called *Lock) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if behind := q.byName[name]; called == nil && behind != nil && behind.Len() > 0 {
		called = behind.Remove(behind.Front()).(*Lock)
	}
	if called == nil {
		delete(q.byName, name)
		return
	}
	if !called.turned {
		called.turned = true
		close(called.turn)
	}
}
