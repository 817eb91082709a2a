package main

import (
	"errors"
	"net"
	"net/rpc"
	"sync"
)

// resource is what the locks protect: for each name a counter that clients read and then
// write. Unless it is unfenced, it refuses a token smaller than one seen before. It is
// independent of etcd, like the resources that need fencing.
type resource struct {
	unfenced bool

	mu       sync.Mutex // guards what follows
	counters map[string]int64
	tokens   map[string]int64 // the largest seen
	accesses []access
}

// access is a read or write that was not refused.
type access struct {
	Name  string
	Token int64
	Wrote bool
}

// Request is the argument of Read and Write.
type Request struct {
	Name         string
	Token, Value int64
}

// errStale refuses a token that is too small. Over the wire only its text remains.
var errStale = errors.New("the token is smaller than one seen before")

// Read returns the counter. Reads are fenced as well, because a write depends on what was read.
func (r *resource) Read(q Request, value *int64) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	*value = r.counters[q.Name]
	return r.admit(access{q.Name, q.Token, false})
}

// Write sets the counter.
func (r *resource) Write(q Request, _ *struct{}) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if err := r.admit(access{q.Name, q.Token, true}); err != nil {
		return err
	}
	r.counters[q.Name] = q.Value
	return nil
}

func (r *resource) admit(a access) error {
	if a.Token < r.tokens[a.Name] && !r.unfenced {
		return errStale
	}
	r.tokens[a.Name] = max(r.tokens[a.Name], a.Token)
	r.accesses = append(r.accesses, a)
	return nil
}

// resourceServer serves a resource to client processes.
type resourceServer struct {
	*resource
	listener net.Listener
	wg       sync.WaitGroup

	mu    sync.Mutex // guards conns
	conns map[net.Conn]bool
}

// serveResource starts a server, which the caller must close.
func serveResource(unfenced bool) (*resourceServer, error) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	s := &resourceServer{
		resource: &resource{unfenced: unfenced, counters: make(map[string]int64), tokens: make(map[string]int64)},
		listener: listener,
		conns:    make(map[net.Conn]bool),
	}
	server := rpc.NewServer()
	if err := server.RegisterName("Resource", s.resource); err != nil {
		return nil, errors.Join(err, listener.Close())
	}
	s.wg.Go(func() {
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			s.mu.Lock()
			s.conns[conn] = true
			s.mu.Unlock()
			s.wg.Go(func() {
				server.ServeConn(conn) // closes it
				s.mu.Lock()
				delete(s.conns, conn)
				s.mu.Unlock()
			})
		}
	})
	return s, nil
}

// close stops the server. Afterwards nothing accesses the resource concurrently.
func (s *resourceServer) close() error {
	err := s.listener.Close()
	s.mu.Lock()
	for conn := range s.conns {
		_ = conn.Close()
	}
	s.mu.Unlock()
	s.wg.Wait()
	return err
}
