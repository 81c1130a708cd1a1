package feedcache_test

import (
	"context"
	"errors"
	"math"
	"slices"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/shardgram/shardgram/feedcache"
	"github.com/shardgram/shardgram/internal/testserver"
)

func TestRouteString(t *testing.T) {
	t.Parallel()
	require.Equal(t, "push", feedcache.RoutePush.String())
	require.Equal(t, "both", feedcache.RouteBoth.String())
	require.Equal(t, "pull", feedcache.RoutePull.String())
	require.Equal(t, "Route(3)", feedcache.Route(3).String())
	require.Equal(t, "Route(-1)", feedcache.Route(-1).String())
}

func TestNewHybridRefusesBadConfig(t *testing.T) {
	t.Parallel()
	rdb := unmanaged(t)
	feeds := open(t, rdb, new(table).Source, feedcache.Config{})
	outboxes := open(t, rdb, new(table).Source, feedcache.Config{Prefix: "outbox"})
	for want, hybrid := range map[string]func() (*feedcache.Hybrid, error){
		"feeds or outboxes are nil": func() (*feedcache.Hybrid, error) { return feedcache.NewHybrid(nil, outboxes, routes{}) },
		"outboxes are nil":          func() (*feedcache.Hybrid, error) { return feedcache.NewHybrid(feeds, nil, routes{}) },
		`have the prefix "feed"`:    func() (*feedcache.Hybrid, error) { return feedcache.NewHybrid(feeds, feeds, routes{}) },
		"the Routes are nil":        func() (*feedcache.Hybrid, error) { return feedcache.NewHybrid(feeds, outboxes, nil) },
	} {
		_, err := hybrid()
		require.ErrorContains(t, err, "feedcache: ")
		require.ErrorContains(t, err, want)
	}
	_, err := feedcache.NewHybrid(feeds, outboxes, routes{})
	require.NoError(t, err)
}

func TestSwitchFails(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	rdb := testserver.Redis(t)
	feeds := open(t, rdb, new(table).Source, feedcache.Config{})
	outboxes := open(t, rdb, new(table).Source, feedcache.Config{Prefix: "outbox"})
	errDown := errors.New("database is down")
	fanout := func(r feedcache.Routes) *feedcache.Fanout {
		return newFanout(t, feeds, some(3).Followers, feedcache.FanoutConfig{
			Outboxes: outboxes, Routes: r, RouteAge: time.Hour,
		})
	}
	without := newFanout(t, feeds, some(3).Followers, feedcache.FanoutConfig{})
	require.ErrorContains(t, without.Switch(ctx, 1, feedcache.RoutePull), "feedcache: switch author 1 to pull: ")
	for _, author := range []int64{0, -1, math.MaxInt64} {
		require.ErrorIs(t, fanout(routes{}).Switch(ctx, author, feedcache.RoutePull), feedcache.ErrInvalid)
	}
	for _, to := range []feedcache.Route{feedcache.RouteBoth, -1, 3} {
		require.ErrorIs(t, fanout(routes{}).Switch(ctx, 1, to), feedcache.ErrInvalid)
	}
	err := fanout(routes{fail: errDown}).Switch(ctx, 1, feedcache.RoutePush)
	require.ErrorIs(t, err, errDown)
	require.EqualError(t, err, "feedcache: switch author 1 to push: route: database is down")
	short, cancel := context.WithTimeout(ctx, 20*time.Millisecond)
	defer cancel()
	err = fanout(routes{}).Switch(short, 1, feedcache.RoutePull)
	require.ErrorIs(t, err, context.DeadlineExceeded, "it waits for RouteAge")
}

// An author is pulled for a while, in which the feeds get nothing. On the way
// back they get all of it, also what is many pages of the outbox, and nothing
// older.
func TestSwitchCatchesUp(t *testing.T) {
	t.Parallel()
	rdb := testserver.Redis(t)
	for _, skipped := range []int64{0, 1, 3, 1000, 1001, 2500} {
		ctx := t.Context()
		var posts table
		posts.insert(1, 10, 20, 30)
		feeds := open(t, rdb, new(table).Source, feedcache.Config{Cap: 5000})
		outboxes := open(t, rdb, posts.Source, feedcache.Config{Prefix: "outbox", Cap: 100})
		require.NoError(t, outboxes.Drop(ctx, 1))
		followers := some(7)
		warm(t, rdb, feeds, followers)
		m := &routeMap{route: map[int64]feedcache.Route{}, since: map[int64]int64{}}
		o := newFanout(t, feeds, followers.Followers, feedcache.FanoutConfig{
			PageSize: 2, Chunk: 2, Queue: &memory{fail: errors.New("not to be used")},
			Outboxes: outboxes, Routes: m, RouteAge: time.Millisecond,
		})
		require.NoError(t, o.Switch(ctx, 1, feedcache.RoutePull))
		require.Equal(t, feedcache.RoutePull, m.route[1])
		want := seq(100+skipped-1, 100)
		for ids := range slices.Chunk(want, 400) {
			posts.insert(1, ids...)
			d, err := o.Run(ctx, feedcache.Job{Author: 1, IDs: ids}, nil)
			require.NoError(t, err)
			require.Zero(t, d)
		}
		require.Equal(t, each(followers, 0), landed(t, rdb, followers))

		for range 2 { // as safe to repeat
			require.NoError(t, o.Switch(ctx, 1, feedcache.RoutePush))
			require.Equal(t, feedcache.RoutePush, m.route[1])
			for _, owner := range followers {
				got, err := walk(ctx, feeds, owner, 1000)
				require.NoError(t, err)
				require.True(t, slices.Equal(want, got), "%d of %d", len(got), skipped)
			}
		}
	}
}

// One follower pulls an author whom the others get pushed, from before it begins
// until after it ends, in the order that the docs give: after each step, and a
// post between any two, the page has all posts.
func TestOneFollowerPullsAnAuthor(t *testing.T) {
	t.Parallel()
	ctx, rdb := t.Context(), testserver.Redis(t)
	const author, puller, other = 9, 1, 2
	var home, posts table
	pulled, leftOut := false, false
	followers := func(_ context.Context, _, after int64, n int) ([]int64, error) {
		all := []int64{puller, other}
		if leftOut {
			all = all[1:]
		}
		all = slices.DeleteFunc(all, func(owner int64) bool { return owner <= after })
		return all[:min(n, len(all))], nil
	}
	feeds := open(t, rdb, home.Source, feedcache.Config{Prefix: "home"})
	outboxes := open(t, rdb, posts.Source, feedcache.Config{Prefix: "outbox"})
	hybrid, err := feedcache.NewHybrid(feeds, outboxes, pulledBy(func(owner int64) []int64 {
		if pulled && owner == puller {
			return []int64{author}
		}
		return nil
	}))
	require.NoError(t, err)
	fanout, err := feedcache.NewFanout(feeds, followers, feedcache.FanoutConfig{Outboxes: outboxes})
	require.NoError(t, err)
	post := func() {
		t.Helper()
		id := int64(len(posts.newest(author)) + 1)
		posts.insert(author, id)
		home.insert(puller, id)
		home.insert(other, id)
		_, err := fanout.Run(ctx, feedcache.Job{Author: author, IDs: []int64{id}}, nil)
		require.NoError(t, err)
		for _, owner := range []int64{puller, other} {
			got, err := walk(ctx, hybrid, owner, 3)
			require.NoError(t, err)
			require.Equal(t, posts.newest(author), got, "owner %d", owner)
		}
	}
	ownFeed := func() []int64 {
		t.Helper()
		got, err := walk(ctx, feeds, puller, 100)
		require.NoError(t, err)
		return got
	}
	for range 2 { // there and back, twice
		post()
		pulled = true
		post()
		leftOut = true
		post()
		post()
		require.Less(t, len(ownFeed()), len(posts.newest(author)), "it was not pushed")
		leftOut = false
		post()
		require.NoError(t, feeds.Edit(ctx, puller, func(ids []int64) ([]int64, error) {
			return append(ids, posts.newest(author)...), nil
		}))
		post()
		pulled = false
		post()
		require.Equal(t, posts.newest(author), ownFeed())
	}
	require.Zero(t, feeds.Stats().RedisFailures)
	require.EqualValues(t, 2, feeds.Stats().Rebuilds, "the feeds have been warm since")
}

// pulledBy says whose outboxes an owner pulls.
type pulledBy func(owner int64) []int64

func (p pulledBy) Pulled(_ context.Context, owner int64) ([]int64, error) { return p(owner), nil }
func (p pulledBy) Skip(context.Context, int64, int64) (bool, error)       { return false, nil }
func (p pulledBy) Set(context.Context, int64, feedcache.Route) (int64, error) {
	return 0, errors.New("not asked for")
}
