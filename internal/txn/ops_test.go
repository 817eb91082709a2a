package txn_test

import (
	"context"
	"fmt"
	"testing"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"
	"google.golang.org/grpc"

	"github.com/jagregory/locker/v2/internal/fakeetcd"
	"github.com/jagregory/locker/v2/internal/tasks"
	"github.com/jagregory/locker/v2/internal/txn"
)

// served is an etcd with the keys a/1 at revision 2, a/2 at 3, which was written again at 4, a/3 at 5, and b at 6.
func served(t *testing.T) (server *fakeetcd.Server, kv pb.KVClient) {
	server = fakeetcd.New()
	t.Cleanup(server.Close)
	etcd, err := server.Connect()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = etcd.Close() })
	for _, key := range []string{"a/1", "a/2", "a/2", "a/3", "b"} {
		server.Write(key, "value", 0)
	}
	return server, pb.NewKVClient(etcd.ActiveConnection())
}

// on bounds a test.
func on(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	t.Cleanup(cancel)
	return ctx
}

// keys returns keys, and "+" after those that come with a value.
func keys(kvs []*mvccpb.KeyValue) (keys []string) {
	for _, kv := range kvs {
		key := string(kv.Key)
		if len(kv.Value) > 0 {
			key += "+"
		}
		keys = append(keys, key)
	}
	return keys
}

func TestCmp_NoneHoldsWhereThereIsNoKey(t *testing.T) {
	t.Parallel()
	_, kv := served(t)
	for compare, want := range map[*pb.Compare]bool{
		txn.CmpNone("a/", "a0"):           false,
		txn.CmpNone("a/3", "a0"):          false,
		txn.CmpNone("a/4", "a0"):          true, // the end is not included
		txn.CmpNone("a/", "a/1"):          true,
		txn.CmpNone("c", "d"):             true,
		txn.CmpNoneSince("a/", "a0", 0):   false,
		txn.CmpNoneSince("a/", "a0", 4):   false,
		txn.CmpNoneSince("a/", "a0", 5):   true, // b was created later, but is not in the range
		txn.CmpNoneSince("a/", "a/3", 3):  true, // what was written later was created before
		txn.CmpNoneSince("a/", "a/3", 2):  false,
		txn.CmpNoneSince("c", "d", 0):     true,
		txn.CmpNoneSince("a/4", "a0", 99): true,
	} {
		resp, err := kv.Txn(on(t), &pb.TxnRequest{Compare: []*pb.Compare{compare}})
		if err != nil || resp.Succeeded != want {
			t.Errorf("%v holds: %v, %v", compare, resp.GetSucceeded(), err)
		}
	}
}

func TestRange_ReadsTheOldestOrTheNewest(t *testing.T) {
	t.Parallel()
	_, kv := served(t)
	for want, read := range map[string]*pb.RangeRequest{
		"[a/1+]":        txn.Oldest("a/", "a0"),
		"[a/2+]":        txn.Oldest("a/2", "a0"),
		"[]":            txn.Oldest("c", "d"),
		"[a/3 a/2]":     txn.Newest("a/", "a0", 2, 0),
		"[a/3]":         txn.Newest("a/", "a0", 1, 5),
		"[a/2 a/1]":     txn.Newest("a/", "a0", 9, 4),
		"[a/1]":         txn.Newest("a/", "a/2", 9, 0),
		"[a/3 a/2 a/1]": txn.Newest("a/", "a0", 9, 0),
	} {
		resp, err := kv.Range(on(t), read)
		if err != nil || fmt.Sprint(keys(resp.Kvs)) != want {
			t.Errorf("it reads %v, %v, want %s", keys(resp.GetKvs()), err, want)
		}
	}
}

// store returns a Store that makes its requests to kv.
func store(t *testing.T, kv pb.KVClient) *txn.Store {
	all := new(tasks.Group)
	all.Begin()
	t.Cleanup(func() {
		all.End()
		all.Join()
	})
	return txn.New(txn.Config{
		KV: kv, Tasks: all, Base: t.Context(), HedgeDelay: time.Minute, InFlight: txn.InFlight,
		Closed:      func() error { return nil },
		Explain:     func(err error) error { return err },
		Interrupted: func(ctx context.Context) error { return txn.Ended(ctx, nil) },
	})
}

func TestReadSince_MakesAllReadsAtOneRevision(t *testing.T) {
	t.Parallel()
	server, kv := served(t)
	s := store(t, kv)
	for revision, want := range map[int64]string{
		0: "[false]",      // linearizable
		6: "[true]",       // what any member knows
		7: "[true false]", // the member is behind
	} {
		before := len(server.Calls(fakeetcd.Txn))
		resp, err := s.ReadSince(on(t), revision, func() []*pb.RangeRequest {
			return []*pb.RangeRequest{txn.RevisionsOf("b"), txn.Newest("a/", "a0", 2, 0), txn.Get("none")}
		})
		if err != nil {
			t.Fatal(err)
		}
		if got := fmt.Sprint(keys(txn.Found(resp, 0)), keys(txn.Found(resp, 1)), keys(txn.Found(resp, 2))); got != "[b] [a/3 a/2] []" || resp.Header.Revision != 6 {
			t.Errorf("it reads %s at %d", got, resp.Header.Revision)
		}
		var local []bool
		for _, call := range server.Calls(fakeetcd.Txn)[before:] {
			reads := call.Request.(*pb.TxnRequest).Success
			for _, op := range reads {
				if op.GetRequestRange().Serializable != reads[0].GetRequestRange().Serializable {
					t.Error("some of the reads are linearizable, and others are not")
				}
			}
			local = append(local, reads[0].GetRequestRange().Serializable)
		}
		if got := fmt.Sprint(local); got != want {
			t.Errorf("since %d any member was asked: %v, want %v", revision, got, want)
		}
	}
}

// canceling ends a context when a transaction is answered.
type canceling struct {
	pb.KVClient
	cancel context.CancelFunc
}

func (k canceling) Txn(ctx context.Context, in *pb.TxnRequest, opts ...grpc.CallOption) (*pb.TxnResponse, error) {
	resp, err := k.KVClient.Txn(ctx, in, opts...)
	k.cancel()
	return resp, err
}

func TestReadSince_ReturnsNothingOlderThoughItsContextHasEnded(t *testing.T) {
	t.Parallel()
	_, kv := served(t)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	resp, err := store(t, canceling{kv, cancel}).ReadSince(ctx, 7, func() []*pb.RangeRequest { return []*pb.RangeRequest{txn.Get("b")} })
	if err == nil {
		t.Errorf("it returns what was so at %d", resp.Header.Revision)
	}
}
