package locker

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"time"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/client/v3/concurrency"

	"github.com/jagregory/locker/v2/internal/backoff"
	"github.com/jagregory/locker/v2/internal/tasks"
)

// Session is a lease of etcd and its renewal. All locks attached to it share its
// fate: when it can no longer be sure of its lease, all of them are lost at once.
// A Client opens sessions by itself; an own one separates the fate of some locks
// from that of the others. All methods are safe for concurrent use.
type Session struct {
	client  *Client
	lease   clientv3.LeaseID
	member  string          // what its entries are called in every queue
	adopted <-chan struct{} // closed at the end of an adopted session; nil for an own lease

	ctx    context.Context // ends when the session is over, with the reason
	cancel context.CancelCauseFunc
	ending

	grants   sync.WaitGroup // requests for the lease under way
	renewed  renewal        // the last that was answered; of its goroutine
	timeline timeline       // of etcd, as far as its answers have told

	mu       sync.Mutex // guards what follows; no request is made under it
	over     bool
	ttl      time.Duration // as granted first; bounds what the session does besides renewing
	deadline time.Time     // until then the lease is certain
	alarm    *tasks.Alarm  // at the deadline
	trouble  error         // of the last renewal
	epoch    int64         // mod revision of the session's record, see invalidatePuts
	attached
}

// ending is how a session that is over leaves nothing in etcd.
type ending struct {
	cleanUpCtx context.Context // ends when nothing is left of it in etcd, or nothing more can be done
	endCleanUp context.CancelCauseFunc
	done       chan struct{}     // closed when its goroutine has ended
	closeErr   error             // what kept it from leaving nothing; set before done is closed
	callbacks  []<-chan struct{} // closed when functions of Do have returned; set before ctx ends
}

// attached are the locks of a session, guarded by its mutex.
type attached struct {
	locks          map[*Lock]struct{}
	pendingDeletes []*Lock       // whose entries an adopted session has yet to delete; none comes after empty is closed
	empty          chan struct{} // closed when it is over and locks is empty
}

// entriesPerLease bounds the entries of one session: to revoke a lease, and with
// authentication to renew it, etcd walks all of its keys while others wait.
const entriesPerLease = 1000

// NewSession opens a session with a lease of its own. It blocks until etcd has
// granted the lease; ctx bounds that and nothing else. On error nothing is left
// behind, or it is removed in the background.
//
// Errors: ErrInvalid, ErrClosed, the cause of ctx, and etcd's own.
func (c *Client) NewSession(ctx context.Context, opts ...SessionOption) (*Session, error) {
	const op = "new session"
	ctx, end, err := c.begin(ctx)
	if err != nil {
		return nil, wrap(op, "", err)
	}
	defer end()
	s := c.newSession(0)
	for _, opt := range opts {
		if err := apply(opt, s); err != nil {
			s.endCleanUp(err)
			return nil, wrap(op, "", err)
		}
	}
	if err := s.open(ctx); err != nil {
		return nil, wrap(op, "", err)
	}
	return s, nil
}

// AdoptSession attaches locks to the lease of a session that the program already
// has. It blocks for a renewal of the lease, which tells how long it lives, at
// most for 10 s, or the Client's TTL if that is shorter. The adopted session is
// renewed by both; when it ends (its Done is closed) the locks attached to it are
// lost. Entries attached to it have keys of their own, so that a concurrency.Mutex
// of the same session and name is excluded like any other.
//
// Errors: ErrInvalid for nil, ErrClosed, ErrEtcdClosed, ErrLost if the lease is gone,
// etcd's own.
func (c *Client) AdoptSession(session *concurrency.Session) (*Session, error) {
	const op = "adopt session"
	if err := c.usable(); err != nil {
		return nil, wrap(op, "", err)
	}
	if session == nil || session.Lease() == clientv3.NoLease {
		return nil, wrap(op, "", &InvalidError{"session", "nil", "a concurrency.Session with a lease is needed"})
	}
	ctx, cancel := context.WithTimeout(context.Background(), min(c.ttl, cleanupWait))
	defer cancel()
	ctx, end, err := c.begin(ctx)
	if err != nil {
		return nil, wrap(op, "", err)
	}
	defer end()
	s := c.newSession(session.Lease())
	s.adopted = session.Done()
	// Not the plain lease ID: a Mutex over the same session uses that as its key,
	// and takes a key that exists for its own.
	s.member = fmt.Sprintf("%x-%08x", s.lease, rand.Uint32())
	if err := s.open(ctx); err != nil {
		return nil, wrap(op, "", err)
	}
	return s, nil
}

// Context ends when the session is over: context.Cause is a *LostError without a
// Name if it was lost, or ErrClosed.
func (s *Session) Context() context.Context {
	if err := s.usable(); err != nil {
		return endedContext(err)
	}
	return s.ctx
}

// Lease returns the ID of the lease. Leave it to the Client: a concurrency.Session over it
// (concurrency.WithLease) has the same keys as locks of this Session, which removes what
// does not belong to them. To share a lease, adopt the session of the other instead.
func (s *Session) Lease() clientv3.LeaseID { return s.lease }

// Close ends all holds of the session, whose contexts end with ErrClosed, lets
// calls waiting on it return, and revokes the lease; an adopted session is only
// let go, with its lease untouched and nothing of Locker's left on it. It blocks
// until etcd has confirmed that, at most for 10 s, or the TTL if that is shorter:
// after that the error says that it was not confirmed. The Client goes on with it,
// and at the latest when the TTL has passed the lease runs out by itself (if it was
// not adopted). A session that was lost, or closed before, may be closed as well.
// It waits for functions of Do and Campaign as Client.Close does.
func (s *Session) Close() error {
	if err := s.usable(); err != nil {
		return wrap("close session", "", err)
	}
	s.end(ErrClosed)
	ctx, cancel := context.WithTimeout(context.Background(), min(s.ttl, cleanupWait))
	defer cancel()
	return wrap("close session", "", s.client.await(ctx, s))
}

// usable returns an error for what no Client has made.
func (s *Session) usable() error {
	if s == nil || s.client == nil {
		return errZeroSession
	}
	return nil
}

func (c *Client) newSession(lease clientv3.LeaseID) *Session {
	if lease == clientv3.NoLease {
		// Chosen here, so that a grant that is repeated because its answer was
		// lost cannot leave a second lease behind.
		lease = clientv3.LeaseID(rand.Int64N(1<<63-1) + 1)
	}
	s := &Session{
		client:   c,
		lease:    lease,
		member:   fmt.Sprintf("%x", lease),
		ttl:      c.ttl,
		ending:   ending{done: make(chan struct{})},
		attached: attached{locks: make(map[*Lock]struct{}), empty: make(chan struct{})},
	}
	s.ctx, s.cancel = context.WithCancelCause(context.Background())
	s.cleanUpCtx, s.endCleanUp = context.WithCancelCause(c.base)
	return s
}

// open takes or checks the lease, writes the record and starts the renewal. On
// error the session is over.
func (s *Session) open(ctx context.Context) (err error) {
	if !s.client.enlist(s) {
		s.end(ErrClosed)
		s.endCleanUp(ErrClosed)
		return ErrClosed
	}
	if s.adopted == nil {
		err = s.grant(ctx)
	}
	if err == nil && s.alarm == nil { // it was there already
		err = s.renewOnce(ctx)
	}
	if err != nil {
		s.end(err)
	}
	// From here the session's goroutine owns the lease, be it only to revoke what
	// a grant without an answer may have left.
	s.client.tasks.Run(s.run)
	if err != nil {
		return err
	}
	ctx, stop := tasks.Either(ctx, s.ctx)
	defer stop()
	if err := s.writeRecord(ctx); err != nil {
		s.end(err)
		return err
	}
	s.client.log.Debug("session opened", "lease", s.member, "ttl", s.ttl)
	return nil
}

// run is the session's goroutine: it renews the lease and audits the entries until
// the session is over, and then leaves nothing behind.
func (s *Session) run() {
	defer close(s.done)
	defer s.client.delist(s)
	defer func() { s.endCleanUp(s.client.orEtcdClosed(errDrained)) }()
	if s.adopted != nil {
		ctx, stop := context.WithCancel(s.ctx)
		defer stop()
		s.client.tasks.Run(func() {
			select {
			case <-s.adopted:
				s.end(&LostError{Reason: Revoked, Cause: errAdoptedEnded})
			case <-ctx.Done():
			}
		})
	}
	for kept := (*keepAlive)(nil); backoff.Sleep(s.ctx, time.Until(s.renewed.sent.Add(s.renewed.life()/3))) == nil; {
		if s.check() == nil {
			kept = s.renew(kept)
			s.audit()
		}
	}
	s.closeErr = s.cleanUp()
}

// check ends the session if its deadline has passed or its connection to etcd was
// closed, and returns why it is over, or nil. It is called at every use, because a
// timer is of no use to a process that was stopped, or whose machine slept.
func (s *Session) check() error {
	s.mu.Lock()
	deadline, trouble, isOver := s.deadline, s.trouble, s.over
	s.mu.Unlock()
	switch {
	case isOver:
		<-s.ctx.Done()
		return context.Cause(s.ctx)
	case s.client.etcdIsClosed():
		return s.fail(ErrEtcdClosed)
	case passed(deadline):
		s.end(&LostError{Reason: Expired, Cause: trouble})
		<-s.ctx.Done()
		return context.Cause(s.ctx)
	}
	return nil
}

// passed reports whether a deadline has passed on either clock: the monotonic one,
// which may stand still while the machine sleeps, or the wall clock, which does
// not but may be set back.
func passed(deadline time.Time) bool {
	now := time.Now()
	return !now.Before(deadline) || !now.Round(0).Before(deadline.Round(0))
}

// fail ends a session whose lease is gone, or has to be given up, and returns why it
// is over.
func (s *Session) fail(cause error) error {
	s.end(&LostError{Reason: Revoked, Cause: cause})
	<-s.ctx.Done()
	return context.Cause(s.ctx)
}

// diagnose looks at the error of a write: if the lease is gone, the session is lost.
func (s *Session) diagnose(err error) error {
	if errors.Is(err, rpctypes.ErrLeaseNotFound) {
		return s.fail(err)
	}
	return err
}

// end ends the session and all holds on it. Only the first call counts.
func (s *Session) end(cause error) { s.endIf(cause, func() bool { return true }) }

// endIf is end under a condition on what the mutex guards, and reports whether
// it was this call that did it.
func (s *Session) endIf(cause error, condition func() bool) bool {
	s.mu.Lock()
	if s.over || !condition() {
		s.mu.Unlock()
		return false
	}
	s.over = true
	if s.alarm != nil {
		s.alarm.Stop()
	}
	locks := make([]*Lock, 0, len(s.locks))
	for l := range s.locks {
		locks = append(locks, l)
	}
	if len(locks) == 0 {
		close(s.empty)
	}
	s.mu.Unlock()

	// First the contexts of the holds, which is what their holders go by; only when
	// they have ended may the lease be revoked.
	var lost *LostError
	isLost := errors.As(cause, &lost)
	var holds []*Lock
	for _, l := range locks {
		each := cause
		if isLost {
			each = &LostError{Name: l.name, Token: l.token.Load(), Reason: lost.Reason, Cause: lost.Cause}
		}
		if l.end(each) == held {
			holds = append(holds, l)
			if callback := l.running(); callback != nil && !isLost {
				s.callbacks = append(s.callbacks, callback)
			}
		}
	}
	s.cancel(cause)
	s.client.unshare(s)
	for _, l := range holds {
		s.deleteLater(l)
		l.detach(nil)
	}
	if isLost {
		s.client.log.Warn("session lost", "lease", s.member, "reason", lost.Reason, "cause", lost.Cause, "holds", len(holds))
	}
	return true
}

// deleteLater remembers a lock whose entry does not go with the lease.
func (s *Session) deleteLater(l *Lock) {
	if s.adopted != nil {
		s.mu.Lock()
		s.pendingDeletes = append(s.pendingDeletes, l)
		s.mu.Unlock()
	}
}
