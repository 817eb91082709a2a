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

// clientProcess is the program as a client: the harness starts it as "chaos client", with its target as
// the first line of the standard input; the end of the input tells it to stop. It writes its calls to
// the standard output.
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
	repeated := &repeats{latest: t.TTL / 2}
	go func() { // ends with the process: a read of the standard input cannot be interrupted
		obey(input, repeated)
		cancel()
		// If what follows hangs, the harness says so; this is for one that has died.
		time.AfterFunc(2*time.Minute, func() { os.Exit(3) })
	}()
	r := &recorder{process: t.Process, out: out}
	err = run(ctx, t, r, repeated)
	r.note(call{Op: opBye})
	return errors.Join(err, r.err)
}

// connect opens a connection to etcd as Locker recommends.
func connect(endpoints []string, options ...grpc.DialOption) (*clientv3.Client, error) {
	config := locker.ClientConfig(endpoints...)
	config.DialOptions = append(config.DialOptions, options...)
	return clientv3.New(config)
}

// run lets workers work until ctx ends, leaves the observers a moment more, and closes everything.
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
	}

	if t.Load == loadNames {
		(&hoarder{target: t, recorder: r, locks: all[0]}).run(ctx)
	} else {
		work(ctx, t, r, all, plain, fence)
	}
	_ = pause(observed, observersBehind(t.Lease)+500*time.Millisecond)
	c := r.begin(call{Op: opClose, By: now().add(min(t.Lease, closeBound))})
	var closing sync.WaitGroup
	errs := make([]error, len(all))
	for i, l := range all {
		closing.Go(func() { errs[i] = l.close() })
	}
	closing.Wait()
	c.Outcome, c.Reason = ok, text(errors.Join(errs...))
	r.end(c)
	return nil
}

// open returns the locks: one client for all workers or, of a crowd, one for each.
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

// work runs the workers until ctx ends. What they do without a lock goes over a connection of its own, which
// repeats nothing.
func work(ctx context.Context, t target, r *recorder, all []locks, etcd *clientv3.Client, fence *rpc.Client) {
	var workers sync.WaitGroup
	for i := range t.Workers {
		seed := fmt.Sprintf("%s/%d", t.Process, i)
		w := &worker{
			target: t, recorder: r, locks: all[i%len(all)], etcd: etcd, fence: fence, number: i + 1,
			rnd: rand.New(rand.NewPCG(t.Seed, hash(seed))),
		}
		workers.Go(func() { w.run(ctx) })
	}
	workers.Wait()
}

// observe writes the states that a watch of all names yields.
func observe(ctx context.Context, c lockerLocks, r *recorder) {
	r.note(call{Op: opWatched})
	for state, err := range c.WatchPrefix(ctx, "") {
		if err != nil {
			r.note(call{Op: opWatched, Outcome: failed, Reason: err.Error()})
			return
		}
		saw := call{Op: opSaw, Name: state.Name, Value: state.Revision}
		if state.Held {
			saw.Token, saw.Reason = state.Token, state.Holder.Value
		}
		r.note(saw)
	}
}

// pulse notices when the process did not run, because it was stopped or had no processor: what it says
// about the time then has to be taken with care. It also tells, every second, how large the process is.
func pulse(ctx context.Context, r *recorder) {
	ticker := time.NewTicker(gapNoticed / 5)
	defer ticker.Stop()
	last, sized := now(), instant(0)
	size := []metrics.Sample{{Name: "/gc/heap/live:bytes"}} // what the last collection has left
	for {
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		}
		at := now()
		if at.since(last) > gapNoticed {
			r.note(call{Op: opGap, Start: last, End: at})
		}
		if last = at; at.since(sized) >= sizeEvery {
			sized = at
			metrics.Read(size)
			r.note(call{Op: opSize, Value: int64(size[0].Value.Uint64()), Count: int64(runtime.NumGoroutine())})
		}
	}
}

// sizeEvery is how often a process tells its size, and so the longest that it is silent.
const sizeEvery = time.Second

// gapNoticed is how long a process may not run without anybody making allowance for it. It is well
// below the safety margin.
const gapNoticed = 50 * time.Millisecond

// observersBehind is how far a watch may be behind while there is no fault.
func observersBehind(ttl time.Duration) time.Duration { return silenceBound(ttl) + time.Second }

// silenceBound is how long it takes to leave a member that does not answer: with a long TTL no longer than
// with one of 6 s.
func silenceBound(ttl time.Duration) time.Duration { return min(ttl/2, 3*time.Second) }

// closeBound is how long Close may take, if the TTL is not shorter.
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

func text(err error) string {
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
