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

var update = flag.Bool("update", false, "write the files in testdata anew")

func testReport(t *testing.T) *report {
	t.Helper()
	rep := &report{
		Machine: machine{CPU: "A Processor", Cores: 2, MemoryGiB: 8, Disk: "ext4 on sda", SyncMs: 1.5, Kernel: "linux 6.1", Go: "1.26", Etcd: "3.7.3", Date: "2026-01-02"},
		Members: 1, Rounds: 2, Round: "3s", Took: "1m0s",
		Trouble: []string{"P0: another: gave no answer"},
	}
	for _, l := range []line{
		{figure: rate, unit: "locks/s", against: mutual, target: atLeast(4)},
		{what: "time", figure: p50, unit: "µs", against: floor, target: atMost(1.2)},
		{what: "of itself", figure: p50, unit: "µs", target: atMost(20)},
	} {
		res, err := resultOf(testRow, l, rounds)
		if err != nil {
			t.Fatal(err)
		}
		rep.Results = append(rep.Results, res)
	}
	return rep
}

// golden compares what write writes with a file.
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
		t.Errorf("%s should be\n%s\nbut is\n%s", name, want, b.String())
	}
}

func TestTheTableIsAlignedForATerminal(t *testing.T) {
	t.Parallel()
	golden(t, "table.txt", testReport(t).writeText)
}

func TestTheTableIsMarkdownForAReadme(t *testing.T) {
	t.Parallel()
	golden(t, "table.md", testReport(t).writeMarkdown)
}

func TestTheJSONHasEachRound(t *testing.T) {
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

func TestTheChartIsWholeAndHasABackgroundOfItsOwn(t *testing.T) {
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

func TestAChartOfNothingIsEmpty(t *testing.T) {
	t.Parallel()
	if err := (&report{}).writeChart(io.Discard); err != nil {
		t.Error(err)
	}
}
