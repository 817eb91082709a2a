package main

import (
	"fmt"
	"slices"
	"strings"
	"testing"
)

func TestMedian_IsTheMiddleValue(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		values []float64
		want   float64
	}{
		{[]float64{3}, 3},
		{[]float64{9, 1, 2}, 2},
		{[]float64{4, 1, 2, 100}, 3},
	} {
		if got := median(test.values); got != test.want {
			t.Errorf("median of %v is %v, want %v", test.values, got, test.want)
		}
	}
}

func TestTarget_IsMetByItsBound(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		target target
		x      float64
		want   bool
	}{
		{atLeast(2.5), 2.5, true}, {atLeast(2.5), 2.49, false},
		{atMost(1.1), 1.1, true}, {atMost(1.1), 1.11, false},
		{atMost(0), 0, true}, {atMost(0), 1, false},
		{below(10), 9.9, true}, {below(10), 10, false},
		{target{}, 7, true},
	} {
		if got := test.target.met(test.x); got != test.want {
			t.Errorf("%v %v: %v, want %v", test.x, test.target, got, test.want)
		}
	}
}

// testRow and testRounds are a row and two rounds of its three sides and one peer.
var (
	testRow    = row{id: "P0", work: "work", sides: []side{{name: floor}, {name: ours}, {name: etcdMutex}, {name: "other", peer: true}}}
	testRounds = map[string][]figures{
		floor:     {{p50: 10}, {p50: 30}},
		ours:      {{p50: 20, rate: 300}, {p50: 30, rate: 500}},
		etcdMutex: {{p50: 100, rate: 100}, {p50: 100, rate: 100}},
		"other":   {{rate: 50}},
	}
)

func TestRatio_IsThatOfTheMedians(t *testing.T) {
	t.Parallel()
	res, err := newResult(testRow, line{figure: p50, unit: "µs", against: floor, target: atMost(1.2)}, testRounds)
	if err != nil {
		t.Fatal(err)
	}
	if res.Ratio != 1.25 || res.Met == nil || *res.Met {
		t.Errorf("time: %+v", res)
	}
	res, err = newResult(testRow, line{what: "more", figure: rate, unit: "locks/s", against: etcdMutex, target: atLeast(4)}, testRounds)
	if err != nil {
		t.Fatal(err)
	}
	if res.Ratio != 4 || res.Met == nil || !*res.Met || res.Work != "work: more" {
		t.Errorf("rate: %+v", res)
	}
	if res.Sides[floor] != nil || res.baseline() != etcdMutex || len(res.Peers) != 1 {
		t.Errorf("sides: %+v", res)
	}
	res, err = newResult(testRow, line{figure: rate, against: etcdMutex, ofTimes: true, target: atMost(0.25)}, testRounds)
	if err != nil {
		t.Fatal(err)
	}
	if res.Ratio != 0.25 || res.Met == nil || !*res.Met || !strings.Contains(strings.Join(res.cells(), "|"), "0.25 × Mutex's time") {
		t.Errorf("time of a rate: %+v", res)
	}
}

func TestTarget_WithoutABaselineIsForTheFigureItself(t *testing.T) {
	t.Parallel()
	for limit, want := range map[float64]bool{400: true, 399: false} {
		res, err := newResult(testRow, line{figure: rate, target: atMost(limit)}, testRounds)
		if err != nil {
			t.Fatal(err)
		}
		if res.Met == nil || *res.Met != want || res.Ratio != 0 {
			t.Errorf("target at most %v: %+v", limit, res)
		}
	}
	if res, err := newResult(testRow, line{figure: rate}, testRounds); err != nil || res.Met != nil {
		t.Errorf("without a target: %+v, %v", res, err)
	}
}

func TestFigure_ThatIsMissingIsAnErrorAndNotZero(t *testing.T) {
	t.Parallel()
	for _, l := range []line{
		{figure: heap},
		{figure: rate, against: floor},
	} {
		if res, err := newResult(testRow, l, testRounds); err == nil {
			t.Errorf("%+v: %+v", l, res)
		}
	}
}

func TestRows_HaveDistinctSidesAndSomethingToCompareWith(t *testing.T) {
	t.Parallel()
	for _, size := range []workload{fullWorkload, quickWorkload} {
		var ids []string
		for _, r := range rows(size) {
			ids = append(ids, r.id)
			names := make(map[string]bool)
			for _, s := range r.sides {
				if names[s.name] {
					t.Errorf("%s has two sides called %s", r.id, s.name)
				}
				names[s.name] = true
			}
			for _, l := range r.lines {
				if l.against != "" && !names[l.against] || !names[ours] {
					t.Errorf("%s: a side to compare is missing: %+v", r.id, l)
				}
			}
		}
		for i, id := range slices.Compact(ids) {
			if want := fmt.Sprintf("P%d", i+1); id != want {
				t.Errorf("row %s is where %s belongs", id, want)
			}
		}
	}
}

func TestRows_AreChosenByTheirIDs(t *testing.T) {
	t.Parallel()
	chosen, err := choose(rows(quickWorkload), "p7,P4")
	if err != nil {
		t.Fatal(err)
	}
	var ids []string
	for _, r := range chosen {
		ids = append(ids, r.id)
	}
	if got := strings.Join(ids, " "); got != "P4 P7 P7" {
		t.Errorf("chose %q", got)
	}
	if _, err := choose(rows(quickWorkload), "P4,P99"); err == nil || !strings.Contains(err.Error(), "P99") {
		t.Errorf("unknown row: %v", err)
	}
}
