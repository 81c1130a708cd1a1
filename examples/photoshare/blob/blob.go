// Package blob keeps the bytes of photos under keys.
//
// # Problem
//
// Photos are too large for the database and never change. They want a plain place: a folder on one machine, an
// object store on many. The server must not care which, and a crash must never leave half a photo.
//
// # Scheme
//
//	            Put ──► .tmp/RANDOM ──► fsync ──► rename ──► fsync of the folders
//	                                                │
//	key  7f/3a/1234_612.jpg  ── is the path ──►  ROOT/7f/3a/1234_612.jpg
//	     └ chosen by the caller: at most 255 bytes, parts of A-Z a-z 0-9 _ . - that do not begin with a point
//
// No key reaches the temporary files, as none has a part that begins with a point. Files are kept where their
// key says, so a caller with many keys gives them folders, such as two of 256 each.
//
// # Guarantees
//
//   - A reader sees a whole blob or none, during a Put and after a crash too. Of two Puts of one key at the same
//     time, one wins.
//   - When Put or Delete of a [Dir] returns nil, a power failure does not undo it, as far as the disk keeps its word.
//   - No key leads out of the folder of a [Dir], not even by way of a symbolic link.
//
// There is no listing, no expiry and no transaction over several keys. Blobs are read and written as a whole, in
// memory: they are meant to be photos of some 100 kB, not films.
//
// # Cost
//
// Get is one open file. Put of a [Dir] waits for the disk once for the file and once for each folder above it.
//
// # Failure
//
// A Put that fails, as on a full disk, leaves the old blob or none. Put, Get and Delete may all be tried again. A
// process that is killed during Put leaves a file in .tmp; removing those that are older than an hour is safe:
//
//	find ROOT/.tmp -type f -mmin +60 -delete
//
// Early Instagram kept its photos on Amazon S3, several terabytes of them by the end of 2011
// (http://highscalability.com/blog/2011/12/6/instagram-architecture-14-million-users-terabytes-of-photos.html).
package blob

import (
	"context"
	"errors"
	"strings"
)

// Errors of a [Store] that a caller may want to tell apart.
var (
	// ErrNotFound is returned by Get for a key without a blob. It may be wrapped.
	ErrNotFound = errors.New("blob: not found")

	// ErrKey is returned by Put, Get and Delete for a key that no blob can have. It may be wrapped.
	ErrKey = errors.New("blob: bad key")
)

// maxKey is the longest key in bytes. Each part is then a valid file name as well.
const maxKey = 255

// Store keeps blobs under keys. It is safe for concurrent use.
//
// A key is one or more parts with a slash between them. A part is made of the letters A-Z and a-z, digits, "_", "."
// and "-", and does not begin with a point. No key may be a folder of another: where "a/b" is a blob, "a" cannot be one.
// Keys that differ only in upper and lower case are for stores that tell them apart.
type Store interface {
	// Put stores data under key and replaces what was there. It does not keep data.
	Put(ctx context.Context, key string, data []byte) error

	// Get returns what is stored under key, or [ErrNotFound]. The result belongs to the caller.
	Get(ctx context.Context, key string) ([]byte, error)

	// Delete removes blobs. A key without one is no error. If a key is bad, nothing is removed; if one cannot be
	// removed, the others are.
	Delete(ctx context.Context, keys ...string) error
}

// checkKey returns ErrKey unless key follows the rules of Store.
func checkKey(key string) error {
	if len(key) > maxKey {
		return ErrKey
	}
	for part := range strings.SplitSeq(key, "/") {
		if part == "" || part[0] == '.' {
			return ErrKey
		}
		for _, c := range []byte(part) {
			switch {
			case 'a' <= c && c <= 'z', 'A' <= c && c <= 'Z', '0' <= c && c <= '9', c == '_', c == '.', c == '-':
			default:
				return ErrKey
			}
		}
	}
	return nil
}
