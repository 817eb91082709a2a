package otellocker_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.opentelemetry.io/otel/metric"
	"go.opentelemetry.io/otel/metric/noop"
	"go.opentelemetry.io/otel/sdk/metric/metricdata"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/jagregory/locker/contrib/otel"
	"github.com/jagregory/locker/v2"
)

const locks = "locker.lock." // what the metrics of locks begin with

func TestMetrics_CountLocksThatAreTakenWaitedForAndReleased(t *testing.T) {
	t.Parallel()
	b := setup(t)
	client := b.client(b.etcd.Client(t), unhurried)
	other := b.client(b.etcd.Client(t), unhurried)
	b.want(locks, map[string]int64{})

	first := b.lock(client, "role")
	b.lock(other, "another")
	b.want(locks, map[string]int64{
		"locker.lock.wait.duration{locker.verb=Lock}": 2,
		"locker.lock.held{}":                          2,
	})
	second := b.lockLater(within(t), other, "role")
	b.want(locks, map[string]int64{
		"locker.lock.wait.duration{locker.verb=Lock}": 2,
		"locker.lock.held{}":                          2,
		"locker.lock.waiting{}":                       1,
	})
	b.unlock(first)
	b.unlock(receive(t, second))
	b.want(locks, map[string]int64{
		"locker.lock.wait.duration{locker.verb=Lock}":    3,
		"locker.lock.hold.duration{locker.end=released}": 2,
		"locker.lock.held{}":                             1,
	})
	var waited, held time.Duration
	for range 3 {
		waited += receive(t, b.waits).Waited
	}
	for range 2 {
		held += receive(t, b.holds).Held
	}
	b.wantSum("locker.lock.wait.duration{locker.verb=Lock}", waited)
	b.wantSum("locker.lock.hold.duration{locker.end=released}", held)
}

func TestMetrics_AreByVerb(t *testing.T) {
	t.Parallel()
	b := setup(t)
	client := b.client(b.etcd.Client(t), unhurried)
	inside := func(context.Context, *locker.Lock) error {
		b.want("locker.lock.held", map[string]int64{"locker.lock.held{}": 1})
		b.want("locker.lock.waiting", map[string]int64{})
		return nil
	}
	if err := client.Do(within(t), "role", "", inside); err != nil {
		t.Fatal(err)
	}
	if err := client.Campaign(within(t), "role", "", inside); err != nil {
		t.Fatal(err)
	}
	lock, err := client.TryLock(within(t), "role", "")
	if err != nil {
		t.Fatal(err)
	}
	b.unlock(lock)
	b.want(locks, map[string]int64{
		"locker.lock.wait.duration{locker.verb=Do}":       1,
		"locker.lock.wait.duration{locker.verb=Campaign}": 1,
		"locker.lock.wait.duration{locker.verb=TryLock}":  1,
		"locker.lock.hold.duration{locker.end=released}":  3,
	})
}

// losses are the ways to lose a lock, by the reason.
var losses = map[string]func(*bundle) *locker.Lock{
	"expired": func(b *bundle) *locker.Lock {
		proxy := b.etcd.Proxy(b)
		lock := b.lock(b.client(proxy.Client(b), brief), "role")
		proxy.Cut()
		return lock
	},
	"revoked": func(b *bundle) *locker.Lock {
		lock := b.lock(b.client(b.etcd.Client(b), unhurried), "role")
		b.revoke(lock)
		b.notice(lock)
		return lock
	},
	"deleted": func(b *bundle) *locker.Lock {
		lock := b.lock(b.client(b.etcd.Client(b), unhurried), "role")
		b.remove(lock)
		b.notice(lock)
		return lock
	},
}

func TestMetrics_CountLosses(t *testing.T) {
	t.Parallel()
	for reason, lose := range losses {
		t.Run(reason, func(t *testing.T) {
			t.Parallel()
			b := setup(t)
			lock := lose(b)
			end := receive(t, b.holds)
			if end.Lock != lock || !errors.Is(end.Cause, locker.ErrLost) {
				t.Fatalf("%+v", end)
			}
			hold := fmt.Sprintf("locker.lock.hold.duration{locker.end=%s}", reason)
			b.want(locks, map[string]int64{
				"locker.lock.wait.duration{locker.verb=Lock}": 1,
				hold: 1,
				fmt.Sprintf("locker.lock.losses{locker.reason=%s}", reason): 1,
			})
			b.wantSum(hold, end.Held)
		})
	}
}

func TestMetrics_AClosedClientHasLostNothing(t *testing.T) {
	t.Parallel()
	b := setup(t)
	client := b.client(b.etcd.Client(t), unhurried)
	other := b.client(b.etcd.Client(t), unhurried)
	b.lock(client, "a")
	b.lock(client, "b")
	b.lock(other, "c")
	b.close(client)
	b.want(locks, map[string]int64{
		"locker.lock.wait.duration{locker.verb=Lock}":  3,
		"locker.lock.hold.duration{locker.end=closed}": 2,
		"locker.lock.held{}":                           1,
	})
}

// TestErrors_AreTyped has a call fail in each way, while another client holds the name.
func TestErrors_AreTyped(t *testing.T) {
	t.Parallel()
	type attempt struct {
		*bundle
		etcd   *clientv3.Client
		client *locker.Client
	}
	// during makes a call of Lock wait, and then that it fails.
	during := func(a attempt, end func(context.CancelCauseFunc)) {
		ctx, cancel := context.WithCancelCause(within(a))
		defer cancel(nil)
		waiting := a.lockLater(ctx, a.client, "role")
		a.want("locker.lock.waiting", map[string]int64{"locker.lock.waiting{}": 1})
		end(cancel)
		receive(a, waiting)
	}
	for errorType, call := range map[string]func(attempt){
		"locked": func(a attempt) { _, _ = a.client.TryLock(within(a), "role", "") },
		"canceled": func(a attempt) {
			during(a, func(cancel context.CancelCauseFunc) { cancel(errors.New("the program's own")) })
		},
		"deadline": func(a attempt) {
			ctx, cancel := context.WithTimeoutCause(a.Context(), 10*time.Millisecond, errors.New("the program's own"))
			defer cancel()
			_, _ = a.client.Lock(ctx, "role", "")
		},
		"lost": func(a attempt) {
			during(a, func(context.CancelCauseFunc) {
				entries, err := a.client.Queue(within(a), "role")
				if err != nil || len(entries) != 2 {
					a.Fatal(entries, err)
				}
				if _, err := a.client.ForceUnlock(within(a), "role", entries[1].Token); err != nil {
					a.Fatal(err)
				}
			})
		},
		"closed":      func(a attempt) { during(a, func(context.CancelCauseFunc) { a.close(a.client) }) },
		"etcd_closed": func(a attempt) { during(a, func(context.CancelCauseFunc) { _ = a.etcd.Close() }) },
		"InvalidArgument": func(a attempt) {
			_, _ = a.client.Lock(within(a), "another", strings.Repeat("x", 1_800_000)) // etcd takes 1.5 MiB
		},
	} {
		t.Run(errorType, func(t *testing.T) {
			t.Parallel()
			b := setup(t)
			b.lock(b.client(b.etcd.Client(t), unhurried), "role")
			receive(t, b.waits)
			etcd := b.etcd.Client(t)
			call(attempt{b, etcd, b.client(etcd, unhurried)})
			end := receive(t, b.waits)
			wait := fmt.Sprintf("locker.lock.wait.duration{error.type=%s,locker.verb=%s}", errorType, end.Verb)
			b.want(locks, map[string]int64{
				wait: 1,
				"locker.lock.wait.duration{locker.verb=Lock}": 1, // of the holder
				"locker.lock.held{}":                          1,
			})
			b.wantSum(wait, end.Waited)
			if t.Failed() {
				t.Log(end.Err)
			}
		})
	}
}

// TestErrors_AreTypedByWhatIsInTheirChain has errors that no etcd gives at will.
func TestErrors_AreTypedByWhatIsInTheirChain(t *testing.T) {
	t.Parallel()
	b := setup(t)
	want := make(map[string]int64)
	for errorType, err := range map[string]error{
		"session_full":      locker.ErrSessionFull,
		"PermissionDenied":  rpctypes.ErrPermissionDenied,
		"ResourceExhausted": status.Error(codes.ResourceExhausted, "too much"),
		"closed":            locker.ErrClosed,
		"lost":              &locker.LostError{Reason: locker.Revoked, Cause: rpctypes.ErrLeaseNotFound},
		"etcd_closed":       &locker.LostError{Reason: locker.Revoked, Cause: locker.ErrEtcdClosed},
		"_OTHER":            errors.New("something else"),
	} {
		ctx := b.hooks.LockStart(t.Context(), locker.LockStart{Name: "role", Verb: "Lock"})
		b.hooks.LockEnd(ctx, locker.LockEnd{Name: "role", Verb: "Lock", Err: fmt.Errorf("locker: lock: %w", err)})
		want[fmt.Sprintf("locker.lock.wait.duration{error.type=%s,locker.verb=Lock}", errorType)] = 1
	}
	b.want(locks, want)
}

func TestMetrics_HaveEachRenewal(t *testing.T) {
	t.Parallel()
	b := setup(t)
	client := b.client(b.etcd.Client(t), steady)
	b.lock(client, "role")
	renewals := []locker.Renewal{receive(t, b.renewals)}
	b.close(client)
	close(b.renewals) // nothing comes after Close
	for e := range b.renewals {
		renewals = append(renewals, e)
	}
	var took, left time.Duration
	for _, e := range renewals {
		if e.Err != nil {
			t.Fatal(e.Err)
		}
		took += e.Took
		left += e.Left
	}
	b.want("locker.session.", map[string]int64{
		"locker.session.renewal.duration{}": int64(len(renewals)),
		"locker.session.slack{}":            int64(len(renewals)),
	})
	b.wantSum("locker.session.renewal.duration{}", took)
	b.wantSum("locker.session.slack{}", left)
}

func TestMetrics_TellLostLeasesFromRenewals(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.revoke(b.lock(b.client(b.etcd.Client(t), steady), "role"))
	renewed := int64(0)
	e := receive(t, b.renewals)
	for ; e.Err == nil; e = receive(t, b.renewals) { // one may have been under way
		renewed++
	}
	want := map[string]int64{
		"locker.session.renewal.duration{error.type=lost}": 1,
		"locker.session.slack{error.type=lost}":            1,
	}
	if renewed > 0 {
		want["locker.session.renewal.duration{}"] = renewed
		want["locker.session.slack{}"] = renewed
	}
	b.want("locker.session.", want)
	b.wantSum("locker.session.renewal.duration{error.type=lost}", e.Took)
	b.wantSum("locker.session.slack{error.type=lost}", e.Left)
}

func TestMetrics_CountResetsOfWatches(t *testing.T) {
	t.Parallel()
	b := setup(t)
	proxy := b.etcd.Proxy(t)
	client := b.client(proxy.Client(t), unhurried)
	cache, err := client.NewCache(within(t), "")
	if err != nil {
		t.Fatal(err)
	}
	proxy.Cut()
	want := map[string]int64{}
	count := func(e locker.WatchReset) { want["locker.watch.resets{locker.cause="+e.Cause+"}"]++ }
	first := receive(t, b.resets)
	if first.Cause != "disconnect" {
		t.Errorf("the cause is %q", first.Cause)
	}
	count(first)
	proxy.Heal()
	cache.Close()
	b.close(client)
	close(b.resets) // nothing comes after Close
	for e := range b.resets {
		count(e)
	}
	b.want("locker.watch.", want)
}

func TestNames_AreAnAttributeOnlyIfTheyAreMapped(t *testing.T) {
	t.Parallel()
	b := setup(t, otellocker.WithNames(func(name string) string {
		kind, _, ok := strings.Cut(name, ".")
		if !ok {
			return ""
		}
		return kind
	}))
	client := b.client(b.etcd.Client(t), unhurried)
	first, second := b.lock(client, "tenant.1"), b.lock(client, "tenant.2")
	b.lock(client, "role")
	if _, err := client.TryLock(within(t), "tenant.1", ""); !errors.Is(err, locker.ErrLocked) {
		t.Fatal(err)
	}
	waiting := b.lockLater(within(t), b.client(b.etcd.Client(t), unhurried), "tenant.1")
	b.remove(second)
	b.notice(second)
	receive(t, b.holds)
	b.want(locks, map[string]int64{
		"locker.lock.wait.duration{locker.name=tenant,locker.verb=Lock}":                      2,
		"locker.lock.wait.duration{error.type=locked,locker.name=tenant,locker.verb=TryLock}": 1,
		"locker.lock.wait.duration{locker.verb=Lock}":                                         1,
		"locker.lock.held{locker.name=tenant}":                                                1,
		"locker.lock.held{}":                                                                  1,
		"locker.lock.waiting{locker.name=tenant}":                                             1,
		"locker.lock.hold.duration{locker.end=deleted,locker.name=tenant}":                    1,
		"locker.lock.losses{locker.name=tenant,locker.reason=deleted}":                        1,
	})
	b.unlock(first)
	b.unlock(receive(t, waiting))
	if spans := slices.Concat(b.span("locker.wait"), b.span("locker.hold")); len(spans) != 8 {
		t.Fatalf("%d spans", len(spans))
	}
	for i, wait := range b.span("locker.wait") {
		if name, ok := attributeOf(wait, "locker.name"); ok != (i != 2) || ok && name.AsString() != "tenant" {
			t.Errorf("wait %d has the name %v", i, name)
		}
	}
	for _, hold := range b.span("locker.hold") { // role is still held
		if name, _ := attributeOf(hold, "locker.name"); name.AsString() != "tenant" {
			t.Errorf("a hold has the name %v", name)
		}
	}
}

func TestMetrics_AddUpWhateverManyGoroutinesDo(t *testing.T) {
	t.Parallel()
	const goroutines, rounds = 8, 10
	b := setup(t)
	clients := []*locker.Client{b.client(b.etcd.Client(t), unhurried), b.client(b.etcd.Client(t), unhurried)}
	ctx := within(t)
	var running sync.WaitGroup
	for i := range goroutines {
		running.Go(func() {
			client := clients[i%len(clients)]
			for range rounds {
				if lock, err := client.TryLock(ctx, "role", ""); err == nil {
					_ = lock.Unlock(ctx)
				}
				if err := client.Do(ctx, "role", "", func(context.Context, *locker.Lock) error { return nil }); err != nil {
					t.Error(err)
				}
			}
		})
	}
	running.Wait()
	close(b.waits)
	want := make(map[string]int64)
	for e := range b.waits {
		switch {
		case e.Err == nil:
			want["locker.lock.wait.duration{locker.verb="+e.Verb+"}"]++
			want["locker.lock.hold.duration{locker.end=released}"]++
		case errors.Is(e.Err, locker.ErrLocked):
			want["locker.lock.wait.duration{error.type=locked,locker.verb="+e.Verb+"}"]++
		default:
			t.Error(e.Err)
		}
	}
	b.want(locks, want)
	if waits, holds := len(b.span("locker.wait")), len(b.span("locker.hold")); waits != 2*goroutines*rounds || int64(holds) != want["locker.lock.hold.duration{locker.end=released}"] {
		t.Errorf("%d spans of waits, %d of holds", waits, holds)
	}
}

func TestInstruments_AreAsDocumented(t *testing.T) {
	t.Parallel()
	b := setup(t)
	ctx := b.hooks.LockStart(t.Context(), locker.LockStart{Verb: "Lock"})
	lock := new(locker.Lock)
	b.hooks.LockEnd(ctx, locker.LockEnd{Verb: "Lock", Lock: lock})
	b.hooks.HoldEnd(locker.HoldEnd{Lock: lock, Cause: &locker.LostError{Reason: locker.Expired}})
	b.hooks.Renewal(locker.Renewal{})
	b.hooks.WatchReset(locker.WatchReset{})
	kinds := map[string]string{
		"locker.lock.wait.duration":       "histogram s",
		"locker.lock.hold.duration":       "histogram s",
		"locker.lock.waiting":             "updowncounter {call}",
		"locker.lock.held":                "updowncounter {lock}",
		"locker.lock.losses":              "counter {loss}",
		"locker.session.renewal.duration": "histogram s",
		"locker.session.slack":            "histogram s",
		"locker.watch.resets":             "counter {reset}",
	}
	metrics := b.metrics()
	if len(metrics) != len(kinds) {
		t.Errorf("there are %d metrics, want %d", len(metrics), len(kinds))
	}
	for name, want := range kinds {
		m := metrics[name]
		var kind string
		switch data := m.Data.(type) {
		case metricdata.Histogram[float64]:
			kind = "histogram"
			if bounds := data.DataPoints[0].Bounds; bounds[1] > .1 || !slices.IsSorted(bounds) { // the second of the default is 5
				t.Errorf("%s has the buckets %v", name, bounds)
			}
		case metricdata.Sum[int64]:
			kind = "updowncounter"
			if data.IsMonotonic {
				kind = "counter"
			}
		}
		if have := kind + " " + m.Unit; have != want || m.Description == "" {
			t.Errorf("%s is a %s, want a %s: %s", name, have, want, m.Description)
		}
	}
}

var errNoCounters = errors.New("no counters")

// A countless provider has meters without counters.
type (
	countless struct{ noop.MeterProvider }
	meter     struct{ noop.Meter }
)

func (countless) Meter(string, ...metric.MeterOption) metric.Meter { return meter{} }

func (meter) Int64Counter(string, ...metric.Int64CounterOption) (metric.Int64Counter, error) {
	return nil, errNoCounters
}

func TestHooks_ReturnTheErrorOfTheMeterProvider(t *testing.T) {
	t.Parallel()
	if _, err := otellocker.Hooks(otellocker.WithMeterProvider(countless{})); !errors.Is(err, errNoCounters) {
		t.Error(err)
	}
}
