package txn

import (
	"context"
	"errors"
	"slices"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/jagregory/locker/v2/internal/backoff"
	"github.com/jagregory/locker/v2/internal/tasks"
)

// batch is a set of writes that leave in one transaction.
type batch struct {
	group  *group
	writes []*Write
	flat   bool            // not nested
	ctx    context.Context // of its attempts
	cancel context.CancelFunc

	// Guarded by the group's mutex.
	counted   bool         // by the group, as one that others wait for
	names     int          // how many have writes in it
	tried     bool         // at least once
	answered  bool         // for certain
	separated bool         // refused as a whole, so each of its writes is sent alone
	cutOff    *tasks.Alarm // ends the attempts; nil if they may take as long as they like
	cutOffAt  time.Time
	ended     bool
}

// newBatch returns the batch of the writes, which have left. The caller holds the group's
// mutex.
func (g *group) newBatch(writes []*Write) *batch {
	b := &batch{group: g, writes: writes}
	b.ctx, b.cancel = context.WithCancel(g.store.Base)
	for _, w := range writes {
		w.left, w.batch = true, b
	}
	return b
}

// forgotByAll lets the attempts end if nobody waits for them any more, after the time that
// they need to be answered. The caller is a task and holds the group's mutex.
func (b *batch) forgotByAll() {
	if !b.waitedFor() {
		b.endIn(b.group.store.LateAnswerWait() + Allowance(b.size()))
	}
}

// waitedFor reports whether somebody still waits for one of the writes. The caller holds
// the group's mutex.
func (b *batch) waitedFor() bool {
	return slices.ContainsFunc(b.writes, func(w *Write) bool { return !w.forgotten && !w.resolved })
}

// hurry lets the attempts end soon: a caller whose context has ended waits for them.
func (b *batch) hurry() {
	b.group.mu.Lock()
	defer b.group.mu.Unlock()
	b.endIn(endedWait)
}

// endedWait is how long a caller whose context has ended waits for an answer that is about
// to come. After it, the outcome is in doubt.
const endedWait = 20 * time.Millisecond

// late lets the writes leave that wait for the batch, and if a caller sends it, lets that
// return once it has waited for a late answer.
func (b *batch) late(inCaller bool) {
	b.group.makeWay(b)
	if inCaller {
		b.group.mu.Lock()
		defer b.group.mu.Unlock()
		b.endIn(b.group.store.LateAnswerWait() + Allowance(b.size()))
	}
}

// endIn cuts the attempts off after d, unless they are cut off before. The caller holds the
// group's mutex; while the batch has not ended, a task is at work on it.
func (b *batch) endIn(d time.Duration) {
	at := time.Now().Add(d)
	switch {
	case b.ended || b.cutOff != nil && !at.Before(b.cutOffAt):
		return
	case b.cutOff != nil:
		b.cutOff.Stop()
	}
	b.cutOff, b.cutOffAt = b.group.store.Tasks.After(d, b.cancel), at
}

func (b *batch) size() (n int64) {
	for _, w := range b.writes {
		n += w.size()
	}
	return n
}

// run sends the batch. In the goroutine of a caller it returns when the first attempt has
// ended, and what is left to do goes on in another goroutine. That attempt has only the time
// of a late answer; any other may take as long as somebody waits for it.
func (b *batch) run(inCaller bool) {
	s := b.group.store
	size := b.size()
	answered := s.carry(size)
	late := s.Tasks.After(s.HedgeDelay, func() { b.late(inCaller) })
	firstLate := s.LateAnswerWait()
	if inCaller {
		firstLate = endedWait // after an answer, the caller returns soon
	}
	h := newHedged(b.ctx, s, Allowance(size), firstLate, s.LateAnswerWait(), b.attempt)
	h.first()
	if late.Stop() {
		b.group.makeWay(b)
	}
	finish := func() {
		_, err := h.rest()
		answered()
		b.retry(err)
		b.end()
	}
	if inCaller && (h.hedged || !h.own.certain()) {
		s.Tasks.Run(finish)
	} else {
		finish()
	}
}

// retry has the writes that somebody still waits for gather again after a pause, if the
// batch has failed with err.
func (b *batch) retry(err error) {
	b.group.mu.Lock()
	waitedFor := b.waitedFor()
	b.group.mu.Unlock()
	if err == nil || !Transient(err) || !waitedFor {
		return
	}
	pause := time.Duration(0)
	for _, w := range b.writes {
		pause = max(pause, w.pause.Next())
	}
	if backoff.Sleep(b.group.store.Base, pause) == nil {
		b.group.again(b, b.writes)
	}
}

// end releases what the batch takes.
func (b *batch) end() {
	b.cancel()
	b.group.mu.Lock()
	defer b.group.mu.Unlock()
	b.ended = true
	if b.cutOff != nil {
		b.cutOff.Stop()
	}
}

// attempt sends the batch; if it was sent before, only those of its writes that somebody
// still waits for.
func (b *batch) attempt(ctx context.Context) (struct{}, error) {
	writes, t := b.begin()
	if len(writes) == 0 {
		return struct{}{}, nil
	}
	repeats, sent := &Repeats{Context: ctx}, time.Now()
	resp, err := b.group.store.send(repeats, t)
	if err = clientv3.ContextError(ctx, err); err == nil {
		b.group.store.took.Store(int64(time.Since(sent)))
	}
	b.answer(writes, Outcome{Resp: resp, Err: err, repeated: repeats.Any()})
	return struct{}{}, err
}

// begin returns the writes of an attempt and their transaction, and counts the attempt for
// each: what is sent are the epochs that were counted.
func (b *batch) begin() (writes []*Write, t Txn) {
	b.group.mu.Lock()
	defer b.group.mu.Unlock()
	if b.answered {
		return nil, Txn{} // the hedge comes too late
	}
	for _, w := range b.writes {
		if b.tried && (w.forgotten || w.resolved) {
			continue
		}
		if b.tried {
			w.begin()
		}
		w.attempts++
		writes = append(writes, w)
	}
	b.tried = true
	return writes, together(writes, b.flat)
}

// send makes one attempt at a transaction. The error is gRPC's.
func (s *Store) send(repeats *Repeats, t Txn) (*pb.TxnResponse, error) {
	request := t.request(true)
	resp, err := s.KV.Txn(repeats, request, append(slices.Clip(CallOptions), repeats.count())...)
	if err == nil && (resp.Header == nil || !complete(request, resp)) {
		return nil, ErrMalformed
	}
	return resp, err
}

// together makes one transaction of all writes, flat or nested. It is refused if an epoch is
// not that of its record any more, and then reads the present ones; a flat one also if a
// compare of any of the writes does not hold.
func together(writes []*Write, flat bool) Txn {
	switch len(writes) {
	case 0:
		return Txn{}
	case 1:
		return writes[0].Txn
	}
	all := Txn{Then: make([]*pb.RequestOp, 0, len(writes))}
	guarded := make(guards, 1)
	for _, w := range writes {
		if flat {
			part := w.flat()
			all.When = append(all.When, part.When...)
			all.Then = append(all.Then, part.Then...)
		} else {
			all.Then = append(all.Then, OpTxn(w.request(false)))
		}
		if guarded.add(w) {
			all.When = append(all.When, w.guard())
			all.Otherwise = append(all.Otherwise, OpRange(RevisionsOf(w.Record.Key)))
		}
	}
	return all
}

// answer gives each write its part of the outcome of an attempt; writes that were refused
// together are sent again instead, see separate.
func (b *batch) answer(writes []*Write, o Outcome) {
	switch {
	case len(writes) == 1:
		b.resolve(writes[0], o)
	case o.Err == nil && !o.Resp.Succeeded:
		b.separate(writes, o, epochsOf(o.Resp))
	case o.Err != nil && !Transient(o.Err):
		b.separate(writes, o, nil)
	case o.Err != nil:
		for _, w := range writes {
			b.resolve(w, o)
		}
	default:
		b.group.mu.Lock()
		b.group.learn(b, false)
		b.group.mu.Unlock()
		responses := o.Resp.Responses
		for _, w := range writes {
			own, n := o, 1
			if b.flat {
				n = len(w.flat().Then)
				own.Resp = &pb.TxnResponse{Succeeded: true, Responses: responses[:n:n]}
			} else {
				own.Resp = responses[0].GetResponseTxn()
			}
			own.Resp.Header, responses = o.Resp.Header, responses[n:]
			b.resolve(w, own)
		}
	}
}

// epochs are the mod revisions of records, by their keys.
type epochs map[string]int64

// of returns the present epoch of a write, 0 if its record is gone.
func (e epochs) of(w *Write) int64 {
	if w.Record == nil {
		return w.Epoch
	}
	return e[w.Record.Key]
}

// epochsOf returns the mod revisions of the records that a refused transaction has read.
func epochsOf(resp *pb.TxnResponse) epochs {
	epochs := make(epochs, len(resp.Responses))
	for i := range resp.Responses {
		for _, kv := range Found(resp, i) {
			epochs[string(kv.Key)] = kv.ModRevision
		}
	}
	return epochs
}

// resolve takes in the outcome of an attempt at one write. The first certain outcome is the
// result.
func (b *batch) resolve(w *Write, o Outcome) {
	g := b.group
	certain := o.certain()
	if closed := g.store.Closed(); closed != nil && !certain {
		certain, o.Err = true, closed
	}
	g.mu.Lock()
	o.Only = w.attempts == 1 && !o.repeated
	result := certain && !w.resolved
	w.resolved = w.resolved || certain
	b.answered = b.answered || certain
	if !certain && !IsContextError(o.Err) {
		w.last = o.Err
	}
	g.mu.Unlock()
	w.land(o) // before done is closed, so that those who wait find its effects
	if result {
		w.result = o
		close(w.done)
	}
}

// separate sends writes again after they were refused together. If a compare did not hold,
// those that may have been refused because of another gather again: with the present epoch,
// and nested if they were flat. Otherwise, and if its record is gone, each is sent alone.
func (b *batch) separate(writes []*Write, o Outcome, epochs epochs) {
	g := b.group
	g.mu.Lock()
	if errors.Is(o.Err, rpctypes.ErrTooManyOps) {
		operations := 0
		for _, w := range writes {
			operations += w.operations(b.flat)
		}
		g.limit = min(g.limit, max(1, operations/2))
	}
	again := b.separated
	b.separated, b.answered = true, true
	stale := slices.ContainsFunc(writes, func(w *Write) bool { return epochs.of(w) != w.Epoch })
	gather := o.Err == nil && (b.flat || stale)
	if gather && !stale && !again {
		g.learn(b, true)
	}
	var gathered, over []*Write
	var alone []*batch
	for _, w := range writes {
		doubtful := o.State() == InDoubt
		if !doubtful {
			w.attempts--
		}
		switch present := epochs.of(w); {
		case again || w.forgotten || w.resolved || w.batch != b:
			over = append(over, w)
		case gather && present >= w.Epoch:
			if present > w.Epoch {
				w.Epoch = present
				w.Record.Learn(present)
			}
			w.refused = b.flat && !stale
			gathered = append(gathered, w)
		case doubtful:
			w.begin() // one attempt is over, another follows
			over = append(over, w)
			fallthrough
		default:
			alone = append(alone, g.newBatch([]*Write{w}))
		}
	}
	g.mu.Unlock()
	refused := o
	if o.Err == nil {
		refused.Err = ErrUnsent
	}
	g.again(b, gathered)
	for _, w := range append(over, gathered...) { // not before again has counted the next attempt
		w.land(refused)
	}
	g.start(alone...)
}
