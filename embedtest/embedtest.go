// Package embedtest runs etcd inside the process, for tests and examples, and injects
// faults on request.
//
//	func TestSomething(t *testing.T) {
//		t.Parallel()
//		server := embedtest.Start(t)
//		client := server.Client(t)
//		...
//	}
//
// A [Server] is a cluster of one or three members with its own data directory and its own
// addresses on 127.0.0.1, so any number of servers can run side by side. It is ready when
// [Start] returns, logs nothing unless the test fails, and is shut down when the test
// ends, including all its goroutines.
//
// There are four kinds of faults:
//
//   - of members: [Server.Stop], [Server.Restart], [Server.MoveLeader], [Server.Isolate];
//   - of the data: [Server.ExpireLease], [Server.Compact];
//   - of the network between clients and members: [Server.Proxy], and [NewProxy] for
//     members that run elsewhere;
//   - of a single request: [Server.ClientWith].
//
// The server runs faster than etcd does by default: a tick is 10 ms, the election timeout
// is 50 ms with one member and 200 ms with three, and there is no fsync. The shortest
// lease that etcd grants is one and a half election timeouts, rounded up to a second: 1 s
// here, and 2 s with etcd's defaults.
package embedtest

import (
	"crypto/tls"
	"errors"
	"fmt"
	"os"
	"sync"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"
	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
)

// waitTimeout bounds every wait for the cluster. It expires only if the cluster cannot do
// what was requested.
const waitTimeout = 30 * time.Second

// Server is an etcd cluster inside this process. Its methods may be called from any
// goroutine, with two exceptions: a member must not be stopped and restarted at the same
// time, and no method may be called after Close. A method that takes a [testing.TB] ends
// the test if it fails.
type Server struct {
	options options
	dir     string
	log     *tail
	tls     *tls.Config // for clients; nil without TLS
	members []*etcdMember

	mu       sync.Mutex // guards isolated
	isolated map[int]bool
}

// Start starts a cluster and returns once it serves requests. The cluster is stopped when
// the test and its subtests end. If they failed, the end of the server's log is added to
// the test's output.
func Start(tb testing.TB, opts ...Option) *Server {
	tb.Helper()
	s, err := New(opts...)
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() {
		if tb.Failed() {
			tb.Logf("embedtest: end of the server's log:\n%s", s.log)
		}
		if err := s.Close(); err != nil {
			tb.Error(err)
		}
	})
	return s
}

// New is [Start] without a test. It returns once the cluster serves requests. It returns
// an error if an option is invalid or the cluster does not start. The caller must call
// [Server.Close].
func New(opts ...Option) (*Server, error) {
	o, err := newOptions(opts)
	if err != nil {
		return nil, err
	}
	dir, err := os.MkdirTemp("", "embedtest-")
	if err != nil {
		return nil, fmt.Errorf("embedtest: %w", err)
	}
	s := &Server{options: o, dir: dir, log: newTail(), isolated: make(map[int]bool)}
	if err := s.start(); err != nil {
		return nil, errors.Join(fmt.Errorf("embedtest: start: %w\n%s", err, s.log), s.Close())
	}
	return s, nil
}

func (s *Server) start() error {
	if s.options.tls {
		if err := s.makeCertificates(); err != nil {
			return err
		}
	}
	for i := range s.options.members {
		m, err := newMember(i, s.dir)
		if err != nil {
			return err
		}
		s.members = append(s.members, m)
	}
	for _, m := range s.members {
		if err := m.start(s.config(m)); err != nil {
			return err
		}
	}
	for _, m := range s.members {
		if err := m.awaitReady(); err != nil {
			return err
		}
	}
	if s.options.auth {
		return s.enableAuth()
	}
	return nil
}

// Close stops all members at once and removes their data. Clients need not be closed
// first: open requests and watches are cut off.
func (s *Server) Close() error {
	halted := make([]func(), len(s.members))
	// All members halt before any is closed: a member that closes waits for its peers to
	// disconnect.
	s.each(func(i int, m *etcdMember) { halted[i] = m.halt() })
	s.each(func(i int, _ *etcdMember) { halted[i]() })
	var errs []error
	for _, m := range s.members {
		errs = append(errs, m.release())
	}
	return errors.Join(append(errs, os.RemoveAll(s.dir))...)
}

// each calls f for all members concurrently, and returns when all calls have returned.
func (s *Server) each(f func(i int, m *etcdMember)) {
	var wg sync.WaitGroup
	for i, m := range s.members {
		wg.Go(func() { f(i, m) })
	}
	wg.Wait()
}

// Endpoints returns the client address of each member, by index. The addresses do not
// change during the life of the Server.
func (s *Server) Endpoints() []string {
	var endpoints []string
	for _, m := range s.members {
		endpoints = append(endpoints, s.url(m.client.String()))
	}
	return endpoints
}

// TLSConfig returns the configuration with which a client trusts the server, or nil
// without [WithTLS]. Each call returns a new copy.
func (s *Server) TLSConfig() *tls.Config {
	return s.tls.Clone()
}

// ClientConfig returns the configuration that [Server.Client] uses, for callers that want
// to change it. It has all endpoints, the TLS configuration and root's credentials if the
// options ask for them, no logging, and reconnects within 100 ms, where gRPC by default
// takes a second or more.
func (s *Server) ClientConfig() clientv3.Config {
	return s.clientConfig(s.Endpoints())
}

func (s *Server) clientConfig(endpoints []string) clientv3.Config {
	config := clientConfig(endpoints)
	config.TLS = s.TLSConfig()
	if s.options.auth {
		config.Username, config.Password = rootName, rootPassword
	}
	return config
}

func clientConfig(endpoints []string) clientv3.Config {
	return clientv3.Config{
		Endpoints:   endpoints,
		DialTimeout: waitTimeout,
		Logger:      zap.NewNop(),
		DialOptions: []grpc.DialOption{grpc.WithConnectParams(grpc.ConnectParams{
			Backoff: backoff.Config{
				BaseDelay:  10 * time.Millisecond,
				Multiplier: 2,
				Jitter:     0.2,
				MaxDelay:   100 * time.Millisecond,
			},
			MinConnectTimeout: waitTimeout,
		})},
	}
}

// Client returns a new client with its own connection, which is closed when the test
// ends. The client connects on its first request, or immediately with [WithAuth].
func (s *Server) Client(tb testing.TB) *clientv3.Client {
	tb.Helper()
	return newClient(tb, s.ClientConfig())
}

func newClient(tb testing.TB, config clientv3.Config) *clientv3.Client {
	tb.Helper()
	client, err := clientv3.New(config)
	if err != nil {
		tb.Fatalf("embedtest: connect: %v", err)
	}
	tb.Cleanup(func() { client.Close() })
	return client
}

func (s *Server) url(hostPort string) string {
	if s.options.tls {
		return "https://" + hostPort
	}
	return "http://" + hostPort
}
