package interop

import (
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
)

// table counts the tests by release and set-up, and prints them as a table in Markdown.
var table results

type results struct {
	mu     sync.Mutex // guards what follows
	cells  map[place]cell
	setups []string // in the order of their first test
}

type place struct{ version, setup string }

type cell struct{ ran, passed int }

// count counts t, once it has ended with everything it cleans up.
func (r *results) count(t *testing.T, at place) {
	t.Cleanup(func() {
		r.mu.Lock()
		defer r.mu.Unlock()
		if r.cells == nil {
			r.cells = make(map[place]cell)
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

func (r *results) String() string {
	r.mu.Lock()
	defer r.mu.Unlock()
	slices.Sort(r.setups)
	var b strings.Builder
	fmt.Fprintf(&b, "| etcd | %s |\n|---|%s\n", strings.Join(r.setups, " | "), strings.Repeat("---|", len(r.setups)))
	for _, release := range releases {
		fmt.Fprintf(&b, "| %s |", strings.TrimPrefix(release.version, "v"))
		for _, setup := range r.setups {
			if c, ok := r.cells[place{release.version, setup}]; ok {
				fmt.Fprintf(&b, " %d of %d |", c.passed, c.ran)
			} else {
				b.WriteString(" |")
			}
		}
		b.WriteByte('\n')
	}
	return b.String()
}
