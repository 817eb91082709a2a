// Package otellocker reports what a Locker does as OpenTelemetry metrics and spans.
//
//	hooks, err := otellocker.Hooks()
//	client, err := locker.New(etcd, locker.WithHooks(hooks))
//
// # Metrics
//
//   - locker.lock.wait.duration, a histogram in seconds: the calls that lock, by locker.verb
//     and, if nothing is held, by error.type.
//   - locker.lock.hold.duration, a histogram in seconds: the holds that have ended, by
//     locker.end: released, closed, expired, revoked or deleted.
//   - locker.lock.waiting and locker.lock.held, up-down counters: the calls that are under way,
//     and the locks that are held.
//   - locker.lock.losses, a counter: the holds that were lost, by locker.reason: expired,
//     revoked or deleted.
//   - locker.session.renewal.duration and locker.session.slack, histograms in seconds: how long
//     the renewals of leases took, and how much was left of the deadline then; both by
//     error.type if the lease was lost.
//   - locker.watch.resets, a counter: the times that watches were opened again, by
//     locker.cause: disconnect, no answer, compaction, refused or restore.
//
// # Spans
//
// There is one span for each wait and one for each hold. Both are children of the span in the
// context of the call that locks, and the one of the hold has a link to the one of the wait.
//
//   - locker.wait is the call until it holds the lock, or does not get it. It has locker.verb,
//     locker.ahead and, if the lock is held, locker.token.
//   - locker.hold is the hold, from then on until its context ends. It has locker.verb,
//     locker.token and locker.end, and the status Error if the lock was lost.
//
// The kind of both is internal. Neither is a request: a wait may need several of etcd or none.
// Instrument etcd's client for these, for example with otelgrpc.
//
// # Errors
//
// A failure has the attribute error.type:
//
//   - canceled: the context of the call was canceled
//   - deadline: the deadline of the context of the call passed
//   - locked: TryLock was refused
//   - lost: the session was lost, or the entry in the queue was deleted
//   - closed: the Client or the Session was closed
//   - etcd_closed: the etcd client was closed
//   - session_full: the Session of the caller had no room
//   - the name of a gRPC code, such as PermissionDenied: etcd refused
//   - _OTHER
//
// The texts of errors are not recorded, because names and values of locks may be in them.
//
// # Names
//
// The name of a lock is not recorded either, unless WithNames says how.
package otellocker

import (
	"context"
	"sync"
	"time"

	"go.opentelemetry.io/otel"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/metric"
	semconv "go.opentelemetry.io/otel/semconv/v1.43.0"
	"go.opentelemetry.io/otel/trace"

	"github.com/jagregory/locker/v2"
)

// The scope of what is recorded.
const (
	scope   = "github.com/jagregory/locker/contrib/otel"
	version = "0.1.0"
)

// An Option changes what Hooks returns.
type Option func(*config)

type config struct {
	meters  metric.MeterProvider
	tracers trace.TracerProvider
	name    func(string) string // nil: no attribute
}

// WithMeterProvider sets where the metrics go. The default is the global provider.
func WithMeterProvider(p metric.MeterProvider) Option {
	return func(c *config) { c.meters = p }
}

// WithTracerProvider sets where the spans go. The default is the global provider.
func WithTracerProvider(p trace.TracerProvider) Option {
	return func(c *config) { c.tracers = p }
}

// WithNames adds the attribute locker.name to the metrics and spans of locks. Its value is what
// f returns for the name of the lock, or for the first one if there are several; if that is
// "", the attribute is left out. By default it always is, because each value costs a time
// series of each metric, and names may be private. So f should return few different values,
// such as the part of the name before the first slash. It is called once for each call that
// locks, and must be safe for concurrent use.
func WithNames(f func(name string) string) Option {
	return func(c *config) { c.name = f }
}

// Hooks returns hooks for locker.WithHooks that record metrics and spans. They may be given to
// several Clients, whose metrics are then added up. They do not block, as long as the
// providers and the function of WithNames do not, and are safe for concurrent use. For each
// lock that is held they keep a little memory, which they free when the hold ends.
//
// Errors: those of the meter provider.
func Hooks(opts ...Option) (locker.Hooks, error) {
	c := config{meters: otel.GetMeterProvider(), tracers: otel.GetTracerProvider()}
	for _, opt := range opts {
		opt(&c)
	}
	meter := c.meters.Meter(scope, metric.WithInstrumentationVersion(version), metric.WithSchemaURL(semconv.SchemaURL))
	i, err := newInstruments(meter)
	if err != nil {
		return locker.Hooks{}, err
	}
	tracer := c.tracers.Tracer(scope, trace.WithInstrumentationVersion(version), trace.WithSchemaURL(semconv.SchemaURL))
	o := &observer{instruments: i, tracer: tracer, name: c.name}
	return locker.Hooks{
		LockStart:  o.lockStart,
		LockEnd:    o.lockEnd,
		HoldEnd:    o.holdEnd,
		Renewal:    o.renewal,
		WatchReset: o.watchReset,
	}, nil
}

// observer is what the functions of one Hooks share.
type observer struct {
	instruments
	tracer trace.Tracer
	name   func(string) string
	holds  sync.Map // *locker.Lock to *hold
}

// waitKey is where the context has the wait that an observer has begun: there may be several
// observers.
type waitKey struct{ *observer }

// wait is a call that locks.
type wait struct {
	caller trace.Span
	span   trace.Span
	verb   attribute.KeyValue
	name   []attribute.KeyValue // none or one
}

// hold is a lock that is held.
type hold struct {
	ctx   context.Context // has the span
	since time.Time
	name  []attribute.KeyValue
}

func (o *observer) lockStart(ctx context.Context, e locker.LockStart) context.Context {
	w := &wait{caller: trace.SpanFromContext(ctx), verb: verbKey.String(e.Verb)}
	if o.name != nil {
		if value := o.name(e.Name); value != "" {
			w.name = []attribute.KeyValue{nameKey.String(value)}
		}
	}
	ctx, w.span = o.tracer.Start(ctx, "locker.wait", trace.WithAttributes(w.verb), trace.WithAttributes(w.name...))
	o.waiting.Add(ctx, 1, metric.WithAttributes(w.name...))
	return context.WithValue(ctx, waitKey{o}, w)
}

func (o *observer) lockEnd(ctx context.Context, e locker.LockEnd) {
	w, ok := ctx.Value(waitKey{o}).(*wait)
	if !ok { // the LockStart of other hooks has returned another context
		return
	}
	now := time.Now()
	outcome := append([]attribute.KeyValue{w.verb}, w.name...)
	w.span.SetAttributes(aheadKey.Int(e.Ahead))
	if e.Err != nil {
		failure := errorType(ctx, e.Err)
		outcome = append(outcome, failure)
		fail(w.span, failure)
	} else {
		w.span.SetAttributes(tokenKey.Int64(e.Token))
		o.holdStart(ctx, e, w, now)
	}
	o.waitDuration.Record(ctx, e.Waited.Seconds(), metric.WithAttributes(outcome...))
	o.waiting.Add(ctx, -1, metric.WithAttributes(w.name...))
	w.span.End(trace.WithTimestamp(now))
}

// holdStart begins the hold that w has led to. Its span is a child of the caller's, not of the
// wait's, which is over.
func (o *observer) holdStart(ctx context.Context, e locker.LockEnd, w *wait, now time.Time) {
	_, span := o.tracer.Start(trace.ContextWithSpan(ctx, w.caller), "locker.hold",
		trace.WithTimestamp(now),
		trace.WithLinks(trace.Link{SpanContext: w.span.SpanContext()}),
		trace.WithAttributes(w.verb, tokenKey.Int64(e.Token)),
		trace.WithAttributes(w.name...))
	h := &hold{ctx: trace.ContextWithSpan(context.Background(), span), since: now, name: w.name}
	o.holds.Store(e.Lock, h)
	o.held.Add(h.ctx, 1, metric.WithAttributes(h.name...))
}

func (o *observer) holdEnd(e locker.HoldEnd) {
	value, ok := o.holds.LoadAndDelete(e.Lock)
	if !ok { // there was no wait either
		return
	}
	h := value.(*hold)
	span := trace.SpanFromContext(h.ctx)
	end := endOf(e.Cause)
	if end.lost {
		fail(span, errorType(h.ctx, e.Cause))
		o.losses.Add(h.ctx, 1, metric.WithAttributes(h.name...), metric.WithAttributes(reasonKey.String(end.name)))
	}
	span.SetAttributes(endKey.String(end.name))
	o.holdDuration.Record(h.ctx, e.Held.Seconds(), metric.WithAttributes(h.name...), metric.WithAttributes(endKey.String(end.name)))
	o.held.Add(h.ctx, -1, metric.WithAttributes(h.name...))
	// The hook is called after the hold has ended.
	span.End(trace.WithTimestamp(h.since.Add(e.Held)))
}

func (o *observer) renewal(e locker.Renewal) {
	ctx := context.Background()
	var failure []attribute.KeyValue
	if e.Err != nil {
		failure = append(failure, errorType(ctx, e.Err))
	}
	o.renewalDuration.Record(ctx, e.Took.Seconds(), metric.WithAttributes(failure...))
	o.slack.Record(ctx, e.Left.Seconds(), metric.WithAttributes(failure...))
}

func (o *observer) watchReset(e locker.WatchReset) {
	o.resets.Add(context.Background(), 1, metric.WithAttributes(causeKey.String(e.Cause)))
}
