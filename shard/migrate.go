package shard

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"strconv"
	"strings"

	"github.com/jackc/pgx/v5"

	"github.com/shardgram/shardgram/idgen"
)

var (
	// ErrNewer is returned by Migrate for a shard that has a later version
	// than the files: a newer program has migrated it.
	ErrNewer = errors.New("the schema was made by a newer version of the program")

	// ErrChanged is returned by Migrate when a file is not the one that was
	// applied: a migration must not be edited once it has run.
	ErrChanged = errors.New("the migration was changed after it was applied")
)

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
// that failed are in the [Errors]; running Migrate again goes on with them. Two
// programs may run it at the same time.
func (c *Cluster) Migrate(ctx context.Context, files fs.FS) error {
	if files == nil {
		return errors.New("shard: migrations: the folder is nil")
	}
	migrations, err := readMigrations(files)
	if err != nil {
		return err
	}
	return c.Each(ctx, c.Shards(), func(ctx context.Context, s Shard) error {
		return s.InTx(ctx, func(tx pgx.Tx) error { return s.migrate(ctx, tx, migrations) })
	})
}

type migration struct{ name, sql, sum string }

func readMigrations(files fs.FS) ([]migration, error) {
	names, err := fs.Glob(files, "*.sql")
	if err != nil {
		return nil, fmt.Errorf("shard: migrations: %w", err)
	}
	if len(names) == 0 {
		return nil, errors.New("shard: migrations: no file *.sql")
	}
	slices.Sort(names)
	var list []migration
	for i, name := range names {
		number, _, _ := strings.Cut(name, "_")
		if n, err := strconv.Atoi(number); err != nil || n != i+1 {
			return nil, fmt.Errorf("shard: migration %s: want a name that begins with %04d_", name, i+1)
		}
		sql, err := fs.ReadFile(files, name)
		if err != nil {
			return nil, fmt.Errorf("shard: migrations: %w", err)
		}
		sum := sha256.Sum256(sql)
		list = append(list, migration{name, string(sql), hex.EncodeToString(sum[:])})
	}
	return list, nil
}

func (s Shard) migrate(ctx context.Context, tx pgx.Tx, list []migration) error {
	// Two programs that migrate at once must not both create the schema. The
	// lock ends with the transaction, and what the other has done must be seen
	// then, whatever isolation is the default.
	if _, err := tx.Exec(ctx, "set transaction isolation level read committed"); err != nil {
		return err
	}
	if _, err := tx.Exec(ctx, "select pg_advisory_xact_lock(hashtextextended($1, 0))", s.Schema()); err != nil {
		return err
	}
	// A look into the catalog itself: "create schema if not exists" goes by what
	// the session remembers, which may be older than the lock.
	var there bool
	if err := tx.QueryRow(ctx, "select exists (select from pg_namespace where nspname = $1)", s.Schema()).Scan(&there); err != nil {
		return err
	}
	if !there {
		if _, err := tx.Exec(ctx, "create schema "+s.Schema()); err != nil {
			return fmt.Errorf("create schema %s: %w", s.Schema(), err)
		}
	}
	_, err := tx.Exec(ctx, `create table if not exists schema_version (
		version    int primary key,
		name       text not null,
		sha256     text not null,
		applied_at timestamptz not null default now()
	)`)
	if err != nil {
		return err
	}
	if err := s.installNextID(ctx, tx); err != nil {
		return err
	}
	found, err := tx.Query(ctx, "select sha256 from schema_version where version > 0 order by version")
	if err != nil {
		return err
	}
	applied, err := pgx.CollectRows(found, pgx.RowTo[string])
	if err != nil {
		return err
	}
	if len(applied) > len(list) {
		return fmt.Errorf("%w: version %d, the program knows %d", ErrNewer, len(applied), len(list))
	}
	for i, m := range list {
		if i < len(applied) {
			if applied[i] != m.sum {
				return fmt.Errorf("migration %s: %w", m.name, ErrChanged)
			}
			continue
		}
		if _, err := tx.Exec(ctx, m.sql, pgx.QueryExecModeSimpleProtocol); err != nil {
			return fmt.Errorf("migration %s: %w", m.name, err)
		}
		if tx.Conn().PgConn().TxStatus() != 'T' {
			return fmt.Errorf("migration %s: it ends the transaction, with commit or rollback: what it did stays, unrecorded", m.name)
		}
		if _, err := tx.Exec(ctx, "insert into schema_version (version, name, sha256) values ($1, $2, $3)", i+1, m.name, m.sum); err != nil {
			return err
		}
	}
	return nil
}

// installNextID is version 0. It belongs to the library, so unlike a program's
// files it may change.
func (s Shard) installNextID(ctx context.Context, tx pgx.Tx) error {
	sql, err := idgen.SQL(idgen.SQLConfig{Schema: s.Schema(), Shard: s.Number(), Layout: s.cluster.cfg.Layout})
	if err != nil {
		return err
	}
	hash := sha256.Sum256([]byte(sql))
	sum := hex.EncodeToString(hash[:])
	var installed bool
	if err := tx.QueryRow(ctx, "select exists (select from schema_version where version = 0 and sha256 = $1)", sum).Scan(&installed); err != nil || installed {
		return err
	}
	if _, err := tx.Exec(ctx, sql, pgx.QueryExecModeSimpleProtocol); err != nil {
		return fmt.Errorf("install next_id(): %w", err)
	}
	_, err = tx.Exec(ctx, `insert into schema_version (version, name, sha256) values (0, 'next_id', $1)
		on conflict (version) do update set sha256 = excluded.sha256, applied_at = now()`, sum)
	return err
}
