package gocronlocker_test

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/go-co-op/gocron/v2"
	"github.com/google/uuid"
	"github.com/jonboulle/clockwork"
	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/jagregory/locker/contrib/gocron"
	"github.com/jagregory/locker/v2"
	"github.com/jagregory/locker/v2/embedtest"
)

// lock takes a tick or fails the test.
func lock(t *testing.T, l gocron.Locker, ctx context.Context, job string) gocron.Lock {
	t.Helper()
	run, err := l.Lock(ctx, job)
	if err != nil {
		t.Fatal(err)
	}
	return run
}

// unlock unlocks or fails the test.
func unlock(t *testing.T, run gocron.Lock) {
	t.Helper()
	if err := run.Unlock(within(t)); err != nil {
		t.Fatal(err)
	}
}

func TestLocker_RefusesATickThatWasTakenUntilTheSplayIsOver(t *testing.T) {
	t.Parallel()
	server := embedtest.Start(t)
	clock := clockwork.NewFakeClockAt(epoch)
	opts := []gocronlocker.Option{gocronlocker.WithClock(clock), gocronlocker.WithSplay(time.Minute)}
	one := newLocker(t, newClient(t, server.Client(t)), opts...)
	two := newLocker(t, newClient(t, server.Client(t)), opts...)

	run := lock(t, one, within(t), "a")
	_, err := two.Lock(within(t), "a")
	want(t, err, locker.ErrLocked)
	unlock(t, lock(t, two, within(t), "b")) // another job
	unlock(t, run)
	for range 2 {
		clock.Advance(time.Minute/2 - 1)
		for _, l := range []gocron.Locker{one, two} {
			_, err = l.Lock(within(t), "a")
			want(t, err, gocronlocker.ErrAlreadyRun)
		}
	}
	clock.Advance(2)
	unlock(t, lock(t, two, within(t), "a"))
}

func TestLocker_LeavesNothingLockedAfterARefusal(t *testing.T) {
	t.Parallel()
	client := newClient(t, embedtest.Start(t).Client(t))
	l := newLocker(t, client, gocronlocker.WithSplay(time.Hour))
	unlock(t, lock(t, l, within(t), "a"))
	_, err := l.Lock(within(t), "a")
	want(t, err, gocronlocker.ErrAlreadyRun)
	_, err = client.Get(within(t), "gocron/a")
	want(t, err, locker.ErrNotFound)
}

func TestLocker_ClientsWithOtherPrefixesRunJobsOfTheirOwn(t *testing.T) {
	t.Parallel()
	server := embedtest.Start(t)
	for _, prefix := range []string{"one/", "two/"} {
		l := newLocker(t, newClient(t, server.Client(t), locker.WithPrefix(prefix)), gocronlocker.WithSplay(time.Hour))
		unlock(t, lock(t, l, within(t), "a/b%"))
		resp, err := server.Client(t).Get(within(t), "locker.gocron/"+prefix+"gocron%2Fa%2Fb%25")
		if err != nil || len(resp.Kvs) != 1 {
			t.Errorf("no record: %v, %v", resp, err)
		}
	}
}

func TestLocker_TakesNoTickWhenTheLockIsLostBeforeTheRecord(t *testing.T) {
	t.Parallel()
	server := embedtest.Start(t)
	var other *clientv3.Client // deletes the entry between the two transactions
	etcd := server.ClientWith(t, func(ctx context.Context, method string, req any, call func() error) error {
		if strings.Contains(req.(interface{ String() string }).String(), "locker.gocron/") {
			if _, err := other.Delete(ctx, locker.DefaultPrefix+"gocron%2Fa/", clientv3.WithPrefix()); err != nil {
				return err
			}
		}
		return call()
	})
	other = server.Client(t)
	_, err := newLocker(t, newClient(t, etcd)).Lock(within(t), "a")
	want(t, err, locker.ErrLost)
	unlock(t, lock(t, newLocker(t, newClient(t, other)), within(t), "a"))
}

func TestLocker_UnlockReportsALoss(t *testing.T) {
	t.Parallel()
	server := embedtest.Start(t)
	client := newClient(t, server.Client(t), locker.WithTTL(brief))
	run := lock(t, newLocker(t, client), within(t), "a")
	if holder, err := client.Get(within(t), "gocron/a"); err == nil {
		server.ExpireLease(t, holder.Lease)
	}
	eventually(t, "the loss is noticed", func() bool { return run.(interface{ Err() error }).Err() != nil })
	want(t, run.Unlock(within(t)), locker.ErrLost)
}

func TestLocker_UnlockWithAnEndedContextFreesTheName(t *testing.T) {
	t.Parallel()
	client := newClient(t, embedtest.Start(t).Client(t))
	ctx, cancel := context.WithCancel(within(t))
	run := lock(t, newLocker(t, client), ctx, "a")
	cancel() // as Scheduler.Shutdown does
	_ = run.Unlock(ctx)
	eventually(t, "the name is free", func() bool {
		_, err := client.Get(within(t), "gocron/a")
		return errors.Is(err, locker.ErrNotFound)
	})
}

func TestLocker_LockEndsWithItsContext(t *testing.T) {
	t.Parallel()
	proxy := embedtest.Start(t).Proxy(t)
	l := newLocker(t, newClient(t, proxy.Client(t)))
	proxy.Freeze()
	ctx, cancel := context.WithCancel(within(t))
	result := make(chan error, 1)
	go func() {
		_, err := l.Lock(ctx, "a")
		result <- err
	}()
	cancel()
	want(t, receive(t, result), context.Canceled)
	proxy.Heal()
}

func TestLocker_RefusesWhenItsClientIsClosed(t *testing.T) {
	t.Parallel()
	server := embedtest.Start(t)
	client := newClient(t, server.Client(t))
	l := newLocker(t, client)
	run := lock(t, l, within(t), "a")
	if err := client.Close(); err != nil {
		t.Fatal(err)
	}
	want(t, run.Unlock(within(t)), locker.ErrClosed)
	_, err := l.Lock(within(t), "b")
	want(t, err, locker.ErrClosed)

	etcd := server.Client(t)
	l = newLocker(t, newClient(t, etcd))
	_ = etcd.Close()
	_, err = l.Lock(within(t), "b")
	want(t, err, locker.ErrEtcdClosed)
}

func TestLocker_RefusesBadArguments(t *testing.T) {
	t.Parallel()
	client := newClient(t, embedtest.Start(t).Client(t))
	for argument, opt := range map[string]gocronlocker.Option{"option": nil, "splay": gocronlocker.WithSplay(0), "clock": gocronlocker.WithClock(nil)} {
		_, err := gocronlocker.NewLocker(client, opt)
		wantInvalid(t, err, argument)
	}
	for _, c := range []*locker.Client{nil, {}} {
		_, err := gocronlocker.NewLocker(c)
		wantInvalid(t, err, "client")
	}
	l := newLocker(t, client)
	var none context.Context
	_, err := l.Lock(none, "a")
	wantInvalid(t, err, "context")
	_, err = l.Lock(within(t), "a\n")
	wantInvalid(t, err, "name")
}

func TestTask_EndsTheContextOfTheJobWhenTheLockIsLost(t *testing.T) {
	t.Parallel()
	server := embedtest.Start(t)
	etcd := server.Client(t)
	l := newLocker(t, newClient(t, server.Client(t), locker.WithTTL(brief)))
	s := newScheduler(t, gocron.WithDistributedLocker(l))
	ended, reported := make(chan error, 1), make(chan error, 1)
	task := l.Task(func(ctx context.Context, lock *locker.Lock) error {
		if _, err := etcd.Delete(ctx, lock.Key()); err != nil {
			return err
		}
		<-ctx.Done()
		ended <- context.Cause(ctx)
		return nil
	})
	newJob(t, s, task, gocron.WithStartAt(gocron.WithStartImmediately()), gocron.WithLimitedRuns(1),
		gocron.WithEventListeners(gocron.AfterJobRunsWithError(func(_ uuid.UUID, _ string, err error) { reported <- err })))
	s.Start()
	want(t, receive(t, ended), locker.ErrLost)
	want(t, receive(t, reported), locker.ErrLost)
}

func TestTask_EndsWithTheScheduler(t *testing.T) {
	t.Parallel()
	l := newLocker(t, newClient(t, embedtest.Start(t).Client(t)))
	s := newScheduler(t, gocron.WithDistributedLocker(l))
	began, ended := make(chan struct{}), make(chan error, 1)
	task := l.Task(func(ctx context.Context, lock *locker.Lock) error {
		close(began)
		<-ctx.Done()
		ended <- lock.Err()
		return nil
	})
	newJob(t, s, task, gocron.WithStartAt(gocron.WithStartImmediately()), gocron.WithLimitedRuns(1))
	s.Start()
	receive(t, began)
	if err := s.StopJobs(); err != nil {
		t.Error(err)
	}
	if err := receive(t, ended); err != nil {
		t.Errorf("the lock was given up before the job had returned: %v", err)
	}
}

func TestTask_RunsOnlyUnderItsLocker(t *testing.T) {
	t.Parallel()
	client := newClient(t, embedtest.Start(t).Client(t))
	l := newLocker(t, client)
	called := false
	task := l.Task(func(context.Context, *locker.Lock) error { called = true; return nil })
	ctx, cancel := context.WithCancel(within(t))
	defer cancel()
	wantInvalid(t, task(ctx), "context")
	run := lock(t, l, ctx, "a")
	unlock(t, run)
	wantInvalid(t, task(ctx), "context")
	unlock(t, lock(t, newLocker(t, client), ctx, "b"))
	wantInvalid(t, task(ctx), "context")
	wantInvalid(t, l.Task(nil)(ctx), "function")
	if called {
		t.Error("the job has run without a lock")
	}
	run = lock(t, l, ctx, "c")
	if err := task(ctx); err != nil || !called {
		t.Errorf("under its lock the job returns %v", err)
	}
	wantInvalid(t, task(ctx), "context") // a lock is for one run
	unlock(t, run)
}

func TestTask_NeedsANameOfItsOwn(t *testing.T) {
	t.Parallel()
	l := newLocker(t, newClient(t, embedtest.Start(t).Client(t)))
	s := newScheduler(t, gocron.WithDistributedLocker(l))
	refused := make(chan error, 1)
	_, err := s.NewJob(gocron.DurationJob(time.Hour), gocron.NewTask(l.Task(func(context.Context, *locker.Lock) error { return nil })),
		gocron.WithStartAt(gocron.WithStartImmediately()), gocron.WithLimitedRuns(1),
		gocron.WithEventListeners(gocron.AfterLockError(func(_ uuid.UUID, _ string, err error) { refused <- err })))
	if err != nil {
		t.Fatal(err)
	}
	s.Start()
	wantInvalid(t, receive(t, refused), "name")
}
