package locker

import "context"

// A Client borrows its connection. When the program closes that, nothing can be renewed
// or asked any more: everything ends, at once and with a reason of its own.

// endWithEtcd has the client end when its connection is closed. stop undoes that, and
// waits if it has begun.
func (c *Client) endWithEtcd() (stop func()) {
	done := make(chan struct{})
	undo := context.AfterFunc(c.etcd.Ctx(), func() {
		defer close(done)
		c.end(ErrEtcdClosed)
		c.mu.Lock()
		sessions := make([]*Session, 0, len(c.sessions))
		for s := range c.sessions {
			sessions = append(sessions, s)
		}
		c.mu.Unlock()
		for _, s := range sessions {
			s.end(&LostError{Reason: Revoked, Cause: ErrEtcdClosed})
		}
	})
	return func() {
		if !undo() {
			<-done
		}
	}
}

// etcdIsClosed reports whether the connection was closed.
func (c *Client) etcdIsClosed() bool { return c.etcd.Ctx().Err() != nil }

// closedError returns ErrEtcdClosed if the connection was closed.
func (c *Client) closedError() error {
	if c.etcdIsClosed() {
		return ErrEtcdClosed
	}
	return nil
}

// orEtcdClosed returns err, or that the connection was closed, which explains any other.
func (c *Client) orEtcdClosed(err error) error {
	if err != nil && c.etcdIsClosed() {
		return ErrEtcdClosed
	}
	return err
}

// beginTask counts a call in, unless there can be none any more.
func (c *Client) beginTask() error {
	if !c.tasks.Begin() {
		return ErrClosed
	}
	if c.etcdIsClosed() {
		c.tasks.End()
		return ErrEtcdClosed
	}
	return nil
}
