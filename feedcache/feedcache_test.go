package feedcache_test

import (
	"context"
	"math"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	"github.com/shardgram/shardgram/feedcache"
	"github.com/shardgram/shardgram/internal/localserver"
	"github.com/shardgram/shardgram/internal/testserver"
)

// A tripCounter notes the round trips of a client, without those that set up a
// connection.
type tripCounter struct {
	mu    sync.Mutex
	trips [][]redis.Cmder
}

func (c *tripCounter) count(cmds ...redis.Cmder) {
	switch cmds[0].Name() {
	case "hello", "select", "client":
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.trips = append(c.trips, cmds)
}

// took returns the number of round trips since the last call, and the ranges
// of lists that were read.
func (c *tripCounter) took() (n int, ranges []string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, trip := range c.trips {
		for _, cmd := range trip {
			if args := cmd.Args(); cmd.Name() == "lrange" {
				whole := "whole"
				if args[2] == int64(1) {
					whole = "newest"
				}
				ranges = append(ranges, whole)
			}
		}
	}
	n, c.trips = len(c.trips), nil
	return n, ranges
}

func (c *tripCounter) DialHook(next redis.DialHook) redis.DialHook { return next }

func (c *tripCounter) ProcessHook(next redis.ProcessHook) redis.ProcessHook {
	return func(ctx context.Context, cmd redis.Cmder) error {
		c.count(cmd)
		return next(ctx, cmd)
	}
}

func (c *tripCounter) ProcessPipelineHook(next redis.ProcessPipelineHook) redis.ProcessPipelineHook {
	return func(ctx context.Context, cmds []redis.Cmder) error {
		c.count(cmds...)
		return next(ctx, cmds)
	}
}

// A before runs something of another client's just before the first round trip
// of this one that begins with a command: an interleaving that would be rare.
type before struct {
	name string
	do   func()
}

func (b *before) check(cmd redis.Cmder) {
	if do := b.do; do != nil && cmd.Name() == b.name {
		b.do = nil
		do()
	}
}

func (b *before) DialHook(next redis.DialHook) redis.DialHook { return next }

func (b *before) ProcessHook(next redis.ProcessHook) redis.ProcessHook {
	return func(ctx context.Context, cmd redis.Cmder) error {
		b.check(cmd)
		return next(ctx, cmd)
	}
}

func (b *before) ProcessPipelineHook(next redis.ProcessPipelineHook) redis.ProcessPipelineHook {
	return func(ctx context.Context, cmds []redis.Cmder) error {
		b.check(cmds[0])
		return next(ctx, cmds)
	}
}

// hooked returns a second client of the same database, with the hook.
func hooked(t *testing.T, rdb *redis.Client, hook redis.Hook) *redis.Client {
	t.Helper()
	second := redis.NewClient(&redis.Options{Addr: rdb.Options().Addr, DB: rdb.Options().DB})
	second.AddHook(hook)
	t.Cleanup(func() { require.NoError(t, second.Close()) })
	return second
}

// ownRedis starts a server for a test that configures it.
func ownRedis(t *testing.T) *redis.Client {
	t.Helper()
	s, err := testserver.Host(t).Redis(t.Context(), "redis", localserver.RedisConfig{})
	require.NoError(t, err)
	rdb := redis.NewClient(&redis.Options{Addr: s.Addr()})
	t.Cleanup(func() { require.NoError(t, rdb.Close()) })
	return rdb
}

// must is for changes that cannot fail, also below a call of the package.
func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

// stored is the feed at a key.
func stored(t *testing.T, rdb *redis.Client, key string) feedcache.View {
	t.Helper()
	v, ok := feedcache.Parse(rdb.LRange(t.Context(), key, 0, -1).Val(), true)
	require.True(t, ok, "no feed at %s", key)
	return v
}

// unmanaged is a client that is never dialled.
func unmanaged(t *testing.T) *redis.Client {
	t.Helper()
	rdb := redis.NewClient(&redis.Options{Addr: "127.0.0.1:1"})
	t.Cleanup(func() { require.NoError(t, rdb.Close()) })
	return rdb
}

func TestNewRefusesBadConfig(t *testing.T) {
	t.Parallel()
	rdb, src := unmanaged(t), new(table).Source
	cluster := func(o redis.ClusterOptions) redis.UniversalClient {
		o.Addrs = []string{"127.0.0.1:1"}
		c := redis.NewClusterClient(&o)
		t.Cleanup(func() { require.NoError(t, c.Close()) })
		return c
	}
	ring := redis.NewRing(&redis.RingOptions{HeartbeatFrequency: time.Hour})
	t.Cleanup(func() { require.NoError(t, ring.Close()) })
	tests := []struct {
		name string
		rdb  redis.UniversalClient
		src  feedcache.Source
		cfg  feedcache.Config
		want string
	}{
		{name: "NoClient", src: src, want: "client is nil"},
		{name: "Ring", rdb: ring, src: src, want: "Ring"},
		{name: "ReadOnly", rdb: cluster(redis.ClusterOptions{ReadOnly: true}), src: src, want: "replicas"},
		{name: "ByLatency", rdb: cluster(redis.ClusterOptions{RouteByLatency: true}), src: src, want: "replicas"},
		{name: "Randomly", rdb: cluster(redis.ClusterOptions{RouteRandomly: true}), src: src, want: "replicas"},
		{name: "NoSource", rdb: rdb, want: "Source is nil"},
		{name: "HashTag", rdb: rdb, src: src, cfg: feedcache.Config{Prefix: "{feed}"}, want: "Config.Prefix"},
		{name: "NegativeCap", rdb: rdb, src: src, cfg: feedcache.Config{Cap: -1}, want: "Config.Cap is -1"},
		{name: "HugeCap", rdb: rdb, src: src, cfg: feedcache.Config{Cap: 100_001}, want: "Config.Cap is 100001"},
		{name: "NegativeTTL", rdb: rdb, src: src, cfg: feedcache.Config{TTL: -time.Hour}, want: "Config.TTL is -1h0m0s"},
		{name: "TinyTTL", rdb: rdb, src: src, cfg: feedcache.Config{TTL: time.Microsecond}, want: "Config.TTL"},
		{name: "NegativeLease", rdb: rdb, src: src, cfg: feedcache.Config{LeaseTTL: -time.Second}, want: "Config.LeaseTTL"},
		{name: "TinyLease", rdb: rdb, src: src, cfg: feedcache.Config{LeaseTTL: time.Microsecond}, want: "Config.LeaseTTL"},
		{name: "NegativeCheck", rdb: rdb, src: src, cfg: feedcache.Config{FailoverCheck: -1}, want: "Config.FailoverCheck"},
		{name: "NegativeLimit", rdb: rdb, src: src, cfg: feedcache.Config{SourceLimit: -1}, want: "Config.SourceLimit is -1"},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			_, err := feedcache.New(test.rdb, test.src, test.cfg)
			require.ErrorContains(t, err, "feedcache: ")
			require.ErrorContains(t, err, test.want)
		})
	}
	for _, rdb := range []redis.UniversalClient{rdb, cluster(redis.ClusterOptions{})} {
		_, err := feedcache.New(rdb, src, feedcache.Config{})
		require.NoError(t, err)
		_, err = feedcache.New(rdb, src, feedcache.Config{
			Cap: 100_000, TTL: time.Millisecond, LeaseTTL: time.Millisecond, FailoverCheck: 1, SourceLimit: 1,
		})
		require.NoError(t, err)
	}
}

func TestInvalidArguments(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	rdb := testserver.Redis(t)
	feeds := open(t, rdb, new(table).Source, feedcache.Config{})
	page := func(owner, before int64, n int) error {
		_, err := feeds.Page(ctx, owner, before, n)
		return err
	}
	push := func(owner int64, ids ...int64) error {
		_, err := feeds.Push(ctx, one(owner), ids...)
		return err
	}
	remove := func(owner int64, ids ...int64) error {
		_, err := feeds.Remove(ctx, one(owner), ids...)
		return err
	}
	unseen := func(owner int64) error {
		_, err := feeds.Unseen(ctx, owner)
		return err
	}
	keep := func(ids []int64) ([]int64, error) { return ids, nil }
	for name, err := range map[string]error{
		"page of owner 0":       page(0, 0, 20),
		"page of a bad owner":   page(-1, 0, 20),
		"page of top":           page(math.MaxInt64, 0, 20),
		"negative cursor":       page(1, -1, 20),
		"no page size":          page(1, 0, 0),
		"negative page size":    page(1, 0, -1),
		"page size":             page(1, 0, feedcache.MaxPage+1),
		"huge page size":        page(1, 0, math.MaxInt),
		"push to owner 0":       push(0, 1),
		"push to top":           push(math.MaxInt64, 1),
		"push of 0":             push(1, 1, 0),
		"push of a negative ID": push(1, math.MinInt64),
		"push of top":           push(1, math.MaxInt64),
		"remove of 0":           remove(1, 0),
		"remove of top":         remove(1, 1, math.MaxInt64),
		"remove, bad owner":     remove(-1, 1),
		"drop of owner 0":       feeds.Drop(ctx, 1, 0),
		"edit of owner 0":       feeds.Edit(ctx, 0, keep),
		"edit of top":           feeds.Edit(ctx, math.MaxInt64, keep),
		"seen of owner 0":       feeds.Seen(ctx, 0, 1),
		"seen up to 0":          feeds.Seen(ctx, 1, 0),
		"seen up to top":        feeds.Seen(ctx, 1, math.MaxInt64),
		"unseen of owner 0":     unseen(0),
	} {
		require.ErrorIs(t, err, feedcache.ErrInvalid, name)
		require.ErrorContains(t, err, "feedcache: ", name)
	}
	require.Zero(t, rdb.DBSize(ctx).Val(), "nothing was stored")
	require.Zero(t, feeds.Stats(), "and nothing asked")

	// The ends of each range, and a cursor in the future.
	require.NoError(t, page(math.MaxInt64-1, math.MaxInt64, feedcache.MaxPage))
	require.NoError(t, push(math.MaxInt64-1, math.MaxInt64-1, 1))
	require.NoError(t, remove(math.MaxInt64-1, 1))
	require.NoError(t, feeds.Seen(ctx, math.MaxInt64-1, 1))
	got, err := feeds.Page(ctx, math.MaxInt64-1, math.MaxInt64, 1)
	require.NoError(t, err)
	require.Equal(t, []int64{math.MaxInt64 - 1}, got.IDs)
	require.Zero(t, got.Next)

	// Nothing to do.
	require.NoError(t, push(1))
	require.NoError(t, remove(1))
	require.NoError(t, feeds.Drop(ctx))
	d, err := feeds.Push(ctx, slices.Values([]int64(nil)), 1)
	require.NoError(t, err)
	require.Zero(t, d)
}

func TestDrop(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	var src table
	var owners []int64
	for owner := range int64(1200) {
		owners = append(owners, owner+1)
	}
	src.insert(1, 10)
	src.insert(1200, 10)
	feeds := open(t, testserver.Redis(t), src.Source, feedcache.Config{})
	for _, owner := range []int64{1, 2, 3, 1200} {
		_, err := feeds.Page(ctx, owner, 0, 5)
		require.NoError(t, err)
	}
	src.insert(1, 5)
	src.insert(1200, 5)

	require.NoError(t, feeds.Drop(ctx, owners...))
	require.NoError(t, feeds.Drop(ctx, owners...), "as safe to repeat")
	d, err := feeds.Push(ctx, slices.Values(owners), 20)
	require.NoError(t, err)
	require.Equal(t, feedcache.Delivery{Cold: 1200}, d)
	for _, owner := range []int64{1, 1200} {
		page, err := feeds.Page(ctx, owner, 0, 5)
		require.NoError(t, err)
		require.Equal(t, []int64{10, 5}, page.IDs)
	}

	// A fill that began before the Drop stores nothing.
	require.NoError(t, feeds.Drop(ctx, 1))
	src.around = func(before bool) {
		if !before {
			src.around = nil
			must(0, feeds.Drop(ctx, 1))
		}
	}
	_, err = feeds.Page(ctx, 1, 0, 5)
	require.NoError(t, err)
	d, err = feeds.Push(ctx, one(1), 20)
	require.NoError(t, err)
	require.Equal(t, feedcache.Delivery{Cold: 1}, d)
}

// No script has to be loaded first, and none has to stay: here the server
// forgets them all before each round trip.
func TestServerThatForgetsScripts(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	rdb := ownRedis(t)
	forgetful := hooked(t, rdb, forget{rdb})
	now := time.Unix(1_000_000_000, 0)
	var src table
	src.insert(1, seq(100, 1)...)
	feeds := open(t, forgetful, src.Source, feedcache.Config{
		Cap: 64, TTL: time.Hour, FailoverCheck: time.Nanosecond, Now: func() time.Time { return now },
	})
	right := func() {
		t.Helper()
		for _, n := range []int{3, 30} {
			got, err := walk(ctx, feeds, 1, n)
			require.NoError(t, err)
			require.Equal(t, src.newest(1), got)
		}
	}
	right() // a lease and a fill
	require.EqualValues(t, 1, feeds.Stats().Rebuilds)
	for id := int64(101); id < 200; id++ {
		src.insert(1, id)
		d, err := feeds.Push(ctx, one(1), id)
		require.NoError(t, err)
		require.Equal(t, feedcache.Delivery{Warm: 1}, d)
	}
	require.EqualValues(t, 99/feeds.Slack(), feeds.Stats().Compactions)
	right()
	src.remove(1, 150)
	require.NoError(t, feeds.Edit(ctx, 1, func(ids []int64) ([]int64, error) {
		return slices.DeleteFunc(ids, func(id int64) bool { return id == 150 }), nil
	}))
	require.EqualValues(t, 1, feeds.Stats().Edits)
	right()
	was := stored(t, rdb, "feed:1").Tag()
	now = now.Add(31 * time.Minute)
	right()
	require.NotEqual(t, was, stored(t, rdb, "feed:1").Tag(), "renewed")
	require.EqualValues(t, 1, feeds.Stats().Rebuilds)
	require.Zero(t, feeds.Stats().RedisFailures)
}

// A forget flushes the scripts of a server before each pipeline.
type forget struct{ rdb *redis.Client }

func (f forget) DialHook(next redis.DialHook) redis.DialHook          { return next }
func (f forget) ProcessHook(next redis.ProcessHook) redis.ProcessHook { return next }

func (f forget) ProcessPipelineHook(next redis.ProcessPipelineHook) redis.ProcessPipelineHook {
	return func(ctx context.Context, cmds []redis.Cmder) error {
		must(f.rdb.ScriptFlush(ctx).Result())
		return next(ctx, cmds)
	}
}

func TestFeedsOfEachCap(t *testing.T) {
	t.Parallel()
	rdb := testserver.Redis(t)
	for _, test := range []struct {
		name     string
		cap      int
		rows     int64
		pageSize int
	}{
		{name: "One", cap: 1, rows: 40, pageSize: 3},
		{name: "Two", cap: 2, rows: 40, pageSize: 1},
		{name: "ExactlyFull", cap: 40, rows: 40, pageSize: 7},
		{name: "OneMore", cap: 40, rows: 41, pageSize: 10},
		{name: "OneLess", cap: 40, rows: 39, pageSize: 13},
		{name: "Large", cap: 100_000, rows: 100_003, pageSize: 1000},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			ctx, owner := t.Context(), int64(test.cap)<<20+test.rows
			var src table
			src.insert(owner, seq(test.rows, 1)...)
			feeds := open(t, rdb, src.Source, feedcache.Config{Cap: test.cap})
			for i := test.rows + 1; i <= test.rows+20; i++ {
				if (i-test.rows)%7 == 1 {
					page, err := feeds.Page(ctx, owner, 0, 2)
					require.NoError(t, err)
					require.Equal(t, seq(i-1, i-2), page.IDs)
				}
				src.insert(owner, i)
				d, err := feeds.Push(ctx, one(owner), i)
				require.NoError(t, err)
				require.Equal(t, feedcache.Delivery{Warm: 1}, d)
			}
			begin := min(test.rows+21, 3000) // not all of the large one
			page, err := feeds.Page(ctx, owner, begin, test.pageSize)
			require.NoError(t, err)
			got := page.IDs
			for page.Next > 0 {
				page, err = feeds.Page(ctx, owner, page.Next, test.pageSize)
				require.NoError(t, err)
				got = append(got, page.IDs...)
			}
			require.Equal(t, seq(begin-1, 1), got)
			require.EqualValues(t, 1, feeds.Stats().Rebuilds)
		})
	}
}
