package hashkv_test

import (
	"bufio"
	"cmp"
	"context"
	"fmt"
	"iter"
	"maps"
	"math/rand/v2"
	"net"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	"github.com/shardgram/shardgram/hashkv"
	"github.com/shardgram/shardgram/internal/localserver"
	"github.com/shardgram/shardgram/internal/testserver"
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
		if infoNumber(t, info, "connected_clients") == 1 {
			return infoNumber(t, info, "used_memory")
		}
		require.True(t, time.Now().Before(deadline), "another client stays connected")
		time.Sleep(time.Millisecond)
	}
}

func infoNumber(t testing.TB, info, name string) int64 {
	_, rest, ok := strings.Cut(info, "\n"+name+":")
	require.True(t, ok, name)
	text, _, _ := strings.Cut(rest, "\r")
	n, err := strconv.ParseInt(text, 10, 64)
	require.NoError(t, err)
	return n
}

// loader is the part of a map that is measured.
type loader[K hashkv.Key, V hashkv.Value] interface {
	Load(ctx context.Context, entries iter.Seq2[K, V], cfg hashkv.LoadConfig) (int64, error)
}

// perEntry empties the server at addr, loads keys with values of 24 bits in
// random order, and returns the bytes that each entry took.
func perEntry[K hashkv.Key](t testing.TB, addr string, open func(*redis.Client) loader[K, int64], keys []K) float64 {
	ctx := context.Background()
	r := rand.New(rand.NewPCG(7, 8))
	r.Shuffle(len(keys), func(i, j int) { keys[i], keys[j] = keys[j], keys[i] })
	load := func(keys []K) {
		rdb := redis.NewClient(&redis.Options{Addr: addr})
		defer rdb.Close()
		n, err := open(rdb).Load(ctx, func(yield func(K, int64) bool) {
			for _, key := range keys {
				if !yield(key, r.Int64N(1<<24)) {
					return
				}
			}
		}, hashkv.LoadConfig{Batch: 20_000})
		require.NoError(t, err)
		require.EqualValues(t, len(keys), n)
	}
	empty := func() {
		rdb := redis.NewClient(&redis.Options{Addr: addr})
		defer rdb.Close()
		require.NoError(t, rdb.FlushAll(ctx).Err())
	}
	empty()
	load(keys[:1]) // Redis allocates 30 KB of statistics at the first use of a command
	empty()
	before := usedMemory(t, addr)
	load(keys)
	return float64(usedMemory(t, addr)-before) / float64(len(keys))
}

// distinct returns n keys from draw, all different.
func distinct[K cmp.Ordered](t testing.TB, n int, draw func(i int64) K) []K {
	keys := make([]K, n)
	for i := range keys {
		keys[i] = draw(int64(i))
	}
	slices.Sort(keys)
	require.Len(t, slices.Compact(keys), n)
	return keys
}

// TestMemory measures the bytes per entry that the package comment promises, on
// a server with stock settings: 2048 buckets of 128 entries on average.
func TestMemory(t *testing.T) {
	t.Parallel()
	server, err := testserver.Host(t).Redis(t.Context(), "redis", localserver.RedisConfig{})
	require.NoError(t, err)
	const n = 2048 * 128
	r := rand.New(rand.NewPCG(3, 4))

	// The way of the original post on ids that begin with a time. If it did not
	// come out far worse, the rest would prove nothing.
	thousands := func(rdb *redis.Client) loader[int64, int64] { return thousands{rdb} }
	snowflakes := distinct(t, n, func(i int64) int64 { return snowflake(r, i) })
	measure(t, server, "HashesByThousands", thousands, snowflakes[:20_000], 80, 150)

	dense := func(rdb *redis.Client) loader[int64, int64] { return openDense(t, rdb, hashkv.DenseConfig{}) }
	full := distinct(t, 100*2616, func(i int64) int64 { return i }) // 100 strings
	measure(t, server, "Dense", dense, full, 3.0, 3.2)

	sparse := func(live uint64) func(rdb *redis.Client) loader[int64, int64] {
		return func(rdb *redis.Client) loader[int64, int64] {
			return openSparse[int64](t, rdb, hashkv.SparseConfig{Entries: n, Live: live, ValueBits: 24})
		}
	}
	random := func(bits int) []int64 { return distinct(t, n, func(int64) int64 { return r.Int64N(1 << bits) }) }
	measure(t, server, "SparseOf43Bits", sparse(1<<43-1), random(43), 11, 12.9) // 4-byte fields
	measure(t, server, "SparseOf51Bits", sparse(1<<51-1), random(51), 12, 13.9) // 5 bytes
	// Without the bits that these never have, 8 of the 10 of the sequence.
	measure(t, server, "SnowflakesOfLiveBits", sparse(1<<63-1-0xff<<2), snowflakes, 13, 14.9) // 6 bytes

	text := func(rdb *redis.Client) loader[string, int64] {
		return openStrings[int64](t, rdb, hashkv.StringsConfig{Entries: n, ValueBits: 24})
	}
	names := distinct(t, n, func(i int64) string { return fmt.Sprintf("user:%07d", i) })
	measure(t, server, "StringsOf12Bytes", text, names, 19, 22.5) // 14 + 5 bytes
}

// measure checks the bytes per entry, and that no bucket left the compact
// encoding.
func measure[K hashkv.Key](t *testing.T, server *localserver.Redis, name string, open func(*redis.Client) loader[K, int64], keys []K, least, most float64) {
	t.Run(name, func(t *testing.T) {
		bytes := perEntry(t, server.Addr(), open, keys)
		t.Logf("%.2f bytes per entry", bytes)
		require.Greater(t, bytes, least)
		require.Less(t, bytes, most)
		rdb := redis.NewClient(&redis.Options{Addr: server.Addr()})
		defer rdb.Close()
		for _, prefix := range []string{"sparse", "strings"} {
			for encoding := range encodings(t, rdb, prefix) {
				require.Equal(t, "listpack", encoding)
			}
		}
	})
}

// encodings counts the buckets of a map by how Redis stores them.
func encodings(t *testing.T, rdb *redis.Client, prefix string) map[string]int {
	cmds, err := rdb.Pipelined(t.Context(), func(pipe redis.Pipeliner) error {
		for _, name := range names(t.Context(), t, rdb, prefix) {
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
type thousands struct{ rdb *redis.Client }

func (m thousands) Load(ctx context.Context, entries iter.Seq2[int64, int64], _ hashkv.LoadConfig) (int64, error) {
	cmds, err := m.rdb.Pipelined(ctx, func(pipe redis.Pipeliner) error {
		for key, value := range entries {
			pipe.HSet(ctx, "id:"+strconv.FormatInt(key/1000, 10), key%1000, value)
		}
		return nil
	})
	return int64(len(cmds)), err
}

// TestOneCommandNeverConverts: Redis 7.2 turns a hash into a hash table when a
// single HSET brings more pairs than the limit. Older ones do not, but the
// bound must hold for both, so this counts pairs, also those of the script that
// splits a bucket.
func TestOneCommandNeverConverts(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	server, err := testserver.Host(t).Redis(ctx, "redis", localserver.RedisConfig{})
	require.NoError(t, err)
	rdb := redis.NewClient(&redis.Options{Addr: server.Addr()})
	defer rdb.Close()
	m := openSparse[int64](t, rdb, hashkv.SparseConfig{Entries: 1})
	entries := make(map[int64]int64)
	for i := range uint64(500) { // of one bucket, and of one half of it
		entries[int64(hashkv.Join(0, i, hashkv.MinLevel+1))] = int64(i)
	}
	require.NoError(t, m.Open(ctx))

	pairs := watchPairs(t, server.Addr(), func() {
		require.NoError(t, m.SetMulti(ctx, entries))
		_, err := m.Load(ctx, maps.All(entries), hashkv.LoadConfig{})
		require.NoError(t, err)
		require.Len(t, names(ctx, t, rdb, "sparse"), 1)
		require.NoError(t, m.Grow(ctx, hashkv.GrowConfig{}))
	})
	total := 0
	for _, n := range pairs {
		require.LessOrEqual(t, n, 128)
		total += n
	}
	require.Equal(t, 3*500, total)
	require.Equal(t, map[string]int{"listpack": 1}, func() map[string]int {
		all := encodings(t, rdb, "sparse")
		delete(all, "embstr") // tombstones
		return all
	}())
	requireEntries(t, entries, collect(ctx, t, m))
}

// watchPairs returns how many pairs each HSET brought that the server at addr
// ran meanwhile, also from scripts.
func watchPairs(t *testing.T, addr string, do func()) []int {
	t.Helper()
	conn, err := net.Dial("tcp", addr)
	require.NoError(t, err)
	defer conn.Close()
	require.NoError(t, conn.SetDeadline(time.Now().Add(30*time.Second)))
	_, err = conn.Write([]byte("MONITOR\r\n"))
	require.NoError(t, err)
	lines := bufio.NewReader(conn)
	line, err := lines.ReadString('\n')
	require.NoError(t, err)
	require.Equal(t, "+OK\r\n", line)

	do()
	const end = "the end of what is watched"
	rdb := redis.NewClient(&redis.Options{Addr: addr})
	defer rdb.Close()
	require.NoError(t, rdb.Echo(t.Context(), end).Err())
	var pairs []int
	for {
		line, err := lines.ReadString('\n')
		require.NoError(t, err)
		switch {
		case strings.Contains(line, end):
			return pairs
		case strings.Contains(strings.ToLower(line), `] "hset" `):
			pairs = append(pairs, (strings.Count(line, `" "`)-1)/2)
		}
	}
}
