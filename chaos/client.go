package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"hash/fnv"
	"io"
	"math/rand/v2"
	"net/rpc"
	"os"
	"runtime"
	"runtime/metrics"
	"strconv"
	"sync"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/grpc"

	"github.com/jagregory/locker/v2"
)

// clientProcess runs a client process. The first line of its input is its target, further lines
// are orders, and the end of the input makes it stop. It writes its calls to out.
func clientProcess(in io.Reader, out io.Writer) error {
	input := bufio.NewReader(in)
	line, err := input.ReadBytes('\n')
	if err != nil {
		return fmt.Errorf("read the target: %w", err)
	}
	var t target
	if err := json.Unmarshal(line, &t); err != nil {
		return fmt.Errorf("read the target: %w", err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	repeated := &repeats{maxDelay: t.TTL / 2}
	go func() { // ends with the process, since a read of the standard input cannot be interrupted
		readOrders(input, repeated)
		cancel()
		// The harness reports a shutdown that hangs, unless it has died.
		time.AfterFunc(2*time.Minute, func() { os.Exit(3) })
	}()
	r := &recorder{process: t.Process, out: out}
	err = run(ctx, t, r, repeated)
	r.note(call{Op: opBye})
	return errors.Join(err, r.err)
}

// connect opens a connection to etcd with the recommended configuration.
func connect(endpoints []string, options ...grpc.DialOption) (*clientv3.Client, error) {
	config := locker.ClientConfig(endpoints...)
	config.DialOptions = append(config.DialOptions, options...)
	return clientv3.New(config)
}

// run runs the workers until ctx ends, lets the observers catch up, and closes everything.
func run(ctx context.Context, t target, r *recorder, repeated *repeats) error {
	etcd, err := connect(t.Endpoints, repeated.dialOption())
	if err != nil {
		return err
	}
	defer etcd.Close()
	defer repeated.join()
	plain, err := connect(t.Endpoints)
	if err != nil {
		return err
	}
	defer plain.Close()
	fence, err := rpc.Dial("tcp", t.Resource)
	if err != nil {
		return err
	}
	defer fence.Close()
	all, err := open(etcd, t)
	if err != nil {
		return err
	}
	observed, endObservers := context.WithCancel(context.Background())
	var observers sync.WaitGroup
	defer observers.Wait()
	defer endObservers()
	observers.Go(func() { pulse(observed, r) })
	if c, is := all[0].(lockerLocks); is && (t.Load == "" || t.Load == loadCrowd && t.Slot == 0) {
		observers.Go(func() { observe(observed, c, r) })
		if t.Mixed > 0 {
			observers.Go(func() { t.observeHolders(observed, c, r) })
		}
	}

	if t.Load == loadNames {
		(&hoarder{target: t, recorder: r, locks: all[0]}).run(ctx)
	} else {
		work(ctx, t, r, all, plain, fence)
	}
	_ = pause(observed, observerLag(t.Lease)+500*time.Millisecond)
	c := r.begin(call{Op: opClose, By: now().add(min(t.Lease, closeBound))})
	var closing sync.WaitGroup
	errs := make([]error, len(all))
	for i, l := range all {
		closing.Go(func() { errs[i] = l.close() })
	}
	closing.Wait()
	c.Outcome, c.Reason = ok, errText(errors.Join(errs...))
	r.end(c)
	return nil
}

// open returns one client for all workers or, in a crowd, one for each.
func open(etcd *clientv3.Client, t target) (all []locks, err error) {
	if t.Over == overMutex {
		return []locks{mutexLocks{etcd, t.TTL}}, nil
	}
	clients := 1
	if t.Load == loadCrowd {
		clients = t.Workers
	}
	for range clients {
		c, err := newLockerLocks(etcd, t)
		if err != nil {
			return nil, err
		}
		all = append(all, c)
	}
	return all, nil
}

// work runs the workers until ctx ends. Their writes outside a hold use etcd, a separate
// connection that repeats nothing.
func work(ctx context.Context, t target, r *recorder, all []locks, etcd *clientv3.Client, fence *rpc.Client) {
	var workers sync.WaitGroup
	count := t.Workers
	if t.Mixed > 0 {
		count += mixers
	}
	for i := range count {
		seed := fmt.Sprintf("%s/%d", t.Process, i)
		w := &worker{
			target: t, recorder: r, locks: all[i%len(all)], etcd: etcd, fence: fence, number: i + 1,
			rnd: rand.New(rand.NewPCG(t.Seed, hash(seed))),
		}
		workers.Go(func() { w.run(ctx) })
	}
	workers.Wait()
}

// mixers is how many more workers a process has if names are locked in all modes.
const mixers = 3

// observe records the states that a watch of all names yields.
func observe(ctx context.Context, c lockerLocks, r *recorder) {
	r.note(call{Op: opWatched})
	for s, err := range c.WatchPrefix(ctx, "") {
		if err != nil {
			r.note(call{Op: opWatched, Outcome: failed, Reason: err.Error()})
			return
		}
		saw := call{Op: opSaw, Name: s.Name, Value: s.Revision}
		if s.Held {
			saw.Token, saw.Reason, saw.Count, saw.Mode = s.Token, s.Holder.Value, int64(s.Holders), modeOfLimit(s.Limit)
		}
		r.note(saw)
	}
}

// modeOfLimit returns the mode of a holder.
func modeOfLimit(limit int) mode {
	switch limit {
	case 0:
		return shared
	case 1:
		return exclusive
	}
	return mode(limit)
}

// observeHolders reads again and again who holds one of the mixed names, from a Cache and,
// less often, from etcd.
func (t target) observeHolders(ctx context.Context, c lockerLocks, r *recorder) {
	cache, err := c.NewCache(ctx, mixedPrefix)
	for err != nil {
		if pause(ctx, 100*time.Millisecond) != nil {
			return
		}
		cache, err = c.NewCache(ctx, mixedPrefix)
	}
	defer cache.Close()
	for i := 0; pause(ctx, 25*time.Millisecond) == nil; i++ {
		name := mixedName(i % t.Mixed)
		cached := call{Op: opCached, Name: name, Start: now(), Value: cache.Revision(), Age: int64(cache.Age())}
		cached.Tokens = tokensOf(cache.Holders(name))
		cached.Until, cached.End = cache.Revision(), now()
		r.note(cached)
		if i%8 == 0 {
			readHolders(ctx, c, r, name)
		}
	}
}

// readHolders reads who holds a name.
func readHolders(ctx context.Context, c lockerLocks, r *recorder, name string) {
	ctx, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	read := call{Op: opHolders, Name: name, Start: now()}
	holders, err := c.Holders(ctx, name)
	if err != nil && !errors.Is(err, locker.ErrNotFound) {
		return
	}
	read.Tokens, read.End = tokensOf(holders), now()
	r.note(read)
}

func tokensOf(holders []locker.Holder) (tokens []int64) {
	for _, holder := range holders {
		tokens = append(tokens, holder.Token)
	}
	return tokens
}

// pulse records when the process did not run, because it was stopped or got no CPU: its own
// account of such a time is unreliable. It also records the size of the process every second.
func pulse(ctx context.Context, r *recorder) {
	ticker := time.NewTicker(minGap / 5)
	defer ticker.Stop()
	last, lastSize := now(), instant(0)
	size := []metrics.Sample{{Name: "/gc/heap/live:bytes"}} // live after the last collection
	for {
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		}
		at := now()
		if at.since(last) > minGap {
			r.note(call{Op: opGap, Start: last, End: at})
		}
		if last = at; at.since(lastSize) >= sizeEvery {
			lastSize = at
			metrics.Read(size)
			r.note(call{Op: opSize, Value: int64(size[0].Value.Uint64()), Count: int64(runtime.NumGoroutine())})
		}
	}
}

// sizeEvery is how often a process records its size: no running process is silent longer.
const sizeEvery = time.Second

// minGap is the shortest gap that is recorded. It is well below the safety margin.
const minGap = 50 * time.Millisecond

// observerLag is how far a watch may lag behind while there is no fault.
func observerLag(ttl time.Duration) time.Duration { return silenceBound(ttl) + time.Second }

// silenceBound is how long a client may take to leave a silent member, whatever the TTL.
func silenceBound(ttl time.Duration) time.Duration { return min(ttl/2, 3*time.Second) }

// closeBound is how long Close may take, unless the TTL is shorter.
const closeBound = 10 * time.Second

func pause(ctx context.Context, d time.Duration) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

func errText(err error) string {
	if err == nil {
		return ""
	}
	const limit = 200
	s := err.Error()
	return strconv.Quote(s[:min(limit, len(s))])
}

func hash(s string) uint64 {
	h := fnv.New64a()
	_, _ = h.Write([]byte(s))
	return h.Sum64()
}
