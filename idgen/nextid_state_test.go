package idgen_test

import (
	"context"
	"errors"
	"fmt"
	"math"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"github.com/shardgram/shardgram/idgen"
	"github.com/shardgram/shardgram/internal/testserver"
)

var wide = idgen.Layout{TimeBits: 42, ShardBits: 12, SequenceBits: 10, Epoch: idgen.Default.Epoch}

// collect runs one query of IDs in many sessions at once, and returns what each got.
func collect(t *testing.T, dsn string, sessions int, sql string) [][]int64 {
	t.Helper()
	ids := make([][]int64, sessions)
	errs := make([]error, sessions)
	var wg sync.WaitGroup
	for i := range sessions {
		wg.Go(func() {
			ctx := context.Background()
			conn, err := pgx.Connect(ctx, dsn)
			if err == nil {
				err = errors.Join(conn.QueryRow(ctx, sql).Scan(&ids[i]), conn.Close(ctx))
			}
			errs[i] = err
		})
	}
	wg.Wait()
	for _, err := range errs {
		require.NoError(t, err)
	}
	return ids
}

// requireNew tells that no ID is there twice, and that each session's increase.
func requireNew(t *testing.T, ids [][]int64) (first, last idgen.ID) {
	t.Helper()
	seen := map[int64]bool{}
	first, last = idgen.MaxID, 0
	for _, session := range ids {
		before := int64(0)
		for _, id := range session {
			if id <= before || seen[id] {
				require.Failf(t, "repeated or out of order", "%d after %d", id, before)
			}
			seen[id] = true
			before = id
		}
		first, last = min(first, idgen.ID(session[0])), max(last, idgen.ID(before))
	}
	return first, last
}

// TestNextIDGoesOnBehindAStep puts the IDs an hour ahead, where they are after
// the clock was set back by an hour.
func TestNextIDGoesOnBehindAStep(t *testing.T) {
	t.Parallel()
	dsn := testserver.Postgres(t)
	conn := connect(t, dsn)
	install(t, conn, idgen.SQLConfig{Schema: "s", Shard: 5})
	floor := get[idgen.ID](t, conn, "select id_floor(first_id(now() + interval '1 hour'))")
	begin := time.Now()
	first, last := requireNew(t, collect(t, dsn, 8, "select array_agg(case when n % 3 = 0 then s.next_id() else (select id from s.next_ids(n / n) id) end) from generate_series(1, 25000) n"))
	took := time.Since(begin)
	require.Greater(t, first, floor)
	require.LessOrEqual(t, idgen.Default.Time(first).Sub(idgen.Default.Time(floor)), time.Millisecond)
	// Nobody waits for the hour, and nobody goes faster than the clock.
	require.LessOrEqual(t, idgen.Default.Time(last).Sub(idgen.Default.Time(first)), took+time.Millisecond)
	require.GreaterOrEqual(t, idgen.Default.Time(last).Sub(idgen.Default.Time(first)), 8*25000/1024*time.Millisecond)
}

// TestNextIDStaysWithTheClock takes more IDs than there are: 64 in a millisecond.
func TestNextIDStaysWithTheClock(t *testing.T) {
	t.Parallel()
	const n, sessions, perMillisecond = 10_000, 3, 64
	layout := idgen.Layout{TimeBits: 41, ShardBits: 17, SequenceBits: 6, Epoch: idgen.Default.Epoch}
	dsn := testserver.Postgres(t)
	conn := connect(t, dsn)
	install(t, conn, idgen.SQLConfig{Schema: "s", Shard: 5, Layout: layout})
	begin := time.Now()
	first, last := requireNew(t, collect(t, dsn, sessions, fmt.Sprintf("select array_agg(id) from s.next_ids(%d) id", n)))
	require.GreaterOrEqual(t, time.Since(begin), (n*sessions/perMillisecond-2)*time.Millisecond)
	require.False(t, layout.Time(last).After(time.Now().Add(time.Millisecond)))
	require.False(t, layout.Time(first).Before(begin.Add(-time.Millisecond)))

	const ahead = "select max(extract(epoch from s.id_time(id) - clock_timestamp()) * 1000)::float8 from (select %s as id from generate_series(1, %d) n offset 0) s"
	require.LessOrEqual(t, get[float64](t, conn, fmt.Sprintf(ahead, "s.next_id()", 10_000)), 1.0)
	require.LessOrEqual(t, get[float64](t, conn, fmt.Sprintf(ahead, "(select max(id) from s.next_ids(10 * n / n) id)", 1000)), 1.0)

	install(t, conn, idgen.SQLConfig{Schema: "large", Shard: 5})
	require.LessOrEqual(t, get[float64](t, conn, "select extract(epoch from id_time(max(id)) - clock_timestamp())::float8 * 1000 from next_ids(100000) id"), 1.0)
}

// TestNextIDLeavesRoomForCallsThatFail begins where half a million calls that
// failed in one millisecond leave the count: just before the next one. Others get
// there while a session is about to set it.
func TestNextIDLeavesRoomForCallsThatFail(t *testing.T) {
	t.Parallel()
	layout := idgen.Layout{TimeBits: 44, ShardBits: 10, SequenceBits: 10, Epoch: idgen.Default.Epoch}
	dsn := testserver.Postgres(t)
	conn := connect(t, dsn)
	install(t, conn, idgen.SQLConfig{Schema: "s", Shard: 5, Layout: layout})
	run(t, conn, "select id_floor(first_id(now() + interval '1 hour'))")
	run(t, conn, "create table photo (id bigint)")
	run(t, conn, `create procedure s.round(rounds int) language plpgsql as $$
		begin
		  for i in 1..rounds loop
		    perform pg_advisory_lock_shared(1);
		    insert into s.photo select s.next_id() from generate_series(1, 300);
		    perform pg_advisory_unlock_shared(1);
		    commit;
		  end loop;
		end $$`)
	const sessions = 8
	errs := make([]error, sessions)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	var wg sync.WaitGroup
	for i := range sessions {
		wg.Go(func() {
			c, err := pgx.Connect(ctx, dsn)
			if err == nil {
				_, err = c.Exec(ctx, "call s.round(100000)")
				c.Close(context.Background())
			}
			if ctx.Err() == nil {
				errs[i] = err
			}
		})
	}
	for range 150 {
		run(t, conn, `do $$ begin
			perform pg_advisory_lock(1);
			perform setval('s.id_state', (nextval('s.id_state') >> 20 << 20) + (1 << 20) - 4 - (random() * 8)::int);
			perform pg_advisory_unlock(1);
		end $$`)
	}
	cancel()
	wg.Wait()
	for _, err := range errs {
		require.NoError(t, err)
	}
	require.Zero(t, get[int](t, conn, "select count(*) - count(distinct id) from photo"))
}

func TestIDFloorMovesAShard(t *testing.T) {
	t.Parallel()
	from, to := connect(t, testserver.Postgres(t)), connect(t, testserver.Postgres(t))
	for _, conn := range []*pgx.Conn{from, to} {
		install(t, conn, idgen.SQLConfig{Schema: "s", Shard: 5})
	}
	run(t, from, "select id_floor(first_id(now() + interval '1 hour'))")
	for range 3 {
		last := get[idgen.ID](t, from, "select max(id) from next_ids(3000) id")
		floor := get[idgen.ID](t, from, "select id_floor()")
		require.GreaterOrEqual(t, floor, last)
		require.Equal(t, floor, get[idgen.ID](t, to, "select id_floor($1)", floor))
		require.Greater(t, get[idgen.ID](t, to, "select next_id()"), floor)
		require.Greater(t, get[idgen.ID](t, from, "select next_id()"), floor)
		from, to = to, from
	}
	last := get[idgen.ID](t, to, "select next_id()")
	require.Greater(t, get[idgen.ID](t, to, "select id_floor(1)"), last, "it never goes down")
	require.Greater(t, get[idgen.ID](t, to, "select next_id()"), last)
	for _, bad := range []any{int64(-1), nil, idgen.MaxID, idgen.MaxID - 1<<23 + 1, int64(math.MinInt64)} {
		_, err := to.Exec(t.Context(), "select id_floor($1)", bad)
		require.Equal(t, "22023", sqlState(err), "%v", bad)
	}
	for _, bad := range []any{-1, nil} {
		_, err := to.Exec(t.Context(), "select next_ids($1)", bad)
		require.Equal(t, "22023", sqlState(err), "%v", bad)
	}
	require.Zero(t, get[int](t, to, "select count(*) from next_ids(0)"))
	require.Greater(t, get[idgen.ID](t, to, "select next_id()"), last)
}

// TestNextIDRunsOut lives through the last two seconds of a layout.
func TestNextIDRunsOut(t *testing.T) {
	t.Parallel()
	conn := connect(t, testserver.Postgres(t))
	layout := idgen.Default
	epoch := time.UnixMilli(time.Now().UnixMilli() - 1<<40 + 2000)
	layout.Epoch = epoch
	install(t, conn, idgen.SQLConfig{Schema: "s", Shard: 8191, Layout: layout})
	var last int64
	for {
		var id int64
		err := conn.QueryRow(t.Context(), "select next_id()").Scan(&id)
		if err != nil {
			require.Equal(t, "22003", sqlState(err))
			require.ErrorContains(t, err, "no ID for this time")
			break
		}
		require.Greater(t, id, last)
		last = id
	}
	require.Less(t, last, int64(idgen.MaxID))
	require.WithinDuration(t, layout.RunsOut(), time.Now(), time.Second)
	require.WithinDuration(t, layout.RunsOut(), layout.Time(idgen.ID(last)), time.Second)
	for _, call := range []string{"next_id()", "next_ids(2000)", "next_id()"} {
		_, err := conn.Exec(t.Context(), "select "+call)
		require.Equal(t, "22003", sqlState(err))
	}

	layout.Epoch = time.Now().Add(time.Hour).Truncate(time.Millisecond)
	install(t, conn, idgen.SQLConfig{Schema: "future", Shard: 8191, Layout: layout})
	_, err := conn.Exec(t.Context(), "select next_id()")
	require.Equal(t, "22003", sqlState(err))
	requireNoLocks(t, conn)
}

// TestNextIDIsUniformAtLowRates: alone in its millisecond, every ID counts on by
// 3, which has no factor in common with 64.
func TestNextIDIsUniformAtLowRates(t *testing.T) {
	t.Parallel()
	conn := connect(t, testserver.Postgres(t))
	install(t, conn, idgen.SQLConfig{Schema: "s", Shard: 5})
	run(t, conn, `create temp table id (id bigint);
		do $$ begin
		  for i in 1..640 loop
		    insert into id values (s.next_id());
		    perform pg_sleep(0.0015);
		  end loop;
		end $$`)
	require.Equal(t, 640, get[int](t, conn, "select count(distinct id >> 23) from id"))
	require.Equal(t, 64, get[int](t, conn, "select count(*) from (select id % 64 from id group by 1 having count(*) = 10) s"))
}

func TestSQLDecodesAsLayoutDoes(t *testing.T) {
	t.Parallel()
	conn := connect(t, testserver.Postgres(t))
	for i, layout := range []idgen.Layout{idgen.Default, idgen.Instagram, wide} {
		install(t, conn, idgen.SQLConfig{Schema: fmt.Sprint("s", i), Shard: i, Layout: layout})
		begin, end := layout.Epoch.UnixMicro(), layout.RunsOut().UnixMicro()
		rapid.Check(t, func(r *rapid.T) {
			id := idgen.ID(rapid.Int64Range(0, math.MaxInt64).Draw(r, "id"))
			at := time.UnixMicro(rapid.OneOf(
				rapid.Int64Range(begin-1e15, end+1e15),
				rapid.Int64Range(begin-3000, begin+3000),
				rapid.Int64Range(end-3000, end+3000),
			).Draw(r, "at")).UTC()
			var made time.Time
			var shard, sequence int
			var first, last idgen.ID
			require.NoError(r, conn.QueryRow(t.Context(), "select id_time($1), id_shard($1), id_sequence($1), first_id($2), last_id($2)", id, at).
				Scan(&made, &shard, &sequence, &first, &last))
			require.Equal(r, layout.Time(id), made.UTC())
			require.Equal(r, layout.Shard(id), shard)
			require.Equal(r, layout.Sequence(id), sequence)
			require.Equal(r, layout.First(at), first)
			require.Equal(r, layout.Last(at), last)
		})
		require.Equal(t, idgen.MaxID, get[idgen.ID](t, conn, "select first_id('infinity')"))
		require.Zero(t, get[idgen.ID](t, conn, "select last_id('-infinity')"))
		require.Equal(t, i, layout.Shard(get[idgen.ID](t, conn, "select next_id()")))
	}
}
