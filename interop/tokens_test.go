package interop

import (
	"context"
	"errors"
	"flag"
	"testing"
	"time"

	"github.com/jagregory/locker/v2"
)

var tokens = flag.Duration("tokens", 10*time.Second, "for how long locks are used while tokens of authentication expire")

func TestAuthToken_ThatExpiresCostsNothing(t *testing.T) {
	simple := authentication // tokens live for 2 s after their last use
	simple.flags, simple.on = append([]string{"--auth-token-ttl=2"}, authentication.flags...), from35
	jwt := authentication
	jwt.name, jwt.jwt, jwt.on = "authentication by JWT", true, from35
	alone(t, func(t *testing.T, b bundle) {
		ctx := t.Context()
		holder, idle := lock(t, b.client(t), "held", "v"), lock(t, b.client(t, locker.WithTTL(time.Minute)), "idle", "")
		waiter := lockAsync(ctx, b.client(t), "held", "w")
		b.queued(t, "held", 2)
		watched, all := follow(t, b.client(t), "turn", false), follow(t, b.client(t), "turn", true)
		watched.sees(t, "turn", nil)
		cache, err := b.client(t).NewCache(ctx, "turn")
		if err != nil {
			t.Fatal(err)
		}
		c := b.client(t)
		// Between two turns the client makes no request, and its token expires.
		turns := time.NewTicker(3 * time.Second)
		defer turns.Stop()
		for began := time.Now(); time.Since(began) < *tokens; receive(t, turns.C) {
			l := lock(t, c, "turn", "1")
			watched.sees(t, "turn", l)
			all.sees(t, "turn", l)
			if err := l.SetValue(ctx, "2"); err != nil {
				t.Fatal(err)
			}
			watched.sees(t, "turn", l)
			all.sees(t, "turn", l)
			unlock(t, l)
			watched.sees(t, "turn", nil)
			all.sees(t, "turn", nil)
			eventually(t, "the cache is up to date", func() bool { return len(cache.List()) == 0 && cache.Revision() >= l.Token() })
		}
		if holder.Err() != nil || idle.Err() != nil || len(waiter) != 0 {
			t.Fatalf("%v, %v, %d waiters served", holder.Err(), idle.Err(), len(waiter))
		}
		unlock(t, idle)
		unlock(t, holder)
		unlock(t, served(t, waiter))
	}, simple, jwt)
}

func TestAuthToken_ThatIsVoidIsReplacedFrom35On(t *testing.T) {
	alone(t, func(t *testing.T, b bundle) {
		etcd := connect(t, b.config(service))
		c := b.over(t, etcd, locker.WithTTL(brief))
		l := lock(t, c, "a", "")
		// That makes all tokens of the user void, though the password remains.
		if _, err := b.etcd.UserChangePassword(within(t), service, service); err != nil {
			t.Fatal(err)
		}
		if !is34(b.release) {
			if holder, err := c.Get(within(t), "a"); err != nil || holder.Token != l.Token() {
				t.Errorf("%+v, %v", holder, err)
			}
			return
		}
		for what, get := range map[string]func(context.Context) error{
			"etcd's client": func(ctx context.Context) error { _, err := etcd.Get(ctx, b.prefix); return err },
			"Locker":        func(ctx context.Context) error { _, err := c.Get(ctx, "a"); return err },
		} {
			ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
			if err := get(ctx); !errors.Is(err, context.DeadlineExceeded) {
				t.Errorf("%s: %v", what, err)
			}
			cancel()
		}
	}, authentication)
}
