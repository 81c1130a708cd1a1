package pgbounce_test

import (
	"context"
	"fmt"
	"net"
	"strconv"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/shardgram/shardgram/internal/localserver"
	"github.com/shardgram/shardgram/internal/testserver"
	"github.com/shardgram/shardgram/pgbounce"
	"github.com/stretchr/testify/require"
)

// inProcess makes a Bouncer and returns how to connect to a database of it.
func inProcess(t *testing.T, cfg pgbounce.Config) (*pgbounce.Bouncer, func(database string) (*pgx.Conn, error)) {
	t.Helper()
	b, err := pgbounce.New(cfg)
	require.NoError(t, err)
	t.Cleanup(func() { _ = b.Close() })
	return b, func(database string) (*pgx.Conn, error) {
		c, err := pgx.ParseConfig("host=127.0.0.1 user=postgres sslmode=disable dbname=" + database)
		require.NoError(t, err)
		c.DialFunc = b.Dial
		conn, err := pgx.ConnectConfig(t.Context(), c)
		if err == nil {
			t.Cleanup(func() { _ = conn.Close(context.Background()) })
		}
		return conn, err
	}
}

// holdServers returns the ports that so many servers of a database are
// connected to.
func holdServers(t *testing.T, connect func(string) (*pgx.Conn, error), database string, n int) (ports []string) {
	t.Helper()
	for range n {
		conn, err := connect(database)
		require.NoError(t, err)
		tx, err := conn.Begin(t.Context())
		require.NoError(t, err)
		var port string
		require.NoError(t, tx.QueryRow(t.Context(), "select current_setting('port')").Scan(&port))
		ports = append(ports, port)
	}
	return ports
}

// refused is a port that nobody listens at.
func refused(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	require.NoError(t, l.Close())
	return l.Addr().String()
}

// silent is a port where connections are taken and nothing is said.
func silent(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	t.Cleanup(func() { _ = l.Close() })
	return l.Addr().String()
}

func TestHosts(t *testing.T) {
	t.Parallel()
	host := testserver.Host(t)
	first, err := host.Postgres(t.Context(), "first", localserver.PostgresConfig{})
	require.NoError(t, err)
	second, err := host.Postgres(t.Context(), "second", localserver.PostgresConfig{})
	require.NoError(t, err)
	one, two := strconv.Itoa(first.Port()), strconv.Itoa(second.Port())
	at := func(port string) string { return "127.0.0.1:" + port }
	setup, err := pgx.Connect(t.Context(), second.DSN("postgres"))
	require.NoError(t, err)
	_, err = setup.Exec(t.Context(), "create database alone")
	require.NoError(t, err)
	require.NoError(t, setup.Close(t.Context()))
	database := func(failover bool, hosts ...string) pgbounce.Database {
		return pgbounce.Database{Hosts: hosts, Failover: failover, Name: "postgres"}
	}
	b, connect := inProcess(t, pgbounce.Config{
		ServerConnectTimeout: 2 * time.Second,
		Databases: map[string]pgbounce.Database{
			"turns":        database(false, at(one), at(two)),
			"turnsRefused": database(false, refused(t), at(two), at(one)),
			"order":        database(true, at(one), at(two)),
			"orderRefused": database(true, refused(t), at(two), at(one)),
			"orderSilent":  database(true, silent(t), at(two), at(one)),
			"none":         database(true, refused(t), refused(t)),
			"alone":        {Hosts: []string{at(one), at(two)}, Failover: true},
			"port":         {Hosts: []string{"127.0.0.1"}, Port: second.Port(), Name: "postgres"},
		},
	})
	require.ElementsMatch(t, []string{one, two, one, two}, holdServers(t, connect, "turns", 4))
	ports := holdServers(t, connect, "turnsRefused", 6)
	require.Contains(t, ports, one)
	require.Contains(t, ports, two)
	require.Equal(t, []string{one, one, one}, holdServers(t, connect, "order", 3))
	require.Equal(t, []string{two, two, two}, holdServers(t, connect, "orderRefused", 3))
	require.Equal(t, []string{two}, holdServers(t, connect, "orderSilent", 1), "a third of the time is for the first")
	require.Equal(t, []string{two}, holdServers(t, connect, "port", 1))
	_, err = connect("none")
	require.ErrorContains(t, err, "server login has been failing")

	// One that says no has answered.
	_, err = connect("alone")
	require.ErrorContains(t, err, `database "alone" does not exist`)

	// When the first is lost, the next one serves, and back again.
	require.NoError(t, first.Kill())
	wait(t, func() bool {
		conn, err := connect("order")
		if err != nil {
			return false
		}
		var port string
		return conn.QueryRow(t.Context(), "select current_setting('port')").Scan(&port) == nil && port == two
	})
	require.NoError(t, first.Restart(t.Context()))
	require.NoError(t, b.Reconnect("order"))
	wait(t, func() bool {
		conn, err := connect("order")
		require.NoError(t, err)
		var port string
		return conn.QueryRow(t.Context(), "select current_setting('port')").Scan(&port) == nil && port == one
	})
}

// wait waits for a condition, on the goroutine of the test.
func wait(t *testing.T, is func() bool) {
	t.Helper()
	for end := time.Now().Add(20 * time.Second); !is(); time.Sleep(5 * time.Millisecond) {
		require.True(t, time.Now().Before(end), "it does not come")
	}
}

func postgresAt(t *testing.T) pgbounce.Database {
	t.Helper()
	cfg, err := pgx.ParseConfig(testserver.Postgres(t))
	require.NoError(t, err)
	return pgbounce.Database{Hosts: []string{cfg.Host}, Port: int(cfg.Port), Name: cfg.Database}
}

func TestDisablePQExec(t *testing.T) {
	t.Parallel()
	_, connect := inProcess(t, pgbounce.Config{DisablePQExec: true, Databases: map[string]pgbounce.Database{"db": postgresAt(t)}})
	conn, err := connect("db")
	require.NoError(t, err)
	var n int
	require.NoError(t, conn.QueryRow(t.Context(), "select $1::int", 7).Scan(&n), "the extended protocol is allowed")
	_, err = conn.PgConn().Exec(t.Context(), "select 1").ReadAll()
	var pg *pgconn.PgError
	require.ErrorAs(t, err, &pg)
	require.Equal(t, "FATAL", pg.Severity)
	require.Equal(t, "PQexec disallowed", pg.Message)
	require.True(t, conn.IsClosed())
}

// With a lifetime of 1 ns, which is PgBouncer's 0, each server is used once.
func TestServersOfNoLifetimeAreUsedOnce(t *testing.T) {
	t.Parallel()
	db := postgresAt(t)
	db.ConnectQuery = "select 1" // does not count as a use
	db.MinPoolSize, db.User = 2, "postgres"
	b, connect := inProcess(t, pgbounce.Config{ServerLifetime: 1, Databases: map[string]pgbounce.Database{"db": db}})
	conn, err := connect("db")
	require.NoError(t, err)
	seen := map[int]bool{}
	for range 5 {
		var pid int
		require.NoError(t, conn.QueryRow(t.Context(), "select pg_backend_pid()", pgx.QueryExecModeSimpleProtocol).Scan(&pid))
		require.False(t, seen[pid], "server %d was used before", pid)
		seen[pid] = true
	}
	// Those that were not used stay.
	wait(t, func() bool {
		pools := b.Stats().Pools
		return pools[0].ServersIdle >= 2 && pools[0].ServersLogin == 0 && pools[0].ServersActive == 0
	})
	direct, err := pgx.Connect(t.Context(), fmt.Sprintf("host=%s port=%d user=postgres sslmode=disable dbname=%s", db.Hosts[0], db.Port, db.Name))
	require.NoError(t, err)
	defer direct.Close(context.Background())
	backends := func() (pids []int32) {
		rows, err := direct.Query(t.Context(), "select pid from pg_stat_activity where datname = $1 and pid <> pg_backend_pid() order by pid", db.Name)
		require.NoError(t, err)
		pids, err = pgx.CollectRows(rows, pgx.RowTo[int32])
		require.NoError(t, err)
		return pids
	}
	before := backends()
	require.GreaterOrEqual(t, len(before), 2)
	<-time.After(time.Second) // three rounds of the janitor
	require.Equal(t, before, backends())
}

func TestDatabasesThatNobodyHasListedGo(t *testing.T) {
	t.Parallel()
	db := postgresAt(t)
	b, connect := inProcess(t, pgbounce.Config{
		AutoDatabaseTimeout: 500 * time.Millisecond, ServerIdleTimeout: time.Millisecond,
		Databases: map[string]pgbounce.Database{"*": db, "listed": db},
	})
	has := func(name string) bool {
		for _, d := range b.Stats().Databases {
			if d.Database == name {
				return true
			}
		}
		return false
	}
	kept, err := connect("kept")
	require.NoError(t, err)
	gone, err := connect("gone")
	require.NoError(t, err)
	_, err = gone.Exec(t.Context(), "select 1")
	require.NoError(t, err)
	require.NoError(t, b.Pause(t.Context(), "paused"))
	require.True(t, has("gone") && has("kept") && has("listed") && has("paused"))
	require.NoError(t, gone.Close(t.Context()))
	wait(t, func() bool { return !has("gone") })
	require.True(t, has("kept"), "it has a client")
	require.True(t, has("listed"))
	require.True(t, has("paused"), "it was told so")
	_, err = kept.Exec(t.Context(), "select 1")
	require.NoError(t, err)
	again, err := connect("gone")
	require.NoError(t, err)
	_, err = again.Exec(t.Context(), "select 1")
	require.NoError(t, err)
}
