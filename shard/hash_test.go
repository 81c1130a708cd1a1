package shard_test

import (
	"math"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"github.com/shardgram/shardgram/internal/testserver"
	"github.com/shardgram/shardgram/shard"
)

// The vectors are what PostgreSQL 15 answers. Rows are placed by them: they
// must never change.
func TestHashIsFrozen(t *testing.T) {
	t.Parallel()
	for key, want := range intVectors {
		require.Equal(t, want, int64(shard.HashInt(key)), "%d", key)
	}
	for key, want := range textVectors {
		require.Equal(t, want, int64(shard.HashText(key)), "%q", key)
	}
}

func TestHashIsThatOfPostgreSQL(t *testing.T) {
	t.Parallel()
	conn, err := pgx.Connect(t.Context(), testserver.Postgres(t))
	require.NoError(t, err)
	defer func() { require.NoError(t, conn.Close(t.Context())) }()

	ints := rapid.SliceOfN(rapid.Int64(), 1, 300)
	edges := []int64{0, 1, -1, math.MaxInt32, math.MinInt32, math.MaxInt32 + 1, math.MinInt32 - 1, math.MaxInt64, math.MinInt64}
	// PostgreSQL's text holds every character but NUL.
	text := rapid.SliceOfN(rapid.StringOfN(rapid.Rune().Filter(func(r rune) bool { return r != 0 }), 0, 40, -1), 1, 100)
	rapid.Check(t, func(rt *rapid.T) {
		numbers := append(ints.Draw(rt, "ints"), edges...)
		rows, err := conn.Query(t.Context(), "select hashint8extended(k, 0) from unnest($1::bigint[]) with ordinality as u(k, i) order by i", numbers)
		require.NoError(rt, err)
		want, err := pgx.CollectRows(rows, pgx.RowTo[int64])
		require.NoError(rt, err)
		for i, n := range numbers {
			require.Equal(rt, want[i], int64(shard.HashInt(n)), "%d", n)
		}
		words := text.Draw(rt, "words")
		rows, err = conn.Query(t.Context(), "select hashtextextended(k, 0) from unnest($1::text[]) with ordinality as u(k, i) order by i", words)
		require.NoError(rt, err)
		want, err = pgx.CollectRows(rows, pgx.RowTo[int64])
		require.NoError(rt, err)
		for i, s := range words {
			require.Equal(rt, want[i], int64(shard.HashText(s)), "%q", s)
		}
	})
}

// TestKeysSpreadEvenly looks for a shard with many more keys than its share.
func TestKeysSpreadEvenly(t *testing.T) {
	t.Parallel()
	c, err := shard.Open(t.Context(), shard.Static(64, shard.Node{Name: "a", DSN: "postgres://127.0.0.1:1/x"}), shard.Config{})
	require.NoError(t, err)
	defer func() { require.NoError(t, c.Close()) }()
	var counts [64]int
	const mean = 1000
	for i := range int64(64 * mean) {
		counts[c.KeyInt(i).Number()]++
	}
	for n, count := range counts {
		// Six standard deviations of a binomial distribution.
		require.InDelta(t, mean, count, 6*math.Sqrt(mean), "shard %d", n)
	}
}
