package imaging

import (
	"image"
	"math"
)

// resize scales a square picture to a side with the Catmull-Rom kernel. It may return src itself.
//
// CatmullRom of golang.org/x/image/draw would do, but takes twice the time: it works in floating point, and that made a
// sixth of all that a photograph costs. The tests compare with it.
func resize(src *image.RGBA, size Size) *image.RGBA {
	side := int(size)
	if src.Rect.Dx() == side {
		return src
	}
	kernel := catmullRom(side, src.Rect.Dx())
	return turn(turn(src, kernel), kernel)
}

// one is the sum of the weights of a kernel. 14 bits leave room in an int32 for 8 bits of colour and for kernels
// whose negative weights make the positive ones sum to more.
const one = 1 << 14

// taps says which pixels of a row a scaled pixel is the sum of.
type taps struct {
	first   int // the first pixel
	weights []int32
}

// turn scales the rows of a picture and returns them as columns, so that turning twice scales both ways.
func turn(src *image.RGBA, kernel []taps) *image.RGBA {
	height := src.Rect.Dy()
	dst := image.NewRGBA(image.Rect(0, 0, height, len(kernel)))
	for y := range height {
		row := src.Pix[y*src.Stride : (y+1)*src.Stride]
		for x, t := range kernel {
			r, g, b := int32(one/2), int32(one/2), int32(one/2)
			for i, w := range t.weights {
				p := row[4*(t.first+i):][:3:3]
				r += w * int32(p[0])
				g += w * int32(p[1])
				b += w * int32(p[2])
			}
			out := dst.Pix[x*dst.Stride+4*y:][:4:4]
			out[0], out[1], out[2], out[3] = level(r), level(g), level(b), 0xFF
		}
	}
	return dst
}

// level cuts off what a sharpening kernel adds beyond black and white.
func level(sum int32) uint8 { return uint8(min(max(sum/one, 0), 0xFF)) }

// catmullRom returns the taps for scaling a row of pixels to a width.
func catmullRom(dst, src int) []taps {
	ratio := float64(src) / float64(dst)
	spread := max(ratio, 1) // a row that shrinks needs a wider kernel, so that each of its pixels counts
	kernel := make([]taps, dst)
	for x := range kernel {
		centre := (float64(x)+0.5)*ratio - 0.5
		first := max(int(math.Ceil(centre-2*spread)), 0)
		last := min(int(math.Floor(centre+2*spread)), src-1)
		weights := make([]float64, last-first+1)
		total := 0.0
		for i := range weights {
			weights[i] = cubic(math.Abs(float64(first+i)-centre) / spread)
			total += weights[i]
		}

		// Rounding adds at most half of 2^-14 for each of some 16 taps: less than it takes to change an even surface.
		t := taps{first: first, weights: make([]int32, len(weights))}
		for i, w := range weights {
			t.weights[i] = int32(math.Round(w / total * one))
		}
		kernel[x] = t
	}
	return kernel
}

// cubic is the Catmull-Rom kernel at a distance of at least 0.
func cubic(t float64) float64 {
	switch {
	case t < 1:
		return (1.5*t-2.5)*t*t + 1
	case t < 2:
		return ((-0.5*t+2.5)*t-4)*t + 2
	}
	return 0
}
