package feedcache_test

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"math/rand/v2"
	"slices"
	"strconv"
	"sync/atomic"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"
	"golang.org/x/sync/errgroup"
	"pgregory.net/rapid"

	"github.com/shardgram/shardgram/feedcache"
	"github.com/shardgram/shardgram/internal/testserver"
)

// feed is what the model drives: Feeds, or the control below.
type feed interface {
	pager
	Push(ctx context.Context, owners iter.Seq[int64], ids ...int64) (feedcache.Delivery, error)
	Remove(ctx context.Context, owners iter.Seq[int64], ids ...int64) (feedcache.Delivery, error)
	Drop(ctx context.Context, owners ...int64) error
}

// What can be wrong with a walk.
var (
	errLost     = errors.New("lost")
	errInvented = errors.New("invented")
	errBack     = errors.New("removed, but shown")
	errOrder    = errors.New("not strictly descending")
)

// An op is a push or removal of one ID on its way to the feed.
type op struct {
	id      int64
	removal bool
}

// A model is a feed with its store of record and the pushes on their way:
// late, out of order and repeated. It knows what a reader may see, not how.
type model struct {
	draw  func(n int) int // 0 to n-1
	feed  feed
	src   *table
	owner int64
	base  int64 // IDs are base+1 to base+64: of one shard, in one millisecond

	on      map[int64]bool // the rows: each ID that was ever inserted, and whether it is still there
	pending []op
	done    []op // may be delivered again
	pushed  map[int64]bool

	// A removed ID may only be shown if a late push brought it back to a feed
	// that has not seen the removal: an earlier life of the key has, or none.
	life      int
	removedIn map[int64]int // the life of the key that took the removal, 0 for a cold feed
	back      map[int64]bool
}

func newModel(draw func(int) int, src *table, f feed, owner, base int64) *model {
	return &model{
		draw: draw, feed: f, src: src, owner: owner, base: base, life: 1,
		on: map[int64]bool{}, pushed: map[int64]bool{}, removedIn: map[int64]int{}, back: map[int64]bool{},
	}
}

// change makes one change, anything but a read.
func (m *model) change(ctx context.Context) error {
	switch m.draw(8) {
	case 0, 1, 2:
		id := m.base + 1 + int64(m.draw(64))
		if _, was := m.on[id]; !was {
			m.on[id] = true
			m.src.insert(m.owner, id)
			m.pending = append(m.pending, op{id: id})
		}
	case 3:
		if rows := m.src.newest(m.owner); len(rows) > 0 {
			id := rows[m.draw(len(rows))]
			m.on[id] = false
			m.src.remove(m.owner, id)
			m.pending = append(m.pending, op{id, true})
		}
	case 4, 5:
		if len(m.pending) > 0 {
			i := m.draw(len(m.pending))
			o := m.pending[i]
			m.pending = slices.Delete(m.pending, i, i+1)
			m.done = append(m.done, o)
			return m.deliver(ctx, o)
		}
	case 6:
		if len(m.done) > 0 {
			return m.deliver(ctx, m.done[m.draw(len(m.done))])
		}
	case 7:
		if m.draw(3) == 0 { // an eviction
			m.life++
			clear(m.back)
			return m.feed.Drop(ctx, m.owner)
		}
	}
	return nil
}

func (m *model) deliver(ctx context.Context, o op) error {
	if o.removal {
		d, err := m.feed.Remove(ctx, one(m.owner), o.id)
		m.removedIn[o.id] = d.Warm * m.life
		if d.Warm == 1 {
			delete(m.back, o.id)
		}
		return err
	}
	d, err := m.feed.Push(ctx, one(m.owner), o.id)
	m.pushed[o.id] = true
	if d.Warm == 1 && !m.on[o.id] && m.removedIn[o.id] != m.life {
		m.back[o.id] = true
	}
	return err
}

// check walks the feed and compares.
func (m *model) check(ctx context.Context) error {
	got, err := walk(ctx, m.feed, m.owner, 1+m.draw(6))
	if err != nil {
		return err
	}
	if err := m.sound(got); err != nil {
		return err
	}
	for id, on := range m.on {
		shown := slices.Contains(got, id)
		_, removalArrived := m.removedIn[id]
		switch {
		case on && m.pushed[id] && !shown:
			return fmt.Errorf("%w: %d", errLost, id-m.base)
		case !on && removalArrived && shown && !m.back[id]:
			return fmt.Errorf("%w: %d", errBack, id-m.base)
		}
	}
	return nil
}

// sound checks what holds for any list of IDs at any time.
func (m *model) sound(ids []int64) error {
	for i, id := range ids {
		if _, known := m.on[id]; !known {
			return fmt.Errorf("%w: %d", errInvented, id-m.base)
		}
		if i > 0 && ids[i-1] <= id {
			return fmt.Errorf("%w: %d after %d", errOrder, id-m.base, ids[i-1]-m.base)
		}
	}
	return nil
}

// run makes steps changes, with checks in between. If busy, more changes land
// inside each read of the Source, so in the middle of fills.
func (m *model) run(ctx context.Context, steps int, busy bool) error {
	for range steps {
		if m.draw(6) > 0 {
			if err := m.change(ctx); err != nil {
				return err
			}
			continue
		}
		if busy {
			var inside error
			m.src.around = func(bool) {
				for range m.draw(4) {
					inside = errors.Join(inside, m.change(ctx))
				}
			}
			page, err := m.feed.Page(ctx, m.owner, 0, 1+m.draw(6))
			m.src.around = nil
			if err := errors.Join(inside, err, m.sound(page.IDs)); err != nil {
				return err
			}
		}
		if err := m.check(ctx); err != nil {
			return err
		}
	}
	return m.check(ctx)
}

func TestModel(t *testing.T) {
	t.Parallel()
	ctx, rdb := t.Context(), testserver.Redis(t)
	var owner atomic.Int64
	rapid.Check(t, func(rt *rapid.T) {
		var src table
		feeds, err := feedcache.New(rdb, src.Source, feedcache.Config{Cap: rapid.IntRange(1, 8).Draw(rt, "cap")})
		if err != nil {
			rt.Fatal(err)
		}
		draw := func(n int) int { return rapid.IntRange(0, n-1).Draw(rt, "n") }
		base := idAt(rapid.SampledFrom([]int{0, 3, 10, 34}).Draw(rt, "years"), 0)
		m := newModel(draw, &src, feeds, owner.Add(1), base)
		if err := m.run(ctx, 80, true); err != nil {
			rt.Fatal(err)
		}
	})
}

// The control: the model with the usual sorted set finds nothing while IDs are
// below 2^53, and finds rounding as soon as they are not.
func TestModelFindsRoundingInASortedSet(t *testing.T) {
	t.Parallel()
	ctx, rdb := t.Context(), testserver.Redis(t)
	run := func(seed uint64, years int) error {
		rng := rand.New(rand.NewPCG(seed, seed))
		var src table
		m := newModel(rng.IntN, &src, zset{rdb, &src}, int64(seed), idAt(years, 0))
		err := m.run(ctx, 80, false)
		return errors.Join(err, rdb.FlushDB(ctx).Err())
	}
	for seed := range uint64(30) {
		require.NoError(t, run(seed, 0))
	}
	var err error
	for seed := uint64(0); err == nil && seed < 30; seed++ {
		err = run(seed, 3)
	}
	require.ErrorIs(t, err, errLost)
}

// A zset is a feed whose score is the ID, as most are; it is right in all
// else. It never trims, so it has no floor.
type zset struct {
	rdb *redis.Client
	src *table
}

func (z zset) keys(owner int64) (feed, removed string) {
	feed = "zset:" + strconv.FormatInt(owner, 10)
	return feed, feed + ":removed"
}

// bottom is in each feed and below every ID, so that an empty feed exists.
const bottom = "bottom"

func (z zset) Push(ctx context.Context, owners iter.Seq[int64], ids ...int64) (d feedcache.Delivery, err error) {
	for owner := range owners {
		key, removed := z.keys(owner)
		if z.rdb.Exists(ctx, key).Val() == 0 {
			d.Cold++
			continue
		}
		d.Warm++
		for _, id := range ids {
			if !z.rdb.SIsMember(ctx, removed, id).Val() {
				err = errors.Join(err, z.rdb.ZAdd(ctx, key, redis.Z{Score: float64(id), Member: id}).Err())
			}
		}
	}
	return d, err
}

func (z zset) Remove(ctx context.Context, owners iter.Seq[int64], ids ...int64) (d feedcache.Delivery, err error) {
	for owner := range owners {
		key, removed := z.keys(owner)
		if z.rdb.Exists(ctx, key).Val() == 0 {
			d.Cold++
			continue
		}
		d.Warm++
		for _, id := range ids {
			err = errors.Join(err, z.rdb.ZRem(ctx, key, id).Err(), z.rdb.SAdd(ctx, removed, id).Err())
		}
	}
	return d, err
}

func (z zset) Drop(ctx context.Context, owners ...int64) error {
	for _, owner := range owners {
		key, removed := z.keys(owner)
		if err := z.rdb.Del(ctx, key, removed).Err(); err != nil {
			return err
		}
	}
	return nil
}

func (z zset) Page(ctx context.Context, owner, before int64, n int) (page feedcache.Page, err error) {
	key, _ := z.keys(owner)
	if z.rdb.Exists(ctx, key).Val() == 0 {
		members := []redis.Z{{Score: -1, Member: bottom}}
		for _, id := range z.src.newest(owner) {
			members = append(members, redis.Z{Score: float64(id), Member: id})
		}
		if err := z.rdb.ZAdd(ctx, key, members...).Err(); err != nil {
			return page, err
		}
	}
	from := "+inf"
	if before > 0 {
		from = "(" + strconv.FormatInt(before, 10)
	}
	members, err := z.rdb.ZRangeArgs(ctx, redis.ZRangeArgs{
		Key: key, Start: from, Stop: 0, ByScore: true, Rev: true, Count: int64(n) + 1,
	}).Result()
	for i, member := range members {
		id, err := strconv.ParseInt(member, 10, 64)
		if err != nil {
			return page, err
		}
		if i == n {
			page.Next = page.IDs[n-1]
			break
		}
		page.IDs = append(page.IDs, id)
	}
	return page, err
}

// Real concurrency: posters, workers that deliver out of order and again,
// readers that fill, evict and outlive their leases, all on one feed.
func TestInterleaving(t *testing.T) {
	t.Parallel()
	ctx, rdb := t.Context(), testserver.Redis(t)
	var back int
	for round := range int64(24) {
		owner := round + 1
		lease := []time.Duration{10 * time.Second, 2 * time.Millisecond}[round%2]
		var src table
		feeds := open(t, rdb, src.Source, feedcache.Config{Cap: 8, LeaseTTL: lease})
		s := &storm{
			ops: make(chan op, 500), // holds them all, so no poster waits
			run: func(o op) error {
				if o.removal {
					_, err := feeds.Remove(ctx, one(owner), o.id)
					return err
				}
				_, err := feeds.Push(ctx, one(owner), o.id)
				return err
			},
		}
		var posters, others errgroup.Group
		for p := range int64(2) {
			posters.Go(func() error {
				for i := range int64(60) {
					id := idAt(3, 0) + 2*i + p
					src.insert(owner, id)
					s.ops <- op{id: id}
					if i%4 == 3 { // removes one of its own, maybe before its push arrives
						src.remove(owner, id-4)
						s.ops <- op{id - 4, true}
					}
				}
				return nil
			})
		}
		for w := range uint64(2) {
			others.Go(func() error { return s.work(rand.New(rand.NewPCG(uint64(round), w))) })
		}
		for r := range uint64(2) {
			others.Go(func() error {
				rng := rand.New(rand.NewPCG(uint64(round), 10+r))
				for !s.over.Load() {
					if rng.IntN(8) == 0 {
						if err := feeds.Drop(ctx, owner); err != nil {
							return err
						}
					}
					page, err := feeds.Page(ctx, owner, 0, 1+rng.IntN(12))
					if err != nil {
						return err
					}
					if !slices.IsSortedFunc(page.IDs, func(a, b int64) int { return int(b - a) }) {
						return errOrder
					}
				}
				return nil
			})
		}
		err := posters.Wait()
		close(s.ops)
		require.NoError(t, errors.Join(err, others.Wait()))

		got, err := walk(ctx, feeds, owner, 5)
		require.NoError(t, err)
		want := src.newest(owner)
		for _, id := range want {
			require.Contains(t, got, id, "lost")
		}
		for i, id := range got {
			require.True(t, i == 0 || got[i-1] > id, errOrder)
			if !slices.Contains(want, id) {
				require.True(t, idAt(3, 0) <= id && id < idAt(3, 120), "invented")
				back++
			}
		}
	}
	t.Logf("%d removed IDs came back: evicted after the removal, then pushed late", back)
}

// A storm is the queue between posters and workers.
type storm struct {
	ops  chan op
	run  func(op) error
	left atomic.Int32 // workers that are done
	over atomic.Bool
}

// work delivers what it takes from the queue in random order, and three in ten
// a second time.
func (s *storm) work(rng *rand.Rand) error {
	defer func() {
		if s.left.Add(1) == 2 {
			s.over.Store(true)
		}
	}()
	var held []op
	for open := true; open || len(held) > 0; {
		if open && len(held) < 10 {
			var o op
			if o, open = <-s.ops; open {
				held = append(held, o)
			}
			continue
		}
		i := rng.IntN(len(held))
		if err := s.run(held[i]); err != nil {
			return err
		}
		if rng.IntN(10) >= 3 {
			held = slices.Delete(held, i, i+1)
		}
	}
	return nil
}

// IDs that are there during a whole walk are in it exactly once, while others
// come and go and the feed is filled, compacted and evicted.
func TestWalkWhileTheFeedChanges(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	rdb := testserver.Redis(t)
	var src table
	base := idAt(10, 0)
	var stay []int64
	for i := int64(300); i > 0; i-- { // odd ones come and go
		stay = append(stay, base+2*i)
	}
	src.insert(1, stay...)
	feeds := open(t, rdb, src.Source, feedcache.Config{Cap: 50})
	var over atomic.Bool
	var writers errgroup.Group
	for w := range uint64(2) {
		writers.Go(func() error {
			rng := rand.New(rand.NewPCG(7, w))
			for !over.Load() {
				id := base + 1 + 2*int64(2*rng.IntN(160)+int(w))
				src.insert(1, id)
				_, err := feeds.Push(ctx, one(1), id)
				if err == nil && rng.IntN(2) == 0 {
					src.remove(1, id)
					_, err = feeds.Remove(ctx, one(1), id)
				}
				if err == nil && rng.IntN(100) == 0 {
					err = feeds.Drop(ctx, 1)
				}
				if err != nil {
					return err
				}
			}
			return nil
		})
	}
	defer over.Store(true)
	for i := range 30 {
		got, err := walk(ctx, feeds, 1, 1+2*i)
		require.NoError(t, err)
		for j := 1; j < len(got); j++ {
			require.Less(t, got[j], got[j-1])
		}
		kept := slices.DeleteFunc(got, func(id int64) bool { return (id-base)%2 != 0 })
		require.Equal(t, stay, kept)
	}
	over.Store(true)
	require.NoError(t, writers.Wait())
}
