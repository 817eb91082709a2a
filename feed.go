package locker

import (
	"context"
	"errors"
	"strconv"
	"sync"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/grpc/metadata"
)

// feed is the one stream on which a client watches. etcd's client carries all
// watches whose contexts have the same metadata on one stream, and keeps that
// stream even if the member at its other end has stopped answering. So the feed
// has a generation in the metadata of its watches, checks the stream from time to
// time while somebody watches, and starts a new generation, which is a new stream
// to another member, when it does not answer.
type feed struct {
	client *Client

	mu         sync.Mutex // guards what follows; no request is made under it
	generation int
	ctx        context.Context // of the present generation
	drop       context.CancelFunc
	watches    int
	checking   bool
	seen       checkpoint
}

// checkpoint says: at that time, the cluster had reached that revision.
type checkpoint struct {
	at       time.Time
	revision int64
}

func newFeed(c *Client) *feed {
	f := &feed{client: c}
	f.renew()
	return f
}

// renew starts a generation. The caller has the mutex, or the feed for itself.
func (f *feed) renew() {
	f.generation++
	// A member without a leader would stay silent: it has to refuse instead.
	ctx := clientv3.WithRequireLeader(f.client.base)
	ctx = metadata.AppendToOutgoingContext(ctx, "locker-feed", f.client.id+"."+strconv.Itoa(f.generation))
	f.ctx, f.drop = context.WithCancel(ctx)
}

// watch is one watch on the feed.
type watch struct {
	events clientv3.WatchChan
	close  func() // must be called
}

// open starts a watch and returns once etcd has confirmed it: then it has
// every change from now on. It is opened without a revision, because etcd serves
// a watch that starts at or below the present one from a loop of 100 ms.
func (f *feed) open(ctx context.Context, key string, opts ...clientv3.OpOption) (*watch, error) {
	f.mu.Lock()
	f.watches++
	if !f.checking {
		f.checking = true
		f.client.tasks.run(f.check)
	}
	generation := f.ctx
	f.mu.Unlock()

	wctx, cancel := context.WithCancel(generation)
	stop := context.AfterFunc(ctx, cancel)
	w := &watch{
		events: f.client.etcd.Watch(wctx, key, append(opts, clientv3.WithCreatedNotify())...),
		close: func() {
			stop()
			cancel()
			f.mu.Lock()
			f.watches--
			f.mu.Unlock()
		},
	}
	created, ok := <-w.events
	if err := created.Err(); ok && err == nil {
		return w, nil
	} else {
		w.close()
		return nil, errors.Join(errWatchEnded, err)
	}
}

// errWatchEnded is what a watch ends with that is worth opening again.
var errWatchEnded = errors.New("watch ended")

// check looks after the stream, until the client ends.
func (f *feed) check() {
	c := f.client
	interval := c.ttl / 4
	for sleep(c.ctx, interval) == nil {
		f.mu.Lock()
		idle, generation := f.watches == 0, f.ctx
		f.mu.Unlock()
		if idle {
			continue
		}
		if err := f.probe(generation, interval); err != nil && c.ctx.Err() == nil {
			c.log.Debug("watch stream does not answer, opening another", "error", err)
			f.mu.Lock()
			f.drop()
			f.renew()
			f.mu.Unlock()
		}
	}
}

// probe has the stream confirm a watch, which it does in turn with all others, and
// asks etcd to tell all watches on the stream which revision they have reached.
func (f *feed) probe(generation context.Context, patience time.Duration) error {
	c := f.client
	ctx, cancel := context.WithTimeout(generation, patience)
	defer cancel()
	defer context.AfterFunc(c.ctx, cancel)()
	at := time.Now()
	resp, err := c.read(ctx, clientv3.OpGet(c.keys.Records(), clientv3.WithKeysOnly()))
	if err != nil {
		return nil // it is not the stream that does not answer
	}
	for pause := (backoff{}); ; {
		one, stop := context.WithCancel(ctx)
		defer stop() // the last one carries the progress
		created, ok := <-c.etcd.Watch(one, c.keys.Records(), clientv3.WithCreatedNotify())
		if !ok || created.Err() != nil {
			return errors.Join(errWatchEnded, created.Err())
		}
		if created.Header.Revision >= resp.Header.Revision {
			break
		}
		// The member at the other end is behind the others, or cut off from them.
		stop()
		if pause.wait(ctx) != nil {
			return errWatchEnded
		}
	}
	f.mu.Lock()
	f.seen = checkpoint{at, resp.Header.Revision}
	f.mu.Unlock()
	return c.etcd.RequestProgress(ctx)
}

// checkpoint returns the last one.
func (f *feed) checkpoint() checkpoint {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.seen
}
