package lookaside_test

import (
	"bufio"
	"context"
	"fmt"
	"net"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/bradfitz/gomemcache/memcache"
	"github.com/shardgram/shardgram/feedcache/lookaside"
	"github.com/shardgram/shardgram/internal/localserver"
	"github.com/shardgram/shardgram/internal/testserver"
	"github.com/stretchr/testify/require"
)

// timeToLive asks memcached in the protocol that gomemcache does not know how
// many seconds an item has left.
func timeToLive(t *testing.T, addr, key string) int {
	conn, err := net.Dial("tcp", addr)
	require.NoError(t, err)
	defer conn.Close()
	require.NoError(t, conn.SetDeadline(time.Now().Add(10*time.Second)))
	_, err = fmt.Fprintf(conn, "mg %s t\r\n", key)
	require.NoError(t, err)
	line, err := bufio.NewReader(conn).ReadString('\n')
	require.NoError(t, err)
	ttl, err := strconv.Atoi(strings.TrimPrefix(strings.TrimSpace(line), "HD t"))
	require.NoError(t, err, "memcached says %q", line)
	return ttl
}

// TestFillIsRefused: whatever happens to the lease during the load, the reader
// gets what it loaded, and it is not stored.
func TestFillIsRefused(t *testing.T) {
	t.Parallel()
	server, err := testserver.Host(t).Memcached(t.Context(), "memcached", localserver.MemcachedConfig{Memory: 2})
	require.NoError(t, err)
	mc := client(t, server.Addr())
	for name, event := range map[string]func(t *testing.T, c *lookaside.Cache[int, int64]){
		"Invalidate": func(t *testing.T, c *lookaside.Cache[int, int64]) {
			require.NoError(t, c.Invalidate(t.Context(), 0))
		},
		"InvalidateAndNewLease": func(t *testing.T, c *lookaside.Cache[int, int64]) {
			require.NoError(t, c.Invalidate(t.Context(), 0))
			v, err := c.Get(t.Context(), 0)
			require.NoError(t, err)
			require.EqualValues(t, 2, v)
		},
		"Set": func(t *testing.T, c *lookaside.Cache[int, int64]) {
			require.NoError(t, mc.Set(&memcache.Item{Key: c.ItemKey(0), Value: []byte("foreign")}))
		},
		"Eviction": func(t *testing.T, c *lookaside.Cache[int, int64]) {
			// Items as large as a lease push it out. Reading one would keep it, so
			// each look is at another.
			for i := 0; ; i++ {
				require.Less(t, i, 200_000, "memcached evicts nothing")
				err := mc.Set(&memcache.Item{Key: fmt.Sprintf("filler%06d", i), Value: make([]byte, 18)})
				require.NoError(t, err)
				if i%1000 == 999 {
					if _, err := mc.Get(fmt.Sprintf("filler%06d", i/1000)); err != nil {
						break
					}
				}
			}
		},
		"FlushAll": func(t *testing.T, _ *lookaside.Cache[int, int64]) {
			require.NoError(t, mc.FlushAll())
		},
	} {
		t.Run(name, func(t *testing.T) {
			r := newRows(1)
			c := open(t, mc, r, config{MaxWait: time.Minute})
			nested := false
			r.during = func([]int) {
				if nested {
					return
				}
				nested = true
				r.commit(0)
				event(t, c)
			}
			v, err := c.Get(t.Context(), 0)
			require.NoError(t, err)
			require.EqualValues(t, 1, v, "what it loaded before the commit")
			require.EqualValues(t, 1, c.Stats().FillsRefused)

			v, err = c.Get(t.Context(), 0)
			require.NoError(t, err)
			require.EqualValues(t, 2, v)
			require.Zero(t, c.Stats().Errors)
		})
	}
}

// TestHerdLoadsOnce: however many readers miss a key at once, in several
// processes, one loads it.
func TestHerdLoadsOnce(t *testing.T) {
	t.Parallel()
	addr := testserver.Memcached(t)
	r := newRows(1)
	const readers = 200
	cfg := config{Prefix: prefix(t), MaxWait: time.Minute}
	caches := []*lookaside.Cache[int, int64]{open(t, client(t, addr), r, cfg), open(t, client(t, addr), r, cfg)}
	misses := func() int64 {
		one, two := caches[0].Stats(), caches[1].Stats()
		return one.Waits + two.Waits
	}
	for round := range int64(3) {
		before := misses()
		// The load lasts until a hundred readers have met its lease.
		r.during = func([]int) {
			for misses() < before+readers/2 {
				time.Sleep(time.Millisecond)
			}
		}
		var wrong atomic.Int64
		var wg sync.WaitGroup
		for i := range readers {
			wg.Go(func() {
				v, err := caches[i%2].Get(t.Context(), 0)
				if err != nil || v != round+1 {
					wrong.Add(1)
				}
			})
		}
		wg.Wait()
		require.Zero(t, wrong.Load())
		require.Equal(t, round+1, r.loads.Load())
		r.commit(0)
		require.NoError(t, caches[0].Invalidate(t.Context(), 0))
	}
}

// TestWaitIsBounded: readers do not wait longer than MaxWait for a load that
// hangs, and what they load themselves is not stored. When the lease has
// expired, the next reader fills, and the load that hung cannot.
func TestWaitIsBounded(t *testing.T) {
	t.Parallel()
	r := newRows(1)
	hang, started := make(chan struct{}), make(chan struct{})
	var hung atomic.Bool
	r.during = func([]int) {
		if hung.CompareAndSwap(false, true) {
			close(started)
			<-hang
		}
	}
	addr := testserver.Memcached(t)
	c := open(t, client(t, addr), r, config{MaxWait: 50 * time.Millisecond, LeaseTTL: 3 * time.Second})
	var slow error
	var wg sync.WaitGroup
	wg.Go(func() { _, slow = c.Get(t.Context(), 0) })
	<-started
	r.commit(0)

	v, err := c.Get(t.Context(), 0)
	require.NoError(t, err)
	require.EqualValues(t, 2, v)
	stats := c.Stats()
	require.EqualValues(t, 1, stats.WaitTimeouts)
	require.Zero(t, stats.Fills)

	deadline := time.Now().Add(20 * time.Second)
	for c.Stats().Fills == 0 {
		require.True(t, time.Now().Before(deadline), "the lease does not expire")
		v, err := c.Get(t.Context(), 0)
		require.NoError(t, err)
		require.EqualValues(t, 2, v)
	}
	close(hang)
	wg.Wait()
	require.NoError(t, slow)
	require.EqualValues(t, 1, c.Stats().FillsRefused)
	v, err = c.Get(t.Context(), 0)
	require.NoError(t, err)
	require.EqualValues(t, 2, v)
}

// TestBatchesThatOverlapDoNotBlock: two calls that each hold what the other
// waits for fill theirs first.
func TestBatchesThatOverlapDoNotBlock(t *testing.T) {
	t.Parallel()
	const keys = 60
	r := newRows(keys)
	r.during = func([]int) { time.Sleep(5 * time.Millisecond) }
	addr := testserver.Memcached(t)
	cfg := config{Prefix: prefix(t), MaxWait: time.Minute}
	up, down := make([]int, keys), make([]int, keys)
	for i := range keys {
		up[i], down[keys-1-i] = i, i
	}
	var failed atomic.Int64
	var wg sync.WaitGroup
	caches := make([]*lookaside.Cache[int, int64], 8)
	for i := range caches {
		caches[i] = open(t, client(t, addr), r, cfg)
		wg.Go(func() {
			asked := up
			if i%2 == 0 {
				asked = down
			}
			got, err := caches[i].GetMulti(t.Context(), asked...)
			if err != nil || len(got) != keys {
				failed.Add(1)
			}
		})
	}
	wg.Wait()
	require.Zero(t, failed.Load())
	var loaded int64
	for _, c := range caches {
		loaded += c.Stats().LoadedKeys
	}
	require.EqualValues(t, keys, loaded, "each key is loaded once")
}

// TestMemcachedDown: the Loader answers while the server is dead or hangs, and
// the cache is back when the server is.
func TestMemcachedDown(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	server, err := testserver.Host(t).Memcached(ctx, "memcached", localserver.MemcachedConfig{})
	require.NoError(t, err)
	r := newRows(30)
	mc := client(t, server.Addr())
	mc.Timeout = 300 * time.Millisecond
	c := open(t, mc, r, config{})
	keys := make([]int, 30)
	for k := range keys {
		keys[k] = k
	}
	all := func() {
		t.Helper()
		got, err := c.GetMulti(ctx, keys...)
		require.NoError(t, err)
		require.Len(t, got, 30)
		_, err = c.Get(ctx, 1)
		require.NoError(t, err)
		_, err = c.Get(ctx, 99)
		require.ErrorIs(t, err, lookaside.ErrNotFound)
	}
	loads := func(f func()) int64 {
		before := r.loads.Load()
		f()
		return r.loads.Load() - before
	}
	require.EqualValues(t, 2, loads(all))
	require.Zero(t, loads(all))

	require.NoError(t, server.Kill())
	require.EqualValues(t, 3, loads(all))
	require.Error(t, c.Invalidate(ctx, 1, 2))
	require.NoError(t, server.Restart(ctx))
	// The pool may still hold connections to the old process.
	require.NoError(t, mc.Close())
	require.EqualValues(t, 2, loads(all))
	require.Zero(t, loads(all))

	require.NoError(t, server.Pause())
	begin := time.Now()
	require.EqualValues(t, 3, loads(all))
	err = c.Invalidate(ctx, 1)
	require.Less(t, time.Since(begin), 5*time.Second, "4 calls of one timeout each")
	require.ErrorContains(t, err, "lookaside: invalidate "+c.ItemKey(1)+": ")
	require.NoError(t, server.Resume())
	require.NoError(t, c.Invalidate(ctx, 1))
	require.EqualValues(t, 1, loads(all))
	require.Zero(t, loads(all))
	require.Positive(t, c.Stats().Errors)
}

// TestOneOfTwoServersDown: hits on the other one still come from there.
func TestOneOfTwoServersDown(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	h := testserver.Host(t)
	one, err := h.Memcached(ctx, "one", localserver.MemcachedConfig{})
	require.NoError(t, err)
	two, err := h.Memcached(ctx, "two", localserver.MemcachedConfig{})
	require.NoError(t, err)
	r := newRows(40)
	c := open(t, client(t, one.Addr(), two.Addr()), r, config{})
	keys := make([]int, 40)
	for k := range keys {
		keys[k] = k
	}
	get := func() {
		t.Helper()
		got, err := c.GetMulti(ctx, keys...)
		require.NoError(t, err)
		require.Len(t, got, 40)
	}
	get()
	require.NoError(t, two.Kill())
	before := c.Stats()
	get()
	after := c.Stats()
	require.Positive(t, after.Hits-before.Hits)
	require.EqualValues(t, 40, after.Hits-before.Hits+after.LoadedKeys-before.LoadedKeys)
}

// TestCacheWithoutReply: when memcached cannot be asked at all, a context that
// has ended is still noticed.
func TestCacheWithoutReply(t *testing.T) {
	t.Parallel()
	r := newRows(1)
	c := open(t, client(t, "127.0.0.1:1"), r, config{})
	v, err := c.Get(t.Context(), 0)
	require.NoError(t, err)
	require.EqualValues(t, 1, v)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	_, err = c.Get(ctx, 0)
	require.ErrorIs(t, err, context.Canceled)
	require.EqualValues(t, 1, r.loads.Load())
}
