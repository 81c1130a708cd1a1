package idgen_test

import (
	"context"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"github.com/shardgram/shardgram/idgen"
	"github.com/shardgram/shardgram/internal/testserver"
)

func TestMain(m *testing.M) { testserver.Main(m, testserver.NeedPostgres) }

// clock is a hand-set clock in milliseconds after the default epoch.
type clock struct{ ms atomic.Int64 }

func (c *clock) now() time.Time {
	return idgen.Default.Epoch.Add(time.Duration(c.ms.Load()) * time.Millisecond)
}

func newGenerator(t require.TestingT, shard int, cfg idgen.Config) *idgen.Generator {
	g, err := idgen.New(shard, cfg)
	require.NoError(t, err)
	return g
}

func TestNextCarriesTimeAndShard(t *testing.T) {
	t.Parallel()
	before := time.Now().Truncate(time.Millisecond)
	id, err := newGenerator(t, 8191, idgen.Config{}).Next(t.Context())
	require.NoError(t, err)
	require.Equal(t, 8191, idgen.Default.Shard(id))
	require.False(t, idgen.Default.Time(id).Before(before))
	require.False(t, idgen.Default.Time(id).After(time.Now()))
}

func TestNextNeverRepeatsAndIncreasesPerGoroutine(t *testing.T) {
	t.Parallel()
	const goroutines, each = 16, 4000
	g := newGenerator(t, 7, idgen.Config{})
	got := make([][]idgen.ID, goroutines)
	errs := make([]error, goroutines)
	var wg sync.WaitGroup
	for i := range goroutines {
		wg.Go(func() {
			for range each {
				id, err := g.Next(context.Background())
				if err != nil {
					errs[i] = err
					return
				}
				got[i] = append(got[i], id)
			}
		})
	}
	wg.Wait()
	seen := make(map[idgen.ID]bool, goroutines*each)
	for i, ids := range got {
		require.NoError(t, errs[i])
		require.True(t, slices.IsSorted(ids))
		for _, id := range ids {
			require.False(t, seen[id], "%d was made twice", id)
			seen[id] = true
		}
	}
	require.Len(t, seen, goroutines*each)
}

// TestNextIncreasesUnderAnyClock moves the clock by any step between IDs.
func TestNextIncreasesUnderAnyClock(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		var c clock
		c.ms.Store(1 << 30)
		// A full millisecond would wait for a clock that stands still.
		g := newGenerator(t, 5, idgen.Config{Now: c.now, MaxBack: time.Minute})
		var last idgen.ID
		var newest int64 // milliseconds of the last ID
		for range rapid.IntRange(1, 200).Draw(t, "ids") {
			now := c.ms.Add(rapid.Int64Range(-90_000, 90_000).Draw(t, "step"))
			id, err := g.Next(context.Background())
			if newest-now > time.Minute.Milliseconds() {
				require.ErrorIs(t, err, idgen.ErrClockBack)
				continue
			}
			require.NoError(t, err)
			require.Greater(t, id, last)
			require.Equal(t, 5, idgen.Default.Shard(id))
			last, newest = id, max(newest, now)
		}
	})
}

func TestNextWaitsForTheNextMillisecond(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		// The clock of the bubble starts in the year 2000.
		layout := idgen.Default
		layout.Epoch = time.Now()
		g := newGenerator(t, 1, idgen.Config{Layout: layout})
		time.Sleep(1500 * time.Microsecond)
		first, err := g.Next(t.Context())
		require.NoError(t, err)
		left := 1023 - layout.Sequence(first)
		for range left {
			_, err := g.Next(t.Context())
			require.NoError(t, err)
		}
		require.Equal(t, 1500*time.Microsecond, time.Since(layout.Epoch))
		next, err := g.Next(t.Context())
		require.NoError(t, err)
		require.Equal(t, 2*time.Millisecond, time.Since(layout.Epoch), "waits to the millisecond and no longer")
		require.Equal(t, layout.Time(first).Add(time.Millisecond), layout.Time(next))
	})
}

// TestNextKeepsItsRateBehindAStep sets the clock back once and asks for more
// IDs than the last millisecond has.
func TestNextKeepsItsRateBehindAStep(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		layout := idgen.Default
		layout.Epoch = time.Now()
		var back time.Duration
		g := newGenerator(t, 1, idgen.Config{Layout: layout, Now: func() time.Time { return time.Now().Add(-back) }})
		time.Sleep(time.Second)
		last := newID(t, g)
		back = 300 * time.Millisecond
		const ms = 20
		begin := time.Now()
		for range ms * 1024 {
			id := newID(t, g)
			require.Greater(t, id, last)
			last = id
		}
		require.InDelta(t, ms, time.Since(begin).Milliseconds(), 1, "1,024 per millisecond, and no wait for the step")
		require.InDelta(t, 1000+ms, layout.Time(last).Sub(layout.Epoch).Milliseconds(), 1)
	})
}

func TestNextEndsWithItsContext(t *testing.T) {
	t.Parallel()
	var c clock
	c.ms.Store(5)
	g := newGenerator(t, 1, idgen.Config{Now: c.now})
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	for range 1024 {
		if _, err := g.Next(ctx); err != nil {
			require.ErrorIs(t, err, context.Canceled)
			break
		}
	}
	_, err := g.Next(ctx)
	require.ErrorIs(t, err, context.Canceled)
	c.ms.Store(6)
	_, err = g.Next(ctx)
	require.NoError(t, err, "no wait, no error")
}

func TestNextIsNeverZero(t *testing.T) {
	t.Parallel()
	var c clock // at the epoch
	require.Positive(t, newID(t, newGenerator(t, 0, idgen.Config{Now: c.now})))
}

func TestNextGoesOnAboveAfter(t *testing.T) {
	t.Parallel()
	var c clock
	c.ms.Store(1_000_000)
	last := newID(t, newGenerator(t, 3, idgen.Config{Now: c.now}))
	c.ms.Add(-500) // the clock was set back while the program was down
	g := newGenerator(t, 3, idgen.Config{Now: c.now, After: last})
	require.Greater(t, newID(t, g), last)
	c.ms.Add(-600)
	_, err := g.Next(t.Context())
	require.ErrorIs(t, err, idgen.ErrClockBack)
}

// TestNextIsUniformAtLowRates looks at the low bits of IDs that are seldom
// made: a program that takes id % n must not fill one part of n alone.
func TestNextIsUniformAtLowRates(t *testing.T) {
	t.Parallel()
	var c clock
	g := newGenerator(t, 9, idgen.Config{Now: c.now})
	var parts [64]int
	for range 6400 {
		c.ms.Add(17)
		parts[newID(t, g)%64]++
	}
	for part, n := range parts {
		require.Equal(t, 100, n, "id %% 64 == %d", part)
	}
}

func TestNextRefusesWhenTheLayoutRunsOut(t *testing.T) {
	t.Parallel()
	var c clock
	g := newGenerator(t, 0, idgen.Config{Now: c.now})
	c.ms.Store(1<<40 - 1)
	last := newID(t, g)
	require.Positive(t, last)
	c.ms.Store(1 << 40)
	_, err := g.Next(t.Context())
	require.ErrorIs(t, err, idgen.ErrRunOut)
	c.ms.Store(-1)
	_, err = newGenerator(t, 0, idgen.Config{Now: c.now}).Next(t.Context())
	require.ErrorIs(t, err, idgen.ErrRunOut)
	require.Equal(t, "2060-11-03", idgen.Default.RunsOut().Format(time.DateOnly))
	require.Equal(t, "2046-06-27T17:00:49.497Z", idgen.Instagram.RunsOut().Format(time.RFC3339Nano))
}

func TestNewRefusesBadConfig(t *testing.T) {
	t.Parallel()
	layout := func(time, shard, sequence int, epoch time.Time) idgen.Layout {
		return idgen.Layout{TimeBits: time, ShardBits: shard, SequenceBits: sequence, Epoch: epoch}
	}
	epoch := idgen.Default.Epoch
	for _, test := range []struct {
		name  string
		shard int
		cfg   idgen.Config
	}{
		{"NegativeShard", -1, idgen.Config{}},
		{"ShardAboveItsBits", 8192, idgen.Config{}},
		{"TooFewBits", 0, idgen.Config{Layout: layout(41, 13, 9, epoch)}},
		{"TooManyBits", 0, idgen.Config{Layout: layout(41, 14, 10, epoch)}},
		{"ShortTime", 0, idgen.Config{Layout: layout(31, 23, 10, epoch)}},
		{"ShortSequence", 0, idgen.Config{Layout: layout(46, 13, 5, epoch)}},
		{"NegativeBits", 0, idgen.Config{Layout: layout(58, -4, 10, epoch)}},
		{"NoEpoch", 0, idgen.Config{Layout: layout(41, 13, 10, time.Time{})}},
		{"EpochBetweenMilliseconds", 0, idgen.Config{Layout: layout(41, 13, 10, epoch.Add(1))}},
		{"NegativeAfter", 0, idgen.Config{After: -1}},
		{"AfterOfAnotherShard", 0, idgen.Config{After: 1 << 10}},
		{"NegativeMaxBack", 0, idgen.Config{MaxBack: -1}},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			_, err := idgen.New(test.shard, test.cfg)
			require.Error(t, err)
		})
	}
}

func TestNextDoesNotAllocate(t *testing.T) {
	var c clock
	c.ms.Store(1)
	g := newGenerator(t, 0, idgen.Config{Now: c.now})
	require.Zero(t, testing.AllocsPerRun(1000, func() {
		c.ms.Add(1)
		_, _ = g.Next(context.Background())
	}))
}

func newID(t *testing.T, g *idgen.Generator) idgen.ID {
	id, err := g.Next(t.Context())
	require.NoError(t, err)
	return id
}
