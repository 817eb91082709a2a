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

	"github.com/jagregory/locker/v2"
	"github.com/jagregory/locker/v2/embedtest"
	"github.com/jagregory/locker/v2/internal/locktest"
	"github.com/jagregory/locker/v2/internal/txn"
)

// lateContext has not ended when Err is called for the first time, and has ended from then on.
type lateContext struct {
	context.Context
	calls atomic.Int32
}

func (c *lateContext) Err() error {
	if c.calls.Add(1) == 1 {
		return nil
	}
	return c.Context.Err()
}

func TestLock_WhoseContextEndsAsItBeginsLeavesNothing(t *testing.T) {
	t.Parallel()
	b := locktest.Setup(t)
	c := b.Client(t)
	locktest.Unlock(t, locktest.Lock(t, c, "warm", "")) // opens the session
	over, cancel := context.WithCancel(locktest.Within(t))
	cancel()
	for range 100 {
		if l, err := c.Lock(&lateContext{Context: over}, "a", ""); err == nil {
			locktest.Unlock(t, l)
		}
	}
	b.Queued(t, "a", 0)
	locktest.Unlock(t, locktest.Lock(t, b.Client(t), "a", ""))
}

func TestLock_AnAttemptAfterTheEntryWasDeletedBringsNoHoldBack(t *testing.T) {
	t.Parallel()
	b := locktest.Setup(t)
	var first atomic.Bool
	late, done := make(chan struct{}), make(chan error, 1)
	c := locktest.NewClient(t, b.Server.ClientWith(t, func(ctx context.Context, _ string, req any, call func() error) error {
		if !locktest.Enqueues(req, "a") || !first.CompareAndSwap(false, true) {
			return call()
		}
		go func() { // it arrives whatever becomes of the call
			<-late
			_, err := pb.NewKVClient(b.Etcd.ActiveConnection()).Txn(t.Context(), req.(*pb.TxnRequest))
			done <- err
		}()
		<-ctx.Done()
		return ctx.Err()
	}), locker.WithTTL(locktest.Brief))
	l := locktest.Lock(t, c, "a", "") // by the second attempt
	if _, err := b.Etcd.Delete(locktest.Within(t), l.Key()); err != nil {
		t.Fatal(err)
	}
	other := locktest.Lock(t, b.Client(t), "a", "")
	close(late)
	locktest.Receive(t, done)
	locktest.Receive(t, l.Context().Done())
	if err := l.Err(); !errors.Is(err, locker.ErrLost) {
		t.Errorf("the hold ended with %v", err)
	}
	if _, err := l.Commit(locktest.Within(t)); !errors.Is(err, locker.ErrLost) {
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
			b := locktest.Setup(t)
			second := make(chan struct{})
			var attempts atomic.Int32
			c := locktest.NewClient(t, b.Server.ClientWith(t, func(_ context.Context, _ string, req any, call func() error) error {
				if !locktest.Enqueues(req, "refused") {
					return call()
				}
				switch attempts.Add(1) {
				case 1:
					<-second // answered while the other attempt is under way
				case 2:
					close(second)
				}
				return refusal
			}), locker.WithTTL(locktest.Unhurried))
			neighbour := locktest.Lock(t, c, "a", "")
			if _, err := c.Lock(locktest.Within(t), "refused", ""); err == nil || errors.Is(err, locker.ErrLost) {
				t.Errorf("Lock returned %v", err)
			}
			if _, err := c.TryLock(locktest.Within(t), "b", ""); err != nil { // the clean-up is done
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
	b := locktest.Setup(t)
	proxy := b.Server.Proxy(t)
	var puts, late atomic.Int32
	f := embedtest.Intercept(func(_ context.Context, _ string, req any, call func() error) error {
		if locktest.Enqueues(req, "patient") {
			puts.Add(1)
		}
		sent := time.Now()
		err := call()
		if time.Since(sent) > txn.DelayFor(locktest.Unhurried)/2 {
			late.Add(1)
		}
		return err
	})
	config := proxy.ClientConfig()
	config.DialOptions = append(config.DialOptions, f.DialOption())
	c := locktest.NewClient(t, locktest.Connect(t, config))
	locktest.Unlock(t, locktest.Lock(t, c, "warm", ""))
	proxy.Delay(2 * time.Millisecond) // so that they are canceled while their puts are under way
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
		locktest.Unlock(t, locktest.Lock(t, c, "patient", ""))
	}
	stop()
	hasty.Wait()
	// A request without an answer for the hedge delay is in doubt, whoever made it: it is
	// made again, or costs the puts beside it another attempt.
	if got, slow := puts.Load(), late.Load(); got > n+n/5+2*slow {
		t.Errorf("%d locks took %d puts, although only %d answers were late", n, got, slow)
	}
}

func TestLock_InAContextThatEndedWithALossReturns(t *testing.T) {
	t.Parallel()
	b := locktest.Setup(t)
	var puts atomic.Int32
	c := locktest.NewClient(t, b.Server.ClientWith(t, func(_ context.Context, _ string, req any, call func() error) error {
		if locktest.Enqueues(req, "inner") {
			puts.Add(1)
		}
		return call()
	}))
	locktest.Unlock(t, locktest.Lock(t, c, "warm", ""))
	over, cancel := context.WithCancelCause(locktest.Within(t))
	cancel(&locker.LostError{Name: "outer", Reason: locker.Expired})
	for range 20 {
		l, err := c.Lock(&lateContext{Context: over}, "inner", "")
		if err == nil {
			locktest.Unlock(t, l)
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
	b := locktest.Setup(t)
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
	cache, err := locktest.NewClient(t, locktest.Connect(t, config), locker.WithTTL(2*time.Second)).NewCache(locktest.Within(t), "")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(cache.Close)
	refuse.Store(true)
	proxy.Cut()
	other := b.Client(t)
	for range 10 {
		locktest.Unlock(t, locktest.Lock(t, other, "b", ""))
	}
	b.Server.Compact(t) // the watch cannot be resumed, so the cache has to read again
	proxy.Heal()
	for range 3 {
		locktest.Receive(t, refused)
	}
	refuse.Store(false)
	l := locktest.Lock(t, b.Client(t), "a", "v")
	locktest.Eventually(t, "the cache follows again", func() bool {
		holder, ok := cache.Get("a")
		return ok && holder.Token == l.Token()
	})
}

func TestAdoptSession_CloseRemovesWhatAnUnlockCouldNot(t *testing.T) {
	t.Parallel()
	const ttl = 9 * time.Second
	b := locktest.Setup(t)
	theirs := locktest.ConcurrencySession(t, b.Etcd, int(ttl/time.Second))
	var block atomic.Bool
	writes := make(chan struct{})
	c := locktest.NewClient(t, b.Server.ClientWith(t, func(ctx context.Context, _ string, req any, call func() error) error {
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
	l := locktest.Lock(t, c, "a", "v", locker.WithSession(s))
	block.Store(true)
	unlocked := locktest.Async(func() error { return l.Unlock(context.WithoutCancel(t.Context())) })
	<-time.After(ttl * 2 / 3) // the release has some of its time left, the session all of it
	closed := locktest.Async(s.Close)
	if err := locktest.Receive(t, unlocked); err == nil {
		t.Error("Unlock returned nil")
	}
	block.Store(false)
	close(writes)
	if err := locktest.Receive(t, closed); err != nil {
		t.Errorf("Close returned %v", err)
	}
	b.Queued(t, "a", 0)
}
