package idgen_test

import (
	"context"
	"errors"
	"os/exec"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"

	"github.com/shardgram/shardgram/idgen"
	"github.com/shardgram/shardgram/internal/testserver"
)

func connect(t *testing.T, dsn string) *pgx.Conn {
	conn, err := pgx.Connect(t.Context(), dsn)
	require.NoError(t, err)
	t.Cleanup(func() { conn.Close(context.Background()) })
	return conn
}

func run(t *testing.T, conn *pgx.Conn, sql string, args ...any) {
	t.Helper()
	_, err := conn.Exec(t.Context(), sql, args...)
	require.NoError(t, err)
}

func get[T any](t *testing.T, conn *pgx.Conn, sql string, args ...any) T {
	t.Helper()
	var v T
	require.NoError(t, conn.QueryRow(t.Context(), sql, args...).Scan(&v))
	return v
}

// install makes the schema, with its functions, and puts it on the search_path.
func install(t *testing.T, conn *pgx.Conn, cfg idgen.SQLConfig) {
	t.Helper()
	script, err := idgen.SQL(cfg)
	require.NoError(t, err)
	schema := pgx.Identifier{cfg.Schema}.Sanitize()
	if !get[bool](t, conn, "select exists (select from pg_namespace where nspname = $1)", cfg.Schema) {
		run(t, conn, "create schema "+schema)
	}
	run(t, conn, script)
	run(t, conn, "set search_path = "+schema)
}

// requireNoLocks tells that no call has left its lock behind.
func requireNoLocks(t *testing.T, conn *pgx.Conn) {
	t.Helper()
	require.Zero(t, get[int](t, conn, `select count(*) from pg_locks
		where locktype = 'advisory' and database = (select oid from pg_database where datname = current_database())`))
}

func TestSQLRefusesBadConfig(t *testing.T) {
	t.Parallel()
	epoch := idgen.Default.Epoch
	for _, test := range []struct {
		name string
		cfg  idgen.SQLConfig
	}{
		{"NoSchema", idgen.SQLConfig{}},
		{"LongSchema", idgen.SQLConfig{Schema: strings.Repeat("s", 64)}},
		{"SchemaWithControl", idgen.SQLConfig{Schema: "s\n"}},
		{"SchemaWithNul", idgen.SQLConfig{Schema: "s\x00"}},
		{"SchemaThatEndsTheBody", idgen.SQLConfig{Schema: "a$idgen$b"}},
		{"NegativeShard", idgen.SQLConfig{Schema: "s", Shard: -1}},
		{"ShardAboveItsBits", idgen.SQLConfig{Schema: "s", Shard: 8192}},
		{"BadLayout", idgen.SQLConfig{Schema: "s", Layout: idgen.Layout{TimeBits: 41, ShardBits: 13, SequenceBits: 9, Epoch: epoch}}},
		{"NoEpoch", idgen.SQLConfig{Schema: "s", Layout: idgen.Layout{TimeBits: 41, ShardBits: 13, SequenceBits: 10}}},
		{"FewShardBits", idgen.SQLConfig{Schema: "s", Layout: idgen.Layout{TimeBits: 41, ShardBits: 5, SequenceBits: 18, Epoch: epoch}}},
		{"FewBitsBelowTime", idgen.SQLConfig{Schema: "s", Layout: idgen.Layout{TimeBits: 45, ShardBits: 10, SequenceBits: 9, Epoch: epoch}}},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			_, err := idgen.SQL(test.cfg)
			require.Error(t, err)
		})
	}
}

func TestSQLRunsAgainAndRefusesAnother(t *testing.T) {
	t.Parallel()
	conn := connect(t, testserver.Postgres(t))
	cfg := idgen.SQLConfig{Schema: "s", Shard: 5}
	install(t, conn, cfg)
	last := get[idgen.ID](t, conn, "select next_id()")
	install(t, conn, cfg)
	require.Greater(t, get[idgen.ID](t, conn, "select next_id()"), last)
	for _, other := range []idgen.SQLConfig{
		{Schema: "s", Shard: 6},
		{Schema: "s", Shard: 5, Layout: idgen.Instagram},
		{Schema: "s", Shard: 5, Layout: idgen.Layout{TimeBits: 42, ShardBits: 12, SequenceBits: 10, Epoch: idgen.Default.Epoch}},
	} {
		script, err := idgen.SQL(other)
		require.NoError(t, err)
		_, err = conn.Exec(t.Context(), script)
		require.ErrorContains(t, err, "shard 5")
	}
	require.Equal(t, 5, idgen.Default.Shard(get[idgen.ID](t, conn, "select next_id()")))

	run(t, conn, "create schema taken; create sequence taken.id_state")
	script, err := idgen.SQL(idgen.SQLConfig{Schema: "taken"})
	require.NoError(t, err)
	_, err = conn.Exec(t.Context(), script)
	require.Error(t, err, "a sequence of somebody else")
}

func TestSQLRunsManyTimesAtOnce(t *testing.T) {
	t.Parallel()
	dsn := testserver.Postgres(t)
	conn := connect(t, dsn)
	run(t, conn, "create schema s")
	script, err := idgen.SQL(idgen.SQLConfig{Schema: "s", Shard: 5})
	require.NoError(t, err)
	errs := make([]error, 8)
	var wg sync.WaitGroup
	for i := range errs {
		wg.Go(func() {
			c, err := pgx.Connect(context.Background(), dsn)
			if err == nil {
				_, err = c.Exec(context.Background(), script)
				err = errors.Join(err, c.Close(context.Background()))
			}
			errs[i] = err
		})
	}
	wg.Wait()
	for _, err := range errs {
		require.NoError(t, err)
	}
	require.Positive(t, get[int64](t, conn, "select s.next_id()"))
}

// TestSQLRunsStatementByStatement ends the script after every statement: what
// has run by then does not stop it from running again.
func TestSQLRunsStatementByStatement(t *testing.T) {
	t.Parallel()
	conn := connect(t, testserver.Postgres(t))
	run(t, conn, "create schema s")
	script, err := idgen.SQL(idgen.SQLConfig{Schema: "s", Shard: 5})
	require.NoError(t, err)
	statements := strings.SplitAfter(script, ";\n\n")
	require.Greater(t, len(statements), 5)
	for n := range statements {
		for _, statement := range statements[:n+1] {
			run(t, conn, statement)
		}
	}
	require.Positive(t, get[int64](t, conn, "select s.next_id()"))
}

func TestSQLTakesAnySchemaName(t *testing.T) {
	t.Parallel()
	conn := connect(t, testserver.Postgres(t))
	for i, name := range []string{
		`Weird "name"`, `with ' too`, `''"" %`, "select", "Großbuchstaben", "日本語", `back\slash`, "$$", "{{.Shard}}", strings.Repeat("s", 63),
	} {
		install(t, conn, idgen.SQLConfig{Schema: name, Shard: i})
		run(t, conn, "set search_path = ''")
		var last idgen.ID
		for _, call := range []string{"next_id()", "next_ids(1)", "id_floor()", "next_id()"} {
			id := get[idgen.ID](t, conn, "select "+pgx.Identifier{name}.Sanitize()+"."+call)
			require.Greater(t, id, last)
			last = id
		}
		require.Equal(t, i, idgen.Default.Shard(last))
	}
}

func TestSQLNeedsNoSuperuser(t *testing.T) {
	t.Parallel()
	admin := connect(t, testserver.Postgres(t))
	owner := "owner_" + get[string](t, admin, "select current_database()")
	user := "user_" + get[string](t, admin, "select current_database()")
	run(t, admin, "create role "+owner+"; create role "+user)
	t.Cleanup(func() {
		_, err := admin.Exec(context.Background(), "reset role; drop owned by "+owner+", "+user+"; drop role "+owner+", "+user)
		require.NoError(t, err)
	})
	run(t, admin, "create schema s authorization "+owner)
	run(t, admin, "set role "+owner)
	install(t, admin, idgen.SQLConfig{Schema: "s", Shard: 5})
	install(t, admin, idgen.SQLConfig{Schema: "s", Shard: 5})

	run(t, admin, "grant usage on schema s to "+user)
	run(t, admin, "grant usage, update on sequence s.id_state to "+user)
	run(t, admin, "reset role; set role "+user)
	require.Equal(t, 3000, get[int](t, admin, "select count(distinct id) from next_ids(3000) id"))
	require.Positive(t, get[int64](t, admin, "select next_id()"))
	require.Positive(t, get[int64](t, admin, "select id_floor()"))
}

// TestNextIDIsDeafToTheSearchPath puts functions and operators where a call with
// an untyped argument would find them.
func TestNextIDIsDeafToTheSearchPath(t *testing.T) {
	t.Parallel()
	dsn := testserver.Postgres(t)
	admin := connect(t, dsn)
	install(t, admin, idgen.SQLConfig{Schema: "s", Shard: 5})
	run(t, admin, "set search_path = public")
	trap := func(signature, result string) {
		run(t, admin, "create function public."+signature+" returns "+result+" language plpgsql as $$ begin raise exception 'caught'; end $$")
	}
	trap("nextval(text)", "bigint")
	trap("setval(text, bigint)", "bigint")
	trap("setval(text, numeric)", "bigint")
	trap("pg_sleep(numeric)", "void")
	trap("floor(bigint)", "bigint")
	trap("date_part(varchar, timestamptz)", "float8")
	trap("to_timestamp(numeric)", "timestamptz")
	trap("pg_advisory_xact_lock(bigint, int)", "void")
	trap("pg_advisory_xact_lock(int, bigint)", "void")
	trap("hashtextextended(text, int)", "bigint")
	trap("obj_description(oid, text)", "text")
	for n, types := range [][2]string{{"bigint", "int"}, {"float8", "int"}, {"numeric", "int"}, {"bigint", "float8"}, {"int", "float8"}} {
		for _, op := range []string{"&", "|", "*", "/", "+", "-", "<<", ">>", "=", "<>", ">=", "<"} {
			name := "trap" + string(rune('0'+n))
			if op == "&" {
				trap(name+"("+types[0]+", "+types[1]+")", "boolean")
			}
			run(t, admin, "create operator public."+op+" (leftarg = "+types[0]+", rightarg = "+types[1]+", function = public."+name+")")
		}
	}
	_, err := connect(t, dsn).Exec(t.Context(), "select nextval('s.id_state')")
	require.ErrorContains(t, err, "caught", "the traps are set")

	conn := connect(t, dsn) // plans nothing that it planned before
	for _, call := range []string{
		"s.next_id()", "s.next_ids(2000)", "s.next_id()", "s.id_floor()", "s.id_floor(1)", "s.next_id()",
		"s.id_time(1::bigint)", "s.id_shard(1::bigint)", "s.id_sequence(1::bigint)", "s.first_id(now())", "s.last_id(now())",
	} {
		run(t, conn, "select "+call)
	}
	script, err := idgen.SQL(idgen.SQLConfig{Schema: "s", Shard: 5})
	require.NoError(t, err)
	run(t, conn, script)
}

// TestNextIDWorksWhereItIsCalled calls it where a lock or a subtransaction might
// not fit.
func TestNextIDWorksWhereItIsCalled(t *testing.T) {
	t.Parallel()
	conn := connect(t, testserver.Postgres(t))
	install(t, conn, idgen.SQLConfig{Schema: "s", Shard: 5})
	run(t, conn, `
		create table photo (id bigint default next_id() primary key, n int);
		create table audit (id bigint primary key);
		create function audit() returns trigger language plpgsql as $$
		begin
		  begin
		    insert into audit values (next_id());
		    raise exception 'on purpose';
		  exception when others then
		    insert into audit values (next_id());
		  end;
		  return new;
		end $$;
		create trigger audit after insert on photo for each row execute function audit()`)
	for _, conflict := range []string{"error", "use_variable", "use_column"} {
		run(t, conn, "set plpgsql.variable_conflict = "+conflict)
		run(t, conn, "insert into photo (n) select generate_series(1, 2000)")
	}
	_, err := conn.CopyFrom(t.Context(), pgx.Identifier{"photo"}, []string{"n"},
		pgx.CopyFromSlice(2000, func(i int) ([]any, error) { return []any{i}, nil }))
	require.NoError(t, err)
	run(t, conn, "alter table photo add other bigint not null default next_id() unique")
	run(t, conn, "create temp table id_state as select 1")
	run(t, conn, "create temp sequence now")
	run(t, conn, "set search_path = pg_temp, s")
	run(t, conn, "insert into photo (n) values (1)")
	require.Equal(t, 24003, get[int](t, conn, `select count(distinct id)
		from (select id from photo union all select other from photo union all select id from audit) s`))

	_, err = conn.Exec(t.Context(), "begin read only; select next_id()")
	require.Equal(t, "25006", sqlState(err))
	run(t, conn, "rollback")
	requireNoLocks(t, conn)

	run(t, conn, "alter schema s rename to renamed")
	_, err = conn.Exec(t.Context(), "select renamed.next_id()")
	require.Error(t, err, "it must not find another schema's state")
	last := get[idgen.ID](t, conn, "select max(id) from renamed.photo")
	install(t, conn, idgen.SQLConfig{Schema: "renamed", Shard: 5})
	require.Greater(t, get[idgen.ID](t, conn, "insert into photo (n) values (1) returning id"), last)
}

// TestNextIDGoesOnAfterRestore dumps a schema whose IDs are ahead of the clock,
// which is therefore no help.
func TestNextIDGoesOnAfterRestore(t *testing.T) {
	t.Parallel()
	from, to := testserver.Postgres(t), testserver.Postgres(t)
	conn := connect(t, from)
	install(t, conn, idgen.SQLConfig{Schema: "s", Shard: 5})
	run(t, conn, "select id_floor(first_id(now() + interval '1 hour'))")
	run(t, conn, "create table photo (id bigint default s.next_id() primary key)")
	run(t, conn, "insert into photo select next_id() from generate_series(1, 5000)")

	dump, err := exec.CommandContext(t.Context(), "pg_dump", "--schema=s", "--dbname="+from).Output()
	require.NoError(t, err)
	restore := exec.CommandContext(t.Context(), "psql", "-X", "-q", "-v", "ON_ERROR_STOP=1", "--dbname="+to)
	restore.Stdin = strings.NewReader(string(dump))
	out, err := restore.CombinedOutput()
	require.NoError(t, err, "%s", out)

	restored := connect(t, to)
	last := get[idgen.ID](t, restored, "select max(id) from s.photo")
	require.Equal(t, get[idgen.ID](t, conn, "select max(id) from s.photo"), last)
	next := get[idgen.ID](t, restored, "insert into s.photo default values returning id")
	require.Greater(t, next, last)
	require.Less(t, idgen.Default.Time(next).Sub(idgen.Default.Time(last)), time.Second)
	install(t, restored, idgen.SQLConfig{Schema: "s", Shard: 5})
}
