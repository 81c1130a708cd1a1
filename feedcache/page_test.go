package feedcache_test

import (
	"context"
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"strconv"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/shardgram/shardgram/feedcache"
	"github.com/shardgram/shardgram/internal/testserver"
)

// What a page costs, and where it comes from.
func TestPageReadsTheSourceOnlyWhereItMust(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	rdb := testserver.Redis(t)
	var trips tripCounter
	rdb.AddHook(&trips)
	_, err := open(t, rdb, new(table).Source, feedcache.Config{Prefix: "other"}).Page(ctx, 1, 0, 1)
	require.NoError(t, err) // the server knows the scripts
	tests := []struct {
		name  string
		rows  int64 // in the Source; IDs are 1 to rows
		n     int
		pages []int64 // the oldest ID of each page
		reads [][]int // what each page asked the Source for
	}{
		{name: "Empty", rows: 0, n: 5, pages: []int64{0}, reads: [][]int{{10}}},
		{name: "OnePage", rows: 5, n: 5, pages: []int64{1}, reads: [][]int{{10}}},
		{name: "ShorterThanCap", rows: 9, n: 5, pages: []int64{5, 1}, reads: [][]int{{10}, nil}},
		{name: "SmallPages", rows: 5, n: 2, pages: []int64{4, 2, 1}, reads: [][]int{{10}, nil, nil}},
		// The feed cannot know that a Source of exactly Cap IDs has no more.
		{name: "AsLongAsCap", rows: 10, n: 5, pages: []int64{6, 1, 0}, reads: [][]int{{10}, nil, {6}}},
		{name: "PageEndsAtTheFloor", rows: 14, n: 5, pages: []int64{10, 5, 1}, reads: [][]int{{10}, nil, {6}}},
		{name: "PageCrossesTheFloor", rows: 15, n: 6, pages: []int64{10, 4, 1}, reads: [][]int{{10}, {3}, {7}}},
		{name: "FarBelowTheFloor", rows: 30, n: 12, pages: []int64{19, 7, 1}, reads: [][]int{{10, 3}, {13}, {13}}},
	}
	for i, test := range tests {
		// Not parallel: they share the count of round trips.
		t.Run(test.name, func(t *testing.T) {
			owner := int64(i + 1)
			var src table
			src.insert(owner, seq(test.rows, 1)...)
			feeds := open(t, rdb, src.Source, feedcache.Config{Cap: 10, FailoverCheck: time.Hour})
			var before, last int64 = 0, test.rows + 1
			trips.took()
			for p, oldest := range test.pages {
				page, err := feeds.Page(ctx, owner, before, test.n)
				require.NoError(t, err)
				require.Equal(t, test.reads[p], src.took())
				want := seq(last-1, max(oldest, 1))
				if oldest == 0 {
					want = nil
				}
				require.True(t, slices.Equal(want, page.IDs), "%v", page.IDs)
				n, _ := trips.took()
				if p > 0 {
					require.Equal(t, 1, n, "a warm feed")
				} else {
					require.Equal(t, 3, n, "a cold feed")
				}
				before, last = page.Next, oldest
			}
			require.Zero(t, before, "the end of the feed")

			page, err := feeds.Page(ctx, owner, 0, test.n)
			require.NoError(t, err)
			require.Equal(t, min(test.n, int(test.rows)), len(page.IDs))
			n, ranges := trips.took()
			require.Equal(t, 1, n, "a warm first page")
			want := "whole"
			if test.n <= feeds.HeadIDs()/2 {
				want = "newest"
			}
			require.Equal(t, []string{want}, ranges)
		})
	}
}

// The newest part of a feed is not always enough: here it runs dry since what
// it has was removed.
func TestFirstPageOfAnEmptiedHead(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	rdb := testserver.Redis(t)
	var trips tripCounter
	for left := range 5 {
		owner := int64(left + 1)
		var src table
		src.insert(owner, seq(100, 1)...)
		feeds := open(t, hooked(t, rdb, &trips), src.Source, feedcache.Config{Cap: 64, FailoverCheck: time.Hour})
		require.Equal(t, 8, feeds.HeadIDs())
		_, err := feeds.Page(ctx, owner, 0, 1)
		require.NoError(t, err)
		gone := seq(100, 93+int64(left)) // the head has 93 to 100
		_, err = feeds.Remove(ctx, one(owner), gone...)
		require.NoError(t, err)
		for _, id := range gone {
			src.remove(owner, id)
		}
		src.took()
		trips.took()
		page, err := feeds.Page(ctx, owner, 0, 4)
		require.NoError(t, err)
		require.Equal(t, feedcache.Page{IDs: src.newest(owner)[:4], Next: src.newest(owner)[3]}, page)
		n, ranges := trips.took()
		if left < 4 {
			require.Equal(t, 2, n)
			require.Equal(t, []string{"newest", "whole"}, ranges)
		} else {
			require.Equal(t, 1, n)
		}
		require.Empty(t, src.took(), "all of it from the feed")
		got, err := walk(ctx, feeds, owner, 3)
		require.NoError(t, err)
		require.Equal(t, src.newest(owner), got)
	}
}

// The feed is evicted, or filled anew, between the two reads of a page.
func TestFeedGoesBetweenTheReadsOfAPage(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	rdb := testserver.Redis(t)
	var src table
	src.insert(1, seq(100, 1)...)
	second := &before{}
	feeds := open(t, hooked(t, rdb, second), src.Source, feedcache.Config{Cap: 64, FailoverCheck: time.Hour})
	others := open(t, rdb, src.Source, feedcache.Config{Cap: 64})
	for _, then := range []func(){
		func() { must(0, others.Drop(ctx, 1)) },
		func() { must(0, others.Drop(ctx, 1)); must(others.Page(ctx, 1, 0, 1)) },
		func() { put(ctx, rdb, "feed:1", time.Hour, "foreign", "list") },
	} {
		require.NoError(t, feeds.Drop(ctx, 1))
		_, err := feeds.Page(ctx, 1, 0, 1)
		require.NoError(t, err)
		*second = before{name: "lrange", do: func() { *second = before{name: "lrange", do: then} }}
		page, err := feeds.PageKeep(ctx, 1, 0, 3, func(_ context.Context, ids []int64) ([]int64, error) {
			return slices.DeleteFunc(ids, func(id int64) bool { return id > 90 }), nil
		})
		require.NoError(t, err)
		require.Nil(t, second.do)
		require.Equal(t, feedcache.Page{IDs: seq(90, 88), Next: 88}, page)
	}
}

func TestPageIsExactForAdjacentIDsOfAnyAge(t *testing.T) {
	t.Parallel()
	rdb := testserver.Redis(t)
	for _, years := range []int{0, 3, 10, 34} {
		t.Run(strconv.Itoa(years)+"Years", func(t *testing.T) {
			t.Parallel()
			ctx := t.Context()
			owner := int64(years + 1)
			var src table
			var want []int64
			for i := 1023; i >= 1; i-- {
				want = append(want, idAt(years, i))
			}
			// A third each from the Source, from a push and from below the floor.
			src.insert(owner, want[341:]...)
			feeds := open(t, rdb, src.Source, feedcache.Config{Cap: 341})
			_, err := feeds.Page(ctx, owner, 0, 1)
			require.NoError(t, err)
			src.insert(owner, want[:341]...)
			for ids := range slices.Chunk(want[:341], 50) { // which compactions do not end
				d, err := feeds.Push(ctx, one(owner), ids...)
				require.NoError(t, err)
				require.Equal(t, feedcache.Delivery{Warm: 1}, d)
			}
			require.Positive(t, feeds.Stats().Compactions)
			for _, n := range []int{5, 21, 22, 1000} {
				got, err := walk(ctx, feeds, owner, n)
				require.NoError(t, err)
				require.Equal(t, want, got)
			}
			require.EqualValues(t, 1, feeds.Stats().Rebuilds)
		})
	}
}

func TestPageRefusesASourceThatBreaksItsPromise(t *testing.T) {
	t.Parallel()
	rdb := testserver.Redis(t)
	for name, ids := range map[string][]int64{
		"TooMany":   {4, 3, 2, 1},
		"Ascending": {1, 2, 3},
		"Repeated":  {3, 3, 2},
		"Zero":      {2, 1, 0},
		"Negative":  {2, -1},
		"Top":       {math.MaxInt64},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			src := func(context.Context, int64, int64, int) ([]int64, error) { return ids, nil }
			feeds := open(t, rdb, src, feedcache.Config{Prefix: name, Cap: 3})
			_, err := feeds.Page(t.Context(), 1, 0, 3)
			require.ErrorContains(t, err, "feedcache: page "+name+":1: source returned")
			require.Zero(t, rdb.Exists(t.Context(), name+":1").Val(), "the lease is given back")
			_, err = feeds.Unseen(t.Context(), 1)
			require.ErrorContains(t, err, "feedcache: unseen "+name+":1: source returned")
		})
	}
	// Below the floor it is asked in another place.
	var src table
	src.insert(1, seq(9, 1)...)
	feeds := open(t, rdb, func(ctx context.Context, owner, before int64, n int) ([]int64, error) {
		return src.Source(ctx, owner, max(before, 9), n) // as if there were no cursor
	}, feedcache.Config{Cap: 3})
	_, err := walk(t.Context(), feeds, 1, 2)
	require.ErrorContains(t, err, "source returned an ID out of order at index 0")
}

func TestPageWhenTheSourceFails(t *testing.T) {
	t.Parallel()
	rdb := testserver.Redis(t)
	var src table
	src.insert(1, 7)
	errDown := errors.New("database is down")
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	fail := func() error { return errDown }
	feeds := open(t, rdb, func(ctx context.Context, owner, before int64, n int) ([]int64, error) {
		if fail != nil {
			return nil, fail()
		}
		return src.Source(ctx, owner, before, n)
	}, feedcache.Config{Cap: 1})

	_, err := feeds.Page(ctx, 1, 0, 3)
	require.ErrorIs(t, err, errDown)
	require.EqualError(t, err, "feedcache: page feed:1: source: database is down")
	require.Zero(t, rdb.Exists(t.Context(), "feed:1").Val(), "the lease is given back")

	fail = func() error { cancel(); return ctx.Err() }
	_, err = feeds.Page(ctx, 1, 0, 3)
	require.ErrorIs(t, err, context.Canceled)
	require.Zero(t, rdb.Exists(t.Context(), "feed:1").Val(), "also when the reader is gone")

	_, err = feeds.Page(ctx, 1, 0, 3)
	require.ErrorIs(t, err, context.Canceled, "a context that has ended")

	fail = nil
	page, err := feeds.Page(t.Context(), 1, 0, 3)
	require.NoError(t, err, "the feeds stay usable")
	require.Equal(t, []int64{7}, page.IDs)

	fail = func() error { return errDown }
	_, err = feeds.Page(t.Context(), 1, 0, 1)
	require.NoError(t, err, "a warm page does without")
	_, err = feeds.Page(t.Context(), 1, 0, 2)
	require.EqualError(t, err, "feedcache: page feed:1: source: database is down", "below the floor it cannot")
	require.EqualValues(t, 1, rdb.Exists(t.Context(), "feed:1").Val(), "and the feed stays")
}

// walkKeep is walk with a Keep.
func walkKeep(ctx context.Context, f *feedcache.Feeds, owner int64, n int, keep feedcache.Keep) (pages [][]int64, err error) {
	for before := int64(0); ; {
		page, err := f.PageKeep(ctx, owner, before, n, keep)
		if err != nil {
			return nil, err
		}
		pages = append(pages, page.IDs)
		if before = page.Next; before == 0 {
			return pages, nil
		}
	}
}

// A page is full for as long as there is something to fill it with, above and
// below the floor, whatever share of the IDs is let through.
func TestPageKeepFillsThePage(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	var src table
	src.insert(1, seq(700, 1)...)
	feeds := open(t, testserver.Redis(t), src.Source, feedcache.Config{Cap: 128})
	for _, every := range []int64{1, 2, 7, 100, 699} {
		for _, n := range []int{1, 5, 40, 1000} {
			keep := func(_ context.Context, ids []int64) ([]int64, error) {
				require.NotEmpty(t, ids)
				require.LessOrEqual(t, len(ids), feedcache.MaxPage)
				require.True(t, slices.IsSortedFunc(ids, func(a, b int64) int { return int(b - a) }))
				kept := slices.DeleteFunc(ids, func(id int64) bool { return id%every != 0 })
				rand.Shuffle(len(kept), func(i, j int) { kept[i], kept[j] = kept[j], kept[i] })
				kept = append(kept, kept...)             // twice
				return append(kept, 1000, 0, -5, 0), nil // and others
			}
			pages, err := walkKeep(ctx, feeds, 1, n, keep)
			require.NoError(t, err)
			want := slices.DeleteFunc(seq(700, 1), func(id int64) bool { return id%every != 0 })
			require.Equal(t, want, slices.Concat(pages...))
			for _, page := range pages[:len(pages)-1] {
				require.Len(t, page, n)
			}
		}
	}
	require.Zero(t, feeds.Stats().ShortPages)
}

// What keep sees is its own: a change of it must not reach the page, nor the
// feed.
func TestPageKeepCopiesTheIDs(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	var src table
	src.insert(1, seq(9, 1)...)
	feeds := open(t, testserver.Redis(t), src.Source, feedcache.Config{})
	page, err := feeds.PageKeep(ctx, 1, 0, 3, func(_ context.Context, ids []int64) ([]int64, error) {
		kept := slices.Clone(ids)
		clear(ids)
		return kept, nil
	})
	require.NoError(t, err)
	require.Equal(t, feedcache.Page{IDs: seq(9, 7), Next: 7}, page)
}

func TestPageKeepGivesUp(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	var src table
	src.insert(1, seq(25_500, 1)...)
	examined := 0
	var short []feedcache.Event
	feeds := open(t, testserver.Redis(t), src.Source, feedcache.Config{Observe: func(e feedcache.Event) {
		if e.Kind == feedcache.ShortPage {
			short = append(short, e)
		}
	}})
	var left []int64
	keep := func(_ context.Context, ids []int64) ([]int64, error) {
		examined += len(ids)
		return left, nil
	}
	for _, ids := range [][]int64{nil, {25_000, 3}} {
		left, short = ids, nil
		var got []int64
		var cursors []int64
		for before := int64(0); ; {
			examined = 0
			page, err := feeds.PageKeep(ctx, 1, before, 20, keep)
			require.NoError(t, err)
			require.Less(t, examined, feedcache.MaxExamined+feedcache.MaxPage)
			got = append(got, page.IDs...)
			if before = page.Next; before == 0 {
				break
			}
			require.GreaterOrEqual(t, examined, feedcache.MaxExamined)
			cursors = append(cursors, before)
		}
		require.True(t, slices.Equal(ids, got), "%v", got)
		require.Len(t, cursors, 2)
		require.Len(t, short, 2)
		require.Equal(t, feedcache.Event{Kind: feedcache.ShortPage, Owner: 1, N: min(1, len(ids))}, short[0])
	}
	require.EqualValues(t, 4, feeds.Stats().ShortPages)
}

func TestPageKeepFails(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	var src table
	src.insert(1, seq(30, 1)...)
	feeds := open(t, testserver.Redis(t), src.Source, feedcache.Config{Cap: 10})
	errDown := errors.New("objects are away")
	for _, after := range []int{0, 1, 2} {
		calls := 0
		page, err := feeds.PageKeep(ctx, 1, 0, 5, func(context.Context, []int64) ([]int64, error) {
			if calls++; calls > after {
				return nil, errDown
			}
			return nil, nil
		})
		require.ErrorIs(t, err, errDown)
		require.EqualError(t, err, "feedcache: page feed:1: keep: objects are away")
		require.Zero(t, page)
	}
	short, cancel := context.WithCancel(ctx)
	_, err := feeds.PageKeep(short, 1, 0, 5, func(context.Context, []int64) ([]int64, error) {
		cancel()
		return nil, nil
	})
	require.ErrorIs(t, err, context.Canceled)
	page, err := feeds.Page(ctx, 1, 0, 5)
	require.NoError(t, err)
	require.Equal(t, seq(30, 26), page.IDs)
}

// What is pushed while keep runs moves no page of a walk, and is on the next
// first page.
func TestPageKeepWhilePushesLand(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	var src table
	src.insert(1, seq(300, 1)...)
	feeds := open(t, testserver.Redis(t), src.Source, feedcache.Config{Cap: 64})
	next := int64(301)
	got, err := walkKeep(ctx, feeds, 1, 10, func(_ context.Context, ids []int64) ([]int64, error) {
		for range 9 {
			src.insert(1, next)
			must(feeds.Push(ctx, one(1), next))
			next++
		}
		return slices.DeleteFunc(ids, func(id int64) bool { return id%3 == 0 || id > 300 }), nil
	})
	require.NoError(t, err)
	want := slices.DeleteFunc(seq(300, 1), func(id int64) bool { return id%3 == 0 })
	require.Equal(t, want, slices.Concat(got...))
	all, err := walk(ctx, feeds, 1, 100)
	require.NoError(t, err)
	require.Equal(t, src.newest(1), all)
}

func TestPagesOfAllSizes(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	var src table
	src.insert(1, seq(150, 1)...)
	feeds := open(t, testserver.Redis(t), src.Source, feedcache.Config{Cap: 100})
	for n := 1; n < 160; n += 1 + n/4 {
		got, err := walk(ctx, feeds, 1, n)
		require.NoError(t, err)
		require.Equal(t, seq(150, 1), got, "pages of %d", n)
	}
	// A cursor need not be an ID of the feed.
	for _, cursor := range []int64{1, 2, 37, 50, 51, 52, 150, 151, 1 << 40, math.MaxInt64} {
		page, err := feeds.Page(ctx, 1, cursor, 7)
		require.NoError(t, err)
		newest := min(150, cursor-1)
		require.True(t, slices.Equal(seq(newest, max(1, newest-6)), page.IDs), fmt.Sprint(cursor, page.IDs))
	}
}
