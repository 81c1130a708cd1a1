// Package hashkv keeps very large maps from integers to integers in Redis
// memory, in a few bytes per entry instead of the 70 to 90 of a string key.
//
// # Problem
//
// An application has hundreds of millions of pairs such as photo id → owner
// id: too small for rows of their own, too many for keys of their own. A Redis
// key costs a table entry, an object and two string headers before it holds
// anything. Small hashes and long strings do not pay that per entry, but a hash
// falls back to a real hash table once it grows past a limit, and ids that
// carry a time do not divide evenly over hashes.
//
// # Scheme
//
// [Dense] is for ids that a sequence hands out: 0, 1, 2, ... One Redis string
// holds the values of Slots neighbours in Bits bits each.
//
//	key 1155315, 1000 slots of 24 bits
//
//	dense:1155  ┌───────┬─────┬───────────┬─────┬─────────┐
//	            │ #0    │ ... │ #315      │ ... │ #999    │   3000 bytes
//	            └───────┴─────┴───────────┴─────┴─────────┘
//	                            value + 1, so that 0 means absent
//
// [Sparse] is for any 64-bit ids, such as ids that begin with a time. One Redis
// hash, the bucket, holds about 128 entries, wherever their ids lie.
//
//	key, 64 bits  ┌───────────────────────────┬────────────┐
//	              │ high 64-k bits            │ low k bits │   2^k buckets
//	              └─────────────┬─────────────┴──────┬─────┘
//	                            │                    ▼
//	                            ├──── hash ────────► xor, bit by bit
//	                            ▼                    ▼
//	                 field, its bytes without      bucket
//	                 the leading zeros
//
//	sparse:1f3a   field 5 bytes → value 3 bytes, 5 bytes → 3 bytes, ...
//
// Bucket and field together are the key in another order: the map is exact and
// stores no part of the key twice. Bit i of the bucket depends only on bits i
// and above of the key, so twice the buckets would split every bucket in two
// and move nothing else.
//
// # Keys in Redis
//
// A map owns the keys that begin with its prefix and a colon. Behind the colon
// stands the number of a string in decimal, or of a bucket in hexadecimal, and
// the key <prefix>:header is reserved. Maps with different prefixes never meet.
// In a Redis Cluster the keys spread over all nodes; a prefix cannot hold a
// hash tag.
//
// # Guarantees
//
// A write of one entry is atomic. SetMulti and Delete of many entries are not:
// after an error some may be done. All of them may be repeated. The
// configuration is part of the data: a map must be opened with the same Bits
// and Slots, or Buckets, that it was written with, and nothing checks this yet.
// Redis is the only copy, so it needs persistence, and the noeviction policy:
// an eviction would drop a thousand entries at once.
//
// # Cost
//
// Bytes are the growth of used_memory in Redis 7.0 with stock settings, for
// values of 24 bits, as TestMemory measures it.
//
//	                                        bytes per entry
//	Dense, 1000 slots                            3.2
//	Sparse, 128 a bucket, 5-byte fields         13.6
//	Sparse, 128 a bucket, 7-byte fields         15.8
//	for comparison: one hash per id/1000       110      (ids that begin with a time)
//
// Fields have 5 bytes if the ids have up to 61 bits and the map 2^21 buckets,
// enough for 300 million entries. Get, Set and SetNX are one round trip,
// GetMulti and SetMulti one pipeline, and so is Delete of Sparse; that of Dense
// first reads, and is two. A dense access takes constant time. A sparse
// one reads through its bucket, half of it for a hit and all of it for a miss,
// which is why a bucket holds 128 entries and not 1000.
//
// # Failure
//
// An error from Redis (a lost connection, READONLY, OOM, WRONGTYPE) comes back
// wrapped, with the operation and the key; prefix[7] is the entry of key 7, and
// prefix:7 a Redis key. It never holds a stored value. Whether a call returns as
// soon as its context ends, and how long one waits for a Redis that is gone, is
// up to the client: set ContextTimeoutEnabled, and few retries.
//
// # Source
//
// "Storing hundreds of millions of simple key-value pairs in Redis", Instagram
// Engineering, 2011, which kept 1000 pairs per hash under id/1000. Dividing a
// key into a place and the rest is quotienting: Knuth, The Art of Computer
// Programming, volume 3, section 6.4, exercise 13.
package hashkv

import (
	"errors"
	"fmt"
	"strings"

	"github.com/redis/go-redis/v9"
)

// ErrNotFound is returned by Get when the map has no such key. It may be
// wrapped.
var ErrNotFound = errors.New("hashkv: not found")

// A RangeError reports a key or a value that the map cannot hold. It is
// returned, wrapped, before anything is sent to Redis.
type RangeError struct {
	Key   int64 // the key of the entry
	Value bool  // the value is out of range, not the key
	Max   int64 // the largest one allowed; the smallest is 0
}

// Error says which of the two is out of range and what the range is.
func (e *RangeError) Error() string {
	what := "key"
	if e.Value {
		what = "value"
	}
	return fmt.Sprintf("%s is outside 0..%d", what, e.Max)
}

// checkBase checks what both kinds of map are made from.
func checkBase(rdb redis.UniversalClient, prefix string) error {
	switch {
	case rdb == nil:
		return errors.New("hashkv: the client is nil")
	case strings.ContainsAny(prefix, "{}"):
		// Redis Cluster would hash the part in braces only, and one node would
		// get the whole map.
		return fmt.Errorf("hashkv: Prefix is %q: want no braces", prefix)
	}
	return nil
}

// keyError names the operation and the entry in an error of a single-key call.
func keyError(op, prefix string, key int64, err error) error {
	return fmt.Errorf("hashkv: %s %s[%d]: %w", op, prefix, key, err)
}

// firstError returns the error of the first command of a pipeline that failed,
// with the Redis key it was for. The others mostly fail for the same reason.
func firstError(op string, cmds []redis.Cmder, err error) error {
	for _, cmd := range cmds {
		if cmd.Err() != nil {
			return fmt.Errorf("hashkv: %s %v: %w", op, cmd.Args()[1], cmd.Err())
		}
	}
	return fmt.Errorf("hashkv: %s: %w", op, err)
}
