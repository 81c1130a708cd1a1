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
	level  int
}

// A group is the items that one command is for.
type group[K Key, V Value] struct {
	items []item[K, V]
	name  string
	cmd   redis.Cmder
}

// GetMulti returns the values of keys; absent ones are left out. It costs one
// pipeline per node, for each 4096 buckets. After an error, a [PartialError]
// unless nothing was asked, it also returns what it could read.
func (m *Map[K, V]) GetMulti(ctx context.Context, keys ...K) (map[K]V, error) {
	found := make(map[K]V, len(keys))
	items := make([]item[K, V], len(keys))
	for i, key := range keys {
		items[i] = item[K, V]{key: key, order: i}
	}
	err := m.many(ctx, "get", false, items,
		func(g *group[K, V], fields []string) redis.Cmder {
			if len(fields) == 1 {
				return redis.NewStringCmd(ctx, "hget", g.name, fields[0])
			}
			return redis.NewSliceCmd(ctx, append([]any{"hmget", g.name}, anys(fields)...)...)
		},
		func(g *group[K, V]) error {
			switch cmd := g.cmd.(type) {
			case *redis.StringCmd:
				if errors.Is(cmd.Err(), redis.Nil) {
					return nil
				}
				return m.keep(found, g.items[0].key, cmd.Val())
			case *redis.SliceCmd:
				for i, stored := range cmd.Val() {
					if stored, present := stored.(string); present {
						if err := m.keep(found, g.items[i].key, stored); err != nil {
							return err
						}
					}
				}
			}
			return nil
		})
	return found, err
}

func (m *Map[K, V]) keep(found map[K]V, key K, stored string) error {
	value, err := m.decode(stored)
	if err != nil {
		return err
	}
	found[key] = value
	return nil
}

// SetMulti stores entries. It costs one pipeline per node, for each 4096
// buckets, with one command per bucket and 128 entries. It takes a map, as
// GetMulti returns one: every entry is checked before the first is sent, and no
// key comes twice. A [PartialError] tells which keys may not be stored.
func (m *Map[K, V]) SetMulti(ctx context.Context, entries map[K]V) error {
	items := make([]item[K, V], 0, len(entries))
	for key, value := range entries {
		items = append(items, item[K, V]{key: key, value: value, order: len(items)})
	}
	return m.setItems(ctx, "set", items)
}

// setItems stores items, and the last of those that have the same key.
func (m *Map[K, V]) setItems(ctx context.Context, op string, items []item[K, V]) error {
	for i := range items {
		if err := m.checkValue(op, items[i].key, items[i].value); err != nil {
			return err
		}
	}
	return m.many(ctx, op, true, items,
		func(g *group[K, V], fields []string) redis.Cmder {
			args := make([]any, 0, 2+2*len(fields))
			args = append(args, "hset", g.name)
			for i, field := range fields {
				args = append(args, field, m.text(g.items[i].value))
			}
			return redis.NewIntCmd(ctx, args...)
		}, nil)
}

// Delete removes keys; absent ones are ignored. It costs one pipeline per node,
// for each 4096 buckets. A [PartialError] tells which keys may not be removed.
func (m *Map[K, V]) Delete(ctx context.Context, keys ...K) error {
	items := make([]item[K, V], len(keys))
	for i, key := range keys {
		items[i] = item[K, V]{key: key, order: i}
	}
	return m.many(ctx, "delete", true, items,
		func(g *group[K, V], fields []string) redis.Cmder {
			return redis.NewIntCmd(ctx, append([]any{"hdel", g.name}, anys(fields)...)...)
		}, nil)
}

// many sends the command that build makes for each bucket of items, and gives
// those that succeeded to read. Buckets that turn out to be split are asked
// again at the next level.
func (m *Map[K, V]) many(ctx context.Context, op string, write bool, items []item[K, V],
	build func(g *group[K, V], fields []string) redis.Cmder, read func(g *group[K, V]) error,
) error {
	if len(items) == 0 {
		return nil
	}
	for i := range items {
		if err := m.checkKey(items[i].key); err != nil {
			return keyError(op, m.prefix, items[i].key, err)
		}
	}
	v, err := m.look(ctx)
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
	for i := range items {
		items[i].level = v.Level
	}
	for len(items) > 0 {
		m.arrange(items)
		var again []item[K, V]
		for len(items) > 0 {
			var groups []group[K, V]
			groups, items = m.take(items, v, build)
			sent := time.Now()
			m.send(ctx, groups)
			for i := range groups {
				g := &groups[i]
				err := g.cmd.Err()
				if wrongType(err) {
					var now *view
					var level int
					if now, level, err = m.below(ctx, v, g.items[0].level, g.name, sent); err == nil {
						for _, it := range g.items {
							it.level = level
							again = append(again, it)
						}
						v = now
						continue
					}
				} else if err == nil || errors.Is(err, redis.Nil) {
					if err = nil; read != nil {
						if err = read(g); err != nil {
							err = &CorruptError{Key: g.name, Err: err}
						}
					}
				}
				if err != nil {
					fail(g.items, err)
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

// arrange places items at their levels, and puts those of a bucket together.
func (m *Map[K, V]) arrange(items []item[K, V]) {
	for i := range items {
		items[i].bucket, _ = m.place(items[i].key, items[i].level)
	}
	slices.SortFunc(items, func(a, b item[K, V]) int {
		return cmp.Or(cmp.Compare(a.bucket, b.bucket), cmp.Compare(a.level, b.level), cmp.Compare(a.order, b.order))
	})
}

// take returns the commands of one pipeline, and the items that are left.
func (m *Map[K, V]) take(items []item[K, V], v *view, build func(g *group[K, V], fields []string) redis.Cmder) ([]group[K, V], []item[K, V]) {
	groups := make([]group[K, V], 0, min(len(items), maxPipeline))
	chunk := v.limits.chunk()
	var fields []string
	for len(items) > 0 && len(groups) < maxPipeline {
		n := 1
		for n < min(len(items), chunk) && items[n].bucket == items[0].bucket && items[n].level == items[0].level {
			n++
		}
		g := group[K, V]{items: items[:n:n]}
		fields = fields[:0]
		for i := range g.items {
			var field string
			g.name, field = m.locate(g.items[i].key, g.items[i].level, v.Tagged)
			fields = append(fields, field)
		}
		g.cmd = build(&g, fields)
		groups = append(groups, g)
		items = items[n:]
	}
	return groups, items
}

// send runs the commands of groups; each has its own error then.
func (m *Map[K, V]) send(ctx context.Context, groups []group[K, V]) {
	pipe := m.rdb.Pipeline()
	for i := range groups {
		_ = pipe.Process(ctx, groups[i].cmd) // queues it, and cannot fail
	}
	_, _ = pipe.Exec(ctx) // the first error of the commands
}

func anys(texts []string) []any {
	all := make([]any, len(texts))
	for i, text := range texts {
		all[i] = text
	}
	return all
}
