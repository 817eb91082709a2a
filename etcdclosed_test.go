package locker_test

import (
	"context"
	"errors"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/client/v3/concurrency"

	"github.com/jagregory/locker/v2"
)

// The program closes the etcd client that it has lent.

// longTTL is one that no test waits for.
const longTTL = 10 * time.Minute

// wantEtcdClosed fails the test unless err says that etcd was closed, and nothing that a
// caller may take for its own time-out.
func wantEtcdClosed(t testing.TB, what string, err error) {
	t.Helper()
	if !errors.Is(err, locker.ErrEtcdClosed) || errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("%s: %v", what, err)
	}
}

// soon is within, for what must not wait for the TTL or a time-out of its context.
func soon(t testing.TB, what string, call func() error) {
	t.Helper()
	result := make(chan error, 1)
	go func() { result <- call() }()
	select {
	case err := <-result:
		wantEtcdClosed(t, what, err)
	case <-time.After(patience / 2):
		t.Errorf("%s does not return", what)
	}
}

func TestEtcdClosed_IsSaidByEveryCallAtOnce(t *testing.T) {
	t.Parallel()
	b, ctx := setup(t), t.Context()
	etcd, err := clientv3.New(b.server.ClientConfig())
	if err != nil {
		t.Fatal(err)
	}
	c := newClient(t, etcd, locker.WithTTL(longTTL))
	foreign, err := concurrency.NewSession(b.etcd)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = foreign.Close() })
	s := newSession(t, c)
	held, own := lock(t, c, "held", "v"), lock(t, c, "own", "v", locker.WithSession(s))
	compat := c.Compat()
	if err := etcd.Close(); err != nil {
		t.Fatal(err)
	}
	calls := verbs(c)
	calls["Err"] = func(context.Context) error { return held.Err() }
	calls["Commit"] = func(ctx context.Context) error { _, err := held.Commit(ctx, clientv3.OpPut("x", "")); return err }
	calls["SetValue"] = func(ctx context.Context) error { return held.SetValue(ctx, "w") }
	calls["Unlock"] = held.Unlock
	calls["Lock on a session"] = func(ctx context.Context) error { _, err := c.Lock(ctx, "b", "", locker.WithSession(s)); return err }
	calls["AdoptSession"] = func(context.Context) error { _, err := c.AdoptSession(foreign); return err }
	calls["Session.Close"] = func(context.Context) error { return s.Close() }
	calls["Compat.Lock"] = func(context.Context) error { return compat.Lock("b", "v", nil, nil) }
	calls["Compat.Watch"] = func(context.Context) error { return compat.Watch("b", nil, nil) }
	calls["Compat.Get"] = func(context.Context) error { _, err := compat.Get("b"); return err }
	for verb, call := range calls {
		soon(t, verb, func() error { return call(ctx) })
	}
	for _, l := range []*locker.Lock{held, own} {
		var lost *locker.LostError
		receive(t, l.Context().Done())
		if err := context.Cause(l.Context()); !errors.As(err, &lost) || lost.Cause != locker.ErrEtcdClosed {
			t.Errorf("the hold of %s ended with %v", l.Name(), err)
		}
	}
	soon(t, "Close", c.Close)
	if err := c.Close(); err != nil {
		t.Errorf("Close, once more: %v", err)
	}
	_, err = c.Get(ctx, "a")
	want(t, err, locker.ErrClosed)
}

func TestEtcdClosed_EndsAllThatIsUnderWay(t *testing.T) {
	t.Parallel()
	b, ctx := setup(t), t.Context()
	etcd, err := clientv3.New(b.server.ClientConfig())
	if err != nil {
		t.Fatal(err)
	}
	c := newClient(t, etcd, locker.WithTTL(longTTL))
	lock(t, b.client(t), "foreign", "v")
	cache, err := c.NewCache(ctx, "")
	if err != nil {
		t.Fatal(err)
	}
	s := newSession(t, c)
	results := make(map[string]<-chan error)
	run := func(what string, call func() error) {
		result := make(chan error, 1)
		results[what] = result
		go func() { result <- call() }()
	}
	lock(t, c, "held", "v")
	run("a waiter in the client's line", func() error { _, err := c.Lock(ctx, "held", "w"); return err })
	eventually(t, "it is in line", func() bool { return c.Waiting("held") == 1 })
	run("a waiter in etcd's queue", func() error { _, err := c.Lock(ctx, "foreign", "w", locker.WithSession(s)); return err })
	b.queued(t, "foreign", 2)
	started := make(chan struct{}, 4)
	holding := func(ctx context.Context, _ *locker.Lock) error {
		started <- struct{}{}
		<-ctx.Done()
		return context.Cause(ctx)
	}
	run("Do", func() error { return c.Do(ctx, "do", "v", holding) })
	run("Campaign", func() error { return c.Campaign(ctx, "campaign", "v", holding) })
	for what, states := range map[string]func(func(locker.State, error) bool){"Watch": c.Watch(ctx, "w"), "WatchPrefix": c.WatchPrefix(ctx, "held")} {
		run(what, func() error {
			for _, err := range states {
				if err != nil {
					return err
				}
				started <- struct{}{}
			}
			return nil
		})
	}
	for range 4 {
		receive(t, started)
	}
	if err := etcd.Close(); err != nil {
		t.Fatal(err)
	}
	for what, result := range results {
		wantEtcdClosed(t, what, receive(t, result))
	}
	cache.Close()
	soon(t, "Close", c.Close)
}

func TestEtcdClosed_AfterTheClientIsNoError(t *testing.T) {
	t.Parallel()
	b := setup(t)
	etcd, err := clientv3.New(b.server.ClientConfig())
	if err != nil {
		t.Fatal(err)
	}
	c := newClient(t, etcd)
	unlock(t, lock(t, c, "a", "v"))
	if err := c.Close(); err != nil {
		t.Error(err)
	}
	if err := etcd.Close(); err != nil {
		t.Error(err)
	}
	_, err = c.Get(t.Context(), "a")
	want(t, err, locker.ErrClosed)
	if errors.Is(err, locker.ErrEtcdClosed) {
		t.Errorf("it was closed before: %v", err)
	}
}
