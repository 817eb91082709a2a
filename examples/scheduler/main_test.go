package main

import (
	"bytes"
	"context"
	"errors"
	"regexp"
	"testing"
	"time"

	"github.com/alicebob/miniredis/v2"
	"github.com/hibiken/asynq"
	"go.uber.org/goleak"

	"github.com/jagregory/locker/v2"
	"github.com/jagregory/locker/v2/embedtest"
)

func TestMain(m *testing.M) {
	ttl = 6 * time.Second
	goleak.VerifyTestMain(m)
}

// testTimeout bounds every wait of a test.
const testTimeout = time.Minute

func testContext(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), testTimeout)
	t.Cleanup(cancel)
	return ctx
}

func TestRun_TheOtherSchedulerStartsWhenThatOfTheFirstIsShutDown(t *testing.T) {
	t.Parallel()
	var out bytes.Buffer
	if err := run(testContext(t), &out, nil); err != nil {
		t.Fatalf("%v, after\n%s", err, &out)
	}
	steps := regexp.MustCompile(`(?s)([ab])  has enqueued task.*([ab])  disconnected from etcd;.*([ab])  Scheduler stopped.*([ab])  Scheduler starting.*([ab])  has enqueued task`)
	found := steps.FindSubmatch(out.Bytes())
	if found == nil {
		t.Fatalf("the output lacks %v:\n%s", steps, &out)
	}
	if cut, started, next := string(found[2]), string(found[4]), string(found[5]); started == cut || next == cut {
		t.Errorf("%s was disconnected, %s started, %s went on:\n%s", cut, started, next, &out)
	}
}

// newClient returns a client whose locks outlast the test unless they are released.
func newClient(t *testing.T, server *embedtest.Server) *locker.Client {
	t.Helper()
	client, err := locker.New(server.Client(t), locker.WithTTL(10*testTimeout))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := client.Close(); err != nil {
			t.Error(err)
		}
	})
	return client
}

func TestSchedule_LetsTheNextStartWhenItsContextEnds(t *testing.T) {
	t.Parallel()
	server, redis, ctx := embedtest.Start(t), miniredis.RunT(t), testContext(t)
	started := make(chan string, 2)
	begin := func(ctx context.Context, instance string) (ended chan error) {
		ended, client := make(chan error, 1), newClient(t, server)
		go func() {
			ended <- schedule(ctx, client, instance, func() (*asynq.Scheduler, error) {
				started <- instance
				return asynq.NewScheduler(asynq.RedisClientOpt{Addr: redis.Addr()}, &asynq.SchedulerOpts{LogLevel: asynq.ErrorLevel}), nil
			})
		}()
		return ended
	}
	next := func(want string) {
		t.Helper()
		select {
		case got := <-started:
			if got != want {
				t.Fatalf("%s started, want %s", got, want)
			}
		case <-ctx.Done():
			t.Fatalf("%s did not start", want)
		}
	}
	first, stopFirst := context.WithCancel(ctx)
	defer stopFirst()
	firstEnded := begin(first, "first")
	next("first")
	second, stopSecond := context.WithCancel(ctx)
	defer stopSecond()
	secondEnded := begin(second, "second")
	stopFirst()
	if err := <-firstEnded; err != nil {
		t.Error(err)
	}
	next("second")
	stopSecond()
	if err := <-secondEnded; err != nil {
		t.Error(err)
	}
}

func TestSchedule_ReturnsWhyThereIsNoScheduler(t *testing.T) {
	t.Parallel()
	want := errors.New("no scheduler")
	client := newClient(t, embedtest.Start(t))
	got := schedule(testContext(t), client, "a", func() (*asynq.Scheduler, error) { return nil, want })
	if !errors.Is(got, want) {
		t.Errorf("schedule returned %v", got)
	}
	if holders, err := client.List(testContext(t), ""); err != nil || len(holders) > 0 {
		t.Errorf("held after that: %v, %v", holders, err)
	}
}
