package main

import (
	"context"
	"sync/atomic"
)

// freshName locks and unlocks a name that is new in each round.
var freshName = side{name: "fresh name", open: func(ctx context.Context, a *arena) (round, error) {
	clients, err := lockerService.joinAll(ctx, a, 1)
	if err != nil {
		return nil, err
	}
	i := 0
	return func(ctx context.Context) (figures, error) {
		i++
		return sample(ctx, a.workload.period, timeLockUnlock(clients[0](a.name("n", i))))
	}, nil
}}

// usedName locks and unlocks a name that has been locked very often without compaction.
var usedName = side{name: ours, open: func(ctx context.Context, a *arena) (round, error) {
	clients, err := lockerService.joinAll(ctx, a, 2)
	if err != nil {
		return nil, err
	}
	name := a.name("n", 0)
	// Half of the acquisitions are by another client, whose entries have another key.
	for _, c := range clients {
		if err := lockOften(ctx, c, name, a.workload.history/2); err != nil {
			return nil, err
		}
	}
	m := clients[0](name)
	return func(ctx context.Context) (figures, error) { return sample(ctx, a.workload.period, timeLockUnlock(m)) }, nil
}}

// lockOften locks and unlocks name the given number of times, in several goroutines of
// one client, which is faster than in one.
func lockOften(ctx context.Context, c client, name string, times int) error {
	var done atomic.Int64
	return each(ctx, 16, 16, func(ctx context.Context, _ int) error {
		m := c(name)
		for done.Add(1) <= int64(times) {
			if err := lockUnlock(ctx, m); err != nil {
				return err
			}
		}
		return nil
	})
}
