// Package fakeetcd is an etcd in memory, for tests in simulated time: one member, as
// much of keys, leases and watches as Locker uses, and a fate for each request. It
// talks gRPC over a pipe in memory, so that a bubble of testing/synctest can hold
// the server and its clients.
package fakeetcd

import (
	"context"
	"math"
	"net"
	"slices"
	"sync"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"
	"google.golang.org/grpc"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/test/bufconn"
)

// Kind is what a request is for.
type Kind string

// The requests that have a fate.
const (
	Grant      Kind = "grant"
	KeepAlive  Kind = "keep-alive"
	Revoke     Kind = "revoke"
	TimeToLive Kind = "time-to-live"
	Range      Kind = "range"
	Txn        Kind = "transaction"
	Watch      Kind = "watch"
)

// Call is a request that has arrived.
type Call struct {
	Kind    Kind
	N       int // how many of its kind came before
	At      time.Time
	Request any // in etcd's message
}

// Fate is what becomes of a request and its answer. The zero Fate is to be answered at
// once.
type Fate struct {
	Before     time.Duration // until it takes effect, whatever becomes of the caller
	After      time.Duration // from then until the answer leaves
	Lost       bool          // it has no effect and no answer
	Unanswered bool          // it has its effect, but no answer
	Err        error         // it has no effect, and is answered with this
	TTL        int64         // of the lease from this grant or keep-alive on; 0 leaves it as it is
	Behind     int64         // how many revisions the answer to a keep-alive or a time-to-live is behind, as of a member that lags
}

// Server is the etcd. It must be closed.
type Server struct {
	pb.UnimplementedKVServer
	pb.UnimplementedLeaseServer
	pb.UnimplementedWatchServer

	pipe    *bufconn.Listener
	grpc    *grpc.Server
	serving sync.WaitGroup

	mu       sync.Mutex // guards what follows
	cluster  uint64
	conns    []net.Conn // of the clients
	revision int64
	keys     map[string]*mvccpb.KeyValue // none is changed in place
	leases   map[int64]*lease
	streams  map[*stream]bool
	clock    float64
	expired  func(clientv3.LeaseID)
	fate     func(Call) Fate
	calls    map[Kind][]Call
	open     map[Kind]int
}

// What gRPC does from time to time by itself would fill years of simulated time.
var (
	noPings    = grpc.KeepaliveParams(keepalive.ServerParameters{Time: math.MaxInt64})
	noIdleness = grpc.WithIdleTimeout(0)
)

// New starts a Server.
func New() *Server {
	s := &Server{
		pipe:     bufconn.Listen(1 << 16),
		grpc:     grpc.NewServer(grpc.WaitForHandlers(true), noPings),
		cluster:  1,
		revision: 1,
		keys:     make(map[string]*mvccpb.KeyValue),
		leases:   make(map[int64]*lease),
		streams:  make(map[*stream]bool),
		clock:    1,
		calls:    make(map[Kind][]Call),
		open:     make(map[Kind]int),
		expired:  func(clientv3.LeaseID) {},
		fate:     func(Call) Fate { return Fate{} },
	}
	pb.RegisterKVServer(s.grpc, s)
	pb.RegisterLeaseServer(s.grpc, s)
	pb.RegisterWatchServer(s.grpc, s)
	s.serving.Go(func() { _ = s.grpc.Serve(s.pipe) }) // it returns when it is stopped
	return s
}

// Close ends the Server. Connections to it should have been closed before.
func (s *Server) Close() {
	s.grpc.Stop()
	s.serving.Wait()
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, l := range s.leases {
		l.expiry.Stop()
	}
}

// Connect returns a connection, which the caller closes.
func (s *Server) Connect() (*clientv3.Client, error) {
	return clientv3.New(clientv3.Config{
		Endpoints: []string{"passthrough:///fake"},
		Logger:    zap.NewNop(),
		DialOptions: []grpc.DialOption{noIdleness, grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) {
			conn, err := s.pipe.DialContext(ctx)
			if err == nil {
				s.mu.Lock()
				s.conns = append(s.conns, conn)
				s.mu.Unlock()
			}
			return conn, err
		})},
	})
}

// Decide sets what becomes of the requests that come from now on. fate is called for
// one request after the other; it must not call the Server.
func (s *Server) Decide(fate func(Call) Fate) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.fate = fate
}

// Calls returns the requests of a kind that have arrived so far.
func (s *Server) Calls(kind Kind) []Call {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.calls[kind])
}

// Open returns how many requests of a kind have arrived and are neither answered nor given up.
func (s *Server) Open(kind Kind) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.open[kind]
}

// arrive notes a request and decides its fate.
func (s *Server) arrive(kind Kind, request any) Fate {
	s.mu.Lock()
	defer s.mu.Unlock()
	call := Call{Kind: kind, N: len(s.calls[kind]), At: time.Now(), Request: request}
	s.calls[kind] = append(s.calls[kind], call)
	s.open[kind]++
	return s.fate(call)
}

// serve has a request meet its fate. run is called with the mutex.
func serve[T any](ctx context.Context, s *Server, kind Kind, request any, run func(Fate) (T, error)) (answer T, err error) {
	fate := s.arrive(kind, request)
	defer func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.open[kind]--
	}()
	time.Sleep(fate.Before)
	switch {
	case fate.Err != nil:
		err = fate.Err
	case !fate.Lost:
		s.mu.Lock()
		answer, err = run(fate)
		s.mu.Unlock()
	}
	if fate.Lost || fate.Unanswered {
		<-ctx.Done()
		return answer, ctx.Err()
	}
	if fate.After <= 0 {
		// Not a timer of no time: in a bubble, with the race detector, Go's runtime crashes when
		// two goroutines find that theirs have expired as they look (bubble.timers.raceCtx).
		return answer, err
	}
	late := time.NewTimer(fate.After)
	defer late.Stop()
	select {
	case <-late.C:
		return answer, err
	case <-ctx.Done():
		return answer, ctx.Err()
	}
}

// header is that of an answer. The caller has the mutex.
func (s *Server) header() *pb.ResponseHeader {
	return &pb.ResponseHeader{ClusterId: s.cluster, MemberId: 1, RaftTerm: 1, Revision: s.revision}
}
