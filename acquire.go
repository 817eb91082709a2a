package locker

import (
	"context"
	"errors"
	"iter"
	"time"

	"google.golang.org/grpc/connectivity"

	"github.com/jagregory/locker/v2/internal/backoff"
	"github.com/jagregory/locker/v2/internal/key"
	"github.com/jagregory/locker/v2/internal/line"
	"github.com/jagregory/locker/v2/internal/tasks"
	"github.com/jagregory/locker/v2/internal/txn"
)

// prepare begins a call that locks, by the method verb: it checks the arguments, and returns a
// lock for acquire.
func (c *Client) prepare(ctx context.Context, verb, name, value string, opts []LockOption) (*Lock, error) {
	cfg, err := c.checkLock(ctx, name, value, opts)
	if err != nil {
		return nil, err
	}
	entries := []entry{newEntry(cfg.name, cfg.value, cfg.kind())}
	for _, other := range cfg.others {
		entries = append(entries, newEntry(other.name, other.value, other.kind()))
	}
	l := c.newLock(ctx, entries, cfg.session)
	l.trace = c.hooks.begin(ctx, name, verb)
	return l, nil
}

// acquire is Lock and, with try, TryLock. It returns the lock that is held, which is another
// one than l if a session was lost on the way.
func (l *Lock) acquire(ctx context.Context, try bool) (got *Lock, err error) {
	c := l.client
	if t := l.trace; t != nil {
		defer func() { t.lockEnd(got, err) }()
	}
	if ctx.Err() != nil {
		return nil, context.Cause(ctx)
	}
	if err := c.beginTask(); err != nil {
		return nil, err
	}
	defer c.tasks.End()
	if err := l.join(ctx, try); err != nil {
		return nil, err
	}
	for pause := (backoff.Pause{}); ; {
		if !l.reached(admitted) { // otherwise that was done when the name was handed over
			if err := c.attach(ctx, l); err != nil {
				c.lines.Leave(l)
				return nil, err
			}
		}
		err := l.take(ctx, try)
		if err == nil {
			return l, nil
		}
		if l, err = l.afterFailure(ctx, err, &pause); err != nil {
			return nil, err
		}
	}
}

// afterFailure returns the lock with which to try again after an error of take, or the error
// if that is final.
func (l *Lock) afterFailure(ctx context.Context, err error, pause *backoff.Pause) (*Lock, error) {
	c := l.client
	unqueued := !l.reached(enqueued) || errors.Is(err, errBackInTime)
	if l.wants == nil && unqueued && l.session.ctx.Err() != nil && ctx.Err() == nil {
		// The shared session was lost before it was of any use here. Whatever may be in the
		// queue goes with its lease.
		l.end(err)
		_ = pause.Wait(ctx) // if ctx ends, the next attempt reports that
		var entries []entry
		for i := range l.entries {
			e := &l.entries[i]
			entries = append(entries, newEntry(e.place.Name, e.value, e.kind()))
		}
		next := c.newLock(ctx, entries, nil)
		next.trace = l.trace
		c.lines.Replace(l, next)
		if l.session.delay == 0 {
			l.session.drop(l)
		} else {
			l.startCleanUp() // the lease lives on for a while
		}
		return next, nil
	}
	if own := c.pool.endedSession(err); own != nil {
		if err = l.awaitEnd(ctx, own); err == nil {
			return l, nil
		}
	}
	l.fail(err)
	return nil, l.inTheWay(ctx, err)
}

// checkLock checks the arguments of Lock, and returns what is to be locked.
func (c *Client) checkLock(ctx context.Context, name, value string, opts []LockOption) (lockConfig, error) {
	if err := c.usable(); err != nil {
		return lockConfig{}, err
	}
	if err := checkContext(ctx); err != nil {
		return lockConfig{}, err
	}
	cfg, err := c.configure(name, value, opts)
	if err == nil {
		err = c.checkNesting(ctx, cfg)
	}
	return cfg, err
}

// checkNesting returns an error if ctx comes from a hold of one of the names and of the same
// client, or was given to a function called under one: Lock would wait for itself.
func (c *Client) checkNesting(ctx context.Context, cfg lockConfig) error {
	innermost := holdOf(ctx)
	for l := innermost; l != nil; l = l.outer {
		if l.client != c || l != innermost && l.running() == nil || !l.isHeld() {
			continue
		}
		for name := range cfg.names() {
			if l.has(name) {
				return &InvalidError{"name", quote(name), "the hold that the context comes from has locked it, and locks are not reentrant"}
			}
		}
	}
	return nil
}

// newLock returns a lock that is yet to be attached to a session. Its context has the
// values of ctx but does not end with it.
func (c *Client) newLock(ctx context.Context, entries []entry, wants *Session) *Lock {
	l := &Lock{client: c, entries: entries, shares: 1, outer: holdOf(ctx), waiter: waiter{wants: wants}}
	l.ctx, l.cancel = context.WithCancelCause(context.WithoutCancel(ctx))
	return l
}

func newEntry(name, value string, kind key.Kind) entry {
	return entry{value: value, place: line.Place[*Lock]{Name: name, Kind: int16(kind)}}
}

// newLines returns the lines inside a client. Only those in front deal with etcd. So the
// goroutines of a client exclude each other, whatever sessions they use, and what they have
// in the queue of a name either holds or may soon do so.
func newLines() *line.Lines[*Lock] {
	return line.New(line.Config[*Lock]{
		Places: func(l *Lock) iter.Seq[*line.Place[*Lock]] {
			return func(yield func(*line.Place[*Lock]) bool) {
				for i := range l.entries {
					if !yield(&l.entries[i].place) {
						return
					}
				}
			}
		},
		Wait: func(l *Lock) *line.Wait { return &l.wait },
		Over: func(l *Lock) bool { return l.ctx.Err() != nil },
		Admits: func(size int, least, kind int16) bool {
			return company{size, key.Kind(least)}.admits(key.Kind(kind))
		},
	})
}

// join waits until l is in front of the client's lines.
func (l *Lock) join(ctx context.Context, try bool) error {
	if try {
		return l.tryJoin(ctx)
	}
	c := l.client
	mine, ended := c.lines.Join(l, ctx, c.ctx, l.ofSession())
	if ended == nil {
		return nil
	}
	if mine {
		l.passOn(context.Cause(ended))
	}
	return l.inTheWay(ctx, c.interrupted(ended))
}

// tryJoin is join for TryLock. It waits neither for a holder nor behind other
// waiters, but only for the removal of entries that are over: of a call that failed, or of
// a hold that was released. (For that of a hold that was lost, see awaitEnd.)
func (l *Lock) tryJoin(ctx context.Context) error {
	c := l.client
	for {
		ok, name, moved := c.lines.TryJoin(l)
		switch {
		case ok:
			return nil
		case moved == nil:
			return c.lockedHere(ctx, name)
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

// ofSession returns the context of the session of WithSession, or one that never ends.
func (l *Lock) ofSession() context.Context {
	if l.wants == nil {
		return context.Background()
	}
	return l.wants.ctx
}

// lockedHere returns the error of TryLock if a goroutine of this client has the name.
func (c *Client) lockedHere(ctx context.Context, name string) error {
	ctx, stop := tasks.Either(ctx, c.ctx)
	defer stop()
	oldest, err := c.oldest(ctx, name)
	switch {
	case errors.Is(err, ErrNotFound):
		return &LockedError{Holder: Holder{Name: name}}
	case err != nil:
		return err
	}
	return c.locked(ctx, name, oldest)
}

// awaitEnd waits until nothing is left of a session that is over, so that its holds do not
// refuse TryLock.
func (l *Lock) awaitEnd(ctx context.Context, s *Session) error {
	select {
	case <-s.done:
		return nil
	case <-ctx.Done():
		return l.client.interrupted(ctx)
	case <-l.ctx.Done(): // it ends with its own session, and with the client
		return context.Cause(l.ctx)
	}
}

// passOn ends a lock that gave up waiting although its place in the line was granted, or is
// about to be. Once it is, the lock makes way for the next in the background, and is
// cleaned up if it has a session by then.
func (l *Lock) passOn(cause error) {
	l.end(cause)
	c := l.client
	c.tasks.Run(func() {
		<-l.wait.Ready()
		if !l.reached(admitted) {
			c.lines.Leave(l)
			return
		}
		l.startCleanUp()
	})
}

// take acquires the lock: it joins the queue, unless a hand-over has put its entry there,
// and waits for the head of the queue. After an error, fail must follow.
func (l *Lock) take(caller context.Context, try bool) error {
	// While it is queued, the lock's own context ends with that of its caller.
	defer context.AfterFunc(caller, func() { l.endWait(context.Cause(caller)) })()
	ctx := l.ctx
	if !l.reached(enqueued) {
		if err := l.enqueue(ctx, try); err != nil {
			return err
		}
	}
	// If another attempt at the put were still under way, and somebody deleted the entry,
	// that attempt could put it once more, behind others, and nobody would notice. Once
	// none is, the token is final, and so is what is ahead of the entry.
	if err := l.resolveInDoubt(ctx); err != nil {
		return err
	}
	if err := l.waitForHead(ctx); err != nil {
		return err
	}
	return l.hold()
}

// endWait ends the lock if it is still queued.
func (l *Lock) endWait(cause error) {
	l.mu.Lock()
	was := l.phase
	if was == queued {
		l.phase = over
	}
	l.mu.Unlock()
	if was == queued {
		l.cancel(cause)
	}
}

// enqueue puts the entries at the end of their queues or, with try, only where they hold. It
// tries again until etcd has answered for certain or ctx has ended. After an error entries
// may be left, which cleanUp removes.
func (l *Lock) enqueue(ctx context.Context, try bool) error {
	c, s := l.client, l.session
	for read := int64(0); ; { // with try, the revision at which the queues were read
		t := l.joining()
		if try {
			t = l.taking(read)
		}
		t = s.inEpoch(t)
		l.puts.begin(t.Epoch)
		landed := func(o txn.Outcome) { l.landed(o, 0) }
		resp, _, err := c.store.Write(ctx, &txn.Write{Txn: t, Begun: l.puts.begin, Landed: landed})
		switch {
		case err != nil:
			return s.diagnose(err)
		case !s.timeline.follows(resp.Header, l.since) || resp.Succeeded && resp.Header.Revision <= l.since:
			return s.fail(errBackInTime)
		case resp.Succeeded:
			return nil
		}
		record := txn.Found(resp, 0)
		created, strays := l.found(resp)
		switch {
		case len(strays) > 0: // they were there before, and belong to no lock
			if err := concurrently(c, strays, func(e stray) error { return e.remove(ctx, c.store) }); err != nil {
				return err
			}
			continue
		case created != 0: // put by an attempt whose answer has not come
			l.queuedAt(created, nil)
			return nil
		}
		if try {
			if err := l.refusal(ctx, resp); err != nil {
				return err
			}
			read = resp.Header.Revision
		}
		switch {
		case len(record) == 0:
			if err := s.writeRecord(ctx); err != nil {
				return err
			}
		case record[0].ModRevision < t.Epoch:
			return s.fail(errBackInTime)
		default:
			s.learnEpoch(record[0].ModRevision)
		}
	}
}

// landed takes in the outcome of an attempt to put the entries. In the transaction, so many
// operations come before theirs. An attempt that does not read what is ahead puts an entry
// only if it holds then.
func (l *Lock) landed(o txn.Outcome, before int) {
	if o.Err == nil {
		l.session.timeline.saw(o.Resp.Header)
	}
	if o.Err == nil && o.Resp.Succeeded {
		token, positions := o.Resp.Header.Revision, make([]*position, len(l.entries))
		for i := range l.entries {
			reads := l.part(o.Resp.Responses[before:], i)[1:]
			if len(reads) == 0 {
				positions[i] = &alone
			} else if ahead, ok := l.predecessors(l.key(&l.entries[i]), reads, token); ok {
				positions[i] = &position{ahead, count(reads) - 1}
			}
		}
		l.queuedAt(token, positions)
	}
	// Only now that the token is set: a clean-up looks at both.
	l.puts.end(o.State() != txn.InDoubt)
}

// queuedAt notes that the entries are in their queues, and where they were when they were
// put; nil if that is not known. If they were put several times, each after they had been
// deleted, the newest are those that may be there.
func (l *Lock) queuedAt(created int64, positions []*position) {
	l.mu.Lock()
	defer l.mu.Unlock()
	newer := created > l.token.Load()
	if newer {
		l.token.Store(created)
		l.stage = enqueued
	}
	for i := range l.entries {
		e := &l.entries[i]
		if newer {
			e.modified = created
		}
		switch {
		case positions == nil:
			e.position = nil
		case created == l.token.Load():
			e.position = positions[i]
		}
	}
	if positions != nil && created == l.token.Load() {
		l.traceAhead(positions)
	}
}

// hold makes a queued lock whose entry is the head of the queue a held one, unless it has
// ended meanwhile.
func (l *Lock) hold() error {
	alive := l.session.check() == nil
	l.mu.Lock()
	ok := alive && l.phase == queued
	if ok {
		l.phase = held
		l.traceHold()
		for i := range l.entries {
			l.entries[i].position = nil // a program may hold very many
		}
	}
	l.mu.Unlock()
	if ok {
		return nil
	}
	<-l.ctx.Done()
	return context.Cause(l.ctx)
}

// fail ends a lock that could not be acquired. Usually its entry is gone when fail returns;
// if etcd does not answer at once, that goes on in the background.
func (l *Lock) fail(cause error) {
	l.end(cause)
	c := l.client
	if done, started := l.startCleanUp(); started && c.etcd.ActiveConnection().GetState() == connectivity.Ready {
		ctx, cancel := context.WithTimeout(l.session.cleanUpCtx, dequeueWait)
		defer cancel()
		select {
		case <-done:
		case <-ctx.Done():
		}
	}
}

// dequeueWait is how long a call that failed waits for the removal of its entry.
const dequeueWait = 50 * time.Millisecond
