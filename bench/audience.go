package main

import (
	"context"
	"fmt"
	"strconv"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/jagregory/locker/v2"
)

// audience is watchers of values that are numbers.
type audience struct {
	size   int64
	group  *errgroup.Group
	ctx    context.Context // ends when one watcher fails, and with end
	cancel context.CancelFunc
	value  atomic.Int64   // that is awaited
	left   atomic.Int64   // watchers that have yet to see it
	last   chan time.Time // receives when the last one has seen it
}

func newAudience(ctx context.Context, size int) *audience {
	w := &audience{size: int64(size), last: make(chan time.Time, 1)}
	ctx, w.cancel = context.WithCancel(ctx)
	w.group, w.ctx = errgroup.WithContext(ctx)
	return w
}

// gather starts the watchers, a few at a time, and waits until each has seen a value.
func (w *audience) gather(clients []*locker.Client, prefix string) error {
	return each(w.ctx, int(w.size), joiningTogether, func(ctx context.Context, i int) error {
		first := make(chan struct{})
		w.group.Go(func() error { return w.watch(clients[i%len(clients)], prefix, first) })
		select {
		case <-first:
			return nil
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	})
}

// end ends all watches. Errors do not matter any more.
func (w *audience) end() {
	w.cancel()
	_ = w.group.Wait()
}

// watch is one watcher. It closes first when it has seen any value.
func (w *audience) watch(c *locker.Client, prefix string, first chan<- struct{}) error {
	seen := int64(-1)
	for state, err := range c.WatchPrefix(w.ctx, prefix) {
		if err != nil {
			return err
		}
		value, err := strconv.ParseInt(state.Value, 10, 64)
		if err != nil {
			return fmt.Errorf("value of %s: %w", state.Name, err)
		}
		if seen < 0 {
			close(first)
		}
		if value > seen {
			seen = value
			w.saw(value)
		}
	}
	return errWatchEnded
}

// saw notes that one more watcher has seen a value.
func (w *audience) saw(value int64) {
	if value == w.value.Load() && value > 0 && w.left.Add(-1) == 0 {
		w.last <- time.Now()
	}
}

// expect prepares for a value that has not been set before.
func (w *audience) expect(value int64) {
	w.left.Store(w.size)
	w.value.Store(value)
}

// changes sets value after value, at least so many and for so long, and returns the times
// that change has returned, in milliseconds.
func (w *audience) changes(lock *locker.Lock, least int, period time.Duration) (times []float64, err error) {
	for began := time.Now(); len(times) < least || time.Since(began) < period; {
		if err := pause(w.ctx, watchDelay); err != nil {
			return nil, err
		}
		took, err := w.change(lock, len(times)+1)
		if err != nil {
			return nil, err
		}
		times = append(times, milliseconds(took))
	}
	return times, nil
}

// change sets the value, and returns the time until the last watcher has seen it.
func (w *audience) change(lock *locker.Lock, value int) (time.Duration, error) {
	w.expect(int64(value))
	began := time.Now()
	if err := lock.SetValue(w.ctx, strconv.Itoa(value)); err != nil {
		return 0, err
	}
	select {
	case last := <-w.last:
		return last.Sub(began), nil
	case <-w.ctx.Done():
		return 0, fmt.Errorf("%d of %d watchers have not seen a change: %w", w.left.Load(), w.size, context.Cause(w.ctx))
	}
}
