package interop

import (
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/jagregory/locker/v2"
)

func TestHold_IsKeptAndReleasedWhileEtcdHasNoSpace(t *testing.T) {
	littleSpace := oneMember
	littleSpace.flags = []string{"--quota-backend-bytes=2097152"}
	onOwnCluster(t, func(t *testing.T, b bundle) {
		ctx, c := testContext(t), b.client(t, locker.WithTTL(mediumTTL))
		holder, other := lock(t, c, "a", ""), lock(t, c, "b", "")
		waiter := lockAsync(ctx, b.client(t), "a", "")
		b.awaitEntries(t, "a", 2)
		b.fill(t)
		for what, attempt := range map[string]func() error{
			"Lock":       func() error { _, err := c.Lock(ctx, "new", ""); return err },
			"TryLock":    func() error { _, err := c.TryLock(ctx, "newer", ""); return err },
			"NewSession": func() error { _, err := c.NewSession(ctx); return err },
			"SetValue":   func() error { return other.SetValue(ctx, "larger") },
		} {
			if err := attempt(); !errors.Is(err, rpctypes.ErrNoSpace) {
				t.Errorf("%s returned %v, want ErrNoSpace", what, err)
			}
		}
		var callers sync.WaitGroup
		for i := range 10 {
			callers.Go(func() {
				if _, err := c.Lock(ctx, fmt.Sprint("new ", i), ""); !errors.Is(err, rpctypes.ErrNoSpace) {
					t.Errorf("a concurrent Lock returned %v, want ErrNoSpace", err)
				}
			})
		}
		callers.Wait()
		before := holder.Deadline()
		eventually(t, "the hold outlives its TTL", func() bool { return holder.Deadline().After(before.Add(mediumTTL)) })
		unlock(t, holder)
		next := awaitLock(t, waiter)
		unlock(t, next)
		b.awaitEntries(t, "a", 0)
		unlock(t, other)

		b.makeSpace(t)
		l := lock(t, c, "a", "")
		if l.Token() <= next.Token() {
			t.Errorf("got token %d after %d", l.Token(), next.Token())
		}
		unlock(t, l)
	}, littleSpace)
}

// fill writes until etcd has no space left.
func (b bundle) fill(t *testing.T) {
	t.Helper()
	ballast := strings.Repeat("x", 100<<10)
	eventually(t, "etcd is full", func() bool {
		_, err := b.etcd.Put(testContext(t), "data/ballast", ballast)
		if err != nil && !errors.Is(err, rpctypes.ErrNoSpace) {
			t.Fatal(err)
		}
		return err != nil
	})
}

// makeSpace recovers from a lack of space as etcd's documentation describes.
func (b bundle) makeSpace(t *testing.T) {
	t.Helper()
	ctx := testContext(t)
	resp, err := b.etcd.Delete(ctx, "data/ballast")
	if err == nil {
		_, err = b.etcd.Compact(ctx, resp.Header.Revision, clientv3.WithCompactPhysical())
	}
	if err == nil {
		_, err = b.etcd.Defragment(ctx, b.Endpoints()[0])
	}
	if err == nil {
		_, err = b.etcd.AlarmDisarm(ctx, &clientv3.AlarmMember{})
	}
	if err != nil {
		t.Fatal(err)
	}
}
