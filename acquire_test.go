package locker_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
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
)

// watches counts the watches of a client on its streams.
type watches struct {
	mu     sync.Mutex // guards what follows
	opened int
	open   map[*watchStream]int
}

type watchStream struct {
	grpc.ClientStream
	watches *watches
}

func (s *watchStream) SendMsg(m any) error {
	if req, ok := m.(*pb.WatchRequest); ok {
		s.watches.mu.Lock()
		if req.GetCreateRequest() != nil {
			s.watches.opened++
			s.watches.open[s]++
		}
		if req.GetCancelRequest() != nil {
			s.watches.open[s]--
		}
		s.watches.mu.Unlock()
	}
	return s.ClientStream.SendMsg(m)
}

// count returns how many have been opened, and how many are open.
func (w *watches) count() (opened, open int) {
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
func watched(t testing.TB, config clientv3.Config, opts ...locker.Option) (*locker.Client, *wire, *watches) {
	t.Helper()
	w, ws := new(wire), &watches{open: make(map[*watchStream]int)}
	config.DialOptions = append(config.DialOptions, embedtest.Intercept(w.intercept).DialOption(), grpc.WithChainStreamInterceptor(
		func(ctx context.Context, desc *grpc.StreamDesc, conn *grpc.ClientConn, method string, open grpc.Streamer, opts ...grpc.CallOption) (grpc.ClientStream, error) {
			stream, err := open(ctx, desc, conn, method, opts...)
			if err != nil {
				return nil, err
			}
			return &watchStream{stream, ws}, nil
		}))
	c := newClient(t, connect(t, config), opts...)
	locker.HedgeAfter(c, unhedged)
	locker.KeepWatchesFor(c, 5*time.Second)
	return c, w, ws
}

// relay passes a name to and fro between two clients.
type relay struct {
	clients [2]*locker.Client
	turn    int // whose it is
	present *locker.Lock
}

func newRelay(t testing.TB, first, second *locker.Client) *relay {
	return &relay{clients: [2]*locker.Client{first, second}, present: lock(t, first, "a", "")}
}

// pass has the other client wait and then hold; between, if any, is called while it waits.
func (r *relay) pass(t testing.TB, b bundle, between func()) {
	t.Helper()
	r.turn = 1 - r.turn
	other := lockAsync(within(t), r.clients[r.turn], "a", "")
	b.Queued(t, "a", 2)
	if between != nil {
		between()
	}
	if len(other) > 0 {
		t.Fatal("it was served while another held")
	}
	unlock(t, r.present)
	next := lockOf(t, other)
	if next.Token() <= r.present.Token() {
		t.Errorf("token %d after %d", next.Token(), r.present.Token())
	}
	b.holds(t, next)
	r.present = next
}

func TestQueue_PassingANameToAndFroCostsFewReadsAndWatches(t *testing.T) {
	t.Parallel()
	b := setup(t)
	first, w1, ws1 := watched(t, b.Server.ClientConfig(), locker.WithTTL(unhurried))
	second, w2, ws2 := watched(t, b.Server.ClientConfig(), locker.WithTTL(unhurried))
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
	unlock(t, r.present)
	began := time.Now()
	eventually(t, "no watch is left", func() bool {
		_, open1 := ws1.count()
		_, open2 := ws2.count()
		return open1 == 0 && open2 == 0
	})
	if took := time.Since(began); took > prompt {
		t.Errorf("watches were open for %v", took)
	}
}

func TestQueue_AKeptWatchIsNotLeakedWhenAnotherIsKept(t *testing.T) {
	t.Parallel()
	b := setup(t)
	c, w, ws := watched(t, b.Server.ClientConfig(), locker.WithTTL(unhurried))
	r := newRelay(t, b.Client(t), c)
	for range 10 {
		r.pass(t, b, nil) // which keeps a watch
		r.pass(t, b, nil)
		// Now its place in the queue is unknown, so that it has to look.
		w.fail(1, func(req any) bool { return enqueues(req, "a") }, faultsOfARequest["its reply is lost"])
		r.pass(t, b, nil)
		r.pass(t, b, nil)
	}
	unlock(t, r.present)
	began := time.Now()
	eventually(t, "no watch is left", func() bool {
		_, open := ws.count()
		return open == 0 || time.Since(began) > prompt
	})
	if opened, open := ws.count(); open > 0 {
		t.Errorf("%d of %d watches are open", open, opened)
	}
}

func TestQueue_AKeptWatchMissesNoHandOver(t *testing.T) {
	t.Parallel()
	b := setup(t, embedtest.WithMembers(3))
	proxy := b.Server.Proxy(t)
	c := newClient(t, proxy.Client(t), locker.WithTTL(unhurried))
	locker.KeepWatchesFor(c, 5*time.Second)
	unlock(t, lock(t, c, "warm", ""))
	faults := map[string]struct{ before, during func() }{
		"reset before":  {before: func() { proxy.Reset() }},
		"reset during":  {during: func() { proxy.Reset() }},
		"compaction":    {during: func() { b.Server.Compact(t) }},
		"another time":  {},
		"both of these": {before: func() { proxy.Reset(); b.Server.Compact(t) }, during: func() { b.Server.Compact(t); proxy.Reset() }},
	}
	for member := range 3 {
		faults[fmt.Sprint("member frozen before ", member)] = struct{ before, during func() }{before: func() { proxy.Freeze(member) }}
		faults[fmt.Sprint("member frozen during ", member)] = struct{ before, during func() }{during: func() { proxy.Freeze(member) }}
	}
	r := newRelay(t, b.Client(t), c)
	for _, fault := range faults {
		r.pass(t, b, nil) // with a watch that is kept
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
	b := setup(t)
	proxy := b.Server.Proxy(t)
	c, _, ws := watched(t, proxy.ClientConfig(), locker.WithTTL(unhurried))
	r := newRelay(t, b.Client(t), c)
	for _, releasedMeanwhile := range []bool{true, false, true, false} {
		r.pass(t, b, nil) // with a watch that is kept
		r.pass(t, b, nil)
		waiter := lockAsync(within(t), c, "a", "")
		b.Queued(t, "a", 2)
		before, _ := ws.count()
		proxy.Cut()
		putKey(t, b.Etcd, "elsewhere", "")
		if releasedMeanwhile {
			unlock(t, r.present)
		}
		b.Server.Compact(t) // so that the watch cannot be resumed
		proxy.Heal()
		if !releasedMeanwhile {
			eventually(t, "it watches again", func() bool {
				opened, _ := ws.count()
				return opened > before+1 || len(waiter) > 0 // the first is an attempt to resume
			})
			if len(waiter) > 0 {
				t.Fatal("it was served while another held")
			}
			unlock(t, r.present)
		}
		r.turn, r.present = 1, lockOf(t, waiter)
		b.holds(t, r.present)
		r.pass(t, b, nil)
	}
}

func TestQueue_MoreWaitersThanTheLookaheadAreServedInOrder(t *testing.T) {
	t.Parallel()
	b, ctx := setup(t), within(t)
	clients := make([]*locker.Client, 12)
	for i := range clients {
		clients[i] = b.Client(t)
	}
	first := b.Client(t)
	for range 2 { // the second time with watches that were kept
		present := lock(t, first, "a", "")
		waiters := make([]<-chan outcome, len(clients))
		for i, c := range clients {
			waiters[i] = lockAsync(ctx, c, "a", "")
			b.Queued(t, "a", i+2)
		}
		for i, waiter := range waiters {
			for j, later := range waiters[i:] {
				select {
				case got := <-later:
					t.Fatalf("waiter %d was served while another held: %v", i+j, got.Err)
				default:
				}
			}
			unlock(t, present)
			present = lockOf(t, waiter)
		}
		unlock(t, present)
	}
}

// holdBack is an etcd that withholds what concerns an entry of "a", while it does, and
// signals the first of that.
type holdBack struct {
	bundle
	on      atomic.Bool
	held    chan struct{}
	proceed chan struct{}
}

func newHoldBack(t *testing.T) (*holdBack, *locker.Client) {
	h := &holdBack{bundle: setup(t), held: make(chan struct{}, 1000), proceed: make(chan struct{})}
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
	c := newClient(t, etcd, locker.WithTTL(time.Minute))
	unlock(t, lock(t, c, "b", "v")) // opens the session
	return h, c
}

// tryAsync tries to lock "a" in another goroutine.
func tryAsync(ctx context.Context, c *locker.Client) <-chan outcome {
	result := make(chan outcome, 1)
	go func() {
		l, err := c.TryLock(ctx, "a", "try")
		result <- outcome{Lock: l, Err: err}
	}()
	return result
}

func TestTryLock_WaitsForTheRemovalOfWhatIsOver(t *testing.T) {
	t.Parallel()
	enough := errors.New("enough")
	over := map[string]func(t *testing.T, h *holdBack, c *locker.Client){
		"a Lock that was given up": func(t *testing.T, h *holdBack, c *locker.Client) {
			h.on.Store(true)
			ctx, cancel := context.WithCancelCause(within(t))
			result := lockAsync(ctx, c, "a", "v")
			receive(t, h.held)
			cancel(enough)
			want(t, receive(t, result).Err, enough)
		},
		"an Unlock that was given up": func(t *testing.T, h *holdBack, c *locker.Client) {
			l := lock(t, c, "a", "v")
			h.on.Store(true)
			ctx, cancel := context.WithCancelCause(within(t))
			cancel(enough)
			want(t, l.Unlock(ctx), enough)
		},
	}
	for what, end := range over {
		t.Run(what, func(t *testing.T) {
			t.Parallel()
			h, c := newHoldBack(t)
			end(t, h, c)
			ctx, cancel := context.WithTimeoutCause(within(t), 200*time.Millisecond, enough)
			defer cancel()
			_, err := c.TryLock(ctx, "a", "try")
			want(t, err, enough)
			tried := tryAsync(within(t), c)
			select {
			case got := <-tried:
				t.Errorf("it did not wait: %v", got.Err)
			case <-time.After(200 * time.Millisecond):
			}
			close(h.proceed)
			got := receive(t, tried)
			if got.Err != nil {
				t.Fatal(got.Err)
			}
			h.Queued(t, "a", 1)
			unlock(t, got.Lock)
		})
	}
}

func TestTryLock_DoesNotWaitForThoseWhoAreNext(t *testing.T) {
	t.Parallel()
	h, c := newHoldBack(t)
	l := lock(t, c, "a", "v")
	h.on.Store(true)
	ended, cancel := context.WithCancel(within(t))
	cancel()
	waiting := tryAsync(within(t), c)
	want(t, receive(t, waiting).Err, locker.ErrLocked) // it is held
	want(t, l.Unlock(ended), context.Canceled)
	before := tryAsync(within(t), c) // waits for the removal
	next := lockAsync(within(t), c, "a", "next")
	eventually(t, "the next is in line", func() bool { return locker.Waiting(c, "a") == 1 })
	want(t, receive(t, tryAsync(within(t), c)).Err, locker.ErrLocked)
	close(h.proceed)
	if got := receive(t, next); got.Err != nil {
		t.Fatal(got.Err)
	}
	if got := receive(t, before); !errors.Is(got.Err, locker.ErrLocked) {
		t.Errorf("it jumped the line, or waited for a holder: %v", got.Err)
	}
}

// dam is a transaction that is held back, so that others gather behind it.
type dam struct {
	barrier
	lock <-chan outcome
}

func newDam(t testing.TB, c *locker.Client, w *wire) dam {
	t.Helper()
	g := w.stop(t, false, func(req any) bool { return writes(req, "dam") })
	d := dam{g, lockAsync(within(t), c, "dam", "")}
	receive(t, g.arrived)
	return d
}

// burst lets everything flow.
func (d dam) burst(t testing.TB) {
	t.Helper()
	d.open()
	unlock(t, lockOf(t, d.lock))
}

// gathered locks n names, and returns when their writes wait.
func gathered(ctx context.Context, t testing.TB, c *locker.Client, n int) map[string]<-chan outcome {
	t.Helper()
	before, results := locker.Gathering(c), make(map[string]<-chan outcome)
	for i := range n {
		name := fmt.Sprint("name", i)
		results[name] = lockAsync(ctx, c, name, "of "+name)
	}
	eventually(t, "they wait", func() bool { return locker.Gathering(c) == before+n })
	return results
}

// wantEach wants each name to be held by the one who asked for it, and nobody else.
func (b bundle) wantEach(t testing.TB, results map[string]<-chan outcome) (locks []*locker.Lock) {
	t.Helper()
	observer := b.Client(t)
	for name, result := range results {
		l := lockOf(t, result)
		locks = append(locks, l)
		b.holds(t, l)
		if holder := get(t, observer, name); l.Name() != name || holder.Value != "of "+name || holder.Token != l.Token() {
			t.Errorf("%+v holds %s, want token %d", holder, name, l.Token())
		}
	}
	return locks
}

// unlockAll unlocks all at once.
func unlockAll(t testing.TB, locks []*locker.Lock) {
	t.Helper()
	ctx := within(t)
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

// nothingQueued wants all queues to be empty.
func (b bundle) nothingQueued(t testing.TB) {
	t.Helper()
	for _, key := range b.Keys(t, locker.DefaultPrefix) {
		if !strings.HasPrefix(key, locker.DefaultPrefix+"/") { // which are records
			t.Errorf("left in a queue: %s", key)
		}
	}
}

func TestGroupCommit_ALoneWriteIsSentAtOnceAndAlone(t *testing.T) {
	t.Parallel()
	b := setup(t)
	c, w := b.wired(t)
	before := w.count()
	quickest := time.Duration(1<<63 - 1)
	const n = 10
	for range n {
		began := time.Now()
		unlock(t, lock(t, c, "a", ""))
		quickest = min(quickest, time.Since(began))
	}
	if requests := w.count() - before; requests != 2*n {
		t.Errorf("%d requests for %d holds", requests, n)
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, req := range w.requests[before:] {
		if !enqueues(req, "a") && !releases(req, "a") {
			t.Errorf("not a plain transaction: %v", req)
		}
	}
	if quickest > 200*time.Millisecond {
		t.Errorf("a lone hold took %v at least", quickest)
	}
}

func TestGroupCommit_WritesGatherWhileOneIsInFlightAndAreSentTogether(t *testing.T) {
	t.Parallel()
	b := setup(t)
	c, w := b.wired(t, locker.WithTTL(unhurried))
	d := newDam(t, c, w)
	const n = 50
	before := len(w.transactions(0))
	results := gathered(within(t), t, c, n)
	if sent := w.transactions(before); len(sent) > 0 {
		t.Errorf("sent while one was in flight: %v", sent)
	}
	d.open()
	locks := b.wantEach(t, results)
	if sent := w.transactions(before); len(sent) != 1 || len(sent[0]) != n {
		t.Errorf("%d writes left as %v", n, sent)
	}
	for _, l := range locks {
		if l.Token() != locks[0].Token() {
			t.Errorf("tokens %d and %d by one transaction", l.Token(), locks[0].Token())
		}
	}
	unlockAll(t, append(locks, lockOf(t, d.lock)))
	b.nothingQueued(t)
}

func TestGroupCommit_ATransactionHasAtMostOneWriteOfEachName(t *testing.T) {
	t.Parallel()
	b, ctx := setup(t), within(t)
	c, w := b.wired(t, locker.WithTTL(unhurried))
	locks := []*locker.Lock{lock(t, c, "x", ""), lock(t, c, "y", "")}
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
	eventually(t, "they wait", func() bool { return locker.Gathering(c) == 2*n })
	d.burst(t)
	writers.Wait()
	together := false
	for _, txn := range w.transactions(before) {
		names := make(map[string]bool)
		for _, write := range txn {
			if names[write.name] {
				t.Errorf("a transaction of %v", txn)
			}
			names[write.name] = true
		}
		together = together || len(txn) > 1
	}
	if !together {
		t.Error("none left together")
	}
	if refused := w.refusals(); len(refused) > 0 {
		t.Errorf("etcd refused: %v", refused)
	}
	for _, l := range locks {
		if holder := get(t, c, l.Name()); holder.Value != l.Value() || holder.Token != l.Token() {
			t.Errorf("%+v there, %q here", holder, l.Value())
		}
	}
}

func TestGroupCommit_ServesManyThoughTheServerTakesFewOperations(t *testing.T) {
	t.Parallel()
	for _, limit := range []uint{4, 8, 16} {
		t.Run(fmt.Sprint(limit), func(t *testing.T) {
			t.Parallel()
			b := setup(t, embedtest.WithConfig(func(c *embed.Config) { c.MaxTxnOps = limit }))
			c, w := b.wired(t, locker.WithTTL(unhurried))
			for range 4 {
				d := newDam(t, c, w)
				results := gathered(within(t), t, c, 40)
				d.burst(t)
				unlockAll(t, b.wantEach(t, results))
				b.nothingQueued(t)
			}
			// Each refusal halves what leaves together, from 40 down to 1.
			if refused := w.refusals(); len(refused) == 0 || len(refused) > 7 {
				t.Errorf("%d refusals", len(refused))
			}
		})
	}
}

func TestGroupCommit_ManyWritersCanceledAtRandomLeaveNothing(t *testing.T) {
	b := setup(t)
	ctx, cancel := context.WithTimeout(within(t), 2*time.Second)
	defer cancel()
	var names [16]struct {
		held  atomic.Bool
		token atomic.Int64
	}
	var holds, cancelled atomic.Int64
	take := func(c *locker.Client) {
		patience := rand.N(30 * time.Millisecond)
		if rand.IntN(10) == 0 {
			patience = time.Minute // however slow the machine is, some have their turn
		}
		short, cancel := context.WithTimeout(ctx, patience)
		defer cancel()
		i := rand.IntN(len(names))
		l, err := c.Lock(short, fmt.Sprint("name", i), "")
		if err != nil {
			if !errors.Is(err, context.DeadlineExceeded) {
				t.Error(err)
			}
			cancelled.Add(1)
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
		unlock(t, lock(t, c, "warm", ""))
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
	if holds.Load() == 0 || cancelled.Load() == 0 {
		t.Errorf("%d holds, %d cancelled: it proves nothing", holds.Load(), cancelled.Load())
	}
	eventually(t, "nothing is queued", func() bool {
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
