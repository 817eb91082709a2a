package embedtest

import (
	"context"
	"testing"

	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/grpc"
)

// Intercept stands between a client and the server for each unary request
// (transactions, grants, revocations; not watches and lease renewals, which are
// streams). Method is gRPC's, as "/etcdserverpb.KV/Txn"; req is the message, as
// *etcdserverpb.TxnRequest. Call sends the request and waits for the reply, and
// what Intercept returns is what the client gets:
//
//   - calling call and returning its error lets the request pass;
//   - calling call, and returning another error though it gave nil, loses the
//     reply to a request that took effect;
//   - returning without calling call loses the request;
//   - waiting before or after call holds the request or the reply.
//
// It sits inside the retries of etcd's client, so it sees each attempt. To be
// treated like errors of the network, errors should be from gRPC's status
// package: etcd's client retries reads after codes.Unavailable, but no writes.
// It runs in the goroutines that make the requests, several at a time.
type Intercept func(ctx context.Context, method string, req any, call func() error) error

// DialOption installs f in a client configuration. f must not be nil.
func (f Intercept) DialOption() grpc.DialOption {
	// Chained interceptors run inside the one that etcd's client sets.
	return grpc.WithChainUnaryInterceptor(func(ctx context.Context, method string, req, reply any,
		conn *grpc.ClientConn, invoke grpc.UnaryInvoker, opts ...grpc.CallOption,
	) error {
		return f(ctx, method, req, func() error {
			return invoke(ctx, method, req, reply, conn, opts...)
		})
	})
}

// ClientWith is [Server.Client] with f on each of its unary requests.
func (s *Server) ClientWith(tb testing.TB, f Intercept) *clientv3.Client {
	tb.Helper()
	config := s.ClientConfig()
	config.DialOptions = append(config.DialOptions, f.DialOption())
	return newClient(tb, config)
}
