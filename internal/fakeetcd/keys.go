package fakeetcd

import (
	"cmp"
	"context"
	"maps"
	"slices"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// Keys returns the keys that are there, in their order.
func (s *Server) Keys() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Sorted(maps.Keys(s.keys))
}

// Queue returns the keys that begin with prefix, the oldest first.
func (s *Server) Queue(prefix string) []*mvccpb.KeyValue {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.read(&pb.RangeRequest{
		Key: []byte(prefix), RangeEnd: []byte(clientv3.GetPrefixRangeEnd(prefix)),
		SortTarget: pb.RangeRequest_CREATE, SortOrder: pb.RangeRequest_ASCEND,
	}).Kvs
}

// Write puts a key, as another program would.
func (s *Server) Write(key, value string, id clientv3.LeaseID) {
	s.mu.Lock()
	defer s.mu.Unlock()
	w := s.begin()
	w.put(&pb.PutRequest{Key: []byte(key), Value: []byte(value), Lease: int64(id)})
	w.end()
}

// Delete deletes a key, as an operator would.
func (s *Server) Delete(key string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	w := s.begin()
	w.remove([]string{key})
	w.end()
}

// Range implements pb.KVServer.
func (s *Server) Range(ctx context.Context, r *pb.RangeRequest) (*pb.RangeResponse, error) {
	return serve(ctx, s, Range, r, func(Fate) (*pb.RangeResponse, error) { return s.read(r), nil })
}

// Txn implements pb.KVServer.
func (s *Server) Txn(ctx context.Context, r *pb.TxnRequest) (*pb.TxnResponse, error) {
	return serve(ctx, s, Txn, r, func(Fate) (*pb.TxnResponse, error) {
		if _, err := writtenBy(r.Success); err != nil {
			return nil, err
		}
		if _, err := writtenBy(r.Failure); err != nil {
			return nil, err
		}
		p, err := s.choose(r)
		if err == nil {
			err = s.check(p)
		}
		if err != nil {
			return nil, err
		}
		w := s.begin()
		resp := w.run(p)
		w.end()
		resp.Header = s.header()
		return resp, nil
	})
}

// within returns the keys that a range has, in their order.
func (s *Server) within(key, end []byte) (keys []string) {
	if len(end) == 0 {
		if _, ok := s.keys[string(key)]; ok {
			keys = []string{string(key)}
		}
		return keys
	}
	for k := range s.keys {
		if covers(key, end, k) {
			keys = append(keys, k)
		}
	}
	slices.Sort(keys)
	return keys
}

// covers reports whether a range has a key.
func covers(first, end []byte, key string) bool {
	if len(end) == 0 {
		return key == string(first)
	}
	return key >= string(first) && (key < string(end) || string(end) == "\x00")
}

func (s *Server) read(r *pb.RangeRequest) *pb.RangeResponse {
	resp := &pb.RangeResponse{Header: s.header()}
	keys := s.within(r.Key, r.RangeEnd)
	resp.Count = int64(len(keys)) // whatever is left out below
	if r.CountOnly {
		return resp
	}
	for _, key := range keys {
		if kv := s.keys[key]; r.MaxCreateRevision == 0 || kv.CreateRevision <= r.MaxCreateRevision {
			resp.Kvs = append(resp.Kvs, kv)
		}
	}
	if r.SortTarget == pb.RangeRequest_CREATE && r.SortOrder != pb.RangeRequest_NONE {
		direction := 1
		if r.SortOrder == pb.RangeRequest_DESCEND {
			direction = -1
		}
		slices.SortStableFunc(resp.Kvs, func(a, b *mvccpb.KeyValue) int {
			return direction * cmp.Compare(a.CreateRevision, b.CreateRevision)
		})
	}
	if limit := int(r.Limit); limit > 0 && limit < len(resp.Kvs) {
		resp.Kvs, resp.More = resp.Kvs[:limit], true
	}
	if r.KeysOnly { // since 3.7 that is without the lease
		for i, kv := range resp.Kvs {
			resp.Kvs[i] = &mvccpb.KeyValue{Key: kv.Key, CreateRevision: kv.CreateRevision, ModRevision: kv.ModRevision, Version: kv.Version}
		}
	}
	return resp
}

// plan is the way that a transaction takes. etcd decides that for nested ones as well
// before anything is written.
type plan struct {
	succeeded bool
	ops       []*pb.RequestOp
	nested    map[*pb.RequestOp]plan
}

func (s *Server) choose(r *pb.TxnRequest) (plan, error) {
	p := plan{succeeded: true, ops: r.Success, nested: make(map[*pb.RequestOp]plan)}
	for _, c := range r.Compare {
		holds, err := s.holds(c)
		if err != nil {
			return plan{}, err
		}
		p.succeeded = p.succeeded && holds
	}
	if !p.succeeded {
		p.ops = r.Failure
	}
	for _, op := range p.ops {
		if inner := op.GetRequestTxn(); inner != nil {
			var err error
			if p.nested[op], err = s.choose(inner); err != nil {
				return plan{}, err
			}
		}
	}
	return p, nil
}

// holds reports whether a compare is true of each key in its range, or of none.
func (s *Server) holds(c *pb.Compare) (bool, error) {
	var order func(*mvccpb.KeyValue) int // of the revision of a key and that of the compare
	switch target := c.TargetUnion.(type) {
	case *pb.Compare_CreateRevision:
		order = func(kv *mvccpb.KeyValue) int { return cmp.Compare(kv.GetCreateRevision(), target.CreateRevision) }
	case *pb.Compare_ModRevision:
		order = func(kv *mvccpb.KeyValue) int { return cmp.Compare(kv.GetModRevision(), target.ModRevision) }
	}
	want, ok := map[pb.Compare_CompareResult]int{pb.Compare_EQUAL: 0, pb.Compare_LESS: -1}[c.Result]
	if order == nil || !ok {
		return false, status.Errorf(codes.Unimplemented, "no such compare here: %v", c)
	}
	of := func(kv *mvccpb.KeyValue) bool { return order(kv) == want }
	keys := s.within(c.Key, c.RangeEnd)
	if len(keys) == 0 {
		return of(nil), nil
	}
	return !slices.ContainsFunc(keys, func(key string) bool { return !of(s.keys[key]) }), nil
}

// check returns why etcd refuses a transaction that goes this way.
func (s *Server) check(p plan) error {
	for _, op := range p.ops {
		if inner, ok := p.nested[op]; ok {
			if err := s.check(inner); err != nil {
				return err
			}
		}
		if id := op.GetRequestPut().GetLease(); id != 0 && s.leases[id] == nil {
			return rpctypes.ErrGRPCLeaseNotFound
		}
	}
	return nil
}

// written is what operations may write, whichever way their transactions go.
type written struct {
	puts    map[string]bool
	deletes []*pb.DeleteRangeRequest
}

// deleted reports whether a key may be deleted.
func (w written) deleted(key string) bool {
	return slices.ContainsFunc(w.deletes, func(r *pb.DeleteRangeRequest) bool { return covers(r.Key, r.RangeEnd, key) })
}

// writtenBy refuses operations that may put a key twice, or put and delete it. As in
// etcd, a delete nested in a transaction counts only for what comes after that, or is
// on the level above.
func writtenBy(ops []*pb.RequestOp) (written, error) {
	all := written{puts: make(map[string]bool)}
	for _, op := range ops {
		if r := op.GetRequestDeleteRange(); r != nil {
			all.deletes = append(all.deletes, r)
		}
	}
	for _, op := range ops {
		inner := op.GetRequestTxn()
		then, err := writtenBy(inner.GetSuccess())
		if err != nil {
			return all, err
		}
		otherwise, err := writtenBy(inner.GetFailure())
		if err != nil {
			return all, err
		}
		either := then.puts // of the two, only one is put
		maps.Copy(either, otherwise.puts)
		if err := all.put(either); err != nil {
			return all, err
		}
		all.deletes = slices.Concat(all.deletes, then.deletes, otherwise.deletes)
	}
	for _, op := range ops {
		if r := op.GetRequestPut(); r != nil {
			if err := all.put(map[string]bool{string(r.Key): true}); err != nil {
				return all, err
			}
		}
	}
	return all, nil
}

func (w written) put(keys map[string]bool) error {
	for key := range keys {
		if w.puts[key] || w.deleted(key) {
			return rpctypes.ErrGRPCDuplicateKey
		}
		w.puts[key] = true
	}
	return nil
}

// writing is what changes at one revision.
type writing struct {
	*Server
	events []*mvccpb.Event
}

// begin starts a change. The caller has the mutex until it ends.
func (s *Server) begin() *writing { return &writing{Server: s} }

// end makes the change one revision, if there is any, and sends it to the watches.
func (w *writing) end() {
	if len(w.events) > 0 {
		w.revision++
		w.publish(w.events)
	}
}

func (w *writing) run(p plan) *pb.TxnResponse {
	resp := &pb.TxnResponse{Header: new(pb.ResponseHeader), Succeeded: p.succeeded}
	for _, op := range p.ops {
		answer := new(pb.ResponseOp)
		switch r := op.Request.(type) {
		case *pb.RequestOp_RequestPut:
			w.put(r.RequestPut)
			answer.Response = &pb.ResponseOp_ResponsePut{ResponsePut: &pb.PutResponse{Header: w.now()}}
		case *pb.RequestOp_RequestDeleteRange:
			n := w.remove(w.within(r.RequestDeleteRange.Key, r.RequestDeleteRange.RangeEnd))
			answer.Response = &pb.ResponseOp_ResponseDeleteRange{ResponseDeleteRange: &pb.DeleteRangeResponse{Header: w.now(), Deleted: n}}
		case *pb.RequestOp_RequestRange:
			answer.Response = &pb.ResponseOp_ResponseRange{ResponseRange: w.readNow(r.RequestRange)}
		case *pb.RequestOp_RequestTxn:
			answer.Response = &pb.ResponseOp_ResponseTxn{ResponseTxn: w.run(p.nested[op])}
		}
		resp.Responses = append(resp.Responses, answer)
	}
	return resp
}

// now is the header of an operation: it has the new revision as soon as there is one.
func (w *writing) now() *pb.ResponseHeader {
	at := w.revision
	if len(w.events) > 0 {
		at++
	}
	return &pb.ResponseHeader{Revision: at}
}

func (w *writing) readNow(r *pb.RangeRequest) *pb.RangeResponse {
	resp := w.read(r)
	resp.Header = w.now()
	return resp
}

func (w *writing) put(r *pb.PutRequest) {
	key, at := string(r.Key), w.revision+1
	kv := &mvccpb.KeyValue{Key: r.Key, Value: r.Value, Lease: r.Lease, CreateRevision: at, ModRevision: at, Version: 1}
	if old := w.keys[key]; old != nil {
		kv.CreateRevision, kv.Version = old.CreateRevision, old.Version+1
	}
	w.keys[key] = kv
	w.events = append(w.events, &mvccpb.Event{Type: mvccpb.Event_PUT, Kv: kv})
}

func (w *writing) remove(keys []string) (n int64) {
	for _, key := range keys {
		if _, ok := w.keys[key]; ok {
			delete(w.keys, key)
			n++
			gone := &mvccpb.KeyValue{Key: []byte(key), ModRevision: w.revision + 1}
			w.events = append(w.events, &mvccpb.Event{Type: mvccpb.Event_DELETE, Kv: gone})
		}
	}
	return n
}
