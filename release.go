package locker

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/jagregory/locker/v2/internal/backoff"
	"github.com/jagregory/locker/v2/internal/key"
	"github.com/jagregory/locker/v2/internal/tasks"
	"github.com/jagregory/locker/v2/internal/txn"
)

// cleanUp removes whatever the lock may have in its queues, and detaches it; next, if there
// is one, takes its place. w is the write that startRemoval has returned, nil if it was not
// called. cleanUp is bounded by the TTL: what cannot be confirmed gone by then costs the
// session its lease, and goes with it.
func (l *Lock) cleanUp(next *Lock, w *txn.Write) error {
	s := l.session
	defer l.detach()
	ctx, cancel := context.WithTimeout(s.cleanUpCtx, s.ttl)
	defer cancel()
	found, err := l.dequeue(ctx, next, w)
	if err != nil {
		s.deleteLater(l)
	}
	switch {
	case err == nil && found:
		return nil
	case s.ctx.Err() != nil: // its lease has taken the entry along, or will
		return context.Cause(s.ctx)
	case err == nil:
		return &LostError{Name: l.name(), Token: l.token.Load(), Reason: Deleted}
	}
	s.end(&LostError{Reason: Revoked, Cause: err})
	return err
}

// startCleanUp makes sure that nothing of the lock is left in the queue, and detaches it.
// If that takes requests, it goes on in the background until done is closed; started is
// false if it has to wait for other clean-ups first.
func (l *Lock) startCleanUp() (done <-chan struct{}, started bool) {
	left := make(chan struct{})
	if l.nothingLeft() {
		l.detach()
		close(left)
		return left, true
	}
	started = l.client.removals.Run(func() {
		defer close(left)
		_ = l.cleanUp(l.client.lines.Call(l), nil) // it has done what can be done
	})
	return left, started
}

// removalsAtOnce is how many clean-ups run at a time: as many as fit into two transactions.
const removalsAtOnce = 2 * txn.MaxTogether

// nothingLeft reports whether the lock certainly has nothing in the queue.
func (l *Lock) nothingLeft() bool { return !l.puts.unresolved() && !l.reached(enqueued) }

// detach is the last step in the life of a lock. It detaches the lock from its session, and
// puts those in front of the client's lines that are next.
func (l *Lock) detach() {
	left := l.session.drop(l)
	l.client.lines.Leave(l)
	if left == 0 {
		l.client.pool.retire(l.session)
	}
}

// dequeue removes the entries from their queues, after making sure that none can be put after
// that. found reports whether all of them were there until then. If there is a next, the name
// is handed over to it. w is as for cleanUp.
func (l *Lock) dequeue(ctx context.Context, next *Lock, w *txn.Write) (found bool, err error) {
	if w == nil {
		if err := l.resolveInDoubt(ctx); err != nil {
			return false, err
		}
		if !l.reached(enqueued) {
			return false, nil
		}
		w = l.startRemoval(ctx, next)
	}
	unknown := false
	if handsOver(w) {
		if found, unknown = l.awaitHandOver(ctx, w); found {
			return true, nil
		}
		w = l.startRemoval(ctx, nil)
	}
	resp, only, err := l.client.store.Await(ctx, w)
	if err != nil {
		return unknown, err
	}
	l.session.timeline.saw(resp.Header)
	return resp.Succeeded || !only || unknown, nil
}

// resolveInDoubt makes sure that no put of the entry can take effect any more. It first
// gives the puts in flight the time to be answered: invalidating them costs the other puts
// of the session another attempt.
func (l *Lock) resolveInDoubt(ctx context.Context) error {
	if !l.puts.unresolved() {
		return nil
	}
	landed, cancel := context.WithTimeout(ctx, l.client.store.HedgeDelay+txn.Allowance(l.size()))
	l.puts.wait(landed)
	cancel()
	if !l.puts.unresolved() {
		return nil
	}
	created, whole, err := l.invalidatePuts(ctx)
	if err == nil && (created != l.token.Load() || !whole) {
		l.queuedAt(created, nil)
	}
	return err
}

// size returns how many bytes the values have.
func (l *Lock) size() (n int64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for i := range l.entries {
		n += int64(len(l.entries[i].value))
	}
	return n
}

// startRemoval starts the write that takes the entries out of their queues, these
// incarnations and no others: a hand-over to next, if that is possible without delay, or else
// a delete, which etcd accepts even when it has run out of space, since it puts nothing. ctx
// bounds only how long startRemoval blocks, see Store.Start.
func (l *Lock) startRemoval(ctx context.Context, next *Lock) *txn.Write {
	w := l.handOver(next)
	if w == nil {
		w = &txn.Write{Txn: l.removal()}
	}
	l.client.store.Start(ctx, w)
	return w
}

// handOver returns a write that deletes the entry of l, and puts that of next, the next in
// the client's line, at the end of the queue: if nobody else is waiting, next holds after
// one commit. (Their keys have different numbers: etcd refuses to delete and put the same key
// in one transaction.) It returns nil if there is no next, or if next has to go its own way: because
// it takes a request to attach it, or because its value takes too long to send.
func (l *Lock) handOver(next *Lock) *txn.Write {
	c := l.client
	switch {
	case next == nil:
		return nil
	case !next.reached(admitted) && c.attachNow(next) != nil:
		return nil
	case txn.Allowance(next.size()) > c.store.HedgeDelay:
		return nil
	}
	entry := &next.entries[0]
	own, put := l.key(&l.entries[0]), next.key(entry)
	w := &txn.Write{Begun: next.puts.begin, Txn: next.session.inEpoch(txn.Txn{
		Name: l.name(),
		When: append(l.standing([]string{own}), txn.CmpCreate(put, 0)),
		Then: append([]*pb.RequestOp{txn.OpDelete(own)}, next.putAndRead(entry, put)...),
	})}
	w.Landed = func(o txn.Outcome) {
		next.landed(o, 1)
		if o.Err == nil && o.Resp.Succeeded {
			c.lines.Leave(l) // at once: next need not wait for what is left for l to do
		}
	}
	next.puts.begin(w.Epoch)
	return w
}

// removed reports whether the removal is confirmed, for which it waits as answeredSoon does.
// Usually it is, and there is nothing left to do.
func (l *Lock) removed(ctx context.Context, w *txn.Write) bool {
	if !l.answeredSoon(ctx, w) || !w.Applied() {
		return false
	}
	l.session.timeline.saw(w.Result().Resp.Header)
	return true
}

// answeredSoon waits until the outcome of w is certain, w is older than the hedge delay, or
// ctx ends; and reports whether the outcome is certain.
func (l *Lock) answeredSoon(ctx context.Context, w *txn.Write) bool {
	if w.Decided() {
		return true
	}
	late := time.NewTimer(time.Until(w.Submitted().Add(l.client.store.HedgeDelay)))
	defer late.Stop()
	select {
	case <-w.Done():
	case <-ctx.Done():
	case <-late.C:
	}
	return w.Decided()
}

// handsOver reports whether a removal is a hand-over: a delete has no record.
func handsOver(w *txn.Write) bool { return w.Record != nil }

// awaitHandOver waits for the outcome of a hand-over. If there is no answer soon, the two
// locks go separate ways, and next finds out by itself whether its entry is in the queue
// nevertheless.
//
// released reports whether the entry of l was deleted; unknown, that it may have been.
func (l *Lock) awaitHandOver(ctx context.Context, w *txn.Write) (released, unknown bool) {
	if !l.answeredSoon(ctx, w) {
		return false, l.client.store.Forget(w) != txn.ErrUnsent
	}
	o := w.Result()
	return w.Applied(), !w.Applied() && (!o.Only || o.State() == txn.InDoubt)
}

// shareHold passes the hold of l, which has ended, on to next as it is: with the same entry
// and token, and without a request. It reports false if that is not allowed: the hold was
// shared often enough in a row, or next wants another session or value.
func (l *Lock) shareHold(next *Lock) bool {
	l.mu.Lock()
	own, other := &l.entries[0], &next.entries[0]
	allowed := int(l.shares) < l.client.shares && !l.revalued && other.value == own.value && next.wants == l.wants &&
		own.kind() == key.Exclusive && other.kind() == key.Exclusive
	l.mu.Unlock()
	if !allowed || !l.session.replace(l, next) {
		return false
	}
	l.client.lines.Leave(l)
	return true
}

// replace attaches next to the session in place of l, with the entry of l.
func (s *Session) replace(l, next *Lock) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.over {
		return false
	}
	s.client.lines.Inherit(l, next) // the key
	next.session, next.shares = s, l.shares+1
	next.queuedAt(l.token.Load(), []*position{&alone})
	delete(s.locks, l)
	s.locks[next] = struct{}{}
	return true
}

// cleanupWait bounds how long a call without a context waits until etcd has confirmed that
// nothing is left. A TTL may be a year; what takes longer goes on in the background.
const cleanupWait = 10 * time.Second

var (
	errAdoptedEnded = errors.New("the adopted session has ended")
	errDrained      = errors.New("the session is over, and etcd has not answered")
	errReleaseLate  = fmt.Errorf("release not confirmed, it goes on in the background for at most the TTL: %w", context.DeadlineExceeded)
	errAdoptedLate  = fmt.Errorf("etcd has not confirmed the lease in time: %w", context.DeadlineExceeded)
)

// await waits until nothing is left of the sessions or ctx has ended, and returns what was
// not confirmed.
func (c *Client) await(ctx context.Context, sessions ...*Session) error {
	var errs []error
	var late error // why the rest is not confirmed
	for _, s := range sessions {
		if late == nil {
			select {
			case <-s.done:
			case <-ctx.Done():
				late = c.orEtcdClosed(txn.Ended(ctx, c.explain(ctx.Err())))
			}
		}
		select {
		case <-s.done:
			errs = append(errs, s.closeErr)
		default:
			errs = append(errs, s.unconfirmed(late))
		}
	}
	return errors.Join(errs...)
}

// unconfirmed adds to an error what may be left of the session.
func (s *Session) unconfirmed(err error) error {
	if s.adopted != nil {
		return fmt.Errorf("entries on the adopted lease %x not confirmed gone: %w", s.lease, err)
	}
	return fmt.Errorf("lease %x not confirmed gone, it runs out by itself: %w", s.lease, err)
}

// cleanUp removes everything of a session that is over from etcd. When it gives up, the
// lease has expired by itself, unless it was adopted.
func (s *Session) cleanUp() error {
	ctx, cancel := context.WithTimeout(s.cleanUpCtx, max(s.ttl, s.renewed.lifetime()))
	defer cancel()
	ctx, stop := tasks.Either(ctx, s.client.etcd.Ctx())
	defer stop()
	s.awaitCallbacks(ctx)
	leave := s.revoke
	switch {
	case s.adopted != nil:
		leave = s.deleteEntries
	case s.delay > 0 && errors.Is(context.Cause(s.ctx), ErrLost) && !s.client.etcdIsClosed():
		leave = s.expire
	}
	err := leave(ctx)
	if err != nil {
		err = s.unconfirmed(s.client.orEtcdClosed(err))
		s.client.log.Warn("session not confirmed gone", "lease", s.member, "error", err)
	}
	return err
}

// awaitCallbacks waits, after a Close, for the functions that run under the holds it has
// ended: until they return, nobody else should have their names. Meanwhile it renews the
// lease. It leaves a quarter of the time to what follows.
func (s *Session) awaitCallbacks(ctx context.Context) {
	if len(s.callbacks) == 0 {
		return
	}
	c := s.client
	deadline, _ := ctx.Deadline()
	ctx, cancel := context.WithTimeout(ctx, min(time.Until(deadline), cleanupWait)*3/4)
	defer cancel()
	interval := s.holdTime() / 3
	again := time.NewTimer(time.Until(s.renewed.sent.Add(interval)))
	defer again.Stop()
	pause := backoff.Pause{}
	for waiting := s.callbacks; len(waiting) > 0; {
		select {
		case <-waiting[0]:
			waiting = waiting[1:]
		case <-again.C:
			attempt, cancel := context.WithTimeout(ctx, c.store.LateAnswerWait())
			_, err := c.etcd.KeepAliveOnce(attempt, s.lease)
			cancel()
			if err == nil {
				again.Reset(interval)
			} else {
				again.Reset(pause.Next())
			}
		case <-ctx.Done():
			c.log.Warn("closed while functions of Do were still at work", "lease", s.member, "functions", len(waiting))
			return
		}
	}
}

// expire leaves the lease of a lost session to run out, so that its names stay locked. What
// was given up before, and what only waited, is still removed.
func (s *Session) expire(ctx context.Context) error {
	select {
	case <-s.empty:
	case <-ctx.Done(): // by now the lease has run out
	}
	return nil
}

// revoke revokes the lease, and with it everything that is attached to it.
func (s *Session) revoke(ctx context.Context) error {
	// What is granted after the revocation would stay. A grant that is not answered ends
	// with ctx.
	stop := context.AfterFunc(ctx, func() { s.endCleanUp(errDrained) })
	s.grants.Wait()
	stop()
	_, err := txn.Ask(ctx, s.client.store, func(ctx context.Context) (*clientv3.LeaseRevokeResponse, error) {
		return s.client.etcd.Revoke(ctx, s.lease)
	})
	if errors.Is(err, rpctypes.ErrLeaseNotFound) {
		return nil
	}
	return err
}

// deleteEntries deletes the record and the entries of an adopted session. The entries go
// together.
func (s *Session) deleteEntries(ctx context.Context) error {
	select {
	case <-s.empty: // all holds have ended, and callers that waited have left the queue
	case <-ctx.Done():
		return txn.Ended(ctx, ctx.Err())
	}
	// First the record: without it, no put that is still in flight can take effect.
	if _, _, err := s.client.store.Commit(ctx, txn.Txn{Then: []*pb.RequestOp{txn.OpDelete(s.record())}}); err != nil {
		return err
	}
	s.mu.Lock()
	deletes := s.pendingDeletes
	s.mu.Unlock()
	err := concurrently(s.client, deletes, func(l *Lock) error {
		_, err := l.dequeue(ctx, nil, nil)
		return err
	})
	return errors.Join(err, s.deleteLeftovers(ctx))
}

// deleteLeftovers deletes what is left on an adopted lease under the session's own name. No
// put can follow: the record is gone.
func (s *Session) deleteLeftovers(ctx context.Context) error {
	lease, err := s.leaseWithKeys(ctx)
	switch {
	case errors.Is(err, rpctypes.ErrPermissionDenied):
		return nil // others have keys on it that must not be read, so there is nothing to go by
	case err != nil:
		return err
	}
	return inBatches(s.own(lease.Keys), func(batch []stray) error {
		deletes := make([]*pb.RequestOp, len(batch))
		for i, e := range batch {
			deletes[i] = txn.OpDelete(e.key)
		}
		_, _, err := s.client.store.Commit(ctx, txn.Txn{Then: deletes})
		return err
	})
}

// concurrently calls f for all items at once, so that their writes share transactions, and
// returns one of the errors. There are at most as many items as a lease has entries.
func concurrently[T any](c *Client, items []T, f func(T) error) error {
	var (
		wg       sync.WaitGroup
		mu       sync.Mutex // guards what follows
		failures int
		last     error
	)
	for _, item := range items {
		wg.Add(1)
		c.tasks.Run(func() {
			defer wg.Done()
			if err := f(item); err != nil {
				mu.Lock()
				defer mu.Unlock()
				failures++
				last = err
			}
		})
	}
	wg.Wait()
	if failures > 1 {
		return fmt.Errorf("%d of %d failed, the last with: %w", failures, len(items), last)
	}
	return last
}

// inBatches calls f for the items, with as many at once as etcd accepts in one transaction.
func inBatches[T any](items []T, f func([]T) error) error {
	for limit := txn.MaxTogether; len(items) > 0; {
		batch := items[:min(limit, len(items))]
		switch err := f(batch); {
		case errors.Is(err, rpctypes.ErrTooManyOps) && len(batch) > 1:
			limit = len(batch) / 2
		case err != nil:
			return err
		default:
			items = items[len(batch):]
		}
	}
	return nil
}
