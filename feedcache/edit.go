package feedcache

import (
	"context"
	"fmt"
	"slices"
)

// maxEdits is how often an edit is tried while others change the feed. Pushes
// do not count, so more than one try is rare.
const maxEdits = 8

// Edit changes the owner's feed at once: for an unfollow, a mute, or to add the
// IDs of somebody who is followed from now on. The store of record comes first,
// then Edit. It calls edit with the IDs of the cached feed, newest first. What
// edit leaves out is removed, also for pushes that arrive later, and what it
// adds is added, even if it was removed before; order does not matter. IDs
// pushed meanwhile stay. IDs below the floor are ignored: the [Source] has them.
// For an author who is pulled it does the same: a [Hybrid] shows no ID that is
// removed in the feed.
//
// So edit must read what it adds after it was called. And it must add the newest
// Cap+1 IDs of the one who is followed, or all if there are fewer: so many move
// the floor above those that are missing, where fewer would leave a hole. With a
// Cap of 800:
//
//	err := feeds.Edit(ctx, owner, func(ids []int64) ([]int64, error) {
//		newest, err := photosOf(ctx, followed, 800+1)
//		return append(ids, newest...), err
//	})
//
// Edit is two round trips. It calls edit again when another change of the feed
// came in between, and after eight such times drops the feed. A cold feed has
// nothing to edit, and one that is being filled becomes cold. Edit is safe to
// repeat; its errors are those of edit, and an [*UnreachedError].
func (f *Feeds) Edit(ctx context.Context, owner int64, edit func(ids []int64) ([]int64, error)) error {
	if err := f.edit(ctx, owner, edit); err != nil {
		return fmt.Errorf("feedcache: edit %s: %w", f.key(owner), err)
	}
	return nil
}

func (f *Feeds) edit(ctx context.Context, owner int64, edit func([]int64) ([]int64, error)) error {
	if !valid(owner) {
		return fmt.Errorf("%w: owner", ErrInvalid)
	}
	key := f.key(owner)
	for range maxEdits {
		list, err := f.rdb.LRange(ctx, key, 0, -1).Result()
		v, ok := parse(list, true)
		switch {
		case isFailure(err):
			return &UnreachedError{Owners: []int64{owner}, Err: because(ctx, err)}
		case !ok:
			return nil // cold, or not a feed
		case v.state() == building:
			return f.cool(ctx, owner)
		}
		ids, _ := v.below(top, len(v.entries))
		edited, err := edit(ids)
		if err != nil {
			return err
		}
		if i := slices.IndexFunc(edited, func(id int64) bool { return !valid(id) }); i >= 0 {
			return fmt.Errorf("%w: ID at index %d of what edit returned", ErrInvalid, i)
		}
		v = v.edited(edited).trim(f.cfg.Cap)
		done := f.run(ctx, swapScript, []call{f.swap(key, v, 0)})[0]
		n, err := done.Int()
		switch {
		case err != nil:
			return &UnreachedError{Owners: []int64{owner}, Err: because(ctx, err)}
		case n == 1:
			ids, _ = v.below(top, len(v.entries))
			f.note(Event{Kind: Edited, Owner: owner, N: len(ids)})
			return nil
		}
	}
	return f.cool(ctx, owner)
}

// cool is what an edit does that cannot be done in the feed.
func (f *Feeds) cool(ctx context.Context, owner int64) error {
	if err := f.dropped(ctx, []int64{owner}); err != nil {
		return err
	}
	f.note(Event{Kind: Edited, Owner: owner})
	return nil
}

// edited returns the view with the IDs and no others, as far as it goes.
func (v view) edited(ids []int64) view {
	kept := make([]entry, 0, len(ids))
	for _, id := range ids {
		if id >= v.floor {
			kept = append(kept, entry(id)<<1)
		}
	}
	slices.Sort(kept)
	kept = slices.Compact(kept)
	entries := slices.Clone(kept)
	for _, e := range v.entries {
		if _, ok := slices.BinarySearch(kept, e&^1); !ok {
			entries = append(entries, e|1)
		}
	}
	slices.Sort(entries)
	v.entries = entries
	return v
}
