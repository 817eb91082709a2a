package main

import (
	"cmp"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"text/tabwriter"
)

// report holds the results of a run.
type report struct {
	Machine machine  `json:"machine"`
	Members int      `json:"members"` // 0 if the cluster was already running
	Quick   bool     `json:"quick"`
	Rounds  int      `json:"rounds"`
	Round   string   `json:"round"` // the duration of one that measures for a fixed time
	Took    string   `json:"took"`
	Results []result `json:"results"`
	Trouble []string `json:"trouble,omitempty"` // errors of rows and peers
	Failed  []string `json:"-"`                 // rows without results; not part of any file
}

// number formats a figure with about three digits.
func number(x float64) string {
	switch {
	case x == 0:
		return "0"
	case x < 0.01:
		return strconv.FormatFloat(x, 'f', 4, 64)
	case x < 10:
		return strconv.FormatFloat(x, 'f', 2, 64)
	case x < 100:
		return strconv.FormatFloat(x, 'f', 1, 64)
	}
	return strconv.FormatFloat(x, 'f', 0, 64)
}

func (r result) figureOf(name string) string {
	if m := r.Sides[name]; m != nil {
		return number(m.Median)
	}
	return ""
}

// baseline returns the name of the side in the column of that name: the one that the
// figure is compared with or, if that is the floor or none, another side that is not a
// peer. It returns "" if there is none.
func (r result) baseline() string {
	if r.Against != "" && r.Against != floor {
		return r.Against
	}
	for _, name := range slices.Sorted(maps.Keys(r.Sides)) {
		if name != floor && name != ours && !slices.Contains(r.Peers, name) {
			return name
		}
	}
	return ""
}

var columns = []string{"", "work", "unit", floor, ours, "baseline", "ratio", "target", "met"}

func (r result) cells() []string {
	baseline := r.baseline()
	if baseline != "" {
		baseline = r.figureOf(baseline) + " " + baseline
	}
	ratio, met := "", ""
	if r.Against != "" {
		ratio = fmt.Sprintf("%s × %s", number(r.Ratio), r.Against)
	}
	if r.OfTimes {
		ratio += "'s time"
	}
	if r.Met != nil {
		met = "no"
		if *r.Met {
			met = "yes"
		}
	}
	return []string{r.Row, r.Work, r.Unit, r.figureOf(floor), r.figureOf(ours), baseline, ratio, r.Target, met}
}

// summary formats a result as one line of text.
func (r result) summary() string {
	cells := r.cells()
	text := fmt.Sprintf("%-4s %s: %s %s", r.Row, r.Work, r.figureOf(ours), r.Unit)
	if r.Against != "" {
		text += ", " + cells[6]
	}
	if r.Met != nil {
		text += fmt.Sprintf(" (%s: %s)", r.Target, cells[8])
	}
	return text
}

// peerTable returns the heading and the lines of the table of peers. There are no lines
// if no peer was measured.
func (rep *report) peerTable() (heading []string, lines [][]string) {
	var names []string
	for _, r := range rep.Results {
		names = append(names, r.Peers...)
	}
	slices.Sort(names)
	names = slices.Compact(names)
	heading = append([]string{"", "work", "unit", ours}, names...)
	for _, r := range rep.figures() {
		if len(r.Peers) == 0 {
			continue
		}
		cells := []string{r.Row, r.Work, r.Unit, r.figureOf(ours)}
		for _, name := range names {
			cells = append(cells, cmp.Or(r.figureOf(name), "–"))
		}
		lines = append(lines, cells)
	}
	return heading, lines
}

// figures returns one result for each figure of Locker: of those that differ only in what it
// is compared with, the first.
func (rep *report) figures() []result {
	return slices.CompactFunc(slices.Clone(rep.Results), func(a, b result) bool {
		return a.Row == b.Row && a.Unit == b.Unit && a.figureOf(ours) == b.figureOf(ours)
	})
}

func (rep *report) lines() [][]string {
	lines := make([][]string, len(rep.Results))
	for i, r := range rep.Results {
		lines[i] = r.cells()
	}
	return lines
}

// method describes how the figures were measured.
func (rep *report) method() string {
	cluster := "a new etcd process for each row"
	switch rep.Members {
	case 3:
		cluster = "three new etcd processes for each row"
	case 0:
		cluster = "on a cluster that was already running"
	}
	text := fmt.Sprintf("Medians of %d interleaved rounds of %s, %s.", rep.Rounds, rep.Round, cluster)
	if rep.Quick {
		text += " Quick run, for a first impression only."
	}
	return text
}

func (rep *report) writeText(w io.Writer) error {
	fmt.Fprintf(w, "\n%s\n%s\n\n", rep.Machine, rep.method())
	writeAligned(w, columns, rep.lines())
	if peers, lines := rep.peerTable(); len(lines) > 0 {
		fmt.Fprint(w, "\nother lock services, for comparison\n\n")
		writeAligned(w, peers, lines)
	}
	for _, trouble := range rep.Trouble {
		fmt.Fprintf(w, "\nfailed: %s\n", trouble)
	}
	_, err := fmt.Fprintf(w, "\ntook %s\n", rep.Took)
	return err
}

func writeAligned(w io.Writer, heading []string, lines [][]string) {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	for _, cells := range append([][]string{heading}, lines...) {
		fmt.Fprintln(t, strings.Join(cells, "\t"))
	}
	_ = t.Flush() // an error of w shows again when the last line is written
}

// writeMarkdown writes the report as Markdown tables.
func (rep *report) writeMarkdown(w io.Writer) error {
	var b strings.Builder
	writePiped(&b, columns, rep.lines())
	if peers, lines := rep.peerTable(); len(lines) > 0 {
		b.WriteString("\nOther lock services on the same machine, for comparison:\n\n")
		writePiped(&b, peers, lines)
	}
	for _, trouble := range rep.Trouble {
		fmt.Fprintf(&b, "\nFailed: %s\n", strings.ReplaceAll(trouble, "\n", " "))
	}
	fmt.Fprintf(&b, "\n%s %s.\n", rep.method(), rep.Machine)
	_, err := io.WriteString(w, b.String())
	return err
}

func writePiped(b *strings.Builder, heading []string, lines [][]string) {
	fmt.Fprintf(b, "| %s |\n|%s\n", strings.Join(heading, " | "), strings.Repeat("---|", len(heading)))
	for _, cells := range lines {
		fmt.Fprintf(b, "| %s |\n", strings.Join(cells, " | "))
	}
}

func (rep *report) writeJSON(w io.Writer) error {
	e := json.NewEncoder(w)
	e.SetIndent("", "  ")
	return e.Encode(rep)
}

// writeFiles writes the report to dir in all formats. That of three members has files of its
// own.
func (rep *report) writeFiles(dir string) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	name := "results"
	if rep.Members == 3 {
		name = "results-3"
	}
	for extension, write := range map[string]func(io.Writer) error{
		".json": rep.writeJSON,
		".md":   rep.writeMarkdown,
		".svg":  rep.writeChart,
	} {
		var b strings.Builder
		if err := write(&b); err != nil {
			return fmt.Errorf("%s%s: %w", name, extension, err)
		}
		if err := os.WriteFile(filepath.Join(dir, name+extension), []byte(b.String()), 0o644); err != nil {
			return err
		}
	}
	return nil
}
