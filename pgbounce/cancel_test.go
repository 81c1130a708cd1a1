package pgbounce_test

import (
	"fmt"
	"math/rand/v2"
	"slices"
	gosync "sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/shardgram/shardgram/internal/testserver"
	"github.com/shardgram/shardgram/pgbounce"
	"github.com/stretchr/testify/require"
)

// asleep waits until n servers of the database run pg_sleep.
func asleep(t *testing.T, admin *pgx.Conn, n int) {
	t.Helper()
	eventually(t, fmt.Sprintf("%d servers sleep", n), func() bool {
		return one[int](t, admin, "select count(*) from pg_stat_activity where datname = current_database() and wait_event = 'PgSleep'") == n
	})
}

// cancels asks for a cancel, and waits until it is done.
func cancels(t *testing.T, f *front, way int, key []byte) {
	t.Helper()
	conn, err := f.cancel(way, key)
	require.NoError(t, err)
	require.NoError(t, f.canceled(conn))
}

func TestCancel(t *testing.T) {
	t.Parallel()
	dsn := testserver.Postgres(t)
	cfg := only(t, dsn)
	cfg.PoolSize = 1
	f := newFront(t, cfg)
	admin := adminOf(t, dsn)
	for way, name := range []string{"TCP", "Unix", "Memory"} {
		t.Run("Running"+name, func(t *testing.T) {
			k := f.client(t, way)
			require.NoError(t, k.write(encode(query("select pg_sleep(60)"))))
			asleep(t, admin, 1)
			cancels(t, f, way, k.key)
			a, err := k.answer(1)
			require.NoError(t, err)
			require.Equal(t, []string{"57014"}, a.codes)
			require.Equal(t, "1", k.get(t, "select 1"))
		})
	}
	t.Run("RunningInATransaction", func(t *testing.T) {
		k := f.client(t, 0)
		k.do(t, "begin")
		require.NoError(t, k.write(encode(parse("", "select pg_sleep(60)"), bind("", ""), execute(""), sync)))
		asleep(t, admin, 1)
		cancels(t, f, 1, k.key)
		a, err := k.answer(1)
		require.NoError(t, err)
		require.Equal(t, []string{"57014"}, a.codes)
		require.Equal(t, "E", a.status)
		k.do(t, "rollback")
	})
	t.Run("Queued", func(t *testing.T) {
		holder, waits, extended := f.client(t, 0), f.client(t, 1), f.client(t, 2)
		holder.do(t, "begin")
		require.NoError(t, waits.write(encode(query("select 1"))))
		require.NoError(t, extended.write(encode(parse("kept", "select 2"), bind("", "kept"), execute(""))))
		eventually(t, "both wait", func() bool { return f.Census().Waiters == 2 })
		cancels(t, f, 0, waits.key)
		cancels(t, f, 0, extended.key)
		a, err := waits.answer(1)
		require.NoError(t, err)
		require.Equal(t, []string{"57014"}, a.codes)
		// All up to its Sync is skipped.
		a = extended.ask(t, parse("other", "select 3"), sync)
		require.Equal(t, "EZ", a.kinds)
		require.Equal(t, []string{"57014"}, a.codes)
		holder.do(t, "commit")
		require.Equal(t, "1", waits.get(t, "select 1"))
		a = extended.ask(t, bind("", "kept"), sync)
		require.Equal(t, []string{"26000"}, a.codes)
		require.Equal(t, "2", extended.get(t, "select 2"))
	})
	t.Run("Idle", func(t *testing.T) {
		k := f.client(t, 0)
		cancels(t, f, 0, k.key)
		require.Equal(t, "1", k.get(t, "select 1"))
		k.do(t, "begin")
		cancels(t, f, 0, k.key)
		require.Equal(t, "1", k.get(t, "select 1"))
		k.do(t, "commit")
	})
	t.Run("WrongSecret", func(t *testing.T) {
		k := f.client(t, 0)
		require.NoError(t, k.write(encode(query("select 7 from pg_sleep(0.5)"))))
		asleep(t, admin, 1)
		for i := range k.key {
			wrong := slices.Clone(k.key)
			wrong[i] ^= 1
			cancels(t, f, i, wrong)
		}
		cancels(t, f, 0, append(slices.Clone(k.key), 0))
		a, err := k.answer(1)
		require.NoError(t, err)
		require.Equal(t, []string{"7"}, a.rows)
	})
}

// Requests that come late must not meet the next client of the server.
func TestLateCancels(t *testing.T) {
	t.Parallel()
	dsn := testserver.Postgres(t)
	cfg := only(t, dsn)
	cfg.PoolSize = 3
	cfg.Loops = 2
	cfg.QuietConnections = true
	f := newFront(t, cfg)
	require.NoError(t, f.StartLoops(2))
	end := time.Now().Add(2 * time.Second)
	var group gosync.WaitGroup
	var hits, innocent atomic.Int64
	faults := make(chan string, 100)
	for i := range 12 {
		k := f.client(t, i)
		cancelling := i%2 == 0
		random := rand.New(rand.NewPCG(uint64(i), 1))
		group.Go(func() {
			var requests gosync.WaitGroup
			defer requests.Wait()
			for time.Now().Before(end) {
				if err := k.write(encode(query("select 1 from pg_sleep(0.001)"))); err != nil {
					faults <- err.Error()
					return
				}
				if cancelling {
					wait := time.Duration(random.IntN(3000)) * time.Microsecond
					requests.Go(func() {
						time.Sleep(wait)
						if conn, err := f.cancel(i, k.key); err != nil {
							faults <- err.Error()
						} else if err := f.canceled(conn); err != nil {
							faults <- err.Error()
						}
					})
				}
				a, err := k.answer(1)
				switch {
				case err != nil:
					faults <- err.Error()
					return
				case cancelling && slices.Equal(a.codes, []string{"57014"}):
					hits.Add(1)
				case len(a.codes) > 0:
					faults <- a.String()
				case !cancelling:
					innocent.Add(1)
				}
			}
		})
	}
	group.Wait()
	close(faults)
	for fault := range faults {
		t.Error(fault)
	}
	require.NotZero(t, hits.Load())
	require.NotZero(t, innocent.Load())
	t.Logf("%d cancelled, %d queries of others", hits.Load(), innocent.Load())
}

// A request that reaches another process of the same address is passed on.
func TestCancelThroughAPeer(t *testing.T) {
	t.Parallel()
	dsn := testserver.Postgres(t)
	admin := adminOf(t, dsn)
	first := only(t, dsn)
	first.PeerID = 1
	f := newFront(t, first)
	second := only(t, dsn)
	second.PeerID = 2
	second.Peers = map[int]pgbounce.Peer{1: {Host: f.folder, Port: 6432}}
	g := newFront(t, second)
	k := f.client(t, 0)
	require.NoError(t, k.write(encode(query("select pg_sleep(60)"))))
	asleep(t, admin, 1)
	cancels(t, g, 0, k.key)
	a, err := k.answer(1)
	require.NoError(t, err)
	require.Equal(t, []string{"57014"}, a.codes)
	require.Equal(t, "1", k.get(t, "select 1"))
}
