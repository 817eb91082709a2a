package interop

import (
	"context"
	"errors"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"

	"github.com/jagregory/locker/v2"
	"github.com/jagregory/locker/v2/internal/etcdproc"
)

// attempts is how many times a call is made until the connection has failed meanwhile: on a
// busy machine, an attempt to connect may take longer than a call.
const attempts = 10

// wantCause makes calls to an unreachable etcd. Each must return soon after its context
// has ended, with an error that matches context.DeadlineExceeded and contains cause.
func wantCause(t *testing.T, config clientv3.Config, cause string) {
	t.Helper()
	c, err := locker.New(connect(t, config), locker.WithTTL(shortTTL)) // it bounds Close
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	var calls sync.WaitGroup
	defer calls.Wait()
	for what, call := range map[string]func(context.Context) error{
		"Lock":       func(ctx context.Context) error { _, err := c.Lock(ctx, "a", ""); return err },
		"TryLock":    func(ctx context.Context) error { _, err := c.TryLock(ctx, "b", ""); return err },
		"Get":        func(ctx context.Context) error { _, err := c.Get(ctx, "a"); return err },
		"List":       func(ctx context.Context) error { _, err := c.List(ctx, ""); return err },
		"NewSession": func(ctx context.Context) error { _, err := c.NewSession(ctx); return err },
	} {
		calls.Go(func() {
			var err error
			for range attempts {
				ctx, cancel := context.WithTimeout(t.Context(), time.Second)
				began := time.Now()
				err = call(ctx)
				cancel()
				if took := time.Since(began); took > 15*time.Second {
					t.Errorf("%s took %v", what, took)
				}
				if !errors.Is(err, context.DeadlineExceeded) {
					break
				}
				if strings.Contains(err.Error(), cause) {
					return
				}
			}
			t.Errorf("%s returned %v, want DeadlineExceeded with the cause %q", what, err, cause)
		})
	}
}

func TestErrors_SayThatTheAuthorityIsUnknown(t *testing.T) {
	everywhereWithTLS(t, func(t *testing.T, c *cluster) {
		authority, err := etcdproc.NewAuthority(t.TempDir())
		if err != nil {
			t.Fatal(err)
		}
		files, err := authority.Issue("client", time.Now().Add(time.Hour))
		if err != nil {
			t.Fatal(err)
		}
		config := c.config(service)
		if config.TLS, err = files.Config(); err != nil {
			t.Fatal(err)
		}
		wantCause(t, config, "certificate signed by unknown authority")
	}, time.Hour)
}

func TestErrors_SayThatTheCertificateHasExpired(t *testing.T) {
	everywhereWithTLS(t, func(t *testing.T, c *cluster) {
		wantCause(t, c.config(service), "certificate has expired")
	}, -time.Hour)
}

// everywhereWithTLS runs a test on each release with TLS, each time on a cluster of its
// own.
func everywhereWithTLS(t *testing.T, test func(t *testing.T, c *cluster), validity time.Duration) {
	t.Parallel()
	s := withTLS
	s.validity = validity
	eachSetup(t, []setup{s}, func(t *testing.T, r release, s setup) {
		c, err := start(testContext(t), r, s)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(c.close)
		test(t, c)
	})
}

func TestErrors_SayThatNothingListens(t *testing.T) {
	t.Parallel()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	wantCause(t, clientv3.Config{Endpoints: []string{l.Addr().String()}, Logger: zap.NewNop()}, "connection refused")
}
