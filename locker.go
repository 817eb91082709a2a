package locker

import (
	"context"
	"errors"
	"log/slog"
	"reflect"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/connectivity"
	"google.golang.org/grpc/status"

	"github.com/jagregory/locker/v2/internal/backoff"
	"github.com/jagregory/locker/v2/internal/key"
	"github.com/jagregory/locker/v2/internal/line"
	"github.com/jagregory/locker/v2/internal/tasks"
	"github.com/jagregory/locker/v2/internal/txn"
	"github.com/jagregory/locker/v2/internal/watchmux"
)

// A Client locks names on an etcd cluster. It is safe for concurrent use. One Client is
// enough for a program: goroutines that want the same name exclude each other and are
// served in the order in which they called.
type Client struct {
	config

	etcd     *clientv3.Client
	leases   pb.LeaseClient // of etcd, for what the Lease interface of its client cannot do
	failures tasks.Shared   // the search for what is wrong with the connection

	ctx       context.Context // ends with Close (ErrClosed), or with the etcd client (ErrEtcdClosed)
	end       context.CancelCauseFunc
	base      context.Context // of requests; ends when Close has done its work
	stop      context.CancelFunc
	leaveEtcd func() // stops waiting for the end of the etcd client
	tasks     tasks.Group

	store    *txn.Store
	watches  *watchmux.Mux
	lines    *line.Lines[*Lock]
	removals *tasks.Backlog // of entries that failed calls have left in queues
	asking   chan struct{}  // has an item for each call that asks who was in its way
	pool     pool

	reporting tasks.Group    // the goroutine of reports, which Close does not wait for forever
	reports   *tasks.Backlog // calls of hooks
}

// config is what the options of New have set.
type config struct {
	keys    key.Space
	ttl     time.Duration
	delay   time.Duration // how much longer than the TTL leases live
	margin  time.Duration // 0: a tenth of the TTL
	shares  int           // of goroutines in a row that share a hold
	log     *slog.Logger
	program string // of WithProgram
	process string // the value of the records of the sessions
	hooks   hooks  // of WithHooks; nil if there are none
}

// New returns a Client on top of etcd, which remains the caller's: close it after the
// Client. If it is closed before, every hold ends and every call returns ErrEtcdClosed. New
// does not block, makes no request and starts no goroutine. [ClientConfig] returns the
// settings of an etcd client that suit Locker.
//
// Requests use the connections, the retries and the user of the etcd client. The limits
// MaxCallSendMsgSize and MaxCallRecvMsgSize of its [clientv3.Config] are not kept by what
// Locker reads, writes and watches: the size of a request is for etcd to limit (its
// --max-request-bytes), and an answer may be of any size. They hold for Lock.Commit. If an
// interceptor calls the Err method of a transaction's context before it passes the
// transaction on, that looks as if the transaction had been repeated, and writes are in
// doubt.
//
// Errors: ErrInvalid as *InvalidError for a nil client, for one whose KV or Watcher was
// replaced (as etcd's namespace package does), and for a bad option; ErrEtcdClosed for one
// that was closed.
func New(etcd *clientv3.Client, opts ...Option) (*Client, error) {
	const op = "new client"
	if etcd == nil {
		return nil, wrap(op, "", &InvalidError{"client", "nil", "an etcd client is needed"})
	}
	if etcd.Ctx().Err() != nil {
		return nil, wrap(op, "", ErrEtcdClosed)
	}
	if reflect.TypeOf(etcd.Watcher) != reflect.TypeOf(clientv3.NewWatcher(etcd)) || reflect.TypeOf(etcd.KV) != reflect.TypeOf(clientv3.NewKV(etcd)) {
		return nil, wrap(op, "", &InvalidError{"client", "wrapped", "requests would pass the wrapper by; for a namespace there is WithPrefix"})
	}
	c := &Client{
		etcd: etcd,
		config: config{
			keys:    key.NewSpace(DefaultPrefix),
			ttl:     DefaultTTL,
			shares:  1,
			log:     slog.New(slog.DiscardHandler),
			program: thisProgram(),
		},
		asking: make(chan struct{}, mostAsking),
		pool:   pool{opening: make(chan struct{}, 1), sessions: make(map[*Session]bool)},
	}
	for _, opt := range opts {
		if err := apply(opt, c); err != nil {
			return nil, wrap(op, "", err)
		}
	}
	if c.margin > c.ttl/2 {
		return nil, wrap(op, "", &InvalidError{"safety margin", c.margin.String(), "it must be at most half the TTL of " + c.ttl.String()})
	}
	c.process = string(thisProcess(c.program))
	c.leases = pb.NewLeaseClient(etcd.ActiveConnection())
	c.lines = newLines()
	c.removals = tasks.NewBacklog(&c.tasks, removalsAtOnce)
	c.reports = tasks.NewBacklog(&c.reporting, 1)
	c.ctx, c.end = context.WithCancelCause(context.Background())
	c.base, c.stop = context.WithCancel(context.Background())
	c.store = txn.New(txn.Config{
		KV:          clientv3.RetryKVClient(etcd),
		Tasks:       &c.tasks,
		Base:        c.base,
		HedgeDelay:  txn.DelayFor(c.ttl),
		InFlight:    txn.InFlight,
		Closed:      c.closedError,
		Explain:     c.explain,
		Interrupted: c.interrupted,
	})
	c.watches = watchmux.New(watchmux.Config{
		Conn:       etcd.ActiveConnection,
		Endpoints:  etcd.Endpoints,
		Tasks:      &c.tasks,
		Ctx:        c.ctx,
		Base:       c.base,
		Log:        c.log,
		HedgeDelay: c.store.HedgeDelay,
		Read: func(ctx context.Context, key string) (*pb.ResponseHeader, error) {
			resp, err := c.store.Read(ctx, txn.RevisionsOf(key))
			if err != nil {
				return nil, err
			}
			return resp.Header, nil
		},
		Reset: c.reportReset,
	})
	c.leaveEtcd = c.endWithEtcd()
	return c, nil
}

// Close ends every hold, whose contexts end with ErrClosed, makes all calls return
// ErrClosed, revokes the leases, so that nothing is left in etcd, and waits for every
// goroutine of the Client. It blocks until etcd has confirmed that, for at most 10 s, or
// the TTL if that is shorter; after that the error reports what was not confirmed, and the
// leases expire by themselves. The Client cannot be used again. Close is idempotent.
//
// Before Close gives a lock away, it waits for a function that Do or Campaign has called
// under it, whose context it has ended. That wait is part of the bound: if the function
// does not return in time, its lock is given up nevertheless. A function that calls Close
// itself makes it wait for that long.
//
// Errors: what etcd did not confirm; ErrEtcdClosed if the etcd client was closed first, so
// that leases were left.
func (c *Client) Close() error {
	if err := c.usable(); err != nil {
		return wrap("close", "", err)
	}
	if !c.tasks.Close() {
		c.tasks.Join()
		return nil
	}
	c.end(ErrClosed)
	c.pool.close()
	sessions := c.pool.all()
	for _, s := range sessions {
		_ = s.check() // what was lost before stays lost
		s.end(ErrClosed)
	}
	// Each session takes no longer than its TTL.
	ctx, cancel := context.WithTimeout(context.Background(), cleanupWait)
	defer cancel()
	err := c.await(ctx, sessions...)
	c.stop()
	c.watches.End()
	c.tasks.Join()
	c.leaveEtcd()
	c.awaitReports(ctx)
	return wrap("close", "", err)
}

// Lock locks name with value. It blocks until nobody else holds the name or, with WithShared
// or WithLimit, until it may hold it beside the others (see the package documentation);
// waiters are served first come, first served, also among the goroutines of one Client. With
// And it locks several names at once. ctx bounds the wait only: the hold outlives it. While
// etcd cannot be reached, Lock keeps trying until ctx ends. After an error nothing is held, and
// nothing is left in the queue; if etcd does not answer at once, the entry is removed in the
// background.
//
// A Lock is not reentrant. If ctx comes from a hold, or was given to a function by Do or
// Campaign, and this Client holds the name there, Lock fails at once with ErrInvalid,
// because it would wait for itself. (A goroutine that may outlive the function has to use
// another context.)
//
// Errors: ErrInvalid for a bad name, option or session, a nil context, or a name that is
// locked where ctx comes from; the cause of ctx, with the last error from etcd, or with the
// *LockedError of who was in the way, for which Lock asks once more; ErrLost if the session
// was lost, or the entry deleted by somebody else, during the wait; ErrClosed;
// ErrEtcdClosed; ErrSessionFull; and etcd's own if it refuses (no permission, no space,
// value too large).
func (c *Client) Lock(ctx context.Context, name, value string, opts ...LockOption) (*Lock, error) {
	l, err := c.prepare(ctx, "Lock", name, value, opts)
	if err == nil {
		l, err = l.acquire(ctx, false)
	}
	return l, wrap("lock", name, err)
}

// TryLock locks name with value if nobody holds it or waits for it; with WithShared or
// WithLimit, if Lock would not have to wait. It never waits for another holder. It blocks for etcd's answers, and for the removal of what an ended call
// or hold of this Client still has in the queue; ctx bounds both. After an error nothing is
// held and nothing is left in the queue, as with Lock, and like Lock it is not reentrant.
//
// Errors: ErrLocked as *LockedError, with the present holder; otherwise as for Lock.
func (c *Client) TryLock(ctx context.Context, name, value string, opts ...LockOption) (*Lock, error) {
	l, err := c.prepare(ctx, "TryLock", name, value, opts)
	if err == nil {
		l, err = l.acquire(ctx, true)
	}
	return l, wrap("try lock", name, err)
}

// Do locks name, calls fn in this goroutine, and unlocks when fn has returned, also if fn
// panics. ctx bounds the wait for the lock. The context given to fn has the values of ctx
// and ends with ctx or with the hold, whichever ends first; fn should return then. With
// that context the same name cannot be locked again, see Lock. Do returns when the release
// is confirmed; if etcd does not answer, after 10 s, or the TTL if that is shorter.
//
// If the Client or the session is closed meanwhile, that ends the hold and waits for fn to
// return.
//
// Errors: those of Lock, in which case fn was not called; that of fn; ErrLost if the hold
// did not last until fn returned; and that of the release.
func (c *Client) Do(ctx context.Context, name, value string, fn func(context.Context, *Lock) error, opts ...LockOption) error {
	const op = "do under"
	if _, err := c.checkCampaign(name, fn, opts); err != nil {
		return wrap(op, name, err)
	}
	l, err := c.prepare(ctx, "Do", name, value, opts)
	if err == nil {
		l, err = l.acquire(ctx, false)
	}
	if err != nil {
		return wrap(op, name, err)
	}
	err, unlocked := l.do(ctx, fn)
	return join(err, unlocked)
}

// Campaign calls Do over and over: it locks name and calls fn; if the lock is lost, it
// waits for fn to return, discards its error and waits for the lock again, after a pause
// that grows from 10 ms to 500 ms while losses follow each other closely. It returns when
// fn returns while the lock is still held, with fn's error; when ctx ends; or when Lock
// fails for any reason other than a loss. If ctx ends while fn runs, the result of fn
// counts. As with Do, the context of fn cannot be used to lock the name again, and Close
// waits for fn.
//
// Errors: as for Do; ErrLost only if the session of WithSession was lost.
func (c *Client) Campaign(ctx context.Context, name, value string, fn func(context.Context, *Lock) error, opts ...LockOption) error {
	const op = "campaign for"
	session, err := c.checkCampaign(name, fn, opts)
	if err != nil {
		return wrap(op, name, err)
	}
	for pause := (backoff.Pause{}); ; {
		began := time.Now()
		l, err := c.prepare(ctx, "Campaign", name, value, opts)
		if err == nil {
			l, err = l.acquire(ctx, false)
		}
		if err == nil {
			var result error
			if result, err = l.do(ctx, fn); !errors.Is(err, ErrLost) || ctx.Err() != nil {
				return join(result, err)
			}
			err = errors.Unwrap(err)
		}
		if !errors.Is(err, ErrLost) || session != nil && session.ctx.Err() != nil {
			return wrap(op, name, err)
		}
		if time.Since(began) > c.ttl {
			pause = backoff.Pause{}
		}
		if pause.Wait(ctx) != nil {
			return wrap(op, name, c.interrupted(ctx))
		}
	}
}

// checkCampaign checks those arguments of Do and Campaign that Lock does not check, and
// returns the session of WithSession, nil if there is none.
func (c *Client) checkCampaign(name string, fn func(context.Context, *Lock) error, opts []LockOption) (*Session, error) {
	cfg, err := c.configure(name, "", opts)
	if err == nil && fn == nil {
		err = &InvalidError{"function", "nil", "there is nothing to do"}
	}
	return cfg.session, err
}

// join joins the error of fn with that of the release, unless fn has returned that one
// itself.
func join(result, released error) error {
	if released == nil || result != nil && errors.Is(result, errors.Unwrap(released)) {
		return result
	}
	return errors.Join(result, released)
}

// begin begins a call. The context that it returns ends with ctx or with the client. The
// caller must call end, and after that starts no goroutine.
func (c *Client) begin(ctx context.Context) (_ context.Context, end func(), err error) {
	ctx, stop, err := c.enter(ctx)
	return ctx, func() { stop(); c.tasks.End() }, err
}

// enter is begin for a call that ends its task by itself.
func (c *Client) enter(ctx context.Context) (_ context.Context, stop context.CancelFunc, err error) {
	if err := c.usable(); err != nil {
		return nil, nil, err
	}
	if err := checkContext(ctx); err != nil {
		return nil, nil, err
	}
	if ctx.Err() != nil {
		return nil, nil, context.Cause(ctx)
	}
	if err := c.beginTask(); err != nil {
		return nil, nil, err
	}
	ctx, stop = tasks.Either(ctx, c.ctx)
	return ctx, stop, nil
}

// beginTask counts in a call, or returns why there can be no more.
func (c *Client) beginTask() error {
	if !c.tasks.Begin() {
		return ErrClosed
	}
	if c.etcdIsClosed() {
		c.tasks.End()
		return ErrEtcdClosed
	}
	return nil
}

// usable returns an error for a Client that New has not made.
func (c *Client) usable() error {
	if c == nil || c.etcd == nil {
		return errZeroClient
	}
	return nil
}

// endWithEtcd makes the client end with the etcd client that it has borrowed. When the
// program closes that, nothing can be renewed or asked any more: everything ends at once,
// with an error of its own. stop undoes that; if it has begun, stop waits for it.
func (c *Client) endWithEtcd() (stop func()) {
	done := make(chan struct{})
	undo := context.AfterFunc(c.etcd.Ctx(), func() {
		defer close(done)
		c.end(ErrEtcdClosed)
		for _, s := range c.pool.all() {
			s.end(&LostError{Reason: Revoked, Cause: ErrEtcdClosed})
		}
	})
	return func() {
		if !undo() {
			<-done
		}
	}
}

// etcdIsClosed reports whether the etcd client was closed.
func (c *Client) etcdIsClosed() bool { return c.etcd.Ctx().Err() != nil }

// closedError returns ErrEtcdClosed if the etcd client was closed, else nil.
func (c *Client) closedError() error {
	if c.etcdIsClosed() {
		return ErrEtcdClosed
	}
	return nil
}

// orEtcdClosed returns err, or, if the etcd client was closed, ErrEtcdClosed, which
// explains any other error.
func (c *Client) orEtcdClosed(err error) error {
	if err != nil && c.etcdIsClosed() {
		return ErrEtcdClosed
	}
	return err
}

// explain finds out why a request was not answered: etcd's client waits for a connection
// and does not report why there is none.
func (c *Client) explain(err error) error {
	conn := c.etcd.ActiveConnection()
	if !txn.IsContextError(err) || conn.GetState() == connectivity.Ready {
		return err
	}
	failure := c.failures.Do(func() error {
		ctx, cancel := context.WithTimeout(c.base, explainTimeout)
		defer cancel()
		// This request does not wait: it fails with the error of the last connection.
		_, failure := pb.NewKVClient(conn).Range(ctx, &pb.RangeRequest{Key: []byte(c.keys.Records()), CountOnly: true})
		return failure
	})
	if status.Code(failure) == codes.Unavailable {
		return failure
	}
	return err
}

// explainTimeout is the most time that explain takes.
const explainTimeout = 50 * time.Millisecond

// interrupted returns the error of a wait that was ended by ctx. The wait was for other
// goroutines or holders, not for etcd; but if there is no connection, the error says so.
func (c *Client) interrupted(ctx context.Context) error {
	if c.etcd.ActiveConnection().GetState() == connectivity.Ready {
		return txn.Ended(ctx, nil)
	}
	return txn.Ended(ctx, c.explain(ctx.Err()))
}
