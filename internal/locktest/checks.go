package locktest

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/jagregory/locker/v2"
)

func NewCache(t testing.TB, c *locker.Client, prefix string) *locker.Cache {
	t.Helper()
	k, err := c.NewCache(Within(t), prefix)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(k.Close)
	return k
}

// WantLost fails the test unless err says that l was lost for the reason.
func WantLost(t testing.TB, err error, l *locker.Lock, reason locker.Reason) {
	t.Helper()
	var lost *locker.LostError
	if !errors.Is(err, locker.ErrLost) || !errors.As(err, &lost) {
		t.Errorf("not a LostError: %v", err)
	} else if lost.Name != l.Name() || lost.Token != l.Token() || lost.Reason != reason {
		t.Errorf("%+v, want %s, token %d, %v", lost, l.Name(), l.Token(), reason)
	}
}

// Want fails the test unless err is the target.
func Want(t testing.TB, err, target error) {
	t.Helper()
	if !errors.Is(err, target) {
		t.Errorf("%v, want %v", err, target)
	}
}

// Get returns the holder of name or fails the test.
func Get(t testing.TB, c *locker.Client, name string) locker.Holder {
	t.Helper()
	holder, err := c.Get(Within(t), name)
	if err != nil {
		t.Fatal(err)
	}
	return holder
}

// HolderOf returns what others should see of l.
func (b Bundle) HolderOf(t testing.TB, l *locker.Lock) locker.Holder {
	t.Helper()
	resp, err := b.Etcd.Get(Within(t), l.Key())
	if err != nil || len(resp.Kvs) != 1 {
		t.Fatalf("entry of %q: %v, %v", l.Name(), resp, err)
	}
	return locker.Holder{Name: l.Name(), Value: l.Value(), Token: l.Token(), Lease: clientv3.LeaseID(resp.Kvs[0].Lease)}
}

// HolderBy returns what others see of l.
func HolderBy(l *locker.Lock) locker.Holder {
	return locker.Holder{Name: l.Name(), Value: l.Value(), Token: l.Token(), Lease: LeaseOf(l)}
}

// LeaseOf returns the lease that l's entry is attached to.
func LeaseOf(l *locker.Lock) (id clientv3.LeaseID) {
	key := l.Key()
	_, _ = fmt.Sscanf(key[strings.LastIndex(key, "/")+1:], "%x", &id)
	return id
}

func SetValue(t testing.TB, l *locker.Lock, value string) {
	t.Helper()
	if err := l.SetValue(Within(t), value); err != nil {
		t.Fatal(err)
	}
}

// PutKey puts until etcd, which may be busy, has confirmed it.
func PutKey(t testing.TB, etcd *clientv3.Client, key, value string) {
	t.Helper()
	Eventually(t, "the key is put", func() bool {
		_, err := etcd.Put(Within(t), key, value)
		if err != nil && !errors.Is(err, rpctypes.ErrTimeout) {
			t.Fatal(err)
		}
		return err == nil
	})
}

// LockOf returns the lock that a call has taken, or fails the test.
func LockOf(t testing.TB, result <-chan Outcome) *locker.Lock {
	t.Helper()
	got := Receive(t, result)
	if got.Err != nil {
		t.Fatal(got.Err)
	}
	return got.Lock
}

// Records returns the revision at which a session's record was written last.
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

// Renewed waits for a renewal that begins after now.
func Renewed(t testing.TB, l *locker.Lock) {
	t.Helper()
	// The renewal that moves the deadline first may have been under way; the
	// second was not.
	for range 2 {
		before := l.Deadline()
		Eventually(t, "the deadline moves", func() bool { return l.Err() != nil || l.Deadline().After(before) })
	}
	if err := l.Err(); err != nil {
		t.Fatal(err)
	}
}

// Lost waits for the end of a hold and wants it to be a loss for that reason.
func Lost(t testing.TB, l *locker.Lock, reason locker.Reason) *locker.LostError {
	t.Helper()
	Receive(t, l.Context().Done())
	var loss *locker.LostError
	if err := l.Err(); !errors.As(err, &loss) || !errors.Is(err, locker.ErrLost) {
		t.Fatalf("the hold ended with %v", err)
	}
	if loss.Reason != reason || loss.Name != l.Name() || loss.Token != l.Token() {
		t.Errorf("lost with %+v, not %v", loss, reason)
	}
	return loss
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

// MemberOf returns what the session of a lock calls its entries.
func MemberOf(l *locker.Lock) string { return l.Key()[strings.LastIndex(l.Key(), "/")+1:] }

// List returns what etcd says that is held below prefix.
func List(t testing.TB, c *locker.Client, prefix string) []locker.Holder {
	t.Helper()
	holders, err := c.List(Within(t), prefix)
	if err != nil {
		t.Fatal(err)
	}
	return holders
}
