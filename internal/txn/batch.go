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
	ctx    context.Context // of its attempts
	cancel context.CancelFunc

	// Guarded by the group's mutex.
	tried     bool         // at least once
	answered  bool         // for certain
	separated bool         // refused as a whole, so each of its writes is sent alone
	cleanUp   *tasks.Alarm // ends the attempts when nobody waits for them
	ended     bool
}

// newBatch returns the batch of the writes, which have left.
func (g *group) newBatch(writes []*Write) *batch {
	b := &batch{group: g, writes: writes}
	b.ctx, b.cancel = context.WithCancel(g.store.Base)
	g.mu.Lock()
	defer g.mu.Unlock()
	for _, w := range writes {
		w.batch = b
	}
	b.forgotByAll() // perhaps by all, while it was about to leave
	return b
}

// forgotByAll lets the attempts end if nobody waits for them any more, after the time that
// they need to be answered. The caller is a task and holds the group's mutex.
func (b *batch) forgotByAll() {
	waitedFor := func(w *Write) bool { return !w.forgotten && !w.resolved }
	if b.cleanUp == nil && !b.ended && !slices.ContainsFunc(b.writes, waitedFor) {
		s := b.group.store
		b.cleanUp = s.Tasks.After(s.LateAnswerWait()+Allowance(b.size()), b.cancel)
	}
}

func (b *batch) size() (n int64) {
	for _, w := range b.writes {
		n += w.size()
	}
	return n
}

// run sends the batch. It calls moved when the batch has been answered or has failed. After
// a failure, the writes that somebody still waits for gather again after a pause.
func (b *batch) run(moved func()) {
	s := b.group.store
	defer b.end()
	size := b.size()
	defer s.carry(size)()
	_, err := hedge(b.ctx, s, Allowance(size), s.LateAnswerWait(), b.attempt)
	moved()
	if err == nil || !Transient(err) {
		return
	}
	pause := time.Duration(0)
	for _, w := range b.writes {
		pause = max(pause, w.pause.Next())
	}
	if backoff.Sleep(b.ctx, pause) == nil {
		b.group.again(b.writes)
	}
}

// end releases what the batch takes.
func (b *batch) end() {
	b.group.mu.Lock()
	defer b.group.mu.Unlock()
	b.cancel()
	b.ended = true
	if b.cleanUp != nil {
		b.cleanUp.Stop()
	}
}

// attempt sends the batch; if it was sent before, only those of its writes that somebody
// still waits for.
func (b *batch) attempt(ctx context.Context) (struct{}, error) {
	writes := b.begin()
	if len(writes) == 0 {
		return struct{}{}, nil
	}
	repeats := &Repeats{Context: ctx}
	resp, err := b.group.store.send(repeats, together(writes))
	err = clientv3.ContextError(ctx, err)
	b.answer(writes, Outcome{Resp: resp, Err: err, repeated: repeats.Any()})
	return struct{}{}, err
}

// begin returns the writes of an attempt, and counts the attempt for each.
func (b *batch) begin() []*Write {
	b.group.mu.Lock()
	defer b.group.mu.Unlock()
	if b.answered {
		return nil // the hedge comes too late
	}
	var writes []*Write
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
	return writes
}

// send makes one attempt at a transaction. The error is gRPC's.
func (s *Store) send(repeats *Repeats, t Txn) (*pb.TxnResponse, error) {
	request := t.request()
	if t.Record != nil {
		request.Compare = append(slices.Clip(t.When), t.guard())
	}
	resp, err := s.KV.Txn(repeats, request, append(slices.Clip(CallOptions), repeats.count())...)
	if err == nil && (resp.Header == nil || !complete(request, resp)) {
		return nil, ErrMalformed
	}
	return resp, err
}

// together makes one transaction of all writes. It is refused if an epoch is not that of
// its record any more, and then reads the present ones.
func together(writes []*Write) Txn {
	if len(writes) == 1 {
		return writes[0].Txn
	}
	all := Txn{Then: make([]*pb.RequestOp, len(writes))}
	epochs := make(map[*Record]int64, 1)
	for i, w := range writes {
		all.Then[i] = &pb.RequestOp{Request: &pb.RequestOp_RequestTxn{RequestTxn: w.request()}}
		if epoch, ok := epochs[w.Record]; w.Record != nil && (!ok || epoch != w.Epoch) {
			epochs[w.Record] = w.Epoch
			all.When = append(all.When, w.guard())
			all.Otherwise = append(all.Otherwise, OpRange(RevisionsOf(w.Record.Key)))
		}
	}
	return all
}

// answer gives each write its part of the outcome of an attempt. Writes that were refused
// because of their epoch gather again with the present one. If etcd has refused the whole
// transaction, perhaps because of one write, each write is sent alone.
func (b *batch) answer(writes []*Write, o Outcome) {
	switch {
	case len(writes) == 1:
		b.resolve(writes[0], o)
	case o.Err == nil && !o.Resp.Succeeded:
		b.separate(writes, o, epochsOf(o.Resp))
	case o.Err != nil && !Transient(o.Err):
		b.separate(writes, o, nil)
	default:
		for i, w := range writes {
			own := o
			if o.Err == nil {
				own.Resp = o.Resp.Responses[i].GetResponseTxn()
				own.Resp.Header = o.Resp.Header
			}
			b.resolve(w, own)
		}
	}
}

// epochsOf returns the mod revisions of the records that a refused transaction has read.
func epochsOf(resp *pb.TxnResponse) map[string]int64 {
	epochs := make(map[string]int64, len(resp.Responses))
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

// separate sends writes again after they were refused together: those for which a newer
// epoch is known together, the others each alone.
func (b *batch) separate(writes []*Write, o Outcome, epochs map[string]int64) {
	g := b.group
	g.mu.Lock()
	if errors.Is(o.Err, rpctypes.ErrTooManyOps) {
		g.limit = min(g.limit, max(1, len(writes)/2))
	}
	again := b.separated
	b.separated, b.answered = true, true
	var gathered, alone, over []*Write
	for _, w := range writes {
		doubtful := o.State() == InDoubt
		if !doubtful {
			w.attempts--
		}
		switch {
		case again || w.forgotten || w.resolved:
			over = append(over, w)
		case w.Record != nil && epochs[w.Record.Key] > w.Epoch:
			w.Epoch = epochs[w.Record.Key]
			w.Record.Learn(w.Epoch)
			gathered = append(gathered, w)
		case doubtful:
			w.begin() // one attempt is over, another follows
			over = append(over, w)
			fallthrough
		default:
			alone = append(alone, w)
		}
	}
	g.mu.Unlock()
	refused := o
	if o.Err == nil {
		refused.Err = ErrUnsent
	}
	g.again(gathered)
	for _, w := range append(over, gathered...) { // not before again has counted the next attempt
		w.land(refused)
	}
	for _, w := range alone {
		g.start([]*Write{w}, func() {})
	}
}
