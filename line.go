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
	byName map[string]*list.List // of chan struct{}, those behind the front; the list is nil while there are none
}

func (q *lines) init() { q.byName = make(map[string]*list.List) }

// join waits for the turn. On error there is nothing to leave.
func (q *lines) join(ctx context.Context, name string) error {
	q.mu.Lock()
	behind, taken := q.byName[name]
	if !taken {
		q.byName[name] = nil
		q.mu.Unlock()
		return nil
	}
	if behind == nil {
		behind = list.New()
		q.byName[name] = behind
	}
	turn := make(chan struct{})
	place := behind.PushBack(turn)
	q.mu.Unlock()

	select {
	case <-turn:
		return nil
	case <-ctx.Done():
	}
	q.mu.Lock()
	select {
	case <-turn: // it came at the same moment: pass it on
		q.mu.Unlock()
		q.leave(name)
	default:
		behind.Remove(place)
		q.mu.Unlock()
	}
	return context.Cause(ctx)
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

// leave gives the turn to the next in line.
func (q *lines) leave(name string) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if behind := q.byName[name]; behind != nil && behind.Len() > 0 {
		close(behind.Remove(behind.Front()).(chan struct{}))
		return
	}
	delete(q.byName, name)
}
