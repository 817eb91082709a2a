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
	"github.com/jagregory/locker/v2/internal/locktest"
)

// Tests of requests that etcd's client repeats without saying so: it does that, even with
// writes, when the answer has the code Canceled. Here something between the two answers that.

var errMiddlebox = status.Error(codes.Canceled, "stream terminated by RST_STREAM with error code: CANCEL")

// canceledOnce returns a Client, and how many of its requests which has picked. The first of
// them is answered with Canceled: after it was applied or, if late is not nil, once late holds it.
func canceledOnce(t *testing.T, b locktest.Bundle, late *locktest.LateRequests, which func(req any) bool, opts ...locker.Option) (*locker.Client, *atomic.Int32) {
	t.Helper()
	made := new(atomic.Int32)
	return locktest.NewClient(t, b.Server.ClientWith(t, func(_ context.Context, _ string, req any, call func() error) error {
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
	for name, call := range lockCalls {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := locktest.Setup(t)
			var late locktest.LateRequests
			c, made := canceledOnce(t, b, &late, func(req any) bool { return locktest.Enqueues(req, "a") })
			locktest.Unlock(t, locktest.Lock(t, c, "warm", ""))
			l, err := call(c, locktest.Within(t), "a", "")
			if err != nil || made.Load() < 2 {
				t.Fatalf("%v after %d requests", err, made.Load())
			}
			locktest.Unlock(t, l)
			if n := late.Arrive(t, b.Etcd); n != 0 {
				t.Errorf("the late request took effect: %v", b.Keys(t, locker.DefaultPrefix+"a/"))
			}
			wantFree(t, b, "a")
		})
	}
}

func TestUnlock_IsConfirmedThoughItsDeleteWasCanceled(t *testing.T) {
	t.Parallel()
	b := locktest.Setup(t)
	c, made := canceledOnce(t, b, nil, func(req any) bool { return locktest.Releases(req, "a") })
	l := locktest.Lock(t, c, "a", "")
	if err := l.Unlock(locktest.Within(t)); err != nil || made.Load() < 2 {
		t.Errorf("%v after %d requests", err, made.Load())
	}
	wantFree(t, b, "a")
}

func TestSetValue_IsConfirmedThoughItWasCanceled(t *testing.T) {
	t.Parallel()
	b := locktest.Setup(t)
	c, made := canceledOnce(t, b, nil, func(req any) bool { return locktest.Enqueues(req, "a") && !creates(req) })
	l := locktest.Lock(t, c, "a", "old")
	if err := l.SetValue(locktest.Within(t), "new"); err != nil || l.Value() != "new" || made.Load() < 2 {
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
			b := locktest.Setup(t)
			puts := func(req any) bool {
				txn, _ := req.(*pb.TxnRequest)
				return len(txn.GetSuccess()) > 0 && string(txn.GetSuccess()[0].GetRequestPut().GetKey()) == "x"
			}
			var late *locktest.LateRequests
			if held {
				late = new(locktest.LateRequests)
			}
			c, made := canceledOnce(t, b, late, puts)
			l := locktest.Lock(t, c, "a", "")
			resp, err := l.Commit(locktest.Within(t), clientv3.OpPut("x", "1"))
			if resp != nil || !errors.Is(err, locker.ErrInDoubt) || errors.Is(err, locker.ErrLost) || made.Load() < 2 {
				t.Errorf("Commit returned %v, %v after %d requests", resp, err, made.Load())
			}
			if err := l.Err(); err != nil {
				t.Error(err)
			}
			if _, err := l.Commit(locktest.Within(t), clientv3.OpPut("x", "2")); err != nil {
				t.Errorf("the next: %v", err)
			}
		})
	}
}

func TestCommit_OfReadsIsNotInDoubt(t *testing.T) {
	t.Parallel()
	b := locktest.Setup(t)
	reads := func(req any) bool {
		txn, _ := req.(*pb.TxnRequest)
		return len(txn.GetSuccess()) > 0 && string(txn.GetSuccess()[0].GetRequestRange().GetKey()) == "x"
	}
	c, made := canceledOnce(t, b, nil, reads)
	if resp, err := locktest.Lock(t, c, "a", "").Commit(locktest.Within(t), clientv3.OpGet("x")); err != nil || resp == nil || made.Load() < 2 {
		t.Errorf("%v, %v after %d requests", resp, err, made.Load())
	}
}
