package locker_test

import (
	"context"
	"errors"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/jagregory/locker/v2"
)

// Requests that took effect, or take effect later, without the client's knowledge.

// errReplyLost is what a client gets when the connection breaks under a request.
var errReplyLost = status.Error(codes.Unavailable, "reply lost")

// enqueues reports whether a request puts an entry into the queue of name.
func enqueues(req any, name string) bool {
	txn, _ := req.(*pb.TxnRequest)
	for _, op := range txn.GetSuccess() {
		if strings.HasPrefix(string(op.GetRequestPut().GetKey()), locker.DefaultPrefix+name+"/") {
			return true
		}
	}
	return false
}

// releases reports whether a request deletes an entry from the queue of name.
func releases(req any, name string) bool {
	txn, _ := req.(*pb.TxnRequest)
	for _, op := range txn.GetSuccess() {
		if strings.HasPrefix(string(op.GetRequestDeleteRange().GetKey()), locker.DefaultPrefix+name+"/") {
			return true
		}
	}
	return false
}

// lateRequests keeps transactions that a client has given up, as a leader does
// that was frozen in the middle of them.
type lateRequests struct {
	mu   sync.Mutex // guards what follows
	txns []*pb.TxnRequest
	held chan struct{} // closed when there is one; made by first
}

// first returns a channel that is closed when a request is held.
func (r *lateRequests) first() <-chan struct{} {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.held == nil {
		r.held = make(chan struct{})
		if len(r.txns) > 0 {
			close(r.held)
		}
	}
	return r.held
}

// hold keeps req, and fails like a request that was never answered.
func (r *lateRequests) hold(req any) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.txns = append(r.txns, req.(*pb.TxnRequest))
	if len(r.txns) == 1 && r.held != nil {
		close(r.held)
	}
	return status.Error(codes.Unavailable, "no answer")
}

// arrive has etcd apply what was held, and returns how many took effect.
func (r *lateRequests) arrive(t testing.TB, etcd *clientv3.Client) (effective int) {
	t.Helper()
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(r.txns) == 0 {
		t.Fatal("no request was held")
	}
	for _, txn := range r.txns {
		resp, err := pb.NewKVClient(etcd.ActiveConnection()).Txn(within(t), txn)
		if err != nil {
			t.Logf("refused: %v", err)
		} else if resp.Succeeded {
			effective++
		}
	}
	return effective
}

// free wants the queue of name to be empty, and another client to lock it.
func (b bundle) free(t testing.TB, name string) {
	t.Helper()
	b.queued(t, name, 0)
	l := lock(t, b.client(t), name, "other")
	if err := l.Unlock(within(t)); err != nil {
		t.Error(err)
	}
}

func TestALockWhoseReplyIsLostIsHeldOnce(t *testing.T) {
	t.Parallel()
	b := setup(t)
	for name, call := range map[string]func(*locker.Client, context.Context, string, string, ...locker.LockOption) (*locker.Lock, error){
		"Lock": (*locker.Client).Lock, "TryLock": (*locker.Client).TryLock,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var attempts atomic.Int32
			c := newClient(t, b.server.ClientWith(t, func(_ context.Context, _ string, req any, call func() error) error {
				err := call()
				if err == nil && enqueues(req, name) && attempts.Add(1) <= 2 {
					return errReplyLost
				}
				return err
			}))
			l, err := call(c, within(t), name, "")
			if err != nil {
				t.Fatal(err)
			}
			// The third is answered. It finds the queue taken, by the first, so Lock joins
			// it, and meets its own entry.
			if want := map[string]int32{"TryLock": 3, "Lock": 4}[name]; attempts.Load() != want {
				t.Errorf("%d attempts, not %d", attempts.Load(), want)
			}
			b.queued(t, name, 1)
			if holder, err := c.Get(within(t), name); err != nil || holder.Token != l.Token() {
				t.Errorf("held by %+v, %v, and not by token %d", holder, err, l.Token())
			}
			if err := l.Unlock(within(t)); err != nil {
				t.Error(err)
			}
			b.free(t, name)
		})
	}
}

func TestALockThatNeverLearnsOfItsEntryRemovesIt(t *testing.T) {
	t.Parallel()
	b := setup(t)
	var dropped atomic.Int32
	c := newClient(t, b.server.ClientWith(t, func(_ context.Context, _ string, req any, call func() error) error {
		err := call()
		if err == nil && enqueues(req, "a") {
			dropped.Add(1)
			return errReplyLost
		}
		return err
	}))
	kept := lock(t, c, "kept", "")
	ctx, cancel := context.WithCancel(within(t))
	defer cancel()
	result := lockAsync(ctx, c, "a", "")
	eventually(t, "replies are dropped", func() bool { return dropped.Load() >= 2 })
	cancel()
	if r := receive(t, result); r.lock != nil || !errors.Is(r.err, context.Canceled) || !strings.Contains(r.err.Error(), "reply lost") {
		t.Errorf("Lock returned a lock: %v, and %v", r.lock != nil, r.err)
	}
	b.free(t, "a")
	if err := kept.Err(); err != nil {
		t.Errorf("it cost the session: %v", err)
	}
}

func TestALockWhoseConnectionLosesItsRepliesIsHeldOnceOrRemoved(t *testing.T) {
	t.Parallel()
	b := setup(t)
	proxy := b.server.Proxy(t)
	c := newClient(t, proxy.Client(t))
	kept := lock(t, c, "kept", "") // there is a session, and a connection
	proxy.DropReplies()
	patient := lockAsync(within(t), c, "a", "")
	hasty, cancel := context.WithCancel(within(t))
	defer cancel()
	removed := lockAsync(hasty, c, "b", "")
	b.queued(t, "a", 1)
	b.queued(t, "b", 1)
	cancel()
	if result := receive(t, removed); !errors.Is(result.err, context.Canceled) {
		t.Errorf("Lock returned a lock: %v, and %v", result.lock != nil, result.err)
	}
	proxy.Heal()
	held := receive(t, patient)
	if held.err != nil {
		t.Fatal(held.err)
	}
	b.queued(t, "a", 1)
	b.free(t, "b")
	if err := held.lock.Unlock(within(t)); err != nil {
		t.Error(err)
	}
	b.free(t, "a")
	if err := kept.Err(); err != nil {
		t.Errorf("it cost the session: %v", err)
	}
}

func TestALockThatIsCommittedAfterItWasGivenUpHasNoEffect(t *testing.T) {
	t.Parallel()
	for name, call := range map[string]func(*locker.Client, context.Context, string, string, ...locker.LockOption) (*locker.Lock, error){
		"Lock": (*locker.Client).Lock, "TryLock": (*locker.Client).TryLock,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := setup(t)
			var late lateRequests
			var settled atomic.Bool
			c := newClient(t, b.server.ClientWith(t, func(_ context.Context, _ string, req any, call func() error) error {
				if enqueues(req, "a") && !settled.Load() {
					return late.hold(req)
				}
				return call()
			}))
			kept := lock(t, c, "kept", "")
			before := b.records(t)
			ctx, cancel := context.WithCancel(within(t))
			defer cancel()
			go func() {
				select {
				case <-late.first():
					cancel()
				case <-ctx.Done():
				}
			}()
			if l, err := call(c, ctx, "a", ""); l != nil || !errors.Is(err, context.Canceled) {
				t.Errorf("it returned a lock: %v, and %v", l != nil, err)
			}
			// The clean-up leaves a trace only in the session's record.
			eventually(t, "the clean-up has run", func() bool { return b.records(t) > before })
			if n := late.arrive(t, b.etcd); n != 0 {
				t.Errorf("%d late requests took effect", n)
			}
			settled.Store(true)
			b.free(t, "a")
			if err := kept.Err(); err != nil {
				t.Errorf("it cost the session: %v", err)
			}
			if err := lock(t, c, "a", "").Unlock(within(t)); err != nil {
				t.Error(err)
			}
		})
	}
}

// records returns the revision at which a session's record was written last.
func (b bundle) records(t testing.TB) (revision int64) {
	t.Helper()
	resp, err := b.etcd.Get(within(t), locker.DefaultPrefix+"/", clientv3.WithPrefix())
	if err != nil {
		t.Fatal(err)
	}
	for _, kv := range resp.Kvs {
		revision = max(revision, kv.ModRevision)
	}
	return revision
}

func TestAnAttemptThatIsCommittedAfterTheUnlockHasNoEffect(t *testing.T) {
	t.Parallel()
	b := setup(t)
	var late lateRequests
	var attempts atomic.Int32
	c := newClient(t, b.server.ClientWith(t, func(_ context.Context, _ string, req any, call func() error) error {
		if enqueues(req, "a") && attempts.Add(1) == 1 {
			return late.hold(req)
		}
		return call()
	}))
	l := lock(t, c, "a", "") // by the second attempt
	if err := l.Unlock(within(t)); err != nil {
		t.Error(err)
	}
	if n := late.arrive(t, b.etcd); n != 0 {
		t.Errorf("the first attempt took effect: it left %v", b.keys(t, locker.DefaultPrefix+"a/"))
	}
	if other, err := b.client(t).Lock(within(t), "a", ""); err != nil {
		t.Errorf("another client cannot lock: %v", err)
	} else if err := other.Unlock(within(t)); err != nil {
		t.Error(err)
	}
}

func TestAGrantWhoseReplyIsLostLeavesOneLease(t *testing.T) {
	t.Parallel()
	b := setup(t)
	var mu sync.Mutex // guards what follows
	ids := make(map[int64]int)
	lose := 2
	etcd := b.server.ClientWith(t, func(_ context.Context, _ string, req any, call func() error) error {
		err := call()
		grant, ok := req.(*pb.LeaseGrantRequest)
		if !ok {
			return err
		}
		mu.Lock()
		defer mu.Unlock()
		ids[grant.ID]++
		if lose > 0 {
			lose--
			return errReplyLost
		}
		return err
	})
	c := newClient(t, etcd, locker.WithTTL(steady))
	l := lock(t, c, "a", "")
	mu.Lock()
	if len(ids) != 1 {
		t.Errorf("grants asked for %v", ids)
	}
	for id, attempts := range ids {
		if id == 0 || attempts != 3 {
			t.Errorf("%d attempts for lease %d", attempts, id)
		}
	}
	lose = 1 << 30
	mu.Unlock()
	if n := len(leases(t, b)); n != 1 {
		t.Errorf("there are %d leases", n)
	}
	renewed(t, l)

	ctx, cancel := context.WithTimeout(within(t), time.Second)
	defer cancel()
	if s, err := c.NewSession(ctx); s != nil || !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("NewSession returned a session: %v, and %v", s != nil, err)
	}
	eventually(t, "the lease that nobody has is gone", func() bool { return len(leases(t, b)) == 1 })
	if err := l.Err(); err != nil {
		t.Error(err)
	}
}

func TestAReleaseWhoseReplyIsLostIsARelease(t *testing.T) {
	t.Parallel()
	b := setup(t)
	var lost atomic.Int32
	c := newClient(t, b.server.ClientWith(t, func(_ context.Context, _ string, req any, call func() error) error {
		err := call()
		if releases(req, "a") && lost.Add(1) == 1 {
			return errReplyLost
		}
		return err
	}))
	l := lock(t, c, "a", "")
	waiting := lockAsync(within(t), b.client(t), "a", "")
	b.queued(t, "a", 2)
	if err := l.Unlock(within(t)); err != nil {
		t.Errorf("Unlock returned %v", err)
	}
	if lost.Load() < 2 {
		t.Errorf("%d attempts", lost.Load())
	}
	if next := receive(t, waiting); next.err != nil {
		t.Fatal(next.err)
	}
	b.queued(t, "a", 1)
}

func TestAReleaseThatIsNotConfirmedGoesOnInTheBackground(t *testing.T) {
	t.Parallel()
	b := setup(t)
	blocked := make(chan struct{})
	c := newClient(t, b.server.ClientWith(t, func(ctx context.Context, _ string, req any, call func() error) error {
		if releases(req, "a") {
			select {
			case <-blocked:
			case <-ctx.Done():
				return status.FromContextError(ctx.Err()).Err()
			}
		}
		return call()
	}))
	kept := lock(t, c, "kept", "")
	l := lock(t, c, "a", "")
	waiting := lockAsync(within(t), b.client(t), "a", "")
	b.queued(t, "a", 2)
	here := lockAsync(within(t), c, "a", "") // in line behind l, in the same client
	ctx, cancel := context.WithTimeout(within(t), 100*time.Millisecond)
	defer cancel()
	if err := l.Unlock(ctx); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("Unlock returned %v", err)
	}
	if err := l.Err(); !errors.Is(err, locker.ErrReleased) {
		t.Errorf("after Unlock: %v", err)
	}
	b.queued(t, "a", 2)
	close(blocked)
	next := receive(t, waiting)
	if next.err != nil {
		t.Fatal(next.err)
	}
	if err := next.lock.Unlock(within(t)); err != nil {
		t.Error(err)
	}
	if last := receive(t, here); last.err != nil {
		t.Error(last.err)
	}
	if err := kept.Err(); err != nil {
		t.Errorf("it cost the session: %v", err)
	}
}

func TestAReleaseWhoseConnectionLosesItsRepliesIsARelease(t *testing.T) {
	t.Parallel()
	b := setup(t)
	proxy := b.server.Proxy(t)
	c := newClient(t, proxy.Client(t))
	l := lock(t, c, "a", "")
	waiting := lockAsync(within(t), b.client(t), "a", "")
	b.queued(t, "a", 2)
	proxy.DropReplies()
	ctx, cancel := context.WithTimeout(within(t), 200*time.Millisecond)
	defer cancel()
	if err := l.Unlock(ctx); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("Unlock returned %v", err)
	}
	if next := receive(t, waiting); next.err != nil { // with replies still being dropped
		t.Fatal(next.err)
	}
	proxy.Heal()
	if err := c.Close(); err != nil {
		t.Error(err)
	}
	b.queued(t, "a", 1)
}
