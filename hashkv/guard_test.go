package hashkv_test

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/redis/go-redis/v9"
	"github.com/shardgram/shardgram/hashkv"
	"github.com/shardgram/shardgram/internal/localserver"
	"github.com/shardgram/shardgram/internal/testserver"
	"github.com/stretchr/testify/require"
)

// guarded starts a server with these settings.
func guarded(t *testing.T, settings map[string]string) *redis.Client {
	t.Helper()
	server, err := testserver.Host(t).Redis(t.Context(), "guarded", localserver.RedisConfig{Settings: settings})
	require.NoError(t, err)
	return direct(t, server)
}

// setLimit changes how many entries a compact hash may have.
func setLimit(t *testing.T, rdb *redis.Client, entries int) {
	t.Helper()
	require.NoError(t, rdb.ConfigSet(t.Context(), "hash-max-listpack-entries", fmt.Sprint(entries)).Err())
}

// withoutConfig returns a client of a user who may neither ask for settings nor
// for memory.
func withoutConfig(t *testing.T, rdb *redis.Client) *redis.Client {
	t.Helper()
	require.NoError(t, rdb.ACLSetUser(t.Context(), "tenant", "on", "nopass", "~*", "+@all", "-config", "-memory").Err())
	client := redis.NewClient(&redis.Options{Addr: rdb.Options().Addr, Username: "tenant", Password: "any"})
	t.Cleanup(func() { client.Close() })
	return client
}

func TestGuardPlansByTheLimit(t *testing.T) {
	t.Parallel()
	rdb := guarded(t, nil)
	tenant := withoutConfig(t, rdb)
	for _, tc := range []struct {
		limit, level int // 0 if no map is made
	}{
		{512, 10},  // 98 entries a bucket
		{1000, 10}, // no more, for they would be slow
		{128, 11},  // 49, with room for 72
		{64, 12},   // 24, with room for 29
		{32, 14},   // 6, with room for 11
		{15, 0},
	} {
		setLimit(t, rdb, tc.limit)
		for name, client := range map[string]*redis.Client{"Told": rdb, "Probed": tenant} {
			t.Run(fmt.Sprintf("%s%d", name, tc.limit), func(t *testing.T) {
				m, err := hashkv.NewSparse[int64](client, hashkv.SparseConfig{Prefix: "plan", Entries: 100_000})
				require.NoError(t, err)
				defer rdb.FlushAll(t.Context())
				err = m.Set(t.Context(), 1, 2)
				left, keysErr := rdb.Keys(t.Context(), "plan:*").Result()
				require.NoError(t, keysErr)
				if tc.level == 0 {
					refused, ok := errors.AsType[*hashkv.LimitError](err)
					require.True(t, ok, err)
					require.Equal(t, "hash-max-listpack-entries", refused.Setting)
					require.Equal(t, tc.limit, refused.Have)
					require.Equal(t, 16, refused.Want)
					require.Empty(t, left)
					return
				}
				require.NoError(t, err)
				require.Equal(t, tc.level, readHeader(t, rdb, "plan").Level)
				require.Len(t, left, 2, "the header and a bucket, and no probe")
				stats, err := m.Stats(t.Context(), hashkv.StatsConfig{Sample: 1 << 20})
				require.NoError(t, err)
				require.Equal(t, tc.limit, stats.Limit)
				require.Equal(t, name == "Told", stats.BytesPerKey > 0)
			})
		}
	}
}

// TestGuardKeepsBucketsCompact fills maps with what they are made for, at the
// most that a bucket may have on average.
func TestGuardKeepsBucketsCompact(t *testing.T) {
	t.Parallel()
	rdb := guarded(t, nil)
	for limit, entries := range map[int]int64{
		512: 256 * 181, // the square root of 2 above the target
		128: int64(256 * hashkv.RoomFor(128)),
	} {
		t.Run(fmt.Sprint(limit), func(t *testing.T) {
			setLimit(t, rdb, limit)
			cfg := hashkv.SparseConfig{Prefix: fmt.Sprint("full", limit), Entries: entries}
			m, err := hashkv.NewSparse[int64](rdb, cfg)
			require.NoError(t, err)
			_, err = m.Load(t.Context(), numbered(0, entries), hashkv.LoadConfig{})
			require.NoError(t, err)
			stats, err := m.Stats(t.Context(), hashkv.StatsConfig{Sample: 1 << 20})
			require.NoError(t, err)
			require.Equal(t, map[string]int{"listpack": 256}, stats.Encodings)
			require.Empty(t, stats.Oversize)
			require.EqualValues(t, entries, stats.Entries)
			for range 20 { // it is judged by a sample, each time another one
				require.NoError(t, m.Open(t.Context()))
				require.NoError(t, m.Set(t.Context(), oracleKey(0), 1), "a map that holds what it was made for")
			}
		})
	}
}

func TestGuardRefusesWrites(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	rdb := guarded(t, nil)
	for name, client := range map[string]*redis.Client{"Told": rdb, "Probed": withoutConfig(t, rdb)} {
		t.Run(name, func(t *testing.T) {
			setLimit(t, rdb, 512)
			require.NoError(t, rdb.FlushAll(ctx).Err())
			_, err := sparse(t, rdb).Load(ctx, numbered(0, 20_000), hashkv.LoadConfig{}) // 78 a bucket
			require.NoError(t, err)
			setLimit(t, rdb, 100)
			m, err := hashkv.NewSparse[int64](client, hashkv.SparseConfig{Prefix: "g"})
			require.NoError(t, err)
			_, ok := errors.AsType[*hashkv.LimitError](m.Open(ctx))
			require.True(t, ok)

			key, other := oracleKey(1), oracleKey(20_001)
			size, err := rdb.DBSize(ctx).Result()
			require.NoError(t, err)
			_, nxErr := m.SetNX(ctx, other, 1)
			_, loadErr := m.Load(ctx, maps.All(map[int64]int64{other: 1}), hashkv.LoadConfig{})
			for op, err := range map[string]error{
				"set": m.Set(ctx, key, 7), "setnx": nxErr, "setmulti": m.SetMulti(ctx, map[int64]int64{key: 7, other: 7}),
				"load": loadErr,
			} {
				refused, ok := errors.AsType[*hashkv.LimitError](err)
				require.True(t, ok, "%s: %v", op, err)
				require.Equal(t, "hash-max-listpack-entries", refused.Setting, op)
				require.Equal(t, 100, refused.Have, op)
				require.InDelta(t, 127, refused.Want, 5, op)
			}
			value, err := m.Get(ctx, key)
			require.NoError(t, err, "reads go on")
			require.EqualValues(t, 1, value)
			found, err := m.GetMulti(ctx, key, other)
			require.NoError(t, err)
			require.Equal(t, map[int64]int64{key: 1}, found)
			entries, failed := m.All(ctx)
			require.Len(t, maps.Collect(entries), 20_000)
			require.NoError(t, failed())
			now, err := rdb.DBSize(ctx).Result()
			require.NoError(t, err)
			require.Equal(t, size, now)
			require.NoError(t, m.Delete(ctx, oracleKey(2)), "which makes room")
			_, err = m.Get(ctx, oracleKey(2))
			require.ErrorIs(t, err, hashkv.ErrNotFound)

			// A higher limit makes it writable, and so does growing.
			setLimit(t, rdb, 512)
			await(t, func() bool { return m.Set(ctx, key, 7) == nil })
			setLimit(t, rdb, 100)
			require.Error(t, m.Open(ctx))
			require.Error(t, m.Set(ctx, key, 8))
			require.NoError(t, m.Grow(ctx, hashkv.GrowConfig{}))
			require.NoError(t, m.Set(ctx, key, 8))
		})
	}
}

func TestGuardOfLongValues(t *testing.T) {
	t.Parallel()
	rdb := guarded(t, map[string]string{"hash-max-listpack-value": "8"})
	for name, client := range map[string]*redis.Client{"told": rdb, "probed": withoutConfig(t, rdb)} {
		numbers, err := hashkv.NewSparse[int64](client, hashkv.SparseConfig{Prefix: name + "-n"})
		require.NoError(t, err)
		require.NoError(t, numbers.Set(t.Context(), 1, 1), "at most 8 bytes")
		short, err := hashkv.NewSparse[string](client, hashkv.SparseConfig{Prefix: name + "-s", ValueBytes: 8})
		require.NoError(t, err)
		require.NoError(t, short.Set(t.Context(), 1, "12345678"))
		long, err := hashkv.NewSparse[string](client, hashkv.SparseConfig{Prefix: name + "-l", ValueBytes: 9})
		require.NoError(t, err)
		refused, ok := errors.AsType[*hashkv.LimitError](long.Set(t.Context(), 1, "1"))
		require.True(t, ok)
		require.Equal(t, "hash-max-listpack-value", refused.Setting)
		require.Equal(t, 8, refused.Have)
		require.Equal(t, 9, refused.Want)
		keys, err := hashkv.NewStrings[int64](client, hashkv.StringsConfig{Prefix: name + "-k", KeyBytes: 10})
		require.NoError(t, err)
		refused, ok = errors.AsType[*hashkv.LimitError](keys.Set(t.Context(), "1", 1))
		require.True(t, ok)
		require.Equal(t, 10, refused.Want)
	}
}

func TestOpenWarnsOfEviction(t *testing.T) {
	t.Parallel()
	rdb := guarded(t, nil)
	for policy, want := range map[string]int64{"noeviction": 0, "volatile-lru": 1, "allkeys-lru": 1, "allkeys-random": 1} {
		t.Run(policy, func(t *testing.T) {
			require.NoError(t, rdb.ConfigSet(t.Context(), "maxmemory-policy", policy).Err())
			var warned atomic.Int64
			var text string
			warn := func(err error) { text = err.Error(); warned.Add(1) }
			m, err := hashkv.NewSparse[int64](rdb, hashkv.SparseConfig{Warn: warn})
			require.NoError(t, err)
			d, err := hashkv.NewDense(rdb, hashkv.DenseConfig{Warn: warn})
			require.NoError(t, err)
			for _, m := range []table[int64, int64]{m, d} {
				warned.Store(0)
				require.NoError(t, m.Open(t.Context()))
				require.Equal(t, want, warned.Load())
				require.NoError(t, m.Set(t.Context(), 1, 1))
				require.NoError(t, m.Set(t.Context(), 2, 1))
				require.Equal(t, want, warned.Load(), "once")
				require.Equal(t, want > 0, strings.Contains(text, policy))
				require.NoError(t, m.Open(t.Context()))
				require.Equal(t, 2*want, warned.Load(), "and again when it is opened again")
			}
		})
	}
}

func TestRepair(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	rdb := guarded(t, nil)
	m := sparse(t, rdb)
	o := newOracle(5000, m, sparse(t, sameRedis(t, rdb)))
	o.fill(t)
	buckets, err := rdb.Keys(ctx, "g:{*").Result()
	require.NoError(t, err)
	require.Len(t, buckets, 256)
	broken := buckets[:10]
	for _, bucket := range broken {
		require.NoError(t, rdb.HSet(ctx, bucket, strings.Repeat("x", 65), "").Err())
		require.NoError(t, rdb.HDel(ctx, bucket, strings.Repeat("x", 65)).Err())
	}
	stats, err := m.Stats(ctx, hashkv.StatsConfig{Sample: 1 << 20})
	require.NoError(t, err)
	require.Equal(t, map[string]int{"listpack": 246, "hashtable": 10}, stats.Encodings)
	require.ElementsMatch(t, broken, stats.Oversize)

	stop := o.start(t)
	o.went(t, 20)
	var progress []int64
	report, err := m.Repair(ctx, hashkv.RepairConfig{Progress: func(done, all int64) { progress = append(progress, done, all) }})
	require.NoError(t, err)
	o.went(t, 20)
	stop()
	require.Equal(t, hashkv.RepairReport{Buckets: 256, Repaired: 10}, report)
	require.Equal(t, []int64{256, 256}, progress)
	stats, err = m.Stats(ctx, hashkv.StatsConfig{Sample: 1 << 20})
	require.NoError(t, err)
	require.Equal(t, map[string]int{"listpack": 256}, stats.Encodings)

	// One bucket holds more than it may, until the limit is raised.
	large := buckets[17]
	for i := range 600 {
		require.NoError(t, rdb.HSet(ctx, large, hashkv.Pack(uint64(1)<<50+uint64(i)), "1").Err())
	}
	before, err := rdb.HGetAll(ctx, large).Result()
	require.NoError(t, err)
	report, err = m.Repair(ctx, hashkv.RepairConfig{})
	require.NoError(t, err)
	require.Equal(t, hashkv.RepairReport{Buckets: 256, Oversize: 1, Names: []string{large}}, report)
	setLimit(t, rdb, 1000)
	report, err = m.Repair(ctx, hashkv.RepairConfig{})
	require.NoError(t, err)
	require.Equal(t, hashkv.RepairReport{Buckets: 256, Repaired: 1}, report)
	after, err := rdb.HGetAll(ctx, large).Result()
	require.NoError(t, err)
	require.Equal(t, before, after)
}

// TestRepairWhileGrowing finds buckets of both sizes.
func TestRepairWhileGrowing(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	rdb, maps := growers(t, 2)
	o := newOracle(2000, maps...)
	o.fill(t)
	for _, bucket := range rdb.Keys(ctx, "g:{*").Val() {
		require.NoError(t, rdb.HSet(ctx, bucket, strings.Repeat("x", 65), "").Err())
		require.NoError(t, rdb.HDel(ctx, bucket, strings.Repeat("x", 65)).Err())
	}
	repaired := int64(0)
	require.NoError(t, maps[0].Grow(ctx, hashkv.GrowConfig{Parallel: 8, Progress: func(done, _ int64) {
		if done != 128 {
			return
		}
		report, err := maps[1].Repair(ctx, hashkv.RepairConfig{})
		if err != nil || report.Oversize > 0 {
			t.Error(report, err)
		}
		repaired = report.Repaired
	}}))
	require.EqualValues(t, 128, repaired, "those that were split are compact again by that")
	o.check(t)
}

type opener interface {
	Open(ctx context.Context) error
}

func TestOpenOfAnotherMap(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	rdb := testserver.Redis(t)
	made := func(m opener, err error) opener {
		t.Helper()
		require.NoError(t, err)
		return m
	}
	wide := func(cfg hashkv.SparseConfig) hashkv.SparseConfig { cfg.Prefix = "p"; return cfg }
	others := map[string]opener{
		"dense":       made(hashkv.NewDense(rdb, hashkv.DenseConfig{Prefix: "p"})),
		"dense 9":     made(hashkv.NewDense(rdb, hashkv.DenseConfig{Prefix: "p", ValueBits: 9})),
		"sparse":      made(hashkv.NewSparse[int64](rdb, wide(hashkv.SparseConfig{}))),
		"sparse live": made(hashkv.NewSparse[int64](rdb, wide(hashkv.SparseConfig{Live: 0xffffff}))),
		"sparse 9":    made(hashkv.NewSparse[int64](rdb, wide(hashkv.SparseConfig{ValueBits: 9}))),
		"sparse text": made(hashkv.NewSparse[string](rdb, wide(hashkv.SparseConfig{}))),
		"sparse 9 B":  made(hashkv.NewSparse[string](rdb, wide(hashkv.SparseConfig{ValueBytes: 9}))),
		"strings":     made(hashkv.NewStrings[int64](rdb, hashkv.StringsConfig{Prefix: "p"})),
		"strings 9":   made(hashkv.NewStrings[int64](rdb, hashkv.StringsConfig{Prefix: "p", KeyBytes: 9})),
		"strings v9":  made(hashkv.NewStrings[int64](rdb, hashkv.StringsConfig{Prefix: "p", ValueBits: 9})),
		"strings 9 B": made(hashkv.NewStrings[string](rdb, hashkv.StringsConfig{Prefix: "p", ValueBytes: 9})),
	}
	for stored, m := range others {
		require.NoError(t, rdb.Del(ctx, "p:header").Err())
		require.NoError(t, m.Open(ctx))
		header := rdb.Get(ctx, "p:header").Val()
		for name, other := range others {
			if name == stored {
				continue
			}
			mismatch, ok := errors.AsType[*hashkv.MismatchError](other.Open(ctx))
			require.True(t, ok, "%s as %s", stored, name)
			require.Equal(t, "p:header", mismatch.Key)
			require.NotEqual(t, mismatch.Stored, mismatch.Wanted)
			require.Contains(t, []string{"map", "keys", "values", "slots"}, mismatch.Field)
		}
		require.NoError(t, m.Open(ctx), "the header is as it was")
		require.Equal(t, header, rdb.Get(ctx, "p:header").Val())
	}

	// Each call says so, and writes nothing.
	require.NoError(t, rdb.FlushDB(ctx).Err())
	require.NoError(t, others["sparse"].Open(ctx))
	narrow, err := hashkv.NewSparse[int64](rdb, wide(hashkv.SparseConfig{ValueBits: 9}))
	require.NoError(t, err)
	for op, err := range everyCall(t, narrow) {
		_, ok := errors.AsType[*hashkv.MismatchError](err)
		require.True(t, ok, "%s: %v", op, err)
	}
	require.EqualValues(t, 1, rdb.DBSize(ctx).Val())

	good := rdb.Get(ctx, "p:header").Val()
	for name, header := range map[string]string{
		"version": strings.Replace(good, `"version":1`, `"version":2`, 1),
		"garbage": "nonsense",
		"level":   strings.Replace(good, `"level":13`, `"level":3`, 1),
		"tags":    strings.Replace(good, `"tagged":13`, `"tagged":15`, 1),
		"empty":   "",
	} {
		require.NotEqual(t, good, header, name)
		require.NoError(t, rdb.Set(ctx, "p:header", header, 0).Err())
		err := others["sparse"].Open(ctx)
		mismatch, isMismatch := errors.AsType[*hashkv.MismatchError](err)
		corrupt, isCorrupt := errors.AsType[*hashkv.CorruptError](err)
		switch name {
		case "version":
			require.True(t, isMismatch, err)
			require.Equal(t, "version", mismatch.Field)
			require.Equal(t, "2", mismatch.Stored)
		default:
			require.True(t, isCorrupt, "%s: %v", name, err)
			require.Equal(t, "p:header", corrupt.Key)
		}
	}
	require.NoError(t, rdb.Del(ctx, "p:header").Err())
	require.NoError(t, rdb.LPush(ctx, "p:header", "x").Err())
	for name, m := range others {
		corrupt, ok := errors.AsType[*hashkv.CorruptError](m.Open(ctx))
		require.True(t, ok, name)
		require.Equal(t, "p:header", corrupt.Key)
	}
}

// everyCall returns the error of each method, by its name.
func everyCall(t *testing.T, m table[int64, int64]) map[string]error {
	ctx := t.Context()
	_, getErr := m.Get(ctx, 1)
	_, multiErr := m.GetMulti(ctx, 1, 2)
	_, nxErr := m.SetNX(ctx, 1, 1)
	entries, failed := m.All(ctx)
	for key := range entries {
		t.Error("found a key: ", key)
	}
	_, loadErr := m.Load(ctx, maps.All(map[int64]int64{1: 1}), hashkv.LoadConfig{})
	_, statsErr := m.Stats(ctx, hashkv.StatsConfig{})
	errs := map[string]error{
		"get": getErr, "getmulti": multiErr, "setnx": nxErr, "set": m.Set(ctx, 1, 1),
		"setmulti": m.SetMulti(ctx, map[int64]int64{1: 1}), "delete": m.Delete(ctx, 1),
		"all": failed(), "load": loadErr, "stats": statsErr,
	}
	if m, ok := m.(*hashkv.Sparse[int64]); ok {
		errs["grow"] = m.Grow(ctx, hashkv.GrowConfig{})
		_, errs["repair"] = m.Repair(ctx, hashkv.RepairConfig{})
	}
	return errs
}
