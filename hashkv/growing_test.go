package hashkv_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/shardgram/shardgram/hashkv"
	"github.com/stretchr/testify/require"
)

func TestGrowKeepsSetNXExactlyOnce(t *testing.T) {
	t.Parallel()
	const keys = 2000
	rdb, maps := growers(t, 5)
	grower, maps := maps[4], maps[:4]
	var wins [keys]atomic.Int64 // the sum of the winners' numbers
	var calls atomic.Int64
	var wg sync.WaitGroup
	failed := make([]error, len(maps))
	for w, m := range maps {
		wg.Go(func() {
			for _, i := range rand.Perm(keys) {
				done, err := m.SetNX(t.Context(), oracleKey(i), int64(w+1))
				if err != nil {
					failed[w] = err
					return
				}
				if calls.Add(1); done {
					wins[i].Add(int64(w + 1))
				}
			}
		})
	}
	all := int64(len(maps) * keys)
	cfg := hashkv.GrowConfig{Parallel: 16, Progress: func(done, all256 int64) {
		goal := min(all, calls.Load()+50)
		await(t, func() bool { return calls.Load() >= goal })
	}}
	require.NoError(t, grower.Grow(t.Context(), cfg))
	require.NoError(t, grower.Grow(t.Context(), cfg))
	wg.Wait()
	require.NoError(t, errors.Join(failed...))
	requireGrown(t, rdb, 10)
	for i := range wins {
		value, err := grower.Get(t.Context(), oracleKey(i))
		require.NoError(t, err)
		require.Equal(t, wins[i].Load(), value, "the one that was told so, and no other")
	}
}

func TestGrowBringsBackNoDeletedKey(t *testing.T) {
	t.Parallel()
	const keys = 3000
	rdb, maps := growers(t, 4)
	grower, maps := maps[3], maps[:3]
	for i := range keys {
		require.NoError(t, grower.Set(t.Context(), oracleKey(i), 1))
	}
	var deleted atomic.Int64
	var wg sync.WaitGroup
	failed := make([]error, len(maps))
	for w, m := range maps {
		wg.Go(func() {
			for i := w; i < keys; i += 2 * len(maps) { // every other one
				err := m.Delete(t.Context(), oracleKey(i))
				if err == nil {
					_, err = m.Get(t.Context(), oracleKey(i))
				}
				if !errors.Is(err, hashkv.ErrNotFound) {
					failed[w] = fmt.Errorf("get what was deleted: %w", err)
					return
				}
				deleted.Add(1)
			}
		})
	}
	cfg := hashkv.GrowConfig{Parallel: 16, Progress: func(int64, int64) {
		goal := min(keys/2, deleted.Load()+20)
		await(t, func() bool { return deleted.Load() >= goal })
	}}
	require.NoError(t, grower.Grow(t.Context(), cfg))
	require.NoError(t, grower.Grow(t.Context(), cfg))
	wg.Wait()
	require.NoError(t, errors.Join(failed...))
	requireGrown(t, rdb, 10)
	entries, end := grower.All(t.Context())
	left := make(map[int64]bool)
	for key := range entries {
		left[key] = true
	}
	require.NoError(t, end())
	for i := range keys {
		require.Equal(t, i%(2*len(maps)) >= len(maps), left[oracleKey(i)], i)
	}
}

func TestGrowUnderAll(t *testing.T) {
	t.Parallel()
	rdb, maps := growers(t, 2)
	o := newOracle(2000, maps...)
	o.fill(t)
	for _, at := range []int{1, 300, 300} { // entry of the first pipeline at which the map grows
		entries, failed := maps[1].All(t.Context())
		seen := make(map[int64]int)
		for key := range entries {
			if seen[key]++; len(seen) != at {
				continue
			}
			require.NoError(t, maps[0].Grow(t.Context(), hashkv.GrowConfig{}))
			for key := range tombstones(t, rdb) { // an hour passes
				require.NoError(t, rdb.Del(t.Context(), key).Err())
			}
			maps[1].Age(2 * time.Second)
		}
		require.NoError(t, failed())
		require.Len(t, seen, 2000)
		for key, times := range seen {
			require.Equal(t, 1, times, key)
		}
	}
	// And while buckets are being split, and written to.
	stop := o.start(t)
	var wg sync.WaitGroup
	var grown error
	wg.Go(func() {
		grown = maps[0].Grow(t.Context(), hashkv.GrowConfig{Parallel: 16, Progress: func(int64, int64) { o.went(t, 1) }})
	})
	for growing := true; growing; {
		growing = readGrowing(t, maps[1])
		entries, failed := maps[1].All(t.Context())
		seen := make(map[int64]int)
		for key := range entries {
			seen[key]++
		}
		require.NoError(t, failed())
		require.Len(t, seen, 2000)
		for key, times := range seen {
			require.Equal(t, 1, times, key)
		}
	}
	wg.Wait()
	require.NoError(t, grown)
	stop()
}

// readGrowing waits for the map to grow at first, and tells when it has.
func readGrowing(t *testing.T, m *hashkv.Sparse[int64]) bool {
	t.Helper()
	require.NoError(t, m.Open(t.Context()))
	stats, err := m.Stats(t.Context(), hashkv.StatsConfig{Sample: 1 << 20})
	require.NoError(t, err)
	require.Empty(t, stats.Oversize, "a bucket that was split is none")
	require.EqualValues(t, 2000, stats.Entries)
	return stats.Growing || stats.Buckets < 4096
}

func TestGrowBuriesTombstonesAtTheEnd(t *testing.T) {
	t.Parallel()
	rdb, maps := growers(t, 2)
	o := newOracle(500, maps...)
	o.fill(t)
	require.NoError(t, maps[0].Grow(t.Context(), hashkv.GrowConfig{Parallel: 16, Progress: func(done, all int64) {
		if h := readHeader(t, rdb, "g"); !h.Growing || h.Sweeping || h.Level != 8 || all != 256 {
			t.Errorf("after %d of %d: %+v", done, all, h)
		}
		dead := tombstones(t, rdb)
		if len(dead) != int(done) {
			t.Errorf("%d tombstones after %d buckets", len(dead), done)
		}
		for key, life := range dead {
			if life != -1 {
				t.Errorf("%s has an end while the map grows", key)
			}
		}
	}}))
	requireGrown(t, rdb, 9)

	// A Grow dies when all buckets are split and the header says so.
	dying := sameRedis(t, rdb)
	died := errors.New("died")
	before(dying, 1, "getex", func() error { return died })
	m := sparse(t, dying)
	require.ErrorIs(t, m.Grow(t.Context(), hashkv.GrowConfig{}), died)
	h := readHeader(t, rdb, "g")
	require.Equal(t, storedHeader{ID: h.ID, Level: 10, Sweeping: true}, h)
	lasting := 0
	for _, life := range tombstones(t, rdb) {
		if life == -1 {
			lasting++
		}
	}
	require.Equal(t, 512, lasting)
	o.check(t)

	// The next one makes up for it.
	require.NoError(t, maps[1].Grow(t.Context(), hashkv.GrowConfig{}))
	requireGrown(t, rdb, 11)
	o.check(t)
}

// TestGrowWithHeaderThatWentBack does to the header what a failover may do to
// it: the last change is undone, those of buckets are not.
func TestGrowWithHeaderThatWentBack(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct {
		name  string
		split int64 // buckets, before the header goes back; 0 for all
	}{{"InTheMiddle", 100}, {"AtTheEnd", 0}} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			rdb, maps := growers(t, 3)
			o := newOracle(2000, maps...)
			o.fill(t)
			old, err := rdb.Get(t.Context(), "g:header").Result()
			require.NoError(t, err)
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			err = maps[0].Grow(ctx, hashkv.GrowConfig{Parallel: 10, Progress: func(done, all int64) {
				if done == tc.split {
					cancel()
				}
			}})
			if tc.split > 0 {
				require.ErrorIs(t, err, context.Canceled)
			} else {
				require.NoError(t, err)
			}
			require.NoError(t, rdb.Set(t.Context(), "g:header", old, 0).Err())
			o.maps = append(o.maps, sparse(t, sameRedis(t, rdb))) // knows of nothing
			stop := o.start(t)
			o.went(t, 300)
			require.NoError(t, maps[1].Grow(t.Context(), slowly(t, o)))
			o.went(t, 100)
			stop()
			requireGrown(t, rdb, 9)
		})
	}
}

// TestGrowThatSleepsTooLong has a process stand still in the middle of Grow until
// another has finished it and the tombstones have expired.
func TestGrowThatSleepsTooLong(t *testing.T) {
	t.Parallel()
	rdb, maps := growers(t, 1)
	slow := sameRedis(t, rdb)
	m := sparse(t, slow)
	o := newOracle(1000, maps[0])
	o.fill(t)
	before(slow, 100, "hkeys", func() error {
		if err := maps[0].Grow(t.Context(), hashkv.GrowConfig{}); err != nil {
			return err
		}
		for key := range tombstones(t, rdb) {
			if err := rdb.Del(t.Context(), key).Err(); err != nil {
				return err
			}
		}
		return nil
	})
	require.NoError(t, m.Grow(t.Context(), hashkv.GrowConfig{Parallel: 8}))
	o.check(t)
	h := readHeader(t, rdb, "g")
	require.Equal(t, storedHeader{ID: h.ID, Level: 9}, h)
}

// TestGrowMeetsFailover has a failover bring back the unsplit bucket of a key
// between the two commands of a call that finds it split.
func TestGrowMeetsFailover(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct {
		name, command string
		write         func(ctx context.Context, m *hashkv.Sparse[int64]) error
		want          int64 // 0 if the key must be absent
	}{
		{"Set", "hset", func(ctx context.Context, m *hashkv.Sparse[int64]) error { return m.Set(ctx, 5, 2) }, 2},
		{"SetMulti", "hset", func(ctx context.Context, m *hashkv.Sparse[int64]) error {
			return m.SetMulti(ctx, map[int64]int64{5: 2})
		}, 2},
		{"SetNX", "hsetnx", func(ctx context.Context, m *hashkv.Sparse[int64]) error {
			if done, err := m.SetNX(ctx, 5, 2); done {
				return fmt.Errorf("set what is there: %w", err)
			}
			return nil
		}, 1},
		{"SetThenDelete", "hset", func(ctx context.Context, m *hashkv.Sparse[int64]) error {
			return errors.Join(m.Set(ctx, 5, 2), m.Delete(ctx, 5))
		}, 0},
		{"Delete", "hdel", func(ctx context.Context, m *hashkv.Sparse[int64]) error { return m.Delete(ctx, 5) }, 0},
		{"Get", "hget", func(ctx context.Context, m *hashkv.Sparse[int64]) error {
			if value, err := m.Get(ctx, 5); value != 1 {
				return fmt.Errorf("got %d: %w", value, err)
			}
			return nil
		}, 1},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			ctx := t.Context()
			rdb, maps := growers(t, 1)
			mate := int64(6) // of the same bucket
			for bucketOf(mate) != bucketOf(5) {
				mate++
			}
			require.NoError(t, maps[0].SetMulti(ctx, map[int64]int64{5: 1, mate: 3}))
			buckets, err := rdb.Keys(ctx, "g:{*").Result()
			require.NoError(t, err)
			require.Len(t, buckets, 1)
			old := buckets[0]
			fields, err := rdb.HGetAll(ctx, old).Result()
			require.NoError(t, err)

			grow, cancel := context.WithCancel(ctx)
			err = maps[0].Grow(grow, hashkv.GrowConfig{Progress: func(done, all int64) {
				if done == all {
					cancel() // all are split, and the header does not say so yet
				}
			}})
			require.ErrorIs(t, err, context.Canceled)

			client := sameRedis(t, rdb)
			m := sparse(t, client)
			_, err = m.Get(ctx, -1) // knows that the map grows
			require.ErrorIs(t, err, hashkv.ErrNotFound)
			before(client, 2, tc.command, func() error {
				buckets, err := rdb.Keys(ctx, "g:{*").Result()
				if err == nil {
					err = rdb.Del(ctx, buckets...).Err()
				}
				if err == nil {
					err = rdb.HSet(ctx, old, fields).Err()
				}
				return err
			})
			require.NoError(t, tc.write(ctx, m))
			check := func() {
				t.Helper()
				value, err := maps[0].Get(ctx, mate)
				require.NoError(t, err)
				require.EqualValues(t, 3, value)
				value, err = maps[0].Get(ctx, 5)
				if tc.want == 0 {
					require.ErrorIs(t, err, hashkv.ErrNotFound)
					return
				}
				require.NoError(t, err)
				require.Equal(t, tc.want, value)
			}
			check()
			require.NoError(t, maps[0].Grow(ctx, hashkv.GrowConfig{}))
			check()
		})
	}
}

// bucketOf returns the bucket of a key in a map that has not grown.
func bucketOf(key int64) uint64 {
	bucket, _ := hashkv.Split(uint64(key), 8)
	return bucket
}
