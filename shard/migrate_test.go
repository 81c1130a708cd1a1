package shard_test

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"testing/fstest"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/stretchr/testify/require"

	"github.com/shardgram/shardgram/idgen"
	"github.com/shardgram/shardgram/internal/localserver"
	"github.com/shardgram/shardgram/internal/testserver"
	"github.com/shardgram/shardgram/shard"
)

func twoNodes(t *testing.T) shard.Catalog {
	return shard.Static(8,
		shard.Node{Name: "a", DSN: testserver.Postgres(t)},
		shard.Node{Name: "b", DSN: testserver.Postgres(t)})
}

// folder returns migrations of these texts.
func folder(files ...string) fstest.MapFS {
	fs := make(fstest.MapFS)
	for i, sql := range files {
		fs[fmt.Sprintf("%04d_%c.sql", i+1, 'a'+i)] = &fstest.MapFile{Data: []byte(sql)}
	}
	return fs
}

func bringUp(t *testing.T, c *shard.Cluster, files fstest.MapFS) shard.Report {
	report, err := c.Migrate(t.Context(), files, shard.MigrateConfig{})
	require.NoError(t, err)
	return report
}

// failed returns the numbers of the shards that an error names.
func failed(t *testing.T, err error) (numbers []int) {
	errs, ok := errors.AsType[shard.Errors](err)
	require.True(t, ok, "%v", err)
	for _, e := range errs {
		numbers = append(numbers, e.Shard)
	}
	return numbers
}

// versions returns the names of the files that a shard has, in order.
func versions(t *testing.T, s shard.Shard) []string {
	rows, err := s.Query(t.Context(), "select name from schema_version where version > 0 order by version")
	require.NoError(t, err)
	names, err := pgx.CollectRows(rows, pgx.RowTo[string])
	require.NoError(t, err)
	return names
}

func TestMigrateGoesOnWhereItWas(t *testing.T) {
	t.Parallel()
	c := open(t, twoNodes(t), shard.Config{})
	files := folder("create table a (n int); insert into a values (1)")
	files["README"] = &fstest.MapFile{Data: []byte("not SQL")}

	dry, err := c.Migrate(t.Context(), files, shard.MigrateConfig{DryRun: true})
	require.NoError(t, err)
	require.Equal(t, "dry run: version 1: 8 of 8 shards\n8 from version 0: 0001_a.sql", dry.String())
	_, err = c.Number(0).Exec(t.Context(), "select * from schema_version")
	require.ErrorIs(t, err, shard.ErrNoSchema, "a dry run makes nothing")

	report := bringUp(t, c, files)
	dry.DryRun = false
	require.Equal(t, dry, report)
	require.Equal(t, "version 1: 8 of 8 shards", bringUp(t, c, files).String(), "again")
	files["0002_b.sql"] = folder("", "create table b (n int); insert into b values (2)")["0002_b.sql"]
	dry, err = c.Migrate(t.Context(), files, shard.MigrateConfig{DryRun: true})
	require.NoError(t, err)
	require.Equal(t, shard.ShardReport{From: 1, To: 2, Files: []string{"0002_b.sql"}}, dry.Shards[7])
	require.Equal(t, 1, c.Map().Shards[7].Schema)
	bringUp(t, c, files)
	for _, s := range c.Shards() {
		var rows int
		require.NoError(t, s.QueryRow(t.Context(), "select count(*) from a").Scan(&rows))
		require.Equal(t, 1, rows, "each file ran once")
		require.Equal(t, []string{"0001_a.sql", "0002_b.sql"}, versions(t, s))
		require.Equal(t, 2, c.Map().Shards[s.Number()].Schema, "the catalog knows")
	}
}

func TestMigrateLeavesAFailedShardAsItWas(t *testing.T) {
	t.Parallel()
	c := open(t, twoNodes(t), shard.Config{})
	bringUp(t, c, folder("create table a (n int)"))
	_, err := c.Number(5).Exec(t.Context(), "insert into a values (0)")
	require.NoError(t, err)

	files := folder("create table a (n int)", "create table b (n int)", "create table c (n int); select 1 / n from a")
	report, err := c.Migrate(t.Context(), files, shard.MigrateConfig{})
	require.ErrorContains(t, err, "shard 5 on node b: migration 0003_c.sql: ")
	require.Equal(t, []int{5}, failed(t, err))
	require.Equal(t, shard.ShardReport{From: 1, To: 1}, report.Shards[5], "no half of it")
	require.Equal(t, "version 3: 7 of 8 shards\n7 from version 1: 0002_b.sql, 0003_c.sql", report.String())
	require.Len(t, versions(t, c.Number(5)), 1)
	require.Len(t, versions(t, c.Number(4)), 3)
	require.Equal(t, []int{3, 1}, []int{c.Map().Shards[4].Schema, c.Map().Shards[5].Schema})

	_, err = c.Number(5).Exec(t.Context(), "delete from a")
	require.NoError(t, err)
	require.Equal(t, "version 3: 8 of 8 shards\n1 from version 1: 0002_b.sql, 0003_c.sql", bringUp(t, c, files).String())

	// What the server says is in reach, and a full disk is not the program's fault.
	_, err = c.Migrate(t.Context(), folder("create table a (n int)", "create table b (n int)", "create table c (n int); select 1 / n from a",
		"do $$ begin if current_schema = 'shard_0002' then raise sqlstate '53100' using message = 'could not extend file'; end if; end $$"), shard.MigrateConfig{})
	require.Equal(t, []int{2}, failed(t, err))
	pg, ok := errors.AsType[*pgconn.PgError](err)
	require.True(t, ok)
	require.Equal(t, "53100", pg.Code)
}

func TestMigrateRefusesWhatItDoesNotKnow(t *testing.T) {
	t.Parallel()
	c := open(t, twoNodes(t), shard.Config{})
	old, grown := folder("create table a (n int)"), folder("create table a (n int)", "create table b (n int)")
	edited := folder("create table a (n bigint)", "create table b (n int)")
	bringUp(t, c, grown)
	for _, dry := range []bool{true, false} {
		_, err := c.Migrate(t.Context(), old, shard.MigrateConfig{DryRun: dry})
		require.ErrorIs(t, err, shard.ErrNewer)
		_, err = c.Migrate(t.Context(), edited, shard.MigrateConfig{DryRun: dry})
		require.ErrorIs(t, err, shard.ErrChanged)
	}
	for name, files := range map[string]fstest.MapFS{
		"NoFile":     {},
		"NoNumber":   {"users.sql": {}},
		"Gap":        {"0001_a.sql": {}, "0003_c.sql": {}},
		"SameNumber": {"0001_a.sql": {}, "0001_b.sql": {}},
	} {
		_, err := c.Migrate(t.Context(), files, shard.MigrateConfig{})
		require.Error(t, err, name)
	}
	for _, cfg := range []shard.MigrateConfig{{LockTimeout: -1}, {Patience: -1}} {
		_, err := c.Migrate(t.Context(), grown, cfg)
		require.Error(t, err)
	}
	_, err := c.Migrate(t.Context(), nil, shard.MigrateConfig{})
	require.Error(t, err)
}

func TestMigrateRefusesAFileThatEndsTheTransaction(t *testing.T) {
	t.Parallel()
	for _, end := range []string{"commit", "rollback", "commit; begin", "rollback; begin"} {
		c := open(t, shard.Static(1, shard.Node{Name: "a", DSN: testserver.Postgres(t)}), shard.Config{})
		_, err := c.Migrate(t.Context(), folder("create table a (n int); "+end), shard.MigrateConfig{})
		require.ErrorContains(t, err, "migration 0001_a.sql: it ends the transaction", end)
	}
}

// TestMigrateKeepsFilesApart has a file that changes settings for itself.
func TestMigrateKeepsFilesApart(t *testing.T) {
	t.Parallel()
	c := open(t, twoNodes(t), shard.Config{MaxConns: 1})
	bringUp(t, c, folder("set search_path to pg_temp; set local lock_timeout = 0", "create table a (n int);",
		"do $$ begin if current_setting('lock_timeout') <> '200ms' then raise 'it is %', current_setting('lock_timeout'); end if; end $$ -- no line's end"))
	for _, s := range c.Shards() {
		_, err := s.Exec(t.Context(), "insert into "+s.Schema()+".a values (1)")
		require.NoError(t, err)
	}
}

func TestMigrateRunsInTwoProgramsAtOnce(t *testing.T) {
	t.Parallel()
	cat := shard.Static(8, shard.Node{Name: "a", DSN: testserver.Postgres(t) + "&default_transaction_isolation=repeatable%20read"})
	one, two := open(t, cat, shard.Config{}), open(t, cat, shard.Config{})
	other := make(chan error)
	go func() {
		_, err := one.Migrate(t.Context(), notes, shard.MigrateConfig{})
		other <- err
	}()
	bringUp(t, two, notes)
	require.NoError(t, <-other)
}

// TestMigrateGivesWayToWriters has somebody read a table of shard 2 for a while.
func TestMigrateGivesWayToWriters(t *testing.T) {
	t.Parallel()
	c := open(t, twoNodes(t), shard.Config{})
	grown := fstest.MapFS{"0001_note.sql": notes["0001_note.sql"], "0002_at.sql": {Data: []byte("create table more (n int); alter table note add column at timestamptz")}}
	bringUp(t, c, notes)
	s := c.Number(2)
	reader, err := s.Begin(t.Context())
	require.NoError(t, err)
	defer func() { _ = reader.Rollback(context.WithoutCancel(t.Context())) }() // else a failure would hang
	_, err = reader.Exec(t.Context(), "select from note")
	require.NoError(t, err)

	begin := time.Now()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	report, err := c.Migrate(ctx, grown, shard.MigrateConfig{LockTimeout: 20 * time.Millisecond, Patience: 300 * time.Millisecond})
	require.Less(t, time.Since(begin), 10*time.Second)
	require.Equal(t, []int{2}, failed(t, err), "only that shard")
	require.ErrorContains(t, err, "shard 2 on node a: it could not get a lock: migration 0002_at.sql: ")
	require.True(t, err.(shard.Errors)[0].SafeToRetry())
	require.Equal(t, 7, countTo(report, 2))

	// A writer comes again and again while the migration waits for the reader.
	const timeout = 150 * time.Millisecond
	done := make(chan error, 1)
	go func() {
		_, err := c.Migrate(t.Context(), grown, shard.MigrateConfig{LockTimeout: timeout})
		done <- err
	}()
	var slowest time.Duration
	queued := 0
	require.Eventually(t, func() bool {
		begin := time.Now()
		_, err := s.Exec(t.Context(), "insert into note values ($1, 'x')", time.Now().UnixNano())
		took := time.Since(begin)
		if took > timeout/4 {
			queued++
		}
		slowest = max(slowest, took)
		return err != nil || queued >= 2 || len(done) > 0
	}, 20*time.Second, time.Millisecond)
	require.Less(t, slowest, timeout+2*time.Second, "far from the reader's time")
	select {
	case err := <-done:
		require.Fail(t, "it did not wait", "%v", err)
	default:
	}
	require.NoError(t, reader.Rollback(t.Context()))
	require.NoError(t, <-done)
	require.Len(t, versions(t, s), 2)
	bringUp(t, c, grown)
}

func countTo(r shard.Report, version int) (n int) {
	for _, s := range r.Shards {
		if s.To == version {
			n++
		}
	}
	return n
}

func TestMigrateEndsWithItsContext(t *testing.T) {
	t.Parallel()
	c := open(t, twoNodes(t), shard.Config{})
	bringUp(t, c, notes)
	reader, err := c.Number(2).Begin(t.Context())
	require.NoError(t, err)
	defer func() { _ = reader.Rollback(context.WithoutCancel(t.Context())) }() // else a failure would hang
	_, err = reader.Exec(t.Context(), "select from note")
	require.NoError(t, err)
	grown := fstest.MapFS{"0001_note.sql": notes["0001_note.sql"], "0002_at.sql": {Data: []byte("alter table note add column at timestamptz")}}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	// It is cancelled when all but one are done.
	var mu sync.Mutex
	n := 0
	_, err = c.Migrate(ctx, grown, shard.MigrateConfig{Progress: func(shard.Progress) {
		mu.Lock()
		defer mu.Unlock()
		if n++; n == 7 {
			cancel()
		}
	}})
	require.ErrorIs(t, err, context.Canceled)
	require.Equal(t, []int{2}, failed(t, err))
	require.NoError(t, reader.Rollback(t.Context()))
	require.Equal(t, "version 2: 8 of 8 shards\n1 from version 1: 0002_at.sql", bringUp(t, c, grown).String())
	for _, p := range c.Map().Shards {
		require.Equal(t, 2, p.Schema, "what the run that was cut off did not record")
	}
}

// TestMigrateGoesOnAfterACrash kills a node in the middle of its shards.
func TestMigrateGoesOnAfterACrash(t *testing.T) {
	t.Parallel()
	sick, err := testserver.Host(t).Postgres(t.Context(), "sick", localserver.PostgresConfig{})
	require.NoError(t, err)
	c := open(t, shard.Static(16,
		shard.Node{Name: "well", DSN: testserver.Postgres(t)},
		shard.Node{Name: "sick", DSN: sick.DSN("postgres")}), shard.Config{PerNode: 2})
	files := folder("create table a (n int); insert into a values (1)", "create table b (n int); insert into b values (2)")
	once := sync.OnceValue(sick.Kill)
	_, err = c.Migrate(t.Context(), files, shard.MigrateConfig{Progress: func(p shard.Progress) {
		if p.Node == "sick" && p.Done == 3 {
			_ = once()
		}
	}})
	require.NoError(t, once())
	numbers := failed(t, err)
	require.NotEmpty(t, numbers)
	for _, n := range numbers {
		require.Equal(t, "sick", c.Number(n).Node())
	}
	require.NoError(t, sick.Restart(t.Context()))
	report := bringUp(t, c, files)
	require.Equal(t, 16, countTo(report, 2))
	for _, s := range c.Shards() {
		var a, b int
		require.NoError(t, s.QueryRow(t.Context(), "select (select count(*) from a), (select count(*) from b)").Scan(&a, &b))
		require.Equal(t, []int{1, 1}, []int{a, b}, "shard %d", s.Number())
		require.Len(t, versions(t, s), 2)
		require.Equal(t, 2, c.Map().Shards[s.Number()].Schema)
	}
}

// quietCatalog gives no hints, so that the cluster knows only what it has asked.
type quietCatalog struct{ shard.Catalog }

func (quietCatalog) Wait(ctx context.Context, _ int64) error {
	<-ctx.Done()
	return ctx.Err()
}

func TestMigrateRefusesAShardThatMoves(t *testing.T) {
	t.Parallel()
	cat := quietCatalog{twoNodes(t)}
	c := open(t, cat, shard.Config{Poll: time.Hour})
	require.NoError(t, cat.Place(t.Context(), 3, 1, shard.Placement{Node: "b", State: shard.Moving}))
	for _, dry := range []bool{true, false} {
		_, err := c.Migrate(t.Context(), notes, shard.MigrateConfig{DryRun: dry})
		require.ErrorIs(t, err, shard.ErrMoving)
		require.Equal(t, []int{3}, failed(t, err))
	}
	require.NoError(t, cat.Place(t.Context(), 3, 2, shard.Placement{Node: "b", State: shard.Serving}))
	bringUp(t, c, notes)

	// A move that begins while the migration waits for the lock of the shard.
	s := c.Number(5)
	mover, err := s.Begin(t.Context())
	require.NoError(t, err)
	defer func() { _ = mover.Rollback(context.WithoutCancel(t.Context())) }() // else a failure would hang
	_, err = mover.Exec(t.Context(), "select pg_advisory_xact_lock(hashtextextended($1, 0))", s.Schema())
	require.NoError(t, err)
	done := make(chan error, 1)
	grown := fstest.MapFS{"0001_note.sql": notes["0001_note.sql"], "0002_at.sql": {Data: []byte("alter table note add column at timestamptz")}}
	go func() {
		_, err := c.Migrate(t.Context(), grown, shard.MigrateConfig{})
		done <- err
	}()
	require.Eventually(t, func() bool {
		var waits bool
		err := s.QueryRow(t.Context(), "select exists (select from pg_locks where locktype = 'advisory' and not granted and database = (select oid from pg_database where datname = current_database()))").Scan(&waits)
		return err == nil && waits
	}, 20*time.Second, time.Millisecond)
	require.NoError(t, cat.Place(t.Context(), 5, 1, shard.Placement{Node: "b", State: shard.Moving}))
	require.NoError(t, mover.Commit(t.Context()))
	err = <-done
	require.ErrorIs(t, err, shard.ErrMoving)
	require.Equal(t, []int{5}, failed(t, err))
	require.Len(t, versions(t, s), 1)
}

// TestMigrateFollowsAShardThatHasMoved has it wait for the lock meanwhile.
func TestMigrateFollowsAShardThatHasMoved(t *testing.T) {
	t.Parallel()
	cat := quietCatalog{twoNodes(t)}
	c := open(t, cat, shard.Config{Poll: time.Hour})
	s := c.Number(5)
	mover, err := s.Begin(t.Context())
	require.NoError(t, err)
	defer func() { _ = mover.Rollback(context.WithoutCancel(t.Context())) }() // else a failure would hang
	_, err = mover.Exec(t.Context(), "select pg_advisory_xact_lock(hashtextextended('shard_0005', 0))")
	require.NoError(t, err)
	done := make(chan error, 1)
	go func() {
		_, err := c.Migrate(t.Context(), notes, shard.MigrateConfig{})
		done <- err
	}()
	require.Eventually(t, func() bool {
		var waits bool
		err := mover.QueryRow(t.Context(), "select exists (select from pg_locks where locktype = 'advisory' and not granted and database = (select oid from pg_database where datname = current_database()))").Scan(&waits)
		return err == nil && waits
	}, 20*time.Second, time.Millisecond)
	require.NoError(t, cat.Place(t.Context(), 5, 1, shard.Placement{Node: "a", State: shard.Serving}))
	require.NoError(t, mover.Commit(t.Context()))
	require.NoError(t, <-done)
	require.Equal(t, "a", s.Node())
	require.Zero(t, count(t, s))
	var there bool
	require.NoError(t, c.Number(1).QueryRow(t.Context(), "select to_regnamespace('shard_0005') is not null").Scan(&there))
	require.False(t, there, "nothing was made on the old node")
}

// TestATypeOfAShardsOwnBreaksSharedStatements is why there is ErrOwnType.
func TestATypeOfAShardsOwnBreaksSharedStatements(t *testing.T) {
	t.Parallel()
	// With no plans of the shards' own, both use one statement of one connection.
	c := open(t, shard.Static(2, shard.Node{Name: "a", DSN: testserver.Postgres(t)}), shard.Config{MaxConns: 1})
	bringUp(t, c, folder("create table a (n int)"))
	insert := func(s shard.Shard) error {
		return s.InTx(t.Context(), func(tx pgx.Tx) error {
			_, err := tx.Exec(t.Context(), "insert into feeling values ($1)", "happy")
			return err
		})
	}
	for _, s := range c.Shards() {
		_, err := s.Exec(t.Context(), "create type mood as enum ('happy', 'sad'); create table feeling (now mood)")
		require.NoError(t, err)
	}
	require.NoError(t, insert(c.Number(0)))
	require.ErrorContains(t, insert(c.Number(1)), `column "now" is of type mood but expression is of type shard_0000.mood`)
	// A domain is its base type as far as parameters go.
	for _, s := range c.Shards() {
		_, err := s.Exec(t.Context(), "drop table feeling; create domain feel as text check (value in ('happy', 'sad')); create table feeling (now feel)")
		require.NoError(t, err)
	}
	require.NoError(t, insert(c.Number(0)))
	require.NoError(t, insert(c.Number(1)))
}

func TestMigrateRefusesATypeOfAShardsOwn(t *testing.T) {
	t.Parallel()
	c := open(t, twoNodes(t), shard.Config{Path: []string{"kinds"}})
	for _, s := range []shard.Shard{c.Number(0), c.Number(1)} { // one on each node
		_, err := s.Exec(t.Context(), "create schema kinds; create type kinds.mood as enum ('happy')")
		require.NoError(t, err)
	}
	fine := `create domain word as text check (value <> ''); create table a (w word, m mood, ws word[]);
		create view v as select w from a; create type gone as enum ('x'); drop type gone`
	for name, sql := range map[string]string{
		"enum hue":             "create type hue as enum ('red')",
		"range span":           "create type span as range (subtype = float8)",
		"composite type place": "create type place as (x int, y int)",
	} {
		_, err := c.Migrate(t.Context(), folder(fine, sql), shard.MigrateConfig{})
		require.ErrorIs(t, err, shard.ErrOwnType)
		require.ErrorContains(t, err, "shard 0 on node a: migration 0002_b.sql: "+name+": ")
	}
	bringUp(t, c, folder(fine))

	// One that is there from before is not a later file's doing.
	for _, s := range c.Shards() {
		_, err := s.Exec(t.Context(), "create type old as enum ('x')")
		require.NoError(t, err)
	}
	bringUp(t, c, folder(fine, "create table b (n int)"))
}

// TestMigrateKeepsANewerNextID has a later revision than that of this program.
func TestMigrateKeepsANewerNextID(t *testing.T) {
	t.Parallel()
	c := open(t, twoNodes(t), shard.Config{})
	bringUp(t, c, notes)
	s := c.Number(2)
	var name, sum string
	installed := func() {
		require.NoError(t, s.QueryRow(t.Context(), "select name, sha256 from schema_version where version = 0").Scan(&name, &sum))
	}
	installed()
	sql, err := idgen.SQL(idgen.SQLConfig{Schema: s.Schema(), Shard: 2})
	require.NoError(t, err)
	hash := sha256.Sum256([]byte(sql))
	require.Equal(t, hex.EncodeToString(hash[:]), sum)
	// This text is that revision. When it changes, the revision must grow: raise
	// nextIDRevision, then set both here.
	require.Equal(t, []string{"next_id 1", "50689dbb6fdcb5fd"}, []string{name, sum[:16]})

	set := func(name, sum string) {
		_, err := s.Exec(t.Context(), "update schema_version set name = $1, sha256 = $2 where version = 0", name, sum)
		require.NoError(t, err)
		_, err = s.Exec(t.Context(), "create or replace function next_ids(n int) returns setof bigint language sql as 'select 1::bigint'")
		require.NoError(t, err)
	}
	replaced := func() bool {
		var source string
		require.NoError(t, s.QueryRow(t.Context(), "select prosrc from pg_proc where oid = 'next_ids'::regproc").Scan(&source))
		return source != "select 1::bigint"
	}
	set("next_id 99", "another")
	bringUp(t, c, notes)
	require.False(t, replaced())
	for _, old := range []string{"next_id", "next_id 0"} {
		set(old, "another")
		bringUp(t, c, notes)
		require.True(t, replaced(), old)
		installed()
		require.Equal(t, "next_id 1", name)
	}
}

// deadCatalog is one that cannot be read, or not be written to, at times.
type deadCatalog struct {
	shard.Catalog
	load, record atomic.Pointer[error] // nil while it can
}

func (d *deadCatalog) Load(ctx context.Context) (shard.Map, error) {
	if err := d.load.Load(); err != nil {
		return shard.Map{}, *err
	}
	return d.Catalog.Load(ctx)
}

func (d *deadCatalog) Migrated(ctx context.Context, shards []int, version int) error {
	if err := d.record.Load(); err != nil {
		return *err
	}
	return d.Catalog.Migrated(ctx, shards, version)
}

func TestMigrateNeedsItsCatalog(t *testing.T) {
	t.Parallel()
	cat := &deadCatalog{Catalog: twoNodes(t)}
	c := open(t, cat, shard.Config{Poll: time.Hour})
	readOnly, down := errors.New("it is read only"), errors.New("it is down")
	cat.record.Store(&readOnly)
	report, err := c.Migrate(t.Context(), notes, shard.MigrateConfig{})
	require.ErrorIs(t, err, readOnly)
	require.EqualError(t, err, "shard: record version 1 of 8 shards in the catalog: it is read only")
	require.Equal(t, 8, countTo(report, 1), "the shards have it")
	cat.record.Store(nil)
	require.Equal(t, "version 1: 8 of 8 shards", bringUp(t, c, notes).String())
	require.Equal(t, 1, c.Map().Shards[7].Schema)

	cat.load.Store(&down)
	_, err = c.Migrate(t.Context(), notes, shard.MigrateConfig{})
	require.ErrorIs(t, err, down)
}

func TestMigrateTellsItsProgress(t *testing.T) {
	t.Parallel()
	c := open(t, twoNodes(t), shard.Config{})
	last := make(map[string]shard.Progress)
	_, err := c.Migrate(t.Context(), folder("do $$ begin if current_schema = 'shard_0002' then raise 'no'; end if; end $$"),
		shard.MigrateConfig{Progress: func(p shard.Progress) { last[p.Node] = p }})
	require.Error(t, err)
	require.Equal(t, map[string]shard.Progress{
		"a": {Node: "a", Done: 4, Failed: 1, Total: 4},
		"b": {Node: "b", Done: 4, Total: 4},
	}, last)
}

// roundTrips counts statements; those of Migrate take one round trip each.
type roundTrips struct{ n atomic.Int64 }

func (r *roundTrips) TraceQueryStart(ctx context.Context, _ *pgx.Conn, _ pgx.TraceQueryStartData) context.Context {
	r.n.Add(1)
	return ctx
}

func (r *roundTrips) TraceQueryEnd(context.Context, *pgx.Conn, pgx.TraceQueryEndData) {}

func TestMigrateTakesFewRoundTrips(t *testing.T) {
	t.Parallel()
	var trips roundTrips
	c := open(t, twoNodes(t), shard.Config{Tracer: &trips})
	bringUp(t, c, notes)
	require.EqualValues(t, 8*(7+2), trips.n.Swap(0), "for a schema and a file")
	bringUp(t, c, notes)
	require.EqualValues(t, 8, trips.n.Swap(0), "for nothing")
}
