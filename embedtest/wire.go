package embedtest

import "time"

// A wire is one direction of a throttled link. It sends one chunk after the other,
// whichever connections they are of.
type wire struct {
	rate int       // bytes a second
	free time.Time // when all that was given to it will have been sent; guarded by link.mu
}

const (
	// wireLead is how long before its last chunk has been sent a connection is read
	// again. Without a lead the wire would stand idle between two chunks.
	wireLead = 20 * time.Millisecond

	// wireBuffer is what the kernel may take of a connection that is not being read.
	// By itself it takes megabytes, which would be many seconds of a narrow link.
	wireBuffer = 64 << 10
)

// throttle puts wires of that rate into both directions, and takes them away if it is
// not above 0. It is called under the mutex.
func (l *link) throttle(rate int) {
	l.wires = [2]*wire{}
	if rate <= 0 {
		return
	}
	l.wires = [2]*wire{{rate: rate}, {rate: rate}}
	for c := range l.conns {
		c.narrow()
	}
}

// narrow bounds what the kernel takes in advance. It is called under the mutex.
func (c *conn) narrow() {
	if c.member != nil {
		c.client.SetReadBuffer(wireBuffer)
		c.member.SetReadBuffer(wireBuffer)
	}
}

// send gives n bytes to the wire of that direction, and returns it and when it will
// have sent them.
func (l *link) send(d direction, n int, now time.Time) (*wire, time.Time) {
	l.mu.Lock()
	defer l.mu.Unlock()
	w := l.wires[d]
	if w == nil {
		return nil, time.Time{}
	}
	if w.free.Before(now) {
		w.free = now
	}
	w.free = w.free.Add(time.Duration(float64(n) / float64(w.rate) * float64(time.Second)))
	return w, w.free
}

// room waits until the wire has nearly sent the connection's last chunk, and says how
// much to read next: what takes about as long as the lead, so that connections take
// turns. It is not ok when the connection is closed.
func (w *way) room(last chunk, most int) (size int, ok bool) {
	for {
		faults, changed := w.conn.state()
		wire := faults.wires[w.direction]
		if wire == nil {
			return most, true
		}
		var due <-chan time.Time
		switch wait := time.Until(last.sent.Add(-wireLead)); {
		case faults.frozen: // or a frozen link would take in what it sends after the thaw at once
		case last.wire == wire && wait > 0:
			due = time.After(wait)
		default:
			return min(most, max(512, int(float64(wire.rate)*wireLead.Seconds()))), true
		}
		select {
		case <-due:
		case <-changed:
		case <-w.conn.closed:
			return 0, false
		}
	}
}

// freezeConns freezes the connections there are, or thaws them. It is called under
// the mutex.
func (l *link) freezeConns(frozen bool) {
	for c := range l.conns {
		c.frozen = frozen
	}
}

// thaw ends what freezes all connections, or some. It is called under the mutex.
func (l *link) thaw() {
	l.frozen = false
	l.freezeConns(false)
}

// heal ends all faults. It is called under the mutex.
func (l *link) heal() {
	l.faults = faults{}
	l.freezeConns(false)
}
