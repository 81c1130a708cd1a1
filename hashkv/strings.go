package hashkv

import (
	"errors"
	"fmt"

	"github.com/redis/go-redis/v9"
)

// A Strings is a map from short strings.
type Strings[V Value] = Map[string, V]

// StringsConfig describes a map with string keys. Its zero value suits about a
// million entries. KeyBytes, ValueBits and ValueBytes are part of the stored
// data: a map must be opened with those that it was made with.
type StringsConfig struct {
	// Prefix begins every Redis key of the map, before a colon. It must not
	// contain braces. Default: "strings".
	Prefix string

	// Entries is how many entries the map is made for, as in [SparseConfig].
	// Default: 1,000,000.
	Entries int64

	// KeyBytes is the length up to which keys are allowed, 1 to 64. The whole
	// key is stored. Default: 64.
	KeyBytes int

	// ValueBits is the width of int64 values, as in [SparseConfig].
	// Default: 63.
	ValueBits int

	// ValueBytes is the length up to which string values are allowed, 1 to 64.
	// Default: 64.
	ValueBytes int

	// Warn is told what is wrong with a server but stops nothing, when the map
	// is opened and from AutoGrow. It must not use the map. Default: slog.Warn.
	Warn func(error)
}

// NewStrings returns the map under cfg.Prefix, with values of type V. It does
// not talk to Redis, and does not close rdb.
func NewStrings[V Value](rdb redis.UniversalClient, cfg StringsConfig) (*Strings[V], error) {
	if cfg.Prefix == "" {
		cfg.Prefix = "strings"
	}
	if cfg.KeyBytes == 0 {
		cfg.KeyBytes = maxBytes
	}
	if cfg.KeyBytes < 1 || cfg.KeyBytes > maxBytes {
		return nil, fmt.Errorf("hashkv: StringsConfig.KeyBytes is %d: want 1 to %d", cfg.KeyBytes, maxBytes)
	}
	m, err := newMap[string, V]("StringsConfig", rdb, cfg.Prefix, cfg.Entries, cfg.ValueBits, cfg.ValueBytes, cfg.Warn)
	if err != nil {
		return nil, err
	}
	m.want.Map, m.want.Keys = "strings", upTo(cfg.KeyBytes)
	m.bytes = max(m.bytes, cfg.KeyBytes)
	m.checkKey = func(key string) error {
		if len(key) > cfg.KeyBytes {
			return &RangeError{Key: show(key), Limit: upTo(cfg.KeyBytes)}
		}
		return nil
	}
	m.place = func(key string, level int) (bucket, rest uint64) {
		return hash(key) & (1<<level - 1), 0
	}
	m.field = func(b []byte, key string, _ uint64) []byte { return append(b, key...) }
	m.key = func(s spot, field string) (string, error) {
		if hash(field)&(1<<s.level-1) != s.bucket {
			return "", errors.New("a field of another bucket")
		}
		return field, nil
	}
	return m, nil
}
