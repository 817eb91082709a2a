// Package gocronlocker runs the jobs of gocron on one of several instances of a program, by
// locks in etcd.
//
//	client, err := locker.New(etcd)
//	jobs, err := gocronlocker.NewLocker(client)
//	scheduler, err := gocron.NewScheduler(gocron.WithDistributedLocker(jobs))
//
// A [Locker] decides anew for every tick of every job, so the instances share the work. An
// [Elector] lets one instance, the leader, run all of them. With a Locker no tick runs twice,
// and a killed instance delays nothing but the job that it was running; an Elector costs no
// request per tick.
//
// # Ticks
//
// A tick is a time at which a job is due. Every instance finds it by its own clock, so the
// instances agree on a tick only if the schedule names times: a cron job, a daily, weekly or
// monthly job, or a DurationJob whose start is fixed with gocron.WithStartAt and
// gocron.WithStartDateTimePast. A DurationJob without a fixed start is due at other times on
// every instance; see [WithSplay].
//
// gocron tells a Locker the name of the job, and not which tick it is about. Give each job a
// name with gocron.WithName: by default it is that of the function, which several jobs may
// have in common.
package gocronlocker
