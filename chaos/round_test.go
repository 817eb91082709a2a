package main

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/jagregory/locker/v2/internal/etcdproc"
)

// play runs one round and returns its history and the violations.
func play(t *testing.T, r round) (*history, []violation) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), r.duration+3*time.Minute)
	defer cancel()
	program, err := etcdproc.Build(ctx, etcdVersion, t.Output())
	if err != nil {
		t.Fatal(err)
	}
	r.program, r.dir, r.processes = program, t.TempDir(), processes
	if r.load == "" {
		r.names, r.workers = 6, 6
		if r.over == overLocker {
			r.mixed = 4
		}
		r.ttl, r.hold, r.lone = 2*time.Second, 8*time.Second, true
	}
	h, err := r.run(ctx)
	if err != nil {
		t.Fatal(err)
	}
	all := judge(h)
	report(t.Output(), h)
	if h.load != "" {
		reportSizes(t.Output(), h)
	}
	writeViolations(t.Output(), h, all)
	return h, all
}

func TestRound_LockerKeepsItsGuarantees(t *testing.T) {
	t.Parallel()
	for _, p := range []plan{
		{seed: 3, duration: 12 * time.Second, members: 3},
		{seed: 2, duration: 10 * time.Second, members: 1}, // compacted throughout
	} {
		t.Run(fmt.Sprintf("on %d members", p.members), func(t *testing.T) {
			t.Parallel()
			mustBeSound(t, round{plan: p, over: overLocker})
		})
	}
}

// mustBeSound runs a round that must have no violations and must prove something.
func mustBeSound(t *testing.T, r round) {
	t.Helper()
	h, violations := play(t, r)
	for _, v := range violations {
		t.Errorf("%s: %s", v.Invariant, v.Text)
	}
	for _, what := range append(h.missing(), h.unfired()...) {
		t.Errorf("missing: %s", what)
	}
}

// Without fencing, a mutex loses updates when its holders are stopped. A harness that did
// not find that would prove nothing.
func TestAMutexLosesUpdatesWhenItsHoldersAreStopped(t *testing.T) {
	t.Parallel()
	const (
		lostUpdates = "fenced increments are not lost"
		attempts    = 6
	)
	for seed := uint64(1); seed <= attempts; seed++ {
		_, violations := play(t, round{
			plan: plan{seed: seed, duration: 12 * time.Second, members: 1, only: []string{"stop"}},
			over: overMutex, unfenced: true,
		})
		if slices.ContainsFunc(violations, func(v violation) bool { return v.Invariant == lostUpdates }) {
			return
		}
	}
	t.Error("no update was lost")
}

func TestSchedule_IsDrawnFromItsSeed(t *testing.T) {
	t.Parallel()
	p := plan{seed: 5, duration: everyKind, ttl: 2 * time.Second, members: 3, processes: processes, lone: true}
	faults := p.draw()
	if !slices.Equal(faults, p.draw()) {
		t.Error("the same plan gave different schedules")
	}
	if other := p; func() bool { other.seed++; return slices.Equal(faults, other.draw()) }() {
		t.Error("another seed gave the same schedule")
	}
	for _, c := range allTraits {
		if !slices.ContainsFunc(faults, func(f fault) bool { return f.Kind == c.kind }) {
			t.Errorf("no %s in %v", c.kind, p.duration)
		}
		if actions[c.kind] == nil {
			t.Errorf("%s has no action", c.kind)
		}
	}
}

func TestSchedule_KillsNoProcessWithALongTTL(t *testing.T) {
	t.Parallel()
	for seed := range uint64(30) {
		p := plan{seed: seed, duration: everyKind, ttl: 2 * time.Second, members: 3, processes: processes, lone: true}
		killed := slices.ContainsFunc(p.draw(), func(f fault) bool { return f.Kind == "kill" && f.Target == longSlot })
		if killed && p.leaseOf(longSlot) == longTTL {
			t.Errorf("seed %d: the process is killed", seed)
		}
		if p.only = []string{"kill"}; p.leaseOf(longSlot) != p.ttl {
			t.Errorf("seed %d: a TTL is long although kinds of fault were selected", seed)
		}
	}
}

func TestFlags_AnUnknownFaultIsRefused(t *testing.T) {
	t.Parallel()
	if _, err := parse([]string{"-faults", "cut,flood"}); err == nil || !strings.Contains(err.Error(), `"flood"`) {
		t.Errorf("got %v", err)
	}
}

func TestResource_RefusesASmallerTokenUnlessUnfenced(t *testing.T) {
	t.Parallel()
	for _, unfenced := range []bool{false, true} {
		s, err := serveResource(unfenced)
		if err != nil {
			t.Fatal(err)
		}
		var value int64
		if err := s.Read(Request{Name: "a", Token: 2}, &value); err != nil {
			t.Error(err)
		}
		if err := s.Write(Request{Name: "a", Token: 1, Value: 9}, nil); (err == nil) != unfenced {
			t.Errorf("unfenced %v: got %v", unfenced, err)
		}
		if err := s.close(); err != nil {
			t.Error(err)
		}
	}
}
