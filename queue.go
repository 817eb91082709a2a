package locker

import (
	"context"
	"errors"
	"slices"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"google.golang.org/grpc/connectivity"

	"github.com/jagregory/locker/v2/internal/txn"
)

// take acquires the lock: it joins the queue, unless it was put there by its
// predecessor, and waits for its turn. On error fail must follow.
func (l *Lock) take(caller context.Context, try bool) error {
	// While it is queued, the lock's own context ends with that of the caller.
	defer context.AfterFunc(caller, func() { l.endWait(context.Cause(caller)) })()
	ctx := l.ctx
	if l.token.Load() == 0 {
		if err := l.enqueue(ctx, try); err != nil {
			return err
		}
	}
	// Were another attempt still under way, and somebody deleted the entry, it could
	// put it once more, behind others, and nobody would notice. Once none is, the
	// token is final, and so is what is ahead of it.
	if err := l.resolveInDoubt(ctx); err != nil {
		return err
	}
	if err := l.waitForHead(ctx); err != nil {
		return err
	}
	return l.hold()
}

// enqueue puts the entry at the end of the queue, or, to try, only into an empty
// queue. It repeats itself until etcd has answered for certain or ctx has ended. On
// error, an entry may have been left: cleanUp removes it.
func (l *Lock) enqueue(ctx context.Context, try bool) error {
	c, s := l.client, l.session
	var t txn.Txn
	if try || !c.watches.Keeps(l.queue()) {
		t = l.taking(try) // it has not been waited for lately, so it is probably free
	} else {
		t = l.joining()
	}
	for {
		t.Epoch = s.currentEpoch()
		l.puts.begin(t.Epoch)
		resp, _, err := c.store.Write(ctx, &txn.Write{Txn: t, Begun: l.puts.begin, Landed: l.landed})
		switch {
		case err != nil:
			return s.diagnose(err)
		case !s.timeline.follows(resp.Header, l.since) || resp.Succeeded && resp.Header.Revision <= l.since:
			return s.fail(errBackInTime)
		case resp.Succeeded:
			return nil
		case t.Otherwise == nil:
			t = l.joining()
			continue
		}
		own, record, head := txn.Found(resp, 0), txn.Found(resp, 1), txn.Found(resp, 2)
		switch {
		case len(own) > 0 && own[0].CreateRevision <= l.since: // it was there before, and belongs to no lock
			stray := entry{name: l.name, key: l.key, created: own[0].CreateRevision}
			if _, _, err := c.store.Commit(ctx, stray.removal()); err != nil {
				return err
			}
		case len(own) > 0: // by an attempt whose answer has not come
			l.queuedAt(own[0].CreateRevision, own[0].ModRevision, nil, false)
			return nil
		case try && len(head) > 0:
			return &LockedError{Holder: holderOf(l.name, head[0])}
		case len(record) == 0:
			if err := s.writeRecord(ctx); err != nil {
				return err
			}
		case record[0].ModRevision < t.Epoch:
			return s.fail(errBackInTime)
		default:
			s.learnEpoch(record[0].ModRevision)
		}
	}
}

// taking is the transaction that puts the entry if the queue is empty, and to try, else
// reads why not.
func (l *Lock) taking(try bool) txn.Txn {
	t := txn.Txn{Name: l.name, Record: l.session.record(), Learn: l.session.learnEpoch, When: []*pb.Compare{txn.CmpNoneBelow(l.queue())}, Then: []*pb.RequestOp{l.entry()}}
	if try {
		t.Otherwise = l.reasons()
	}
	return t
}

// joining is the transaction that puts the entry at the end of the queue and reads
// what is ahead of it.
func (l *Lock) joining() txn.Txn {
	return txn.Txn{
		Name:      l.name,
		Record:    l.session.record(),
		Learn:     l.session.learnEpoch,
		When:      []*pb.Compare{txn.CmpCreate(l.key, 0)},
		Then:      []*pb.RequestOp{l.entry(), txn.OpRange(l.newest(0))},
		Otherwise: l.reasons(),
	}
}

func (l *Lock) entry() *pb.RequestOp { return txn.OpPut(l.key, l.value, l.session.lease) }

// reasons reads why the entry was not put.
func (l *Lock) reasons() []*pb.RequestOp {
	return []*pb.RequestOp{
		txn.OpRange(txn.RevisionsOf(l.key)),
		txn.OpRange(txn.RevisionsOf(l.session.record())),
		txn.OpRange(txn.OldestBelow(l.queue())),
	}
}

// landed takes in the outcome of an attempt to put the entry. If what is ahead was not
// read, the queue was empty.
func (l *Lock) landed(o txn.Outcome) {
	if o.Err == nil {
		l.session.timeline.saw(o.Resp.Header)
	}
	if o.Err == nil && o.Resp.Succeeded {
		token := o.Resp.Header.Revision
		ahead, known := []predecessor(nil), true
		if list := o.Resp.Responses[len(o.Resp.Responses)-1].GetResponseRange(); list != nil {
			ahead, known = l.predecessors(list.Kvs, token)
		}
		l.queuedAt(token, token, ahead, known)
	}
	// Not before the token is set: whoever cleans up looks at both.
	l.puts.end(o.State() != txn.InDoubt)
}

var errBackInTime = errors.New("etcd has gone back to an earlier revision")

// queuedAt notes that the entry is in the queue, and what was ahead of it when it was
// put, if that is known. Of several entries, put one after the other had been deleted,
// the newest is the one that may be there.
func (l *Lock) queuedAt(created, modified int64, ahead []predecessor, known bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if created > l.token.Load() {
		l.token.Store(created)
		l.modified = modified
	}
	if created == l.token.Load() || !known {
		l.ahead, l.placed = ahead, known
	}
}

// positions returns what was ahead of the entry at a revision, 0 if that is not known.
func (l *Lock) positions() (ahead []predecessor, revision int64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if !l.placed {
		return nil, 0
	}
	return slices.Clone(l.ahead), l.token.Load()
}

// deleteEntry deletes the entry, this incarnation of it and no other, and reports
// whether it was there until then. It is a transaction without a put, which etcd
// accepts even when it has run out of space.
func (l *Lock) deleteEntry(ctx context.Context) (found bool, err error) {
	resp, only, err := l.client.store.Commit(ctx, txn.Txn{Name: l.name, When: []*pb.Compare{l.standing()}, Then: []*pb.RequestOp{txn.OpDelete(l.key)}})
	if err != nil {
		return false, err
	}
	l.session.timeline.saw(resp.Header)
	return resp.Succeeded || !only, nil
}

// cleanUp removes whatever the lock may have in the queue, and detaches it; next, if
// there is one, gets its turn. It is bounded by the TTL.
func (l *Lock) cleanUp(next *Lock) error {
	ctx, cancel := context.WithTimeout(l.session.cleanUpCtx, l.session.ttl)
	defer cancel()
	found, err := l.dequeue(ctx, next)
	return l.conclude(next, found, err)
}

// conclude draws the conclusions from what dequeue returned: what could not be confirmed
// entryDeleted costs the session its lease, and goes with it.
func (l *Lock) conclude(next *Lock, found bool, err error) error {
	defer l.detach(next)
	s := l.session
	if err != nil {
		s.deleteLater(l)
	}
	switch {
	case err == nil && found:
		return nil
	case s.ctx.Err() != nil: // its lease has taken the entry along, or will
		return context.Cause(s.ctx)
	case err == nil:
		return &LostError{Name: l.name, Token: l.token.Load(), Reason: Deleted}
	}
	s.end(&LostError{Reason: Revoked, Cause: err})
	return err
}

// resolveInDoubt makes sure that no put of the entry can take effect any more. It first
// gives those under way the time to be answered: a fence costs the other puts of the
// session another attempt.
func (l *Lock) resolveInDoubt(ctx context.Context) error {
	if !l.puts.any() {
		return nil
	}
	landed, cancel := context.WithTimeout(ctx, l.client.store.HedgeDelay+txn.Allowance(int64(len(l.Value()))))
	l.puts.wait(landed)
	cancel()
	if !l.puts.any() {
		return nil
	}
	created, err := l.invalidatePuts(ctx)
	if err == nil {
		l.queuedAt(created, created, nil, false)
	}
	return err
}

// dequeue releases what is in the queue, after making sure that nothing can come
// after it, and reports whether it was there until then.
func (l *Lock) dequeue(ctx context.Context, next *Lock) (found bool, err error) {
	if err := l.resolveInDoubt(ctx); err != nil {
		return false, err
	}
	if l.token.Load() == 0 {
		return false, nil
	}
	unknown := false
	if next != nil {
		if found, unknown = l.handOver(ctx, next); found {
			return true, nil
		}
	}
	found, err = l.deleteEntry(ctx)
	return found || unknown, err
}

// nothingLeft reports whether the lock has certainly nothing in the queue.
func (l *Lock) nothingLeft() bool { return !l.puts.any() && l.token.Load() == 0 }

// passOn is what becomes of a lock that was given the turn when it did not want it
// any more, or is about to be.
func (l *Lock) passOn(cause error) {
	l.end(cause)
	c := l.client
	c.tasks.Run(func() {
		<-l.place.Ready()
		if l.session == nil {
			c.lines.Leave(l.name, nil)
			return
		}
		l.startCleanUp()
	})
}

// fail ends a lock that could not be acquired. Usually it is gone from the
// queue when fail returns; if etcd does not answer at once, that goes on in the
// background.
func (l *Lock) fail(cause error) {
	l.end(cause)
	c := l.client
	if done, started := l.startCleanUp(); started && c.etcd.ActiveConnection().GetState() == connectivity.Ready {
		ctx, cancel := context.WithTimeout(l.session.cleanUpCtx, dequeueWait)
		defer cancel()
		select {
		case <-done:
		case <-ctx.Done():
		}
	}
}

// startCleanUp makes sure that nothing of the lock is left in the queue, and detaches it. If
// that takes requests, it goes on in the background until done is closed, which may
// have to wait for others.
func (l *Lock) startCleanUp() (done <-chan struct{}, started bool) {
	left := make(chan struct{})
	if l.nothingLeft() {
		l.detach(nil)
		close(left)
		return left, true
	}
	started = l.client.removals.Run(func() {
		defer close(left)
		_ = l.cleanUp(l.client.lines.Call(l.name)) // it has done what can be done
	})
	return left, started
}

// dequeueWait is how long a call that failed waits for its place in the queue to be gone.
const dequeueWait = 50 * time.Millisecond

// removalsAtOnce is what two transactions take.
const removalsAtOnce = 2 * txn.MaxTogether

// detach is the last step in the life of a lock: the next goroutine of the client
// that wants the name has its turn; next if that has been called already.
func (l *Lock) detach(next *Lock) {
	left := l.session.drop(l)
	l.client.lines.Leave(l.name, next)
	if left == 0 {
		l.client.retire(l.session)
	}
}
