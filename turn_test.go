package locker_test

import (
	"context"
	"fmt"
	"sync"
	"testing"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	clientv3 "go.etcd.io/etcd/client/v3"
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
	b.queued(t, "a", 2)
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

func TestANamePassedToAndFroCostsFewReadsAndWatches(t *testing.T) {
	t.Parallel()
	b := setup(t)
	first, w1, ws1 := watched(t, b.server.ClientConfig(), locker.WithTTL(unhurried))
	second, w2, ws2 := watched(t, b.server.ClientConfig(), locker.WithTTL(unhurried))
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

func TestAWatchThatWasKeptIsNotForgottenWhenAnotherIs(t *testing.T) {
	t.Parallel()
	b := setup(t)
	c, w, ws := watched(t, b.server.ClientConfig(), locker.WithTTL(unhurried))
	r := newRelay(t, b.client(t), c)
	for range 10 {
		r.pass(t, b, nil) // which keeps a watch
		r.pass(t, b, nil)
		// Now its place in the queue is unknown, so that it has to look.
		w.fail(1, func(req any) bool { return putOf(req, "a") }, faultsOfARequest["its reply is lost"])
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

func TestAKeptWatchLosesNoHandOver(t *testing.T) {
	t.Parallel()
	b := setup(t, embedtest.WithMembers(3))
	proxy := b.server.Proxy(t)
	c := newClient(t, proxy.Client(t), locker.WithTTL(unhurried))
	locker.KeepWatchesFor(c, 5*time.Second)
	unlock(t, lock(t, c, "warm", ""))
	faults := map[string]struct{ before, during func() }{
		"reset before":  {before: func() { proxy.Reset() }},
		"reset during":  {during: func() { proxy.Reset() }},
		"compaction":    {during: func() { b.server.Compact(t) }},
		"another time":  {},
		"both of these": {before: func() { proxy.Reset(); b.server.Compact(t) }, during: func() { b.server.Compact(t); proxy.Reset() }},
	}
	for member := range 3 {
		faults[fmt.Sprint("member frozen before ", member)] = struct{ before, during func() }{before: func() { proxy.Freeze(member) }}
		faults[fmt.Sprint("member frozen during ", member)] = struct{ before, during func() }{during: func() { proxy.Freeze(member) }}
	}
	r := newRelay(t, b.client(t), c)
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

func TestAWaiterWhoseWatchEndsLooksAgain(t *testing.T) {
	t.Parallel()
	b := setup(t)
	proxy := b.server.Proxy(t)
	c, _, ws := watched(t, proxy.ClientConfig(), locker.WithTTL(unhurried))
	r := newRelay(t, b.client(t), c)
	for _, releasedMeanwhile := range []bool{true, false, true, false} {
		r.pass(t, b, nil) // with a watch that is kept
		r.pass(t, b, nil)
		waiter := lockAsync(within(t), c, "a", "")
		b.queued(t, "a", 2)
		before, _ := ws.count()
		proxy.Cut()
		putKey(t, b.etcd, "elsewhere", "")
		if releasedMeanwhile {
			unlock(t, r.present)
		}
		b.server.Compact(t) // so that the watch cannot be resumed
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

func TestMoreThanAreNearAreServedInOrder(t *testing.T) {
	t.Parallel()
	b, ctx := setup(t), within(t)
	clients := make([]*locker.Client, 12)
	for i := range clients {
		clients[i] = b.client(t)
	}
	first := b.client(t)
	for range 2 { // the second time with watches that were kept
		present := lock(t, first, "a", "")
		waiters := make([]<-chan outcome, len(clients))
		for i, c := range clients {
			waiters[i] = lockAsync(ctx, c, "a", "")
			b.queued(t, "a", i+2)
		}
		for i, waiter := range waiters {
			for j, later := range waiters[i:] {
				select {
				case got := <-later:
					t.Fatalf("waiter %d was served while another held: %v", i+j, got.err)
				default:
				}
			}
			unlock(t, present)
			present = lockOf(t, waiter)
		}
		unlock(t, present)
	}
}
