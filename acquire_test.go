package locker_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/server/v3/embed"
	"google.golang.org/grpc"

	"github.com/jagregory/locker/v2"
	"github.com/jagregory/locker/v2/embedtest"
	"github.com/jagregory/locker/v2/internal/locktest"
)

// watchCounter counts the watches that a client opens and closes.
type watchCounter struct {
	mu        sync.Mutex // guards what follows
	opened    int
	confirmed int // by etcd
	open      map[*watchStream]int
	behind    *atomic.Int64 // the revision at which etcd confirms watches; nil for the true one
}

type watchStream struct {
	grpc.ClientStream
	counter *watchCounter
}

func (s *watchStream) SendMsg(m any) error {
	if req, ok := m.(*pb.WatchRequest); ok {
		s.counter.mu.Lock()
		if req.GetCreateRequest() != nil {
			s.counter.opened++
			s.counter.open[s]++
		}
		if req.GetCancelRequest() != nil {
			s.counter.open[s]--
		}
		s.counter.mu.Unlock()
	}
	return s.ClientStream.SendMsg(m)
}

func (s *watchStream) RecvMsg(m any) error {
	err := s.ClientStream.RecvMsg(m)
	if answer, ok := m.(*pb.WatchResponse); ok && err == nil && answer.Created {
		if s.counter.behind != nil {
			answer.Header.Revision = s.counter.behind.Load()
		}
		s.counter.mu.Lock()
		s.counter.confirmed++
		s.counter.mu.Unlock()
	}
	return err
}

// awaitOne waits until etcd has confirmed a watch.
func (w *watchCounter) awaitOne(t testing.TB) {
	t.Helper()
	locktest.Eventually(t, "there is a watch", func() bool {
		w.mu.Lock()
		defer w.mu.Unlock()
		return w.confirmed > 0
	})
}

// count returns how many watches have been opened, and how many are open.
func (w *watchCounter) count() (opened, open int) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for stream, n := range w.open {
		if stream.Context().Err() == nil {
			open += n
		}
	}
	return w.opened, open
}

// watched returns a client whose requests and watches are counted.
func watched(t testing.TB, config clientv3.Config, opts ...locker.Option) (*locker.Client, *wire, *watchCounter) {
	t.Helper()
	w, ws := new(wire), &watchCounter{open: make(map[*watchStream]int)}
	config.DialOptions = append(config.DialOptions, embedtest.Intercept(w.intercept).DialOption(), grpc.WithChainStreamInterceptor(
		func(ctx context.Context, desc *grpc.StreamDesc, conn *grpc.ClientConn, method string, open grpc.Streamer, opts ...grpc.CallOption) (grpc.ClientStream, error) {
			stream, err := open(ctx, desc, conn, method, opts...)
			if err != nil {
				return nil, err
			}
			return &watchStream{stream, ws}, nil
		}))
	c := locktest.NewClient(t, locktest.Connect(t, config), opts...)
	locker.HedgeAfter(c, unhedged)
	locker.KeepWatchesFor(c, 5*time.Second)
	return c, w, ws
}

// relay passes a name back and forth between two clients.
type relay struct {
	clients [2]*locker.Client
	turn    int // the client that holds, or waits to
	present *locker.Lock
}

func newRelay(t testing.TB, first, second *locker.Client) *relay {
	return &relay{clients: [2]*locker.Client{first, second}, present: locktest.Lock(t, first, "a", "")}
}

// pass makes the other client wait and then hold; between, if not nil, is called while it waits.
func (r *relay) pass(t testing.TB, b locktest.Bundle, between func()) {
	t.Helper()
	r.turn = 1 - r.turn
	other := locktest.LockAsync(locktest.Within(t), r.clients[r.turn], "a", "")
	b.Queued(t, "a", 2)
	if between != nil {
		between()
	}
	if len(other) > 0 {
		t.Fatal("it was served while another held")
	}
	locktest.Unlock(t, r.present)
	next := locktest.LockOf(t, other)
	if next.Token() <= r.present.Token() {
		t.Errorf("token %d after %d", next.Token(), r.present.Token())
	}
	b.WantHeldAlone(t, next)
	r.present = next
}

func TestQueue_PassingANameToAndFroCostsFewReadsAndWatches(t *testing.T) {
	t.Parallel()
	b := locktest.Setup(t)
	first, w1, ws1 := watched(t, b.Server.ClientConfig(), locker.WithTTL(locktest.Unhurried))
	second, w2, ws2 := watched(t, b.Server.ClientConfig(), locker.WithTTL(locktest.Unhurried))
	r := newRelay(t, first, second)
	const n = 100
	for range n {
		r.pass(t, b, nil)
	}
	ranges := 0
	for _, w := range []*wire{w1, w2} {
		w.mu.Lock()
		for _, req := range w.requests {
			if _, ok := req.(*pb.RangeRequest); ok {
				ranges++
			}
		}
		w.mu.Unlock()
	}
	opened1, _ := ws1.count()
	opened2, _ := ws2.count()
	if opened := opened1 + opened2; ranges > n/4 || opened > n/4 || opened == 0 {
		t.Errorf("%d hand-overs took %d reads and %d watches", n, ranges, opened)
	}
	locktest.Unlock(t, r.present)
	began := time.Now()
	locktest.Eventually(t, "no watch is left", func() bool {
		_, open1 := ws1.count()
		_, open2 := ws2.count()
		return open1 == 0 && open2 == 0
	})
	if took := time.Since(began); took > locktest.Prompt {
		t.Errorf("watches were open for %v", took)
	}
}

func TestQueue_AKeptWatchIsNotLeakedWhenAnotherIsKept(t *testing.T) {
	t.Parallel()
	b := locktest.Setup(t)
	c, w, ws := watched(t, b.Server.ClientConfig(), locker.WithTTL(locktest.Unhurried))
	r := newRelay(t, b.Client(t), c)
	for range 10 {
		r.pass(t, b, nil) // which keeps a watch
		r.pass(t, b, nil)
		// Its place in the queue is unknown now, so it has to read the queue.
		w.fail(1, func(req any) bool { return locktest.Enqueues(req, "a") }, requestFaults["its reply is lost"])
		r.pass(t, b, nil)
		r.pass(t, b, nil)
	}
	locktest.Unlock(t, r.present)
	began := time.Now()
	locktest.Eventually(t, "no watch is left", func() bool {
		_, open := ws.count()
		return open == 0 || time.Since(began) > locktest.Prompt
	})
	if opened, open := ws.count(); open > 0 {
		t.Errorf("%d of %d watches are open", open, opened)
	}
}

func TestQueue_AKeptWatchMissesNoHandOver(t *testing.T) {
	t.Parallel()
	b := locktest.Setup(t, embedtest.WithMembers(3))
	proxy := b.Server.Proxy(t)
	c := locktest.NewClient(t, proxy.Client(t), locker.WithTTL(locktest.Unhurried))
	locker.KeepWatchesFor(c, 5*time.Second)
	locktest.Unlock(t, locktest.Lock(t, c, "warm", ""))
	faults := map[string]struct{ before, during func() }{
		"reset before": {before: func() { proxy.Reset() }},
		"reset during": {during: func() { proxy.Reset() }},
		"compaction":   {during: func() { b.Server.Compact(t) }},
		"no fault":     {},
		"both":         {before: func() { proxy.Reset(); b.Server.Compact(t) }, during: func() { b.Server.Compact(t); proxy.Reset() }},
	}
	for member := range 3 {
		faults[fmt.Sprint("member frozen before ", member)] = struct{ before, during func() }{before: func() { proxy.Freeze(member) }}
		faults[fmt.Sprint("member frozen during ", member)] = struct{ before, during func() }{during: func() { proxy.Freeze(member) }}
	}
	r := newRelay(t, b.Client(t), c)
	for _, fault := range faults {
		r.pass(t, b, nil) // now it keeps a watch
		r.pass(t, b, nil)
		if fault.before != nil {
			fault.before()
		}
		r.pass(t, b, fault.during)
		proxy.Heal()
		r.pass(t, b, nil)
	}
}

func TestQueue_AWaiterReadsAgainWhenItsWatchEnds(t *testing.T) {
	t.Parallel()
	b := locktest.Setup(t)
	proxy := b.Server.Proxy(t)
	c, _, ws := watched(t, proxy.ClientConfig(), locker.WithTTL(locktest.Unhurried))
	r := newRelay(t, b.Client(t), c)
	for _, releasedMeanwhile := range []bool{true, false, true, false} {
		r.pass(t, b, nil) // now it keeps a watch
		r.pass(t, b, nil)
		waiter := locktest.LockAsync(locktest.Within(t), c, "a", "")
		b.Queued(t, "a", 2)
		before, _ := ws.count()
		proxy.Cut()
		locktest.PutKey(t, b.Etcd, "elsewhere", "")
		if releasedMeanwhile {
			locktest.Unlock(t, r.present)
		}
		b.Server.Compact(t) // so that the watch cannot be resumed
		proxy.Heal()
		if !releasedMeanwhile {
			locktest.Eventually(t, "it watches again", func() bool {
				opened, _ := ws.count()
				return opened > before+1 || len(waiter) > 0 // the first is an attempt to resume
			})
			if len(waiter) > 0 {
				t.Fatal("it was served while another held")
			}
			locktest.Unlock(t, r.present)
		}
		r.turn, r.present = 1, locktest.LockOf(t, waiter)
		b.WantHeldAlone(t, r.present)
		r.pass(t, b, nil)
	}
}

func TestQueue_MoreWaitersThanTheLookaheadAreServedInOrder(t *testing.T) {
	t.Parallel()
	b, ctx := locktest.Setup(t), locktest.Within(t)
	clients := make([]*locker.Client, 12)
	for i := range clients {
		clients[i] = b.Client(t)
	}
	first := b.Client(t)
	for range 2 { // the second time with watches that were kept
		present := locktest.Lock(t, first, "a", "")
		waiters := make([]<-chan locktest.Outcome, len(clients))
		for i, c := range clients {
			waiters[i] = locktest.LockAsync(ctx, c, "a", "")
			b.Queued(t, "a", i+2)
		}
		locktest.Unlock(t, wantServedInOrder(t, present, waiters))
	}
}

func TestQueue_AWaiterFarBehindMissesNoDeparture(t *testing.T) {
	t.Parallel()
	b, ctx := locktest.Setup(t), locktest.Within(t)
	proxy := b.Server.Proxy(t)
	c, w, _ := watched(t, proxy.ClientConfig(), locker.WithTTL(locktest.Unhurried))
	nothing := func([]string) {}
	remove := func(keys ...string) {
		for _, key := range keys {
			if _, err := b.Etcd.Delete(ctx, key); err != nil {
				t.Error(err)
			}
		}
	}
	// What happens right after its entry was put, and while it waits, to the keys ahead, the oldest first.
	early := map[string]func(keys []string){
		"nothing":                     nothing,
		"the nearest leaves":          func(keys []string) { remove(keys[len(keys)-1]) },
		"the nearest five leave":      func(keys []string) { remove(keys[len(keys)-5:]...) },
		"the nearest joins once more": func(keys []string) { remove(keys[len(keys)-1]); locktest.PutKey(t, b.Etcd, keys[len(keys)-1], "") },
		"somebody else joins": func([]string) {
			locktest.PutKey(t, b.Etcd, locker.DefaultPrefix+"a/f", "")
			remove(locker.DefaultPrefix + "a/f")
		},
		"compaction": func([]string) { b.Server.Compact(t) },
	}
	late := map[string]func(keys []string){
		"in order":            nothing,
		"the nearest first":   func(keys []string) { slices.Reverse(keys) },
		"at random":           func(keys []string) { rand.Shuffle(len(keys), func(i, j int) { keys[i], keys[j] = keys[j], keys[i] }) },
		"after a reset":       func([]string) { proxy.Reset() },
		"after a compaction":  func([]string) { proxy.Reset(); b.Server.Compact(t) },
		"with late joiners":   func([]string) { locktest.PutKey(t, b.Etcd, locker.DefaultPrefix+"a/f", "") },
		"all but one at once": func(keys []string) { remove(keys[1:]...) },
	}
	for _, n := range []int{locker.Lookahead + 6, locker.FarAway + 6} {
		for before, early := range early {
			for during, late := range late {
				if n > locker.FarAway && during != "in order" {
					continue // they differ only in how the watch begins
				}
				keys := make([]string, n)
				for i := range keys {
					keys[i] = fmt.Sprintf("%sa/%016x", locker.DefaultPrefix, i+1)
					locktest.PutKey(t, b.Etcd, keys[i], "")
				}
				joined := make(chan struct{})
				w.fail(1, func(req any) bool { return locktest.Enqueues(req, "a") }, func(_ context.Context, call func() error) error {
					defer close(joined)
					err := call()
					early(keys)
					return err
				})
				waiter := locktest.LockAsync(ctx, c, "a", "")
				locktest.Receive(t, joined)
				oldest, behind := keys[0], []string{locker.DefaultPrefix + "a/f"}
				if before == "the nearest joins once more" {
					keys, behind = keys[:n-1], append(behind, keys[n-1])
				}
				late(keys)
				remove(keys[1:]...)
				if keys[0] == oldest && len(waiter) > 0 {
					t.Fatalf("%d ahead, %s, %s: it was served while another held", n, before, during)
				}
				remove(keys[0])
				l := locktest.LockOf(t, waiter)
				remove(behind...)
				b.WantHeldAlone(t, l)
				locktest.Unlock(t, l)
			}
		}
	}
}

// serializable returns the reads of a transaction that only reads, and needs no leader.
func serializable(req any) (reads []*pb.RangeRequest) {
	t, ok := req.(*pb.TxnRequest)
	if !ok {
		return nil
	}
	for _, op := range t.Success {
		if read := op.GetRequestRange(); read.GetSerializable() {
			reads = append(reads, read)
		}
	}
	return reads
}

// onTxn returns an option of a connection whose transactions pass through f, which must invoke each of them.
func onTxn(f func(t *pb.TxnRequest, invoke func() (*pb.TxnResponse, error))) grpc.DialOption {
	return grpc.WithChainUnaryInterceptor(
		func(ctx context.Context, method string, req, reply any, conn *grpc.ClientConn, invoke grpc.UnaryInvoker, opts ...grpc.CallOption) (err error) {
			t, ok := req.(*pb.TxnRequest)
			if !ok {
				return invoke(ctx, method, req, reply, conn, opts...)
			}
			f(t, func() (*pb.TxnResponse, error) {
				err = invoke(ctx, method, req, reply, conn, opts...)
				return reply.(*pb.TxnResponse), err
			})
			return err
		})
}

// readBehind invokes a transaction. It reports whether that needs no leader: then it is answered by a member that is
// behind, at the revision.
func readBehind(t *pb.TxnRequest, revision int64, invoke func() (*pb.TxnResponse, error)) bool {
	reads := serializable(t)
	for _, read := range reads {
		read.Revision = revision
	}
	if resp, err := invoke(); err == nil && len(reads) > 0 {
		resp.Header.Revision = revision
	}
	return len(reads) > 0
}

// A member that is behind opens watches, and answers what needs no leader, at an earlier revision.
func TestQueue_AMemberThatIsBehindDoesNotMisleadAWaiter(t *testing.T) {
	t.Parallel()
	for _, n := range []int{2, locker.Lookahead + 3} {
		t.Run(fmt.Sprintf("%d ahead", n), func(t *testing.T) {
			t.Parallel()
			b := locktest.Setup(t)
			var behind, asked atomic.Int64
			config := b.Server.ClientConfig()
			config.DialOptions = append(config.DialOptions, onTxn(func(t *pb.TxnRequest, invoke func() (*pb.TxnResponse, error)) {
				if readBehind(t, behind.Load(), invoke) {
					asked.Add(1)
				}
			}))
			c, _, ws := watched(t, config, locker.WithTTL(locktest.Unhurried))
			ws.behind = &behind
			locktest.Unlock(t, locktest.Lock(t, c, "warm", ""))
			keys := make([]string, n)
			for i := range keys {
				keys[i] = fmt.Sprintf("%sa/%016x", locker.DefaultPrefix, i+1)
				locktest.PutKey(t, b.Etcd, keys[i], "")
			}
			resp, err := b.Etcd.Get(locktest.Within(t), keys[n-1])
			if err != nil {
				t.Fatal(err)
			}
			behind.Store(resp.Header.Revision)
			waiter := locktest.LockAsync(locktest.Within(t), c, "a", "")
			b.Queued(t, "a", n+1)
			for i := range keys {
				if len(waiter) > 0 {
					t.Fatal("it was served while another held")
				}
				if _, err := b.Etcd.Delete(locktest.Within(t), keys[i]); err != nil {
					t.Fatal(err)
				}
			}
			b.WantHeldAlone(t, locktest.LockOf(t, waiter))
			if asked.Load() == 0 {
				t.Error("nobody was asked")
			}
		})
	}
}

// holdBack is an etcd that, while it is on, holds back transactions on the queue of "a", and signals each of them.
type holdBack struct {
	locktest.Bundle
	on      atomic.Bool
	held    chan struct{}
	proceed chan struct{}
}

func newHoldBack(t *testing.T) (*holdBack, *locker.Client) {
	h := &holdBack{Bundle: locktest.Setup(t), held: make(chan struct{}, 1000), proceed: make(chan struct{})}
	etcd := h.Server.ClientWith(t, func(ctx context.Context, method string, request any, call func() error) error {
		if txn, ok := request.(*pb.TxnRequest); ok && h.on.Load() && strings.Contains(txn.String(), locker.DefaultPrefix+"a/") {
			h.held <- struct{}{}
			select {
			case <-h.proceed:
			case <-ctx.Done():
				return ctx.Err()
			}
		}
		return call()
	})
	c := locktest.NewClient(t, etcd, locker.WithTTL(time.Minute))
	locktest.Unlock(t, locktest.Lock(t, c, "b", "v")) // opens the session
	return h, c
}

func TestTryLock_WaitsForTheRemovalOfWhatIsOver(t *testing.T) {
	t.Parallel()
	enough := errors.New("enough")
	over := map[string]func(t *testing.T, h *holdBack, c *locker.Client){
		"a Lock that was given up": func(t *testing.T, h *holdBack, c *locker.Client) {
			h.on.Store(true)
			ctx, cancel := context.WithCancelCause(locktest.Within(t))
			result := locktest.LockAsync(ctx, c, "a", "v")
			locktest.Receive(t, h.held)
			cancel(enough)
			locktest.Want(t, locktest.Receive(t, result).Err, enough)
		},
		"an Unlock that was given up": func(t *testing.T, h *holdBack, c *locker.Client) {
			l := locktest.Lock(t, c, "a", "v")
			h.on.Store(true)
			ctx, cancel := context.WithCancelCause(locktest.Within(t))
			cancel(enough)
			locktest.Want(t, l.Unlock(ctx), enough)
		},
	}
	for what, end := range over {
		t.Run(what, func(t *testing.T) {
			t.Parallel()
			h, c := newHoldBack(t)
			end(t, h, c)
			ctx, cancel := context.WithTimeoutCause(locktest.Within(t), 200*time.Millisecond, enough)
			defer cancel()
			_, err := c.TryLock(ctx, "a", "try")
			locktest.Want(t, err, enough)
			tried := locktest.TryLockAsync(locktest.Within(t), c, "a", "try")
			select {
			case got := <-tried:
				t.Errorf("it did not wait: %v", got.Err)
			case <-time.After(200 * time.Millisecond):
			}
			close(h.proceed)
			got := locktest.Receive(t, tried)
			if got.Err != nil {
				t.Fatal(got.Err)
			}
			h.Queued(t, "a", 1)
			locktest.Unlock(t, got.Lock)
		})
	}
}

func TestTryLock_DoesNotWaitForThoseWhoAreNext(t *testing.T) {
	t.Parallel()
	h, c := newHoldBack(t)
	l := locktest.Lock(t, c, "a", "v")
	h.on.Store(true)
	ended, cancel := context.WithCancel(locktest.Within(t))
	cancel()
	waiting := locktest.TryLockAsync(locktest.Within(t), c, "a", "try")
	locktest.Want(t, locktest.Receive(t, waiting).Err, locker.ErrLocked) // it is held
	locktest.Want(t, l.Unlock(ended), context.Canceled)
	before := locktest.TryLockAsync(locktest.Within(t), c, "a", "try") // waits for the removal
	next := locktest.LockAsync(locktest.Within(t), c, "a", "next")
	locktest.Eventually(t, "the next is in line", func() bool { return locker.Waiting(c, "a") == 1 })
	locktest.Want(t, locktest.Receive(t, locktest.TryLockAsync(locktest.Within(t), c, "a", "try")).Err, locker.ErrLocked)
	close(h.proceed)
	if got := locktest.Receive(t, next); got.Err != nil {
		t.Fatal(got.Err)
	}
	if got := locktest.Receive(t, before); !errors.Is(got.Err, locker.ErrLocked) {
		t.Errorf("it jumped the line, or waited for a holder: %v", got.Err)
	}
}

// dam is a transaction that is held back, so that others gather behind it.
type dam struct {
	barrier
	lock <-chan locktest.Outcome
}

func newDam(t testing.TB, c *locker.Client, w *wire) dam {
	t.Helper()
	locker.SendOneAtATime(c)
	g := w.stop(t, false, func(req any) bool { return writes(req, "dam") })
	d := dam{g, locktest.LockAsync(locktest.Within(t), c, "dam", "")}
	locktest.Receive(t, g.arrived)
	return d
}

// burst sends the transaction, and with it what has gathered.
func (d dam) burst(t testing.TB) {
	t.Helper()
	d.open()
	locktest.Unlock(t, locktest.LockOf(t, d.lock))
}

// gathered locks n names, and returns once their writes wait behind the one in flight.
func gathered(ctx context.Context, t testing.TB, c *locker.Client, n int) map[string]<-chan locktest.Outcome {
	t.Helper()
	before, results := locker.Gathering(c), make(map[string]<-chan locktest.Outcome)
	for i := range n {
		name := fmt.Sprint("name", i)
		results[name] = locktest.LockAsync(ctx, c, name, "of "+name)
	}
	locktest.Eventually(t, "the writes wait", func() bool { return locker.Gathering(c) == before+n })
	return results
}

// wantEach fails the test unless each name is held by the call that locked it, and by no other.
func wantEach(t testing.TB, b locktest.Bundle, results map[string]<-chan locktest.Outcome) (locks []*locker.Lock) {
	t.Helper()
	observer := b.Client(t)
	for name, result := range results {
		l := locktest.LockOf(t, result)
		locks = append(locks, l)
		b.WantHeldAlone(t, l)
		if holder := locktest.Get(t, observer, name); l.Name() != name || holder.Value != "of "+name || holder.Token != l.Token() {
			t.Errorf("%+v holds %s, want token %d", holder, name, l.Token())
		}
	}
	return locks
}

// unlockAll unlocks all locks at once.
func unlockAll(t testing.TB, locks []*locker.Lock) {
	t.Helper()
	ctx := locktest.Within(t)
	var wg sync.WaitGroup
	for _, l := range locks {
		wg.Go(func() {
			if err := l.Unlock(ctx); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
}

func TestGroupCommit_ALoneWriteIsSentAtOnceAndAlone(t *testing.T) {
	t.Parallel()
	b := locktest.Setup(t)
	c, w := wired(t, b)
	before := w.count()
	quickest := time.Duration(1<<63 - 1)
	const n = 10
	for range n {
		began := time.Now()
		locktest.Unlock(t, locktest.Lock(t, c, "a", ""))
		quickest = min(quickest, time.Since(began))
	}
	if requests := w.count() - before; requests != 2*n {
		t.Errorf("%d requests for %d holds", requests, n)
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, req := range w.requests[before:] {
		if !locktest.Enqueues(req, "a") && !locktest.Releases(req, "a") {
			t.Errorf("not a plain transaction: %v", req)
		}
	}
	if quickest > 200*time.Millisecond {
		t.Errorf("the quickest lone hold took %v", quickest)
	}
}

func TestGroupCommit_WritesGatherWhileOneIsInFlightAndAreSentTogether(t *testing.T) {
	t.Parallel()
	b := locktest.Setup(t)
	c, w := wired(t, b, locker.WithTTL(locktest.Unhurried))
	d := newDam(t, c, w)
	const n = 50
	before := len(w.transactions(0))
	results := gathered(locktest.Within(t), t, c, n)
	if sent := w.transactions(before); len(sent) > 0 {
		t.Errorf("sent while one was in flight: %v", sent)
	}
	d.open()
	locks := wantEach(t, b, results)
	if sent := w.transactions(before); len(sent) != 1 || len(sent[0]) != n {
		t.Errorf("%d writes were sent as %v", n, sent)
	}
	for _, l := range locks {
		if l.Token() != locks[0].Token() {
			t.Errorf("tokens %d and %d from one transaction", l.Token(), locks[0].Token())
		}
	}
	unlockAll(t, append(locks, locktest.LockOf(t, d.lock)))
	b.WantNoEntries(t)
}

func TestGroupCommit_ATransactionHasAtMostOneWriteOfEachName(t *testing.T) {
	t.Parallel()
	b, ctx := locktest.Setup(t), locktest.Within(t)
	c, w := wired(t, b, locker.WithTTL(locktest.Unhurried))
	locks := []*locker.Lock{locktest.Lock(t, c, "x", ""), locktest.Lock(t, c, "y", "")}
	d := newDam(t, c, w)
	before := len(w.transactions(0))
	var writers sync.WaitGroup
	const n = 5
	for _, l := range locks {
		for i := range n {
			writers.Go(func() {
				if err := l.SetValue(ctx, fmt.Sprint(i)); err != nil {
					t.Error(err)
				}
			})
		}
	}
	locktest.Eventually(t, "the writes wait", func() bool { return locker.Gathering(c) == 2*n })
	d.burst(t)
	writers.Wait()
	together := false
	for _, txn := range w.transactions(before) {
		names := make(map[string]bool)
		for _, part := range txn {
			if names[part.name] {
				t.Errorf("one transaction writes %v", txn)
			}
			names[part.name] = true
		}
		together = together || len(txn) > 1
	}
	if !together {
		t.Error("no writes were sent together")
	}
	if refused := w.refusals(); len(refused) > 0 {
		t.Errorf("etcd refused: %v", refused)
	}
	for _, l := range locks {
		if holder := locktest.Get(t, c, l.Name()); holder.Value != l.Value() || holder.Token != l.Token() {
			t.Errorf("%+v there, %q here", holder, l.Value())
		}
	}
}

func TestGroupCommit_ServesManyThoughTheServerTakesFewOperations(t *testing.T) {
	t.Parallel()
	for _, limit := range []uint{4, 8, 16} {
		t.Run(fmt.Sprint(limit), func(t *testing.T) {
			t.Parallel()
			b := locktest.Setup(t, embedtest.WithConfig(func(c *embed.Config) { c.MaxTxnOps = limit }))
			c, w := wired(t, b, locker.WithTTL(locktest.Unhurried))
			for range 4 {
				d := newDam(t, c, w)
				results := gathered(locktest.Within(t), t, c, 40)
				d.burst(t)
				unlockAll(t, wantEach(t, b, results))
				b.WantNoEntries(t)
			}
			// Each refusal halves how many writes are sent together, from 40 down to 1.
			if refused := w.refusals(); len(refused) == 0 || len(refused) > 7 {
				t.Errorf("%d refusals", len(refused))
			}
		})
	}
}

func TestGroupCommit_ManyWritersCanceledAtRandomLeaveNothing(t *testing.T) {
	b := locktest.Setup(t)
	ctx, cancel := context.WithTimeout(locktest.Within(t), 2*time.Second)
	defer cancel()
	var names [16]struct {
		held  atomic.Bool
		token atomic.Int64
	}
	var holds, canceled atomic.Int64
	take := func(c *locker.Client) {
		patience := rand.N(30 * time.Millisecond)
		if rand.IntN(10) == 0 {
			patience = time.Minute // however slow the machine is, some calls succeed
		}
		short, cancel := context.WithTimeout(ctx, patience)
		defer cancel()
		i := rand.IntN(len(names))
		l, err := c.Lock(short, fmt.Sprint("name", i), "")
		if err != nil {
			if !errors.Is(err, context.DeadlineExceeded) {
				t.Error(err)
			}
			canceled.Add(1)
			return
		}
		holds.Add(1)
		if names[i].held.Swap(true) {
			t.Error("two hold a name")
		}
		if before := names[i].token.Swap(l.Token()); before >= l.Token() {
			t.Errorf("token %d after %d", l.Token(), before)
		}
		names[i].held.Store(false)
		if err := l.Unlock(context.WithoutCancel(ctx)); err != nil {
			t.Error(err)
		}
	}
	clients := []*locker.Client{b.Client(t), b.Client(t)}
	for _, c := range clients {
		locktest.Unlock(t, locktest.Lock(t, c, "warm", ""))
	}
	var wg sync.WaitGroup
	for i := range 60 {
		wg.Go(func() {
			for ctx.Err() == nil {
				take(clients[i%len(clients)])
			}
		})
	}
	wg.Wait()
	if holds.Load() == 0 || canceled.Load() == 0 {
		t.Errorf("%d holds, %d canceled: the test proves nothing", holds.Load(), canceled.Load())
	}
	locktest.Eventually(t, "nothing is queued", func() bool {
		for i := range names {
			if len(b.Keys(t, locker.DefaultPrefix+fmt.Sprint("name", i)+"/")) > 0 {
				return false
			}
		}
		return true
	})
	for _, c := range clients {
		if err := c.Close(); err != nil {
			t.Error(err)
		}
	}
	if left := b.Keys(t, ""); len(left) > 0 {
		t.Errorf("left in etcd: %v", left)
	}
}
