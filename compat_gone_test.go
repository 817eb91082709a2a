package locker_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/jagregory/locker/v2"
	"github.com/jagregory/locker/v2/embedtest"
)

// How the calls of Compat end when etcd is gone, and with Close.

// cut returns a Compat that reaches etcd through a proxy.
func (b bundle) cut(t testing.TB, ttl time.Duration) (*locker.Compat, *embedtest.Proxy) {
	proxy := b.server.Proxy(t)
	return newCompat(t, newClient(t, proxy.Client(t), locker.WithTTL(ttl))), proxy
}

func TestCompatLockTellsFalseAndReturnsAnErrorWhenEtcdIsGoneForTheTTL(t *testing.T) {
	t.Parallel()
	for name, fault := range map[string]func(*embedtest.Proxy){
		"cut":     func(p *embedtest.Proxy) { p.Cut() },
		"frozen":  func(p *embedtest.Proxy) { p.Freeze() },
		"replies": func(p *embedtest.Proxy) { p.DropReplies() },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := setup(t)
			c, proxy := b.cut(t, brief)
			k := contend(c, "a", "v", 0)
			k.tells(t, true)
			silent := calling(func() error { return c.Lock("b", "v", nil, nil) })
			eventually(t, "both are locked", func() bool { return len(b.keys(t, "locker/b/")) == 1 })
			fault(proxy)
			k.tells(t, false)
			err := receive(t, k.result)
			want(t, err, locker.ErrLost)
			wantWrappedOnce(t, err)
			// It may not have been told of its hold before the fault: then it is the attempt that fails.
			if err := receive(t, silent); !errors.Is(err, locker.ErrLost) && !errors.Is(err, context.DeadlineExceeded) {
				t.Errorf("with nil for owned, Lock returned %v", err)
			}
			k.silent(t)
		})
	}
}

func TestCompatLockReturnsAnErrorWhenEtcdIsGoneWhileItWaits(t *testing.T) {
	t.Parallel()
	b := setup(t)
	present := lock(t, b.client(t), "a", "present")
	c, proxy := b.cut(t, brief)
	k := contend(c, "a", "v", 9)
	k.tells(t, false)
	b.queued(t, "a", 2)
	silent := calling(func() error { return c.Lock("a", "v", nil, nil) })
	behind := contend(c, "a", "v", 9)
	behind.tells(t, false)
	proxy.Cut()
	for _, result := range []<-chan error{k.result, behind.result, silent} {
		err := receive(t, result)
		if err == nil || errors.Is(err, locker.ErrClosed) {
			t.Errorf("%v, want an error of etcd", err)
		}
		wantWrappedOnce(t, err)
	}
	k.silent(t)
	behind.silent(t)
	unlock(t, present)
}

func TestCompatLockReturnsAnErrorWhenEtcdIsGoneWhileItWaitsBehindACallerOfItsClient(t *testing.T) {
	t.Parallel()
	b := setup(t)
	c, proxy := b.cut(t, brief)
	present := contend(c, "a", "present", 9)
	present.tells(t, true)
	behind := contend(c, "a", "v", 9)
	behind.tells(t, false)
	proxy.Cut()
	for _, k := range []call[bool]{present, behind} {
		if err := receive(t, k.result); err == nil {
			t.Error("no error")
		}
	}
	present.tells(t, false)
	behind.silent(t)
}

func TestCompatLockReturnsAnErrorWhenEtcdWasNeverThere(t *testing.T) {
	t.Parallel()
	server := embedtest.Start(t)
	server.Stop(t, 0)
	c := newCompat(t, newClient(t, server.Client(t), locker.WithTTL(brief)))
	k := contend(c, "a", "v", 9)
	err := c.Lock("b", "v", nil, nil)
	for _, err := range []error{err, receive(t, k.result)} {
		want(t, err, context.DeadlineExceeded)
		wantWrappedOnce(t, err)
	}
	k.silent(t)
}

func TestCompatLockReturnsItsErrorThoughNobodyReadsOwned(t *testing.T) {
	t.Parallel()
	b := setup(t)
	c, proxy := b.cut(t, brief)
	read, unread := contend(c, "a", "v", 0), contend(c, "b", "v", 0)
	read.tells(t, true)
	eventually(t, "both are locked", func() bool { return len(b.keys(t, "locker/b/")) == 1 })
	proxy.Cut()
	want(t, receive(t, read.result), locker.ErrLost)
	if err := receive(t, unread.result); err == nil { // which error depends on what it had been told by then
		t.Error("Lock returned nil")
	}
	read.silent(t)
	unread.silent(t)
}

func TestCompatLockContendsAgainAfterAnExpiryIfEtcdAnswers(t *testing.T) {
	t.Parallel()
	b := setup(t)
	var stopped atomic.Bool
	config := b.server.ClientConfig()
	config.DialOptions = append(config.DialOptions, grpc.WithChainStreamInterceptor(func(ctx context.Context, desc *grpc.StreamDesc, conn *grpc.ClientConn, method string, open grpc.Streamer, opts ...grpc.CallOption) (grpc.ClientStream, error) {
		if stopped.Load() && strings.HasSuffix(method, "/LeaseKeepAlive") {
			return nil, status.Error(codes.Unavailable, "as if the process were stopped")
		}
		return open(ctx, desc, conn, method, opts...)
	}))
	k := contend(newCompat(t, newClient(t, connect(t, config), locker.WithTTL(brief))), "a", "v", 9)
	stopped.Store(true)
	k.tells(t, true, false)
	stopped.Store(false)
	k.tells(t, true)
	k.ends(t)
}

func TestCompatLockWaitsForTheReaderOfFalseBeforeItReturnsItsError(t *testing.T) {
	t.Parallel()
	b := setup(t)
	c, proxy := b.cut(t, brief)
	k, other := contend(c, "a", "v", 0), contend(c, "b", "v", 9)
	k.tells(t, true)
	other.tells(t, true)
	proxy.Cut()
	want(t, receive(t, other.result), locker.ErrLost) // k's hold has ended too
	select {
	case err := <-k.result:
		t.Errorf("returned %v before it told", err)
	default:
	}
	k.tells(t, false)
	want(t, receive(t, k.result), locker.ErrLost)
}

func TestCompatLockSurvivesAnOutageShorterThanTheTTL(t *testing.T) {
	t.Parallel()
	b := setup(t)
	c, proxy := b.cut(t, unhurried)
	k := contend(c, "a", "v", 9)
	k.tells(t, true)
	proxy.Cut()
	outlast(t, b, brief)
	k.silent(t)
	proxy.Heal()
	eventually(t, "etcd answers", func() bool { v, err := c.Get("a"); return v == "v" && err == nil })
	k.ends(t)
}

func TestCompatLockQuitsWhileEtcdIsGone(t *testing.T) {
	t.Parallel()
	b := setup(t)
	c, proxy := b.cut(t, brief)
	held, waiting := contend(c, "a", "v", 9), contend(c, "a", "v", 9)
	if !receive(t, held.told) {
		held, waiting = waiting, held
	}
	proxy.Cut()
	began := contend(c, "b", "v", 9)
	began.ends(t)
	bySend(t, held.quit)
	bySend(t, waiting.quit)
	for _, k := range []call[bool]{held, waiting} {
		if err := receive(t, k.result); err != nil {
			t.Error(err)
		}
	}
}

// every returns a call in each state that a call can be in.
func every(t testing.TB, b bundle, c *locker.Compat) map[string]<-chan error {
	held, waiting, behind := contend(c, "a", "v", 0), contend(c, "b", "v", 0), contend(c, "b", "w", 0)
	unread, watching, unwatched := contend(c, "c", "v", 0), follow(c, "a", 0), follow(c, "a", 0)
	held.tells(t, true)
	waiting.tells(t, false)
	behind.tells(t, false)
	b.queued(t, "b", 2)
	b.queued(t, "c", 1)
	receive(t, watching.told)
	return map[string]<-chan error{
		"held": held.result, "waiting": waiting.result, "behind it": behind.result,
		"unread": unread.result, "watching": watching.result, "unwatched": unwatched.result,
	}
}

func TestCompatCloseEndsEveryCall(t *testing.T) {
	t.Parallel()
	for _, owner := range []bool{true, false} {
		b := setup(t)
		client, present := b.client(t), lock(t, b.client(t), "b", "present")
		c := client.Compat()
		if owner {
			c = locker.NewCompat(b.server.Client(t))
		}
		results := every(t, b, c)
		for range 2 {
			if err := c.Close(); err != nil {
				t.Error(err)
			}
		}
		_, err := c.Get("a")
		results["Get"] = calling(func() error { return err })
		results["Lock"] = calling(func() error { return c.Lock("a", "v", nil, nil) })
		results["Watch"] = calling(func() error { return c.Watch("a", nil, nil) })
		for name, result := range results {
			err := receive(t, result)
			if !errors.Is(err, locker.ErrClosed) {
				t.Errorf("%s: %v, want ErrClosed", name, err)
			}
			wantWrappedOnce(t, err)
		}
		for name, n := range map[string]int{"a": 0, "b": 1, "c": 0} {
			b.queued(t, name, n)
		}
		if n := b.leases(t); owner && n != 1 {
			t.Errorf("%d leases, want only the present holder's", n)
		}
		unlock(t, present)
		unlock(t, lock(t, client, "a", "v")) // the Client is its owner's to close
	}
}

func TestCompatCloseEndsACallThatIsAboutToContendAgain(t *testing.T) {
	t.Parallel()
	b := setup(t)
	for i := range 10 { // to meet it in its pause
		name := fmt.Sprint("a", i)
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c := b.compat(t, locker.WithTTL(brief))
			k := contend(c, name, "v", 0)
			k.tells(t, true)
			expire(t, b, get(t, b.client(t), name))
			k.tells(t, false)
			_ = c.Close()
			err := receive(t, k.result)
			want(t, err, locker.ErrClosed)
			wantWrappedOnce(t, err)
		})
	}
}

func TestCompatCallsEndWithTheirClient(t *testing.T) {
	t.Parallel()
	b := setup(t)
	lock(t, b.client(t), "b", "present")
	client := b.client(t, locker.WithTTL(brief))
	results := every(t, b, newCompat(t, client))
	if err := client.Close(); err != nil {
		t.Error(err)
	}
	for name, result := range results {
		if err := receive(t, result); !errors.Is(err, locker.ErrClosed) {
			t.Errorf("%s: %v, want ErrClosed", name, err)
		}
	}
}

func TestNewCompatWithoutAnEtcdClientReturnsErrInvalidFromEveryCall(t *testing.T) {
	t.Parallel()
	c := locker.NewCompat(nil)
	for name, call := range map[string]func() error{
		"Lock":  func() error { return c.Lock("a", "v", make(chan bool), nil) },
		"Watch": func() error { return c.Watch("a", make(chan string), nil) },
		"Get":   func() error { _, err := c.Get("a"); return err },
	} {
		err := recovered(call)
		if !errors.Is(err, locker.ErrInvalid) {
			t.Errorf("%s: %v, want ErrInvalid", name, err)
		}
		wantWrappedOnce(t, err)
	}
	if err := recovered(c.Close); err != nil {
		t.Error(err)
	}
}
