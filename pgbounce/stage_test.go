package pgbounce_test

import (
	"context"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/shardgram/shardgram/pgbounce"
	"github.com/stretchr/testify/require"
	"golang.org/x/sync/errgroup"
)

// nonces are those that a stage has tables for.
var nonces = []string{"n01", "n02", "n03", "n04"}

// A route is a way to a database.
type route struct {
	kind     string // as in script.not
	database string
	dial     func(ctx context.Context) (net.Conn, error)
	lacks    need // scripts with one of these needs are not for it
}

// A stage is a database with tables for scripts, of which each route gets a
// copy, and what PostgreSQL itself answers.
type stage struct {
	admin    *pgx.ConnConfig // of the database to copy
	recorded map[string]map[string][]string
	copies   atomic.Int64
}

func newStage(t *testing.T, dsn string) *stage {
	t.Helper()
	admin, err := pgx.ParseConfig(dsn)
	require.NoError(t, err)
	s := &stage{admin: admin, recorded: map[string]map[string][]string{}}
	conn, err := pgx.ConnectConfig(t.Context(), admin)
	require.NoError(t, err)
	for _, n := range nonces {
		_, err = conn.Exec(t.Context(), strings.ReplaceAll(fixtureSQL, nonceMark, n))
		require.NoError(t, err)
	}
	require.NoError(t, conn.Close(t.Context()))
	return s
}

func (s *stage) addr() string { return fmt.Sprintf("%s:%d", s.admin.Host, s.admin.Port) }

// copyDatabase returns the name of a new copy of the stage's database.
func (s *stage) copyDatabase(t *testing.T) string {
	t.Helper()
	name := fmt.Sprintf("%s_%d", s.admin.Database, s.copies.Add(1))
	sql := func(sql string) {
		ctx := context.Background() // t.Context() has ended when we drop
		cfg := s.admin.Copy()
		cfg.Database = "postgres"
		conn, err := pgx.ConnectConfig(ctx, cfg)
		require.NoError(t, err)
		defer conn.Close(ctx)
		_, err = conn.Exec(ctx, sql)
		require.NoError(t, err)
	}
	sql("create database " + name + " template " + s.admin.Database)
	t.Cleanup(func() { sql("drop database " + name + " with (force)") })
	return name
}

// direct is the route with nothing between.
func (s *stage) direct(t *testing.T) *route {
	return &route{database: s.copyDatabase(t), dial: dialer(s.addr())}
}

func dialer(addr string) func(context.Context) (net.Conn, error) {
	return func(ctx context.Context) (net.Conn, error) {
		return (&net.Dialer{Timeout: patience}).DialContext(ctx, "tcp", addr)
	}
}

// bounce starts a Bouncer in front of a PostgreSQL server and returns its
// address.
func bounce(t *testing.T, server string, cfg pgbounce.Config) (*pgbounce.Bouncer, string) {
	t.Helper()
	host, port, err := net.SplitHostPort(server)
	require.NoError(t, err)
	number, err := net.LookupPort("tcp", port)
	require.NoError(t, err)
	cfg.Databases = map[string]pgbounce.Database{"*": {Hosts: []string{host}, Port: number}}
	cfg.Log = slog.New(slog.NewTextHandler(t.Output(), nil))
	b, err := pgbounce.New(cfg)
	require.NoError(t, err)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	served := make(chan error, 1)
	go func() { served <- b.Serve(context.Background(), l) }()
	t.Cleanup(func() {
		if err := b.Close(); err != nil {
			t.Error(err)
		}
		select {
		case <-served:
		case <-time.After(patience):
			t.Error("Serve goes on after Close")
		}
	})
	return b, l.Addr().String()
}

// bounced is the route through a Bouncer.
func (s *stage) bounced(t *testing.T, cfg pgbounce.Config) *route {
	t.Helper()
	_, addr := bounce(t, s.addr(), cfg)
	return &route{kind: "pgbounce", database: s.copyDatabase(t), dial: dialer(addr), lacks: lacking(cfg.Mode)}
}

func lacking(m pgbounce.Mode) need {
	switch m {
	case pgbounce.Session:
		return 0
	case pgbounce.Statement:
		return session | block
	}
	return session
}

// player returns a player on a route, which changes servers if it is to move.
func (s *stage) player(t *testing.T, r *route, nonce string, moves bool) *player {
	t.Helper()
	p := &player{ctx: t.Context(), route: r, nonce: nonce}
	cfg := s.admin.Copy()
	cfg.Database = r.database
	connect := func(cfg *pgx.ConnConfig) *pgx.Conn {
		conn, err := pgx.ConnectConfig(t.Context(), cfg)
		require.NoError(t, err)
		t.Cleanup(func() { conn.Close(context.Background()) })
		return conn
	}
	p.admin = connect(cfg)
	if moves {
		cfg := cfg.Copy()
		cfg.DialFunc = func(ctx context.Context, _, _ string) (net.Conn, error) { return r.dial(ctx) }
		p.mover = &mover{conn: connect(cfg)}
	}
	return p
}

// answers returns what PostgreSQL says in each script under a nonce.
func (s *stage) answers(t *testing.T, nonce string) map[string][]string {
	t.Helper()
	if s.recorded[nonce] == nil {
		p := s.player(t, s.direct(t), nonce, false)
		all := map[string][]string{}
		for _, script := range scripts {
			require.NotContains(t, all, script.name, "a name is used twice")
			said := p.play(script)
			require.NotEmpty(t, said, script.name)
			broken := slices.ContainsFunc(said, func(line string) bool { return strings.Contains(line, "FAILED ") })
			if broken {
				t.Errorf("%s: %q", script.name, said[max(0, len(said)-5):])
			}
			all[script.name] = said
		}
		s.recorded[nonce] = all
	}
	return s.recorded[nonce]
}

// fits reports whether a script can be played on a route with equal answers.
func (r *route) fits(s script) bool { return s.needs&r.lacks == 0 && s.not[r.kind] == "" }

// difference shows where two transcripts part, or is empty.
func difference(want, got []string) string {
	if slices.Equal(want, got) {
		return ""
	}
	at := 0
	for at < len(want) && at < len(got) && want[at] == got[at] {
		at++
	}
	part := func(lines []string) string {
		return strings.Join(lines[min(at, len(lines)):min(at+8, len(lines))], "\n  ")
	}
	return fmt.Sprintf("line %d, after\n  %s\nPostgreSQL says (%d lines)\n  %s\nand here (%d lines)\n  %s", at,
		strings.Join(want[max(0, at-3):at], "\n  "), len(want), part(want), len(got), part(got))
}

// compare plays all scripts that fit, but those with a need.
func (s *stage) compare(t *testing.T, p *player, but need) {
	t.Helper()
	want := s.answers(t, p.nonce)
	for _, script := range scripts {
		if !p.route.fits(script) || script.needs&but != 0 {
			continue
		}
		t.Run(script.name, func(t *testing.T) {
			p.ctx = t.Context()
			require.Empty(t, difference(want[script.name], p.play(script)))
		})
	}
}

// chop starts a relay whose clients get the server's bytes in small pieces.
func chop(t *testing.T, server string, seed uint64) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	ctx, stop := context.WithCancel(context.Background())
	var group errgroup.Group
	t.Cleanup(func() {
		stop()
		l.Close()
		if err := group.Wait(); err != nil {
			t.Error(err)
		}
	})
	relay := func(to, from net.Conn, piece func() int) {
		defer to.Close()
		defer from.Close()
		buf := make([]byte, 4096)
		for {
			n, err := from.Read(buf[:piece()])
			if err != nil {
				return
			}
			if _, err := to.Write(buf[:n]); err != nil {
				return
			}
		}
	}
	group.Go(func() error {
		for number := uint64(0); ; number++ {
			in, err := l.Accept()
			if err != nil {
				return nil
			}
			out, err := (&net.Dialer{}).DialContext(ctx, "tcp", server)
			if err != nil {
				in.Close()
				continue
			}
			random := rand.New(rand.NewPCG(seed, number))
			end := context.AfterFunc(ctx, func() { in.Close(); out.Close() })
			group.Go(func() error {
				defer end()
				relay(in, out, func() int { return 1 + random.IntN(9) })
				return nil
			})
			group.Go(func() error { relay(out, in, func() int { return 4096 }); return nil })
		}
	})
	return l.Addr().String()
}
