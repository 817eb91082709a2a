package interop

import (
	"errors"
	"testing"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/jagregory/locker/v2"
)

// setPermission grants or revokes the permission of service on the locks.
func (b bundle) setPermission(t *testing.T, grant bool) {
	t.Helper()
	p := readWrite("locker/")
	end := clientv3.GetPrefixRangeEnd(p.prefix)
	var err error
	if grant {
		_, err = b.etcd.RoleGrantPermission(testContext(t), service, p.prefix, end, p.kind)
	} else {
		_, err = b.etcd.RoleRevokePermission(testContext(t), service, p.prefix, end)
	}
	if err != nil {
		t.Fatal(err)
	}
}

// awaitRenewal waits until the lease of a hold is renewed.
func awaitRenewal(t *testing.T, l *locker.Lock) {
	t.Helper()
	before := l.Deadline()
	eventually(t, "the hold is renewed", func() bool { return l.Deadline().After(before) })
}

func TestHold_WithoutPermissionEndsWhereRenewalNeedsIt(t *testing.T) {
	onOwnCluster(t, func(t *testing.T, b bundle) {
		ctx, c := testContext(t), b.client(t, locker.WithTTL(mediumTTL))
		cache, err := b.client(t, locker.WithTTL(mediumTTL)).NewCache(ctx, "")
		if err != nil {
			t.Fatal(err)
		}
		l := lock(t, c, "a", "")
		awaitRenewal(t, l)
		b.setPermission(t, false)
		_, err = l.Commit(ctx, clientv3.OpPut("data/"+b.prefix, ""))
		wantDenied(t, "Commit", err)
		wantDenied(t, "SetValue", l.SetValue(ctx, ""))
		_, err = c.Get(ctx, "a")
		wantDenied(t, "Get", err)
		certain := l.Deadline()
		if is34(b.release) { // etcd 3.4 renews any lease for any user
			awaitRenewal(t, l)
			eventually(t, "the hold outlives its TTL", func() bool { return l.Deadline().After(certain.Add(mediumTTL)) })
			if err := l.Err(); err != nil {
				t.Error(err)
			}
		} else {
			receive(t, l.Context().Done())
			var lost *locker.LostError
			if !errors.As(l.Err(), &lost) || lost.Reason != locker.Expired || !errors.Is(lost, rpctypes.ErrPermissionDenied) {
				t.Errorf("the hold ended with %v, want a LostError with Expired and permission denied", l.Err())
			}
		}
		wantDenied(t, "Unlock", l.Unlock(ctx))
		b.setPermission(t, true)
		next := lock(t, c, "a", "")
		if next.Token() <= l.Token() {
			t.Errorf("got token %d after %d", next.Token(), l.Token())
		}
		awaitRenewal(t, next)
		eventually(t, "the cache shows the next hold", func() bool { holder, _ := cache.Get("a"); return holder.Token == next.Token() })
		unlock(t, next)
	}, authentication)
}
