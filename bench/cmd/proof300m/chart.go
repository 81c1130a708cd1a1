package main

import (
	"errors"
	"fmt"
	"image/color"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"gonum.org/v1/plot"
	"gonum.org/v1/plot/plotter"
	"gonum.org/v1/plot/text"
	"gonum.org/v1/plot/vg"
	"gonum.org/v1/plot/vg/draw"
)

// The kinds of bar, in the order of the legend.
var kinds = []struct {
	name  string
	color color.Color
}{
	{"least possible", color.RGBA{0x9e, 0x9e, 0x9e, 0xff}},
	{"hashkv, measured", color.RGBA{0x1b, 0x7f, 0x5c, 0xff}},
	{"others, measured", color.RGBA{0x3b, 0x6f, 0xb6, 0xff}},
	{"published in 2011", color.RGBA{0xe0, 0x9f, 0x3e, 0xff}},
}

type column struct {
	label string
	bytes float64
	kind  int
}

// columns returns the bars of the chart from the top down.
func (r *report) columns() []column {
	all := []column{
		{"dense", leastDense(), 0},
		{"sparse", leastSparse(r.N), 0},
	}
	var own, others []column
	for _, d := range r.Results {
		c := column{d.Name + ", " + short(d.Keys), d.BytesPerKey, 2}
		if d.Stats != nil {
			c.kind = 1
			own = append(own, c)
		} else {
			others = append(others, c)
		}
	}
	all = slices.Concat(all, own, others, []column{
		{"Instagram: hashes, 300M", publishedHashes, 3},
		{"Instagram: memcached, 1M", publishedMemcached, 3},
		{"Instagram: string keys, 300M", publishedStrings, 3},
	})
	return all
}

// short writes 3000000 as "3M".
func short(n int64) string {
	switch {
	case n%1_000_000 == 0:
		return fmt.Sprintf("%dM", n/1_000_000)
	case n%1000 == 0:
		return fmt.Sprintf("%dk", n/1000)
	}
	return fmt.Sprint(n)
}

// chart draws the bytes per key of all layouts into files.
func (r *report) chart(files ...string) error {
	p := plot.New()
	p.Title.Text = "Memory for a pair of photo and owner"
	for _, style := range []*text.Style{
		&p.Title.TextStyle, &p.X.Label.TextStyle, &p.X.Tick.Label, &p.Y.Tick.Label, &p.Legend.TextStyle,
	} {
		style.Font.Variant = "Sans"
	}
	p.Title.TextStyle.Font.Size = vg.Points(18)
	p.Title.Padding = vg.Points(8)
	p.X.Label.Text = "bytes per key"
	p.X.Label.TextStyle.Font.Size = vg.Points(14)
	p.X.Tick.Label.Font.Size = vg.Points(12)
	p.Y.Tick.Label.Font.Size = vg.Points(13)
	p.Y.Tick.Length = 0
	p.Y.LineStyle.Width = 0
	// A browser may not have the font that the SVG was laid out for. This is
	// room for a wider one.
	p.Y.Padding = vg.Points(26)
	p.Legend.Top, p.Legend.XOffs, p.Legend.YOffs = true, -vg.Points(10), -vg.Points(10)
	p.Legend.TextStyle.Font.Size = vg.Points(13)
	p.Legend.ThumbnailWidth = vg.Points(16)
	p.Legend.Padding = vg.Points(3)

	columns := r.columns()
	slices.Reverse(columns) // the axis goes up
	names := make([]string, len(columns))
	drawn := make([]*plotter.BarChart, len(kinds))
	var labels plotter.XYLabels
	for at, c := range columns {
		names[at] = c.label
		bar, err := plotter.NewBarChart(plotter.Values{c.bytes}, vg.Points(19))
		if err != nil {
			return err
		}
		bar.Horizontal, bar.XMin = true, float64(at)
		bar.Color, bar.LineStyle.Width = kinds[c.kind].color, 0
		p.Add(bar)
		drawn[c.kind] = bar
		labels.XYs = append(labels.XYs, plotter.XY{X: c.bytes, Y: float64(at)})
		labels.Labels = append(labels.Labels, fmt.Sprintf(" %.2f", c.bytes))
		p.X.Max = max(p.X.Max, c.bytes*1.12)
	}
	values, err := plotter.NewLabels(labels)
	if err != nil {
		return err
	}
	for i := range values.TextStyle {
		values.TextStyle[i].Font.Size = vg.Points(13)
		values.TextStyle[i].Font.Variant = "Sans"
		values.TextStyle[i].YAlign = -0.4
	}
	p.Add(values)
	for at, kind := range kinds {
		if drawn[at] != nil {
			p.Legend.Add(kind.name+"     ", drawn[at]) // room, as above
		}
	}
	p.NominalY(names...)
	p.X.Min = 0
	var errs []error
	for _, file := range files {
		errs = append(errs, save(p, file))
	}
	return errors.Join(errs...)
}

// save writes p with a margin, on white, in the format that the file's name
// ends with.
func save(p *plot.Plot, file string) error {
	const margin = 14
	format := strings.TrimPrefix(filepath.Ext(file), ".")
	canvas, err := draw.NewFormattedCanvas(11*vg.Inch, 7*vg.Inch, format)
	if err != nil {
		return err
	}
	page := draw.New(canvas)
	page.SetColor(color.White)
	page.Fill(page.Rectangle.Path())
	p.Draw(draw.Crop(page, margin, -margin, margin, -margin))
	f, err := os.Create(file)
	if err != nil {
		return err
	}
	_, err = canvas.WriteTo(f)
	return errors.Join(err, f.Close())
}
