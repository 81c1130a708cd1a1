package shard_test

import (
	"context"
	"fmt"
	"testing/fstest"

	"github.com/jackc/pgx/v5"

	"github.com/shardgram/shardgram/internal/testserver"
	"github.com/shardgram/shardgram/shard"
)

// The two nodes of the examples; in life they are two machines.
func nodes() []shard.Node {
	dsn := testserver.PostgresDSN()
	return []shard.Node{
		{Name: "pg_1", DSN: dsn},
		{Name: "pg_2", DSN: dsn + "&application_name=pg_2"},
	}
}

func Example() {
	ctx := context.Background()
	c, err := shard.Open(ctx, shard.Static(16, nodes()...), shard.Config{})
	if err != nil {
		panic(err)
	}
	defer c.Close()
	_, err = c.Migrate(ctx, fstest.MapFS{
		"0001_account.sql": {Data: []byte("create table account (name text primary key, city text)")},
	}, shard.MigrateConfig{})
	if err != nil {
		panic(err)
	}

	alice := c.Key("alice")
	if _, err := alice.Exec(ctx, "insert into account values ($1, $2)", "alice", "Oslo"); err != nil {
		panic(err)
	}
	var city string
	if err := alice.QueryRow(ctx, "select city from account where name = $1", "alice").Scan(&city); err != nil {
		panic(err)
	}
	fmt.Println(alice.Schema(), alice.Node(), city)
	// Output: shard_0013 pg_2 Oslo
}

func ExampleShard_InTx() {
	ctx := context.Background()
	c, err := shard.Open(ctx, shard.Static(4, nodes()...), shard.Config{Schema: "bank"})
	if err != nil {
		panic(err)
	}
	defer c.Close()
	_, err = c.Migrate(ctx, fstest.MapFS{
		"0001_purse.sql": {Data: []byte("create table purse (id int primary key, coins int check (coins >= 0)); insert into purse values (1, 5), (2, 0)")},
	}, shard.MigrateConfig{})
	if err != nil {
		panic(err)
	}

	s := c.KeyInt(7)
	pay := func(coins int) error {
		return s.InTx(ctx, func(tx pgx.Tx) error {
			if _, err := tx.Exec(ctx, "update purse set coins = coins + $1 where id = 2", coins); err != nil {
				return err
			}
			_, err := tx.Exec(ctx, "update purse set coins = coins - $1 where id = 1", coins)
			return err
		})
	}
	fmt.Println(pay(3) == nil, pay(3) == nil) // there are not enough coins for the second
	var coins int
	if err := s.QueryRow(ctx, "select coins from purse where id = 2").Scan(&coins); err != nil {
		panic(err)
	}
	fmt.Println(coins)
	// Output:
	// true false
	// 3
}
