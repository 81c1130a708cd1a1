package hashkv

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math/bits"
	"slices"
	"strconv"

	"github.com/redis/go-redis/v9"
)

// SparseConfig describes a Sparse map. Its zero value suits about a million
// entries. Both fields are part of the stored data and must not change.
type SparseConfig struct {
	// Prefix begins every Redis key of the map, before a colon. It must not
	// contain braces. Default: "sparse".
	Prefix string

	// Buckets is the number of Redis hashes, a power of two up to 2^32. Choose
	// the number of entries you expect, divided by 128. Below 32 entries per
	// bucket memory goes to the buckets themselves; above about 390 some
	// buckets pass 512 entries, the stock hash-max-listpack-entries, and turn
	// into hash tables of five times the size for good. Default: 8192.
	Buckets int
}

// Sparse is a map from any int64 to any int64. It suits keys that lie anywhere,
// such as ids that begin with a time. Keys and values are kept as their
// unsigned bytes without the leading zeros, so negative ones are allowed but
// take all eight. It is safe for concurrent use.
type Sparse struct {
	rdb    redis.UniversalClient
	prefix string
	bits   int // log2 of the number of buckets
}

// NewSparse returns the map that lives under cfg.Prefix. It does not talk to
// Redis, and does not close rdb.
func NewSparse(rdb redis.UniversalClient, cfg SparseConfig) (*Sparse, error) {
	if cfg.Prefix == "" {
		cfg.Prefix = "sparse"
	}
	if cfg.Buckets == 0 {
		cfg.Buckets = 8192
	}
	if err := checkBase(rdb, cfg.Prefix); err != nil {
		return nil, err
	}
	if n := int64(cfg.Buckets); n < 1 || n > 1<<32 || n&(n-1) != 0 {
		return nil, fmt.Errorf("hashkv: SparseConfig.Buckets is %d: want a power of two up to 2^32", n)
	}
	return &Sparse{
		rdb:    rdb,
		prefix: cfg.Prefix,
		bits:   bits.TrailingZeros64(uint64(cfg.Buckets)),
	}, nil
}

// Get returns the value of key, or ErrNotFound. It costs one round trip.
func (s *Sparse) Get(ctx context.Context, key int64) (int64, error) {
	name, field := s.place(key)
	stored, err := s.rdb.HGet(ctx, name, field).Result()
	if errors.Is(err, redis.Nil) {
		return 0, ErrNotFound
	}
	if err != nil {
		return 0, keyError("get", s.prefix, key, err)
	}
	value, err := unpack(stored)
	if err != nil {
		return 0, keyError("get", s.prefix, key, err)
	}
	return value, nil
}

// GetMulti returns the values of keys; absent ones are left out. It costs one
// pipeline with one command per bucket. After an error it also returns what it
// could read.
func (s *Sparse) GetMulti(ctx context.Context, keys ...int64) (map[int64]int64, error) {
	type group struct {
		keys   []int64
		fields []string
		reply  *redis.SliceCmd
	}
	groups := make(map[string]*group)
	for _, key := range keys {
		name, field := s.place(key)
		g := groups[name]
		if g == nil {
			g = new(group)
			groups[name] = g
		}
		g.keys = append(g.keys, key)
		g.fields = append(g.fields, field)
	}
	cmds, err := s.rdb.Pipelined(ctx, func(pipe redis.Pipeliner) error {
		for name, g := range groups {
			g.reply = pipe.HMGet(ctx, name, g.fields...)
		}
		return nil
	})
	if err != nil {
		err = firstError("get", cmds, err)
	}
	found := make(map[int64]int64, len(keys))
	for _, g := range groups {
		for i, stored := range g.reply.Val() {
			stored, present := stored.(string)
			if !present {
				continue
			}
			value, badErr := unpack(stored)
			if badErr != nil {
				if err == nil {
					err = keyError("get", s.prefix, g.keys[i], badErr)
				}
				continue
			}
			found[g.keys[i]] = value
		}
	}
	return found, err
}

// Set stores value under key. It costs one round trip.
func (s *Sparse) Set(ctx context.Context, key, value int64) error {
	name, field := s.place(key)
	if err := s.rdb.HSet(ctx, name, field, pack(value)).Err(); err != nil {
		return keyError("set", s.prefix, key, err)
	}
	return nil
}

// maxPairs bounds the pairs in one HSET. From 7.2 on, Redis turns a hash into a
// hash table as soon as one command brings more pairs than the limit for
// listpacks, even if they repeat what the hash already holds.
const maxPairs = 128

// SetMulti stores entries in one pipeline with one command per bucket and 128
// entries. It takes a map, as GetMulti returns one: no key comes twice. After
// an error some entries may be stored.
func (s *Sparse) SetMulti(ctx context.Context, entries map[int64]int64) error {
	pairs := make(map[string][]string)
	for key, value := range entries {
		name, field := s.place(key)
		pairs[name] = append(pairs[name], field, pack(value))
	}
	cmds, err := s.rdb.Pipelined(ctx, func(pipe redis.Pipeliner) error {
		for name, pairs := range pairs {
			for part := range slices.Chunk(pairs, 2*maxPairs) {
				pipe.HSet(ctx, name, part)
			}
		}
		return nil
	})
	if err != nil {
		return firstError("set", cmds, err)
	}
	return nil
}

// SetNX stores value under key if the key is absent, and reports whether it
// did. It costs one round trip. If the reply was lost and the client sent the
// command again, SetNX reports false for its own write; Get can tell.
func (s *Sparse) SetNX(ctx context.Context, key, value int64) (bool, error) {
	name, field := s.place(key)
	done, err := s.rdb.HSetNX(ctx, name, field, pack(value)).Result()
	if err != nil {
		return false, keyError("setnx", s.prefix, key, err)
	}
	return done, nil
}

// Delete removes keys; absent ones are ignored. It costs one pipeline with one
// command per bucket.
func (s *Sparse) Delete(ctx context.Context, keys ...int64) error {
	fields := make(map[string][]string)
	for _, key := range keys {
		name, field := s.place(key)
		fields[name] = append(fields[name], field)
	}
	cmds, err := s.rdb.Pipelined(ctx, func(pipe redis.Pipeliner) error {
		for name, fields := range fields {
			pipe.HDel(ctx, name, fields...)
		}
		return nil
	})
	if err != nil {
		return firstError("delete", cmds, err)
	}
	return nil
}

// place returns the bucket that holds key, and the field in it.
func (s *Sparse) place(key int64) (name, field string) {
	bucket, rest := split(uint64(key), s.bits)
	return s.prefix + ":" + strconv.FormatUint(bucket, 16), pack(int64(rest))
}

// split cuts key into a bucket number of n bits and the rest of the key. It
// loses nothing: rest is the key without its low n bits, and each of those is
// the bucket's bit xor one bit of a hash of all bits above it, so they can be
// found again from the top down. The hash makes neighbours, equal low bits and
// other patterns spread evenly over the buckets. Bit i of the bucket does not
// depend on n, and so bucket b of 2^n holds what b and b+2^n would of 2^(n+1).
func split(key uint64, n int) (bucket, rest uint64) {
	rest = key
	for i := range n {
		bit := rest & 1
		rest >>= 1
		bucket |= (bit ^ mix(rest)&1) << i
	}
	return bucket, rest
}

// mix is the finalizer of SplitMix64 (Steele, Lea and Flood, OOPSLA 2014). It
// decides where entries are stored and cannot change.
func mix(x uint64) uint64 {
	x = (x ^ x>>30) * 0xbf58476d1ce4e5b9
	x = (x ^ x>>27) * 0x94d049bb133111eb
	return x ^ x>>31
}

// pack returns the bytes of x, big end first, without the leading zeros.
func pack(x int64) string {
	b := binary.BigEndian.AppendUint64(nil, uint64(x))
	return string(b[bits.LeadingZeros64(uint64(x))/8:])
}

// unpack is the inverse of pack. It refuses what pack never makes.
func unpack(s string) (int64, error) {
	if len(s) > 8 || s != "" && s[0] == 0 {
		return 0, errors.New("the stored bytes are no value of this map")
	}
	var x uint64
	for i := range len(s) {
		x = x<<8 | uint64(s[i])
	}
	return int64(x), nil
}
