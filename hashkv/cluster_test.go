package hashkv_test

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/shardgram/shardgram/hashkv"
	"github.com/shardgram/shardgram/internal/localserver"
	"github.com/shardgram/shardgram/internal/testserver"
	"github.com/stretchr/testify/require"
)

func startCluster(t *testing.T, replicas int) (*localserver.RedisCluster, *redis.ClusterClient) {
	t.Helper()
	cluster, err := testserver.Host(t).RedisCluster(t.Context(), "cluster", localserver.RedisClusterConfig{
		Replicas: replicas,
		// Nodes that live go on when another is dead.
		Settings: map[string]string{"cluster-require-full-coverage": "no"},
	})
	require.NoError(t, err)
	return cluster, clusterClient(t, cluster)
}

func clusterClient(t *testing.T, cluster *localserver.RedisCluster) *redis.ClusterClient {
	t.Helper()
	rdb := redis.NewClusterClient(&redis.ClusterOptions{Addrs: cluster.Addrs(), DialerRetries: 1})
	t.Cleanup(func() { rdb.Close() })
	return rdb
}

// nodeClients returns a client for each of the first three nodes alone.
func nodeClients(t *testing.T, cluster *localserver.RedisCluster) []*redis.Client {
	t.Helper()
	var nodes []*redis.Client
	for _, node := range cluster.Nodes()[:3] {
		nodes = append(nodes, direct(t, node))
	}
	return nodes
}

func TestCluster(t *testing.T) {
	t.Parallel()
	cluster, rdb := startCluster(t, 0)
	// One after the other: the last one breaks it.
	t.Run("LiesEvenly", func(t *testing.T) { clusterLiesEvenly(t, cluster, rdb) })
	t.Run("DoesEverything", func(t *testing.T) { clusterDoesEverything(t, rdb) })
	t.Run("GoesByTheLeastLimit", func(t *testing.T) { clusterLeastLimit(t, cluster, rdb) })
	t.Run("LosesNothingWhenSlotsMove", func(t *testing.T) { clusterSlotsMove(t, cluster) })
	t.Run("NamesTheKeysOfADeadNode", func(t *testing.T) { clusterNodeDies(t, cluster, rdb) })
}

func clusterLiesEvenly(t *testing.T, cluster *localserver.RedisCluster, rdb *redis.ClusterClient) {
	m, err := hashkv.NewSparse[int64](rdb, hashkv.SparseConfig{Prefix: "even", Entries: 4096 * 128})
	require.NoError(t, err)
	const entries = 60_000
	n, err := m.Load(t.Context(), func(yield func(int64, int64) bool) {
		for i := range int64(entries) {
			if !yield(i<<23|5<<10, i) { // as IDs that begin with a time
				return
			}
		}
	}, hashkv.LoadConfig{})
	require.NoError(t, err)
	require.EqualValues(t, entries, n)
	buckets, slots := 0, make(map[int64]bool)
	for _, node := range nodeClients(t, cluster) {
		var lengths []*redis.IntCmd
		var slotsOf []*redis.IntCmd
		pipe := node.Pipeline()
		keys := node.Scan(t.Context(), 0, "even:{*", 10_000).Iterator()
		for keys.Next(t.Context()) {
			lengths = append(lengths, pipe.HLen(t.Context(), keys.Val()))
			slotsOf = append(slotsOf, pipe.ClusterKeySlot(t.Context(), keys.Val()))
		}
		require.NoError(t, keys.Err())
		_, err := pipe.Exec(t.Context())
		require.NoError(t, err)
		stored := int64(0)
		for i, length := range lengths {
			stored += length.Val()
			slots[slotsOf[i].Val()] = true
		}
		require.InDelta(t, 4096./3, len(lengths), 1, "buckets of a node")
		require.InEpsilon(t, entries/3, stored, 0.05, "entries of a node")
		buckets += len(lengths)
	}
	require.Equal(t, 4096, buckets)
	require.Len(t, slots, 4096, "a slot for each")
}

func clusterDoesEverything(t *testing.T, rdb *redis.ClusterClient) {
	sparse, err := hashkv.NewSparse[int64](rdb, hashkv.SparseConfig{Entries: 1})
	require.NoError(t, err)
	dense, err := hashkv.NewDense(rdb, hashkv.DenseConfig{Keys: 1 << 20})
	require.NoError(t, err)
	for name, m := range map[string]table[int64, int64]{"Sparse": sparse, "Dense": dense} {
		t.Run(name, func(t *testing.T) {
			ctx := t.Context()
			require.NoError(t, m.Open(ctx))
			want := make(map[int64]int64)
			for i := range int64(3000) {
				want[i*17] = i
			}
			require.NoError(t, m.SetMulti(ctx, want))
			require.NoError(t, m.Set(ctx, 17, 99))
			done, err := m.SetNX(ctx, 17, 100)
			require.NoError(t, err)
			require.False(t, done)
			done, err = m.SetNX(ctx, 18, 100)
			require.NoError(t, err)
			require.True(t, done)
			want[17], want[18] = 99, 100
			n, err := m.Load(ctx, maps.All(map[int64]int64{5: 6, 17_000: 8}), hashkv.LoadConfig{})
			require.NoError(t, err)
			require.EqualValues(t, 2, n)
			want[5], want[17_000] = 6, 8
			require.NoError(t, m.Delete(ctx, 34, 51, 52))
			delete(want, 34)
			delete(want, 51)
			if m, ok := m.(*hashkv.Sparse[int64]); ok {
				require.NoError(t, m.Grow(ctx, hashkv.GrowConfig{}))
				report, err := m.Repair(ctx, hashkv.RepairConfig{})
				require.NoError(t, err)
				require.Equal(t, hashkv.RepairReport{Buckets: report.Buckets}, report)
			}
			found, err := m.GetMulti(ctx, append(slices.Collect(maps.Keys(want)), 34, 51, 52)...)
			require.NoError(t, err)
			require.Equal(t, want, found)
			value, err := m.Get(ctx, 17)
			require.NoError(t, err)
			require.EqualValues(t, 99, value)
			_, err = m.Get(ctx, 34)
			require.ErrorIs(t, err, hashkv.ErrNotFound)
			all, failed := m.All(ctx)
			require.Equal(t, want, maps.Collect(all))
			require.NoError(t, failed())
			stats, err := m.Stats(ctx, hashkv.StatsConfig{Sample: 1 << 20})
			require.NoError(t, err)
			require.EqualValues(t, len(want), stats.Entries)
		})
	}
}

// clusterLeastLimit has each node in turn allow less than the others.
func clusterLeastLimit(t *testing.T, cluster *localserver.RedisCluster, rdb *redis.ClusterClient) {
	ctx := t.Context()
	for i, node := range nodeClients(t, cluster) {
		const setting = "hash-max-listpack-entries"
		require.NoError(t, node.ConfigSet(ctx, setting, "64").Err())
		prefix := fmt.Sprintf("least%d", i)
		m, err := hashkv.NewSparse[int64](rdb, hashkv.SparseConfig{Prefix: prefix, Entries: 100_000})
		require.NoError(t, err)
		require.NoError(t, m.Open(ctx))
		require.Equal(t, 12, readHeader(t, rdb, prefix).Level, "100,000 entries in buckets of 24")
		stats, err := m.Stats(ctx, hashkv.StatsConfig{})
		require.NoError(t, err)
		require.Equal(t, 64, stats.Limit)
		require.NoError(t, node.ConfigSet(ctx, setting, "512").Err())
	}
}

// clusterSlotsMove moves slots from one node to another, key by key as
// redis-cli does, while the map grows and is read and written.
func clusterSlotsMove(t *testing.T, cluster *localserver.RedisCluster) {
	nodes := nodeClients(t, cluster)
	for _, node := range nodes {
		require.NoError(t, node.FlushAll(t.Context()).Err())
	}
	var maps []*hashkv.Sparse[int64]
	for range 4 {
		maps = append(maps, sparse(t, clusterClient(t, cluster)))
	}
	o := newOracle(4000, maps...)
	o.fill(t)
	for range 2 { // four buckets in each slot, and three tombstones
		require.NoError(t, maps[0].Grow(t.Context(), hashkv.GrowConfig{}))
	}
	stop := o.start(t)
	var grown error
	var wg sync.WaitGroup
	wg.Go(func() { grown = maps[3].Grow(t.Context(), slowly(t, o)) }) // waits for slots that move
	for _, slot := range []int{0, 64, 128} {                          // each 64th has buckets, the first third is of the first node
		moveSlot(t, nodes, slot, 0, 1, func() { o.went(t, 20) })
	}
	wg.Wait()
	require.NoError(t, grown)
	stop()
	require.NoError(t, maps[0].Open(t.Context()))
	stats, err := maps[0].Stats(t.Context(), hashkv.StatsConfig{Sample: 1 << 20})
	require.NoError(t, err)
	require.EqualValues(t, 1<<11, stats.Buckets)
	require.False(t, stats.Growing)
	require.EqualValues(t, 4000, stats.Entries)
	there, err := nodes[1].ClusterCountKeysInSlot(t.Context(), 64).Result()
	require.NoError(t, err)
	require.EqualValues(t, 8+7, there, "buckets and tombstones of a slot that moved")
}

func moveSlot(t *testing.T, nodes []*redis.Client, slot, from, to int, between func()) {
	t.Helper()
	ctx := t.Context()
	ids := make([]string, len(nodes))
	for i, node := range nodes {
		var err error
		ids[i], err = node.ClusterMyID(ctx).Result()
		require.NoError(t, err)
	}
	require.NoError(t, nodes[to].Do(ctx, "cluster", "setslot", slot, "importing", ids[from]).Err())
	require.NoError(t, nodes[from].Do(ctx, "cluster", "setslot", slot, "migrating", ids[to]).Err())
	between()
	for {
		keys, err := nodes[from].ClusterGetKeysInSlot(ctx, slot, 1).Result()
		require.NoError(t, err)
		if len(keys) == 0 {
			break
		}
		host, port := "127.0.0.1", nodes[to].Options().Addr[len("127.0.0.1:"):]
		require.NoError(t, nodes[from].Migrate(ctx, host, port, keys[0], 0, 5*time.Second).Err())
		between()
	}
	// The new owner first, so that no write is sent to and fro.
	for _, i := range []int{to, from, 3 - to - from} {
		require.NoError(t, nodes[i].Do(ctx, "cluster", "setslot", slot, "node", ids[to]).Err())
	}
	between()
}

func clusterNodeDies(t *testing.T, cluster *localserver.RedisCluster, rdb *redis.ClusterClient) {
	ctx := t.Context()
	m, err := hashkv.NewSparse[int64](rdb, hashkv.SparseConfig{Prefix: "dies", Entries: 1})
	require.NoError(t, err)
	old := make(map[int64]int64)
	for i := range 2000 {
		old[oracleKey(i)] = 1
	}
	require.NoError(t, m.SetMulti(ctx, old))

	// The node that has the header, which is the worst.
	node, err := rdb.MasterForKey(ctx, "dies:header")
	require.NoError(t, err)
	dead := node.Options().Addr
	keysOf := clusterFields(t, cluster, "dies")
	for _, node := range cluster.Nodes() {
		if node.Addr() == dead {
			require.NoError(t, node.Kill())
		}
	}
	failing, living := keysOf[dead], 2000-len(keysOf[dead])
	require.NotEmpty(t, failing)

	update := maps.Clone(old)
	for key := range update {
		update[key] = 2
	}
	err = m.SetMulti(ctx, update)
	partial, ok := errors.AsType[*hashkv.PartialError[int64]](err)
	require.True(t, ok, err)
	require.ElementsMatch(t, failing, partial.Failed)
	found, err := m.GetMulti(ctx, slices.Collect(maps.Keys(old))...)
	partial, ok = errors.AsType[*hashkv.PartialError[int64]](err)
	require.True(t, ok, err)
	require.ElementsMatch(t, failing, partial.Failed)
	require.Len(t, found, living)
	for key, value := range found {
		require.EqualValues(t, 2, value, key)
		require.NoError(t, m.Set(ctx, key, 3), "single calls go on, too")
		break
	}
}

// clusterFields returns the oracle's keys of a map that each node has, by what
// it stores and not by what the map says.
func clusterFields(t *testing.T, cluster *localserver.RedisCluster, prefix string) map[string][]int64 {
	t.Helper()
	byPlace := make(map[string]int64) // Redis key and field
	for i := range 2000 {
		bucket, rest := hashkv.Split(uint64(oracleKey(i)), 8)
		byPlace[fmt.Sprintf("%02x/%s", bucket, hashkv.Pack(rest))] = oracleKey(i)
	}
	all := make(map[string][]int64)
	for _, node := range nodeClients(t, cluster) {
		keys := node.Scan(t.Context(), 0, prefix+":{*", 10_000).Iterator()
		for keys.Next(t.Context()) {
			slot, err := node.ClusterKeySlot(t.Context(), keys.Val()).Result()
			require.NoError(t, err)
			fields, err := node.HKeys(t.Context(), keys.Val()).Result()
			require.NoError(t, err)
			for _, field := range fields { // of the bucket whose number is the high bits of the slot
				key, ok := byPlace[fmt.Sprintf("%02x/%s", slot>>6, field)]
				require.True(t, ok)
				all[node.Options().Addr] = append(all[node.Options().Addr], key)
			}
		}
		require.NoError(t, keys.Err())
	}
	return all
}

func TestClusterFailover(t *testing.T) {
	t.Parallel()
	cluster, rdb := startCluster(t, 1)
	nodes := cluster.Nodes()
	dies := func(i int) fault {
		return fault{nodes[i].Kill, func() {
			heir := direct(t, nodes[i+3])
			await(t, func() bool { return roleOf(t, heir) == "master" })
			require.NoError(t, nodes[i].Restart(t.Context()))
			await(t, func() bool { return replication(t, heir)["connected_slaves"] == "1" })
			// The client learns of it by and by.
			await(t, func() bool {
				rdb.ReloadState(t.Context())
				return rdb.ForEachMaster(t.Context(), func(ctx context.Context, c *redis.Client) error {
					if role := roleOf(t, c); role != "master" {
						return errors.New(c.Options().Addr + " is a " + role)
					}
					return nil
				}) == nil
			})
		}}
	}
	// One after the other, in the same cluster and with the same map.
	t.Run("InTheMiddleOfLoad", func(t *testing.T) { loadSurvives(t, rdb, dies(0)) })
	require.NoError(t, rdb.ForEachMaster(t.Context(), func(ctx context.Context, c *redis.Client) error { return c.FlushAll(ctx).Err() }))
	t.Run("InTheMiddleOfGrow", func(t *testing.T) { growSurvives(t, rdb, dies(1)) })
}
