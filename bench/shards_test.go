package bench_test

import (
	"context"
	"fmt"
	"testing"
	"testing/fstest"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"

	"github.com/shardgram/shardgram/internal/localserver"
	"github.com/shardgram/shardgram/internal/testserver"
	"github.com/shardgram/shardgram/shard"
)

var tables = fstest.MapFS{"0001_tables.sql": {Data: []byte(`
	create table account (id bigint primary key default next_id(), name text not null);
	create table photo (id bigint primary key default next_id(), author_id bigint not null, caption text not null);
	create table follower (user_id bigint, follower_id bigint, primary key (user_id, follower_id));
	create table liked (photo_id bigint, user_id bigint, primary key (photo_id, user_id));`)}}

// queries are what a program asks a shard, one for each table.
var queries = []string{
	"select name from %saccount where id = $1",
	"select caption from %sphoto where id = $1",
	"select follower_id::text from %sfollower where user_id = $1",
	"select user_id::text from %sliked where photo_id = $1",
}

// BenchmarkManyShards makes the largest cluster there can be, 8,192 shards of 4
// tables on 2 nodes, once, and looks at what it costs: to make it, to migrate it,
// to find nothing to migrate, and the memory of a PostgreSQL backend that has
// served every shard of its node with every query. It takes some minutes.
//
//	backend-MB   all memory contexts of the backend
//	plans-MB     those of its plans
//	µs/query     one connection, from shard to shard
func BenchmarkManyShards(b *testing.B) {
	const shards = shard.MaxShards
	host := testserver.Host(b)
	var nodes []shard.Node
	// A migration locks a shard's tables, not those of all; but many at a time.
	settings := map[string]string{"max_locks_per_transaction": "256", "shared_buffers": "512MB"}
	for _, name := range []string{"a", "b"} {
		server, err := host.Postgres(b.Context(), name, localserver.PostgresConfig{Settings: settings})
		require.NoError(b, err)
		nodes = append(nodes, shard.Node{Name: name, DSN: server.DSN("postgres")})
	}
	server, err := host.Postgres(b.Context(), "catalog", localserver.PostgresConfig{})
	require.NoError(b, err)
	cat, err := shard.NewPostgresCatalog(server.DSN("postgres"), shard.PostgresCatalogConfig{})
	require.NoError(b, err)
	defer cat.Close()

	once := func(name string, do func(ctx context.Context) error) {
		b.Run(name, func(b *testing.B) {
			b.ReportMetric(0, "ns/op")
			for b.Loop() {
				begin := time.Now()
				require.NoError(b, do(b.Context()))
				b.ReportMetric(time.Since(begin).Seconds(), "s")
			}
		})
	}
	once("init", func(ctx context.Context) error {
		return shard.Init(ctx, cat, shard.InitConfig{Shards: shards, Nodes: nodes})
	})
	once("init/again", func(ctx context.Context) error {
		return shard.Init(ctx, cat, shard.InitConfig{Shards: shards, Nodes: nodes})
	})
	open := func(cfg shard.Config) *shard.Cluster {
		c, err := shard.Open(b.Context(), cat, cfg)
		require.NoError(b, err)
		b.Cleanup(func() { require.NoError(b, c.Close()) })
		return c
	}
	c := open(shard.Config{MaxConns: 4})
	migrate := func(ctx context.Context) error {
		_, err := c.Migrate(ctx, tables, shard.MigrateConfig{})
		return err
	}
	once("migrate", migrate)
	once("migrate/again", migrate)
	once("drift", func(ctx context.Context) error {
		found, err := c.Drift(ctx)
		if err == nil && len(found) > 0 {
			err = fmt.Errorf("%d differences, as %v", len(found), found[0])
		}
		return err
	})

	// One connection to node a each.
	one := open(shard.Config{MaxConns: 1})
	var ofA []shard.Shard
	for _, s := range one.Shards() {
		if s.Node() == "a" {
			ofA = append(ofA, s)
		}
	}
	const memory = `select sum(total_bytes) / 1e6::float8, coalesce(sum(total_bytes) filter (where name like 'CachedPlan%'), 0) / 1e6::float8
		from pg_backend_memory_contexts`
	measure := func(name string, count int, query func(ctx context.Context, s shard.Shard, q string) error, row func(ctx context.Context, sql string) pgx.Row) {
		b.Run(fmt.Sprintf("serve=%d/via=%s", count, name), func(b *testing.B) {
			b.ReportMetric(0, "ns/op")
			ctx := b.Context()
			for b.Loop() {
				var took time.Duration
				for range 2 { // the second round is measured
					begin := time.Now()
					for _, s := range ofA[:count] {
						for _, q := range queries {
							require.NoError(b, query(ctx, s, q))
						}
					}
					took = time.Since(begin)
				}
				var total, plans float64
				require.NoError(b, row(ctx, memory).Scan(&total, &plans))
				b.ReportMetric(total, "backend-MB")
				b.ReportMetric(plans, "plans-MB")
				b.ReportMetric(float64(took.Microseconds())/float64(count*len(queries)), "µs/query")
			}
		})
	}
	ended := func(err error) error {
		if err == pgx.ErrNoRows {
			return nil
		}
		return err
	}
	for _, count := range []int{64, len(ofA)} {
		one := open(shard.Config{MaxConns: 1})
		measure("shard", count, func(ctx context.Context, s shard.Shard, q string) error {
			var text string
			return ended(one.Number(s.Number()).QueryRow(ctx, fmt.Sprintf(q, ""), 1).Scan(&text))
		}, func(ctx context.Context, sql string) pgx.Row { return one.Number(ofA[0].Number()).QueryRow(ctx, sql) })
		for _, capacity := range []int{512, 100_000} {
			cfg, err := pgx.ParseConfig(nodes[0].DSN)
			require.NoError(b, err)
			cfg.StatementCacheCapacity = capacity
			conn, err := pgx.ConnectConfig(b.Context(), cfg)
			require.NoError(b, err)
			defer conn.Close(context.Background())
			measure(fmt.Sprintf("qualified-%d", capacity), count, func(ctx context.Context, s shard.Shard, q string) error {
				var text string
				return ended(conn.QueryRow(ctx, fmt.Sprintf(q, s.Schema()+"."), 1).Scan(&text))
			}, func(ctx context.Context, sql string) pgx.Row { return conn.QueryRow(ctx, sql) })
		}
	}
}
