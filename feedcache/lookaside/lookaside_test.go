package lookaside_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/bradfitz/gomemcache/memcache"
	"github.com/shardgram/shardgram/feedcache/lookaside"
	"github.com/shardgram/shardgram/internal/testserver"
	"github.com/stretchr/testify/require"
)

// memcachedAddr is for the examples.
var memcachedAddr string

func TestMain(m *testing.M) {
	memcachedAddr = testserver.MemcachedAddr()
	testserver.Main(m, testserver.NeedMemcached)
}

// client returns a client of addr that can serve a herd.
func client(t testing.TB, addr ...string) *memcache.Client {
	mc := memcache.New(addr...)
	mc.MaxIdleConns = 300
	mc.Timeout = 5 * time.Second // the machine may be busy; tests of faults set less
	t.Cleanup(func() { mc.Close() })
	return mc
}

func prefix(t testing.TB) string { return strings.TrimSuffix(testserver.Prefix(t), ":") }

// rows is a store of record: versions of numbered rows.
type rows struct {
	loads atomic.Int64

	// during is called with each load after it has read and before it returns.
	during func(keys []int)

	mu       sync.Mutex
	versions map[int]int64
}

func newRows(n int) *rows {
	r := &rows{versions: make(map[int]int64), during: func([]int) {}}
	for k := range n {
		r.versions[k] = 1
	}
	return r
}

func (r *rows) load(_ context.Context, keys []int) (map[int]int64, error) {
	r.loads.Add(1)
	found := make(map[int]int64)
	r.mu.Lock()
	for _, k := range keys {
		if v, ok := r.versions[k]; ok {
			found[k] = v
		}
	}
	r.mu.Unlock()
	r.during(keys)
	return found, nil
}

// commit writes the next version of a row and returns it.
func (r *rows) commit(k int) int64 {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.versions[k]++
	return r.versions[k]
}

type config = lookaside.Config[int, int64]

func open(t testing.TB, mc *memcache.Client, r *rows, cfg config) *lookaside.Cache[int, int64] {
	if cfg.Prefix == "" {
		cfg.Prefix = prefix(t)
	}
	c, err := lookaside.New(mc, r.load, cfg)
	require.NoError(t, err)
	return c
}

func TestGetReadsThrough(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	r := newRows(3)
	c := open(t, client(t, testserver.Memcached(t)), r, config{})

	for range 3 {
		v, err := c.Get(ctx, 1)
		require.NoError(t, err)
		require.EqualValues(t, 1, v)
	}
	require.EqualValues(t, 1, r.loads.Load())

	r.commit(1)
	require.NoError(t, c.Invalidate(ctx, 1))
	v, err := c.Get(ctx, 1)
	require.NoError(t, err)
	require.EqualValues(t, 2, v)
	require.Equal(t, lookaside.Stats{
		Hits: 2, Misses: 2, Leases: 2, Fills: 2, Loads: 2, LoadedKeys: 2, Invalidations: 1,
	}, c.Stats())
}

func TestGetMultiLoadsMissesInOneCall(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	r := newRows(50)
	c := open(t, client(t, testserver.Memcached(t)), r, config{})
	_, err := c.GetMulti(ctx, 3, 4)
	require.NoError(t, err)

	var asked [][]int
	r.during = func(keys []int) { asked = append(asked, keys) }
	want := make(map[int]int64)
	var keys []int
	for k := range 50 {
		want[k] = 1
		keys = append(keys, k, k)
	}
	keys = append(keys, 99) // does not exist
	for range 2 {
		got, err := c.GetMulti(ctx, keys...)
		require.NoError(t, err)
		require.Equal(t, want, got)
	}
	require.Len(t, asked, 1)
	require.Len(t, asked[0], 50-2+1)
	require.NotContains(t, asked[0], 3)

	got, err := c.GetMulti(ctx)
	require.NoError(t, err)
	require.Empty(t, got)
}

func TestNegativeEntryEndsWithInvalidate(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	r := newRows(0)
	c := open(t, client(t, testserver.Memcached(t)), r, config{})
	for range 3 {
		_, err := c.Get(ctx, 7)
		require.ErrorIs(t, err, lookaside.ErrNotFound)
	}
	require.EqualValues(t, 1, r.loads.Load())
	require.EqualValues(t, 2, c.Stats().NegativeHits)

	r.commit(7)
	require.NoError(t, c.Invalidate(ctx, 7))
	v, err := c.Get(ctx, 7)
	require.NoError(t, err)
	require.EqualValues(t, 1, v)
}

// TestForeignItemsAreReplaced: whatever lies under a key is a miss, and is
// filled over.
func TestForeignItemsAreReplaced(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	mc := client(t, testserver.Memcached(t))
	r := newRows(3)
	c := open(t, mc, r, config{})
	_, err := c.Get(ctx, 0)
	require.NoError(t, err)
	own, err := mc.Get(c.ItemKey(0))
	require.NoError(t, err)

	require.NoError(t, mc.Set(&memcache.Item{Key: c.ItemKey(0), Value: []byte(`77"`), Flags: own.Flags}))
	require.NoError(t, mc.Set(&memcache.Item{Key: c.ItemKey(1), Value: []byte("77")}))
	require.NoError(t, mc.Set(&memcache.Item{Key: c.ItemKey(2), Flags: 1 << 31}))
	r.loads.Store(0)
	for range 2 {
		got, err := c.GetMulti(ctx, 0, 1, 2)
		require.NoError(t, err)
		require.Equal(t, map[int]int64{0: 1, 1: 1, 2: 1}, got)
	}
	require.EqualValues(t, 1, r.loads.Load())
}

// TestLargeValuesAreNotStored, and leave no lease behind.
func TestLargeValuesAreNotStored(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	mc := client(t, testserver.Memcached(t))
	var size, loads int
	load := func(_ context.Context, keys []string) (map[string]string, error) {
		loads++
		return map[string]string{keys[0]: strings.Repeat("x", size)}, nil
	}
	c, err := lookaside.New(mc, load, lookaside.Config[string, string]{
		Prefix:    prefix(t),
		Marshal:   func(s string) ([]byte, error) { return []byte(s), nil },
		Unmarshal: func(b []byte) (string, error) { return string(b), nil },
	})
	require.NoError(t, err)

	for _, one := range []struct{ size, loads int }{
		{lookaside.MaxItem - len(c.ItemKey("a")), 1},
		{lookaside.MaxItem - len(c.ItemKey("a")) + 1, 3},
		{3 << 20, 3},
	} {
		size, loads = one.size, 0
		require.NoError(t, c.Invalidate(ctx, "a"))
		for range 3 {
			got, err := c.Get(ctx, "a")
			require.NoError(t, err)
			require.Len(t, got, size)
		}
		require.Equal(t, one.loads, loads, "size %d", size)
	}
	stats := c.Stats()
	require.EqualValues(t, 6, stats.FillsSkipped)
	require.Zero(t, stats.Waits)
	require.Zero(t, stats.Errors)
}

func TestLoaderErrorGivesLeasesBack(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	broken := errors.New("database is down")
	r := newRows(5)
	fail := true
	load := func(ctx context.Context, keys []int) (map[int]int64, error) {
		if fail {
			return nil, broken
		}
		return r.load(ctx, keys)
	}
	c, err := lookaside.New(client(t, testserver.Memcached(t)), load, config{Prefix: prefix(t)})
	require.NoError(t, err)

	fail = false
	_, err = c.Get(ctx, 4)
	require.NoError(t, err)
	fail = true
	_, err = c.Get(ctx, 1)
	require.ErrorIs(t, err, broken)
	require.NotErrorIs(t, err, lookaside.ErrNotFound)
	got, err := c.GetMulti(ctx, 1, 2, 4)
	require.ErrorIs(t, err, broken)
	require.Equal(t, map[int]int64{4: 1}, got)

	fail = false
	got, err = c.GetMulti(ctx, 1, 2, 4)
	require.NoError(t, err)
	require.Len(t, got, 3)
	require.Zero(t, c.Stats().Waits, "a lease was left behind")
}

func TestALoaderThatPanicsGivesLeasesBack(t *testing.T) {
	t.Parallel()
	panics := true
	load := func(context.Context, []int) (map[int]int64, error) {
		if panics {
			panic("in the Loader")
		}
		return map[int]int64{1: 5}, nil
	}
	c, err := lookaside.New(client(t, testserver.Memcached(t)), load, config{Prefix: prefix(t)})
	require.NoError(t, err)
	require.PanicsWithValue(t, "in the Loader", func() { _, _ = c.Get(t.Context(), 1) })
	panics = false
	got, err := c.Get(t.Context(), 1)
	require.NoError(t, err)
	require.EqualValues(t, 5, got)
	require.Zero(t, c.Stats().Waits, "a lease was left behind")
}

// TestDefaultPrefixKeepsTypesApart reads one key from two caches that are
// configured alike.
func TestDefaultPrefixKeepsTypesApart(t *testing.T) {
	t.Parallel()
	type user struct{ Name string }
	type photo struct{ Name string }
	mc := client(t, testserver.Memcached(t))
	users, err := lookaside.New(mc, func(context.Context, []int) (map[int]user, error) {
		return map[int]user{1: {"ada"}}, nil
	}, lookaside.Config[int, user]{})
	require.NoError(t, err)
	photos, err := lookaside.New(mc, func(context.Context, []int) (map[int]photo, error) {
		return map[int]photo{1: {"coffee"}}, nil
	}, lookaside.Config[int, photo]{})
	require.NoError(t, err)
	u, err := users.Get(t.Context(), 1)
	require.NoError(t, err)
	require.Equal(t, "ada", u.Name)
	p, err := photos.Get(t.Context(), 1)
	require.NoError(t, err)
	require.Equal(t, "coffee", p.Name)
}

func TestContextEndsCalls(t *testing.T) {
	t.Parallel()
	mc := client(t, testserver.Memcached(t))
	r := newRows(1)
	release := make(chan struct{})
	started := make(chan struct{})
	r.during = func([]int) { close(started); <-release }
	c := open(t, mc, r, config{MaxWait: time.Hour})
	var wg sync.WaitGroup
	wg.Go(func() { c.Get(context.Background(), 0) })
	defer wg.Wait()
	defer close(release)
	<-started

	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	begin := time.Now()
	_, err := c.Get(ctx, 0) // waits for the lease of the first
	require.ErrorIs(t, err, context.DeadlineExceeded)
	require.Less(t, time.Since(begin), 5*time.Second)
	require.Positive(t, c.Stats().Waits)

	_, err = c.Get(ctx, 0)
	require.ErrorIs(t, err, context.DeadlineExceeded)
	_, err = c.GetMulti(ctx, 0)
	require.ErrorIs(t, err, context.DeadlineExceeded)
	require.ErrorIs(t, c.Invalidate(ctx, 0), context.DeadlineExceeded)
}

func TestNewRefusesBadConfig(t *testing.T) {
	t.Parallel()
	mc := memcache.New("127.0.0.1:1") // New does not dial
	r := newRows(0)
	for _, cfg := range []config{
		{Prefix: "a b"},
		{Prefix: "a:b"},
		{Prefix: "ä"},
		{Prefix: strings.Repeat("a", 101)},
		{Marshal: func(int64) ([]byte, error) { return nil, nil }},
		{Unmarshal: func([]byte) (int64, error) { return 0, nil }},
		{TTL: time.Second},
		{TTL: -time.Hour},
		{TTL: 30*24*time.Hour + 1},
		{NegativeTTL: time.Millisecond},
		{NegativeTTL: 31 * 24 * time.Hour},
		{LeaseTTL: time.Second},
		{MaxWait: -1},
	} {
		_, err := lookaside.New(mc, r.load, cfg)
		require.ErrorContains(t, err, "lookaside: ", "%+v", cfg)
	}
	_, err := lookaside.New(nil, r.load, config{})
	require.Error(t, err)
	_, err = lookaside.New[int, int64](mc, nil, config{})
	require.Error(t, err)

	load := func(context.Context, [][2]int) (map[[2]int]int, error) { return nil, nil }
	_, err = lookaside.New(mc, load, lookaside.Config[[2]int, int]{})
	require.ErrorContains(t, err, "need a Key")
}

// TestTTL reads what memcached keeps about the items.
func TestTTL(t *testing.T) {
	t.Parallel()
	mc := client(t, testserver.Memcached(t))
	r := newRows(40)
	const month = 30 * 24 * time.Hour
	c := open(t, mc, r, config{TTL: month, NegativeTTL: 1000 * time.Second})
	seen := make(map[int]bool)
	for k := range 80 {
		_, err := c.Get(t.Context(), k)
		ttl := timeToLive(t, testserver.Memcached(t), c.ItemKey(k))
		if k >= 40 {
			require.ErrorIs(t, err, lookaside.ErrNotFound)
			require.InDelta(t, 1000, ttl, 105)
			continue
		}
		require.NoError(t, err)
		require.Greater(t, ttl, int(0.89*month.Seconds()))
		require.LessOrEqual(t, ttl, int(month.Seconds()))
		seen[ttl] = true
	}
	require.Greater(t, len(seen), 5, "no jitter")
}

// String keys of any kind reach memcached as legal and different keys.
func FuzzItemKey(f *testing.F) {
	mc := memcache.New("127.0.0.1:1")
	load := func(context.Context, []string) (map[string]int, error) { return nil, nil }
	c, err := lookaside.New(mc, load, lookaside.Config[string, int]{Prefix: "user"})
	require.NoError(f, err)
	long := strings.Repeat("k", 300)
	for _, s := range []string{"", "a", "a b", "a\nb", "ä", "#a", "user:a", long, long + "k"} {
		f.Add(s, "a")
		f.Add(s, strings.TrimPrefix(c.ItemKey(s), "user:"))
	}
	f.Fuzz(func(t *testing.T, a, b string) {
		for _, s := range []string{a, b} {
			key := c.ItemKey(s)
			require.LessOrEqual(t, len(key), 250)
			require.Equal(t, -1, strings.IndexFunc(key, func(r rune) bool { return r <= ' ' || r >= 0x7f }))
		}
		require.Equal(t, a == b, c.ItemKey(a) == c.ItemKey(b))
	})
}

func TestDefaultKeyIsTheNumber(t *testing.T) {
	t.Parallel()
	mc := memcache.New("127.0.0.1:1")
	load := func(context.Context, []id) (map[id]int, error) { return nil, nil }
	c, err := lookaside.New(mc, load, lookaside.Config[id, int]{})
	require.NoError(t, err)
	require.Equal(t, "int:-42", c.ItemKey(-42))
}

// id has a String method that tells nothing.
type id int64

func (id) String() string { return "an id" }

// reader is what the freshness test drives.
type reader interface {
	GetMulti(ctx context.Context, keys ...int) (map[int]int64, error)
	Invalidate(ctx context.Context, keys ...int) error
}

// staleReads runs writers, readers and evictions at once, with a delay between
// load and store, and counts the reads that began after an Invalidate returned
// and saw a value from before it.
func staleReads(t *testing.T, r *rows, evict func(k int), caches ...reader) int64 {
	const keys, writers, readers, writes = 3, 3, 9, 250
	r.during = func([]int) { time.Sleep(rand.N(2 * time.Millisecond)) }
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	var floors [keys]atomic.Int64 // version that the last Invalidate made visible
	var stale, failed, left atomic.Int64
	left.Store(writers)
	var wg sync.WaitGroup
	for i := range writers {
		wg.Go(func() {
			defer left.Add(-1)
			for range writes {
				k := rand.N(keys)
				v := r.commit(k)
				if err := caches[i%len(caches)].Invalidate(ctx, k); err != nil {
					failed.Add(1)
				}
				for {
					old := floors[k].Load()
					if old >= v || floors[k].CompareAndSwap(old, v) {
						break
					}
				}
				time.Sleep(rand.N(4 * time.Millisecond))
			}
		})
	}
	for i := range readers {
		wg.Go(func() {
			for left.Load() > 0 {
				asked := []int{0, 1, 2}
				if i%2 == 0 {
					asked = []int{rand.N(keys)}
				}
				var before [keys]int64
				for k := range before {
					before[k] = floors[k].Load()
				}
				got, err := caches[i%len(caches)].GetMulti(ctx, asked...)
				if err != nil || len(got) != len(asked) {
					failed.Add(1)
				}
				for k, v := range got {
					if v < before[k] {
						stale.Add(1)
					}
				}
			}
		})
	}
	wg.Go(func() {
		for left.Load() > 0 {
			evict(rand.N(keys))
			time.Sleep(time.Millisecond)
		}
	})
	wg.Wait()
	require.Zero(t, failed.Load())
	return stale.Load()
}

func TestNoReadIsOlderThanTheLastInvalidate(t *testing.T) {
	t.Parallel()
	addr := testserver.Memcached(t)
	r := newRows(3)
	cfg := config{Prefix: prefix(t)}
	one := open(t, client(t, addr), r, cfg) // as in two processes
	two := open(t, client(t, addr), r, cfg)
	mc := client(t, addr)
	evict := func(k int) { mc.Delete(one.ItemKey(k)) }

	require.Zero(t, staleReads(t, r, evict, one, two))
	stats := one.Stats()
	t.Logf("%+v", stats)
	require.Positive(t, stats.FillsRefused, "the test never met the race it is about")
	require.Positive(t, stats.Hits)
	require.Positive(t, stats.Waits)
	require.Zero(t, stats.Errors)
}

// setAfterLoad is a cache without leases. The test above must find it out.
type setAfterLoad struct {
	mc     *memcache.Client
	rows   *rows
	prefix string
}

func (c setAfterLoad) item(k int) string { return fmt.Sprintf("%s:%d", c.prefix, k) }

func (c setAfterLoad) GetMulti(ctx context.Context, keys ...int) (map[int]int64, error) {
	found := make(map[int]int64)
	for _, k := range keys {
		it, err := c.mc.Get(c.item(k))
		if err == nil {
			var v int64
			fmt.Sscan(string(it.Value), &v)
			found[k] = v
			continue
		}
		loaded, err := c.rows.load(ctx, []int{k})
		if err != nil {
			return nil, err
		}
		found[k] = loaded[k]
		err = c.mc.Set(&memcache.Item{Key: c.item(k), Value: fmt.Append(nil, loaded[k]), Expiration: 60})
		if err != nil {
			return nil, err
		}
	}
	return found, nil
}

func (c setAfterLoad) Invalidate(_ context.Context, keys ...int) error {
	for _, k := range keys {
		if err := c.mc.Delete(c.item(k)); err != nil && !errors.Is(err, memcache.ErrCacheMiss) {
			return err
		}
	}
	return nil
}

func TestFreshnessTestFindsTheRace(t *testing.T) {
	t.Parallel()
	r := newRows(3)
	c := setAfterLoad{client(t, testserver.Memcached(t)), r, prefix(t)}
	require.Positive(t, staleReads(t, r, func(int) {}, c))
}
