package store

import (
	"context"
	"fmt"
	"maps"
	"slices"

	"github.com/jackc/pgx/v5"

	"github.com/shardgram/shardgram/feedcache"
	"github.com/shardgram/shardgram/idgen"
)

// A Notice is a line of a user's activity: who liked a photo, or who follows.
type Notice struct {
	ID     idgen.ID // of the latest of them
	Photo  idgen.ID // 0 for followers
	Actors []User   // the latest first
}

// Activity returns what others did to viewer below before; before 0 is the top.
// It looks at n likes and follows, of which several make a notice.
func (s *Store) Activity(ctx context.Context, viewer, before idgen.ID, n int) (Page[Notice], error) {
	type news struct{ ID, Actor, Photo int64 }
	found := map[int64]news{}
	page, err := s.news.PageKeep(ctx, int64(viewer), int64(before), n, func(ctx context.Context, ids []int64) ([]int64, error) {
		rows, err := collect(ctx, s.shards.ID(viewer), pgx.RowToStructByPos[news],
			"select id, actor_id, photo_id from news where owner_id = $1 and id = any($2)", viewer, ids)
		for _, row := range rows {
			found[row.ID] = row
		}
		return slices.DeleteFunc(ids, func(id int64) bool { return found[id].ID == 0 }), err
	})
	if err != nil {
		return Page[Notice]{}, fmt.Errorf("store: activity: %w", err)
	}
	maps.DeleteFunc(found, func(id int64, _ news) bool { return !slices.Contains(page.IDs, id) })
	groups := feedcache.Aggregate(slices.Collect(maps.Values(found)), func(n news) (int64, int64, int64) { return n.ID, n.Photo, n.Actor })
	var actors []idgen.ID
	for _, g := range groups {
		actors = append(actors, toIDs(g.Actors)...)
	}
	users, err := s.users.GetMulti(ctx, actors...)
	if err != nil {
		return Page[Notice]{}, fmt.Errorf("store: activity: %w", err)
	}
	result := Page[Notice]{Next: idgen.ID(page.Next)}
	for _, g := range groups {
		notice := Notice{ID: idgen.ID(g.IDs[0]), Photo: idgen.ID(g.Key)}
		for _, actor := range g.Actors {
			notice.Actors = append(notice.Actors, users[idgen.ID(actor)])
		}
		result.Items = append(result.Items, notice)
	}
	return result, nil
}

// newestNews is the source of the activity.
func (s *Store) newestNews(ctx context.Context, owner, before int64, n int) ([]int64, error) {
	return collect(ctx, s.shards.ID(idgen.ID(owner)), pgx.RowTo[int64],
		"select id from news where owner_id = $1 and id < $2 order by id desc limit $3", owner, before, n)
}

// tell pushes news to its owner; id 0 is none. What it cannot do it leaves to the
// repair.
func (s *Store) tell(ctx context.Context, owner idgen.ID, id int64) {
	if id == 0 {
		return
	}
	ctx, cancel := afterwards(ctx)
	defer cancel()
	if err := s.tellNow(ctx, owner, id); err != nil {
		s.log.WarnContext(ctx, "news is left to the repair", "owner", owner, "err", err)
	}
}

func (s *Store) tellNow(ctx context.Context, owner idgen.ID, id int64) error {
	if _, err := s.news.Push(ctx, slices.Values([]int64{int64(owner)}), id); err != nil {
		return err
	}
	_, err := s.shards.ID(owner).Exec(ctx, "update news set told = true where id = $1", id)
	return err
}

// untell takes news that is gone out of its owner's feed. If it cannot, no page
// shows it all the same, only a number may be too high.
func (s *Store) untell(ctx context.Context, owner idgen.ID, id int64) {
	if id == 0 {
		return
	}
	ctx, cancel := afterwards(ctx)
	defer cancel()
	if _, err := s.news.Remove(ctx, slices.Values([]int64{int64(owner)}), id); err != nil {
		s.log.WarnContext(ctx, "news that is gone may be counted", "owner", owner, "err", err)
	}
}

// Unseen is how much is new to a user.
type Unseen struct{ Home, Activity feedcache.Unseen }

// Unseen counts what has come to viewer since the last SeenHome and SeenActivity.
func (s *Store) Unseen(ctx context.Context, viewer idgen.ID) (Unseen, error) {
	home, err := s.home.Unseen(ctx, int64(viewer))
	if err != nil {
		return Unseen{}, fmt.Errorf("store: unseen: %w", err)
	}
	news, err := s.news.Unseen(ctx, int64(viewer))
	if err != nil {
		return Unseen{}, fmt.Errorf("store: unseen: %w", err)
	}
	return Unseen{home, news}, nil
}

// SeenHome notes that viewer has seen the home feed up to a photo.
func (s *Store) SeenHome(ctx context.Context, viewer, photo idgen.ID) {
	s.seen(ctx, s.feeds, "seen_home", viewer, photo)
}

// SeenActivity notes that viewer has seen the activity up to a notice.
func (s *Store) SeenActivity(ctx context.Context, viewer, notice idgen.ID) {
	s.seen(ctx, s.news, "seen_news", viewer, notice)
}

// seen stores a mark. What fails costs no more than a number that is too high.
func (s *Store) seen(ctx context.Context, feeds *feedcache.Feeds, column string, viewer, upTo idgen.ID) {
	_, err := s.shards.ID(viewer).Exec(ctx, "update account set "+column+" = $2 where id = $1 and "+column+" < $2", viewer, upTo)
	if err == nil {
		err = feeds.Seen(ctx, int64(viewer), int64(upTo))
	}
	if err != nil {
		s.log.WarnContext(ctx, "a mark is not moved", "viewer", viewer, "err", err)
	}
}

// mark returns the function that reads what seen has stored in a column.
func (s *Store) mark(column string) func(context.Context, int64) (int64, error) {
	return func(ctx context.Context, owner int64) (mark int64, err error) {
		err = s.shards.ID(idgen.ID(owner)).QueryRow(ctx,
			"select coalesce((select "+column+" from account where id = $1), 0)", owner).Scan(&mark)
		return mark, err
	}
}
