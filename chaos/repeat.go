package main

import (
	"bufio"
	"context"
	"io"
	"math/rand/v2"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// repeats makes etcd's client repeat transactions by itself, as it does when something on the way answers
// one with the code Canceled though it goes on to etcd: there it is applied twice, or long after it was
// repeated.
type repeats struct {
	until  atomic.Int64  // an instant; before it, some transactions are answered so
	latest time.Duration // that one comes late, at most
	late   sync.WaitGroup
}

// dialOption installs r. It stands inside the retries of etcd's client.
func (r *repeats) dialOption() grpc.DialOption { return grpc.WithChainUnaryInterceptor(r.intercept) }

// join waits for the transactions that are still to come.
func (r *repeats) join() { r.late.Wait() }

var errMiddlebox = status.Error(codes.Canceled, "something on the way has cancelled it")

func (r *repeats) intercept(ctx context.Context, method string, req, reply any, conn *grpc.ClientConn, invoke grpc.UnaryInvoker, opts ...grpc.CallOption) error {
	if method != pb.KV_Txn_FullMethodName || now() >= instant(r.until.Load()) || rand.IntN(repeatedOf) > 0 {
		return invoke(ctx, method, req, reply, conn, opts...)
	}
	if rand.IntN(2) == 0 {
		if err := invoke(ctx, method, req, new(pb.TxnResponse), conn, opts...); err != nil {
			return err
		}
		return errMiddlebox
	}
	// It is on its way: for gRPC the call is over, and nothing is told to its caller any more.
	var rest []grpc.CallOption
	for _, o := range opts {
		switch o := o.(type) {
		case grpc.OnFinishCallOption:
			o.OnFinish(errMiddlebox)
		case grpc.PeerCallOption, grpc.HeaderCallOption, grpc.TrailerCallOption:
		default:
			rest = append(rest, o)
		}
	}
	after := time.Duration(1 + rand.Int64N(int64(r.latest)))
	r.late.Go(func() {
		time.Sleep(after)
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), r.latest)
		defer cancel()
		_ = invoke(ctx, method, req, new(pb.TxnResponse), conn, rest...) // nobody waits for its answer
	})
	return errMiddlebox
}

// repeatedOf says of how many transactions one is answered with Canceled.
const repeatedOf = 4

// orderRepeat is a line that the harness may send a client process after its target: repeat writes until
// that instant.
const orderRepeat = "repeat"

// obey follows the orders of the harness until there are no more.
func obey(orders io.Reader, r *repeats) {
	for all := bufio.NewScanner(orders); all.Scan(); {
		what, until, _ := strings.Cut(all.Text(), " ")
		if n, err := strconv.ParseInt(until, 10, 64); err == nil && what == orderRepeat {
			r.until.Store(n)
		}
	}
}

// repeatWrites lets the process in the slot repeat some of its writes, for a while.
func (s *scene) repeatWrites(ctx context.Context, f *firing) error {
	err := s.slots[f.Target].tell(orderRepeat + " " + strconv.FormatInt(int64(now().add(f.For)), 10))
	_ = pause(ctx, f.For)
	return err
}
