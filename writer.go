package locker

import (
	"context"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/connectivity"
	"google.golang.org/grpc/status"

	"github.com/jagregory/locker/v2/internal/backoff"
)

// txn is a guarded write: then if all of when holds, and the record of the session,
// if there is one, has not been written since epoch; else otherwise.
type txn struct {
	name            string // whose queue it writes; "" for a record
	session         *Session
	epoch           int64
	when            []*pb.Compare
	then, otherwise []*pb.RequestOp
}

// request is t without its epoch.
func (t txn) request() *pb.TxnRequest {
	return &pb.TxnRequest{Compare: t.when, Success: t.then, Failure: t.otherwise}
}

// commit submits t until etcd has answered for certain or ctx has ended. Since t
// may then have been applied more than once, it must be idempotent. only tells
// that the answer is that of the only attempt.
func (c *Client) commit(ctx context.Context, t txn) (resp *pb.TxnResponse, only bool, err error) {
	return c.write(ctx, &write{txn: t})
}

// write is commit for a write that is told of each of its attempts.
func (c *Client) write(ctx context.Context, w *write) (resp *pb.TxnResponse, only bool, err error) {
	if ctx.Err() != nil {
		w.land(outcome{err: errUnsent})
		return nil, false, c.interrupted(ctx)
	}
	c.group.submit(w)
	select {
	case <-w.done:
		return w.result.resp, w.result.only, w.result.err
	case <-ctx.Done():
		last := c.group.forget(w)
		if last == errUnsent {
			last = ctx.Err()
		}
		return nil, false, ended(ctx, c.explain(last))
	}
}

// ask makes a request that changes nothing, or may be made any number of times, until
// etcd has answered it for certain or ctx has ended.
func ask[T any](ctx context.Context, c *Client, request func(context.Context) (T, error)) (T, error) {
	return askFor(ctx, ctx, c, 0, request)
}

// askFor is ask for what may take longer than a small answer does. Its attempts end with
// attempts; if that is longer than ctx, they are all given the time to be answered.
func askFor[T any](ctx, attempts context.Context, c *Client, allowed time.Duration, request func(context.Context) (T, error)) (answer T, err error) {
	last := error(context.DeadlineExceeded) // there was no answer
	late := time.Duration(0)
	if attempts != ctx {
		late = c.lateAnswerWait()
	}
	for pause := (backoff.Pause{}); ctx.Err() == nil; _ = pause.Wait(ctx) {
		answer, err = hedge(attempts, c, allowed, late, request)
		if err == nil || !transient(err) {
			return answer, err
		}
		if c.etcdIsClosed() {
			return answer, ErrEtcdClosed
		}
		if !isContextError(err) {
			last = err
		}
	}
	if last == context.DeadlineExceeded && err == nil {
		return answer, c.interrupted(ctx) // it was not even made
	}
	return answer, ended(ctx, c.explain(last))
}

// explain finds out what kept a request from being answered: etcd's client waits
// for a connection and does not say why there is none.
func (c *Client) explain(err error) error {
	conn := c.etcd.ActiveConnection()
	if !isContextError(err) || conn.GetState() == connectivity.Ready {
		return err
	}
	failure := c.failures.Do(func() error {
		ctx, cancel := context.WithTimeout(c.base, roundTrip)
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
