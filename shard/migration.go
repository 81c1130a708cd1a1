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
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/shardgram/shardgram/idgen"
)

// migration is a file.
type migration struct{ name, sql, sum string }

func readMigrations(files fs.FS) ([]migration, error) {
	if files == nil {
		return nil, errors.New("shard: migrations: the folder is nil")
	}
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
		list = append(list, migration{name, string(sql), sumOf(string(sql))})
	}
	return list, nil
}

func sumOf(sql string) string {
	sum := sha256.Sum256([]byte(sql))
	return hex.EncodeToString(sum[:])
}

// migrate does in one transaction what a shard lacks; with an empty list it
// makes the schema and next_id() only.
func (s Shard) migrate(ctx context.Context, tx pgx.Tx, list []migration) error {
	// What another program has done must be seen once it has given the lock
	// back, whatever isolation is the default.
	if _, err := tx.Exec(ctx, "set transaction isolation level read committed"); err != nil {
		return err
	}
	cfg, _ := MigrateConfig{}.withDefaults()
	if err := s.lock(ctx, tx, cfg.Patience); err != nil {
		return err
	}
	_, _, err := s.apply(ctx, tx, list, cfg.LockTimeout)
	return err
}

// lock takes the lock of the shard's structure until the transaction ends: the
// advisory lock pg_advisory_xact_lock(hashtextextended(schema, 0)) in the node's
// database, where schema is the name of the shard's schema. Everything that
// changes the structure of a shard, or must not have it changed, takes it.
func (s Shard) lock(ctx context.Context, tx pgx.Tx, patience time.Duration) error {
	// Writers do not wait for this lock, so it may take a while.
	_, err := tx.Exec(ctx, fmt.Sprintf("set local lock_timeout = %d; select pg_advisory_xact_lock(hashtextextended('%s', 0))",
		max(1, patience.Milliseconds()), s.Schema()), pgx.QueryExecModeSimpleProtocol)
	if err != nil {
		return fmt.Errorf("another program migrates or moves the shard: %w", err)
	}
	return nil
}

// apply brings a shard up whose lock is held, and returns what it had before and
// has got.
func (s Shard) apply(ctx context.Context, tx pgx.Tx, list []migration, lockTimeout time.Duration) (has installed, todo []migration, err error) {
	// A look into the catalog itself: "if not exists" goes by what the session
	// remembers, which may be older than the lock.
	var schema, table bool
	var xid string
	var types []string
	err = tx.QueryRow(ctx, `select exists (select from pg_namespace where nspname = $1), exists (select from pg_class
			where relname = 'schema_version' and relnamespace = (select oid from pg_namespace where nspname = $1)), `+ownState,
		pgx.QueryExecModeSimpleProtocol, s.Schema()).Scan(&schema, &table, &xid, &types)
	if err != nil {
		return has, nil, err
	}
	if table {
		if has, err = s.readInstalled(ctx, tx); err != nil {
			return has, nil, err
		}
	}
	if len(list) > 0 {
		if todo, err = has.todo(list); err != nil {
			return has, nil, err
		}
	}
	next, err := s.nextID(has)
	if err != nil {
		return has, nil, err
	}
	settings := fmt.Sprintf("set local lock_timeout = %d; set local search_path to %s;\n",
		max(1, lockTimeout.Milliseconds()), s.cluster.paths[s.number])
	prepare := settings
	if !schema {
		prepare += "create schema " + s.Schema() + ";\n"
	}
	if !table {
		prepare += `create table schema_version (
			version    int primary key,
			name       text not null,
			sha256     text not null,
			applied_at timestamptz not null default now()
		);`
	}
	if next != nil {
		prepare += next.sql + fmt.Sprintf(`insert into schema_version (version, name, sha256) values (0, '%s', '%s')
			on conflict (version) do update set name = excluded.name, sha256 = excluded.sha256, applied_at = now()`, next.name, next.sum)
	}
	if _, err := tx.Exec(ctx, prepare, pgx.QueryExecModeSimpleProtocol); err != nil {
		return has, nil, fmt.Errorf("make the schema and next_id(): %w", err)
	}
	var record strings.Builder
	for i, m := range todo {
		if _, err := tx.Exec(ctx, m.sql, pgx.QueryExecModeSimpleProtocol); err != nil {
			return has, nil, fmt.Errorf("migration %s: %w", m.name, err)
		}
		var xidNow string
		var typesNow []string
		if tx.Conn().PgConn().TxStatus() == 'T' {
			// What the file has set must not reach the next one.
			err := tx.QueryRow(ctx, "select "+ownState+"; "+settings, pgx.QueryExecModeSimpleProtocol, s.Schema()).Scan(&xidNow, &typesNow)
			if err != nil {
				return has, nil, fmt.Errorf("migration %s: %w", m.name, err)
			}
		}
		if xidNow != xid {
			return has, nil, fmt.Errorf("migration %s: it ends the transaction, with commit or rollback: what it did stays, unrecorded", m.name)
		}
		for _, name := range typesNow {
			if !slices.Contains(types, name) {
				return has, nil, fmt.Errorf("migration %s: %s: %w", m.name, name, ErrOwnType)
			}
		}
		fmt.Fprintf(&record, "insert into schema_version (version, name, sha256) values (%d, '%s', '%s');\n",
			has.version()+i+1, strings.ReplaceAll(m.name, "'", "''"), m.sum)
	}
	if _, err := tx.Exec(ctx, record.String(), pgx.QueryExecModeSimpleProtocol); err != nil {
		return has, nil, fmt.Errorf("record the migrations: %w", err)
	}
	return has, todo, nil
}

// ownState is what of a transaction in schema $1 is compared before and after a
// file: the transaction itself, and the types that have an OID of their own in
// each shard. (A multirange comes with its range.)
const ownState = `pg_current_xact_id()::text,
	array(select case t.typtype when 'e' then 'enum ' when 'r' then 'range ' when 'c' then 'composite type ' else 'type ' end || t.typname
		from pg_type t left join pg_class c on c.oid = t.typrelid
		where t.typnamespace = (select oid from pg_namespace where nspname = $1)
		  and (t.typtype in ('e', 'r') or t.typtype = 'b' and t.typcategory <> 'A' or t.typtype = 'c' and c.relkind = 'c')
		order by 1)`

// installed is what a shard has: the files, and which next_id().
type installed struct {
	sums         []string // of the files, from version 1
	next, nextAs string   // name and sum of version 0
}

func (h installed) version() int { return len(h.sums) }

// todo returns the files that are still to come.
func (h installed) todo(list []migration) ([]migration, error) {
	if len(h.sums) > len(list) {
		return nil, fmt.Errorf("%w: version %d, the program knows %d", ErrNewer, len(h.sums), len(list))
	}
	for i, sum := range h.sums {
		if list[i].sum != sum {
			return nil, fmt.Errorf("migration %s: %w", list[i].name, ErrChanged)
		}
	}
	return list[len(h.sums):], nil
}

// look reads what a shard has, which is nothing where it has no schema.
func (s Shard) look(ctx context.Context, p place) (has installed, err error) {
	l, err := s.lease(ctx, p)
	if err != nil {
		return has, err
	}
	defer func() { l.release(err) }()
	l.link.want = "" // the statement has the schema's name in it
	has, err = s.readInstalled(l.ctx, l.conn)
	if pg, ok := errors.AsType[*pgconn.PgError](err); ok && (pg.Code == "42P01" || pg.Code == "3F000") {
		return has, nil // no such table, schema
	}
	if err != nil && l.conn.Conn().IsClosed() {
		err = &unsentError{err: err, again: true} // a look has no effect
	}
	return has, err
}

func (s Shard) readInstalled(ctx context.Context, q interface {
	Query(context.Context, string, ...any) (pgx.Rows, error)
},
) (has installed, err error) {
	// With the schema's name it is not looked for in Config.Path, and by the
	// simple protocol it takes no place among the prepared statements.
	rows, err := q.Query(ctx, "select version, name, sha256 from "+s.Schema()+".schema_version order by version", pgx.QueryExecModeSimpleProtocol)
	if err != nil {
		return has, err
	}
	var version int
	var name, sum string
	_, err = pgx.ForEachRow(rows, []any{&version, &name, &sum}, func() error {
		if version == 0 {
			has.next, has.nextAs = name, sum
		} else {
			has.sums = append(has.sums, sum)
		}
		return nil
	})
	return has, err
}

// nextIDRevision grows with every change of what idgen.SQL returns, so that an
// older program leaves the text of a newer one alone.
const nextIDRevision = 1

// nextID returns version 0, the functions of package idgen, if the shard needs
// it. It belongs to the library, so unlike a program's files it may change.
func (s Shard) nextID(has installed) (*migration, error) {
	sql, err := idgen.SQL(idgen.SQLConfig{Schema: s.Schema(), Shard: s.number, Layout: s.cluster.cfg.Layout})
	if err != nil {
		return nil, err
	}
	m := &migration{fmt.Sprintf("next_id %d", nextIDRevision), sql, sumOf(sql)}
	// Without a number it is from before there were revisions.
	revision, _ := strconv.Atoi(strings.TrimPrefix(has.next, "next_id "))
	if revision > nextIDRevision || revision == nextIDRevision && has.nextAs == m.sum {
		return nil, nil
	}
	return m, nil
}
