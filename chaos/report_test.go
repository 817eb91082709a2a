package main

import (
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"
)

func TestReport_ARoundNeedsAVerdictOfBothModels(t *testing.T) {
	t.Parallel()
	const (
		noLock    = "names decided by the lock model: 0, want at least 1"
		noCounter = "names decided by the counter model: 0, want at least 1"
	)
	h := sound()
	if missing := h.missing(); !slices.Contains(missing, noLock) || !slices.Contains(missing, noCounter) {
		t.Errorf("the models were not run; missing: %q", missing)
	}
	judge(h)
	if want := (verdicts{operations: 4, decided: 1}); h.byLock != want {
		t.Errorf("the lock model: %v, want %v", h.byLock, want)
	}
	if want := (verdicts{operations: 1, decided: 1}); h.byCounter != want {
		t.Errorf("the counter model: %v, want %v", h.byCounter, want)
	}
	if missing := h.missing(); slices.Contains(missing, noLock) || slices.Contains(missing, noCounter) {
		t.Errorf("the models gave a verdict; missing: %q", missing)
	}
	h.byLock, h.byCounter = verdicts{operations: 4, undecided: 1}, verdicts{operations: 1, undecided: 1}
	if missing := h.missing(); !slices.Contains(missing, noLock) || !slices.Contains(missing, noCounter) {
		t.Errorf("the models gave up; missing: %q", missing)
	}
}

func TestReport_CountsTheVerdictsOfTheModels(t *testing.T) {
	t.Parallel()
	one := newSummary()
	one.byLock, one.byCounter = verdicts{10, 3, 1}, verdicts{20, 4, 0}
	all := newSummary()
	all.add(one)
	all.add(one)
	var text strings.Builder
	all.write(&text)
	const want = "lock model: 6 names decided, 2 undecided, 20 operations; counter model: 8 names decided, 0 undecided, 40 operations"
	if !strings.Contains(text.String(), want) {
		t.Errorf("%q is not in\n%s", want, text.String())
	}
}

// docs/guarantees.md names in italics the checks of each guarantee. A check that is renamed
// or removed must not leave its guarantee without one.
func TestDocs_EveryCheckThatTheGuaranteesNameExists(t *testing.T) {
	t.Parallel()
	const guarantees = 13
	text, err := os.ReadFile("../docs/guarantees.md")
	if err != nil {
		t.Fatal(err)
	}
	_, table, _ := strings.Cut(string(text), "## How each guarantee is tested")
	row, italic := regexp.MustCompile(`(?m)^\| (\d+) .*$`), regexp.MustCompile(`\*([^*]+)\*`)
	rows := row.FindAllStringSubmatch(table, -1)
	if len(rows) < guarantees {
		t.Errorf("the table has %d guarantees, want %d", len(rows), guarantees)
	}
	for _, r := range rows {
		named := italic.FindAllStringSubmatch(r[0], -1)
		if len(named) == 0 {
			t.Errorf("guarantee %s names no check", r[1])
		}
		for _, n := range named {
			for check := range strings.SplitSeq(n[1], "; ") {
				if !isInvariant(check) {
					t.Errorf("guarantee %s names the check %q, which does not exist", r[1], check)
				}
			}
		}
	}
}

func isInvariant(name string) bool {
	return slices.Contains(scripted, name) || slices.ContainsFunc(invariants, func(i invariant) bool { return i.name == name })
}
