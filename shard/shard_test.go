package shard_test

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"testing/fstest"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/stretchr/testify/require"

	"github.com/shardgram/shardgram/idgen"
	"github.com/shardgram/shardgram/internal/testserver"
	"github.com/shardgram/shardgram/shard"
)

func TestMain(m *testing.M) { testserver.Main(m, testserver.NeedPostgres, testserver.NeedPgBouncer) }

var notes = fstest.MapFS{"0001_note.sql": {Data: []byte(`
	create table note (id bigint primary key, body text not null);
	create index note_body on note (body);`)}}

func open(t *testing.T, cat shard.Catalog, cfg shard.Config) *shard.Cluster {
	c, err := shard.Open(t.Context(), cat, cfg)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, c.Close()) })
	return c
}

// cluster returns n migrated shards on two nodes.
func cluster(t *testing.T, n int, cfg shard.Config) *shard.Cluster {
	c := open(t, shard.Static(n,
		shard.Node{Name: "a", DSN: testserver.Postgres(t)},
		shard.Node{Name: "b", DSN: testserver.Postgres(t)}), cfg)
	migrate(t, c)
	return c
}

func migrate(t *testing.T, c *shard.Cluster) {
	_, err := c.Migrate(t.Context(), notes, shard.MigrateConfig{})
	require.NoError(t, err)
}

func count(t *testing.T, s shard.Shard) (n int) {
	require.NoError(t, s.QueryRow(t.Context(), "select count(*) from note").Scan(&n))
	return n
}

func TestRowsStayInTheirShard(t *testing.T) {
	t.Parallel()
	// One connection per node: each use changes the shard it served last, and
	// the statements are the same text, prepared once.
	c := cluster(t, 8, shard.Config{MaxConns: 1})
	for round := range 3 {
		for _, s := range c.Shards() {
			for i := range s.Number() + 1 {
				_, err := s.Exec(t.Context(), "insert into note values ($1, $2)", round*100+i, fmt.Sprint(s.Number()))
				require.NoError(t, err)
			}
		}
	}
	for _, s := range c.Shards() {
		rows, err := s.Query(t.Context(), "select body from note")
		require.NoError(t, err)
		bodies, err := pgx.CollectRows(rows, pgx.RowTo[string])
		require.NoError(t, err)
		require.Len(t, bodies, 3*(s.Number()+1))
		for _, body := range bodies {
			require.Equal(t, fmt.Sprint(s.Number()), body)
		}
		require.Equal(t, []string{"a", "b"}[s.Number()%2], s.Node())
		require.Equal(t, fmt.Sprintf("shard_%04d", s.Number()), s.Schema())
	}
}

func TestShardsAreUsedByManyAtOnce(t *testing.T) {
	t.Parallel()
	c := cluster(t, 16, shard.Config{MaxConns: 3})
	const goroutines, each = 100, 20
	errs := make([]error, goroutines)
	var wg sync.WaitGroup
	for i := range goroutines {
		wg.Go(func() {
			for j := range each {
				s := c.KeyInt(int64(i*each + j))
				var schema string
				err := s.InTx(t.Context(), func(tx pgx.Tx) error {
					return tx.QueryRow(t.Context(), "insert into note values ($1, 'x') returning current_schema()", i*each+j).Scan(&schema)
				})
				if err == nil && schema != s.Schema() {
					err = fmt.Errorf("ran in %s, want %s", schema, s.Schema())
				}
				errs[i] = errors.Join(errs[i], err)
			}
		})
	}
	wg.Wait()
	require.NoError(t, errors.Join(errs...))
	total := 0
	for _, s := range c.Shards() {
		total += count(t, s)
	}
	require.Equal(t, goroutines*each, total)
}

func TestEveryWayOfReadingGivesItsConnectionBack(t *testing.T) {
	t.Parallel()
	c := cluster(t, 2, shard.Config{MaxConns: 1})
	s := c.Number(0)
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	for range 5 { // the second one would wait for ever
		var n int
		require.NoError(t, s.QueryRow(ctx, "select 1").Scan(&n))
		require.ErrorIs(t, s.QueryRow(ctx, "select 1 where false").Scan(&n), pgx.ErrNoRows)
		var when time.Time
		require.Error(t, s.QueryRow(ctx, "select 'x'::text").Scan(&when))
		require.Error(t, s.QueryRow(ctx, "select 1/0").Scan(&n))
		require.Error(t, s.QueryRow(ctx, "select wrong").Scan(&n))
		rows, err := s.Query(ctx, "select generate_series(1, 3)")
		require.NoError(t, err)
		require.True(t, rows.Next())
		rows.Close()
		rows.Close()
		rows, err = s.Query(ctx, "select generate_series(1, 3)")
		require.NoError(t, err)
		for rows.Next() {
		}
		require.NoError(t, rows.Err())
		_, err = s.Exec(ctx, "select wrong")
		require.Error(t, err)
		require.Panics(t, func() { _ = s.InTx(ctx, func(pgx.Tx) error { panic("in fn") }) })
	}
}

func TestInTxCommitsOrLeavesNothing(t *testing.T) {
	t.Parallel()
	c := cluster(t, 2, shard.Config{})
	s := c.Number(1)
	insert := func(tx pgx.Tx, id int) error {
		_, err := tx.Exec(t.Context(), "insert into note values ($1, 'x')", id)
		return err
	}
	require.NoError(t, s.InTx(t.Context(), func(tx pgx.Tx) error { return insert(tx, 1) }))
	require.Equal(t, 1, count(t, s))

	own := errors.New("changed my mind")
	err := s.InTx(t.Context(), func(tx pgx.Tx) error {
		require.NoError(t, insert(tx, 2))
		return own
	})
	require.Equal(t, own, err, "fn's error comes back as it is")
	require.Equal(t, 1, count(t, s))

	ctx, cancel := context.WithCancel(t.Context())
	err = s.InTx(ctx, func(tx pgx.Tx) error {
		require.NoError(t, insert(tx, 3))
		cancel()
		return nil
	})
	require.ErrorIs(t, err, context.Canceled)
	require.Equal(t, 1, count(t, s))
}

func TestErrorsNameShardAndNode(t *testing.T) {
	t.Parallel()
	c := cluster(t, 4, shard.Config{})
	_, err := c.Number(3).Exec(t.Context(), "select 1/0")
	e, ok := errors.AsType[*shard.Error](err)
	require.True(t, ok)
	require.Equal(t, 3, e.Shard)
	require.Equal(t, "b", e.Node)
	pg, ok := errors.AsType[*pgconn.PgError](err)
	require.True(t, ok)
	require.Equal(t, "22012", pg.Code)
	require.Contains(t, err.Error(), "shard 3 on node b: ")

	var n int
	for _, number := range []int{-1, 4, 8191} {
		s := c.Number(number)
		require.ErrorIs(t, s.QueryRow(t.Context(), "select 1").Scan(&n), shard.ErrNoShard)
		require.ErrorIs(t, s.InTx(t.Context(), func(pgx.Tx) error { return nil }), shard.ErrNoShard)
		require.Empty(t, s.Node())
	}
	require.ErrorIs(t, shard.Shard{}.QueryRow(t.Context(), "select 1").Scan(&n), shard.ErrNoShard)
	require.Empty(t, shard.Shard{}.Schema())
	require.ErrorIs(t, c.ID(idgen.ID(4<<10)).QueryRow(t.Context(), "select 1").Scan(&n), shard.ErrNoShard)
}

func TestIDLeadsToTheShardThatMadeIt(t *testing.T) {
	t.Parallel()
	c := cluster(t, 4, shard.Config{})
	var ids []idgen.ID
	for _, s := range c.Shards() {
		g, err := idgen.New(s.Number(), idgen.Config{})
		require.NoError(t, err)
		for range 3 {
			id, err := g.Next(t.Context())
			require.NoError(t, err)
			require.Equal(t, s, c.ID(id))
			ids = append(ids, id)
		}
	}
	groups := c.Group(ids...)
	require.Len(t, groups, 4)
	for s, group := range groups {
		require.Equal(t, ids[s.Number()*3:s.Number()*3+3], group)
	}
	// pgx reads and writes IDs, and lists of them, as bigint.
	s := c.Number(2)
	_, err := s.Exec(t.Context(), "insert into note select unnest($1::bigint[]), 'x'", groups[s])
	require.NoError(t, err)
	rows, err := s.Query(t.Context(), "select id from note where id = any($1) order by id", groups[s])
	require.NoError(t, err)
	found, err := pgx.CollectRows(rows, pgx.RowTo[idgen.ID])
	require.NoError(t, err)
	require.Equal(t, groups[s], found)
}

func TestEachWorksOnEveryShardAndJoinsErrors(t *testing.T) {
	t.Parallel()
	c := cluster(t, 16, shard.Config{PerNode: 2})
	var calls, now, most atomic.Int32
	odd := errors.New("odd")
	err := c.Each(t.Context(), c.Shards(), func(_ context.Context, s shard.Shard) error {
		calls.Add(1)
		for n := now.Add(1); ; {
			if old := most.Load(); n <= old || most.CompareAndSwap(old, n) {
				break
			}
		}
		defer now.Add(-1)
		time.Sleep(time.Millisecond) // let the others in
		if s.Number()%8 == 1 {
			return odd
		}
		return nil
	})
	require.EqualValues(t, 16, calls.Load())
	require.LessOrEqual(t, most.Load(), int32(4), "two nodes, two shards each")
	require.ErrorIs(t, err, odd)
	require.EqualError(t, err, "shard 1 on node b: odd (and 1 more)")
	failed, ok := errors.AsType[shard.Errors](err)
	require.True(t, ok)
	require.Len(t, failed, 2)
	require.Equal(t, []int{1, 9}, []int{failed[0].Shard, failed[1].Shard})

	require.NoError(t, c.Each(t.Context(), nil, func(context.Context, shard.Shard) error { return odd }))
	require.ErrorIs(t, c.Each(t.Context(), []shard.Shard{c.Number(99)}, func(context.Context, shard.Shard) error { return nil }), shard.ErrNoShard)

	ctx, cancel := context.WithCancel(t.Context())
	calls.Store(0)
	err = c.Each(ctx, c.Shards(), func(context.Context, shard.Shard) error {
		calls.Add(1)
		cancel()
		return nil
	})
	require.ErrorIs(t, err, context.Canceled)
	require.Less(t, calls.Load(), int32(16))
}

func TestOpenRefusesBadMaps(t *testing.T) {
	t.Parallel()
	const dsn = "postgres://u:secret@127.0.0.1:1/db"
	a, b := shard.Node{Name: "a", DSN: dsn}, shard.Node{Name: "b", DSN: dsn + "2"}
	for _, test := range []struct {
		name string
		cat  shard.Catalog
		cfg  shard.Config
	}{
		{"NoNode", shard.Static(4), shard.Config{}},
		{"NoShard", shard.Static(0, a), shard.Config{}},
		{"NegativeShards", shard.Static(-4, a), shard.Config{}},
		{"NoPowerOfTwo", shard.Static(12, a), shard.Config{}},
		{"TooManyShards", shard.Static(16384, a), shard.Config{}},
		{"TwoNodesOfOneName", shard.Static(4, a, shard.Node{Name: "a", DSN: b.DSN}), shard.Config{}},
		{"TwoNodesWithOneDSN", shard.Static(4, a, shard.Node{Name: "b", DSN: a.DSN}), shard.Config{}},
		{"NodeWithoutName", shard.Static(4, shard.Node{DSN: dsn}), shard.Config{}},
		{"NodeNameToQuote", shard.Static(4, shard.Node{Name: `a"; drop`, DSN: dsn}), shard.Config{}},
		{"BadDSN", shard.Static(4, a, shard.Node{Name: "b", DSN: "postgres://u:secret@:bad:/"}), shard.Config{}},
		{"NodeWithoutDSN", shard.Static(4, shard.Node{Name: "a"}), shard.Config{}},
		{"NilCatalog", nil, shard.Config{}},
		{"SchemaOfPostgreSQL", shard.Static(4, a), shard.Config{Schema: "pg_x"}},
		{"SchemaOfDigits", shard.Static(4, a), shard.Config{Schema: "1a"}},
		{"SchemaToQuote", shard.Static(4, a), shard.Config{Schema: "x; drop schema y"}},
		{"BadLayout", shard.Static(4, a), shard.Config{Layout: idgen.Layout{TimeBits: 1}}},
		{"NegativeConns", shard.Static(4, a), shard.Config{MaxConns: -1}},
		{"NegativePerNode", shard.Static(4, a), shard.Config{PerNode: -1}},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			c, err := shard.Open(t.Context(), test.cat, test.cfg)
			require.Error(t, err)
			require.Nil(t, c)
			require.NotContains(t, err.Error(), "secret")
		})
	}
}
