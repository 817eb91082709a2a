package ui

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/jagregory/locker/v2"
)

func held(name string, token int64) locker.Entry {
	return locker.Entry{Holder: locker.Holder{Name: name, Token: token, Lease: 1, Limit: 1}, Key: fmt.Sprintf("locker/%s/%d", name, token), Held: true}
}

func TestBoard_KeepsOnlySoManyChangesOfSoManyNames(t *testing.T) {
	t.Parallel()
	b, now := newBoard(), time.Now()
	b.apply(now, nil)
	for i := range 3 * maxChanges {
		now = now.Add(time.Second)
		b.apply(now, []locker.Entry{held("busy", int64(i+1))})
	}
	changes := b.history("busy")
	if n := len(changes); n != maxChanges || changes[0].Token != 3*maxChanges {
		t.Errorf("%d changes, the newest of token %d", n, changes[0].Token)
	}
	for round := range 3 {
		entries := make([]locker.Entry, maxHistories)
		for i := range entries {
			entries[i] = held(fmt.Sprintf("name-%d-%06d", round, i), int64(i+1))
		}
		now = now.Add(time.Second)
		b.apply(now, entries)
		if n := len(b.histories); n > maxHistories {
			t.Errorf("%d histories", n)
		}
	}
}

func TestBoard_ChangesKeepOnlyTheBeginningOfValues(t *testing.T) {
	t.Parallel()
	b, now := newBoard(), time.Now()
	b.apply(now, nil)
	for i, value := range []string{strings.Repeat("ü", valueKept), strings.Repeat("ü", 1<<20)} {
		e := held("a", 1)
		e.Value, e.Owner = value, locker.Owner{Host: "db1", PID: 7, Program: strings.Repeat("p", 1<<20)}
		b.apply(now.Add(time.Duration(i+1)*time.Second), []locker.Entry{e})
	}
	changes, most := b.history("a"), strings.Repeat("ü", valueKept)
	if len(changes) != 2 || changes[0].Value != most+"…" || changes[1].Value != most {
		t.Fatalf("%+v", changes)
	}
	if c := changes[0]; c.What != "value" || c.Owner != "db1:7 ("+strings.Repeat("p", valueKept)+"…)" {
		t.Errorf("%+v", c)
	}
}

func TestBoard_IsAsTheLatestLookHasFoundIt(t *testing.T) {
	t.Parallel()
	b, now := newBoard(), time.Now()
	b.apply(now, []locker.Entry{held("a", 1)})
	first := b.picture()
	b.apply(now.Add(2*time.Second), []locker.Entry{held("a", 1), held("b", 2)})
	b.apply(now.Add(time.Second), nil) // it began earlier, and was slower
	select {
	case <-first.changed:
	default:
		t.Error("no change was reported")
	}
	second := b.picture()
	if len(second.names) != 2 || second.names[0].Seats[0].Exact || !second.names[1].Seats[0].Exact {
		t.Errorf("%+v", second.names)
	}
	b.apply(now.Add(3*time.Second), []locker.Entry{held("a", 1), held("b", 2)})
	select {
	case <-second.changed:
		t.Error("a change was reported, though there is none")
	default:
	}
	waiting := held("b", 3)
	waiting.Held = false
	b.apply(now.Add(4*time.Second), []locker.Entry{held("b", 2), waiting})
	b.apply(now.Add(9*time.Second), []locker.Entry{held("b", 3)})
	if names := b.picture().names; len(names) != 1 || !names[0].Seats[0].Since.Equal(now.Add(9*time.Second)) {
		t.Errorf("%+v", names)
	}
	if a, changes := b.history("a"), b.history("b"); len(a) != 1 || a[0].What != "gone" || len(changes) != 3 || changes[0].What != "holds" || changes[0].Token != 3 {
		t.Errorf("%+v, %+v", a, changes)
	}
}

func TestLasting_IsAsPeopleSayIt(t *testing.T) {
	t.Parallel()
	for d, want := range map[time.Duration]string{
		-time.Second: "0 s", 1500 * time.Millisecond: "1 s", time.Minute: "1 min", 59*time.Minute + 59*time.Second: "59 min",
		time.Hour + 5*time.Minute: "1 h 5 min", 49*time.Hour + time.Minute: "2 d 1 h",
	} {
		if got := lasting(d); got != want {
			t.Errorf("%v is %q, want %q", d, got, want)
		}
	}
}
