package locker

import (
	"sync/atomic"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
)

// timeline is what etcd's answers to a session have told of the cluster. From it a session
// notices that a backup was restored: what it knows of its entries is no longer so.
type timeline struct {
	cluster  atomic.Uint64 // its ID; 0 until it is known
	revision atomic.Int64  // the largest so far
}

// now returns what an answer to a request that is sent now must not fall behind.
func (t *timeline) now() (revision int64) { return t.revision.Load() }

// saw takes in the header of an answer.
func (t *timeline) saw(header *pb.ResponseHeader) {
	if header == nil {
		return
	}
	t.cluster.CompareAndSwap(0, header.ClusterId)
	for seen := t.revision.Load(); header.Revision > seen && !t.revision.CompareAndSwap(seen, header.Revision); {
		seen = t.revision.Load()
	}
}

// follows reports whether an answer is of the same cluster, and not behind what was seen
// before its request was sent. A member that lags fills the headers of its answers about
// leases with a revision that is; of a linearizable read, and of a write, that is proof.
// Proxies may leave headers empty.
func (t *timeline) follows(header *pb.ResponseHeader, before int64) bool {
	if header == nil || header.Revision == 0 {
		return true
	}
	return header.Revision >= before && t.same(header)
}

// same reports whether an answer is of the same cluster.
func (t *timeline) same(header *pb.ResponseHeader) bool {
	cluster := t.cluster.Load()
	return cluster == 0 || header.ClusterId == 0 || header.ClusterId == cluster
}
