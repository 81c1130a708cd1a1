//go:build unix

package main

import (
	"context"
	"fmt"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/shardgram/shardgram/idgen"
	"github.com/shardgram/shardgram/internal/localserver"
	"github.com/shardgram/shardgram/internal/testserver"
	"github.com/shardgram/shardgram/pgbounce"
	"github.com/shardgram/shardgram/shard"
	"github.com/stretchr/testify/require"
)

const shards = 8

// routedFolder has a catalog with two nodes, each a server of its own, and a
// command that routes by it. The table whoami of a node has its name.
func routedFolder(t *testing.T, lines ...string) (folder, *shard.PostgresCatalog, []shard.Node, *child) {
	t.Helper()
	host := testserver.Host(t)
	var list []shard.Node
	for _, name := range []string{"a", "b"} {
		pg, err := host.Postgres(t.Context(), name, localserver.PostgresConfig{})
		require.NoError(t, err)
		list = append(list, shard.Node{Name: name, DSN: pg.DSN("postgres")})
		name2node(t, pg.DSN("postgres"), name)
	}
	base := testserver.Postgres(t)
	name2node(t, base, "base")
	catalog, err := shard.NewPostgresCatalog(base, shard.PostgresCatalogConfig{})
	require.NoError(t, err)
	t.Cleanup(func() { _ = catalog.Close() })
	require.NoError(t, shard.Init(t.Context(), catalog, shard.InitConfig{Shards: shards, Nodes: list}))
	f := newFolder(t)
	// Clients are called postgres, which is who they log in as at the nodes.
	c := start(t, f.write(t, base, append(lines, "[pgbounce]", "shard_catalog = "+base)...))
	c.waitFor(t, up)
	return f, catalog, list, c
}

func name2node(t *testing.T, dsn, name string) {
	t.Helper()
	conn, err := pgx.Connect(t.Context(), dsn)
	require.NoError(t, err)
	defer conn.Close(context.Background())
	_, err = conn.Exec(t.Context(), "create table whoami (name text); insert into whoami values ('"+name+"')")
	require.NoError(t, err)
}

func (f folder) connectAs(t *testing.T, user string) *pgx.Conn {
	t.Helper()
	conn, err := pgx.Connect(t.Context(), strings.Replace(f.dsn(), "user=u", "user="+user, 1))
	require.NoError(t, err)
	t.Cleanup(func() { _ = conn.Close(context.Background()) })
	return conn
}

// whoami asks a node for its name, by a prepared statement and by a simple
// query.
func whoami(t *testing.T, conn *pgx.Conn) string {
	t.Helper()
	var prepared string
	require.NoError(t, conn.QueryRow(t.Context(), "select name from whoami where name <> $1", "none").Scan(&prepared))
	require.Equal(t, simply(t, conn), prepared)
	return prepared
}

func simply(t *testing.T, conn *pgx.Conn) (name string) {
	t.Helper()
	require.NoError(t, conn.QueryRow(t.Context(), "select name from whoami", pgx.QueryExecModeSimpleProtocol).Scan(&name))
	return name
}

func set(t *testing.T, conn *pgx.Conn, sql string) {
	t.Helper()
	_, err := conn.Exec(t.Context(), sql)
	require.NoError(t, err)
}

func TestTransactionsGoToTheirShard(t *testing.T) {
	t.Parallel()
	f, catalog, list, c := routedFolder(t)
	cluster, err := shard.Open(t.Context(), catalog, shard.Config{})
	require.NoError(t, err)
	defer cluster.Close()
	conn := f.connectAs(t, "postgres")
	require.Equal(t, "base", whoami(t, conn))
	for n := range shards {
		set(t, conn, fmt.Sprintf("set pgbounce.shard = '%d'", n))
		require.Equal(t, []string{"a", "b"}[n%2], whoami(t, conn), n)
	}
	set(t, conn, "reset pgbounce.shard")
	require.Equal(t, "base", whoami(t, conn))

	// Keys may be anything.
	for _, key := range []string{"alice", "bob", "o'neil", "a  b", " x", "写真", `say "cheese"`, "", "a=b", "k1", "k2"} {
		set(t, conn, "set pgbounce.shard to 'key:"+strings.ReplaceAll(key, "'", "''")+"'")
		require.Equal(t, cluster.Key(key).Node(), whoami(t, conn), key)
		prepared, err := conn.Prepare(t.Context(), "", "SET SESSION pgbounce.shard = 'key:"+strings.ReplaceAll(key, "'", "''")+"' ;")
		require.NoError(t, err)
		set(t, conn, "reset pgbounce.shard")
		_, err = conn.PgConn().ExecStatement(t.Context(), prepared, nil, nil, nil).Close()
		require.NoError(t, err)
		require.Equal(t, cluster.Key(key).Node(), whoami(t, conn), "prepared: %s", key)
	}
	for n := range shards {
		id, err := idgen.Default.Compose(time.Now(), n, 3)
		require.NoError(t, err)
		set(t, conn, fmt.Sprintf("set pgbounce.shard = 'id:%d'", id))
		require.Equal(t, cluster.ID(id).Node(), whoami(t, conn))
	}

	// A transaction stays where it began.
	set(t, conn, "set pgbounce.shard = '0'")
	tx, err := conn.Begin(t.Context())
	require.NoError(t, err)
	var name string
	set(t, conn, "set pgbounce.shard = '1'")
	require.NoError(t, tx.QueryRow(t.Context(), "select name from whoami").Scan(&name))
	require.Equal(t, "a", name)
	require.NoError(t, tx.Commit(t.Context()))
	require.Equal(t, "b", whoami(t, conn))

	// At startup, and by the names of the nodes.
	cfg, err := pgx.ParseConfig(strings.Replace(f.dsn(), "user=u", "user=postgres", 1))
	require.NoError(t, err)
	cfg.RuntimeParams["pgbounce.shard"] = "1"
	second, err := pgx.ConnectConfig(t.Context(), cfg)
	require.NoError(t, err)
	defer second.Close(context.Background())
	require.Equal(t, "b", whoami(t, second))
	require.NoError(t, second.Close(t.Context()))
	cfg.Database = "a"
	delete(cfg.RuntimeParams, "pgbounce.shard")
	second, err = pgx.ConnectConfig(t.Context(), cfg)
	require.NoError(t, err)
	defer second.Close(context.Background())
	require.Equal(t, "a", whoami(t, second))
	require.NoError(t, second.Close(t.Context()))

	// A shard that moves takes its clients along.
	set(t, conn, "set pgbounce.shard = '4'")
	require.Equal(t, "a", whoami(t, conn))
	require.NoError(t, catalog.Place(t.Context(), 4, 1, shard.Placement{Node: "b", State: shard.Serving}))
	eventually(t, func() bool { return simply(t, conn) == "b" })

	// So it does to a node that was not there at the beginning.
	third, err := testserver.Host(t).Postgres(t.Context(), "c", localserver.PostgresConfig{})
	require.NoError(t, err)
	name2node(t, third.DSN("postgres"), "c")
	list = append(list, shard.Node{Name: "c", DSN: third.DSN("postgres")})
	require.NoError(t, shard.Init(t.Context(), catalog, shard.InitConfig{Shards: shards, Nodes: list}))
	c.waitFor(t, "the catalog's nodes have changed")
	require.NoError(t, catalog.Place(t.Context(), 4, 2, shard.Placement{Node: "c", State: shard.Serving}))
	eventually(t, func() bool { return simply(t, conn) == "c" })
	set(t, conn, "set pgbounce.shard = '5'")
	require.Equal(t, "b", whoami(t, conn), "and no other")
}

func TestAnUnknownShardIsAnErrorAndTheConnectionGoesOn(t *testing.T) {
	t.Parallel()
	f, _, _, _ := routedFolder(t)
	conn := f.connectAs(t, "postgres")
	for value, want := range map[string]string{
		"8": "there is no such shard", "65535": "there is no such shard", "x": "want a number, key:NAME or id:NUMBER", "-1": "want a number",
		"id:0": "want an ID", "id:x": "want an ID", "70000": "want a number",
	} {
		set(t, conn, "set pgbounce.shard = '"+value+"'")
		_, err := conn.Exec(t.Context(), "select 1")
		var pg *pgconn.PgError
		require.ErrorAs(t, err, &pg, value)
		require.Equal(t, "ERROR", pg.Severity)
		require.Equal(t, "08004", pg.Code)
		require.Contains(t, pg.Message, want)
		err = conn.QueryRow(t.Context(), "select $1::int", 1).Scan(new(int))
		require.ErrorContains(t, err, want)
		require.False(t, conn.IsClosed())
		// By the extended protocol it gets out of this as well.
		_, err = conn.PgConn().ExecParams(t.Context(), "set pgbounce.shard = '1'", nil, nil, nil, nil).Close()
		require.NoError(t, err)
		require.Equal(t, "b", whoami(t, conn))
	}
}

// What [databases] says of a node is what counts.
func TestANodeCanBeConfigured(t *testing.T) {
	t.Parallel()
	other := testserver.Postgres(t)
	pg, err := pgx.ParseConfig(other)
	require.NoError(t, err)
	name2node(t, other, "instead of b")
	f, _, _, c := routedFolder(t, "[databases]", fmt.Sprintf("b = host=%s port=%d dbname=%s user=postgres", pg.Host, pg.Port, pg.Database))
	conn := f.connectAs(t, "postgres")
	set(t, conn, "set pgbounce.shard = '1'")
	require.Equal(t, "instead of b", whoami(t, conn))

	// The nodes outlive a reload.
	c.signal(t, syscall.SIGHUP)
	c.waitFor(t, "got SIGHUP")
	require.Eventually(t, func() bool { return strings.Contains(f.log(t), "reading the configuration again") }, 10*time.Second, time.Millisecond)
	set(t, conn, "set pgbounce.shard = '2'")
	require.Equal(t, "a", whoami(t, conn))
}

func TestRefusesACatalogThatIsNotThere(t *testing.T) {
	t.Parallel()
	f := newFolder(t)
	base := testserver.Postgres(t)
	c := start(t, f.write(t, base, "[pgbounce]", "shard_catalog = "+base))
	require.Equal(t, 1, c.ends(t))
	require.Contains(t, c.output.String(), "there is no catalog yet")
	c = start(t, f.write(t, base, "[pgbounce]", "shard_catalog = host=127.0.0.1 password=s3cret port=x"))
	require.Equal(t, 1, c.ends(t))
	require.Contains(t, c.output.String(), "shard_catalog: ")
	require.NotContains(t, c.output.String(), "s3cret")
}

func TestDatabasesOfNodes(t *testing.T) {
	t.Parallel()
	all, err := databases([]shard.Node{
		{Name: "one", DSN: "host=db1 port=5433 dbname=app user=u password=p sslmode=require"},
		{Name: "two", DSN: "postgres://u:p@db1:5433,db2,[::1]:5434/app?pool_max_conns=3"},
		{Name: "three", DSN: "host=/run/pg,/run/pg2 port=5435,5436 dbname=app"},
	})
	require.NoError(t, err)
	require.Equal(t, map[string]pgbounce.Database{
		"one":            {Hosts: []string{"db1:5433"}, Failover: true, Name: "app"},
		"two":            {Hosts: []string{"db1:5433", "db2:5432", "[::1]:5434"}, Failover: true, Name: "app"},
		"two.replicas":   {Hosts: []string{"db2:5432", "[::1]:5434"}, Name: "app"},
		"three":          {Hosts: []string{"/run/pg:5435", "/run/pg2:5436"}, Failover: true, Name: "app"},
		"three.replicas": {Hosts: []string{"/run/pg2:5436"}, Name: "app"},
	}, all)
	_, err = databases([]shard.Node{{Name: "one", DSN: "host=x password=s3cret port=y"}})
	require.EqualError(t, err, "node one: the DSN is not valid")
}

func TestReadOnlyTransactionsGoToReplicas(t *testing.T) {
	t.Parallel()
	host := testserver.Host(t)
	primary, err := host.Postgres(t.Context(), "primary", localserver.PostgresConfig{})
	require.NoError(t, err)
	replica, err := host.PostgresReplica(t.Context(), "replica", primary)
	require.NoError(t, err)
	of := func(p *localserver.Postgres) *pgx.ConnConfig {
		cfg, err := pgx.ParseConfig(p.DSN("postgres"))
		require.NoError(t, err)
		return cfg
	}
	dsn := fmt.Sprintf("host=%s,%s port=%d,%d dbname=postgres user=postgres sslmode=disable",
		of(primary).Host, of(replica).Host, of(primary).Port, of(replica).Port)
	base := testserver.Postgres(t)
	catalog, err := shard.NewPostgresCatalog(base, shard.PostgresCatalogConfig{})
	require.NoError(t, err)
	defer catalog.Close()
	require.NoError(t, shard.Init(t.Context(), catalog, shard.InitConfig{Shards: shards, Nodes: []shard.Node{{Name: "a", DSN: dsn}}}))
	f := newFolder(t)
	c := start(t, f.write(t, base, "[pgbounce]", "shard_catalog = "+base))
	c.waitFor(t, up)
	conn := f.connectAs(t, "postgres")
	standby := func() (is bool) {
		require.NoError(t, conn.QueryRow(t.Context(), "select pg_is_in_recovery()").Scan(&is))
		return is
	}
	set(t, conn, "set pgbounce.read_only = on")
	require.False(t, standby(), "without a shard it is the database's own affair")
	set(t, conn, "set pgbounce.shard = '3'")
	require.True(t, standby())
	set(t, conn, "set pgbounce.read_only = off")
	require.False(t, standby())

	// When the primary is lost, and the replica takes its place, it serves.
	require.NoError(t, primary.Kill())
	require.NoError(t, replica.Promote(t.Context()))
	eventually(t, func() bool {
		conn := f.connectAs(t, "postgres")
		_, err := conn.Exec(t.Context(), "set pgbounce.shard = '3'")
		require.NoError(t, err)
		_, err = conn.Exec(t.Context(), "create table if not exists t ()")
		return err == nil
	})
}
