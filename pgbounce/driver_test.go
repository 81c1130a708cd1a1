package pgbounce_test

import (
	"bytes"
	"context"
	"database/sql"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"
	_ "github.com/jackc/pgx/v5/stdlib"
	"github.com/shardgram/shardgram/internal/testserver"
	"github.com/shardgram/shardgram/pgbounce"
	"github.com/stretchr/testify/require"
	"golang.org/x/sync/errgroup"
)

// What the programs of this file share: 8 clients on 2 servers.
const (
	driverClients = 8
	driverRounds  = 30
)

var driverConfig = pgbounce.Config{PoolSize: 2, MaxPreparedStatements: 5, QueryWaitNotify: -1}

// behind returns the address of a new database with the table post, behind a
// Bouncer and its own.
func behind(t *testing.T) (through, direct string, b *pgbounce.Bouncer) {
	t.Helper()
	direct = testserver.Postgres(t)
	cfg, err := pgx.ParseConfig(direct)
	require.NoError(t, err)
	conn, err := pgx.ConnectConfig(t.Context(), cfg)
	require.NoError(t, err)
	_, err = conn.Exec(t.Context(), "create table post (id bigserial primary key, who text not null, n int)")
	require.NoError(t, err)
	require.NoError(t, conn.Close(t.Context()))
	b, addr := bounce(t, net.JoinHostPort(cfg.Host, fmt.Sprint(cfg.Port)), driverConfig)
	u, err := url.Parse(direct)
	require.NoError(t, err)
	u.Host = addr
	return u.String(), direct, b
}

// together runs what each client does, with a nonce of its own.
func together(t *testing.T, client func(ctx context.Context, who string) error) {
	t.Helper()
	group, ctx := errgroup.WithContext(t.Context())
	for i := range driverClients {
		group.Go(func() error {
			who := fmt.Sprint("client ", i)
			if err := client(ctx, who); err != nil {
				return fmt.Errorf("%s: %w", who, err)
			}
			return nil
		})
	}
	require.NoError(t, group.Wait())
}

// Every way in which pgx sends a query, the default among them, over TCP and
// in memory.
func TestPgx(t *testing.T) {
	t.Parallel()
	through, _, b := behind(t)
	modes := []pgx.QueryExecMode{
		pgx.QueryExecModeCacheStatement, pgx.QueryExecModeCacheDescribe, pgx.QueryExecModeDescribeExec,
		pgx.QueryExecModeExec, pgx.QueryExecModeSimpleProtocol,
	}
	for _, mode := range modes {
		for _, way := range []string{"TCP", "InMemory"} {
			t.Run(mode.String()+"/"+way, func(t *testing.T) {
				t.Parallel()
				together(t, func(ctx context.Context, who string) error {
					cfg, err := pgx.ParseConfig(through)
					if err != nil {
						return err
					}
					cfg.DefaultQueryExecMode = mode
					if way == "InMemory" {
						cfg.DialFunc = b.Dial
					}
					conn, err := pgx.ConnectConfig(ctx, cfg)
					if err != nil {
						return err
					}
					defer conn.Close(context.WithoutCancel(ctx))
					for round := range driverRounds {
						if err := pgxRound(ctx, conn, who, round); err != nil {
							return fmt.Errorf("round %d: %w", round, err)
						}
					}
					return nil
				})
			})
		}
	}
}

// pgxRound asks for the client's own rows in each way that pgx has.
func pgxRound(ctx context.Context, conn *pgx.Conn, who string, round int) error {
	var got string
	var n int
	// Texts that clients have in common, and texts of their own.
	for _, sql := range []string{
		"select $1::text, $2::int",
		fmt.Sprintf("select '%s' where $1 <> '' and $2 >= 0", who),
	} {
		err := conn.QueryRow(ctx, sql, who, round).Scan(&got, &n)
		if strings.Contains(sql, "where") {
			err = conn.QueryRow(ctx, sql, who, round).Scan(&got)
		}
		if err != nil || got != who {
			return fmt.Errorf("got %q: %w", got, err)
		}
	}
	_, err := conn.Exec(ctx, "select 1 / ($1::int - $1::int)", round)
	if e, ok := errors.AsType[*pgconn.PgError](err); !ok || e.Code != "22012" {
		return fmt.Errorf("division by zero gave: %w", err)
	}
	var batch pgx.Batch
	for i := range 7 {
		batch.Queue(fmt.Sprintf("select $1::text, $2::int + %d", i), who, round)
	}
	results := conn.SendBatch(ctx, &batch)
	for i := range 7 {
		if err := results.QueryRow().Scan(&got, &n); err != nil || got != who || n != round+i {
			return errors.Join(fmt.Errorf("batch gave %q, %d: %w", got, n, err), results.Close())
		}
	}
	if err := results.Close(); err != nil {
		return fmt.Errorf("batch: %w", err)
	}
	return pgx.BeginFunc(ctx, conn, func(tx pgx.Tx) error {
		for range 2 {
			if err := tx.QueryRow(ctx, "insert into post (who, n) values ($1, $2) returning who", who, round).Scan(&got); err != nil || got != who {
				return fmt.Errorf("insert gave %q: %w", got, err)
			}
		}
		_, err := tx.CopyFrom(ctx, pgx.Identifier{"post"}, []string{"who", "n"}, pgx.CopyFromRows([][]any{{who, round}}))
		if err != nil {
			return fmt.Errorf("copy: %w", err)
		}
		err = tx.QueryRow(ctx, "select count(*) from post where who = $1 and n = $2 and xmin = pg_current_xact_id()::xid", who, round).Scan(&n)
		if err != nil || n != 3 {
			return fmt.Errorf("%d of 3 rows: %w", n, err)
		}
		return nil
	})
}

func TestPgxPipeline(t *testing.T) {
	t.Parallel()
	through, _, _ := behind(t)
	together(t, func(ctx context.Context, who string) error {
		conn, err := pgconn.Connect(ctx, through)
		if err != nil {
			return err
		}
		defer conn.Close(context.WithoutCancel(ctx))
		for range driverRounds {
			if err := pipeline(ctx, conn, who); err != nil {
				return err
			}
		}
		return nil
	})
}

// pipeline has four batches in flight: two fine, one that fails, one behind.
func pipeline(ctx context.Context, conn *pgconn.PgConn, who string) error {
	p := conn.StartPipeline(ctx)
	p.SendPrepare("own", "select '"+who+"' || $1", nil)
	p.SendQueryPrepared("own", [][]byte{[]byte("!")}, nil, nil)
	p.SendPipelineSync()
	p.SendQueryPrepared("own", [][]byte{[]byte("?")}, nil, nil)
	p.SendQueryParams("select $1::text || '+'", [][]byte{[]byte(who)}, nil, nil, nil)
	p.SendPipelineSync()
	p.SendQueryParams("select 1 / $1::int", [][]byte{[]byte("0")}, nil, nil, nil)
	p.SendQueryPrepared("own", [][]byte{[]byte("never")}, nil, nil)
	p.SendPipelineSync()
	p.SendDeallocate("own")
	p.SendQueryParams("select $1::text || '.'", [][]byte{[]byte(who)}, nil, nil, nil)
	p.SendPipelineSync()
	if err := p.Flush(); err != nil {
		return errors.Join(err, p.Close())
	}
	var said []string
	for syncs := 0; syncs < 4; {
		result, err := p.GetResults()
		if err != nil {
			e, ok := errors.AsType[*pgconn.PgError](err)
			if !ok {
				return errors.Join(err, p.Close())
			}
			said = append(said, e.Code)
			continue
		}
		switch r := result.(type) {
		case *pgconn.ResultReader:
			read := r.Read()
			if read.Err != nil {
				if e, ok := errors.AsType[*pgconn.PgError](read.Err); ok {
					said = append(said, e.Code)
					continue
				}
				return errors.Join(read.Err, p.Close())
			}
			said = append(said, string(read.Rows[0][0]))
		case *pgconn.StatementDescription:
			said = append(said, "prepared")
		case *pgconn.CloseComplete:
			said = append(said, "closed")
		case *pgconn.PipelineSync:
			syncs++
			said = append(said, "sync")
		}
	}
	if err := p.Close(); err != nil {
		return err
	}
	want := fmt.Sprintf("prepared, %s!, sync, %[1]s?, %[1]s+, sync, 22012, sync, closed, %[1]s., sync", who)
	if got := strings.Join(said, ", "); got != want {
		return fmt.Errorf("said %s, want %s", got, want)
	}
	return nil
}

func TestPgxPool(t *testing.T) {
	t.Parallel()
	through, _, b := behind(t)
	cfg, err := pgxpool.ParseConfig(through)
	require.NoError(t, err)
	cfg.MaxConns = driverClients
	cfg.ConnConfig.DialFunc = b.Dial
	pool, err := pgxpool.NewWithConfig(t.Context(), cfg)
	require.NoError(t, err)
	defer pool.Close()
	together(t, func(ctx context.Context, who string) error {
		for round := range driverRounds {
			err := pool.AcquireFunc(ctx, func(c *pgxpool.Conn) error { return pgxRound(ctx, c.Conn(), who, round) })
			if err != nil {
				return err
			}
		}
		return nil
	})
}

// A query that its context ends costs pgx the connection, and nobody else
// anything.
func TestPgxCancel(t *testing.T) {
	t.Parallel()
	through, _, _ := behind(t)
	together(t, func(ctx context.Context, who string) error {
		for range 5 {
			conn, err := pgx.Connect(ctx, through)
			if err != nil {
				return err
			}
			short, stop := context.WithTimeout(ctx, 20*time.Millisecond)
			_, err = conn.Exec(short, "select pg_sleep(60)")
			stop()
			conn.Close(context.WithoutCancel(ctx))
			if !errors.Is(err, context.DeadlineExceeded) {
				return fmt.Errorf("a query cut short gave: %w", err)
			}
			conn, err = pgx.Connect(ctx, through)
			if err != nil {
				return err
			}
			var got string
			err = conn.QueryRow(ctx, "select $1::text", who).Scan(&got)
			conn.Close(context.WithoutCancel(ctx))
			if err != nil || got != who {
				return fmt.Errorf("got %q: %w", got, err)
			}
		}
		return nil
	})
}

func TestDatabaseSQL(t *testing.T) {
	t.Parallel()
	through, _, _ := behind(t)
	db, err := sql.Open("pgx", through)
	require.NoError(t, err)
	defer db.Close()
	db.SetMaxOpenConns(driverClients)
	together(t, func(ctx context.Context, who string) error {
		own, err := db.PrepareContext(ctx, "select '"+who+"' || $1")
		if err != nil {
			return err
		}
		defer own.Close()
		for range driverRounds {
			var got, more string
			if err := own.QueryRowContext(ctx, "!").Scan(&got); err != nil || got != who+"!" {
				return fmt.Errorf("prepared gave %q: %w", got, err)
			}
			if err := db.QueryRowContext(ctx, "select $1::text", who).Scan(&got); err != nil || got != who {
				return fmt.Errorf("query gave %q: %w", got, err)
			}
			tx, err := db.BeginTx(ctx, nil)
			if err != nil {
				return err
			}
			err = errors.Join(
				tx.QueryRowContext(ctx, "insert into post (who) values ($1) returning who", who).Scan(&got),
				tx.StmtContext(ctx, own).QueryRowContext(ctx, "?").Scan(&more),
				tx.Rollback())
			if err != nil || got != who || more != who+"?" {
				return fmt.Errorf("transaction gave %q and %q: %w", got, more, err)
			}
		}
		return nil
	})
}

// command runs a program and returns what it printed.
func command(ctx context.Context, stdin, name string, args ...string) (string, error) {
	ctx, stop := context.WithTimeout(ctx, time.Minute)
	defer stop()
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Stdin = strings.NewReader(stdin)
	cmd.Env = append(os.Environ(), "PGOPTIONS=", "PGAPPNAME=")
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := cmd.Run(); err != nil {
		return out.String(), fmt.Errorf("%s: %w\n%s", name, err, out.String())
	}
	return out.String(), nil
}

// program skips the test where a program is not installed; in CI it must be.
func program(t *testing.T, name string) string {
	t.Helper()
	path, err := exec.LookPath(name)
	if err != nil && os.Getenv("CI") != "" {
		t.Fatal(err)
	}
	if err != nil {
		t.Skip(err)
	}
	return path
}

func TestPsql(t *testing.T) {
	t.Parallel()
	psql := program(t, "psql")
	through, direct, _ := behind(t)
	dir := t.TempDir()
	together(t, func(ctx context.Context, who string) error {
		file := filepath.Join(dir, strings.ReplaceAll(who, " ", "_"))
		if err := os.WriteFile(file, []byte(strings.Repeat(who+"\t7\n", 1000)), 0o600); err != nil {
			return err
		}
		script := fmt.Sprintf(`
			\d post
			select '%[1]s', repeat('x', 10);
			begin;
			\copy post (who, n) from '%[2]s'
			select who, count(*), sum(n) from post where who = '%[1]s' group by who;
			\copy (select who, n from post where who = '%[1]s') to '%[2]s.out'
			rollback;
			select '%[1]s' as who \gset
			select :'who' as "again" \gx
			select 1 / 0;
			\dt
			\l postgres
			`, who, file)
		var said [2]string
		for i, dsn := range []string{direct, through} {
			for range 3 {
				var err error
				if said[i], err = command(ctx, script, psql, "-X", "-d", dsn); err != nil {
					return err
				}
				copied, err := os.ReadFile(file + ".out")
				if err != nil || len(copied) != 1000*len(who+"\t7\n") {
					return fmt.Errorf("%d bytes copied: %w", len(copied), err)
				}
			}
			one, err := command(ctx, "", psql, "-X", "-A", "-t", "-d", dsn, "-c", "select 'one "+who+"'", "-c", "show server_version_num")
			if err != nil {
				return err
			}
			said[i] += one
		}
		if said[0] != said[1] || !strings.Contains(said[1], who) {
			return fmt.Errorf("directly psql said\n%s\nand through pgbounce\n%s", said[0], said[1])
		}
		return nil
	})
}

func TestPgbench(t *testing.T) {
	t.Parallel()
	pgbench := program(t, "pgbench")
	through, direct, _ := behind(t)
	_, err := command(t.Context(), "", pgbench, "-i", "-q", "-n", direct)
	require.NoError(t, err)
	// Each client has a thread: pgbench waits for the answer to a Parse, and if
	// its only thread did so for a client without a server, it could not go on
	// with those that have one.
	for _, mode := range []string{"simple", "extended", "prepared"} {
		for _, script := range []string{"tpcb-like", "select-only"} {
			t.Run(mode+"/"+script, func(t *testing.T) {
				out, err := command(t.Context(), "", pgbench, "-n", "-M", mode, "-b", script,
					"-c", fmt.Sprint(driverClients), "-j", fmt.Sprint(driverClients), "-t", "50", through)
				require.NoError(t, err)
				require.Contains(t, out, "actually processed: 400/400")
				require.Contains(t, out, "failed transactions: 0 ")
			})
		}
	}
	// The balances add up only if each transaction was run once, whole.
	conn, err := pgx.Connect(t.Context(), direct)
	require.NoError(t, err)
	defer conn.Close(t.Context())
	var fits bool
	const sums = `select (select count(*) from pgbench_history) = 3 * 400
		and (select sum(abalance) from pgbench_accounts) = (select sum(delta) from pgbench_history)
		and (select sum(bbalance) from pgbench_branches) = (select sum(delta) from pgbench_history)`
	require.NoError(t, conn.QueryRow(t.Context(), sums).Scan(&fits))
	require.True(t, fits)
}

// node-postgres sends its messages in other batches than pgx.
func TestNodePostgres(t *testing.T) {
	t.Parallel()
	node, npm := program(t, "node"), program(t, "npm")
	dir := t.TempDir()
	require.NoError(t, os.CopyFS(dir, os.DirFS("testdata/node")))
	ctx, stop := context.WithTimeout(t.Context(), 2*time.Minute)
	defer stop()
	install := exec.CommandContext(ctx, npm, "ci", "--no-audit", "--no-fund", "--ignore-scripts")
	install.Dir = dir
	if out, err := install.CombinedOutput(); err != nil {
		if os.Getenv("CI") == "" {
			t.Skipf("npm ci: %v\n%s", err, out) // most likely there is no network
		}
		t.Fatalf("npm ci: %v\n%s", err, out)
	}
	_, err := os.Stat(filepath.Join(dir, "node_modules", "pg"))
	require.NotErrorIs(t, err, fs.ErrNotExist)
	through, _, _ := behind(t)
	out, err := command(t.Context(), "", node, filepath.Join(dir, "shared.js"), through, fmt.Sprint(driverClients), fmt.Sprint(driverRounds))
	require.NoError(t, err)
	require.Equal(t, "done\n", out)
}
