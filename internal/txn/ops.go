package txn

import (
	"bytes"
	"errors"
	"math"
	"slices"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"
	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/grpc"
)

// What Locker asks of etcd's key-value store, in etcd's own messages: the operations of
// its client would become the same, after being copied several times.

// CallOptions are those of etcd's client, except for its limit on the size of a request:
// etcd has a limit of its own. The limits of a clientv3.Config cannot be read from a
// client.
var CallOptions = []grpc.CallOption{grpc.WaitForReady(true), grpc.MaxCallRecvMsgSize(math.MaxInt32)}

// CmpCreate compares the create revision of key with revision. A key that does not exist
// has create revision 0.
func CmpCreate(key string, revision int64) *pb.Compare {
	return &pb.Compare{
		Key:         []byte(key),
		Target:      pb.Compare_CREATE,
		TargetUnion: &pb.Compare_CreateRevision{CreateRevision: revision},
	}
}

// CmpMod compares the mod revision of key with revision. A key that does not exist has mod
// revision 0.
func CmpMod(key string, revision int64) *pb.Compare {
	return &pb.Compare{
		Key:         []byte(key),
		Target:      pb.Compare_MOD,
		TargetUnion: &pb.Compare_ModRevision{ModRevision: revision},
	}
}

// CmpNone holds if there is no key from from on and before to.
func CmpNone(from, to string) *pb.Compare {
	none := CmpCreate(from, 0)
	none.RangeEnd = []byte(to)
	return none
}

// CmpNoneSince holds if none of the keys from from on and before to was created after the
// revision.
func CmpNoneSince(from, to string, revision int64) *pb.Compare {
	older := CmpCreate(from, revision+1)
	older.RangeEnd, older.Result = []byte(to), pb.Compare_LESS
	return older
}

// OpPut puts key with value, attached to lease.
func OpPut(key, value string, lease clientv3.LeaseID) *pb.RequestOp {
	return &pb.RequestOp{Request: &pb.RequestOp_RequestPut{
		RequestPut: &pb.PutRequest{Key: []byte(key), Value: []byte(value), Lease: int64(lease)},
	}}
}

// OpDelete deletes key.
func OpDelete(key string) *pb.RequestOp {
	return &pb.RequestOp{Request: &pb.RequestOp_RequestDeleteRange{
		RequestDeleteRange: &pb.DeleteRangeRequest{Key: []byte(key)},
	}}
}

// OpRange makes a read part of a transaction. Found returns what it has read.
func OpRange(read *pb.RangeRequest) *pb.RequestOp {
	return &pb.RequestOp{Request: &pb.RequestOp_RequestRange{RequestRange: read}}
}

// OpTxn makes a transaction part of another.
func OpTxn(request *pb.TxnRequest) *pb.RequestOp {
	return &pb.RequestOp{Request: &pb.RequestOp_RequestTxn{RequestTxn: request}}
}

// Get reads key.
func Get(key string) *pb.RangeRequest { return &pb.RangeRequest{Key: []byte(key)} }

// RevisionsOf reads a key without its value.
func RevisionsOf(key string) *pb.RangeRequest {
	return &pb.RangeRequest{Key: []byte(key), KeysOnly: true}
}

// Oldest reads the key with the smallest create revision from from on and before to.
func Oldest(from, to string) *pb.RangeRequest {
	read := &pb.RangeRequest{Key: []byte(from), RangeEnd: []byte(to), Limit: 1}
	read.SortTarget, read.SortOrder = pb.RangeRequest_CREATE, pb.RangeRequest_ASCEND
	return read
}

// Newest reads the keys, without their values, with the n largest create revisions from from
// on and before to; if revision is not 0, those that were created at it or before.
func Newest(from, to string, n int, revision int64) *pb.RangeRequest {
	read := &pb.RangeRequest{Key: []byte(from), RangeEnd: []byte(to), Limit: int64(n), KeysOnly: true, MaxCreateRevision: revision}
	read.SortTarget, read.SortOrder = pb.RangeRequest_CREATE, pb.RangeRequest_DESCEND
	return read
}

// rangeEnd returns the end of the range of all keys that begin with prefix.
func rangeEnd(prefix string) []byte { return []byte(clientv3.GetPrefixRangeEnd(prefix)) }

// ErrMalformed is the error of an answer that lacks what etcd's answers always have. Like
// an answer that never came, it says nothing about what became of the request.
var ErrMalformed = errors.New("malformed answer")

// complete reports whether an answer has a result for each operation of its transaction.
func complete(request *pb.TxnRequest, resp *pb.TxnResponse) bool {
	ops := request.Failure
	if resp.Succeeded {
		ops = request.Success
	}
	if len(resp.Responses) != len(ops) {
		return false
	}
	for i, op := range ops {
		answered := true
		switch asked := op.Request.(type) {
		case *pb.RequestOp_RequestRange:
			answered = resp.Responses[i].GetResponseRange() != nil
		case *pb.RequestOp_RequestTxn:
			own := resp.Responses[i].GetResponseTxn()
			answered = own != nil && complete(asked.RequestTxn, own)
		}
		if !answered {
			return false
		}
	}
	return true
}

// Found returns what the i-th operation of a transaction, an OpRange, has read.
func Found(resp *pb.TxnResponse, i int) []*mvccpb.KeyValue {
	return resp.Responses[i].GetResponseRange().GetKvs()
}

// WritesAny reports whether any of the operations is not just a read.
func WritesAny(ops []clientv3.Op) bool {
	return slices.ContainsFunc(ops, func(op clientv3.Op) bool {
		if op.IsTxn() {
			_, success, failure := op.Txn()
			return WritesAny(success) || WritesAny(failure)
		}
		return !op.IsGet()
	})
}

// Writes reports whether a put or a delete covers key. A range without an end is a single
// key; one with the end "\x00" has all keys from its beginning on.
func Writes(op clientv3.Op, key string) bool {
	from, end, k := op.KeyBytes(), op.RangeBytes(), []byte(key)
	switch {
	case op.IsPut() || len(end) == 0:
		return bytes.Equal(from, k)
	case len(end) == 1 && end[0] == 0:
		return bytes.Compare(from, k) <= 0
	}
	return bytes.Compare(from, k) <= 0 && bytes.Compare(k, end) < 0
}
