package redislease_test

import (
	"context"
	"fmt"
	"log"

	"github.com/redis/go-redis/v9"

	"github.com/shardgram/shardgram/idgen"
	"github.com/shardgram/shardgram/idgen/redislease"
	"github.com/shardgram/shardgram/internal/testserver"
)

// A worker that needs a number nobody else has, and does not care which.
func Example() {
	ctx := context.Background()
	rdb := redis.NewClient(&redis.Options{Addr: testserver.RedisAddr(), ContextTimeoutEnabled: true})
	defer rdb.Close()

	// Leave AssumeDurable out: this server of the tests keeps nothing on disk,
	// which the zero Config refuses.
	leases, err := redislease.New(rdb, redislease.Config{Prefix: "example", AssumeDurable: true})
	if err != nil {
		log.Fatal(err)
	}
	ids, err := idgen.Open(ctx, leases, idgen.AnyShard, idgen.Config{})
	if err != nil {
		log.Fatal(err)
	}
	defer ids.Close() // gives the number back

	id, err := ids.Next(ctx)
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println("shard", idgen.Default.Shard(id))
	// Output: shard 0
}
