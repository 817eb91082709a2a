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
	return c.etcd.Txn(ctx).If(t.when...).Then(t.then...).Else(t.otherwise...).Commit()
}

// commit submits t until etcd has answered for certain or ctx has ended. Since t
// may then have been applied more than once, it must be idempotent. first tells
// that the answer is that of the only attempt.
func (c *Client) commit(ctx context.Context, t txn) (resp *clientv3.TxnResponse, first bool, err error) {
	resp, attempts, err := insist(ctx, c, c.base, func() {}, func(ctx context.Context) (*clientv3.TxnResponse, error) {
		return c.submit(ctx, t)
	})
	return resp, attempts == 1, err
}

// ask makes a request that changes nothing, as insist does, and drops it when ctx ends.
func ask[T any](ctx context.Context, c *Client, attempt func(context.Context) (T, error)) (T, error) {
	life, cancel := context.WithCancel(ctx)
	defer cancel()
	answer, _, err := insist(ctx, c, life, func() {}, attempt)
	return answer, err
}

// insist makes a request until etcd has answered it for certain or ctx has ended.
// While an attempt has no answer another starts at short intervals, which the
// balancer sends to another member, and the first answer counts: so neither a
// member that is frozen or cut off nor a slow network stops it. An attempt runs to
// its end, or that of life, for some more of those intervals at most, whatever
// becomes of the caller: so that as few outcomes as possible remain unknown. begin
// is called before each attempt, in the goroutine of the caller.
func insist[T any](ctx context.Context, c *Client, life context.Context, begin func(), attempt func(context.Context) (T, error)) (answer T, attempts int, err error) {
	if ctx.Err() != nil {
		return answer, 0, c.interrupted(ctx)
	}
	type outcome struct {
		answer T
		err    error
	}
	outcomes, over := make(chan outcome), make(chan struct{})
	defer close(over)
	start := func() {
		attempts++
		begin()
		c.tasks.run(func() {
			ctx, cancel := context.WithTimeout(life, 4*c.patience)
			defer cancel()
			answer, err := attempt(ctx)
			select {
			case outcomes <- outcome{answer, err}:
			case <-over:
			}
		})
	}
	start()
	again := time.NewTimer(c.patience)
	defer again.Stop()
	unanswered, pause := 1, backoff{}
	last := error(context.DeadlineExceeded) // there was no answer
	for {
		select {
		case o := <-outcomes:
			if o.err == nil || !transient(o.err) {
				return o.answer, attempts, o.err
			}
			if !isContextError(o.err) {
				last = o.err
			}
			if c.etcd.Ctx().Err() != nil {
				return answer, attempts, errors.Join(errEtcdClosed, o.err)
			}
			if unanswered--; unanswered == 0 {
				again.Reset(pause.next())
			}
		case <-again.C:
			start()
			unanswered++
			again.Reset(c.patience)
		case <-ctx.Done():
			return answer, attempts, ended(ctx, c.explain(last))
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
