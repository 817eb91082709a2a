package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"slices"
	"strconv"
	"sync"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/jagregory/locker/v2"
)

// Under load, clients are many, or hold much, and the faults are those that must not cost a hold.
const (
	loadCrowd = "crowd" // many clients that want few names
	loadNames = "names" // few clients that hold many names
)

const (
	crowdClients = 1_000
	crowdNames   = 100
	heldNames    = 100_000
	loadTTL      = 10 * time.Second
)

// gentle are the faults under load. At a TTL of 10 s these are felt, and nothing may be lost by them.
var gentle = []string{"stop-briefly", "reset", "cut-member", "freeze-member", "delay", "foreign-entry", "compact", "move-leader"}

// underLoad turns a round into one under load.
func (r round) underLoad(load string) round {
	r.load, r.ttl, r.only = load, loadTTL, gentle
	if load == loadCrowd {
		r.names, r.workers = crowdNames, crowdClients/r.processes
	} else {
		r.names, r.workers = heldNames/r.processes, 64
	}
	return r
}

// filled waits until all names are held, which is when the faults may begin.
func (s *scene) filled(ctx context.Context, names int) error {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Minute)
	defer cancel()
	for {
		resp, err := s.etcd.Get(ctx, lockPrefix+"hoard", clientv3.WithPrefix(), clientv3.WithCountOnly())
		if err == nil && resp.Count >= int64(names) {
			return nil
		}
		if err := pause(ctx, 500*time.Millisecond); err != nil {
			return fmt.Errorf("wait until %d names are held: %w", names, err)
		}
	}
}

// hoarder takes many names and keeps them.
type hoarder struct {
	target
	*recorder
	locks locks

	mu   sync.Mutex // guards what follows
	next int
	held []finished
}

// run takes all names, looks after them until ctx ends, and leaves them to the end of the client.
func (k *hoarder) run(ctx context.Context) {
	var wg sync.WaitGroup
	for range k.Workers {
		wg.Go(func() {
			for ctx.Err() == nil && k.one(ctx) {
			}
		})
	}
	wg.Wait()
	w := worker{target: k.target, recorder: k.recorder}
	for ctx.Err() == nil && len(k.held) > 0 {
		some := k.held[rand.IntN(len(k.held))]
		w.look(some.began, some.hold)
		w.commit(ctx, some.began, some.hold)
		_ = pause(ctx, 20*time.Millisecond)
	}
	for _, all := range k.held {
		w.look(all.began, all.hold)
	}
}

// one takes the next name, and reports false if there is none.
func (k *hoarder) one(ctx context.Context) bool {
	k.mu.Lock()
	i := k.next
	k.next++
	k.mu.Unlock()
	if i >= k.Names {
		return false
	}
	c := k.begin(call{Op: opLock, Name: "hoard" + strconv.Itoa(k.Slot) + "/" + strconv.Itoa(i), By: now().add(time.Minute)})
	acquiring, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	h, err := k.locks.acquire(acquiring, c.Name, c.who(), false)
	if err != nil {
		if ctx.Err() != nil {
			c.By = min(c.By, now()) // it was told to stop
		}
		c.Outcome, c.Reason = failed, text(err)
		k.end(c)
		return true
	}
	c.Outcome, c.Token = ok, h.Token()
	c = k.end(c)
	context.AfterFunc(h.Context(), func() { // a goroutine for each hold would hide those of the library
		if cause := context.Cause(h.Context()); !errors.Is(cause, locker.ErrClosed) {
			k.note(call{Op: opEnded, Name: c.Name, Hold: c.ID, Token: c.Token, Reason: reason(cause)})
		}
	})
	k.mu.Lock()
	defer k.mu.Unlock()
	k.held = append(k.held, finished{h, c})
	return true
}

// checkNothingLost: none of the faults under load is worth a hold.
func checkNothingLost(h *history) (found []violation) {
	if h.load == "" {
		return nil
	}
	for _, holds := range h.tenures() {
		for _, t := range holds {
			if t.ended != nil && t.ended.Start < h.stopping {
				found = append(found, violation{At: t.ended.Start, Text: fmt.Sprintf("%s; it was lost (%s)", h.describe(t), t.ended.Reason)})
			}
		}
	}
	return found
}

// sizes is how large the clients were in a stretch of time: the most that all of them together had.
type sizes struct{ memory, goroutines int64 }

// sizesFrom adds up what the processes had at most.
func (h *history) sizesFrom(from, to instant) (sum sizes) {
	for _, l := range h.lives {
		var most sizes
		for _, c := range l.sizes {
			if c.Start >= from && c.Start < to {
				most.memory, most.goroutines = max(most.memory, c.Value), max(most.goroutines, c.Count)
			}
		}
		sum.memory += most.memory
		sum.goroutines += most.goroutines
	}
	return sum
}

// quarters divides the time under faults.
func (h *history) quarters() (all []sizes) {
	quarter := h.healed.since(h.began) / 4
	for i := range time.Duration(4) {
		all = append(all, h.sizesFrom(h.began.add(i*quarter), h.began.add((i+1)*quarter)))
	}
	return all
}

// checkFlat compares the last quarter with the second: by then all is set up.
func checkFlat(h *history) (found []violation) {
	if h.load == "" {
		return nil
	}
	all := h.quarters()
	if early, late := all[1], all[3]; late.memory > 2*early.memory+(16<<20) || late.goroutines > early.goroutines*3/2+100 {
		found = append(found, violation{At: h.healed, Text: fmt.Sprintf("memory went from %d to %d MiB, goroutines from %d to %d", early.memory>>20, late.memory>>20, early.goroutines, late.goroutines)})
	}
	return found
}

// reportSizes writes how large all clients together were over time.
func reportSizes(w io.Writer, h *history) {
	const lines = 10
	step := h.stopping.since(h.began) / lines
	for i := range time.Duration(lines) {
		s := h.sizesFrom(h.began.add(i*step), h.began.add((i+1)*step))
		fmt.Fprintf(w, "  from %6.1fs: %6.1f MiB, %d goroutines\n", (i * step).Seconds(), float64(s.memory)/(1<<20), s.goroutines)
	}
}

// loads are what -load may say.
var loads = []string{"", loadCrowd, loadNames}

func checkLoad(load string) error {
	if !slices.Contains(loads, load) {
		return fmt.Errorf("load %q: want %s or %s", load, loadCrowd, loadNames)
	}
	return nil
}
