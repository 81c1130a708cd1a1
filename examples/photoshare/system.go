package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"time"

	"github.com/bradfitz/gomemcache/memcache"
	"github.com/redis/go-redis/v9"
	"golang.org/x/sync/errgroup"

	"github.com/shardgram/shardgram/examples/photoshare/blob"
	"github.com/shardgram/shardgram/examples/photoshare/store"
	"github.com/shardgram/shardgram/internal/localserver"
	"github.com/shardgram/shardgram/pgbounce"
	"github.com/shardgram/shardgram/shard"
)

// shards is how many logical shards the demo has. It can never change for a
// data folder.
const shards = 64

// A system is everything below the web site: the servers, and the store on
// them.
type system struct {
	host      *localserver.Host
	postgres  [2]*localserver.Postgres
	redis     *localserver.Redis
	memcached *localserver.Memcached

	catalog *shard.PostgresCatalog
	pooler  *pgbounce.Bouncer
	serving sync.WaitGroup // of the pooler
	cluster *shard.Cluster
	rdb     *redis.Client
	blobs   *blob.Dir
	store   *store.Store
}

// A systemConfig says where a system keeps its data. The zero value works.
type systemConfig struct {
	// Folder is where the data is. Default: a temporary folder, removed by
	// Close.
	Folder *folder

	// Fast gives up durability, for tests.
	Fast bool

	// Log gets what goes wrong in the background. Default: slog.Default().
	Log *slog.Logger

	// RepairEvery is that of the store.
	RepairEvery time.Duration

	// Out gets a line as each server becomes ready. Default: none.
	Out io.Writer
}

// startSystem starts the servers, migrates the shards and opens the store.
func startSystem(ctx context.Context, cfg systemConfig) (_ *system, err error) {
	if cfg.Out == nil {
		cfg.Out = io.Discard
	}
	if cfg.Log == nil {
		cfg.Log = slog.Default()
	}
	if err := localserver.Available(localserver.KindPostgres, localserver.KindRedis, localserver.KindMemcached); err != nil {
		return nil, err
	}
	var serverDir string
	if cfg.Folder != nil {
		serverDir = cfg.Folder.servers
		if !cfg.Folder.holds(serverDir) {
			fmt.Fprintf(cfg.Out, "  databases are in %s: their users cannot enter the data folder\n", serverDir)
		}
	}
	s := &system{}
	s.host, err = localserver.Open(localserver.Config{
		Dir:  serverDir,
		Fast: cfg.Fast,
		Ready: func(srv *localserver.Server, took time.Duration) {
			fmt.Fprintf(cfg.Out, "  %-10s ready after %4.1f s   %s\n", srv.Name(), took.Seconds(), srv.Addr())
		},
	})
	if inUse, ok := errors.AsType[*localserver.InUseError](err); ok {
		return nil, fmt.Errorf("the data folder is in use by process %d: stop that one first, or choose another folder with --data", inUse.PID)
	}
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, s.Close())
		}
	}()
	if err := s.startServers(ctx); err != nil {
		return nil, err
	}
	blobDir := filepath.Join(s.host.Dir(), "photos")
	if cfg.Folder != nil {
		blobDir = cfg.Folder.photos()
	}
	if err := os.MkdirAll(blobDir, 0o755); err != nil {
		return nil, err
	}
	s.blobs, err = blob.OpenDir(blobDir)
	if err != nil {
		return nil, err
	}
	if err := s.startPooler(cfg); err != nil {
		return nil, err
	}
	if err := s.openShards(ctx); err != nil {
		return nil, err
	}
	// Redis is on this machine: it answers at once or not at all.
	s.rdb = redis.NewClient(&redis.Options{
		Addr: s.redis.Addr(), DialTimeout: time.Second, ReadTimeout: time.Second,
		DialerRetries: 1, MaxRetries: 1, ContextTimeoutEnabled: true,
	})
	mc := memcache.New(s.memcached.Addr())
	mc.Timeout = 200 * time.Millisecond
	mc.MaxIdleConns = 32
	begin := time.Now()
	s.store, err = store.Open(ctx, store.Config{
		Shards: s.cluster, Redis: s.rdb, Memcache: mc, Blobs: s.blobs,
		Log: cfg.Log, RepairEvery: cfg.RepairEvery,
	})
	if errors.Is(err, shard.ErrNewer) {
		return nil, fmt.Errorf("the data was made by a newer photoshare: use that one, or another folder with --data (%w)", err)
	}
	if err != nil {
		return nil, err
	}
	fmt.Fprintf(cfg.Out, "  %-10s ready after %4.1f s   on 2 PostgreSQL nodes\n", strconv.Itoa(shards)+" shards", time.Since(begin).Seconds())
	return s, nil
}

func (s *system) startServers(ctx context.Context) error {
	group, ctx := errgroup.WithContext(ctx)
	for i := range s.postgres {
		group.Go(func() (err error) {
			s.postgres[i], err = s.host.Postgres(ctx, fmt.Sprintf("postgres-%d", i+1), localserver.PostgresConfig{})
			return err
		})
	}
	group.Go(func() (err error) {
		s.redis, err = s.host.Redis(ctx, "redis", localserver.RedisConfig{})
		return err
	})
	group.Go(func() (err error) {
		s.memcached, err = s.host.Memcached(ctx, "memcached", localserver.MemcachedConfig{})
		return err
	})
	return group.Wait()
}

// openShards keeps the catalog on the first node. The servers may have other
// ports than the last time, which Init tells the catalog.
func (s *system) openShards(ctx context.Context) (err error) {
	s.catalog, err = shard.NewPostgresCatalog(s.postgres[0].DSN("postgres"), shard.PostgresCatalogConfig{})
	if err != nil {
		return err
	}
	if err := shard.Init(ctx, s.catalog, shard.InitConfig{Shards: shards, Nodes: s.nodes()}); err != nil {
		return err
	}
	s.cluster, err = shard.Open(ctx, s.catalog, s.throughPooler())
	return err
}

func (s *system) nodes() []shard.Node {
	return []shard.Node{
		{Name: "pg_1", DSN: s.postgres[0].DSN("postgres")},
		{Name: "pg_2", DSN: s.postgres[1].DSN("postgres")},
	}
}

// Close closes the store and stops the servers, and waits for both.
func (s *system) Close() error {
	var errs []error
	if s.store != nil {
		errs = append(errs, s.store.Close())
	}
	if s.blobs != nil {
		errs = append(errs, s.blobs.Close())
	}
	if s.rdb != nil {
		errs = append(errs, s.rdb.Close())
	}
	if s.cluster != nil {
		errs = append(errs, s.cluster.Close())
	}
	if s.pooler != nil {
		errs = append(errs, s.pooler.Close())
		s.serving.Wait()
	}
	if s.catalog != nil {
		errs = append(errs, s.catalog.Close())
	}
	return errors.Join(append(errs, s.host.Close())...)
}
