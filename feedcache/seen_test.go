package feedcache_test

import (
	"context"
	"errors"
	"math"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	"github.com/shardgram/shardgram/feedcache"
	"github.com/shardgram/shardgram/internal/testserver"
)

func TestUnseen(t *testing.T) {
	t.Parallel()
	rdb := testserver.Redis(t)
	for i, test := range []struct {
		name  string
		rows  int64 // IDs are 1 to rows; the feed keeps 64, its head 8
		mark  int64 // 0: none
		n     int
		more  bool
		reads []string // of the warm feed
	}{
		{name: "Empty", rows: 0, reads: []string{"newest"}},
		{name: "NothingRead", rows: 20, n: 20, reads: []string{"newest", "whole"}},
		{name: "NothingReadOfMany", rows: 200, n: 64, more: true, reads: []string{"newest", "whole"}},
		{name: "AllRead", rows: 200, mark: 200, n: 0, reads: []string{"newest"}},
		{name: "AllReadAndMore", rows: 200, mark: 1000, n: 0, reads: []string{"newest"}},
		{name: "InTheHead", rows: 200, mark: 195, n: 5, reads: []string{"newest"}},
		{name: "BelowTheHead", rows: 200, mark: 150, n: 50, reads: []string{"newest", "whole"}},
		{name: "AtTheFloor", rows: 200, mark: 137, n: 63, reads: []string{"newest", "whole"}},
		{name: "JustBelowTheFloor", rows: 200, mark: 136, n: 64, reads: []string{"newest", "whole"}},
		{name: "BelowTheFloor", rows: 200, mark: 135, n: 64, more: true, reads: []string{"newest", "whole"}},
		{name: "FarBelowTheFloor", rows: 200, mark: 5, n: 64, more: true, reads: []string{"newest", "whole"}},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			ctx, owner := t.Context(), int64(i+1)
			var src table
			src.insert(owner, seq(test.rows, 1)...)
			var trips tripCounter
			feeds := open(t, hooked(t, rdb, &trips), src.Source, feedcache.Config{Cap: 64, FailoverCheck: time.Hour})
			_, err := feeds.Page(ctx, owner, 0, 1)
			require.NoError(t, err)
			if test.mark > 0 {
				require.NoError(t, feeds.Seen(ctx, owner, test.mark))
			}
			trips.took()
			want := feedcache.Unseen{N: test.n, More: test.more, Mark: test.mark}
			got, err := feeds.Unseen(ctx, owner)
			require.NoError(t, err)
			require.Equal(t, want, got)
			_, ranges := trips.took()
			require.Equal(t, test.reads, ranges)

			if test.rows == 200 { // and over a compaction
				for range feeds.Slack() {
					_, err := feeds.Push(ctx, one(owner), 199)
					require.NoError(t, err)
				}
				require.EqualValues(t, 1, feeds.Stats().Compactions)
				got, err = feeds.Unseen(ctx, owner)
				require.NoError(t, err)
				require.Equal(t, want, got)
			}
		})
	}
}

// The mark only moves up, counts no removed IDs, and travels with the feed
// through each way of writing it anew.
func TestMark(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	rdb := testserver.Redis(t)
	var src table
	src.insert(1, seq(100, 1)...)
	now := time.Now()
	feeds := open(t, rdb, src.Source, feedcache.Config{Cap: 64, TTL: time.Hour, Now: func() time.Time { return now }})
	unseen := func(n int, mark int64) {
		t.Helper()
		u, err := feeds.Unseen(ctx, 1)
		require.NoError(t, err)
		require.Equal(t, feedcache.Unseen{N: n, Mark: mark}, u)
	}
	require.NoError(t, feeds.Seen(ctx, 1, 50), "cold: nothing to mark")
	require.Zero(t, rdb.DBSize(ctx).Val())
	_, err := feeds.Page(ctx, 1, 0, 1)
	require.NoError(t, err)
	for _, mark := range []int64{90, 95, 92, 95, 1} {
		require.NoError(t, feeds.Seen(ctx, 1, mark))
	}
	unseen(5, 95)
	_, err = feeds.Remove(ctx, one(1), 98, 20)
	require.NoError(t, err)
	unseen(4, 95)
	_, err = feeds.Push(ctx, one(1), 101, 97, 94)
	require.NoError(t, err)
	unseen(5, 95)
	require.NoError(t, feeds.Edit(ctx, 1, without(func(id int64) bool { return id == 99 })))
	require.EqualValues(t, 2, rdb.LLen(ctx, "feed:1").Val())
	unseen(4, 95)
	now = now.Add(31 * time.Minute)
	require.NoError(t, feeds.Seen(ctx, 1, 97))
	unseen(2, 97)
	require.EqualValues(t, 2, rdb.LLen(ctx, "feed:1").Val(), "renewed")
	unseen(2, 97)
	for id := int64(201); id < 260; id++ {
		require.NoError(t, feeds.Seen(ctx, 1, id-1))
		_, err = feeds.Push(ctx, one(1), id)
		require.NoError(t, err)
	}
	require.Positive(t, feeds.Stats().Compactions)
	unseen(1, 258)
	require.Less(t, rdb.LLen(ctx, "feed:1").Val(), int64(2+feeds.Slack()), "marks are compacted too")
}

// The durable mark is read when a feed is filled, or cannot be.
func TestMarkOfTheStoreOfRecord(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	var src table
	src.insert(1, seq(100, 1)...)
	var mark int64
	var fail error
	cfg := feedcache.Config{Cap: 64, Mark: func(_ context.Context, owner int64) (int64, error) {
		require.EqualValues(t, 1, owner)
		return mark, fail
	}}
	rdb := testserver.Redis(t)
	away := redis.NewClient(&redis.Options{Addr: "127.0.0.1:1", MaxRetries: -1, DialerRetries: 1})
	t.Cleanup(func() { require.NoError(t, away.Close()) })
	for _, client := range []*redis.Client{rdb, away} {
		feeds := open(t, client, src.Source, cfg)
		for _, mark = range []int64{0, 70, 100, 5} {
			want := feedcache.Unseen{N: min(64, int(100-mark)), Mark: mark, More: mark < 36}
			got, err := feeds.Unseen(ctx, 1)
			require.NoError(t, err)
			require.Equal(t, want, got)
			if client == rdb {
				require.NoError(t, feeds.Drop(ctx, 1))
			}
		}
		mark = -1
		_, err := feeds.Unseen(ctx, 1)
		require.ErrorContains(t, err, "feedcache: unseen feed:1: mark: ")
		mark, fail = 0, errors.New("database is down")
		_, err = feeds.Unseen(ctx, 1)
		require.EqualError(t, err, "feedcache: unseen feed:1: mark: database is down")
		fail = nil
	}
	require.Zero(t, rdb.DBSize(ctx).Val(), "no lease is left")

	// "All of it": whatever is pushed later is below the mark.
	mark = math.MaxInt64
	feeds := open(t, rdb, src.Source, cfg)
	got, err := feeds.Unseen(ctx, 1)
	if err == nil {
		require.Zero(t, got.N)
		require.False(t, got.More)
		got, err = feeds.Unseen(ctx, 1) // of the feed
		require.NoError(t, err)
		require.Zero(t, got.N)
		require.False(t, got.More)
	} else {
		require.ErrorContains(t, err, "mark: ")
	}
}

// A mark that lands during a fill counts, and the older one of the store of
// record does not undo it.
func TestMarkDuringAFill(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	src := table{}
	src.insert(1, seq(10, 1)...)
	feeds := open(t, testserver.Redis(t), src.Source, feedcache.Config{
		Mark: func(context.Context, int64) (int64, error) { return 4, nil },
	})
	src.around = func(bool) { src.around = nil; must(0, feeds.Seen(ctx, 1, 7)) }
	_, err := feeds.Page(ctx, 1, 0, 1)
	require.NoError(t, err)
	got, err := feeds.Unseen(ctx, 1)
	require.NoError(t, err)
	require.Equal(t, feedcache.Unseen{N: 3, Mark: 7}, got)
}

// A mark that lies below the head of a feed, which is merged with an outbox that
// is all head.
func TestHybridCountsBelowTheHeadOfAFeed(t *testing.T) {
	t.Parallel()
	ctx, rdb := t.Context(), testserver.Redis(t)
	var home, posts table
	home.insert(1, seq(700, 1)...)
	posts.insert(9, 701, 702, 703)
	home.insert(1, 701, 702, 703)
	mark := func(context.Context, int64) (int64, error) { return 100, nil }
	feeds := open(t, rdb, home.Source, feedcache.Config{Prefix: "home", Mark: mark})
	hybrid, err := feedcache.NewHybrid(feeds, open(t, rdb, posts.Source, feedcache.Config{Prefix: "outbox"}), pulls{9})
	require.NoError(t, err)
	for range 2 { // cold, then warm
		unseen, err := hybrid.Unseen(ctx, 1)
		require.NoError(t, err)
		require.Equal(t, feedcache.Unseen{N: 603, Mark: 100}, unseen)
	}
}
