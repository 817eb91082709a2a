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

// repeats makes etcd's client repeat transactions by itself. The client does so when a
// middlebox answers a transaction with the code Canceled but still forwards it: etcd then
// applies both, one possibly long after the other.
type repeats struct {
	until    atomic.Int64  // the instant until which some transactions are answered with Canceled
	maxDelay time.Duration // of transactions that are forwarded late
	late     sync.WaitGroup
}

// dialOption installs r below the retries of etcd's client.
func (r *repeats) dialOption() grpc.DialOption { return grpc.WithChainUnaryInterceptor(r.intercept) }

// join waits for the transactions that are still delayed.
func (r *repeats) join() { r.late.Wait() }

var errMiddlebox = status.Error(codes.Canceled, "canceled by a middlebox")

func (r *repeats) intercept(ctx context.Context, method string, req, reply any, conn *grpc.ClientConn, invoke grpc.UnaryInvoker, opts ...grpc.CallOption) error {
	if method != pb.KV_Txn_FullMethodName || now() >= instant(r.until.Load()) || rand.IntN(repeatOneIn) > 0 {
		return invoke(ctx, method, req, reply, conn, opts...)
	}
	if rand.IntN(2) == 0 {
		if err := invoke(ctx, method, req, new(pb.TxnResponse), conn, opts...); err != nil {
			return err
		}
		return errMiddlebox
	}
	// For gRPC the call is over: what is forwarded must not report to its caller.
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
	after := time.Duration(1 + rand.Int64N(int64(r.maxDelay)))
	r.late.Go(func() {
		time.Sleep(after)
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), r.maxDelay)
		defer cancel()
		_ = invoke(ctx, method, req, new(pb.TxnResponse), conn, rest...) // nobody waits for the answer
	})
	return errMiddlebox
}

// repeatOneIn is the number of transactions of which one is answered with Canceled.
const repeatOneIn = 4

// orderRepeat begins a line that the harness may send to a client process: repeat writes
// until the instant that follows.
const orderRepeat = "repeat"

// readOrders follows the orders of the harness until the input ends.
func readOrders(orders io.Reader, r *repeats) {
	for all := bufio.NewScanner(orders); all.Scan(); {
		what, when, _ := strings.Cut(all.Text(), " ")
		if n, err := strconv.ParseInt(when, 10, 64); err == nil && what == orderRepeat {
			r.until.Store(n)
		}
	}
}

// repeatWrites makes a process repeat some of its writes for a while.
func (s *scene) repeatWrites(ctx context.Context, f *firing) error {
	err := s.slots[f.Target].send(orderRepeat + " " + strconv.FormatInt(int64(now().add(f.For)), 10))
	_ = pause(ctx, f.For)
	return err
}
