package shard_test

import (
	"context"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/shardgram/shardgram/internal/testserver"
	"github.com/shardgram/shardgram/shard"
)

// scripted is a catalog whose answers a test sets.
type scripted struct {
	shard.Catalog
	load func(context.Context) (shard.Map, error)
}

func (s *scripted) Load(ctx context.Context) (shard.Map, error) { return s.load(ctx) }

func (s *scripted) Wait(ctx context.Context, _ int64) error {
	<-ctx.Done()
	return ctx.Err()
}

func TestTheMapNeverGoesBack(t *testing.T) {
	t.Parallel()
	a, b := shard.Node{Name: "a", DSN: testserver.Postgres(t)}, shard.Node{Name: "b", DSN: testserver.Postgres(t)}
	now := func(version int64, node string) func(context.Context) (shard.Map, error) {
		return func(context.Context) (shard.Map, error) {
			return shard.Map{Version: version, Nodes: []shard.Node{a, b}, Shards: []shard.Placement{{Node: node, State: shard.Serving, Epoch: version}}}, nil
		}
	}
	cat := &scripted{load: now(5, "a")}
	c := open(t, cat, shard.Config{Poll: time.Hour})
	for _, step := range []struct {
		version int64
		node    string
		want    string
	}{{4, "b", "a"}, {5, "b", "a"}, {6, "b", "b"}, {5, "a", "b"}} {
		cat.load = now(step.version, step.node)
		require.NoError(t, c.Refresh(t.Context()))
		require.Equal(t, step.want, c.Number(0).Node())
	}
}

// TestACatalogThatHangs is one whose Load ends with its context only.
func TestACatalogThatHangs(t *testing.T) {
	t.Parallel()
	static := shard.Static(2, shard.Node{Name: "a", DSN: testserver.Postgres(t)})
	cat := &scripted{Catalog: static, load: static.Load}
	c, err := shard.Open(t.Context(), cat, shard.Config{Poll: time.Hour})
	require.NoError(t, err)
	migrate(t, c)
	fence(t, c.Number(1))
	loading := make(chan struct{}, 100)
	cat.load = func(ctx context.Context) (shard.Map, error) {
		loading <- struct{}{}
		<-ctx.Done()
		return shard.Map{}, ctx.Err()
	}
	done := make(chan error)
	go func() { done <- writers["Exec"](t.Context(), c.Number(1), 1) }()
	<-loading // the write has met the fence, and asks the catalog
	unfence(t, c.Number(1))
	require.NoError(t, <-done, "a write is not kept from its shard")

	go func() { done <- c.Refresh(t.Context()) }()
	<-loading
	require.NoError(t, c.Close(), "nor is Close")
	require.Error(t, <-done)
}

// TestWhoWaitsForANodeThatIsReplaced goes on at the new one.
func TestWhoWaitsForANodeThatIsReplaced(t *testing.T) {
	t.Parallel()
	dsn := testserver.Postgres(t)
	at := func(version int64, dsn string) func(context.Context) (shard.Map, error) {
		return func(context.Context) (shard.Map, error) {
			return shard.Map{
				Version: version, Nodes: []shard.Node{{Name: "a", DSN: dsn}},
				Shards: []shard.Placement{{Node: "a", State: shard.Serving, Epoch: 1}},
			}, nil
		}
	}
	cat := &scripted{load: at(1, dsn)}
	c := open(t, cat, shard.Config{Poll: time.Hour, MaxConns: 1})
	tx, err := c.Number(0).Begin(t.Context())
	require.NoError(t, err)
	done := make(chan error)
	for range 10 {
		go func() {
			var n int
			done <- c.Number(0).QueryRow(t.Context(), "select 1 where $1", true).Scan(&n)
		}()
	}
	eventually(t, "they wait", func() bool { return c.Stats().Nodes[0].Pool.InUse == 1 })
	time.Sleep(20 * time.Millisecond) // nothing tells of those in the queue
	cat.load = at(2, dsn+"&application_name=new")
	require.NoError(t, c.Refresh(t.Context()))
	require.NoError(t, tx.Rollback(t.Context()))
	for range 10 {
		require.NoError(t, <-done)
	}
}
