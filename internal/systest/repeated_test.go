package systest

import (
	"context"
	"errors"
	"sync/atomic"
	"testing"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/jagregory/locker/v2"
)

// etcd's client makes a request again, writes too, when the answer has the code Canceled,
// and does not say so. Here something between the two answers that.

var errMiddlebox = status.Error(codes.Canceled, "stream terminated by RST_STREAM with error code: CANCEL")

// canceled answers the first request that which picks with Canceled: after it was applied,
// or, if it is to come late, instead of passing it on.
func (b bundle) canceled(t *testing.T, late *lateRequests, which func(req any) bool, opts ...locker.Option) (*locker.Client, *atomic.Int32) {
	t.Helper()
	made := new(atomic.Int32)
	return newClient(t, b.Server.ClientWith(t, func(_ context.Context, _ string, req any, call func() error) error {
		if !which(req) || made.Add(1) > 1 {
			return call()
		}
		if late != nil {
			_ = late.Hold(req)
		} else if err := call(); err != nil {
			return err
		}
		return errMiddlebox
	}), opts...), made
}

func TestLock_APutThatWasCanceledAndComesLateLeavesNothing(t *testing.T) {
	t.Parallel()
	for name, call := range map[string]func(*locker.Client, context.Context, string, string, ...locker.LockOption) (*locker.Lock, error){
		"Lock": (*locker.Client).Lock, "TryLock": (*locker.Client).TryLock,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := setup(t)
			var late lateRequests
			c, made := b.canceled(t, &late, func(req any) bool { return enqueues(req, "a") })
			unlock(t, lock(t, c, "warm", ""))
			l, err := call(c, within(t), "a", "")
			if err != nil || made.Load() < 2 {
				t.Fatalf("%v after %d requests", err, made.Load())
			}
			unlock(t, l)
			if n := late.Arrive(t, b.Etcd); n != 0 {
				t.Errorf("the late request took effect: %v", b.Keys(t, locker.DefaultPrefix+"a/"))
			}
			b.free(t, "a")
		})
	}
}

func TestUnlock_IsConfirmedThoughItsDeleteWasCanceled(t *testing.T) {
	t.Parallel()
	b := setup(t)
	c, made := b.canceled(t, nil, func(req any) bool { return releases(req, "a") })
	l := lock(t, c, "a", "")
	if err := l.Unlock(within(t)); err != nil || made.Load() < 2 {
		t.Errorf("%v after %d requests", err, made.Load())
	}
	b.free(t, "a")
}

func TestSetValue_IsConfirmedThoughItWasCanceled(t *testing.T) {
	t.Parallel()
	b := setup(t)
	c, made := b.canceled(t, nil, func(req any) bool { return enqueues(req, "a") && !creates(req) })
	l := lock(t, c, "a", "old")
	if err := l.SetValue(within(t), "new"); err != nil || l.Value() != "new" || made.Load() < 2 {
		t.Errorf("%v after %d requests: %q", err, made.Load(), l.Value())
	}
}

// creates reports whether a transaction puts an entry that is not there.
func creates(req any) bool {
	txn, _ := req.(*pb.TxnRequest)
	for _, cmp := range txn.GetCompare() {
		if cmp.Target == pb.Compare_CREATE && cmp.GetCreateRevision() == 0 {
			return true
		}
	}
	return false
}

func TestCommit_SaysWhenItMayHaveBeenAppliedTwice(t *testing.T) {
	t.Parallel()
	for name, held := range map[string]bool{"applied": false, "to come later": true} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := setup(t)
			var late lateRequests
			puts := func(req any) bool {
				txn, _ := req.(*pb.TxnRequest)
				return len(txn.GetSuccess()) > 0 && string(txn.GetSuccess()[0].GetRequestPut().GetKey()) == "x"
			}
			pick := (*lateRequests)(nil)
			if held {
				pick = &late
			}
			c, made := b.canceled(t, pick, puts)
			l := lock(t, c, "a", "")
			resp, err := l.Commit(within(t), clientv3.OpPut("x", "1"))
			if resp != nil || !errors.Is(err, locker.ErrInDoubt) || errors.Is(err, locker.ErrLost) || made.Load() < 2 {
				t.Errorf("Commit returned %v, %v after %d requests", resp, err, made.Load())
			}
			if err := l.Err(); err != nil {
				t.Error(err)
			}
			if _, err := l.Commit(within(t), clientv3.OpPut("x", "2")); err != nil {
				t.Errorf("the next: %v", err)
			}
		})
	}
}

func TestCommit_OfReadsIsNotInDoubt(t *testing.T) {
	t.Parallel()
	b := setup(t)
	reads := func(req any) bool {
		txn, _ := req.(*pb.TxnRequest)
		return len(txn.GetSuccess()) > 0 && string(txn.GetSuccess()[0].GetRequestRange().GetKey()) == "x"
	}
	c, made := b.canceled(t, nil, reads)
	if resp, err := lock(t, c, "a", "").Commit(within(t), clientv3.OpGet("x")); err != nil || resp == nil || made.Load() < 2 {
		t.Errorf("%v, %v after %d requests", resp, err, made.Load())
	}
}
