package hashkv

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"math/rand/v2"

	"github.com/redis/go-redis/v9"
)

// walked is the number of buckets that are read in one pipeline.
const walked = 256

// All returns all entries, in no order, and a function that tells, when the
// sequence has ended, why it ended early, if it did. An entry that is there all
// the time comes exactly once, also if the map grows meanwhile; one that is
// written or deleted meanwhile may come or not. It costs one pipeline per node
// for each 256 buckets. The sequence may be ranged over again, from the start, but
// not by several at a time.
func (m *Map[K, V]) All(ctx context.Context) (iter.Seq2[K, V], func() error) {
	var failed error
	return func(yield func(K, V) bool) {
		failed = m.walk(ctx, yield)
	}, func() error { return failed }
}

func (m *Map[K, V]) walk(ctx context.Context, yield func(K, V) bool) error {
	fail := func(err error) error { return fmt.Errorf("hashkv: all %s: %w", m.prefix, err) }
	v, err := m.look(ctx, false)
	if err != nil {
		return fail(err)
	}
	begun, all := v, uint64(1)<<v.Level
	for first := uint64(0); first < all; first += walked {
		var spots []spot
		if v, spots, err = m.stretch(ctx, begun, first, min(first+walked, all)); err != nil {
			return fail(err)
		}
		more := true
		queue := func(pipe redis.Pipeliner, name string) *redis.MapStringStringCmd { return pipe.HGetAll(ctx, name) }
		err := visit(ctx, m, v, spots, queue, func(s spot, cmd *redis.MapStringStringCmd) error {
			for field, stored := range cmd.Val() {
				key, err := m.key(s, field)
				var value V
				if err == nil {
					value, err = m.decode(stored)
				}
				if err != nil {
					return &CorruptError{Key: m.name(s, v), Err: err}
				}
				if more = more && yield(key, value); !more {
					return nil
				}
			}
			return nil
		})
		if err != nil {
			return fail(err)
		}
		if !more {
			return nil
		}
	}
	return nil
}

// stretch returns what has become of the buckets from first to before last of
// the map that was begun with: it may have grown since, and the tombstones of
// those buckets have gone.
func (m *Map[K, V]) stretch(ctx context.Context, begun *view, first, last uint64) (*view, []spot, error) {
	v, err := m.still(ctx, begun)
	if err != nil {
		return nil, nil, err
	}
	var spots []spot
	for b := first; b < last; b++ {
		for high := range uint64(1) << (v.Level - begun.Level) {
			spots = append(spots, spot{v.Level, b | high<<begun.Level})
		}
	}
	return v, spots, nil
}

// still returns the header of a map that a walk began with, or why the walk must
// not go on: it is another map, or a failover took it back to a level whose
// buckets are in use again.
func (m *Map[K, V]) still(ctx context.Context, begun *view) (*view, error) {
	v, err := m.look(ctx, false)
	switch {
	case err != nil:
		return nil, err
	case v.ID != begun.ID:
		return nil, ErrLost
	case v.Level < begun.Level:
		return nil, errWentBack
	}
	return v, nil
}

// errWentBack is what a failover does to a map that grew just before.
var errWentBack = errors.New("a failover took back what was done last: try again")

// visit queues a command for each bucket and gives its reply to read: the
// replies of both halves for a bucket that has been split.
func visit[C redis.Cmder, K Key, V Value](ctx context.Context, m *Map[K, V], v *view, spots []spot,
	queue func(pipe redis.Pipeliner, name string) C, read func(s spot, cmd C) error,
) error {
	for len(spots) > 0 {
		cmds := make([]C, len(spots))
		above := make([]*redis.StringCmd, len(spots))
		pipe := m.rdb.Pipeline()
		for i, s := range spots {
			if s.level != v.Level {
				above[i] = m.peek(ctx, pipe, s, v)
			}
			cmds[i] = queue(pipe, m.name(s, v))
		}
		_, _ = pipe.Exec(ctx) // each command has its own error
		var split []spot
		for i, s := range spots {
			err := cmds[i].Err()
			switch {
			case wrongType(err) && s.level == maxLevel:
				return &CorruptError{Key: m.name(s, v), Err: err}
			case wrongType(err):
				halves := s.halves()
				split = append(split, halves[:]...)
				continue
			case above[i] != nil && !stands(above[i]):
				return m.foreign(ctx, m.name(s.parent(), v))
			case err == nil:
				err = read(s, cmds[i])
			}
			if err != nil {
				return err
			}
		}
		spots = split
	}
	return nil
}

// foreign tells what is wrong with a Redis key that was no bucket a moment ago,
// and is no tombstone now.
func (m *Map[K, V]) foreign(ctx context.Context, name string) error {
	kind, err := m.rdb.Type(ctx, name).Result()
	switch {
	case err != nil:
		return err
	case kind == "hash" || kind == "none":
		return errWentBack
	}
	return &CorruptError{Key: name, Err: errForeign}
}

// sample returns n buckets of the level of v at random, or all if there are no
// more.
func (v *view) sample(n int) []spot {
	all := uint64(1) << v.Level
	spots := make([]spot, 0, min(uint64(n), all))
	if uint64(n) >= all {
		for b := range all {
			spots = append(spots, spot{v.Level, b})
		}
		return spots
	}
	for range n {
		spots = append(spots, spot{v.Level, rand.Uint64N(all)})
	}
	return spots
}

// fill returns the mean number of entries in a bucket, from a sample of 128:
// the mean of so many is within 2 % of the truth, as a rule.
func (m *Map[K, V]) fill(ctx context.Context, v *view) (float64, error) {
	var entries int64
	err := visit(ctx, m, v, v.sample(128), lengths(ctx), func(_ spot, cmd *redis.IntCmd) error {
		entries += cmd.Val()
		return nil
	})
	return float64(entries) / 128, err
}

// lengths queues the command that counts the entries of a bucket.
func lengths(ctx context.Context) func(redis.Pipeliner, string) *redis.IntCmd {
	return func(pipe redis.Pipeliner, name string) *redis.IntCmd { return pipe.HLen(ctx, name) }
}
