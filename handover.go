package locker

import (
	"context"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"

	"github.com/jagregory/locker/v2/internal/txn"
)

// alternate ends every second key of a name and session: etcd refuses to delete and
// put one key in one transaction, so in a hand-over two take turns.
const alternate = ".2"

// handOver releases the entry of l and puts that of next, the next in the client's
// line, at the end of the queue in one transaction: if nobody else is waiting, next
// holds after one commit. It waits for the hedge delay. If there is no answer by then, the
// two go separate ways, and next finds out by itself whether its entry is in the queue
// nevertheless. unknown tells that the entry of l may have been released as well.
func (l *Lock) handOver(ctx context.Context, next *Lock) (released, unknown bool) {
	c := l.client
	if next.session == nil && c.attachNow(next) != nil {
		return false, false // it takes a request, which is for next to make
	}
	if txn.Allowance(int64(len(next.value))) > c.store.HedgeDelay {
		return false, false // it would take too long to wait for
	}
	if next.key == l.key {
		next.key += alternate
	}
	w := &txn.Write{Begun: next.puts.begin, Txn: txn.Txn{
		Name:   l.name,
		Record: next.session.record(),
		Learn:  next.session.learnEpoch,
		Epoch:  next.session.currentEpoch(),
		When:   []*pb.Compare{l.standing(), txn.CmpCreate(next.key, 0)},
		Then:   []*pb.RequestOp{txn.OpDelete(l.key), next.entry(), txn.OpRange(next.newest(0))},
	}}
	w.Landed = func(o txn.Outcome) {
		next.landed(o)
		if o.Err == nil && o.Resp.Succeeded {
			c.lines.Leave(l.name, next) // at once: what is left for l to do it need not wait for
		}
	}
	next.puts.begin(w.Epoch)
	c.store.Submit(w)
	late := time.NewTimer(c.store.HedgeDelay)
	defer late.Stop()
	select {
	case <-w.Done():
		o := w.Result()
		released = o.Err == nil && o.Resp.Succeeded
		return released, !released && (!o.Only || o.State() == txn.InDoubt)
	case <-late.C:
	case <-ctx.Done():
	}
	return false, c.store.Forget(w) != txn.ErrUnsent
}

// share passes the hold of l, which has ended, on to next as it is: without a
// request, with the same entry and token. It reports false if that must not be:
// often enough in a row, or next would not have the session or the value it wants.
func (l *Lock) share(next *Lock) bool {
	l.mu.Lock()
	same := l.turns < l.client.turns && !l.revalued && next.value == l.value && next.wants == l.wants
	l.mu.Unlock()
	if !same || !l.session.replace(l, next) {
		return false
	}
	l.client.lines.Leave(l.name, next)
	return true
}

// replace attaches next to the session in the place of l, with its entry.
func (s *Session) replace(l, next *Lock) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.over {
		return false
	}
	next.session, next.key, next.turns = s, l.key, l.turns+1
	next.queuedAt(l.token.Load(), l.token.Load(), nil, true)
	delete(s.locks, l)
	s.locks[next] = struct{}{}
	return true
}
