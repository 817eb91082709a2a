package main

import (
	"context"
	"runtime"

	"github.com/jagregory/locker/v2"
)

// withoutHooks and unusedHooks repeatedly lock and unlock a free name.
var (
	withoutHooks = lockingWith("no hooks")
	unusedHooks  = lockingWith(ours, locker.WithHooks(locker.Hooks{}))
)

// lockingWith repeatedly locks and unlocks a free name with a client that has these options.
func lockingWith(name string, opts ...locker.Option) side {
	return side{name: name, open: func(ctx context.Context, a *arena) (round, error) {
		etcd, err := a.connect()
		if err != nil {
			return nil, err
		}
		c, err := newLocker(a, etcd, opts...)
		if err != nil {
			return nil, err
		}
		m := &lockerMutex{client: c, name: a.name("n", 0)}
		if err := lockUnlock(ctx, m); err != nil { // opens the session
			return nil, err
		}
		return func(ctx context.Context) (figures, error) {
			f, err := sample(ctx, a.workload.period, timeLockUnlock(m))
			if err != nil {
				return nil, err
			}
			f[allocations], err = allocationsOf(func() error { return lockUnlock(ctx, m) })
			return f, err
		}, nil
	}}
}

// allocationsOf returns how many allocations the program makes during a call. It rounds down,
// as the testing package does: others allocate as well.
func allocationsOf(call func() error) (float64, error) {
	const calls = 100
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	for range calls {
		if err := call(); err != nil {
			return 0, err
		}
	}
	runtime.ReadMemStats(&after)
	return float64((after.Mallocs - before.Mallocs) / calls), nil
}
