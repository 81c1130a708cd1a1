package hashkv_test

import (
	"context"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"strconv"
	"strings"
	"testing"

	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	"github.com/shardgram/shardgram/hashkv"
	"github.com/shardgram/shardgram/internal/testserver"
)

// mapHeader is what a test wants to know of a header.
type mapHeader struct {
	Level, Tagged     int
	Growing, Sweeping bool
}

func readMapHeader(ctx context.Context, t require.TestingT, rdb *redis.Client, prefix string) mapHeader {
	text, err := rdb.Get(ctx, prefix+":header").Result()
	require.NoError(t, err)
	var h mapHeader
	require.NoError(t, json.Unmarshal([]byte(text), &h))
	return h
}

// buckets reads a map from Redis by nothing but the description of its layout:
// the fields of each bucket of the level in the header. Below that level there
// are tombstones only.
func buckets(ctx context.Context, t *testing.T, rdb *redis.Client, prefix string) (level int, all map[uint64]map[string]string) {
	t.Helper()
	h := readMapHeader(ctx, t, rdb, prefix)
	require.False(t, h.Growing || h.Sweeping)
	slots := make(map[string]uint64)
	for slot := range 1 << hashkv.SlotBits {
		slots[hashkv.Tag(slot)] = uint64(slot)
	}
	all = make(map[uint64]map[string]string)
	for _, name := range names(ctx, t, rdb, prefix) {
		tag, high, ok := strings.Cut(strings.TrimPrefix(name, prefix+":{"), "}")
		require.True(t, ok, name)
		slot, ok := slots[tag]
		require.True(t, ok, name)
		number, err := strconv.ParseUint(high, 16, 64)
		require.NoError(t, err)
		own := h.Tagged
		for one := uint64(1); one<<1 <= number; one <<= 1 {
			own++
		}
		if own < h.Level {
			require.Equal(t, "split", rdb.Get(ctx, name).Val())
			continue
		}
		require.Equal(t, h.Level, own, name)
		bucket := (number&^(1<<(own-h.Tagged)))<<h.Tagged | slot>>(hashkv.SlotBits-h.Tagged)
		fields, err := rdb.HGetAll(ctx, name).Result()
		require.NoError(t, err)
		require.NotEmpty(t, fields)
		all[bucket] = fields
	}
	return h.Level, all
}

func TestSparseLayout(t *testing.T) {
	t.Parallel()
	for _, live := range []uint64{1<<64 - 1, 0x7fff_ffff_ff80_7fff, 1<<20 - 1, 0xff00_00f0_0000_0fff} {
		t.Run(fmt.Sprintf("%#x", live), func(t *testing.T) {
			t.Parallel()
			ctx, rdb := t.Context(), testserver.Redis(t)
			m := openSparse[int64](t, rdb, hashkv.SparseConfig{Entries: 1, Live: live})
			r := rand.New(rand.NewPCG(live, 1))
			want := make(map[int64]int64)
			for range 1500 {
				want[int64(r.Uint64()&live)] = r.Int64() >> r.IntN(63)
			}
			require.NoError(t, m.SetMulti(ctx, want))
			for grown := range 3 {
				if grown > 0 {
					require.NoError(t, m.Grow(ctx, hashkv.GrowConfig{}))
				}
				level, all := buckets(ctx, t, rdb, "sparse")
				require.Equal(t, hashkv.MinLevel+grown, level)
				got := make(map[int64]int64)
				for bucket, fields := range all {
					for field, text := range fields {
						require.LessOrEqual(t, len(field), (hashkv.Width(live)-level+7)/8, "a field of more bytes than its bits take")
						rest, err := hashkv.Unpack(field)
						require.NoError(t, err)
						value, err := hashkv.Unpack(text)
						require.NoError(t, err)
						got[int64(hashkv.Stretch(live, hashkv.Join(bucket, rest, level)))] = int64(value)
					}
				}
				requireEntries(t, want, got)
			}
		})
	}
}

func TestStringsLayout(t *testing.T) {
	t.Parallel()
	ctx, rdb := t.Context(), testserver.Redis(t)
	m := stringsTextKind.open(t, rdb).(*hashkv.Strings[string])
	want := stringsTextKind.entries(0, 1500)
	require.NoError(t, m.SetMulti(ctx, want))
	for grown := range 3 {
		if grown > 0 {
			require.NoError(t, m.Grow(ctx, hashkv.GrowConfig{}))
		}
		level, all := buckets(ctx, t, rdb, "strings")
		require.Equal(t, hashkv.MinLevel+grown, level)
		got := make(map[string]string)
		for bucket, fields := range all {
			for field, value := range fields {
				require.Equal(t, hashkv.Hash(field)&(1<<level-1), bucket)
				got[field] = value
			}
		}
		requireEntries(t, want, got)
	}
}

// TestMapIsPlannedForItsEntries: the docs promise buckets of 91 to 181 entries.
func TestMapIsPlannedForItsEntries(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	for _, entries := range []int64{1, 256 * 91, 100_000, 181 * 1024, 0, 300_000_000, 5_000_000_000} {
		m := openSparse[int64](t, testserver.Redis(t), hashkv.SparseConfig{Entries: entries})
		stats, err := m.Stats(ctx, hashkv.StatsConfig{Sample: 10})
		require.NoError(t, err)
		if entries == 0 {
			entries = 1_000_000
		}
		require.LessOrEqual(t, entries/stats.Buckets, int64(181), "%d entries", entries)
		if stats.Buckets > 256 {
			require.GreaterOrEqual(t, entries/stats.Buckets, int64(90), "%d entries", entries)
		}
	}
}

// TestMapCosts counts round trips and commands, as the docs do.
func TestMapCosts(t *testing.T) {
	t.Parallel()
	ctx, rdb := t.Context(), testserver.Redis(t)
	m := openSparse[int64](t, rdb, hashkv.SparseConfig{Entries: 1})
	all := sparseKind.entries(0, 2000) // in 256 buckets
	for _, grown := range []bool{false, true} {
		if grown {
			require.NoError(t, m.Grow(ctx, hashkv.GrowConfig{}))
		}
		buckets := 256
		if grown {
			buckets = 512
		}
		for _, c := range []struct {
			name string
			do   func() error
			most int // commands
		}{
			{"Set", func() error { return m.Set(ctx, 9, 1) }, 1},
			{"Get", func() error { _, err := m.Get(ctx, 9); return err }, 1},
			{"SetNX", func() error { _, err := m.SetNX(ctx, 10, 1); return err }, 1},
			{"Delete", func() error { return m.Delete(ctx, 9) }, 1},
			{"SetMulti", func() error { return m.SetMulti(ctx, all) }, buckets},
			{"GetMulti", func() error { _, err := m.GetMulti(ctx, keysOf(all)...); return err }, buckets},
			{"DeleteMulti", func() error { return m.Delete(ctx, keysOf(all)...) }, buckets},
		} {
			require.NoError(t, m.Open(ctx)) // so that the header is not read meanwhile
			w := watch(rdb)
			require.NoError(t, c.do(), c.name)
			require.Equal(t, 1, w.trips, "%s: %v", c.name, w.sent)
			sum := 0
			for _, n := range w.sent {
				sum += n
			}
			require.LessOrEqual(t, sum, c.most, "%s: %v", c.name, w.sent)
		}
	}
}

// TestStaleHandleFindsItsWay: a handle that knows of none of two Grows costs
// more round trips, but reads and writes what others do.
func TestStaleHandleFindsItsWay(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	first, second := clients(t)
	for i, do := range []func(stale *hashkv.Sparse[int64]) error{
		func(stale *hashkv.Sparse[int64]) error {
			if _, err := stale.Get(ctx, 7); err != nil {
				return err
			}
			return stale.Set(ctx, 9, 1)
		},
		func(stale *hashkv.Sparse[int64]) error {
			if got, err := stale.GetMulti(ctx, 7, 8); err != nil || len(got) != 2 {
				return fmt.Errorf("%v, %w", got, err)
			}
			return stale.Set(ctx, 9, 1)
		},
		func(stale *hashkv.Sparse[int64]) error { return stale.Set(ctx, 9, 1) },
		func(stale *hashkv.Sparse[int64]) error { return stale.SetMulti(ctx, map[int64]int64{9: 1}) },
		func(stale *hashkv.Sparse[int64]) error { _, err := stale.SetNX(ctx, 9, 1); return err },
		func(stale *hashkv.Sparse[int64]) error {
			_, err := stale.Load(ctx, func(yield func(int64, int64) bool) { yield(9, 1) }, hashkv.LoadConfig{})
			return err
		},
	} {
		cfg := hashkv.SparseConfig{Prefix: fmt.Sprintf("map%d", i), Entries: 1}
		m, stale := openSparse[int64](t, first, cfg), openSparse[int64](t, second, cfg)
		require.NoError(t, m.SetMulti(ctx, map[int64]int64{7: 7, 8: 8}))
		require.NoError(t, stale.Open(ctx))
		require.NoError(t, m.Grow(ctx, hashkv.GrowConfig{}))
		require.NoError(t, m.Grow(ctx, hashkv.GrowConfig{}))

		require.NoError(t, do(stale))
		w := watch(second)
		got, err := stale.GetMulti(ctx, 7, 8, 9)
		require.NoError(t, err)
		require.Equal(t, map[int64]int64{7: 7, 8: 8, 9: 1}, got)
		require.Equal(t, 1, w.trips, "it has learnt nothing: %v", w.sent)
		require.NoError(t, stale.Delete(ctx, 8))
		requireEntries(t, map[int64]int64{7: 7, 9: 1}, collect(ctx, t, m))
	}
}
