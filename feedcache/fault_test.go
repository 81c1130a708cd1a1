package feedcache_test

import (
	"context"
	"slices"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	"github.com/shardgram/shardgram/feedcache"
	"github.com/shardgram/shardgram/internal/localserver"
	"github.com/shardgram/shardgram/internal/testserver"
)

// private starts a Redis for a test that breaks it, and a client that gives up
// soon.
func private(t *testing.T) (*localserver.Redis, *redis.Client) {
	t.Helper()
	server, err := testserver.Host(t).Redis(t.Context(), "redis", localserver.RedisConfig{})
	require.NoError(t, err)
	rdb := redis.NewClient(&redis.Options{
		Addr: server.Addr(), DialTimeout: 500 * time.Millisecond,
		ReadTimeout: 500 * time.Millisecond, WriteTimeout: 500 * time.Millisecond,
		MaxRetries: 1, DialerRetries: 1, ContextTimeoutEnabled: true,
		// After as many failed dials the client would start a goroutine that
		// outlives Close by up to a second.
		PoolSize: 100, PipelinePoolSize: 100,
	})
	t.Cleanup(func() { require.NoError(t, rdb.Close()) })
	return server, rdb
}

func TestScriptsSurviveAFlush(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	_, rdb := private(t)
	var src table
	src.insert(1, 10)
	feeds := open(t, rdb, src.Source, feedcache.Config{Cap: 2})
	owners := slices.Repeat([]int64{1}, 1200) // three windows, a flush in the second
	flushing := func(yield func(int64) bool) {
		for i, owner := range owners {
			if i == 600 {
				if err := rdb.ScriptFlush(ctx).Err(); err != nil {
					panic(err)
				}
			}
			if !yield(owner) {
				return
			}
		}
	}
	_, err := feeds.Page(ctx, 1, 0, 1) // a swap, on a server that never saw the script
	require.NoError(t, err)
	require.Positive(t, rdb.Exists(ctx, "feed:1").Val())
	d, err := feeds.Push(ctx, flushing, 20)
	require.NoError(t, err)
	require.Equal(t, feedcache.Delivery{Warm: 1200}, d)
	require.LessOrEqual(t, rdb.StrLen(ctx, "feed:1").Val(), int64(16+8*2*2), "compactions too")
	page, err := feeds.Page(ctx, 1, 0, 5)
	require.NoError(t, err)
	require.Equal(t, feedcache.Page{IDs: []int64{20, 10}}, page)
}

func TestPageIsRightWhateverRedisDoes(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	server, rdb := private(t)
	var src table
	src.insert(1, seq(50, 1)...)
	feeds := open(t, rdb, src.Source, feedcache.Config{Cap: 20})
	right := func(what string) {
		t.Helper()
		got, err := walk(ctx, feeds, 1, 30)
		require.NoError(t, err, what)
		require.Equal(t, src.newest(1), got, what)
	}
	warm := func() bool {
		t.Helper()
		d, err := feeds.Push(ctx, one(1), 1)
		require.NoError(t, err)
		return d.Warm == 1
	}
	change := func() { src.insert(1, int64(len(src.newest(1))+1)) } // and no push
	right("cold")
	require.True(t, warm())

	require.NoError(t, rdb.FlushAll(ctx).Err())
	change()
	right("flushed")
	require.True(t, warm())

	require.NoError(t, server.Pause())
	change()
	right("hanging")
	require.NoError(t, server.Resume())
	require.NoError(t, feeds.Drop(ctx, 1)) // what the change above would do

	right("resumed")
	require.NoError(t, server.Restart(ctx))
	change()
	right("restarted")
	require.True(t, warm())

	require.NoError(t, server.Kill())
	change()
	right("killed")
	_, err := feeds.Push(ctx, one(1), 1)
	require.ErrorContains(t, err, "feedcache: push feed:1: ")
	require.ErrorContains(t, feeds.Drop(ctx, 1), "feedcache: drop feed:1: ")
	require.NoError(t, server.Restart(ctx))
	right("started again")
	require.True(t, warm())
}

// A context that ends while Redis hangs ends the call, and says so.
func TestContextEndsWhileRedisHangs(t *testing.T) {
	t.Parallel()
	server, _ := private(t)
	// With retries the client itself would come across the ended context.
	rdb := redis.NewClient(&redis.Options{Addr: server.Addr(), MaxRetries: -1, ContextTimeoutEnabled: true})
	t.Cleanup(func() { require.NoError(t, rdb.Close()) })
	var src table
	feeds := open(t, rdb, src.Source, feedcache.Config{})
	_, err := feeds.Page(t.Context(), 1, 0, 5)
	require.NoError(t, err)
	require.NoError(t, server.Pause())
	for name, call := range map[string]func(context.Context) error{
		"page": func(ctx context.Context) error { _, err := feeds.Page(ctx, 1, 0, 5); return err },
		"push": func(ctx context.Context) error { _, err := feeds.Push(ctx, one(1), 1); return err },
		"drop": func(ctx context.Context) error { return feeds.Drop(ctx, 1) },
	} {
		short, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
		require.ErrorIs(t, call(short), context.DeadlineExceeded, name)
		cancel()
	}
	require.NoError(t, server.Resume())
}

// A Redis without room refuses to store: pages come from the Source, and the
// server's own words reach the caller of Push.
func TestRedisThatRefusesWrites(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	_, rdb := private(t)
	var src table
	src.insert(1, 1, 2, 3)
	feeds := open(t, rdb, src.Source, feedcache.Config{})
	_, err := feeds.Page(ctx, 1, 0, 1)
	require.NoError(t, err)
	require.NoError(t, rdb.ConfigSet(ctx, "maxmemory", "1").Err())
	require.NoError(t, rdb.ConfigSet(ctx, "maxmemory-policy", "noeviction").Err())
	src.insert(2, 1, 2, 3)
	for owner := int64(1); owner <= 2; owner++ {
		got, err := walk(ctx, feeds, owner, 2)
		require.NoError(t, err)
		require.Equal(t, []int64{3, 2, 1}, got)
	}
	d, err := feeds.Push(ctx, slices.Values([]int64{1, 1, 1}), 4)
	require.Zero(t, d)
	require.ErrorContains(t, err, "feedcache: push feed:1: OOM")
	require.ErrorContains(t, err, "(and 2 more of 3 feeds)")
}

func TestPushThatFailsHalfWay(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	server, rdb := private(t)
	var src table
	feeds := open(t, rdb, src.Source, feedcache.Config{})
	owners := seq(1200, 1)
	for _, owner := range owners {
		if owner%2 == 0 {
			_, err := feeds.Page(ctx, owner, 0, 1)
			require.NoError(t, err)
		}
	}
	src.insert(1200, 7)
	src.insert(2, 7)
	killing := func(yield func(int64) bool) {
		for i, owner := range owners {
			if i == 700 {
				if err := server.Pause(); err != nil {
					panic(err)
				}
			}
			if !yield(owner) {
				return
			}
		}
	}
	d, err := feeds.Push(ctx, killing, 7)
	require.Equal(t, feedcache.Delivery{Warm: 250, Cold: 250}, d)
	require.ErrorContains(t, err, "feedcache: push feed:700: ")
	require.ErrorContains(t, err, "(and 499 more of 500 feeds)")

	require.NoError(t, server.Resume())
	d, err = feeds.Push(ctx, slices.Values(owners), 7)
	require.NoError(t, err)
	require.Equal(t, feedcache.Delivery{Warm: 600, Cold: 600}, d)
	for _, owner := range []int64{1200, 2} {
		got, err := walk(ctx, feeds, owner, 5)
		require.NoError(t, err)
		require.Equal(t, []int64{7}, got)
	}
}
