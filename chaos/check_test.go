package main

import (
	"slices"
	"testing"
	"time"
)

// ms is a moment of a made-up history, in milliseconds.
func ms(n int64) instant { return instant(n * int64(time.Millisecond)) }

const (
	recordA = lockPrefix + "/a"
	entryA  = lockPrefix + "n%2F0/a"
	entryB  = lockPrefix + "n%2F0/b"
)

// sound is a history in which all is as it should be: 0.0 locks n/0, writes and gives it up to 1.0, who
// waited for it.
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
	h.add(&life{name: "0.0", slot: 0, span: span{From: ms(900)}}, []call{
		{Process: "0.0", ID: 9, Op: opWatched, Start: ms(950), End: ms(950)},
		{Process: "0.0", ID: 1, Op: opLock, Name: "n/0", Token: 10, Start: ms(1000), End: ms(1010), By: ms(6000), Outcome: ok},
		{Process: "0.0", ID: 10, Op: opSaw, Name: "n/0", Token: 10, Reason: "0.0#1", Value: 10, Start: ms(1010), End: ms(1010)},
		{Process: "0.0", ID: 2, Op: opErr, Name: "n/0", Hold: 1, Token: 10, Start: ms(1011), End: ms(1011), Outcome: ok},
		{Process: "0.0", ID: 3, Op: opCommit, Name: "n/0", Hold: 1, Token: 10, Start: ms(1012), End: ms(1014), Outcome: ok, Value: 11},
		{Process: "0.0", ID: 4, Op: opAdd, Name: "n/0", Hold: 1, Token: 10, Start: ms(1015), End: ms(1017), Outcome: ok, Count: 1},
		{Process: "0.0", ID: 5, Op: opUnlock, Name: "n/0", Hold: 1, Token: 10, Start: ms(1030), End: ms(1035), Outcome: ok},
		{Process: "0.0", ID: 11, Op: opSaw, Name: "n/0", Token: 12, Reason: "1.0#1", Value: 13, Start: ms(1036), End: ms(1036)},
		{Process: "0.0", ID: 12, Op: opSaw, Name: "n/0", Value: 14, Start: ms(1066), End: ms(1066)},
		{Process: "0.0", ID: 13, Op: opBye, Start: ms(20_500), End: ms(20_500)},
	})
	h.add(&life{name: "1.0", slot: 1, span: span{From: ms(900)}}, []call{
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

// find returns the call of a process with that ID, to be changed.
func (h *history) find(process string, id int64) *call {
	i := slices.IndexFunc(h.calls, func(c call) bool { return c.Process == process && c.ID == id })
	return &h.calls[i]
}

// also adds a call to the history.
func (h *history) also(c call) { h.calls = append(h.calls, c) }

// instead replaces the truth.
func (h *history) instead(f func([]change) []change) {
	h.truth = newTruth(f(soundChanges()), h.truth.ticks)
}

// broken are histories that each break one promise, or one and what follows from it.
var broken = map[string]func(h *history){
	"tokens of a name are unique and grow": func(h *history) {
		c := h.find("1.0", 1)
		c.Start, c.Token = ms(1036), 8
	},
	"the resource never accepts a smaller token after a larger one": func(h *history) {
		h.accesses = append(h.accesses, access{"n/0", 10, true})
	},
	"fenced increments are not lost":     func(h *history) { h.counters["n/0"] = 0 },
	"no two holds are certain at once":   func(h *history) { h.find("0.0", 5).Start = ms(1050) },
	"a loss is told before etcd deletes": func(h *history) { h.find("0.0", 5).Start = ms(1034) },
	"after Close nothing is left":        func(h *history) { h.left = []string{entryA} },
	"every call returns by its context":  func(h *history) { h.find("1.0", 1).End = ms(7000) },
	"whose turn it is gets the lock": func(h *history) {
		h.instead(func(all []change) []change { return all[:5] })
		h.find("1.0", 1).End = ms(5000)
	},
	"everybody gets locks once faults are over": func(h *history) { h.healed = ms(15_000) },
	"a lock model explains the history (porcupine)": func(h *history) {
		h.find("0.0", 5).Start, h.find("0.0", 5).End = ms(1050), ms(1055)
	},
	"a counter model explains the history (porcupine)": func(h *history) {
		h.also(call{Process: "1.0", ID: 20, Op: opAdd, Name: "n/0", Start: ms(1045), End: ms(1046), Outcome: ok, Count: 1})
	},
	"the guarded set has what was acknowledged, and nothing that was refused": func(h *history) { delete(h.set, "0.0#3") },
	"a guarded write happens under its hold": func(h *history) {
		h.instead(func(all []change) []change {
			all[2], all[4] = all[4], all[2] // the entry goes before the write
			all[2].Revision, all[4].Revision = 11, 13
			return all
		})
	},
	"a guarded write that is acknowledged was made once": func(h *history) {
		h.instead(func(all []change) []change {
			again := all[2].Events[0]
			return slices.Insert(all, 4, change{12, ms(1016), []event{again}})
		})
	},
	"a hold that is reported was the head of its queue during the call": func(h *history) {
		h.instead(func(all []change) []change {
			return append(all[:4:4], change{13, ms(1033), []event{{Key: entryB, Deleted: true}}})
		})
	},
	"live waiters are served in order": func(h *history) {
		h.instead(func(all []change) []change {
			return append(all, change{15, ms(1064), []event{{Key: entryB, Created: 15, Lease: 2, Value: "1.0#1"}}}, change{16, ms(1065), []event{{Key: entryB, Deleted: true}}})
		})
	},
	"an entry is removed by its owner only": func(h *history) {
		c := h.find("1.0", 3)
		c.Outcome, c.Reason = lost, "deleted"
	},
	"what is given up goes": func(h *history) { h.instead(func(all []change) []change { return all[:5] }) },
	"lost is forever": func(h *history) {
		h.also(call{Process: "0.0", ID: 20, Op: opErr, Name: "n/0", Hold: 1, Start: ms(1100), End: ms(1100), Outcome: ok})
	},
	"nothing harmless costs a hold": func(h *history) {
		h.also(call{Process: "0.0", ID: 20, Op: opEnded, Name: "n/0", Hold: 1, Start: ms(1020), End: ms(1020), Reason: "expired"})
	},
	"a name is taken over in time": func(h *history) {
		h.lives["0.0"].To = ms(1020)
		h.firings = append(h.firings, firing{fault: fault{Kind: "kill", Alone: true}, span: span{ms(1020), ms(1021)}})
		h.instead(func(all []change) []change { all[4].At, all[5].At = ms(6000), ms(7000); return all })
		h.truth.ticks = nil
		h.find("1.0", 1).End = ms(6001)
	},
	"nothing is lost under load": func(h *history) {
		h.load = loadCrowd
		h.also(call{Process: "0.0", ID: 20, Op: opEnded, Name: "n/0", Hold: 1, Start: ms(1020), End: ms(1020), Reason: "expired"})
	},
	"memory and goroutines stay flat under load": func(h *history) {
		h.load, h.healed = loadCrowd, ms(4900)
		h.lives["0.0"].sizes = []call{{Start: ms(2000), Value: 1, Count: 10}, {Start: ms(3500), Value: 1, Count: 1000}}
	},
	"observers see what was so, in order, and the newest": func(h *history) { h.find("0.0", 10).Token = 7 },
}

func TestASoundHistoryBreaksNoPromise(t *testing.T) {
	t.Parallel()
	for _, v := range judge(sound()) {
		t.Errorf("%s: %s", v.Invariant, v.Text)
	}
}

func TestEachInvariantCanBeSeenBroken(t *testing.T) {
	t.Parallel()
	for _, i := range invariants {
		t.Run(i.name, func(t *testing.T) {
			t.Parallel()
			spoil := broken[i.name]
			if spoil == nil {
				t.Fatal("no history breaks it")
			}
			h := sound()
			spoil(h)
			if len(i.check(h)) == 0 {
				t.Error("it was not noticed")
			}
		})
	}
}

func TestObserversAreHeldToEachOfTheirPromises(t *testing.T) {
	t.Parallel()
	for name, spoil := range map[string]func(h *history){
		"the same state twice": func(h *history) {
			c := *h.find("0.0", 10)
			c.ID, c.Start, c.End = 20, ms(1011), ms(1011)
			h.calls = slices.Insert(h.calls, 3, c)
		},
		"going back in time": func(h *history) {
			h.calls = slices.DeleteFunc(h.calls, func(c call) bool { return c.Op == opSaw && c.ID == 12 })
			h.also(call{Process: "0.0", ID: 12, Op: opSaw, Name: "n/0", Token: 10, Reason: "0.0#1", Value: 12, Start: ms(1066), End: ms(1066)})
		},
		"a state that lasts and is not told": func(h *history) {
			h.calls = slices.DeleteFunc(h.calls, func(c call) bool { return c.Op == opSaw && c.ID == 12 })
		},
		"a watch that ends": func(h *history) {
			h.also(call{Process: "0.0", ID: 20, Op: opWatched, Outcome: failed, Start: ms(1100), End: ms(1100)})
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			h := sound()
			spoil(h)
			if len(checkObservers(h)) == 0 {
				t.Error("it was not noticed")
			}
		})
	}
}

func TestAHandOverInOneTransactionIsOneChange(t *testing.T) {
	t.Parallel()
	truth := newTruth([]change{
		{10, ms(1), []event{{Key: entryA, Created: 10, Value: "0.0#1"}}},
		{11, ms(2), []event{{Key: entryA, Deleted: true}, {Key: entryA + "-2", Created: 11, Value: "0.0#2"}}},
		{12, ms(3), []event{{Key: entryA, Created: 12, Value: "0.0#3"}, {Key: entryA + "-2", Deleted: true}}},
	}, nil)
	for revision, want := range map[int64]int64{9: 0, 10: 10, 11: 11, 12: 12} {
		got := int64(0)
		if e := truth.headAt("n/0", revision); e != nil {
			got = e.Created
		}
		if got != want {
			t.Errorf("at revision %d the head is %d, want %d", revision, got, want)
		}
	}
}

func TestAStoppedHolderIsJudgedByWhatItSawAfterwards(t *testing.T) {
	t.Parallel()
	stopped := func() *history {
		h := sound()
		h.lives["0.0"].gaps = spans{{ms(1012), ms(1049)}}
		h.find("0.0", 5).Start = ms(1050)
		return h
	}
	if found := checkOverlaps(stopped()); len(found) > 0 {
		t.Errorf("it could not know: %v", found)
	}
	h := stopped()
	h.also(call{Process: "0.0", ID: 20, Op: opErr, Name: "n/0", Hold: 1, Start: ms(1049), End: ms(1049), Outcome: ok})
	if found := checkOverlaps(h); len(found) == 0 {
		t.Error("it looked, saw no error, and somebody else held: that was not noticed")
	}
}

// passedOn is a history in which 0.0 passes its hold on to another of its goroutines.
func passedOn() *history {
	h := sound()
	h.instead(func(all []change) []change { all[1].Events[0].Value = "0.0"; return all })
	first, second := *h.find("0.0", 1), *h.find("0.0", 5)
	h.find("0.0", 5).Start, h.find("0.0", 5).End = ms(1018), ms(1019)
	first.ID, first.Start, first.End = 30, ms(1012), ms(1020)
	second.ID, second.Hold = 31, 30
	h.also(first)
	h.also(second)
	return h
}

func TestAHoldMayBePassedOnWithinAProcessAndNowhereElse(t *testing.T) {
	t.Parallel()
	about := func(h *history) (found []violation) {
		for _, check := range []func(*history) []violation{checkTokens, checkHeads, checkOrder, checkOverlaps, checkLockModel} {
			found = append(found, check(h)...)
		}
		return found
	}
	if found := about(passedOn()); len(found) > 0 {
		t.Errorf("it was passed on as it may be: %v", found)
	}
	for name, spoil := range map[string]func(h *history){
		"before it was given up": func(h *history) { h.find("0.0", 5).Start, h.find("0.0", 5).End = ms(1024), ms(1025) },
		"to another process":     func(h *history) { h.find("0.0", 30).Process, h.find("0.0", 31).Process = "1.0", "1.0" },
		"without being shared": func(h *history) {
			h.instead(func(all []change) []change { return all })
		},
	} {
		h := passedOn()
		spoil(h)
		if len(checkTokens(h)) == 0 {
			t.Errorf("%s: it was not noticed by its token", name)
		}
		if len(checkLockModel(h)) == 0 {
			t.Errorf("%s: it was not noticed by the model", name)
		}
	}
}

// passedOnLate is a history in which an operator deletes an entry, 1.0 gets the name, and only then does
// another goroutine of 0.0 ask for it and have the hold passed on to it.
func passedOnLate() *history {
	h := passedOn()
	h.instead(func(all []change) []change {
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

func TestAHoldMayBePassedOnUntilTheAuditNoticesThatAnOperatorDeletedItsEntry(t *testing.T) {
	t.Parallel()
	about := map[string]func(*history) []violation{"tokens": checkTokens, "heads": checkHeads}
	h := passedOnLate()
	for what, check := range about {
		if found := check(h); len(found) > 0 {
			t.Errorf("%s: it was passed on before the audit was due: %v", what, found)
		}
	}
	after := ms(1020).add(auditBound(h.ttl))
	for name, spoil := range map[string]func(h *history){
		"and nobody deleted it by hand":    func(h *history) { h.firings = nil },
		"another entry was deleted":        func(h *history) { h.firings[0].Token = 12 },
		"the hold was not given up before": func(h *history) { h.find("0.0", 5).Start = ms(1046) },
		"the hold was of another process":  func(h *history) { h.find("0.0", 1).Process, h.find("0.0", 5).Process = "1.0", "1.0" },
		"the hold is not shared":           func(h *history) { h.truth.entry("n/0", 10).Who = "0.0#30" },
		"an audit was due since": func(h *history) {
			h.find("0.0", 5).Start, h.find("0.0", 5).End = after.add(time.Millisecond), after.add(2*time.Millisecond)
			h.find("0.0", 30).End = after.add(3 * time.Millisecond)
		},
	} {
		h := passedOnLate()
		spoil(h)
		for what, check := range about {
			if len(check(h)) == 0 {
				t.Errorf("%s: %s, which was not noticed", what, name)
			}
		}
	}
}

func TestAnAuditMayBeLateWhileFaultsAreFelt(t *testing.T) {
	t.Parallel()
	h := passedOnLate()
	late := ms(1020).add(auditBound(h.ttl) + 50*time.Millisecond)
	h.find("0.0", 5).Start, h.find("0.0", 5).End, h.find("0.0", 30).End = late, late, late
	h.firings = append(h.firings, firing{fault: fault{Kind: "cut"}, span: span{ms(1020), ms(1021)}})
	if found := checkHeads(h); len(found) > 0 {
		t.Errorf("it was cut off: %v", found)
	}
	h.firings[1].Target = 1
	if found := checkHeads(h); len(found) == 0 {
		t.Error("another was cut off: that was not noticed")
	}
}

func TestAnOperatorIsAnExcuseForTheCallsOfASharedEntryAndForNoOthers(t *testing.T) {
	t.Parallel()
	h := passedOn()
	h.also(call{Process: "0.0", ID: 40, Op: opLock, Name: "n/0", Start: ms(1005), End: ms(1036), Outcome: failed, Reason: "lock lost: deleted"})
	if found := checkRemovals(h); len(found) == 0 {
		t.Error("an entry that nobody had a right to delete was not noticed")
	}
	h.firings = []firing{{fault: fault{Kind: "delete-entry"}, Name: "n/0", Token: 10}}
	if found := checkRemovals(h); len(found) > 0 {
		t.Errorf("an operator deleted it: %v", found)
	}
	c := h.find("0.0", 40)
	c.Start, c.End = ms(1100), ms(1110)
	if found := checkRemovals(h); len(found) == 0 {
		t.Error("an entry that went long before excused a later call")
	}
}

func TestACallThatReturnsBeforeItsContextEndsIsInTime(t *testing.T) {
	t.Parallel()
	h := sound()
	h.lives["1.0"].gaps = spans{{ms(900), ms(30_000)}}
	if found := checkReturns(h); len(found) > 0 {
		t.Errorf("it returned in time: %v", found)
	}
}

func TestAProcessThatWasSilentUntilItWasKilledDidNotRun(t *testing.T) {
	t.Parallel()
	for silent, want := range map[time.Duration]int{sizeEvery: 0, 3 * time.Second: 1} {
		h := &history{}
		h.add(&life{name: "0.0", span: span{From: ms(900), To: ms(1000).add(silent)}}, []call{{Process: "0.0", Op: opSize, Start: ms(1000), End: ms(1000)}})
		if got := len(h.lives["0.0"].gaps); got != want {
			t.Errorf("silent for %v: %d gaps", silent, got)
		}
	}
}

func TestAnEntryPutByHandHasNoPlaceToKeep(t *testing.T) {
	t.Parallel()
	const foreign = lockPrefix + "n%2F0/foreign"
	h := sound()
	h.instead(func(all []change) []change {
		for revision := int64(15); revision < 19; revision += 2 {
			all = append(all,
				change{revision, ms(1070), []event{{Key: foreign, Created: revision, Value: "foreign"}}},
				change{revision + 1, ms(1071), []event{{Key: foreign, Deleted: true}}})
		}
		return all
	})
	if found := checkOrder(h); len(found) > 0 {
		t.Errorf("it is no waiter: %v", found)
	}
}

func TestWhatACallPutUnderALostLeaseMayStayAWhile(t *testing.T) {
	t.Parallel()
	h := sound()
	h.instead(func(all []change) []change {
		return append(all,
			change{15, ms(1064), []event{{Key: entryB + "-3", Created: 15, Lease: 3, Value: "1.0#1"}}},
			change{16, ms(1080), []event{{Key: entryB + "-3", Deleted: true}}})
	})
	h.truth.ticks = append(h.truth.ticks, tick{ms(1075), ms(1076), 15})
	if found := checkLeavings(h); len(found) > 0 {
		t.Errorf("it goes with that lease: %v", found)
	}
	h.find("1.0", 3).Token = 15
	if found := checkLeavings(h); len(found) == 0 {
		t.Error("an entry that a confirmed Unlock should have removed was not noticed")
	}
}

// revoked is a history in which the lease of 0.0 goes while a member wakes up that was stopped.
func revoked(led bool) *history {
	h := sound()
	h.instead(func(all []change) []change {
		all[4].Events = append(all[4].Events, event{Key: recordA, Deleted: true})
		return all
	})
	h.find("0.0", 5).Start = ms(1034)
	h.firings = []firing{{fault: fault{Kind: "stop-member"}, span: span{ms(1000), ms(1030)}, Led: led}}
	return h
}

func TestOnlyAFormerLeaderIsAnExcuseForALeaseThatWent(t *testing.T) {
	t.Parallel()
	if found := checkTold(revoked(true)); len(found) > 0 {
		t.Errorf("no client could see it coming: %v", found)
	}
	if found := checkTold(revoked(false)); len(found) == 0 {
		t.Error("the member that woke up had not been the leader: that was not noticed")
	}
}

func TestTheSlackIsThatOfLeasesThatRanOut(t *testing.T) {
	t.Parallel()
	h := revoked(false)
	h.also(call{Process: "0.0", ID: 20, Op: opEnded, Name: "n/0", Hold: 1, Start: ms(1025), End: ms(1025), Reason: "expired"})
	h.firings = append(h.firings, firing{fault: fault{Kind: "cut"}, span: span{ms(1011), ms(1040)}})
	if s := h.summary(); !slices.Equal(s.slacks, []time.Duration{8 * time.Millisecond}) {
		t.Errorf("losses were told %v before, want 8ms", s.slacks)
	}
	h.firings[1].To = ms(1030)
	if s := h.summary(); len(s.slacks) != 0 {
		t.Error("a lease that its client may have revoked was counted")
	}
}

func TestAWriteThatIsNotAcknowledgedMayBeMadeTwice(t *testing.T) {
	t.Parallel()
	h := sound()
	broken["a guarded write that is acknowledged was made once"](h)
	h.find("0.0", 3).Outcome = unsure
	if found := checkOnce(h); len(found) > 0 {
		t.Errorf("it was said to be in doubt: %v", found)
	}
}

// long is a history in which the locks of 3.0 have a long TTL, and are lost.
func long() *history {
	h := sound()
	h.processes = processes
	h.seed = 3
	for i, c := range h.calls {
		if c.Process == "0.0" {
			h.calls[i].Process = "3.0"
		}
	}
	h.lives["3.0"] = &life{name: "3.0", slot: longSlot, span: span{From: ms(900)}}
	h.also(call{Process: "3.0", ID: 20, Op: opEnded, Name: "n/0", Hold: 1, Start: ms(1020), End: ms(1020), Reason: "expired"})
	h.firings = []firing{{fault: fault{Kind: "stop", Target: longSlot}, span: span{ms(910), ms(1019)}}}
	h.lives["3.0"].gaps = spans{{ms(910), ms(1019)}}
	return h
}

func TestAShortStopCostsNoHoldWithALongTTL(t *testing.T) {
	t.Parallel()
	h := long()
	if found := checkHarmless(h); len(found) == 0 {
		t.Error("it was not noticed")
	}
	h = long()
	h.seed = 1
	if found := checkHarmless(h); len(found) > 0 {
		t.Errorf("with a TTL of %v a stop costs a hold: %v", h.ttl, found)
	}
	h = long()
	h.firings = append(h.firings, firing{fault: fault{Kind: "revoke-lease"}, span: span{ms(1015), ms(1016)}, Lease: 1})
	if found := checkHarmless(h); len(found) > 0 {
		t.Errorf("an operator took it away: %v", found)
	}
}

func TestAMemberThatDoesNotAnswerIsNoExcuseForLong(t *testing.T) {
	t.Parallel()
	for kind, excused := range map[kind]bool{"freeze": true, "freeze-member": false, "cut-member": false} {
		h := sound()
		broken["whose turn it is gets the lock"](h)
		h.firings = []firing{{fault: fault{Kind: kind, Target: 1}, span: span{ms(1000), ms(5000)}}}
		if found := checkTurns(h); len(found) > 0 == excused {
			t.Errorf("%s: %v, excused should be %v", kind, found, excused)
		}
		h = sound()
		h.calls = slices.DeleteFunc(h.calls, func(c call) bool { return c.Op == opSaw && c.ID == 12 })
		h.firings = []firing{{fault: fault{Kind: kind}, span: span{ms(1000), ms(5000)}}}
		if found := checkObservers(h); len(found) > 0 == excused {
			t.Errorf("%s, observers: %v, excused should be %v", kind, found, excused)
		}
	}
}

// A session deletes its record for a moment to learn what became of a put. A lease that goes then goes without it.
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
		"all at once, and it is heard of":  {[]change{{Revision: 13, Events: gone}, again}, false},
		"one of two":                       {[]change{{Revision: 13, Events: gone[:1]}, {Revision: 15, Events: entries[1:]}}, false},
		"all at once, with something else": {[]change{{Revision: 13, Events: append(slices.Clone(gone), event{Key: "other"})}}, false},
		"with its record, which is there":  {[]change{again, {Revision: 15, Events: append(slices.Clone(gone), event{Key: record, Deleted: true})}}, true},
	} {
		if e := newTruth(append(slices.Clone(before), test.after...), nil).entry("a", 11); e == nil || e.Revoked != test.want {
			t.Errorf("%s: %+v, want it revoked: %v", name, e, test.want)
		}
	}
}
