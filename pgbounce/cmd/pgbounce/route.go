//go:build unix

package main

import (
	"context"
	"fmt"
	"maps"
	"net"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/shardgram/shardgram/idgen"
	"github.com/shardgram/shardgram/pgbounce"
	"github.com/shardgram/shardgram/shard"
)

// Nodes are those of the catalog that shard_catalog names. It is the Router of
// the transactions that name a shard,
//
//	set pgbounce.shard = '17'          by its number
//	set pgbounce.shard = 'key:alice'   that of a text key
//	set pgbounce.shard = 'id:4711'     that which made an ID
//
// and each node is a database of its name, which one in [databases] replaces:
// there a node gets its own pool_size, or a user. With several hosts the first
// that answers serves, and node.replicas, the others, serves read-only
// transactions.
//
// Of a node's DSN the hosts, ports and database count: clients log in at the
// nodes as themselves, and server_tls_sslmode is for all servers. The schema of
// the shard is the client's to name, or to set, with "set local search_path" in
// the transaction.
type nodes struct {
	catalog *shard.PostgresCatalog
	cluster *shard.Cluster
	given   []shard.Node                    // to the Bouncer, under the process's lock
	known   atomic.Pointer[map[string]bool] // names that it has got
}

var _ pgbounce.Router = (*nodes)(nil)

// replicas is what is behind a node's name in that of its replicas. No node can
// have it in its own name.
const replicas = ".replicas"

// openNodes reads the catalog. Without a DSN there are no nodes, and it returns
// nil.
func openNodes(ctx context.Context, dsn string) (*nodes, error) {
	if dsn == "" {
		return nil, nil
	}
	catalog, err := shard.NewPostgresCatalog(dsn, shard.PostgresCatalogConfig{})
	if err != nil {
		return nil, fmt.Errorf("shard_catalog: %w", err)
	}
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	cluster, err := shard.Open(ctx, catalog, shard.Config{})
	if err != nil {
		_ = catalog.Close()
		return nil, fmt.Errorf("shard_catalog: %w", err)
	}
	n := &nodes{catalog: catalog, cluster: cluster}
	n.known.Store(&map[string]bool{})
	return n, nil
}

func (n *nodes) close() {
	if n != nil {
		_ = n.cluster.Close()
		_ = n.catalog.Close()
	}
}

// Node returns the name of the node that has a shard.
func (n *nodes) Node(_, text string, readOnly bool) (string, error) {
	s, err := n.shard(text)
	if err != nil {
		return "", err
	}
	name, known := s.Node(), *n.known.Load()
	switch {
	case name == "":
		return "", fmt.Errorf("shard %q: there is no such shard", text)
	case readOnly && known[name+replicas]:
		return name + replicas, nil
	case !known[name]:
		// A name that the Bouncer does not know might be that of something else.
		return "", fmt.Errorf("shard %q: node %s is new, try again", text, name)
	}
	return name, nil
}

func (n *nodes) shard(text string) (shard.Shard, error) {
	if key, ok := strings.CutPrefix(text, "key:"); ok {
		return n.cluster.Key(key), nil
	}
	if id, ok := strings.CutPrefix(text, "id:"); ok {
		id, err := idgen.Parse(id)
		if err != nil {
			return shard.Shard{}, fmt.Errorf("shard %q: want an ID, as in id:4711", text)
		}
		return n.cluster.ID(id), nil
	}
	number, err := strconv.ParseUint(text, 10, 16)
	if err != nil {
		return shard.Shard{}, fmt.Errorf("shard %q: want a number, key:NAME or id:NUMBER", text)
	}
	return n.cluster.Number(int(number)), nil
}

// databases returns those that the catalog makes, by name.
func databases(list []shard.Node) (map[string]pgbounce.Database, error) {
	all := map[string]pgbounce.Database{}
	for _, node := range list {
		dsn, err := pgxpool.ParseConfig(node.DSN)
		if err != nil {
			return nil, fmt.Errorf("node %s: the DSN is not valid", node.Name) // its own error tells most of it
		}
		c := dsn.ConnConfig
		hosts := []string{host(c.Host, c.Port)}
		for _, f := range c.Fallbacks { // a host comes twice if TLS is optional
			if h := host(f.Host, f.Port); !slices.Contains(hosts, h) {
				hosts = append(hosts, h)
			}
		}
		all[node.Name] = pgbounce.Database{Hosts: hosts, Failover: true, Name: c.Database}
		if len(hosts) > 1 {
			all[node.Name+replicas] = pgbounce.Database{Hosts: hosts[1:], Name: c.Database}
		}
	}
	return all, nil
}

func host(name string, port uint16) string {
	if strings.HasPrefix(name, "/") {
		return name + ":" + strconv.Itoa(int(port))
	}
	return net.JoinHostPort(name, strconv.Itoa(int(port)))
}

// routed returns a Config with nodes of the catalog in it.
func (n *nodes) routed(cfg pgbounce.Config, list []shard.Node) (_ pgbounce.Config, known map[string]bool, err error) {
	all, err := databases(list)
	if err != nil {
		return cfg, nil, fmt.Errorf("shard_catalog: %w", err)
	}
	known = map[string]bool{}
	for name := range all {
		known[name] = true
	}
	maps.Copy(all, cfg.Databases)
	cfg.Databases, cfg.Router = all, n
	return cfg, known, nil
}

// configure gives a Config to the Bouncer, with the catalog's nodes. The first
// one makes the Bouncer. The caller holds the lock.
func (p *process) configure(cfg pgbounce.Config) (err error) {
	n := p.nodes
	var list []shard.Node
	var known map[string]bool
	if n != nil {
		list = n.cluster.Map().Nodes
		if cfg, known, err = n.routed(cfg, list); err != nil {
			return err
		}
	}
	if p.bouncer == nil {
		p.bouncer, err = pgbounce.New(cfg)
	} else {
		err = p.bouncer.Reload(cfg)
	}
	if err == nil && n != nil {
		n.given = list
		n.known.Store(&known)
	}
	return err
}

// nodesPeriod is how often the catalog's list of nodes is looked at. It is in
// memory; the catalog itself tells when it changes.
const nodesPeriod = 200 * time.Millisecond

// followNodes gives nodes that are added or changed to the Bouncer until ctx
// ends.
func (p *process) followNodes(ctx context.Context) {
	tick := time.NewTicker(nodesPeriod)
	defer tick.Stop()
	var refused int64 // the version of a map that cannot be used
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		now := p.nodes.cluster.Map()
		p.mu.Lock()
		if now.Version == refused || slices.Equal(now.Nodes, p.nodes.given) {
			p.mu.Unlock()
			continue
		}
		err := p.configure(p.file.Config)
		p.mu.Unlock()
		if err != nil {
			refused = now.Version
			p.log.Error("pgbounce: the catalog's nodes cannot be taken over", "error", err)
			continue
		}
		p.log.Info("pgbounce: the catalog's nodes have changed")
	}
}
