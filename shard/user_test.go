package shard_test

import (
	"context"
	"sync/atomic"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/stretchr/testify/require"

	"github.com/shardgram/shardgram/idgen"
	"github.com/shardgram/shardgram/internal/testserver"
	"github.com/shardgram/shardgram/shard"
)

func one(t *testing.T, cfg shard.Config) *shard.Cluster {
	cfg.MaxConns = 1
	c := open(t, shard.Static(4, shard.Node{Name: "a", DSN: testserver.Postgres(t)}), cfg)
	migrate(t, c)
	return c
}

func TestAPoolerExcludesSomeModes(t *testing.T) {
	t.Parallel()
	for _, mode := range []string{"simple_protocol", "describe_exec"} {
		node := shard.Node{Name: "a", DSN: testserver.Postgres(t) + "&default_query_exec_mode=" + mode}
		_, err := shard.Open(t.Context(), shard.Static(4, node), shard.Config{Pooler: true})
		require.ErrorContains(t, err, mode)
	}
	s := one(t, shard.Config{Pooler: true}).Number(1)
	for _, mode := range []pgx.QueryExecMode{pgx.QueryExecModeSimpleProtocol, pgx.QueryExecModeDescribeExec} {
		_, err := s.Query(t.Context(), "select body from note where body = $1", mode, "public")
		require.ErrorContains(t, err, mode.String()[:6])
		_, err = s.Exec(t.Context(), "delete from note where body = $1", mode, "x")
		require.Error(t, err)
		require.NotErrorIs(t, err, shard.ErrAmbiguous)
	}
	_, err := s.Exec(t.Context(), "insert into note values (@id, @body)", pgx.NamedArgs{"id": 1, "body": "x"})
	require.NoError(t, err)
	require.Equal(t, 1, count(t, s))
}

func TestGatherCannotCommitNorLeaveSettings(t *testing.T) {
	t.Parallel()
	c := one(t, shard.Config{})
	gather := func(sql string) error {
		_, err := shard.Collect(shard.Gather(t.Context(), c, shard.Scatter[int]{SQL: sql, Scan: pgx.RowTo[int]}))
		return err
	}
	require.ErrorContains(t, gather("do $$ begin commit; insert into note values (1, 'x'); end $$"), "2D000")
	for _, s := range c.Shards() {
		require.Zero(t, count(t, s))
	}
	require.NoError(t, gather("set work_mem to '77MB'"))
	var mem string
	require.NoError(t, c.Number(2).QueryRow(t.Context(), "select current_setting('work_mem') where $1", true).Scan(&mem))
	require.Equal(t, "4MB", mem)
}

func TestGatherOfShardsForReadingFindsItsArguments(t *testing.T) {
	t.Parallel()
	c := one(t, shard.Config{})
	var ids []idgen.ID
	for _, s := range c.Shards() {
		var id idgen.ID
		require.NoError(t, s.QueryRow(t.Context(), "insert into note values (next_id(), 'x') returning id").Scan(&id))
		ids = append(ids, id)
	}
	groups := c.Group(ids...)
	var reading []shard.Shard
	for s := range groups {
		reading = append(reading, s.Read(shard.ReadPolicy{}))
	}
	found, err := shard.Collect(shard.Gather(t.Context(), c, shard.Scatter[idgen.ID]{
		SQL: "select id from note where id = any($1)", Scan: pgx.RowTo[idgen.ID], Shards: reading,
		ShardArgs: func(s shard.Shard) []any { return []any{groups[s]} },
	}))
	require.NoError(t, err)
	require.ElementsMatch(t, ids, found)
}

func TestHooksOfAConnection(t *testing.T) {
	t.Parallel()
	var before, after atomic.Int32
	c := one(t, shard.Config{
		BeforeConnect: func(_ context.Context, node string, cfg *pgx.ConnConfig) error {
			cfg.AfterConnect = func(context.Context, *pgconn.PgConn) error {
				before.Add(1)
				return nil
			}
			return nil
		},
		AfterConnect: func(ctx context.Context, node string, conn *pgx.Conn) error {
			after.Add(1)
			_, err := conn.Exec(ctx, "select 1")
			return err
		},
	})
	require.Zero(t, count(t, c.Number(1)))
	require.EqualValues(t, 1, before.Load())
	require.EqualValues(t, 1, after.Load())
}

func TestRowsThatCannotBeScannedGiveTheirConnectionBack(t *testing.T) {
	t.Parallel()
	s := one(t, shard.Config{}).Number(1)
	for range 3 {
		rows, err := s.Query(t.Context(), "select 'x' from generate_series(1, $1::int)", 3)
		require.NoError(t, err)
		require.True(t, rows.Next())
		var n int
		require.Error(t, rows.Scan(&n))
		require.Error(t, rows.Err())
		require.False(t, rows.Next())
		rows, err = s.Query(t.Context(), "select 1")
		require.NoError(t, err)
		rows.Close()
		require.False(t, rows.Next(), "closed before the first row was asked for")
	}
}

func TestAClosedClusterSaysSo(t *testing.T) {
	t.Parallel()
	c := one(t, shard.Config{})
	require.NoError(t, c.Close())
	_, err := c.Number(1).Exec(t.Context(), "select 1")
	require.ErrorIs(t, err, shard.ErrClosed)
	require.False(t, pgconn.SafeToRetry(err))
	require.ErrorIs(t, c.Refresh(t.Context()), shard.ErrClosed)
	require.ErrorIs(t, c.Hosts(t.Context())[0].Err, shard.ErrClosed)
}

func TestResultsOfABatchNameTheirShard(t *testing.T) {
	t.Parallel()
	s := one(t, shard.Config{}).Number(1)
	b := &pgx.Batch{}
	b.Queue("select 1 where false")
	b.Queue("select 1 / $1::int", 0)
	results := s.SendBatch(t.Context(), b)
	var n int
	require.Equal(t, pgx.ErrNoRows, results.QueryRow().Scan(&n))
	_, err := results.Exec()
	require.ErrorContains(t, err, "shard 1 on node a: ")
	require.Error(t, results.Close())
	require.Error(t, results.Close())
	require.Zero(t, count(t, s))
}

func TestBeforeConnectCannotChangeTheMode(t *testing.T) {
	t.Parallel()
	c := open(t, shard.Static(1, shard.Node{Name: "a", DSN: testserver.Postgres(t)}), shard.Config{
		BeforeConnect: func(_ context.Context, _ string, cfg *pgx.ConnConfig) error {
			cfg.DefaultQueryExecMode = pgx.QueryExecModeExec
			return nil
		},
	})
	_, err := c.Number(0).Exec(t.Context(), "select 1")
	require.ErrorContains(t, err, "DefaultQueryExecMode")
}

func TestOptionsOfAQueryComeInAnyOrder(t *testing.T) {
	t.Parallel()
	c := one(t, shard.Config{})
	for _, s := range c.Shards() {
		var path string
		err := s.QueryRow(t.Context(), "select current_setting('search_path') where @ok", pgx.QueryResultFormats{pgx.TextFormatCode},
			pgx.QueryExecModeSimpleProtocol, pgx.NamedArgs{"ok": true}).Scan(&path)
		require.NoError(t, err)
		require.Contains(t, path, s.Schema())
	}
}

func TestAPanicReachesTheCaller(t *testing.T) {
	t.Parallel()
	c := one(t, shard.Config{})
	for name, call := range map[string]func(){
		"Scan": func() {
			_, _ = shard.Collect(shard.Gather(t.Context(), c, shard.Scatter[int]{
				SQL: "select 1", Scan: func(pgx.CollectableRow) (int, error) { panic("mine") },
			}))
		},
		"Compare": func() {
			_, _ = shard.Collect(shard.Gather(t.Context(), c, shard.Scatter[int]{
				SQL: "select generate_series(1, 3)", Scan: pgx.RowTo[int], Compare: func(int, int) int { panic("mine") }, Partial: true,
			}))
		},
		"Each": func() {
			_ = c.Each(t.Context(), c.Shards(), func(context.Context, shard.Shard) error { panic("mine") })
		},
	} {
		require.PanicsWithValue(t, "mine", call, name)
		require.Zero(t, count(t, c.Number(1)), name) // the one connection is free
	}
}
