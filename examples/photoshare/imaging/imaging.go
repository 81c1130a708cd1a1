// Package imaging turns an uploaded JPEG into the three square JPEGs that the photo server shows.
//
// # Problem
//
// Telephones send 12 megapixel photographs of any shape, lying on their side, with the place where
// they were taken written inside. Pages want small squares, upright, that tell nothing. The files come
// from strangers, so a few kilobytes may claim to be a picture of a gigabyte.
//
// # Scheme
//
//	upload, at most 10 MB ──► header: size, EXIF orientation, number of scans
//	                             │ at most 40 megapixels, 20,000 pixels a side, 50 scans
//	                             ▼
//	                          decode                           Y, Cb and Cr planes
//	                             ▼
//	   centre square ──► average n×n pixels in integers        1224 to 2447 pixels a side
//	                             ▼
//	                       Catmull-Rom                         612 pixels a side
//	                             ▼
//	                          upright ──► Catmull-Rom ──►      306, and from that 150 pixels
//	                             ▼
//	                 encode at quality 85, pixels only         about 60, 20 and 7 kB
//
// The average makes the slow, good filter work on a picture that is never more than four times too
// wide. A square of less than 1224 pixels skips it, and one of less than 612 is enlarged.
//
// # Guarantees
//
//   - The results are baseline JPEGs of exactly 612, 306 and 150 pixels, with no metadata at all: no
//     place, no camera, no thumbnail of the uncropped photograph.
//   - Nothing large is allocated before the header has passed the limits, and only Config.Parallel
//     photographs are decoded at a time.
//   - No input makes it panic.
//
// It does not keep colour profiles: colours of a wide profile come out a little paler. It reads neither
// PNG nor HEIC nor WebP, nor the JPEG kinds that image/jpeg does not know (lossless, arithmetic, 12 bit).
// A file that ends before its end marker counts as damaged even when most of the picture is there.
//
// # Cost
//
// About a third of a CPU second and 75 MB of garbage for 12 megapixels (BenchmarkSquare). The worst
// photograph inside the limits, a progressive one of 40 megapixels with four colour channels, takes about
// 1 GB while it is decoded: choose Config.Parallel by the memory that you have.
//
// # Failure
//
// Every error is about the one photograph, and trying again with the same bytes gives the same answer,
// unless the reader failed or ctx ended. A call whose ctx ends while it waits for its turn returns at once;
// a decode that has begun runs to its end.
//
// The sizes are those of early Instagram: its API gave 612, 306 and 150 pixels
// (http://instagram.com/developer/endpoints/media/).
package imaging

import (
	"bytes"
	"context"
	"fmt"
	"image/jpeg"
	"io"
	"runtime"
	"strconv"
)

const (
	// MaxBytes is the longest file that is read.
	MaxBytes = 10 << 20
	// MaxPixels is the largest picture that is decoded, width times height.
	MaxPixels = 40_000_000
	// MaxSide is the longest side that is decoded, in pixels.
	MaxSide = 20_000

	quality = 85
)

// Size is the side of a square photo in pixels.
type Size int

// The sizes of a photo.
const (
	Large  Size = 612
	Medium Size = 306
	Thumb  Size = 150
)

// Sizes returns the sizes of a photo, largest first.
func Sizes() []Size { return []Size{Large, Medium, Thumb} }

// ParseSize reads what [Size.String] writes, such as "306". It reports false for any other number.
func ParseSize(s string) (Size, bool) {
	for _, size := range Sizes() {
		if size.String() == s {
			return size, true
		}
	}
	return 0, false
}

// String returns the number of pixels. File names and URLs use it.
func (s Size) String() string { return strconv.Itoa(int(s)) }

// Config says how a [Processor] works. The zero value is ready to use.
type Config struct {
	// Parallel is how many photographs are decoded at a time.
	// Default: GOMAXPROCS, as decoding is all computing.
	Parallel int
}

// Processor makes square photos. It is safe for concurrent use.
type Processor struct {
	slots chan struct{} // holds a token for each photograph in work
}

// New returns a Processor. It starts no goroutine and needs no Close.
func New(cfg Config) (*Processor, error) {
	if cfg.Parallel < 0 {
		return nil, fmt.Errorf("imaging: Config.Parallel is %d, want 0 or more", cfg.Parallel)
	}
	if cfg.Parallel == 0 {
		cfg.Parallel = runtime.GOMAXPROCS(0)
	}
	return &Processor{slots: make(chan struct{}, cfg.Parallel)}, nil
}

// Square reads a JPEG, turns it upright as its EXIF orientation says, cuts out the centre square and
// returns it as a JPEG of each of the [Sizes].
//
// It returns [ErrNotJPEG], [ErrDamaged], [ErrTooLarge] or [ErrTooManyPixels] for a file that it refuses, the
// error of r, or that of ctx. It reads r before it waits for its turn, so that a slow upload keeps nobody from
// working; ctx does not interrupt r.
func (p *Processor) Square(ctx context.Context, r io.Reader) (map[Size][]byte, error) {
	photo, err := p.square(ctx, r)
	if err != nil {
		return nil, fmt.Errorf("imaging: square: %w", err)
	}
	return photo, nil
}

func (p *Processor) square(ctx context.Context, r io.Reader) (map[Size][]byte, error) {
	data, err := io.ReadAll(io.LimitReader(r, MaxBytes+1))
	if err != nil {
		return nil, err
	}
	head, err := inspect(data)
	if err != nil {
		return nil, err
	}

	if err := ctx.Err(); err != nil {
		return nil, err // a select would now and then choose the free slot
	}
	select {
	case p.slots <- struct{}{}:
		defer func() { <-p.slots }()
	case <-ctx.Done():
		return nil, ctx.Err()
	}

	img, err := jpeg.Decode(bytes.NewReader(head.picture))
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrDamaged, err)
	}
	square := upright(resize(shrink(img, 2*int(Large)), Large), head.orientation)

	photo := make(map[Size][]byte)
	for _, size := range Sizes() {
		square = resize(square, size) // each from the one before, which is quicker and looks the same
		var out bytes.Buffer
		if err := jpeg.Encode(&out, square, &jpeg.Options{Quality: quality}); err != nil {
			return nil, err
		}
		photo[size] = out.Bytes()
	}
	return photo, nil
}
