package shard_test

import (
	"context"
	"fmt"
	"testing/fstest"

	"github.com/shardgram/shardgram/shard"
)

// The files are embed.FS in most programs.
func ExampleCluster_Migrate() {
	ctx := context.Background()
	c, err := shard.Open(ctx, shard.Static(64, nodes()...), shard.Config{Schema: "album"})
	if err != nil {
		panic(err)
	}
	defer c.Close()
	files := fstest.MapFS{
		"0001_photo.sql": {Data: []byte("create table photo (id bigint primary key default next_id(), title text)")},
	}
	if _, err := c.Migrate(ctx, files, shard.MigrateConfig{}); err != nil {
		panic(err)
	}

	files["0002_taken.sql"] = &fstest.MapFile{Data: []byte("alter table photo add column taken date")}
	for _, dry := range []bool{true, false} {
		report, err := c.Migrate(ctx, files, shard.MigrateConfig{DryRun: dry})
		if err != nil {
			panic(err)
		}
		fmt.Println(report)
	}
	// Output:
	// dry run: version 2: 64 of 64 shards
	// 64 from version 1: 0002_taken.sql
	// version 2: 64 of 64 shards
	// 64 from version 1: 0002_taken.sql
}
