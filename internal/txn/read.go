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
	smallAnswer  = 64 << 10   // bytes; few answers are larger
	largestValue = 1536 << 10 // etcd's limit for a request
	firstPage    = 256        // keys
	mostInPage   = 50_000     // keys; for each page, etcd counts all keys that follow it
	leastPage    = 1 << 20    // bytes, as far as can be estimated
	mostPage     = 32 << 20   // bytes, likewise; an answer four times as large is not accepted
	mostStarts   = 3          // of a list that is read in pages

	pageTime = 250 * time.Millisecond // what a page should take on a fast link
)

// Read makes one linearizable read of a key, or of a range that is small. Should the answer
// turn out to be large, it is asked for again with the time that it takes, so that it is
// not hedged while it is on its way.
func (s *Store) Read(ctx context.Context, request *pb.RangeRequest) (*pb.RangeResponse, error) {
	resp, err := s.readUpTo(ctx, request, smallAnswer, 0)
	if tooLarge(err) {
		defer s.carry(largestValue)()
		return s.readUpTo(ctx, request, math.MaxInt32, 0)
	}
	return resp, err
}

// ReadSince makes reads that see at least what was so at a revision, all of them at one
// revision, that of the header. It asks any member what it knows, which needs no leader, and
// makes linearizable reads only if that member is behind, or if the revision is 0. The reads
// are made anew for each; their answers must be small.
func (s *Store) ReadSince(ctx context.Context, revision int64, reads func() []*pb.RangeRequest) (*pb.TxnResponse, error) {
	if revision != 0 {
		resp, err := s.readTogether(ctx, reads(), true)
		if err == nil && resp.Header.Revision >= revision || err != nil && ctx.Err() != nil {
			return resp, err
		}
	}
	return s.readTogether(ctx, reads(), false)
}

// readTogether makes several reads in one transaction.
func (s *Store) readTogether(ctx context.Context, reads []*pb.RangeRequest, serializable bool) (*pb.TxnResponse, error) {
	t := Txn{Then: make([]*pb.RequestOp, len(reads))}
	for i, read := range reads {
		read.Serializable = serializable
		t.Then[i] = OpRange(read)
	}
	return Ask(ctx, s, func(ctx context.Context) (*pb.TxnResponse, error) {
		resp, err := s.Send(ctx, t)
		return resp, clientv3.ContextError(ctx, err)
	})
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

// ReadAll reads every key that begins with prefix, all at one revision, that of the header.
// It reads page by page, so that neither a slow link nor a server has to carry everything
// at once. If that revision is compacted meanwhile, or etcd has gone back to an earlier
// one, it starts over; after a few starts it reads without pages, so that it ends however
// often etcd compacts.
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

// readPages reads a range page by page, the first page with limit keys. The size of the
// next page, and how long it may take, follow from the last.
func (s *Store) readPages(ctx context.Context, prefix string, limit int64) (all *pb.RangeResponse, err error) {
	key, revision := []byte(prefix), int64(0)
	size, allowed := int64(smallAnswer), time.Duration(0)
	for {
		if limit <= 1 {
			size, allowed = math.MaxInt32, max(allowed, Allowance(largestValue))
		}
		// A new request each time: an attempt that was cut off may still use the last one.
		request := &pb.RangeRequest{Key: key, RangeEnd: rangeEnd(prefix), Limit: limit, Revision: revision}
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

// sizeOf returns the size of the keys and values of a page in bytes, at least 1.
func sizeOf(page *pb.RangeResponse) (n int64) {
	for _, kv := range page.Kvs {
		n += int64(len(kv.Key) + len(kv.Value))
	}
	return max(1, n)
}

// tooLarge reports whether an answer was larger than its call allows. gRPC reports that as
// soon as the answer has begun to arrive.
func tooLarge(err error) bool {
	var etcd rpctypes.EtcdError
	return status.Code(err) == codes.ResourceExhausted && !errors.As(err, &etcd)
}
