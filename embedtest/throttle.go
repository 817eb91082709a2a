package embedtest

import "time"

// A limiter limits the bandwidth of one direction of a link. It sends one chunk after
// another, regardless of their connections.
type limiter struct {
	rate int       // bytes per second
	free time.Time // when all scheduled bytes will have been sent; guarded by link.mu
}

const (
	// readLead is how long before the end of its last chunk a connection is read again.
	// Without it, the limiter would be idle between two chunks.
	readLead = 20 * time.Millisecond

	// socketBuffer bounds what the kernel buffers for a connection that is not being
	// read. By default it buffers megabytes, which take many seconds on a slow link.
	socketBuffer = 64 << 10
)

// throttle limits both directions to the given rate, or removes the limit if the rate is
// not positive. l.mu is held.
func (l *link) throttle(rate int) {
	l.limiters = [2]*limiter{}
	if rate <= 0 {
		return
	}
	l.limiters = [2]*limiter{{rate: rate}, {rate: rate}}
	for c := range l.conns {
		c.shrinkBuffers()
	}
}

// shrinkBuffers bounds what the kernel buffers. link.mu is held.
func (c *conn) shrinkBuffers() {
	if c.member != nil {
		c.client.SetReadBuffer(socketBuffer)
		c.member.SetReadBuffer(socketBuffer)
	}
}

// schedule schedules n bytes in the given direction. It returns the limiter, or nil if
// the link is not throttled, and when the limiter will have sent them.
func (l *link) schedule(d direction, n int, now time.Time) (*limiter, time.Time) {
	l.mu.Lock()
	defer l.mu.Unlock()
	lim := l.limiters[d]
	if lim == nil {
		return nil, time.Time{}
	}
	if lim.free.Before(now) {
		lim.free = now
	}
	lim.free = lim.free.Add(time.Duration(float64(n) / float64(lim.rate) * float64(time.Second)))
	return lim, lim.free
}

// readSize waits until the limiter has almost sent the connection's last chunk, and
// returns how much to read next: what takes about as long as readLead, so that
// connections alternate. It returns false if the connection is closed.
func (f *flow) readSize(last chunk, bufferSize int) (size int, ok bool) {
	for {
		current, changed := f.conn.state()
		lim := current.limiters[f.direction]
		if lim == nil {
			return bufferSize, true
		}
		var due <-chan time.Time
		switch wait := time.Until(last.sent.Add(-readLead)); {
		case current.frozen: // otherwise a frozen link would read what it then sends all at once after the thaw
		case last.limiter == lim && wait > 0:
			due = time.After(wait)
		default:
			return min(bufferSize, max(512, int(float64(lim.rate)*readLead.Seconds()))), true
		}
		select {
		case <-due:
		case <-changed:
		case <-f.conn.closed:
			return 0, false
		}
	}
}

// setConnsFrozen freezes the current connections, or thaws them. l.mu is held.
func (l *link) setConnsFrozen(frozen bool) {
	for c := range l.conns {
		c.frozen = frozen
	}
}

// thaw undoes the freezing of all or some connections. l.mu is held.
func (l *link) thaw() {
	l.frozen = false
	l.setConnsFrozen(false)
}

// heal ends all faults. l.mu is held.
func (l *link) heal() {
	l.faults = faults{}
	l.setConnsFrozen(false)
}
