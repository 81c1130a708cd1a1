package feedcache_test

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sync/errgroup"

	"github.com/shardgram/shardgram/feedcache"
	"github.com/shardgram/shardgram/internal/testserver"
)

// A storm is one feed in real concurrency: posters, workers that deliver out of
// order and again, readers that fill, evict and outlive their leases, and
// editors, all on feeds of their own.
type storm struct {
	src   table
	owner int64
	feeds []*feedcache.Feeds
	ops   chan op      // holds them all, so no poster waits
	left  atomic.Int32 // workers that are done

	mu  sync.Mutex
	due map[int64]bool // delivered, and there for good
}

const (
	stormWorkers = 2
	stormPosts   = 60 // of each poster
	stormEdits   = 25 // of each editor
	editedFrom   = 2 * stormPosts
	editedIDs    = 12 // of each editor
)

// post inserts posts and removes one in four, maybe before its push arrives.
func (s *storm) post(poster int) {
	id := func(i int) int64 { return idAt(3, 2*i+poster) }
	for i := range stormPosts {
		s.src.insert(s.owner, id(i))
		s.ops <- op{'+', id(i)}
		if i%4 == 3 {
			s.src.remove(s.owner, id(i-2))
			s.ops <- op{'-', id(i - 2)}
		}
	}
}

// stays reports whether a post is one of those that nobody removes.
func stays(id int64) bool { return (id-idAt(3, 0))/2%4 != 1 }

// work delivers what it takes from the queue in random order, and three in ten
// a second time.
func (s *storm) work(ctx context.Context, f *feedcache.Feeds, rng *rand.Rand) error {
	defer s.left.Add(-1)
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
		o := held[i]
		change := f.Push
		if o.kind == '-' {
			change = f.Remove
		}
		if _, err := change(ctx, one(s.owner), o.id); err != nil {
			return err
		}
		if o.kind == '+' && stays(o.id) {
			s.mu.Lock()
			s.due[o.id] = true
			s.mu.Unlock()
		}
		if rng.IntN(10) >= 3 {
			held = slices.Delete(held, i, i+1)
		}
	}
	return nil
}

// edit follows and unfollows the author of IDs that are never pushed.
func (s *storm) edit(ctx context.Context, f *feedcache.Feeds, rng *rand.Rand, editor int) error {
	first := idAt(3, editedFrom+editor*editedIDs)
	for range stormEdits {
		id := first + int64(rng.IntN(editedIDs))
		there := rng.IntN(2) == 0
		if there {
			s.src.insert(s.owner, id)
		} else {
			s.src.remove(s.owner, id)
		}
		err := f.Edit(ctx, s.owner, func(ids []int64) ([]int64, error) {
			ids = slices.DeleteFunc(ids, func(i int64) bool { return i == id })
			if there {
				ids = append(ids, id)
			}
			return ids, nil
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// read walks the feed, and drops it now and then.
func (s *storm) read(ctx context.Context, f *feedcache.Feeds, rng *rand.Rand) error {
	for s.left.Load() > 0 {
		if rng.IntN(8) == 0 {
			if err := f.Drop(ctx, s.owner); err != nil {
				return err
			}
		}
		s.mu.Lock()
		due := maps.Clone(s.due)
		s.mu.Unlock()
		got, err := walk(ctx, f, s.owner, 1+rng.IntN(40))
		if err != nil {
			return err
		}
		if !descends(got) {
			return errOrder
		}
		for _, id := range got {
			delete(due, id)
		}
		if len(due) > 0 {
			return fmt.Errorf("%w: %d IDs in the middle of the storm", errLost, len(due))
		}
	}
	return nil
}

func descends(ids []int64) bool {
	for i := 1; i < len(ids); i++ {
		if ids[i-1] <= ids[i] {
			return false
		}
	}
	return true
}

func TestInterleaving(t *testing.T) {
	t.Parallel()
	rdb := testserver.Redis(t)
	var back int
	for round := range int64(16) {
		s := &storm{owner: round + 1, ops: make(chan op, 500), due: map[int64]bool{}}
		s.src.insert(s.owner, idAt(3, editedFrom), idAt(3, editedFrom+editedIDs))
		cfg := feedcache.Config{
			Cap:           []int{8, 40}[round%2],
			LeaseTTL:      []time.Duration{10 * time.Second, 2 * time.Millisecond}[round/2%2],
			FailoverCheck: []time.Duration{time.Hour, time.Millisecond}[round/4%2],
		}
		for range 3 {
			s.feeds = append(s.feeds, open(t, rdb, s.src.Source, cfg))
		}
		group, ctx := errgroup.WithContext(t.Context())
		var posters sync.WaitGroup
		s.left.Store(stormWorkers)
		for i := range 2 {
			f, rng := s.feeds[i], func(job uint64) *rand.Rand { return rand.New(rand.NewPCG(uint64(round), 2*job+uint64(i))) }
			posters.Go(func() { s.post(i) })
			group.Go(func() error { return s.work(ctx, f, rng(0)) })
			group.Go(func() error { return s.read(ctx, s.feeds[i+1], rng(1)) })
			group.Go(func() error { return s.edit(ctx, f, rng(2), i) })
		}
		posters.Wait()
		close(s.ops)
		require.NoError(t, group.Wait())

		got, err := walk(t.Context(), s.feeds[0], s.owner, 5)
		require.NoError(t, err)
		require.True(t, descends(got), errOrder)
		want := s.src.newest(s.owner)
		for _, id := range want {
			require.Contains(t, got, id, "lost")
		}
		for _, id := range got {
			if !slices.Contains(want, id) {
				require.Less(t, id, idAt(3, editedFrom), "edits cannot come back")
				require.False(t, stays(id), "invented")
				back++
			}
		}
	}
	t.Logf("%d removed IDs came back: evicted after the removal, then pushed late", back)
}

// IDs that are there during a whole walk are in it exactly once, while others
// come and go between them and the feed is filled, compacted and evicted.
func TestWalkWhileTheFeedChanges(t *testing.T) {
	t.Parallel()
	for _, years := range ages {
		t.Run(fmt.Sprintf("At%dYears", years), func(t *testing.T) {
			t.Parallel()
			ctx, rdb := t.Context(), testserver.Redis(t)
			var src table
			var stay []int64
			for i := 300; i > 0; i-- { // odd ones come and go
				stay = append(stay, idAt(years, 2*i))
			}
			src.insert(1, stay...)
			feeds := open(t, rdb, src.Source, feedcache.Config{Cap: 80})
			var over atomic.Bool
			var writers errgroup.Group
			for w := range 2 {
				writers.Go(func() error {
					rng := rand.New(rand.NewPCG(7, uint64(w)))
					for !over.Load() {
						id := idAt(years, 1+2*(2*rng.IntN(160)+w))
						src.insert(1, id)
						_, err := feeds.Push(ctx, one(1), id)
						if rng.IntN(2) == 0 {
							src.remove(1, id)
							_, removed := feeds.Remove(ctx, one(1), id)
							err = errors.Join(err, removed)
						}
						if rng.IntN(100) == 0 {
							err = errors.Join(err, feeds.Drop(ctx, 1))
						}
						if err != nil {
							return err
						}
					}
					return nil
				})
			}
			var walking error
			for i := 0; i < 20 && walking == nil; i++ {
				var got []int64
				got, walking = walk(ctx, feeds, 1, 1+3*i)
				if walking == nil && !descends(got) {
					walking = errOrder
				}
				kept := slices.DeleteFunc(got, func(id int64) bool { return (id-idAt(years, 0))%2 != 0 })
				if walking == nil && !slices.Equal(kept, stay) {
					walking = fmt.Errorf("%w: %d of %d", errLost, len(stay)-len(kept), len(stay))
				}
			}
			over.Store(true)
			require.NoError(t, errors.Join(walking, writers.Wait()))
		})
	}
}
