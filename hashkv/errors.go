package hashkv

import (
	"errors"
	"fmt"
	"strconv"
	"strings"
)

// ErrNotFound is returned by Get when the map has no such key. It may be
// wrapped.
var ErrNotFound = errors.New("hashkv: not found")

// ErrLost is returned, wrapped, by every call on a map whose header has
// vanished or belongs to another map since it was opened: Redis came back
// empty, or its data was replaced. A process notices within a second; until
// then calls find what is there, and writes go there. Fill the map anew after
// Open, which takes the map as it is, or begins an empty one.
var ErrLost = errors.New("the map in Redis is gone, or another one")

// A RangeError reports a key or a value that the map cannot hold. It is
// returned, wrapped, before anything is sent to Redis. To try again is no use.
type RangeError struct {
	Key   string // the key, as text; quoted if it is a string
	Value bool   // the value does not fit, not the key
	Limit string // what would: "0..16777215", "up to 64 bytes"
}

// Error says which of the two does not fit, and what would.
func (e *RangeError) Error() string {
	what := "key"
	if e.Value {
		what = "value"
	}
	return what + " does not fit: want " + e.Limit
}

// A MismatchError is returned, wrapped, when the map in Redis was made with
// other parameters or by another version of this package. Nothing is read or
// written then, since bytes would be taken for what they are not.
type MismatchError struct {
	Key    string // the Redis key of the header
	Field  string // the parameter
	Stored string
	Wanted string
}

// Error names the parameter and both of its values.
func (e *MismatchError) Error() string {
	return fmt.Sprintf("%s: the map in Redis has %s %s, and this one %s", e.Key, e.Field, e.Stored, e.Wanted)
}

// A LimitError is returned, wrapped, by writes and by Open when buckets would
// leave the compact encoding on a server: raise the setting there, or Grow the
// map if they hold too many entries. All but Set, SetMulti, SetNX and Load go on
// as before.
type LimitError struct {
	Node    string // the server
	Setting string // such as "hash-max-listpack-entries"
	Have    int
	Want    int // at least
}

// Error names the server, the setting, its value and the one needed.
func (e *LimitError) Error() string {
	return fmt.Sprintf("%s of %s is %d: want %d or more, or buckets turn into hash tables of five times the size",
		e.Setting, e.Node, e.Have, e.Want)
}

// A CorruptError is returned, wrapped, when a Redis key of the map holds what
// the map did not write: a value of another type, or bytes that are no entry. It
// stops All and Grow until that is deleted.
type CorruptError struct {
	Key string // the Redis key
	Err error
}

// Error names the Redis key.
func (e *CorruptError) Error() string { return e.Key + ": " + e.Err.Error() }

// Unwrap returns the cause.
func (e *CorruptError) Unwrap() error { return e.Err }

// A PartialError is returned by calls on many keys when some of them failed.
// Writes to these may be done or not; all others are done. To call again with
// the same arguments is safe.
type PartialError[K Key] struct {
	Op     string
	Prefix string // of the map
	Failed []K
	Err    error // of the first command that failed
}

// Error names the operation, the first keys that failed and the cause.
func (e *PartialError[K]) Error() string {
	const shown = 3
	words := []string{"hashkv: " + e.Op}
	for _, key := range e.Failed[:min(shown, len(e.Failed))] {
		words = append(words, entry(e.Prefix, key))
	}
	if more := len(e.Failed) - shown; more > 0 {
		words = append(words, "and "+strconv.Itoa(more)+" more")
	}
	return strings.Join(words, " ") + ": " + e.Err.Error()
}

// Unwrap returns the cause.
func (e *PartialError[K]) Unwrap() error { return e.Err }

// keyError names the operation and the entry in an error of a single-key call.
func keyError[K Key](op, prefix string, key K, err error) error {
	return fmt.Errorf("hashkv: %s %s: %w", op, entry(prefix, key), err)
}

// entry writes a key as prefix[7] or prefix["seven"], which no Redis key of a
// map looks like.
func entry[K Key](prefix string, key K) string { return prefix + "[" + show(key) + "]" }

// show writes a key as text, and not much of a long one.
func show[K Key](key K) string {
	switch key := any(key).(type) {
	case string:
		if len(key) > 64 {
			return strconv.Quote(key[:64]) + "..."
		}
		return strconv.Quote(key)
	case int64:
		return strconv.FormatInt(key, 10)
	}
	panic("bug: a key of another type")
}
