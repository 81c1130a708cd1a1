package hashkv

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/redis/go-redis/v9"
)

// StatsConfig says how much of a map Stats looks at.
type StatsConfig struct {
	// Sample is the number of buckets, or of strings of a Dense, that are looked
	// at, chosen at random; all if it is that many. Default: 1024.
	Sample int
}

func (cfg *StatsConfig) complete() error {
	if cfg.Sample < 0 {
		return fmt.Errorf("hashkv: StatsConfig.Sample is %d: want 0 or more", cfg.Sample)
	}
	if cfg.Sample == 0 {
		cfg.Sample = 1024
	}
	return nil
}

// Stats tells how a map lies in Redis, as far as a sample of its buckets shows.
// A bucket is a hash, or a string in a [Dense].
type Stats struct {
	Entries     int64   // keys in the map, by the mean of the sample: exact if it has all buckets
	Buckets     int64   // that the map may have; empty ones take no memory
	BytesPerKey float64 // as MEMORY USAGE counts, without the server's table of keys; 0 if not allowed
	Growing     bool    // the map is being doubled

	Sampled int  // buckets looked at
	Fill    Fill // entries in a bucket
	Limit   int  // entries at which a bucket leaves the compact encoding; 0 in a Dense

	// Encodings counts the sampled buckets by OBJECT ENCODING, and Oversize
	// names the first hundred that are not compact. Repair mends them.
	Encodings map[string]int
	Oversize  []string
}

// Fill is the distribution of the number of entries in a bucket.
type Fill struct {
	Min, P50, P99, Max int
	Mean               float64
}

func newFill(counts []int) Fill {
	if len(counts) == 0 {
		return Fill{}
	}
	slices.Sort(counts)
	sum := 0
	for _, n := range counts {
		sum += n
	}
	return Fill{
		Min: counts[0], P50: counts[len(counts)/2], P99: counts[len(counts)*99/100], Max: counts[len(counts)-1],
		Mean: float64(sum) / float64(len(counts)),
	}
}

// compact reports whether a hash of this encoding is.
func compact(encoding string) bool {
	switch encoding {
	case "listpack", "listpackex", "ziplist":
		return true
	}
	return false
}

// Stats looks at a sample of the buckets. It costs three pipelines per node for
// each 4096 of them.
func (m *Map[K, V]) Stats(ctx context.Context, cfg StatsConfig) (Stats, error) {
	err := cfg.complete()
	if err != nil {
		return Stats{}, err
	}
	stats, err := m.stats(ctx, cfg)
	if err != nil {
		return Stats{}, fmt.Errorf("hashkv: stats %s: %w", m.prefix, err)
	}
	return stats, nil
}

func (m *Map[K, V]) stats(ctx context.Context, cfg StatsConfig) (Stats, error) {
	v, err := m.current(ctx)
	if err != nil {
		return Stats{}, err
	}
	stats := Stats{
		Buckets: 1 << v.Level, Growing: v.Growing, Limit: v.limits.entries.value,
		Encodings: make(map[string]int),
	}
	var counts []int
	var bytes, entries int64
	spots := v.sample(cfg.Sample)
	for part := range slices.Chunk(spots, maxPipeline) {
		var found []spot // what they are by now, if some were split
		err := visit(ctx, m, v, part, lengths(ctx), func(s spot, cmd *redis.IntCmd) error {
			entries += cmd.Val()
			counts = append(counts, int(cmd.Val()))
			if cmd.Val() > 0 {
				found = append(found, s)
			}
			return nil
		})
		if err != nil {
			return Stats{}, err
		}
		used, err := m.measure(ctx, v, found, &stats)
		if err != nil {
			return Stats{}, err
		}
		bytes += used
	}
	stats.Sampled, stats.Fill = len(spots), newFill(counts)
	stats.Entries = int64(float64(entries) / float64(len(spots)) * float64(stats.Buckets))
	if entries > 0 {
		stats.BytesPerKey = float64(bytes) / float64(entries)
	}
	return stats, nil
}

// measure adds the encodings of buckets to stats, and returns their bytes.
func (m *Map[K, V]) measure(ctx context.Context, v *view, spots []spot, stats *Stats) (int64, error) {
	encodings := make([]*redis.StringCmd, len(spots))
	sizes := make([]*redis.IntCmd, len(spots))
	pipe := m.rdb.Pipeline()
	for i, s := range spots {
		name := m.name(s, v)
		encodings[i] = pipe.ObjectEncoding(ctx, name)
		sizes[i] = pipe.MemoryUsage(ctx, name, 0)
	}
	_, _ = pipe.Exec(ctx) // each command has its own error
	var bytes int64
	for i, s := range spots {
		encoding, err := encodings[i].Result()
		if errors.Is(err, redis.Nil) {
			continue // emptied just now
		}
		if err != nil {
			return 0, err
		}
		switch encoding {
		case "int", "embstr", "raw":
			continue // split just now
		}
		stats.Encodings[encoding]++
		if !compact(encoding) && len(stats.Oversize) < 100 {
			stats.Oversize = append(stats.Oversize, m.name(s, v))
		}
		bytes += sizes[i].Val() // 0 where MEMORY is not allowed
	}
	return bytes, nil
}
