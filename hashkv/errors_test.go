package hashkv_test

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	"github.com/shardgram/shardgram/hashkv"
	"github.com/shardgram/shardgram/internal/localserver"
	"github.com/shardgram/shardgram/internal/testserver"
)

func TestNewRefusesBadConfig(t *testing.T) {
	t.Parallel()
	rdb := redis.NewClient(&redis.Options{Addr: "127.0.0.1:1"}) // New does not dial
	defer rdb.Close()
	ring := redis.NewRing(&redis.RingOptions{})
	defer ring.Close()
	dense := func(rdb redis.UniversalClient, cfg hashkv.DenseConfig) error {
		_, err := hashkv.NewDense(rdb, cfg)
		return err
	}
	sparse := func(rdb redis.UniversalClient, cfg hashkv.SparseConfig) error {
		_, err := hashkv.NewSparse[int64](rdb, cfg)
		return err
	}
	sparseText := func(cfg hashkv.SparseConfig) error {
		_, err := hashkv.NewSparse[string](rdb, cfg)
		return err
	}
	stringKeys := func(rdb redis.UniversalClient, cfg hashkv.StringsConfig) error {
		_, err := hashkv.NewStrings[int64](rdb, cfg)
		return err
	}
	stringsText := func(cfg hashkv.StringsConfig) error {
		_, err := hashkv.NewStrings[string](rdb, cfg)
		return err
	}
	for _, c := range []struct {
		err  error
		says string
	}{
		{dense(nil, hashkv.DenseConfig{}), "nil"},
		{sparse(nil, hashkv.SparseConfig{}), "nil"},
		{stringKeys(nil, hashkv.StringsConfig{}), "nil"},
		{dense(ring, hashkv.DenseConfig{}), "Ring"},
		{sparse(ring, hashkv.SparseConfig{}), "Ring"},
		{stringKeys(ring, hashkv.StringsConfig{}), "Ring"},
		{dense(rdb, hashkv.DenseConfig{Prefix: "{a}"}), "DenseConfig.Prefix"},
		{dense(rdb, hashkv.DenseConfig{ValueBits: 64}), "DenseConfig.ValueBits"},
		{dense(rdb, hashkv.DenseConfig{ValueBits: -1}), "DenseConfig.ValueBits"},
		{dense(rdb, hashkv.DenseConfig{Keys: -1}), "DenseConfig.Keys"},
		{sparse(rdb, hashkv.SparseConfig{Prefix: "a{"}), "SparseConfig.Prefix"},
		{sparse(rdb, hashkv.SparseConfig{Entries: -1}), "SparseConfig.Entries"},
		{sparse(rdb, hashkv.SparseConfig{ValueBits: 64}), "SparseConfig.ValueBits"},
		{sparse(rdb, hashkv.SparseConfig{ValueBits: -1}), "SparseConfig.ValueBits"},
		{sparse(rdb, hashkv.SparseConfig{ValueBytes: 8}), "SparseConfig.ValueBytes"},
		{sparseText(hashkv.SparseConfig{ValueBytes: 65}), "SparseConfig.ValueBytes"},
		{sparseText(hashkv.SparseConfig{ValueBytes: -1}), "SparseConfig.ValueBytes"},
		{sparseText(hashkv.SparseConfig{ValueBits: 8}), "SparseConfig.ValueBits"},
		{stringKeys(rdb, hashkv.StringsConfig{Prefix: "}"}), "StringsConfig.Prefix"},
		{stringKeys(rdb, hashkv.StringsConfig{Entries: -1}), "StringsConfig.Entries"},
		{stringKeys(rdb, hashkv.StringsConfig{KeyBytes: 65}), "StringsConfig.KeyBytes"},
		{stringKeys(rdb, hashkv.StringsConfig{KeyBytes: -1}), "StringsConfig.KeyBytes"},
		{stringKeys(rdb, hashkv.StringsConfig{ValueBits: 64}), "StringsConfig.ValueBits"},
		{stringKeys(rdb, hashkv.StringsConfig{ValueBytes: 1}), "StringsConfig.ValueBytes"},
		{stringsText(hashkv.StringsConfig{ValueBytes: 65}), "StringsConfig.ValueBytes"},
		{stringsText(hashkv.StringsConfig{ValueBits: 1}), "StringsConfig.ValueBits"},
	} {
		require.ErrorContains(t, c.err, "hashkv: ")
		require.ErrorContains(t, c.err, c.says)
	}
}

func TestCallsRefuseBadConfig(t *testing.T) {
	t.Parallel()
	t.Run("Dense", func(t *testing.T) { testRefusesBadConfig(t, denseKind) })
	t.Run("Strings", func(t *testing.T) { testRefusesBadConfig(t, stringsKind) })
}

func testRefusesBadConfig[K hashkv.Key, V hashkv.Value](t *testing.T, k kind[K, V]) {
	t.Parallel()
	ctx, rdb := t.Context(), testserver.Redis(t)
	m := k.open(t, rdb)
	for _, cfg := range []hashkv.LoadConfig{{Batch: -1}, {Replicas: -1}} {
		n, err := m.Load(ctx, maps.All(k.entries(0, 9)), cfg)
		require.ErrorContains(t, err, "hashkv: LoadConfig.")
		require.Zero(t, n)
	}
	_, err := m.Stats(ctx, hashkv.StatsConfig{Sample: -1})
	require.ErrorContains(t, err, "hashkv: StatsConfig.Sample")
	if g, ok := m.(grower); ok {
		for _, cfg := range []hashkv.GrowConfig{{Replicas: -1}, {Parallel: -1}} {
			require.ErrorContains(t, g.Grow(ctx, cfg), "hashkv: GrowConfig.")
			require.ErrorContains(t, g.AutoGrow(ctx, hashkv.AutoGrowConfig{GrowConfig: cfg}), "hashkv: GrowConfig.")
		}
		for _, cfg := range []hashkv.AutoGrowConfig{{Fill: -1}, {Every: -time.Second}} {
			require.ErrorContains(t, g.AutoGrow(ctx, cfg), "hashkv: AutoGrowConfig.")
		}
	}
	require.Zero(t, rdb.DBSize(ctx).Val())
}

// requireRange checks that each call, all of which are given something that
// does not fit, says so and what would fit.
func requireRange(t *testing.T, kind string, want hashkv.RangeError, calls ...call) {
	t.Helper()
	for _, c := range calls {
		outside, ok := errors.AsType[*hashkv.RangeError](c.err)
		require.True(t, ok, "%s: %v", c.method, c.err)
		require.Equal(t, want, *outside, c.method)
		requireFailure(t, kind, c)
	}
}

// badKey calls all methods that take keys for one that the map cannot hold,
// after one that it can.
func badKey[K hashkv.Key, V hashkv.Value](ctx context.Context, k kind[K, V], m table[K, V], key K) []call {
	entries := map[K]V{k.key(1): k.value(1), key: k.value(1)}
	_, get := m.Get(ctx, key)
	_, getMulti := m.GetMulti(ctx, k.key(1), key)
	return append(badValue(ctx, k, m, key, k.value(1)),
		call{method: "Get", op: "get", err: get},
		call{method: "GetMulti", op: "get", err: getMulti},
		call{method: "SetMulti", op: "set", err: m.SetMulti(ctx, entries)},
		call{method: "Delete", op: "delete", err: m.Delete(ctx, k.key(1), key)},
	)
}

// badValue calls all methods that take values.
func badValue[K hashkv.Key, V hashkv.Value](ctx context.Context, k kind[K, V], m table[K, V], key K, value V) []call {
	entries := map[K]V{k.key(1): k.value(1), key: value}
	_, setNX := m.SetNX(ctx, key, value)
	_, load := m.Load(ctx, maps.All(entries), hashkv.LoadConfig{})
	return []call{
		{method: "Set", op: "set", err: m.Set(ctx, key, value)},
		{method: "SetMulti", op: "set", err: m.SetMulti(ctx, entries)},
		{method: "SetNX", op: "setnx", err: setNX},
		{method: "Load", op: "load", err: load},
	}
}

func TestWhatDoesNotFitIsRefused(t *testing.T) {
	t.Parallel()
	ctx, rdb := t.Context(), testserver.Redis(t)

	dense := openDense(t, rdb, hashkv.DenseConfig{Keys: 60_000})
	for _, key := range []int64{-1, math.MinInt64, 60_000, math.MaxInt64} {
		requireRange(t, "dense", hashkv.RangeError{Key: fmt.Sprint(key), Limit: "0..59999"}, badKey(ctx, denseKind, dense, key)...)
	}
	for _, value := range []int64{-1, math.MinInt64, 1 << 24, math.MaxInt64} {
		calls := badValue(ctx, denseKind, dense, 7, value)
		requireRange(t, "dense", hashkv.RangeError{Key: "7", Value: true, Limit: "0..16777215"}, calls...)
		for _, c := range calls {
			require.NotContains(t, c.err.Error(), fmt.Sprint(value)+" ")
			require.True(t, strings.HasSuffix(c.err.Error(), ": want 0..16777215"))
		}
	}
	require.EqualError(t, dense.Set(ctx, 7, -1), "hashkv: set dense[7]: value does not fit: want 0..16777215")

	sparse := openSparse[int64](t, rdb, hashkv.SparseConfig{Entries: 1, Live: 0xff00, ValueBits: 8})
	fits := sparseKind
	fits.key = func(i int64) int64 { return i << 8 }
	fits.value = func(i int64) int64 { return i }
	for _, key := range []int64{1, -1, math.MinInt64, 0x10000} {
		requireRange(t, "sparse", hashkv.RangeError{Key: fmt.Sprint(key), Limit: "no bits but 0xff00"}, badKey(ctx, fits, sparse, key)...)
	}
	for _, value := range []int64{-1, 256} {
		requireRange(t, "sparse", hashkv.RangeError{Key: "256", Value: true, Limit: "0..255"}, badValue(ctx, fits, sparse, 256, value)...)
	}

	text := openStrings[string](t, rdb, hashkv.StringsConfig{Entries: 1, KeyBytes: 10, ValueBytes: 9})
	for _, key := range []string{"12345678901", strings.Repeat("\xff", 1000)} {
		for _, c := range badKey(ctx, stringsTextKind, text, key) {
			outside, ok := errors.AsType[*hashkv.RangeError](c.err)
			require.True(t, ok, "%s: %v", c.method, c.err)
			require.Equal(t, "up to 10 bytes", outside.Limit)
			require.Less(t, len(c.err.Error()), 400, "the whole of a long key is in the error")
		}
	}
	requireRange(t, "strings", hashkv.RangeError{Key: `"a"`, Value: true, Limit: "up to 9 bytes"},
		badValue(ctx, stringsTextKind, text, "a", secretPrefix+"-of-me")...)

	require.Zero(t, rdb.DBSize(ctx).Val(), "a refused write left something")
}

func TestErrorsOfRedis(t *testing.T) {
	t.Parallel()
	t.Run("Dense", func(t *testing.T) { testErrorsOfRedis(t, denseKind) })
	t.Run("Sparse", func(t *testing.T) { testErrorsOfRedis(t, sparseKind) })
	t.Run("StringsText", func(t *testing.T) { testErrorsOfRedis(t, stringsTextKind) })
}

// testErrorsOfRedis: what is wrong with a server stays to be found in the
// error, and a write that fails changes nothing.
func testErrorsOfRedis[K hashkv.Key, V hashkv.Value](t *testing.T, k kind[K, V]) {
	t.Parallel()
	ctx := t.Context()
	server, err := testserver.Host(t).Redis(ctx, "redis", localserver.RedisConfig{})
	require.NoError(t, err)
	rdb := redis.NewClient(&redis.Options{Addr: server.Addr(), MaxRetries: -1, DialerRetries: 1})
	defer rdb.Close()
	m := k.open(t, rdb)
	want := k.entries(1, 2)
	require.NoError(t, m.SetMulti(ctx, want))

	// A replica without a primary still answers reads.
	require.NoError(t, rdb.ReplicaOf(ctx, "127.0.0.1", "1").Err())
	for _, c := range calls(ctx, k, m) {
		if c.writes {
			require.True(t, redis.IsReadOnlyError(c.err), "%s: %v", c.method, c.err)
			requireFailure(t, k.name, c)
		} else {
			require.NoError(t, c.err, c.method)
		}
	}
	require.NoError(t, rdb.ReplicaOf(ctx, "NO", "ONE").Err())
	requireEntries(t, want, collect(ctx, t, m))

	require.NoError(t, rdb.ConfigSet(ctx, "maxmemory", "1").Err())
	for _, c := range calls(ctx, k, m) {
		switch {
		case c.method == "Delete" && c.err == nil:
			// HDEL needs no memory.
			delete(want, k.key(1))
		case c.writes:
			require.True(t, redis.IsOOMError(c.err), "%s: %v", c.method, c.err)
			requireFailure(t, k.name, c)
		default:
			require.NoError(t, c.err, c.method)
		}
	}
	require.NoError(t, rdb.ConfigSet(ctx, "maxmemory", "0").Err())
	requireEntries(t, want, collect(ctx, t, m))

	require.NoError(t, m.Set(ctx, k.key(1), k.value(1)))
	require.NoError(t, server.Kill())
	for _, c := range calls(ctx, k, m) {
		requireFailure(t, k.name, c)
	}
	if g, ok := m.(grower); ok {
		requireFailure(t, k.name, call{method: "Grow", op: "grow", err: g.Grow(ctx, hashkv.GrowConfig{})})
	}
	require.Error(t, m.Open(ctx))
	require.NoError(t, server.Restart(ctx)) // empty, as it is Fast
	require.NoError(t, m.Open(ctx))
	require.Empty(t, collect(ctx, t, m))
}

// spoil makes the Redis key of a bucket or string, which is at the given place
// among those of the map, a list. It returns the name and what was in it.
func spoil[K hashkv.Key, V hashkv.Value](ctx context.Context, t *testing.T, rdb *redis.Client, k kind[K, V], m table[K, V], at int, of map[K]V) (name string, lost map[K]V) {
	t.Helper()
	all := names(ctx, t, rdb, k.name)
	slices.Sort(all)
	name = all[at]
	before, err := m.GetMulti(ctx, keysOf(of)...)
	require.NoError(t, err)
	kept := rdb.Rename(ctx, name, "kept")
	require.NoError(t, kept.Err())
	after, err := m.GetMulti(ctx, keysOf(of)...)
	require.NoError(t, err)
	lost = make(map[K]V)
	for key, value := range before {
		if _, ok := after[key]; !ok {
			lost[key] = value
		}
	}
	require.NotEmpty(t, lost)
	return name, lost
}

func TestPartialError(t *testing.T) {
	t.Parallel()
	t.Run("Dense", func(t *testing.T) { testPartialError(t, denseKind) })
	t.Run("Sparse", func(t *testing.T) { testPartialError(t, sparseKind) })
	t.Run("SparseText", func(t *testing.T) { testPartialError(t, sparseTextKind) })
	t.Run("Strings", func(t *testing.T) { testPartialError(t, stringsKind) })
	t.Run("StringsText", func(t *testing.T) { testPartialError(t, stringsTextKind) })
}

// testPartialError: with some Redis keys of the map spoiled, calls on many keys
// name those that lie there, and do the rest.
func testPartialError[K hashkv.Key, V hashkv.Value](t *testing.T, k kind[K, V]) {
	t.Parallel()
	for _, spoiled := range []int{1, 3} {
		for _, c := range []struct {
			method string
			do     func(ctx context.Context, m table[K, V], entries map[K]V) error
		}{
			{"get", func(ctx context.Context, m table[K, V], entries map[K]V) error {
				got, err := m.GetMulti(ctx, keysOf(entries)...)
				if partial, ok := errors.AsType[*hashkv.PartialError[K]](err); ok {
					require.Len(t, got, len(entries)-len(partial.Failed))
					for _, key := range partial.Failed {
						require.NotContains(t, got, key)
					}
				}
				return err
			}},
			{"set", func(ctx context.Context, m table[K, V], entries map[K]V) error { return m.SetMulti(ctx, entries) }},
			{"load", func(ctx context.Context, m table[K, V], entries map[K]V) error {
				n, err := m.Load(ctx, maps.All(entries), hashkv.LoadConfig{})
				require.Zero(t, n)
				return err
			}},
			{"delete", func(ctx context.Context, m table[K, V], entries map[K]V) error {
				return m.Delete(ctx, keysOf(entries)...)
			}},
		} {
			t.Run(fmt.Sprintf("%sWith%dSpoiled", c.method, spoiled), func(t *testing.T) {
				t.Parallel()
				ctx, rdb := t.Context(), testserver.Redis(t)
				m := k.open(t, rdb)
				entries := k.entries(0, 1200)
				require.NoError(t, m.SetMulti(ctx, entries))
				var bad []string
				failing := make(map[K]V)
				for at := range spoiled {
					name, lost := spoil(ctx, t, rdb, k, m, at*2, entries)
					require.NoError(t, rdb.Rename(ctx, "kept", name).Err())
					bad = append(bad, name)
					maps.Copy(failing, lost)
				}
				for _, name := range bad {
					require.NoError(t, rdb.Rename(ctx, name, "kept:"+name).Err())
					require.NoError(t, rdb.RPush(ctx, name, "a list").Err())
				}
				// New values, so that what is done can be seen.
				next := make(map[K]V)
				for i := range int64(1200) {
					next[k.key(i)] = k.value(i + 5000)
				}

				err := c.do(ctx, m, next)
				partial, ok := errors.AsType[*hashkv.PartialError[K]](err)
				require.True(t, ok, "%v", err)
				requireFailure(t, k.name, call{method: c.method, op: c.method, err: err})
				require.Less(t, len(err.Error()), 500)
				require.ElementsMatch(t, keysOf(failing), partial.Failed)
				corrupt, ok := errors.AsType[*hashkv.CorruptError](err)
				require.True(t, ok, "%v", err)
				require.Contains(t, bad, corrupt.Key)

				// All others are done, and what could not be is as it was.
				for _, name := range bad {
					require.Equal(t, "list", rdb.Type(ctx, name).Val())
					require.NoError(t, rdb.Rename(ctx, "kept:"+name, name).Err())
				}
				want := maps.Clone(entries)
				switch c.method {
				case "set", "load":
					want = next
				case "delete":
					want = make(map[K]V)
				}
				want = maps.Clone(want)
				maps.Copy(want, failing)
				requireEntries(t, want, collect(ctx, t, m))
			})
		}
	}
}

func TestCorruptError(t *testing.T) {
	t.Parallel()
	t.Run("Dense", func(t *testing.T) { testCorruptError(t, denseKind) })
	t.Run("Sparse", func(t *testing.T) { testCorruptError(t, sparseKind) })
	t.Run("SparseText", func(t *testing.T) { testCorruptError(t, sparseTextKind) })
	t.Run("Strings", func(t *testing.T) { testCorruptError(t, stringsKind) })
}

// testCorruptError: a Redis key of another type is reported by each call that
// comes across it, and left alone.
func testCorruptError[K hashkv.Key, V hashkv.Value](t *testing.T, k kind[K, V]) {
	t.Parallel()
	ctx, rdb := t.Context(), testserver.Redis(t)
	m := k.open(t, rdb)
	// The entries that the calls are about.
	require.NoError(t, m.SetMulti(ctx, k.entries(1, 3)))
	var bad []string
	for _, name := range names(ctx, t, rdb, k.name) {
		require.NoError(t, rdb.Del(ctx, name).Err())
		require.NoError(t, rdb.RPush(ctx, name, "a list").Err())
		bad = append(bad, name)
	}
	for _, c := range calls(ctx, k, m) {
		corrupt, ok := errors.AsType[*hashkv.CorruptError](c.err)
		require.True(t, ok, "%s: %v", c.method, c.err)
		require.Contains(t, bad, corrupt.Key)
		requireFailure(t, k.name, c)
	}
	for _, name := range bad {
		require.Equal(t, []string{"a list"}, rdb.LRange(ctx, name, 0, -1).Val())
	}

	// So is a string that is no tombstone, where there should be a hash.
	if _, ok := m.(grower); !ok {
		return
	}
	for _, name := range bad {
		require.NoError(t, rdb.Set(ctx, name, secretPrefix, 0).Err())
	}
	for _, c := range calls(ctx, k, m) {
		corrupt, ok := errors.AsType[*hashkv.CorruptError](c.err)
		require.True(t, ok, "%s: %v", c.method, c.err)
		require.Contains(t, bad, corrupt.Key)
		requireFailure(t, k.name, c)
	}
	for _, name := range bad {
		require.Equal(t, secretPrefix, rdb.Get(ctx, name).Val())
	}
}

// TestForeignEntries: bytes that the map cannot have stored are no entries.
func TestForeignEntries(t *testing.T) {
	t.Parallel()
	ctx, rdb := t.Context(), testserver.Redis(t)
	m := openSparse[int64](t, rdb, hashkv.SparseConfig{Entries: 1, ValueBits: 24, Live: 1<<40 - 1})
	require.NoError(t, m.SetMulti(ctx, map[int64]int64{1: 11}))
	bucket, rest := hashkv.Split(1, hashkv.MinLevel)
	name := hashkv.BucketName("sparse", hashkv.MinLevel, bucket, hashkv.MinLevel)
	require.Equal(t, []string{name}, names(ctx, t, rdb, "sparse"))
	other := hashkv.Pack(rest + 1)
	key := int64(hashkv.Join(bucket, rest+1, hashkv.MinLevel))

	for _, value := range []string{secretPrefix + " that is long", "\x00\x01", "\x01\x00\x00\x00"} {
		require.NoError(t, rdb.HSet(ctx, name, other, value).Err())
		_, get := m.Get(ctx, key)
		found, getMulti := m.GetMulti(ctx, 1, key)
		all, failed := m.All(ctx)
		for range all {
		}
		for _, c := range []call{
			{method: "Get", op: "get", err: get}, {method: "GetMulti", op: "get", err: getMulti}, {method: "All", op: "all", err: failed()},
		} {
			corrupt, ok := errors.AsType[*hashkv.CorruptError](c.err)
			require.True(t, ok, "%s: %v", c.method, c.err)
			require.Equal(t, name, corrupt.Key)
			requireFailure(t, "sparse", c)
		}
		requireEntries(t, map[int64]int64{1: 11}, found)
		partial, ok := errors.AsType[*hashkv.PartialError[int64]](getMulti)
		require.True(t, ok)
		require.Equal(t, []int64{key}, partial.Failed)
	}
	require.NoError(t, rdb.HDel(ctx, name, other).Err())

	// Fields of no key: with a zero in front, and with more bits than a key.
	for _, field := range []string{"\x00", secretPrefix, secretPrefix + "ly", "nine bytes"} {
		require.NoError(t, rdb.HSet(ctx, name, field, "\x01").Err())
		all, failed := m.All(ctx)
		for range all {
		}
		err := failed()
		corrupt, ok := errors.AsType[*hashkv.CorruptError](err)
		require.True(t, ok, "field %q: %v", field, err)
		require.Equal(t, name, corrupt.Key)
		requireFailure(t, "sparse", call{method: "All", op: "all", err: err})
		err = m.Grow(ctx, hashkv.GrowConfig{})
		_, ok = errors.AsType[*hashkv.CorruptError](err)
		require.True(t, ok, "field %q: %v", field, err)
		require.NoError(t, rdb.HDel(ctx, name, field).Err())
	}
	require.NoError(t, m.Grow(ctx, hashkv.GrowConfig{}))
	requireEntries(t, map[int64]int64{1: 11}, collect(ctx, t, m))
}

// TestPartialErrorOfCluster: with a node down, the keys that fail are those
// that it has.
func TestPartialErrorOfCluster(t *testing.T) {
	t.Parallel()
	cluster, err := testserver.Host(t).RedisCluster(t.Context(), "cluster", localserver.RedisClusterConfig{
		Settings: map[string]string{"cluster-require-full-coverage": "no"},
	})
	require.NoError(t, err)
	rdb := redis.NewClusterClient(&redis.ClusterOptions{Addrs: cluster.Addrs(), MaxRedirects: 1, MaxRetries: -1, DialerRetries: 1})
	defer rdb.Close()
	dense, text := denseKind.open(t, rdb), stringsTextKind.open(t, rdb)
	denseEntries, textEntries := denseKind.entries(0, 60), stringsTextKind.entries(0, 60)
	require.NoError(t, dense.SetMulti(t.Context(), denseEntries))
	require.NoError(t, text.SetMulti(t.Context(), textEntries))
	require.NoError(t, cluster.Nodes()[1].Kill())
	requirePartial(t, dense, denseEntries)
	requirePartial(t, text, textEntries)
}

// requirePartial checks that calls on many keys can do what calls on one can.
func requirePartial[K hashkv.Key, V hashkv.Value](t *testing.T, m table[K, V], entries map[K]V) {
	t.Helper()
	ctx := t.Context()
	var dead []K
	alive := make(map[K]V)
	for key := range entries {
		value, err := m.Get(ctx, key)
		if err != nil {
			require.NotErrorIs(t, err, hashkv.ErrNotFound)
			dead = append(dead, key)
		} else {
			alive[key] = value
		}
	}
	require.NotEmpty(t, dead)
	require.NotEmpty(t, alive)
	require.Equal(t, 60, len(dead)+len(alive))

	check := func(err error) {
		t.Helper()
		partial, ok := errors.AsType[*hashkv.PartialError[K]](err)
		require.True(t, ok, "%v", err)
		require.ElementsMatch(t, dead, partial.Failed)
	}
	found, err := m.GetMulti(ctx, keysOf(entries)...)
	check(err)
	requireEntries(t, alive, found)
	check(m.Delete(ctx, keysOf(entries)...))
	found, err = m.GetMulti(ctx, keysOf(alive)...)
	require.NoError(t, err)
	require.Empty(t, found)
	check(m.SetMulti(ctx, entries))
	found, err = m.GetMulti(ctx, keysOf(alive)...)
	require.NoError(t, err)
	requireEntries(t, alive, found)
}
