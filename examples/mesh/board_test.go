package main

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/jagregory/locker/v2"
)

func TestLog_KeepsTheLatestChanges(t *testing.T) {
	t.Parallel()
	d := newTestDashboard(t, 0)
	for i := range maxChanges {
		d.up(fmt.Sprintf("a%d", i), record{})
	}
	first := d.board.log[0]
	if n := len(d.board.log); n != maxChanges {
		t.Errorf("%d changes, want %d", n, maxChanges)
	}
	early := fmt.Sprintf("%s-%d", d.board.epoch, first.Version-1)
	if _, ok := d.board.resume(early); !ok {
		t.Error("the changes since the beginning are not in the log")
	}
	d.down("a0")
	if n := len(d.board.log); n != maxChanges || d.board.log[0] == first {
		t.Errorf("%d changes, the first of which is %+v", n, d.board.log[0])
	}
	if _, ok := d.board.resume(early); ok {
		t.Error("resume claims that the log has all changes since the beginning")
	}
	last := d.board.log[maxChanges-1]
	if last.Service != "a0" || last.Text != "down: not ready" || last.Revision != d.revision-1 {
		t.Errorf("wrong last change: %+v", last)
	}
}

func TestSince_IsWhenTheConditionBegan(t *testing.T) {
	t.Parallel()
	long := time.Now().Add(-time.Hour).UTC()
	d := newTestDashboard(t, 0)
	d.up("a", record{Since: long})
	v, _ := d.board.snapshot(0)
	if got := v.Services[0].Since; time.Since(got) > testTimeout {
		t.Errorf("up since %v, but the dashboard saw it come up just now", got)
	}
	d.up("b", record{})
	if later, _ := d.board.snapshot(0); !later.Services[0].Since.Equal(v.Services[0].Since) {
		t.Errorf("up since %v, later since %v", v.Services[0].Since, later.Services[0].Since)
	}
	d.down("a")
	v, _ = d.board.snapshot(0)
	if s := v.Services[0]; s.Since.Before(long) || s.Token != 102 || s.Held {
		t.Errorf("down: %+v", s)
	}

	b := newBoard()
	holder := func(prefix string) locker.State {
		return locker.State{Holder: locker.Holder{Name: prefix + "a", Value: record{Since: long}.String(), Token: 5}, Held: true}
	}
	b.apply(time.Now(), holder(readyPrefix), holder(servingPrefix))
	if v, _ := b.snapshot(0); !v.Services[0].Since.Equal(long) {
		t.Errorf("up since %v, want the time in the record", v.Services[0].Since)
	}
}

func TestHeadline_NamesTheCausesAndCountsTheRest(t *testing.T) {
	t.Parallel()
	d := newTestDashboard(t, 0)
	want := func(headline string) {
		t.Helper()
		if v, _ := d.board.snapshot(0); v.Headline() != headline {
			t.Errorf("%q, want %q", v.Headline(), headline)
		}
	}
	want("No service has been seen yet.")
	d.up("a", record{})
	want("The only service is up.")
	d.up("b", record{})
	want("All 2 services are up.")
	d.up("c", record{Needs: []string{"d"}})
	want("d has never been seen.")
	d.up("d", record{})
	d.stopServing("d")
	want("2 of 4 services are up; 1 is about to serve.") // c is degraded
	d.up("d", record{})
	d.down("a")
	want("a is down.")
	d.down("b")
	want("a and b are down.")
	d.up("e", record{Needs: []string{"a"}, Cascade: true})
	d.stopServing("e")
	want("a and b are down, and 1 more because of them.")
	d.up("f", record{Needs: []string{"b"}, Cascade: true})
	d.stopServing("f")
	want("a and b are down, and 2 more because of them.")
	d.stopServing("c")
	d.stopServing("d")
	want("a and b are down, and 2 more because of them; 2 are about to serve.")
	d.up("b", record{})
	want("a is down, and 1 more because of it; 3 are about to serve.")
	d.up("a", record{})
	want("2 of 6 services are up; 4 are about to serve.")
	d.up("g", record{Needs: []string{"h"}, Cascade: true})
	d.stopServing("g")
	want("h has never been seen, and 1 service is down because of it; 4 are about to serve.")
	d.down("a")
	want("h has never been seen, a is down, and 2 more because of them; 3 are about to serve.")
}

func TestDifferences_ShowAServiceThatIsGoneAsDown(t *testing.T) {
	t.Parallel()
	holders := func(token int64, names ...string) []locker.Holder {
		var holders []locker.Holder
		for _, name := range names {
			holders = append(holders, locker.Holder{Name: readyPrefix + name, Token: token}, locker.Holder{Name: servingPrefix + name, Token: token + 1})
		}
		return holders
	}
	b := newBoard()
	var before []locker.Holder
	for _, step := range []struct {
		now      []locker.Holder
		revision int64
		want     condition
		text     string
	}{
		{holders(5, "a", "b"), 8, up, "up"},
		{holders(5, "b"), 10, down, "down: not ready"},
		{holders(11, "a", "b"), 14, up, "up"},
		{holders(15, "a", "b"), 18, up, "held again, at "}, // it was down in between
	} {
		b.apply(time.Now(), differences(before, step.now, step.revision)...)
		before = step.now
		v, _ := b.snapshot(0)
		i := slices.IndexFunc(v.Log, func(c change) bool { return c.Service == "a" })
		if got := v.Services[0]; got.Condition != step.want || v.Log[i].Text != step.text || v.Log[i].Revision != step.revision {
			t.Errorf("at revision %d, a is %s with log entry %+v; want %s, %q", step.revision, got.Condition, v.Log[i], step.want, step.text)
		}
	}
	if states := differences(before, before, 20); len(states) > 0 {
		t.Errorf("nothing has changed, but there are differences: %v", states)
	}
}
