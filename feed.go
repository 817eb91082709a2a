package locker

import (
	"context"
	"sync"
	"time"
)

// feed is where a client's watches come from: one stream for all of them, opened
// when it is needed. A stream can stay silent because the member at its other end
// has stopped, or was cut off from the others. So the feed checks it from time to
// time while somebody watches, and drops it when it does not answer: the next is
// opened to another member.
type feed struct {
	client *Client

	mu       sync.Mutex // guards what follows; no request is made under it
	stream   *stream    // the present one, nil at first
	checking bool
	seen     checkpoint
	kept     map[string]keptWatch // by key, for a while after their use
}

// checkpoint says: at that time, the cluster had reached that revision.
type checkpoint struct {
	at       time.Time
	revision int64
}

func newFeed(c *Client) *feed { return &feed{client: c, kept: make(map[string]keptWatch)} }

// open starts a watch and returns once etcd has confirmed it: then it has
// every change from now on. It is opened without a revision, because etcd serves
// a watch that starts at or below the present one from a loop of 100 ms.
func (f *feed) open(ctx context.Context, what watched) (*watch, error) {
	f.mu.Lock()
	if f.stream == nil || !f.stream.alive() {
		f.stream = newStream(f.client)
	}
	stream := f.stream
	if !f.checking {
		f.checking = true
		f.client.tasks.run(f.check)
	}
	f.mu.Unlock()
	w := stream.watch(what)
	if _, err := w.next(ctx); err != nil { // the first answer is the confirmation
		w.close()
		return nil, err
	}
	return w, nil
}

// keptWatch is a watch that nobody uses at the moment.
type keptWatch struct {
	*watch
	expiry *time.Timer
}

// linger is how long a watch is kept.
const linger = time.Second

// keep lets a watch live on for a while: whoever waited for a name and takes it
// often is spared opening another.
func (f *feed) keep(w *watch) {
	f.again(w.key).close()
	f.mu.Lock()
	defer f.mu.Unlock()
	f.kept[w.key] = keptWatch{w, time.AfterFunc(linger, func() {
		f.mu.Lock()
		expired := f.kept[w.key].watch == w
		if expired {
			delete(f.kept, w.key)
		}
		f.mu.Unlock()
		if expired {
			w.close()
		}
	})}
}

// keeps reports whether a watch of key is kept.
func (f *feed) keeps(key string) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	_, ok := f.kept[key]
	return ok
}

// again returns the watch of key that was kept, nil if there is none. Whoever asks
// is the only one to use the key.
func (f *feed) again(key string) *watch {
	f.mu.Lock()
	defer f.mu.Unlock()
	w, ok := f.kept[key]
	if ok {
		delete(f.kept, key)
		w.expiry.Stop()
	}
	return w.watch
}

// end lets go of the watches that are kept.
func (f *feed) end() {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, w := range f.kept {
		w.expiry.Stop()
	}
	clear(f.kept)
}

// check looks after the stream, until the client ends.
func (f *feed) check() {
	c := f.client
	interval := c.ttl / 4
	for sleep(c.ctx, interval) == nil {
		f.mu.Lock()
		stream := f.stream
		f.mu.Unlock()
		if !stream.busy() {
			continue
		}
		if err := f.probe(stream, interval); err != nil && c.ctx.Err() == nil {
			c.log.Debug("watch stream does not answer, opening another", "error", err)
			stream.end()
		}
	}
}

// probe has the stream confirm a watch, which it does in turn with all others, and
// asks etcd to tell all watches on the stream which revision they have reached.
func (f *feed) probe(s *stream, patience time.Duration) error {
	c := f.client
	ctx, cancel := context.WithTimeout(c.ctx, patience)
	defer cancel()
	at := time.Now()
	resp, err := c.read(ctx, revisionsOf(c.keys.Records()))
	if err != nil {
		return nil // it is not the stream that does not answer
	}
	for pause := (backoff{}); ; {
		w := s.watch(watched{key: c.keys.Records()})
		created, err := w.next(ctx)
		if err != nil {
			w.close()
			return err
		}
		if created.Header.Revision >= resp.Header.Revision {
			w.close()
			break
		}
		w.close()
		// The member at the other end is behind the others, or cut off from them.
		if err := pause.wait(ctx); err != nil {
			return err
		}
	}
	f.mu.Lock()
	f.seen = checkpoint{at, resp.Header.Revision}
	f.mu.Unlock()
	s.progress()
	return nil
}

// checkpoint returns the last one.
func (f *feed) checkpoint() checkpoint {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.seen
}
