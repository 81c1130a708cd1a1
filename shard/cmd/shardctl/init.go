package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"regexp"
	"strings"

	"github.com/shardgram/shardgram/shard"
)

var initCommand = command{
	name: "init", short: "make the catalog and the shards' schemas", help: initHelp, changes: true,
	flags: func(c *call) {
		c.flags.IntVar(&c.shards, "shards", 0, "")
		c.flags.Var(&c.nodes, "node", "")
		c.flags.StringVar(&c.schema, "schema", "", "")
	},
	run: runInit,
}

var nodeName = regexp.MustCompile(`^[a-z][a-z0-9_]{0,39}$`)

func runInit(ctx context.Context, c *call) error {
	if err := c.want(0, ""); err != nil {
		return err
	}
	nodes := []shard.Node(c.nodes)
	if len(nodes) == 0 {
		nodes = nodesOf(os.Environ())
	}
	switch n := c.shards; {
	case n == 0:
		return &usageError{"say how many shards, with --shards: a power of two, for ever"}
	case n < 0 || n&(n-1) != 0 || n > shard.MaxShards:
		return &usageError{fmt.Sprintf("--shards is a power of two up to %d", shard.MaxShards)}
	case len(nodes) == 0:
		return &usageError{"say where the shards live, with --node NAME=DSN"}
	}
	for i, n := range nodes {
		if !nodeName.MatchString(n.Name) {
			// A DSN without a name would be taken for one, so it is not shown.
			return &usageError{fmt.Sprintf("node %d: write NAME=DSN, the name of letters a-z, digits and underscores", i+1)}
		}
		if n.DSN == "" {
			return &usageError{fmt.Sprintf("node %s: its DSN is neither in --node nor in %s%s", n.Name, nodeVariable, strings.ToUpper(n.Name))}
		}
	}
	cat, err := shard.NewPostgresCatalog(c.catalog, shard.PostgresCatalogConfig{})
	if err != nil {
		return &usageError{strings.TrimPrefix(err.Error(), "shard: ")}
	}
	defer cat.Close()
	if _, err := cat.Load(ctx); err != nil && !errors.Is(err, shard.ErrNoCatalog) {
		return &catalogError{err}
	}
	err = shard.Init(ctx, cat, shard.InitConfig{Shards: c.shards, Nodes: nodes, Config: shard.Config{Schema: c.schema}, Progress: c.progress.tell})
	if _, some := errors.AsType[shard.Errors](err); err != nil && !some {
		return err
	}
	m, loadErr := cat.Load(ctx)
	if loadErr != nil {
		return errors.Join(err, loadErr)
	}
	if c.json {
		return errors.Join(err, printJSON(c.stdout, struct {
			Shards int          `json:"shards"`
			Schema string       `json:"schema"`
			Nodes  []shard.Node `json:"nodes"`
			Failed []failure    `json:"failed"`
		}{len(m.Shards), m.Schema, m.Nodes, failures(err)}))
	}
	if err == nil {
		fmt.Fprintf(c.stdout, "%d shards on %s. Next: shardctl migrate DIR\n", len(m.Shards), count(len(m.Nodes), "node"))
	}
	return err
}

func count(n int, what string) string {
	if n == 1 {
		return "1 " + what
	}
	return fmt.Sprintf("%d %ss", n, what)
}
