package main

import (
	"fmt"
	"strings"
	"testing"

	"pgregory.net/rapid"
)

func TestDraw_PutsServicesAboveTheirDependencies(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		n := rapid.IntRange(0, 12).Draw(t, "services")
		needs := make(map[string][]string)
		for i := range n {
			for j := range n + 1 {
				if rapid.IntRange(0, 3).Draw(t, "need") == 0 {
					needs[fmt.Sprint(i)] = append(needs[fmt.Sprint(i)], fmt.Sprint(j))
				}
			}
		}
		checkDrawing(t, needs, draw(needs))
	})
}

type errorReporter interface{ Errorf(string, ...any) }

// checkDrawing checks that a drawing has a line for each dependency, that lines lead
// downward unless they close a cycle, and that no two boxes overlap.
func checkDrawing(t errorReporter, needs map[string][]string, d drawing) {
	y := make(map[string]int)
	for i, b := range d.Boxes {
		y[b.Name] = b.Y
		if b.X < 0 || b.Y < 0 || b.X+boxWidth > d.Width || b.Y+boxHeight > d.Height {
			t.Errorf("%s at %d, %d is outside the drawing of %d × %d", b.Name, b.X, b.Y, d.Width, d.Height)
		}
		for _, other := range d.Boxes[:i] {
			if b.Y == other.Y && max(b.X, other.X)-min(b.X, other.X) < boxWidth {
				t.Errorf("%s and %s overlap", b.Name, other.Name)
			}
		}
	}
	lines := make(map[edge]bool)
	for _, l := range d.Lines {
		lines[edge{l.From, l.To}] = true
		if downwards := y[l.From] < y[l.To]; downwards == l.Cycle {
			t.Errorf("line from %s at %d to %s at %d, cycle: %v", l.From, y[l.From], l.To, y[l.To], l.Cycle)
		}
		var x, begin int
		if _, err := fmt.Sscanf(l.Path, "M%d %d", &x, &begin); err != nil {
			t.Errorf("path %s: %v", l.Path, err)
		}
		upper, lower := min(y[l.From], y[l.To]), max(y[l.From], y[l.To])
		if begin != upper+boxHeight || !strings.HasSuffix(l.Path, fmt.Sprint(" ", lower)) {
			t.Errorf("path %s between %d and %d", l.Path, upper, lower)
		}
	}
	for from, list := range needs {
		for _, to := range list {
			if from != to && !lines[edge{from, to}] {
				t.Errorf("no line from %s to %s", from, to)
			}
		}
	}
}

func TestDraw_ShortensLongNamesInTheMiddle(t *testing.T) {
	t.Parallel()
	for name, want := range map[string]string{
		"shop":                 "shop",
		"catalogue-eu":         "catal…ue-eu",
		"payments-1":           "payments-1",
		"service-of-warehouse": "servi…house",
	} {
		b := draw(map[string][]string{name: nil}).Boxes[0]
		if b.Label != want || (b.LabelWidth > 0) != (name != "shop") {
			t.Errorf("%s is shortened to %s with width %d, want %s", name, b.Label, b.LabelWidth, want)
		}
	}
}

func TestDraw_TheDemonstrationFitsOnAPhone(t *testing.T) {
	t.Parallel()
	needs := make(map[string][]string)
	for _, spec := range demoServices {
		needs[spec.name] = spec.needs
	}
	d := draw(needs)
	checkDrawing(t, needs, d)
	if len(d.Boxes) != 12 || d.Width > 360-2*15 {
		t.Errorf("%d boxes, %d wide", len(d.Boxes), d.Width)
	}
	cycles := 0
	for _, l := range d.Lines {
		if l.Cycle {
			cycles++
		}
	}
	if cycles != 1 {
		t.Errorf("%d lines close a cycle, want that between orders and payments", cycles)
	}
}
