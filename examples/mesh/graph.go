package main

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strings"
	"unicode"
)

// Sizes in the drawing. Four boxes beside each other fit on a phone at full size.
const (
	boxWidth, boxHeight = 74, 40
	bendWidth           = 6 // of the place where a line passes a row
	gap, rowHeight      = 5, 78
	longest             = 11           // letters of a name in a box
	labelWidth          = boxWidth - 8 // at most
)

// drawing is the graph of needs, as it is drawn: each service stands above what it needs.
type drawing struct {
	Width, Height int
	Boxes         []box
	Lines         []line
}

type box struct {
	X, Y, MiddleX int
	Name, Label   string
	LabelWidth    int // to squeeze the label into; 0 if it fits as it is
	Condition     condition
}

// line is the line from a service to one that it needs.
type line struct {
	From, To string
	Path     string // of SVG
	Circle   bool   // leads upwards: the two need each other, directly or by others
	Broken   bool   // what is needed does not serve
}

// vertex is a box, or a bend of a line in a row between its ends.
type vertex struct {
	name       string // empty for a bend
	row, place int
	x          int // of its middle
	up, down   []*vertex
}

func (v *vertex) width() int {
	if v.name == "" {
		return bendWidth
	}
	return boxWidth
}

// draw lays out the services in rows, so that lines lead downwards, orders the rows so
// that few lines cross, and draws them (K. Sugiyama and others, "Methods for visual
// understanding of hierarchical system structures", 1981).
func draw(needs map[string][]string) drawing {
	circles := findCircles(needs)
	boxes := findRows(needs, circles)
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
			if circles[e] {
				top, bottom = bottom, top
			}
			chains[e] = connect(top, bottom, place)
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
		d.Boxes = append(d.Boxes, box{X: v.x - boxWidth/2, Y: d.top(v), MiddleX: v.x, Name: name, Label: shorten(name), LabelWidth: squeezed(shorten(name))})
	}
	for _, e := range slices.SortedFunc(maps.Keys(chains), edge.compare) {
		d.Lines = append(d.Lines, line{From: e.from, To: e.to, Path: d.path(chains[e], circles[e]), Circle: circles[e]})
	}
	return d
}

// edge leads from a service to what it needs.
type edge struct{ from, to string }

func (e edge) compare(other edge) int {
	return cmp.Or(cmp.Compare(e.from, other.from), cmp.Compare(e.to, other.to))
}

// findCircles returns edges without which nothing needs itself.
func findCircles(needs map[string][]string) map[edge]bool {
	circles := make(map[edge]bool)
	onPath, visited := make(map[string]bool), make(map[string]bool)
	var visit func(string)
	visit = func(name string) {
		visited[name], onPath[name] = true, true
		for _, need := range needs[name] {
			if onPath[need] {
				circles[edge{name, need}] = true
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
	return circles
}

// findRows puts each service above all that it needs; row 0 is the lowest.
func findRows(needs map[string][]string, circles map[edge]bool) map[string]*vertex {
	boxes := make(map[string]*vertex)
	var rowOf func(string) int
	rowOf = func(name string) int {
		if v := boxes[name]; v != nil {
			return v.row
		}
		v := &vertex{name: name}
		for _, need := range needs[name] {
			if !circles[edge{name, need}] {
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

// connect leads a line from a box down to another, with a bend in each row between.
func connect(top, bottom *vertex, place func(*vertex)) []*vertex {
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

// untangle orders each row by the middle of the places that a vertex is connected to, from
// below and from above in turns.
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

// setPlaces gives the vertices of a row their places: the middle of the row is 0, in units
// of half a vertex.
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

// top returns where a vertex begins.
func (d drawing) top(v *vertex) int { return d.Height - 1 - boxHeight - v.row*rowHeight }

// path draws a chain: curves between the rows, straight lines through them.
func (d drawing) path(chain []*vertex, circle bool) string {
	shift := 0 // what leads upwards does not cover what leads downwards
	if circle {
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

// shorten leaves out the middle of a long name.
func shorten(name string) string {
	if len(name) <= longest {
		return name
	}
	return name[:longest/2] + "…" + name[len(name)-longest/2:]
}

// squeezed returns the width that a label has to be squeezed into, 0 if it fits as it is.
// Fonts differ: it reckons with wide ones.
func squeezed(label string) int {
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
