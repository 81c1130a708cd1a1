package idgen_test

import (
	"context"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/shardgram/shardgram/idgen"
)

func newSet(t *testing.T, shards int, cfg idgen.Config) (*idgen.Set, []*idgen.Generator) {
	var all []*idgen.Generator
	for shard := range shards {
		all = append(all, newGenerator(t, shard*3, cfg))
	}
	s, err := idgen.NewSet(all...)
	require.NoError(t, err)
	return s, all
}

// TestSetMakesTheIDsOfAllShards drains a set from many goroutines: each
// millisecond gives 1,024 IDs per shard.
func TestSetMakesTheIDsOfAllShards(t *testing.T) {
	t.Parallel()
	for _, shards := range []int{1, 4, 16} {
		synctest.Test(t, func(t *testing.T) {
			layout := idgen.Default
			layout.Epoch = time.Now()
			s, _ := newSet(t, shards, idgen.Config{Layout: layout})
			time.Sleep(time.Second)
			begin := time.Now()
			const goroutines, ms = 8, 10
			got := make([][]idgen.ID, goroutines)
			var wg sync.WaitGroup
			for i := range goroutines {
				wg.Go(func() {
					for time.Since(begin) < ms*time.Millisecond {
						id, err := s.Next(context.Background())
						if err != nil {
							return
						}
						got[i] = append(got[i], id)
					}
				})
			}
			wg.Wait()
			seen := make(map[idgen.ID]bool)
			for _, ids := range got {
				for _, id := range ids {
					require.False(t, seen[id], "%d was made twice", id)
					seen[id] = true
				}
			}
			require.InEpsilon(t, shards*ms*1024, len(seen), 0.02)
		})
	}
}

func TestSetFindsAGeneratorByShard(t *testing.T) {
	t.Parallel()
	s, all := newSet(t, 3, idgen.Config{})
	for _, g := range all {
		found, ok := s.Shard(g.Shard())
		require.True(t, ok)
		require.Same(t, g, found)
	}
	for _, shard := range []int{-1, 1, 7} {
		_, ok := s.Shard(shard)
		require.False(t, ok)
	}
}

func TestSetPassesOverAGeneratorThatFailed(t *testing.T) {
	t.Parallel()
	s, all := newSet(t, 3, idgen.Config{})
	require.NoError(t, all[0].Close())
	require.NoError(t, all[2].Close())
	for range 5000 { // also when the one that is left has to wait
		id, err := s.Next(t.Context())
		require.NoError(t, err)
		require.Equal(t, 3, idgen.Default.Shard(id))
	}
	require.NoError(t, all[1].Close())
	_, err := s.Next(t.Context())
	require.ErrorIs(t, err, idgen.ErrClosed)
}

func TestSetWaitsUntilItsContextEnds(t *testing.T) {
	t.Parallel()
	var c clock
	c.ms.Store(1000)
	s, _ := newSet(t, 2, idgen.Config{Now: c.now})
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	for n := 0; ; n++ {
		if _, err := s.Next(ctx); err != nil {
			require.ErrorIs(t, err, context.Canceled)
			require.InDelta(t, 2*1024, n, 128)
			return
		}
	}
}

func TestNewSetRefuses(t *testing.T) {
	t.Parallel()
	_, err := idgen.NewSet()
	require.Error(t, err)
	_, err = idgen.NewSet(nil)
	require.Error(t, err)
	one := newGenerator(t, 1, idgen.Config{})
	_, err = idgen.NewSet(one, newGenerator(t, 1, idgen.Config{}))
	require.ErrorContains(t, err, "shard 1 twice")
	_, err = idgen.NewSet(one, newGenerator(t, 2, idgen.Config{Layout: idgen.Instagram}))
	require.Error(t, err)
}
