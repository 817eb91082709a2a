package main

import (
	"context"
	"errors"
	"strings"
	"sync/atomic"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/grpc"

	"github.com/jagregory/locker/v2"
)

// heldBack holds back the answer to one write of a client.
type heldBack struct {
	armed    atomic.Bool   // the next write is the one
	arrived  chan struct{} // closed when etcd has answered it
	released chan struct{} // closed when the client may have the answer
}

func newHeldBack() *heldBack {
	return &heldBack{arrived: make(chan struct{}), released: make(chan struct{})}
}

func (b *heldBack) dialOption() grpc.DialOption { return grpc.WithChainUnaryInterceptor(b.intercept) }

func (b *heldBack) intercept(ctx context.Context, method string, req, reply any, conn *grpc.ClientConn, invoke grpc.UnaryInvoker, opts ...grpc.CallOption) error {
	err := invoke(ctx, method, req, reply, conn, opts...)
	write, is := req.(*pb.TxnRequest)
	if is && strings.Contains(write.String(), "request_put") && b.armed.CompareAndSwap(true, false) {
		close(b.arrived)
		select {
		case <-b.released:
		case <-ctx.Done():
		}
	}
	return err
}

// keptWatch has two goroutines of one client wait for the same name. While the second does not
// know yet where it is in the queue, the first reads from its watch that one of those ahead
// has left, gets its lock, and keeps the watch. The second must not rely on that watch: it
// will not report that departure again.
func (s *stage) keptWatch(ctx context.Context) error {
	const name, bound = mixedPrefix + "0", 5 * time.Second
	both, answers := locker.WithLimit(2), newHeldBack()
	holder, waiter, leave, err := s.twoClients(answers)
	if err != nil {
		return err
	}
	defer leave()
	ahead := make([]*locker.Lock, 2)
	for i := range ahead {
		if ahead[i], err = holder.Lock(ctx, name, "", both); err != nil {
			return err
		}
	}
	first, err := s.wait(ctx, waiter, name, 3, both)
	if err != nil {
		return err
	}
	_ = pause(ctx, 200*time.Millisecond) // until it watches the queue
	answers.armed.Store(true)
	second, err := s.wait(ctx, waiter, name, 4, both)
	if err != nil {
		return err
	}
	if err := errors.Join(ahead[0].Unlock(ctx), <-first); err != nil {
		return err
	}
	close(answers.released)
	if err := ahead[1].Unlock(ctx); err != nil {
		return err
	}
	select {
	case err = <-second:
	case <-time.After(bound):
		s.violated(servedInTime, "two may hold %s and one does, but the next in its queue has no lock after %v", name, bound)
	}
	return err
}

// joinedMeanwhile has TryLock find that one of two may still hold a name, and another take that
// place before it learns of it.
func (s *stage) joinedMeanwhile(ctx context.Context) error {
	const name = mixedPrefix + "0"
	both, answers := locker.WithLimit(2), newHeldBack()
	holder, trier, leave, err := s.twoClients(answers)
	if err != nil {
		return err
	}
	defer leave()
	if _, err := holder.Lock(ctx, name, "", both); err != nil {
		return err
	}
	if _, err := trier.Lock(ctx, "own", ""); err != nil { // opens its session
		return err
	}
	answers.armed.Store(true)
	result := make(chan error, 1)
	go func() {
		_, err := trier.TryLock(ctx, name, "", both)
		result <- err
	}()
	if err := answers.await(ctx); err != nil {
		return err
	}
	_, err = holder.Lock(ctx, name, "", both)
	close(answers.released)
	switch tried := <-result; {
	case err != nil:
		return err
	case tried == nil:
		s.violated(wasHead, "two may hold %s, and TryLock has made a third", name)
	case !errors.Is(tried, locker.ErrLocked):
		return tried
	}
	return nil
}

// repeatedPut holds back the answer to the put of a shared entry until the client has repeated
// it. The second must have no effect: a put of a key that exists changes its value, but not
// its create revision, which is the token.
func (s *stage) repeatedPut(ctx context.Context) error {
	const name = mixedPrefix + "0"
	answers := newHeldBack()
	_, reader, leave, err := s.twoClients(answers)
	if err != nil {
		return err
	}
	defer leave()
	if _, err := reader.Lock(ctx, "own", ""); err != nil { // opens its session
		return err
	}
	answers.armed.Store(true)
	// A request is repeated after an eighth of the TTL. A lone Lock compares its key anyway.
	time.AfterFunc(s.ttl/5, func() { close(answers.released) })
	held, err := reader.TryLock(ctx, name, "", locker.WithShared())
	if err != nil {
		s.violated(leavesNoEntry, "%s is free, but cannot be locked: %v", name, err)
		return nil
	}
	resp, err := s.etcd.Get(ctx, held.Key())
	if err != nil {
		return err
	}
	if len(resp.Kvs) != 1 || resp.Kvs[0].CreateRevision != held.Token() {
		s.violated(wasHead, "%s is held with token %d, but its entry is %v", name, held.Token(), resp.Kvs)
	}
	if err := held.Unlock(ctx); err != nil {
		s.violated(wasHead, "%s was held, but at the end: %v", name, err)
	}
	return nil
}

// await waits until etcd has answered the write.
func (b *heldBack) await(ctx context.Context) error {
	select {
	case <-b.arrived:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// twoClients opens two clients. Answers to the second may be held back. The caller must call
// leave.
func (s *stage) twoClients(answers *heldBack) (first, second scriptClient, leave func(), err error) {
	if first, err = s.openClient(s.cluster.Endpoints()); err != nil {
		return first, second, nil, err
	}
	if second, err = s.openClient(s.cluster.Endpoints(), answers.dialOption()); err != nil {
		s.closeClient(first, false)
		return first, second, nil, err
	}
	return first, second, func() {
		s.closeClient(first, false)
		s.closeClient(second, false)
	}, nil
}

// wait makes a client lock a name in the background, and returns once its queue has so many
// entries. The result of the call will be sent.
func (s *stage) wait(ctx context.Context, c scriptClient, name string, entries int, opts ...locker.LockOption) (<-chan error, error) {
	result := make(chan error, 1)
	s.leaving.Go(func() {
		_, err := c.Lock(ctx, name, "", opts...)
		if errors.Is(err, locker.ErrClosed) {
			err = nil // the script is over
		}
		result <- err
	})
	counted := func() bool {
		n, err := s.count(ctx, name)
		return err == nil && n == entries
	}
	if !eventually(ctx, recovery, counted) {
		return nil, errors.New("the waiter is not in the queue")
	}
	return result, nil
}

// count returns how many entries the queue of a name has.
func (s *stage) count(ctx context.Context, name string) (n int, err error) {
	err = s.retry(ctx, func(ctx context.Context) error {
		resp, err := s.etcd.Get(ctx, queueOf(name), clientv3.WithPrefix(), clientv3.WithCountOnly())
		if err == nil {
			n = int(resp.Count)
		}
		return err
	})
	return n, err
}
