package shard_test

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"

	"github.com/shardgram/shardgram/internal/testserver"
	"github.com/shardgram/shardgram/shard"
)

// tape records what a tracer of queries is told.
type tape struct {
	mu     sync.Mutex
	events []string
}

func (t *tape) note(ctx context.Context, event string) context.Context {
	at := "nowhere"
	if s, ok := shard.FromContext(ctx); ok {
		at = s.Schema()
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	t.events = append(t.events, at+": "+event)
	return ctx
}

// play returns what was recorded since the last time.
func (t *tape) play() []string {
	t.mu.Lock()
	defer t.mu.Unlock()
	events := t.events
	t.events = nil
	return events
}

func (t *tape) TraceQueryStart(ctx context.Context, _ *pgx.Conn, data pgx.TraceQueryStartData) context.Context {
	return t.note(ctx, data.SQL)
}

func (t *tape) TraceQueryEnd(ctx context.Context, _ *pgx.Conn, data pgx.TraceQueryEndData) {
	if data.Err != nil {
		t.note(ctx, "failed")
		return
	}
	t.note(ctx, data.CommandTag.String())
}

// fullTape records everything that pgx tells of statements.
type fullTape struct{ tape }

func (t *fullTape) TraceBatchStart(ctx context.Context, _ *pgx.Conn, data pgx.TraceBatchStartData) context.Context {
	return t.note(ctx, fmt.Sprintf("batch of %d", data.Batch.Len()))
}

func (t *fullTape) TraceBatchQuery(ctx context.Context, _ *pgx.Conn, data pgx.TraceBatchQueryData) {
	t.note(ctx, "in batch: "+data.SQL)
}

func (t *fullTape) TraceBatchEnd(ctx context.Context, _ *pgx.Conn, _ pgx.TraceBatchEndData) {
	t.note(ctx, "end of batch")
}

func (t *fullTape) TraceCopyFromStart(ctx context.Context, _ *pgx.Conn, data pgx.TraceCopyFromStartData) context.Context {
	return t.note(ctx, "copy into "+data.TableName.Sanitize())
}

func (t *fullTape) TraceCopyFromEnd(ctx context.Context, _ *pgx.Conn, data pgx.TraceCopyFromEndData) {
	t.note(ctx, data.CommandTag.String())
}

func (t *fullTape) TracePrepareStart(ctx context.Context, _ *pgx.Conn, data pgx.TracePrepareStartData) context.Context {
	return t.note(ctx, "prepare "+data.SQL)
}

func (t *fullTape) TracePrepareEnd(context.Context, *pgx.Conn, pgx.TracePrepareEndData) {}

// noteTable gives every shard a table, by statements that no tracer must see.
func noteTable(t *testing.T, c *shard.Cluster) {
	require.NoError(t, c.Each(t.Context(), c.Shards(), func(ctx context.Context, s shard.Shard) error {
		_, err := s.Exec(ctx, "create schema "+s.Schema()+"; create table note (id bigint, body text)")
		return err
	}))
}

func TestTracerSeesTheProgramsStatementsAndTheirShard(t *testing.T) {
	t.Parallel()
	const sql = "insert into note values ($1, 'x')"
	for _, test := range []struct {
		name    string
		setting string
		pooler  bool
	}{
		{name: "OwnPlans"},
		{name: "SharedPlans", setting: "&statement_cache_capacity=1"},
		{name: "Simple", setting: "&default_query_exec_mode=simple_protocol"},
		{name: "Pooler", pooler: true},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			rec := &fullTape{}
			c := open(t, shard.Static(4, shard.Node{Name: "a", DSN: testserver.Postgres(t) + test.setting}),
				shard.Config{Tracer: rec, MaxConns: 1, Pooler: test.pooler})
			noteTable(t, c)
			rec.play()
			for _, n := range []int{2, 3, 2} { // the path changes each time
				s, at := c.Number(n), c.Number(n).Schema()
				// told returns what is told but for preparing, which is up to pgx.
				told := func() []string {
					return slices.DeleteFunc(rec.play(), func(e string) bool {
						prepared, ok := strings.CutPrefix(e, at+": prepare ")
						return ok && !strings.Contains(prepared, s.Schema())
					})
				}

				_, err := s.Exec(t.Context(), sql, 1)
				require.NoError(t, err)
				require.Equal(t, []string{at + ": " + sql, at + ": INSERT 0 1"}, told())

				rows, err := s.Query(t.Context(), "select body from note where id = $1", 1)
				require.NoError(t, err)
				_, err = pgx.CollectRows(rows, pgx.RowTo[string])
				require.NoError(t, err)
				events := told()
				require.Len(t, events, 2)
				require.Equal(t, at+": select body from note where id = $1", events[0])

				err = s.InTx(t.Context(), func(tx pgx.Tx) error {
					_, err := tx.Exec(t.Context(), "delete from note where id = $1", 7)
					return err
				})
				require.NoError(t, err)
				require.Equal(t, []string{
					at + ": begin", at + ": SET", // the tag is the last one's, of the path
					at + ": delete from note where id = $1", at + ": DELETE 0",
					at + ": commit", at + ": COMMIT",
				}, told())

				b := &pgx.Batch{}
				b.Queue(sql, 2)
				b.Queue(sql, 3)
				require.NoError(t, s.SendBatch(t.Context(), b).Close())
				require.Equal(t, []string{at + ": batch of 2", at + ": in batch: " + sql, at + ": in batch: " + sql, at + ": end of batch"}, told())

				_, err = s.CopyFrom(t.Context(), pgx.Identifier{"note"}, []string{"id"}, pgx.CopyFromRows([][]any{{4}, {5}}))
				require.NoError(t, err)
				copied := []string{at + `: copy into "note"`, at + ": COPY 2"}
				if test.pooler { // it is in a transaction
					copied = slices.Concat([]string{at + ": begin", at + ": SET"}, copied, []string{at + ": commit", at + ": COMMIT"})
				}
				require.Equal(t, copied, told())

				if !test.pooler {
					require.Error(t, s.QueryRow(t.Context(), "select 1/0").Scan(new(int)))
					require.Equal(t, []string{at + ": select 1/0", at + ": failed"}, told())
				}
			}
		})
	}
}

func TestTracerOfQueriesAloneIsEnough(t *testing.T) {
	t.Parallel()
	rec := &tape{}
	c := open(t, shard.Static(2, shard.Node{Name: "a", DSN: testserver.Postgres(t)}), shard.Config{Tracer: rec})
	noteTable(t, c)
	rec.play()
	s := c.Number(1)
	var total int64
	b := &pgx.Batch{}
	b.Queue("insert into note values (1, 'x')")
	require.NoError(t, s.SendBatch(t.Context(), b).Close())
	_, err := s.CopyFrom(t.Context(), pgx.Identifier{"note"}, []string{"id"}, pgx.CopyFromRows([][]any{{4}}))
	require.NoError(t, err)
	require.Empty(t, rec.play())
	require.NoError(t, s.QueryRow(t.Context(), "select count(*) from note").Scan(&total))
	require.EqualValues(t, 2, total)
	require.Equal(t, []string{"shard_0001: select count(*) from note", "shard_0001: SELECT 1"}, rec.play())
}

func TestTracerKnowsTheShardOfANestedTransaction(t *testing.T) {
	t.Parallel()
	rec := &tape{}
	c := open(t, shard.Static(2, shard.Node{Name: "a", DSN: testserver.Postgres(t)}), shard.Config{Tracer: rec})
	noteTable(t, c)
	rec.play()
	require.NoError(t, c.Number(1).InTx(t.Context(), func(tx pgx.Tx) error {
		return pgx.BeginFunc(t.Context(), tx, func(tx pgx.Tx) error {
			_, err := tx.Exec(t.Context(), "insert into note values (1, 'x')")
			return err
		})
	}))
	events := rec.play()
	require.Contains(t, events, "shard_0001: insert into note values (1, 'x')")
	for _, e := range events {
		require.True(t, strings.HasPrefix(e, "shard_0001: "), e)
	}

	// What is done for no shard is not the program's.
	_, err := c.Loads(t.Context())
	require.NoError(t, err)
	require.NoError(t, c.Hosts(t.Context())[0].Err)
	require.Empty(t, rec.play())
}
