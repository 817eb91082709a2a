package systest

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"math/rand/v2"
	"testing"
	"testing/synctest"
	"time"

	"go.etcd.io/etcd/api/v3/mvccpb"
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
	Names  []string // that are to be locked; the first one is that of other steps
	Limits []int    // of those that hold each of the names together; 0 if it is shared
	Own    bool     // on the client's own session
	Pick   int
}

var (
	modelledNames = []string{"a", "a/b", "ab"}
	namesOfALock  = [][]string{
		{"a"}, {"a"}, {"a"}, {"a"}, {"a/b"}, {"a/b"}, {"a", "a/b"}, {"a", "a/b"}, {"a/b", "a"}, {"ab", "a"}, {"a/b", "ab"}, {"ab", "a/b", "a"},
	}
	limitsOfALock = []int{1, 1, 1, 0, 0, 0, 2, 2, 3}
	sequences     = rapid.SliceOfN(rapid.Custom(func(t *rapid.T) modelStep {
		return modelStep{
			Do:     rapid.SampledFrom(append(modelSteps, "Lock", "Lock", "Lock", "Lock", "Unlock", "Unlock")).Draw(t, "do"),
			Client: rapid.IntRange(0, modelledClients-1).Draw(t, "client"),
			Names:  rapid.SampledFrom(namesOfALock).Draw(t, "names"),
			Limits: rapid.SliceOfN(rapid.SampledFrom(limitsOfALock), len(modelledNames), len(modelledNames)).Draw(t, "limits"),
			Own:    rapid.SampledFrom([]bool{false, false, false, true}).Draw(t, "own"),
			Pick:   rapid.IntRange(0, 30).Draw(t, "pick"),
		}
	}), 5, 25)
)

const modelledClients = 3

var modelSteps = []string{"Lock", "Lock", "Do", "TryLock", "TryLock", "Unlock", "cancel", "SetValue", "Commit", "expire", "delete", "close session", "close client", "wait"}

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
	do     *doing       // nil if it did not call Do
}

// doing is a call of Do.
type doing struct {
	leave    func()       // has the function return that it calls
	returned <-chan error // what it returned
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
	tokens   map[string]int64 // the largest in each queue so far
	observer *locker.Client
	cache    *locker.Cache
	watches  []*witness
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
	for _, name := range modelledNames {
		w.watch(w.observer.Watch(sim.Context(), name), name)
	}
	w.watch(w.observer.WatchPrefix(sim.Context(), ""), modelledNames...)
	return w
}

// watch reads states until the observer is closed.
func (w *world) watch(states iter.Seq2[locker.State, error], names ...string) {
	seen := &witness{names: names}
	w.watches = append(w.watches, seen)
	go func() {
		if err := seen.read(states, 0); !errors.Is(err, locker.ErrClosed) {
			seen.note(err)
		}
	}()
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
	case "Lock", "Do", "TryLock":
		err = w.lockFor(ctx, s)
	case "Unlock", "SetValue", "Commit":
		err = w.use(ctx, s)
	case "cancel":
		if len(w.callers) > 0 {
			c := w.callers[s.Pick%len(w.callers)]
			c.cancel(errGaveUp)
			if !w.holds(c.claim) { // a hold outlives its context
				w.endOne(c.claim, errGaveUp)
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
	opts := kindOf(c.wants[0].limit)
	for _, other := range c.wants[1:] {
		opts = append(opts, locker.And(other.name, other.value, kindOf(other.limit)...))
	}
	if c.own {
		if w.sessions[s.Client] == nil {
			if w.sessions[s.Client], err = w.clients[s.Client].NewSession(ctx); err != nil {
				return err
			}
		}
		opts = append(opts, locker.WithSession(w.sessions[s.Client]))
	}
	if s.Do == "TryLock" {
		return w.tryLock(ctx, c, opts)
	}
	life, cancel := context.WithCancelCause(w.Context())
	c.cancel = cancel
	if s.Do == "Lock" {
		c.result = locktest.LockAsync(life, w.clients[c.client], c.wants[0].name, c.wants[0].value, opts...)
	} else {
		c.do, c.result = w.doAsync(life, c.claim, opts)
	}
	w.callers = append(w.callers, c)
	w.lock(c.claim)
	return nil
}

// claim returns the claim that a step makes, with values of its own.
func (w *world) claim(s modelStep) *caller {
	c := &claim{client: s.Client, own: s.Own}
	for i, name := range s.Names {
		c.wants = append(c.wants, &want{name, s.Limits[i], fmt.Sprintf("claim %d.%d", len(w.callers), i)})
	}
	return &caller{claim: c}
}

// kindOf returns the options of a limit.
func kindOf(limit int) []locker.LockOption {
	switch limit {
	case 0:
		return []locker.LockOption{locker.WithShared()}
	case 1:
		return nil
	}
	return []locker.LockOption{locker.WithLimit(limit)}
}

// doAsync calls Do in another goroutine, with a function that reports the lock and does not look at its context.
func (w *world) doAsync(ctx context.Context, c *claim, opts []locker.LockOption) (*doing, <-chan locktest.Outcome) {
	result, returned, leave := make(chan locktest.Outcome, 1), make(chan error, 1), make(chan struct{})
	client := w.clients[c.client]
	go func() {
		called := false
		err := client.Do(ctx, c.wants[0].name, c.wants[0].value, func(_ context.Context, l *locker.Lock) error {
			called = true
			result <- locktest.Outcome{Lock: l}
			select {
			case <-leave:
			case <-l.Context().Done():
			}
			return nil
		}, opts...)
		if !called {
			result <- locktest.Outcome{Err: err}
		}
		returned <- err
	}()
	return &doing{func() { close(leave) }, returned}, result
}

func (w *world) tryLock(ctx context.Context, c *caller, opts []locker.LockOption) error {
	refusing := make(map[string]locker.Holder) // with the oldest in their queues
	for _, want := range c.wants {
		if !w.refuses(c.claim, want.name) {
			continue
		}
		refusing[want.name] = locker.Holder{Name: want.name}
		if queue := w.queues[want.name]; len(queue) > 0 {
			refusing[want.name] = holderBy(queue[0].of(want.name), w.Server.Queue(queues[want.name])[0])
		}
	}
	l, err := w.clients[c.client].TryLock(ctx, c.wants[0].name, c.wants[0].value, opts...)
	var locked *locker.LockedError
	switch {
	case len(refusing) == 0 && err == nil:
		result := make(chan locktest.Outcome, 1)
		result <- locktest.Outcome{Lock: l}
		c.cancel, c.result = func(error) {}, result
		w.callers = append(w.callers, c)
		w.lock(c.claim)
	case len(refusing) == 0 || !errors.As(err, &locked):
		return fmt.Errorf("TryLock of %v: %w, refused by %+v", c, err, refusing)
	case locked.Holder != refusing[locked.Holder.Name]:
		return fmt.Errorf("TryLock of %v: %w, %+v, refused by %+v", c, err, locked.Holder, refusing)
	}
	return nil
}

// holderBy returns what others should see of an entry.
func holderBy(w *want, kv *mvccpb.KeyValue) locker.Holder {
	return locker.Holder{Name: w.name, Value: w.value, Token: kv.CreateRevision, Lease: clientv3.LeaseID(kv.Lease), Limit: w.limit}
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
		if c.do != nil && want == nil {
			c.do.leave()
		} else {
			err = c.lock.Unlock(ctx)
		}
		w.endOne(c.claim, locker.ErrReleased)
	case "SetValue":
		value := fmt.Sprint(c.wants[0].value, "'")
		if err = c.lock.SetValue(ctx, value); want == nil {
			c.wants[0].value = value
		}
	case "Commit":
		_, err = c.lock.Commit(ctx, clientv3.OpPut("committed", c.wants[0].value))
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
	queue := w.queues[s.Names[0]]
	if len(queue) == 0 {
		return
	}
	i := s.Pick % len(queue)
	entry := w.Server.Queue(queues[s.Names[0]])[i]
	if c := queue[i]; s.Do == "delete" {
		w.Server.Delete(string(entry.Key))
		w.endOne(c, locker.ErrLost)
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
