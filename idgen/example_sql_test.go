package idgen_test

import (
	"context"
	"fmt"

	"github.com/jackc/pgx/v5"

	"github.com/shardgram/shardgram/idgen"
	"github.com/shardgram/shardgram/internal/testserver"
)

func ExampleSQL() {
	ctx := context.Background()
	conn, err := pgx.Connect(ctx, testserver.PostgresDSN())
	if err != nil {
		panic(err)
	}
	defer conn.Close(ctx)
	script, err := idgen.SQL(idgen.SQLConfig{Schema: "shard_0042", Shard: 42})
	if err != nil {
		panic(err)
	}
	for _, sql := range []string{
		"create schema shard_0042",
		script,
		"set search_path = shard_0042",
		"create table photo (id bigint primary key default next_id(), title text)",
	} {
		if _, err := conn.Exec(ctx, sql); err != nil {
			panic(err)
		}
	}

	// Any number of programs may insert.
	for _, title := range []string{"dawn", "noon"} {
		var id idgen.ID
		if err := conn.QueryRow(ctx, "insert into photo (title) values ($1) returning id", title).Scan(&id); err != nil {
			panic(err)
		}
		fmt.Println(title, idgen.Default.Shard(id))
	}

	// The ID tells the time, so the primary key finds the photos of an hour.
	const lastHour = "select title from photo where id >= first_id(now() - interval '1 hour') order by id"
	rows, err := conn.Query(ctx, lastHour)
	if err != nil {
		panic(err)
	}
	titles, err := pgx.CollectRows(rows, pgx.RowTo[string])
	fmt.Println(titles, err)
	// Output:
	// dawn 42
	// noon 42
	// [dawn noon] <nil>
}
