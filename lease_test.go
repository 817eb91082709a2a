package locker_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/jagregory/locker/v2"
	"github.com/jagregory/locker/v2/internal/locktest"
)

func TestHold_OutlivesTheContextThatAcquiredIt(t *testing.T) {
	t.Parallel()
	b := locktest.Setup(t)
	c := b.Client(t)
	ctx, cancel := context.WithTimeout(context.WithValue(locktest.Within(t), contextKey{}, "kept"), locktest.Timeout/2)
	l, err := c.Lock(ctx, "a", "v")
	if err != nil {
		t.Fatal(err)
	}
	cancel()
	if _, limited := l.Context().Deadline(); limited || l.Context().Err() != nil || l.Err() != nil {
		t.Errorf("the hold ends with the context: %v, %v", l.Context().Err(), l.Err())
	}
	if l.Context().Value(contextKey{}) != "kept" {
		t.Error("the context of the hold has lost the values")
	}
	if err := l.SetValue(locktest.Within(t), "w"); err != nil {
		t.Error(err)
	}
}

func TestUnlock_EndsTheHold(t *testing.T) {
	t.Parallel()
	b := locktest.Setup(t)
	l := locktest.Lock(t, b.Client(t), "a", "v")
	if l.Err() != nil || l.Context().Err() != nil {
		t.Fatalf("not held: %v", l.Err())
	}
	locktest.Unlock(t, l)
	locktest.Want(t, context.Cause(l.Context()), locker.ErrReleased)
	locktest.Want(t, l.Err(), locker.ErrReleased)
	locktest.Want(t, l.SetValue(locktest.Within(t), "w"), locker.ErrReleased)
	_, err := l.Commit(locktest.Within(t), clientv3.OpPut("written", "yes"))
	locktest.Want(t, err, locker.ErrReleased)
	if b.Value(t, "written") != "" {
		t.Error("Commit wrote after Unlock")
	}
	b.Queued(t, "a", 0)
}

func TestUnlock_TheSecondReturnsErrReleased(t *testing.T) {
	t.Parallel()
	b, ctx := locktest.Setup(t), locktest.Within(t)
	c := b.Client(t)
	l := locktest.Lock(t, c, "a", "v")
	var released, repeated atomic.Int64
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			switch err := l.Unlock(ctx); {
			case err == nil:
				released.Add(1)
			case errors.Is(err, locker.ErrReleased):
				repeated.Add(1)
			default:
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if released.Load() != 1 || repeated.Load() != 7 {
		t.Errorf("released %d times, repeated %d times", released.Load(), repeated.Load())
	}
	newer := locktest.Lock(t, c, "a", "newer")
	locktest.Want(t, l.Unlock(ctx), locker.ErrReleased)
	if newer.Err() != nil || locktest.Get(t, c, "a").Token != newer.Token() {
		t.Errorf("the newer hold was touched: %v", newer.Err())
	}
}

func TestUnlock_WithAnEndedContextReleasesAllTheSame(t *testing.T) {
	t.Parallel()
	b, enough := locktest.Setup(t), errors.New("enough")
	l := locktest.Lock(t, b.Client(t), "a", "v")
	ctx, cancel := context.WithCancelCause(locktest.Within(t))
	cancel(enough)
	if err := l.Unlock(ctx); err != nil && !errors.Is(err, enough) {
		t.Error(err)
	}
	locktest.Want(t, context.Cause(l.Context()), locker.ErrReleased)
	locktest.Lock(t, b.Client(t), "a", "next")
}

func TestHold_AStaleHandleLeavesANewerEntryUntouched(t *testing.T) {
	t.Parallel()
	uses := map[string]func(context.Context, *locker.Lock) error{
		"Unlock":   func(ctx context.Context, l *locker.Lock) error { return l.Unlock(ctx) },
		"SetValue": func(ctx context.Context, l *locker.Lock) error { return l.SetValue(ctx, "stale") },
		"Commit": func(ctx context.Context, l *locker.Lock) error {
			_, err := l.Commit(ctx, clientv3.OpPut("written", "stale"), clientv3.OpDelete("kept"))
			return err
		},
	}
	for verb, use := range uses {
		t.Run(verb, func(t *testing.T) {
			t.Parallel()
			b, ctx := locktest.Setup(t), locktest.Within(t)
			l := locktest.Lock(t, b.Client(t, locker.WithTTL(time.Minute)), "a", "v") // so long that nothing is noticed meanwhile
			b.Delete(t, l)
			for _, key := range []string{l.Key(), "kept"} { // the same key, created again
				if _, err := b.Etcd.Put(ctx, key, "newer"); err != nil {
					t.Fatal(err)
				}
			}
			if l.Err() != nil {
				t.Fatalf("it was noticed already: %v", l.Err())
			}
			locktest.WantLost(t, use(ctx, l), l, locker.Deleted)
			if verb == "Unlock" { // which ends the hold before it learns of the loss
				locktest.Want(t, context.Cause(l.Context()), locker.ErrReleased)
			} else {
				locktest.WantLost(t, context.Cause(l.Context()), l, locker.Deleted)
				locktest.Want(t, l.Err(), locker.ErrLost)
			}
			if b.Value(t, l.Key()) != "newer" || b.Value(t, "kept") != "newer" || b.Value(t, "written") != "" {
				t.Errorf("the stale handle wrote: %q, %q, %q", b.Value(t, l.Key()), b.Value(t, "kept"), b.Value(t, "written"))
			}
		})
	}
}

func TestHold_ThatIsLostStaysLostBesideANewerOne(t *testing.T) {
	t.Parallel()
	b, ctx := locktest.Setup(t), locktest.Within(t)
	c := b.Client(t, locker.WithTTL(locktest.Brief))
	stale := locktest.Lock(t, c, "a", "stale")
	b.Delete(t, stale)
	locktest.Receive(t, stale.Context().Done())
	newer := locktest.Lock(t, c, "a", "newer")
	// The same key, or the other one of the two that hand-overs alternate between.
	if key := strings.TrimSuffix(stale.Key(), ".2"); !strings.HasPrefix(newer.Key(), key) || newer.Token() <= stale.Token() {
		t.Fatalf("%s, token %d after %s, token %d", newer.Key(), newer.Token(), stale.Key(), stale.Token())
	}
	locktest.WantLost(t, stale.Unlock(ctx), stale, locker.Deleted)
	locktest.WantLost(t, stale.Unlock(ctx), stale, locker.Deleted)
	locktest.WantLost(t, stale.SetValue(ctx, "stale"), stale, locker.Deleted)
	_, err := stale.Commit(ctx, clientv3.OpPut("written", "yes"))
	locktest.WantLost(t, err, stale, locker.Deleted)
	if b.Value(t, "written") != "" || newer.Err() != nil || locktest.Get(t, c, "a") != b.HolderOf(t, newer) {
		t.Errorf("the newer hold was touched: %v", newer.Err())
	}
	locktest.Unlock(t, newer)
}

func TestHold_EndsWhenItsLeaseIsRevoked(t *testing.T) {
	t.Parallel()
	b, ctx := locktest.Setup(t), locktest.Within(t)
	c := b.Client(t, locker.WithTTL(locktest.Brief))
	l := locktest.Lock(t, c, "a", "v")
	waiter := locktest.LockAsync(ctx, c, "a", "next") // of the same client, on its next session
	b.Server.ExpireLease(t, locktest.Get(t, c, "a").Lease)
	locktest.Receive(t, l.Context().Done())
	locktest.WantLost(t, context.Cause(l.Context()), l, locker.Revoked)
	locktest.WantLost(t, l.Err(), l, locker.Revoked)
	locktest.WantLost(t, l.Unlock(ctx), l, locker.Revoked)
	if got := locktest.Receive(t, waiter); got.Err != nil || got.Lock.Token() <= l.Token() {
		t.Errorf("next: %v", got.Err)
	}
}

func TestDeadline_MovesWithTheRenewals(t *testing.T) {
	t.Parallel()
	b := locktest.Setup(t)
	l := locktest.Lock(t, b.Client(t, locker.WithTTL(locktest.Brief)), "a", "v")
	first := l.Deadline()
	locktest.Eventually(t, "the deadline has moved by more than the TTL", func() bool { return l.Err() != nil || l.Deadline().Sub(first) > locktest.Brief })
	if l.Err() != nil {
		t.Error(l.Err())
	}
}

func TestGuard_HoldsInEtcdAsLongAsTheLock(t *testing.T) {
	t.Parallel()
	b, ctx := locktest.Setup(t), locktest.Within(t)
	c := b.Client(t)
	guarded := func(l *locker.Lock, value string) bool {
		resp, err := b.Etcd.Txn(ctx).If(l.Guard()...).Then(clientv3.OpPut("resource", value)).Commit()
		if err != nil {
			t.Fatal(err)
		}
		return resp.Succeeded
	}
	first := locktest.Lock(t, c, "a", "v")
	if !guarded(first, "first") {
		t.Error("refused while held")
	}
	if err := first.SetValue(ctx, "w"); err != nil || !guarded(first, "first") {
		t.Errorf("refused after SetValue: %v", err)
	}
	locktest.Unlock(t, first)
	if guarded(first, "stale") {
		t.Error("accepted after the release")
	}
	second := locktest.Lock(t, c, "a", "v")
	if guarded(first, "stale") || !guarded(second, "second") || b.Value(t, "resource") != "second" {
		t.Errorf("the guard does not distinguish the holds: %q", b.Value(t, "resource"))
	}
}

func TestCommit_AppliesAllOrNothing(t *testing.T) {
	t.Parallel()
	b, ctx := locktest.Setup(t), locktest.Within(t)
	l := locktest.Lock(t, b.Client(t, locker.WithTTL(time.Minute)), "a", "v")
	resp, err := l.Commit(ctx, clientv3.OpPut("x", "1"), clientv3.OpPut("y", "1"), clientv3.OpGet("x"))
	if err != nil || len(resp.Responses) != 3 || string(resp.Responses[2].GetResponseRange().Kvs[0].Value) != "1" {
		t.Fatalf("%v, %v", err, resp)
	}
	if b.Value(t, "x") != "1" || b.Value(t, "y") != "1" {
		t.Error("not all was applied")
	}
	_, err = l.Commit(ctx, clientv3.OpPut("x", "2"), clientv3.OpPut("x", "3"))
	locktest.Want(t, err, rpctypes.ErrDuplicateKey)
	if l.Err() != nil || b.Value(t, "x") != "1" {
		t.Errorf("after a refusal by etcd: %v, %q", l.Err(), b.Value(t, "x"))
	}
	b.Delete(t, l)
	resp, err = l.Commit(ctx, clientv3.OpPut("x", "4"), clientv3.OpPut("y", "4"))
	locktest.WantLost(t, err, l, locker.Deleted)
	if resp != nil || b.Value(t, "x") != "1" || b.Value(t, "y") != "1" {
		t.Errorf("applied without the lock: %q, %q", b.Value(t, "x"), b.Value(t, "y"))
	}
}

func TestSetValue_IsSeenByOthers(t *testing.T) {
	t.Parallel()
	b, ctx := locktest.Setup(t), locktest.Within(t)
	l, other := locktest.Lock(t, b.Client(t), "a", "v"), b.Client(t)
	before := b.HolderOf(t, l)
	for _, value := range []string{"w", "", "w", "w", "ä\x00\xff"} {
		if err := l.SetValue(ctx, value); err != nil {
			t.Fatal(err)
		}
		before.Value = value
		if l.Value() != value || locktest.Get(t, other, "a") != before {
			t.Errorf("%q, %+v, want %+v", l.Value(), locktest.Get(t, other, "a"), before)
		}
	}
}

func TestSetValue_ConcurrentCallsEndInTheSameValueEverywhere(t *testing.T) {
	t.Parallel()
	b, ctx := locktest.Setup(t), locktest.Within(t)
	c := b.Client(t)
	l := locktest.Lock(t, c, "a", "v")
	var wg sync.WaitGroup
	for i := range 8 {
		wg.Go(func() {
			for j := range 5 {
				if err := l.SetValue(ctx, fmt.Sprint(i, "-", j)); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	holder := locktest.Get(t, c, "a")
	if l.Value() != holder.Value || !strings.HasSuffix(holder.Value, "-4") || holder.Token != l.Token() {
		t.Errorf("the value is %q for its holder, %+v in etcd", l.Value(), holder)
	}
	resp, err := b.Etcd.Get(ctx, l.Key())
	if err != nil || resp.Kvs[0].Version != 1+8*5 {
		t.Errorf("%v, %d writes", err, resp.Kvs[0].Version)
	}
}

func TestCommit_RefusesToWriteTheLockItself(t *testing.T) {
	t.Parallel()
	b, ctx := locktest.Setup(t), locktest.Within(t)
	etcd, requests := countedEtcd(t, b.Server)
	c := locktest.NewClient(t, etcd, locker.WithTTL(5*time.Minute)) // so that nothing is renewed meanwhile
	s := locktest.NewSession(t, c)
	l := locktest.Lock(t, c, "a", "v", locker.WithSession(s))
	records := b.Keys(t, locker.DefaultPrefix+"/")
	if len(records) != 1 {
		t.Fatalf("records %q", records)
	}
	for what, key := range map[string]string{"entry": l.Key(), "record": records[0]} {
		for kind, op := range map[string]clientv3.Op{
			"put":              clientv3.OpPut(key, "v"),
			"put with lease":   clientv3.OpPut(key, "v", clientv3.WithLease(s.Lease())),
			"put in place":     clientv3.OpPut(key, "", clientv3.WithIgnoreValue()),
			"delete":           clientv3.OpDelete(key),
			"delete a range":   clientv3.OpDelete(key[:len(key)-1], clientv3.WithRange(key+"\x00")),
			"delete below":     clientv3.OpDelete(locker.DefaultPrefix, clientv3.WithPrefix()),
			"delete from":      clientv3.OpDelete(key, clientv3.WithFromKey()),
			"delete all":       clientv3.OpDelete("", clientv3.WithPrefix()),
			"nested":           clientv3.OpTxn(nil, []clientv3.Op{clientv3.OpPut(key, "v")}, nil),
			"nested, if not":   clientv3.OpTxn(nil, nil, []clientv3.Op{clientv3.OpDelete(key)}),
			"nested in nested": clientv3.OpTxn(nil, []clientv3.Op{clientv3.OpTxn(nil, nil, []clientv3.Op{clientv3.OpDelete(key)})}, nil),
		} {
			before := requests.Load()
			_, err := l.Commit(ctx, clientv3.OpPut("written", "yes"), op)
			t.Log(what, kind, err)
			wantInvalid(t, err, "operation")
			if n := requests.Load() - before; n != 0 {
				t.Errorf("%s the %s: %d requests", kind, what, n)
			}
		}
		_, err := l.Commit(ctx,
			clientv3.OpGet(key), clientv3.OpGet("", clientv3.WithPrefix()),
			clientv3.OpPut(key+"0", "v"), clientv3.OpDelete(key+"0"+"0"), // beside it
			clientv3.OpDelete(key+"\x00", clientv3.WithRange(key+"0")),
			clientv3.OpTxn(nil, []clientv3.Op{clientv3.OpGet(key)}, []clientv3.Op{clientv3.OpGet(key)}))
		if err != nil {
			t.Errorf("the %s: %v", what, err)
		}
		if _, err := l.Commit(ctx, clientv3.OpDelete(key+"0")); err != nil {
			t.Error(err)
		}
	}
	_, err := l.Commit(ctx, clientv3.Op{})
	wantInvalid(t, err, "operation")
	if l.Err() != nil || b.Value(t, "written") != "" {
		t.Errorf("something has changed: %v", l.Err())
	}
	if err := c.Close(); err != nil || len(b.Keys(t, "")) > 0 {
		t.Errorf("%v, left: %q", err, b.Keys(t, ""))
	}
}
