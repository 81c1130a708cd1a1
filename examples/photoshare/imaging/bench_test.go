package imaging_test

import (
	"bytes"
	"image"
	"image/jpeg"
	"syscall"
	"testing"
	"time"

	"golang.org/x/image/draw"

	"github.com/shardgram/shardgram/examples/photoshare/imaging"
)

// BenchmarkSquare takes a 12 megapixel photograph, as a telephone sends it, all the way. Run it with -cpu 1 to
// see what one photograph costs; cpu-ms/op is the time of the whole process, so it counts the garbage collector.
func BenchmarkSquare(b *testing.B) {
	data := encode(b, contactSheet(b, 4032, 3024))
	p := processor(b)
	measure(b, func() {
		_, err := p.Square(b.Context(), bytes.NewReader(data))
		if err != nil {
			b.Fatal(err)
		}
	})
	b.SetBytes(int64(len(data)))
}

// BenchmarkDecode is the part of BenchmarkSquare that image/jpeg needs.
func BenchmarkDecode(b *testing.B) {
	data := encode(b, contactSheet(b, 4032, 3024))
	measure(b, func() {
		if _, err := jpeg.Decode(bytes.NewReader(data)); err != nil {
			b.Fatal(err)
		}
	})
}

// BenchmarkDirect is what BenchmarkSquare would be without the average: Catmull-Rom from all pixels.
func BenchmarkDirect(b *testing.B) {
	data := encode(b, contactSheet(b, 4032, 3024))
	measure(b, func() {
		img, err := jpeg.Decode(bytes.NewReader(data))
		if err != nil {
			b.Fatal(err)
		}
		for _, size := range imaging.Sizes() {
			var out bytes.Buffer
			if err := jpeg.Encode(&out, direct(img, size), &jpeg.Options{Quality: 85}); err != nil {
				b.Fatal(err)
			}
			if size == imaging.Large {
				img = direct(img, size)
			}
		}
	})
}

func measure(b *testing.B, fn func()) {
	b.ReportAllocs()
	begin := cpu(b)
	for b.Loop() {
		fn()
	}
	b.ReportMetric(float64((cpu(b)-begin).Microseconds())/1000/float64(b.N), "cpu-ms/op")
}

func cpu(tb testing.TB) time.Duration {
	tb.Helper()
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		tb.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// direct is the slow way that the results are compared with.
func direct(img image.Image, size imaging.Size) *image.RGBA {
	b := img.Bounds()
	side := min(b.Dx(), b.Dy())
	at := image.Pt((b.Dx()-side)/2, (b.Dy()-side)/2)
	dst := image.NewRGBA(image.Rect(0, 0, int(size), int(size)))
	draw.CatmullRom.Scale(dst, dst.Rect, img, image.Rect(0, 0, side, side).Add(at), draw.Src, nil)
	return dst
}
