package main

import (
	"bytes"
	"context"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/stats"
)

func TestScale_TablesAreMarkdown(t *testing.T) {
	t.Parallel()
	table := scaleTable{study: study{title: "Things", counted: "things", columns: []figure{"memory, bytes", "time, ms"}}}
	table.lines = [][]string{
		table.cells(0, figures{"time, ms": 0}),
		table.cells(1_000, figures{"memory, bytes": 612.4, "time, ms": 1.234, "another": 1}),
		table.cells(100_000, figures{"memory, bytes": 598, "time, ms": 0.0012}),
	}
	rep := &scaleReport{
		machine: testReport(t).Machine, quick: true, took: time.Minute,
		tables: []scaleTable{table, {study: study{title: "Nothing"}}},
		failed: []string{"Nothing (10, 1,000): no\nanswer"},
	}
	golden(t, "scale.md", rep.writeMarkdown)
}

func TestScale_QuickMeasuresMuchLess(t *testing.T) {
	t.Parallel()
	full, quick := studies(fullAmounts), studies(quickAmounts)
	for i, st := range quick {
		if len(st.sizes) == 0 || !slices.IsSorted(st.sizes) || !slices.IsSorted(full[i].sizes) {
			t.Errorf("%s: sizes %v and %v", st.title, st.sizes, full[i].sizes)
		}
		if most, fullMost := slices.Max(st.sizes), slices.Max(full[i].sizes); most > fullMost/100 {
			t.Errorf("%s: up to %d in a quick run, and up to %d in a full one", st.title, most, fullMost)
		}
	}
	for _, a := range []amounts{fullAmounts, quickAmounts} {
		if rest := waitsOf(a); rest > a.limit/2 {
			t.Errorf("pauses alone take %v of %v", rest, a.limit)
		}
		if a.sizeLimit > a.limit/2 {
			t.Errorf("one size may take %v of %v", a.sizeLimit, a.limit)
		}
	}
	if quickAmounts.limit > time.Minute || fullAmounts.limit > 6*time.Minute {
		t.Errorf("limits: %v and %v", quickAmounts.limit, fullAmounts.limit)
	}
}

// waitsOf returns how long a run waits without doing anything.
func waitsOf(a amounts) time.Duration {
	renewed, idle := len(a.locks)+len(a.clients), len(a.waiters)+len(a.watchers)
	return time.Duration(renewed+idle)*a.settle + time.Duration(renewed)*a.renewalTime() + time.Duration(idle)*(a.idle+a.busy)
}

func TestScale_IsNotCombinedWithFlagsOfTheRows(t *testing.T) {
	t.Parallel()
	for _, args := range [][]string{{"-row", "P1"}, {"-members", "3"}, {"-endpoints", "http://nowhere"}, {"-out", "results"}} {
		_, err := parse(append([]string{"-scale"}, args...), &bytes.Buffer{})
		if err == nil || !strings.Contains(err.Error(), args[0]) {
			t.Errorf("-scale with %v: %v", args, err)
		}
	}
	s, err := parse([]string{"-quick", "-scale", "-etcd", "etcd"}, &bytes.Buffer{})
	if err != nil || !s.scale || !s.quick || s.program != "etcd" {
		t.Errorf("settings: %+v, %v", s, err)
	}
}

func TestScale_ReportsWhatCannotBeMeasured(t *testing.T) {
	t.Parallel()
	r := fakeRunner()
	r.etcd.Dir, r.etcd.Program = t.TempDir(), "no-such-program"
	rep, err := r.measureScale(testContext(t), quickAmounts)
	if err != nil {
		t.Fatal(err)
	}
	if len(rep.failed) != len(rep.tables) || len(rep.tables) != 4 {
		t.Errorf("%d tables, failed: %q", len(rep.tables), rep.failed)
	}
	for i, table := range rep.tables {
		if len(table.lines) > 0 {
			t.Errorf("%s has lines: %v", table.title, table.lines)
		}
		for _, want := range []string{table.title, thousands(slices.Max(table.sizes)), "no-such-program"} {
			if !strings.Contains(rep.failed[i], want) {
				t.Errorf("%q lacks %q", rep.failed[i], want)
			}
		}
	}
	if left, err := os.ReadDir(r.etcd.Dir); err != nil || len(left) > 0 {
		t.Errorf("left behind: %v, %v", left, err)
	}
}

func TestScale_EndsWhenItIsInterrupted(t *testing.T) {
	t.Parallel()
	r := fakeRunner()
	r.etcd.Dir, r.etcd.Program = t.TempDir(), "no-such-program"
	ctx, interrupt := context.WithCancel(t.Context())
	interrupt()
	if rep, err := r.measureScale(ctx, quickAmounts); err == nil {
		t.Errorf("an interrupted run returned %+v", rep)
	}
}

func TestThousands_AreSeparated(t *testing.T) {
	t.Parallel()
	for n, want := range map[int]string{0: "0", 10: "10", 999: "999", 1_000: "1,000", 12_345: "12,345", 1_000_007: "1,000,007"} {
		if got := thousands(n); got != want {
			t.Errorf("%d: got %s, want %s", n, got, want)
		}
	}
}

func TestRelay_EndsAfterEnoughHandOversAndEnoughTime(t *testing.T) {
	t.Parallel()
	start := time.Now()
	at := func(ms int) time.Time { return start.Add(time.Duration(ms) * time.Millisecond) }
	r := newRelay("a", 3, 100*time.Millisecond)
	r.start(start)
	for i, ms := range []int{10, 30, 60, 99} {
		if !r.pass(at(ms)) {
			t.Fatalf("it ended with hand-over %d", i+1)
		}
	}
	interrupted, interrupt := context.WithCancel(t.Context())
	interrupt()
	if err := r.wait(interrupted); err == nil {
		t.Error("it ended too early")
	}
	if r.pass(at(100)) || r.pass(at(110)) {
		t.Error("it went on")
	}
	if err := r.wait(testContext(t)); err != nil {
		t.Error(err)
	}
	if want := []float64{10, 20, 30, 39, 1}; !slices.Equal(r.times, want) {
		t.Errorf("times: %v, want %v", r.times, want)
	}
	few := newRelay("a", 2, 0)
	few.start(start)
	if !few.pass(at(1000)) || few.pass(at(1001)) {
		t.Error("the number of hand-overs did not count")
	}
}

func TestAudience_NotesTheLastThatHasSeenAChange(t *testing.T) {
	t.Parallel()
	w := newAudience(2)
	w.saw(0) // the value at the beginning
	for _, value := range []int64{1, 2} {
		w.expect(value)
		w.saw(value)
		w.saw(value - 1) // late
		select {
		case <-w.last:
			t.Fatalf("value %d: one of two has seen it", value)
		default:
		}
		w.saw(value)
		<-w.last
	}
}

func TestCounters_WorkIsWhatIdlingDoesNotExplain(t *testing.T) {
	t.Parallel()
	idle := counters{seconds: 2, messages: 20, bytes: 2000, cpu: 0.5}
	got := counters{seconds: 4, messages: 100, bytes: 4100, cpu: 0.25}.beyond(idle)
	if want := (counters{seconds: 4, messages: 60, bytes: 100, cpu: 0}); got != want {
		t.Errorf("got %+v, want %+v", got, want)
	}
	if busy := idle.busy(); busy != 25 {
		t.Errorf("busy: %v %%", busy)
	}
}

func TestTraffic_CountsMessagesSentAndBytesInBothDirections(t *testing.T) {
	t.Parallel()
	var c traffic
	for _, event := range []stats.RPCStats{&stats.Begin{}, &stats.OutPayload{WireLength: 10}, &stats.InHeader{WireLength: 99}, &stats.InPayload{WireLength: 7}, &stats.End{}} {
		c.HandleRPC(c.TagRPC(t.Context(), nil), event)
	}
	if c.sent.Load() != 1 || c.bytes.Load() != 17 {
		t.Errorf("%d messages, %d bytes", c.sent.Load(), c.bytes.Load())
	}
}
