package locker

import (
	"context"
	"errors"
	"maps"
	"slices"
	"sync"

	"github.com/jagregory/locker/v2/internal/backoff"
	"github.com/jagregory/locker/v2/internal/tasks"
)

// pool is the sessions of a Client.
type pool struct {
	opening  chan struct{} // holds an item while a shared session is being opened
	mu       sync.Mutex    // guards what follows
	closed   bool
	sessions map[*Session]bool // those of which something may be left in etcd
	shared   []*Session        // those for locks without WithSession, the newest last
}

// attach attaches l to the session that it wants, or to a shared one that has room. If none
// has, it opens another.
func (c *Client) attach(ctx context.Context, l *Lock) error {
	err := c.attachNow(l)
	if err == nil || l.wants != nil {
		return err
	}
	ctx, stop := tasks.Either(ctx, c.ctx)
	defer stop()
	for pause := (backoff.Pause{}); err != nil; err = c.attachNow(l) {
		switch err := c.openShared(ctx, len(l.entries)); {
		case err == nil:
		case !errors.Is(err, ErrLost) || ctx.Err() != nil:
			return err
		case pause.Wait(ctx) != nil: // lost before it was of any use: open another
			return c.interrupted(ctx)
		}
	}
	return nil
}

// attachNow is attach without opening a session. It makes no request.
func (c *Client) attachNow(l *Lock) error {
	if l.wants != nil {
		return l.wants.admit(l)
	}
	err := ErrSessionFull
	for _, s := range slices.Backward(c.pool.candidates()) {
		if err = s.admit(l); err == nil {
			break
		}
	}
	return err
}

// openShared opens another shared session, unless one has room for so many entries by now.
// One goroutine does that at a time, and the others wait for it.
func (c *Client) openShared(ctx context.Context, entries int) error {
	select {
	case c.pool.opening <- struct{}{}:
		defer func() { <-c.pool.opening }()
	case <-ctx.Done():
		return c.interrupted(ctx)
	}
	if slices.ContainsFunc(c.pool.candidates(), func(s *Session) bool { return s.room() >= entries }) {
		return nil
	}
	s := c.newSession(0)
	if err := s.open(ctx); err != nil {
		return err
	}
	c.pool.share(s)
	return nil
}

// candidates returns the shared sessions, the newest last.
func (p *pool) candidates() []*Session {
	p.mu.Lock()
	defer p.mu.Unlock()
	return slices.Clone(p.shared)
}

// share makes a session a shared one, unless it is over.
func (p *pool) share(s *Session) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if s.room() > 0 {
		p.shared = append(p.shared, s)
	}
}

// unshare ends the use of a session as a shared one.
func (p *pool) unshare(s *Session) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.shared = slices.DeleteFunc(p.shared, func(other *Session) bool { return other == s })
}

// retire closes a shared session that has become empty if the others have plenty of room,
// so that the leases of a burst do not stay forever.
func (p *pool) retire(s *Session) {
	p.mu.Lock()
	others := slices.ContainsFunc(p.shared, func(other *Session) bool { return other != s && other.room() >= entriesPerLease/2 })
	i := slices.Index(p.shared, s)
	surplus := others && i >= 0
	if surplus { // at once, so that two sessions do not retire in favour of each other
		p.shared = slices.Delete(p.shared, i, i+1)
	}
	p.mu.Unlock()
	if surplus && !s.endIf(ErrClosed, func() bool { return len(s.locks) == 0 }) {
		p.share(s) // it was used again meanwhile
	}
}

// enlist adds a session to those that Close has to end. It reports false if the pool is
// closed.
func (p *pool) enlist(s *Session) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if !p.closed {
		p.sessions[s] = true
	}
	return !p.closed
}

// delist undoes enlist at the end of the session. If the etcd client was closed first, the
// session stays enlisted, so that Close reports what may be left of it.
func (p *pool) delist(s *Session) {
	if errors.Is(s.closeErr, ErrEtcdClosed) {
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.sessions, s)
}

// close lets no session be enlisted any more.
func (p *pool) close() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.closed = true
}

// all returns the sessions that are enlisted.
func (p *pool) all() []*Session {
	p.mu.Lock()
	defer p.mu.Unlock()
	return slices.Collect(maps.Keys(p.sessions))
}

// endedSession returns the session that has the entry that err, of a TryLock, is about; nil
// unless that session is over, and its lease is about to be revoked. While a function of Do
// is still at work under one of its holds, nobody else should have its names.
func (p *pool) endedSession(err error) *Session {
	var locked *LockedError
	if !errors.As(err, &locked) {
		return nil
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	for s := range p.sessions {
		if s.lease == locked.Holder.Lease && s.ctx.Err() != nil && len(s.callbacks) == 0 && s.adopted == nil {
			return s
		}
	}
	return nil
}

// room returns how many more entries the session may have.
func (s *Session) room() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.over {
		return 0
	}
	return entriesPerLease - s.used
}

// admit attaches l to the session.
func (s *Session) admit(l *Lock) error {
	if err := s.check(); err != nil { // perhaps nobody has looked at the clock since the machine slept
		return err
	}
	s.mu.Lock()
	isOver, full := s.over, s.used+len(l.entries) > entriesPerLease
	if !isOver && !full {
		s.locks[l] = struct{}{}
		s.used += len(l.entries)
		l.session, l.since = s, s.timeline.revision.Load()
		l.reach(admitted)
	}
	s.mu.Unlock()
	switch {
	case isOver:
		<-s.ctx.Done()
		return context.Cause(s.ctx)
	case full:
		return ErrSessionFull
	}
	return nil
}

// drop undoes admit, and returns how many locks are left.
func (s *Session) drop(l *Lock) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	if _, ok := s.locks[l]; ok {
		delete(s.locks, l)
		s.used -= len(l.entries)
		if s.over && len(s.locks) == 0 {
			close(s.empty)
		}
	}
	return len(s.locks)
}
