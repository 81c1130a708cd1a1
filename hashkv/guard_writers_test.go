package hashkv_test

import (
	"errors"
	"testing"

	"github.com/shardgram/shardgram/hashkv"
	"github.com/shardgram/shardgram/internal/testserver"
	"github.com/stretchr/testify/require"
)

// TestGuardWatchesWriters: a process that goes on writing is stopped before the
// buckets are too full, without opening the map again.
func TestGuardWatchesWriters(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	m, err := hashkv.NewSparse[int64](testserver.Redis(t), hashkv.SparseConfig{Entries: 1})
	require.NoError(t, err)
	done, err := m.Load(ctx, counted(0, 200_000), hashkv.LoadConfig{})
	limit, refused := errors.AsType[*hashkv.LimitError](err)
	require.True(t, refused, "%v", err)
	require.Equal(t, 512, limit.Have)
	require.Greater(t, done, int64(65_535))
	stats, err := m.Stats(ctx, hashkv.StatsConfig{})
	require.NoError(t, err)
	require.Equal(t, map[string]int{"listpack": 256}, stats.Encodings)
	require.Greater(t, stats.Fill.Mean, 380.0)

	// Grow is the way out.
	require.NoError(t, m.Grow(ctx, hashkv.GrowConfig{}))
	_, err = m.Load(ctx, counted(0, 150_000), hashkv.LoadConfig{})
	require.NoError(t, err)
	stats, err = m.Stats(ctx, hashkv.StatsConfig{})
	require.NoError(t, err)
	require.Equal(t, map[string]int{"listpack": 512}, stats.Encodings)
	require.EqualValues(t, 150_000, stats.Entries)
}
