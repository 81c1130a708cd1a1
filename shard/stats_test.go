package shard_test

import (
	"context"
	"errors"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"

	"github.com/shardgram/shardgram/internal/localserver"
	"github.com/shardgram/shardgram/internal/testserver"
	"github.com/shardgram/shardgram/shard"
)

func TestStatsCountEveryCallOnce(t *testing.T) {
	t.Parallel()
	c := open(t, shard.Static(4,
		shard.Node{Name: "a", DSN: testserver.Postgres(t)},
		shard.Node{Name: "b", DSN: testserver.Postgres(t)}), shard.Config{MaxConns: 3})
	require.NoError(t, c.Each(t.Context(), c.Shards(), func(ctx context.Context, s shard.Shard) error {
		_, err := s.Exec(ctx, "create schema "+s.Schema()+"; create table note (id bigint, body text)")
		return err
	}))
	before := c.Stats()
	require.Len(t, before.Shards, 4)
	for i, s := range before.Shards {
		require.Equal(t, i, s.Shard)
		require.Equal(t, []string{"a", "b"}[i%2], s.Node)
		require.EqualValues(t, 1, s.Calls)
	}

	// Each round is four calls that succeed and two that fail.
	const goroutines, rounds = 24, 20
	wrong := errors.New("changed my mind")
	round := func(ctx context.Context, s shard.Shard) error {
		_, err := s.Exec(ctx, "insert into note values ($1, 'x')", 1)
		var n int
		err = errors.Join(err, s.QueryRow(ctx, "select count(*) from note").Scan(&n))
		err = errors.Join(err, s.SendBatch(ctx, &pgx.Batch{QueuedQueries: []*pgx.QueuedQuery{{SQL: "select 1"}}}).Close())
		if rolledBack := s.InTx(ctx, func(pgx.Tx) error { return wrong }); !errors.Is(rolledBack, wrong) {
			err = errors.Join(err, errors.New("the transaction was committed"))
		}
		if s.QueryRow(ctx, "select 1/0").Scan(&n) == nil {
			err = errors.Join(err, errors.New("a division by zero is an error"))
		}
		if _, duplicate := s.Exec(ctx, "create table note ()"); duplicate == nil {
			err = errors.Join(err, errors.New("the table is there already"))
		}
		return err
	}
	errs := make([]error, goroutines)
	var wg sync.WaitGroup
	for i := range goroutines {
		wg.Go(func() {
			for j := range rounds {
				errs[i] = errors.Join(errs[i], round(t.Context(), c.Number((i+j)%3))) // shard 3 has no share
				c.Stats()
			}
		})
	}
	wg.Wait()
	require.NoError(t, errors.Join(errs...))

	after := c.Stats()
	for i := range 3 {
		was, is := before.Shards[i], after.Shards[i]
		require.EqualValues(t, goroutines*rounds/3*6, is.Calls-was.Calls)
		require.EqualValues(t, goroutines*rounds/3*2, is.Failed-was.Failed)
		require.Zero(t, is.Fenced)
		require.Greater(t, is.Busy, was.Busy)
		require.Positive(t, is.PerCall())
		require.Less(t, is.PerCall(), is.Busy)
	}
	require.Equal(t, before.Shards[3], after.Shards[3])
	require.Zero(t, shard.ShardStats{}.PerCall())
}

func TestStatsOfANodeShowItsPool(t *testing.T) {
	t.Parallel()
	c := open(t, shard.Static(4,
		shard.Node{Name: "a", DSN: testserver.Postgres(t)},
		shard.Node{Name: "idle", DSN: testserver.Postgres(t)}), shard.Config{MaxConns: 1})
	none := shard.NodeStats{Node: "idle", Shards: 2, Pool: shard.PoolStats{MaxConns: 1}}
	require.Equal(t, none, c.Stats().Nodes[1])

	tx, err := c.Number(0).Begin(t.Context())
	require.NoError(t, err)
	a := c.Stats().Nodes[0].Pool
	require.Equal(t, []int{1, 1, 1, 0}, []int{a.MaxConns, a.Conns, a.InUse, a.Idle})
	require.EqualValues(t, 1, a.Opened)

	// The only connection is taken: one caller gives up, one waits until it is back.
	short, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	_, err = c.Number(2).Exec(short, "select 1")
	require.ErrorIs(t, err, shard.ErrBusy)
	waited := make(chan error, 1)
	begun := make(chan struct{})
	go func() {
		close(begun)
		_, err := c.Number(2).Exec(t.Context(), "select 1")
		waited <- err
	}()
	<-begun
	const pause = 100 * time.Millisecond
	time.Sleep(pause) // the time that is to be counted
	require.NoError(t, tx.Rollback(t.Context()))
	require.NoError(t, <-waited)

	// A connection that is given back is idle a moment later.
	require.Eventually(t, func() bool { return c.Stats().Nodes[0].Pool.Idle == 1 }, 10*time.Second, time.Millisecond)
	b := c.Stats()
	require.EqualValues(t, a.Waits+1, b.Nodes[0].Pool.Waits)
	require.Greater(t, b.Nodes[0].Pool.WaitTime-a.WaitTime, pause/2)
	require.EqualValues(t, a.GivenUp+1, b.Nodes[0].Pool.GivenUp)
	require.EqualValues(t, a.Acquired+1, b.Nodes[0].Pool.Acquired)
	require.Zero(t, b.Nodes[0].Pool.InUse)
	require.Equal(t, none, b.Nodes[1])
	require.Equal(t, []int64{2, 1}, []int64{b.Shards[2].Calls, b.Shards[2].Failed}, "a call that got no connection has failed")
	require.Greater(t, b.Shards[0].Busy, pause, "the transaction held its connection")
	require.Less(t, b.Shards[2].Busy, pause, "a wait for a connection is not work")
}

func TestStatsCountFences(t *testing.T) {
	t.Parallel()
	c := open(t, shard.Static(1, shard.Node{Name: "a", DSN: testserver.Postgres(t)}), shard.Config{})
	s := c.Number(0)
	_, err := s.Exec(t.Context(), `create schema shard_0000; create sequence refused;
		create function refuse() returns int language plpgsql as $$ begin
			if nextval('refused') <= 3 then raise 'fenced' using errcode = 'SH001'; end if;
			return 1; end $$`)
	require.NoError(t, err)
	before := c.Stats().Shards[0]
	_, err = s.Exec(t.Context(), "select refuse()")
	require.NoError(t, err)
	after := c.Stats().Shards[0]
	require.EqualValues(t, 4, after.Calls-before.Calls)
	require.EqualValues(t, 3, after.Fenced-before.Fenced)
}

// brokenCatalog fails from some time on.
type brokenCatalog struct {
	shard.Catalog
	mu  sync.Mutex
	err error
}

func (b *brokenCatalog) fail(err error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.err = err
}

func (b *brokenCatalog) Load(ctx context.Context) (shard.Map, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.err != nil {
		return shard.Map{}, b.err
	}
	return b.Catalog.Load(ctx)
}

func TestStatsTellHowOldTheMapIs(t *testing.T) {
	t.Parallel()
	cat := &brokenCatalog{Catalog: shard.Static(2, shard.Node{Name: "a", DSN: testserver.Postgres(t)})}
	begun := time.Now()
	c := open(t, cat, shard.Config{Poll: time.Hour})
	opened := c.Stats().Catalog
	require.EqualValues(t, 1, opened.Version)
	require.WithinRange(t, opened.Read, begun, time.Now())
	require.Empty(t, opened.Err)

	require.NoError(t, cat.Place(t.Context(), 1, 1, shard.Placement{Node: "a", State: shard.Moving}))
	require.Eventually(t, func() bool { return c.Stats().Catalog.Version == 2 }, 10*time.Second, time.Millisecond)
	read := c.Stats().Catalog.Read
	require.True(t, read.After(opened.Read))

	cat.fail(errors.New("the catalog has gone"))
	require.Error(t, c.Refresh(t.Context()))
	failed := c.Stats().Catalog
	require.Contains(t, failed.Err, "the catalog has gone")
	require.False(t, failed.Read.Before(read))
	require.EqualValues(t, 2, failed.Version)

	cat.fail(nil)
	require.NoError(t, c.Refresh(t.Context()))
	again := c.Stats().Catalog
	require.Empty(t, again.Err)
	require.True(t, again.Read.After(failed.Read))
}

func TestStatsShowThePoolsThatAreReadFrom(t *testing.T) {
	t.Parallel()
	host := testserver.Host(t)
	primary, err := host.Postgres(t.Context(), "primary", localserver.PostgresConfig{})
	require.NoError(t, err)
	dsn := strings.Replace(primary.DSN("postgres"), primary.Addr(), primary.Addr()+",127.0.0.1:1", 1)
	c := open(t, shard.Static(1, shard.Node{Name: "a", DSN: dsn}), shard.Config{MaxConns: 2})
	hosts := c.Stats().Nodes[0].Hosts
	require.Len(t, hosts, 2)
	require.Equal(t, []string{primary.Addr(), "127.0.0.1:1"}, []string{hosts[0].Host, hosts[1].Host})
	require.Equal(t, 2, hosts[1].Pool.MaxConns)
	require.Zero(t, hosts[1].Pool.Opened)
}
