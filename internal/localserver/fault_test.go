package localserver_test

import (
	"context"
	"errors"
	"net"
	"strconv"
	"testing"
	"time"

	"github.com/bradfitz/gomemcache/memcache"
	"github.com/jackc/pgx/v5"
	"github.com/redis/go-redis/v9"
	"github.com/shardgram/shardgram/internal/localserver"
	"github.com/shardgram/shardgram/internal/testserver"
	"github.com/stretchr/testify/require"
)

// A subject is a server of some kind with a way to see that it answers.
type subject struct {
	*localserver.Server
	ping func(context.Context) error
}

// pingDSN sends a query, for a PgBouncer lets clients in without a server.
func pingDSN(ctx context.Context, dsn string) error {
	c, err := pgx.Connect(ctx, dsn)
	if err != nil {
		return err
	}
	return errors.Join(c.Ping(ctx), c.Close(ctx))
}

func subjects(t *testing.T, h *localserver.Host) []subject {
	t.Helper()
	p, err := h.Postgres(t.Context(), "db", localserver.PostgresConfig{})
	require.NoError(t, err)
	b, err := h.PgBouncer(t.Context(), "pool", localserver.PgBouncerConfig{Of: p})
	require.NoError(t, err)
	r, err := h.Redis(t.Context(), "cache", localserver.RedisConfig{})
	require.NoError(t, err)
	m, err := h.Memcached(t.Context(), "objects", localserver.MemcachedConfig{})
	require.NoError(t, err)
	rc := redisClient(t, r)
	return []subject{
		{&p.Server, func(ctx context.Context) error { return pingDSN(ctx, p.DSN("postgres")) }},
		{&b.Server, func(ctx context.Context) error { return pingDSN(ctx, b.DSN("postgres")) }},
		{&r.Server, func(ctx context.Context) error { return rc.Ping(ctx).Err() }},
		{&m.Server, func(ctx context.Context) error {
			mc := memcache.New(m.Addr())
			defer mc.Close()
			if deadline, ok := ctx.Deadline(); ok {
				mc.Timeout = time.Until(deadline)
			}
			return mc.Ping()
		}},
	}
}

func TestFaults(t *testing.T) {
	t.Parallel()
	h := testserver.Host(t)
	for _, s := range subjects(t, h) {
		t.Run(string(s.Kind()), func(t *testing.T) {
			addr, port := s.Addr(), s.Port()
			refused := func() {
				t.Helper()
				_, err := net.Dial("tcp", addr)
				require.Error(t, err)
				require.Error(t, s.Pause())
				require.Error(t, s.Resume())
			}
			answers := func() {
				t.Helper()
				require.NoError(t, s.ping(t.Context()))
				require.Equal(t, port, s.Port())
			}
			answers()

			require.NoError(t, s.Stop(t.Context()))
			refused()
			require.NoError(t, s.Stop(t.Context()), "once more")
			require.NoError(t, s.Kill(), "once more")
			require.NoError(t, s.Restart(t.Context()))
			answers()

			require.NoError(t, s.Kill())
			refused()
			require.NoError(t, s.Restart(t.Context()))
			answers()
			require.NoError(t, s.Restart(t.Context()), "while it runs")
			answers()

			require.NoError(t, s.Pause())
			require.NoError(t, s.Pause(), "once more")
			ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
			defer cancel()
			require.Error(t, s.ping(ctx), "a paused server does not answer")
			c, err := net.Dial("tcp", addr)
			require.NoError(t, err, "but the system still accepts")
			require.NoError(t, c.Close())
			require.NoError(t, s.Resume())
			answers()

			require.NoError(t, s.Pause())
			begin := time.Now()
			require.NoError(t, s.Stop(t.Context()))
			require.Less(t, time.Since(begin), 4*time.Second, "stopping a paused server needs no SIGKILL")
			refused()
			require.NoError(t, s.Restart(t.Context()))
			require.NoError(t, s.Pause())
			require.NoError(t, s.Kill())
			refused()
			require.NoError(t, s.Restart(t.Context()))
			answers()
		})
	}
}

// Each backend of PostgreSQL is in a session of its own, so a signal to the
// process group does not reach it.
func TestPauseReachesBackends(t *testing.T) {
	t.Parallel()
	h := testserver.Host(t)
	p, err := h.Postgres(t.Context(), "db", localserver.PostgresConfig{})
	require.NoError(t, err)
	c, watch := connect(t, p), connect(t, p)
	pid := queryText(t, c, "select pg_backend_pid()::text")

	require.NoError(t, p.Pause())
	answered := make(chan error, 1)
	go func() {
		_, err := c.Exec(context.Background(), "select 1")
		answered <- err
	}()
	select {
	case <-answered:
		require.Fail(t, "a paused backend answered")
	case <-time.After(300 * time.Millisecond):
	}
	require.NoError(t, p.Resume())
	require.NoError(t, <-answered, "the connection has survived")

	// The same backend, and a killed server leaves none behind.
	require.Equal(t, pid, queryText(t, c, "select pg_backend_pid()::text"))
	looped := make(chan struct{})
	go func() {
		defer close(looped)
		_, _ = watch.Exec(context.Background(), "do $$ begin loop end loop; end $$")
	}()
	other := connect(t, p)
	eventually(t, func() bool {
		return queryText(t, other, "select count(*)::text from pg_stat_activity where query like 'do %'") == "1"
	}, "the loop runs")
	require.NoError(t, p.Kill())
	<-looped
	require.Empty(t, processesIn(t, h.Dir()))
}

func TestStopKillsWhatDoesNotListen(t *testing.T) {
	t.Parallel()
	h := testserver.Host(t)
	r, err := h.Redis(t.Context(), "cache", localserver.RedisConfig{})
	require.NoError(t, err)
	client := redis.NewClient(&redis.Options{Addr: r.Addr(), MaxRetries: -1, ReadTimeout: -1})
	defer client.Close()
	busy := make(chan error)
	go func() { busy <- client.Eval(context.Background(), "while true do end", nil).Err() }()
	eventually(t, func() bool {
		ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
		defer cancel()
		return redisClient(t, r).Ping(ctx).Err() != nil
	}, "the server hangs")

	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	begin := time.Now()
	require.NoError(t, r.Stop(ctx))
	require.Less(t, time.Since(begin), 4*time.Second, "the context ends the grace early")
	require.Error(t, <-busy)
	require.Empty(t, processesIn(t, h.Dir()))
}

func TestCommitsSurviveAKilledServer(t *testing.T) {
	t.Parallel()
	h := testserver.Host(t)
	p, err := h.Postgres(t.Context(), "db", localserver.PostgresConfig{})
	require.NoError(t, err)
	c := connect(t, p)
	_, err = c.Exec(t.Context(), "create table photo (id int)")
	require.NoError(t, err)
	for i := range 20 {
		_, err = c.Exec(t.Context(), "insert into photo values ($1)", i)
		require.NoError(t, err)
	}
	require.NoError(t, p.Kill())
	require.NoError(t, p.Restart(t.Context()))
	require.Equal(t, "20", queryText(t, connect(t, p), "select count(*)::text from photo"))
}

func TestPostgresReplica(t *testing.T) {
	t.Parallel()
	h := testserver.Host(t)
	primary, err := h.Postgres(t.Context(), "db-1", localserver.PostgresConfig{
		Settings: map[string]string{"max_connections": "50"},
	})
	require.NoError(t, err)
	c := connect(t, primary)
	_, err = c.Exec(t.Context(), "create table photo as select 1 as id")
	require.NoError(t, err)
	replica, err := h.PostgresReplica(t.Context(), "db-1-copy", primary)
	require.NoError(t, err)
	require.Equal(t, "db_1_copy streaming", queryText(t, c,
		`select s.slot_name || ' ' || r.state from pg_replication_slots s
		join pg_stat_replication r on r.pid = s.active_pid`))

	rows := func(want int) func() bool {
		c := connect(t, replica)
		return func() bool {
			return queryText(t, c, "select count(*)::text from photo") == strconv.Itoa(want)
		}
	}
	_, err = c.Exec(t.Context(), "insert into photo values (2)")
	require.NoError(t, err)
	eventually(t, rows(2), "the replica follows")
	_, err = connect(t, replica).Exec(t.Context(), "insert into photo values (3)")
	require.ErrorContains(t, err, "read-only")

	require.NoError(t, replica.Kill())
	_, err = c.Exec(t.Context(), "insert into photo values (3)")
	require.NoError(t, err)
	require.NoError(t, replica.Restart(t.Context()))
	eventually(t, rows(3), "it catches up from its slot")

	require.NoError(t, primary.Kill())
	require.NoError(t, replica.Restart(t.Context()), "without a primary")
	require.NoError(t, replica.Promote(t.Context()))
	_, err = connect(t, replica).Exec(t.Context(), "insert into photo values (4)")
	require.NoError(t, err)
	require.NoError(t, replica.Restart(t.Context()))
	_, err = connect(t, replica).Exec(t.Context(), "insert into photo values (5)")
	require.NoError(t, err, "a promotion is for good")
	require.ErrorContains(t, replica.Promote(t.Context()), "localserver: promote db-1-copy: ")
}

func TestRedisReplica(t *testing.T) {
	t.Parallel()
	h := testserver.Host(t)
	primary, err := h.Redis(t.Context(), "cache", localserver.RedisConfig{})
	require.NoError(t, err)
	require.NoError(t, redisClient(t, primary).Set(t.Context(), "a", "1", 0).Err())
	replica, err := h.Redis(t.Context(), "copy", localserver.RedisConfig{ReplicaOf: primary})
	require.NoError(t, err)
	c := redisClient(t, replica)
	require.Equal(t, "1", c.Get(t.Context(), "a").Val())
	require.NoError(t, redisClient(t, primary).Set(t.Context(), "b", "2", 0).Err())
	eventually(t, func() bool { return c.Get(t.Context(), "b").Val() == "2" }, "the replica follows")
}

func TestSentinelFailover(t *testing.T) {
	t.Parallel()
	h := testserver.Host(t)
	primary, err := h.Redis(t.Context(), "cache", localserver.RedisConfig{})
	require.NoError(t, err)
	replica, err := h.Redis(t.Context(), "copy", localserver.RedisConfig{ReplicaOf: primary})
	require.NoError(t, err)
	var addrs []string
	for i, name := range []string{"watch-1", "watch-2", "watch-3"} {
		s, err := h.Sentinel(t.Context(), name, localserver.SentinelConfig{
			Primary: primary, Master: "feeds", Quorum: 2, DownAfter: 500 * time.Millisecond,
		})
		require.NoError(t, err)
		require.Equal(t, "feeds", s.Master())
		addrs = append(addrs, s.Addr())

		asked := redis.NewSentinelClient(&redis.Options{Addr: s.Addr()})
		view, err := asked.Master(t.Context(), "feeds").Result()
		require.NoError(t, err)
		require.NoError(t, asked.Close())
		require.Equal(t, "1", view["num-slaves"])
		require.Equal(t, strconv.Itoa(i), view["num-other-sentinels"])
		require.Equal(t, "2", view["quorum"])
		require.Equal(t, "500", view["down-after-milliseconds"])
	}
	client := redis.NewFailoverClient(&redis.FailoverOptions{MasterName: "feeds", SentinelAddrs: addrs})
	defer client.Close()
	require.NoError(t, client.Set(t.Context(), "a", "1", 0).Err())
	require.Equal(t, primary.Port(), tcpPort(t, client))
	eventually(t, func() bool { return redisClient(t, replica).Get(t.Context(), "a").Val() == "1" }, "the replica follows")

	require.NoError(t, primary.Kill())
	eventually(t, func() bool { return client.Set(t.Context(), "b", "2", 0).Err() == nil }, "the failover")
	require.Equal(t, replica.Port(), tcpPort(t, client))
	require.Equal(t, "1", client.Get(t.Context(), "a").Val())
}

// tcpPort asks the server behind a client for its port.
func tcpPort(t *testing.T, c *redis.Client) int {
	t.Helper()
	text, err := c.ConfigGet(t.Context(), "port").Result()
	require.NoError(t, err)
	port, err := strconv.Atoi(text["port"])
	require.NoError(t, err)
	return port
}

func TestRedisCluster(t *testing.T) {
	t.Parallel()
	dir := folder(t)
	h, err := localserver.Open(localserver.Config{Dir: dir})
	require.NoError(t, err)
	defer h.Close()
	cluster, err := h.RedisCluster(t.Context(), "feeds", localserver.RedisClusterConfig{Replicas: 1})
	require.NoError(t, err)
	require.Len(t, cluster.Nodes(), 6)
	client := redis.NewClusterClient(&redis.ClusterOptions{
		Addrs:                      cluster.Addrs(),
		ClusterStateReloadInterval: 100 * time.Millisecond, // else a dead primary is dialled for a minute
	})
	t.Cleanup(func() { client.Close() })
	require.NoError(t, setMany(t.Context(), client, "before"))

	require.NoError(t, cluster.Nodes()[0].Kill())
	eventually(t, func() bool { return setMany(t.Context(), client, "after") == nil }, "a replica takes over")
	require.NoError(t, cluster.Nodes()[0].Restart(t.Context()))
	require.NoError(t, client.Close())
	require.NoError(t, h.Close())

	// Another life on other ports, with the data and a changed set of primaries.
	h = open(t, localserver.Config{Dir: dir})
	again, err := h.RedisCluster(t.Context(), "feeds", localserver.RedisClusterConfig{Replicas: 1})
	require.NoError(t, err)
	require.NotEqual(t, cluster.Addrs(), again.Addrs())
	client = redis.NewClusterClient(&redis.ClusterOptions{Addrs: again.Addrs()})
	t.Cleanup(func() { client.Close() })
	for i := range manyKeys {
		require.Equal(t, "after", client.Get(t.Context(), strconv.Itoa(i)).Val())
	}
}

const manyKeys = 100 // enough to meet every primary

func setMany(ctx context.Context, c *redis.ClusterClient, value string) error {
	for i := range manyKeys {
		if err := c.Set(ctx, strconv.Itoa(i), value, 0).Err(); err != nil {
			return err
		}
	}
	return nil
}
