package locktest

import (
	"slices"
	"strings"
	"sync"
	"testing"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/jagregory/locker/v2"
)

// ErrReplyLost is what a client gets when the connection breaks during a request.
var ErrReplyLost = status.Error(codes.Unavailable, "reply lost")

// Enqueues reports whether a request puts an entry into the queue of name.
func Enqueues(req any, name string) bool {
	txn, _ := req.(*pb.TxnRequest)
	for _, op := range txn.GetSuccess() {
		if strings.HasPrefix(string(op.GetRequestPut().GetKey()), locker.DefaultPrefix+name+"/") {
			return true
		}
	}
	return false
}

// Releases reports whether a request deletes an entry from the queue of name.
func Releases(req any, name string) bool {
	txn, _ := req.(*pb.TxnRequest)
	for _, op := range txn.GetSuccess() {
		if strings.HasPrefix(string(op.GetRequestDeleteRange().GetKey()), locker.DefaultPrefix+name+"/") {
			return true
		}
	}
	return false
}

// LateRequests holds transactions that a client has given up, as a leader does
// that was frozen while it processed them.
type LateRequests struct {
	mu   sync.Mutex // guards what follows
	txns []*pb.TxnRequest
	held chan struct{} // closed when there is one; made by First
}

// First returns a channel that is closed once a request is held.
func (r *LateRequests) First() <-chan struct{} {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.held == nil {
		r.held = make(chan struct{})
		if len(r.txns) > 0 {
			close(r.held)
		}
	}
	return r.held
}

// Hold holds req, and fails like a request that was never answered.
func (r *LateRequests) Hold(req any) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.txns = append(r.txns, req.(*pb.TxnRequest))
	if len(r.txns) == 1 && r.held != nil {
		close(r.held)
	}
	return status.Error(codes.Unavailable, "no answer")
}

// Requests returns the transactions that are held.
func (r *LateRequests) Requests() []*pb.TxnRequest {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Clone(r.txns)
}

// Arrive has etcd process what is held, and returns how many took effect.
func (r *LateRequests) Arrive(t testing.TB, etcd *clientv3.Client) (effective int) {
	t.Helper()
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(r.txns) == 0 {
		t.Fatal("no request was held")
	}
	for _, txn := range r.txns {
		resp, err := pb.NewKVClient(etcd.ActiveConnection()).Txn(Within(t), txn)
		if err != nil {
			t.Logf("refused: %v", err)
		} else if resp.Succeeded {
			effective++
		}
	}
	return effective
}
