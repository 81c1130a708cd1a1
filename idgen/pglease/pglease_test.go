package pglease_test

import (
	"context"
	"errors"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/stretchr/testify/require"

	"github.com/shardgram/shardgram/idgen"
	"github.com/shardgram/shardgram/idgen/internal/leasetest"
	"github.com/shardgram/shardgram/idgen/pglease"
	"github.com/shardgram/shardgram/internal/testserver"
)

// postgresDSN is for the example.
var postgresDSN string

func TestMain(m *testing.M) {
	if arg, ok := leasetest.Holding(); ok {
		hold(arg)
	}
	postgresDSN = testserver.PostgresDSN()
	testserver.Main(m, testserver.NeedPostgres)
}

// newPool returns connections to a new database.
func newPool(t *testing.T) *pgxpool.Pool {
	t.Helper()
	return connect(t, testserver.Postgres(t))
}

func connect(t *testing.T, dsn string) *pgxpool.Pool {
	t.Helper()
	pool, err := pgxpool.New(t.Context(), dsn)
	require.NoError(t, err)
	t.Cleanup(pool.Close)
	return pool
}

// newStore returns a store whose table is installed.
func newStore(t *testing.T, db pglease.DB, cfg pglease.Config) *pglease.Store {
	t.Helper()
	s, err := pglease.New(db, cfg)
	require.NoError(t, err)
	require.NoError(t, s.Install(t.Context()))
	return s
}

func claim(t *testing.T, s *pglease.Store, shard int) idgen.Lease {
	t.Helper()
	l, err := s.Claim(t.Context(), shard, idgen.Default)
	require.NoError(t, err)
	return l
}

func TestStore(t *testing.T) {
	t.Parallel()
	leasetest.Run(t, func(t *testing.T) leasetest.Store {
		pool := newPool(t)
		return leasetest.Store{
			Leases:    newStore(t, pool, pglease.Config{}),
			Displaces: true,
			Expire: func(t *testing.T, shard int) {
				tag, err := pool.Exec(t.Context(), `update idgen_lease set expires_at = clock_timestamp() where number = $1`, shard)
				require.NoError(t, err)
				require.EqualValues(t, 1, tag.RowsAffected())
			},
		}
	})
}

func TestNewRefusesABadConfig(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name string
		cfg  pglease.Config
		says string
	}{
		{"TTLNegative", pglease.Config{TTL: -1}, "Config.TTL is -1ns"},
		{"TTLShort", pglease.Config{TTL: time.Millisecond}, "Config.TTL is 1ms: want 1s or more"},
		{"TableOfThreeParts", pglease.Config{Table: "a.b.c"}, `Config.Table is "a.b.c"`},
		{"TableWithoutSchema", pglease.Config{Table: ".b"}, `Config.Table is ".b"`},
		{"TableWithoutName", pglease.Config{Table: "a."}, `Config.Table is "a."`},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			_, err := pglease.New(&pgxpool.Pool{}, tt.cfg)
			require.ErrorContains(t, err, tt.says)
		})
	}
	_, err := pglease.New(nil, pglease.Config{})
	require.ErrorContains(t, err, "DB is nil")
}

func TestTableAndNameAreQuoted(t *testing.T) {
	t.Parallel()
	pool := newPool(t)
	const schema, table = `my "Schema; drop`, `Lease TABLE $1 "x" -- `
	_, err := pool.Exec(t.Context(), "create schema "+pgx.Identifier{schema}.Sanitize())
	require.NoError(t, err)
	cfg := pglease.Config{Name: `o'clock; "$1"`, Table: schema + "." + table}
	l := claim(t, newStore(t, pool, cfg), 3)
	require.NoError(t, l.Extend(t.Context(), 100))
	var mark int64
	sql := "select mark from " + pgx.Identifier{schema, table}.Sanitize() + " where name = $1"
	require.NoError(t, pool.QueryRow(t.Context(), sql, cfg.Name).Scan(&mark))
	require.EqualValues(t, 100, mark)
}

func TestNamesAreIndependent(t *testing.T) {
	t.Parallel()
	pool := newPool(t)
	photos := newStore(t, pool, pglease.Config{Name: "photos"})
	users := newStore(t, pool, pglease.Config{Name: "users"})
	a, b := claim(t, photos, 3), claim(t, users, 3)
	require.NoError(t, a.Extend(t.Context(), 100))
	require.Zero(t, b.Mark())
	require.NoError(t, b.Extend(t.Context(), 200))
	require.NoError(t, a.Extend(t.Context(), 300))
	require.Zero(t, claim(t, photos, idgen.AnyShard).Shard())
	require.Zero(t, claim(t, users, idgen.AnyShard).Shard())
	require.EqualValues(t, 200, claim(t, users, 3).Mark())
}

func TestInstallAtOnce(t *testing.T) {
	t.Parallel()
	s, err := pglease.New(newPool(t), pglease.Config{})
	require.NoError(t, err)
	errs := make([]error, 8)
	var wg sync.WaitGroup
	for i := range errs {
		wg.Go(func() { errs[i] = s.Install(t.Context()) })
	}
	wg.Wait()
	for _, err := range errs {
		require.NoError(t, err)
	}
	require.NoError(t, claim(t, s, 3).Extend(t.Context(), 100))
	require.NoError(t, s.Install(t.Context()))
	require.EqualValues(t, 100, claim(t, s, 3).Mark(), "a table that is there stays")
}

func TestWithoutATable(t *testing.T) {
	t.Parallel()
	pool := newPool(t)
	s, err := pglease.New(pool, pglease.Config{})
	require.NoError(t, err)
	for _, shard := range []int{3, idgen.AnyShard} {
		_, err = s.Claim(t.Context(), shard, idgen.Default)
		require.ErrorContains(t, err, `there is no table "idgen_lease", call Install`)
		var e *pgconn.PgError
		require.ErrorAs(t, err, &e)
	}
	require.NoError(t, s.Install(t.Context()))
	l := claim(t, s, 3)
	_, err = pool.Exec(t.Context(), "drop table idgen_lease")
	require.NoError(t, err)
	err = l.Extend(t.Context(), 100)
	require.ErrorContains(t, err, "call Install")
	require.NotErrorIs(t, err, idgen.ErrLeaseLost)
	require.ErrorContains(t, l.Release(t.Context(), 100), "call Install")
}

// TestOneConnection uses a lease over a connection instead of a pool.
func TestOneConnection(t *testing.T) {
	t.Parallel()
	conn, err := pgx.Connect(t.Context(), testserver.Postgres(t))
	require.NoError(t, err)
	defer conn.Close(context.Background())
	g, err := idgen.Open(t.Context(), newStore(t, conn, pglease.Config{}), 3, idgen.Config{Window: 100 * time.Millisecond})
	require.NoError(t, err)
	_, err = g.Next(t.Context())
	require.NoError(t, err)
	require.NoError(t, g.Close())
}

// counting counts round trips: in the mode that pglease asks for each call is
// one. It can lose answers.
type counting struct {
	*pgxpool.Pool
	calls int
	lose  bool // the answer
	drop  bool // the statement, too
}

// errLost is all that the holder learns.
var errLost = errors.New("the connection broke")

func (c *counting) Exec(ctx context.Context, sql string, args ...any) (pgconn.CommandTag, error) {
	c.calls++
	if c.drop {
		return pgconn.CommandTag{}, errLost
	}
	tag, err := c.Pool.Exec(ctx, sql, args...)
	if c.lose {
		return pgconn.CommandTag{}, errLost
	}
	return tag, err
}

func (c *counting) QueryRow(ctx context.Context, sql string, args ...any) pgx.Row {
	c.calls++
	return c.Pool.QueryRow(ctx, sql, args...)
}

func TestRoundTrips(t *testing.T) {
	t.Parallel()
	db := &counting{Pool: newPool(t)}
	s := newStore(t, db, pglease.Config{})
	for _, shard := range []int{3, 3, idgen.AnyShard, idgen.AnyShard} {
		db.calls = 0
		l := claim(t, s, shard)
		require.Equal(t, 1, db.calls, "Claim")
		require.NoError(t, l.Extend(t.Context(), 100))
		require.Equal(t, 2, db.calls, "Extend")
		require.NoError(t, l.Release(t.Context(), 100))
		require.Equal(t, 3, db.calls, "Release")
	}
}

// TestExtendAfterALostAnswer loses the answers of some statements, and others
// before they arrive: the holder cannot tell which.
func TestExtendAfterALostAnswer(t *testing.T) {
	t.Parallel()
	db := &counting{Pool: newPool(t)}
	s := newStore(t, db, pglease.Config{})
	a := claim(t, s, 3)
	require.NoError(t, a.Extend(t.Context(), 100))
	db.lose = true
	for _, mark := range []idgen.ID{200, 300, 400} {
		require.ErrorIs(t, a.Extend(t.Context(), mark), errLost)
		db.drop = true
		require.ErrorIs(t, a.Extend(t.Context(), mark+50), errLost)
		db.drop = false
	}
	db.lose = false
	require.NoError(t, a.Extend(t.Context(), 500), "the holder has lost answers, not the number")
	db.calls = 0
	require.NoError(t, a.Extend(t.Context(), 600))
	require.Equal(t, 1, db.calls, "all is known again")

	db.lose = true
	require.ErrorIs(t, a.Extend(t.Context(), 700), errLost)
	db.lose = false
	require.NoError(t, a.Release(t.Context(), 650), "Release accepts what may be stored too")
	b := claim(t, s, idgen.AnyShard)
	require.Equal(t, 3, b.Shard())
	require.EqualValues(t, 650, b.Mark())

	db.lose = true
	require.ErrorIs(t, b.Extend(t.Context(), 800), errLost)
	db.lose = false
	c := claim(t, s, 3)
	require.EqualValues(t, 800, c.Mark())
	require.ErrorIs(t, b.Extend(t.Context(), 900), idgen.ErrLeaseLost)
	require.NoError(t, c.Extend(t.Context(), 900))
}

// TestAClonedHolderLoses copies a holder with its token and what it knows, as a
// virtual machine is cloned.
func TestAClonedHolderLoses(t *testing.T) {
	t.Parallel()
	for _, same := range []bool{false, true} {
		pool := newPool(t)
		s := newStore(t, pool, pglease.Config{})
		a := claim(t, s, 3)
		require.NoError(t, a.Extend(t.Context(), 100))
		clone := pglease.Clone(a)
		mark := idgen.ID(300)
		if same {
			mark = 200 // both go on to the same mark
		}
		require.NoError(t, a.Extend(t.Context(), 200))
		for range 2 {
			require.ErrorIs(t, clone.Extend(t.Context(), mark), idgen.ErrLeaseLost)
		}
		require.NoError(t, clone.Release(t.Context(), 100))
		require.NoError(t, a.Extend(t.Context(), 400), "the first one goes on")
		require.EqualValues(t, 400, claim(t, s, 3).Mark())
	}
}

// TestAClonedHolderIsNotTakenForALostAnswer has a clone whose Extend never
// arrived, while the other one went on to the same mark.
func TestAClonedHolderIsNotTakenForALostAnswer(t *testing.T) {
	t.Parallel()
	db := &counting{Pool: newPool(t)}
	a := claim(t, newStore(t, db, pglease.Config{}), 3)
	require.NoError(t, a.Extend(t.Context(), 100))
	clone := pglease.Clone(a)
	db.drop = true
	require.ErrorIs(t, clone.Extend(t.Context(), 200), errLost)
	db.drop = false
	require.NoError(t, a.Extend(t.Context(), 200))
	require.ErrorIs(t, clone.Extend(t.Context(), 200), idgen.ErrLeaseLost)
	require.NoError(t, a.Extend(t.Context(), 300))
}
