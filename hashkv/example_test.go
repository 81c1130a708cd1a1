package hashkv_test

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/shardgram/shardgram/hashkv"
)

// Photos were numbered 1, 2, 3, ... before IDs carried a shard. Who owns photo
// 1155315?
func ExampleDense() {
	ctx := context.Background()
	rdb := redis.NewClient(&redis.Options{Addr: redisAddr})
	defer rdb.Close()

	owners, err := hashkv.NewDense(rdb, hashkv.DenseConfig{Prefix: "owner", Keys: 300_000_000})
	if err != nil {
		fmt.Println(err)
		return
	}
	if err := owners.Set(ctx, 1155315, 939); err != nil {
		fmt.Println(err)
		return
	}
	fmt.Println(owners.Get(ctx, 1155315))
	_, err = owners.Get(ctx, 1155316)
	fmt.Println(errors.Is(err, hashkv.ErrNotFound))
	fmt.Println(owners.Set(ctx, 1155316, 1<<24))
	// Output:
	// 939 <nil>
	// true
	// hashkv: set owner[1155316]: value does not fit: want 0..16777215
}

// IDs that begin with a time lie anywhere among 64 bits.
func ExampleSparse() {
	ctx := context.Background()
	rdb := redis.NewClient(&redis.Options{Addr: redisAddr})
	defer rdb.Close()

	owners, err := hashkv.NewSparse[int64](rdb, hashkv.SparseConfig{
		Prefix: "photo-owner", Entries: 300_000_000, ValueBits: 24,
	})
	if err != nil {
		fmt.Println(err)
		return
	}
	err = owners.SetMulti(ctx, map[int64]int64{
		3_355_443_200_000_102_401: 939,
		3_355_443_200_008_491_009: 4_812_664,
	})
	if err != nil {
		fmt.Println(err)
		return
	}
	fmt.Println(owners.GetMulti(ctx, 3_355_443_200_000_102_401, 3_355_443_200_008_491_009, 17))
	// Output:
	// map[3355443200000102401:939 3355443200008491009:4812664] <nil>
}

// Short URLs: SetNX gives a token away once.
func ExampleStrings() {
	ctx := context.Background()
	rdb := redis.NewClient(&redis.Options{Addr: redisAddr})
	defer rdb.Close()

	targets, err := hashkv.NewStrings[string](rdb, hashkv.StringsConfig{Prefix: "short", KeyBytes: 12})
	if err != nil {
		fmt.Println(err)
		return
	}
	for _, target := range []string{"/p/3355443200000102401", "/p/17"} {
		fmt.Println(targets.SetNX(ctx, "cAt5", target))
	}
	fmt.Println(targets.Get(ctx, "cAt5"))
	// Output:
	// true <nil>
	// false <nil>
	// /p/3355443200000102401 <nil>
}

// Load fills a map from any sequence, and All is one.
func ExampleMap_Load() {
	ctx := context.Background()
	rdb := redis.NewClient(&redis.Options{Addr: redisAddr})
	defer rdb.Close()

	dense, err := hashkv.NewDense(rdb, hashkv.DenseConfig{Prefix: "old", Keys: 10_000})
	if err != nil {
		fmt.Println(err)
		return
	}
	sparse, err := hashkv.NewSparse[int64](rdb, hashkv.SparseConfig{Prefix: "new"})
	if err != nil {
		fmt.Println(err)
		return
	}
	fmt.Println(dense.Load(ctx, maps.All(map[int64]int64{1: 11, 7: 77, 9999: 99}), hashkv.LoadConfig{}))

	entries, failed := dense.All(ctx)
	fmt.Println(sparse.Load(ctx, entries, hashkv.LoadConfig{}))
	if err := failed(); err != nil { // a sequence that ended early has an error
		fmt.Println(err)
		return
	}
	fmt.Println(sparse.Get(ctx, 9999))
	// Output:
	// 3 <nil>
	// 3 <nil>
	// 99 <nil>
}

// Grow doubles the buckets while others read and write.
func ExampleMap_Grow() {
	ctx := context.Background()
	rdb := redis.NewClient(&redis.Options{Addr: redisAddr})
	defer rdb.Close()

	visits, err := hashkv.NewStrings[int64](rdb, hashkv.StringsConfig{Prefix: "visits", Entries: 100_000})
	if err != nil {
		fmt.Println(err)
		return
	}
	if err := visits.Set(ctx, "/explore", 12); err != nil {
		fmt.Println(err)
		return
	}
	before, _ := visits.Stats(ctx, hashkv.StatsConfig{})
	err = visits.Grow(ctx, hashkv.GrowConfig{Progress: func(done, all int64) {
		// A progress bar would go here.
	}})
	after, _ := visits.Stats(ctx, hashkv.StatsConfig{})
	fmt.Println(before.Buckets, after.Buckets, err)
	fmt.Println(visits.Get(ctx, "/explore"))
	// Output:
	// 1024 2048 <nil>
	// 12 <nil>
}

// AutoGrow runs beside the program.
func ExampleMap_AutoGrow() {
	rdb := redis.NewClient(&redis.Options{Addr: redisAddr})
	defer rdb.Close()
	owners, err := hashkv.NewSparse[int64](rdb, hashkv.SparseConfig{Prefix: "grows"})
	if err != nil {
		fmt.Println(err)
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), 50*time.Millisecond) // the program's life
	defer cancel()
	ended := make(chan error)
	go func() { ended <- owners.AutoGrow(ctx, hashkv.AutoGrowConfig{}) }()
	fmt.Println(<-ended)
	// Output: context deadline exceeded
}
