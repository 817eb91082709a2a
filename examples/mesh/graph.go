package main

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strings"
	"unicode"
)

// Sizes in the drawing. Four boxes side by side fit on a phone without scaling.
const (
	boxWidth, boxHeight = 74, 40
	bendWidth           = 6 // width of a line that passes through a row
	gap, rowHeight      = 5, 78
	maxLabel            = 11           // maximum number of letters of a label
	labelWidth          = boxWidth - 8 // maximum width of a label
)

// drawing is the layout of the dependency graph. Each service is above the services it
// needs.
type drawing struct {
	Width, Height int
	Boxes         []box
	Lines         []line
}

type box struct {
	X, Y, MiddleX int
	Name, Label   string
	LabelWidth    int // to which the label is condensed; 0 if it fits
	Condition     condition
}

// line is the line from a service to a service it needs.
type line struct {
	From, To string
	Path     string // SVG path
	Cycle    bool   // leads upward, because the two need each other, directly or indirectly
	Broken   bool   // the needed service is not serving
}

// vertex is a box, or the bend of a line in a row between its ends.
type vertex struct {
	name       string // empty for a bend
	row, place int
	x          int // of its centre
	up, down   []*vertex
}

func (v *vertex) width() int {
	if v.name == "" {
		return bendWidth
	}
	return boxWidth
}

// draw assigns the services to rows so that lines lead downward, orders each row so that
// few lines cross, and computes the positions (K. Sugiyama and others, "Methods for
// visual understanding of hierarchical system structures", 1981).
func draw(needs map[string][]string) drawing {
	backEdges := findBackEdges(needs)
	boxes := findRows(needs, backEdges)
	rows := make([][]*vertex, 0)
	place := func(v *vertex) {
		for len(rows) <= v.row {
			rows = append(rows, nil)
		}
		rows[v.row] = append(rows[v.row], v)
	}
	for _, name := range slices.Sorted(maps.Keys(boxes)) {
		place(boxes[name])
	}
	chains := make(map[edge][]*vertex)
	for _, name := range slices.Sorted(maps.Keys(needs)) {
		for _, need := range needs[name] {
			if need == name {
				continue
			}
			e := edge{name, need}
			top, bottom := boxes[name], boxes[need]
			if backEdges[e] {
				top, bottom = bottom, top
			}
			chains[e] = route(top, bottom, place)
		}
	}
	untangle(rows)
	d := drawing{Height: len(rows)*rowHeight - (rowHeight - boxHeight) + 2}
	for _, row := range rows {
		d.Width = max(d.Width, rowWidth(row)+2)
	}
	for _, row := range rows {
		x := (d.Width - rowWidth(row)) / 2
		for _, v := range row {
			v.x = x + v.width()/2
			x += v.width() + gap
		}
	}
	for _, name := range slices.Sorted(maps.Keys(boxes)) {
		v := boxes[name]
		d.Boxes = append(d.Boxes, box{X: v.x - boxWidth/2, Y: d.top(v), MiddleX: v.x, Name: name, Label: shorten(name), LabelWidth: squeezeWidth(shorten(name))})
	}
	for _, e := range slices.SortedFunc(maps.Keys(chains), edge.compare) {
		d.Lines = append(d.Lines, line{From: e.from, To: e.to, Path: d.path(chains[e], backEdges[e]), Cycle: backEdges[e]})
	}
	return d
}

// edge leads from a service to a service it needs.
type edge struct{ from, to string }

func (e edge) compare(other edge) int {
	return cmp.Or(cmp.Compare(e.from, other.from), cmp.Compare(e.to, other.to))
}

// findBackEdges returns edges without which the graph has no cycles.
func findBackEdges(needs map[string][]string) map[edge]bool {
	backEdges := make(map[edge]bool)
	onPath, visited := make(map[string]bool), make(map[string]bool)
	var visit func(string)
	visit = func(name string) {
		visited[name], onPath[name] = true, true
		for _, need := range needs[name] {
			if onPath[need] {
				backEdges[edge{name, need}] = true
			} else if !visited[need] {
				visit(need)
			}
		}
		onPath[name] = false
	}
	for _, name := range slices.Sorted(maps.Keys(needs)) {
		if !visited[name] {
			visit(name)
		}
	}
	return backEdges
}

// findRows puts each service above all services it needs. Row 0 is the lowest.
func findRows(needs map[string][]string, backEdges map[edge]bool) map[string]*vertex {
	boxes := make(map[string]*vertex)
	var rowOf func(string) int
	rowOf = func(name string) int {
		if v := boxes[name]; v != nil {
			return v.row
		}
		v := &vertex{name: name}
		for _, need := range needs[name] {
			if !backEdges[edge{name, need}] {
				v.row = max(v.row, rowOf(need)+1)
			}
		}
		boxes[name] = v
		return v.row
	}
	for name, list := range needs {
		rowOf(name)
		for _, need := range list {
			rowOf(need)
		}
	}
	return boxes
}

// route connects a box to a lower one, with a bend in each row in between.
func route(top, bottom *vertex, place func(*vertex)) []*vertex {
	chain := []*vertex{top}
	for row := top.row - 1; row > bottom.row; row-- {
		bend := &vertex{row: row}
		place(bend)
		chain = append(chain, bend)
	}
	chain = append(chain, bottom)
	for i, v := range chain[1:] {
		v.up = append(v.up, chain[i])
		chain[i].down = append(chain[i].down, v)
	}
	return chain
}

// untangle reduces crossings: it orders each row by the average position of the connected
// vertices, alternately of those below and those above.
func untangle(rows [][]*vertex) {
	for _, row := range rows {
		setPlaces(row)
	}
	for sweep := range 12 {
		for i := range rows {
			row, neighbours := rows[i], func(v *vertex) []*vertex { return v.down }
			if sweep%2 == 1 {
				row, neighbours = rows[len(rows)-1-i], func(v *vertex) []*vertex { return v.up }
			}
			slices.SortStableFunc(row, func(a, b *vertex) int {
				return cmp.Compare(middle(a, neighbours(a)), middle(b, neighbours(b)))
			})
			setPlaces(row)
		}
	}
}

// setPlaces numbers the vertices of a row. The middle of the row is 0; the unit is half a
// vertex.
func setPlaces(row []*vertex) {
	for i, v := range row {
		v.place = 2*i - len(row) + 1
	}
}

func middle(v *vertex, neighbours []*vertex) float64 {
	if len(neighbours) == 0 {
		return float64(v.place)
	}
	sum := 0
	for _, n := range neighbours {
		sum += n.place
	}
	return float64(sum) / float64(len(neighbours))
}

func rowWidth(row []*vertex) int {
	width := -gap
	for _, v := range row {
		width += v.width() + gap
	}
	return width
}

// top returns the upper edge of a vertex.
func (d drawing) top(v *vertex) int { return d.Height - 1 - boxHeight - v.row*rowHeight }

// path returns the path of a chain: curves between the rows, straight lines through them.
func (d drawing) path(chain []*vertex, upward bool) string {
	shift := 0 // so that a line that leads upward does not cover one that leads downward
	if upward {
		shift = 12
	}
	var path strings.Builder
	for i, v := range chain {
		x, top := v.x, d.top(v)
		if v.name != "" {
			x += shift
		}
		if i == 0 {
			fmt.Fprintf(&path, "M%d %d", x, top+boxHeight)
			continue
		}
		half := (rowHeight - boxHeight) / 2
		fmt.Fprintf(&path, "C%d %d %d %d %d %d", chain[i-1].x+shiftOf(chain[i-1], shift), top-half, x, top-half, x, top)
		if v.name == "" {
			fmt.Fprintf(&path, "V%d", top+boxHeight)
		}
	}
	return path.String()
}

func shiftOf(v *vertex, shift int) int {
	if v.name == "" {
		return 0
	}
	return shift
}

// shorten removes the middle of a long name.
func shorten(name string) string {
	if len(name) <= maxLabel {
		return name
	}
	return name[:maxLabel/2] + "…" + name[len(name)-maxLabel/2:]
}

// squeezeWidth returns the width to which a label must be condensed, or 0 if it fits.
// Fonts differ, so it assumes a wide one.
func squeezeWidth(label string) int {
	width := 0.0
	for _, r := range label {
		switch {
		case strings.ContainsRune("fijlrt.-1", r):
			width += 5.2
		case strings.ContainsRune("mwMW…", r):
			width += 13
		case unicode.IsUpper(r):
			width += 10
		default:
			width += 8.8
		}
	}
	if width <= labelWidth {
		return 0
	}
	return labelWidth
}
