package main

import (
	"slices"
	"testing"
	"time"
)

// ms is a time of an artificial history, in milliseconds.
func ms(n int64) instant { return instant(n * int64(time.Millisecond)) }

const (
	recordA = lockPrefix + "/a"
	entryA  = lockPrefix + "n%2F0/a"
	entryB  = lockPrefix + "n%2F0/b"
)

// sound returns a history without violations: process 0.0 locks n/0, writes, and releases
// it to 1.0, which was waiting for it.
func sound() *history {
	h := &history{
		plan:  plan{ttl: 2 * time.Second, members: 3, processes: 2, duration: time.Second},
		over:  overLocker,
		names: 1,
		began: ms(900), healed: ms(950), stopping: ms(20_000), ended: ms(21_000),
		counters: map[string]int64{"n/0": 1},
		accesses: []access{{"n/0", 10, false}, {"n/0", 10, true}, {"n/0", 12, false}},
		set:      map[string]bool{"0.0#3": true},
	}
	h.add(&lifetime{name: "0.0", slot: 0, span: span{From: ms(900)}}, []call{
		{Process: "0.0", ID: 9, Op: opWatched, Start: ms(950), End: ms(950)},
		{Process: "0.0", ID: 1, Op: opLock, Name: "n/0", Token: 10, Start: ms(1000), End: ms(1010), By: ms(6000), Outcome: ok},
		{Process: "0.0", ID: 10, Op: opSaw, Name: "n/0", Token: 10, Count: 1, Reason: "0.0#1", Value: 10, Start: ms(1010), End: ms(1010)},
		{Process: "0.0", ID: 2, Op: opErr, Name: "n/0", Hold: 1, Token: 10, Start: ms(1011), End: ms(1011), Outcome: ok},
		{Process: "0.0", ID: 3, Op: opCommit, Name: "n/0", Hold: 1, Token: 10, Start: ms(1012), End: ms(1014), Outcome: ok, Value: 11},
		{Process: "0.0", ID: 4, Op: opAdd, Name: "n/0", Hold: 1, Token: 10, Start: ms(1015), End: ms(1017), Outcome: ok, Count: 1},
		{Process: "0.0", ID: 5, Op: opUnlock, Name: "n/0", Hold: 1, Token: 10, Start: ms(1030), End: ms(1035), Outcome: ok},
		{Process: "0.0", ID: 11, Op: opSaw, Name: "n/0", Token: 12, Count: 1, Reason: "1.0#1", Value: 13, Start: ms(1036), End: ms(1036)},
		{Process: "0.0", ID: 12, Op: opSaw, Name: "n/0", Value: 14, Start: ms(1066), End: ms(1066)},
		{Process: "0.0", ID: 13, Op: opBye, Start: ms(20_500), End: ms(20_500)},
	})
	h.add(&lifetime{name: "1.0", slot: 1, span: span{From: ms(900)}}, []call{
		{Process: "1.0", ID: 1, Op: opLock, Name: "n/0", Token: 12, Start: ms(1005), End: ms(1040), By: ms(6000), Outcome: ok},
		{Process: "1.0", ID: 2, Op: opErr, Name: "n/0", Hold: 1, Token: 12, Start: ms(1041), End: ms(1041), Outcome: ok},
		{Process: "1.0", ID: 3, Op: opUnlock, Name: "n/0", Hold: 1, Token: 12, Start: ms(1060), End: ms(1065), Outcome: ok},
		{Process: "1.0", ID: 4, Op: opBye, Start: ms(20_500), End: ms(20_500)},
	})
	h.truth = newTruth(soundChanges(), []tick{
		{ms(1000), ms(1001), 9}, {ms(1031), ms(1032), 12}, {ms(1061), ms(1062), 13}, {ms(1070), ms(1071), 14},
	})
	return h
}

func soundChanges() []change {
	return []change{
		{9, ms(990), []event{{Key: recordA, Created: 9, Lease: 1}}},
		{10, ms(1008), []event{{Key: entryA, Created: 10, Lease: 1, Value: "0.0#1"}}},
		{11, ms(1013), []event{{Key: elementKey("n/0", "0.0#3"), Created: 11, Value: "10"}}},
		{12, ms(1014), []event{{Key: entryB, Created: 12, Lease: 2, Value: "1.0#1"}}},
		{13, ms(1033), []event{{Key: entryA, Deleted: true}}},
		{14, ms(1063), []event{{Key: entryB, Deleted: true}}},
	}
}

// find returns a call of a process, to be modified.
func (h *history) find(process string, id int64) *call {
	i := slices.IndexFunc(h.calls, func(c call) bool { return c.Process == process && c.ID == id })
	return &h.calls[i]
}

// addCall adds a call to the history.
func (h *history) addCall(c call) { h.calls = append(h.calls, c) }

// editChanges replaces the changes of soundChanges by what f makes of them.
func (h *history) editChanges(f func([]change) []change) {
	h.truth = newTruth(f(soundChanges()), h.truth.ticks)
}

// broken has, for each invariant, an edit of a sound history that violates it.
var broken = map[string]func(h *history){
	"tokens of a name are unique and grow": func(h *history) {
		c := h.find("1.0", 1)
		c.Start, c.Token = ms(1036), 8
	},
	"the resource never accepts a smaller token after a larger one": func(h *history) {
		h.accesses = append(h.accesses, access{"n/0", 10, true})
	},
	"fenced increments are not lost":                   func(h *history) { h.counters["n/0"] = 0 },
	"no two holds are certain at once":                 func(h *history) { h.find("0.0", 5).Start = ms(1050) },
	"a loss is reported before etcd deletes the entry": func(h *history) { h.find("0.0", 5).Start = ms(1034) },
	"nothing is left after Close":                      func(h *history) { h.left = []string{entryA} },
	"every call returns when its context ends":         func(h *history) { h.find("1.0", 1).End = ms(7000) },
	"the head of the queue gets the lock in time": func(h *history) {
		h.editChanges(func(all []change) []change { return all[:5] })
		h.find("1.0", 1).End = ms(5000)
	},
	"every client and every name makes progress after the faults": func(h *history) { h.healed = ms(15_000) },
	"a lock model explains the history (porcupine)": func(h *history) {
		h.find("0.0", 5).Start, h.find("0.0", 5).End = ms(1050), ms(1055)
	},
	"a counter model explains the history (porcupine)": func(h *history) {
		h.addCall(call{Process: "1.0", ID: 20, Op: opAdd, Name: "n/0", Start: ms(1045), End: ms(1046), Outcome: ok, Count: 1})
	},
	"the guarded set contains every acknowledged write and no refused one": func(h *history) { delete(h.set, "0.0#3") },
	"a guarded write is applied during its hold": func(h *history) {
		h.editChanges(func(all []change) []change {
			all[2], all[4] = all[4], all[2] // the entry is deleted before the write
			all[2].Revision, all[4].Revision = 11, 13
			return all
		})
	},
	"an acknowledged guarded write was applied once": func(h *history) {
		h.editChanges(func(all []change) []change {
			again := all[2].Events[0]
			return slices.Insert(all, 4, change{12, ms(1016), []event{again}})
		})
	},
	"every reported hold was the head of its queue during the call": func(h *history) {
		h.editChanges(func(all []change) []change {
			return append(all[:4:4], change{13, ms(1033), []event{{Key: entryB, Deleted: true}}})
		})
	},
	"live waiters are served in order": func(h *history) {
		h.editChanges(func(all []change) []change {
			return append(all, change{15, ms(1064), []event{{Key: entryB, Created: 15, Lease: 2, Value: "1.0#1"}}}, change{16, ms(1065), []event{{Key: entryB, Deleted: true}}})
		})
	},
	"an entry is removed only by its owner": func(h *history) {
		c := h.find("1.0", 3)
		c.Outcome, c.Reason = lost, "deleted"
	},
	"failed calls and releases leave no entry behind": func(h *history) { h.editChanges(func(all []change) []change { return all[:5] }) },
	"a loss is final": func(h *history) {
		h.addCall(call{Process: "0.0", ID: 20, Op: opErr, Name: "n/0", Hold: 1, Start: ms(1100), End: ms(1100), Outcome: ok})
	},
	"harmless faults cost no hold": func(h *history) {
		h.addCall(call{Process: "0.0", ID: 20, Op: opEnded, Name: "n/0", Hold: 1, Start: ms(1020), End: ms(1020), Reason: "expired"})
	},
	"a name is taken over in time": func(h *history) {
		h.lifetimes["0.0"].To = ms(1020)
		h.firings = append(h.firings, firing{fault: fault{Kind: "kill", Alone: true}, span: span{ms(1020), ms(1021)}})
		h.editChanges(func(all []change) []change { all[4].At, all[5].At = ms(6000), ms(7000); return all })
		h.truth.ticks = nil
		h.find("1.0", 1).End = ms(6001)
	},
	"no hold is lost under load": func(h *history) {
		h.load = loadCrowd
		h.addCall(call{Process: "0.0", ID: 20, Op: opEnded, Name: "n/0", Hold: 1, Start: ms(1020), End: ms(1020), Reason: "expired"})
	},
	"memory and goroutines stay flat under load": func(h *history) {
		h.load, h.healed = loadCrowd, ms(4900)
		h.lifetimes["0.0"].sizes = []call{{Start: ms(2000), Value: 1, Count: 10}, {Start: ms(3500), Value: 1, Count: 1000}}
	},
	"observers see only true states, in order, and the newest in time": func(h *history) { h.find("0.0", 10).Token = 7 },
}

func TestChecks_FindNothingInASoundHistory(t *testing.T) {
	t.Parallel()
	for _, v := range judge(sound()) {
		t.Errorf("%s: %s", v.Invariant, v.Text)
	}
}

func TestChecks_FindAViolationOfEachInvariant(t *testing.T) {
	t.Parallel()
	for _, i := range invariants {
		t.Run(i.name, func(t *testing.T) {
			t.Parallel()
			spoil := broken[i.name]
			if spoil == nil {
				t.Fatal("no history violates it")
			}
			h := sound()
			spoil(h)
			if len(i.check(h)) == 0 {
				t.Error("not found")
			}
		})
	}
}

func TestCheckObservers_FindsEachKindOfViolation(t *testing.T) {
	t.Parallel()
	for name, spoil := range map[string]func(h *history){
		"the same state twice": func(h *history) {
			c := *h.find("0.0", 10)
			c.ID, c.Start, c.End = 20, ms(1011), ms(1011)
			h.calls = slices.Insert(h.calls, 3, c)
		},
		"going back in time": func(h *history) {
			h.calls = slices.DeleteFunc(h.calls, func(c call) bool { return c.Op == opSaw && c.ID == 12 })
			h.addCall(call{Process: "0.0", ID: 12, Op: opSaw, Name: "n/0", Token: 10, Count: 1, Reason: "0.0#1", Value: 12, Start: ms(1066), End: ms(1066)})
		},
		"a lasting state that is not reported": func(h *history) {
			h.calls = slices.DeleteFunc(h.calls, func(c call) bool { return c.Op == opSaw && c.ID == 12 })
		},
		"a watch that ends": func(h *history) {
			h.addCall(call{Process: "0.0", ID: 20, Op: opWatched, Outcome: failed, Start: ms(1100), End: ms(1100)})
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			h := sound()
			spoil(h)
			if len(checkObservers(h)) == 0 {
				t.Error("not found")
			}
		})
	}
}

func TestTruth_AHandOverInOneTransactionIsOneChange(t *testing.T) {
	t.Parallel()
	tr := newTruth([]change{
		{10, ms(1), []event{{Key: entryA, Created: 10, Value: "0.0#1"}}},
		{11, ms(2), []event{{Key: entryA, Deleted: true}, {Key: entryA + "-2", Created: 11, Value: "0.0#2"}}},
		{12, ms(3), []event{{Key: entryA, Created: 12, Value: "0.0#3"}, {Key: entryA + "-2", Deleted: true}}},
	}, nil)
	for revision, want := range map[int64]int64{9: 0, 10: 10, 11: 11, 12: 12} {
		got := int64(0)
		if e := tr.headAt("n/0", revision); e != nil {
			got = e.Created
		}
		if got != want {
			t.Errorf("at revision %d the head is %d, want %d", revision, got, want)
		}
	}
}

func TestCheckOverlaps_GoesByWhatAStoppedHolderSawAfterwards(t *testing.T) {
	t.Parallel()
	stopped := func() *history {
		h := sound()
		h.lifetimes["0.0"].gaps = spans{{ms(1012), ms(1049)}}
		h.find("0.0", 5).Start = ms(1050)
		return h
	}
	if found := checkOverlaps(stopped()); len(found) > 0 {
		t.Errorf("the holder could not know, but: %v", found)
	}
	h := stopped()
	h.addCall(call{Process: "0.0", ID: 20, Op: opErr, Name: "n/0", Hold: 1, Start: ms(1049), End: ms(1049), Outcome: ok})
	if found := checkOverlaps(h); len(found) == 0 {
		t.Error("Err was nil while another process held, which was not found")
	}
}

// passedOn returns a history in which 0.0 passes its hold on to another of its goroutines.
func passedOn() *history {
	h := sound()
	h.editChanges(func(all []change) []change { all[1].Events[0].Value = "0.0"; return all })
	first, second := *h.find("0.0", 1), *h.find("0.0", 5)
	h.find("0.0", 5).Start, h.find("0.0", 5).End = ms(1018), ms(1019)
	first.ID, first.Start, first.End = 30, ms(1012), ms(1020)
	second.ID, second.Hold = 31, 30
	h.addCall(first)
	h.addCall(second)
	return h
}

func TestChecks_AHoldMayBePassedOnOnlyWithinAProcess(t *testing.T) {
	t.Parallel()
	about := func(h *history) (found []violation) {
		for _, check := range []func(*history) []violation{checkTokens, checkHeads, checkOrder, checkOverlaps, checkLockModel} {
			found = append(found, check(h)...)
		}
		return found
	}
	if found := about(passedOn()); len(found) > 0 {
		t.Errorf("passed on within a process: %v", found)
	}
	for name, spoil := range map[string]func(h *history){
		"before it was released": func(h *history) { h.find("0.0", 5).Start, h.find("0.0", 5).End = ms(1024), ms(1025) },
		"to another process":     func(h *history) { h.find("0.0", 30).Process, h.find("0.0", 31).Process = "1.0", "1.0" },
		"without being shared": func(h *history) {
			h.editChanges(func(all []change) []change { return all })
		},
	} {
		h := passedOn()
		spoil(h)
		if len(checkTokens(h)) == 0 {
			t.Errorf("%s: not found by checkTokens", name)
		}
		if len(checkLockModel(h)) == 0 {
			t.Errorf("%s: not found by checkLockModel", name)
		}
	}
}

// passedOnLate returns a history in which an operator deletes an entry, 1.0 acquires the
// name, and only then another goroutine of 0.0 requests it and is passed the hold.
func passedOnLate() *history {
	h := passedOn()
	h.editChanges(func(all []change) []change {
		all[1].Events[0].Value = "0.0"
		all[4].At = ms(1020)
		return all
	})
	h.truth.ticks = []tick{{ms(1000), ms(1001), 9}, {ms(1016), ms(1017), 12}, {ms(1018), ms(1019), 13}, {ms(1070), ms(1071), 14}}
	h.find("1.0", 1).End = ms(1022)
	first, second := h.find("0.0", 30), h.find("0.0", 31)
	first.Start, first.End = ms(1030), ms(1045)
	second.Start, second.End, second.Outcome, second.Reason = ms(1050), ms(1051), lost, "deleted"
	h.find("0.0", 5).Start, h.find("0.0", 5).End = ms(1040), ms(1041)
	h.firings = []firing{{fault: fault{Kind: "delete-entry"}, span: span{ms(1015), ms(1020)}, Name: "n/0", Token: 10}}
	return h
}

func TestChecks_AHoldMayBePassedOnUntilAnAuditFindsItsEntryDeleted(t *testing.T) {
	t.Parallel()
	about := map[string]func(*history) []violation{"tokens": checkTokens, "heads": checkHeads}
	h := passedOnLate()
	for what, check := range about {
		if found := check(h); len(found) > 0 {
			t.Errorf("%s: passed on before the audit was due: %v", what, found)
		}
	}
	after := ms(1020).add(auditBound(h.ttl))
	for name, spoil := range map[string]func(h *history){
		"no entry was deleted by hand":         func(h *history) { h.firings = nil },
		"another entry was deleted":            func(h *history) { h.firings[0].Token = 12 },
		"the hold was not released before":     func(h *history) { h.find("0.0", 5).Start = ms(1046) },
		"the hold belonged to another process": func(h *history) { h.find("0.0", 1).Process, h.find("0.0", 5).Process = "1.0", "1.0" },
		"the hold is not shared":               func(h *history) { h.truth.entry("n/0", 10).Owner = "0.0#30" },
		"an audit was due since": func(h *history) {
			h.find("0.0", 5).Start, h.find("0.0", 5).End = after.add(time.Millisecond), after.add(2*time.Millisecond)
			h.find("0.0", 30).End = after.add(3 * time.Millisecond)
		},
	} {
		h := passedOnLate()
		spoil(h)
		for what, check := range about {
			if len(check(h)) == 0 {
				t.Errorf("%s: %s: not found", what, name)
			}
		}
	}
}

func TestCheckHeads_AllowsALateAuditDuringFaults(t *testing.T) {
	t.Parallel()
	h := passedOnLate()
	late := ms(1020).add(auditBound(h.ttl) + 50*time.Millisecond)
	h.find("0.0", 5).Start, h.find("0.0", 5).End, h.find("0.0", 30).End = late, late, late
	h.firings = append(h.firings, firing{fault: fault{Kind: "cut"}, span: span{ms(1020), ms(1021)}})
	if found := checkHeads(h); len(found) > 0 {
		t.Errorf("the process was cut off, but: %v", found)
	}
	h.firings[1].Target = 1
	if found := checkHeads(h); len(found) == 0 {
		t.Error("only another process was cut off, which excuses nothing")
	}
}

func TestCheckRemovals_AnOperatorExcusesOnlyCallsThatShareTheEntry(t *testing.T) {
	t.Parallel()
	h := passedOn()
	h.addCall(call{Process: "0.0", ID: 40, Op: opLock, Name: "n/0", Start: ms(1005), End: ms(1036), Outcome: failed, Reason: "lock lost: deleted"})
	if found := checkRemovals(h); len(found) == 0 {
		t.Error("nobody was allowed to delete the entry, which was not found")
	}
	h.firings = []firing{{fault: fault{Kind: "delete-entry"}, Name: "n/0", Token: 10}}
	if found := checkRemovals(h); len(found) > 0 {
		t.Errorf("an operator deleted the entry, but: %v", found)
	}
	c := h.find("0.0", 40)
	c.Start, c.End = ms(1100), ms(1110)
	if found := checkRemovals(h); len(found) == 0 {
		t.Error("an entry that was deleted long before excused a later call")
	}
}

func TestCheckReturns_ACallThatReturnsBeforeItsContextEndsIsInTime(t *testing.T) {
	t.Parallel()
	h := sound()
	h.lifetimes["1.0"].gaps = spans{{ms(900), ms(30_000)}}
	if found := checkReturns(h); len(found) > 0 {
		t.Errorf("the call returned in time, but: %v", found)
	}
}

func TestHistory_AProcessThatRecordedNothingBeforeItsKillDidNotRun(t *testing.T) {
	t.Parallel()
	for silent, want := range map[time.Duration]int{sizeEvery: 0, 3 * time.Second: 1} {
		h := &history{}
		h.add(&lifetime{name: "0.0", span: span{From: ms(900), To: ms(1000).add(silent)}}, []call{{Process: "0.0", Op: opSize, Start: ms(1000), End: ms(1000)}})
		if got := len(h.lifetimes["0.0"].gaps); got != want {
			t.Errorf("silent for %v: %d gaps, want %d", silent, got, want)
		}
	}
}

func TestCheckOrder_IgnoresEntriesPutByHand(t *testing.T) {
	t.Parallel()
	const foreign = lockPrefix + "n%2F0/foreign"
	h := sound()
	h.editChanges(func(all []change) []change {
		for revision := int64(15); revision < 19; revision += 2 {
			all = append(all,
				change{revision, ms(1070), []event{{Key: foreign, Created: revision, Value: "foreign"}}},
				change{revision + 1, ms(1071), []event{{Key: foreign, Deleted: true}}})
		}
		return all
	})
	if found := checkOrder(h); len(found) > 0 {
		t.Errorf("the entry belongs to no waiter, but: %v", found)
	}
}

func TestCheckCleanUp_AllowsMoreTimeForAnEntryOfALostLease(t *testing.T) {
	t.Parallel()
	h := sound()
	h.editChanges(func(all []change) []change {
		return append(all,
			change{15, ms(1064), []event{{Key: entryB + "-3", Created: 15, Lease: 3, Value: "1.0#1"}}},
			change{16, ms(1080), []event{{Key: entryB + "-3", Deleted: true}}})
	})
	h.truth.ticks = append(h.truth.ticks, tick{ms(1075), ms(1076), 15})
	if found := checkCleanUp(h); len(found) > 0 {
		t.Errorf("the entry goes with its lease, but: %v", found)
	}
	h.find("1.0", 3).Token = 15
	if found := checkCleanUp(h); len(found) == 0 {
		t.Error("a confirmed Unlock left its entry, which was not found")
	}
}

// revokedHistory has the lease of 0.0 revoked while a stopped member resumes.
func revokedHistory(led bool) *history {
	h := sound()
	h.editChanges(func(all []change) []change {
		all[4].Events = append(all[4].Events, event{Key: recordA, Deleted: true})
		return all
	})
	h.find("0.0", 5).Start = ms(1034)
	h.firings = []firing{{fault: fault{Kind: "stop-member"}, span: span{ms(1000), ms(1030)}, Led: led}}
	return h
}

func TestCheckLossReported_OnlyAFormerLeaderExcusesARevokedLease(t *testing.T) {
	t.Parallel()
	if found := checkLossReported(revokedHistory(true)); len(found) > 0 {
		t.Errorf("no client could foresee it, but: %v", found)
	}
	if found := checkLossReported(revokedHistory(false)); len(found) == 0 {
		t.Error("the member that resumed had not been the leader, which excuses nothing")
	}
}

func TestSummary_MarginsAreThoseOfExpiredLeases(t *testing.T) {
	t.Parallel()
	h := revokedHistory(false)
	h.addCall(call{Process: "0.0", ID: 20, Op: opEnded, Name: "n/0", Hold: 1, Start: ms(1025), End: ms(1025), Reason: "expired"})
	h.firings = append(h.firings, firing{fault: fault{Kind: "cut"}, span: span{ms(1011), ms(1040)}})
	if s := h.summary(); !slices.Equal(s.margins, []time.Duration{8 * time.Millisecond}) {
		t.Errorf("margins are %v, want 8ms", s.margins)
	}
	h.firings[1].To = ms(1030)
	if s := h.summary(); len(s.margins) != 0 {
		t.Error("a lease that its client may have revoked was counted")
	}
}

func TestCheckOnce_AWriteInDoubtMayBeAppliedTwice(t *testing.T) {
	t.Parallel()
	h := sound()
	broken["an acknowledged guarded write was applied once"](h)
	h.find("0.0", 3).Outcome = unsure
	if found := checkOnce(h); len(found) > 0 {
		t.Errorf("the write was reported to be in doubt, but: %v", found)
	}
}

// longTTLHistory has a process with a long TTL lose a hold after a short stop.
func longTTLHistory() *history {
	h := sound()
	h.processes = processes
	h.seed = 3
	for i, c := range h.calls {
		if c.Process == "0.0" {
			h.calls[i].Process = "3.0"
		}
	}
	h.lifetimes["3.0"] = &lifetime{name: "3.0", slot: longSlot, span: span{From: ms(900)}}
	h.addCall(call{Process: "3.0", ID: 20, Op: opEnded, Name: "n/0", Hold: 1, Start: ms(1020), End: ms(1020), Reason: "expired"})
	h.firings = []firing{{fault: fault{Kind: "stop", Target: longSlot}, span: span{ms(910), ms(1019)}}}
	h.lifetimes["3.0"].gaps = spans{{ms(910), ms(1019)}}
	return h
}

func TestCheckHarmless_AShortStopCostsNoHoldWithALongTTL(t *testing.T) {
	t.Parallel()
	h := longTTLHistory()
	if found := checkHarmless(h); len(found) == 0 {
		t.Error("not found")
	}
	h = longTTLHistory()
	h.seed = 1
	if found := checkHarmless(h); len(found) > 0 {
		t.Errorf("with a TTL of %v a stop may cost a hold, but: %v", h.ttl, found)
	}
	h = longTTLHistory()
	h.firings = append(h.firings, firing{fault: fault{Kind: "revoke-lease"}, span: span{ms(1015), ms(1016)}, Lease: 1})
	if found := checkHarmless(h); len(found) > 0 {
		t.Errorf("an operator revoked the lease, but: %v", found)
	}
}

func TestChecks_ASilentMemberIsNoExcuse(t *testing.T) {
	t.Parallel()
	for k, excused := range map[kind]bool{"freeze": true, "freeze-member": false, "cut-member": false} {
		h := sound()
		broken["the head of the queue gets the lock in time"](h)
		h.firings = []firing{{fault: fault{Kind: k, Target: 1}, span: span{ms(1000), ms(5000)}}}
		if found := checkHeadServed(h); len(found) > 0 == excused {
			t.Errorf("%s: found %v, want it excused: %v", k, found, excused)
		}
		h = sound()
		h.calls = slices.DeleteFunc(h.calls, func(c call) bool { return c.Op == opSaw && c.ID == 12 })
		h.firings = []firing{{fault: fault{Kind: k}, span: span{ms(1000), ms(5000)}}}
		if found := checkObservers(h); len(found) > 0 == excused {
			t.Errorf("%s, observers: found %v, want it excused: %v", k, found, excused)
		}
	}
}

// A session deletes its record for a moment to resolve a put in doubt. A lease that is
// revoked at that time goes without a record.
func TestALeaseMayGoWhileItsRecordIsNotThere(t *testing.T) {
	t.Parallel()
	const lease, record = 5, lockPrefix + "/5"
	entries := []event{{Key: lockPrefix + "a/5", Lease: lease, Created: 11, Value: "0.0#1"}, {Key: lockPrefix + "b/5", Lease: lease, Created: 11, Value: "0.0#2"}}
	gone := []event{{Key: entries[0].Key, Deleted: true}, {Key: entries[1].Key, Deleted: true}}
	before := []change{
		{Revision: 10, Events: []event{{Key: record, Lease: lease, Created: 10}}},
		{Revision: 11, Events: entries},
		{Revision: 12, Events: []event{{Key: record, Deleted: true}}},
	}
	again := change{Revision: 14, Events: []event{{Key: record, Lease: lease, Created: 14}}}
	for name, test := range map[string]struct {
		after []change
		want  bool
	}{
		"all at once":                      {[]change{{Revision: 13, Events: gone}}, true},
		"all at once, and a later put":     {[]change{{Revision: 13, Events: gone}, again}, false},
		"one of two":                       {[]change{{Revision: 13, Events: gone[:1]}, {Revision: 15, Events: entries[1:]}}, false},
		"all at once, with something else": {[]change{{Revision: 13, Events: append(slices.Clone(gone), event{Key: "other"})}}, false},
		"with its record, which is back":   {[]change{again, {Revision: 15, Events: append(slices.Clone(gone), event{Key: record, Deleted: true})}}, true},
	} {
		if e := newTruth(append(slices.Clone(before), test.after...), nil).entry("a", 11); e == nil || e.Revoked != test.want {
			t.Errorf("%s: %+v, want revoked: %v", name, e, test.want)
		}
	}
}
