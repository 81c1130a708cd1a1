package hashkv

import (
	"cmp"
	"context"
	"errors"
	"slices"
	"time"

	"github.com/redis/go-redis/v9"
)

// maxPipeline is the number of commands that go out before the replies are read.
const maxPipeline = 4096

// An item is one key of a call on many, with its place at the level it was last
// looked for.
type item[K Key, V Value] struct {
	key    K
	value  V
	order  int // in which the caller gave it
	bucket uint64
	rest   uint64
	level  int
}

// A group is the items that one command is for.
type group[K Key, V Value] struct {
	items  []item[K, V]
	name   string
	fields []string
	cmd    redis.Cmder
	above  *redis.StringCmd // looks for the tombstone above a half
}

// GetMulti returns the values of keys; absent ones are left out. It costs one
// pipeline per node, for each 4096 buckets. After a [PartialError] it also returns
// what it could read.
func (m *Map[K, V]) GetMulti(ctx context.Context, keys ...K) (map[K]V, error) {
	found := make(map[K]V, len(keys))
	items := make([]item[K, V], len(keys))
	for i, key := range keys {
		items[i] = item[K, V]{key: key, order: i}
	}
	err := m.many(ctx, "get", false, items,
		func(g *group[K, V]) redis.Cmder {
			if len(g.fields) == 1 {
				return redis.NewStringCmd(ctx, g.args("hget")...)
			}
			return redis.NewSliceCmd(ctx, g.args("hmget")...)
		},
		func(g *group[K, V], fail func([]item[K, V], error)) {
			keep := func(i int, stored string) {
				value, err := m.decode(stored)
				if err != nil {
					fail(g.items[i:i+1], &CorruptError{Key: g.name, Err: err})
					return
				}
				found[g.items[i].key] = value
			}
			switch cmd := g.cmd.(type) {
			case *redis.StringCmd:
				if cmd.Err() == nil { // not redis.Nil
					keep(0, cmd.Val())
				}
			case *redis.SliceCmd:
				for i, stored := range cmd.Val() {
					if stored, present := stored.(string); present {
						keep(i, stored)
					}
				}
			}
		})
	return found, err
}

// SetMulti stores entries. It costs one pipeline per node, for each 4096 buckets,
// or each eight times as many entries as the map has buckets, with one command
// per bucket and 128 entries. It takes a map, as GetMulti returns one: every entry
// is checked before the first is sent, and no key comes twice. A [PartialError]
// tells which keys may not be stored.
func (m *Map[K, V]) SetMulti(ctx context.Context, entries map[K]V) error {
	items := make([]item[K, V], 0, len(entries))
	for key, value := range entries {
		items = append(items, item[K, V]{key: key, value: value, order: len(items)})
	}
	return m.setItems(ctx, "set", items)
}

// setItems stores items, and the last of those that have the same key. It sends
// no more at a time than the guard allows to go unseen.
func (m *Map[K, V]) setItems(ctx context.Context, op string, items []item[K, V]) error {
	for i := range items {
		if err := m.checkKey(items[i].key); err != nil {
			return keyError(op, m.prefix, items[i].key, err)
		}
		if err := m.checkValue(op, items[i].key, items[i].value); err != nil {
			return err
		}
	}
	build := func(g *group[K, V]) redis.Cmder {
		args := make([]any, 0, 2+2*len(g.fields))
		args = append(args, "hset", &g.name)
		for i := range g.fields {
			args = append(args, &g.fields[i], m.text(g.items[i].value))
		}
		return redis.NewIntCmd(ctx, args...)
	}
	var failed *PartialError[K]
	for len(items) > 0 {
		n := len(items)
		if v, err := m.look(ctx, true); err == nil {
			n = min(n, guardFill<<v.Level)
		}
		err := m.many(ctx, op, true, items[:n], build, nil)
		partial, ok := errors.AsType[*PartialError[K]](err)
		if err != nil && !ok {
			return err
		}
		if ok {
			if len(partial.Failed) == n { // and so would the others
				for _, it := range items[n:] {
					partial.Failed = append(partial.Failed, it.key)
				}
				n = len(items)
			}
			if failed == nil {
				failed = partial
			} else {
				failed.Failed = append(failed.Failed, partial.Failed...)
			}
		}
		items = items[n:]
	}
	if failed != nil {
		return failed
	}
	return nil
}

// Delete removes keys; absent ones are ignored. It costs one pipeline per node,
// for each 4096 buckets. A [PartialError] tells which keys may not be removed.
func (m *Map[K, V]) Delete(ctx context.Context, keys ...K) error {
	items := make([]item[K, V], len(keys))
	for i, key := range keys {
		items[i] = item[K, V]{key: key, order: i}
	}
	return m.many(ctx, "delete", false, items,
		func(g *group[K, V]) redis.Cmder { return redis.NewIntCmd(ctx, g.args("hdel")...) }, nil)
}

// many sends the command that build makes for each bucket of items, and gives
// those that succeeded to read. Commands that add entries are writes. Buckets that turn out to be split are asked
// again at the next level.
func (m *Map[K, V]) many(ctx context.Context, op string, write bool, items []item[K, V],
	build func(*group[K, V]) redis.Cmder, read func(g *group[K, V], fail func([]item[K, V], error)),
) error {
	if len(items) == 0 {
		return nil
	}
	for i := range items {
		if err := m.checkKey(items[i].key); err != nil {
			return keyError(op, m.prefix, items[i].key, err)
		}
	}
	v, err := m.look(ctx, write)
	if err == nil && write && v.refuse != nil {
		err = v.refuse
	}
	partial := &PartialError[K]{Op: op, Prefix: m.prefix}
	fail := func(items []item[K, V], err error) {
		for _, it := range items {
			partial.Failed = append(partial.Failed, it.key)
		}
		if partial.Err == nil {
			partial.Err = err
		}
	}
	if err != nil {
		fail(items, err)
		return partial
	}
	if write {
		m.written.Add(int64(len(items)))
	}
	for i := range items {
		items[i].level = v.Level
	}
	for round := 0; len(items) > 0; round++ {
		m.arrange(items)
		if round == maxRounds {
			name, _ := m.locate(items[0].key, spot{items[0].level, items[0].bucket}, 0, v.Tagged)
			fail(items, &CorruptError{Key: name, Err: errForeign})
			break
		}
		var again []item[K, V]
		for len(items) > 0 {
			var groups []group[K, V]
			groups, items = m.take(items, v, build)
			sent := time.Now()
			m.send(ctx, groups, v)
			for i := range groups {
				g := &groups[i]
				level := v.Level // where to begin again
				err := g.cmd.Err()
				switch {
				case wrongType(err):
					var now *view
					if now, level, err = m.below(ctx, v, g.items[0].level, g.name, sent); err != nil {
						fail(g.items, err)
						continue
					}
					v = now
					again = moved(again, g.items, level)
				case err != nil && !errors.Is(err, redis.Nil):
					fail(g.items, err)
				case g.above != nil && !stands(g.above):
					again = moved(again, g.items, level) // a failover brought the bucket back
				case read != nil:
					read(g, fail)
				}
			}
		}
		items = again
	}
	if partial.Err != nil {
		return partial
	}
	return nil
}

// moved appends items to those that are looked for again, at the given level.
func moved[K Key, V Value](again, items []item[K, V], level int) []item[K, V] {
	for _, it := range items {
		it.level = level
		again = append(again, it)
	}
	return again
}

// arrange places items at their levels, and puts those of a bucket together.
func (m *Map[K, V]) arrange(items []item[K, V]) {
	for i := range items {
		it := &items[i]
		it.bucket, it.rest = m.place(it.key, it.level)
	}
	slices.SortFunc(items, func(a, b item[K, V]) int {
		if a.bucket != b.bucket {
			return cmp.Compare(a.bucket, b.bucket)
		}
		return cmp.Or(cmp.Compare(a.level, b.level), cmp.Compare(a.order, b.order))
	})
}

// take returns the commands of one pipeline, and the items that are left.
func (m *Map[K, V]) take(items []item[K, V], v *view, build func(*group[K, V]) redis.Cmder) ([]group[K, V], []item[K, V]) {
	groups := make([]group[K, V], 0, min(len(items), maxPipeline))
	chunk := v.limits.chunk()
	for len(items) > 0 && len(groups) < maxPipeline {
		n := 1
		for n < min(len(items), chunk) && items[n].bucket == items[0].bucket && items[n].level == items[0].level {
			n++
		}
		groups = append(groups, group[K, V]{items: items[:n:n], fields: make([]string, n)})
		g := &groups[len(groups)-1]
		for i := range g.items {
			it := &g.items[i]
			g.name, g.fields[i] = m.locate(it.key, spot{it.level, it.bucket}, it.rest, v.Tagged)
		}
		g.cmd = build(g)
		items = items[n:]
	}
	return groups, items
}

// send runs the commands of groups; each has its own error then.
func (m *Map[K, V]) send(ctx context.Context, groups []group[K, V], v *view) {
	pipe := m.rdb.Pipeline()
	for i := range groups {
		g := &groups[i]
		if at := g.items[0]; at.level != v.Level {
			g.above = m.peek(ctx, pipe, spot{at.level, at.bucket}, v)
		}
		_ = pipe.Process(ctx, g.cmd) // queues it, and cannot fail
	}
	_, _ = pipe.Exec(ctx) // the first error of the commands
}

// args returns the arguments of a command on all fields of g. A string behind a
// pointer needs no memory of its own to become one.
func (g *group[K, V]) args(verb string) []any {
	args := make([]any, 0, 2+len(g.fields))
	args = append(args, verb, &g.name)
	for i := range g.fields {
		args = append(args, &g.fields[i])
	}
	return args
}
