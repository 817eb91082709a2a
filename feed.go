package locker

import (
	"context"
	"slices"
	"sync"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
)

// feed is where a client's watches come from: one stream for all of them, opened
// when it is needed. A stream can stay silent because the member at its other end
// has stopped, or was cut off from the others. So while somebody watches, the feed checks
// it from time to time, and when it does not answer, but one to another member does,
// takes that.
type feed struct {
	client *Client
	idle   time.Duration // for how long a watch is kept

	mu       sync.Mutex // guards what follows; no request is made under it
	stream   *stream    // the present one, nil at first
	checking bool
	seen     []checkpoint         // the last few
	kept     map[string]keptWatch // by key, for a while after their use
}

// checkpoint says: at that time, the cluster had reached that revision.
type checkpoint struct {
	at       time.Time
	revision int64
}

func newFeed(c *Client) *feed {
	return &feed{client: c, idle: watchIdle, kept: make(map[string]keptWatch)}
}

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
	confirmed, err := w.next(ctx) // that is the first answer
	if err != nil {
		w.close()
		return nil, err
	}
	w.opened = confirmed.Header.Revision
	return w, nil
}

// keptWatch is a watch that nobody uses at the moment.
type keptWatch struct {
	*watch
	expiry *time.Timer
}

const watchIdle = time.Second

// keep lets a watch live on for a while: whoever waited for a name and takes it
// often is spared opening another.
func (f *feed) keep(w *watch) {
	f.again(w.key).close()
	f.mu.Lock()
	defer f.mu.Unlock()
	f.kept[w.key] = keptWatch{w, time.AfterFunc(f.idle, func() {
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
	patience := c.hedgeDelay
	for sleep(c.ctx, c.hedgeDelay) == nil {
		f.mu.Lock()
		stream := f.stream
		f.mu.Unlock()
		what, ok := stream.sample()
		switch {
		case !ok: // nobody watches
		case f.probe(stream, what, patience):
			patience = c.hedgeDelay
		default:
			// Were it a large answer that holds the streams up, each would be replaced in turn.
			patience = min(2*patience, 8*c.hedgeDelay)
		}
	}
}

// goal is a revision that streams are to show, as soon as it is known.
type goal struct {
	known    chan struct{} // closed then
	revision int64         // set before that
}

// probe has the stream show that its member is at the revision of the cluster, and the
// watches that need it told which one they have reached. If it is silent for so long and
// another, on another member, is not, that takes its place, and probe returns false. It
// reads a key that somebody watches: the client may not be allowed to read any other.
func (f *feed) probe(s *stream, what watched, patience time.Duration) (kept bool) {
	c := f.client
	ctx, stop := either(c.ctx, s.ctx)
	defer stop()
	before, at := s.hears(), time.Now()
	goal := &goal{known: make(chan struct{})}
	shown := f.shows(ctx, s, what, goal)
	resp, err := c.read(ctx, revisionsOf(what.key))
	if ctx.Err() != nil {
		return true // it has ended
	}
	if err == nil {
		if before.contradicts(resp.Header) {
			c.log.Warn("etcd is at an earlier revision than before, watching it anew", "revision", resp.Header.Revision)
			f.forget()
			s.end()
			return true
		}
		goal.revision = resp.Header.Revision
		f.reach(checkpoint{at, resp.Header.Revision})
	}
	close(goal.known)
	took := time.Since(at)
	if took > grace {
		s.progress() // the request before may have been answered too early
	}
	timeout := time.NewTimer(min(took, grace) + patience - took) // since it was asked
	defer timeout.Stop()
	select {
	case <-shown: // or it has ended
		return true
	case <-timeout.C:
		return s.hears().events > before.events || f.hedge(ctx, s, what, goal, shown)
	}
}

// contradicts reports whether a read that was sent afterwards shows that etcd has come
// back empty, or from a backup, or is another.
func (h heard) contradicts(read *pb.ResponseHeader) bool {
	return read.Revision < h.revision || h.cluster != 0 && read.ClusterId != 0 && read.ClusterId != h.cluster
}

// shows returns a channel that has an item when s has shown that it is at goal, or that
// it cannot.
func (f *feed) shows(ctx context.Context, s *stream, what watched, goal *goal) <-chan error {
	shown := make(chan error, 1)
	f.client.tasks.run(func() { shown <- s.show(ctx, what, goal) })
	return shown
}

// show has the member show that it is at goal, which it does in turn with whatever else
// comes on the stream. It does not wait for the goal to be known for long.
func (s *stream) show(ctx context.Context, what watched, goal *goal) error {
	early := time.NewTimer(grace)
	defer early.Stop()
	select {
	case <-goal.known:
	case <-early.C:
	case <-ctx.Done():
	}
	for pause := (backoff{}); ; {
		w := s.probe(what)
		answer, err := w.next(ctx)
		w.close()
		if err != nil {
			return err
		}
		select {
		case <-goal.known:
		case <-ctx.Done():
			return ctx.Err()
		}
		if answer.Header.Revision >= goal.revision {
			return nil
		}
		// The member at the other end is behind the others, or cut off from them.
		if err := pause.wait(ctx); err != nil {
			return err
		}
	}
}

// hedge keeps a stream that is silent until one on another member has shown to be better.
// So whatever holds all of them up, such as a large answer on a slow link, does no harm.
// It reports whether the stream was kept.
func (f *feed) hedge(ctx context.Context, s *stream, what watched, goal *goal, shown <-chan error) bool {
	c := f.client
	before := s.hears().events
	avoid := []string{s.member()}
	for range c.etcd.Endpoints() {
		next := newStream(c, avoid...)
		better := f.shows(ctx, next, what, goal)
		timeout := time.NewTimer(c.hedgeDelay)
		var err error
		select {
		case <-shown:
			next.end()
			return true
		case err = <-better:
		case <-timeout.C:
			err = context.DeadlineExceeded
		}
		timeout.Stop()
		switch {
		case s.hears().events > before || ctx.Err() != nil:
			next.end()
			return true
		case err == nil:
			f.replace(s, next)
			return false
		}
		next.end()
		avoid = append(avoid, next.member())
	}
	return true
}

// replace ends a stream that does not answer, for one that does.
func (f *feed) replace(s, next *stream) {
	f.client.log.Debug("watch stream does not answer, using another", "member", s.member(), "other", next.member())
	f.mu.Lock()
	f.stream = next
	f.mu.Unlock()
	s.end()
}

// reach notes that the cluster has reached a revision.
func (f *feed) reach(now checkpoint) {
	const most = 4
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.seen = append(f.seen, now); len(f.seen) > most {
		f.seen = slices.Delete(f.seen, 0, 1)
	}
}

// forget forgets what the cluster had reached.
func (f *feed) forget() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.seen = nil
}

// current returns when the cluster was last known to be at revision, or before it.
func (f *feed) current(revision int64) (at time.Time) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, seen := range f.seen {
		if seen.revision <= revision {
			at = seen.at
		}
	}
	return at
}
