package otellocker_test

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"strings"
	"testing"
	"time"
	"weak"

	"go.opentelemetry.io/otel"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	sdkmetric "go.opentelemetry.io/otel/sdk/metric"
	"go.opentelemetry.io/otel/sdk/metric/metricdata"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/sdk/trace/tracetest"
	"go.opentelemetry.io/otel/trace"

	"github.com/jagregory/locker/contrib/otel"
	"github.com/jagregory/locker/v2"
)

func TestSpans_ShowAHandOver(t *testing.T) {
	t.Parallel()
	b := setup(t)
	here, there := b.client(b.etcd.Client(t), unhurried), b.client(b.etcd.Client(t), unhurried)
	ctx, caller := b.tracer.Start(within(t), "first")
	first, err := here.Lock(ctx, "role", "")
	if err != nil {
		t.Fatal(err)
	}
	caller.End() // the hold may outlive what it was locked for
	ctx, other := b.tracer.Start(within(t), "second")
	waiting := b.lockLater(ctx, there, "role")
	before := time.Now()
	b.unlock(first)
	second := receive(t, waiting)
	b.unlock(second)
	other.End()

	waits, holds := b.span("locker.wait"), b.span("locker.hold")
	if len(waits) != 2 || len(holds) != 2 {
		t.Fatalf("%d waits, %d holds", len(waits), len(holds))
	}
	for i, lock := range []*locker.Lock{first, second} {
		parent := []trace.Span{caller, other}[i].SpanContext()
		wait, hold := waits[i], holds[i]
		verb, token := attribute.String("locker.verb", "Lock"), attribute.Int64("locker.token", lock.Token())
		wantAttributes(t, wait, verb, token, attribute.Int("locker.ahead", i))
		wantAttributes(t, hold, verb, token, attribute.String("locker.end", "released"))
		for _, span := range []sdktrace.ReadOnlySpan{wait, hold} {
			if !span.Parent().Equal(parent) || span.SpanContext().TraceID() != parent.TraceID() {
				t.Errorf("%s is not a child of its caller's span", span.Name())
			}
			if span.SpanKind() != trace.SpanKindInternal || span.Status() != (sdktrace.Status{}) {
				t.Errorf("%s has kind %v, status %v", span.Name(), span.SpanKind(), span.Status())
			}
		}
		if links := hold.Links(); len(links) != 1 || !links[0].SpanContext.Equal(wait.SpanContext()) {
			t.Errorf("hold %d has the links %v", i, links)
		}
		if e := receive(t, b.waits); wait.EndTime().Sub(wait.StartTime()) < e.Waited || !wait.EndTime().Equal(hold.StartTime()) {
			t.Errorf("wait %d: from %v to %v, the hold from %v", i, wait.StartTime(), wait.EndTime(), hold.StartTime())
		}
		if e := receive(t, b.holds); hold.EndTime().Sub(hold.StartTime()) != e.Held {
			t.Errorf("hold %d took %v, not %v", i, hold.EndTime().Sub(hold.StartTime()), e.Held)
		}
	}
	if waits[1].StartTime().After(before) || holds[0].EndTime().Before(before) || holds[1].StartTime().Before(before) {
		t.Errorf("the lock was given up after %v, the first hold ended at %v, the second wait began at %v and ended at %v",
			before, holds[0].EndTime(), waits[1].StartTime(), holds[1].StartTime())
	}
}

func TestSpans_ShowALoss(t *testing.T) {
	t.Parallel()
	for reason, lose := range losses {
		t.Run(reason, func(t *testing.T) {
			t.Parallel()
			b := setup(t)
			lock := lose(b)
			end := receive(t, b.holds)
			holds := b.span("locker.hold")
			if len(holds) != 1 {
				t.Fatalf("%d holds", len(holds))
			}
			wantAttributes(t, holds[0], attribute.String("locker.verb", "Lock"), attribute.Int64("locker.token", lock.Token()),
				attribute.String("locker.end", reason), attribute.String("error.type", "lost"))
			if holds[0].Status() != (sdktrace.Status{Code: codes.Error}) || holds[0].EndTime().Sub(holds[0].StartTime()) != end.Held {
				t.Errorf("%v, from %v to %v", holds[0].Status(), holds[0].StartTime(), holds[0].EndTime())
			}
		})
	}
}

func TestSpans_ShowAFailedWait(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.lock(b.client(b.etcd.Client(t), unhurried), "role")
	if _, err := b.client(b.etcd.Client(t), unhurried).TryLock(within(t), "role", ""); !errors.Is(err, locker.ErrLocked) {
		t.Fatal(err)
	}
	waits := b.span("locker.wait")
	if len(waits) != 2 || len(b.spans.Started()) != 3 {
		t.Fatalf("%d waits, %d spans", len(waits), len(b.spans.Started()))
	}
	receive(t, b.waits)
	wantAttributes(t, waits[1], attribute.String("locker.verb", "TryLock"), attribute.String("error.type", "locked"),
		attribute.Int("locker.ahead", receive(t, b.waits).Ahead))
	if waits[1].Status() != (sdktrace.Status{Code: codes.Error}) {
		t.Errorf("the status is %v", waits[1].Status())
	}
}

func TestSpans_OfDoEndTheWaitBeforeTheFunctionRuns(t *testing.T) {
	t.Parallel()
	b := setup(t)
	client := b.client(b.etcd.Client(t), unhurried)
	ctx, caller := b.tracer.Start(within(t), "caller")
	var inside sdktrace.ReadOnlySpan
	err := client.Do(ctx, "role", "", func(ctx context.Context, _ *locker.Lock) error {
		if len(b.span("locker.wait")) != 1 || len(b.span("locker.hold")) != 0 {
			t.Error("the wait has not ended, or the hold has")
		}
		_, span := b.tracer.Start(ctx, "inside")
		span.End()
		inside = span.(sdktrace.ReadOnlySpan)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	wait, hold := b.span("locker.wait")[0], b.span("locker.hold")[0]
	for _, span := range []sdktrace.ReadOnlySpan{wait, hold, inside} {
		if !span.Parent().Equal(caller.SpanContext()) {
			t.Errorf("%s is not a child of the caller's span", span.Name())
		}
	}
	if verb, _ := attributeOf(hold, "locker.verb"); verb.AsString() != "Do" {
		t.Errorf("the verb of the hold is %v", verb)
	}
	if inside.StartTime().Before(hold.StartTime()) || inside.EndTime().After(hold.EndTime()) {
		t.Error("the function did not run during the hold")
	}
}

func TestSpans_OfACampaignAreThoseOfEachTurn(t *testing.T) {
	t.Parallel()
	b := setup(t)
	client := b.client(b.etcd.Client(t), unhurried)
	turns := 0
	err := client.Campaign(within(t), "role", "", func(_ context.Context, lock *locker.Lock) error {
		if turns++; turns == 1 {
			b.remove(lock)
			b.notice(lock)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	var ends []string
	for _, hold := range b.span("locker.hold") {
		end, _ := attributeOf(hold, "locker.end")
		ends = append(ends, end.AsString())
	}
	if len(b.span("locker.wait")) != 2 || strings.Join(ends, " ") != "deleted released" {
		t.Errorf("%d waits; the holds were %v", len(b.span("locker.wait")), ends)
	}
}

// TestSpans_HaveNoNamesAndValues also covers the status and the events of spans.
func TestSpans_HaveNoNamesAndValues(t *testing.T) {
	t.Parallel()
	const secret = "secret"
	b := setup(t)
	client := b.client(b.etcd.Client(t), unhurried)
	lock, err := client.Lock(within(t), secret, secret)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := client.TryLock(within(t), secret, secret); !errors.Is(err, locker.ErrLocked) || !strings.Contains(err.Error(), secret) {
		t.Fatal(err)
	}
	b.remove(lock)
	b.notice(lock)
	receive(t, b.holds)
	stubs := tracetest.SpanStubsFromReadOnlySpans(b.spans.Ended())
	if len(stubs) != 3 {
		t.Fatalf("%d spans", len(stubs))
	}
	for _, stub := range stubs {
		if text := fmt.Sprintf("%+v", stub); strings.Contains(text, secret) {
			t.Error(text)
		}
	}
	for name := range b.values("") {
		if strings.Contains(name, secret) {
			t.Error(name)
		}
	}
}

func TestHooks_KeepNothingOfAHoldThatHasEnded(t *testing.T) {
	t.Parallel()
	b := setup(t)
	client, err := locker.New(b.etcd.Client(t), locker.WithTTL(unhurried), locker.WithHooks(b.hooks))
	if err != nil {
		t.Fatal(err)
	}
	b.Cleanup(func() { b.close(client) })
	var ended []weak.Pointer[locker.Lock]
	for range 10 {
		lock := b.lock(client, "role")
		b.unlock(lock)
		ended = append(ended, weak.Make(lock))
	}
	// The client itself may keep the last one.
	b.eventually("the locks are freed", func() bool {
		runtime.GC()
		kept := 0
		for _, lock := range ended {
			if lock.Value() != nil {
				kept++
			}
		}
		return kept <= 1
	})
	runtime.KeepAlive(b.hooks)
}

// TestHooks_OfSeveralMayBeGivenToOneClient has two that record, and one between them that loses their contexts.
func TestHooks_OfSeveralMayBeGivenToOneClient(t *testing.T) {
	t.Parallel()
	b, other := setup(t), setup(t)
	forgetful := locker.Hooks{LockStart: func(context.Context, locker.LockStart) context.Context { return context.Background() }}
	client, err := locker.New(b.etcd.Client(t), locker.WithTTL(unhurried), locker.WithHooks(forgetful, b.hooks, other.hooks))
	if err != nil {
		t.Fatal(err)
	}
	b.unlock(b.lock(client, "role"))
	b.close(client)
	for _, recorded := range []*bundle{b, other} {
		recorded.want(locks, map[string]int64{
			"locker.lock.wait.duration{locker.verb=Lock}":    1,
			"locker.lock.hold.duration{locker.end=released}": 1,
		})
		if len(recorded.span("locker.wait")) != 1 || len(recorded.span("locker.hold")) != 1 {
			t.Errorf("the spans are %v", recorded.spans.Ended())
		}
	}
	client, err = locker.New(b.etcd.Client(t), locker.WithTTL(unhurried), locker.WithHooks(b.hooks, forgetful))
	if err != nil {
		t.Fatal(err)
	}
	b.unlock(b.lock(client, "role")) // nothing is recorded, and nothing else happens
	b.close(client)
	b.want("locker.lock.hold.", map[string]int64{"locker.lock.hold.duration{locker.end=released}": 1})
}

// TestHooks_UseTheGlobalProviders is not parallel, because of them.
func TestHooks_UseTheGlobalProviders(t *testing.T) {
	reader, recorder := sdkmetric.NewManualReader(), tracetest.NewSpanRecorder()
	otel.SetMeterProvider(sdkmetric.NewMeterProvider(sdkmetric.WithReader(reader)))
	otel.SetTracerProvider(sdktrace.NewTracerProvider(sdktrace.WithSpanProcessor(recorder)))
	hooks, err := otellocker.Hooks()
	if err != nil {
		t.Fatal(err)
	}
	ctx := hooks.LockStart(t.Context(), locker.LockStart{Verb: "Lock"})
	hooks.LockEnd(ctx, locker.LockEnd{Verb: "Lock", Err: locker.ErrClosed})
	var all metricdata.ResourceMetrics
	if err := reader.Collect(t.Context(), &all); err != nil {
		t.Fatal(err)
	}
	const scope = "github.com/jagregory/locker/contrib/otel"
	if len(all.ScopeMetrics) != 1 || all.ScopeMetrics[0].Scope.Name != scope || all.ScopeMetrics[0].Scope.Version == "" || all.ScopeMetrics[0].Scope.SchemaURL == "" {
		t.Errorf("the metrics are %+v", all.ScopeMetrics)
	}
	if spans := recorder.Ended(); len(spans) != 1 || spans[0].InstrumentationScope() != all.ScopeMetrics[0].Scope {
		t.Errorf("the spans are %+v", spans)
	}
}

// attributeOf returns the attribute of a span, if it has it.
func attributeOf(span sdktrace.ReadOnlySpan, key attribute.Key) (attribute.Value, bool) {
	set := attribute.NewSet(span.Attributes()...)
	return set.Value(key)
}

// eventually calls condition until it is true, or fails the test.
func (b *bundle) eventually(what string, condition func() bool) {
	b.Helper()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for deadline := time.Now().Add(timeout); !condition(); <-tick.C {
		if time.Now().After(deadline) {
			b.Fatalf("it never came true: %s", what)
		}
	}
}
