package pglease_test

import (
	"context"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/stretchr/testify/require"

	"github.com/shardgram/shardgram/idgen"
	"github.com/shardgram/shardgram/idgen/internal/leasetest"
	"github.com/shardgram/shardgram/idgen/pglease"
	"github.com/shardgram/shardgram/internal/localserver"
	"github.com/shardgram/shardgram/internal/testserver"
)

const (
	// holderTTL is the shortest there is, as tests wait for its end.
	holderTTL    = time.Second
	holderWindow = 200 * time.Millisecond
)

// hold is the life of a holder process. Its argument is the kind of lease and
// the address of the database.
func hold(arg string) {
	kind, dsn, _ := strings.Cut(arg, " ")
	pool, err := pgxpool.New(context.Background(), dsn)
	if err != nil {
		panic(err)
	}
	var leases idgen.Leases = naive{pool}
	if kind != "naive" {
		if leases, err = pglease.New(pool, pglease.Config{TTL: holderTTL}); err != nil {
			panic(err)
		}
	}
	leasetest.Hold(leases, idgen.AnyShard, idgen.Config{Layout: leasetest.HolderLayout, Window: holderWindow})
}

// naive is what pglease would be without marks: a number is held until its time
// is up.
type naive struct{ db *pgxpool.Pool }

func (n naive) Claim(ctx context.Context, _ int, _ idgen.Layout) (idgen.Lease, error) {
	l := naiveLease{db: n.db}
	err := n.db.QueryRow(ctx, `
		with free as (
			select number from idgen_lease where expires_at <= clock_timestamp()
			order by number limit 1 for update skip locked
		)
		update idgen_lease lease set expires_at = clock_timestamp() + make_interval(secs => $1)
		from free where lease.number = free.number returning lease.number`, holderTTL.Seconds()).Scan(&l.shard)
	return l, err
}

type naiveLease struct {
	db    *pgxpool.Pool
	shard int
}

func (l naiveLease) Shard() int { return l.shard }

func (l naiveLease) Mark() idgen.ID { return 0 }

func (l naiveLease) Extend(ctx context.Context, _ idgen.ID) error {
	_, err := l.db.Exec(ctx, `update idgen_lease set expires_at = clock_timestamp() + make_interval(secs => $2)
		where number = $1`, l.shard, holderTTL.Seconds())
	return err
}

func (l naiveLease) Release(context.Context, idgen.ID) error { return nil }

// newFleet returns what starts holders of a kind on a new database, and what
// waits until some of their numbers have expired. Twelve numbers are ready, all
// expired.
func newFleet(t *testing.T, kind string) (start func() *leasetest.Holder, expired func(shards ...int)) {
	t.Helper()
	dsn := testserver.Postgres(t)
	pool := connect(t, dsn)
	newStore(t, pool, pglease.Config{})
	_, err := pool.Exec(t.Context(), `insert into idgen_lease
		select 'ids', n, $1, '', 0, '-infinity' from generate_series(0, 11) n`, leasetest.HolderLayout.String())
	require.NoError(t, err)
	start = func() *leasetest.Holder { return leasetest.StartHolder(t, kind+" "+dsn) }
	expired = func(shards ...int) {
		t.Helper()
		require.Eventually(t, func() bool {
			var n int
			err := pool.QueryRow(t.Context(), `select count(*) from idgen_lease
				where number = any($1) and expires_at <= clock_timestamp()`, shards).Scan(&n)
			return err == nil && n == len(shards)
		}, time.Minute, 10*time.Millisecond)
	}
	return start, expired
}

// kinds are the leases of this package, and the negative control: the same
// scenario must find repeated IDs where only the clock ends a lease.
var kinds = []struct {
	name, kind string
	repeats    bool
}{
	{"NothingIsRepeated", "pglease", false},
	{"LeasesByTheClockRepeat", "naive", true},
}

// check looks at all that holders have printed, and at how zombies ended.
func check(t *testing.T, repeats bool, all, zombies []*leasetest.Holder) {
	t.Helper()
	for _, h := range all {
		h.Kill()
	}
	ids, repeated := leasetest.Repeats(all...)
	t.Logf("%d IDs of %d processes, %d of them repeated", ids, len(all), repeated)
	if repeats {
		require.NotZero(t, repeated)
		return
	}
	require.Zero(t, repeated)
	for _, z := range zombies {
		require.Contains(t, z.AwaitFailure(t), idgen.ErrLeaseLost.Error())
	}
}

// TestTwoZombies stops a holder, and its successor, past their time. Both wake
// up beside a third one.
func TestTwoZombies(t *testing.T) {
	t.Parallel()
	for _, tt := range kinds {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			start, expired := newFleet(t, tt.kind)
			var all []*leasetest.Holder
			for range 3 {
				if n := len(all); n > 0 {
					all[n-1].Pause(t)
					expired(0)
				}
				h := start()
				all = append(all, h)
				require.True(t, h.Await(t, 1000))
				require.Zero(t, leasetest.HolderLayout.Shard(h.IDs()[0]), "the lowest that is free")
			}
			zombies, last := all[:2], all[2]
			for _, z := range zombies {
				z.Resume(t)
			}
			for _, z := range zombies {
				z.Await(t, 2000) // or it ends
			}
			require.True(t, last.Await(t, 1000), "the newest goes on")
			check(t, tt.repeats, all, zombies)
			if !tt.repeats {
				require.Greater(t, last.IDs()[0], zombies[1].IDs()[0])
			}
		})
	}
}

// TestFleet keeps six holders at work, of which some are killed and some are
// stopped past their time, while others take their numbers.
func TestFleet(t *testing.T) {
	t.Parallel()
	for _, tt := range kinds {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			start, expired := newFleet(t, tt.kind)
			shard := func(h *leasetest.Holder) int { return leasetest.HolderLayout.Shard(h.IDs()[0]) }
			var all, fleet, zombies []*leasetest.Holder
			add := func(n int) {
				for range n {
					h := start()
					all, fleet = append(all, h), append(fleet, h)
				}
				for _, h := range fleet {
					require.True(t, h.Await(t, 200))
				}
			}
			add(6)
			for range 3 {
				gone := fleet[:3]
				fleet = fleet[3:]
				gone[0].Kill()
				gone[1].Pause(t)
				gone[2].Pause(t)
				expired(shard(gone[0]), shard(gone[1]), shard(gone[2]))
				add(3)
				for _, z := range gone[1:] {
					zombies = append(zombies, z)
					z.Resume(t)
					z.Await(t, 2000) // or it ends
					z.Kill()
				}
				add(0)
			}
			check(t, tt.repeats, all, zombies)
		})
	}
}

// ownServer starts a PostgreSQL that the test may break.
func ownServer(t *testing.T, settings map[string]string) (*localserver.Postgres, *pgxpool.Pool) {
	t.Helper()
	server, err := testserver.Host(t).Postgres(t.Context(), "postgres", localserver.PostgresConfig{Settings: settings})
	require.NoError(t, err)
	return server, connect(t, server.DSN("postgres"))
}

// drain makes IDs until the generator fails, and returns the last one.
func drain(t *testing.T, g *idgen.Generator, last idgen.ID) (idgen.ID, error) {
	t.Helper()
	for deadline := time.Now().Add(time.Minute); ; {
		require.True(t, time.Now().Before(deadline), "the generator goes on without its store")
		ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
		id, err := g.Next(ctx)
		cancel()
		if err != nil {
			return last, err
		}
		require.Greater(t, id, last)
		last = id
	}
}

// resumes asks for IDs until there is one again.
func resumes(t *testing.T, g *idgen.Generator, last idgen.ID) idgen.ID {
	t.Helper()
	for deadline := time.Now().Add(time.Minute); ; {
		id, err := g.Next(t.Context())
		if err == nil {
			require.Greater(t, id, last)
			return id
		}
		require.NotErrorIs(t, err, idgen.ErrLeaseLost)
		require.True(t, time.Now().Before(deadline), "%v", err)
	}
}

func TestServerIsKilled(t *testing.T) {
	t.Parallel()
	server, pool := ownServer(t, nil)
	s := newStore(t, pool, pglease.Config{})
	g, err := idgen.Open(t.Context(), s, 3, idgen.Config{Window: holderWindow})
	require.NoError(t, err)
	var last idgen.ID
	for range 3 {
		last = resumes(t, g, last)
		require.NoError(t, server.Kill())
		last, err = drain(t, g, last)
		require.NotErrorIs(t, err, idgen.ErrLeaseLost)
		require.NoError(t, server.Restart(t.Context()))
		last = resumes(t, g, last)
	}
	require.NoError(t, server.Kill())
	require.NoError(t, server.Restart(t.Context()))
	var l idgen.Lease
	require.Eventually(t, func() bool {
		l, err = s.Claim(t.Context(), 3, idgen.Default)
		return err == nil
	}, time.Minute, 10*time.Millisecond)
	require.GreaterOrEqual(t, l.Mark(), last, "the mark is still there")
	require.NoError(t, l.Release(t.Context(), l.Mark()))
	_, err = drain(t, g, last)
	require.ErrorIs(t, err, idgen.ErrLeaseLost)
	require.NoError(t, g.Close())
}

func TestServerHangs(t *testing.T) {
	t.Parallel()
	server, pool := ownServer(t, nil)
	s := newStore(t, pool, pglease.Config{})
	g, err := idgen.Open(t.Context(), s, 3, idgen.Config{Window: holderWindow})
	require.NoError(t, err)
	last := resumes(t, g, 0)
	require.NoError(t, server.Pause())
	last, err = drain(t, g, last)
	require.ErrorIs(t, err, context.DeadlineExceeded)
	for range 3 {
		ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
		begin := time.Now()
		_, err = g.Next(ctx)
		cancel()
		require.ErrorIs(t, err, context.DeadlineExceeded)
		require.Less(t, time.Since(begin), 5*time.Second)
	}
	require.NoError(t, server.Resume())
	last = resumes(t, g, last)
	require.NoError(t, g.Close())
	require.GreaterOrEqual(t, claim(t, s, 3).Mark(), last)
}

// TestStatementsAreFlushed kills a server that flushes nothing by itself for
// 10 s, where synchronous_commit is off.
func TestStatementsAreFlushed(t *testing.T) {
	t.Parallel()
	server, pool := ownServer(t, map[string]string{"synchronous_commit": "off", "wal_writer_delay": "10s"})
	s := newStore(t, pool, pglease.Config{})
	_, err := pool.Exec(t.Context(), `set synchronous_commit = on; create table control (n int)`)
	require.NoError(t, err)
	var l idgen.Lease
	rows := func() (out string) {
		t.Helper()
		require.Eventually(t, func() bool {
			return pool.QueryRow(t.Context(), `select string_agg(lease::text, E'\n' order by number) from idgen_lease lease`).Scan(&out) == nil
		}, time.Minute, 10*time.Millisecond)
		return out
	}
	steps := 0
	for i, step := range []struct {
		name string
		do   func() error
	}{
		{"Start", func() error { _, err := s.Claim(t.Context(), 4, idgen.Default); return err }},
		{"Claim", func() (err error) { l, err = s.Claim(t.Context(), 3, idgen.Default); return err }},
		{"ClaimAgain", func() (err error) { l, err = s.Claim(t.Context(), 3, idgen.Default); return err }},
		{"Extend", func() error { return l.Extend(t.Context(), 100) }},
		{"Release", func() error { return l.Release(t.Context(), 90) }},
		{"ClaimAnyFree", func() error { _, err := s.Claim(t.Context(), idgen.AnyShard, idgen.Default); return err }},
		{"ClaimAnyNew", func() error { _, err := s.Claim(t.Context(), idgen.AnyShard, idgen.Default); return err }},
	} {
		require.NoError(t, step.do(), step.name)
		before := rows()
		_, err := pool.Exec(t.Context(), `insert into control values ($1)`, i)
		require.NoError(t, err)
		require.NoError(t, server.Kill())
		require.NoError(t, server.Restart(t.Context()))
		require.Equal(t, before, rows(), "%s was forgotten", step.name)
		steps++
	}
	var kept int
	require.NoError(t, pool.QueryRow(t.Context(), `select count(*) from control`).Scan(&kept))
	t.Logf("%d of %d rows of the control are kept", kept, steps)
	require.Less(t, kept, steps, "the server forgets what is not flushed, or this test shows nothing")
}

// TestNothingIsLeftInASession uses one connection as through a pooler that
// gives each statement to any session.
func TestNothingIsLeftInASession(t *testing.T) {
	t.Parallel()
	pool := connect(t, testserver.Postgres(t)+"&pool_max_conns=1&options=-csynchronous_commit%3Doff")
	s := newStore(t, pool, pglease.Config{})
	state := func() (out string) {
		t.Helper()
		const sql = `select current_setting('synchronous_commit') ||
			(select count(*) from pg_prepared_statements where statement ~ 'idgen[_]lease') ||
			(select count(*) from pg_locks where locktype = 'advisory' and pid = pg_backend_pid())`
		require.NoError(t, pool.QueryRow(t.Context(), sql, pgx.QueryExecModeExec).Scan(&out))
		return out
	}
	require.Equal(t, "off00", state())
	for _, shard := range []int{3, idgen.AnyShard} {
		l := claim(t, s, shard)
		require.Equal(t, "off00", state())
		require.NoError(t, l.Extend(t.Context(), 100))
		require.Equal(t, "off00", state())
		_, err := pool.Exec(t.Context(), "discard all")
		require.NoError(t, err)
		require.NoError(t, l.Release(t.Context(), 100))
		require.Equal(t, "off00", state())
	}
}
