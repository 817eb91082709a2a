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

// Client locks names on an etcd cluster. It is safe for concurrent use, and one is
// enough for a program: goroutines that want the same name exclude each other and
// take turns in order of arrival.
type Client struct {
	config

	etcd     *clientv3.Client
	leases   pb.LeaseClient // of etcd, for what its Lease interface cannot do
	failures tasks.Shared   // to find out what is wrong with the connection

	ctx       context.Context // ends with Close, with ErrClosed, or with its connection, with ErrEtcdClosed
	end       context.CancelCauseFunc
	base      context.Context // of requests; ends when Close has done its work
	stop      context.CancelFunc
	leaveEtcd func() // stops watching over the connection
	tasks     tasks.Group

	store    *txn.Store
	watches  *watchmux.Mux
	lines    *line.Lines[*Lock]
	removals *tasks.Backlog // of what calls that failed have left in queues

	pool
}

// config is what New was told.
type config struct {
	keys    key.Space
	ttl     time.Duration
	margin  time.Duration // 0: a tenth of the TTL
	turns   int           // of goroutines in a row that share a hold
	log     *slog.Logger
	process string // what stands in the records of the sessions
}

// New returns a Client over etcd, which it borrows: the caller closes it, after
// the Client. If it is closed before, every hold ends and every call returns with
// ErrEtcdClosed. New makes no request and starts no goroutine. [ClientConfig] has the
// settings that suit etcd's client for it.
//
// Requests go through the client's connections and retries, with its user. The limits
// MaxCallSendMsgSize and MaxCallRecvMsgSize of its [clientv3.Config] are not kept: what
// a request may have is for etcd to say (its --max-request-bytes), and an answer may be
// of any size. An interceptor that asks the context of a transaction for its error before
// it passes it on makes it look as if it had been repeated: writes are in doubt then.
//
// Errors: ErrInvalid as *InvalidError for a nil client, one whose KV or Watcher was
// replaced (as etcd's namespace package does), or a bad option.
func New(etcd *clientv3.Client, opts ...Option) (*Client, error) {
	const op = "new client"
	if etcd == nil {
		return nil, wrap(op, "", &InvalidError{"client", "nil", "an etcd client is needed"})
	}
	if reflect.TypeOf(etcd.Watcher) != reflect.TypeOf(clientv3.NewWatcher(etcd)) || reflect.TypeOf(etcd.KV) != reflect.TypeOf(clientv3.NewKV(etcd)) {
		return nil, wrap(op, "", &InvalidError{"client", "wrapped", "requests would pass the wrapper by; for a namespace there is WithPrefix"})
	}
	c := &Client{
		etcd: etcd,
		config: config{
			keys:    key.NewSpace(DefaultPrefix),
			ttl:     DefaultTTL,
			turns:   1,
			log:     slog.New(slog.DiscardHandler),
			process: string(thisProcess()),
		},
		pool: pool{opening: make(chan struct{}, 1), sessions: make(map[*Session]bool)},
	}
	for _, opt := range opts {
		if err := apply(opt, c); err != nil {
			return nil, wrap(op, "", err)
		}
	}
	if c.margin > c.ttl/2 {
		return nil, wrap(op, "", &InvalidError{"safety margin", c.margin.String(), "it must be at most half the TTL of " + c.ttl.String()})
	}
	c.leases = pb.NewLeaseClient(etcd.ActiveConnection())
	c.lines = newLines()
	c.removals = tasks.NewBacklog(&c.tasks, removalsAtOnce)
	c.ctx, c.end = context.WithCancelCause(context.Background())
	c.base, c.stop = context.WithCancel(context.Background())
	c.store = txn.New(txn.Config{
		KV:          clientv3.RetryKVClient(etcd),
		Tasks:       &c.tasks,
		Base:        c.base,
		HedgeDelay:  txn.DelayFor(c.ttl),
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
	})
	c.leaveEtcd = c.endWithEtcd()
	return c, nil
}

// Close ends every hold, whose contexts end with ErrClosed, lets all calls return
// ErrClosed, revokes the leases, so that nothing is left in etcd, and waits for
// every goroutine of the Client. It blocks until etcd has confirmed that, at most
// for 10 s, or the TTL if that is shorter: after that the error says what was not
// confirmed, and the leases run out by themselves. The Client cannot be used again;
// to close it again is no error.
//
// Close waits for the functions that Do and Campaign have called, whose contexts it has
// ended, before it gives their locks away. That wait is part of its bound: of a function
// that does not return by then the locks are given up nevertheless. A function that
// calls Close itself makes it wait for that long.
//
// Errors: ErrEtcdClosed if etcd was closed first, so that leases had to be left.
func (c *Client) Close() error {
	if err := c.usable(); err != nil {
		return wrap("close", "", err)
	}
	if !c.tasks.Close() {
		c.tasks.Join()
		return nil
	}
	c.end(ErrClosed)
	c.mu.Lock()
	c.closed = true
	sessions := make([]*Session, 0, len(c.sessions))
	for s := range c.sessions {
		sessions = append(sessions, s)
	}
	c.mu.Unlock()
	for _, s := range sessions {
		s.end(ErrClosed)
	}
	// Each session has no longer than its TTL.
	ctx, cancel := context.WithTimeout(context.Background(), cleanupWait)
	defer cancel()
	err := c.await(ctx, sessions...)
	c.stop()
	c.watches.End()
	c.tasks.Join()
	c.leaveEtcd()
	return wrap("close", "", err)
}

// Lock locks name with value. It waits its turn, first come first served, also
// among the goroutines of one Client. ctx bounds the wait only: a hold outlives
// it. On error nothing is held and nothing is left queued; if etcd does not answer
// at once, the place in the queue is given up in the background. While etcd cannot
// be reached Lock goes on trying, until ctx ends.
//
// A Lock is not reentrant: with the context of a function that Do or Campaign has called,
// or that of a hold, Lock refuses at once a name that this Client holds there, because
// it would wait for itself. (A goroutine that may outlive the function has to use a
// context that does not come from it.)
//
// Errors: ErrInvalid for a bad name or session, a nil context, or a name that is locked
// where the context comes from; the cause of ctx, with the last that was heard from
// etcd; ErrLost if the session was lost, or the entry deleted by somebody else, while it
// waited; ErrClosed; ErrSessionFull; and etcd's own where it refuses (no permission, no
// space, value too large).
func (c *Client) Lock(ctx context.Context, name, value string, opts ...LockOption) (*Lock, error) {
	l, err := c.acquire(ctx, name, value, false, opts)
	return l, wrap("lock", name, err)
}

// TryLock locks name with value if nobody holds it or waits for it. It never
// waits for another holder; ctx bounds how long it waits for etcd, and for the
// removal of what an ended call or hold of this Client has yet in the queue. On error
// nothing is held and nothing is left in the queue, as with Lock. It is no more
// reentrant than Lock.
//
// Errors: ErrLocked as *LockedError, with the present holder; else as Lock.
func (c *Client) TryLock(ctx context.Context, name, value string, opts ...LockOption) (*Lock, error) {
	l, err := c.acquire(ctx, name, value, true, opts)
	return l, wrap("try lock", name, err)
}

// Do locks name, calls fn in this goroutine, and unlocks after fn has returned. The
// context of fn has the values of ctx and ends with ctx or with the hold, whichever
// is first; fn should return then. With that context the same name cannot be locked once
// more, see Lock. ctx bounds the wait for the lock. Do returns after the release was
// confirmed, or after 10 s (the TTL if that is shorter) if etcd does not answer; also if
// fn panics.
//
// Close of the Client, or of the session, ends the hold and waits for fn to return.
//
// Errors: those of Lock, in which case fn was not called; that of fn; ErrLost if
// the lock did not last until fn returned; and that of the release.
func (c *Client) Do(ctx context.Context, name, value string, fn func(context.Context, *Lock) error, opts ...LockOption) error {
	const op = "do under"
	if _, err := c.checkCampaign(fn, opts); err != nil {
		return wrap(op, name, err)
	}
	l, err := c.acquire(ctx, name, value, false, opts)
	if err != nil {
		return wrap(op, name, err)
	}
	err, unlocked := l.do(ctx, fn)
	return join(err, unlocked)
}

// Campaign is Do over and over: it locks name and calls fn; when the lock is lost
// it waits for fn to return, discards its error and queues again, after a pause
// that grows from 10 ms to 500 ms while losses follow each other closely. It ends
// when fn returns while the lock is still held, with fn's error; when ctx ends; or
// when Lock fails for another reason than a loss. If ctx ends while fn runs, what fn
// returns counts. As with Do, the context of fn cannot be used to lock the name again,
// and Close waits for fn.
//
// Errors: as Do; ErrLost only if the session of WithSession was lost.
func (c *Client) Campaign(ctx context.Context, name, value string, fn func(context.Context, *Lock) error, opts ...LockOption) error {
	const op = "campaign for"
	session, err := c.checkCampaign(fn, opts)
	if err != nil {
		return wrap(op, name, err)
	}
	for pause := (backoff.Pause{}); ; {
		began := time.Now()
		l, err := c.acquire(ctx, name, value, false, opts)
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

// checkCampaign checks the arguments of Do and Campaign that Lock does not have.
func (c *Client) checkCampaign(fn func(context.Context, *Lock) error, opts []LockOption) (*Session, error) {
	session, err := c.sessionFor(opts)
	if err == nil && fn == nil {
		err = &InvalidError{"function", "nil", "there is nothing to do"}
	}
	return session, err
}

// join puts together what fn returned and what the release did, which is no news
// if fn returned that itself.
func join(result, released error) error {
	if released == nil || result != nil && errors.Is(result, errors.Unwrap(released)) {
		return result
	}
	return errors.Join(result, released)
}

// begin starts a call: its context ends with ctx or with the client. end must be
// called, after which the call starts no goroutine.
func (c *Client) begin(ctx context.Context) (_ context.Context, end func(), err error) {
	ctx, stop, err := c.enter(ctx)
	return ctx, func() { stop(); c.tasks.End() }, err
}

// enter is begin for a call that counts itself out of the tasks.
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

// beginTask counts a call in, unless there can be none any more.
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

// usable returns an error for what New has not made.
func (c *Client) usable() error {
	if c == nil || c.etcd == nil {
		return errZeroClient
	}
	return nil
}

// endWithEtcd has the client end when its connection is closed, which it borrows: when the
// program closes that, nothing can be renewed or asked any more. So everything ends, at
// once and with a reason of its own. stop undoes that, and waits if it has begun.
func (c *Client) endWithEtcd() (stop func()) {
	done := make(chan struct{})
	undo := context.AfterFunc(c.etcd.Ctx(), func() {
		defer close(done)
		c.end(ErrEtcdClosed)
		c.mu.Lock()
		sessions := make([]*Session, 0, len(c.sessions))
		for s := range c.sessions {
			sessions = append(sessions, s)
		}
		c.mu.Unlock()
		for _, s := range sessions {
			s.end(&LostError{Reason: Revoked, Cause: ErrEtcdClosed})
		}
	})
	return func() {
		if !undo() {
			<-done
		}
	}
}

// etcdIsClosed reports whether the connection was closed.
func (c *Client) etcdIsClosed() bool { return c.etcd.Ctx().Err() != nil }

// closedError returns ErrEtcdClosed if the connection was closed.
func (c *Client) closedError() error {
	if c.etcdIsClosed() {
		return ErrEtcdClosed
	}
	return nil
}

// orEtcdClosed returns err, or that the connection was closed, which explains any other.
func (c *Client) orEtcdClosed(err error) error {
	if err != nil && c.etcdIsClosed() {
		return ErrEtcdClosed
	}
	return err
}

// explain finds out what kept a request from being answered: etcd's client waits
// for a connection and does not say why there is none.
func (c *Client) explain(err error) error {
	conn := c.etcd.ActiveConnection()
	if !txn.IsContextError(err) || conn.GetState() == connectivity.Ready {
		return err
	}
	failure := c.failures.Do(func() error {
		ctx, cancel := context.WithTimeout(c.base, explainTimeout)
		defer cancel()
		// This one does not wait: it fails with the error of the last connection.
		_, failure := pb.NewKVClient(conn).Range(ctx, &pb.RangeRequest{Key: []byte(c.keys.Records()), CountOnly: true})
		return failure
	})
	if status.Code(failure) == codes.Unavailable {
		return failure
	}
	return err
}

// explainTimeout is how long it takes at most to find out what is wrong with a connection.
const explainTimeout = 50 * time.Millisecond

// interrupted is the error of a wait that ctx has ended. It was for others, not for
// etcd, but if there is no connection that is worth to be told.
func (c *Client) interrupted(ctx context.Context) error {
	if c.etcd.ActiveConnection().GetState() == connectivity.Ready {
		return txn.Ended(ctx, nil)
	}
	return txn.Ended(ctx, c.explain(ctx.Err()))
}
