package locker

import (
	"context"
	"errors"
	"sync"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/jagregory/locker/v2/internal/backoff"
	"github.com/jagregory/locker/v2/internal/txn"
)

// grant takes the lease. If an attempt without an answer has done so already, it is
// for renewOnce to find out how long the lease lives.
func (s *Session) grant(ctx context.Context) error {
	seconds := int64((s.ttl + time.Second - 1) / time.Second)
	c := s.client
	var granted renewal
	var once sync.Once
	done := make(chan error, 1)
	// What is granted after the lease was revoked would stay: so an attempt is not cut off
	// by the end of the call.
	attempts, cancel := context.WithCancel(s.cleanUpCtx)
	attempt := func(ctx context.Context) (renewal, error) {
		r := renewal{sent: time.Now()}
		resp, err := c.leases.LeaseGrant(ctx, &pb.LeaseGrantRequest{ID: int64(s.lease), TTL: seconds})
		err = clientv3.ContextError(ctx, err)
		if err == nil {
			r.ttl = resp.TTL
			s.timeline.saw(resp.Header)
		}
		if err == nil || !txn.Transient(err) {
			once.Do(func() { granted = r; done <- err })
		}
		return r, err
	}
	c.tasks.Run(func() { // nobody waits any more: it has that much longer
		defer cancel()
		select {
		case <-ctx.Done():
			_ = backoff.Sleep(attempts, c.store.LateAnswerWait())
		case <-attempts.Done():
		}
	})
	s.grants.Add(1)
	c.tasks.Run(func() {
		defer s.grants.Done()
		defer cancel()
		_, err := txn.AskFor(ctx, attempts, c.store, 0, attempt)
		once.Do(func() { done <- err })
	})
	var err error
	select {
	case err = <-done:
	case <-ctx.Done():
		return txn.Ended(ctx, c.explain(ctx.Err()))
	}
	switch {
	case err == nil:
		s.start(granted)
	case errors.Is(err, rpctypes.ErrLeaseExist):
		err = nil
	}
	return err
}

// renewOnce renews a lease that is there already for the first time.
func (s *Session) renewOnce(ctx context.Context) error {
	renewed, err := txn.Ask(ctx, s.client.store, func(ctx context.Context) (renewal, error) {
		k := s.newKeepAlive()
		defer k.cancel()
		defer context.AfterFunc(ctx, k.cancel)()
		r := k.renew(s, nil)
		return r, clientv3.ContextError(ctx, r.err)
	})
	switch {
	case err == nil && renewed.ttl <= 0:
		err = &LostError{Reason: Revoked, Cause: rpctypes.ErrLeaseNotFound}
	case err == nil:
		s.start(renewed)
	}
	return err
}

// start sets the first deadline.
func (s *Session) start(r renewal) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.renewed, s.ttl = r, r.life()
	s.deadline = s.until(r)
	s.setAlarm()
	if s.over {
		s.alarm.Stop() // closed while the lease was being taken
	}
}

// setAlarm has the deadline checked when it passes. The caller has the mutex.
func (s *Session) setAlarm() {
	if s.alarm != nil {
		s.alarm.Stop()
	}
	s.alarm = s.client.tasks.After(time.Until(s.deadline), func() { _ = s.check() }) // it ends what is over
}

// until returns the deadline that a renewal leads to. etcd counts the TTL from a
// later moment than that of sending, so it cannot delete before.
func (s *Session) until(r renewal) time.Time {
	return r.sent.Add(r.life() - s.client.marginOf(r.life()))
}
