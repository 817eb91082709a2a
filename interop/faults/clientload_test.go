//go:build unix

package faults

import (
	"context"
	"math/rand/v2"
	"strconv"
	"sync"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/jagregory/locker/v2"
)

// workers is the number of goroutines in a client process that take locks under load.
const workers = 4

// load locks and unlocks names until the command "endload".
func (c *client) load(ctx context.Context, cmd command, _ *report) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var all sync.WaitGroup
	for range workers {
		all.Go(func() {
			for ctx.Err() == nil {
				select {
				case <-c.endLoad:
					return
				default:
					c.cycle(ctx, cmd.ID, cmd.Names[rand.IntN(len(cmd.Names))])
				}
			}
		})
	}
	all.Wait()
	return nil
}

// cycle locks a name with a random timeout, increments its counter under the guard, holds
// for a moment and unlocks the name. A cycle without a hold is followed by a short pause.
func (c *client) cycle(ctx context.Context, id int, name string) {
	r := report{ID: id, Verb: "cycle", Name: name, Wrote: "no"}
	var l *locker.Lock
	err := c.timed(ctx, 20*time.Millisecond+rand.N(1500*time.Millisecond), &r, func(ctx context.Context) (err error) {
		l, err = c.locker.Lock(ctx, name, c.name)
		return err
	})
	r.Began = now()
	if err == nil {
		r.Token, r.Until = l.Token(), r.Began
		r.Wrote = c.count(ctx, l, &r)
		for end := now().add(rand.N(5 * time.Millisecond)); now() < end; pause(ctx, time.Millisecond) {
			if at := now(); l.Err() == nil {
				r.Until = at
			}
		}
		err = c.timed(ctx, rand.N(time.Second), &r, l.Unlock)
	}
	r.At = now()
	r.fail(err)
	c.say(r)
	if l == nil {
		pause(ctx, 10*time.Millisecond)
	}
}

// count increments the counter of a name and returns whether that was written: "yes",
// "no" or "unknown".
func (c *client) count(ctx context.Context, l *locker.Lock, r *report) (wrote string) {
	const limit = time.Second
	n := int64(0)
	err := c.timed(ctx, limit, new(report), func(ctx context.Context) (err error) {
		n, err = counter(ctx, c.etcd, l.Name())
		return err
	})
	if err != nil {
		return "no"
	}
	err = c.timed(ctx, limit, r, func(ctx context.Context) error {
		_, err := l.Commit(ctx, clientv3.OpPut(counterKey(l.Name()), strconv.FormatInt(n+1, 10)))
		return err
	})
	switch kind := kindOf(err); {
	case err == nil:
		return "yes"
	case kind == kindLost || kind == kindReleased:
		return "no"
	}
	return "unknown"
}

func counterKey(name string) string { return "counter/" + name }

// counter returns the counter of a name.
func counter(ctx context.Context, etcd *clientv3.Client, name string) (int64, error) {
	resp, err := etcd.Get(ctx, counterKey(name))
	if err != nil || len(resp.Kvs) == 0 {
		return 0, err
	}
	return strconv.ParseInt(string(resp.Kvs[0].Value), 10, 64)
}
