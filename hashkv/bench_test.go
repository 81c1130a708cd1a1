package hashkv_test

import (
	"math/rand/v2"
	"testing"

	"github.com/redis/go-redis/v9"
	"github.com/shardgram/shardgram/hashkv"
	"github.com/shardgram/shardgram/internal/localserver"
	"github.com/shardgram/shardgram/internal/testserver"
	"github.com/stretchr/testify/require"
)

// BenchmarkGet reads random present keys of 262144, one per round trip.
func BenchmarkGet(b *testing.B) {
	const buckets, entries = 2048, 2048 * 128
	r := rand.New(rand.NewPCG(5, 6))
	for _, layout := range []struct {
		name string
		keys []int64
		open func(*redis.Client) table
	}{
		{"dense", sequence(entries), openDense(b, hashkv.DenseConfig{})},
		{
			"sparse", distinct(entries, func() int64 { return r.Int64N(buckets << 40) }),
			openSparse(b, hashkv.SparseConfig{Buckets: buckets}),
		},
	} {
		b.Run("layout="+layout.name, func(b *testing.B) {
			server, err := testserver.Host(b).Redis(b.Context(), "redis", localserver.RedisConfig{})
			require.NoError(b, err)
			perKey := fill(b, server.Addr(), layout.open, layout.keys)
			rdb := redis.NewClient(&redis.Options{Addr: server.Addr()})
			defer rdb.Close()
			m := layout.open(rdb)
			b.ReportAllocs()
			for b.Loop() {
				if _, err := m.Get(b.Context(), layout.keys[r.IntN(entries)]); err != nil {
					b.Fatal(err)
				}
			}
			b.ReportMetric(perKey, "bytes/key")
		})
	}
}

// BenchmarkSplit is the client's part of placing a key.
func BenchmarkSplit(b *testing.B) {
	key := uint64(3_355_443_200_000_102_401)
	for b.Loop() {
		bucket, _ := hashkv.Split(key, 21)
		key += bucket
	}
}
