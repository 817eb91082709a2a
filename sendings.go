package locker

import (
	"context"
	"slices"
	"sync/atomic"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"google.golang.org/grpc"
)

// sendings is the context of one request that finds out whether etcd's client has sent
// it more than once. It does so by itself, with writes too, when an answer has the code
// Canceled or DeadlineExceeded while the context lives, and does not say so
// (client/v3/retry_interceptor.go). gRPC tells of each request that it finishes. One that
// an interceptor has ended before it came to gRPC is known by the question for the error
// of the context, which etcd's client asks before it repeats a request.
type sendings struct {
	context.Context
	finished atomic.Int32
	asked    atomic.Bool
}

func (s *sendings) Err() error {
	if s.finished.Load() == 0 {
		s.asked.Store(true)
	}
	return s.Context.Err()
}

// count is the option of the call that counts what may have been applied.
func (s *sendings) count() grpc.CallOption {
	return grpc.OnFinish(func(err error) {
		if err == nil || unsure(err) {
			s.finished.Add(1)
		}
	})
}

// repeated reports whether the request was sent, or may have been, more than once.
func (s *sendings) repeated() bool { return s.asked.Load() || s.finished.Load() > 1 }

// counted counts the transactions of one call, so that etcd's own builder of
// transactions can be used for the operations of a caller.
type counted struct {
	pb.KVClient
	once *sendings
}

func (k counted) Txn(ctx context.Context, request *pb.TxnRequest, opts ...grpc.CallOption) (*pb.TxnResponse, error) {
	return k.KVClient.Txn(ctx, request, append(slices.Clip(opts), k.once.count())...)
}
