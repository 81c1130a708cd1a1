package main

import (
	"context"
	"fmt"
	"net"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/shardgram/shardgram/pgbounce"
	"github.com/shardgram/shardgram/shard"
)

// On each node this many connections of the store share so many of PostgreSQL's.
// A change of follows holds one of these while it waits for another: there are
// more than package store lets wait.
const (
	poolClients = 64
	poolServers = 16
)

// startPooler starts pgbounce in this process, in front of the nodes. The store
// needs no socket to it: that is for psql.
func (s *system) startPooler(cfg systemConfig) error {
	begin, nodes := time.Now(), map[string]pgbounce.Database{}
	for i, node := range s.nodes() {
		nodes[node.Name] = pgbounce.Database{Hosts: []string{"127.0.0.1"}, Port: s.postgres[i].Port(), Name: "postgres", User: "postgres"}
	}
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	s.pooler, err = pgbounce.New(pgbounce.Config{
		Databases: nodes,
		PoolSize:  poolServers,
		Auth:      pgbounce.Auth{Type: "any"}, // as the nodes, which trust everybody here
		// A visitor is told soon that a node is down, and soon that it is back.
		QueryWaitTimeout: 5 * time.Second,
		ServerLoginRetry: 500 * time.Millisecond,
		Log:              cfg.Log,
		QuietConnections: true,
	})
	if err != nil {
		listener.Close()
		return err
	}
	s.serving.Go(func() {
		defer listener.Close()
		_ = s.pooler.Serve(context.Background(), listener) // until Close
	})
	fmt.Fprintf(cfg.Out, "  %-10s ready after %4.1f s   %s   %d clients share %d servers of each node\n",
		"pgbounce", time.Since(begin).Seconds(), listener.Addr(), poolClients, poolServers)
	return nil
}

// throughPooler is how the store's connections are made. The nodes' addresses
// in the catalog stay PostgreSQL's own: for other programs, and for the queue,
// which listens, and so needs connections to itself.
func (s *system) throughPooler() shard.Config {
	return shard.Config{
		Pooler:   true,
		MaxConns: poolClients,
		BeforeConnect: func(_ context.Context, node string, cfg *pgx.ConnConfig) error {
			cfg.DialFunc, cfg.Database = s.pooler.Dial, node
			return nil
		},
	}
}
