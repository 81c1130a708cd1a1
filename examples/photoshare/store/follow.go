package store

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"sync"
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
	defer s.follows.lock(viewer)()
	if _, err := s.shards.ID(target).Exec(ctx,
		"insert into follower (user_id, follower_id) values ($1, $2) on conflict do nothing", target, viewer); err != nil {
		return fmt.Errorf("store: follow: %w", err)
	}
	since, err := s.changeFollowing(ctx, viewer, target,
		"insert into following (user_id, followed_id) values ($1, $2) on conflict do nothing")
	if err != nil {
		return fmt.Errorf("store: follow: %w", err)
	}
	s.renewFeed(ctx, viewer, since)
	return nil
}

// Unfollow ends it. Errors: none for one who was not followed.
func (s *Store) Unfollow(ctx context.Context, viewer, target idgen.ID) error {
	defer s.follows.lock(viewer)()
	since, err := s.changeFollowing(ctx, viewer, target,
		"delete from following where user_id = $1 and followed_id = $2")
	if err != nil {
		return notFound(err)
	}
	if _, err := s.shards.ID(target).Exec(ctx,
		"delete from follower where user_id = $1 and follower_id = $2", target, viewer); err != nil {
		return notFound(err)
	}
	s.renewFeed(ctx, viewer, since)
	return nil
}

// changeFollowing writes whom viewer follows and, in the same transaction, that
// viewer's feed does not show it yet.
func (s *Store) changeFollowing(ctx context.Context, viewer, target idgen.ID, sql string) (since time.Time, err error) {
	err = s.shards.ID(viewer).InTx(ctx, func(tx pgx.Tx) error {
		if _, err := tx.Exec(ctx, sql, viewer, target); err != nil {
			return err
		}
		return tx.QueryRow(ctx, `insert into stale_feed (user_id) values ($1)
			on conflict (user_id) do update set since = clock_timestamp() returning since`, viewer).Scan(&since)
	})
	return since, err
}

// renewFeed drops a home feed, so that the next look at it builds it anew. What
// it cannot do it leaves to the repair.
func (s *Store) renewFeed(ctx context.Context, owner idgen.ID, since time.Time) {
	ctx, cancel := afterwards(ctx)
	defer cancel()
	err := s.feeds.Drop(ctx, int64(owner))
	if err == nil {
		_, err = s.shards.ID(owner).Exec(ctx, "delete from stale_feed where user_id = $1 and since = $2", owner, since)
	}
	if err != nil {
		s.log.WarnContext(ctx, "a feed is left to the repair", "owner", owner, "err", err)
	}
}

// locks keep two presses of one person from crossing each other on the way to
// two shards.
type locks [64]sync.Mutex

func (l *locks) lock(id idgen.ID) (unlock func()) {
	m := &l[uint64(id)%uint64(len(l))]
	m.Lock()
	return m.Unlock
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
