package resolver_test

import (
	"context"
	"net"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/health"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/peer"
	gresolver "google.golang.org/grpc/resolver"
	"google.golang.org/grpc/stats"
	"google.golang.org/grpc/status"

	"github.com/jagregory/locker/v2"
	"github.com/jagregory/locker/v2/internal/locktest"
	"github.com/jagregory/locker/v2/resolver"
)

func TestMain(m *testing.M) { locktest.Main(m) }

const roundRobin = `{"loadBalancingConfig":[{"round_robin":{}}]}`

// server is a gRPC server that serves the health service.
type server struct {
	*grpc.Server
	health      *health.Server
	address     string
	connections atomic.Int64
	requests    atomic.Int64 // begun
}

// serve starts a server, stopped with the test.
func serve(t testing.TB) *server {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := &server{health: health.NewServer(), address: listener.Addr().String()}
	s.Server = grpc.NewServer(grpc.StatsHandler(s))
	healthpb.RegisterHealthServer(s, s.health)
	ended := locktest.Async(func() error { return s.Serve(listener) })
	t.Cleanup(func() {
		s.Stop()
		if err := locktest.Receive(t, ended); err != nil {
			t.Error(err)
		}
	})
	return s
}

// A server counts its connections and requests.
func (s *server) TagConn(ctx context.Context, _ *stats.ConnTagInfo) context.Context { return ctx }
func (s *server) TagRPC(ctx context.Context, _ *stats.RPCTagInfo) context.Context   { return ctx }

func (s *server) HandleConn(_ context.Context, event stats.ConnStats) {
	switch event.(type) {
	case *stats.ConnBegin:
		s.connections.Add(1)
	case *stats.ConnEnd:
		s.connections.Add(-1)
	}
}

func (s *server) HandleRPC(_ context.Context, event stats.RPCStats) {
	if _, ok := event.(*stats.Begin); ok {
		s.requests.Add(1)
	}
}

// leave hands the name over and stops once all clients have gone.
func (s *server) leave(t testing.TB, lock *locker.Lock) {
	t.Helper()
	locktest.Unlock(t, lock)
	locktest.Eventually(t, "the clients have gone", func() bool { return s.connections.Load() == 0 })
	s.GracefulStop()
}

// dial connects to whoever holds a name, until the test ends.
func dial(t testing.TB, builder gresolver.Builder, target string, opts ...grpc.DialOption) *grpc.ClientConn {
	t.Helper()
	conn, err := grpc.NewClient(target, append(opts, grpc.WithResolvers(builder), grpc.WithTransportCredentials(insecure.NewCredentials()))...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	return conn
}

// ask makes a request, and returns the address of the server that has answered.
func ask(ctx context.Context, conn *grpc.ClientConn, opts ...grpc.CallOption) (string, error) {
	var from peer.Peer
	if _, err := healthpb.NewHealthClient(conn).Check(ctx, &healthpb.HealthCheckRequest{}, append(opts, grpc.Peer(&from))...); err != nil {
		return "", err
	}
	return from.Addr.String(), nil
}

// reaches waits until a server answers, and then fails the test if another answers.
func reaches(t testing.TB, conn *grpc.ClientConn, s *server) {
	t.Helper()
	ctx := locktest.Within(t)
	locktest.Eventually(t, "the server is reached", func() bool { from, _ := ask(ctx, conn); return from == s.address })
	stays(t, conn, s)
}

// stays fails the test unless requests reach s.
func stays(t testing.TB, conn *grpc.ClientConn, s *server) {
	t.Helper()
	for range 20 {
		if from, err := ask(locktest.Within(t), conn); err != nil || from != s.address {
			t.Fatalf("answered by %q, %v; want %s", from, err, s.address)
		}
	}
}

// fails waits until requests are refused with a text.
func fails(t testing.TB, conn *grpc.ClientConn, text string) {
	t.Helper()
	ctx := locktest.Within(t)
	var err error
	defer func() {
		if t.Failed() {
			t.Logf("the last error was %v", err)
		}
	}()
	locktest.Eventually(t, "requests fail with "+text, func() bool {
		_, err = ask(ctx, conn)
		return status.Code(err) == codes.Unavailable && contains(err, text)
	})
}

// report is what gRPC was given: addresses or an error.
type report struct {
	at        time.Time
	addresses []string
	err       error
}

// recorder is a Builder that keeps what its resolvers have given gRPC, once that has taken it in.
type recorder struct {
	gresolver.Builder
	closed atomic.Int64 // resolvers

	mu      sync.Mutex // guards what follows
	reports []report
}

func record(c *locker.Client) *recorder { return &recorder{Builder: resolver.NewBuilder(c)} }

func (r *recorder) Build(target gresolver.Target, cc gresolver.ClientConn, opts gresolver.BuildOptions) (gresolver.Resolver, error) {
	built, err := r.Builder.Build(target, recordingConn{cc, r}, opts)
	return recordingResolver{built, r}, err
}

// next waits for a report that fits, behind the first n, and returns it and how many there are up to it.
func (r *recorder) next(t testing.TB, n int, what string, fits func(report) bool) (found report, upTo int) {
	t.Helper()
	locktest.Eventually(t, what, func() bool {
		r.mu.Lock()
		defer r.mu.Unlock()
		i := slices.IndexFunc(r.reports[n:], fits)
		if i >= 0 {
			found, upTo = r.reports[n+i], n+i+1
		}
		return i >= 0
	})
	return found, upTo
}

// gives waits until gRPC has exactly these addresses.
func (r *recorder) gives(t testing.TB, addresses ...string) {
	t.Helper()
	locktest.Eventually(t, "the addresses are given", func() bool {
		r.mu.Lock()
		defer r.mu.Unlock()
		n := len(r.reports)
		return n > 0 && r.reports[n-1].err == nil && slices.Equal(r.reports[n-1].addresses, addresses)
	})
}

// count returns how many reports there are.
func (r *recorder) count() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return len(r.reports)
}

func (r *recorder) add(entry report) {
	entry.at = time.Now()
	r.mu.Lock()
	defer r.mu.Unlock()
	r.reports = append(r.reports, entry)
}

type recordingConn struct {
	gresolver.ClientConn
	to *recorder
}

func (c recordingConn) UpdateState(state gresolver.State) error {
	var addresses []string
	for _, address := range state.Addresses {
		addresses = append(addresses, address.Addr)
	}
	err := c.ClientConn.UpdateState(state)
	c.to.add(report{addresses: addresses})
	return err
}

func (c recordingConn) ReportError(err error) {
	c.ClientConn.ReportError(err)
	c.to.add(report{err: err})
}

type recordingResolver struct {
	gresolver.Resolver
	to *recorder
}

func (r recordingResolver) Close() {
	r.Resolver.Close()
	r.to.closed.Add(1)
}
