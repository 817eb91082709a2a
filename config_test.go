package locker_test

import (
	"context"
	"strings"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/server/v3/embed"

	"github.com/jagregory/locker/v2"
)

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
			proxy := b.server.Proxy(t)
			v := newVictim(t, connect(t, locker.ClientConfig(proxy.Endpoints()...)), ttl)
			other := b.client(t)
			lock(t, other, "watched", "before")
			leader := lock(t, other, "role", "other")
			v.start(t)
			b.queued(t, "role", 2)

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
	proxy := b.server.Proxy(t)
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
