package lookaside_test

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/bradfitz/gomemcache/memcache"
	"github.com/shardgram/shardgram/feedcache/lookaside"
)

type user struct {
	Name string
}

func Example() {
	ctx := context.Background()
	mc := memcache.New(memcachedAddr)
	mc.Timeout = 100 * time.Millisecond
	mc.MaxIdleConns = 100
	defer mc.Close()

	// The store of record: in a program, a query on the primary.
	table := map[int64]user{1: {"ada"}, 2: {"grace"}}
	load := func(_ context.Context, ids []int64) (map[int64]user, error) {
		fmt.Println("load", ids)
		found := make(map[int64]user)
		for _, id := range ids {
			if u, ok := table[id]; ok {
				found[id] = u
			}
		}
		return found, nil
	}
	users, err := lookaside.New(mc, load, lookaside.Config[int64, user]{Prefix: "user"})
	if err != nil {
		fmt.Println(err)
		return
	}

	fmt.Println(users.Get(ctx, 1))
	fmt.Println(users.Get(ctx, 1))

	table[1] = user{"ada lovelace"} // update ... commit
	if err := users.Invalidate(ctx, 1); err != nil {
		fmt.Println(err)
	}
	fmt.Println(users.Get(ctx, 1))

	_, err = users.Get(ctx, 3)
	fmt.Println(errors.Is(err, lookaside.ErrNotFound))
	// Output:
	// load [1]
	// {ada} <nil>
	// {ada} <nil>
	// load [1]
	// {ada lovelace} <nil>
	// load [3]
	// true
}

func ExampleCache_GetMulti() {
	ctx := context.Background()
	mc := memcache.New(memcachedAddr)
	defer mc.Close()
	load := func(_ context.Context, ids []int64) (map[int64]string, error) {
		fmt.Println("load", ids)
		found := make(map[int64]string)
		for _, id := range ids {
			found[id] = fmt.Sprint("photo ", id)
		}
		return found, nil
	}
	photos, err := lookaside.New(mc, load, lookaside.Config[int64, string]{Prefix: "photo"})
	if err != nil {
		fmt.Println(err)
		return
	}
	fmt.Println(photos.GetMulti(ctx, 10, 11))
	fmt.Println(photos.GetMulti(ctx, 10, 11, 12))
	// Output:
	// load [10 11]
	// map[10:photo 10 11:photo 11] <nil>
	// load [12]
	// map[10:photo 10 11:photo 11 12:photo 12] <nil>
}
