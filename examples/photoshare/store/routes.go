package store

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/shardgram/shardgram/feedcache"
	"github.com/shardgram/shardgram/idgen"
	"github.com/shardgram/shardgram/shard"
)

// routeAge is how long the list of pulled authors is good for, and as long again
// while it is read.
const routeAge = 2 * time.Second

// routes are the table celebrity: the authors whose photos are, or once were,
// not pushed to their followers. It implements feedcache.Routes.
type routes struct {
	*Store
	mu      sync.Mutex
	pulled  []idgen.ID
	read    time.Time // zero before the first time
	reading bool
}

var _ feedcache.Routes = (*routes)(nil)

// Pulled returns those of the pulled authors whom owner follows. There are few
// of them, so every process knows them all.
func (r *routes) Pulled(ctx context.Context, owner int64) ([]int64, error) {
	all, err := r.all(ctx)
	if err != nil || len(all) == 0 {
		return nil, err
	}
	followed, err := r.followedAmong(ctx, idgen.ID(owner), all)
	return fromIDs(followed), err
}

func (r *routes) all(ctx context.Context) ([]idgen.ID, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	// One reads the list anew. A node that hangs must not hold the others up,
	// for whom the old one is good as long.
	if age := time.Since(r.read); age < routeAge || r.reading && age < 2*routeAge {
		return r.pulled, nil
	}
	begin := time.Now()
	r.reading = true
	r.mu.Unlock()
	asking, cancel := context.WithTimeout(ctx, routeAge)
	pulled, err := shard.Collect(shard.Gather(asking, r.shards, shard.Scatter[idgen.ID]{
		SQL: "select author_id from celebrity where route <> $1", Args: []any{feedcache.RoutePush},
		Scan: pgx.RowTo[idgen.ID], Partial: true,
	}))
	cancel()
	r.mu.Lock()
	r.reading = false
	if err != nil {
		if r.read.IsZero() || ctx.Err() != nil {
			return nil, fmt.Errorf("store: routes: %w", err)
		}
		// The routes of a node that is down do not change. To pull an author in
		// vain is no harm.
		pulled = append(pulled, r.pulled...)
		slices.Sort(pulled)
		pulled, begin = slices.Compact(pulled), time.Now()
	}
	r.pulled, r.read = pulled, begin
	return pulled, nil
}

// Skip implements feedcache.Routes.
func (r *routes) Skip(ctx context.Context, author, id int64) (bool, error) {
	tag, err := r.shards.ID(idgen.ID(author)).Exec(ctx,
		"update celebrity set since = least(since, $2) where author_id = $1 and route = $3", author, id, feedcache.RoutePull)
	return tag.RowsAffected() > 0, err
}

// Set implements feedcache.Routes.
func (r *routes) Set(ctx context.Context, author int64, to feedcache.Route) (since int64, err error) {
	err = r.shards.ID(idgen.ID(author)).QueryRow(ctx, `insert into celebrity (author_id, route) values ($1, $2)
		on conflict (author_id) do update set route = $2, since = case when $2 = $3 then null else celebrity.since end
		returning coalesce(since, 0)`, author, to, feedcache.RoutePush).Scan(&since)
	return since, err
}

// switchRoutes changes how the photos of those authors of a shard travel who have
// gained or lost many followers.
func (s *Store) switchRoutes(ctx context.Context, sh shard.Shard) error {
	type author struct {
		ID        idgen.ID
		Followers int64
		Route     feedcache.Route
	}
	// Who was pulled goes on to be with 4/5 of the followers: else one more and
	// one fewer of them would take a switch each.
	authors, err := collect(ctx, sh, pgx.RowToStructByPos[author], `
		select author_id, coalesce(followers, 0), coalesce(route, $1)
		from celebrity full join (select user_id as author_id, count(*) as followers
			from follower group by user_id having count(*) >= $2) f using (author_id)
		where followers is not null or route <> $1`, feedcache.RoutePush, s.policy.MaxFollowers*4/5)
	if err != nil {
		return err
	}
	var errs []error
	for _, a := range authors {
		to := feedcache.RoutePush
		if a.Route != feedcache.RoutePush && a.Followers > 0 || s.policy.Pull(feedcache.Author{Followers: a.Followers}, feedcache.Viewer{}) {
			to = feedcache.RoutePull
		}
		if to == a.Route {
			continue
		}
		// One process does it.
		err := sh.InTx(ctx, func(tx pgx.Tx) error {
			var mine bool
			if err := tx.QueryRow(ctx, "select pg_try_advisory_xact_lock($1)", a.ID).Scan(&mine); err != nil || !mine {
				return err
			}
			return s.fanout.Switch(ctx, int64(a.ID), to)
		})
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}
