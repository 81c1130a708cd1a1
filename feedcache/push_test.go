package feedcache_test

import (
	"context"
	"errors"
	"math/rand/v2"
	"slices"
	"strconv"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
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
	trips.took()
	d, err := feeds.Push(ctx, slices.Values(owners), 10, 30, 20)
	require.NoError(t, err)
	require.Equal(t, feedcache.Delivery{Warm: len(warm), Cold: len(owners) - len(warm)}, d)
	n, _ := trips.took()
	require.Equal(t, 3, n, "1201 owners in windows of 500")
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
	_, err := feeds.Page(ctx, 5, 0, 1)
	require.NoError(t, err)
	ids := seq(1<<15, 1) // 512 KiB of commands for each feed
	trips.took()
	d, err := feeds.Push(ctx, slices.Values([]int64{1, 2, 3, 4, 5}), ids...)
	require.NoError(t, err)
	require.Equal(t, feedcache.Delivery{Warm: 1, Cold: 4}, d)
	n, ranges := trips.took()
	require.Equal(t, []string{"newest"}, ranges)
	require.Equal(t, 3+2, n, "three windows and a compaction")
	require.EqualValues(t, 1, feeds.Stats().Compactions)
	page, err := feeds.Page(ctx, 5, 0, 1000)
	require.NoError(t, err)
	require.Equal(t, seq(1<<15, 1<<15-799), page.IDs, "cut at the cap; the Source of this test has no more")

	d, err = feeds.Push(ctx, one(5), seq(1<<17, 1<<17-70_000)...)
	require.NoError(t, err, "more than a window may hold")
	require.Equal(t, feedcache.Delivery{Warm: 1}, d)
	page, err = feeds.Page(ctx, 5, 0, 5)
	require.NoError(t, err)
	require.Equal(t, seq(1<<17, 1<<17-4), page.IDs)
}

// Whatever the order and however often: the same feed.
func TestOrderAndRepetitionDoNotMatter(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	rdb := testserver.Redis(t)
	for owner := int64(1); owner <= 10; owner++ {
		var src table
		src.insert(owner, seq(40, 1)...)
		feeds := open(t, rdb, src.Source, feedcache.Config{Cap: 32})
		_, err := feeds.Page(ctx, owner, 0, 1)
		require.NoError(t, err)
		type op struct {
			id     int64
			remove bool
		}
		var ops []op
		for id := int64(15); id <= 70; id++ { // some are below the floor
			ops = append(ops, op{id: id})
			if id%5 == 0 {
				ops = append(ops, op{id, true})
				src.remove(owner, id)
			} else {
				src.insert(owner, id)
			}
		}
		ops = append(ops, ops...)
		rand.Shuffle(len(ops), func(i, j int) { ops[i], ops[j] = ops[j], ops[i] })
		for _, op := range ops {
			if op.remove {
				_, err = feeds.Remove(ctx, one(owner), op.id)
			} else {
				_, err = feeds.Push(ctx, one(owner), op.id)
			}
			require.NoError(t, err)
		}
		require.Positive(t, feeds.Stats().Compactions)
		for _, n := range []int{1, 50} {
			got, err := walk(ctx, feeds, owner, n)
			require.NoError(t, err)
			require.Equal(t, src.newest(owner), got)
		}
		require.EqualValues(t, 1, feeds.Stats().Rebuilds)
	}
}

func TestRemovalHoldsForLaterPushes(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	var src table
	src.insert(1, 10, 20)
	feeds := open(t, testserver.Redis(t), src.Source, feedcache.Config{Cap: 4})
	_, err := feeds.Page(ctx, 1, 0, 1)
	require.NoError(t, err)
	_, err = feeds.Remove(ctx, one(1), 30, 20)
	require.NoError(t, err)
	for range 10 { // and over compactions
		_, err = feeds.Push(ctx, one(1), 30, 20)
		require.NoError(t, err)
	}
	require.Positive(t, feeds.Stats().Compactions)
	page, err := feeds.Page(ctx, 1, 0, 5)
	require.NoError(t, err)
	require.Equal(t, feedcache.Page{IDs: []int64{10}}, page)
}

// A feed stays small whatever is done to it, and no compaction changes what a
// reader sees.
func TestCompactionBoundsTheFeed(t *testing.T) {
	t.Parallel()
	const limit = 40
	tests := []struct {
		name   string
		change func(i int64) (push, remove []int64)
	}{
		{name: "Pushes", change: func(i int64) ([]int64, []int64) { return []int64{i}, nil }},
		{name: "TheSamePush", change: func(int64) ([]int64, []int64) { return []int64{50}, nil }},
		{name: "Removals", change: func(i int64) ([]int64, []int64) { return []int64{i}, []int64{i} }},
		{name: "OldPushes", change: func(i int64) ([]int64, []int64) { return []int64{1000 - i}, nil }},
		{name: "OldRemovals", change: func(i int64) ([]int64, []int64) { return []int64{i}, []int64{i - 30} }},
		{name: "BelowTheFloor", change: func(i int64) ([]int64, []int64) { return []int64{i, i - 90}, nil }},
		{name: "AtTheFloor", change: func(i int64) ([]int64, []int64) { return []int64{i, i - limit, i - limit + 1}, nil }},
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
			ctx, owner, key := t.Context(), int64(n+1), "feed:"+strconv.Itoa(n+1)
			src := table{}
			src.insert(owner, seq(60, 1)...)
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
				v := stored(t, rdb, key)
				require.Less(t, v.Elements(), 2+feeds.Slack(), "compacted at once")
				require.Less(t, v.Len(), limit+3*feeds.HeadIDs()+feeds.Slack())
				if i%20 == 0 {
					for _, n := range []int{2, 7} {
						got, err := walk(ctx, feeds, owner, n)
						require.NoError(t, err)
						require.Equal(t, src.newest(owner), got)
					}
				}
			}
			require.GreaterOrEqual(t, feeds.Stats().Compactions, int64(200/feeds.Slack()))
			require.EqualValues(t, 1, feeds.Stats().Rebuilds)
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

// Most compactions move the head alone; when it is long, or an op is about an
// older ID, they write the whole feed.
func TestCompactionFoldsTheHead(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	rdb := testserver.Redis(t)
	var trips tripCounter
	var src table
	src.insert(1, seq(100, 1)...)
	feeds := open(t, hooked(t, rdb, &trips), src.Source, feedcache.Config{Cap: 64})
	require.Equal(t, 8, feeds.Slack())
	require.Equal(t, 8, feeds.HeadIDs())
	_, err := feeds.Page(ctx, 1, 0, 1)
	require.NoError(t, err)
	rest := func() []int64 {
		t.Helper()
		text := rdb.LIndex(ctx, "feed:1", 0).Val()
		v, ok := feedcache.Parse([]string{text, head(readyTag, 0, 0, 0)}, true)
		require.True(t, ok)
		ids, _ := v.Below(feedcache.Top, 1000)
		return ids
	}
	next := int64(101)
	push := func(n int, ids ...int64) {
		t.Helper()
		for ; len(ids) < n; next++ {
			ids = append(ids, next)
		}
		trips.took()
		src.insert(1, ids...)
		for _, id := range ids {
			_, err := feeds.Push(ctx, one(1), id)
			require.NoError(t, err)
		}
		require.EqualValues(t, 2, rdb.LLen(ctx, "feed:1").Val())
	}
	ranges := func() []string { _, r := trips.took(); return r }
	require.Equal(t, seq(92, 37), rest())
	for range 2 { // 8 + 2*8 in the head
		push(8)
		require.Equal(t, []string{"newest"}, ranges())
		require.Equal(t, seq(92, 37), rest())
	}
	push(8) // more than 3*8: the whole feed
	require.Equal(t, []string{"newest", "whole"}, ranges())
	require.Equal(t, seq(116, 61), rest(), "cut at the cap")
	require.Equal(t, int64(61), stored(t, rdb, "feed:1").Floor())
	require.Equal(t, int64(117), stored(t, rdb, "feed:1").HeadFloor())

	// A late ID between the floor and the head.
	push(8)
	require.Equal(t, []string{"newest"}, ranges())
	src.remove(1, 90)
	_, err = feeds.Remove(ctx, one(1), 90)
	require.NoError(t, err)
	push(7, 95)
	require.Equal(t, []string{"newest", "whole"}, ranges(), "a late removal")
	require.NotContains(t, rest(), int64(90))
	src.insert(1, 1_000_000)
	push(8, 61, 62) // there already, just above the floor
	ranges()
	push(8, 30, 31, 32) // below the floor
	require.Equal(t, []string{"newest"}, ranges(), "what is below the floor is nobody's")
	for _, n := range []int{3, 50} {
		got, err := walk(ctx, feeds, 1, n)
		require.NoError(t, err)
		require.Equal(t, slices.DeleteFunc(src.newest(1), func(id int64) bool { return id == 1_000_000 }), got)
	}
	require.EqualValues(t, 1, feeds.Stats().Rebuilds)
}

// Removed IDs count when a feed is trimmed, so it gets shorter, not longer.
func TestTrimCountsTheRemoved(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	rdb := testserver.Redis(t)
	var src table
	src.insert(1, seq(200, 1)...)
	feeds := open(t, rdb, src.Source, feedcache.Config{Cap: 32})
	_, err := feeds.Page(ctx, 1, 0, 1)
	require.NoError(t, err)
	for id := int64(169); id <= 184; id++ { // the older half, down to the floor
		src.remove(1, id)
		_, err = feeds.Remove(ctx, one(1), id)
		require.NoError(t, err)
	}
	v := stored(t, rdb, "feed:1")
	require.Equal(t, 32, v.Len())
	require.Equal(t, int64(169), v.Floor(), "which is removed")
	for id := int64(201); id <= 240; id++ {
		src.insert(1, id)
		_, err = feeds.Push(ctx, one(1), id)
		require.NoError(t, err)
	}
	require.Greater(t, stored(t, rdb, "feed:1").Floor(), int64(184))
	got, err := walk(ctx, feeds, 1, 9)
	require.NoError(t, err)
	require.Equal(t, src.newest(1), got)
}

// Two pushers compact the same feed: the slower one must not undo what landed
// since it looked, be it ops or a compaction.
func TestSlowerCompactionDoesNothing(t *testing.T) {
	t.Parallel()
	rdb := testserver.Redis(t)
	for i, others := range [][]int64{{7, 8}, {8, 9, 10, 11, 12}, {8, 2, 9, 1, 10, 3}, seq(60, 8)} {
		t.Run(strconv.Itoa(len(others))+"Pushes", func(t *testing.T) {
			t.Parallel()
			ctx, owner := t.Context(), int64(i+1)
			var src table
			src.insert(owner, seq(3, 1)...)
			cfg := feedcache.Config{Cap: 30}
			fast := open(t, rdb, src.Source, cfg)
			require.Equal(t, 4, fast.Slack())
			push := func(feeds *feedcache.Feeds, ids ...int64) {
				for _, id := range ids {
					src.insert(owner, id)
					must(feeds.Push(ctx, one(owner), id))
				}
			}
			overtake := &before{}
			slow := open(t, hooked(t, rdb, overtake), src.Source, cfg)
			_, err := fast.Page(ctx, owner, 0, 1)
			require.NoError(t, err)
			push(slow, 4, 5, 6)
			*overtake = before{name: "lrange", do: func() { // the slow one is about to look
				push(fast, 70)
				*overtake = before{name: "evalsha", do: func() { push(fast, others...) }} // and to swap
			}}
			push(slow, 7) // the fourth op
			require.Nil(t, overtake.do)
			for _, n := range []int{1, 20} {
				got, err := walk(ctx, fast, owner, n)
				require.NoError(t, err)
				require.Equal(t, src.newest(owner), got)
			}
		})
	}
}

// reaching is an iterator that stops once to do something: after as many
// owners, when the windows before have come back.
func reaching(owners []int64, at int, feeds *feedcache.Feeds, do func()) func(func(int64) bool) {
	back := func() bool {
		s := feeds.Stats()
		return s.Delivered+s.SkippedCold >= int64(at/500*500)
	}
	return func(yield func(int64) bool) {
		for i, owner := range owners {
			if i == at {
				for begin := time.Now(); !back(); time.Sleep(time.Millisecond) {
					if time.Since(begin) > 10*time.Second {
						panic("the windows do not come back")
					}
				}
				do()
			}
			if !yield(owner) {
				return
			}
		}
	}
}

// A server that refuses some of the commands: the error names exactly the
// owners who missed something.
func TestUnreachedErrorNamesTheOwners(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	admin := ownRedis(t)
	require.NoError(t, admin.Do(ctx, "acl", "setuser", "partial", "on", "nopass", "+@all", "~feed:*[02468]").Err())
	rdb := redis.NewClient(&redis.Options{Addr: admin.Options().Addr, Username: "partial", Password: "any"})
	t.Cleanup(func() { require.NoError(t, rdb.Close()) })
	var src table
	feeds := open(t, rdb, src.Source, feedcache.Config{})
	all := open(t, admin, src.Source, feedcache.Config{})
	for owner := int64(1); owner <= 4; owner++ {
		_, err := all.Page(ctx, owner, 0, 1)
		require.NoError(t, err)
	}

	d, err := feeds.Push(ctx, slices.Values([]int64{1, 2, 3, 4, 5, 6}), 10)
	require.Equal(t, feedcache.Delivery{Warm: 2, Cold: 1}, d)
	require.ErrorContains(t, err, "feedcache: push feed:1: NOPERM")
	require.ErrorContains(t, err, "(and 2 more feeds)")
	missed, ok := errors.AsType[*feedcache.UnreachedError](err)
	require.True(t, ok)
	require.Equal(t, []int64{1, 3, 5}, missed.Owners)
	d, err = all.Push(ctx, slices.Values(missed.Owners), 10)
	require.NoError(t, err)
	require.Equal(t, feedcache.Delivery{Warm: 2, Cold: 1}, d)
	for owner := int64(1); owner <= 4; owner++ {
		page, err := all.Page(ctx, owner, 0, 5)
		require.NoError(t, err)
		require.Equal(t, []int64{10}, page.IDs)
	}

	// A later window fails: the owners of the windows before are not named, nor
	// those that were not tried.
	const many = 1_000_000
	d, err = feeds.Push(ctx, func(yield func(int64) bool) {
		for i := range int64(many) {
			if i == 700 && (!yield(5) || !yield(7)) || !yield(2*i+2) {
				return
			}
		}
	}, 11)
	missed, ok = errors.AsType[*feedcache.UnreachedError](err)
	require.True(t, ok)
	require.ErrorContains(t, err, "feedcache: push feed:5: NOPERM")
	require.Equal(t, []int64{5, 7}, missed.Owners)
	delivered := d.Warm + d.Cold
	require.GreaterOrEqual(t, delivered, 998)
	require.Less(t, delivered, many/2, "it stops at an error")

	// An owner out of range after one who was missed.
	d, err = feeds.Push(ctx, slices.Values([]int64{5, 2, 0, 4}), 12)
	require.Equal(t, feedcache.Delivery{Warm: 1}, d)
	require.ErrorIs(t, err, feedcache.ErrInvalid)
	missed, ok = errors.AsType[*feedcache.UnreachedError](err)
	require.True(t, ok)
	require.Equal(t, []int64{5}, missed.Owners)

	d, err = feeds.Remove(ctx, slices.Values([]int64{2, 3}), 10)
	require.Equal(t, feedcache.Delivery{Warm: 1}, d)
	require.ErrorContains(t, err, "feedcache: remove feed:3: NOPERM")
	err = feeds.Drop(ctx, 2, 3, 5, 4)
	require.ErrorContains(t, err, "feedcache: drop feed:3: NOPERM")
	missed, ok = errors.AsType[*feedcache.UnreachedError](err)
	require.True(t, ok)
	require.Equal(t, []int64{3, 5}, missed.Owners)
	require.EqualValues(t, 2, admin.DBSize(ctx).Val(), "the others are dropped")
	err = feeds.Edit(ctx, 3, func(ids []int64) ([]int64, error) { return ids, nil })
	missed, ok = errors.AsType[*feedcache.UnreachedError](err)
	require.True(t, ok)
	require.Equal(t, []int64{3}, missed.Owners)
	missed, ok = errors.AsType[*feedcache.UnreachedError](feeds.Seen(ctx, 3, 1))
	require.True(t, ok)
	require.Equal(t, []int64{3}, missed.Owners)
}

func TestPushWhoseContextEnds(t *testing.T) {
	t.Parallel()
	var src table
	feeds := open(t, testserver.Redis(t), src.Source, feedcache.Config{})
	owners := seq(1700, 1)
	ctx, cancel := context.WithCancel(t.Context())
	d, err := feeds.Push(ctx, reaching(owners, 700, feeds, cancel), 7)
	require.ErrorIs(t, err, context.Canceled)
	require.ErrorContains(t, err, "feedcache: push feed:")
	require.Equal(t, feedcache.Delivery{Cold: 500}, d)
	missed, ok := errors.AsType[*feedcache.UnreachedError](err)
	require.True(t, ok)
	tried := slices.Sorted(slices.Values(missed.Owners))
	slices.Reverse(tried)
	require.Zero(t, len(tried)%500%200, "whole windows")
	require.Equal(t, owners[500:500+len(tried)], tried)
	require.GreaterOrEqual(t, len(tried), 500)

	for name, err := range map[string]error{
		"remove": func() error { _, err := feeds.Remove(ctx, one(1), 8); return err }(),
		"drop":   feeds.Drop(ctx, 1),
		"seen":   feeds.Seen(ctx, 1, 8),
		"edit":   feeds.Edit(ctx, 1, nil),
	} {
		require.ErrorIs(t, err, context.Canceled, name)
		missed, ok := errors.AsType[*feedcache.UnreachedError](err)
		require.True(t, ok, name)
		require.Equal(t, []int64{1}, missed.Owners, name)
	}
}

// The iterator is the caller's, and may panic: the push has ended by then.
func TestPushWhoseIteratorPanics(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	rdb := testserver.Redis(t)
	var src table
	feeds := open(t, rdb, src.Source, feedcache.Config{})
	_, err := feeds.Page(ctx, 1700, 0, 1)
	require.NoError(t, err)
	require.PanicsWithValue(t, "no more", func() {
		_, _ = feeds.Push(ctx, func(yield func(int64) bool) {
			for _, owner := range seq(1700, 1)[:501] {
				yield(owner)
			}
			panic("no more")
		}, 7)
	})
	require.Equal(t, feedcache.Stats{
		Rebuilds: 1, SourceReads: 1, Delivered: 1, SkippedCold: 499,
	}, feeds.Stats(), "the full window")
}

// An owner out of range is an error of the caller's; those before are reached.
func TestPushToAnOwnerOutOfRange(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	var src table
	feeds := open(t, testserver.Redis(t), src.Source, feedcache.Config{})
	for _, bad := range []int64{0, -1, feedcache.Top} {
		owners := seq(1700, 1)
		owners[1203] = bad
		d, err := feeds.Push(ctx, slices.Values(owners), 7)
		require.ErrorIs(t, err, feedcache.ErrInvalid)
		require.ErrorContains(t, err, "feedcache: push feed:"+strconv.FormatInt(bad, 10))
		require.Equal(t, feedcache.Delivery{Cold: 1203}, d)
	}
}
