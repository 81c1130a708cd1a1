package bench_test

import (
	"context"
	"fmt"
	"sync/atomic"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/shardgram/shardgram/idgen"
	"github.com/shardgram/shardgram/internal/testserver"
	"github.com/stretchr/testify/require"
	"golang.org/x/sync/errgroup"
)

// published is next_id() as Instagram published it in 2011, with the schema and
// the shard of the post. Nothing in it keeps two sessions, or 1,025 calls in one
// millisecond, from making the same ID.
const published = `
create schema insta5;
create sequence insta5.table_id_seq;
CREATE OR REPLACE FUNCTION insta5.next_id(OUT result bigint) AS $$
DECLARE
    our_epoch bigint := 1314220021721;
    seq_id bigint;
    now_millis bigint;
    shard_id int := 5;
BEGIN
    SELECT nextval('insta5.table_id_seq') % 1024 INTO seq_id;
    SELECT FLOOR(EXTRACT(EPOCH FROM clock_timestamp()) * 1000) INTO now_millis;
    result := (now_millis - our_epoch) << 23;
    result := result | (shard_id <<10);
    result := result | (seq_id);
END;
$$ LANGUAGE PLPGSQL;`

// around is what is measured beside next_id() itself. The index of the table is
// not unique, for the published function may repeat an ID. seldom returns the
// microseconds of a call that is the first one in its millisecond.
const around = `
create table %[1]s.photo (id bigint not null default %[1]s.next_id(), caption text);
create index on %[1]s.photo (id);
create function %[1]s.seldom(calls int) returns float8 language plpgsql as $$
declare
  spent interval := '0';
  begun timestamptz;
begin
  for i in 1..calls loop
    perform pg_sleep(0.001);
    begun := clock_timestamp();
    perform %[1]s.next_id();
    spent := spent + (clock_timestamp() - begun);
  end loop;
  return extract(epoch from spent) * 1e6 / calls;
end $$;`

// A function is one of the two that are compared.
type function struct {
	name   string
	schema string
	batch  string // makes 100 IDs
}

var functions = []function{
	{"published", "insta5", "select insta5.next_id() from generate_series(1, 100)"},
	{"shardgram", "s1", "select s1.next_ids(100)"},
}

// BenchmarkNextID measures the two functions that make IDs in a real PostgreSQL,
// without fsync. The group says what a row shows:
//
//	calls    2,000 calls in one statement: what the function costs
//	inserts  a row per transaction, with next_id() as the default of its key
//	batch    100 IDs in one statement, sent to the client
//	seldom   a call that is the first one in its millisecond
//
// ns/id is the time of all sessions together, so of 8 it is not what one call
// takes. duplicates counts the rows of the inserts whose ID had been there.
func BenchmarkNextID(b *testing.B) {
	conns := sessions(b, 8)
	version := scan[string](b, conns[0], "show server_version")
	fmt.Println("postgresql:", version) // as the machine is, for those who read the output

	script, err := idgen.SQL(idgen.SQLConfig{Schema: "s1", Shard: 1})
	require.NoError(b, err)
	execAll(b, conns[0], published+"create schema if not exists s1;"+script)
	for _, f := range functions {
		execAll(b, conns[0], fmt.Sprintf(around, f.schema))
	}
	for _, k := range []int{1, len(conns)} {
		for _, f := range functions {
			b.Run(fmt.Sprintf("calls/sessions=%d/%s", k, f.name), func(b *testing.B) {
				const calls = 2000
				run(b, conns[:k], fmt.Sprintf("select max(%s.next_id()) from generate_series(1, %d)", f.schema, calls))
				report(b, calls)
				b.ReportMetric(calls*float64(b.N)/b.Elapsed().Seconds(), "ids/s")
			})
		}
	}
	for _, k := range []int{1, len(conns)} {
		for _, f := range functions {
			b.Run(fmt.Sprintf("inserts/sessions=%d/%s", k, f.name), func(b *testing.B) { inserts(b, conns[:k], f) })
		}
	}
	for _, f := range functions {
		b.Run("batch=100/"+f.name, func(b *testing.B) {
			run(b, conns[:1], f.batch)
			report(b, 100)
		})
	}
	for _, f := range functions {
		b.Run("seldom/"+f.name, func(b *testing.B) { seldom(b, conns[0], f) })
	}
}

func inserts(b *testing.B, conns []*pgx.Conn, f function) {
	execAll(b, conns[0], fmt.Sprintf("truncate %s.photo", f.schema))
	run(b, conns, fmt.Sprintf("insert into %s.photo (caption) values ('a photo')", f.schema))
	report(b, 1)
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "ids/s")
	duplicates := scan[int](b, conns[0], fmt.Sprintf("select count(*) - count(distinct id) from %s.photo", f.schema))
	b.ReportMetric(float64(duplicates), "duplicates")
	if f.name == "shardgram" {
		require.Zero(b, duplicates)
	}
}

func seldom(b *testing.B, conn *pgx.Conn, f function) {
	var sum float64
	for b.Loop() {
		sum += scan[float64](b, conn, fmt.Sprintf("select %s.seldom(20)", f.schema))
	}
	b.ReportMetric(0, "ns/op")
	b.ReportMetric(1000*sum/float64(b.N), "ns/id")
}

// run executes a statement b.N times, shared out among the sessions.
func run(b *testing.B, conns []*pgx.Conn, sql string) {
	b.Helper()
	for _, c := range conns { // prepares it, and plans what is in the functions
		_, err := c.Exec(b.Context(), sql)
		require.NoError(b, err)
	}
	var left atomic.Int64
	left.Store(int64(b.N))
	group, ctx := errgroup.WithContext(b.Context())
	b.ResetTimer()
	for _, c := range conns {
		group.Go(func() error {
			for left.Add(-1) >= 0 {
				if _, err := c.Exec(ctx, sql); err != nil {
					return err
				}
			}
			return nil
		})
	}
	require.NoError(b, group.Wait())
	b.StopTimer()
}

// sessions opens k connections to a new database.
func sessions(b *testing.B, k int) []*pgx.Conn {
	b.Helper()
	dsn := testserver.Postgres(b)
	var conns []*pgx.Conn
	for range k {
		c, err := pgx.Connect(b.Context(), dsn)
		require.NoError(b, err)
		b.Cleanup(func() { c.Close(context.Background()) }) // b.Context() has ended
		conns = append(conns, c)
	}
	return conns
}

// execAll executes a script of many statements.
func execAll(b *testing.B, c *pgx.Conn, script string) {
	b.Helper()
	_, err := c.PgConn().Exec(b.Context(), script).ReadAll()
	require.NoError(b, err)
}

// scan returns the one value of a query.
func scan[V any](b *testing.B, c *pgx.Conn, sql string) V {
	b.Helper()
	var v V
	require.NoError(b, c.QueryRow(b.Context(), sql).Scan(&v))
	return v
}
