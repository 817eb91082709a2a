package txn

import (
	"container/list"
	"context"
	"sync"

	"github.com/jagregory/locker/v2/internal/backoff"
)

// group is the group commit of a Store: while a transaction is in flight, the writes that
// arrive gather, and leave together as the next one. So a lone caller waits for nobody, and
// many callers share the cost of a commit.
type group struct {
	store *Store

	mu       sync.Mutex // guards what follows; no request is made under it
	limit    int        // of writes in one transaction
	inFlight bool       // a transaction has left and has not kept the others waiting for too long
	order    list.List  // of *pending: the names with writes that have yet to leave, in their order
	byName   map[string]*pending
}

// pending are the writes to the queue of one name that have yet to leave, the oldest first.
// Some of them may have been forgotten.
type pending struct {
	name   string
	writes []*Write
}

const (
	// MaxTogether is the most writes in one transaction. It stays within etcd's default
	// limit of 128 operations, which counts the writes and the operations of the largest
	// one. If a server has a lower limit, the group learns that from its refusal.
	MaxTogether = 120
	// maxBytesTogether is the most bytes in one transaction, well below etcd's limit of 1.5
	// MiB for a request.
	maxBytesTogether = 512 << 10
)

// Write is a transaction on its way through the group. A Write is submitted once.
type Write struct {
	Txn
	Begun  func(epoch int64) // called before each attempt but the first, with a mutex held: it must not block; may be nil
	Landed func(Outcome)     // called with the outcome of each attempt, also concurrently, and with ErrUnsent if there is none; may be nil

	done   chan struct{} // closed when result is set
	result Outcome       // the first certain one

	pause backoff.Pause // before the next attempt; used by the batch

	// Guarded by the group's mutex.
	left      bool   // it is not waiting to be sent any more
	batch     *batch // with which it has left
	forgotten bool   // nobody waits for it: it is not tried again
	resolved  bool   // result is set
	attempts  int    // not counting those that were refused for certain
	last      error  // of the last attempt that was not answered for certain; nil if there was no answer
}

// Done returns a channel that is closed when the outcome of w is certain. w must have been
// submitted.
func (w *Write) Done() <-chan struct{} { return w.done }

// Result returns the outcome of w. Done must be closed.
func (w *Write) Result() Outcome { return w.result }

func (w *Write) begin() {
	if w.Begun != nil {
		w.Begun(w.Epoch)
	}
}

func (w *Write) land(o Outcome) {
	if w.Landed != nil {
		w.Landed(o)
	}
}

// size is roughly what t adds to the size of a request, in bytes.
func (t Txn) size() (n int64) {
	for _, op := range t.Then {
		if put := op.GetRequestPut(); put != nil {
			n += int64(len(put.Key) + len(put.Value))
		}
	}
	return n
}

func (g *group) init(s *Store) {
	g.store, g.limit, g.byName = s, MaxTogether, make(map[string]*pending)
}

// submit sends w until etcd has answered for certain or w is forgotten. A write to a queue
// may share a transaction with others, one without a name is sent alone. It is the only way
// to write queues and records. It does not block.
func (g *group) submit(w *Write) {
	w.done = make(chan struct{})
	if w.Name == "" {
		w.left = true
		g.start([]*Write{w}, func() {})
		return
	}
	g.mu.Lock()
	p := g.pending(w.Name)
	p.writes = append(p.writes, w)
	writes := g.take()
	g.mu.Unlock()
	g.start(writes, g.next)
}

// again sends writes once more, before those that have arrived later.
func (g *group) again(writes []*Write) {
	g.mu.Lock()
	var alone []*Write
	for _, w := range writes {
		switch {
		case w.forgotten || w.resolved:
			continue
		case w.Name == "":
			alone = append(alone, w)
		default:
			w.left, w.batch = false, nil
			p := g.pending(w.Name)
			p.writes = append([]*Write{w}, p.writes...)
		}
		w.begin()
	}
	next := g.take()
	g.mu.Unlock()
	g.start(alone, func() {})
	g.start(next, g.next)
}

// pending returns the writes of a name. The caller holds the mutex.
func (g *group) pending(name string) *pending {
	p := g.byName[name]
	if p == nil {
		p = &pending{name: name}
		g.byName[name] = p
		g.order.PushBack(p)
	}
	return p
}

// forget implements Store.Forget.
func (g *group) forget(w *Write) (last error) {
	g.mu.Lock()
	unsent := !w.left
	w.left, w.forgotten = true, true
	last = w.last
	if w.batch != nil {
		w.batch.forgotByAll()
	}
	g.mu.Unlock()
	switch {
	case unsent:
		w.land(Outcome{Err: ErrUnsent})
		return ErrUnsent
	case last == nil:
		return context.DeadlineExceeded
	}
	return last
}

// take returns the writes that leave now, if nothing is in flight: the oldest of each name,
// since within one transaction a write does not see what another has written. The caller
// holds the mutex.
func (g *group) take() (writes []*Write) {
	if g.inFlight {
		return nil
	}
	size := int64(0)
	for n := g.order.Len(); n > 0 && len(writes) < g.limit; n-- {
		place := g.order.Front()
		p := place.Value.(*pending)
		w := p.next()
		if w != nil {
			if size += w.size(); size > maxBytesTogether && len(writes) > 0 {
				break
			}
			w.left = true
			writes = append(writes, w)
			p.writes = p.writes[1:]
		}
		if len(p.writes) > 0 {
			g.order.MoveToBack(place)
		} else {
			g.order.Remove(place)
			delete(g.byName, p.name)
		}
	}
	g.inFlight = len(writes) > 0
	return writes
}

// next returns the oldest write that has not been forgotten, nil if there is none.
func (p *pending) next() *Write {
	for len(p.writes) > 0 && p.writes[0].left {
		p.writes[0] = nil
		p.writes = p.writes[1:]
	}
	if len(p.writes) == 0 {
		return nil
	}
	return p.writes[0]
}

// waiting returns how many writes have yet to leave.
func (g *group) waiting() (n int) {
	g.mu.Lock()
	defer g.mu.Unlock()
	for _, p := range g.byName {
		for _, w := range p.writes {
			if !w.left {
				n++
			}
		}
	}
	return n
}

// next sends the writes that are waiting.
func (g *group) next() {
	g.mu.Lock()
	g.inFlight = false
	writes := g.take()
	g.mu.Unlock()
	g.start(writes, g.next)
}

// start sends writes in a goroutine. It calls next when they have been answered, or have
// kept the others waiting for too long. The caller is a task, as is everyone who waits for
// a write; so another task may be started.
func (g *group) start(writes []*Write, next func()) {
	if len(writes) == 0 {
		return
	}
	s := g.store
	b := g.newBatch(writes)
	s.Tasks.Run(func() {
		late := s.Tasks.After(s.HedgeDelay, next)
		b.run(func() {
			if late.Stop() {
				next()
			}
		})
	})
}
