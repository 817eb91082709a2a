package embedtest

import (
	"context"
	"testing"

	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/grpc"
)

// An Intercept is called for each unary request of a client: transactions, grants and
// revocations, but not watches and lease renewals, which are streams. Method is gRPC's
// name of the method, such as "/etcdserverpb.KV/Txn", and req is the message, such as
// *etcdserverpb.TxnRequest. Call sends the request and waits for the reply. The client
// receives the error that Intercept returns:
//
//   - calling call and returning its error lets the request pass;
//   - calling call and returning another error although it returned nil loses the reply
//     to a request that took effect;
//   - returning without calling call loses the request;
//   - waiting before or after call delays the request or the reply.
//
// An Intercept sits below the retries of etcd's client, so it sees each attempt. Return
// errors of gRPC's status package to have them treated like network errors: etcd's client
// retries reads, but not writes, after codes.Unavailable. An Intercept runs in the
// goroutines that make the requests, possibly several at a time.
type Intercept func(ctx context.Context, method string, req any, call func() error) error

// DialOption returns the option that installs f in a client configuration. f must not be
// nil.
func (f Intercept) DialOption() grpc.DialOption {
	// Chained interceptors run inside the one that etcd's client installs.
	return grpc.WithChainUnaryInterceptor(func(ctx context.Context, method string, req, reply any,
		cc *grpc.ClientConn, invoke grpc.UnaryInvoker, opts ...grpc.CallOption,
	) error {
		return f(ctx, method, req, func() error {
			return invoke(ctx, method, req, reply, cc, opts...)
		})
	})
}

// ClientWith is like [Server.Client], but calls f for each unary request of the client.
func (s *Server) ClientWith(tb testing.TB, f Intercept) *clientv3.Client {
	tb.Helper()
	config := s.ClientConfig()
	config.DialOptions = append(config.DialOptions, f.DialOption())
	return newClient(tb, config)
}
