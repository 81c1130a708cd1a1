package pglease_test

import (
	"context"
	"fmt"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/shardgram/shardgram/idgen"
	"github.com/shardgram/shardgram/idgen/pglease"
)

// Workers that come and go take any shard number that is free, and give it back
// with how far its IDs went.
func Example() {
	ctx := context.Background()
	pool, err := pgxpool.New(ctx, postgresDSN)
	if err != nil {
		fmt.Println(err)
		return
	}
	defer pool.Close()
	leases, err := pglease.New(pool, pglease.Config{Name: "photos"})
	if err != nil {
		fmt.Println(err)
		return
	}
	if err := leases.Install(ctx); err != nil {
		fmt.Println(err)
		return
	}

	var last idgen.ID
	for range 2 {
		g, err := idgen.Open(ctx, leases, idgen.AnyShard, idgen.Config{})
		if err != nil {
			fmt.Println(err)
			return
		}
		id, err := g.Next(ctx)
		fmt.Println(g.Shard(), id > last, err)
		last = id
		if err := g.Close(); err != nil {
			fmt.Println(err)
		}
	}
	// Output:
	// 0 true <nil>
	// 0 true <nil>
}
