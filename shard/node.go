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

	timeline uint32             // the highest that a primary had, for watch
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
	if c.cfg.Pooler && notPooled(conn.DefaultQueryExecMode) {
		return nil, errPooled
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
	mode := conn.DefaultQueryExecMode
	cfg.BeforeConnect = func(ctx context.Context, conn *pgx.ConnConfig) error {
		if c.cfg.BeforeConnect != nil {
			if err := c.cfg.BeforeConnect(ctx, n.Name, conn); err != nil {
				return err
			}
		}
		if conn.DefaultQueryExecMode != mode {
			return errors.New("BeforeConnect has changed DefaultQueryExecMode: it belongs in the DSN")
		}
		attach(conn, c.cfg.Pooler)
		return nil
	}
	if c.cfg.AfterConnect != nil {
		cfg.AfterConnect = func(ctx context.Context, conn *pgx.Conn) error {
			return c.cfg.AfterConnect(ctx, n.Name, conn)
		}
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

// modeOf returns the mode in which a statement goes, and how many arguments it
// has.
func (n *node) modeOf(args []any) (pgx.QueryExecMode, int) {
	mode := n.mode
	for n, arg := range args {
		switch arg := arg.(type) {
		case pgx.QueryExecMode:
			mode = arg
		case pgx.QueryResultFormats, pgx.QueryResultFormatsByOID, pgx.QueryRewriter:
		default:
			return mode, len(args) - n
		}
	}
	return mode, 0
}

// notPooled reports whether a mode cannot be used behind a pooler in transaction
// mode: by the simple protocol the path cannot go in front of a statement, and
// with describe_exec a statement is parsed in one transaction and run in another.
func notPooled(mode pgx.QueryExecMode) bool {
	return mode == pgx.QueryExecModeSimpleProtocol || mode == pgx.QueryExecModeDescribeExec
}

var errPooled = errors.New("Config.Pooler excludes the modes simple_protocol and describe_exec of pgx")

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
