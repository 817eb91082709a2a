package locker

import (
	"bytes"
	"cmp"
	"container/list"
	"context"
	"iter"
	"slices"
	"sync"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"

	"github.com/jagregory/locker/v2/internal/backoff"
	"github.com/jagregory/locker/v2/internal/key"
	"github.com/jagregory/locker/v2/internal/txn"
	"github.com/jagregory/locker/v2/internal/watchmux"
)

// A State is what was true of a name at one revision. It does not say whether the previous
// holder has given the name up or lost it.
type State struct {
	Holder         // the oldest, if there are several; Name is set even if nobody holds it
	Held     bool  // whether somebody holds the name
	Holders  int   // how many do
	Revision int64 // of etcd, at which this was true
}

// same reports whether two states differ at most in their revisions.
func (s State) same(other State) bool {
	other.Revision = s.Revision
	return s == other
}

// Watch yields the present state of name, and then each newer one, until ctx ends or the
// loop is left. A state is who holds the name, if anybody does, with what value, and how many
// hold it; of the others, only their number. While
// the loop is busy, states may be skipped, but never the newest, and none comes out of
// order. A slow loop costs no more memory than the queue of the name.
//
// Disconnects, compaction and changes of leader do not end the sequence: it catches up.
// While etcd cannot be reached no state comes; a Cache reports its Age. If etcd comes back
// empty or from a backup, what differs then is a state like any other, at a smaller
// revision.
//
// A non-nil error is the last thing that is yielded: the cause of ctx, with the reason if
// etcd could not be reached; ErrInvalid for a bad name or a nil context; ErrClosed;
// ErrEtcdClosed; or etcd's refusal.
//
// Watch itself does not block. Each iteration is a watch of its own, which starts and ends
// with its loop; there may be several, also at the same time.
func (c *Client) Watch(ctx context.Context, name string) iter.Seq2[State, error] {
	const op = "watch"
	if err := c.usable(); err != nil {
		return failed(name, wrap(op, name, err))
	}
	if err := checkName(name); err != nil {
		return failed(name, wrap(op, name, err))
	}
	return c.states(ctx, op, name, follower{client: c, below: c.keys.Queue(name), name: name})
}

// WatchPrefix is Watch for every name that begins with prefix, including names that do not
// exist yet. It yields first the state of each name that is held, sorted by name, and then
// each newer state in the order of revisions. If a name changes more than once while the
// loop is busy, its newest state is kept. An empty prefix means all names.
//
// Errors: as for Watch, but no name is invalid.
func (c *Client) WatchPrefix(ctx context.Context, prefix string) iter.Seq2[State, error] {
	const op = "watch prefix"
	if err := c.usable(); err != nil {
		return failed("", wrap(op, prefix, err))
	}
	return c.states(ctx, op, prefix, follower{client: c, below: c.keys.Below(prefix)})
}

// states yields what a follower finds. The follower runs in a goroutine of its own, which
// lives as long as the loop.
func (c *Client) states(ctx context.Context, op, name string, f follower) iter.Seq2[State, error] {
	return func(yield func(State, error) bool) {
		ctx, stop, err := c.enter(ctx)
		if err != nil {
			failed(f.name, wrap(op, name, err))(yield)
			return
		}
		defer stop()
		ctx, cancel := context.WithCancelCause(ctx)
		changes, done := newPending(f.name != ""), make(chan struct{})
		var end error // set before done is closed
		c.tasks.Run(func() {
			defer close(done)
			end = f.run(ctx, func(_ time.Time, _ int64, _ *queueView, changed []State) { changes.add(changed) })
			cancel(end)
		})
		c.tasks.End() // Close waits for the goroutine, but not for the body of the loop
		defer func() {
			cancel(nil)
			<-done
		}()
		for {
			select {
			case <-changes.ready:
			case <-ctx.Done():
				<-done
				failed(f.name, wrap(op, name, end))(yield)
				return
			}
			for state, ok := changes.next(); ok; state, ok = changes.next() {
				if !yield(state, nil) {
					return
				}
			}
		}
	}
}

// failed returns a sequence that yields only an error.
func failed(name string, err error) iter.Seq2[State, error] {
	return func(yield func(State, error) bool) { yield(State{Holder: Holder{Name: name}}, err) }
}

// pending is what a loop has yet to be given: the newest state of each name.
type pending struct {
	ready chan struct{} // has an item while a state is pending

	mu      sync.Mutex               // guards what follows
	order   list.List                // of State, the oldest first
	byName  map[string]*list.Element // the elements of order
	yielded map[string]State         // the last one of each name that is held
	fresh   bool                     // yield the first state even if nobody holds the name
}

// newPending returns an empty pending; fresh is for the watch of a single name.
func newPending(fresh bool) *pending {
	return &pending{
		ready:   make(chan struct{}, 1),
		byName:  make(map[string]*list.Element),
		yielded: make(map[string]State),
		fresh:   fresh,
	}
}

// add replaces the pending states of the same names.
func (p *pending) add(states []State) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, state := range states {
		if older, ok := p.byName[state.Name]; ok {
			p.order.Remove(older)
		}
		p.byName[state.Name] = p.order.PushBack(state)
	}
	if p.order.Len() > 0 {
		select {
		case p.ready <- struct{}{}:
		default:
		}
	}
}

// next returns the oldest pending state that differs from the last one yielded of its name.
func (p *pending) next() (State, bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for p.order.Len() > 0 {
		state := p.order.Remove(p.order.Front()).(State)
		delete(p.byName, state.Name)
		last, wasHeld := p.yielded[state.Name]
		if state.Held {
			p.yielded[state.Name] = state
		} else {
			delete(p.yielded, state.Name)
		}
		if p.fresh || state.Held != wasHeld || state.Held && !state.same(last) {
			p.fresh = false
			return state, true
		}
	}
	return State{}, false
}

// follower keeps a queueView of the queues below a key of etcd up to date.
type follower struct {
	client   *Client
	below    string
	name     string // if it is the queue of one name, whose first state is reported even if nobody holds it
	stays    bool   // once it has read, a refusal does not end it
	progress bool   // it has to know how far it has come even when nothing changes
}

// run calls update after each read and each answer of the watch, with the time at which the
// read was sent (zero for a watch), the revision reached, the queues as they are then, and
// the states of those whose holders have changed, in the order of their revisions. It returns when ctx ends, with the reason why etcd did
// not answer if that is known, or, unless the follower stays, when etcd refuses.
func (f follower) run(ctx context.Context, update func(sent time.Time, revision int64, queues *queueView, changed []State)) error {
	q := &queueView{keys: f.client.keys, queues: make(map[string][]*mvccpb.KeyValue)}
	logged := ""
	for pause, filled := (backoff.Pause{}), false; ; {
		// First the watch, then the read: so nothing is missed in between.
		w, err := f.client.watches.Open(ctx, watchmux.Target{Key: f.below, Below: true, Progress: f.progress})
		if err != nil && ctx.Err() != nil && !filled {
			return txn.Ended(ctx, f.client.explain(ctx.Err()))
		}
		sent := time.Now()
		resp, refused := f.client.store.ReadAll(ctx, f.below)
		if refused == nil {
			filled = true
			changed := q.load(resp, f.name)
			update(sent, resp.Header.Revision, q, changed)
			// If the read is behind the watch, etcd has come back empty or from a backup in
			// between, and what the watch reports would be from before that.
			if err == nil && w.Opened <= resp.Header.Revision {
				for answer, ended := w.Next(ctx); ended == nil; answer, ended = w.Next(ctx) {
					pause = backoff.Pause{} // only now: reading everything again is expensive
					changed := q.apply(answer.Events, resp.Header.Revision)
					update(time.Time{}, reached(answer), q, changed)
				}
			}
		}
		if err == nil {
			w.Close()
		}
		if refused != nil && (!filled || !f.stays || ctx.Err() != nil) {
			return refused
		}
		if pause.Wait(ctx) != nil {
			return f.client.interrupted(ctx)
		}
		f.logRestart(refused, &logged)
	}
}

// logRestart logs why the follower reads again: each refusal once, until another follows.
func (f follower) logRestart(refused error, logged *string) {
	switch {
	case refused == nil:
		*logged = ""
		f.client.log.Debug("watch has ended, reading everything again", "below", f.below)
	case refused.Error() != *logged:
		*logged = refused.Error()
		f.client.log.Warn("etcd refuses what a Cache reads", "below", f.below, "error", refused)
	}
}

// reached returns the revision up to which a watch has reported everything. While the watch
// catches up, the header of an answer has a revision that it has yet to reach.
func reached(answer *pb.WatchResponse) int64 {
	if n := len(answer.Events); n > 0 {
		return answer.Events[n-1].Kv.ModRevision
	}
	return answer.Header.Revision // it reports progress
}

// queueView is a copy of queues: for each name its entries, the oldest first.
type queueView struct {
	keys   key.Space
	queues map[string][]*mvccpb.KeyValue
}

// load replaces the queueView by what was read. It returns the states of those whose holders
// differ, sorted by name, and in any case that of the name always, if set.
func (q *queueView) load(resp *pb.RangeResponse, always string) (changed []State) {
	before := q.queues
	q.queues = make(map[string][]*mvccpb.KeyValue, len(before))
	// Keys come in order, so the entries of a queue follow each other.
	for kvs := resp.Kvs; len(kvs) > 0; {
		name, ok := q.keys.Name(string(kvs[0].Key))
		n := 1
		for ; n < len(kvs) && q.keys.SameQueue(kvs[0].Key, kvs[n].Key); n++ {
		}
		queue := kvs[:n:n]
		kvs = kvs[n:]
		if !ok {
			continue
		}
		slices.SortFunc(queue, byAge)
		q.queues[name] = queue
		if name == always || !slices.EqualFunc(q.head(before[name]), q.head(queue), same) {
			changed = append(changed, q.state(name, resp.Header.Revision))
		}
	}
	for name := range before {
		if len(q.queues[name]) == 0 {
			changed = append(changed, q.state(name, resp.Header.Revision))
		}
	}
	if always != "" && len(q.queues[always]) == 0 && len(before[always]) == 0 {
		changed = append(changed, q.state(always, resp.Header.Revision))
	}
	slices.SortFunc(changed, func(a, b State) int { return cmp.Compare(a.Name, b.Name) })
	return changed
}

// apply takes in the events after a revision and returns the states of those whose holders
// differ, revision by revision: everything within one transaction is one change.
func (q *queueView) apply(events []*mvccpb.Event, after int64) (changed []State) {
	for len(events) > 0 {
		revision := events[0].Kv.ModRevision
		n := slices.IndexFunc(events, func(ev *mvccpb.Event) bool { return ev.Kv.ModRevision != revision })
		if n < 0 {
			n = len(events)
		}
		if revision > after {
			changed = append(changed, q.applyOne(events[:n], revision)...)
		}
		events = events[n:]
	}
	return changed
}

// applyOne takes in the events of one revision.
func (q *queueView) applyOne(events []*mvccpb.Event, revision int64) (changed []State) {
	before := make(map[string][]*mvccpb.KeyValue, 1) // who held
	for _, ev := range events {
		name, ok := q.keys.Name(string(ev.Kv.Key))
		if !ok {
			continue
		}
		queue := q.queues[name]
		if _, seen := before[name]; !seen {
			before[name] = slices.Clone(q.head(queue))
		}
		i := slices.IndexFunc(queue, func(kv *mvccpb.KeyValue) bool { return bytes.Equal(kv.Key, ev.Kv.Key) })
		if i >= 0 && ev.Type == mvccpb.Event_PUT && queue[i].CreateRevision == ev.Kv.CreateRevision {
			queue[i] = ev.Kv
			continue
		}
		if i >= 0 {
			queue = slices.Delete(queue, i, i+1)
		}
		if ev.Type == mvccpb.Event_PUT {
			i, _ := slices.BinarySearchFunc(queue, ev.Kv, byAge)
			queue = slices.Insert(queue, i, ev.Kv)
		}
		if q.queues[name] = queue; len(queue) == 0 {
			delete(q.queues, name)
		}
	}
	for name, held := range before {
		if !slices.EqualFunc(held, q.head(q.queues[name]), same) {
			changed = append(changed, q.state(name, revision))
		}
	}
	slices.SortFunc(changed, func(a, b State) int { return cmp.Compare(a.Name, b.Name) })
	return changed
}

// state returns the state of a name.
func (q *queueView) state(name string, revision int64) State {
	state := State{Holder: Holder{Name: name}, Revision: revision}
	if head := q.head(q.queues[name]); len(head) > 0 {
		state.Held, state.Holders = true, len(head)
		state.Holder = holderOf(q.keys, name, head[0])
	}
	return state
}

// holders returns all holders of a name, the oldest first.
func (q *queueView) holders(name string) (holders []Holder) {
	for _, kv := range q.head(q.queues[name]) {
		holders = append(holders, holderOf(q.keys, name, kv))
	}
	return holders
}

// head returns the entries of a queue that hold.
func (q *queueView) head(queue []*mvccpb.KeyValue) []*mvccpb.KeyValue {
	return queue[:holding(func(yield func(key.Kind) bool) {
		for _, kv := range queue {
			if !yield(q.keys.KindOf(string(kv.Key))) {
				return
			}
		}
	})]
}

// byAge orders entries by age. Only shared ones may have the same; then by key.
func byAge(a, b *mvccpb.KeyValue) int {
	return cmp.Or(cmp.Compare(a.CreateRevision, b.CreateRevision), bytes.Compare(a.Key, b.Key))
}

// same reports whether two entries show the same holder. Revisions alone do not decide that:
// etcd may have come back empty and given the same ones again.
func same(a, b *mvccpb.KeyValue) bool {
	return a == b || a.CreateRevision == b.CreateRevision && a.Lease == b.Lease && bytes.Equal(a.Value, b.Value) && bytes.Equal(a.Key, b.Key)
}
