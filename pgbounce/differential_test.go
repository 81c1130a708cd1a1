package pgbounce_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/shardgram/shardgram/internal/localserver"
	"github.com/shardgram/shardgram/internal/testserver"
	"github.com/shardgram/shardgram/pgbounce"
	"github.com/stretchr/testify/require"
	"golang.org/x/sync/errgroup"
)

// scripts are all of them.
var scripts = slices.Concat(simpleScripts, extendedScripts, copyScripts, sessionScripts)

func TestDifferential(t *testing.T) {
	t.Parallel()
	tests := []struct {
		name  string
		cfg   pgbounce.Config
		moves bool
	}{
		{name: "Session", cfg: pgbounce.Config{Mode: pgbounce.Session}},
		{name: "Transaction"},
		{name: "OneServerOneLoop", cfg: pgbounce.Config{PoolSize: 2, Loops: 1}},
		{name: "OtherServers", moves: true},
		{name: "OtherServersFewStatements", cfg: pgbounce.Config{MaxPreparedStatements: 2}, moves: true},
		{name: "Statement", cfg: pgbounce.Config{Mode: pgbounce.Statement}},
	}
	s := newStage(t, testserver.Postgres(t))
	s.answers(t, nonces[0])
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			s.compare(t, s.player(t, s.bounced(t, tt.cfg), nonces[0], tt.moves), 0)
		})
	}
	t.Run("InMemory", func(t *testing.T) {
		t.Parallel()
		b, _ := bounce(t, s.addr(), pgbounce.Config{})
		r := &route{kind: "pgbounce", database: s.copyDatabase(t), lacks: session, dial: func(ctx context.Context) (net.Conn, error) {
			return b.Dial(ctx, "tcp", "")
		}}
		s.compare(t, s.player(t, r, nonces[0], true), 0)
	})
}

// PgBouncer 1.18 knows no prepared statements, but for the rest the scripts
// hold for it as well: they are not made for pgbounce.
func TestDifferentialOfPgBouncer(t *testing.T) {
	t.Parallel()
	h := testserver.Host(t)
	server, err := h.Postgres(t.Context(), "postgres", localserver.PostgresConfig{})
	require.NoError(t, err)
	bouncer, err := h.PgBouncer(t.Context(), "pgbouncer", localserver.PgBouncerConfig{Of: server})
	require.NoError(t, err)
	conn, err := pgx.Connect(t.Context(), server.DSN("postgres"))
	require.NoError(t, err)
	_, err = conn.Exec(t.Context(), "create database stage")
	require.NoError(t, err)
	require.NoError(t, conn.Close(t.Context()))
	s := newStage(t, server.DSN("stage"))
	r := &route{kind: "PgBouncer", database: s.copyDatabase(t), dial: dialer(bouncer.Addr()), lacks: session | names}
	s.compare(t, s.player(t, r, nonces[0], false), 0)
}

// Clients that share few servers, each with a nonce and an order of scripts of
// its own.
func TestInterleaved(t *testing.T) {
	t.Parallel()
	tests := []struct {
		name string
		cfg  pgbounce.Config
	}{
		{name: "TransactionOneServer", cfg: pgbounce.Config{PoolSize: 1}},
		{name: "TransactionTwoServers", cfg: pgbounce.Config{PoolSize: 2, MaxPreparedStatements: 3}},
		{name: "StatementTwoServers", cfg: pgbounce.Config{Mode: pgbounce.Statement, PoolSize: 2}},
	}
	s := newStage(t, testserver.Postgres(t))
	for _, n := range nonces {
		s.answers(t, n)
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			seed := rand.Uint64()
			t.Logf("seed %d", seed)
			tt.cfg.QueryWaitNotify = -1 // its notice is no answer of PostgreSQL
			r := s.bounced(t, tt.cfg)
			var group errgroup.Group
			for i, n := range nonces {
				p := s.player(t, r, n, false)
				want := s.answers(t, n)
				random := rand.New(rand.NewPCG(seed, uint64(i)))
				group.Go(func() error {
					var all []error
					for _, i := range random.Perm(len(scripts)) {
						script := scripts[i]
						if !r.fits(script) || script.needs&still != 0 {
							continue
						}
						if d := difference(want[script.name], p.play(script)); d != "" {
							all = append(all, fmt.Errorf("%s of %s: %s", script.name, n, d))
						}
					}
					return errors.Join(all...)
				})
			}
			require.NoError(t, group.Wait())
		})
	}
}

// Wherever the network cuts the streams, answers are the same.
func TestCut(t *testing.T) {
	t.Parallel()
	s := newStage(t, testserver.Postgres(t))
	want := s.answers(t, nonces[0])
	seed := rand.Uint64()
	t.Logf("seed %d", seed)

	t.Run("ClientsBytes", func(t *testing.T) {
		t.Parallel()
		random := rand.New(rand.NewPCG(seed, 1))
		for name, cut := range map[string]func(int) int{
			"Ones":   func(int) int { return 1 },
			"Random": func(n int) int { return 1 + random.IntN(min(n, 40)) },
		} {
			t.Run(name, func(t *testing.T) {
				p := s.player(t, s.bounced(t, pgbounce.Config{}), nonces[0], true)
				p.cut = cut
				s.compare(t, p, large)
			})
		}
	})
	t.Run("ServersBytes", func(t *testing.T) {
		t.Parallel()
		_, addr := bounce(t, chop(t, s.addr(), seed), pgbounce.Config{})
		r := &route{kind: "pgbounce", database: s.copyDatabase(t), dial: dialer(addr), lacks: session}
		s.compare(t, s.player(t, r, nonces[0], true), large)
	})
	t.Run("EachByte", func(t *testing.T) {
		t.Parallel()
		p := s.player(t, s.bounced(t, pgbounce.Config{}), nonces[0], false)
		for _, name := range []string{"InFlight", "NamedPortal", "CopyInExtendedBlindly", "TakenNameTwoBatches"} {
			script := scripts[slices.IndexFunc(scripts, func(s script) bool { return s.name == name })]
			for at := 1; ; at++ {
				// What is before the cut must have been read when the rest comes.
				sent, wasCut := 0, false
				p.cut = func(n int) int {
					if sent < at && at < sent+n {
						n, wasCut = at-sent, true
					} else if sent == at {
						time.Sleep(time.Millisecond)
					}
					sent += n
					return n
				}
				require.Empty(t, difference(want[name], p.play(script)), "%s cut at %d", name, at)
				if !wasCut && sent <= at {
					break
				}
			}
		}
	})
}

// The comparison is worth nothing unless any changed byte of any answer fails
// it, a row of another client among them.
func TestComparisonSeesEachByte(t *testing.T) {
	t.Parallel()
	s := newStage(t, testserver.Postgres(t))
	p := s.player(t, s.direct(t), nonces[0], false)
	for _, name := range []string{"NamedPortal", "ErrorInTheMiddle", "CopyOut"} {
		script := scripts[slices.IndexFunc(scripts, func(s script) bool { return s.name == name })]
		script.needs |= bare // what comes with a login is not in question
		conversation := script.play
		script.play = func(c *client) {
			tamper := p.tamper
			p.tamper = nil
			c.login()
			p.tamper = tamper
			conversation(c)
		}
		want := p.play(script)
		require.Empty(t, difference(want, p.play(script)), "without a change")
		for at, seen := 0, true; seen; at++ {
			seen = false
			position := 0
			p.tamper = func(kind *byte, body []byte) {
				switch i := at - position; {
				case i == 0:
					*kind ^= 1
					seen = true
				case i > 0 && i <= len(body):
					body[i-1] ^= 1
					seen = true
				}
				position += 1 + len(body)
			}
			d := difference(want, p.play(script))
			require.Equal(t, seen, d != "", "%s changed at byte %d", name, at)
		}
		p.tamper = nil
	}
	long := bytes.Repeat([]byte("row"), 1000)
	changed := bytes.Clone(long)
	changed[2000] ^= 1
	require.NotEqual(t, describe('D', long, false), describe('D', changed, false))

	script := scripts[slices.IndexFunc(scripts, func(s script) bool { return s.name == "Select" })]
	first := p.play(script)
	p.nonce = nonces[1]
	require.NotEmpty(t, difference(first, p.play(script)), "another client's rows")
	require.NotEmpty(t, difference(first, first[:len(first)-1]), "an answer that is missing")
	require.NotEmpty(t, difference(first[:len(first)-1], first), "one too many")
}

// A mover must move, or the tests with one prove nothing.
func TestMover(t *testing.T) {
	t.Parallel()
	s := newStage(t, testserver.Postgres(t))
	p := s.player(t, s.bounced(t, pgbounce.Config{}), nonces[0], true)
	said := p.play(script{name: "Process", play: func(c *client) {
		for range 20 {
			c.do("select pg_backend_pid()")
		}
	}})
	processes := map[string]bool{}
	for _, line := range said {
		if strings.HasPrefix(line, "D ") {
			processes[line] = true
		}
	}
	require.Len(t, processes, 2, "servers met: %v", said)
}

// Where the protocol has moved on since PostgreSQL 15, nothing can be compared
// with it.
func TestProtocolVersions(t *testing.T) {
	t.Parallel()
	s := newStage(t, testserver.Postgres(t))
	p := s.player(t, s.bounced(t, pgbounce.Config{}), nonces[0], false)
	tests := []struct {
		name    string
		version uint32
		pairs   []string
		told    string // NegotiateProtocolVersion, if any
		key     int    // bytes of process and secret, at least
	}{
		{name: "3.0", version: protocol30, key: 8},
		{name: "3.2", version: protocol30 | 2, key: 9},
		{name: "Grease", version: protocol30 | 9999, pairs: []string{"_pq_.test_protocol_negotiation", ""}, key: 9, told: "\x00\x03\x00\x02\x00\x00\x00\x01_pq_.test_protocol_negotiation\x00"},
		{name: "Options", version: protocol30, pairs: []string{"_pq_.a", "1", "_pq_.b", "2"}, key: 8, told: "\x00\x03\x00\x00\x00\x00\x00\x02_pq_.a\x00_pq_.b\x00"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			var key []byte
			said := p.play(script{needs: bare, play: func(c *client) {
				c.version(tt.version, tt.pairs...)
				c.send(query("select '{n}', pg_sleep(60)"))
				c.sleeps()
				c.cancel(c.key)
				c.ready(1)
				key = c.key
			}})
			var told []string
			for _, line := range said {
				if strings.HasPrefix(line, "v ") {
					told = append(told, line)
				}
			}
			if tt.told == "" {
				require.Empty(t, told)
			} else {
				require.Equal(t, []string{fmt.Sprintf("v %q", tt.told)}, told, "once")
			}
			require.Contains(t, strings.Join(said, "\n"), "C57014", "a cancel with this key works")
			require.GreaterOrEqual(t, len(key), tt.key)
			require.LessOrEqual(t, len(key), 36)
			if tt.key == 8 {
				require.Len(t, key, 8, "as 3.0 has it")
			}
		})
	}
}
