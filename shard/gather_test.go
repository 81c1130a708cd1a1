package shard_test

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"github.com/shardgram/shardgram/shard"
)

// write stores notes with these numbers in a shard.
func write(t *testing.T, s shard.Shard, ids ...int64) {
	_, err := s.Exec(t.Context(), "insert into note select unnest($1::bigint[]), $2", ids, fmt.Sprint(s.Number()))
	require.NoError(t, err)
}

// ids asks for the numbers of all notes.
func ids() shard.Scatter[int64] {
	return shard.Scatter[int64]{SQL: "select id from note order by id", Scan: pgx.RowTo[int64]}
}

func sorted[T any](q shard.Scatter[T], compare func(a, b T) int) shard.Scatter[T] {
	q.Compare = compare
	return q
}

func TestGatherReturnsTheRowsOfAllShards(t *testing.T) {
	t.Parallel()
	var wire trips
	c := cluster(t, 64, shard.Config{MaxConns: 4, BeforeConnect: wire.beforeConnect})
	var want []int64
	for _, s := range c.Shards() {
		if s.Number()%3 != 0 { // the others are empty
			list := []int64{int64(s.Number()), int64(200 - s.Number()), int64(s.Number() % 5 * 1000)}
			write(t, s, list...)
			want = append(want, list...)
		}
	}
	slices.Sort(want)

	t.Run("InOrder", func(t *testing.T) {
		for _, limit := range []int{0, 1, 2, 7, 40, len(want), 1000} {
			q := sorted(ids(), cmp.Compare[int64])
			q.Limit = limit
			found, err := shard.Collect(shard.Gather(t.Context(), c, q))
			require.NoError(t, err)
			expect := want
			if limit > 0 {
				expect = want[:min(limit, len(want))]
			}
			require.Equal(t, expect, found, "limit %d", limit)
		}
	})

	t.Run("AsTheyArrive", func(t *testing.T) {
		for _, limit := range []int{0, 5, 1000} {
			q := ids()
			q.Limit = limit
			found, err := shard.Collect(shard.Gather(t.Context(), c, q))
			require.NoError(t, err)
			if limit > 0 && limit < len(want) {
				require.Len(t, found, limit)
				continue
			}
			slices.Sort(found)
			require.Equal(t, want, found)
		}
	})

	t.Run("InFewRoundTrips", func(t *testing.T) {
		q := sorted(ids(), cmp.Compare[int64])
		for range 4 { // the second one on a connection has nothing to prepare
			_, err := shard.Collect(shard.Gather(t.Context(), c, q))
			require.NoError(t, err)
		}
		before := wire.n.Load()
		found, err := shard.Collect(shard.Gather(t.Context(), c, q))
		require.NoError(t, err)
		require.Len(t, found, len(want))
		// One for each node, and perhaps one that asks whether a connection
		// that was idle is alive.
		require.LessOrEqual(t, wire.n.Load()-before, int64(4))
		require.GreaterOrEqual(t, wire.n.Load()-before, int64(2))
	})

	t.Run("TwiceFromOneSequence", func(t *testing.T) {
		seq := shard.Gather(t.Context(), c, sorted(ids(), cmp.Compare[int64]))
		for range 2 {
			found, err := shard.Collect(seq)
			require.NoError(t, err)
			require.Equal(t, want, found)
		}
	})

	t.Run("OfSomeShards", func(t *testing.T) {
		q := sorted(ids(), cmp.Compare[int64])
		q.Shards = []shard.Shard{c.Number(4), c.Number(1), c.Number(1)}
		found, err := shard.Collect(shard.Gather(t.Context(), c, q))
		require.NoError(t, err)
		require.Equal(t, []int64{1, 1, 4, 196, 199, 199, 1000, 1000, 4000}, found, "a shard that is named twice counts twice")
		q.Shards = []shard.Shard{}
		found, err = shard.Collect(shard.Gather(t.Context(), c, q))
		require.NoError(t, err)
		require.Empty(t, found)
	})

	t.Run("WithArguments", func(t *testing.T) {
		for name, args := range map[string][]any{"id > $1": {int64(1000)}, "id > @least": {pgx.NamedArgs{"least": 1000}}} {
			q := sorted(ids(), cmp.Compare[int64])
			q.SQL, q.Args = "select id from note where "+name+" order by id -- the largest", args
			q.Limit = 3
			found, err := shard.Collect(shard.Gather(t.Context(), c, q))
			require.NoError(t, err)
			require.Equal(t, []int64{2000, 2000, 2000}, found)
		}
		groups := map[shard.Shard][]int64{c.Number(1): {1, 199, 4}, c.Number(4): {4, 5}}
		q := sorted(ids(), cmp.Compare[int64])
		q.SQL = "select id from note where id = any($1) order by id"
		q.Shards = slices.Collect(maps.Keys(groups))
		q.ShardArgs = func(s shard.Shard) []any { return []any{groups[s]} }
		found, err := shard.Collect(shard.Gather(t.Context(), c, q))
		require.NoError(t, err)
		require.Equal(t, []int64{1, 4, 199}, found)
	})

	t.Run("WithNulls", func(t *testing.T) {
		q := shard.Scatter[*int64]{
			SQL: "select nullif(id, 1000) from note where id >= 1000 order by 1 nulls first", Scan: pgx.RowTo[*int64],
			Compare: func(a, b *int64) int {
				if a == nil || b == nil {
					return cmp.Compare(btoi(a != nil), btoi(b != nil))
				}
				return cmp.Compare(*a, *b)
			},
		}
		found, err := shard.Collect(shard.Gather(t.Context(), c, q))
		require.NoError(t, err)
		nulls, first := 0, slices.Index(want, 1000)
		for _, id := range want[first:] {
			nulls += btoi(id == 1000)
		}
		require.Len(t, found, len(want)-first)
		require.Nil(t, found[nulls-1])
		require.EqualValues(t, 2000, *found[nulls])
	})

	t.Run("BesideSingleStatements", func(t *testing.T) {
		// The connections are shared with others, who must find their own schema.
		var others sync.WaitGroup
		errs := make([]error, 4)
		for n := range errs {
			others.Go(func() {
				for i := range 50 {
					s := c.Number((n*50 + i) % 64)
					var schema string
					err := s.QueryRow(t.Context(), "select current_schema() where $1 = 1", 1).Scan(&schema)
					if err == nil && schema != s.Schema() {
						err = fmt.Errorf("ran in %s, want %s", schema, s.Schema())
					}
					errs[n] = errors.Join(errs[n], err)
				}
			})
		}
		for range 20 {
			q := shard.Scatter[string]{SQL: "select current_schema()::text", Scan: pgx.RowTo[string], Compare: strings.Compare}
			found, err := shard.Collect(shard.Gather(t.Context(), c, q))
			require.NoError(t, err)
			require.Len(t, slices.Compact(found), 64)
		}
		others.Wait()
		require.NoError(t, errors.Join(errs...))
	})
}

func btoi(b bool) int {
	if b {
		return 1
	}
	return 0
}

// TestGatherMergesAsSortingAllRowsDoes compares with a naive oracle.
func TestGatherMergesAsSortingAllRowsDoes(t *testing.T) {
	t.Parallel()
	c := cluster(t, 8, shard.Config{MaxConns: 2})
	rapid.Check(t, func(t *rapid.T) {
		// A row is (value, shard, place), made by the statement from an argument.
		type row struct{ Value, Shard, Place int64 }
		byShard := make(map[shard.Shard][]int64)
		var want []row
		for _, s := range c.Shards() {
			values := rapid.SliceOfN(rapid.Int64Range(0, 6), 0, 12).Draw(t, s.Schema())
			slices.Sort(values)
			byShard[s] = values
			for i, v := range values {
				want = append(want, row{v, int64(s.Number()), int64(i + 1)})
			}
		}
		slices.SortStableFunc(want, func(a, b row) int { return cmp.Compare(a.Value, b.Value) })
		limit := rapid.IntRange(0, 40).Draw(t, "limit")
		found, err := shard.Collect(shard.Gather(context.Background(), c, shard.Scatter[row]{
			SQL:       "select v, $2::bigint, n from unnest($1::bigint[]) with ordinality u(v, n) order by n",
			ShardArgs: func(s shard.Shard) []any { return []any{byShard[s], s.Number()} },
			Scan:      pgx.RowToStructByPos[row],
			Compare:   func(a, b row) int { return cmp.Compare(a.Value, b.Value) },
			Limit:     limit,
		}))
		if err != nil {
			t.Fatal(err)
		}
		if limit > 0 {
			want = want[:min(limit, len(want))]
		}
		if !slices.Equal(want, found) {
			t.Fatalf("got %v, want %v", found, want)
		}
	})
}

func TestGatherCannotWrite(t *testing.T) {
	t.Parallel()
	c := cluster(t, 4, shard.Config{})
	for _, s := range c.Shards() {
		_, err := s.Exec(t.Context(), "create sequence counter")
		require.NoError(t, err)
	}
	for _, sql := range []string{
		"insert into note values (1, 'x') returning id",
		"with w as (insert into note values (2, 'x') returning id) select id from w",
		"select nextval('counter')",
	} {
		_, err := shard.Collect(shard.Gather(t.Context(), c, shard.Scatter[int64]{SQL: sql, Scan: pgx.RowTo[int64]}))
		pg, ok := errors.AsType[*pgconn.PgError](err)
		require.True(t, ok, "%v", err)
		require.Equal(t, "25006", pg.Code)
	}
	for _, s := range c.Shards() {
		require.Zero(t, count(t, s))
		write(t, s, 1) // what was set for Gather does not last
	}
}

func TestGatherEndsAtTheFirstFailure(t *testing.T) {
	t.Parallel()
	c := cluster(t, 8, shard.Config{MaxConns: 2})
	for _, s := range c.Shards() {
		write(t, s, 1, 2, 3)
	}
	_, err := c.Number(5).Exec(t.Context(), "update note set body = 'no number' where id = 2")
	require.NoError(t, err)
	for _, test := range []struct {
		name, sql string
		scan      pgx.RowToFunc[int64]
		code      string
	}{
		{"Statement", "select body::bigint from note order by id", pgx.RowTo[int64], "22P02"},
		{"Scan", "select body from note order by id", func(row pgx.CollectableRow) (int64, error) {
			var n int64
			body, err := pgx.RowTo[string](row)
			if err == nil {
				_, err = fmt.Sscan(body, &n)
			}
			return n, err
		}, ""},
	} {
		for _, ordered := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s/ordered=%v", test.name, ordered), func(t *testing.T) {
				q := shard.Scatter[int64]{SQL: test.sql, Scan: test.scan}
				if ordered {
					q.Compare = func(a, b int64) int { return 0 }
				}
				failures := 0
				for _, err := range shard.Gather(t.Context(), c, q) {
					require.Zero(t, failures, "the failure is the last")
					if err == nil {
						require.False(t, ordered, "no row comes before the failure")
						continue
					}
					failures++
					e, ok := err.(*shard.Error)
					require.True(t, ok)
					require.Equal(t, 5, e.Shard)
					require.Equal(t, "b", e.Node)
					if pg, _ := errors.AsType[*pgconn.PgError](err); test.code != "" {
						require.Equal(t, test.code, pg.Code)
					}
				}
				require.Equal(t, 1, failures)

				q.Partial = true
				found, err := shard.Collect(shard.Gather(t.Context(), c, q))
				partial, ok := errors.AsType[*shard.PartialError](err)
				require.True(t, ok, "%v", err)
				require.Len(t, partial.Failed, 1)
				require.Equal(t, 5, partial.Failed[0].Shard)
				n := 0
				for _, number := range found {
					if number != 5 {
						n++
					}
				}
				require.Equal(t, 7*3, n, "all rows of the others")
				if ordered {
					require.Len(t, found, n)
				}
			})
		}
	}
	// Connections and their settings are as good as before.
	for _, s := range c.Shards() {
		require.Equal(t, 3, count(t, s))
	}
}

func TestGatherOfWrongScatters(t *testing.T) {
	t.Parallel()
	c, other := cluster(t, 4, shard.Config{}), cluster(t, 4, shard.Config{})
	write(t, c.Number(0), 1, 2, 3)
	good := sorted(ids(), cmp.Compare[int64])
	for name, change := range map[string]func(q *shard.Scatter[int64]){
		"no SQL":           func(q *shard.Scatter[int64]) { q.SQL = "" },
		"no Scan":          func(q *shard.Scatter[int64]) { q.Scan = nil },
		"negative Limit":   func(q *shard.Scatter[int64]) { q.Limit = -1 },
		"negative PerNode": func(q *shard.Scatter[int64]) { q.PerNode = -1 },
		"wrong order":      func(q *shard.Scatter[int64]) { q.SQL += " desc" },
		"two limits":       func(q *shard.Scatter[int64]) { q.SQL, q.Limit = q.SQL+" limit 3", 3 },
		"lacking argument": func(q *shard.Scatter[int64]) { q.SQL = "select $1::bigint" },
		"wrong argument":   func(q *shard.Scatter[int64]) { q.SQL, q.Args = "select $1::bigint", []any{"one"} },
		"wrong column":     func(q *shard.Scatter[int64]) { q.SQL = "select wrong from note" },
	} {
		for _, partial := range []bool{false, true} {
			q := good
			q.Partial = partial
			change(&q)
			found, err := shard.Collect(shard.Gather(t.Context(), c, q))
			require.Error(t, err, name)
			require.Empty(t, found, name)
		}
	}
	q := good
	for _, s := range []shard.Shard{c.Number(4), c.Number(-1), {}, other.Number(1)} {
		q.Shards = []shard.Shard{c.Number(0), s}
		q.Partial = false
		found, err := shard.Collect(shard.Gather(t.Context(), c, q))
		require.ErrorIs(t, err, shard.ErrNoShard)
		require.Empty(t, found)
		q.Partial = true
		found, err = shard.Collect(shard.Gather(t.Context(), c, q))
		require.ErrorIs(t, err, shard.ErrNoShard)
		require.Equal(t, []int64{1, 2, 3}, found)
	}
}

// TestLeavingGatherEarly uses clusters of one connection for each node: what is
// not given back is missed.
func TestLeavingGatherEarly(t *testing.T) {
	t.Parallel()
	c := cluster(t, 8, shard.Config{MaxConns: 1})
	ctx, stop := context.WithTimeout(t.Context(), time.Minute)
	defer stop()
	many := shard.Scatter[int64]{SQL: "select generate_series(1, 200000)", Scan: pgx.RowTo[int64]}
	for range 3 {
		n := 0
		for _, err := range shard.Gather(ctx, c, many) {
			require.NoError(t, err)
			if n++; n == 100 {
				break
			}
		}
		q := sorted(many, cmp.Compare[int64])
		q.Limit = 10
		for _, err := range shard.Gather(ctx, c, q) {
			require.NoError(t, err)
			break
		}
		require.Panics(t, func() {
			for range shard.Gather(ctx, c, many) {
				panic("in the loop")
			}
		})
	}

	// The context ends while rows are read, and while there are none yet.
	for _, q := range []shard.Scatter[int64]{many, sorted(many, cmp.Compare[int64]), {SQL: "select pg_sleep(60)", Scan: pgx.RowTo[int64]}} {
		for _, q.Partial = range []bool{false, true} {
			short, cancel := context.WithTimeout(ctx, 60*time.Millisecond)
			begin := time.Now()
			var last error
			for _, err := range shard.Gather(short, c, q) {
				if last = err; err == nil {
					<-short.Done()
				}
			}
			require.ErrorIs(t, last, context.DeadlineExceeded)
			require.Less(t, time.Since(begin), 10*time.Second)
			cancel()
		}
	}
	ended, cancel := context.WithCancel(ctx)
	cancel()
	_, err := shard.Collect(shard.Gather(ended, c, many))
	require.ErrorIs(t, err, context.Canceled)
	for _, s := range c.Shards() {
		require.Zero(t, count(t, s))
	}
}

// TestASlowReaderSlowsTheServers shows that rows are not piled up.
func TestASlowReaderSlowsTheServers(t *testing.T) {
	t.Parallel()
	c := cluster(t, 2, shard.Config{})
	var scanned atomic.Int64
	q := shard.Scatter[int64]{
		SQL: "select n from generate_series(1, 500000) n",
		Scan: func(row pgx.CollectableRow) (int64, error) {
			scanned.Add(1)
			return pgx.RowTo[int64](row)
		},
	}
	n := int64(0)
	for _, err := range shard.Gather(t.Context(), c, q) {
		require.NoError(t, err)
		n++
		require.LessOrEqual(t, scanned.Load()-n, int64(400))
		if n == 1 {
			time.Sleep(50 * time.Millisecond) // time to read ahead
		}
		if n == 100_000 {
			break
		}
	}
}

func TestAfterGatherAStatementFindsItsShard(t *testing.T) {
	t.Parallel()
	c := cluster(t, 8, shard.Config{MaxConns: 1})
	for _, s := range c.Shards() {
		q := ids()
		q.Shards = append([]shard.Shard{s}, c.Shards()...)
		_, err := shard.Collect(shard.Gather(t.Context(), c, q))
		require.NoError(t, err)
		var schema string
		require.NoError(t, s.QueryRow(t.Context(), "select current_schema()").Scan(&schema))
		require.Equal(t, s.Schema(), schema)
	}
}
