package idgen_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"

	"github.com/shardgram/shardgram/idgen"
	"github.com/shardgram/shardgram/internal/localserver"
	"github.com/shardgram/shardgram/internal/testserver"
)

// load inserts rows in some sessions until the server is gone or stop is
// called, which returns the largest ID that was committed.
func load(t *testing.T, dsn string) (stop func() idgen.ID) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	begun := make(chan struct{}, 4)
	last := make([]int64, 4)
	var wg sync.WaitGroup
	for i := range last {
		wg.Go(func() {
			conn, err := pgx.Connect(ctx, dsn)
			if err != nil {
				return
			}
			defer conn.Close(context.Background())
			for n := 0; ; n++ {
				var id int64
				err := conn.QueryRow(ctx, "with x as (insert into photo select next_id() from generate_series(1, $1) returning id) select max(id) from x", 1+rand.IntN(300)).Scan(&id)
				if err != nil {
					return
				}
				last[i] = max(last[i], id)
				if n == 20 {
					begun <- struct{}{}
				}
			}
		})
	}
	for range last {
		select {
		case <-begun:
		case <-time.After(time.Minute):
			require.Fail(t, "the load does not begin")
		}
	}
	return func() idgen.ID {
		cancel()
		wg.Wait()
		return idgen.ID(max(last[0], last[1], last[2], last[3]))
	}
}

// TestNextIDGoesOnAfterACrash kills the server, and promotes a replica, while the
// IDs are an hour ahead of the clock: it could not hide a state that is lost.
func TestNextIDGoesOnAfterACrash(t *testing.T) {
	t.Parallel()
	h := testserver.Host(t)
	server, err := h.Postgres(t.Context(), "primary", localserver.PostgresConfig{
		Settings: map[string]string{"max_prepared_transactions": "2"},
	})
	require.NoError(t, err)
	dsn := server.DSN("postgres") + "&search_path=s"
	conn := connect(t, dsn)
	install(t, conn, idgen.SQLConfig{Schema: "s", Shard: 5})
	run(t, conn, "create table photo (id bigint default next_id() primary key)")

	for _, ahead := range []string{"0", "1 hour", "2 hours"} {
		run(t, conn, "select id_floor(first_id(now() + $1::interval))", ahead)
		stop := load(t, dsn)
		if ahead == "1 hour" {
			run(t, conn, "begin; insert into photo select next_id() from generate_series(1, 3000); prepare transaction 'shard'")
		}
		require.NoError(t, server.Kill())
		last := stop()
		require.NoError(t, server.Restart(t.Context()))
		conn = connect(t, dsn)
		if ahead == "1 hour" {
			requireNoLocks(t, conn)
			run(t, conn, "commit prepared 'shard'")
		}
		stored := get[idgen.ID](t, conn, "select max(id) from photo")
		require.GreaterOrEqual(t, stored, last)
		require.Greater(t, get[idgen.ID](t, conn, "insert into photo default values returning id"), stored)
	}

	replica, err := h.PostgresReplica(t.Context(), "replica", server)
	require.NoError(t, err)
	standby := connect(t, replica.DSN("postgres")+"&search_path=s")
	_, err = standby.Exec(t.Context(), "select next_id()")
	require.Equal(t, "25006", sqlState(err), "a replica makes none")
	before := get[idgen.ID](t, conn, "select max(id) from photo")
	stop := load(t, dsn)
	defer stop()
	require.Eventually(t, func() bool { return get[idgen.ID](t, standby, "select max(id) from photo") > before }, time.Minute, time.Millisecond)
	require.NoError(t, replica.Promote(t.Context()))
	arrived := get[idgen.ID](t, standby, "select max(id) from photo")
	next := get[idgen.ID](t, standby, "insert into photo default values returning id")
	require.Greater(t, next, arrived)
	require.Less(t, idgen.Default.Time(next).Sub(idgen.Default.Time(arrived)), time.Minute, "the state came along")
}

// lockTurn is the lock of next_id_turn(), taken from outside.
const lockTurn = "(1768187749, ('s.id_state'::regclass::oid::bigint - 2147483648)::int)"

// TestNextIDLeaksNoLock cancels sessions that wait for their turn in every way.
func TestNextIDLeaksNoLock(t *testing.T) {
	t.Parallel()
	dsn := testserver.Postgres(t)
	conn := connect(t, dsn)
	install(t, conn, idgen.SQLConfig{Schema: "s", Shard: 5})
	last := get[idgen.ID](t, conn, "select next_id()")
	run(t, conn, "set statement_timeout = '20s'") // a lock that was leaked stops us
	run(t, conn, "select pg_advisory_lock"+lockTurn)
	waiters := func(t *testing.T) int {
		return get[int](t, conn, "select count(*) from pg_locks where locktype = 'advisory' and not granted and database = (select oid from pg_database where datname = current_database())")
	}

	errs := make([]error, 8)
	calls, endCalls := context.WithCancel(t.Context())
	sessions, endSessions := context.WithCancel(t.Context())
	var wg, idle sync.WaitGroup
	idle.Add(len(errs))
	for i := range errs {
		wg.Go(func() {
			conn, err := storm(calls, dsn, i)
			errs[i] = err
			idle.Done()
			<-sessions.Done()
			if conn != nil {
				conn.Close(context.Background())
			}
		})
	}
	defer wg.Wait()
	defer endSessions()
	defer endCalls()
	for range 30 {
		require.Eventually(t, func() bool { return waiters(t) >= 6 }, time.Minute, time.Millisecond)
		run(t, conn, `select case when random() < 0.8 then pg_cancel_backend(pid) else pg_terminate_backend(pid) end
			from pg_locks where locktype = 'advisory' and not granted and database = (select oid from pg_database where datname = current_database())`)
	}
	// Now some of them get through meanwhile.
	for range 30 {
		run(t, conn, "select pg_advisory_unlock"+lockTurn)
		run(t, conn, "select case when random() < 0.8 then pg_cancel_backend(pid) else pg_terminate_backend(pid) end from pg_stat_activity where datname = current_database() and pid <> pg_backend_pid()")
		run(t, conn, "select pg_advisory_lock"+lockTurn)
	}
	run(t, conn, "select pg_advisory_unlock"+lockTurn)
	begin := time.Now()
	require.Greater(t, get[idgen.ID](t, connect(t, dsn), "select max(id) from s.next_ids(5000) id"), last)
	require.Less(t, time.Since(begin), 10*time.Second)
	endCalls()
	idle.Wait()
	require.NoError(t, errors.Join(errs...))
	requireNoLocks(t, conn) // while the sessions are still there
}

// storm asks for IDs until calls has ended, and takes every end of a statement or
// of the session. It returns the session that it has then, or nil.
func storm(calls context.Context, dsn string, n int) (*pgx.Conn, error) {
	ctx := context.Background()
	var conn *pgx.Conn
	for calls.Err() == nil {
		var err error
		if conn == nil || conn.IsClosed() {
			if conn, err = pgx.Connect(ctx, dsn); err == nil {
				_, err = conn.Exec(ctx, fmt.Sprintf("set lock_timeout = %d; set statement_timeout = %d", n%2*20, n%3*30))
			}
		}
		if err == nil {
			_, err = conn.Exec(ctx, "begin; savepoint a; select s.next_id(); rollback to a; select s.next_id(); commit")
		}
		switch sqlState(err) {
		case "57014", "55P03", "57P01": // cancelled, no lock in time, terminated
		case "": // done, or the connection is gone
			if err != nil && conn != nil && !conn.IsClosed() {
				return conn, err
			}
		default:
			return conn, err
		}
		for err != nil && conn != nil && !conn.IsClosed() {
			_, err = conn.Exec(ctx, "rollback") // may be cancelled too
		}
	}
	return conn, nil
}

// TestNextIDEndsATurnThatWasStopped stops a session's process while it holds the
// turn. Others are cancelled and try again, each time counting on, until it goes
// on with what it had read before.
func TestNextIDEndsATurnThatWasStopped(t *testing.T) {
	t.Parallel()
	dsn := testserver.Postgres(t)
	conn := connect(t, dsn)
	install(t, conn, idgen.SQLConfig{Schema: "s", Shard: 5})
	// Ahead of the clock a turn lasts until the clock's next millisecond.
	run(t, conn, "select id_floor(first_id(now() + interval '1 hour'))")
	run(t, conn, "create unlogged table photo (id bigint)")

	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	const sessions = 8
	errs := make([]error, sessions)
	pids := make([]int, sessions)
	var ready, wg sync.WaitGroup
	ready.Add(sessions)
	for i := range sessions {
		wg.Go(func() {
			c, err := pgx.Connect(ctx, dsn+"&search_path=s")
			if err == nil {
				pids[i] = int(c.PgConn().PID())
			}
			ready.Done()
			if err != nil {
				errs[i] = err
				return
			}
			defer c.Close(context.Background())
			_, err = c.Exec(ctx, "set statement_timeout = 20")
			for err == nil || sqlState(err) == "57014" {
				_, err = c.Exec(ctx, "insert into photo select next_id() from generate_series(1, 200)")
			}
			if ctx.Err() == nil {
				errs[i] = err
			}
		})
	}
	ready.Wait()
	stopped := 0
	for deadline := time.Now().Add(30 * time.Second); stopped < 3 && time.Now().Before(deadline); {
		pid := pids[rand.IntN(sessions)]
		require.NoError(t, errors.Join(errs...))
		require.NoError(t, syscall.Kill(pid, syscall.SIGSTOP))
		if holdsTurn(t, dsn, pid) {
			stopped++
			time.Sleep(time.Second) // while the others are cancelled and try again
		}
		require.NoError(t, syscall.Kill(pid, syscall.SIGCONT))
	}
	require.Equal(t, 3, stopped)
	cancel()
	wg.Wait()
	require.NoError(t, errors.Join(errs...))
	require.Greater(t, get[int](t, conn, "select count(*) from photo"), 1000)
	require.Zero(t, get[int](t, conn, "select count(*) - count(distinct id) from photo"))
	require.Positive(t, get[int64](t, conn, "select next_id()"))
}

// holdsTurn tells whether a process has the lock. A stopped one may hold what
// our own question needs, so it has to be short.
func holdsTurn(t *testing.T, dsn string, pid int) bool {
	ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	conn, err := pgx.Connect(ctx, dsn)
	if err != nil {
		return false
	}
	defer conn.Close(context.Background())
	var holds bool
	err = conn.QueryRow(ctx, "select exists (select from pg_locks where locktype = 'advisory' and granted and pid = $1)", pid).Scan(&holds)
	return err == nil && holds
}
