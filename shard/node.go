package shard

import (
	"context"
	"errors"
	"slices"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"
)

// node is a node with its connections.
type node struct {
	Node
	pool      *pgxpool.Pool // to whichever host takes writes
	plans     int           // statements that a connection gives a plan of their own
	simple    bool          // statements go by the simple protocol
	failsOver bool          // it has several hosts
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
	if !strings.Contains(n.DSN, "connect_timeout") {
		// pgx waits for two minutes; a host that hangs must not keep a call
		// from the next host that long.
		conn.ConnectTimeout = 5 * time.Second
	}
	hosts := hostsOf(conn)
	if len(hosts) > 1 && conn.ValidateConnect == nil {
		conn.ValidateConnect = pgconn.ValidateConnectTargetSessionAttrsReadWrite
	}
	conn.Tracer = c.cfg.Tracer
	cfg.BeforeConnect = func(ctx context.Context, conn *pgx.ConnConfig) error {
		attach(conn, c.cfg.Pooler)
		if c.cfg.BeforeConnect != nil {
			return c.cfg.BeforeConnect(ctx, n.Name, conn)
		}
		return nil
	}
	made := &node{Node: n, failsOver: len(hosts) > 1, simple: conn.DefaultQueryExecMode == pgx.QueryExecModeSimpleProtocol}
	if conn.DefaultQueryExecMode == pgx.QueryExecModeCacheStatement {
		// The other half of pgx's cache is for the plans that are shared.
		made.plans = conn.StatementCacheCapacity / 2
	}
	if made.pool, err = pgxpool.NewWithConfig(c.run, cfg); err != nil {
		return nil, err
	}
	return made, nil
}

func (n *node) close() { n.pool.Close() }

// host is one of a DSN's.
type host struct {
	name string
	port uint16
}

// hostsOf returns the hosts of a DSN, in its order.
func hostsOf(cfg *pgx.ConnConfig) []host {
	hosts := []host{{cfg.Host, cfg.Port}}
	for _, f := range cfg.Fallbacks { // each host comes twice if TLS is optional
		if h := (host{f.Host, f.Port}); !slices.Contains(hosts, h) {
			hosts = append(hosts, h)
		}
	}
	return hosts
}
