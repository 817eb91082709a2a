package gocronlocker_test

import (
	"context"
	"errors"
	"sync/atomic"
	"testing"
	"time"

	"github.com/go-co-op/gocron/v2"
	"github.com/google/uuid"
	"go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/jagregory/locker/contrib/gocron"
	"github.com/jagregory/locker/v2"
	"github.com/jagregory/locker/v2/embedtest"
)

// soon is a splay for tests with one Elector.
var soon = gocronlocker.WithSplay(time.Millisecond)

// stopped returns what Stop returns.
func stopped(e *gocronlocker.Elector) <-chan error {
	result := make(chan error, 1)
	go func() { result <- e.Stop(context.Background()) }()
	return result
}

// leads waits until an Elector leads.
func leads(t *testing.T, e *gocronlocker.Elector) {
	t.Helper()
	eventually(t, "the elector leads", func() bool { return e.IsLeader(t.Context()) == nil })
}

func TestElector_LeadsNoMoreWhenItIsFrozenAndLeadsAgainAfterwards(t *testing.T) {
	t.Parallel()
	server := embedtest.Start(t)
	proxy := server.Proxy(t)
	e := newElector(t, newClient(t, proxy.Client(t), locker.WithTTL(brief)), "a", "me", soon)
	leads(t, e)
	observer := newClient(t, server.Client(t))
	proxy.Freeze()
	free := make(chan error, 1)
	go func() {
		lock, err := observer.Lock(within(t), "a", "other")
		if err == nil {
			err = e.IsLeader(t.Context()) // at a time when another holds the name
			_ = lock.Unlock(within(t))
		}
		free <- err
	}()
	err := receive(t, free)
	want(t, err, gocronlocker.ErrNotLeader)
	want(t, err, locker.ErrLost)
	proxy.Heal()
	leads(t, e)
}

func TestElector_CampaignsAgainAfterALoss(t *testing.T) {
	t.Parallel()
	server := embedtest.Start(t)
	client := newClient(t, server.Client(t), locker.WithTTL(brief))
	e := newElector(t, client, "a", "me", soon)
	leads(t, e)
	before, err := client.Get(within(t), "a")
	if err != nil {
		t.Fatal(err)
	}
	server.ExpireLease(t, before.Lease)
	eventually(t, "it has the name again", func() bool {
		holder, err := client.Get(within(t), "a")
		return err == nil && holder.Token > before.Token
	})
	leads(t, e)
}

func TestElector_CampaignsAgainAfterARefusal(t *testing.T) {
	t.Parallel()
	server := embedtest.Start(t, embedtest.WithAuth())
	root := server.Client(t)
	if _, err := root.RoleAdd(within(t), "role"); err != nil {
		t.Fatal(err)
	}
	if _, err := root.UserAdd(within(t), "user", "user"); err != nil {
		t.Fatal(err)
	}
	if _, err := root.UserGrantRole(within(t), "user", "role"); err != nil {
		t.Fatal(err)
	}
	config := server.ClientConfig()
	config.Username, config.Password = "user", "user"
	etcd, err := clientv3.New(config)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = etcd.Close() })
	e := newElector(t, newClient(t, etcd), "a", "me", soon)
	eventually(t, "etcd refuses", func() bool { return errors.Is(e.IsLeader(t.Context()), rpctypes.ErrPermissionDenied) })
	all := clientv3.PermissionType(clientv3.PermReadWrite)
	if _, err := root.RoleGrantPermission(within(t), "role", locker.DefaultPrefix, clientv3.GetPrefixRangeEnd(locker.DefaultPrefix), all); err != nil {
		t.Fatal(err)
	}
	leads(t, e)
}

func TestElector_SaysThatEtcdRefusesAfterALoss(t *testing.T) {
	t.Parallel()
	server := embedtest.Start(t)
	var refuses atomic.Bool
	client := newClient(t, server.ClientWith(t, func(_ context.Context, _ string, request any, call func() error) error {
		if _, writes := request.(*etcdserverpb.TxnRequest); writes && refuses.Load() {
			return rpctypes.ErrGRPCPermissionDenied
		}
		return call()
	}), locker.WithTTL(brief))
	e := newElector(t, client, "a", "me", soon)
	leads(t, e)
	holder, err := client.Get(within(t), "a")
	if err != nil {
		t.Fatal(err)
	}
	refuses.Store(true)
	server.ExpireLease(t, holder.Lease)
	eventually(t, "etcd refuses", func() bool { return errors.Is(e.IsLeader(t.Context()), rpctypes.ErrPermissionDenied) })
	refuses.Store(false)
	leads(t, e)
}

func TestElector_StopResignsAndLeavesTheClientOpen(t *testing.T) {
	t.Parallel()
	client := newClient(t, embedtest.Start(t).Client(t))
	one := newElector(t, client, "a", "one", soon)
	leads(t, one)
	two := newElector(t, client, "a", "two", soon)
	want(t, two.IsLeader(t.Context()), gocronlocker.ErrNotLeader)
	for range 2 {
		if err := one.Stop(within(t)); err != nil {
			t.Error(err)
		}
		err := one.IsLeader(t.Context())
		want(t, err, gocronlocker.ErrNotLeader)
		want(t, err, locker.ErrClosed)
	}
	leads(t, two)
	if err := two.Stop(within(t)); err != nil {
		t.Error(err)
	}
	if _, err := client.Get(within(t), "a"); !errors.Is(err, locker.ErrNotFound) {
		t.Errorf("after the last Stop: %v", err)
	}
}

func TestElector_StopIsBoundedByItsContext(t *testing.T) {
	t.Parallel()
	proxy := embedtest.Start(t).Proxy(t)
	e := newElector(t, newClient(t, proxy.Client(t)), "a", "me", soon)
	leads(t, e)
	proxy.Freeze()
	ctx, cancel := context.WithCancel(within(t))
	cancel()
	want(t, e.Stop(ctx), context.Canceled)
	want(t, e.IsLeader(t.Context()), locker.ErrClosed)
	proxy.Heal()
	if err := e.Stop(within(t)); err != nil {
		t.Error(err)
	}
}

func TestElector_StopsWhileItWaits(t *testing.T) {
	t.Parallel()
	server := embedtest.Start(t)
	other := newClient(t, server.Client(t))
	if _, err := other.Lock(within(t), "a", "other"); err != nil {
		t.Fatal(err)
	}
	e := newElector(t, newClient(t, server.Client(t)), "a", "me")
	eventually(t, "it waits", func() bool {
		queue, err := other.Queue(within(t), "a")
		return err == nil && len(queue) == 2
	})
	if err := e.Stop(within(t)); err != nil {
		t.Error(err)
	}
}

func TestElector_EndsWithItsClient(t *testing.T) {
	t.Parallel()
	server := embedtest.Start(t)
	client := newClient(t, server.Client(t))
	e := newElector(t, client, "a", "me", soon)
	leads(t, e)
	if err := client.Close(); err != nil {
		t.Fatal(err)
	}
	err := e.IsLeader(t.Context())
	want(t, err, gocronlocker.ErrNotLeader)
	want(t, err, locker.ErrClosed)
	want(t, e.Stop(within(t)), locker.ErrClosed)

	etcd := server.Client(t)
	e = newElector(t, newClient(t, etcd), "b", "me", soon)
	leads(t, e)
	_ = etcd.Close()
	eventually(t, "it leads no more", func() bool { return errors.Is(e.IsLeader(t.Context()), locker.ErrEtcdClosed) })
	receive(t, stopped(e)) // whatever it returns
}

func TestElector_RefusesBadArguments(t *testing.T) {
	t.Parallel()
	client := newClient(t, embedtest.Start(t).Client(t))
	for argument, opt := range map[string]gocronlocker.Option{"option": nil, "splay": gocronlocker.WithSplay(-1), "clock": gocronlocker.WithClock(nil)} {
		_, err := gocronlocker.NewElector(client, "a", "", opt)
		wantInvalid(t, err, argument)
	}
	for _, c := range []*locker.Client{nil, {}} {
		_, err := gocronlocker.NewElector(c, "a", "")
		wantInvalid(t, err, "client")
	}
	_, err := gocronlocker.NewElector(client, "", "")
	wantInvalid(t, err, "name")
	var none context.Context
	wantInvalid(t, newElector(t, client, "a", "").Stop(none), "context")
}

// What gocron tests with a Locker and an Elector of its own, in TestScheduler_WithDistributed.
func TestSchedulers_OneOfThreeRunsAJobThatStartsAtOnce(t *testing.T) {
	t.Parallel()
	for name, tt := range map[string]struct {
		elect, ofJob, disabled bool
		runs                   int
	}{
		"elector":                     {elect: true, runs: 1},
		"locker":                      {runs: 1},
		"locker of the job":           {ofJob: true, runs: 1},
		"locker disabled for the job": {disabled: true, runs: 3},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			server := embedtest.Start(t)
			runs, skips := make(chan struct{}, 3), make(chan struct{}, 3)
			var schedulers []gocron.Scheduler
			var electors []*gocronlocker.Elector
			for range 3 {
				client := newClient(t, server.Client(t))
				// They start when the machine gets round to it.
				jobs := newLocker(t, client, gocronlocker.WithSplay(timeout))
				opts := []gocron.SchedulerOption{gocron.WithMonitor(monitor{skips})}
				options := []gocron.JobOption{gocron.WithStartAt(gocron.WithStartImmediately()), gocron.WithLimitedRuns(1)}
				switch {
				case tt.elect:
					e := newElector(t, client, "a", "", soon)
					electors = append(electors, e)
					opts = append(opts, gocron.WithDistributedElector(e))
				case tt.ofJob:
					options = append(options, gocron.WithDistributedJobLocker(jobs))
				default:
					opts = append(opts, gocron.WithDistributedLocker(jobs))
				}
				if tt.disabled {
					options = append(options, gocron.WithDisabledDistributedJobLocker(true))
				}
				s := newScheduler(t, opts...)
				if _, err := s.NewJob(gocron.DurationJob(24*time.Hour), gocron.NewTask(func() { runs <- struct{}{} }), append(options, gocron.WithName(job))...); err != nil {
					t.Fatal(err)
				}
				schedulers = append(schedulers, s)
			}
			eventually(t, "one leads", func() bool {
				for _, e := range electors {
					if e.IsLeader(t.Context()) == nil {
						return true
					}
				}
				return len(electors) == 0
			})
			for _, s := range schedulers {
				s.Start()
			}
			for range tt.runs {
				receive(t, runs)
			}
			for range 3 - tt.runs {
				receive(t, skips)
			}
		})
	}
}

// A monitor counts the ticks that gocron skips.
type monitor struct{ skips chan<- struct{} }

func (m monitor) IncrementJob(_ uuid.UUID, _ string, _ []string, status gocron.JobStatus) {
	if status == gocron.Skip {
		m.skips <- struct{}{}
	}
}

func (m monitor) RecordJobTiming(_, _ time.Time, _ uuid.UUID, _ string, _ []string) {}
