package feedcache_test

import (
	"context"
	"errors"
	"math"
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

// A tripCounter counts the round trips of a client, without those that set up
// a connection.
type tripCounter struct{ n atomic.Int64 }

func (c *tripCounter) count(cmd redis.Cmder) {
	switch cmd.Name() {
	case "hello", "select", "client":
	default:
		c.n.Add(1)
	}
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
		c.count(cmds[0])
		return next(ctx, cmds)
	}
}

// A before runs something of another client's just before a command of this
// one, once: an interleaving that would be rare.
type before struct {
	name string // of the command, the first one of a pipeline
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

func TestNewRefusesBadConfig(t *testing.T) {
	t.Parallel()
	rdb := redis.NewClient(&redis.Options{Addr: "127.0.0.1:1"}) // never dialled
	t.Cleanup(func() { require.NoError(t, rdb.Close()) })
	src := new(table).Source
	tests := []struct {
		name string
		rdb  redis.UniversalClient
		src  feedcache.Source
		cfg  feedcache.Config
	}{
		{name: "NoClient", src: src},
		{name: "NoSource", rdb: rdb},
		{name: "NegativeCap", rdb: rdb, src: src, cfg: feedcache.Config{Cap: -1}},
		{name: "HugeCap", rdb: rdb, src: src, cfg: feedcache.Config{Cap: 100_001}},
		{name: "NegativeTTL", rdb: rdb, src: src, cfg: feedcache.Config{TTL: -time.Hour}},
		{name: "TinyTTL", rdb: rdb, src: src, cfg: feedcache.Config{TTL: time.Microsecond}},
		{name: "NegativeLease", rdb: rdb, src: src, cfg: feedcache.Config{LeaseTTL: -time.Second}},
		{name: "TinyLease", rdb: rdb, src: src, cfg: feedcache.Config{LeaseTTL: time.Microsecond}},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			_, err := feedcache.New(test.rdb, test.src, test.cfg)
			require.ErrorContains(t, err, "feedcache: ")
		})
	}
	_, err := feedcache.New(rdb, src, feedcache.Config{})
	require.NoError(t, err)
}

func TestInvalidArguments(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	feeds := open(t, testserver.Redis(t), new(table).Source, feedcache.Config{})
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
	for name, err := range map[string]error{
		"page of owner 0":       page(0, 0, 20),
		"page of a bad owner":   page(-1, 0, 20),
		"page of top":           page(math.MaxInt64, 0, 20),
		"negative cursor":       page(1, -1, 20),
		"no page size":          page(1, 0, 0),
		"negative page size":    page(1, 0, -1),
		"page size":             page(1, 0, feedcache.MaxPage+1),
		"push to owner 0":       push(0, 1),
		"push of 0":             push(1, 1, 0),
		"push of a negative ID": push(1, math.MinInt64),
		"push of top":           push(1, math.MaxInt64),
		"remove of 0":           remove(1, 0),
		"drop of owner 0":       feeds.Drop(ctx, 1, 0),
	} {
		require.ErrorIs(t, err, feedcache.ErrInvalid, name)
	}
	require.NoError(t, page(math.MaxInt64-1, math.MaxInt64, feedcache.MaxPage))
	require.NoError(t, push(math.MaxInt64-1, math.MaxInt64-1))
	require.NoError(t, push(1))
	require.NoError(t, feeds.Drop(ctx))
}

// What a page costs, and where it comes from.
func TestPageReadsTheSourceOnlyWhereItMust(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	var trips tripCounter
	rdb := testserver.Redis(t)
	rdb.AddHook(&trips)
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
			feeds := open(t, rdb, src.Source, feedcache.Config{Cap: 10})
			var before, last int64 = 0, test.rows + 1
			for p, oldest := range test.pages {
				trips.n.Store(0)
				page, err := feeds.Page(ctx, owner, before, test.n)
				require.NoError(t, err)
				require.Equal(t, test.reads[p], src.took())
				want := seq(last-1, max(oldest, 1))
				if oldest == 0 {
					want = nil
				}
				require.Equal(t, want, page.IDs)
				if p > 0 {
					require.EqualValues(t, 1, trips.n.Load(), "a warm feed is one round trip")
				} else {
					require.LessOrEqual(t, trips.n.Load(), int64(4), "a cold feed is three, and one to load a script")
				}
				before, last = page.Next, oldest
			}
			require.Zero(t, before, "the end of the feed")
		})
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
			d, err := feeds.Push(ctx, one(owner), want[:341]...)
			require.NoError(t, err)
			require.Equal(t, feedcache.Delivery{Warm: 1}, d)
			for _, n := range []int{1, 7, 1000} {
				got, err := walk(ctx, feeds, owner, n)
				require.NoError(t, err)
				require.Equal(t, want, got)
			}
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
			rdb, prefix := rdb, name+":"
			src := func(context.Context, int64, int64, int) ([]int64, error) { return ids, nil }
			feeds := open(t, rdb, src, feedcache.Config{Prefix: name, Cap: 3})
			_, err := feeds.Page(t.Context(), 1, 0, 3)
			require.ErrorContains(t, err, "feedcache: page "+prefix+"1: source returned")
			require.Zero(t, rdb.Exists(t.Context(), prefix+"1").Val(), "the lease is given back")
		})
	}
}

func TestPageWhenTheSourceFails(t *testing.T) {
	t.Parallel()
	rdb := testserver.Redis(t)
	var src table
	src.insert(1, 7)
	errDown := errors.New("database is down")
	ctx, cancel := context.WithCancel(t.Context())
	fail := func() error { return errDown }
	feeds := open(t, rdb, func(ctx context.Context, owner, before int64, n int) ([]int64, error) {
		if fail != nil {
			return nil, fail()
		}
		return src.Source(ctx, owner, before, n)
	}, feedcache.Config{})

	_, err := feeds.Page(ctx, 1, 0, 3)
	require.ErrorIs(t, err, errDown)
	require.EqualError(t, err, "feedcache: page feed:1: database is down")
	require.Zero(t, rdb.Exists(t.Context(), "feed:1").Val(), "the lease is given back")

	fail = func() error { cancel(); return ctx.Err() }
	_, err = feeds.Page(ctx, 1, 0, 3)
	require.ErrorIs(t, err, context.Canceled)
	require.Zero(t, rdb.Exists(t.Context(), "feed:1").Val(), "also when the reader is gone")

	_, err = feeds.Page(ctx, 1, 0, 3)
	require.ErrorIs(t, err, context.Canceled, "a context that has ended")
	_, err = feeds.Push(ctx, one(1), 8)
	require.ErrorIs(t, err, context.Canceled)
	require.ErrorIs(t, feeds.Drop(ctx, 1), context.Canceled)

	fail = nil
	page, err := feeds.Page(t.Context(), 1, 0, 3)
	require.NoError(t, err, "the feeds stay usable")
	require.Equal(t, []int64{7}, page.IDs)
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
}

// A reader died with the lease: the others do not wait for it, do not store
// what they read, and fill the feed when the lease is over.
func TestLeaseOfADeadReader(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	rdb := testserver.Redis(t)
	var src table
	src.insert(1, seq(30, 1)...)
	feeds := open(t, rdb, src.Source, feedcache.Config{Cap: 20})
	lease := string(raw("\xfcBgenera", 0))
	require.NoError(t, rdb.Set(ctx, "feed:1", lease, time.Minute).Err())

	page, err := feeds.Page(ctx, 1, 0, 5)
	require.NoError(t, err)
	require.Equal(t, feedcache.Page{IDs: seq(30, 26), Next: 26}, page)
	require.Equal(t, []int{6}, src.took())
	require.Equal(t, lease, rdb.Get(ctx, "feed:1").Val())
	require.LessOrEqual(t, rdb.PTTL(ctx, "feed:1").Val(), time.Minute, "a read must not prolong a lease")

	require.NoError(t, rdb.PExpire(ctx, "feed:1", time.Millisecond).Err())
	got, err := walk(ctx, feeds, 1, 5)
	require.NoError(t, err)
	require.Equal(t, seq(30, 1), got)
	require.Contains(t, src.took(), 20, "filled")
}

// Between the look and the try for the lease another reader was faster.
func TestAMissLeavesTheLeaseOfAnother(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	rdb := testserver.Redis(t)
	var src table
	src.insert(1, 10)
	for _, command := range []string{"unlink", "set"} {
		lease := string(raw("\xfcBgenera", 0))
		steal := &before{name: command, do: func() {
			if err := rdb.Set(ctx, "feed:1", lease, time.Minute).Err(); err != nil {
				panic(err)
			}
		}}
		feeds := open(t, hooked(t, rdb, steal), src.Source, feedcache.Config{})
		page, err := feeds.Page(ctx, 1, 0, 5)
		require.NoError(t, err)
		require.Equal(t, []int64{10}, page.IDs)
		if command == "set" {
			require.Nil(t, steal.do)
		}
		if steal.do == nil {
			require.Equal(t, lease, rdb.Get(ctx, "feed:1").Val())
		}
		require.NoError(t, rdb.Del(ctx, "feed:1").Err())
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
	change := func(before bool) {
		src.around = nil // the fill only
		note := func(d feedcache.Delivery, err error) {
			deliveries = append(deliveries, d)
			if err != nil {
				panic(err) // on the goroutine of the test, under Page
			}
		}
		push := func(id int64) { src.insert(1, id); note(feeds.Push(ctx, one(1), id)) }
		remove := func(id int64) { src.remove(1, id); note(feeds.Remove(ctx, one(1), id)) }
		if before {
			push(40)
			remove(20)
			src.around = func(bool) {
				src.around = nil
				push(50)
				push(5) // below the floor
				remove(30)
				push(45)
			}
		}
	}
	src.around = change
	_, err := feeds.Page(ctx, 1, 0, 3)
	require.NoError(t, err)
	require.Equal(t, slices.Repeat([]feedcache.Delivery{{Warm: 1}}, 6), deliveries)
	require.Equal(t, []int{3}, src.took())

	l, ok := feedcache.Parse([]byte(rdb.Get(ctx, "feed:1").Val()))
	require.True(t, ok)
	require.Equal(t, feedcache.Ready, l.State())
	require.Equal(t, int64(10), l.Floor())
	got, err := walk(ctx, feeds, 1, 2)
	require.NoError(t, err)
	require.Equal(t, []int64{50, 45, 40, 10, 5}, got)
}

// The control for the test above: the same push during a rebuild that reads
// the Source and then sets the key, as is usually done.
func TestPlainSetRebuildLosesAPush(t *testing.T) {
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
	value := feedcache.FromSource(ids, 800).Encode(feedcache.NewTag(feedcache.Ready))
	require.NoError(t, rdb.Set(ctx, "feed:1", value, time.Hour).Err())

	got, err := walk(ctx, feeds, 1, 10)
	require.NoError(t, err)
	require.Equal(t, []int64{30, 20, 10}, got, "40 is lost until the feed expires")
}

// The lease runs out while the Source is read: the late swap does nothing,
// whether the key is gone, leased anew or filled by somebody else.
func TestLeaseRunsOutDuringAFill(t *testing.T) {
	t.Parallel()
	tests := []struct {
		name string
		key  string // what is there when the late fill swaps
	}{
		{name: "Gone"},
		{name: "LeasedAnew", key: string(raw("\xfcBanother", 0))},
		{name: "FilledByAnother", key: string(raw("\xfcRanother", 0, 10, 20, 30))},
	}
	rdb := testserver.Redis(t)
	for i, test := range tests {
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
				if _, err := feeds.Push(ctx, one(owner), 40); err != nil { // cold: stored nowhere
					panic(err)
				}
				if test.key != "" {
					if err := rdb.Set(ctx, key, test.key, time.Minute).Err(); err != nil {
						panic(err)
					}
				}
			}
			page, err := feeds.Page(ctx, owner, 0, 10)
			require.NoError(t, err)
			require.Equal(t, []int64{30, 20, 10}, page.IDs, "what the Source had when it was asked")
			require.Equal(t, test.key, rdb.Get(ctx, key).Val())
		})
	}
}

func TestValuesThatAreNotFeedsAreReplaced(t *testing.T) {
	t.Parallel()
	rdb := testserver.Redis(t)
	value := func(v []byte) func(context.Context, string) error {
		return func(ctx context.Context, key string) error { return rdb.Set(ctx, key, v, 0).Err() }
	}
	tests := map[string]func(ctx context.Context, key string) error{
		"Empty":        value(nil),
		"Text":         value([]byte("hello")),
		"LaterVersion": value(raw("\xfcXgenera", 0, 99)),
		"List":         func(ctx context.Context, key string) error { return rdb.RPush(ctx, key, 99).Err() },
		"SortedSet": func(ctx context.Context, key string) error {
			return rdb.ZAdd(ctx, key, redis.Z{Score: 99, Member: 99}).Err()
		},
	}
	var owners int64
	for name, set := range tests {
		owners++
		owner := owners
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			ctx, key := t.Context(), "feed:"+strconv.FormatInt(owner, 10)
			var src table
			src.insert(owner, seq(9, 1)...)
			feeds := open(t, rdb, src.Source, feedcache.Config{})
			require.NoError(t, set(ctx, key))
			was := rdb.Dump(ctx, key).Val()

			d, err := feeds.Push(ctx, one(owner), 10)
			require.NoError(t, err)
			require.Equal(t, feedcache.Delivery{Cold: 1}, d)
			require.Equal(t, was, rdb.Dump(ctx, key).Val(), "a push leaves it alone")

			page, err := feeds.Page(ctx, owner, 0, 5)
			require.NoError(t, err)
			require.Equal(t, feedcache.Page{IDs: seq(9, 5), Next: 5}, page)
			d, err = feeds.Push(ctx, one(owner), 10)
			require.NoError(t, err)
			require.Equal(t, feedcache.Delivery{Warm: 1}, d, "a feed now")
		})
	}
}

// A torn feed is still a feed to a push, and no more to the next page.
func TestTornValueIsReplaced(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	rdb := testserver.Redis(t)
	var src table
	src.insert(1, seq(9, 1)...)
	feeds := open(t, rdb, src.Source, feedcache.Config{})
	for _, torn := range [][]byte{raw(readyTag, 0)[:9], raw(readyTag, 0, 99)[:21], raw(readyTag, 0, 0)} {
		require.NoError(t, rdb.Set(ctx, "feed:1", torn, 0).Err())
		_, err := feeds.Push(ctx, one(1), 7)
		require.NoError(t, err)
		got, err := walk(ctx, feeds, 1, 4)
		require.NoError(t, err)
		require.Equal(t, seq(9, 1), got)
	}
}

// Pages keep a feed alive, pushes do not, and no page pays a round trip for it
// while half of the time is left.
func TestTTL(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	rdb := testserver.Redis(t)
	var src table
	src.insert(1, seq(5, 1)...)
	feeds := open(t, rdb, src.Source, feedcache.Config{Cap: 4, TTL: time.Hour})
	left := func() time.Duration { return rdb.PTTL(ctx, "feed:1").Val() }
	page := func() {
		t.Helper()
		p, err := feeds.Page(ctx, 1, 0, 2)
		require.NoError(t, err)
		require.Len(t, p.IDs, 2)
	}

	page()
	require.Greater(t, left(), 59*time.Minute, "a fill replaces the TTL of the lease")
	require.NoError(t, rdb.PExpire(ctx, "feed:1", 31*time.Minute).Err())
	page()
	require.LessOrEqual(t, left(), 31*time.Minute)
	require.NoError(t, rdb.PExpire(ctx, "feed:1", 29*time.Minute).Err())
	for id := int64(6); id < 100; id++ {
		_, err := feeds.Push(ctx, one(1), id)
		require.NoError(t, err)
	}
	require.LessOrEqual(t, left(), 29*time.Minute, "compactions keep the TTL")
	require.Greater(t, left(), 28*time.Minute)
	page()
	require.Greater(t, left(), 59*time.Minute)
	require.NoError(t, rdb.Persist(ctx, "feed:1").Err())
	page()
	require.Greater(t, left(), 59*time.Minute, "a feed without a TTL gets one")
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
	for _, owner := range owners[:3] {
		_, err := feeds.Page(ctx, owner, 0, 5)
		require.NoError(t, err)
	}
	_, err := feeds.Page(ctx, 1200, 0, 5)
	require.NoError(t, err)
	src.insert(1, 5)
	src.insert(1200, 5)

	require.NoError(t, feeds.Drop(ctx, owners...))
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
			if err := feeds.Drop(ctx, 1); err != nil {
				panic(err)
			}
		}
	}
	_, err = feeds.Page(ctx, 1, 0, 5)
	require.NoError(t, err)
	d, err = feeds.Push(ctx, one(1), 20)
	require.NoError(t, err)
	require.Equal(t, feedcache.Delivery{Cold: 1}, d)
}
