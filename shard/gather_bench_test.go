package shard_test

import (
	"cmp"
	"context"
	"fmt"
	"net"
	"sync/atomic"
	"testing"

	"github.com/jackc/pgx/v5"

	"github.com/shardgram/shardgram/internal/localserver"
	"github.com/shardgram/shardgram/internal/testserver"
	"github.com/shardgram/shardgram/shard"
)

// trips counts round trips on the wire: how often something is read after
// something was written.
type trips struct{ n atomic.Int64 }

// beforeConnect is for Config.BeforeConnect.
func (tr *trips) beforeConnect(_ context.Context, _ string, cfg *pgx.ConnConfig) error {
	dial := cfg.DialFunc
	cfg.DialFunc = func(ctx context.Context, network, addr string) (net.Conn, error) {
		conn, err := dial(ctx, network, addr)
		return &tripConn{Conn: conn, trips: tr}, err
	}
	return nil
}

type tripConn struct {
	net.Conn
	trips *trips
	wrote atomic.Bool
}

func (c *tripConn) Write(p []byte) (int, error) {
	c.wrote.Store(true)
	return c.Conn.Write(p)
}

func (c *tripConn) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p)
	if n > 0 && c.wrote.Swap(false) {
		c.trips.n.Add(1)
	}
	return n, err
}

type noteRow struct {
	ID   int64
	Body string
}

func newestFirst(a, b noteRow) int { return cmp.Compare(b.ID, a.ID) }

// newest is the query of the newest 20 notes of all shards.
func newest() shard.Scatter[noteRow] {
	return shard.Scatter[noteRow]{
		SQL: "select id, body from note order by id desc", Limit: 20,
		Scan: pgx.RowToStructByPos[noteRow], Compare: newestFirst,
	}
}

// BenchmarkGather asks for the newest 20 of the notes of all shards: with Gather,
// and with one shard after another. To compare, via=one asks one shard, and
// via=batch asks one shard as often as there are shards, in one round trip.
func BenchmarkGather(b *testing.B) {
	for _, servers := range []int{1, 2} {
		host := testserver.Host(b)
		var nodes []shard.Node
		for n := range servers {
			pg, err := host.Postgres(b.Context(), fmt.Sprint("pg", n), localserver.PostgresConfig{})
			if err != nil {
				b.Fatal(err)
			}
			nodes = append(nodes, shard.Node{Name: pg.Name(), DSN: pg.DSN("postgres")})
		}
		for _, shards := range []int{64, 256} {
			var wire trips
			c, err := shard.Open(b.Context(), shard.Static(shards, nodes...), shard.Config{
				Schema: fmt.Sprint("s", shards), BeforeConnect: wire.beforeConnect,
			})
			if err != nil {
				b.Fatal(err)
			}
			b.Cleanup(func() { c.Close() })
			if _, err := c.Migrate(b.Context(), notes, shard.MigrateConfig{}); err != nil {
				b.Fatal(err)
			}
			err = c.Each(b.Context(), c.Shards(), func(ctx context.Context, s shard.Shard) error {
				_, err := s.Exec(ctx, "insert into note select n * 1000 + $1, 'a note of some words' from generate_series(1, 200) n on conflict do nothing", s.Number())
				if err == nil {
					_, err = s.Exec(ctx, "analyze note")
				}
				return err
			})
			if err != nil {
				b.Fatal(err)
			}
			run := func(via string, f func(ctx context.Context) (int, error)) {
				b.Run(fmt.Sprintf("shards=%d/nodes=%d/via=%s", shards, servers, via), func(b *testing.B) {
					for range 20 { // plans are made
						if _, err := f(b.Context()); err != nil {
							b.Fatal(err)
						}
					}
					before := wire.n.Load()
					for b.Loop() {
						if n, err := f(b.Context()); err != nil || n != 20 {
							b.Fatal(n, err)
						}
					}
					b.ReportMetric(float64(wire.n.Load()-before)/float64(b.N), "roundtrips/op")
				})
			}
			run("gather", func(ctx context.Context) (int, error) {
				rows, err := shard.Collect(shard.Gather(ctx, c, newest()))
				return len(rows), err
			})
			loop := func(ctx context.Context, list []shard.Shard) (int, error) {
				n := 0
				for _, s := range list {
					rows, err := s.Query(ctx, newest().SQL+" limit 20")
					if err != nil {
						return 0, err
					}
					found, err := pgx.CollectRows(rows, pgx.RowToStructByPos[noteRow])
					if err != nil {
						return 0, err
					}
					n = len(found)
				}
				return n, nil
			}
			run("loop", func(ctx context.Context) (int, error) { return loop(ctx, c.Shards()) })
			run("batch", func(ctx context.Context) (n int, err error) {
				var all pgx.Batch
				for range shards {
					all.Queue(newest().SQL + " limit 20").Query(func(rows pgx.Rows) error {
						found, err := pgx.CollectRows(rows, pgx.RowToStructByPos[noteRow])
						n = len(found)
						return err
					})
				}
				err = c.Number(0).SendBatch(ctx, &all).Close()
				return n, err
			})
			run("one", func(ctx context.Context) (int, error) { return loop(ctx, c.Shards()[:1]) })
		}
	}
}
