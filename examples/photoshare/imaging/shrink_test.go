package imaging_test

import (
	"fmt"
	"image"
	"image/color"
	"math/rand/v2"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/shardgram/shardgram/examples/photoshare/imaging"
)

// The average of planes equals one that is taken pixel by pixel, wherever blocks and shared samples cut each other.
func TestAverageOfPlanes(t *testing.T) {
	t.Parallel()
	for _, ratio := range []image.YCbCrSubsampleRatio{
		image.YCbCrSubsampleRatio444, image.YCbCrSubsampleRatio422, image.YCbCrSubsampleRatio420,
		image.YCbCrSubsampleRatio440, image.YCbCrSubsampleRatio411, image.YCbCrSubsampleRatio410,
	} {
		for _, size := range []image.Point{{1, 1}, {64, 48}, {47, 66}, {95, 31}, {53, 53}} {
			for _, want := range []int{2, 7, 10, 12, 100} {
				t.Run(fmt.Sprintf("%v/%v/%d", ratio, size, want), func(t *testing.T) {
					t.Parallel()
					img := image.NewYCbCr(image.Rectangle{Max: size}, ratio)
					for _, plane := range [][]uint8{img.Y, img.Cb, img.Cr} {
						noise(plane)
					}
					got := imaging.Shrink(img, want)
					require.Equal(t, naive(img, want, func(x, y int) []uint8 {
						c := img.YCbCrAt(x, y)
						return []uint8{c.Y, c.Cb, c.Cr}
					}, func(c []uint8) color.RGBA {
						r, g, b := color.YCbCrToRGB(c[0], c[1], c[2])
						return color.RGBA{r, g, b, 255}
					}), got)
				})
			}
		}
	}
}

func TestAverageOfOtherPictures(t *testing.T) {
	t.Parallel()
	for _, size := range []image.Point{{1, 1}, {64, 48}, {47, 66}, {500, 500}} {
		for _, want := range []int{2, 7, 31, 1000} {
			if min(size.X, size.Y)/want > 16 {
				continue // nothing that passes the limits is averaged over more
			}
			grey := image.NewGray(image.Rectangle{Max: size})
			noise(grey.Pix)
			require.Equal(t, naive(grey, want, func(x, y int) []uint8 { return []uint8{grey.GrayAt(x, y).Y} },
				func(c []uint8) color.RGBA { return color.RGBA{c[0], c[0], c[0], 255} }), imaging.Shrink(grey, want))

			ink := image.NewCMYK(image.Rectangle{Max: size})
			noise(ink.Pix)
			require.Equal(t, naive(ink, want, func(x, y int) []uint8 {
				c := color.RGBAModel.Convert(ink.At(x, y)).(color.RGBA)
				return []uint8{c.R, c.G, c.B}
			}, func(c []uint8) color.RGBA { return color.RGBA{c[0], c[1], c[2], 255} }), imaging.Shrink(ink, want))
		}
	}
}

// naive shrinks a picture with one division for each pixel.
func naive(img image.Image, want int, at func(x, y int) []uint8, toRGB func([]uint8) color.RGBA) *image.RGBA {
	size := img.Bounds().Size()
	side := min(size.X, size.Y)
	n := max(1, side/want)
	side -= side % n
	left, top := (size.X-side)/2, (size.Y-side)/2
	dst := image.NewRGBA(image.Rect(0, 0, side/n, side/n))
	for y := range side / n {
		for x := range side / n {
			var sums [3]int
			for i := range n * n {
				for c, v := range at(left+x*n+i%n, top+y*n+i/n) {
					sums[c] += int(v)
				}
			}
			var mean [3]uint8
			for c, sum := range sums {
				mean[c] = uint8((2*sum + n*n) / (2 * n * n))
			}
			dst.SetRGBA(x, y, toRGB(mean[:]))
		}
	}
	return dst
}

func noise(pix []uint8) {
	random := rand.New(rand.NewPCG(1, uint64(len(pix))))
	for i := range pix {
		pix[i] = uint8(random.Uint32())
	}
}
