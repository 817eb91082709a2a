package systest

import (
	"context"
	"fmt"
	"os"
	"slices"
	"sync/atomic"
	"testing"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/server/v3/embed"
	"google.golang.org/grpc"

	"github.com/jagregory/locker/v2"
	"github.com/jagregory/locker/v2/embedtest"
	"github.com/jagregory/locker/v2/internal/locktest"
)

// emptied returns an etcd, and a function that restarts it empty, so that its revisions
// begin again.
func emptied(t *testing.T) (b locktest.Bundle, empty func()) {
	var dir string
	b = locktest.Setup(t, embedtest.WithConfig(func(c *embed.Config) { dir = c.Dir }))
	return b, func() {
		t.Helper()
		b.Server.Stop(t, 0)
		if err := os.RemoveAll(dir); err != nil {
			t.Fatal(err)
		}
		b.Server.Restart(t, 0)
		locktest.Eventually(t, "the connection is back", func() bool {
			_, err := b.Etcd.Get(locktest.Within(t), "any")
			return err == nil
		})
	}
}

func TestWatch_ShowsWhatIsSoWhenEtcdComesBackEmptyWithTheSameRevisions(t *testing.T) {
	t.Parallel()
	const key = "locker/a/1"
	type entry struct {
		value string
		lease clientv3.LeaseID
	}
	for name, test := range map[string]struct {
		before, after entry
		more          int // revisions before the restart, after that of the entry
		shift         int // revisions after the restart, before that of the entry
	}{
		"another value":           {before: entry{value: "old"}, after: entry{value: "new"}},
		"another lease":           {before: entry{"same", 71}, after: entry{"same", 72}},
		"another token":           {before: entry{value: "same"}, after: entry{value: "same"}, more: 5, shift: 3},
		"smaller revisions":       {before: entry{value: "old"}, after: entry{value: "new"}, more: 20},
		"revisions that are past": {before: entry{value: "old"}, after: entry{value: "new"}, shift: 20},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b, empty := emptied(t)
			holds := func(e entry) locker.Holder {
				t.Helper()
				if e.lease != 0 {
					leases := pb.NewLeaseClient(b.Etcd.ActiveConnection())
					if _, err := leases.LeaseGrant(locktest.Within(t), &pb.LeaseGrantRequest{ID: int64(e.lease), TTL: 600}, grpc.WaitForReady(true)); err != nil {
						t.Fatal(err)
					}
				}
				resp, err := b.Etcd.Put(locktest.Within(t), key, e.value, clientv3.WithLease(e.lease))
				if err != nil {
					t.Fatal(err)
				}
				return locker.Holder{Name: "a", Value: e.value, Token: resp.Header.Revision, Lease: e.lease, Limit: 1}
			}
			before := holds(test.before)
			for i := range test.more {
				locktest.PutKey(t, b.Etcd, "elsewhere", fmt.Sprint(i))
			}
			proxy := b.Server.Proxy(t)
			c := locktest.NewClient(t, proxy.Client(t))
			k := locktest.NewCache(t, c, "")
			one, all := locktest.Read(t, c.Watch(locktest.Within(t), "a")), locktest.Read(t, c.WatchPrefix(locktest.Within(t), ""))
			sees := func(want locker.Holder) {
				t.Helper()
				for what, next := range map[string]func() (locker.State, error, bool){"Watch": one.Next, "WatchPrefix": all.Next} {
					if state, err, _ := next(); err != nil || !state.Held || state.Holder != want {
						t.Errorf("%s yields %+v, %v, want %+v", what, state, err, want)
					}
				}
				locktest.Eventually(t, "the cache has it", func() bool { got, _ := k.Get("a"); return got == want })
			}
			sees(before)

			proxy.Cut()
			empty()
			for i := range test.shift {
				locktest.PutKey(t, b.Etcd, "elsewhere", fmt.Sprint(i))
			}
			after := holds(test.after)
			proxy.Heal()
			sees(after)
			now, err := b.Etcd.Get(locktest.Within(t), key)
			if err != nil {
				t.Fatal(err)
			}
			if got := k.Revision(); got != now.Header.Revision {
				t.Errorf("Revision = %d, etcd is at %d", got, now.Header.Revision)
			}
			refreshed(t, "the copy is known to be current", k)
			after.Value, after.Lease = "newer", 0 // at a revision that the former etcd has had, too
			locktest.PutKey(t, b.Etcd, key, after.Value)
			sees(after)
		})
	}
}

func TestCache_BeginsAnewWhenEtcdIsAtAnEarlierRevisionThanBefore(t *testing.T) {
	t.Parallel()
	b := locktest.Setup(t)
	var back atomic.Bool // reads show an earlier revision, though no connection has broken
	config := b.Server.ClientConfig()
	config.DialOptions = append(config.DialOptions, grpc.WithChainUnaryInterceptor(
		func(ctx context.Context, method string, req, reply any, conn *grpc.ClientConn, invoke grpc.UnaryInvoker, opts ...grpc.CallOption) error {
			err := invoke(ctx, method, req, reply, conn, opts...)
			if resp, ok := reply.(*pb.RangeResponse); ok && err == nil && back.Load() {
				resp.Header.Revision = 1
			}
			return err
		}))
	first := locktest.Lock(t, b.Client(t), "a", "1")
	k := locktest.NewCache(t, locktest.NewClient(t, locktest.Connect(t, config)), "")
	refreshed(t, "the copy is known to be current", k)
	back.Store(true)
	locktest.Eventually(t, "the revision is the earlier one", func() bool { return k.Revision() == 1 })
	if got, want := k.List(), []locker.Holder{locktest.HolderBy(first)}; !slices.Equal(got, want) {
		t.Errorf("List = %+v, want %+v", got, want)
	}
	back.Store(false)
	second := locktest.Lock(t, b.Client(t), "b", "2")
	locktest.Eventually(t, "the cache follows", func() bool {
		got, _ := k.Get("b")
		return got == locktest.HolderBy(second) && k.Revision() >= second.Token()
	})
	refreshed(t, "the copy is known to be current", k)
}
