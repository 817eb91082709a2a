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
	"github.com/jagregory/locker/v2/internal/locktest"
)

// modelStep is a step of a generated sequence. Pick chooses among what exists when the step is made.
type modelStep struct {
	Do     string
	Client int
	Name   string
	Pick   int
}

var (
	modelledNames = []string{"a", "a/b"}
	sequences     = rapid.SliceOfN(rapid.Custom(func(t *rapid.T) modelStep {
		return modelStep{
			Do:     rapid.SampledFrom(append(modelSteps, "Lock", "Lock", "Lock", "Unlock", "Unlock")).Draw(t, "do"),
			Client: rapid.IntRange(0, modelledClients-1).Draw(t, "client"),
			Name:   rapid.SampledFrom(modelledNames).Draw(t, "name"),
			Pick:   rapid.IntRange(0, 30).Draw(t, "pick"),
		}
	}), 5, 25)
)

const modelledClients = 3

var modelSteps = []string{"Lock", "Lock on own session", "TryLock", "Unlock", "cancel", "SetValue", "Commit", "expire", "delete", "close session", "close client", "wait"}

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
			if call.Kind == fakeetcd.Watch { // its loss is noticed only within half a minute
				return fakeetcd.Fate{}
			}
			return fakeetcd.Fate{Lost: random.IntN(20) == 0, Unanswered: random.IntN(20) == 0}
		}
		if err := play(t, sequences.Draw(rt, "steps"), pace{20 * time.Second, 2 * time.Minute}, fate); err != nil {
			rt.Fatal(err)
		}
	})
}

// play makes the steps one after the other, lets everything quiesce in between, and
// returns an error where the library and the model differ.
func play(t *testing.T, sequence []modelStep, p pace, fate func(fakeetcd.Call) fakeetcd.Fate) (err error) {
	locktest.Simulate(t, func(sim locktest.Simulation) {
		w := newWorld(sim, p)
		sim.Server.Decide(fate)
		for i, s := range sequence {
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

// caller is a claim, and what the library has made of it.
type caller struct {
	*claim
	cancel context.CancelCauseFunc
	result <-chan locktest.Outcome
	lock   *locker.Lock // nil until it holds
}

// pace is how fast things happen.
type pace struct {
	quiesce time.Duration // until nothing changes any more
	noticed time.Duration // until a client knows what has become of its leases and entries
}

// modelledTTL is long, so that little happens by itself.
var modelledTTL = locker.WithTTL(time.Minute)

// world is the library beside the model.
type world struct {
	locktest.Simulation
	model
	pace
	clients  [modelledClients]*locker.Client
	sessions [modelledClients]*locker.Session // their own, nil until they are needed
	callers  []*caller
	tokens   map[string]int64 // of the last hold
	observer *locker.Client
	cache    *locker.Cache
}

func newWorld(sim locktest.Simulation, p pace) *world {
	w := &world{Simulation: sim, model: newModel(), pace: p, tokens: make(map[string]int64), observer: sim.Client(modelledTTL)}
	var err error
	if w.cache, err = w.observer.NewCache(sim.Context(), ""); err != nil {
		sim.Fatal(err)
	}
	for i := range w.clients {
		w.clients[i] = sim.Client(modelledTTL)
	}
	return w
}

// rest waits until everything under way has happened, the audit of a renewal included.
func (w *world) rest(d time.Duration) {
	time.Sleep(max(d, w.quiesce))
	synctest.Wait()
}

// make makes a step, in the model and in the library.
func (w *world) make(s modelStep) (err error) {
	ctx, cancel := context.WithTimeout(w.Context(), w.quiesce+time.Second)
	defer cancel()
	switch s.Do {
	case "Lock", "Lock on own session":
		err = w.lockFor(ctx, s)
	case "TryLock":
		err = w.tryLock(ctx, s)
	case "Unlock", "SetValue", "Commit":
		err = w.use(ctx, s)
	case "cancel":
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

func (w *world) lockFor(ctx context.Context, s modelStep) (err error) {
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
	c.cancel, c.result = cancel, locktest.LockAsync(life, w.clients[s.Client], c.name, c.value, opts...)
	w.callers = append(w.callers, c)
	w.lock(c.claim)
	return nil
}

// claim returns the claim that a step makes, with a value of its own.
func (w *world) claim(s modelStep) *caller {
	return &caller{claim: &claim{client: s.Client, name: s.Name, value: fmt.Sprint("claim ", len(w.callers))}}
}

func (w *world) tryLock(ctx context.Context, s modelStep) error {
	c := w.claim(s)
	holder := w.holder(c.name)
	l, err := w.clients[s.Client].TryLock(ctx, c.name, c.value)
	var locked *locker.LockedError
	switch {
	case holder == nil && err == nil:
		result := make(chan locktest.Outcome, 1)
		result <- locktest.Outcome{Lock: l}
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

// use makes a call on a lock that is or was held.
func (w *world) use(ctx context.Context, s modelStep) (err error) {
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
		if w.quiesce > 0 && want == nil && errors.Is(err, context.DeadlineExceeded) {
			return nil // its request or its answer was lost
		}
	}
	if !errors.Is(err, want) {
		return fmt.Errorf("%v: %w, it should be %v", c, err, want)
	}
	return nil
}

// interfere ends a lease, or deletes an entry, behind the back of its client.
func (w *world) interfere(s modelStep) {
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

// close closes all clients, one after the other, and returns an error if they leave anything.
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

// compare returns an error for each difference of etcd, or of what the library reports, from the model.
func (w *world) compare() error {
	ctx, cancel := context.WithTimeout(w.Context(), w.quiesce+time.Second)
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
		actual := locker.Holder{Name: name, Value: want[0], Token: entries[0].CreateRevision, Lease: clientv3.LeaseID(entries[0].Lease), Limit: 1}
		held = append(held, actual)
		if holder != actual || cached != actual || err != nil {
			errs = append(errs, fmt.Errorf("Get says %+v, %w, and the cache %+v, it should be %+v", holder, err, cached, actual))
		}
	}
	slices.SortFunc(held, func(a, b locker.Holder) int { return strings.Compare(a.Name, b.Name) })
	if list, err := w.observer.List(ctx, ""); err != nil || !slices.Equal(list, held) {
		errs = append(errs, fmt.Errorf("List says %+v, %w, it should be %+v", list, err, held))
	}
	return errors.Join(errs...)
}

// compareCaller returns an error if what a caller got differs from its claim.
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
