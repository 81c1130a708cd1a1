package feedcache

import (
	"context"
	"encoding/binary"
	"fmt"
	"slices"
)

// Unseen is how much of a feed its owner has not seen.
type Unseen struct {
	// N is the number of IDs above the mark.
	N int

	// More says that there may be others, below what the cache knows: "800+".
	More bool

	// Mark is the ID up to which the owner has read, 0 if none.
	Mark int64
}

// Seen moves the owner's mark up to an ID, such as the first one of a page that
// was shown. It never moves down, so order and repetition do not matter. The
// mark lives and goes with the cached feed: store it first where [Config].Mark
// reads it. Seen is one round trip; its errors are those of [Feeds.Push].
func (f *Feeds) Seen(ctx context.Context, owner, upTo int64) error {
	if !valid(upTo) {
		return fmt.Errorf("feedcache: seen %s: %w: ID", f.key(owner), ErrInvalid)
	}
	op := string(binary.BigEndian.AppendUint64([]byte{seenOp}, uint64(upTo)))
	_, err := f.append(ctx, opSeen, slices.Values([]int64{owner}), []any{op})
	return err
}

// Unseen counts what is above the owner's mark, whether a [Keep] would let it
// through or not. It costs what a first page does, and what a page further down
// does if the mark is below the newest 100 IDs (Cap/8). Without Redis it counts
// what the Source has, up to [Config].Cap.
func (f *Feeds) Unseen(ctx context.Context, owner int64) (Unseen, error) {
	return f.unseen(ctx, owner, func(whole bool) (view, error) { return f.feed(ctx, owner, whole) })
}

func (f *Feeds) unseen(ctx context.Context, owner int64, load func(whole bool) (view, error)) (Unseen, error) {
	if !valid(owner) {
		return Unseen{}, fmt.Errorf("feedcache: unseen %s: %w: owner", f.key(owner), ErrInvalid)
	}
	v, err := load(false)
	if err == nil && !v.whole && v.seen < v.bottom && v.bottom != top {
		v, err = load(true)
	}
	if err == nil && v.bottom == top {
		var leave func()
		if leave, err = f.enter(ctx); err == nil {
			v, err = f.rebuilt(ctx, owner)
			leave()
		}
	}
	if err != nil {
		return Unseen{}, fmt.Errorf("feedcache: unseen %s: %w", f.key(owner), err)
	}
	// The owner has seen the mark itself: only below it may be something else.
	return Unseen{N: v.unseen(), More: v.seen+1 < v.bottom, Mark: v.seen}, nil
}
