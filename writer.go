package locker

import (
	"context"
	"errors"
	"math/rand/v2"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/connectivity"
	"google.golang.org/grpc/status"
)

// txn is a guarded write: then if all of when holds, otherwise.
type txn struct {
	when            []clientv3.Cmp
	then, otherwise []clientv3.Op
}

// submit sends t to etcd, once. It is the one place from which queues and records
// are written.
func (c *Client) submit(ctx context.Context, t txn) (*clientv3.TxnResponse, error) {
	return detached(ctx, c, func(ctx context.Context) (*clientv3.TxnResponse, error) {
		return c.etcd.Txn(ctx).If(t.when...).Then(t.then...).Else(t.otherwise...).Commit()
	})
}

// detached waits for a request, or until ctx ends. The request itself runs to its
// end, at most for the TTL, whatever becomes of its caller: so that etcd finishes
// with it before it is told to undo it, and as few outcomes as possible are unknown.
func detached[T any](ctx context.Context, c *Client, request func(context.Context) (T, error)) (answer T, err error) {
	type outcome struct {
		answer T
		err    error
	}
	done := make(chan outcome, 1)
	c.tasks.run(func() {
		ctx, cancel := context.WithTimeout(c.base, c.ttl)
		defer cancel()
		answer, err := request(ctx)
		done <- outcome{answer, err}
	})
	select {
	case o := <-done:
		return o.answer, o.err
	case <-ctx.Done():
		return answer, ctx.Err()
	}
}

// commit submits t until etcd has answered for certain or ctx has ended. Since t
// may then have been applied more than once, it must be idempotent. first tells
// that the answer is that of the first attempt.
func (c *Client) commit(ctx context.Context, t txn) (resp *clientv3.TxnResponse, first bool, err error) {
	attempts := 0
	err = c.insist(ctx, func(ctx context.Context) (err error) {
		attempts++
		resp, err = c.submit(ctx, t)
		return err
	})
	return resp, attempts == 1, err
}

// insist calls try until it succeeds, is refused, or ctx ends. Each attempt has a
// time-out of its own, so that a member that is frozen costs one attempt and not
// the call: the next goes to another member. It grows, in case it is the network
// that is slow.
func (c *Client) insist(ctx context.Context, try func(context.Context) error) error {
	var last error
	patience := c.patience
	for pause := (backoff{}); ; {
		if c.etcd.Ctx().Err() != nil {
			return errors.Join(errEtcdClosed, last)
		}
		attempt, cancel := context.WithTimeout(ctx, patience)
		err := try(attempt)
		if attempt.Err() != nil {
			patience *= 2
		}
		cancel()
		switch {
		case err == nil:
			return nil
		case ctx.Err() != nil:
			// The end of ctx itself is no news; what etcd said before may be.
			if last == nil || !isContextError(err) {
				last = err
			}
			return ended(ctx, c.explain(last))
		case !transient(err):
			return err
		}
		last = err
		if pause.wait(ctx) != nil {
			return ended(ctx, c.explain(last))
		}
	}
}

// explain finds out what kept a request from being answered: etcd's client waits
// for a connection and does not say why there is none.
func (c *Client) explain(err error) error {
	conn := c.etcd.ActiveConnection()
	if !isContextError(err) || conn.GetState() == connectivity.Ready {
		return err
	}
	ctx, cancel := context.WithTimeout(c.base, grace)
	defer cancel()
	// This one does not wait: it fails with the error of the last connection.
	_, failure := pb.NewKVClient(conn).Range(ctx, &pb.RangeRequest{Key: []byte(c.keys.Records()), CountOnly: true})
	if status.Code(failure) == codes.Unavailable {
		return failure
	}
	return err
}

// interrupted is the error of a wait that ctx has ended. It was for others, not for
// etcd, but if there is no connection that is worth to be told.
func (c *Client) interrupted(ctx context.Context) error {
	if c.etcd.ActiveConnection().GetState() == connectivity.Ready {
		return context.Cause(ctx)
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

// wait returns nil after the pause, or the context's error at its end.
func (b *backoff) wait(ctx context.Context) error {
	b.pause = min(max(2*b.pause, shortestPause), longestPause)
	return sleep(ctx, b.pause/2+rand.N(b.pause))
}

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
