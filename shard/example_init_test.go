package shard_test

import (
	"context"
	"fmt"
	"strings"

	"github.com/jackc/pgx/v5"

	"github.com/shardgram/shardgram/idgen"
	"github.com/shardgram/shardgram/internal/testserver"
	"github.com/shardgram/shardgram/shard"
)

// newDatabase stands for a server of its own.
func newDatabase(ctx context.Context, name string) (dsn string) {
	conn, err := pgx.Connect(ctx, testserver.PostgresDSN())
	if err != nil {
		panic(err)
	}
	defer conn.Close(ctx)
	if _, err := conn.Exec(ctx, "create database "+name); err != nil {
		panic(err)
	}
	return strings.Replace(testserver.PostgresDSN(), "/postgres?", "/"+name+"?", 1)
}

// A program makes its shards once, and from then on opens them.
func ExampleInit() {
	ctx := context.Background()
	cat, err := shard.NewPostgresCatalog(newDatabase(ctx, "catalog"), shard.PostgresCatalogConfig{})
	if err != nil {
		panic(err)
	}
	defer cat.Close()
	err = shard.Init(ctx, cat, shard.InitConfig{
		Shards: 16,
		Nodes: []shard.Node{
			{Name: "pg_1", DSN: newDatabase(ctx, "one")},
			{Name: "pg_2", DSN: newDatabase(ctx, "two")},
		},
	})
	if err != nil {
		panic(err)
	}

	c, err := shard.Open(ctx, cat, shard.Config{})
	if err != nil {
		panic(err)
	}
	defer c.Close()
	var id idgen.ID
	if err := c.Key("alice").QueryRow(ctx, "select next_id()").Scan(&id); err != nil {
		panic(err)
	}
	fmt.Println(c.ID(id) == c.Key("alice"), len(c.Shards()))
	// Output: true 16
}

// A row is found by the key that it was placed by, or by its ID.
func ExampleCluster_Key() {
	ctx := context.Background()
	c, err := shard.Open(ctx, shard.Static(64, nodes()...), shard.Config{})
	if err != nil {
		panic(err)
	}
	defer c.Close()

	photo := idgen.ID(1234567890116555781) // has its shard in it
	for _, s := range []shard.Shard{
		c.Key("alice"), // by text
		c.KeyInt(42),   // by number
		c.ID(photo),
		c.Number(3), // as a directory may say
	} {
		fmt.Println(s.Number(), s.Schema(), s.Node())
	}
	// Output:
	// 61 shard_0061 pg_2
	// 8 shard_0008 pg_1
	// 13 shard_0013 pg_2
	// 3 shard_0003 pg_2
}
