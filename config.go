package locker

import (
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"
	"google.golang.org/grpc"
	grpcbackoff "google.golang.org/grpc/backoff"
)

const (
	// keepAliveTime is the least that gRPC accepts. A shorter one would gain nothing, and
	// might break connections if gRPC came to accept it: etcd closes those on which pings
	// come more often than every 5 s (its --grpc-keepalive-min-time).
	keepAliveTime = 10 * time.Second

	// keepAliveTimeout is also how long the kernel waits for the peer to take data. With
	// 1 s, links with a round trip of a second would not keep a connection.
	keepAliveTimeout = 2 * time.Second
)

// ClientConfig returns the configuration of an etcd client that suits Locker, for
// [clientv3.New]. Set what it leaves open (TLS, Username and Password, ...), and change what
// you like. It differs from a plain clientv3.Config in three things:
//
//   - A connection that is dead although nobody has reset it, because packets are dropped in
//     silence or the machine behind an address has vanished, is given up after 12 s. Without
//     these keep-alive pings it is used for as long as the kernel repeats what it sends, a
//     quarter of an hour on Linux; and where one address stands before all of etcd, there is
//     no other connection meanwhile. Without a request or a watch nothing is sent
//     (PermitWithoutStream stays off: etcd takes such pings for an attack, and closes the
//     connection).
//   - The pause between attempts to connect grows to one second. gRPC's own grows to two
//     minutes, which is how long a program would stay without its locks after the network
//     is back.
//   - etcd's client logs nothing. Locker returns its errors, or logs them with [WithLogger].
//
// There is no DialTimeout: [clientv3.New] returns at once, and calls wait for a connection
// until their context ends. Only with a Username New itself asks etcd for a token; set
// DialTimeout then to bound that.
//
// On a link where 64 KiB take longer than two seconds, or where the round trip does, set
// DialKeepAliveTimeout to more. What else of a [clientv3.Config] is kept, and what is not,
// is documented at [New].
func ClientConfig(endpoints ...string) clientv3.Config {
	return clientv3.Config{
		Endpoints:            endpoints,
		DialKeepAliveTime:    keepAliveTime,
		DialKeepAliveTimeout: keepAliveTimeout,
		Logger:               zap.NewNop(),
		DialOptions: []grpc.DialOption{grpc.WithConnectParams(grpc.ConnectParams{
			Backoff:           grpcbackoff.Config{BaseDelay: 100 * time.Millisecond, Multiplier: 1.6, Jitter: 0.2, MaxDelay: time.Second},
			MinConnectTimeout: 5 * time.Second,
		})},
	}
}
