package txn

import (
	"container/list"
	"context"
	"slices"
	"sync"
	"time"

	"github.com/jagregory/locker/v2/internal/backoff"
)

// group is the group commit of a Store: while transactions are in flight, the writes that
// arrive gather, and leave together as the next one. So a lone caller waits for nobody, and
// many callers share the cost of a commit.
//
// A second transaction leaves while one is in flight, so that etcd is not idle until the
// callers have learned their outcomes, but not before about half of the writes that are
// usually under way have gathered: smaller ones would cost more than they save.
type group struct {
	store *Store

	mu       sync.Mutex // guards what follows; no request is made under it
	limit    int        // of operations in one transaction
	inFlight int        // transactions that have left and have not kept the others waiting for too long
	underWay int        // names with writes in those
	usual    int        // how many names usually have writes under way or waiting
	flat     optimism
	order    list.List // of *pending: the names with writes that may leave, in their order
	byName   map[string]*pending
}

// InFlight is how many transactions should be in flight at a time. More have not been
// faster: etcd applies one after the other.
const InFlight = 2

// pending are the writes to the queue of one name that have yet to leave, the oldest first.
// Some of them may have been forgotten. While a transaction with one of the name is in
// flight, and not late, the name is not in the group's order: so the writes keep theirs.
type pending struct {
	name   string
	writes []*Write
	away   bool // the name is not in the order
}

// optimism decides whether the next transaction is flat: one list of compares and one of
// operations, which etcd applies faster than nested transactions, but only if all compares
// hold. After each refusal, more transactions are nested before the next attempt.
type optimism struct {
	skip    int // how many more are nested
	penalty int // how many were after the last refusal
}

// mostSkipped bounds the penalty: at most one transaction in so many is refused in vain.
const mostSkipped = 64

// next reports whether the next transaction is flat.
func (o *optimism) next() bool {
	if o.skip > 0 {
		o.skip--
		return false
	}
	return true
}

const (
	// MaxTogether is the most writes, or operations of flat ones, in one transaction. It
	// stays within etcd's default limit of 128 operations, which counts nested writes and the
	// operations of the largest one. If a server has a lower limit, the group learns that
	// from its refusal.
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

	submitted time.Time
	done      chan struct{} // closed when result is set
	result    Outcome       // the first certain one

	pause backoff.Pause // before the next attempt; used by the batch

	// Guarded by the group's mutex.
	left      bool   // it is not waiting to be sent any more
	batch     *batch // with which it has left
	refused   bool   // by a flat transaction, so it is nested in the next
	forgotten bool   // nobody waits for it: it is not tried again
	resolved  bool   // result is set
	attempts  int    // not counting those that were refused for certain
	last      error  // of the last attempt that was not answered for certain; nil if there was no answer
}

// Submitted returns when w was submitted.
func (w *Write) Submitted() time.Time { return w.submitted }

// Done returns a channel that is closed when the outcome of w is certain. w must have been
// submitted.
func (w *Write) Done() <-chan struct{} { return w.done }

// Result returns the outcome of w. Done must be closed.
func (w *Write) Result() Outcome { return w.result }

// Applied reports whether etcd has answered that w was applied.
func (w *Write) Applied() bool { return w.Decided() && w.result.Err == nil && w.result.Resp.Succeeded }

// Decided reports whether the outcome of w is certain.
func (w *Write) Decided() bool {
	select {
	case <-w.done:
		return true
	default:
		return false
	}
}

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
func (t *Txn) size() (n int64) {
	for _, cmp := range t.When {
		n += int64(len(cmp.Key) + len(cmp.RangeEnd))
	}
	for _, op := range t.Then {
		if put := op.GetRequestPut(); put != nil {
			n += int64(len(put.Key) + len(put.Value))
		}
		if nested := op.GetRequestTxn(); nested != nil {
			n += (&Txn{When: nested.Compare, Then: nested.Success}).size()
		}
	}
	return n
}

// operations is what t adds to a transaction, as etcd counts its operations.
func (t *Txn) operations(flat bool) int {
	if !flat {
		return 1
	}
	return max(len(t.flat().When), len(t.flat().Then))
}

func (g *group) init(s *Store) {
	g.store, g.limit, g.byName = s, MaxTogether, make(map[string]*pending)
}

// submit takes in w, which is sent until etcd has answered for certain or w is forgotten. A
// write to a queue may share a transaction with others, one without a name is sent alone.
// It is the only way to write queues and records. It does not block. It returns the batch
// that leaves now, nil if there is none.
func (g *group) submit(w *Write) *batch {
	w.done, w.submitted = make(chan struct{}), time.Now()
	g.mu.Lock()
	defer g.mu.Unlock()
	if w.Name == "" {
		return g.newBatch([]*Write{w})
	}
	p := g.pending(w.Name)
	p.writes = append(p.writes, w)
	return g.take()
}

// again sends writes of b once more, before those that have arrived later.
func (g *group) again(b *batch, writes []*Write) {
	g.mu.Lock()
	var batches []*batch
	for _, w := range writes {
		switch {
		case w.forgotten || w.resolved || w.batch != b: // it is over, or on its way with another
			continue
		case w.Name == "":
			batches = append(batches, g.newBatch([]*Write{w}))
		default:
			w.left, w.batch = false, nil
			p := g.pending(w.Name)
			p.writes = append([]*Write{w}, p.writes...)
		}
		w.begin()
	}
	batches = append(batches, g.takeAll()...)
	g.mu.Unlock()
	g.start(batches...)
}

// pending returns the writes of a name. The caller holds the mutex, and adds a write.
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
	waited, sent := !w.left, w.attempts > 0 || w.left
	w.left, w.forgotten = true, true
	last = w.last
	if w.batch != nil {
		w.batch.forgotByAll()
	}
	g.mu.Unlock()
	if waited {
		w.land(Outcome{Err: ErrUnsent})
	}
	switch {
	case !sent:
		return ErrUnsent
	case last == nil:
		return context.DeadlineExceeded
	}
	return last
}

// ready reports whether a transaction should leave now. The caller holds the mutex.
func (g *group) ready() bool {
	waiting := g.order.Len()
	switch {
	case waiting == 0 || g.inFlight >= g.store.InFlight:
		return false
	case g.inFlight == 0:
		return true
	}
	return waiting >= min(g.usual/g.store.InFlight, g.limit)
}

// take returns the batch that leaves now, nil if there is none: the oldest write of each
// name, since within one transaction a write does not see what another has written; of
// those that are shared, several. The caller holds the mutex.
func (g *group) take() *batch {
	if !g.ready() {
		return nil
	}
	now := g.underWay + g.order.Len()
	g.usual = max(now, g.usual-(g.usual-now+7)/8)
	first := g.order.Front().Value.(*pending).next()
	flat := g.order.Len() > 1 && g.flat.next() && (first == nil || !first.refused)
	var writes []*Write
	names, guarded := 0, make(guards, 1)
	for operations, size, full := 0, int64(0), false; g.order.Len() > 0 && !full; {
		place := g.order.Front()
		p := place.Value.(*pending)
		w := p.next()
		for first := w; w != nil && (w == first || w.Shared && first.Shared); w = p.next() {
			operations += w.operations(flat)
			size += w.size()
			if guarded.add(w) && flat {
				operations++
			}
			if full = len(writes) > 0 && (operations > g.limit || size > maxBytesTogether); full {
				break
			}
			writes = append(writes, w)
			p.writes, p.away = p.writes[1:], true
		}
		switch {
		case p.away:
			g.order.Remove(place)
			names++
		case w == nil:
			g.order.Remove(place)
			delete(g.byName, p.name)
		}
	}
	if len(writes) == 0 {
		return nil
	}
	g.inFlight++
	g.underWay += names
	b := g.newBatch(writes)
	b.flat, b.counted, b.names = flat && len(writes) > 1, true, names
	return b
}

// takeAll returns all batches that leave now. The caller holds the mutex.
func (g *group) takeAll() (batches []*batch) {
	for b := g.take(); b != nil; b = g.take() {
		batches = append(batches, b)
	}
	return batches
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

// learn takes in that a transaction was applied, or refused because of a compare.
// The caller holds the mutex.
func (g *group) learn(b *batch, refused bool) {
	switch o := &g.flat; {
	case !b.flat:
	case refused:
		o.penalty = min(2*o.penalty+1, mostSkipped)
		o.skip = o.penalty
	default:
		o.penalty /= 2
	}
}

// guards are the records, and their epochs, that a transaction compares.
type guards map[*Record]int64

// add reports whether the guard of w is one more compare.
func (g guards) add(w *Write) bool {
	epoch, ok := g[w.Record]
	if w.Record == nil || ok && epoch == w.Epoch {
		return false
	}
	g[w.Record] = w.Epoch
	return true
}

// makeWay lets the writes that wait for b leave: it was answered, or has kept them waiting
// for too long. What a flat transaction was refused for goes first, so the next is nested.
func (g *group) makeWay(b *batch) {
	g.mu.Lock()
	if !b.counted {
		g.mu.Unlock()
		return
	}
	b.counted = false
	g.inFlight--
	g.underWay -= b.names
	var refused []*pending
	for _, w := range b.writes {
		p := g.byName[w.Name]
		if p == nil || !p.away { // another write of the name was before this one
			continue
		}
		p.away = false
		switch {
		case len(p.writes) == 0:
			delete(g.byName, w.Name)
		case p.writes[0].refused:
			refused = append(refused, p)
		default:
			g.order.PushBack(p)
		}
	}
	for _, p := range slices.Backward(refused) {
		g.order.PushFront(p)
	}
	batches := g.takeAll()
	g.mu.Unlock()
	g.start(batches...)
}

// start sends batches, each in a goroutine. The caller is a task, as is everyone who waits
// for a write; so another task may be started.
func (g *group) start(batches ...*batch) {
	for _, b := range batches {
		g.store.Tasks.Run(func() { b.run(false) })
	}
}
