package locker

import (
	"context"
	"slices"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"

	"github.com/jagregory/locker/v2/internal/backoff"
	"github.com/jagregory/locker/v2/internal/txn"
	"github.com/jagregory/locker/v2/internal/watchmux"
)

// waitForHead returns nil once no entry is ahead of l's own any more. It does not
// poll: it follows the deletions in the short range just ahead of its own entry,
// which it watches too. The list says which incarnations of the keys are meant,
// so that a key that has been used again is not taken for the entry ahead.
func (l *Lock) waitForHead(ctx context.Context) (err error) {
	c := l.client
	ahead, revision := l.positions()
	if revision != 0 && len(ahead) == 0 {
		return nil
	}
	// A watch that was there before the entry misses nothing: no need to look.
	w := c.watches.Again(l.queue())
	defer func() {
		if err == nil && w != nil && w.Key == l.queue() {
			c.watches.Keep(w)
		} else {
			w.Close()
		}
	}()
	for pause := (backoff.Pause{}); revision == 0 || len(ahead) > 0; {
		what := l.horizon(ahead)
		if w != nil && w.Target == what && revision != 0 {
			var alive bool
			if ahead, alive, err = l.passBy(ctx, w, ahead, revision); err != nil {
				return err
			}
			if alive {
				pause = backoff.Pause{}
				continue
			}
			if pause.Wait(ctx) != nil {
				return c.interrupted(ctx)
			}
		}
		// First the watch, then the look: so nothing is missed in between.
		w.Close()
		var unwatched error
		w, unwatched = c.watches.Open(ctx, what)
		if ahead, revision, err = l.look(ctx); err != nil {
			return err
		}
		if unwatched == nil && w.Opened > revision {
			// etcd has come back empty or from a backup in between, and what the watch tells
			// would be of what was before.
			w.Close()
			w, unwatched = nil, watchmux.ErrEnded
		}
		if unwatched != nil && pause.Wait(ctx) != nil {
			return c.interrupted(ctx)
		}
	}
	return nil
}

// lookahead is how many entries ahead of its own a waiter follows one by one. A waiter
// with more ahead of it watches only the farthest of the nearest, so that the
// work of a hand-over does not grow with the number of waiters.
const lookahead = 8

// horizon returns what to watch.
func (l *Lock) horizon(ahead []predecessor) watchmux.Target {
	if len(ahead) > lookahead {
		return watchmux.Target{Key: ahead[lookahead].key, Deletions: true}
	}
	return watchmux.Target{Key: l.queue(), Below: true, Deletions: true}
}

// passBy removes from ahead what is deleted after revision, until nothing is left
// of it or something else has to be watched; alive is false if the watch has ended.
func (l *Lock) passBy(ctx context.Context, w *watchmux.Watch, ahead []predecessor, revision int64) (_ []predecessor, alive bool, err error) {
	many := len(ahead) > lookahead
	for len(ahead) > 0 && many == (len(ahead) > lookahead) {
		answer, ended := w.Next(ctx)
		if ctx.Err() != nil {
			return nil, false, l.client.interrupted(ctx)
		}
		if ended != nil {
			return ahead, false, nil
		}
		for _, ev := range answer.Events {
			if ev.Kv.ModRevision <= revision {
				continue
			}
			if string(ev.Kv.Key) == l.key {
				return nil, false, l.entryDeleted(ctx)
			}
			ahead = slices.DeleteFunc(ahead, func(p predecessor) bool { return p.key == string(ev.Kv.Key) })
		}
	}
	return ahead, true, nil
}

// look reads which entries are ahead now, and at which revision that is so.
func (l *Lock) look(ctx context.Context) (ahead []predecessor, revision int64, err error) {
	c := l.client
	token := l.token.Load()
	resp, err := c.store.Read(ctx, l.newest(token))
	if err != nil {
		return nil, 0, err
	}
	ahead, ok := l.predecessors(resp.Kvs, token)
	if !ok {
		return nil, 0, l.entryDeleted(ctx)
	}
	return ahead, resp.Header.Revision, nil
}

// predecessor is another entry in the queue.
type predecessor struct {
	key   string
	token int64
}

// predecessors reads a list of entries, the newest first, that begins with l's own.
func (l *Lock) predecessors(kvs []*mvccpb.KeyValue, token int64) (ahead []predecessor, ok bool) {
	if len(kvs) == 0 || string(kvs[0].Key) != l.key || kvs[0].CreateRevision != token {
		return nil, false
	}
	for _, kv := range kvs[1:] {
		ahead = append(ahead, predecessor{string(kv.Key), kv.CreateRevision})
	}
	return ahead, true
}

// newest reads the newest entries of the queue: the own one and up to one more ahead
// of it than are lookahead; none is newer than revision, if that is not 0.
func (l *Lock) newest(revision int64) *pb.RangeRequest {
	read := txn.AllBelow(l.queue())
	read.KeysOnly, read.MaxCreateRevision = true, revision
	read.SortTarget, read.SortOrder, read.Limit = pb.RangeRequest_CREATE, pb.RangeRequest_DESCEND, lookahead+2
	return read
}

func (l *Lock) queue() string { return l.client.keys.Queue(l.name) }
