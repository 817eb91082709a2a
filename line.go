package locker

import (
	"context"

	"github.com/jagregory/locker/v2/internal/line"
)

// newLines returns the queues inside a client: of the goroutines that want a name, only
// the one in front deals with etcd. So they exclude each other, whatever sessions they use,
// and a client has at most one entry in the queue of a name.
func newLines() *line.Lines[*Lock] {
	place := func(l *Lock) *line.Place { return &l.place }
	over := func(l *Lock) bool { return l.ctx.Err() != nil }
	return line.New(place, over)
}

// waitInLine waits until l is the one in front of the client's line.
func (l *Lock) waitInLine(ctx context.Context) error {
	c := l.client
	mine, ended := c.lines.Join(l.name, l, ctx, c.ctx, l.ofSession())
	if ended == nil {
		return nil
	}
	if mine {
		l.passOn(context.Cause(ended))
	}
	return c.interrupted(ended)
}

// tryInLine is waitInLine for TryLock. It does not wait for a holder, nor with others
// who wait, but for the removal of what is over: of a call that failed, or a release.
func (l *Lock) tryInLine(ctx context.Context) error {
	c := l.client
	for {
		ok, moved := c.lines.TryJoin(l.name, l)
		switch {
		case ok:
			return nil
		case moved == nil:
			return c.lockedHere(ctx, l.name)
		}
		session := l.ofSession()
		select {
		case <-moved:
		case <-ctx.Done():
			return c.interrupted(ctx)
		case <-c.ctx.Done():
			return c.interrupted(c.ctx)
		case <-session.Done():
			return c.interrupted(session)
		}
	}
}

// ofSession is the context of the session of WithSession, or one without an end.
func (l *Lock) ofSession() context.Context {
	if l.wants == nil {
		return context.Background()
	}
	return l.wants.ctx
}
