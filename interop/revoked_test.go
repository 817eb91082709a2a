package interop

import (
	"errors"
	"testing"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/jagregory/locker/v2"
)

// permit gives service its permission on the locks, or takes it away.
func (b bundle) permit(t *testing.T, grant bool) {
	t.Helper()
	p := readWrite("locker/")
	end := clientv3.GetPrefixRangeEnd(p.prefix)
	var err error
	if grant {
		_, err = b.etcd.RoleGrantPermission(within(t), service, p.prefix, end, p.kind)
	} else {
		_, err = b.etcd.RoleRevokePermission(within(t), service, p.prefix, end)
	}
	if err != nil {
		t.Fatal(err)
	}
}

// renewed waits until the lease of a hold has been renewed.
func renewed(t *testing.T, l *locker.Lock) {
	t.Helper()
	before := l.Deadline()
	eventually(t, "it is renewed", func() bool { return l.Deadline().After(before) })
}

func TestHold_WithoutPermissionEndsWhereRenewalNeedsIt(t *testing.T) {
	alone(t, func(t *testing.T, b bundle) {
		ctx, c := within(t), b.client(t, locker.WithTTL(modest))
		cache, err := b.client(t, locker.WithTTL(modest)).NewCache(ctx, "")
		if err != nil {
			t.Fatal(err)
		}
		l := lock(t, c, "a", "")
		renewed(t, l)
		b.permit(t, false)
		_, err = l.Commit(ctx, clientv3.OpPut("data/"+b.prefix, ""))
		wantDenied(t, "Commit", err)
		wantDenied(t, "SetValue", l.SetValue(ctx, ""))
		_, err = c.Get(ctx, "a")
		wantDenied(t, "Get", err)
		certain := l.Deadline()
		if is34(b.release) { // etcd 3.4 renews any lease for anybody
			renewed(t, l)
			eventually(t, "it would have run out", func() bool { return l.Deadline().After(certain.Add(modest)) })
			if err := l.Err(); err != nil {
				t.Error(err)
			}
		} else {
			receive(t, l.Context().Done())
			var lost *locker.LostError
			if !errors.As(l.Err(), &lost) || lost.Reason != locker.Expired || !errors.Is(lost, rpctypes.ErrPermissionDenied) {
				t.Errorf("lost by %v", l.Err())
			}
		}
		wantDenied(t, "Unlock", l.Unlock(ctx))
		b.permit(t, true)
		next := lock(t, c, "a", "")
		if next.Token() <= l.Token() {
			t.Errorf("token %d after %d", next.Token(), l.Token())
		}
		renewed(t, next)
		eventually(t, "the cache sees it", func() bool { holder, _ := cache.Get("a"); return holder.Token == next.Token() })
		unlock(t, next)
	}, authentication)
}
