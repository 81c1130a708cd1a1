package hashkv

import (
	"context"
	"fmt"
	"math"
	"strconv"

	"github.com/redis/go-redis/v9"
)

// DenseConfig describes a Dense map. Its zero value holds values of 24 bits.
// ValueBits is part of the stored data: a map must be opened with the width
// that it was made with.
type DenseConfig struct {
	// Prefix begins every Redis key of the map, before a colon. It must not
	// contain braces. Default: "dense".
	Prefix string

	// ValueBits is the width of a value, 1 to 63: they are 0 to 2^ValueBits-1.
	// A key takes one bit more, which tells 0 from absent. Default: 24.
	ValueBits int

	// Keys is the number of keys: they are 0 to Keys-1. A key far outside the
	// dense range costs a whole string, and the bound keeps it out. All and
	// Stats ask for every string that there may be, about 1.6 million of them
	// (3 s) with the default and 24 bits. It may change; keys past it are not
	// seen. Default: 2^32.
	Keys int64

	// Warn is told what is wrong with a server but stops nothing, when the map
	// is opened. It must not use the map. Default: slog.Warn.
	Warn func(error)
}

// Dense is a map from the integers 0, 1, 2, ... to integers of a fixed width.
// It suits keys of which most are present: an absent key below the largest one
// takes as much memory as a present one, and Delete frees none. It needs no
// growing. It is safe for concurrent use, by any number of processes.
type Dense struct {
	book
	width    int    // of a slot in bits
	kind     string // the same as BITFIELD wants it: "u25"
	slots    int64  // in one string
	last     string // the last slot of a string: "#2615"
	maxKey   int64
	maxValue int64
}

// stringBytes is the room for slots in one string: with its header and its last
// byte it fills one of the allocator's sizes, of 8 KiB.
const stringBytes = 8192 - 6

// NewDense returns the map under cfg.Prefix. It does not talk to Redis, and does
// not close rdb.
func NewDense(rdb redis.UniversalClient, cfg DenseConfig) (*Dense, error) {
	if cfg.Prefix == "" {
		cfg.Prefix = "dense"
	}
	if cfg.ValueBits == 0 {
		cfg.ValueBits = 24
	}
	if cfg.Keys == 0 {
		cfg.Keys = 1 << 32
	}
	if err := checkBase("DenseConfig", rdb, cfg.Prefix); err != nil {
		return nil, err
	}
	switch {
	case cfg.ValueBits < 1 || cfg.ValueBits > 63:
		return nil, fmt.Errorf("hashkv: DenseConfig.ValueBits is %d: want 1 to 63", cfg.ValueBits)
	case cfg.Keys < 0:
		return nil, fmt.Errorf("hashkv: DenseConfig.Keys is %d: want 0 or more", cfg.Keys)
	}
	d := &Dense{
		book:     newBook(rdb, cfg.Prefix, cfg.Warn),
		width:    cfg.ValueBits + 1,
		kind:     "u" + strconv.Itoa(cfg.ValueBits+1),
		maxKey:   cfg.Keys - 1,
		maxValue: math.MaxInt64 >> (63 - cfg.ValueBits),
	}
	if d.width == 64 {
		d.kind = "i64" // BITFIELD has no u64
	}
	// Of eights, so that a string and each eight slots are whole bytes.
	d.slots = int64(stringBytes / d.width * 8)
	d.last = "#" + strconv.FormatInt(d.slots-1, 10)
	d.want.Map, d.want.Keys, d.want.Slots = "dense", "from 0", int(d.slots)
	d.want.Value = strconv.Itoa(cfg.ValueBits) + " bits"
	return d, nil
}

// Open reads the header of the map, or makes one if there is none, and checks
// that no eviction policy drops whole strings. The first call on a map does the
// same; Open is for those who want its errors early, and for going on after
// [ErrLost]. It costs two round trips, and two more for a new map.
func (d *Dense) Open(ctx context.Context) error { return d.open(ctx) }

// Get returns the value of key, or [ErrNotFound]. It costs one round trip.
func (d *Dense) Get(ctx context.Context, key int64) (int64, error) {
	if err := d.ready(ctx, key, 0); err != nil {
		return 0, keyError("get", d.prefix, key, err)
	}
	number, slot := key/d.slots, key%d.slots
	first, last := d.bytesOf(slot)
	name := d.name(number)
	stored, err := d.rdb.GetRange(ctx, name, first, last).Result()
	if err != nil {
		return 0, keyError("get", d.prefix, key, d.typed(name, err))
	}
	value, present, err := d.value(stored, slot, first)
	if err != nil {
		return 0, keyError("get", d.prefix, key, &CorruptError{Key: name, Err: err})
	}
	if !present {
		return 0, ErrNotFound
	}
	return value, nil
}

// bytesOf returns the first and the last byte of a string that slot reaches.
func (d *Dense) bytesOf(slot int64) (first, last int64) {
	return slot * int64(d.width) / 8, ((slot+1)*int64(d.width) - 1) / 8
}

// value reads a slot from a part of a string that begins at byte first. What a
// string does not have is absent.
func (d *Dense) value(part string, slot, first int64) (value int64, present bool, err error) {
	bit := int(slot*int64(d.width) - first*8)
	var x uint64
	for left := d.width; left > 0; {
		if bit/8 >= len(part) {
			return 0, false, nil
		}
		room := 8 - bit%8
		n := min(room, left)
		x = x<<n | uint64(part[bit/8])>>(room-n)&(1<<n-1)
		bit, left = bit+n, left-n
	}
	if x > uint64(d.maxValue)+1 {
		err = errPacked
	}
	return int64(x - 1), x != 0, err
}

// put writes a slot of a part of a string that is all zeros there.
func (d *Dense) put(part []byte, slot int64, value int64) {
	bit := int(slot) * d.width
	x := uint64(value) + 1
	for left := d.width; left > 0; {
		room := 8 - bit%8
		n := min(room, left)
		part[bit/8] |= byte(x >> (left - n) << (room - n) & (1<<room - 1))
		bit, left = bit+n, left-n
	}
}

// Set stores value under key. It costs one round trip.
func (d *Dense) Set(ctx context.Context, key, value int64) error {
	if err := d.ready(ctx, key, value); err != nil {
		return keyError("set", d.prefix, key, err)
	}
	name := d.name(key / d.slots)
	if err := d.rdb.BitField(ctx, name, d.write("SET", d.kind, d.slot(key), value+1)...).Err(); err != nil {
		return keyError("set", d.prefix, key, d.typed(name, err))
	}
	return nil
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
	if err := d.ready(ctx, key, value); err != nil {
		return false, keyError("setnx", d.prefix, key, err)
	}
	name := d.name(key / d.slots)
	done, err := setNX.Run(ctx, d.rdb, []string{name}, d.kind, d.slot(key), d.last, value+1).Bool()
	if err != nil {
		return false, keyError("setnx", d.prefix, key, d.typed(name, err))
	}
	return done, nil
}

// write puts an increment of the last slot by 0 before sets. It makes Redis
// create a string at its full length: one that grows slot by slot, in any order
// but the ascending one, ends with up to twice the memory.
func (d *Dense) write(sets ...any) []any {
	return append([]any{"INCRBY", d.kind, d.last, 0}, sets...)
}

// name returns the Redis key of a string.
func (d *Dense) name(number int64) string {
	b := make([]byte, 0, 48)
	b = append(append(b, d.prefix...), ':')
	return string(strconv.AppendInt(b, number, 10))
}

// slot returns the slot of key as BITFIELD wants it.
func (d *Dense) slot(key int64) string { return "#" + strconv.FormatInt(key%d.slots, 10) }

// ready checks an entry, and that the map is the one that was opened.
func (d *Dense) ready(ctx context.Context, key, value int64) error {
	if err := d.check(key, value); err != nil {
		return err
	}
	_, err := d.look(ctx, false)
	return err
}

func (d *Dense) check(key, value int64) error {
	if want := outside(key, d.maxKey); want != "" {
		return &RangeError{Key: show(key), Limit: want}
	}
	if want := outside(value, d.maxValue); want != "" {
		return &RangeError{Key: show(key), Value: true, Limit: want}
	}
	return nil
}
