package locker_test

import (
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/jagregory/locker/v2"
)

func TestCommit_RefusesToWriteTheLockItself(t *testing.T) {
	t.Parallel()
	b, ctx := setup(t), within(t)
	etcd, requests := countedEtcd(t, b.server)
	c := newClient(t, etcd, locker.WithTTL(5*time.Minute)) // so that nothing is renewed meanwhile
	s := newSession(t, c)
	l := lock(t, c, "a", "v", locker.WithSession(s))
	records := b.keys(t, locker.DefaultPrefix+"/")
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
	if l.Err() != nil || b.value(t, "written") != "" {
		t.Errorf("something was done: %v", l.Err())
	}
	if err := c.Close(); err != nil || len(b.keys(t, "")) > 0 {
		t.Errorf("%v, left: %q", err, b.keys(t, ""))
	}
}
