package bench

import (
	"bytes"
	"fmt"
	"image/color"
	"slices"

	"gonum.org/v1/plot"
	"gonum.org/v1/plot/plotter"
	"gonum.org/v1/plot/vg"
	"gonum.org/v1/plot/vg/draw"
	"gonum.org/v1/plot/vg/vgsvg"
)

const (
	sizePanelWidth  = 3.6 * vg.Inch
	sizePanelHeight = 2.4 * vg.Inch
	sizeColumns     = 2
)

var layoutTints = map[string]color.Color{"records": tints[Ours], "compact": tints[Peer]}

// point is a layout's at a value.
type point struct {
	layout string
	x, y   float64
}

// Plot draws a panel for each part that was measured. The same records give the same SVG.
func (z *Sizing) Plot() ([]byte, error) {
	var panels []*plot.Plot
	add := func(title, x string, log bool, points []point) error {
		if len(points) == 0 {
			return nil
		}
		p, err := linePanel(title, x, log, points)
		panels = append(panels, p)
		return err
	}
	var memory, speed []point
	for i := range z.Tokens {
		r := &z.Tokens[i]
		if r.Load == nil {
			continue
		}
		n := float64(r.Tokens)
		memory = append(memory, point{r.Layout, n, float64(r.Used) / 1e9})
		speed = append(speed, point{r.Layout, n, r.Load.Rate() / 1000})
	}
	for _, err := range []error{
		add("Memory, GB", "remembered tokens", true, memory),
		add("Do, thousand a second", "remembered tokens", true, speed),
		add("Kafka, thousand messages a second", "partitions", true, sizedPoints(z.Partitions)),
		add("Do, handlers of 1 ms, thousand a second", "goroutines", true, sizedPoints(z.Handlers)),
		add("Do, thousand a second", "duplicates, %", false, sizedPoints(z.Duplicates)),
	} {
		if err != nil {
			return nil, err
		}
	}
	lines := (len(panels) + sizeColumns - 1) / sizeColumns
	height := sizePanelHeight * vg.Length(max(1, lines))
	canvas := vgsvg.New(sizePanelWidth*sizeColumns, height)
	all := draw.New(canvas)
	for i, p := range panels {
		left, above := sizePanelWidth*vg.Length(i%sizeColumns), sizePanelHeight*vg.Length(i/sizeColumns)
		p.Draw(draw.Crop(all, left, left+sizePanelWidth-sizePanelWidth*sizeColumns, height-above-sizePanelHeight, -above))
	}
	var out bytes.Buffer
	if _, err := canvas.WriteTo(&out); err != nil {
		return nil, err
	}
	return out.Bytes(), nil
}

func sizedPoints(all []Sized) (points []point) {
	for i := range all {
		if s := &all[i]; s.Failed == "" {
			points = append(points, point{s.Layout, s.Value, s.Rate() / 1000})
		}
	}
	return points
}

// linePanel has a line for each layout.
func linePanel(title, x string, log bool, points []point) (*plot.Plot, error) {
	p := newPanel(title)
	p.X.Label.Text, p.X.Label.TextStyle.Font = x, axisFont
	if log {
		p.X.Scale, p.X.Tick.Marker = plot.LogScale{}, valueTicks(points)
	}
	p.Legend.Top, p.Legend.Left, p.Legend.TextStyle.Font = true, true, axisFont
	for _, l := range layouts() {
		var line plotter.XYs
		for _, pt := range points {
			if pt.layout == l.name {
				line = append(line, plotter.XY{X: pt.x, Y: pt.y})
			}
		}
		if len(line) == 0 {
			continue
		}
		curve, dots, err := plotter.NewLinePoints(line)
		if err != nil {
			return nil, fmt.Errorf("plotting %s: %w", title, err)
		}
		curve.Color, dots.Color, dots.Radius = layoutTints[l.name], layoutTints[l.name], vg.Points(2)
		dots.Shape = draw.CircleGlyph{}
		p.Add(curve, dots)
		p.Legend.Add(l.name, curve)
	}
	p.Y.Min, p.Y.Max = 0, p.Y.Max*1.25 // the legend has room
	return p, nil
}

// valueTicks are at the values that were measured.
func valueTicks(points []point) plot.ConstantTicks {
	var at []float64
	for _, pt := range points {
		at = append(at, pt.x)
	}
	slices.Sort(at)
	var ticks plot.ConstantTicks
	for _, x := range slices.Compact(at) {
		label := short0(x)
		if x >= 1e6 {
			label = short0(x/1e6) + " M"
		}
		ticks = append(ticks, plot.Tick{Value: x, Label: label})
	}
	return ticks
}
