package imaging_test

import (
	"bytes"
	"encoding/binary"
	"math/bits"
)

// fixture describes a JPEG of even blocks. It makes every kind that a decoder has to know and that the encoder of
// the standard library does not write, and files that no encoder would write.
type fixture struct {
	width, height int
	components    []component
	progressive   bool
	adobe         int    // the colour transform of an Adobe segment plus 1; 0 for no such segment
	segments      []byte // go between the start marker and the rest
	scans         int    // how often the picture is sent; 0 is 1

	// level returns the level of each component at a point. Nil is an even grey.
	level func(x, y int) []uint8
}

// component is a channel with its sampling factors.
type component struct{ id, h, v byte }

// Components as cameras write them, named after how they share colour samples.
var (
	gray  = []component{{1, 1, 1}}
	yuv44 = []component{{1, 1, 1}, {2, 1, 1}, {3, 1, 1}}
	yuv22 = []component{{1, 2, 1}, {2, 1, 1}, {3, 1, 1}}
	yuv20 = []component{{1, 2, 2}, {2, 1, 1}, {3, 1, 1}}
	yuv40 = []component{{1, 1, 2}, {2, 1, 1}, {3, 1, 1}}
	yuv11 = []component{{1, 4, 1}, {2, 1, 1}, {3, 1, 1}}
	yuv10 = []component{{1, 4, 2}, {2, 1, 1}, {3, 1, 1}}
	rgb   = []component{{'R', 1, 1}, {'G', 1, 1}, {'B', 1, 1}}
	cmyk  = []component{{1, 1, 1}, {2, 1, 1}, {3, 1, 1}, {4, 1, 1}}
)

// header returns the file up to its first scan.
func (f fixture) header() []byte {
	out := append([]byte{0xFF, 0xD8}, f.segments...)
	if f.adobe > 0 {
		out = append(out, segment(0xEE, append([]byte("Adobe\x00\x64\x00\x00\x00\x00"), byte(f.adobe-1)))...)
	}
	// All steps are 8, so that the first coefficient of an even block is its level less 128.
	out = append(out, segment(0xDB, append([]byte{0}, bytes.Repeat([]byte{8}, 64)...))...)

	sof := binary.BigEndian.AppendUint16([]byte{8}, uint16(f.height))
	sof = binary.BigEndian.AppendUint16(sof, uint16(f.width))
	sof = append(sof, byte(len(f.components)))
	for _, c := range f.components {
		sof = append(sof, c.id, c.h<<4|c.v, 0)
	}
	marker := byte(0xC0)
	if f.progressive {
		marker = 0xC2
	}
	out = append(out, segment(marker, sof)...)

	// Levels: twelve codes of four bits, each its own number. The rest of a block: one code, a 0, for "all zero".
	dc := append([]byte{0x00, 0, 0, 0, 12, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0}, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11)
	ac := append([]byte{0x10, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0}, 0)
	return append(out, segment(0xC4, append(dc, ac...))...)
}

// jpeg returns the file.
func (f fixture) jpeg() []byte {
	out := f.header()
	scan := f.scan()
	for range max(1, f.scans) {
		out = append(out, scan...)
	}
	return append(out, 0xFF, 0xD9)
}

func (f fixture) scan() []byte {
	sos := []byte{byte(len(f.components))}
	across, down := 1, 1 // blocks of a unit
	for _, c := range f.components {
		sos = append(sos, c.id, 0)
		across, down = max(across, int(c.h)), max(down, int(c.v))
	}
	last := byte(63)
	if f.progressive {
		last = 0 // only levels: the decoder takes the rest as zero
	}
	out := segment(0xDA, append(sos, 0, last, 0))

	var w bitWriter
	before := make([]int, len(f.components))
	for y := 0; y < f.height; y += 8 * down {
		for x := 0; x < f.width; x += 8 * across {
			for i, c := range f.components {
				// A block covers w×h pixels of the picture.
				bw, bh := 8*across/int(c.h), 8*down/int(c.v)
				for b := range int(c.h) * int(c.v) {
					level := 0
					if f.level != nil {
						cx, cy := x+b%int(c.h)*bw+bw/2, y+b/int(c.h)*bh+bh/2
						level = int(f.level(min(cx, f.width-1), min(cy, f.height-1))[i]) - 128
					}
					w.difference(level - before[i])
					before[i] = level
					if !f.progressive {
						w.write(0, 1)
					}
				}
			}
		}
	}
	return append(out, w.flush()...)
}

// segment returns a marker with its length and payload.
func segment(marker byte, payload []byte) []byte {
	out := binary.BigEndian.AppendUint16([]byte{0xFF, marker}, uint16(len(payload)+2))
	return append(out, payload...)
}

// bitWriter collects coded pixels.
type bitWriter struct {
	out   []byte
	bits  uint64
	count int
}

// difference writes a level less the one before: how many bits it takes, and those bits, a negative one less 1.
func (w *bitWriter) difference(d int) {
	size := bits.Len(uint(max(d, -d)))
	w.write(uint64(size), 4)
	if d < 0 {
		d += 1<<size - 1
	}
	w.write(uint64(d), size)
}

func (w *bitWriter) write(v uint64, count int) {
	w.bits, w.count = w.bits<<count|v, w.count+count
	for w.count >= 8 {
		w.count -= 8
		b := byte(w.bits >> w.count)
		w.out = append(w.out, b)
		if b == 0xFF {
			w.out = append(w.out, 0)
		}
	}
}

func (w *bitWriter) flush() []byte {
	w.write(1<<7-1, 7) // ones fill the last byte
	return w.out
}

// exif returns an APP1 segment with an orientation and the place where the photograph was taken.
func exif(order binary.AppendByteOrder, orientation uint16) []byte {
	magic := "II*\x00"
	if order.String() == binary.BigEndian.String() {
		magic = "MM\x00*"
	}
	tiff := order.AppendUint32([]byte(magic), 8)
	tiff = order.AppendUint16(tiff, 3)
	entry := func(tag, kind uint16, count uint32) {
		tiff = order.AppendUint16(tiff, tag)
		tiff = order.AppendUint16(tiff, kind)
		tiff = order.AppendUint32(tiff, count)
	}
	const text, short, long = 2, 3, 4
	const behind = 8 + 2 + 3*12 + 4 // the directory
	entry(0x010F, text, uint32(len(camera)))
	tiff = order.AppendUint32(tiff, behind)
	entry(0x0112, short, 1)
	tiff = order.AppendUint16(tiff, orientation)
	tiff = order.AppendUint16(tiff, 0)
	entry(0x8825, long, 1) // where the GPS directory is
	tiff = order.AppendUint32(tiff, behind+uint32(len(camera)))
	tiff = order.AppendUint32(tiff, 0) // no next directory
	tiff = append(tiff, camera...)
	tiff = order.AppendUint16(tiff, 1)
	entry(0x001D, text, uint32(len(day)))
	tiff = order.AppendUint32(tiff, behind+uint32(len(camera))+2+12+4)
	tiff = order.AppendUint32(tiff, 0)
	tiff = append(tiff, day...)
	return segment(0xE1, append([]byte("Exif\x00\x00"), tiff...))
}

// What exif writes that nobody may find again.
const (
	camera = "Spycam 3000\x00"
	day    = "2010:10:06\x00"
)
