package torture

import (
	"bytes"
	"fmt"
	"image/color"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	"gonum.org/v1/plot"
	"gonum.org/v1/plot/font"
	"gonum.org/v1/plot/plotter"
	"gonum.org/v1/plot/vg"
	"gonum.org/v1/plot/vg/draw"
	"gonum.org/v1/plot/vg/vgsvg"
)

const (
	panelWidth  = 3.6 * vg.Inch
	panelHeight = 1.5 * vg.Inch
	plotMargin  = 0.12 * vg.Inch
	// plotPoints is how many points of a line are drawn at most, each the median of those
	// that it stands for.
	plotPoints = 180
)

var (
	veteranColor = color.RGBA{R: 0x1b, G: 0x6e, B: 0xc2, A: 0xff}
	otherColor   = color.RGBA{R: 0xb8, G: 0xb8, B: 0xb8, A: 0xff}
	faultColor   = color.RGBA{R: 0xd0, G: 0x4a, B: 0x1e, A: 0xff}
	judgedColor  = color.RGBA{R: 0x60, G: 0x60, B: 0x60, A: 0xff}
)

// SoakPlot draws the samples: a row for each measure, a column for each site, and a row of
// what the sites share. The same samples give the same SVG.
func SoakPlot(r *SoakResult, samples []Sample) ([]byte, error) {
	var grid [][]*plot.Plot
	for _, m := range consumerMeasures {
		var row []*plot.Plot
		for _, site := range r.kinds() {
			p := newPanel(r, site, m.measure)
			all := consumerPoints(samples, site, m.of)
			for _, number := range slices.Backward(slices.Sorted(maps.Keys(all))) { // the veteran on top
				tint, width := otherColor, vg.Points(0.6)
				if number == veteran {
					tint, width = veteranColor, vg.Points(1.2)
				}
				if err := p.line(all[number], tint, width); err != nil {
					return nil, err
				}
			}
			row = append(row, p.done())
		}
		grid = append(grid, row)
	}
	var shared []*plot.Plot
	for _, m := range redisMeasures {
		p := newPanel(r, "", m.measure)
		if err := p.line(redisPoints(samples, m.of), veteranColor, vg.Points(1.2)); err != nil {
			return nil, err
		}
		shared = append(shared, p.done())
	}
	p := newPanel(r, "", measure{name: "messages a second", scale: 1})
	if err := p.line(rates(samples), veteranColor, vg.Points(1.2)); err != nil {
		return nil, err
	}
	return drawGrid(append(grid, append(shared, p.done())))
}

// kinds are the brokers of the sites.
func (r *SoakResult) kinds() (all []string) {
	for i := range r.Sites {
		kind, _, _ := strings.Cut(r.Sites[i].Site, "/")
		all = append(all, kind)
	}
	return all
}

// rates are how many messages a second were published from one sample to the next.
func rates(samples []Sample) (all []point) {
	sum := func(x *Sample) (n float64) {
		for i := range x.Sites {
			n += float64(x.Sites[i].Messages)
		}
		return n
	}
	for i := 1; i < len(samples); i++ {
		before, now := &samples[i-1], &samples[i]
		if took := now.Seconds - before.Seconds; took > 0 {
			all = append(all, point{now.at(), (sum(now) - sum(before)) / took})
		}
	}
	return all
}

// panel is one small plot.
type panel struct {
	*plot.Plot
	scale float64
	unit  float64 // of time, in nanoseconds
}

// newPanel has the faults of a site, or of all, as ticks at its foot, and a line from
// where on it is judged.
func newPanel(r *SoakResult, site string, m measure) *panel {
	p := &panel{Plot: plot.New(), scale: m.scale, unit: float64(time.Second)}
	title := []string{m.name}
	if site != "" {
		title = []string{site + ":", m.name}
	}
	if m.unit != "" {
		title = append(title, "("+m.unit+")")
	}
	p.Title.Text = strings.Join(title, " ")
	p.Title.TextStyle.Font = font.Font{Variant: "Sans", Size: vg.Points(9)}
	for _, axis := range []*plot.Axis{&p.X, &p.Y} {
		axis.Tick.Label.Font = font.Font{Variant: "Sans", Size: vg.Points(7)}
		axis.Label.TextStyle.Font = axis.Tick.Label.Font
		axis.Width, axis.Tick.Width = vg.Points(0.4), vg.Points(0.4)
	}
	p.Y.Tick.Marker = plainTicks{}
	p.X.Label.Text = "seconds"
	if r.Duration >= 10*time.Minute {
		p.X.Label.Text, p.unit = "minutes", float64(time.Minute)
	}
	p.X.Min, p.X.Max = 0, float64(r.Duration)/p.unit
	p.Y.Min, p.Y.Max = 0, 0
	marks := &marks{judged: float64(r.Judged) / p.unit}
	for _, f := range r.Faults {
		if site == "" || f.Site == site {
			marks.faults = append(marks.faults, f.Seconds*float64(time.Second)/p.unit)
		}
	}
	p.Add(marks)
	return p
}

// plainTicks are the usual ones, without needless zeros.
type plainTicks struct{ plot.DefaultTicks }

// Ticks implements plot.Ticker.
func (t plainTicks) Ticks(least, most float64) []plot.Tick {
	all := t.DefaultTicks.Ticks(least, most)
	for i := range all {
		if all[i].Label != "" {
			all[i].Label = strconv.FormatFloat(all[i].Value, 'g', 4, 64)
		}
	}
	return all
}

// line adds a line, drawn with fewer points than there are.
func (p *panel) line(points []point, tint color.Color, width vg.Length) error {
	each := (len(points) + plotPoints - 1) / plotPoints
	var xys plotter.XYs
	for some := range slices.Chunk(points, max(each, 1)) {
		values := make([]float64, len(some))
		for i := range some {
			values[i] = some[i].value
		}
		xys = append(xys, plotter.XY{X: float64(some[len(some)/2].at) / p.unit, Y: median(values) / p.scale})
	}
	if len(xys) == 0 {
		return nil
	}
	line, err := plotter.NewLine(xys)
	if err != nil {
		return fmt.Errorf("plotting %s: %w", p.Title.Text, err)
	}
	line.Color, line.Width = tint, width
	p.Add(line)
	return nil
}

// done leaves room above the lines, and begins at zero, so that nothing looks steeper than
// it is.
func (p *panel) done() *plot.Plot {
	p.Y.Min, p.Y.Max = 0, max(p.Y.Max*1.15, 1)
	return p.Plot
}

// marks draw the faults, and from when on is judged.
type marks struct {
	faults []float64
	judged float64
}

// Plot implements plot.Plotter.
func (m *marks) Plot(c draw.Canvas, p *plot.Plot) {
	x, _ := p.Transforms(&c)
	tick := draw.LineStyle{Color: faultColor, Width: vg.Points(0.6)}
	for _, f := range m.faults {
		c.StrokeLine2(tick, x(f), c.Min.Y, x(f), c.Min.Y+vg.Points(4))
	}
	from := draw.LineStyle{Color: judgedColor, Width: vg.Points(0.4), Dashes: []vg.Length{vg.Points(2), vg.Points(2)}}
	c.StrokeLine2(from, x(m.judged), c.Min.Y, x(m.judged), c.Max.Y)
}

// drawGrid draws rows of plots, all of one size.
func drawGrid(grid [][]*plot.Plot) ([]byte, error) {
	columns := 0
	for _, row := range grid {
		columns = max(columns, len(row))
	}
	for i := range grid {
		grid[i] = append(grid[i], make([]*plot.Plot, columns-len(grid[i]))...)
	}
	canvas := vgsvg.New(panelWidth*vg.Length(columns), panelHeight*vg.Length(len(grid)))
	tiles := draw.Tiles{
		Rows: len(grid), Cols: columns,
		PadX: plotMargin, PadY: plotMargin, PadTop: plotMargin, PadBottom: plotMargin, PadLeft: plotMargin, PadRight: plotMargin,
	}
	for i, row := range plot.Align(grid, tiles, draw.New(canvas)) {
		for j := range row {
			if grid[i][j] != nil {
				grid[i][j].Draw(row[j])
			}
		}
	}
	var out bytes.Buffer
	if _, err := canvas.WriteTo(&out); err != nil {
		return nil, err
	}
	return out.Bytes(), nil
}
