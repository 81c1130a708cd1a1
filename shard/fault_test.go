package shard_test

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/shardgram/shardgram/internal/localserver"
	"github.com/shardgram/shardgram/internal/testserver"
	"github.com/shardgram/shardgram/shard"
)

// TestANodeThatFailsFailsAlone kills, restarts and pauses one of two nodes.
func TestANodeThatFailsFailsAlone(t *testing.T) {
	t.Parallel()
	host := testserver.Host(t)
	sick, err := host.Postgres(t.Context(), "sick", localserver.PostgresConfig{})
	require.NoError(t, err)
	c := open(t, shard.Static(4,
		shard.Node{Name: "well", DSN: testserver.Postgres(t)},
		shard.Node{Name: "sick", DSN: sick.DSN("postgres")}), shard.Config{})
	migrate(t, c)
	insert := func(ctx context.Context, s shard.Shard) error {
		_, err := s.Exec(ctx, "insert into note values (1, 'x') on conflict (id) do update set body = note.body || 'x'")
		return err
	}
	all := func() error { return c.Each(t.Context(), c.Shards(), insert) }
	require.NoError(t, all())

	require.NoError(t, sick.Kill())
	err = all()
	failed, ok := errors.AsType[shard.Errors](err)
	require.True(t, ok)
	require.Len(t, failed, 2)
	require.Equal(t, []int{1, 3}, []int{failed[0].Shard, failed[1].Shard})
	require.NotContains(t, err.Error(), "well")

	require.NoError(t, sick.Restart(t.Context()))
	// Connections that died with the server fail once each.
	require.Eventually(t, func() bool { return all() == nil }, 20*time.Second, 10*time.Millisecond)

	require.NoError(t, sick.Pause())
	ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	begin := time.Now()
	err = insert(ctx, c.Number(1))
	require.ErrorIs(t, err, context.DeadlineExceeded)
	require.Less(t, time.Since(begin), 5*time.Second)
	e, isError := errors.AsType[*shard.Error](err)
	require.True(t, isError)
	require.Equal(t, "sick", e.Node)
	require.NoError(t, insert(t.Context(), c.Number(0)))
	require.NoError(t, sick.Resume())
	require.Eventually(t, func() bool { return all() == nil }, 20*time.Second, 10*time.Millisecond)
}
