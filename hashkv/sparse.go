package hashkv

import (
	"fmt"
	"math"

	"github.com/redis/go-redis/v9"
)

// A Sparse is a map from int64 keys that lie anywhere, such as IDs that begin
// with a time.
type Sparse[V Value] = Map[int64, V]

// SparseConfig describes a map with int64 keys. Its zero value suits about a
// million entries. Live, ValueBits and ValueBytes are part of the stored data: a
// map must be opened with those that it was made with.
type SparseConfig struct {
	// Prefix begins every Redis key of the map, before a colon. It must not
	// contain braces. Default: "sparse".
	Prefix string

	// Entries is how many entries the map is made for, up to 2^40. On a stock
	// server it becomes buckets of 91 to 181 entries when the map is made, and
	// means nothing afterwards. A map that gets three times as many must Grow,
	// or writes are refused; a bucket that is hardly used costs 100 bytes.
	// Default: 1,000,000.
	Entries int64

	// Live has a 1 for every bit that a key may have. Bits that are always 0
	// cost no memory if they are left out, wherever they are: a field has one
	// byte for every 8 live bits, less those that the bucket's number stands
	// for. Leading zeros are free in any case. IDs of idgen with shards 0 to 255
	// leave 5 bits of the shard's 13 unused, and are a byte shorter without:
	//
	//	Live: math.MaxUint64 &^ ((8191 - 255) << 10)
	//
	// A bit that is left out is left out for ever: mind the shards to come.
	// Default: all 64 bits, so that any key is allowed.
	Live uint64

	// ValueBits is the width of int64 values, 1 to 63: they are 0 to
	// 2^ValueBits-1. A value takes as many bytes as it has, not as it may have:
	// the width is a bound.
	// Default: 63.
	ValueBits int

	// ValueBytes is the length up to which string values are allowed, 1 to 64.
	// Default: 64.
	ValueBytes int

	// Warn is told what is wrong with a server but stops nothing, when the map
	// is opened and from AutoGrow. It must not use the map. Default: slog.Warn.
	Warn func(error)
}

// NewSparse returns the map under cfg.Prefix, with values of type V. It does
// not talk to Redis, and does not close rdb.
func NewSparse[V Value](rdb redis.UniversalClient, cfg SparseConfig) (*Sparse[V], error) {
	if cfg.Prefix == "" {
		cfg.Prefix = "sparse"
	}
	if cfg.Live == 0 {
		cfg.Live = math.MaxUint64
	}
	m, err := newMap[int64, V]("SparseConfig", rdb, cfg.Prefix, cfg.Entries, cfg.ValueBits, cfg.ValueBytes, cfg.Warn)
	if err != nil {
		return nil, err
	}
	m.want.Map, m.want.Keys = "sparse", fmt.Sprintf("live bits %#x", cfg.Live)
	live := newMask(cfg.Live)
	m.bytes = max(m.bytes, (live.width()-minLevel+7)/8)
	m.checkKey = func(key int64) error {
		if uint64(key)&^cfg.Live != 0 {
			return &RangeError{Key: show(key), Limit: fmt.Sprintf("no bits but %#x", cfg.Live)}
		}
		return nil
	}
	m.place = func(key int64, level int) (bucket, rest uint64) {
		return split(live.squeeze(uint64(key)), level)
	}
	m.field = func(b []byte, _ int64, rest uint64) []byte { return appendPacked(b, rest) }
	m.key = func(s spot, field string) (int64, error) {
		rest, err := unpack(field)
		if rest>>max(0, live.width()-s.level) != 0 {
			err = errPacked // more bits than any key has
		}
		return int64(live.stretch(join(s.bucket, rest, s.level))), err
	}
	return m, nil
}
