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

	// What the keys make of the map.
	checkKey func(K) error
	place    func(key K, level int) (bucket, rest uint64)
	field    func(b []byte, key K, rest uint64) []byte // appends it
	key      func(s spot, field string) (K, error)
	bytes    int // the longest field or value

	// The bound of values: one of them.
	largest    int64
	valueBytes int
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
	if entries < 0 || entries > 1<<40 {
		return nil, fmt.Errorf("hashkv: %s.Entries is %d: want 0 to 2^40", config, entries)
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
		m.largest, m.bytes = math.MaxInt64>>(63-valueBits), (valueBits+7)/8
		m.want.Value = strconv.Itoa(valueBits) + " bits"
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
		m.valueBytes, m.bytes = valueBytes, valueBytes
		m.want.Value = upTo(valueBytes)
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
// for those who want its errors early, and for going on after [ErrLost]. After a
// [LimitError] the map is open, but takes no writes. It costs four round trips,
// and two more for a new map.
func (m *Map[K, V]) Open(ctx context.Context) error { return m.open(ctx) }

// Get returns the value of key, or [ErrNotFound]. It costs one round trip.
func (m *Map[K, V]) Get(ctx context.Context, key K) (V, error) {
	var value V
	err := m.one(ctx, "get", key, false, func(name, field string) redis.Cmder {
		return redis.NewStringCmd(ctx, "hget", name, field)
	}, func(cmd redis.Cmder) (err error) {
		value, err = m.decode(cmd.(*redis.StringCmd).Val())
		return err
	})
	return value, err
}

// Set stores value under key. It costs one round trip.
func (m *Map[K, V]) Set(ctx context.Context, key K, value V) error {
	if err := m.checkValue("set", key, value); err != nil {
		return err
	}
	return m.one(ctx, "set", key, true, func(name, field string) redis.Cmder {
		return redis.NewIntCmd(ctx, "hset", name, field, m.text(value))
	}, nil)
}

// SetNX stores value under key if the key is absent, and reports whether it
// did. It costs one round trip. If the reply was lost and the client sent the
// command again, SetNX reports false for its own write; Get can tell.
func (m *Map[K, V]) SetNX(ctx context.Context, key K, value V) (bool, error) {
	if err := m.checkValue("setnx", key, value); err != nil {
		return false, err
	}
	var done bool
	err := m.one(ctx, "setnx", key, true, func(name, field string) redis.Cmder {
		return redis.NewBoolCmd(ctx, "hsetnx", name, field, m.text(value))
	}, func(cmd redis.Cmder) error {
		done = cmd.(*redis.BoolCmd).Val()
		return nil
	})
	return done, err
}

// one runs a command on the bucket of key, and gives the reply to read.
func (m *Map[K, V]) one(ctx context.Context, op string, key K, write bool,
	build func(name, field string) redis.Cmder, read func(redis.Cmder) error,
) error {
	err := m.checkKey(key)
	if err == nil {
		err = m.descend(ctx, key, write, build, read)
	}
	switch {
	case err == nil:
		return nil
	case errors.Is(err, redis.Nil):
		return ErrNotFound
	}
	return keyError(op, m.prefix, key, err)
}

// descend runs the command on the bucket, or on the half of it if the bucket has
// been split, which a command finds out by the tombstone.
func (m *Map[K, V]) descend(ctx context.Context, key K, write bool,
	build func(name, field string) redis.Cmder, read func(redis.Cmder) error,
) error {
	v, err := m.look(ctx, write)
	if err != nil {
		return err
	}
	if write {
		m.written.Add(1)
	}
	level := v.Level
	for range maxRounds {
		if write && v.refuse != nil {
			return v.refuse
		}
		sent := time.Now()
		bucket, rest := m.place(key, level)
		s := spot{level, bucket}
		name, field := m.locate(key, s, rest, v.Tagged)
		cmd := build(name, field)
		var above *redis.StringCmd
		if level == v.Level {
			_ = m.rdb.Process(ctx, cmd) // the command has its error
		} else {
			pipe := m.rdb.Pipeline()
			above = m.peek(ctx, pipe, s, v)
			_ = pipe.Process(ctx, cmd) // queues it, and cannot fail
			_, _ = pipe.Exec(ctx)      // each command has its own error
		}
		err := cmd.Err()
		switch {
		case wrongType(err):
			if v, level, err = m.below(ctx, v, level, name, sent); err != nil {
				return err
			}
			continue
		case err != nil && !errors.Is(err, redis.Nil):
			return err
		case above != nil && !stands(above):
			level = v.Level // a failover brought the bucket back
			continue
		}
		if err == nil && read != nil {
			if err = read(cmd); err != nil {
				err = &CorruptError{Key: name, Err: err}
			}
		}
		return err
	}
	bucket, _ := m.place(key, v.Level)
	return &CorruptError{Key: m.name(spot{v.Level, bucket}, v), Err: errForeign}
}

// maxRounds is more than a bucket can go forth by growing and back by failovers
// in one call.
const maxRounds = 8

// errForeign is said of a Redis key that holds neither entries nor a tombstone.
var errForeign = errors.New("not a bucket: the Redis key has another type")

// peek queues the command that looks for a tombstone above s. In one pipeline
// with a command on s, and before it, it tells that the same server saw both: a
// failover may bring back the bucket above, and then s is not in use.
func (m *Map[K, V]) peek(ctx context.Context, pipe redis.Pipeliner, s spot, v *view) *redis.StringCmd {
	return pipe.Get(ctx, m.name(s.parent(), v))
}

// stands reports whether peek has seen a tombstone.
func stands(above *redis.StringCmd) bool { return above.Err() == nil && above.Val() == tombstone }

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
	switch {
	case err == nil && found == tombstone:
		return v, level + 1, nil
	case errors.Is(err, redis.Nil):
		return v, v.Level, nil // gone just now
	}
	if err == nil || wrongType(err) {
		err = &CorruptError{Key: name, Err: errForeign}
	}
	return nil, 0, err
}

// locate returns the Redis key of the bucket s that key is in, and its field.
func (m *Map[K, V]) locate(key K, s spot, rest uint64, tagged int) (name, field string) {
	b := s.appendName(make([]byte, 0, 64), m.prefix, tagged)
	n := len(b)
	text := string(m.field(b, key, rest))
	return text[:n], text[n:]
}

func (m *Map[K, V]) name(s spot, v *view) string {
	return string(s.appendName(nil, m.prefix, v.Tagged))
}

// text returns a value as Redis stores it.
func (m *Map[K, V]) text(value V) string {
	switch value := any(value).(type) {
	case int64:
		return string(appendPacked(make([]byte, 0, 8), uint64(value)))
	case string:
		return value
	}
	panic("bug: a value of another type")
}

// decode is the inverse of text.
func (m *Map[K, V]) decode(stored string) (value V, err error) {
	switch p := any(&value).(type) {
	case *int64:
		var x uint64
		if x, err = unpack(stored); x > uint64(m.largest) {
			err = errPacked
		}
		*p = int64(x)
	case *string:
		*p = stored
	}
	return value, err
}

func (m *Map[K, V]) checkValue(op string, key K, value V) error {
	var want string
	switch value := any(value).(type) {
	case int64:
		want = outside(value, m.largest)
	case string:
		if len(value) > m.valueBytes {
			want = upTo(m.valueBytes)
		}
	}
	if want != "" {
		return keyError(op, m.prefix, key, &RangeError{Key: show(key), Value: true, Limit: want})
	}
	return nil
}

// upTo says how long something may be.
func upTo(bytes int) string { return "up to " + strconv.Itoa(bytes) + " bytes" }

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
	if c, ok := rdb.(interface{ Options() *redis.ClusterOptions }); ok && c.Options().ReadOnly {
		// A header that is read from a replica may be any number of hours old.
		return errors.New("hashkv: the client reads from replicas: want one without ReadOnly and routing")
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
