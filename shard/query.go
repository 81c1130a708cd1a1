package shard

import (
	"context"
	"fmt"
	"slices"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
)

// A Shard is one logical shard of a cluster: a small value that can be copied,
// compared and used as a map key. It has the query methods of a pgxpool.Pool,
// and is a DBTX for code that sqlc generates. It is safe for concurrent use.
type Shard struct {
	cluster *Cluster
	number  int
	read    *ReadPolicy // nil for the primary
}

// String returns "shard 42".
func (s Shard) String() string { return fmt.Sprintf("shard %d", s.number) }

// Number returns the shard's number, 0 to 8,191.
func (s Shard) Number() int { return s.number }

// Node returns the name of the node that the shard lives on, "" if none.
func (s Shard) Node() string { return s.place().name() }

// Schema returns the name of the shard's schema, which needs no quotes.
func (s Shard) Schema() string {
	if s.place().node == nil {
		return ""
	}
	return s.cluster.schemas[s.number]
}

// place returns where the shard lives, without a node for one that does not
// exist, as the zero Shard.
func (s Shard) place() place {
	if s.cluster == nil {
		return place{}
	}
	places := s.cluster.view.Load().places
	if s.number < 0 || s.number >= len(places) {
		return place{}
	}
	return places[s.number]
}

// Exec runs a statement; without arguments it may be several. One that a fence
// refuses is run again when the shard takes writes, be it on another node,
// until ctx ends.
func (s Shard) Exec(ctx context.Context, sql string, args ...any) (tag pgconn.CommandTag, err error) {
	p, err := s.retry(ctx, func(p place) error {
		if s.read != nil {
			return ErrReadOnly
		}
		tag, err = s.exec(ctx, p, sql, args)
		return err
	})
	return tag, s.wrap(p, err)
}

func (s Shard) exec(ctx context.Context, p place, sql string, args []any) (tag pgconn.CommandTag, err error) {
	l, err := s.lease(ctx, p)
	if err != nil {
		return tag, err
	}
	if sql, args, err = l.rewrite(sql, args); err != nil {
		l.release(nil)
		return tag, err
	}
	// Without arguments pgx goes by the simple protocol, whatever the mode.
	mode, n := p.node.modeOf(args)
	simple := n == 0 || mode == pgx.QueryExecModeSimpleProtocol
	if s.cluster.cfg.Pooler && (simple || notPooled(mode)) {
		l.release(nil)
		if notPooled(mode) {
			return tag, errPooled
		}
		err = s.inTx(ctx, p, pgx.TxOptions{}, func(tx pgx.Tx) error {
			tag, err = tx.Exec(ctx, sql, args...)
			return err
		})
		return tag, err
	}
	defer func() { l.release(err) }()
	if !simple {
		tag, err = l.conn.Exec(ctx, l.text(sql), args...)
		l.look(tag)
		return tag, l.ambiguous(err)
	}
	if err = l.setPath(); err != nil {
		return tag, err
	}
	tag, err = l.conn.Exec(ctx, sql, args...)
	l.forget() // there may be a "set" among the statements
	return tag, l.ambiguous(err)
}

// Query runs a query. The rows hold a connection until they are closed, or
// read to the end. What Exec says of fences holds here too.
func (s Shard) Query(ctx context.Context, sql string, args ...any) (pgx.Rows, error) {
	r := s.query(ctx, sql, args)
	if r.err != nil {
		return nil, r.err
	}
	return r, nil
}

// QueryRow runs a query of one row. Its error comes from Scan: pgx.ErrNoRows
// when there is no row.
func (s Shard) QueryRow(ctx context.Context, sql string, args ...any) pgx.Row {
	return (*row)(s.query(ctx, sql, args))
}

func (s Shard) query(ctx context.Context, sql string, args []any) *rows {
	r := &rows{shard: s}
	p, err := s.retry(ctx, func(p place) error { return r.open(ctx, p, sql, args) })
	r.err = s.wrap(p, err)
	return r
}

// SendBatch sends the statements of a batch in one round trip, or two when the
// connection meets one of the texts for the first time. They are one transaction.
// The results hold a connection until they are closed. Statements that a fence
// refuses are not run again.
func (s Shard) SendBatch(ctx context.Context, b *pgx.Batch) pgx.BatchResults {
	r := &batch{ctx: ctx, shard: s, place: s.place()}
	l, err := (*lease)(nil), error(ErrReadOnly)
	if s.read == nil {
		l, err = s.lease(ctx, r.place)
	}
	if err != nil {
		r.BatchResults = pgx.FailedBatchResults(b, s.wrap(r.place, err))
		return r
	}
	r.lease = l
	if r.place.node.mode != pgx.QueryExecModeSimpleProtocol && r.place.node.mode != pgx.QueryExecModeExec {
		r.BatchResults = l.conn.SendBatch(ctx, b)
		return r
	}
	// In these modes pgx sends a batch past the link, so it has the path in it.
	withPath := *b
	withPath.QueuedQueries = slices.Concat(
		[]*pgx.QueuedQuery{{SQL: localPathSQL, Arguments: []any{l.link.want}}}, b.QueuedQueries)
	l.link.want = ""
	r.BatchResults = l.conn.SendBatch(ctx, &withPath)
	_, _ = r.BatchResults.Exec() // Close has its error
	return r
}

// CopyFrom copies rows into a table with COPY. What a fence refuses is not run
// again, as the source may have been read.
func (s Shard) CopyFrom(ctx context.Context, table pgx.Identifier, columns []string, source pgx.CopyFromSource) (n int64, err error) {
	p := s.place()
	n, err = s.copyFrom(ctx, p, table, columns, source)
	return n, s.wrap(p, s.explain(ctx, p, err))
}

func (s Shard) copyFrom(ctx context.Context, p place, table pgx.Identifier, columns []string, source pgx.CopyFromSource) (n int64, err error) {
	if s.read != nil {
		return 0, ErrReadOnly
	}
	if s.cluster != nil && s.cluster.cfg.Pooler {
		err = s.inTx(ctx, p, pgx.TxOptions{}, func(tx pgx.Tx) error {
			n, err = tx.CopyFrom(ctx, table, columns, source)
			return err
		})
		return n, err
	}
	l, err := s.lease(ctx, p)
	if err != nil {
		return 0, err
	}
	defer func() { l.release(err) }()
	if err = l.setPath(); err != nil {
		return 0, err
	}
	n, err = l.conn.CopyFrom(ctx, table, columns, source)
	return n, l.ambiguous(err)
}

// rows gives its connection back when it is done. It has gone to the first row
// already, as only then is it known whether a fence has refused the statement.
type rows struct {
	pgx.Rows
	shard   Shard
	place   place
	lease   *lease
	err     error // of opening
	first   bool  // there is a first row
	started bool  // and the caller has been told
}

func (r *rows) open(ctx context.Context, p place, sql string, args []any) error {
	l, err := r.shard.lease(ctx, p)
	if err != nil {
		return err
	}
	mode, _ := p.node.modeOf(args)
	switch {
	case r.shard.cluster.cfg.Pooler && notPooled(mode):
		l.release(nil)
		return errPooled
	case mode == pgx.QueryExecModeSimpleProtocol:
		if err := l.setPath(); err != nil {
			l.release(err)
			return err
		}
	}
	r.place, r.lease, r.started = p, l, false
	r.Rows, err = l.conn.Query(ctx, l.text(sql), args...)
	if err == nil {
		r.first = r.Rows.Next()
		err = r.Rows.Err()
	}
	if err != nil {
		err = r.lost(err)
		l.release(err)
		r.lease = nil
	}
	return err
}

// lost says what an error means that may have cost the connection.
func (r *rows) lost(err error) error {
	switch {
	case r.lease.replicaFailed(err):
		return &unsentError{err: err, again: true} // it was a read
	case r.shard.read == nil:
		return r.lease.ambiguous(err)
	}
	return err
}

func (r *rows) Close() {
	r.started, r.first = true, false
	r.Rows.Close()
	if r.lease == nil {
		return
	}
	err := r.Rows.Err()
	if err != nil {
		err = r.lost(err)
		r.err = r.shard.wrap(r.place, err)
	}
	r.lease.look(r.CommandTag())
	r.lease.release(err)
	r.lease = nil
}

func (r *rows) Next() bool {
	more := r.first
	if r.started {
		more = r.Rows.Next()
	}
	r.started = true
	if !more {
		r.Close()
	}
	return more
}

func (r *rows) Scan(dest ...any) error {
	err := r.Rows.Scan(dest...)
	if err != nil {
		r.Close()
	}
	return err
}

func (r *rows) Values() ([]any, error) {
	values, err := r.Rows.Values()
	if err != nil {
		r.Close()
	}
	return values, err
}

func (r *rows) Err() error {
	if r.err == nil && r.lease != nil {
		return r.shard.wrap(r.place, r.Rows.Err())
	}
	return r.err
}

type row rows

func (r *row) Scan(dest ...any) error {
	rows := (*rows)(r)
	if r.err != nil {
		return r.err
	}
	defer rows.Close()
	if !rows.Next() {
		if err := rows.Err(); err != nil {
			return err
		}
		return pgx.ErrNoRows
	}
	if err := rows.Scan(dest...); err != nil {
		return err
	}
	rows.Close()
	return rows.Err()
}

// batch gives its connection back when it is closed.
type batch struct {
	pgx.BatchResults
	ctx   context.Context // of SendBatch
	shard Shard
	place place
	lease *lease
}

func (b *batch) Exec() (pgconn.CommandTag, error) {
	tag, err := b.BatchResults.Exec()
	return tag, b.wrap(err)
}

func (b *batch) Query() (pgx.Rows, error) {
	rows, err := b.BatchResults.Query()
	return rows, b.wrap(err)
}

func (b *batch) QueryRow() pgx.Row { return batchRow{b.BatchResults.QueryRow(), b} }

type batchRow struct {
	pgx.Row
	batch *batch
}

func (r batchRow) Scan(dest ...any) error {
	err := r.Row.Scan(dest...)
	if err == pgx.ErrNoRows {
		return err
	}
	return r.batch.wrap(err)
}

func (b *batch) Close() error {
	err := b.wrap(b.BatchResults.Close())
	if b.lease != nil {
		b.lease.forget()
		b.lease.release(err)
		b.lease = nil
	}
	return err
}

func (b *batch) wrap(err error) error {
	if err != nil && b.lease != nil {
		err = b.shard.explain(b.ctx, b.place, b.lease.ambiguous(err))
	}
	return b.shard.wrap(b.place, err)
}

// wrap adds shard and node to an error that does not name them yet.
func (s Shard) wrap(p place, err error) error {
	if err == nil {
		return nil
	}
	if e, ok := err.(*Error); ok {
		return e
	}
	return &Error{Shard: s.number, Node: p.name(), Err: err}
}
