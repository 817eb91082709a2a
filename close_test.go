package locker_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/jagregory/locker/v2"
	"github.com/jagregory/locker/v2/embedtest"
)

// leases returns how many leases there are.
func (b bundle) leases(t testing.TB) int {
	t.Helper()
	resp, err := b.Etcd.Leases(within(t))
	if err != nil {
		t.Fatal(err)
	}
	return len(resp.Leases)
}

// verbs are all exported calls of a Client that take a context.
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

// wantWrappedOnce fails the test unless err has the form in which errors leave the package.
func wantWrappedOnce(t testing.TB, err error) {
	t.Helper()
	if text := fmt.Sprint(err); !strings.HasPrefix(text, "locker: ") || strings.Count(text, "locker: ") != 1 {
		t.Errorf("not wrapped once: %s", text)
	}
}

func TestEndedContext_LeadsToItsCauseAndNoRequest(t *testing.T) {
	t.Parallel()
	b, enough := setup(t), errors.New("enough")
	etcd, requests := countedEtcd(t, b.Server)
	c := newClient(t, etcd, locker.WithTTL(5*time.Minute)) // so that nothing is renewed meanwhile
	l := lock(t, c, "a", "v")
	calls := verbs(c)
	calls["Commit"] = func(ctx context.Context) error { _, err := l.Commit(ctx, clientv3.OpPut("written", "yes")); return err }
	calls["SetValue"] = func(ctx context.Context) error { return l.SetValue(ctx, "w") }
	ctx, cancel := context.WithCancelCause(within(t))
	cancel(enough)
	for verb, call := range calls {
		t.Run(verb, func(t *testing.T) {
			before := requests.Load()
			err := call(ctx)
			want(t, err, enough)
			wantWrappedOnce(t, err)
			if n := requests.Load() - before; n != 0 {
				t.Errorf("%d requests", n)
			}
		})
	}
	if l.Err() != nil || l.Value() != "v" || get(t, c, "a").Value != "v" || b.value(t, "written") != "" {
		t.Errorf("something was done: %v, %q", l.Err(), get(t, c, "a").Value)
	}
}

// sweep locks "a" with a client of its own and a context that fault ends, and
// expects that Lock returns and nothing is left.
func sweep(t *testing.T, b bundle, present int, try bool, fault func(end func()) embedtest.Intercept) (ended bool) {
	t.Helper()
	enough := errors.New("enough")
	ctx, cancel := context.WithCancelCause(within(t))
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
	call := c.Lock
	if try {
		call = c.TryLock
	}
	result := make(chan outcome, 1)
	go func() {
		l, err := call(ctx, "a", "v")
		result <- outcome{Lock: l, Err: err}
	}()
	got := receive(t, result)
	switch {
	case got.Err == nil && present > 0:
		t.Error("locked, while another holds")
	case got.Err == nil:
		if got.Lock.Err() != nil {
			t.Errorf("returned with the hold over: %v", got.Lock.Err())
		}
		unlock(t, got.Lock)
	case try && errors.Is(got.Err, locker.ErrLocked):
	default:
		want(t, got.Err, enough)
		ended = true
	}
	b.Queued(t, "a", present)
	eventually(t, "the client has one lease at most", func() bool { return b.leases(t) <= present+1 })
	if err := c.Close(); err != nil {
		t.Error(err)
	}
	if n := b.leases(t); n != present {
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
					b := setup(t)
					if present > 0 {
						lock(t, b.Client(t), "a", "present")
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
							break // there was no such request to end it: Lock came to its end
						}
					}
					if ends == 0 {
						t.Error("the context ended none")
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
			b := setup(t)
			if present > 0 {
				lock(t, b.Client(t), "a", "present")
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
				t.Error("the context ended none")
			}
		})
	}
}

func TestLine_ACanceledWaiterIsSkipped(t *testing.T) {
	t.Parallel()
	b, tired := setup(t), errors.New("tired")
	c := b.Client(t)
	l := lock(t, c, "a", "v")
	ctx, cancel := context.WithCancelCause(within(t))
	first := lockAsync(ctx, c, "a", "first")
	eventually(t, "the first is in line", func() bool { return locker.Waiting(c, "a") == 1 })
	second := lockAsync(within(t), c, "a", "second")
	eventually(t, "the second is in line", func() bool { return locker.Waiting(c, "a") == 2 })
	cancel(tired)
	got := receive(t, first)
	want(t, got.Err, tired)
	wantWrappedOnce(t, got.Err)
	if got.Lock != nil || l.Err() != nil {
		t.Errorf("a lock with an error, or the holder was disturbed: %v", l.Err())
	}
	b.Queued(t, "a", 1)
	unlock(t, l)
	if got := receive(t, second); got.Err != nil || get(t, c, "a").Value != "second" {
		t.Errorf("the second: %v", got.Err)
	}
}

func TestQueue_ACanceledWaiterIsSkipped(t *testing.T) {
	t.Parallel()
	b, tired := setup(t), errors.New("tired")
	l := lock(t, b.Client(t), "a", "v")
	ctx, cancel := context.WithCancelCause(within(t))
	first := lockAsync(ctx, b.Client(t), "a", "first")
	b.Queued(t, "a", 2)
	second := lockAsync(within(t), b.Client(t), "a", "second")
	b.Queued(t, "a", 3)
	cancel(tired)
	want(t, receive(t, first).Err, tired)
	b.Queued(t, "a", 2)
	select {
	case got := <-second:
		t.Fatalf("the second did not wait: %v", got.Err)
	default:
	}
	unlock(t, l)
	if got := receive(t, second); got.Err != nil {
		t.Errorf("the second: %v", got.Err)
	}
}

func TestClose_EndsEverythingAndLeavesNothing(t *testing.T) {
	t.Parallel()
	b, ctx := setup(t), within(t)
	c, other := b.Client(t), b.Client(t)
	foreign := lock(t, other, "foreign", "v")
	l := lock(t, c, "a", "v")
	s, err := c.NewSession(ctx)
	if err != nil {
		t.Fatal(err)
	}
	own := lock(t, c, "own", "v", locker.WithSession(s))
	cache, err := c.NewCache(ctx, "")
	if err != nil {
		t.Fatal(err)
	}
	results := make(map[string]<-chan error)
	run := func(what string, call func() error) {
		result := make(chan error, 1)
		results[what] = result
		go func() { result <- call() }()
	}
	run("a local waiter", func() error { _, err := c.Lock(ctx, "a", "w"); return err })
	eventually(t, "it is in line", func() bool { return locker.Waiting(c, "a") == 1 })
	run("a remote waiter", func() error { _, err := c.Lock(ctx, "foreign", "w"); return err })
	run("a waiter behind it", func() error { _, err := c.Lock(ctx, "foreign", "w", locker.WithSession(s)); return err })
	b.Queued(t, "foreign", 2)
	started := make(chan string, 4)
	running := func(ctx context.Context, l *locker.Lock) error {
		started <- l.Name()
		receive(t, ctx.Done())
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
					default: // the end of the hold, seen before that of the client
					}
				}
			}
			return nil
		})
	}
	for range 4 {
		receive(t, started)
	}

	if err := c.Close(); err != nil {
		t.Error(err)
	}
	if keys := b.Keys(t, ""); len(keys) != 2 || b.leases(t) != 1 { // the entry and the record of the other
		t.Errorf("left behind: %d leases, keys %q", b.leases(t), keys)
	}
	for what, result := range results {
		if err := receive(t, result); !errors.Is(err, locker.ErrClosed) {
			t.Errorf("%s returned %v", what, err)
		}
	}
	for _, hold := range []*locker.Lock{l, own} {
		want(t, context.Cause(hold.Context()), locker.ErrClosed)
		want(t, hold.Err(), locker.ErrClosed)
		want(t, hold.Unlock(ctx), locker.ErrClosed)
		want(t, hold.SetValue(ctx, "w"), locker.ErrClosed)
	}
	want(t, context.Cause(s.Context()), locker.ErrClosed)
	if holder, ok := cache.Get("a"); !ok || holder.Token != l.Token() {
		t.Errorf("the cache has lost what it read: %+v", holder)
	}
	cache.Close()
	if foreign.Err() != nil {
		t.Errorf("another client was disturbed: %v", foreign.Err())
	}
	lock(t, other, "a", "next")
}

func TestClose_EveryCallAfterItReturnsErrClosed(t *testing.T) {
	t.Parallel()
	b, ctx := setup(t), within(t)
	etcd, requests := countedEtcd(t, b.Server)
	c := newClient(t, etcd)
	l := lock(t, c, "a", "v")
	unlock(t, l)
	s, err := c.NewSession(ctx)
	if err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := c.Close(); err != nil {
			t.Error(err)
		}
	}
	before := requests.Load()
	for verb, call := range verbs(c) {
		t.Run(verb, func(t *testing.T) {
			err := call(ctx)
			want(t, err, locker.ErrClosed)
			wantWrappedOnce(t, err)
		})
	}
	_, err = c.Lock(ctx, "a", "v", locker.WithSession(s))
	want(t, err, locker.ErrClosed)
	want(t, l.Unlock(ctx), locker.ErrReleased)
	if err := s.Close(); err != nil {
		t.Error(err)
	}
	if n := requests.Load() - before; n != 0 {
		t.Errorf("%d requests after Close", n)
	}
}

func TestClose_ConcurrentCallsReturnWhenNothingIsLeft(t *testing.T) {
	t.Parallel()
	b := setup(t)
	revoking, proceed := make(chan struct{}), make(chan struct{})
	var revoked atomic.Bool
	var once sync.Once // on a busy machine it may be sent twice
	c := newClient(t, b.Server.ClientWith(t, func(_ context.Context, method string, _ any, call func() error) error {
		if method != "/etcdserverpb.Lease/LeaseRevoke" {
			return call()
		}
		once.Do(func() { close(revoking) })
		<-proceed
		err := call()
		revoked.Store(true)
		return err
	}))
	lock(t, c, "a", "v")
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
		receive(t, started)
	}
	receive(t, revoking)
	b.Queued(t, "a", 1) // some time in which one might return
	close(proceed)
	for range 4 {
		if err := receive(t, done); err != nil {
			t.Error(err)
		}
	}
}
