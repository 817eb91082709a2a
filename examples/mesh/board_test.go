package main

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/jagregory/locker/v2"
)

func TestTheLogKeepsTheLastChanges(t *testing.T) {
	t.Parallel()
	e := newExhibit(t, 0)
	for i := range remembered {
		e.up(fmt.Sprintf("a%d", i), record{})
	}
	first := e.board.log[0]
	if n := len(e.board.log); n != remembered {
		t.Errorf("%d changes, want %d", n, remembered)
	}
	early := fmt.Sprintf("%s-%d", e.board.epoch, first.Version-1)
	if _, ok := e.board.resume(early); !ok {
		t.Error("what came after the beginning is not remembered")
	}
	e.down("a0")
	if n := len(e.board.log); n != remembered || e.board.log[0] == first {
		t.Errorf("%d changes, beginning with %+v", n, e.board.log[0])
	}
	if _, ok := e.board.resume(early); ok {
		t.Error("what came after the beginning is said to be remembered, and is not")
	}
	last := e.board.log[remembered-1]
	if last.Service != "a0" || last.Text != "down by itself" || last.Revision != e.revision-1 {
		t.Errorf("the last change: %+v", last)
	}
}

func TestSinceIsWhenTheConditionBegan(t *testing.T) {
	t.Parallel()
	long := time.Now().Add(-time.Hour).UTC()
	e := newExhibit(t, 0)
	e.up("a", record{Since: long})
	v, _ := e.board.now(0)
	if got := v.Services[0].Since; time.Since(got) > patience {
		t.Errorf("the dashboard saw it come up, but says %v", got)
	}
	e.up("b", record{})
	if later, _ := e.board.now(0); !later.Services[0].Since.Equal(v.Services[0].Since) {
		t.Errorf("up since %v, and later since %v", v.Services[0].Since, later.Services[0].Since)
	}
	e.down("a")
	v, _ = e.board.now(0)
	if s := v.Services[0]; s.Since.Before(long) || s.Token != 102 || s.Held {
		t.Errorf("down: %+v", s)
	}

	found := newBoard()
	holder := func(prefix string) locker.State {
		return locker.State{Holder: locker.Holder{Name: prefix + "a", Value: record{Since: long}.String(), Token: 5}, Held: true}
	}
	found.take(time.Now(), holder(readyPrefix), holder(servingPrefix))
	if v, _ := found.now(0); !v.Services[0].Since.Equal(long) {
		t.Errorf("the dashboard found it up, but says %v", v.Services[0].Since)
	}
}

func TestTheHeadlineSaysWhatIsWrong(t *testing.T) {
	t.Parallel()
	e := newExhibit(t, 0)
	want := func(headline string) {
		t.Helper()
		if v, _ := e.board.now(0); v.Headline() != headline {
			t.Errorf("%q, want %q", v.Headline(), headline)
		}
	}
	want("No service has been seen yet.")
	e.up("a", record{})
	want("The one service is up.")
	e.up("b", record{})
	want("All 2 services are up.")
	e.up("c", record{Needs: []string{"d"}})
	want("d was never seen.")
	e.up("d", record{})
	e.waits("d")
	want("2 of 4 services are up; 1 is about to serve.") // c is degraded
	e.up("d", record{})
	e.down("a")
	want("a is down.")
	e.down("b")
	want("a and b are down.")
	e.up("e", record{Needs: []string{"a"}, Cascade: true})
	e.waits("e")
	want("a and b are down, and because of that 1 more.")
	e.up("f", record{Needs: []string{"b"}, Cascade: true})
	e.waits("f")
	want("a and b are down, and because of that 2 more.")
	e.waits("c")
	e.waits("d")
	want("a and b are down, and because of that 2 more; 2 are about to serve.")
	e.up("b", record{})
	want("a is down, and because of that 1 more; 3 are about to serve.")
	e.up("a", record{})
	want("2 of 6 services are up; 4 are about to serve.")
	e.up("g", record{Needs: []string{"h"}, Cascade: true})
	e.waits("g")
	want("h was never seen, and because of that 1 is down; 4 are about to serve.")
	e.down("a")
	want("h was never seen, a is down, and because of that 2 more; 3 are about to serve.")
}

func TestWhatGoesBetweenTwoLooksIsShownDown(t *testing.T) {
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
	for _, look := range []struct {
		now      []locker.Holder
		revision int64
		want     condition
		says     string
	}{
		{holders(5, "a", "b"), 8, up, "up"},
		{holders(5, "b"), 10, down, "down by itself"},
		{holders(11, "a", "b"), 14, up, "up"},
		{holders(15, "a", "b"), 18, up, "held anew, at "}, // it was down in between
	} {
		b.take(time.Now(), differences(before, look.now, look.revision)...)
		before = look.now
		v, _ := b.now(0)
		i := slices.IndexFunc(v.Log, func(c change) bool { return c.Service == "a" })
		if got := v.Services[0]; got.Condition != look.want || v.Log[i].Text != look.says || v.Log[i].Revision != look.revision {
			t.Errorf("at revision %d a is %s, and the log says %+v; want %s, %q", look.revision, got.Condition, v.Log[i], look.want, look.says)
		}
	}
	if states := differences(before, before, 20); len(states) > 0 {
		t.Errorf("nothing has changed, but %v", states)
	}
}
