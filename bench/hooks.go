package main

import (
	"cmp"
	"context"
	"testing"

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
			f[allocations] = testing.AllocsPerRun(100, func() { err = cmp.Or(err, lockUnlock(ctx, m)) })
			return f, err
		}, nil
	}}
}
