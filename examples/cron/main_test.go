package main

import (
	"bytes"
	"context"
	"errors"
	"regexp"
	"testing"
	"time"

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

func TestRun_AnotherInstanceGoesOnWhenTheJobOfTheFirstIsCanceled(t *testing.T) {
	t.Parallel()
	var out bytes.Buffer
	if err := run(testContext(t), &out, nil); err != nil {
		t.Fatalf("%v, after\n%s", err, &out)
	}
	steps := regexp.MustCompile(`(?s)([abc])  disconnected from etcd during its job\n.*([abc])  has stopped the job: lock lost.*([abc])  runs the job`)
	found := steps.FindSubmatch(out.Bytes())
	if found == nil {
		t.Fatalf("the output lacks %v:\n%s", steps, &out)
	}
	if cut, stopped, next := string(found[1]), string(found[2]), string(found[3]); cut != stopped || next == cut {
		t.Errorf("%s was disconnected, %s stopped, %s went on:\n%s", cut, stopped, next, &out)
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

func TestSchedule_StopsItsJobAndLetsTheNextGoOnWhenItsContextEnds(t *testing.T) {
	t.Parallel()
	server, ctx := embedtest.Start(t), testContext(t)
	jobs := make(chan string, 16) // each job sends its instance when it starts, and again when it ends
	begin := func(ctx context.Context, instance string) (ended chan error) {
		ended, client := make(chan error, 1), newClient(t, server)
		go func() {
			ended <- schedule(ctx, client, instance, "* * * * * *", func(ctx context.Context, lock *locker.Lock) {
				jobs <- instance
				<-ctx.Done()
				select {
				case <-lock.Context().Done():
					t.Errorf("the lock of %s ended before its job: %v", instance, lock.Err())
				case <-time.After(100 * time.Millisecond): // long enough to notice
				}
				jobs <- instance
			})
		}()
		return ended
	}
	next := func(want string) {
		t.Helper()
		select {
		case got := <-jobs:
			if got != want {
				t.Fatalf("%s came, want %s", got, want)
			}
		case <-ctx.Done():
			t.Fatal("no job ran")
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
	next("first")
	if err := <-firstEnded; err != nil {
		t.Error(err)
	}
	next("second")
	stopSecond()
	next("second")
	if err := <-secondEnded; err != nil {
		t.Error(err)
	}
}

func TestSchedule_RefusesASpecThatCannotBeRead(t *testing.T) {
	t.Parallel()
	err := schedule(testContext(t), newClient(t, embedtest.Start(t)), "a", "nonsense", nil)
	if err == nil || errors.Is(err, locker.ErrLost) {
		t.Errorf("schedule returned %v", err)
	}
}
