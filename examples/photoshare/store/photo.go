package store

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/jackc/pgx/v5"

	"github.com/shardgram/shardgram/examples/photoshare/blob"
	"github.com/shardgram/shardgram/examples/photoshare/imaging"
	"github.com/shardgram/shardgram/feedcache"
	"github.com/shardgram/shardgram/idgen"
	"github.com/shardgram/shardgram/shard"
)

// MaxCaption is the number of characters a caption may have.
const MaxCaption = 2200

// Upload stores a photo, which its author sees in the home feed at once, and
// followers soon. Either the row, the job that tells the followers and all
// files are stored, or none of them, also when the program dies half-way: what
// is left then is cleared away after the next start. Errors: those of imaging,
// *InvalidError for the caption.
func (s *Store) Upload(ctx context.Context, author idgen.ID, caption string, jpeg []byte) (Photo, error) {
	if n := utf8.RuneCountInString(caption); n > MaxCaption {
		return Photo{}, &InvalidError{"caption", fmt.Sprintf("The caption has %d characters. The most is %d.", n, MaxCaption)}
	}
	if !utf8.ValidString(caption) || strings.ContainsRune(caption, 0) {
		return Photo{}, &InvalidError{"caption", "The caption holds characters that cannot be stored."}
	}
	images, err := s.images.Square(ctx, bytes.NewReader(jpeg))
	if err != nil {
		return Photo{}, err
	}
	// The row in upload says that there may be files without a photo. It goes
	// away in the transaction that stores the photo, so exactly one of the
	// two is there, whenever the program dies.
	home := s.shards.ID(author)
	var id idgen.ID
	if err := home.QueryRow(ctx, "insert into upload default values returning photo_id").Scan(&id); err != nil {
		return Photo{}, fmt.Errorf("store: upload: %w", err)
	}
	if err := s.putImages(ctx, id, images); err != nil {
		return Photo{}, fmt.Errorf("store: upload: %w", errors.Join(err, s.abandon(ctx, id, 0)))
	}
	unseen, unseenErr := s.home.Unseen(ctx, int64(author))
	err = home.InTx(ctx, func(tx pgx.Tx) error {
		tag, err := tx.Exec(ctx, "delete from upload where photo_id = $1 and given_up_at is null", id)
		if err == nil && tag.RowsAffected() == 0 {
			err = errors.New("it took too long and was given up")
		}
		if err != nil {
			return err
		}
		if _, err := tx.Exec(ctx, "insert into photo (id, author_id, caption) values ($1, $2, $3)", id, author, caption); err != nil {
			return err
		}
		return s.jobs.EnqueueTx(ctx, tx, feedcache.Job{Author: int64(author), IDs: []int64{int64(id)}, At: time.Now()})
	})
	if err != nil {
		return Photo{}, fmt.Errorf("store: upload: %w", errors.Join(err, s.abandon(ctx, id, 0)))
	}
	s.invalidate(ctx, id) // somebody may have asked for it too early
	// The followers see it when the job is done, the author at once. Who has
	// seen everything has seen this, too.
	if err := s.showAuthor(ctx, int64(author), int64(id)); err != nil {
		s.log.WarnContext(ctx, "the author's feed is left to the queue", "photo", id, "err", err)
	} else if unseenErr == nil && unseen.N == 0 {
		s.SeenHome(ctx, author, id)
	}
	return Photo{ID: id, Author: author, Caption: caption}, nil
}

// abandon removes the files of an upload that came to nothing. It does nothing
// when the photo was stored after all. The row stays for as long as keep says:
// a program that is only slow may write a file yet.
func (s *Store) abandon(ctx context.Context, id idgen.ID, keep time.Duration) error {
	ctx, cancel := afterwards(ctx)
	defer cancel()
	home := s.shards.ID(id)
	// That it is given up must be stored before a file is gone: from here on
	// the upload cannot commit.
	if _, err := home.Exec(ctx, "update upload set given_up_at = coalesce(given_up_at, now()) where photo_id = $1", id); err != nil {
		return err
	}
	var stored bool
	if err := home.QueryRow(ctx, "select exists (select from photo where id = $1)", id).Scan(&stored); err != nil || stored {
		return err
	}
	var keys []string
	for _, size := range imaging.Sizes() {
		keys = append(keys, imageKey(id, size))
	}
	if err := s.blobs.Delete(ctx, keys...); err != nil {
		return err
	}
	_, err := home.Exec(ctx, "delete from upload where photo_id = $1 and given_up_at <= now() - $2::interval", id, keep)
	return err
}

func (s *Store) putImages(ctx context.Context, id idgen.ID, images map[imaging.Size][]byte) error {
	for size, data := range images {
		if err := s.blobs.Put(ctx, imageKey(id, size), data); err != nil {
			return err
		}
	}
	return nil
}

// imageKey spreads the files over folders by shard. The ID is in decimal: there
// are disks that take aB and Ab for one name.
func imageKey(id idgen.ID, size imaging.Size) string {
	return fmt.Sprintf("%04d/%d_%d.jpg", idgen.Default.Shard(id), id, size)
}

// Image returns one size of a photo's image, a JPEG. Errors: ErrNotFound.
func (s *Store) Image(ctx context.Context, photo idgen.ID, size imaging.Size) ([]byte, error) {
	data, err := s.blobs.Get(ctx, imageKey(photo, size))
	if errors.Is(err, blob.ErrNotFound) {
		return nil, ErrNotFound
	}
	if err != nil {
		return nil, fmt.Errorf("store: image: %w", err)
	}
	return data, nil
}

// Post returns one photo. Errors: ErrNotFound.
func (s *Store) Post(ctx context.Context, viewer, photo idgen.ID) (Post, error) {
	posts, err := s.posts(ctx, viewer, []idgen.ID{photo})
	if err != nil {
		return Post{}, err
	}
	if len(posts) == 0 {
		return Post{}, ErrNotFound
	}
	return posts[0], nil
}

// posts returns the photos of ids, in their order, without those that do not
// exist.
func (s *Store) posts(ctx context.Context, viewer idgen.ID, ids []idgen.ID) ([]Post, error) {
	photos, err := s.photos.GetMulti(ctx, ids...)
	if err != nil {
		return nil, fmt.Errorf("store: %w", err)
	}
	var authors []idgen.ID
	for _, p := range photos {
		authors = append(authors, p.Author)
	}
	users, err := s.users.GetMulti(ctx, authors...)
	if err != nil {
		return nil, fmt.Errorf("store: %w", err)
	}
	liked, err := s.likedBy(ctx, viewer, ids)
	if err != nil {
		return nil, err
	}
	var posts []Post
	for _, id := range ids {
		if p, ok := photos[id]; ok {
			posts = append(posts, Post{Photo: p, Author: users[p.Author], Liked: liked[id]})
		}
	}
	return posts, nil
}

// Grid returns an author's photos below before; before 0 is the top.
func (s *Store) Grid(ctx context.Context, author, before idgen.ID, n int) (Page[Photo], error) {
	if before == 0 {
		before = idgen.MaxID
	}
	photos, err := collect(ctx, s.shards.ID(author), pgx.RowToStructByPos[Photo], `select id, author_id, caption, likes
		from photo where author_id = $1 and id < $2 order by id desc limit $3`, author, before, n+1)
	if err != nil {
		return Page[Photo]{}, notFound(err)
	}
	if len(photos) <= n {
		return Page[Photo]{Items: photos}, nil
	}
	return Page[Photo]{Items: photos[:n], Next: photos[n-1].ID}, nil
}

// Like notes that viewer likes a photo. Liking twice is liking once. Errors:
// ErrNotFound.
func (s *Store) Like(ctx context.Context, viewer, photo idgen.ID) error {
	return s.setLike(ctx, viewer, photo, s.tell, `with new as (
			insert into liked (photo_id, user_id) values ($1, $2) on conflict do nothing returning photo_id),
		counted as (update photo set likes = likes + 1 from new where id = new.photo_id returning author_id)
		insert into news (owner_id, actor_id, photo_id) select author_id, $2, $1 from counted where author_id <> $2 returning id`)
}

// Unlike takes a like back. Errors: ErrNotFound.
func (s *Store) Unlike(ctx context.Context, viewer, photo idgen.ID) error {
	return s.setLike(ctx, viewer, photo, s.untell, `with gone as (
			delete from liked where photo_id = $1 and user_id = $2 returning photo_id),
		counted as (update photo set likes = likes - 1 from gone where id = gone.photo_id returning author_id)
		delete from news using counted where owner_id = author_id and actor_id = $2 and photo_id = $1 returning news.id`)
}

// setLike runs sql, which returns the news of it if there is any, for spread.
func (s *Store) setLike(ctx context.Context, viewer, photo idgen.ID, spread func(context.Context, idgen.ID, int64), sql string) error {
	p, err := s.photos.Get(ctx, photo)
	if err != nil {
		return notFound(err)
	}
	var news int64
	err = orNone(s.shards.ID(photo).QueryRow(ctx, sql, photo, viewer).Scan(&news))
	// After an error, too: it may have come when the row was changed already.
	s.invalidate(ctx, photo)
	if err != nil {
		return fmt.Errorf("store: like: %w", err)
	}
	spread(ctx, p.Author, news)
	return nil
}

// invalidate ends the life of a photo in the cache, which is not as it was. What
// it cannot do it leaves to the repair.
func (s *Store) invalidate(ctx context.Context, photo idgen.ID) {
	ctx, cancel := afterwards(ctx)
	defer cancel()
	err := s.photos.Invalidate(ctx, photo)
	if err == nil {
		return
	}
	s.log.WarnContext(ctx, "a cached photo is left to the repair", "photo", photo, "err", err)
	if _, err := s.shards.ID(photo).Exec(ctx, `insert into stale_photo (photo_id) values ($1)
		on conflict (photo_id) do update set since = clock_timestamp()`, photo); err != nil {
		s.log.ErrorContext(ctx, "a cached photo stays old until it expires", "photo", photo, "err", err)
	}
}

func (s *Store) likedBy(ctx context.Context, viewer idgen.ID, ids []idgen.ID) (map[idgen.ID]bool, error) {
	liked := make(map[idgen.ID]bool)
	if viewer == 0 {
		return liked, nil
	}
	found, err := shard.Collect(shard.Gather(ctx, s.shards, byShard(s.shards, ids, pgx.RowTo[idgen.ID],
		"select photo_id from liked where photo_id = any($1) and user_id = $2", viewer)))
	for _, id := range found {
		liked[id] = true
	}
	return liked, err
}

func (s *Store) loadPhotos(ctx context.Context, ids []idgen.ID) (map[idgen.ID]Photo, error) {
	photos, err := shard.Collect(shard.Gather(ctx, s.shards, byShard(s.shards, ids, pgx.RowToStructByPos[Photo],
		"select id, author_id, caption, likes from photo where id = any($1)")))
	return byID(photos, func(p Photo) idgen.ID { return p.ID }), err
}
