package hashkv_test

import (
	"context"
	"encoding/json"
	"errors"
	"math/rand/v2"
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

// A stored header, as far as tests look at it.
type storedHeader struct {
	ID                string
	Level             int
	Growing, Sweeping bool
}

func readHeader(t *testing.T, rdb redis.UniversalClient, prefix string) storedHeader {
	t.Helper()
	text, err := rdb.Get(t.Context(), prefix+":header").Result()
	require.NoError(t, err)
	var h storedHeader
	require.NoError(t, json.Unmarshal([]byte(text), &h))
	return h
}

// await waits for a condition. It may be called on any goroutine.
func await(t *testing.T, condition func() bool) {
	for end := time.Now().Add(30 * time.Second); !condition(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Error("waited in vain")
			return
		}
	}
}

// sparse opens a map of 256 buckets.
func sparse(t *testing.T, rdb redis.UniversalClient) *hashkv.Sparse[int64] {
	t.Helper()
	m, err := hashkv.NewSparse[int64](rdb, hashkv.SparseConfig{Prefix: "g", Entries: 1, Warn: func(err error) { t.Log(err) }})
	require.NoError(t, err)
	require.NoError(t, m.Open(t.Context()))
	return m
}

// growers returns n maps with the same data, each with a client of its own.
func growers(t *testing.T, n int) (*redis.Client, []*hashkv.Sparse[int64]) {
	t.Helper()
	rdb := testserver.Redis(t)
	maps := make([]*hashkv.Sparse[int64], n)
	for i := range maps {
		maps[i] = sparse(t, sameRedis(t, rdb))
	}
	return rdb, maps
}

// tombstones returns the Redis keys of split buckets, and how long they live.
func tombstones(t *testing.T, rdb *redis.Client) map[string]time.Duration {
	t.Helper()
	found := make(map[string]time.Duration)
	keys := rdb.ScanType(t.Context(), 0, "g:{*", 1000, "string").Iterator()
	for keys.Next(t.Context()) {
		life, err := rdb.TTL(t.Context(), keys.Val()).Result()
		require.NoError(t, err)
		found[keys.Val()] = life
	}
	require.NoError(t, keys.Err())
	return found
}

// requireGrown checks that no growing is left over: the map has so many
// buckets, and every tombstone an end.
func requireGrown(t *testing.T, rdb *redis.Client, level int) {
	t.Helper()
	h := readHeader(t, rdb, "g")
	require.Equal(t, storedHeader{ID: h.ID, Level: level}, h)
	dead := tombstones(t, rdb)
	require.Len(t, dead, 1<<level-1<<8, "one for every bucket of every level before")
	for key, life := range dead {
		require.Greater(t, life, 50*time.Minute, key)
		require.LessOrEqual(t, life, time.Hour, key)
	}
}

// slowly makes Grow wait for the others now and then.
func slowly(t *testing.T, o *oracle) hashkv.GrowConfig {
	return hashkv.GrowConfig{Parallel: 16, Progress: func(int64, int64) { o.went(t, 10) }}
}

func TestGrowLosesNothing(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct {
		name string
		grow func(t *testing.T, o *oracle)
	}{
		{"TwiceInARow", func(t *testing.T, o *oracle) {
			require.NoError(t, o.maps[0].Grow(t.Context(), slowly(t, o)))
			require.NoError(t, o.maps[1].Grow(t.Context(), slowly(t, o)))
		}},
		{"CancelledAndResumed", func(t *testing.T, o *oracle) {
			// Every eighth of the way or so, another process goes on.
			for turn, grown := 0, 0; grown < 2; turn++ {
				ctx, cancel := context.WithCancel(t.Context())
				cfg := slowly(t, o)
				last := rand.Int64N(256)
				cfg.Progress = func(done, _ int64) {
					if o.went(t, 5); turn < 10 && done > last {
						cancel()
					}
				}
				err := o.maps[turn%len(o.maps)].Grow(ctx, cfg)
				if cancel(); err == nil {
					grown++
					continue
				}
				require.ErrorIs(t, err, context.Canceled)
			}
		}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			rdb, maps := growers(t, 4)
			o := newOracle(4000, maps...)
			o.fill(t)
			stop := o.start(t)
			tc.grow(t, o)
			o.went(t, 100)
			stop()
			requireGrown(t, rdb, 10)
		})
	}
}

func TestGrowsAtTheSameTimeShareTheWork(t *testing.T) {
	t.Parallel()
	rdb, maps := growers(t, 4)
	o := newOracle(4000, maps...)
	o.fill(t)
	stop := o.start(t)
	var wg sync.WaitGroup
	failed := make([]error, 3)
	var in atomic.Int64
	for i := range failed {
		cfg := slowly(t, o)
		cfg.Progress = func(done, _ int64) {
			if done == 16 {
				in.Add(1)
			}
			await(t, func() bool { return in.Load() == int64(len(failed)) })
		}
		wg.Go(func() { failed[i] = maps[i].Grow(t.Context(), cfg) })
	}
	wg.Wait()
	require.NoError(t, errors.Join(failed...))
	stop()
	requireGrown(t, rdb, 9)
}

// TestGrowsInAnyOrder has no waiting in it, so that one may begin where another
// ends.
func TestGrowsInAnyOrder(t *testing.T) {
	t.Parallel()
	rdb, maps := growers(t, 4)
	o := newOracle(500, maps...)
	o.fill(t)
	var wg sync.WaitGroup
	failed := make([]error, len(maps))
	for i, m := range maps {
		wg.Go(func() { failed[i] = m.Grow(t.Context(), hashkv.GrowConfig{}) })
	}
	wg.Wait()
	require.NoError(t, errors.Join(failed...))
	o.check(t)
	requireGrown(t, rdb, readHeader(t, rdb, "g").Level)
}

// rival is a Redis client before whose n-th command with the name something
// else happens.
type rival struct {
	command string
	left    atomic.Int64
	act     func() error
}

func (r *rival) DialHook(next redis.DialHook) redis.DialHook { return next }

func (r *rival) ProcessHook(next redis.ProcessHook) redis.ProcessHook {
	return func(ctx context.Context, cmd redis.Cmder) error {
		if cmd.Name() == r.command && r.left.Add(-1) == 0 {
			if err := r.act(); err != nil {
				return err
			}
		}
		return next(ctx, cmd)
	}
}

func (r *rival) ProcessPipelineHook(next redis.ProcessPipelineHook) redis.ProcessPipelineHook {
	return func(ctx context.Context, cmds []redis.Cmder) error {
		for _, cmd := range cmds {
			if cmd.Name() != r.command || r.left.Add(-1) != 0 {
				continue
			}
			if err := r.act(); err != nil {
				for _, cmd := range cmds {
					cmd.SetErr(err)
				}
				return err
			}
		}
		return next(ctx, cmds)
	}
}

// before makes act happen before the n-th command with that name of rdb.
func before(rdb *redis.Client, n int64, command string, act func() error) {
	r := &rival{command: command, act: act}
	r.left.Store(n)
	rdb.AddHook(r)
}

// TestGrowBehindAnother has another process grow the map from start to end
// just before each step of a Grow that changes the header or reads it.
func TestGrowBehindAnother(t *testing.T) {
	t.Parallel()
	for step := range int64(3) {
		for _, command := range []string{"evalsha", "get"} {
			rdb, maps := growers(t, 1)
			slow := sameRedis(t, rdb)
			m := sparse(t, slow)
			before(slow, step+1, command, func() error { return maps[0].Grow(t.Context(), hashkv.GrowConfig{}) })
			o := newOracle(500, maps[0], m)
			o.fill(t)
			growing := true
			require.NoError(t, m.Grow(t.Context(), hashkv.GrowConfig{Progress: func(int64, int64) {
				growing = growing && readHeader(t, rdb, "g").Growing
			}}))
			require.True(t, growing, "buckets are split of a map that is not said to grow")
			o.check(t)
			level := readHeader(t, rdb, "g").Level
			if command == "evalsha" && step < 2 {
				require.Equal(t, 9, level, "both began with the same map, and doubled it")
			}
			requireGrown(t, rdb, level)
		}
	}
}

func TestGrowSurvivesKill(t *testing.T) {
	t.Parallel()
	server, err := testserver.Host(t).Redis(t.Context(), "kill", localserver.RedisConfig{Settings: map[string]string{
		"appendonly": "yes", "appendfsync": "always",
	}})
	require.NoError(t, err)
	maps := make([]*hashkv.Sparse[int64], 4)
	rdb := redis.NewClient(&redis.Options{Addr: server.Addr()})
	t.Cleanup(func() { rdb.Close() })
	for i := range maps {
		client := redis.NewClient(&redis.Options{Addr: server.Addr(), MaxRetries: -1, DialerRetries: 1})
		t.Cleanup(func() { client.Close() })
		maps[i] = sparse(t, client)
	}
	o := newOracle(2000, maps...)
	o.fill(t)
	o.forgive = func(err error) bool { return !errors.Is(err, hashkv.ErrLost) } // the server is away
	stop := o.start(t)
	for kills, grown := 0, 0; grown < 2; {
		cfg := slowly(t, o)
		cfg.Progress = func(done, _ int64) {
			if kills < 3 && done > 64 {
				kills++
				if err := server.Kill(); err != nil {
					t.Error(err)
				}
			}
		}
		err := maps[grown].Grow(t.Context(), cfg)
		if err == nil {
			grown++
			continue
		}
		require.NoError(t, server.Restart(t.Context()))
		o.went(t, 100)
	}
	for _, m := range maps { // a client may believe for a second that the server is away
		await(t, func() bool {
			_, err := m.Get(t.Context(), 0)
			return err == nil || errors.Is(err, hashkv.ErrNotFound)
		})
	}
	stop()
	requireGrown(t, rdb, 10)
}

// TestGrowWithoutTombstones shows what they are for, and that the oracle would
// notice.
func TestGrowWithoutTombstones(t *testing.T) {
	t.Parallel()
	rdb, maps := growers(t, 2)
	o := newOracle(100, maps...)
	o.fill(t)
	fresh, stale := maps[0], maps[1]
	require.NoError(t, fresh.Grow(t.Context(), hashkv.GrowConfig{}))
	stale.Rejuvenate()
	require.NoError(t, o.read(t, stale, 7), "finds the tombstone, and then its way")

	fresh, stale = stale, sparse(t, sameRedis(t, rdb))
	require.NoError(t, fresh.Grow(t.Context(), hashkv.GrowConfig{}))
	for key := range tombstones(t, rdb) {
		require.NoError(t, rdb.Del(t.Context(), key).Err())
	}
	stale.Rejuvenate()
	wrong, _ := errors.AsType[*oracleError](o.read(t, stale, 7))
	require.NotNil(t, wrong, "a read that finds nothing")
	stale.Rejuvenate()
	require.NoError(t, o.write(t, stale, 7))
	wrong, _ = errors.AsType[*oracleError](o.read(t, fresh, 7))
	require.NotNil(t, wrong, "a write that is lost")
}

func TestGrowWithStaleMap(t *testing.T) {
	t.Parallel()
	rdb, maps := growers(t, 1)
	ctx := t.Context()
	for i := range 1000 {
		require.NoError(t, maps[0].Set(ctx, oracleKey(i), int64(i)))
	}
	// stale returns a map that was opened two sizes ago.
	var all []*hashkv.Sparse[int64]
	for range 8 {
		all = append(all, sparse(t, sameRedis(t, rdb)))
	}
	stale := func() *hashkv.Sparse[int64] {
		m := all[0]
		all = all[1:]
		m.Rejuvenate()
		return m
	}
	require.NoError(t, maps[0].Grow(ctx, hashkv.GrowConfig{}))
	require.NoError(t, maps[0].Grow(ctx, hashkv.GrowConfig{}))

	value, err := stale().Get(ctx, oracleKey(3))
	require.NoError(t, err)
	require.EqualValues(t, 3, value)

	keys := make([]int64, 1000)
	for i := range keys {
		keys[i] = oracleKey(i)
	}
	found, err := stale().GetMulti(ctx, keys...)
	require.NoError(t, err)
	require.Len(t, found, 1000)

	require.NoError(t, stale().Set(ctx, oracleKey(3), 33))
	require.NoError(t, stale().SetMulti(ctx, map[int64]int64{oracleKey(4): 44, oracleKey(5): 55}))
	done, err := stale().SetNX(ctx, oracleKey(6), 66)
	require.NoError(t, err)
	require.False(t, done)
	require.NoError(t, stale().Delete(ctx, oracleKey(7)))

	entries, failed := stale().All(ctx)
	got := make(map[int64]int64)
	for key, value := range entries {
		got[key] += value
	}
	require.NoError(t, failed())
	stats, err := stale().Stats(ctx, hashkv.StatsConfig{Sample: 1 << 20})
	require.NoError(t, err)
	require.EqualValues(t, 999, stats.Entries)
	require.Empty(t, stats.Oversize)

	require.Len(t, got, 999)
	for i, want := range map[int]int64{3: 33, 4: 44, 5: 55, 6: 6, 8: 8} {
		require.Equal(t, want, got[oracleKey(i)])
		value, err := maps[0].Get(ctx, oracleKey(i))
		require.NoError(t, err)
		require.Equal(t, want, value)
	}
}
