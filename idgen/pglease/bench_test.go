package pglease_test

import (
	"context"
	"testing"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/stretchr/testify/require"

	"github.com/shardgram/shardgram/idgen"
	"github.com/shardgram/shardgram/idgen/pglease"
	"github.com/shardgram/shardgram/internal/testserver"
)

// benchStore returns a store in which a number of shards are held.
func benchStore(b *testing.B, held int) *pglease.Store {
	b.Helper()
	pool, err := pgxpool.New(b.Context(), testserver.Postgres(b))
	require.NoError(b, err)
	b.Cleanup(pool.Close)
	s, err := pglease.New(pool, pglease.Config{})
	require.NoError(b, err)
	require.NoError(b, s.Install(b.Context()))
	_, err = pool.Exec(b.Context(), `insert into idgen_lease
		select 'ids', n, $1, '', 0, 'infinity' from generate_series(0, $2 - 1) n`, idgen.Default.String(), held)
	require.NoError(b, err)
	return s
}

func BenchmarkExtend(b *testing.B) {
	l, err := benchStore(b, 0).Claim(b.Context(), 3, idgen.Default)
	require.NoError(b, err)
	for mark := idgen.ID(1); b.Loop(); mark++ {
		require.NoError(b, l.Extend(context.Background(), mark))
	}
}

// BenchmarkClaimAnyShard claims and releases the one free number of 8,001.
func BenchmarkClaimAnyShard(b *testing.B) {
	s := benchStore(b, 8000)
	for b.Loop() {
		l, err := s.Claim(context.Background(), idgen.AnyShard, idgen.Default)
		require.NoError(b, err)
		require.NoError(b, l.Release(context.Background(), 0))
	}
}
