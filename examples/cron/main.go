// Command cron runs a job of github.com/robfig/cron every second on one of three instances.
// When that one is disconnected from etcd, its job is canceled before another instance goes
// on.
//
//	go run ./examples/cron
//	go run ./examples/cron -endpoints 10.0.0.1:2379,10.0.0.2:2379
package main

import (
	"context"
	"errors"
	"io"
	"log"
	"sync/atomic"
	"time"

	"github.com/jagregory/locker/v2"
	"github.com/jagregory/locker/v2/examples/internal/recipe"
)

func main() { recipe.Main(run) }

// ttl is the TTL of the leases. The tests use a longer one, for busy machines.
var ttl = 3 * time.Second

// run is the demonstration. It returns an error if two instances run the job at one time.
func run(ctx context.Context, out io.Writer, endpoints []string) error {
	instances, err := recipe.Start(ctx, endpoints, 3, ttl)
	if err != nil {
		return err
	}
	d := &demo{log: log.New(out, "", log.Lmicroseconds), started: make(chan *execution)}
	program := func(ctx context.Context, i *recipe.Instance) error {
		return schedule(ctx, i.Client, i.Name, "* * * * * *", func(ctx context.Context, lock *locker.Lock) { d.job(ctx, i, lock) })
	}
	d.log.Print("a, b and c compete for a lock; its holder runs a job every second")
	err = errors.Join(instances.Run(ctx, program, d.script), instances.Close())
	if d.overlaps.Load() {
		return errors.New("two instances ran the job at one time")
	}
	if err == nil {
		d.log.Print("the job never ran on two instances at one time")
	}
	return err
}

type demo struct {
	log      *log.Logger
	started  chan *execution
	running  atomic.Int32 // jobs
	overlaps atomic.Bool
}

// An execution is one run of the job, which goes on until it is finished or canceled.
type execution struct {
	instance *recipe.Instance
	finish   chan struct{}
}

// script lets the job run twice, and then disconnects the instance that runs it.
func (d *demo) script(ctx context.Context) error {
	for range 2 {
		e, err := d.next(ctx)
		if err != nil {
			return err
		}
		close(e.finish)
	}
	first, err := d.next(ctx)
	if err != nil {
		return err
	}
	d.log.Printf("%s  disconnected from etcd during its job", first.instance.Name)
	first.instance.Network.Cut()
	for {
		e, err := d.next(ctx)
		if err != nil {
			return err
		}
		close(e.finish)
		if e.instance != first.instance {
			return nil
		}
	}
}

func (d *demo) next(ctx context.Context) (*execution, error) {
	select {
	case e := <-d.started:
		return e, nil
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
}

// job is a job that stops its work when its context ends, as each must.
func (d *demo) job(ctx context.Context, i *recipe.Instance, lock *locker.Lock) {
	if d.running.Add(1) > 1 {
		d.overlaps.Store(true)
	}
	defer d.running.Add(-1)
	e := &execution{i, make(chan struct{})}
	d.log.Printf("%s  runs the job (token %d)", i.Name, lock.Token())
	select {
	case d.started <- e:
	case <-ctx.Done():
	}
	select {
	case <-e.finish:
		d.log.Printf("%s  has finished the job", i.Name)
	case <-ctx.Done():
		d.log.Printf("%s  has stopped the job: %v", i.Name, context.Cause(ctx))
	}
}
