package txn

import (
	"context"
	"errors"
	"math"
	"slices"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

const (
	smallAnswer  = 64 << 10   // bytes, which few answers are larger than
	largestValue = 1536 << 10 // etcd's limit for a request
	firstPage    = 256        // keys
	mostInPage   = 50_000     // keys; etcd counts all that follow a page, each time
	leastPage    = 1 << 20    // bytes, as far as can be foreseen
	mostPage     = 32 << 20   // bytes, likewise; four times as many are not accepted
	mostStarts   = 3          // of a list in pages

	pageTime = 250 * time.Millisecond // that a page should take on a fast link
)

// Read is one linearizable read of what is small, or of one key. A large answer is not
// waited for twice: when the first one turns out to be large, it is given its time.
func (s *Store) Read(ctx context.Context, request *pb.RangeRequest) (*pb.RangeResponse, error) {
	resp, err := s.readUpTo(ctx, request, smallAnswer, 0)
	if tooLarge(err) {
		defer s.carry(largestValue)()
		return s.readUpTo(ctx, request, math.MaxInt32, 0)
	}
	return resp, err
}

func (s *Store) readUpTo(ctx context.Context, request *pb.RangeRequest, size int, allowed time.Duration) (*pb.RangeResponse, error) {
	return AskFor(ctx, ctx, s, allowed, func(ctx context.Context) (*pb.RangeResponse, error) {
		resp, err := s.KV.Range(ctx, request, grpc.WaitForReady(true), grpc.MaxCallRecvMsgSize(size))
		if err == nil && resp.Header == nil {
			return nil, ErrMalformed
		}
		return resp, clientv3.ContextError(ctx, err)
	})
}

// ReadAll reads every key that begins with prefix, all at one revision, which is that
// of the header. It reads page by page, so that neither a slow link nor a server has to
// carry everything at once. If that revision is compacted meanwhile, or etcd has gone
// back before it, it starts over; from some time on without pages.
func (s *Store) ReadAll(ctx context.Context, prefix string) (*pb.RangeResponse, error) {
	for starts := 1; ; starts++ {
		limit := int64(firstPage)
		if starts > mostStarts {
			limit = 0
		}
		all, err := s.readPages(ctx, prefix, limit)
		if !errors.Is(err, rpctypes.ErrCompacted) && !errors.Is(err, rpctypes.ErrFutureRev) {
			return all, err
		}
	}
}

// readPages reads a range from page to page, the first of limit keys. How large the next
// is to be, and how long it may take, follows from the last.
func (s *Store) readPages(ctx context.Context, prefix string, limit int64) (all *pb.RangeResponse, err error) {
	key, revision := []byte(prefix), int64(0)
	size, allowed := int64(smallAnswer), time.Duration(0)
	for {
		if limit <= 1 {
			size, allowed = math.MaxInt32, max(allowed, Allowance(largestValue))
		}
		// A new one each time: an attempt that was cut off may still have the last.
		request := &pb.RangeRequest{Key: key, RangeEnd: RangeEnd(prefix), Limit: limit, Revision: revision}
		sent := time.Now()
		page, err := s.readUpTo(ctx, request, int(size), allowed)
		if tooLarge(err) && limit > 1 {
			limit = max(1, limit/8)
			continue
		}
		if err != nil {
			return nil, err
		}
		if all == nil {
			all = page
		} else {
			all.Kvs = append(all.Kvs, page.Kvs...)
		}
		keys := int64(len(page.Kvs))
		if !page.More || keys == 0 {
			return all, nil
		}
		revision, key = all.Header.Revision, append(slices.Clone(page.Kvs[keys-1].Key), 0)
		took, bytes := time.Since(sent), sizeOf(page)
		aim := min(max(leastPage, bytes*int64(pageTime)/int64(max(1, took))), mostPage)
		limit = min(max(1, keys*aim/bytes), 4*keys, mostInPage)
		size, allowed = 4*aim, 4*took*time.Duration(limit)/time.Duration(keys)
	}
}

// sizeOf returns how many bytes keys and values have.
func sizeOf(page *pb.RangeResponse) (n int64) {
	for _, kv := range page.Kvs {
		n += int64(len(kv.Key) + len(kv.Value))
	}
	return max(1, n)
}

// tooLarge reports whether an answer was larger than its call allows. gRPC says so when
// it has begun to arrive.
func tooLarge(err error) bool {
	var etcd rpctypes.EtcdError
	return status.Code(err) == codes.ResourceExhausted && !errors.As(err, &etcd)
}
