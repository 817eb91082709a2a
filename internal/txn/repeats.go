package txn

import (
	"context"
	"slices"
	"sync/atomic"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"google.golang.org/grpc"
)

// Repeats is the context of one request; it finds out whether etcd's client has sent that
// request more than once. The client does so by itself, and without saying so, when an
// answer has the code Canceled or DeadlineExceeded while the context is alive, also for
// writes (client/v3/retry_interceptor.go).
//
// There are two signs. gRPC reports each request that it has finished, see count. A request
// that an interceptor has ended before it reached gRPC is noticed by the call of Err, which
// etcd's client makes before it repeats a request.
type Repeats struct {
	context.Context
	maybe atomic.Bool // a request that may have been applied has finished
	again atomic.Bool // another was made after that
}

// Err returns the error of the context. If it is called before gRPC has finished a request,
// an interceptor has ended one, and etcd's client is about to repeat it.
func (r *Repeats) Err() error {
	if !r.maybe.Load() {
		r.again.Store(true)
	}
	return r.Context.Err()
}

// count returns the call option that counts each sending of the request. After one that was
// refused for certain, another does no harm.
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

// Any reports whether the request was sent again although it may have been applied.
func (r *Repeats) Any() bool { return r.again.Load() }

// KV returns a KV that counts the transaction of one call. With it, etcd's own builder of
// transactions can be used for the operations of a caller.
func (r *Repeats) KV(etcd pb.KVClient) pb.KVClient { return counted{etcd, r} }

type counted struct {
	pb.KVClient
	repeats *Repeats
}

func (k counted) Txn(ctx context.Context, request *pb.TxnRequest, opts ...grpc.CallOption) (*pb.TxnResponse, error) {
	return k.KVClient.Txn(ctx, request, append(slices.Clip(opts), k.repeats.count())...)
}
