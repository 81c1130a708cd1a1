package hashkv

import (
	"context"
	"fmt"
	"math"
	"strconv"

	"github.com/redis/go-redis/v9"
)

// DenseConfig describes a Dense map. Its zero value holds values of 24 bits.
// All fields but Keys are part of the stored data and must not change.
type DenseConfig struct {
	// Prefix begins every Redis key of the map, before a colon. It must not
	// contain braces. Default: "dense".
	Prefix string

	// Bits is the width of a value, from 2 to 63. The largest value is
	// 2^Bits - 2. Default: 24.
	Bits int

	// Slots is the number of values in one Redis string, a multiple of 8 so
	// that a string is whole bytes, and at most 1048576. Default: 1000. That is
	// not 1024 because 1024 slots of 24 bits and the string's header just miss
	// one of the allocator's sizes, and would take 3584 bytes for 3072.
	Slots int

	// Keys is the number of keys: they are 0 to Keys-1. A key far outside the
	// dense range costs a whole string, and the bound keeps it out.
	// Default: no bound.
	Keys int64
}

// Dense is a map from the integers 0, 1, 2, ... to integers of a fixed width.
// It suits keys of which most are present: an absent key below the largest one
// takes as much memory as a present one, and Delete frees none. It is safe for
// concurrent use.
type Dense struct {
	rdb    redis.UniversalClient
	prefix string
	slots  int64
	width  string // of a slot, as BITFIELD wants it: "u24"
	last   string // the last slot of a string: "#999"

	maxKey   int64
	maxValue int64
}

// NewDense returns the map that lives under cfg.Prefix. It does not talk to
// Redis, and does not close rdb.
func NewDense(rdb redis.UniversalClient, cfg DenseConfig) (*Dense, error) {
	if cfg.Prefix == "" {
		cfg.Prefix = "dense"
	}
	if cfg.Bits == 0 {
		cfg.Bits = 24
	}
	if cfg.Slots == 0 {
		cfg.Slots = 1000
	}
	if err := checkBase(rdb, cfg.Prefix); err != nil {
		return nil, err
	}
	switch {
	case cfg.Bits < 2 || cfg.Bits > 63:
		return nil, fmt.Errorf("hashkv: DenseConfig.Bits is %d: want 2 to 63", cfg.Bits)
	case cfg.Slots < 8 || cfg.Slots > 1<<20 || cfg.Slots%8 != 0:
		return nil, fmt.Errorf("hashkv: DenseConfig.Slots is %d: want a multiple of 8 up to 1048576", cfg.Slots)
	case cfg.Keys < 0:
		return nil, fmt.Errorf("hashkv: DenseConfig.Keys is %d: want 0 or more", cfg.Keys)
	}
	maxKey := int64(math.MaxInt64)
	if cfg.Keys > 0 {
		maxKey = cfg.Keys - 1
	}
	return &Dense{
		rdb:      rdb,
		prefix:   cfg.Prefix,
		slots:    int64(cfg.Slots),
		width:    "u" + strconv.Itoa(cfg.Bits),
		last:     "#" + strconv.Itoa(cfg.Slots-1),
		maxKey:   maxKey,
		maxValue: math.MaxInt64>>(63-cfg.Bits) - 1,
	}, nil
}

// Get returns the value of key, or ErrNotFound. It costs one round trip.
func (d *Dense) Get(ctx context.Context, key int64) (int64, error) {
	if err := d.check(key, 0); err != nil {
		return 0, keyError("get", d.prefix, key, err)
	}
	name, slot := d.place(key)
	stored, err := d.rdb.BitFieldRO(ctx, name, d.width, slot).Result()
	if err != nil {
		return 0, keyError("get", d.prefix, key, err)
	}
	if stored[0] == 0 {
		return 0, ErrNotFound
	}
	return stored[0] - 1, nil
}

// GetMulti returns the values of keys; absent ones are left out. It costs one
// pipeline with one command per Redis string. After an error from Redis it also
// returns what it could read.
func (d *Dense) GetMulti(ctx context.Context, keys ...int64) (map[int64]int64, error) {
	return d.getMulti(ctx, "get", keys)
}

func (d *Dense) getMulti(ctx context.Context, op string, keys []int64) (map[int64]int64, error) {
	groups := make(map[string][]int64)
	for _, key := range keys {
		if err := d.check(key, 0); err != nil {
			return nil, keyError(op, d.prefix, key, err)
		}
		name, _ := d.place(key)
		groups[name] = append(groups[name], key)
	}
	replies := make(map[*redis.IntSliceCmd][]int64, len(groups))
	cmds, err := d.rdb.Pipelined(ctx, func(pipe redis.Pipeliner) error {
		for name, keys := range groups {
			args := make([]any, 0, 2*len(keys))
			for _, key := range keys {
				_, slot := d.place(key)
				args = append(args, d.width, slot)
			}
			replies[pipe.BitFieldRO(ctx, name, args...)] = keys
		}
		return nil
	})
	found := make(map[int64]int64, len(keys))
	for reply, keys := range replies {
		for i, stored := range reply.Val() {
			if stored != 0 {
				found[keys[i]] = stored - 1
			}
		}
	}
	if err != nil {
		return found, firstError(op, cmds, err)
	}
	return found, nil
}

// Set stores value under key. It costs one round trip.
func (d *Dense) Set(ctx context.Context, key, value int64) error {
	if err := d.check(key, value); err != nil {
		return keyError("set", d.prefix, key, err)
	}
	name, slot := d.place(key)
	if err := d.rdb.BitField(ctx, name, d.write("SET", d.width, slot, value+1)...).Err(); err != nil {
		return keyError("set", d.prefix, key, err)
	}
	return nil
}

// SetMulti stores entries in one pipeline with one command per Redis string.
// It takes a map, as GetMulti returns one: every entry is checked before the
// first is sent, and no key comes twice. After an error from Redis some entries
// may be stored.
func (d *Dense) SetMulti(ctx context.Context, entries map[int64]int64) error {
	sets := make(map[string][]any)
	for key, value := range entries {
		if err := d.check(key, value); err != nil {
			return keyError("set", d.prefix, key, err)
		}
		name, slot := d.place(key)
		sets[name] = append(sets[name], "SET", d.width, slot, value+1)
	}
	return d.writeMulti(ctx, "set", sets)
}

// setNX is a script because BITFIELD has no condition. Lua counts in doubles,
// but only the zero matters to it, and the new value passes through as text.
var setNX = redis.NewScript(`
if redis.call('BITFIELD_RO', KEYS[1], 'GET', ARGV[1], ARGV[2])[1] ~= 0 then
  return 0
end
redis.call('BITFIELD', KEYS[1], 'INCRBY', ARGV[1], ARGV[3], 0, 'SET', ARGV[1], ARGV[2], ARGV[4])
return 1`)

// SetNX stores value under key if the key is absent, and reports whether it
// did. It costs one round trip. If the reply was lost and the client sent the
// command again, SetNX reports false for its own write; Get can tell.
func (d *Dense) SetNX(ctx context.Context, key, value int64) (bool, error) {
	if err := d.check(key, value); err != nil {
		return false, keyError("setnx", d.prefix, key, err)
	}
	name, slot := d.place(key)
	done, err := setNX.Run(ctx, d.rdb, []string{name}, d.width, slot, d.last, value+1).Bool()
	if err != nil {
		return false, keyError("setnx", d.prefix, key, err)
	}
	return done, nil
}

// Delete removes keys; absent ones are ignored. It costs two pipelines: it
// reads first, because clearing a slot of an absent string would create it.
func (d *Dense) Delete(ctx context.Context, keys ...int64) error {
	present, err := d.getMulti(ctx, "delete", keys)
	if err != nil {
		return err
	}
	sets := make(map[string][]any)
	for key := range present {
		name, slot := d.place(key)
		sets[name] = append(sets[name], "SET", d.width, slot, 0)
	}
	return d.writeMulti(ctx, "delete", sets)
}

func (d *Dense) writeMulti(ctx context.Context, op string, sets map[string][]any) error {
	cmds, err := d.rdb.Pipelined(ctx, func(pipe redis.Pipeliner) error {
		for name, args := range sets {
			pipe.BitField(ctx, name, d.write(args...)...)
		}
		return nil
	})
	if err != nil {
		return firstError(op, cmds, err)
	}
	return nil
}

// write puts an increment of the last slot by 0 before sets. It makes Redis
// create a string at its full length: one that grows slot by slot, in any order
// but the ascending one, ends with up to twice the memory.
func (d *Dense) write(sets ...any) []any {
	return append([]any{"INCRBY", d.width, d.last, 0}, sets...)
}

// place returns the Redis string that holds key, and the slot in it.
func (d *Dense) place(key int64) (name, slot string) {
	return d.prefix + ":" + strconv.FormatInt(key/d.slots, 10),
		"#" + strconv.FormatInt(key%d.slots, 10)
}

func (d *Dense) check(key, value int64) error {
	if key < 0 || key > d.maxKey {
		return &RangeError{Key: key, Max: d.maxKey}
	}
	if value < 0 || value > d.maxValue {
		return &RangeError{Key: key, Value: true, Max: d.maxValue}
	}
	return nil
}
