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

// Kinds of load. All faults under load are ones that must not cost a hold.
const (
	loadCrowd = "crowd" // many clients compete for few names
	loadNames = "names" // few clients hold many names
)

const (
	crowdClients = 1_000
	crowdNames   = 100
	heldNames    = 100_000
	loadTTL      = 20 * time.Second
)

// gentle are the faults under load. With a TTL of 20 s they must not cost a hold, except
// those of a process that is killed.
var gentle = []string{
	"kill", "stop-briefly", "stop-half", "reset", "cut-member", "freeze-member", "delay", "foreign-entry",
	"compact", "move-leader", "kill-leader", "stop-member", "restart",
}

// underLoad returns the round with the given load.
func (r round) underLoad(load string) round {
	r.load = load
	if load == loadCrowd {
		r.names, r.workers = crowdNames, crowdClients/r.processes
	} else {
		r.names, r.workers = heldNames/r.processes, 64
	}
	return r
}

// waitFilled waits until all names are held, or every client of the crowd has a session.
func (s *scene) waitFilled(ctx context.Context, r round) error {
	prefix, want := lockPrefix+"hoard", r.names*r.processes
	if r.load == loadCrowd {
		prefix, want = lockPrefix+"/", r.workers*r.processes
	}
	ctx, cancel := context.WithTimeout(ctx, 5*time.Minute)
	defer cancel()
	for {
		resp, err := s.etcd.Get(ctx, prefix, clientv3.WithPrefix(), clientv3.WithCountOnly())
		if err == nil && resp.Count >= int64(want) {
			return nil
		}
		if err := pause(ctx, 500*time.Millisecond); err != nil {
			return fmt.Errorf("wait for %d keys below %s: %w", want, prefix, err)
		}
	}
}

// arrival is the time over which the workers of a crowd start.
const arrival = 10 * time.Second

// hoarder locks many names and keeps them.
type hoarder struct {
	target
	*recorder
	locks locks

	mu   sync.Mutex // guards what follows
	next int        // index of the next name to lock
	held []heldLock
}

// run locks all names and uses them until ctx ends. Closing the client releases them.
func (k *hoarder) run(ctx context.Context) {
	var wg sync.WaitGroup
	for range k.Workers {
		wg.Go(func() {
			for ctx.Err() == nil && k.lockNext(ctx) {
			}
		})
	}
	wg.Wait()
	w := worker{target: k.target, recorder: k.recorder}
	for ctx.Err() == nil && len(k.held) > 0 {
		l := k.held[rand.IntN(len(k.held))]
		w.checkErr(l.began, l.hold)
		w.commit(ctx, l.began, l.hold)
		_ = pause(ctx, 20*time.Millisecond)
	}
	for _, l := range k.held {
		w.checkErr(l.began, l.hold)
	}
}

// lockNext locks the next name. It returns false if there is none.
func (k *hoarder) lockNext(ctx context.Context) bool {
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
	h, err := k.locks.acquire(acquiring, c, c.ref())
	if err != nil {
		if ctx.Err() != nil {
			c.By = min(c.By, now()) // the process was asked to stop
		}
		c.Outcome, c.Reason = failed, errText(err)
		k.end(c)
		return true
	}
	c.Outcome, c.Token = ok, h.Token()
	c = k.end(c)
	context.AfterFunc(h.Context(), func() { // without a goroutine per hold, which would hide those of the library
		if cause := context.Cause(h.Context()); !errors.Is(cause, locker.ErrClosed) {
			k.note(call{Op: opEnded, Name: c.Name, Hold: c.ID, Token: c.Token, Reason: reason(cause)})
		}
	})
	k.mu.Lock()
	defer k.mu.Unlock()
	k.held = append(k.held, heldLock{h, c})
	return true
}

// checkNothingLost requires that no hold is lost under load, unless its entry is excused.
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

// totalSize is the memory of all clients that was live after their last collections, and
// the number of their goroutines, at one time.
type totalSize struct {
	at                 instant
	memory, goroutines int64
}

// sizes returns the total size in each second under faults.
func (h *history) sizes() (all []totalSize) {
	for at := h.began.add(time.Second); at < h.healed; at = at.add(time.Second) {
		sum := totalSize{at: at}
		for _, l := range h.lifetimes {
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

// median returns the medians of memory and goroutines, taken separately.
func median(all []totalSize) (m totalSize) {
	if len(all) == 0 {
		return totalSize{}
	}
	by := func(of func(totalSize) int64) int64 {
		ordered := slices.SortedFunc(slices.Values(all), func(a, b totalSize) int { return cmp.Compare(of(a), of(b)) })
		return of(ordered[len(ordered)/2])
	}
	m.memory = by(func(s totalSize) int64 { return s.memory })
	m.goroutines = by(func(s totalSize) int64 { return s.goroutines })
	return m
}

// The median of the last third may exceed that of the second by a quarter, since the work
// of the clients varies, plus a constant that matters only where there is little.
const (
	spareMemory     = 4 << 20
	spareGoroutines = 50
)

// checkFlat compares the last third of the time with the second, when everything is set up.
// It uses medians because a process may just have been killed.
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

// reportSizes writes the total size of the clients over time.
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

// loads are the values of -load.
var loads = []string{"", loadCrowd, loadNames}

func checkLoad(load string) error {
	if !slices.Contains(loads, load) {
		return fmt.Errorf("load %q: want %s or %s", load, loadCrowd, loadNames)
	}
	return nil
}
