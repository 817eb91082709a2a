package locker_test

import (
	"context"
	"sync/atomic"
	"testing"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/grpc"

	"github.com/jagregory/locker/v2/embedtest"
)

// applied passes requests on. Of the first that is chosen it gives the answer that etcd
// gives when a transaction has filled its space: an error, though it was applied.
func applied(chosen func(req any) bool) embedtest.Intercept {
	var done atomic.Bool
	return func(_ context.Context, _ string, req any, call func() error) error {
		err := call()
		if err == nil && chosen(req) && done.CompareAndSwap(false, true) {
			return rpctypes.ErrGRPCNoSpace
		}
		return err
	}
}

func TestAPutThatFilledTheSpaceLeavesNothing(t *testing.T) {
	t.Parallel()
	b := setup(t)
	c := newClient(t, b.server.ClientWith(t, applied(func(req any) bool { return enqueues(req, "a") })))
	_, err := c.Lock(within(t), "a", "")
	want(t, err, rpctypes.ErrNoSpace)
	b.queued(t, "a", 0)
	unlock(t, lock(t, c, "a", ""))
}

func TestAReleaseTogetherWithWhatFilledTheSpaceIsOne(t *testing.T) {
	t.Parallel()
	b := setup(t)
	held := make(chan struct{})
	var holding atomic.Bool
	full := applied(func(req any) bool {
		txn, ok := req.(*pb.TxnRequest)
		return ok && len(txn.Success) > 1 && txn.Success[0].GetRequestTxn() != nil
	})
	c := newClient(t, b.server.ClientWith(t, func(ctx context.Context, method string, req any, call func() error) error {
		if enqueues(req, "first") && holding.CompareAndSwap(true, false) {
			<-held // so that what follows gathers
		}
		return full(ctx, method, req, call)
	}))
	a := lock(t, c, "a", "")
	holding.Store(true)
	first := lockAsync(within(t), c, "first", "")
	eventually(t, "it is under way", func() bool { return !holding.Load() })
	released := make(chan error, 1)
	go func() { released <- a.Unlock(within(t)) }()
	second := lockAsync(within(t), c, "second", "")
	eventually(t, "they wait", func() bool { return c.Gathering() == 2 })
	close(held)
	if err := receive(t, released); err != nil {
		t.Error(err)
	}
	b.queued(t, "a", 0)
	for _, result := range []<-chan outcome{first, second} {
		if o := receive(t, result); o.err == nil {
			unlock(t, o.lock)
		}
	}
	b.queued(t, "second", 0)
}

// renumbered is a Watch stream to a server that chooses the IDs of watches by itself.
type renumbered struct{ grpc.ClientStream }

func (s renumbered) SendMsg(m any) error {
	if request := m.(*pb.WatchRequest).GetCreateRequest(); request != nil {
		request.WatchId = 0
	}
	return s.ClientStream.SendMsg(m)
}

func TestWatchesGoByTheIDsThatTheServerChooses(t *testing.T) {
	t.Parallel()
	b, ctx := setup(t), within(t)
	config := b.server.ClientConfig()
	config.DialOptions = append(config.DialOptions, grpc.WithChainStreamInterceptor(
		func(ctx context.Context, desc *grpc.StreamDesc, conn *grpc.ClientConn, method string, open grpc.Streamer, opts ...grpc.CallOption) (grpc.ClientStream, error) {
			stream, err := open(ctx, desc, conn, method, opts...)
			if err == nil && method == "/etcdserverpb.Watch/Watch" {
				stream = renumbered{stream}
			}
			return stream, err
		}))
	c, other := newClient(t, connect(t, config)), b.client(t)
	for _, name := range []string{"a", "b", "c"} {
		holder := lock(t, other, name, "")
		waiter := lockAsync(ctx, c, name, "")
		b.queued(t, name, 2)
		unlock(t, holder)
		o := receive(t, waiter)
		if o.err != nil {
			t.Fatal(o.err)
		}
		unlock(t, o.lock)
	}
}

func TestACommitOrAValueThatFilledTheSpaceIsAppliedAndCostsNothing(t *testing.T) {
	t.Parallel()
	b := setup(t)
	puts := func(value string) func(req any) bool {
		return func(req any) bool {
			txn, ok := req.(*pb.TxnRequest)
			return ok && len(txn.Success) == 1 && string(txn.Success[0].GetRequestPut().GetValue()) == value
		}
	}
	t.Run("Commit", func(t *testing.T) {
		l := lock(t, newClient(t, b.server.ClientWith(t, applied(puts("full")))), "a", "")
		_, err := l.Commit(within(t), clientv3.OpPut("committed", "full"))
		want(t, err, rpctypes.ErrNoSpace)
		if resp, err := b.etcd.Get(within(t), "committed"); err != nil || resp.Count != 1 {
			t.Errorf("it was not applied: %v, %v", resp, err)
		}
		unlock(t, l)
	})
	t.Run("SetValue", func(t *testing.T) {
		l := lock(t, newClient(t, b.server.ClientWith(t, applied(puts("full")))), "b", "")
		want(t, l.SetValue(within(t), "full"), rpctypes.ErrNoSpace)
		if err := l.SetValue(within(t), "next"); err != nil {
			t.Error(err)
		}
		if holder := get(t, newClient(t, b.etcd), "b"); holder.Value != "next" || l.Value() != "next" {
			t.Errorf("the value is %q, for its holder %q", holder.Value, l.Value())
		}
		unlock(t, l)
	})
}
