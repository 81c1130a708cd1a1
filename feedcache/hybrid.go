package feedcache

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
)

// A Route is the way an author's IDs take to the followers.
type Route int

const (
	// RoutePush puts them into each follower's feed when they are made.
	RoutePush Route = iota

	// RouteBoth does both, on the way from one to the other.
	RouteBoth

	// RoutePull puts them into the author's outbox only, from where each
	// follower's page takes them.
	RoutePull
)

// String returns "push", "both" or "pull".
func (r Route) String() string {
	if r < RoutePush || r > RoutePull {
		return fmt.Sprintf("Route(%d)", int(r))
	}
	return [...]string{"push", "both", "pull"}[r]
}

// Routes is where the application keeps the route of each author whose route is
// or was not [RoutePush], with the lowest ID that was not pushed:
//
//	create table route (author bigint primary key, route int not null, since bigint)
//
// It must be as durable as the posts.
type Routes interface {
	// Pulled returns the authors the owner follows whose route is not
	// RoutePush; as in [Followers], the owner may be one of them. Each page asks,
	// so it may answer from a copy, which is at most FanoutConfig.RouteAge old.
	Pulled(ctx context.Context, owner int64) ([]int64, error)

	// Skip reports whether the author's route is RoutePull, and in the same
	// step lowers what Set returns to id:
	//
	//	update route set since = least(since, $2) where author = $1 and route = 2
	Skip(ctx context.Context, author, id int64) (bool, error)

	// Set stores the route and returns the lowest ID that was skipped since the
	// author had RoutePush, 0 if none was. RoutePush forgets that ID.
	Set(ctx context.Context, author int64, r Route) (since int64, err error)
}

// A Hybrid reads feeds together with the outboxes of those authors whose IDs
// are not pushed, since they have too many followers. It is safe for concurrent
// use.
//
// A single follower can pull an author whom others get pushed. [Followers] then
// leave this follower out, and Pulled has the author. To begin with that, change
// Pulled first. To end it, change Followers first, then add the author's IDs by
// [Feeds.Edit], then change Pulled.
type Hybrid struct {
	feeds, outboxes *Feeds
	routes          Routes
}

// NewHybrid returns a reader of feeds and of outboxes, which are feeds whose
// owners are the authors, under another prefix. The Source of feeds knows all
// of an owner's feed, pushed or pulled, and is asked below the greatest floor of
// what is merged.
func NewHybrid(feeds, outboxes *Feeds, routes Routes) (*Hybrid, error) {
	switch {
	case feeds == nil || outboxes == nil:
		return nil, errors.New("feedcache: the feeds or outboxes are nil")
	case feeds.cfg.Prefix == outboxes.cfg.Prefix:
		return nil, fmt.Errorf("feedcache: feeds and outboxes have the prefix %q: want two", feeds.cfg.Prefix)
	case routes == nil:
		return nil, errors.New("feedcache: the Routes are nil")
	}
	return &Hybrid{feeds, outboxes, routes}, nil
}

// Page is [Feeds.Page] of the merged feed. The outboxes are read in one further
// round trip at the same time, 2 KB for each pulled author; one that is cold
// costs a call of the outboxes' Source.
func (h *Hybrid) Page(ctx context.Context, owner, before int64, n int) (Page, error) {
	return h.PageKeep(ctx, owner, before, n, nil)
}

// PageKeep is [Feeds.PageKeep] of the merged feed.
func (h *Hybrid) PageKeep(ctx context.Context, owner, before int64, n int, keep Keep) (Page, error) {
	r := reader{f: h.feeds, owner: owner, load: h.loader(ctx, owner)}
	return r.page(ctx, before, n, keep)
}

// Unseen is [Feeds.Unseen] of the merged feed. The mark is that of the feed.
func (h *Hybrid) Unseen(ctx context.Context, owner int64) (Unseen, error) {
	return h.feeds.unseen(ctx, owner, h.loader(ctx, owner))
}

// loader returns the function that loads the merged view. It asks for the
// routes first, and once: an author who stops being pulled has his IDs in the
// feeds before he is missing from the answer.
func (h *Hybrid) loader(ctx context.Context, owner int64) func(whole bool) (view, error) {
	var authors []int64
	asked := false
	return func(whole bool) (view, error) {
		if !asked {
			var err error
			if authors, err = h.routes.Pulled(ctx, owner); err != nil {
				return view{}, fmt.Errorf("pulled authors: %w", err)
			}
			if slices.ContainsFunc(authors, func(a int64) bool { return !valid(a) }) {
				return view{}, errors.New("pulled authors: one is out of range")
			}
			slices.Sort(authors)
			authors, asked = slices.Compact(authors), true
		}
		if len(authors) == 0 {
			return h.feeds.feed(ctx, owner, whole)
		}
		var (
			own     view
			pulled  []view
			errs    [2]error
			loading sync.WaitGroup
		)
		loading.Go(func() { own, errs[0] = h.feeds.feed(ctx, owner, whole) })
		loading.Go(func() { pulled, errs[1] = h.outboxes.feedsOf(ctx, authors, whole) })
		loading.Wait()
		if err := errors.Join(errs[:]...); err != nil {
			return view{}, err
		}
		return own.merge(pulled), nil
	}
}

// feedsOf is feed of several owners at once.
func (f *Feeds) feedsOf(ctx context.Context, owners []int64, whole bool) ([]view, error) {
	var (
		views   = make([]view, len(owners))
		errs    = make([]error, len(owners))
		filling sync.WaitGroup
	)
	for i, g := range f.glance(ctx, owners, whole) {
		settle := func() {
			if views[i], errs[i] = f.settle(ctx, owners[i], whole, g); errs[i] != nil {
				errs[i] = fmt.Errorf("%s: %w", f.key(owners[i]), errs[i])
			}
		}
		if g.is == warm || g.is == away {
			settle()
		} else {
			filling.Go(settle)
		}
	}
	filling.Wait()
	return views, errors.Join(errs...)
}

// merge adds what others know, down to where all of them are complete. An ID
// that one of them knows as removed is removed.
func (v view) merge(others []view) view {
	for _, o := range others {
		v.bottom = max(v.bottom, o.bottom)
		v.whole = v.whole && o.whole
	}
	merged := slices.Clone(v.entries)
	for _, o := range others {
		merged = append(merged, o.entries...)
	}
	merged = slices.DeleteFunc(merged, func(e entry) bool { return e.id() < v.bottom })
	slices.Sort(merged)
	v.entries = lastPerID(merged)
	return v
}
