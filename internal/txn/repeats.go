package txn

import (
	"context"
	"slices"
	"sync/atomic"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"google.golang.org/grpc"
)

// Repeats is the context of one request that finds out whether etcd's client has sent
// it more than once. It does so by itself, with writes too, when an answer has the code
// Canceled or DeadlineExceeded while the context lives, and does not say so
// (client/v3/retry_interceptor.go). gRPC tells of each request that it finishes. One that
// an interceptor has ended before it came to gRPC is known by the question for the error
// of the context, which etcd's client asks before it repeats a request.
type Repeats struct {
	context.Context
	maybe atomic.Bool // one was finished that may have been applied
	again atomic.Bool // another was made after it
}

func (r *Repeats) Err() error {
	if !r.maybe.Load() {
		r.again.Store(true)
	}
	return r.Context.Err()
}

// count is the option of the call that takes in each sending. One that was refused for
// certain may be followed by another without harm.
func (r *Repeats) count() grpc.CallOption {
	return grpc.OnFinish(func(err error) {
		if r.maybe.Load() {
			r.again.Store(true)
		}
		if err == nil || Unsure(err) {
			r.maybe.Store(true)
		}
	})
}

// Any reports whether the request was sent again though it may have been applied.
func (r *Repeats) Any() bool { return r.again.Load() }

// KV returns a KV that counts the transaction of one call, so that etcd's own builder of
// transactions can be used for the operations of a caller.
func (r *Repeats) KV(etcd pb.KVClient) pb.KVClient { return counted{etcd, r} }

type counted struct {
	pb.KVClient
	repeats *Repeats
}

func (k counted) Txn(ctx context.Context, request *pb.TxnRequest, opts ...grpc.CallOption) (*pb.TxnResponse, error) {
	return k.KVClient.Txn(ctx, request, append(slices.Clip(opts), k.repeats.count())...)
}
