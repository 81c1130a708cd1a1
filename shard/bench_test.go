package shard_test

import (
	"context"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/shardgram/shardgram/idgen"
	"github.com/shardgram/shardgram/internal/localserver"
	"github.com/shardgram/shardgram/internal/testserver"
	"github.com/shardgram/shardgram/shard"
)

// BenchmarkRoute shows what it costs to find the shard of a key, and its node.
func BenchmarkRoute(b *testing.B) {
	c, err := shard.Open(b.Context(), shard.Static(8192, shard.Node{Name: "a", DSN: "postgres://127.0.0.1:1/x"}), shard.Config{})
	if err != nil {
		b.Fatal(err)
	}
	defer c.Close()
	var sum int
	for name, route := range map[string]func(i int) shard.Shard{
		"int":  func(i int) shard.Shard { return c.KeyInt(int64(i)) },
		"text": func(int) shard.Shard { return c.Key("founding.engineer") },
		"id":   func(i int) shard.Shard { return c.ID(idgen.ID(i) << 10) },
	} {
		b.Run("key="+name, func(b *testing.B) {
			b.ReportAllocs()
			for i := 0; b.Loop(); i++ {
				sum += len(route(i & 8191).Node())
			}
		})
	}
}

// photos is a table that every shard has, and the rows in each.
const (
	photosDDL = `create table photo (id bigint primary key, author_id bigint not null, caption text not null,
		created_at timestamptz not null default now())`
	photosRows = `insert into photo select i, i % 100, 'caption ' || i from generate_series(1, 1000) i`
	pointQuery = "select id, author_id, caption, created_at from photo where id = $1"
)

// photoCluster returns n shards of photos on two servers.
func photoCluster(b *testing.B, n int) *shard.Cluster {
	host := testserver.Host(b)
	var nodes []shard.Node
	for _, name := range []string{"a", "b"} {
		server, err := host.Postgres(b.Context(), name, localserver.PostgresConfig{})
		if err != nil {
			b.Fatal(err)
		}
		nodes = append(nodes, shard.Node{Name: name, DSN: server.DSN("postgres")})
	}
	c, err := shard.Open(b.Context(), shard.Static(n, nodes...), shard.Config{MaxConns: 4})
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { _ = c.Close() })
	err = c.Each(b.Context(), c.Shards(), func(ctx context.Context, s shard.Shard) error {
		_, err := s.Exec(ctx, "create schema "+s.Schema()+"; "+photosDDL+"; "+photosRows+"; analyze photo")
		return err
	})
	if err != nil {
		b.Fatal(err)
	}
	return c
}

// BenchmarkQuery compares a point query through this package with the same query
// on pgxpools, whose SQL has the schema in it. With spread=1 all queries go to
// one shard, with spread=256 each goes to any of the 128 on its node. With texts=8
// there are 1,024 pairs of shard and text for a connection that keeps 512 plans,
// as a program with many queries has.
func BenchmarkQuery(b *testing.B) {
	c := photoCluster(b, 256)
	pools := make(map[string]*pgxpool.Pool)
	for _, n := range c.Map().Nodes {
		cfg, err := pgxpool.ParseConfig(n.DSN)
		if err != nil {
			b.Fatal(err)
		}
		cfg.MaxConns = 4
		if pools[n.Name], err = pgxpool.NewWithConfig(b.Context(), cfg); err != nil {
			b.Fatal(err)
		}
		defer pools[n.Name].Close()
	}
	shards := c.Shards()
	poolOf, qualified := make([]*pgxpool.Pool, len(shards)), make([]string, len(shards))
	for i, s := range shards {
		poolOf[i] = pools[s.Node()]
		qualified[i] = "select id, author_id, caption, created_at from " + s.Schema() + ".photo where id = $1"
	}
	type photo struct {
		id, author int64
		caption    string
		createdAt  any
	}
	ways := []struct {
		name string
		one  func(ctx context.Context, i int, text string) error
	}{
		{"pgxpool", func(ctx context.Context, i int, text string) error {
			var p photo
			return poolOf[i].QueryRow(ctx, qualified[i]+text, rand.IntN(1000)+1).Scan(&p.id, &p.author, &p.caption, &p.createdAt)
		}},
		{"shard", func(ctx context.Context, i int, text string) error {
			var p photo
			return shards[i].QueryRow(ctx, pointQuery+text, rand.IntN(1000)+1).Scan(&p.id, &p.author, &p.caption, &p.createdAt)
		}},
	}
	texts := make([]string, 8)
	for i := range texts {
		texts[i] = fmt.Sprintf(" and %d = %d", i, i)
	}
	// many asks n times, from 8 goroutines.
	many := func(b *testing.B, one func(ctx context.Context, i int, text string) error, spread, count, n int) {
		var left atomic.Int64
		left.Store(int64(n))
		var wg sync.WaitGroup
		for range 8 {
			wg.Go(func() {
				for left.Add(-1) >= 0 {
					if err := one(b.Context(), rand.IntN(spread), texts[rand.IntN(count)]); err != nil {
						b.Error(err)
						return
					}
				}
			})
		}
		wg.Wait()
	}
	for _, row := range []struct{ spread, texts int }{{1, 1}, {256, 1}, {256, 8}} {
		name := fmt.Sprintf("spread=%d/texts=%d", row.spread, row.texts)
		for _, way := range ways {
			// Every connection has met every shard, and PostgreSQL has made the
			// plans that it keeps.
			many(b, way.one, row.spread, row.texts, 20_000)
			b.Run("via="+way.name+"/"+name, func(b *testing.B) {
				many(b, way.one, row.spread, row.texts, b.N)
			})
		}
		// Both by turns, as a machine that others use too is now faster and now
		// slower: how much of the throughput of pgxpool is there through shard.
		b.Run("via=both/"+name, func(b *testing.B) {
			var ratios []float64
			for b.Loop() {
				var took [2]time.Duration
				for i, way := range ways {
					begin := time.Now()
					many(b, way.one, row.spread, row.texts, 500)
					took[i] = time.Since(begin)
				}
				ratios = append(ratios, float64(took[0])/float64(took[1]))
			}
			slices.Sort(ratios)
			b.ReportMetric(ratios[len(ratios)/2], "throughput/pgxpool")
		})
	}
}
