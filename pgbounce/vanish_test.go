package pgbounce_test

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/shardgram/shardgram/internal/testserver"
	"github.com/shardgram/shardgram/pgbounce"
	"github.com/stretchr/testify/require"
)

const longCopy = "copy (select repeat('x', 1000) from generate_series(1, 1000000)) to stdout"

// A client that is gone leaves its server behind as good as new.
func TestVanish(t *testing.T) {
	t.Parallel()
	send := func(k *talk, t *testing.T, p []byte) {
		t.Helper()
		require.NoError(t, k.write(p))
	}
	hears := func(k *talk, t *testing.T, kind byte) {
		t.Helper()
		for {
			got, _, err := k.next()
			require.NoError(t, err)
			if got == kind {
				return
			}
		}
	}
	tests := []struct {
		name  string
		cfg   pgbounce.Config
		leave func(t *testing.T, k *talk, admin *pgx.Conn)
		then  func(t *testing.T, admin *pgx.Conn)
		lost  bool // the server is
	}{
		{name: "Query", leave: func(t *testing.T, k *talk, admin *pgx.Conn) {
			send(k, t, encode(query("select pg_sleep(60)")))
			asleep(t, admin, 1)
		}},
		{name: "Transaction", leave: func(t *testing.T, k *talk, _ *pgx.Conn) { k.do(t, "begin; create table vanishing (id int)") }},
		{name: "FailedTransaction", leave: func(t *testing.T, k *talk, _ *pgx.Conn) { k.ask(t, query("begin; select 1/0")) }},
		{name: "QueryInATransaction", leave: func(t *testing.T, k *talk, admin *pgx.Conn) {
			k.do(t, "begin; create table vanishing (id int)")
			send(k, t, encode(query("select pg_sleep(60)")))
			asleep(t, admin, 1)
		}},
		{name: "TerminateInATransaction", leave: func(t *testing.T, k *talk, _ *pgx.Conn) {
			k.do(t, "begin; create table vanishing (id int)")
			send(k, t, []byte{'X', 0, 0, 0, 4})
		}},
		{name: "BatchWithoutSync", leave: func(t *testing.T, k *talk, _ *pgx.Conn) {
			send(k, t, encode(parse("", "create table vanishing (id int)"), bind("", ""), execute(""), flush))
			hears(k, t, 'C')
		}},
		{name: "FailedBatchWithoutSync", leave: func(t *testing.T, k *talk, _ *pgx.Conn) {
			send(k, t, encode(parse("s", "select 1/0"), bind("", "s"), execute(""), flush))
			hears(k, t, 'E')
		}},
		{name: "Pipeline", leave: func(t *testing.T, k *talk, admin *pgx.Conn) {
			batch := encode(parse("", "select pg_sleep(60)"), bind("", ""), execute(""), sync)
			send(k, t, append(append(batch, batch...), batch...))
			asleep(t, admin, 1)
		}},
		{name: "CopyIn", leave: func(t *testing.T, k *talk, _ *pgx.Conn) {
			send(k, t, encode(query("copy sink from stdin"), data("1\n")))
			hears(k, t, 'G')
		}},
		{name: "CopyInUnseen", leave: func(t *testing.T, k *talk, _ *pgx.Conn) {
			send(k, t, encode(query("copy sink from stdin"), data("1\n")))
		}},
		{name: "ExtendedCopyIn", leave: func(t *testing.T, k *talk, _ *pgx.Conn) {
			send(k, t, encode(parse("", "copy sink from stdin"), bind("", ""), execute(""), flush))
			hears(k, t, 'G')
			send(k, t, encode(data("1\n")))
		}},
		{name: "CopyOut", leave: func(t *testing.T, k *talk, _ *pgx.Conn) {
			send(k, t, encode(query(longCopy)))
			hears(k, t, 'd')
		}},
		{name: "Rows", leave: func(t *testing.T, k *talk, _ *pgx.Conn) {
			send(k, t, encode(query("select repeat('x', 1000000) from generate_series(1, 1000)")))
			hears(k, t, 'D')
		}},
		{name: "HalfAHeader", leave: func(t *testing.T, k *talk, _ *pgx.Conn) {
			k.do(t, "begin; create table vanishing (id int)")
			send(k, t, []byte{'Q', 0, 0})
		}},
		{name: "HalfAQuery", leave: func(t *testing.T, k *talk, _ *pgx.Conn) { send(k, t, encode(query("select pg_sleep(60)"))[:12]) }},
		{
			name: "CheckingTheServer", cfg: pgbounce.Config{ServerCheckDelay: 1, ServerCheckQuery: "select pg_advisory_xact_lock_shared(1)"},
			leave: func(t *testing.T, k *talk, admin *pgx.Conn) {
				one[string](t, admin, "select pg_advisory_lock(1)::text")
				send(k, t, encode(query("select 1")))
				eventually(t, "the server is being checked", func() bool {
					return one[bool](t, admin, "select exists (select from pg_locks where locktype = 'advisory' and not granted)")
				})
			},
			then: func(t *testing.T, admin *pgx.Conn) { one[bool](t, admin, "select pg_advisory_unlock(1)") },
		},
		{name: "HalfAMessage", lost: true, leave: func(t *testing.T, k *talk, _ *pgx.Conn) {
			k.do(t, "begin")
			send(k, t, encode(query("select '" + strings.Repeat("x", 100_000) + "'"))[:70_000])
		}},
		{name: "HalfACopy", lost: true, leave: func(t *testing.T, k *talk, _ *pgx.Conn) {
			send(k, t, encode(query("copy sink from stdin"), data(strings.Repeat("1\n", 50_000)))[:70_000])
			hears(k, t, 'G')
		}},
		{name: "NoRecovery", lost: true, cfg: pgbounce.Config{RecoverTimeout: -1}, leave: func(t *testing.T, k *talk, _ *pgx.Conn) {
			k.do(t, "begin")
		}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			dsn := testserver.Postgres(t)
			admin := adminOf(t, dsn)
			_, err := admin.Exec(t.Context(), "create table sink (id int)")
			require.NoError(t, err)
			cfg := tt.cfg
			cfg.Databases, cfg.PoolSize = only(t, dsn).Databases, 1
			f := newFront(t, cfg)
			for way := range 3 {
				k := f.client(t, way)
				before := k.pid(t)
				tt.leave(t, k, admin)
				require.NoError(t, k.conn.Close())
				if tt.then != nil {
					tt.then(t, admin)
				}
				began := time.Now()
				after := f.client(t, way+1)
				if pid := after.pid(t); tt.lost {
					require.NotEqual(t, before, pid)
				} else {
					require.Equal(t, before, pid)
				}
				require.Less(t, time.Since(began), 4*time.Second, "way %d", way)
				require.Equal(t, "0", after.get(t, "select count(*) from sink"))
				require.Equal(t, "0", after.get(t, "select count(*) from pg_class where relname = 'vanishing'"))
				eventually(t, "its locks are free", func() bool {
					return one[int](t, admin, "select count(*) from pg_locks where pid = "+before+" and granted and locktype <> 'virtualxid'") == 0
				})
				after.conn.Close()
			}
		})
	}
}

// Clients that come, ask and leave at once are what makes PgBouncer log in to
// PostgreSQL over and over.
func TestNoLoginStorm(t *testing.T) {
	t.Parallel()
	dsn := testserver.Postgres(t)
	admin := adminOf(t, dsn)
	cfg := only(t, dsn)
	cfg.PoolSize = 10
	f := newFront(t, cfg)
	for round := range 10 {
		var all []*talk
		for i := range 20 {
			k := f.client(t, i)
			require.NoError(t, k.write(encode(query(fmt.Sprintf("select pg_sleep(60), %d", round)))))
			all = append(all, k)
		}
		asleep(t, admin, cfg.PoolSize)
		for _, k := range all {
			require.NoError(t, k.conn.Close())
		}
		asleep(t, admin, 0)
	}
	eventually(t, "all are recovered", func() bool {
		return one[int](t, admin, "select count(*) from pg_stat_activity where datname = current_database() and state = 'idle'") == cfg.PoolSize
	})
	require.Equal(t, cfg.PoolSize, strings.Count(f.log.all(), "new connection to server"))
}
