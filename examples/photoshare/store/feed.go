package store

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"

	"github.com/jackc/pgx/v5"

	"github.com/shardgram/shardgram/feedcache"
	"github.com/shardgram/shardgram/hashkv"
	"github.com/shardgram/shardgram/idgen"
	"github.com/shardgram/shardgram/shard"
)

// homeCap is how many photos of a home feed Redis keeps.
const homeCap = 800

// Home returns viewer's home feed below before; before 0 is the top. A page is
// shorter than n only at the end, or below thousands of photos that viewer may
// not see.
func (s *Store) Home(ctx context.Context, viewer, before idgen.ID, n int) (Page[Post], error) {
	page, err := s.home.PageKeep(ctx, int64(viewer), int64(before), n, func(ctx context.Context, ids []int64) ([]int64, error) {
		return s.visible(ctx, viewer, ids)
	})
	if err != nil {
		return Page[Post]{}, fmt.Errorf("store: home: %w", err)
	}
	posts, err := s.posts(ctx, viewer, toIDs(page.IDs))
	return Page[Post]{posts, idgen.ID(page.Next)}, err
}

// visible drops the photos whose authors viewer does not follow: a fan-out that
// began before an unfollow may push a photo after it.
func (s *Store) visible(ctx context.Context, viewer idgen.ID, ids []int64) ([]int64, error) {
	authors, err := s.authors(ctx, ids)
	if err != nil {
		return nil, err
	}
	followed, err := s.followedAmong(ctx, viewer, slices.Collect(maps.Values(authors)))
	if err != nil {
		return nil, err
	}
	return slices.DeleteFunc(ids, func(id int64) bool {
		author, ok := authors[id]
		return !ok || author != viewer && !slices.Contains(followed, author)
	}), nil
}

// authors returns whose the photos are, from the map in Redis. What the map
// lacks it gets from the photos themselves.
func (s *Store) authors(ctx context.Context, ids []int64) (map[int64]idgen.ID, error) {
	known, err := s.owners.GetMulti(ctx, ids...)
	if err != nil {
		s.log.WarnContext(ctx, "the map of authors cannot be read", "err", err)
	}
	authors := make(map[int64]idgen.ID, len(ids))
	var missing []idgen.ID
	for _, id := range ids {
		if author, ok := known[id]; ok {
			authors[id] = idgen.ID(author)
		} else {
			missing = append(missing, idgen.ID(id))
		}
	}
	if len(missing) == 0 {
		return authors, nil
	}
	photos, err := s.photos.GetMulti(ctx, missing...)
	if err != nil {
		return nil, fmt.Errorf("store: authors: %w", err)
	}
	learned := make(map[int64]int64, len(photos))
	for id, p := range photos {
		authors[int64(id)] = p.Author
		learned[int64(id)] = int64(p.Author)
	}
	if err := s.learn(ctx, learned); err != nil {
		s.log.WarnContext(ctx, "the map of authors cannot be written", "err", err)
	}
	return authors, nil
}

// learn puts photos and their authors into the map. One that was lost with its
// Redis begins anew, and learns as photos are asked for.
func (s *Store) learn(ctx context.Context, authors map[int64]int64) error {
	err := s.owners.SetMulti(ctx, authors)
	if errors.Is(err, hashkv.ErrLost) {
		if err = s.owners.Open(ctx); err == nil {
			err = s.owners.SetMulti(ctx, authors)
		}
	}
	return err
}

// newest is the source of the home feeds: the photos of those whom owner
// follows, and the owner's, from PostgreSQL.
func (s *Store) newest(ctx context.Context, owner, before int64, n int) ([]int64, error) {
	authors, err := collect(ctx, s.shards.ID(idgen.ID(owner)), pgx.RowTo[idgen.ID],
		"select followed_id from following where user_id = $1", owner)
	if err != nil {
		return nil, err
	}
	q := byShard(s.shards, append(authors, idgen.ID(owner)), pgx.RowTo[int64],
		"select id from photo where author_id = any($1) and id < $2 order by id desc", before)
	q.Compare, q.Limit = func(a, b int64) int { return cmp.Compare(b, a) }, n
	return shard.Collect(shard.Gather(ctx, s.shards, q))
}

// newestOf is the source of an author's outbox.
func (s *Store) newestOf(ctx context.Context, author, before int64, n int) ([]int64, error) {
	return collect(ctx, s.shards.ID(idgen.ID(author)), pgx.RowTo[int64],
		"select id from photo where author_id = $1 and id < $2 order by id desc limit $3", author, before, n)
}

// fanOut does a job of the queue: photos go to the feeds of their author and of
// all followers.
func (s *Store) fanOut(ctx context.Context, job feedcache.Job, save func(context.Context, int64) error) error {
	err := s.showAuthor(ctx, job.Author, job.IDs...)
	if err == nil {
		_, err = s.fanout.Run(ctx, job, save)
	}
	if err != nil && ctx.Err() == nil {
		s.log.WarnContext(ctx, "a fan-out is tried again", "author", job.Author, "photos", job.IDs, "err", err)
	}
	return err
}

// showAuthor puts photos into their author's own feed, and notes whose they are.
func (s *Store) showAuthor(ctx context.Context, author int64, photos ...int64) error {
	authors := make(map[int64]int64, len(photos))
	for _, id := range photos {
		authors[id] = author
	}
	if err := s.learn(ctx, authors); err != nil {
		s.log.WarnContext(ctx, "the map of authors cannot be written", "err", err) // it learns when they are asked for
	}
	_, err := s.feeds.Push(ctx, slices.Values([]int64{author}), photos...)
	return err
}

// followers returns a part of those who follow author, for the fan-out.
func (s *Store) followers(ctx context.Context, author, after int64, n int) ([]int64, error) {
	return collect(ctx, s.shards.ID(idgen.ID(author)), pgx.RowTo[int64], `select follower_id from follower
		where user_id = $1 and follower_id > $2 order by follower_id limit $3`, author, after, n)
}

func toIDs(ns []int64) []idgen.ID {
	ids := make([]idgen.ID, len(ns))
	for i, n := range ns {
		ids[i] = idgen.ID(n)
	}
	return ids
}

func fromIDs(ids []idgen.ID) []int64 {
	ns := make([]int64, len(ids))
	for i, id := range ids {
		ns[i] = int64(id)
	}
	return ns
}
