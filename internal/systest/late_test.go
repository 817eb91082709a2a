package systest

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	"go.etcd.io/etcd/client/v3/concurrency"

	"github.com/jagregory/locker/v2"
	"github.com/jagregory/locker/v2/embedtest"
)

// lateContext has not ended when it is looked at for the first time, and has ever after.
type lateContext struct {
	context.Context
	looks atomic.Int32
}

func (c *lateContext) Err() error {
	if c.looks.Add(1) == 1 {
		return nil
	}
	return c.Context.Err()
}

func TestLock_WhoseContextEndsAsItBeginsLeavesNothing(t *testing.T) {
	t.Parallel()
	b := setup(t)
	c := b.Client(t)
	unlock(t, lock(t, c, "warm", "")) // the session is there
	over, cancel := context.WithCancel(within(t))
	cancel()
	for range 100 {
		if l, err := c.Lock(&lateContext{Context: over}, "a", ""); err == nil {
			unlock(t, l)
		}
	}
	b.Queued(t, "a", 0)
	unlock(t, lock(t, b.Client(t), "a", ""))
}

func TestLock_AnAttemptAfterTheEntryWasDeletedBringsNoHoldBack(t *testing.T) {
	t.Parallel()
	b := setup(t)
	var first atomic.Bool
	late, done := make(chan struct{}), make(chan error, 1)
	c := newClient(t, b.Server.ClientWith(t, func(_ context.Context, _ string, req any, call func() error) error {
		if !enqueues(req, "a") || !first.CompareAndSwap(false, true) {
			return call()
		}
		<-late
		err := call()
		done <- err
		return err
	}), locker.WithTTL(brief))
	l := lock(t, c, "a", "") // by the second attempt
	if _, err := b.Etcd.Delete(within(t), l.Key()); err != nil {
		t.Fatal(err)
	}
	other := lock(t, b.Client(t), "a", "")
	close(late)
	receive(t, done)
	receive(t, l.Context().Done())
	if err := l.Err(); !errors.Is(err, locker.ErrLost) {
		t.Errorf("the hold ended with %v", err)
	}
	if _, err := l.Commit(within(t)); !errors.Is(err, locker.ErrLost) {
		t.Errorf("Commit returned %v", err)
	}
	if err := other.Err(); err != nil {
		t.Error(err)
	}
	b.Queued(t, "a", 1)
}

func TestLock_ThatIsRefusedCostsOthersNothing(t *testing.T) {
	t.Parallel()
	for name, refusal := range map[string]error{"without permission": rpctypes.ErrGRPCPermissionDenied, "without space": rpctypes.ErrGRPCNoSpace} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := setup(t)
			second := make(chan struct{})
			var attempts atomic.Int32
			c := newClient(t, b.Server.ClientWith(t, func(_ context.Context, _ string, req any, call func() error) error {
				if !enqueues(req, "refused") {
					return call()
				}
				switch attempts.Add(1) {
				case 1:
					<-second // answered while another attempt is under way
				case 2:
					close(second)
				}
				return refusal
			}), locker.WithTTL(unhurried))
			neighbour := lock(t, c, "a", "")
			if _, err := c.Lock(within(t), "refused", ""); err == nil || errors.Is(err, locker.ErrLost) {
				t.Errorf("Lock returned %v", err)
			}
			if _, err := c.TryLock(within(t), "b", ""); err != nil { // the clean-up is through
				t.Error(err)
			}
			if err := neighbour.Err(); err != nil {
				t.Error(err)
			}
		})
	}
}

func TestLock_CallsThatAreCanceledDoNotHoldUpOthers(t *testing.T) {
	t.Parallel()
	b := setup(t)
	proxy := b.Server.Proxy(t)
	var puts atomic.Int32
	f := embedtest.Intercept(func(_ context.Context, _ string, req any, call func() error) error {
		if enqueues(req, "patient") {
			puts.Add(1)
		}
		return call()
	})
	config := proxy.ClientConfig()
	config.DialOptions = append(config.DialOptions, f.DialOption())
	c := newClient(t, connect(t, config))
	unlock(t, lock(t, c, "warm", ""))
	proxy.Delay(2 * time.Millisecond) // so that they give up while their puts are under way
	ctx, stop := context.WithCancel(t.Context())
	var hasty sync.WaitGroup
	for i := range 16 {
		hasty.Go(func() {
			for ctx.Err() == nil {
				short, cancel := context.WithTimeout(ctx, time.Millisecond)
				if l, err := c.Lock(short, fmt.Sprint("hasty", i), ""); err == nil {
					_ = l.Unlock(context.WithoutCancel(ctx))
				}
				cancel()
			}
		})
	}
	const n = 50
	for range n {
		unlock(t, lock(t, c, "patient", ""))
	}
	stop()
	hasty.Wait()
	if got := puts.Load(); got > n+n/5 {
		t.Errorf("%d locks took %d puts", n, got)
	}
}

func TestLock_InAContextThatEndedWithALossReturns(t *testing.T) {
	t.Parallel()
	b := setup(t)
	var puts atomic.Int32
	c := newClient(t, b.Server.ClientWith(t, func(_ context.Context, _ string, req any, call func() error) error {
		if enqueues(req, "inner") {
			puts.Add(1)
		}
		return call()
	}))
	unlock(t, lock(t, c, "warm", ""))
	over, cancel := context.WithCancelCause(within(t))
	cancel(&locker.LostError{Name: "outer", Reason: locker.Expired})
	for range 20 {
		l, err := c.Lock(&lateContext{Context: over}, "inner", "")
		if err == nil {
			unlock(t, l)
		} else if !errors.Is(err, locker.ErrLost) {
			t.Error(err)
		}
	}
	if n := puts.Load(); n > 40 {
		t.Errorf("20 calls sent %d puts", n)
	}
	b.Queued(t, "inner", 0)
}

func TestCache_OutlivesARefusal(t *testing.T) {
	t.Parallel()
	b := setup(t)
	proxy := b.Server.Proxy(t)
	var refuse atomic.Bool
	refused := make(chan struct{}, 100)
	f := embedtest.Intercept(func(_ context.Context, method string, _ any, call func() error) error {
		if refuse.Load() && strings.HasSuffix(method, "/Range") {
			select {
			case refused <- struct{}{}:
			default:
			}
			return rpctypes.ErrGRPCPermissionDenied
		}
		return call()
	})
	config := proxy.ClientConfig()
	config.DialOptions = append(config.DialOptions, f.DialOption())
	cache, err := newClient(t, connect(t, config), locker.WithTTL(2*time.Second)).NewCache(within(t), "")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(cache.Close)
	refuse.Store(true)
	proxy.Cut()
	other := b.Client(t)
	for range 10 {
		unlock(t, lock(t, other, "b", ""))
	}
	b.Server.Compact(t) // the watch cannot be resumed, so the cache has to read again
	proxy.Heal()
	for range 3 {
		receive(t, refused)
	}
	refuse.Store(false)
	l := lock(t, b.Client(t), "a", "v")
	eventually(t, "the cache follows again", func() bool {
		holder, ok := cache.Get("a")
		return ok && holder.Token == l.Token()
	})
}

func TestAdoptSession_CloseRemovesWhatAnUnlockCouldNot(t *testing.T) {
	t.Parallel()
	const ttl = 9 * time.Second
	b := setup(t)
	theirs, err := concurrency.NewSession(b.Etcd, concurrency.WithTTL(int(ttl/time.Second)))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = theirs.Close() })
	var block atomic.Bool
	writes := make(chan struct{})
	c := newClient(t, b.Server.ClientWith(t, func(ctx context.Context, _ string, req any, call func() error) error {
		if _, ok := req.(*pb.TxnRequest); ok && block.Load() {
			select {
			case <-writes:
			case <-ctx.Done():
			}
			return rpctypes.ErrGRPCTimeout
		}
		return call()
	}), locker.WithTTL(ttl))
	s, err := c.AdoptSession(theirs)
	if err != nil {
		t.Fatal(err)
	}
	l := lock(t, c, "a", "v", locker.WithSession(s))
	block.Store(true)
	unlocked, closed := make(chan error, 1), make(chan error, 1)
	go func() { unlocked <- l.Unlock(context.WithoutCancel(t.Context())) }()
	<-time.After(ttl * 2 / 3) // the release has some of its time left, the session all of it
	go func() { closed <- s.Close() }()
	if err := receive(t, unlocked); err == nil {
		t.Error("Unlock returned nil")
	}
	block.Store(false)
	close(writes)
	if err := receive(t, closed); err != nil {
		t.Errorf("Close returned %v", err)
	}
	b.Queued(t, "a", 0)
}
