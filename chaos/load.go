package main

import (
	"cmp"
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
	loadTTL      = 20 * time.Second
)

// gentle are the faults under load. At a TTL of 20 s these are felt, and no hold may be lost by them, but
// for those of a process that is killed.
var gentle = []string{
	"kill", "stop-briefly", "stop-half", "reset", "cut-member", "freeze-member", "delay", "foreign-entry",
	"compact", "move-leader", "kill-leader", "stop-member", "restart",
}

// underLoad turns a round into one under load.
func (r round) underLoad(load string) round {
	r.load = load
	if load == loadCrowd {
		r.names, r.workers = crowdNames, crowdClients/r.processes
	} else {
		r.names, r.workers = heldNames/r.processes, 64
	}
	return r
}

// filled waits until all clients have what they need, which is when the faults may begin: all names are
// held, or everybody in the crowd has a session.
func (s *scene) filled(ctx context.Context, r round) error {
	below, want := lockPrefix+"hoard", r.names*r.processes
	if r.load == loadCrowd {
		below, want = lockPrefix+"/", r.workers*r.processes
	}
	ctx, cancel := context.WithTimeout(ctx, 5*time.Minute)
	defer cancel()
	for {
		resp, err := s.etcd.Get(ctx, below, clientv3.WithPrefix(), clientv3.WithCountOnly())
		if err == nil && resp.Count >= int64(want) {
			return nil
		}
		if err := pause(ctx, 500*time.Millisecond); err != nil {
			return fmt.Errorf("wait for %d keys below %s: %w", want, below, err)
		}
	}
}

// arrival is how long it takes until all of a crowd have come.
const arrival = 10 * time.Second

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

// checkNothingLost: none of the faults under load is worth a hold. A former leader's doing is excused here
// as it is everywhere.
func checkNothingLost(h *history) (found []violation) {
	if h.load == "" {
		return nil
	}
	for _, holds := range h.tenures() {
		for _, t := range holds {
			if t.ended != nil && t.ended.Start < h.stopping && (t.entry == nil || !h.excused(t.entry)) {
				found = append(found, violation{At: t.ended.Start, Text: fmt.Sprintf("%s; it was lost (%s)", h.describe(t), t.ended.Reason)})
			}
		}
	}
	return found
}

// size is how large all clients together were at some time: what the last collections of their memory
// have left, and their goroutines.
type size struct {
	at                 instant
	memory, goroutines int64
}

// sizes returns how large the clients were in each second under faults.
func (h *history) sizes() (all []size) {
	for at := h.began.add(time.Second); at < h.healed; at = at.add(time.Second) {
		sum := size{at: at}
		for _, l := range h.lives {
			i, found := slices.BinarySearchFunc(l.sizes, at, func(c call, at instant) int { return cmp.Compare(c.Start, at) })
			if !found {
				i--
			}
			if i >= 0 && l.end() > at {
				sum.memory += l.sizes[i].Value
				sum.goroutines += l.sizes[i].Count
			}
		}
		all = append(all, sum)
	}
	return all
}

// median returns a size of which no more than half are larger, and no more than half smaller.
func median(all []size) (m size) {
	if len(all) == 0 {
		return size{}
	}
	by := func(of func(size) int64) int64 {
		ordered := slices.SortedFunc(slices.Values(all), func(a, b size) int { return cmp.Compare(of(a), of(b)) })
		return of(ordered[len(ordered)/2])
	}
	m.memory = by(func(s size) int64 { return s.memory })
	m.goroutines = by(func(s size) int64 { return s.goroutines })
	return m
}

// What the median of the last third may be above that of the second: a quarter, for the clients do not do
// the same at all times, and a little that counts where there is not much.
const (
	spareMemory     = 4 << 20
	spareGoroutines = 50
)

// checkFlat compares the last third of the time with the second: by then all is set up. Medians do not mind
// that a process was just killed.
func checkFlat(h *history) (found []violation) {
	if h.load == "" {
		return nil
	}
	all := h.sizes()
	third := len(all) / 3
	early, late := median(all[third:2*third]), median(all[2*third:])
	if late.memory > early.memory*5/4+spareMemory || late.goroutines > early.goroutines*5/4+spareGoroutines {
		found = append(found, violation{At: h.healed, Text: fmt.Sprintf("memory went from %d to %d MiB, goroutines from %d to %d", early.memory>>20, late.memory>>20, early.goroutines, late.goroutines)})
	}
	return found
}

// reportSizes writes how large all clients together were over time.
func reportSizes(w io.Writer, h *history) {
	all := h.sizes()
	for i := 0; i < len(all); i += 10 {
		s := all[i]
		fmt.Fprintf(w, "  at %6.1fs: %6.1f MiB, %d goroutines\n", s.at.since(h.began).Seconds(), float64(s.memory)/(1<<20), s.goroutines)
	}
	third := len(all) / 3
	for i, which := range []string{"first", "second", "last"} {
		m := median(all[i*third : min((i+1)*third, len(all))])
		fmt.Fprintf(w, "  median of the %s third: %.1f MiB, %d goroutines\n", which, float64(m.memory)/(1<<20), m.goroutines)
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
