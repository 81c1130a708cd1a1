package shard_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
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

const secret = "s3cr3t"

// absent are nodes for tests of the map alone. Nobody listens on port 1.
var absent = []shard.Node{
	{Name: "a", DSN: "postgres://u:" + secret + "@127.0.0.1:1/a"},
	{Name: "b", DSN: "postgres://u:" + secret + "@127.0.0.1:1/b"},
	{Name: "c", DSN: "postgres://u:" + secret + "@127.0.0.1:1/c"},
}

func postgresCatalog(t *testing.T, dsn string) *shard.PostgresCatalog {
	cat, err := shard.NewPostgresCatalog(dsn, shard.PostgresCatalogConfig{})
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, cat.Close()) })
	return cat
}

// mapOnly makes a catalog of n shards on absent nodes.
func mapOnly(t *testing.T, dsn string, n int) *shard.PostgresCatalog {
	cat := postgresCatalog(t, dsn)
	failed, ok := errors.AsType[shard.Errors](shard.Init(t.Context(), cat, shard.InitConfig{Shards: n, Nodes: absent}))
	require.True(t, ok, "the nodes are absent")
	require.Len(t, failed, n)
	return cat
}

func load(t *testing.T, cat shard.Catalog) shard.Map {
	m, err := cat.Load(t.Context())
	require.NoError(t, err)
	return m
}

func execute(t *testing.T, dsn, sql string, args ...any) {
	conn, err := pgx.Connect(t.Context(), dsn)
	require.NoError(t, err)
	defer conn.Close(context.Background())
	_, err = conn.Exec(t.Context(), sql, args...)
	require.NoError(t, err)
}

func TestStaticCatalog(t *testing.T) {
	t.Parallel()
	testCatalog(t, func(*testing.T) shard.Catalog { return shard.Static(8, absent...) })
}

func TestPostgresCatalog(t *testing.T) {
	t.Parallel()
	testCatalog(t, func(t *testing.T) shard.Catalog { return mapOnly(t, testserver.Postgres(t), 8) })
}

// testCatalog is what every catalog must do. open returns a new one, of 8 shards
// on the absent nodes.
func testCatalog(t *testing.T, open func(*testing.T) shard.Catalog) {
	t.Run("DealsShardsRound", func(t *testing.T) {
		t.Parallel()
		m := load(t, open(t))
		require.Equal(t, absent, m.Nodes)
		require.Len(t, m.Shards, 8)
		require.Positive(t, m.Version)
		for i, p := range m.Shards {
			require.Equal(t, shard.Placement{Node: absent[i%3].Name, State: shard.Serving, Epoch: 1}, p)
		}
	})

	t.Run("GivesCopies", func(t *testing.T) {
		t.Parallel()
		cat := open(t)
		m, again := load(t, cat), load(t, cat)
		m.Nodes[0].Name, m.Shards[0].Node = "x", "x"
		require.Equal(t, again, load(t, cat))
	})

	t.Run("PlacesAtTheEpochItHas", func(t *testing.T) {
		t.Parallel()
		cat := open(t)
		before := load(t, cat)
		require.NoError(t, cat.Place(t.Context(), 3, 1, shard.Placement{Node: "c", State: shard.Moving, Epoch: 77, Schema: 77}))
		after := load(t, cat)
		require.Greater(t, after.Version, before.Version)
		before.Shards[3] = shard.Placement{Node: "c", State: shard.Moving, Epoch: 2}
		require.Equal(t, before.Shards, after.Shards, "no other shard changes, and the schema version is not Place's")

		for _, epoch := range []int64{1, 3, 0, -1} {
			err := cat.Place(t.Context(), 3, epoch, shard.Placement{Node: "a", State: shard.Serving})
			require.ErrorIs(t, err, shard.ErrConflict)
			require.ErrorContains(t, err, fmt.Sprintf("its epoch is 2, not %d", epoch))
		}
		require.Equal(t, after, load(t, cat), "not even a new version")
	})

	t.Run("RefusesWhatItDoesNotHave", func(t *testing.T) {
		t.Parallel()
		cat := open(t)
		before := load(t, cat)
		to := shard.Placement{Node: "a", State: shard.Serving}
		for _, n := range []int{-1, 8, 1 << 40} {
			require.ErrorIs(t, cat.Place(t.Context(), n, 1, to), shard.ErrNoShard)
			require.ErrorIs(t, cat.Migrated(t.Context(), []int{0, n, 1}, 5), shard.ErrNoShard)
		}
		require.ErrorIs(t, cat.Place(t.Context(), 0, 1, shard.Placement{Node: "d", State: shard.Serving}), shard.ErrNoNode)
		require.Error(t, cat.Place(t.Context(), 0, 1, shard.Placement{Node: "a", State: "asleep"}))
		require.Error(t, cat.Place(t.Context(), 0, 1, shard.Placement{Node: "a"}))
		require.Equal(t, before, load(t, cat))
	})

	t.Run("RecordsSchemaVersions", func(t *testing.T) {
		t.Parallel()
		cat := open(t)
		require.NoError(t, cat.Migrated(t.Context(), []int{1, 5, 7}, 12))
		m := load(t, cat)
		for i, p := range m.Shards {
			want := 0
			if i == 1 || i == 5 || i == 7 {
				want = 12
			}
			require.Equal(t, want, p.Schema)
			require.EqualValues(t, 1, p.Epoch, "a migration is no move")
		}
		require.NoError(t, cat.Migrated(t.Context(), []int{7, 1}, 12))
		require.NoError(t, cat.Migrated(t.Context(), nil, 13))
		require.Equal(t, m, load(t, cat), "what changes nothing is not told to all clusters")
		require.NoError(t, cat.Migrated(t.Context(), []int{0, 1}, 12))
		require.Greater(t, load(t, cat).Version, m.Version)
	})

	t.Run("WaitEndsWithAChangeOrTheContext", func(t *testing.T) {
		t.Parallel()
		cat := open(t)
		v := load(t, cat).Version
		for range 2 {
			ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
			require.ErrorIs(t, cat.Wait(ctx, v), context.DeadlineExceeded)
			cancel()
		}
		const waiters = 3
		woken := make(chan error, waiters)
		for range waiters {
			go func() { woken <- cat.Wait(t.Context(), v) }()
		}
		select {
		case err := <-woken:
			require.Fail(t, "nothing has changed", "%v", err)
		case <-time.After(100 * time.Millisecond):
		}
		require.NoError(t, cat.Place(t.Context(), 0, 1, shard.Placement{Node: "a", State: shard.Moving}))
		for range waiters {
			require.NoError(t, <-woken)
		}
		require.Greater(t, load(t, cat).Version, v)
		require.NoError(t, cat.Wait(t.Context(), v), "the change was before the call")
	})

	t.Run("OneOfManyWinsEachEpoch", func(t *testing.T) {
		t.Parallel()
		require.NoError(t, race(t, open(t)))
	})
}

// race has 20 goroutines place one shard at each epoch, and returns an error
// unless one of them has won each, and the epochs have no gap.
func race(t *testing.T, cat shard.Catalog) error {
	const goroutines, epochs = 20, 10
	for epoch := range int64(epochs) {
		errs := make([]error, goroutines)
		var wg sync.WaitGroup
		for g := range goroutines {
			wg.Go(func() {
				errs[g] = cat.Place(t.Context(), 5, epoch+1, shard.Placement{Node: absent[g%3].Name, State: shard.Serving})
			})
		}
		wg.Wait()
		winner := -1
		for g, err := range errs {
			switch {
			case err == nil && winner >= 0:
				return fmt.Errorf("%d and %d have won epoch %d", winner, g, epoch+1)
			case err == nil:
				winner = g
			case !errors.Is(err, shard.ErrConflict):
				return err
			}
		}
		if winner < 0 {
			return fmt.Errorf("nobody has won epoch %d", epoch+1)
		}
		want := shard.Placement{Node: absent[winner%3].Name, State: shard.Serving, Epoch: epoch + 2}
		if p := load(t, cat).Shards[5]; p != want {
			return fmt.Errorf("%v, want %v", p, want)
		}
	}
	return nil
}

// forgetful is a catalog whose Place does not compare.
type forgetful struct {
	*shard.PostgresCatalog
	dsn string
}

func (f forgetful) Place(ctx context.Context, n int, _ int64, to shard.Placement) error {
	conn, err := pgx.Connect(ctx, f.dsn)
	if err != nil {
		return err
	}
	defer conn.Close(ctx)
	_, err = conn.Exec(ctx, "update shardgram.shard set node = $1, epoch = epoch + 1 where number = $2", to.Node, n)
	return err
}

func TestTheRaceFindsAPlaceThatDoesNotCompare(t *testing.T) {
	t.Parallel()
	dsn := testserver.Postgres(t)
	require.ErrorContains(t, race(t, forgetful{mapOnly(t, dsn, 8), dsn}), "have won epoch 1")
}

func TestLoadIsOneSnapshot(t *testing.T) {
	t.Parallel()
	cat := mapOnly(t, testserver.Postgres(t), 8)
	begin := load(t, cat).Version
	ctx, cancel := context.WithCancel(t.Context())
	placed := make(chan error, 1)
	go func() {
		for i := 0; ; i++ {
			n, epoch := i%8, int64(i/8+1)
			if err := cat.Place(ctx, n, epoch, shard.Placement{Node: "a", State: shard.Serving}); err != nil {
				placed <- err
				return
			}
		}
	}()
	versions := make(map[int64]bool)
	for len(versions) < 50 {
		m := load(t, cat)
		versions[m.Version] = true
		changes := int64(0)
		for _, p := range m.Shards {
			changes += p.Epoch - 1
		}
		require.Equal(t, m.Version-begin, changes, "each version has one more change than the last")
	}
	cancel()
	require.ErrorIs(t, <-placed, context.Canceled)
}

func TestCatalogThatIsNotThere(t *testing.T) {
	t.Parallel()
	dsn := testserver.Postgres(t)
	cat := postgresCatalog(t, dsn)
	all := func() map[string]error {
		_, err := cat.Load(t.Context())
		return map[string]error{
			"Load":     err,
			"Wait":     cat.Wait(t.Context(), 0),
			"Place":    cat.Place(t.Context(), 0, 1, shard.Placement{Node: "a", State: shard.Serving}),
			"Migrated": cat.Migrated(t.Context(), []int{0}, 1),
		}
	}
	for name, err := range all() {
		require.ErrorIs(t, err, shard.ErrNoCatalog, name)
	}
	_, err := shard.Open(t.Context(), cat, shard.Config{})
	require.ErrorIs(t, err, shard.ErrNoCatalog)
	execute(t, dsn, "create schema shardgram")
	for name, err := range all() {
		require.ErrorIs(t, err, shard.ErrNoCatalog, name)
	}
	mapOnly(t, dsn, 8)
	for name, err := range all() {
		require.NoError(t, err, name)
	}

	// Whatever a later version may do to the tables.
	for _, sql := range []string{
		"update shardgram.catalog set format = 2",
		"alter table shardgram.shard rename epoch to era",
		"drop table shardgram.shard cascade",
	} {
		execute(t, dsn, sql)
		for name, err := range all() {
			if name != "Wait" { // it says only that there is something to load
				require.ErrorIs(t, err, shard.ErrNewerCatalog, "%s after %s", name, sql)
			}
		}
		err := shard.Init(t.Context(), cat, shard.InitConfig{Shards: 8, Nodes: absent})
		require.ErrorIs(t, err, shard.ErrNewerCatalog)
	}
	execute(t, dsn, "update shardgram.catalog set format = 1")
	_, err = cat.Load(t.Context())
	require.Error(t, err)
	require.NotErrorIs(t, err, shard.ErrNewerCatalog)
	require.NotErrorIs(t, err, shard.ErrNoCatalog)
}

func TestNewPostgresCatalogChecksAndDoesNotDial(t *testing.T) {
	t.Parallel()
	for _, dsn := range []string{"", "postgres://u:" + secret + "@:bad:/", "host=x password=" + secret + " port=no"} {
		_, err := shard.NewPostgresCatalog(dsn, shard.PostgresCatalogConfig{})
		require.Error(t, err)
		require.NotContains(t, err.Error(), secret)
	}
	for _, schema := range []string{"pg_x", "1a", `a"b`, "x; drop schema y", "Shard"} {
		_, err := shard.NewPostgresCatalog(absent[0].DSN, shard.PostgresCatalogConfig{Schema: schema})
		require.Error(t, err)
	}
	cat := postgresCatalog(t, absent[0].DSN)
	_, err := cat.Load(t.Context())
	require.Error(t, err)
	require.NotContains(t, err.Error(), secret)
	err = cat.Wait(t.Context(), 0)
	require.Error(t, err)
	require.NotContains(t, err.Error(), secret)
}

func TestCatalogsOfOneDatabase(t *testing.T) {
	t.Parallel()
	dsn := testserver.Postgres(t)
	first := mapOnly(t, dsn, 8)
	second, err := shard.NewPostgresCatalog(dsn, shard.PostgresCatalogConfig{Schema: "second"})
	require.NoError(t, err)
	defer second.Close()
	_, err = second.Load(t.Context())
	require.ErrorIs(t, err, shard.ErrNoCatalog)
	require.Error(t, shard.Init(t.Context(), second, shard.InitConfig{Shards: 4, Nodes: absent[:1]}))
	require.Len(t, load(t, second).Shards, 4)
	before := load(t, first)
	require.NoError(t, second.Place(t.Context(), 1, 1, shard.Placement{Node: "a", State: shard.Moving}))
	require.Equal(t, before, load(t, first))
}

func TestCatalogOfAllShards(t *testing.T) {
	t.Parallel()
	cat := mapOnly(t, testserver.Postgres(t), shard.MaxShards)
	begin := time.Now()
	m := load(t, cat)
	t.Logf("loaded %d shards in %v", len(m.Shards), time.Since(begin))
	require.Len(t, m.Shards, shard.MaxShards)
	all := make([]int, shard.MaxShards)
	for i := range all {
		all[i] = i
	}
	begin = time.Now()
	require.NoError(t, cat.Migrated(t.Context(), all, 3))
	t.Logf("recorded their version in %v", time.Since(begin))
	m = load(t, cat)
	require.Equal(t, 3, m.Shards[8191].Schema)
	c := open(t, cat, shard.Config{})
	require.Equal(t, absent[8191%3].Name, c.Number(8191).Node())
}

// follows waits until a cluster sees a shard on a node.
func follows(t *testing.T, c *shard.Cluster, n int, node string, within time.Duration) {
	require.Eventually(t, func() bool { return c.Number(n).Node() == node }, within, time.Millisecond)
}

func TestClusterFollowsByHint(t *testing.T) {
	t.Parallel()
	dsn := testserver.Postgres(t)
	cat := mapOnly(t, dsn, 8)
	c := open(t, cat, shard.Config{Poll: time.Minute})
	conn, err := pgx.Connect(t.Context(), dsn)
	require.NoError(t, err)
	defer conn.Close(context.Background())
	listeners := func() (pids []int) {
		rows, err := conn.Query(t.Context(), `select pid from pg_stat_activity where pid <> pg_backend_pid()
			and datname = current_database() and query like 'select version from%' order by pid`)
		require.NoError(t, err)
		pids, err = pgx.CollectRows(rows, pgx.RowTo[int])
		require.NoError(t, err)
		return pids
	}
	epoch := int64(1)
	place := func(node string) {
		require.NoError(t, cat.Place(t.Context(), 5, epoch, shard.Placement{Node: node, State: shard.Serving}))
		begin := time.Now()
		epoch++
		follows(t, c, 5, node, 10*time.Second)
		t.Logf("followed after %v", time.Since(begin))
	}
	place("a")
	var kept []int
	require.Eventually(t, func() bool { kept = listeners(); return len(kept) == 1 }, 90*time.Second, time.Millisecond)
	for _, node := range []string{"b", "c", "a"} {
		place(node)
	}
	require.Equal(t, kept, listeners(), "the connection is kept between calls")

	// A change that nobody was told of, and then the loss of the connection on
	// which it would have been: the new one looks.
	execute(t, dsn, `update shardgram.catalog set version = version + 1;
		update shardgram.shard set node = 'b', epoch = epoch + 1 where number = 5`)
	epoch++
	execute(t, dsn, "select pg_terminate_backend($1)", kept[0])
	follows(t, c, 5, "b", 10*time.Second)
	place("c")
	require.NotEqual(t, kept, listeners())
}

func TestClusterFollowsByPollWhereHintsAreLost(t *testing.T) {
	t.Parallel()
	dsn := testserver.Postgres(t)
	c := open(t, mapOnly(t, dsn, 8), shard.Config{Poll: 100 * time.Millisecond})
	for i, node := range []string{"a", "b", "c"} {
		execute(t, dsn, `update shardgram.catalog set version = version + 1`)
		execute(t, dsn, `update shardgram.shard set node = $1, epoch = epoch + 1 where number = $2`, node, i)
		execute(t, dsn, `update shardgram.catalog set version = version + 1`)
		follows(t, c, i, node, 10*time.Second)
	}
}

// TestAMapThatCannotBeUsedIsNotReadAllTheTime is about a hint that stays true.
func TestAMapThatCannotBeUsedIsNotReadAllTheTime(t *testing.T) {
	t.Parallel()
	dsn := testserver.Postgres(t)
	cat := &counting{PostgresCatalog: mapOnly(t, dsn, 8)}
	c := open(t, cat, shard.Config{Poll: 100 * time.Millisecond})
	execute(t, dsn, `insert into shardgram.node (name, dsn) values ('d', 'port=no');
		update shardgram.catalog set version = version + 1; notify shardgram, '99'`)
	require.Eventually(t, func() bool { return cat.count() > 3 }, 10*time.Second, time.Millisecond)
	before, begin := cat.count(), time.Now()
	require.Eventually(t, func() bool { return time.Since(begin) > 300*time.Millisecond }, 10*time.Second, time.Millisecond)
	rate := float64(cat.count()-before) / time.Since(begin).Seconds()
	require.Less(t, rate, 30.0, "loads in a second, ten of which are polls")
	require.Error(t, c.Refresh(t.Context()))

	execute(t, dsn, `delete from shardgram.node where name = 'd';
		update shardgram.shard set node = 'c' where number = 0;
		update shardgram.catalog set version = version + 1`)
	follows(t, c, 0, "c", 10*time.Second)
}

// counting counts the loads of a catalog.
type counting struct {
	*shard.PostgresCatalog
	mu sync.Mutex
	n  int
}

func (c *counting) Load(ctx context.Context) (shard.Map, error) {
	c.mu.Lock()
	c.n++
	c.mu.Unlock()
	return c.PostgresCatalog.Load(ctx)
}

func (c *counting) count() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.n
}

func TestPlaceThatLosesItsConnection(t *testing.T) {
	t.Parallel()
	dsn := testserver.Postgres(t)
	cat := mapOnly(t, dsn, 8)
	execute(t, dsn, `
		create function die() returns trigger language plpgsql as $$ begin
			perform pg_terminate_backend(pg_backend_pid());
			return null;
		end $$;
		create constraint trigger at_commit after update on shardgram.shard
			deferrable initially deferred for each row when (new.number = 1) execute function die();
		create trigger before_commit after update on shardgram.shard
			for each row when (new.number = 2) execute function die();`)
	to := shard.Placement{Node: "c", State: shard.Serving}
	before := load(t, cat)
	err := cat.Place(t.Context(), 1, 1, to)
	require.ErrorIs(t, err, shard.ErrAmbiguous)
	require.ErrorContains(t, err, "place shard 1")
	err = cat.Place(t.Context(), 2, 1, to)
	require.Error(t, err)
	require.NotErrorIs(t, err, shard.ErrAmbiguous, "it was not committed, for certain")
	require.Equal(t, before, load(t, cat), "and neither was run again")
	require.NoError(t, cat.Place(t.Context(), 3, 1, to))
}

func TestClosedCatalog(t *testing.T) {
	t.Parallel()
	cat := mapOnly(t, testserver.Postgres(t), 8)
	v := load(t, cat).Version
	waits := make(chan error)
	go func() { waits <- cat.Wait(t.Context(), v) }()
	select {
	case err := <-waits:
		require.Fail(t, "it must wait", "%v", err)
	case <-time.After(50 * time.Millisecond):
	}
	closes := make(chan error)
	go func() { closes <- cat.Close() }()
	require.NoError(t, cat.Close())
	require.NoError(t, <-closes)
	require.ErrorContains(t, <-waits, "it was closed")
	_, err := cat.Load(t.Context())
	require.Error(t, err)
	require.Error(t, cat.Wait(t.Context(), v))
	require.Error(t, cat.Place(t.Context(), 0, 1, shard.Placement{Node: "a", State: shard.Serving}))
}

func TestADeadCatalogDoesNotStopServing(t *testing.T) {
	t.Parallel()
	host := testserver.Host(t)
	server, err := host.Postgres(t.Context(), "catalog", localserver.PostgresConfig{})
	require.NoError(t, err)
	cat := postgresCatalog(t, server.DSN("postgres"))
	nodes := []shard.Node{{Name: "a", DSN: testserver.Postgres(t)}, {Name: "b", DSN: testserver.Postgres(t)}}
	require.NoError(t, shard.Init(t.Context(), cat, shard.InitConfig{Shards: 4, Nodes: nodes}))
	c := open(t, cat, shard.Config{Poll: 200 * time.Millisecond})
	serves := func() {
		require.NoError(t, c.Each(t.Context(), c.Shards(), func(ctx context.Context, s shard.Shard) error {
			_, err := s.Exec(ctx, "select next_id()")
			return err
		}))
	}
	epoch := int64(1)
	changes := func(node string) {
		// The first attempt may meet a connection that died with the server.
		require.Eventually(t, func() bool {
			err := cat.Place(t.Context(), 0, epoch, shard.Placement{Node: node, State: shard.Moving})
			if errors.Is(err, shard.ErrConflict) {
				return c.Refresh(t.Context()) == nil && c.Number(0).Node() == node
			}
			return err == nil
		}, 20*time.Second, 10*time.Millisecond)
		epoch++
		follows(t, c, 0, node, 20*time.Second)
	}
	changes("a")

	require.NoError(t, server.Kill())
	for range 5 {
		serves()
		err := c.Refresh(t.Context())
		require.ErrorContains(t, err, "shard: load the catalog: ")
		require.NotContains(t, err.Error(), "dbname=")
	}
	require.Error(t, cat.Wait(t.Context(), 1<<40))
	require.Error(t, cat.Place(t.Context(), 0, epoch, shard.Placement{Node: "a", State: shard.Serving}))
	require.NoError(t, server.Restart(t.Context()))
	changes("a")

	require.NoError(t, server.Pause())
	serves()
	for name, call := range map[string]func(context.Context) error{
		"Refresh": c.Refresh,
		"Wait":    func(ctx context.Context) error { return cat.Wait(ctx, 1<<40) },
		"Place": func(ctx context.Context) error {
			return cat.Place(ctx, 0, 99, shard.Placement{Node: "a", State: shard.Serving})
		},
	} {
		ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
		begin := time.Now()
		require.ErrorIs(t, call(ctx), context.DeadlineExceeded, name)
		require.Less(t, time.Since(begin), 3*time.Second, name)
		cancel()
	}
	serves()
	require.NoError(t, server.Resume())
	changes("a")

	load(t, cat)
	require.NoError(t, server.Restart(t.Context()))
	load(t, cat) // over connections that have died since
	changes("a")
}

func TestCatalogGoesToTheHostThatTakesWrites(t *testing.T) {
	t.Parallel()
	host := testserver.Host(t)
	primary, err := host.Postgres(t.Context(), "primary", localserver.PostgresConfig{})
	require.NoError(t, err)
	mapOnly(t, primary.DSN("postgres"), 8)
	replica, err := host.PostgresReplica(t.Context(), "replica", primary)
	require.NoError(t, err)
	cat := postgresCatalog(t, fmt.Sprintf("postgres://postgres@%s,%s/postgres?sslmode=disable", replica.Addr(), primary.Addr()))
	c := open(t, cat, shard.Config{Poll: time.Second})
	to := shard.Placement{Node: "c", State: shard.Serving}
	require.NoError(t, cat.Place(t.Context(), 0, 1, to))
	follows(t, c, 0, "c", 10*time.Second)

	single := postgresCatalog(t, replica.DSN("postgres"))
	require.Eventually(t, func() bool {
		m, err := single.Load(t.Context())
		return err == nil && m.Version == c.Map().Version
	}, 20*time.Second, 10*time.Millisecond)
	require.NoError(t, primary.Kill())
	require.Error(t, cat.Place(t.Context(), 1, 1, to))
	require.NoError(t, replica.Promote(t.Context()))
	require.Eventually(t, func() bool { return cat.Place(t.Context(), 1, 1, to) == nil }, 20*time.Second, 10*time.Millisecond)
	follows(t, c, 1, "c", 20*time.Second)
}

func TestNothingPrintsADSN(t *testing.T) {
	t.Parallel()
	for _, cat := range []shard.Catalog{shard.Static(8, absent...), mapOnly(t, testserver.Postgres(t), 8)} {
		self := any(cat)
		if _, ok := cat.(*shard.PostgresCatalog); ok { // has a DSN too
			self = postgresCatalog(t, absent[0].DSN)
		}
		m := load(t, cat)
		require.Contains(t, m.Nodes[0].DSN, secret)
		c := open(t, cat, shard.Config{})
		var printed strings.Builder
		for _, v := range []any{m, &m, m.Nodes, m.Nodes[0], &m.Nodes[0], cat, self, c.Map()} {
			text, err := json.Marshal(v)
			require.NoError(t, err)
			fmt.Fprintf(&printed, "%v %+v %#v %s %s\n", v, v, v, v, text)
		}
		fmt.Fprintf(&printed, "%v %+v %s %v %+v %s", c, c, c, c.Number(0), c.Number(0), c.Number(0))
		_, err := c.Number(0).Exec(t.Context(), "select 1")
		require.Error(t, err)
		fmt.Fprintf(&printed, "%v %+v\n", err, err)
		require.NotContains(t, printed.String(), secret)
		require.Contains(t, printed.String(), `"name":"a"`)
	}
}
