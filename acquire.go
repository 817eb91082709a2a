package locker

import (
	"cmp"
	"context"
	"errors"
	"iter"
	"slices"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"
	"google.golang.org/grpc/connectivity"

	"github.com/jagregory/locker/v2/internal/backoff"
	"github.com/jagregory/locker/v2/internal/key"
	"github.com/jagregory/locker/v2/internal/line"
	"github.com/jagregory/locker/v2/internal/tasks"
	"github.com/jagregory/locker/v2/internal/txn"
	"github.com/jagregory/locker/v2/internal/watchmux"
)

// prepare begins a call of Lock: it checks the arguments, counts in the call, and returns a
// lock for acquire.
func (c *Client) prepare(ctx context.Context, name, value string, opts []LockOption) (*Lock, error) {
	cfg, err := c.checkLock(ctx, name, value, opts)
	if err != nil {
		return nil, err
	}
	if ctx.Err() != nil {
		return nil, context.Cause(ctx)
	}
	if err := c.beginTask(); err != nil {
		return nil, err
	}
	entries := []entry{newEntry(cfg.name, cfg.value, cfg.kind())}
	for _, other := range cfg.others {
		entries = append(entries, newEntry(other.name, other.value, other.kind()))
	}
	return c.newLock(ctx, entries, cfg.session), nil
}

// acquire is Lock and, with try, TryLock. It returns the lock that is held, which is another
// one than l if a session was lost on the way.
func (l *Lock) acquire(ctx context.Context, try bool) (*Lock, error) {
	c := l.client
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
		l.session.drop(l)
		_ = pause.Wait(ctx) // if ctx ends, the next attempt reports that
		var entries []entry
		for i := range l.entries {
			e := &l.entries[i]
			entries = append(entries, newEntry(e.place.Name, e.value, e.kind()))
		}
		next := c.newLock(ctx, entries, nil)
		c.lines.Replace(l, next)
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
		Holding: func(kinds iter.Seq[int16]) int {
			return holding(func(yield func(key.Kind) bool) {
				for kind := range kinds {
					if !yield(key.Kind(kind)) {
						return
					}
				}
			})
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
	return c.interrupted(ended)
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
			if err := l.refusal(resp); err != nil {
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

// joining returns the transaction that puts the entries at the end of their queues, and
// reads what is ahead of them. In a flat transaction it puts the entry only if it holds then,
// and so has nothing to read, unless somebody has waited for the name lately: then it is
// probably not free.
func (l *Lock) joining() txn.Txn {
	t := l.writes(l.each(l.putAndRead), l.each(func(e *entry) []*pb.RequestOp { return ops(l.own(e)) }))
	for _, k := range l.keys() {
		t.When = append(t.When, txn.CmpCreate(k, 0))
	}
	if first := &l.entries[0]; len(l.entries) == 1 && first.kind() <= key.Exclusive && !l.client.watches.Keeps(l.queue(first)) {
		t.Flat = &txn.Flat{When: l.vacant(first, 0), Then: []*pb.RequestOp{l.put(first)}}
	}
	return t
}

// taking returns the transaction that puts the entries if all of them hold then, given that
// this was so at the revision read, if that is not 0; otherwise it reads why not. Those ahead
// of an entry that is limited to more than one cannot be counted by compares.
func (l *Lock) taking(read int64) txn.Txn {
	puts := l.each(func(e *entry) []*pb.RequestOp { return []*pb.RequestOp{l.put(e)} })
	t := l.writes(puts, l.each(func(e *entry) []*pb.RequestOp {
		reads := ops(l.own(e), l.oldest(e))
		if e.kind() != key.Exclusive { // otherwise, whatever is ahead is in the way
			reads = append(reads, ops(l.reads(e, 0)...)...)
		}
		return reads
	}))
	for i := range l.entries {
		t.When = append(t.When, l.vacant(&l.entries[i], read)...)
	}
	return t
}

// writes returns a transaction that writes to the queues of the lock. If it is refused, it
// reads the session's record first. What writes to several queues is sent alone.
func (l *Lock) writes(then, otherwise []*pb.RequestOp) txn.Txn {
	t := txn.Txn{Then: then, Otherwise: append(ops(txn.RevisionsOf(l.session.record())), otherwise...)}
	t.Name, t.Shared = l.group()
	return t
}

// group returns with which other writes one of the lock may share a transaction.
func (l *Lock) group() (name string, shared bool) {
	if len(l.entries) > 1 {
		return "", false
	}
	return l.name(), l.entries[0].kind() == key.Shared
}

// each returns operations for each of the entries. Those of a single one stay as they are.
// Several go into a transaction each, because etcd limits the operations on one level.
func (l *Lock) each(operations func(*entry) []*pb.RequestOp) (all []*pb.RequestOp) {
	if len(l.entries) == 1 {
		return operations(&l.entries[0])
	}
	for i := range l.entries {
		all = append(all, txn.OpTxn(&pb.TxnRequest{Success: operations(&l.entries[i])}))
	}
	return all
}

// part returns those of the responses to the operations of each that are about the i-th
// entry.
func (l *Lock) part(responses []*pb.ResponseOp, i int) []*pb.ResponseOp {
	if len(l.entries) == 1 {
		return responses
	}
	return responses[i].GetResponseTxn().GetResponses()
}

// ops makes reads parts of a transaction.
func ops(reads ...*pb.RangeRequest) []*pb.RequestOp {
	all := make([]*pb.RequestOp, len(reads))
	for i, read := range reads {
		all[i] = txn.OpRange(read)
	}
	return all
}

// put returns the put of an entry.
func (l *Lock) put(e *entry) *pb.RequestOp { return txn.OpPut(l.key(e), e.value, l.session.lease) }

// putAndRead returns the put of an entry, and the reads that show what is ahead of it.
func (l *Lock) putAndRead(e *entry) []*pb.RequestOp {
	return append([]*pb.RequestOp{l.put(e)}, ops(l.reads(e, 0)...)...)
}

// vacant returns the compares that an entry holds if it is put now, given that it would have
// held at the revision read; 0 stands for an empty queue.
func (l *Lock) vacant(e *entry, read int64) []*pb.Compare {
	keys, all := l.client.keys, l.client.keys.All(e.place.Name)
	if e.kind() == key.Exclusive {
		return []*pb.Compare{txn.CmpNone(all.From, all.To)}
	}
	compares := []*pb.Compare{txn.CmpCreate(l.key(e), 0)} // a repeated put must not replace the first
	if e.kind() != key.Shared {
		return append(compares, txn.CmpNoneSince(all.From, all.To, read))
	}
	for _, r := range keys.Unshared(e.place.Name) {
		compares = append(compares, txn.CmpNone(r.From, r.To))
	}
	return compares
}

// own returns a read of an entry itself.
func (l *Lock) own(e *entry) *pb.RangeRequest { return txn.RevisionsOf(l.key(e)) }

// oldest returns a read of the oldest entry in the queue of an entry.
func (l *Lock) oldest(e *entry) *pb.RangeRequest {
	all := l.client.keys.All(e.place.Name)
	return txn.Oldest(all.From, all.To)
}

// reads returns reads of what an entry waits for: of the entry itself and then, the newest
// first, of those ahead. A shared one waits for those that are not shared, one after the
// other. If revision is not 0, nothing is read that is newer.
func (l *Lock) reads(e *entry, revision int64) (reads []*pb.RangeRequest) {
	if e.kind() != key.Shared {
		all := l.client.keys.All(e.place.Name)
		return append(reads, txn.Newest(all.From, all.To, 1+e.sight(), revision))
	}
	reads = append(reads, l.own(e))
	for _, r := range l.client.keys.Unshared(e.place.Name) {
		reads = append(reads, txn.Newest(r.From, r.To, 1, revision))
	}
	return reads
}

// found evaluates the reads of the own entries in the answer to a refused put. created is the
// create revision of entries that the same put has made before; strays were there before it.
func (l *Lock) found(resp *pb.TxnResponse) (created int64, strays []stray) {
	for i := range l.entries {
		for _, kv := range l.part(resp.Responses[1:], i)[0].GetResponseRange().Kvs {
			if kv.CreateRevision > l.since {
				created = max(created, kv.CreateRevision)
			} else {
				strays = append(strays, stray{l.entries[i].place.Name, string(kv.Key), kv.CreateRevision})
			}
		}
	}
	return created, strays
}

// refusal returns the error of TryLock if, by what taking has read, one of the entries would
// not hold.
func (l *Lock) refusal(resp *pb.TxnResponse) error {
	for i := range l.entries {
		e, read := &l.entries[i], l.part(resp.Responses[1:], i)
		oldest := read[1].GetResponseRange().Kvs
		ahead, _ := newestFirst(read[2:])
		if len(oldest) > 0 && (e.kind() == key.Exclusive || !free(e.kind(), l.kinds(ahead))) {
			return &LockedError{Holder: holderOf(l.client.keys, e.place.Name, oldest[0])}
		}
	}
	return nil
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
				positions[i] = &position{ahead, reads[len(reads)-1].GetResponseRange().Count}
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
}

// waitForHead returns nil once all of the entries hold by the rule: each is at the head of
// its queue, alone or in company. It waits for one after the other, since an entry that holds
// does so until it is deleted; in the end it makes sure that none was.
func (l *Lock) waitForHead(ctx context.Context) error {
	waited := int64(0)
	for i := range l.entries {
		v := l.firstView(&l.entries[i])
		if v.holds() {
			continue
		}
		if err := v.wait(ctx); err != nil {
			return err
		}
		waited = max(waited, v.revision)
	}
	if waited == 0 || len(l.entries) == 1 {
		return nil
	}
	return l.verify(ctx, waited)
}

// verify returns an error if one of the entries is not there any more, at the revision or
// later.
func (l *Lock) verify(ctx context.Context, revision int64) error {
	created, _, err := l.created(ctx, l.keys(), revision)
	if err != nil {
		return err
	}
	if slices.ContainsFunc(created, func(revision int64) bool { return revision != l.token.Load() }) {
		return l.entryDeleted(ctx)
	}
	return nil
}

// created reads the create revisions of keys, 0 for one that does not exist, at a revision
// now that is not before since, if that is not 0.
func (l *Lock) created(ctx context.Context, keys []string, since int64) (revisions []int64, now int64, err error) {
	resp, err := l.client.store.ReadSince(ctx, since, func() (reads []*pb.RangeRequest) {
		for _, k := range keys {
			reads = append(reads, txn.RevisionsOf(k))
		}
		return reads
	})
	if err != nil {
		return nil, 0, err
	}
	revisions = make([]int64, len(keys))
	for i := range keys {
		if kvs := txn.Found(resp, i); len(kvs) > 0 {
			revisions[i] = kvs[0].CreateRevision
		}
	}
	return revisions, resp.Header.Revision, nil
}

const (
	// lookahead is how many more predecessors than it may have when it holds a waiter follows
	// one by one. One with more of them follows only the nearest, so that the work of a
	// hand-over does not grow with the number of waiters.
	lookahead = 8
	// farAway is how many predecessors take longer to leave than etcd takes to serve a watch
	// that begins in the past: 100 ms. If they do not, the waiter only notices it later.
	farAway = 200
	// mostWatched is how many predecessors are watched one by one.
	mostWatched = 16
)

// sight is how many predecessors an entry reads: one more than it follows.
func (e *entry) sight() int { return int(e.kind()) + lookahead }

// blockers is so many of the nearest predecessors that the entry does not hold while all of
// them stay.
func (e *entry) blockers() int { return max(1, int(e.kind())) }

// view is what a waiter knows of the queue of one entry.
type view struct {
	*Lock
	entry    *entry
	key      string
	ahead    []string        // the keys ahead at revision that it waits for, the nearest first
	more     bool            // others may be ahead of those
	revision int64           // 0 if they are not known
	replay   bool            // there is time for a watch that begins at revision
	watch    *watchmux.Watch // of the queue, from revision on or before; nil if there is none
}

// firstView returns what the put of an entry has shown.
func (l *Lock) firstView(e *entry) *view {
	l.mu.Lock()
	defer l.mu.Unlock()
	v := &view{Lock: l, entry: e, key: l.key(e)}
	if p := e.position; p != nil {
		v.see(slices.Clone(p.ahead), l.token.Load())
		v.replay = p.total > farAway
	}
	return v
}

// see notes which keys are ahead at a revision.
func (v *view) see(ahead []string, revision int64) {
	v.ahead, v.more, v.revision = ahead, len(ahead) >= v.entry.sight(), revision
}

// holds reports whether the entry holds by the rule.
func (v *view) holds() bool {
	return v.revision != 0 && !v.more && free(v.entry.kind(), v.kinds(v.ahead))
}

// follows reports whether the waiter follows its predecessors one by one: all those that it
// waits for, or, if they are too many to be watched, those of the view. Otherwise it waits
// until one of the blockers is gone, and looks again. A shared entry always does that: what
// is not shared goes one by one, and a watch of the queue would show all the shared ones.
func (v *view) follows() bool {
	return v.entry.kind() != key.Shared && (!v.more || v.entry.blockers() > mostWatched)
}

// wait returns nil once the entry holds. It does not poll. While there are only a few
// predecessors, it watches the deletions in the queue. While there are many, it waits for
// the nearest ones only, and looks again when one of them is gone.
func (v *view) wait(ctx context.Context) error {
	watches, queue := v.client.watches, v.queue(v.entry)
	if v.follows() && v.revision != 0 {
		v.watch = watches.Again(queue, v.revision) // from before the entry was put: it misses nothing
	}
	for pause := (backoff.Pause{}); !v.holds(); {
		var unwatched, err error
		switch {
		case v.revision != 0 && !v.follows():
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
			return v.client.interrupted(ctx)
		}
	}
	watches.Keep(queue, v.watch)
	return nil
}

// open opens the watch of the queue, if it is to be followed, and then looks at the queue, so
// that nothing is missed in between. unwatched is why there is no watch.
func (v *view) open(ctx context.Context) (unwatched, err error) {
	v.watch.Close()
	if v.watch = nil; v.entry.kind() == key.Shared {
		return nil, v.look(ctx, 0)
	}
	v.watch, unwatched = v.client.watches.Open(ctx, watchmux.Target{Key: v.queue(v.entry), Below: true, Deletions: true})
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

// passBy removes from the keys ahead those that are deleted, until the entry holds or the
// watch has ended; unwatched is why it has. Where others are ahead as well, it looks again
// when too few are left to block the entry.
func (v *view) passBy(ctx context.Context) (unwatched, err error) {
	for !v.holds() {
		if v.more && len(v.ahead) < v.entry.blockers() {
			return nil, v.look(ctx, v.watch.Reached)
		}
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

// outlast waits until one of the blockers is gone, and looks again. Usually the entry holds
// by then.
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

// watchNearest watches the blockers, which are the nearest predecessors, until one of them is
// gone, or the watch has ended. since is the revision of its deletion, 0 if that is not known.
// First the watch, then a read of their keys; that is not needed if nothing has changed, or if
// the watch begins at the revision of the view.
func (v *view) watchNearest(ctx context.Context) (gone bool, since int64, err error) {
	nearest := v.ahead[:min(len(v.ahead), v.entry.blockers())]
	targets := make([]watchmux.Target, len(nearest))
	for i, k := range nearest {
		targets[i] = watchmux.Target{Key: k, Deletions: true}
		if v.replay {
			targets[i].Since = v.revision
		}
	}
	watches, unwatched := v.client.watches.OpenAll(ctx, targets)
	defer func() { watchmux.CloseAll(watches) }() // there may be none
	complete := unwatched == nil
	for _, w := range watches {
		since = max(since, w.Opened)
		complete = complete && (w.Opened == v.revision || w.Opened > v.revision && v.replay)
	}
	if !complete {
		if unwatched == nil {
			since = max(since, v.revision)
		}
		created, now, err := v.created(ctx, nearest, since)
		if err != nil {
			return false, 0, err
		}
		left := slices.ContainsFunc(created, func(revision int64) bool { return revision == 0 || revision > v.revision })
		if left || now < max(v.revision, since) { // or etcd has gone back
			return true, 0, nil
		}
		v.revision = now
	}
	for unwatched == nil {
		var answer *pb.WatchResponse
		if answer, unwatched = watchmux.NextOf(ctx, watches); unwatched == nil && len(answer.Events) > 0 {
			return true, answer.Events[len(answer.Events)-1].Kv.ModRevision, nil
		}
	}
	return false, 0, nil
}

// look reads which entries are ahead: now, or if since is not 0, at some revision that is
// not before it. That proves as much: nobody joins ahead, so an entry that holds keeps on
// holding.
func (v *view) look(ctx context.Context, since int64) error {
	token := v.token.Load()
	if since != 0 {
		since = max(since, token) // a watch may be that of a member that is behind
	}
	resp, err := v.client.store.ReadSince(ctx, since, func() []*pb.RangeRequest { return v.reads(v.entry, token) })
	if err != nil {
		return err
	}
	ahead, ok := v.predecessors(v.key, resp.Responses, token)
	if !ok {
		return v.entryDeleted(ctx)
	}
	v.see(ahead, resp.Header.Revision)
	return nil
}

// predecessors returns the keys that are ahead, the nearest first, given what the reads of an
// entry have returned. ok is false if the entry itself is not there.
func (l *Lock) predecessors(own string, reads []*pb.ResponseOp, token int64) (ahead []string, ok bool) {
	keys, created := newestFirst(reads)
	if len(keys) == 0 || keys[0] != own || created != token {
		return nil, false
	}
	return keys[1:], true
}

// newestFirst returns the keys that reads have returned, the newest first, and the create
// revision of that one.
func newestFirst(reads []*pb.ResponseOp) (keys []string, newest int64) {
	var kvs []*mvccpb.KeyValue
	for _, read := range reads {
		kvs = append(kvs, read.GetResponseRange().Kvs...)
	}
	slices.SortStableFunc(kvs, func(a, b *mvccpb.KeyValue) int { return cmp.Compare(b.CreateRevision, a.CreateRevision) })
	for _, kv := range kvs {
		keys = append(keys, string(kv.Key))
	}
	if len(kvs) > 0 {
		newest = kvs[0].CreateRevision
	}
	return keys, newest
}

// kinds returns the kinds of entries, given their keys.
func (l *Lock) kinds(keys []string) iter.Seq[key.Kind] {
	return func(yield func(key.Kind) bool) {
		for _, k := range keys {
			if !yield(l.client.keys.KindOf(k)) {
				return
			}
		}
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
