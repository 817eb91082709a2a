package locker

import (
	"context"
	"slices"

	"go.etcd.io/etcd/api/v3/mvccpb"
	clientv3 "go.etcd.io/etcd/client/v3"
)

// awaitTurn returns nil once no entry is ahead of l's own any more. It does not
// poll: it follows the deletions in the short range just ahead of its own entry,
// which it watches too. The list says which incarnations of the keys are meant,
// so that a key that has been used again is not taken for the entry ahead.
func (l *Lock) awaitTurn(ctx context.Context, ahead []rival) error {
	c := l.session.client
	for pause := (backoff{}); len(ahead) > 0; {
		watched, opts := c.keys.Queue(l.name), []clientv3.OpOption{clientv3.WithFilterPut(), clientv3.WithPrefix()}
		if len(ahead) > near {
			watched, opts = ahead[near].key, opts[:1]
		}
		w, unwatched := c.feed.open(ctx, watched, opts...)
		now, revision, err := l.look(ctx)
		switch {
		case err != nil || unwatched != nil:
		case len(now) > near && now[near].key != watched, len(now) <= near && len(ahead) > near:
			// Those ahead have moved on meanwhile: watch what is ahead now.
		default:
			now, err = l.passBy(ctx, w, now, revision)
		}
		if unwatched == nil {
			w.close()
		}
		if err == nil && ctx.Err() != nil {
			err = c.interrupted(ctx)
		}
		if err != nil {
			return err
		}
		if unwatched != nil || len(now) > 0 && slices.Equal(now, ahead) {
			if pause.wait(ctx) != nil {
				return c.interrupted(ctx)
			}
		}
		ahead = now
	}
	return nil
}

// passBy removes from ahead what is deleted after revision, until nothing is left
// of it, the farthest of many has gone, or the watch has ended.
func (l *Lock) passBy(ctx context.Context, w *watch, ahead []rival, revision int64) ([]rival, error) {
	many := len(ahead) > near
	for len(ahead) > 0 && (!many || len(ahead) > near) {
		answer, ok := <-w.events
		if !ok || answer.Err() != nil {
			break
		}
		for _, ev := range answer.Events {
			if ev.Kv.ModRevision <= revision {
				continue
			}
			if string(ev.Kv.Key) == l.key {
				return nil, l.gone(ctx)
			}
			ahead = slices.DeleteFunc(ahead, func(r rival) bool { return r.key == string(ev.Kv.Key) })
		}
	}
	return ahead, nil
}

// look reads which entries are ahead now, and at which revision that is so.
func (l *Lock) look(ctx context.Context) (ahead []rival, revision int64, err error) {
	c := l.session.client
	token := l.token.Load()
	resp, err := c.read(ctx, l.newest(clientv3.WithMaxCreateRev(token)))
	if err != nil {
		return nil, 0, err
	}
	ahead, ok := l.rivals(resp.Kvs, token)
	if !ok {
		return nil, 0, l.gone(ctx)
	}
	return ahead, resp.Header.Revision, nil
}

// rival is another entry in the queue.
type rival struct {
	key   string
	token int64
}

// near is how many entries ahead of its own a waiter follows one by one. A waiter
// with more ahead of it watches only the farthest of the nearest, so that the
// work of a hand-over does not grow with the number of waiters.
const near = 4

// rivals reads a list of entries, the newest first, that begins with l's own.
func (l *Lock) rivals(kvs []*mvccpb.KeyValue, token int64) (ahead []rival, ok bool) {
	if len(kvs) == 0 || string(kvs[0].Key) != l.key || kvs[0].CreateRevision != token {
		return nil, false
	}
	for _, kv := range kvs[1:] {
		ahead = append(ahead, rival{string(kv.Key), kv.CreateRevision})
	}
	return ahead, true
}

// newest asks for the newest entries of the queue: the own one and up to one more
// ahead of it than are near.
func (l *Lock) newest(opts ...clientv3.OpOption) clientv3.Op {
	return clientv3.OpGet(l.session.client.keys.Queue(l.name), append(opts,
		clientv3.WithPrefix(), clientv3.WithKeysOnly(),
		clientv3.WithSort(clientv3.SortByCreateRevision, clientv3.SortDescend),
		clientv3.WithLimit(near+2))...)
}
