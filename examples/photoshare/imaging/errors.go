package imaging

import "errors"

// The texts of these errors have no prefix, so that a server can show them to the person who sent the file.
var (
	// ErrNotJPEG is returned by [Processor.Square] for a file that does not begin like a JPEG. It may be wrapped.
	ErrNotJPEG = errors.New("the file is not a JPEG photo")

	// ErrDamaged is returned by [Processor.Square] for a JPEG that ends too early, breaks the format, or is of a
	// kind that image/jpeg does not decode. It may be wrapped.
	ErrDamaged = errors.New("the photo is damaged or of an unusual kind")

	// ErrTooLarge is returned by [Processor.Square] for a file of more than [MaxBytes]. It may be wrapped.
	ErrTooLarge = errors.New("the file is larger than 10 MB")

	// ErrTooManyPixels is returned by [Processor.Square] for a picture of more than [MaxPixels], or with a side of
	// more than [MaxSide]. It may be wrapped.
	ErrTooManyPixels = errors.New("the photo has more than 40 megapixels or a side of more than 20,000 pixels")
)
