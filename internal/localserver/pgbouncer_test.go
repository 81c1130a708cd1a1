package localserver_test

import (
	"context"
	"net"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/shardgram/shardgram/internal/localserver"
	"github.com/shardgram/shardgram/internal/testserver"
	"github.com/stretchr/testify/require"
)

const backend = "select pg_backend_pid()::text"

// connectThrough connects to a database behind a PgBouncer.
func connectThrough(t *testing.T, b *localserver.PgBouncer, database string) *pgx.Conn {
	t.Helper()
	cfg, err := pgx.ParseConfig(b.DSN(database))
	require.NoError(t, err)
	cfg.DefaultQueryExecMode = pgx.QueryExecModeExec // keeps no prepared statements
	c, err := pgx.ConnectConfig(t.Context(), cfg)
	require.NoError(t, err)
	t.Cleanup(func() { c.Close(context.Background()) })
	return c
}

// console asks the PgBouncer itself and returns a column by the first one.
func console(t *testing.T, b *localserver.PgBouncer, show string, column int) map[string]string {
	t.Helper()
	c := connectThrough(t, b, "pgbouncer")
	results, err := c.PgConn().Exec(t.Context(), show).ReadAll()
	require.NoError(t, err)
	require.Len(t, results, 1)
	found := map[string]string{}
	for _, row := range results[0].Rows {
		found[string(row[0])] = string(row[column])
	}
	return found
}

func TestPgBouncer(t *testing.T) {
	t.Parallel()
	h := testserver.Host(t)
	p, err := h.Postgres(t.Context(), "db", localserver.PostgresConfig{})
	require.NoError(t, err)
	_, err = connect(t, p).Exec(t.Context(), "create database photos")
	require.NoError(t, err)
	b, err := h.PgBouncer(t.Context(), "pool", localserver.PgBouncerConfig{
		Of: p, Settings: map[string]string{"max_client_conn": "33"},
	})
	require.NoError(t, err)

	c := connectThrough(t, b, "photos")
	require.Equal(t, "photos postgres", queryText(t, c, "select current_database() || ' ' || current_user"))
	require.Equal(t, strconv.Itoa(p.Port()), queryText(t, c, "show port"))

	config := console(t, b, "show config", 1)
	require.Equal(t, "33", config["max_client_conn"])
	require.Equal(t, "transaction", config["pool_mode"])
	require.Equal(t, "20", config["default_pool_size"])
	require.Empty(t, config["unix_socket_dir"])
	// If it listened on all addresses, it would answer here too.
	_, err = net.Dial("tcp", net.JoinHostPort("127.0.0.2", strconv.Itoa(b.Port())))
	require.ErrorIs(t, err, syscall.ECONNREFUSED)
}

// In transaction mode a client has a server for one transaction, and finds it
// as its last user left it: what a program must be protected from.
func TestPgBouncerSharesServersAndTheirState(t *testing.T) {
	t.Parallel()
	h := testserver.Host(t)
	p, err := h.Postgres(t.Context(), "db", localserver.PostgresConfig{})
	require.NoError(t, err)
	b, err := h.PgBouncer(t.Context(), "pool", localserver.PgBouncerConfig{
		Of: p, PoolSize: 1, Settings: map[string]string{"query_wait_timeout": "20"}, // in seconds
	})
	require.NoError(t, err)

	one, two := connectThrough(t, b, "postgres"), connectThrough(t, b, "postgres")
	require.Equal(t, queryText(t, one, backend), queryText(t, two, backend))
	_, err = one.Exec(t.Context(), "set search_path = shard_7")
	require.NoError(t, err)
	require.Equal(t, "shard_7", queryText(t, two, "show search_path"))

	// What is set for one transaction does not leak. While that is open, the
	// other client waits for the server.
	tx, err := one.Begin(t.Context())
	require.NoError(t, err)
	_, err = tx.Exec(t.Context(), "set local search_path = shard_8")
	require.NoError(t, err)
	path := make(chan string, 1)
	go func() {
		var text string
		two.QueryRow(context.Background(), "show search_path").Scan(&text) // "" tells of an error
		path <- text
	}()
	eventually(t, func() bool { return console(t, b, "show pools", 3)["postgres"] == "1" }, "the other client waits")
	require.NoError(t, tx.Commit(t.Context()))
	require.Equal(t, "shard_7", <-path)
}

func TestPgBouncerSessionMode(t *testing.T) {
	t.Parallel()
	h := testserver.Host(t)
	p, err := h.Postgres(t.Context(), "db", localserver.PostgresConfig{})
	require.NoError(t, err)
	b, err := h.PgBouncer(t.Context(), "pool", localserver.PgBouncerConfig{Of: p, PoolMode: "session"})
	require.NoError(t, err)

	one, two := connectThrough(t, b, "postgres"), connectThrough(t, b, "postgres")
	require.NotEqual(t, queryText(t, one, backend), queryText(t, two, backend))
	_, err = one.Exec(t.Context(), "set search_path = shard_7")
	require.NoError(t, err)
	pid := queryText(t, one, backend)
	require.NoError(t, one.Close(t.Context()))
	three := connectThrough(t, b, "postgres")
	require.Equal(t, pid, queryText(t, three, backend))
	require.Equal(t, `"$user", public`, queryText(t, three, "show search_path"))
}

// Clients get errors while the server behind a PgBouncer is down, and soon no
// more when it is back.
func TestPgBouncerOutlivesItsServer(t *testing.T) {
	t.Parallel()
	h := testserver.Host(t)
	p, err := h.Postgres(t.Context(), "db", localserver.PostgresConfig{})
	require.NoError(t, err)
	b, err := h.PgBouncer(t.Context(), "pool", localserver.PgBouncerConfig{Of: p})
	require.NoError(t, err)
	c := connectThrough(t, b, "postgres")
	pid := queryText(t, c, backend)

	require.NoError(t, p.Kill())
	failed := func() bool {
		ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
		defer cancel()
		return c.Ping(ctx) != nil
	}
	eventually(t, failed, "the server is missed")
	require.NoError(t, p.Restart(t.Context()))
	begin := time.Now()
	eventually(t, func() bool { return pingDSN(t.Context(), b.DSN("postgres")) == nil }, "the server is found again")
	require.Less(t, time.Since(begin), 8*time.Second, "sooner than PgBouncer would by itself")
	require.NotEqual(t, pid, queryText(t, connectThrough(t, b, "postgres"), backend))
}

func TestPgBouncerIsReadyOnlyWithItsServer(t *testing.T) {
	t.Parallel()
	h := testserver.Host(t)
	p, err := h.Postgres(t.Context(), "db", localserver.PostgresConfig{})
	require.NoError(t, err)
	require.NoError(t, p.Stop(t.Context()))
	ctx, cancel := context.WithTimeout(t.Context(), time.Second)
	defer cancel()
	_, err = h.PgBouncer(ctx, "pool", localserver.PgBouncerConfig{Of: p})
	require.ErrorIs(t, err, context.DeadlineExceeded)
	require.ErrorContains(t, err, "localserver: start pgbouncer pool: not ready: ")
	require.ErrorContains(t, err, "connect failed", "the end of its log")
	require.Equal(t, []*localserver.Server{&p.Server}, h.Servers())
}

func TestPgBouncerStopLetsATransactionEnd(t *testing.T) {
	t.Parallel()
	h := testserver.Host(t)
	p, err := h.Postgres(t.Context(), "db", localserver.PostgresConfig{})
	require.NoError(t, err)
	b, err := h.PgBouncer(t.Context(), "pool", localserver.PgBouncerConfig{Of: p})
	require.NoError(t, err)
	tx, err := connectThrough(t, b, "postgres").Begin(t.Context())
	require.NoError(t, err)
	_, err = tx.Exec(t.Context(), "create table photo ()")
	require.NoError(t, err)

	begin := time.Now()
	stopped := make(chan error, 1)
	go func() { stopped <- b.Stop(context.Background()) }()
	eventually(t, func() bool { return strings.Contains(b.Log(), "shutting down") }, "it is asked to stop")
	require.NoError(t, tx.Commit(t.Context()))
	require.NoError(t, <-stopped)
	require.Less(t, time.Since(begin), 4*time.Second, "no SIGKILL")
	require.Equal(t, "0", queryText(t, connect(t, p), "select count(*)::text from photo"))
}
