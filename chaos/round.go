package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"sync"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/jagregory/locker/v2/embedtest"
	"github.com/jagregory/locker/v2/internal/etcdproc"
)

// round is one run on a fresh cluster: faults, a phase without faults, and the shutdown.
type round struct {
	plan
	over     string
	load     string
	unfenced bool
	program  string // the etcd binary
	dir      string // for the history
	names    int
	mixed    int           // names that are locked in all modes
	workers  int           // of each process
	hold     time.Duration // approximate maximum duration of long holds
}

// etcdFlags returns the flags of the members. They need no fsync: a killed process loses
// nothing that it has written.
func (r round) etcdFlags() []string {
	flags := []string{"--unsafe-no-fsync", "--log-level=error"}
	if r.load == "" { // a load would exceed the quota
		flags = append(flags, "--quota-backend-bytes="+strconv.FormatInt(r.quota(), 10))
	}
	return flags
}

// run makes the round and returns its history.
func (r round) run(ctx context.Context) (h *history, err error) {
	log, err := os.Create(filepath.Join(r.dir, "etcd.log"))
	if err != nil {
		return nil, err
	}
	defer log.Close()
	starting, cancel := context.WithTimeout(ctx, recovery)
	defer cancel()
	cluster, err := etcdproc.Start(starting, etcdproc.Options{Program: r.program, Members: r.members, Flags: r.etcdFlags(), Log: log})
	if err != nil {
		return nil, err
	}
	defer cluster.Close()
	etcd, err := connect(cluster.Endpoints())
	if err != nil {
		return nil, err
	}
	defer etcd.Close()
	s := &scene{ttl: r.ttl, cluster: cluster, members: r.members, quota: r.quota(), etcd: etcd}
	fence, err := serveResource(r.unfenced)
	if err != nil {
		return nil, err
	}
	defer fence.close()
	defer s.close() // before the resource
	if s.witness, err = newWitness(etcd, filepath.Join(r.dir, "truth.jsonl")); err != nil {
		return nil, err
	}
	if err := s.populate(r, fence.listener.Addr().String()); err != nil {
		return nil, err
	}

	if r.load != "" {
		if err := s.waitFilled(ctx, r); err != nil {
			return nil, err
		}
	}
	h = &history{plan: r.plan, over: r.over, load: r.load, names: r.names, mixed: r.mixed, began: now()}
	h.schedule = r.draw()
	r.storm(ctx, s, h)
	if ctx.Err() != nil {
		return nil, context.Cause(ctx)
	}
	if err := r.shutDown(ctx, s, h); err != nil {
		return nil, err
	}
	return h, h.collect(s, fence.resource)
}

// storm injects the faults, and then leaves the clients alone for a while.
func (r round) storm(ctx context.Context, s *scene, h *history) {
	faulty, cancel := context.WithTimeout(ctx, r.duration)
	defer cancel()
	var compacting sync.WaitGroup
	if h.compacted = r.compacts(); h.compacted {
		compacting.Go(func() { _ = s.compact(faulty, &firing{fault: fault{For: r.duration}}) })
	}
	s.perform(faulty, h.schedule)
	<-faulty.Done()
	compacting.Wait()
	h.healed = now()
	_ = pause(ctx, livenessPhase(r.ttl))
	h.firings = s.firings
}

// compacts reports whether etcd is compacted throughout the faults of this round.
func (r round) compacts() bool { return r.load == "" && len(r.only) == 0 && r.seed%2 == 0 }

// livenessPhase is the time after the faults in which clients and names must make progress.
func livenessPhase(ttl time.Duration) time.Duration { return 3*ttl/2 + 5*time.Second }

// shutDown stops the clients, and waits until etcd is empty or everything must have expired.
func (r round) shutDown(ctx context.Context, s *scene, h *history) (err error) {
	h.stopping = now()
	s.finish(ctx, r.ttl, h)
	h.ended = now()
	for by := h.ended.add(2*r.longest() + time.Second); ; {
		if err := pause(ctx, min(by.since(now()), time.Second)); err != nil {
			return err
		}
		if h.left, err = s.left(ctx); err != nil {
			return fmt.Errorf("read what is left: %w", err)
		}
		if len(h.left) == 0 || now() >= by {
			break
		}
	}
	ctx, cancel := context.WithTimeout(ctx, recovery)
	defer cancel()
	set, err := s.etcd.Get(ctx, setPrefix, clientv3.WithPrefix(), clientv3.WithKeysOnly())
	if err != nil {
		return fmt.Errorf("read the guarded set: %w", err)
	}
	h.set = make(map[string]bool, len(set.Kvs))
	for _, kv := range set.Kvs {
		_, ref, _ := elementOf(string(kv.Key))
		h.set[ref] = true
	}
	return s.witness.catchUp(ctx)
}

// left returns the lock keys and the leases in etcd.
func (s *scene) left(ctx context.Context) (all []string, err error) {
	ctx, cancel := context.WithTimeout(ctx, recovery)
	defer cancel()
	keys, err := s.etcd.Get(ctx, lockPrefix, clientv3.WithPrefix(), clientv3.WithKeysOnly())
	if err != nil {
		return nil, err
	}
	for _, kv := range keys.Kvs {
		all = append(all, string(kv.Key))
	}
	resp, err := s.etcd.Leases(ctx)
	if err != nil {
		return nil, err
	}
	for _, lease := range resp.Leases {
		all = append(all, fmt.Sprintf("lease %x", lease.ID))
	}
	return all, nil
}

// populate starts the client processes, each behind its own proxy.
func (s *scene) populate(r round, resourceAddr string) error {
	for i := range r.processes {
		proxy, err := embedtest.NewProxy(s.cluster.Endpoints()...)
		if err != nil {
			return err
		}
		s.proxies = append(s.proxies, proxy)
		c := &clientSlot{number: i, dir: r.dir, target: target{
			Slot: i, Endpoints: proxy.Endpoints(), Resource: resourceAddr, Over: r.over, Load: r.load,
			TTL: r.ttl, Lease: r.leaseOf(i), Seed: r.seed, Names: r.names, Mixed: r.mixed, Workers: r.workers, Hold: r.hold,
		}}
		if err := c.start(); err != nil {
			return err
		}
		s.slots = append(s.slots, c)
	}
	return nil
}

// finish stops all clients concurrently, and records those that did not stop in time.
func (s *scene) finish(ctx context.Context, ttl time.Duration, h *history) {
	ctx, cancel := context.WithTimeout(ctx, 3*ttl+10*time.Second)
	defer cancel()
	var wg sync.WaitGroup
	errs := make([]error, len(s.slots))
	for i, c := range s.slots {
		wg.Go(func() { errs[i] = c.finish(ctx) })
	}
	wg.Wait()
	for _, err := range errs {
		if err != nil {
			h.failures = append(h.failures, err.Error())
		}
	}
}

// close stops everything that still runs.
func (s *scene) close() {
	for _, c := range s.slots {
		c.kill()
	}
	for _, p := range s.proxies {
		_ = p.Close() // only the listeners can fail to close
	}
	if s.witness != nil {
		_, _ = s.witness.end()
	}
}

// collect reads what the witness, the resource and the clients recorded.
func (h *history) collect(s *scene, r *resource) error {
	ticks, err := s.witness.end()
	if err != nil {
		return err
	}
	changes, err := readChanges(filepath.Join(s.slots[0].dir, "truth.jsonl"))
	if err != nil {
		return err
	}
	h.truth = newTruth(changes, ticks)
	h.counters, h.accesses = r.counters, r.accesses
	for _, c := range s.slots {
		for _, p := range c.runs {
			calls, err := readCalls(p.history)
			if err != nil {
				return err
			}
			if err := p.failure(); err != nil {
				h.failures = append(h.failures, err.Error())
			}
			h.add(&lifetime{name: p.name, slot: c.number, span: span{p.began, p.died}, stopped: p.stopped}, calls)
		}
	}
	slices.SortFunc(h.calls, func(a, b call) int { return int(a.Start - b.Start) })
	return nil
}

// keep reports where the history of a round is, or removes it if it is not needed.
func (r round) keep(w io.Writer, needed bool) error {
	if needed {
		fmt.Fprintf(w, "  the history is in %s\n", r.dir)
		return nil
	}
	return errors.Join(os.RemoveAll(r.dir))
}
