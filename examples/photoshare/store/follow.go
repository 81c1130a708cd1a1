package store

import (
	"cmp"
	"context"
	"fmt"
	"math"
	"slices"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/shardgram/shardgram/idgen"
	"github.com/shardgram/shardgram/shard"
)

// A Profile is a user with the figures on top of the profile page.
type Profile struct {
	User
	Photos, Followers, Following int
	Followed                     bool // by the viewer
}

// Profile returns a user's profile as viewer sees it; viewer 0 is nobody.
// Errors: ErrNotFound.
func (s *Store) Profile(ctx context.Context, viewer idgen.ID, name string) (Profile, error) {
	u, err := s.UserByName(ctx, name)
	if err != nil {
		return Profile{}, err
	}
	p := Profile{User: u}
	err = s.shards.ID(u.ID).QueryRow(ctx, `select
			(select count(*) from photo where author_id = $1),
			(select count(*) from follower where user_id = $1),
			(select count(*) from following where user_id = $1)`,
		u.ID).Scan(&p.Photos, &p.Followers, &p.Following)
	if err != nil {
		return Profile{}, notFound(err)
	}
	return p, s.markFollowed(ctx, viewer, &p)
}

// People returns the newest users but the viewer, for a page of whom to
// follow. It asks every shard.
func (s *Store) People(ctx context.Context, viewer idgen.ID, n int) ([]Profile, error) {
	people, err := shard.Collect(shard.Gather(ctx, s.shards, shard.Scatter[Profile]{
		SQL: `select id, name,
				(select count(*) from photo where author_id = account.id),
				(select count(*) from follower where user_id = account.id),
				(select count(*) from following where user_id = account.id)
			from account where id <> $1 order by id desc`,
		Args: []any{viewer},
		Scan: func(row pgx.CollectableRow) (p Profile, err error) {
			return p, row.Scan(&p.ID, &p.Name, &p.Photos, &p.Followers, &p.Following)
		},
		Compare: func(a, b Profile) int { return cmp.Compare(b.ID, a.ID) },
		Limit:   n,
	}))
	if err != nil {
		return nil, fmt.Errorf("store: people: %w", err)
	}
	marks := make([]*Profile, len(people))
	for i := range people {
		marks[i] = &people[i]
	}
	return people, s.markFollowed(ctx, viewer, marks...)
}

// markFollowed sets Followed by the row that the home feed goes by.
func (s *Store) markFollowed(ctx context.Context, viewer idgen.ID, profiles ...*Profile) error {
	if viewer == 0 {
		return nil
	}
	users := make([]idgen.ID, len(profiles))
	for i, p := range profiles {
		users[i] = p.ID
	}
	followed, err := s.followedAmong(ctx, viewer, users)
	for _, p := range profiles {
		p.Followed = slices.Contains(followed, p.ID)
	}
	return err
}

// Follow makes viewer follow target. Following twice is following once.
// Errors: ErrNotFound, *InvalidError for oneself.
func (s *Store) Follow(ctx context.Context, viewer, target idgen.ID) error {
	if viewer == target {
		return &InvalidError{"name", "You cannot follow yourself."}
	}
	if _, err := s.User(ctx, target); err != nil {
		return err
	}
	// The two rows lie on two shards, and the program may die between them.
	// The one that the home feed goes by is written last and deleted first:
	// half a follow pushes photos to a feed that does not show them, which
	// harms nobody, and the other half is made by the next press.
	var since time.Time
	var news int64
	err := s.changeFollows(ctx, viewer, func(tx pgx.Tx) (err error) {
		err = orNone(s.shards.ID(target).QueryRow(ctx, `with new as (
				insert into follower (user_id, follower_id) values ($1, $2) on conflict do nothing returning user_id, follower_id)
			insert into news (owner_id, actor_id, photo_id) select user_id, follower_id, 0 from new returning id`, target, viewer).Scan(&news))
		if err != nil {
			return err
		}
		since, err = follows(ctx, tx, viewer, target, "insert into following (user_id, followed_id) values ($1, $2) on conflict do nothing")
		return err
	})
	if err != nil {
		return fmt.Errorf("store: follow: %w", err)
	}
	s.renewFeed(ctx, viewer, target, since)
	s.tell(ctx, target, news)
	return nil
}

// Unfollow ends it. Errors: none for one who was not followed.
func (s *Store) Unfollow(ctx context.Context, viewer, target idgen.ID) error {
	var since time.Time
	err := s.changeFollows(ctx, viewer, func(tx pgx.Tx) (err error) {
		since, err = follows(ctx, tx, viewer, target, "delete from following where user_id = $1 and followed_id = $2")
		return err
	})
	if err != nil {
		return notFound(err)
	}
	var news int64
	err = s.changeFollows(ctx, viewer, func(tx pgx.Tx) error {
		var again bool
		if err := tx.QueryRow(ctx, "select exists (select from following where user_id = $1 and followed_id = $2)",
			viewer, target).Scan(&again); err != nil || again {
			return err
		}
		return orNone(s.shards.ID(target).QueryRow(ctx, `with gone as (
				delete from follower where user_id = $1 and follower_id = $2)
			delete from news where owner_id = $1 and actor_id = $2 and photo_id = 0 returning id`, target, viewer).Scan(&news))
	})
	if err != nil {
		return notFound(err)
	}
	s.renewFeed(ctx, viewer, target, since)
	s.untell(ctx, target, news)
	return nil
}

// changeFollows runs fn while nobody else changes whom viewer follows, in any
// process.
func (s *Store) changeFollows(ctx context.Context, viewer idgen.ID, fn func(tx pgx.Tx) error) error {
	// Each holds a connection while it waits for another one.
	select {
	case s.following <- struct{}{}:
		defer func() { <-s.following }()
	case <-ctx.Done():
		return ctx.Err()
	}
	return s.shards.ID(viewer).InTx(ctx, func(tx pgx.Tx) error {
		if _, err := tx.Exec(ctx, "select from account where id = $1 for no key update", viewer); err != nil {
			return err
		}
		return fn(tx)
	})
}

// follows writes whom viewer follows and, in the same transaction, that viewer's
// feed does not show it yet.
func follows(ctx context.Context, tx pgx.Tx, viewer, target idgen.ID, sql string) (since time.Time, err error) {
	if _, err := tx.Exec(ctx, sql, viewer, target); err != nil {
		return since, err
	}
	// A row that is there is of a change that failed, or is under way: it is not
	// for this one to delete, and the repair drops the feed.
	err = tx.QueryRow(ctx, `insert into stale_feed (user_id) values ($1)
		on conflict (user_id) do update set since = clock_timestamp()
		returning case when xmax = 0 then since else 'epoch' end`, viewer).Scan(&since)
	return since, err
}

// renewFeed puts target's photos into a home feed or takes them out, as owner
// follows target or not. What it cannot do it leaves to the repair.
func (s *Store) renewFeed(ctx context.Context, owner, target idgen.ID, since time.Time) {
	ctx, cancel := afterwards(ctx)
	defer cancel()
	err := s.feeds.Edit(ctx, int64(owner), func(ids []int64) ([]int64, error) {
		// One more than the feed keeps, or all: else there would be a gap below.
		photos, err := s.newestOf(ctx, int64(target), math.MaxInt64, len(ids)+homeCap+1)
		if err != nil {
			return nil, err
		}
		// Which of two presses came last is known only here.
		followed, err := s.followedAmong(ctx, owner, []idgen.ID{target})
		if len(followed) > 0 {
			return append(ids, photos...), err
		}
		return slices.DeleteFunc(ids, func(id int64) bool { return slices.Contains(photos, id) }), err
	})
	if err == nil {
		err = s.feedRenewed(ctx, owner, since)
	}
	if err != nil {
		s.log.WarnContext(ctx, "a feed is left to the repair", "owner", owner, "err", err)
	}
}

// feedRenewed notes that a feed shows whom its owner followed at a time.
func (s *Store) feedRenewed(ctx context.Context, owner idgen.ID, since time.Time) error {
	_, err := s.shards.ID(owner).Exec(ctx, "delete from stale_feed where user_id = $1 and since = $2", owner, since)
	return err
}

// followedAmong returns which of some users viewer follows.
func (s *Store) followedAmong(ctx context.Context, viewer idgen.ID, users []idgen.ID) ([]idgen.ID, error) {
	followed, err := collect(ctx, s.shards.ID(viewer), pgx.RowTo[idgen.ID],
		"select followed_id from following where user_id = $1 and followed_id = any($2)", viewer, users)
	if err != nil {
		return nil, notFound(err)
	}
	return followed, nil
}
