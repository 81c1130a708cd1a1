package localserver

import (
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

	"github.com/jackc/pgx/v5"
)

// PostgresConfig says how a PostgreSQL server differs from our defaults.
type PostgresConfig struct {
	// Settings are server parameters, such as "max_connections": "50".
	// Default: none, which leaves settings for several small servers on one
	// machine: 32 MB of shared buffers, 200 connections, wal_level logical.
	Settings map[string]string
}

// A Postgres is a PostgreSQL server with the one role postgres, which needs
// no password. It is safe for concurrent use.
type Postgres struct {
	Server
	settings map[string]string
	primary  *Postgres // of a replica
}

// Postgres starts a PostgreSQL server. A folder from an earlier Host keeps its
// data, and needs a program of the major version that made it.
func (h *Host) Postgres(ctx context.Context, name string, cfg PostgresConfig) (*Postgres, error) {
	p := &Postgres{settings: cfg.Settings}
	return p.add(ctx, h, name, p.initDB)
}

// PostgresReplica starts a copy of a running server that follows it over
// streaming replication, through a slot of its own, and returns when it does.
func (h *Host) PostgresReplica(ctx context.Context, name string, of *Postgres) (*Postgres, error) {
	p := &Postgres{settings: of.settings, primary: of}
	p.follow = p.streaming
	return p.add(ctx, h, name, p.copyPrimary)
}

func (p *Postgres) add(ctx context.Context, h *Host, name string, fill func(context.Context) error) (*Postgres, error) {
	p.clean, p.args, p.ping = p.removeStalePID, p.commandLine, p.pingFolder
	setUp := func(ctx context.Context) error { return p.setUp(ctx, fill) }
	if err := h.add(ctx, &p.Server, KindPostgres, name, setUp); err != nil {
		return nil, err
	}
	return p, nil
}

// setUp makes the data folder, if there is none, with the help of fill.
func (p *Postgres) setUp(ctx context.Context, fill func(context.Context) error) error {
	data := p.dataDir()
	if version, err := os.ReadFile(filepath.Join(data, "PG_VERSION")); err == nil {
		return p.reuse(strings.TrimSpace(string(version)))
	}
	// Under another name until it is whole: we may be killed meanwhile.
	if err := os.RemoveAll(p.newDataDir()); err != nil {
		return err
	}
	if err := fill(ctx); err != nil {
		return err
	}
	return os.Rename(p.newDataDir(), data)
}

func (p *Postgres) newDataDir() string { return p.dataDir() + ".new" }

// reuse prepares a data folder from an earlier Host.
func (p *Postgres) reuse(version string) error {
	major, err := strconv.Atoi(version)
	if err != nil {
		return fmt.Errorf("%s holds data of unknown version %q", p.dir, version)
	}
	if p.binary, err = find(KindPostgres, major, p.host.cfg.Path); err != nil {
		return fmt.Errorf("%s holds data of version %d: %w", p.dir, major, err)
	}
	_, err = os.Stat(filepath.Join(p.dataDir(), "standby.signal"))
	switch isReplica := err == nil; {
	case isReplica && p.primary == nil:
		return errors.New("its folder holds a replica: start it with PostgresReplica")
	case !isReplica && p.primary != nil:
		return errors.New("its folder holds a primary: start it with Postgres")
	}
	return nil
}

// removeStalePID removes the postmaster.pid of a server that was killed.
// PostgreSQL ignores one whose process is gone, but not one whose number now
// belongs to another process of the same user.
func (p *Postgres) removeStalePID() error {
	path := filepath.Join(p.dataDir(), "postmaster.pid")
	text, err := os.ReadFile(path)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	pid, _, _ := strings.Cut(string(text), "\n")
	// A server that somebody else started here works in its data folder.
	if cwd, err := os.Readlink(filepath.Join("/proc", pid, "cwd")); err == nil && cwd == p.dataDir() {
		return fmt.Errorf("process %s already serves %s", pid, p.dataDir())
	}
	return os.Remove(path)
}

func (p *Postgres) initDB(ctx context.Context) error {
	args := []string{
		"-D", p.newDataDir(), "-U", "postgres", "-A", "trust",
		"-E", "UTF8", "--locale=C.UTF-8", "--no-instructions",
	}
	if p.host.cfg.Fast {
		args = append(args, "--no-sync", "--wal-segsize=1")
	}
	return p.runTool(ctx, p.tool("initdb"), args...)
}

func (p *Postgres) copyPrimary(ctx context.Context) error {
	const makeSlot = `select pg_create_physical_replication_slot($1, true)
		where not exists (select from pg_replication_slots where slot_name = $1)`
	if err := p.primary.exec(ctx, makeSlot, p.slot()); err != nil {
		return fmt.Errorf("make replication slot on %s: %w", p.primary.name, err)
	}
	args := []string{
		"-D", p.newDataDir(), "-d", p.primary.conninfo(), "-R", "-S", p.slot(),
		"--checkpoint=fast",
	}
	if p.host.cfg.Fast {
		args = append(args, "--no-sync")
	}
	return p.runTool(ctx, p.tool("pg_basebackup"), args...)
}

// tool returns the path of a program that comes with the server.
func (p *Postgres) tool(name string) string { return filepath.Join(filepath.Dir(p.binary), name) }

// slot names the replication slot; such names have no hyphen.
func (p *Postgres) slot() string { return strings.ReplaceAll(p.name, "-", "_") }

func (p *Postgres) conninfo() string {
	return fmt.Sprintf("host=127.0.0.1 port=%d user=postgres", p.Port())
}

func (p *Postgres) commandLine() []string {
	settings := map[string]string{
		"shared_buffers":      "32MB",
		"max_connections":     "200",
		"wal_level":           "logical", // shards move by logical replication
		"jit":                 "off",     // compiling costs more than it gains on small data
		"log_line_prefix":     "%m [%p] ",
		"log_checkpoints":     "off",
		"password_encryption": "scram-sha-256",
	}
	if p.host.cfg.Fast {
		// synchronous_commit stays on: without fsync it costs next to nothing,
		// and a commit then survives a killed server, as tests of faults expect.
		maps.Copy(settings, map[string]string{
			"fsync":              "off",
			"full_page_writes":   "off",
			"checkpoint_timeout": "30min",
			// In the data folder, so that a killed server leaves nothing elsewhere.
			"dynamic_shared_memory_type": "mmap",
		})
	}
	maps.Copy(settings, p.settings)
	maps.Copy(settings, map[string]string{
		"listen_addresses":        "127.0.0.1",
		"unix_socket_directories": "",
		"logging_collector":       "off", // our log is its standard error
	})
	if p.primary != nil {
		// The port of the primary may have changed since the copy was made.
		settings["primary_conninfo"] = p.primary.conninfo()
		settings["primary_slot_name"] = p.slot()
	}
	args := []string{"-D", p.dataDir(), "-p", strconv.Itoa(p.Port())}
	for _, key := range slices.Sorted(maps.Keys(settings)) {
		args = append(args, "-c", key+"="+settings[key])
	}
	return args
}

// DSN returns the address of a database of the server for pgx.
func (p *Postgres) DSN(database string) string {
	u := url.URL{
		Scheme: "postgres", User: url.User("postgres"), Host: p.Addr(),
		Path: "/" + database, RawQuery: "sslmode=disable",
	}
	return u.String()
}

// Promote makes a replica a primary and returns when it takes writes.
func (p *Postgres) Promote(ctx context.Context) error {
	var done bool
	err := p.queryRow(ctx, &done, "select pg_promote(true, 60)")
	if err == nil && !done {
		err = errors.New("not done within 60 s")
	}
	if err != nil {
		return fmt.Errorf("localserver: promote %s: %w", p.name, err)
	}
	return nil
}

// pingFolder asks the server for its folder rather than for 1: another server
// may have taken the port.
func (p *Postgres) pingFolder(ctx context.Context, _ int) error {
	var dir string
	if err := p.queryRow(ctx, &dir, "select current_setting('data_directory')"); err != nil {
		return err
	}
	if dir != p.dataDir() {
		return fmt.Errorf("%s is the server of another folder", p.Addr())
	}
	return nil
}

func (p *Postgres) streaming(ctx context.Context) error {
	var streaming bool
	err := p.queryRow(ctx, &streaming,
		"select exists (select from pg_stat_wal_receiver where status = 'streaming')")
	if err == nil && !streaming {
		err = fmt.Errorf("does not follow %s", p.primary.name)
	}
	return err
}

func (p *Postgres) exec(ctx context.Context, sql string, args ...any) error {
	return p.connected(ctx, func(c *pgx.Conn) error {
		_, err := c.Exec(ctx, sql, args...)
		return err
	})
}

func (p *Postgres) queryRow(ctx context.Context, to any, sql string) error {
	return p.connected(ctx, func(c *pgx.Conn) error { return c.QueryRow(ctx, sql).Scan(to) })
}

func (p *Postgres) connected(ctx context.Context, do func(*pgx.Conn) error) error {
	c, err := pgx.Connect(ctx, p.DSN("postgres"))
	if err != nil {
		return err
	}
	err = do(c)
	return errors.Join(err, c.Close(context.WithoutCancel(ctx)))
}
