package shard

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/shardgram/shardgram/idgen"
)

// A Node is a PostgreSQL primary with its replicas. Its DSN is kept out of what
// fmt and encoding/json print.
type Node struct {
	// Name is what errors call it: 1 to 40 letters a-z, digits and underscores,
	// a letter first.
	Name string `json:"name"`

	// DSN is a connection string or URL of pgx. It may list several hosts: the
	// one that takes writes is the primary, whichever it is at the time, and
	// the others are its replicas. pool_max_conns and the other settings of a
	// pgxpool may be in it.
	DSN string `json:"-"`
}

// String returns the name.
func (n Node) String() string { return n.Name }

// GoString returns the name.
func (n Node) GoString() string { return "shard.Node{" + n.Name + "}" }

// A State says what is being done with a shard.
type State string

// The states of a shard.
const (
	Serving State = "serving" // nothing: it takes reads and writes
	Moving  State = "moving"  // it serves while it is copied; no migrations
	Fenced  State = "fenced"  // it takes reads only, for a moment
)

func (s State) known() bool { return s == Serving || s == Moving || s == Fenced }

// A Placement is where a shard lives.
type Placement struct {
	Node  string `json:"node"`
	State State  `json:"state"`

	// Epoch counts the changes of this shard's placement, from 1.
	Epoch int64 `json:"epoch"`

	// Schema is the version that Migrate has last recorded, 0 before.
	Schema int `json:"schema"`
}

// A Map says which node each shard lives on.
type Map struct {
	// Version grows with every change of the map.
	Version int64

	// Schema is the first part of the schemas' names, "" if the catalog leaves
	// that to [Config].
	Schema string

	// Nodes are in the order in which they were added.
	Nodes []Node

	// Shards are in the order of their numbers. There are a power of two of
	// them, at most [MaxShards]; the number never changes.
	Shards []Placement
}

// A Catalog is where the map is kept. Implementations are safe for concurrent
// use. [Static] keeps it in memory, [PostgresCatalog] in a database.
type Catalog interface {
	// Load returns the whole map, which nobody may change.
	Load(ctx context.Context) (Map, error)

	// Wait returns when the map may have a later version than the given one; it
	// may return early. It is a hint that spares the time until the next poll,
	// and an error of it is no more than the lack of one.
	Wait(ctx context.Context, version int64) error

	// Place replaces a shard's placement if its epoch still is the given one:
	// node and state are taken from to, the epoch grows by one. Otherwise it
	// changes nothing and returns ErrConflict.
	Place(ctx context.Context, shard int, epoch int64, to Placement) error

	// Migrated records the schema version of some shards.
	Migrated(ctx context.Context, shards []int, version int) error
}

func (m Map) validate(layout idgen.Layout) error {
	n := len(m.Shards)
	switch {
	case len(m.Nodes) == 0:
		return errors.New("shard: the catalog has no node")
	case n == 0 || n&(n-1) != 0 || n > MaxShards || n > layout.MaxShard()+1:
		return fmt.Errorf("shard: the catalog has %d shards: want a power of two up to %d", n, min(MaxShards, layout.MaxShard()+1))
	}
	if err := checkNodes(m.Nodes); err != nil {
		return err
	}
	for s, p := range m.Shards {
		if !slices.ContainsFunc(m.Nodes, func(n Node) bool { return n.Name == p.Node }) {
			return fmt.Errorf("shard: shard %d is on node %q: %w", s, p.Node, ErrNoNode)
		}
		if !p.State.known() {
			return fmt.Errorf("shard: shard %d is in state %q, which this version does not know", s, p.State)
		}
	}
	return nil
}

func checkNodes(nodes []Node) error {
	names, dsns := make(map[string]bool), make(map[string]string)
	for _, node := range nodes {
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

// checkSchema is checkName for the first part of the schemas' names.
func checkSchema(s string) error {
	if err := checkName(s); err != nil {
		return err
	}
	if strings.HasPrefix(s, "pg_") {
		return fmt.Errorf("name %q: PostgreSQL keeps pg_ to itself", s)
	}
	return nil
}

// schemaName is the name of a shard's schema.
func schemaName(first string, number int) string { return fmt.Sprintf("%s_%04d", first, number) }
