package store

import (
	"context"
	"errors"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/shardgram/shardgram/idgen"
	"github.com/shardgram/shardgram/shard"
)

// tombstone is how long an upload that was given up is looked at again.
const tombstone = time.Hour

// afterwards is the context of work that a change in PostgreSQL asks for: it
// does not end when the visitor leaves.
func afterwards(ctx context.Context) (context.Context, context.CancelFunc) {
	return context.WithTimeout(context.WithoutCancel(ctx), 10*time.Second)
}

func (s *Store) repairForever(ctx context.Context, every time.Duration) {
	ticker := time.NewTicker(every)
	defer ticker.Stop()
	for {
		if err := s.repair(ctx, every); err != nil && ctx.Err() == nil {
			s.log.WarnContext(ctx, "repair", "err", err)
		}
		select {
		case <-ticker.C:
		case <-ctx.Done():
			return
		}
	}
}

// repair finishes what was cut off more than age ago, the work that has rows in
// the tables for it. Work that somebody is still at may be done twice, which
// changes nothing.
func (s *Store) repair(ctx context.Context, age time.Duration) error {
	return s.shards.Each(ctx, s.shards.Shards(), func(ctx context.Context, sh shard.Shard) error {
		uploads, err := collect(ctx, sh, pgx.RowTo[idgen.ID],
			"select photo_id from upload where started_at < now() - $1::interval", age)
		if err != nil {
			return err
		}
		feeds, err := collect(ctx, sh, pgx.RowToStructByPos[stale],
			"select user_id, since from stale_feed where since < now() - $1::interval", age)
		if err != nil {
			return err
		}
		cached, err := collect(ctx, sh, pgx.RowToStructByPos[stale],
			"select photo_id, since from stale_photo where since < now() - $1::interval", age)
		if err != nil {
			return err
		}
		type notice struct {
			ID    int64
			Owner idgen.ID
		}
		news, err := collect(ctx, sh, pgx.RowToStructByPos[notice],
			"select id, owner_id from news where not told and since < now() - $1::interval", age)
		if err != nil {
			return err
		}
		var errs []error
		for _, n := range news {
			errs = append(errs, s.tellNow(ctx, n.Owner, n.ID))
		}
		for _, id := range uploads {
			errs = append(errs, s.abandon(ctx, id, tombstone))
		}
		for _, f := range feeds {
			err := s.feeds.Drop(ctx, int64(f.ID))
			if err == nil {
				err = s.feedRenewed(ctx, f.ID, f.Since)
			}
			errs = append(errs, err)
		}
		for _, p := range cached {
			err := s.photos.Invalidate(ctx, p.ID)
			if err == nil {
				_, err = sh.Exec(ctx, "delete from stale_photo where photo_id = $1 and since = $2", p.ID, p.Since)
			}
			errs = append(errs, err)
		}
		errs = append(errs, s.switchRoutes(ctx, sh))
		return errors.Join(errs...)
	})
}

// stale is a row of stale_feed or stale_photo.
type stale struct {
	ID    idgen.ID
	Since time.Time
}
