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

	"github.com/shardgram/shardgram/idgen"
	"github.com/shardgram/shardgram/internal/localserver"
	"github.com/shardgram/shardgram/internal/testserver"
	"github.com/shardgram/shardgram/shard"
)

func nodesAB(t *testing.T) []shard.Node {
	return []shard.Node{{Name: "a", DSN: testserver.Postgres(t)}, {Name: "b", DSN: testserver.Postgres(t)}}
}

// whole requires that every shard has its schema, and that it makes its IDs.
func whole(t *testing.T, cat shard.Catalog, shards int) *shard.Cluster {
	c := open(t, cat, shard.Config{})
	require.Len(t, c.Shards(), shards)
	for _, s := range c.Shards() {
		var id idgen.ID
		require.NoError(t, s.QueryRow(t.Context(), "select next_id()").Scan(&id))
		require.Equal(t, s, c.ID(id))
	}
	return c
}

// schemas counts those of shards in a database.
func schemas(t *testing.T, dsn string) (n int) {
	conn, err := pgx.Connect(t.Context(), dsn)
	require.NoError(t, err)
	defer conn.Close(context.Background())
	require.NoError(t, conn.QueryRow(t.Context(), "select count(*) from pg_namespace where nspname like 'shard\\_%'").Scan(&n))
	return n
}

func TestInitMakesAllThatMigrateNeeds(t *testing.T) {
	t.Parallel()
	nodes := nodesAB(t)
	cat := postgresCatalog(t, nodes[0].DSN) // the database of a node will do
	last := make(map[string]shard.Progress)
	calls := 0
	cfg := shard.InitConfig{Shards: 16, Nodes: nodes, Progress: func(p shard.Progress) {
		last[p.Node] = p
		calls++
	}}
	require.NoError(t, shard.Init(t.Context(), cat, cfg))
	require.Equal(t, 16, calls)
	require.Equal(t, map[string]shard.Progress{"a": {Node: "a", Done: 8, Total: 8}, "b": {Node: "b", Done: 8, Total: 8}}, last)
	require.Equal(t, "shard", load(t, cat).Schema)
	migrate(t, whole(t, cat, 16))
	require.Equal(t, 8, schemas(t, nodes[0].DSN))
	require.Equal(t, 8, schemas(t, nodes[1].DSN))

	before := load(t, cat)
	require.NoError(t, shard.Init(t.Context(), cat, cfg), "again, now that there are tables")
	require.Equal(t, before, load(t, cat), "and no cluster need look")
	count(t, whole(t, cat, 16).Number(3))
}

func TestInitWithNamesAndLayoutOfItsOwn(t *testing.T) {
	t.Parallel()
	layout := idgen.Layout{TimeBits: 42, ShardBits: 8, SequenceBits: 14, Epoch: time.Date(2020, 1, 1, 0, 0, 0, 0, time.UTC)}
	cat := postgresCatalog(t, testserver.Postgres(t))
	cfg := shard.InitConfig{Shards: 4, Nodes: nodesAB(t), Config: shard.Config{Schema: "ig", Layout: layout}}
	require.NoError(t, shard.Init(t.Context(), cat, cfg))
	c := open(t, cat, shard.Config{Layout: layout})
	require.Equal(t, "ig_0003", c.Number(3).Schema())
	var id idgen.ID
	require.NoError(t, c.Number(3).QueryRow(t.Context(), "select next_id()").Scan(&id))
	require.Equal(t, 3, layout.Shard(id))
	_, err := shard.Open(t.Context(), cat, shard.Config{Schema: "other"})
	require.Error(t, err)

	cfg.Config.Schema = "" // is that of the catalog
	require.NoError(t, shard.Init(t.Context(), cat, cfg))
}

func TestInitInTwoProgramsAtOnce(t *testing.T) {
	t.Parallel()
	dsn, nodes := testserver.Postgres(t)+"&default_transaction_isolation=repeatable%20read", nodesAB(t)
	const programs = 3
	errs := make([]error, programs)
	var wg sync.WaitGroup
	for i := range programs {
		cat := postgresCatalog(t, dsn)
		wg.Go(func() { errs[i] = shard.Init(t.Context(), cat, shard.InitConfig{Shards: 8, Nodes: nodes}) })
	}
	wg.Wait()
	require.NoError(t, errors.Join(errs...))
	whole(t, postgresCatalog(t, dsn), 8)
}

func TestInitGoesOnAfterItsContextEnded(t *testing.T) {
	t.Parallel()
	cat, nodes := postgresCatalog(t, testserver.Postgres(t)), nodesAB(t)
	ctx, cancel := context.WithCancel(t.Context())
	cfg := shard.InitConfig{Shards: 32, Nodes: nodes, Config: shard.Config{PerNode: 1}}
	cfg.Progress = func(p shard.Progress) {
		if p.Done == 3 {
			cancel()
		}
	}
	require.ErrorIs(t, shard.Init(ctx, cat, cfg), context.Canceled)
	require.Less(t, schemas(t, nodes[0].DSN)+schemas(t, nodes[1].DSN), 16)
	require.ErrorIs(t, shard.Init(ctx, cat, cfg), context.Canceled)
	require.NoError(t, shard.Init(t.Context(), cat, cfg))
	whole(t, cat, 32)
}

func TestInitGoesOnAfterANodeFailed(t *testing.T) {
	t.Parallel()
	host := testserver.Host(t)
	sick, err := host.Postgres(t.Context(), "sick", localserver.PostgresConfig{})
	require.NoError(t, err)
	dsn := testserver.Postgres(t)
	cat := postgresCatalog(t, dsn)
	well := shard.Node{Name: "well", DSN: testserver.Postgres(t)}
	cfg := shard.InitConfig{Shards: 32, Nodes: []shard.Node{well, {Name: "sick", DSN: sick.DSN("postgres")}}, Config: shard.Config{PerNode: 1}}
	cfg.Progress = func(p shard.Progress) {
		if p.Node == "sick" && p.Done == 3 {
			err = sick.Kill()
		}
	}
	fails := func(least, most int) {
		t.Helper()
		failed, ok := errors.AsType[shard.Errors](shard.Init(t.Context(), cat, cfg))
		require.True(t, ok)
		require.GreaterOrEqual(t, len(failed), least)
		require.LessOrEqual(t, len(failed), most)
		for _, e := range failed {
			require.Equal(t, "sick", e.Node)
			require.Equal(t, 1, e.Shard%2)
		}
		require.Equal(t, 16, schemas(t, well.DSN))
	}
	fails(12, 13)
	require.NoError(t, err)
	fails(16, 16) // it is down from the start

	// A node without shards that is down is told of too.
	idle := cfg
	idle.Nodes = append(idle.Nodes[:2:2], absent[2])
	err = shard.Init(t.Context(), cat, idle)
	require.ErrorContains(t, err, "shard: init: node c: ")
	require.NotContains(t, err.Error(), secret)
	failed, ok := errors.AsType[shard.Errors](err)
	require.True(t, ok)
	require.Len(t, failed, 16)

	require.NoError(t, sick.Restart(t.Context()))
	require.NotZero(t, schemas(t, sick.DSN("postgres")))
	require.Less(t, schemas(t, sick.DSN("postgres")), 16)
	execute(t, dsn, "delete from shardgram.node where name = 'c'; update shardgram.catalog set version = version + 1")
	cfg.Progress = nil
	require.NoError(t, shard.Init(t.Context(), cat, cfg))
	whole(t, cat, 32)
}

func TestInitAddsAndReplacesNodes(t *testing.T) {
	t.Parallel()
	cat, nodes := postgresCatalog(t, testserver.Postgres(t)), nodesAB(t)
	cfg := shard.InitConfig{Shards: 4, Nodes: nodes}
	require.NoError(t, shard.Init(t.Context(), cat, cfg))
	c := open(t, cat, shard.Config{Poll: time.Minute})
	before := load(t, cat)

	third := shard.Node{Name: "third", DSN: testserver.Postgres(t)}
	cfg.Nodes = []shard.Node{third}
	require.NoError(t, shard.Init(t.Context(), cat, cfg))
	m := load(t, cat)
	require.Equal(t, append(nodes[:2:2], third), m.Nodes, "those that are not given stay")
	require.Equal(t, before.Shards, m.Shards, "it has no shards yet")
	require.Zero(t, schemas(t, third.DSN))
	require.Eventually(t, func() bool { return len(c.Map().Nodes) == 3 }, 10*time.Second, time.Millisecond)

	// Nothing was migrated: the new host may be an empty one.
	b := shard.Node{Name: "b", DSN: testserver.Postgres(t)}
	cfg.Nodes = []shard.Node{b}
	require.NoError(t, shard.Init(t.Context(), cat, cfg))
	require.Equal(t, []shard.Node{nodes[0], b, third}, load(t, cat).Nodes)
	require.Eventually(t, func() bool { return c.Map().Nodes[1] == b }, 10*time.Second, time.Millisecond)
	migrate(t, whole(t, cat, 4))
	require.NoError(t, cat.Migrated(t.Context(), []int{0, 1, 2, 3}, 1))

	// Now an empty one would serve empty shards.
	cfg.Nodes = []shard.Node{{Name: "b", DSN: testserver.Postgres(t)}}
	require.ErrorContains(t, shard.Init(t.Context(), cat, cfg), "node b: its new DSN leads to a database that lacks 2 of its 2 schemas")
	cfg.Nodes = []shard.Node{{Name: "b", DSN: absent[1].DSN}}
	require.ErrorContains(t, shard.Init(t.Context(), cat, cfg), "node b: its new DSN: ")
	require.Equal(t, b, load(t, cat).Nodes[1])
	respelled := shard.Node{Name: "b", DSN: b.DSN + "&application_name=x"}
	cfg.Nodes = []shard.Node{respelled}
	require.NoError(t, shard.Init(t.Context(), cat, cfg))
	require.Equal(t, respelled, load(t, cat).Nodes[1])
	count(t, whole(t, cat, 4).Number(1))
}

func TestInitRefusesTheSameDatabaseTwice(t *testing.T) {
	t.Parallel()
	dsn, nodes := testserver.Postgres(t), nodesAB(t)
	cat := postgresCatalog(t, dsn)
	parsed, err := pgx.ParseConfig(nodes[0].DSN)
	require.NoError(t, err)
	again := shard.Node{Name: "again", DSN: "host=localhost port=" + strings.Split(strings.Split(nodes[0].DSN, ":")[2], "/")[0] +
		" user=" + parsed.User + " sslmode=disable dbname=" + parsed.Database}
	cfg := shard.InitConfig{Shards: 4, Nodes: append(nodes[:2:2], again)}
	require.ErrorContains(t, shard.Init(t.Context(), cat, cfg), "nodes a and again are the same database")
	_, err = cat.Load(t.Context())
	require.ErrorIs(t, err, shard.ErrNoCatalog, "nothing was made")
	require.Zero(t, schemas(t, nodes[0].DSN)+schemas(t, nodes[1].DSN))

	cfg.Nodes = nodes
	require.NoError(t, shard.Init(t.Context(), cat, cfg))
	before := load(t, cat)
	cfg.Nodes = []shard.Node{again}
	require.ErrorContains(t, shard.Init(t.Context(), cat, cfg), "nodes again and a are the same database", "also those that are not given")
	require.Equal(t, before, load(t, cat))
}

// TestInitTakesAReplicaOnceItIsPromoted: that is how a node is halved, as both
// have all schemas then.
func TestInitTakesAReplicaOnceItIsPromoted(t *testing.T) {
	t.Parallel()
	host := testserver.Host(t)
	primary, err := host.Postgres(t.Context(), "primary", localserver.PostgresConfig{})
	require.NoError(t, err)
	replica, err := host.PostgresReplica(t.Context(), "replica", primary)
	require.NoError(t, err)
	cat := postgresCatalog(t, testserver.Postgres(t))
	cfg := shard.InitConfig{Shards: 4, Nodes: []shard.Node{
		{Name: "a", DSN: primary.DSN("postgres")}, {Name: "b", DSN: replica.DSN("postgres")},
	}}
	require.ErrorContains(t, shard.Init(t.Context(), cat, cfg), "node b is a standby")
	_, err = cat.Load(t.Context())
	require.ErrorIs(t, err, shard.ErrNoCatalog)
	require.NoError(t, replica.Promote(t.Context()))
	require.NoError(t, shard.Init(t.Context(), cat, cfg))
	whole(t, cat, 4)
}

func TestInitRefusesAnotherShape(t *testing.T) {
	t.Parallel()
	cat, nodes := postgresCatalog(t, testserver.Postgres(t)), nodesAB(t)
	require.NoError(t, shard.Init(t.Context(), cat, shard.InitConfig{Shards: 8, Nodes: nodes}))
	before := load(t, cat)
	err := shard.Init(t.Context(), cat, shard.InitConfig{Shards: 16, Nodes: nodes})
	require.ErrorIs(t, err, shard.ErrMismatch)
	require.ErrorContains(t, err, "with 8 shards, not 16")
	err = shard.Init(t.Context(), cat, shard.InitConfig{Shards: 8, Config: shard.Config{Schema: "other"}, Nodes: nodes})
	require.ErrorIs(t, err, shard.ErrMismatch)
	require.ErrorContains(t, err, `with schema "shard", not "other"`)
	require.Equal(t, before, load(t, cat))
}

func TestInitOfTwoShapesAtOnceMakesOne(t *testing.T) {
	t.Parallel()
	dsn, nodes := testserver.Postgres(t), nodesAB(t)
	errs := make([]error, 4)
	var wg sync.WaitGroup
	for i := range errs {
		cat := postgresCatalog(t, dsn)
		wg.Go(func() { errs[i] = shard.Init(t.Context(), cat, shard.InitConfig{Shards: 1 << i, Nodes: nodes}) })
	}
	wg.Wait()
	won := 0
	for _, err := range errs {
		if err == nil {
			won++
			continue
		}
		require.ErrorIs(t, err, shard.ErrMismatch)
	}
	require.Equal(t, 1, won)
}

func TestInitRefusesBadInput(t *testing.T) {
	t.Parallel()
	cat := postgresCatalog(t, testserver.Postgres(t))
	a := absent[0]
	for _, test := range []struct {
		name string
		cfg  shard.InitConfig
	}{
		{"NoShards", shard.InitConfig{Nodes: absent}},
		{"NoPowerOfTwo", shard.InitConfig{Shards: 12, Nodes: absent}},
		{"Negative", shard.InitConfig{Shards: -8, Nodes: absent}},
		{"TooMany", shard.InitConfig{Shards: 16384, Nodes: absent}},
		{"TooManyForTheLayout", shard.InitConfig{Shards: 512, Nodes: absent, Config: shard.Config{
			Layout: idgen.Layout{TimeBits: 42, ShardBits: 8, SequenceBits: 14},
		}}},
		{"NoNodes", shard.InitConfig{Shards: 8}},
		{"NodeToQuote", shard.InitConfig{Shards: 8, Nodes: []shard.Node{{Name: "a'; drop", DSN: a.DSN}}}},
		{"NodeTwice", shard.InitConfig{Shards: 8, Nodes: []shard.Node{a, a}}},
		{"DSNTwice", shard.InitConfig{Shards: 8, Nodes: []shard.Node{a, {Name: "x", DSN: a.DSN}}}},
		{"NoDSN", shard.InitConfig{Shards: 8, Nodes: []shard.Node{{Name: "x"}}}},
		{"BadDSN", shard.InitConfig{Shards: 8, Nodes: []shard.Node{{Name: "x", DSN: "postgres://u:" + secret + "@:bad:/"}}}},
		{"SchemaToQuote", shard.InitConfig{Shards: 8, Nodes: absent, Config: shard.Config{Schema: `x"; drop`}}},
		{"SchemaOfPostgreSQL", shard.InitConfig{Shards: 8, Nodes: absent, Config: shard.Config{Schema: "pg_x"}}},
		{"BadConfig", shard.InitConfig{Shards: 8, Nodes: absent, Config: shard.Config{PerNode: -1}}},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			err := shard.Init(t.Context(), cat, test.cfg)
			require.Error(t, err)
			require.NotContains(t, err.Error(), secret)
			_, isErrors := errors.AsType[shard.Errors](err)
			require.False(t, isErrors, "the map was made: %v", err)
			_, err = cat.Load(t.Context())
			require.ErrorIs(t, err, shard.ErrNoCatalog)
		})
	}
	require.Error(t, shard.Init(t.Context(), nil, shard.InitConfig{Shards: 8, Nodes: absent}))
}
