package embedtest_test

import (
	"bytes"
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/jagregory/locker/v2/embedtest"
)

func TestCutEndsRequestsUntilHeal(t *testing.T) {
	t.Parallel()
	_, proxy, client, _ := setup(t)
	put(t, client, "key", "value")
	proxy.Cut()
	wantTimeout(t, client, "key", "cut")
	wantTimeout(t, proxy.Client(t), "key", "cut")
	proxy.Heal()
	wantValue(t, client, "key", "value")
}

func TestCutLeavesNoRequestWaiting(t *testing.T) {
	t.Parallel()
	_, proxy, client, _ := setup(t)
	put(t, client, "key", "value")
	proxy.Freeze()
	failed := make(chan error, 1)
	go func() {
		ctx, cancel := context.WithTimeout(context.Background(), limit)
		defer cancel()
		_, err := client.Put(ctx, "key", "lost")
		failed <- err
	}()
	proxy.Cut()
	proxy.Heal()
	// Whether it is sent before the cut or after it is healed, the put ends before its
	// timeout.
	select {
	case err := <-failed:
		if errors.Is(err, context.DeadlineExceeded) {
			t.Error(err)
		}
	case <-time.After(limit):
		t.Error("the put did not return")
	}
}

func TestResetBreaksConnectionsAndLetsNewOnesPass(t *testing.T) {
	t.Parallel()
	_, proxy, client, _ := setup(t)
	for range 5 {
		put(t, client, "key", "value")
		proxy.Reset()
	}
	wantValue(t, client, "key", "value")
}

func TestFreezeHoldsBytesUntilThaw(t *testing.T) {
	t.Parallel()
	_, proxy, client, direct := setup(t)
	put(t, client, "key", "value")
	proxy.Freeze()
	wantTimeout(t, client, "frozen", "value")
	if got := get(t, direct, "frozen"); got != nil {
		t.Error("the request passed")
	}
	done := make(chan error, 1)
	go func() {
		ctx, cancel := context.WithTimeout(context.Background(), limit)
		defer cancel()
		_, err := client.Put(ctx, "key", "thawed")
		done <- err
	}()
	proxy.Thaw()
	if err := <-done; err != nil {
		t.Error(err)
	}
	wantValue(t, direct, "key", "thawed")
}

func TestConnectionOpenedWhileFrozenWorksAfterThaw(t *testing.T) {
	t.Parallel()
	_, proxy, client, _ := setup(t)
	proxy.Freeze()
	wantTimeout(t, client, "key", "frozen")
	proxy.Thaw()
	put(t, client, "key", "value")
}

func TestDroppedReplyHidesARequestThatTookEffect(t *testing.T) {
	t.Parallel()
	_, proxy, client, direct := setup(t)
	put(t, client, "key", "value")
	proxy.DropReplies()
	wantTimeout(t, client, "key", "dropped")
	wantValue(t, direct, "key", "dropped")
	proxy.Heal()
	put(t, client, "key", "healed")
	wantValue(t, direct, "key", "healed")
}

func TestDelayIsAddedInEachDirection(t *testing.T) {
	t.Parallel()
	const delay = 50 * time.Millisecond
	_, proxy, client, _ := setup(t)
	put(t, client, "key", "value")
	proxy.Delay(delay)
	start := time.Now()
	put(t, client, "key", "slow")
	if took := time.Since(start); took < 2*delay {
		t.Errorf("round trip took %v", took)
	}
	// The handshake of a new connection succeeds despite the delay.
	wantValue(t, proxy.Client(t), "key", "slow")
	proxy.Delay(0)
	wantValue(t, client, "key", "slow")
}

func TestDelayKeepsOrderAndThroughput(t *testing.T) {
	t.Parallel()
	const delay, values = 500 * time.Millisecond, 40
	_, proxy, client, direct := setup(t)
	put(t, client, "key", "value")
	watch := client.Watch(t.Context(), "key", clientv3.WithCreatedNotify())
	<-watch
	proxy.Delay(delay)
	start := time.Now()
	for i := range values {
		put(t, direct, "key", string(bytes.Repeat([]byte{byte('A' + i%26)}, 1000)))
	}
	var versions int64 = 1
	for versions < 1+values {
		for _, event := range (<-watch).Events {
			if versions++; event.Kv.Version != versions {
				t.Fatalf("got version %d, want %d", event.Kv.Version, versions)
			}
		}
	}
	// If the delays added up, this would take 20 s.
	if took := time.Since(start); took > values*delay {
		t.Errorf("%d events took %v", values, took)
	}
}

func TestDelayTurnedOffReleasesWhatWaits(t *testing.T) {
	t.Parallel()
	_, proxy, client, _ := setup(t)
	put(t, client, "key", "value")
	proxy.Delay(time.Hour)
	wantTimeout(t, client, "key", "late")
	proxy.Delay(0)
	put(t, client, "key", "value")
}

func TestFaultsAffectOnlyTheGivenMembers(t *testing.T) {
	t.Parallel()
	server := embedtest.Start(t, embedtest.WithMembers(3))
	proxy := server.Proxy(t)
	var clients []*clientv3.Client
	for _, endpoint := range proxy.Endpoints() {
		config := proxy.ClientConfig()
		config.Endpoints = []string{endpoint}
		clients = append(clients, connect(t, config))
		put(t, clients[len(clients)-1], "key", "value")
	}
	proxy.Freeze(0)
	proxy.Cut(1)
	wantTimeout(t, clients[0], "key", "lost")
	wantTimeout(t, clients[1], "key", "lost")
	put(t, clients[2], "key", "passed")
	// A client of all members finds the remaining one.
	wantValue(t, proxy.Client(t), "key", "passed")
	proxy.Heal()
	for _, client := range clients {
		put(t, client, "key", "value")
	}
}

func TestProxyReachesARestartedMember(t *testing.T) {
	t.Parallel()
	server, _, client, _ := setup(t)
	put(t, client, "key", "value")
	server.Stop(t, 0)
	wantTimeout(t, client, "key", "stopped")
	server.Restart(t, 0)
	wantValue(t, client, "key", "value")
}

func TestProxyClosesDuringEveryFault(t *testing.T) {
	t.Parallel()
	for name, fault := range map[string]func(*embedtest.Proxy){
		"none":         func(*embedtest.Proxy) {},
		"cut":          func(p *embedtest.Proxy) { p.Cut() },
		"freeze":       func(p *embedtest.Proxy) { p.Freeze() },
		"drop replies": func(p *embedtest.Proxy) { p.DropReplies() },
		"delay":        func(p *embedtest.Proxy) { p.Delay(time.Hour) },
		"throttle":     func(p *embedtest.Proxy) { p.Throttle(1) },
		"connections":  func(p *embedtest.Proxy) { p.FreezeConnections() },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			_, proxy, client, _ := setup(t)
			put(t, client, "key", "value")
			client.Watch(t.Context(), "key")
			fault(proxy)
			for range 2 {
				if err := proxy.Close(); err != nil {
					t.Error(err)
				}
			}
		})
	}
}

func TestProxyWorksWithTLSAndAuth(t *testing.T) {
	t.Parallel()
	_, proxy, client, _ := setup(t, embedtest.WithTLS(), embedtest.WithAuth())
	put(t, client, "key", "value")
	proxy.Reset()
	wantValue(t, client, "key", "value")
}

// setup returns a server, a proxy, a client that uses the proxy, and one that does not.
func setup(t *testing.T, opts ...embedtest.Option) (server *embedtest.Server, proxy *embedtest.Proxy, through, direct *clientv3.Client) {
	t.Helper()
	server = embedtest.Start(t, opts...)
	proxy = server.Proxy(t)
	return server, proxy, proxy.Client(t), server.Client(t)
}

func TestNewProxyNeedsOnlyTheAddressesOfMembers(t *testing.T) {
	t.Parallel()
	server := embedtest.Start(t)
	for _, endpoint := range []string{server.Endpoints()[0], strings.TrimPrefix(server.Endpoints()[0], "http://")} {
		proxy, err := embedtest.NewProxy(endpoint)
		if err != nil {
			t.Fatal(err)
		}
		client := proxy.Client(t)
		put(t, client, "key", endpoint)
		wantValue(t, client, "key", endpoint)
		proxy.Cut()
		wantTimeout(t, client, "key", "cut")
		proxy.Heal()
		put(t, client, "key", "healed")
		if err := proxy.Close(); err != nil {
			t.Error(err)
		}
	}
}

func TestNewProxyRefusesInvalidAddresses(t *testing.T) {
	t.Parallel()
	for _, endpoint := range []string{"", "127.0.0.1", "http://127.0.0.1", "unix://socket", "http://"} {
		if proxy, err := embedtest.NewProxy("127.0.0.1:1", endpoint); err == nil {
			proxy.Close()
			t.Errorf("NewProxy accepted %q", endpoint)
		}
	}
}
