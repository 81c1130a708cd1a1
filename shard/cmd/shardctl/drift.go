package main

import (
	"context"
	"errors"
	"fmt"

	"github.com/shardgram/shardgram/shard"
)

var driftCommand = command{
	name: "drift", short: "compare the structure of all shards with that of shard 0", help: driftHelp,
	run: runDrift,
}

type difference struct {
	Shard  int    `json:"shard"`
	Node   string `json:"node"`
	Object string `json:"object"`
	Want   string `json:"want"`
	Have   string `json:"have"`
}

func runDrift(ctx context.Context, c *call) error {
	if err := c.want(0, ""); err != nil {
		return err
	}
	return c.withCluster(ctx, func(cluster *shard.Cluster) error {
		found, err := cluster.Drift(ctx)
		if c.json {
			list := []difference{}
			for _, d := range found {
				list = append(list, difference{d.Shard, d.Node, d.Object, d.Want, d.Have})
			}
			printErr := printJSON(c.stdout, struct {
				Shards      int          `json:"shards"`
				Differences []difference `json:"differences"`
				Failed      []failure    `json:"failed"`
			}{len(cluster.Shards()), list, failures(err)})
			err = errors.Join(err, printErr)
		} else {
			differ := make(map[int]bool)
			for _, d := range found {
				differ[d.Shard] = true
				fmt.Fprintln(c.stdout, d)
			}
			switch {
			case len(found) > 0:
				fmt.Fprintf(c.stdout, "%s in %d of %d shards\n", count(len(found), "difference"), len(differ), len(cluster.Shards()))
			case err == nil:
				fmt.Fprintf(c.stdout, "no difference in %d shards\n", len(cluster.Shards()))
			}
		}
		if err == nil && len(found) > 0 {
			return errDiffers
		}
		return err
	})
}
