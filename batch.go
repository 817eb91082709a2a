package locker

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

// batch is what leaves in one transaction.
type batch struct {
	group  *group
	writes []*write
	ctx    context.Context // of its attempts
	cancel context.CancelFunc

	// Guarded by the group's mutex.
	tried     bool         // once at least
	answered  bool         // for certain
	separated bool         // refused as a whole, so that each of its writes leaves alone
	cleanUp   *tasks.Alarm // ends what nobody waits for
	ended     bool
}

func (g *group) newBatch(writes []*write) *batch {
	b := &batch{group: g, writes: writes}
	b.ctx, b.cancel = context.WithCancel(g.client.base)
	g.mu.Lock()
	defer g.mu.Unlock()
	for _, w := range writes {
		w.batch = b
	}
	b.forgotByAll() // by all, while it was about to leave
	return b
}

// forgotByAll lets the attempts come to an end if nobody waits for them any more: they are
// given the time to be answered. The caller is a task and has the group's mutex.
func (b *batch) forgotByAll() {
	waitedFor := func(w *write) bool { return !w.forgotten && !w.resolved }
	if b.cleanUp == nil && !b.ended && !slices.ContainsFunc(b.writes, waitedFor) {
		c := b.group.client
		b.cleanUp = c.tasks.After(c.lateAnswerWait()+allowance(b.size()), b.cancel)
	}
}

func (b *batch) size() (n int64) {
	for _, w := range b.writes {
		n += w.size()
	}
	return n
}

// run sends the batch. moved is called when it has been answered or has failed; what has
// failed gathers again after a pause, as far as somebody waits for it.
func (b *batch) run(moved func()) {
	c := b.group.client
	defer b.end()
	size := b.size()
	defer c.carry(size)()
	_, err := hedge(b.ctx, c, allowance(size), c.lateAnswerWait(), b.attempt)
	moved()
	if err == nil || !transient(err) {
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

func (b *batch) end() {
	b.group.mu.Lock()
	defer b.group.mu.Unlock()
	b.cancel()
	b.ended = true
	if b.cleanUp != nil {
		b.cleanUp.Stop()
	}
}

// attempt sends the batch or, once more, what is still waited for of it.
func (b *batch) attempt(ctx context.Context) (struct{}, error) {
	writes := b.begin()
	if len(writes) == 0 {
		return struct{}{}, nil
	}
	once := &sendings{Context: ctx}
	resp, err := b.group.client.send(once, together(writes))
	err = clientv3.ContextError(ctx, err)
	b.answer(writes, outcome{resp: resp, err: err, repeated: once.repeated()})
	return struct{}{}, err
}

// begin counts an attempt at each write in it.
func (b *batch) begin() []*write {
	b.group.mu.Lock()
	defer b.group.mu.Unlock()
	if b.answered {
		return nil // the hedge has come too late
	}
	var writes []*write
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
func (c *Client) send(once *sendings, t txn) (*pb.TxnResponse, error) {
	request := t.request()
	if t.session != nil {
		request.Compare = append(slices.Clip(t.when), t.session.inEpoch(t.epoch))
	}
	resp, err := c.kv.Txn(once, request, append(slices.Clip(callOptions), once.count())...)
	if err == nil && (resp.Header == nil || !complete(request, resp)) {
		return nil, errMalformed
	}
	return resp, err
}

// together makes one transaction of all. If an epoch is not that of its session any more
// it reads which one is.
func together(writes []*write) txn {
	if len(writes) == 1 {
		return writes[0].txn
	}
	all := txn{then: make([]*pb.RequestOp, len(writes))}
	epochs := make(map[*Session]int64, 1)
	for i, w := range writes {
		all.then[i] = &pb.RequestOp{Request: &pb.RequestOp_RequestTxn{RequestTxn: w.request()}}
		if epoch, ok := epochs[w.session]; w.session != nil && (!ok || epoch != w.epoch) {
			epochs[w.session] = w.epoch
			all.when = append(all.when, w.session.inEpoch(w.epoch))
			all.otherwise = append(all.otherwise, opRange(revisionsOf(w.session.record())))
		}
	}
	return all
}

// answer gives each write its part of what became of an attempt. What was refused
// because of its epoch gathers again with the present one. If etcd has refused all, be it
// for one of them, each has to leave alone.
func (b *batch) answer(writes []*write, o outcome) {
	switch {
	case len(writes) == 1:
		b.resolve(writes[0], o)
	case o.err == nil && !o.resp.Succeeded:
		b.separate(writes, o, epochsOf(o.resp))
	case o.err != nil && !transient(o.err):
		b.separate(writes, o, nil)
	default:
		for i, w := range writes {
			own := o
			if o.err == nil {
				own.resp = o.resp.Responses[i].GetResponseTxn()
				own.resp.Header = o.resp.Header
			}
			b.resolve(w, own)
		}
	}
}

// epochsOf returns the mod revisions of the records that a refused transaction has read.
func epochsOf(resp *pb.TxnResponse) map[string]int64 {
	epochs := make(map[string]int64, len(resp.Responses))
	for i := range resp.Responses {
		for _, kv := range found(resp, i) {
			epochs[string(kv.Key)] = kv.ModRevision
		}
	}
	return epochs
}

// resolve takes in the outcome of an attempt at one write; the first that is certain is
// the result.
func (b *batch) resolve(w *write, o outcome) {
	g := b.group
	certain := o.err == nil || !transient(o.err)
	if !certain && g.client.etcdIsClosed() {
		certain, o.err = true, ErrEtcdClosed
	}
	g.mu.Lock()
	o.only = w.attempts == 1 && !o.repeated
	result := certain && !w.resolved
	w.resolved = w.resolved || certain
	b.answered = b.answered || certain
	if !certain && !isContextError(o.err) {
		w.last = o.err
	}
	g.mu.Unlock()
	w.land(o) // first, so that who waits finds everything in its place
	if result {
		w.result = o
		close(w.done)
	}
}

// separate sends writes again after they were refused together: those that a newer epoch
// is known for together, the others each alone.
func (b *batch) separate(writes []*write, o outcome, epochs map[string]int64) {
	g := b.group
	g.mu.Lock()
	if errors.Is(o.err, rpctypes.ErrTooManyOps) {
		g.limit = min(g.limit, max(1, len(writes)/2))
	}
	again := b.separated
	b.separated, b.answered = true, true
	var together, alone, over []*write
	for _, w := range writes {
		doubtful := o.repeated || o.err != nil && unsure(o.err)
		if !doubtful {
			w.attempts--
		}
		switch {
		case again || w.forgotten || w.resolved:
			over = append(over, w)
		case w.session != nil && epochs[w.session.record()] > w.epoch:
			w.epoch = epochs[w.session.record()]
			w.session.learnEpoch(w.epoch)
			together = append(together, w)
		case doubtful:
			w.begin() // one attempt lands here, another follows
			over = append(over, w)
			fallthrough
		default:
			alone = append(alone, w)
		}
	}
	g.mu.Unlock()
	refused := o
	if o.err == nil {
		refused.err = errUnsent
	}
	g.again(together)
	for _, w := range append(over, together...) { // the attempt is over; again has counted another
		w.land(refused)
	}
	for _, w := range alone {
		g.start([]*write{w}, func() {})
	}
}
