package feedcache

import (
	"context"
	"slices"

	"github.com/redis/go-redis/v9"
)

// compactWindow is how many feeds are compacted in one round trip: fewer than are
// pushed to, as they travel in both directions.
const compactWindow = 64

// slack is the number of ops a feed may have before it is compacted. A page
// pays for each of them, a push for each compaction. With 64 a page takes half a
// microsecond less, and a tenth fewer deliveries are made (BenchmarkByTurns).
func (f *Feeds) slack() int { return max(4, min(f.cfg.Cap/8, 100)) }

// headIDs is the number of newest IDs in the head of a feed after a fill. Up
// to three times as many are in it before the whole feed is written anew.
func (f *Feeds) headIDs() int { return max(4, f.cfg.Cap/8) }

// compact rewrites feeds with many ops: their heads, or all of them if a head
// is long. The ops have landed, so nothing is lost if it fails: a later push to
// the feed tries again. It keeps the TTL, since pushes must not keep the feed of
// an absent owner alive.
func (f *Feeds) compact(ctx context.Context, owners []int64) {
	for owners := range slices.Chunk(owners, compactWindow) {
		var swaps []call
		deep := f.fold(ctx, owners, false, &swaps)
		f.fold(ctx, deep, true, &swaps)
		for _, cmd := range f.run(ctx, swapScript, swaps) {
			if n, _ := cmd.Int(); n == 1 {
				f.note(Event{Kind: Compaction, N: 1})
			}
		}
	}
}

// fold adds the swaps that compact the feeds of the owners, and returns those
// of whom it has to see the whole feed.
func (f *Feeds) fold(ctx context.Context, owners []int64, whole bool, swaps *[]call) (deep []int64) {
	if len(owners) == 0 {
		return nil
	}
	start := int64(1)
	if whole {
		start = 0
	}
	pipe := f.rdb.Pipeline()
	lists := make([]*redis.StringSliceCmd, len(owners))
	for i, owner := range owners {
		lists[i] = pipe.LRange(ctx, f.key(owner), start, -1)
	}
	exec(ctx, pipe)
	for i, list := range lists {
		v, ok := parse(list.Val(), whole)
		switch {
		case !ok || v.state() != ready:
		case !v.whole && (v.deep || len(v.entries) > 3*f.headIDs()):
			deep = append(deep, owners[i])
		default:
			*swaps = append(*swaps, f.swap(f.key(owners[i]), f.fit(v), 0))
		}
	}
	return deep
}

// fit trims a view that holds all of a feed.
func (f *Feeds) fit(v view) view {
	if v.whole {
		return v.trim(f.cfg.Cap)
	}
	return v
}
