package imaging_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"image"
	"image/color"
	"image/draw"
	"image/jpeg"
	"image/png"
	"io"
	"math"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"testing/iotest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/shardgram/shardgram/examples/photoshare/imaging"
	"github.com/shardgram/shardgram/internal/testserver"
)

func TestMain(m *testing.M) { testserver.Main(m) }

func TestSquareOfRealPhotographs(t *testing.T) {
	t.Parallel()
	p := processor(t)
	files, err := filepath.Glob("../testdata/*.jpg")
	require.NoError(t, err)
	require.Len(t, files, 6)
	for _, file := range files {
		t.Run(filepath.Base(file), func(t *testing.T) {
			t.Parallel()
			data := photograph(t, filepath.Base(file))
			photo, err := p.Square(t.Context(), bytes.NewReader(data))
			require.NoError(t, err)
			require.Len(t, photo, 3)
			for _, size := range imaging.Sizes() {
				require.Equal(t, image.Rect(0, 0, int(size), int(size)), decode(t, photo[size]).Bounds())
				require.Less(t, len(photo[size]), 100_000)
			}
			// Quality 85 alone leaves 31.3 dB of the astronaut, who loses most.
			got := decode(t, photo[imaging.Thumb])
			require.Greater(t, psnr(direct(decode(t, data), imaging.Thumb), got), 31.0)
		})
	}
}

// A large photograph goes through the average; what comes out must look like Catmull-Rom from all pixels.
func TestLargePhotographLooksLikeTheSlowWay(t *testing.T) {
	t.Parallel()
	p := processor(t)
	data := encode(t, contactSheet(t, 2600, 2448))
	photo, err := p.Square(t.Context(), bytes.NewReader(data))
	require.NoError(t, err)
	want := decode(t, encode(t, direct(decode(t, data), imaging.Large)))
	require.Greater(t, psnr(want, decode(t, photo[imaging.Large])), 36.0)
}

func TestEveryKindOfJPEG(t *testing.T) {
	t.Parallel()
	p := processor(t)
	for _, kind := range []struct {
		name       string
		components []component
		adobe      int
	}{
		{name: "Gray", components: gray},
		{name: "YCbCr444", components: yuv44},
		{name: "YCbCr422", components: yuv22},
		{name: "YCbCr420", components: yuv20},
		{name: "YCbCr440", components: yuv40},
		{name: "YCbCr411", components: yuv11},
		{name: "YCbCr410", components: yuv10},
		{name: "RGB", components: rgb},
		{name: "AdobeRGB", components: yuv44, adobe: 1},
		{name: "CMYK", components: cmyk, adobe: 1},
		{name: "YCCK", components: cmyk, adobe: 3},
	} {
		for _, progressive := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s/progressive=%v", kind.name, progressive), func(t *testing.T) {
				t.Parallel()
				const width, height = 257, 191
				data := fixture{
					width: width, height: height, components: kind.components, adobe: kind.adobe, progressive: progressive,
					level: func(x, y int) []uint8 {
						return []uint8{uint8(60 + 130*x/width), uint8(150 - 50*y/height), uint8(90 + 70*x/width), 180}
					},
				}.jpeg()
				photo, err := p.Square(t.Context(), bytes.NewReader(data))
				require.NoError(t, err)
				require.Equal(t, image.Rect(0, 0, 612, 612), decode(t, photo[imaging.Large]).Bounds())
				got := decode(t, photo[imaging.Thumb])
				require.Greater(t, psnr(direct(decode(t, data), imaging.Thumb), got), 38.0)
			})
		}
	}
}

func TestSinglePixel(t *testing.T) {
	t.Parallel()
	for _, components := range [][]component{gray, yuv10, rgb} {
		data := fixture{
			width: 1, height: 1, components: components,
			level: func(_, _ int) []uint8 { return []uint8{90, 128, 128} },
		}.jpeg()
		photo, err := processor(t).Square(t.Context(), bytes.NewReader(data))
		require.NoError(t, err)
		want := color.RGBAModel.Convert(decode(t, data).At(0, 0)).(color.RGBA)
		for size, data := range photo {
			requireColor(t, want, decode(t, data).At(int(size)/2, int(size)-1))
		}
	}
}

func TestOrientation(t *testing.T) {
	t.Parallel()
	// The picture is stored as
	//	red   green
	//	blue  white
	var (
		r = color.RGBA{R: 255, A: 255}
		g = color.RGBA{G: 255, A: 255}
		b = color.RGBA{B: 255, A: 255}
		w = color.RGBA{R: 255, G: 255, B: 255, A: 255}
	)
	for _, c := range []struct {
		orientation                                uint16
		topLeft, topRight, bottomLeft, bottomRight color.RGBA
	}{
		{1, r, g, b, w}, // as it is
		{2, g, r, w, b}, // mirrored
		{3, w, b, g, r}, // half a turn
		{4, b, w, r, g}, // upside down
		{5, r, b, g, w}, // rows become columns
		{6, b, r, w, g}, // a quarter turn to the right
		{7, w, g, b, r}, // half a turn, then rows become columns
		{8, g, w, r, b}, // a quarter turn to the left
	} {
		for _, order := range []binary.AppendByteOrder{binary.LittleEndian, binary.BigEndian} {
			size := image.Pt(160, 64)
			if order == binary.BigEndian {
				size = image.Pt(64, 160)
			}
			t.Run(fmt.Sprintf("%d/%v", c.orientation, order), func(t *testing.T) {
				t.Parallel()
				data := fixture{
					width: size.X, height: size.Y, components: rgb, segments: exif(order, c.orientation),
					level: func(x, y int) []uint8 {
						switch {
						case x < size.X/2 && y < size.Y/2:
							return []uint8{255, 0, 0}
						case y < size.Y/2:
							return []uint8{0, 255, 0}
						case x < size.X/2:
							return []uint8{0, 0, 255}
						}
						return []uint8{255, 255, 255}
					},
				}.jpeg()
				photo, err := processor(t).Square(t.Context(), bytes.NewReader(data))
				require.NoError(t, err)
				for size, data := range photo {
					got, last := decode(t, data), int(size)-1
					requireColor(t, c.topLeft, got.At(2, 2))
					requireColor(t, c.topRight, got.At(last-2, 2))
					requireColor(t, c.bottomLeft, got.At(2, last-2))
					requireColor(t, c.bottomRight, got.At(last-2, last-2))
				}
			})
		}
	}
}

func TestTruncatedEXIFIsRead(t *testing.T) {
	t.Parallel()
	for _, order := range []binary.AppendByteOrder{binary.LittleEndian, binary.BigEndian} {
		app1 := exif(order, 6)[4:]
		for n := range app1 {
			got, _ := imaging.Orientation(app1[:n:n])
			require.Contains(t, []int{1, 6}, got, "%d bytes", n)
		}
	}
}

func TestCentreIsCutOut(t *testing.T) {
	t.Parallel()
	for _, c := range []struct{ width, height int }{{192, 64}, {64, 192}} {
		t.Run(fmt.Sprintf("%dx%d", c.width, c.height), func(t *testing.T) {
			t.Parallel()
			side := min(c.width, c.height)
			data := fixture{
				width: c.width, height: c.height, components: yuv44,
				level: func(x, y int) []uint8 {
					if x >= (c.width-side)/2 && x < (c.width+side)/2 && y >= (c.height-side)/2 && y < (c.height+side)/2 {
						return []uint8{200, 128, 128}
					}
					return []uint8{20, 128, 128}
				},
			}.jpeg()
			photo, err := processor(t).Square(t.Context(), bytes.NewReader(data))
			require.NoError(t, err)
			light := color.RGBA{R: 200, G: 200, B: 200, A: 255}
			for size, data := range photo {
				got, last := decode(t, data), int(size)-1
				for _, at := range []image.Point{{0, 0}, {last, 0}, {0, last}, {last, last}, {last / 2, last / 2}} {
					requireColor(t, light, got.At(at.X, at.Y))
				}
			}
		})
	}
}

func TestMetadataIsLeftBehind(t *testing.T) {
	t.Parallel()
	const comment = "taken at home"
	segments := exif(binary.LittleEndian, 6)
	segments = append(segments, segment(0xE1, []byte("http://ns.adobe.com/xap/1.0/\x00<xmp>"+comment+"</xmp>"))...)
	segments = append(segments, segment(0xE2, []byte("ICC_PROFILE\x00"+comment))...)
	segments = append(segments, segment(0xFE, []byte(comment))...)
	data := fixture{width: 64, height: 64, components: yuv20, segments: segments}.jpeg()
	data = append(data, comment...)

	photo, err := processor(t).Square(t.Context(), bytes.NewReader(data))
	require.NoError(t, err)
	for _, secret := range []string{
		"Exif", "MM\x00*", "II*\x00", camera, day, "xap", "ICC", comment, "\xFF\xE0", "\xFF\xE1", "\xFF\xE2", "\xFF\xFE",
	} {
		if secret != "MM\x00*" && secret != "\xFF\xE0" {
			require.Contains(t, string(data), secret, "the test must have something to find")
		}
		for size, out := range photo {
			require.NotContains(t, string(out), secret, "size %v", size)
		}
	}
}

func TestRefusals(t *testing.T) {
	t.Parallel()
	good := fixture{width: 64, height: 64, components: yuv20}
	var portable bytes.Buffer
	require.NoError(t, png.Encode(&portable, image.NewGray(image.Rect(0, 0, 8, 8))))
	padded := func(length int) []byte { return append(good.jpeg(), make([]byte, length-len(good.jpeg()))...) }
	// Only the header: were it decoded before it is checked, it would be found damaged.
	claim := func(width, height int) []byte {
		return append(fixture{width: width, height: height, components: yuv20}.header(), 0xFF, 0xDA, 0, 2)
	}

	for _, c := range []struct {
		name string
		data []byte
		want error
	}{
		{"Nothing", nil, imaging.ErrNotJPEG},
		{"OneByte", []byte{0xFF}, imaging.ErrNotJPEG},
		{"Text", []byte("hello"), imaging.ErrNotJPEG},
		{"HTML", []byte("<!DOCTYPE html><script>alert(1)</script>"), imaging.ErrNotJPEG},
		{"PNG", portable.Bytes(), imaging.ErrNotJPEG},
		{"GIF", []byte("GIF89a\x01\x00\x01\x00"), imaging.ErrNotJPEG},
		{"StartMarkerOnly", []byte{0xFF, 0xD8}, imaging.ErrDamaged},
		{"NoPicture", []byte{0xFF, 0xD8, 0xFF, 0xD9}, imaging.ErrDamaged},
		{"HeaderOnly", claim(64, 64), imaging.ErrDamaged},
		{"NoPixels", claim(0, 64), imaging.ErrDamaged},
		{"NoRows", claim(64, 0), imaging.ErrDamaged},
		{"FourComponentsOfUnknownMeaning", fixture{width: 8, height: 8, components: cmyk}.jpeg(), imaging.ErrDamaged},
		{"FiftyScans", fixture{width: 64, height: 64, components: gray, progressive: true, scans: 50}.jpeg(), nil},
		{"FiftyOneScans", fixture{width: 64, height: 64, components: gray, progressive: true, scans: 51}.jpeg(), imaging.ErrDamaged},
		{"AsLongAsAllowed", padded(imaging.MaxBytes), nil},
		{"AByteTooLong", padded(imaging.MaxBytes + 1), imaging.ErrTooLarge},
		{"LongGarbage", make([]byte, imaging.MaxBytes+1), imaging.ErrTooLarge},
		{"AsManyPixelsAsAllowed", claim(8000, 5000), imaging.ErrDamaged},
		{"AColumnTooMany", claim(8001, 5000), imaging.ErrTooManyPixels},
		{"ARowTooMany", claim(8000, 5001), imaging.ErrTooManyPixels},
		{"Bomb", claim(65535, 65535), imaging.ErrTooManyPixels},
		{"AsWideAsAllowed", fixture{width: 20000, height: 1, components: yuv20}.jpeg(), nil},
		{"AsHighAsAllowed", fixture{width: 1, height: 20000, components: yuv20}.jpeg(), nil},
		{"TooWide", fixture{width: 20001, height: 1, components: yuv20}.jpeg(), imaging.ErrTooManyPixels},
		{"TooHigh", fixture{width: 1, height: 20001, components: yuv20}.jpeg(), imaging.ErrTooManyPixels},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			photo, err := processor(t).Square(t.Context(), bytes.NewReader(c.data))
			require.ErrorIs(t, err, c.want)
			if c.want != nil {
				require.Nil(t, photo)
				require.True(t, strings.HasPrefix(err.Error(), "imaging: square: the "), err.Error())
			}
		})
	}
}

func TestTruncatedPhotographsAreDamaged(t *testing.T) {
	t.Parallel()
	p := processor(t)
	for _, progressive := range []bool{false, true} {
		data := fixture{width: 48, height: 32, components: yuv20, segments: exif(binary.BigEndian, 3), progressive: progressive}.jpeg()
		for n := 2; n < len(data); n++ {
			_, err := p.Square(t.Context(), bytes.NewReader(data[:n]))
			require.ErrorIs(t, err, imaging.ErrDamaged, "%d of %d bytes", n, len(data))
		}
	}
	data := photograph(t, "chelsea.jpg")
	_, err := p.Square(t.Context(), bytes.NewReader(data[:len(data)/2]))
	require.ErrorIs(t, err, imaging.ErrDamaged)
}

// A film behind the end marker may contain what looks like many scans.
func TestWhatFollowsTheEndDoesNotCount(t *testing.T) {
	t.Parallel()
	data := fixture{width: 64, height: 64, components: yuv20}.jpeg()
	data = append(data, bytes.Repeat([]byte{0xFF, 0xDA, 0xFF, 0xD9}, 1000)...)
	_, err := processor(t).Square(t.Context(), bytes.NewReader(data))
	require.NoError(t, err)
}

// After a broken restart marker the decoder searches the next one byte by byte, inside of segments too.
func TestScansCannotHideInSegments(t *testing.T) {
	t.Parallel()
	f := fixture{width: 64, height: 64, components: gray, progressive: true}
	scans := bytes.Repeat(f.scan(), 200)
	data := append(f.header(), segment(0xE5, scans)...)
	data = append(data, f.scan()...)
	data = append(data, 0xFF, 0xD9)
	_, err := processor(t).Square(t.Context(), bytes.NewReader(data))
	require.ErrorIs(t, err, imaging.ErrDamaged)
}

func TestErrorOfTheReaderIsReturned(t *testing.T) {
	t.Parallel()
	gone := errors.New("the client went away")
	data := fixture{width: 64, height: 64, components: yuv20}.jpeg()
	_, err := processor(t).Square(t.Context(), io.MultiReader(bytes.NewReader(data[:100]), iotest.ErrReader(gone)))
	require.ErrorIs(t, err, gone)
	require.NotErrorIs(t, err, imaging.ErrDamaged)
}

func TestWaitingEndsWithTheContext(t *testing.T) {
	t.Parallel()
	p, err := imaging.New(imaging.Config{Parallel: 2})
	require.NoError(t, err)
	data := fixture{width: 64, height: 64, components: yuv20}.jpeg()

	first, second := p.Take(), p.Take()
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	_, err = p.Square(ctx, bytes.NewReader(data))
	require.ErrorIs(t, err, context.DeadlineExceeded, "both places were taken")

	// A file that is refused needs no place.
	_, err = p.Square(t.Context(), strings.NewReader("not a photo"))
	require.ErrorIs(t, err, imaging.ErrNotJPEG)

	first()
	_, err = p.Square(t.Context(), bytes.NewReader(data))
	require.NoError(t, err)
	second()

	ended, cancel := context.WithCancel(t.Context())
	cancel()
	for range 20 { // a free place must not win against a context that has ended
		_, err = p.Square(ended, bytes.NewReader(data))
		require.ErrorIs(t, err, context.Canceled)
	}
}

func TestPlacesAreGivenBack(t *testing.T) {
	t.Parallel()
	p, err := imaging.New(imaging.Config{Parallel: 1})
	require.NoError(t, err)
	good := fixture{width: 64, height: 64, components: yuv20}
	damaged := good.jpeg()[:len(good.header())+20]
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	for range 3 {
		_, err := p.Square(ctx, bytes.NewReader(damaged))
		require.ErrorIs(t, err, imaging.ErrDamaged)
		_, err = p.Square(ctx, bytes.NewReader(good.jpeg()))
		require.NoError(t, err)
	}
}

func TestConcurrentUse(t *testing.T) {
	t.Parallel()
	p := processor(t)
	data := photograph(t, "chelsea.jpg")
	want, err := p.Square(t.Context(), bytes.NewReader(data))
	require.NoError(t, err)
	photos := make([]map[imaging.Size][]byte, 4)
	var wg sync.WaitGroup
	for i := range photos {
		wg.Go(func() { photos[i], _ = p.Square(t.Context(), bytes.NewReader(data)) })
	}
	wg.Wait()
	for _, got := range photos {
		require.Equal(t, want, got)
	}
}

func TestConfig(t *testing.T) {
	t.Parallel()
	_, err := imaging.New(imaging.Config{Parallel: -1})
	require.ErrorContains(t, err, "Config.Parallel")
}

func TestSizeText(t *testing.T) {
	t.Parallel()
	for _, size := range imaging.Sizes() {
		got, ok := imaging.ParseSize(size.String())
		require.True(t, ok)
		require.Equal(t, size, got)
	}
	for _, s := range []string{"", "0612", "+612", "613", "large", "612.0", "612/.."} {
		_, ok := imaging.ParseSize(s)
		require.False(t, ok, s)
	}
}

func processor(tb testing.TB) *imaging.Processor {
	tb.Helper()
	p, err := imaging.New(imaging.Config{})
	require.NoError(tb, err)
	return p
}

// photograph returns one of the real photographs.
func photograph(tb testing.TB, name string) []byte {
	tb.Helper()
	data, err := os.ReadFile(filepath.Join("..", "testdata", name))
	require.NoError(tb, err)
	return data
}

func decode(tb testing.TB, data []byte) image.Image {
	tb.Helper()
	img, err := jpeg.Decode(bytes.NewReader(data))
	require.NoError(tb, err)
	return img
}

func encode(tb testing.TB, img image.Image) []byte {
	tb.Helper()
	var out bytes.Buffer
	require.NoError(tb, jpeg.Encode(&out, img, &jpeg.Options{Quality: 85}))
	return out.Bytes()
}

// contactSheet covers a large picture with tiles of real photographs, to have one with the detail of a large
// photograph.
func contactSheet(tb testing.TB, width, height int) *image.RGBA {
	tb.Helper()
	sheet := image.NewRGBA(image.Rect(0, 0, width, height))
	var tiles []image.Image
	for _, name := range []string{"astronaut.jpg", "chelsea.jpg", "coffee.jpg", "rocket.jpg"} {
		tiles = append(tiles, decode(tb, photograph(tb, name)))
	}
	const side = 300
	for y := 0; y < height; y += side {
		for x := 0; x < width; x += side {
			tile := tiles[(x/side+3*(y/side))%len(tiles)]
			draw.Draw(sheet, image.Rect(x, y, x+side, y+side), tile, tile.Bounds().Min, draw.Src)
		}
	}
	return sheet
}

// psnr says how alike two pictures of one size are, in decibel: 30 is good, 40 is hard to tell apart.
func psnr(a, b image.Image) float64 {
	one, two := toRGBA(a), toRGBA(b)
	sum := 0
	for i := range one.Pix {
		d := int(one.Pix[i]) - int(two.Pix[i]) // nothing for alpha
		sum += d * d
	}
	return 10 * math.Log10(255*255*float64(len(one.Pix)*3/4)/float64(sum))
}

func toRGBA(img image.Image) *image.RGBA {
	out := image.NewRGBA(img.Bounds())
	draw.Draw(out, out.Rect, img, img.Bounds().Min, draw.Src)
	return out
}

// requireColor allows what JPEG does to an even surface.
func requireColor(tb testing.TB, want color.RGBA, got color.Color) {
	tb.Helper()
	r, g, b, _ := got.RGBA()
	require.InDelta(tb, want.R, r>>8, 6)
	require.InDelta(tb, want.G, g>>8, 6)
	require.InDelta(tb, want.B, b>>8, 6)
}
