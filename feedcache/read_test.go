package feedcache_test

import (
	"context"
	"errors"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	"github.com/shardgram/shardgram/feedcache"
	"github.com/shardgram/shardgram/internal/testserver"
)

// put writes a list by hand.
func put(ctx context.Context, rdb *redis.Client, key string, ttl time.Duration, list ...string) {
	args := make([]any, len(list))
	for i, e := range list {
		args[i] = e
	}
	_, err := rdb.TxPipelined(ctx, func(p redis.Pipeliner) error {
		p.Del(ctx, key)
		p.RPush(ctx, key, args...)
		p.PExpire(ctx, key, ttl)
		return nil
	})
	must(0, err)
}

// headOn is head of a feed that the server of feeds has.
func headOn(t *testing.T, feeds *feedcache.Feeds, tag string, floor, headFloor int64, ids ...int64) string {
	t.Helper()
	at, err := feeds.Incarnation(t.Context())
	require.NoError(t, err)
	v := feedcache.FromSource(ids, len(ids)+1).As(tag, at)
	text := []byte(v.Encode(len(ids) + 1)[1])
	copy(text[8:], packed(uint64(floor), uint64(headFloor)))
	copy(text[40:], packed(uint64(time.Now().Add(time.Hour).UnixMilli())))
	return string(text)
}

func TestOneReaderFillsAFeed(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	var src table
	src.insert(1, seq(30, 1)...)
	feeds := open(t, testserver.Redis(t), src.Source, feedcache.Config{Cap: 20})
	var readers sync.WaitGroup
	pages := make([]feedcache.Page, 20)
	errs := make([]error, len(pages))
	for i := range pages {
		readers.Go(func() { pages[i], errs[i] = feeds.Page(ctx, 1, 0, 5) })
	}
	readers.Wait()
	for i := range pages {
		require.NoError(t, errs[i])
		require.Equal(t, feedcache.Page{IDs: seq(30, 26), Next: 26}, pages[i])
	}
	fills := slices.DeleteFunc(src.took(), func(n int) bool { return n != 20 })
	require.Len(t, fills, 1)
	require.EqualValues(t, 1, feeds.Stats().Rebuilds)
}

// A reader died with the lease: the others wait 155 ms at most, do not store
// what they read, and fill the feed when the lease is over.
func TestLeaseOfADeadReader(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	rdb := testserver.Redis(t)
	var src table
	src.insert(1, seq(30, 1)...)
	feeds := open(t, rdb, src.Source, feedcache.Config{Cap: 20})
	lease := []string{"", headOn(t, feeds, buildingTag, 0, 0)}
	put(ctx, rdb, "feed:1", time.Minute, lease...)

	begin := time.Now()
	page, err := feeds.Page(ctx, 1, 0, 5)
	require.NoError(t, err)
	require.GreaterOrEqual(t, time.Since(begin), 155*time.Millisecond)
	require.Equal(t, feedcache.Page{IDs: seq(30, 26), Next: 26}, page)
	require.Equal(t, []int{6}, src.took())
	require.EqualValues(t, 5, feeds.Stats().Waits)
	require.Equal(t, lease, rdb.LRange(ctx, "feed:1", 0, -1).Val())
	require.LessOrEqual(t, rdb.PTTL(ctx, "feed:1").Val(), time.Minute, "a read must not prolong a lease")

	// The context of a reader who waits ends.
	short, cancel := context.WithTimeout(ctx, 20*time.Millisecond)
	defer cancel()
	_, err = feeds.Page(short, 1, 0, 5)
	require.ErrorIs(t, err, context.DeadlineExceeded)

	require.NoError(t, rdb.PExpire(ctx, "feed:1", time.Millisecond).Err())
	got, err := walk(ctx, feeds, 1, 5)
	require.NoError(t, err)
	require.Equal(t, seq(30, 1), got)
	require.Contains(t, src.took(), 20, "filled")
}

// What another incarnation of the server had is replaced at once: its feeds,
// and the leases of readers that may be dead.
func TestFeedOfAnotherIncarnation(t *testing.T) {
	t.Parallel()
	rdb := testserver.Redis(t)
	for i, tag := range []string{readyTag, buildingTag} {
		for _, n := range []int{1, 5} { // the newest part, and the whole feed
			owner := int64(10*i + n)
			t.Run(tag[1:2]+strconv.Itoa(n), func(t *testing.T) {
				t.Parallel()
				ctx, key := t.Context(), "feed:"+strconv.FormatInt(owner, 10)
				var src table
				src.insert(owner, seq(9, 1)...)
				feeds := open(t, rdb, src.Source, feedcache.Config{})
				put(ctx, rdb, key, time.Minute, "", head(tag, 0, 0, 0, 3, 4), packed(5))
				page, err := feeds.Page(ctx, owner, 0, n)
				require.NoError(t, err)
				require.Equal(t, seq(9, 10-int64(n)), page.IDs)
				require.Zero(t, feeds.Stats().Waits)
				v := stored(t, rdb, key)
				require.Equal(t, feedcache.Ready, v.State())
				require.Equal(t, 9, v.Len())
				at, err := feeds.Incarnation(ctx)
				require.NoError(t, err)
				require.Equal(t, at, v.Server())
				require.NotEqual(t, server, at)
			})
		}
	}
}

// Between the look and the try for the lease another reader was faster.
func TestAMissLeavesTheLeaseOfAnother(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	rdb := testserver.Redis(t)
	var src table
	src.insert(1, 10)
	stolen := open(t, rdb, src.Source, feedcache.Config{})
	_, err := stolen.Page(ctx, 2, 0, 1) // the server knows the scripts
	require.NoError(t, err)
	for name, found := range map[string][]string{
		"Free":   nil,
		"Torn":   {"", head(readyTag, 0, 0, 0)[:30]},
		"Stale":  {"", head(readyTag, 0, 0, 0, 5)},
		"Leased": {"", head("\xfcBothers", 0, 0, 0, 5)},
	} {
		if found == nil {
			require.NoError(t, rdb.Del(ctx, "feed:1").Err())
		} else {
			put(ctx, rdb, "feed:1", time.Minute, found...)
		}
		lease := []string{"", headOn(t, stolen, buildingTag, 0, 0)}
		steal := &before{}
		feeds := open(t, hooked(t, rdb, steal), src.Source, feedcache.Config{})
		_, err := feeds.Page(ctx, 2, 0, 1) // it knows the server
		require.NoError(t, err, name)
		*steal = before{name: "evalsha", do: func() { put(ctx, rdb, "feed:1", time.Minute, lease...) }}
		if name == "Stale" || name == "Leased" { // the first script asks for the incarnation
			first := steal.do
			steal.do = func() { *steal = before{name: "evalsha", do: first} }
		}
		page, err := feeds.Page(ctx, 1, 0, 5)
		require.NoError(t, err, name)
		require.Equal(t, []int64{10}, page.IDs, name)
		require.Nil(t, steal.do, name)
		require.Equal(t, lease, rdb.LRange(ctx, "feed:1", 0, -1).Val(), name)
	}
}

// The changes that matter during a fill: what lands between the lease and the
// swap, on either side of the read.
func TestFillKeepsWhatLandsMeanwhile(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	rdb := testserver.Redis(t)
	src := table{}
	src.insert(1, 10, 20, 30)
	feeds := open(t, rdb, src.Source, feedcache.Config{Cap: 3})
	var deliveries []feedcache.Delivery
	push := func(id int64) {
		src.insert(1, id)
		deliveries = append(deliveries, must(feeds.Push(ctx, one(1), id)))
	}
	remove := func(id int64) {
		src.remove(1, id)
		deliveries = append(deliveries, must(feeds.Remove(ctx, one(1), id)))
	}
	src.around = func(bool) {
		push(40)
		remove(20)
		must(0, feeds.Seen(ctx, 1, 10))
		src.around = func(bool) {
			src.around = nil
			push(50)
			push(5) // below the floor
			remove(30)
			push(45)
		}
	}
	_, err := feeds.Page(ctx, 1, 0, 3)
	require.NoError(t, err)
	require.Equal(t, slices.Repeat([]feedcache.Delivery{{Warm: 1}}, 6), deliveries)
	require.Equal(t, []int{3}, src.took())

	v := stored(t, rdb, "feed:1")
	require.Equal(t, feedcache.Ready, v.State())
	require.Equal(t, int64(10), v.Floor())
	require.Equal(t, int64(10), v.Mark())
	for _, n := range []int{1, 2, 100} {
		got, err := walk(ctx, feeds, 1, n)
		require.NoError(t, err)
		require.Equal(t, []int64{50, 45, 40, 10, 5}, got)
	}
}

// The control for the test above: the same push during a rebuild that reads
// the Source and then sets the key, as is usually done.
func TestPlainRebuildLosesAPush(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	rdb := testserver.Redis(t)
	src := table{}
	src.insert(1, 10, 20, 30)
	feeds := open(t, rdb, src.Source, feedcache.Config{})

	ids, err := src.Source(ctx, 1, feedcache.Top, 800)
	require.NoError(t, err)
	src.insert(1, 40)
	d, err := feeds.Push(ctx, one(1), 40)
	require.NoError(t, err)
	require.Equal(t, feedcache.Delivery{Cold: 1}, d)
	put(ctx, rdb, "feed:1", time.Hour, "", headOn(t, feeds, readyTag, 0, 0, ids...))

	got, err := walk(ctx, feeds, 1, 10)
	require.NoError(t, err)
	require.Equal(t, []int64{30, 20, 10}, got, "40 is lost until the feed expires")
}

// A push of very many IDs lands during a fill: the swap puts them all back.
func TestSwapKeepsManyUnseenOps(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	rdb := testserver.Redis(t)
	src := table{}
	feeds := open(t, rdb, src.Source, feedcache.Config{Cap: 100_000})
	src.around = func(before bool) {
		if !before {
			src.around = nil
			src.insert(1, seq(20_001, 1)...)
			must(feeds.Push(ctx, one(1), seq(20_001, 1)...))
		}
	}
	page, err := feeds.Page(ctx, 1, 0, 5)
	require.NoError(t, err)
	require.Empty(t, page.IDs, "what the Source had when it was asked")
	require.EqualValues(t, 20_003, rdb.LLen(ctx, "feed:1").Val())
	got, err := walk(ctx, feeds, 1, 1000)
	require.NoError(t, err)
	require.Equal(t, seq(20_001, 1), got)
	_, err = feeds.Push(ctx, one(1), seq(100, 1)...)
	require.NoError(t, err)
	require.EqualValues(t, 2, rdb.LLen(ctx, "feed:1").Val(), "compacted")
	got, err = walk(ctx, feeds, 1, 1000)
	require.NoError(t, err)
	require.Equal(t, seq(20_001, 1), got)
	require.Len(t, src.took(), 1, "all of it from the feed")
}

// The lease runs out while the Source is read: the late swap does nothing,
// whether the key is gone, leased anew or filled by somebody else.
func TestLeaseRunsOutDuringAFill(t *testing.T) {
	t.Parallel()
	rdb := testserver.Redis(t)
	for i, test := range []struct {
		name string
		then []string // what is there when the late fill swaps
	}{
		{name: "Gone"},
		{name: "LeasedAnew", then: []string{"", head("\xfcBanother", 0, 0, 0)}},
		{name: "FilledByAnother", then: []string{"", head("\xfcLanother", 0, 0, 0, 10, 20, 30)}},
		{name: "Text", then: []string{"hello"}},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			ctx, owner, key := t.Context(), int64(i+1), "feed:"+strconv.Itoa(i+1)
			src := table{}
			src.insert(owner, 10, 20, 30)
			feeds := open(t, rdb, src.Source, feedcache.Config{LeaseTTL: 5 * time.Millisecond})
			src.around = func(before bool) {
				if before {
					return
				}
				for start := time.Now(); rdb.Exists(ctx, key).Val() == 1; time.Sleep(time.Millisecond) {
					if time.Since(start) > 10*time.Second {
						panic("the lease does not end")
					}
				}
				src.insert(owner, 40)
				must(feeds.Push(ctx, one(owner), 40)) // cold: stored nowhere
				if test.then != nil {
					put(ctx, rdb, key, time.Minute, test.then...)
				}
			}
			page, err := feeds.Page(ctx, owner, 0, 10)
			require.NoError(t, err)
			require.Equal(t, []int64{30, 20, 10}, page.IDs, "what the Source had when it was asked")
			require.Equal(t, append([]string{}, test.then...), rdb.LRange(ctx, key, 0, -1).Val())
			require.Zero(t, feeds.Stats().Rebuilds)
		})
	}
}

func TestValuesThatAreNotFeedsAreReplaced(t *testing.T) {
	t.Parallel()
	rdb := testserver.Redis(t)
	list := func(list ...string) func(context.Context, string) {
		return func(ctx context.Context, key string) { put(ctx, rdb, key, time.Minute, list...) }
	}
	tests := []struct {
		name string
		set  func(ctx context.Context, key string)
		list bool // to which a push appends
	}{
		{name: "EmptyText", set: func(ctx context.Context, key string) { must(rdb.Set(ctx, key, "", 0).Result()) }},
		{name: "FormerFeed", set: func(ctx context.Context, key string) {
			must(rdb.Set(ctx, key, "\xfcRgenera"+packed(0, 99), 0).Result())
		}},
		{name: "SortedSet", set: func(ctx context.Context, key string) {
			must(rdb.ZAdd(ctx, key, redis.Z{Score: 99, Member: 99}).Result())
		}},
		{name: "Hash", set: func(ctx context.Context, key string) { must(rdb.HSet(ctx, key, "99", "99").Result()) }},
		{name: "Stream", set: func(ctx context.Context, key string) {
			must(rdb.XAdd(ctx, &redis.XAddArgs{Stream: key, Values: []string{"99", "99"}}).Result())
		}},
		{name: "ListOfOne", list: true, set: list("99")},
		{name: "List", list: true, set: list("99", "98", "97")},
		{name: "LaterVersion", list: true, set: list("", head("\xfcMgenera", 0, 0, 0, 99))},
		{name: "TornHead", list: true, set: list("", head(readyTag, 0, 0, 0, 99)[:61])},
		{name: "HeadTornInTheTag", list: true, set: list("", head(readyTag, 0, 0, 0)[:5])},
		{name: "OnlyAHead", list: true, set: list(head(readyTag, 0, 0, 0, 99))},
		{name: "ZeroOp", list: true, set: list("", head(readyTag, 0, 0, 0, 99), packed(0))},
	}
	for i, test := range tests {
		owner := int64(i + 1)
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			ctx, key := t.Context(), "feed:"+strconv.FormatInt(owner, 10)
			for _, n := range []int{5, 100} { // a page of the newest part, and of the whole feed
				var src table
				src.insert(owner, seq(200, 1)...)
				feeds := open(t, rdb, src.Source, feedcache.Config{})
				require.NoError(t, rdb.Del(ctx, key).Err())
				test.set(ctx, key)
				was := rdb.Dump(ctx, key).Val()
				keep := func([]int64) ([]int64, error) { return nil, errors.New("not a feed") }
				require.NoError(t, feeds.Edit(ctx, owner, keep))
				require.Equal(t, was, rdb.Dump(ctx, key).Val())
				d, err := feeds.Push(ctx, one(owner), 200)
				require.NoError(t, err)
				if !test.list {
					require.Equal(t, feedcache.Delivery{Cold: 1}, d)
					require.Equal(t, was, rdb.Dump(ctx, key).Val(), "a push leaves it alone")
				}

				page, err := feeds.Page(ctx, owner, 0, n)
				require.NoError(t, err)
				require.Equal(t, seq(200, 201-int64(n)), page.IDs)
				require.Equal(t, 200, stored(t, rdb, key).Len(), "a feed now")
				require.EqualValues(t, 1, feeds.Stats().Rebuilds)
				d, err = feeds.Push(ctx, one(owner), 201)
				require.NoError(t, err)
				require.Equal(t, feedcache.Delivery{Warm: 1}, d)
			}
		})
	}
}

// A feed that is torn where only a page further down looks: the first page
// needs none of it, the second one fills the feed anew.
func TestTornRestIsReplacedByWhoReadsIt(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	rdb := testserver.Redis(t)
	var src table
	src.insert(1, seq(100, 1)...)
	feeds := open(t, rdb, src.Source, feedcache.Config{Cap: 64})
	_, err := feeds.Page(ctx, 1, 0, 2)
	require.NoError(t, err)
	require.NoError(t, rdb.LSet(ctx, "feed:1", 0, "torn").Err())
	page, err := feeds.Page(ctx, 1, 0, 2)
	require.NoError(t, err)
	require.Equal(t, seq(100, 99), page.IDs)
	got, err := walk(ctx, feeds, 1, 2)
	require.NoError(t, err)
	require.Equal(t, seq(100, 1), got)
	require.EqualValues(t, 2, feeds.Stats().Rebuilds)
}

// A Redis without room refuses to store: pages come from the Source, at once,
// and the server's own words reach the caller of Push.
func TestRedisThatRefusesWrites(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	rdb := ownRedis(t)
	src := table{}
	src.insert(1, seq(100, 1)...)
	src.insert(2, seq(100, 1)...)
	src.insert(3, seq(100, 1)...)
	var now atomic.Int64
	feeds := open(t, rdb, src.Source, feedcache.Config{
		Cap: 64, TTL: time.Hour, Now: func() time.Time { return time.Unix(now.Load(), 0) },
	})
	_, err := feeds.Page(ctx, 1, 0, 1)
	require.NoError(t, err)
	full := func() { must(rdb.ConfigSet(ctx, "maxmemory", "1").Result()) }
	src.around = func(bool) { src.around = nil; full() } // under the lease of feed 2
	page, err := feeds.Page(ctx, 2, 0, 5)
	require.NoError(t, err)
	require.Equal(t, seq(100, 96), page.IDs)

	now.Store(2000) // feed 1 is to be renewed
	was := rdb.Dump(ctx, "feed:1").Val()
	for _, owner := range []int64{1, 2, 3} {
		begin := time.Now()
		page, err := feeds.Page(ctx, owner, 0, 5)
		require.NoError(t, err)
		require.Equal(t, seq(100, 96), page.IDs)
		require.Zero(t, feeds.Stats().Waits, "feed %d took %v", owner, time.Since(begin))
		got, err := walk(ctx, feeds, owner, 9)
		require.NoError(t, err)
		require.Equal(t, seq(100, 1), got)
	}
	require.NoError(t, feeds.Edit(ctx, 2, nil), "cold")
	require.Equal(t, was, rdb.Dump(ctx, "feed:1").Val())
	d, err := feeds.Push(ctx, slices.Values([]int64{1, 4}), 101)
	require.Zero(t, d)
	require.ErrorContains(t, err, "feedcache: push feed:1: OOM")
	missed, ok := errors.AsType[*feedcache.UnreachedError](err)
	require.True(t, ok)
	require.Equal(t, []int64{1, 4}, missed.Owners)
	err = feeds.Edit(ctx, 1, func(ids []int64) ([]int64, error) { return ids[1:], nil })
	require.ErrorContains(t, err, "feedcache: edit feed:1: OOM")
	require.ErrorContains(t, feeds.Seen(ctx, 1, 5), "feedcache: seen feed:1: OOM")
	require.NoError(t, feeds.Drop(ctx, 1), "which needs no room")

	require.NoError(t, rdb.ConfigSet(ctx, "maxmemory", "0").Err())
	_, err = feeds.Page(ctx, 1, 0, 5)
	require.NoError(t, err)
	_, err = feeds.Push(ctx, one(1), 101)
	require.NoError(t, err)
	page, err = feeds.Page(ctx, 1, 0, 2)
	require.NoError(t, err)
	require.Equal(t, seq(101, 100), page.IDs)
}

// No more than SourceLimit calls of the Source run, and who waits for one does
// not wait longer than its context.
func TestSourceLimit(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	var running, most atomic.Int64
	entered, release := make(chan bool, 51), make(chan bool)
	feeds := open(t, testserver.Redis(t), func(ctx context.Context, _, _ int64, _ int) ([]int64, error) {
		now := running.Add(1)
		defer running.Add(-1)
		for old := most.Load(); now > old && !most.CompareAndSwap(old, now); old = most.Load() {
		}
		entered <- true
		select {
		case <-release:
		case <-ctx.Done():
		}
		return []int64{1}, nil
	}, feedcache.Config{SourceLimit: 3})
	var readers sync.WaitGroup
	errs := make([]error, 50)
	for i := range errs {
		readers.Go(func() { _, errs[i] = feeds.Page(ctx, int64(i+1), 0, 1) })
	}
	for range 3 {
		<-entered
	}
	short, cancel := context.WithTimeout(ctx, 500*time.Millisecond)
	defer cancel()
	_, err := feeds.Page(short, 100, 0, 1)
	require.ErrorIs(t, err, context.DeadlineExceeded)
	require.ErrorContains(t, err, "waiting for one of 3 calls of the source to end")
	close(release)
	readers.Wait()
	require.NoError(t, errors.Join(errs...))
	require.EqualValues(t, 3, most.Load())
	require.Zero(t, running.Load())
}

// Pages keep a feed alive, pushes do not, and no page pays a round trip for it
// while half of the time is left.
func TestTTL(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	rdb := testserver.Redis(t)
	var trips tripCounter
	var src table
	src.insert(1, seq(200, 1)...)
	now := time.Unix(1_000_000_000, 0)
	feeds := open(t, hooked(t, rdb, &trips), src.Source, feedcache.Config{
		Cap: 64, TTL: time.Hour, FailoverCheck: time.Hour, Now: func() time.Time { return now },
	})
	left := func() time.Duration { return rdb.PTTL(ctx, "feed:1").Val() }
	page := func(n int) (took int) {
		t.Helper()
		trips.took()
		p, err := feeds.Page(ctx, 1, 0, n)
		require.NoError(t, err)
		require.Equal(t, src.newest(1)[:n], p.IDs)
		took, _ = trips.took()
		return took
	}
	// The clock of the server does not follow ours.
	pass := func(d time.Duration) {
		now = now.Add(d)
		require.NoError(t, rdb.PExpire(ctx, "feed:1", left()-d).Err())
	}

	page(2)
	require.Greater(t, left(), 59*time.Minute, "a fill replaces the TTL of the lease")
	pass(30 * time.Minute)
	require.Equal(t, 1, page(2))
	require.Equal(t, 1, page(50))
	require.LessOrEqual(t, left(), 30*time.Minute)
	for id := int64(201); id < 300; id++ {
		src.insert(1, id)
		_, err := feeds.Push(ctx, one(1), id)
		require.NoError(t, err)
	}
	require.Positive(t, feeds.Stats().Compactions)
	require.LessOrEqual(t, left(), 30*time.Minute, "compactions keep the TTL")
	require.Greater(t, left(), 29*time.Minute)
	require.Equal(t, 1, page(2), "and how much is left of it")
	pass(time.Minute)
	require.Equal(t, 2, page(2))
	require.Greater(t, left(), 59*time.Minute)
	require.Equal(t, 1, page(2), "once")
	pass(31 * time.Minute)
	require.Equal(t, 2, page(50))
	require.Greater(t, left(), 59*time.Minute)
	require.NoError(t, feeds.Edit(ctx, 1, func(ids []int64) ([]int64, error) { return ids, nil }))
	pass(31 * time.Minute)
	require.NoError(t, feeds.Edit(ctx, 1, func(ids []int64) ([]int64, error) { return ids, nil }))
	require.LessOrEqual(t, left(), 29*time.Minute, "edits keep the TTL too")
	require.EqualValues(t, 1, feeds.Stats().Rebuilds)
}

// A feed whose last op is about an old ID lives no shorter.
func TestTTLOfAFeedWithALateOp(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	rdb := testserver.Redis(t)
	var src table
	src.insert(1, seq(200, 1)...)
	now := time.Unix(1_000_000_000, 0)
	feeds := open(t, rdb, src.Source, feedcache.Config{Cap: 64, TTL: time.Hour, Now: func() time.Time { return now }})
	_, err := feeds.Page(ctx, 1, 0, 2)
	require.NoError(t, err)
	src.remove(1, 150)
	_, err = feeds.Remove(ctx, one(1), 150)
	require.NoError(t, err)
	now = now.Add(31 * time.Minute)
	require.NoError(t, rdb.PExpire(ctx, "feed:1", 29*time.Minute).Err())
	_, err = feeds.Page(ctx, 1, 0, 2)
	require.NoError(t, err)
	require.Greater(t, rdb.PTTL(ctx, "feed:1").Val(), 59*time.Minute)
	got, err := walk(ctx, feeds, 1, 50)
	require.NoError(t, err)
	require.Equal(t, src.newest(1), got)
}

// The reader who renews has seen the feed as it was before a push.
func TestRenewalKeepsWhatLandsMeanwhile(t *testing.T) {
	t.Parallel()
	rdb := testserver.Redis(t)
	for _, n := range []int{2, 50} {
		t.Run(strconv.Itoa(n), func(t *testing.T) {
			t.Parallel()
			ctx, owner := t.Context(), int64(n)
			var src table
			src.insert(owner, seq(200, 1)...)
			now := time.Unix(1_000_000_000, 0)
			land := &before{}
			feeds := open(t, hooked(t, rdb, land), src.Source, feedcache.Config{
				Cap: 64, TTL: time.Hour, FailoverCheck: time.Hour, Now: func() time.Time { return now },
			})
			others := open(t, rdb, src.Source, feedcache.Config{Cap: 64, TTL: time.Hour})
			_, err := feeds.Page(ctx, owner, 0, n)
			require.NoError(t, err)
			now = now.Add(31 * time.Minute)
			*land = before{name: "evalsha", do: func() {
				src.insert(owner, 300)
				must(others.Push(ctx, one(owner), 300))
				src.remove(owner, 199)
				must(others.Remove(ctx, one(owner), 199, 150))
				src.remove(owner, 150)
			}}
			_, err = feeds.Page(ctx, owner, 0, n)
			require.NoError(t, err)
			require.Nil(t, land.do)
			require.Equal(t, 5, int(rdb.LLen(ctx, "feed:"+strconv.Itoa(n)).Val()))
			got, err := walk(ctx, feeds, owner, n)
			require.NoError(t, err)
			require.Equal(t, src.newest(owner), got)
			require.EqualValues(t, 1, feeds.Stats().Rebuilds)
		})
	}
}
