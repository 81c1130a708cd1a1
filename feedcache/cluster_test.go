package feedcache_test

import (
	"slices"
	"testing"

	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	"github.com/shardgram/shardgram/feedcache"
	"github.com/shardgram/shardgram/internal/localserver"
	"github.com/shardgram/shardgram/internal/testserver"
)

func TestCluster(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	cluster, err := testserver.Host(t).RedisCluster(ctx, "cluster", localserver.RedisClusterConfig{
		Settings: map[string]string{"cluster-require-full-coverage": "no"},
	})
	require.NoError(t, err)
	rdb := redis.NewClusterClient(&redis.ClusterOptions{
		Addrs: cluster.Addrs(), MaxRedirects: 1, DialerRetries: 1, PoolSize: 1000, PipelinePoolSize: 1000,
	})
	t.Cleanup(func() { require.NoError(t, rdb.Close()) })
	var src table
	feeds := open(t, rdb, src.Source, feedcache.Config{Cap: 10})
	owners := seq(600, 1)
	for _, owner := range owners {
		src.insert(owner, seq(15, 1)...)
		page, err := feeds.Page(ctx, owner, 0, 5)
		require.NoError(t, err)
		require.Equal(t, feedcache.Page{IDs: seq(15, 11), Next: 11}, page)
	}

	// One node forgets the scripts, and feeds of all nodes are compacted.
	node := redis.NewClient(&redis.Options{Addr: cluster.Addrs()[1]})
	t.Cleanup(func() { require.NoError(t, node.Close()) })
	require.NoError(t, node.ScriptFlush(ctx).Err())
	for id := int64(16); id <= 40; id++ {
		for _, owner := range owners {
			src.insert(owner, id)
		}
		d, err := feeds.Push(ctx, slices.Values(owners), id)
		require.NoError(t, err)
		require.Equal(t, feedcache.Delivery{Warm: len(owners)}, d)
	}
	for _, owner := range owners[:50] {
		got, err := walk(ctx, feeds, owner, 7)
		require.NoError(t, err)
		require.Equal(t, seq(40, 1), got)
	}

	// One node dies: its pages come from the Source, the others stay warm, and
	// a push says which feed it could not reach and counts those it did.
	require.NoError(t, cluster.Nodes()[1].Kill())
	for _, owner := range owners {
		src.insert(owner, 41)
	}
	d, err := feeds.Push(ctx, slices.Values(owners), 41)
	require.ErrorContains(t, err, "feedcache: push feed:")
	require.ErrorContains(t, err, " of 500 feeds)")
	require.Greater(t, d.Warm, 200)
	require.Less(t, d.Warm, 500)
	for _, owner := range owners[:6] {
		page, err := feeds.Page(ctx, owner, 0, 5)
		require.NoError(t, err)
		require.Equal(t, feedcache.Page{IDs: seq(41, 37), Next: 37}, page)
	}
}
