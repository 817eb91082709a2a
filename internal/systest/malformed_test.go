package systest

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"sync"
	"testing"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/grpc"

	"github.com/jagregory/locker/v2"
	"github.com/jagregory/locker/v2/embedtest"
	"github.com/jagregory/locker/v2/internal/locktest"
)

// maiming removes something from every third answer that has something to lose, and from
// each that can lose what none has lost yet.
type maiming struct {
	mu      sync.Mutex     // guards what follows
	answers int            // that had something to lose
	maimed  map[string]int // by what they lost
}

func (m *maiming) maim(answer any) {
	m.mu.Lock()
	defer m.mu.Unlock()
	possible := losses(answer)
	if len(possible) == 0 {
		return
	}
	// Of what the answer can lose, it loses what was lost least often before.
	what := slices.MinFunc(slices.Sorted(maps.Keys(possible)), func(a, b string) int { return m.maimed[a] - m.maimed[b] })
	if m.answers++; m.answers%3 == 0 || m.maimed[what] == 0 {
		possible[what]()
		m.maimed[what]++
	}
}

// losses returns what an answer can lose, each with a function that removes it.
func losses(answer any) map[string]func() {
	can := make(map[string]func())
	switch answer := answer.(type) {
	case *pb.TxnResponse:
		can["header of a transaction"] = func() { answer.Header = nil }
		can["number of results"] = func() { answer.Responses = append(answer.Responses, new(pb.ResponseOp)) }
		for i, op := range answer.Responses {
			if op.GetResponseRange() != nil {
				can["range of a transaction"] = func() { answer.Responses[i] = new(pb.ResponseOp) }
			}
			if nested := op.GetResponseTxn(); nested != nil && len(nested.Responses) > 0 {
				can["nested results"] = func() { nested.Responses = nil }
			}
		}
	case *pb.RangeResponse:
		can["header of a range"] = func() { answer.Header = nil }
	case *pb.WatchResponse:
		can["header of a watch"] = func() { answer.Header = nil }
		if len(answer.Events) > 0 {
			can["key of an event"] = func() { answer.Events[0].Kv = nil }
		}
	}
	return can
}

// options make an etcd client maim what it receives.
func (m *maiming) options() []grpc.DialOption {
	return []grpc.DialOption{
		grpc.WithChainUnaryInterceptor(func(ctx context.Context, method string, req, reply any, conn *grpc.ClientConn, invoke grpc.UnaryInvoker, opts ...grpc.CallOption) error {
			err := invoke(ctx, method, req, reply, conn, opts...)
			m.maim(reply)
			return err
		}),
		grpc.WithChainStreamInterceptor(func(ctx context.Context, desc *grpc.StreamDesc, conn *grpc.ClientConn, method string, open grpc.Streamer, opts ...grpc.CallOption) (grpc.ClientStream, error) {
			stream, err := open(ctx, desc, conn, method, opts...)
			return maimedStream{stream, m}, err
		}),
	}
}

type maimedStream struct {
	grpc.ClientStream
	*maiming
}

func (s maimedStream) RecvMsg(answer any) error {
	err := s.ClientStream.RecvMsg(answer)
	s.maim(answer)
	return err
}

func TestWire_AMalformedAnswerCountsAsNone(t *testing.T) {
	t.Parallel()
	server := embedtest.Start(t)
	m := &maiming{maimed: make(map[string]int)}
	config := server.ClientConfig()
	config.DialOptions = append(config.DialOptions, m.options()...)
	etcd, err := clientv3.New(config)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = etcd.Close() })
	maimed, sound := locktest.NewClient(t, etcd), locktest.NewClient(t, server.Client(t))
	ctx := locktest.Within(t)
	for i := range 8 {
		value := fmt.Sprint(i)
		before, err := sound.Lock(ctx, "a", value)
		if err != nil {
			t.Fatal(err)
		}
		const waiters = 6
		errs := make(chan error, 3*waiters)
		for j := range waiters {
			go func() {
				own := fmt.Sprint("own ", j) // locks of different names are sent together
				errs <- maimed.Do(ctx, own, "", func(context.Context, *locker.Lock) error { return nil })
				// The answers of one lock of several names have nested results.
				errs <- maimed.Do(ctx, own, "", func(_ context.Context, l *locker.Lock) error { return l.Err() }, locker.And("together", "", locker.WithLimit(2)))
				errs <- maimed.Do(ctx, "a", value, func(ctx context.Context, l *locker.Lock) error {
					holder, err := maimed.Get(ctx, "a")
					if err == nil && holder.Token != l.Token() {
						err = fmt.Errorf("%d holds token %d, and %d was found", i, l.Token(), holder.Token)
					}
					return err
				})
			}()
		}
		if err := before.Unlock(ctx); err != nil {
			t.Fatal(err)
		}
		for range 2 * waiters {
			if err := <-errs; err != nil {
				t.Fatal(err)
			}
		}
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, what := range []string{
		"header of a transaction", "number of results", "range of a transaction", "nested results",
		"header of a range", "header of a watch", "key of an event",
	} {
		if m.maimed[what] == 0 {
			t.Errorf("no answer lost its %s", what)
		}
	}
}

// joined returns an answer in which an entry was put into a queue that was not empty, nil if
// it is none.
func joined(reply any) *pb.TxnResponse {
	resp, ok := reply.(*pb.TxnResponse)
	if !ok || !resp.Succeeded || len(resp.Responses) != 2 || len(resp.Responses[1].GetResponseRange().GetKvs()) < 2 {
		return nil
	}
	return resp
}

func TestLock_WhoseAnswerLacksWhatIsAheadAsksAgain(t *testing.T) {
	t.Parallel()
	b := locktest.Setup(t)
	held := locktest.Lock(t, b.Client(t), "a", "")
	lost, again := make(chan struct{}), make(chan struct{})
	lose, ask := sync.OnceFunc(func() { close(lost) }), sync.OnceFunc(func() { close(again) })
	config := b.Server.ClientConfig()
	config.DialOptions = append(config.DialOptions, grpc.WithChainUnaryInterceptor(
		func(ctx context.Context, method string, req, reply any, conn *grpc.ClientConn, invoke grpc.UnaryInvoker, opts ...grpc.CallOption) error {
			select {
			case <-lost:
				ask()
			default:
			}
			err := invoke(ctx, method, req, reply, conn, opts...)
			if join := joined(reply); join != nil && locktest.Enqueues(req, "a") {
				losses(join)["range of a transaction"]()
				lose()
			}
			return err
		}))
	etcd, err := clientv3.New(config)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = etcd.Close() })
	result := locktest.LockAsync(locktest.Within(t), locktest.NewClient(t, etcd), "a", "")
	select {
	case <-again:
	case o := <-result:
		t.Fatalf("it took the missing answer for an empty one: %v, %v", o.Lock, o.Err)
	case <-locktest.Within(t).Done():
		t.Fatal("it has not asked again")
	}
	locktest.Unlock(t, held)
	if o := locktest.Receive(t, result); o.Err != nil || o.Lock.Token() <= held.Token() {
		t.Errorf("after the release: %v", o.Err)
	}
}
