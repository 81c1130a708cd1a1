package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/shardgram/shardgram/shard"
)

var statusCommand = command{
	name: "status", short: "show the nodes, their hosts and the shards", help: statusHelp,
	flags: func(c *call) { c.flags.BoolVar(&c.all, "shards", false, "") },
	run:   runStatus,
}

type status struct {
	Version int64               `json:"version"`
	Schema  string              `json:"schema"`
	Nodes   []nodeStatus        `json:"nodes"`
	States  map[shard.State]int `json:"states"`
	Schemas map[int]int         `json:"schema_versions"` // shards by version
	Shards  []shardStatus       `json:"shards,omitempty"`
}

type nodeStatus struct {
	Node   string       `json:"node"`
	Shards int          `json:"shards"`
	Conns  int          `json:"connections"` // to its database; those and Bytes are 0 if not known
	Bytes  int64        `json:"bytes"`
	Hosts  []hostStatus `json:"hosts"`
}

type hostStatus struct {
	Host     string        `json:"host"`
	Role     string        `json:"role"` // primary, replica or down
	Lag      time.Duration `json:"lag"`
	LagBytes int64         `json:"lag_bytes"`
	Error    string        `json:"error,omitempty"`
}

type shardStatus struct {
	Shard  int    `json:"shard"`
	Schema string `json:"schema"`
	shard.Placement
}

// patience is how long a host may take to answer.
const patience = 10 * time.Second

func runStatus(ctx context.Context, c *call) error {
	if err := c.want(0, ""); err != nil {
		return err
	}
	return c.withCluster(ctx, func(cluster *shard.Cluster) error {
		asking, cancel := context.WithTimeout(ctx, patience)
		defer cancel()
		s, err := look(asking, cluster, c.all)
		if c.json {
			return errors.Join(err, printJSON(c.stdout, s))
		}
		s.print(c)
		return err
	})
}

// look asks all hosts. Its error tells of those that do not answer.
func look(ctx context.Context, cluster *shard.Cluster, all bool) (status, error) {
	m := cluster.Map()
	s := status{Version: m.Version, States: make(map[shard.State]int), Schemas: make(map[int]int)}
	s.Schema = strings.TrimSuffix(cluster.Number(0).Schema(), "_0000")
	one := make(map[string]shard.Shard) // of each node
	shards := make(map[string]int)
	for n, p := range m.Shards {
		shards[p.Node]++
		s.States[p.State]++
		s.Schemas[p.Schema]++
		if all {
			s.Shards = append(s.Shards, shardStatus{n, cluster.Number(n).Schema(), p})
		}
		if shards[p.Node] == 1 {
			one[p.Node] = cluster.Number(n)
		}
	}
	var errs []error
	hosts := make(map[string][]hostStatus)
	down := make(map[string]bool) // no host of them takes writes
	for _, n := range m.Nodes {
		down[n.Name] = true
	}
	for _, h := range cluster.Hosts(ctx) {
		st := hostStatus{Host: h.Host, Role: "replica", Lag: h.Lag, LagBytes: h.LagBytes}
		switch {
		case h.Err != nil:
			st.Role, st.Error = "down", h.Err.Error()
			errs = append(errs, fmt.Errorf("host %s of node %s: %w", h.Host, h.Node, h.Err))
		case h.Primary:
			st.Role, down[h.Node] = "primary", false
		}
		hosts[h.Node] = append(hosts[h.Node], st)
	}
	for _, n := range m.Nodes {
		st := nodeStatus{Node: n.Name, Shards: shards[n.Name], Hosts: hosts[n.Name]}
		if of, ok := one[n.Name]; ok && !down[n.Name] {
			err := of.QueryRow(ctx, `select (select count(*) from pg_catalog.pg_stat_activity where datname = current_database()),
				pg_catalog.pg_database_size(current_database())`).Scan(&st.Conns, &st.Bytes)
			if err != nil {
				errs = append(errs, err)
			}
		} else if down[n.Name] && len(st.Hosts) > 1 {
			errs = append(errs, fmt.Errorf("node %s has no primary", n.Name))
		}
		s.Nodes = append(s.Nodes, st)
	}
	return s, errors.Join(errs...)
}

func (s status) print(c *call) {
	rows := [][]string{{"NODE", "SHARDS", "HOST", "ROLE", "CONNS", "SIZE", "LAG"}}
	for _, n := range s.Nodes {
		for i, h := range n.Hosts {
			row := []string{"", "", h.Host, h.Role, "", "", ""}
			if i == 0 {
				row[0], row[1] = n.Node, strconv.Itoa(n.Shards)
			}
			if h.Role == "primary" && n.Conns > 0 {
				row[4], row[5] = strconv.Itoa(n.Conns), size(n.Bytes)
			}
			if h.Role == "replica" {
				row[6] = "none"
				if h.LagBytes > 0 {
					row[6] = fmt.Sprintf("%v, %s", h.Lag.Round(100*time.Millisecond), size(h.LagBytes))
				}
			}
			rows = append(rows, row)
		}
	}
	table(c.stdout, rows)
	var states, versions []string
	for _, state := range slices.Sorted(maps.Keys(s.States)) {
		states = append(states, fmt.Sprintf("%d %s", s.States[state], state))
	}
	for _, v := range slices.SortedFunc(maps.Keys(s.Schemas), func(a, b int) int { return cmp.Compare(b, a) }) {
		versions = append(versions, fmt.Sprintf("%d at version %d", s.Schemas[v], v))
	}
	fmt.Fprintf(c.stdout, "\nshards   %s\nschemas  %s, %s_0000 and on\nmap      version %d\n",
		strings.Join(states, ", "), strings.Join(versions, ", "), s.Schema, s.Version)
	if len(s.Shards) == 0 {
		return
	}
	fmt.Fprintln(c.stdout)
	rows = [][]string{{"SHARD", "SCHEMA", "NODE", "STATE", "EPOCH", "VERSION"}}
	for _, p := range s.Shards {
		rows = append(rows, []string{strconv.Itoa(p.Shard), p.Schema, p.Node, string(p.State), strconv.FormatInt(p.Epoch, 10), strconv.Itoa(p.Placement.Schema)})
	}
	table(c.stdout, rows)
}
