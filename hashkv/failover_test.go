package hashkv_test

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"maps"
	"net"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/shardgram/shardgram/hashkv"
	"github.com/shardgram/shardgram/internal/localserver"
	"github.com/shardgram/shardgram/internal/testserver"
	"github.com/stretchr/testify/require"
)

// roleOf returns what a server is now: "master", "slave", or "" if it is away.
func roleOf(t *testing.T, client *redis.Client) string {
	role, err := client.Do(t.Context(), "role").Slice()
	if err != nil || len(role) == 0 {
		return ""
	}
	return role[0].(string)
}

// numbered is a sequence of entries that begins after the first done.
func numbered(done, all int64) iter.Seq2[int64, int64] {
	return func(yield func(int64, int64) bool) {
		for i := done; i < all; i++ {
			if !yield(oracleKey(int(i)), i) {
				return
			}
		}
	}
}

// requireNumbered checks that the first n entries of the sequence are there,
// once the servers answer.
func requireNumbered(t *testing.T, m *hashkv.Sparse[int64], n int64) {
	t.Helper()
	keys := make([]int64, n)
	for i := range keys {
		keys[i] = oracleKey(i)
	}
	var found map[int64]int64
	var err error
	await(t, func() bool {
		found, err = m.GetMulti(t.Context(), keys...)
		return err == nil || errors.Is(err, hashkv.ErrLost)
	})
	require.NoError(t, err)
	require.Len(t, found, int(n))
	for i, key := range keys {
		require.EqualValues(t, i, found[key])
	}
}

// A fault kills a primary that has a replica; mend waits until the replica has
// taken its place, and gives it a replica.
type fault struct {
	kill func() error
	mend func()
}

// loadSurvives kills a primary in the middle of a Load that waits for replicas.
func loadSurvives(t *testing.T, rdb redis.UniversalClient, f fault) {
	t.Helper()
	m := sparse(t, rdb)
	const entries = 20_000
	var once sync.Once
	var killing sync.WaitGroup
	n, err := m.Load(t.Context(), numbered(0, entries), hashkv.LoadConfig{Batch: 500, Replicas: 1, Progress: func(done int64) {
		if done >= entries/4 {
			once.Do(func() { // while the next batch is on its way
				killing.Go(func() {
					if err := f.kill(); err != nil {
						t.Error(err)
					}
				})
			})
		}
	}})
	killing.Wait()
	require.GreaterOrEqual(t, n, int64(entries/4))
	require.True(t, n%500 == 0 || n == entries)
	t.Logf("Load: %d done, then %v", n, err)
	f.mend()
	requireNumbered(t, m, n)
	for end := time.Now().Add(20 * time.Second); err != nil; {
		require.NotErrorIs(t, err, hashkv.ErrLost)
		require.True(t, time.Now().Before(end), err)
		var more int64
		more, err = m.Load(t.Context(), numbered(n, entries), hashkv.LoadConfig{Batch: 500, Replicas: 1})
		n += more
	}
	require.EqualValues(t, entries, n)
	requireNumbered(t, m, entries)
}

// growSurvives kills a primary in the middle of a Grow that waits for replicas.
func growSurvives(t *testing.T, rdb redis.UniversalClient, f fault) {
	t.Helper()
	m := sparse(t, rdb)
	const entries = 5000
	n, err := m.Load(t.Context(), numbered(0, entries), hashkv.LoadConfig{Replicas: 1})
	require.NoError(t, err)
	require.EqualValues(t, entries, n)
	died := false
	err = m.Grow(t.Context(), hashkv.GrowConfig{Parallel: 16, Replicas: 1, Progress: func(done, _ int64) {
		if done >= 128 && !died {
			died = true
			if err := f.kill(); err != nil {
				t.Error(err)
			}
		}
	}})
	require.True(t, died)
	t.Logf("Grow: %v", err)
	f.mend()
	requireNumbered(t, m, entries)
	for end := time.Now().Add(20 * time.Second); err != nil; {
		require.True(t, time.Now().Before(end), err)
		err = m.Grow(t.Context(), hashkv.GrowConfig{Replicas: 1})
	}
	require.NoError(t, m.Open(t.Context()))
	stats, err := m.Stats(t.Context(), hashkv.StatsConfig{Sample: 1 << 20})
	require.NoError(t, err)
	require.False(t, stats.Growing)
	require.GreaterOrEqual(t, stats.Buckets, int64(512))
	require.EqualValues(t, entries, stats.Entries)
	requireNumbered(t, m, entries)
}

func TestSentinelFailover(t *testing.T) {
	t.Parallel()
	for name, survives := range map[string]func(*testing.T, redis.UniversalClient, fault){
		"InTheMiddleOfLoad": loadSurvives, "InTheMiddleOfGrow": growSurvives,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			host := testserver.Host(t)
			first, err := host.Redis(t.Context(), "first", localserver.RedisConfig{})
			require.NoError(t, err)
			second, err := host.Redis(t.Context(), "second", localserver.RedisConfig{ReplicaOf: first})
			require.NoError(t, err)
			sentinel, err := host.Sentinel(t.Context(), "sentinel", localserver.SentinelConfig{Primary: first, DownAfter: 300 * time.Millisecond})
			require.NoError(t, err)
			rdb := redis.NewFailoverClient(&redis.FailoverOptions{
				MasterName: sentinel.Master(), SentinelAddrs: []string{sentinel.Addr()}, DialerRetries: 1,
			})
			t.Cleanup(func() { rdb.Close() })
			old, heir := direct(t, first), direct(t, second)
			survives(t, rdb, fault{first.Kill, func() {
				await(t, func() bool { return roleOf(t, heir) == "master" })
				require.NoError(t, first.Restart(t.Context()))
				// Sentinel would do so within ten seconds.
				require.NoError(t, old.ReplicaOf(t.Context(), "127.0.0.1", fmt.Sprint(second.Port())).Err())
				await(t, func() bool { return replication(t, old)["master_link_status"] == "up" })
				await(t, func() bool { return roleOf(t, rdb) == "master" })
			}})
		})
	}
}

// direct returns a client of one server, whatever its role.
func direct(t *testing.T, server *localserver.Redis) *redis.Client {
	t.Helper()
	client := redis.NewClient(&redis.Options{Addr: server.Addr()})
	t.Cleanup(func() { client.Close() })
	return client
}

// replication returns what a server says about it.
func replication(t *testing.T, client *redis.Client) map[string]string {
	info, err := client.InfoMap(t.Context(), "replication").Result()
	if err != nil {
		return nil
	}
	return info["Replication"]
}

// A moving is a primary and replicas behind one name, which moves when a test
// says so.
type moving struct {
	servers []*localserver.Redis
	clients []*redis.Client
	at      atomic.Int64 // the server that the name leads to
	rdb     *redis.Client
}

func newMoving(t *testing.T, replicas int) *moving {
	t.Helper()
	host := testserver.Host(t)
	m := &moving{}
	for i := range 1 + replicas {
		cfg := localserver.RedisConfig{}
		if i > 0 {
			cfg.ReplicaOf = m.servers[0]
		}
		server, err := host.Redis(t.Context(), fmt.Sprintf("server-%d", i), cfg)
		require.NoError(t, err)
		m.servers, m.clients = append(m.servers, server), append(m.clients, direct(t, server))
	}
	m.rdb = redis.NewClient(&redis.Options{
		Addr: "primary:6379",
		Dialer: func(ctx context.Context, network, _ string) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, network, m.servers[m.at.Load()].Addr())
		},
	})
	t.Cleanup(func() { m.rdb.Close() })
	return m
}

// lag cuts the replicas off from what the primary does from now on.
func (m *moving) lag(ctx context.Context) error {
	for _, replica := range m.clients[1:] {
		if err := replica.ConfigSet(ctx, "masterauth", "wrong").Err(); err != nil {
			return err
		}
	}
	return m.clients[0].ClientKillByFilter(ctx, "type", "replica").Err()
}

// fail kills the primary. The first replica takes its place, and the others
// follow it.
func (m *moving) fail(t *testing.T) error {
	ctx := t.Context()
	if err := m.servers[0].Kill(); err != nil {
		return err
	}
	if err := m.clients[1].ReplicaOf(ctx, "NO", "ONE").Err(); err != nil {
		return err
	}
	for _, replica := range m.clients[2:] {
		if err := replica.ConfigSet(ctx, "masterauth", "").Err(); err != nil {
			return err
		}
		if err := replica.ReplicaOf(ctx, "127.0.0.1", fmt.Sprint(m.servers[1].Port())).Err(); err != nil {
			return err
		}
		await(t, func() bool { return replication(t, replica)["master_link_status"] == "up" })
	}
	m.at.Store(1)
	return nil
}

// TestLoadCountsWhatAFailoverLeaves fails over between a batch and the question
// whether replicas have it: to a replica that has not.
func TestLoadCountsWhatAFailoverLeaves(t *testing.T) {
	t.Parallel()
	for _, kind := range []string{"Sparse", "Dense"} {
		for _, tc := range []struct {
			name     string
			replicas int // that Load waits for
			left     int64
		}{{"WithReplicas", 1, 2000}, {"Without", 0, 1000}} {
			t.Run(kind+tc.name, func(t *testing.T) {
				t.Parallel()
				servers := newMoving(t, 2)
				m := loaders(t, servers.rdb)[kind]
				_, err := m.Load(t.Context(), counted(1, 1000), hashkv.LoadConfig{Replicas: 2})
				require.NoError(t, err)
				require.NoError(t, servers.lag(t.Context()))
				if tc.replicas > 0 {
					before(servers.rdb, 1, "wait", func() error { return servers.fail(t) })
				}
				n, err := m.Load(t.Context(), func(yield func(int64, int64) bool) {
					for key, value := range counted(1000, 2000) { // each twice
						if !yield(key, 7) || !yield(key, value) {
							return
						}
					}
				}, hashkv.LoadConfig{Replicas: tc.replicas})
				if tc.replicas == 0 {
					require.NoError(t, servers.fail(t))
				}
				require.NoError(t, err)
				require.EqualValues(t, 2000, n)
				require.NoError(t, m.Open(t.Context()))
				requireAll(t, m, maps.Collect(counted(1, tc.left)))
			})
		}
	}
}

// TestReplicasThatLag keeps calls from being done that want to see their work
// on a replica.
func TestReplicasThatLag(t *testing.T) {
	t.Parallel()
	servers := newMoving(t, 1)
	m := sparse(t, servers.rdb)
	n, err := m.Load(t.Context(), numbered(0, 10), hashkv.LoadConfig{Replicas: 1})
	require.NoError(t, err)
	require.EqualValues(t, 10, n)
	require.NoError(t, servers.lag(t.Context()))
	ctx, cancel := context.WithTimeout(t.Context(), time.Second)
	defer cancel()
	n, err = m.Load(ctx, numbered(10, 20), hashkv.LoadConfig{Replicas: 1})
	require.ErrorIs(t, err, context.DeadlineExceeded)
	require.Zero(t, n)
	ctx, cancel = context.WithTimeout(t.Context(), time.Second)
	defer cancel()
	require.ErrorIs(t, m.Grow(ctx, hashkv.GrowConfig{Replicas: 1}), context.DeadlineExceeded)
	h := readHeader(t, servers.rdb, "g")
	require.Equal(t, storedHeader{ID: h.ID, Level: 8, Growing: true}, h, "all is split, and none of it counts")
}
