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

// report is what a run has found.
type report struct {
	Machine machine  `json:"machine"`
	Members int      `json:"members"` // 0: of a cluster that was running already
	Quick   bool     `json:"quick"`
	Rounds  int      `json:"rounds"`
	Round   string   `json:"round"` // how long one takes that takes its time
	Took    string   `json:"took"`
	Results []result `json:"results"`
	Trouble []string `json:"trouble,omitempty"` // what went wrong
	Failed  []string `json:"-"`                 // rows without results; they are written to no file
}

// number writes a figure with about three digits.
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

func (r result) figureOf(side string) string {
	if m := r.Sides[side]; m != nil {
		return number(m.Median)
	}
	return ""
}

// opponent returns the side in the column of that name: the one compared with, or another one that is
// there besides; "" for none.
func (r result) opponent() string {
	if r.Against != "" && r.Against != floor {
		return r.Against
	}
	for _, side := range slices.Sorted(maps.Keys(r.Sides)) {
		if side != floor && side != r.Of && !slices.Contains(r.Peers, side) {
			return side
		}
	}
	return ""
}

var heading = []string{"", "work", "unit", floor, ours, "opponent", "ratio", "target", "met"}

func (r result) cells() []string {
	opponent := r.opponent()
	if opponent != "" {
		opponent = r.figureOf(opponent) + " " + opponent
	}
	ratio, met := "", ""
	if r.Against != "" {
		ratio = fmt.Sprintf("%s × %s", number(r.Ratio), r.Against)
	}
	if r.Met != nil {
		met = "no"
		if *r.Met {
			met = "yes"
		}
	}
	return []string{r.Row, r.Work, r.Unit, r.figureOf(floor), r.figureOf(r.Of), opponent, ratio, r.Target, met}
}

// sentence tells a result in a line of its own.
func (r result) sentence() string {
	cells := r.cells()
	text := fmt.Sprintf("%-4s %s: %s %s", r.Row, r.Work, r.figureOf(r.Of), r.Unit)
	if r.Against != "" {
		text += ", " + cells[6]
	}
	if r.Met != nil {
		text += fmt.Sprintf(" (%s: %s)", r.Target, cells[8])
	}
	return text
}

// peers returns the heading and the lines of the table of peers; no lines if none was measured.
func (rep *report) peerTable() (heading []string, lines [][]string) {
	var names []string
	for _, r := range rep.Results {
		names = append(names, r.Peers...)
	}
	slices.Sort(names)
	names = slices.Compact(names)
	heading = append([]string{"", "work", "unit", ours}, names...)
	for _, r := range rep.Results {
		if len(r.Peers) == 0 {
			continue
		}
		cells := []string{r.Row, r.Work, r.Unit, r.figureOf(r.Of)}
		for _, name := range names {
			cells = append(cells, cmp.Or(r.figureOf(name), "–"))
		}
		lines = append(lines, cells)
	}
	return heading, lines
}

func (rep *report) lines() [][]string {
	lines := make([][]string, len(rep.Results))
	for i, r := range rep.Results {
		lines[i] = r.cells()
	}
	return lines
}

// method says how the figures came about.
func (rep *report) method() string {
	cluster := "an etcd process of its own for each row"
	switch rep.Members {
	case 3:
		cluster = "three etcd processes of their own for each row"
	case 0:
		cluster = "a cluster that was running already"
	}
	text := fmt.Sprintf("Medians of %d rounds of %s in turns, %s.", rep.Rounds, rep.Round, cluster)
	if rep.Quick {
		text += " A quick run: for a first impression only."
	}
	return text
}

func (rep *report) writeText(w io.Writer) error {
	fmt.Fprintf(w, "\n%s\n%s\n\n", rep.Machine, rep.method())
	writeAligned(w, heading, rep.lines())
	if peers, lines := rep.peerTable(); len(lines) > 0 {
		fmt.Fprint(w, "\nothers, for orientation\n\n")
		writeAligned(w, peers, lines)
	}
	for _, trouble := range rep.Trouble {
		fmt.Fprintf(w, "\ngave up: %s\n", trouble)
	}
	_, err := fmt.Fprintf(w, "\ntook %s\n", rep.Took)
	return err
}

func writeAligned(w io.Writer, heading []string, lines [][]string) {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	for _, cells := range append([][]string{heading}, lines...) {
		fmt.Fprintln(t, strings.Join(cells, "\t"))
	}
	_ = t.Flush() // what is wrong with w, the last line will find
}

// writeMarkdown writes what a README can show.
func (rep *report) writeMarkdown(w io.Writer) error {
	var b strings.Builder
	writePiped(&b, heading, rep.lines())
	if peers, lines := rep.peerTable(); len(lines) > 0 {
		b.WriteString("\nOthers on the same machine, for orientation:\n\n")
		writePiped(&b, peers, lines)
	}
	for _, trouble := range rep.Trouble {
		fmt.Fprintf(&b, "\nGave up: %s\n", strings.ReplaceAll(trouble, "\n", " "))
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

// writeFiles writes the report in all forms.
func (rep *report) writeFiles(dir string) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	for name, write := range map[string]func(io.Writer) error{
		"results.json": rep.writeJSON,
		"results.md":   rep.writeMarkdown,
		"results.svg":  rep.writeChart,
	} {
		var b strings.Builder
		if err := write(&b); err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
		if err := os.WriteFile(filepath.Join(dir, name), []byte(b.String()), 0o644); err != nil {
			return err
		}
	}
	return nil
}
