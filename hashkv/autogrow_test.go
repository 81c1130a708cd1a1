package hashkv_test

import (
	"context"
	"errors"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/shardgram/shardgram/hashkv"
	"github.com/stretchr/testify/require"
)

// pipelines counts the pipelines of a client that have such a command.
type pipelines struct {
	command string
	n       atomic.Int64
}

func (p *pipelines) DialHook(next redis.DialHook) redis.DialHook          { return next }
func (p *pipelines) ProcessHook(next redis.ProcessHook) redis.ProcessHook { return next }
func (p *pipelines) ProcessPipelineHook(next redis.ProcessPipelineHook) redis.ProcessPipelineHook {
	return func(ctx context.Context, cmds []redis.Cmder) error {
		err := next(ctx, cmds)
		if slices.ContainsFunc(cmds, func(cmd redis.Cmder) bool { return cmd.Name() == p.command }) {
			p.n.Add(1)
		}
		return err
	}
}

func TestAutoGrow(t *testing.T) {
	t.Parallel()
	rdb, maps := growers(t, 3)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	var wg sync.WaitGroup
	failed := make([]error, 2)
	for i := range failed { // two processes
		wg.Go(func() {
			failed[i] = maps[i].AutoGrow(ctx, hashkv.AutoGrowConfig{Fill: 10, Every: 5 * time.Millisecond})
		})
	}
	// 8, 16 and 32 entries in each of 256 buckets: the last two want twice and
	// four times the buckets.
	o := newOracle(32*256, maps[2])
	o.fill(t)
	settled := func(level int) func() bool {
		return func() bool {
			h := readHeader(t, rdb, "g")
			return h.Level >= level && !h.Growing && !h.Sweeping
		}
	}
	await(t, settled(10))
	watch := &pipelines{command: "hlen"}
	looker := sameRedis(t, rdb)
	looker.AddHook(watch)
	third := sparse(t, looker)
	wg.Go(func() { _ = third.AutoGrow(ctx, hashkv.AutoGrowConfig{Fill: 10, Every: 5 * time.Millisecond}) })
	await(t, func() bool { return watch.n.Load() >= 20 })
	requireGrown(t, rdb, 10)
	o.check(t)
	cancel()
	wg.Wait()
	for _, err := range failed {
		require.ErrorIs(t, err, context.Canceled)
	}
}

// TestAutoGrowBehindAnother has one process find the map too full by what it
// knows, when another has just doubled it.
func TestAutoGrowBehindAnother(t *testing.T) {
	t.Parallel()
	rdb, maps := growers(t, 1)
	o := newOracle(15*256, maps[0])
	o.fill(t)
	for _, when := range []string{"Before", "While"} { // it read the header last
		slow := sameRedis(t, rdb)
		watch := &pipelines{command: "hlen"}
		slow.AddHook(watch)
		m := sparse(t, slow)
		level := readHeader(t, rdb, "g").Level
		cfg := hashkv.GrowConfig{}
		if when == "While" {
			cfg.Progress = func(done, _ int64) {
				if done == 64 {
					_ = m.Open(t.Context()) // sees that the map grows
				}
			}
		}
		require.NoError(t, maps[0].Grow(t.Context(), cfg))
		m.Rejuvenate()
		ctx, cancel := context.WithCancel(t.Context())
		var wg sync.WaitGroup
		fill := 15*256/float64(int(1)<<level) - 2
		wg.Go(func() { _ = m.AutoGrow(ctx, hashkv.AutoGrowConfig{Fill: fill, Every: time.Millisecond}) })
		goal := watch.n.Load() + 5
		await(t, func() bool { return watch.n.Load() >= goal })
		cancel()
		wg.Wait()
		requireGrown(t, rdb, level+1)
	}
}

func TestAutoGrowWarns(t *testing.T) {
	t.Parallel()
	rdb, maps := growers(t, 1)
	newOracle(5*256, maps[0]).fill(t)
	frail := sameRedis(t, rdb)
	died := errors.New("died")
	var warned atomic.Pointer[error]
	m, err := hashkv.NewSparse[int64](frail, hashkv.SparseConfig{Prefix: "g", Warn: func(err error) { warned.Store(&err) }})
	require.NoError(t, err)
	before(frail, 1, "eval", func() error { return died })
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	var wg sync.WaitGroup
	wg.Go(func() { _ = m.AutoGrow(ctx, hashkv.AutoGrowConfig{Fill: 4, Every: time.Millisecond}) })
	await(t, func() bool { h := readHeader(t, rdb, "g"); return h.Level == 9 && !h.Growing && !h.Sweeping })
	cancel()
	wg.Wait()
	require.ErrorIs(t, *warned.Load(), died)
	require.ErrorContains(t, *warned.Load(), "hashkv: grow g: died")
}
