package idgen_test

import (
	"context"
	"fmt"
	"math"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"github.com/shardgram/shardgram/idgen"
)

// repeats runs rounds of 16 goroutines on 16 processors that each make 65,536
// IDs, and says what is wrong with what they got, or "".
func repeats(rounds int, fill func(goroutine int, ids []idgen.ID) error) string {
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(16))
	const goroutines, each = 16, 1 << 16
	all := make([]idgen.ID, goroutines*each)
	var newest idgen.ID
	for range rounds {
		var wg sync.WaitGroup
		errs := make([]error, goroutines)
		for i := range goroutines {
			wg.Go(func() { errs[i] = fill(i, all[i*each:][:each]) })
		}
		wg.Wait()
		for i := range goroutines {
			if errs[i] != nil {
				return errs[i].Error()
			}
			if ids := all[i*each:][:each]; !slices.IsSorted(ids) || ids[0] <= newest {
				return fmt.Sprintf("goroutine %d got IDs out of order", i)
			}
		}
		merged := merge(all, each)
		for i, id := range merged[1:] {
			if id == merged[i] {
				return fmt.Sprintf("%d was made twice", id)
			}
		}
		newest = merged[len(merged)-1]
	}
	return ""
}

// merge sorts IDs of which every run is sorted.
func merge(ids []idgen.ID, run int) []idgen.ID {
	if len(ids) <= run {
		return ids
	}
	half := len(ids) / run / 2 * run
	a, b := merge(ids[:half], run), merge(ids[half:], run)
	all := make([]idgen.ID, 0, len(ids))
	for len(a) > 0 && len(b) > 0 {
		if a[0] <= b[0] {
			all, a = append(all, a[0]), a[1:]
		} else {
			all, b = append(all, b[0]), b[1:]
		}
	}
	return append(append(all, a...), b...)
}

// TestNeverRepeats makes 52 million IDs, with each method and every way of
// waiting.
func TestNeverRepeats(t *testing.T) {
	ctx := context.Background()
	next := func(g *idgen.Generator) func(int, []idgen.ID) error {
		return func(_ int, ids []idgen.ID) (err error) {
			for i := range ids {
				if ids[i], err = g.Next(ctx); err != nil {
					return err
				}
			}
			return nil
		}
	}
	fill := func(g *idgen.Generator) func(int, []idgen.ID) error {
		return func(goroutine int, ids []idgen.ID) error {
			size := 1 << goroutine // 1 to 32,768
			for part := range slices.Chunk(ids, size) {
				if _, err := g.Fill(ctx, part); err != nil {
					return err
				}
			}
			return nil
		}
	}
	mixed := func(g *idgen.Generator) func(int, []idgen.ID) error {
		return func(goroutine int, ids []idgen.ID) error {
			if goroutine%2 == 0 {
				return fill(g)(goroutine, ids)
			}
			return next(g)(goroutine, ids)
		}
	}
	// Clocks that run fast, so that every few IDs begin a millisecond, and that
	// step back at times.
	var ticks atomic.Int64
	fast := func() time.Time {
		n := ticks.Add(1)
		return idgen.Default.Epoch.Add(time.Duration(n/8-n%64) * time.Millisecond).Add(time.Second)
	}
	for _, test := range []struct {
		name   string
		rounds int
		cfg    idgen.Config
		fill   func(*idgen.Generator) func(int, []idgen.ID) error
	}{
		{"Next", 8, idgen.Config{Layout: open}, next},
		{"Fill", 25, idgen.Config{Layout: open}, fill},
		{"NextAndFill", 10, idgen.Config{Layout: open}, mixed},
		{"UnderAClockThatSteps", 4, idgen.Config{Now: fast, Overflow: idgen.Borrow}, mixed},
		{"Borrowing", 2, idgen.Config{Overflow: idgen.Borrow, MaxAhead: 5 * time.Second}, mixed},
		{"Waiting", 1, idgen.Config{}, mixed},
	} {
		t.Run(test.name, func(t *testing.T) {
			require.Empty(t, repeats(test.rounds, test.fill(newGenerator(t, 1, test.cfg))))
		})
	}
}

// TestATornStateRepeats shows that the check above finds repeats: of a generator
// that keeps time and sequence in two words.
func TestATornStateRepeats(t *testing.T) {
	var ms, sequence atomic.Int64
	found := repeats(50, func(_ int, ids []idgen.ID) error {
		for i := range ids {
			now := time.Now().UnixMicro() // more often than a millisecond, to be quick
			if ms.Swap(now) < now {
				sequence.Store(0)
			}
			ids[i] = idgen.ID(now<<16 | sequence.Add(1))
		}
		slices.Sort(ids)
		return nil
	})
	require.Contains(t, found, "was made twice")
}

// TestNextCountsOnBehindAnyStep steps the clock back by each number of
// milliseconds.
func TestNextCountsOnBehindAnyStep(t *testing.T) {
	t.Parallel()
	var c clock
	for back := range int64(1_200) {
		c.ms.Store(1 << 30)
		g := newGenerator(t, 5, idgen.Config{Now: c.now})
		last := newID(t, g)
		c.ms.Add(-back)
		id, err := g.TryNext()
		if back > 1000 {
			require.ErrorIs(t, err, idgen.ErrClockBack, "%d ms", back)
			c.ms.Add(back - 1000)
			id, err = g.TryNext()
		}
		require.NoError(t, err, "%d ms", back)
		require.Equal(t, last+1, id, "%d ms", back)
		c.ms.Store(1<<30 + 1 + back)
		require.Equal(t, c.now(), idgen.Default.Time(newID(t, g)), "and with the clock again")
	}
}

// TestNextFollowsALeap is a machine that wakes up after a week.
func TestNextFollowsALeap(t *testing.T) {
	t.Parallel()
	var c clock
	c.ms.Store(1 << 20)
	g := newGenerator(t, 5, idgen.Config{Now: c.now})
	last := newID(t, g)
	c.ms.Add(7 * 24 * 3600 * 1000)
	id := newID(t, g)
	require.Greater(t, id, last)
	require.Equal(t, c.now(), idgen.Default.Time(id))
}

func TestRefuseReturnsAnError(t *testing.T) {
	t.Parallel()
	var c clock
	c.ms.Store(1000)
	g := newGenerator(t, 1, idgen.Config{Now: c.now, Overflow: idgen.Refuse})
	ids := make([]idgen.ID, 2000)
	n, err := g.Fill(t.Context(), ids)
	require.ErrorIs(t, err, idgen.ErrFull)
	require.Greater(t, n, 1024-64)
	require.Equal(t, c.now(), idgen.Default.Time(ids[n-1]))
	require.Zero(t, ids[n])
	_, err = g.Next(t.Context())
	require.ErrorIs(t, err, idgen.ErrFull)
	c.ms.Add(1)
	require.Greater(t, newID(t, g), ids[n-1])
}

func TestBorrowHasABound(t *testing.T) {
	t.Parallel()
	var c clock
	c.ms.Store(1000)
	g := newGenerator(t, 1, idgen.Config{Now: c.now, Overflow: idgen.Borrow, MaxAhead: 10 * time.Millisecond})
	var last idgen.ID
	n := 0
	for ; ; n++ {
		id, err := g.TryNext()
		if err != nil {
			require.ErrorIs(t, err, idgen.ErrFull)
			break
		}
		require.Greater(t, id, last)
		last = id
	}
	require.InDelta(t, 11*1024, n, 64)
	require.Equal(t, c.now().Add(10*time.Millisecond), idgen.Default.Time(last))
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Millisecond)
	defer cancel()
	_, err := g.Next(ctx)
	require.ErrorIs(t, err, context.DeadlineExceeded, "it waits at the bound")
	c.ms.Add(1)
	ids := make([]idgen.ID, 1024)
	_, err = g.Fill(t.Context(), ids)
	require.NoError(t, err)
	require.Greater(t, ids[0], last)
}

func TestFillTakesAMillisecondInOneStep(t *testing.T) {
	t.Parallel()
	var c clock
	c.ms.Store(1000)
	g := newGenerator(t, 3, idgen.Config{Now: c.now})
	ids := make([]idgen.ID, 900)
	n, err := g.Fill(t.Context(), ids)
	require.NoError(t, err)
	require.Equal(t, len(ids), n)
	for i, id := range ids {
		require.Equal(t, ids[0]+idgen.ID(i), id)
		require.Equal(t, 3, idgen.Default.Shard(id))
	}
	n, err = g.Fill(t.Context(), nil)
	require.NoError(t, err)
	require.Zero(t, n)
}

func TestFillTellsHowManyItMade(t *testing.T) {
	t.Parallel()
	var c clock
	c.ms.Store(1000)
	g := newGenerator(t, 3, idgen.Config{Now: c.now})
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	ids := make([]idgen.ID, 3000)
	n, err := g.Fill(ctx, ids)
	require.ErrorIs(t, err, context.Canceled)
	require.Positive(t, ids[n-1])
	require.Zero(t, ids[n])
	require.LessOrEqual(t, n, 1024)
}

// TestAnyCallsIncrease mixes the methods, batch sizes and clocks at random.
func TestAnyCallsIncrease(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		var c clock
		c.ms.Store(1 << 30)
		cfg := idgen.Config{Now: c.now, MaxBack: time.Minute, Overflow: rapid.SampledFrom([]idgen.Overflow{idgen.Borrow, idgen.Refuse}).Draw(t, "overflow")}
		g := newGenerator(t, 77, cfg)
		ctx, cancel := context.WithCancel(context.Background())
		cancel() // nothing waits
		var last idgen.ID
		for range rapid.IntRange(1, 50).Draw(t, "calls") {
			c.ms.Add(rapid.SampledFrom([]int64{0, 0, 1, 2, 20, -1, -2, -50}).Draw(t, "step"))
			ids := make([]idgen.ID, rapid.IntRange(1, 3000).Draw(t, "n"))
			n, err := g.Fill(ctx, ids)
			if err != nil && cfg.Overflow == idgen.Refuse {
				require.ErrorIs(t, err, idgen.ErrFull)
			}
			if id, err := g.TryNext(); err == nil {
				ids = append(ids[:n], id)
				n++
			}
			for _, id := range ids[:n] {
				if id <= last || idgen.Default.Shard(id) != 77 {
					t.Fatalf("%d after %d", id, last)
				}
				last = id
			}
			if n > 0 && cfg.Overflow == idgen.Borrow {
				require.LessOrEqual(t, idgen.Default.Time(last).Sub(c.now()), time.Second+4*time.Second)
			}
		}
	})
}

// TestALateTimerLosesNothing drains a shard, and comes back some milliseconds
// later than the next one.
func TestALateTimerLosesNothing(t *testing.T) {
	t.Parallel()
	for _, test := range []struct{ late, want int64 }{{1, 1}, {2, 2}, {16, 16}, {17, 1}} {
		var c clock
		c.ms.Store(1000)
		g := newGenerator(t, 1, idgen.Config{Now: c.now})
		drain := func() (n int64) {
			for {
				if _, err := g.TryNext(); err != nil {
					require.ErrorIs(t, err, idgen.ErrFull)
					return n
				}
				n++
			}
		}
		drain()
		c.ms.Add(test.late)
		require.InDelta(t, test.want*1024, drain(), 63, "%d ms late", test.late)
		c.ms.Add(1)
		require.InDelta(t, 1024, drain(), 63)
	}
}

// TestNextEndsAtTheEnd lets goroutines run into the end of the smallest layout
// without shard bits, whose last state is the largest int64.
func TestNextEndsAtTheEnd(t *testing.T) {
	t.Parallel()
	for _, bits := range [][3]int{{42, 0, 22}, {41, 13, 10}, {32, 26, 6}} {
		synctest.Test(t, func(t *testing.T) {
			layout := idgen.Layout{TimeBits: bits[0], ShardBits: bits[1], SequenceBits: bits[2]}
			layout.Epoch = time.Now().Add(-(1<<(bits[0]-1) - 2) * time.Millisecond) // two left
			g := newGenerator(t, layout.MaxShard(), idgen.Config{Layout: layout})
			var newest atomic.Int64
			var wg sync.WaitGroup
			for i := range 16 {
				wg.Go(func() {
					ids := make([]idgen.ID, 1+i*5000)
					for {
						n, err := g.Fill(context.Background(), ids)
						for _, id := range ids[:n] {
							for old := newest.Load(); int64(id) > old && !newest.CompareAndSwap(old, int64(id)); old = newest.Load() {
							}
						}
						if err != nil {
							return
						}
					}
				})
			}
			wg.Wait()
			for range 3 {
				_, err := g.Next(t.Context())
				require.ErrorIs(t, err, idgen.ErrRunOut)
				_, err = g.TryNext()
				require.ErrorIs(t, err, idgen.ErrRunOut)
			}
			require.Positive(t, newest.Load())
			require.Less(t, newest.Load(), int64(math.MaxInt64))
			require.Equal(t, layout.RunsOut().Add(-time.Millisecond), layout.Time(idgen.ID(newest.Load())))
		})
	}
}

// TestNextStaysWithTheClock drains a shard from many goroutines. None may push
// the IDs into the future: those that go over the end of a millisecond at the
// same time begin no new one.
func TestNextStaysWithTheClock(t *testing.T) {
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(16))
	g := newGenerator(t, 1, idgen.Config{})
	var ahead atomic.Int64 // the most, in milliseconds
	ahead.Store(math.MinInt64)
	var wg sync.WaitGroup
	for range 16 {
		wg.Go(func() {
			for range 1 << 16 {
				id, err := g.Next(context.Background())
				if err != nil {
					ahead.Store(math.MaxInt64)
					return
				}
				d := idgen.Default.Time(id).UnixMilli() - time.Now().UnixMilli()
				for old := ahead.Load(); d > old && !ahead.CompareAndSwap(old, d); old = ahead.Load() {
				}
			}
		})
	}
	wg.Wait()
	require.LessOrEqual(t, ahead.Load(), int64(0))
}

func TestCloseEndsAGenerator(t *testing.T) {
	t.Parallel()
	g := newGenerator(t, 1, idgen.Config{})
	require.NoError(t, g.Close())
	require.NoError(t, g.Close())
	_, err := g.Next(t.Context())
	require.ErrorIs(t, err, idgen.ErrClosed)
	_, err = g.TryNext()
	require.ErrorIs(t, err, idgen.ErrClosed)
	for range 2000 { // also when there would be no ID left
		n, err := g.Fill(t.Context(), make([]idgen.ID, 1))
		require.ErrorIs(t, err, idgen.ErrClosed)
		require.Zero(t, n)
		_, err = g.TryNext()
		require.ErrorIs(t, err, idgen.ErrClosed)
	}
}
