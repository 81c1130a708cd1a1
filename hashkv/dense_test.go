package hashkv_test

import (
	"context"
	"fmt"
	"maps"
	"math"
	"math/big"
	"math/rand/v2"
	"strings"
	"testing"

	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	"github.com/shardgram/shardgram/hashkv"
	"github.com/shardgram/shardgram/internal/testserver"
)

// A wire counts what a client sends, but not what a new connection begins with.
type wire struct {
	trips int            // commands alone and pipelines
	sent  map[string]int // commands by name
}

// watch counts from now on what a client sends.
func watch(rdb *redis.Client) *wire {
	w := &wire{sent: make(map[string]int)}
	rdb.AddHook(w)
	return w
}

func (w *wire) count(cmds ...redis.Cmder) {
	for _, cmd := range cmds {
		switch cmd.Name() {
		case "hello", "client", "select":
			return
		}
		w.sent[cmd.Name()]++
	}
	w.trips++
}

func (w *wire) DialHook(next redis.DialHook) redis.DialHook { return next }

func (w *wire) ProcessHook(next redis.ProcessHook) redis.ProcessHook {
	return func(ctx context.Context, cmd redis.Cmder) error {
		w.count(cmd)
		return next(ctx, cmd)
	}
}

func (w *wire) ProcessPipelineHook(next redis.ProcessPipelineHook) redis.ProcessPipelineHook {
	return func(ctx context.Context, cmds []redis.Cmder) error {
		w.count(cmds...)
		return next(ctx, cmds)
	}
}

// denseText is what a Dense has to store in a string: one long number, of
// binary digits from the first slot to the last.
func denseText(entries map[int64]int64, first, slots int64, width int) string {
	var digits strings.Builder
	for key := first; key < first+slots; key++ {
		var stored uint64
		if value, ok := entries[key]; ok {
			stored = uint64(value) + 1
		}
		fmt.Fprintf(&digits, "%0*b", width, stored)
	}
	number, _ := new(big.Int).SetString(digits.String(), 2)
	return string(number.FillBytes(make([]byte, int(slots)*width/8)))
}

// TestDenseLayout: in whatever way entries are stored, a string ends as the
// package comment has it.
func TestDenseLayout(t *testing.T) {
	t.Parallel()
	for _, bits := range []int{1, 7, 8, 23, 24, 32, 62, 63} {
		t.Run(fmt.Sprintf("%dBits", bits), func(t *testing.T) {
			t.Parallel()
			ctx, rdb := t.Context(), testserver.Redis(t)
			slots := int64(8186 / (bits + 1) * 8)
			m := openDense(t, rdb, hashkv.DenseConfig{ValueBits: bits, Keys: 3 * slots})
			r := rand.New(rand.NewPCG(1, uint64(bits)))
			most := int64(math.MaxInt64) >> (63 - bits)
			value := func() int64 { return rand.N(most) + r.Int64N(2) } // also the largest

			want := make(map[int64]int64)
			for key := range slots { // in one piece
				want[key] = value()
			}
			require.NoError(t, m.SetMulti(ctx, want))
			for range 300 { // here and there
				key, value := r.Int64N(3*slots), value()
				require.NoError(t, m.Set(ctx, key, value))
				want[key] = value
			}
			want[0], want[slots-1], want[slots] = most, most, 0
			require.NoError(t, m.SetMulti(ctx, map[int64]int64{0: most, slots - 1: most, slots: 0}))
			for range 100 {
				key, value := r.Int64N(3*slots), value()
				if done, err := m.SetNX(ctx, key, value); done {
					require.NoError(t, err)
					want[key] = value
				}
			}
			for range 100 {
				key := r.Int64N(3 * slots)
				require.NoError(t, m.Delete(ctx, key))
				delete(want, key)
			}
			for number := range int64(3) {
				stored, err := rdb.Get(ctx, fmt.Sprintf("dense:%d", number)).Result()
				require.NoError(t, err)
				require.True(t, denseText(want, number*slots, slots, bits+1) == stored, "string %d", number)
			}
			requireEntries(t, want, collect(ctx, t, m))
		})
	}
}

// TestDenseLayoutIsFixed: a change here would lose every entry of every stored
// map.
func TestDenseLayoutIsFixed(t *testing.T) {
	t.Parallel()
	ctx, rdb := t.Context(), testserver.Redis(t)
	m := openDense(t, rdb, hashkv.DenseConfig{Keys: 10_000})
	require.NoError(t, m.SetMulti(ctx, map[int64]int64{0: 0, 1: 1<<24 - 1, 2616: 7}))
	require.Len(t, names(ctx, t, rdb, "dense"), 2)
	first := rdb.Get(ctx, "dense:0").Val()
	require.Len(t, first, 8175) // 2616 slots of 25 bits
	// 0 0000 0000 0000 0000 0000 0001 | 1 0000 0000 0000 0000 0000 0000 | 0...
	require.Equal(t, "\x00\x00\x00\xc0\x00\x00\x00"+strings.Repeat("\x00", 8168), first)
	require.Equal(t, "\x00\x00\x04"+strings.Repeat("\x00", 8172), rdb.Get(ctx, "dense:1").Val())
}

func TestDenseAllIsInOrder(t *testing.T) {
	t.Parallel()
	ctx, rdb := t.Context(), testserver.Redis(t)
	m := openDense(t, rdb, hashkv.DenseConfig{Keys: 3_000_000}) // more strings than one pipeline brings
	want := map[int64]int64{0: 5, 2_999_999: 6}
	for i := range int64(200) {
		want[i*14_983] = i
	}
	require.NoError(t, m.SetMulti(ctx, want))
	last := int64(-1)
	all, failed := m.All(ctx)
	got := make(map[int64]int64)
	for key, value := range all {
		require.Greater(t, key, last)
		last, got[key] = key, value
	}
	require.NoError(t, failed())
	requireEntries(t, want, got)
}

// TestDenseCosts counts round trips and commands, as the docs do.
func TestDenseCosts(t *testing.T) {
	t.Parallel()
	ctx, rdb := t.Context(), testserver.Redis(t)
	m := openDense(t, rdb, hashkv.DenseConfig{Keys: 60_000})
	require.NoError(t, m.Open(ctx))
	_, err := m.SetNX(ctx, 0, 1) // brings the script
	require.NoError(t, err)
	row := make(map[int64]int64) // 2 strings and a little
	for key := range int64(2*2616 + 5) {
		row[key] = key
	}
	apart := make(map[int64]int64)
	for i := range int64(100) {
		apart[i*500] = i // 20 strings
	}
	for _, c := range []struct {
		name  string
		do    func() error
		trips int
		most  int // commands
	}{
		{"Set", func() error { return m.Set(ctx, 9, 1) }, 1, 1},
		{"Get", func() error { _, err := m.Get(ctx, 9); return err }, 1, 1},
		{"SetNX", func() error { _, err := m.SetNX(ctx, 10, 1); return err }, 1, 1},
		{"Delete", func() error { return m.Delete(ctx, 9, 10) }, 2, 3},
		{"SetMultiInARow", func() error { return m.SetMulti(ctx, row) }, 1, 6},
		{"GetMultiInARow", func() error { _, err := m.GetMulti(ctx, keysOf(row)...); return err }, 1, 3},
		{"SetMultiApart", func() error { return m.SetMulti(ctx, apart) }, 1, 40},
		{"GetMultiApart", func() error { _, err := m.GetMulti(ctx, keysOf(apart)...); return err }, 1, 100},
		{"DeleteInARow", func() error { return m.Delete(ctx, keysOf(row)...) }, 2, 17},
	} {
		require.NoError(t, m.Open(ctx)) // so that the header is not read meanwhile
		w := watch(rdb)
		require.NoError(t, c.do(), c.name)
		require.Equal(t, c.trips, w.trips, "%s: %v", c.name, w.sent)
		sum := 0
		for _, n := range w.sent {
			sum += n
		}
		require.LessOrEqual(t, sum, c.most, "%s: %v", c.name, w.sent)
	}
}

// TestDenseKeysMayChange: the bound is not part of what is stored.
func TestDenseKeysMayChange(t *testing.T) {
	t.Parallel()
	ctx, rdb := t.Context(), testserver.Redis(t)
	require.NoError(t, openDense(t, rdb, hashkv.DenseConfig{Keys: 100}).Set(ctx, 99, 1))
	wide := openDense(t, rdb, hashkv.DenseConfig{Keys: math.MaxInt64})
	require.NoError(t, wide.Set(ctx, math.MaxInt64-1, 2))
	got, err := wide.GetMulti(ctx, 99, math.MaxInt64-1)
	require.NoError(t, err)
	require.Equal(t, map[int64]int64{99: 1, math.MaxInt64 - 1: 2}, got)
	narrow := openDense(t, rdb, hashkv.DenseConfig{Keys: 100})
	all, failed := narrow.All(ctx)
	require.Equal(t, map[int64]int64{99: 1}, maps.Collect(all))
	require.NoError(t, failed())
}

// TestDenseIsFilledInAnyOrder: a string that grew slot by slot would have spare
// room of up to its own size.
func TestDenseIsFilledInAnyOrder(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	for _, c := range []struct {
		name string
		set  func(m *hashkv.Dense, key int64) error
	}{
		{"Set", func(m *hashkv.Dense, key int64) error { return m.Set(ctx, key, key) }},
		{"SetNX", func(m *hashkv.Dense, key int64) error { _, err := m.SetNX(ctx, key, key); return err }},
		{"SetMulti", func(m *hashkv.Dense, key int64) error { return m.SetMulti(ctx, map[int64]int64{key: key}) }},
	} {
		rdb := testserver.Redis(t)
		m := openDense(t, rdb, hashkv.DenseConfig{})
		for i := range int64(2616) {
			require.NoError(t, c.set(m, i*1013%2616))
		}
		bytes, err := rdb.MemoryUsage(ctx, "dense:0").Result()
		require.NoError(t, err)
		require.Less(t, bytes, int64(8300), c.name)
	}
}
