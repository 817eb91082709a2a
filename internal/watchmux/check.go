package watchmux

import (
	"context"
	"slices"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"

	"github.com/jagregory/locker/v2/internal/backoff"
	"github.com/jagregory/locker/v2/internal/tasks"
)

// check checks the stream every hedge delay, until Ctx ends.
func (m *Mux) check() {
	timeout := m.HedgeDelay
	for backoff.Sleep(m.Ctx, m.HedgeDelay) == nil {
		m.mu.Lock()
		s := m.stream
		m.mu.Unlock()
		what, ok := s.sample()
		switch {
		case !ok: // nobody watches
		case m.probe(s, what, timeout):
			timeout = m.HedgeDelay
		default:
			// With a constant timeout, a large answer that holds up all streams would have
			// each of them replaced by the next.
			timeout = min(2*timeout, 8*m.HedgeDelay)
		}
	}
}

// roundTrip is longer than most answers take.
const roundTrip = 50 * time.Millisecond

// awaited is a revision that streams have to show, as soon as it is known.
type awaited struct {
	known    chan struct{} // closed when revision is set
	revision int64         // set before known is closed
}

// probe has the stream show that its member is at the revision of the cluster, and asks for
// the progress of the watches that need it. If the stream is silent for the timeout, and
// another stream, to another member, is not, that takes its place, and probe returns false.
// It reads a key that somebody watches, because the client may not be allowed to read any
// other.
func (m *Mux) probe(s *stream, what Target, timeout time.Duration) (kept bool) {
	ctx, stop := tasks.Either(m.Ctx, s.ctx)
	defer stop()
	before, at := s.hears(), time.Now()
	goal := &awaited{known: make(chan struct{})}
	shown := m.shows(ctx, s, what, goal)
	header, err := m.Read(ctx, what.Key)
	if ctx.Err() != nil {
		return true // it has ended
	}
	if err == nil {
		if before.contradicts(header) {
			m.Log.Warn("etcd is at an earlier revision than before, watching it anew", "revision", header.Revision)
			m.forget()
			s.end(restore)
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
	timer := time.NewTimer(min(took, roundTrip) + timeout - took) // counted from when the stream was asked
	defer timer.Stop()
	select {
	case <-shown: // or it has ended
		return true
	case <-timer.C:
		return s.hears().events > before.events || m.hedge(ctx, s, what, goal, shown)
	}
}

// contradicts reports whether a later read shows that etcd has come back empty or from a
// backup, or that it is another cluster.
func (h heard) contradicts(read *pb.ResponseHeader) bool {
	return read.Revision < h.revision || h.cluster != 0 && read.ClusterId != 0 && read.ClusterId != h.cluster
}

// shows returns a channel that receives nil when s has shown that it is at goal, or the
// error that kept it from that.
func (m *Mux) shows(ctx context.Context, s *stream, what Target, goal *awaited) <-chan error {
	shown := make(chan error, 1)
	m.Tasks.Run(func() { shown <- s.show(ctx, what, goal) })
	return shown
}

// show has the member show that it is at goal, in an answer that comes in order with
// everything else on the stream. It asks as soon as the goal is known, or soon after if it
// is not.
func (s *stream) show(ctx context.Context, what Target, goal *awaited) error {
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

// hedge keeps a silent stream until a stream to another member has proved to be better. So
// what holds up all of them, such as a large answer on a slow link, does no harm. It
// reports whether the stream was kept.
func (m *Mux) hedge(ctx context.Context, s *stream, what Target, goal *awaited, shown <-chan error) bool {
	before := s.hears().events
	avoid := []string{s.member()}
	for range m.Endpoints() {
		next := newStream(m, avoid...)
		better := m.shows(ctx, next, what, goal)
		timeout := time.NewTimer(m.HedgeDelay)
		var err error
		select {
		case <-shown:
			next.end(unused)
			return true
		case err = <-better:
		case <-timeout.C:
			err = context.DeadlineExceeded
		}
		timeout.Stop()
		switch {
		case s.hears().events > before || ctx.Err() != nil:
			next.end(unused)
			return true
		case err == nil:
			return !m.replace(s, next)
		}
		next.end(unused)
		avoid = append(avoid, next.member())
	}
	return true
}

// replace ends a stream that does not answer in favour of one that does. It reports false
// if the stream has ended by itself, and another has taken its place already.
func (m *Mux) replace(s, next *stream) bool {
	m.Log.Debug("watch stream does not answer, using another", "member", s.member(), "other", next.member())
	m.mu.Lock()
	replaced := m.stream == s
	if replaced {
		m.stream = next
		next.use()
	}
	m.mu.Unlock()
	if !replaced {
		next.end(unused)
		return false
	}
	s.end(noAnswer)
	return true
}

// reach keeps a checkpoint.
func (m *Mux) reach(now checkpoint) {
	const most = 16
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.seen = append(m.seen, now); len(m.seen) > most {
		m.seen = slices.Delete(m.seen, 0, 1)
	}
}

// forget forgets the checkpoints.
func (m *Mux) forget() {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.seen = nil
}

// Current returns the latest time at which the cluster is known to have been at revision or
// before it. It is zero if no such time is known.
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
