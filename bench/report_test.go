package main

import (
	"encoding/json"
	"encoding/xml"
	"errors"
	"flag"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

var update = flag.Bool("update", false, "rewrite the files in testdata")

func testReport(t *testing.T) *report {
	t.Helper()
	rep := &report{
		Machine: machine{CPU: "A Processor", Cores: 2, MemoryGiB: 8, Disk: "ext4 on sda", SyncMs: 1.5, Kernel: "linux 6.1", Go: "1.26", Etcd: "3.7.3", Date: "2026-01-02", Peers: []string{"Other 1.2 with fsync", "example.com/other v1.0.0"}},
		Members: 1, Rounds: 2, Round: "3s", Took: "1m0s",
		Trouble: []string{"P0: another: no answer"},
	}
	for _, l := range []line{
		{figure: rate, unit: "locks/s", against: etcdMutex, target: atLeast(4)},
		{figure: rate, unit: "locks/s", against: etcdMutex, ofTimes: true, target: atMost(0.2)},
		{what: "time", figure: p50, unit: "µs", against: floor, target: atMost(1.2)},
		{what: "without a ratio", figure: p50, unit: "µs", target: atMost(20)},
	} {
		res, err := newResult(testRow, l, testRounds)
		if err != nil {
			t.Fatal(err)
		}
		rep.Results = append(rep.Results, res)
	}
	return rep
}

// golden compares the output of write with a file in testdata.
func golden(t *testing.T, name string, write func(w io.Writer) error) {
	t.Helper()
	var b strings.Builder
	if err := write(&b); err != nil {
		t.Fatal(err)
	}
	file := filepath.Join("testdata", name)
	if *update {
		if err := os.WriteFile(file, []byte(b.String()), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if b.String() != string(want) {
		t.Errorf("%s: got\n%s\nwant\n%s", name, b.String(), want)
	}
}

func TestTable_IsAlignedInATerminal(t *testing.T) {
	t.Parallel()
	golden(t, "table.txt", testReport(t).writeText)
}

func TestTable_IsMarkdownInAFile(t *testing.T) {
	t.Parallel()
	golden(t, "table.md", testReport(t).writeMarkdown)
}

func TestJSON_HasEachRound(t *testing.T) {
	t.Parallel()
	var b strings.Builder
	if err := testReport(t).writeJSON(&b); err != nil {
		t.Fatal(err)
	}
	var got report
	if err := json.Unmarshal([]byte(b.String()), &got); err != nil {
		t.Fatal(err)
	}
	first := got.Results[0]
	if m := first.Sides[ours]; m == nil || m.Median != 400 || len(m.Rounds) != 2 || m.Rounds[1] != 500 {
		t.Errorf("Locker's figures: %+v", m)
	}
	if first.Ratio != 4 || first.Met == nil || !*first.Met || got.Machine.Cores != 2 {
		t.Errorf("got %+v", got)
	}
}

func TestChart_IsCompleteAndHasItsOwnBackground(t *testing.T) {
	t.Parallel()
	var b strings.Builder
	if err := testReport(t).writeChart(&b); err != nil {
		t.Fatal(err)
	}
	chart := b.String()
	for _, want := range []string{"fill:#FFFFFF", "P0  work", ">Locker<", ">Mutex<", ">other<", ">400<", ">1000<"} {
		if !strings.Contains(chart, want) {
			t.Errorf("the chart lacks %q", want)
		}
	}
	if n := strings.Count(chart, ">P0  work<"); n != 1 {
		t.Errorf("one rate is drawn %d times", n)
	}
	for d := xml.NewDecoder(strings.NewReader(chart)); ; {
		if _, err := d.Token(); errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			t.Fatal(err)
		}
	}
}

func TestChart_WithoutResultsIsEmpty(t *testing.T) {
	t.Parallel()
	if err := (&report{}).writeChart(io.Discard); err != nil {
		t.Error(err)
	}
}

func TestResults_OfThreeMembersHaveFilesOfTheirOwn(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	for _, members := range []int{1, 3} {
		rep := testReport(t)
		rep.Members = members
		if err := rep.writeFiles(dir); err != nil {
			t.Fatal(err)
		}
	}
	for _, name := range []string{"results.json", "results.md", "results.svg", "results-3.json", "results-3.md", "results-3.svg"} {
		if info, err := os.Stat(filepath.Join(dir, name)); err != nil || info.Size() == 0 {
			t.Errorf("%s: %v, %v", name, info, err)
		}
	}
}
