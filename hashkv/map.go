package hashkv

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"strconv"
	"strings"
	"time"

	"github.com/redis/go-redis/v9"
)

// Key is what a map is looked up by: int64 in a [Sparse], string in a [Strings].
type Key interface{ int64 | string }

// Value is what a map holds: whole numbers from 0 up, or short strings of any
// bytes.
type Value interface{ int64 | string }

// A Map keeps its entries in many small Redis hashes. [NewSparse] and
// [NewStrings] make one. It is safe for concurrent use, by any number of
// processes, also while it grows.
type Map[K Key, V Value] struct {
	book
	coder[K, V]
}

// A Sparse is a map from int64 keys that lie anywhere, such as IDs that begin
// with a time.
type Sparse[V Value] = Map[int64, V]

// A Strings is a map from short strings.
type Strings[V Value] = Map[string, V]

// A coder turns entries into fields of a hash, and back.
type coder[K Key, V Value] struct {
	checkKey func(K) error
	place    func(key K, level int) (bucket uint64, field fieldText)
	key      func(s spot, field string) (K, error)
	accepts  func(V) string // what would fit, if the value does not
	encode   func([]byte, V) []byte
	decode   func(string) (V, error)
	bytes    int // the longest field or value
}

// fieldText is a field before it is text: the string, or the number to be packed.
type fieldText struct {
	text string
	rest uint64
}

// SparseConfig describes a map with int64 keys. Its zero value suits about a
// million entries. Live, ValueBits and ValueBytes are part of the stored data: a
// map must be opened with those that it was made with.
type SparseConfig struct {
	// Prefix begins every Redis key of the map, before a colon. It must not
	// contain braces. Default: "sparse".
	Prefix string

	// Entries is how many entries the map is made for. It becomes buckets of
	// 91 to 181 entries when the map is made, and means nothing afterwards; a
	// map that gets more should Grow. Default: 1,000,000.
	Entries int64

	// Live has a 1 for every bit that a key may have. Bits that are always 0
	// cost no memory if they are left out, wherever they are: a field has one
	// byte for every 8 live bits, less those that the bucket's number stands
	// for. Leading zeros are free in any case. With IDs of idgen, the shard
	// numbers that are not in use may be left out.
	// Default: all 64 bits, so that any key is allowed.
	Live uint64

	// ValueBits is the width of int64 values, 1 to 63: they are 0 to
	// 2^ValueBits-1. A value takes as many bytes as it has, not as it may have.
	// Default: 63.
	ValueBits int

	// ValueBytes is the length up to which string values are allowed, 1 to 64.
	// Default: 64.
	ValueBytes int

	// Warn is told what is wrong with a server but stops nothing, when the map
	// is opened and from AutoGrow. Default: slog.Warn.
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
	m.place = func(key int64, level int) (uint64, fieldText) {
		bucket, rest := split(live.squeeze(uint64(key)), level)
		return bucket, fieldText{rest: rest}
	}
	m.key = func(s spot, field string) (int64, error) {
		rest, err := unpack(field)
		return int64(live.stretch(join(s.bucket, rest, s.level))), err
	}
	return m, nil
}

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
	// is opened and from AutoGrow. Default: slog.Warn.
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
	m.want.Map, m.want.Keys = "strings", fmt.Sprintf("up to %d bytes", cfg.KeyBytes)
	m.bytes = max(m.bytes, cfg.KeyBytes)
	m.checkKey = func(key string) error {
		if len(key) > cfg.KeyBytes {
			return &RangeError{Key: show(key), Limit: "up to " + strconv.Itoa(cfg.KeyBytes) + " bytes"}
		}
		return nil
	}
	m.place = func(key string, level int) (uint64, fieldText) {
		return hash(key) & (1<<level - 1), fieldText{text: key}
	}
	m.key = func(_ spot, field string) (string, error) { return field, nil }
	return m, nil
}

// maxBytes is the stock hash-max-listpack-value: a longer field or value turns
// its bucket into a hash table.
const maxBytes = 64

// newMap makes the part of a map that does not depend on what its keys are.
func newMap[K Key, V Value](config string, rdb redis.UniversalClient, prefix string, entries int64, valueBits, valueBytes int, warn func(error)) (*Map[K, V], error) {
	if err := checkBase(config, rdb, prefix); err != nil {
		return nil, err
	}
	if entries == 0 {
		entries = 1_000_000
	}
	if entries < 0 {
		return nil, fmt.Errorf("hashkv: %s.Entries is %d: want 0 or more", config, entries)
	}
	m := &Map[K, V]{book: newBook(rdb, prefix, warn)}
	var zero V
	switch any(zero).(type) {
	case int64:
		if valueBits == 0 {
			valueBits = 63
		}
		if valueBits < 1 || valueBits > 63 {
			return nil, fmt.Errorf("hashkv: %s.ValueBits is %d: want 1 to 63", config, valueBits)
		}
		if valueBytes != 0 {
			return nil, fmt.Errorf("hashkv: %s.ValueBytes is %d: want 0, as the values are numbers", config, valueBytes)
		}
		largest := int64(math.MaxInt64) >> (63 - valueBits)
		m.want.Value, m.bytes = strconv.Itoa(valueBits)+" bits", (valueBits+7)/8
		m.accepts = any(func(v int64) string { return outside(v, largest) }).(func(V) string)
		m.encode = any(func(b []byte, v int64) []byte { return appendPacked(b, uint64(v)) }).(func([]byte, V) []byte)
		m.decode = any(func(s string) (int64, error) {
			x, err := unpack(s)
			if err == nil && x > uint64(largest) {
				err = errPacked
			}
			return int64(x), err
		}).(func(string) (V, error))
	case string:
		if valueBytes == 0 {
			valueBytes = maxBytes
		}
		if valueBytes < 1 || valueBytes > maxBytes {
			return nil, fmt.Errorf("hashkv: %s.ValueBytes is %d: want 1 to %d", config, valueBytes, maxBytes)
		}
		if valueBits != 0 {
			return nil, fmt.Errorf("hashkv: %s.ValueBits is %d: want 0, as the values are strings", config, valueBits)
		}
		limit := "up to " + strconv.Itoa(valueBytes) + " bytes"
		m.want.Value, m.bytes = limit, valueBytes
		m.accepts = any(func(v string) string {
			if len(v) > valueBytes {
				return limit
			}
			return ""
		}).(func(V) string)
		m.encode = any(func(b []byte, v string) []byte { return append(b, v...) }).(func([]byte, V) []byte)
		m.decode = any(func(s string) (string, error) { return s, nil }).(func(string) (V, error))
	}
	m.plan = func(h *header, l limits) error {
		if l.entries.value < minEntries {
			return &LimitError{Node: l.entries.addr, Setting: entriesSetting, Have: l.entries.value, Want: minEntries}
		}
		h.Level = planLevel(entries, l.entries.value)
		h.Tagged = min(h.Level, slotBits)
		return nil
	}
	m.guard = m.check
	return m, nil
}

// check tells whether writes would turn buckets into hash tables.
func (m *Map[K, V]) check(ctx context.Context, v *view) (*LimitError, error) {
	if refused := v.limits.checkBytes(m.bytes); refused != nil {
		return refused, nil
	}
	fill, err := m.fill(ctx, v)
	if err != nil {
		return nil, err
	}
	return v.limits.checkFill(fill), nil
}

// Open reads the header of the map, or makes one if there is none, and checks
// the servers: that buckets stay in the compact encoding, and that no eviction
// policy drops whole buckets. The first call on a map does the same; Open is
// for those who want its errors early, and for going on after [ErrLost]. It
// costs about five round trips.
func (m *Map[K, V]) Open(ctx context.Context) error { return m.open(ctx) }

// Get returns the value of key, or [ErrNotFound]. It costs one round trip.
func (m *Map[K, V]) Get(ctx context.Context, key K) (V, error) {
	var value V
	err := m.one(ctx, "get", key, false, func(name, field string) error {
		stored, err := m.rdb.HGet(ctx, name, field).Result()
		if err != nil {
			return err
		}
		if value, err = m.decode(stored); err != nil {
			return &CorruptError{Key: name, Err: err}
		}
		return nil
	})
	return value, err
}

// Set stores value under key. It costs one round trip.
func (m *Map[K, V]) Set(ctx context.Context, key K, value V) error {
	if err := m.checkValue("set", key, value); err != nil {
		return err
	}
	return m.one(ctx, "set", key, true, func(name, field string) error {
		return m.rdb.HSet(ctx, name, field, m.text(value)).Err()
	})
}

// SetNX stores value under key if the key is absent, and reports whether it
// did. It costs one round trip. If the reply was lost and the client sent the
// command again, SetNX reports false for its own write; Get can tell.
func (m *Map[K, V]) SetNX(ctx context.Context, key K, value V) (bool, error) {
	if err := m.checkValue("setnx", key, value); err != nil {
		return false, err
	}
	var done bool
	err := m.one(ctx, "setnx", key, true, func(name, field string) error {
		var err error
		done, err = m.rdb.HSetNX(ctx, name, field, m.text(value)).Result()
		return err
	})
	return done, err
}

// one runs a command on the bucket of key: on one of its halves if the bucket
// has been split, which the command finds out by the tombstone.
func (m *Map[K, V]) one(ctx context.Context, op string, key K, write bool, run func(name, field string) error) error {
	err := m.checkKey(key)
	if err == nil {
		err = m.descend(ctx, key, write, run)
	}
	switch {
	case err == nil:
		return nil
	case errors.Is(err, redis.Nil):
		return ErrNotFound
	}
	return keyError(op, m.prefix, key, err)
}

func (m *Map[K, V]) descend(ctx context.Context, key K, write bool, run func(name, field string) error) error {
	v, err := m.look(ctx)
	if err != nil {
		return err
	}
	for level := v.Level; ; {
		if write && v.refuse != nil {
			return v.refuse
		}
		sent := time.Now()
		name, field := m.locate(key, level, v.Tagged)
		if err := run(name, field); !wrongType(err) {
			return err
		}
		if v, level, err = m.below(ctx, v, level, name, sent); err != nil {
			return err
		}
	}
}

// below returns the level at which to look for the entries of a bucket that
// turned out to be no hash at the given level: one that was split holds a
// tombstone.
func (m *Map[K, V]) below(ctx context.Context, v *view, level int, name string, sent time.Time) (*view, int, error) {
	if v.Growing && level == v.Level {
		return v, level + 1, nil
	}
	v, err := m.reread(ctx, sent)
	switch {
	case err != nil:
		return nil, 0, err
	case v.Level > level:
		return v, v.Level, nil
	case v.Growing && v.Level == level:
		return v, level + 1, nil
	}
	// A failover may have undone the header's last change, but not that of the
	// bucket.
	found, err := m.rdb.Get(ctx, name).Result()
	if err == nil && found == tombstone {
		return v, level + 1, nil
	}
	if err == nil || wrongType(err) {
		err = &CorruptError{Key: name, Err: errors.New("not a bucket: the Redis key has another type")}
	}
	return nil, 0, err
}

// locate returns the Redis key of the bucket that key is in, and its field.
func (m *Map[K, V]) locate(key K, level, tagged int) (name, field string) {
	bucket, f := m.place(key, level)
	b := spot{level, bucket}.appendName(make([]byte, 0, 48), m.prefix, tagged)
	if f.text != "" {
		return string(b), f.text
	}
	n := len(b)
	text := string(appendPacked(b, f.rest))
	return text[:n], text[n:]
}

func (m *Map[K, V]) name(s spot, v *view) string {
	return string(s.appendName(nil, m.prefix, v.Tagged))
}

// text returns a value as Redis stores it.
func (m *Map[K, V]) text(value V) string { return string(m.encode(make([]byte, 0, 8), value)) }

func (m *Map[K, V]) checkValue(op string, key K, value V) error {
	if want := m.accepts(value); want != "" {
		return keyError(op, m.prefix, key, &RangeError{Key: show(key), Value: true, Limit: want})
	}
	return nil
}

// outside returns the range that x is outside of, or nothing.
func outside(x, largest int64) string {
	if x < 0 || x > largest {
		return "0.." + strconv.FormatInt(largest, 10)
	}
	return ""
}

// checkBase checks what both kinds of map are made from.
func checkBase(config string, rdb redis.UniversalClient, prefix string) error {
	if rdb == nil {
		return errors.New("hashkv: the client is nil")
	}
	if _, ring := rdb.(*redis.Ring); ring {
		return errors.New("hashkv: the client is a Ring: want one that finds a key where it was written")
	}
	if strings.ContainsAny(prefix, "{}") {
		// Redis Cluster would hash the part in braces only, and one node would
		// get the whole map.
		return fmt.Errorf("hashkv: %s.Prefix is %q: want no braces", config, prefix)
	}
	return nil
}

func newBook(rdb redis.UniversalClient, prefix string, warn func(error)) book {
	if warn == nil {
		warn = func(err error) { slog.Warn(err.Error()) }
	}
	return book{rdb: rdb, prefix: prefix, want: header{Version: version}, warn: warn, turn: make(chan struct{}, 1)}
}
