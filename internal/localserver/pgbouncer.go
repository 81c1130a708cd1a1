package localserver

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/jackc/pgx/v5/pgconn"
)

// PgBouncerConfig says where a PgBouncer leads and how it shares connections.
type PgBouncerConfig struct {
	// Of is the server to which every database is forwarded. Required.
	Of *Postgres

	// PoolMode is how long a client keeps a connection to the server:
	// "session", "transaction" or "statement".
	// Default: "transaction".
	PoolMode string

	// PoolSize is how many connections to the server a database has at most.
	// Default: 20.
	PoolSize int

	// Settings are lines of the section [pgbouncer], such as
	// "max_client_conn": "500". Addresses, the log, authentication and what
	// has a field above cannot be set.
	// Default: none, which leaves PgBouncer's own, except that a server that
	// was down is tried again every second instead of every 15.
	Settings map[string]string
}

// A PgBouncer is a PgBouncer in front of a PostgreSQL server. It asks for no
// password and takes every user for the role postgres. Its Stop waits for
// open transactions, and in session mode for clients; Kill does not. It is
// safe for concurrent use.
type PgBouncer struct {
	Server
}

// PgBouncer starts a PgBouncer and returns once a query has come through it,
// for which the server behind it must run. So does a Restart.
func (h *Host) PgBouncer(ctx context.Context, name string, cfg PgBouncerConfig) (*PgBouncer, error) {
	cfg.PoolMode = cmp.Or(cfg.PoolMode, "transaction")
	cfg.PoolSize = cmp.Or(cfg.PoolSize, 20)
	if err := cfg.check(); err != nil {
		return nil, fmt.Errorf("localserver: start pgbouncer %s: %w", name, err)
	}
	b := &PgBouncer{}
	b.configure = func() error { return b.writeINI(cfg) }
	b.args = func() []string { return []string{b.iniPath()} }
	b.ping = b.pingThrough
	setUp := func(context.Context) error { return nil } // it keeps nothing on disk
	if err := h.add(ctx, &b.Server, KindPgBouncer, name, setUp); err != nil {
		return nil, err
	}
	return b, nil
}

func (c PgBouncerConfig) check() error {
	switch {
	case c.Of == nil:
		return errors.New("no Of to forward to")
	case !slices.Contains([]string{"session", "transaction", "statement"}, c.PoolMode):
		return fmt.Errorf("unknown PoolMode: %q", c.PoolMode)
	case c.PoolSize < 0:
		return fmt.Errorf("negative PoolSize: %d", c.PoolSize)
	}
	return nil
}

// DSN returns the address of a database behind the PgBouncer for pgx, or with
// "pgbouncer" that of its console, which knows only the simple protocol.
// Unless PoolMode is "session", a client must not keep prepared statements:
// the next transaction may run on a connection that has not got them.
func (b *PgBouncer) DSN(database string) string {
	u := url.URL{
		Scheme: "postgres", User: url.User("postgres"), Host: b.Addr(),
		Path: "/" + database, RawQuery: "sslmode=disable",
	}
	return u.String()
}

func (b *PgBouncer) iniPath() string { return filepath.Join(b.dir, "pgbouncer.ini") }

func (b *PgBouncer) writeINI(cfg PgBouncerConfig) error {
	settings := map[string]string{
		"ignore_startup_parameters": "extra_float_digits", // drivers in Java send it
		"server_login_retry":        "1",
	}
	maps.Copy(settings, cfg.Settings)
	maps.Copy(settings, map[string]string{
		"listen_addr":       "127.0.0.1",
		"listen_port":       strconv.Itoa(b.Port()),
		"unix_socket_dir":   "",
		"logfile":           "",    // our log is its standard error
		"auth_type":         "any", // needs no file of users, and the console is open to all
		"pool_mode":         cfg.PoolMode,
		"default_pool_size": strconv.Itoa(cfg.PoolSize),
	})
	var text strings.Builder
	fmt.Fprintf(&text, "[databases]\n* = %s\n[pgbouncer]\n", cfg.Of.conninfo())
	for _, key := range slices.Sorted(maps.Keys(settings)) {
		fmt.Fprintln(&text, key, "=", settings[key])
	}
	if err := os.WriteFile(b.iniPath(), []byte(text.String()), 0o600); err != nil {
		return err
	}
	return b.account.own(b.iniPath())
}

// pingThrough asks the console for its file, because another PgBouncer may
// have taken the port, and then sends a query through to the server.
func (b *PgBouncer) pingThrough(ctx context.Context, _ int) error {
	config, err := b.simpleQuery(ctx, "pgbouncer", "show config")
	if err != nil {
		return err
	}
	ours := func(row [][]byte) bool { return string(row[0]) == "conffile" && string(row[1]) == b.iniPath() }
	if !slices.ContainsFunc(config, ours) {
		return fmt.Errorf("%s is the PgBouncer of another folder", b.Addr())
	}
	_, err = b.simpleQuery(ctx, "postgres", "select 1")
	return err
}

// simpleQuery returns the rows of a query in the simple protocol.
func (b *PgBouncer) simpleQuery(ctx context.Context, database, sql string) ([][][]byte, error) {
	c, err := pgconn.Connect(ctx, b.DSN(database))
	if err != nil {
		return nil, err
	}
	results, err := c.Exec(ctx, sql).ReadAll()
	if err = errors.Join(err, c.Close(context.WithoutCancel(ctx))); err != nil {
		return nil, err
	}
	return results[0].Rows, nil
}
