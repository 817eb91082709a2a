package locker

import (
	"context"
	"errors"
	"slices"
	"sync"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
)

// group is the group commit of a client: while a transaction is in flight, what
// others want to write gathers, and leaves together as the next one. So a lone
// caller waits for nobody, and many share the cost of a commit.
type group struct {
	client *Client

	mu       sync.Mutex // guards what follows; no request is made under it
	limit    int        // of writes in a transaction
	inFlight bool       // a transaction has left and has not kept the others waiting for too long
	waiting  []*write   // to leave, the oldest first
}

// maxTogether keeps a transaction within etcd's default limit of 128 operations,
// which counts the writes and the operations of the largest one. Where servers are
// set lower, the group learns it from their refusal.
const maxTogether = 120

// write is a transaction on its way through the group.
type write struct {
	txn
	deliver func(*pb.TxnResponse, error)
	left    bool // it is not waiting any more; guarded by the group's mutex
}

// errUnsent is the outcome of a write that never left.
var errUnsent = errors.New("not sent")

// submit sends t to etcd, once, and delivers its answer: what is for a queue together
// with what others write, a record alone. It is the one way in which queues and
// records are written. It does not block.
func (g *group) submit(t txn, deliver func(*pb.TxnResponse, error)) *write {
	w := &write{txn: t, deliver: deliver}
	if t.name == "" {
		w.left = true
		g.start([]*write{w}, func() {})
		return w
	}
	g.mu.Lock()
	g.waiting = append(g.waiting, w)
	batch := g.take()
	g.mu.Unlock()
	g.start(batch, g.next)
	return w
}

// waits reports whether w is yet to leave.
func (g *group) waits(w *write) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	return !w.left
}

// forget takes w back, and reports false if it has left.
func (g *group) forget(w *write) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	if w.left {
		return false
	}
	w.left = true
	g.waiting = slices.DeleteFunc(g.waiting, func(other *write) bool { return other == w })
	return true
}

// take returns the writes that leave now, if nothing is in flight: of each name the
// oldest, since within one transaction a write does not see what another has
// written. The caller has the mutex.
func (g *group) take() (batch []*write) {
	if g.inFlight || len(g.waiting) == 0 {
		return nil
	}
	names := make(map[string]bool, len(g.waiting))
	stay := g.waiting[:0]
	for _, w := range g.waiting {
		if len(batch) == g.limit || names[w.name] {
			stay = append(stay, w)
			continue
		}
		names[w.name] = true
		w.left = true
		batch = append(batch, w)
	}
	clear(g.waiting[len(stay):])
	g.waiting = stay
	g.inFlight = true
	return batch
}

// next lets those waiting leave.
func (g *group) next() {
	g.mu.Lock()
	g.inFlight = false
	batch := g.take()
	g.mu.Unlock()
	g.start(batch, g.next)
}

// start sends a batch in a goroutine of the client. next is called when it has been
// answered, or has kept the others waiting for too long. Whoever waits for a write is
// a task of the client, so that another may be started.
func (g *group) start(batch []*write, next func()) {
	if len(batch) == 0 {
		return
	}
	c := g.client
	c.tasks.run(func() {
		ctx, cancel := context.WithTimeout(c.base, c.attempt())
		defer cancel()
		c.tasks.add()
		late := time.AfterFunc(c.hedgeDelay, func() {
			defer c.tasks.end()
			next()
		})
		resp, err := c.send(ctx, together(batch))
		if late.Stop() {
			next()
			c.tasks.end()
		}
		g.answer(batch, resp, err)
	})
}

func (c *Client) send(ctx context.Context, t txn) (*pb.TxnResponse, error) {
	request := t.request()
	if t.session != nil {
		request.Compare = append(slices.Clip(t.when), t.session.inEpoch(t.epoch))
	}
	resp, err := c.kv.Txn(ctx, request, callOptions...)
	if err == nil && (resp.Header == nil || !complete(request, resp)) {
		return nil, errMalformed
	}
	return resp, clientv3.ContextError(ctx, err)
}

// together makes one transaction of all.
func together(batch []*write) txn {
	if len(batch) == 1 {
		return batch[0].txn
	}
	all := txn{then: make([]*pb.RequestOp, len(batch))}
	epochs := make(map[*Session]int64, 1)
	for i, w := range batch {
		all.then[i] = &pb.RequestOp{Request: &pb.RequestOp_RequestTxn{RequestTxn: w.request()}}
		if epoch, ok := epochs[w.session]; w.session != nil && (!ok || epoch != w.epoch) {
			epochs[w.session] = w.epoch
			all.when = append(all.when, w.session.inEpoch(w.epoch))
		}
	}
	return all
}

// answer delivers their answers to the writes of a batch. If etcd has refused it,
// be it for one of them, each has to leave alone.
func (g *group) answer(batch []*write, resp *pb.TxnResponse, err error) {
	if len(batch) == 1 {
		batch[0].deliver(resp, err)
		return
	}
	if errors.Is(err, rpctypes.ErrTooManyOps) {
		g.mu.Lock()
		g.limit = min(g.limit, max(1, len(batch)/2))
		g.mu.Unlock()
	}
	refused := err == nil && !resp.Succeeded || err != nil && !transient(err)
	for i, w := range batch {
		switch {
		case refused:
			if w.repeated != nil && err != nil && unsure(err) {
				w.repeated.Store(true)
			}
			g.start([]*write{w}, func() {})
		case err != nil:
			w.deliver(nil, err)
		default:
			own := resp.Responses[i].GetResponseTxn()
			own.Header = resp.Header
			w.deliver(own, nil)
		}
	}
}
