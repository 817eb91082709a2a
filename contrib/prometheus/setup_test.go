package promlocker_test

import (
	"context"
	"maps"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	dto "github.com/prometheus/client_model/go"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/goleak"

	"github.com/jagregory/locker/contrib/prometheus"
	"github.com/jagregory/locker/v2"
	"github.com/jagregory/locker/v2/embedtest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// timeout is how long a test waits for anything before it fails.
const timeout = time.Minute

// brief is the TTL of tests that wait for a renewal or a loss; unhurried is one with which no lease
// is lost by itself.
const (
	brief     = 5 * time.Second
	unhurried = time.Minute
)

// bundle is what most tests need: an etcd, metrics, and what the hooks of all clients were told.
type bundle struct {
	*testing.T
	etcd     *embedtest.Server
	metrics  *promlocker.Metrics
	registry *prometheus.Registry

	starts   chan locker.LockStart
	waits    chan locker.LockEnd
	holds    chan locker.HoldEnd
	renewals chan locker.Renewal
	sessions chan locker.SessionStart
	resets   chan locker.WatchReset
}

func setup(t *testing.T, opts ...promlocker.Option) *bundle {
	b := &bundle{
		T:        t,
		etcd:     embedtest.Start(t),
		metrics:  promlocker.New(opts...),
		registry: prometheus.NewPedanticRegistry(),
		starts:   make(chan locker.LockStart, 1000),
		waits:    make(chan locker.LockEnd, 1000),
		holds:    make(chan locker.HoldEnd, 1000),
		renewals: make(chan locker.Renewal, 1000),
		sessions: make(chan locker.SessionStart, 1000),
		resets:   make(chan locker.WatchReset, 1000),
	}
	b.registry.MustRegister(b.metrics)
	return b
}

// client returns a Client with the hooks of the metrics and, after them, hooks that tell the test.
func (b *bundle) client(etcd *clientv3.Client, ttl time.Duration) *locker.Client {
	b.Helper()
	tell := locker.Hooks{
		LockStart: func(ctx context.Context, e locker.LockStart) context.Context {
			b.starts <- e
			return ctx
		},
		LockEnd:      func(_ context.Context, e locker.LockEnd) { b.waits <- e },
		HoldEnd:      func(e locker.HoldEnd) { b.holds <- e },
		SessionStart: func(e locker.SessionStart) { b.sessions <- e },
		Renewal:      func(e locker.Renewal) { b.renewals <- e },
		WatchReset:   func(e locker.WatchReset) { b.resets <- e },
	}
	client, err := locker.New(etcd, locker.WithTTL(ttl), locker.WithHooks(b.metrics.Hooks(), tell))
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

// labels are those of one series.
type labels map[string]string

// series returns the series with exactly these labels, or nil if there is none.
func (b *bundle) series(name string, l labels) *dto.Metric {
	b.Helper()
	families, err := b.registry.Gather()
	if err != nil {
		b.Fatal(err)
	}
	for _, family := range families {
		for _, metric := range family.GetMetric() {
			have := labels{}
			for _, pair := range metric.GetLabel() {
				have[pair.GetName()] = pair.GetValue()
			}
			if family.GetName() == name && maps.Equal(have, l) {
				return metric
			}
		}
	}
	return nil
}

// want fails the test unless the series has that value; in the case of a histogram, that count.
// If there is no such series, its value is -1.
func (b *bundle) want(value float64, name string, l labels) {
	b.Helper()
	have := -1.0
	switch m := b.series(name, l); {
	case m.GetHistogram() != nil:
		have = float64(m.GetHistogram().GetSampleCount())
	case m.GetGauge() != nil:
		have = m.GetGauge().GetValue()
	case m.GetCounter() != nil:
		have = m.GetCounter().GetValue()
	}
	if have != value {
		b.Errorf("%s%v is %v, want %v", name, l, have, value)
	}
}

// wantSum fails the test unless the observations of a histogram add up to that.
func (b *bundle) wantSum(sum float64, name string, l labels) {
	b.Helper()
	const rounding = 1e-9
	if have := b.series(name, l).GetHistogram().GetSampleSum(); have < sum-rounding || have > sum+rounding {
		b.Errorf("the sum of %s%v is %v, want %v", name, l, have, sum)
	}
}
