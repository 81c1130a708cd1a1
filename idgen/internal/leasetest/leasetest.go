// Package leasetest tests what every [idgen.Leases] promises. Only _test files
// import it.
package leasetest

import (
	"context"
	"errors"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/shardgram/shardgram/idgen"
)

// A Store is a new and empty store of leases, and how it differs from others.
type Store struct {
	// Leases is what is tested.
	Leases idgen.Leases

	// Displaces says that a number that is asked for by name is taken from a
	// holder that is alive: the newest wins. Else the claim fails with
	// [idgen.ErrHeld].
	Displaces bool

	// Expire makes the holder of a number count as one that was silent for too
	// long. It is nil where only the end of its process frees a number.
	Expire func(t *testing.T, shard int)
}

// small is a layout of four shards, which can all be held.
var small = idgen.Layout{TimeBits: 50, ShardBits: 2, SequenceBits: 12, Epoch: idgen.Default.Epoch}

// Run runs the tests, each with a store of its own from open.
func Run(t *testing.T, open func(t *testing.T) Store) {
	kind := open(t)
	for _, tt := range []struct {
		name string
		test func(t *testing.T, s Store)
		only func(s Store) bool // nil is every store
	}{
		{"ANumberNeverUsedHasMarkZero", neverUsed, nil},
		{"ClaimReturnsTheMarkLastStored", lastStored, nil},
		{"LargeMarksAreExact", largeMarks, nil},
		{"ExtendNeverLowersAMark", neverLower, nil},
		{"AnyShardGivesTheLowestThatNobodyHolds", lowestFirst, nil},
		{"AnyShardGivesReleasedNumbersAgain", givenAgain, nil},
		{"AnyShardFailsWhenAllAreHeld", allHeld, nil},
		{"AnyShardTakesWhatHasExpired", expired, expires},
		{"AnyShardGivesManyAtOnceDistinctNumbers", atOnce, nil},
		{"AnotherLayoutIsRefused", otherLayout, nil},
		{"AHolderKeepsItsNumberOrTheNewestWins", aliveHolder, nil},
		{"ExtendAfterLossChangesNothing", extendAfterLoss, displaces},
		{"ReleaseAfterLossLeavesTheNewHolderAlone", releaseAfterLoss, displaces},
		{"TwoZombiesCanExtendNoMore", twoZombies, displaces},
		{"GenerationsNeverRepeat", generations, nil},
		{"ALostGeneratorStops", lostGenerator, nil},
		{"AnEndedContextIsReported", endedContext, nil},
	} {
		if tt.only != nil && !tt.only(kind) {
			continue // aliveHolder and allHeld show what such a store does instead
		}
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			tt.test(t, open(t))
		})
	}
}

func displaces(s Store) bool { return s.Displaces }
func expires(s Store) bool   { return s.Expire != nil }

// id is one of shard 3, n milliseconds after the epoch.
func id(n int) idgen.ID {
	v, err := idgen.Default.Compose(idgen.Default.Epoch.Add(time.Duration(n)*time.Millisecond), 3, 0)
	if err != nil {
		panic("bug: " + err.Error())
	}
	return v
}

// claim claims a number and gives it back at the end of the test, whether or
// not it is lost by then.
func claim(t *testing.T, s Store, shard int, layout idgen.Layout) idgen.Lease {
	t.Helper()
	l, err := s.Leases.Claim(t.Context(), shard, layout)
	require.NoError(t, err)
	l = &once{Lease: l}
	t.Cleanup(func() { _ = l.Release(context.Background(), l.Mark()) })
	return l
}

// once passes on the first Release only, which is a lease's last call.
type once struct {
	idgen.Lease
	released bool
}

func (o *once) Release(ctx context.Context, mark idgen.ID) error {
	if o.released {
		return nil
	}
	o.released = true
	return o.Lease.Release(ctx, mark)
}

func neverUsed(t *testing.T, s Store) {
	l := claim(t, s, 3, idgen.Default)
	require.Equal(t, 3, l.Shard())
	require.Zero(t, l.Mark())
	require.NoError(t, l.Release(t.Context(), 0))

	l = claim(t, s, 3, idgen.Default)
	require.Zero(t, l.Mark(), "nothing was stored by the holder before")
}

func lastStored(t *testing.T, s Store) {
	l := claim(t, s, 3, idgen.Default)
	require.NoError(t, l.Extend(t.Context(), id(100)))
	require.NoError(t, l.Extend(t.Context(), id(200)))
	require.NoError(t, l.Extend(t.Context(), id(200)), "the same mark again")
	require.NoError(t, l.Extend(t.Context(), id(300)))
	require.Zero(t, l.Mark(), "Mark is that of the claim")
	require.NoError(t, l.Release(t.Context(), id(250)))

	l = claim(t, s, 3, idgen.Default)
	require.Equal(t, id(250), l.Mark(), "Release stores the last ID, below the mark")
	require.NoError(t, l.Extend(t.Context(), id(400)))
	require.NoError(t, l.Release(t.Context(), id(400)))

	l = claim(t, s, 3, idgen.Default)
	require.Equal(t, id(400), l.Mark())
	other := claim(t, s, 4, idgen.Default)
	require.Zero(t, other.Mark(), "each number has a mark of its own")
}

func largeMarks(t *testing.T, s Store) {
	l := claim(t, s, 3, idgen.Default)
	for _, mark := range []idgen.ID{1<<53 - 1, 1 << 53, 1<<53 + 1, 1<<62 + 1, idgen.MaxID - 1, idgen.MaxID} {
		require.NoError(t, l.Extend(t.Context(), mark))
		require.NoError(t, l.Release(t.Context(), mark))
		l = claim(t, s, 3, idgen.Default)
		require.Equal(t, mark, l.Mark())
	}
}

func neverLower(t *testing.T, s Store) {
	l := claim(t, s, 3, idgen.Default)
	require.NoError(t, l.Extend(t.Context(), id(900)))
	_ = l.Extend(t.Context(), id(100)) // an error is as good
	require.NoError(t, l.Extend(t.Context(), id(1000)), "the lease works on")
	_ = l.Extend(t.Context(), id(100))

	if s.Displaces {
		require.Equal(t, id(1000), claim(t, s, 3, idgen.Default).Mark())
		return
	}
	// Only Release may go down, and its mark is what counts then.
	require.NoError(t, l.Release(t.Context(), id(950)))
	require.Equal(t, id(950), claim(t, s, 3, idgen.Default).Mark())
}

func lowestFirst(t *testing.T, s Store) {
	for want := range 3 {
		l := claim(t, s, idgen.AnyShard, small)
		require.Equal(t, want, l.Shard())
		require.Zero(t, l.Mark())
	}
	named := claim(t, s, 3, small)
	require.Equal(t, 3, named.Shard())
	_, err := s.Leases.Claim(t.Context(), idgen.AnyShard, small)
	require.ErrorIs(t, err, idgen.ErrHeld, "one that was asked for by name is held too")
}

func givenAgain(t *testing.T, s Store) {
	held := make([]idgen.Lease, 4)
	for i := range held {
		held[i] = claim(t, s, idgen.AnyShard, small)
		require.NoError(t, held[i].Extend(t.Context(), id(100+i)))
	}
	require.NoError(t, held[2].Release(t.Context(), id(102)))
	require.NoError(t, held[1].Release(t.Context(), id(51)))
	for _, want := range []struct {
		shard int
		mark  idgen.ID
	}{{1, id(51)}, {2, id(102)}} {
		l := claim(t, s, idgen.AnyShard, small)
		require.Equal(t, want.shard, l.Shard())
		require.Equal(t, want.mark, l.Mark())
		require.NoError(t, l.Extend(t.Context(), id(1000)))
	}
	require.NoError(t, held[0].Extend(t.Context(), id(1000)), "the others are still held")
	require.NoError(t, held[3].Extend(t.Context(), id(1000)))
}

func allHeld(t *testing.T, s Store) {
	var last idgen.Lease
	for range 4 {
		last = claim(t, s, idgen.AnyShard, small)
	}
	_, err := s.Leases.Claim(t.Context(), idgen.AnyShard, small)
	require.ErrorIs(t, err, idgen.ErrHeld)
	_, err = idgen.Open(t.Context(), s.Leases, idgen.AnyShard, idgen.Config{Layout: small})
	require.ErrorIs(t, err, idgen.ErrHeld)
	require.NoError(t, last.Release(t.Context(), 0))
	require.Equal(t, last.Shard(), claim(t, s, idgen.AnyShard, small).Shard())
}

func expired(t *testing.T, s Store) {
	held := make([]idgen.Lease, 4)
	for i := range held {
		held[i] = claim(t, s, idgen.AnyShard, small)
		require.NoError(t, held[i].Extend(t.Context(), id(100+i)))
	}
	s.Expire(t, 2)
	s.Expire(t, 1)
	require.NoError(t, held[1].Extend(t.Context(), id(200)), "nobody took it, so it is held again")

	l := claim(t, s, idgen.AnyShard, small)
	require.Equal(t, 2, l.Shard())
	require.Equal(t, id(102), l.Mark())
	require.ErrorIs(t, held[2].Extend(t.Context(), id(300)), idgen.ErrLeaseLost)
	_, err := s.Leases.Claim(t.Context(), idgen.AnyShard, small)
	require.ErrorIs(t, err, idgen.ErrHeld)
}

func atOnce(t *testing.T, s Store) {
	const holders = 16
	leases := make([]idgen.Lease, holders)
	errs := make([]error, holders)
	var wg sync.WaitGroup
	for i := range holders {
		wg.Go(func() { leases[i], errs[i] = s.Leases.Claim(t.Context(), idgen.AnyShard, idgen.Default) })
	}
	wg.Wait()
	require.NoError(t, errors.Join(errs...))
	seen := map[int]bool{}
	for _, l := range leases {
		require.False(t, seen[l.Shard()], "%d is given twice", l.Shard())
		seen[l.Shard()] = true
	}
	for _, l := range leases {
		require.NoError(t, l.Extend(t.Context(), id(100)), "all of them hold")
		require.NoError(t, l.Release(t.Context(), id(100)))
	}
}

func otherLayout(t *testing.T, s Store) {
	l := claim(t, s, 0, idgen.Default)
	require.NoError(t, l.Extend(t.Context(), id(100)))
	if s.Displaces {
		_, err := s.Leases.Claim(t.Context(), 0, small)
		require.Error(t, err)
		require.NoError(t, l.Extend(t.Context(), id(200)), "who is refused takes nothing")
	}
	require.NoError(t, l.Release(t.Context(), id(150)))

	for _, shard := range []int{0, idgen.AnyShard} {
		_, err := s.Leases.Claim(t.Context(), shard, small)
		require.Error(t, err, "shard %d", shard)
		require.NotErrorIs(t, err, idgen.ErrHeld)
		require.ErrorContains(t, err, idgen.Default.String())
		require.ErrorContains(t, err, small.String())
	}
	require.Equal(t, id(150), claim(t, s, 0, idgen.Default).Mark(), "nothing has changed")
}

func aliveHolder(t *testing.T, s Store) {
	a := claim(t, s, 3, idgen.Default)
	require.NoError(t, a.Extend(t.Context(), id(100)))
	if !s.Displaces {
		_, err := s.Leases.Claim(t.Context(), 3, idgen.Default)
		require.ErrorIs(t, err, idgen.ErrHeld)
		require.NoError(t, a.Extend(t.Context(), id(200)))
		return
	}
	b := claim(t, s, 3, idgen.Default)
	require.Equal(t, id(100), b.Mark())
	require.ErrorIs(t, a.Extend(t.Context(), id(200)), idgen.ErrLeaseLost)
	require.NoError(t, b.Extend(t.Context(), id(200)))
}

func extendAfterLoss(t *testing.T, s Store) {
	a := claim(t, s, 3, idgen.Default)
	require.NoError(t, a.Extend(t.Context(), id(100)))
	b := claim(t, s, 3, idgen.Default)
	// The mark is still the one that A stored: only who holds has changed.
	require.ErrorIs(t, a.Extend(t.Context(), id(500)), idgen.ErrLeaseLost)
	require.ErrorIs(t, a.Extend(t.Context(), id(100)), idgen.ErrLeaseLost)
	require.NoError(t, b.Extend(t.Context(), id(200)))
	require.ErrorIs(t, a.Extend(t.Context(), id(500)), idgen.ErrLeaseLost)
	require.Equal(t, id(200), claim(t, s, 3, idgen.Default).Mark())
}

func releaseAfterLoss(t *testing.T, s Store) {
	a := claim(t, s, 0, small)
	require.NoError(t, a.Extend(t.Context(), id(100)))
	b := claim(t, s, 0, small)
	require.NoError(t, a.Release(t.Context(), id(50)))
	require.Equal(t, 1, claim(t, s, idgen.AnyShard, small).Shard(), "0 is still held")
	require.NoError(t, b.Extend(t.Context(), id(200)))
	c := claim(t, s, 0, small)
	require.Equal(t, id(200), c.Mark())
}

func twoZombies(t *testing.T, s Store) {
	a := claim(t, s, 3, idgen.Default)
	require.NoError(t, a.Extend(t.Context(), id(100)))
	b := claim(t, s, 3, idgen.Default)
	require.NoError(t, b.Extend(t.Context(), id(200)))
	c := claim(t, s, 3, idgen.Default)
	require.Equal(t, id(200), c.Mark())
	for i := range 3 {
		require.ErrorIs(t, a.Extend(t.Context(), id(1000+i)), idgen.ErrLeaseLost)
		require.NoError(t, c.Extend(t.Context(), id(300+i)))
		require.ErrorIs(t, b.Extend(t.Context(), id(1000+i)), idgen.ErrLeaseLost)
	}
	require.NoError(t, c.Release(t.Context(), id(301)))
	require.ErrorIs(t, a.Extend(t.Context(), id(2000)), idgen.ErrLeaseLost, "a free number is no longer theirs either")
	require.ErrorIs(t, b.Extend(t.Context(), id(2000)), idgen.ErrLeaseLost)
	require.Equal(t, id(301), claim(t, s, 3, idgen.Default).Mark())
}

// generations hands one shard from generator to generator, of which the second
// has a clock that is an hour behind.
func generations(t *testing.T, s Store) {
	const each = 3000
	back := func() time.Time { return time.Now().Add(-time.Hour) }
	var all []idgen.ID
	for i, now := range []func() time.Time{nil, back, nil} {
		g, err := idgen.Open(t.Context(), s.Leases, 3, idgen.Config{
			Now: now, MaxBack: 2 * time.Hour, Window: 100 * time.Millisecond,
		})
		require.NoError(t, err)
		ids := make([]idgen.ID, each)
		for n := range ids {
			if ids[n], err = g.Next(t.Context()); err != nil {
				break
			}
		}
		require.NoError(t, errors.Join(err, g.Close()))
		if i > 0 {
			require.Greater(t, ids[0], all[len(all)-1], "generation %d starts above all before", i)
		}
		all = append(all, ids...)
	}
	require.True(t, slices.IsSorted(all))
	require.Len(t, slices.Compact(all), 3*each, "no ID is repeated")
}

// lostGenerator leaves generators running while others open their shard.
func lostGenerator(t *testing.T, s Store) {
	cfg := idgen.Config{Window: 100 * time.Millisecond}
	first, err := idgen.Open(t.Context(), s.Leases, 3, cfg)
	require.NoError(t, err)
	defer first.Close()
	last, err := first.Next(t.Context())
	require.NoError(t, err)
	if !s.Displaces {
		_, err := idgen.Open(t.Context(), s.Leases, 3, cfg)
		require.ErrorIs(t, err, idgen.ErrHeld)
		return
	}
	zombies := []*idgen.Generator{first}
	for range 2 {
		g, err := idgen.Open(t.Context(), s.Leases, 3, cfg)
		require.NoError(t, err)
		defer g.Close()
		seen := map[idgen.ID]bool{}
		for range 100 {
			id, err := g.Next(t.Context())
			require.NoError(t, err)
			require.Greater(t, id, last)
			last, seen[id] = id, true
		}
		// A zombie may use up what it has reserved, which lies below.
		for _, z := range zombies {
			for {
				id, err := z.Next(t.Context())
				if err != nil {
					require.ErrorIs(t, err, idgen.ErrLeaseLost)
					break
				}
				require.False(t, seen[id], "%d is made twice", id)
			}
		}
		_, err = g.Next(t.Context())
		require.NoError(t, err)
		zombies = append(zombies, g)
	}
}

func endedContext(t *testing.T, s Store) {
	l := claim(t, s, 3, idgen.Default)
	require.NoError(t, l.Extend(t.Context(), id(100)))
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	begin := time.Now()
	for _, shard := range []int{5, idgen.AnyShard} {
		_, err := s.Leases.Claim(ended, shard, idgen.Default)
		require.ErrorIs(t, err, context.Canceled)
	}
	require.ErrorIs(t, l.Extend(ended, id(200)), context.Canceled)
	require.Less(t, time.Since(begin), 5*time.Second)
	require.NoError(t, l.Extend(t.Context(), id(300)), "the lease works on")
	require.NoError(t, l.Release(t.Context(), id(300)))
	require.Equal(t, id(300), claim(t, s, 3, idgen.Default).Mark())
}
