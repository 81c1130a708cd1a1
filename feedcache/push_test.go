package feedcache_test

import (
	"slices"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/shardgram/shardgram/feedcache"
	"github.com/shardgram/shardgram/internal/testserver"
)

func TestPushReachesWarmFeedsOnly(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	rdb := testserver.Redis(t)
	var trips tripCounter
	rdb.AddHook(&trips)
	var src table
	feeds := open(t, rdb, src.Source, feedcache.Config{})
	var owners, warm []int64
	for owner := int64(1); owner <= 1201; owner++ {
		owners = append(owners, owner)
		if owner%3 == 0 {
			warm = append(warm, owner)
			_, err := feeds.Page(ctx, owner, 0, 1)
			require.NoError(t, err)
		}
	}
	_, err := feeds.Push(ctx, one(1), 1) // the server now knows the script
	require.NoError(t, err)

	trips.n.Store(0)
	d, err := feeds.Push(ctx, slices.Values(owners), 10, 30, 20)
	require.NoError(t, err)
	require.Equal(t, feedcache.Delivery{Warm: len(warm), Cold: len(owners) - len(warm)}, d)
	require.EqualValues(t, 3, trips.n.Load(), "1201 owners in windows of 500")
	again, err := feeds.Push(ctx, slices.Values(owners), 20)
	require.NoError(t, err)
	require.Equal(t, d, again)
	removal, err := feeds.Remove(ctx, slices.Values(owners), 30)
	require.NoError(t, err)
	require.Equal(t, d, removal)

	for _, owner := range warm {
		page, err := feeds.Page(ctx, owner, 0, 5)
		require.NoError(t, err)
		require.Equal(t, feedcache.Page{IDs: []int64{20, 10}}, page)
	}
	keys, err := rdb.DBSize(ctx).Result()
	require.NoError(t, err)
	require.EqualValues(t, len(warm), keys, "a push makes no keys")
}

func TestPushOfManyIDsUsesSmallerWindows(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	rdb := testserver.Redis(t)
	var trips tripCounter
	rdb.AddHook(&trips)
	feeds := open(t, rdb, new(table).Source, feedcache.Config{})
	ids := seq(1<<16, 1) // 512 KiB of ops: two feeds a window
	owners := []int64{1, 2, 3, 4, 5}
	_, err := feeds.Page(ctx, 5, 0, 1)
	require.NoError(t, err)
	_, err = feeds.Push(ctx, one(1), 1)
	require.NoError(t, err)
	trips.n.Store(0)
	d, err := feeds.Push(ctx, slices.Values(owners), ids...)
	require.NoError(t, err)
	require.Equal(t, feedcache.Delivery{Warm: 1, Cold: 4}, d)
	require.EqualValues(t, 3+2, trips.n.Load(), "three windows and a compaction")
	page, err := feeds.Page(ctx, 5, 0, 1000)
	require.NoError(t, err)
	require.Equal(t, seq(1<<16, 1<<16-799), page.IDs, "cut at the cap; the Source of this test has no more")
}

func TestRemovalHoldsForLaterPushes(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	var src table
	src.insert(1, 10, 20)
	feeds := open(t, testserver.Redis(t), src.Source, feedcache.Config{Cap: 3})
	_, err := feeds.Page(ctx, 1, 0, 1)
	require.NoError(t, err)
	_, err = feeds.Remove(ctx, one(1), 30, 20)
	require.NoError(t, err)
	for range 10 { // and over compactions
		_, err = feeds.Push(ctx, one(1), 30, 20)
		require.NoError(t, err)
	}
	page, err := feeds.Page(ctx, 1, 0, 5)
	require.NoError(t, err)
	require.Equal(t, feedcache.Page{IDs: []int64{10}}, page)
}

// A log stays below twice the cap and one push, whatever it is made of, and no
// compaction changes what a reader sees.
func TestCompactionBoundsTheLog(t *testing.T) {
	t.Parallel()
	const limit = 10
	tests := []struct {
		name   string
		change func(i int64) (push, remove []int64)
	}{
		{name: "Pushes", change: func(i int64) ([]int64, []int64) { return []int64{i}, nil }},
		{name: "TheSamePush", change: func(int64) ([]int64, []int64) { return []int64{50}, nil }},
		{name: "Removals", change: func(i int64) ([]int64, []int64) { return []int64{i}, []int64{i} }},
		{name: "OldPushes", change: func(i int64) ([]int64, []int64) { return []int64{1000 - i}, nil }},
		{name: "SomeOfEach", change: func(i int64) ([]int64, []int64) {
			if i%3 == 0 {
				return []int64{i, i + 1}, []int64{i - 2}
			}
			return []int64{i, 1000 - i}, nil
		}},
	}
	rdb := testserver.Redis(t)
	for n, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			ctx, owner := t.Context(), int64(n+1)
			src := table{}
			src.insert(owner, 41, 42, 43)
			feeds := open(t, rdb, src.Source, feedcache.Config{Cap: limit})
			_, err := feeds.Page(ctx, owner, 0, 1)
			require.NoError(t, err)
			for i := int64(100); i < 300; i++ {
				push, remove := test.change(i)
				src.insert(owner, push...)
				_, err := feeds.Push(ctx, one(owner), push...)
				require.NoError(t, err)
				for _, id := range remove {
					src.remove(owner, id)
				}
				_, err = feeds.Remove(ctx, one(owner), remove...)
				require.NoError(t, err)
				size := rdb.StrLen(ctx, "feed:"+string(rune('1'+n))).Val()
				require.LessOrEqual(t, size, int64(16+8*2*limit))
				if i%20 == 0 {
					got, err := walk(ctx, feeds, owner, 7)
					require.NoError(t, err)
					require.Equal(t, src.newest(owner), got)
				}
			}
			src.took()
			page, err := feeds.Page(ctx, owner, 0, 1)
			require.NoError(t, err)
			require.NotEmpty(t, page.IDs)
			if test.name != "Removals" { // where the cache is full of removals
				require.Empty(t, src.took(), "the newest are still in the feed")
			}
		})
	}
}

// Two pushers compact the same feed: the slower one must not undo what landed
// since it looked.
func TestSlowerCompactionDoesNothing(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	rdb := testserver.Redis(t)
	var src table
	src.insert(1, seq(3, 1)...)
	cfg := feedcache.Config{Cap: 3}
	fast := open(t, rdb, src.Source, cfg)
	push := func(feeds *feedcache.Feeds, ids ...int64) {
		for _, id := range ids {
			src.insert(1, id)
			if _, err := feeds.Push(ctx, one(1), id); err != nil {
				panic(err)
			}
		}
	}
	overtake := &before{name: "get"}
	slow := open(t, hooked(t, rdb, overtake), src.Source, cfg)
	_, err := fast.Page(ctx, 1, 0, 1)
	require.NoError(t, err)
	push(slow, 4, 5, 6) // six ops, which is the limit
	overtaken := false
	overtake.do = func() { // the slow one is about to look
		overtake.name = "evalsha"
		overtake.do = func() { // and now about to swap
			push(fast, 8, 9, 10, 11, 12)
			overtaken = true
		}
	}
	push(slow, 7)
	require.True(t, overtaken)
	got, err := walk(ctx, fast, 1, 20)
	require.NoError(t, err)
	require.Equal(t, seq(12, 1), got)
}
