package shard_test

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/stretchr/testify/require"

	"github.com/shardgram/shardgram/internal/localserver"
	"github.com/shardgram/shardgram/internal/testserver"
	"github.com/shardgram/shardgram/shard"
)

// fence keeps writes from the table of a shard on its present node.
func fence(t *testing.T, s shard.Shard) {
	_, err := s.Exec(t.Context(), `
		create or replace function fence() returns trigger language plpgsql as $$
		begin
			raise exception 'the shard is fenced' using errcode = 'SH001';
		end $$;
		create trigger shardgram_fence before insert or update or delete or truncate on note
			for each statement execute function fence()`)
	require.NoError(t, err)
}

func unfence(t *testing.T, s shard.Shard) {
	_, err := s.Exec(t.Context(), "drop trigger shardgram_fence on note")
	require.NoError(t, err)
}

// deaf is a catalog that gives no hints.
type deaf struct{ shard.Catalog }

func (deaf) Wait(ctx context.Context, _ int64) error {
	<-ctx.Done()
	return ctx.Err()
}

// movable returns a cluster that learns of moves from fences alone, and its
// catalog.
func movable(t *testing.T) (*shard.Cluster, shard.Catalog) {
	cat := shard.Static(2,
		shard.Node{Name: "a", DSN: testserver.Postgres(t)},
		shard.Node{Name: "b", DSN: testserver.Postgres(t)})
	c := open(t, deaf{cat}, shard.Config{Poll: time.Hour, MaxConns: 8})
	migrate(t, c)
	return c, cat
}

// writers are the ways to write the row with an ID.
var writers = map[string]func(ctx context.Context, s shard.Shard, id int) error{
	"Exec": func(ctx context.Context, s shard.Shard, id int) error {
		_, err := s.Exec(ctx, "insert into note values ($1, 'x')", id)
		return err
	},
	"ExecText": func(ctx context.Context, s shard.Shard, id int) error {
		_, err := s.Exec(ctx, fmt.Sprintf("insert into note values (%d, 'x')", id))
		return err
	},
	"Query": func(ctx context.Context, s shard.Shard, id int) error {
		rows, err := s.Query(ctx, "insert into note values ($1, 'x') returning id", id)
		if err != nil {
			return err
		}
		_, err = pgx.CollectExactlyOneRow(rows, pgx.RowTo[int])
		return err
	},
	"QueryRow": func(ctx context.Context, s shard.Shard, id int) error {
		return s.QueryRow(ctx, "insert into note values ($1, 'x') returning id", id).Scan(&id)
	},
	"InTx": func(ctx context.Context, s shard.Shard, id int) error {
		return s.InTx(ctx, func(tx pgx.Tx) error {
			if _, err := tx.Exec(ctx, "select count(*) from note"); err != nil {
				return err
			}
			_, err := tx.Exec(ctx, "insert into note values ($1, 'x')", id)
			if err != nil {
				return fmt.Errorf("the program's own words: %w", err)
			}
			return nil
		})
	},
}

func TestAWriteWaitsForTheFence(t *testing.T) {
	t.Parallel()
	c, _ := movable(t)
	s := c.Number(1)
	fence(t, s)
	var ended atomic.Int32
	errs := make(chan error, len(writers))
	next := 0
	for _, write := range writers {
		next++
		id := next
		go func() {
			errs <- write(t.Context(), s, id)
			ended.Add(1)
		}()
	}
	// All of them have met the fence by now.
	eventually(t, "writers meet the fence", func() bool { return c.Stats().Shards[1].Fenced >= int64(3*len(writers)) })
	require.Zero(t, ended.Load())
	// Readers do not wait.
	require.Zero(t, count(t, s))
	unfence(t, s)
	for range writers {
		require.NoError(t, <-errs)
	}
	require.Equal(t, len(writers), count(t, s))
}

func TestAFencedWriteEndsWithItsContext(t *testing.T) {
	t.Parallel()
	c, _ := movable(t)
	s := c.Number(1)
	fence(t, s)
	for name, write := range writers {
		var err error
		eventually(t, "the context ends between two tries, not in one", func() bool {
			ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
			defer cancel()
			err = write(ctx, s, 1)
			return errors.Is(err, shard.ErrFenced)
		})
		require.ErrorIs(t, err, context.DeadlineExceeded, name)
		require.True(t, pgconn.SafeToRetry(err), name)
		e, ok := errors.AsType[*shard.Error](err)
		require.True(t, ok, name)
		require.Equal(t, 1, e.Shard)
		require.Equal(t, "b", e.Node)
	}
	// What is not run again says what it met, and that a retry is safe.
	_, err := s.CopyFrom(t.Context(), pgx.Identifier{"note"}, []string{"id", "body"}, pgx.CopyFromRows([][]any{{1, "x"}}))
	require.ErrorContains(t, err, "SH001")
	require.True(t, pgconn.SafeToRetry(err))
	b := &pgx.Batch{}
	b.Queue("insert into note values ($1, 'x')", 1)
	err = s.SendBatch(t.Context(), b).Close()
	require.ErrorContains(t, err, "SH001")
	require.True(t, pgconn.SafeToRetry(err))
	unfence(t, s)
	require.Zero(t, count(t, s))
}

func TestAWriteFollowsItsShard(t *testing.T) {
	t.Parallel()
	for name, write := range writers {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c, cat := movable(t)
			s := c.Number(1)
			require.NoError(t, write(t.Context(), s, 1))
			fence(t, s)
			copyShard(t, c, cat, 1, "a")
			require.Equal(t, "b", s.Node(), "the cluster has not heard of it")
			require.NoError(t, write(t.Context(), s, 2))
			require.Equal(t, "a", s.Node())
			require.Equal(t, 2, count(t, s))
		})
	}
}

// copyShard gives a shard to another node with all that it has.
func copyShard(t *testing.T, c *shard.Cluster, cat shard.Catalog, number int, to string) {
	m, err := cat.Load(t.Context())
	require.NoError(t, err)
	p := m.Shards[number]
	schema := c.Number(number).Schema()
	// A cluster whose map has the shard on the new node, for the making of it.
	var node shard.Node
	for _, n := range m.Nodes {
		if n.Name == to {
			node = n
		}
	}
	there := open(t, shard.Static(len(m.Shards), node), shard.Config{})
	_, err = there.Number(number).Exec(t.Context(), "drop schema if exists "+schema+" cascade")
	require.NoError(t, err)
	migrate(t, there)
	rows, err := c.Number(number).Query(t.Context(), "select id from note")
	require.NoError(t, err)
	ids, err := pgx.CollectRows(rows, pgx.RowTo[int64])
	require.NoError(t, err)
	_, err = there.Number(number).Exec(t.Context(), "insert into note select unnest($1::bigint[]), 'x'", ids)
	require.NoError(t, err)
	require.NoError(t, cat.Place(t.Context(), number, p.Epoch, shard.Placement{Node: to, State: shard.Serving}))
}

// handOver moves a shard under writers, with or without a fence, and returns how
// many acknowledged writes are not there afterwards.
func handOver(t *testing.T, fenced bool) (lost int) {
	c, cat := movable(t)
	s := c.Number(1)
	l := ledger{failed: make(map[int]error)}
	stop := make(chan struct{})
	var wg sync.WaitGroup
	for w := range 6 {
		wg.Go(func() {
			for i := 0; ; i++ {
				select {
				case <-stop:
					return
				default:
				}
				id := w*1_000_000 + i
				err := writers[[]string{"Exec", "InTx", "QueryRow"}[w%3]](t.Context(), s, id)
				l.mu.Lock()
				if err == nil {
					l.acked = append(l.acked, id)
				} else {
					l.failed[id] = err
				}
				l.mu.Unlock()
			}
		})
	}
	acked := func() int {
		l.mu.Lock()
		defer l.mu.Unlock()
		return len(l.acked)
	}
	eventually(t, "writers write", func() bool { return acked() > 100 })
	if fenced {
		fence(t, s) // waits for the writers that are in a transaction
	}
	copyShard(t, c, cat, 1, "a")
	before := acked()
	eventually(t, "writers go on", func() bool { return acked() > before+100 })
	close(stop)
	wg.Wait()
	require.Empty(t, l.failed)
	require.NoError(t, c.Refresh(t.Context()))
	require.Equal(t, "a", s.Node())
	return l.lost(t, c)
}

func TestAFenceKeepsEveryWrite(t *testing.T) {
	t.Parallel()
	require.Zero(t, handOver(t, true))
}

// The control: a map that spreads is not enough.
func TestAMoveWithoutAFenceLosesWrites(t *testing.T) {
	t.Parallel()
	require.Positive(t, handOver(t, false))
}

func TestAShardWithoutASchemaSaysSo(t *testing.T) {
	t.Parallel()
	c, cat := movable(t)
	s := c.Number(1)
	_, err := s.Exec(t.Context(), "drop schema "+s.Schema()+" cascade")
	require.NoError(t, err)
	for name, write := range writers {
		err := write(t.Context(), s, 1)
		require.ErrorIs(t, err, shard.ErrNoSchema, name)
		require.ErrorContains(t, err, "shard 1 on node b: ", name)
	}
	b := &pgx.Batch{}
	b.Queue("insert into note values ($1, 'x')", 1)
	require.ErrorIs(t, s.SendBatch(t.Context(), b).Close(), shard.ErrNoSchema)
	_, err = s.CopyFrom(t.Context(), pgx.Identifier{"note"}, []string{"id", "body"}, pgx.CopyFromRows([][]any{{1, "x"}}))
	require.ErrorIs(t, err, shard.ErrNoSchema)
	// Nothing is made elsewhere instead.
	_, err = s.Exec(t.Context(), "create table stray (n int)")
	require.ErrorIs(t, err, shard.ErrNoSchema)
	// A table that is not there is another matter.
	_, err = c.Number(0).Exec(t.Context(), "select * from nothing")
	require.NotErrorIs(t, err, shard.ErrNoSchema)
	require.ErrorContains(t, err, "42P01")
	// Nor is it an error if the shard has moved on.
	m := open(t, shard.Static(2, shard.Node{Name: "a", DSN: c.Map().Nodes[0].DSN}), shard.Config{})
	migrate(t, m)
	require.NoError(t, cat.Place(t.Context(), 1, 1, shard.Placement{Node: "a", State: shard.Serving}))
	require.Equal(t, "b", s.Node())
	require.Zero(t, count(t, s))
	require.Equal(t, "a", s.Node())
}

// TestACommitThatIsLostIsNotDoneAgain kills the server while it commits.
func TestACommitThatIsLostIsNotDoneAgain(t *testing.T) {
	t.Parallel()
	server, err := testserver.Host(t).Postgres(t.Context(), "lost", localserver.PostgresConfig{})
	require.NoError(t, err)
	c := open(t, shard.Static(1, shard.Node{Name: "a", DSN: server.DSN("postgres")}), shard.Config{})
	migrate(t, c)
	s := c.Number(0)
	_, err = s.Exec(t.Context(), `
		create function slow() returns trigger language plpgsql as $$ begin perform pg_sleep(60); return null; end $$;
		create constraint trigger slow after insert on note deferrable initially deferred for each row execute function slow()`)
	require.NoError(t, err)
	watch, err := pgx.Connect(t.Context(), server.DSN("postgres"))
	require.NoError(t, err)
	defer watch.Close(context.Background())
	for name, write := range map[string]func(ctx context.Context) error{
		"InTx": func(ctx context.Context) error {
			calls := 0
			err := s.InTx(ctx, func(tx pgx.Tx) error {
				calls++
				_, err := tx.Exec(ctx, "insert into note values (1, 'x')")
				return err
			})
			if calls != 1 {
				return fmt.Errorf("%d calls", calls)
			}
			return err
		},
		"Exec":     func(ctx context.Context) error { return writers["Exec"](ctx, s, 1) },
		"ExecText": func(ctx context.Context) error { return writers["ExecText"](ctx, s, 1) },
		"Begin": func(ctx context.Context) error {
			return pgx.BeginFunc(ctx, s, func(tx pgx.Tx) error {
				_, err := tx.Exec(ctx, "insert into note values (1, 'x')")
				return err
			})
		},
		"Batch": func(ctx context.Context) error {
			b := &pgx.Batch{}
			b.Queue("insert into note values ($1, 'x')", 1)
			return s.SendBatch(ctx, b).Close()
		},
	} {
		// By its context.
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- write(ctx) }()
		eventually(t, "it sleeps in its commit", func() bool {
			var n int
			err := watch.QueryRow(t.Context(), "select count(*) from pg_stat_activity where wait_event = 'PgSleep'").Scan(&n)
			return err == nil && n > 0
		})
		cancel()
		err := <-done
		require.ErrorIs(t, err, shard.ErrAmbiguous, name)
		require.ErrorIs(t, err, context.Canceled, name)
		require.False(t, pgconn.SafeToRetry(err), name)
		eventually(t, "it sleeps no more", func() bool {
			var n int
			err := watch.QueryRow(t.Context(), "select count(*) from pg_stat_activity where wait_event = 'PgSleep'").Scan(&n)
			return err == nil && n == 0
		})
	}
	done := make(chan error, 1)
	go func() { done <- writers["InTx"](t.Context(), s, 1) }()
	eventually(t, "it sleeps in its commit", func() bool {
		var n int
		err := watch.QueryRow(t.Context(), "select count(*) from pg_stat_activity where wait_event = 'PgSleep'").Scan(&n)
		return err == nil && n > 0
	})
	require.NoError(t, server.Kill())
	require.ErrorIs(t, <-done, shard.ErrAmbiguous)

	// A context that ended before the commit leaves no doubt.
	require.NoError(t, server.Restart(t.Context()))
	eventually(t, "the server is back", func() bool { _, err := s.Exec(t.Context(), "select 1"); return err == nil })
	ctx, cancel := context.WithCancel(t.Context())
	err = s.InTx(ctx, func(tx pgx.Tx) error {
		_, err := tx.Exec(ctx, "insert into note values (2, 'x')")
		cancel()
		return err
	})
	require.ErrorIs(t, err, context.Canceled)
	require.NotErrorIs(t, err, shard.ErrAmbiguous)
	require.Zero(t, count(t, s))
}
