package locker

import (
	"context"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
)

// keepAlive is a stream on which a lease is renewed, one request at a time.
type keepAlive struct {
	ctx    context.Context
	cancel context.CancelFunc
	stream pb.Lease_LeaseKeepAliveClient // nil until the first renewal has opened it
}

// newKeepAlive prepares a stream. It belongs to the session, not to a call.
func (s *Session) newKeepAlive() *keepAlive {
	// Ask for a leader: a member that was cut off from it refuses, and the next
	// attempt goes to another.
	ctx, cancel := context.WithCancel(clientv3.WithRequireLeader(s.ctx))
	return &keepAlive{ctx: ctx, cancel: cancel}
}

// renewal is the answer to one request.
type renewal struct {
	by   *keepAlive
	sent time.Time
	ttl  int64 // seconds; 0 if there is no such lease
	err  error
}

// life is how long the lease lives from then on.
func (r renewal) life() time.Duration { return time.Duration(r.ttl) * time.Second }

// renew sends one request and waits for its answer, or for the end of the stream.
func (k *keepAlive) renew(s *Session) (r renewal) {
	r.by = k
	if k.stream == nil {
		if k.stream, r.err = s.client.leases.LeaseKeepAlive(k.ctx); r.err != nil {
			r.err = rpctypes.Error(r.err)
			return r
		}
	}
	// What counts is when it was sent: etcd renews some time after that.
	r.sent = time.Now()
	// An error of Send only says that the stream has ended; Recv says why.
	_ = k.stream.Send(&pb.LeaseKeepAliveRequest{ID: int64(s.lease)})
	resp, err := k.stream.Recv()
	if err != nil {
		r.err = rpctypes.Error(err)
		return r
	}
	r.ttl = resp.TTL
	return r
}

// renew renews the lease once, on the stream kept from the last time, and returns
// the stream to keep. While there is no answer it asks again at short intervals,
// each time on a new stream, which the balancer opens to another member, and takes
// the answer that comes first: so it survives a frozen member as well as a slow
// network. It returns when the lease is renewed or the session is over, with no
// goroutine left.
func (s *Session) renew(kept *keepAlive) *keepAlive {
	var (
		interval = s.renewed.life() / 12
		again    = time.NewTimer(0)
		answers  = make(chan renewal)
		asked    = make(map[*keepAlive]bool)
		next     = kept
	)
	defer again.Stop()
	defer func() {
		for k := range asked {
			k.cancel()
		}
		for range asked {
			<-answers
		}
	}()
	for {
		select {
		case <-s.ctx.Done():
			return nil
		case <-again.C:
			again.Reset(interval)
			k := next
			if k == nil {
				k = s.newKeepAlive()
			}
			next = nil
			asked[k] = true
			s.client.tasks.run(func() { answers <- k.renew(s) })
		case a := <-answers:
			delete(asked, a.by)
			if a.err == nil && a.ttl > 0 {
				s.renewed = a
				s.extend(a)
				return a.by
			}
			a.by.cancel()
			if a.err == nil {
				s.finish(&LostError{Reason: Revoked, Cause: rpctypes.ErrLeaseNotFound})
				return nil
			}
			s.worry(a.err)
			if a.by == kept {
				again.Reset(shortestPause) // it broke some time ago, that is no reason to wait
			}
		}
	}
}

// extend moves the deadline after a renewal: back, if etcd has lowered the TTL.
// Renewals are answered in the order of their sending, as far as they count.
func (s *Session) extend(r renewal) {
	if s.check() != nil {
		return // too late: what is lost stays lost
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.trouble = nil
	if !s.over {
		s.deadline = s.until(r)
		s.alarm.Reset(time.Until(s.deadline))
	}
}

// worry remembers why a renewal failed, for the day the deadline passes.
func (s *Session) worry(err error) {
	s.mu.Lock()
	s.trouble = err
	s.mu.Unlock()
	s.client.log.Debug("renewal failed, trying again", "lease", s.member, "error", err)
}

// audit ends the holds whose entries somebody else has deleted: one request for
// the whole lease, and one more for each entry that is missing from the answer.
func (s *Session) audit() {
	s.mu.Lock()
	queued := make([]*Lock, 0, len(s.locks))
	for l := range s.locks {
		if l.token.Load() != 0 {
			queued = append(queued, l)
		}
	}
	s.mu.Unlock()
	if len(queued) == 0 || s.ctx.Err() != nil {
		return
	}
	ctx, cancel := context.WithTimeout(s.ctx, s.client.hedgeDelay)
	defer cancel()
	resp, err := s.client.etcd.TimeToLive(ctx, s.lease, clientv3.WithAttachedKeys())
	if err != nil || resp.GrantedTTL == 0 { // a lease that is gone is the renewal's to find out
		return
	}
	present := make(map[string]bool, len(resp.Keys))
	for _, key := range resp.Keys {
		present[string(key)] = true
	}
	for _, l := range queued {
		if present[l.key] {
			continue
		}
		// The answer may come from a member that has not caught up: ask for certain.
		entry, err := s.client.etcd.Get(ctx, l.key, clientv3.WithKeysOnly())
		if err == nil && (len(entry.Kvs) == 0 || entry.Kvs[0].CreateRevision != l.token.Load()) {
			_ = l.gone(ctx)
		}
	}
}
