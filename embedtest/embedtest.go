// Package embedtest runs etcd inside the process, for tests and examples, and
// breaks it on request.
//
//	func TestSomething(t *testing.T) {
//		t.Parallel()
//		server := embedtest.Start(t)
//		client := server.Client(t)
//		...
//	}
//
// A [Server] is a cluster of one or three members with a data directory, and
// addresses on 127.0.0.1, of its own, so any number of them run side by side.
// It is ready when [Start] returns, writes nothing unless the test fails, and
// is gone, goroutines included, after the test.
//
// There are four ways to break things:
//
//   - the members: [Server.Stop], [Server.Restart], [Server.MoveLeader],
//     [Server.Isolate];
//   - the data: [Server.ExpireLease], [Server.Compact];
//   - the network between clients and members: [Server.Proxy], and [NewProxy]
//     for members elsewhere;
//   - one request at a time: [Server.ClientWith].
//
// Time in the server is fast: ticks of 10 ms, elections of 50 ms with one
// member and of 200 ms with three, and no fsync. The shortest lease etcd grants
// is one and a half elections rounded up to a second, which makes it 1 s here
// and 2 s with etcd's own defaults.
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

// patience bounds every wait for the cluster. It is only ever spent by a
// cluster that cannot do what is asked.
const patience = 30 * time.Second

// Server is an etcd cluster inside this process. Its methods may be called from
// any goroutine, except that one member is not stopped and restarted at the
// same time, and that nothing is called after Close. Those that take a
// [testing.TB] end that test when they fail.
type Server struct {
	options options
	dir     string
	log     *tail
	tls     *tls.Config // what clients need; nil without TLS
	members []*member

	mu       sync.Mutex // guards isolated
	isolated map[int]bool
}

// Start starts a cluster and returns when it serves requests. It is stopped
// when the test and its subtests end; if they failed, the end of the server's
// log is part of the test's output.
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

// New is [Start] without a test. It returns when the cluster serves requests,
// and an error when an option is wrong or the cluster does not start. The caller
// must call [Server.Close].
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

// Close stops all members at once and removes their data. Clients need not be
// closed before; open requests and watches are cut off.
func (s *Server) Close() error {
	halted := make([]func(), len(s.members))
	// All members halt before any is closed: a closing member waits for its
	// peers to hang up.
	s.each(func(i int, m *member) { halted[i] = m.halt() })
	s.each(func(i int, _ *member) { halted[i]() })
	var errs []error
	for _, m := range s.members {
		errs = append(errs, m.release())
	}
	return errors.Join(append(errs, os.RemoveAll(s.dir))...)
}

// each calls f for all members at the same time and returns when all are done.
func (s *Server) each(f func(i int, m *member)) {
	var wg sync.WaitGroup
	for i, m := range s.members {
		wg.Go(func() { f(i, m) })
	}
	wg.Wait()
}

// Endpoints returns the client address of each member, by index. They stay the
// same for the life of the Server.
func (s *Server) Endpoints() []string {
	var endpoints []string
	for _, m := range s.members {
		endpoints = append(endpoints, s.url(m.client.String()))
	}
	return endpoints
}

// TLSConfig returns what a client needs to trust the server, and nil without
// [WithTLS]. Each call returns a fresh copy.
func (s *Server) TLSConfig() *tls.Config {
	return s.tls.Clone()
}

// ClientConfig returns the configuration that [Server.Client] uses, for callers
// who tune it: all endpoints, trust and root's credentials as the options have
// it, no logging, and reconnection within 100 ms where gRPC takes a second and
// more by default.
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
		DialTimeout: patience,
		Logger:      zap.NewNop(),
		DialOptions: []grpc.DialOption{grpc.WithConnectParams(grpc.ConnectParams{
			Backoff: backoff.Config{
				BaseDelay:  10 * time.Millisecond,
				Multiplier: 2,
				Jitter:     0.2,
				MaxDelay:   100 * time.Millisecond,
			},
			MinConnectTimeout: patience,
		})},
	}
}

// Client returns a new client on a connection of its own, which is closed when
// the test ends. It connects with its first request, or at once with
// [WithAuth].
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

func (s *Server) url(address string) string {
	if s.options.tls {
		return "https://" + address
	}
	return "http://" + address
}
