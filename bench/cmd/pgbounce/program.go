package main

import (
	"context"
	"errors"
	"math/rand/v2"
	"slices"
	"syscall"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"
	"golang.org/x/sync/errgroup"
)

// programRow compares a Go program whose pgx goes through pgbounce within the
// process with one that goes through PgBouncer by TCP. The mode is the
// candidate's: PgBouncer 1.18 needs one without prepared statements.
func (s *scene) programRow(name string, goroutines int, cfg config, mode pgx.QueryExecMode) row {
	long := time.Duration(cfg.secs) * time.Second
	through := func(ctx context.Context, who string, mode pgx.QueryExecMode) (figures, error) {
		p := s.poolers[who]
		return program(ctx, p, p.port, nil, mode, goroutines, long)
	}
	return row{name: name, turns: []turn{
		{peer, func(ctx context.Context) (figures, error) { return through(ctx, peer, pgx.QueryExecModeExec) }},
		{candidate, func(ctx context.Context) (figures, error) {
			if !s.ours {
				return through(ctx, candidate, mode)
			}
			b, err := embed(s.pg.Port())
			if err != nil {
				return nil, err
			}
			found, err := program(ctx, nil, s.pg.Port(), b.Dial, mode, goroutines, long)
			return found, errors.Join(err, b.Close())
		}},
	}}
}

// dsn returns the address of the database for pgx.
func dsn(port int) string {
	return "postgres://postgres@" + local(port) + "/postgres?sslmode=disable"
}

// warming is how long a program runs before it is measured.
const warming = 300 * time.Millisecond

// program reads random accounts from several goroutines. The processor time is
// that of this process and of the pooler, if that is another one.
func program(ctx context.Context, p *pooler, port int, dial pgconn.DialFunc, mode pgx.QueryExecMode, goroutines int, long time.Duration) (figures, error) {
	cfg, err := pgxpool.ParseConfig(dsn(port))
	if err != nil {
		return nil, err
	}
	cfg.MaxConns = int32(goroutines)
	cfg.ConnConfig.DefaultQueryExecMode = mode
	if dial != nil {
		cfg.ConnConfig.DialFunc = dial
	}
	pool, err := pgxpool.NewWithConfig(ctx, cfg)
	if err != nil {
		return nil, err
	}
	defer pool.Close()

	from := time.Now().Add(warming)
	to := from.Add(long)
	latencies := make([][]float64, goroutines)
	g, ctx := errgroup.WithContext(ctx)
	for i := range goroutines {
		g.Go(func() error {
			for begin := time.Now(); begin.Before(to); {
				var balance int
				err := pool.QueryRow(ctx, "select abalance from pgbench_accounts where aid = $1", 1+rand.IntN(1_000_000)).Scan(&balance)
				if err != nil {
					return err
				}
				end := time.Now()
				if end.After(from) && !end.After(to) {
					latencies[i] = append(latencies[i], float64(end.Sub(begin).Nanoseconds())/1e3)
				}
				begin = end
			}
			return nil
		})
	}
	var before, after time.Duration
	g.Go(func() (err error) {
		if err := until(ctx, from); err != nil {
			return err
		}
		if before, err = processTime(p); err != nil {
			return err
		}
		if err := until(ctx, to); err != nil {
			return err
		}
		after, err = processTime(p)
		return err
	})
	if err := g.Wait(); err != nil {
		return nil, err
	}
	all := slices.Concat(latencies...)
	if len(all) == 0 {
		return nil, errors.New("no query in the window")
	}
	found := quantiles(all)
	found["tps"] = float64(len(all)) / long.Seconds()
	found["all_cpu_us"] = float64((after - before).Microseconds()) / float64(len(all))
	return found, nil
}

func until(ctx context.Context, at time.Time) error {
	t := time.NewTimer(time.Until(at))
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// processTime returns the processor time of this process and of a pooler.
func processTime(p *pooler) (time.Duration, error) {
	var use syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &use); err != nil {
		return 0, err
	}
	cpu, err := p.cpu()
	return cpu + time.Duration(use.Utime.Nano()+use.Stime.Nano()), err
}
