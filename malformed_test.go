package locker_test

import (
	"context"
	"fmt"
	"sync/atomic"
	"testing"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/grpc"

	"github.com/jagregory/locker/v2"
	"github.com/jagregory/locker/v2/embedtest"
)

// maiming takes something away from every third answer.
type maiming struct {
	answers atomic.Int64
	maimed  atomic.Int64
}

func (m *maiming) maim(answer any) {
	n := m.answers.Add(1)
	if n%3 != 0 {
		return
	}
	m.maimed.Add(1)
	switch answer := answer.(type) {
	case *pb.TxnResponse:
		switch nested := answer.Responses; {
		case n%2 == 0:
			answer.Header = nil
		case len(nested) > 1 && nested[0].GetResponseTxn() != nil:
			nested[0].GetResponseTxn().Responses = nil
		default:
			answer.Responses = append(answer.Responses, new(pb.ResponseOp))
		}
	case *pb.RangeResponse:
		answer.Header = nil
	case *pb.WatchResponse:
		if len(answer.Events) > 0 && n%2 == 0 {
			answer.Events[0].Kv = nil
		} else {
			answer.Header = nil
		}
	}
}

// options have an etcd client maim what it receives.
func (m *maiming) options() []grpc.DialOption {
	return []grpc.DialOption{
		grpc.WithChainUnaryInterceptor(func(ctx context.Context, method string, req, reply any, conn *grpc.ClientConn, invoke grpc.UnaryInvoker, opts ...grpc.CallOption) error {
			err := invoke(ctx, method, req, reply, conn, opts...)
			m.maim(reply)
			return err
		}),
		grpc.WithChainStreamInterceptor(func(ctx context.Context, desc *grpc.StreamDesc, conn *grpc.ClientConn, method string, open grpc.Streamer, opts ...grpc.CallOption) (grpc.ClientStream, error) {
			stream, err := open(ctx, desc, conn, method, opts...)
			return maimedStream{stream, m}, err
		}),
	}
}

type maimedStream struct {
	grpc.ClientStream
	*maiming
}

func (s maimedStream) RecvMsg(answer any) error {
	err := s.ClientStream.RecvMsg(answer)
	s.maim(answer)
	return err
}

func TestAMalformedAnswerCountsAsNone(t *testing.T) {
	t.Parallel()
	server := embedtest.Start(t)
	m := new(maiming)
	config := server.ClientConfig()
	config.DialOptions = append(config.DialOptions, m.options()...)
	etcd, err := clientv3.New(config)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = etcd.Close() })
	maimed, sound := newClient(t, etcd), newClient(t, server.Client(t))
	ctx := within(t)
	for i := range 20 {
		value := fmt.Sprint(i)
		before, err := sound.Lock(ctx, "a", value)
		if err != nil {
			t.Fatal(err)
		}
		const waiters = 3
		errs := make(chan error, waiters)
		for range waiters {
			go func() {
				errs <- maimed.Do(ctx, "a", value, func(ctx context.Context, l *locker.Lock) error {
					holder, err := maimed.Get(ctx, "a")
					if err == nil && holder.Token != l.Token() {
						err = fmt.Errorf("%d holds token %d, and %d was found", i, l.Token(), holder.Token)
					}
					return err
				})
			}()
		}
		if err := before.Unlock(ctx); err != nil {
			t.Fatal(err)
		}
		for range waiters {
			if err := <-errs; err != nil {
				t.Fatal(err)
			}
		}
	}
	if n := m.maimed.Load(); n < 20 {
		t.Errorf("only %d answers were malformed", n)
	}
}
