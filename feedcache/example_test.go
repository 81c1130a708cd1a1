package feedcache_test

import (
	"context"
	"fmt"
	"log"
	"slices"

	"github.com/redis/go-redis/v9"

	"github.com/shardgram/shardgram/feedcache"
	"github.com/shardgram/shardgram/internal/testserver"
)

// A photo goes to the feeds of its author's followers.
func Example() {
	ctx := context.Background()
	rdb := redis.NewClient(&redis.Options{Addr: testserver.RedisAddr(), ContextTimeoutEnabled: true})
	defer rdb.Close()

	// The store of record. In SQL: select id from feed
	// where owner = $1 and id < $2 order by id desc limit $3
	rows := map[int64][]int64{1: {103, 102, 101}, 2: {103}}
	source := func(_ context.Context, owner, before int64, n int) ([]int64, error) {
		ids := slices.Clone(rows[owner])
		ids = slices.DeleteFunc(ids, func(id int64) bool { return id >= before })
		return ids[:min(n, len(ids))], nil
	}
	feeds, err := feedcache.New(rdb, source, feedcache.Config{Prefix: "example"})
	if err != nil {
		log.Fatal(err)
	}

	// Owner 1 opens the app, which fills the feed. Owner 2 does not.
	page, err := feeds.Page(ctx, 1, 0, 2)
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(page.IDs, page.Next)

	// First the store of record, then the feeds.
	rows[1] = append([]int64{104}, rows[1]...)
	rows[2] = append([]int64{104}, rows[2]...)
	delivery, err := feeds.Push(ctx, slices.Values([]int64{1, 2}), 104)
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(delivery.Warm, "warm,", delivery.Cold, "cold")

	for owner := int64(1); owner <= 2; owner++ {
		page, err := feeds.Page(ctx, owner, 0, 10)
		if err != nil {
			log.Fatal(err)
		}
		fmt.Println(page.IDs, page.Next)
	}
	if err := feeds.Drop(ctx, 1, 2); err != nil {
		log.Fatal(err)
	}
	// Output:
	// [103 102] 102
	// 1 warm, 1 cold
	// [104 103 102 101] 0
	// [104 103] 0
}

// A walk of a whole feed: Next is the cursor, and 0 at the end.
func ExampleFeeds_Page() {
	ctx := context.Background()
	rdb := redis.NewClient(&redis.Options{Addr: testserver.RedisAddr(), ContextTimeoutEnabled: true})
	defer rdb.Close()
	source := func(_ context.Context, _, before int64, n int) ([]int64, error) {
		var ids []int64
		for id := min(before-1, 7); id > 0 && len(ids) < n; id-- {
			ids = append(ids, id)
		}
		return ids, nil
	}
	feeds, err := feedcache.New(rdb, source, feedcache.Config{Prefix: "example:walk", Cap: 4})
	if err != nil {
		log.Fatal(err)
	}
	for before := int64(0); ; {
		page, err := feeds.Page(ctx, 1, before, 3)
		if err != nil {
			log.Fatal(err)
		}
		fmt.Println(page.IDs)
		if before = page.Next; before == 0 {
			break
		}
	}
	if err := feeds.Drop(ctx, 1); err != nil {
		log.Fatal(err)
	}
	// Output:
	// [7 6 5]
	// [4 3 2]
	// [1]
}

// A deleted photo leaves the feeds it is in, and does not come back with a
// push that arrives late.
func ExampleFeeds_Remove() {
	ctx := context.Background()
	rdb := redis.NewClient(&redis.Options{Addr: testserver.RedisAddr(), ContextTimeoutEnabled: true})
	defer rdb.Close()
	source := func(context.Context, int64, int64, int) ([]int64, error) { return []int64{101}, nil }
	feeds, err := feedcache.New(rdb, source, feedcache.Config{Prefix: "example:remove"})
	if err != nil {
		log.Fatal(err)
	}
	followers := slices.Values([]int64{1})
	if _, err := feeds.Page(ctx, 1, 0, 10); err != nil { // warm from here on
		log.Fatal(err)
	}
	if _, err := feeds.Remove(ctx, followers, 102); err != nil {
		log.Fatal(err)
	}
	if _, err := feeds.Push(ctx, followers, 102, 103); err != nil {
		log.Fatal(err)
	}
	page, err := feeds.Page(ctx, 1, 0, 10)
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(page.IDs)
	if err := feeds.Drop(ctx, 1); err != nil {
		log.Fatal(err)
	}
	// Output: [103 101]
}
