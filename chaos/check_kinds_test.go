package main

import (
	"slices"
	"strings"
	"testing"
	"time"
)

// Keys of the history of mixed.
const (
	readerA = lockPrefix + "m%2F0/~/a"
	readerB = lockPrefix + "m%2F0/~/b"
	writer0 = lockPrefix + "m%2F0/a.2"
	writer1 = lockPrefix + "m%2F1/a"
	twoB    = lockPrefix + "m%2F1/b~2"
	threeB  = lockPrefix + "m%2F1/b.2~3"
)

// mixed returns a history without violations. 0.0 and 1.0 read m/0 together; then 0.0 locks
// m/0 and m/1 exclusively; then two goroutines of 1.0 hold m/1 together.
func mixed() *history {
	h := &history{
		plan: plan{ttl: 2 * time.Second, members: 3, processes: 2, duration: time.Second},
		over: overLocker, mixed: 2,
		began: ms(900), healed: ms(950), stopping: ms(20_000), ended: ms(21_000),
		set: map[string]bool{"0.0#9": true},
	}
	h.add(&lifetime{name: "0.0", slot: 0, span: span{From: ms(900)}}, []call{
		{Process: "0.0", ID: 1, Op: opLock, Name: "m/0", Mode: shared, Token: 10, Start: ms(1000), End: ms(1011), Outcome: ok},
		{Process: "0.0", ID: 2, Op: opUnlock, Hold: 1, Start: ms(1018), End: ms(1021), Outcome: ok},
		{Process: "0.0", ID: 3, Op: opLock, Name: "m/0", And: []item{{"m/1", exclusive}}, Token: 12, Start: ms(1013), End: ms(1032), Outcome: ok},
		{Process: "0.0", ID: 9, Op: opCommit, Name: "m/0", Hold: 3, Token: 12, Start: ms(1036), End: ms(1040), Outcome: ok, Value: 17},
		{Process: "0.0", ID: 4, Op: opUnlock, Hold: 3, Start: ms(1048), End: ms(1052), Outcome: ok},
		{Process: "0.0", ID: 20, Op: opWatched, Start: ms(950), End: ms(950)},
		{Process: "0.0", ID: 21, Op: opSaw, Name: "m/0", Token: 10, Mode: shared, Count: 1, Reason: "0.0#1", Value: 10, Start: ms(1010), End: ms(1010)},
		{Process: "0.0", ID: 22, Op: opSaw, Name: "m/0", Token: 10, Mode: shared, Count: 2, Reason: "0.0#1", Value: 11, Start: ms(1012), End: ms(1012)},
		{Process: "0.0", ID: 23, Op: opSaw, Name: "m/1", Token: 12, Count: 1, Reason: "0.0#3", Value: 12, Start: ms(1016), End: ms(1016)},
		{Process: "0.0", ID: 24, Op: opSaw, Name: "m/0", Token: 11, Mode: shared, Count: 1, Reason: "1.0#1", Value: 13, Start: ms(1021), End: ms(1021)},
		{Process: "0.0", ID: 25, Op: opSaw, Name: "m/0", Token: 12, Count: 1, Reason: "0.0#3", Value: 14, Start: ms(1031), End: ms(1031)},
		{Process: "0.0", ID: 26, Op: opSaw, Name: "m/0", Value: 18, Start: ms(1051), End: ms(1051)},
		{Process: "0.0", ID: 27, Op: opSaw, Name: "m/1", Token: 15, Mode: 2, Count: 2, Reason: "1.0#2", Value: 18, Start: ms(1051), End: ms(1051)},
		{Process: "0.0", ID: 28, Op: opSaw, Name: "m/1", Token: 16, Mode: 3, Count: 1, Reason: "1.0#3", Value: 19, Start: ms(1071), End: ms(1071)},
		{Process: "0.0", ID: 29, Op: opSaw, Name: "m/1", Value: 20, Start: ms(1081), End: ms(1081)},
		{Process: "0.0", ID: 30, Op: opHolders, Name: "m/0", Tokens: []int64{10, 11}, Start: ms(1012), End: ms(1014)},
		{Process: "0.0", ID: 31, Op: opCached, Name: "m/1", Tokens: []int64{15, 16}, Value: 18, Until: 18, Start: ms(1060), End: ms(1060), Age: int64(5 * time.Millisecond)},
		{Process: "0.0", ID: 32, Op: opBye, Start: ms(20_500), End: ms(20_500)},
	})
	h.add(&lifetime{name: "1.0", slot: 1, span: span{From: ms(900)}}, []call{
		{Process: "1.0", ID: 1, Op: opLock, Name: "m/0", Mode: shared, Token: 11, Start: ms(1000), End: ms(1013), Outcome: ok},
		{Process: "1.0", ID: 4, Op: opUnlock, Hold: 1, Start: ms(1028), End: ms(1031), Outcome: ok},
		{Process: "1.0", ID: 2, Op: opLock, Name: "m/1", Mode: 2, Token: 15, Start: ms(1030), End: ms(1053), Outcome: ok},
		{Process: "1.0", ID: 3, Op: opLock, Name: "m/1", Mode: 3, Token: 16, Start: ms(1030), End: ms(1053), Outcome: ok},
		{Process: "1.0", ID: 5, Op: opUnlock, Hold: 2, Start: ms(1068), End: ms(1071), Outcome: ok},
		{Process: "1.0", ID: 6, Op: opUnlock, Hold: 3, Start: ms(1078), End: ms(1081), Outcome: ok},
		{Process: "1.0", ID: 7, Op: opBye, Start: ms(20_500), End: ms(20_500)},
	})
	h.setChanges(mixedChanges())
	return h
}

func mixedChanges() []change {
	return []change{
		{10, ms(1009), []event{{Key: readerA, Created: 10, Lease: 1, Value: "0.0#1"}}},
		{11, ms(1011), []event{{Key: readerB, Created: 11, Lease: 2, Value: "1.0#1"}}},
		{12, ms(1015), []event{{Key: writer0, Created: 12, Lease: 1, Value: "0.0#3"}, {Key: writer1, Created: 12, Lease: 1, Value: "0.0#3"}}},
		{13, ms(1020), []event{{Key: readerA, Deleted: true}}},
		{14, ms(1030), []event{{Key: readerB, Deleted: true}}},
		{15, ms(1032), []event{{Key: twoB, Created: 15, Lease: 2, Value: "1.0#2"}}},
		{16, ms(1034), []event{{Key: threeB, Created: 16, Lease: 2, Value: "1.0#3"}}},
		{17, ms(1038), []event{{Key: elementKey("m/0", "0.0#9"), Created: 17, Value: "12"}}},
		{18, ms(1050), []event{{Key: writer0, Deleted: true}, {Key: writer1, Deleted: true}}},
		{19, ms(1070), []event{{Key: twoB, Deleted: true}}},
		{20, ms(1080), []event{{Key: threeB, Deleted: true}}},
	}
}

// setChanges makes the changes the ground truth. The revision was read before and after each.
func (h *history) setChanges(changes []change) {
	var ticks []tick
	for _, c := range changes {
		before := c.At.add(-time.Millisecond)
		ticks = append(ticks, tick{before, before, c.Revision - 1}, tick{c.At, c.At, c.Revision})
	}
	h.truth = newTruth(changes, ticks)
}

// editMixed replaces the changes of mixedChanges by what f makes of them.
func (h *history) editMixed(f func([]change) []change) { h.setChanges(f(mixedChanges())) }

// without returns the changes without the events of a key.
func without(all []change, key string) []change {
	for i := range all {
		all[i].Events = slices.DeleteFunc(all[i].Events, func(e event) bool { return e.Key == key })
	}
	return all
}

func TestRule_AnEntryHoldsIfItAndAllAheadOfItMayHoldTogether(t *testing.T) {
	t.Parallel()
	for queue, want := range map[string]int{
		"":             0,
		"a":            1,
		"a b":          1,
		"~/a ~/b ~/c":  3,
		"~/a b ~/c":    1,
		"a ~/b ~/c":    1,
		"a~2 b~2 c~2":  2,
		"a~3 b~2 c~3":  2,
		"a~2 b~3 c~3":  2,
		"a~3 b~3 c~2":  2, // the third would be in larger company than it asked for
		"a~3 b c~3":    1,
		"a~2 ~/b c~2":  1,
		"~/a b~2 ~/c":  1,
		"a.2~3 b.2~3":  2,
		"~/a.2 ~/b":    2,
		"a~1 b":        1, // no limit: an entry of another program
		"a~x b~2":      1,
		"foreign a~2":  1,
		"a~1000 b~999": 2,
	} {
		var entries []*entry
		for _, member := range strings.Fields(queue) {
			entries = append(entries, &entry{Mode: modeOf(queueOf("m/0") + member)})
		}
		if got := holding(entries); got != want {
			t.Errorf("%q: %d hold, want %d", queue, got, want)
		}
	}
}

func TestChecks_FindNothingInASoundHistoryOfAllModes(t *testing.T) {
	t.Parallel()
	for _, v := range judge(mixed()) {
		t.Errorf("%s: %s", v.Invariant, v.Text)
	}
}

func TestChecks_SharedEntriesOfOneTransactionMayHaveTheSameToken(t *testing.T) {
	t.Parallel()
	h := mixed()
	h.editMixed(func(all []change) []change {
		all[1].Events = append(all[1].Events, event{Key: readerA, Created: 11, Lease: 1, Value: "0.0#1"})
		return all[1:]
	})
	h.find("0.0", 1).Token, h.find("0.0", 1).End = 11, ms(1013)
	h.find("0.0", 22).Token = 11
	h.find("0.0", 22).Reason = "1.0#1"
	h.find("0.0", 24).Reason = "1.0#1"
	h.find("0.0", 30).Tokens = []int64{11, 11}
	h.calls = slices.DeleteFunc(h.calls, func(c call) bool { return c.ref() == "0.0#21" })
	for _, v := range judge(h) {
		t.Errorf("%s: %s", v.Invariant, v.Text)
	}
}

// brokenMixed has edits of a sound history, and the check that must find each.
var brokenMixed = map[string]struct {
	check func(*history) []violation
	spoil func(h *history)
}{
	"a writer beside readers": {checkOverlaps, func(h *history) { h.find("0.0", 3).End = ms(1020) }},
	"a reader beside a writer": {checkOverlaps, func(h *history) {
		h.find("1.0", 4).Start = ms(1040)
	}},
	"two writers at once": {checkOverlaps, func(h *history) {
		h.find("1.0", 2).Mode, h.find("1.0", 3).Mode = exclusive, exclusive
	}},
	"a writer of two names beside others of the second": {checkOverlaps, func(h *history) { h.find("0.0", 4).Start = ms(1060) }},
	"one more than the limit": {checkOverlaps, func(h *history) {
		h.addCall(call{Process: "0.0", ID: 40, Op: opLock, Name: "m/1", Mode: 3, Token: 17, Start: ms(1030), End: ms(1055), Outcome: ok})
	}},
	"larger company than one of them asked for": {checkOverlaps, func(h *history) {
		h.find("1.0", 2).Mode = 3
		h.find("1.0", 3).Mode = 3
		h.addCall(call{Process: "0.0", ID: 40, Op: opLock, Name: "m/1", Mode: 2, Token: 17, Start: ms(1030), End: ms(1055), Outcome: ok})
	}},
	"a writer that was not due": {checkHeads, func(h *history) { h.find("0.0", 3).End = ms(1028) }},
	"a reader behind a waiting writer": {checkHeads, func(h *history) {
		h.editMixed(func(all []change) []change {
			all[1], all[2] = all[2], all[1]
			all[1].Revision, all[2].Revision = 11, 12
			return all
		})
		h.find("0.0", 3).Token = 12
	}},
	"a limited one that was not due": {checkHeads, func(h *history) {
		h.editMixed(func(all []change) []change {
			all[6].Events[0].Key = lockPrefix + "m%2F1/b.2"
			return all
		})
		h.find("1.0", 3).Mode = exclusive
	}},
	"another mode than that of its entry": {checkHeads, func(h *history) { h.find("1.0", 3).Mode = 2 }},
	"two names, and an entry for one":     {checkHeads, func(h *history) { h.editMixed(func(all []change) []change { return without(all, writer1) }) }},
	"two names that were never held at once": {checkHeads, func(h *history) {
		h.editMixed(func(all []change) []change {
			all[8].Events = all[8].Events[:1]
			return slices.Insert(all, 3, change{13, ms(1016), []event{{Key: writer1, Deleted: true}}})
		})
	}},
	"two names with different tokens": {checkHeads, func(h *history) {
		h.editMixed(func(all []change) []change {
			all[2].Events[1].Created = 13
			all[3].Events = append(all[3].Events, all[2].Events[1])
			all[2].Events = all[2].Events[:1]
			return all
		})
	}},
	"a hold whose second entry is deleted": {checkLossReported, func(h *history) {
		h.editMixed(func(all []change) []change {
			all[8].Events = all[8].Events[:1]
			all[5].Events = append(all[5].Events, event{Key: writer1, Deleted: true})
			return all
		})
	}},
	"a guarded write without the second entry": {checkGuards, func(h *history) {
		h.editMixed(func(all []change) []change {
			all[8].Events = all[8].Events[:1]
			all[5].Events = append(all[5].Events, event{Key: writer1, Deleted: true})
			return all
		})
	}},
	"the same token for a writer and a reader": {checkTokens, func(h *history) { h.find("0.0", 3).Token = 11 }},
	"a smaller token for a later call":         {checkTokens, func(h *history) { h.find("1.0", 2).Start, h.find("1.0", 2).Token = ms(1033), 9 }},
	"a slot that is free for long": {checkHeadServed, func(h *history) {
		h.find("1.0", 3).End = ms(5000)
		h.editMixed(func(all []change) []change { all[9].At, all[10].At = ms(5080), ms(5090); return all })
	}},
	"an entry of the second name that is left": {checkCleanUp, func(h *history) {
		h.editMixed(func(all []change) []change {
			return append(without(all, writer1), change{21, ms(2000), []event{{Key: writer1, Created: 12, Value: "0.0#3"}}})
		})
		h.find("0.0", 3).Outcome = failed
	}},
	"an entry that another has deleted": {checkRemovals, func(h *history) {
		c := h.find("1.0", 5)
		c.Outcome, c.Reason = lost, "deleted"
	}},
	"a wrong number of holders":             {checkObservers, func(h *history) { h.find("0.0", 22).Count = 3 }},
	"the second oldest shown as the oldest": {checkObservers, func(h *history) { h.find("0.0", 27).Token = 16 }},
	"a wrong limit":                         {checkObservers, func(h *history) { h.find("0.0", 27).Mode = 3 }},
	"holders of a Client that are too many": {checkObservers, func(h *history) { h.find("0.0", 30).Tokens = []int64{10, 11, 12} }},
	"holders of a Client that are not the newest": {checkObservers, func(h *history) {
		c := h.find("0.0", 30)
		c.Start, c.End = ms(1041), ms(1042)
	}},
	"holders of a Cache that are too few":                {checkObservers, func(h *history) { h.find("0.0", 31).Tokens = []int64{15} }},
	"holders of a Cache that are not of its revision":    {checkObservers, func(h *history) { h.find("0.0", 31).Value, h.find("0.0", 31).Until = 19, 19 }},
	"holders of a Cache that are older than its age":     {checkObservers, func(h *history) { h.find("0.0", 31).Start, h.find("0.0", 31).End = ms(1079), ms(1079) }},
	"a name that nobody locks after the faults are over": {checkLiveness, func(h *history) { h.mixed = 3 }},
}

func TestChecks_FindWhatIsWrongInEachMode(t *testing.T) {
	t.Parallel()
	for what, b := range brokenMixed {
		t.Run(what, func(t *testing.T) {
			t.Parallel()
			h := mixed()
			b.spoil(h)
			if len(b.check(h)) == 0 {
				t.Error("not found")
			}
		})
	}
}

func TestCheckRemovals_AnOperatorWhoDeletesOneOfTwoEntriesExcusesTheLossOfBoth(t *testing.T) {
	t.Parallel()
	h := mixed()
	h.addCall(call{Process: "0.0", ID: 40, Op: opEnded, Hold: 3, Start: ms(1047), End: ms(1047), Reason: "deleted"})
	if found := checkRemovals(h); len(found) == 0 {
		t.Error("nobody was allowed to delete the entries, which was not found")
	}
	h.firings = []firing{{fault: fault{Kind: "delete-entry"}, Name: "m/1", Key: writer1, Token: 12}}
	if found := checkRemovals(h); len(found) > 0 {
		t.Errorf("an operator deleted one of the entries, but: %v", found)
	}
	h.firings[0].Key = twoB
	if found := checkRemovals(h); len(found) == 0 {
		t.Error("another entry was deleted, which excuses nothing")
	}
}

func TestCheckOrder_OnlyThoseThatExcludeEachOtherAreServedInOrder(t *testing.T) {
	t.Parallel()
	for second, ordered := range map[mode]bool{2: false, 3: false, exclusive: true, shared: true} {
		h := mixed()
		h.find("1.0", 2).Start = ms(29_000) // long after the other, whose token is larger
		h.find("1.0", 3).Mode = second
		if found := checkOrder(h); len(found) > 0 != ordered {
			t.Errorf("a later one limited to 2 before one that is %v: found %v", second, found)
		}
	}
}

func TestTakeOvers_AWaiterForTwoNamesMayHaveToWaitForTheOther(t *testing.T) {
	t.Parallel()
	killed := func(spoil func([]change) []change) []takeOver {
		h := mixed()
		h.lifetimes["1.0"].To = ms(1027) // while it reads
		h.editMixed(spoil)
		all := slices.DeleteFunc(h.takeOvers(), func(o takeOver) bool { return o.from.Name != "m/0" })
		if len(all) != 1 {
			t.Errorf("%d take-overs of m/0, want 1", len(all))
		}
		return all
	}
	for _, o := range killed(func(all []change) []change { return all }) {
		if o.by == nil || o.by.ref() != "0.0#3" {
			t.Errorf("the writer of both names was due, but %+v took over", o.by)
		}
	}
	for _, o := range killed(func(all []change) []change {
		return slices.Insert(append(all, change{21, ms(1090), []event{{Key: writer1 + "-ahead", Deleted: true}}}), 0,
			change{9, ms(1000), []event{{Key: writer1 + "-ahead", Created: 9, Value: "foreign"}}})
	}) {
		if o.by != nil {
			t.Errorf("%+v took over although its other name was not free", o.by)
		}
	}
}
