package locker

import (
	"context"
	"errors"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// The one scale of waiting for an answer, for requests, renewals and watches alike: an
// eighth of the TTL within these bounds. Three of the longest make a hand-over past a
// frozen member, which so takes less than 3 s however long the TTL is.
const (
	shortestHedgeDelay = 200 * time.Millisecond
	longestHedgeDelay  = 800 * time.Millisecond

	quickHedges          = 3                // before the intervals grow: each may have met the same member
	longestHedgeInterval = 10 * time.Second // to which they grow
)

// slowestLink is the bandwidth, in bytes a second, down to which nothing that is large
// is hedged while it is on its way.
const slowestLink = 128 << 10

// allowance is how long size bytes take on the slowest link.
func allowance(size int) time.Duration { return time.Duration(size) * time.Second / slowestLink }

// cleanUpTime is how long an attempt goes on that nobody waits for any more: usually it
// is answered, and leaves no doubt.
func (c *Client) cleanUpTime() time.Duration { return 4 * c.hedgeDelay }

// hedge makes a request in this goroutine and, while it has no answer after the hedge
// delay and an allowance for its size, once more beside it, which the balancer sends to
// another member: so a member that is frozen or cut off costs that delay. The first
// certain answer counts. The first attempt lives as long as ctx, to give a slow link its
// time; the second is replaced at growing intervals; so there are never more than two.
// What has no answer then is cut off after grace.
func hedge[T any](ctx context.Context, c *Client, allowance, grace time.Duration, attempt func(context.Context) (T, error)) (answer T, err error) {
	type outcome struct {
		answer T
		err    error
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	first, drop := context.WithCancel(ctx)
	defer drop()
	var (
		answered atomic.Bool           // the first attempt was
		failed   = make(chan struct{}) // closed when it has failed
		second   = make(chan outcome, 1)
		interval = c.hedgeDelay + allowance
	)
	// again is one attempt beside the first, and reports whether another is of use.
	again := func() bool {
		ctx, stop := context.WithTimeout(ctx, interval)
		defer stop()
		long := c.tasks.after(c.hedgeDelay, c.hedging.leave)
		answer, err := attempt(ctx)
		if long.stop() {
			c.hedging.leave()
		}
		certain := err == nil || !transient(err)
		c.hedging.judge(certain, answered.Load())
		if certain {
			second <- outcome{answer, err}
			return false
		}
		select {
		case <-ctx.Done(): // it may have failed at once
			return true
		case <-failed:
			return false
		}
	}
	timer := c.tasks.after(interval, func() {
		defer close(second)
		for n := 1; c.hedging.wait(ctx, c.hedgeDelay/2) && again(); n++ {
			if n >= quickHedges {
				interval = min(2*interval, longestHedgeInterval+allowance)
			}
		}
		if len(second) > 0 {
			_ = sleep(ctx, grace)
			drop()
		}
	})
	answer, err = attempt(first)
	if timer.stop() {
		return answer, err
	}
	if err == nil || !transient(err) {
		answered.Store(true)
		late, stop := context.WithTimeout(ctx, grace)
		defer stop()
		select {
		case <-second: // be it only to leave no doubt
		case <-late.Done():
		}
		return answer, err
	}
	close(failed)
	if o, ok := <-second; ok {
		return o.answer, o.err
	}
	return answer, err
}

// hedging bounds how many requests of a client are hedged within a hedge delay. A hedge
// that is answered first has helped, and more may follow; one that is not has found nothing
// but a slow link, and burdened it. (gRPC's own hedging has retry throttling for that.)
type hedging struct {
	mu     sync.Mutex // guards what follows
	window int        // how many may be new: under way, and not for longer than the hedge delay
	fresh  int
}

const (
	fewestHedges = 4
	firstHedges  = 8
	mostHedges   = 1 << 12
)

// wait counts a hedge in when there is room, and reports false if ctx has ended before.
func (h *hedging) wait(ctx context.Context, interval time.Duration) bool {
	for ctx.Err() == nil {
		if h.begin() {
			return true
		}
		_ = sleep(ctx, interval)
	}
	return false
}

func (h *hedging) begin() bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.fresh >= h.window {
		return false
	}
	h.fresh++
	return true
}

// leave counts out a hedge that has ended, or is not new any more.
func (h *hedging) leave() {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.fresh--
}

// judge takes in what became of a hedge: helped tells that it was answered, and late that
// the request was answered without it.
func (h *hedging) judge(helped, late bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	switch {
	case late:
		h.window = max(fewestHedges, h.window/2)
	case helped:
		h.window = min(2*h.window, mostHedges)
	}
}

// sendings is the context of one request that finds out whether etcd's client has sent
// it more than once. It does so by itself, with writes too, when an answer has the code
// Canceled or DeadlineExceeded while the context lives, and does not say so
// (client/v3/retry_interceptor.go). gRPC tells of each request that it finishes. One
// that ended before it came to gRPC is known by the question for the context's error,
// which nobody asks in the middle of a request that goes well.
type sendings struct {
	context.Context
	finished atomic.Int32
	asked    atomic.Bool
}

func (s *sendings) Err() error {
	s.asked.Store(true)
	return s.Context.Err()
}

// count is the option of the call that counts what may have been applied.
func (s *sendings) count() grpc.CallOption {
	return grpc.OnFinish(func(err error) {
		if err == nil || unsure(err) {
			s.finished.Add(1)
		}
	})
}

// repeated reports whether the request was sent, or may have been, more than once.
func (s *sendings) repeated() bool { return s.asked.Load() || s.finished.Load() > 1 }

// tooLarge reports whether an answer was larger than its call allows. gRPC says so when
// it has begun to arrive.
func tooLarge(err error) bool {
	var etcd rpctypes.EtcdError
	return status.Code(err) == codes.ResourceExhausted && !errors.As(err, &etcd)
}

// counted counts the transactions of one call, so that etcd's own builder of
// transactions can be used for the operations of a caller.
type counted struct {
	pb.KVClient
	once *sendings
}

func (k counted) Txn(ctx context.Context, request *pb.TxnRequest, opts ...grpc.CallOption) (*pb.TxnResponse, error) {
	return k.KVClient.Txn(ctx, request, append(slices.Clip(opts), k.once.count())...)
}
