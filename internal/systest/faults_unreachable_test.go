package systest

import (
	"context"
	"errors"
	"strings"
	"sync"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/jagregory/locker/v2"
	"github.com/jagregory/locker/v2/embedtest"
	"github.com/jagregory/locker/v2/internal/locktest"
)

// Tests of what callers see while etcd cannot be reached.

func TestCacheAge_GrowsWhileTheCacheIsCutOffAndShrinksAfterwards(t *testing.T) {
	t.Parallel()
	const ttl = time.Second
	b := locktest.Setup(t)
	proxy := b.Server.Proxy(t)
	cache, err := locktest.NewClient(t, proxy.Client(t), locker.WithTTL(ttl)).NewCache(locktest.Within(t), "")
	if err != nil {
		t.Fatal(err)
	}
	for range 2 {
		proxy.Cut()
		locktest.Eventually(t, "the age grows", func() bool { return cache.Age() > 2*ttl })
		l := locktest.Lock(t, b.Client(t), "a", "")
		if holder, ok := cache.Get("a"); ok {
			t.Errorf("the cache has %+v while it is cut off", holder)
		}
		proxy.Heal()
		locktest.Eventually(t, "the age shrinks", func() bool { return cache.Age() < ttl })
		locktest.Eventually(t, "the cache catches up", func() bool { _, ok := cache.Get("a"); return ok })
		if err := l.Unlock(locktest.Within(t)); err != nil {
			t.Error(err)
		}
		locktest.Eventually(t, "the cache sees the release", func() bool { _, ok := cache.Get("a"); return !ok })
	}
}

func TestErrors_SayWhyEtcdDidNotAnswerWhenTheContextEnds(t *testing.T) {
	t.Parallel()
	refusing := embedtest.Start(t)
	refusing.Stop(t, 0)
	frozen := embedtest.Start(t).Proxy(t)
	frozen.Freeze()
	guarded := embedtest.Start(t, embedtest.WithTLS()).ClientConfig()
	guarded.TLS = embedtest.Start(t, embedtest.WithTLS()).TLSConfig()
	for name, test := range map[string]struct {
		config clientv3.Config
		says   string
	}{
		"nothing listens":       {refusing.ClientConfig(), "refused"},
		"nothing answers":       {frozen.ClientConfig(), "no answer from etcd"},
		"the authority differs": {guarded, "certificate signed by unknown authority"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			etcd := locktest.Connect(t, test.config)
			c := locktest.NewClient(t, etcd, locker.WithTTL(time.Second))
			endsWithItsContext(t, c, func(err error) {
				if !strings.Contains(err.Error(), test.says) {
					t.Errorf("%q does not say %q", err, test.says)
				}
			})
		})
	}
}

// endsWithItsContext makes every call that needs etcd, with a context that ends,
// and passes its error to check.
func endsWithItsContext(t *testing.T, c *locker.Client, check func(error)) {
	t.Helper()
	// Beyond its context a call takes at most 100 ms, to find out why there is no
	// connection. Simulated time shows that; here the machine may be busy.
	const timeout, beyond = 2 * time.Second, locktest.Prompt
	// No subtests: those would wait for their turn, with the faults in place.
	var calls sync.WaitGroup
	defer calls.Wait()
	for name, call := range map[string]func(context.Context) error{
		"Lock":       func(ctx context.Context) error { _, err := c.Lock(ctx, "b", ""); return err },
		"TryLock":    func(ctx context.Context) error { _, err := c.TryLock(ctx, "c", ""); return err },
		"Get":        func(ctx context.Context) error { _, err := c.Get(ctx, "b"); return err },
		"List":       func(ctx context.Context) error { _, err := c.List(ctx, ""); return err },
		"Owners":     func(ctx context.Context) error { _, err := c.Owners(ctx); return err },
		"NewSession": func(ctx context.Context) error { _, err := c.NewSession(ctx); return err },
		"NewCache":   func(ctx context.Context) error { _, err := c.NewCache(ctx, ""); return err },
		"Do": func(ctx context.Context) error {
			return c.Do(ctx, "d", "", func(context.Context, *locker.Lock) error { return nil })
		},
		"Campaign": func(ctx context.Context) error {
			return c.Campaign(ctx, "e", "", func(context.Context, *locker.Lock) error { return nil })
		},
		"Watch": func(ctx context.Context) error {
			for _, err := range c.Watch(ctx, "b") {
				return err
			}
			return nil
		},
	} {
		calls.Go(func() {
			ctx, cancel := context.WithTimeout(t.Context(), timeout)
			defer cancel()
			began := time.Now()
			err := call(ctx)
			switch took := time.Since(began); {
			case took > timeout+beyond:
				t.Errorf("%s took %v", name, took)
			case !errors.Is(err, context.DeadlineExceeded):
				t.Errorf("%s returned %v", name, err)
			default:
				check(err)
			}
		})
	}
}
