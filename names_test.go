package locker_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/server/v3/embed"

	"github.com/jagregory/locker/v2"
	"github.com/jagregory/locker/v2/embedtest"
	"github.com/jagregory/locker/v2/internal/locktest"
)

// together returns the options that lock more names besides the first, each with opts, as the first is.
func together(names []string, opts ...locker.LockOption) []locker.LockOption {
	all := opts[:len(opts):len(opts)]
	for _, name := range names {
		all = append(all, locker.And(name, "", opts...))
	}
	return all
}

// numbered returns n names.
func numbered(n int) (names []string) {
	for i := range n {
		names = append(names, fmt.Sprint("name", i))
	}
	return names
}

// lockNames locks several names at once, or fails the test.
func lockNames(t testing.TB, c *locker.Client, names []string, opts ...locker.LockOption) *locker.Lock {
	t.Helper()
	return locktest.Lock(t, c, names[0], "", together(names[1:], opts...)...)
}

// entryOf returns the key of the only entry in the queue of name.
func entryOf(t testing.TB, b locktest.Bundle, name string) string {
	t.Helper()
	keys := b.Keys(t, locker.DefaultPrefix+name+"/")
	if len(keys) != 1 {
		t.Fatalf("in the queue of %s: %v", name, keys)
	}
	return keys[0]
}

// deleteKey deletes a key, as an operator might.
func deleteKey(t testing.TB, b locktest.Bundle, key string) {
	t.Helper()
	if resp, err := b.Etcd.Delete(locktest.Within(t), key); err != nil || resp.Deleted != 1 {
		t.Fatalf("delete %s: %v, %v", key, resp, err)
	}
}

// wantEntries fails the test unless the lock has an entry in the queue of each of its names, put with its token, and
// nobody else has.
func wantEntries(t testing.TB, b locktest.Bundle, l *locker.Lock) {
	t.Helper()
	resp, err := b.Etcd.Get(locktest.Within(t), locker.DefaultPrefix, clientv3.WithPrefix())
	if err != nil {
		t.Fatal(err)
	}
	entries := 0
	for _, kv := range resp.Kvs {
		if strings.HasPrefix(string(kv.Key), locker.DefaultPrefix+"/") {
			continue
		}
		if entries++; kv.CreateRevision != l.Token() {
			t.Errorf("%s was put at revision %d, the token is %d", kv.Key, kv.CreateRevision, l.Token())
		}
	}
	if l.Err() != nil || entries != len(l.Names()) {
		t.Errorf("%v, %d entries for %d names", l.Err(), entries, len(l.Names()))
	}
}

// usage checks that those who are inside of a name may be there together: any number of readers, or one writer.
type usage struct{ inside atomic.Int64 }

const writerInside = 1 << 32

func (u *usage) enter(t testing.TB, shared bool) (leave func()) {
	own := int64(writerInside)
	if shared {
		own = 1
	}
	if now := u.inside.Add(own); !shared && now != own || now > writerInside {
		t.Errorf("%d writers and %d readers are inside", now/writerInside, now%writerInside)
	}
	return func() { u.inside.Add(-own) }
}

func TestAnd_NamesInOppositeOrdersDoNotDeadlock(t *testing.T) {
	t.Parallel()
	for _, clients := range []int{1, 2} {
		t.Run(fmt.Sprint("clients=", clients), func(t *testing.T) {
			t.Parallel()
			b, ctx := locktest.Setup(t), locktest.Within(t)
			var all []*locker.Client
			for range clients {
				all = append(all, b.Client(t))
			}
			var use [2]usage
			var workers sync.WaitGroup
			for i := range 16 {
				first, second := i%2, 1-i%2
				var opts []locker.LockOption
				shared := i%8 >= 6 // of the second name
				if shared {
					opts = append(opts, locker.WithShared())
				}
				workers.Go(func() {
					for range 4 {
						l, err := all[i/2%clients].Lock(ctx, fmt.Sprint(first), "", locker.And(fmt.Sprint(second), "", opts...))
						if err != nil {
							t.Error(err)
							return
						}
						leave, leaveSecond := use[first].enter(t, false), use[second].enter(t, shared)
						leaveSecond()
						leave()
						if err := l.Unlock(ctx); err != nil {
							t.Error(err)
						}
					}
				})
			}
			workers.Wait()
			b.WantNoEntries(t)
		})
	}
}

func TestAnd_AllNamesHaveOneTokenAndOneGuardEach(t *testing.T) {
	t.Parallel()
	b := locktest.Setup(t)
	c := b.Client(t)
	l := locktest.Lock(t, c, "a", "1", locker.And("b", "2", locker.WithShared()), locker.And("c", "3", locker.WithLimit(4)))
	wantEntries(t, b, l)
	if fmt.Sprint(l.Names()) != "[a b c]" || l.Name() != "a" || l.Value() != "1" || len(l.Guard()) != 3 {
		t.Errorf("%v, %q, %d guards", l.Names(), l.Value(), len(l.Guard()))
	}
	for i, want := range []locker.Holder{{Name: "a", Value: "1", Limit: 1}, {Name: "b", Value: "2"}, {Name: "c", Value: "3", Limit: 4}} {
		want.Token, want.Lease = l.Token(), locktest.LeaseOf(l)
		if got := locktest.List(t, c, ""); len(got) != 3 || got[i] != want {
			t.Errorf("%+v, want %+v", got, want)
		}
	}
	if resp, err := l.Commit(locktest.Within(t), clientv3.OpPut("committed", "yes")); err != nil || !resp.Succeeded {
		t.Errorf("%v, %v", resp, err)
	}
	locktest.Unlock(t, l)
	b.WantNoEntries(t)
	next := lockNames(t, c, []string{"c", "a"})
	if next.Token() <= l.Token() {
		t.Errorf("token %d after %d", next.Token(), l.Token())
	}
}

func TestAnd_OneEntryDeletedByHandLosesAllNames(t *testing.T) {
	t.Parallel()
	names := []string{"a", "b", "c"}
	b, ctx := locktest.Setup(t), locktest.Within(t)
	c, _ := wired(t, b) // of a removal that was repeated, nobody knows what it has found
	for find, use := range map[string]func(*locker.Lock) error{
		"Commit":   func(l *locker.Lock) error { _, err := l.Commit(ctx, clientv3.OpPut("committed", "yes")); return err },
		"SetValue": func(l *locker.Lock) error { return l.SetValue(ctx, "w") },
		"Unlock":   func(l *locker.Lock) error { return l.Unlock(ctx) },
	} {
		for _, gone := range names {
			l := lockNames(t, c, names)
			deleteKey(t, b, entryOf(t, b, gone))
			if resp, err := b.Etcd.Txn(ctx).If(l.Guard()...).Commit(); err != nil || resp.Succeeded {
				t.Errorf("without %s, the guard holds: %v, %v", gone, resp, err)
			}
			locktest.WantLost(t, use(l), l, locker.Deleted)
			if find != "Unlock" {
				locktest.Lost(t, l, locker.Deleted)
			}
			for _, name := range names {
				b.Queued(t, name, 0)
			}
		}
	}
	if b.Value(t, "committed") != "" {
		t.Error("it was committed")
	}
}

func TestAnd_TheAuditFindsThatOneEntryIsGoneAndRemovesTheRest(t *testing.T) {
	t.Parallel()
	for i := range 3 {
		t.Run(fmt.Sprint(i), func(t *testing.T) {
			t.Parallel()
			locktest.Simulate(t, func(sim locktest.Simulation) {
				l := lockNames(sim, sim.Client(locker.WithTTL(delayedTTL)), numbered(3))
				ended := sim.Ending(l)
				sim.At(time.Second)
				sim.Server.Delete(string(sim.Server.Queue(locker.DefaultPrefix + fmt.Sprint("name", i))[0].Key))
				if at := locktest.Receive(sim, ended); at != delayedTTL/3 {
					t.Errorf("it was found after %v", at)
				}
				locktest.WantLost(t, l.Err(), l, locker.Deleted)
				sim.At(delayedTTL / 3)
				if left := sim.Server.Queue(locker.DefaultPrefix + "name"); len(left) > 0 {
					t.Errorf("left in the queues: %v", left)
				}
			})
		})
	}
}

func TestAnd_AnEntryDeletedDuringTheWaitForAnotherNameKeepsItFromHolding(t *testing.T) {
	t.Parallel()
	names := []string{"a", "b", "c"}
	for _, awaited := range names {
		for _, gone := range names {
			t.Run(gone+" while it waits for "+awaited, func(t *testing.T) {
				t.Parallel()
				b, ctx := locktest.Setup(t), locktest.Within(t)
				holder := locktest.Lock(t, b.Client(t), awaited, "")
				waiter := locktest.LockAsync(ctx, b.Client(t), "a", "waiter", together(names[1:])...)
				for _, name := range names {
					if name != awaited {
						b.Queued(t, name, 1)
					}
				}
				b.Queued(t, awaited, 2)
				for _, key := range b.Keys(t, locker.DefaultPrefix+gone+"/") {
					if key != holder.Key() {
						deleteKey(t, b, key)
					}
				}
				locktest.Unlock(t, holder)
				got := locktest.Receive(t, waiter)
				var lost *locker.LostError
				if !errors.As(got.Err, &lost) || lost.Reason != locker.Deleted {
					t.Errorf("it returned %v", got.Err)
				}
				for _, name := range names {
					b.Queued(t, name, 0)
				}
			})
		}
	}
}

// The member knows the entry, and has yet to learn that it was deleted.
func TestAnd_AMemberThatIsBehindDoesNotHideThatAnEntryWasDeleted(t *testing.T) {
	t.Parallel()
	b := locktest.Setup(t)
	var behind, asked atomic.Int64
	config := b.Server.ClientConfig()
	config.DialOptions = append(config.DialOptions, onTxn(func(t *pb.TxnRequest, invoke func() (*pb.TxnResponse, error)) {
		put := writes(t, "a")
		if readBehind(t, behind.Load(), func() (*pb.TxnResponse, error) {
			resp, err := invoke()
			if err == nil && put {
				behind.CompareAndSwap(0, resp.Header.Revision)
			}
			return resp, err
		}) {
			asked.Add(1)
		}
	}))
	c, _, ws := watched(t, config)
	locktest.Unlock(t, locktest.Lock(t, c, "warm", ""))
	holder := locktest.Lock(t, b.Client(t), "b", "")
	waiter := locktest.LockAsync(locktest.Within(t), c, "a", "", locker.And("b", ""))
	ws.awaitOne(t)
	deleteKey(t, b, entryOf(t, b, "a"))
	locktest.Unlock(t, holder)
	var lost *locker.LostError
	if got := locktest.Receive(t, waiter); !errors.As(got.Err, &lost) || lost.Reason != locker.Deleted {
		t.Errorf("it returned %v", got.Err)
	}
	if asked.Load() == 0 {
		t.Error("the member was not asked")
	}
}

func TestAnd_AnEntryDeletedWhileAnotherPutIsInDoubtKeepsItFromHolding(t *testing.T) {
	t.Parallel()
	for verb, call := range asyncCalls {
		for _, gone := range []string{"a", "b"} {
			t.Run(verb+" without "+gone, func(t *testing.T) {
				t.Parallel()
				b := locktest.Setup(t)
				c, w := hedging(t, b)
				puts := func(req any) bool {
					return slices.ContainsFunc(writesOf(req), func(w write) bool { return w.name == "a" && w.put != "" })
				}
				var first sync.Once
				again := make(chan struct{}, 100)
				w.fail(cap(again), puts, func(ctx context.Context, call func() error) (err error) {
					isFirst := false
					first.Do(func() { isFirst = true })
					if !isFirst {
						again <- struct{}{}
						return neverAnswered(ctx, call)
					}
					err = call()
					deleteKey(t, b, entryOf(t, b, gone))
					locktest.Receive(t, again)
					return err
				})
				got := locktest.Receive(t, call(locktest.Within(t), c, "a", "", locker.And("b", "")))
				var lost *locker.LostError
				if !errors.As(got.Err, &lost) || lost.Reason != locker.Deleted {
					t.Errorf("it returned %v", got.Err)
				}
				b.Queued(t, "a", 0)
				b.Queued(t, "b", 0)
			})
		}
	}
}

func TestAnd_AsManyNamesAsEtcdTakes(t *testing.T) {
	t.Parallel()
	kinds := map[string][]locker.LockOption{"exclusive": nil, "shared": {locker.WithShared()}, "limited": {locker.WithLimit(2)}}
	calls := map[string]func(*locker.Client, context.Context, string, string, ...locker.LockOption) (*locker.Lock, error){
		"Lock": (*locker.Client).Lock, "TryLock": (*locker.Client).TryLock,
	}
	for kind, opts := range kinds {
		for verb, lock := range calls {
			t.Run(verb+" "+kind, func(t *testing.T) {
				t.Parallel()
				b, ctx := locktest.Setup(t), locktest.Within(t)
				c := b.Client(t)
				for _, n := range []int{2, 40, 65, 100} {
					names := numbered(n)
					l, err := lock(c, ctx, names[0], "", together(names[1:], opts...)...)
					if err != nil {
						t.Errorf("%d names: %v", n, err)
						continue
					}
					wantEntries(t, b, l)
					if _, err := l.Commit(ctx, clientv3.OpPut("committed", verb)); err != nil {
						t.Errorf("%d names: %v", n, err)
					}
					_, err = b.Client(t).TryLock(ctx, names[n-1], "")
					locktest.Want(t, err, locker.ErrLocked)
					locktest.Unlock(t, l)
					b.WantNoEntries(t)
				}
			})
		}
	}
}

func TestAnd_AWaiterFor100NamesIsServed(t *testing.T) {
	t.Parallel()
	b, ctx := locktest.Setup(t), locktest.Within(t)
	names := numbered(100)
	holder := lockNames(t, b.Client(t), names)
	c, _ := wired(t, b)
	waiter := locktest.LockAsync(ctx, c, names[99], "", together(names[:99])...)
	for _, name := range []string{names[0], names[99]} {
		b.Queued(t, name, 2)
	}
	locktest.Unlock(t, holder)
	next := locktest.LockOf(t, waiter)
	wantEntries(t, b, next)
	deleteKey(t, b, entryOf(t, b, names[50]))
	locktest.WantLost(t, next.Unlock(ctx), next, locker.Deleted)
	b.WantNoEntries(t)
}

func TestAnd_InvalidNamesMakeNoRequest(t *testing.T) {
	t.Parallel()
	b, ctx := locktest.Setup(t), locktest.Within(t)
	etcd, requests := countedEtcd(t, b.Server)
	c := locktest.NewClient(t, etcd, locker.WithTTL(5*time.Minute))
	s := locktest.NewSession(t, c)
	before := requests.Load()
	for what, test := range map[string]struct {
		argument string
		opts     []locker.LockOption
	}{
		"101 names":              {"number of names", together(numbered(100))},
		"a name twice":           {"name", together([]string{"b", "c", "b"})},
		"the first name again":   {"name", together([]string{"b", "a"})},
		"And inside And":         {"option", []locker.LockOption{locker.And("b", "", locker.And("c", ""))}},
		"WithSession inside And": {"option", []locker.LockOption{locker.And("b", "", locker.WithSession(s))}},
		"no option inside And":   {"option", []locker.LockOption{locker.And("b", "", nil)}},
		"an empty name":          {"name", together([]string{""})},
		"a control character":    {"name", together([]string{"b\n"})},
		"a long name":            {"name", together([]string{strings.Repeat("x", locker.MaxNameLength+1)})},
		"a limit of 0":           {"limit", together([]string{"b"}, locker.WithLimit(0))},
		"shared and limited":     {"limit", []locker.LockOption{locker.And("b", "", locker.WithShared(), locker.WithLimit(2))}},
	} {
		t.Run(what, func(t *testing.T) {
			for _, lock := range []func(context.Context, string, string, ...locker.LockOption) (*locker.Lock, error){c.Lock, c.TryLock} {
				_, err := lock(ctx, "a", "", test.opts...)
				wantInvalid(t, err, test.argument)
				wantWrappedOnce(t, err)
			}
			wantInvalid(t, c.Do(ctx, "a", "", neverCalled(t), test.opts...), test.argument)
			if n := requests.Load() - before; n != 0 {
				t.Errorf("%d requests", n)
			}
		})
	}
	outer := lockNames(t, c, []string{"a", "b"})
	held := requests.Load()
	_, err := c.Lock(outer.Context(), "c", "", locker.And("b", ""))
	wantInvalid(t, err, "name") // it would wait for itself
	if n := requests.Load() - held; n != 0 {
		t.Errorf("%d requests", n)
	}
}

func TestAnd_MoreNamesThanTheServerTakesAreRefusedAndLeaveNothing(t *testing.T) {
	t.Parallel()
	b, ctx := locktest.Setup(t, embedtest.WithConfig(func(c *embed.Config) { c.MaxTxnOps = 64 })), locktest.Within(t)
	c, names := b.Client(t), numbered(100)
	for _, lock := range []func(context.Context, string, string, ...locker.LockOption) (*locker.Lock, error){c.Lock, c.TryLock} {
		_, err := lock(ctx, names[0], "", together(names[1:])...)
		locktest.Want(t, err, rpctypes.ErrTooManyOps)
		b.WantNoEntries(t)
	}
	l := lockNames(t, c, names[:60])
	wantEntries(t, b, l)
	locktest.Unlock(t, l)
	b.WantNoEntries(t)
}

func TestAnd_ANameWithoutPermissionQueuesNothingInTheOthers(t *testing.T) {
	t.Parallel()
	b, ctx := locktest.Setup(t, embedtest.WithAuth()), locktest.Within(t)
	const user = "guest"
	b.AddUser(t, user)
	for _, below := range []string{"/", "allowed", "warm/"} {
		b.Permit(t, user, clientv3.PermissionType(clientv3.PermReadWrite), locker.DefaultPrefix+below)
	}
	config := b.Server.ClientConfig()
	config.Username, config.Password = user, user
	c := locktest.NewClient(t, locktest.Connect(t, config))
	for _, names := range [][]string{{"allowed1", "secret", "allowed2"}, {"secret", "allowed1"}, {"allowed1", "secret"}} {
		for _, lock := range []func(context.Context, string, string, ...locker.LockOption) (*locker.Lock, error){c.Lock, c.TryLock} {
			_, err := lock(ctx, names[0], "", together(names[1:])...)
			locktest.Want(t, err, rpctypes.ErrPermissionDenied)
			b.WantNoEntries(t)
		}
	}
	l := lockNames(t, c, []string{"allowed2", "allowed1"})
	wantEntries(t, b, l)
	locktest.Unlock(t, l)
}

func TestAnd_ASessionHasRoomForAllNamesOrNone(t *testing.T) {
	t.Parallel()
	b, ctx := locktest.Setup(t), locktest.Within(t)
	c := b.Client(t)
	s := locktest.NewSession(t, c)
	fill(t, c, "own", 999, locker.WithSession(s))
	for _, lock := range []func(context.Context, string, string, ...locker.LockOption) (*locker.Lock, error){c.Lock, c.TryLock} {
		_, err := lock(ctx, "a", "", locker.And("b", ""), locker.WithSession(s))
		locktest.Want(t, err, locker.ErrSessionFull)
	}
	locktest.Unlock(t, lockNames(t, c, []string{"a", "b"})) // they are free
	if _, err := c.TryLock(ctx, "last", "", locker.WithSession(s)); err != nil {
		t.Errorf("there is room for one: %v", err)
	}
}

func TestAnd_AClientOpensAnotherSessionIfNoneHasRoomForAllNames(t *testing.T) {
	t.Parallel()
	b := locktest.Setup(t)
	c := b.Client(t)
	former := fill(t, c, "shared", 999)
	l := lockNames(t, c, []string{"a", "b"})
	if len(b.Leases(t)) != 2 || locktest.LeaseOf(l) == locktest.LeaseOf(former[0]) {
		t.Errorf("%d leases", len(b.Leases(t)))
	}
	for _, name := range l.Names() {
		if key := entryOf(t, b, name); !strings.HasSuffix(key, fmt.Sprintf("/%x", locktest.LeaseOf(l))) {
			t.Errorf("%s is on another lease than %x", key, locktest.LeaseOf(l))
		}
	}
	if l.Err() != nil || former[0].Err() != nil {
		t.Errorf("%v, %v", l.Err(), former[0].Err())
	}
}

func TestAnd_ObserversSeeARevokedLockEndAtOneRevision(t *testing.T) {
	t.Parallel()
	b, ctx := locktest.Setup(t), locktest.Within(t)
	names := []string{"a", "b", "c"}
	l := lockNames(t, b.Client(t), names)
	c := b.Client(t)
	k := locktest.NewCache(t, c, "")
	r := locktest.Read(t, c.WatchPrefix(ctx, ""))
	for range names {
		if state := r.State(); !state.Held || state.Token != l.Token() || state.Holders != 1 {
			t.Errorf("%+v", state)
		}
	}
	changed := k.Changed()
	b.Server.ExpireLease(t, locktest.LeaseOf(l))
	first := r.Free("a")
	for _, name := range names[1:] {
		if state := r.Free(name); state.Revision != first.Revision {
			t.Errorf("%s was free at revision %d, a at %d", name, state.Revision, first.Revision)
		}
	}
	for len(k.List()) == 3 {
		locktest.Receive(t, changed)
		changed = k.Changed()
	}
	if left := k.List(); len(left) > 0 || k.Revision() < first.Revision {
		t.Errorf("the cache has %v at revision %d", left, k.Revision())
	}
}
