package embedtest_test

import (
	"context"
	"errors"
	"testing"
	"time"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/jagregory/locker/v2/embedtest"
)

func TestRestartKeepsDataAndAddresses(t *testing.T) {
	t.Parallel()
	for name, opts := range map[string][]embedtest.Option{
		"one member":    nil,
		"three members": {embedtest.WithMembers(3)},
		"TLS and auth":  {embedtest.WithTLS(), embedtest.WithAuth()},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			server := embedtest.Start(t, opts...)
			client := server.Client(t)
			put(t, client, "key", "value")
			endpoints := server.Endpoints()
			for i := range endpoints {
				server.Stop(t, i)
				server.Stop(t, i) // already stopped
			}
			wantTimeout(t, client, "other", "value")
			for i := range endpoints {
				server.Restart(t, i)
			}
			wantValue(t, client, "key", "value")
			for i, endpoint := range server.Endpoints() {
				if endpoint != endpoints[i] {
					t.Errorf("member %d moved from %s to %s", i, endpoints[i], endpoint)
				}
			}
			server.Restart(t, 0) // running
			wantValue(t, client, "key", "value")
		})
	}
}

func TestQuorumSurvivesOneStoppedMember(t *testing.T) {
	t.Parallel()
	server := embedtest.Start(t, embedtest.WithMembers(3))
	client := server.Client(t)
	old := server.Leader(t)
	server.Stop(t, old)
	if leader := server.Leader(t); leader == old {
		t.Errorf("stopped member %d is still the leader", leader)
	}
	put(t, client, "key", "value")
	server.Restart(t, old)
	server.Stop(t, (old+1)%3)
	wantValue(t, client, "key", "value")
}

func TestMoveLeaderChangesTheLeader(t *testing.T) {
	t.Parallel()
	server := embedtest.Start(t, embedtest.WithMembers(3))
	client := server.Client(t)
	for range 3 {
		old := server.Leader(t)
		server.MoveLeader(t)
		if leader := server.Leader(t); leader == old {
			t.Errorf("member %d is still the leader", leader)
		}
		put(t, client, "key", "value")
	}
}

func TestIsolatedMemberLearnsNothingUntilItRejoins(t *testing.T) {
	t.Parallel()
	server := embedtest.Start(t, embedtest.WithMembers(3))
	old := server.Leader(t)
	server.Isolate(t, old)
	leader := server.Leader(t)
	if leader == old {
		t.Fatalf("isolated member %d is still the leader", old)
	}
	isolated := connectTo(t, server, old)
	put(t, connectTo(t, server, leader), "key", "value")
	wantTimeout(t, isolated, "other", "value")
	serializable, err := isolated.Get(t.Context(), "key", clientv3.WithSerializable())
	if err != nil {
		t.Fatal(err)
	}
	if len(serializable.Kvs) != 0 {
		t.Error("the isolated member has received the write")
	}
	server.Rejoin(t, old)
	wantValue(t, isolated, "key", "value")
}

func TestIsolationOutlastsARestart(t *testing.T) {
	t.Parallel()
	server := embedtest.Start(t, embedtest.WithMembers(3))
	server.Isolate(t, 1)
	server.Restart(t, 1)
	server.Leader(t)
	put(t, connectTo(t, server, 0), "key", "value")
	server.Rejoin(t, 1)
	wantValue(t, connectTo(t, server, 1), "key", "value")
}

func TestExpiredLeaseTakesItsKeysAlong(t *testing.T) {
	t.Parallel()
	for name, opts := range map[string][]embedtest.Option{
		"one member":     nil,
		"three members":  {embedtest.WithMembers(3)},
		"authentication": {embedtest.WithAuth()},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			server := embedtest.Start(t, opts...)
			client := server.Client(t)
			lease, err := client.Grant(t.Context(), 3600)
			if err != nil {
				t.Fatal(err)
			}
			if _, err := client.Put(t.Context(), "key", "value", clientv3.WithLease(lease.ID)); err != nil {
				t.Fatal(err)
			}
			server.ExpireLease(t, lease.ID)
			if got := get(t, client, "key"); got != nil {
				t.Errorf("key is %q", got)
			}
			if _, err := client.KeepAliveOnce(t.Context(), lease.ID); !errors.Is(err, rpctypes.ErrLeaseNotFound) {
				t.Errorf("renewal: %v", err)
			}
		})
	}
}

func TestCompactDropsOldRevisions(t *testing.T) {
	t.Parallel()
	for name, opts := range map[string][]embedtest.Option{
		"one member":     nil,
		"three members":  {embedtest.WithMembers(3)},
		"authentication": {embedtest.WithAuth()},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			server := embedtest.Start(t, opts...)
			server.Compact(t) // nothing has been written
			client := server.Client(t)
			first, err := client.Put(t.Context(), "key", "old")
			if err != nil {
				t.Fatal(err)
			}
			put(t, client, "key", "new")
			server.Compact(t)
			server.Compact(t) // already compacted
			_, err = client.Get(t.Context(), "key", clientv3.WithRev(first.Header.Revision))
			if !errors.Is(err, rpctypes.ErrCompacted) {
				t.Errorf("read of an old revision: %v", err)
			}
			wantValue(t, client, "key", "new")
		})
	}
}

func TestInterceptLosesTheReplyToARequestThatTookEffect(t *testing.T) {
	t.Parallel()
	server := embedtest.Start(t)
	lost := status.Error(codes.Unavailable, "reply lost")
	var puts int
	client := server.ClientWith(t, func(ctx context.Context, method string, req any, call func() error) error {
		err := call()
		if method == "/etcdserverpb.KV/Put" {
			puts++
			return lost
		}
		return err
	})
	if _, err := client.Put(t.Context(), "key", "value"); status.Code(err) != codes.Unavailable {
		t.Errorf("put: %v", err)
	}
	if puts != 1 {
		t.Errorf("saw %d puts", puts)
	}
	wantValue(t, client, "key", "value")
}

func TestInterceptSeesEachAttempt(t *testing.T) {
	t.Parallel()
	server := embedtest.Start(t)
	var attempts int
	client := server.ClientWith(t, func(ctx context.Context, method string, req any, call func() error) error {
		if attempts++; attempts < 3 {
			return status.Error(codes.Unavailable, "request lost")
		}
		return call()
	})
	if _, err := client.Get(t.Context(), "key"); err != nil {
		t.Error(err)
	}
	if attempts != 3 {
		t.Errorf("saw %d attempts", attempts)
	}
}

func TestInterceptHoldsARequest(t *testing.T) {
	t.Parallel()
	server := embedtest.Start(t)
	arrived, release := make(chan string), make(chan struct{})
	client := server.ClientWith(t, func(ctx context.Context, method string, req any, call func() error) error {
		arrived <- method
		<-release
		return call()
	})
	done := make(chan error, 1)
	go func() {
		_, err := client.Grant(context.Background(), 60)
		done <- err
	}()
	if method := <-arrived; method != "/etcdserverpb.Lease/LeaseGrant" {
		t.Errorf("method %s", method)
	}
	leases, err := server.Client(t).Leases(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if len(leases.Leases) != 0 {
		t.Error("the lease was granted before the request was released")
	}
	close(release)
	select {
	case err := <-done:
		if err != nil {
			t.Error(err)
		}
	case <-time.After(limit):
		t.Error("the grant did not return after its release")
	}
}

func connectTo(t *testing.T, server *embedtest.Server, member int) *clientv3.Client {
	t.Helper()
	config := server.ClientConfig()
	config.Endpoints = server.Endpoints()[member : member+1]
	return connect(t, config)
}
