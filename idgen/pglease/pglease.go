// Package pglease keeps the leases of package idgen in a PostgreSQL table.
//
// Processes that make IDs need a shard number each, and a place that remembers
// how far the IDs of a number went. A process may be killed, stopped for an hour
// or cut off from the network, its clock may be wrong, and the next one must
// still repeat nothing. A lease that ends by the clock alone cannot give that.
//
// A row of the table is a number, and its mark is what keeps IDs from repeating:
//
//	name │ number │ layout            │ token    │ mark           │ expires_at
//	─────┼────────┼───────────────────┼──────────┼────────────────┼─────────────
//	ids  │      0 │ 41/13/10 since …  │ 130 bits │ the highest ID │ 30 s after
//	ids  │      1 │                   │ of one   │ that may have  │ the last
//	     │        │                   │ claim    │ been made      │ Extend
//
// # Guarantees
//
// A number has one holder who can extend: the newest. Extend is one UPDATE that
// compares the token and the mark that this holder wrote last, so one who has
// lost the number changes nothing and gets [idgen.ErrLeaseLost], however late it
// comes. Of a virtual machine and its clone, the one that extends second has
// lost. What Extend has stored is flushed to the disk of the server, and of its
// synchronous standbys, also where the default of synchronous_commit is off.
//
// The expiry is for liveness only: it tells [idgen.AnyShard] which numbers are
// free, by the clock of the database. A holder that is late may lose its number;
// no ID repeats.
//
// # Non-guarantees
//
// After a failover to an asynchronous standby, or a restore of a backup, marks
// are older than the IDs; an ID can repeat if the clock is not past them, which
// is [idgen.Config.Window] at most, or the step if the clock was set back. The DB
// must not be a transaction: Extend must have committed when it returns.
//
// # Cost
//
// Claim of a number, Extend and Release are one statement and one round trip
// each (a pool adds a ping when its connection was idle for a second). So is Claim of AnyShard, and one more for each time that another claim
// was faster at a number that nobody has used yet. A row is about 110 bytes.
// AnyShard looks at the rows in use while none is free, which takes milliseconds
// of the server's time when 8,000 are held (BenchmarkClaimAnyShard). The
// statements leave nothing behind in a session, so they work through PgBouncer in
// transaction mode.
//
// # Failure
//
// While PostgreSQL is away, methods return its error, or ctx's when that ends.
// An Extend whose answer was lost may have been done; the next one, with one
// more round trip, finds out. A Claim whose answer was lost keeps its number
// from AnyShard for [Config.TTL], and has taken it from its holder.
//
// The token and the mark are the fencing token of "How to do distributed
// locking", Martin Kleppmann, 2016.
package pglease

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/shardgram/shardgram/idgen"
)

// A DB runs statements, each in a transaction of its own: a *pgxpool.Pool. A
// *pgx.Conn is one too, for one lease; a context that ends during a call closes
// it, and the lease cannot be extended any more.
type DB interface {
	Exec(ctx context.Context, sql string, args ...any) (pgconn.CommandTag, error)
	QueryRow(ctx context.Context, sql string, args ...any) pgx.Row
}

// Config says where the leases are. The zero value works.
type Config struct {
	// Name tells the numbers of several independent kinds of IDs in one table
	// apart. Default: "ids".
	Name string

	// Table is the table's name, which may be qualified by a schema. Default:
	// "idgen_lease".
	Table string

	// TTL is how long a holder that does not extend keeps its number from
	// claims of AnyShard: some times idgen.Config.Window, of which a third lies
	// between two Extends. It is no matter of safety. Default: 30 s; at least
	// 1 s.
	TTL time.Duration
}

// A Store keeps leases in a table. It is safe for concurrent use if its DB is.
type Store struct {
	db   DB
	name string
	ttl  float64 // seconds
	sql  statements
}

var _ idgen.Leases = (*Store)(nil)

// New returns a store of leases. It does not ask the database.
func New(db DB, cfg Config) (*Store, error) {
	if db == nil {
		return nil, errors.New("pglease: DB is nil")
	}
	if _, ok := db.(pgx.Tx); ok {
		return nil, errors.New("pglease: DB is a transaction, whose rollback would forget marks: want a pool")
	}
	if cfg.Name == "" {
		cfg.Name = "ids"
	}
	if cfg.Table == "" {
		cfg.Table = "idgen_lease"
	}
	table := pgx.Identifier(strings.Split(cfg.Table, "."))
	for _, part := range table {
		if part == "" || len(table) > 2 {
			return nil, fmt.Errorf("pglease: Config.Table is %q: want a name, or a schema and a name", cfg.Table)
		}
	}
	if cfg.TTL == 0 {
		cfg.TTL = 30 * time.Second
	}
	if cfg.TTL < time.Second {
		return nil, fmt.Errorf("pglease: Config.TTL is %v: want 1s or more", cfg.TTL)
	}
	return &Store{db: db, name: cfg.Name, ttl: cfg.TTL.Seconds(), sql: newStatements(table.Sanitize())}, nil
}

// Install makes the table if there is none, for which it needs create on the
// schema, which must exist; the other methods need select, insert and update on
// the table. Any number of processes may call it at the same time.
func (s *Store) Install(ctx context.Context) error {
	var there bool
	if err := s.db.QueryRow(ctx, "select to_regclass($1) is not null", s.sql.table).Scan(&there); err != nil {
		return fmt.Errorf("pglease: install %s: %w", s.sql.table, err)
	}
	if there {
		return nil
	}
	if _, err := s.db.Exec(ctx, s.sql.install); err != nil {
		return fmt.Errorf("pglease: install %s: %w", s.sql.table, err)
	}
	return nil
}

// Claim implements [idgen.Leases]. A number that is asked for is taken from
// whoever holds it. AnyShard is the lowest that was released or has expired, else
// the lowest that nobody has used.
func (s *Store) Claim(ctx context.Context, shard int, layout idgen.Layout) (idgen.Lease, error) {
	l, err := s.claim(ctx, shard, layout)
	if err != nil {
		what := fmt.Sprintf("shard %d", shard)
		if shard == idgen.AnyShard {
			what = "any shard"
		}
		return nil, fmt.Errorf("pglease: claim %s of %s: %w", what, s.name, s.explain(err))
	}
	return l, nil
}

func (s *Store) claim(ctx context.Context, shard int, layout idgen.Layout) (*lease, error) {
	sql, number := s.sql.claim, shard
	if shard == idgen.AnyShard {
		sql, number = s.sql.claimAny, layout.MaxShard()
	}
	token := rand.Text()
	for {
		var (
			got, mark *int64  // nil when nothing was claimed
			at        *int64  // the number that was looked at
			found     *string // and its layout
			raced     bool    // another claim was faster
		)
		row := s.db.QueryRow(ctx, sql, pgx.QueryExecModeExec, s.name, number, layout.String(), token, s.ttl)
		err := row.Scan(&got, &mark, &at, &found, &raced)
		switch {
		case err != nil:
			return nil, err
		case got != nil:
			v := version{token: token, mark: idgen.ID(*mark)}
			return &lease{store: s, shard: int(*got), claimed: v.mark, known: v, tried: v}, nil
		case found != nil && *found != layout.String():
			return nil, fmt.Errorf("shard %d has IDs of layout %s: want %s", *at, *found, layout)
		case !raced:
			return nil, idgen.ErrHeld
		}
	}
}

// explain adds what to do when there is no table.
func (s *Store) explain(err error) error {
	if e, ok := errors.AsType[*pgconn.PgError](err); ok && e.Code == "42P01" {
		return fmt.Errorf("there is no table %s, call Install: %w", s.sql.table, err)
	}
	return err
}
