package feedcache_test

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
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

func TestCluster(t *testing.T) {
	t.Parallel()
	cluster, err := testserver.Host(t).RedisCluster(t.Context(), "cluster", localserver.RedisClusterConfig{
		// Nodes that live go on when another is dead.
		Settings: map[string]string{"cluster-require-full-coverage": "no"},
	})
	require.NoError(t, err)
	// One after the other: the last one breaks it.
	t.Run("LosesNothingWhenSlotsMove", func(t *testing.T) { clusterSlotsMove(t, cluster) })
	t.Run("GoesOnWithoutANode", func(t *testing.T) { clusterNodeDies(t, cluster) })
}

func clusterClient(t *testing.T, cluster *localserver.RedisCluster) *redis.ClusterClient {
	t.Helper()
	rdb := redis.NewClusterClient(&redis.ClusterOptions{
		Addrs: cluster.Addrs(), MaxRedirects: 2, DialerRetries: 1, PoolSize: 1000, PipelinePoolSize: 1000,
	})
	t.Cleanup(func() { require.NoError(t, rdb.Close()) })
	return rdb
}

func clusterNodeDies(t *testing.T, cluster *localserver.RedisCluster) {
	ctx, rdb := t.Context(), clusterClient(t, cluster)
	var src table
	feeds := open(t, rdb, src.Source, feedcache.Config{Prefix: "dies", Cap: 10})
	owners := seq(600, 1)
	for _, owner := range owners {
		src.insert(owner, seq(15, 1)...)
		page, err := feeds.Page(ctx, owner, 0, 5)
		require.NoError(t, err)
		require.Equal(t, feedcache.Page{IDs: seq(15, 11), Next: 11}, page)
	}
	push := func(owners []int64, id int64) (feedcache.Delivery, error) {
		for _, owner := range owners {
			src.insert(owner, id)
		}
		return feeds.Push(ctx, slices.Values(owners), id)
	}

	// One node forgets the scripts, and feeds of all nodes are compacted.
	require.NoError(t, direct(t, cluster.Nodes()[1]).ScriptFlush(ctx).Err())
	for id := int64(16); id <= 40; id++ {
		d, err := push(owners, id)
		require.NoError(t, err)
		require.Equal(t, feedcache.Delivery{Warm: len(owners)}, d)
	}
	for _, owner := range owners[:50] {
		got, err := walk(ctx, feeds, owner, 7)
		require.NoError(t, err)
		require.Equal(t, seq(40, 1), got)
	}
	require.GreaterOrEqual(t, feeds.Stats().Compactions, int64(len(owners)))

	var dead, living []int64
	for _, owner := range owners {
		node, err := rdb.MasterForKey(ctx, fmt.Sprint("dies:", owner))
		require.NoError(t, err)
		if node.Options().Addr == cluster.Addrs()[1] {
			dead = append(dead, owner)
		} else {
			living = append(living, owner)
		}
	}
	require.Greater(t, len(dead), 100)
	require.NoError(t, cluster.Nodes()[1].Kill())

	window := owners[:500]
	missed := slices.DeleteFunc(slices.Clone(dead), func(owner int64) bool { return !slices.Contains(window, owner) })
	d, err := push(window, 41)
	require.ErrorContains(t, err, fmt.Sprintf("feedcache: push dies:%d: ", missed[0]))
	failed, ok := errors.AsType[*feedcache.UnreachedError](err)
	require.True(t, ok, err)
	require.Equal(t, missed, failed.Owners)
	require.Equal(t, feedcache.Delivery{Warm: len(window) - len(missed)}, d)

	// Of several windows, those that were tried.
	_, err = push(owners, 42)
	failed, ok = errors.AsType[*feedcache.UnreachedError](err)
	require.True(t, ok, err)
	require.Subset(t, failed.Owners, missed)
	require.Subset(t, dead, failed.Owners)

	d, err = push(living, 42)
	require.NoError(t, err)
	require.Equal(t, feedcache.Delivery{Warm: len(living)}, d)
	src.took()
	for _, owner := range living[:6] {
		page, err := feeds.Page(ctx, owner, 0, 5)
		require.NoError(t, err)
		require.Equal(t, []int64{42, 41}, page.IDs[:2])
	}
	require.Empty(t, src.took(), "feeds of the living nodes are warm")
	for _, owner := range dead[:6] {
		got, err := walk(ctx, feeds, owner, 50)
		require.NoError(t, err)
		require.Equal(t, src.newest(owner), got)
	}
	require.NotEmpty(t, src.took())
	err = feeds.Drop(ctx, dead[0])
	require.ErrorContains(t, err, fmt.Sprintf("feedcache: drop dies:%d: ", dead[0]))
}

// slotOf is the slot of a key: CRC-16/XMODEM, modulo 16384.
func slotOf(key string) int {
	crc := uint16(0)
	for _, b := range []byte(key) {
		crc ^= uint16(b) << 8
		for range 8 {
			if crc>>15 == 1 {
				crc = crc<<1 ^ 0x1021
			} else {
				crc <<= 1
			}
		}
	}
	return int(crc % 16384)
}

// traffic pushes to feeds, edits, drops and reads them, and checks that no page
// lacks what was delivered.
type traffic struct {
	src    *table
	owners []int64
	rounds atomic.Int64
	over   atomic.Bool

	mu  sync.Mutex
	due map[int64]map[int64]bool // by owner
}

func (w *traffic) write(ctx context.Context, f *feedcache.Feeds, owners []int64, rng *rand.Rand) error {
	for n := 100; !w.over.Load(); n++ {
		owner, id := owners[rng.IntN(len(owners))], idAt(3, n)
		w.src.insert(owner, id)
		err := eventually(func() error {
			if rng.IntN(4) > 0 {
				_, err := f.Push(ctx, one(owner), id)
				return err
			}
			return f.Edit(ctx, owner, func(ids []int64) ([]int64, error) { return append(ids, id), nil })
		})
		if err == nil && rng.IntN(10) == 0 {
			err = eventually(func() error { return f.Drop(ctx, owner) })
		}
		if err != nil {
			return err
		}
		w.mu.Lock()
		w.due[owner][id] = true
		w.mu.Unlock()
		w.rounds.Add(1)
	}
	return nil
}

func (w *traffic) read(ctx context.Context, f *feedcache.Feeds, rng *rand.Rand) error {
	for !w.over.Load() {
		owner := w.owners[rng.IntN(len(w.owners))]
		w.mu.Lock()
		due := maps.Clone(w.due[owner])
		w.mu.Unlock()
		got, err := walk(ctx, f, owner, 1+rng.IntN(60))
		if err != nil {
			return err
		}
		for _, id := range got {
			delete(due, id)
		}
		if len(due) > 0 || !descends(got) {
			return fmt.Errorf("%w: %d of owner %d", errLost, len(due), owner)
		}
		w.rounds.Add(1)
	}
	return nil
}

// clusterSlotsMove moves slots from one node to another and back, key by key as
// redis-cli does, while feeds in them are pushed to, filled, edited and read.
func clusterSlotsMove(t *testing.T, cluster *localserver.RedisCluster) {
	ctx := t.Context()
	w := &traffic{src: &table{}, due: map[int64]map[int64]bool{}}
	slots := map[int][]int64{} // some of the first node
	for owner := int64(1); len(w.owners) < 3*6; owner++ {
		slot := slotOf(fmt.Sprint("feed:", owner))
		if owners, ok := slots[slot]; ok && len(owners) < 6 || !ok && len(slots) < 3 && slot < 5000 {
			slots[slot] = append(owners, owner)
			w.owners = append(w.owners, owner)
			w.due[owner] = map[int64]bool{}
			w.src.insert(owner, idAt(3, 1))
		}
	}
	group, ctx := errgroup.WithContext(ctx)
	defer w.over.Store(true) // a failed test ends them, too
	var clients []*feedcache.Feeds
	for i := range 3 {
		rng := func(job uint64) *rand.Rand { return rand.New(rand.NewPCG(job, uint64(i))) }
		// Each of its own, as each learns by itself where a slot is.
		writer := open(t, clusterClient(t, cluster), w.src.Source, feedcache.Config{Cap: 40, FailoverCheck: time.Millisecond})
		reader := open(t, clusterClient(t, cluster), w.src.Source, feedcache.Config{Cap: 40})
		clients = append(clients, writer, reader)
		group.Go(func() error { return w.write(ctx, writer, w.owners[i*6:i*6+6], rng(0)) })
		group.Go(func() error { return w.read(ctx, reader, rng(1)) })
	}
	nodes := []*redis.Client{direct(t, cluster.Nodes()[0]), direct(t, cluster.Nodes()[1]), direct(t, cluster.Nodes()[2])}
	goesOn := func() {
		for target := w.rounds.Load() + 60; w.rounds.Load() < target && ctx.Err() == nil; {
			time.Sleep(time.Millisecond)
		}
	}
	moved := 0
	for slot, owners := range slots {
		require.EqualValues(t, slot, nodes[0].ClusterKeySlot(ctx, fmt.Sprint("feed:", owners[0])).Val())
		moved += moveSlot(t, nodes, slot, 0, 1, goesOn)
		moved += moveSlot(t, nodes, slot, 1, 0, goesOn)
	}
	w.over.Store(true)
	require.NoError(t, group.Wait())
	require.Greater(t, moved, 3)
	for _, owner := range w.owners {
		for _, f := range clients {
			got, err := walk(t.Context(), f, owner, 30)
			require.NoError(t, err)
			require.Equal(t, w.src.newest(owner), got)
		}
	}
	d, err := clients[0].Push(t.Context(), slices.Values(w.owners), idAt(3, 1))
	require.NoError(t, err)
	require.Equal(t, feedcache.Delivery{Warm: len(w.owners)}, d)
	var stats feedcache.Stats
	for _, f := range clients {
		stats.Rebuilds += f.Stats().Rebuilds
		stats.Edits += f.Stats().Edits
		stats.RedisFailures += f.Stats().RedisFailures
	}
	t.Logf("%d keys moved, %d fills, %d edits, %d looks failed, %d rounds", moved, stats.Rebuilds, stats.Edits, stats.RedisFailures, w.rounds.Load())
}

// moveSlot moves a slot and returns how many keys there were in it.
func moveSlot(t *testing.T, nodes []*redis.Client, slot, from, to int, between func()) (moved int) {
	t.Helper()
	ctx := t.Context()
	ids := make([]string, len(nodes))
	for i, node := range nodes {
		var err error
		ids[i], err = node.ClusterMyID(ctx).Result()
		require.NoError(t, err)
	}
	require.NoError(t, nodes[to].Do(ctx, "cluster", "setslot", slot, "importing", ids[from]).Err())
	require.NoError(t, nodes[from].Do(ctx, "cluster", "setslot", slot, "migrating", ids[to]).Err())
	between()
	_, port, _ := strings.Cut(nodes[to].Options().Addr, ":")
	for ; ; moved++ {
		keys, err := nodes[from].ClusterGetKeysInSlot(ctx, slot, 1).Result()
		require.NoError(t, err)
		if len(keys) == 0 {
			break
		}
		require.NoError(t, nodes[from].Migrate(ctx, "127.0.0.1", port, keys[0], 0, 5*time.Second).Err())
		between()
	}
	// The new owner first, so that no write is sent to and fro.
	for _, i := range []int{to, from, 3 - to - from} {
		require.NoError(t, nodes[i].Do(ctx, "cluster", "setslot", slot, "node", ids[to]).Err())
	}
	between()
	return moved
}
