package main

import (
	"context"
	"fmt"
	"slices"
	"strconv"
)

// row is one piece of work that several sides do in turns.
type row struct {
	id     string
	work   string
	rounds int // 0: as many as the run has
	sides  []side
	lines  []line
}

// side is one of those who do the work of a row.
type side struct {
	name string
	peer bool // for orientation: that it fails is told, and nothing more
	open func(ctx context.Context, a *arena) (round, error)
}

// round does the work once and returns what was measured.
type round func(ctx context.Context) (figures, error)

// figures are what a round has measured, by name.
type figures map[figure]float64

type figure string

// line is one line of the table: a figure of a row, and what it should be.
type line struct {
	what    string // after the row's work; may be empty
	figure  figure
	unit    string
	of      string // the side whose figure it is; empty: Locker
	against string // the side to whose figure the ratio is; empty: the target is for the figure itself
	target  target
}

// names of sides that have a column of their own.
const (
	floor  = "floor"
	ours   = "Locker"
	mutual = "Mutex"
)

// target is what a ratio, or a figure, should be at least or at most. The zero target is none.
type target struct {
	sign  string
	value float64
}

func atLeast(value float64) target { return target{"≥", value} }
func atMost(value float64) target  { return target{"≤", value} }

func (t target) String() string {
	if t.sign == "" {
		return ""
	}
	return t.sign + " " + strconv.FormatFloat(t.value, 'f', -1, 64)
}

// met reports whether x is what it should be.
func (t target) met(x float64) bool {
	switch t.sign {
	case "≥":
		return x >= t.value
	case "≤":
		return x <= t.value
	}
	return true
}

// result is a line of the table with what came out.
type result struct {
	Row     string              `json:"row"`
	Work    string              `json:"work"`
	Unit    string              `json:"unit"`
	Sides   map[string]*measure `json:"sides"`
	Peers   []string            `json:"peers,omitempty"`
	Of      string              `json:"of"`
	Against string              `json:"against,omitempty"`
	Ratio   float64             `json:"ratio,omitempty"` // of the medians
	Target  string              `json:"target,omitempty"`
	Met     *bool               `json:"met,omitempty"`
}

// measure is what one side has measured, one value a round.
type measure struct {
	Median float64   `json:"median"`
	Rounds []float64 `json:"rounds"`
}

// resultOf works out one line of a row from the rounds of its sides.
func resultOf(r row, l line, rounds map[string][]figures) (result, error) {
	res := result{Row: r.id, Work: r.work, Unit: l.unit, Of: l.of, Against: l.against, Target: l.target.String(), Sides: make(map[string]*measure)}
	if l.what != "" {
		res.Work += ": " + l.what
	}
	if res.Of == "" {
		res.Of = ours
	}
	for _, s := range r.sides {
		var values []float64
		for _, f := range rounds[s.name] {
			if value, ok := f[l.figure]; ok {
				values = append(values, value)
			}
		}
		if len(values) > 0 {
			res.Sides[s.name] = &measure{median(values), values}
			if s.peer {
				res.Peers = append(res.Peers, s.name)
			}
		}
	}
	own := res.Sides[res.Of]
	if own == nil {
		return result{}, fmt.Errorf("%s: %s has no figure %q", r.id, res.Of, l.figure)
	}
	judged := own.Median
	if l.against != "" {
		other := res.Sides[l.against]
		if other == nil || other.Median == 0 {
			return result{}, fmt.Errorf("%s: %s has no figure %q to compare with", r.id, l.against, l.figure)
		}
		res.Ratio = own.Median / other.Median
		judged = res.Ratio
	}
	if l.target.sign != "" {
		met := l.target.met(judged)
		res.Met = &met
	}
	return res, nil
}

// median returns the middle value, or the mean of the middle two.
func median(values []float64) float64 {
	sorted := slices.Sorted(slices.Values(values))
	n := len(sorted)
	return (sorted[(n-1)/2] + sorted[n/2]) / 2
}
