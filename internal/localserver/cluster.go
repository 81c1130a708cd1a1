package localserver

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"strconv"
	"strings"

	"github.com/redis/go-redis/v9"
)

const (
	clusterPrimaries = 3
	clusterSlots     = 16384
)

// RedisClusterConfig says how a Redis Cluster differs from our defaults.
type RedisClusterConfig struct {
	// Replicas is the number of replicas of each of the three primaries.
	// Default: 0.
	Replicas int

	// Settings are lines of redis.conf for every node, as in [RedisConfig].
	// Default: none, which leaves a cluster-node-timeout of 2 s.
	Settings map[string]string
}

// A RedisCluster is a Redis Cluster: three primaries that share the slots
// evenly, and their replicas. It is safe for concurrent use.
type RedisCluster struct {
	nodes []*Redis
}

// RedisCluster starts a Redis Cluster with nodes named name-0, name-1 and so
// on, the first three as primaries, and returns when every node sees it whole.
// A folder from an earlier Host keeps its data and the roles of its nodes.
func (h *Host) RedisCluster(ctx context.Context, name string, cfg RedisClusterConfig) (*RedisCluster, error) {
	if cfg.Replicas < 0 {
		return nil, fmt.Errorf("localserver: start redis cluster %s: Replicas is negative: %d", name, cfg.Replicas)
	}
	c := &RedisCluster{}
	var buses []int
	for i := range clusterPrimaries * (1 + cfg.Replicas) {
		var bus int
		node, err := (&Redis{}).add(ctx, h, fmt.Sprintf("%s-%d", name, i), func() (map[string]string, error) {
			var err error
			// The default, the port + 10000, may be taken or above 65535.
			bus, err = h.freePort()
			settings := map[string]string{
				"cluster-enabled":      "yes",
				"cluster-node-timeout": "2000",
			}
			maps.Copy(settings, cfg.Settings)
			settings["cluster-port"] = strconv.Itoa(bus)
			return settings, err
		})
		if err != nil {
			return nil, errors.Join(err, c.discard())
		}
		c.nodes, buses = append(c.nodes, node), append(buses, bus)
	}
	if err := c.form(ctx, buses); err != nil {
		err = fmt.Errorf("localserver: start redis cluster %s: %w", name, err)
		return nil, errors.Join(err, c.discard())
	}
	return c, nil
}

// discard gives up on the nodes of a cluster that did not come about.
func (c *RedisCluster) discard() error {
	var errs []error
	for _, n := range c.nodes {
		errs = append(errs, n.Kill())
		n.host.remove(&n.Server)
	}
	return errors.Join(errs...)
}

// Nodes returns the nodes in the order of their names. Which of them are
// primaries changes with a failover.
func (c *RedisCluster) Nodes() []*Redis { return append([]*Redis(nil), c.nodes...) }

// Addrs returns the addresses of all nodes, as a cluster client wants them.
func (c *RedisCluster) Addrs() []string {
	var addrs []string
	for _, n := range c.nodes {
		addrs = append(addrs, n.Addr())
	}
	return addrs
}

// form makes the nodes one cluster.
func (c *RedisCluster) form(ctx context.Context, buses []int) error {
	clients := make([]*redis.Client, len(c.nodes))
	for i, n := range c.nodes {
		clients[i] = n.client()
		defer clients[i].Close()
	}
	assigned, err := clusterInfo(ctx, clients[0], "cluster_slots_assigned")
	if err != nil {
		return err
	}
	fresh := assigned == "0"
	if fresh {
		if err := shareSlots(ctx, clients); err != nil {
			return err
		}
	}
	// Each to each, because nodes from an earlier Host know one another under
	// old ports, and gossip would mend that only after an election or two.
	for from, node := range clients {
		for i, n := range c.nodes {
			if i == from {
				continue
			}
			if err := node.Do(ctx, "cluster", "meet", "127.0.0.1", n.Port(), buses[i]).Err(); err != nil {
				return fmt.Errorf("introduce %s: %w", n.name, err)
			}
		}
	}
	if err := c.nodes[0].await(ctx, func(ctx context.Context) error { return allKnown(ctx, clients) }); err != nil {
		return err
	}
	if fresh {
		if err := c.assignReplicas(ctx, clients); err != nil {
			return err
		}
	}
	return c.nodes[0].await(ctx, func(ctx context.Context) error { return c.whole(ctx, clients, fresh) })
}

// shareSlots gives each primary its third of the slots. Epochs of their own
// spare the nodes the vote about who goes first.
func shareSlots(ctx context.Context, clients []*redis.Client) error {
	for i, node := range clients {
		if err := node.Do(ctx, "cluster", "set-config-epoch", i+1).Err(); err != nil {
			return fmt.Errorf("set epoch: %w", err)
		}
	}
	for i, node := range clients[:clusterPrimaries] {
		first, next := i*clusterSlots/clusterPrimaries, (i+1)*clusterSlots/clusterPrimaries
		if err := node.ClusterAddSlotsRange(ctx, first, next-1).Err(); err != nil {
			return fmt.Errorf("share slots: %w", err)
		}
	}
	return nil
}

// assignReplicas deals the replicas out to the primaries in turn.
func (c *RedisCluster) assignReplicas(ctx context.Context, clients []*redis.Client) error {
	for i, replica := range clients[clusterPrimaries:] {
		id, err := clients[i%clusterPrimaries].ClusterMyID(ctx).Result()
		if err == nil {
			err = replica.ClusterReplicate(ctx, id).Err()
		}
		if err != nil {
			return fmt.Errorf("make %s a replica: %w", c.nodes[clusterPrimaries+i].name, err)
		}
	}
	return nil
}

// allKnown succeeds when every node knows every other by its final name.
func allKnown(ctx context.Context, clients []*redis.Client) error {
	ids := make([]string, len(clients))
	for i, node := range clients {
		var err error
		if ids[i], err = node.ClusterMyID(ctx).Result(); err != nil {
			return err
		}
	}
	for i, node := range clients {
		view, err := node.ClusterNodes(ctx).Result()
		if err != nil {
			return err
		}
		for j, id := range ids {
			if !strings.Contains(view, id) {
				return fmt.Errorf("node %d does not know node %d", i, j)
			}
		}
		if strings.Contains(view, "handshake") {
			return fmt.Errorf("node %d is still being introduced", i)
		}
	}
	return nil
}

// whole succeeds when every node sees all slots served and, in a fresh
// cluster, all replicas in their place, and every replica has the data of its
// primary. After failovers a primary may be left without slots and replicas.
func (c *RedisCluster) whole(ctx context.Context, clients []*redis.Client, fresh bool) error {
	for i, node := range clients {
		state, err := clusterInfo(ctx, node, "cluster_state")
		if err != nil {
			return err
		}
		if state != "ok" {
			return fmt.Errorf("node %d sees the cluster as %q", i, state)
		}
		view, err := node.ClusterNodes(ctx).Result()
		if err != nil {
			return err
		}
		if seen, want := strings.Count(view, "slave "), len(clients)-clusterPrimaries; fresh && seen != want {
			return fmt.Errorf("node %d sees %d of %d replicas", i, seen, want)
		}
		role, err := c.nodes[i].info(ctx, "replication", "role")
		if err != nil {
			return err
		}
		if role == "slave" {
			if err := c.nodes[i].linked(ctx); err != nil {
				return fmt.Errorf("node %d: %w", i, err)
			}
		}
	}
	return nil
}

// clusterInfo returns one field of CLUSTER INFO.
func clusterInfo(ctx context.Context, node *redis.Client, field string) (string, error) {
	text, err := node.ClusterInfo(ctx).Result()
	if err != nil {
		return "", err
	}
	return infoField(text, field), nil
}
