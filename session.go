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
	"github.com/jagregory/locker/v2/internal/txn"
)

// A Session is a lease of etcd and its renewal. All locks attached to it share its fate:
// when it can no longer be sure of its lease, all of them are lost at once. A Client opens
// sessions by itself; one of the caller's own separates the fate of some locks from that of
// the others. All methods are safe for concurrent use.
type Session struct {
	client  *Client
	lease   clientv3.LeaseID
	guard   *txn.Record     // its record, as it guards puts of entries; set by open
	member  string          // the last part of the keys of its entries, in every queue
	adopted <-chan struct{} // closed when the adopted session ends; nil if the lease is its own
	delay   time.Duration   // how much longer the lease lives than its holds

	ctx    context.Context // ends when the session is over, with the reason as its cause
	cancel context.CancelCauseFunc
	ending

	grants   sync.WaitGroup // requests for the lease under way
	renewed  renewal        // the last that was answered; belongs to the session's goroutine
	timeline timeline       // what etcd's answers have shown of the cluster

	mu       sync.Mutex // guards what follows; no request is made under it
	over     bool
	ttl      time.Duration // as first granted; bounds everything that the session does besides renewing
	deadline time.Time     // the lease is certain until then
	alarm    *tasks.Alarm  // at the deadline
	trouble  error         // why the last renewal failed; nil if it did not
	epoch    int64         // mod revision of the session's record, see invalidatePuts
	reported bool          // hooks are told of it
	attached
}

// ending is what a session needs to leave nothing in etcd when it is over.
type ending struct {
	cleanUpCtx context.Context // ends when nothing is left in etcd, or nothing more can be done
	endCleanUp context.CancelCauseFunc
	done       chan struct{}     // closed when its goroutine has ended
	closeErr   error             // why something may be left in etcd; set before done is closed
	callbacks  []<-chan struct{} // each is closed when a function of Do has returned; set before ctx ends
}

// attached is the locks of a session. The session's mutex guards it.
type attached struct {
	locks          map[*Lock]struct{}
	used           int           // how many entries they have
	pendingDeletes []*Lock       // locks whose entries an adopted session has yet to delete; complete when empty is closed
	empty          chan struct{} // closed when the session is over and has no locks
}

// entriesPerLease bounds the entries of one session: to revoke a lease, and with
// authentication to renew it, etcd walks all of its keys while others wait.
const entriesPerLease = 1000

// NewSession opens a session with a lease of its own. It blocks until etcd has granted the
// lease and the session's record is written; ctx bounds that and nothing else. After an
// error nothing is left in etcd, or it is removed in the background.
//
// Errors: ErrInvalid for a nil context or a bad option; ErrClosed; ErrEtcdClosed; ErrLost
// if the lease was lost meanwhile; the cause of ctx; and etcd's own.
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

// AdoptSession returns a Session on the lease of a session that the program already has. It
// blocks until the lease has been renewed once, which shows how long it lives, and the
// session's record is written; at most for 10 s, or the Client's TTL if that is shorter.
// The lease is then renewed by both sessions. When the adopted one ends (its Done is
// closed), the locks attached to the Session are lost. Their entries have keys of their
// own, so that a concurrency.Mutex of the same session and name is excluded like any other.
// After an error nothing of Locker's is left on the lease, or it is removed in the
// background.
//
// Errors: ErrInvalid for nil; ErrClosed; ErrEtcdClosed; ErrLost if the lease is gone;
// context.DeadlineExceeded if etcd did not answer in time; and etcd's own.
func (c *Client) AdoptSession(session *concurrency.Session) (*Session, error) {
	const op = "adopt session"
	if err := c.usable(); err != nil {
		return nil, wrap(op, "", err)
	}
	if session == nil || session.Lease() == clientv3.NoLease {
		return nil, wrap(op, "", &InvalidError{"session", "nil", "a concurrency.Session with a lease is needed"})
	}
	ctx, cancel := context.WithTimeoutCause(context.Background(), min(c.ttl, cleanupWait), errAdoptedLate)
	defer cancel()
	ctx, end, err := c.begin(ctx)
	if err != nil {
		return nil, wrap(op, "", err)
	}
	defer end()
	s := c.newSession(session.Lease())
	s.adopted, s.delay = session.Done(), 0
	// Not just the lease ID: a Mutex of the same session uses that as its key, and takes a
	// key that exists for its own.
	s.member = fmt.Sprintf("%x-%08x", s.lease, rand.Uint32())
	if err := s.open(ctx); err != nil {
		return nil, wrap(op, "", err)
	}
	return s, nil
}

// Context returns a context that ends when the session is over. Its cause, see
// context.Cause, is then a *LostError without a Name if the session was lost, or ErrClosed.
func (s *Session) Context() context.Context {
	if err := s.usable(); err != nil {
		return endedContext(err)
	}
	return s.ctx
}

// Lease returns the ID of the lease. Leave the lease to the Client: a concurrency.Session
// on it (concurrency.WithLease) uses the same keys as the locks of this Session, and this
// Session removes such keys if they do not belong to its locks. To share a lease, adopt the
// other session instead.
func (s *Session) Lease() clientv3.LeaseID {
	if s == nil {
		return clientv3.NoLease
	}
	return s.lease
}

// Close ends all holds of the session, whose contexts end with ErrClosed, makes calls that
// wait on it return, and revokes the lease. Of an adopted session the lease is left alone,
// and only what Locker has on it is deleted. Close blocks until etcd has confirmed that, at
// most for 10 s, or the TTL if that is shorter; after that the error reports that it was
// not confirmed. The Client carries on with it, and once the TTL has passed the lease
// expires by itself, unless it was adopted. Close is idempotent, and may be called on a
// session that was lost, whose lease it leaves to expire if there is a lock-delay. It waits for functions of Do and Campaign as Client.Close does.
//
// Errors: what etcd did not confirm; ErrEtcdClosed.
func (s *Session) Close() error {
	if err := s.usable(); err != nil {
		return wrap("close session", "", err)
	}
	_ = s.check() // what was lost before stays lost
	s.end(ErrClosed)
	ctx, cancel := context.WithTimeout(context.Background(), min(s.ttl, cleanupWait))
	defer cancel()
	return wrap("close session", "", s.client.await(ctx, s))
}

// usable returns an error for a Session that no Client has made.
func (s *Session) usable() error {
	if s == nil || s.client == nil {
		return errZeroSession
	}
	return nil
}

// newSession returns a session that has yet to be opened, on the lease to be adopted, if
// there is one.
func (c *Client) newSession(lease clientv3.LeaseID) *Session {
	if lease == clientv3.NoLease {
		// The ID is chosen here, so that a grant that is repeated because its answer was
		// lost cannot leave a second lease behind.
		lease = clientv3.LeaseID(rand.Int64N(1<<63-1) + 1)
	}
	s := &Session{
		client:   c,
		lease:    lease,
		member:   fmt.Sprintf("%x", lease),
		ttl:      c.ttl,
		delay:    c.delay,
		ending:   ending{done: make(chan struct{})},
		attached: attached{locks: make(map[*Lock]struct{}), empty: make(chan struct{})},
	}
	s.ctx, s.cancel = context.WithCancelCause(context.Background())
	s.cleanUpCtx, s.endCleanUp = context.WithCancelCause(c.base)
	return s
}

// open is granted the lease, or checks that it exists, writes the record and starts the
// renewal. After an error the session is over.
func (s *Session) open(ctx context.Context) (err error) {
	s.guard = &txn.Record{Key: s.record(), Learn: s.learnEpoch}
	if !s.client.pool.enlist(s) {
		s.end(ErrClosed)
		s.endCleanUp(ErrClosed)
		return ErrClosed
	}
	if s.adopted == nil {
		err = s.grant(ctx)
	}
	if err == nil && s.alarm == nil { // the lease was there already
		err = s.renewOnce(ctx)
	}
	if err != nil {
		s.end(err)
	}
	// From here on the session's goroutine owns the lease, even if only to revoke what a
	// grant without an answer may have left.
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
	s.reportStart()
	return nil
}

// run is the session's goroutine. It renews the lease and audits the entries until the
// session is over, and then removes everything from etcd.
func (s *Session) run() {
	defer close(s.done)
	defer s.client.pool.delist(s)
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
	for kept := (*keepAlive)(nil); backoff.Sleep(s.ctx, time.Until(s.renewed.sent.Add(s.holdTime()/3))) == nil; {
		if s.check() == nil {
			kept = s.renew(kept)
			s.audit()
		}
	}
	s.closeErr = s.cleanUp()
}

// check ends the session if its deadline has passed or the etcd client was closed. It
// returns why the session is over, nil if it is not. It is called at every use, because a
// timer does not help a process that was stopped, or whose machine slept.
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

// passed reports whether a deadline has passed on either clock: the monotonic one, which
// may stand still while the machine sleeps, or the wall clock, which does not, but may be
// set back.
func passed(deadline time.Time) bool {
	now := time.Now()
	return !now.Before(deadline) || !now.Round(0).Before(deadline.Round(0))
}

// fail ends a session whose lease is gone, or has to be given up, and returns why the
// session is over.
func (s *Session) fail(cause error) error {
	s.end(&LostError{Reason: Revoked, Cause: cause})
	<-s.ctx.Done()
	return context.Cause(s.ctx)
}

// diagnose examines the error of a write: if the lease is gone, the session is lost.
func (s *Session) diagnose(err error) error {
	if errors.Is(err, rpctypes.ErrLeaseNotFound) {
		return s.fail(err)
	}
	return err
}

// end ends the session and all its holds. Only the first call has an effect.
func (s *Session) end(cause error) { s.endIf(cause, func() bool { return true }) }

// endIf is end under a condition on what the mutex guards. It reports whether this call has
// ended the session.
func (s *Session) endIf(cause error, condition func() bool) bool {
	s.mu.Lock()
	if s.over || !condition() {
		s.mu.Unlock()
		return false
	}
	s.over = true
	reported := s.reported
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

	// First the contexts of the holds end, which is what their holders go by. Only then may
	// the lease be revoked.
	var lost *LostError
	isLost := errors.As(cause, &lost)
	var holds []*Lock
	for _, l := range locks {
		each := cause
		if isLost {
			each = &LostError{Name: l.name(), Token: l.token.Load(), Reason: lost.Reason, Cause: lost.Cause}
		}
		if l.end(each) == held {
			holds = append(holds, l)
			if returned := l.running(); returned != nil && !isLost {
				s.callbacks = append(s.callbacks, returned)
			}
		}
	}
	for _, l := range holds {
		l.reportEndLater()
	}
	if reported {
		s.reportEnd(cause)
	}
	s.cancel(cause)
	s.client.pool.unshare(s)
	for _, l := range holds {
		s.deleteLater(l)
		l.detach()
	}
	if isLost {
		s.client.log.Warn("session lost", "lease", s.member, "reason", lost.Reason, "cause", lost.Cause, "holds", len(holds))
	}
	return true
}

// deleteLater notes a lock whose entry does not go with the lease.
func (s *Session) deleteLater(l *Lock) {
	if s.adopted != nil {
		s.mu.Lock()
		s.pendingDeletes = append(s.pendingDeletes, l)
		s.mu.Unlock()
	}
}
