package promlocker

import (
	"context"
	"errors"
	"sync"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/jagregory/locker/v2"
)

// Hooks returns the hooks for a Client, for locker.WithHooks. Call it once for each Client; their
// metrics are added up.
func (m *Metrics) Hooks() locker.Hooks {
	s := &sessions{metrics: m}
	return locker.Hooks{
		LockStart:    m.lockStart,
		LockEnd:      m.lockEnd,
		HoldEnd:      m.holdEnd,
		SessionStart: s.start,
		Renewal:      s.renewal,
		SessionEnd:   s.end,
		WatchReset:   func(e locker.WatchReset) { m.resets.WithLabelValues(e.Cause).Inc() },
	}
}

func (m *Metrics) lockStart(ctx context.Context, e locker.LockStart) context.Context {
	m.of(e.Name).waiting.Inc()
	return ctx
}

func (m *Metrics) lockEnd(ctx context.Context, e locker.LockEnd) {
	l := m.of(e.Name)
	l.waiting.Dec()
	if e.Err == nil {
		l.held.Inc()
	}
	l.wait.WithLabelValues(typeOf(ctx, e.Err), e.Verb).Observe(e.Waited.Seconds())
}

func (m *Metrics) holdEnd(e locker.HoldEnd) {
	l := m.of(e.Name)
	l.held.Dec()
	how := "closed"
	var lost *locker.LostError
	switch {
	case errors.As(e.Cause, &lost):
		how = lost.Reason.String()
		l.losses.WithLabelValues(how).Inc()
	case errors.Is(e.Cause, locker.ErrReleased):
		how = "released"
	}
	l.hold.WithLabelValues(how).Observe(e.Held.Seconds())
}

// sessions has the sessions of one Client. Two Clients may have a lease in common: each renews it.
type sessions struct {
	metrics *Metrics
	ttls    sync.Map // time.Duration by lease
}

func (s *sessions) start(e locker.SessionStart) { s.ttls.Store(e.Lease, e.TTL) }

func (s *sessions) end(e locker.SessionEnd) { s.ttls.Delete(e.Lease) }

func (s *sessions) renewal(e locker.Renewal) {
	s.metrics.renewal.WithLabelValues(typeOf(context.Background(), e.Err)).Observe(e.Took.Seconds())
	if e.Err != nil {
		return
	}
	s.metrics.slack.Observe(e.Left.Seconds())
	if ttl, ok := s.ttls.Load(e.Lease); ok {
		s.metrics.slackRatio.Observe(e.Left.Seconds() / ttl.(time.Duration).Seconds())
	}
}

// typeOf returns the error_type of an error of a call with that context.
func typeOf(ctx context.Context, err error) string {
	switch {
	case err == nil:
		return ""
	// First, since who was in the way, and the last error of etcd, are in the same chain.
	case ctx.Err() != nil && errors.Is(err, context.Cause(ctx)):
		if errors.Is(ctx.Err(), context.DeadlineExceeded) {
			return "deadline"
		}
		return "canceled"
	case errors.Is(err, locker.ErrEtcdClosed): // before what was lost by that
		return "etcd_closed"
	case errors.Is(err, locker.ErrLost):
		return "lost"
	case errors.Is(err, locker.ErrClosed):
		return "closed"
	case errors.Is(err, locker.ErrSessionFull):
		return "session_full"
	case errors.Is(err, locker.ErrLocked):
		return "locked"
	}
	var etcd interface{ Code() codes.Code } // what etcd's client makes of errors that it knows
	if errors.As(err, &etcd) {
		return etcd.Code().String()
	}
	if s, ok := status.FromError(err); ok {
		return s.Code().String()
	}
	return "other"
}
