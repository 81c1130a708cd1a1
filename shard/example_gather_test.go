package shard_test

import (
	"cmp"
	"context"
	"fmt"
	"testing/fstest"

	"github.com/jackc/pgx/v5"

	"github.com/shardgram/shardgram/shard"
)

func ExampleGather() {
	ctx := context.Background()
	c, err := shard.Open(ctx, shard.Static(16, nodes()...), shard.Config{Schema: "newest"})
	if err != nil {
		panic(err)
	}
	defer c.Close()
	_, err = c.Migrate(ctx, fstest.MapFS{
		"0001_photo.sql": {Data: []byte("create table photo (taken int primary key, title text)")},
	}, shard.MigrateConfig{})
	if err != nil {
		panic(err)
	}
	for year := 2001; year <= 2030; year++ {
		_, err := c.KeyInt(int64(year)).Exec(ctx, "insert into photo values ($1, $2)", year, fmt.Sprint("summer of ", year))
		if err != nil {
			panic(err)
		}
	}

	type photo struct {
		Taken int
		Title string
	}
	for p, err := range shard.Gather(ctx, c, shard.Scatter[photo]{
		SQL:     "select taken, title from photo order by taken desc",
		Limit:   3,
		Scan:    pgx.RowToStructByPos[photo],
		Compare: func(a, b photo) int { return cmp.Compare(b.Taken, a.Taken) },
	}) {
		if err != nil {
			panic(err)
		}
		fmt.Println(p.Title)
	}
	// Output:
	// summer of 2030
	// summer of 2029
	// summer of 2028
}
