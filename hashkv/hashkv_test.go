package hashkv_test

import (
	"context"
	"fmt"
	"maps"
	"math"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/redis/go-redis/v9"
	"github.com/shardgram/shardgram/hashkv"
	"github.com/shardgram/shardgram/internal/localserver"
	"github.com/shardgram/shardgram/internal/testserver"
	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"
)

// redisAddr is for the examples.
var redisAddr string

func TestMain(m *testing.M) {
	redisAddr = testserver.RedisAddr()
	testserver.Main(m, testserver.NeedRedis)
}

// table is what both kinds of map do.
type table interface {
	Get(ctx context.Context, key int64) (int64, error)
	GetMulti(ctx context.Context, keys ...int64) (map[int64]int64, error)
	Set(ctx context.Context, key, value int64) error
	SetMulti(ctx context.Context, entries map[int64]int64) error
	SetNX(ctx context.Context, key, value int64) (bool, error)
	Delete(ctx context.Context, keys ...int64) error
}

var (
	_ table = (*hashkv.Dense)(nil)
	_ table = (*hashkv.Sparse)(nil)
)

// testModel compares m with a Go map, step by step.
func testModel(t *rapid.T, m table, keys, values *rapid.Generator[int64]) map[int64]int64 {
	ctx := context.Background()
	model := make(map[int64]int64)
	pick := rapid.SliceOfN(keys, 0, 20)
	t.Repeat(map[string]func(*rapid.T){
		"get": func(t *rapid.T) {
			key := keys.Draw(t, "key")
			got, err := m.Get(ctx, key)
			want, ok := model[key]
			if !ok {
				require.ErrorIs(t, err, hashkv.ErrNotFound)
				return
			}
			require.NoError(t, err)
			require.Equal(t, want, got)
		},
		"getMulti": func(t *rapid.T) {
			asked := pick.Draw(t, "keys")
			want := make(map[int64]int64)
			for _, key := range asked {
				if value, ok := model[key]; ok {
					want[key] = value
				}
			}
			got, err := m.GetMulti(ctx, asked...)
			require.NoError(t, err)
			require.Equal(t, want, got)
		},
		"set": func(t *rapid.T) {
			key, value := keys.Draw(t, "key"), values.Draw(t, "value")
			require.NoError(t, m.Set(ctx, key, value))
			model[key] = value
		},
		"setMulti": func(t *rapid.T) {
			entries := rapid.MapOfN(keys, values, 0, 300).Draw(t, "entries")
			require.NoError(t, m.SetMulti(ctx, entries))
			maps.Copy(model, entries)
		},
		"setNX": func(t *rapid.T) {
			key, value := keys.Draw(t, "key"), values.Draw(t, "value")
			done, err := m.SetNX(ctx, key, value)
			require.NoError(t, err)
			_, taken := model[key]
			require.Equal(t, !taken, done)
			if done {
				model[key] = value
			}
		},
		"delete": func(t *rapid.T) {
			gone := pick.Draw(t, "keys")
			require.NoError(t, m.Delete(ctx, gone...))
			for _, key := range gone {
				delete(model, key)
			}
		},
	})
	got, err := m.GetMulti(ctx, slices.Collect(maps.Keys(model))...)
	require.NoError(t, err)
	require.Equal(t, model, got)
	return model
}

// number makes prefixes that no other run of a property has.
var number atomic.Int64

func newPrefix() string { return fmt.Sprintf("m%d", number.Add(1)) }

func TestDenseModel(t *testing.T) {
	t.Parallel()
	rdb := testserver.Redis(t)
	rapid.Check(t, func(t *rapid.T) {
		cfg := hashkv.DenseConfig{
			Prefix: newPrefix(),
			Bits:   rapid.IntRange(2, 63).Draw(t, "bits"),
			Slots:  8 * rapid.IntRange(1, 4).Draw(t, "slots/8"),
		}
		m, err := hashkv.NewDense(rdb, cfg)
		require.NoError(t, err)
		largest := int64(math.MaxInt64)>>(63-cfg.Bits) - 1
		keys := rapid.OneOf(rapid.Int64Range(0, 70), rapid.Int64Range(math.MaxInt64-70, math.MaxInt64))
		values := rapid.OneOf(rapid.Int64Range(0, min(largest, 3)), rapid.Int64Range(0, largest), rapid.Just(largest))
		model := testModel(t, m, keys, values)

		// Nothing but the strings of keys that were set, at their full length.
		for _, name := range names(t, rdb, cfg.Prefix) {
			n, err := rdb.StrLen(context.Background(), name).Result()
			require.NoError(t, err)
			require.EqualValues(t, cfg.Slots*cfg.Bits/8, n)
		}
		for key := range model {
			name := fmt.Sprintf("%s:%d", cfg.Prefix, key/int64(cfg.Slots))
			require.EqualValues(t, 1, rdb.Exists(context.Background(), name).Val())
		}
	})
}

func TestSparseModel(t *testing.T) {
	t.Parallel()
	rdb := testserver.Redis(t)
	rapid.Check(t, func(t *rapid.T) {
		cfg := hashkv.SparseConfig{
			Prefix:  newPrefix(),
			Buckets: 1 << rapid.IntRange(0, 32).Draw(t, "log2 of buckets"),
		}
		m, err := hashkv.NewSparse(rdb, cfg)
		require.NoError(t, err)
		keys := rapid.OneOf(rapid.Int64(), rapid.Int64Range(-20, 300))
		// Among these are bytes that read as decimals, which Redis stores as
		// numbers, and zero, which is no bytes at all.
		values := rapid.OneOf(rapid.Int64(), rapid.Int64Range(-2, 70), rapid.Int64Range(0x3030, 0x3939))
		model := testModel(t, m, keys, values)

		// What is in Redis is the model, told from buckets and fields alone.
		stored := make(map[int64]int64)
		for _, name := range names(t, rdb, cfg.Prefix) {
			bucket, err := strconv.ParseUint(strings.TrimPrefix(name, cfg.Prefix+":"), 16, 64)
			require.NoError(t, err)
			fields, err := rdb.HGetAll(context.Background(), name).Result()
			require.NoError(t, err)
			for field, value := range fields {
				rest, err := hashkv.Unpack(field)
				require.NoError(t, err)
				key := join(bucket, uint64(rest), logOf(cfg.Buckets))
				stored[int64(key)], err = hashkv.Unpack(value)
				require.NoError(t, err)
			}
		}
		require.Equal(t, model, stored)
	})
}

// names returns the Redis keys of a map.
func names(t require.TestingT, rdb *redis.Client, prefix string) []string {
	var all []string
	it := rdb.Scan(context.Background(), 0, prefix+":*", 1000).Iterator()
	for it.Next(context.Background()) {
		all = append(all, it.Val())
	}
	require.NoError(t, it.Err())
	return all
}

func TestNewRefusesBadConfig(t *testing.T) {
	t.Parallel()
	rdb := redis.NewClient(&redis.Options{Addr: "127.0.0.1:1"}) // New does not dial
	defer rdb.Close()
	for _, cfg := range []hashkv.DenseConfig{
		{Prefix: "{a}"},
		{Bits: 1},
		{Bits: 64},
		{Bits: -1},
		{Slots: 7},
		{Slots: 12},
		{Slots: -8},
		{Slots: 1<<20 + 8},
		{Keys: -1},
	} {
		_, err := hashkv.NewDense(rdb, cfg)
		require.ErrorContains(t, err, "hashkv: ", "%+v", cfg)
	}
	for _, cfg := range []hashkv.SparseConfig{
		{Prefix: "a{"},
		{Buckets: 3},
		{Buckets: -8},
		{Buckets: 1 << 33},
	} {
		_, err := hashkv.NewSparse(rdb, cfg)
		require.ErrorContains(t, err, "hashkv: ", "%+v", cfg)
	}
	_, err := hashkv.NewDense(nil, hashkv.DenseConfig{})
	require.Error(t, err)
	_, err = hashkv.NewSparse(nil, hashkv.SparseConfig{})
	require.Error(t, err)
}

func TestDenseRefusesWhatDoesNotFit(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	rdb := testserver.Redis(t)
	m, err := hashkv.NewDense(rdb, hashkv.DenseConfig{Keys: 5000})
	require.NoError(t, err)

	for _, key := range []int64{-1, math.MinInt64, 5000, math.MaxInt64} {
		_, getErr := m.Get(ctx, key)
		_, multiErr := m.GetMulti(ctx, 1, key)
		_, nxErr := m.SetNX(ctx, key, 1)
		for _, err := range []error{
			getErr, multiErr, nxErr,
			m.Set(ctx, key, 1),
			m.SetMulti(ctx, map[int64]int64{1: 1, key: 1}),
			m.Delete(ctx, 1, key),
		} {
			var outside *hashkv.RangeError
			require.ErrorAs(t, err, &outside)
			require.Equal(t, hashkv.RangeError{Key: key, Max: 4999}, *outside)
		}
	}
	for _, value := range []int64{-1, 1<<24 - 1, math.MaxInt64} {
		_, nxErr := m.SetNX(ctx, 7, value)
		for _, err := range []error{
			nxErr,
			m.Set(ctx, 7, value),
			m.SetMulti(ctx, map[int64]int64{1: 1, 7: value}),
		} {
			var outside *hashkv.RangeError
			require.ErrorAs(t, err, &outside)
			require.Equal(t, hashkv.RangeError{Key: 7, Value: true, Max: 1<<24 - 2}, *outside)
			require.NotContains(t, strings.ReplaceAll(err.Error(), "0..", ""), strconv.FormatInt(value, 10))
		}
	}
	require.EqualError(t, m.Set(ctx, 7, -1), "hashkv: set dense[7]: value is outside 0..16777214")
	require.Zero(t, rdb.DBSize(ctx).Val(), "a refused write left something")
}

// TestDenseDeleteCreatesNothing: clearing slots must not make strings.
func TestDenseDeleteCreatesNothing(t *testing.T) {
	t.Parallel()
	rdb := testserver.Redis(t)
	m, err := hashkv.NewDense(rdb, hashkv.DenseConfig{})
	require.NoError(t, err)
	require.NoError(t, m.Delete(t.Context(), 1, 1_000_000, 1<<60))
	require.Zero(t, rdb.DBSize(t.Context()).Val())
}

// both opens a map of each kind with the same entry. Each has one Redis key,
// called <kind>:0.
func both(t *testing.T, rdb *redis.Client) map[string]table {
	all := map[string]table{
		"dense":  openDense(t, hashkv.DenseConfig{})(rdb),
		"sparse": openSparse(t, hashkv.SparseConfig{Buckets: 1})(rdb),
	}
	for _, m := range all {
		require.NoError(t, m.Set(t.Context(), 1, secret))
	}
	return all
}

const secret = 7654321

// writes and reads call every method of m, by the name of the operation in
// errors. Key 2 is absent, so that SetNX has something to write.
func writes(ctx context.Context, m table) map[string]error {
	_, nxErr := m.SetNX(ctx, 2, secret)
	return map[string]error{
		"set":    m.Set(ctx, 1, secret),
		"set ":   m.SetMulti(ctx, map[int64]int64{1: secret}),
		"setnx":  nxErr,
		"delete": m.Delete(ctx, 1),
	}
}

func reads(ctx context.Context, m table) map[string]error {
	_, getErr := m.Get(ctx, 1)
	_, multiErr := m.GetMulti(ctx, 1)
	return map[string]error{"get": getErr, "get ": multiErr}
}

// requireAll checks that each call failed in the way of Redis, and says what
// it was about, but not what is stored.
func requireAll(t *testing.T, kind string, errs map[string]error, text string) {
	t.Helper()
	for op, err := range errs {
		require.Error(t, err, op)
		require.Regexp(t, `^hashkv: `+strings.TrimSpace(op)+` `+kind+`(\[\d+\]|:\w+): `, err.Error())
		require.ErrorContains(t, err, text, "%s", op)
		require.NotContains(t, err.Error(), strconv.Itoa(secret))
		require.Equal(t, 1, strings.Count(err.Error(), "hashkv:"), "wrapped twice: %v", err)
	}
}

func TestErrorsOfRedisNameOperationAndKey(t *testing.T) {
	t.Parallel()
	h := testserver.Host(t)
	server, err := h.Redis(t.Context(), "redis", localserver.RedisConfig{})
	require.NoError(t, err)
	rdb := redis.NewClient(&redis.Options{Addr: server.Addr(), MaxRetries: -1, DialerRetries: 1})
	defer rdb.Close()
	ctx := t.Context()
	maps := both(t, rdb)

	// A replica without a primary still answers reads.
	require.NoError(t, rdb.ReplicaOf(ctx, "127.0.0.1", "1").Err())
	for kind, m := range maps {
		requireAll(t, kind, writes(ctx, m), "READONLY")
		got, err := m.Get(ctx, 1)
		require.NoError(t, err)
		require.EqualValues(t, secret, got)
	}
	require.NoError(t, rdb.ReplicaOf(ctx, "NO", "ONE").Err())

	require.NoError(t, rdb.ConfigSet(ctx, "maxmemory", "1").Err())
	for kind, m := range maps {
		errs := writes(ctx, m)
		delete(errs, "delete") // needs no memory in a hash
		requireAll(t, kind, errs, "OOM")
	}
	require.NoError(t, rdb.ConfigSet(ctx, "maxmemory", "0").Err())

	require.NoError(t, rdb.FlushAll(ctx).Err())
	require.NoError(t, rdb.RPush(ctx, "dense:0", "a list").Err())
	require.NoError(t, rdb.RPush(ctx, "sparse:0", "a list").Err())
	for kind, m := range maps {
		requireAll(t, kind, writes(ctx, m), "WRONGTYPE")
		requireAll(t, kind, reads(ctx, m), "WRONGTYPE")
	}

	require.NoError(t, server.Kill())
	for kind, m := range maps {
		requireAll(t, kind, writes(ctx, m), "")
		requireAll(t, kind, reads(ctx, m), "")
	}
}

func TestContextEndsCalls(t *testing.T) {
	t.Parallel()
	all := both(t, testserver.Redis(t))
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	for _, m := range all {
		errs := writes(ctx, m)
		maps.Copy(errs, reads(ctx, m))
		for op, err := range errs {
			require.ErrorIs(t, err, context.Canceled, "%s", op)
		}
		got, err := m.Get(t.Context(), 1) // still usable
		require.NoError(t, err)
		require.EqualValues(t, secret, got)
	}
}

func TestSparseReportsForeignValues(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	rdb := testserver.Redis(t)
	m, err := hashkv.NewSparse(rdb, hashkv.SparseConfig{Buckets: 1})
	require.NoError(t, err)
	require.NoError(t, m.Set(ctx, 1, 11))
	require.NoError(t, rdb.HSet(ctx, "sparse:0", hashkv.Pack(2), "a long text").Err())

	_, err = m.Get(ctx, 2)
	require.ErrorContains(t, err, "hashkv: get sparse[2]: ")
	require.NotContains(t, err.Error(), "long text")
	got, err := m.GetMulti(ctx, 1, 2)
	require.ErrorContains(t, err, "hashkv: get sparse[2]: ")
	require.Equal(t, map[int64]int64{1: 11}, got)
}

// TestSetNXLetsOneWin: of many writers of one key, exactly one is told so.
func TestSetNXLetsOneWin(t *testing.T) {
	t.Parallel()
	rdb := testserver.Redis(t)
	for kind, m := range both(t, rdb) {
		var wins, winner atomic.Int64
		done := make(chan error, 8)
		for i := range cap(done) {
			go func() {
				won, err := m.SetNX(t.Context(), 99, int64(i))
				if won {
					wins.Add(1)
					winner.Store(int64(i))
				}
				done <- err
			}()
		}
		for range cap(done) {
			require.NoError(t, <-done)
		}
		require.EqualValues(t, 1, wins.Load(), kind)
		got, err := m.Get(t.Context(), 99)
		require.NoError(t, err)
		require.Equal(t, winner.Load(), got)
	}
}

// TestCluster: the entries of a map are on all nodes, and calls for many keys
// find them.
func TestCluster(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	cluster, err := testserver.Host(t).RedisCluster(ctx, "cluster", localserver.RedisClusterConfig{})
	require.NoError(t, err)
	rdb := redis.NewClusterClient(&redis.ClusterOptions{Addrs: cluster.Addrs()})
	defer rdb.Close()
	dense, err := hashkv.NewDense(rdb, hashkv.DenseConfig{Slots: 8})
	require.NoError(t, err)
	sparse, err := hashkv.NewSparse(rdb, hashkv.SparseConfig{Buckets: 64})
	require.NoError(t, err)

	want := make(map[int64]int64)
	for key := range int64(1000) {
		want[key] = key * key
	}
	for _, m := range []table{dense, sparse} {
		require.NoError(t, m.SetMulti(ctx, want))
		got, err := m.GetMulti(ctx, slices.Collect(maps.Keys(want))...)
		require.NoError(t, err)
		require.Equal(t, want, got)
		done, err := m.SetNX(ctx, 5, 1)
		require.NoError(t, err)
		require.False(t, done)
		require.NoError(t, m.Delete(ctx, 5, 6))
		_, err = m.Get(ctx, 5)
		require.ErrorIs(t, err, hashkv.ErrNotFound)
	}
	for _, node := range cluster.Nodes() {
		one := redis.NewClient(&redis.Options{Addr: node.Addr()})
		defer one.Close()
		require.Greater(t, one.DBSize(ctx).Val(), int64(30))
	}
}
