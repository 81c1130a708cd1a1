package feedcache_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"
	"golang.org/x/sync/errgroup"

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
		PoolSize: 1000, PipelinePoolSize: 1000,
	})
	t.Cleanup(func() { require.NoError(t, rdb.Close()) })
	return server, rdb
}

// Each page is right and each call says what it could not do, while Redis comes
// and goes.
func TestPageIsRightWhateverRedisDoes(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	server, rdb := private(t)
	var src table
	src.insert(1, seq(50, 1)...)
	feeds := open(t, rdb, src.Source, feedcache.Config{Cap: 20, FailoverCheck: time.Millisecond})
	right := func(what string) {
		t.Helper()
		got, err := walk(ctx, feeds, 1, 30)
		require.NoError(t, err, what)
		require.Equal(t, src.newest(1), got, what)
		u, err := feeds.Unseen(ctx, 1)
		require.NoError(t, err, what)
		require.Equal(t, feedcache.Unseen{N: 20, More: true}, u, what)
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
	right("restarted, empty")
	require.True(t, warm())

	require.NoError(t, server.Kill())
	change()
	failures := feeds.Stats().RedisFailures
	right("killed")
	require.Greater(t, feeds.Stats().RedisFailures, failures)
	for what, call := range map[string]func() error{
		"push":   func() error { _, err := feeds.Push(ctx, one(1), 1); return err },
		"remove": func() error { _, err := feeds.Remove(ctx, one(1), 1); return err },
		"seen":   func() error { return feeds.Seen(ctx, 1, 1) },
		"drop":   func() error { return feeds.Drop(ctx, 1) },
		"edit": func() error {
			return feeds.Edit(ctx, 1, func(ids []int64) ([]int64, error) { panic("there is nothing to edit") })
		},
	} {
		err := call()
		require.ErrorContains(t, err, "feedcache: "+what+" feed:1: ")
		failed, ok := errors.AsType[*feedcache.UnreachedError](err)
		require.True(t, ok, what)
		require.Equal(t, []int64{1}, failed.Owners, what)
	}
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
		"page":   func(ctx context.Context) error { _, err := feeds.Page(ctx, 1, 0, 5); return err },
		"push":   func(ctx context.Context) error { _, err := feeds.Push(ctx, one(1), 1); return err },
		"seen":   func(ctx context.Context) error { return feeds.Seen(ctx, 1, 1) },
		"unseen": func(ctx context.Context) error { _, err := feeds.Unseen(ctx, 1); return err },
		"drop":   func(ctx context.Context) error { return feeds.Drop(ctx, 1) },
		"edit": func(ctx context.Context) error {
			return feeds.Edit(ctx, 1, func(ids []int64) ([]int64, error) { return ids, nil })
		},
	} {
		short, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
		begin := time.Now()
		require.ErrorIs(t, call(short), context.DeadlineExceeded, name)
		require.Less(t, time.Since(begin), 2*time.Second, name)
		cancel()
	}
	require.NoError(t, server.Resume())
}

// A Redis without room refuses to store: pages come from the Source or from
// what is there, and the server's own words reach the caller of Push.
func TestRedisWithoutRoom(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	_, rdb := private(t)
	var src table
	src.insert(1, seq(50, 1)...)
	src.insert(2, 1, 2, 3)
	now := time.Now()
	feeds := open(t, rdb, src.Source, feedcache.Config{Cap: 8, Now: func() time.Time { return now }})
	_, err := feeds.Page(ctx, 1, 0, 1)
	require.NoError(t, err)
	_, err = feeds.Push(ctx, one(1), 49, 50)
	require.NoError(t, err)
	require.NoError(t, rdb.ConfigSet(ctx, "maxmemory", "1").Err())
	require.NoError(t, rdb.ConfigSet(ctx, "maxmemory-policy", "noeviction").Err())
	now = now.Add(13 * 24 * time.Hour) // each page tries to renew the feed
	right := func(what string) {
		t.Helper()
		for owner := int64(1); owner <= 2; owner++ {
			got, err := walk(ctx, feeds, owner, 2)
			require.NoError(t, err, what)
			require.Equal(t, src.newest(owner), got, what)
		}
	}
	right("full")
	d, err := feeds.Push(ctx, slices.Values([]int64{1, 1, 1}), 51)
	require.Zero(t, d)
	require.ErrorContains(t, err, "feedcache: push feed:1: OOM")
	require.ErrorContains(t, err, "(and 2 more feeds)")
	err = feeds.Edit(ctx, 1, func(ids []int64) ([]int64, error) { return ids[1:], nil })
	require.ErrorContains(t, err, "feedcache: edit feed:1: OOM")
	right("after an edit that could not be done")

	require.NoError(t, rdb.ConfigSet(ctx, "maxmemory", "0").Err())
	src.insert(1, 51)
	src.remove(1, 50)
	_, err = feeds.Push(ctx, one(1), 51)
	require.NoError(t, err)
	_, err = feeds.Remove(ctx, one(1), 50)
	require.NoError(t, err)
	right("with room again")
}

// Hundreds of feeds that Redis has no room for: it evicts some at any time, and
// no page lacks anything.
func TestEviction(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	_, rdb := private(t)
	used, err := rdb.InfoMap(ctx, "memory").Result()
	require.NoError(t, err)
	var bytes int
	_, err = fmt.Sscan(used["Memory"]["used_memory"], &bytes)
	require.NoError(t, err)
	require.NoError(t, rdb.ConfigSet(ctx, "maxmemory", fmt.Sprint(bytes+1<<20)).Err())
	require.NoError(t, rdb.ConfigSet(ctx, "maxmemory-policy", "allkeys-lru").Err())
	const readers, each = 4, 100
	var src table
	for owner := range int64(readers * each) {
		src.insert(owner+1, seq(600, 1)...)
	}
	feeds := open(t, rdb, src.Source, feedcache.Config{Cap: 500})
	var group errgroup.Group
	for r := range int64(readers) {
		group.Go(func() error {
			for id := int64(601); id <= 608; id++ {
				for owner := r*each + 1; owner <= (r+1)*each; owner++ {
					src.insert(owner, id)
					if _, err := feeds.Push(ctx, one(owner), id); err != nil {
						return err
					}
				}
				for owner := r*each + 1; owner <= (r+1)*each; owner++ {
					page, err := feeds.Page(ctx, owner, 0, 10)
					if err != nil {
						return err
					}
					if want := seq(id, id-9); !slices.Equal(page.IDs, want) {
						return fmt.Errorf("got %v, want %v", page.IDs, want)
					}
				}
			}
			return nil
		})
	}
	require.NoError(t, group.Wait())
	stats, err := rdb.InfoMap(ctx, "stats").Result()
	require.NoError(t, err)
	require.NotEqual(t, "0", stats["Stats"]["evicted_keys"])
	require.Greater(t, feeds.Stats().Rebuilds, int64(readers*each), "feeds were filled again")
	require.Positive(t, feeds.Stats().Delivered)
}

// With Redis gone, the store of record bears Config.SourceLimit calls at once,
// however many readers there are. Who waits too long hears of it.
func TestSourceLimitBoundsWhatTheStoreBears(t *testing.T) {
	t.Parallel()
	server, rdb := private(t)
	require.NoError(t, server.Kill())
	const limit, readers = 5, 200
	var running, most, calls atomic.Int64
	gate := make(chan struct{})
	letGo := sync.OnceFunc(func() { close(gate) })
	defer letGo()
	source := func(ctx context.Context, _, _ int64, _ int) ([]int64, error) {
		n := running.Add(1)
		defer running.Add(-1)
		for m := most.Load(); n > m && !most.CompareAndSwap(m, n); m = most.Load() {
		}
		calls.Add(1)
		select {
		case <-gate:
			return []int64{2, 1}, nil
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
	feeds := open(t, rdb, source, feedcache.Config{SourceLimit: limit})
	var group errgroup.Group
	for owner := range int64(readers) {
		group.Go(func() error {
			page, err := feeds.Page(t.Context(), owner+1, 0, 5)
			if err == nil && !slices.Equal(page.IDs, []int64{2, 1}) {
				err = fmt.Errorf("got %v", page.IDs)
			}
			return err
		})
	}
	require.NoError(t, eventually(func() error {
		if running.Load() < limit {
			return errors.New("some may not run though they could")
		}
		return nil
	}))
	short, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	_, err := feeds.Page(short, 1000, 0, 5)
	require.ErrorIs(t, err, context.DeadlineExceeded)
	require.EqualValues(t, limit, calls.Load(), "nobody else came through meanwhile")
	letGo()
	require.NoError(t, group.Wait())
	require.EqualValues(t, limit, most.Load())
	require.EqualValues(t, readers, calls.Load())
}

// A Source that fails or hangs fails the page and gives back what it held: the
// lease, and its place among the calls.
func TestSourceThatFails(t *testing.T) {
	t.Parallel()
	ctx, rdb := t.Context(), testserver.Redis(t)
	errDown := errors.New("database is down")
	var fails atomic.Bool
	source := func(ctx context.Context, _, _ int64, _ int) ([]int64, error) {
		if !fails.Load() {
			return []int64{1}, nil
		}
		if deadline, ok := ctx.Deadline(); ok && time.Until(deadline) > 0 {
			<-ctx.Done() // as a driver does
			return nil, ctx.Err()
		}
		return nil, errDown
	}
	feeds := open(t, rdb, source, feedcache.Config{SourceLimit: 1})
	fails.Store(true)
	for range 3 {
		_, err := feeds.Page(ctx, 1, 0, 5)
		require.ErrorIs(t, err, errDown)
		require.ErrorContains(t, err, "feedcache: page feed:1: ")
		require.Zero(t, rdb.Exists(ctx, "feed:1").Val(), "the lease was given back")
		short, cancel := context.WithTimeout(ctx, 20*time.Millisecond)
		_, err = feeds.Page(short, 1, 0, 5)
		cancel()
		require.ErrorIs(t, err, context.DeadlineExceeded)
		require.Zero(t, rdb.Exists(ctx, "feed:1").Val(), "the lease was given back")
	}
	require.EqualValues(t, 6, feeds.Stats().SourceErrors)
	fails.Store(false)
	page, err := feeds.Page(ctx, 1, 0, 5)
	require.NoError(t, err)
	require.Equal(t, feedcache.Page{IDs: []int64{1}}, page)
	require.EqualValues(t, 1, rdb.Exists(ctx, "feed:1").Val())
}

func TestPushThatFailsHalfWay(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	server, rdb := private(t)
	var src table
	feeds := open(t, rdb, src.Source, feedcache.Config{})
	everyone := seq(1400, 1)
	for _, owner := range everyone {
		if owner%2 == 0 {
			_, err := feeds.Page(ctx, owner, 0, 1)
			require.NoError(t, err)
		}
	}
	src.insert(1400, 7)
	src.insert(2, 7)
	tried := 0
	hanging := func(yield func(int64) bool) {
		for _, owner := range everyone {
			if tried++; tried == 700 {
				// By then the first window has arrived.
				err := eventually(func() error {
					if feeds.Stats().Delivered < 250 {
						return errors.New("not yet")
					}
					return nil
				})
				if err := errors.Join(err, server.Pause()); err != nil {
					panic(err)
				}
			}
			if !yield(owner) {
				return
			}
		}
	}
	d, err := feeds.Push(ctx, hanging, 7)
	require.Equal(t, feedcache.Delivery{Warm: 250, Cold: 250}, d)
	require.ErrorContains(t, err, "feedcache: push feed:")
	failed, ok := errors.AsType[*feedcache.UnreachedError](err)
	require.True(t, ok, err)
	slices.Sort(failed.Owners)
	slices.Reverse(failed.Owners)
	require.Equal(t, everyone[500:500+len(failed.Owners)], failed.Owners, "all that were tried")

	require.NoError(t, server.Resume())
	d, err = feeds.Push(ctx, slices.Values(everyone), 7)
	require.NoError(t, err)
	require.Equal(t, feedcache.Delivery{Warm: 700, Cold: 700}, d)
	for _, owner := range []int64{1400, 2} {
		got, err := walk(ctx, feeds, owner, 5)
		require.NoError(t, err)
		require.Equal(t, []int64{7}, got)
	}
}

// Outboxes on a Redis that is away make pages slower, not wrong, and so do
// feeds.
func TestHybridWithoutOneOfItsServers(t *testing.T) {
	t.Parallel()
	for _, gone := range []string{"outbox", "feed"} {
		t.Run(strings.ToUpper(gone[:1])+gone[1:], func(t *testing.T) {
			t.Parallel()
			ctx, there := t.Context(), testserver.Redis(t)
			server, away := private(t)
			rdb, boxes := there, away
			if gone == "feed" {
				rdb, boxes = away, there
			}
			var timeline, posted table
			timeline.insert(1, seq(60, 1)...)
			for id := int64(1); id <= 60; id++ {
				posted.insert(1+id%2, id)
			}
			feeds := open(t, rdb, timeline.Source, feedcache.Config{Cap: 10})
			outboxes := open(t, boxes, posted.Source, feedcache.Config{Cap: 4, Prefix: "outbox"})
			hybrid, err := feedcache.NewHybrid(feeds, outboxes, pulls{1})
			require.NoError(t, err)
			right := func(what string) {
				t.Helper()
				for n := 1; n < 70; n += 8 {
					var got []int64
					for before, more := int64(0), true; more; {
						page, err := hybrid.Page(ctx, 1, before, n)
						require.NoError(t, err, what)
						got = append(got, page.IDs...)
						before, more = page.Next, page.Next != 0
					}
					require.Equal(t, timeline.newest(1), got, what)
				}
			}
			right("cold")
			right("warm")
			post := func(id int64) {
				timeline.insert(1, id)
				posted.insert(1+id%2, id)
			}
			post(62) // author 1, pulled: for the outbox alone
			_, err = outboxes.Push(ctx, one(1), 62)
			require.NoError(t, err)
			timeline.took()
			right("a pulled post")

			require.NoError(t, server.Kill())
			post(64) // not pushed: the Source alone has it
			if gone == "feed" {
				_, err = outboxes.Push(ctx, one(1), 64)
				require.NoError(t, err)
			}
			right("gone")
			require.NoError(t, server.Restart(ctx))
			right("back")
		})
	}
}

// pulls are Routes that never change: the authors that are pulled.
type pulls []int64

func (p pulls) Pulled(context.Context, int64) ([]int64, error) { return p, nil }
func (p pulls) Skip(_ context.Context, author, _ int64) (bool, error) {
	return slices.Contains(p, author), nil
}

func (p pulls) Set(context.Context, int64, feedcache.Route) (int64, error) {
	return 0, errors.ErrUnsupported
}

// Of the pages of a server that hangs one waits; the others leave it alone, and
// come back to it soon after it does.
func TestPagesLeaveAServerAloneThatHangs(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	server, rdb := private(t)
	var src table
	src.insert(1, 1, 2, 3)
	feeds := open(t, rdb, src.Source, feedcache.Config{RetryAfter: 300 * time.Millisecond})
	asked := func() int64 {
		t.Helper()
		before := feeds.Stats().SourceReads
		page, err := feeds.Page(ctx, 1, 0, 5)
		require.NoError(t, err)
		require.Equal(t, []int64{3, 2, 1}, page.IDs)
		return feeds.Stats().SourceReads - before
	}
	require.EqualValues(t, 1, asked(), "a fill")
	require.Zero(t, asked(), "warm")

	require.NoError(t, server.Pause())
	begin := time.Now()
	require.EqualValues(t, 1, asked())
	first := time.Since(begin)
	require.Greater(t, first, 400*time.Millisecond, "the client's timeout")
	begin = time.Now()
	for range 20 {
		require.EqualValues(t, 1, asked())
	}
	require.Less(t, time.Since(begin), first, "twenty take less than one")

	// One page tries again, and the others do not wait with it.
	time.Sleep(300 * time.Millisecond)
	tried := make(chan struct{})
	go func() { defer close(tried); _, _ = feeds.Page(ctx, 1, 0, 5) }()
	time.Sleep(50 * time.Millisecond)
	begin = time.Now()
	require.EqualValues(t, 1, asked())
	require.Less(t, time.Since(begin), first/2)
	<-tried

	require.NoError(t, server.Resume())
	for begin := time.Now(); asked() > 0; time.Sleep(10 * time.Millisecond) {
		require.Less(t, time.Since(begin), 5*time.Second, "pages do not come back to Redis")
	}

	// What a server says, and a reader without patience, are no silence.
	impatient, cancel := context.WithTimeout(ctx, time.Nanosecond)
	defer cancel()
	_, err := feeds.Page(impatient, 1, 0, 5)
	require.ErrorIs(t, err, context.DeadlineExceeded)
	require.NoError(t, rdb.Set(ctx, "feed:1", "not a feed", 0).Err())
	require.EqualValues(t, 1, asked(), "a fill")
	require.Zero(t, asked(), "warm")
}
