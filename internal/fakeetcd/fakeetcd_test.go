package fakeetcd_test

import (
	"context"
	"fmt"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/goleak"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"pgregory.net/rapid"

	"github.com/jagregory/locker/v2/embedtest"
	"github.com/jagregory/locker/v2/internal/fakeetcd"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// lifetime of a lease, in seconds: longer than the test.
const lifetime = 1000

func TestServer_AnswersAsEtcdDoes(t *testing.T) {
	t.Parallel()
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	server := fakeetcd.New()
	t.Cleanup(server.Close)
	fake, err := server.Connect()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = fake.Close() })
	etcd := embedtest.Start(t).Client(t)
	var sequences atomic.Int64
	rapid.Check(t, func(rt *rapid.T) {
		s := sequence{T: rt, number: sequences.Add(1)}
		for i, etcd := range []*clientv3.Client{etcd, fake} {
			conn := etcd.ActiveConnection()
			s.sides[i] = side{KVClient: pb.NewKVClient(conn), LeaseClient: pb.NewLeaseClient(conn)}
			empty, err := s.sides[i].Range(ctx, s.everything())
			if err != nil {
				rt.Fatal(err)
			}
			s.sides[i].before = empty.Header.Revision - 1
		}
		for range rapid.IntRange(10, 40).Draw(rt, "requests") {
			s.compare(ctx, s.request())
			state := s.compare(ctx, s.everything())
			s.present = state.(*pb.RangeResponse).Kvs
		}
	})
}

// side is one of the two that are compared.
type side struct {
	pb.KVClient
	pb.LeaseClient
	before int64 // revisions are counted from here, so that the first is 1
}

// sequence is a sequence of requests to both sides, with keys and leases of its own.
type sequence struct {
	*rapid.T
	number  int64
	sides   [2]side
	present []*mvccpb.KeyValue // after the last request
}

// compare makes a request to both sides, and returns the answer on which they must agree.
func (s *sequence) compare(ctx context.Context, request proto.Message) proto.Message {
	want, refused := s.sides[0].ask(ctx, request)
	got, err := s.sides[1].ask(ctx, request)
	if w, g := status.Convert(refused), status.Convert(err); w.Code() != g.Code() || w.Message() != g.Message() {
		s.Fatalf("%v\netcd:  %v\nfake:  %v", request, refused, err)
	}
	if refused == nil && !proto.Equal(want, got) {
		s.Fatalf("%T %v\netcd:  %v\nfake:  %v", request, request, want, got)
	}
	return want
}

// ask makes a request. Its revisions, and those of the answer, are relative.
func (s side) ask(ctx context.Context, request proto.Message) (answer proto.Message, err error) {
	request = proto.Clone(request)
	shift(request.ProtoReflect(), s.before)
	switch r := request.(type) {
	case *pb.RangeRequest:
		answer, err = s.Range(ctx, r)
	case *pb.TxnRequest:
		answer, err = s.Txn(ctx, r)
	case *pb.LeaseGrantRequest:
		answer, err = s.LeaseGrant(ctx, r)
	case *pb.LeaseRevokeRequest:
		answer, err = s.LeaseRevoke(ctx, r)
	case *pb.LeaseKeepAliveRequest:
		answer, err = s.keepAlive(ctx, r)
	case *pb.LeaseTimeToLiveRequest:
		answer, err = s.timeToLive(ctx, r)
	default:
		err = fmt.Errorf("unexpected request: %T", r)
	}
	if err != nil {
		return nil, err
	}
	shift(answer.ProtoReflect(), -s.before)
	return answer, nil
}

func (s side) keepAlive(ctx context.Context, r *pb.LeaseKeepAliveRequest) (*pb.LeaseKeepAliveResponse, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stream, err := s.LeaseKeepAlive(ctx)
	if err != nil {
		return nil, err
	}
	_ = stream.Send(r) // Recv reports why it failed
	return stream.Recv()
}

// timeToLive hides what may differ between the two: how many seconds have passed, and the
// order of the keys.
func (s side) timeToLive(ctx context.Context, r *pb.LeaseTimeToLiveRequest) (*pb.LeaseTimeToLiveResponse, error) {
	answer, err := s.LeaseTimeToLive(ctx, r)
	if err != nil {
		return nil, err
	}
	if answer.TTL > 0 && answer.TTL <= answer.GrantedTTL {
		answer.TTL = answer.GrantedTTL
	}
	slices.SortFunc(answer.Keys, slices.Compare)
	return answer, nil
}

// shift adds to all revisions in a message except 0, and clears what identifies the server.
func shift(m protoreflect.Message, by int64) {
	m.Range(func(field protoreflect.FieldDescriptor, value protoreflect.Value) bool {
		switch field.Name() {
		case "cluster_id", "member_id", "raft_term":
			m.Clear(field)
		case "revision", "create_revision", "mod_revision", "max_create_revision":
			if value.Int() != 0 {
				m.Set(field, protoreflect.ValueOfInt64(value.Int()+by))
			}
		}
		switch {
		case field.Message() == nil:
		case field.IsList():
			for i := range value.List().Len() {
				shift(value.List().Get(i).Message(), by)
			}
		default:
			shift(value.Message(), by)
		}
		return true
	})
}

// names has one that begins with another, to test the ends of ranges. No queue of Locker begins with another.
var names = []string{"a/1", "a/2", "a/10", "b/1", "b/2", "/1"}

func (s *sequence) prefix() string { return fmt.Sprintf("%d/", s.number) }

func (s *sequence) below(prefix string) *pb.RangeRequest {
	prefix = s.prefix() + prefix
	return &pb.RangeRequest{Key: []byte(prefix), RangeEnd: []byte(clientv3.GetPrefixRangeEnd(prefix))}
}

func (s *sequence) everything() *pb.RangeRequest { return s.below("") }

func (s *sequence) key() []byte {
	return []byte(s.prefix() + rapid.SampledFrom(names).Draw(s.T, "key"))
}

func (s *sequence) lease() int64 { return s.number*10 + rapid.Int64Range(1, 3).Draw(s.T, "lease") }

// one reports true once in so many times.
func (s *sequence) one(in int, what string) bool { return rapid.IntRange(1, in).Draw(s.T, what) == in }

func (s *sequence) request() proto.Message {
	switch rapid.SampledFrom([]string{"txn", "txn", "txn", "txn", "range", "range", "grant", "grant", "revoke", "keep-alive", "time-to-live"}).Draw(s.T, "request") {
	case "txn":
		return s.txn(0)
	case "range":
		return s.read()
	case "grant":
		return &pb.LeaseGrantRequest{ID: s.lease(), TTL: lifetime}
	case "revoke":
		return &pb.LeaseRevokeRequest{ID: s.lease()}
	case "keep-alive":
		return &pb.LeaseKeepAliveRequest{ID: s.lease()}
	default:
		return &pb.LeaseTimeToLiveRequest{ID: s.lease(), Keys: !s.one(4, "without keys")}
	}
}

// span returns a key, or the range of all keys with a prefix.
func (s *sequence) span() (key, end []byte) {
	if !s.one(2, "below") {
		return s.key(), nil
	}
	r := s.below(rapid.SampledFrom([]string{"", "a/", "b/", "a/1", "c/"}).Draw(s.T, "prefix"))
	return r.Key, r.RangeEnd
}

// revision returns one of a key that is present, or any.
func (s *sequence) revision() int64 {
	if len(s.present) > 0 && !s.one(3, "any revision") {
		kv := rapid.SampledFrom(s.present).Draw(s.T, "present")
		return rapid.SampledFrom([]int64{kv.CreateRevision, kv.ModRevision}).Draw(s.T, "revision")
	}
	return rapid.Int64Range(0, 30).Draw(s.T, "revision")
}

func (s *sequence) read() *pb.RangeRequest {
	r := new(pb.RangeRequest)
	r.Key, r.RangeEnd = s.span()
	if s.one(2, "by create revision") {
		r.SortTarget = pb.RangeRequest_CREATE
		r.SortOrder = rapid.SampledFrom([]pb.RangeRequest_SortOrder{pb.RangeRequest_ASCEND, pb.RangeRequest_DESCEND}).Draw(s.T, "order")
	}
	if s.one(2, "limited") {
		r.Limit = rapid.Int64Range(1, 4).Draw(s.T, "limit")
	}
	if s.one(2, "up to a revision") {
		r.MaxCreateRevision = s.revision()
	}
	r.KeysOnly, r.CountOnly = s.one(3, "keys only"), s.one(4, "count only")
	return r
}

func (s *sequence) compares() (compares []*pb.Compare) {
	for range rapid.IntRange(0, 2).Draw(s.T, "compares") {
		c := &pb.Compare{Result: rapid.SampledFrom([]pb.Compare_CompareResult{pb.Compare_EQUAL, pb.Compare_LESS}).Draw(s.T, "result")}
		c.Key, c.RangeEnd = s.span()
		revision := int64(0)
		if !s.one(2, "absent") {
			revision = s.revision()
		}
		if s.one(2, "by mod revision") {
			c.Target, c.TargetUnion = pb.Compare_MOD, &pb.Compare_ModRevision{ModRevision: revision}
		} else {
			c.Target, c.TargetUnion = pb.Compare_CREATE, &pb.Compare_CreateRevision{CreateRevision: revision}
		}
		compares = append(compares, c)
	}
	return compares
}

func (s *sequence) txn(depth int) *pb.TxnRequest {
	return &pb.TxnRequest{Compare: s.compares(), Success: s.ops(depth), Failure: s.ops(depth)}
}

func (s *sequence) ops(depth int) (ops []*pb.RequestOp) {
	kinds := []string{"put", "put", "delete", "range", "txn"}
	if depth == 2 {
		kinds = kinds[:4]
	}
	for range rapid.IntRange(0, 3).Draw(s.T, "operations") {
		op := new(pb.RequestOp)
		switch rapid.SampledFrom(kinds).Draw(s.T, "operation") {
		case "put":
			put := &pb.PutRequest{Key: s.key(), Value: []byte(rapid.SampledFrom([]string{"x", "y", ""}).Draw(s.T, "value"))}
			if s.one(2, "with a lease") {
				put.Lease = s.lease()
			}
			op.Request = &pb.RequestOp_RequestPut{RequestPut: put}
		case "delete":
			op.Request = &pb.RequestOp_RequestDeleteRange{RequestDeleteRange: &pb.DeleteRangeRequest{Key: s.key()}}
		case "range":
			op.Request = &pb.RequestOp_RequestRange{RequestRange: s.read()}
		case "txn":
			op.Request = &pb.RequestOp_RequestTxn{RequestTxn: s.txn(depth + 1)}
		}
		ops = append(ops, op)
	}
	return ops
}
