package main

import (
	"context"
	"errors"
	"net/url"
	"sync"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/client/v3/concurrency"

	"github.com/jagregory/locker/v2"
)

// locks is a lock library under test.
type locks interface {
	acquire(ctx context.Context, c call, value string) (hold, error)
	close() error
}

// hold is a lock that is held; *locker.Lock is one.
type hold interface {
	Token() int64
	Err() error
	Context() context.Context
	Guard() []clientv3.Cmp
	Commit(ctx context.Context, ops ...clientv3.Op) (*clientv3.TxnResponse, error)
	SetValue(ctx context.Context, value string) error
	Unlock(ctx context.Context) error
}

// lockerLocks is a client of Locker.
type lockerLocks struct{ *locker.Client }

func newLockerLocks(etcd *clientv3.Client, t target) (lockerLocks, error) {
	shares := 1
	if t.shares() {
		shares = maxShares
	}
	c, err := locker.New(etcd, locker.WithPrefix(lockPrefix), locker.WithTTL(t.Lease), locker.WithLocalHandover(shares))
	return lockerLocks{c}, err
}

// maxShares is how many goroutines may share a hold, one after the other.
const maxShares = 4

func (l lockerLocks) acquire(ctx context.Context, c call, value string) (hold, error) {
	lock := l.Lock
	if c.Op == opTry {
		lock = l.TryLock
	}
	held, err := lock(ctx, c.Name, value, options(c, value)...)
	if err != nil {
		return nil, err // not a nil *locker.Lock in a hold
	}
	return held, nil
}

// options returns the options of a call that locks with a value.
func options(c call, value string) []locker.LockOption {
	all := c.Mode.options()
	for _, other := range c.And {
		all = append(all, locker.And(other.Name, value, other.Mode.options()...))
	}
	return all
}

// options returns the options of one name.
func (m mode) options() []locker.LockOption {
	switch m {
	case exclusive:
		return nil
	case shared:
		return []locker.LockOption{locker.WithShared()}
	}
	return []locker.LockOption{locker.WithLimit(int(m))}
}

func (l lockerLocks) close() error { return l.Close() }

// mutexLocks is etcd's concurrency.Mutex. Each hold has its own session, because a second
// Lock of a name in the same session returns at once.
type mutexLocks struct {
	etcd *clientv3.Client
	ttl  time.Duration
}

func (m mutexLocks) acquire(ctx context.Context, c call, _ string) (hold, error) {
	session, err := concurrency.NewSession(m.etcd, concurrency.WithTTL(int(m.ttl/time.Second)))
	if err != nil {
		return nil, err
	}
	mutex := concurrency.NewMutex(session, lockPrefix+url.PathEscape(c.Name))
	lock := mutex.Lock
	if c.Op == opTry {
		lock = mutex.TryLock
	}
	if err := lock(ctx); err != nil {
		return nil, errors.Join(err, closeWithin(session, m.ttl))
	}
	h := &mutexHold{etcd: m.etcd, session: session, mutex: mutex, ttl: m.ttl}
	h.ctx, h.end = context.WithCancelCause(context.Background())
	resp, err := m.etcd.Get(ctx, mutex.Key(), clientv3.WithKeysOnly())
	switch {
	case err == nil && len(resp.Kvs) == 0:
		err = locker.ErrLost
	case err == nil:
		h.token = resp.Kvs[0].CreateRevision
	}
	if err != nil {
		h.end(err)
		return nil, errors.Join(err, closeWithin(session, m.ttl))
	}
	h.watching.Go(func() {
		select {
		case <-session.Done():
			h.end(locker.ErrLost)
		case <-h.ctx.Done():
		}
	})
	return h, nil
}

func (m mutexLocks) close() error { return nil }

// closeWithin revokes the lease. If that takes longer than the TTL, it expires by itself.
func closeWithin(session *concurrency.Session, ttl time.Duration) error {
	session.Orphan()
	ctx, cancel := context.WithTimeout(context.Background(), ttl)
	defer cancel()
	_, err := session.Client().Revoke(ctx, session.Lease())
	return err
}

// mutexHold is the hold of a Mutex.
type mutexHold struct {
	etcd     *clientv3.Client
	session  *concurrency.Session
	mutex    *concurrency.Mutex
	ttl      time.Duration
	token    int64
	ctx      context.Context
	end      context.CancelCauseFunc
	watching sync.WaitGroup
}

func (h *mutexHold) Token() int64             { return h.token }
func (h *mutexHold) Context() context.Context { return h.ctx }
func (h *mutexHold) Guard() []clientv3.Cmp    { return []clientv3.Cmp{h.mutex.IsOwner()} }

// Err reports what a user of a session can know.
func (h *mutexHold) Err() error {
	select {
	case <-h.session.Done():
		h.end(locker.ErrLost)
	default:
	}
	return context.Cause(h.ctx)
}

func (h *mutexHold) Commit(ctx context.Context, ops ...clientv3.Op) (*clientv3.TxnResponse, error) {
	resp, err := h.etcd.Txn(ctx).If(h.Guard()...).Then(ops...).Commit()
	if err == nil && !resp.Succeeded {
		err = locker.ErrLost
	}
	return resp, err
}

// SetValue does nothing, because a Mutex has no value.
func (h *mutexHold) SetValue(context.Context, string) error { return nil }

func (h *mutexHold) Unlock(ctx context.Context) error {
	h.end(locker.ErrReleased)
	h.watching.Wait()
	return errors.Join(h.mutex.Unlock(ctx), closeWithin(h.session, h.ttl))
}
