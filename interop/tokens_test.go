package interop

import (
	"context"
	"errors"
	"flag"
	"testing"
	"time"

	"github.com/jagregory/locker/v2"
)

var tokenTestDuration = flag.Duration("tokens", 10*time.Second, "duration of the test in which authentication tokens expire")

func TestAuthToken_ThatExpiresCostsNothing(t *testing.T) {
	simple := authentication // tokens expire 2 s after their last use
	simple.flags, simple.on = append([]string{"--auth-token-ttl=2"}, authentication.flags...), from35
	jwt := authentication
	jwt.name, jwt.jwt, jwt.on = "authentication by JWT", true, from35
	onOwnCluster(t, func(t *testing.T, b bundle) {
		ctx := t.Context()
		holder, idle := lock(t, b.client(t), "held", "v"), lock(t, b.client(t, locker.WithTTL(time.Minute)), "idle", "")
		waiter := lockAsync(ctx, b.client(t), "held", "w")
		b.awaitEntries(t, "held", 2)
		watched, all := startWatch(t, b.client(t), "used", false), startWatch(t, b.client(t), "used", true)
		watched.expect(t, "used", nil)
		cache, err := b.client(t).NewCache(ctx, "used")
		if err != nil {
			t.Fatal(err)
		}
		c := b.client(t)
		// The client makes no request between two ticks, so its token expires.
		ticker := time.NewTicker(3 * time.Second)
		defer ticker.Stop()
		for began := time.Now(); time.Since(began) < *tokenTestDuration; receive(t, ticker.C) {
			l := lock(t, c, "used", "1")
			watched.expect(t, "used", l)
			all.expect(t, "used", l)
			if err := l.SetValue(ctx, "2"); err != nil {
				t.Fatal(err)
			}
			watched.expect(t, "used", l)
			all.expect(t, "used", l)
			unlock(t, l)
			watched.expect(t, "used", nil)
			all.expect(t, "used", nil)
			eventually(t, "the cache is up to date", func() bool { return len(cache.List()) == 0 && cache.Revision() >= l.Token() })
		}
		if holder.Err() != nil || idle.Err() != nil || len(waiter) != 0 {
			t.Fatalf("Err of the holds: %v, %v; %d waiters returned", holder.Err(), idle.Err(), len(waiter))
		}
		unlock(t, idle)
		unlock(t, holder)
		unlock(t, awaitLock(t, waiter))
	}, simple, jwt)
}

func TestAuthToken_ThatIsVoidIsReplacedFrom35On(t *testing.T) {
	onOwnCluster(t, func(t *testing.T, b bundle) {
		etcd := connect(t, b.config(service))
		c := b.clientOver(t, etcd, locker.WithTTL(shortTTL))
		l := lock(t, c, "a", "")
		// This invalidates all tokens of the user, although the password stays the same.
		if _, err := b.etcd.UserChangePassword(testContext(t), service, service); err != nil {
			t.Fatal(err)
		}
		if !is34(b.release) {
			if holder, err := c.Get(testContext(t), "a"); err != nil || holder.Token != l.Token() {
				t.Errorf("Get returned %+v, %v", holder, err)
			}
			return
		}
		for what, get := range map[string]func(context.Context) error{
			"etcd's client": func(ctx context.Context) error { _, err := etcd.Get(ctx, b.prefix); return err },
			"Locker":        func(ctx context.Context) error { _, err := c.Get(ctx, "a"); return err },
		} {
			ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
			if err := get(ctx); !errors.Is(err, context.DeadlineExceeded) {
				t.Errorf("Get of %s returned %v, want DeadlineExceeded", what, err)
			}
			cancel()
		}
	}, authentication)
}
