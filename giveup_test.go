package locker_test

import (
	"context"
	"os"
	"runtime"
	"slices"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/jagregory/locker/v2"
)

// howMany is how many calls are given up at once. With LOCKER_MANY=100000 the time it takes is
// judged too. The race detector bears no more than 8128 goroutines.
func howMany() int {
	n, err := strconv.Atoi(os.Getenv("LOCKER_MANY"))
	switch {
	case err == nil:
		return n
	case raceDetector:
		return 2_000
	}
	return 30_000
}

// giveUp makes n calls with one context, which ends once ready has returned, and returns
// how much later the last of them returned.
func giveUp(t *testing.T, n int, call func(ctx context.Context, i int) error, ready func()) time.Duration {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	late := make([]time.Duration, n)
	var ended time.Time // set before ctx ends
	var calls sync.WaitGroup
	for i := range n {
		calls.Go(func() {
			if err := call(ctx, i); err == nil {
				t.Error("a call had success")
			}
			late[i] = time.Since(ended)
		})
	}
	ready()
	runtime.GC() // of what was before
	ended = time.Now()
	cancel()
	calls.Wait()
	slices.Sort(late)
	t.Logf("%d calls returned after %v (median), %v (last)", n, late[n/2], late[n-1])
	return late[n-1]
}

// wantSoon fails the test if the calls returned so late that each had to wait for all others:
// with 100,000 of them, a quarter of a minute.
func wantSoon(t *testing.T, late time.Duration) {
	t.Helper()
	if os.Getenv("LOCKER_MANY") != "" && late > 5*time.Second {
		t.Errorf("the last returned after %v", late)
	}
}

func TestLock_ManyThatWaitMayBeGivenUpAtOnce(t *testing.T) {
	t.Parallel()
	b, n := setup(t), howMany()
	c := b.client(t, locker.WithTTL(time.Minute))
	l := lock(t, c, "a", "v")
	wantSoon(t, giveUp(t, n, func(ctx context.Context, _ int) error {
		_, err := c.Lock(ctx, "a", "v")
		return err
	}, func() {
		eventually(t, "all are in line", func() bool { return c.Waiting("a") == n })
	}))
	if got := c.Waiting("a"); got != 0 || l.Err() != nil {
		t.Errorf("%d are in line, %v", got, l.Err())
	}
	unlock(t, l)
}

func TestUnlock_ManyMayBeGivenUpAtOnce(t *testing.T) {
	t.Parallel()
	m, c := newMute(t) // answers again when the test is over
	locks := make(chan *locker.Lock, howMany())
	var calls sync.WaitGroup
	for i := range cap(locks) {
		calls.Go(func() {
			if l, err := c.Lock(t.Context(), strconv.Itoa(i), "v"); err != nil {
				t.Error(err)
			} else {
				locks <- l
			}
		})
	}
	calls.Wait()
	close(locks)
	var holds []*locker.Lock
	for l := range locks {
		holds = append(holds, l)
	}
	m.silent.Store(true)
	wantSoon(t, giveUp(t, len(holds), func(ctx context.Context, i int) error {
		return holds[i].Unlock(ctx)
	}, func() {
		for _, l := range holds {
			receive(t, l.Context().Done()) // all have begun
		}
	}))
}
