package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/shardgram/shardgram/shard"
)

var migrateCommand = command{
	name: "migrate", short: "bring all shards to the last version of a folder of SQL files", help: migrateHelp, changes: true,
	flags: func(c *call) {
		c.flags.BoolVar(&c.dryRun, "dry-run", false, "")
		c.flags.StringVar(&c.path, "path", "", "")
		c.flags.DurationVar(&c.lockTimeout, "lock-timeout", 200*time.Millisecond, "")
	},
	run: runMigrate,
}

type migrated struct {
	Shard int      `json:"shard"`
	From  int      `json:"from"`
	To    int      `json:"to"`
	Files []string `json:"files"`
}

func runMigrate(ctx context.Context, c *call) error {
	if err := c.want(1, "the folder of the SQL files"); err != nil {
		return err
	}
	if c.lockTimeout < time.Millisecond {
		return &usageError{"--lock-timeout is 1ms or more"}
	}
	if info, err := os.Stat(c.args[0]); err != nil || !info.IsDir() {
		return &usageError{"there is no such folder"}
	}
	return c.withCluster(ctx, func(cluster *shard.Cluster) error {
		r, err := cluster.Migrate(ctx, os.DirFS(c.args[0]), shard.MigrateConfig{
			DryRun: c.dryRun, LockTimeout: c.lockTimeout, Progress: c.progress.tell,
		})
		if r.Shards == nil {
			return err
		}
		if !c.json {
			fmt.Fprintln(c.stdout, r)
			return err
		}
		changed := []migrated{}
		for n, s := range r.Shards {
			if len(s.Files) > 0 {
				changed = append(changed, migrated{n, s.From, s.To, s.Files})
			}
		}
		return errors.Join(err, printJSON(c.stdout, struct {
			Version int        `json:"version"`
			DryRun  bool       `json:"dry_run"`
			Shards  int        `json:"shards"`
			Changed []migrated `json:"changed"`
			Failed  []failure  `json:"failed"`
		}{r.Version, r.DryRun, len(r.Shards), changed, failures(err)}))
	})
}
