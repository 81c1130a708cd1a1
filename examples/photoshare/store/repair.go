package store

import (
	"context"
	"errors"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/shardgram/shardgram/idgen"
	"github.com/shardgram/shardgram/shard"
)

// abandonTimeout bounds the clearing away of one upload.
const abandonTimeout = 10 * time.Second

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

// repair finishes what was cut off more than age ago: it removes the files of
// uploads that came to nothing, and pushes photos to feeds that lack them.
// Work that somebody is still at may be done twice, which changes nothing.
func (s *Store) repair(ctx context.Context, age time.Duration) error {
	return s.shards.Each(ctx, s.shards.Shards(), func(ctx context.Context, sh shard.Shard) error {
		rows, err := sh.Query(ctx, "select photo_id from upload where started_at < now() - $1::interval", age)
		if err != nil {
			return err
		}
		uploads, err := pgx.CollectRows(rows, pgx.RowTo[idgen.ID])
		if err != nil {
			return err
		}
		rows, err = sh.Query(ctx, `select id, author_id, caption, likes from photo
			join fanout on photo_id = id where since < now() - $1::interval`, age)
		if err != nil {
			return err
		}
		photos, err := pgx.CollectRows(rows, pgx.RowToStructByPos[Photo])
		if err != nil {
			return err
		}
		var errs []error
		for _, id := range uploads {
			errs = append(errs, s.abandon(ctx, id))
		}
		for _, p := range photos {
			errs = append(errs, s.fanOut(ctx, p))
		}
		return errors.Join(errs...)
	})
}
