package locker_test

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"math"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/client/v3/namespace"
	"go.etcd.io/etcd/server/v3/embed"
	"google.golang.org/grpc"

	"github.com/jagregory/locker/v2"
	"github.com/jagregory/locker/v2/embedtest"
)

// countedEtcd returns a connection and the number of requests and streams that were begun on it.
func countedEtcd(t testing.TB, server *embedtest.Server) (*clientv3.Client, *atomic.Int64) {
	var requests atomic.Int64
	count := embedtest.Intercept(func(_ context.Context, _ string, _ any, call func() error) error {
		requests.Add(1)
		return call()
	})
	config := server.ClientConfig()
	config.DialOptions = append(config.DialOptions, count.DialOption(), grpc.WithChainStreamInterceptor(
		func(ctx context.Context, desc *grpc.StreamDesc, conn *grpc.ClientConn, method string, stream grpc.Streamer, opts ...grpc.CallOption) (grpc.ClientStream, error) {
			requests.Add(1)
			return stream(ctx, desc, conn, method, opts...)
		}))
	etcd, err := clientv3.New(config)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { etcd.Close() })
	return etcd, &requests
}

// wantInvalid fails the test unless err says that the argument is invalid.
func wantInvalid(t testing.TB, err error, argument string) {
	t.Helper()
	var invalid *locker.InvalidError
	if !errors.Is(err, locker.ErrInvalid) || !errors.As(err, &invalid) {
		t.Fatalf("not an InvalidError: %v", err)
	}
	if invalid.Argument != argument || invalid.Problem == "" {
		t.Errorf("an InvalidError for %q, want %q: %v", invalid.Argument, argument, err)
	}
	if len(err.Error()) > 500 || strings.ContainsFunc(err.Error(), func(r rune) bool { return r < ' ' }) {
		t.Errorf("not fit to be printed: %q", err)
	}
}

// lastError returns the error that ends a sequence.
func lastError[T any](seq func(func(T, error) bool)) error {
	for _, err := range seq {
		if err != nil {
			return err
		}
	}
	return nil
}

// recovered returns what f returned, or an error if it panicked.
func recovered(f func() error) (err error) {
	defer func() {
		if r := recover(); r != nil {
			err = errors.New("a panic")
		}
	}()
	return f()
}

func TestNames_BadOnesAreRefusedWithoutARequest(t *testing.T) {
	t.Parallel()
	etcd, requests := countedEtcd(t, embedtest.Start(t))
	c, ctx := newClient(t, etcd), within(t)
	never := func(context.Context, *locker.Lock) error { t.Error("called"); return nil }
	calls := map[string]func(string) error{
		"Lock":     func(name string) error { _, err := c.Lock(ctx, name, "v"); return err },
		"TryLock":  func(name string) error { _, err := c.TryLock(ctx, name, "v"); return err },
		"Do":       func(name string) error { return c.Do(ctx, name, "v", never) },
		"Campaign": func(name string) error { return c.Campaign(ctx, name, "v", never) },
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
		t.Errorf("a good name: %v, %d requests", err, requests.Load())
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
				t.Error("a client with an error")
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
	b := setup(t)
	etcd, requests := countedEtcd(t, b.Server)
	c, ctx := newClient(t, etcd), within(t)
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
			t.Error("a session with an error")
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
	c, ctx := newClient(t, etcd), within(t)
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
	c := newClient(t, etcd)
	if err := c.Close(); err != nil || requests.Load() != 0 {
		t.Errorf("%v, %d requests", err, requests.Load())
	}
}

func TestOptions_TheTTLIsRoundedUpToSeconds(t *testing.T) {
	t.Parallel()
	b := setup(t)
	l := lock(t, b.Client(t, locker.WithTTL(8100*time.Millisecond)), "a", "v")
	holder, err := b.Client(t).Get(within(t), l.Name())
	if err != nil {
		t.Fatal(err)
	}
	lease, err := b.Etcd.TimeToLive(within(t), holder.Lease)
	if err != nil || lease.GrantedTTL != 9 {
		t.Errorf("%v, granted %d s, want 9", err, lease.GrantedTTL)
	}
}

func TestOptions_AHoldEndsTheSafetyMarginBeforeItsLease(t *testing.T) {
	t.Parallel()
	b := setup(t)
	for margin, options := range map[time.Duration][]locker.Option{
		6 * time.Second:  {locker.WithTTL(time.Minute)},
		29 * time.Second: {locker.WithSafetyMargin(29 * time.Second), locker.WithTTL(time.Minute)},
	} {
		c := b.Client(t, options...)
		before := time.Now()
		l := lock(t, c, margin.String(), "v")
		after := time.Now()
		sent := l.Deadline().Add(margin - time.Minute)
		if sent.Before(before) || sent.After(after) {
			t.Errorf("margin %v: the deadline counts from %v, the lock was taken between %v and %v", margin, sent, before, after)
		}
	}
}

func TestOptions_APrefixGetsASlash(t *testing.T) {
	t.Parallel()
	b := setup(t)
	l := lock(t, b.Client(t, locker.WithPrefix("a/b")), "c", "v")
	if !strings.HasPrefix(l.Key(), "a/b/c/") {
		t.Errorf("key %q", l.Key())
	}
	if _, err := b.Client(t, locker.WithPrefix("a/b/")).TryLock(within(t), "c", "v"); !errors.Is(err, locker.ErrLocked) {
		t.Errorf("the same prefix with its slash: %v", err)
	}
	lock(t, b.Client(t, locker.WithPrefix("a/x")), "c", "v") // another prefix, another name
}

func TestOptions_TheLoggerReportsALoss(t *testing.T) {
	t.Parallel()
	b := setup(t)
	var text syncBuffer
	logger := slog.New(slog.NewTextHandler(&text, &slog.HandlerOptions{Level: slog.LevelWarn}))
	l := lock(t, b.Client(t, locker.WithTTL(brief), locker.WithLogger(logger)), "a", "v")
	if text.String() != "" {
		t.Errorf("logged with nothing wrong: %s", text.String())
	}
	if _, err := b.Etcd.Delete(within(t), l.Key()); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the loss is logged", func() bool {
		return strings.Contains(text.String(), "level=WARN") && strings.Contains(text.String(), "name=a")
	})
}

// syncBuffer is a buffer that several goroutines write to.
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

// A connection that is dead, and nobody says so: one address stands before all of etcd.
func TestClientConfig_LeavesADeadConnectionThatNobodyResets(t *testing.T) {
	t.Parallel()
	for name, ttl := range map[string]time.Duration{"the lock is lost": locker.DefaultTTL, "the lock is kept": time.Minute} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := setup(t)
			proxy := b.Server.Proxy(t)
			v := newVictim(t, connect(t, locker.ClientConfig(proxy.Endpoints()...)), ttl)
			other := b.Client(t)
			lock(t, other, "watched", "before")
			leader := lock(t, other, "role", "other")
			v.start(t)
			b.Queued(t, "role", 2)

			proxy.FreezeConnections()
			start := time.Now()
			unlock(t, leader)
			lock(t, other, "new", "after")
			get := make(chan error, 1)
			go func() {
				_, err := v.client.Get(within(t), "new")
				get <- err
			}()
			for what, back := range map[string]<-chan error{
				"Get": get, "Watch": v.watch, "Cache": v.cache, "Campaign": v.campaign, "the lock": v.held,
			} {
				if err := receive(t, back); err != nil {
					t.Errorf("%s: %v", what, err)
				}
			}
			t.Logf("all is back after %v", time.Since(start))
		})
	}
}

// A victim does everything through one connection, and says what is back.
type victim struct {
	client                       *locker.Client
	watch, cache, campaign, held chan error
}

func newVictim(t *testing.T, etcd *clientv3.Client, ttl time.Duration) *victim {
	return &victim{
		newClient(t, etcd, locker.WithTTL(ttl)),
		make(chan error, 1), make(chan error, 1), make(chan error, 1), make(chan error, 1),
	}
}

// start returns when all is under way: what is waited for is the name "new", and the lock
// of "role" and of "held", whoever lost it.
func (v *victim) start(t *testing.T) {
	ctx, c := within(t), v.client
	ready := make(chan struct{}, 3)
	seen := make(chan struct{}) // that "new" is locked, which is after the cut
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
	receive(t, ready)
	receive(t, ready)
}

func TestClientConfig_CarriesALargeValueOverANarrowLink(t *testing.T) {
	t.Parallel()
	b := setup(t)
	proxy := b.Server.Proxy(t)
	etcd := connect(t, locker.ClientConfig(proxy.Endpoints()...))
	if _, err := etcd.Put(within(t), "key", "connected"); err != nil {
		t.Fatal(err)
	}
	proxy.Throttle(64 << 10)
	proxy.Delay(200 * time.Millisecond)
	// A machine that is busy may keep a ping waiting once, a narrow link would each time.
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
		_, err := etcd.Put(within(t), "key", strings.Repeat("x", 256<<10))
		return err
	})
	tried("the get", func() error {
		resp, err := etcd.Get(within(t), "key")
		if err == nil && len(resp.Kvs[0].Value) != 256<<10 {
			t.Errorf("%d bytes", len(resp.Kvs[0].Value))
		}
		return err
	})
}
