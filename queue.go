package locker

import (
	"context"
	"errors"
	"time"

	"go.etcd.io/etcd/api/v3/mvccpb"
	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/grpc/connectivity"
)

// take acquires the lock: it joins the queue and, unless it only tries, waits for
// its turn. On error abandon must follow.
func (l *Lock) take(ctx context.Context, try bool) error {
	ctx, stop := either(ctx, l.ctx)
	defer stop()
	ahead, token, err := l.enqueue(ctx, try)
	if err != nil {
		return err
	}
	// Were another attempt still under way, and somebody deleted the entry, it could
	// put it once more, behind others, and nobody would notice. Once none is, the
	// token is final, and so is what is ahead of it.
	if l.puts.any() || l.token.Load() != token {
		if err := l.settle(ctx); err != nil {
			return err
		}
		if ahead, _, err = l.look(ctx); err != nil {
			return err
		}
	}
	if err := l.awaitTurn(ctx, ahead); err != nil {
		return err
	}
	return l.hold()
}

// enqueue puts the entry at the end of the queue, or, to try, only into an empty
// queue. It returns the entries ahead of it, nearest first, and the token of which
// that is true; more than near of them means at least that many. It repeats itself until etcd has answered for certain
// or ctx has ended. On error, an entry may have been left: withdraw removes it.
func (l *Lock) enqueue(ctx context.Context, try bool) (ahead []rival, token int64, err error) {
	c, s := l.session.client, l.session
	queue := c.keys.Queue(l.name)
	free := clientv3.Compare(clientv3.CreateRevision(l.key), "=", 0)
	if try {
		free = clientv3.Compare(clientv3.CreateRevision(queue), "=", 0).WithPrefix()
	}
	for {
		epoch := s.currentEpoch()
		resp, _, err := insist(ctx, c, c.base, l.puts.begin, func(ctx context.Context) (*clientv3.TxnResponse, error) {
			resp, err := c.submit(ctx, txn{
				when:      []clientv3.Cmp{s.inEpoch(epoch), free},
				then:      []clientv3.Op{clientv3.OpPut(l.key, l.value, clientv3.WithLease(s.lease)), l.newest()},
				otherwise: []clientv3.Op{clientv3.OpGet(l.key, clientv3.WithKeysOnly()), clientv3.OpGet(s.record(), clientv3.WithKeysOnly()), clientv3.OpGet(queue, clientv3.WithFirstCreate()...)},
			})
			if err == nil && resp.Succeeded {
				l.queuedAt(resp.Header.Revision, resp.Header.Revision)
			}
			// Not before the token is set: whoever cleans up looks at both.
			l.puts.end(err == nil || !transient(err))
			return resp, err
		})
		if err != nil {
			return nil, 0, s.diagnose(err)
		}
		if resp.Succeeded {
			token = resp.Header.Revision
			ahead, _ = l.rivals(found(resp, 1), token)
			return ahead, token, nil
		}
		own, record, head := found(resp, 0), found(resp, 1), found(resp, 2)
		switch {
		case len(own) > 0: // by an attempt whose answer has not come
			l.queuedAt(own[0].CreateRevision, own[0].ModRevision)
			return nil, 0, nil // what is ahead is for take to look
		case try && len(head) > 0:
			return nil, 0, &LockedError{Holder: holderOf(l.name, head[0])}
		case len(record) == 0:
			if err := s.writeRecord(ctx); err != nil {
				return nil, 0, err
			}
		case record[0].ModRevision < epoch:
			s.finish(&LostError{Reason: Revoked, Cause: errBackInTime})
			<-s.ctx.Done()
			return nil, 0, context.Cause(s.ctx)
		default:
			s.learnEpoch(record[0].ModRevision)
		}
	}
}

var errBackInTime = errors.New("etcd has gone back to an earlier revision")

// found returns what the i-th operation of a transaction read.
func found(resp *clientv3.TxnResponse, i int) []*mvccpb.KeyValue {
	return resp.Responses[i].GetResponseRange().Kvs
}

// queuedAt notes that the entry is in the queue. Of several, put one after the other
// had been deleted, the newest is the one that may be there.
func (l *Lock) queuedAt(created, modified int64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if created > l.token.Load() {
		l.token.Store(created)
		l.modified = modified
	}
}

// release deletes the entry, this incarnation of it and no other, and reports
// whether it was there until then. It is a transaction without a put, which etcd
// accepts even when it has run out of space.
func (l *Lock) release(ctx context.Context) (found bool, err error) {
	resp, first, err := l.session.client.commit(ctx, txn{when: l.Guard(), then: []clientv3.Op{clientv3.OpDelete(l.key)}})
	if err != nil {
		return false, err
	}
	return resp.Succeeded || !first, nil
}

// withdraw removes whatever the lock may have in the queue, and departs. It is
// bounded by the TTL: what cannot be confirmed gone by then costs the session its
// lease, and goes with it.
func (l *Lock) withdraw() error {
	defer l.depart()
	s := l.session
	ctx, cancel := context.WithTimeout(s.life, s.ttl)
	defer cancel()
	found, err := l.remove(ctx)
	if err != nil {
		s.orphan(l)
	}
	switch {
	case err == nil && !found:
		return &LostError{Name: l.name, Token: l.token.Load(), Reason: Deleted}
	case err == nil:
		return nil
	case s.ctx.Err() != nil:
		return context.Cause(s.ctx)
	}
	s.finish(&LostError{Reason: Revoked, Cause: err})
	return err
}

// settle makes sure that no put of the entry can take effect any more. It first
// gives those under way the time to be answered: a fence costs the other puts of the
// session another attempt.
func (l *Lock) settle(ctx context.Context) error {
	if !l.puts.any() {
		return nil
	}
	landed, cancel := context.WithTimeout(ctx, l.session.client.patience)
	l.puts.wait(landed)
	cancel()
	if !l.puts.any() {
		return nil
	}
	created, err := l.fence(ctx)
	if err == nil {
		l.queuedAt(created, created)
	}
	return err
}

// remove releases what is in the queue, after making sure that nothing can come
// after it.
func (l *Lock) remove(ctx context.Context) (found bool, err error) {
	if err := l.settle(ctx); err != nil {
		return false, err
	}
	if l.token.Load() == 0 {
		return false, nil
	}
	return l.release(ctx)
}

// nothingLeft reports whether the lock has certainly nothing in the queue.
func (l *Lock) nothingLeft() bool { return !l.puts.any() && l.token.Load() == 0 }

// abandon ends a lock that could not be acquired. Usually it is gone from the
// queue when abandon returns; if etcd does not answer at once, that goes on in the
// background.
func (l *Lock) abandon(cause error) {
	l.end(cause)
	c := l.session.client
	if done := l.leave(); c.etcd.ActiveConnection().GetState() == connectivity.Ready {
		ctx, cancel := context.WithTimeout(l.session.life, grace)
		defer cancel()
		select {
		case <-done:
		case <-ctx.Done():
		}
	}
}

// leave makes sure that nothing of the lock is left in the queue, and departs. If
// that takes requests, it goes on in the background until done is closed.
func (l *Lock) leave() (done <-chan struct{}) {
	left := make(chan struct{})
	if l.nothingLeft() {
		l.depart()
		close(left)
		return left
	}
	l.session.client.tasks.run(func() {
		defer close(left)
		_ = l.withdraw() // it has done what can be done
	})
	return left
}

// grace is how long a call that failed waits for its place in the queue to be gone.
const grace = 100 * time.Millisecond

// depart is the last step in the life of a lock: the next goroutine of the client
// that wants the name has its turn.
func (l *Lock) depart() {
	c := l.session.client
	left := l.session.dismiss(l)
	c.lines.leave(l.name)
	if left == 0 {
		c.retire(l.session)
	}
}
