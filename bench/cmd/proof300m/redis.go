package main

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/shardgram/shardgram/internal/localserver"

	"github.com/shardgram/shardgram/bench/internal/proof"
)

// redisServer is a Redis with one layout.
type redisServer struct {
	*localserver.Redis
	rdb     *redis.Client
	layout  layout
	process time.Duration // at resetCPU
}

func startRedis(ctx context.Context, host *localserver.Host, l layout, r *result) (server, store, error) {
	settings := map[string]string{"appendonly": "no"}
	maps.Copy(settings, l.settings)
	name := fmt.Sprintf("redis-%d", len(host.Servers()))
	srv, err := host.Redis(ctx, name, localserver.RedisConfig{Settings: settings})
	if err != nil {
		return nil, nil, err
	}
	// No timeout: SAVE takes as long as it takes, and commands wait for it.
	rdb := redis.NewClient(&redis.Options{Addr: srv.Addr(), ReadTimeout: -1, MaxRetries: -1})
	s := &redisServer{Redis: srv, rdb: rdb, layout: l}
	found, err := rdb.ConfigGet(ctx, "hash-max-listpack-entries").Result()
	var data store
	if err == nil {
		r.Limit = found["hash-max-listpack-entries"]
		data, err = l.open(rdb, l.Keys)
	}
	if err != nil {
		s.close()
		return nil, nil, err
	}
	return s, data, nil
}

func (s *redisServer) close() {
	s.rdb.Close()
	s.Kill() // it is saved already, or worthless
}

// info returns fields of INFO.
func (s *redisServer) info(ctx context.Context, section string) (map[string]string, error) {
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

// usage leaves out the buffers of connections, which come and go.
func (s *redisServer) usage(ctx context.Context) (used, rss int64, err error) {
	fields, err := s.info(ctx, "memory")
	if err != nil {
		return 0, 0, err
	}
	used, err1 := strconv.ParseInt(fields["used_memory"], 10, 64)
	clients, err2 := strconv.ParseInt(fields["mem_clients_normal"], 10, 64)
	rss, err3 := strconv.ParseInt(fields["used_memory_rss"], 10, 64)
	return used - clients, rss, errors.Join(err1, err2, err3)
}

func (s *redisServer) resetCPU(ctx context.Context) error {
	if err := s.rdb.ConfigResetStat(ctx).Err(); err != nil {
		return err
	}
	var err error
	s.process, err = s.processTime(ctx)
	return err
}

func (s *redisServer) processTime(ctx context.Context) (time.Duration, error) {
	fields, err := s.info(ctx, "cpu")
	if err != nil {
		return 0, err
	}
	var sum float64
	for _, name := range []string{"used_cpu_user", "used_cpu_sys"} {
		seconds, err := strconv.ParseFloat(fields[name], 64)
		if err != nil {
			return 0, err
		}
		sum += seconds
	}
	return time.Duration(sum * float64(time.Second)), nil
}

func (s *redisServer) cpu(ctx context.Context) (commands, process time.Duration, err error) {
	process, err = s.processTime(ctx)
	if err != nil {
		return 0, 0, err
	}
	fields, err := s.info(ctx, "commandstats")
	if err != nil {
		return 0, 0, err
	}
	for field := range strings.SplitSeq(fields["cmdstat_"+s.layout.command], ",") {
		if micros, ok := strings.CutPrefix(field, "usec="); ok {
			n, err := strconv.ParseInt(micros, 10, 64)
			return time.Duration(n) * time.Microsecond, process - s.process, err
		}
	}
	return 0, 0, fmt.Errorf("the server has not run %s", s.layout.command)
}

// persist saves, and loads again in a new process.
func (s *redisServer) persist(ctx context.Context, r *result, p *proof.Progress) error {
	begin := time.Now()
	if err := p.During("save", func() error { return s.rdb.Save(ctx).Err() }); err != nil {
		return fmt.Errorf("save: %w", err)
	}
	r.SaveSeconds = time.Since(begin).Seconds()
	folder, err := s.rdb.ConfigGet(ctx, "dir").Result()
	if err != nil {
		return err
	}
	file := filepath.Join(folder["dir"], "dump.rdb")
	info, err := os.Stat(file)
	if err != nil {
		return err
	}
	r.RDB = info.Size()
	err = p.During("restart", func() error {
		if err := s.Stop(ctx); err != nil {
			return err
		}
		begin = time.Now()
		return s.Restart(ctx)
	})
	if err != nil {
		return err
	}
	r.RestartSeconds = time.Since(begin).Seconds()
	if err := os.Remove(file); err != nil { // the next layout needs the room
		return err
	}
	// As a new client of the pairs, with nothing remembered.
	rdb := redis.NewClient(&redis.Options{Addr: s.Addr(), ReadTimeout: -1})
	defer rdb.Close()
	data, err := s.layout.open(rdb, s.layout.Keys)
	if err != nil {
		return err
	}
	return p.During("check", func() error { return recheck(ctx, data, r) })
}
