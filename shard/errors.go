package shard

import (
	"fmt"
	"slices"
	"strings"
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
func join(errs []*Error) error {
	errs = slices.DeleteFunc(errs, func(e *Error) bool { return e == nil })
	if len(errs) == 0 {
		return nil
	}
	return Errors(errs)
}
