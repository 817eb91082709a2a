package gocronlocker_test

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/go-co-op/gocron/v2"
	"github.com/jonboulle/clockwork"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/goleak"

	"github.com/jagregory/locker/contrib/gocron"
	"github.com/jagregory/locker/v2"
	"github.com/jagregory/locker/v2/embedtest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const (
	timeout = 2 * time.Minute // of whatever a test waits for; only a test that fails waits that long

	unhurried = 10 * time.Minute // a TTL with which no lease is lost by itself
	brief     = 5 * time.Second  // a TTL for what a test lets fail, so that it waits for the lease to expire

	interval = time.Second    // of the job of a cluster, by the clocks of its instances
	late     = interval / 100 // how long after a tick gocron comes to it
	job      = "job"
)

// epoch is tick 0 of a cluster.
var epoch = time.Date(2030, 1, 1, 0, 0, 0, 0, time.UTC)

// An instance is a program with a scheduler, which has one job. Its clock stands still until a test
// moves it.
type instance struct {
	name      string
	proxy     *embedtest.Proxy
	etcd      *clientv3.Client
	client    *locker.Client
	clock     *clockwork.FakeClock
	elector   *gocronlocker.Elector // nil with a Locker
	scheduler gocron.Scheduler
	cluster   *cluster
	decisions chan error // of the Locker or the Elector; nil if the job runs
	began     chan struct{}
	finished  chan error // what Unlock has returned, nil with an Elector

	mu   sync.Mutex
	tick int          // that the instance has decided to run
	lock *locker.Lock // under which the job runs or has run last; nil with an Elector
	lost error        // the cause of the end of the context of the last run, nil if it did not end
}

// A cluster is three instances of one program, and what they have run.
type cluster struct {
	server    *embedtest.Server
	observer  *locker.Client // reaches etcd always
	instances []*instance

	mu   sync.Mutex
	held bool             // runs that begin now last until their contexts end
	runs map[int][]string // the instances that have run the job, by tick
}

// newCluster starts three instances with a Locker or, with elect, with an Elector. The first one, which has the
// leases of that TTL, leads first.
func newCluster(t *testing.T, elect bool, ttl time.Duration, opts ...gocronlocker.Option) *cluster {
	c := &cluster{server: embedtest.Start(t), runs: make(map[int][]string)}
	c.observer = newClient(t, c.server.Client(t))
	for n := range 3 {
		i := &instance{name: fmt.Sprint("instance ", n), proxy: c.server.Proxy(t), cluster: c, clock: clockwork.NewFakeClockAt(epoch.Add(interval / 2)),
			decisions: make(chan error, 10000), began: make(chan struct{}, 10000), finished: make(chan error, 10000)}
		i.etcd = i.proxy.Client(t)
		i.client = newClient(t, i.etcd, locker.WithTTL(ttl))
		ttl = unhurried
		i.start(t, elect, append([]gocronlocker.Option{gocronlocker.WithClock(i.clock)}, opts...))
		c.instances = append(c.instances, i)
		if elect {
			eventually(t, "the first has the name", func() bool { return c.holder(t, job) == c.instances[0].name })
		}
	}
	return c
}

// start starts the scheduler.
func (i *instance) start(t *testing.T, elect bool, opts []gocronlocker.Option) {
	var distributed gocron.SchedulerOption
	var task any
	if elect {
		i.elector = newElector(t, i.client, job, i.name, opts...)
		distributed = gocron.WithDistributedElector(i)
		task = func(ctx context.Context) { i.run(ctx, nil); i.finished <- nil }
	} else {
		jobs := newLocker(t, i.client, opts...)
		distributed = gocron.WithDistributedLocker(recorder{i, jobs})
		task = jobs.Task(func(ctx context.Context, lock *locker.Lock) error { i.run(ctx, lock); return nil })
	}
	i.scheduler = newScheduler(t, distributed, gocron.WithClock(i.clock))
	i.scheduler.Start()
	newJob(t, i.scheduler, task, gocron.WithStartAt(gocron.WithStartDateTimePast(epoch)))
	i.settle(t)
}

// run is the job.
func (i *instance) run(ctx context.Context, lock *locker.Lock) {
	c := i.cluster
	i.mu.Lock()
	i.lock, i.lost = lock, nil
	tick := i.tick
	i.mu.Unlock()
	c.mu.Lock()
	c.runs[tick] = append(c.runs[tick], i.name)
	held := c.held
	c.mu.Unlock()
	i.began <- struct{}{}
	if !held {
		return
	}
	<-ctx.Done()
	i.mu.Lock()
	i.lost = context.Cause(ctx)
	i.mu.Unlock()
}

// now returns the tick that the clock has come to.
func (i *instance) now() int { return int(i.clock.Now().Sub(epoch) / interval) }

// decide keeps what the Locker or the Elector has decided about a tick.
func (i *instance) decide(tick int, err error) error {
	if err == nil {
		i.mu.Lock()
		i.tick = tick
		i.mu.Unlock()
	}
	i.decisions <- err
	return err
}

// IsLeader asks the Elector.
func (i *instance) IsLeader(ctx context.Context) error {
	tick := i.now()
	return i.decide(tick, i.elector.IsLeader(ctx))
}

// A recorder is the Locker of an instance, and records its decisions.
type recorder struct {
	*instance
	locker gocron.Locker
}

func (r recorder) Lock(ctx context.Context, job string) (gocron.Lock, error) {
	tick := r.now()
	lock, err := r.locker.Lock(ctx, job)
	return recordedLock{lock, r.instance}, r.decide(tick, err)
}

type recordedLock struct {
	gocron.Lock
	*instance
}

func (l recordedLock) Unlock(ctx context.Context) error {
	err := l.Lock.Unlock(ctx)
	l.finished <- err
	return err
}

// advance moves the clock to a tick, and does not wait for what follows. gocron comes to a tick late, as it
// does with a real clock: if the clock stood still at the tick, it would decide about it over and over.
func (i *instance) advance(tick int) {
	i.clock.Advance(epoch.Add(time.Duration(tick)*interval + late).Sub(i.clock.Now()))
}

// settle waits until the instance has decided about all ticks so far: then a timer runs for the next.
func (i *instance) settle(t *testing.T) {
	t.Helper()
	if err := i.clock.BlockUntilContext(within(t), 1); err != nil {
		t.Fatalf("%s does not decide: %v", i.name, err)
	}
}

// tick moves the clocks of some instances to a tick, and returns what they have decided. Runs have begun and,
// unless they are held, ended.
func (c *cluster) tick(t *testing.T, tick int, instances ...*instance) map[*instance]error {
	t.Helper()
	for _, i := range instances {
		i.advance(tick)
	}
	c.mu.Lock()
	held := c.held
	c.mu.Unlock()
	decided := make(map[*instance]error)
	for _, i := range instances {
		decided[i] = receive(t, i.decisions)
		i.settle(t)
		if decided[i] == nil {
			receive(t, i.began)
			if !held {
				receive(t, i.finished)
			}
		}
	}
	return decided
}

// wantOnce fails the test unless a tick was run once. It returns the instance that did.
func (c *cluster) wantOnce(t *testing.T, tick int, decided map[*instance]error) *instance {
	t.Helper()
	if ran := c.ranBy(tick); len(ran) != 1 {
		t.Fatalf("tick %d was run by %v; the decisions were %v", tick, ran, slices.Collect(maps.Values(decided)))
	}
	return c.instances[slices.IndexFunc(c.instances, func(i *instance) bool { return i.name == c.ranBy(tick)[0] })]
}

// ranBy returns the instances that have run a tick.
func (c *cluster) ranBy(tick int) []string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return slices.Clone(c.runs[tick])
}

// wantNoneTwice fails the test if a tick was run twice.
func (c *cluster) wantNoneTwice(t *testing.T) {
	t.Helper()
	c.mu.Lock()
	defer c.mu.Unlock()
	for tick, ran := range c.runs {
		if len(ran) > 1 {
			t.Errorf("tick %d was run by %v", tick, ran)
		}
	}
}

// holdRuns makes runs that begin from now on last until their contexts end, and releaseRuns makes them return at
// once.
func (c *cluster) holdRuns()    { c.setHeld(true) }
func (c *cluster) releaseRuns() { c.setHeld(false) }

func (c *cluster) setHeld(held bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.held = held
}

// others returns the instances but one.
func (c *cluster) others(but *instance) []*instance {
	return slices.DeleteFunc(slices.Clone(c.instances), func(i *instance) bool { return i == but })
}

// holder returns the value of a name, or "" if nobody holds it.
func (c *cluster) holder(t *testing.T, name string) string {
	t.Helper()
	holder, err := c.observer.Get(within(t), name)
	if err != nil && !errors.Is(err, locker.ErrNotFound) {
		t.Fatal(err)
	}
	return holder.Value
}

// faults are what may happen to an instance, and how it ends.
var faults = map[string]struct{ begin, end func(*instance) }{
	"cut off": {func(i *instance) { i.proxy.Cut() }, func(i *instance) { i.proxy.Heal() }},
	"frozen":  {func(i *instance) { i.proxy.Freeze() }, func(i *instance) { i.proxy.Heal() }},
	"killed":  {func(i *instance) { _ = i.etcd.Close() }, func(*instance) {}},
}

func newClient(t *testing.T, etcd *clientv3.Client, opts ...locker.Option) *locker.Client {
	t.Helper()
	c, err := locker.New(etcd, append([]locker.Option{locker.WithTTL(unhurried)}, opts...)...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	return c
}

func newLocker(t *testing.T, c *locker.Client, opts ...gocronlocker.Option) *gocronlocker.Locker {
	t.Helper()
	l, err := gocronlocker.NewLocker(c, opts...)
	if err != nil {
		t.Fatal(err)
	}
	return l
}

func newElector(t *testing.T, c *locker.Client, name, value string, opts ...gocronlocker.Option) *gocronlocker.Elector {
	t.Helper()
	e, err := gocronlocker.NewElector(c, name, value, opts...)
	if err != nil {
		t.Fatal(err)
	}
	// Not t.Context, which has ended when this is called.
	t.Cleanup(func() { _ = e.Stop(context.Background()) })
	return e
}

func newScheduler(t *testing.T, opts ...gocron.SchedulerOption) gocron.Scheduler {
	t.Helper()
	s, err := gocron.NewScheduler(opts...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Shutdown(); err != nil {
			t.Error(err)
		}
	})
	return s
}

func newJob(t *testing.T, s gocron.Scheduler, task any, opts ...gocron.JobOption) {
	t.Helper()
	if _, err := s.NewJob(gocron.DurationJob(interval), gocron.NewTask(task), append([]gocron.JobOption{gocron.WithName(job)}, opts...)...); err != nil {
		t.Fatal(err)
	}
}

// within returns the context of a test: it ends when the test does, or has taken too long.
func within(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), timeout)
	t.Cleanup(cancel)
	return ctx
}

// receive returns what comes from ch, or fails the test.
func receive[T any](t *testing.T, ch <-chan T) T {
	t.Helper()
	select {
	case v := <-ch:
		return v
	case <-time.After(timeout):
		t.Fatal("nothing came")
		panic("unreachable")
	}
}

// eventually calls condition until it is true, or fails the test.
func eventually(t *testing.T, what string, condition func() bool) {
	t.Helper()
	for deadline := time.Now().Add(timeout); !condition(); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("it never came true: %s", what)
		}
	}
}

// want fails the test unless err is the target.
func want(t *testing.T, err, target error) {
	t.Helper()
	if !errors.Is(err, target) {
		t.Errorf("%v, want %v", err, target)
	}
}

// wantInvalid fails the test unless err says that an argument is invalid.
func wantInvalid(t *testing.T, err error, argument string) {
	t.Helper()
	var invalid *locker.InvalidError
	if !errors.As(err, &invalid) || !errors.Is(err, locker.ErrInvalid) || invalid.Argument != argument {
		t.Errorf("%v, want an invalid %s", err, argument)
	}
}
