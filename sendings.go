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
	maybe atomic.Bool // one was finished that may have been applied
	again atomic.Bool // another was made after it
}

func (s *sendings) Err() error {
	if !s.maybe.Load() {
		s.again.Store(true)
	}
	return s.Context.Err()
}

// count is the option of the call that takes in each sending. One that was refused for
// certain may be followed by another without harm.
func (s *sendings) count() grpc.CallOption {
	return grpc.OnFinish(func(err error) {
		if s.maybe.Load() {
			s.again.Store(true)
		}
		if err == nil || unsure(err) {
			s.maybe.Store(true)
		}
	})
}

// repeated reports whether the request was sent again though it may have been applied.
func (s *sendings) repeated() bool { return s.again.Load() }

// counted counts the transactions of one call, so that etcd's own builder of
// transactions can be used for the operations of a caller.
type counted struct {
	pb.KVClient
	once *sendings
}

func (k counted) Txn(ctx context.Context, request *pb.TxnRequest, opts ...grpc.CallOption) (*pb.TxnResponse, error) {
	return k.KVClient.Txn(ctx, request, append(slices.Clip(opts), k.once.count())...)
}
