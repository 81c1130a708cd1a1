package main

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/bradfitz/gomemcache/memcache"
	"github.com/redis/go-redis/v9"
	"golang.org/x/sync/errgroup"

	"github.com/shardgram/shardgram/examples/photoshare/blob"
	"github.com/shardgram/shardgram/examples/photoshare/store"
	"github.com/shardgram/shardgram/internal/localserver"
	"github.com/shardgram/shardgram/shard"
)

const (
	// shards is how many logical shards the demo has. It can never change for
	// a data folder.
	shards = 64

	// dataVersion is that of the data folder's layout.
	dataVersion = 1
)

// A system is everything below the web site: the servers, and the store on
// them.
type system struct {
	host      *localserver.Host
	postgres  [2]*localserver.Postgres
	redis     *localserver.Redis
	memcached *localserver.Memcached

	cluster *shard.Cluster
	rdb     *redis.Client
	blobs   *blob.Dir
	store   *store.Store
}

// A systemConfig says where a system keeps its data. The zero value works.
type systemConfig struct {
	// Dir is the data folder. Default: a temporary one, removed by Close.
	Dir string

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
	if cfg.Dir != "" {
		if err := checkVersion(cfg.Dir); err != nil {
			return nil, err
		}
		serverDir = serversDir(cfg.Dir)
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
		return nil, fmt.Errorf("the data folder %s is in use by process %d: stop that one first, or choose another folder with --data", cfg.Dir, inUse.PID)
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
	if cfg.Dir != "" {
		blobDir = filepath.Join(cfg.Dir, "photos")
	}
	if err := os.MkdirAll(blobDir, 0o755); err != nil {
		return nil, err
	}
	s.blobs, err = blob.OpenDir(blobDir)
	if err != nil {
		return nil, err
	}
	s.cluster, err = shard.Open(ctx, shard.Static(shards,
		shard.Node{Name: "pg_1", DSN: s.postgres[0].DSN("postgres")},
		shard.Node{Name: "pg_2", DSN: s.postgres[1].DSN("postgres")}), shard.Config{})
	if err != nil {
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
		return nil, fmt.Errorf("the data folder %s was made by a newer photoshare: use that one, or another folder with --data (%w)", cfg.Dir, err)
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
	return errors.Join(append(errs, s.host.Close())...)
}

// checkVersion makes a data folder, or refuses one that is not ours to use.
func checkVersion(dir string) error {
	if err := os.MkdirAll(dir, 0o711); err != nil {
		return err
	}
	file := filepath.Join(dir, "version")
	text, err := os.ReadFile(file)
	if errors.Is(err, fs.ErrNotExist) {
		return newFolder(dir, file)
	}
	if err != nil {
		return err
	}
	version, err := strconv.Atoi(strings.TrimSpace(string(text)))
	if err != nil {
		return fmt.Errorf("%s does not hold a version: is %s a folder of photoshare?", file, dir)
	}
	if version > dataVersion {
		return fmt.Errorf("the data folder %s was made by a newer photoshare (version %d, this one knows %d): use that one, or another folder with --data", dir, version, dataVersion)
	}
	return nil
}

func newFolder(dir, file string) error {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	if len(entries) > 0 {
		return fmt.Errorf("%s is not empty and not a folder of photoshare: choose another one with --data", dir)
	}
	return os.WriteFile(file, []byte(strconv.Itoa(dataVersion)+"\n"), 0o644)
}

// serversDir is where the servers of a data folder keep their files: in it,
// unless we are root and the users as whom the servers run cannot enter it, as
// below /root.
func serversDir(dir string) string {
	in := filepath.Join(dir, "servers")
	if localserver.Reachable(in) == nil {
		return in
	}
	sum := sha256.Sum256([]byte(dir))
	return filepath.Join("/var/lib/photoshare", hex.EncodeToString(sum[:6]))
}
