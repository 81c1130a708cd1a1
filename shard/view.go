package shard

import (
	"context"
	"fmt"
	"time"
)

// A view is the map as it is at one time, ready for use. It does not change; a
// look-up is an index into it.
type view struct {
	m      Map
	nodes  []*node
	places []place // by shard number
}

type place struct {
	node  *node
	epoch int64
	state State
}

func (p place) name() string {
	if p.node == nil {
		return ""
	}
	return p.node.Name
}

// Map returns the map as the cluster has it. The caller must not change it.
func (c *Cluster) Map() Map { return c.view.Load().m }

// catalogLoad is an attempt to read the catalog.
type catalogLoad struct {
	begun time.Time
	read  time.Time // when an attempt last succeeded
	err   error
}

// Refresh reads the catalog now, and not only at its next hint or poll. When it
// fails, the cluster goes on with the map it has. Calls at the same time share
// one look at the catalog.
func (c *Cluster) Refresh(ctx context.Context) error {
	asked := time.Now()
	select {
	case c.loading <- struct{}{}:
		defer func() { <-c.loading }()
	case <-ctx.Done():
		return fmt.Errorf("shard: load the catalog: %w", ctx.Err())
	}
	if c.run.Err() != nil {
		return fmt.Errorf("shard: load the catalog: %w", ErrClosed)
	}
	if c.lastLoad.Load().begun.After(asked) { // while this call waited
		return c.lastLoad.Load().err
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(c.run, cancel)() // Close does not wait for a catalog that hangs
	load := &catalogLoad{begun: time.Now(), read: c.lastLoad.Load().read}
	m, err := c.cat.Load(ctx)
	if err != nil {
		load.err = fmt.Errorf("shard: load the catalog: %w", err)
	} else {
		load.err, load.read = c.show(m), load.begun
	}
	if ctx.Err() == nil || load.err == nil { // else it says nothing about the catalog
		c.lastLoad.Store(load)
	}
	return load.err
}

// show makes m the map that is in use, unless a later one already is.
func (c *Cluster) show(m Map) error {
	old := c.view.Load()
	if old != nil && m.Version <= old.m.Version {
		return nil
	}
	if err := m.validate(c.cfg.Layout); err != nil {
		return err
	}
	if len(m.Shards) != len(c.schemas) {
		return fmt.Errorf("shard: the catalog now has %d shards, not %d", len(m.Shards), len(c.schemas))
	}
	v := &view{m: m}
	byName := make(map[string]*node)
	var made []*node
	for _, n := range m.Nodes {
		known := old.find(n)
		if known == nil {
			var err error
			if known, err = c.newNode(n); err != nil {
				for _, n := range made {
					n.close()
				}
				return fmt.Errorf("shard: node %s: %w", n.Name, err)
			}
			made = append(made, known)
		}
		v.nodes = append(v.nodes, known)
		byName[n.Name] = known
	}
	for _, p := range m.Shards {
		v.places = append(v.places, place{byName[p.Node], p.Epoch, p.State})
	}
	c.view.Store(v)
	if old != nil {
		for _, n := range old.nodes {
			if v.find(n.Node) == nil {
				c.background.Go(n.close) // waits for the calls that are on it
			}
		}
	}
	return nil
}

// find returns the view's node of the same name and DSN, nil if there is none.
func (v *view) find(n Node) *node {
	if v == nil {
		return nil
	}
	for _, known := range v.nodes {
		if known.Node == n {
			return known
		}
	}
	return nil
}

// follow keeps the view close to the catalog until ctx ends. A catalog that is
// down changes nothing.
func (c *Cluster) follow(ctx context.Context) {
	for ctx.Err() == nil {
		polled, cancel := context.WithTimeout(ctx, c.cfg.Poll)
		if err := c.cat.Wait(polled, c.view.Load().m.Version); err != nil {
			<-polled.Done() // no hints at present
		}
		loading, stop := context.WithTimeout(ctx, max(c.cfg.Poll, time.Second))
		if c.Refresh(loading) != nil { // Stats tells
			<-polled.Done() // a hint that stays must not make this spin
		}
		stop()
		cancel()
	}
}
