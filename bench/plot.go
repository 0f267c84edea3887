package bench

import (
	"bytes"
	"fmt"
	"image/color"
	"slices"

	"gonum.org/v1/plot"
	"gonum.org/v1/plot/font"
	"gonum.org/v1/plot/plotter"
	"gonum.org/v1/plot/vg"
	"gonum.org/v1/plot/vg/draw"
	"gonum.org/v1/plot/vg/vgsvg"
)

const (
	plotWidth  = 7.2 * vg.Inch
	rowHeight  = 0.26 * vg.Inch
	headHeight = 0.75 * vg.Inch
	barWidth   = 0.16 * vg.Inch
)

var tints = map[Kind]color.Color{
	Baseline: color.RGBA{R: 0x90, G: 0x90, B: 0x90, A: 0xff},
	ByHand:   color.RGBA{R: 0xb8, G: 0xb8, B: 0xb8, A: 0xff},
	Peer:     color.RGBA{R: 0xd0, G: 0x4a, B: 0x1e, A: 0xff},
	Ours:     color.RGBA{R: 0x1b, G: 0x6e, B: 0xc2, A: 0xff},
}

// Plot draws a bar for each row that was measured, a panel for each broker. The same result
// gives the same SVG.
func Plot(res *Result) ([]byte, error) {
	var panels []*plot.Plot
	var heights []vg.Length
	total := vg.Length(0)
	for _, b := range Brokers() {
		rows := slices.DeleteFunc(res.Summaries(b), func(s Summary) bool { return s.Runs == 0 })
		if len(rows) == 0 {
			continue
		}
		p, err := panel(b.Name, rows)
		if err != nil {
			return nil, err
		}
		height := headHeight + rowHeight*vg.Length(len(rows))
		panels, heights, total = append(panels, p), append(heights, height), total+height
	}
	canvas := vgsvg.New(plotWidth, max(total, headHeight))
	all := draw.New(canvas)
	above := vg.Length(0)
	for i, p := range panels {
		p.Draw(draw.Crop(all, 0, 0, total-above-heights[i], -above))
		above += heights[i]
	}
	var out bytes.Buffer
	if _, err := canvas.WriteTo(&out); err != nil {
		return nil, err
	}
	return out.Bytes(), nil
}

var axisFont = font.Font{Variant: "Sans", Size: vg.Points(7)}

// newPanel is an empty one.
func newPanel(title string) *plot.Plot {
	p := plot.New()
	p.Title.Text = title
	p.Title.TextStyle.Font = font.Font{Variant: "Sans", Size: vg.Points(9)}
	for _, axis := range []*plot.Axis{&p.X, &p.Y} {
		axis.Tick.Label.Font = axisFont
		axis.Width, axis.Tick.Width = vg.Points(0.4), vg.Points(0.4)
	}
	return p
}

// panel has the first row on top.
func panel(title string, rows []Summary) (*plot.Plot, error) {
	p := newPanel(title + ", thousand messages a second")
	slices.Reverse(rows)
	names := make([]string, len(rows))
	bars := map[Kind]plotter.Values{}
	for i := range rows {
		names[i] = rows[i].Row.Name
		kind := rows[i].Row.Kind
		if bars[kind] == nil {
			bars[kind] = make(plotter.Values, len(rows))
		}
		bars[kind][i] = rows[i].Rate / 1000
	}
	for _, kind := range []Kind{Baseline, ByHand, Peer, Ours} {
		if bars[kind] == nil {
			continue
		}
		chart, err := plotter.NewBarChart(bars[kind], barWidth)
		if err != nil {
			return nil, fmt.Errorf("plotting %s: %w", title, err)
		}
		chart.Horizontal, chart.Color, chart.LineStyle.Width = true, tints[kind], 0
		p.Add(chart)
	}
	p.NominalY(names...)
	p.X.Min = 0
	return p, nil
}
