package main

import (
	"fmt"
	"strings"
	"testing"

	"pgregory.net/rapid"
)

func TestServicesStandAboveWhatTheyNeed(t *testing.T) {
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
		examine(t, needs, draw(needs))
	})
}

type failing interface{ Errorf(string, ...any) }

// examine checks that a drawing has each need as a line, that lines lead downwards unless
// they close a circle, and that no two boxes overlap.
func examine(t failing, needs map[string][]string, d drawing) {
	y := make(map[string]int)
	for i, b := range d.Boxes {
		y[b.Name] = b.Y
		if b.X < 0 || b.Y < 0 || b.X+boxWidth > d.Width || b.Y+boxHeight > d.Height {
			t.Errorf("%s at %d, %d is outside of %d × %d", b.Name, b.X, b.Y, d.Width, d.Height)
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
		if downwards := y[l.From] < y[l.To]; downwards == l.Circle {
			t.Errorf("from %s at %d to %s at %d, circle %v", l.From, y[l.From], l.To, y[l.To], l.Circle)
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

func TestALongNameIsShortenedInTheMiddle(t *testing.T) {
	t.Parallel()
	for name, want := range map[string]string{
		"shop":                 "shop",
		"catalogue-eu":         "catal…ue-eu",
		"payments-1":           "payments-1",
		"service-of-warehouse": "servi…house",
	} {
		b := draw(map[string][]string{name: nil}).Boxes[0]
		if b.Label != want || (b.LabelWidth > 0) != (name != "shop") {
			t.Errorf("%s is %s, squeezed into %d; want %s", name, b.Label, b.LabelWidth, want)
		}
	}
}

func TestTheDemonstrationFitsOnAPhone(t *testing.T) {
	t.Parallel()
	needs := make(map[string][]string)
	for _, role := range cast {
		needs[role.name] = role.needs
	}
	d := draw(needs)
	examine(t, needs, d)
	if len(d.Boxes) != 12 || d.Width > 360-2*15 {
		t.Errorf("%d boxes, %d wide", len(d.Boxes), d.Width)
	}
	circles := 0
	for _, l := range d.Lines {
		if l.Circle {
			circles++
		}
	}
	if circles != 1 {
		t.Errorf("%d circles, want that of orders and payments", circles)
	}
}
