package hashkv_test

import (
	"context"
	"encoding/binary"
	"fmt"
	"iter"
	"maps"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	"github.com/shardgram/shardgram/hashkv"
	"github.com/shardgram/shardgram/internal/testserver"
)

// redisAddr is for the examples.
var redisAddr string

func TestMain(m *testing.M) {
	redisAddr = testserver.RedisAddr()
	testserver.Main(m, testserver.NeedRedis)
}

// table is what all kinds of map do.
type table[K hashkv.Key, V hashkv.Value] interface {
	Open(ctx context.Context) error
	Get(ctx context.Context, key K) (V, error)
	GetMulti(ctx context.Context, keys ...K) (map[K]V, error)
	Set(ctx context.Context, key K, value V) error
	SetMulti(ctx context.Context, entries map[K]V) error
	SetNX(ctx context.Context, key K, value V) (bool, error)
	Delete(ctx context.Context, keys ...K) error
	All(ctx context.Context) (iter.Seq2[K, V], func() error)
	Load(ctx context.Context, entries iter.Seq2[K, V], cfg hashkv.LoadConfig) (int64, error)
	Stats(ctx context.Context, cfg hashkv.StatsConfig) (hashkv.Stats, error)
}

var (
	_ table[int64, int64]   = (*hashkv.Dense)(nil)
	_ table[int64, int64]   = (*hashkv.Sparse[int64])(nil)
	_ table[int64, string]  = (*hashkv.Sparse[string])(nil)
	_ table[string, int64]  = (*hashkv.Strings[int64])(nil)
	_ table[string, string] = (*hashkv.Strings[string])(nil)
)

// A kind is one way to make a map, and entries 0, 1, 2, ... that suit it: all
// keys are different, and so are the values.
type kind[K hashkv.Key, V hashkv.Value] struct {
	name  string
	open  func(t require.TestingT, rdb redis.UniversalClient) table[K, V]
	key   func(i int64) K
	value func(i int64) V
}

// The kinds. Each puts its map under the prefix of its name.
var (
	denseKind = kind[int64, int64]{
		name: "dense",
		open: func(t require.TestingT, rdb redis.UniversalClient) table[int64, int64] {
			return openDense(t, rdb, hashkv.DenseConfig{Keys: 60_000})
		},
		key:   func(i int64) int64 { return i * 7919 % 60_000 },
		value: secretInt,
	}
	sparseKind = kind[int64, int64]{
		name: "sparse",
		open: func(t require.TestingT, rdb redis.UniversalClient) table[int64, int64] {
			return openSparse[int64](t, rdb, hashkv.SparseConfig{Entries: 1})
		},
		key: sparseKey, value: secretInt,
	}
	sparseTextKind = kind[int64, string]{
		name: "sparse",
		open: func(t require.TestingT, rdb redis.UniversalClient) table[int64, string] {
			return openSparse[string](t, rdb, hashkv.SparseConfig{Entries: 1})
		},
		key: sparseKey, value: secretText,
	}
	stringsKind = kind[string, int64]{
		name: "strings",
		open: func(t require.TestingT, rdb redis.UniversalClient) table[string, int64] {
			return openStrings[int64](t, rdb, hashkv.StringsConfig{Entries: 1})
		},
		key: stringKey, value: secretInt,
	}
	stringsTextKind = kind[string, string]{
		name: "strings",
		open: func(t require.TestingT, rdb redis.UniversalClient) table[string, string] {
			return openStrings[string](t, rdb, hashkv.StringsConfig{Entries: 1})
		},
		key: stringKey, value: secretText,
	}
)

func sparseKey(i int64) int64 { return int64(uint64(i) * 0x9e3779b97f4a7c15) }

// stringKey mixes printable keys, the empty one and binary ones.
func stringKey(i int64) string {
	switch {
	case i == 0:
		return ""
	case i%2 == 0:
		return fmt.Sprintf("user:%d", i)
	}
	return string(binary.BigEndian.AppendUint64(nil, uint64(i)<<32|0x00ff0a0d))
}

// The values are easy to find again where they must not be: in errors. They
// fit 24 bits.
const (
	secretNumber = 7_650_000
	secretPrefix = "secret"
)

func secretInt(i int64) int64   { return secretNumber + i }
func secretText(i int64) string { return fmt.Sprintf("%s-%d", secretPrefix, i) }

func openDense(t require.TestingT, rdb redis.UniversalClient, cfg hashkv.DenseConfig) *hashkv.Dense {
	m, err := hashkv.NewDense(rdb, cfg)
	require.NoError(t, err)
	return m
}

func openSparse[V hashkv.Value](t require.TestingT, rdb redis.UniversalClient, cfg hashkv.SparseConfig) *hashkv.Sparse[V] {
	m, err := hashkv.NewSparse[V](rdb, cfg)
	require.NoError(t, err)
	return m
}

func openStrings[V hashkv.Value](t require.TestingT, rdb redis.UniversalClient, cfg hashkv.StringsConfig) *hashkv.Strings[V] {
	m, err := hashkv.NewStrings[V](rdb, cfg)
	require.NoError(t, err)
	return m
}

// entries returns the entries first to last-1.
func (k kind[K, V]) entries(first, last int64) map[K]V {
	all := make(map[K]V, last-first)
	for i := first; i < last; i++ {
		all[k.key(i)] = k.value(i)
	}
	return all
}

// keysOf returns the keys of entries.
func keysOf[K comparable, V any](entries map[K]V) []K { return slices.Collect(maps.Keys(entries)) }

// collect ranges over all entries of m, and checks that no key comes twice.
func collect[K hashkv.Key, V hashkv.Value](ctx context.Context, t require.TestingT, m table[K, V]) map[K]V {
	got := make(map[K]V)
	all, failed := m.All(ctx)
	for key, value := range all {
		_, twice := got[key]
		require.False(t, twice, "a key comes twice")
		got[key] = value
	}
	require.NoError(t, failed())
	return got
}

// requireEntries compares maps, and does not print thousands of entries.
func requireEntries[K comparable, V comparable](t require.TestingT, want, got map[K]V) {
	if maps.Equal(want, got) {
		return
	}
	var wrong []string
	for key, value := range want {
		if v, ok := got[key]; !ok || v != value {
			wrong = append(wrong, fmt.Sprintf("%v is %v (%v), want %v", key, v, ok, value))
		}
	}
	for key, value := range got {
		if _, ok := want[key]; !ok {
			wrong = append(wrong, fmt.Sprintf("%v is %v, want none", key, value))
		}
	}
	require.FailNow(t, "other entries", "%d entries, want %d; %d wrong: %s",
		len(got), len(want), len(wrong), strings.Join(wrong[:min(len(wrong), 5)], "; "))
}

// names returns the Redis keys of a map, but not its header.
func names(ctx context.Context, t require.TestingT, rdb *redis.Client, prefix string) []string {
	var all []string
	it := rdb.Scan(ctx, 0, prefix+":*", 1000).Iterator()
	for it.Next(ctx) {
		if it.Val() != prefix+":header" {
			all = append(all, it.Val())
		}
	}
	require.NoError(t, it.Err())
	return all
}

func TestContract(t *testing.T) {
	t.Parallel()
	t.Run("Dense", func(t *testing.T) { testContract(t, denseKind) })
	t.Run("Sparse", func(t *testing.T) { testContract(t, sparseKind) })
	t.Run("SparseText", func(t *testing.T) { testContract(t, sparseTextKind) })
	t.Run("Strings", func(t *testing.T) { testContract(t, stringsKind) })
	t.Run("StringsText", func(t *testing.T) { testContract(t, stringsTextKind) })
}

// testContract is what every kind of map must do.
func testContract[K hashkv.Key, V hashkv.Value](t *testing.T, k kind[K, V]) {
	t.Parallel()
	for _, c := range []struct {
		name string
		test func(t *testing.T, k kind[K, V], rdb *redis.Client, m table[K, V])
	}{
		{"ReturnsWhatWasStored", testReturnsWhatWasStored[K, V]},
		{"SetNXStoresOnce", testSetNXStoresOnce[K, V]},
		{"SetNXLetsOneWin", testSetNXLetsOneWin[K, V]},
		{"DeleteForgets", testDeleteForgets[K, V]},
		{"NothingAskedIsNothingDone", testNothingAsked[K, V]},
		{"AllMayStopAndBeginAgain", testAllMayStop[K, V]},
		{"LoadStoresTheLastOfAKey", testLoadStoresTheLast[K, V]},
		{"IsOneMapForAllHandles", testIsOneMap[K, V]},
		{"EndsWithItsContext", testEndsWithContext[K, V]},
		{"MayBeUsedByManyAtOnce", testUsedByMany[K, V]},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			rdb := testserver.Redis(t)
			c.test(t, k, rdb, k.open(t, rdb))
		})
	}
}

func testReturnsWhatWasStored[K hashkv.Key, V hashkv.Value](t *testing.T, k kind[K, V], _ *redis.Client, m table[K, V]) {
	ctx := t.Context()
	_, err := m.Get(ctx, k.key(1))
	require.ErrorIs(t, err, hashkv.ErrNotFound)
	require.NoError(t, m.Set(ctx, k.key(1), k.value(2)))
	require.NoError(t, m.Set(ctx, k.key(1), k.value(1)))
	got, err := m.Get(ctx, k.key(1))
	require.NoError(t, err)
	require.Equal(t, k.value(1), got)

	want := k.entries(0, 3000) // several in each bucket
	require.NoError(t, m.SetMulti(ctx, want))
	found, err := m.GetMulti(ctx, append(keysOf(k.entries(0, 3500)), k.key(5))...)
	require.NoError(t, err)
	requireEntries(t, want, found)
	requireEntries(t, want, collect(ctx, t, m))
	stats, err := m.Stats(ctx, hashkv.StatsConfig{})
	require.NoError(t, err)
	require.EqualValues(t, 3000, stats.Entries)
}

func testSetNXStoresOnce[K hashkv.Key, V hashkv.Value](t *testing.T, k kind[K, V], _ *redis.Client, m table[K, V]) {
	ctx := t.Context()
	done, err := m.SetNX(ctx, k.key(1), k.value(1))
	require.NoError(t, err)
	require.True(t, done)
	done, err = m.SetNX(ctx, k.key(1), k.value(2))
	require.NoError(t, err)
	require.False(t, done)
	got, err := m.Get(ctx, k.key(1))
	require.NoError(t, err)
	require.Equal(t, k.value(1), got)
	require.NoError(t, m.Delete(ctx, k.key(1)))
	done, err = m.SetNX(ctx, k.key(1), k.value(2))
	require.NoError(t, err)
	require.True(t, done)
}

// Of many writers of one key, exactly one is told that it was the first.
func testSetNXLetsOneWin[K hashkv.Key, V hashkv.Value](t *testing.T, k kind[K, V], _ *redis.Client, m table[K, V]) {
	type outcome struct {
		value V
		won   bool
		err   error
	}
	outcomes := make(chan outcome, 8)
	for i := range int64(cap(outcomes)) {
		go func() {
			won, err := m.SetNX(t.Context(), k.key(9), k.value(i))
			outcomes <- outcome{k.value(i), won, err}
		}()
	}
	var winners []V
	for range cap(outcomes) {
		o := <-outcomes
		require.NoError(t, o.err)
		if o.won {
			winners = append(winners, o.value)
		}
	}
	require.Len(t, winners, 1)
	got, err := m.Get(t.Context(), k.key(9))
	require.NoError(t, err)
	require.Equal(t, winners[0], got)
}

func testDeleteForgets[K hashkv.Key, V hashkv.Value](t *testing.T, k kind[K, V], _ *redis.Client, m table[K, V]) {
	ctx := t.Context()
	want := k.entries(0, 300)
	require.NoError(t, m.SetMulti(ctx, want))
	gone := []K{k.key(7), k.key(299), k.key(7), k.key(1000)} // one twice, one that never was
	require.NoError(t, m.Delete(ctx, gone...))
	for _, key := range gone {
		delete(want, key)
		_, err := m.Get(ctx, key)
		require.ErrorIs(t, err, hashkv.ErrNotFound)
	}
	requireEntries(t, want, collect(ctx, t, m))
	require.NoError(t, m.Delete(ctx, keysOf(want)...))
	require.Empty(t, collect(ctx, t, m))
}

func testNothingAsked[K hashkv.Key, V hashkv.Value](t *testing.T, k kind[K, V], rdb *redis.Client, m table[K, V]) {
	ctx := t.Context()
	found, err := m.GetMulti(ctx)
	require.NoError(t, err)
	require.Equal(t, map[K]V{}, found)
	require.NoError(t, m.SetMulti(ctx, nil))
	require.NoError(t, m.Delete(ctx))
	n, err := m.Load(ctx, maps.All(map[K]V{}), hashkv.LoadConfig{})
	require.NoError(t, err)
	require.Zero(t, n)
	require.Empty(t, collect(ctx, t, m))

	// What is absent is not created by reading or deleting it.
	found, err = m.GetMulti(ctx, k.key(1), k.key(2))
	require.NoError(t, err)
	require.Equal(t, map[K]V{}, found)
	require.NoError(t, m.Delete(ctx, k.key(1), k.key(2)))
	require.Empty(t, names(ctx, t, rdb, k.name))
}

func testAllMayStop[K hashkv.Key, V hashkv.Value](t *testing.T, k kind[K, V], _ *redis.Client, m table[K, V]) {
	ctx := t.Context()
	want := k.entries(0, 500)
	require.NoError(t, m.SetMulti(ctx, want))
	all, failed := m.All(ctx)
	for _, stop := range []int{1, 250, 500} {
		n := 0
		for range all {
			if n++; n == stop {
				break
			}
		}
		require.NoError(t, failed())
		require.Equal(t, stop, n)
	}
	requireEntries(t, want, maps.Collect(all))
	require.NoError(t, failed())

	ended, cancel := context.WithCancel(ctx)
	all, failed = m.All(ended)
	cancel()
	require.Empty(t, maps.Collect(all))
	require.ErrorIs(t, failed(), context.Canceled)
}

func testLoadStoresTheLast[K hashkv.Key, V hashkv.Value](t *testing.T, k kind[K, V], _ *redis.Client, m table[K, V]) {
	ctx := t.Context()
	const keys, times = 40, 5
	twice := func(yield func(K, V) bool) {
		for i := range int64(keys * times) {
			if !yield(k.key(i%keys), k.value(i)) {
				return
			}
		}
	}
	// Batches of 7 have a key once, of 90 twice or three times.
	for _, batch := range []int{7, 90, 0} {
		n, err := m.Load(ctx, twice, hashkv.LoadConfig{Batch: batch})
		require.NoError(t, err)
		require.EqualValues(t, keys*times, n)
		want := make(map[K]V)
		for i := range int64(keys) {
			want[k.key(i)] = k.value(i + keys*(times-1))
		}
		requireEntries(t, want, collect(ctx, t, m))
		require.NoError(t, m.Delete(ctx, keysOf(want)...))
	}
}

func testIsOneMap[K hashkv.Key, V hashkv.Value](t *testing.T, k kind[K, V], rdb *redis.Client, m table[K, V]) {
	ctx := t.Context()
	require.NoError(t, m.Open(ctx))
	require.NoError(t, m.Open(ctx))
	require.NoError(t, m.Set(ctx, k.key(1), k.value(1)))
	other := k.open(t, rdb)
	got, err := other.Get(ctx, k.key(1))
	require.NoError(t, err)
	require.Equal(t, k.value(1), got)
	require.NoError(t, other.Delete(ctx, k.key(1)))
	_, err = m.Get(ctx, k.key(1))
	require.ErrorIs(t, err, hashkv.ErrNotFound)
}

func testEndsWithContext[K hashkv.Key, V hashkv.Value](t *testing.T, k kind[K, V], _ *redis.Client, m table[K, V]) {
	require.NoError(t, m.Set(t.Context(), k.key(1), k.value(1)))
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	for _, c := range calls(ctx, k, m) {
		require.ErrorIs(t, c.err, context.Canceled, c.method)
	}
	got, err := m.Get(t.Context(), k.key(1)) // still usable, and unchanged
	require.NoError(t, err)
	require.Equal(t, k.value(1), got)
	_, err = m.Get(t.Context(), k.key(2))
	require.ErrorIs(t, err, hashkv.ErrNotFound)
}

func testUsedByMany[K hashkv.Key, V hashkv.Value](t *testing.T, k kind[K, V], _ *redis.Client, m table[K, V]) {
	ctx := t.Context()
	const workers, each = 8, 50
	var wg sync.WaitGroup
	errs := make([]error, workers)
	for w := range int64(workers) {
		wg.Go(func() {
			errs[w] = func() error {
				for i := w * each; i < (w+1)*each; i++ {
					if err := m.Set(ctx, k.key(i), k.value(i)); err != nil {
						return err
					}
					if got, err := m.Get(ctx, k.key(i)); err != nil || got != k.value(i) {
						return fmt.Errorf("entry %d: %v, %w", i, got, err)
					}
				}
				return m.Delete(ctx, k.key(w*each))
			}()
		})
	}
	wg.Wait()
	want := k.entries(0, workers*each)
	for w := range int64(workers) {
		require.NoError(t, errs[w])
		delete(want, k.key(w*each))
	}
	requireEntries(t, want, collect(ctx, t, m))
}

// A call is how one method ended.
type call struct {
	method string // "SetMulti"
	op     string // as errors name it: "set"
	writes bool
	err    error
}

// calls calls every method of m for entry 1, and SetNX for entry 2: an absent
// one, so that it has something to write.
func calls[K hashkv.Key, V hashkv.Value](ctx context.Context, k kind[K, V], m table[K, V]) []call {
	one := k.entries(1, 2)
	_, get := m.Get(ctx, k.key(1))
	_, getMulti := m.GetMulti(ctx, k.key(1))
	_, setNX := m.SetNX(ctx, k.key(2), k.value(2))
	_, load := m.Load(ctx, maps.All(one), hashkv.LoadConfig{})
	_, stats := m.Stats(ctx, hashkv.StatsConfig{})
	all, failed := m.All(ctx)
	for range all {
	}
	return []call{
		{"Get", "get", false, get},
		{"GetMulti", "get", false, getMulti},
		{"Set", "set", true, m.Set(ctx, k.key(1), k.value(1))},
		{"SetMulti", "set", true, m.SetMulti(ctx, one)},
		{"SetNX", "setnx", true, setNX},
		{"Delete", "delete", true, m.Delete(ctx, k.key(1))},
		{"Load", "load", true, load},
		{"All", "all", false, failed()},
		{"Stats", "stats", false, stats},
	}
}

// requireFailure checks that a call failed, says in which operation on what,
// once, and does not give away what is stored.
func requireFailure(t *testing.T, kind string, c call) {
	t.Helper()
	require.Error(t, c.err, c.method)
	text := c.err.Error()
	require.Regexp(t, `^hashkv: `+c.op+` `+kind+`(\[.*\].*)?: `, text, c.method)
	require.Equal(t, 1, strings.Count(text, "hashkv:"), "%s is wrapped twice: %s", c.method, text)
	require.NotContains(t, text, secretPrefix)
	require.NotContains(t, text, fmt.Sprint(secretNumber)[:4])
}
