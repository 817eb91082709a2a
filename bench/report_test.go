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
		Machine: machine{CPU: "A Processor", Cores: 2, MemoryGiB: 8, Disk: "ext4 on sda", SyncMs: 1.5, Kernel: "linux 6.1", Go: "1.26", Etcd: "3.7.3", Date: "2026-01-02"},
		Members: 1, Rounds: 2, Round: "3s", Took: "1m0s",
		Trouble: []string{"P0: another: no answer"},
	}
	for _, l := range []line{
		{figure: rate, unit: "locks/s", against: etcdMutex, target: atLeast(4)},
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
	for _, want := range []string{"fill:#FFFFFF", "P0  work", ">Locker<", ">Mutex<", ">other<", "400 (4.00 ×)", ">1000<"} {
		if !strings.Contains(chart, want) {
			t.Errorf("the chart lacks %q", want)
		}
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
