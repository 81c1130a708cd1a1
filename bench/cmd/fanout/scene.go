package main

import (
	"context"
	"errors"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/redis/go-redis/v9"
	"golang.org/x/sync/errgroup"

	"github.com/shardgram/shardgram/feedcache"
	"github.com/shardgram/shardgram/idgen"
	"github.com/shardgram/shardgram/internal/localserver"

	"github.com/shardgram/shardgram/bench/internal/proof"
)

const (
	author    = 7
	readers   = 8 // of all feeds, at the end
	pipelined = 1000
)

// A scene is the servers, with an author's followers and their warm feeds.
type scene struct {
	cfg      config
	orders   orders
	conn     *pgx.Conn
	rdb      *redis.Client
	feeds    *feedcache.Feeds
	postgres string  // version
	posts    []int64 // that every feed has, oldest first
	bytes    int64   // of a feed
	jobs     int
}

func (s *scene) close() {
	s.rdb.Close()
	s.conn.Close(context.Background())
}

// follower returns the i-th. They have gaps, as those who follow somebody do.
func follower(i int64) int64 { return 1000 + 3*i + i%2 }

// post returns the ID of the i-th post, one a minute.
func post(i int) int64 {
	at := idgen.Default.Epoch.AddDate(3, 0, 0).Add(time.Duration(i) * time.Minute)
	id, err := idgen.Default.Compose(at, i*4999%8192, i%1024)
	if err != nil {
		panic("bug: " + err.Error())
	}
	return int64(id)
}

const prefix = "feed"

func key(owner int64) string { return prefix + ":" + strconv.FormatInt(owner, 10) }

func openFeeds(rdb *redis.Client, source feedcache.Source) (*feedcache.Feeds, error) {
	return feedcache.New(rdb, source, feedcache.Config{Prefix: prefix})
}

func setUp(ctx context.Context, cfg config, host *localserver.Host, p *proof.Progress) (*scene, error) {
	p.Title("preparing")
	pg, err := host.Postgres(ctx, "postgres", localserver.PostgresConfig{})
	if err != nil {
		return nil, err
	}
	srv, err := host.Redis(ctx, "redis", localserver.RedisConfig{Settings: map[string]string{"appendonly": "no"}})
	if err != nil {
		return nil, err
	}
	s := &scene{
		cfg: cfg, orders: orders{Postgres: pg.DSN("postgres"), Redis: srv.Addr(), Page: cfg.page},
		rdb: redis.NewClient(&redis.Options{Addr: srv.Addr(), ReadTimeout: time.Minute}),
	}
	if s.conn, err = pgx.Connect(ctx, s.orders.Postgres); err != nil {
		s.rdb.Close()
		return nil, err
	}
	s.postgres, _, _ = strings.Cut(s.conn.PgConn().ParameterStatus("server_version"), " ")
	if err := errors.Join(s.addFollowers(ctx, p), s.addFeeds(ctx, p)); err != nil {
		s.close()
		return nil, err
	}
	return s, nil
}

func (s *scene) addFollowers(ctx context.Context, p *proof.Progress) error {
	return p.During("followers", func() error {
		for _, sql := range []string{
			`create table follower (author bigint, follower bigint, primary key (author, follower))`,
			`create table job (id int primary key, body jsonb not null, after bigint not null default 0)`,
		} {
			if _, err := s.conn.Exec(ctx, sql); err != nil {
				return err
			}
		}
		_, err := s.conn.CopyFrom(ctx, pgx.Identifier{"follower"}, []string{"author", "follower"},
			pgx.CopyFromSlice(int(s.cfg.n), func(i int) ([]any, error) {
				return []any{int64(author), follower(int64(i))}, nil
			}))
		if err == nil {
			_, err = s.conn.Exec(ctx, `vacuum analyze follower`)
		}
		return err
	})
}

// addFeeds fills one feed through feedcache and has Redis copy it for the other
// followers: a feed does not say whose it is, and a million fills would take a
// minute.
func (s *scene) addFeeds(ctx context.Context, p *proof.Progress) error {
	for i := range s.cfg.entries {
		s.posts = append(s.posts, post(i))
	}
	var err error
	s.feeds, err = openFeeds(s.rdb, func(_ context.Context, _, _ int64, n int) ([]int64, error) {
		ids := slices.Clone(s.posts)
		slices.Reverse(ids)
		return ids[:min(n, len(ids))], nil
	})
	if err != nil {
		return err
	}
	empty, err := s.used(ctx)
	if err != nil {
		return err
	}
	if _, err := s.feeds.Page(ctx, follower(0), 0, 1); err != nil {
		return err
	}
	// From here on no feed may be filled.
	if s.feeds, err = openFeeds(s.rdb, noSource); err != nil {
		return err
	}
	p.Start("feeds")
	defer p.Clear()
	for first := int64(1); first < s.cfg.n; first += pipelined {
		end := min(first+pipelined, s.cfg.n)
		_, err := s.rdb.Pipelined(ctx, func(pipe redis.Pipeliner) error {
			for i := first; i < end; i++ {
				pipe.Copy(ctx, key(follower(0)), key(follower(i)), 0, false)
			}
			return nil
		})
		if err != nil {
			return err
		}
		p.At(end, s.cfg.n)
	}
	full, err := s.used(ctx)
	s.bytes = (full - empty) / s.cfg.n
	return err
}

// check reads every feed through feedcache, and counts those that are not
// exactly what was posted.
func (s *scene) check(ctx context.Context, r *delivery, p *proof.Progress) error {
	want := slices.Clone(s.posts)
	slices.Reverse(want)
	p.Start("check")
	defer p.Clear()
	var checked, wrong atomic.Int64
	g, ctx := errgroup.WithContext(ctx)
	for reader := range int64(readers) {
		g.Go(func() error {
			for i := reader; i < s.cfg.n; i += readers {
				page, err := s.feeds.Page(ctx, follower(i), 0, len(want)+10)
				if err != nil {
					return err
				}
				if page.Next != 0 || !slices.Equal(page.IDs, want) {
					wrong.Add(1)
				}
				p.At(checked.Add(1), s.cfg.n)
			}
			return nil
		})
	}
	err := g.Wait()
	r.Checked, r.Wrong = checked.Load(), wrong.Load()
	return err
}

// used returns used_memory without the buffers of connections, which come and
// go.
func (s *scene) used(ctx context.Context) (int64, error) {
	fields, err := s.info(ctx, "memory")
	if err != nil {
		return 0, err
	}
	used, err1 := strconv.ParseInt(fields["used_memory"], 10, 64)
	clients, err2 := strconv.ParseInt(fields["mem_clients_normal"], 10, 64)
	return used - clients, errors.Join(err1, err2)
}

// info returns the fields of a section of INFO.
func (s *scene) info(ctx context.Context, section string) (map[string]string, error) {
	text, err := s.rdb.Info(ctx, section).Result()
	if err != nil {
		return nil, err
	}
	fields := map[string]string{}
	for line := range strings.Lines(text) {
		if name, value, ok := strings.Cut(strings.TrimSpace(line), ":"); ok {
			fields[name] = value
		}
	}
	return fields, nil
}
