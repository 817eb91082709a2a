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

// script is a round that is always the same, for what ends the truth that the other rounds are judged by:
// etcd goes back. It judges as it goes.
type script struct {
	ttl  time.Duration
	play func(*stage, context.Context) error
}

var scripts = map[string]script{
	"given-up":         {longTTL, (*stage).givenUp},
	"empty":            {5 * time.Second, (*stage).empty},
	"restore":          {12 * time.Second, (*stage).restore},
	"dead-connections": {2 * time.Second, (*stage).deadConnections},
}

// What scripts ask for.
const (
	showsWhatIsSo    = "observers show what is so after etcd has gone back"
	nothingBlocks    = "nothing blocks a name that nobody holds after etcd has gone back"
	forgottenIsLost  = "a hold that etcd has forgotten is lost"
	endsWithThePast  = "a session that has seen a later revision than etcd has ends"
	backFromTheDead  = "what a dead connection took is back in time"
	goesWhenGivenUp  = "what is given up goes"
	noTwoHold        = "no two holds are certain at once"
	reconnectionTime = 15 * time.Second
)

var scripted = []string{showsWhatIsSo, nothingBlocks, forgottenIsLost, endsWithThePast, backFromTheDead}

func checkScript(name string) error {
	if _, exists := scripts[name]; name != "" && !exists {
		return fmt.Errorf("there is no script %q; there are %s", name, strings.Join(slices.Sorted(maps.Keys(scripts)), ", "))
	}
	return nil
}

// perform plays a script and reports what it has found.
func (p script) perform(ctx context.Context, w io.Writer, program, dir string) ([]violation, error) {
	s, err := newStage(ctx, program, dir, p.ttl)
	if err != nil {
		return nil, err
	}
	defer s.close()
	if err := p.play(s, ctx); err != nil {
		return nil, err
	}
	explain(w, &history{began: s.began}, s.found)
	return s.found, nil
}

// givenUp: calls are given up at various moments while they wait. The TTL is long: else the next audit of the lease
// would remove what they have left before anybody notices.
func (s *stage) givenUp(ctx context.Context) error {
	const names, bound = 20, 5 * time.Second
	var held []*locker.Lock
	holder, err := s.enter(s.cluster.Endpoints())
	if err != nil {
		return err
	}
	defer s.exit(holder, false)
	for i := range names {
		h, err := holder.Lock(ctx, (target{}).name(i), "")
		if err != nil {
			return err
		}
		held = append(held, h)
	}
	impatient, err := s.enter(s.cluster.Endpoints())
	if err != nil {
		return err
	}
	defer s.exit(impatient, false)
	if _, err := impatient.Lock(ctx, "own", ""); err != nil { // so that it has a session
		return err
	}
	var calls sync.WaitGroup
	for i, h := range held {
		calls.Go(func() {
			waiting, cancel := context.WithTimeout(ctx, time.Duration(i)*10*time.Millisecond)
			defer cancel()
			if _, err := impatient.Lock(waiting, h.Name(), ""); err == nil {
				s.violated(noTwoHold, "%s was locked twice", h.Name())
			}
		})
	}
	calls.Wait()
	for _, h := range held {
		calls.Go(func() {
			waiting, cancel := context.WithTimeout(ctx, bound)
			defer cancel()
			if err := h.Unlock(waiting); err != nil {
				s.violated(goesWhenGivenUp, "unlock %s: %v", h.Name(), err)
			}
			if _, err := holder.Lock(waiting, h.Name(), ""); err != nil {
				s.violated(goesWhenGivenUp, "nobody wants %s any more, and nobody gets it: %v", h.Name(), err)
			}
		})
	}
	calls.Wait()
	return nil
}

// empty: etcd comes back empty while observers are cut off. When they see it again, another client holds
// the name, and its entry has the revisions of the one that they know; then it is at a smaller revision
// than the one that they know; and then nobody holds.
func (s *stage) empty(ctx context.Context) error {
	const name = "n"
	o, err := s.observe(ctx, s.proxy.Endpoints(), name)
	if err != nil {
		return err
	}
	defer o.end(s)
	tokens := make(map[int64]bool)
	for _, act := range []struct {
		value string // of the holder; nobody holds if empty
		pass  int64  // the revision until which others write afterwards
	}{{value: "a"}, {value: "b", pass: 100}, {value: "c"}, {}} {
		var holder actor
		var want locker.Holder
		if act.value != "" {
			if holder, err = s.enter(s.cluster.Endpoints()); err != nil {
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
		if err := s.pass(ctx, act.pass); err != nil {
			return err
		}
		s.proxy.Heal()
		if err := s.look(ctx, o, name, want); err != nil {
			return err
		}
		s.proxy.Cut()
		if act.value != "" {
			s.exit(holder, true)
		}
		if err := s.comeBack(ctx, ""); err != nil {
			return err
		}
	}
	if len(tokens) != 1 {
		return fmt.Errorf("the holders have not had the same token: %v", tokens)
	}
	return nil
}

// look asks whether an observer shows in time who holds, and the revision of the cluster.
func (s *stage) look(ctx context.Context, o *observer, name string, want locker.Holder) error {
	by := now().add(2 * s.ttl)
	if !in(ctx, by.since(now()), func() bool { return len(o.wrong(name, want)) == 0 }) {
		s.violated(showsWhatIsSo, "%s is held by %+v; %s", name, want, strings.Join(o.wrong(name, want), "; "))
	}
	revision, err := s.revision(ctx)
	if err == nil && !in(ctx, by.since(now()), func() bool { return o.cache.Revision() == revision }) {
		s.violated(showsWhatIsSo, "the cluster is at revision %d, the Cache at %d", revision, o.cache.Revision())
	}
	return err
}

// restore: a backup is restored under a client that has changed things since; and then once more under one
// that is cut off until others have written so much that it cannot tell by the revision.
func (s *stage) restore(ctx context.Context) error {
	return errors.Join(s.restored(ctx, false), s.restored(ctx, true))
}

func (s *stage) restored(ctx context.Context, blind bool) error {
	a, err := s.enter(s.proxy.Endpoints())
	if err != nil {
		return err
	}
	defer s.exit(a, false)
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
	if err := s.comeBack(ctx, backup); err != nil {
		return err
	}
	if blind {
		if err := s.pass(ctx, seen+10); err != nil {
			return err
		}
		s.proxy.Heal()
	}
	// Nobody writes before it has had the time to tell.
	if !blind && !in(ctx, s.ttl, func() bool { return held["kept"].Err() != nil }) {
		s.violated(endsWithThePast, "a hold is said to last of a session that has seen revision %d", seen)
	}
	b, err := s.enter(s.cluster.Endpoints())
	if err != nil {
		return err
	}
	defer s.exit(b, false)
	what := fmt.Sprintf("restored under a client that can tell by the revision: %v", !blind)
	var wg sync.WaitGroup
	defer wg.Wait()
	for _, name := range []string{"removed", "again"} {
		wg.Go(func() { s.get(ctx, b, name, what) })
	}
	if !in(ctx, s.ttl, func() bool { return held["again"].Err() != nil }) {
		s.violated(forgottenIsLost, "%s; the hold with token %d is said to last, and etcd has an older entry with its key", what, held["again"].Token())
	}
	return nil
}

// get lets a client lock a name that nobody holds.
func (s *stage) get(ctx context.Context, b actor, name, what string) {
	waiting, cancel := context.WithTimeout(ctx, 2*s.ttl)
	defer cancel()
	held, err := b.Lock(waiting, name, "another")
	if err == nil {
		err = held.Unlock(waiting)
	}
	if err != nil {
		s.violated(nothingBlocks, "%s; nobody holds %s, and nobody gets it: %v", what, name, err)
	}
}

// deadConnections: no packet passes any more over the connections of a client, and nobody resets them.
func (s *stage) deadConnections(ctx context.Context) error {
	const name = "n"
	o, err := s.observe(ctx, s.proxy.Endpoints(), name)
	if err != nil {
		return err
	}
	defer o.end(s)
	b, err := s.enter(s.cluster.Endpoints())
	if err != nil {
		return err
	}
	defer s.exit(b, false)
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
		s.violated(backFromTheDead, "nobody holds a name, and this client does not get it: %v", err)
	}
	if !in(ctx, by.since(now()), func() bool { return len(o.wrong(name, want)) == 0 }) {
		s.violated(backFromTheDead, "%s is held by %+v; %s", name, want, strings.Join(o.wrong(name, want), "; "))
	}
	return nil
}
