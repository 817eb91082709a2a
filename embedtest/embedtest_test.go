package embedtest_test

import (
	"context"
	"errors"
	"os"
	"strings"
	"testing"
	"time"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/server/v3/embed"

	"github.com/jagregory/locker/v2/embedtest"
)

// limit bounds requests that must succeed, and short bounds requests that must time out.
const (
	limit = 30 * time.Second
	short = 200 * time.Millisecond
)

func TestStartIsReadyAndCloseRemovesEverything(t *testing.T) {
	t.Parallel()
	var dirs []string
	for _, test := range []struct {
		name string
		opts []embedtest.Option
	}{
		{"one member", nil},
		{"three members", []embedtest.Option{embedtest.WithMembers(3)}},
		{"TLS", []embedtest.Option{embedtest.WithTLS()}},
		{"authentication", []embedtest.Option{embedtest.WithAuth()}},
		{"all", []embedtest.Option{embedtest.WithMembers(3), embedtest.WithTLS(), embedtest.WithAuth()}},
	} {
		t.Run(test.name, func(t *testing.T) {
			dir := embedtest.WithConfig(func(c *embed.Config) { dirs = append(dirs, c.Dir) })
			server := embedtest.Start(t, append(test.opts, dir)...)
			client := server.Client(t)
			put(t, client, "key", "value")
			wantValue(t, client, "key", "value")
			wantValue(t, server.Proxy(t).Client(t), "key", "value")
		})
	}
	for _, dir := range dirs {
		if _, err := os.Stat(dir); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("data directory left behind: %v", err)
		}
	}
}

func TestManyServersStartAtOnceAndShareNothing(t *testing.T) {
	t.Parallel()
	for range 8 {
		t.Run("", func(t *testing.T) {
			t.Parallel()
			client := embedtest.Start(t).Client(t)
			if got := get(t, client, "key"); got != nil {
				t.Errorf("key of another server: %q", got)
			}
			put(t, client, "key", "value")
		})
	}
}

func TestNewNeedsNoTest(t *testing.T) {
	t.Parallel()
	server, err := embedtest.New()
	if err != nil {
		t.Fatal(err)
	}
	client, err := clientv3.New(server.ClientConfig())
	if err != nil {
		t.Fatal(err)
	}
	put(t, client, "key", "value")
	if err := client.Close(); err != nil {
		t.Error(err)
	}
	if err := server.Close(); err != nil {
		t.Error(err)
	}
}

func TestCloseDoesNotWaitForWatches(t *testing.T) {
	t.Parallel()
	for name, opts := range map[string][]embedtest.Option{
		"plain": {embedtest.WithMembers(3)},
		"TLS":   {embedtest.WithMembers(3), embedtest.WithTLS()},
	} {
		t.Run(name, func(t *testing.T) {
			server, err := embedtest.New(opts...)
			if err != nil {
				t.Fatal(err)
			}
			client := server.Client(t)
			<-client.Watch(t.Context(), "key", clientv3.WithCreatedNotify())
			start := time.Now()
			if err := server.Close(); err != nil {
				t.Error(err)
			}
			// A graceful stop would wait for open requests, over 5 s.
			if took := time.Since(start); took > 4*time.Second {
				t.Errorf("Close took %v", took)
			}
		})
	}
}

func TestNewRefusesBadOptions(t *testing.T) {
	t.Parallel()
	for name, opt := range map[string]embedtest.Option{
		"no members":   embedtest.WithMembers(0),
		"two members":  embedtest.WithMembers(2),
		"five members": embedtest.WithMembers(5),
		"no function":  embedtest.WithConfig(nil),
	} {
		if server, err := embedtest.New(opt); err == nil {
			t.Errorf("%s: no error", name)
			server.Close()
		}
	}
}

func TestNewReportsAClusterThatCannotStart(t *testing.T) {
	t.Parallel()
	broken := embedtest.WithConfig(func(c *embed.Config) { c.ElectionMs = c.TickMs })
	server, err := embedtest.New(broken)
	if err == nil {
		server.Close()
		t.Fatal("no error")
	}
	if !strings.Contains(err.Error(), "election") {
		t.Errorf("the error does not give the reason: %v", err)
	}
}

func TestConfigIsAppliedToEveryMember(t *testing.T) {
	t.Parallel()
	server := embedtest.Start(t, embedtest.WithMembers(3),
		embedtest.WithConfig(func(c *embed.Config) { c.MaxTxnOps = 2 }))
	for _, endpoint := range server.Endpoints() {
		config := server.ClientConfig()
		config.Endpoints = []string{endpoint}
		client := connect(t, config)
		_, err := client.Txn(t.Context()).Then(
			clientv3.OpGet("a"), clientv3.OpGet("b"), clientv3.OpGet("c")).Commit()
		if !errors.Is(err, rpctypes.ErrTooManyOps) {
			t.Errorf("%s: %v", endpoint, err)
		}
	}
}

func TestMembersAdvertiseTheAddressesTheyListenOn(t *testing.T) {
	t.Parallel()
	for _, members := range []int{1, 3} {
		server := embedtest.Start(t, embedtest.WithMembers(members))
		client := server.Client(t)
		ctx, cancel := context.WithTimeout(t.Context(), limit)
		defer cancel()
		if err := client.Sync(ctx); err != nil {
			t.Fatal(err)
		}
		want := make(map[string]bool)
		for _, endpoint := range server.Endpoints() {
			want[endpoint] = true
		}
		got := client.Endpoints()
		if len(got) != members || len(want) != members {
			t.Errorf("endpoints %v, want %v", got, server.Endpoints())
		}
		for _, endpoint := range got {
			if !want[endpoint] {
				t.Errorf("unknown endpoint %s, want %v", endpoint, server.Endpoints())
			}
		}
	}
}

func TestTLSServerRefusesClientsThatDoNotTrustIt(t *testing.T) {
	t.Parallel()
	server := embedtest.Start(t, embedtest.WithTLS())
	config := server.ClientConfig()
	config.TLS.RootCAs = nil
	ctx, cancel := context.WithTimeout(t.Context(), short)
	defer cancel()
	if _, err := connect(t, config).Get(ctx, "key"); err == nil {
		t.Error("the request succeeded")
	}
	if server.TLSConfig().RootCAs == nil {
		t.Error("TLSConfig is shared between callers")
	}
	if embedtest.Start(t).TLSConfig() != nil {
		t.Error("TLSConfig is not nil without TLS")
	}
}

func TestAuthServerRefusesClientsWithoutCredentials(t *testing.T) {
	t.Parallel()
	server := embedtest.Start(t, embedtest.WithAuth())
	config := server.ClientConfig()
	config.Username, config.Password = "", ""
	if _, err := connect(t, config).Get(t.Context(), "key"); !errors.Is(err, rpctypes.ErrUserEmpty) {
		t.Errorf("without user: %v", err)
	}
	config.Username, config.Password = "root", "wrong"
	if _, err := clientv3.New(config); !errors.Is(err, rpctypes.ErrAuthFailed) {
		t.Errorf("with a wrong password: %v", err)
	}
}

func TestShortestLeaseIsASecond(t *testing.T) {
	t.Parallel()
	for _, members := range []int{1, 3} {
		client := embedtest.Start(t, embedtest.WithMembers(members)).Client(t)
		lease, err := client.Grant(t.Context(), 1)
		if err != nil {
			t.Fatal(err)
		}
		if lease.TTL != 1 {
			t.Errorf("granted %d s with %d members", lease.TTL, members)
		}
	}
}

func connect(t *testing.T, config clientv3.Config) *clientv3.Client {
	t.Helper()
	client, err := clientv3.New(config)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { client.Close() })
	return client
}

// put and get retry until limit, so they also succeed across changes of the leader.
func put(t *testing.T, client *clientv3.Client, key, value string) {
	t.Helper()
	retry(t, func(ctx context.Context) error {
		_, err := client.Put(ctx, key, value)
		return err
	})
}

func get(t *testing.T, client *clientv3.Client, key string) (value []byte) {
	t.Helper()
	retry(t, func(ctx context.Context) error {
		resp, err := client.Get(ctx, key)
		if err == nil && len(resp.Kvs) > 0 {
			value = resp.Kvs[0].Value
		}
		return err
	})
	return value
}

func wantValue(t *testing.T, client *clientv3.Client, key, value string) {
	t.Helper()
	if got := get(t, client, key); string(got) != value {
		t.Errorf("%s is %q, want %q", key, got, value)
	}
}

// retry gives each attempt its own timeout, so that one that is sent to a member that
// does not answer does not use up all the time.
func retry(t *testing.T, f func(context.Context) error) {
	t.Helper()
	all, cancel := context.WithTimeout(t.Context(), limit)
	defer cancel()
	for {
		ctx, cancel := context.WithTimeout(all, 2*time.Second)
		err := f(ctx)
		cancel()
		if err == nil {
			return
		}
		if all.Err() != nil {
			t.Fatal(err)
		}
	}
}

// wantTimeout checks that a request is not answered.
func wantTimeout(t *testing.T, client *clientv3.Client, key, value string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), short)
	defer cancel()
	if _, err := client.Put(ctx, key, value); err == nil {
		t.Errorf("put of %s was answered", key)
	}
}
