// Command scheduler enqueues a periodic task of github.com/hibiken/asynq on one of two
// instances. When that one is disconnected from etcd, its scheduler is shut down before the
// other one starts. Redis runs inside the program.
//
//	go run ./examples/scheduler
//	go run ./examples/scheduler -endpoints 10.0.0.1:2379,10.0.0.2:2379
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log"
	"sync/atomic"
	"time"

	"github.com/alicebob/miniredis/v2"
	"github.com/hibiken/asynq"

	"github.com/jagregory/locker/v2/examples/internal/recipe"
)

func main() { recipe.Main(run) }

// ttl is the TTL of the leases. The tests use a longer one, for busy machines.
var ttl = 3 * time.Second

// run is the demonstration. It returns an error if two schedulers run at one time, or if
// Redis has not got what they enqueued.
func run(ctx context.Context, out io.Writer, endpoints []string) error {
	redis := miniredis.NewMiniRedis()
	if err := redis.Start(); err != nil {
		return err
	}
	defer redis.Close()
	instances, err := recipe.Start(ctx, endpoints, 2, ttl)
	if err != nil {
		return err
	}
	d := &demo{
		log:      log.New(out, "", log.Lmicroseconds),
		redis:    asynq.RedisClientOpt{Addr: redis.Addr(), DialTimeout: time.Second, ReadTimeout: time.Second, WriteTimeout: time.Second},
		enqueued: make(chan enqueued),
	}
	d.log.Print("a and b compete for a lock; its holder enqueues a task every second, in a Redis inside this program")
	err = errors.Join(instances.Run(ctx, d.program, d.script), instances.Close())
	if d.overlaps.Load() {
		return errors.New("two schedulers ran at one time")
	}
	if err == nil {
		d.log.Print("there were never two schedulers at one time")
	}
	return err
}

type demo struct {
	log      *log.Logger
	redis    asynq.RedisClientOpt
	enqueued chan enqueued
	running  atomic.Int32 // schedulers
	overlaps atomic.Bool
}

// enqueued is a task in Redis, and who has enqueued it.
type enqueued struct {
	by   *recipe.Instance
	task *asynq.TaskInfo
}

// program is what each instance does.
func (d *demo) program(ctx context.Context, i *recipe.Instance) error {
	return schedule(ctx, i.Client, i.Name, func() (*asynq.Scheduler, error) {
		scheduler := asynq.NewScheduler(d.redis, &asynq.SchedulerOpts{
			Logger: logger{d, i},
			PostEnqueueFunc: func(task *asynq.TaskInfo, err error) {
				if err != nil {
					return // which asynq reports
				}
				d.log.Printf("%s  has enqueued task %s", i.Name, task.ID)
				select {
				case d.enqueued <- enqueued{i, task}:
				case <-ctx.Done():
				}
			},
		})
		_, err := scheduler.Register("@every 1s", asynq.NewTask("report", nil))
		return scheduler, err
	})
}

// script waits for two tasks, disconnects the instance that has enqueued them, and waits
// for a task of the other.
func (d *demo) script(ctx context.Context) error {
	if _, err := d.next(ctx); err != nil {
		return err
	}
	first, err := d.next(ctx)
	if err != nil {
		return err
	}
	d.log.Printf("%s  disconnected from etcd; it still holds the lock until shortly before its lease expires", first.by.Name)
	first.by.Network.Cut()
	for last := first; last.by == first.by; {
		if last, err = d.next(ctx); err != nil {
			return err
		}
	}
	return nil
}

// next waits for a task, and checks that Redis has it.
func (d *demo) next(ctx context.Context) (enqueued, error) {
	select {
	case e := <-d.enqueued:
		inspector := asynq.NewInspector(d.redis)
		_, err := inspector.GetTaskInfo(e.task.Queue, e.task.ID)
		return e, errors.Join(err, inspector.Close())
	case <-ctx.Done():
		return enqueued{}, context.Cause(ctx)
	}
}

// A logger logs what asynq does, and counts the schedulers that run.
type logger struct {
	*demo
	instance *recipe.Instance
}

func (l logger) Info(args ...any) {
	text := fmt.Sprint(args...)
	switch text {
	case "Scheduler starting":
		if l.running.Add(1) > 1 {
			l.overlaps.Store(true)
		}
	case "Scheduler stopped":
		l.running.Add(-1)
	}
	l.log.Printf("%s  %s", l.instance.Name, text)
}

func (l logger) Debug(...any)      {}
func (l logger) Warn(args ...any)  { l.Info(args...) }
func (l logger) Error(args ...any) { l.Info(args...) }
func (l logger) Fatal(args ...any) { l.Info(args...) }
