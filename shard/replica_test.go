package shard_test

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/url"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"

	"github.com/shardgram/shardgram/internal/localserver"
	"github.com/shardgram/shardgram/internal/testserver"
	"github.com/shardgram/shardgram/shard"
)

// pair is a primary and its replica.
type pair struct {
	primary, replica *localserver.Postgres
}

func startPair(t *testing.T, name string) pair {
	host := testserver.Host(t)
	primary, err := host.Postgres(t.Context(), name+"-1", localserver.PostgresConfig{})
	require.NoError(t, err)
	replica, err := host.PostgresReplica(t.Context(), name+"-2", primary)
	require.NoError(t, err)
	return pair{primary, replica}
}

// dsn lists both hosts.
func (p pair) dsn() string {
	u := url.URL{
		Scheme: "postgres", User: url.User("postgres"), Path: "/postgres", RawQuery: "sslmode=disable",
		Host: p.primary.Addr() + "," + p.replica.Addr(),
	}
	return u.String()
}

// admin runs a statement on one server.
func admin(t *testing.T, server *localserver.Postgres, sql string) {
	c, err := pgx.Connect(t.Context(), server.DSN("postgres"))
	require.NoError(t, err)
	defer c.Close(context.Background())
	_, err = c.Exec(t.Context(), sql)
	require.NoError(t, err)
}

func onReplica(ctx context.Context, s shard.Shard) (replica bool, err error) {
	return replica, s.QueryRow(ctx, "select pg_is_in_recovery()").Scan(&replica)
}

func eventually(t *testing.T, what string, ok func() bool) {
	require.Eventually(t, ok, 30*time.Second, 10*time.Millisecond, what)
}

func bodies(ctx context.Context, s shard.Shard) (n int, err error) {
	return n, s.QueryRow(ctx, "select count(*) from note").Scan(&n)
}

func TestReadsGoWhereThePolicySays(t *testing.T) {
	t.Parallel()
	p := startPair(t, "read")
	c := open(t, shard.Static(4, shard.Node{Name: "a", DSN: p.dsn()}), shard.Config{Probe: 50 * time.Millisecond})
	migrate(t, c)
	ctx := t.Context()
	s := c.Number(2)
	fromReplica := func(policy shard.ReadPolicy) func() bool {
		return func() bool {
			replica, err := onReplica(ctx, s.Read(policy))
			return err == nil && replica
		}
	}
	fromPrimary := func(policy shard.ReadPolicy) func() bool {
		return func() bool {
			replica, err := onReplica(ctx, s.Read(policy))
			return err == nil && !replica
		}
	}
	replica, err := onReplica(ctx, s)
	require.NoError(t, err)
	require.False(t, replica)
	require.True(t, fromPrimary(shard.ReadPolicy{From: shard.Primary})())
	eventually(t, "a replica is read", fromReplica(shard.ReadPolicy{}))
	_, err = onReplica(ctx, s.Read(shard.ReadPolicy{From: shard.Nearest}))
	require.NoError(t, err)

	// Nothing is written through a shard that was taken for reading.
	reading := s.Read(shard.ReadPolicy{From: shard.Primary})
	_, err = reading.Exec(ctx, "insert into note values ($1, 'x')", 1)
	require.ErrorIs(t, err, shard.ErrReadOnly)
	_, err = reading.CopyFrom(ctx, pgx.Identifier{"note"}, []string{"id", "body"}, pgx.CopyFromRows([][]any{{1, "x"}}))
	require.ErrorIs(t, err, shard.ErrReadOnly)
	require.ErrorIs(t, reading.SendBatch(ctx, &pgx.Batch{}).Close(), shard.ErrReadOnly)
	err = reading.InTx(ctx, func(tx pgx.Tx) error {
		_, err := tx.Exec(ctx, "insert into note values ($1, 'x')", 1)
		return err
	})
	require.ErrorContains(t, err, "25006")
	require.Zero(t, count(t, s))

	// The replica stands still: it is read without a token, and misses the row;
	// with the token the primary is.
	migrated, err := s.Token(ctx)
	require.NoError(t, err)
	eventually(t, "the replica has the table", fromReplica(shard.ReadPolicy{After: migrated}))
	admin(t, p.replica, "select pg_wal_replay_pause()")
	token, err := s.InTxToken(ctx, func(tx pgx.Tx) error {
		_, err := tx.Exec(ctx, "insert into note values (7, 'x')")
		return err
	})
	require.NoError(t, err)
	require.Equal(t, "a", token.Node)
	old := shard.ReadPolicy{MaxLag: time.Hour}
	n, err := bodies(ctx, s.Read(old))
	require.NoError(t, err)
	require.Zero(t, n, "the row is not on the replica, or this test shows nothing")
	require.True(t, fromReplica(old)())
	for range 20 {
		n, err = bodies(ctx, s.Read(shard.ReadPolicy{MaxLag: time.Hour, After: token}))
		require.NoError(t, err)
		require.Equal(t, 1, n)
	}
	eventually(t, "a replica that is too far behind is left", fromPrimary(shard.ReadPolicy{MaxLag: 300 * time.Millisecond}))
	require.True(t, fromReplica(old)())
	hosts := c.Hosts(ctx)
	require.Len(t, hosts, 2)
	require.True(t, hosts[0].Primary)
	require.Equal(t, p.replica.Addr(), hosts[1].Host)
	require.Positive(t, hosts[1].LagBytes)

	admin(t, p.replica, "select pg_wal_replay_resume()")
	eventually(t, "the replica has the token's write", fromReplica(shard.ReadPolicy{After: token}))
	n, err = bodies(ctx, s.Read(shard.ReadPolicy{MaxLag: time.Hour, After: token}))
	require.NoError(t, err)
	require.Equal(t, 1, n)
	// A token of another node, or of a later timeline, is for the primary.
	for _, other := range []shard.Token{{Node: "b"}, {Node: "a", Timeline: 9, LSN: 1}} {
		require.True(t, fromPrimary(shard.ReadPolicy{After: other})())
	}

	// A replica that is gone costs no read.
	require.NoError(t, p.replica.Kill())
	for range 20 {
		require.True(t, fromPrimary(shard.ReadPolicy{})())
	}
	require.Error(t, c.Hosts(ctx)[1].Err)
	require.NoError(t, p.replica.Restart(ctx))
	eventually(t, "the replica is read again", fromReplica(shard.ReadPolicy{}))

	// One that hangs costs no more than the context, and is left after a while.
	require.NoError(t, p.replica.Pause())
	brief, cancel := context.WithTimeout(ctx, 200*time.Millisecond)
	defer cancel()
	_, err = onReplica(brief, s.Read(old))
	require.ErrorIs(t, err, context.DeadlineExceeded)
	eventually(t, "a replica that hangs is left", func() bool {
		ctx, cancel := context.WithTimeout(ctx, 200*time.Millisecond)
		defer cancel()
		replica, err := onReplica(ctx, s.Read(old))
		return err == nil && !replica
	})
	require.NoError(t, p.replica.Resume())
	eventually(t, "the replica is read again", fromReplica(shard.ReadPolicy{}))

	// Nor does a primary that hangs keep reads from the replica.
	require.NoError(t, p.primary.Pause())
	for range 30 {
		ctx, cancel := context.WithTimeout(ctx, 300*time.Millisecond)
		replica, err := onReplica(ctx, s.Read(old))
		cancel()
		require.NoError(t, err)
		require.True(t, replica)
		time.Sleep(50 * time.Millisecond) // over several rounds of probing
	}
	// Its replica takes over. The old primary comes back, and its log, which
	// stands still, must not make a replica look fresh.
	require.NoError(t, p.replica.Promote(ctx))
	eventually(t, "writes resume", func() bool {
		ctx, cancel := context.WithTimeout(ctx, time.Second)
		defer cancel()
		_, err := s.Exec(ctx, "insert into note values ($1, 'x') on conflict do nothing", 8)
		return err == nil
	})
	require.NoError(t, p.primary.Resume())
}

// ledger is what writers were told.
type ledger struct {
	mu           sync.Mutex
	acked, maybe []int
	failed       map[int]error
}

// write inserts until stop, each row once and in one of the ways there are, and
// keeps what became of it.
func (l *ledger) write(ctx context.Context, c *shard.Cluster, writer int, stop <-chan struct{}, last *atomic.Int64) {
	var ways []func(context.Context, shard.Shard, int) error
	for _, name := range slices.Sorted(maps.Keys(writers)) {
		ways = append(ways, writers[name])
	}
	for i := 0; ; i++ {
		select {
		case <-stop:
			return
		default:
		}
		id := writer*1_000_000 + i
		ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
		err := ways[writer%len(ways)](ctx, c.KeyInt(int64(id)), id)
		cancel()
		l.mu.Lock()
		switch {
		case err == nil:
			l.acked = append(l.acked, id)
			last.Store(time.Now().UnixNano())
		case errors.Is(err, shard.ErrAmbiguous):
			l.maybe = append(l.maybe, id)
		default:
			l.failed[id] = err
		}
		l.mu.Unlock()
		if err != nil {
			time.Sleep(5 * time.Millisecond) // do not spin while there is no primary
		}
	}
}

// lost returns how many acknowledged rows are not there. No row may be there
// whose write is said to have failed.
func (l *ledger) lost(t *testing.T, c *shard.Cluster) (lost int) {
	found := make(map[int]bool)
	for _, s := range c.Shards() {
		rows, err := s.Query(t.Context(), "select id from note")
		require.NoError(t, err)
		ids, err := pgx.CollectRows(rows, pgx.RowTo[int])
		require.NoError(t, err)
		for _, id := range ids {
			require.False(t, found[id], "a row is stored twice")
			found[id] = true
		}
	}
	for _, id := range l.acked {
		if !found[id] {
			lost++
		}
	}
	for id, err := range l.failed {
		require.Falsef(t, found[id], "row %d is there: %v", id, err)
	}
	return lost
}

// failOver writes to 256 shards on two nodes with a replica each, while the primary
// of one is killed and its replica takes over, and returns what was lost.
func failOver(t *testing.T, synchronous bool) (lost int) {
	p, well := startPair(t, "fail"), startPair(t, "well")
	c := open(t, shard.Static(256, shard.Node{Name: "a", DSN: p.dsn()}, shard.Node{Name: "b", DSN: well.dsn()}),
		shard.Config{Probe: 50 * time.Millisecond, MaxConns: 8})
	migrate(t, c)
	if synchronous {
		for n, primary := range []*localserver.Postgres{p.primary, well.primary} {
			admin(t, primary, "alter system set synchronous_standby_names = '*'")
			admin(t, primary, "select pg_reload_conf()")
			eventually(t, "replication is synchronous", func() bool {
				var standbys int
				err := c.Number(n).QueryRow(t.Context(), "select count(*) from pg_stat_replication where sync_state = 'sync'").Scan(&standbys)
				return err == nil && standbys == 1
			})
		}
	}
	l := ledger{failed: make(map[int]error)}
	var last atomic.Int64
	stop := make(chan struct{})
	var writers sync.WaitGroup
	for w := range 8 {
		writers.Go(func() { l.write(t.Context(), c, w+1, stop, &last) })
	}
	count := func() int {
		l.mu.Lock()
		defer l.mu.Unlock()
		return len(l.acked)
	}
	eventually(t, "writers write", func() bool { return count() > 200 })
	if !synchronous {
		// The replica hangs for a while, and the primary does not wait for it. What
		// was sent already it would still find, so nothing more is.
		require.NoError(t, p.replica.Pause())
		admin(t, p.primary, "select pg_terminate_backend(pid) from pg_stat_replication")
		before := count()
		eventually(t, "writers write", func() bool { return count() > before+200 })
	}
	require.NoError(t, p.primary.Kill())
	if !synchronous {
		require.NoError(t, p.replica.Resume())
	}
	require.NoError(t, p.replica.Promote(t.Context()))
	promoted := time.Now()
	eventually(t, "writes resume", func() bool { return last.Load() > promoted.UnixNano() })
	resumed := count()
	eventually(t, "and go on", func() bool { return count() > resumed+200 })
	// All shards are there, on the new primary of the one node and the replica of
	// the other.
	eventually(t, "every shard is read", func() bool {
		var reading []shard.Shard
		for _, s := range c.Shards() {
			reading = append(reading, s.Read(shard.ReadPolicy{}))
		}
		standbys, err := shard.Collect(shard.Gather(t.Context(), c, shard.Scatter[bool]{
			SQL: "select pg_is_in_recovery() from (select count(*) from note) n", Scan: pgx.RowTo[bool], Shards: reading,
		}))
		slices.SortFunc(standbys, func(a, b bool) int { return cmp.Compare(fmt.Sprint(a), fmt.Sprint(b)) })
		return err == nil && len(standbys) == 256 && !standbys[127] && standbys[128]
	})
	close(stop)
	writers.Wait()
	lost = l.lost(t, c)
	t.Logf("%d acknowledged, %d ambiguous, %d lost", len(l.acked), len(l.maybe), lost)
	return lost
}

func TestWritesSurviveTheirPrimary(t *testing.T) {
	t.Parallel()
	require.Zero(t, failOver(t, true))
}

// The control: without synchronous replication the same test loses writes.
func TestAFailoverWithoutSynchronousReplicationLosesWrites(t *testing.T) {
	t.Parallel()
	require.Positive(t, failOver(t, false))
}

func TestTokensTravelAsText(t *testing.T) {
	t.Parallel()
	token := shard.Token{Node: "pg_1", Timeline: 3, LSN: 0x16_B374D848}
	require.Equal(t, "pg_1:3:16/B374D848", token.String())
	same, err := shard.ParseToken(token.String())
	require.NoError(t, err)
	require.Equal(t, token, same)
	text, err := json.Marshal(map[string]shard.Token{"t": token})
	require.NoError(t, err)
	require.JSONEq(t, `{"t": "pg_1:3:16/B374D848"}`, string(text))
	var back map[string]shard.Token
	require.NoError(t, json.Unmarshal(text, &back))
	require.Equal(t, token, back["t"])
	for _, wrong := range []string{
		"", "pg_1", "pg_1:3", "pg_1:3:16", "pg_1:-3:16/1", "pg_1:3:16/1FFFFFFFF", "pg_1:3:x/1", "a b:3:1/1", "pg_1:3:1/1:1",
		"pg_1:4294967296:1/1", strings.Repeat("a", 41) + ":1:1/1",
	} {
		_, err := shard.ParseToken(wrong)
		require.Error(t, err, fmt.Sprintf("%q", wrong))
	}
}
