package locker

import (
	"context"
	"slices"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"

	"github.com/jagregory/locker/v2/internal/backoff"
	"github.com/jagregory/locker/v2/internal/key"
	"github.com/jagregory/locker/v2/internal/watchmux"
)

const (
	// lookahead is how many predecessors a waiter follows one by one, beyond those that it may
	// have when it holds. One with more of them waits for a few of them only, so that the work
	// of a hand-over does not grow with the number of waiters.
	lookahead = 8
	// farAway is how many predecessors take longer to leave than etcd takes to serve a watch
	// that begins in the past: 100 ms. If they do not, the waiter only notices it later.
	farAway = 200
	// mostWatched is how many predecessors are watched one by one.
	mostWatched = 16
)

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

// view is what a waiter knows of the queue of one entry.
type view struct {
	*Lock
	entry    *entry
	key      string          // of the entry, once it waits
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
	v := &view{Lock: l, entry: e}
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

// sight is how many predecessors an entry reads: one more than it follows.
func (e *entry) sight() int { return int(e.kind()) + lookahead }

// enough is how many predecessors keep an entry from holding while all of them stay.
func (e *entry) enough() int { return max(1, int(e.kind())) }

// blockers returns enough of the predecessors: the nearest, which usually leave last. Shared
// ones leave in any order, so of those the farthest that are known: when one has left, most
// of the nearer ones have as well.
func (v *view) blockers() []string {
	n := min(len(v.ahead), v.entry.enough())
	if v.client.keys.KindOf(v.ahead[0]) == key.Shared {
		return v.ahead[len(v.ahead)-n:]
	}
	return v.ahead[:n]
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
	return v.entry.kind() != key.Shared && (!v.more || v.entry.enough() > mostWatched)
}

// wait returns nil once the entry holds. It does not poll. While there are only a few
// predecessors, it watches the deletions in the queue. While there are many, it waits for
// the blockers only, and looks again when one of them is gone.
func (v *view) wait(ctx context.Context) error {
	v.key = v.Lock.key(v.entry)
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
	if unwatched != nil {
		return unwatched, v.look(ctx, since)
	}
	return v.lookBeside(ctx, since)
}

// lookBeside looks at the queue beside the watch, which has reached a revision.
func (v *view) lookBeside(ctx context.Context, since int64) (unwatched, err error) {
	if err := v.look(ctx, since); err != nil {
		return nil, err
	}
	if since > v.revision {
		// etcd has come back empty or from a backup in between, and the watch would report
		// what was before that.
		return watchmux.ErrEnded, nil
	}
	return nil, nil
}

// passBy removes from the keys ahead those that are deleted, until the entry holds or the
// watch has ended; unwatched is why it has. Where others are ahead as well, it looks again
// when too few are left to block the entry.
func (v *view) passBy(ctx context.Context) (unwatched, err error) {
	for !v.holds() {
		if v.more && len(v.ahead) < v.entry.enough() {
			return v.lookBeside(ctx, v.watch.Reached)
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

// strike removes from the keys ahead those that were deleted, and moves the revision of the
// view on. It skips what was before that revision: a key that is used again is another
// predecessor. own reports that the lock's own entry was deleted.
func (v *view) strike(events []*mvccpb.Event) (own bool) {
	for _, ev := range events {
		if ev.Kv.ModRevision <= v.revision {
			continue
		}
		if string(ev.Kv.Key) == v.key {
			return true
		}
		v.ahead = slices.DeleteFunc(v.ahead, func(k string) bool { return k == string(ev.Kv.Key) })
	}
	v.revision = max(v.revision, v.watch.Reached)
	return false
}

// outlast waits until one of the blockers is gone, and looks again. Usually the entry holds
// by then.
func (v *view) outlast(ctx context.Context) error {
	v.watch.Close()
	v.watch = nil
	for pause := (backoff.Pause{}); ; {
		gone, since, err := v.watchBlockers(ctx)
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

// watchBlockers watches the blockers until one of them is gone, or the watch has ended. since
// is the revision of its deletion, 0 if that is not known. First the watch, then a read of
// their keys; that is not needed if nothing has changed, or if the watch begins at the
// revision of the view.
func (v *view) watchBlockers(ctx context.Context) (gone bool, since int64, err error) {
	blockers := v.blockers()
	targets := make([]watchmux.Target, len(blockers))
	for i, k := range blockers {
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
		created, now, err := v.created(ctx, blockers, since)
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
	resp, err := v.client.store.ReadSince(ctx, since, func() []*pb.RangeRequest { return v.reads(v.entry, v.key, token) })
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
