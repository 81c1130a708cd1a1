package idgen_test

import (
	"context"
	"errors"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/shardgram/shardgram/idgen"
)

// ledger is a small Leases in memory, to let its store fail and its holders
// crash at will. The newest holder of a number wins.
type ledger struct {
	mu               sync.Mutex
	mark             map[int]idgen.ID
	holder           map[int]*ledgerLease
	broken           error // of Extend
	hang             int   // so many calls of Extend and Release end with their ctx only
	stores, released int
	slow             time.Duration // of Extend, which does not listen to its ctx
	busy             int           // calls of Extend
	faults           []string
}

type ledgerLease struct {
	*ledger
	shard int
	began idgen.ID
}

func newLedger() *ledger {
	return &ledger{mark: map[int]idgen.ID{}, holder: map[int]*ledgerLease{}}
}

func (l *ledger) Claim(_ context.Context, shard int, _ idgen.Layout) (idgen.Lease, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for shard == idgen.AnyShard {
		for shard = 0; l.holder[shard] != nil; shard++ {
		}
	}
	l.holder[shard] = &ledgerLease{l, shard, l.mark[shard]}
	return l.holder[shard], nil
}

func (l *ledger) fail(err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.broken = err
}

func (l *ledgerLease) Shard() int     { return l.shard }
func (l *ledgerLease) Mark() idgen.ID { return l.began }

// wait waits for ctx if this call hangs.
func (l *ledgerLease) wait(ctx context.Context) error {
	l.mu.Lock()
	hang := l.hang > 0
	if hang {
		l.hang--
	}
	l.mu.Unlock()
	if hang {
		<-ctx.Done()
		return ctx.Err()
	}
	return nil
}

func (l *ledgerLease) Extend(ctx context.Context, mark idgen.ID) error {
	l.mu.Lock()
	l.busy++
	slow := l.slow
	l.mu.Unlock()
	if slow > 0 {
		time.Sleep(slow)
	}
	err := l.wait(ctx)
	l.mu.Lock()
	defer l.mu.Unlock()
	l.busy--
	if err != nil {
		return err
	}
	if l.broken != nil {
		return l.broken
	}
	if l.holder[l.shard] != l {
		return idgen.ErrLeaseLost
	}
	if mark < l.ledger.mark[l.shard] {
		l.faults = append(l.faults, "the mark goes down")
		return errors.New("the mark goes down")
	}
	l.ledger.mark[l.shard] = mark
	l.stores++
	return nil
}

func (l *ledgerLease) Release(ctx context.Context, mark idgen.ID) error {
	if err := l.wait(ctx); err != nil {
		return err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.released++
	if l.busy > 0 {
		l.faults = append(l.faults, "Release during Extend")
	}
	if l.holder[l.shard] == l {
		l.ledger.mark[l.shard] = mark
		delete(l.holder, l.shard)
	}
	return nil
}

// bubble is the clock of a synctest bubble, which starts in the year 2000.
func bubble() idgen.Layout {
	layout := idgen.Default
	layout.Epoch = time.Now()
	time.Sleep(time.Hour)
	return layout
}

func TestOpenStaysBelowItsMark(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		layout, l := bubble(), newLedger()
		g, err := idgen.Open(t.Context(), l, 5, idgen.Config{Layout: layout})
		require.NoError(t, err)
		for range 20_000 {
			id := newID(t, g)
			l.mu.Lock()
			require.LessOrEqual(t, id, l.mark[5])
			require.LessOrEqual(t, time.Until(layout.Time(l.mark[5])), 3*time.Second)
			l.mu.Unlock()
			time.Sleep(time.Duration(id%7) * time.Millisecond)
		}
		require.NoError(t, g.Close())
		require.NoError(t, g.Close())
		_, err = g.Next(t.Context())
		require.ErrorIs(t, err, idgen.ErrClosed)
	})
}

// TestOpenGoesOnAboveACrash lets holder after holder end without Close, with
// clocks that are set back.
func TestOpenGoesOnAboveACrash(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		layout, l := bubble(), newLedger()
		var last idgen.ID
		var crashed []*idgen.Generator
		for generation := range 10 {
			back := time.Duration(generation%3) * 300 * time.Millisecond
			g, err := idgen.Open(t.Context(), l, 5, idgen.Config{Layout: layout, Now: func() time.Time { return time.Now().Add(-back) }})
			require.NoError(t, err)
			for range 3000 {
				id := newID(t, g)
				require.Greater(t, id, last, "generation %d", generation)
				last = id
			}
			crashed = append(crashed, g)
			time.Sleep(100 * time.Millisecond)
		}
		require.Less(t, time.Until(layout.Time(last)), 4500*time.Millisecond, "a crash costs a window once")
		for _, g := range crashed {
			require.NoError(t, g.Close())
		}
	})
}

func TestOpenWithAClockFarBackRefuses(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		layout, l := bubble(), newLedger()
		mark := layout.First(time.Now().Add(time.Minute)) | 5<<10
		l.mark[5] = mark
		g, err := idgen.Open(t.Context(), l, 5, idgen.Config{Layout: layout})
		require.NoError(t, err)
		_, err = g.Next(t.Context())
		require.ErrorIs(t, err, idgen.ErrClockBack)
		time.Sleep(56 * time.Second) // a second and a window are allowed
		require.Greater(t, newID(t, g), mark)
		require.NoError(t, g.Close())
	})
}

func TestCloseLeavesNoLead(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		layout, l := bubble(), newLedger()
		for range 3 {
			g, err := idgen.Open(t.Context(), l, 5, idgen.Config{Layout: layout})
			require.NoError(t, err)
			id := newID(t, g)
			require.Equal(t, time.Now(), layout.Time(id).In(time.Local))
			require.NoError(t, g.Close())
			require.Equal(t, id, l.mark[5])
		}
	})
}

func TestNextOutlivesAStoreThatIsAway(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		layout, l := bubble(), newLedger()
		g, err := idgen.Open(t.Context(), l, 5, idgen.Config{Layout: layout})
		require.NoError(t, err)
		away := errors.New("the store is away")
		l.fail(away)
		begin := time.Now()
		var last idgen.ID
		for time.Since(begin) < 2900*time.Millisecond {
			last = newID(t, g)
			time.Sleep(10 * time.Millisecond)
		}
		time.Sleep(200 * time.Millisecond)
		for range 3 {
			_, err = g.Next(t.Context())
			require.ErrorIs(t, err, away)
			_, err = g.TryNext()
			require.ErrorIs(t, err, away, "what the background found")
		}
		l.fail(nil)
		require.Greater(t, newID(t, g), last, "at once")
		require.NoError(t, g.Close())
	})
}

// TestTryNextAsksForTheMark has a generator that stood still for an hour, as a
// machine that was suspended: nothing of the time in between is permitted.
func TestTryNextAsksForTheMark(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		layout, l := bubble(), newLedger()
		var leap time.Duration
		now := func() time.Time { return time.Now().Add(leap) }
		g, err := idgen.Open(t.Context(), l, 5, idgen.Config{Layout: layout, Now: now})
		require.NoError(t, err)
		leap = time.Hour
		_, err = g.TryNext()
		require.ErrorIs(t, err, idgen.ErrFull)
		synctest.Wait() // for the background
		id, err := g.TryNext()
		require.NoError(t, err)
		require.Equal(t, now(), layout.Time(id).In(time.Local))
		require.NoError(t, g.Close())
	})
}

// TestTwoZombies lets a number go from holder to holder, none of which knows of
// its successor. What the old ones still make is below what the new ones begin
// with, and ends at their mark.
func TestTwoZombies(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		layout, l := bubble(), newLedger()
		seen := make(map[idgen.ID]bool)
		var holders []*idgen.Generator
		for range 3 {
			g, err := idgen.Open(t.Context(), l, 5, idgen.Config{Layout: layout})
			require.NoError(t, err)
			holders = append(holders, g)
			for _, g := range holders { // none has been told yet
				for range 2000 {
					id := newID(t, g)
					require.False(t, seen[id], "%d was made twice", id)
					seen[id] = true
				}
			}
		}
		time.Sleep(time.Hour)
		for _, zombie := range holders[:2] {
			for range 3 {
				_, err := zombie.Next(t.Context())
				require.ErrorIs(t, err, idgen.ErrLeaseLost)
				_, err = zombie.TryNext()
				require.ErrorIs(t, err, idgen.ErrLeaseLost)
			}
			require.NoError(t, zombie.Close())
			_, err := zombie.Fill(t.Context(), make([]idgen.ID, 5000))
			require.ErrorIs(t, err, idgen.ErrLeaseLost)
			_, err = zombie.Next(t.Context())
			require.ErrorIs(t, err, idgen.ErrLeaseLost)
		}
		require.Greater(t, layout.Time(newID(t, holders[2])), layout.Epoch.Add(2*time.Hour-time.Second))
		require.NoError(t, holders[2].Close())
		require.Equal(t, 3, l.released, "also of those that were lost")
	})
}

func TestAnyShardGivesNumbersToAll(t *testing.T) {
	t.Parallel()
	l := newLedger()
	for want := range 3 {
		g, err := idgen.Open(t.Context(), l, idgen.AnyShard, idgen.Config{})
		require.NoError(t, err)
		defer func() { require.NoError(t, g.Close()) }()
		require.Equal(t, want, g.Shard())
		require.Equal(t, want, idgen.Default.Shard(newID(t, g)))
	}
}

func TestOpenGivesBackWhatItCannotUse(t *testing.T) {
	t.Parallel()
	l := newLedger()
	broken := errors.New("the disk is full")
	l.fail(broken)
	_, err := idgen.Open(t.Context(), l, 5, idgen.Config{})
	require.ErrorIs(t, err, broken)
	require.Nil(t, l.holder[5])

	for _, shard := range []int{-2, 8192} {
		_, err = idgen.Open(t.Context(), l, shard, idgen.Config{})
		require.Error(t, err)
	}
	_, err = idgen.Open(t.Context(), l, idgen.AnyShard, idgen.Config{After: 1})
	require.Error(t, err)
	_, err = idgen.Open(t.Context(), l, 5, idgen.Config{Window: time.Millisecond})
	require.Error(t, err)
	_, err = idgen.Open(t.Context(), l, 5, idgen.Config{After: 6<<10 | 1})
	require.ErrorContains(t, err, "is of shard 6")
	_, err = idgen.Open(t.Context(), nil, 5, idgen.Config{})
	require.Error(t, err)
	require.Empty(t, l.holder)
}
