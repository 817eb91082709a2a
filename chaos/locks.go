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

// locks is a library of locks. What a worker does is the same over all of them.
type locks interface {
	acquire(ctx context.Context, name, value string, try bool) (hold, error)
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

// lockerLocks is Locker.
type lockerLocks struct{ *locker.Client }

func newLockerLocks(etcd *clientv3.Client, t target) (lockerLocks, error) {
	turns := 1
	if t.shares() {
		turns = turnsShared
	}
	c, err := locker.New(etcd, locker.WithPrefix(lockPrefix), locker.WithTTL(t.Lease), locker.WithLocalHandover(turns))
	return lockerLocks{c}, err
}

// turnsShared is how many goroutines in a row may share a hold.
const turnsShared = 4

func (l lockerLocks) acquire(ctx context.Context, name, value string, try bool) (hold, error) {
	call := l.Lock
	if try {
		call = l.TryLock
	}
	held, err := call(ctx, name, value)
	if err != nil {
		return nil, err // not a hold that is nil
	}
	return held, nil
}

func (l lockerLocks) close() error { return l.Close() }

// mutexLocks is etcd's own concurrency.Mutex. Each hold has a session of its own: a session that many
// share would make a second Lock of a name return at once.
type mutexLocks struct {
	etcd *clientv3.Client
	ttl  time.Duration
}

func (m mutexLocks) acquire(ctx context.Context, name, _ string, try bool) (hold, error) {
	session, err := concurrency.NewSession(m.etcd, concurrency.WithTTL(int(m.ttl/time.Second)))
	if err != nil {
		return nil, err
	}
	mutex := concurrency.NewMutex(session, lockPrefix+url.PathEscape(name))
	call := mutex.Lock
	if try {
		call = mutex.TryLock
	}
	if err := call(ctx); err != nil {
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

// closeWithin revokes the lease; if etcd does not answer, it runs out by itself.
func closeWithin(session *concurrency.Session, ttl time.Duration) error {
	session.Orphan()
	ctx, cancel := context.WithTimeout(context.Background(), ttl)
	defer cancel()
	_, err := session.Client().Revoke(ctx, session.Lease())
	return err
}

// mutexHold is a Mutex that is held.
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

// Err is what a user of a session can know.
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

// SetValue is nothing that a Mutex has.
func (h *mutexHold) SetValue(context.Context, string) error { return nil }

func (h *mutexHold) Unlock(ctx context.Context) error {
	h.end(locker.ErrReleased)
	h.watching.Wait()
	return errors.Join(h.mutex.Unlock(ctx), closeWithin(h.session, h.ttl))
}
