package locktest

import (
	"errors"
	"strings"
	"testing"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/server/v3/embed"

	"github.com/jagregory/locker/v2"
	"github.com/jagregory/locker/v2/embedtest"
)

// Bundle is what most tests need: an etcd of their own and a raw connection to it.
type Bundle struct {
	Server *embedtest.Server
	Etcd   *clientv3.Client
}

// Setup starts an etcd. That takes 20 ms of a processor, so sharing one would gain nothing. Several members
// wait longer for each other than those of embedtest do, so that a busy machine alone causes no election, and
// send fewer heartbeats.
func Setup(t testing.TB, opts ...embedtest.Option) Bundle {
	calm := embedtest.WithConfig(func(c *embed.Config) {
		if strings.Contains(c.InitialCluster, ",") {
			c.TickMs, c.ElectionMs = 100, 600
		}
	})
	server := embedtest.Start(t, append([]embedtest.Option{calm}, opts...)...)
	return Bundle{server, server.Client(t)}
}

// Client returns a Client over a connection of its own, closed with the test.
func (b Bundle) Client(t testing.TB, opts ...locker.Option) *locker.Client {
	return NewClient(t, b.Server.Client(t), opts...)
}

// Keys returns the keys in etcd below prefix.
func (b Bundle) Keys(t testing.TB, prefix string) []string {
	t.Helper()
	resp, err := b.Etcd.Get(Within(t), prefix, clientv3.WithPrefix(), clientv3.WithKeysOnly())
	if err != nil {
		t.Fatal(err)
	}
	keys := make([]string, len(resp.Kvs))
	for i, kv := range resp.Kvs {
		keys[i] = string(kv.Key)
	}
	return keys
}

// Entries returns the keys in all queues below the default prefix.
func (b Bundle) Entries(t testing.TB) (entries []string) {
	t.Helper()
	for _, key := range b.Keys(t, locker.DefaultPrefix) {
		if !strings.HasPrefix(key, locker.DefaultPrefix+"/") { // the record of a session
			entries = append(entries, key)
		}
	}
	return entries
}

// Queued waits until n entries are in the queue of name below the default prefix.
func (b Bundle) Queued(t testing.TB, name string, n int) {
	t.Helper()
	Eventually(t, "the queue has the right length", func() bool {
		return len(b.Keys(t, locker.DefaultPrefix+name+"/")) == n
	})
}

// Value returns the value of key, or "" if there is no such key.
func (b Bundle) Value(t testing.TB, key string) string {
	t.Helper()
	resp, err := b.Etcd.Get(Within(t), key)
	if err != nil {
		t.Fatal(err)
	}
	if len(resp.Kvs) == 0 {
		return ""
	}
	return string(resp.Kvs[0].Value)
}

// Leases returns the leases in etcd.
func (b Bundle) Leases(t testing.TB) map[clientv3.LeaseID]bool {
	t.Helper()
	resp, err := b.Etcd.Leases(Within(t))
	if err != nil {
		t.Fatal(err)
	}
	ids := make(map[clientv3.LeaseID]bool)
	for _, lease := range resp.Leases {
		ids[lease.ID] = true
	}
	return ids
}

// Records returns the revision at which a session's record was last written.
func (b Bundle) Records(t testing.TB) (revision int64) {
	t.Helper()
	resp, err := b.Etcd.Get(Within(t), locker.DefaultPrefix+"/", clientv3.WithPrefix())
	if err != nil {
		t.Fatal(err)
	}
	for _, kv := range resp.Kvs {
		revision = max(revision, kv.ModRevision)
	}
	return revision
}

// HolderOf returns what others should see of l, with the lease that etcd reports.
func (b Bundle) HolderOf(t testing.TB, l *locker.Lock) locker.Holder {
	t.Helper()
	resp, err := b.Etcd.Get(Within(t), l.Key())
	if err != nil || len(resp.Kvs) != 1 {
		t.Fatalf("entry of %q: %v, %v", l.Name(), resp, err)
	}
	return locker.Holder{Name: l.Name(), Value: l.Value(), Token: l.Token(), Lease: clientv3.LeaseID(resp.Kvs[0].Lease), Limit: limitOf(l)}
}

// WantHeldAlone fails the test unless l is held, and its entry is the only one in the queue of its name.
func (b Bundle) WantHeldAlone(t testing.TB, l *locker.Lock) {
	t.Helper()
	resp, err := b.Etcd.Get(Within(t), locker.DefaultPrefix+l.Name()+"/", clientv3.WithPrefix())
	if err != nil {
		t.Fatal(err)
	}
	if l.Err() != nil || len(resp.Kvs) != 1 || resp.Kvs[0].CreateRevision != l.Token() || string(resp.Kvs[0].Key) != l.Key() {
		t.Errorf("%s, token %d, %v, in a queue of %v", l.Key(), l.Token(), l.Err(), resp.Kvs)
	}
}

// WantNoEntries fails the test unless all queues are empty.
func (b Bundle) WantNoEntries(t testing.TB) {
	t.Helper()
	for _, key := range b.Entries(t) {
		t.Errorf("left in a queue: %s", key)
	}
}

// Delete deletes the entry of l, as an operator might.
func (b Bundle) Delete(t testing.TB, l *locker.Lock) {
	t.Helper()
	resp, err := b.Etcd.Delete(Within(t), l.Key())
	if err != nil || resp.Deleted != 1 {
		t.Fatalf("delete the entry of %q: %v", l.Name(), err)
	}
}

// FillUp writes until etcd has no space left.
func (b Bundle) FillUp(t testing.TB) {
	t.Helper()
	chunk := strings.Repeat("x", 100<<10)
	Eventually(t, "etcd is full", func() bool {
		_, err := b.Etcd.Put(Within(t), "ballast", chunk)
		return errors.Is(err, rpctypes.ErrNoSpace)
	})
}

// AddUser adds a user who has one role. The user, the password and the role are all called name.
func (b Bundle) AddUser(t testing.TB, name string) {
	t.Helper()
	ctx := Within(t)
	_, err := b.Etcd.RoleAdd(ctx, name)
	if err == nil {
		_, err = b.Etcd.UserAdd(ctx, name, name)
	}
	if err == nil {
		_, err = b.Etcd.UserGrantRole(ctx, name, name)
	}
	if err != nil {
		t.Fatal(err)
	}
}

// Permit gives a user that AddUser has added a permission below each of the prefixes.
func (b Bundle) Permit(t testing.TB, name string, permission clientv3.PermissionType, prefixes ...string) {
	t.Helper()
	for _, prefix := range prefixes {
		if _, err := b.Etcd.RoleGrantPermission(Within(t), name, prefix, clientv3.GetPrefixRangeEnd(prefix), permission); err != nil {
			t.Fatal(err)
		}
	}
}

// Forbid takes a permission below prefix away again.
func (b Bundle) Forbid(t testing.TB, name, prefix string) {
	t.Helper()
	if _, err := b.Etcd.RoleRevokePermission(Within(t), name, prefix, clientv3.GetPrefixRangeEnd(prefix)); err != nil {
		t.Fatal(err)
	}
}
