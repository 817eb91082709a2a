package main

import (
	"context"

	"github.com/robfig/cron/v3"

	"github.com/jagregory/locker/v2"
)

// schedule calls job at each tick of spec, on one of the instances that have called
// schedule. It blocks until ctx ends. The context of a job ends with ctx, or when the
// instance may no longer run the job; a job that needs more than that can fence its writes
// with the lock.
//
// The lock is held for the life of the scheduler, not for that of a job. If each job took
// the lock for itself, an instance whose clock is behind would find the lock free after a
// short job, and run the same tick again.
func schedule(ctx context.Context, client *locker.Client, instance, spec string, job func(context.Context, *locker.Lock)) error {
	return client.Campaign(ctx, "cron", instance, func(ctx context.Context, lock *locker.Lock) error {
		c := cron.New(cron.WithSeconds(), cron.WithChain(cron.SkipIfStillRunning(cron.DiscardLogger)))
		_, err := c.AddFunc(spec, func() {
			// After a pause of the process a tick may come before the end of ctx. Err looks at the clock.
			if lock.Err() == nil {
				job(ctx, lock)
			}
		})
		if err != nil {
			return err
		}
		c.Start()
		<-ctx.Done()
		<-c.Stop().Done() // starts no more jobs, and waits for those that run, whose context has ended
		return nil
	})
}
