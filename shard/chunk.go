package shard

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
)

const (
	maxChunk = 128 // shards in one round trip
	minChunk = 64  // that are worth a connection
)

// gather is the part of a Gather that does not depend on the type of its rows:
// it brings the statements to the shards. A shard is meant by its place in the
// list, as the list may name one twice.
type gather struct {
	cluster *Cluster
	sql     string
	args    func(Shard) []any
	shards  []Shard
	perNode int
	partial bool

	// read takes the rows of a shard. It is called anew, from the first row on,
	// if the shard is tried again.
	read func(ctx context.Context, i int, rows pgx.Rows) error

	// By shard; the goroutine that has the shard uses its element.
	errs   []error
	passed []bool // the caller has rows of it, so it cannot be tried again
	tried  []bool // again

	enough atomic.Bool // the caller wants no more rows
	cancel context.CancelFunc

	mu       sync.Mutex
	first    error // to happen
	panicked any   // what the program's functions panicked with
}

func (g *gather) all() []int {
	list := make([]int, len(g.shards))
	for i := range list {
		list[i] = i
	}
	return list
}

// target is what a connection leads to. The shards of a chunk have it in common.
type target struct {
	node   *node
	read   bool
	policy ReadPolicy
}

// run runs the statement on the shards of a list, and returns the failure that
// ends the Gather.
func (g *gather) run(ctx context.Context, list []int) error {
	ctx, g.cancel = context.WithCancel(ctx)
	defer g.cancel()
	targets := make(map[target][]int)
	places := make(map[target]place)
	for _, i := range list {
		s := g.shards[i]
		p := s.place()
		if p.node == nil || s.cluster != g.cluster {
			g.fail(i, place{}, ErrNoShard)
			continue
		}
		t := target{node: p.node}
		if s.read != nil {
			t.read, t.policy = true, *s.read
		}
		targets[t], places[t] = append(targets[t], i), p
	}
	if g.first != nil && !g.partial {
		return g.first // before anything was sent
	}
	var workers sync.WaitGroup
	for t, list := range targets {
		parts := min(max(len(list)/minChunk, 1), g.perNode)
		size := min((len(list)+parts-1)/parts, maxChunk)
		queue := make(chan []int, len(list)/size+1)
		for ; len(list) > size; list = list[size:] {
			queue <- list[:size]
		}
		queue <- list
		close(queue)
		for range min(g.perNode, len(queue)) {
			workers.Go(func() {
				defer func() {
					if v := recover(); v != nil { // Gather panics with it
						g.mu.Lock()
						g.panicked = v
						g.mu.Unlock()
						g.cancel()
					}
				}()
				var down error
				for chunk := range queue {
					switch {
					case g.enough.Load():
					case down != nil: // it is not asked once for each chunk
						g.failAll(chunk, places[t], down)
					default:
						down = g.chunk(ctx, places[t], chunk)
					}
				}
			})
		}
	}
	workers.Wait()
	if g.panicked != nil {
		return errPanicked
	}
	return g.failed()
}

var errPanicked = errors.New("a function of the Scatter panicked")

// failed is the failure that ends a Gather: the first one or, with partial, all.
func (g *gather) failed() error {
	if !g.partial {
		return g.first
	}
	if failed, ok := join(g.errs).(Errors); ok {
		return &PartialError{failed}
	}
	return nil
}

func (g *gather) fail(i int, p place, err error) {
	err = g.shards[i].wrap(p, err)
	g.errs[i] = err
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.first == nil {
		g.first = err
	}
	if !g.partial {
		g.cancel()
	}
}

func (g *gather) failAll(list []int, p place, err error) {
	for _, i := range list {
		g.fail(i, p, err)
	}
}

// chunk runs the statement on shards of one node, over one connection at a time.
// It returns an error if there is none to be had.
func (g *gather) chunk(ctx context.Context, p place, list []int) error {
	lost := 0
	for len(list) > 0 && !g.enough.Load() {
		l, err := g.shards[list[0]].lease(ctx, p)
		if err != nil {
			g.failAll(list, p, err)
			return err
		}
		l.stats = new(shardStats) // the visit counts for each shard
		n, err := g.visitOrClose(l, list)
		fault := l.replicaFailed(err) || l.conn.Conn().IsClosed()
		l.release(err)
		list = list[n:]
		if err == nil || len(list) == 0 {
			return nil
		}
		if ctx.Err() != nil {
			g.failAll(list, p, err)
			return err
		}
		i := list[0]
		if !g.passed[i] {
			if fault && lost <= len(p.node.members) {
				// A replica that has failed, or a connection that was lost, as
				// they all are when a server restarts.
				lost++
				if l.member == nil {
					p.node.pool.Reset()
				}
				continue
			}
			if err = g.again(ctx, i, p, err); err == nil {
				_ = g.chunk(ctx, g.shards[i].place(), list[:1])
				list = list[1:]
				continue
			}
		}
		g.fail(i, p, err)
		list = list[1:]
		if !g.partial {
			return nil
		}
	}
	return nil
}

// visitOrClose is visit, and leaves no connection in use when that panics.
func (g *gather) visitOrClose(l *lease, list []int) (done int, err error) {
	ended := false
	defer func() {
		if !ended {
			_ = l.conn.Conn().Close(l.ctx)
			l.release(errPanicked)
		}
	}()
	done, err = g.visit(l, list)
	ended = true
	return done, err
}

// again returns nil if a shard that has failed with err is to be tried again,
// which is done once, and else what to say of the failure.
func (g *gather) again(ctx context.Context, i int, p place, err error) error {
	pg, ok := errors.AsType[*pgconn.PgError](err)
	if !ok || g.tried[i] {
		return err
	}
	g.tried[i] = true
	switch s := g.shards[i]; pg.Code {
	case "0A000", "26000", "08P01": // the plan is out of date, or gone
		return nil
	default:
		if !s.missing(ctx, p, pg) {
			return err
		}
		_ = g.cluster.Refresh(ctx)
		if s.place().node == p.node {
			return fmt.Errorf("%w: %w", ErrNoSchema, err)
		}
		return nil
	}
}
