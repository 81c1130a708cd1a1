package main

import (
	"context"
	"fmt"
	"strconv"
	"time"

	"github.com/shardgram/shardgram/idgen"
	"github.com/shardgram/shardgram/shard"
)

var routeCommand = command{
	name: "route", short: "tell where a key, an ID or a shard lives", help: routeHelp,
	flags: func(c *call) {
		c.flags.StringVar(&c.intKey, "int", "", "")
		c.flags.StringVar(&c.id, "id", "", "")
		c.flags.StringVar(&c.number, "shard", "", "")
	},
	run: runRoute,
}

type route struct {
	Shard    int         `json:"shard"`
	Schema   string      `json:"schema"`
	Node     string      `json:"node"`
	Epoch    int64       `json:"epoch"`
	State    shard.State `json:"state"`
	Time     *time.Time  `json:"time,omitempty"`     // of an ID
	Sequence *int        `json:"sequence,omitempty"` // of an ID
}

func runRoute(ctx context.Context, c *call) error {
	given := len(c.args)
	for _, text := range []string{c.intKey, c.id, c.number} {
		if text != "" {
			given++
		}
	}
	if given != 1 || len(c.args) == 1 && c.args[0] == "" {
		return &usageError{"give one of KEY, --int N, --id ID and --shard N"}
	}
	var r route
	var pick func(*shard.Cluster) shard.Shard
	switch {
	case c.intKey != "":
		key, err := strconv.ParseInt(c.intKey, 10, 64)
		if err != nil {
			return &usageError{"--int takes a whole number of 64 bits"}
		}
		pick = func(cl *shard.Cluster) shard.Shard { return cl.KeyInt(key) }
	case c.id != "":
		id, err := idgen.Parse(c.id)
		if err != nil {
			return &usageError{"--id takes an ID, as 1423543533123456789"}
		}
		made, sequence := idgen.Default.Time(id).UTC(), idgen.Default.Sequence(id)
		r.Time, r.Sequence = &made, &sequence
		pick = func(cl *shard.Cluster) shard.Shard { return cl.ID(id) }
	case c.number != "":
		n, err := strconv.Atoi(c.number)
		if err != nil {
			return &usageError{"--shard takes the number of a shard"}
		}
		pick = func(cl *shard.Cluster) shard.Shard { return cl.Number(n) }
	default:
		pick = func(cl *shard.Cluster) shard.Shard { return cl.Key(c.args[0]) }
	}
	return c.withCluster(ctx, func(cluster *shard.Cluster) error {
		s, m := pick(cluster), cluster.Map()
		if s.Node() == "" {
			return fmt.Errorf("shard %d: %w: the catalog has %d", s.Number(), shard.ErrNoShard, len(m.Shards))
		}
		p := m.Shards[s.Number()]
		r.Shard, r.Schema, r.Node, r.Epoch, r.State = s.Number(), s.Schema(), p.Node, p.Epoch, p.State
		if c.json {
			return printJSON(c.stdout, r)
		}
		rows := [][]string{
			{"shard", strconv.Itoa(r.Shard)},
			{"schema", r.Schema},
			{"node", r.Node},
			{"epoch", strconv.FormatInt(r.Epoch, 10)},
			{"state", string(r.State)},
		}
		if r.Time != nil {
			rows = append(rows,
				[]string{"time", r.Time.Format("2006-01-02T15:04:05.000Z07:00")},
				[]string{"sequence", strconv.Itoa(*r.Sequence)})
		}
		table(c.stdout, rows)
		return nil
	})
}
