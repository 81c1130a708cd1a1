package shard

import (
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
)

// Stats are counts of what a cluster has done since Open, and the present state of
// its pools.
type Stats struct {
	// Nodes are in the order of the map. A node that is removed from the map
	// takes its counts with it.
	Nodes []NodeStats `json:"nodes"`

	// Shards are in the order of their numbers. Their counts stay when they
	// move to another node.
	Shards []ShardStats `json:"shards"`

	Catalog CatalogStats `json:"catalog"`
}

// NodeStats are about one node.
type NodeStats struct {
	Node   string `json:"node"`
	Shards int    `json:"shards"` // that the map has on it

	Pool PoolStats `json:"pool"` // to the primary

	// Hosts are the pools that reads go to by [Shard.Read], none if the node has
	// one host.
	Hosts []HostStats `json:"hosts,omitempty"`
}

// HostStats are about the pool of connections for reading from a host.
type HostStats struct {
	Host string    `json:"host"` // address and port
	Pool PoolStats `json:"pool"`
}

// PoolStats are about a pool of connections.
type PoolStats struct {
	MaxConns int `json:"max_conns"`
	Conns    int `json:"conns"` // those being opened included
	InUse    int `json:"in_use"`
	Idle     int `json:"idle"`

	Opened   int64         `json:"opened"`    // connections, in all
	Acquired int64         `json:"acquired"`  // times that a connection was taken
	Waits    int64         `json:"waits"`     // times that none was idle: one had to be opened, or given back
	WaitTime time.Duration `json:"wait_time"` // of those
	GivenUp  int64         `json:"given_up"`  // times that a context ended first
}

// ShardStats are about one shard.
type ShardStats struct {
	Shard int    `json:"shard"`
	Node  string `json:"node"` // where it is now

	// Calls are statements, transactions, batches and copies. Each attempt of a
	// call that is run again counts.
	Calls int64 `json:"calls"`

	// Failed are calls that ended in an error of the server, the connection or
	// the context. A transaction that is rolled back on purpose is none.
	Failed int64 `json:"failed"`

	// Fenced are calls that were run again because a fence had refused them.
	Fenced int64 `json:"fenced"`

	// Busy is the time that connections were held for the shard's calls. It is
	// more than a connection worked, as the program may take its time between
	// the rows of a query or the statements of a transaction.
	Busy time.Duration `json:"busy"`
}

// PerCall is the mean time of a call, without the wait for a connection.
func (s ShardStats) PerCall() time.Duration {
	return s.Busy / time.Duration(max(s.Calls, 1))
}

// CatalogStats are about how well the cluster knows where its shards are.
type CatalogStats struct {
	Version int64     `json:"version"` // of the map in use
	Read    time.Time `json:"read"`    // when the catalog was last read

	// Err is the text of the error that the last attempt to read it ended in,
	// "" if it went well.
	Err string `json:"err,omitempty"`
}

// shardStats counts what was done with a shard.
type shardStats struct {
	calls, failed, fenced atomic.Int64
	busy                  atomic.Int64 // nanoseconds that connections were held
}

// Stats returns the counts. It asks no server.
func (c *Cluster) Stats() Stats {
	v, load := c.view.Load(), c.lastLoad.Load()
	s := Stats{Catalog: CatalogStats{Version: v.m.Version, Read: load.read}}
	if load.err != nil {
		s.Catalog.Err = load.err.Error()
	}
	shards := make(map[*node]int)
	for n, p := range v.places {
		shards[p.node]++
		of := &c.stats[n]
		s.Shards = append(s.Shards, ShardStats{
			Shard: n, Node: p.name(),
			Calls: of.calls.Load(), Failed: of.failed.Load(), Fenced: of.fenced.Load(),
			Busy: time.Duration(of.busy.Load()),
		})
	}
	for _, n := range v.nodes {
		stats := NodeStats{Node: n.Name, Shards: shards[n], Pool: poolStats(n.pool)}
		for _, m := range n.members {
			if m.pool != nil {
				stats.Hosts = append(stats.Hosts, HostStats{Host: m.addr, Pool: poolStats(m.pool)})
			}
		}
		s.Nodes = append(s.Nodes, stats)
	}
	return s
}

func poolStats(pool *pgxpool.Pool) PoolStats {
	s := pool.Stat()
	return PoolStats{
		MaxConns: int(s.MaxConns()), Conns: int(s.TotalConns()),
		InUse: int(s.AcquiredConns()), Idle: int(s.IdleConns()),
		Opened: s.NewConnsCount(), Acquired: s.AcquireCount(),
		Waits: s.EmptyAcquireCount(), WaitTime: s.EmptyAcquireWaitTime(),
		GivenUp: s.CanceledAcquireCount(),
	}
}
