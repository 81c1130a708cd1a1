package main

import (
	"context"
	"fmt"
	"slices"

	"github.com/jackc/pgx/v5"
)

// Figures are what was measured, by unit.
type figures map[string]float64

// A row is something that is measured on several, by turns.
type row struct {
	name  string
	turns []turn
	most  int // rounds, if not 0
}

type turn struct {
	who     string
	measure func(context.Context) (figures, error)
}

// times returns in how many of the rounds a row is measured.
func (r row) times(rounds int) int {
	if r.most > 0 {
		return min(rounds, r.most)
	}
	return rounds
}

// rows returns what the flags ask for.
func (s *scene) rows(cfg config) []row {
	var rows []row
	add := func(r row) {
		if cfg.only.MatchString(r.name) {
			rows = append(rows, r)
		}
	}
	for _, mode := range cfg.modes {
		for _, clients := range cfg.clients {
			add(s.pgbenchRow(mode, load{mode: mode, clients: clients, secs: cfg.secs}))
		}
	}
	for _, clients := range cfg.clients {
		if clients <= reconnecting {
			add(s.pgbenchRow("reconnect", load{mode: "simple", clients: clients, secs: cfg.secs, reconnect: true}))
		}
	}
	for _, goroutines := range []int{8, 32} {
		add(s.programRow(fmt.Sprintf("pgx/goroutines=%d", goroutines), goroutines, cfg, pgx.QueryExecModeExec))
	}
	if slices.Contains(cfg.modes, "prepared") { // pgx's default, with pgbounce
		add(s.programRow("pgx-prepared/goroutines=32", 32, cfg, pgx.QueryExecModeCacheStatement))
	}
	add(row{name: fmt.Sprintf("idle/clients=%d", cfg.idle), most: 3, turns: []turn{
		{peer, func(ctx context.Context) (figures, error) { return s.idle(ctx, peer, cfg.idle) }},
		{candidate, func(ctx context.Context) (figures, error) { return s.idle(ctx, candidate, cfg.idle) }},
	}})
	return rows
}

// reconnecting is how many clients at most make a connection for each query.
const reconnecting = 100

func (s *scene) pgbenchRow(name string, l load) row {
	through := func(who string, l load) turn {
		return turn{who, func(ctx context.Context) (figures, error) {
			p := s.poolers[who]
			return s.pgbench(ctx, l, p.port, p)
		}}
	}
	ofPeer := l
	r := row{name: fmt.Sprintf("%s/clients=%d", name, l.clients)}
	if l.mode == "prepared" {
		// PgBouncer 1.18 has no prepared statements in transaction mode. It gets
		// what is fastest through it.
		ofPeer.mode = "simple"
	}
	r.turns = []turn{through(peer, ofPeer), through(candidate, l)}
	if l.mode == "prepared" && l.clients <= 100 { // PostgreSQL's limit is not far
		r.turns = append(r.turns, turn{direct, func(ctx context.Context) (figures, error) {
			return s.pgbench(ctx, l, s.pg.Port(), nil)
		}})
	}
	return r
}
