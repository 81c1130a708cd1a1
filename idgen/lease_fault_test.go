package idgen_test

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/shardgram/shardgram/idgen"
)

// leaping is a clock that can be set apart from the bubble's.
type leaping struct{ by atomic.Int64 }

func (c *leaping) now() time.Time           { return time.Now().Add(time.Duration(c.by.Load())) }
func (c *leaping) leap(d time.Duration)     { c.by.Add(int64(d)) }
func (l *ledger) hangs(calls int)           { l.mu.Lock(); defer l.mu.Unlock(); l.hang = calls }
func (l *ledger) markOf(shard int) idgen.ID { l.mu.Lock(); defer l.mu.Unlock(); return l.mark[shard] }

func openGenerator(t *testing.T, l *ledger, cfg idgen.Config) *idgen.Generator {
	g, err := idgen.Open(t.Context(), l, 5, cfg)
	require.NoError(t, err)
	return g
}

// TestOneHungExtendHoldsUpNobody loses one packet of the renewal, and then one
// of a Next that has no deadline.
func TestOneHungExtendHoldsUpNobody(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var c leaping
		l := newLedger()
		g := openGenerator(t, l, idgen.Config{Layout: bubble(), Now: c.now})
		l.hangs(1)
		for range 6000 {
			begin := time.Now()
			newID(t, g)
			require.Less(t, time.Since(begin), 10*time.Millisecond)
			time.Sleep(time.Millisecond)
		}
		time.Sleep(300 * time.Millisecond) // between two renewals
		c.leap(time.Hour)                  // now Next extends itself
		l.hangs(1)
		first := make(chan error, 1)
		go func() { _, err := g.Next(context.Background()); first <- err }()
		time.Sleep(100 * time.Millisecond)
		ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
		_, err := g.Next(ctx)
		require.ErrorIs(t, err, context.DeadlineExceeded, "its ctx counts while it waits for the other")
		cancel()
		begin := time.Now()
		newID(t, g)
		require.Less(t, time.Since(begin), time.Second)
		require.ErrorIs(t, <-first, context.DeadlineExceeded)
		require.NoError(t, g.Close())
	})
}

func TestCloseWaitsForNobody(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var c leaping
		l := newLedger()
		g := openGenerator(t, l, idgen.Config{Layout: bubble(), Now: c.now})
		l.hangs(1000)
		c.leap(time.Hour)
		var wg sync.WaitGroup
		for range 4 {
			wg.Go(func() {
				for err := error(nil); !errors.Is(err, idgen.ErrClosed); _, err = g.Next(context.Background()) {
				}
			})
		}
		time.Sleep(3300 * time.Millisecond)
		begin := time.Now()
		require.ErrorIs(t, g.Close(), context.DeadlineExceeded)
		require.Less(t, time.Since(begin), 5500*time.Millisecond)
		wg.Wait()
	})
}

// TestCloseReleasesLast lets callers ask for IDs while Close runs.
func TestCloseReleasesLast(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		l := newLedger()
		g := openGenerator(t, l, idgen.Config{Layout: bubble()})
		l.hangs(1)
		time.Sleep(1500 * time.Millisecond) // the renewal hangs
		var newest atomic.Int64
		var wg sync.WaitGroup
		for range 4 {
			wg.Go(func() {
				for {
					id, err := g.Next(context.Background())
					if err != nil {
						return
					}
					newest.Store(max(newest.Load(), int64(id)))
					time.Sleep(100 * time.Microsecond)
				}
			})
		}
		time.Sleep(time.Millisecond)
		require.NoError(t, g.Close())
		mark, stores := l.markOf(5), l.stores
		wg.Wait()
		require.GreaterOrEqual(t, mark, idgen.ID(newest.Load()))
		time.Sleep(time.Minute)
		require.Equal(t, stores, l.stores, "nothing is extended after Release")
		require.Equal(t, mark, l.markOf(5))
	})
}

func TestOpenEndsWithItsContext(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		layout, l := bubble(), newLedger()
		stored := layout.First(time.Now()) | 5<<10
		l.mark[5] = stored
		l.hangs(1000)
		ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
		defer cancel()
		begin := time.Now()
		_, err := idgen.Open(ctx, l, 5, idgen.Config{Layout: layout})
		require.ErrorIs(t, err, context.DeadlineExceeded)
		require.Less(t, time.Since(begin), time.Second)
		l.hangs(0)
		l.fail(errors.New("the disk is full"))
		_, err = idgen.Open(t.Context(), l, 5, idgen.Config{Layout: layout})
		require.Error(t, err)
		require.Equal(t, stored, l.markOf(5), "the mark stays")
	})
}

// TestALeapWithoutIDsIsForgotten lets the clock be wrong for a while in which
// nobody asks for an ID, up to beyond the layout.
func TestALeapWithoutIDsIsForgotten(t *testing.T) {
	t.Parallel()
	for _, leap := range []time.Duration{24 * time.Hour, 100 * 365 * 24 * time.Hour, -24 * time.Hour} {
		synctest.Test(t, func(t *testing.T) {
			var c leaping
			layout, l := bubble(), newLedger()
			g := openGenerator(t, l, idgen.Config{Layout: layout, Now: c.now})
			newID(t, g)
			for range 20 {
				c.leap(leap)
				time.Sleep(4 * time.Second)
				c.leap(-leap)
				time.Sleep(100 * time.Millisecond)
			}
			newID(t, g)
			// It crashes, and the next one takes over.
			next := openGenerator(t, l, idgen.Config{Layout: layout})
			id := newID(t, next)
			require.LessOrEqual(t, time.Until(layout.Time(id)), 4*time.Second)
			require.NoError(t, next.Close())
			require.NoError(t, g.Close())
			require.Empty(t, l.faults)
		})
	}
}

// TestNothingIsAboveTheMark asks for more than the mark permits while the store
// is away, in batches and one by one.
func TestNothingIsAboveTheMark(t *testing.T) {
	t.Parallel()
	for _, size := range []int{1, 5000} {
		synctest.Test(t, func(t *testing.T) {
			layout, l := bubble(), newLedger()
			g := openGenerator(t, l, idgen.Config{Layout: layout, Overflow: idgen.Borrow, MaxAhead: time.Minute, Window: 100 * time.Millisecond})
			l.fail(errors.New("the store is away"))
			ids := make([]idgen.ID, size)
			var last idgen.ID
			for {
				n, err := g.Fill(t.Context(), ids)
				if n > 0 {
					last = ids[n-1]
				}
				if err != nil {
					require.ErrorContains(t, err, "the store is away")
					break
				}
			}
			require.LessOrEqual(t, last, l.mark[5])
			require.Less(t, l.mark[5]-last, idgen.ID(size/1024+1)<<23, "and no more is left than a batch")
			_, err := g.Next(t.Context())
			require.ErrorContains(t, err, "the store is away")
			l.fail(nil)
			require.Greater(t, newID(t, g), last)
			require.NoError(t, g.Close())
			require.Empty(t, l.faults)
		})
	}
}

// TestCloseWaitsForAnExtend has a store that does not listen to its context.
func TestCloseWaitsForAnExtend(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var c leaping
		l := newLedger()
		g := openGenerator(t, l, idgen.Config{Layout: bubble(), Now: c.now})
		l.mu.Lock()
		l.slow = 900 * time.Millisecond
		l.mu.Unlock()
		c.leap(time.Hour)
		done := make(chan error)
		go func() { _, err := g.Next(context.Background()); done <- err }()
		time.Sleep(500 * time.Millisecond) // it is under way
		begin := time.Now()
		closed := make(chan error)
		go func() { closed <- g.Close() }()
		require.NoError(t, <-done)
		require.NoError(t, <-closed)
		require.Equal(t, 400*time.Millisecond, time.Since(begin))
		require.Empty(t, l.faults)
	})
}

// TestTheEndIsTheEndBehindAStep lets the clock tremble in the last milliseconds
// of layouts.
func TestTheEndIsTheEndBehindAStep(t *testing.T) {
	t.Parallel()
	for _, layout := range []idgen.Layout{idgen.Default, {TimeBits: 42, SequenceBits: 22, Epoch: idgen.Default.Epoch}} {
		for _, guarded := range []bool{false, true} {
			var ms atomic.Int64
			ms.Store(1<<(layout.TimeBits-1) - 3000)
			cfg := idgen.Config{Layout: layout, Overflow: idgen.Refuse, Now: func() time.Time {
				return layout.Epoch.Add(time.Duration(ms.Load()) * time.Millisecond)
			}}
			g, err := idgen.New(layout.MaxShard(), cfg)
			if guarded {
				g, err = idgen.Open(t.Context(), newLedger(), layout.MaxShard(), cfg)
			}
			require.NoError(t, err)
			for ; ms.Load() < 1<<(layout.TimeBits-1)-1; ms.Add(1) {
				require.Eventually(t, func() bool { _, err := g.TryNext(); return err == nil }, time.Second, time.Millisecond)
			}
			_, err = g.TryNext()
			require.NoError(t, err)
			ms.Add(-1)
			ids := make([]idgen.ID, 5_000_000)
			n, err := g.Fill(t.Context(), ids)
			require.Error(t, err)
			require.Less(t, max(ids[max(n, 1)-1], 1), idgen.MaxID)
			for range 3 {
				ms.Add(1)
				_, err = g.TryNext()
				require.Error(t, err)
			}
			require.NoError(t, g.Close())
		}
	}
}

// TestSleepIsNoLongerThanAMillisecond sets the clock back between the look at it
// and the wait.
func TestSleepIsNoLongerThanAMillisecond(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		layout := bubble()
		base := time.Now()
		var calls, stepAt int
		g := newGenerator(t, 1, idgen.Config{Layout: layout, MaxBack: 24 * time.Hour, Now: func() time.Time {
			if calls++; stepAt > 0 && calls >= stepAt {
				return base.Add(-time.Hour)
			}
			return base
		}})
		for {
			if _, err := g.TryNext(); err != nil {
				break
			}
		}
		stepAt = calls + 2
		begin := time.Now()
		newID(t, g)
		require.LessOrEqual(t, time.Since(begin), 2*time.Millisecond)
	})
}

// TestATremblingClockCrossesOnce flips between two milliseconds behind the last
// ID.
func TestATremblingClockCrossesOnce(t *testing.T) {
	t.Parallel()
	var c clock
	c.ms.Store(100_000)
	g := newGenerator(t, 1, idgen.Config{Now: c.now})
	newID(t, g)
	n := 0
	for i := range int64(100_000) {
		c.ms.Store(99_990 + i/3%2)
		if _, err := g.TryNext(); err == nil {
			n++
		} else {
			require.ErrorIs(t, err, idgen.ErrFull)
		}
	}
	require.LessOrEqual(t, n, 3*1024)
	// A batch does not cross more often either.
	got, err := g.Fill(endedContext(), make([]idgen.ID, 10_000))
	require.Error(t, err)
	require.LessOrEqual(t, got, 1024)
}

func endedContext() context.Context {
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	return ctx
}

func TestADrainedGeneratorCatchesUpNoMoreThanItSays(t *testing.T) {
	t.Parallel()
	var c clock
	c.ms.Store(1000)
	g := newGenerator(t, 1, idgen.Config{Now: c.now, Overflow: idgen.Refuse})
	_, err := g.Fill(t.Context(), make([]idgen.ID, 2000))
	require.ErrorIs(t, err, idgen.ErrFull)
	c.ms.Store(1010)
	newID(t, g)
	c.ms.Store(1100)
	require.LessOrEqual(t, c.now().Sub(idgen.Default.Time(newID(t, g))), 16*time.Millisecond)
}

// TestFillStaysWithTheClock asks for more than the millisecond has, of the real
// clock.
func TestFillStaysWithTheClock(t *testing.T) {
	t.Parallel()
	g := newGenerator(t, 1, idgen.Config{})
	ids := make([]idgen.ID, 50_000)
	newID(t, g)
	for range 3 {
		_, err := g.Fill(t.Context(), ids)
		require.NoError(t, err)
		require.False(t, idgen.Default.Time(ids[len(ids)-1]).After(time.Now()))
	}
}

// TestSetWaitsForNoStore has one generator whose store comes and goes, and one
// that has none.
func TestSetWaitsForNoStore(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		layout, l := bubble(), newLedger()
		s, err := idgen.NewSet(openGenerator(t, l, idgen.Config{Layout: layout, Window: 100 * time.Millisecond}), newGenerator(t, 7, idgen.Config{Layout: layout}))
		require.NoError(t, err)
		for i := range 20 {
			switch i % 3 {
			case 0:
				l.fail(errors.New("away"))
			case 1:
				l.fail(nil)
				l.hangs(1000)
			case 2:
				l.hangs(0)
			}
			for range 20 {
				time.Sleep(10 * time.Millisecond)
				begin := time.Now()
				for range 3000 {
					_, err := s.Next(context.Background())
					require.NoError(t, err)
				}
				require.LessOrEqual(t, time.Since(begin), 4*time.Millisecond)
			}
		}
		l.fail(nil)
		l.hangs(0)
		g, _ := s.Shard(5)
		require.NoError(t, g.Close())
	})
}

func TestNewSetTakesEqualEpochs(t *testing.T) {
	t.Parallel()
	layout := idgen.Default
	layout.Epoch = layout.Epoch.In(time.FixedZone("there", 3600))
	_, err := idgen.NewSet(newGenerator(t, 1, idgen.Config{Layout: layout}), newGenerator(t, 2, idgen.Config{}))
	require.NoError(t, err)
}

func TestAnyShardPassesOverADamagedFile(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	require.NoError(t, os.WriteFile(filepath.Join(dir, "shard-0000.mark"), []byte("x"), 0o600))
	lease, err := idgen.FileLeases{Dir: dir}.Claim(t.Context(), idgen.AnyShard, idgen.Default)
	require.NoError(t, err)
	require.Equal(t, 1, lease.Shard())
	require.NoError(t, lease.Release(t.Context(), 0))
	_, err = idgen.FileLeases{Dir: dir}.Claim(t.Context(), 0, idgen.Default)
	require.ErrorContains(t, err, "shard-0000.mark")
}
