// Package store keeps photoshare's users, photos, follows and likes.
//
// PostgreSQL holds the truth, spread over the shards of package shard. Redis
// holds the home feeds and the map from photo to author, memcached the users
// and photos that pages show: all of it can be lost and is made again from
// PostgreSQL. The image files are in a blob store.
package store

import (
	"context"
	"embed"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"net"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/bradfitz/gomemcache/memcache"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/redis/go-redis/v9"

	"github.com/shardgram/shardgram/examples/photoshare/blob"
	"github.com/shardgram/shardgram/examples/photoshare/imaging"
	"github.com/shardgram/shardgram/examples/photoshare/jobs"
	"github.com/shardgram/shardgram/feedcache"
	"github.com/shardgram/shardgram/feedcache/lookaside"
	"github.com/shardgram/shardgram/hashkv"
	"github.com/shardgram/shardgram/idgen"
	"github.com/shardgram/shardgram/shard"
)

var (
	// ErrNotFound is returned for a user or a photo that does not exist.
	ErrNotFound = errors.New("store: not found")

	// ErrNameTaken is returned by SignUp.
	ErrNameTaken = errors.New("store: the name is taken")

	// ErrWrongPassword is returned by LogIn for a wrong password and for an
	// unknown name alike.
	ErrWrongPassword = errors.New("store: wrong name or password")
)

// An InvalidError says which field of a form is wrong, and why, in words for
// the person who filled it in.
type InvalidError struct{ Field, Reason string }

func (e *InvalidError) Error() string { return e.Field + ": " + e.Reason }

// Unavailable tells whether an error comes from a server that could not be
// reached, or had no room: nobody's fault, and gone after a while.
func Unavailable(err error) bool {
	if pg, ok := errors.AsType[*pgconn.PgError](err); ok {
		// Connection exception, insufficient resources, operator intervention.
		return slices.ContainsFunc([]string{"08", "53", "57"}, func(class string) bool { return strings.HasPrefix(pg.Code, class) })
	}
	if _, ok := errors.AsType[*pgconn.ConnectError](err); ok {
		return true
	}
	_, network := errors.AsType[net.Error](err)
	// A connection that broke under one statement is closed for the next one.
	return network || pgconn.SafeToRetry(err) || errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF)
}

// A User is a person who signed up.
type User struct {
	ID   idgen.ID `json:"id"`
	Name string   `json:"name"`
}

// A Photo is one uploaded photo.
type Photo struct {
	ID      idgen.ID `json:"id"`
	Author  idgen.ID `json:"author"`
	Caption string   `json:"caption"`
	Likes   int      `json:"likes"`
}

// Time returns when the photo was uploaded.
func (p Photo) Time() time.Time { return idgen.Default.Time(p.ID) }

// A Post is a photo as a viewer sees it.
type Post struct {
	Photo
	Author User
	Liked  bool // by the viewer
}

// A Page is a part of a list, newest first. Next is the cursor of the part
// below it, 0 at the end.
type Page[T any] struct {
	Items []T
	Next  idgen.ID
}

// Config is what a store stands on. All servers are required.
type Config struct {
	Shards   *shard.Cluster
	Redis    redis.UniversalClient
	Memcache *memcache.Client
	Blobs    blob.Store

	// Log gets what goes wrong without failing a call. Default: slog.Default().
	Log *slog.Logger

	// RepairEvery is how often the store looks for work that was cut off: an
	// upload whose program died, a feed that does not show whom its owner
	// follows. Work younger than that is left alone. Default: 30 s.
	RepairEvery time.Duration

	// MaxFollowers is how many followers make an author a celebrity, whose
	// photos the followers' pages look for, instead of being told of each.
	// Default: 10,000.
	MaxFollowers int64
}

// A Store is safe for concurrent use. Make it with Open.
type Store struct {
	shards *shard.Cluster
	jobs   *jobs.Queue
	feeds  *feedcache.Feeds  // what is pushed to each user, and the user's own photos
	home   *feedcache.Hybrid // that, and what is pulled
	news   *feedcache.Feeds  // what others did to each user
	fanout *feedcache.Fanout
	policy feedcache.Costs
	owners *hashkv.Sparse[int64] // photo → author
	users  *lookaside.Cache[idgen.ID, User]
	photos *lookaside.Cache[idgen.ID, Photo]
	blobs  blob.Store
	images *imaging.Processor
	hasher hasher
	// following holds one for each change of follows that is under way.
	following chan struct{}
	log       *slog.Logger

	cancel   context.CancelFunc
	repairer sync.WaitGroup
}

//go:embed migrations/*.sql
var migrations embed.FS

// Open migrates the shards, and starts the fan-out of photos and the repair of
// work that was cut off. Many processes may have a store open on the same
// servers.
func Open(ctx context.Context, cfg Config) (_ *Store, err error) {
	if cfg.Log == nil {
		cfg.Log = slog.Default()
	}
	if cfg.RepairEvery == 0 {
		cfg.RepairEvery = 30 * time.Second
	}
	if cfg.MaxFollowers == 0 {
		cfg.MaxFollowers = 10_000
	}
	files, err := fs.Sub(migrations, "migrations")
	if err != nil {
		return nil, fmt.Errorf("store: %w", err)
	}
	s := &Store{
		shards:    cfg.Shards,
		blobs:     cfg.Blobs,
		hasher:    newHasher(),
		following: make(chan struct{}, 8), // half of the connections to a node
		policy:    feedcache.Costs{MaxFollowers: cfg.MaxFollowers},
		log:       cfg.Log,
		cancel:    func() {},
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, s.Close())
		}
	}()
	// The queue's tables come first: a migration of ours writes to them.
	if s.jobs, err = jobs.Open(ctx, cfg.Shards, jobs.Config{Log: cfg.Log}); err != nil {
		return nil, fmt.Errorf("store: %w", err)
	}
	if _, err := cfg.Shards.Migrate(ctx, files, shard.MigrateConfig{}); err != nil {
		return nil, fmt.Errorf("store: migrate: %w", err)
	}
	if s.images, err = imaging.New(imaging.Config{}); err != nil {
		return nil, err
	}
	if s.feeds, err = feedcache.New(cfg.Redis, s.newest, feedcache.Config{Prefix: "home", Cap: homeCap, Mark: s.mark("seen_home")}); err != nil {
		return nil, err
	}
	if s.news, err = feedcache.New(cfg.Redis, s.newestNews, feedcache.Config{Prefix: "news", Mark: s.mark("seen_news")}); err != nil {
		return nil, err
	}
	outboxes, err := feedcache.New(cfg.Redis, s.newestOf, feedcache.Config{Prefix: "outbox"})
	if err != nil {
		return nil, err
	}
	routes := &routes{Store: s}
	if s.home, err = feedcache.NewHybrid(s.feeds, outboxes, routes); err != nil {
		return nil, err
	}
	if s.fanout, err = feedcache.NewFanout(s.feeds, s.followers, feedcache.FanoutConfig{
		Queue: s.jobs, Outboxes: outboxes, Routes: routes, RouteAge: 2 * routeAge,
	}); err != nil {
		return nil, err
	}
	if s.owners, err = hashkv.NewSparse[int64](cfg.Redis, hashkv.SparseConfig{
		Prefix: "owner",
		Warn:   func(err error) { s.log.Warn("the map of authors", "err", err) },
	}); err != nil {
		return nil, err
	}
	if s.users, err = lookaside.New(cfg.Memcache, s.loadUsers, lookaside.Config[idgen.ID, User]{Prefix: "user"}); err != nil {
		return nil, err
	}
	if s.photos, err = lookaside.New(cfg.Memcache, s.loadPhotos, lookaside.Config[idgen.ID, Photo]{Prefix: "photo"}); err != nil {
		return nil, err
	}
	if err := s.jobs.Start(ctx, s.fanOut); err != nil {
		return nil, fmt.Errorf("store: %w", err)
	}
	ctx, s.cancel = context.WithCancel(context.WithoutCancel(ctx))
	s.repairer.Go(func() { s.repairForever(ctx, cfg.RepairEvery) })
	s.repairer.Go(func() { _ = s.owners.AutoGrow(ctx, hashkv.AutoGrowConfig{}) }) // until ctx ends
	return s, nil
}

// Close stops the fan-out and the repair and waits for them. It leaves the
// servers' clients to their owner.
func (s *Store) Close() error {
	s.cancel()
	s.repairer.Wait()
	if s.jobs == nil {
		return nil
	}
	return s.jobs.Close()
}
