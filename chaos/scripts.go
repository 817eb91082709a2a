package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/jagregory/locker/v2"
)

// script is a fixed scenario that checks as it goes. Scripts cover what rounds cannot: when
// etcd goes back in time, there is no ground truth to check a history against.
type script struct {
	ttl  time.Duration
	play func(*stage, context.Context) error
}

var scripts = map[string]script{
	"given-up":         {longTTL, (*stage).givenUp},
	"empty":            {5 * time.Second, (*stage).empty},
	"restore":          {12 * time.Second, (*stage).restore},
	"kept-watch":       {10 * time.Second, (*stage).keptWatch},
	"joined-meanwhile": {10 * time.Second, (*stage).joinedMeanwhile},
	"repeated-put":     {2 * time.Second, (*stage).repeatedPut},
	"dead-connections": {2 * time.Second, (*stage).deadConnections},
}

// The invariants of scripts.
const (
	showsCurrent     = "observers show the current state after etcd went back in time"
	noStaleEntry     = "no stale entry blocks a free name after etcd went back in time"
	missingIsLost    = "a hold that etcd no longer has is lost"
	endsWhenBehind   = "a session ends when etcd is behind a revision it has seen"
	recovers         = "a client recovers from dead connections in time"
	leavesNoEntry    = "failed calls and releases leave no entry behind"
	wasHead          = "every reported hold was the head of its queue during the call"
	servedInTime     = "the head of the queue gets the lock in time"
	oneHolder        = "no two holds are certain at once"
	reconnectionTime = 15 * time.Second
)

var scripted = []string{showsCurrent, noStaleEntry, missingIsLost, endsWhenBehind, recovers}

func checkScript(name string) error {
	if _, exists := scripts[name]; name != "" && !exists {
		return fmt.Errorf("there is no script %q; there are %s", name, strings.Join(slices.Sorted(maps.Keys(scripts)), ", "))
	}
	return nil
}

// perform runs the script and returns the violations that it found.
func (p script) perform(ctx context.Context, w io.Writer, program, dir string) ([]violation, error) {
	s, err := newStage(ctx, program, dir, p.ttl)
	if err != nil {
		return nil, err
	}
	defer s.close()
	if err := p.play(s, ctx); err != nil {
		return nil, err
	}
	writeViolations(w, &history{began: s.began}, s.found)
	return s.found, nil
}

// givenUp cancels calls at various moments while they wait. The TTL is long, so that the
// next audit of the lease does not hide what they left by removing it.
func (s *stage) givenUp(ctx context.Context) error {
	const names, bound = 20, 5 * time.Second
	var held []*locker.Lock
	holder, err := s.openClient(s.cluster.Endpoints())
	if err != nil {
		return err
	}
	defer s.closeClient(holder, false)
	for i := range names {
		h, err := holder.Lock(ctx, (target{}).name(i), "")
		if err != nil {
			return err
		}
		held = append(held, h)
	}
	waiter, err := s.openClient(s.cluster.Endpoints())
	if err != nil {
		return err
	}
	defer s.closeClient(waiter, false)
	if _, err := waiter.Lock(ctx, "own", ""); err != nil { // opens its session
		return err
	}
	var calls sync.WaitGroup
	for i, h := range held {
		calls.Go(func() {
			waiting, cancel := context.WithTimeout(ctx, time.Duration(i)*10*time.Millisecond)
			defer cancel()
			if _, err := waiter.Lock(waiting, h.Name(), ""); err == nil {
				s.violated(oneHolder, "%s was locked twice", h.Name())
			}
		})
	}
	calls.Wait()
	for _, h := range held {
		calls.Go(func() {
			waiting, cancel := context.WithTimeout(ctx, bound)
			defer cancel()
			if err := h.Unlock(waiting); err != nil {
				s.violated(leavesNoEntry, "unlock %s: %v", h.Name(), err)
			}
			if _, err := holder.Lock(waiting, h.Name(), ""); err != nil {
				s.violated(leavesNoEntry, "%s is free, but cannot be locked: %v", h.Name(), err)
			}
		})
	}
	calls.Wait()
	return nil
}

// empty restarts etcd without its data, several times, while observers are cut off. They
// reconnect to find first another holder whose entry has the same revisions as the one they
// know, then a smaller revision, and finally a free name.
func (s *stage) empty(ctx context.Context) error {
	const name = "n"
	o, err := s.observe(ctx, s.proxy.Endpoints(), name)
	if err != nil {
		return err
	}
	defer o.end(s)
	tokens := make(map[int64]bool)
	for _, act := range []struct {
		value string // of the holder; if empty, the name stays free
		pass  int64  // the revision past which others write afterwards
	}{{value: "a"}, {value: "b", pass: 100}, {value: "c"}, {}} {
		var holder scriptClient
		var want locker.Holder
		if act.value != "" {
			if holder, err = s.openClient(s.cluster.Endpoints()); err != nil {
				return err
			}
			if _, err := holder.Lock(ctx, name, act.value); err != nil {
				return err
			}
			if want, err = holder.Get(ctx, name); err != nil {
				return err
			}
			tokens[want.Token] = true
		}
		if err := s.advancePast(ctx, act.pass); err != nil {
			return err
		}
		s.proxy.Heal()
		if err := s.expectShown(ctx, o, name, want); err != nil {
			return err
		}
		s.proxy.Cut()
		if act.value != "" {
			s.closeClient(holder, true)
		}
		if err := s.restartWith(ctx, ""); err != nil {
			return err
		}
	}
	if len(tokens) != 1 {
		return fmt.Errorf("want the same token for all holders, got %v", tokens)
	}
	return nil
}

// expectShown checks that an observer shows the holder and the revision of the cluster in time.
func (s *stage) expectShown(ctx context.Context, o *observer, name string, want locker.Holder) error {
	by := now().add(2 * s.ttl)
	if !eventually(ctx, by.since(now()), func() bool { return len(o.wrong(name, want)) == 0 }) {
		s.violated(showsCurrent, "%s is held by %+v; %s", name, want, strings.Join(o.wrong(name, want), "; "))
	}
	revision, err := s.revision(ctx)
	if err == nil && !eventually(ctx, by.since(now()), func() bool { return o.cache.Revision() == revision }) {
		s.violated(showsCurrent, "the cluster is at revision %d, but the Cache is at %d", revision, o.cache.Revision())
	}
	return err
}

// restore restores a backup under a client that has released and locked names since. It
// does so again with a client that is cut off until others have written so much that the
// revision no longer reveals it.
func (s *stage) restore(ctx context.Context) error {
	return errors.Join(s.restored(ctx, false), s.restored(ctx, true))
}

// restored restores a backup. A blind client cannot detect that by the revision.
func (s *stage) restored(ctx context.Context, blind bool) error {
	a, err := s.openClient(s.proxy.Endpoints())
	if err != nil {
		return err
	}
	defer s.closeClient(a, false)
	held := make(map[string]*locker.Lock)
	for _, name := range []string{"kept", "removed", "again"} {
		if held[name], err = a.Lock(ctx, name, "before"); err != nil {
			return err
		}
	}
	backup, err := s.backUp(ctx)
	if err != nil {
		return err
	}
	for _, name := range []string{"removed", "again"} {
		if err := held[name].Unlock(ctx); err != nil {
			return err
		}
	}
	if held["again"], err = a.Lock(ctx, "again", "after"); err != nil {
		return err
	}
	seen, err := s.revision(ctx)
	if err != nil {
		return err
	}
	if blind {
		s.proxy.Cut()
		defer s.proxy.Heal()
	}
	if err := s.restartWith(ctx, backup); err != nil {
		return err
	}
	if blind {
		if err := s.advancePast(ctx, seen+10); err != nil {
			return err
		}
		s.proxy.Heal()
	}
	// No later write moves the revision until the client has had time to detect it.
	if !blind && !eventually(ctx, s.ttl, func() bool { return held["kept"].Err() != nil }) {
		s.violated(endsWhenBehind, "a hold of a session that has seen revision %d did not end", seen)
	}
	b, err := s.openClient(s.cluster.Endpoints())
	if err != nil {
		return err
	}
	defer s.closeClient(b, false)
	what := fmt.Sprintf("restored under a client that can detect it by the revision: %v", !blind)
	var wg sync.WaitGroup
	defer wg.Wait()
	for _, name := range []string{"removed", "again"} {
		wg.Go(func() { s.lockFree(ctx, b, name, what) })
	}
	if !eventually(ctx, s.ttl, func() bool { return held["again"].Err() != nil }) {
		s.violated(missingIsLost, "%s; the hold with token %d did not end, though etcd has an older entry with its key", what, held["again"].Token())
	}
	return nil
}

// lockFree makes a client lock a name that is free.
func (s *stage) lockFree(ctx context.Context, b scriptClient, name, what string) {
	waiting, cancel := context.WithTimeout(ctx, 2*s.ttl)
	defer cancel()
	held, err := b.Lock(waiting, name, "another")
	if err == nil {
		err = held.Unlock(waiting)
	}
	if err != nil {
		s.violated(noStaleEntry, "%s; %s is free, but cannot be locked: %v", what, name, err)
	}
}

// deadConnections drops all packets on the connections of a client, without resetting them.
func (s *stage) deadConnections(ctx context.Context) error {
	const name = "n"
	o, err := s.observe(ctx, s.proxy.Endpoints(), name)
	if err != nil {
		return err
	}
	defer o.end(s)
	b, err := s.openClient(s.cluster.Endpoints())
	if err != nil {
		return err
	}
	defer s.closeClient(b, false)
	s.proxy.FreezeConnections()
	defer s.proxy.Heal()
	if _, err := b.Lock(ctx, name, "another"); err != nil {
		return err
	}
	want, err := b.Get(ctx, name)
	if err != nil {
		return err
	}
	by := now().add(reconnectionTime)
	calling, cancel := context.WithTimeout(ctx, reconnectionTime)
	defer cancel()
	if _, err := o.Lock(calling, "own", ""); err != nil {
		s.violated(recovers, "a free name cannot be locked: %v", err)
	}
	if !eventually(ctx, by.since(now()), func() bool { return len(o.wrong(name, want)) == 0 }) {
		s.violated(recovers, "%s is held by %+v; %s", name, want, strings.Join(o.wrong(name, want), "; "))
	}
	return nil
}
