package interop

import (
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
)

// table counts the tests by release and setup. Its String method formats it as Markdown.
var table resultTable

type resultTable struct {
	mu     sync.Mutex // guards the fields below
	cells  map[environment]cell
	setups []string // in the order of their first test
}

// environment is a release in a setup.
type environment struct{ version, setup string }

type cell struct{ ran, passed int }

// count counts t at its end, after its other cleanups.
func (r *resultTable) count(t *testing.T, at environment) {
	t.Cleanup(func() {
		r.mu.Lock()
		defer r.mu.Unlock()
		if r.cells == nil {
			r.cells = make(map[environment]cell)
		}
		if !slices.Contains(r.setups, at.setup) {
			r.setups = append(r.setups, at.setup)
		}
		c := r.cells[at]
		c.ran++
		if !t.Failed() {
			c.passed++
		}
		r.cells[at] = c
	})
}

func (r *resultTable) String() string {
	r.mu.Lock()
	defer r.mu.Unlock()
	slices.Sort(r.setups)
	var b strings.Builder
	fmt.Fprintf(&b, "| etcd | %s |\n|---|%s\n", strings.Join(r.setups, " | "), strings.Repeat("---|", len(r.setups)))
	for _, rel := range releases {
		fmt.Fprintf(&b, "| %s |", strings.TrimPrefix(rel.version, "v"))
		for _, name := range r.setups {
			if c, ok := r.cells[environment{rel.version, name}]; ok {
				fmt.Fprintf(&b, " %d of %d |", c.passed, c.ran)
			} else {
				b.WriteString(" |")
			}
		}
		b.WriteByte('\n')
	}
	return b.String()
}
