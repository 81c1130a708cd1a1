package hashkv_test

import (
	"context"
	"iter"
	"testing"

	"github.com/shardgram/shardgram/hashkv"
	"github.com/shardgram/shardgram/internal/testserver"
)

// redisAddr is for the examples.
var redisAddr string

func TestMain(m *testing.M) {
	redisAddr = testserver.RedisAddr()
	testserver.Main(m, testserver.NeedRedis)
}

// table is what all kinds of map do.
type table[K hashkv.Key, V hashkv.Value] interface {
	Open(ctx context.Context) error
	Get(ctx context.Context, key K) (V, error)
	GetMulti(ctx context.Context, keys ...K) (map[K]V, error)
	Set(ctx context.Context, key K, value V) error
	SetMulti(ctx context.Context, entries map[K]V) error
	SetNX(ctx context.Context, key K, value V) (bool, error)
	Delete(ctx context.Context, keys ...K) error
	All(ctx context.Context) (iter.Seq2[K, V], func() error)
	Load(ctx context.Context, entries iter.Seq2[K, V], cfg hashkv.LoadConfig) (int64, error)
	Stats(ctx context.Context, cfg hashkv.StatsConfig) (hashkv.Stats, error)
}

var (
	_ table[int64, int64]   = (*hashkv.Dense)(nil)
	_ table[int64, int64]   = (*hashkv.Sparse[int64])(nil)
	_ table[int64, string]  = (*hashkv.Sparse[string])(nil)
	_ table[string, int64]  = (*hashkv.Strings[int64])(nil)
	_ table[string, string] = (*hashkv.Strings[string])(nil)
)
