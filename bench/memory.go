package main

import (
	"context"
	"errors"
	"runtime"
	"time"

	"github.com/jagregory/locker/v2"
)

const (
	heap       figure = "heap"       // bytes
	memory     figure = "memory"     // bytes, including stacks
	goroutines figure = "goroutines" // besides the caller's
)

// usage is the resource usage of the process after garbage collection.
type usage struct{ heap, stack, goroutines float64 }

func usageNow() usage {
	runtime.GC()
	runtime.GC() // frees objects with finalizers and those in pools
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return usage{float64(m.HeapAlloc), float64(m.StackInuse), float64(runtime.NumGoroutine())}
}

// bytes returns the size of heap and stacks.
func (u usage) bytes() float64 { return u.heap + u.stack }

// since returns the growth since an earlier usage, divided by n.
func (u usage) since(before usage, n int) figures {
	share := func(now, then float64) float64 { return max(0, now-then) / float64(n) }
	return figures{
		heap:       share(u.heap, before.heap),
		memory:     share(u.bytes(), before.bytes()),
		goroutines: share(u.goroutines, before.goroutines),
	}
}

// heldLocks measures the memory of locks that are held.
var heldLocks = side{name: ours, open: func(ctx context.Context, a *arena) (round, error) {
	c, _, err := lockerPair(a)
	if err != nil {
		return nil, err
	}
	return func(ctx context.Context) (figures, error) {
		locks := make([]*locker.Lock, a.workload.holds)
		before := usageNow()
		err := each(ctx, len(locks), 100, func(ctx context.Context, i int) (err error) {
			locks[i], err = c.Lock(ctx, a.name("n", i), "")
			return err
		})
		if err != nil {
			return nil, err
		}
		f := usageNow().since(before, len(locks))
		return f, each(ctx, len(locks), 100, func(ctx context.Context, i int) error { return locks[i].Unlock(ctx) })
	}, nil
}}

// waitingLocks measures the memory of locks that wait, each for a name that another
// client holds.
func waitingLocks(s service, prefix string) side {
	return side{name: s.name, open: func(ctx context.Context, a *arena) (round, error) {
		clients, err := s.joinAll(ctx, a, 2)
		if err != nil {
			return nil, err
		}
		holder, waiter := clients[0], clients[1]
		observer, err := a.connect()
		if err != nil {
			return nil, err
		}
		names := a.names("n", a.workload.waiters)
		return func(ctx context.Context) (figures, error) {
			held := make([]mutex, len(names))
			err := each(ctx, len(names), 100, func(ctx context.Context, i int) error {
				held[i] = holder(names[i])
				return held[i].Lock(ctx)
			})
			if err != nil {
				return nil, err
			}
			f, err := measureWaiting(ctx, waiter, names, func(ctx context.Context, waiting int) error {
				if err := awaitEntries(ctx, observer, prefix+a.id+"-n-", int64(len(names)+waiting)); err != nil {
					return err
				}
				return awaitStableGoroutines(ctx)
			})
			if err != nil {
				return nil, err
			}
			return f, each(ctx, len(names), 100, func(ctx context.Context, i int) error { return held[i].Unlock(ctx) })
		}, nil
	}}
}

// measureWaiting measures the usage of each goroutine that waits for a name, apart from
// the first. The stack of the goroutine is included; the goroutine itself is not counted.
func measureWaiting(ctx context.Context, c client, names []string, queued func(ctx context.Context, waiting int) error) (f figures, err error) {
	waitCtx, cancel := context.WithCancel(ctx)
	ended := make(chan error, len(names))
	var before usage
	for i, name := range names {
		go func() { ended <- c(name).Lock(waitCtx) }()
		if i == 0 {
			err = queued(ctx, 1)
			before = usageNow()
		}
	}
	if err == nil {
		err = queued(ctx, len(names))
	}
	f = usageNow().since(before, len(names)-1)
	f[goroutines]-- // the caller's own
	cancel()
	for range names {
		if got := <-ended; !errors.Is(got, context.Canceled) {
			err = errors.Join(err, got, errNotWaiting)
		}
	}
	return f, err
}

var errNotWaiting = errors.New("a lock did not wait")

// awaitStableGoroutines waits until the number of goroutines has not changed for some
// time, which means that all watches are established.
func awaitStableGoroutines(ctx context.Context) error {
	const enough = 6
	for last, stable := 0, 0; stable < enough; stable++ {
		if now := runtime.NumGoroutine(); now != last {
			last, stable = now, 0
		}
		if err := pause(ctx, 50*time.Millisecond); err != nil {
			return err
		}
	}
	return nil
}
