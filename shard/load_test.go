package shard_test

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/shardgram/shardgram/internal/localserver"
	"github.com/shardgram/shardgram/internal/testserver"
	"github.com/shardgram/shardgram/shard"
)

// loads returns the loads by shard when done says that all counts have arrived.
func loads(t *testing.T, c *shard.Cluster, done func([]shard.Load) bool) (all []shard.Load) {
	require.Eventually(t, func() bool {
		var err error
		all, err = c.Loads(t.Context())
		require.NoError(t, err)
		return done(all)
	}, 20*time.Second, 20*time.Millisecond)
	return all
}

// flush makes the sessions of a cluster with MaxConns 1 tell what they have counted.
func flush(t *testing.T, c *shard.Cluster) {
	require.NoError(t, c.Each(t.Context(), c.Shards(), func(ctx context.Context, s shard.Shard) error {
		_, err := s.Exec(ctx, "select pg_stat_force_next_flush()")
		return err
	}))
}

func TestLoadsCountEachShardsOwnWork(t *testing.T) {
	t.Parallel()
	c := open(t, shard.Static(8,
		shard.Node{Name: "a", DSN: testserver.Postgres(t)},
		shard.Node{Name: "b", DSN: testserver.Postgres(t)}), shard.Config{MaxConns: 1})
	run := func(s shard.Shard, sql string, args ...any) {
		t.Helper()
		_, err := s.Exec(t.Context(), sql, args...)
		require.NoError(t, err)
	}
	for _, s := range c.Shards() {
		run(s, "create schema "+s.Schema()+"; create table note (id bigint primary key, body text) with (autovacuum_enabled = off)")
	}
	// Schemas that look like those of a shard, and one of a shard that lives elsewhere.
	for _, name := range []string{"shard_00021", "shard_002", "shard_x002", "ashard_0002", "shard_0003", "shard_9999", `"shard_0002 "`} {
		run(c.Number(2), fmt.Sprintf("create schema %s; create table %s.note as select generate_series(1, 5000) as id; select count(*) from %[2]s.note", name, name))
	}
	flush(t, c)
	before := loads(t, c, func(all []shard.Load) bool { return len(all) == 8 })

	run(c.Number(2), "insert into note select g, repeat('x', 500) from generate_series(1, 1000) g")
	run(c.Number(2), "update note set body = 'y' where id <= 10")
	run(c.Number(2), "delete from note where id > 990")
	run(c.Number(2), "select count(body) from note") // a scan of 990 rows
	run(c.Number(2), "set enable_seqscan = off; select body from note where id in (1, 2, 3); reset enable_seqscan")
	run(c.Number(5), "insert into note values (1, 'x')")
	flush(t, c) // PostgreSQL would add what comes after vacuum has counted the rows
	run(c.Number(2), "vacuum analyze note")
	flush(t, c)
	after := loads(t, c, func(all []shard.Load) bool {
		return all[2].RowsWritten-before[2].RowsWritten >= 1020 && all[5].RowsWritten > before[5].RowsWritten
	})
	require.Len(t, after, 8)
	for i, l := range after {
		d := l.Sub(before[i])
		require.Equal(t, i, l.Shard)
		require.Equal(t, []string{"a", "b"}[i%2], l.Node)
		switch i {
		case 2:
			require.EqualValues(t, 1020, d.RowsWritten)
			require.GreaterOrEqual(t, d.RowsRead, int64(990+3))
			require.Less(t, d.RowsRead, int64(5000), "other schemas do not count")
			require.GreaterOrEqual(t, d.SeqScans, int64(1))
			require.EqualValues(t, 990, d.LiveRows)
			require.Positive(t, d.BlocksHit)
			require.GreaterOrEqual(t, d.Bytes, int64(1000*500), "pages that the rows filled")
			require.Less(t, d.Bytes, int64(2_000_000))
		case 5:
			require.EqualValues(t, 1, d.RowsWritten)
			require.EqualValues(t, 1, d.LiveRows)
		default:
			require.Zero(t, d.RowsWritten)
			require.Zero(t, d.RowsRead)
			require.Zero(t, d.LiveRows)
		}
	}

	// The biggest share is that of the shard with the work, in the midst of its node's.
	heats := shard.Heats([]shard.Load{after[0].Sub(before[0]), after[2].Sub(before[2]), after[4].Sub(before[4]), after[5].Sub(before[5])})
	require.Equal(t, []int{2, 5}, []int{heats[0].Shard, heats[1].Shard})
	require.Greater(t, heats[0].Share, 0.99)
	require.InDelta(t, 3, heats[0].Above, 0.01, "one of three shards does all the work")
	require.InDelta(t, 1, heats[1].Above, 0.01, "the only one of its node")

	// A reset makes no count negative.
	run(c.Number(2), "select pg_stat_reset()")
	reset := loads(t, c, func(all []shard.Load) bool { return all[2].RowsWritten == 0 })
	d := reset[2].Sub(after[2])
	require.Zero(t, d.RowsWritten)
	require.GreaterOrEqual(t, d.RowsRead, int64(0))

	// A schema that is not there has no load.
	run(c.Number(4), "drop schema shard_0004 cascade")
	all, err := c.Loads(t.Context())
	require.NoError(t, err)
	require.Len(t, all, 7)
	require.Equal(t, 5, all[4].Shard)
}

func TestLoadSubIsNeverNegative(t *testing.T) {
	t.Parallel()
	before := shard.Load{Shard: 1, Node: "a", RowsRead: 100, RowsWritten: 10, SeqScans: 5, BlocksRead: 7, BlocksHit: 70, Bytes: 9000, LiveRows: 50, DeadRows: 5}
	for _, test := range []struct {
		name      string
		now, want shard.Load
	}{
		{
			"Growth",
			shard.Load{Shard: 1, Node: "a", RowsRead: 150, RowsWritten: 12, SeqScans: 5, BlocksRead: 8, BlocksHit: 90, Bytes: 8000, LiveRows: 52},
			shard.Load{Shard: 1, Node: "a", RowsRead: 50, RowsWritten: 2, BlocksRead: 1, BlocksHit: 20, Bytes: 8000, LiveRows: 52},
		},
		{
			"Reset",
			shard.Load{Shard: 1, Node: "a", RowsRead: 3, RowsWritten: 2, SeqScans: 1, BlocksRead: 4, BlocksHit: 5, Bytes: 9000},
			shard.Load{Shard: 1, Node: "a", RowsRead: 3, RowsWritten: 2, SeqScans: 1, BlocksRead: 4, BlocksHit: 5, Bytes: 9000},
		},
		{
			"Move",
			shard.Load{Shard: 1, Node: "b", RowsRead: 150, RowsWritten: 12},
			shard.Load{Shard: 1, Node: "b", RowsRead: 150, RowsWritten: 12},
		},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			require.Equal(t, test.want, test.now.Sub(before))
		})
	}
}

func TestHeatsOfNoWork(t *testing.T) {
	t.Parallel()
	require.Empty(t, shard.Heats(nil))
	heats := shard.Heats([]shard.Load{{Shard: 0, Node: "a"}, {Shard: 1, Node: "a"}})
	require.Equal(t, []shard.Heat{{Load: shard.Load{Shard: 0, Node: "a"}}, {Load: shard.Load{Shard: 1, Node: "a"}}}, heats)
	require.InDelta(t, 1, heats[0].HitRatio(), 0)
	require.InDelta(t, 0, heats[0].ReadsPerRow(), 0)
	slow := shard.Load{RowsRead: 8, RowsWritten: 2, BlocksRead: 5, BlocksHit: 15}
	require.InDelta(t, 0.75, slow.HitRatio(), 0)
	require.InDelta(t, 0.5, slow.ReadsPerRow(), 0)
}

func TestLoadsOfANodeThatIsDownAreMissing(t *testing.T) {
	t.Parallel()
	sick, err := testserver.Host(t).Postgres(t.Context(), "sick", localserver.PostgresConfig{})
	require.NoError(t, err)
	c := open(t, shard.Static(4,
		shard.Node{Name: "well", DSN: testserver.Postgres(t)},
		shard.Node{Name: "sick", DSN: sick.DSN("postgres")}), shard.Config{})
	noteTable(t, c)
	all, err := c.Loads(t.Context())
	require.NoError(t, err)
	require.Len(t, all, 4)

	require.NoError(t, sick.Kill())
	all, err = c.Loads(t.Context())
	require.Len(t, all, 2)
	require.Equal(t, []int{0, 2}, []int{all[0].Shard, all[1].Shard})
	failed, ok := errors.AsType[shard.Errors](err)
	require.True(t, ok)
	require.Len(t, failed, 2)
	require.Equal(t, []int{1, 3}, []int{failed[0].Shard, failed[1].Shard})
	require.Equal(t, "sick", failed[0].Node)

	require.NoError(t, sick.Restart(t.Context()))
	// Connections that died with the server fail once each.
	require.Eventually(t, func() bool { all, err := c.Loads(t.Context()); return err == nil && len(all) == 4 }, 20*time.Second, 10*time.Millisecond)
	require.NoError(t, sick.Pause())
	ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	all, err = c.Loads(ctx)
	require.Len(t, all, 2, "a node that hangs keeps nothing back")
	require.ErrorIs(t, err, context.DeadlineExceeded)
	require.NoError(t, sick.Resume())
}
