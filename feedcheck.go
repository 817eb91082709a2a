package locker

import (
	"context"
	"slices"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"

	"github.com/jagregory/locker/v2/internal/backoff"
	"github.com/jagregory/locker/v2/internal/tasks"
	"github.com/jagregory/locker/v2/internal/txn"
)

// check looks after the stream, until the client ends.
func (f *feed) check() {
	c := f.client
	timeout := c.store.HedgeDelay
	for backoff.Sleep(c.ctx, c.store.HedgeDelay) == nil {
		f.mu.Lock()
		stream := f.stream
		f.mu.Unlock()
		what, ok := stream.sample()
		switch {
		case !ok: // nobody watches
		case f.probe(stream, what, timeout):
			timeout = c.store.HedgeDelay
		default:
			// Were it a large answer that holds the streams up, each would be replaced in turn.
			timeout = min(2*timeout, 8*c.store.HedgeDelay)
		}
	}
}

// roundTrip is how long an answer usually takes at most.
const roundTrip = 50 * time.Millisecond

// goal is a revision that streams are to show, as soon as it is known.
type goal struct {
	known    chan struct{} // closed then
	revision int64         // set before that
}

// probe has the stream show that its member is at the revision of the cluster, and the
// watches that need it told which one they have reached. If it is silent for so long and
// another, on another member, is not, that takes its place, and probe returns false. It
// reads a key that somebody watches: the client may not be allowed to read any other.
func (f *feed) probe(s *stream, what watched, timeout time.Duration) (kept bool) {
	c := f.client
	ctx, stop := tasks.Either(c.ctx, s.ctx)
	defer stop()
	before, at := s.hears(), time.Now()
	goal := &goal{known: make(chan struct{})}
	shown := f.shows(ctx, s, what, goal)
	resp, err := c.store.Read(ctx, txn.RevisionsOf(what.key))
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
	if took > roundTrip {
		s.progress() // the request before may have been answered too early
	}
	timer := time.NewTimer(min(took, roundTrip) + timeout - took) // since it was asked
	defer timer.Stop()
	select {
	case <-shown: // or it has ended
		return true
	case <-timer.C:
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
	f.client.tasks.Run(func() { shown <- s.show(ctx, what, goal) })
	return shown
}

// show has the member show that it is at goal, which it does in turn with whatever else
// comes on the stream. It does not wait for the goal to be known for long.
func (s *stream) show(ctx context.Context, what watched, goal *goal) error {
	early := time.NewTimer(roundTrip)
	defer early.Stop()
	select {
	case <-goal.known:
	case <-early.C:
	case <-ctx.Done():
	}
	for pause := (backoff.Pause{}); ; {
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
		if err := pause.Wait(ctx); err != nil {
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
		timeout := time.NewTimer(c.store.HedgeDelay)
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
			return !f.replace(s, next)
		}
		next.end()
		avoid = append(avoid, next.member())
	}
	return true
}

// replace ends a stream that does not answer, for one that does, and reports false if it
// has ended by itself and another has taken its place already.
func (f *feed) replace(s, next *stream) bool {
	f.client.log.Debug("watch stream does not answer, using another", "member", s.member(), "other", next.member())
	f.mu.Lock()
	replaced := f.stream == s
	if replaced {
		f.stream = next
	}
	f.mu.Unlock()
	if !replaced {
		next.end()
		return false
	}
	s.end()
	return true
}

// reach notes that the cluster has reached a revision.
func (f *feed) reach(now checkpoint) {
	const most = 16
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
