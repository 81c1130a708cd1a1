package shard_test

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
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

func TestGatherWithANodeThatFails(t *testing.T) {
	t.Parallel()
	host := testserver.Host(t)
	sick, err := host.Postgres(t.Context(), "sick", localserver.PostgresConfig{})
	require.NoError(t, err)
	c := open(t, shard.Static(8,
		shard.Node{Name: "well", DSN: testserver.Postgres(t)},
		shard.Node{Name: "sick", DSN: sick.DSN("postgres")}), shard.Config{})
	migrate(t, c)
	var all, well []int64
	for _, s := range c.Shards() {
		write(t, s, int64(s.Number()))
		all = append(all, int64(s.Number()))
		if s.Node() == "well" {
			well = append(well, int64(s.Number()))
		}
	}
	for _, ordered := range []bool{true, false} {
		q := ids()
		if ordered {
			q.Compare = cmp.Compare[int64]
		}
		gather := func(ctx context.Context, partial bool) ([]int64, error) {
			q.Partial = partial
			found, err := shard.Collect(shard.Gather(ctx, c, q))
			if !ordered {
				slices.Sort(found)
			}
			return found, err
		}
		// without fails the shards of the sick node, and no others.
		without := func(err error) {
			partial, ok := errors.AsType[*shard.PartialError](err)
			require.True(t, ok, "%v", err)
			for i, number := range []int{1, 3, 5, 7} {
				require.Equal(t, number, partial.Failed[i].Shard)
				require.Equal(t, "sick", partial.Failed[i].Node)
			}
			require.Len(t, partial.Failed, 4)
			require.Equal(t, 1, strings.Count(err.Error(), "shard 1 on node sick"), err)
			require.Contains(t, err.Error(), "(and 3 more)", "each cause is told once")
		}
		found, err := gather(t.Context(), false)
		require.NoError(t, err)
		require.Equal(t, all, found)

		// The idle connections are dead, and that is not noticed.
		require.NoError(t, sick.Kill())
		require.NoError(t, sick.Restart(t.Context()))
		found, err = gather(t.Context(), false)
		require.NoError(t, err)
		require.Equal(t, all, found)

		require.NoError(t, sick.Pause())
		short, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
		begin := time.Now()
		found, err = gather(short, true)
		require.Less(t, time.Since(begin), 5*time.Second)
		require.Equal(t, well, found)
		require.ErrorIs(t, err, context.DeadlineExceeded)
		without(err)
		cancel()
		require.NoError(t, sick.Resume())

		require.NoError(t, sick.Kill())
		found, err = gather(t.Context(), true)
		require.Equal(t, well, found)
		without(err)
		_, err = gather(t.Context(), false)
		e, ok := err.(*shard.Error)
		require.True(t, ok)
		require.Equal(t, "sick", e.Node)
		require.NoError(t, sick.Restart(t.Context()))
	}
}

// quiet is a catalog without hints.
type quiet struct{ shard.Catalog }

func (quiet) Wait(ctx context.Context, _ int64) error {
	<-ctx.Done()
	return ctx.Err()
}

func TestGatherLooksForShardsThatMoved(t *testing.T) {
	t.Parallel()
	cat := quiet{shard.Static(8,
		shard.Node{Name: "a", DSN: testserver.Postgres(t)},
		shard.Node{Name: "b", DSN: testserver.Postgres(t)})}
	c := open(t, cat, shard.Config{Poll: time.Hour})
	migrate(t, c)
	for _, s := range c.Shards() {
		write(t, s, int64(s.Number()))
	}
	// Shard 3 moves from b to a, and nobody tells the cluster.
	sql := func(s shard.Shard, sql string) {
		_, err := s.Exec(t.Context(), sql)
		require.NoError(t, err)
	}
	sql(c.Number(0), "create schema shard_0003; create table shard_0003.note as table note; update shard_0003.note set id = 33")
	sql(c.Number(1), "drop schema shard_0003 cascade")
	require.NoError(t, cat.Place(t.Context(), 3, 1, shard.Placement{Node: "a", State: shard.Serving}))
	require.Equal(t, "b", c.Number(3).Node())
	q := sorted(ids(), cmp.Compare[int64])
	found, err := shard.Collect(shard.Gather(t.Context(), c, q))
	require.NoError(t, err)
	require.Equal(t, []int64{0, 1, 2, 4, 5, 6, 7, 33}, found)

	// Shard 5 is gone.
	sql(c.Number(1), "drop schema shard_0005 cascade")
	_, err = shard.Collect(shard.Gather(t.Context(), c, q))
	require.ErrorIs(t, err, shard.ErrNoSchema)
	q.Partial = true
	found, err = shard.Collect(shard.Gather(t.Context(), c, q))
	require.ErrorIs(t, err, shard.ErrNoSchema)
	require.ErrorContains(t, err, "shard 5 on node b")
	require.Equal(t, []int64{0, 1, 2, 4, 6, 7, 33}, found)
}

// TestGatherAfterAChangeOfTheSchema does so with a plan for each shard, with
// more shards than plans, and where nothing is prepared by name.
func TestGatherAfterAChangeOfTheSchema(t *testing.T) {
	t.Parallel()
	for _, option := range []string{"statement_cache_capacity=512", "statement_cache_capacity=4", "default_query_exec_mode=exec", "default_query_exec_mode=simple_protocol"} {
		t.Run(option, func(t *testing.T) {
			t.Parallel()
			c := open(t, shard.Static(8, shard.Node{Name: "a", DSN: testserver.Postgres(t) + "&" + option}), shard.Config{MaxConns: 2})
			migrate(t, c)
			for _, s := range c.Shards() {
				write(t, s, int64(s.Number()))
			}
			q := shard.Scatter[map[string]any]{SQL: "select * from note where id >= $1", Args: []any{0}, Scan: pgx.RowToMap}
			for _, columns := range []int{2, 3, 4} {
				for range 8 { // from the sixth time on PostgreSQL may use generic plans
					found, err := shard.Collect(shard.Gather(t.Context(), c, q))
					require.NoError(t, err)
					require.Len(t, found, 8)
					for _, row := range found {
						require.Len(t, row, columns)
						require.Equal(t, fmt.Sprint(row["id"]), row["body"])
					}
				}
				for _, s := range c.Shards() {
					_, err := s.Exec(t.Context(), fmt.Sprintf("alter table note add column more_%d int", columns))
					require.NoError(t, err)
				}
			}
		})
	}
}

func TestGatherBehindAPooler(t *testing.T) {
	t.Parallel()
	host := testserver.Host(t)
	pg, err := host.Postgres(t.Context(), "pg", localserver.PostgresConfig{})
	require.NoError(t, err)
	bouncer, err := host.PgBouncer(t.Context(), "bouncer", localserver.PgBouncerConfig{Of: pg, PoolSize: 2})
	require.NoError(t, err)
	direct := open(t, shard.Static(16, shard.Node{Name: "a", DSN: pg.DSN("postgres")}), shard.Config{})
	migrate(t, direct)
	c := open(t, shard.Static(16, shard.Node{Name: "a", DSN: bouncer.DSN("postgres")}), shard.Config{Pooler: true, MaxConns: 6})
	var want []int64
	for _, s := range c.Shards() {
		write(t, s, int64(s.Number()), int64(100+s.Number()))
		want = append(want, int64(s.Number()), int64(100+s.Number()))
	}
	slices.Sort(want)
	var group sync.WaitGroup
	errs := make([]error, 6)
	for n := range errs {
		group.Go(func() {
			for range 30 {
				q := sorted(ids(), cmp.Compare[int64])
				q.Limit = n * 8 // 0 is none
				found, err := shard.Collect(shard.Gather(t.Context(), c, q))
				expect := want
				if n > 0 {
					expect = want[:min(n*8, len(want))]
				}
				if err == nil && !slices.Equal(expect, found) {
					err = fmt.Errorf("got %v, want %v", found, expect)
				}
				s := c.Number(n)
				var schema string
				errs[n] = errors.Join(errs[n], err, s.QueryRow(t.Context(), "select current_schema()").Scan(&schema))
				if schema != s.Schema() {
					errs[n] = errors.Join(errs[n], fmt.Errorf("ran in %s, want %s", schema, s.Schema()))
				}
			}
		})
	}
	group.Wait()
	require.NoError(t, errors.Join(errs...))
	_, err = shard.Collect(shard.Gather(t.Context(), c, shard.Scatter[int64]{
		SQL: "insert into note values (1000, 'x') returning id", Scan: pgx.RowTo[int64],
	}))
	pgErr, ok := errors.AsType[*pgconn.PgError](err)
	require.True(t, ok, "%v", err)
	require.Equal(t, "25006", pgErr.Code)
}

func TestGatherReadsReplicas(t *testing.T) {
	t.Parallel()
	host := testserver.Host(t)
	primary, err := host.Postgres(t.Context(), "primary", localserver.PostgresConfig{})
	require.NoError(t, err)
	replica, err := host.PostgresReplica(t.Context(), "replica", primary)
	require.NoError(t, err)
	c := open(t, shard.Static(8, shard.Node{
		Name: "a", DSN: fmt.Sprintf("postgres://postgres@%s,%s/postgres?sslmode=disable", primary.Addr(), replica.Addr()),
	}), shard.Config{Probe: 50 * time.Millisecond})
	migrate(t, c)
	q := shard.Scatter[bool]{SQL: "select pg_is_in_recovery()", Scan: pgx.RowTo[bool]}
	for _, s := range c.Shards() {
		q.Shards = append(q.Shards, s.Read(shard.ReadPolicy{}))
	}
	gather := func() (onReplica int) {
		found, err := shard.Collect(shard.Gather(t.Context(), c, q))
		require.NoError(t, err)
		require.Len(t, found, 8)
		for _, yes := range found {
			onReplica += btoi(yes)
		}
		return onReplica
	}
	require.Eventually(t, func() bool { return gather() == 8 }, 20*time.Second, 20*time.Millisecond)
	require.NoError(t, replica.Kill())
	require.Zero(t, gather(), "the primary stands in at once")
	require.NoError(t, replica.Restart(t.Context()))
	require.Eventually(t, func() bool { return gather() == 8 }, 20*time.Second, 20*time.Millisecond)
}

// spy writes down what a tracer is told.
type spy struct {
	mu     sync.Mutex
	shards map[int]int // ended statements
}

func (s *spy) TraceQueryStart(ctx context.Context, _ *pgx.Conn, data pgx.TraceQueryStartData) context.Context {
	if data.SQL != "select id from note order by id" {
		return context.Background()
	}
	return ctx
}

func (s *spy) TraceQueryEnd(ctx context.Context, _ *pgx.Conn, _ pgx.TraceQueryEndData) {
	if of, ok := shard.FromContext(ctx); ok {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.shards[of.Number()]++
	}
}

func TestGatherIsCountedAndTracedByShard(t *testing.T) {
	t.Parallel()
	s := &spy{shards: make(map[int]int)}
	c := cluster(t, 8, shard.Config{Tracer: s})
	before := c.Stats()
	for range 3 {
		_, err := shard.Collect(shard.Gather(t.Context(), c, ids()))
		require.NoError(t, err)
	}
	for n, after := range c.Stats().Shards {
		require.EqualValues(t, 3, after.Calls-before.Shards[n].Calls)
		require.Equal(t, before.Shards[n].Failed, after.Failed)
		require.Greater(t, after.Busy, before.Shards[n].Busy)
		require.Equal(t, 3, s.shards[n])
	}
}
