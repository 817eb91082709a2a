package locker

import (
	"context"
	"errors"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/grpc/peer"

	"github.com/jagregory/locker/v2/internal/backoff"
	"github.com/jagregory/locker/v2/internal/txn"
)

// grant has etcd grant the lease. If an attempt without an answer has achieved that
// already, it leaves it to renewOnce to find out how long the lease lives.
func (s *Session) grant(ctx context.Context) error {
	seconds := int64((s.ttl + s.delay + time.Second - 1) / time.Second)
	c := s.client
	var granted renewal
	var once sync.Once
	done := make(chan error, 1)
	// What is granted after the lease was revoked would stay. Therefore the end of the call
	// does not cut off an attempt.
	attemptCtx, cancel := context.WithCancel(s.cleanUpCtx)
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
	c.tasks.Run(func() { // once nobody waits any more, the attempts have that much longer
		defer cancel()
		select {
		case <-ctx.Done():
			_ = backoff.Sleep(attemptCtx, c.store.LateAnswerWait())
		case <-attemptCtx.Done():
		}
	})
	s.grants.Add(1)
	c.tasks.Run(func() {
		defer s.grants.Done()
		defer cancel()
		_, err := txn.AskFor(ctx, attemptCtx, c.store, 0, attempt)
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

// renewOnce renews a lease that exists already for the first time.
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
	s.renewed = r
	s.ttl = s.holdTime()
	s.deadline = s.until(r)
	s.setAlarm()
	if s.over {
		s.alarm.Stop() // closed while the lease was being taken
	}
}

// setAlarm sets the alarm to the deadline. The caller holds the mutex.
func (s *Session) setAlarm() {
	if s.alarm != nil {
		s.alarm.Stop()
	}
	s.alarm = s.client.tasks.After(time.Until(s.deadline), func() { _ = s.check() }) // which ends the session
}

// until returns the deadline after a renewal. etcd counts the TTL from a moment after the
// request was sent, so it cannot delete before the deadline.
func (s *Session) until(r renewal) time.Time {
	ttl := r.lifetime() - s.delay
	return r.sent.Add(ttl - s.client.marginOf(ttl))
}

// holdTime is how long the holds of the session would last after the last renewal, but for
// the safety margin: as long as the lease, without the lock-delay.
func (s *Session) holdTime() time.Duration { return s.renewed.lifetime() - s.delay }

// renewal is the outcome of one request to renew the lease.
type renewal struct {
	by   *keepAlive
	sent time.Time
	ttl  int64 // seconds; 0 if there is no such lease
	odd  bool  // the answer seems to come from an earlier time of the cluster
	err  error
}

// lifetime returns how long the lease lives from the renewal on.
func (r renewal) lifetime() time.Duration { return time.Duration(r.ttl) * time.Second }

// longestRenewalWait bounds the interval at which a renewal without an answer is asked for
// again: a lease of a year has time, but should be renewed soon after an outage.
const longestRenewalWait = 30 * time.Second

// renew renews the lease once, on the stream kept from the last time, and returns the
// stream to keep. While there is no answer it asks again at growing intervals, each time on
// a new stream, which the balancer opens to another member, and takes the first answer. So
// neither a frozen member nor a slow network loses the lease.
//
// No more than two requests are on their way: the first, which a slow network answers in
// the end, and the newest. renew returns when the lease is renewed or the session is over,
// with no goroutine left.
func (s *Session) renew(kept *keepAlive) *keepAlive {
	var (
		wait    = s.client.store.HedgeDelay
		longest = max(wait, min(s.holdTime()/6, longestRenewalWait)) // several of these fit before the deadline
		again   = time.NewTimer(0)
		answers = make(chan renewal)
		asked   []*keepAlive // on their way
		earlier []*keepAlive // the last few that were asked, whatever has become of them
		running int          // those on their way, and those given up that have yet to end
		next    = kept
		outcome = Renewal{Lease: s.lease}
		began   = time.Now()
	)
	defer again.Stop()
	defer func() {
		for _, k := range asked {
			k.cancel()
		}
		for range running {
			<-answers
		}
	}()
	for {
		select {
		case <-s.ctx.Done():
			outcome.Err = context.Cause(s.ctx)
			s.reportRenewal(outcome, began)
			return nil
		case <-again.C:
			outcome.Attempts++
			again.Reset(wait)
			wait = min(2*wait, longest)
			if len(asked) == 2 {
				asked[1].cancel()
				asked = asked[:1]
			}
			k := next
			if k == nil {
				k = s.newKeepAlive()
			}
			next = nil
			others := slices.Clone(earlier[max(0, len(earlier)-2):])
			asked, earlier = append(asked, k), append(others, k)
			running++
			s.client.tasks.Run(func() { answers <- k.renew(s, others) })
		case a := <-answers:
			running--
			givenUp := !slices.Contains(asked, a.by)
			asked = slices.DeleteFunc(asked, func(k *keepAlive) bool { return k == a.by })
			switch {
			case a.err != nil && givenUp:
				continue
			case a.err == nil && a.ttl <= 0:
				a.by.cancel()
				outcome.Err = s.fail(rpctypes.ErrLeaseNotFound)
				s.reportRenewal(outcome, began)
				return nil
			case a.err == nil:
				s.renewed = a
				outcome.Left, outcome.Err = s.extend(a)
				s.reportRenewal(outcome, began)
				if givenUp {
					return nil // it was given up just before the answer came
				}
				return a.by
			}
			a.by.cancel()
			s.noteFailure(a.err)
			if a.by == kept {
				again.Reset(backoff.Shortest) // the kept stream broke some time ago: that is no reason to wait
			}
		}
	}
}

// extend moves the deadline after a renewal; backwards, if etcd has lowered the TTL. It returns
// how much was left until the former one, or why the session is over: what is lost stays lost.
// Renewals that count are answered in the order in which they were sent.
func (s *Session) extend(r renewal) (left time.Duration, err error) {
	if err := s.check(); err != nil {
		return 0, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.trouble = nil
	left = max(0, time.Until(s.deadline))
	if !s.over {
		s.deadline = s.until(r)
		s.setAlarm()
	}
	return left, nil
}

// noteFailure keeps why a renewal failed, in case the deadline passes.
func (s *Session) noteFailure(err error) {
	s.mu.Lock()
	s.trouble = err
	s.mu.Unlock()
	s.client.log.Debug("renewal failed, trying again", "lease", s.member, "error", err)
}

// keepAlive is a stream on which a lease is renewed, one request at a time.
type keepAlive struct {
	ctx    context.Context
	cancel context.CancelFunc
	stream pb.Lease_LeaseKeepAliveClient // nil until the first renewal has opened it
	refuse context.CancelFunc            // ends the stream alone
	member atomic.Pointer[string]        // address of the member at the other end; nil until it is known
}

// newKeepAlive prepares a stream. It belongs to the session, not to a call.
func (s *Session) newKeepAlive() *keepAlive {
	// It requires a leader: a member that was cut off from the leader refuses then, and the
	// next attempt goes to another member.
	ctx, cancel := context.WithCancel(clientv3.WithRequireLeader(s.ctx))
	return &keepAlive{ctx: ctx, cancel: cancel}
}

// open opens the stream. The balancer chooses the member. A member that has not answered
// one of the others is refused, up to twice; after that there may be no better one.
func (k *keepAlive) open(s *Session, others []*keepAlive) error {
	for refusals := 0; ; refusals++ {
		ctx, refuse := context.WithCancel(k.ctx)
		stream, err := s.client.leases.LeaseKeepAlive(ctx)
		if err != nil {
			refuse()
			return rpctypes.Error(err)
		}
		k.stream, k.refuse = stream, refuse
		if refusals == 2 || !k.meets(others) {
			return nil
		}
		k.refuse()
	}
}

// meets notes which member is at the other end, and reports whether one of the others has
// the same.
func (k *keepAlive) meets(others []*keepAlive) bool {
	at, ok := peer.FromContext(k.stream.Context())
	if !ok || at.Addr == nil {
		return false
	}
	member := at.Addr.String()
	k.member.Store(&member)
	return slices.ContainsFunc(others, func(other *keepAlive) bool {
		known := other.member.Load()
		return known != nil && *known == member
	})
}

// renew sends one request and waits for its answer, or for the end of the stream.
func (k *keepAlive) renew(s *Session, others []*keepAlive) (r renewal) {
	r.by = k
	if k.stream == nil {
		if r.err = k.open(s, others); r.err != nil {
			return r
		}
	}
	// The time of sending counts: etcd renews the lease some time after it.
	r.sent = time.Now()
	before := s.timeline.now()
	// An error of Send only shows that the stream has ended; Recv reports why.
	_ = k.stream.Send(&pb.LeaseKeepAliveRequest{ID: int64(s.lease)})
	resp, err := k.stream.Recv()
	if err != nil {
		r.err = rpctypes.Error(err)
		return r
	}
	r.ttl = resp.TTL
	r.odd = !s.timeline.follows(resp.Header, before)
	s.timeline.saw(resp.Header)
	return r
}
