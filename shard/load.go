package shard

import (
	"cmp"
	"context"
	_ "embed"
	"fmt"
	"slices"
	"strconv"
	"sync"

	"github.com/jackc/pgx/v5"
)

// A Load is what PostgreSQL has counted for a shard, on its node's primary. The
// counts run from when the shard came to the node, or from when the statistics
// there were last reset, as by a crash.
type Load struct {
	Shard int    `json:"shard"`
	Node  string `json:"node"`

	// RowsRead are the rows that sequential scans went through and the entries
	// that were found in indexes, whether the query then wanted them or not.
	RowsRead int64 `json:"rows_read"`

	RowsWritten int64 `json:"rows_written"` // inserted, updated and deleted
	SeqScans    int64 `json:"seq_scans"`    // scans of whole tables

	// BlocksRead and BlocksHit are the blocks, of 8 kB, that were not and that
	// were in PostgreSQL's memory. Those not there may still have been in the
	// memory of the operating system.
	BlocksRead int64 `json:"blocks_read"`
	BlocksHit  int64 `json:"blocks_hit"`

	// Bytes, of tables and indexes, LiveRows and DeadRows are the present size, as
	// PostgreSQL estimates it; Bytes as of the last vacuum or analyze, so that it
	// is 0 for a table that neither has seen.
	Bytes    int64 `json:"bytes"`
	LiveRows int64 `json:"live_rows"`
	DeadRows int64 `json:"dead_rows"`
}

// Sub returns what came in the time since before, and the present size. Counts that
// have begun anew meanwhile, as after a crash or a move, are taken from there.
func (l Load) Sub(before Load) Load {
	if before.Node != l.Node || before.Shard != l.Shard {
		return l
	}
	since := func(now *int64, then int64) {
		if *now >= then {
			*now -= then
		}
	}
	since(&l.RowsRead, before.RowsRead)
	since(&l.RowsWritten, before.RowsWritten)
	since(&l.SeqScans, before.SeqScans)
	since(&l.BlocksRead, before.BlocksRead)
	since(&l.BlocksHit, before.BlocksHit)
	return l
}

// Work is one number for how much was done: the rows read and written.
func (l Load) Work() int64 { return l.RowsRead + l.RowsWritten }

// HitRatio is the share of blocks that were in PostgreSQL's memory, 0 to 1, and 1 if
// none was wanted.
func (l Load) HitRatio() float64 {
	all := l.BlocksRead + l.BlocksHit
	if all == 0 {
		return 1
	}
	return float64(l.BlocksHit) / float64(all)
}

// ReadsPerRow is the number of blocks that had to be fetched from outside
// PostgreSQL's memory for each row of Work: the higher, the slower.
func (l Load) ReadsPerRow() float64 {
	return float64(l.BlocksRead) / float64(max(l.Work(), 1))
}

//go:embed load.sql
var loadSQL string

// Loads returns the load of every shard in the order of their numbers, at the cost
// of one round trip to each node, on all nodes at once. A node that fails does not
// keep back the loads of the others: its shards are missing, and in the [Errors]. A
// shard whose schema is not there is missing too.
//
// PostgreSQL counts are late: a session adds its own at most once a second, and
// when it falls idle, within ten. They say how much was done and not how long it
// took, which PostgreSQL does not keep by schema; ShardStats.PerCall has that, as
// this program saw it. Work outside the shards' tables is not in them: sorting and
// computing, locks, temporary files, tables of [Config].Path.
func (c *Cluster) Loads(ctx context.Context) ([]Load, error) {
	v := c.view.Load()
	found := make([][]Load, len(v.nodes))
	failed := make([]error, len(v.nodes))
	var asking sync.WaitGroup
	for i, n := range v.nodes {
		asking.Go(func() { found[i], failed[i] = c.loads(ctx, v, n) })
	}
	asking.Wait()
	errs := make([]error, len(v.places))
	for s, p := range v.places {
		if err := failed[slices.Index(v.nodes, p.node)]; err != nil {
			errs[s] = c.Number(s).wrap(p, fmt.Errorf("read the statistics: %w", err))
		}
	}
	all := slices.Concat(found...)
	slices.SortFunc(all, func(a, b Load) int { return cmp.Compare(a.Shard, b.Shard) })
	return all, join(errs)
}

// loads asks one node for the loads of the shards that v has on it.
func (c *Cluster) loads(ctx context.Context, v *view, n *node) ([]Load, error) {
	rows, err := n.pool.Query(ctx, loadSQL, c.cfg.Schema)
	if err != nil {
		return nil, err
	}
	var all []Load
	var schema string
	l := Load{Node: n.Name}
	_, err = pgx.ForEachRow(rows, []any{
		&schema, &l.RowsRead, &l.RowsWritten, &l.SeqScans, &l.BlocksRead, &l.BlocksHit, &l.Bytes, &l.LiveRows, &l.DeadRows,
	}, func() error {
		l.Shard, err = strconv.Atoi(schema[len(c.cfg.Schema)+1:])
		// What a move has left behind, or brings, is not where the shard is.
		if err == nil && l.Shard < len(v.places) && v.places[l.Shard].node == n {
			all = append(all, l)
		}
		return err
	})
	if err != nil {
		return nil, err
	}
	return all, nil
}

// A Heat is how much of a cluster's work a shard has.
type Heat struct {
	Load

	// Share is the shard's part of the work of all shards, 0 to 1.
	Share float64 `json:"share"`

	// Above is the shard's work in means of its node's shards: with 1 it is like the others.
	Above float64 `json:"above"`
}

// Heats ranks loads, the hottest first. They are best the differences over a while,
// from [Load.Sub]: counts since the beginning tell of what was hot once. A shard that
// is slow as well shows in [Load.HitRatio] and [Load.ReadsPerRow]: its rows do not
// fit into memory.
func Heats(loads []Load) []Heat {
	type sum struct{ work, shards int64 }
	var total int64
	nodes := make(map[string]sum)
	for _, l := range loads {
		total += l.Work()
		s := nodes[l.Node]
		nodes[l.Node] = sum{s.work + l.Work(), s.shards + 1}
	}
	heats := make([]Heat, len(loads))
	for i, l := range loads {
		node := nodes[l.Node]
		heats[i] = Heat{
			Load:  l,
			Share: float64(l.Work()) / float64(max(total, 1)),
			Above: float64(l.Work()) * float64(node.shards) / float64(max(node.work, 1)),
		}
	}
	slices.SortStableFunc(heats, func(a, b Heat) int { return cmp.Compare(b.Work(), a.Work()) })
	return heats
}
