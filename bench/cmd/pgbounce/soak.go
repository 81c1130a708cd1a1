package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/shardgram/shardgram/internal/localserver"

	"github.com/shardgram/shardgram/bench/internal/proof"
)

// soakINI has a process share its port with its successor, and pass on cancel
// requests that were meant for the other one.
const soakINI = `[databases]
* = host=127.0.0.1 port=%d user=postgres
[pgbouncer]
listen_addr = 127.0.0.1
listen_port = %d
so_reuseport = 1
unix_socket_dir = %s
logfile =
auth_type = any
pool_mode = transaction
default_pool_size = 20
max_client_conn = 1000
log_connections = 0
log_disconnections = 0
`

// peering is for all but PgBouncer 1.18, which cannot.
const peering = `peer_id = %d
[peers]
1 = host=%s
2 = host=%s
`

// lifetime is how long a client keeps its connection, with half of that added at
// most, and leaving how long a process of the pooler may take until its last
// client has gone.
const (
	lifetime = 5 * time.Second
	leaving  = time.Minute
)

// rolling are the processes of a pooler, of which one follows the other.
type rolling struct {
	cfg        config
	postgres   int
	port       int
	dirs       [2]string
	now        *pooler
	generation int

	replaced int
	longest  time.Duration // from being asked to go to the end
	memory   int64         // the most of a process
	files    int           // too
}

// start starts the next process, while the last one may still run.
func (r *rolling) start(ctx context.Context) (*pooler, error) {
	at := r.generation % 2
	r.generation++
	text := fmt.Sprintf(soakINI, r.postgres, r.port, r.dirs[at])
	if r.cfg.ours {
		text += fmt.Sprintf(peering, at+1, r.dirs[0], r.dirs[1])
	}
	// At the common port the other process might answer.
	own := filepath.Join(r.dirs[at], ".s.PGSQL."+strconv.Itoa(r.port))
	return startPooler(ctx, r.cfg.candidate, r.dirs[at], text, "unix", own)
}

// replace starts a process, asks the one before to go when its clients have gone,
// and waits for that.
func (r *rolling) replace(ctx context.Context) error {
	r.look()
	last := r.now
	next, err := r.start(ctx)
	if err != nil {
		return err
	}
	r.now = next
	begin := time.Now()
	last.cmd.Process.Signal(syscall.SIGTERM)
	ctx, cancel := context.WithTimeout(ctx, leaving)
	defer cancel()
	select {
	case <-last.ended:
	case <-ctx.Done():
		last.stop()
		return fmt.Errorf("its clients have not left: %w", last.trouble(ctx.Err()))
	}
	r.replaced++
	r.longest = max(r.longest, time.Since(begin))
	if !last.cmd.ProcessState.Success() {
		return last.trouble(fmt.Errorf("ended: %s", last.cmd.ProcessState))
	}
	return nil
}

// look notes what the process has grown to.
func (r *rolling) look() {
	if rss, err := r.now.rss(); err == nil {
		r.memory = max(r.memory, rss)
	}
	if files, err := os.ReadDir(r.now.proc("fd")); err == nil {
		r.files = max(r.files, len(files))
	}
}

// soak uses a pooler under rolling restarts and says what came of it.
func soak(ctx context.Context, cfg config, stdout io.Writer, p *proof.Progress) (err error) {
	defer p.Clear()
	host, err := localserver.Open(localserver.Config{Fast: true})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, host.Close()) }()
	if err := cfg.build(ctx, host, p); err != nil {
		return err
	}
	pg, err := host.Postgres(ctx, "postgres", localserver.PostgresConfig{})
	if err != nil {
		return err
	}
	c, err := pgx.Connect(ctx, pg.DSN("postgres"))
	if err != nil {
		return err
	}
	defer c.Close(context.WithoutCancel(ctx))
	if _, err := c.Exec(ctx, soakTables); err != nil {
		return err
	}

	r := &rolling{cfg: cfg, postgres: pg.Port()}
	if r.port, err = freePort(); err != nil {
		return err
	}
	for i := range r.dirs {
		r.dirs[i] = filepath.Join(host.Dir(), fmt.Sprintf("pooler-%d", i+1))
		if err := errors.Join(os.Mkdir(r.dirs[i], 0o755), os.Chmod(r.dirs[i], 0o777)); err != nil {
			return err // the pooler makes its socket there, as another user if we are root
		}
	}
	if r.now, err = r.start(ctx); err != nil {
		return err
	}
	defer func() { r.now.stop() }()

	u, err := newUsers(ctx, r.port, cfg.ours)
	if err != nil {
		return err
	}
	p.Title("soak")
	failed := u.during(ctx, func(ctx context.Context) error {
		return r.roll(ctx, cfg.soak, u.done.Load, p)
	})
	p.Clear()
	u.write(stdout)
	fmt.Fprintf(stdout, "%d restarts, the longest took %.1f s; at most %.1f MB and %d open files\n",
		r.replaced, r.longest.Seconds(), float64(r.memory)/1e6, r.files)
	if failed == nil {
		failed = check(ctx, c)
	}
	return errors.Join(failed, u.trouble())
}

// roll replaces the pooler until the time is over.
func (r *rolling) roll(ctx context.Context, long time.Duration, done func() int64, p *proof.Progress) error {
	p.Start("restarts")
	begin := time.Now()
	due := begin.Add(r.cfg.every)
	tick := time.NewTicker(200 * time.Millisecond)
	defer tick.Stop()
	for time.Since(begin) < long {
		select {
		case <-tick.C:
		case <-r.now.ended:
			return r.now.trouble(fmt.Errorf("the pooler ended: %s", r.now.cmd.ProcessState))
		case <-ctx.Done():
			return ctx.Err()
		}
		r.look()
		p.Title(fmt.Sprintf("soak, %s jobs, %d restarts", proof.Count(done()), r.replaced))
		p.At(int64(time.Since(begin).Seconds()), int64(long.Seconds()))
		if time.Now().After(due) {
			if err := r.replace(ctx); err != nil {
				return fmt.Errorf("restart %d: %w", r.generation-1, err)
			}
			due = time.Now().Add(r.cfg.every)
		}
	}
	return nil
}

// recovering is how long the transactions of clients that were lost may stay open.
const recovering = 15 * time.Second

// check looks at what clients have left in the database.
func check(ctx context.Context, c *pgx.Conn) error {
	var total, open int
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for begin := time.Now(); ; <-tick.C {
		err := c.QueryRow(ctx, `select (select sum(balance) from account),
			(select count(*) from pg_stat_activity where pid <> pg_backend_pid() and xact_start is not null
				and backend_type = 'client backend')`).Scan(&total, &open)
		switch {
		case err != nil:
			return err
		case open > 0 && time.Since(begin) < recovering:
			continue
		case open > 0:
			return fmt.Errorf("%d transactions are still open", open)
		case total != 0:
			return fmt.Errorf("the accounts have %d, not 0: a transaction was torn, or a lost client's was committed", total)
		}
		return nil
	}
}

func (u *users) write(w io.Writer) {
	var words []string
	for i, j := range u.jobs {
		words = append(words, fmt.Sprintf("%s %s", proof.Count(u.tallies[i].Load()), j.name))
	}
	fmt.Fprintf(w, "%s jobs in %d ways: %s\n", proof.Count(u.done.Load()), len(u.pools), strings.Join(words, ", "))
}
