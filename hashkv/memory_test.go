package hashkv_test

import (
	"context"
	"math/rand/v2"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/shardgram/shardgram/hashkv"
	"github.com/shardgram/shardgram/internal/localserver"
	"github.com/shardgram/shardgram/internal/testserver"
	"github.com/stretchr/testify/require"
)

// usedMemory is what Redis has allocated while the only client is one that has
// just come: its buffers are the same each time.
func usedMemory(t testing.TB, addr string) int64 {
	deadline := time.Now().Add(10 * time.Second)
	for {
		rdb := redis.NewClient(&redis.Options{Addr: addr, PoolSize: 1})
		info, err := rdb.Info(context.Background()).Result()
		require.NoError(t, err)
		require.NoError(t, rdb.Close())
		if infoField(t, info, "connected_clients") == 1 {
			return infoField(t, info, "used_memory")
		}
		require.True(t, time.Now().Before(deadline), "another client stays connected")
	}
}

func infoField(t testing.TB, info, name string) int64 {
	_, rest, ok := strings.Cut(info, "\n"+name+":")
	require.True(t, ok, name)
	text, _, _ := strings.Cut(rest, "\r")
	n, err := strconv.ParseInt(text, 10, 64)
	require.NoError(t, err)
	return n
}

// fill empties the server at addr, stores keys with values of 24 bits, in
// batches and in random order, and returns the bytes each one took.
func fill(t testing.TB, addr string, open func(*redis.Client) table, keys []int64) float64 {
	r := rand.New(rand.NewPCG(7, 8))
	r.Shuffle(len(keys), func(i, j int) { keys[i], keys[j] = keys[j], keys[i] })
	rdb := redis.NewClient(&redis.Options{Addr: addr})
	defer rdb.Close()
	// Redis allocates 30 KB of statistics at the first use of a command.
	require.NoError(t, open(rdb).SetMulti(context.Background(), map[int64]int64{1: 1}))
	require.NoError(t, rdb.FlushAll(context.Background()).Err())
	require.NoError(t, rdb.Close())
	before := usedMemory(t, addr)

	rdb = redis.NewClient(&redis.Options{Addr: addr})
	defer rdb.Close()
	m := open(rdb)
	batch := make(map[int64]int64)
	for i, key := range keys {
		batch[key] = r.Int64N(1<<24 - 1)
		if len(batch) == 20_000 || i == len(keys)-1 {
			require.NoError(t, m.SetMulti(context.Background(), batch))
			clear(batch)
		}
	}
	require.NoError(t, rdb.Close())
	return float64(usedMemory(t, addr)-before) / float64(len(keys))
}

func openDense(t testing.TB, cfg hashkv.DenseConfig) func(*redis.Client) table {
	return func(rdb *redis.Client) table {
		m, err := hashkv.NewDense(rdb, cfg)
		require.NoError(t, err)
		return m
	}
}

func openSparse(t testing.TB, cfg hashkv.SparseConfig) func(*redis.Client) table {
	return func(rdb *redis.Client) table {
		m, err := hashkv.NewSparse(rdb, cfg)
		require.NoError(t, err)
		return m
	}
}

// sequence returns the keys 0 to n-1.
func sequence(n int) []int64 {
	keys := make([]int64, n)
	for i := range keys {
		keys[i] = int64(i)
	}
	return keys
}

// distinct returns n different keys from draw.
func distinct(n int, draw func() int64) []int64 {
	seen := make(map[int64]bool, n)
	keys := make([]int64, 0, n)
	for len(keys) < n {
		if key := draw(); !seen[key] {
			seen[key] = true
			keys = append(keys, key)
		}
	}
	return keys
}

// TestMemory measures the bytes per entry that the package comment promises,
// on a server with stock settings.
func TestMemory(t *testing.T) {
	t.Parallel()
	server, err := testserver.Host(t).Redis(t.Context(), "redis", localserver.RedisConfig{})
	require.NoError(t, err)
	r := rand.New(rand.NewPCG(3, 4))

	const buckets = 2048
	dense := openDense(t, hashkv.DenseConfig{})
	sparse := openSparse(t, hashkv.SparseConfig{Buckets: buckets})
	// Of these keys, 40 bits remain for the field. It is the same with 61 bits
	// and 2^21 buckets.
	random := distinct(buckets*128, func() int64 { return r.Int64N(buckets << 40) })
	// Of these, as they come from a generator, 7 bytes remain.
	var i int64
	snowflakes := distinct(buckets*128, func() int64 { i++; return snowflake(r, i) })

	for _, c := range []struct {
		name     string
		open     func(*redis.Client) table
		keys     []int64
		min, max float64
	}{
		// The way of the original post on ids that begin with a time. If it did
		// not come out far worse, the rest would prove nothing.
		{"HashesByThousands", openThousands, snowflakes[:20_000], 80, 150},
		{"Dense", dense, sequence(buckets * 128), 3.0, 3.3},
		{"Sparse5ByteFields", sparse, random, 12, 13.75},
		{"Sparse7ByteFields", sparse, snowflakes, 14, 15.9},
	} {
		t.Run(c.name, func(t *testing.T) {
			perEntry := fill(t, server.Addr(), c.open, c.keys)
			t.Logf("%.2f bytes per entry", perEntry)
			require.Greater(t, perEntry, c.min)
			require.Less(t, perEntry, c.max)
			if strings.HasPrefix(c.name, "Sparse") {
				require.Equal(t, map[string]int{"listpack": buckets}, encodings(t, server.Addr()))
			}
		})
	}
}

// TestDenseIsFilledInAnyOrder: a string that grew slot by slot would have spare
// room of up to its own size.
func TestDenseIsFilledInAnyOrder(t *testing.T) {
	t.Parallel()
	rdb := testserver.Redis(t)
	m := openDense(t, hashkv.DenseConfig{})(rdb)
	for i := range int64(1000) {
		require.NoError(t, m.Set(t.Context(), i*387%1000, i))
	}
	bytes, err := rdb.MemoryUsage(t.Context(), "dense:0").Result()
	require.NoError(t, err)
	require.Less(t, bytes, int64(3200))
}

// encodings counts the hashes of the server at addr by how Redis stores them.
func encodings(t *testing.T, addr string) map[string]int {
	rdb := redis.NewClient(&redis.Options{Addr: addr})
	defer rdb.Close()
	cmds, err := rdb.Pipelined(t.Context(), func(pipe redis.Pipeliner) error {
		for _, name := range names(t, rdb, "sparse") {
			pipe.ObjectEncoding(t.Context(), name)
		}
		return nil
	})
	require.NoError(t, err)
	count := make(map[string]int)
	for _, cmd := range cmds {
		count[cmd.(*redis.StringCmd).Val()]++
	}
	return count
}

// thousands is the layout of hashes by id/1000, for comparison.
type thousands struct {
	table // the other methods are not called
	rdb   *redis.Client
}

func openThousands(rdb *redis.Client) table { return thousands{rdb: rdb} }

func (m thousands) SetMulti(ctx context.Context, entries map[int64]int64) error {
	_, err := m.rdb.Pipelined(ctx, func(pipe redis.Pipeliner) error {
		for key, value := range entries {
			pipe.HSet(ctx, "id:"+strconv.FormatInt(key/1000, 10), key%1000, value)
		}
		return nil
	})
	return err
}

// TestOneCommandNeverConverts: Redis 7.2 turns a hash into a hash table when a
// single HSET brings more pairs than the limit. Older ones do not, but the
// bound must hold for both, so this counts pairs.
func TestOneCommandNeverConverts(t *testing.T) {
	t.Parallel()
	rdb := testserver.Redis(t)
	var most, total int
	rdb.AddHook(pipelineHook(func(cmds []redis.Cmder) {
		for _, cmd := range cmds {
			if cmd.Name() == "hset" {
				pairs := len(cmd.Args())/2 - 1
				most = max(most, pairs)
				total += pairs
			}
		}
	}))
	m, err := hashkv.NewSparse(rdb, hashkv.SparseConfig{Buckets: 1})
	require.NoError(t, err)
	entries := make(map[int64]int64)
	for key := range int64(400) {
		entries[key] = key
	}
	require.NoError(t, m.SetMulti(t.Context(), entries))
	require.Equal(t, 400, total)
	require.LessOrEqual(t, most, 128)
	require.Equal(t, "listpack", rdb.ObjectEncoding(t.Context(), "sparse:0").Val())
}

// pipelineHook is called with the commands of each pipeline.
type pipelineHook func(cmds []redis.Cmder)

func (h pipelineHook) DialHook(next redis.DialHook) redis.DialHook          { return next }
func (h pipelineHook) ProcessHook(next redis.ProcessHook) redis.ProcessHook { return next }

func (h pipelineHook) ProcessPipelineHook(next redis.ProcessPipelineHook) redis.ProcessPipelineHook {
	return func(ctx context.Context, cmds []redis.Cmder) error {
		h(cmds)
		return next(ctx, cmds)
	}
}
