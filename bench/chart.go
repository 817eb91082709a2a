package main

import (
	"image/color"
	"io"
	"math"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"gonum.org/v1/plot"
	"gonum.org/v1/plot/font"
	"gonum.org/v1/plot/plotter"
	"gonum.org/v1/plot/vg"
	"gonum.org/v1/plot/vg/draw"
	"gonum.org/v1/plot/vg/vgsvg"
)

// The chart has a bar for each side of each rate, on a logarithmic scale.
var (
	// barColors are for the floor, Locker, Mutex and the peers, of which there are four.
	barColors = []color.Color{
		color.RGBA{0xdd, 0xe1, 0xe6, 0xff}, color.RGBA{0x1f, 0x6f, 0xb4, 0xff}, color.RGBA{0x8d, 0x95, 0xa0, 0xff},
		color.RGBA{0xe0, 0x9f, 0x3e, 0xff}, color.RGBA{0xc2, 0x57, 0x3a, 0xff}, color.RGBA{0x8a, 0x9a, 0x5b, 0xff},
		color.RGBA{0x7d, 0x5b, 0xa6, 0xff},
	}
	textFont = font.Font{Typeface: "Liberation", Variant: "Sans", Size: 11}
)

const (
	barWidth   = vg.Length(11)
	margin     = vg.Length(10)
	chartWidth = 24 * vg.Centimeter
)

// writeChart draws the rates. The chart is empty if the run measured none.
func (rep *report) writeChart(w io.Writer) error {
	rates, sides := rep.rates()
	p := plot.New()
	p.Title.Text = "locks or hand-overs a second (logarithmic scale)"
	p.BackgroundColor = nil
	p.X.Min, p.X.Max = 0, 1
	p.X.Tick.Marker = decades{}
	p.Title.Padding, p.Legend.Top = 8, true
	grid := plotter.NewGrid()
	grid.Horizontal.Width = 0
	p.Add(grid)
	works := make([]string, len(rates))
	for i, name := range sides {
		values, labels := make(plotter.Values, len(rates)), plotter.XYLabels{}
		offset := barWidth * vg.Length(float64(len(sides)-1)/2-float64(i))
		for j, r := range rates {
			works[j] = roomy(r.Row + "  " + r.Work)
			m := r.Sides[name]
			if m == nil || m.Median < 1 {
				continue
			}
			values[j] = math.Log10(m.Median)
			p.X.Max = max(p.X.Max, values[j]+0.6) // leaves room for its label
			labels.XYs = append(labels.XYs, plotter.XY{X: values[j], Y: float64(j)})
			labels.Labels = append(labels.Labels, number(m.Median))
		}
		if err := addBars(p, name, values, labels, offset, barColors[i%len(barColors)]); err != nil {
			return err
		}
	}
	if len(works) > 0 {
		p.NominalY(works...)
		p.Y.Max = float64(len(works)) + 0.4 // leaves room for the legend
	}
	useFont(p)
	height := vg.Length(len(rates)+1)*(vg.Length(len(sides))*barWidth+16) + 3*vg.Centimeter
	canvas := vgsvg.New(chartWidth, height)
	c := draw.New(canvas)
	c.FillPolygon(color.White, []vg.Point{c.Min, {X: c.Max.X, Y: c.Min.Y}, c.Max, {X: c.Min.X, Y: c.Max.Y}}) // the page may be dark
	p.Draw(draw.Crop(c, margin, -margin, margin, -margin))
	var b strings.Builder
	if _, err := canvas.WriteTo(&b); err != nil {
		return err
	}
	// Few viewers have the font that the text was measured with.
	svg := paddings.ReplaceAllString(b.String(), "</text>")
	_, err := io.WriteString(w, strings.ReplaceAll(svg, "font-family:Liberation Sans", "font-family:Liberation Sans,Arial,Helvetica,sans-serif"))
	return err
}

// rates returns the results to draw, from bottom to top, and the names of their sides.
func (rep *report) rates() (rates []result, sides []string) {
	for _, r := range rep.figures() {
		if r.Unit != "locks/s" && r.Unit != "hand-overs/s" {
			continue
		}
		rates = append(rates, r)
		for _, name := range append([]string{floor, ours, etcdMutex}, r.Peers...) {
			if r.Sides[name] != nil && !slices.Contains(sides, name) {
				sides = append(sides, name)
			}
		}
	}
	slices.Reverse(rates)
	return rates, sides
}

func addBars(p *plot.Plot, name string, values plotter.Values, labels plotter.XYLabels, offset vg.Length, c color.Color) error {
	bars, err := plotter.NewBarChart(values, barWidth)
	if err != nil {
		return err
	}
	bars.Horizontal, bars.Offset, bars.Color, bars.LineStyle.Width = true, offset, c, 0
	p.Add(bars)
	p.Legend.Add(roomy(name), bars)
	if len(labels.Labels) == 0 {
		return nil
	}
	texts, err := plotter.NewLabels(labels)
	if err != nil {
		return err
	}
	texts.Offset = vg.Point{X: 3, Y: offset - 4}
	for i := range texts.TextStyle {
		texts.TextStyle[i].Font = textFont
		texts.TextStyle[i].Font.Size = 9
	}
	p.Add(texts)
	return nil
}

// roomy leaves room for a font that is wider than that with which a text is measured.
func roomy(text string) string { return text + strings.Repeat(" ", 1+len(text)/4) }

// paddings are what roomy has added; each text begins where it was placed with them.
var paddings = regexp.MustCompile(` +</text>`)

func useFont(p *plot.Plot) {
	for _, f := range []*font.Font{&p.Title.TextStyle.Font, &p.X.Tick.Label.Font, &p.Y.Tick.Label.Font, &p.Legend.TextStyle.Font} {
		*f = textFont
	}
}

// decades marks the powers of ten on a logarithmic scale.
type decades struct{}

func (decades) Ticks(minimum, maximum float64) []plot.Tick {
	var ticks []plot.Tick
	for exponent := math.Ceil(minimum); exponent <= maximum; exponent++ {
		ticks = append(ticks, plot.Tick{Value: exponent, Label: strconv.Itoa(int(math.Pow(10, exponent)))})
	}
	return ticks
}
