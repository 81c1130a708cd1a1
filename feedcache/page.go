package feedcache

import (
	"context"
	"fmt"
	"slices"
)

// MaxPage is the largest number of IDs in a page.
const MaxPage = 1000

// maxExamined is how many IDs a page may look at that Keep drops.
const maxExamined = 10_000

// Page is a part of a feed.
type Page struct {
	// IDs is newest first.
	IDs []int64

	// Next is the cursor of the following page, or 0 at the end of the feed.
	// Where a page ends exactly at the floor, what follows is not known yet,
	// and the following page can turn out empty.
	Next int64
}

// Keep returns those of the IDs that the reader may see, in any order: not
// those of deleted objects, nor what blocks and mutes hide. It may load the
// objects on the way, so that the caller has them afterwards.
type Keep func(ctx context.Context, ids []int64) ([]int64, error)

// Page returns the newest n IDs below before of the owner's feed; 0 starts at
// the newest. A cold feed is filled on the way. Page fails only if the Source
// fails, ctx ends, or an argument is an [ErrInvalid]; not because of Redis.
func (f *Feeds) Page(ctx context.Context, owner, before int64, n int) (Page, error) {
	return f.PageKeep(ctx, owner, before, n, nil)
}

// PageKeep is [Feeds.Page] of the IDs that keep lets through, and goes on down
// the feed until it has n of them. Having looked at 10,000 IDs it returns those
// it has, maybe none; Next is then not 0. An error of keep fails the page. A nil
// keep keeps all.
func (f *Feeds) PageKeep(ctx context.Context, owner, before int64, n int, keep Keep) (Page, error) {
	r := reader{f: f, owner: owner, load: func(whole bool) (view, error) { return f.feed(ctx, owner, whole) }}
	return r.page(ctx, before, n, keep)
}

// A reader makes one page. The Source of f is the truth of what load returns.
type reader struct {
	f     *Feeds
	owner int64
	load  func(whole bool) (view, error)
	view  view
}

func (r *reader) page(ctx context.Context, before int64, n int, keep Keep) (Page, error) {
	page, err := r.try(ctx, before, n, keep)
	if err != nil {
		return Page{}, fmt.Errorf("feedcache: page %s: %w", r.f.key(r.owner), err)
	}
	return page, nil
}

func (r *reader) try(ctx context.Context, before int64, n int, keep Keep) (page Page, err error) {
	switch {
	case !valid(r.owner):
		return page, fmt.Errorf("%w: owner", ErrInvalid)
	case n < 1 || n > MaxPage:
		return page, fmt.Errorf("%w: page size %d, want 1 to %d", ErrInvalid, n, MaxPage)
	case before < 0:
		return page, fmt.Errorf("%w: negative cursor", ErrInvalid)
	}
	// The newest part of a feed is enough for a first page of a usual size.
	if r.view, err = r.load(before != 0 || n > r.f.headIDs()/2); err != nil {
		return page, err
	}
	if page.Next = before; before == 0 {
		page.Next = top
	}
	for ask, examined := n, 0; ; ask = min(2*ask, MaxPage) {
		part, err := r.below(ctx, page.Next, ask)
		if err != nil {
			return page, err
		}
		kept := part.IDs
		if keep != nil && len(part.IDs) > 0 {
			if kept, err = filter(ctx, part.IDs, keep); err != nil {
				return page, err
			}
		}
		page.IDs, page.Next = append(page.IDs, kept...), part.Next
		if len(page.IDs) > n {
			page.IDs = page.IDs[:n]
			page.Next = page.IDs[n-1]
		}
		if len(page.IDs) == n || page.Next == 0 {
			return page, nil
		}
		if examined += len(part.IDs); examined >= maxExamined {
			r.f.note(Event{Kind: ShortPage, Owner: r.owner, N: len(page.IDs)})
			return page, nil
		}
	}
}

// filter keeps the order of ids.
func filter(ctx context.Context, ids []int64, keep Keep) ([]int64, error) {
	kept, err := keep(ctx, slices.Clone(ids))
	if err != nil {
		return nil, fmt.Errorf("keep: %w", err)
	}
	seen := make(map[int64]bool, len(kept))
	for _, id := range kept {
		seen[id] = true
	}
	return slices.DeleteFunc(ids, func(id int64) bool { return !seen[id] }), nil
}

// below returns a page of what is there, whoever may see it.
func (r *reader) below(ctx context.Context, before int64, n int) (Page, error) {
	ids, more := r.view.below(before, n)
	if !more && len(ids) < n && !r.view.whole && r.view.bottom != top {
		var err error
		if r.view, err = r.load(true); err != nil {
			return Page{}, err
		}
		ids, more = r.view.below(before, n)
	}
	switch {
	case more || len(ids) == n && r.view.bottom > 0:
		return Page{IDs: ids, Next: ids[n-1]}, nil
	case r.view.bottom == 0:
		return Page{IDs: ids}, nil
	}
	// Continue at the bottom, not at the last ID: the view knows all that is
	// left between the two, which is nothing.
	n -= len(ids)
	leave, err := r.f.enter(ctx)
	if err != nil {
		return Page{}, err
	}
	defer leave()
	rest, err := r.f.source(ctx, r.owner, min(before, r.view.bottom), n+1)
	if err != nil {
		return Page{}, err
	}
	if len(rest) <= n {
		return Page{IDs: append(ids, rest...)}, nil
	}
	return Page{IDs: append(ids, rest[:n]...), Next: rest[n-1]}, nil
}
