package main

import (
	"slices"
	"testing"
	"time"
)

func TestLoad_LockerKeepsItsGuarantees(t *testing.T) {
	t.Parallel()
	for what, r := range map[string]round{
		"50 clients on 10 names": {load: loadCrowd, names: 10, workers: 50 / processes},
		"1,000 names held":       {load: loadNames, names: 1_000 / processes, workers: 8},
	} {
		t.Run(what, func(t *testing.T) {
			t.Parallel()
			r.plan = plan{seed: 1, duration: 12 * time.Second, ttl: loadTTL, members: 3, only: gentle}
			r.over = overLocker
			mustBeSound(t, r)
		})
	}
}

func TestLoad_WithoutItsFaultsProvesNothing(t *testing.T) {
	t.Parallel()
	for _, load := range []string{loadCrowd, loadNames} {
		h := sound()
		h.load, h.only, h.duration = load, gentle, everyKind
		if kinds := h.unfired(); len(kinds) != len(gentle) {
			t.Errorf("%s: none of %d kinds of fault has fired, but only these are missed: %v", load, len(gentle), kinds)
		}
		if missing := h.missing(); !slices.Contains(missing, "faults: 0, want at least 1") {
			t.Errorf("%s: missing: %q", load, missing)
		}
		for _, k := range gentle {
			h.firings = append(h.firings, firing{fault: fault{Kind: kind(k)}, span: span{ms(1000), ms(1001)}})
		}
		if kinds := h.unfired(); len(kinds) > 0 {
			t.Errorf("%s: all have fired, but these are missed: %v", load, kinds)
		}
	}
}

func TestLoad_NamesThatAreNotHeldAreMissed(t *testing.T) {
	t.Parallel()
	h := sound()
	h.load, h.names = loadNames, 500 // in each of two processes
	if missing := h.missing(); !slices.Contains(missing, "holds: 2, want at least 1000") {
		t.Errorf("missing: %q", missing)
	}
}
