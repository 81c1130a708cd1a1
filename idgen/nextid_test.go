package idgen_test

import (
	"context"
	"errors"
	"math/rand/v2"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/stretchr/testify/require"

	"github.com/shardgram/shardgram/idgen"
	"github.com/shardgram/shardgram/internal/testserver"
)

// A mix is many sessions that take IDs in every way a program may. Its table
// photo has no unique index, so that repeats stay in it until they are counted.
type mix struct {
	dsn    string
	schema string // of next_id() and next_ids()
	rows   atomic.Int64
	lost   atomic.Int64 // statements that were cancelled

	mu   sync.Mutex
	seen []int64 // IDs that reached us, of work that was then rolled back
}

func newMix(t *testing.T, dsn, schema string) *mix {
	conn := connect(t, dsn)
	run(t, conn, "set search_path = "+schema)
	run(t, conn, "create unlogged table photo (id bigint default next_id())")
	run(t, conn, "create unlogged table seen (id bigint)")
	return &mix{dsn: dsn, schema: schema}
}

// run lets sessions insert until there are so many rows, or the time is over.
func (m *mix) run(t *testing.T, sessions int, rows int64, limit time.Duration) {
	ctx, cancel := context.WithTimeout(t.Context(), limit)
	defer cancel()
	errs := make([]error, sessions+1)
	var wg, canceller sync.WaitGroup
	for i := range sessions {
		wg.Go(func() {
			s := &mixSession{mix: m}
			errs[i] = s.run(ctx, rows)
			m.mu.Lock()
			defer m.mu.Unlock()
			m.seen = append(m.seen, s.seen...)
		})
	}
	stop, stopped := context.WithCancel(ctx)
	canceller.Go(func() { errs[sessions] = m.cancelSome(stop) })
	wg.Wait()
	stopped()
	canceller.Wait()
	for _, err := range errs {
		require.NoError(t, err)
	}
	// What a client gave up may still be at work.
	conn := connect(t, m.dsn)
	require.Eventually(t, func() bool {
		return get[int](t, conn, "select count(*) from pg_stat_activity where datname = current_database() and pid <> pg_backend_pid() and state = 'active'") == 0
	}, time.Minute, 10*time.Millisecond)
}

// cancelSome cancels the statement of some session every few milliseconds.
func (m *mix) cancelSome(ctx context.Context) error {
	conn, err := pgx.Connect(ctx, m.dsn)
	if err != nil {
		return err
	}
	defer conn.Close(context.Background())
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
		_, err := conn.Exec(ctx, `select pg_cancel_backend(pid) from pg_stat_activity
			where datname = current_database() and pid <> pg_backend_pid() and state = 'active' order by random() limit 1`)
		if err != nil && ctx.Err() == nil {
			return err
		}
	}
}

// repeats counts what no two rows or rolled-back statements may share.
func (m *mix) repeats(t *testing.T, conn *pgx.Conn) int64 {
	run(t, conn, "set search_path = "+m.schema)
	run(t, conn, "set work_mem = '512MB'")
	run(t, conn, "truncate seen")
	_, err := conn.CopyFrom(t.Context(), pgx.Identifier{"seen"}, []string{"id"},
		pgx.CopyFromSlice(len(m.seen), func(i int) ([]any, error) { return []any{m.seen[i]}, nil }))
	require.NoError(t, err)
	return get[int64](t, conn, "select count(*) - count(distinct id) from (select id from photo union all select id from seen) s")
}

type mixSession struct {
	*mix
	conn *pgx.Conn
	last int64
	seen []int64
}

const (
	// Each returns the smallest and the largest new ID, their number, and whether
	// they came in order.
	bulkInsert = `with x as (insert into photo select next_id() from generate_series(1, $1) returning id)
		select min(id), max(id), count(*), coalesce(bool_and(up), true) from (select id, id > lag(id) over () as up from x) s`
	batchInsert = `with x as (insert into photo select * from next_ids($1) returning id)
		select min(id), max(id), count(*), coalesce(bool_and(up), true) from (select id, id > lag(id) over () as up from x) s`
)

// published is the schema of functions that promise less.
const published = "pub"

var errDisorder = errors.New("a session got an ID that is not above its last")

func (s *mixSession) run(ctx context.Context, rows int64) error {
	defer func() {
		if s.conn != nil {
			s.conn.Close(context.Background())
		}
	}()
	for s.rows.Load() < rows && ctx.Err() == nil {
		if s.conn == nil || s.conn.IsClosed() {
			conn, err := pgx.Connect(ctx, s.dsn+"&search_path="+s.schema)
			if err != nil {
				if ctx.Err() != nil || sqlState(err) == "57014" {
					continue // cancelled so early
				}
				return err
			}
			s.conn = conn
		}
		err := s.step(ctx)
		switch {
		case err == nil:
		case s.conn.IsClosed(), pgconn.Timeout(err), sqlState(err) == "57014", sqlState(err) == "25P02":
			s.lost.Add(1)
			if !s.conn.IsClosed() && s.conn.PgConn().TxStatus() != 'I' {
				// A rollback may be cancelled too.
				for range 10 {
					if _, err = s.conn.Exec(ctx, "rollback"); err == nil {
						break
					}
				}
			}
		default:
			return err
		}
	}
	return nil
}

// step does one thing of those that programs do.
func (s *mixSession) step(ctx context.Context) error {
	switch n := rand.IntN(64); {
	case n < 1:
		return s.giveUp(ctx)
	case n < 3:
		return s.timeOut(ctx)
	case n < 5:
		return s.rollBack(ctx)
	case n < 7:
		return s.savepoint(ctx)
	case n < 12:
		return s.insert(ctx, s.conn, "insert into photo default values returning id, id, 1, true")
	case n < 18:
		return s.insert(ctx, s.conn, batchInsert, 100)
	case n < 48:
		return s.insert(ctx, s.conn, bulkInsert, 200)
	default:
		return s.insert(ctx, s.conn, bulkInsert, 1000)
	}
}

func (s *mixSession) insert(ctx context.Context, db querier, sql string, args ...any) error {
	var first, last, n int64
	var up bool
	if err := db.QueryRow(ctx, sql, args...).Scan(&first, &last, &n, &up); err != nil {
		return err
	}
	s.rows.Add(n)
	if s.schema != published && (first <= s.last || !up) {
		return errDisorder
	}
	s.last = last
	return nil
}

// giveUp ends the context at a random moment of a statement.
func (s *mixSession) giveUp(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, time.Duration(rand.IntN(5000))*time.Microsecond)
	defer cancel()
	return s.insert(ctx, s.conn, bulkInsert, 500)
}

func (s *mixSession) timeOut(ctx context.Context) error {
	timeout := []string{"1ms", "2ms", "3ms", "5ms"}[rand.IntN(4)]
	if _, err := s.conn.Exec(ctx, "set statement_timeout = '"+timeout+"'"); err != nil {
		return err
	}
	err := s.insert(ctx, s.conn, bulkInsert, 2000)
	if s.conn.IsClosed() {
		return err
	}
	for range 10 {
		if _, reset := s.conn.Exec(ctx, "set statement_timeout = 0"); reset == nil {
			break
		}
	}
	return err
}

// take gets IDs for work that is rolled back: their rows are gone, but we know
// them.
func (s *mixSession) take(ctx context.Context, db querier, sql string, args ...any) error {
	var ids []int64
	if err := db.QueryRow(ctx, "with x as ("+sql+") select array_agg(id) from x", args...).Scan(&ids); err != nil {
		return err
	}
	s.seen = append(s.seen, ids...)
	if s.schema != published && (ids[0] <= s.last || !slices.IsSorted(ids)) {
		return errDisorder
	}
	s.last = ids[len(ids)-1]
	return nil
}

func (s *mixSession) rollBack(ctx context.Context) error {
	tx, err := s.conn.Begin(ctx)
	if err != nil {
		return err
	}
	if err := s.take(ctx, tx, "insert into photo select next_id() from generate_series(1, $1) returning id", 1+rand.IntN(50)); err != nil {
		return err
	}
	return tx.Rollback(ctx)
}

func (s *mixSession) savepoint(ctx context.Context) error {
	tx, err := s.conn.Begin(ctx)
	if err != nil {
		return err
	}
	inner, err := tx.Begin(ctx)
	if err != nil {
		return err
	}
	if err := s.take(ctx, inner, "insert into photo select * from next_ids($1) returning id", 1+rand.IntN(50)); err != nil {
		return err
	}
	if err := inner.Rollback(ctx); err != nil {
		return err
	}
	if err := s.insert(ctx, tx, bulkInsert, 20); err != nil {
		return err
	}
	return tx.Commit(ctx)
}

type querier interface {
	QueryRow(ctx context.Context, sql string, args ...any) pgx.Row
}

func sqlState(err error) string {
	if e, ok := errors.AsType[*pgconn.PgError](err); ok {
		return e.Code
	}
	return ""
}

func TestNextIDNeverRepeatsUnderMixedWork(t *testing.T) {
	t.Parallel()
	const rows = 5_000_000
	dsn := testserver.Postgres(t)
	conn := connect(t, dsn)
	install(t, conn, idgen.SQLConfig{Schema: "s", Shard: 5})
	m := newMix(t, dsn, "s")
	begin := get[time.Time](t, conn, "select clock_timestamp()")
	m.run(t, 10, rows, 3*time.Minute)
	end := get[time.Time](t, conn, "select clock_timestamp()")
	require.GreaterOrEqual(t, m.rows.Load(), int64(rows), "too slow")
	require.NotEmpty(t, m.seen)
	require.Greater(t, m.lost.Load(), int64(100), "cancelled statements")
	require.Zero(t, m.repeats(t, conn))
	requireNoLocks(t, conn)
	t.Logf("%d rows, %d IDs of rolled-back work, %d cancelled statements in %v", m.rows.Load(), len(m.seen), m.lost.Load(), end.Sub(begin))

	var shards, before, after int
	require.NoError(t, conn.QueryRow(t.Context(), `select count(*) filter (where id_shard(id) <> 5), count(*) filter (where id < $1), count(*) filter (where id > $2)
		from (select id from photo union all select id from seen) s`,
		idgen.Default.First(begin), idgen.Default.Last(end)).Scan(&shards, &before, &after))
	require.Zero(t, shards)
	require.Zero(t, before)
	require.Zero(t, after)
}

// TestMixFindsRepeats gives the same work functions that do repeat.
func TestMixFindsRepeats(t *testing.T) {
	t.Parallel()
	for _, test := range []struct{ name, file string }{
		{"OfThePublishedFunction", "testdata/published.sql"},
		{"OfItsOneExpressionForm", "testdata/one_expression.sql"},
	} {
		t.Run(test.name, func(t *testing.T) {
			dsn := testserver.Postgres(t)
			conn := connect(t, dsn)
			script, err := os.ReadFile(test.file)
			require.NoError(t, err)
			run(t, conn, string(script))
			m := newMix(t, dsn, published)
			var repeats int64
			for step := range int64(40) {
				m.run(t, 8, (step+1)*250_000, time.Minute)
				if repeats = m.repeats(t, conn); repeats > 0 {
					break
				}
			}
			require.Positive(t, repeats, "of %d rows", m.rows.Load())
			t.Logf("%d repeats in %d rows", repeats, m.rows.Load())
		})
	}
}

// TestMixFindsDisorder has a function whose IDs never repeat and go down.
func TestMixFindsDisorder(t *testing.T) {
	t.Parallel()
	dsn := testserver.Postgres(t)
	conn := connect(t, dsn)
	run(t, conn, `create schema down;
		create sequence down.ids increment by -1 minvalue 1 maxvalue 1000000 start 1000000;
		create function down.next_id() returns bigint language sql as 'select nextval(''down.ids'')';
		create function down.next_ids(n int) returns setof bigint language sql as 'select down.next_id() from generate_series(1, n)'`)
	m := newMix(t, dsn, "down")
	conn = connect(t, dsn+"&search_path=down")
	for _, sql := range []string{bulkInsert, batchInsert} {
		s := &mixSession{mix: m, conn: conn}
		require.ErrorIs(t, s.insert(t.Context(), conn, sql, 200), errDisorder)
	}
	s := &mixSession{mix: m, conn: conn, last: 1_000_000}
	require.ErrorIs(t, s.take(t.Context(), conn, "select next_id() as id"), errDisorder)
}
