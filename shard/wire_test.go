package shard_test

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/stretchr/testify/require"

	"github.com/shardgram/shardgram/internal/localserver"
	"github.com/shardgram/shardgram/internal/testserver"
	"github.com/shardgram/shardgram/shard"
)

// ways are the ways in which statements can travel.
func ways(t *testing.T) map[string]func(*testing.T) *shard.Cluster {
	one := func(dsn string, cfg shard.Config) func(*testing.T) *shard.Cluster {
		return func(t *testing.T) *shard.Cluster {
			c := open(t, shard.Static(8, shard.Node{Name: "a", DSN: dsn}), cfg)
			migrate(t, c)
			return c
		}
	}
	set := func(dsn, setting string) string { return dsn + "&" + setting }
	return map[string]func(*testing.T) *shard.Cluster{
		// With one connection each use comes from another shard than the last.
		"Direct":         one(testserver.Postgres(t), shard.Config{MaxConns: 1}),
		"SharedPlans":    one(set(testserver.Postgres(t), "statement_cache_capacity=2"), shard.Config{MaxConns: 1}),
		"CacheDescribe":  one(set(testserver.Postgres(t), "default_query_exec_mode=cache_describe"), shard.Config{MaxConns: 1}),
		"DescribeExec":   one(set(testserver.Postgres(t), "default_query_exec_mode=describe_exec"), shard.Config{MaxConns: 1}),
		"Exec":           one(set(testserver.Postgres(t), "default_query_exec_mode=exec"), shard.Config{MaxConns: 1}),
		"SimpleProtocol": one(set(testserver.Postgres(t), "default_query_exec_mode=simple_protocol"), shard.Config{MaxConns: 1}),
		"LocalPaths":     one(testserver.Postgres(t), shard.Config{MaxConns: 1, Pooler: true}),
		"PgBouncer": func(t *testing.T) *shard.Cluster {
			host := testserver.Host(t)
			pg, err := host.Postgres(t.Context(), "behind", localserver.PostgresConfig{})
			require.NoError(t, err)
			bouncer, err := host.PgBouncer(t.Context(), "bouncer", localserver.PgBouncerConfig{Of: pg, PoolSize: 2})
			require.NoError(t, err)
			return one(bouncer.DSN("postgres"), shard.Config{MaxConns: 8, Pooler: true})(t)
		},
	}
}

// TestEveryMethodRunsInItsShard uses all methods on shard after shard.
func TestEveryMethodRunsInItsShard(t *testing.T) {
	t.Parallel()
	for name, openIt := range ways(t) {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c := openIt(t)
			errs := make([]error, len(c.Shards()))
			var wg sync.WaitGroup
			for i, s := range c.Shards() {
				wg.Go(func() {
					for range 3 {
						if errs[i] = useAll(t.Context(), s); errs[i] != nil {
							return
						}
					}
				})
			}
			wg.Wait()
			for _, err := range errs {
				require.NoError(t, err)
			}
		})
	}
}

// useAll leaves the shard as it was.
func useAll(ctx context.Context, s shard.Shard) error {
	schema := s.Schema()
	if _, err := s.Exec(ctx, "insert into note values ($1, current_schema())", 1); err != nil {
		return fmt.Errorf("exec: %w", err)
	}
	if _, err := s.Exec(ctx, "insert into note values (2, current_schema()); insert into note values (3, current_schema())"); err != nil {
		return fmt.Errorf("exec without arguments: %w", err)
	}
	n, err := s.CopyFrom(ctx, pgx.Identifier{"note"}, []string{"id", "body"}, pgx.CopyFromRows([][]any{{int64(4), schema}, {int64(5), schema}}))
	if err != nil || n != 2 {
		return fmt.Errorf("copy: %d, %w", n, err)
	}
	b := &pgx.Batch{}
	b.Queue("insert into note values ($1, current_schema())", 6)
	b.Queue("insert into note values ($1, current_schema())", 7)
	if err := s.SendBatch(ctx, b).Close(); err != nil {
		return fmt.Errorf("batch: %w", err)
	}
	err = s.InTx(ctx, func(tx pgx.Tx) error {
		_, err := tx.Exec(ctx, "insert into note values ($1, current_schema())", 8)
		return err
	})
	if err != nil {
		return fmt.Errorf("transaction: %w", err)
	}
	err = pgx.BeginFunc(ctx, s, func(tx pgx.Tx) error {
		_, err := tx.Exec(ctx, "insert into note values ($1, current_schema())", 9)
		return err
	})
	if err != nil {
		return fmt.Errorf("begin: %w", err)
	}
	var other string
	if err := s.QueryRow(ctx, "select body from note where id = $1 and body = $2", 9, schema).Scan(&other); err != nil {
		return fmt.Errorf("query row: %w", err)
	}
	rows, err := s.Query(ctx, "delete from note where id > $1 returning body", 0)
	if err != nil {
		return fmt.Errorf("query: %w", err)
	}
	bodies, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil {
		return fmt.Errorf("query: %w", err)
	}
	if strings.Join(bodies, " ") != strings.TrimSpace(strings.Repeat(schema+" ", 9)) {
		return fmt.Errorf("in %s there was %v", schema, bodies)
	}
	return nil
}

// TestNothingLeaksToTheNextShard changes settings in every way on one
// connection, and looks at them from another shard.
func TestNothingLeaksToTheNextShard(t *testing.T) {
	t.Parallel()
	c := open(t, shard.Static(4, shard.Node{Name: "a", DSN: testserver.Postgres(t)}), shard.Config{MaxConns: 1})
	migrate(t, c)
	ctx := t.Context()
	one, two := c.Number(1), c.Number(2)
	for name, spoil := range map[string]func() error{
		"Nothing": func() error { return nil },
		"Exec": func() error {
			_, err := one.Exec(ctx, "set search_path to pg_catalog; set work_mem to '77MB'")
			return err
		},
		"Query": func() error {
			rows, err := one.Query(ctx, "set work_mem to '77MB'")
			if err == nil {
				rows.Close()
			}
			return err
		},
		"Tx": func() error {
			return one.InTx(ctx, func(tx pgx.Tx) error {
				_, err := tx.Exec(ctx, "set search_path to pg_catalog; set work_mem to '77MB'")
				return err
			})
		},
		"TxThatRollsBack": func() error {
			tx, err := one.Begin(ctx)
			if err != nil {
				return err
			}
			if _, err := tx.Exec(ctx, "set search_path to pg_catalog; set work_mem to '77MB'"); err != nil {
				return err
			}
			return tx.Rollback(ctx)
		},
		"Batch": func() error {
			b := &pgx.Batch{}
			b.Queue("set search_path to pg_catalog")
			b.Queue("set work_mem to '77MB'")
			return one.SendBatch(ctx, b).Close()
		},
		"TempTable": func() error {
			_, err := one.Exec(ctx, "create temp table if not exists note as select 1 as id, 'temporary' as body")
			return err
		},
		"Error": func() error {
			_, err := one.Exec(ctx, "insert into note values ($1, 1/($2::int))", 1, 0)
			if _, ok := err.(*shard.Error); !ok {
				return fmt.Errorf("got %w", err)
			}
			return nil
		},
		"ErrorOfText": func() error {
			_, err := one.Exec(ctx, "set work_mem to '77MB'; select wrong")
			if err == nil {
				return fmt.Errorf("got no error")
			}
			return nil
		},
	} {
		require.NoError(t, spoil(), name)
		// A transaction comes first, as it has its own way to set the path.
		var path, mem, at string
		require.NoError(t, two.InTx(ctx, func(tx pgx.Tx) error {
			return tx.QueryRow(ctx, "select current_setting('search_path'), current_setting('work_mem')").Scan(&path, &mem)
		}), name)
		require.Equal(t, two.Schema()+", pg_catalog, pg_temp", path, name)
		require.Equal(t, "4MB", mem, name)
		require.NoError(t, spoil(), name)
		require.NoError(t, two.QueryRow(ctx, "select current_setting('search_path'), current_setting('work_mem'), to_regclass('note')::oid::text where $1", true).Scan(&path, &mem, &at), name)
		require.Equal(t, two.Schema()+", pg_catalog, pg_temp", path, name)
		require.Equal(t, "4MB", mem, name)
		var oid string
		require.NoError(t, two.QueryRow(ctx, "select (current_schema() || '.note')::regclass::oid::text").Scan(&oid), name)
		require.Equal(t, oid, at, name)
	}
}

// TestAPathThatCannotBeSetRunsNothing is about the one thing that must not go
// wrong with a set_config in front of a statement.
func TestAPathThatCannotBeSetRunsNothing(t *testing.T) {
	t.Parallel()
	c := open(t, shard.Static(4, shard.Node{Name: "a", DSN: testserver.Postgres(t)}), shard.Config{MaxConns: 1})
	migrate(t, c)
	ctx := t.Context()
	insert := func(s shard.Shard) error {
		_, err := s.Exec(ctx, "insert into note values ($1, 'x')", 1)
		return err
	}
	require.NoError(t, insert(c.Number(1)))
	require.NoError(t, insert(c.Number(2)))
	// Somebody takes away the statements that set the path. The next one that
	// needs them fails, and from then on they are there again.
	for _, s := range []shard.Shard{c.Number(3), c.Number(1)} {
		_, err := s.Exec(ctx, "deallocate all")
		require.NoError(t, err)
		require.ErrorContains(t, insert(c.Number(2)), "26000")
		// pgx's own statements are gone too, so this is a new one.
		rows, err := c.Number(2).Query(ctx, fmt.Sprintf("select id from note where id = $1 -- %d", s.Number()), 1)
		require.NoError(t, err)
		ids, err := pgx.CollectRows(rows, pgx.RowTo[int])
		require.NoError(t, err)
		require.Len(t, ids, 1)
	}
	require.Equal(t, []int{0, 1, 1, 0}, []int{count(t, c.Number(0)), count(t, c.Number(1)), count(t, c.Number(2)), count(t, c.Number(3))})
}

// TestWhatPostgreSQLRefusesInATransaction still runs on its own.
func TestWhatPostgreSQLRefusesInATransaction(t *testing.T) {
	t.Parallel()
	c := open(t, shard.Static(4, shard.Node{Name: "a", DSN: testserver.Postgres(t)}), shard.Config{MaxConns: 1})
	migrate(t, c)
	for _, s := range c.Shards() {
		for _, sql := range []string{"vacuum note", "create index concurrently on note (id, body)"} {
			_, err := s.Exec(t.Context(), sql)
			require.NoError(t, err)
		}
	}
}

// TestNoticesComeThrough has the server talk while the link listens for
// its own answers.
func TestNoticesComeThrough(t *testing.T) {
	t.Parallel()
	var mu sync.Mutex
	var notices []string
	c := open(t, shard.Static(4, shard.Node{Name: "a", DSN: testserver.Postgres(t)}), shard.Config{
		MaxConns: 1,
		BeforeConnect: func(_ context.Context, _ string, cfg *pgx.ConnConfig) error {
			cfg.OnNotice = func(_ *pgconn.PgConn, n *pgconn.Notice) {
				mu.Lock()
				defer mu.Unlock()
				notices = append(notices, n.Message)
			}
			return nil
		},
	})
	require.NoError(t, c.Each(t.Context(), c.Shards(), func(ctx context.Context, s shard.Shard) error {
		_, err := s.Exec(ctx, "create schema "+s.Schema())
		return err
	}))
	for _, s := range c.Shards() {
		_, err := s.Exec(t.Context(), "do $$ begin raise notice 'hello'; end $$")
		require.NoError(t, err)
		_, err = s.Exec(t.Context(), "set client_min_messages to debug5")
		require.NoError(t, err)
		var one int
		require.NoError(t, s.QueryRow(t.Context(), "select $1::int", 1).Scan(&one))
		require.Equal(t, 1, one)
	}
	require.Equal(t, 4, strings.Count(strings.Join(notices, " "), "hello"))
}

// TestAPoolThatIsFullSaysSo is for calls that wait for a connection.
func TestAPoolThatIsFullSaysSo(t *testing.T) {
	t.Parallel()
	c := open(t, shard.Static(4, shard.Node{Name: "a", DSN: testserver.Postgres(t)}), shard.Config{MaxConns: 1})
	migrate(t, c)
	tx, err := c.Number(1).Begin(t.Context())
	require.NoError(t, err)
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	_, err = c.Number(2).Exec(ctx, "select 1")
	require.ErrorIs(t, err, shard.ErrBusy)
	require.ErrorIs(t, err, context.DeadlineExceeded)
	require.NotErrorIs(t, err, shard.ErrAmbiguous)
	require.True(t, pgconn.SafeToRetry(err))
	require.ErrorContains(t, err, "shard 2 on node a: ")
	require.NoError(t, tx.Rollback(t.Context()))
	require.ErrorIs(t, tx.Commit(t.Context()), pgx.ErrTxClosed)
	_, err = c.Number(2).Exec(t.Context(), "select 1")
	require.NoError(t, err)
}

// TestSQLThatEndsItsTransactionStaysInItsShard commits and rolls back by itself.
func TestSQLThatEndsItsTransactionStaysInItsShard(t *testing.T) {
	t.Parallel()
	c := open(t, shard.Static(8, shard.Node{Name: "a", DSN: testserver.Postgres(t)}), shard.Config{MaxConns: 1})
	migrate(t, c)
	ctx := t.Context()
	for round, end := range []string{"commit", "rollback"} {
		_, err := c.Number(7).Exec(ctx, "insert into note values ($1, 'x')", 100+round)
		require.NoError(t, err)
		_ = c.Number(2).InTx(ctx, func(tx pgx.Tx) error {
			_, err := tx.Exec(ctx, end)
			require.NoError(t, err)
			_, err = tx.Exec(ctx, "insert into note values ($1, 'x')", round)
			require.NoError(t, err)
			return nil
		})
		require.Equal(t, round+1, count(t, c.Number(2)))
		require.Equal(t, round+1, count(t, c.Number(7)))
	}
}

// TestAConnectionKeepsFewStatements looks at what a connection has prepared after
// it has served more shards than have a plan each.
func TestAConnectionKeepsFewStatements(t *testing.T) {
	t.Parallel()
	const most = 512
	c := open(t, shard.Static(most, shard.Node{Name: "a", DSN: testserver.Postgres(t)}), shard.Config{MaxConns: 1})
	for round := range 2 {
		for _, s := range c.Shards() {
			var path string
			require.NoError(t, s.QueryRow(t.Context(), "select current_setting('search_path') where $1", true).Scan(&path))
			require.Equal(t, s.Schema()+", pg_catalog, pg_temp", path)
		}
		var paths, plans int
		require.NoError(t, c.Number(0).QueryRow(t.Context(), `select count(*) filter (where statement ^@ 'set search_path'),
			count(*) filter (where statement ^@ 'select') from pg_prepared_statements`).Scan(&paths, &plans))
		require.Equal(t, 256, paths, round)
		require.LessOrEqual(t, plans, 256+2, round)
	}
}
