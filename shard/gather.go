package shard

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"iter"

	"github.com/jackc/pgx/v5"
)

// A Scatter is a query that [Gather] runs on many shards.
type Scatter[T any] struct {
	// SQL is one query, the same for every shard, without schema names.
	SQL string

	// Args are its arguments, the same for every shard.
	Args []any

	// ShardArgs returns the arguments of each shard in place of Args, as the
	// shard's part of [Cluster.Group]; a shard of [Shard.Read] comes without its
	// policy. It is called from several goroutines.
	ShardArgs func(Shard) []any

	// Shards are where to look, which may be shards of [Shard.Read]. Default,
	// if nil: all; an empty list is none.
	Shards []Shard

	// Scan makes a T of a row, as pgx.RowTo does. It is called from several
	// goroutines.
	Scan pgx.RowToFunc[T]

	// Compare says in which order the rows of all shards come. Each shard's own
	// rows must come in that order, so SQL has an "order by" that agrees with
	// it. It is called from several goroutines. Default: rows come as they arrive.
	Compare func(a, b T) int

	// Limit is how many rows Gather ends after. It puts a limit clause behind
	// SQL, which then must have none of its own, nor a semicolon at its end.
	// Default: no limit.
	Limit int

	// Partial goes on without the shards that fail. The rows of the others are
	// followed by a [PartialError]. Default: the first failure ends it all.
	Partial bool

	// PerNode bounds the connections that are taken from one node. Default:
	// [Config.PerNode].
	PerNode int
}

// A PartialError ends a [Gather] with Scatter.Partial: rows of these shards are
// missing.
type PartialError struct {
	Failed Errors // in the order of Scatter.Shards
}

// Error tells each cause once.
func (e *PartialError) Error() string {
	return fmt.Sprintf("shard: rows of %d shards are missing: %v", len(e.Failed), e.Failed)
}

// Unwrap returns the [Errors].
func (e *PartialError) Unwrap() error { return e.Failed }

// Gather runs a query on many shards and returns the rows of all, merged into
// one order if the Scatter says how they compare. The query is run when the
// rows are asked for, and again each time they are.
//
// # Cost
//
// The statements for the shards of a node travel together, up to 128 in one
// round trip, each with the setting of its schema; a connection that meets
// some of them for the first time needs one round trip more. A node is asked over
// one connection for every 64 shards, at most PerNode. With Compare and Limit each shard is asked for a few rows
// only, and those shards for Limit rows, in a further round trip, that may have
// more among the first.
//
// # Guarantees
//
// The statements cannot write: they run in read-only transactions. Each shard's
// rows are of one snapshot, but each chunk of shards has its own, so what is
// written meanwhile may be seen on one shard and not on another. Rows that
// compare equal come in the order of Shards.
//
// # Memory
//
// With Compare and Limit at most shards × Limit rows are held, and mostly only a
// few for each shard. With Compare alone all rows are held. Without Compare the
// rows pass through: a connection reads about a hundred rows ahead of the
// caller, and a caller that is slow slows the servers down; it holds the
// connections meanwhile.
//
// # Failure
//
// The first shard that fails ends Gather with an [Error], and cancels the rest;
// without Compare there may have been rows before it. With Partial all shards
// are tried, and the last pair is a [PartialError]; without Compare some rows of
// a shard that failed may have been among those that came. A connection that was
// lost is replaced, a replica that fails by another one or the primary, and a
// shard that has moved is looked up again. Leaving the
// loop cancels what still runs. When ctx ends, so does Gather, with its error.
func Gather[T any](ctx context.Context, c *Cluster, q Scatter[T]) iter.Seq2[T, error] {
	return func(yield func(T, error) bool) {
		var none T
		g, err := q.begin(c)
		if err != nil {
			yield(none, err)
			return
		}
		if q.Compare == nil {
			err = q.stream(ctx, g, yield)
		} else {
			err = q.merge(ctx, g, yield)
		}
		if g.panicked != nil {
			panic(g.panicked)
		}
		if err != nil && !errors.Is(err, errLeft) {
			yield(none, err)
		}
	}
}

// errLeft says that the caller has left the loop.
var errLeft = errors.New("left")

// Collect returns the rows of a [Gather] as a slice, with the error that ended
// it: after a [PartialError] they are the rows of all other shards.
func Collect[T any](seq iter.Seq2[T, error]) ([]T, error) {
	var all []T
	for row, err := range seq {
		if err != nil {
			return all, err
		}
		all = append(all, row)
	}
	return all, nil
}

func (q *Scatter[T]) begin(c *Cluster) (*gather, error) {
	switch {
	case q.SQL == "":
		return nil, errors.New("shard: gather: SQL is empty")
	case q.Scan == nil:
		return nil, errors.New("shard: gather: Scan is nil")
	case q.Limit < 0 || q.PerNode < 0:
		return nil, fmt.Errorf("shard: gather: Limit is %d and PerNode %d: want 0 or more", q.Limit, q.PerNode)
	}
	g := &gather{
		cluster: c,
		shards:  q.Shards,
		args:    q.ShardArgs,
		perNode: cmp.Or(q.PerNode, c.cfg.PerNode),
		partial: q.Partial,
	}
	if g.shards == nil {
		g.shards = c.Shards()
	}
	if g.args == nil {
		g.args = func(Shard) []any { return q.Args }
	}
	g.errs = make([]error, len(g.shards))
	g.passed = make([]bool, len(g.shards))
	g.tried = make([]bool, len(g.shards))
	return g, nil
}

// limited is SQL with a limit. It is part of the text, as PostgreSQL makes no
// lasting plan for a limit that it does not know.
func (q *Scatter[T]) limited(n int) string {
	if n == 0 {
		return q.SQL
	}
	// A line of its own, as SQL may end in a comment.
	return fmt.Sprintf("%s\nlimit %d", q.SQL, n)
}

// ahead is how many rows a connection collects before it passes them on.
const ahead = 64

// stream passes rows on as they arrive.
func (q *Scatter[T]) stream(ctx context.Context, g *gather, yield func(T, error) bool) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	arrived := make(chan []T)
	g.sql = q.limited(q.Limit)
	g.read = func(ctx context.Context, i int, rows pgx.Rows) error {
		var some []T
		pass := func() error {
			if len(some) == 0 {
				return nil
			}
			g.passed[i] = true
			select {
			case arrived <- some:
				some = nil
				return nil
			case <-ctx.Done():
				return ctx.Err()
			}
		}
		for !g.enough.Load() && rows.Next() {
			row, err := q.Scan(rows)
			if err != nil {
				return err
			}
			if some = append(some, row); len(some) == ahead {
				if err := pass(); err != nil {
					return err
				}
			}
		}
		return pass()
	}
	var failed error
	go func() {
		defer close(arrived)
		failed = g.run(ctx, g.all())
	}()
	defer func() { // also when the caller's loop panics
		cancel()
		for range arrived {
		}
	}()
	n := 0
	for some := range arrived {
		for _, row := range some {
			if g.enough.Load() {
				break
			}
			if !yield(row, nil) {
				return errLeft
			}
			// From here on what was sent is read to its end, which the limit
			// makes near: to cancel it would cost the connections.
			n++
			g.enough.Store(n == q.Limit)
		}
	}
	if g.enough.Load() {
		return nil
	}
	return failed
}
