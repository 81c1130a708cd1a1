package redislease_test

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	"github.com/shardgram/shardgram/idgen"
	"github.com/shardgram/shardgram/idgen/redislease"
	"github.com/shardgram/shardgram/internal/testserver"
)

// A claim of a number never used, while as many and more are held.
func BenchmarkClaimAnyShard(b *testing.B) {
	layout := idgen.Layout{TimeBits: 41, ShardBits: 17, SequenceBits: 6, Epoch: idgen.Default.Epoch}
	for _, held := range []int{0, 8000} {
		b.Run(fmt.Sprintf("held=%d", held), func(b *testing.B) {
			rdb := testserver.Redis(b)
			store := open(b, rdb, redislease.Config{AssumeDurable: true, TTL: time.Hour})
			for range held {
				_, err := store.Claim(b.Context(), idgen.AnyShard, layout)
				require.NoError(b, err)
			}
			busy := redisTime(b, rdb)
			for b.Loop() {
				_, err := store.Claim(b.Context(), idgen.AnyShard, layout)
				require.NoError(b, err)
			}
			b.ReportMetric(float64((redisTime(b, rdb)-busy).Microseconds())/float64(b.N), "redis-us/op")
			var bytes int64
			for _, key := range []string{"{idgen}:lease", "{idgen}:expiry"} {
				bytes += rdb.MemoryUsage(b.Context(), key, 0).Val()
			}
			b.ReportMetric(float64(bytes)/float64(held+b.N), "bytes/number")
		})
	}
}

func BenchmarkExtend(b *testing.B) {
	store := open(b, testserver.Redis(b), redislease.Config{AssumeDurable: true})
	l := claim(b, store, 3)
	mark := idgen.ID(0)
	for b.Loop() {
		mark++
		require.NoError(b, l.Extend(b.Context(), mark))
	}
}

// redisTime is how long the server has worked on scripts.
func redisTime(b *testing.B, rdb *redis.Client) time.Duration {
	b.Helper()
	text, err := rdb.Info(b.Context(), "commandstats").Result()
	require.NoError(b, err)
	var total time.Duration
	for _, name := range []string{"eval", "evalsha"} {
		var calls, usec int64
		_, after, found := strings.Cut(text, "cmdstat_"+name+":")
		if !found {
			continue
		}
		_, err := fmt.Sscanf(after, "calls=%d,usec=%d", &calls, &usec)
		require.NoError(b, err)
		total += time.Duration(usec) * time.Microsecond
	}
	return total
}
