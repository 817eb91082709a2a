package main

import (
	"bytes"
	"context"
	"errors"
	"net/http"
	"net/http/httptest"
	"regexp"
	"sync/atomic"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/goleak"

	"github.com/jagregory/locker/v2"
	"github.com/jagregory/locker/v2/embedtest"
)

func TestMain(m *testing.M) {
	ttl = 6 * time.Second
	goleak.VerifyTestMain(m)
}

// testTimeout bounds every wait of a test.
const testTimeout = time.Minute

func testContext(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), testTimeout)
	t.Cleanup(cancel)
	return ctx
}

func TestRun_TheBackendNeverSeesMoreCallsThanTheLimit(t *testing.T) {
	t.Parallel()
	var out bytes.Buffer
	if err := run(testContext(t), &out, nil); err != nil { // also if there were more
		t.Fatalf("%v, after\n%s", err, &out)
	}
	steps := regexp.MustCompile(`(?s)now 3 in flight.*(..)  disconnected.*(..)  has canceled its call.*3 calls are in flight again.*(..)  calls again.*at most 3 in flight at one time`)
	found := steps.FindStringSubmatch(out.String())
	if found == nil {
		t.Fatalf("the output lacks %v:\n%s", steps, &out)
	}
	if cut, canceled, again := found[1], found[2], found[3]; canceled != cut || again != cut {
		t.Errorf("%s was disconnected, %s has canceled, %s called again:\n%s", cut, canceled, again, &out)
	}
}

func newClient(t *testing.T, etcd *clientv3.Client, ttl time.Duration) *locker.Client {
	t.Helper()
	client, err := locker.New(etcd, locker.WithTTL(ttl))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := client.Close(); err != nil {
			t.Error(err)
		}
	})
	return client
}

func TestCall_IsCanceledWithItsContext(t *testing.T) {
	t.Parallel()
	ctx, cancel := context.WithCancel(testContext(t))
	server := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		cancel()
		<-r.Context().Done()
	}))
	defer server.Close() // waits for the handler
	request := httptest.NewRequest(http.MethodPost, server.URL, nil)
	request.RequestURI = ""
	client := newClient(t, embedtest.Start(t).Client(t), 10*testTimeout)
	if err := call(ctx, client, "worker", request); !errors.Is(err, context.Canceled) {
		t.Errorf("call returned %v", err)
	}
	if holders, err := client.List(testContext(t), ""); err != nil || len(holders) > 0 {
		t.Errorf("held after that: %v, %v", holders, err)
	}
}

func TestCall_ReportsThatTheBackendRefuses(t *testing.T) {
	t.Parallel()
	server := httptest.NewServer(http.NotFoundHandler())
	defer server.Close()
	request := httptest.NewRequest(http.MethodPost, server.URL, nil)
	request.RequestURI = ""
	if err := call(testContext(t), newClient(t, embedtest.Start(t).Client(t), ttl), "worker", request); err == nil || err.Error() != "backend: 404 Not Found" {
		t.Errorf("call returned %v", err)
	}
}

func TestCall_IsMadeOnceIfOnlyItsReleaseIsNotConfirmed(t *testing.T) {
	t.Parallel()
	network := embedtest.Start(t).Proxy(t)
	var calls atomic.Int32
	server := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {
		calls.Add(1)
		network.Cut()
	}))
	defer server.Close()
	client := newClient(t, network.Client(t), ttl)
	defer network.Heal() // so that the client can be closed
	request := httptest.NewRequest(http.MethodPost, server.URL, nil)
	request.RequestURI = ""
	if err := call(testContext(t), client, "worker", request); err != nil || calls.Load() != 1 {
		t.Errorf("call returned %v after %d calls", err, calls.Load())
	}
}
