package hashkv_test

import (
	"context"
	"errors"
	"fmt"

	"github.com/redis/go-redis/v9"
	"github.com/shardgram/shardgram/hashkv"
)

// Photos were numbered 1, 2, 3, ... before ids carried a shard. Who owns photo
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
	// hashkv: set owner[1155316]: value is outside 0..16777214
}

// Ids that begin with a time lie anywhere among 64 bits.
func ExampleSparse() {
	ctx := context.Background()
	rdb := redis.NewClient(&redis.Options{Addr: redisAddr})
	defer rdb.Close()

	owners, err := hashkv.NewSparse(rdb, hashkv.SparseConfig{Prefix: "photo-owner", Buckets: 1 << 21})
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
