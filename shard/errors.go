package shard

import (
	"errors"
	"fmt"
	"strings"

	"github.com/jackc/pgx/v5/pgconn"
)

// What a caller may want to branch on. They come wrapped, mostly in an [Error].
var (
	// ErrNoShard is returned by the methods of a shard whose number the cluster
	// does not have: the ID was never made here.
	ErrNoShard = errors.New("there is no such shard")

	// ErrNoNode is returned for a map or a placement with a node that the
	// catalog does not have.
	ErrNoNode = errors.New("the catalog has no such node")

	// ErrNoSchema is returned when the schema of a shard is not where the
	// catalog says: neither Init nor Migrate has made it there.
	ErrNoSchema = errors.New("the shard has no schema")

	// ErrConflict is returned by Catalog.Place when somebody else has changed
	// the placement.
	ErrConflict = errors.New("the placement was changed meanwhile")

	// ErrFenced is returned when the context ended while a fence kept writes
	// from a shard. Nothing was written; a retry is safe.
	ErrFenced = errors.New("the shard is fenced")

	// ErrBusy is returned when the context ended while all connections to a node
	// were in use. Nothing was sent; a retry is safe.
	ErrBusy = errors.New("the connections are all in use")

	// ErrAmbiguous is returned when the connection was lost, or the context
	// ended, during a Commit, or a statement outside a transaction on a shard that
	// is not of [Shard.Read]: it may have taken effect or not, if it was one that
	// writes. Look before you do it again.
	ErrAmbiguous = errors.New("it is not known whether this took effect")

	// ErrClosed is returned by calls after Close of the cluster.
	ErrClosed = errors.New("the cluster is closed")

	// ErrReadOnly is returned by the methods that write of a shard of
	// [Shard.Read].
	ErrReadOnly = errors.New("the shard was taken for reading")
)

// An Error tells which shard and node a call failed on. Err is the cause.
type Error struct {
	Shard int
	Node  string // "" when the shard has none
	Err   error
}

func (e *Error) Error() string {
	if e.Node == "" {
		return fmt.Sprintf("shard %d: %v", e.Shard, e.Err)
	}
	return fmt.Sprintf("shard %d on node %s: %v", e.Shard, e.Node, e.Err)
}

// Unwrap returns the cause.
func (e *Error) Unwrap() error { return e.Err }

// SafeToRetry reports whether it is certain that the call had no effect, and
// possible that the same call succeeds later. pgconn.SafeToRetry asks it.
func (e *Error) SafeToRetry() bool {
	if errors.Is(e.Err, ErrFenced) || errors.Is(e.Err, ErrBusy) {
		return true
	}
	if errors.Is(e.Err, ErrAmbiguous) {
		return false
	}
	if pg, ok := errors.AsType[*pgconn.PgError](e.Err); ok {
		switch pg.Code {
		case codeFenced,
			"40001", "40P01", // serialization failure, deadlock
			"55P03",          // lock not available
			"53300", "57P03": // too many connections, starting up
			return true
		}
		return false
	}
	_, unsent := errors.AsType[*unsentError](e.Err)
	return unsent
}

// Errors are what failed of a call on many shards, in the order of the call's
// list. errors.Is and errors.As find every cause.
type Errors []*Error

// Error returns a line for each cause and node: a node that is down is one
// line, not one for each of its shards.
func (e Errors) Error() string {
	type cause struct{ node, text string }
	var order []cause
	first, more := make(map[cause]*Error), make(map[cause]int)
	for _, err := range e {
		c := cause{err.Node, err.Err.Error()}
		if first[c] != nil {
			more[c]++
			continue
		}
		first[c] = err
		order = append(order, c)
	}
	var lines []string
	for _, c := range order {
		line := first[c].Error()
		if more[c] > 0 {
			line += fmt.Sprintf(" (and %d more)", more[c])
		}
		lines = append(lines, line)
	}
	return strings.Join(lines, "\n")
}

// Unwrap returns the errors one by one.
func (e Errors) Unwrap() []error {
	errs := make([]error, len(e))
	for i, err := range e {
		errs[i] = err
	}
	return errs
}

// join returns the errors that are none but nil, or nil.
func join(errs []error) error {
	var failed Errors
	for _, err := range errs {
		if err != nil {
			failed = append(failed, err.(*Error))
		}
	}
	if failed == nil {
		return nil
	}
	return failed
}
