package feedcache

import (
	"context"
	"errors"
	"fmt"
	"slices"
)

// Switch takes an author from one route to another, [RoutePush] or
// [RoutePull], so that no page loses an ID or shows one twice: there is a time
// in between in which both are done. Towards RoutePull it waits for RouteAge,
// until every reader knows. Towards RoutePush it delivers all that was skipped,
// 1,000 IDs at a time to each follower, within the call; an error or a crash
// starts that anew. It is safe to repeat, also in the other direction. One
// Switch of an author may run at a time.
func (o *Fanout) Switch(ctx context.Context, author int64, to Route) error {
	if err := o.change(ctx, author, to); err != nil {
		return fmt.Errorf("feedcache: switch author %d to %v: %w", author, to, err)
	}
	return nil
}

func (o *Fanout) change(ctx context.Context, author int64, to Route) error {
	switch {
	case o.cfg.Routes == nil:
		return errors.New("FanoutConfig has no Routes")
	case !valid(author) || to != RoutePush && to != RoutePull:
		return fmt.Errorf("%w: author, or a route to stay on", ErrInvalid)
	}
	since, err := o.cfg.Routes.Set(ctx, author, RouteBoth)
	if err != nil {
		return fmt.Errorf("route: %w", err)
	}
	switch {
	case to == RoutePull:
		if !sleep(ctx, o.cfg.RouteAge) {
			return ctx.Err()
		}
	case since > 0:
		if err := o.catchUp(ctx, author, since); err != nil {
			return err
		}
	}
	if _, err = o.cfg.Routes.Set(ctx, author, to); err != nil {
		return fmt.Errorf("route: %w", err)
	}
	return nil
}

// catchUp pushes what the author's outbox has from an ID on.
func (o *Fanout) catchUp(ctx context.Context, author, since int64) error {
	for before, more := int64(0), true; more; {
		page, err := o.cfg.Outboxes.Page(ctx, author, before, MaxPage)
		if err != nil {
			return err
		}
		ids := slices.DeleteFunc(page.IDs, func(id int64) bool { return id < since })
		if len(ids) > 0 {
			if _, err := o.toFollowers(ctx, Job{Author: author, IDs: ids, Until: top - 1}, nil); err != nil {
				return err
			}
		}
		before, more = page.Next, page.Next > since
	}
	return nil
}
