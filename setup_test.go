package locker_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/status"

	"github.com/jagregory/locker/v2"
	"github.com/jagregory/locker/v2/embedtest"
	"github.com/jagregory/locker/v2/internal/locktest"
)

func TestMain(m *testing.M) { locktest.Main(m) }

// write is what a transaction does to the queue of one name.
type write struct{ name, put, deleted string } // the name, escaped, and the keys that are put and deleted

// handsOver reports whether one entry is deleted and another is put.
func (w write) handsOver() bool { return w.put != "" && w.deleted != "" }

// writesOf returns the writes of a transaction, whether it is flat or has them nested in it.
// Records are in no queue and do not count.
func writesOf(req any) (all []write) {
	txn, _ := req.(*pb.TxnRequest)
	for _, op := range txn.GetSuccess() {
		all = append(all, writesOf(op.GetRequestTxn())...)
		put, deleted := string(op.GetRequestPut().GetKey()), string(op.GetRequestDeleteRange().GetKey())
		name, _, _ := strings.Cut(strings.TrimPrefix(put+deleted, locker.DefaultPrefix), "/")
		if name == "" {
			continue
		}
		if n := len(all); n == 0 || all[n-1].name != name {
			all = append(all, write{name: name})
		}
		own := &all[len(all)-1]
		own.put, own.deleted = own.put+put, own.deleted+deleted
	}
	return all
}

// writes reports whether a request writes the queue of name.
func writes(req any, name string) bool {
	return slices.ContainsFunc(writesOf(req), func(w write) bool { return w.name == name })
}

// batched reports whether a request carries several writes.
func batched(req any) bool { return len(writesOf(req)) > 1 }

// handsOver reports whether a request hands name over to the next caller of the same client.
func handsOver(req any, name string) bool {
	return slices.ContainsFunc(writesOf(req), func(w write) bool { return w.name == name && w.handsOver() })
}

// wire intercepts the requests of a client: it records the transactions that write queues, and injects a fault
// into the requests that match.
type wire struct {
	mu       sync.Mutex // guards what follows
	requests []any      // in the order in which they were sent
	txns     [][]write
	refused  []error // with which etcd answered some of txns
	match    func(req any) bool
	left     int // how many faults are still to happen
	fault    func(ctx context.Context, call func() error) error
}

func (w *wire) intercept(ctx context.Context, _ string, req any, call func() error) error {
	w.mu.Lock()
	w.requests = append(w.requests, req)
	parts := writesOf(req)
	if len(parts) > 0 {
		w.txns = append(w.txns, parts)
	}
	fault := w.fault
	if w.left > 0 && w.match(req) {
		w.left--
	} else {
		fault = nil
	}
	w.mu.Unlock()
	if fault != nil {
		return fault(ctx, call)
	}
	err := call()
	if err != nil && len(parts) > 0 {
		w.mu.Lock()
		w.refused = append(w.refused, err)
		w.mu.Unlock()
	}
	return err
}

// fail injects a fault into the next requests that match.
func (w *wire) fail(times int, match func(req any) bool, fault func(ctx context.Context, call func() error) error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.match, w.left, w.fault = match, times, fault
}

// pending reports whether a fault is still to happen.
func (w *wire) pending() bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.left > 0
}

// transactions returns the transactions sent so far, from the n-th on.
func (w *wire) transactions(n int) [][]write {
	w.mu.Lock()
	defer w.mu.Unlock()
	return slices.Clone(w.txns[n:])
}

// refusals returns the errors with which etcd has answered transactions so far.
func (w *wire) refusals() []error {
	w.mu.Lock()
	defer w.mu.Unlock()
	return slices.Clone(w.refused)
}

// count returns how many requests have been sent.
func (w *wire) count() int {
	w.mu.Lock()
	defer w.mu.Unlock()
	return len(w.requests)
}

// requestFaults are the ways in which a request fails at once.
var requestFaults = map[string]func(ctx context.Context, call func() error) error{
	"its reply is lost": func(_ context.Context, call func() error) error {
		if err := call(); err != nil {
			return err
		}
		return locktest.ErrReplyLost
	},
	"it is lost": func(context.Context, func() error) error { return locktest.ErrReplyLost },
}

// neverAnswered is the fault of a request that gets no answer until its context ends.
func neverAnswered(ctx context.Context, _ func() error) error {
	<-ctx.Done()
	return status.FromContextError(ctx.Err()).Err()
}

// barrier holds a request until it is opened.
type barrier struct {
	arrived, opened chan struct{}
	open            func() // idempotent
}

// stop makes the next request that matches wait at a barrier: before it is sent or, if committed, after etcd has
// applied it.
func (w *wire) stop(t testing.TB, committed bool, match func(req any) bool) barrier {
	g := barrier{arrived: make(chan struct{}), opened: make(chan struct{})}
	g.open = sync.OnceFunc(func() { close(g.opened) })
	t.Cleanup(g.open)
	wait := func(ctx context.Context) error {
		close(g.arrived)
		select {
		case <-g.opened:
			return nil
		case <-ctx.Done():
			return status.FromContextError(ctx.Err()).Err()
		}
	}
	w.fail(1, match, func(ctx context.Context, call func() error) error {
		if !committed {
			if err := wait(ctx); err != nil {
				return err
			}
			return call()
		}
		if err := call(); err != nil {
			return err
		}
		return wait(ctx)
	})
	return g
}

// unhedged is a hedge delay that no request takes, even on a busy machine.
const unhedged = 5 * time.Second

// wired returns a client whose requests pass through a wire, and which has a session. Tests count its requests,
// so it hedges nothing only because the machine is busy, and renews nothing in the meantime.
func wired(t testing.TB, b locktest.Bundle, opts ...locker.Option) (*locker.Client, *wire) {
	t.Helper()
	w := new(wire)
	c := locktest.NewClient(t, b.Server.ClientWith(t, w.intercept), opts...)
	locker.HedgeAfter(c, unhedged)
	locktest.Unlock(t, locktest.Lock(t, c, "warm", ""))
	return c, w
}

// inLine locks name in another goroutine, and returns once that call waits in the client's line, behind n others.
func inLine(ctx context.Context, t testing.TB, c *locker.Client, n int, name, value string, opts ...locker.LockOption) <-chan locktest.Outcome {
	t.Helper()
	result := locktest.LockAsync(ctx, c, name, value, opts...)
	locktest.Eventually(t, "it is in line", func() bool { return locker.Waiting(c, name) == n+1 })
	return result
}

// holderLease returns the lease of the holder of a name, which must be l.
func holderLease(t testing.TB, c *locker.Client, l *locker.Lock) clientv3.LeaseID {
	t.Helper()
	holder, err := c.Get(locktest.Within(t), l.Name())
	if err != nil || holder.Token != l.Token() {
		t.Fatalf("held by %+v, %v, and not by token %d", holder, err, l.Token())
	}
	return holder.Lease
}

// fill locks n names with the prefix, several at a time.
func fill(t *testing.T, c *locker.Client, prefix string, n int, opts ...locker.LockOption) []*locker.Lock {
	t.Helper()
	ctx := locktest.Within(t)
	locks := make([]*locker.Lock, n)
	var wg sync.WaitGroup
	for worker := range 16 {
		wg.Go(func() {
			for i := worker; i < n; i += 16 {
				l, err := c.Lock(ctx, fmt.Sprint(prefix, i), "v", opts...)
				if err != nil {
					t.Errorf("lock %d: %v", i, err)
					return
				}
				locks[i] = l
			}
		})
	}
	wg.Wait()
	if t.Failed() {
		t.FailNow()
	}
	return locks
}

// wantServedInOrder unlocks one lock after the other, and fails the test unless the waiters hold in that order. It
// returns the lock of the last one, which is held.
func wantServedInOrder(t *testing.T, present *locker.Lock, waiters []<-chan locktest.Outcome) *locker.Lock {
	t.Helper()
	for i, waiter := range waiters {
		for j, later := range waiters[i:] {
			select {
			case got := <-later:
				t.Fatalf("waiter %d was served while another held: %v", i+j, got.Err)
			default:
			}
		}
		locktest.Unlock(t, present)
		got := locktest.Receive(t, waiter)
		if got.Err != nil || got.Lock.Token() <= present.Token() {
			t.Fatalf("waiter %d: %v", i, got.Err)
		}
		present = got.Lock
	}
	return present
}

// countedEtcd returns a connection, and the number of requests and streams that were begun on it.
func countedEtcd(t testing.TB, server *embedtest.Server) (*clientv3.Client, *atomic.Int64) {
	var requests atomic.Int64
	count := embedtest.Intercept(func(_ context.Context, _ string, _ any, call func() error) error {
		requests.Add(1)
		return call()
	})
	config := server.ClientConfig()
	config.DialOptions = append(config.DialOptions, count.DialOption(), grpc.WithChainStreamInterceptor(
		func(ctx context.Context, desc *grpc.StreamDesc, conn *grpc.ClientConn, method string, open grpc.Streamer, opts ...grpc.CallOption) (grpc.ClientStream, error) {
			requests.Add(1)
			return open(ctx, desc, conn, method, opts...)
		}))
	return locktest.Connect(t, config), &requests
}

// lastError returns the error that ends a sequence.
func lastError[T any](seq func(func(T, error) bool)) error {
	for _, err := range seq {
		if err != nil {
			return err
		}
	}
	return nil
}

// recovered returns what f returned, or an error if it panicked.
func recovered(f func() error) (err error) {
	defer func() {
		if r := recover(); r != nil {
			err = errors.New("a panic")
		}
	}()
	return f()
}

// wantInvalid fails the test unless err says that the argument is invalid.
func wantInvalid(t testing.TB, err error, argument string) {
	t.Helper()
	var invalid *locker.InvalidError
	if !errors.Is(err, locker.ErrInvalid) || !errors.As(err, &invalid) {
		t.Fatalf("not an InvalidError: %v", err)
	}
	if invalid.Argument != argument || invalid.Problem == "" {
		t.Errorf("an InvalidError for %q, want %q: %v", invalid.Argument, argument, err)
	}
	if len(err.Error()) > 500 || strings.ContainsFunc(err.Error(), func(r rune) bool { return r < ' ' }) {
		t.Errorf("not printable: %q", err)
	}
}

// wantWrappedOnce fails the test unless err is wrapped as the package wraps its errors.
func wantWrappedOnce(t testing.TB, err error) {
	t.Helper()
	if text := fmt.Sprint(err); !strings.HasPrefix(text, "locker: ") || strings.Count(text, "locker: ") != 1 {
		t.Errorf("not wrapped once: %s", text)
	}
}

// verbs are all methods of a Client that take a context.
func verbs(c *locker.Client) map[string]func(context.Context) error {
	never := func(context.Context, *locker.Lock) error { return errors.New("fn was called") }
	return map[string]func(context.Context) error{
		"Lock":        func(ctx context.Context) error { _, err := c.Lock(ctx, "b", "v"); return err },
		"TryLock":     func(ctx context.Context) error { _, err := c.TryLock(ctx, "b", "v"); return err },
		"Do":          func(ctx context.Context) error { return c.Do(ctx, "b", "v", never) },
		"Campaign":    func(ctx context.Context) error { return c.Campaign(ctx, "b", "v", never) },
		"Get":         func(ctx context.Context) error { _, err := c.Get(ctx, "b"); return err },
		"List":        func(ctx context.Context) error { _, err := c.List(ctx, ""); return err },
		"Owners":      func(ctx context.Context) error { _, err := c.Owners(ctx); return err },
		"Watch":       func(ctx context.Context) error { return lastError(c.Watch(ctx, "b")) },
		"WatchPrefix": func(ctx context.Context) error { return lastError(c.WatchPrefix(ctx, "")) },
		"NewCache":    func(ctx context.Context) error { _, err := c.NewCache(ctx, ""); return err },
		"NewSession":  func(ctx context.Context) error { _, err := c.NewSession(ctx); return err },
	}
}

// neverCalled is a function of Do that must not be called.
func neverCalled(t testing.TB) func(context.Context, *locker.Lock) error {
	return func(context.Context, *locker.Lock) error { t.Error("the function was called"); return nil }
}

// contextKey is the key of a value that contexts derived from one another share.
type contextKey struct{}
