package hashkv_test

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
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

// An aging map is one of which a test says how long ago it read its header.
type aging interface {
	table[int64, int64]
	Age(age time.Duration)
}

// losers opens one map of each kind, with a client of its own.
func losers(t *testing.T, rdb *redis.Client) map[string]aging {
	t.Helper()
	sparse, err := hashkv.NewSparse[int64](sameRedis(t, rdb), hashkv.SparseConfig{Prefix: "s", Entries: 1})
	require.NoError(t, err)
	dense, err := hashkv.NewDense(sameRedis(t, rdb), hashkv.DenseConfig{Prefix: "d", Keys: 10_000})
	require.NoError(t, err)
	all := map[string]aging{"s": sparse, "d": dense}
	for _, m := range all {
		require.NoError(t, m.Open(t.Context()))
	}
	return all
}

func TestLostMap(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct {
		name string
		lose func(t *testing.T, rdb *redis.Client)
		left int64 // entries that are there when the map is opened again
	}{
		{"Emptied", func(t *testing.T, rdb *redis.Client) {
			require.NoError(t, rdb.FlushDB(t.Context()).Err())
		}, 0},
		{"MadeAnew", func(t *testing.T, rdb *redis.Client) {
			require.NoError(t, rdb.FlushDB(t.Context()).Err())
			for _, m := range losers(t, rdb) {
				require.NoError(t, m.Set(t.Context(), 77, 7))
			}
		}, 1},
		{"AnotherHeader", func(t *testing.T, rdb *redis.Client) {
			for _, prefix := range []string{"s", "d"} {
				h := readHeader(t, rdb, prefix)
				text := rdb.Get(t.Context(), prefix+":header").Val()
				require.NoError(t, rdb.Set(t.Context(), prefix+":header", strings.ReplaceAll(text, h.ID, "ANOTHER"), 0).Err())
			}
		}, 2},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			ctx := t.Context()
			rdb := testserver.Redis(t)
			all := losers(t, rdb)
			for _, m := range all {
				require.NoError(t, m.SetMulti(ctx, map[int64]int64{76: 1, 77: 2}))
			}
			tc.lose(t, rdb)
			before := dump(t, rdb)
			for name, m := range all {
				m.Age(1100 * time.Millisecond)
				for range 2 {
					for op, err := range everyCall(t, m) {
						require.ErrorIs(t, err, hashkv.ErrLost, "%s %s", name, op)
					}
				}
			}
			require.Equal(t, before, dump(t, rdb), "nothing is written")
			for name, m := range all {
				require.NoError(t, m.Open(ctx))
				stats, err := m.Stats(ctx, hashkv.StatsConfig{Sample: 1 << 20})
				require.NoError(t, err)
				require.Equal(t, tc.left, stats.Entries, name)
				require.NoError(t, m.Set(ctx, 78, 9))
			}
		})
	}
}

// dump returns the whole database.
func dump(t *testing.T, rdb *redis.Client) map[string]string {
	t.Helper()
	all := make(map[string]string)
	for _, key := range rdb.Keys(t.Context(), "*").Val() {
		all[key] = rdb.Dump(t.Context(), key).Val()
	}
	return all
}

// TestLostMapIsNoticedInTime waits for what other tests do by Age.
func TestLostMapIsNoticedInTime(t *testing.T) {
	t.Parallel()
	server, err := testserver.Host(t).Redis(t.Context(), "forgets", localserver.RedisConfig{})
	require.NoError(t, err)
	all := losers(t, direct(t, server))
	for _, m := range all {
		require.NoError(t, m.Set(t.Context(), 1, 1))
	}
	require.NoError(t, server.Restart(t.Context())) // it has nothing on disk
	begun := time.Now()
	for _, m := range all {
		await(t, func() bool { return errors.Is(m.Set(t.Context(), 2, 2), hashkv.ErrLost) })
	}
	require.Less(t, time.Since(begun), 5*time.Second)
	for _, m := range all {
		require.NoError(t, m.Open(t.Context()))
		_, err := m.Get(t.Context(), 1)
		require.ErrorIs(t, err, hashkv.ErrNotFound)
	}
}

// TestLostMapUnderWalk opens a smaller map in the place of the one that All
// walks over.
func TestLostMapUnderWalk(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	rdb, maps := growers(t, 1)
	m := maps[0]
	for range 2 {
		require.NoError(t, m.Grow(ctx, hashkv.GrowConfig{}))
	}
	_, err := m.Load(ctx, numbered(0, 5000), hashkv.LoadConfig{})
	require.NoError(t, err)
	entries, failed := m.All(ctx)
	var once sync.Once
	for range entries {
		once.Do(func() {
			require.NoError(t, rdb.FlushDB(ctx).Err())
			require.NoError(t, m.Open(ctx))
		})
	}
	require.ErrorIs(t, failed(), hashkv.ErrLost)

	_, err = m.Load(ctx, numbered(0, 100), hashkv.LoadConfig{})
	require.NoError(t, err)
	for range 2 {
		require.NoError(t, m.Grow(ctx, hashkv.GrowConfig{}))
	}
	_, err = m.Repair(ctx, hashkv.RepairConfig{Progress: func(int64, int64) {
		once = sync.Once{}
		once.Do(func() {
			if err := errors.Join(rdb.FlushDB(ctx).Err(), m.Open(ctx)); err != nil {
				t.Error(err)
			}
		})
	}})
	require.ErrorIs(t, err, hashkv.ErrLost)
}

// TestLostMapUnderGrow has another process make the map anew while a Grow is on
// its way.
func TestLostMapUnderGrow(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	rdb, maps := growers(t, 1)
	_, err := maps[0].Load(ctx, numbered(0, 1000), hashkv.LoadConfig{})
	require.NoError(t, err)
	slow := sameRedis(t, rdb)
	m := sparse(t, slow)
	fresh := sameRedis(t, rdb)
	o := newOracle(1000)
	before(slow, 65, "hkeys", func() error {
		if err := rdb.FlushDB(ctx).Err(); err != nil {
			return err
		}
		other, err := hashkv.NewSparse[int64](fresh, hashkv.SparseConfig{Prefix: "g", Entries: 1})
		if err != nil {
			return err
		}
		o.maps = append(o.maps, other)
		o.fill(t)
		m.Age(1100 * time.Millisecond)
		return nil
	})
	require.ErrorIs(t, m.Grow(ctx, hashkv.GrowConfig{Parallel: 8}), hashkv.ErrLost)
	o.check(t)
	require.LessOrEqual(t, len(tombstones(t, rdb)), 8, "no more than were on their way")
	require.NoError(t, o.maps[0].Grow(ctx, hashkv.GrowConfig{}))
	o.check(t)
	requireGrown(t, rdb, 9)
}

// commands counts what a client sends, by name and first argument.
type commands struct {
	mu   sync.Mutex
	sent map[string]int
}

func (c *commands) DialHook(next redis.DialHook) redis.DialHook { return next }
func (c *commands) ProcessHook(next redis.ProcessHook) redis.ProcessHook {
	return func(ctx context.Context, cmd redis.Cmder) error {
		if args := cmd.Args(); len(args) > 1 {
			c.mu.Lock()
			c.sent[fmt.Sprint(args[0], " ", args[1])]++
			c.mu.Unlock()
		}
		return next(ctx, cmd)
	}
}

func (c *commands) ProcessPipelineHook(next redis.ProcessPipelineHook) redis.ProcessPipelineHook {
	return next
}

func TestFirstUseOpensOnce(t *testing.T) {
	t.Parallel()
	rdb := testserver.Redis(t)
	watch := &commands{sent: make(map[string]int)}
	rdb.AddHook(watch)
	m, err := hashkv.NewSparse[int64](rdb, hashkv.SparseConfig{Prefix: "s"})
	require.NoError(t, err)
	d, err := hashkv.NewDense(rdb, hashkv.DenseConfig{Prefix: "d"})
	require.NoError(t, err)
	var wg sync.WaitGroup
	var failed atomic.Pointer[error]
	for i := range int64(100) {
		for _, m := range []table[int64, int64]{m, d} {
			wg.Go(func() {
				if err := m.Set(t.Context(), i, i); err != nil {
					failed.Store(&err)
				}
			})
		}
	}
	wg.Wait()
	require.Nil(t, failed.Load())
	require.Equal(t, 1, watch.sent["set s:header"], watch.sent)
	require.Equal(t, 1, watch.sent["set d:header"])
	require.LessOrEqual(t, watch.sent["get s:header"], 2+1, "a miss, what was made, and again if a second has passed")

	// A process that comes later makes none.
	late := &commands{sent: make(map[string]int)}
	client := sameRedis(t, rdb)
	client.AddHook(late)
	m, err = hashkv.NewSparse[int64](client, hashkv.SparseConfig{Prefix: "s"})
	require.NoError(t, err)
	value, err := m.Get(t.Context(), 7)
	require.NoError(t, err)
	require.EqualValues(t, 7, value)
	require.Zero(t, late.sent["set s:header"])
}

// TestFirstUseByManyProcesses has them agree on one header.
func TestFirstUseByManyProcesses(t *testing.T) {
	t.Parallel()
	rdb := testserver.Redis(t)
	all := make([]*hashkv.Sparse[int64], 20)
	for i := range all {
		var err error
		// They do not agree on how large it will be.
		all[i], err = hashkv.NewSparse[int64](sameRedis(t, rdb), hashkv.SparseConfig{Entries: int64(1) << (i % 4) * 1_000_000})
		require.NoError(t, err)
	}
	var wg sync.WaitGroup
	failed := make([]error, len(all))
	for i, m := range all {
		wg.Go(func() { failed[i] = m.Set(t.Context(), int64(i), 1) })
	}
	wg.Wait()
	require.NoError(t, errors.Join(failed...))
	for i, m := range all {
		entries, end := m.All(t.Context())
		if i%7 == 0 {
			require.Len(t, slices.Collect(maps.Keys(maps.Collect(entries))), len(all))
			require.NoError(t, end())
		}
		require.NoError(t, m.Delete(t.Context(), -1))
	}
}
