package hashkv

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"math/rand/v2"
	"slices"

	"github.com/redis/go-redis/v9"
)

// All returns all entries in the order of their keys, and a function that tells,
// when the sequence has ended, why it ended early, if it did. An entry that is
// there all the time comes exactly once; one that is written or deleted
// meanwhile may come or not. It costs one pipeline per node for each 4096 strings
// that the map may have, and one for each 256 that it has. The sequence may be
// ranged over again, from the start, but not by several at a time.
func (d *Dense) All(ctx context.Context) (iter.Seq2[int64, int64], func() error) {
	var failed error
	return func(yield func(int64, int64) bool) {
		if failed = d.walk(ctx, yield); failed != nil {
			failed = fmt.Errorf("hashkv: all %s: %w", d.prefix, failed)
		}
	}, func() error { return failed }
}

func (d *Dense) walk(ctx context.Context, yield func(int64, int64) bool) error {
	for first := int64(0); first < d.strings(); first += maxPipeline {
		there, err := d.existing(ctx, first)
		if err != nil {
			return err
		}
		for numbers := range slices.Chunk(there, walked) {
			for i, text := range onStrings(ctx, d, numbers, whole(ctx)) {
				more, err := d.yieldString(numbers[i], text, yield)
				if err != nil || !more {
					return err
				}
			}
		}
	}
	return nil
}

// existing returns which of the maxPipeline strings from first on there are: a
// map may have many that it has not.
func (d *Dense) existing(ctx context.Context, first int64) ([]int64, error) {
	if _, err := d.look(ctx, false); err != nil {
		return nil, err
	}
	numbers := make([]int64, min(maxPipeline, d.strings()-first))
	for i := range numbers {
		numbers[i] = first + int64(i)
	}
	var there []int64
	lengths := func(pipe redis.Pipeliner, name string) *redis.IntCmd { return pipe.StrLen(ctx, name) }
	for i, cmd := range onStrings(ctx, d, numbers, lengths) {
		if err := cmd.Err(); err != nil {
			return nil, d.typed(d.name(numbers[i]), err)
		}
		if cmd.Val() > 0 {
			there = append(there, numbers[i])
		}
	}
	return there, nil
}

// yieldString yields the entries of a string, and reports whether more are
// wanted.
func (d *Dense) yieldString(number int64, text *redis.StringCmd, yield func(int64, int64) bool) (bool, error) {
	if err := text.Err(); err != nil && !errors.Is(err, redis.Nil) {
		return false, d.typed(d.name(number), err)
	}
	for slot := range min(d.slots, d.maxKey-number*d.slots+1) {
		value, present, err := d.value(text.Val(), slot, 0)
		if err != nil {
			return false, &CorruptError{Key: d.name(number), Err: err}
		}
		if present && !yield(number*d.slots+slot, value) {
			return false, nil
		}
	}
	return true, nil
}

// whole queues the command that reads a string.
func whole(ctx context.Context) func(redis.Pipeliner, string) *redis.StringCmd {
	return func(pipe redis.Pipeliner, name string) *redis.StringCmd { return pipe.Get(ctx, name) }
}

// strings returns how many Redis strings the map may have.
func (d *Dense) strings() int64 { return d.maxKey/d.slots + 1 }

// onStrings runs a command on each of the strings; each has its own error.
func onStrings[C redis.Cmder](ctx context.Context, d *Dense, numbers []int64, queue func(pipe redis.Pipeliner, name string) C) []C {
	cmds := make([]C, len(numbers))
	pipe := d.rdb.Pipeline()
	for i, number := range numbers {
		cmds[i] = queue(pipe, d.name(number))
	}
	_, _ = pipe.Exec(ctx)
	return cmds
}

// Stats counts the strings of the map, and looks into a sample of them. It costs
// one pipeline per node for each 4096 strings that the map may have, and three
// for the sample.
func (d *Dense) Stats(ctx context.Context, cfg StatsConfig) (Stats, error) {
	err := cfg.complete()
	if err != nil {
		return Stats{}, err
	}
	stats, err := d.stats(ctx, cfg)
	if err != nil {
		return Stats{}, fmt.Errorf("hashkv: stats %s: %w", d.prefix, err)
	}
	return stats, nil
}

func (d *Dense) stats(ctx context.Context, cfg StatsConfig) (Stats, error) {
	stats := Stats{Buckets: d.strings(), Encodings: make(map[string]int)}
	var there []int64 // a sample of the strings that are
	var strings int64
	for first := int64(0); first < d.strings(); first += maxPipeline {
		numbers, err := d.existing(ctx, first)
		if err != nil {
			return Stats{}, err
		}
		for _, number := range numbers {
			// Each of those so far is in the sample with the same chance.
			strings++
			if len(there) < cfg.Sample {
				there = append(there, number)
			} else if at := rand.Int64N(strings); at < int64(cfg.Sample) {
				there[at] = number
			}
		}
	}
	encodings := onStrings(ctx, d, there, func(pipe redis.Pipeliner, name string) *redis.StringCmd {
		return pipe.ObjectEncoding(ctx, name)
	})
	sizes := onStrings(ctx, d, there, func(pipe redis.Pipeliner, name string) *redis.IntCmd {
		return pipe.MemoryUsage(ctx, name)
	})
	var counts []int
	var bytes, entries int64
	for i, text := range onStrings(ctx, d, there, whole(ctx)) {
		if err := text.Err(); err != nil && !errors.Is(err, redis.Nil) {
			return Stats{}, d.typed(d.name(there[i]), err)
		}
		n := 0
		for slot := range d.slots {
			if _, present, _ := d.value(text.Val(), slot, 0); present {
				n++
			}
		}
		counts, entries = append(counts, n), entries+int64(n)
		bytes += sizes[i].Val() // 0 where MEMORY is not allowed
		stats.Encodings[encodings[i].Val()]++
	}
	stats.Sampled = len(there)
	stats.Fill = newFill(counts)
	stats.Entries = int64(stats.Fill.Mean*float64(strings) + 0.5)
	if entries > 0 {
		stats.BytesPerKey = float64(bytes) / float64(entries)
	}
	return stats, nil
}
