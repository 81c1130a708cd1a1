package main

import (
	"errors"
	"image/color"
	"os"
	"path/filepath"
	"strings"

	"gonum.org/v1/plot"
	"gonum.org/v1/plot/plotter"
	"gonum.org/v1/plot/text"
	"gonum.org/v1/plot/vg"
	"gonum.org/v1/plot/vg/draw"

	"github.com/shardgram/shardgram/bench/internal/proof"
)

var colors = []color.Color{
	color.RGBA{0x1b, 0x7f, 0x5c, 0xff},
	color.RGBA{0xe0, 0x7b, 0x2e, 0xff},
}

var grey = color.RGBA{0x9e, 0x9e, 0x9e, 0xff}

// chart draws the deliveries, and below them the memory of the worker, over
// time, into files.
func (r *report) chart(files ...string) error {
	pushes, memory := newPlot(), newPlot()
	pushes.Title.Text = "One post to " + proof.Count(r.N) + " followers"
	pushes.Y.Label.Text = "pushes, in thousands"
	memory.Y.Label.Text = "RSS of the worker, MB"
	memory.X.Label.Text = "seconds"
	for at, d := range r.Runs {
		if err := d.draw(pushes, memory, colors[at%len(colors)]); err != nil {
			return err
		}
		pushes.X.Max = max(pushes.X.Max, d.Seconds)
		pushes.Y.Max = max(pushes.Y.Max, 1.05*float64(d.Pushes)/1e3)
		memory.Y.Max = max(memory.Y.Max, 1.6*float64(d.MostRSS)/1e6)
	}
	memory.X.Max = pushes.X.Max
	pushes.Legend.Left, pushes.Legend.Top = true, true
	var errs []error
	for _, file := range files {
		errs = append(errs, save(file, pushes, memory))
	}
	return errors.Join(errs...)
}

func newPlot() *plot.Plot {
	p := plot.New()
	for _, style := range []*text.Style{
		&p.Title.TextStyle, &p.X.Label.TextStyle, &p.Y.Label.TextStyle, &p.X.Tick.Label, &p.Y.Tick.Label, &p.Legend.TextStyle,
	} {
		style.Font.Variant = "Sans"
		style.Font.Size = vg.Points(13)
	}
	p.Title.TextStyle.Font.Size = vg.Points(18)
	p.Title.Padding = vg.Points(8)
	p.Legend.XOffs, p.Legend.YOffs = vg.Points(12), -vg.Points(8)
	p.Legend.Padding = vg.Points(4)
	p.Legend.ThumbnailWidth = vg.Points(26)
	p.X.Min, p.Y.Min = 0, 0
	return p
}

// draw adds a line for each worker of the run, and one where it was killed.
func (d *delivery) draw(pushes, memory *plot.Plot, c color.Color) error {
	var legend []plot.Thumbnailer
	for number := 1; number <= 2; number++ {
		var done, rss plotter.XYs
		for _, at := range d.Samples {
			if at.Worker != number {
				continue
			}
			done = append(done, plotter.XY{X: at.Seconds, Y: float64(at.Pushes) / 1e3})
			rss = append(rss, plotter.XY{X: at.Seconds, Y: float64(at.RSS) / 1e6})
		}
		for p, points := range map[*plot.Plot]plotter.XYs{pushes: done, memory: rss} {
			if len(points) == 0 {
				continue
			}
			l, err := plotter.NewLine(points)
			if err != nil {
				return err
			}
			l.Color, l.Width = c, vg.Points(2.2)
			p.Add(l)
			if p == pushes {
				legend = append(legend, l)
			}
		}
	}
	pushes.Legend.Add(d.Name+"     ", legend[:1]...) // room for a wider font, in a browser
	if d.Kill == nil {
		return nil
	}
	for _, p := range []*plot.Plot{pushes, memory} {
		top := 1.05 * float64(d.Pushes) / 1e3
		if p == memory {
			top = 1.6 * float64(d.MostRSS) / 1e6
		}
		l, err := plotter.NewLine(plotter.XYs{{X: d.Kill.Seconds, Y: 0}, {X: d.Kill.Seconds, Y: top}})
		if err != nil {
			return err
		}
		l.Color, l.Width, l.Dashes = grey, vg.Points(1.2), []vg.Length{vg.Points(4), vg.Points(4)}
		p.Add(l)
		if p == pushes {
			p.Legend.Add("SIGKILL     ", l)
		}
	}
	return nil
}

// save writes the plots one above the other with a margin, on white, in the
// format that the file's name ends with.
func save(file string, plots ...*plot.Plot) error {
	const margin = 14
	format := strings.TrimPrefix(filepath.Ext(file), ".")
	canvas, err := draw.NewFormattedCanvas(10*vg.Inch, 8*vg.Inch, format)
	if err != nil {
		return err
	}
	page := draw.New(canvas)
	page.SetColor(color.White)
	page.Fill(page.Rectangle.Path())
	grid := make([][]*plot.Plot, len(plots))
	for i, p := range plots {
		grid[i] = []*plot.Plot{p}
	}
	tiles := draw.Tiles{Rows: len(plots), Cols: 1, PadY: vg.Points(16)}
	for i, row := range plot.Align(grid, tiles, draw.Crop(page, margin, -2*margin, margin, -margin)) {
		plots[i].Draw(row[0])
	}
	f, err := os.Create(file)
	if err != nil {
		return err
	}
	_, err = canvas.WriteTo(f)
	return errors.Join(err, f.Close())
}
