package store

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/jackc/pgx/v5"

	"github.com/shardgram/shardgram/feedcache"
	"github.com/shardgram/shardgram/hashkv"
	"github.com/shardgram/shardgram/idgen"
	"github.com/shardgram/shardgram/shard"
)

// Home returns viewer's home feed below before; before 0 is the top. A page is
// shorter than n only at the end.
func (s *Store) Home(ctx context.Context, viewer, before idgen.ID, n int) (Page[Post], error) {
	page := Page[Post]{Next: before}
	for ask := n; len(page.Items) < n; ask = min(2*ask, feedcache.MaxPage) {
		part, err := s.feeds.Page(ctx, int64(viewer), int64(page.Next), ask)
		if err != nil {
			return Page[Post]{}, fmt.Errorf("store: home: %w", err)
		}
		ids, err := s.visible(ctx, viewer, toIDs(part.IDs))
		if err != nil {
			return Page[Post]{}, err
		}
		posts, err := s.posts(ctx, viewer, ids)
		if err != nil {
			return Page[Post]{}, err
		}
		page.Items = append(page.Items, posts...)
		if len(page.Items) > n {
			page.Items = page.Items[:n]
			page.Next = page.Items[n-1].ID
			return page, nil
		}
		if page.Next = idgen.ID(part.Next); page.Next == 0 {
			break
		}
	}
	return page, nil
}

// visible drops the photos whose authors viewer does not follow: a fan-out that
// began before an unfollow may push a photo after it.
func (s *Store) visible(ctx context.Context, viewer idgen.ID, ids []idgen.ID) ([]idgen.ID, error) {
	authors, err := s.authors(ctx, ids)
	if err != nil {
		return nil, err
	}
	var users []idgen.ID
	for _, author := range authors {
		users = append(users, author)
	}
	followed, err := s.followedAmong(ctx, viewer, users)
	if err != nil {
		return nil, fmt.Errorf("store: home: %w", err)
	}
	return slices.DeleteFunc(ids, func(id idgen.ID) bool {
		author, ok := authors[id]
		return !ok || author != viewer && !slices.Contains(followed, author)
	}), nil
}

// authors returns whose the photos are, from the map in Redis. What the map
// lacks it gets from the photos themselves.
func (s *Store) authors(ctx context.Context, ids []idgen.ID) (map[idgen.ID]idgen.ID, error) {
	known, err := s.owners.GetMulti(ctx, fromIDs(ids)...)
	if err != nil {
		s.log.WarnContext(ctx, "the map of authors cannot be read", "err", err)
	}
	authors := make(map[idgen.ID]idgen.ID, len(ids))
	var missing []idgen.ID
	for _, id := range ids {
		if author, ok := known[int64(id)]; ok {
			authors[id] = idgen.ID(author)
		} else {
			missing = append(missing, id)
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
		authors[id] = p.Author
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

// fanOut pushes a photo to the feeds of its author and of all followers, and
// then forgets that it had to.
func (s *Store) fanOut(ctx context.Context, p Photo) error {
	if err := s.learn(ctx, map[int64]int64{int64(p.ID): int64(p.Author)}); err != nil {
		return err
	}
	home := s.shards.ID(p.Author)
	const chunk = 1000
	var readErr error
	owners := func(yield func(int64) bool) {
		if !yield(int64(p.Author)) {
			return
		}
		for after := int64(0); ; {
			followers, err := collect(ctx, home, pgx.RowTo[int64], `select follower_id from follower
				where user_id = $1 and follower_id > $2 order by follower_id limit $3`, p.Author, after, chunk)
			if err != nil {
				readErr = err
				return
			}
			for _, f := range followers {
				if !yield(f) {
					return
				}
			}
			if len(followers) < chunk {
				return
			}
			after = followers[len(followers)-1]
		}
	}
	if _, err := s.feeds.Push(ctx, owners, int64(p.ID)); err != nil {
		return err
	}
	if readErr != nil {
		return readErr
	}
	_, err := home.Exec(ctx, "delete from fanout where photo_id = $1", p.ID)
	return err
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
