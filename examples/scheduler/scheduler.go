package main

import (
	"context"

	"github.com/hibiken/asynq"

	"github.com/jagregory/locker/v2"
)

// schedule runs a scheduler on one of the instances that have called schedule. It blocks
// until ctx ends. It calls newScheduler for each hold, because a scheduler that was shut
// down cannot be started again.
//
// Shutdown waits for a task that is on its way to Redis, which no context cuts short. With
// Redis' client as it is by default, that may take longer than the safety margin of the
// lock: set its timeouts, or give client a locker.WithLockDelay.
func schedule(ctx context.Context, client *locker.Client, instance string, newScheduler func() (*asynq.Scheduler, error)) error {
	return client.Campaign(ctx, "scheduler", instance, func(ctx context.Context, _ *locker.Lock) error {
		scheduler, err := newScheduler()
		if err != nil {
			return err
		}
		if err := scheduler.Start(); err != nil {
			return err
		}
		<-ctx.Done()
		scheduler.Shutdown() // only then is the lock released
		return nil
	})
}
