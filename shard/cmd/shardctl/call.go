package main

import (
	"context"
	"errors"
	"flag"
	"io"
	"os"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/shardgram/shardgram/shard"
)

// A call is a command with what it was given.
type call struct {
	flags    *flag.FlagSet
	args     []string
	stdout   io.Writer
	progress *bars

	catalog     string
	json        bool
	shards      int
	nodes       nodeFlag
	schema      string
	all         bool
	intKey, id  string
	number      string
	dryRun      bool
	lockTimeout time.Duration
	path        string
	interval    time.Duration
	top         int
}

// usageError says what is wrong with the arguments.
type usageError struct{ text string }

func (e *usageError) Error() string { return e.text }

var errHelp = errors.New("help wanted")

// parse reads the arguments. Its errors repeat none of them, as they may be DSNs.
func (c *call) parse(cmd *command, args []string) error {
	c.flags = flag.NewFlagSet(cmd.name, flag.ContinueOnError)
	c.flags.SetOutput(io.Discard)
	c.flags.StringVar(&c.catalog, "catalog", "", "")
	c.flags.BoolVar(&c.json, "json", false, "")
	if cmd.flags != nil {
		cmd.flags(c)
	}
	for {
		if err := c.flags.Parse(args); err != nil {
			return explain(err)
		}
		if c.flags.NArg() == 0 {
			break
		}
		// What is no flag may stand before flags too.
		rest := len(args) - c.flags.NArg()
		if rest > 0 && args[rest-1] == "--" {
			c.args = append(c.args, c.flags.Args()...)
			break
		}
		c.args = append(c.args, c.flags.Arg(0))
		args = c.flags.Args()[1:]
	}
	if c.catalog == "" {
		c.catalog = os.Getenv("SHARDGRAM_CATALOG")
	}
	if c.catalog == "" {
		return &usageError{"say where the catalog is, with --catalog DSN or in the environment as SHARDGRAM_CATALOG"}
	}
	return nil
}

// want reports an error unless there are n arguments beside the flags.
func (c *call) want(n int, what string) error {
	switch {
	case len(c.args) < n:
		return &usageError{what + " is missing"}
	case len(c.args) > n:
		return &usageError{"there are more arguments than it takes"}
	}
	return nil
}

var (
	flagName = regexp.MustCompile(`^flag (?:provided but not defined|needs an argument): -([a-z-]{1,20})$`)
	badValue = regexp.MustCompile(`for flag -([a-z-]{1,20}): [a-z ]*$`)
)

// explain makes an error of package flag one that shows no value.
func explain(err error) error {
	text := err.Error()
	if errors.Is(err, flag.ErrHelp) {
		return errHelp
	}
	if name := flagName.FindStringSubmatch(text); name != nil {
		if strings.Contains(text, "needs") {
			return &usageError{"--" + name[1] + " needs a value"}
		}
		return &usageError{"there is no flag --" + name[1]}
	}
	if name := badValue.FindStringSubmatch(text); name != nil {
		return &usageError{"the value of --" + name[1] + " is not valid"}
	}
	return &usageError{"a flag is not valid"}
}

// nodeFlag collects nodes. What is wrong with one shows later, as package flag
// would print the DSN.
type nodeFlag []shard.Node

func (f *nodeFlag) String() string { return "" }

func (f *nodeFlag) Set(text string) error {
	name, dsn, given := strings.Cut(text, "=")
	if !given {
		dsn = os.Getenv(nodeVariable + strings.ToUpper(name))
	}
	*f = append(*f, shard.Node{Name: name, DSN: dsn})
	return nil
}

const nodeVariable = "SHARDGRAM_NODE_"

// nodesOf returns the nodes that an environment has, by name.
func nodesOf(environ []string) []shard.Node {
	var nodes []shard.Node
	for _, e := range environ {
		key, dsn, _ := strings.Cut(e, "=")
		if name, ok := strings.CutPrefix(key, nodeVariable); ok && name != "" {
			nodes = append(nodes, shard.Node{Name: strings.ToLower(name), DSN: dsn})
		}
	}
	slices.SortFunc(nodes, func(a, b shard.Node) int { return strings.Compare(a.Name, b.Name) })
	return nodes
}

// withCluster opens the cluster of the catalog for fn.
func (c *call) withCluster(ctx context.Context, fn func(*shard.Cluster) error) error {
	cat, err := shard.NewPostgresCatalog(c.catalog, shard.PostgresCatalogConfig{})
	if err != nil {
		return &usageError{strings.TrimPrefix(err.Error(), "shard: ")}
	}
	defer cat.Close()
	var cfg shard.Config
	if c.path != "" {
		cfg.Path = strings.Split(c.path, ",")
	}
	cluster, err := shard.Open(ctx, cat, cfg)
	if err != nil {
		return &catalogError{err}
	}
	defer cluster.Close()
	return fn(cluster)
}
