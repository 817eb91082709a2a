package locker

import (
	"context"
	"errors"
	"sync"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
)

// grant takes the lease. If an attempt without an answer has done so already, it is
// for greet to find out how long the lease lives.
func (s *Session) grant(ctx context.Context) error {
	seconds := int64((s.ttl + time.Second - 1) / time.Second)
	c := s.client
	var granted renewal
	var once sync.Once
	done := make(chan error, 1)
	// What is granted after the lease was revoked would stay: so an attempt is not cut off
	// by the end of the call.
	life, cancel := context.WithCancel(c.base)
	attempt := func(ctx context.Context) (renewal, error) {
		r := renewal{sent: time.Now()}
		resp, err := c.leases.LeaseGrant(ctx, &pb.LeaseGrantRequest{ID: int64(s.lease), TTL: seconds})
		err = clientv3.ContextError(ctx, err)
		if err == nil {
			r.ttl = resp.TTL
		}
		if err == nil || !transient(err) {
			once.Do(func() { granted = r; done <- err })
		}
		return r, err
	}
	s.grants.Add(1)
	c.tasks.run(func() {
		defer s.grants.Done()
		defer cancel()
		_, err := askFor(ctx, life, c, 0, attempt)
		once.Do(func() { done <- err })
	})
	var err error
	select {
	case err = <-done:
	case <-ctx.Done():
		time.AfterFunc(c.cleanUpTime(), cancel)
		return ended(ctx, c.explain(ctx.Err()))
	}
	switch {
	case err == nil:
		s.start(granted)
	case errors.Is(err, rpctypes.ErrLeaseExist):
		err = nil
	}
	return err
}

// greet renews a lease that is there already for the first time.
func (s *Session) greet(ctx context.Context) error {
	renewed, err := ask(ctx, s.client, func(ctx context.Context) (renewal, error) {
		k := s.newKeepAlive()
		defer k.cancel()
		defer context.AfterFunc(ctx, k.cancel)()
		r := k.renew(s)
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
	s.alarm = time.AfterFunc(time.Until(s.deadline), func() { s.check() })
	if s.over {
		s.alarm.Stop() // closed while the lease was being taken
	}
}

// until returns the deadline that a renewal leads to. etcd counts the TTL from a
// later moment than that of sending, so it cannot delete before.
func (s *Session) until(r renewal) time.Time {
	return r.sent.Add(r.life() - s.client.marginOf(r.life()))
}
