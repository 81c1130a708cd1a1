package hashkv

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"math/rand/v2"

	"github.com/redis/go-redis/v9"
)

// All returns all entries in the order of their keys, and a function that tells,
// when the sequence has ended, why it ended early, if it did. An entry that is
// there all the time comes exactly once; one that is written or deleted
// meanwhile may come or not. It costs one pipeline per node for each 256 strings
// that the map may have. The sequence may be ranged over again, from the start.
func (d *Dense) All(ctx context.Context) (iter.Seq2[int64, int64], func() error) {
	var failed error
	return func(yield func(int64, int64) bool) {
		if failed = d.walk(ctx, yield); failed != nil {
			failed = fmt.Errorf("hashkv: all %s: %w", d.prefix, failed)
		}
	}, func() error { return failed }
}

func (d *Dense) walk(ctx context.Context, yield func(int64, int64) bool) error {
	for first := int64(0); first < d.strings(); first += walked {
		numbers := make([]int64, min(walked, d.strings()-first))
		for i := range numbers {
			numbers[i] = first + int64(i)
		}
		if _, err := d.look(ctx); err != nil {
			return err
		}
		texts := onStrings(ctx, d, numbers, whole(ctx))
		for i, text := range texts {
			if err := text.Err(); err != nil && !errors.Is(err, redis.Nil) {
				return d.typed(d.name(numbers[i]), err)
			}
			for slot := range d.slots {
				value, present := d.value(text.Val(), slot, 0)
				if present && !yield(numbers[i]*d.slots+slot, value) {
					return nil
				}
			}
		}
	}
	return nil
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
	lengths := func(pipe redis.Pipeliner, name string) *redis.IntCmd { return pipe.StrLen(ctx, name) }
	var there []int64 // a sample of the strings that are
	var strings int64
	for first := int64(0); first < d.strings(); first += maxPipeline {
		if _, err := d.look(ctx); err != nil {
			return Stats{}, err
		}
		numbers := make([]int64, min(maxPipeline, d.strings()-first))
		for i := range numbers {
			numbers[i] = first + int64(i)
		}
		for i, cmd := range onStrings(ctx, d, numbers, lengths) {
			if err := cmd.Err(); err != nil {
				return Stats{}, d.typed(d.name(numbers[i]), err)
			}
			if cmd.Val() == 0 {
				continue
			}
			// Each of those so far is in the sample with the same chance.
			strings++
			if len(there) < cfg.Sample {
				there = append(there, numbers[i])
			} else if at := rand.Int64N(strings); at < int64(cfg.Sample) {
				there[at] = numbers[i]
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
			if _, present := d.value(text.Val(), slot, 0); present {
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
