package shard

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"io"
	"slices"
	"strings"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgproto3"
)

// A link stands between pgx and the connection to a server and sees to it that
// every statement runs in the schema of its shard. When pgx sends a statement
// and the session's search_path is another one, the link puts a "set" in front of
// it, in the same packet, and keeps the answer to that from pgx. So a
// change of shard costs no round trip, and all of pgx works as it always does:
// prepared statements, batches, COPY, tracers.
//
// The two share one transaction, so a statement whose path could not be set
// does not run. To a server the setting lasts, and the link remembers it; of a
// pooler in transaction mode the next statement may meet another server, so
// there the setting ends with the transaction and each statement brings its own.
//
// A link is used by one goroutine at a time, the one that holds the connection.
type link struct {
	r      io.Reader
	w      io.Writer
	pooled bool // a pooler in transaction mode is behind w

	shard Shard  // that holds the connection, for the tracer
	want  string // search_path that statements must have; "" leaves it alone
	path  string // search_path that the session has; "" is not known
	dirty bool   // SQL may have changed other settings too

	begins  bool            // the next query begins a transaction
	inGroup bool            // pgx has begun to send messages that a Sync will end
	own     map[plan]string // texts of the statements that have a plan each

	drain   bool            // what the server says until it is ready is to the link
	known   map[string]bool // statements of the link that the server has
	parsed  []string        // those that it will have with the next answer
	answers int             // to the link that are still to come
	in      []byte          // read, and not yet passed on
	kept    int             // bytes of in that pgx will get
	out     []byte          // what the link says
}

// plan is a statement of a shard.
type plan struct {
	schema, sql string
}

const (
	linkKey = "shardgram.link"

	// keptPaths is how many shards have a prepared statement, on each connection,
	// that sets the path.
	keptPaths = 256

	localPathSQL = "select pg_catalog.set_config('search_path', $1, true)"
)

// attach makes the connection that cfg is for have a link.
func attach(cfg *pgx.ConnConfig, pooled bool) {
	var l *link // of the last host that was tried
	cfg.BuildFrontend = func(r io.Reader, w io.Writer) *pgproto3.Frontend {
		l = &link{r: r, w: w, pooled: pooled, own: make(map[plan]string), known: make(map[string]bool)}
		return pgproto3.NewFrontend(l, l)
	}
	after := cfg.AfterConnect
	cfg.AfterConnect = func(ctx context.Context, conn *pgconn.PgConn) error {
		conn.CustomData()[linkKey] = l
		if after != nil {
			return after(ctx, conn)
		}
		return nil
	}
}

// errUnpathed stops what must not run, as it would do so in any shard's schema.
var errUnpathed = errors.New("bug: a statement without its search_path")

func linkOf(conn *pgx.Conn) *link { return conn.PgConn().CustomData()[linkKey].(*link) }

// text returns what to send for a statement. The first planCap statements of
// shards that a connection meets get a plan each, which PostgreSQL keeps from
// then on. The others share one per text, which is small but is made anew
// whenever the path has changed, as with 8,192 shards it nearly always has.
func (l *link) text(schema, sql string, planCap int) string {
	p := plan{schema, sql}
	if text, ok := l.own[p]; ok {
		return text
	}
	if len(l.own) >= planCap {
		return sql
	}
	// As a comment at the end it does not move the positions in errors.
	l.own[p] = sql + planMark(schema)
	return l.own[p]
}

// planMark makes a statement's text one of its shard.
func planMark(schema string) string { return " /*" + schema + "*/" }

// Write passes on what pgx sends.
func (l *link) Write(p []byte) (int, error) {
	if l.want == "" || len(p) == 0 {
		return l.w.Write(p)
	}
	if p[0] == 'Q' && l.begins {
		return l.writeBegin(p)
	}
	if p[0] == 'Q' && (l.pooled || l.path != l.want || l.dirty) {
		return 0, errUnpathed
	}
	opens := !l.inGroup && (p[0] == 'P' || p[0] == 'B')
	if opens && l.pooled && p[0] == 'B' && unnamed(p) {
		return 0, errUnpathed // the statement would be the link's own
	}
	if l.pooled {
		l.scan(p)
	}
	if !opens || !l.pooled && l.path == l.want && !l.dirty {
		return l.w.Write(p)
	}
	if err := l.prelude(); err != nil {
		return 0, err
	}
	if _, err := l.w.Write(append(l.out, p...)); err != nil {
		return 0, err
	}
	return len(p), nil
}

// unnamed reports whether a Bind is of the unnamed statement, which was parsed
// some time before.
func unnamed(bind []byte) bool {
	_, rest, _ := bytes.Cut(bind[5:], []byte{0}) // the portal's name
	return len(rest) > 0 && rest[0] == 0
}

// scan finds out whether a Sync has ended what pgx sends. Each write of pgx
// holds whole messages.
func (l *link) scan(p []byte) {
	for len(p) >= 5 {
		l.inGroup = p[0] != 'S'
		n := 1 + int(binary.BigEndian.Uint32(p[1:5]))
		p = p[min(n, len(p)):]
	}
}

// writeBegin passes on a begin. What sets the path for the session goes in front
// of it as a query of its own, so that it outlives the transaction: SQL may end that,
// and go on. Should it fail, the transaction still has the path that the begin sets.
func (l *link) writeBegin(p []byte) (int, error) {
	l.begins = false
	if l.pooled || l.path == l.want && !l.dirty {
		return l.w.Write(p)
	}
	var err error
	l.out, err = (&pgproto3.Query{String: "reset all; set search_path to " + l.want}).Encode(l.out[:0])
	if err != nil {
		return 0, err
	}
	l.drain, l.path, l.dirty = true, l.want, false
	if _, err := l.w.Write(append(l.out, p...)); err != nil {
		return 0, err
	}
	return len(p), nil
}

// prelude writes what sets the path into out.
func (l *link) prelude() (err error) {
	l.out = l.out[:0]
	send := func(m pgproto3.FrontendMessage) {
		if err == nil {
			l.out, err = m.Encode(l.out)
		}
	}
	say := func(name, sql string, args ...[]byte) {
		if !l.known[name] {
			if name != "" {
				// It may be there, if an error hid the answer when it was parsed.
				send(&pgproto3.Close{ObjectType: 'S', Name: name})
				l.parsed = append(l.parsed, name)
			}
			send(&pgproto3.Parse{Name: name, Query: sql})
		}
		send(&pgproto3.Bind{PreparedStatement: name, Parameters: args})
		send(&pgproto3.Execute{})
		l.answers++
	}
	if l.pooled {
		say("", localPathSQL, []byte(l.want))
		return err
	}
	if l.dirty {
		say("shardgram_reset", "reset all")
	}
	name := "shardgram_path " + l.want
	if !l.known[name] && len(l.known) >= keptPaths {
		name = "" // parsed each time
	}
	say(name, "set search_path to "+l.want)
	l.path, l.dirty = l.want, false
	return err
}

// Read passes on what the server sends, without its answers to the link.
func (l *link) Read(p []byte) (int, error) {
	for l.answers > 0 || l.drain {
		if l.sift() {
			continue
		}
		n, err := l.r.Read(p)
		l.in = append(l.in, p[:n]...)
		if n == 0 {
			return 0, err
		}
	}
	l.kept = 0
	if len(l.in) > 0 {
		n := copy(p, l.in)
		l.in = l.in[n:]
		return n, nil
	}
	l.in = l.in[:0]
	return l.r.Read(p)
}

// sift drops or keeps the next message of the server, and reports whether there
// was a whole one.
func (l *link) sift() bool {
	rest := l.in[l.kept:]
	if len(rest) < 5 {
		return false
	}
	n := 1 + int(binary.BigEndian.Uint32(rest[1:5]))
	if len(rest) < n {
		return false
	}
	switch kind := rest[0]; {
	case kind == 'N' || kind == 'S' || kind == 'A': // what the server says unasked
		l.kept += n
	case l.drain:
		if kind == 'E' {
			l.path, l.dirty = "", true
		}
		l.drain = kind != 'Z'
		l.in = slices.Delete(l.in, l.kept, l.kept+n)
	case kind == 'E': // instead of the answer; the server now skips pgx's statement
		l.answers, l.parsed = 0, nil
		clear(l.known) // perhaps the statements are gone
	case kind == 'C':
		if l.answers--; l.answers == 0 {
			for _, name := range l.parsed {
				l.known[name] = true
			}
			l.parsed = l.parsed[:0]
		}
		fallthrough
	default:
		l.in = slices.Delete(l.in, l.kept, l.kept+n)
	}
	return true
}

// searchPath is the search_path for a schema. pg_catalog comes second: where the
// schema is missing, "create table" would else make its table in the next one, or
// a temporary one that all shards see. Temporary tables come last, so that one of
// another shard does not hide a table.
func searchPath(schema string, more []string) string {
	return strings.Join(slices.Concat([]string{schema, "pg_catalog"}, more, []string{"pg_temp"}), ", ")
}
