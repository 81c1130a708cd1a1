package shard

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"
)

// lease is a connection in the hands of one call on one shard.
type lease struct {
	ctx    context.Context // of the call, for pgx
	conn   *pgxpool.Conn
	link   *link
	place  place
	member *member // the replica, nil for the primary
	stats  *shardStats
	schema string
	begun  time.Time
}

// lease takes a connection to where the shard lives. Statements that go over it
// run in the shard's schema.
func (s Shard) lease(ctx context.Context, p place) (*lease, error) {
	if p.node == nil {
		return nil, ErrNoShard
	}
	c := s.cluster
	if c.run.Err() != nil {
		return nil, ErrClosed
	}
	pool, member := p.node.pool, p.node.reader(s.read)
	if member != nil {
		pool = member.pool
	}
	conn, err := pool.Acquire(ctx)
	if err != nil && member != nil && ctx.Err() == nil {
		member.fail(err)
		pool, member = p.node.pool, nil
		conn, err = pool.Acquire(ctx)
	}
	if err != nil {
		if st := pool.Stat(); ctx.Err() != nil && st.AcquiredConns() == st.MaxConns() {
			err = fmt.Errorf("%w: all %d of them: %w", ErrBusy, st.MaxConns(), err)
		}
		c.stats[s.number].calls.Add(1)
		c.stats[s.number].failed.Add(1)
		return nil, &unsentError{err: err}
	}
	l := &lease{
		ctx: ctx, conn: conn, link: linkOf(conn.Conn()), place: p, member: member,
		stats: &c.stats[s.number], schema: c.schemas[s.number], begun: time.Now(),
	}
	l.link.want, l.link.shard = c.paths[s.number], s
	return l, nil
}

// release gives the connection back. An error may have undone the setting of the
// path.
func (l *lease) release(err error) {
	if err != nil {
		l.forget()
		l.stats.failed.Add(1)
	}
	if !l.conn.Conn().IsClosed() {
		l.link.want, l.link.shard = "", Shard{}
	}
	l.stats.calls.Add(1)
	l.stats.busy.Add(int64(time.Since(l.begun)))
	l.conn.Release()
}

// forget is for when it is not sure what the session's settings are. The link of
// a closed connection is left alone: pgx may still say good-bye over it, in the
// background.
func (l *lease) forget() {
	if !l.conn.Conn().IsClosed() {
		l.link.path, l.link.dirty = "", true
	}
}

// rewrite does what pgx does at first with a statement such as one with
// pgx.NamedArgs.
func (l *lease) rewrite(sql string, args []any) (string, []any, error) {
	for n, arg := range args {
		switch arg := arg.(type) {
		case pgx.QueryExecMode, pgx.QueryResultFormats, pgx.QueryResultFormatsByOID:
			continue
		case pgx.QueryRewriter:
			sql, rest, err := arg.RewriteQuery(l.ctx, l.conn.Conn(), sql, args[n+1:])
			return sql, slices.Concat(args[:n], rest), err
		}
		break
	}
	return sql, args, nil
}

// text returns what to send for a statement.
func (l *lease) text(sql string) string {
	if l.place.node.plans == 0 {
		return sql
	}
	return l.link.text(l.schema, sql, l.place.node.plans)
}

// look forgets the session's settings if a statement has changed them.
func (l *lease) look(tag pgconn.CommandTag) {
	switch verb, _, _ := strings.Cut(tag.String(), " "); verb {
	case "SET", "RESET", "DISCARD", "DO", "CALL":
		l.forget()
	}
}

// setPath sets the path ahead of what the link cannot put it in front of. It
// costs a round trip if the path is another one.
func (l *lease) setPath() error {
	if l.link.path == l.link.want && !l.link.dirty {
		return nil
	}
	// Any statement will do, as the link puts the path in front.
	_, err := l.conn.Conn().PgConn().ExecParams(l.ctx, "select", nil, nil, nil, nil).Close()
	return err
}

// ambiguous marks an error that leaves open whether a statement took effect: one
// that has cost the connection. On a connection that lives on, the server has
// refused it, or it was never sent. pgconn.SafeToRetry is of no use here: when a
// commit finds the connection gone while it waits for the answer, pgx may say
// "conn closed", which counts as safe.
func (l *lease) ambiguous(err error) error {
	if err == nil || !l.conn.Conn().IsClosed() {
		return err
	}
	return fmt.Errorf("%w: %w", ErrAmbiguous, err)
}

// replicaFailed reports whether the fault of an error is the replica's, and keeps
// further reads away from it. It is before release.
func (l *lease) replicaFailed(err error) bool {
	if l.member == nil || l.ctx.Err() != nil {
		return false
	}
	pg, ok := errors.AsType[*pgconn.PgError](err)
	// A replica cancels a query that is in the way of replaying the log.
	if !l.conn.Conn().IsClosed() && !(ok && pg.Code == "40001") {
		return false
	}
	l.member.fail(err)
	return true
}
