package main

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"

	"github.com/shardgram/shardgram/internal/localserver"

	"github.com/shardgram/shardgram/bench/internal/proof"
)

// Who is measured.
const (
	peer      = "peer"      // PgBouncer
	candidate = "candidate" // pgbounce
	direct    = "direct"    // PostgreSQL without a pooler
)

// A scene is PostgreSQL and both poolers in front of it.
type scene struct {
	host        *localserver.Host
	pg          *localserver.Postgres
	programs    map[string]string // of the peer and the candidate
	poolers     map[string]*pooler
	clients     int  // that a pooler lets in
	ours        bool // the candidate is pgbounce
	started     int  // poolers, for the names of their folders
	pgbenchPath string
}

func setUp(ctx context.Context, cfg config, host *localserver.Host, p *proof.Progress) (*scene, error) {
	s := &scene{
		host: host, poolers: map[string]*pooler{},
		programs: map[string]string{candidate: cfg.candidate},
		ours:     cfg.ours,
		clients:  max(cfg.idle, slices.Max(cfg.clients)) + spareFiles/3,
	}
	var err error
	if s.programs[peer], err = pgbouncer(); err != nil {
		return nil, err
	}
	if s.pgbenchPath, err = pgbench(); err != nil {
		return nil, err
	}
	err = p.During("PostgreSQL", func() error {
		s.pg, err = host.Postgres(ctx, "postgres", localserver.PostgresConfig{
			Settings: map[string]string{"shared_buffers": "256MB"}, // has room for all that pgbench reads
		})
		if err != nil {
			return err
		}
		out, err := s.command(ctx, s.pg.Port(), "--initialize", "--scale=10", "--quiet").CombinedOutput()
		if err != nil {
			return fmt.Errorf("pgbench: %w\n%s", err, out)
		}
		_, err = s.pgbench(ctx, load{mode: "simple", clients: 4, secs: 3}, s.pg.Port(), nil) // warms the cache
		return err
	})
	if err != nil {
		return nil, err
	}
	for _, who := range []string{peer, candidate} {
		if s.poolers[who], err = s.start(ctx, who); err != nil {
			s.close()
			return nil, err
		}
	}
	return s, nil
}

// start starts one more process of a pooler.
func (s *scene) start(ctx context.Context, who string) (*pooler, error) {
	s.started++
	dir := filepath.Join(s.host.Dir(), fmt.Sprintf("%s-%d", who, s.started))
	if err := os.Mkdir(dir, 0o755); err != nil {
		return nil, err
	}
	port, err := freePort()
	if err != nil {
		return nil, err
	}
	p, err := startPooler(ctx, s.programs[who], dir, fmt.Sprintf(ini, s.pg.Port(), port, s.clients), "tcp", local(port))
	if err != nil {
		return nil, err
	}
	p.port = port
	return p, nil
}

func (s *scene) close() {
	for _, p := range s.poolers {
		if p != nil {
			p.stop()
		}
	}
}

// pgbouncer returns where PgBouncer is, which Debian keeps out of a user's PATH.
func pgbouncer() (string, error) {
	if path, err := exec.LookPath("pgbouncer"); err == nil {
		return path, nil
	}
	return exec.LookPath("/usr/sbin/pgbouncer")
}

// pgbench returns where pgbench is. That in Debian's PATH is a script that looks
// for it.
func pgbench() (string, error) {
	if found, _ := filepath.Glob("/usr/lib/postgresql/*/bin/pgbench"); len(found) > 0 {
		return found[len(found)-1], nil
	}
	return exec.LookPath("pgbench")
}
