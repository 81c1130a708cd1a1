package imaging

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"image/jpeg"
	"iter"
)

// maxScans is how often a file may go over its picture. A progressive JPEG does so about ten times, rarely twenty.
// A scan of a few bytes costs a walk over every block, up to 0.07 s, so without a limit one upload could keep a core
// busy for hours.
const maxScans = 50

// JPEG markers: the second byte after an 0xFF.
const (
	markerRST0 = 0xD0
	markerRST7 = 0xD7
	markerSOI  = 0xD8
	markerEOI  = 0xD9
	markerSOS  = 0xDA
	markerAPP1 = 0xE1
)

// header is what is known of a JPEG before it is decoded.
type header struct {
	picture     []byte // the file up to its end marker
	orientation int    // 1 to 8, as in EXIF
}

// inspect checks a file against the limits without decoding it.
func inspect(data []byte) (header, error) {
	if len(data) > MaxBytes {
		return header{}, ErrTooLarge
	}
	if !bytes.HasPrefix(data, []byte{0xFF, markerSOI}) {
		return header{}, ErrNotJPEG
	}
	cfg, err := jpeg.DecodeConfig(bytes.NewReader(data))
	if err != nil {
		return header{}, fmt.Errorf("%w: %w", ErrDamaged, err)
	}
	if cfg.Width < 1 || cfg.Height < 1 {
		return header{}, fmt.Errorf("%w: it is %d×%d pixels large", ErrDamaged, cfg.Width, cfg.Height)
	}
	if cfg.Width > MaxSide || cfg.Height > MaxSide || cfg.Width*cfg.Height > MaxPixels {
		return header{}, fmt.Errorf("%w: it is %d×%d pixels large", ErrTooManyPixels, cfg.Width, cfg.Height)
	}

	h := header{picture: data, orientation: 1}
	found := false
	for s := range segments(data) {
		switch {
		case s.marker == markerAPP1 && !found:
			h.orientation, found = orientation(s.payload)
		case s.marker == markerEOI:
			// Some telephones append a film of megabytes.
			h.picture = data[:s.end]
		}
	}
	// This also counts what only looks like a scan inside of metadata, so nothing can hide from it: after a
	// broken restart marker the decoder may take up its work in the middle of a segment.
	if bytes.Count(h.picture, []byte{0xFF, markerSOS}) > maxScans {
		return header{}, fmt.Errorf("%w: it has more than %d scans", ErrDamaged, maxScans)
	}
	return h, nil
}

// segment is one marker of a JPEG with what belongs to it.
type segment struct {
	marker  byte
	payload []byte
	end     int // where the next segment may begin
}

// segments yields the segments of a JPEG in order, the end marker last. It stops early where the file does
// not go on as it should. Between segments it skips coded pixels and stray bytes, as image/jpeg does.
func segments(data []byte) iter.Seq[segment] {
	return func(yield func(segment) bool) {
		for at := 2; ; {
			skip := bytes.IndexByte(data[at:], 0xFF)
			if skip < 0 || at+skip+1 >= len(data) {
				return
			}
			at += skip + 1
			marker := data[at]
			if marker == 0xFF {
				continue // a fill byte: it begins the marker itself
			}
			at++
			switch {
			case marker == 0, markerRST0 <= marker && marker <= markerRST7:
				continue // both stand between coded pixels
			case marker == markerEOI:
				yield(segment{marker: marker, end: at})
				return
			}
			if at+2 > len(data) {
				return
			}
			end := at + int(binary.BigEndian.Uint16(data[at:]))
			if end < at+2 || end > len(data) {
				return
			}
			if !yield(segment{marker: marker, payload: data[at+2 : end], end: end}) {
				return
			}
			at = end
		}
	}
}

// orientation reads tag 0x0112 of the first image directory (IFD0) in an EXIF segment. It returns 1 if there is
// none that makes sense, and false if the segment is not EXIF.
//
//	"Exif" 0 0 │ "II" or "MM" │ 42 │ offset of IFD0 ──► count │ 12 bytes: tag, type, number, value │ ...
//	     6     │      2       │ 2  │        4             2   │             2    2      4      4    │
func orientation(app1 []byte) (int, bool) {
	tiff, ok := bytes.CutPrefix(app1, []byte("Exif\x00\x00"))
	if !ok {
		return 1, false
	}
	if len(tiff) < 8 {
		return 1, true
	}
	var order binary.ByteOrder
	switch string(tiff[:4]) {
	case "II*\x00":
		order = binary.LittleEndian
	case "MM\x00*":
		order = binary.BigEndian
	default:
		return 1, true
	}
	offset := int64(order.Uint32(tiff[4:])) // 64 bits, so that adding cannot overflow
	if offset+2 > int64(len(tiff)) {
		return 1, true
	}
	entries := tiff[offset+2:]
	for range order.Uint16(tiff[offset:]) {
		if len(entries) < 12 {
			return 1, true
		}
		const tagOrientation, typeShort = 0x0112, 3
		if order.Uint16(entries) == tagOrientation {
			value := int(order.Uint16(entries[8:]))
			if order.Uint16(entries[2:]) != typeShort || value < 1 || value > 8 {
				return 1, true
			}
			return value, true
		}
		entries = entries[12:]
	}
	return 1, true
}
