package redislease_test

import (
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	"github.com/shardgram/shardgram/idgen"
	"github.com/shardgram/shardgram/idgen/redislease"
	"github.com/shardgram/shardgram/internal/localserver"
	"github.com/shardgram/shardgram/internal/testserver"
)

func TestCluster(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	cluster, err := testserver.Host(t).RedisCluster(ctx, "cluster", localserver.RedisClusterConfig{
		Replicas: 1, Settings: durable(),
	})
	require.NoError(t, err)
	rdb := redis.NewClusterClient(&redis.ClusterOptions{
		Addrs: cluster.Addrs(), DialTimeout: 500 * time.Millisecond, ReadTimeout: 2 * time.Second,
		DialerRetries: 1, ContextTimeoutEnabled: true, PoolSize: 1000, PipelinePoolSize: 1000,
		ClusterStateReloadInterval: time.Hour, // only when there is a reason
	})
	t.Cleanup(func() { require.NoError(t, rdb.Close()) })

	// Prefixes of which each node has some; half of them wait for a replica.
	victim := cluster.Nodes()[0]
	var async, waiting, bereft []idgen.Lease
	for i, prefix := range strings.Split("abcdefghijklmnopqrst", "") {
		replicas := i % 2
		store := open(t, rdb, redislease.Config{Prefix: prefix, Replicas: replicas})
		require.Equal(t, 0, claim(t, store, idgen.AnyShard).Shard())
		l := claim(t, store, idgen.AnyShard)
		require.Equal(t, 1, l.Shard())
		require.NoError(t, l.Extend(ctx, 100))
		require.NoError(t, l.Release(ctx, 90))
		old := claim(t, store, 1)
		require.Equal(t, idgen.ID(90), old.Mark())
		l = claim(t, store, 1)
		require.ErrorIs(t, old.Extend(ctx, 200), idgen.ErrLeaseLost)
		require.NoError(t, l.Extend(ctx, 200))

		node, err := rdb.MasterForKey(ctx, "{"+prefix+"}")
		require.NoError(t, err)
		switch dies := node.Options().Addr == victim.Addr(); {
		case replicas == 0:
			async = append(async, l)
		case dies:
			bereft = append(bereft, l)
		default:
			waiting = append(waiting, l)
		}
	}
	require.NotEmpty(t, waiting)
	require.NotEmpty(t, bereft)

	// A node dies. Its replica takes over and has none itself until the node
	// comes back, which WAIT must find out from this one and no other.
	soon(t, "the replica has all", func() bool {
		return dial(t, victim.Addr()).Do(ctx, "wait", 1, 100).Val() == int64(1)
	})
	require.NoError(t, victim.Kill())
	extend := func(l idgen.Lease) error {
		err := l.Extend(within(t, 2*time.Second), 300)
		require.NotErrorIs(t, err, idgen.ErrLeaseLost)
		return err
	}
	for _, l := range bereft {
		soon(t, "the new primary says that it has no replica", func() bool {
			err := extend(l)
			require.Error(t, err)
			return strings.Contains(err.Error(), "0 replicas have the mark")
		})
	}
	for _, l := range slices.Concat(async, waiting) {
		soon(t, "the others go on", func() bool { return extend(l) == nil })
	}
	require.NoError(t, victim.Restart(ctx))
	for _, l := range bereft {
		soon(t, "all go on", func() bool { return extend(l) == nil })
	}
}
