package shard

import (
	"context"
	"errors"
	"strings"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"
)

// node is a node with its connections.
type node struct {
	Node
	pool    *pgxpool.Pool // to whichever host takes writes
	members []*member     // its hosts
	plans   int           // statements that a connection gives a plan of their own
	mode    pgx.QueryExecMode

	stop     context.CancelFunc // of watching, which only nodes with several hosts are
	watching sync.WaitGroup
}

// newNode prepares a node's pool. It does not dial.
func (c *Cluster) newNode(n Node) (*node, error) {
	cfg, err := pgxpool.ParseConfig(n.DSN)
	if err != nil {
		// pgx's error repeats the DSN, with the password taken out, but the
		// rest of it may be a secret too.
		return nil, errors.New("the DSN is not valid")
	}
	conn := cfg.ConnConfig
	switch {
	case c.cfg.MaxConns > 0:
		cfg.MaxConns = c.cfg.MaxConns
	case !strings.Contains(n.DSN, "pool_max_conns"):
		cfg.MaxConns = 16
	}
	if c.cfg.Pooler && !strings.Contains(n.DSN, "default_query_exec_mode") {
		conn.DefaultQueryExecMode = pgx.QueryExecModeCacheDescribe
	}
	if c.cfg.Pooler && conn.DefaultQueryExecMode == pgx.QueryExecModeSimpleProtocol {
		return nil, errors.New("Config.Pooler wants another default_query_exec_mode than simple_protocol")
	}
	if !strings.Contains(n.DSN, "connect_timeout") {
		// pgx waits for two minutes; a host that hangs must not keep a call
		// from the next host that long.
		conn.ConnectTimeout = 5 * time.Second
	}
	if len(hostsOf(conn)) > 1 && conn.ValidateConnect == nil {
		conn.ValidateConnect = pgconn.ValidateConnectTargetSessionAttrsReadWrite
	}
	conn.Tracer = tracing(c.cfg.Tracer)
	cfg.BeforeConnect = func(ctx context.Context, conn *pgx.ConnConfig) error {
		attach(conn, c.cfg.Pooler)
		if c.cfg.BeforeConnect != nil {
			return c.cfg.BeforeConnect(ctx, n.Name, conn)
		}
		return nil
	}
	made := &node{Node: n, mode: conn.DefaultQueryExecMode}
	if conn.DefaultQueryExecMode == pgx.QueryExecModeCacheStatement {
		// The other half of pgx's cache is for the plans that are shared.
		made.plans = conn.StatementCacheCapacity / 2
	}
	if made.pool, err = pgxpool.NewWithConfig(c.run, cfg); err != nil {
		return nil, err
	}
	if made.members, err = c.membersOf(cfg); err != nil {
		made.close()
		return nil, err
	}
	if made.failsOver() {
		run, stop := context.WithCancel(c.run)
		made.stop = stop
		made.watching.Go(func() { made.watch(run, c.cfg.Probe) })
	}
	return made, nil
}

// simple reports whether a statement goes by the simple protocol, in which the
// link cannot put the path in front of it.
func (n *node) simple(args []any) bool {
	for _, arg := range args {
		switch arg := arg.(type) {
		case pgx.QueryExecMode:
			return arg == pgx.QueryExecModeSimpleProtocol
		case pgx.QueryRewriter:
		default:
			return n.mode == pgx.QueryExecModeSimpleProtocol
		}
	}
	return n.mode == pgx.QueryExecModeSimpleProtocol
}

// failsOver reports whether another host can take the place of the primary.
func (n *node) failsOver() bool { return len(n.members) > 1 }

// close waits for the calls that are on the node.
func (n *node) close() {
	if n.stop != nil {
		n.stop()
	}
	n.watching.Wait()
	for _, m := range n.members {
		m.close()
	}
	n.pool.Close()
}
