package shard

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
)

var (
	// ErrNewer is returned by Migrate for a shard that has a later version
	// than the files: a newer program has migrated it.
	ErrNewer = errors.New("the schema was made by a newer version of the program")

	// ErrChanged is returned by Migrate when a file is not the one that was
	// applied: a migration must not be edited once it has run.
	ErrChanged = errors.New("the migration was changed after it was applied")

	// ErrMoving is returned by Migrate for a shard that is not [Serving]. Run it
	// again after the move.
	ErrMoving = errors.New("the shard is being moved")

	// ErrOwnType is returned by Migrate for a file that leaves an enum, a range or
	// a composite type in the shard's schema.
	ErrOwnType = errors.New("a type of the shard's own breaks statements that are prepared once for several shards: " +
		"use text with a check, a domain, or a type in a schema of Config.Path")
)

// MigrateConfig is what Migrate takes beside the files. The zero value works.
type MigrateConfig struct {
	// DryRun makes Migrate look at every shard and change nothing.
	DryRun bool

	// LockTimeout is how long a statement waits for a lock, as writers queue
	// behind it for that time. An autovacuum gives way only to those that wait
	// for longer than the server's deadlock_timeout, which is 1 s. Default: 200 ms.
	LockTimeout time.Duration

	// Patience is how long a shard whose lock could not be got is tried again,
	// each time from the start of its transaction. Default: 1 min.
	Patience time.Duration

	// Progress is told of every shard that is done, in one call at a time.
	// Default: none.
	Progress func(Progress)
}

func (cfg MigrateConfig) withDefaults() (MigrateConfig, error) {
	if cfg.LockTimeout < 0 || cfg.Patience < 0 {
		return cfg, fmt.Errorf("shard: MigrateConfig.LockTimeout is %v and Patience %v: want 0 or more", cfg.LockTimeout, cfg.Patience)
	}
	if cfg.LockTimeout == 0 {
		cfg.LockTimeout = 200 * time.Millisecond
	}
	if cfg.Patience == 0 {
		cfg.Patience = time.Minute
	}
	return cfg, nil
}

// A Report is what Migrate has done, or in a dry run would do.
type Report struct {
	Version int // of the files
	DryRun  bool
	Shards  []ShardReport // in the order of their numbers
}

// A ShardReport is what Migrate has done with a shard.
type ShardReport struct {
	From  int      // the version it had, 0 without a schema
	To    int      // the version it has now, or would have
	Files []string // that were applied, or would be
}

// String returns a line, and one more for each version that shards came from.
func (r Report) String() string {
	there := 0
	from := make(map[int]int)
	for _, s := range r.Shards {
		if s.To == r.Version {
			there++
		}
		if len(s.Files) > 0 {
			from[s.From]++
		}
	}
	text := fmt.Sprintf("version %d: %d of %d shards", r.Version, there, len(r.Shards))
	if r.DryRun {
		text = "dry run: " + text
	}
	told := make(map[int]bool)
	for _, s := range r.Shards {
		if n := from[s.From]; len(s.Files) > 0 && !told[s.From] {
			told[s.From] = true
			text += fmt.Sprintf("\n%d from version %d: %s", n, s.From, strings.Join(s.Files, ", "))
		}
	}
	return text
}

// Migrate brings every shard to the last version of a folder of SQL files, and
// creates the schemas that are missing. The files are named by a number from 1
// and a word, as 0001_users.sql and 0002_likes.sql; a file may hold several
// statements, without schema names.
//
// Before the first file each schema gets the functions of [idgen.SQL] for its
// shard, so that a column can take its IDs with "default next_id()".
//
// Each shard is brought up in one transaction of its own, so it has either all
// files or those it had. A file must not end the transaction, and cannot hold
// what PostgreSQL refuses within one, such as create index concurrently. Shards
// that failed are in the [Errors]; running Migrate again goes on with them,
// whatever ended the last run. Two programs may run it at the same time.
//
// No statement keeps writers waiting behind it for longer than LockTimeout. When
// it does not get its lock, the shard's transaction is rolled back and tried
// again later. Locks that it has got are held until the transaction ends, so
// give what takes long a file and a run of its own.
//
// A shard that is not [Serving] is refused with [ErrMoving], and a catalog that
// cannot be read is an error. In the end the versions are recorded in the
// catalog; that they could not be is an error too, and the next run does it.
//
// A shard that has all files costs one round trip, and one that has some to get
// eight, two for each file and a look at the catalog.
func (c *Cluster) Migrate(ctx context.Context, files fs.FS, cfg MigrateConfig) (Report, error) {
	list, err := readMigrations(files)
	if err != nil {
		return Report{}, err
	}
	if cfg, err = cfg.withDefaults(); err != nil {
		return Report{}, err
	}
	if err := c.Refresh(ctx); err != nil {
		return Report{}, err
	}
	r := Report{Version: len(list), DryRun: cfg.DryRun}
	for _, p := range c.Map().Shards {
		r.Shards = append(r.Shards, ShardReport{From: p.Schema, To: p.Schema})
	}
	err = c.each(ctx, c.Shards(), cfg.Progress, func(ctx context.Context, s Shard) error {
		return s.bringUp(ctx, list, cfg, &r.Shards[s.number])
	})
	if cfg.DryRun {
		return r, err
	}
	if recordErr := c.record(ctx, r); recordErr != nil {
		err = errors.Join(err, recordErr)
	}
	return r, err
}

// record tells the catalog of the versions that it does not have yet.
func (c *Cluster) record(ctx context.Context, r Report) error {
	news := make(map[int][]int) // shards by version
	for n, p := range c.Map().Shards {
		if to := r.Shards[n].To; to != p.Schema {
			news[to] = append(news[to], n)
		}
	}
	for version, shards := range news {
		if err := c.cat.Migrated(ctx, shards, version); err != nil {
			return fmt.Errorf("shard: record version %d of %d shards in the catalog: %w", version, len(shards), err)
		}
	}
	if len(news) == 0 {
		return nil
	}
	return c.Refresh(ctx)
}

// errPlace says that the shard lives elsewhere by now.
var errPlace = errors.New("the shard has moved")

// bringUp migrates a shard where it lives, and again while that may help.
func (s Shard) bringUp(ctx context.Context, list []migration, cfg MigrateConfig, r *ShardReport) error {
	deadline := time.Now().Add(cfg.Patience)
	for wait := cfg.LockTimeout; ; wait = min(2*wait, 2*time.Second) {
		p := s.place()
		err := s.bringUpOnce(ctx, p, list, cfg, time.Until(deadline), r)
		pg, _ := errors.AsType[*pgconn.PgError](err)
		switch {
		case err == nil:
			return nil
		case errors.Is(err, errPlace): // the map has the new place already
		case unsent(err) && ctx.Err() == nil || pg != nil && pg.Code == codeReadOnly && p.node.failsOver():
			// The server was restarted, or is no longer the primary.
			p.node.pool.Reset()
		case pg != nil && pg.Code == codeFenced:
			_ = s.cluster.Refresh(ctx) // will say that it is moving
		case pg != nil && (pg.Code == "55P03" || pg.Code == "40P01"): // no lock, deadlock
			err = fmt.Errorf("it could not get a lock: %w", err)
		default:
			return err
		}
		if wait := wait/2 + rand.N(wait); time.Until(deadline) > wait {
			timer := time.NewTimer(wait)
			select {
			case <-timer.C:
				continue
			case <-ctx.Done():
				timer.Stop()
			}
		}
		if ctx.Err() != nil {
			err = fmt.Errorf("%w: %w", ctx.Err(), err)
		}
		return err
	}
}

// bringUpOnce looks first without a lock, so that a shard that has all files is
// not disturbed.
func (s Shard) bringUpOnce(ctx context.Context, p place, list []migration, cfg MigrateConfig, patience time.Duration, r *ShardReport) error {
	if p.state != Serving {
		return fmt.Errorf("%w: it is %s", ErrMoving, p.state)
	}
	has, err := s.look(ctx, p)
	if err != nil {
		return err
	}
	r.From, r.To = has.version(), has.version()
	todo, err := has.todo(list)
	if err != nil {
		return err
	}
	next, err := s.nextID(has)
	if err != nil {
		return err
	}
	if len(todo) > 0 || next != nil {
		if cfg.DryRun {
			r.applied(todo)
			return nil
		}
		opts := pgx.TxOptions{IsoLevel: pgx.ReadCommitted}
		err = s.inTx(ctx, p, opts, func(tx pgx.Tx) error {
			if err := s.lock(ctx, tx, patience); err != nil {
				return err
			}
			// Whoever moves the shard says so in the catalog, and then waits for
			// this lock.
			if err := s.cluster.Refresh(ctx); err != nil {
				return err
			}
			switch now := s.place(); {
			case now.node != p.node:
				return errPlace
			case now.state != Serving:
				return fmt.Errorf("%w: it is %s", ErrMoving, now.state)
			}
			has, todo, err = s.apply(ctx, tx, list, cfg.LockTimeout)
			return err
		})
		if err != nil {
			return err
		}
		r.From = has.version()
		r.applied(todo)
	}
	return nil
}

func (r *ShardReport) applied(list []migration) {
	r.To, r.Files = r.From+len(list), nil
	for _, m := range list {
		r.Files = append(r.Files, m.name)
	}
}
