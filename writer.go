package locker

import (
	"context"
	"errors"
	"math/rand/v2"
	"sync/atomic"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/connectivity"
	"google.golang.org/grpc/status"
)

// txn is a guarded write: then if all of when holds, and the record of the session,
// if there is one, has not been written since epoch; else otherwise.
type txn struct {
	name            string // whose queue it writes; "" for a record
	session         *Session
	epoch           int64
	when            []*pb.Compare
	then, otherwise []*pb.RequestOp
	repeated        *atomic.Bool // set when it is sent again though it may have been applied; may be nil
}

// request is t without its epoch.
func (t txn) request() *pb.TxnRequest {
	return &pb.TxnRequest{Compare: t.when, Success: t.then, Failure: t.otherwise}
}

// commit submits t until etcd has answered for certain or ctx has ended. Since t
// may then have been applied more than once, it must be idempotent. first tells
// that the answer is that of the only attempt.
func (c *Client) commit(ctx context.Context, t txn) (resp *pb.TxnResponse, first bool, err error) {
	t.repeated = new(atomic.Bool)
	resp, n, err := insist(ctx, c, c.writes(t, func() {}, func(*pb.TxnResponse, error) {}))
	return resp, n == 1 && !t.repeated.Load(), err
}

// ask makes a request that changes nothing, as insist does, and drops it when ctx ends.
func ask[T any](ctx context.Context, c *Client, request func(context.Context) (T, error)) (T, error) {
	life, cancel := context.WithCancel(ctx)
	defer cancel()
	answer, _, err := insist(ctx, c, requests(c, life, func() {}, request))
	return answer, err
}

// attempts are those at one request.
type attempts[T any] struct {
	// begin starts another, or reports false if the last one is yet to leave. deliver
	// is called once, with the answer, whatever has become of the caller.
	begin func(deliver func(T, error)) bool
	// forget takes back the last one if it is yet to leave.
	forget func()
}

// requests makes each attempt in a goroutine of its own. It runs to its end, or that
// of life. begun is called for each, in the goroutine of the caller.
func requests[T any](c *Client, life context.Context, begun func(), request func(context.Context) (T, error)) attempts[T] {
	return attempts[T]{
		begin: func(deliver func(T, error)) bool {
			begun()
			c.tasks.run(func() {
				ctx, cancel := context.WithTimeout(life, c.attempt())
				defer cancel()
				deliver(request(ctx))
			})
			return true
		},
		forget: func() {},
	}
}

// writes makes each attempt at t through the group. begun and ended are called for
// each, ended also for one that was forgotten.
func (c *Client) writes(t txn, begun func(), ended func(*pb.TxnResponse, error)) attempts[*pb.TxnResponse] {
	var last *write
	return attempts[*pb.TxnResponse]{
		begin: func(deliver func(*pb.TxnResponse, error)) bool {
			if last != nil && c.group.waits(last) {
				return false
			}
			begun()
			last = c.group.submit(t, func(resp *pb.TxnResponse, err error) {
				ended(resp, err)
				deliver(resp, err)
			})
			return true
		},
		forget: func() {
			if last != nil && c.group.forget(last) {
				ended(nil, errUnsent)
			}
		},
	}
}

// attempt is how long an attempt may take: so that as few outcomes as possible
// remain unknown, it goes on for a while after others have begun.
func (c *Client) attempt() time.Duration { return 4 * c.hedgeDelay }

// insist makes a request until etcd has answered it for certain or ctx has ended.
// While an attempt has no answer another starts at short intervals, which the
// balancer sends to another member, and the first answer counts: so neither a
// member that is frozen or cut off nor a slow network stops it.
func insist[T any](ctx context.Context, c *Client, a attempts[T]) (answer T, n int, err error) {
	if ctx.Err() != nil {
		return answer, 0, c.interrupted(ctx)
	}
	type outcome struct {
		answer T
		err    error
	}
	outcomes, over := make(chan outcome, 4), make(chan struct{})
	defer close(over)
	defer a.forget()
	unanswered := 0
	start := func() {
		if a.begin(func(answer T, err error) {
			select {
			case outcomes <- outcome{answer, err}:
			case <-over:
			}
		}) {
			n++
			unanswered++
		}
	}
	start()
	again := time.NewTimer(c.hedgeDelay)
	defer again.Stop()
	pause := backoff{}
	last := error(context.DeadlineExceeded) // there was no answer
	for {
		select {
		case o := <-outcomes:
			if o.err == nil || !transient(o.err) {
				return o.answer, n, o.err
			}
			if !isContextError(o.err) {
				last = o.err
			}
			if c.etcd.Ctx().Err() != nil {
				return answer, n, errors.Join(errEtcdClosed, o.err)
			}
			if unanswered--; unanswered == 0 {
				again.Reset(pause.next())
			}
		case <-again.C:
			start()
			again.Reset(c.hedgeDelay)
		case <-ctx.Done():
			return answer, n, ended(ctx, c.explain(last))
		}
	}
}

// The one scale of waiting for an answer, for requests, renewals and watches alike: an
// eighth of the TTL within these bounds. Three of the longest make a hand-over past a
// frozen member, which so takes less than 3 s however long the TTL is.
const (
	shortestHedgeDelay = 200 * time.Millisecond
	longestHedgeDelay  = 800 * time.Millisecond
)

// explain finds out what kept a request from being answered: etcd's client waits
// for a connection and does not say why there is none.
func (c *Client) explain(err error) error {
	conn := c.etcd.ActiveConnection()
	if !isContextError(err) || conn.GetState() == connectivity.Ready {
		return err
	}
	failure := c.failures.share(func() error {
		ctx, cancel := context.WithTimeout(c.base, grace)
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

// interrupted is the error of a wait that ctx has ended. It was for others, not for
// etcd, but if there is no connection that is worth to be told.
func (c *Client) interrupted(ctx context.Context) error {
	if c.etcd.ActiveConnection().GetState() == connectivity.Ready {
		return &endError{ctx: ctx}
	}
	return ended(ctx, c.explain(ctx.Err()))
}

var errEtcdClosed = errors.New("the etcd client was closed")

// backoff is a growing pause between attempts, spread at random so that clients
// that failed together do not come back together.
type backoff struct{ pause time.Duration }

const (
	shortestPause = 10 * time.Millisecond
	longestPause  = 500 * time.Millisecond
)

// next returns how long to pause now.
func (b *backoff) next() time.Duration {
	b.pause = min(max(2*b.pause, shortestPause), longestPause)
	return b.pause/2 + rand.N(b.pause)
}

// wait returns nil after the pause, or the context's error at its end.
func (b *backoff) wait(ctx context.Context) error { return sleep(ctx, b.next()) }

func sleep(ctx context.Context, d time.Duration) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}
