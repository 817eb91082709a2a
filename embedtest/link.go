package embedtest

import (
	"context"
	"errors"
	"io"
	"net"
	"sync"
	"time"
)

// A link is the network in front of one address of a member: it listens, forwards bytes,
// and injects faults.
type link struct {
	listener net.Listener
	target   string
	cancel   context.CancelFunc
	served   chan struct{} // closed when serve has returned

	mu sync.Mutex // guards the fields below, and those of conn that say so
	faults
	changed chan struct{} // closed and replaced when faults change
	conns   map[*conn]struct{}
}

type faults struct {
	cut      bool
	frozen   bool
	dropping bool
	delay    time.Duration
	limiters [2]*limiter // by direction, nil unless throttled
}

// A conn is one client's connection to the member.
type conn struct {
	link   *link
	client *net.TCPConn
	member *net.TCPConn  // nil until connected
	closed chan struct{} // once closed, both sockets are closed or about to be

	// Guarded by link.mu.
	isClosed bool
	frozen   bool // like faults.frozen, but for this connection only
	damaged  bool // some of the member's bytes were dropped
}

// newLink opens a link to target. The caller must close it.
func newLink(target string) (*link, error) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithCancel(context.Background())
	l := &link{
		listener: listener,
		target:   target,
		cancel:   cancel,
		served:   make(chan struct{}),
		changed:  make(chan struct{}),
		conns:    make(map[*conn]struct{}),
	}
	go l.serve(ctx)
	return l, nil
}

func (l *link) String() string { return l.listener.Addr().String() }

// close resets all connections and returns when all goroutines of the link have ended. It
// is idempotent.
func (l *link) close() error {
	l.cancel()
	err := l.listener.Close()
	l.cutOff()
	<-l.served
	if errors.Is(err, net.ErrClosed) {
		return nil
	}
	return err
}

// serve accepts connections until the link is closed, and returns when all of them have
// ended.
func (l *link) serve(ctx context.Context) {
	defer close(l.served)
	var wg sync.WaitGroup
	defer wg.Wait()
	for ctx.Err() == nil {
		client, err := l.listener.Accept()
		if err != nil {
			// Only close ends the link. A lack of file descriptors is temporary.
			select {
			case <-ctx.Done():
			case <-time.After(10 * time.Millisecond):
			}
			continue
		}
		c := &conn{link: l, client: client.(*net.TCPConn), closed: make(chan struct{})}
		if !l.add(c) {
			abort(c.client)
			continue
		}
		wg.Go(func() { c.run(ctx) })
	}
}

func (l *link) add(c *conn) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.cut {
		return false
	}
	l.conns[c] = struct{}{}
	return true
}

// change calls f, which changes the faults, and wakes all goroutines that depend on them.
func (l *link) change(f func()) {
	l.mu.Lock()
	defer l.mu.Unlock()
	f()
	close(l.changed)
	l.changed = make(chan struct{})
}

// state returns the faults that apply to c, and a channel that is closed when they
// change.
func (c *conn) state() (faults, <-chan struct{}) {
	c.link.mu.Lock()
	defer c.link.mu.Unlock()
	f := c.link.faults
	f.frozen = f.frozen || c.frozen
	return f, c.link.changed
}

// cutOff resets all connections, and new ones as soon as they are accepted.
func (l *link) cutOff() {
	l.change(func() { l.cut = true })
	l.reset(func(*conn) bool { return true })
}

// reset resets the connections for which match returns true. It calls match with l.mu
// held.
func (l *link) reset(match func(*conn) bool) {
	var chosen []*conn
	l.mu.Lock()
	for c := range l.conns {
		if match(c) {
			chosen = append(chosen, c)
		}
	}
	l.mu.Unlock()
	for _, c := range chosen {
		c.reset()
	}
}

// run connects to the member and forwards bytes in both directions until both are done.
func (c *conn) run(ctx context.Context) {
	defer c.reset()
	var dialer net.Dialer
	member, err := dialer.DialContext(ctx, "tcp", c.link.target)
	if err != nil {
		return
	}
	if !c.setMember(member.(*net.TCPConn)) {
		abort(member.(*net.TCPConn))
		return
	}
	var wg sync.WaitGroup
	for _, f := range []*flow{
		{conn: c, from: c.client, to: c.member, direction: toMember},
		{conn: c, from: c.member, to: c.client, direction: toClient},
	} {
		f.arrived = make(chan struct{}, 1)
		wg.Go(f.read)
		wg.Go(f.write)
	}
	wg.Wait()
}

func (c *conn) setMember(member *net.TCPConn) bool {
	c.link.mu.Lock()
	defer c.link.mu.Unlock()
	if c.isClosed {
		return false
	}
	c.member = member
	if c.link.limiters[toMember] != nil {
		c.shrinkBuffers()
	}
	return true
}

// reset resets both sockets. It is idempotent.
func (c *conn) reset() {
	c.link.mu.Lock()
	first := !c.isClosed
	c.isClosed = true
	member := c.member
	delete(c.link.conns, c)
	c.link.mu.Unlock()
	if !first {
		return
	}
	close(c.closed)
	abort(c.client)
	if member != nil {
		abort(member)
	}
}

// abort closes a socket so that its peer sees a reset.
func abort(c *net.TCPConn) {
	c.SetLinger(0)
	c.Close()
}

type direction int

const (
	toMember direction = iota // from the client to the member
	toClient
)

// A flow is one direction of a connection: a queue of chunks that wait until they are
// due. One goroutine reads into the queue, another writes from it.
type flow struct {
	conn      *conn
	from, to  *net.TCPConn
	direction direction

	mu      sync.Mutex // guards queue
	queue   []chunk
	arrived chan struct{} // has an element when queue has grown
}

type chunk struct {
	bytes   []byte
	read    time.Time
	limiter *limiter  // nil unless the link was throttled when the bytes were read
	sent    time.Time // when the limiter will have sent the bytes
	end     error     // set in the last chunk, which has no bytes
}

// read queues the bytes that arrive. Unless the link is throttled, the queue is bounded
// only by HTTP/2, which limits how much a peer may send without an acknowledgment.
func (f *flow) read() {
	buffer := make([]byte, 64<<10)
	for last := (chunk{}); ; {
		size, ok := f.readSize(last, len(buffer))
		if !ok {
			return
		}
		n, err := f.from.Read(buffer[:size])
		if n > 0 {
			last = f.enqueue(chunk{bytes: append([]byte(nil), buffer[:n]...)})
		}
		if err != nil {
			f.enqueue(chunk{end: err})
			return
		}
	}
}

// enqueue appends a chunk to the queue, after scheduling it if the link is throttled.
func (f *flow) enqueue(c chunk) chunk {
	c.read = time.Now()
	c.limiter, c.sent = f.conn.link.schedule(f.direction, len(c.bytes), c.read)
	f.mu.Lock()
	f.queue = append(f.queue, c)
	f.mu.Unlock()
	select {
	case f.arrived <- struct{}{}:
	default:
	}
	return c
}

// write sends the chunks of the queue, each when it is due. So is the end of the stream.
func (f *flow) write() {
	for {
		c, ok := f.next()
		if !ok || !f.waitUntilDue(c) {
			return
		}
		switch {
		case f.direction == toClient && f.conn.dropsReplies():
			if c.end != nil {
				return
			}
		case errors.Is(c.end, io.EOF):
			f.to.CloseWrite()
			return
		case c.end != nil:
			f.conn.reset()
			return
		default:
			if _, err := f.to.Write(c.bytes); err != nil {
				f.conn.reset()
				return
			}
		}
	}
}

// next removes the first chunk from the queue, waiting for one if the queue is empty.
func (f *flow) next() (c chunk, ok bool) {
	for {
		f.mu.Lock()
		if len(f.queue) > 0 {
			c, f.queue = f.queue[0], f.queue[1:]
			f.mu.Unlock()
			return c, true
		}
		f.mu.Unlock()
		select {
		case <-f.arrived:
		case <-f.conn.closed:
			return chunk{}, false
		}
	}
}

// waitUntilDue waits until the chunk may be sent under the current faults. It returns
// false if the connection is closed.
func (f *flow) waitUntilDue(c chunk) bool {
	for {
		current, changed := f.conn.state()
		left := c.read
		if c.limiter != nil && c.limiter == current.limiters[f.direction] {
			left = c.sent
		}
		wait := time.Until(left.Add(current.delay))
		var due <-chan time.Time
		switch {
		case current.frozen:
		case wait > 0:
			due = time.After(wait)
		default:
			return true
		}
		select {
		case <-due:
		case <-changed:
		case <-f.conn.closed:
			return false
		}
	}
}

// dropsReplies reports whether the member's bytes are dropped. Once they have been, it
// returns true until the connection ends: a stream with a gap must not continue.
func (c *conn) dropsReplies() bool {
	c.link.mu.Lock()
	defer c.link.mu.Unlock()
	c.damaged = c.damaged || c.link.dropping
	return c.damaged
}
