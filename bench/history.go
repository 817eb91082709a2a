package main

import (
	"context"
	"sync/atomic"
)

// freshName is lock and unlock of a name that is new in each round.
var freshName = side{name: "fresh name", open: func(ctx context.Context, a *arena) (round, error) {
	clients, err := lockers.joinAll(ctx, a, 1)
	if err != nil {
		return nil, err
	}
	i := 0
	return func(ctx context.Context) (figures, error) {
		i++
		return sample(ctx, a.scale.period, timed(clients[0](a.name("n", i))))
	}, nil
}}

// usedName is lock and unlock of a name that has been locked very often, without compaction.
var usedName = side{name: ours, open: func(ctx context.Context, a *arena) (round, error) {
	clients, err := lockers.joinAll(ctx, a, 2)
	if err != nil {
		return nil, err
	}
	name := a.name("n", 0)
	// Half of them by another client, whose entries have another key.
	for _, c := range clients {
		if err := lockOften(ctx, c, name, a.scale.history/2); err != nil {
			return nil, err
		}
	}
	m := clients[0](name)
	return func(ctx context.Context) (figures, error) { return sample(ctx, a.scale.period, timed(m)) }, nil
}}

// lockOften has goroutines of one client take turns, which is faster than one goroutine alone.
func lockOften(ctx context.Context, c client, name string, times int) error {
	var done atomic.Int64
	return each(ctx, 16, 16, func(ctx context.Context, _ int) error {
		m := c(name)
		for done.Add(1) <= int64(times) {
			if err := lockOnce(ctx, m); err != nil {
				return err
			}
		}
		return nil
	})
}
