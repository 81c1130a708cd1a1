package shard

import (
	"context"
	"fmt"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"
)

// A Shard is one logical shard of a cluster: a small value that can be copied,
// compared and used as a map key. It is safe for concurrent use.
type Shard struct {
	cluster *Cluster
	number  int
}

// Number returns the shard's number, 0 to 8,191.
func (s Shard) Number() int { return s.number }

// Node returns the name of the node that the shard lives on, "" if none.
func (s Shard) Node() string {
	if n := s.node(); n != nil {
		return n.Name
	}
	return ""
}

// Schema returns the name of the shard's schema, which needs no quotes.
func (s Shard) Schema() string {
	if s.cluster == nil {
		return ""
	}
	return fmt.Sprintf("%s_%04d", s.cluster.cfg.Schema, s.number)
}

// Exec runs a statement. Only the caller knows whether a retry is safe after a
// lost connection.
func (s Shard) Exec(ctx context.Context, sql string, args ...any) (pgconn.CommandTag, error) {
	conn, err := s.acquire(ctx)
	if err != nil {
		return pgconn.CommandTag{}, err
	}
	defer conn.Release()
	tag, err := conn.Exec(ctx, sql, args...)
	if err != nil {
		return tag, s.wrap(err)
	}
	return tag, nil
}

// Query runs a query. The rows hold a connection until they are closed, or
// read to the end.
func (s Shard) Query(ctx context.Context, sql string, args ...any) (pgx.Rows, error) {
	conn, err := s.acquire(ctx)
	if err != nil {
		return nil, err
	}
	r, err := conn.Query(ctx, sql, args...)
	if err != nil {
		conn.Release()
		return nil, s.wrap(err)
	}
	return &rows{Rows: r, shard: s, conn: conn}, nil
}

// QueryRow runs a query of one row. Its error comes from Scan: pgx.ErrNoRows
// when there is no row.
func (s Shard) QueryRow(ctx context.Context, sql string, args ...any) pgx.Row {
	r, err := s.Query(ctx, sql, args...)
	return row{r, err}
}

// InTx runs fn in a transaction, commits it, and rolls it back when fn returns
// an error or panics; fn's own error is returned as it is. fn must use the Tx it is
// given, not the Shard. When Commit loses its connection the outcome is not
// known: the rows may be stored.
func (s Shard) InTx(ctx context.Context, fn func(pgx.Tx) error) error {
	conn, err := s.acquire(ctx)
	if err != nil {
		return err
	}
	defer conn.Release()
	tx, err := conn.Begin(ctx)
	if err != nil {
		return s.wrap(err)
	}
	// After a commit this does nothing. When ctx has ended it closes the
	// connection, and the server rolls back.
	defer func() { _ = tx.Rollback(ctx) }()
	if err := fn(tx); err != nil {
		return err
	}
	if err := tx.Commit(ctx); err != nil {
		return s.wrap(err)
	}
	return nil
}

// node returns where the shard lives, nil for one that does not exist, as the
// zero Shard.
func (s Shard) node() *node {
	if s.cluster == nil || s.number < 0 || s.number >= len(s.cluster.shards) {
		return nil
	}
	return s.cluster.shards[s.number]
}

// schemaKey is where a connection remembers which shard it last served.
const schemaKey = "shardgram.schema"

// acquire returns a connection to the shard's node whose search_path is the
// shard's schema.
func (s Shard) acquire(ctx context.Context) (*pgxpool.Conn, error) {
	n := s.node()
	if n == nil {
		return nil, s.wrap(ErrNoShard)
	}
	conn, err := n.pool.Acquire(ctx)
	if err != nil {
		return nil, s.wrap(err)
	}
	state, schema := conn.Conn().PgConn().CustomData(), s.Schema()
	if state[schemaKey] != schema {
		// Only the shard's schema is on the path: with public behind it, a
		// table that a shard lacks would be read there without an error.
		delete(state, schemaKey)
		if _, err := conn.Exec(ctx, "set search_path to "+schema); err != nil {
			conn.Release()
			return nil, s.wrap(err)
		}
		state[schemaKey] = schema
	}
	return conn, nil
}

// wrap adds shard and node to an error that does not name them yet.
func (s Shard) wrap(err error) *Error {
	if err == nil {
		return nil
	}
	if e, ok := err.(*Error); ok {
		return e
	}
	return &Error{Shard: s.number, Node: s.Node(), Err: err}
}

// rows gives its connection back when it is done.
type rows struct {
	pgx.Rows
	shard Shard
	conn  *pgxpool.Conn
}

func (r *rows) Close() {
	r.Rows.Close()
	if r.conn != nil {
		r.conn.Release()
		r.conn = nil
	}
}

func (r *rows) Next() bool {
	if r.Rows.Next() {
		return true
	}
	r.Close()
	return false
}

func (r *rows) Err() error {
	if err := r.Rows.Err(); err != nil {
		return r.shard.wrap(err)
	}
	return nil
}

type row struct {
	rows pgx.Rows
	err  error
}

func (r row) Scan(dest ...any) error {
	if r.err != nil {
		return r.err
	}
	defer r.rows.Close()
	if !r.rows.Next() {
		if err := r.rows.Err(); err != nil {
			return err
		}
		return pgx.ErrNoRows
	}
	if err := r.rows.Scan(dest...); err != nil {
		return err
	}
	r.rows.Close()
	return r.rows.Err()
}
