package shard

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/shardgram/shardgram/idgen"
)

// A Node is a PostgreSQL primary.
type Node struct {
	// Name is what errors call it: 1 to 40 letters a-z, digits and underscores,
	// a letter first.
	Name string

	// DSN is a connection string or URL of pgx. pool_max_conns and the other
	// settings of a pgxpool may be in it.
	DSN string
}

// A Map says which node each shard lives on.
type Map struct {
	Nodes []Node

	// Shards has for each shard the place of its node in Nodes. There are a
	// power of two of them, at most [MaxShards]; the number must never change
	// once rows are stored.
	Shards []int
}

// A Catalog is where the map is kept. Implementations are safe for concurrent
// use.
type Catalog interface {
	Load(ctx context.Context) (Map, error)
}

// Static returns a catalog that is written in the program: n shards dealt
// round to the nodes, shard i on nodes[i % len(nodes)]. Nodes that are added
// later would change the places of shards whose rows do not follow: the list
// must stay as it is.
func Static(n int, nodes ...Node) Catalog {
	m := Map{Nodes: nodes}
	for i := 0; i < n && len(nodes) > 0; i++ {
		m.Shards = append(m.Shards, i%len(nodes))
	}
	return static(m)
}

type static Map

func (s static) Load(context.Context) (Map, error) { return Map(s), nil }

func (m Map) validate(layout idgen.Layout) error {
	n := len(m.Shards)
	switch {
	case len(m.Nodes) == 0:
		return errors.New("shard: the catalog has no node")
	case n == 0 || n&(n-1) != 0 || n > MaxShards || n > layout.MaxShard()+1:
		return fmt.Errorf("shard: the catalog has %d shards: want a power of two up to %d", n, min(MaxShards, layout.MaxShard()+1))
	}
	names, dsns := make(map[string]bool), make(map[string]string)
	for _, node := range m.Nodes {
		if err := checkName(node.Name); err != nil {
			return fmt.Errorf("shard: node: %w", err)
		}
		if names[node.Name] {
			return fmt.Errorf("shard: two nodes are named %s", node.Name)
		}
		names[node.Name] = true
		if node.DSN == "" {
			// pgx would go by the environment, and every such node be the same.
			return fmt.Errorf("shard: node %s has no DSN", node.Name)
		}
		if other, ok := dsns[node.DSN]; ok {
			return fmt.Errorf("shard: nodes %s and %s have the same DSN", other, node.Name)
		}
		dsns[node.DSN] = node.Name
	}
	for s, i := range m.Shards {
		if i < 0 || i >= len(m.Nodes) {
			return fmt.Errorf("shard: shard %d is on node %d of %d", s, i, len(m.Nodes))
		}
	}
	return nil
}

// checkName keeps names that go into SQL free of anything to be quoted.
func checkName(s string) error {
	if s == "" || len(s) > 40 || s[0] < 'a' || s[0] > 'z' ||
		strings.Trim(s, "abcdefghijklmnopqrstuvwxyz0123456789_") != "" {
		return fmt.Errorf("name %q: want 1 to 40 letters a-z, digits and underscores, a letter first", s)
	}
	return nil
}

func newPool(ctx context.Context, n Node, maxConns int32) (*pgxpool.Pool, error) {
	cfg, err := pgxpool.ParseConfig(n.DSN)
	if err != nil {
		// pgx's error repeats the DSN, with the password taken out, but the
		// rest of it may be a secret too.
		return nil, errors.New("the DSN is not valid")
	}
	switch {
	case maxConns > 0:
		cfg.MaxConns = maxConns
	case !strings.Contains(n.DSN, "pool_max_conns"):
		cfg.MaxConns = 16
	}
	return pgxpool.NewWithConfig(ctx, cfg)
}
