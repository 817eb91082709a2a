package otellocker_test

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.opentelemetry.io/otel/attribute"
	sdkmetric "go.opentelemetry.io/otel/sdk/metric"
	"go.opentelemetry.io/otel/sdk/metric/metricdata"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/sdk/trace/tracetest"
	"go.opentelemetry.io/otel/trace"
	"go.uber.org/goleak"

	"github.com/jagregory/locker/contrib/otel"
	"github.com/jagregory/locker/v2"
	"github.com/jagregory/locker/v2/embedtest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// timeout is how long a test waits for anything before it fails.
const timeout = time.Minute

// TTLs: brief is for tests that wait for a lease to run out, steady for those that wait for a renewal of one that
// must not, and with unhurried no lease is renewed or lost by itself.
const (
	brief     = 5 * time.Second
	steady    = 20 * time.Second
	unhurried = time.Minute
)

// bundle is what most tests need: an etcd, what was recorded, and what the hooks of all clients were told.
type bundle struct {
	*testing.T
	etcd   *embedtest.Server
	hooks  locker.Hooks
	reader *sdkmetric.ManualReader
	spans  *tracetest.SpanRecorder
	tracer trace.Tracer // for the spans of callers

	waits    chan locker.LockEnd
	holds    chan locker.HoldEnd
	renewals chan locker.Renewal
	resets   chan locker.WatchReset
}

func setup(t *testing.T, opts ...otellocker.Option) *bundle {
	t.Helper()
	b := &bundle{
		T:        t,
		etcd:     embedtest.Start(t),
		reader:   sdkmetric.NewManualReader(),
		spans:    tracetest.NewSpanRecorder(),
		waits:    make(chan locker.LockEnd, 1000),
		holds:    make(chan locker.HoldEnd, 1000),
		renewals: make(chan locker.Renewal, 1000),
		resets:   make(chan locker.WatchReset, 1000),
	}
	meters := sdkmetric.NewMeterProvider(sdkmetric.WithReader(b.reader))
	tracers := sdktrace.NewTracerProvider(sdktrace.WithSpanProcessor(b.spans))
	b.tracer = tracers.Tracer("test")
	var err error
	b.hooks, err = otellocker.Hooks(append(opts, otellocker.WithMeterProvider(meters), otellocker.WithTracerProvider(tracers))...)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// client returns a Client with the hooks and, after them, hooks that tell the test.
func (b *bundle) client(etcd *clientv3.Client, ttl time.Duration) *locker.Client {
	b.Helper()
	tell := locker.Hooks{
		LockEnd:    func(_ context.Context, e locker.LockEnd) { b.waits <- e },
		HoldEnd:    func(e locker.HoldEnd) { b.holds <- e },
		Renewal:    func(e locker.Renewal) { b.renewals <- e },
		WatchReset: func(e locker.WatchReset) { b.resets <- e },
	}
	client, err := locker.New(etcd, locker.WithTTL(ttl), locker.WithHooks(b.hooks, tell))
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { _ = client.Close() }) // some tests cut it off
	return client
}

// within returns the context of a test: it ends when the test does, or has taken too long.
func within(t testing.TB) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), timeout)
	t.Cleanup(cancel)
	return ctx
}

func (b *bundle) lock(client *locker.Client, name string) *locker.Lock {
	b.Helper()
	lock, err := client.Lock(within(b), name, "")
	if err != nil {
		b.Fatal(err)
	}
	return lock
}

func (b *bundle) unlock(lock *locker.Lock) {
	b.Helper()
	if err := lock.Unlock(within(b)); err != nil {
		b.Fatal(err)
	}
}

func (b *bundle) close(client *locker.Client) {
	b.Helper()
	if err := client.Close(); err != nil {
		b.Fatal(err)
	}
}

// lockLater locks in another goroutine, and returns when its entry is the second in the queue. The Lock, or nil if
// there is none, arrives in the channel.
func (b *bundle) lockLater(ctx context.Context, client *locker.Client, name string) <-chan *locker.Lock {
	b.Helper()
	result := make(chan *locker.Lock, 1)
	var running sync.WaitGroup
	running.Go(func() {
		lock, _ := client.Lock(ctx, name, "") // the hooks are told why not
		result <- lock
	})
	b.Cleanup(running.Wait)
	b.queued(name, 2)
	return result
}

// queued waits until n entries are in the queue of name.
func (b *bundle) queued(name string, n int) {
	b.Helper()
	etcd := b.etcd.Client(b)
	ctx, cancel := context.WithCancel(within(b))
	defer cancel()
	prefix := locker.DefaultPrefix + name + "/"
	for range etcd.Watch(ctx, prefix, clientv3.WithPrefix(), clientv3.WithCreatedNotify()) {
		reply, err := etcd.Get(ctx, prefix, clientv3.WithPrefix(), clientv3.WithCountOnly())
		if err != nil {
			b.Fatal(err)
		}
		if reply.Count == int64(n) {
			return
		}
	}
	b.Fatalf("the queue of %s never had %d entries", name, n)
}

// revoke ends the lease of a lock.
func (b *bundle) revoke(lock *locker.Lock) {
	b.Helper()
	reply, err := b.etcd.Client(b).Get(within(b), lock.Key())
	if err != nil || len(reply.Kvs) != 1 {
		b.Fatal(reply, err)
	}
	b.etcd.ExpireLease(b, clientv3.LeaseID(reply.Kvs[0].Lease))
}

// remove deletes the entry of a lock.
func (b *bundle) remove(lock *locker.Lock) {
	b.Helper()
	if reply, err := b.etcd.Client(b).Delete(within(b), lock.Key()); err != nil || reply.Deleted != 1 {
		b.Fatal(reply, err)
	}
}

// notice makes the holder of a lock learn that it has lost it.
func (b *bundle) notice(lock *locker.Lock) {
	b.Helper()
	if _, err := lock.Commit(within(b), clientv3.OpPut("x", "")); !errors.Is(err, locker.ErrLost) {
		b.Fatal(err)
	}
}

// receive returns what comes from ch, or fails the test.
func receive[T any](t testing.TB, ch <-chan T) T {
	t.Helper()
	select {
	case v := <-ch:
		return v
	case <-time.After(timeout):
		t.Fatal("nothing came")
		panic("unreachable")
	}
}

// metrics returns all that has been recorded, by name.
func (b *bundle) metrics() map[string]metricdata.Metrics {
	b.Helper()
	var all metricdata.ResourceMetrics
	if err := b.reader.Collect(b.Context(), &all); err != nil {
		b.Fatal(err)
	}
	named := make(map[string]metricdata.Metrics)
	for _, scope := range all.ScopeMetrics {
		for _, m := range scope.Metrics {
			named[m.Name] = m
		}
	}
	return named
}

// value is one of a metric; of a histogram, it is the count, and sum is in seconds.
type value struct {
	n   int64
	sum float64
}

// values returns those of all metrics that begin with prefix, by name and attributes: "a{b=c,d=e}".
func (b *bundle) values(prefix string) map[string]value {
	b.Helper()
	all := make(map[string]value)
	for name, m := range b.metrics() {
		if !strings.HasPrefix(name, prefix) {
			continue
		}
		switch data := m.Data.(type) {
		case metricdata.Sum[int64]:
			for _, p := range data.DataPoints {
				all[name+encode(p.Attributes)] = value{n: p.Value}
			}
		case metricdata.Histogram[float64]:
			for _, p := range data.DataPoints {
				all[name+encode(p.Attributes)] = value{n: int64(p.Count), sum: p.Sum}
			}
		default:
			b.Fatalf("%s is a %T", name, data)
		}
	}
	return all
}

func encode(set attribute.Set) string {
	return "{" + set.Encoded(attribute.DefaultEncoder()) + "}"
}

// want fails the test unless these are all values of the metrics that begin with prefix, apart from zeros.
func (b *bundle) want(prefix string, values map[string]int64) {
	b.Helper()
	have := make(map[string]int64)
	for name, v := range b.values(prefix) {
		if v.n != 0 {
			have[name] = v.n
		}
	}
	if !maps.Equal(have, values) {
		b.Errorf("recorded:\n%s\nwant:\n%s", lines(have), lines(values))
	}
}

func lines(values map[string]int64) string {
	var text strings.Builder
	for _, name := range slices.Sorted(maps.Keys(values)) {
		fmt.Fprintln(&text, name, values[name])
	}
	return text.String()
}

// wantSum fails the test unless the observations of a histogram add up to that.
func (b *bundle) wantSum(name string, sum time.Duration) {
	b.Helper()
	const rounding = 1e-9
	have, ok := b.values("")[name]
	if want := sum.Seconds(); !ok || have.sum < want-rounding || have.sum > want+rounding {
		b.Errorf("the sum of %s is %v, want %v", name, have.sum, want)
	}
}

// span returns the ended spans of that name, the first to end first.
func (b *bundle) span(name string) (spans []sdktrace.ReadOnlySpan) {
	for _, s := range b.spans.Ended() {
		if s.Name() == name {
			spans = append(spans, s)
		}
	}
	return spans
}

// wantAttributes fails the test unless these are all attributes of the span.
func wantAttributes(t testing.TB, span sdktrace.ReadOnlySpan, attributes ...attribute.KeyValue) {
	t.Helper()
	if have, want := attribute.NewSet(span.Attributes()...), attribute.NewSet(attributes...); !have.Equals(&want) {
		t.Errorf("%s has %s, want %s", span.Name(), encode(have), encode(want))
	}
}
