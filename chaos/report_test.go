package main

import (
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"
)

func TestARoundWithoutAVerdictOfBothModelsIsEmpty(t *testing.T) {
	t.Parallel()
	const (
		noLock    = "names that the lock model decided: 0, want at least 1"
		noCounter = "names that the counter model decided: 0, want at least 1"
	)
	h := sound()
	if missing := h.empty(); !slices.Contains(missing, noLock) || !slices.Contains(missing, noCounter) {
		t.Errorf("the models have not been asked; what is missing is %q", missing)
	}
	judge(h)
	if want := (verdicts{operations: 4, decided: 1}); h.byLock != want {
		t.Errorf("the lock model: %v, want %v", h.byLock, want)
	}
	if want := (verdicts{operations: 1, decided: 1}); h.byCounter != want {
		t.Errorf("the counter model: %v, want %v", h.byCounter, want)
	}
	if missing := h.empty(); slices.Contains(missing, noLock) || slices.Contains(missing, noCounter) {
		t.Errorf("the models gave a verdict; what is missing is %q", missing)
	}
	h.byLock, h.byCounter = verdicts{operations: 4, undecided: 1}, verdicts{operations: 1, undecided: 1}
	if missing := h.empty(); !slices.Contains(missing, noLock) || !slices.Contains(missing, noCounter) {
		t.Errorf("the models gave up; what is missing is %q", missing)
	}
}

func TestARunTellsHowOftenTheModelsCouldTell(t *testing.T) {
	t.Parallel()
	one := newSummary()
	one.byLock, one.byCounter = verdicts{10, 3, 1}, verdicts{20, 4, 0}
	all := newSummary()
	all.add(one)
	all.add(one)
	var text strings.Builder
	all.write(&text)
	const want = "lock model: 6 names decided and 2 not, of 20 operations; counter model: 8 names decided and 0 not, of 40 operations"
	if !strings.Contains(text.String(), want) {
		t.Errorf("%q is not in\n%s", want, text.String())
	}
}

// docs/guarantees.md says in italics which checks would notice that a promise is broken: one that was
// renamed or removed must not leave its promise behind.
func TestEveryCheckThatTheGuaranteesNameExists(t *testing.T) {
	t.Parallel()
	const promises = 13
	text, err := os.ReadFile("../docs/guarantees.md")
	if err != nil {
		t.Fatal(err)
	}
	_, table, _ := strings.Cut(string(text), "## How each guarantee is tested")
	row, italic := regexp.MustCompile(`(?m)^\| (\d+) .*$`), regexp.MustCompile(`\*([^*]+)\*`)
	rows := row.FindAllStringSubmatch(table, -1)
	if len(rows) < promises {
		t.Errorf("the table has %d promises, want %d", len(rows), promises)
	}
	for _, r := range rows {
		named := italic.FindAllStringSubmatch(r[0], -1)
		if len(named) == 0 {
			t.Errorf("promise %s: no check is named", r[1])
		}
		for _, n := range named {
			for check := range strings.SplitSeq(n[1], "; ") {
				if !isInvariant(check) {
					t.Errorf("promise %s: there is no check %q", r[1], check)
				}
			}
		}
	}
}

func isInvariant(name string) bool {
	return slices.Contains(scripted, name) || slices.ContainsFunc(invariants, func(i invariant) bool { return i.name == name })
}
