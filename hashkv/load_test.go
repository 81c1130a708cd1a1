package hashkv_test

import (
	"context"
	"errors"
	"iter"
	"maps"
	"testing"

	"github.com/redis/go-redis/v9"
	"github.com/shardgram/shardgram/hashkv"
	"github.com/shardgram/shardgram/internal/testserver"
	"github.com/stretchr/testify/require"
)

// loaders returns one empty map of each kind.
func loaders(t *testing.T, rdb *redis.Client) map[string]table[int64, int64] {
	t.Helper()
	sparse, err := hashkv.NewSparse[int64](rdb, hashkv.SparseConfig{Prefix: "s", Entries: 1, ValueBits: 24})
	require.NoError(t, err)
	dense, err := hashkv.NewDense(rdb, hashkv.DenseConfig{Prefix: "d", Keys: 20_000})
	require.NoError(t, err)
	return map[string]table[int64, int64]{"Sparse": sparse, "Dense": dense}
}

// eachLoader runs a test on an empty map of each kind.
func eachLoader(t *testing.T, test func(t *testing.T, rdb *redis.Client, m table[int64, int64])) {
	t.Helper()
	t.Parallel()
	for _, name := range []string{"Sparse", "Dense"} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			rdb := testserver.Redis(t)
			test(t, rdb, loaders(t, rdb)[name])
		})
	}
}

// counted is the entries i → 2i of the numbers from first to before last.
func counted(first, last int64) iter.Seq2[int64, int64] {
	return func(yield func(int64, int64) bool) {
		for i := first; i < last; i++ {
			if !yield(i, 2*i) {
				return
			}
		}
	}
}

// requireAll checks what a map holds.
func requireAll(t *testing.T, m table[int64, int64], want map[int64]int64) {
	t.Helper()
	entries, failed := m.All(t.Context())
	require.Equal(t, want, maps.Collect(entries))
	require.NoError(t, failed())
}

func TestLoadInBatches(t *testing.T) {
	eachLoader(t, func(t *testing.T, _ *redis.Client, m table[int64, int64]) {
		var progress []int64
		cfg := hashkv.LoadConfig{Batch: 300, Progress: func(done int64) { progress = append(progress, done) }}
		n, err := m.Load(t.Context(), counted(0, 0), cfg)
		require.NoError(t, err)
		require.Zero(t, n)
		require.Empty(t, progress)
		n, err = m.Load(t.Context(), counted(0, 1000), cfg)
		require.NoError(t, err)
		require.EqualValues(t, 1000, n)
		require.Equal(t, []int64{300, 600, 900, 1000}, progress)
		n, err = m.Load(t.Context(), counted(1000, 1900), cfg) // whole batches only
		require.NoError(t, err)
		require.EqualValues(t, 900, n)
		require.Equal(t, []int64{300, 600, 900}, progress[4:])
		requireAll(t, m, maps.Collect(counted(0, 1900)))
	})
}

func TestLoadKeepsTheLastOfAKey(t *testing.T) {
	eachLoader(t, func(t *testing.T, _ *redis.Client, m table[int64, int64]) {
		for _, batch := range []int{1, 7, 1000, 100_000} {
			want := make(map[int64]int64)
			n, err := m.Load(t.Context(), func(yield func(int64, int64) bool) {
				for i := range int64(3000) { // 10 keys, each 300 times: more than one command brings
					want[i%10] = i
					if !yield(i%10, i) {
						return
					}
				}
			}, hashkv.LoadConfig{Batch: batch})
			require.NoError(t, err)
			require.EqualValues(t, 3000, n)
			requireAll(t, m, want)
		}
	})
}

func TestLoadStopsAtABadEntry(t *testing.T) {
	eachLoader(t, func(t *testing.T, _ *redis.Client, m table[int64, int64]) {
		for name, bad := range map[string]int64{"negative": -1, "too large": 1 << 24} {
			require.NoError(t, m.Delete(t.Context(), collectKeys(counted(0, 1000))...))
			ended := false
			n, err := m.Load(t.Context(), func(yield func(int64, int64) bool) {
				for i := range int64(1000) {
					value := 2 * i
					if i == 750 {
						value = bad
					}
					if !yield(i, value) {
						ended = true
						return
					}
				}
			}, hashkv.LoadConfig{Batch: 100})
			_, ok := errors.AsType[*hashkv.RangeError](err)
			require.True(t, ok, "%s: %v", name, err)
			require.EqualValues(t, 700, n)
			require.True(t, ended, "the source is told to stop")
			requireAll(t, m, maps.Collect(counted(0, 700))) // and nothing of the bad batch
			more, err := m.Load(t.Context(), counted(n, 1000), hashkv.LoadConfig{Batch: 100})
			require.NoError(t, err)
			require.EqualValues(t, 300, more)
			requireAll(t, m, maps.Collect(counted(0, 1000)))
		}
	})
}

func collectKeys(entries iter.Seq2[int64, int64]) []int64 {
	var keys []int64
	for key := range entries {
		keys = append(keys, key)
	}
	return keys
}

func TestLoadResumes(t *testing.T) {
	eachLoader(t, func(t *testing.T, rdb *redis.Client, m table[int64, int64]) {
		require.NoError(t, m.Open(t.Context()))
		// The fourth batch does not get through.
		cut := errors.New("cut off")
		fail := &failing{err: cut}
		rdb.AddHook(fail)
		n, err := m.Load(t.Context(), counted(0, 2000), hashkv.LoadConfig{Batch: 250, Progress: func(done int64) {
			fail.on = done == 750
		}})
		require.ErrorIs(t, err, cut)
		partial, ok := errors.AsType[*hashkv.PartialError[int64]](err)
		require.True(t, ok)
		require.Len(t, partial.Failed, 250)
		require.EqualValues(t, 750, n)
		fail.on = false
		requireAll(t, m, maps.Collect(counted(0, 750)))
		more, err := m.Load(t.Context(), counted(n, 2000), hashkv.LoadConfig{Batch: 250})
		require.NoError(t, err)
		require.EqualValues(t, 1250, more)
		requireAll(t, m, maps.Collect(counted(0, 2000)))
	})
}

// failing lets no pipeline through while it is on.
type failing struct {
	on  bool
	err error
}

func (f *failing) DialHook(next redis.DialHook) redis.DialHook          { return next }
func (f *failing) ProcessHook(next redis.ProcessHook) redis.ProcessHook { return next }
func (f *failing) ProcessPipelineHook(next redis.ProcessPipelineHook) redis.ProcessPipelineHook {
	return func(ctx context.Context, cmds []redis.Cmder) error {
		if !f.on {
			return next(ctx, cmds)
		}
		for _, cmd := range cmds {
			cmd.SetErr(f.err)
		}
		return f.err
	}
}

func TestLoadEndsWithItsContext(t *testing.T) {
	eachLoader(t, func(t *testing.T, _ *redis.Client, m table[int64, int64]) {
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		given := int64(0)
		n, err := m.Load(ctx, func(yield func(int64, int64) bool) {
			for ; yield(given%10_000, 1); given++ { // without end
			}
		}, hashkv.LoadConfig{Batch: 100, Progress: func(done int64) {
			if done == 500 {
				cancel()
			}
		}})
		require.ErrorIs(t, err, context.Canceled)
		require.EqualValues(t, 500, n)
		require.LessOrEqual(t, given, int64(600))
		requireAll(t, m, constant(500, 1))
	})
}

func constant(n, value int64) map[int64]int64 {
	all := make(map[int64]int64)
	for i := range n {
		all[i] = value
	}
	return all
}

func TestLoadWantsReplicas(t *testing.T) {
	eachLoader(t, func(t *testing.T, _ *redis.Client, m table[int64, int64]) {
		ctx, cancel := context.WithCancel(t.Context())
		_, err := m.Load(ctx, counted(0, 10), hashkv.LoadConfig{Replicas: -1})
		require.ErrorContains(t, err, "LoadConfig.Replicas is -1")
		_, err = m.Load(ctx, counted(0, 10), hashkv.LoadConfig{Batch: -1})
		require.ErrorContains(t, err, "LoadConfig.Batch is -1")
		cancel()
		_, err = m.Load(ctx, counted(0, 10), hashkv.LoadConfig{Replicas: 1})
		require.ErrorIs(t, err, context.Canceled)
	})
}
