package feedcache_test

import (
	"context"
	"errors"
	"math"
	"slices"
	"strconv"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/shardgram/shardgram/feedcache"
	"github.com/shardgram/shardgram/internal/testserver"
)

// without leaves out IDs.
func without(gone func(id int64) bool) func([]int64) ([]int64, error) {
	return func(ids []int64) ([]int64, error) { return slices.DeleteFunc(ids, gone), nil }
}

func by3(id int64) bool { return id%3 == 0 }

// An owner unfollows an author, whose posts still arrive; follows again, and
// has all of them back.
func TestEditUnfollowAndFollowAgain(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	rdb := testserver.Redis(t)
	var src table
	src.insert(1, seq(200, 1)...)
	feeds := open(t, rdb, src.Source, feedcache.Config{Cap: 64})
	_, err := feeds.Page(ctx, 1, 0, 1)
	require.NoError(t, err)
	right := func() {
		t.Helper()
		for _, n := range []int{2, 4, 50} {
			got, err := walk(ctx, feeds, 1, n)
			require.NoError(t, err)
			require.Equal(t, src.newest(1), got)
		}
		require.EqualValues(t, 1, feeds.Stats().Rebuilds)
	}
	for _, id := range slices.DeleteFunc(seq(200, 1), func(id int64) bool { return !by3(id) }) {
		src.remove(1, id)
	}
	var seen []int64
	require.NoError(t, feeds.Edit(ctx, 1, func(ids []int64) ([]int64, error) {
		seen = slices.Clone(ids)
		return without(by3)(ids)
	}))
	require.Equal(t, seq(200, 137), seen, "the cached feed, newest first")
	right()
	for range 20 { // fan-outs that began before, over compactions
		_, err := feeds.Push(ctx, one(1), 198, 150, 30)
		require.NoError(t, err)
	}
	require.Positive(t, feeds.Stats().Compactions)
	right()
	require.NoError(t, feeds.Edit(ctx, 1, without(by3)), "as safe to repeat")
	right()

	back := slices.DeleteFunc(seq(200, 1), func(id int64) bool { return !by3(id) })
	src.insert(1, back...)
	require.NoError(t, feeds.Edit(ctx, 1, func(ids []int64) ([]int64, error) {
		require.NotContains(t, ids, int64(198))
		return append(ids, back...), nil
	}))
	right()
	require.EqualValues(t, 3, feeds.Stats().Edits)
	src.took()
	page, err := feeds.Page(ctx, 1, 0, 40)
	require.NoError(t, err)
	require.Equal(t, seq(200, 161), page.IDs)
	require.Empty(t, src.took())
}

// What edit returns may be in any order, with others below the floor, and
// twice; none of it is lost at the cap.
func TestEditAddsAnything(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	rdb := testserver.Redis(t)
	var src table
	for id := int64(2); id <= 400; id += 2 {
		src.insert(1, id)
	}
	feeds := open(t, rdb, src.Source, feedcache.Config{Cap: 64})
	_, err := feeds.Page(ctx, 1, 0, 1)
	require.NoError(t, err)
	floor := stored(t, rdb, "feed:1").Floor()
	var odd []int64
	for id := int64(1); id <= 501; id += 2 {
		odd = append(odd, id)
	}
	src.insert(1, odd...)
	require.NoError(t, feeds.Edit(ctx, 1, func(ids []int64) ([]int64, error) {
		return slices.Concat(odd, ids, odd, ids[:3]), nil
	}))
	v := stored(t, rdb, "feed:1")
	require.Equal(t, 64, v.Len())
	require.Greater(t, v.Floor(), floor)
	for _, n := range []int{3, 50} {
		got, err := walk(ctx, feeds, 1, n)
		require.NoError(t, err)
		require.Equal(t, src.newest(1), got)
	}

	// All of it gone, and some of it back.
	require.NoError(t, feeds.Edit(ctx, 1, without(func(int64) bool { return true })))
	page, err := feeds.Page(ctx, 1, 0, 1)
	require.NoError(t, err)
	require.Less(t, page.IDs[0], v.Floor(), "from the Source: the feed is empty down to the floor")
	require.NoError(t, feeds.Edit(ctx, 1, func(ids []int64) ([]int64, error) {
		require.Empty(t, ids)
		return []int64{501, v.Floor(), v.Floor() - 1}, nil
	}))
	page, err = feeds.Page(ctx, 1, 0, 2)
	require.NoError(t, err)
	require.Equal(t, []int64{501, v.Floor()}, page.IDs)
}

// A process with a larger cap edits a feed that is shorter: IDs below its floor
// would make room for a hole.
func TestEditWithALargerCap(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	rdb := testserver.Redis(t)
	var src table
	src.insert(1, seq(300, 1)...)
	small := open(t, rdb, src.Source, feedcache.Config{Cap: 32})
	large := open(t, rdb, src.Source, feedcache.Config{Cap: 64})
	_, err := small.Page(ctx, 1, 0, 1)
	require.NoError(t, err)
	require.NoError(t, large.Edit(ctx, 1, func(ids []int64) ([]int64, error) { return append(ids, seq(100, 1)...), nil }))
	require.Equal(t, int64(269), stored(t, rdb, "feed:1").Floor())
	got, err := walk(ctx, large, 1, 9)
	require.NoError(t, err)
	require.Equal(t, seq(300, 1), got)
}

// A change of what edit is given is edit's own affair.
func TestEditCopiesTheIDs(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	var src table
	src.insert(1, seq(9, 1)...)
	feeds := open(t, testserver.Redis(t), src.Source, feedcache.Config{})
	_, err := feeds.Page(ctx, 1, 0, 1)
	require.NoError(t, err)
	require.NoError(t, feeds.Edit(ctx, 1, func(ids []int64) ([]int64, error) {
		kept := slices.Clone(ids)
		clear(ids)
		return kept, nil
	}))
	got, err := walk(ctx, feeds, 1, 4)
	require.NoError(t, err)
	require.Equal(t, seq(9, 1), got)
}

// Ops that land while edit runs stay, and do not make it run again.
func TestEditKeepsWhatLandsMeanwhile(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	rdb := testserver.Redis(t)
	var src table
	src.insert(1, seq(100, 1)...)
	feeds := open(t, rdb, src.Source, feedcache.Config{Cap: 64})
	_, err := feeds.Page(ctx, 1, 0, 1)
	require.NoError(t, err)
	runs := 0
	require.NoError(t, feeds.Edit(ctx, 1, func(ids []int64) ([]int64, error) {
		runs++
		src.insert(1, 101, 102)
		must(feeds.Push(ctx, one(1), 101, 102))
		src.remove(1, 100)
		must(feeds.Remove(ctx, one(1), 100))
		must(0, feeds.Seen(ctx, 1, 90))
		for _, id := range ids {
			if by3(id) {
				src.remove(1, id)
			}
		}
		return without(by3)(ids)
	}))
	require.Equal(t, 1, runs)
	got, err := walk(ctx, feeds, 1, 3)
	require.NoError(t, err)
	require.Equal(t, src.newest(1), got)
	require.Equal(t, int64(90), stored(t, rdb, "feed:1").Mark())
}

// Something else rewrote the feed while edit ran: edit runs again, on what is
// there now.
func TestEditAfterALostRace(t *testing.T) {
	t.Parallel()
	rdb := testserver.Redis(t)
	now := time.Now()
	for i, test := range []struct {
		name string
		race func(ctx context.Context, others *feedcache.Feeds, owner int64)
	}{
		{name: "Compaction", race: func(ctx context.Context, others *feedcache.Feeds, owner int64) {
			for range others.Slack() {
				must(others.Push(ctx, one(owner), 300))
			}
		}},
		{name: "Renewal", race: func(ctx context.Context, others *feedcache.Feeds, owner int64) {
			must(others.Push(ctx, one(owner), 300))
			must(others.Page(ctx, owner, 0, 1))
		}},
		{name: "Edit", race: func(ctx context.Context, others *feedcache.Feeds, owner int64) {
			must(0, others.Edit(ctx, owner, func(ids []int64) ([]int64, error) { return append(ids, 300), nil }))
		}},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			ctx, owner := t.Context(), int64(i+1)
			var src table
			src.insert(owner, seq(100, 1)...)
			race := &before{}
			feeds := open(t, hooked(t, rdb, race), src.Source, feedcache.Config{Cap: 64, TTL: time.Hour})
			others := open(t, rdb, src.Source, feedcache.Config{
				Cap: 64, TTL: time.Hour, Now: func() time.Time { return now.Add(31 * time.Minute) },
			})
			_, err := feeds.Page(ctx, owner, 0, 1)
			require.NoError(t, err)
			*race = before{name: "evalsha", do: func() {
				src.insert(owner, 300)
				test.race(ctx, others, owner)
			}}
			var saw []bool
			require.NoError(t, feeds.Edit(ctx, owner, func(ids []int64) ([]int64, error) {
				saw = append(saw, slices.Contains(ids, 300))
				return without(by3)(ids)
			}))
			require.Equal(t, []bool{false, true}, saw)
			want := slices.DeleteFunc(src.newest(owner), by3)
			page, err := feeds.Page(ctx, owner, 0, 20)
			require.NoError(t, err)
			require.Equal(t, want[:20], page.IDs)
			require.EqualValues(t, 1, feeds.Stats().Edits)
			require.EqualValues(t, 1, feeds.Stats().Rebuilds)
		})
	}
}

// An edit that loses all its races makes the feed cold: the Source has it.
func TestEditThatLosesEveryRace(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	rdb := testserver.Redis(t)
	var src table
	src.insert(1, seq(100, 1)...)
	feeds := open(t, rdb, src.Source, feedcache.Config{Cap: 64})
	_, err := feeds.Page(ctx, 1, 0, 1)
	require.NoError(t, err)
	runs := 0
	require.NoError(t, feeds.Edit(ctx, 1, func(ids []int64) ([]int64, error) {
		runs++
		for range feeds.Slack() {
			must(feeds.Push(ctx, one(1), 100))
		}
		return without(by3)(ids)
	}))
	require.Equal(t, feedcache.MaxEdits, runs)
	require.Zero(t, rdb.Exists(ctx, "feed:1").Val())
	require.EqualValues(t, 1, feeds.Stats().Edits)
}

func TestEditOfAFeedThatIsNotThere(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	rdb := testserver.Redis(t)
	var src table
	src.insert(1, seq(9, 1)...)
	feeds := open(t, rdb, src.Source, feedcache.Config{})
	never := func([]int64) ([]int64, error) { return nil, errors.New("not to be called") }
	require.NoError(t, feeds.Edit(ctx, 1, never), "cold")
	require.Zero(t, feeds.Stats().Edits)
	require.Zero(t, rdb.DBSize(ctx).Val())

	// It is being filled, maybe from before the change: it becomes cold, and
	// what the reader brings is not stored.
	src.around = func(before bool) {
		if !before {
			src.around = nil
			src.remove(1, 5)
			must(0, feeds.Edit(ctx, 1, never))
		}
	}
	_, err := feeds.Page(ctx, 1, 0, 3)
	require.NoError(t, err)
	require.Zero(t, rdb.DBSize(ctx).Val())
	require.Equal(t, feedcache.Stats{Edits: 1, SourceReads: 1}, feeds.Stats())
	got, err := walk(ctx, feeds, 1, 3)
	require.NoError(t, err)
	require.Equal(t, src.newest(1), got)

	// It goes while edit runs.
	require.NoError(t, feeds.Edit(ctx, 1, func(ids []int64) ([]int64, error) {
		must(0, feeds.Drop(ctx, 1))
		return without(by3)(ids)
	}))
	require.Zero(t, rdb.DBSize(ctx).Val())
	// Or is replaced by the lease of another reader.
	_, err = feeds.Page(ctx, 1, 0, 3)
	require.NoError(t, err)
	require.NoError(t, feeds.Edit(ctx, 1, func(ids []int64) ([]int64, error) {
		put(ctx, rdb, "feed:1", time.Minute, "", headOn(t, feeds, buildingTag, 0, 0))
		return without(by3)(ids)
	}))
	require.Zero(t, rdb.DBSize(ctx).Val(), "the reader may have read before the change")
}

func TestEditThatFails(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	rdb := testserver.Redis(t)
	var src table
	src.insert(1, seq(9, 1)...)
	feeds := open(t, rdb, src.Source, feedcache.Config{})
	_, err := feeds.Page(ctx, 1, 0, 1)
	require.NoError(t, err)
	was := rdb.LRange(ctx, "feed:1", 0, -1).Val()
	errDown := errors.New("database is down")
	err = feeds.Edit(ctx, 1, func([]int64) ([]int64, error) { return nil, errDown })
	require.ErrorIs(t, err, errDown)
	require.EqualError(t, err, "feedcache: edit feed:1: database is down")
	for i, bad := range []int64{0, -1, math.MaxInt64} {
		err = feeds.Edit(ctx, 1, func(ids []int64) ([]int64, error) { return append(ids[:i], bad), nil })
		require.ErrorIs(t, err, feedcache.ErrInvalid)
		require.ErrorContains(t, err, "ID at index "+strconv.Itoa(i))
	}
	short, cancel := context.WithCancel(ctx)
	err = feeds.Edit(short, 1, func(ids []int64) ([]int64, error) { cancel(); return nil, nil })
	require.ErrorIs(t, err, context.Canceled)
	require.Equal(t, was, rdb.LRange(ctx, "feed:1", 0, -1).Val())
	require.Zero(t, feeds.Stats().Edits)
}
