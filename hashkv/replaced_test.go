package hashkv_test

import (
	"context"
	"errors"
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
	"golang.org/x/sync/errgroup"
)

// TestReplacedMapIsLostToAll: after a map of another kind has taken the place of
// a map, no goroutine writes to it once one has read the header.
func TestReplacedMapIsLostToAll(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	rdb, maps := growers(t, 1)
	require.NoError(t, maps[0].Set(ctx, 1, 1))
	require.NoError(t, rdb.FlushDB(ctx).Err())
	other, err := hashkv.NewSparse[string](rdb, hashkv.SparseConfig{Prefix: "g", Entries: 1})
	require.NoError(t, err)
	require.NoError(t, other.Open(ctx))
	maps[0].Age(2 * time.Second)
	require.ErrorIs(t, maps[0].Set(ctx, 1, 2), hashkv.ErrLost)
	var all errgroup.Group
	for i := range int64(50) {
		all.Go(func() error {
			if err := maps[0].Set(ctx, i, i); err == nil {
				t.Error("stored a number in a map of strings")
			}
			return nil
		})
	}
	require.NoError(t, all.Wait())
	require.Empty(t, collect(ctx, t, table[int64, string](other)))
}

// TestLoadNoticesAnotherMap: what was stored in a map that is gone does not
// count, also if somebody has opened the one in its place meanwhile.
func TestLoadNoticesAnotherMap(t *testing.T) {
	eachLoader(t, func(t *testing.T, rdb *redis.Client, m table[int64, int64]) {
		ctx := t.Context()
		done, err := m.Load(ctx, counted(0, 1000), hashkv.LoadConfig{Batch: 100, Progress: func(done int64) {
			if done == 500 {
				require.NoError(t, rdb.FlushDB(ctx).Err())
				require.NoError(t, m.Open(ctx))
			}
		}})
		require.ErrorIs(t, err, hashkv.ErrLost)
		require.EqualValues(t, 500, done)
	})
}

// TestForeignBucketHarmsNoOther: a bucket that is none stops the calls on its
// keys, and not those of a process that opens the map or looks how full it is.
func TestForeignBucketHarmsNoOther(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	rdb, maps := growers(t, 1)
	for i := range int64(2000) {
		require.NoError(t, maps[0].Set(ctx, i, i))
	}
	bucket := rdb.Keys(ctx, "g:{*").Val()[0]
	require.NoError(t, rdb.Del(ctx, bucket).Err())
	require.NoError(t, rdb.Set(ctx, bucket, "foreign", 0).Err())
	healthy := int64(0)
	for {
		if _, err := maps[0].Get(ctx, healthy); err == nil {
			break
		}
		healthy++
	}
	// The guard draws 128 of the 256 buckets: in twenty times it hardly ever
	// misses this one.
	for range 20 {
		require.NoError(t, sparse(t, rdb).Set(ctx, healthy, 7))
	}
}

// TestGrowWhoseEndWentBack has a failover take back the header of a map that has
// just grown, while its tombstones are given an end. None may get one then.
func TestGrowWhoseEndWentBack(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	rdb, maps := growers(t, 2)
	o := newOracle(1000, maps[0])
	o.fill(t)
	slow := sameRedis(t, rdb)
	m := sparse(t, slow)
	var growing string
	before(slow, 1, "getex", func() error { return rdb.Set(ctx, "g:header", growing, 0).Err() })
	require.NoError(t, m.Grow(ctx, hashkv.GrowConfig{Progress: func(int64, int64) {
		growing = rdb.Get(ctx, "g:header").Val()
	}}))
	h := readHeader(t, rdb, "g")
	require.Equal(t, storedHeader{ID: h.ID, Level: 9}, h)
	// An hour passes.
	for key := range tombstones(t, rdb) {
		require.NoError(t, rdb.Del(ctx, key).Err())
	}
	maps[0].Age(2 * time.Second)
	o.check(t)
}

// TestSweepSparesAnotherMap: a map that has taken the place of one that is being
// swept does not expire.
func TestSweepSparesAnotherMap(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	rdb, maps := growers(t, 1)
	newOracle(1000, maps[0]).fill(t)
	slow := sameRedis(t, rdb)
	m := sparse(t, slow)
	before(slow, 1, "getex", func() error {
		if err := rdb.FlushDB(ctx).Err(); err != nil {
			return err
		}
		_, err := sparse(t, sameRedis(t, rdb)).Load(ctx, numbered(0, 1000), hashkv.LoadConfig{})
		return err
	})
	require.ErrorIs(t, m.Grow(ctx, hashkv.GrowConfig{}), hashkv.ErrLost)
	keys := rdb.Keys(ctx, "g:*").Val()
	require.Greater(t, len(keys), 200)
	for _, key := range keys {
		require.EqualValues(t, -1, rdb.TTL(ctx, key).Val(), key)
	}
}

// TestAllMeetsFailover has a failover bring back the buckets that All has found
// split, before it reads their halves.
func TestAllMeetsFailover(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	rdb, maps := growers(t, 1)
	newOracle(500, maps[0]).fill(t)
	unsplit := make(map[string]map[string]string)
	for _, key := range rdb.Keys(ctx, "g:{*").Val() {
		unsplit[key] = rdb.HGetAll(ctx, key).Val()
	}
	until, cancel := context.WithCancel(ctx)
	require.ErrorIs(t, maps[0].Grow(until, hashkv.GrowConfig{Progress: func(done, all int64) {
		if done == all {
			cancel()
		}
	}}), context.Canceled)
	client := sameRedis(t, rdb)
	m := sparse(t, client)
	before(client, 257, "hgetall", func() error {
		for _, key := range rdb.Keys(ctx, "g:{*").Val() {
			if err := rdb.Del(ctx, key).Err(); err != nil {
				return err
			}
		}
		for key, fields := range unsplit {
			if err := rdb.HSet(ctx, key, fields).Err(); err != nil {
				return err
			}
		}
		return nil
	})
	entries, failed := m.All(ctx)
	for range entries {
	}
	require.ErrorContains(t, failed(), "a failover took back")
	require.Len(t, collect(ctx, t, table[int64, int64](m)), 500)
}

// TestGuardHoldsManyWriters: goroutines that write at the same time are stopped
// in time, too.
func TestGuardHoldsManyWriters(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	_, maps := growers(t, 1)
	_, err := maps[0].Load(ctx, numbered(0, 370*256), hashkv.LoadConfig{})
	require.NoError(t, err)
	var all errgroup.Group
	for i := range int64(8) {
		all.Go(func() error {
			for from := 1_000_000 * (i + 1); ; from += 4096 {
				if _, err := maps[0].Load(ctx, numbered(from, from+4096), hashkv.LoadConfig{Batch: 4096}); err != nil {
					return nil
				}
			}
		})
	}
	require.NoError(t, all.Wait())
	stats, err := maps[0].Stats(ctx, hashkv.StatsConfig{})
	require.NoError(t, err)
	require.Equal(t, map[string]int{"listpack": 256}, stats.Encodings)
	require.Greater(t, stats.Fill.Mean, 380.0)
}

// TestReplicaThatStandsStill: one that is connected but takes nothing in does
// not count.
func TestReplicaThatStandsStill(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	host := testserver.Host(t)
	first, err := host.Redis(ctx, "stands-first", localserver.RedisConfig{})
	require.NoError(t, err)
	second, err := host.Redis(ctx, "stands-second", localserver.RedisConfig{ReplicaOf: first})
	require.NoError(t, err)
	rdb := redis.NewClient(&redis.Options{Addr: first.Addr(), ReadTimeout: 300 * time.Millisecond, ContextTimeoutEnabled: true})
	t.Cleanup(func() { rdb.Close() })
	m := sparse(t, rdb)
	require.NoError(t, m.Set(ctx, 1, 1))
	require.NoError(t, second.Pause())
	short, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	done, err := m.Load(short, numbered(0, 100), hashkv.LoadConfig{Batch: 10, Replicas: 1})
	require.ErrorContains(t, err, "wait for replicas")
	require.Zero(t, done)
	require.NoError(t, second.Resume())
	done, err = m.Load(ctx, numbered(0, 100), hashkv.LoadConfig{Batch: 10, Replicas: 1})
	require.NoError(t, err)
	require.EqualValues(t, 100, done)
}

// TestClientsThatReadFromReplicasAreRefused: they may see a header of any age.
func TestClientsThatReadFromReplicasAreRefused(t *testing.T) {
	t.Parallel()
	for _, opts := range []redis.ClusterOptions{{ReadOnly: true}, {RouteByLatency: true}, {RouteRandomly: true}} {
		opts.Addrs = []string{"127.0.0.1:1"} // New does not dial
		rdb := redis.NewClusterClient(&opts)
		t.Cleanup(func() { rdb.Close() })
		_, err := hashkv.NewSparse[int64](rdb, hashkv.SparseConfig{})
		require.ErrorContains(t, err, "reads from replicas")
		_, err = hashkv.NewDense(rdb, hashkv.DenseConfig{})
		require.ErrorContains(t, err, "reads from replicas")
	}
}

// TestCallersShareAFailure: with a server that is away, callers do not wait for
// it one after the other.
func TestCallersShareAFailure(t *testing.T) {
	t.Parallel()
	const callers = 30
	var dials atomic.Int64
	waiting := make(chan struct{})
	rdb := redis.NewClient(&redis.Options{
		MaxRetries: -1, DialerRetries: 1, PoolSize: callers,
		Dialer: func(context.Context, string, string) (net.Conn, error) {
			if dials.Add(1) == 1 {
				<-waiting
			}
			return nil, errors.New("away")
		},
	})
	t.Cleanup(func() { rdb.Close() })
	m, err := hashkv.NewSparse[int64](rdb, hashkv.SparseConfig{})
	require.NoError(t, err)
	var started sync.WaitGroup
	var all errgroup.Group
	for i := range int64(callers) {
		started.Add(1)
		all.Go(func() error {
			started.Done()
			if _, err := m.Get(t.Context(), i); err == nil {
				t.Error("got a key of a server that is away")
			}
			return nil
		})
	}
	started.Wait()
	await(t, func() bool { return dials.Load() == 1 })
	time.AfterFunc(50*time.Millisecond, func() { close(waiting) }) // for the others to get to the queue
	require.NoError(t, all.Wait())
	require.Less(t, dials.Load(), int64(callers/2))
}

// TestGrowFinishesWhatWentBack has a failover take back the last change of the
// header before Grow looks at it again.
func TestGrowFinishesWhatWentBack(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	rdb, maps := growers(t, 1)
	o := newOracle(1000, maps[0])
	o.fill(t)
	slow := sameRedis(t, rdb)
	m := sparse(t, slow)
	var growing string
	// Grow reads the header before and after it begins, and after it ends.
	before(slow, 3, "get", func() error { return rdb.Set(ctx, "g:header", growing, 0).Err() })
	require.NoError(t, m.Grow(ctx, hashkv.GrowConfig{Progress: func(int64, int64) {
		if growing == "" {
			growing = rdb.Get(ctx, "g:header").Val()
		}
	}}))
	require.NotEmpty(t, growing)
	h := readHeader(t, rdb, "g")
	require.Equal(t, storedHeader{ID: h.ID, Level: 9}, h)
	maps[0].Age(2 * time.Second)
	o.check(t)
}

// TestAllNoticesThatTheMapWentBack: a walk over the buckets of a level that is
// not reached any more would miss what is in those of the level below.
func TestAllNoticesThatTheMapWentBack(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	rdb, maps := growers(t, 1)
	newOracle(1000, maps[0]).fill(t)
	var growing string
	require.NoError(t, maps[0].Grow(ctx, hashkv.GrowConfig{Progress: func(int64, int64) {
		growing = rdb.Get(ctx, "g:header").Val()
	}}))
	entries, failed := maps[0].All(ctx)
	for range entries {
		require.NoError(t, rdb.Set(ctx, "g:header", growing, 0).Err())
		maps[0].Age(2 * time.Second)
	}
	require.ErrorContains(t, failed(), "a failover took back")
}
