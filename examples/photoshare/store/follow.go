package store

import (
	"context"
	"fmt"
	"slices"
	"sync"

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
			(select count(*) from following where user_id = $1),
			exists (select from follower where user_id = $1 and follower_id = $2)`,
		u.ID, viewer).Scan(&p.Photos, &p.Followers, &p.Following, &p.Followed)
	if err != nil {
		return Profile{}, notFound(err)
	}
	return p, nil
}

// People returns the newest users but the viewer, for a page of whom to
// follow. It asks every shard.
func (s *Store) People(ctx context.Context, viewer idgen.ID, n int) ([]Profile, error) {
	var mu sync.Mutex
	var people []Profile
	err := s.shards.Each(ctx, s.shards.Shards(), func(ctx context.Context, sh shard.Shard) error {
		rows, err := sh.Query(ctx, `select id, name,
				(select count(*) from photo where author_id = account.id),
				(select count(*) from follower where user_id = account.id),
				(select count(*) from following where user_id = account.id),
				exists (select from follower where user_id = account.id and follower_id = $1)
			from account where id <> $1 order by id desc limit $2`, viewer, n)
		if err != nil {
			return err
		}
		found, err := pgx.CollectRows(rows, func(row pgx.CollectableRow) (p Profile, err error) {
			return p, row.Scan(&p.ID, &p.Name, &p.Photos, &p.Followers, &p.Following, &p.Followed)
		})
		mu.Lock()
		defer mu.Unlock()
		people = append(people, found...)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("store: people: %w", err)
	}
	slices.SortFunc(people, func(a, b Profile) int { return int(min(max(b.ID-a.ID, -1), 1)) })
	return people[:min(n, len(people))], nil
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
	if _, err := s.shards.ID(target).Exec(ctx,
		"insert into follower (user_id, follower_id) values ($1, $2) on conflict do nothing", target, viewer); err != nil {
		return fmt.Errorf("store: follow: %w", err)
	}
	if _, err := s.shards.ID(viewer).Exec(ctx,
		"insert into following (user_id, followed_id) values ($1, $2) on conflict do nothing", viewer, target); err != nil {
		return fmt.Errorf("store: follow: %w", err)
	}
	return s.dropFeed(ctx, viewer)
}

// Unfollow ends it. Errors: none for one who was not followed.
func (s *Store) Unfollow(ctx context.Context, viewer, target idgen.ID) error {
	if _, err := s.shards.ID(viewer).Exec(ctx,
		"delete from following where user_id = $1 and followed_id = $2", viewer, target); err != nil {
		return notFound(err)
	}
	if _, err := s.shards.ID(target).Exec(ctx,
		"delete from follower where user_id = $1 and follower_id = $2", target, viewer); err != nil {
		return notFound(err)
	}
	return s.dropFeed(ctx, viewer)
}

// dropFeed makes the next look at a home feed build it anew.
func (s *Store) dropFeed(ctx context.Context, owner idgen.ID) error {
	if err := s.feeds.Drop(ctx, int64(owner)); err != nil {
		return fmt.Errorf("store: the follow is stored, but the feed is not new: %w", err)
	}
	return nil
}

// followedAmong returns which of some users viewer follows.
func (s *Store) followedAmong(ctx context.Context, viewer idgen.ID, users []idgen.ID) ([]idgen.ID, error) {
	rows, err := s.shards.ID(viewer).Query(ctx,
		"select followed_id from following where user_id = $1 and followed_id = any($2)", viewer, users)
	if err != nil {
		return nil, notFound(err)
	}
	return pgx.CollectRows(rows, pgx.RowTo[idgen.ID])
}
