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
	"github.com/jagregory/locker/v2/internal/locktest"
)

// Tests of requests that take effect, at once or later, without the client knowing.

// wantFree waits until the queue of name is empty, and locks it with another client.
func wantFree(t testing.TB, b locktest.Bundle, name string) {
	t.Helper()
	b.Queued(t, name, 0)
	l := locktest.Lock(t, b.Client(t), name, "other")
	if err := l.Unlock(locktest.Within(t)); err != nil {
		t.Error(err)
	}
}

func TestLock_IsHeldOnceThoughItsReplyWasLost(t *testing.T) {
	t.Parallel()
	b := locktest.Setup(t)
	for name, call := range lockCalls {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var attempts atomic.Int32
			c := locktest.NewClient(t, b.Server.ClientWith(t, func(_ context.Context, _ string, req any, call func() error) error {
				err := call()
				if err == nil && locktest.Enqueues(req, name) && attempts.Add(1) <= 2 {
					return locktest.ErrReplyLost
				}
				return err
			}))
			l, err := call(c, locktest.Within(t), name, "")
			if err != nil {
				t.Fatal(err)
			}
			// The third is answered. It finds the queue occupied, by the first, and its own
			// entry in it.
			if n := attempts.Load(); n != 3 {
				t.Errorf("%d attempts, want 3", n)
			}
			b.Queued(t, name, 1)
			if holder, err := c.Get(locktest.Within(t), name); err != nil || holder.Token != l.Token() {
				t.Errorf("held by %+v, %v, and not by token %d", holder, err, l.Token())
			}
			if err := l.Unlock(locktest.Within(t)); err != nil {
				t.Error(err)
			}
			wantFree(t, b, name)
		})
	}
}

func TestLock_RemovesAnEntryThatItNeverLearnedOf(t *testing.T) {
	t.Parallel()
	b := locktest.Setup(t)
	var dropped atomic.Int32
	c := locktest.NewClient(t, b.Server.ClientWith(t, func(_ context.Context, _ string, req any, call func() error) error {
		err := call()
		if err == nil && locktest.Enqueues(req, "a") {
			dropped.Add(1)
			return locktest.ErrReplyLost
		}
		return err
	}))
	kept := locktest.Lock(t, c, "kept", "")
	ctx, cancel := context.WithCancel(locktest.Within(t))
	defer cancel()
	result := locktest.LockAsync(ctx, c, "a", "")
	locktest.Eventually(t, "replies are dropped", func() bool { return dropped.Load() >= 2 })
	cancel()
	if r := locktest.Receive(t, result); r.Lock != nil || !errors.Is(r.Err, context.Canceled) || !strings.Contains(r.Err.Error(), "reply lost") {
		t.Errorf("Lock returned a lock: %v, and %v", r.Lock != nil, r.Err)
	}
	wantFree(t, b, "a")
	if err := kept.Err(); err != nil {
		t.Errorf("the session was lost: %v", err)
	}
}

func TestLock_OverAConnectionThatLosesRepliesIsHeldOnceOrRemoved(t *testing.T) {
	t.Parallel()
	b := locktest.Setup(t)
	proxy := b.Server.Proxy(t)
	c := locktest.NewClient(t, proxy.Client(t))
	kept := locktest.Lock(t, c, "kept", "") // so that there are a session and a connection
	proxy.DropReplies()
	patient := locktest.LockAsync(locktest.Within(t), c, "a", "")
	hasty, cancel := context.WithCancel(locktest.Within(t))
	defer cancel()
	removed := locktest.LockAsync(hasty, c, "b", "")
	b.Queued(t, "a", 1)
	b.Queued(t, "b", 1)
	cancel()
	if result := locktest.Receive(t, removed); !errors.Is(result.Err, context.Canceled) {
		t.Errorf("Lock returned a lock: %v, and %v", result.Lock != nil, result.Err)
	}
	proxy.Heal()
	held := locktest.Receive(t, patient)
	if held.Err != nil {
		t.Fatal(held.Err)
	}
	b.Queued(t, "a", 1)
	wantFree(t, b, "b")
	if err := held.Lock.Unlock(locktest.Within(t)); err != nil {
		t.Error(err)
	}
	wantFree(t, b, "a")
	if err := kept.Err(); err != nil {
		t.Errorf("the session was lost: %v", err)
	}
}

func TestLock_CommittedAfterItWasCanceledHasNoEffect(t *testing.T) {
	t.Parallel()
	for name, call := range lockCalls {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := locktest.Setup(t)
			var late locktest.LateRequests
			var cleanedUp atomic.Bool
			c := locktest.NewClient(t, b.Server.ClientWith(t, func(_ context.Context, _ string, req any, call func() error) error {
				if locktest.Enqueues(req, "a") && !cleanedUp.Load() {
					return late.Hold(req)
				}
				return call()
			}))
			kept := locktest.Lock(t, c, "kept", "")
			before := b.Records(t)
			ctx, cancel := context.WithCancel(locktest.Within(t))
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
			locktest.Eventually(t, "the clean-up has run", func() bool { return b.Records(t) > before })
			if n := late.Arrive(t, b.Etcd); n != 0 {
				t.Errorf("%d late requests took effect", n)
			}
			cleanedUp.Store(true)
			wantFree(t, b, "a")
			if err := kept.Err(); err != nil {
				t.Errorf("the session was lost: %v", err)
			}
			if err := locktest.Lock(t, c, "a", "").Unlock(locktest.Within(t)); err != nil {
				t.Error(err)
			}
		})
	}
}

func TestLock_AnAttemptCommittedAfterTheUnlockHasNoEffect(t *testing.T) {
	t.Parallel()
	b := locktest.Setup(t)
	var late locktest.LateRequests
	var attempts atomic.Int32
	c := locktest.NewClient(t, b.Server.ClientWith(t, func(_ context.Context, _ string, req any, call func() error) error {
		if locktest.Enqueues(req, "a") && attempts.Add(1) == 1 {
			return late.Hold(req)
		}
		return call()
	}))
	l := locktest.Lock(t, c, "a", "") // by the second attempt
	if err := l.Unlock(locktest.Within(t)); err != nil {
		t.Error(err)
	}
	if n := late.Arrive(t, b.Etcd); n != 0 {
		t.Errorf("the first attempt took effect and left %v", b.Keys(t, locker.DefaultPrefix+"a/"))
	}
	if other, err := b.Client(t).Lock(locktest.Within(t), "a", ""); err != nil {
		t.Errorf("another client cannot lock: %v", err)
	} else if err := other.Unlock(locktest.Within(t)); err != nil {
		t.Error(err)
	}
}

func TestGrant_WhoseReplyWasLostLeavesOneLease(t *testing.T) {
	t.Parallel()
	b := locktest.Setup(t)
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
			return locktest.ErrReplyLost
		}
		return err
	})
	c := locktest.NewClient(t, etcd, locker.WithTTL(locktest.Steady))
	l := locktest.Lock(t, c, "a", "")
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
	locktest.Renewed(t, l)

	ctx, cancel := context.WithTimeout(locktest.Within(t), time.Second)
	defer cancel()
	if s, err := c.NewSession(ctx); s != nil || !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("NewSession returned a session: %v, and %v", s != nil, err)
	}
	locktest.Eventually(t, "the lease without a session is gone", func() bool { return len(b.Leases(t)) == 1 })
	if err := l.Err(); err != nil {
		t.Error(err)
	}
}

func TestUnlock_IsConfirmedThoughItsReplyWasLost(t *testing.T) {
	t.Parallel()
	b := locktest.Setup(t)
	var lost atomic.Int32
	c := locktest.NewClient(t, b.Server.ClientWith(t, func(_ context.Context, _ string, req any, call func() error) error {
		err := call()
		if locktest.Releases(req, "a") && lost.Add(1) == 1 {
			return locktest.ErrReplyLost
		}
		return err
	}))
	l := locktest.Lock(t, c, "a", "")
	waiting := locktest.LockAsync(locktest.Within(t), b.Client(t), "a", "")
	b.Queued(t, "a", 2)
	if err := l.Unlock(locktest.Within(t)); err != nil {
		t.Errorf("Unlock returned %v", err)
	}
	if lost.Load() < 2 {
		t.Errorf("%d attempts", lost.Load())
	}
	if next := locktest.Receive(t, waiting); next.Err != nil {
		t.Fatal(next.Err)
	}
	b.Queued(t, "a", 1)
}

func TestUnlock_ThatIsNotConfirmedGoesOnInTheBackground(t *testing.T) {
	t.Parallel()
	b := locktest.Setup(t)
	blocked := make(chan struct{})
	c := locktest.NewClient(t, b.Server.ClientWith(t, func(ctx context.Context, _ string, req any, call func() error) error {
		if locktest.Releases(req, "a") {
			select {
			case <-blocked:
			case <-ctx.Done():
				return status.FromContextError(ctx.Err()).Err()
			}
		}
		return call()
	}))
	kept := locktest.Lock(t, c, "kept", "")
	l := locktest.Lock(t, c, "a", "")
	waiting := locktest.LockAsync(locktest.Within(t), b.Client(t), "a", "")
	b.Queued(t, "a", 2)
	here := locktest.LockAsync(locktest.Within(t), c, "a", "") // in line behind l in the same client
	ctx, cancel := context.WithTimeout(locktest.Within(t), 100*time.Millisecond)
	defer cancel()
	if err := l.Unlock(ctx); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("Unlock returned %v", err)
	}
	if err := l.Err(); !errors.Is(err, locker.ErrReleased) {
		t.Errorf("after Unlock: %v", err)
	}
	b.Queued(t, "a", 2)
	close(blocked)
	next := locktest.Receive(t, waiting)
	if next.Err != nil {
		t.Fatal(next.Err)
	}
	if err := next.Lock.Unlock(locktest.Within(t)); err != nil {
		t.Error(err)
	}
	if last := locktest.Receive(t, here); last.Err != nil {
		t.Error(last.Err)
	}
	if err := kept.Err(); err != nil {
		t.Errorf("the session was lost: %v", err)
	}
}

func TestUnlock_OverAConnectionThatLosesRepliesReleases(t *testing.T) {
	t.Parallel()
	b := locktest.Setup(t)
	proxy := b.Server.Proxy(t)
	c := locktest.NewClient(t, proxy.Client(t))
	l := locktest.Lock(t, c, "a", "")
	waiting := locktest.LockAsync(locktest.Within(t), b.Client(t), "a", "")
	b.Queued(t, "a", 2)
	proxy.DropReplies()
	ctx, cancel := context.WithTimeout(locktest.Within(t), 200*time.Millisecond)
	defer cancel()
	if err := l.Unlock(ctx); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("Unlock returned %v", err)
	}
	if next := locktest.Receive(t, waiting); next.Err != nil { // with replies still being dropped
		t.Fatal(next.Err)
	}
	proxy.Heal()
	if err := c.Close(); err != nil {
		t.Error(err)
	}
	b.Queued(t, "a", 1)
}
