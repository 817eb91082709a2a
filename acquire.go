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
		l.session.drop(l)
		_ = pause.Wait(ctx) // if ctx ends, the next attempt reports that
		next := c.newLock(ctx, l.name, l.value, nil)
		c.lines.Replace(l.name, next)
		return next, nil
	}
	if own := c.pool.holding(err); own != nil {
		if err = l.awaitEnd(ctx, own); err == nil {
			return l, nil
		}
	}
	l.fail(err)
	return nil, err
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
	l.ctx, l.cancel = context.WithCancelCause(context.WithoutCancel(ctx))
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
			p.total = int32(list.Count) - 1
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

// waitForHead returns nil once no entry is ahead of l's own, which is then the head of the
// queue. It does not poll. While there are only a few predecessors, it watches the
// deletions in the queue. While there are many, it waits for the nearest one only, and looks
// again when that is gone.
func (l *Lock) waitForHead(ctx context.Context) error {
	v := l.firstView()
	if v.isHead() {
		return nil
	}
	watches := l.client.watches
	v.watch = watches.Again(l.queue()) // from before the entry was put: it misses nothing
	for pause := (backoff.Pause{}); !v.isHead(); {
		var unwatched, err error
		switch {
		case len(v.ahead) > lookahead:
			err = v.outlast(ctx)
		case v.watch != nil && v.revision != 0:
			unwatched, err = v.passBy(ctx)
		default:
			unwatched, err = v.open(ctx)
		}
		if err == nil && unwatched == nil {
			continue
		}
		v.watch.Close()
		v.watch = nil
		if err != nil {
			return err
		}
		if pause.Wait(ctx) != nil {
			return l.client.interrupted(ctx)
		}
	}
	watches.Keep(l.queue(), v.watch)
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

// view is what a waiter knows of its queue.
type view struct {
	*Lock
	ahead    []string        // the keys ahead at revision, the nearest first; if more than lookahead, there may be others
	revision int64           // 0 if they are not known
	replay   bool            // there is time for a watch that begins at revision
	watch    *watchmux.Watch // of the queue, from revision on or before; nil if there is none
}

// firstView returns what the put of the entry has shown.
func (l *Lock) firstView() *view {
	l.mu.Lock()
	defer l.mu.Unlock()
	if !l.placed {
		return &view{Lock: l}
	}
	return &view{Lock: l, ahead: slices.Clone(l.ahead), revision: l.token.Load(), replay: l.total > farAway}
}

// isHead reports whether nothing is ahead.
func (v *view) isHead() bool { return v.revision != 0 && len(v.ahead) == 0 }

// open opens the watch of the queue and then looks at it, so that nothing is missed in
// between. unwatched is why there is no watch.
func (v *view) open(ctx context.Context) (unwatched, err error) {
	v.watch.Close()
	v.watch, unwatched = v.client.watches.Open(ctx, watchmux.Target{Key: v.queue(), Below: true, Deletions: true})
	since := int64(0)
	if unwatched == nil {
		if since = v.watch.Opened; since == v.revision {
			return nil, nil
		}
	}
	if err := v.look(ctx, since); err != nil {
		return nil, err
	}
	if since > v.revision {
		// etcd has come back empty or from a backup in between, and the watch would report
		// what was before that.
		return watchmux.ErrEnded, nil
	}
	return unwatched, nil
}

// passBy removes from the keys ahead those that are deleted, until none is left or the watch
// has ended; unwatched is why it has.
func (v *view) passBy(ctx context.Context) (unwatched, err error) {
	for len(v.ahead) > 0 {
		answer, ended := v.watch.Next(ctx)
		switch {
		case ctx.Err() != nil:
			return nil, v.client.interrupted(ctx)
		case ended != nil:
			return ended, nil
		case v.strike(answer.Events):
			return nil, v.entryDeleted(ctx)
		}
	}
	return nil, nil
}

// strike removes from the keys ahead those that were deleted. It skips what was before the
// revision at which they were read: a key that is used again is another predecessor. own
// reports that the lock's own entry was deleted.
func (v *view) strike(events []*mvccpb.Event) (own bool) {
	for _, ev := range events {
		if ev.Kv.ModRevision <= v.revision {
			continue
		}
		if string(ev.Kv.Key) == v.key {
			return true
		}
		v.ahead = slices.DeleteFunc(v.ahead, func(key string) bool { return key == string(ev.Kv.Key) })
	}
	return false
}

// outlast waits until the nearest predecessor is gone, and looks again. Usually it was the
// head by then, and none is left.
func (v *view) outlast(ctx context.Context) error {
	v.watch.Close()
	v.watch = nil
	for pause := (backoff.Pause{}); ; {
		gone, since, err := v.watchNearest(ctx)
		v.replay = false
		switch {
		case err != nil:
			return err
		case gone:
			return v.look(ctx, since)
		case pause.Wait(ctx) != nil:
			return v.client.interrupted(ctx)
		}
	}
}

// watchNearest watches the nearest predecessor until it is gone, or the watch has ended.
// since is the revision of its deletion, 0 if that is not known. First the watch, then a
// read of its key; that is not needed if nothing has changed, or if the watch begins at the
// revision of the view.
func (v *view) watchNearest(ctx context.Context) (gone bool, since int64, err error) {
	what := watchmux.Target{Key: v.ahead[0], Deletions: true}
	if v.replay {
		what.Since = v.revision
	}
	w, unwatched := v.client.watches.Open(ctx, what)
	defer func() { w.Close() }() // there may be none
	if unwatched != nil || w.Opened < v.revision || w.Opened > v.revision && !v.replay {
		if unwatched == nil {
			since = max(v.revision, w.Opened)
		}
		resp, err := v.client.store.ReadSince(ctx, since, func() *pb.RangeRequest { return txn.RevisionsOf(what.Key) })
		if err != nil {
			return false, 0, err
		}
		stands, now := len(resp.Kvs) > 0 && resp.Kvs[0].CreateRevision <= v.revision, resp.Header.Revision
		if !stands || now < max(v.revision, since) { // or etcd has gone back
			return true, 0, nil
		}
		v.revision = now
	}
	for unwatched == nil {
		var answer *pb.WatchResponse
		if answer, unwatched = w.Next(ctx); unwatched == nil && len(answer.Events) > 0 {
			return true, answer.Events[len(answer.Events)-1].Kv.ModRevision, nil
		}
	}
	return false, 0, nil
}

// look reads which entries are ahead: now, or if since is not 0, at some revision that is
// not before it. That proves as much: nobody joins ahead, so who is the head of the queue
// stays the head.
func (v *view) look(ctx context.Context, since int64) error {
	token := v.token.Load()
	if since != 0 {
		since = max(since, token) // a watch may be that of a member that is behind
	}
	resp, err := v.client.store.ReadSince(ctx, since, func() *pb.RangeRequest { return v.newest(token) })
	if err != nil {
		return err
	}
	ahead, ok := v.predecessors(resp.Kvs, token)
	if !ok {
		return v.entryDeleted(ctx)
	}
	v.ahead, v.revision = ahead, resp.Header.Revision
	return nil
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
