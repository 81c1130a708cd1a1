package localserver_test

import (
	"fmt"
	"testing"

	"github.com/shardgram/shardgram/internal/localserver"
	"github.com/shardgram/shardgram/internal/testserver"
	"github.com/stretchr/testify/require"
)

// BenchmarkNewPostgres makes and starts a PostgreSQL server.
func BenchmarkNewPostgres(b *testing.B) {
	for _, fast := range []bool{true, false} {
		b.Run(fmt.Sprintf("fast=%t", fast), func(b *testing.B) {
			h, err := localserver.Open(localserver.Config{Fast: fast})
			require.NoError(b, err)
			defer h.Close()
			for n := 0; b.Loop(); n++ {
				p, err := h.Postgres(b.Context(), fmt.Sprint("db-", n), localserver.PostgresConfig{})
				require.NoError(b, err)
				b.StopTimer()
				require.NoError(b, p.Stop(b.Context()))
				b.StartTimer()
			}
		})
	}
}

// BenchmarkRestart stops a server in good order and starts it again.
func BenchmarkRestart(b *testing.B) {
	h := testserver.Host(b)
	p, err := h.Postgres(b.Context(), "db", localserver.PostgresConfig{})
	require.NoError(b, err)
	r, err := h.Redis(b.Context(), "cache", localserver.RedisConfig{})
	require.NoError(b, err)
	m, err := h.Memcached(b.Context(), "objects", localserver.MemcachedConfig{})
	require.NoError(b, err)
	pool, err := h.PgBouncer(b.Context(), "pool", localserver.PgBouncerConfig{Of: p})
	require.NoError(b, err)
	for _, s := range []*localserver.Server{&p.Server, &pool.Server, &r.Server, &m.Server} {
		b.Run(string(s.Kind()), func(b *testing.B) {
			for b.Loop() {
				require.NoError(b, s.Restart(b.Context()))
			}
		})
	}
}

// BenchmarkNewRedisCluster makes and starts three primaries and three replicas.
func BenchmarkNewRedisCluster(b *testing.B) {
	h := testserver.Host(b)
	for n := 0; b.Loop(); n++ {
		_, err := h.RedisCluster(b.Context(), fmt.Sprint("feeds-", n), localserver.RedisClusterConfig{Replicas: 1})
		require.NoError(b, err)
	}
}
