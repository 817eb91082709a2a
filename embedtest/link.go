package embedtest

import (
	"context"
	"errors"
	"io"
	"net"
	"sync"
	"time"
)

// A link is the network in front of one address of a member: it listens, passes
// bytes on, and does as its faults say.
type link struct {
	listener net.Listener
	target   string
	cancel   context.CancelFunc
	served   chan struct{} // closed when serve has returned

	mu sync.Mutex // guards what follows, and what conn says it guards
	faults
	changed chan struct{} // closed, and replaced, when faults change
	conns   map[*conn]struct{}
}

type faults struct {
	cut      bool
	frozen   bool
	dropping bool
	delay    time.Duration
	wires    [2]*wire // by direction, nil unless throttled
}

// A conn is one client's connection to the member.
type conn struct {
	link   *link
	client *net.TCPConn
	member *net.TCPConn  // nil until connected
	closed chan struct{} // once closed, both sockets are, or will be at once

	// Guarded by link.mu.
	isClosed bool
	frozen   bool // as faults.frozen, for this connection alone
	maimed   bool // some of the member's bytes were dropped
}

// newLink opens a link to target, which must be closed.
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

// close resets all connections and returns when everything that the link runs
// has ended. It may be called more than once.
func (l *link) close() error {
	l.cancel()
	err := l.listener.Close()
	l.sever()
	<-l.served
	if errors.Is(err, net.ErrClosed) {
		return nil
	}
	return err
}

// serve accepts connections until the listener is closed, and returns when all
// of them have ended.
func (l *link) serve(ctx context.Context) {
	defer close(l.served)
	var wg sync.WaitGroup
	defer wg.Wait()
	for ctx.Err() == nil {
		client, err := l.listener.Accept()
		if err != nil {
			// Nothing but close ends the link. Being out of file descriptors passes.
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

// change applies f to the faults, and wakes all who act by them.
func (l *link) change(f func()) {
	l.mu.Lock()
	defer l.mu.Unlock()
	f()
	close(l.changed)
	l.changed = make(chan struct{})
}

// state returns the faults that c is under, and what is closed when they change.
func (c *conn) state() (faults, <-chan struct{}) {
	c.link.mu.Lock()
	defer c.link.mu.Unlock()
	f := c.link.faults
	f.frozen = f.frozen || c.frozen
	return f, c.link.changed
}

// sever breaks all connections, and new ones as they come.
func (l *link) sever() {
	l.change(func() { l.cut = true })
	l.reset(func(*conn) bool { return true })
}

// reset breaks the connections for which which says so; it is called under the
// mutex.
func (l *link) reset(which func(*conn) bool) {
	var chosen []*conn
	l.mu.Lock()
	for c := range l.conns {
		if which(c) {
			chosen = append(chosen, c)
		}
	}
	l.mu.Unlock()
	for _, c := range chosen {
		c.reset()
	}
}

// run connects to the member and passes bytes both ways until both are done.
func (c *conn) run(ctx context.Context) {
	defer c.reset()
	var dialer net.Dialer
	member, err := dialer.DialContext(ctx, "tcp", c.link.target)
	if err != nil {
		return
	}
	if !c.connected(member.(*net.TCPConn)) {
		abort(member.(*net.TCPConn))
		return
	}
	var wg sync.WaitGroup
	for _, w := range []*way{
		{conn: c, from: c.client, to: c.member, direction: forth},
		{conn: c, from: c.member, to: c.client, direction: back},
	} {
		w.arrived = make(chan struct{}, 1)
		wg.Go(w.read)
		wg.Go(w.write)
	}
	wg.Wait()
}

func (c *conn) connected(member *net.TCPConn) bool {
	c.link.mu.Lock()
	defer c.link.mu.Unlock()
	if c.isClosed {
		return false
	}
	c.member = member
	if c.link.wires[forth] != nil {
		c.narrow()
	}
	return true
}

// reset breaks both halves. It may be called more than once.
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
	forth direction = iota // from the client to the member
	back
)

// A way is one direction of a connection, a line in which bytes wait for their
// time: one goroutine reads, another writes.
type way struct {
	conn      *conn
	from, to  *net.TCPConn
	direction direction

	mu      sync.Mutex // guards line
	line    []chunk
	arrived chan struct{} // holds a token when line has grown
}

type chunk struct {
	bytes []byte
	read  time.Time
	wire  *wire     // nil unless the link was throttled when they were read
	sent  time.Time // when the wire will have sent them
	end   error     // instead of bytes: the last chunk
}

// read queues what arrives. Unless the link is throttled, the line has no bound of
// its own: HTTP/2 lets a peer send only so much that is not acknowledged.
func (w *way) read() {
	buffer := make([]byte, 64<<10)
	for ahead := (chunk{}); ; {
		size, ok := w.room(ahead, len(buffer))
		if !ok {
			return
		}
		n, err := w.from.Read(buffer[:size])
		if n > 0 {
			ahead = w.send(chunk{bytes: append([]byte(nil), buffer[:n]...)})
		}
		if err != nil {
			w.send(chunk{end: err})
			return
		}
	}
}

// send gives a chunk to the wire, if there is one, and queues it.
func (w *way) send(c chunk) chunk {
	c.read = time.Now()
	c.wire, c.sent = w.conn.link.send(w.direction, len(c.bytes), c.read)
	w.mu.Lock()
	w.line = append(w.line, c)
	w.mu.Unlock()
	select {
	case w.arrived <- struct{}{}:
	default:
	}
	return c
}

// write sends what is in the line, each chunk when its time has come. The end of
// the stream waits its turn as well.
func (w *way) write() {
	for {
		c, ok := w.next()
		if !ok || !w.hold(c) {
			return
		}
		switch {
		case w.direction == back && w.conn.drops():
			if c.end != nil {
				return
			}
		case errors.Is(c.end, io.EOF):
			w.to.CloseWrite()
			return
		case c.end != nil:
			w.conn.reset()
			return
		default:
			if _, err := w.to.Write(c.bytes); err != nil {
				w.conn.reset()
				return
			}
		}
	}
}

// next takes the first chunk, and waits for it.
func (w *way) next() (c chunk, ok bool) {
	for {
		w.mu.Lock()
		if len(w.line) > 0 {
			c, w.line = w.line[0], w.line[1:]
			w.mu.Unlock()
			return c, true
		}
		w.mu.Unlock()
		select {
		case <-w.arrived:
		case <-w.conn.closed:
			return chunk{}, false
		}
	}
}

// hold returns when the chunk may go, by the faults as they are then, or false
// when the connection is closed.
func (w *way) hold(c chunk) bool {
	for {
		faults, changed := w.conn.state()
		left := c.read
		if c.wire != nil && c.wire == faults.wires[w.direction] {
			left = c.sent
		}
		wait := time.Until(left.Add(faults.delay))
		var due <-chan time.Time
		switch {
		case faults.frozen:
		case wait > 0:
			due = time.After(wait)
		default:
			return true
		}
		select {
		case <-due:
		case <-changed:
		case <-w.conn.closed:
			return false
		}
	}
}

// drops says whether the member's bytes are thrown away, and remembers it: a
// stream with a hole in it must not go on.
func (c *conn) drops() bool {
	c.link.mu.Lock()
	defer c.link.mu.Unlock()
	c.maimed = c.maimed || c.link.dropping
	return c.maimed
}
