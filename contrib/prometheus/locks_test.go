package promlocker_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/jagregory/locker/contrib/prometheus"
	"github.com/jagregory/locker/v2"
)

const (
	wait    = "locker_lock_wait_duration_seconds"
	hold    = "locker_lock_hold_duration_seconds"
	held    = "locker_lock_held"
	waiting = "locker_lock_waiting"
	losses  = "locker_lock_losses_total"
)

func TestLocks_AHandOverBetweenTwoClientsIsCounted(t *testing.T) {
	t.Parallel()
	b := setup(t)
	first := b.client(b.etcd.Client(t), unhurried)
	second := b.client(b.etcd.Client(t), unhurried)
	b.want(0, held, labels{})
	b.want(0, waiting, labels{})

	lock := b.lock(first, "role")
	b.want(1, held, labels{})
	b.want(0, waiting, labels{})
	receive(t, b.starts)
	waited := receive(t, b.waits).Waited
	b.wantSum(waited.Seconds(), wait, labels{"error_type": "", "verb": "Lock"})

	done := make(chan error, 1)
	handedOver := make(chan struct{})
	go func() {
		done <- second.Do(within(t), "role", "", func(context.Context, *locker.Lock) error {
			<-handedOver
			return nil
		})
	}()
	receive(t, b.starts)
	b.want(1, held, labels{})
	b.want(1, waiting, labels{})
	b.want(-1, wait, labels{"error_type": "", "verb": "Do"})

	b.unlock(lock)
	length := receive(t, b.holds).Held
	b.wantSum(length.Seconds(), hold, labels{"end": "released"})
	waited = receive(t, b.waits).Waited
	b.want(1, held, labels{})
	b.want(0, waiting, labels{})
	b.want(1, wait, labels{"error_type": "", "verb": "Do"})
	b.wantSum(waited.Seconds(), wait, labels{"error_type": "", "verb": "Do"})

	close(handedOver)
	if err := receive(t, done); err != nil {
		t.Fatal(err)
	}
	length += receive(t, b.holds).Held
	b.want(0, held, labels{})
	b.want(2, hold, labels{"end": "released"})
	b.wantSum(length.Seconds(), hold, labels{"end": "released"})
}

func TestLocks_ARoleThatIsCampaignedForIsCountedAgainAfterALoss(t *testing.T) {
	t.Parallel()
	b := setup(t)
	client := b.client(b.etcd.Client(t), brief)
	operator := b.client(b.etcd.Client(t), unhurried)
	turns := 0
	err := client.Campaign(within(t), "role", "", func(ctx context.Context, lock *locker.Lock) error {
		if turns++; turns == 2 {
			return nil
		}
		if _, err := operator.ForceUnlock(within(t), "role", lock.Token()); err != nil {
			return err
		}
		<-ctx.Done()
		return ctx.Err()
	})
	if err != nil {
		t.Fatal(err)
	}
	receive(t, b.holds)
	receive(t, b.holds)
	b.want(2, wait, labels{"error_type": "", "verb": "Campaign"})
	b.want(1, hold, labels{"end": "deleted"})
	b.want(1, hold, labels{"end": "released"})
	b.want(1, losses, labels{"reason": "deleted"})
	b.want(0, held, labels{})
	b.want(0, waiting, labels{})
}

func TestLosses_AreCountedByReason(t *testing.T) {
	t.Parallel()
	for reason, lose := range map[string]func(b *bundle, lock *locker.Lock, lease clientv3.LeaseID, cut func()){
		"expired": func(_ *bundle, _ *locker.Lock, _ clientv3.LeaseID, cut func()) { cut() },
		"revoked": func(b *bundle, _ *locker.Lock, lease clientv3.LeaseID, _ func()) { b.etcd.ExpireLease(b, lease) },
		"deleted": func(b *bundle, lock *locker.Lock, _ clientv3.LeaseID, _ func()) {
			if _, err := b.etcd.Client(b).Delete(within(b), lock.Key()); err != nil {
				b.Fatal(err)
			}
		},
	} {
		t.Run(reason, func(t *testing.T) {
			t.Parallel()
			b := setup(t)
			proxy := b.etcd.Proxy(t)
			client := b.client(proxy.Client(t), brief)
			lock := b.lock(client, "role")
			for _, r := range []string{"expired", "revoked", "deleted"} {
				b.want(0, losses, labels{"reason": r})
			}
			lose(b, lock, receive(t, b.sessions).Lease, func() { proxy.Cut() })
			length := receive(t, b.holds).Held
			b.want(0, held, labels{})
			b.want(1, hold, labels{"end": reason})
			b.wantSum(length.Seconds(), hold, labels{"end": reason})
			for _, r := range []string{"expired", "revoked", "deleted"} {
				b.want(map[bool]float64{true: 1}[r == reason], losses, labels{"reason": r})
			}
			proxy.Heal()
		})
	}
}

func TestClose_EndsHoldsThatAreNoLosses(t *testing.T) {
	t.Parallel()
	b := setup(t)
	closed := b.client(b.etcd.Client(t), unhurried)
	other := b.client(b.etcd.Client(t), unhurried)
	b.lock(closed, "a")
	b.lock(closed, "b")
	b.lock(other, "c")
	b.want(3, held, labels{})
	if err := closed.Close(); err != nil {
		t.Fatal(err)
	}
	b.want(1, held, labels{})
	b.want(2, hold, labels{"end": "closed"})
	for _, r := range []string{"expired", "revoked", "deleted"} {
		b.want(0, losses, labels{"reason": r})
	}
}

// TestErrors_AreCountedByType has a call fail in each way, while another client holds the name.
func TestErrors_AreCountedByType(t *testing.T) {
	t.Parallel()
	wrong := errors.New("a cause of the program's own")
	type attempt struct {
		b      *bundle
		etcd   *clientv3.Client
		client *locker.Client
	}
	lockUntil := func(a attempt, end func(cancel context.CancelCauseFunc)) error {
		ctx, cancel := context.WithCancelCause(within(a.b))
		defer cancel(nil)
		result := make(chan error, 1)
		go func() {
			_, err := a.client.Lock(ctx, "role", "")
			result <- err
		}()
		receive(a.b, a.b.starts)
		a.b.queued("role", 2)
		a.b.want(1, waiting, labels{})
		end(cancel)
		return receive(a.b, result)
	}
	for errorType, call := range map[string]func(a attempt) error{
		"locked": func(a attempt) error {
			_, err := a.client.TryLock(within(a.b), "role", "")
			return err
		},
		"canceled": func(a attempt) error {
			return lockUntil(a, func(cancel context.CancelCauseFunc) { cancel(wrong) })
		},
		"deadline": func(a attempt) error {
			ctx, cancel := context.WithTimeout(a.b.Context(), 10*time.Millisecond)
			defer cancel()
			_, err := a.client.Lock(ctx, "role", "")
			return err
		},
		"lost": func(a attempt) error {
			return lockUntil(a, func(context.CancelCauseFunc) {
				entries, err := a.client.Queue(within(a.b), "role")
				if err != nil || len(entries) != 2 {
					a.b.Fatal(entries, err)
				}
				if _, err := a.client.ForceUnlock(within(a.b), "role", entries[1].Token); err != nil {
					a.b.Fatal(err)
				}
			})
		},
		"closed": func(a attempt) error {
			return lockUntil(a, func(context.CancelCauseFunc) { _ = a.client.Close() })
		},
		"etcd_closed": func(a attempt) error {
			return lockUntil(a, func(context.CancelCauseFunc) { _ = a.etcd.Close() })
		},
		"InvalidArgument": func(a attempt) error {
			_, err := a.client.Lock(within(a.b), "another", strings.Repeat("x", 1_800_000)) // etcd takes 1.5 MiB
			return err
		},
	} {
		t.Run(errorType, func(t *testing.T) {
			t.Parallel()
			b := setup(t)
			b.lock(b.client(b.etcd.Client(t), unhurried), "role")
			receive(t, b.starts)
			receive(t, b.waits)
			etcd := b.etcd.Client(t)
			err := call(attempt{b, etcd, b.client(etcd, brief)})
			if err == nil {
				t.Fatal("the call did not fail")
			}
			e := receive(t, b.waits)
			b.want(1, wait, labels{"error_type": errorType, "verb": e.Verb})
			b.wantSum(e.Waited.Seconds(), wait, labels{"error_type": errorType, "verb": e.Verb})
			b.want(1, held, labels{})
			b.want(0, waiting, labels{})
			if t.Failed() {
				t.Log(err)
			}
		})
	}
}

// TestErrors_AreTypedByWhatIsInTheirChain has errors that no etcd gives at will.
func TestErrors_AreTypedByWhatIsInTheirChain(t *testing.T) {
	t.Parallel()
	for errorType, err := range map[string]error{
		"session_full":      locker.ErrSessionFull,
		"PermissionDenied":  rpctypes.ErrPermissionDenied,
		"ResourceExhausted": status.Error(codes.ResourceExhausted, "too much"),
		"closed":            locker.ErrClosed,
		"lost":              &locker.LostError{Reason: locker.Revoked, Cause: rpctypes.ErrLeaseNotFound},
		"etcd_closed":       &locker.LostError{Reason: locker.Revoked, Cause: locker.ErrEtcdClosed},
		"other":             errors.New("something else"),
	} {
		metrics := promlocker.New()
		hooks := metrics.Hooks()
		ctx := hooks.LockStart(t.Context(), locker.LockStart{Name: "role", Verb: "Lock"})
		hooks.LockEnd(ctx, locker.LockEnd{Name: "role", Verb: "Lock", Err: fmt.Errorf("locker: lock: %w", err)})
		b := &bundle{T: t, registry: prometheus.NewPedanticRegistry()}
		b.registry.MustRegister(metrics)
		b.want(1, wait, labels{"error_type": errorType, "verb": "Lock"})
		b.want(0, waiting, labels{})
		b.want(0, held, labels{})
	}
}

// queued waits until n entries are in the queue of name.
func (b *bundle) queued(name string, n int) {
	b.Helper()
	etcd := b.etcd.Client(b)
	ctx, cancel := context.WithCancel(within(b))
	defer cancel()
	prefix := locker.DefaultPrefix + name + "/"
	changes := etcd.Watch(ctx, prefix, clientv3.WithPrefix(), clientv3.WithCreatedNotify())
	for range changes {
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

func TestNames_AreALabelOfLocksOnly(t *testing.T) {
	t.Parallel()
	b := setup(t, promlocker.WithNames(func(name string) string {
		kind, _, _ := strings.Cut(name, "/")
		return kind
	}))
	client := b.client(b.etcd.Client(t), brief)
	b.want(-1, held, labels{})
	first, second := b.lock(client, "tenant/1"), b.lock(client, "tenant/2")
	b.lock(client, "role")
	if _, err := client.TryLock(within(t), "tenant/1", ""); !errors.Is(err, locker.ErrLocked) {
		t.Fatal(err)
	}
	tenant, role := labels{"name": "tenant"}, labels{"name": "role"}
	b.want(2, held, tenant)
	b.want(1, held, role)
	b.want(0, waiting, tenant)
	b.want(2, wait, labels{"error_type": "", "verb": "Lock", "name": "tenant"})
	b.want(1, wait, labels{"error_type": "", "verb": "Lock", "name": "role"})
	b.want(1, wait, labels{"error_type": "locked", "verb": "TryLock", "name": "tenant"})
	b.want(0, losses, labels{"reason": "deleted", "name": "tenant"})
	b.want(0, losses, labels{"reason": "deleted", "name": "role"})

	b.unlock(first)
	b.want(1, held, tenant)
	b.want(1, hold, labels{"end": "released", "name": "tenant"})
	receive(t, b.holds)
	if _, err := client.ForceUnlock(within(t), "tenant/2", second.Token()); err != nil {
		t.Fatal(err)
	}
	receive(t, b.holds)
	b.want(0, held, tenant)
	b.want(1, held, role)
	b.want(1, losses, labels{"reason": "deleted", "name": "tenant"})
	b.want(0, losses, labels{"reason": "deleted", "name": "role"})
	b.want(0, "locker_watch_resets_total", labels{"cause": "disconnect"})
}

func TestNames_MayBeCutInTheMiddleOfACharacter(t *testing.T) {
	t.Parallel()
	b := setup(t, promlocker.WithNames(func(name string) string { return name[:3] }))
	b.lock(b.client(b.etcd.Client(t), unhurried), "zürich")
	b.want(1, held, labels{"name": "zü"})
	b.lock(b.client(b.etcd.Client(t), unhurried), "münchén")
	b.want(1, held, labels{"name": "mü"})
	b.lock(b.client(b.etcd.Client(t), unhurried), "fußball")
	b.want(1, held, labels{"name": "fu\uFFFD"})
}

// TestLocks_EveryCallIsCountedOnce has many goroutines of two clients lock, give up and unlock.
func TestLocks_EveryCallIsCountedOnce(t *testing.T) {
	t.Parallel()
	const goroutines, calls = 8, 10
	b := setup(t, promlocker.WithNames(func(name string) string { return name }))
	clients := []*locker.Client{b.client(b.etcd.Client(t), unhurried), b.client(b.etcd.Client(t), unhurried)}
	var all sync.WaitGroup
	for g := range goroutines {
		all.Go(func() {
			for i := range calls {
				ctx, cancel := within(t), context.CancelFunc(func() {})
				if (g+i)%3 == 0 {
					ctx, cancel = context.WithTimeout(ctx, time.Duration(i)*time.Millisecond)
				}
				if lock, err := clients[g%2].Lock(ctx, fmt.Sprint("name", i%2), ""); err == nil {
					if err := lock.Unlock(within(t)); err != nil {
						t.Error(err)
					}
				}
				cancel()
			}
		})
	}
	all.Wait()
	var counted, ended float64
	for _, name := range []string{"name0", "name1"} {
		b.want(0, held, labels{"name": name})
		b.want(0, waiting, labels{"name": name})
		successes := b.series(wait, labels{"error_type": "", "verb": "Lock", "name": name}).GetHistogram().GetSampleCount()
		b.want(float64(successes), hold, labels{"end": "released", "name": name})
		counted += float64(successes)
		ended += float64(b.series(wait, labels{"error_type": "deadline", "verb": "Lock", "name": name}).GetHistogram().GetSampleCount())
	}
	if counted+ended != goroutines*calls {
		t.Errorf("%v locks and %v deadlines, want %d calls", counted, ended, goroutines*calls)
	}
}
