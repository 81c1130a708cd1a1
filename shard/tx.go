package shard

import (
	"context"
	"errors"

	"github.com/jackc/pgx/v5"
)

// InTx runs fn in a transaction and commits it, or rolls it back when fn returns
// an error or panics; fn's own error is returned as it is. fn must use the Tx it
// is given, not the Shard.
//
// When a fence refuses a write of fn, everything is rolled back and fn is run
// again, on whichever node has the shard then, until ctx ends; so is it when the
// node turns out to be no longer the one that takes writes. fn must not mind that.
// When Commit loses its connection the error is [ErrAmbiguous], and fn is not
// run again.
func (s Shard) InTx(ctx context.Context, fn func(pgx.Tx) error) error {
	own := false // the last error is fn's
	p, err := s.retry(ctx, func(p place) error {
		own = false
		return s.inTx(ctx, p, pgx.TxOptions{}, func(tx pgx.Tx) error {
			err := fn(tx)
			own = err != nil
			return err
		})
	})
	if own && !errors.Is(err, ErrFenced) && !errors.Is(err, ErrNoSchema) {
		return err
	}
	return s.wrap(p, err)
}

// inTx runs fn in one transaction.
func (s Shard) inTx(ctx context.Context, p place, opts pgx.TxOptions, fn func(pgx.Tx) error) error {
	tx, err := s.begin(ctx, p, opts)
	if err != nil {
		return err
	}
	// After a commit this does nothing. When ctx has ended it closes the
	// connection, and the server rolls back.
	defer func() { _ = tx.Rollback(ctx) }()
	if err := fn(tx.Tx); err != nil {
		return err
	}
	return tx.Commit(ctx)
}

// Begin begins a transaction, which holds a connection until Commit or Rollback.
// Where one function can hold all of it, InTx is better, as it knows what to do
// about a fence.
func (s Shard) Begin(ctx context.Context) (pgx.Tx, error) {
	return s.BeginTx(ctx, pgx.TxOptions{})
}

// BeginTx is Begin with options. A shard of [Shard.Read] begins transactions that
// are read only.
func (s Shard) BeginTx(ctx context.Context, opts pgx.TxOptions) (pgx.Tx, error) {
	var tx *leasedTx
	p, err := s.retry(ctx, func(p place) (err error) {
		tx, err = s.begin(ctx, p, opts)
		return err
	})
	if err != nil {
		return nil, s.wrap(p, err)
	}
	tx.shard = s
	return tx, nil
}

func (s Shard) begin(ctx context.Context, p place, opts pgx.TxOptions) (*leasedTx, error) {
	if s.read != nil {
		if opts.BeginQuery != "" {
			return nil, ErrReadOnly // it would not be read only
		}
		opts.AccessMode = pgx.ReadOnly
	}
	l, err := s.lease(ctx, p)
	if err != nil {
		return nil, err
	}
	opts.BeginQuery = beginSQL(opts) + localPath(l.link.want)
	l.link.begins = true
	tx, err := l.conn.BeginTx(l.ctx, opts)
	if !l.conn.Conn().IsClosed() {
		l.link.begins, l.link.want = false, "" // in the transaction there is nothing to do
	}
	if err != nil {
		l.release(err)
		return nil, &unsentError{err: err, again: true}
	}
	return &leasedTx{Tx: tx, lease: l}, nil
}

// leasedTx gives its connection back when it ends.
type leasedTx struct {
	pgx.Tx
	lease *lease
	shard Shard // for errors; the zero Shard leaves them bare
	done  bool
}

func (t *leasedTx) Commit(ctx context.Context) error {
	if t.done {
		return pgx.ErrTxClosed
	}
	err := ctx.Err() // then it is not sent
	if err == nil {
		err = t.lease.ambiguous(t.Tx.Commit(ctx))
	} else {
		_ = t.Tx.Rollback(ctx) // closes the connection
	}
	t.end(err)
	if err != nil && t.shard.cluster != nil {
		return t.shard.wrap(t.lease.place, err)
	}
	return err
}

func (t *leasedTx) Rollback(ctx context.Context) error {
	err := t.Tx.Rollback(ctx)
	t.end(nil)
	return err
}

func (t *leasedTx) end(err error) {
	if t.done {
		return
	}
	t.done = true
	t.lease.forget() // SQL may have changed settings for good
	t.lease.release(err)
}

// localPath is what begins a transaction in a shard's schema, after its begin.
func localPath(path string) string { return "; set local search_path to " + path }

func beginSQL(o pgx.TxOptions) string {
	if o.BeginQuery != "" {
		return o.BeginQuery
	}
	sql := "begin"
	if o.IsoLevel != "" {
		sql += " isolation level " + string(o.IsoLevel)
	}
	if o.AccessMode != "" {
		sql += " " + string(o.AccessMode)
	}
	if o.DeferrableMode != "" {
		sql += " " + string(o.DeferrableMode)
	}
	return sql
}
