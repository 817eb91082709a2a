package locker_test

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"math"
	"strings"
	"sync"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/client/v3/namespace"
	"go.etcd.io/etcd/server/v3/embed"

	"github.com/jagregory/locker/v2"
	"github.com/jagregory/locker/v2/embedtest"
	"github.com/jagregory/locker/v2/internal/locktest"
)

func TestNames_BadOnesAreRefusedWithoutARequest(t *testing.T) {
	t.Parallel()
	etcd, requests := countedEtcd(t, embedtest.Start(t))
	c, ctx := locktest.NewClient(t, etcd), locktest.Within(t)
	calls := map[string]func(string) error{
		"Lock":     func(name string) error { _, err := c.Lock(ctx, name, "v"); return err },
		"TryLock":  func(name string) error { _, err := c.TryLock(ctx, name, "v"); return err },
		"Do":       func(name string) error { return c.Do(ctx, name, "v", neverCalled(t)) },
		"Campaign": func(name string) error { return c.Campaign(ctx, name, "v", neverCalled(t)) },
		"Get":      func(name string) error { _, err := c.Get(ctx, name); return err },
		"Watch":    func(name string) error { return lastError(c.Watch(ctx, name)) },
	}
	names := []string{
		"", strings.Repeat("a", locker.MaxNameLength+1), strings.Repeat("ä", 1<<20),
		"\x00", "a\nb", "a\x1b[1m", "a\x7f", "a\u0085b", "\xff", "a\xc3", "\xed\xa0\x80",
	}
	for verb, call := range calls {
		for _, name := range names {
			err := call(name)
			wantInvalid(t, err, "name")
			if !strings.HasPrefix(err.Error(), "locker: ") {
				t.Errorf("%s: not wrapped: %v", verb, err)
			}
		}
	}
	if n := requests.Load(); n != 0 {
		t.Errorf("%d requests were made", n)
	}
	if err := c.Do(ctx, "a", "v", func(context.Context, *locker.Lock) error { return nil }); err != nil || requests.Load() == 0 {
		t.Errorf("a valid name: %v, %d requests", err, requests.Load())
	}
}

func TestOptions_BadOnesAreRefusedWithoutARequest(t *testing.T) {
	t.Parallel()
	etcd, requests := countedEtcd(t, embedtest.Start(t))
	tests := map[string]struct {
		argument string
		options  []locker.Option
	}{
		"no option":          {"option", []locker.Option{nil}},
		"no prefix":          {"prefix", []locker.Option{locker.WithPrefix("")}},
		"control prefix":     {"prefix", []locker.Option{locker.WithPrefix("a\n/")}},
		"non-UTF-8 prefix":   {"prefix", []locker.Option{locker.WithPrefix("\xff/")}},
		"no TTL":             {"TTL", []locker.Option{locker.WithTTL(0)}},
		"negative TTL":       {"TTL", []locker.Option{locker.WithTTL(-time.Hour)}},
		"short TTL":          {"TTL", []locker.Option{locker.WithTTL(time.Second - 1)}},
		"long TTL":           {"TTL", []locker.Option{locker.WithTTL(365*24*time.Hour + 1)}},
		"longest TTL":        {"TTL", []locker.Option{locker.WithTTL(math.MaxInt64)}},
		"no margin":          {"safety margin", []locker.Option{locker.WithSafetyMargin(0)}},
		"negative margin":    {"safety margin", []locker.Option{locker.WithSafetyMargin(-1)}},
		"long margin":        {"safety margin", []locker.Option{locker.WithSafetyMargin(locker.DefaultTTL/2 + 1)}},
		"long margin later":  {"safety margin", []locker.Option{locker.WithSafetyMargin(4 * time.Second), locker.WithTTL(6 * time.Second)}},
		"no hand-over":       {"local hand-over", []locker.Option{locker.WithLocalHandover(0)}},
		"negative hand-over": {"local hand-over", []locker.Option{locker.WithLocalHandover(-1)}},
		"least hand-over":    {"local hand-over", []locker.Option{locker.WithLocalHandover(4), locker.WithLocalHandover(math.MinInt)}},
		"no logger":          {"logger", []locker.Option{locker.WithLogger(nil)}},
		"one of several":     {"TTL", []locker.Option{locker.WithPrefix("a"), locker.WithTTL(0), locker.WithTTL(time.Second)}},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			c, err := locker.New(etcd, test.options...)
			wantInvalid(t, err, test.argument)
			if c != nil {
				t.Error("New returned a client and an error")
			}
		})
	}
	_, err := locker.New(nil)
	wantInvalid(t, err, "client")
	watcher := etcd.Watcher
	etcd.Watcher = namespace.NewWatcher(watcher, "elsewhere/")
	_, err = locker.New(etcd)
	wantInvalid(t, err, "client")
	etcd.Watcher, etcd.KV = watcher, namespace.NewKV(etcd.KV, "elsewhere/")
	_, err = locker.New(etcd)
	wantInvalid(t, err, "client")
	if n := requests.Load(); n != 0 {
		t.Errorf("%d requests were made", n)
	}
}

func TestSession_ABadOneIsRefusedWithoutARequest(t *testing.T) {
	t.Parallel()
	b := locktest.Setup(t)
	etcd, requests := countedEtcd(t, b.Server)
	c, ctx := locktest.NewClient(t, etcd), locktest.Within(t)
	foreign, err := b.Client(t).NewSession(ctx)
	if err != nil {
		t.Fatal(err)
	}
	for what, session := range map[string]*locker.Session{"of another client": foreign, "zero": {}, "nil": nil} {
		_, err := c.Lock(ctx, "a", "v", locker.WithSession(session))
		wantInvalid(t, err, "session")
		_, err = c.TryLock(ctx, "a", "v", locker.WithSession(session))
		wantInvalid(t, err, "session")
		if err := c.Campaign(ctx, "a", "v", nil, locker.WithSession(session)); !errors.Is(err, locker.ErrInvalid) {
			t.Errorf("Campaign with a session %s: %v", what, err)
		}
	}
	for _, ttl := range []time.Duration{0, -1, time.Second - 1, math.MaxInt64} {
		s, err := c.NewSession(ctx, locker.WithSessionTTL(ttl))
		wantInvalid(t, err, "TTL")
		if s != nil {
			t.Error("NewSession returned a session and an error")
		}
	}
	_, err = c.AdoptSession(nil)
	wantInvalid(t, err, "session")
	if n := requests.Load(); n != 0 {
		t.Errorf("%d requests were made", n)
	}
}

func TestOptions_OfCallsAreRefusedIfNil(t *testing.T) {
	t.Parallel()
	etcd, requests := countedEtcd(t, embedtest.Start(t))
	c, ctx := locktest.NewClient(t, etcd), locktest.Within(t)
	calls := map[string]func() error{
		"Lock":       func() error { _, err := c.Lock(ctx, "a", "v", nil); return err },
		"TryLock":    func() error { _, err := c.TryLock(ctx, "a", "v", nil); return err },
		"Do":         func() error { return c.Do(ctx, "a", "v", nil, nil) },
		"Campaign":   func() error { return c.Campaign(ctx, "a", "v", nil, nil) },
		"NewSession": func() error { _, err := c.NewSession(ctx, nil); return err },
	}
	for verb, call := range calls {
		t.Run(verb, func(t *testing.T) { wantInvalid(t, recovered(call), "option") })
	}
	if n := requests.Load(); n != 0 {
		t.Errorf("%d requests were made", n)
	}
}

func TestNew_MakesNoRequest(t *testing.T) {
	t.Parallel()
	etcd, requests := countedEtcd(t, embedtest.Start(t))
	c := locktest.NewClient(t, etcd)
	if err := c.Close(); err != nil || requests.Load() != 0 {
		t.Errorf("%v, %d requests", err, requests.Load())
	}
}

func TestOptions_TheTTLIsRoundedUpToSeconds(t *testing.T) {
	t.Parallel()
	b := locktest.Setup(t)
	l := locktest.Lock(t, b.Client(t, locker.WithTTL(8100*time.Millisecond)), "a", "v")
	holder, err := b.Client(t).Get(locktest.Within(t), l.Name())
	if err != nil {
		t.Fatal(err)
	}
	lease, err := b.Etcd.TimeToLive(locktest.Within(t), holder.Lease)
	if err != nil || lease.GrantedTTL != 9 {
		t.Errorf("%v, granted %d s, want 9", err, lease.GrantedTTL)
	}
}

func TestOptions_AHoldEndsTheSafetyMarginBeforeItsLease(t *testing.T) {
	t.Parallel()
	b := locktest.Setup(t)
	for margin, options := range map[time.Duration][]locker.Option{
		6 * time.Second:  {locker.WithTTL(time.Minute)},
		29 * time.Second: {locker.WithSafetyMargin(29 * time.Second), locker.WithTTL(time.Minute)},
	} {
		c := b.Client(t, options...)
		before := time.Now()
		l := locktest.Lock(t, c, margin.String(), "v")
		after := time.Now()
		sent := l.Deadline().Add(margin - time.Minute)
		if sent.Before(before) || sent.After(after) {
			t.Errorf("margin %v: the deadline counts from %v, the lock was taken between %v and %v", margin, sent, before, after)
		}
	}
}

func TestOptions_APrefixGetsASlash(t *testing.T) {
	t.Parallel()
	b := locktest.Setup(t)
	l := locktest.Lock(t, b.Client(t, locker.WithPrefix("a/b")), "c", "v")
	if !strings.HasPrefix(l.Key(), "a/b/c/") {
		t.Errorf("key %q", l.Key())
	}
	if _, err := b.Client(t, locker.WithPrefix("a/b/")).TryLock(locktest.Within(t), "c", "v"); !errors.Is(err, locker.ErrLocked) {
		t.Errorf("the same prefix with its slash: %v", err)
	}
	locktest.Lock(t, b.Client(t, locker.WithPrefix("a/x")), "c", "v") // another prefix, another name
}

func TestOptions_TheLoggerReportsALoss(t *testing.T) {
	t.Parallel()
	b := locktest.Setup(t)
	var text syncBuffer
	logger := slog.New(slog.NewTextHandler(&text, &slog.HandlerOptions{Level: slog.LevelWarn}))
	l := locktest.Lock(t, b.Client(t, locker.WithTTL(locktest.Brief), locker.WithLogger(logger)), "a", "v")
	if text.String() != "" {
		t.Errorf("logged with nothing wrong: %s", text.String())
	}
	if _, err := b.Etcd.Delete(locktest.Within(t), l.Key()); err != nil {
		t.Fatal(err)
	}
	locktest.Eventually(t, "the loss is logged", func() bool {
		return strings.Contains(text.String(), "level=WARN") && strings.Contains(text.String(), "name=a")
	})
}

// syncBuffer is a buffer that several goroutines may use.
type syncBuffer struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (b *syncBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.Write(p)
}

func (b *syncBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.String()
}

func TestClientConfig_PingsAsEtcdPermits(t *testing.T) {
	t.Parallel()
	config := locker.ClientConfig("a:2379", "b:2379")
	if got := strings.Join(config.Endpoints, " "); got != "a:2379 b:2379" {
		t.Error(got)
	}
	// More often, or without a stream, etcd closes the connection: "too_many_pings".
	if config.DialKeepAliveTime < embed.DefaultGRPCKeepAliveMinTime || config.PermitWithoutStream {
		t.Error(config.DialKeepAliveTime, config.PermitWithoutStream)
	}
	if config.DialKeepAliveTimeout <= 0 || config.DialTimeout != 0 || config.Logger == nil {
		t.Errorf("%+v", config)
	}
	config.Endpoints[0] = "changed"
	if again := locker.ClientConfig("a:2379"); again.Endpoints[0] != "a:2379" {
		t.Error(again.Endpoints)
	}
}

// The connection is dead, but nothing closes it: one address stands for all of etcd.
func TestClientConfig_LeavesADeadConnectionThatNobodyResets(t *testing.T) {
	t.Parallel()
	for name, ttl := range map[string]time.Duration{"the lock is lost": locker.DefaultTTL, "the lock is kept": time.Minute} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := locktest.Setup(t)
			proxy := b.Server.Proxy(t)
			v := newVictim(t, locktest.Connect(t, locker.ClientConfig(proxy.Endpoints()...)), ttl)
			other := b.Client(t)
			locktest.Lock(t, other, "watched", "before")
			leader := locktest.Lock(t, other, "role", "other")
			v.start(t)
			b.Queued(t, "role", 2)

			proxy.FreezeConnections()
			start := time.Now()
			locktest.Unlock(t, leader)
			locktest.Lock(t, other, "new", "after")
			get := make(chan error, 1)
			go func() {
				_, err := v.client.Get(locktest.Within(t), "new")
				get <- err
			}()
			for what, works := range map[string]<-chan error{
				"Get": get, "Watch": v.watch, "Cache": v.cache, "Campaign": v.campaign, "the lock": v.held,
			} {
				if err := locktest.Receive(t, works); err != nil {
					t.Errorf("%s: %v", what, err)
				}
			}
			t.Logf("everything works again after %v", time.Since(start))
		})
	}
}

// victim does everything through one connection, and signals what works again.
type victim struct {
	client                       *locker.Client
	watch, cache, campaign, held chan error
}

func newVictim(t *testing.T, etcd *clientv3.Client, ttl time.Duration) *victim {
	return &victim{
		locktest.NewClient(t, etcd, locker.WithTTL(ttl)),
		make(chan error, 1), make(chan error, 1), make(chan error, 1), make(chan error, 1),
	}
}

// start returns when everything is under way: the victim waits for "new" to be locked, for its
// turn at "role", and then commits under "held", which it locks again if it has lost it.
func (v *victim) start(t *testing.T) {
	ctx, c := locktest.Within(t), v.client
	ready := make(chan struct{}, 3)
	seen := make(chan struct{}) // closed when "new" is locked, which is after the cut
	go func() {
		for state, err := range c.WatchPrefix(ctx, "") {
			switch {
			case err != nil:
				v.watch <- err
				return
			case state.Name == "watched":
				ready <- struct{}{}
			case state.Name == "new":
				close(seen)
				v.watch <- nil
				return
			}
		}
	}()
	cache, err := c.NewCache(ctx, "")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(cache.Close)
	go func() {
		for {
			changed := cache.Changed()
			if _, ok := cache.Get("new"); ok {
				v.cache <- nil
				return
			}
			select {
			case <-changed:
			case <-ctx.Done():
				v.cache <- context.Cause(ctx)
				return
			}
		}
	}()
	go c.Campaign(ctx, "role", "victim", func(ctx context.Context, l *locker.Lock) error {
		v.campaign <- nil
		<-ctx.Done()
		return nil
	})
	go c.Campaign(ctx, "held", "victim", func(ctx context.Context, l *locker.Lock) error {
		select {
		case ready <- struct{}{}:
		default:
		}
		select {
		case <-seen:
			_, err := l.Commit(ctx, clientv3.OpPut("written", "under the lock"))
			if ctx.Err() == nil {
				v.held <- err
			}
			<-ctx.Done()
		case <-ctx.Done():
		}
		return nil
	})
	locktest.Receive(t, ready)
	locktest.Receive(t, ready)
}

func TestClientConfig_CarriesALargeValueOverANarrowLink(t *testing.T) {
	t.Parallel()
	b := locktest.Setup(t)
	proxy := b.Server.Proxy(t)
	etcd := locktest.Connect(t, locker.ClientConfig(proxy.Endpoints()...))
	if _, err := etcd.Put(locktest.Within(t), "key", "connected"); err != nil {
		t.Fatal(err)
	}
	proxy.Throttle(64 << 10)
	proxy.Delay(200 * time.Millisecond)
	// A busy machine may delay a ping once, a narrow link would each time.
	tried := func(what string, call func() error) {
		t.Helper()
		const tries = 5
		var err error
		for range tries {
			if err = call(); err == nil {
				return
			}
		}
		t.Errorf("%s failed %d times: %v", what, tries, err)
	}
	tried("the put", func() error {
		_, err := etcd.Put(locktest.Within(t), "key", strings.Repeat("x", 256<<10))
		return err
	})
	tried("the get", func() error {
		resp, err := etcd.Get(locktest.Within(t), "key")
		if err == nil && len(resp.Kvs[0].Value) != 256<<10 {
			t.Errorf("%d bytes", len(resp.Kvs[0].Value))
		}
		return err
	})
}
