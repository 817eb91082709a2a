package main

import (
	"context"
	"fmt"
	"slices"
	"strconv"
)

// row is a piece of work that is measured for several sides.
type row struct {
	id     string
	work   string
	rounds int // 0 for the number of rounds of the run
	sides  []side
	lines  []line
}

// side is one of the implementations that a row compares.
type side struct {
	name string
	peer bool // another lock service, for comparison only: a failure is reported but fails no row
	open func(ctx context.Context, a *arena) (round, error)
}

// round does the work of a side for one round and returns what was measured.
type round func(ctx context.Context) (figures, error)

// figures holds the values measured in a round.
type figures map[figure]float64

type figure string

// line is one line of the table: a figure of a row and its target.
type line struct {
	what    string // appended to the row's work; may be empty
	figure  figure
	unit    string
	against string // the side that Locker is compared with; empty if the target is for the figure itself
	ofTimes bool   // the figure is a rate, but the ratio is that of the times
	target  target
}

// The names of the sides that appear in several rows.
const (
	floor     = "floor"
	ours      = "Locker"
	etcdMutex = "Mutex"
)

// target is an upper or lower bound for a ratio or a figure. The zero target is always met.
type target struct {
	sign  string
	value float64
}

func atLeast(value float64) target { return target{"≥", value} }
func atMost(value float64) target  { return target{"≤", value} }
func below(value float64) target   { return target{"<", value} }

func (t target) String() string {
	if t.sign == "" {
		return ""
	}
	return t.sign + " " + strconv.FormatFloat(t.value, 'f', -1, 64)
}

// met reports whether x meets the target.
func (t target) met(x float64) bool {
	switch t.sign {
	case "≥":
		return x >= t.value
	case "≤":
		return x <= t.value
	case "<":
		return x < t.value
	}
	return true
}

// result is a line of the table with its measurements.
type result struct {
	Row     string              `json:"row"`
	Work    string              `json:"work"`
	Unit    string              `json:"unit"`
	Sides   map[string]*measure `json:"sides"`
	Peers   []string            `json:"peers,omitempty"`
	Against string              `json:"against,omitempty"`
	Ratio   float64             `json:"ratio,omitempty"` // of the medians
	OfTimes bool                `json:"ratio_of_times,omitempty"`
	Target  string              `json:"target,omitempty"`
	Met     *bool               `json:"met,omitempty"`
}

// measure holds the values of one side, one for each round.
type measure struct {
	Median float64   `json:"median"`
	Rounds []float64 `json:"rounds"`
}

// newResult computes one line of a row from the figures of its sides.
func newResult(r row, l line, rounds map[string][]figures) (result, error) {
	res := result{Row: r.id, Work: r.work, Unit: l.unit, Against: l.against, OfTimes: l.ofTimes, Target: l.target.String(), Sides: make(map[string]*measure)}
	if l.what != "" {
		res.Work += ": " + l.what
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
	own := res.Sides[ours]
	if own == nil {
		return result{}, fmt.Errorf("%s: %s has no figure %q", r.id, ours, l.figure)
	}
	judged := own.Median
	if l.against != "" {
		other := res.Sides[l.against]
		if other == nil || other.Median == 0 || own.Median == 0 {
			return result{}, fmt.Errorf("%s: the figure %q of %s and %s cannot be compared", r.id, l.figure, ours, l.against)
		}
		res.Ratio = own.Median / other.Median
		if l.ofTimes {
			res.Ratio = 1 / res.Ratio
		}
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
