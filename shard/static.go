package shard

import (
	"context"
	"fmt"
	"slices"
	"sync"
)

// Static returns a catalog that lives in this process: n shards dealt round to
// the nodes, shard i on nodes[i % len(nodes)]. It is for tests and for systems
// that stay on the nodes they began with. A program that starts anew deals the
// same way again, so the list of nodes must stay as it is: nodes that are added
// would change the places of shards whose rows do not follow.
func Static(n int, nodes ...Node) Catalog {
	s := &static{changed: make(chan struct{}), m: Map{Version: 1, Nodes: slices.Clone(nodes)}}
	for i := 0; i < n && len(nodes) > 0; i++ {
		s.m.Shards = append(s.m.Shards, Placement{Node: nodes[i%len(nodes)].Name, State: Serving, Epoch: 1})
	}
	return s
}

type static struct {
	mu      sync.Mutex
	m       Map
	changed chan struct{} // closed at the next change
}

// String and GoString keep fmt from the nodes' DSNs.
func (s *static) String() string   { return "shard.Static" }
func (s *static) GoString() string { return s.String() }

func (s *static) Load(context.Context) (Map, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	m := s.m
	m.Nodes, m.Shards = slices.Clone(m.Nodes), slices.Clone(m.Shards)
	return m, nil
}

func (s *static) Wait(ctx context.Context, version int64) error {
	s.mu.Lock()
	changed, later := s.changed, s.m.Version > version
	s.mu.Unlock()
	if later {
		return nil
	}
	select {
	case <-changed:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (s *static) Place(_ context.Context, shard int, epoch int64, to Placement) error {
	if !to.State.known() {
		return fmt.Errorf("shard: place shard %d in state %q, which this version does not know", shard, to.State)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if shard < 0 || shard >= len(s.m.Shards) {
		return fmt.Errorf("shard: place shard %d: %w", shard, ErrNoShard)
	}
	if !slices.ContainsFunc(s.m.Nodes, func(n Node) bool { return n.Name == to.Node }) {
		return fmt.Errorf("shard: place shard %d: node %q: %w", shard, to.Node, ErrNoNode)
	}
	p := &s.m.Shards[shard]
	if p.Epoch != epoch {
		return fmt.Errorf("shard: place shard %d: %w: its epoch is %d, not %d", shard, ErrConflict, p.Epoch, epoch)
	}
	p.Node, p.State, p.Epoch = to.Node, to.State, epoch+1
	s.changeLocked()
	return nil
}

func (s *static) Migrated(_ context.Context, shards []int, version int) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, n := range shards {
		if n < 0 || n >= len(s.m.Shards) {
			return fmt.Errorf("shard: record schema versions: shard %d: %w", n, ErrNoShard)
		}
	}
	changed := false
	for _, n := range shards {
		p := &s.m.Shards[n]
		changed = changed || p.Schema != version
		p.Schema = version
	}
	if changed {
		s.changeLocked()
	}
	return nil
}

func (s *static) changeLocked() {
	s.m.Version++
	close(s.changed)
	s.changed = make(chan struct{})
}
