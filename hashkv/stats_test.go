package hashkv_test

import (
	"math"
	"slices"
	"strings"
	"testing"

	"github.com/shardgram/shardgram/hashkv"
	"github.com/shardgram/shardgram/internal/testserver"
	"github.com/stretchr/testify/require"
)

func TestStatsTellTheTruth(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	rdb, maps := growers(t, 1)
	m := maps[0]
	all := hashkv.StatsConfig{Sample: 1 << 20}
	stats, err := m.Stats(ctx, all)
	require.NoError(t, err)
	require.Equal(t, hashkv.Stats{Buckets: 256, Sampled: 256, Limit: 512, Encodings: map[string]int{}}, stats, "of an empty map")

	for _, entries := range []int64{100, 10_000} { // with empty buckets, and without
		_, err = m.Load(ctx, numbered(0, entries), hashkv.LoadConfig{})
		require.NoError(t, err)
		counts := make([]int, 0, 256)
		bytes := int64(0)
		for _, bucket := range rdb.Keys(ctx, "g:{*").Val() {
			counts = append(counts, int(rdb.HLen(ctx, bucket).Val()))
			bytes += rdb.MemoryUsage(ctx, bucket).Val()
		}
		stored := len(counts)
		counts = append(counts, make([]int, 256-stored)...)
		slices.Sort(counts)
		stats, err = m.Stats(ctx, all)
		require.NoError(t, err)
		require.InDelta(t, float64(bytes)/float64(entries), stats.BytesPerKey, 1e-9)
		stats.BytesPerKey = 0
		require.Equal(t, hashkv.Stats{
			Entries: entries, Buckets: 256, Sampled: 256, Limit: 512,
			Fill:      hashkv.Fill{Min: counts[0], P50: counts[128], P99: counts[253], Max: counts[255], Mean: float64(entries) / 256},
			Encodings: map[string]int{"listpack": stored},
		}, stats)
	}

	// A sample is as good as samples are: five standard deviations.
	for range 10 {
		stats, err = m.Stats(ctx, hashkv.StatsConfig{Sample: 64})
		require.NoError(t, err)
		require.Equal(t, 64, stats.Sampled)
		require.Equal(t, map[string]int{"listpack": 64}, stats.Encodings)
		mean := 10_000. / 256
		require.InEpsilon(t, 10_000, stats.Entries, 5*math.Sqrt(mean/64)/mean)
	}

	// While the map grows, the buckets of either size.
	half := false
	require.NoError(t, m.Grow(ctx, hashkv.GrowConfig{Parallel: 16, Progress: func(done, _ int64) {
		if done != 128 {
			return
		}
		half = true
		stats, err := m.Stats(ctx, all)
		if err != nil || !stats.Growing || stats.Entries != 10_000 || len(stats.Oversize) > 0 || stats.Encodings["listpack"] != 128+2*128 {
			t.Errorf("%+v, %v", stats, err)
		}
	}}))
	require.True(t, half)
	_, err = m.Stats(ctx, hashkv.StatsConfig{Sample: -1})
	require.ErrorContains(t, err, "StatsConfig.Sample is -1")
}

func TestStatsNameWhatIsNotCompact(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	rdb, maps := growers(t, 1)
	newOracle(5000, maps[0]).fill(t)
	buckets := rdb.Keys(ctx, "g:{*").Val()
	for _, bucket := range buckets[:150] {
		require.NoError(t, rdb.HSet(ctx, bucket, strings.Repeat("x", 65), "").Err())
		require.NoError(t, rdb.HDel(ctx, bucket, strings.Repeat("x", 65)).Err())
	}
	stats, err := maps[0].Stats(ctx, hashkv.StatsConfig{Sample: 1 << 20})
	require.NoError(t, err)
	require.Equal(t, map[string]int{"listpack": 106, "hashtable": 150}, stats.Encodings)
	require.Len(t, stats.Oversize, 100)
	require.Subset(t, buckets[:150], stats.Oversize)
}

func TestStatsOfDense(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	rdb := testserver.Redis(t)
	d, err := hashkv.NewDense(rdb, hashkv.DenseConfig{Keys: 250_000})
	require.NoError(t, err)
	stats, err := d.Stats(ctx, hashkv.StatsConfig{})
	require.NoError(t, err)
	require.Equal(t, hashkv.Stats{Buckets: stats.Buckets, Encodings: map[string]int{}}, stats)

	_, err = d.Load(ctx, counted(0, 10_000), hashkv.LoadConfig{})
	require.NoError(t, err)
	require.NoError(t, d.Delete(ctx, 5, 6))
	stats, err = d.Stats(ctx, hashkv.StatsConfig{})
	require.NoError(t, err)
	lengths := make([]int, 0, 4)
	bytes := int64(0)
	for _, key := range rdb.Keys(ctx, "dense:[0-9]*").Val() {
		lengths = append(lengths, int(rdb.StrLen(ctx, key).Val()))
		bytes += rdb.MemoryUsage(ctx, key).Val()
	}
	require.Equal(t, []int{lengths[0], lengths[0], lengths[0], lengths[0]}, lengths)
	require.InDelta(t, float64(bytes)/9998, stats.BytesPerKey, 1e-9)
	require.EqualValues(t, 9998, stats.Entries)
	require.Equal(t, 4, stats.Sampled)
	require.Equal(t, map[string]int{"raw": 4}, stats.Encodings)
	slots := lengths[0] * 8 / 25 // of 24 bits and one more
	require.EqualValues(t, (250_000-1)/slots+1, stats.Buckets)
	require.Equal(t, hashkv.Fill{Min: 10_000 - 3*slots, P50: slots, P99: slots, Max: slots, Mean: 9998. / 4}, stats.Fill)

	stats, err = d.Stats(ctx, hashkv.StatsConfig{Sample: 2})
	require.NoError(t, err)
	require.Equal(t, 2, stats.Sampled)
	require.InEpsilon(t, 9998, stats.Entries, 0.25)
}
