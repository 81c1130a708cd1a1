package imaging

import (
	"image"
	"image/color"

	"golang.org/x/image/draw"
)

// shrink cuts out the centre square of a decoded picture and averages blocks of n×n pixels, with the largest n
// that leaves a side of at least want pixels. A smaller picture keeps its size.
//
// The average is taken in the planes as they were decoded, so that only what is left is converted to RGB.
func shrink(img image.Image, want int) *image.RGBA {
	bounds := img.Bounds() // a decoded picture begins at 0, 0
	side := min(bounds.Dx(), bounds.Dy())
	n := max(1, side/want)
	side -= side % n
	at := image.Pt((bounds.Dx()-side)/2, (bounds.Dy()-side)/2)
	dst := image.NewRGBA(image.Rect(0, 0, side/n, side/n))

	switch img := img.(type) {
	case *image.YCbCr:
		h, v := sharing(img.SubsampleRatio)
		plane{img.Y, img.YStride, 1, 1, 1}.average(dst, 0, n, at)
		plane{img.Cb, img.CStride, 1, h, v}.average(dst, 1, n, at)
		plane{img.Cr, img.CStride, 1, h, v}.average(dst, 2, n, at)
		for i := 0; i < len(dst.Pix); i += 4 {
			p := dst.Pix[i : i+4 : i+4]
			p[0], p[1], p[2] = color.YCbCrToRGB(p[0], p[1], p[2])
			p[3] = 0xFF
		}
	case *image.Gray:
		plane{img.Pix, img.Stride, 1, 1, 1}.average(dst, 0, n, at)
		for i := 0; i < len(dst.Pix); i += 4 {
			p := dst.Pix[i : i+4 : i+4]
			p[1], p[2], p[3] = p[0], p[0], 0xFF
		}
	default: // RGB or CMYK, which no camera writes: simple before fast
		square := image.NewRGBA(image.Rect(0, 0, side, side))
		draw.Draw(square, square.Rect, img, at, draw.Src)
		for channel := range 4 {
			plane{square.Pix[channel:], square.Stride, 4, 1, 1}.average(dst, channel, n, image.Point{})
		}
	}
	return dst
}

// resize scales a square picture to a side. It may return src itself.
func resize(src *image.RGBA, size Size) *image.RGBA {
	side := int(size)
	if src.Rect.Dx() == side {
		return src
	}
	dst := image.NewRGBA(image.Rect(0, 0, side, side))
	draw.CatmullRom.Scale(dst, dst.Rect, src, src.Rect, draw.Src, nil)
	return dst
}

// plane is one channel of a picture.
type plane struct {
	pix          []uint8
	stride, step int // from one sample to the one below, and to the one on its right, in bytes
	h, v         int // how many pixels share a sample, across and down
}

// average fills a channel of dst with the means of blocks of n×n pixels, the first block at a point of p.
func (p plane) average(dst *image.RGBA, channel, n int, at image.Point) {
	nx, ny := n, n
	if n%p.h == 0 && at.X%p.h == 0 { // whole samples: count each once, as the mean is the same
		nx, at.X, p.h = n/p.h, at.X/p.h, 1
	}
	if n%p.v == 0 && at.Y%p.v == 0 {
		ny, at.Y, p.v = n/p.v, at.Y/p.v, 1
	}

	side := dst.Rect.Dx()
	columns := make([][]int32, nx) // for the i-th column of all blocks, where its samples are in a row
	for i := range columns {
		columns[i] = make([]int32, side)
		for x := range columns[i] {
			columns[i][x] = int32((at.X + x*nx + i) / p.h * p.step)
		}
	}
	sums := make([]uint32, side)
	// Multiplying by a reciprocal that is rounded up gives what dividing gives, halves included, as n is at most 16.
	area := uint64(nx * ny)
	reciprocal := (1<<32 + area - 1) / area
	for y := range side {
		clear(sums)
		for dy := range ny {
			row := p.pix[(at.Y+y*ny+dy)/p.v*p.stride:]
			for _, samples := range columns {
				for x, sample := range samples {
					sums[x] += uint32(row[sample])
				}
			}
		}
		out := dst.Pix[y*dst.Stride+channel:]
		for x, sum := range sums {
			out[4*x] = uint8((uint64(sum)*reciprocal + 1<<31) >> 32)
		}
	}
}

// sharing returns how many pixels share a colour sample, across and down.
func sharing(ratio image.YCbCrSubsampleRatio) (h, v int) {
	switch ratio {
	case image.YCbCrSubsampleRatio422:
		return 2, 1
	case image.YCbCrSubsampleRatio420:
		return 2, 2
	case image.YCbCrSubsampleRatio440:
		return 1, 2
	case image.YCbCrSubsampleRatio411:
		return 4, 1
	case image.YCbCrSubsampleRatio410:
		return 4, 2
	}
	return 1, 1
}

// upright undoes an EXIF orientation of a square picture.
func upright(src *image.RGBA, orientation int) *image.RGBA {
	if orientation == 1 {
		return src
	}
	dst := image.NewRGBA(src.Rect)
	last := src.Rect.Dx() - 1
	for y := range last + 1 {
		for x := range last + 1 {
			sx, sy := x, y
			if orientation >= 5 {
				sx, sy = y, x
			}
			switch orientation {
			case 2, 8:
				sx = last - sx
			case 3, 7:
				sx, sy = last-sx, last-sy
			case 4, 6:
				sy = last - sy
			}
			copy(dst.Pix[y*dst.Stride+4*x:][:4], src.Pix[sy*src.Stride+4*sx:][:4])
		}
	}
	return dst
}
