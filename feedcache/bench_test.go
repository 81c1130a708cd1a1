package feedcache_test

import (
	"fmt"
	"slices"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/shardgram/shardgram/feedcache"
	"github.com/shardgram/shardgram/internal/testserver"
)

// BenchmarkPush delivers one ID to 2,000 warm feeds of 800 per operation, with
// the compactions that this makes necessary.
func BenchmarkPush(b *testing.B) {
	ctx, rdb := b.Context(), testserver.Redis(b)
	var src table
	feeds := open(b, rdb, src.Source, feedcache.Config{})
	owners := seq(2000, 1)
	next := idAt(3, 0)
	for _, owner := range owners {
		src.insert(owner, seq(next-1, next-800)...)
		_, err := feeds.Page(ctx, owner, 0, 1)
		require.NoError(b, err)
	}
	perEntry := func() float64 {
		used, err := rdb.MemoryUsage(ctx, "feed:1").Result()
		require.NoError(b, err)
		return float64(used) / 800
	}
	filled := perEntry()
	_, err := feeds.Push(ctx, slices.Values(owners), next)
	require.NoError(b, err)
	pushed := perEntry()
	for b.Loop() {
		next++
		d, err := feeds.Push(ctx, slices.Values(owners), next)
		if err != nil || d.Warm != len(owners) {
			b.Fatal(d, err)
		}
	}
	b.ReportMetric(float64(b.N*len(owners))/b.Elapsed().Seconds(), "deliveries/s")
	b.ReportMetric(filled, "B/entry-filled")
	b.ReportMetric(pushed, "B/entry-pushed")
}

// BenchmarkPage reads the first 20 IDs of a warm feed of 800, and of a cold
// one, which includes the fill.
func BenchmarkPage(b *testing.B) {
	ctx := b.Context()
	var src table
	feeds := open(b, testserver.Redis(b), src.Source, feedcache.Config{})
	src.insert(1, seq(idAt(3, 900), idAt(3, 1))...)
	for _, pushed := range []int{0, 400, 800} {
		b.Run(fmt.Sprintf("warm/pushed=%d", pushed), func(b *testing.B) {
			require.NoError(b, feeds.Drop(ctx, 1))
			_, err := feeds.Page(ctx, 1, 0, 20)
			require.NoError(b, err)
			for i := range pushed {
				_, err := feeds.Push(ctx, one(1), idAt(3, 901+i))
				require.NoError(b, err)
			}
			b.ReportAllocs()
			for b.Loop() {
				if page, err := feeds.Page(ctx, 1, 0, 20); err != nil || len(page.IDs) != 20 {
					b.Fatal(page, err)
				}
			}
		})
	}
	b.Run("cold", func(b *testing.B) {
		for b.Loop() {
			if err := feeds.Drop(ctx, 1); err != nil {
				b.Fatal(err)
			}
			if page, err := feeds.Page(ctx, 1, 0, 20); err != nil || len(page.IDs) != 20 {
				b.Fatal(page, err)
			}
		}
	})
}
