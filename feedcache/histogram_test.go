package feedcache_test

import (
	"math"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/shardgram/shardgram/feedcache"
)

func TestHistogram(t *testing.T) {
	t.Parallel()
	const ms = time.Millisecond
	h := feedcache.HistogramOf()
	require.Zero(t, h.Count())
	require.Zero(t, h.Quantile(0.5))
	require.Len(t, h.Counts, len(h.Bounds)+1)
	require.Equal(t, ms, h.Bounds[0])
	for i, bound := range h.Bounds[1:] {
		require.Equal(t, 2*h.Bounds[i], bound)
	}

	h = feedcache.HistogramOf(-time.Hour, 0, ms, ms+1, 2*ms, 3*ms, 100*ms, time.Hour, 10_000*time.Hour)
	require.EqualValues(t, 9, h.Count())
	require.Equal(t, 107*ms+1+10_001*time.Hour, h.Sum)
	require.EqualValues(t, []int64{3, 2, 1}, h.Counts[:3])
	require.EqualValues(t, 1, h.Counts[len(h.Counts)-1])
	for q, want := range map[float64]time.Duration{
		0.01: ms, 1. / 3: ms, 0.34: 2 * ms, 5. / 9: 2 * ms, 0.6: 4 * ms, 0.75: 128 * ms,
		0.85: 4096 * 1024 * ms, 1: h.Bounds[len(h.Bounds)-1],
	} {
		require.Equal(t, want, h.Quantile(q), "quantile %v", q)
	}
}

// The bucket of a quantile holds the value that sorting would find.
func TestQuantileIsAtMostTwiceTheTruth(t *testing.T) {
	t.Parallel()
	var all []time.Duration
	for d := time.Millisecond; d < time.Hour; d += d/7 + 1 {
		all = append(all, d)
	}
	h := feedcache.HistogramOf(all...)
	for _, q := range []float64{0.001, 0.1, 0.25, 0.5, 0.9, 0.99, 1} {
		truth := all[int(math.Ceil(q*float64(len(all))))-1]
		require.GreaterOrEqual(t, h.Quantile(q), truth)
		require.Less(t, h.Quantile(q), 2*truth)
	}
}
