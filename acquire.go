package locker

import (
	"context"
	"errors"
	"slices"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"
	"google.golang.org/grpc/connectivity"

	"github.com/jagregory/locker/v2/internal/backoff"
	"github.com/jagregory/locker/v2/internal/line"
	"github.com/jagregory/locker/v2/internal/tasks"
	"github.com/jagregory/locker/v2/internal/txn"
	"github.com/jagregory/locker/v2/internal/watchmux"
)

// acquire is Lock and, with try, TryLock.
func (c *Client) acquire(ctx context.Context, name, value string, try bool, opts []LockOption) (*Lock, error) {
	session, err := c.checkLock(ctx, name, opts)
	if err != nil {
		return nil, err
	}
	if ctx.Err() != nil {
		return nil, context.Cause(ctx)
	}
	if err := c.beginTask(); err != nil {
		return nil, err
	}
	defer c.tasks.End()
	l := c.newLock(ctx, name, value, session)
	if try {
		err = l.tryInLine(ctx)
	} else {
		err = l.waitInLine(ctx)
	}
	if err != nil {
		return nil, err
	}
	for pause := (backoff.Pause{}); ; {
		if !l.reached(admitted) { // otherwise that was done when the name was handed over
			if err := c.attach(ctx, l); err != nil {
				c.lines.Leave(name, nil)
				return nil, err
			}
		}
		err := l.take(ctx, try)
		if err == nil {
			return l, nil
		}
		unqueued := !l.reached(enqueued) || errors.Is(err, errBackInTime)
		if session == nil && unqueued && l.session.ctx.Err() != nil && ctx.Err() == nil {
			// The shared session was lost before it was of any use here. Whatever may be in
			// the queue goes with its lease.
			l.end(err)
			l.session.drop(l)
			_ = pause.Wait(ctx) // if ctx ends, the next attempt reports that
			l = c.newLock(ctx, name, value, session)
			c.lines.Replace(name, l)
			continue
		}
		if own := c.pool.holding(err); own != nil {
			if err = l.awaitEnd(ctx, own); err == nil {
				continue
			}
		}
		l.fail(err)
		return nil, err
	}
}

// checkLock checks the arguments of Lock, and returns the session to use, nil for a shared
// one.
func (c *Client) checkLock(ctx context.Context, name string, opts []LockOption) (*Session, error) {
	if err := c.usable(); err != nil {
		return nil, err
	}
	if err := checkContext(ctx); err != nil {
		return nil, err
	}
	if err := checkName(name); err != nil {
		return nil, err
	}
	session, err := c.sessionFor(opts)
	if err == nil {
		err = c.checkNesting(ctx, name)
	}
	return session, err
}

// checkNesting returns an error if ctx comes from a hold of the same name and client, or
// was given to a function called under one: Lock would wait for itself.
func (c *Client) checkNesting(ctx context.Context, name string) error {
	innermost := holdOf(ctx)
	for l := innermost; l != nil; l = l.outer {
		if l.client == c && l.name == name && (l == innermost || l.running() != nil) && l.isHeld() {
			return &InvalidError{"name", quote(name), "the hold that the context comes from has locked it, and locks are not reentrant"}
		}
	}
	return nil
}

// newLock returns a lock that is yet to be attached to a session. Its context has the
// values of ctx but does not end with it.
func (c *Client) newLock(ctx context.Context, name, value string, wants *Session) *Lock {
	l := &Lock{client: c, name: name, value: value, shares: 1, outer: holdOf(ctx), waiter: waiter{wants: wants}}
	ctx, l.cancel = context.WithCancelCause(context.WithoutCancel(ctx))
	l.ctx = context.WithValue(ctx, holdKey{}, l)
	return l
}

// newLines returns the lines inside a client: of the goroutines that want a name, only the
// one in front deals with etcd. So they exclude each other, whatever sessions they use, and
// a client has at most one entry in the queue of a name.
func newLines() *line.Lines[*Lock] {
	place := func(l *Lock) *line.Place { return &l.place }
	ended := func(l *Lock) bool { return l.ctx.Err() != nil }
	return line.New(place, ended)
}

// waitInLine waits until l is in front of the client's line.
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

// tryInLine is waitInLine for TryLock. It waits neither for a holder nor behind other
// waiters, but only for the removal of an entry that is over: of a call that failed, or of
// a hold that was released. (For that of a hold that was lost, see awaitEnd.)
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
	holder, err := c.get(ctx, name)
	if errors.Is(err, ErrNotFound) {
		holder, err = Holder{Name: name}, nil
	}
	if err != nil {
		return err
	}
	return &LockedError{Holder: holder}
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
		<-l.place.Ready()
		if !l.reached(admitted) {
			c.lines.Leave(l.name, nil)
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

// enqueue puts the entry at the end of the queue or, with try, only into an empty queue. It
// tries again until etcd has answered for certain or ctx has ended. After an error an entry
// may be left, which cleanUp removes.
func (l *Lock) enqueue(ctx context.Context, try bool) error {
	c, s := l.client, l.session
	t := l.joining()
	if try {
		t = l.taking()
	}
	for {
		t = s.inEpoch(t)
		l.puts.begin(t.Epoch)
		resp, _, err := c.store.Write(ctx, &txn.Write{Txn: t, Begun: l.puts.begin, Landed: l.landed})
		switch {
		case err != nil:
			return s.diagnose(err)
		case !s.timeline.follows(resp.Header, l.since) || resp.Succeeded && resp.Header.Revision <= l.since:
			return s.fail(errBackInTime)
		case resp.Succeeded:
			return nil
		}
		own, record := txn.Found(resp, 0), txn.Found(resp, 1)
		switch {
		case len(own) > 0 && own[0].CreateRevision <= l.since: // it was there before, and belongs to no lock
			stray := entry{name: l.name, key: l.key, created: own[0].CreateRevision}
			if _, _, err := c.store.Commit(ctx, stray.removal()); err != nil {
				return err
			}
		case len(own) > 0: // put by an attempt whose answer has not come
			l.queuedAt(own[0].CreateRevision, own[0].ModRevision, position{})
			return nil
		case try && len(txn.Found(resp, 2)) > 0:
			return &LockedError{Holder: holderOf(l.name, txn.Found(resp, 2)[0])}
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

// joining returns the transaction that puts the entry at the end of the queue, and reads
// what is ahead of it. In a flat transaction it puts the entry only if the queue is empty,
// and so has nothing to read, unless somebody has waited for the name lately: then it is
// probably not free.
func (l *Lock) joining() txn.Txn {
	put := l.entry()
	t := txn.Txn{
		Name:      l.name,
		When:      []*pb.Compare{txn.CmpCreate(l.key, 0)},
		Then:      []*pb.RequestOp{put, txn.OpRange(l.newest(0))},
		Otherwise: l.reasons(),
	}
	if !l.client.watches.Keeps(l.queue()) {
		t.Flat = &txn.Flat{When: l.empty(), Then: []*pb.RequestOp{put}}
	}
	return t
}

// taking returns the transaction that puts the entry if the queue is empty, and otherwise
// reads why it is not.
func (l *Lock) taking() txn.Txn {
	return txn.Txn{
		Name:      l.name,
		When:      l.empty(),
		Then:      []*pb.RequestOp{l.entry()},
		Otherwise: append(l.reasons(), txn.OpRange(txn.OldestBelow(l.queue()))),
	}
}

// entry returns the put of the entry.
func (l *Lock) entry() *pb.RequestOp { return txn.OpPut(l.key, l.value, l.session.lease) }

// empty returns the compare that nothing is in the queue.
func (l *Lock) empty() []*pb.Compare { return []*pb.Compare{txn.CmpNoneBelow(l.queue())} }

// reasons returns reads that show why the entry was not put.
func (l *Lock) reasons() []*pb.RequestOp {
	return []*pb.RequestOp{
		txn.OpRange(txn.RevisionsOf(l.key)),
		txn.OpRange(txn.RevisionsOf(l.session.record())),
	}
}

// landed takes in the outcome of an attempt to put the entry. An attempt that does not read
// what is ahead puts the entry only if the queue is empty.
func (l *Lock) landed(o txn.Outcome) {
	if o.Err == nil {
		l.session.timeline.saw(o.Resp.Header)
	}
	if o.Err == nil && o.Resp.Succeeded {
		token, p := o.Resp.Header.Revision, position{placed: true}
		if list := o.Resp.Responses[len(o.Resp.Responses)-1].GetResponseRange(); list != nil {
			p.ahead, p.placed = l.predecessors(list.Kvs, token)
			p.total = int(list.Count) - 1
		}
		l.queuedAt(token, token, p)
	}
	// Only now that the token is set: a clean-up looks at both.
	l.puts.end(o.State() != txn.InDoubt)
}

// queuedAt notes that the entry is in the queue, and where it was when it was put, if that
// is known. If the entry was put several times, each after the one before had been deleted,
// the newest is the one that may be there.
func (l *Lock) queuedAt(created, modified int64, p position) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if created > l.token.Load() {
		l.token.Store(created)
		l.stage, l.modified = enqueued, modified
	}
	if created == l.token.Load() || !p.placed {
		l.position = p
	}
}

// positionAt returns where the entry was when it was put, and that revision; the revision
// is 0 if it is not known.
func (l *Lock) positionAt() (p position, revision int64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if !l.placed {
		return position{}, 0
	}
	p = l.position
	p.ahead = slices.Clone(p.ahead)
	return p, l.token.Load()
}

// waitForHead returns nil once no entry is ahead of l's own, which is then the head of the
// queue. It does not poll. While there are only a few predecessors, it watches the
// deletions in the queue, and removes each predecessor at its first deletion after the
// revision at which it was read, so that a key that is used again is not mistaken for it.
// While there are many, it waits for the nearest one only, and looks again when that is
// gone.
func (l *Lock) waitForHead(ctx context.Context) (err error) {
	c := l.client
	p, revision := l.positionAt()
	ahead := p.ahead
	if revision != 0 && len(ahead) == 0 {
		return nil
	}
	w := c.watches.Again(l.queue()) // from before the entry was put: it misses nothing
	defer func() {
		if err != nil {
			w.Close()
		} else {
			c.watches.Keep(l.queue(), w)
		}
	}()
	for pause := (backoff.Pause{}); revision == 0 || len(ahead) > 0; {
		var unwatched error // why there is no watch any more
		switch {
		case len(ahead) > lookahead:
			w.Close()
			w = nil
			var gone int64
			if gone, err = l.outlast(ctx, ahead[0], revision, p.total > farAway); err != nil {
				return err
			}
			if ahead, revision, err = l.look(ctx, gone); err != nil { // usually none is left
				return err
			}
			p.total = len(ahead)
		case w != nil && revision != 0:
			if ahead, unwatched, err = l.passBy(ctx, w, ahead, revision); err != nil {
				return err
			}
		default: // first the watch, then the look: so nothing is missed in between
			w.Close()
			w, unwatched = c.watches.Open(ctx, watchmux.Target{Key: l.queue(), Below: true, Deletions: true})
			if unwatched == nil && w.Opened == revision {
				continue
			}
			since := int64(0)
			if unwatched == nil {
				since = w.Opened
			}
			if ahead, revision, err = l.look(ctx, since); err != nil {
				return err
			}
			if unwatched == nil && w.Opened > revision {
				// etcd has come back empty or from a backup in between, and the watch would
				// report what was before that.
				unwatched = watchmux.ErrEnded
			}
		}
		if unwatched != nil {
			w.Close()
			w = nil
			if pause.Wait(ctx) != nil {
				return c.interrupted(ctx)
			}
		}
	}
	return nil
}

const (
	// lookahead is how many predecessors a waiter follows one by one. A waiter with more of
	// them follows only the nearest, so that the work of a hand-over does not grow with the
	// number of waiters.
	lookahead = 8
	// farAway is how many predecessors take longer to leave than etcd takes to serve a watch
	// that begins in the past: 100 ms. If they do not, the waiter only notices it later.
	farAway = 200
)

// passBy removes from ahead the entries that are deleted after revision, until none is left
// or the watch has ended; unwatched is why it has.
func (l *Lock) passBy(ctx context.Context, w *watchmux.Watch, ahead []string, revision int64) (_ []string, unwatched, err error) {
	for len(ahead) > 0 {
		answer, ended := w.Next(ctx)
		if ctx.Err() != nil {
			return nil, nil, l.client.interrupted(ctx)
		}
		if ended != nil {
			return ahead, ended, nil
		}
		for _, ev := range answer.Events {
			if ev.Kv.ModRevision <= revision {
				continue
			}
			if string(ev.Kv.Key) == l.key {
				return nil, nil, l.entryDeleted(ctx)
			}
			ahead = slices.DeleteFunc(ahead, func(key string) bool { return key == string(ev.Kv.Key) })
		}
	}
	return nil, nil, nil
}

// outlast blocks until the entry that had key at a revision is gone, or may be. It returns
// the revision of its deletion, 0 if that is not known. late means that there is time for a
// watch that begins at the given revision, which spares a read.
func (l *Lock) outlast(ctx context.Context, key string, revision int64, late bool) (gone int64, err error) {
	c := l.client
	for pause := (backoff.Pause{}); ; late = false {
		what := watchmux.Target{Key: key, Deletions: true}
		if late {
			what.Since = revision
		}
		w, unwatched := c.watches.Open(ctx, what)
		if unwatched != nil || w.Opened < revision || w.Opened > revision && !late {
			since := int64(0)
			if unwatched == nil {
				since = max(revision, w.Opened)
			}
			resp, err := c.store.ReadSince(ctx, since, func() *pb.RangeRequest { return txn.RevisionsOf(key) })
			if err != nil {
				w.Close()
				return 0, err
			}
			stands, now := len(resp.Kvs) > 0 && resp.Kvs[0].CreateRevision <= revision, resp.Header.Revision
			if !stands || now < max(revision, since) { // or etcd has gone back
				w.Close()
				return 0, nil
			}
			revision = now
		}
		if unwatched == nil {
			gone = l.deletion(ctx, w)
		}
		w.Close()
		if gone != 0 {
			return gone, nil
		}
		if pause.Wait(ctx) != nil {
			return 0, c.interrupted(ctx)
		}
	}
}

// deletion waits until w reports a deletion, and returns its revision; 0 if w or ctx ends
// first.
func (l *Lock) deletion(ctx context.Context, w *watchmux.Watch) int64 {
	for {
		answer, err := w.Next(ctx)
		if err != nil {
			return 0
		}
		if n := len(answer.Events); n > 0 {
			return answer.Events[n-1].Kv.ModRevision
		}
	}
}

// look reads which entries are ahead, and returns the revision of that. If since is not 0,
// any member may answer that is not behind it, nor behind the entry. That proves as much as
// a linearizable read: nobody joins ahead, so the head of the queue stays the head until it
// is deleted.
func (l *Lock) look(ctx context.Context, since int64) (ahead []string, revision int64, err error) {
	token := l.token.Load()
	if since != 0 {
		since = max(since, token) // a watch may be that of a member that is behind
	}
	resp, err := l.client.store.ReadSince(ctx, since, func() *pb.RangeRequest { return l.newest(token) })
	if err != nil {
		return nil, 0, err
	}
	ahead, ok := l.predecessors(resp.Kvs, token)
	if !ok {
		return nil, 0, l.entryDeleted(ctx)
	}
	return ahead, resp.Header.Revision, nil
}

// predecessors returns what is ahead, given a list of entries, the newest first. ok is
// false if the list does not begin with l's own entry.
func (l *Lock) predecessors(kvs []*mvccpb.KeyValue, token int64) (ahead []string, ok bool) {
	if len(kvs) == 0 || string(kvs[0].Key) != l.key || kvs[0].CreateRevision != token {
		return nil, false
	}
	for _, kv := range kvs[1:] {
		ahead = append(ahead, string(kv.Key))
	}
	return ahead, true
}

// newest returns a read of the newest entries of the queue: l's own, and up to one more
// than lookahead ahead of it. If revision is not 0, none is newer than that.
func (l *Lock) newest(revision int64) *pb.RangeRequest {
	read := txn.AllBelow(l.queue())
	read.KeysOnly, read.MaxCreateRevision = true, revision
	read.SortTarget, read.SortOrder, read.Limit = pb.RangeRequest_CREATE, pb.RangeRequest_DESCEND, lookahead+2
	return read
}

// queue returns the prefix of the keys of the name's queue.
func (l *Lock) queue() string { return l.client.keys.Queue(l.name) }

// hold makes a queued lock whose entry is the head of the queue a held one, unless it has
// ended meanwhile.
func (l *Lock) hold() error {
	alive := l.session.check() == nil
	l.mu.Lock()
	ok := alive && l.phase == queued
	if ok {
		l.phase = held
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
