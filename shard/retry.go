package shard

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"time"

	"github.com/jackc/pgx/v5/pgconn"
)

const (
	codeFenced   = "SH001" // raised by a fence, before any row is touched
	codeReadOnly = "25006" // by a host that takes no writes
)

// retry runs once where the shard lives, and again when it turns out that the
// shard or its node has moved on. It returns where that was last.
func (s Shard) retry(ctx context.Context, once func(place) error) (place, error) {
	var wait time.Duration
	for stale := 0; ; {
		p := s.place()
		if p.node == nil {
			return p, ErrNoShard
		}
		err := once(p)
		if err == nil {
			return p, nil
		}
		pg, _ := errors.AsType[*pgconn.PgError](err)
		switch {
		case notSent(err) && ctx.Err() == nil && s.place() != p:
			// The pool was closed, as the node has another DSN by now.

		case pg != nil && pg.Code == codeFenced:
			if ctxErr := s.await(ctx, p, &wait); ctxErr != nil {
				return p, fmt.Errorf("%w: %w: %w", ErrFenced, err, ctxErr)
			}
			s.cluster.stats[s.number].fenced.Add(1)

		case pg != nil && pg.Code == codeReadOnly && s.read == nil && p.node.failsOver() && stale < 3:
			// The host was the primary when the connection was made. New ones
			// look for the present primary.
			stale++
			p.node.pool.Reset()
			if s.await(ctx, p, &wait) != nil {
				return p, &unsentError{err: err}
			}

		case s.missing(ctx, p, pg):
			_ = s.cluster.Refresh(ctx)
			if s.place() == p {
				return p, fmt.Errorf("%w: %w", ErrNoSchema, err)
			}

		case unsent(err) && ctx.Err() == nil && stale < 1+len(p.node.members):
			// A connection that died while nobody used it, as they all do when
			// a server restarts, or a replica that failed.
			stale++
			if s.read == nil {
				p.node.pool.Reset()
			}

		default:
			return p, err
		}
	}
}

// await reads the catalog and returns at once if that gives the shard another
// place, else after a while that grows with each call.
func (s Shard) await(ctx context.Context, p place, wait *time.Duration) error {
	// A catalog that is down says no more than the old map, nor must one that
	// hangs keep the call from its shard.
	load, cancel := context.WithTimeout(ctx, time.Second)
	_ = s.cluster.Refresh(load)
	cancel()
	if s.place() != p {
		return ctx.Err()
	}
	*wait = min(max(2*(*wait), 4*time.Millisecond), 250*time.Millisecond)
	timer := time.NewTimer(*wait/2 + rand.N(*wait/2))
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// missing reports whether an error comes from the shard not having its schema
// where the map says.
func (s Shard) missing(ctx context.Context, p place, pg *pgconn.PgError) bool {
	if pg == nil {
		return false
	}
	switch pg.Code {
	case "42P01", "3F000", "42883", "42704", "42501": // no such table, schema, function, type; no right to create in pg_catalog
	default:
		return false
	}
	var missing bool
	err := p.node.pool.QueryRow(ctx, "select pg_catalog.to_regnamespace($1) is null", s.cluster.schemas[s.number]).Scan(&missing)
	return err == nil && missing
}

// unsentError is one of a statement that can have had no effect.
type unsentError struct {
	err   error
	again bool // another connection may do better
}

func (e *unsentError) Error() string { return e.err.Error() }
func (e *unsentError) Unwrap() error { return e.err }

func notSent(err error) bool {
	_, ok := errors.AsType[*unsentError](err)
	return ok
}

// unsent reports whether a connection that was there has failed before it took
// a statement. A node that cannot be reached is another matter: it fails at once.
func unsent(err error) bool {
	e, ok := errors.AsType[*unsentError](err)
	return ok && e.again
}

// explain says of what is not run again if the shard's schema is missing.
func (s Shard) explain(ctx context.Context, p place, err error) error {
	if pg, _ := errors.AsType[*pgconn.PgError](err); s.missing(ctx, p, pg) {
		return fmt.Errorf("%w: %w", ErrNoSchema, err)
	}
	return err
}
