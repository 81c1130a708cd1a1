package hashkv_test

import (
	"context"
	"fmt"
	"math/rand/v2"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/shardgram/shardgram/hashkv"
	"github.com/shardgram/shardgram/idgen"
	"github.com/shardgram/shardgram/internal/localserver"
	"github.com/shardgram/shardgram/internal/testserver"
	"github.com/stretchr/testify/require"
)

const (
	benchKeys  = 3_000_000 // of each layout
	benchMulti = 100       // of one GetMulti
)

// A benchLayout stores the values of the keys number 0 to benchKeys-1.
type benchLayout interface {
	load(ctx context.Context) error
	get(ctx context.Context, i int64) (int64, error)
	set(ctx context.Context, i, value int64) error
	getMulti(ctx context.Context, numbers []int64) (found int, err error)
}

var benchLayouts = []struct {
	name string
	open func(*redis.Client) (benchLayout, error)
}{
	{"plain", func(rdb *redis.Client) (benchLayout, error) { return benchPlain{rdb}, nil }},
	{"dense", func(rdb *redis.Client) (benchLayout, error) {
		m, err := hashkv.NewDense(rdb, hashkv.DenseConfig{})
		return benchTable[int64]{m, func(i int64) int64 { return i }}, err
	}},
	{"sparse", func(rdb *redis.Client) (benchLayout, error) {
		m, err := hashkv.NewSparse[int64](rdb, hashkv.SparseConfig{Entries: benchKeys, ValueBits: 24})
		return benchTable[int64]{m, benchID}, err
	}},
	{"strings", func(rdb *redis.Client) (benchLayout, error) {
		m, err := hashkv.NewStrings[int64](rdb, hashkv.StringsConfig{Entries: benchKeys, ValueBits: 24})
		return benchTable[string]{m, benchName}, err
	}},
}

// benchID is an ID of a photo: a year has 300 million of them, one every 105 ms.
func benchID(i int64) int64 {
	at := idgen.Default.Epoch.Add(time.Duration(i) * 105 * time.Millisecond)
	id, err := idgen.Default.Compose(at, int(benchHash(i)%8192), int(i%4))
	if err != nil {
		panic(err)
	}
	return int64(id)
}

func benchName(i int64) string { return "media:" + strconv.FormatInt(i, 10) }

func benchValue(i int64) int64 { return int64(benchHash(i) >> 40) }

func benchHash(i int64) uint64 {
	x := uint64(i) * 0x9e3779b97f4a7c15
	x = (x ^ x>>32) * 0xd6e8feb86659fd93
	return x ^ x>>32
}

// benchTable is a map of this package.
type benchTable[K hashkv.Key] struct {
	table[K, int64]
	key func(i int64) K
}

func (l benchTable[K]) load(ctx context.Context) error {
	_, err := l.Load(ctx, func(yield func(K, int64) bool) {
		for i := range int64(benchKeys) {
			if !yield(l.key(i), benchValue(i)) {
				return
			}
		}
	}, hashkv.LoadConfig{Batch: 1 << 20})
	return err
}

func (l benchTable[K]) get(ctx context.Context, i int64) (int64, error) { return l.Get(ctx, l.key(i)) }

func (l benchTable[K]) set(ctx context.Context, i, value int64) error {
	return l.Set(ctx, l.key(i), value)
}

func (l benchTable[K]) getMulti(ctx context.Context, numbers []int64) (int, error) {
	keys := make([]K, len(numbers))
	for j, i := range numbers {
		keys[j] = l.key(i)
	}
	found, err := l.GetMulti(ctx, keys...)
	return len(found), err
}

// benchPlain is what one writes without this package: a Redis key for each.
type benchPlain struct{ rdb *redis.Client }

func (l benchPlain) load(ctx context.Context) error {
	for first := int64(0); first < benchKeys; first += 10_000 {
		_, err := l.rdb.Pipelined(ctx, func(pipe redis.Pipeliner) error {
			for i := first; i < min(first+10_000, benchKeys); i++ {
				pipe.Set(ctx, benchName(i), benchValue(i), 0)
			}
			return nil
		})
		if err != nil {
			return err
		}
	}
	return nil
}

func (l benchPlain) get(ctx context.Context, i int64) (int64, error) {
	return l.rdb.Get(ctx, benchName(i)).Int64()
}

func (l benchPlain) set(ctx context.Context, i, value int64) error {
	return l.rdb.Set(ctx, benchName(i), value, 0).Err()
}

func (l benchPlain) getMulti(ctx context.Context, numbers []int64) (int, error) {
	cmds := make([]*redis.StringCmd, len(numbers))
	_, err := l.rdb.Pipelined(ctx, func(pipe redis.Pipeliner) error {
		for j, i := range numbers {
			cmds[j] = pipe.Get(ctx, benchName(i))
		}
		return nil
	})
	found := make(map[int64]int64, len(numbers))
	for j, cmd := range cmds {
		if value, err := cmd.Int64(); err == nil {
			found[numbers[j]] = value
		}
	}
	return len(found), err
}

// benchServer is a server that holds one layout.
type benchServer struct {
	benchLayout
	rdb      *redis.Client
	bytesKey float64 // used_memory per key
}

func openBench(b *testing.B, name string, open func(*redis.Client) (benchLayout, error)) benchServer {
	b.Helper()
	server, err := testserver.Host(b).Redis(b.Context(), name, localserver.RedisConfig{})
	require.NoError(b, err)
	s := benchServer{rdb: redis.NewClient(&redis.Options{Addr: server.Addr()})}
	b.Cleanup(func() { s.rdb.Close() })
	s.benchLayout, err = open(s.rdb)
	require.NoError(b, err)
	empty := s.info(b, "memory")["used_memory"]
	require.NoError(b, s.load(b.Context()))
	s.bytesKey = (benchNumber(b, s.info(b, "memory")["used_memory"]) - benchNumber(b, empty)) / benchKeys
	for range 1000 {
		i := rand.Int64N(benchKeys)
		value, err := s.get(b.Context(), i)
		require.NoError(b, err)
		require.Equal(b, benchValue(i), value)
	}
	return s
}

func (s benchServer) info(b *testing.B, section string) map[string]string {
	b.Helper()
	text, err := s.rdb.Info(b.Context(), section).Result()
	require.NoError(b, err)
	fields := map[string]string{}
	for line := range strings.Lines(text) {
		if name, value, ok := strings.Cut(strings.TrimSpace(line), ":"); ok {
			fields[name] = value
		}
	}
	return fields
}

func benchNumber(b *testing.B, text string) float64 {
	b.Helper()
	x, err := strconv.ParseFloat(text, 64)
	require.NoError(b, err)
	return x
}

// serverMicros is how long the server has run the commands of a layout since
// CONFIG RESETSTAT.
func (s benchServer) serverMicros(b *testing.B) float64 {
	b.Helper()
	var sum float64
	stats := s.info(b, "commandstats")
	for _, command := range []string{"get", "getrange", "hget", "hmget", "set", "setrange", "bitfield", "hset"} {
		for field := range strings.SplitSeq(stats["cmdstat_"+command], ",") {
			if usec, ok := strings.CutPrefix(field, "usec="); ok {
				sum += benchNumber(b, usec)
			}
		}
	}
	return sum
}

func eachLayout(b *testing.B, op func(ctx context.Context, s benchServer) error) {
	for _, layout := range benchLayouts {
		b.Run("layout="+layout.name, func(b *testing.B) {
			s := openBench(b, layout.name, layout.open)
			require.NoError(b, s.rdb.ConfigResetStat(b.Context()).Err())
			b.ReportAllocs()
			for b.Loop() {
				if err := op(b.Context(), s); err != nil {
					b.Fatal(err)
				}
			}
			b.ReportMetric(s.bytesKey, "bytes/key")
			b.ReportMetric(s.serverMicros(b)/float64(b.N), "server-us/op")
		})
	}
}

// BenchmarkGet reads random present keys of 3,000,000, one per round trip.
func BenchmarkGet(b *testing.B) {
	eachLayout(b, benchGet)
}

// BenchmarkSet overwrites random keys of 3,000,000, one per round trip.
func BenchmarkSet(b *testing.B) {
	eachLayout(b, func(ctx context.Context, s benchServer) error {
		i := rand.Int64N(benchKeys)
		return s.set(ctx, i, benchValue(i))
	})
}

// BenchmarkGetMulti reads 100 random present keys of 3,000,000 at a time.
func BenchmarkGetMulti(b *testing.B) {
	eachLayout(b, benchGetMulti)
}

func benchGet(ctx context.Context, s benchServer) error {
	i := rand.Int64N(benchKeys)
	value, err := s.get(ctx, i)
	if err == nil && value != benchValue(i) {
		err = fmt.Errorf("key %d has a wrong value", i)
	}
	return err
}

func benchGetMulti(ctx context.Context, s benchServer) error {
	numbers := make([]int64, benchMulti)
	for j := range numbers {
		numbers[j] = rand.Int64N(benchKeys)
	}
	found, err := s.getMulti(ctx, numbers)
	// One number may come twice, seldom.
	if err == nil && found < benchMulti-5 {
		err = fmt.Errorf("found only %d keys", found)
	}
	return err
}

// BenchmarkByTurns compares the throughput of dense and sparse maps with that of
// plain keys: each in turn for 50 ms, so that a busy moment of the machine harms
// one round and not one layout. The metrics are medians of the rounds' ratios;
// -benchtime=100x gives them 100 rounds. A call takes several times as long if it
// wakes another core, which `taskset -c 0 go test` rules out.
func BenchmarkByTurns(b *testing.B) {
	const slice = 50 * time.Millisecond
	var servers []benchServer
	for _, layout := range benchLayouts[:3] {
		servers = append(servers, openBench(b, layout.name, layout.open))
	}
	for _, mode := range []struct {
		name string
		op   func(ctx context.Context, s benchServer) error
	}{{"get", benchGet}, {"getmulti", benchGetMulti}} {
		b.Run(mode.name, func(b *testing.B) {
			ratios := make([][]float64, len(servers))
			for round := 0; b.Loop(); round++ {
				rates := make([]float64, len(servers))
				for turn := range servers {
					at := (turn + round) % len(servers)
					begin, done := time.Now(), 0
					for time.Since(begin) < slice {
						if err := mode.op(b.Context(), servers[at]); err != nil {
							b.Fatal(err)
						}
						done++
					}
					rates[at] = float64(done) / time.Since(begin).Seconds()
				}
				for at, rate := range rates {
					ratios[at] = append(ratios[at], rate/rates[0])
				}
			}
			b.ReportMetric(0, "ns/op") // a round is as long as we make it
			for at := range servers[1:] {
				sorted := slices.Sorted(slices.Values(ratios[at+1]))
				b.ReportMetric(sorted[len(sorted)/2], benchLayouts[at+1].name+"/plain")
			}
		})
	}
}

// BenchmarkSplit is the client's part of placing a key.
func BenchmarkSplit(b *testing.B) {
	key := uint64(3_355_443_200_000_102_401)
	for b.Loop() {
		bucket, _ := hashkv.Split(key, 21)
		key += bucket
	}
}
