package main

import (
	"bytes"
	"context"
	"errors"
	"math"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"google.golang.org/grpc/stats"
)

func TestScale_TablesAreMarkdown(t *testing.T) {
	t.Parallel()
	table := scaleTable{study: study{title: "Things", counted: "things", crowd: 10_000, columns: []figure{"memory, bytes", "time, ms"}}}
	table.lines = [][]string{
		table.cells(0, figures{"time, ms": 0}),
		table.cells(1_000, figures{"memory, bytes": 612.4, "time, ms": 1.234, "another": 1}),
		table.cells(100_000, figures{"memory, bytes": math.NaN(), "time, ms": 0.0012}),
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
	if quickAmounts.limit > time.Minute || fullAmounts.limit > 8*time.Minute {
		t.Errorf("limits: %v and %v", quickAmounts.limit, fullAmounts.limit)
	}
}

// waitsOf returns how long a run waits without doing anything.
func waitsOf(a amounts) time.Duration {
	renewed, idle := len(a.locks)+len(a.sessions)+len(a.clients), len(a.waiters)+len(a.watchers)
	return time.Duration(renewed+idle)*settling + time.Duration(renewed)*a.renewed + time.Duration(idle)*(a.idle+2*a.busy) +
		time.Duration(len(a.names))*a.sustained
}

func TestScale_MeasuresEachTableOnARealEtcd(t *testing.T) {
	t.Parallel()
	r := fakeRunner()
	r.etcd.Dir, r.etcd.Program = t.TempDir(), buildEtcd(t)
	rep, err := r.measureScale(testContext(t), amounts{
		locks: []int{20}, sessions: []int{2}, waiters: []int{4, 8}, clients: []int{0, 2}, watchers: []int{3}, names: []int{5},
		crowd: 4, renewed: 100 * time.Millisecond, idle: 100 * time.Millisecond, handOvers: 4, changes: 2, busy: 10 * time.Millisecond,
		sustained: 100 * time.Millisecond, sizeLimit: time.Minute, limit: testTimeout,
	})
	if err != nil || len(rep.failed) > 0 {
		t.Fatalf("%v, failed: %q", err, rep.failed)
	}
	for _, table := range rep.tables {
		if len(table.lines) != len(table.sizes) {
			t.Errorf("%s: %v", table.title, table.lines)
		}
		t.Log(table.headings(), table.lines)
	}
	if left, err := os.ReadDir(r.etcd.Dir); err != nil || len(left) > 0 {
		t.Errorf("left behind: %v, %v", left, err)
	}
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
	if len(rep.failed) != len(rep.tables) || len(rep.tables) != len(studies(quickAmounts)) {
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

func TestScale_PrintsWhatItHasWhenItIsInterrupted(t *testing.T) {
	t.Parallel()
	r := fakeRunner()
	r.etcd.Dir, r.etcd.Program = t.TempDir(), "no-such-program"
	ctx, interrupt := context.WithCancel(t.Context())
	interrupt()
	rep, err := r.measureScale(ctx, quickAmounts)
	if !errors.Is(err, context.Canceled) || rep == nil || len(rep.tables) != 1 || len(rep.failed) > 0 {
		t.Errorf("an interrupted run returned %+v, %v", rep, err)
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
	r := newRelay(t.Context(), "a", 3, 100*time.Millisecond)
	defer r.end()
	r.start(start)
	for i, ms := range []int{10, 30, 60, 99} {
		if !r.pass(at(ms)) {
			t.Fatalf("it ended with hand-over %d", i+1)
		}
	}
	select {
	case <-r.enough:
		t.Error("it ended too early")
	default:
	}
	if r.pass(at(100)) || r.pass(at(110)) {
		t.Error("it went on")
	}
	<-r.enough
	if want := []float64{10, 20, 30, 39, 1}; !slices.Equal(r.times, want) {
		t.Errorf("times: %v, want %v", r.times, want)
	}
	few := newRelay(t.Context(), "a", 2, 0)
	defer few.end()
	few.start(start)
	if !few.pass(at(1000)) || few.pass(at(1001)) {
		t.Error("the least number of hand-overs did not count")
	}
	most := newRelay(t.Context(), "a", 2, time.Hour)
	defer most.end()
	most.start(start)
	most.most = 3
	if !most.pass(at(1)) || !most.pass(at(2)) || most.pass(at(3)) {
		t.Error("the largest number of hand-overs did not count")
	}
}

func TestAudience_NotesTheLastThatHasSeenAChange(t *testing.T) {
	t.Parallel()
	w := newAudience(t.Context(), 2)
	defer w.end()
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
	idle := counters{seconds: 2, sent: 20, received: 10, bytes: 2000, etcd: 0.5}
	got := counters{seconds: 4, sent: 100, received: 50, bytes: 4100, etcd: 1.25, client: 1}.beyond(idle)
	if want := (counters{sent: 60, received: 30, bytes: 100, etcd: 0.25, client: 1}); got != want {
		t.Errorf("got %+v, want %+v", got, want)
	}
	if busy := idle.busy(); busy != 25 {
		t.Errorf("busy: %v %%", busy)
	}
}

func TestFigures_AreUnknownIfTheyCannotBeToldFromNoise(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		got  float64
		want float64 // 0 for unknown
	}{
		{grown(120, 100, 10, 4), 5},
		{grown(120, 100, 21, 4), 0},
		{grown(90, 100, 0, 4), 0},
		{caused(100, 60, 0, 3), 20},
		{caused(100, 19, 0, 3), 0},
		{caused(0.06, 0.04, cpuNoise, 3), 0},
	} {
		if math.IsNaN(test.got) != (test.want == 0) || test.want != 0 && test.got != test.want {
			t.Errorf("got %v, want %v", test.got, test.want)
		}
	}
}

func TestTraffic_CountsMessagesAndBytes(t *testing.T) {
	t.Parallel()
	var c traffic
	for _, event := range []stats.RPCStats{
		&stats.Begin{}, &stats.OutPayload{WireLength: 10}, &stats.InHeader{WireLength: 99}, &stats.InPayload{WireLength: 7},
		&stats.OutPayload{WireLength: 5, Payload: &pb.LeaseKeepAliveRequest{}}, &stats.OutPayload{WireLength: 3, Payload: &pb.RangeRequest{}}, &stats.End{},
	} {
		c.HandleRPC(c.TagRPC(t.Context(), nil), event)
	}
	if got := c.now(); got.sent != 3 || got.received != 1 || got.reads != 1 || got.bytes != 25 || c.renewals.Load() != 1 {
		t.Errorf("%+v, %d renewals", got, c.renewals.Load())
	}
}
