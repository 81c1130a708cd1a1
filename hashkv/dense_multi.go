package hashkv

import (
	"cmp"
	"context"
	"errors"
	"iter"
	"slices"

	"github.com/redis/go-redis/v9"
)

// A part is a command on a string, for entries that follow one another in items.
type part struct {
	name        string
	items       []item[int64, int64]
	first, last int64 // bytes that the command is about
	cmd         redis.Cmder
}

// nearby is how many bytes between two slots are rather read along than asked
// for in two commands.
const nearby = 64

// GetMulti returns the values of keys; absent ones are left out. It costs one
// pipeline per node, for each 4096 commands, with one command for keys that lie
// together. After a [PartialError] it also returns what it could read.
func (d *Dense) GetMulti(ctx context.Context, keys ...int64) (map[int64]int64, error) {
	return d.getMulti(ctx, "get", keys)
}

func (d *Dense) getMulti(ctx context.Context, op string, keys []int64) (map[int64]int64, error) {
	items := make([]item[int64, int64], len(keys))
	for i, key := range keys {
		items[i].key = key
	}
	found := make(map[int64]int64, len(keys))
	err := d.many(ctx, op, items, d.reads, func(p part, fail func([]item[int64, int64], error)) {
		text := p.cmd.(*redis.StringCmd).Val()
		for i, it := range p.items {
			value, present, err := d.value(text, it.key%d.slots, p.first)
			switch {
			case err != nil:
				fail(p.items[i:i+1], &CorruptError{Key: p.name, Err: err})
			case present:
				found[it.key] = value
			}
		}
	})
	return found, err
}

// reads returns the commands of one pipeline that read items, which are in
// order, and the items that are left.
func (d *Dense) reads(ctx context.Context, items []item[int64, int64]) ([]part, []item[int64, int64]) {
	parts := make([]part, 0, min(len(items), maxPipeline))
	for len(items) > 0 && len(parts) < maxPipeline {
		number := items[0].key / d.slots
		first, last := d.bytesOf(items[0].key % d.slots)
		n := 1
		for ; n < len(items) && items[n].key/d.slots == number; n++ {
			from, to := d.bytesOf(items[n].key % d.slots)
			if from > last+nearby {
				break
			}
			last = to
		}
		parts = append(parts, part{name: d.name(number), items: items[:n:n], first: first, last: last})
		p := &parts[len(parts)-1] // what is behind a pointer needs no memory of its own as an argument
		p.cmd = redis.NewStringCmd(ctx, "getrange", &p.name, &p.first, &p.last)
		items = items[n:]
	}
	return parts, items
}

// SetMulti stores entries. It costs one pipeline per node, for each 4096
// commands, with one or two commands per string, and 512 entries that do not
// lie together. It takes a map, as GetMulti returns one: every entry is checked
// before the first is sent, and no key comes twice. A [PartialError] tells which
// keys may not be stored.
func (d *Dense) SetMulti(ctx context.Context, entries map[int64]int64) error {
	items := make([]item[int64, int64], 0, len(entries))
	for key, value := range entries {
		items = append(items, item[int64, int64]{key: key, value: value})
	}
	return d.setItems(ctx, "set", items)
}

// setItems stores items, and the last of those that have the same key.
func (d *Dense) setItems(ctx context.Context, op string, items []item[int64, int64]) error {
	for _, it := range items {
		if err := d.check(it.key, it.value); err != nil {
			return keyError(op, d.prefix, it.key, err)
		}
	}
	return d.many(ctx, op, items, d.writes, nil)
}

// cleared is the value that leaves a slot at zero.
const cleared = -1

// writes returns the commands of one pipeline that store items, which are in
// order, and the items that are left. It stores bytes where all of eight slots
// are there, and slot by slot elsewhere.
func (d *Dense) writes(ctx context.Context, items []item[int64, int64]) ([]part, []item[int64, int64]) {
	var parts []part
	for len(items) > 0 && len(parts) < maxPipeline {
		number := items[0].key / d.slots
		n := 1
		for n < len(items) && items[n].key/d.slots == number {
			n++
		}
		name := d.name(number)
		var runs []part
		var single []item[int64, int64]
		for rest := items[:n]; len(rest) > 0; {
			whole := d.eights(rest)
			if whole == 0 {
				single, rest = append(single, rest[0]), rest[1:]
				continue
			}
			slot := rest[0].key % d.slots
			bytes := make([]byte, whole*d.width/8)
			for i, it := range rest[:whole] {
				d.put(bytes, int64(i), it.value)
			}
			first := slot * int64(d.width) / 8
			runs = append(runs, part{
				name: name, items: rest[:whole:whole],
				cmd: redis.NewIntCmd(ctx, "setrange", name, first, bytes),
			})
			rest = rest[whole:]
		}
		// The first creates the string at its full length, also for the runs.
		for first := true; first || len(single) > 0; first = false {
			n := min(512, len(single))
			args := append([]any{"bitfield", name}, d.write()...)
			for _, it := range single[:n] {
				args = append(args, "SET", d.kind, d.slot(it.key), it.value+1)
			}
			parts = append(parts, part{name: name, items: single[:n:n], cmd: redis.NewIntSliceCmd(ctx, args...)})
			single = single[n:]
		}
		parts = append(parts, runs...)
		items = items[n:]
	}
	return parts, items
}

// eights returns how many items from the first on fill eights of slots, without
// a gap.
func (d *Dense) eights(items []item[int64, int64]) int {
	if items[0].key%d.slots%8 != 0 {
		return 0
	}
	n := 1
	for n < len(items) && items[n].key == items[0].key+int64(n) {
		n++
	}
	return n / 8 * 8
}

// Delete removes keys; absent ones are ignored. It costs two pipelines per node,
// for each 4096 commands: it reads first, because clearing a slot of an absent
// string would create it. A [PartialError] tells which keys may not be removed.
func (d *Dense) Delete(ctx context.Context, keys ...int64) error {
	present, err := d.getMulti(ctx, "delete", keys)
	unread, partly := errors.AsType[*PartialError[int64]](err)
	if err != nil && !partly {
		return err
	}
	items := make([]item[int64, int64], 0, len(present))
	for key := range present {
		items = append(items, item[int64, int64]{key: key, value: cleared})
	}
	err = d.many(ctx, "delete", items, d.writes, nil)
	if unread == nil {
		return err
	}
	if unwritten, ok := errors.AsType[*PartialError[int64]](err); ok {
		unread.Failed = append(unread.Failed, unwritten.Failed...)
	}
	return unread
}

// Load stores all entries of a sequence, and returns how many of them, from the
// first on, are stored for sure. After an error, go on with a sequence that
// leaves out so many, or begin again: what is stored twice does no harm. If a
// key comes more than once the last one counts. Keys in ascending order are
// stored fastest, eight slots and more at a time. Others may use the map
// meanwhile.
func (d *Dense) Load(ctx context.Context, entries iter.Seq2[int64, int64], cfg LoadConfig) (int64, error) {
	if err := cfg.complete(); err != nil {
		return 0, err
	}
	return load(ctx, &d.book, entries, cfg, func(batch []item[int64, int64]) error {
		return d.setItems(ctx, "load", batch)
	})
}

// many sends the commands that build makes of items, and gives those that
// succeeded to read.
func (d *Dense) many(ctx context.Context, op string, items []item[int64, int64],
	build func(ctx context.Context, items []item[int64, int64]) ([]part, []item[int64, int64]), read func(p part, fail func([]item[int64, int64], error)),
) error {
	if len(items) == 0 {
		return nil
	}
	for _, it := range items {
		if err := d.check(it.key, 0); err != nil {
			return keyError(op, d.prefix, it.key, err)
		}
	}
	slices.SortFunc(items, func(a, b item[int64, int64]) int {
		if a.key != b.key {
			return cmp.Compare(a.key, b.key)
		}
		return cmp.Compare(b.order, a.order)
	})
	items = slices.CompactFunc(items, func(a, b item[int64, int64]) bool { return a.key == b.key })
	partial := &PartialError[int64]{Op: op, Prefix: d.prefix}
	fail := func(items []item[int64, int64], err error) {
		for _, it := range items {
			partial.Failed = append(partial.Failed, it.key)
		}
		if partial.Err == nil {
			partial.Err = err
		}
	}
	if _, err := d.look(ctx, false); err != nil {
		fail(items, err)
		return partial
	}
	for len(items) > 0 {
		var parts []part
		parts, items = build(ctx, items)
		pipe := d.rdb.Pipeline()
		for _, p := range parts {
			_ = pipe.Process(ctx, p.cmd) // queues it, and cannot fail
		}
		_, _ = pipe.Exec(ctx) // each command has its own error
		for _, p := range parts {
			if err := p.cmd.Err(); err != nil {
				fail(p.items, d.typed(p.name, err))
			} else if read != nil {
				read(p, fail)
			}
		}
	}
	if partial.Err != nil {
		return partial
	}
	return nil
}
