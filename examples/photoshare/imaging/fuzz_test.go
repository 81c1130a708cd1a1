package imaging_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"image/jpeg"
	"testing"

	"github.com/shardgram/shardgram/examples/photoshare/imaging"
)

// Whatever arrives, Square returns either three squares or one of the four errors that it promises.
func FuzzSquare(f *testing.F) {
	for i, components := range [][]component{gray, yuv44, yuv22, yuv20, yuv40, yuv11, yuv10, rgb, cmyk} {
		f.Add(fixture{
			width: 33, height: 17, components: components, adobe: len(components) / 4, progressive: i%2 == 0,
			segments: exif(binary.BigEndian, 6), scans: len(components),
		}.jpeg())
	}
	f.Add([]byte("GIF89a"))
	f.Add([]byte{0xFF, 0xD8, 0xFF, 0xFF, 0xFF, 0xDA, 0, 2, 0xFF, 0, 0xFF, 0xD0, 0xFF, 0xD9})

	p := processor(f)
	f.Fuzz(func(t *testing.T, data []byte) {
		cfg, err := jpeg.DecodeConfig(bytes.NewReader(data))
		if err == nil && cfg.Width*cfg.Height > 1<<16 && cfg.Width*cfg.Height <= imaging.MaxPixels {
			t.Skip("inside the limits, but slow to fuzz")
		}
		photo, err := p.Square(t.Context(), bytes.NewReader(data))
		switch {
		case err == nil:
			for _, size := range imaging.Sizes() {
				cfg, err := jpeg.DecodeConfig(bytes.NewReader(photo[size]))
				if err != nil || cfg.Width != int(size) || cfg.Height != int(size) {
					t.Fatalf("size %v is %d×%d, error %v", size, cfg.Width, cfg.Height, err)
				}
			}
		case errors.Is(err, imaging.ErrNotJPEG), errors.Is(err, imaging.ErrDamaged),
			errors.Is(err, imaging.ErrTooLarge), errors.Is(err, imaging.ErrTooManyPixels):
		default:
			t.Fatalf("unexpected error: %v", err)
		}
	})
}

// The orientation is always one that exists, and the right one wherever a whole EXIF segment says it.
func FuzzOrientation(f *testing.F) {
	f.Add([]byte(nil), uint16(1))
	f.Add([]byte("Exif\x00\x00"), uint16(8))
	f.Add([]byte("Exif\x00\x00II*\x00\xFF\xFF\xFF\xFF"), uint16(0))
	f.Add([]byte("Exif\x00\x00MM\x00*\x00\x00\x00\x08\xFF\xFF\x01\x12\x00\x03"), uint16(9))
	f.Add(exif(binary.LittleEndian, 5)[4:], uint16(65535))
	f.Add(exif(binary.BigEndian, 6)[4:], uint16(3))
	f.Fuzz(func(t *testing.T, app1 []byte, want uint16) {
		if got, ok := imaging.Orientation(app1); got < 1 || got > 8 || !ok && got != 1 {
			t.Fatalf("%d, %v", got, ok)
		}
		for _, order := range []binary.AppendByteOrder{binary.LittleEndian, binary.BigEndian} {
			got, ok := imaging.Orientation(append(exif(order, want)[4:], app1...))
			if !ok || want >= 1 && want <= 8 && got != int(want) || (want < 1 || want > 8) && got != 1 {
				t.Fatalf("%v: got %d, %v for %d", order, got, ok, want)
			}
		}
	})
}
