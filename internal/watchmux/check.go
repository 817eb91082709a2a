package watchmux

import (
	"context"
	"slices"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"

	"github.com/jagregory/locker/v2/internal/backoff"
	"github.com/jagregory/locker/v2/internal/tasks"
)

// check looks after the stream, until the client ends.
func (m *Mux) check() {
	timeout := m.HedgeDelay
	for backoff.Sleep(m.Ctx, m.HedgeDelay) == nil {
		m.mu.Lock()
		stream := m.stream
		m.mu.Unlock()
		what, ok := stream.sample()
		switch {
		case !ok: // nobody watches
		case m.probe(stream, what, timeout):
			timeout = m.HedgeDelay
		default:
			// Were it a large answer that holds the streams up, each would be replaced in turn.
			timeout = min(2*timeout, 8*m.HedgeDelay)
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
func (m *Mux) probe(s *stream, what Target, timeout time.Duration) (kept bool) {
	ctx, stop := tasks.Either(m.Ctx, s.ctx)
	defer stop()
	before, at := s.hears(), time.Now()
	goal := &goal{known: make(chan struct{})}
	shown := m.shows(ctx, s, what, goal)
	header, err := m.Read(ctx, what.Key)
	if ctx.Err() != nil {
		return true // it has ended
	}
	if err == nil {
		if before.contradicts(header) {
			m.Log.Warn("etcd is at an earlier revision than before, watching it anew", "revision", header.Revision)
			m.forget()
			s.end()
			return true
		}
		goal.revision = header.Revision
		m.reach(checkpoint{at, header.Revision})
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
		return s.hears().events > before.events || m.hedge(ctx, s, what, goal, shown)
	}
}

// contradicts reports whether a read that was sent afterwards shows that etcd has come
// back empty, or from a backup, or is another.
func (h heard) contradicts(read *pb.ResponseHeader) bool {
	return read.Revision < h.revision || h.cluster != 0 && read.ClusterId != 0 && read.ClusterId != h.cluster
}

// shows returns a channel that has an item when s has shown that it is at goal, or that
// it cannot.
func (m *Mux) shows(ctx context.Context, s *stream, what Target, goal *goal) <-chan error {
	shown := make(chan error, 1)
	m.Tasks.Run(func() { shown <- s.show(ctx, what, goal) })
	return shown
}

// show has the member show that it is at goal, which it does in turn with whatever else
// comes on the stream. It does not wait for the goal to be known for long.
func (s *stream) show(ctx context.Context, what Target, goal *goal) error {
	early := time.NewTimer(roundTrip)
	defer early.Stop()
	select {
	case <-goal.known:
	case <-early.C:
	case <-ctx.Done():
	}
	for pause := (backoff.Pause{}); ; {
		w := s.probe(what)
		answer, err := w.Next(ctx)
		w.Close()
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
func (m *Mux) hedge(ctx context.Context, s *stream, what Target, goal *goal, shown <-chan error) bool {
	before := s.hears().events
	avoid := []string{s.member()}
	for range m.Endpoints() {
		next := newStream(m, avoid...)
		better := m.shows(ctx, next, what, goal)
		timeout := time.NewTimer(m.HedgeDelay)
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
			return !m.replace(s, next)
		}
		next.end()
		avoid = append(avoid, next.member())
	}
	return true
}

// replace ends a stream that does not answer, for one that does, and reports false if it
// has ended by itself and another has taken its place already.
func (m *Mux) replace(s, next *stream) bool {
	m.Log.Debug("watch stream does not answer, using another", "member", s.member(), "other", next.member())
	m.mu.Lock()
	replaced := m.stream == s
	if replaced {
		m.stream = next
	}
	m.mu.Unlock()
	if !replaced {
		next.end()
		return false
	}
	s.end()
	return true
}

// reach notes that the cluster has reached a revision.
func (m *Mux) reach(now checkpoint) {
	const most = 16
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.seen = append(m.seen, now); len(m.seen) > most {
		m.seen = slices.Delete(m.seen, 0, 1)
	}
}

// forget forgets what the cluster had reached.
func (m *Mux) forget() {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.seen = nil
}

// Current returns when the cluster was last known to be at revision, or before it.
func (m *Mux) Current(revision int64) (at time.Time) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, seen := range m.seen {
		if seen.revision <= revision {
			at = seen.at
		}
	}
	return at
}
