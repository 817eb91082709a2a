package locker_test

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"math"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/client/v3/concurrency"
	"google.golang.org/grpc"
	"google.golang.org/grpc/status"

	"github.com/jagregory/locker/v2"
	"github.com/jagregory/locker/v2/internal/locktest"
)

// compatible reports whether those with these limits, 0 for a shared one, may hold a name together.
func compatible(limits ...int) bool {
	smallest := slices.Min(limits)
	return smallest == 0 && slices.Max(limits) == 0 || smallest > 0 && len(limits) <= smallest
}

// holding returns how many of a queue hold, given their limits, the oldest first.
func holding(queue []int) (n int) {
	for n < len(queue) && compatible(queue[:n+1]...) {
		n++
	}
	return n
}

// limited returns the option of a lock with the limit, or of a shared one for 0.
func limited(limit int) locker.LockOption {
	if limit == 0 {
		return locker.WithShared()
	}
	return locker.WithLimit(limit)
}

// inQueue locks name in another goroutine, and returns once n entries are in the queue.
func inQueue(ctx context.Context, t testing.TB, b locktest.Bundle, c *locker.Client, n int, name string, opts ...locker.LockOption) <-chan locktest.Outcome {
	t.Helper()
	result := locktest.LockAsync(ctx, c, name, "", opts...)
	b.Queued(t, name, n)
	return result
}

// wantWaiting fails the test if a call has returned.
func wantWaiting(t testing.TB, result <-chan locktest.Outcome) {
	t.Helper()
	select {
	case got := <-result:
		t.Fatalf("it did not wait, and returned %v", got.Err)
	default:
	}
}

// wantHolders fails the test unless the name is held by these, the oldest first.
func wantHolders(t testing.TB, c *locker.Client, name string, locks ...*locker.Lock) {
	t.Helper()
	got, err := c.Holders(locktest.Within(t), name)
	if err != nil {
		t.Fatal(err)
	}
	if want := holdersBy(locks...); !slices.Equal(got, want) {
		t.Errorf("%s is held by %+v, want %+v", name, got, want)
	}
}

// holdersBy returns what others should see of locks.
func holdersBy(locks ...*locker.Lock) (holders []locker.Holder) {
	for _, l := range locks {
		holders = append(holders, locktest.HolderBy(l))
	}
	return holders
}

// sharers returns n clients that share a connection.
func sharers(t testing.TB, b locktest.Bundle, n int) []*locker.Client {
	clients := make([]*locker.Client, n)
	for i := range clients {
		clients[i] = locktest.NewClient(t, b.Etcd)
	}
	return clients
}

// looks returns how many read-only transactions have been sent.
func (w *wire) looks() (n int) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, req := range w.requests {
		txn, ok := req.(*pb.TxnRequest)
		if ok && !slices.ContainsFunc(txn.Success, func(op *pb.RequestOp) bool { return op.GetRequestRange() == nil }) {
			n++
		}
	}
	return n
}

func TestShared_AReaderBehindAWaitingWriterWaits(t *testing.T) {
	t.Parallel()
	b, ctx := locktest.Setup(t), locktest.Within(t)
	c, others := b.Client(t), sharers(t, b, 3)
	first := locktest.Lock(t, c, "a", "", locker.WithShared())
	second := locktest.Lock(t, others[0], "a", "", locker.WithShared()) // together with the first
	writer := inQueue(ctx, t, b, others[1], 3, "a")
	reader := inQueue(ctx, t, b, others[2], 4, "a", locker.WithShared())
	for _, client := range []*locker.Client{c, others[1], b.Client(t)} {
		_, err := client.TryLock(ctx, "a", "", locker.WithShared())
		var locked *locker.LockedError
		if !errors.As(err, &locked) || locked.Holder != locktest.HolderBy(first) {
			t.Errorf("TryLock: %v", err)
		}
	}
	wantHolders(t, c, "a", first, second)
	wantWaiting(t, writer)
	locktest.Unlock(t, first)
	wantWaiting(t, writer)
	wantWaiting(t, reader)
	locktest.Unlock(t, second)
	held := locktest.LockOf(t, writer)
	wantHolders(t, c, "a", held)
	wantWaiting(t, reader)
	locktest.Unlock(t, held)
	wantHolders(t, c, "a", locktest.LockOf(t, reader))
}

func TestShared_AWriterHoldsOnceTheLastReaderHasLeft(t *testing.T) {
	t.Parallel()
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	order := rand.New(rand.NewPCG(seed, 0))
	orders := map[string]func([]*locker.Lock){
		"oldest first": func([]*locker.Lock) {},
		"newest first": slices.Reverse[[]*locker.Lock],
		"at random": func(locks []*locker.Lock) {
			order.Shuffle(len(locks), func(i, j int) { locks[i], locks[j] = locks[j], locks[i] })
		},
	}
	b, ctx := locktest.Setup(t), locktest.Within(t)
	clients := sharers(t, b, 3)
	c, w, _ := watched(t, b.Server.ClientConfig())
	for how, arrange := range orders {
		for _, n := range []int{1, locker.Lookahead, locker.Lookahead + 1, 30} {
			name := fmt.Sprint(n, " leave ", how)
			readers := make([]*locker.Lock, n)
			for i := range readers {
				readers[i] = locktest.Lock(t, clients[i%len(clients)], name, "", locker.WithShared())
			}
			before := w.looks()
			writer := inQueue(ctx, t, b, c, n+1, name)
			arrange(readers)
			for _, reader := range readers {
				wantWaiting(t, writer)
				locktest.Unlock(t, reader)
			}
			b.WantHeldAlone(t, locktest.LockOf(t, writer))
			// Far away it looks, perhaps twice, when one has left; if the oldest leave first, that one leaves late.
			most := map[string]int{"oldest first": 3, "newest first": 3 + 2*(n/locker.Lookahead), "at random": 3 + n}[how]
			if looks := w.looks() - before; looks > most {
				t.Errorf("%s: the writer looked %d times, want at most %d", name, looks, most)
			}
		}
	}
}

func TestShared_OneDeleteFreesAllReadersBehindAWriter(t *testing.T) {
	t.Parallel()
	b, ctx := locktest.Setup(t), locktest.Within(t)
	clients := sharers(t, b, 2)
	c, w := wired(t, b)
	for _, others := range []int{1, 50} {
		name := fmt.Sprint(others, " others")
		writer := locktest.Lock(t, clients[0], name, "")
		before := w.count()
		readers := []<-chan locktest.Outcome{inQueue(ctx, t, b, c, 2, name, locker.WithShared())}
		for range others {
			readers = append(readers, locktest.LockAsync(ctx, clients[1], name, "", locker.WithShared()))
		}
		b.Queued(t, name, 2+others)
		locktest.Unlock(t, writer)
		for _, reader := range readers {
			if l := locktest.LockOf(t, reader); l.Token() <= writer.Token() {
				t.Errorf("token %d after %d", l.Token(), writer.Token())
			}
		}
		if n := w.count() - before; n > 3 { // a put, perhaps a read once the watch is open, and a look
			t.Errorf("%s: a reader took %d requests", name, n)
		}
		if holders, err := c.Holders(ctx, name); len(holders) != 1+others {
			t.Errorf("%d hold, %v", len(holders), err)
		}
	}
}

// events records the keys of the events that a client is sent.
type events struct {
	mu   sync.Mutex // guards what follows
	keys []string
}

type eventStream struct {
	grpc.ClientStream
	events *events
}

func (s *eventStream) RecvMsg(m any) error {
	err := s.ClientStream.RecvMsg(m)
	if answer, ok := m.(*pb.WatchResponse); ok && err == nil {
		s.events.mu.Lock()
		for _, ev := range answer.Events {
			s.events.keys = append(s.events.keys, string(ev.Kv.Key))
		}
		s.events.mu.Unlock()
	}
	return err
}

// of returns how many events were about the queue of name.
func (e *events) of(name string) (n int) {
	e.mu.Lock()
	defer e.mu.Unlock()
	for _, key := range e.keys {
		if strings.HasPrefix(key, locker.DefaultPrefix+name+"/") {
			n++
		}
	}
	return n
}

func TestShared_ReadersThatLeaveSendWaitingReadersNothing(t *testing.T) {
	t.Parallel()
	b, ctx := locktest.Setup(t), locktest.Within(t)
	sent, w := new(events), new(wire)
	config := b.Server.ClientConfig()
	config.DialOptions = append(config.DialOptions, grpc.WithChainUnaryInterceptor(
		func(ctx context.Context, method string, req, reply any, conn *grpc.ClientConn, invoke grpc.UnaryInvoker, opts ...grpc.CallOption) error {
			return w.intercept(ctx, method, req, func() error { return invoke(ctx, method, req, reply, conn, opts...) })
		}), grpc.WithChainStreamInterceptor(
		func(ctx context.Context, desc *grpc.StreamDesc, conn *grpc.ClientConn, method string, open grpc.Streamer, opts ...grpc.CallOption) (grpc.ClientStream, error) {
			stream, err := open(ctx, desc, conn, method, opts...)
			if err != nil {
				return nil, err
			}
			return &eventStream{stream, sent}, nil
		}))
	c := locktest.NewClient(t, locktest.Connect(t, config))
	locker.HedgeAfter(c, unhedged)
	others := sharers(t, b, 2)
	var readers []*locker.Lock
	for range 12 {
		readers = append(readers, locktest.Lock(t, others[0], "a", "", locker.WithShared()))
	}
	writer := inQueue(ctx, t, b, others[1], 13, "a")
	waiting := inQueue(ctx, t, b, c, 14, "a", locker.WithShared())
	marks := locktest.Read(t, c.Watch(ctx, "mark"))
	marks.Free("mark")
	before := w.count()
	for _, reader := range readers {
		locktest.Unlock(t, reader)
	}
	held := locktest.LockOf(t, writer)
	marks.Held(locktest.Lock(t, others[0], "mark", "")) // of the same stream, so what was before that has come
	if n := sent.of("a"); n > 0 || w.count() != before {
		t.Errorf("it was sent %d events, and made %d requests", n, w.count()-before)
	}
	wantWaiting(t, waiting)
	locktest.Unlock(t, held)
	wantHolders(t, c, "a", locktest.LockOf(t, waiting))
	if n := sent.of("a"); n != 1 {
		t.Errorf("it was sent %d events, want the deletion of the writer's entry", n)
	}
}

func TestShared_AWaiterWhoseEntryIsDeletedDoesNotHold(t *testing.T) {
	t.Parallel()
	b, ctx := locktest.Setup(t), locktest.Within(t)
	clients := sharers(t, b, 2)
	writer := locktest.Lock(t, clients[0], "a", "")
	reader := inQueue(ctx, t, b, clients[1], 2, "a", locker.WithShared())
	keys := slices.DeleteFunc(b.Keys(t, locker.DefaultPrefix+"a/"), func(key string) bool { return key == writer.Key() })
	if resp, err := b.Etcd.Delete(ctx, keys[0]); err != nil || resp.Deleted != 1 {
		t.Fatal(resp, err)
	}
	locktest.Unlock(t, writer)
	var lost *locker.LostError
	if err := locktest.Receive(t, reader).Err; !errors.Is(err, locker.ErrLost) || !errors.As(err, &lost) || lost.Name != "a" || lost.Reason != locker.Deleted {
		t.Errorf("Lock returned %v", err)
	}
	b.WantNoEntries(t)
	locktest.Unlock(t, locktest.Lock(t, clients[1], "a", "", locker.WithShared()))
}

func TestShared_ManyOfOneClientLockInFewCommits(t *testing.T) {
	t.Parallel()
	b, ctx, w := locktest.Setup(t), locktest.Within(t), new(wire)
	c := locktest.NewClient(t, b.Server.ClientWith(t, w.intercept))
	locker.HedgeAfter(c, unhedged)
	locker.SendOneAtATime(c)
	locktest.Unlock(t, locktest.Lock(t, c, "warm", ""))
	const n = 100
	first := w.stop(t, false, func(req any) bool { return writes(req, "a") })
	before := len(w.transactions(0))
	results := []<-chan locktest.Outcome{locktest.LockAsync(ctx, c, "a", "", locker.WithShared())}
	locktest.Receive(t, first.arrived)
	for range n - 1 {
		results = append(results, locktest.LockAsync(ctx, c, "a", "", locker.WithShared()))
	}
	locktest.Eventually(t, "all others are to be sent", func() bool { return locker.Gathering(c) == n-1 })
	first.open()
	locks := make([]*locker.Lock, n)
	for i, result := range results {
		locks[i] = locktest.LockOf(t, result)
	}
	if sent := len(w.transactions(before)); sent > 3 {
		t.Errorf("%d transactions for %d locks", sent, n)
	}
	slices.SortFunc(locks, func(a, b *locker.Lock) int { // as in the queue
		if a.Token() != b.Token() {
			return int(a.Token() - b.Token())
		}
		return strings.Compare(a.Key(), b.Key())
	})
	wantHolders(t, c, "a", locks...)
	var holders sync.WaitGroup
	for _, l := range locks {
		holders.Go(func() {
			if _, err := l.Commit(ctx, clientv3.OpPut("written", l.Key())); err != nil {
				t.Error(err)
			}
			if err := l.Unlock(ctx); err != nil {
				t.Error(err)
			}
		})
	}
	holders.Wait()
	b.WantNoEntries(t)
}

func TestShared_InsideAClientTheOrderOfArrivalCounts(t *testing.T) {
	t.Parallel()
	b, ctx := locktest.Setup(t), locktest.Within(t)
	c := b.Client(t)
	first, second := locktest.Lock(t, c, "a", "", locker.WithShared()), locktest.Lock(t, c, "a", "", locker.WithShared())
	writer := inLine(ctx, t, c, 0, "a", "")
	third := inLine(ctx, t, c, 1, "a", "", locker.WithShared())
	fourth := inLine(ctx, t, c, 2, "a", "", locker.WithShared())
	last := inLine(ctx, t, c, 3, "a", "")
	locktest.Unlock(t, second)
	wantWaiting(t, writer)
	locktest.Unlock(t, first)
	held := locktest.LockOf(t, writer)
	wantWaiting(t, third)
	wantHolders(t, c, "a", held)
	locktest.Unlock(t, held)
	readers := []*locker.Lock{locktest.LockOf(t, third), locktest.LockOf(t, fourth)}
	wantWaiting(t, last)
	for _, reader := range readers {
		locktest.Unlock(t, reader)
	}
	b.WantHeldAlone(t, locktest.LockOf(t, last))
}

func TestShared_ReadersThatKeepComingDoNotStarveAWriter(t *testing.T) {
	t.Parallel()
	b, ctx := locktest.Setup(t), locktest.Within(t)
	c := b.Client(t)
	enough, held := make(chan struct{}), make(chan struct{}, 1)
	var readers sync.WaitGroup
	for range 6 {
		readers.Go(func() {
			for {
				l, err := c.Lock(ctx, "a", "", locker.WithShared())
				if err != nil {
					t.Error(err)
					return
				}
				select {
				case held <- struct{}{}:
				case <-enough:
					_ = l.Unlock(ctx)
					return
				default:
				}
				if err := l.Unlock(ctx); err != nil {
					t.Error(err)
				}
			}
		})
	}
	for range 5 {
		locktest.Receive(t, held)
		locktest.Unlock(t, locktest.Lock(t, c, "a", ""))
	}
	close(enough)
	readers.Wait()
}

// deletes reports whether a request deletes an entry from the queue of name.
func deletes(req any, name string) bool {
	return slices.ContainsFunc(writesOf(req), func(w write) bool { return w.name == name && w.deleted != "" })
}

func TestShared_AKeyIsUsedAgainOnlyAfterItsUnlockIsConfirmed(t *testing.T) {
	t.Parallel()
	b, ctx, w := locktest.Setup(t), locktest.Within(t), new(wire)
	c := locktest.NewClient(t, b.Server.ClientWith(t, w.intercept))
	locker.HedgeAfter(c, 20*time.Millisecond) // for so long another put of the name waits for the answer
	locktest.Unlock(t, locktest.Lock(t, c, "warm", ""))
	var locks []*locker.Lock
	used := make(map[string]bool)
	lock := func() *locker.Lock {
		l := locktest.Lock(t, c, "a", "", locker.WithShared())
		if used[l.Key()] {
			t.Errorf("%s is used twice", l.Key())
		}
		used[l.Key()] = true
		locks = append(locks, l)
		return l
	}
	first := lock()
	lock()
	arrived, opened := make(chan struct{}, 1000), make(chan struct{})
	w.fail(math.MaxInt, func(req any) bool { return deletes(req, "a") }, func(ctx context.Context, call func() error) error {
		arrived <- struct{}{}
		select {
		case <-opened:
			return call()
		case <-ctx.Done():
			return status.FromContextError(ctx.Err()).Err()
		}
	})
	unlocked := locktest.Async(func() error { return first.Unlock(ctx) })
	locktest.Receive(t, arrived)
	lock()
	close(opened)
	if err := locktest.Receive(t, unlocked); err != nil {
		t.Fatal(err)
	}
	delete(used, first.Key())
	if again := lock(); again.Key() != first.Key() || again.Token() <= locks[2].Token() {
		t.Errorf("%s, token %d, after %s, token %d", again.Key(), again.Token(), first.Key(), first.Token())
	}
	for _, l := range locks[1:] {
		locktest.Unlock(t, l)
	}
	b.WantNoEntries(t)
}

func TestShared_OnAnAdoptedSessionBesideItsMutex(t *testing.T) {
	t.Parallel()
	b, ctx := locktest.Setup(t), locktest.Within(t)
	c := b.Client(t)
	theirs := locktest.ConcurrencySession(t, b.Etcd, 60)
	s, err := c.AdoptSession(theirs)
	if err != nil {
		t.Fatal(err)
	}
	shared := []locker.LockOption{locker.WithSession(s), locker.WithShared()}
	first, second := locktest.Lock(t, c, "a", "", shared...), locktest.Lock(t, c, "a", "", shared...)
	mutex := concurrency.NewMutex(theirs, locker.DefaultPrefix+"a")
	locked := locktest.Async(func() error { return mutex.Lock(ctx) })
	b.Queued(t, "a", 3)
	third := inQueue(ctx, t, b, c, 4, "a", shared...)
	locktest.Unlock(t, first)
	select {
	case err := <-locked:
		t.Fatalf("the Mutex did not wait: %v", err)
	default:
	}
	wantHolders(t, c, "a", second)
	locktest.Unlock(t, second)
	if err := locktest.Receive(t, locked); err != nil {
		t.Fatal(err)
	}
	wantWaiting(t, third)
	if holder := locktest.Get(t, c, "a"); holder.Lease != theirs.Lease() || holder.Limit != 1 {
		t.Errorf("%+v holds", holder)
	}
	if err := mutex.Unlock(ctx); err != nil {
		t.Fatal(err)
	}
	b.WantHeldAlone(t, locktest.LockOf(t, third))
	if err := s.Close(); err != nil {
		t.Error(err)
	}
	b.WantNoEntries(t)
}

// eachKind calls f for each kind of lock, given its option and the limit that others see.
func eachKind(t *testing.T, f func(t *testing.T, kind locker.LockOption, limit int)) {
	for _, limit := range []int{0, 1, 2} {
		t.Run(fmt.Sprint("limit ", limit), func(t *testing.T) {
			t.Parallel()
			f(t, limited(limit), limit)
		})
	}
}

func TestKinds_EachVerb(t *testing.T) {
	t.Parallel()
	eachKind(t, func(t *testing.T, kind locker.LockOption, limit int) {
		b, ctx := locktest.Setup(t), locktest.Within(t)
		c, other := b.Client(t), b.Client(t)
		s := locktest.NewSession(t, c)
		var company []*locker.Lock
		if limit != 1 {
			company = append(company, locktest.Lock(t, other, "a", "company", kind))
		}
		use := func(_ context.Context, l *locker.Lock) error {
			all := append(slices.Clone(company), l)
			wantHolders(t, other, "a", all...)
			locktest.SetValue(t, l, "new")
			wantHolders(t, other, "a", all...)
			if _, err := l.Commit(ctx, clientv3.OpPut("written", "x")); err != nil || b.HolderOf(t, l).Limit != limit {
				t.Errorf("Commit: %v; %+v holds", err, b.HolderOf(t, l))
			}
			_, err := other.TryLock(ctx, "a", "")
			locktest.Want(t, err, locker.ErrLocked)
			guarded := func() bool {
				resp, err := b.Etcd.Txn(ctx).If(l.Guard()...).Commit()
				return err == nil && resp.Succeeded
			}
			if !guarded() {
				t.Error("the guard is false")
			}
			locktest.Unlock(t, l)
			if guarded() {
				t.Error("the guard is true")
			}
			_, err = l.Commit(ctx)
			locktest.Want(t, err, locker.ErrReleased)
			return nil
		}
		for what, lock := range map[string]func() error{
			"Lock":        func() error { return use(ctx, locktest.Lock(t, c, "a", "v", kind)) },
			"WithSession": func() error { return use(ctx, locktest.Lock(t, c, "a", "v", locker.WithSession(s), kind)) },
			"TryLock": func() error {
				l, err := c.TryLock(ctx, "a", "v", kind)
				if err != nil {
					return err
				}
				return use(ctx, l)
			},
			"Do":       func() error { return c.Do(ctx, "a", "v", use, kind) },
			"Campaign": func() error { return c.Campaign(ctx, "a", "v", use, kind) },
		} {
			if err := lock(); err != nil {
				t.Errorf("%s: %v", what, err)
			}
		}
		for _, l := range company {
			locktest.Unlock(t, l)
		}
		b.WantNoEntries(t)
	})
}

// states returns a function that returns the next state of a watch.
func states(t testing.TB, watch iter.Seq2[locker.State, error]) func() locker.State {
	next, stop := iter.Pull2(watch)
	t.Cleanup(stop)
	return func() locker.State {
		t.Helper()
		state, err, ok := next()
		if err != nil || !ok {
			t.Fatalf("no state, but %v (%v)", err, ok)
		}
		state.Revision = 0
		return state
	}
}

func TestKinds_ObserversSeeAllHolders(t *testing.T) {
	t.Parallel()
	for _, limit := range []int{0, 3} {
		t.Run(fmt.Sprint("limit ", limit), func(t *testing.T) {
			t.Parallel()
			b, ctx := locktest.Setup(t), locktest.Within(t)
			c, other, kind := b.Client(t), b.Client(t), limited(limit)
			cache := locktest.NewCache(t, c, "")
			first := locktest.Lock(t, other, "a", "first", kind)
			single := locktest.Lock(t, other, "b", "")
			watches := []func() locker.State{states(t, c.Watch(ctx, "a")), states(t, c.WatchPrefix(ctx, "a"))}
			// see checks what each observer sees of "a".
			see := func(holders ...*locker.Lock) {
				t.Helper()
				want := holdersBy(holders...)
				wantHolders(t, c, "a", holders...)
				if got := locktest.Get(t, c, "a"); got != want[0] {
					t.Errorf("Get: %+v, want %+v", got, want[0])
				}
				all := append(slices.Clone(want), locktest.HolderBy(single))
				if got := locktest.List(t, c, ""); !slices.Equal(got, all) {
					t.Errorf("List: %+v, want %+v", got, all)
				}
				locktest.Eventually(t, "the cache has it", func() bool { return slices.Equal(cache.Holders("a"), want) })
				if got, ok := cache.Get("a"); !ok || got != want[0] || !slices.Equal(cache.List(), all) {
					t.Errorf("the cache has %+v and %+v, want %+v", got, cache.List(), all)
				}
			}
			changed := func(holders ...*locker.Lock) {
				t.Helper()
				see(holders...)
				want := locker.State{Holder: locktest.HolderBy(holders[0]), Held: true, Holders: len(holders)}
				for _, next := range watches {
					if got := next(); got != want {
						t.Errorf("a watch yields %+v, want %+v", got, want)
					}
				}
			}
			changed(first)
			second := locktest.Lock(t, c, "a", "second", kind)
			changed(first, second)
			third := locktest.Lock(t, other, "a", "third", kind)
			changed(first, second, third)
			waiter := inQueue(ctx, t, b, b.Client(t), 4, "a")
			see(first, second, third)
			locktest.SetValue(t, second, "new")
			see(first, second, third)
			locktest.SetValue(t, first, "newer")
			changed(first, second, third)
			locktest.Unlock(t, second)
			changed(first, third)
			locktest.Unlock(t, first)
			changed(third)
			locktest.Unlock(t, third)
			changed(locktest.LockOf(t, waiter))
		})
	}
}
