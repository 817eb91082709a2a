package systest

import (
	"context"
	"errors"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"google.golang.org/grpc/status"

	"github.com/jagregory/locker/v2"
)

// Requests that took effect, or take effect later, without the client's knowledge.

// free wants the queue of name to be empty, and another client to lock it.
func (b bundle) free(t testing.TB, name string) {
	t.Helper()
	b.Queued(t, name, 0)
	l := lock(t, b.Client(t), name, "other")
	if err := l.Unlock(within(t)); err != nil {
		t.Error(err)
	}
}

func TestLock_IsHeldOnceThoughItsReplyWasLost(t *testing.T) {
	t.Parallel()
	b := setup(t)
	for name, call := range map[string]func(*locker.Client, context.Context, string, string, ...locker.LockOption) (*locker.Lock, error){
		"Lock": (*locker.Client).Lock, "TryLock": (*locker.Client).TryLock,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var attempts atomic.Int32
			c := newClient(t, b.Server.ClientWith(t, func(_ context.Context, _ string, req any, call func() error) error {
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
			b.Queued(t, name, 1)
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

func TestLock_RemovesAnEntryThatItNeverLearnedOf(t *testing.T) {
	t.Parallel()
	b := setup(t)
	var dropped atomic.Int32
	c := newClient(t, b.Server.ClientWith(t, func(_ context.Context, _ string, req any, call func() error) error {
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
	if r := receive(t, result); r.Lock != nil || !errors.Is(r.Err, context.Canceled) || !strings.Contains(r.Err.Error(), "reply lost") {
		t.Errorf("Lock returned a lock: %v, and %v", r.Lock != nil, r.Err)
	}
	b.free(t, "a")
	if err := kept.Err(); err != nil {
		t.Errorf("it cost the session: %v", err)
	}
}

func TestLock_OverAConnectionThatLosesRepliesIsHeldOnceOrRemoved(t *testing.T) {
	t.Parallel()
	b := setup(t)
	proxy := b.Server.Proxy(t)
	c := newClient(t, proxy.Client(t))
	kept := lock(t, c, "kept", "") // there is a session, and a connection
	proxy.DropReplies()
	patient := lockAsync(within(t), c, "a", "")
	hasty, cancel := context.WithCancel(within(t))
	defer cancel()
	removed := lockAsync(hasty, c, "b", "")
	b.Queued(t, "a", 1)
	b.Queued(t, "b", 1)
	cancel()
	if result := receive(t, removed); !errors.Is(result.Err, context.Canceled) {
		t.Errorf("Lock returned a lock: %v, and %v", result.Lock != nil, result.Err)
	}
	proxy.Heal()
	held := receive(t, patient)
	if held.Err != nil {
		t.Fatal(held.Err)
	}
	b.Queued(t, "a", 1)
	b.free(t, "b")
	if err := held.Lock.Unlock(within(t)); err != nil {
		t.Error(err)
	}
	b.free(t, "a")
	if err := kept.Err(); err != nil {
		t.Errorf("it cost the session: %v", err)
	}
}

func TestLock_CommittedAfterItWasCanceledHasNoEffect(t *testing.T) {
	t.Parallel()
	for name, call := range map[string]func(*locker.Client, context.Context, string, string, ...locker.LockOption) (*locker.Lock, error){
		"Lock": (*locker.Client).Lock, "TryLock": (*locker.Client).TryLock,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := setup(t)
			var late lateRequests
			var settled atomic.Bool
			c := newClient(t, b.Server.ClientWith(t, func(_ context.Context, _ string, req any, call func() error) error {
				if enqueues(req, "a") && !settled.Load() {
					return late.Hold(req)
				}
				return call()
			}))
			kept := lock(t, c, "kept", "")
			before := b.Records(t)
			ctx, cancel := context.WithCancel(within(t))
			defer cancel()
			go func() {
				select {
				case <-late.First():
					cancel()
				case <-ctx.Done():
				}
			}()
			if l, err := call(c, ctx, "a", ""); l != nil || !errors.Is(err, context.Canceled) {
				t.Errorf("it returned a lock: %v, and %v", l != nil, err)
			}
			// The clean-up leaves a trace only in the session's record.
			eventually(t, "the clean-up has run", func() bool { return b.Records(t) > before })
			if n := late.Arrive(t, b.Etcd); n != 0 {
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

func TestLock_AnAttemptCommittedAfterTheUnlockHasNoEffect(t *testing.T) {
	t.Parallel()
	b := setup(t)
	var late lateRequests
	var attempts atomic.Int32
	c := newClient(t, b.Server.ClientWith(t, func(_ context.Context, _ string, req any, call func() error) error {
		if enqueues(req, "a") && attempts.Add(1) == 1 {
			return late.Hold(req)
		}
		return call()
	}))
	l := lock(t, c, "a", "") // by the second attempt
	if err := l.Unlock(within(t)); err != nil {
		t.Error(err)
	}
	if n := late.Arrive(t, b.Etcd); n != 0 {
		t.Errorf("the first attempt took effect: it left %v", b.Keys(t, locker.DefaultPrefix+"a/"))
	}
	if other, err := b.Client(t).Lock(within(t), "a", ""); err != nil {
		t.Errorf("another client cannot lock: %v", err)
	} else if err := other.Unlock(within(t)); err != nil {
		t.Error(err)
	}
}

func TestGrant_WhoseReplyWasLostLeavesOneLease(t *testing.T) {
	t.Parallel()
	b := setup(t)
	var mu sync.Mutex // guards what follows
	ids := make(map[int64]int)
	lose := 2
	etcd := b.Server.ClientWith(t, func(_ context.Context, _ string, req any, call func() error) error {
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
	if n := len(b.Leases(t)); n != 1 {
		t.Errorf("there are %d leases", n)
	}
	renewed(t, l)

	ctx, cancel := context.WithTimeout(within(t), time.Second)
	defer cancel()
	if s, err := c.NewSession(ctx); s != nil || !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("NewSession returned a session: %v, and %v", s != nil, err)
	}
	eventually(t, "the lease that nobody has is gone", func() bool { return len(b.Leases(t)) == 1 })
	if err := l.Err(); err != nil {
		t.Error(err)
	}
}

func TestUnlock_IsConfirmedThoughItsReplyWasLost(t *testing.T) {
	t.Parallel()
	b := setup(t)
	var lost atomic.Int32
	c := newClient(t, b.Server.ClientWith(t, func(_ context.Context, _ string, req any, call func() error) error {
		err := call()
		if releases(req, "a") && lost.Add(1) == 1 {
			return errReplyLost
		}
		return err
	}))
	l := lock(t, c, "a", "")
	waiting := lockAsync(within(t), b.Client(t), "a", "")
	b.Queued(t, "a", 2)
	if err := l.Unlock(within(t)); err != nil {
		t.Errorf("Unlock returned %v", err)
	}
	if lost.Load() < 2 {
		t.Errorf("%d attempts", lost.Load())
	}
	if next := receive(t, waiting); next.Err != nil {
		t.Fatal(next.Err)
	}
	b.Queued(t, "a", 1)
}

func TestUnlock_ThatIsNotConfirmedGoesOnInTheBackground(t *testing.T) {
	t.Parallel()
	b := setup(t)
	blocked := make(chan struct{})
	c := newClient(t, b.Server.ClientWith(t, func(ctx context.Context, _ string, req any, call func() error) error {
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
	waiting := lockAsync(within(t), b.Client(t), "a", "")
	b.Queued(t, "a", 2)
	here := lockAsync(within(t), c, "a", "") // in line behind l, in the same client
	ctx, cancel := context.WithTimeout(within(t), 100*time.Millisecond)
	defer cancel()
	if err := l.Unlock(ctx); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("Unlock returned %v", err)
	}
	if err := l.Err(); !errors.Is(err, locker.ErrReleased) {
		t.Errorf("after Unlock: %v", err)
	}
	b.Queued(t, "a", 2)
	close(blocked)
	next := receive(t, waiting)
	if next.Err != nil {
		t.Fatal(next.Err)
	}
	if err := next.Lock.Unlock(within(t)); err != nil {
		t.Error(err)
	}
	if last := receive(t, here); last.Err != nil {
		t.Error(last.Err)
	}
	if err := kept.Err(); err != nil {
		t.Errorf("it cost the session: %v", err)
	}
}

func TestUnlock_OverAConnectionThatLosesRepliesReleases(t *testing.T) {
	t.Parallel()
	b := setup(t)
	proxy := b.Server.Proxy(t)
	c := newClient(t, proxy.Client(t))
	l := lock(t, c, "a", "")
	waiting := lockAsync(within(t), b.Client(t), "a", "")
	b.Queued(t, "a", 2)
	proxy.DropReplies()
	ctx, cancel := context.WithTimeout(within(t), 200*time.Millisecond)
	defer cancel()
	if err := l.Unlock(ctx); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("Unlock returned %v", err)
	}
	if next := receive(t, waiting); next.Err != nil { // with replies still being dropped
		t.Fatal(next.Err)
	}
	proxy.Heal()
	if err := c.Close(); err != nil {
		t.Error(err)
	}
	b.Queued(t, "a", 1)
}
