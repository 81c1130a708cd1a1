package hashkv_test

import (
	"context"
	"fmt"
	"maps"
	"math"
	"net"
	"strconv"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"github.com/shardgram/shardgram/hashkv"
	"github.com/shardgram/shardgram/internal/localserver"
	"github.com/shardgram/shardgram/internal/testserver"
)

// grower is a map that has buckets.
type grower interface {
	AutoGrow(ctx context.Context, cfg hashkv.AutoGrowConfig) error
	Grow(ctx context.Context, cfg hashkv.GrowConfig) error
}

// A model is a Go map, and handles of the map in Redis that has to do the same.
// Only one of the handles grows the map at a time, so the others go by an old
// header for a second, longer than most runs take.
type model[K hashkv.Key, V hashkv.Value] struct {
	handles []table[K, V]
	keys    *rapid.Generator[K]
	values  *rapid.Generator[V]
	want    map[K]V
	grown   int
	growing chan error // of a Grow under way, or nil

	// disturb does something to the servers that must not be noticed, if it is
	// not nil; only a Grow under way may fail then. It has that many replicas.
	disturb  func(t *rapid.T)
	replicas int
}

// maxGrown bounds how often a model grows, because each time costs twice as
// much.
const maxGrown = 2

// run does random things to the map, and compares each result with the model.
func (m *model[K, V]) run(t *rapid.T) {
	m.want = make(map[K]V)
	defer func() { // also after a failure
		if m.growing != nil {
			<-m.growing
		}
	}()
	actions := map[string]func(*rapid.T){
		"get": m.get, "getMulti": m.getMulti, "set": m.set, "setMulti": m.setMulti, "setNX": m.setNX,
		"delete": m.delete, "load": m.load, "whole": m.whole,
	}
	if _, ok := m.handles[0].(grower); ok {
		actions["grow"] = m.grow
	}
	if m.disturb != nil {
		actions["disturb"] = func(t *rapid.T) {
			if actions["grow"] != nil && rapid.Bool().Draw(t, "while it grows") {
				m.beginGrow(t)
			}
			m.disturb(t)
		}
	}
	t.Repeat(actions)
	m.settle(t)
	m.compare(t, m.any(t))
}

func (m *model[K, V]) any(t *rapid.T) table[K, V] {
	return rapid.SampledFrom(m.handles).Draw(t, "handle")
}

// pick returns some keys, maybe one twice.
func (m *model[K, V]) pick(t *rapid.T) []K { return rapid.SliceOfN(m.keys, 0, 20).Draw(t, "keys") }

func (m *model[K, V]) get(t *rapid.T) {
	key := m.keys.Draw(t, "key")
	got, err := m.any(t).Get(context.Background(), key)
	if want, ok := m.want[key]; ok {
		require.NoError(t, err)
		require.Equal(t, want, got)
	} else {
		require.ErrorIs(t, err, hashkv.ErrNotFound)
	}
}

func (m *model[K, V]) getMulti(t *rapid.T) {
	keys := m.pick(t)
	want := make(map[K]V)
	for _, key := range keys {
		if value, ok := m.want[key]; ok {
			want[key] = value
		}
	}
	got, err := m.any(t).GetMulti(context.Background(), keys...)
	require.NoError(t, err)
	requireEntries(t, want, got)
}

func (m *model[K, V]) set(t *rapid.T) {
	key, value := m.keys.Draw(t, "key"), m.values.Draw(t, "value")
	require.NoError(t, m.any(t).Set(context.Background(), key, value))
	m.want[key] = value
}

func (m *model[K, V]) setMulti(t *rapid.T) {
	entries := rapid.MapOfN(m.keys, m.values, 0, 30).Draw(t, "entries")
	require.NoError(t, m.any(t).SetMulti(context.Background(), entries))
	maps.Copy(m.want, entries)
}

func (m *model[K, V]) setNX(t *rapid.T) {
	key, value := m.keys.Draw(t, "key"), m.values.Draw(t, "value")
	done, err := m.any(t).SetNX(context.Background(), key, value)
	require.NoError(t, err)
	_, taken := m.want[key]
	require.Equal(t, !taken, done)
	if done {
		m.want[key] = value
	}
}

func (m *model[K, V]) delete(t *rapid.T) {
	gone := m.pick(t)
	require.NoError(t, m.any(t).Delete(context.Background(), gone...))
	for _, key := range gone {
		delete(m.want, key)
	}
}

// load brings keys more than once, in batches that end anywhere.
func (m *model[K, V]) load(t *rapid.T) {
	keys := rapid.SliceOfN(m.keys, 0, 30).Draw(t, "keys")
	value := m.values.Draw(t, "value")
	cfg := hashkv.LoadConfig{Batch: rapid.IntRange(0, 20).Draw(t, "batch")}
	entries := func(yield func(K, V) bool) {
		for _, key := range keys {
			before, ok := m.want[key]
			if !ok {
				before = value
			}
			m.want[key] = value
			// The last one counts.
			if !yield(key, before) || !yield(key, value) {
				return
			}
		}
	}
	n, err := m.any(t).Load(context.Background(), entries, cfg)
	require.NoError(t, err)
	require.EqualValues(t, 2*len(keys), n)
}

// whole looks at the whole map. That takes longer than the rest together, so
// it is not done each time.
func (m *model[K, V]) whole(t *rapid.T) {
	if rapid.IntRange(0, 5).Draw(t, "look") == 0 {
		m.compare(t, m.any(t))
	}
}

func (m *model[K, V]) compare(t *rapid.T, handle table[K, V]) {
	ctx := context.Background()
	requireEntries(t, m.want, collect(ctx, t, handle))
	stats, err := handle.Stats(ctx, hashkv.StatsConfig{Sample: 1 << 8 << maxGrown})
	require.NoError(t, err)
	require.EqualValues(t, len(m.want), stats.Entries)
}

// grow doubles the map, now or while other things go on.
func (m *model[K, V]) grow(t *rapid.T) {
	if rapid.IntRange(0, 3).Draw(t, "grow") != 0 {
		return
	}
	m.beginGrow(t)
	if rapid.Bool().Draw(t, "wait") {
		m.settle(t)
	}
}

func (m *model[K, V]) beginGrow(t *rapid.T) {
	m.settle(t)
	if m.grown == maxGrown {
		return
	}
	m.grown++
	handle := m.any(t).(grower)
	m.growing = make(chan error, 1)
	done := m.growing
	cfg := hashkv.GrowConfig{Parallel: rapid.IntRange(1, 40).Draw(t, "parallel"), Replicas: m.replicas}
	go func() { done <- handle.Grow(context.Background(), cfg) }()
}

// settle waits for a Grow under way. If a server was disturbed, it may take
// another one.
func (m *model[K, V]) settle(t *rapid.T) {
	if m.growing == nil {
		return
	}
	err := <-m.growing
	m.growing = nil
	if err != nil && m.disturb != nil {
		t.Logf("grow again after: %v", err)
		err = m.any(t).(grower).Grow(context.Background(), hashkv.GrowConfig{Replicas: m.replicas})
	}
	require.NoError(t, err)
}

// clients returns clients for two processes, with nothing in their database.
func clients(t *testing.T) (first, second *redis.Client) {
	first = testserver.Redis(t)
	second = redis.NewClient(&redis.Options{Addr: first.Options().Addr, DB: first.Options().DB})
	t.Cleanup(func() { second.Close() })
	return first, second
}

// checkModel compares a map that open makes with a model, on the clients of
// two processes.
func checkModel[K hashkv.Key, V hashkv.Value](t *testing.T, draw func(t *rapid.T) (open func(redis.UniversalClient) table[K, V], keys *rapid.Generator[K], values *rapid.Generator[V])) {
	t.Parallel()
	first, second := clients(t)
	rapid.Check(t, func(t *rapid.T) {
		require.NoError(t, first.FlushDB(context.Background()).Err())
		open, keys, values := draw(t)
		m := model[K, V]{handles: []table[K, V]{open(first), open(second)}, keys: keys, values: values}
		for _, handle := range m.handles {
			require.NoError(t, handle.Open(context.Background()))
		}
		m.run(t)
	})
}

// intValues are values of up to so many bits. Among them are bytes that read
// as decimals, which Redis stores as numbers, and zero, which is no bytes.
func intValues(bits int) *rapid.Generator[int64] {
	most := int64(math.MaxInt64) >> (63 - bits)
	all := []*rapid.Generator[int64]{
		rapid.Int64Range(0, min(most, 3)), rapid.Int64Range(0, most), rapid.Just(most),
	}
	if most > 0x3939 {
		all = append(all, rapid.Int64Range(0x3030, 0x3939))
	}
	return rapid.OneOf(all...)
}

// texts are short strings of any bytes. Some are numbers as Redis writes them,
// some nearly so, some as long as they may be.
func texts(most int) *rapid.Generator[string] {
	special := rapid.SampledFrom([]string{
		"", "0", "12", "007", "-1", "+1", "1e3", " 7", "9223372036854775807", "9223372036854775808", "\x00", "\xff\xfe", "\r\n", "{a}", "ä",
	}).Filter(func(s string) bool { return len(s) <= most })
	raw := rapid.Map(rapid.SliceOfN(rapid.Byte(), 0, most), func(b []byte) string { return string(b) })
	full := rapid.Map(rapid.SliceOfN(rapid.Byte(), most, most), func(b []byte) string { return string(b) })
	return rapid.OneOf(special, rapid.Map(rapid.IntRange(0, 99), strconv.Itoa).Filter(func(s string) bool { return len(s) <= most }), raw, full)
}

func TestDenseModel(t *testing.T) {
	checkModel(t, func(t *rapid.T) (func(redis.UniversalClient) table[int64, int64], *rapid.Generator[int64], *rapid.Generator[int64]) {
		cfg := hashkv.DenseConfig{ValueBits: rapid.IntRange(1, 63).Draw(t, "bits"), Keys: 40_000}
		open := func(rdb redis.UniversalClient) table[int64, int64] { return openDense(t, rdb, cfg) }
		// Neighbours are stored as eights; the ends of a string are special.
		slots := int64(8186 / (cfg.ValueBits + 1) * 8)
		keys := rapid.OneOf(
			rapid.Int64Range(0, 40), rapid.Int64Range(slots-20, min(slots+20, cfg.Keys-1)),
			rapid.Int64Range(0, cfg.Keys-1), rapid.Just(cfg.Keys-1),
		)
		return open, keys, intValues(cfg.ValueBits)
	})
}

// liveBits are masks with and without gaps.
func liveBits() *rapid.Generator[uint64] {
	return rapid.OneOf(
		rapid.Just(uint64(math.MaxUint64)),
		rapid.Just(uint64(0x7fff_ffff_ff80_7fff)),                                             // an idgen.ID with fewer shards
		rapid.Map(rapid.IntRange(12, 63), func(bits int) uint64 { return 1<<bits - 1 }),       // small numbers
		rapid.Map(rapid.Uint64(), func(x uint64) uint64 { return x | 0xf00f_0000_0000_00f1 }), // rugged
	)
}

// int64Keys are keys of live bits, many of them small or neighbours.
func int64Keys(live uint64) *rapid.Generator[int64] {
	return rapid.Map(rapid.OneOf(rapid.Uint64Range(0, 60), rapid.Uint64Range(math.MaxUint64-60, math.MaxUint64), rapid.Uint64()),
		func(x uint64) int64 { return int64(hashkv.Stretch(live, x)) })
}

func TestSparseModel(t *testing.T) {
	checkModel(t, func(t *rapid.T) (func(redis.UniversalClient) table[int64, int64], *rapid.Generator[int64], *rapid.Generator[int64]) {
		cfg := hashkv.SparseConfig{Entries: 1, Live: liveBits().Draw(t, "live"), ValueBits: rapid.IntRange(1, 63).Draw(t, "bits")}
		open := func(rdb redis.UniversalClient) table[int64, int64] { return openSparse[int64](t, rdb, cfg) }
		return open, int64Keys(cfg.Live), intValues(cfg.ValueBits)
	})
}

func TestSparseTextModel(t *testing.T) {
	checkModel(t, func(t *rapid.T) (func(redis.UniversalClient) table[int64, string], *rapid.Generator[int64], *rapid.Generator[string]) {
		cfg := hashkv.SparseConfig{Entries: 1, Live: liveBits().Draw(t, "live"), ValueBytes: rapid.IntRange(1, 64).Draw(t, "bytes")}
		open := func(rdb redis.UniversalClient) table[int64, string] { return openSparse[string](t, rdb, cfg) }
		return open, int64Keys(cfg.Live), texts(cfg.ValueBytes)
	})
}

func TestStringsModel(t *testing.T) {
	checkModel(t, func(t *rapid.T) (func(redis.UniversalClient) table[string, int64], *rapid.Generator[string], *rapid.Generator[int64]) {
		cfg := hashkv.StringsConfig{Entries: 1, KeyBytes: rapid.IntRange(1, 64).Draw(t, "key bytes"), ValueBits: rapid.IntRange(1, 63).Draw(t, "bits")}
		open := func(rdb redis.UniversalClient) table[string, int64] { return openStrings[int64](t, rdb, cfg) }
		return open, texts(cfg.KeyBytes), intValues(cfg.ValueBits)
	})
}

func TestStringsTextModel(t *testing.T) {
	checkModel(t, func(t *rapid.T) (func(redis.UniversalClient) table[string, string], *rapid.Generator[string], *rapid.Generator[string]) {
		cfg := hashkv.StringsConfig{Entries: 1, KeyBytes: rapid.IntRange(1, 64).Draw(t, "key bytes"), ValueBytes: rapid.IntRange(1, 64).Draw(t, "bytes")}
		open := func(rdb redis.UniversalClient) table[string, string] { return openStrings[string](t, rdb, cfg) }
		return open, texts(cfg.KeyBytes), texts(cfg.ValueBytes)
	})
}

// checkDisturbed compares a map with a model, on servers that disturb is done
// to: at most once in a run, and as often as times says.
func checkDisturbed[K hashkv.Key, V hashkv.Value](t *testing.T, k kind[K, V], first, second redis.UniversalClient, replicas, times int, disturb func(t require.TestingT)) {
	disturbed := 0
	keys := rapid.Map(rapid.Int64Range(0, 80), k.key)
	values := rapid.Map(rapid.Int64Range(0, 80), k.value)
	rapid.Check(t, func(t *rapid.T) {
		if disturbed == times {
			return // enough; rapid would go on to a hundred runs
		}
		require.NoError(t, first.FlushDB(context.Background()).Err())
		m := model[K, V]{
			handles: []table[K, V]{k.open(t, first), k.open(t, second)}, keys: keys, values: values, replicas: replicas,
		}
		for _, handle := range m.handles {
			require.NoError(t, handle.Open(context.Background()))
		}
		before := disturbed
		m.disturb = func(t *rapid.T) {
			if disturbed == before && disturbed < times {
				disturbed++
				disturb(t)
			}
		}
		m.run(t)
	})
	require.Equal(t, times, disturbed)
}

// TestModelOverRestarts: what was acknowledged before a crash is there after
// it, and the handles find the server again. The crash may come in the middle
// of growing.
func TestModelOverRestarts(t *testing.T) {
	t.Parallel()
	t.Run("Dense", func(t *testing.T) { testRestarts(t, denseKind) })
	t.Run("Sparse", func(t *testing.T) { testRestarts(t, sparseKind) })
	t.Run("StringsText", func(t *testing.T) { testRestarts(t, stringsTextKind) })
}

func testRestarts[K hashkv.Key, V hashkv.Value](t *testing.T, k kind[K, V]) {
	t.Parallel()
	server, err := testserver.Host(t).Redis(t.Context(), "redis", localserver.RedisConfig{
		Settings: map[string]string{"appendonly": "yes", "appendfsync": "always"},
	})
	require.NoError(t, err)
	first := redis.NewClient(&redis.Options{Addr: server.Addr()})
	defer first.Close()
	second := redis.NewClient(&redis.Options{Addr: server.Addr()})
	defer second.Close()
	checkDisturbed(t, k, first, second, 0, 6, func(t require.TestingT) {
		require.NoError(t, server.Kill())
		require.NoError(t, server.Restart(context.Background()))
	})
}

// TestModelOverFailovers: what a replica has is there when it takes over. The
// failover may come in the middle of growing.
func TestModelOverFailovers(t *testing.T) {
	t.Parallel()
	t.Run("Dense", func(t *testing.T) { testFailovers(t, denseKind) })
	t.Run("SparseText", func(t *testing.T) { testFailovers(t, sparseTextKind) })
}

func testFailovers[K hashkv.Key, V hashkv.Value](t *testing.T, k kind[K, V]) {
	t.Parallel()
	h := testserver.Host(t)
	primary, err := h.Redis(t.Context(), "a", localserver.RedisConfig{})
	require.NoError(t, err)
	_, err = h.Redis(t.Context(), "b", localserver.RedisConfig{ReplicaOf: primary})
	require.NoError(t, err)
	sentinel, err := h.Sentinel(t.Context(), "sentinel", localserver.SentinelConfig{Primary: primary})
	require.NoError(t, err)
	open := func() *redis.Client {
		return redis.NewFailoverClient(&redis.FailoverOptions{MasterName: sentinel.Master(), SentinelAddrs: []string{sentinel.Addr()}})
	}
	first, second := open(), open()
	defer first.Close()
	defer second.Close()
	asked := redis.NewSentinelClient(&redis.Options{Addr: sentinel.Addr()})
	defer asked.Close()
	// Sentinel lets a primary be for 8 s before it makes it a replica again, and
	// looks for replicas every 10 s.
	for _, period := range []string{"publish-period", "info-period"} {
		require.NoError(t, asked.Process(t.Context(), redis.NewStatusCmd(t.Context(), "sentinel", "debug", period, "100")))
	}
	checkDisturbed(t, k, first, second, 1, 3, func(t require.TestingT) {
		failOver(t, first, asked, sentinel.Master())
	})
}

// failOver waits until the replica has everything, makes it the primary, and
// waits until the old one follows it and clients know.
func failOver(t require.TestingT, rdb *redis.Client, sentinel *redis.SentinelClient, master string) {
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	var copies *redis.IntCmd
	_, err := rdb.Pipelined(ctx, func(pipe redis.Pipeliner) error {
		pipe.Set(ctx, "last", time.Now().UnixNano(), 0) // WAIT is for writes of its connection
		copies = redis.NewIntCmd(ctx, "wait", 1, 2000)
		return pipe.Process(ctx, copies)
	})
	require.NoError(t, err)
	require.EqualValues(t, 1, copies.Val(), "no replica has the last write")

	before, err := sentinel.GetMasterAddrByName(ctx, master).Result()
	require.NoError(t, err)
	settleServers(ctx, t, func() error { return sentinel.Failover(ctx, master).Err() })
	settleServers(ctx, t, func() error {
		after, err := sentinel.GetMasterAddrByName(ctx, master).Result()
		if err == nil && after[1] == before[1] {
			err = fmt.Errorf("%v is the primary still", after)
		}
		if err != nil {
			return err
		}
		old := redis.NewClient(&redis.Options{Addr: net.JoinHostPort(before[0], before[1])})
		defer old.Close()
		info, err := old.InfoMap(ctx, "replication").Result()
		if link := info["Replication"]["master_link_status"]; err == nil && link != "up" {
			err = fmt.Errorf("the old primary's link is %q", link)
		}
		return err
	})
}

// settleServers tries until it succeeds.
func settleServers(ctx context.Context, t require.TestingT, try func() error) {
	for {
		err := try()
		if err == nil {
			return
		}
		select {
		case <-ctx.Done():
			require.NoError(t, err)
			return
		case <-time.After(20 * time.Millisecond):
		}
	}
}
