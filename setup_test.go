package locker_test

import (
	"context"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/grpc/status"

	"github.com/jagregory/locker/v2"
	"github.com/jagregory/locker/v2/embedtest"
	"github.com/jagregory/locker/v2/internal/locktest"
)

// The words of locktest, as the tests of this package say them.
const (
	patience  = locktest.Patience
	brief     = locktest.Brief
	unhurried = locktest.Unhurried
	prompt    = locktest.Prompt
)

type (
	bundle       struct{ locktest.Bundle }
	outcome      = locktest.Outcome
	order        = locktest.Order
	reader       = locktest.Reader
	simulation   = locktest.Simulation
	lateRequests = locktest.LateRequests
)

var (
	within     = locktest.Within
	connect    = locktest.Connect
	newClient  = locktest.NewClient
	lock       = locktest.Lock
	unlock     = locktest.Unlock
	newSession = locktest.NewSession
	lockAsync  = locktest.LockAsync
	eventually = locktest.Eventually
	want       = locktest.Want
	wantLost   = locktest.WantLost
	lost       = locktest.Lost
	renewed    = locktest.Renewed
	get        = locktest.Get
	list       = locktest.List
	setValue   = locktest.SetValue
	lockOf     = locktest.LockOf
	newCache   = locktest.NewCache
	read       = locktest.Read
	holderBy   = locktest.HolderBy
	lease      = locktest.LeaseOf
	putKey     = locktest.PutKey
	simulate   = locktest.Simulate
	enqueues   = locktest.Enqueues
	releases   = locktest.Releases

	errReplyLost = locktest.ErrReplyLost
)

func setup(t testing.TB, opts ...embedtest.Option) bundle {
	t.Helper()
	return bundle{locktest.Setup(t, opts...)}
}

func receive[T any](t testing.TB, ch <-chan T) T {
	t.Helper()
	return locktest.Receive(t, ch)
}

func TestMain(m *testing.M) { locktest.Main(m) }

// write is what a transaction does to the queue of one name.
type write struct{ name, put, deleted string } // the name as escaped, and keys

// handsOver reports whether an entry is deleted and another put.
func (w write) handsOver() bool { return w.put != "" && w.deleted != "" }

// writesOf takes a transaction apart. Records are not in queues and do not count.
func writesOf(req any) (writes []write) {
	txn, _ := req.(*pb.TxnRequest)
	var own write
	for _, op := range txn.GetSuccess() {
		writes = append(writes, writesOf(op.GetRequestTxn())...)
		put, deleted := string(op.GetRequestPut().GetKey()), string(op.GetRequestDeleteRange().GetKey())
		own.put, own.deleted = own.put+put, own.deleted+deleted
		own.name, _, _ = strings.Cut(strings.TrimPrefix(own.put+own.deleted, locker.DefaultPrefix), "/")
	}
	if own.name != "" {
		writes = append(writes, own)
	}
	return writes
}

// writes reports whether a request writes the queue of name.
func writes(req any, name string) bool {
	return slices.ContainsFunc(writesOf(req), func(w write) bool { return w.name == name })
}

// batched reports whether a request carries several writes.
func batched(req any) bool { return len(writesOf(req)) > 1 }

// handsOver reports whether a request hands name over within its client.
func handsOver(req any, name string) bool {
	return slices.ContainsFunc(writesOf(req), func(w write) bool { return w.name == name && w.handsOver() })
}

// wire is what lies between a client and etcd: it notes the transactions that
// write queues, and has a fault for those that match.
type wire struct {
	mu       sync.Mutex // guards what follows
	requests []any      // all, in the order of their sending
	txns     [][]write
	refused  []error // of txns
	match    func(req any) bool
	left     int // times that the fault happens yet
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

// fail has the next requests that match meet a fault.
func (w *wire) fail(times int, match func(req any) bool, fault func(ctx context.Context, call func() error) error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.match, w.left, w.fault = match, times, fault
}

// pending reports whether a fault has yet to happen.
func (w *wire) pending() bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.left > 0
}

// transactions returns those sent so far from the n-th on.
func (w *wire) transactions(n int) [][]write {
	w.mu.Lock()
	defer w.mu.Unlock()
	return slices.Clone(w.txns[n:])
}

// refusals returns the errors of etcd to transactions so far.
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

// Faults that a request may meet.
var faultsOfARequest = map[string]func(ctx context.Context, call func() error) error{
	"its reply is lost": func(_ context.Context, call func() error) error {
		if err := call(); err != nil {
			return err
		}
		return errReplyLost
	},
	"it is lost": func(context.Context, func() error) error { return errReplyLost },
}

// neverAnswered is the fault of a request that is lost without a word.
func neverAnswered(ctx context.Context, _ func() error) error {
	<-ctx.Done()
	return status.FromContextError(ctx.Err()).Err()
}

// barrier is where a request waits until it is opened.
type barrier struct {
	arrived, opened chan struct{}
	open            func() // may be called again
}

// stop has the next request that matches wait before it is sent, or, if committed,
// after it was.
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

// unhedged is longer than a request takes on a machine that is busy.
const unhedged = 5 * time.Second

// wired returns a client on a wire, with a session. Tests count what it sends, so it repeats nothing only
// because the machine is busy, and nothing is renewed meanwhile.
func (b bundle) wired(t testing.TB, opts ...locker.Option) (*locker.Client, *wire) {
	t.Helper()
	w := new(wire)
	c := newClient(t, b.Server.ClientWith(t, w.intercept), opts...)
	locker.HedgeAfter(c, unhedged)
	unlock(t, lock(t, c, "warm", ""))
	return c, w
}

// inLine locks name in another goroutine, and returns when it stands in line
// behind n others of the client that wait.
func inLine(ctx context.Context, t testing.TB, c *locker.Client, n int, name, value string, opts ...locker.LockOption) <-chan outcome {
	t.Helper()
	result := lockAsync(ctx, c, name, value, opts...)
	eventually(t, "it stands in line", func() bool { return locker.Waiting(c, name) == n+1 })
	return result
}

// holds wants l to be the only entry in the queue of its name, and held.
func (b bundle) holds(t testing.TB, l *locker.Lock) {
	t.Helper()
	resp, err := b.Etcd.Get(within(t), locker.DefaultPrefix+l.Name()+"/", clientv3.WithPrefix())
	if err != nil {
		t.Fatal(err)
	}
	if l.Err() != nil || len(resp.Kvs) != 1 || resp.Kvs[0].CreateRevision != l.Token() || string(resp.Kvs[0].Key) != l.Key() {
		t.Errorf("%s, token %d, %v, in a queue of %v", l.Key(), l.Token(), l.Err(), resp.Kvs)
	}
}
