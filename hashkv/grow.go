package hashkv

import (
	"cmp"
	"context"
	_ "embed"
	"errors"
	"fmt"
	"math/rand/v2"
	"time"

	"github.com/redis/go-redis/v9"
)

// A tombstone stands at the Redis key of a bucket that was split. It is no
// hash, so that every command of a process that does not know yet fails there
// and changes nothing, instead of reading or writing what nobody else sees.
const (
	tombstone = "split"

	// tombstoneLife is counted from the end of growing, when no process that
	// reads the header looks for buckets there any more.
	tombstoneLife = time.Hour
)

// GrowConfig says how a map grows. Its zero value suits a map without replicas.
type GrowConfig struct {
	// Replicas is how many replicas of each primary must have all splits before
	// the map counts as grown; Grow fails if they do not within 10 s. With 0 a
	// failover within replication's lag of the end could bring back buckets that
	// nobody looks for any more.
	// Default: 0.
	Replicas int

	// Parallel is the number of buckets that are read and split in one
	// pipeline. More is faster, and makes others wait longer in between.
	// Default: 64.
	Parallel int

	// Progress is called after each pipeline with the number of buckets that
	// are done in this pass, and of all. Default: not called.
	Progress func(done, all int64)
}

func (cfg *GrowConfig) complete() error {
	switch {
	case cfg.Replicas < 0:
		return fmt.Errorf("hashkv: GrowConfig.Replicas is %d: want 0 or more", cfg.Replicas)
	case cfg.Parallel < 0:
		return fmt.Errorf("hashkv: GrowConfig.Parallel is %d: want 0 or more", cfg.Parallel)
	}
	if cfg.Parallel == 0 {
		cfg.Parallel = 64
	}
	return nil
}

// Grow doubles the number of buckets, while all processes go on reading and
// writing. It splits one bucket after the other, each of them atomically; until
// it is done, calls on buckets that are split cost two round trips. If it
// returns an error, or its process dies, nothing is lost: the map works as it
// is, and the next Grow in any process goes on. Several at a time share the
// work. A bucket takes about 0.2 ms of the server's time.
func (m *Map[K, V]) Grow(ctx context.Context, cfg GrowConfig) error {
	err := cfg.complete()
	if err != nil {
		return err
	}
	if err = m.grow(ctx, cfg); err != nil {
		return fmt.Errorf("hashkv: grow %s: %w", m.prefix, err)
	}
	return nil
}

func (m *Map[K, V]) grow(ctx context.Context, cfg GrowConfig) error {
	// Whoever may not ask for this shall not begin what he cannot finish.
	if _, err := runs(ctx, m.rdb); err != nil {
		return err
	}
	v, err := m.current(ctx)
	if err != nil {
		return err
	}
	for !v.Growing {
		now, err := m.begin(ctx, v)
		if err != nil || now.Level > v.Level {
			return err // or another process has doubled the map meanwhile
		}
		v = now
	}
	for {
		err := m.finish(ctx, v, cfg)
		if !errors.Is(err, errWentBack) {
			return err
		}
		// A failover has undone the end. What it has left is finished again.
		now, failed := m.current(ctx)
		if failed != nil || !now.Growing {
			return cmp.Or(failed, err)
		}
		v = now
	}
}

// begin makes the header say that the map grows, if it is still that of v, and
// returns what it is then. Whoever did not finish the last time is helped first.
func (m *Map[K, V]) begin(ctx context.Context, v *view) (*view, error) {
	if v.Sweeping {
		return m.sweep(ctx, v)
	}
	if v.Level == maxLevel {
		return nil, errors.New("no map has more buckets")
	}
	next := v.header
	next.Growing = true
	if _, err := m.swap(ctx, v.header, next); err != nil {
		return nil, err
	}
	return m.current(ctx)
}

// finish splits all buckets of a map that grows, and takes the next level.
func (m *Map[K, V]) finish(ctx context.Context, v *view, cfg GrowConfig) error {
	// A new primary may lack splits that the old one had made.
	err := onReplicas(ctx, m.rdb, cfg.Replicas, func() error { return m.splitAll(ctx, v, cfg) })
	if err != nil {
		return err
	}
	next := v.header
	next.Level, next.Growing, next.Sweeping = v.Level+1, false, true
	if _, err := m.swap(ctx, v.header, next); err != nil {
		return err
	}
	if err := replicated(ctx, m.rdb, cfg.Replicas); err != nil {
		return err
	}
	now, err := m.current(ctx)
	switch {
	case err != nil:
		return err
	case now.Level < next.Level:
		return errWentBack
	case now.Sweeping && now.Level == next.Level:
		_, err = m.sweep(ctx, now)
	}
	return err
}

// current returns the header as it is now.
func (m *Map[K, V]) current(ctx context.Context) (*view, error) {
	if _, err := m.look(ctx, false); err != nil {
		return nil, err
	}
	return m.reread(ctx, time.Now())
}

//go:embed split.lua
var splitLua string

// splitAll splits all buckets of the level that v has. It begins anywhere, so
// that several processes do not all split the same ones.
func (m *Map[K, V]) splitAll(ctx context.Context, v *view, cfg GrowConfig) error {
	all := uint64(1) << v.Level
	first := rand.Uint64N(all)
	for done := uint64(0); done < all; {
		now, err := m.still(ctx, v)
		if err != nil || now.Level > v.Level {
			return err // or others have finished
		}
		n := min(uint64(cfg.Parallel), all-done)
		left := make([]spot, n)
		for i := range left {
			left[i] = spot{v.Level, (first + done + uint64(i)) % all}
		}
		for len(left) > 0 {
			before := len(left)
			if left, err = m.splitSome(ctx, v, left); err != nil {
				return err
			}
			if len(left) == before {
				select { // for the slots to arrive
				case <-ctx.Done():
					return ctx.Err()
				case <-time.After(20 * time.Millisecond):
				}
			}
		}
		done += n
		if cfg.Progress != nil {
			cfg.Progress(int64(done), int64(all))
		}
	}
	return nil
}

// splitSome tries to split the buckets, and returns those that changed between
// being read and being split, or that a cluster is moving to another node.
func (m *Map[K, V]) splitSome(ctx context.Context, v *view, left []spot) ([]spot, error) {
	fields := make([]*redis.StringSliceCmd, len(left))
	pipe := m.rdb.Pipeline()
	for i, s := range left {
		fields[i] = pipe.HKeys(ctx, m.name(s, v))
	}
	_, _ = pipe.Exec(ctx) // each command has its own error
	done := make([]*redis.Cmd, len(left))
	pipe = m.rdb.Pipeline()
	for i, s := range left {
		err := fields[i].Err()
		if wrongType(err) || moving(err) {
			continue // split already, by the looks of it, or looked at later
		}
		if err != nil {
			return nil, err
		}
		names, args, err := m.splitArgs(s, v, fields[i].Val())
		if err != nil {
			return nil, err
		}
		done[i] = pipe.Eval(ctx, splitLua, names, args...)
	}
	_, _ = pipe.Exec(ctx)
	again := left[:0]
	for i, s := range left {
		if done[i] == nil {
			if moving(fields[i].Err()) {
				again = append(again, s)
			}
			continue
		}
		switch n, err := done[i].Int(); {
		case moving(err):
			again = append(again, s)
		case err != nil:
			return nil, err
		case n == 0:
			again = append(again, s)
		}
	}
	return again, nil
}

// moving tells whether a slot is on its way to another node: the client follows
// a key that moves, but only so often.
func moving(err error) bool {
	_, ask := redis.IsAskError(err)
	_, moved := redis.IsMovedError(err)
	return ask || moved || redis.IsTryAgainError(err)
}

// splitArgs returns the keys and arguments of the script that splits s: of each
// entry its field, its next field, and the half that it goes to. The script
// leaves the values to Redis, and does nothing if the fields are no more those.
func (m *Map[K, V]) splitArgs(s spot, v *view, fields []string) ([]string, []any, error) {
	halves := s.halves()
	names := []string{m.name(s, v), m.name(halves[0], v), m.name(halves[1], v)}
	args := make([]any, 0, 2+3*len(fields))
	args = append(args, tombstone, v.limits.chunk())
	for _, field := range fields {
		key, err := m.key(s, field)
		if err != nil {
			return nil, nil, &CorruptError{Key: names[0], Err: err}
		}
		bucket, rest := m.place(key, s.level+1)
		half := 1
		if bucket != s.bucket {
			half = 2
		}
		args = append(args, field, string(m.field(nil, key, rest)), half)
	}
	return names, args, nil
}

// sweep gives the tombstones below the level of v an end of life, and returns the
// header as it is then.
func (m *Map[K, V]) sweep(ctx context.Context, v *view) (*view, error) {
	all := uint64(1) << (v.Level - 1)
	for first := uint64(0); first < all; first += 1024 {
		if _, err := m.still(ctx, v); err != nil {
			return nil, err
		}
		// GETEX is for strings only: an entry never gets an end.
		cmds, _ := m.rdb.Pipelined(ctx, func(pipe redis.Pipeliner) error {
			for b := first; b < min(first+1024, all); b++ {
				pipe.GetEx(ctx, m.name(spot{v.Level - 1, b}, v), tombstoneLife)
			}
			return nil
		})
		for _, cmd := range cmds {
			if err := cmd.Err(); err != nil && !errors.Is(err, redis.Nil) && !wrongType(err) {
				return nil, err
			}
		}
	}
	next := v.header
	next.Sweeping = false
	if _, err := m.swap(ctx, v.header, next); err != nil {
		return nil, err
	}
	now, err := m.current(ctx)
	if err == nil && now.Level < v.Level {
		err = errWentBack
	}
	return now, err
}
