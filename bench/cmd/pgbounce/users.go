package main

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	mathrand "math/rand/v2"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"
	"golang.org/x/sync/errgroup"
)

const soakTables = `
	create table account (id int primary key, balance bigint not null);
	insert into account select id, 0 from generate_series(1, 1000) id;
	create table copied (nonce text, n int)`

// users are programs that use a pooler all the time.
type users struct {
	pools   []*pgxpool.Pool // one for each way in which pgx sends queries
	jobs    []job
	tallies []atomic.Int64 // of each job, how often it was done
	done    atomic.Int64   // in all

	mu     sync.Mutex
	errors map[string]int // what no client should have seen, and how often
}

// A job does something through a pooler and checks what comes back. An error that
// it has caused itself it does not return.
type job struct {
	name   string
	weight int
	do     func(context.Context, *pgxpool.Pool) error
}

// newUsers makes users of a port. PgBouncer 1.18 gets no prepared statements, and
// no cancel requests either, which it cannot pass on to another process.
func newUsers(ctx context.Context, port int, all bool) (*users, error) {
	u := &users{errors: map[string]int{}}
	u.jobs = []job{
		{"echo", 60, echo},
		{"transfer", 15, transfer},
		{"failure", 5, failure},
		{"batch", 5, batch},
		{"copy", 3, copyIn},
		{"large", 3, large},
		{"parameter", 3, parameter},
		{"vanish", 2, vanish},
	}
	modes := []pgx.QueryExecMode{pgx.QueryExecModeSimpleProtocol, pgx.QueryExecModeExec}
	if all {
		u.jobs = append(u.jobs, job{"cancel", 3, cancel})
		modes = append(modes, pgx.QueryExecModeCacheStatement, pgx.QueryExecModeDescribeExec)
	}
	u.tallies = make([]atomic.Int64, len(u.jobs))
	for _, mode := range modes {
		cfg, err := pgxpool.ParseConfig(dsn(port))
		if err != nil {
			return nil, err
		}
		cfg.MaxConns = usersOfAPool
		cfg.MaxConnLifetime, cfg.MaxConnLifetimeJitter = lifetime, lifetime/2
		cfg.HealthCheckPeriod = time.Second
		cfg.ConnConfig.DefaultQueryExecMode = mode
		cfg.ConnConfig.RuntimeParams["timezone"] = "UTC"
		pool, err := pgxpool.NewWithConfig(ctx, cfg)
		if err != nil {
			return nil, err
		}
		u.pools = append(u.pools, pool)
	}
	return u, nil
}

// usersOfAPool is how many goroutines share a pool of as many connections.
const usersOfAPool = 12

// during runs the users while something else happens, and returns its error.
func (u *users) during(ctx context.Context, run func(context.Context) error) error {
	stop := make(chan struct{})
	g, ctx := errgroup.WithContext(ctx)
	for _, pool := range u.pools {
		for range usersOfAPool {
			g.Go(func() error {
				for {
					select {
					case <-stop:
						return nil
					case <-ctx.Done():
						return nil
					default:
						u.use(ctx, pool)
					}
				}
			})
		}
	}
	g.Go(func() error {
		defer close(stop)
		return run(ctx)
	})
	err := g.Wait()
	for _, pool := range u.pools {
		pool.Close()
	}
	return err
}

// use does one job, which has half a minute for it.
func (u *users) use(ctx context.Context, pool *pgxpool.Pool) {
	i := u.pick()
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	err := u.jobs[i].do(ctx, pool)
	u.done.Add(1)
	u.tallies[i].Add(1)
	if err == nil || errors.Is(ctx.Err(), context.Canceled) {
		return
	}
	u.mu.Lock()
	defer u.mu.Unlock()
	u.errors[u.jobs[i].name+": "+err.Error()]++
}

func (u *users) pick() int {
	var all int
	for _, j := range u.jobs {
		all += j.weight
	}
	at := mathrand.IntN(all)
	for i, j := range u.jobs {
		if at -= j.weight; at < 0 {
			return i
		}
	}
	panic("bug: weights")
}

// trouble returns the errors that were seen.
func (u *users) trouble() error {
	u.mu.Lock()
	defer u.mu.Unlock()
	if len(u.errors) == 0 {
		return nil
	}
	var text strings.Builder
	var all, shown int
	for what, n := range u.errors {
		all += n
		if shown++; shown <= 20 {
			fmt.Fprintf(&text, "\n%6d × %s", n, what)
		}
	}
	return fmt.Errorf("%d jobs failed, in %d ways:%s", all, len(u.errors), text.String())
}

// wrong says that an answer was not what was asked for.
func wrong(got, want any) error { return fmt.Errorf("wrong answer: got %v, want %v", got, want) }

// code tells whether an error is one of PostgreSQL's with this SQLSTATE.
func code(err error, state string) bool {
	pgErr, ok := errors.AsType[*pgconn.PgError](err)
	return ok && pgErr.Code == state
}

// echo asks for a text that only this job knows, and for a session's parameter
// that others change in theirs.
func echo(ctx context.Context, pool *pgxpool.Pool) error {
	nonce := rand.Text()
	var got, zone string
	if err := pool.QueryRow(ctx, "select $1::text, current_setting('TimeZone')", nonce).Scan(&got, &zone); err != nil {
		return err
	}
	if got != nonce || zone != "UTC" {
		return wrong(got+" "+zone, nonce+" UTC")
	}
	return nil
}

// transfer moves an amount between two accounts and takes it back at times, so
// that the sum of all stays 0.
func transfer(ctx context.Context, pool *pgxpool.Pool) error {
	tx, err := pool.Begin(ctx)
	if err != nil {
		return err
	}
	defer tx.Rollback(ctx)
	a, b := 1+mathrand.IntN(500), 501+mathrand.IntN(500) // in this order, so that none wait for each other
	for _, move := range [][2]int{{a, 7}, {b, -7}} {
		if _, err := tx.Exec(ctx, "update account set balance = balance + $2 where id = $1", move[0], move[1]); err != nil {
			return err
		}
	}
	if mathrand.IntN(3) == 0 {
		return tx.Rollback(ctx)
	}
	return tx.Commit(ctx)
}

// failure has a transaction fail.
func failure(ctx context.Context, pool *pgxpool.Pool) error {
	tx, err := pool.Begin(ctx)
	if err != nil {
		return err
	}
	defer tx.Rollback(ctx)
	var n int
	if err := tx.QueryRow(ctx, "select 1 / $1::int", 0).Scan(&n); !code(err, "22012") {
		return wrong(err, "a division by zero")
	}
	if err := tx.QueryRow(ctx, "select 1").Scan(&n); !code(err, "25P02") {
		return wrong(err, "a failed transaction")
	}
	return tx.Rollback(ctx)
}

// batch sends many queries at once.
func batch(ctx context.Context, pool *pgxpool.Pool) error {
	b := &pgx.Batch{}
	nonce := rand.Text()
	for i := range 20 {
		b.Queue("select $1::text, $2::int", nonce, i).QueryRow(func(row pgx.Row) error {
			var got string
			var n int
			if err := row.Scan(&got, &n); err != nil {
				return err
			}
			if got != nonce || n != i {
				return wrong(fmt.Sprint(got, n), fmt.Sprint(nonce, i))
			}
			return nil
		})
	}
	return pool.SendBatch(ctx, b).Close()
}

// copyIn copies rows to a table and counts them there.
func copyIn(ctx context.Context, pool *pgxpool.Pool) error {
	tx, err := pool.Begin(ctx)
	if err != nil {
		return err
	}
	defer tx.Rollback(ctx)
	nonce, n := rand.Text(), 1+mathrand.IntN(1000)
	_, err = tx.CopyFrom(ctx, pgx.Identifier{"copied"}, []string{"nonce", "n"},
		pgx.CopyFromSlice(n, func(i int) ([]any, error) { return []any{nonce, i}, nil }))
	if err != nil {
		return err
	}
	var got int
	if err := tx.QueryRow(ctx, "select count(*) from copied where nonce = $1", nonce).Scan(&got); err != nil {
		return err
	}
	if got != n {
		return wrong(got, n)
	}
	return tx.Rollback(ctx)
}

// large sends and gets up to a megabyte.
func large(ctx context.Context, pool *pgxpool.Pool) error {
	text := strings.Repeat(rand.Text(), 1+mathrand.IntN(40_000))
	var got string
	if err := pool.QueryRow(ctx, "select $1::text", text).Scan(&got); err != nil {
		return err
	}
	if got != text {
		return wrong(len(got), len(text))
	}
	return nil
}

// parameter changes a parameter of its session and finds it changed there.
func parameter(ctx context.Context, pool *pgxpool.Pool) error {
	c, err := pool.Acquire(ctx)
	if err != nil {
		return err
	}
	defer c.Release()
	for _, zone := range []string{"Asia/Tokyo", "Europe/Berlin", "UTC"} {
		var got string
		if _, err := c.Exec(ctx, "set timezone to '"+zone+"'"); err != nil {
			return closing(ctx, c, err)
		}
		if err := c.QueryRow(ctx, "select current_setting('TimeZone')").Scan(&got); err != nil {
			return closing(ctx, c, err)
		}
		if got != zone {
			return closing(ctx, c, wrong(got, zone))
		}
	}
	return nil
}

// closing closes a connection that must not be used again.
func closing(ctx context.Context, c *pgxpool.Conn, err error) error {
	return errors.Join(err, c.Conn().Close(ctx))
}

// vanish loses its connection in the middle of a query of a transaction, which
// must not be committed then.
func vanish(ctx context.Context, pool *pgxpool.Pool) error {
	c, err := pool.Acquire(ctx)
	if err != nil {
		return err
	}
	raw := c.Hijack().PgConn()
	id := 1 + mathrand.IntN(1000)
	_, err = raw.Exec(ctx, fmt.Sprintf("begin; update account set balance = balance + 1000000 where id = %d", id)).ReadAll()
	if err != nil {
		return errors.Join(err, raw.Close(ctx))
	}
	raw.Exec(ctx, "select pg_sleep(5)") // the answer is not read
	return raw.Conn().Close()
}

// cancel cancels a query that would take long.
func cancel(ctx context.Context, pool *pgxpool.Pool) error {
	c, err := pool.Acquire(ctx)
	if err != nil {
		return err
	}
	defer c.Release()
	sent := make(chan error, 1)
	go func() {
		time.Sleep(time.Duration(100+mathrand.IntN(200)) * time.Millisecond)
		sent <- c.Conn().PgConn().CancelRequest(ctx)
	}()
	begin := time.Now()
	_, err = c.Exec(ctx, "select pg_sleep(20)")
	if err := <-sent; err != nil {
		return fmt.Errorf("cancel: %w", err)
	}
	if !code(err, "57014") {
		return wrong(err, "a cancelled query")
	}
	if time.Since(begin) > 10*time.Second {
		return errors.New("cancelled late")
	}
	return nil
}
