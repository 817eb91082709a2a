package locker_test

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/jagregory/locker/v2"
	"github.com/jagregory/locker/v2/embedtest"
	"github.com/jagregory/locker/v2/internal/locktest"
)

func TestEndedContext_LeadsToItsCauseAndNoRequest(t *testing.T) {
	t.Parallel()
	b, enough := locktest.Setup(t), errors.New("enough")
	etcd, requests := countedEtcd(t, b.Server)
	c := locktest.NewClient(t, etcd, locker.WithTTL(5*time.Minute)) // so that nothing is renewed meanwhile
	l := locktest.Lock(t, c, "a", "v")
	calls := verbs(c)
	calls["Commit"] = func(ctx context.Context) error { _, err := l.Commit(ctx, clientv3.OpPut("written", "yes")); return err }
	calls["SetValue"] = func(ctx context.Context) error { return l.SetValue(ctx, "w") }
	ctx, cancel := context.WithCancelCause(locktest.Within(t))
	cancel(enough)
	for verb, call := range calls {
		t.Run(verb, func(t *testing.T) {
			before := requests.Load()
			err := call(ctx)
			locktest.Want(t, err, enough)
			wantWrappedOnce(t, err)
			if n := requests.Load() - before; n != 0 {
				t.Errorf("%d requests", n)
			}
		})
	}
	if l.Err() != nil || l.Value() != "v" || locktest.Get(t, c, "a").Value != "v" || b.Value(t, "written") != "" {
		t.Errorf("something has changed: %v, %q", l.Err(), locktest.Get(t, c, "a").Value)
	}
}

// sweep locks "a" with a client of its own and a context that fault ends. Lock must return
// and leave nothing behind. sweep reports whether the context ended it.
func sweep(t *testing.T, b locktest.Bundle, present int, try bool, fault func(end func()) embedtest.Intercept) (ended bool) {
	t.Helper()
	enough := errors.New("enough")
	ctx, cancel := context.WithCancelCause(locktest.Within(t))
	config := b.Server.ClientConfig()
	config.DialOptions = append(config.DialOptions, fault(func() { cancel(enough) }).DialOption())
	etcd, err := clientv3.New(config)
	if err != nil {
		t.Fatal(err)
	}
	defer etcd.Close()
	c, err := locker.New(etcd)
	if err != nil {
		t.Fatal(err)
	}
	call := locktest.LockAsync
	if try {
		call = locktest.TryLockAsync
	}
	got := locktest.Receive(t, call(ctx, c, "a", "v"))
	switch {
	case got.Err == nil && present > 0:
		t.Error("locked while another holds")
	case got.Err == nil:
		if got.Lock.Err() != nil {
			t.Errorf("the hold ended before Lock returned: %v", got.Lock.Err())
		}
		locktest.Unlock(t, got.Lock)
	case try && errors.Is(got.Err, locker.ErrLocked):
	default:
		locktest.Want(t, got.Err, enough)
		ended = true
	}
	b.Queued(t, "a", present)
	locktest.Eventually(t, "the client has one lease at most", func() bool { return len(b.Leases(t)) <= present+1 })
	if err := c.Close(); err != nil {
		t.Error(err)
	}
	if n := len(b.Leases(t)); n != present {
		t.Errorf("%d leases are left, want %d", n, present)
	}
	cancel(nil)
	return ended
}

func TestLock_MayBeCanceledAtAnyOfItsRequests(t *testing.T) {
	t.Parallel()
	for _, present := range []int{0, 1} {
		for _, try := range []bool{false, true} {
			for _, after := range []bool{false, true} {
				t.Run(fmt.Sprintf("held=%d try=%v after=%v", present, try, after), func(t *testing.T) {
					t.Parallel()
					b := locktest.Setup(t)
					if present > 0 {
						locktest.Lock(t, b.Client(t), "a", "present")
					}
					ends := 0
					for at := int64(1); at <= 6; at++ {
						var requests atomic.Int64
						if sweep(t, b, present, try, func(end func()) embedtest.Intercept {
							return func(_ context.Context, _ string, _ any, call func() error) error {
								mine := requests.Add(1) == at
								if mine && !after {
									end()
								}
								err := call()
								if mine && after {
									end()
								}
								return err
							}
						}) {
							ends++
						}
						if requests.Load() < at {
							break // Lock returned without making so many requests
						}
					}
					if ends == 0 {
						t.Error("the context ended no call")
					}
				})
				if present > 0 && !try {
					break
				}
			}
		}
	}
}

func TestLock_MayBeCanceledAtAnyTime(t *testing.T) {
	t.Parallel()
	for _, present := range []int{0, 1} {
		t.Run(fmt.Sprintf("held=%d", present), func(t *testing.T) {
			t.Parallel()
			b := locktest.Setup(t)
			if present > 0 {
				locktest.Lock(t, b.Client(t), "a", "present")
			}
			ends := 0
			for d := 50 * time.Microsecond; d < 50*time.Millisecond; d += d / 4 {
				if sweep(t, b, present, false, func(end func()) embedtest.Intercept {
					timer := time.AfterFunc(d, end)
					t.Cleanup(func() { timer.Stop() })
					return func(_ context.Context, _ string, _ any, call func() error) error { return call() }
				}) {
					ends++
				}
			}
			if ends == 0 {
				t.Error("the context ended no call")
			}
		})
	}
}

func TestLine_ACanceledWaiterIsSkipped(t *testing.T) {
	t.Parallel()
	b, tired := locktest.Setup(t), errors.New("tired")
	c := b.Client(t)
	l := locktest.Lock(t, c, "a", "v")
	ctx, cancel := context.WithCancelCause(locktest.Within(t))
	first := locktest.LockAsync(ctx, c, "a", "first")
	locktest.Eventually(t, "the first is in line", func() bool { return locker.Waiting(c, "a") == 1 })
	second := locktest.LockAsync(locktest.Within(t), c, "a", "second")
	locktest.Eventually(t, "the second is in line", func() bool { return locker.Waiting(c, "a") == 2 })
	cancel(tired)
	got := locktest.Receive(t, first)
	locktest.Want(t, got.Err, tired)
	wantWrappedOnce(t, got.Err)
	if got.Lock != nil || l.Err() != nil {
		t.Errorf("Lock returned a lock and an error, or the holder was disturbed: %v", l.Err())
	}
	b.Queued(t, "a", 1)
	locktest.Unlock(t, l)
	if got := locktest.Receive(t, second); got.Err != nil || locktest.Get(t, c, "a").Value != "second" {
		t.Errorf("the second: %v", got.Err)
	}
}

func TestQueue_ACanceledWaiterIsSkipped(t *testing.T) {
	t.Parallel()
	b, tired := locktest.Setup(t), errors.New("tired")
	l := locktest.Lock(t, b.Client(t), "a", "v")
	ctx, cancel := context.WithCancelCause(locktest.Within(t))
	first := locktest.LockAsync(ctx, b.Client(t), "a", "first")
	b.Queued(t, "a", 2)
	second := locktest.LockAsync(locktest.Within(t), b.Client(t), "a", "second")
	b.Queued(t, "a", 3)
	cancel(tired)
	locktest.Want(t, locktest.Receive(t, first).Err, tired)
	b.Queued(t, "a", 2)
	select {
	case got := <-second:
		t.Fatalf("the second did not wait: %v", got.Err)
	default:
	}
	locktest.Unlock(t, l)
	if got := locktest.Receive(t, second); got.Err != nil {
		t.Errorf("the second: %v", got.Err)
	}
}

func TestClose_EndsEverythingAndLeavesNothing(t *testing.T) {
	t.Parallel()
	b, ctx := locktest.Setup(t), locktest.Within(t)
	c, other := b.Client(t), b.Client(t)
	foreign := locktest.Lock(t, other, "foreign", "v")
	l := locktest.Lock(t, c, "a", "v")
	s := locktest.NewSession(t, c)
	own := locktest.Lock(t, c, "own", "v", locker.WithSession(s))
	cache, err := c.NewCache(ctx, "")
	if err != nil {
		t.Fatal(err)
	}
	results := make(map[string]<-chan error)
	run := func(what string, call func() error) { results[what] = locktest.Async(call) }
	run("a local waiter", func() error { _, err := c.Lock(ctx, "a", "w"); return err })
	locktest.Eventually(t, "it is in line", func() bool { return locker.Waiting(c, "a") == 1 })
	run("a remote waiter", func() error { _, err := c.Lock(ctx, "foreign", "w"); return err })
	run("a waiter behind it", func() error { _, err := c.Lock(ctx, "foreign", "w", locker.WithSession(s)); return err })
	b.Queued(t, "foreign", 2)
	started := make(chan string, 4)
	running := func(ctx context.Context, l *locker.Lock) error {
		started <- l.Name()
		locktest.Receive(t, ctx.Done())
		return context.Cause(ctx)
	}
	run("Do", func() error { return c.Do(ctx, "do", "v", running) })
	run("Campaign", func() error { return c.Campaign(ctx, "campaign", "v", running) })
	for what, states := range map[string]func(func(locker.State, error) bool){"Watch": c.Watch(ctx, "w"), "WatchPrefix": c.WatchPrefix(ctx, "own")} {
		run(what, func() error {
			for state, err := range states {
				if err != nil {
					return err
				}
				if !state.Held || state.Name == "own" {
					select {
					case started <- state.Name:
					default: // the end of the hold, reported before that of the client
					}
				}
			}
			return nil
		})
	}
	for range 4 {
		locktest.Receive(t, started)
	}

	if err := c.Close(); err != nil {
		t.Error(err)
	}
	if keys := b.Keys(t, ""); len(keys) != 2 || len(b.Leases(t)) != 1 { // the entry and the record of the other client
		t.Errorf("left behind: %d leases, keys %q", len(b.Leases(t)), keys)
	}
	for what, result := range results {
		if err := locktest.Receive(t, result); !errors.Is(err, locker.ErrClosed) {
			t.Errorf("%s returned %v", what, err)
		}
	}
	for _, hold := range []*locker.Lock{l, own} {
		locktest.Want(t, context.Cause(hold.Context()), locker.ErrClosed)
		locktest.Want(t, hold.Err(), locker.ErrClosed)
		locktest.Want(t, hold.Unlock(ctx), locker.ErrClosed)
		locktest.Want(t, hold.SetValue(ctx, "w"), locker.ErrClosed)
	}
	locktest.Want(t, context.Cause(s.Context()), locker.ErrClosed)
	if holder, ok := cache.Get("a"); !ok || holder.Token != l.Token() {
		t.Errorf("the cache has lost what it read: %+v", holder)
	}
	cache.Close()
	if foreign.Err() != nil {
		t.Errorf("another client was disturbed: %v", foreign.Err())
	}
	locktest.Lock(t, other, "a", "next")
}

func TestClose_EveryCallAfterItReturnsErrClosed(t *testing.T) {
	t.Parallel()
	b, ctx := locktest.Setup(t), locktest.Within(t)
	etcd, requests := countedEtcd(t, b.Server)
	c := locktest.NewClient(t, etcd)
	l := locktest.Lock(t, c, "a", "v")
	locktest.Unlock(t, l)
	s := locktest.NewSession(t, c)
	for range 2 {
		if err := c.Close(); err != nil {
			t.Error(err)
		}
	}
	before := requests.Load()
	for verb, call := range verbs(c) {
		t.Run(verb, func(t *testing.T) {
			err := call(ctx)
			locktest.Want(t, err, locker.ErrClosed)
			wantWrappedOnce(t, err)
		})
	}
	_, err := c.Lock(ctx, "a", "v", locker.WithSession(s))
	locktest.Want(t, err, locker.ErrClosed)
	locktest.Want(t, l.Unlock(ctx), locker.ErrReleased)
	if err := s.Close(); err != nil {
		t.Error(err)
	}
	if n := requests.Load() - before; n != 0 {
		t.Errorf("%d requests after Close", n)
	}
}

func TestClose_ConcurrentCallsReturnWhenNothingIsLeft(t *testing.T) {
	t.Parallel()
	b := locktest.Setup(t)
	revoking, proceed := make(chan struct{}), make(chan struct{})
	var revoked atomic.Bool
	var once sync.Once // on a busy machine it may be sent twice
	c := locktest.NewClient(t, b.Server.ClientWith(t, func(_ context.Context, method string, _ any, call func() error) error {
		if method != "/etcdserverpb.Lease/LeaseRevoke" {
			return call()
		}
		once.Do(func() { close(revoking) })
		<-proceed
		err := call()
		revoked.Store(true)
		return err
	}))
	locktest.Lock(t, c, "a", "v")
	started, done := make(chan struct{}), make(chan error)
	for range 4 {
		go func() {
			started <- struct{}{}
			err := c.Close()
			if !revoked.Load() {
				err = errors.Join(err, errors.New("returned too early"))
			}
			done <- err
		}()
	}
	for range 4 {
		locktest.Receive(t, started)
	}
	locktest.Receive(t, revoking)
	b.Queued(t, "a", 1) // gives a call time to return
	close(proceed)
	for range 4 {
		if err := locktest.Receive(t, done); err != nil {
			t.Error(err)
		}
	}
}
