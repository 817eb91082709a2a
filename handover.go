package locker

import (
	"context"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
)

// alternate ends every second key of a name and session: etcd refuses to delete and
// put one key in one transaction, so in a hand-over two take turns.
const alternate = ".2"

// handOver releases the entry of l and puts that of heir, the next in the client's
// line, at the end of the queue in one transaction: if nobody else is waiting, heir
// holds after one commit. It waits for the hedge delay. If there is no answer by then, the
// two go separate ways, and heir finds out by itself whether its entry is in the queue
// nevertheless. unknown tells that the entry of l may have been released as well.
func (l *Lock) handOver(ctx context.Context, heir *Lock) (released, unknown bool) {
	c := l.client
	if heir.session == nil && c.attachNow(heir) != nil {
		return false, false // it takes a request, which is for heir to make
	}
	if allowance(int64(len(heir.value))) > c.hedgeDelay {
		return false, false // it would take too long to wait for
	}
	if heir.key == l.key {
		heir.key += alternate
	}
	w := &write{begun: heir.puts.begin, txn: txn{
		name:    l.name,
		session: heir.session,
		epoch:   heir.session.currentEpoch(),
		when:    []*pb.Compare{l.standing(), created(heir.key, 0)},
		then:    []*pb.RequestOp{remove(l.key), heir.entry(), within(heir.newest(0))},
	}}
	w.landed = func(o outcome) {
		heir.landed(o)
		if o.err == nil && o.resp.Succeeded {
			c.lines.leave(l.name, heir) // at once: what is left for l to do it need not wait for
		}
	}
	heir.puts.begin(w.epoch)
	c.group.submit(w)
	late := time.NewTimer(c.hedgeDelay)
	defer late.Stop()
	select {
	case <-w.done:
		o := w.result
		released = o.err == nil && o.resp.Succeeded
		return released, !released && (!o.only || o.inDoubt())
	case <-late.C:
	case <-ctx.Done():
	}
	return false, c.group.forget(w) != errUnsent
}

// share passes the hold of l, which has ended, on to heir as it is: without a
// request, with the same entry and token. It reports false if that must not be:
// often enough in a row, or heir would not have the session or the value it wants.
func (l *Lock) share(heir *Lock) bool {
	l.mu.Lock()
	same := l.turns < l.client.turns && !l.revalued && heir.value == l.value && heir.wants == l.wants
	l.mu.Unlock()
	if !same || !l.session.replace(l, heir) {
		return false
	}
	l.client.lines.leave(l.name, heir)
	return true
}

// replace attaches heir to the session in the place of l, with its entry.
func (s *Session) replace(l, heir *Lock) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.over {
		return false
	}
	heir.session, heir.key, heir.turns = s, l.key, l.turns+1
	heir.queuedAt(l.token.Load(), l.token.Load(), nil, true)
	delete(s.locks, l)
	s.locks[heir] = struct{}{}
	return true
}
