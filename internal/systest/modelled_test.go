package systest

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"pgregory.net/rapid"

	"github.com/jagregory/locker/v2"
	"github.com/jagregory/locker/v2/internal/fakeetcd"
)

// step is one of a generated sequence. Pick chooses among what there is when it is made.
type step struct {
	Do     string
	Client int
	Name   string
	Pick   int
}

var (
	modelledNames = []string{"a", "a/b"}
	sequences     = rapid.SliceOfN(rapid.Custom(func(t *rapid.T) step {
		return step{
			Do:     rapid.SampledFrom(append(steps, "Lock", "Lock", "Lock", "Unlock", "Unlock")).Draw(t, "do"),
			Client: rapid.IntRange(0, modelledClients-1).Draw(t, "client"),
			Name:   rapid.SampledFrom(modelledNames).Draw(t, "name"),
			Pick:   rapid.IntRange(0, 30).Draw(t, "pick"),
		}
	}), 5, 25)
)

const modelledClients = 3

var steps = []string{"Lock", "Lock on own session", "TryLock", "Unlock", "give up", "SetValue", "Commit", "expire", "delete", "close session", "close client", "wait"}

func TestModel_SequencesOfCallsAgreeWithIt(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		fate := func(fakeetcd.Call) fakeetcd.Fate { return fakeetcd.Fate{} }
		if err := play(t, sequences.Draw(rt, "steps"), pace{0, 21 * time.Second}, fate); err != nil {
			rt.Fatal(err)
		}
	})
}

func TestModel_SequencesOfCallsAgreeWithItWhenRequestsAndAnswersAreLost(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		random := rand.New(rand.NewPCG(rapid.Uint64().Draw(rt, "seed"), 0))
		fate := func(call fakeetcd.Call) fakeetcd.Fate {
			if call.Kind == fakeetcd.Watch { // it is missed within half a minute only
				return fakeetcd.Fate{}
			}
			return fakeetcd.Fate{Lost: random.IntN(20) == 0, Unanswered: random.IntN(20) == 0}
		}
		if err := play(t, sequences.Draw(rt, "steps"), pace{20 * time.Second, 2 * time.Minute}, fate); err != nil {
			rt.Fatal(err)
		}
	})
}

// play makes the steps one after the other, lets everything settle in between, and
// returns where the library and the model differ.
func play(t *testing.T, steps []step, p pace, fate func(fakeetcd.Call) fakeetcd.Fate) (err error) {
	simulate(t, func(sim simulation) {
		w := newWorld(sim, p)
		sim.Server.Decide(fate)
		for i, s := range steps {
			if err = w.make(s); err == nil {
				err = w.compare()
			}
			if err != nil {
				err = fmt.Errorf("step %d, %+v: %w", i, s, err)
				return
			}
		}
		sim.Server.Decide(func(fakeetcd.Call) fakeetcd.Fate { return fakeetcd.Fate{} })
		err = w.close()
	})
	return err
}

// caller is who has made a claim, and what the library has made of it.
type caller struct {
	*claim
	cancel context.CancelCauseFunc
	result <-chan outcome
	lock   *locker.Lock // nil until it holds
}

// pace is how fast things happen.
type pace struct {
	settle  time.Duration // until all is as it will be
	noticed time.Duration // until a client knows what has become of its leases and entries
}

// With a long TTL little happens by itself.
var modelledTTL = locker.WithTTL(time.Minute)

// world is the library beside the model.
type world struct {
	simulation
	model
	pace
	clients  [modelledClients]*locker.Client
	sessions [modelledClients]*locker.Session // their own, nil until they are needed
	callers  []*caller
	tokens   map[string]int64 // of the last hold
	observer *locker.Client
	cache    *locker.Cache
}

func newWorld(sim simulation, p pace) *world {
	w := &world{simulation: sim, model: newModel(), pace: p, tokens: make(map[string]int64), observer: sim.Client(modelledTTL)}
	var err error
	if w.cache, err = w.observer.NewCache(sim.Context(), ""); err != nil {
		sim.Fatal(err)
	}
	for i := range w.clients {
		w.clients[i] = sim.Client(modelledTTL)
	}
	return w
}

// rest lets everything happen that is under way, and the audit of a renewal.
func (w *world) rest(d time.Duration) {
	time.Sleep(max(d, w.settle))
	synctest.Wait()
}

// make makes a step, in the model and in the library.
func (w *world) make(s step) (err error) {
	ctx, cancel := context.WithTimeout(w.Context(), w.settle+time.Second)
	defer cancel()
	switch s.Do {
	case "Lock", "Lock on own session":
		err = w.lockFor(ctx, s)
	case "TryLock":
		err = w.tryLock(ctx, s)
	case "Unlock", "SetValue", "Commit":
		err = w.use(ctx, s)
	case "give up":
		if len(w.callers) > 0 {
			c := w.callers[s.Pick%len(w.callers)]
			c.cancel(errGaveUp)
			if !w.holds(c.claim) { // a hold outlives its context
				w.model.end(c.claim, errGaveUp)
			}
		}
	case "expire", "delete":
		w.interfere(s)
	case "close session":
		if own := w.sessions[s.Client]; own != nil {
			err = own.Close()
			w.closeSession(s.Client)
			w.sessions[s.Client] = nil
		}
	case "close client":
		err = w.clients[s.Client].Close()
		w.closeClient(s.Client)
		w.clients[s.Client], w.sessions[s.Client] = w.Client(modelledTTL), nil
	case "wait":
		w.rest(time.Duration(s.Pick) * time.Second)
	}
	w.rest(0)
	return err
}

func (w *world) lockFor(ctx context.Context, s step) (err error) {
	c := w.claim(s)
	var opts []locker.LockOption
	if c.own = s.Do != "Lock"; c.own {
		if w.sessions[s.Client] == nil {
			if w.sessions[s.Client], err = w.clients[s.Client].NewSession(ctx); err != nil {
				return err
			}
		}
		opts = append(opts, locker.WithSession(w.sessions[s.Client]))
	}
	life, cancel := context.WithCancelCause(w.Context())
	c.cancel, c.result = cancel, lockAsync(life, w.clients[s.Client], c.name, c.value, opts...)
	w.callers = append(w.callers, c)
	w.lock(c.claim)
	return nil
}

// claim returns that of a step, with a value of its own.
func (w *world) claim(s step) *caller {
	return &caller{claim: &claim{client: s.Client, name: s.Name, value: fmt.Sprint("claim ", len(w.callers))}}
}

func (w *world) tryLock(ctx context.Context, s step) error {
	c := w.claim(s)
	holder := w.holder(c.name)
	l, err := w.clients[s.Client].TryLock(ctx, c.name, c.value)
	var locked *locker.LockedError
	switch {
	case holder == nil && err == nil:
		result := make(chan outcome, 1)
		result <- outcome{Lock: l}
		c.cancel, c.result = func(error) {}, result
		w.callers = append(w.callers, c)
		w.lock(c.claim)
	case holder == nil || !errors.As(err, &locked):
		return fmt.Errorf("TryLock: %w, held by %v", err, holder)
	case locked.Holder.Value != holder.value:
		return fmt.Errorf("TryLock: %w, held by %v", err, holder)
	}
	return nil
}

// use uses any lock that was ever held.
func (w *world) use(ctx context.Context, s step) (err error) {
	var had []*caller
	for _, c := range w.callers {
		if c.lock != nil {
			had = append(had, c)
		}
	}
	if len(had) == 0 {
		return nil
	}
	c := had[s.Pick%len(had)]
	want := c.why
	switch s.Do {
	case "Unlock":
		err = c.lock.Unlock(ctx)
		w.model.end(c.claim, locker.ErrReleased)
	case "SetValue":
		value := fmt.Sprint(c.value, "'")
		if err = c.lock.SetValue(ctx, value); want == nil {
			c.value = value
		}
	case "Commit":
		_, err = c.lock.Commit(ctx, clientv3.OpPut("committed", c.value))
		if w.settle > 0 && want == nil && errors.Is(err, context.DeadlineExceeded) {
			return nil // its request or its answer was lost
		}
	}
	if !errors.Is(err, want) {
		return fmt.Errorf("%v: %w, it should be %v", c, err, want)
	}
	return nil
}

// interfere ends a lease, or deletes an entry, behind the back of its client.
func (w *world) interfere(s step) {
	queue := w.queues[s.Name]
	if len(queue) == 0 {
		return
	}
	i := s.Pick % len(queue)
	entry := w.Server.Queue(queues[s.Name])[i]
	if c := queue[i]; s.Do == "delete" {
		w.Server.Delete(string(entry.Key))
		w.model.end(c, locker.ErrLost)
	} else {
		w.Server.Expire(clientv3.LeaseID(entry.Lease))
		if w.expire(c.client, c.own); c.own {
			w.sessions[c.client] = nil
		}
	}
	w.rest(w.noticed)
}

// close ends all clients, one after the other, and returns what they leave.
func (w *world) close() error {
	for i, c := range w.clients {
		err := c.Close()
		w.closeClient(i)
		w.rest(0)
		if err = errors.Join(err, w.compare()); err != nil {
			return fmt.Errorf("client %d was closed: %w", i, err)
		}
	}
	err := w.observer.Close()
	w.Server.Delete("committed")
	if keys, leases := w.Server.Keys(), w.Server.Leases(); len(keys) > 0 || len(leases) > 0 {
		err = errors.Join(err, fmt.Errorf("left in etcd: %q, leases %v", keys, leases))
	}
	return err
}

// compare returns where etcd, or what the library says, differs from the model.
func (w *world) compare() error {
	ctx, cancel := context.WithTimeout(w.Context(), w.settle+time.Second)
	defer cancel()
	var errs []error
	for _, c := range w.callers {
		errs = append(errs, w.compareCaller(c))
	}
	var held []locker.Holder
	for _, name := range modelledNames {
		entries := w.Server.Queue(queues[name])
		var values, want []string
		for _, kv := range entries {
			values = append(values, string(kv.Value))
		}
		for _, c := range w.queues[name] {
			want = append(want, c.value)
		}
		if !slices.Equal(values, want) {
			errs = append(errs, fmt.Errorf("the queue of %s is %q, it should be %q", name, values, want))
			continue
		}
		holder, err := w.observer.Get(ctx, name)
		cached, _ := w.cache.Get(name)
		if len(want) == 0 {
			if !errors.Is(err, locker.ErrNotFound) || cached != (locker.Holder{}) {
				errs = append(errs, fmt.Errorf("%s is free, but Get says %+v, %w, and the cache %+v", name, holder, err, cached))
			}
			continue
		}
		so := locker.Holder{Name: name, Value: want[0], Token: entries[0].CreateRevision, Lease: clientv3.LeaseID(entries[0].Lease)}
		held = append(held, so)
		if holder != so || cached != so || err != nil {
			errs = append(errs, fmt.Errorf("Get says %+v, %w, and the cache %+v, it should be %+v", holder, err, cached, so))
		}
	}
	slices.SortFunc(held, func(a, b locker.Holder) int { return strings.Compare(a.Name, b.Name) })
	if list, err := w.observer.List(ctx, ""); err != nil || !slices.Equal(list, held) {
		errs = append(errs, fmt.Errorf("List says %+v, %w, it should be %+v", list, err, held))
	}
	return errors.Join(errs...)
}

// compareCaller returns where what a caller got differs from its claim.
func (w *world) compareCaller(c *caller) error {
	select {
	case got := <-c.result:
		c.lock, c.result = got.Lock, nil
		if got.Err != nil && (c.why == nil || !errors.Is(got.Err, c.why)) {
			return fmt.Errorf("%v failed: %w, it should be %v", c, got.Err, c.why)
		}
		if got.Err == nil {
			if got.Lock.Token() <= w.tokens[c.name] {
				return fmt.Errorf("%v has token %d after %d", c, got.Lock.Token(), w.tokens[c.name])
			}
			w.tokens[c.name] = got.Lock.Token()
		}
	default:
	}
	switch {
	case c.why == nil && !w.holds(c.claim):
		if c.result == nil {
			return fmt.Errorf("%v has returned, but it is not its turn", c)
		}
		return nil
	case c.result != nil:
		return fmt.Errorf("%v is still waiting: %v", c, c.why)
	case c.lock == nil:
		return nil // it has failed as it should
	}
	if err := c.lock.Err(); !errors.Is(err, c.why) || !errors.Is(context.Cause(c.lock.Context()), c.why) {
		return fmt.Errorf("%v: %w, it should be %v", c, err, c.why)
	}
	if value := c.lock.Value(); value != c.value {
		return fmt.Errorf("%v: its value is %q", c, value)
	}
	return nil
}
